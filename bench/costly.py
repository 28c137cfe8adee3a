"""Goodput of an honest application of a daemon beside another one whose requests cost much.

One stream up, to an application attached to a daemon with one worker over udp, alone and beside a
process that sends one kind of costly request as fast as the worker reads it. Both are of one user,
who has half of the time for requests each. Alone and beside take turns within a round, and the
ratio is of those of a round. The kind "loop" sends nothing: what it takes is the scheduler's.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Final

from bench import ends
from bench.costly_end import LOOP
from bench.daemons import Daemon, daemon
from bench.lines import Expected, Line
from bench.processes import Process, running
from bench.report import Benchmark, Found
from bench.rounds import interleave, progress
from hoststack.worker.engines import available_engines
from tests.support import netns
from tests.support.costly import COMMANDS, KINDS

EXPECTED: Final = Expected(">=", 0.5)
_LINK: Final = "udp"
#: The processes of a busy machine start slowly.
_START_S: Final = 60.0


def _goodput(command: list[str], attack: Callable[[], AbstractContextManager[object]]) -> float:
    """Mbit/s of a connection that was there before the attack began."""
    process = Process(command, has_input=True)
    try:
        process.wait_ready(timeout_s=_START_S)
        with attack():
            process.say("go")
            found = process.finish_to_json()
    finally:
        process.close()
    return float(found["bytes"] / found["seconds"] * 8e-6)


def _attack(served: Daemon, kind: str) -> AbstractContextManager[Process]:
    line = [sys.executable, "-m", "bench.costly_end", served.api, kind]
    return running(line, timeout_s=_START_S)


def measure(rounds: int, seconds: float) -> Found:
    """Medians over all rounds."""
    rows: list[dict[str, Any]] = []
    lines: list[Line] = []
    engine = available_engines()[0]
    with netns.veth_pair() as pair, daemon(pair.b, engine, link=_LINK) as served:
        uri = f"quic://{pair.b.ipv4}:{ends.PORT}"
        server = ends.end_command(pair.b, "server", _LINK, engine, uri, f"--socket={served.api}")
        with running(server, timeout_s=_START_S) as process:
            words = [f"--seconds={seconds}", f"--server-pid={process.pid}", "--waits"]
            upload = ends.end_command(pair.a, "upload", _LINK, engine, uri, *words)
            for kind in (LOOP, *KINDS, *COMMANDS):
                progress(kind)
                found = interleave(
                    {
                        "alone": partial(_goodput, upload, nullcontext),
                        "beside": partial(_goodput, upload, partial(_attack, served, kind)),
                    },
                    rounds,
                    kind,
                )
                left = statistics.median(
                    beside / alone
                    for beside, alone in zip(found["beside"], found["alone"], strict=True)
                )
                rows.append(
                    {
                        "kind": kind,
                        "Mbit/s alone": round(statistics.median(found["alone"])),
                        "beside": round(statistics.median(found["beside"])),
                        "left": round(left, 2),
                    }
                )
                lines.append(
                    Line(
                        what=f"goodput beside requests of the kind {kind!r}",
                        case="one application",
                        unit="of that alone",
                        expected=None if kind == LOOP else EXPECTED,
                        ours=left,
                    )
                )
    return Found("goodput beside costly requests", rows, lines, told={"engine": engine})


BENCHMARK: Final = Benchmark("costly", __doc__, measure, rounds=3, seconds=2)

if __name__ == "__main__":
    BENCHMARK.main()

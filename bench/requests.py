"""Requests of 100 bytes, each on a stream of its own, with as many bytes back, over udp.

One connection between two processes; 100 requests at a time, and one at a time. Both ends have a
stack of their own, or are attached to a daemon each, with trio, asyncio and uvloop. Against
aioquic's own asyncio streams. And streams without data, 100 at a time.
"""

from __future__ import annotations

import statistics
import sys
from contextlib import ExitStack
from functools import partial
from typing import Any, Final

from bench import ends
from bench.daemons import daemon
from bench.lines import Expected, Line, compared
from bench.processes import run_to_json, running
from bench.report import Benchmark, Found
from bench.rounds import interleave, progress, spread
from hoststack.worker.engines import available_engines
from tests.support import netns

AT_ONCE: Final = (100, 1)
_AIOQUIC: Final = "aioquic asyncio"
_EMBEDDED: Final = "hoststack, native"
#: What is attached at both ends, and the loop of both.
ATTACHED: Final = {
    "attached, trio": None,
    "attached, asyncio": "asyncio",
    "attached, uvloop": "uvloop",
}
#: Against what, and what is expected.
EXPECTED: Final = {
    _EMBEDDED: (_AIOQUIC, Expected(">=", 2)),
    "attached, trio": (_EMBEDDED, Expected(">=", 0.8)),
    "attached, asyncio": (_AIOQUIC, Expected(">=", 1)),
    "attached, uvloop": (_AIOQUIC, Expected(">=", 1)),
}
_UNIT: Final = "per second"
_EMPTY: Final = "streams opened and closed without data, udp"


def _of_aioquic(pair: netns.VethPair, seconds: float, at_once: int) -> dict[str, Any]:
    line = (sys.executable, "-m", "bench.aioquic_asyncio")
    address = pair.b.ipv4
    with running(pair.b.command(*line, "server", address)) as server:
        words = ("requests", address, str(seconds), str(at_once), str(server.pid))
        return run_to_json(pair.a.command(*line, *words))[0]


def _attached(
    pair: netns.VethPair, seconds: float, at_once: int, loop: str | None
) -> dict[str, Any]:
    """With both ends attached to daemons of one worker; `loop` is asyncio's, None for trio."""
    with ExitStack() as stack:
        engine = available_engines()[0]
        client, server = (
            stack.enter_context(daemon(side, engine, link="udp")).api for side in (pair.a, pair.b)
        )
        if loop is None:
            at = {"client": client, "server": server}
            return ends.measure(
                pair, "requests", "udp", engine, seconds, at_once=at_once, attached=at
            )
        uri = f"quic://{pair.b.ipv4}:{ends.PORT}"
        line = [sys.executable, "-m", "bench.aio_ends"]
        words = ["--uvloop"] if loop == "uvloop" else []
        stack.enter_context(running(pair.b.command(*line, "server", uri, server, *words)))
        words += ["requests", uri, client, str(seconds), str(at_once)]
        return run_to_json(pair.a.command(*line, *words))[0]


def measure(rounds: int, seconds: float) -> Found:
    """Requests a second of each, and the CPU time that one takes at each end."""
    rows: list[dict[str, Any]] = []
    lines = []
    with netns.veth_pair() as pair:
        for at_once in AT_ONCE:
            runs = {
                f"hoststack, {engine}": partial(
                    ends.measure, pair, "requests", "udp", engine, seconds, at_once=at_once
                )
                for engine in available_engines()
            }
            runs |= {
                name: partial(_attached, pair, seconds, at_once, loop)
                for name, loop in ATTACHED.items()
            }
            runs[_AIOQUIC] = partial(_of_aioquic, pair, seconds, at_once)
            case = f"{at_once} at a time"
            found = interleave(runs, rounds, case)
            rates = {
                name: [one["count"] / one["seconds"] for one in all_]
                for name, all_ in found.items()
            }
            for name, all_ in found.items():
                rows.append({"what": name, "case": case, "figure": _UNIT, **spread(rates[name], 0)})
                for end in ("server_us", "client_us") if name not in ATTACHED else ():
                    figures = [one[end] for one in all_]
                    rows.append(
                        {"what": name, "case": case, "figure": f"CPU {end}", **spread(figures, 1)}
                    )
            lines += [
                compared(
                    rates,
                    name,
                    other,
                    what=f"requests of {ends.REQUEST_BYTES} bytes, udp",
                    case=case,
                    unit=_UNIT,
                    expected=expected,
                )
                for name, (other, expected) in EXPECTED.items()
            ]
        progress("streams without data")
        made = [
            one["count"] / one["seconds"]
            for one in (
                ends.measure(
                    pair, "streams", "udp", available_engines()[0], seconds, at_once=AT_ONCE[0]
                )
                for _ in range(rounds)
            )
        ]
        case = f"{AT_ONCE[0]} at a time"
        rows.append({"what": _EMPTY, "case": case, "figure": _UNIT, **spread(made, 0)})
        lines.append(Line(what=_EMPTY, case=case, unit=_UNIT, ours=statistics.median(made)))
    return Found("as named", rows, lines)


BENCHMARK: Final = Benchmark("requests", __doc__, measure, seconds=2.0)

if __name__ == "__main__":
    BENCHMARK.main()

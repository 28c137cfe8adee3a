"""What 10, 100, 1,000 and 10,000 idle connections cost a daemon's worker, and an application of it.

Memory for each, CPU time while nothing happens, the time of a turn, and of a round trip of 64 bytes
on one more connection. Over af_xdp, the best engine; the clients have a stack of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Final

from bench import ends
from bench.daemons import daemon
from bench.lines import Expected, Line, compared
from bench.processes import run_to_json, running
from bench.report import Benchmark, Found
from bench.rounds import interleave
from hoststack.worker.engines import available_engines
from tests.support import netns

COUNTS: Final = (10, 100, 1000, 10_000)
#: Near zero: of one CPU.
EXPECTED_IDLE_CPU: Final = Expected("<=", 0.01)
_WORKER, _APPLICATION = range(2)


def _run(engine: str, count: int, seconds: float) -> ends.Found:
    with netns.veth_pair() as pair, daemon(pair.b, engine) as served:
        uri = f"quic://{pair.b.ipv4}:{ends.PORT}"
        socket = f"--socket={served.api}"
        with running(ends.end_command(pair.b, "server", "af_xdp", engine, uri, socket)) as server:
            words = [f"--idle={count}", f"--seconds={seconds}", f"--cli={served.cli}"]
            words += [f"--watched={pid}" for pid in (*served.worker_pids, server.pid)]
            line = ends.end_command(pair.a, "beside_idle", "af_xdp", engine, uri, *words)
            return run_to_json(line)[0]


def _median(runs: list[ends.Found], key: str, index: int | None = None) -> float:
    values = sorted(run[key] if index is None else run[key][index] for run in runs)
    return float(values[len(values) // 2])


def _row(count: int, runs: list[ends.Found]) -> Mapping[str, Any]:
    return {
        "connections": f"{count:,}",
        "bytes each, worker": round(_median(runs, "memory_bytes", _WORKER) / count),
        "bytes each, application": round(_median(runs, "memory_bytes", _APPLICATION) / count),
        "idle CPU %, worker": round(_median(runs, "idle_cpu", _WORKER) * 100, 2),
        "idle CPU %, application": round(_median(runs, "idle_cpu", _APPLICATION) * 100, 2),
        "turn, us of CPU": round(_median(runs, "turn_us"), 1),
        "round trip p50, us": round(_median(runs, "p50_us"), 1),
    }


def measure(rounds: int, seconds: float) -> Found:
    """The table, and what the most of them are against the fewest."""
    engine = available_engines()[0]
    found = interleave(
        {f"{count:,}": partial(_run, engine, count, seconds) for count in COUNTS}, rounds
    )
    fewest, *_, most = found
    lines = [
        Line(
            what=f"CPU of an idle worker, {engine}, af_xdp",
            case=f"{most} connections",
            unit="of one CPU",
            expected=EXPECTED_IDLE_CPU,
            ours=_median(found[most], "idle_cpu", _WORKER),
        ),
        compared(
            {name: [one["turn_us"] for one in runs] for name, runs in found.items()},
            most,
            fewest,
            what=f"CPU time of a turn, {engine}, af_xdp",
            case=f"beside {most} idle connections",
            unit="us",
        ),
    ]
    rows = [dict(_row(count, found[f"{count:,}"])) for count in COUNTS]
    return Found("idle connections", rows, lines, told={"engine": engine})


BENCHMARK: Final = Benchmark("idle_table", __doc__, measure, rounds=1)

if __name__ == "__main__":
    BENCHMARK.main()

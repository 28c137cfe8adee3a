"""What idle connections and streams hold of memory, of the native engine where there is one.

Two stacks in one process, on a network in memory: a figure is half of the resident memory that one
more adds to it, of a thousand. Each stream has carried a byte each way. Idle ones have read it.
"""

from __future__ import annotations

import statistics
import sys
from functools import partial
from typing import Any, Final

from bench.lines import Expected, Line
from bench.memory_ends import CONNECTION, FULL, STREAM
from bench.processes import run_to_json
from bench.report import Benchmark, Found
from bench.rounds import interleave, spread
from hoststack.worker.engines import available_engines

#: Of the last, 8 KiB are a page for each FIFO.
_EXPECTED: Final = {
    CONNECTION: Expected("<=", 40 << 10),
    STREAM: Expected("<=", 1 << 10),
    FULL: Expected("<=", 9 << 10),
}


def _run(engine: str) -> dict[str, Any]:
    return run_to_json([sys.executable, "-m", "bench.memory_ends", engine])[0]


def measure(rounds: int, seconds: float) -> Found:
    """Bytes of each; `seconds` does not matter."""
    engine = available_engines()[0]
    runs = interleave({engine: partial(_run, engine)}, rounds)[engine]
    figures = {name: [run[name] for run in runs] for name in _EXPECTED}
    lines = [
        Line(
            what=f"memory, {engine}",
            case=name,
            unit="bytes",
            expected=_EXPECTED[name],
            ours=statistics.median(found),
        )
        for name, found in figures.items()
    ]
    rows: list[dict[str, Any]] = [
        {"what": name, **spread(found, 0)} for name, found in figures.items()
    ]
    return Found("bytes at each end", rows, lines, told={"engine": engine})


BENCHMARK: Final = Benchmark("memory", __doc__, measure)

if __name__ == "__main__":
    BENCHMARK.main()

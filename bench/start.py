"""How long programs take to start: importing `hoststack`, and `quic_echo` until it listens.

Of the import, the time of an interpreter that imports nothing is taken off.
"""

from __future__ import annotations

import subprocess
import sys
import time
from functools import partial
from typing import Any, Final

from bench.lines import Line
from bench.processes import running
from bench.report import Benchmark, Found
from bench.rounds import interleave, spread

_IMPORT: Final = "importing hoststack"
_LISTEN: Final = "quic_echo over udp, until it listens"
_SERVER: Final = ("uri", "quic://127.0.0.1:4433", "link", "udp", "log=1", "server")


def _run_ms(program: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], check=True)
    return (time.perf_counter() - start) * 1e3


def _import_ms() -> float:
    return _run_ms("import hoststack") - _run_ms("pass")


def _listen_ms() -> float:
    start = time.perf_counter()
    with running([sys.executable, "-m", "apps.quic_echo", *_SERVER]):
        return (time.perf_counter() - start) * 1e3


def measure(rounds: int, seconds: float) -> Found:
    """Milliseconds of each; `seconds` does not matter."""
    runs = {_IMPORT: partial(_import_ms), _LISTEN: partial(_listen_ms)}
    figures = interleave(runs, max(rounds, 3))
    rows: list[dict[str, Any]] = [
        {"what": name, **spread(found, 0)} for name, found in figures.items()
    ]
    lines = [Line(what="start", case=row["what"], unit="ms", ours=row["median"]) for row in rows]
    return Found("milliseconds", rows, lines)


BENCHMARK: Final = Benchmark("start", __doc__, measure)

if __name__ == "__main__":
    BENCHMARK.main()

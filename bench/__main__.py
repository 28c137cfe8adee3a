"""Run benchmarks, one after the other; tables on the screen, JSON in bench/results/.

`python -m bench [NAME...] [--rounds N] [--seconds S]`: all of them, or those named. Each can also
be run by itself, as `python -m bench.NAME`. At the end stands one table of all that is expected;
of all benchmarks it is in results/summary.*, of some of them in results/part.*.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Final

from bench import (
    abuse,
    asgi,
    attached,
    bodies,
    bulk,
    ciphers,
    connections,
    costly,
    cpu,
    half_open,
    handshakes,
    httpx,
    idle,
    idle_table,
    link_pps,
    memory,
    moving,
    ping_pong,
    pyxdp_pps,
    quic_echo,
    requests,
    start,
    tuning,
    vcl,
    workers,
)
from bench.lines import Line
from bench.processes import BenchError
from bench.report import Benchmark, add_options, first_line
from bench.summary import summarize

RESULTS: Final = Path(__file__).resolve().parent / "results"
_REASON_LENGTH: Final = 80
BENCHMARKS: Final[dict[str, Benchmark]] = {
    module.BENCHMARK.name: module.BENCHMARK
    for module in (
        bulk,
        tuning,
        connections,
        handshakes,
        half_open,
        abuse,
        costly,
        requests,
        asgi,
        bodies,
        moving,
        httpx,
        start,
        ping_pong,
        cpu,
        ciphers,
        idle,
        memory,
        attached,
        workers,
        idle_table,
        vcl,
        quic_echo,
        link_pps,
        pyxdp_pps,
    )
}


def main() -> int:
    """1 if one of them failed."""
    parser = argparse.ArgumentParser(description=first_line(__doc__))
    parser.add_argument("names", metavar="NAME", nargs="*", help=", ".join(BENCHMARKS))
    add_options(parser)
    options = parser.parse_args()
    if unknown := set(options.names) - set(BENCHMARKS):
        parser.error(f"no benchmark {', '.join(unknown)}: there are {', '.join(BENCHMARKS)}")
    RESULTS.mkdir(exist_ok=True)
    names = options.names or list(BENCHMARKS)
    lines: list[Line] = []
    status = 0
    start_s = time.monotonic()
    for number, name in enumerate(names, 1):
        print(f"\n{name} ({number} of {len(names)}, {_since(start_s)} so far)", flush=True)
        file = RESULTS / f"{name}.json"
        # What a failed benchmark leaves must not be taken for its result.
        file.unlink(missing_ok=True)
        try:
            lines += BENCHMARKS[name].run(options.rounds, options.seconds, file)
        except BenchError as error:
            print(f"{name} FAILED: {error}", flush=True)
            reason = str(error).partition("\n")[0][:_REASON_LENGTH]
            lines.append(Line(what=name, case="", unit="", why_not=f"it failed: {reason}"))
            status = 1
    print(f"\nAll that is expected ({_since(start_s)} in all)")
    made = {"rounds": options.rounds or "default", "seconds": options.seconds or "default"}
    summarize(lines, RESULTS / ("part" if options.names else "summary"), made)
    return status


def _since(start_s: float) -> str:
    minutes, seconds = divmod(round(time.monotonic() - start_s), 60)
    return f"{minutes}:{seconds:02}"


if __name__ == "__main__":
    sys.exit(main())

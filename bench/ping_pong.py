"""Round trips of 64 bytes on one stream, there and back, over af_xdp and over udp.

One at a time between two programs on the trio API, so a round trip has both programs' loops in it.
Both sleep when there is nothing, or both poll busily, SPIN_US at a time.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final

from bench import ends
from bench.lines import Expected, Line, compared
from bench.report import Benchmark, Found
from bench.rounds import interleave, spread
from hoststack.worker.engines import available_engines
from tests.support import netns

LINKS: Final = ("af_xdp", "udp")
#: Of the native engine over af_xdp, against itself over udp.
EXPECTED: Final = Expected("<", 1)
_PERCENTILES: Final = {"p50_us": "p50", "p99_us": "p99"}
_UNIT: Final = "us"
SPIN_US: Final = 50


def measure(rounds: int, seconds: float) -> Found:
    """Both percentiles of each engine that is there, in microseconds, and af_xdp's to udp's."""
    names = {(e, link): f"{e}, {link}" for e in available_engines() for link in LINKS}
    with netns.veth_pair() as pair:
        runs = {
            name: partial(ends.measure, pair, "ping_pong", link, engine, seconds)
            for (engine, link), name in names.items()
        }
        runs |= {
            f"{name}, spinning": partial(
                ends.measure, pair, "ping_pong", link, engine, seconds, busy_poll_us=SPIN_US
            )
            for (engine, link), name in names.items()
            if engine == "native"
        }
        found = interleave(runs, rounds)
    rows: list[dict[str, Any]] = []
    lines: dict[str, list[Line]] = {"native": [], "aioquic": []}
    for key, percentile in _PERCENTILES.items():
        figures = {name: [one[key] for one in all_] for name, all_ in found.items()}
        rows += [
            {"what": name, "figure": percentile, **spread(figures[name], 1)} for name in figures
        ]
        for engine, of_engine in lines.items():
            of_engine.append(
                compared(
                    figures,
                    *(f"{engine}, {link}" for link in LINKS),
                    what=f"ping-pong of {ends.PING_BYTES} bytes, {engine}, af_xdp",
                    case=percentile,
                    unit=_UNIT,
                    expected=EXPECTED if engine == "native" else None,
                )
            )
        lines["native"] += [
            compared(
                figures,
                f"native, {link}, spinning",
                to,
                what=f"ping-pong of {ends.PING_BYTES} bytes, native, {link}, spinning",
                case=percentile,
                unit=_UNIT,
                expected=EXPECTED if to.startswith("native, udp, ") else None,
            )
            for link, to in (
                ("af_xdp", "native, udp, spinning"),
                ("af_xdp", "native, af_xdp"),
                ("udp", "native, udp"),
            )
        ]
    told = {"ping_bytes": ends.PING_BYTES}
    return Found("microseconds", rows, lines["native"], lines["aioquic"], told)


BENCHMARK: Final = Benchmark("ping_pong", __doc__, measure)

if __name__ == "__main__":
    BENCHMARK.main()

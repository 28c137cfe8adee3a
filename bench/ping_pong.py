"""Round trips of 64 bytes on one stream, there and back, over af_xdp and over udp.

One at a time between two programs on the trio API, so a round trip has both programs' loops in it.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, Final

from bench import ends
from bench.lines import Expected, Line, compared
from bench.report import Benchmark, Found
from bench.rounds import interleave, spread
from hoststack.engine.engines import available_engines
from tests.support import netns

LINKS: Final = ("af_xdp", "udp")
#: Of the native engine over af_xdp, against itself over udp.
EXPECTED: Final = Expected("<", 1)
_PERCENTILES: Final = {"p50_us": "p50", "p99_us": "p99"}
_UNIT: Final = "us"


def measure(rounds: int, seconds: float) -> Found:
    """Both percentiles of each engine that is there, in microseconds, and af_xdp's to udp's."""
    names = {(e, link): f"{e}, {link}" for e in available_engines() for link in LINKS}
    with netns.veth_pair() as pair:
        runs = {
            name: partial(ends.measure, pair, "ping_pong", link, engine, seconds)
            for (engine, link), name in names.items()
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
    spinning = replace(
        lines["native"][0],
        case="short spin",
        ratio=None,
        ours=None,
        theirs=None,
        why_not="the stack has no busy-poll mode",
    )
    told = {"ping_bytes": ends.PING_BYTES}
    return Found("microseconds", rows, [*lines["native"], spinning], lines["aioquic"], told)


BENCHMARK: Final = Benchmark("ping_pong", __doc__, measure)

if __name__ == "__main__":
    BENCHMARK.main()

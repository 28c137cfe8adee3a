"""CPU seconds per GB (10^9 bytes) of one stream, of both ends, over af_xdp and over udp.

User and system time are the two processes' during the transfer. Softirq time is the machine's, for
the kernel receives in it on nobody's account: other programs' is in it too. Where the kernel keeps
no account of interrupts by themselves it is in the processes' system time already, or nowhere.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

from bench import ends
from bench.lines import Expected, Line, compared
from bench.report import Benchmark, Found
from bench.rounds import interleave, progress, spread
from hoststack.worker.engines import available_engines
from tests.support import netns

#: The link, and how it is called here.
LINKS: Final = {
    "af_xdp": "af_xdp",
    "udp": "udp, GSO and GRO",
    "udp_single": "udp, one datagram a message",
}
#: Of af_xdp, against each link.
EXPECTED: Final = {"udp_single": Expected("<", 1)}
_FIGURES: Final[dict[str, Callable[[ends.Found], float]]] = {
    "client user": lambda run: run["user_s"]["client"],
    "client system": lambda run: run["system_s"]["client"],
    "server user": lambda run: run["user_s"]["server"],
    "server system": lambda run: run["system_s"]["server"],
    "user and system": lambda run: sum(run["user_s"].values()) + sum(run["system_s"].values()),
    "softirq": lambda run: run["softirq_s"],
}
#: Of a first run, in which every byte is looked at.
_CHECKED_S: Final = 0.1
_TOTAL: Final = "user and system"
_UNIT: Final = "CPU seconds per GB"


def measure(rounds: int, seconds: float) -> Found:
    """Each figure of each link with the best engine, and the ratios between the totals."""
    engine = available_engines()[0]
    with netns.veth_pair() as pair:
        progress("first runs, checked")
        for link in LINKS:
            ends.measure(pair, "upload", link, engine, _CHECKED_S, is_checked=True)
        runs = {
            name: partial(ends.measure, pair, "upload", link, engine, seconds)
            for link, name in LINKS.items()
        }
        found = interleave(runs, rounds)
    rows: list[dict[str, Any]] = []
    lines: dict[str, Line] = {}
    for what, figure in _FIGURES.items():
        per_gb = {
            name: [figure(run) / (run["bytes"] / 1e9) for run in all_]
            for name, all_ in found.items()
        }
        rows += [{"what": name, "figure": what, **spread(per_gb[name])} for name in per_gb]
        if what == _TOTAL:
            lines = {
                link: compared(
                    per_gb,
                    LINKS["af_xdp"],
                    name,
                    what=f"CPU time, {engine}, af_xdp",
                    case=what,
                    unit=_UNIT,
                    expected=EXPECTED.get(link),
                )
                for link, name in LINKS.items()
                if link != "af_xdp"
            }
    return Found(
        f"{_UNIT}, one stream up",
        rows,
        [line for link, line in lines.items() if link in EXPECTED],
        [line for link, line in lines.items() if link not in EXPECTED],
        {"engine": engine},
    )


BENCHMARK: Final = Benchmark("cpu", __doc__, measure)

if __name__ == "__main__":
    BENCHMARK.main()

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
from bench.rounds import interleave, parser, print_table, ratio, report, spread
from hoststack.engine.engines import available_engines
from tests.support import netns

#: The link, and how it is called here.
LINKS: Final = {
    "af_xdp": "af_xdp",
    "udp": "udp, GSO and GRO",
    "udp_single": "udp, one datagram a message",
}
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


def measure(rounds: int, seconds: float) -> dict[str, Any]:
    """Each figure of each link with the best engine, and the ratios between the totals."""
    engine = available_engines()[0]
    with netns.veth_pair() as pair:
        for link in LINKS:
            ends.measure(pair, "upload", link, engine, _CHECKED_S, is_checked=True)
        runs = {
            name: partial(ends.measure, pair, "upload", link, engine, seconds)
            for link, name in LINKS.items()
        }
        found = interleave(runs, rounds)
    rows: list[dict[str, Any]] = []
    ratios: list[dict[str, Any]] = []
    for what, figure in _FIGURES.items():
        per_gb = {
            name: [figure(run) / (run["bytes"] / 1e9) for run in all_]
            for name, all_ in found.items()
        }
        rows += [{"what": name, "figure": what, **spread(per_gb[name])} for name in per_gb]
        if what == _TOTAL:
            ours = LINKS["af_xdp"]
            ratios = [
                {"what": ours, "against": name, "ratio": ratio(per_gb, ours, name)}
                for name in per_gb
                if name != ours
            ]
    return {"unit": "CPU seconds per GB", "engine": engine, "rows": rows, "ratios": ratios}


def main() -> None:
    options = parser(__doc__, rounds=3, seconds=1.0).parse_args()
    found = report(options, "cpu", partial(measure, options.rounds, options.seconds))
    print(f"{found['unit']}, one stream up, engine {found['engine']}")
    keys = ("what", "figure", "median", "lowest", "highest")
    print_table(["", *keys[1:]], [[str(row[key]) for key in keys] for row in found["rows"]])
    for row in found["ratios"]:
        expected = ", expected: less than 1" if row["against"] == LINKS["udp_single"] else ""
        print(f"{row['what']} takes {row['ratio']:.2f} times {row['against']}{expected}")


if __name__ == "__main__":
    main()

"""Round trips of 64 bytes on one stream, there and back, over af_xdp and over udp.

One at a time between two programs on the trio API, so a round trip has both programs' loops in it.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final

from bench import ends
from bench.rounds import interleave, parser, print_table, ratio, report, spread
from hoststack.engine.engines import available_engines
from tests.support import netns

LINKS: Final = ("af_xdp", "udp")
_PERCENTILES: Final = ("p50_us", "p99_us")


def measure(rounds: int, seconds: float) -> dict[str, Any]:
    """Both percentiles of each engine that is there, in microseconds, and af_xdp's to udp's."""
    engines = available_engines()
    names = {(engine, link): f"{engine}, {link}" for engine in engines for link in LINKS}
    with netns.veth_pair() as pair:
        runs = {
            name: partial(ends.measure, pair, "ping_pong", link, engine, seconds)
            for (engine, link), name in names.items()
        }
        found = interleave(runs, rounds)
    rows, ratios = [], []
    for what in _PERCENTILES:
        figures = {name: [one[what] for one in all_] for name, all_ in found.items()}
        rows += [{"what": name, "figure": what, **spread(figures[name], 1)} for name in figures]
        ratios += [
            {
                "engine": engine,
                "figure": what,
                "af_xdp_to_udp": ratio(figures, names[engine, "af_xdp"], names[engine, "udp"]),
            }
            for engine in engines
        ]
    return {"unit": "microseconds", "ping_bytes": ends.PING_BYTES, "rows": rows, "ratios": ratios}


def main() -> None:
    options = parser(__doc__, rounds=3, seconds=1.0).parse_args()
    found = report(options, "ping_pong", partial(measure, options.rounds, options.seconds))
    keys = ("what", "figure", "median", "lowest", "highest")
    print_table(["", *keys[1:]], [[str(row[key]) for key in keys] for row in found["rows"]])
    for row in found["ratios"]:
        print(
            f"{row['engine']}, {row['figure']}: af_xdp takes {row['af_xdp_to_udp']:.2f} times as "
            "long as udp" + (", expected: less than 1" if row["engine"] == "native" else "")
        )


if __name__ == "__main__":
    main()

"""Total goodput of 1, 10, 100 and 1,000 connections, one stream each, down over af_xdp.

One worker, so one process, at each end. All connections are open before the first stream is; the
time goes from there to the last byte of the last stream. However many they are, they move as many
bytes in all.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final

from bench.bulk import sized
from bench.contenders import Contender, Setting, quic_echo
from bench.rounds import interleave, parser, print_table, ratio, report, spread
from hoststack.engine.engines import available_engines
from tests.support import netns

COUNTS: Final = (1, 10, 100, 1000)
#: What is expected of that many connections, against one.
EXPECTED: Final = {100: 0.8, 1000: 0.6}
#: For each connection: less would be slow starts alone.
_LEAST_BYTES: Final = 256 << 10


def _speed(contender: Contender, setting: Setting, count: int) -> float:
    return contender.transfer(setting, count, False).gbit_per_second


def measure(rounds: int, seconds: float) -> dict[str, Any]:
    """Goodput in Gbit/s of each number of connections, and its ratio to one's."""
    engine = available_engines()[0]
    with netns.veth_pair() as pair:
        setting = Setting(pair=pair)
        contenders = {count: quic_echo(engine, "af_xdp", count) for count in COUNTS}
        total = max(sized(contenders[1], setting, seconds), _LEAST_BYTES * COUNTS[-1])
        for count in COUNTS[1:]:
            contenders[count].transfer(setting, _LEAST_BYTES * count, True)
        runs = {
            str(count): partial(_speed, contender, setting, total)
            for count, contender in contenders.items()
        }
        figures = interleave(runs, rounds)
    rows = [
        {
            "connections": count,
            **spread(figures[str(count)]),
            "ratio_to_one": ratio(figures, str(count), "1"),
            "expected": EXPECTED.get(count),
        }
        for count in COUNTS
    ]
    return {"unit": "Gbit/s of payload", "engine": engine, "rows": rows}


def main() -> None:
    options = parser(__doc__, rounds=3, seconds=0.5).parse_args()
    found = report(options, "connections", partial(measure, options.rounds, options.seconds))
    keys = ("connections", "median", "lowest", "highest", "ratio_to_one")
    print(f"{found['unit']}, engine {found['engine']}")
    print_table(
        [*keys, "expected"],
        [
            [*(str(row[key]) for key in keys), f">= {row['expected']}" if row["expected"] else ""]
            for row in found["rows"]
        ],
    )


if __name__ == "__main__":
    main()

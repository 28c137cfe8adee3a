"""One stream over one veth pair, download and upload, against all that it is to be measured by.

Every program is run by itself first, with its bytes checked where it can; that also tells how many
bytes make a run of the wanted length. Then the contenders take turns (bench/rounds.py).
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any, Final

from bench.contenders import (
    AIOQUIC_ASYNCIO,
    BLAST,
    Contender,
    Direction,
    Setting,
    gtls,
    quic_echo,
    those_here,
)
from bench.picture import draw_ratios
from bench.rounds import interleave, parser, print_table, ratio, report, spread
from tests.support import netns

MTUS_BYTES: Final = (1500, 3490)
DIRECTIONS: Final[tuple[Direction, ...]] = ("download", "upload")
AF_XDP: Final = quic_echo("native", "af_xdp")
UDP: Final = quic_echo("native", "udp")
AIOQUIC_ENGINE: Final = quic_echo("aioquic", "af_xdp")
NO_GSO: Final = gtls(has_gso=False)
GSO: Final = gtls(has_gso=True)
CONTENDERS: Final = (AF_XDP, UDP, AIOQUIC_ENGINE, BLAST, NO_GSO, GSO, AIOQUIC_ASYNCIO)
#: (which, against which, MTU): how many times as fast it is expected to be.
EXPECTED: Final[dict[tuple[str, str, int], float]] = {
    (AF_XDP.name, BLAST.name, 1500): 0.8,
    (AF_XDP.name, BLAST.name, 3490): 0.7,
    (AF_XDP.name, NO_GSO.name, 1500): 3,
    (AF_XDP.name, AIOQUIC_ASYNCIO.name, 1500): 25,
    (UDP.name, GSO.name, 1500): 2,
}
#: Like with like: over AF_XDP with all that sends each datagram by itself, and GSO with GSO.
_COMPARED: Final = (
    *((AF_XDP.name, each.name) for each in CONTENDERS if each not in (AF_XDP, GSO)),
    (UDP.name, NO_GSO.name),
    (UDP.name, GSO.name),
)
#: A transfer is no shorter than this, and no longer than what a noisy minute should cost.
_SIZES_BYTES: Final = (1 << 20, 8 << 30)


def sized(contender: Contender, setting: Setting, seconds: float) -> int:
    """Run it once, checked; how many bytes it moves in about so many seconds."""
    first = contender.transfer(setting, contender.first_bytes, True)
    count = int(first.bytes / first.seconds * seconds)
    return min(max(count, _SIZES_BYTES[0]), _SIZES_BYTES[1])


def _speed(contender: Contender, setting: Setting, count: int) -> float:
    return contender.transfer(setting, count, False).gbit_per_second


def measure(rounds: int, seconds: float) -> dict[str, Any]:
    """All contenders at both MTUs, in both directions: goodput in Gbit/s, and ratios."""
    contenders = those_here(list(CONTENDERS))
    rows: list[dict[str, Any]] = []
    ratios: list[dict[str, Any]] = []
    for mtu_bytes in MTUS_BYTES:
        for direction in DIRECTIONS:
            with netns.veth_pair(mtu_bytes=mtu_bytes) as pair:
                setting = Setting(pair=pair, mtu_bytes=mtu_bytes, direction=direction)
                runs = {
                    each.name: partial(_speed, each, setting, sized(each, setting, seconds))
                    for each in contenders
                }
                figures = interleave(runs, rounds)
            where = {"mtu_bytes": mtu_bytes, "direction": direction}
            rows += [{"what": name, **where, **spread(figures[name])} for name in figures]
            ratios += [
                {
                    "what": of,
                    "against": to,
                    **where,
                    "ratio": ratio(figures, of, to),
                    "expected": EXPECTED.get((of, to, mtu_bytes)),
                }
                for of, to in _COMPARED
                if of in figures and to in figures
            ]
    return {"unit": "Gbit/s of payload", "rows": rows, "ratios": ratios}


def show(found: dict[str, Any]) -> None:
    """The tables."""
    head = ["Gbit/s", "MTU", "", "median", "lowest", "highest"]
    print_table(
        head,
        [
            [row["what"], str(row["mtu_bytes"]), row["direction"]]
            + [f"{row[key]:.3f}" for key in head[3:]]
            for row in found["rows"]
        ],
    )
    print()
    print_table(
        ["ratio", "MTU", "", "against", "median", "expected"],
        [
            [
                row["what"],
                str(row["mtu_bytes"]),
                row["direction"],
                row["against"],
                f"{row['ratio']:.2f}",
                f">= {row['expected']}" if row["expected"] else "",
            ]
            for row in found["ratios"]
        ],
    )


def main() -> None:
    options: argparse.Namespace = parser(__doc__, rounds=3, seconds=0.5).parse_args()
    found = report(options, "bulk", partial(measure, options.rounds, options.seconds))
    show(found)
    if options.json:
        print(draw_ratios(found, Path(options.json).with_suffix(".png")))


if __name__ == "__main__":
    main()

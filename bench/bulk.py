"""One stream over one veth pair, download and upload, against all that it is to be measured by.

Every program is run by itself first, with its bytes checked where it can; that also tells how many
bytes make a run of the wanted length. Then the contenders take turns (bench/rounds.py).
"""

from __future__ import annotations

from typing import Any, Final

from bench.contenders import (
    AIOQUIC_ASYNCIO,
    BLAST,
    DIRECTIONS,
    Direction,
    Setting,
    gtls,
    in_turns,
    quic_echo,
    those_here,
)
from bench.lines import Expected, Line, compared
from bench.report import Benchmark, Found
from bench.rounds import Figures, spread
from tests.support import netns

MTUS_BYTES: Final = (1500, 3490)
UNIT: Final = "Gbit/s"
AF_XDP: Final = quic_echo("native", "af_xdp")
UDP: Final = quic_echo("native", "udp")
AIOQUIC_ENGINE: Final = quic_echo("aioquic", "af_xdp")
NO_GSO: Final = gtls(has_gso=False)
GSO: Final = gtls(has_gso=True)
CONTENDERS: Final = (AF_XDP, UDP, AIOQUIC_ENGINE, BLAST, NO_GSO, GSO, AIOQUIC_ASYNCIO)
#: (which, against which, MTU): how many times as fast it is expected to be.
EXPECTED: Final[dict[tuple[str, str, int], float]] = {
    (AF_XDP.name, BLAST.name, 1500): 0.8,
    (AF_XDP.name, NO_GSO.name, 1500): 3,
    (AF_XDP.name, AIOQUIC_ASYNCIO.name, 1500): 25,
    (AF_XDP.name, BLAST.name, 3490): 0.7,
    (UDP.name, GSO.name, 1500): 2,
}
#: Like with like: over AF_XDP with all that sends each datagram by itself, and GSO with GSO.
_COMPARED: Final = (
    *((AF_XDP.name, each.name) for each in CONTENDERS if each not in (AF_XDP, GSO)),
    (UDP.name, NO_GSO.name),
    (UDP.name, GSO.name),
)


def measure(rounds: int, seconds: float) -> Found:
    """All contenders at both MTUs, in both directions: goodput, and ratios."""
    contenders, absent = those_here(CONTENDERS)
    figures: dict[tuple[int, Direction], Figures] = {}
    rows: list[dict[str, Any]] = []
    for mtu_bytes in MTUS_BYTES:
        for direction in DIRECTIONS:
            with netns.veth_pair(mtu_bytes=mtu_bytes) as pair:
                setting = Setting(pair=pair, mtu_bytes=mtu_bytes, direction=direction)
                found = in_turns(contenders, setting, rounds, seconds)
            where = {"mtu_bytes": mtu_bytes, "direction": direction}
            rows += [{"what": name, **where, **spread(found[name])} for name in found]
            figures[mtu_bytes, direction] = found

    def lines_of(of: str, to: str, mtu_bytes: int) -> list[Line]:
        least = EXPECTED.get((of, to, mtu_bytes))
        return [
            compared(
                figures[mtu_bytes, direction],
                of,
                to,
                what=f"{of}, MTU {mtu_bytes}",
                case=direction,
                unit=UNIT,
                expected=Expected(">=", least) if least else None,
                absent=absent,
            )
            for direction in DIRECTIONS
        ]

    others = [(*pair, mtu_bytes) for mtu_bytes in MTUS_BYTES for pair in _COMPARED]
    return Found(
        f"{UNIT} of payload",
        rows,
        [line for key in EXPECTED for line in lines_of(*key)],
        [line for key in others if key not in EXPECTED for line in lines_of(*key)],
    )


BENCHMARK: Final = Benchmark("bulk", __doc__, measure, seconds=0.5)

if __name__ == "__main__":
    BENCHMARK.main()

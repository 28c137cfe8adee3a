"""The aioquic engine in quic_echo against aioquic's own asyncio, over one veth pair in one run.

One stream, one direction at a time, MTU 1500. `bulk` has the native engine.
"""

from __future__ import annotations

from typing import Any, Final

from bench.contenders import (
    AIOQUIC_ASYNCIO,
    DIRECTIONS,
    Setting,
    aioquic_asyncio,
    in_turns,
    quic_echo,
)
from bench.lines import Expected, Line, compared
from bench.report import Benchmark, Found
from bench.rounds import spread
from tests.support import netns

AF_XDP: Final = quic_echo("aioquic", "af_xdp")
FULL_DATAGRAMS: Final = aioquic_asyncio(
    "aioquic asyncio, full datagrams", "--datagram-bytes", "1472"
)
CONTENDERS: Final = (AF_XDP, quic_echo("aioquic", "udp"), AIOQUIC_ASYNCIO, FULL_DATAGRAMS)
#: The engine is aioquic, so it is to be as fast as aioquic's asyncio, as shipped.
EXPECTED: Final = Expected(">=", 1)


def measure(rounds: int, seconds: float) -> Found:
    """All contenders in both directions, and their ratios to aioquic's asyncio, as shipped."""
    rows: list[dict[str, Any]] = []
    lines: list[Line] = []
    for direction in DIRECTIONS:
        with netns.veth_pair() as pair:
            setting = Setting(pair=pair, direction=direction)
            figures = in_turns(CONTENDERS, setting, rounds, seconds)
        rows += [
            {"what": name, "direction": direction, **spread(figures[name])} for name in figures
        ]
        lines += [
            compared(
                figures,
                each.name,
                AIOQUIC_ASYNCIO.name,
                what=each.name,
                case=direction,
                unit="Gbit/s",
                expected=EXPECTED if each is AF_XDP else None,
            )
            for each in CONTENDERS
            if each is not AIOQUIC_ASYNCIO
        ]
    return Found(
        "Gbit/s of payload",
        rows,
        [line for line in lines if line.expected],
        [line for line in lines if not line.expected],
    )


BENCHMARK: Final = Benchmark("quic_echo", __doc__, measure, seconds=0.5)

if __name__ == "__main__":
    BENCHMARK.main()

"""Total goodput of 1, 10, 100 and 1,000 connections, one stream each, down over af_xdp.

One worker, so one process, at each end. All connections are open before the first stream is; the
time goes from there to the last byte of the last stream. However many they are, they move as many
bytes in all.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from bench.contenders import Setting, quic_echo
from bench.lines import Expected, compared
from bench.report import Benchmark, Found
from bench.rounds import interleave, progress, spread
from hoststack.worker.engines import available_engines
from tests.support import netns

COUNTS: Final = (1, 10, 100, 1000)
#: What is expected of that many connections, against one.
EXPECTED: Final = {100: Expected(">=", 0.8), 1000: Expected(">=", 0.7)}
#: For each connection: less would be slow starts alone.
_LEAST_BYTES: Final = 256 << 10


def _name(count: int) -> str:
    return f"{count:,} connection{'s' if count > 1 else ''}"


def measure(rounds: int, seconds: float) -> Found:
    """Goodput of each number of connections, and its ratio to one's."""
    engine = available_engines()[0]
    with netns.veth_pair() as pair:
        setting = Setting(pair=pair)
        contenders = {count: quic_echo(engine, "af_xdp", count) for count in COUNTS}
        progress("first runs, checked")
        total = max(contenders[1].sized(setting, seconds), _LEAST_BYTES * COUNTS[-1])
        for count in COUNTS[1:]:
            contenders[count].transfer(setting, _LEAST_BYTES * count, True)
        runs = {
            _name(count): partial(contender.speed, setting, total)
            for count, contender in contenders.items()
        }
        figures = interleave(runs, rounds)
    return Found(
        "Gbit/s of payload",
        [{"connections": count, **spread(figures[_name(count)])} for count in COUNTS],
        [
            compared(
                figures,
                _name(count),
                _name(1),
                what=f"goodput in all, {engine}, af_xdp",
                case=_name(count),
                unit="Gbit/s",
                expected=EXPECTED.get(count),
            )
            for count in COUNTS[1:]
        ],
        told={"engine": engine},
    )


BENCHMARK: Final = Benchmark("connections", __doc__, measure, seconds=0.5)

if __name__ == "__main__":
    BENCHMARK.main()

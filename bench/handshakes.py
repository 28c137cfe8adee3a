"""Full handshakes per second: a client that opens and closes connections, many at once.

One worker, so one process, at each end, over af_xdp. No session is resumed; certificates are
ECDSA's and are not checked by the client, as quic_echo does not.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Final

from bench import ends
from bench.lines import Expected, compared
from bench.report import Benchmark, Found
from bench.rounds import interleave, spread
from hoststack.worker.engines import available_engines
from tests.support import netns

#: Of the native engine: how many times as many as of the aioquic engine, and how many a second.
EXPECTED_RATIO: Final = Expected(">=", 6)
EXPECTED_PER_SECOND: Final = Expected(">=", 1000)
_WHAT: Final = "full handshakes, native"
_UNIT: Final = "per second"


def _per_second(pair: netns.VethPair, engine: str, seconds: float) -> float:
    found = ends.measure(pair, "handshakes", "af_xdp", engine, seconds)
    return float(found["count"] / found["seconds"])


def measure(rounds: int, seconds: float) -> Found:
    """Each engine's figure, and the ratio of the native one's to aioquic's if it is there."""
    engines = available_engines()
    with netns.veth_pair() as pair:
        runs = {str(engine): partial(_per_second, pair, engine, seconds) for engine in engines}
        figures = interleave(runs, rounds)
    ratio = compared(
        figures,
        "native",
        "aioquic",
        what=_WHAT,
        case=_UNIT,
        unit=_UNIT,
        expected=EXPECTED_RATIO,
    )
    absolute = replace(ratio, against="", expected=EXPECTED_PER_SECOND, theirs=None)
    return Found(
        f"handshakes {_UNIT}",
        [{"what": engine, **spread(figures[engine], 0)} for engine in figures],
        [ratio, absolute],
        told={"at_once": ends.AT_ONCE},
    )


BENCHMARK: Final = Benchmark("handshakes", __doc__, measure)

if __name__ == "__main__":
    BENCHMARK.main()

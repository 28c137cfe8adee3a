"""What idle connections cost: memory for each, and the goodput of one busy stream beside them.

Few of them and many, each with a new server; what a connection takes is what the resident memory
of each process differs by, divided by how many more they are. Over af_xdp, the best engine.
"""

from __future__ import annotations

import statistics
from functools import partial
from typing import Final

from bench import ends
from bench.lines import Expected, Line, compared
from bench.report import Benchmark, Found
from bench.rounds import interleave, progress, spread
from hoststack.worker.engines import available_engines
from tests.support import netns

FEW: Final = 10
MANY: Final = 1000
EXPECTED_BYTES: Final = Expected("<=", 20 << 10)
#: A turn's cost is not to grow with the idle ones; less than this is no noise any more.
EXPECTED_GOODPUT: Final = Expected(">=", 0.9)
#: Of a first run, in which every byte is looked at.
_CHECKED_S: Final = 0.1
_SIDES: Final = ("client", "server")


def _name(count: int) -> str:
    return f"beside {count:,} idle ones"


def measure(rounds: int, seconds: float) -> Found:
    """Bytes per connection at both ends, and goodput beside both numbers of them."""
    engine = available_engines()[0]
    with netns.veth_pair() as pair:
        upload = partial(ends.measure, pair, "upload", "af_xdp", engine)
        progress("a first run, checked")
        upload(_CHECKED_S, idle=FEW, is_checked=True)
        runs = {_name(count): partial(upload, seconds, idle=count) for count in (FEW, MANY)}
        found = interleave(runs, rounds)
    few, many = found[_name(FEW)], found[_name(MANY)]
    more_bytes = {
        side: [
            (b["memory_bytes"][side] - a["memory_bytes"][side]) / (MANY - FEW)
            for a, b in zip(few, many, strict=True)
        ]
        for side in _SIDES
    }
    goodput = {
        name: [one["bytes"] * 8 / one["seconds"] / 1e9 for one in found[name]] for name in found
    }
    memory = [
        Line(
            what=f"memory per idle connection, {engine}",
            case=side,
            unit="bytes",
            expected=EXPECTED_BYTES,
            ours=statistics.median(more_bytes[side]),
        )
        for side in _SIDES
    ]
    beside = compared(
        goodput,
        _name(MANY),
        _name(FEW),
        what=f"goodput, {engine}, af_xdp",
        case=_name(MANY),
        unit="Gbit/s",
        expected=EXPECTED_GOODPUT,
    )
    return Found(
        "bytes per idle connection, and Gbit/s beside them",
        [
            *({"what": f"bytes, {side}", **spread(more_bytes[side], 0)} for side in _SIDES),
            *({"what": f"Gbit/s {name}", **spread(goodput[name])} for name in goodput),
        ],
        [*memory, beside],
        told={"engine": engine},
    )


BENCHMARK: Final = Benchmark("idle", __doc__, measure)

if __name__ == "__main__":
    BENCHMARK.main()

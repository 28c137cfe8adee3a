"""What idle connections cost: memory for each, and the goodput of one busy stream beside them.

Few of them and many, each with a new server; what a connection takes is what the resident memory
of each process differs by, divided by how many more they are. Over af_xdp, the best engine.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final

from bench import ends
from bench.rounds import interleave, parser, print_table, ratio, report, spread
from hoststack.engine.engines import available_engines
from tests.support import netns

FEW: Final = 10
MANY: Final = 1000
EXPECTED_BYTES: Final = 20 << 10
#: Of a first run, in which every byte is looked at.
_CHECKED_S: Final = 0.1


def measure(rounds: int, seconds: float) -> dict[str, Any]:
    """Bytes per connection at both ends, and goodput in Gbit/s beside both numbers of them."""
    engine = available_engines()[0]
    with netns.veth_pair() as pair:
        upload = partial(ends.measure, pair, "upload", "af_xdp", engine)
        upload(_CHECKED_S, idle=FEW, is_checked=True)
        runs = {str(count): partial(upload, seconds, idle=count) for count in (FEW, MANY)}
        found = interleave(runs, rounds)
    few, many = found[str(FEW)], found[str(MANY)]
    rows = []
    for end in ("client", "server"):
        more_bytes = [
            (b["memory_bytes"][end] - a["memory_bytes"][end]) / (MANY - FEW)
            for a, b in zip(few, many, strict=True)
        ]
        rows.append({"what": f"bytes per connection, {end}", **spread(more_bytes, 0)})
    goodput = {
        name: [one["bytes"] * 8 / one["seconds"] / 1e9 for one in found[name]] for name in found
    }
    rows += [
        {"what": f"Gbit/s beside {name} idle connections", **spread(goodput[name])}
        for name in goodput
    ]
    return {
        "engine": engine,
        "rows": rows,
        "goodput_many_to_few": ratio(goodput, str(MANY), str(FEW)),
        "expected_bytes": EXPECTED_BYTES,
    }


def main() -> None:
    options = parser(__doc__, rounds=3, seconds=1.0).parse_args()
    found = report(options, "idle", partial(measure, options.rounds, options.seconds))
    keys = ("what", "median", "lowest", "highest")
    print_table(
        [f"engine {found['engine']}", *keys[1:]],
        [[f"{row[key]}" for key in keys] for row in found["rows"]],
    )
    print(f"expected: {EXPECTED_BYTES} bytes or less for each")
    print(
        f"goodput beside {MANY} / beside {FEW}: {found['goodput_many_to_few']:.2f}, "
        "expected: about 1"
    )


if __name__ == "__main__":
    main()

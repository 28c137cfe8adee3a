"""Full handshakes per second: a client that opens and closes connections, many at once.

One worker, so one process, at each end, over af_xdp. No session is resumed; certificates are
ECDSA's and are not checked by the client, as quic_echo does not.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final

from bench import ends
from bench.rounds import interleave, parser, print_table, ratio, report, spread
from hoststack.engine.engines import available_engines
from tests.support import netns

#: Of the native engine: how many times as many as of the aioquic engine, and how many a second.
EXPECTED_RATIO: Final = 6.0
EXPECTED_PER_SECOND: Final = 1000


def _per_second(pair: netns.VethPair, engine: str, seconds: float) -> float:
    found = ends.measure(pair, "handshakes", "af_xdp", engine, seconds)
    return float(found["count"] / found["seconds"])


def measure(rounds: int, seconds: float) -> dict[str, Any]:
    """Each engine's figure, and the ratio of the native one's to aioquic's if it is there."""
    engines = available_engines()
    with netns.veth_pair() as pair:
        runs = {engine: partial(_per_second, pair, engine, seconds) for engine in engines}
        figures = interleave({str(engine): run for engine, run in runs.items()}, rounds)
    return {
        "unit": "handshakes per second",
        "at_once": ends.AT_ONCE,
        "rows": [{"what": engine, **spread(figures[engine], 0)} for engine in figures],
        "native_to_aioquic": ratio(figures, "native", "aioquic") if "native" in figures else None,
        "expected_ratio": EXPECTED_RATIO,
        "expected_per_second": EXPECTED_PER_SECOND,
    }


def main() -> None:
    options = parser(__doc__, rounds=3, seconds=1.0).parse_args()
    found = report(options, "handshakes", partial(measure, options.rounds, options.seconds))
    keys = ("what", "median", "lowest", "highest")
    print_table(
        [f"{found['unit']}, {found['at_once']} at once", *keys[1:]],
        [[row["what"], *(f"{row[key]:.0f}" for key in keys[1:])] for row in found["rows"]],
    )
    if found["native_to_aioquic"] is None:
        print("not measured: native: the native engine was not built")
    else:
        print(
            f"native / aioquic: {found['native_to_aioquic']:.2f}, expected: {EXPECTED_RATIO} or "
            f"more, and {EXPECTED_PER_SECOND} per second"
        )


if __name__ == "__main__":
    main()

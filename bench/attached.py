"""What it costs that the engine is in another process: applications attached to a daemon.

One stream's goodput and round trips of 64 bytes, over af_xdp: between two programs that each have
a stack of their own, and the same with the client, or both ends, attached to a daemon of one
worker each.
"""

from __future__ import annotations

import statistics
from contextlib import ExitStack
from functools import partial
from typing import Any, Final

from bench import ends
from bench.daemons import daemon
from bench.lines import Expected, Line, compared
from bench.report import Benchmark, Found
from bench.rounds import interleave, progress, spread
from hoststack.engine.engines import available_engines
from tests.support import netns

EMBEDDED: Final = "embedded"
#: Which ends are attached, by how it is called here.
ATTACHED: Final = {"client attached": ("client",), "both attached": ("client", "server")}
#: An application is one end; what the other one is, is not its doing.
JUDGED: Final = "client attached"
EXPECTED_GOODPUT: Final = Expected(">=", 0.85)
EXPECTED_MORE_US: Final = Expected("<", 30)
_CHECKED_S: Final = 0.1


def _measure(role: str, engine: str, attached: tuple[str, ...], seconds: float) -> ends.Found:
    """Between new interfaces, as one has one owner: a daemon, or an end with its own stack."""
    with ExitStack() as stack:
        pair = stack.enter_context(netns.veth_pair())
        sides = {"client": pair.a, "server": pair.b}
        sockets = {end: stack.enter_context(daemon(sides[end], engine)).api for end in attached}
        return ends.measure(
            pair,
            role,
            "af_xdp",
            engine,
            seconds,
            is_checked=seconds == _CHECKED_S,
            attached=sockets,
        )


def measure(rounds: int, seconds: float) -> Found:
    """Goodput and round trips of each, and what being attached makes of them."""
    engine = available_engines()[0]
    cases: dict[str, tuple[str, ...]] = {EMBEDDED: (), **ATTACHED}
    progress("first runs, checked")
    for attached in cases.values():
        _measure("upload", engine, attached, _CHECKED_S)
    uploads, pings = (
        interleave(
            {
                name: partial(_measure, role, engine, ends_, seconds)
                for name, ends_ in cases.items()
            },
            rounds,
            role,
        )
        for role in ("upload", "ping_pong")
    )
    goodput = {
        name: [one["bytes"] * 8 / one["seconds"] / 1e9 for one in all_]
        for name, all_ in uploads.items()
    }
    medians = {name: [one["p50_us"] for one in all_] for name, all_ in pings.items()}
    rows: list[dict[str, Any]] = [
        *({"what": name, "figure": "Gbit/s", **spread(goodput[name])} for name in cases),
        *({"what": name, "figure": "p50, us", **spread(medians[name], 1)} for name in cases),
    ]
    lines: dict[str, list[Line]] = {}
    for name in ATTACHED:
        is_judged = name == JUDGED
        more_us = statistics.median(
            there - here for there, here in zip(medians[name], medians[EMBEDDED], strict=True)
        )
        lines[name] = [
            compared(
                goodput,
                name,
                EMBEDDED,
                what=f"one stream up, {engine}, af_xdp",
                case=name,
                unit="Gbit/s",
                expected=EXPECTED_GOODPUT if is_judged else None,
            ),
            Line(
                what=f"added to the median ping-pong, {engine}, af_xdp",
                case=name,
                unit="us",
                expected=EXPECTED_MORE_US if is_judged else None,
                ours=more_us,
            ),
        ]
    others = [line for name in ATTACHED if name != JUDGED for line in lines[name]]
    return Found("goodput and round trips", rows, lines[JUDGED], others, {"engine": engine})


BENCHMARK: Final = Benchmark("attached", __doc__, measure, rounds=5)

if __name__ == "__main__":
    BENCHMARK.main()

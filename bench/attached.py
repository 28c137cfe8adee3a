"""What it costs that the engine is in another process: applications attached to a daemon.

One stream's goodput and round trips of 64 bytes, over af_xdp: between two programs that each have
a stack of their own, and the same with the client, or both ends, attached to a daemon of one
worker each. A round trip's time depends on the second and on which core the kernel happens to wake
whom, more than on what is compared: so in each round all are there at once, anew, and have slices
of some 0.1 s in turns.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Final

from bench import ends
from bench.daemons import daemon
from bench.lines import Expected, Line, compared
from bench.processes import asking, running
from bench.report import Benchmark, Found
from bench.rounds import interleave, progress, spread
from bench.wake_up import waking
from hoststack.worker.engines import available_engines
from tests.support import netns

EMBEDDED: Final = "embedded"
#: Which ends are attached, by how it is called here.
ATTACHED: Final = {"client attached": ("client",), "both attached": ("client", "server")}
#: An application is one end; what the other one is, is not its doing.
JUDGED: Final = "client attached"
#: Of any process by another, one way: an application that is attached is woken once in a round trip
#: where one with a stack of its own is not, and wakes its worker.
WAKE_UP: Final = "a bare wake-up"
EXPECTED_GOODPUT: Final = Expected(">=", 0.85)
EXPECTED_MORE_US: Final = Expected("<", 30)
_CHECKED_S: Final = 0.1
#: About, of ends.SLICE round trips.
_SLICE_S: Final = 0.1


def _measure(engine: str, attached: tuple[str, ...], seconds: float) -> ends.Found:
    """An upload between new interfaces, as one has one owner: a daemon, or an end's own stack."""
    with ExitStack() as stack:
        pair = stack.enter_context(netns.veth_pair())
        sides = {"client": pair.a, "server": pair.b}
        sockets = {end: stack.enter_context(daemon(sides[end], engine)).api for end in attached}
        return ends.measure(
            pair,
            "upload",
            "af_xdp",
            engine,
            seconds,
            is_checked=seconds == _CHECKED_S,
            attached=sockets,
        )


@contextmanager
def _slicer(engine: str, attached: tuple[str, ...]) -> Iterator[Callable[[], float]]:
    """Two ends that wait; each call is a slice of round trips, and its median in us."""
    with ExitStack() as stack:
        pair = stack.enter_context(netns.veth_pair())
        sides = {"client": pair.a, "server": pair.b}
        words = {
            end: [f"--socket={stack.enter_context(daemon(sides[end], engine)).api}"]
            for end in attached
        }
        uri = f"quic://{pair.b.ipv4}:{ends.PORT}"
        of_server, of_client = (
            ends.end_command(side, role, "af_xdp", engine, uri, *words.get(end, []))
            for end, role, side in (
                ("server", "server", pair.b),
                ("client", "ping_slices", pair.a),
            )
        )
        stack.enter_context(running(of_server))
        yield stack.enter_context(asking(of_client))


def _slices(
    engine: str, cases: dict[str, tuple[str, ...]], rounds: int, seconds: float
) -> dict[str, list[float]]:
    """The medians of all slices; those of the same place were measured in the same second."""
    medians: dict[str, list[float]] = {name: [] for name in (*cases, WAKE_UP)}
    for number in range(rounds):
        progress(f"ping-pong: round {number + 1} of {rounds}")
        with ExitStack() as stack:
            slicers = {
                name: stack.enter_context(_slicer(engine, attached))
                for name, attached in cases.items()
            }
            slicers[WAKE_UP] = stack.enter_context(waking())
            found = interleave(slicers, max(1, round(seconds / _SLICE_S)), is_silent=True)
        for name, figures in found.items():
            medians[name] += figures
    return medians


def measure(rounds: int, seconds: float) -> Found:
    """Goodput and round trips of each, and what being attached makes of them."""
    engine = available_engines()[0]
    cases: dict[str, tuple[str, ...]] = {EMBEDDED: (), **ATTACHED}
    progress("first runs, checked")
    for attached in cases.values():
        _measure(engine, attached, _CHECKED_S)
    uploads = interleave(
        {name: partial(_measure, engine, ends_, seconds) for name, ends_ in cases.items()},
        rounds,
        "upload",
    )
    medians = _slices(engine, cases, rounds, seconds)
    goodput = {
        name: [one["bytes"] * 8 / one["seconds"] / 1e9 for one in all_]
        for name, all_ in uploads.items()
    }
    rows: list[dict[str, Any]] = [
        *({"what": name, "figure": "Gbit/s", **spread(goodput[name])} for name in cases),
        *({"what": name, "figure": "p50, us", **spread(medians[name], 1)} for name in medians),
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


BENCHMARK: Final = Benchmark("attached", __doc__, measure, rounds=7)

if __name__ == "__main__":
    BENCHMARK.main()

"""The native engine over af_xdp as it comes, and tuned as docs/howto/tune.md says.

One stream, as in `bulk`. As it comes the sender's core also does the receiving kernel's work, for a
veth pair hands a frame over where it was sent. The tuning takes that to the receiver's core: by RPS
(Receive Packet Steering) in XDP's generic mode, or by a NAPI thread of its own in native mode.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

from bench.bulk import AF_XDP, UNIT
from bench.contenders import DIRECTIONS, Direction, Setting, those_here
from bench.lines import Expected, Line, compared
from bench.report import Benchmark, Found
from bench.rounds import Figures, interleave, progress, spread
from tests.support import netns

Tuning = Literal["none", "bound", "rps", "napi"]
TUNINGS: Final[dict[Tuning, str]] = {
    "none": "as it comes",
    "bound": "processes bound to a core each",
    "rps": "bound, generic mode, RPS",
    "napi": "bound, native mode, NAPI thread",
}
#: How many times as fast as without it the better of the two is to be.
EXPECTED: Final = Expected(">=", 1.4)
MTU_BYTES: Final = 1500
_MODES: Final[dict[Tuning, Literal["auto", "generic", "native"]]] = {
    "none": "auto",
    "bound": "auto",
    "rps": "generic",
    "napi": "native",
}
_SERVER_CPU: Final = 0
_CLIENT_CPU: Final = 1


def _in_namespace(side: netns.Side, *words: str) -> None:
    # `ip netns exec`, for it mounts the namespace's own /sys.
    netns.run("ip", "netns", "exec", side.namespace, *words)


def _steer_to(side: netns.Side, cpu: int) -> None:
    file = f"/sys/class/net/{side.ifname}/queues/rx-0/rps_cpus"
    _in_namespace(side, "sh", "-c", f"echo {1 << cpu:x} >{file}")


def _thread_on(side: netns.Side, cpu: int) -> None:
    before = _napi_threads(side)
    # veth polls only while it has an XDP program or GRO: with GRO the thread is there beforehand.
    _in_namespace(side, "ethtool", "-K", side.ifname, "gro", "on")
    _in_namespace(side, "sh", "-c", f"echo 1 >/sys/class/net/{side.ifname}/threaded")
    for pid in _napi_threads(side) - before:
        os.sched_setaffinity(pid, {cpu})


def _napi_threads(side: netns.Side) -> set[int]:
    """Of all interfaces with that name: the kernel's threads know no namespaces."""
    found = set()
    for comm in Path("/proc").glob("[0-9]*/comm"):
        try:
            if comm.read_text(encoding="utf-8").startswith(f"napi/{side.ifname}-"):
                found.add(int(comm.parent.name))
        except OSError:
            continue  # it has ended
    return found


def tuned(pair: netns.VethPair, tuning: Tuning, direction: Direction) -> Setting:
    """Tune the receiver of a bulk transfer; where to make it."""
    receiver, cpu = (pair.a, _CLIENT_CPU) if direction == "download" else (pair.b, _SERVER_CPU)
    if tuning == "rps":
        _steer_to(receiver, cpu)
    elif tuning == "napi":
        _thread_on(receiver, cpu)
    return Setting(
        pair=pair,
        mtu_bytes=MTU_BYTES,
        direction=direction,
        mode=_MODES[tuning],
        cpus=None if tuning == "none" else (_SERVER_CPU, _CLIENT_CPU),
    )


def _lacking() -> dict[Tuning, str]:
    """What can't be tried here, and why."""
    lacking: dict[Tuning, str] = {}
    if (os.cpu_count() or 1) < 2:
        lacking = dict.fromkeys(("bound", "rps", "napi"), "it takes two cores")
    elif not shutil.which("ethtool"):
        lacking["napi"] = "ethtool is not installed"
    for tuning, reason in lacking.items():
        print(f"!!! NOT MEASURED: {TUNINGS[tuning]}: {reason}", flush=True)
    return lacking


def _in_turns(
    tunings: dict[Tuning, str], direction: Direction, rounds: int, seconds: float
) -> Figures:
    """Goodput in Gbit/s with each tuning, each on a veth pair of its own."""
    runs: dict[str, Callable[[], float]] = {}
    with ExitStack() as pairs:
        progress(f"{direction}: first runs, checked")
        for tuning, name in tunings.items():
            pair = pairs.enter_context(netns.veth_pair(mtu_bytes=MTU_BYTES))
            setting = tuned(pair, tuning, direction)
            runs[name] = partial(AF_XDP.speed, setting, AF_XDP.sized(setting, seconds))
        return interleave(runs, rounds, direction)


def measure(rounds: int, seconds: float) -> Found:
    """Goodput with each tuning, and its ratio to none, in both directions."""
    lacking = _lacking()
    here, absent = those_here([AF_XDP])
    tunings = {tuning: name for tuning, name in TUNINGS.items() if here and tuning not in lacking}
    why_not = {TUNINGS[tuning]: reason for tuning, reason in lacking.items()}
    why_not |= dict.fromkeys(TUNINGS.values() if absent else (), absent.get(AF_XDP.name, ""))
    rows: list[dict[str, Any]] = []
    judged: list[Line] = []
    others: list[Line] = []
    for direction in DIRECTIONS:
        figures = _in_turns(tunings, direction, rounds, seconds)
        rows += [{"what": it, "direction": direction, **spread(figures[it])} for it in figures]
        ratios = {
            tuning: compared(
                figures,
                name,
                TUNINGS["none"],
                what=f"{AF_XDP.name}, tuned",
                case=f"{direction}, {name}",
                unit=UNIT,
                absent=why_not,
            )
            for tuning, name in TUNINGS.items()
            if tuning != "none"
        }
        best = max(ratios["rps"], ratios["napi"], key=lambda line: line.ratio or 0)
        judged.append(replace(best, expected=EXPECTED))
        others += [line for line in ratios.values() if line is not best]
    return Found(f"{UNIT} of payload", rows, judged, others)


BENCHMARK: Final = Benchmark("tuning", __doc__, measure, seconds=0.5)

if __name__ == "__main__":
    BENCHMARK.main()

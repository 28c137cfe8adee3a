"""The native engine over af_xdp as it comes, and with the tuning that docs/performance.md tells of.

One stream, as in `bulk`. As it comes the sender's core also does the receiving kernel's work, for a
veth pair hands a frame over where it was sent. The tuning takes that to the receiver's core: by RPS
(Receive Packet Steering) in XDP's generic mode, or by a NAPI thread of its own in native mode.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

from bench.bulk import AF_XDP, DIRECTIONS, sized
from bench.contenders import Direction, Setting, those_here
from bench.rounds import interleave, parser, print_table, ratio, report, spread
from tests.support import netns

Tuning = Literal["none", "bound", "rps", "napi"]
TUNINGS: Final[dict[Tuning, str]] = {
    "none": "as it comes",
    "bound": "processes bound to a core each",
    "rps": "bound, generic mode, RPS",
    "napi": "bound, native mode, NAPI thread",
}
#: How many times as fast as without it the better of the two is to be.
EXPECTED_RATIO: Final = 1.4
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


def _tunings_here() -> dict[Tuning, str]:
    lacking: dict[Tuning, str] = {}
    if (os.cpu_count() or 1) < 2:
        lacking = dict.fromkeys(("bound", "rps", "napi"), "it takes two cores")
    elif not shutil.which("ethtool"):
        lacking["napi"] = "ethtool is not installed"
    for tuning, reason in lacking.items():
        print(f"not measured: {TUNINGS[tuning]}: {reason}")
    return {tuning: name for tuning, name in TUNINGS.items() if tuning not in lacking}


def measure(rounds: int, seconds: float) -> dict[str, Any]:
    """Goodput in Gbit/s with each tuning, and its ratio to none, in both directions."""
    rows: list[dict[str, Any]] = []
    tunings = _tunings_here() if those_here([AF_XDP]) else {}
    for direction in DIRECTIONS if tunings else ():
        runs: dict[str, Callable[[], float]] = {}
        with ExitStack() as pairs:
            for tuning, name in tunings.items():
                pair = pairs.enter_context(netns.veth_pair(mtu_bytes=MTU_BYTES))
                setting = tuned(pair, tuning, direction)
                runs[name] = partial(_speed, setting, sized(AF_XDP, setting, seconds))
            figures = interleave(runs, rounds)
        rows += [
            {
                "what": name,
                "direction": direction,
                **spread(figures[name]),
                "ratio": ratio(figures, name, TUNINGS["none"]),
            }
            for name in figures
        ]
    return {"unit": "Gbit/s of payload", "expected_ratio": EXPECTED_RATIO, "rows": rows}


def _speed(setting: Setting, count: int) -> float:
    return AF_XDP.transfer(setting, count, False).gbit_per_second


def main() -> None:
    options = parser(__doc__, rounds=3, seconds=0.5).parse_args()
    found = report(options, "tuning", partial(measure, options.rounds, options.seconds))
    keys = ("median", "lowest", "highest", "ratio")
    print_table(
        ["Gbit/s", "", *keys],
        [
            [row["what"], row["direction"], *(f"{row[key]:.2f}" for key in keys)]
            for row in found["rows"]
        ],
    )
    print(f"expected of the better tuning: {EXPECTED_RATIO} or more, in a quiet minute")


if __name__ == "__main__":
    main()

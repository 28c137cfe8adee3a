"""Packets per second of pyxdp over a veth pair, beside AF_PACKET's and scapy's.

The rings themselves (bench/blast.py), and what programs have of them, with every packet's bytes in
Python (bench/packet_ends.py). `transmit` counts what left, and the far end's kernel throws it away;
`receive` is fed by a second process, through AF_XDP.
"""

from __future__ import annotations

import importlib.util
import sys
from functools import partial
from typing import Any, Final, Literal

from bench.blast import load_redirect
from bench.contenders import Setting, blast
from bench.packet_ends import WAYS
from bench.processes import run_to_json, running
from bench.report import Benchmark, Found
from bench.rounds import interleave, spread
from tests.support import netns

SIZES_BYTES: Final = (64, 1514)
MODES: Final[tuple[Literal["native", "generic"], ...]] = ("native", "generic")


def _receive(setting: Setting, size_bytes: int, seconds: float) -> float:
    found = blast(setting, size_bytes, f"--seconds={seconds}")
    return float(found["packets"] / found["seconds"])


def _transmit(setting: Setting, size_bytes: int, seconds: float) -> float:
    return _sent(setting, size_bytes, seconds, "bench.blast", "send")


def _sent(setting: Setting, size_bytes: int, seconds: float, *words: str) -> float:
    server = setting.pair.b
    until = (setting.pair.a.ifname, f"--size={size_bytes}", f"--seconds={seconds}")
    with server.inside(), load_redirect() as program:
        # No socket is in its map, so everything goes on to the kernel, which has no use for it.
        program.attach(server.ifname, setting.mode)
        found, _ = run_to_json(setting.client(sys.executable, "-m", *words, *until))
    return float(found["packets"] / found["seconds"])


def _transmit_by(way: str, setting: Setting, size_bytes: int, seconds: float) -> float:
    return _sent(setting, size_bytes, seconds, "bench.packet_ends", "send", way)


def _receive_by(way: str, setting: Setting, size_bytes: int, seconds: float) -> float:
    to, by = setting.pair.b, setting.pair.a
    size = f"--size={size_bytes}"
    words = ("bench.packet_ends", "receive", way, to.ifname, size, f"--seconds={seconds}")
    sender = setting.client(sys.executable, "-m", "bench.blast", "send", by.ifname, size)
    with running(setting.server(sys.executable, "-m", *words)) as end, running(sender):
        found = end.finish_to_json()
    return float(found["packets"] / found["seconds"])


def _ways() -> list[str]:
    """What can be measured here; what can't is said on the screen."""
    if importlib.util.find_spec("scapy"):
        return list(WAYS)
    print("!!! NOT MEASURED: scapy: it is not installed: `pip install '.[bench]'`", flush=True)
    return [way for way in WAYS if way != "scapy"]


def measure(rounds: int, seconds: float) -> Found:
    """All combinations of direction, mode and packet size."""
    rows: list[dict[str, Any]] = []
    ways = _ways()
    for size_bytes in SIZES_BYTES:
        with netns.veth_pair() as pair:
            of_mode = {mode: Setting(pair=pair, direction="upload", mode=mode) for mode in MODES}
            runs = {
                f"{what.__name__[1:]}, {mode}": partial(what, setting, size_bytes, seconds)
                for mode, setting in of_mode.items()
                for what in (_receive, _transmit)
            }
            plain = Setting(pair=pair, direction="upload", mode="native")
            programs = {"receive": _receive_by, "transmit": _transmit_by}
            runs |= {
                f"{name} in Python, {way}": partial(measured, way, plain, size_bytes, seconds)
                for way in ways
                for name, measured in programs.items()
            }
            figures = interleave(runs, rounds, f"{size_bytes} bytes")
        rows += [
            {"what": name, "packet_bytes": size_bytes, **spread(figures[name], 0)}
            for name in figures
        ]
    return Found("packets per second", rows)


BENCHMARK: Final = Benchmark("pyxdp_pps", __doc__, measure)

if __name__ == "__main__":
    BENCHMARK.main()

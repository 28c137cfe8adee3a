"""Packets per second of pyxdp over a veth pair: transmit, and receive and drop (bench/blast.py).

`transmit` counts what left, and the far end's kernel throws it away; `receive` is fed by a second
process.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any, Final, Literal

from bench.blast import load_redirect
from bench.contenders import Setting, blast
from bench.processes import run_to_json
from bench.report import Benchmark, Found
from bench.rounds import interleave, spread
from tests.support import netns

SIZES_BYTES: Final = (64, 1514)
MODES: Final[tuple[Literal["native", "generic"], ...]] = ("native", "generic")


def _receive(setting: Setting, size_bytes: int, seconds: float) -> float:
    found = blast(setting, size_bytes, f"--seconds={seconds}")
    return float(found["packets"] / found["seconds"])


def _transmit(setting: Setting, size_bytes: int, seconds: float) -> float:
    server = setting.pair.b
    words = ("send", setting.pair.a.ifname, f"--size={size_bytes}", f"--seconds={seconds}")
    with server.inside(), load_redirect() as program:
        # No socket is in its map, so everything goes on to the kernel, which has no use for it.
        program.attach(server.ifname, setting.mode)
        found, _ = run_to_json(setting.client(sys.executable, "-m", "bench.blast", *words))
    return float(found["packets"] / found["seconds"])


def measure(rounds: int, seconds: float) -> Found:
    """All combinations of direction, mode and packet size."""
    rows: list[dict[str, Any]] = []
    for size_bytes in SIZES_BYTES:
        with netns.veth_pair() as pair:
            of_mode = {mode: Setting(pair=pair, direction="upload", mode=mode) for mode in MODES}
            runs = {
                f"{what.__name__[1:]}, {mode}": partial(what, setting, size_bytes, seconds)
                for mode, setting in of_mode.items()
                for what in (_receive, _transmit)
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

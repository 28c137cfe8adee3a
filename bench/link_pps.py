"""Datagrams per second of the af_xdp link against the udp link, over one veth pair in one run.

A process at each end (bench/link_ends.py), in a namespace of its own. One way, the sender sends
what it can; both ways, the far end sends everything back and a fixed number is under way.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any, Final

from bench.lines import Line, compared
from bench.processes import run_to_json, running
from bench.report import Benchmark, Found
from bench.rounds import interleave, spread
from tests.support import netns

LINKS: Final = ("af_xdp", "udp")
SIZES_BYTES: Final = (100, 1350)
_WHATS: Final = ("send", "receive", "echo")
_UNIT: Final = "datagrams per second"


def _ends(
    pair: netns.VethPair, link: str, roles: tuple[str, str], size_bytes: int, seconds: float
) -> tuple[float, float]:
    """Both ends at their work; datagrams per second at the near one, and at the far one."""

    def command(here: netns.Side, there: netns.Side, role: str) -> list[str]:
        where = (here.ifname, here.ipv4, there.ipv4, str(size_bytes), str(seconds))
        return here.command(sys.executable, "-m", "bench.link_ends", role, link, *where)

    with running(command(pair.b, pair.a, roles[1])) as far:
        near, _ = run_to_json(command(pair.a, pair.b, roles[0]))
        far.stop()
        came = far.found()
    # Where nothing came, it took no time.
    return near["datagrams"] / near["seconds"], came["datagrams"] / (came["seconds"] or 1)


def _rates(pair: netns.VethPair, link: str, size_bytes: int, seconds: float) -> dict[str, float]:
    sent, came = _ends(pair, link, ("one_way", "sink"), size_bytes, seconds)
    back, _ = _ends(pair, link, ("both_ways", "mirror"), size_bytes, seconds)
    return dict(zip(_WHATS, (sent, came, back), strict=True))


def measure(rounds: int, seconds: float) -> Found:
    """Both links, in turns, at each size."""
    rows: list[dict[str, Any]] = []
    lines: list[Line] = []
    for size_bytes in SIZES_BYTES:
        with netns.veth_pair() as pair:
            runs = {link: partial(_rates, pair, link, size_bytes, seconds) for link in LINKS}
            found = interleave(runs, rounds, f"{size_bytes} bytes")
        for what in _WHATS:
            figures = {link: [rates[what] for rates in found[link]] for link in LINKS}
            case = {"figure": what, "payload_bytes": size_bytes}
            rows += [{"what": link, **case, **spread(figures[link], 0)} for link in LINKS]
            lines.append(
                compared(
                    figures,
                    *LINKS,
                    what=f"{what}, af_xdp",
                    case=f"{size_bytes} bytes",
                    unit=_UNIT,
                )
            )
    return Found(_UNIT, rows, more_lines=lines)


BENCHMARK: Final = Benchmark("link_pps", __doc__, measure)

if __name__ == "__main__":
    BENCHMARK.main()

"""Datagrams per second of the af_xdp link against the udp link, over one veth pair in one run.

A process at each end, in a namespace of its own, each driving its link from Python as an engine
does: bursts of 64, the payloads as bytes. One way, the sender sends what it can; both ways, the
far end sends everything back and a fixed number of datagrams is under way. The links take turns,
so that a bad minute of the machine hits both; figures are medians, ratios are between medians.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, NamedTuple

import trio

from hoststack.link.af_xdp import AfXdpLink
from hoststack.link.base import BURST, Endpoint, Link, Outgoing
from hoststack.link.udp import UdpLink
from tests.support import netns

PORT: Final = 4433
LINKS: Final = ("af_xdp", "udp")
SIZES_BYTES: Final = (100, 1350)
#: Datagrams under way both ways: less than any ring or socket buffer between the two holds.
_WINDOW: Final = 4 * BURST
#: Without an answer for so long, what is under way is lost and sent anew.
_LOST_S: Final = 0.2
_TIMEOUT_S: Final = 30


class Wanted(NamedTuple):
    """What one end's process is to do: the rest of its command line."""

    role: str
    link: str
    interface: str
    here: str
    there: str
    size_bytes: int
    seconds: float


# --- one end, in a process of its own ---


def _payload(size_bytes: int) -> bytes:
    """What the steering program takes for QUIC: a short header (RFC 9000 section 17.3.1)."""
    return b"\x40".ljust(size_bytes, b"\x5a")


async def _send_all(link: Link, burst: Sequence[Outgoing]) -> None:
    while burst:
        taken = link.send(burst)
        burst = burst[taken:]
        if burst:
            await link.wait_writable()


async def far_end(link: Link, is_mirror: bool) -> dict[str, float]:
    """Count what comes until standard input ends, and send it back if `is_mirror`."""
    count, first_s, last_s = 0, 0.0, 0.0

    async def serve() -> None:
        nonlocal count, first_s, last_s
        while True:
            await link.wait_readable()
            burst = link.receive()
            last_s = trio.current_time()
            first_s = first_s or last_s
            count += len(burst)
            if is_mirror and burst:
                await _send_all(link, [(data, path) for data, path, _ in burst])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        print("ready", flush=True)
        await trio.lowlevel.wait_readable(sys.stdin)
        nursery.cancel_scope.cancel()
    return {"datagrams": count, "seconds": last_s - first_s}


async def send_one_way(link: Link, wanted: Wanted) -> dict[str, float]:
    """Send for that long; how many left."""
    path = await link.connect_path(PORT, Endpoint(wanted.there, PORT))
    burst = [(_payload(wanted.size_bytes), path)] * BURST
    start_s = trio.current_time()
    while trio.current_time() < start_s + wanted.seconds:
        await _send_all(link, burst)
    took_s = trio.current_time() - start_s
    return {"datagrams": link.statistics()["tx_datagrams"], "seconds": took_s}


async def send_both_ways(link: Link, wanted: Wanted) -> dict[str, float]:
    """Keep datagrams under way for that long; how many came back."""
    path = await link.connect_path(PORT, Endpoint(wanted.there, PORT))
    one = (_payload(wanted.size_bytes), path)
    count = 0
    start_s = trio.current_time()
    patience_s = 0.0
    while trio.current_time() < start_s + wanted.seconds:
        with trio.move_on_after(patience_s) as patience:
            await link.wait_readable()
        if patience.cancelled_caught:
            to_send, patience_s = _WINDOW, _LOST_S
        else:
            to_send = len(link.receive())
            count += to_send
        await _send_all(link, [one] * to_send)
    return {"datagrams": count, "seconds": trio.current_time() - start_s}


async def end(wanted: Wanted) -> None:
    """Be one end; print what was found."""
    link: Link = AfXdpLink.open(wanted.interface) if wanted.link == "af_xdp" else UdpLink()
    work: dict[str, Callable[[], Awaitable[dict[str, float]]]] = {
        "sink": lambda: far_end(link, False),
        "mirror": lambda: far_end(link, True),
        "one_way": lambda: send_one_way(link, wanted),
        "both_ways": lambda: send_both_ways(link, wanted),
    }
    try:
        link.open_port(Endpoint(wanted.here, PORT))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.run)
            found = await work[wanted.role]()
            nursery.cancel_scope.cancel()
    finally:
        link.close()
    print(json.dumps(found))


# --- the run ---


def _command(pair: netns.VethPair, side: netns.Side, *words: str | float) -> list[str]:
    other = pair.b if side is pair.a else pair.a
    role, link, *rest = map(str, words)
    where = (side.ifname, side.ipv4, other.ipv4)
    return side.command(sys.executable, "-m", "bench.link_pps", "--end", role, link, *where, *rest)


def run_ends(
    pair: netns.VethPair, roles: tuple[str, str], link: str, size_bytes: int, seconds: float
) -> tuple[dict[str, float], dict[str, float]]:
    """Both ends at their work; what the sender found, and the far end."""
    pipe = subprocess.PIPE
    far = _command(pair, pair.b, roles[1], link, size_bytes, seconds)
    with subprocess.Popen(far, stdin=pipe, stdout=pipe, text=True) as server:
        try:
            assert server.stdout is not None
            if server.stdout.readline() != "ready\n":
                sys.exit(f"link_pps: the far end did not start: {' '.join(far[3:])}")
            near = _command(pair, pair.a, roles[0], link, size_bytes, seconds)
            sent = subprocess.run(near, stdout=pipe, text=True, timeout=_TIMEOUT_S, check=True)
            came, _ = server.communicate(timeout=_TIMEOUT_S)
        finally:
            server.kill()
    return json.loads(sent.stdout), json.loads(came)


def measure(seconds: float, rounds: int) -> list[dict[str, Any]]:
    """Both links, in turns, at each size."""
    rows = []
    for size_bytes in SIZES_BYTES:
        figures: dict[tuple[str, str], list[float]] = {}
        with netns.veth_pair() as pair:
            for _ in range(rounds):
                for link in LINKS:
                    sent, came = run_ends(pair, ("one_way", "sink"), link, size_bytes, seconds)
                    back, _ = run_ends(pair, ("both_ways", "mirror"), link, size_bytes, seconds)
                    for what, found in (("send", sent), ("receive", came), ("echo", back)):
                        rate = found["datagrams"] / (found["seconds"] or 1)
                        figures.setdefault((what, link), []).append(rate)
        for what in ("send", "receive", "echo"):
            medians = {link: statistics.median(figures[what, link]) for link in LINKS}
            rows.append(
                {
                    "what": what,
                    "payload_bytes": size_bytes,
                    **{f"{link}_per_second": round(rate) for link, rate in medians.items()},
                    "ratio": round(medians["af_xdp"] / medians["udp"], 2),
                }
            )
    return rows


def main() -> None:
    """Measure and report; or be one end, if told to by `--end`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=1.5, help="for each figure of each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", metavar="FILE", help="write the figures there as well")
    parser.add_argument("--end", nargs=7, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.end:
        *words, size_bytes, seconds = options.end
        role, link, interface, here, there = words
        trio.run(end, Wanted(role, link, interface, here, there, int(size_bytes), float(seconds)))
        return
    if os.geteuid() != 0:
        sys.exit("link_pps: needs root: it makes network namespaces and attaches XDP programs")
    rows = measure(options.seconds, options.rounds)
    print(f"{'':10}{'bytes':>6}{'af_xdp/s':>12}{'udp/s':>12}{'ratio':>8}")
    for row in rows:
        print(
            f"{row['what']:10}{row['payload_bytes']:>6}{row['af_xdp_per_second']:>12,}"
            f"{row['udp_per_second']:>12,}{row['ratio']:>8.2f}"
        )
    if options.json:
        with open(options.json, "w", encoding="utf-8") as out:
            json.dump({"benchmark": "link_pps", "rows": rows}, out, indent=2)


if __name__ == "__main__":
    main()

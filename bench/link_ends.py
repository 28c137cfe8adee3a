"""One end of `link_pps`: a process that drives a link from Python, as an engine does.

Bursts of 64, the payloads as bytes. Prints JSON: how many datagrams, and the seconds they took.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NamedTuple

import trio

from hoststack.link.base import BURST, Endpoint, Link, Outgoing
from hoststack.link.udp.link import UdpLink
from hoststack.link.xdp.link import AfXdpLink

_PORT: Final = 4433
#: Datagrams under way both ways: less than any ring or socket buffer between the two holds.
_WINDOW: Final = 4 * BURST
#: Without an answer for so long, what is under way is lost and sent anew.
_LOST_S: Final = 0.2


class Wanted(NamedTuple):
    """What one end's process is to do: its command line."""

    role: str
    link: str
    interface: str
    here: str
    there: str
    size_bytes: int
    seconds: float


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
    """Count what comes until SIGTERM, and send it back if `is_mirror`."""
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

    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            print("ready", file=sys.stderr, flush=True)
            async for _ in signals:
                nursery.cancel_scope.cancel()
    return {"datagrams": count, "seconds": last_s - first_s}


async def send_one_way(link: Link, wanted: Wanted) -> dict[str, float]:
    """Send for that long; how many left."""
    path = await link.connect_path(_PORT, Endpoint(wanted.there, _PORT))
    burst = [(_payload(wanted.size_bytes), path)] * BURST
    start_s = trio.current_time()
    while trio.current_time() < start_s + wanted.seconds:
        await _send_all(link, burst)
    took_s = trio.current_time() - start_s
    return {"datagrams": link.statistics()["tx_datagrams"], "seconds": took_s}


async def send_both_ways(link: Link, wanted: Wanted) -> dict[str, float]:
    """Keep datagrams under way for that long; how many came back."""
    path = await link.connect_path(_PORT, Endpoint(wanted.there, _PORT))
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
        link.open_port(Endpoint(wanted.here, _PORT))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.run)
            found = await work[wanted.role]()
            nursery.cancel_scope.cancel()
    finally:
        link.close()
    print(json.dumps(found))


def main() -> None:
    role, link, interface, here, there, size_bytes, seconds = sys.argv[1:]
    trio.run(end, Wanted(role, link, interface, here, there, int(size_bytes), float(seconds)))


if __name__ == "__main__":
    main()

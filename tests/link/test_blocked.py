"""Links whose way out is full: who waits for it learns of what comes meanwhile."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import trio
import trio.testing

import pyxdp
from hoststack.link.base import Endpoint
from hoststack.link.udp.link import UdpLink
from hoststack.link.xdp.link import AfXdpLink
from tests.support.links import running
from tests.support.netns import Side, VethPair, run

pytestmark = pytest.mark.needs_root

PORT = 4433
DATAGRAM = bytes(1000)


@contextmanager
def slow(side: Side) -> Iterator[None]:
    """What leaves the side's interface goes at 1 kbit/s: sockets are full after some datagrams."""
    words = ("tbf", "rate", "1kbit", "burst", "1500", "limit", "1000000")
    run(*side.command("tc", "qdisc", "add", "dev", side.ifname, "root", *words))
    try:
        yield
    finally:
        run(*side.command("tc", "qdisc", "del", "dev", side.ifname, "root"))


def full_link(pair: VethPair) -> tuple[UdpLink, Endpoint]:
    """A link on side a with a small send buffer, and its port."""
    link = UdpLink()
    here = link.open_port(Endpoint(pair.a.ipv4, PORT))
    link._sockets[here].socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    return link, here


async def fill(link: UdpLink, remote: Endpoint) -> None:
    path = await link.connect_path(PORT, remote)
    for _ in range(1000):
        if not link.send([(DATAGRAM, path)]):
            return
    raise AssertionError("its socket was never full")


def test_udp_readable_while_full(veth_pair: VethPair) -> None:
    a, b = veth_pair.a, veth_pair.b
    with b.inside():
        peer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        peer.bind((b.ipv4, PORT))

    async def main() -> None:
        link, here = full_link(veth_pair)
        try:
            async with running(link):
                with slow(a):
                    await fill(link, Endpoint(b.ipv4, PORT))
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(link.wait_writable)
                        await trio.testing.wait_all_tasks_blocked()
                        assert link.receive() == []
                        peer.sendto(b"acknowledged", here)
                    assert [data for data, _, _ in link.receive()] == [b"acknowledged"]
                    await fill(link, Endpoint(b.ipv4, PORT))
                # Its queue went with the qdisc.
                await link.wait_writable()
                assert link.receive() == []
        finally:
            link.close()

    with a.inside(), peer:
        trio.run(main)


def test_udp_who_waits_for_a_port_that_is_closed_goes_on(veth_pair: VethPair) -> None:
    a, b = veth_pair.a, veth_pair.b

    async def main() -> None:
        link, here = full_link(veth_pair)
        try:
            async with running(link), trio.open_nursery() as nursery:
                with slow(a):
                    await fill(link, Endpoint(b.ipv4, PORT))
                    nursery.start_soon(link.wait_writable)
                    await trio.testing.wait_all_tasks_blocked()
                    link.close_port(here)
        finally:
            link.close()

    with a.inside():
        trio.run(main)


def test_af_xdp_while_frames_are_left_on_the_ring(veth_pair: VethPair) -> None:
    """The link waits for its socket by itself then, to kick it again."""
    works, why = pyxdp.available()
    if not works:
        pytest.skip(why)

    async def main() -> None:
        link = AfXdpLink.open(veth_pair.a.ifname)
        try:
            async with running(link), trio.open_nursery() as nursery:
                nursery.start_soon(trio.lowlevel.wait_writable, link._tx.fd)
                nursery.start_soon(link.wait_writable)
        finally:
            link.close()

    with veth_pair.a.inside():
        trio.run(main)

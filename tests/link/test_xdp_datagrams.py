"""UDP that is no QUIC, over AF_XDP: plain datagrams go past the kernel where they can, and by it
where they can't, and nobody can tell but by the counters."""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from typing import Any

import pytest
import trio

import hoststack
import pyxdp
from hoststack import Stack, TlsConfig, UdpConfig
from hoststack.api.stack import EmbeddedStack
from hoststack.link.base import Endpoint
from hoststack.link.kernel.rtnetlink import Rtnetlink
from hoststack.link.xdp.link import AfXdpLink
from tests.support.links import PATIENCE_S, steering_of
from tests.support.netns import Side, VethPair, run

pytestmark = pytest.mark.needs_root
FAMILIES = ["ipv4", "ipv6"]
_SO_RCVBUFFORCE = 33  # asm-generic/socket.h
_LARGE = UdpConfig(1 << 22, 1 << 22)


@pytest.fixture(autouse=True)
def _on_each_engine(engine: str) -> None:
    """The native engine has the rings in C, the other one in Python."""
    works, why = pyxdp.available()
    if not works:
        pytest.skip(why)


class Host:
    """A stack on a side, and how its datagrams went."""

    def __init__(self, side: Side, link: AfXdpLink, stack: EmbeddedStack) -> None:
        self.side = side
        self.link = link
        self.stack = stack

    def steered(self) -> int:
        """Plain datagrams that came past the kernel."""
        return steering_of(self.link).counters()["redirected_by_port"]

    def sent(self) -> int:
        """Datagrams that went past the kernel, QUIC's among them."""
        return self.link.statistics()["tx_datagrams"]


@asynccontextmanager
async def host(side: Side) -> AsyncIterator[Host]:
    with side.inside():
        link = AfXdpLink.open(side.ifname, debug=True)
        async with hoststack.open_stack(link=link) as stack:
            yield Host(side, link, stack)


def run_within(side: Side, main: Callable[[], Any]) -> None:
    """A deadline, and the thread in a namespace: sockets are made when they are asked for."""

    async def bounded() -> None:
        with trio.fail_after(PATIENCE_S):
            await main()

    with side.inside():
        trio.run(bounded)


def kernels(side: Side, family: str) -> socket.socket:
    """Somebody else's socket on a side."""
    kind = socket.AF_INET if family == "ipv4" else socket.AF_INET6
    with side.inside():
        made = socket.socket(kind, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    made.bind((getattr(side, family), 0))
    return made


async def heard(sock: socket.socket) -> tuple[bytes, Any]:
    await trio.lowlevel.wait_readable(sock)
    return sock.recvfrom(65536)


def uri(host: str, port: int) -> str:
    return f"udp://[{host}]:{port}" if ":" in host else f"udp://{host}:{port}"


@pytest.mark.parametrize("wildcard", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_listener(veth_pair: VethPair, family: str, wildcard: bool) -> None:
    """It answers from where the peer has sent to, and keeps what comes apart by its peers."""
    here = getattr(veth_pair.a, family)
    local = (("0.0.0.0", "::")[family == "ipv6"]) if wildcard else here

    async def main() -> None:
        async with host(veth_pair.a) as a, await a.stack.listen(uri(local, 0)) as listener:
            peers = [kernels(veth_pair.b, family) for _ in range(3)]
            for number, peer in enumerate(peers):
                peer.sendto(b"%d" % number, (here, listener.local[1]))
                accepted = await listener.accept()
                assert accepted.remote == peer.getsockname()[:2]
                assert await accepted.receive_datagram() == b"%d" % number
                sent = a.sent()
                for size in (0, 1, 1452):
                    await accepted.send_datagram(bytes(size))
                    data, source = await heard(peer)
                    assert (data, source[:2]) == (bytes(size), (here, listener.local[1]))
                assert a.sent() == sent + 3
                # More than a packet carries: the kernel makes fragments of it, and takes them.
                await accepted.send_datagram(b"x" * 9000)
                assert (await heard(peer))[0] == b"x" * 9000
                peer.sendto(b"y" * 9000, (here, listener.local[1]))
                assert await accepted.receive_datagram() == b"y" * 9000
                assert a.sent() == sent + 3
            assert a.steered() == 3
            for peer in peers:
                peer.close()

    run_within(veth_pair.a, main)


@pytest.mark.parametrize("family", FAMILIES)
def test_connections_of_ours(veth_pair: VethPair, family: str) -> None:
    """The first datagram finds the neighbour by way of the kernel, and is not lost."""
    there = kernels(veth_pair.b, family)

    async def main() -> None:
        async with host(veth_pair.a) as a:
            run("ip", "netns", "exec", a.side.namespace, "ip", "neigh", "flush", "all")
            where = uri(getattr(veth_pair.b, family), there.getsockname()[1])
            async with a.stack.connect(where) as connection:
                await connection.send_datagram(b"first")
                data, address = await heard(there)
                assert data == b"first"
                # The neighbour may have answered before it went.
                assert a.sent() <= 1
                for number in range(1000):
                    there.sendto(b"%d" % number, address)
                    assert await connection.receive_datagram() == b"%d" % number
                    await connection.send_datagram(b"%d" % number)
                    assert (await heard(there))[0] == b"%d" % number
                assert a.steered() == 1000
                assert a.sent() > 900
                # Nobody else is heard.
                with closing(kernels(veth_pair.b, family)) as stranger:
                    stranger.sendto(b"psst", address)
                    there.sendto(b"last", address)
                    assert await connection.receive_datagram() == b"last"
            # Its port is the kernel's again as soon as one hears of the end.
            await connection.wait_closed()
            assert Endpoint(*address[:2]) not in steering_of(a.link).ports()

    with closing(there):
        run_within(veth_pair.a, main)


@pytest.mark.parametrize("family", FAMILIES)
def test_quic_beside_it(veth_pair: VethPair, family: str) -> None:
    """Both at once on one link, and between two of them: nothing gets to the other's."""
    tls = TlsConfig.self_signed(["localhost"])
    here = getattr(veth_pair.a, family)
    data = os.urandom(3_000_000)

    async def ask_datagrams(stack: Stack, port: int) -> None:
        async with stack.connect(uri(here, port)) as connection:
            for number in range(2000):
                sent = number.to_bytes(4, "big") + data[:1000]
                await connection.send_datagram(sent)
                if number % 20 == 19:
                    assert await connection.receive_datagram() == sent

    async def ask_quic(stack: Stack, port: int) -> None:
        where = uri(here, port).replace("udp", "quic")
        async with stack.connect(where, tls=TlsConfig(verify=False), alpn=["test"]) as connection:
            stream = await connection.open_stream()
            back = bytearray()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send_all, stream)
                async for chunk in stream:
                    back += chunk
            assert back == data

    async def send_all(stream: hoststack.Stream) -> None:
        await stream.send_all(data)
        await stream.send_eof()

    async def client(udp: int, quic: int) -> None:
        async with host(veth_pair.b) as b, trio.open_nursery() as nursery:
            nursery.start_soon(ask_datagrams, b.stack, udp)
            nursery.start_soon(ask_quic, b.stack, quic)

    async def main() -> None:
        async with host(veth_pair.a) as a, trio.open_nursery() as nursery:
            any_ = ("0.0.0.0", "::")[family == "ipv6"]
            udp = await a.stack.listen(uri(any_, 0))
            quic = await a.stack.listen(uri(any_, 0).replace("udp", "quic"), tls=tls, alpn=["test"])

            async def answer() -> None:
                connection = await udp.accept()
                for count in itertools.count(1):
                    received = await connection.receive_datagram()
                    assert len(received) == 1004
                    if count % 20 == 0:
                        await connection.send_datagram(received)

            async def echo() -> None:
                connection = await quic.accept()
                async for stream in connection.streams():
                    assert isinstance(stream, hoststack.Stream)
                    async for chunk in stream:
                        await stream.send_all(chunk)
                    await stream.send_eof()

            nursery.start_soon(answer)
            nursery.start_soon(echo)
            ports = udp.local[1], quic.local[1]
            await trio.to_thread.run_sync(lambda: run_within(veth_pair.b, lambda: client(*ports)))
            # The first of all may have gone by the kernel, which finds the neighbour.
            assert 1990 <= a.steered() <= 2000
            assert steering_of(a.link).counters()["redirected_by_cid"] > 2000
            nursery.cancel_scope.cancel()

    run_within(veth_pair.a, main)


def test_a_neighbour_that_does_not_answer(
    veth_pair: VethPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is looked for now and then, and not with each datagram: a daemon's worker waits for its
    supervisor meanwhile."""
    asked: list[str] = []
    monkeypatch.setattr(Rtnetlink, "use_neighbour", lambda _, __, host: asked.append(host))
    nobody = veth_pair.b.ipv4.rpartition(".")[0] + ".99"

    async def main() -> None:
        async with host(veth_pair.a) as a, a.stack.connect(uri(nobody, 9)) as connection:
            start = trio.current_time()
            for _ in range(500):
                await connection.send_datagram(b"anybody?")
            while (await connection.statistics())["tx_datagrams"] < 500:
                await trio.lowlevel.checkpoint()
            assert set(asked) == {nobody}
            assert len(asked) <= 2 * (trio.current_time() - start) + 2

    run_within(veth_pair.a, main)


def test_a_way_out_that_is_full(veth_pair: VethPair) -> None:
    """What finds no room waits, in order, and nothing is lost for want of it."""
    count = 20_000

    async def main() -> None:
        async with host(veth_pair.a) as a:
            with closing(kernels(veth_pair.b, "ipv4")) as there:
                there.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 1 << 26)
                where = uri(veth_pair.b.ipv4, there.getsockname()[1])
                async with a.stack.connect(where, config=_LARGE) as connection:
                    await connection.send_datagram(b"first")
                    await heard(there)
                    for number in range(count):
                        await connection.send_datagram(number.to_bytes(4, "big"))
                    got = [int.from_bytes((await heard(there))[0], "big") for _ in range(count)]
                    assert got == list(range(count))
                    assert a.sent() > count - 10

    run_within(veth_pair.a, main)

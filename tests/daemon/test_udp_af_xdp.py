"""UDP and TCP sessions of a daemon over AF_XDP: a port is one worker's, whatever queue its
datagrams come on, and the supervisor opens what workers may not."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator

import pytest
import trio

import hoststack
from hoststack import vcl
from tests.daemon.conftest import PATIENCE_S, Daemon
from tests.daemon.test_af_xdp import daemon_on, verdicts
from tests.support.netns import Side, VethPair, veth_pair

pytestmark = pytest.mark.needs_root
PEERS = 20


@pytest.fixture(scope="module")
def pair() -> Iterator[VethPair]:
    with veth_pair(queues=2) as made:
        yield made


@pytest.fixture
def daemon(pair: VethPair) -> Iterator[Daemon]:
    """On side a, with two workers."""
    with daemon_on(pair.a) as running:
        yield running


def peers(side: Side, count: int = PEERS) -> list[socket.socket]:
    """Sockets of the kernel's: their ports take them to both queues of the other side."""
    with side.inside():
        made = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(count)]
    for each in made:
        each.settimeout(PATIENCE_S)
    return made


def ask_until_answered(peer: socket.socket, where: tuple[str, int]) -> bytes:
    """Ask anew until there is an answer: a datagram may be lost while workers change."""
    peer.settimeout(0.2)
    for _ in range(100):
        try:
            peer.sendto(b"anybody?", where)
            return peer.recv(100)
        except (TimeoutError, ConnectionRefusedError):
            continue
    raise AssertionError("nobody answers")


def test_a_listener_has_the_datagrams_of_all_queues(daemon: Daemon, pair: VethPair) -> None:
    """Below 1024, which no worker could open. When its worker dies, another one serves the port."""

    async def serve(connection: hoststack.Connection) -> None:
        workers.append(connection.handle >> 32)
        async for data in connection.datagrams():
            await connection.send_datagram(data * 2)

    async def main() -> None:
        with trio.fail_after(PATIENCE_S):
            async with hoststack.attach(daemon.api) as stack, trio.open_nursery() as nursery:

                async def accept(listener: hoststack.Listener) -> None:
                    while True:
                        nursery.start_soon(serve_one, await listener.accept())

                async def serve_one(connection: hoststack.Connection) -> None:
                    try:
                        await serve(connection)
                    except trio.BrokenResourceError:
                        assert kills  # with the worker

                listener = await stack.listen("udp://0.0.0.0:99")
                nursery.start_soon(accept, listener)
                await trio.to_thread.run_sync(ask_all)
                before = len(workers)
                (owner,) = set(workers)
                kills.append(owner)
                os.kill(daemon.worker_pid(owner), signal.SIGKILL)
                (peer,) = peers(pair.b, 1)
                with peer:
                    answer = await trio.to_thread.run_sync(
                        ask_until_answered, peer, (pair.a.ipv4, 99)
                    )
                assert answer == b"anybody?" * 2
                # By the other one, or by the one that replaced the owner before it noticed.
                assert len(workers) > before
                nursery.cancel_scope.cancel()

    def ask_all() -> None:
        for number, peer in enumerate(peers(pair.b)):
            with peer:
                for size in (1, 100, 1472, 5000):
                    data = bytes([number]) * size
                    peer.sendto(data, (pair.a.ipv4, 99))
                    assert peer.recv(65536) == data * 2

    workers: list[int] = []
    kills: list[int] = []
    trio.run(main)
    found = verdicts(daemon)
    # All but the large ones, which come in fragments.
    assert found["redirected_by_port"] >= 3 * PEERS
    assert found["redirect_failed"] == 0
    # Its port is the kernel's again: nobody keeps it.
    (peer,) = peers(pair.a, 1)
    with peer:
        peer.bind(("0.0.0.0", 99))


def test_tcp_below_1024(daemon: Daemon, pair: VethPair) -> None:
    async def main() -> None:
        with trio.fail_after(PATIENCE_S):
            async with hoststack.attach(daemon.api) as stack:
                async with await stack.listen("tcp://0.0.0.0:80") as listener:
                    with pair.b.inside():
                        raw = socket.socket()
                    raw.setblocking(False)
                    client = trio.socket.from_stdlib_socket(raw)
                    await client.connect((pair.a.ipv4, 80))
                    async with await listener.accept() as connection:
                        async for stream in connection.streams():
                            await client.send(b"hello")
                            assert await stream.receive_some() == b"hello"
                            await stream.send_all(b"bye")
                            assert await client.recv(10) == b"bye"
                            break
                    client.close()
                with pytest.raises(OSError, match="not an address of this machine"):
                    await stack.listen("tcp://192.0.2.1:53")

    trio.run(main)


def test_an_endpoint_that_talks_to_anybody(daemon: Daemon, pair: VethPair) -> None:
    """An unconnected session of VCL's: past the kernel, by it, within this machine, to nobody."""
    before = verdicts(daemon)["redirected_by_port"]
    config = vcl.VclConfig(api_socket_name=daemon.api)
    with vcl.application("anybody", config), vcl.Session("udp") as session:
        session.bind(("0.0.0.0", 0))
        port = session.local[1]
        others = peers(pair.b)
        for number, peer in enumerate(others):
            peer.sendto(b"%d" % number, (pair.a.ipv4, port))
        found = dict(session.recvfrom()[::-1] for _ in others)
        assert sorted(found.values()) == sorted(b"%d" % number for number in range(PEERS))
        assert verdicts(daemon)["redirected_by_port"] == before + PEERS
        for sender, data in found.items():
            session.sendto(data, sender)
            session.sendto(data * 3000, sender)
        for number, peer in enumerate(others):
            data, source = peer.recvfrom(100)
            assert (data, source) == (b"%d" % number, (pair.a.ipv4, port))
            assert peer.recv(65536) == data * 3000
            peer.close()
        # Who is on this machine, too, gets it by the kernel; what can go nowhere stops nobody.
        session.sendto(b"lost", ("0.0.0.0", 9))
        session.sendto(b"lost", ("255.255.255.255", 9))
        session.sendto(b"lost", ("::1", 9))
        (here,) = peers(pair.a, 1)
        with here:
            here.bind(("127.0.0.1", 0))
            session.sendto(b"near", here.getsockname())
            data, source = here.recvfrom(100)
            here.sendto(b"too", source)
            assert session.recvfrom() == (b"too", here.getsockname())


def test_rules_hold_for_who_talks_to_anybody(daemon: Daemon, pair: VethPair) -> None:
    daemon.ctl(f"session rule add proto udp 0.0.0.0/0 0 {pair.b.ipv4}/32 0 action deny")
    config = vcl.VclConfig(api_socket_name=daemon.api)
    with vcl.application("anybody", config), vcl.Session("udp") as session:
        session.bind(("0.0.0.0", 0))
        (peer,) = peers(pair.b, 1)
        (here,) = peers(pair.a, 1)
        with peer, here:
            peer.bind((pair.b.ipv4, 0))
            peer.sendto(b"no", (pair.a.ipv4, session.local[1]))
            here.sendto(b"yes", ("127.0.0.1", session.local[1]))
            assert session.recvfrom()[0] == b"yes"
            session.sendto(b"no", peer.getsockname())
            daemon.ctl(f"session rule del proto udp 0.0.0.0/0 0 {pair.b.ipv4}/32 0")
            session.sendto(b"yes", peer.getsockname())
            assert peer.recv(10) == b"yes"

"""The supervisor's part of opening ports: it believes a worker nothing, and outlives it."""

from __future__ import annotations

import errno
import socket
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from hoststack.boundary import silence
from hoststack.daemon import orders, ports
from hoststack.daemon.link_parts import UdpPart
from hoststack.daemon.ports import PortClient, PortKeeper
from hoststack.link.base import Endpoint, KernelProtocol, LinkError
from tests.support.open_files import open_files

HOST = "127.0.0.1"

Script = Callable[[PortKeeper, "Part"], Awaitable[None]]


class Part(UdpPart):
    """A link's part that notes what was closed."""

    def __init__(self) -> None:
        super().__init__(2, host=0, rotation=0)
        self.closed: list[tuple[KernelProtocol, Endpoint]] = []

    def close_socket(self, protocol: KernelProtocol, endpoint: Endpoint) -> None:
        self.closed.append((protocol, endpoint))


def play(script: Script) -> None:
    async def main() -> None:
        with trio.fail_after(10):
            part = Part()
            await script(PortKeeper(part), part)

    trio.run(main)


async def ask(end: socket.socket, request: orders.PortRequest) -> orders.PortAnswer:
    """As a worker asks that checks nothing."""
    end.send(orders.encode(request))
    await trio.lowlevel.wait_readable(end)
    data, fds, _, _ = socket.recv_fds(end, 4096, 1)
    for fd in fds:
        socket.close(fd)
    return orders.decode_port_answer(data)


IMPOSSIBLE = [
    ("fe80::1%\0", 0),
    ("fe80::1%" + "é" * 70, 0),
    ("fe80::1%nosuch", 0),
    ("localhost", 0),
    ("127.0.0.1", 1 << 40),
    ("127.0.0.1", -1),
]


@pytest.mark.parametrize(("host", "port"), IMPOSSIBLE)
def test_only_addresses_are_opened(host: str, port: int) -> None:
    async def script(keeper: PortKeeper, _: Part) -> None:
        with keeper.channel(0) as (end, serve):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(serve)
                for request in (
                    orders.OpenSocket("tcp", host, port),
                    orders.OpenSocket("udp", host, port),
                    orders.OpenPort(host, port),
                ):
                    answer = await ask(end, request)
                    assert isinstance(answer, orders.PortRefused)
                    assert answer.errno == errno.EINVAL
                good = await ask(end, orders.OpenSocket("udp", "127.0.0.1", 0))
                assert isinstance(good, orders.PortOpened)
                nursery.cancel_scope.cancel()

    play(script)


def test_a_worker_may_die_with_an_answer_unread() -> None:
    async def script(keeper: PortKeeper, part: Part) -> None:
        with keeper.channel(0) as (end, serve):
            end.send(orders.encode(orders.OpenSocket("tcp", "127.0.0.1", 0)))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(serve)
                await trio.lowlevel.wait_readable(end)
                end.close()
                await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
        assert [protocol for protocol, _ in part.closed] == ["tcp"]

    play(script)


def test_a_socket_is_the_last_ones_that_opened_it() -> None:
    """A worker is dead, and another one has its port, before the supervisor hears of it."""

    async def script(keeper: PortKeeper, part: Part) -> None:
        async def opened(end: socket.socket, port: int) -> int:
            answer = await ask(end, orders.OpenSocket("udp", "127.0.0.1", port))
            assert isinstance(answer, orders.PortOpened)
            return answer.port

        async with trio.open_nursery() as nursery:
            with keeper.channel(1) as (other, serve_other):
                with keeper.channel(0) as (end, serve):
                    nursery.start_soon(serve)
                    nursery.start_soon(serve_other)
                    port = await opened(end, 0)
                    assert await opened(other, port) == port
                assert part.closed == []
            assert part.closed == [("udp", Endpoint("127.0.0.1", port))]
            nursery.cancel_scope.cancel()

    play(script)


def test_a_worker_without_room_for_a_descriptor() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        client = PortClient(theirs)
        ours.send(orders.encode(orders.PortOpened("127.0.0.1", 1234)))
        with pytest.raises(LinkError, match="open files") as caught:
            client.open_socket("udp", Endpoint("127.0.0.1", 0))
        assert caught.value.errno == errno.EMFILE
        assert orders.decode_port_request(ours.recv(4096)) == orders.OpenSocket(
            "udp", "127.0.0.1", 0
        )
        closing = orders.decode_port_request(ours.recv(4096))
        assert closing == orders.CloseSocket("udp", "127.0.0.1", 1234)


def test_a_supervisor_that_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it answers later belongs to nobody, and is no answer to what is asked then."""
    monkeypatch.setattr(ports, "_PATIENCE_S", 0.01)
    monkeypatch.setattr(ports, "TICK_S", 0.02)
    monkeypatch.setattr(silence, "sample", lambda pid: None)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, socket.socket() as made:
        client = PortClient(theirs)
        asked = [Endpoint("127.0.0.1", 1), Endpoint("127.0.0.1", 2)]
        for endpoint in asked:
            with pytest.raises(LinkError, match="stopped or hangs") as caught:
                client.open_port(endpoint)
            assert caught.value.errno == errno.ETIMEDOUT
        with pytest.raises(LinkError, match="stopped or hangs"):
            client.open_socket("tcp", Endpoint("127.0.0.1", 3))
        answers = [*(orders.PortOpened(*each) for each in asked), orders.PortOpened(HOST, 3)]
        for answer in answers:
            socket.send_fds(ours, [orders.encode(answer)], [made.fileno()])
        ours.send(orders.encode(orders.PortRefused(errno.EACCES, "no")))
        before = open_files()
        with pytest.raises(LinkError, match="no"):
            client.open_port(Endpoint("127.0.0.1", 4))
        assert open_files() == before
        requests = [orders.decode_port_request(ours.recv(4096)) for _ in range(7)]
        assert [type(each).__name__ for each in requests] == [
            *("OpenPort", "OpenPort", "OpenSocket", "OpenPort"),
            *("ClosePort", "ClosePort", "CloseSocket"),
        ]

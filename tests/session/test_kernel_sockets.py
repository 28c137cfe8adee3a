"""TCP and UDP sessions, from the requests of an application that is up to anything."""

from __future__ import annotations

import errno
import gc
import itertools
import os
import resource
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import Any, TypeVar

import pytest
import trio
import trio.testing

from hoststack.boundary import messages as m
from hoststack.boundary.application import Application
from hoststack.boundary.protocols import Protocol, TcpConfig, UdpConfig
from hoststack.link.udp.link import UdpLink
from hoststack.native.session._session import lib
from hoststack.quic.tls import TlsConfig
from hoststack.transport.kernel import udp_peers
from hoststack.transport.kernel.udp import UdpConnection, pack_address
from hoststack.transport.kernel.udp_port import UdpPort
from hoststack.worker.engines import engine_maker
from hoststack.worker.worker import Worker

HOST = "127.0.0.1"
LARGE = UdpConfig(1 << 20, 1 << 20)
T = TypeVar("T", bound=m.Notice)


class Recorder(Application):
    """Remembers what it was told."""

    def __init__(self) -> None:
        super().__init__("test")
        self.heard: list[m.Notice] = []
        self._woken = trio.Event()
        self.wake_application = self._wake

    def _wake(self) -> None:
        self.take_events()
        self.heard += self.take_notices()
        self._woken.set()

    async def hears(self, kind: type[T]) -> T:
        """The next notice of a kind; those before it are dropped."""
        while True:
            self._woken = trio.Event()
            while self.heard:
                notice = self.heard.pop(0)
                if isinstance(notice, kind):
                    return notice
            await self._woken.wait()


def play(script: Callable[[Worker, Recorder], Awaitable[None]]) -> None:
    async def main() -> None:
        with trio.fail_after(30), closing(UdpLink()) as link:
            worker, application = Worker(link, engine_maker("auto", link)), Recorder()
            worker.attach(application)
            async with trio.open_nursery() as nursery:
                await nursery.start(worker.run)
                await trio.testing.wait_all_tasks_blocked()
                await script(worker, application)
                nursery.cancel_scope.cancel()

    trio.run(main)


def connect(protocol: Protocol, remote: tuple[str, int], token: int = 1) -> m.Connect:
    return m.Connect(token, remote, "", TlsConfig(verify=False), (), None, protocol=protocol)


def open_stream(application: Application, connection: int) -> Any:
    """The struct hs_end of a new stream."""
    assert application.plane is not None
    opened = application.plane.open_here(application, connection, unidirectional=False)
    assert opened is not None
    return opened[0]


def written(result: int) -> int:
    """How many bytes `hs_end_write` has taken."""
    assert result >= 0
    return result & (1 << lib.HS_END_BYTES_BITS) - 1


def listen(protocol: Protocol, port: int = 0) -> m.Listen:
    return m.Listen(1, (HOST, port), TlsConfig(verify=False), (), None, protocol=protocol)


async def bound(worker: Worker, application: Recorder) -> tuple[int, UdpConnection]:
    """An endpoint that talks to anybody, and its handle."""
    application.request(m.Bind(1, (HOST, 0), LARGE))
    connected = await application.hears(m.Connected)
    (context,) = worker.layer.kernel.connections()
    assert isinstance(context, UdpConnection)
    await trio.testing.wait_all_tasks_blocked()
    return connected.handle, context


@pytest.mark.parametrize("is_addressed", [True, False])
def test_a_turn_sends_so_much_and_no_more(is_addressed: bool) -> None:
    """Messages may be as small as can be, and many: other applications have their turn."""
    most, count = 1024, 20_000

    async def script(worker: Worker, application: Recorder) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
            peer.bind((HOST, 0))
            message = pack_address(*peer.getsockname()) if is_addressed else b""
            handle, context = await bound(worker, application)
            for _ in range(count):
                assert context.tx.write_message(message)
            for _ in range(100):
                application.signal_sent(handle)
            figures = context.statistics()
            assert 0 < figures["tx_datagrams"] + figures["tx_dropped_datagrams"] <= most
            while sum(context.statistics().values()) < count:
                await trio.lowlevel.checkpoint()
                # Some turns may follow each other.
                assert sum(context.statistics().values()) - sum(figures.values()) <= 10 * most
                figures = context.statistics()

    play(script)


def test_an_endpoint_that_is_gone_while_it_waits_for_room(monkeypatch: pytest.MonkeyPatch) -> None:
    async def script(worker: Worker, application: Recorder) -> None:
        handle, context = await bound(worker, application)
        monkeypatch.setattr(UdpPort, "_send_by_kernel", lambda *_: False)
        assert context.tx.write_message(pack_address(HOST, 9) + b"never")
        application.signal_sent(handle)
        worker.detach(application)
        await trio.testing.wait_all_tasks_blocked()
        assert not worker.layer.connections()

    for _ in range(20):  # whichever task runs first
        play(script)


def test_a_connection_that_is_closed_while_it_waits_for_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its port has a listener, and lives on."""

    async def script(worker: Worker, application: Recorder) -> None:
        application.request(listen("udp"))
        where = (await application.hears(m.Listening)).local
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
            for number in range(10):
                peer.sendto(b"here", where)
                accepted = await application.hears(m.Accepted)
                (context,) = worker.layer.connections()
                assert context.tx is not None
                with monkeypatch.context() as full:
                    full.setattr(UdpPort, "_send_by_kernel", lambda *_: False)
                    assert context.tx.write_message(b"never")
                    application.signal_sent(accepted.handle)
                    # Whatever the task that sends the rest waits for.
                    for _ in range(number):
                        await trio.lowlevel.checkpoint()
                    application.request(m.CloseConnection(accepted.handle, 0, ""))
                    await application.hears(m.Closed)
                await trio.testing.wait_all_tasks_blocked()

    play(script)


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_who_is_gone_is_connected_no_more(protocol: Protocol) -> None:
    """However far the connect has come."""

    async def script(worker: Worker, application: Recorder) -> None:
        with socket.create_server((HOST, 0)) as server:
            for number in range(100):
                gone = Recorder()
                worker.attach(gone)
                gone.request(connect(protocol, server.getsockname()))
                worker.layer.take_from_applications()
                for _ in range(number % 5):
                    await trio.lowlevel.checkpoint()
                worker.detach(gone)
                await trio.testing.wait_all_tasks_blocked()
                assert not worker.layer.connections()
                assert not len(worker.layer.sessions)
                assert gone.sessions_in_use == 0

    play(script)


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize("host", ["::ffff:127.0.0.1", "::ffff:0:0"])
def test_mapped_addresses_are_no_way_round_the_rules(protocol: Protocol, host: str) -> None:
    async def script(worker: Worker, application: Recorder) -> None:
        with socket.create_server((HOST, 0)) as server:
            application.request(connect(protocol, (host, server.getsockname()[1])))
            failed = await application.hears(m.Failed)
            assert failed.errno == errno.EADDRNOTAVAIL

    play(script)


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_unspecified_addresses_are_no_way_round_the_rules(protocol: Protocol) -> None:
    async def script(worker: Worker, application: Recorder) -> None:
        worker.layer.rules.add(f"proto {protocol} 0.0.0.0/0 0 127.0.0.0/8 0 action deny")
        with socket.create_server((HOST, 0)) as server:
            application.request(connect(protocol, ("0.0.0.0", server.getsockname()[1])))
            failed = await application.hears(m.Failed)
            assert failed.errno == errno.EACCES

    play(script)


def test_an_unconnected_endpoint_sends_to_nobody_unspecified() -> None:
    async def script(worker: Worker, application: Recorder) -> None:
        worker.layer.rules.add("proto udp 0.0.0.0/0 0 127.0.0.0/8 0 action deny")
        handle, context = await bound(worker, application)
        for host in (HOST, "0.0.0.0"):
            assert context.tx.write_message(pack_address(host, 9) + b"psst")
        application.signal_sent(handle)
        await trio.testing.wait_all_tasks_blocked()
        assert context.statistics()["tx_dropped_datagrams"] == 2

    play(script)


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_nobody_is_at_port_0(protocol: Protocol) -> None:
    """An endpoint of UDP without a port would be one that talks to anybody, past the rules."""

    async def script(worker: Worker, application: Recorder) -> None:
        application.request(connect(protocol, (HOST, 0)))
        failed = await application.hears(m.Failed)
        assert failed.errno == errno.EADDRNOTAVAIL

    play(script)


@pytest.mark.needs_root
def test_a_peer_without_a_port_is_no_connection() -> None:
    async def script(worker: Worker, application: Recorder) -> None:
        application.request(listen("udp"))
        port = (await application.hears(m.Listening)).local[1]
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP) as raw:
            raw.sendto(struct.pack("!4H", 0, port, 9, 0) + b"x", (HOST, 0))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as good:
            good.bind((HOST, 0))
            good.sendto(b"y", (HOST, port))
            accepted = await application.hears(m.Accepted)
            assert accepted.remote == good.getsockname()

    play(script)


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_the_last_session_that_it_may_have(protocol: Protocol) -> None:
    async def script(worker: Worker, application: Recorder) -> None:
        application.max_sessions = 1
        with socket.create_server((HOST, 0)) as server:
            application.request(connect(protocol, server.getsockname()))
            await application.hears(m.Connected)
            application.request(connect(protocol, server.getsockname(), 2))
            assert (await application.hears(m.Failed)).errno == errno.EMFILE

    play(script)


def test_an_end_in_the_middle_is_no_clean_one() -> None:
    """A worker ends, though what was written before a close is not sent; it would wait for it."""
    size = 1 << 26
    config = TcpConfig(tx_fifo_bytes=size)

    async def script(worker: Worker, application: Recorder) -> None:
        with socket.create_server((HOST, 0)) as server:
            application.request(replace(connect("tcp", server.getsockname()), config=config))
            connected = await application.hears(m.Connected)
            end = open_stream(application, connected.handle)
            assert written(lib.hs_end_write(end, bytes(size), size)) == size
            application.request(m.CloseConnection(connected.handle, 0, ""))
            await application.hears(m.Closed)
            assert worker.layer.connections()
            peers.append(server.accept()[0])

    peers: list[socket.socket] = []
    play(script)
    (peer,) = peers
    with peer, pytest.raises(ConnectionResetError):
        sum(map(len, iter(lambda: peer.recv(1 << 20), b"")))


def test_what_was_written_before_a_close_is_waited_for() -> None:
    async def script(worker: Worker, application: Recorder) -> None:
        with socket.create_server((HOST, 0)) as server:
            application.request(connect("tcp", server.getsockname()))
            connected = await application.hears(m.Connected)
            end = open_stream(application, connected.handle)
            assert written(lib.hs_end_write(end, b"last words", 10)) == 10
            application.request(m.CloseConnection(connected.handle, 0, ""))
            peer = server.accept()[0]
            peer.setblocking(False)
            with peer:
                peer.shutdown(socket.SHUT_WR)
                await worker.wait_idle()
                assert peer.recv(100) == b"last words"
                assert peer.recv(100) == b""

    play(script)


@pytest.mark.parametrize(
    ("any_", "family", "here"),
    [("0.0.0.0", socket.AF_INET, "127.0.0.2"), ("::", socket.AF_INET6, "::1")],
)
def test_an_answer_comes_from_where_the_question_went(
    any_: str, family: socket.AddressFamily, here: str
) -> None:
    async def script(worker: Worker, application: Recorder) -> None:
        application.request(replace(listen("udp"), local=(any_, 0)))
        port = (await application.hears(m.Listening)).local[1]
        with socket.socket(family, socket.SOCK_DGRAM) as peer:
            peer.setblocking(False)
            peer.connect((here, port))
            peer.send(b"question")
            ready = await application.hears(m.DatagramsReady)
            accepted = await application.hears(m.Accepted)
            assert accepted.local == (here, port)
            assert ready.rx.read_message() == b"question"
            assert ready.tx.write_message(b"answer")
            application.signal_sent(accepted.handle)
            await trio.lowlevel.wait_readable(peer)
            assert peer.recv(100) == b"answer"

    play(script)


def test_rules_hold_for_the_address_that_a_datagram_came_to() -> None:
    async def script(worker: Worker, application: Recorder) -> None:
        worker.layer.rules.add("proto udp 127.0.0.2/32 0 0.0.0.0/0 0 action deny")
        application.request(replace(listen("udp"), local=("0.0.0.0", 0)))
        port = (await application.hears(m.Listening)).local[1]
        with ExitStack() as undo:
            for host in ("127.0.0.2", "127.0.0.3"):
                peer = undo.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
                peer.sendto(b"question", (host, port))
            assert (await application.hears(m.Accepted)).local[0] == "127.0.0.3"

    play(script)


def test_peers_that_are_silent_make_room_for_others() -> None:
    """Whoever can write another's address into a datagram makes as many as he likes."""
    config = UdpConfig(idle_timeout_s=1)

    async def script(worker: Worker, application: Recorder) -> None:
        application.request(replace(listen("udp"), config=config))
        where = (await application.hears(m.Listening)).local
        with ExitStack() as undo:

            async def accepted() -> m.Accepted | None:
                peer = undo.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
                peer.sendto(b"here", where)
                with trio.move_on_after(0.1):
                    return await application.hears(m.Accepted)
                return None

            silent = [await accepted() for _ in range(2)]
            talks = undo.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            talks.bind((HOST, 0))
            talks.sendto(b"here", where)
            known = await application.hears(m.Accepted)
            with trio.move_on_after(2.5):
                while True:
                    talks.sendto(b"still here", where)
                    await trio.sleep(0.2)
            closed = [notice for notice in application.heard if isinstance(notice, m.Closed)]
            assert [each and each.handle for each in silent] == [each.handle for each in closed]
            assert {each.info.reason for each in closed} == {"Idle timeout"}
            assert known.handle in [session.handle for session in worker.layer.sessions]
            assert await accepted() is not None

    play(script)


class Peer:
    """One that sends to a listener, and whose endpoint answers."""

    def __init__(self, undo: ExitStack, where: tuple[str, int]) -> None:
        self._socket = undo.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self._socket.bind((HOST, 0))
        self.address = self._socket.getsockname()
        self._where = where

    def send(self) -> None:
        self._socket.sendto(b"here", self._where)


def peers_of(worker: Worker) -> set[tuple[str, int]]:
    return {c.remote for c in worker.layer.kernel.connections() if isinstance(c, UdpConnection)}


async def until(is_so: Callable[[], bool]) -> None:
    while not is_so():
        await trio.testing.wait_all_tasks_blocked(0.001)


@pytest.mark.parametrize("most", [2, 8])
def test_a_new_peer_takes_the_place_of_the_one_that_was_silent_for_longest(
    monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """Whoever can write random addresses into datagrams fills no more than a bound of their own,
    and none but those that came back after an answer stay while they go on."""
    monkeypatch.setattr(udp_peers, "MOST_UNPROVEN", most)

    async def script(worker: Worker, application: Recorder) -> None:
        application.request(listen("udp"))
        where = (await application.hears(m.Listening)).local
        with ExitStack() as undo:
            faithful = Peer(undo, where)
            faithful.send()
            await until(lambda: faithful.address in peers_of(worker))
            answer_everybody(worker)
            faithful.send()
            once: list[Peer] = []
            for _ in range(3 * most):
                once.append(Peer(undo, where))
                once[-1].send()
                await until(lambda: once[-1].address in peers_of(worker))
                # Nobody is answered from here on, so that to come again is to be heard last.
                once[0].send()
                await trio.testing.wait_all_tasks_blocked(0.001)
            expected = {once[0].address, *(each.address for each in once[-(most - 1) :])}
            assert peers_of(worker) == {faithful.address} | expected
            replaced = worker.layer.sessions.refused["udp_peers_replaced"]
            assert replaced == 2 * most
            assert (await application.hears(m.Closed)).info.reason == "Replaced by a newer peer"
            assert worker.layer.sessions.refused.keys() == {"udp_peers_replaced"}

    play(script)


def answer_everybody(worker: Worker) -> None:
    for context in worker.layer.kernel.connections():
        if isinstance(context, UdpConnection):
            assert context.tx.write_message(b"answer")
            context.send_ready()


@pytest.mark.parametrize("limit", ["sessions", "memory"])
def test_peers_leave_room_for_other_sessions(limit: str) -> None:
    """Also those that came back: an address may be made up twice."""

    async def script(worker: Worker, application: Recorder) -> None:
        config = UdpConfig(65536, 65536)
        if limit == "sessions":
            application.max_sessions = 40
        else:
            application.max_fifo_bytes = 48 * 2 * 65536
        application.request(replace(listen("udp"), config=config))
        where = (await application.hears(m.Listening)).local
        with ExitStack() as undo:
            for _ in range(60):
                peer = Peer(undo, where)
                peer.send()
                await until(lambda peer=peer: peer.address in peers_of(worker))  # type: ignore[misc]
                answer_everybody(worker)
                peer.send()
                await trio.testing.wait_all_tasks_blocked(0.001)
            assert len(peers_of(worker)) in (20, 17)
            assert application.sessions_in_use in (21, 18)
            # The last ones are there.
            assert peer.address in peers_of(worker)

    play(script)


def test_who_does_not_keep_up_has_no_new_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    """An application in another process, that takes no notices, is not thrown out for them."""
    is_behind = True
    monkeypatch.setattr(Recorder, "is_behind", property(lambda self: is_behind))

    async def script(worker: Worker, application: Recorder) -> None:
        nonlocal is_behind
        application.request(listen("udp"))
        where = (await application.hears(m.Listening)).local
        refused = worker.layer.sessions.refused
        with ExitStack() as undo:
            peer = Peer(undo, where)
            peer.send()
            await until(lambda: refused["udp_peers"] == 1)
            assert not peers_of(worker)
            is_behind = False
            peer.send()
            await until(lambda: peers_of(worker) == {peer.address})

    play(script)


def test_new_peers_leave_memory_to_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else uses it."""
    used = 0
    monkeypatch.setattr(Recorder, "fifo_bytes", property(lambda self: used))
    monkeypatch.setattr(Recorder, "peer_fifo_bytes", property(lambda self: 2 * 65536))

    async def script(worker: Worker, application: Recorder) -> None:
        nonlocal used
        application.max_fifo_bytes = 80 * 2 * 65536
        application.request(replace(listen("udp"), config=UdpConfig(65536, 65536)))
        where = (await application.hears(m.Listening)).local
        refused = worker.layer.sessions.refused
        with ExitStack() as undo:
            peer = Peer(undo, where)
            used = 50 * 2 * 65536
            peer.send()
            await until(lambda: refused["udp_peers"] == 1)
            used = 48 * 2 * 65536
            peer.send()
            await until(lambda: peers_of(worker) == {peer.address})

    play(script)


@pytest.fixture
def few_files() -> Iterator[int]:
    """Some more open files than there are, and no more."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    gc.collect()  # other tests of this process may have left some to it
    taken = {int(name) for name in os.listdir("/proc/self/fd")}
    # Ports may use half of them all.
    free = max(100, len(taken) + 50)
    most = next(n for n in itertools.count(100) if n - len([fd for fd in taken if fd < n]) == free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, before[1]))
    yield most
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_some_open_files_are_spared(few_files: int, protocol: Protocol) -> None:
    """For what ends a worker that has none: an application that attaches, a segment."""

    async def script(worker: Worker, application: Recorder) -> None:
        application.request(listen("tcp"))
        tcp = (await application.hears(m.Listening)).local
        with socket.create_server((HOST, 0), backlog=few_files) as server:
            for token in range(few_files):
                application.request(connect(protocol, server.getsockname(), token))
            assert (await application.hears(m.Failed)).errno == errno.EMFILE
        with ExitStack() as undo:
            for _ in range(10):
                undo.enter_context(socket.socket())
            peer = undo.enter_context(socket.create_connection(tcp))
            peer.setblocking(False)
            await trio.lowlevel.wait_readable(peer)
            assert peer.recv(1) == b""

    play(script)


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_port_is_free_at_once(protocol: Protocol) -> None:
    async def script(worker: Worker, application: Recorder) -> None:
        application.request(listen(protocol))
        listening = await application.hears(m.Listening)
        for _ in range(10):
            application.request(m.Unlisten(listening.handle))
            application.request(listen(protocol, listening.local[1]))
            again = await application.hears(m.Listening)
            assert again.local == listening.local
            listening = again
            await trio.testing.wait_all_tasks_blocked()

    play(script)


def test_a_tcp_connection_has_no_second_stream_after_its_only_one() -> None:
    """The application may ask for one before it has heard of the end."""

    async def script(worker: Worker, application: Recorder) -> None:
        with socket.create_server((HOST, 0)) as server:
            application.request(connect("tcp", server.getsockname()))
            handle = (await application.hears(m.Connected)).handle
            (context,) = worker.layer.kernel.connections()
            peer, _ = server.accept()
            assert open_stream(application, handle)
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            peer.close()
            await application.hears(m.Closed)
            with pytest.raises(OSError, match="has one stream"):
                worker.layer.kernel.open_stream(context, unidirectional=False)

    play(script)

"""What peers do is told to an application as far as it takes it: a slow one is never thrown out."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import trio
import trio.testing

import hoststack
from hoststack import Connection, QuicConfig, TlsConfig
from hoststack.api.in_trio import TrioRouter
from hoststack.api.stack import Stack
from hoststack.boundary import messages as m
from hoststack.boundary.attached_worker import AttachedWorker
from hoststack.boundary.attached_workers import AttachedWorkers
from hoststack.boundary.remote_application import _MOST_UNREAD, Limits, RemoteApplication
from hoststack.boundary.resumption import RelayedSessions
from hoststack.boundary.rings import RING_ENTRIES
from hoststack.link.memory import MemoryNetwork
from hoststack.native.session._session import ffi, lib
from hoststack.quic.session_cache import Ticket
from hoststack.session import session as session_module
from hoststack.session.session import ConnectionSession
from tests.daemon.echoing import ask
from tests.session.test_layer import Notes, Scene, play
from tests.support.attached import SEAL, both_ends, follow, inline, receive

SERVER, CLIENT = "10.0.0.1", "10.0.0.2"
URI = f"quic://{SERVER}:4433"
TLS = TlsConfig.self_signed([SERVER])
TRUSTING = TlsConfig(verify=False)
FEW = 8
CONFIG = QuicConfig(max_streams_bidi=FEW, max_streams_uni=FEW, idle_timeout_s=0)


def run(main: Any) -> None:
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


class SlowApplication:
    """One in another process whose program does nothing until `wake_up`."""

    def __init__(self, limits: Limits | None = None) -> None:
        ends, self._worker = both_ends("slow")
        self.remote = RemoteApplication("slow", ends, limits or Limits(), SEAL, inline)
        self.waiting: list[int] = []

    async def serve(self, stack: hoststack.EmbeddedStack) -> None:
        """The worker's side of it."""
        stack._worker.attach(self.remote)
        await self.remote.run()

    def listen(self) -> None:
        """All that it does before it falls asleep."""
        self._worker.request(m.Listen(1, (SERVER, 4433), TLS, ("test",), CONFIG))

    @property
    def messages(self) -> int:
        """That wait for it."""
        return len(self.remote._channel._waiting)

    async def wake_up(self, nursery: trio.Nursery) -> tuple[Stack, AttachedWorker]:
        """From now on it is as others are."""
        workers = AttachedWorkers("native")
        workers.add(0, self._worker)
        router = TrioRouter(workers)
        nursery.start_soon(follow, self._worker)
        stack = Stack(router, None, link_name="", link_reason="", engine_name="native")
        return stack, self._worker


async def flood(connection: Connection, most: int = 1000) -> int:
    """Open streams and reset them until the peer gives no credit."""
    count = 0
    with trio.move_on_after(2):
        while count < most:
            stream = await connection.open_stream()
            await stream.send_all(b"x")
            stream.reset(1)
            stream.stop_sending(1)
            count += 1
    return count


def test_an_application_that_reads_nothing_keeps_its_worker(engine: str) -> None:
    async def main() -> None:
        network = MemoryNetwork()
        async with (
            hoststack.open_stack(link=network.link(SERVER)) as server,
            hoststack.open_stack(link=network.link(CLIENT)) as client,
            trio.open_nursery() as nursery,
        ):
            slow = SlowApplication()
            nursery.start_soon(slow.serve, server)
            slow.listen()
            await trio.sleep(1)
            for _ in range(20):
                async with client.connect(URI, tls=TRUSTING, alpn=["test"]) as connection:
                    assert await flood(connection) == FEW
                    assert await flood(connection) == 0
            assert slow.remote.gone is None
            # Accepted and Closed and so on; news of streams are no messages.
            assert slow.messages <= 20 * 4
            assert slow.remote.sessions_in_use <= 1 + 20 * (1 + FEW)
            # Now it looks, and takes what has come.
            notices = Counter[str]()
            worker = slow._worker
            worker.wake_application = lambda: note(worker, notices)
            nursery.start_soon(follow, worker)
            await trio.sleep(1)
            assert notices["Accepted"] == notices["Closed"] == 20
            assert notices["streams"] == 20 * FEW
            assert slow.messages == 0
            async with client.connect(URI, tls=TRUSTING, alpn=["test"]) as connection:
                assert await flood(connection, 3 * FEW) == 3 * FEW
            await trio.sleep(1)
            assert slow.remote.sessions_in_use == 1  # the listener
            nursery.cancel_scope.cancel()

    accepted = ffi.new("struct hs_accepted *")
    sides = []

    def note(worker: AttachedWorker, notices: Counter[str]) -> None:
        for notice in worker.take_notices():
            notices[type(notice).__name__] += 1
            if isinstance(notice, m.Accepted):
                worker.signal_taken(notice.handle)
                sides.append(worker.hold(notice.handle))
        for side in sides:
            while lib.hs_end_accept(side, accepted):
                notices["streams"] += 1
                lib.hs_end_close(worker.hold_end(accepted.handle, accepted.end), True, 0)

    run(main)


def test_requests_wait_while_their_answers_are_not_read() -> None:
    async def main() -> None:
        async with (
            hoststack.open_stack(link=MemoryNetwork().link(SERVER)) as server,
            trio.open_nursery() as nursery,
        ):
            slow = SlowApplication()
            nursery.start_soon(slow.serve, server)
            for token in range(20_000):
                slow._worker.request(m.GetStatistics(token + 1, 12345))
            nursery.start_soon(slow._worker._channel.run)
            await trio.sleep(5)
            assert slow.remote.gone is None
            assert slow.messages <= 1024
            answers: list[m.Notice] = []
            slow._worker.wake_application = lambda: answers.extend(slow._worker.take_notices())
            nursery.start_soon(receive, slow._worker)
            await trio.sleep(5)
            assert len(answers) == 20_000
            nursery.cancel_scope.cancel()

    run(main)


def test_what_peers_have_done_does_not_hold_requests_back() -> None:
    """However much of that an application has yet to read."""

    async def main() -> None:
        network = MemoryNetwork()
        async with (
            hoststack.open_stack(link=network.link(SERVER)) as server,
            hoststack.open_stack(link=network.link(CLIENT)) as client,
            trio.open_nursery() as nursery,
        ):
            slow = SlowApplication()
            nursery.start_soon(slow.serve, server)
            slow.listen()
            await trio.sleep(1)
            while slow.messages <= 2 * _MOST_UNREAD:
                async with client.connect(URI, tls=TRUSTING, alpn=["test"]) as connection:
                    await flood(connection)
            held = slow.remote.sessions_in_use
            slow._worker.request(m.Listen(2, (SERVER, 4434), TLS, ("test",), CONFIG))
            await trio.sleep(1)
            assert slow.remote.sessions_in_use == held + 1
            nursery.cancel_scope.cancel()

    run(main)


# --- listeners -------------------------------------------------------------------------------


def test_connections_that_nobody_accepts_are_refused_above_a_backlog(
    engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "MOST_UNTAKEN", 3)

    async def main() -> None:
        network = MemoryNetwork()
        async with (
            hoststack.open_stack(link=network.link(SERVER)) as server,
            hoststack.open_stack(link=network.link(CLIENT)) as client,
            await server.listen(URI, tls=TLS, alpn=["test"]) as listener,
        ):
            for _ in range(3):
                async with client.connect(URI, tls=TRUSTING, alpn=["test"]):
                    pass
            for _ in range(3):
                async with client.connect(URI, tls=TRUSTING, alpn=["test"]) as refused:
                    with trio.fail_after(5):
                        info = await refused.wait_closed()
                    assert (info.code, info.is_application, info.by_peer) == (2, True, True)
            for _ in range(3):
                accepted = await listener.accept()
                await accepted.wait_closed()
            async with client.connect(URI, tls=TRUSTING, alpn=["test"]) as connection:
                other = await listener.accept()
                assert other.remote == connection.local

    run(main)


def test_tcp_connections_that_nobody_accepts_wait_in_the_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(session_module, "MOST_UNTAKEN", 3)

    async def main() -> None:
        async with (
            hoststack.open_stack(link="udp") as stack,
            await stack.listen("tcp://127.0.0.1:0") as listener,
        ):
            port = listener.local[1]
            clients = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(10)]
            sessions = stack._worker.layer.sessions
            with trio.fail_after(20):
                while sum(isinstance(s, ConnectionSession) for s in sessions) < 3:
                    await trio.lowlevel.checkpoint()
                for _ in range(20):
                    await trio.lowlevel.checkpoint()
                assert sum(isinstance(s, ConnectionSession) for s in sessions) == 3
                remotes = {(await listener.accept()).remote for _ in range(10)}
                assert remotes == {one.socket.getsockname() for one in clients}
            for one in clients:
                await one.aclose()

    trio.run(main)


# --- notices ---------------------------------------------------------------------------------


def test_a_path_that_changes_again_and_again_is_told_of_once() -> None:
    async def script(scene: Scene) -> None:
        layer, owner = scene.server.layer, scene.owner
        session = layer.sessions.get(scene.accepted.handle)
        assert isinstance(session, ConnectionSession)
        for _ in range(100):
            layer._on_path_changed(session.context, None)
            layer._on_datagrams_ready(session.context, 1200)
        scene.owner.remote.flush()
        await trio.sleep(1)
        assert [type(notice) for notice in owner.notices] == [m.PathChanged]
        owner.application.signal_noted(scene.accepted.handle)
        await trio.sleep(1)
        assert [type(notice) for notice in owner.notices] == [m.PathChanged] * 2
        owner.application.signal_noted(scene.accepted.handle)
        await trio.sleep(1)
        assert len(owner.notices) == 2

    play(script)


@pytest.mark.parametrize("kind", [lib.HS_STREAM_RESET, lib.HS_STREAM_STOPPED])
def test_what_a_peer_says_of_a_stream_is_told_once(kind: int) -> None:
    async def script(scene: Scene) -> None:
        layer = scene.server.layer
        stream = lib.hs_session_find(layer.streams._plane, scene.accepted_stream.handle)
        await trio.sleep(1)
        for code in range(100):
            lib.hs_session_report(stream, kind, code, code)
            layer.give_to_applications([])
        assert fill(scene.owner) == RING_ENTRIES - 1
        await trio.sleep(1)
        state = ffi.new("struct hs_end_state *")
        lib.hs_end_state(scene.accepted_stream.end, state)
        assert (state.rx, state.tx).count(0) == 1
        assert (state.reset_code, state.stop_code) == (0, 0)

    play(script)


def fill(application: Notes) -> int:
    """Fill the ring of its news; return how many fitted."""
    count = 0
    while lib.hs_application_push(application.remote.streams, 0, lib.HS_NEWS_READABLE):
        count += 1
    return count


def test_events_that_find_no_room_wait_once_each() -> None:
    """Those about datagrams of a connection, and about streams."""

    async def script(scene: Scene) -> None:
        layer, remote, application = scene.server.layer, scene.owner.remote, scene.owner.application
        stream = lib.hs_session_find(layer.streams._plane, scene.accepted_stream.handle)
        await trio.sleep(1)
        assert fill(scene.owner) == RING_ENTRIES
        for _ in range(1000):
            for handle in range(10):
                remote.raise_event(2 * handle, m.EventCode.READABLE)
                remote.raise_event(2 * handle, m.EventCode.WRITABLE)
            lib.hs_session_report(stream, lib.HS_STREAM_STOPPED, 7, 7)
            layer.give_to_applications([])
        assert len(remote._raised) == 20
        application.take_news()
        assert application.take_events() == [(0, m.EventCode.READABLE)] * RING_ENTRIES
        layer.give_to_applications([])
        assert not remote._raised
        assert fill(scene.owner) == RING_ENTRIES - 21
        application.take_news()
        events = application.take_events()[:20]
        assert set(events) == {(2 * handle, code) for handle in range(10) for code in m.EventCode}
        state = ffi.new("struct hs_end_state *")
        lib.hs_end_state(scene.accepted_stream.end, state)
        assert state.stop_code == 7

    play(script)


def test_a_server_that_sends_tickets_without_end_is_learned_from_for_a_while() -> None:
    learned: list[m.Known] = []
    sessions = RelayedSessions(m.Known(None, b""), SEAL, learned.append)
    for _ in range(1000):
        sessions.keep(b"session", b"", "h3", 60)
        sessions.keep_token(b"token")
    assert len(learned) == 16
    assert isinstance(learned[0].ticket, Ticket)


# --- shares ----------------------------------------------------------------------------------


def test_a_greedy_connection_leaves_sessions_and_memory_for_others(engine: str) -> None:
    config = QuicConfig(max_streams_bidi=64, idle_timeout_s=0)

    async def main() -> None:
        network = MemoryNetwork()
        async with (
            hoststack.open_stack(link=network.link(SERVER)) as server,
            hoststack.open_stack(link=network.link(CLIENT)) as client,
            trio.open_nursery() as nursery,
        ):
            slow = SlowApplication(Limits(fifo_bytes=8 << 20, sessions=200))
            nursery.start_soon(slow.serve, server)
            stack, _ = await slow.wake_up(nursery)
            listener = await stack.listen(URI, tls=TLS, alpn=["test"], config=config)

            async def echo_all() -> None:
                while True:
                    nursery.start_soon(echo_one, await listener.accept())

            async def echo_one(connection: Connection) -> None:
                async with trio.open_nursery() as echoing:
                    async for stream in connection.streams():
                        echoing.start_soon(echo_stream, stream)

            async def echo_stream(stream: Any) -> None:
                try:
                    async for chunk in stream:
                        await stream.send_all(chunk)
                    await stream.send_eof()
                except trio.BrokenResourceError:
                    pass

            nursery.start_soon(echo_all)
            for _ in range(4):
                greedy = await stack_of(client, nursery)
                for _ in range(64):
                    stream = await greedy.open_stream()
                    await stream.send_all(b"x")
            await trio.sleep(1)
            for _ in range(3):
                async with client.connect(URI, tls=TRUSTING, alpn=["test"]) as honest:
                    for _ in range(3):
                        data = bytes(100_000)
                        with trio.fail_after(20):
                            assert await ask(honest, data) == data
            nursery.cancel_scope.cancel()

    async def stack_of(client: hoststack.EmbeddedStack, nursery: trio.Nursery) -> Connection:
        connected: list[Connection] = []

        async def hold(task_status: Any) -> None:
            async with client.connect(URI, tls=TRUSTING, alpn=["test"]) as connection:
                connected.append(connection)
                task_status.started()
                await trio.sleep_forever()

        await nursery.start(lambda task_status: hold(task_status))
        return connected[0]

    run(main)


@pytest.mark.parametrize("protocol", ["quic", "cut-through"])
def test_a_stream_without_room_is_refused_and_its_connection_lives(
    engine: str, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A segment that can't be made or mapped costs one stream."""

    async def main() -> None:
        network = MemoryNetwork()
        async with (
            hoststack.open_stack(link=network.link(SERVER)) as server,
            hoststack.open_stack(link=network.link(CLIENT)) as client,
            trio.open_nursery() as nursery,
        ):
            slow = SlowApplication()
            slow.remote.scopes = frozenset({"global", "local"})
            nursery.start_soon(slow.serve, server)
            stack, _ = await slow.wake_up(nursery)
            listener = await stack.listen(URI, tls=TLS, alpn=["test"])
            own: Any = client
            if protocol == "cut-through":
                own = await nursery.start(local_client, server)
            async with own.connect(URI, tls=TRUSTING, alpn=["test"]) as connection:
                accepted = await listener.accept()
                for name in ("make_segment", "map_segment"):
                    with monkeypatch.context() as patch:
                        patch.setattr(f"hoststack.boundary.arena.{name}", no_memory)
                        patch.setattr("hoststack.boundary.fifo_pool.map_segment", no_memory)
                        with pytest.raises((OSError, trio.BrokenResourceError)):
                            await try_a_stream(connection)
                used = slow.remote.fifo_bytes
                assert used == 0
                stream = await connection.open_stream()
                await stream.send_all(b"hello")
                async for theirs in accepted.streams():
                    assert await theirs.receive_some() == b"hello"
                    break
            nursery.cancel_scope.cancel()

    async def local_client(server: hoststack.EmbeddedStack, task_status: Any) -> None:
        async with server.application("client", scopes=["local"]) as stack:
            task_status.started(stack)
            await trio.sleep_forever()

    async def try_a_stream(connection: Connection) -> None:
        stream = await connection.open_stream()
        await stream.send_all(b"hello")
        with trio.fail_after(5):
            await stream.receive_some()

    def no_memory(*arguments: object) -> None:
        raise OSError(12, "no memory")

    run(main)


def test_signals_that_the_ring_has_no_room_for_come_though_nobody_is_told_of_anything() -> None:
    """None of them has an answer that would wake the application."""

    async def main() -> None:
        async with (
            hoststack.open_stack(link=MemoryNetwork().link(SERVER)) as server,
            trio.open_nursery() as nursery,
        ):
            slow = SlowApplication()
            nursery.start_soon(slow.serve, server)
            slow.listen()
            _, worker = await slow.wake_up(nursery)
            await trio.sleep(1)
            for handle in range(3 * RING_ENTRIES):
                worker.signal_taken(handle)
            assert worker._held_up
            await trio.sleep(1)
            assert not worker._held_up
            nursery.cancel_scope.cancel()

    run(main)

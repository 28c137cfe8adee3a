"""The session layer under applications that ask for what is not theirs, or makes no sense."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import trio
import trio.testing

from hoststack import QuicConfig, TlsConfig
from hoststack.boundary import messages as m
from hoststack.boundary.attached_worker import AttachedWorker, Opened
from hoststack.boundary.remote_application import Limits, RemoteApplication
from hoststack.boundary.rings import RING_ENTRIES
from hoststack.link.memory import MemoryNetwork
from hoststack.native.session._session import ffi, lib
from hoststack.worker.engines import available_engines, engine_maker
from hoststack.worker.worker import Worker
from tests.support.attached import SEAL, both_ends, follow, inline

TLS = TlsConfig.self_signed(["localhost"])
LOCAL = ("10.0.0.1", 4433)


class Stream(NamedTuple):
    """A stream of an application."""

    handle: int
    end: Any
    """Its struct hs_end."""


class Notes:
    """An application in another process, as far as this one can tell, that writes down what it is
    told."""

    def __init__(self, name: str) -> None:
        ends, self.application = both_ends(name)
        self.remote = RemoteApplication(name, ends, Limits(), SEAL, inline)
        self.notices: list[Any] = []
        self.opened: list[Opened] = []
        self.told = trio.Event()
        self._sides: dict[int, Any] = {}
        self.application.wake_application = self._collect

    def start(self, worker: Worker, nursery: trio.Nursery) -> None:
        """Attach it."""
        worker.attach(self.remote)
        nursery.start_soon(self.remote.run)
        nursery.start_soon(follow, self.application)

    def _collect(self) -> None:
        for notice in self.application.take_notices():
            self.notices.append(notice)
            if isinstance(notice, m.Accepted | m.Connected):
                self._sides[notice.handle] = self.application.hold(notice.handle)
        self.opened += self.application.take_opened()
        self.told.set()
        self.told = trio.Event()

    async def wait_for(self, kind: type) -> Any:
        """The first notice of a kind, removed."""
        while not any(isinstance(notice, kind) for notice in self.notices):
            await self.told.wait()
        found = next(notice for notice in self.notices if isinstance(notice, kind))
        self.notices.remove(found)
        return found

    async def open(self, connection: int) -> Stream:
        """Open a stream."""
        self.application.open_stream(connection, False, 3)
        while not self.opened:
            await self.told.wait()
        opened = self.opened.pop()
        return Stream(opened.handle, opened.end)

    async def accept(self, connection: int) -> Stream:
        """Take the next stream that the peer opened."""
        accepted = ffi.new("struct hs_accepted *")
        while not lib.hs_end_accept(self._sides[connection], accepted):
            await self.told.wait()
        handle = int(accepted.handle)
        return Stream(handle, self.application.hold_end(handle, accepted.end))

    def command(self, handle: int, kind: int, argument: int = 0, word: int = 0) -> bool:
        """Write a command into the ring; return False if that has no room."""
        command = lib.hs_attached_command
        return bool(command(self.application._attached, handle, kind, argument, word))


@dataclass
class Scene:
    """Two workers, with two applications on the server's."""

    server: Worker
    owner: Notes
    intruder: Notes
    client: Notes
    listening: m.Listening
    accepted: m.Accepted
    connected: m.Connected
    accepted_stream: Stream
    stream: Stream


def play(script: Callable[[Scene], Any]) -> None:
    """Run `script` on a connection with a stream between `client` and `owner`."""

    async def main() -> None:
        network = MemoryNetwork()
        workers = []
        for host in ("10.0.0.1", "10.0.0.2"):
            link = network.link(host)
            workers.append(Worker(link, engine_maker("auto", link)))
        server, client = workers
        owner, intruder, caller = (Notes(name) for name in ("own", "intr", "call"))
        with trio.fail_after(600):
            async with trio.open_nursery() as nursery:
                for worker in workers:
                    await nursery.start(worker.run)
                owner.start(server, nursery)
                intruder.start(server, nursery)
                caller.start(client, nursery)
                owner.application.request(m.Listen(1, LOCAL, TLS, ("x",), QuicConfig()))
                listening = await owner.wait_for(m.Listening)
                trusting = TlsConfig(verify=False)
                caller.application.request(
                    m.Connect(2, LOCAL, "localhost", trusting, ("x",), QuicConfig())
                )
                connected = await caller.wait_for(m.Connected)
                accepted = await owner.wait_for(m.Accepted)
                stream = await caller.open(connected.handle)
                assert lib.hs_end_write(stream.end, b"hello", 5) == 5
                accepted_stream = await owner.accept(accepted.handle)
                scene = Scene(
                    server,
                    owner,
                    intruder,
                    caller,
                    listening,
                    accepted,
                    connected,
                    accepted_stream,
                    stream,
                )
                await script(scene)
                nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def is_alive(scene: Scene) -> None:
    """Bytes still come through the owner's stream."""
    end = scene.accepted_stream.end
    await trio.sleep(1)
    before = lib.hs_end_readable(end)
    assert lib.hs_end_write(scene.stream.end, b"more", 4) == 4
    await trio.sleep(1)
    assert lib.hs_end_readable(end) == before + 4
    assert scene.owner.remote.gone is None


def asks(make_request: Callable[[Scene], m.Request]) -> Callable[[Scene, Notes], None]:
    """A deed: to send a request."""
    return lambda scene, who: who.application.request(make_request(scene))


def commands(kind: int, which: Callable[[Scene], int]) -> Callable[[Scene, Notes], None]:
    """A deed: to write a command about what has that handle."""

    def give(scene: Scene, who: Notes) -> None:
        assert who.command(which(scene), kind, 0, 1)
        who.application.settle()

    return give


def of_stream(scene: Scene) -> int:
    return scene.accepted_stream.handle


@pytest.mark.parametrize("credentials", [TLS, TlsConfig()], ids=["with", "without"])
def test_another_applications_listener_keeps_its_certificates(credentials: TlsConfig) -> None:
    async def script(scene: Scene) -> None:
        for handle in (scene.listening.handle, scene.accepted.handle, 1 << 61):
            request = m.ReplaceTls(7, handle, credentials, ("x",))
            scene.intruder.application.request(request)
            failed = await scene.intruder.wait_for(m.Failed)
            assert (failed.token, failed.errno) == (7, errno.ENOTCONN)
        await is_alive(scene)
        assert scene.intruder.remote.gone is None
        assert not scene.owner.notices

    play(script)


@pytest.mark.parametrize(
    "do",
    [
        asks(lambda scene: m.Unlisten(scene.listening.handle)),
        asks(lambda scene: m.CloseConnection(scene.accepted.handle, 1, "not mine")),
        commands(lib.HS_COMMAND_RESET, of_stream),
        commands(lib.HS_COMMAND_STOP, of_stream),
        commands(lib.HS_COMMAND_RELEASED, of_stream),
        commands(lib.HS_COMMAND_TAKEN, of_stream),
        commands(lib.HS_COMMAND_SENT, of_stream),
        commands(lib.HS_COMMAND_CONSUMED, of_stream),
        asks(lambda _: m.Cancel(1)),
        asks(lambda _: m.Cancel(12345)),
        asks(lambda _: m.Unlisten(0)),
        asks(lambda _: m.CloseConnection((1 << 62) - 1, 0, "")),
        commands(lib.HS_COMMAND_RESET, lambda scene: scene.accepted.handle),
        commands(lib.HS_COMMAND_STOP, lambda scene: scene.listening.handle),
        commands(lib.HS_COMMAND_RESET, lambda _: (1 << 64) - 1),
        commands(lib.HS_COMMAND_NOTED, lambda scene: scene.accepted.handle),
        asks(lambda scene: m.UpdateKey(scene.accepted.handle)),
    ],
)
def test_what_is_another_applications_stays_as_it_is(do: Callable[[Scene, Notes], None]) -> None:
    async def script(scene: Scene) -> None:
        do(scene, scene.intruder)
        await is_alive(scene)
        assert scene.intruder.remote.gone is None
        assert not scene.intruder.notices
        assert not scene.owner.notices

    play(script)


@pytest.mark.parametrize(
    "ask",
    [
        lambda who, handle: who.open_stream(handle, False, 9),
        lambda who, handle: who.request(m.Migrate(9, handle, None)),
        lambda who, handle: who.request(m.GetStatistics(9, handle)),
    ],
)
def test_what_is_asked_of_another_applications_connection_is_refused(
    ask: Callable[[AttachedWorker, int], None],
) -> None:
    async def script(scene: Scene) -> None:
        for handle in (scene.accepted.handle, scene.accepted_stream.handle, 0, (1 << 62) - 1):
            ask(scene.intruder.application, handle)
            assert (await scene.intruder.wait_for(m.Failed)).token == 9
        await is_alive(scene)

    play(script)


def test_commands_that_make_no_sense_are_ignored() -> None:
    async def script(scene: Scene) -> None:
        owner = scene.owner
        known = scene.accepted.handle, scene.accepted_stream.handle
        for handle in (0, 1 << 40, 1 << 63, (1 << 64) - 1, *known):
            for kind in (0, 1, 2, 3, 4, 5, 99, 0xFFFFFFFF):
                assert owner.command(handle, kind)
        owner.application.settle()
        await is_alive(scene)

    play(script)


@pytest.mark.parametrize("kind", [lib.HS_COMMAND_RESET, lib.HS_COMMAND_STOP])
def test_a_code_that_no_frame_has_room_for_ends_the_attachment(kind: int) -> None:
    async def script(scene: Scene) -> None:
        assert scene.owner.command(scene.accepted_stream.handle, kind, 0, 1 << 62)
        await trio.sleep(1)
        assert "code" in (scene.owner.remote.gone or "")

    play(script)


def test_closing_twice_closes_once() -> None:
    async def script(scene: Scene) -> None:
        owner = scene.owner
        for code in (5, 6):
            owner.application.request(m.CloseConnection(scene.accepted.handle, code, ""))
        closed = await owner.wait_for(m.Closed)
        assert closed.info.code == 5
        assert (await scene.client.wait_for(m.Closed)).info.code == 5
        await trio.sleep(100)
        assert not owner.notices
        # Late words about what is gone.
        for kind in (lib.HS_COMMAND_RESET, lib.HS_COMMAND_SENT):
            assert owner.command(scene.accepted_stream.handle, kind)
        await trio.sleep(1)
        assert owner.remote.gone is None
        assert len(scene.server.layer.sessions) == 1  # the listener

    play(script)


def test_more_commands_than_the_ring_holds_wait() -> None:
    async def script(scene: Scene) -> None:
        owner = scene.owner
        handle = scene.accepted_stream.handle
        await trio.sleep(1)
        written = [owner.command(handle, lib.HS_COMMAND_CONSUMED) for _ in range(20_000)]
        assert sum(written) == RING_ENTRIES
        owner.application.signal_noted(scene.accepted.handle)
        assert owner.application._held_up
        await is_alive(scene)
        assert not owner.application._held_up
        assert owner.remote.take_commands() == ([], False)

    play(script)


@pytest.mark.skipif("native" not in available_engines(), reason="the native engine was not built")
def test_a_connection_is_there_until_its_last_events_were_handled() -> None:
    """A worker that was held up sees a connection begin and end in one turn."""
    from hoststack.native.quic._quic import lib as quic

    async def script(scene: Scene) -> None:
        layer = scene.server.layer
        engine: Any = layer.engine
        [connection] = engine.connections()
        number = quic.hs_connection_number(connection.pointer)
        raw = [
            SimpleNamespace(kind=kind, connection=number, info=0)
            for kind in (quic.HS_QUIC_ACCEPTED, quic.HS_QUIC_FORGOTTEN)
        ]
        events = engine._events(raw, len(raw))
        layer.sessions.remove(layer.sessions.get(connection.session))
        layer.give_to_applications(events)
        await scene.owner.wait_for(m.Accepted)
        assert connection.pointer is None
        assert connection not in layer.streams._by_context

    play(script)

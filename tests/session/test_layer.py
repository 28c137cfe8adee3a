"""The session layer under applications that ask for what is not theirs, or makes no sense."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from hoststack import QuicConfig, TlsConfig
from hoststack.boundary import messages as m
from hoststack.boundary.application import Application
from hoststack.link.memory import MemoryNetwork
from hoststack.worker.engines import available_engines, engine_maker
from hoststack.worker.worker import Worker

TLS = TlsConfig.self_signed(["localhost"])
LOCAL = ("10.0.0.1", 4433)


class ByMessages(Application):
    """An application that is told of its streams as one in another process is."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.is_remote = True


@dataclass
class Notes:
    """An application that writes down what it is told."""

    application: Application
    notices: list[Any] = field(default_factory=list)
    events: list[tuple[int, int, int]] = field(default_factory=list)
    told: trio.Event = field(default_factory=trio.Event)

    def __post_init__(self) -> None:
        self.application.wake_application = self._collect

    def _collect(self) -> None:
        self.notices += self.application.take_notices()
        self.events += self.application.take_events()
        self.told.set()
        self.told = trio.Event()

    async def wait_for(self, kind: type) -> Any:
        """The first notice of a kind, removed."""
        while not any(isinstance(notice, kind) for notice in self.notices):
            await self.told.wait()
        found = next(notice for notice in self.notices if isinstance(notice, kind))
        self.notices.remove(found)
        return found


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
    accepted_stream: m.StreamAccepted
    stream: m.StreamReady


def play(script: Callable[[Scene], Any]) -> None:
    """Run `script` on a connection with a stream between `client` and `owner`."""

    async def main() -> None:
        network = MemoryNetwork()
        workers = []
        for host in ("10.0.0.1", "10.0.0.2"):
            link = network.link(host)
            workers.append(Worker(link, engine_maker("auto", link)))
        server, client = workers
        owner, intruder, caller = (Notes(ByMessages(name)) for name in ("own", "intr", "call"))
        server.attach(owner.application)
        server.attach(intruder.application)
        client.attach(caller.application)
        with trio.fail_after(600):
            async with trio.open_nursery() as nursery:
                for worker in workers:
                    await nursery.start(worker.run)
                owner.application.request(m.Listen(1, LOCAL, TLS, ("x",), QuicConfig()))
                listening = await owner.wait_for(m.Listening)
                trusting = TlsConfig(verify=False)
                caller.application.request(
                    m.Connect(2, LOCAL, "localhost", trusting, ("x",), QuicConfig())
                )
                connected = await caller.wait_for(m.Connected)
                accepted = await owner.wait_for(m.Accepted)
                caller.application.request(m.OpenStream(3, connected.handle, False))
                stream = await caller.wait_for(m.StreamReady)
                assert stream.tx is not None
                stream.tx.write(b"hello")
                caller.application.signal_sent(stream.handle)
                accepted_stream = await owner.wait_for(m.StreamAccepted)
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
    rx, tx = scene.accepted_stream.rx, scene.stream.tx
    assert rx is not None
    assert tx is not None
    before = rx.tail
    tx.write(b"more")
    scene.client.application.signal_sent(scene.stream.handle)
    await trio.sleep(1)
    assert rx.tail == before + 4


@pytest.mark.parametrize(
    "make_request",
    [
        lambda scene: m.Unlisten(scene.listening.handle),
        lambda scene: m.CloseConnection(scene.accepted.handle, 1, "not mine"),
        lambda scene: m.ResetStream(scene.accepted_stream.handle, 1),
        lambda scene: m.StopSending(scene.accepted_stream.handle, 1),
        lambda scene: m.Cancel(1),
        lambda scene: m.Cancel(12345),
        lambda scene: m.Unlisten(-1),
        lambda scene: m.CloseConnection(1 << 63, 0, ""),
        lambda scene: m.ResetStream(scene.accepted.handle, 1),
        lambda scene: m.StopSending(scene.listening.handle, 1),
        lambda scene: m.UpdateKey(scene.accepted.handle),
    ],
)
def test_what_is_another_applications_stays_as_it_is(make_request: Callable[[Scene], Any]) -> None:
    async def script(scene: Scene) -> None:
        scene.intruder.application.request(make_request(scene))
        scene.intruder.application.signal_consumed(scene.accepted_stream.handle)
        await is_alive(scene)
        assert not scene.intruder.notices
        assert not scene.owner.notices

    play(script)


@pytest.mark.parametrize(
    "make_request",
    [
        lambda handle: m.OpenStream(9, handle, False),
        lambda handle: m.Migrate(9, handle, None),
        lambda handle: m.GetStatistics(9, handle),
    ],
)
def test_what_is_asked_of_another_applications_connection_is_refused(
    make_request: Callable[[int], Any],
) -> None:
    async def script(scene: Scene) -> None:
        for handle in (scene.accepted.handle, scene.accepted_stream.handle, -1, 1 << 63):
            scene.intruder.application.request(make_request(handle))
            assert (await scene.intruder.wait_for(m.Failed)).token == 9
        await is_alive(scene)

    play(script)


def test_signals_that_make_no_sense_are_ignored() -> None:
    async def script(scene: Scene) -> None:
        for handle in (-1, 0, 1 << 40, scene.accepted.handle, scene.accepted_stream.handle):
            for code in (0, 1, 2, 3, 4, 99, 0xFFFFFFFF):
                if handle >= 0:
                    scene.owner.application._down.push(handle, code)  # type: ignore[arg-type]
        scene.owner.application.worker.wake()
        await is_alive(scene)

    play(script)


def test_closing_twice_closes_once() -> None:
    async def script(scene: Scene) -> None:
        for code in (5, 6):
            scene.owner.application.request(m.CloseConnection(scene.accepted.handle, code, ""))
        closed = await scene.owner.wait_for(m.Closed)
        assert closed.info.code == 5
        assert (await scene.client.wait_for(m.Closed)).info.code == 5
        await trio.sleep(100)
        assert not scene.owner.notices
        # Late words about what is gone.
        scene.owner.application.request(m.ResetStream(scene.accepted_stream.handle, 1))
        scene.owner.application.signal_sent(scene.accepted_stream.handle)
        await trio.sleep(1)
        assert len(scene.server.layer.sessions) == 1  # the listener

    play(script)


def test_more_events_than_the_ring_holds_wait() -> None:
    async def script(scene: Scene) -> None:
        for _ in range(20_000):
            scene.owner.application._down.push(scene.accepted_stream.handle, m.EventCode.CONSUMED)
        scene.owner.application.worker.wake()
        await is_alive(scene)
        assert scene.owner.application.is_quiet

    play(script)


@pytest.mark.skipif("native" not in available_engines(), reason="the native engine was not built")
def test_a_connection_is_there_until_its_last_events_were_handled() -> None:
    """A worker that was held up sees a connection begin and end in one turn."""
    from hoststack.native.quic._quic import lib

    async def script(scene: Scene) -> None:
        layer = scene.server.layer
        engine: Any = layer.engine
        [connection] = engine.connections()
        number = lib.hs_connection_number(connection.pointer)
        raw = [
            SimpleNamespace(kind=kind, connection=number, info=0)
            for kind in (lib.HS_QUIC_ACCEPTED, lib.HS_QUIC_FORGOTTEN)
        ]
        events = engine._events(raw, len(raw))
        layer.sessions.remove(layer.sessions.get(connection.session))
        layer.give_to_applications(events)
        assert isinstance(scene.owner.notices[-1], m.Accepted)
        assert connection.pointer is None
        assert connection not in layer.streams._by_context

    play(script)

"""Whatever an application in another process did: when it leaves, all of it goes at once."""

from __future__ import annotations

import contextlib
import gc
import socket
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

import hoststack
from hoststack import EmbeddedStack, QuicConfig, TlsConfig
from hoststack.boundary import messages as m
from hoststack.boundary.fifo_pool import FifoPool
from hoststack.boundary.remote_application import RemoteApplication
from hoststack.link.memory import MemoryNetwork
from hoststack.quic.aioquic.connection import HostConnection
from tests.daemon.echoing import ask, echo
from tests.support.attached import attached
from tests.support.open_files import open_files

HOST, OTHER = "10.0.0.1", "10.0.0.2"
#: Nobody answers there.
SILENT = "10.0.0.3"
TLS = TlsConfig.self_signed([HOST, OTHER, "127.0.0.1"])
TRUSTING = TlsConfig(ca=TLS.certificate, sessions=hoststack.SessionCache())


class Life:
    """One life of an application, in a stack that is attached to a worker on `OTHER`."""

    def __init__(
        self, stack: hoststack.Stack, uri: str, nursery: trio.Nursery, config: QuicConfig
    ) -> None:
        self.stack = stack
        self.uri = uri
        """Of an echo server in the network."""
        self.nursery = nursery
        self._config = config
        self._held: list[Any] = []

    async def streams(self) -> None:
        connection = await self._connect(self.uri)
        assert await ask(connection, b"a") == b"a"
        await (await connection.open_stream()).send_all(b"not ended")
        (await connection.open_stream()).reset(1)
        await (await connection.open_stream(unidirectional=True)).send_all(b"one way")
        await connection.open_stream()  # nothing of it goes out

    async def finished(self) -> None:
        async with self.stack.connect(self.uri, tls=TRUSTING, alpn=["test"]) as connection:
            assert await ask(connection, b"a") == b"a"

    async def resumed(self) -> None:
        await self.finished()
        await trio.sleep(1)
        await self._connect(self.uri)

    async def datagrams(self) -> None:
        connection = await self._connect(self.uri)
        await connection.send_datagram(b"a")

    async def failed(self) -> None:
        with pytest.raises(hoststack.ConnectError):
            async with self.stack.connect("quic://10.0.0.4:1", tls=TRUSTING, alpn=["test"]):
                pass

    async def half_done(self) -> None:
        self.nursery.start_soon(self._connect, f"quic://{SILENT}:1")
        await trio.sleep(0.1)

    async def migrated(self) -> None:
        connection = await self._connect(self.uri)
        await connection.migrate()

    async def blocked(self) -> None:
        connection = await self._connect(self.uri)
        for _ in range(200):
            self.nursery.start_soon(connection.open_stream)
        await trio.sleep(0.1)

    async def listening(self) -> None:
        listener = await self._listen(f"quic://{OTHER}:5000", TLS)
        assert listener.local[1] == 5000

    async def cut_through(self) -> None:
        listener = await self._listen(f"quic://{OTHER}:5000", TLS)
        client = await self._connect(f"quic://{OTHER}:5000")
        server = await listener.accept()
        assert (await client.statistics())["cut_through"]
        for side, other in ((client, server), (server, client)):
            await side.send_datagram(b"a")
            await (await side.open_stream()).send_all(b"not ended")
            await (await side.open_stream(unidirectional=True)).send_all(b"one way")
            async for stream in other.streams():
                assert isinstance(stream, hoststack.Stream)
                break
            await side.open_stream()  # nothing of it goes out
        await trio.sleep(0.1)

    async def cut_through_untaken(self) -> None:
        await self._listen(f"quic://{OTHER}:5000", TLS)
        client = await self._connect(f"quic://{OTHER}:5000")
        await (await client.open_stream()).send_all(b"nobody takes it")

    async def cut_through_closed(self) -> None:
        listener = await self._listen(f"quic://{OTHER}:5000", TLS)
        async with self.stack.connect(
            f"quic://{OTHER}:5000", tls=TRUSTING, alpn=["test"], config=self._config
        ) as client:
            server = await listener.accept()
            await client.open_stream()
            await server.open_stream()

    async def tcp(self) -> None:
        listener = await self._listen("tcp://127.0.0.1:0")
        uri = f"tcp://127.0.0.1:{listener.local[1]}"
        clients = [await self._connect(uri, None) for _ in range(3)]
        servers = [await listener.accept() for _ in range(2)]
        await (await clients[0].open_stream()).send_all(b"a")
        async with servers[0]:
            pass
        await trio.sleep(0.1)

    async def tcp_refused(self) -> None:
        with socket.socket() as nobody:
            nobody.bind(("127.0.0.1", 0))
            with pytest.raises(hoststack.ConnectError):
                await self._connect(f"tcp://127.0.0.1:{nobody.getsockname()[1]}", None)

    async def udp(self) -> None:
        listener = await self._listen("udp://127.0.0.1:0")
        client = await self._connect(f"udp://127.0.0.1:{listener.local[1]}", None)
        await client.send_datagram(b"a")
        await listener.accept()
        await client.send_datagram(b"b")

    async def bound(self) -> None:
        reply = await self.stack._router.call(lambda token: m.Bind(token, ("127.0.0.1", 0), None))
        self._held.append(reply)

    async def _listen(self, uri: str, tls: TlsConfig | None = None) -> hoststack.Listener:
        listener = await self.stack.listen(uri, tls=tls, **self._of_quic(uri))
        self._held.append(listener)
        return listener

    def _of_quic(self, uri: str) -> dict[str, Any]:
        is_quic = uri.startswith("quic://")
        return {"alpn": ["test"], "config": self._config} if is_quic else {}

    async def _connect(self, uri: str, tls: TlsConfig | None = TRUSTING) -> Any:
        """A connection that nobody closes."""
        connecting = self.stack.connect(uri, tls=tls, **self._of_quic(uri))
        self._held.append(connecting)
        return await connecting.__aenter__()


DATAGRAMS = QuicConfig(datagram_fifo_bytes=1 << 16)
#: More than a stream may have carried whose memory its connection keeps.
MUCH = bytes(1 << 16)
#: What the transports beside the engine carry: once is enough.
_BESIDE = ("cut_through", "tcp", "udp", "bound")
#: What the aioquic engine can't do.
_NATIVE = ("migrated",)


def deeds(engine: str) -> list[str]:
    """Those of `Life` that are an engine's."""
    names = [name for name in vars(Life) if not name.startswith("_")]
    elsewhere = () if engine == "native" else _BESIDE + _NATIVE
    return [name for name in names if not name.startswith(elsewhere)]


@contextlib.contextmanager
def without_collections() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.fixture
def fifos(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many FIFOs workers have of applications in other processes."""
    pools: weakref.WeakSet[FifoPool] = weakref.WeakSet()
    hold = FifoPool._hold

    def remember(pool: FifoPool, *rest: Any) -> Any:
        pools.add(pool)
        return hold(pool, *rest)

    monkeypatch.setattr(FifoPool, "_hold", remember)
    return lambda: sum(len(pool._held) for pool in pools)


@asynccontextmanager
async def network(engine: str) -> AsyncIterator[tuple[EmbeddedStack, str]]:
    """The stack of a worker, and the URI of an echo server in the network."""
    uri = f"quic://{HOST}:4433"

    async def serve(task_status: trio.TaskStatus[hoststack.Listener]) -> None:
        await server.serve(
            uri, _echo, tls=TLS, alpn=["test"], config=DATAGRAMS, task_status=task_status
        )

    hosts = MemoryNetwork()
    hosts.link(SILENT)
    async with (
        hoststack.open_stack(link=hosts.link(HOST), engine=engine) as server,
        hoststack.open_stack(link=hosts.link(OTHER), engine=engine) as worker,
        trio.open_nursery() as nursery,
    ):
        await nursery.start(serve)
        yield worker, uri
        nursery.cancel_scope.cancel()


async def _echo(connection: hoststack.Connection) -> None:
    with contextlib.suppress(trio.BrokenResourceError):
        await echo(connection)


def run(main: Callable[[], Awaitable[None]]) -> None:
    with without_collections():
        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_worker_keeps_nothing(engine: str, fifos: Callable[[], int]) -> None:
    async def main() -> None:
        async with network(engine) as (worker, uri):
            descriptors = open_files()
            for deed in deeds(engine):
                async with (
                    attached([worker], deed, scopes={"global", "local"}) as stack,
                    trio.open_nursery() as nursery,
                ):
                    life = Life(stack, uri, nursery, DATAGRAMS)
                    await getattr(life, deed)()
                    (*_, last) = worker._worker.layer.applications
                    application = weakref.ref(last)
                    del last
                    nursery.cancel_scope.cancel()
                await trio.sleep(100)  # closed connections are forgotten
                assert (deed, application(), fifos()) == (deed, None, 0)
            # The application's own side is in this process, too, and not what this is about.
            del life, stack
            gc.collect()
            await trio.sleep(1)  # open generators end
            gc.collect()
            assert open_files() <= descriptors

    run(main)


def test_verbs_that_are_too_late_for_a_connection() -> None:
    """Events of the turn that ended it may have the session layer call these."""

    async def main() -> None:
        async with (
            network("aioquic") as (worker, uri),
            worker.connect(uri, tls=TRUSTING, alpn=["test"]),
        ):
            layer = worker._worker.layer
            engine = layer.engine
            (context,) = engine.connections()
            assert isinstance(context, HostConnection)
            context.give_up("as after a stateless reset")
            engine.close(context, 0, "")
            ended = engine.turn(trio.current_time())
            assert not engine.connections()
            engine.close(context, 0, "")
            context.allow_stream(False)
            engine.allow_stream(context, unidirectional=False)
            layer.give_to_applications(ended.events)
            engine.turn(trio.current_time())

    run(main)


def test_a_worker_keeps_nothing_of_a_stream_that_is_over(
    engine: str, fifos: Callable[[], int]
) -> None:
    async def main() -> None:
        async with (
            network(engine) as (worker, uri),
            attached([worker]) as stack,
            stack.connect(uri, tls=TRUSTING, alpn=["test"]) as connection,
        ):
            for _ in range(5):
                assert await ask(connection, b"a") == b"a"
                await trio.sleep(10)
                assert fifos() <= 2  # the next stream of the connection takes them

    run(main)


@pytest.mark.parametrize("unidirectional", [False, True])
def test_a_stream_that_is_read_to_its_end_need_not_be_closed(
    engine: str, *, unidirectional: bool
) -> None:
    """With each the application's memory for FIFOs would shrink until the connection ends."""

    async def read_all(connection: hoststack.Connection) -> None:
        async for stream in connection.streams():
            assert b"".join([chunk async for chunk in stream]) == b"a"
            if isinstance(stream, hoststack.Stream):
                await stream.send_eof()
            break

    async def main() -> None:
        async with (
            network(engine) as (worker, _),
            attached([worker], "server") as server,
            attached([worker], "client") as client,
            await server.listen(f"quic://{OTHER}:5000", tls=TLS, alpn=["test"]) as listener,
            client.connect(f"quic://{OTHER}:5000", tls=TRUSTING, alpn=["test"]) as connection,
            await listener.accept() as accepted,
        ):
            *_, one, other = worker._worker.layer.applications
            assert isinstance(one, RemoteApplication)
            assert isinstance(other, RemoteApplication)
            kept = []
            for _ in range(5):
                stream: hoststack.SendStream
                if unidirectional:
                    stream = await connection.open_stream(unidirectional=True)
                else:
                    stream = await connection.open_stream()
                await stream.send_all(b"a")
                await stream.send_eof()
                await read_all(accepted)
                if isinstance(stream, hoststack.Stream):
                    assert await stream.receive_into(bytearray(1)) == 0
                del stream
                await trio.sleep(1)
                kept.append((one.fifo_bytes, other.fifo_bytes))
            assert kept[1:] == kept[:-1]  # the next stream takes them

    run(main)


def test_what_a_collection_finds_comes_back_without_other_traffic(engine: str) -> None:
    async def main() -> None:
        async with (
            network(engine) as (worker, uri),
            attached([worker]) as stack,
            stack.connect(uri, tls=TRUSTING, alpn=["test"]) as connection,
        ):
            (*_, application) = worker._worker.layer.applications
            assert isinstance(application, RemoteApplication)
            stream = await connection.open_stream()
            assert isinstance(stream, hoststack.Stream)
            cycle: list[object] = [stream]
            cycle.append(cycle)
            await stream.send_all(MUCH)
            await stream.send_eof()
            assert b"".join([chunk async for chunk in stream]) == MUCH
            del stream, cycle
            await trio.sleep(10)
            assert application.fifo_bytes > 0
            gc.collect()
            await trio.sleep(1)
            assert application.fifo_bytes == 0

    run(main)

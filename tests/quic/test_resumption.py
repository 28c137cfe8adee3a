"""Connections that resume a session of before, and data before the handshake is complete."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

import hoststack
from hoststack import (
    Connection,
    ConnectionClosedError,
    Listener,
    QuicConfig,
    SessionCache,
    Stack,
    Stream,
    StreamResetError,
    TlsConfig,
)
from hoststack.link.memory import MemoryNetwork
from hoststack.worker import engines
from tests.support.attached import attached

SERVER, CLIENT = "10.0.0.1", "10.0.0.2"
URI = f"quic://{SERVER}:4433"
TLS = TlsConfig.self_signed(["localhost", SERVER])
EARLY = QuicConfig(early_data=True)
RTT_S = 0.2

pytestmark = pytest.mark.skipif(
    "native" not in engines.available_engines(), reason="the native engine was not built"
)


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        with trio.fail_after(600):
            await main()

    trio.run(bounded, clock=trio.testing.MockClock(autojump_threshold=0))


@pytest.fixture(autouse=True, params=["embedded", "attached"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the tests' stacks are in the worker's loop, or as if in other processes."""
    if request.param == "attached":
        monkeypatch.setitem(globals(), "stack_on", attached_on)


@asynccontextmanager
async def stack_on(
    network: MemoryNetwork, host: str, config: QuicConfig | None = None, engine: Any = "native"
) -> AsyncIterator[Stack]:
    async with hoststack.open_stack(link=network.link(host), engine=engine, config=config) as stack:
        yield stack


@asynccontextmanager
async def attached_on(
    network: MemoryNetwork, host: str, config: QuicConfig | None = None, engine: Any = "native"
) -> AsyncIterator[Stack]:
    async with (
        hoststack.open_stack(link=network.link(host), engine=engine, config=config) as stack,
        attached([stack], config=config) as through,
    ):
        monkey: Any = through
        monkey.counters = stack.counters
        yield through


@asynccontextmanager
async def server_on(
    network: MemoryNetwork,
    handler: Callable[[Connection], Awaitable[object]],
    config: QuicConfig = EARLY,
    engine: Any = "native",
) -> AsyncIterator[Stack]:
    """A server that lives as long as the block, and can be followed by another one."""
    async with stack_on(network, SERVER, config, engine) as stack, trio.open_nursery() as nursery:
        await nursery.start(partial(stack.serve, URI, handler, tls=TLS, alpn=["test"]))
        yield stack
        nursery.cancel_scope.cancel()


class Echo:
    """Sends back what comes, and notes what was known of a connection when it came."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, bool]] = []
        self.received: list[bytes] = []
        self.resets: list[int] = []

    async def __call__(self, connection: Connection) -> None:
        async with trio.open_nursery() as nursery:
            async for stream in connection.streams():
                assert isinstance(stream, Stream)
                nursery.start_soon(self._answer, connection, stream)

    async def _answer(self, connection: Connection, stream: Stream) -> None:
        async with stream:
            try:
                first = await stream.receive_some()
            except StreamResetError as error:
                self.resets.append(error.code)
                return
            self.seen.append((connection.early_data, stream.may_be_replayed))
            data = first + b"".join([chunk async for chunk in stream])
            self.received.append(data)
            await stream.send_all(data)


async def ask(connection: Connection, data: bytes) -> None:
    stream = await connection.open_stream()
    async with stream, trio.open_nursery() as nursery:

        async def send() -> None:
            await stream.send_all(data)
            await stream.send_eof()

        nursery.start_soon(send)
        assert b"".join([chunk async for chunk in stream]) == data


async def get_ticket(client: Stack, tls: TlsConfig, **options: Any) -> None:
    """A connection that leaves a ticket behind."""
    async with client.connect(URI, tls=tls, alpn=["test"], **options) as connection:
        assert not connection.is_resumed
        assert connection.early_data == "none"
        await ask(connection, b"first")


# --- resuming ---


@pytest.mark.parametrize("server_engine", ["native", "aioquic"])
@pytest.mark.parametrize("client_engine", ["native", "aioquic"])
def test_the_second_connection_resumes_the_first_ones_session(
    server_engine: str, client_engine: str
) -> None:
    async def main() -> None:
        network, cache = MemoryNetwork(), SessionCache()
        tls = TlsConfig(ca=TLS.certificate, server_name="localhost", sessions=cache)
        async with (
            # aioquic gives tickets only where it takes early data.
            server_on(network, Echo(), EARLY, server_engine),
            stack_on(network, CLIENT, engine=client_engine) as client,
        ):
            await get_ticket(client, tls)
            async with client.connect(URI, tls=tls, alpn=["test"]) as connection:
                assert connection.is_resumed
                assert connection.early_data == "none"
                await ask(connection, b"second")

    run(main)


def test_without_a_cache_nothing_is_resumed() -> None:
    async def main() -> None:
        network, tls = MemoryNetwork(), TlsConfig(verify=False)
        async with server_on(network, Echo()), stack_on(network, CLIENT, EARLY) as client:
            await get_ticket(client, tls)
            await get_ticket(client, tls)

    run(main)


def test_a_ticket_is_used_once() -> None:
    resumed: list[bool] = []

    async def main() -> None:
        network, cache = MemoryNetwork(delay_s=RTT_S / 2), SessionCache()
        tls = TlsConfig(verify=False, sessions=cache)
        async with server_on(network, Echo()), stack_on(network, CLIENT) as client:
            await get_ticket(client, tls)

            async def connect() -> None:
                async with client.connect(URI, tls=tls, alpn=["test"]) as connection:
                    resumed.append(connection.is_resumed)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(connect)
                nursery.start_soon(connect)

    run(main)
    assert sorted(resumed) == [False, True]


def test_a_ticket_of_an_unverified_server_is_not_used_where_it_must_be_verified() -> None:
    async def main() -> None:
        network, cache = MemoryNetwork(), SessionCache()
        async with server_on(network, Echo()), stack_on(network, CLIENT) as client:
            await get_ticket(client, TlsConfig(verify=False, sessions=cache))
            tls = TlsConfig(ca=TLS.certificate, server_name="localhost", sessions=cache)
            async with client.connect(URI, tls=tls, alpn=["test"]) as connection:
                assert not connection.is_resumed

    run(main)


def test_a_cache_can_be_saved_and_loaded(tmp_path: Path) -> None:
    file = tmp_path / "sessions"

    async def main() -> None:
        network = MemoryNetwork()
        async with server_on(network, Echo()), stack_on(network, CLIENT, EARLY) as client:
            cache = SessionCache.load(file)
            assert len(cache) == 0
            await get_ticket(client, TlsConfig(verify=False, sessions=cache))
            cache.save(file)
            assert file.stat().st_mode & 0o777 == 0o600
            loaded = SessionCache.load(file)
            assert len(loaded) == len(cache) == 1
            async with client.connect(
                URI, tls=TlsConfig(verify=False, sessions=loaded), alpn=["test"]
            ) as again:
                assert again.early_data == "pending"
                await ask(again, b"early")
                assert again.is_resumed

    run(main)


@pytest.mark.parametrize(
    "text",
    ["", "rubbish", "{}", "[]", '{"format": 2, "servers": {}}', '{"format": 1, "servers": [1]}',
     '{"format": 1, "servers": {"a": {"tickets": [["!", "", null, 0]], "tokens": []}}}',
     '{"format": 1, "servers": {"a": {"tickets": [[1]], "tokens": []}}}', "\xff"],
)  # fmt: skip
def test_a_file_of_rubbish_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "sessions"
    file.write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match="remove it, or name another"):
        SessionCache.load(file)


@pytest.mark.parametrize("size", [0, 1, 40, 2000])
def test_a_spoiled_ticket_makes_a_full_handshake(size: int) -> None:
    async def main() -> None:
        network, cache = MemoryNetwork(), SessionCache()
        async with server_on(network, Echo()), stack_on(network, CLIENT, EARLY) as client:
            await get_ticket(client, TlsConfig(verify=False, sessions=cache))
            for server in cache._servers.values():
                for i, ticket in enumerate(server.tickets):
                    spoiled = bytes(b ^ 0x55 for b in ticket.session)[:size]
                    server.tickets[i] = ticket._replace(session=spoiled, parameters=spoiled)
            async with client.connect(
                URI, tls=TlsConfig(verify=False, sessions=cache), alpn=["test"]
            ) as again:
                await ask(again, b"after all")
                assert not again.is_resumed

    run(main)


def test_an_expired_ticket_is_forgotten() -> None:
    async def main() -> None:
        network, cache = MemoryNetwork(), SessionCache()
        tls = TlsConfig(verify=False, sessions=cache)
        async with server_on(network, Echo()), stack_on(network, CLIENT) as client:
            await get_ticket(client, tls)
            for server in cache._servers.values():
                for i, ticket in enumerate(server.tickets):
                    server.tickets[i] = ticket._replace(expires=0.0)
            assert len(cache) == 1
            await get_ticket(client, tls)

    run(main)


def test_a_cache_forgets_the_server_that_was_used_longest_ago() -> None:
    cache, tls = SessionCache(max_servers=2), TlsConfig(verify=False)
    for port in (1, 2, 1, 3):
        cache.of("native", "name", ("10.0.0.1", port), tls, ["x"], 1).keep(b"s", b"", "x", 100)
    kept = {
        port: cache.of("native", "name", ("10.0.0.1", port), tls, ["x"], 1).take()
        for port in (1, 3)
    }
    assert None not in kept.values()
    assert cache.of("native", "name", ("10.0.0.1", 2), tls, ["x"], 1).take() is None


# --- tokens ---


def test_a_token_spares_the_next_connection_a_retry() -> None:
    async def main() -> None:
        network, cache = MemoryNetwork(), SessionCache()
        config = QuicConfig(retry_above_half_open=0)
        tls = TlsConfig(verify=False, sessions=cache)
        async with (
            server_on(network, Echo(), config) as server,
            stack_on(network, CLIENT) as client,
        ):
            await get_ticket(client, tls)
            assert server.counters().retries == 1
            async with client.connect(URI, tls=tls, alpn=["test"]) as connection:
                await ask(connection, b"again")
            assert server.counters().retries == 1
            # Without a cache there is no token either.
            await get_ticket(client, TlsConfig(verify=False))
            assert server.counters().retries == 2

    run(main)


# --- early data ---


@pytest.mark.parametrize("server_engine", ["native", "aioquic"])
@pytest.mark.parametrize("loss", [0.0, 0.2])
@pytest.mark.parametrize("size", [10, 100_000])
def test_early_data_are_there_before_the_handshake_is_complete(
    server_engine: str, loss: float, size: int
) -> None:
    async def main() -> None:
        network, cache, echo = MemoryNetwork(delay_s=RTT_S / 2, seed=5), SessionCache(), Echo()
        tls = TlsConfig(verify=False, sessions=cache)
        async with (
            server_on(network, echo, engine=server_engine),
            stack_on(network, CLIENT, EARLY) as client,
        ):
            await get_ticket(client, tls)
            network.impairments = replace(network.impairments, loss=loss)
            start = trio.current_time()
            async with client.connect(URI, tls=tls, alpn=["test"]) as connection:
                assert trio.current_time() == start
                assert connection.early_data == "pending"
                await ask(connection, bytes(size))
                if not loss and size == 10:
                    # There and back once; a full handshake needs that before the first byte goes.
                    assert trio.current_time() - start < 1.5 * RTT_S
                await connection.wait_handshake()
                assert connection.early_data == "accepted"
                assert connection.is_resumed
                await ask(connection, b"and on")
            assert echo.received == [b"first", bytes(size), b"and on"]
            assert echo.seen[0] == ("none", False)
            if not loss:
                assert echo.seen[1] == ("pending", True)
                assert echo.seen[2] == ("accepted", False)

    run(main)


@pytest.mark.parametrize("server_engine", ["native", "aioquic"])
def test_a_server_may_wait_until_nothing_is_a_replay(server_engine: str) -> None:
    states: list[str] = []

    async def handler(connection: Connection) -> None:
        states.append(connection.early_data)
        await connection.wait_handshake()
        states.append(connection.early_data)
        async for stream in connection.streams():
            assert isinstance(stream, Stream)
            assert not stream.may_be_replayed
            async with stream:
                await stream.send_all(b"".join([chunk async for chunk in stream]))

    async def main() -> None:
        network, cache = MemoryNetwork(delay_s=RTT_S / 2), SessionCache()
        tls = TlsConfig(verify=False, sessions=cache)
        async with (
            server_on(network, handler, engine=server_engine),
            stack_on(network, CLIENT, EARLY) as client,
        ):
            await get_ticket(client, tls)
            async with client.connect(URI, tls=tls, alpn=["test"]) as connection:
                await ask(connection, b"patience")

    run(main)
    assert states == ["none", "none", "pending", "accepted"]


async def ask_early(connection: Connection) -> None:
    """Several streams at once, one of them given up, before the handshake is complete."""
    assert connection.early_data == "pending"
    given_up = await connection.open_stream()
    await given_up.send_all(b"x" * 50_000)
    given_up.reset(7)
    async with trio.open_nursery() as nursery:
        for size in (5, 3000, 200_000):
            nursery.start_soon(ask, connection, bytes(range(251)) * (size // 251 + 1))
    await connection.wait_handshake()


@pytest.mark.parametrize("server_engine", ["native", "aioquic"])
@pytest.mark.parametrize(
    "change",
    [
        {"config": QuicConfig()},  # no early data any more
        {"config": QuicConfig(early_data=True, rx_fifo_bytes=4096)},  # less is allowed
        {"config": EARLY},  # another secret: a server that was started anew
    ],
)
@pytest.mark.parametrize("loss", [0.0, 0.1])
def test_what_a_server_rejects_is_sent_again(
    server_engine: str, change: dict[str, Any], loss: float
) -> None:
    async def main() -> None:
        network, cache, echo = MemoryNetwork(delay_s=RTT_S / 2, seed=3), SessionCache(), Echo()
        tls = TlsConfig(verify=False, sessions=cache)
        async with stack_on(network, CLIENT, EARLY) as client:
            async with server_on(network, echo, engine=server_engine):
                await get_ticket(client, tls)
            async with server_on(network, echo, **change, engine=server_engine):
                network.impairments = replace(network.impairments, loss=loss)
                async with client.connect(URI, tls=tls, alpn=["test"]) as connection:
                    await ask_early(connection)
                    assert connection.early_data == "rejected"
                    assert not connection.is_resumed
                    await ask(connection, b"and on")
            assert len(echo.received) == 5
            assert echo.resets == [7]
            assert all(state == ("none", False) for state in echo.seen)

    run(main)


def test_a_server_that_allows_fewer_streams_than_before_ends_the_connection() -> None:
    async def main() -> None:
        network, cache, echo = MemoryNetwork(delay_s=RTT_S / 2), SessionCache(), Echo()
        tls = TlsConfig(verify=False, sessions=cache)
        async with stack_on(network, CLIENT, EARLY) as client:
            async with server_on(network, echo):
                await get_ticket(client, tls)
            async with (
                server_on(network, echo, QuicConfig(max_streams_bidi=1)),
                client.connect(URI, tls=tls, alpn=["test"]) as connection,
            ):
                streams = [await connection.open_stream() for _ in range(3)]
                await streams[0].send_all(b"x")
                with pytest.raises(ConnectionClosedError, match="fewer streams"):
                    await streams[0].receive_some()

    run(main)


def test_a_peer_that_does_not_answer_early_data_is_told_as_closed() -> None:
    async def main() -> None:
        network, cache = MemoryNetwork(), SessionCache()
        tls = TlsConfig(verify=False, sessions=cache)
        async with stack_on(network, CLIENT, EARLY) as client, server_on(network, Echo()):
            await get_ticket(client, tls)
            network.impairments = replace(network.impairments, loss=1.0)
            async with client.connect(URI, tls=tls, alpn=["test"]) as connection:
                stream = await connection.open_stream()
                await stream.send_all(b"hello?")
                with pytest.raises(ConnectionClosedError, match="No answer"):
                    await connection.wait_handshake()
                with pytest.raises(ConnectionClosedError, match="No answer"):
                    await stream.receive_some()

    run(main)


class Recorder(MemoryNetwork):
    """Keeps the datagrams that went to the server."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.to_server: list[tuple[bytes, Any]] = []

    def _carry(self, data: bytes, path: Any) -> None:
        if path.remote.host == SERVER:
            self.to_server.append((data, path))
        super()._carry(data, path)


@pytest.mark.parametrize("server_engine", ["native", "aioquic"])
def test_a_replayed_first_flight_is_not_believed_twice(server_engine: str) -> None:
    async def main() -> None:
        network, cache, echo = Recorder(delay_s=0.01), SessionCache(), Echo()
        tls = TlsConfig(verify=False, sessions=cache)
        async with server_on(network, echo, engine=server_engine) as server:
            async with stack_on(network, CLIENT, EARLY) as client:
                await get_ticket(client, tls)
                network.to_server.clear()
                async with client.connect(URI, tls=tls, alpn=["test"]) as connection:
                    await ask(connection, b"once")
                flight = [each for each in network.to_server if each[0][0] & 0x80]
            before = server.counters().rx_datagrams
            await trio.sleep(60)  # the server forgets the connection, not the first flight
            for data, path in flight:
                network._carry(data, path)
            await trio.sleep(60)
            assert server.counters().rx_datagrams > before
        assert echo.received == [b"first", b"once"]

    run(main)


def test_early_data_need_one_application_protocol() -> None:
    async def main() -> None:
        network = MemoryNetwork()
        async with stack_on(network, SERVER, EARLY) as stack:
            with pytest.raises(ValueError, match="exactly one"):
                await stack.listen(URI, tls=TLS, alpn=["a", "b"])
            with pytest.raises(ValueError, match="exactly one"):
                async with stack.connect(URI, tls=TlsConfig(verify=False), alpn=["a", "b"]):
                    pass

    run(main)


def test_tickets_hold_on_every_worker_with_the_same_secret() -> None:
    secret = bytes(range(32))

    async def main() -> None:
        network, cache, echo = MemoryNetwork(delay_s=RTT_S / 2), SessionCache(), Echo()
        tls = TlsConfig(verify=False, sessions=cache)
        async with stack_on(network, CLIENT, EARLY) as client:
            for turn in range(2):
                async with hoststack.open_stack(
                    link=network.link(SERVER), engine="native", config=EARLY, secret=secret
                ) as stack, trio.open_nursery() as nursery:  # fmt: skip
                    listener: Listener = await nursery.start(
                        lambda stack=stack, **k: stack.serve(URI, echo, tls=TLS, alpn=["test"], **k)
                    )
                    assert listener.local[1] == 4433
                    async with client.connect(URI, tls=tls, alpn=["test"]) as connection:
                        await ask(connection, b"any worker")
                        await connection.wait_handshake()
                        assert connection.is_resumed == (turn == 1)
                        # RFC 8446 section 8.2: a ticket from before a server began to note first
                        # flights may have been used already; early data with it are refused.
                        assert connection.early_data == ("rejected" if turn else "none")
                    nursery.cancel_scope.cancel()

    run(main)

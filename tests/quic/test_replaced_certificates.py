"""Certificates that are replaced while a listener listens."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from cryptography.hazmat.primitives.asymmetric import ec

import hoststack
from hoststack import (
    Certificate,
    Connection,
    EmbeddedStack,
    Listener,
    ListenError,
    QuicConfig,
    SessionCache,
    Stack,
    TlsConfig,
)
from hoststack.link.memory import MemoryNetwork
from hoststack.quic.seam import Credentials
from hoststack.worker import engines
from tests.support.attached import attached
from tests.support.certificates import self_signed

SERVER, CLIENT = "10.0.0.1", "10.0.0.2"
URI = f"quic://{SERVER}:4433"
OLD, NEW = (TlsConfig.self_signed(["localhost"]) for _ in range(2))
ANY = TlsConfig(server_name="localhost", verify=False)
P521 = self_signed(ec.generate_private_key(ec.SECP521R1()))

needs_native = pytest.mark.skipif(
    "native" not in engines.available_engines(), reason="the native engine was not built"
)


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        with trio.fail_after(600):
            await main()

    trio.run(bounded, clock=trio.testing.MockClock(autojump_threshold=0))


@asynccontextmanager
async def stacks(
    engine: Any, is_attached: bool = False, config: QuicConfig | None = None
) -> AsyncIterator[tuple[Stack, EmbeddedStack]]:
    network = MemoryNetwork(delay_s=0.05)
    async with (
        hoststack.open_stack(link=network.link(SERVER), engine=engine, config=config) as own,
        hoststack.open_stack(link=network.link(CLIENT), config=config) as client,
    ):
        if is_attached:
            async with attached([own], config=config) as server:
                yield server, client
        else:
            yield own, client


@asynccontextmanager
async def listening(
    engine: Any, is_attached: bool = False, config: QuicConfig | None = None
) -> AsyncIterator[tuple[Listener, EmbeddedStack]]:
    """A server that listens with the old certificate, and a client."""
    async with (
        stacks(engine, is_attached, config) as (server, client),
        await server.listen(URI, tls=OLD, alpn=["test"]) as listener,
    ):
        yield listener, client


@asynccontextmanager
async def between(
    client: Stack, listener: Listener, tls: TlsConfig = ANY
) -> AsyncIterator[tuple[Connection, Connection]]:
    async with (
        client.connect(URI, tls=tls, alpn=["test"]) as connection,
        await listener.accept() as accepted,
    ):
        yield connection, accepted


async def exchange(one: Connection, other: Connection) -> None:
    """A stream there and back."""
    asking = await one.open_stream()
    await asking.send_all(b"hello")
    answering = await anext(other.streams())
    assert await answering.receive_some() == b"hello"


def is_of(connection: Connection, tls: TlsConfig) -> bool:
    return connection.peer_certificate == tls.chain[0]


each_way = pytest.mark.parametrize("is_attached", [False, True], ids=["embedded", "attached"])
each_engine = pytest.mark.parametrize("engine", engines.available_engines())


@each_engine
@each_way
def test_new_handshakes_use_the_new_certificate_and_old_connections_go_on(
    engine: str, is_attached: bool
) -> None:
    async def main() -> None:
        async with (
            listening(engine, is_attached) as (listener, client),
            between(client, listener) as (connection, accepted),
        ):
            assert is_of(connection, OLD)
            await listener.replace_tls(NEW)
            await exchange(connection, accepted)
            async with between(client, listener) as (fresh, _):
                assert is_of(fresh, NEW)
            await exchange(connection, accepted)
            assert accepted.own_certificate == OLD.chain[0]

    run(main)


@each_engine
@each_way
def test_a_handshake_that_has_begun_ends_with_the_old_certificate(
    engine: str, is_attached: bool
) -> None:
    async def main() -> None:
        async with (
            listening(engine, is_attached) as (listener, client),
            trio.open_nursery() as nursery,
        ):

            async def connect() -> None:
                async with client.connect(URI, tls=ANY, alpn=["test"]) as connection:
                    assert is_of(connection, OLD)

            nursery.start_soon(connect)
            await trio.sleep(0.07)  # its first packet has arrived, the answer has not
            await listener.replace_tls(NEW)

    run(main)


@each_engine
@each_way
@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (TlsConfig(), "a server needs a certificate"),
        (TlsConfig(*P521), "P-521"),
        (TlsConfig(OLD.certificate, OLD.key, client_certificates="required"), "certificate"),
    ],
    ids=["none", "P-521", "client certificates"],
)
def test_what_the_engine_refuses_leaves_the_old_certificate(
    engine: str, is_attached: bool, bad: TlsConfig, why: str
) -> None:
    if engine == "native" and bad.own and bad.client_certificates == "none":
        pytest.skip("the native engine has this curve")

    async def main() -> None:
        early = QuicConfig(early_data=engine == "native")
        async with listening(engine, is_attached, early) as (listener, client):
            with pytest.raises(ListenError, match=why) as refused:
                await listener.replace_tls(bad)
            assert "\n" not in str(refused.value)
            async with between(client, listener) as (connection, _):
                assert is_of(connection, OLD)

    run(main)


@needs_native
@each_way
@pytest.mark.parametrize("engine", engines.available_engines())
def test_tickets_stay_valid(engine: str, is_attached: bool) -> None:
    async def main() -> None:
        early = QuicConfig(early_data=True)
        async with listening(engine, is_attached, early) as (listener, client):
            tls = TlsConfig(verify=False, sessions=SessionCache())
            async with between(client, listener, tls) as (connection, accepted):
                await exchange(connection, accepted)
            await listener.replace_tls(NEW)
            async with client.connect(URI, tls=tls, alpn=["test"]) as connection:
                assert connection.early_data == "pending"
                stream = await connection.open_stream()
                await stream.send_all(b"early")
                async with await listener.accept() as accepted:
                    assert await (await anext(accepted.streams())).receive_some() == b"early"
                    await connection.wait_handshake()
                    await accepted.wait_handshake()
                    assert connection.early_data == accepted.early_data == "accepted"
                    assert connection.is_resumed
                    assert accepted.own_certificate is None

    run(main)


@needs_native
def test_tickets_for_other_ciphers_end_with_these() -> None:
    async def main() -> None:
        config = QuicConfig(early_data=True)
        async with listening("native", False, config) as (listener, client):
            tls = TlsConfig(verify=False, sessions=SessionCache())
            async with between(client, listener, tls) as (connection, accepted):
                await exchange(connection, accepted)
            await listener.replace_tls(
                TlsConfig(NEW.certificate, NEW.key, ciphers=("chacha20-poly1305",))
            )
            async with client.connect(URI, tls=tls, alpn=["test"]) as connection:
                await connection.wait_handshake()
                assert connection.early_data == "rejected"
                assert connection.cipher == "chacha20-poly1305"

    run(main)


@needs_native
@each_way
def test_client_certificates_and_names_may_come_with_a_replacement(is_attached: bool) -> None:
    alice = TlsConfig.self_signed(["alice"])
    several = TlsConfig(
        certificates=[Certificate(each.certificate or b"", each.key or b"") for each in (OLD, NEW)],
        ca=alice.certificate,
        client_certificates="required",
    )
    asking = TlsConfig(
        certificate=alice.certificate, key=alice.key, ca=OLD.certificate, server_name="localhost"
    )

    async def main() -> None:
        async with listening("native", is_attached) as (listener, client):
            await listener.replace_tls(several)
            async with between(client, listener, asking) as (connection, accepted):
                await accepted.wait_handshake()
                assert accepted.peer_certificates == alice.chain
                assert connection.own_certificate == alice.chain[0]

    run(main)


@each_way
def test_a_listener_that_cannot_be_told_says_so(is_attached: bool) -> None:
    async def main() -> None:
        async with stacks("aioquic", is_attached) as (server, _):
            listener = await server.listen(URI, tls=OLD, alpn=["test"])
            await listener.aclose()
            with pytest.raises(trio.ClosedResourceError):
                await listener.replace_tls(NEW)
            async with await server.listen("tcp://127.0.0.1:0") as plain:
                with pytest.raises(OSError, match="tcp"):
                    await plain.replace_tls(NEW)

    run(main)


def allocated_bytes() -> int:
    class Info(ctypes.Structure):
        _fields_ = [(f"f{i}", ctypes.c_size_t) for i in range(10)]

    library = ctypes.CDLL(None)
    library.mallinfo2.restype = Info
    return int(library.mallinfo2().f7)  # uordblks


@needs_native
def test_old_credentials_are_freed() -> None:
    from hoststack.native.quic._quic import ffi, lib
    from hoststack.quic.native.engine import NativeEngine

    async def main() -> None:
        async with (
            listening("native") as (listener, client),
            between(client, listener) as (connection, accepted),
        ):
            engine = listener._router._application.worker.layer.engine  # type: ignore[attr-defined]
            assert isinstance(engine, NativeEngine)
            context = next(iter(engine._listeners.values()))
            error = ffi.new("char[]", 256)

            def replace(times: int) -> None:
                for _ in range(times):
                    # Without a certificate: loading that is not what counts here.
                    made = lib.hs_tls_new(
                        1, ffi.NULL, ffi.NULL, ffi.NULL, 0, b"\4test", 5, error, 256
                    )
                    assert not lib.hs_tls_add_name(made, b"a.example", 0)
                    held = ffi.gc(made, lib.hs_tls_free)
                    engine.replace_tls(context, Credentials(OLD, ["test"], held))

            replace(100)
            gc.collect()
            before = allocated_bytes()
            replace(10_000)
            gc.collect()
            assert allocated_bytes() - before < 64 << 10
            await exchange(connection, accepted)

    run(main)

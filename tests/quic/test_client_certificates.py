"""Servers that ask for certificates, and clients that show them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from cryptography import x509

import hoststack
from hoststack import (
    ConnectError,
    Connection,
    ConnectionClosedError,
    Listener,
    ListenError,
    QuicConfig,
    SessionCache,
    Stack,
    TlsConfig,
    TlsConfigError,
)
from hoststack.link.memory import MemoryNetwork
from hoststack.worker import engines

SERVER, CLIENT = "10.0.0.1", "10.0.0.2"
URI = f"quic://{SERVER}:4433"
SERVERS = TlsConfig.self_signed(["localhost"])
ALICE = TlsConfig.self_signed(["alice"])
MALLORY = TlsConfig.self_signed(["mallory"])
#: TLS alerts as QUIC carries them (RFC 9001 section 4.8).
UNKNOWN_CA, BAD_CERTIFICATE, CERTIFICATE_REQUIRED = 0x130, 0x12A, 0x174

pytestmark = pytest.mark.skipif(
    "native" not in engines.available_engines(), reason="the native engine was not built"
)


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        with trio.fail_after(600):
            await main()

    trio.run(bounded, clock=trio.testing.MockClock(autojump_threshold=0))


def server_tls(asks: Any, ca: TlsConfig | None = ALICE, **options: Any) -> TlsConfig:
    return TlsConfig(
        certificate=SERVERS.certificate,
        key=SERVERS.key,
        ca=None if ca is None else ca.certificate,
        client_certificates=asks,
        **options,
    )


def client_tls(own: TlsConfig | None, **options: Any) -> TlsConfig:
    options = {"ca": SERVERS.certificate, "server_name": "localhost", **options}
    if own is None:
        return TlsConfig(**options)
    return TlsConfig(certificate=own.certificate, key=own.key, **options)


@asynccontextmanager
async def stacks(engine: Any = "native") -> AsyncIterator[tuple[Stack, Stack]]:
    network = MemoryNetwork(delay_s=0.05)
    async with (
        hoststack.open_stack(link=network.link(SERVER), engine="native") as server,
        hoststack.open_stack(link=network.link(CLIENT), engine=engine) as client,
    ):
        yield server, client


def names(certificate: x509.Certificate | None) -> str | None:
    if certificate is None:
        return None
    return str(certificate.subject.rfc4514_string())


async def use(client: Connection, listener: Listener) -> Connection:
    """The connection as the server has it, after a stream has gone through it."""
    accepted = await listener.accept()
    stream = await client.open_stream(unidirectional=True)
    await stream.send_all(b"x")
    async for theirs in accepted.streams():
        assert await theirs.receive_some() == b"x"
        break
    return accepted


@pytest.mark.parametrize("engine", ["native", "aioquic"])
@pytest.mark.parametrize(
    ("asks", "own"),
    [("none", ALICE), ("none", None), ("optional", ALICE), ("optional", None), ("required", ALICE)],
)
def test_a_server_learns_who_its_client_is(engine: str, asks: str, own: TlsConfig | None) -> None:
    async def main() -> None:
        async with stacks(engine) as (server, client):
            listener = await server.listen(URI, tls=server_tls(asks), alpn=["test"])
            async with client.connect(URI, tls=client_tls(own), alpn=["test"]) as connection:
                assert names(connection.peer_certificate) == "CN=localhost"
                accepted = await use(connection, listener)
                expected = "CN=alice" if own is ALICE and asks != "none" else None
                assert names(accepted.peer_certificate) == expected

    run(main)


async def refused(client: Stack, tls: TlsConfig) -> tuple[int, str]:
    """The code and the reason with which a connection ends; also one that seemed open.

    In TLS 1.3 a client is done before the server has seen its certificate.
    """
    try:
        async with client.connect(URI, tls=tls, alpn=["test"]) as connection:
            info = await connection.wait_closed()
            return info.code, info.reason
    except ConnectError as error:
        return 0, str(error)


@pytest.mark.parametrize("engine", ["native", "aioquic"])
def test_a_client_without_a_certificate_is_refused(engine: str) -> None:
    async def main() -> None:
        async with stacks(engine) as (server, client):
            await server.listen(URI, tls=server_tls("required"), alpn=["test"])
            code, reason = await refused(client, client_tls(None))
            assert code == CERTIFICATE_REQUIRED
            assert reason == "The server requires a client certificate"
            assert server.counters().accepted == 0
            assert server.counters().half_open == 0

    run(main)


@pytest.mark.parametrize("engine", ["native", "aioquic"])
@pytest.mark.parametrize("asks", ["optional", "required"])
def test_a_certificate_of_an_unknown_authority_is_refused(engine: str, asks: str) -> None:
    async def main() -> None:
        async with stacks(engine) as (server, client):
            await server.listen(URI, tls=server_tls(asks), alpn=["test"])
            code, reason = await refused(client, client_tls(MALLORY))
            assert code in (UNKNOWN_CA, BAD_CERTIFICATE)
            assert "NOT trusted" in reason
            assert server.counters().accepted == 0

    run(main)


def test_without_verification_every_certificate_does() -> None:
    async def main() -> None:
        async with stacks() as (server, client):
            listener = await server.listen(
                URI, tls=server_tls("required", verify=False), alpn=["test"]
            )
            async with client.connect(URI, tls=client_tls(MALLORY), alpn=["test"]) as connection:
                accepted = await use(connection, listener)
                assert names(accepted.peer_certificate) == "CN=mallory"

    run(main)


def test_the_systems_authorities_are_those_of_a_server_that_names_none() -> None:
    async def main() -> None:
        async with stacks() as (server, client):
            await server.listen(URI, tls=server_tls("required", ca=None), alpn=["test"])
            _, reason = await refused(client, client_tls(ALICE))
            assert "NOT trusted" in reason

    run(main)


def test_a_server_that_asks_gives_no_tickets() -> None:
    """A ticket does not say whose certificate was shown."""

    async def main() -> None:
        cache = SessionCache()
        tls = client_tls(ALICE, sessions=cache)
        async with stacks() as (server, client):
            listener = await server.listen(URI, tls=server_tls("required"), alpn=["test"])
            for _ in range(2):
                async with client.connect(URI, tls=tls, alpn=["test"]) as connection:
                    accepted = await use(connection, listener)
                    assert names(accepted.peer_certificate) == "CN=alice"
                    assert not connection.is_resumed

    run(main)


def test_a_ticket_of_a_server_that_does_not_ask_opens_none_that_asks() -> None:
    async def main() -> None:
        cache = SessionCache()
        tls = client_tls(ALICE, sessions=cache)
        async with stacks() as (server, client):
            async with (
                await server.listen(URI, tls=server_tls("none"), alpn=["test"]) as listener,
                client.connect(URI, tls=tls, alpn=["test"]) as connection,
            ):
                await use(connection, listener)
            assert len(cache) == 1
            async with (
                await server.listen(URI, tls=server_tls("required"), alpn=["test"]) as listener,
                client.connect(URI, tls=tls, alpn=["test"]) as connection,
            ):
                accepted = await use(connection, listener)
                assert not connection.is_resumed
                assert names(accepted.peer_certificate) == "CN=alice"

    run(main)


def test_what_can_not_be_had_is_said() -> None:
    async def main() -> None:
        network = MemoryNetwork()
        async with (
            hoststack.open_stack(link=network.link(SERVER), engine="aioquic") as other,
            hoststack.open_stack(link=network.link(CLIENT), engine="native") as stack,
        ):
            with pytest.raises(ListenError, match="use the native one"):
                await other.listen(URI, tls=server_tls("required"), alpn=["test"])
            with pytest.raises(ListenError, match="leave out"):
                await stack.listen(
                    f"quic://{CLIENT}:1",
                    tls=server_tls("optional"),
                    alpn=["test"],
                    config=QuicConfig(early_data=True),
                )

    run(main)
    with pytest.raises(TlsConfigError, match="none, optional or required"):
        TlsConfig(client_certificates="perhaps")  # type: ignore[arg-type]


def test_a_client_sees_why_an_open_connection_was_refused() -> None:
    async def main() -> None:
        async with stacks() as (server, client):
            await server.listen(URI, tls=server_tls("required"), alpn=["test"])
            async with client.connect(URI, tls=client_tls(None), alpn=["test"]) as connection:
                stream = await connection.open_stream()
                with pytest.raises(ConnectionClosedError, match="requires a client certificate"):
                    await stream.receive_some()

    run(main)

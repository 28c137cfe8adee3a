"""What packets are encrypted with: named by either side, told to both."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

import hoststack
from hoststack import (
    ConnectError,
    Connection,
    QuicConfig,
    SessionCache,
    Stack,
    TlsConfig,
    TlsConfigError,
)
from hoststack.link.memory import MemoryNetwork
from hoststack.quic.tls import Cipher
from hoststack.worker import engines
from tests.support.streams import exchange

SERVER, CLIENT = "10.0.0.1", "10.0.0.2"
URI = f"quic://{SERVER}:4433"
SERVERS = TlsConfig.self_signed(["localhost"])
AES_128: Cipher = "aes-128-gcm"
AES_256: Cipher = "aes-256-gcm"
CHACHA20: Cipher = "chacha20-poly1305"
ENGINES = engines.available_engines()
PAIRS = list(itertools.product(ENGINES, ENGINES))
DATA = bytes(range(251)) * 4000

needs_native = pytest.mark.skipif("native" not in ENGINES, reason="the native engine was not built")


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        with trio.fail_after(600):
            await main()

    trio.run(bounded, clock=trio.testing.MockClock(autojump_threshold=0))


def server_tls(*ciphers: Cipher) -> TlsConfig:
    return TlsConfig(certificate=SERVERS.certificate, key=SERVERS.key, ciphers=ciphers)


def client_tls(*ciphers: Cipher, **options: Any) -> TlsConfig:
    return TlsConfig(ca=SERVERS.certificate, server_name="localhost", ciphers=ciphers, **options)


@asynccontextmanager
async def stacks(
    server: Any = "native",
    client: Any = "native",
    config: QuicConfig | None = None,
    **impairments: Any,
) -> AsyncIterator[tuple[Stack, Stack]]:
    network = MemoryNetwork(delay_s=0.005, **impairments)
    async with (
        hoststack.open_stack(link=network.link(SERVER), engine=server, config=config) as ours,
        hoststack.open_stack(link=network.link(CLIENT), engine=client, config=config) as theirs,
    ):
        yield ours, theirs


@asynccontextmanager
async def connected(
    server: Stack, client: Stack, server_tls: TlsConfig, client_tls: TlsConfig
) -> AsyncIterator[tuple[Connection, Connection]]:
    """Both ends of a connection, the client's first."""
    async with (
        await server.listen(URI, tls=server_tls, alpn=["test"]) as listener,
        client.connect(URI, tls=client_tls, alpn=["test"]) as theirs,
        await listener.accept() as ours,
    ):
        yield theirs, ours


@pytest.mark.parametrize("cipher", [AES_128, AES_256, CHACHA20])
@pytest.mark.parametrize(("server", "client"), PAIRS)
def test_the_only_cipher_is_taken(server: str, client: str, cipher: Cipher) -> None:
    async def main() -> None:
        async with (
            stacks(server, client) as (ours, theirs),
            connected(ours, theirs, server_tls(), client_tls(cipher)) as (connection, accepted),
        ):
            assert connection.cipher == accepted.cipher == cipher
            await exchange(connection, accepted, DATA)

    run(main)


@pytest.mark.parametrize(("server", "client"), PAIRS)
def test_the_servers_order_decides(server: str, client: str) -> None:
    async def main() -> None:
        for order in [(CHACHA20, AES_256), (AES_256, CHACHA20)]:
            async with (
                stacks(server, client) as (ours, theirs),
                connected(
                    ours, theirs, server_tls(*order), client_tls(AES_128, CHACHA20, AES_256)
                ) as (connection, accepted),
            ):
                assert connection.cipher == accepted.cipher == order[0]

    run(main)


@pytest.mark.parametrize(("server", "client"), PAIRS)
def test_without_a_common_cipher_there_is_no_connection(server: str, client: str) -> None:
    async def main() -> None:
        async with stacks(server, client) as (ours, theirs):
            await ours.listen(URI, tls=server_tls(AES_256), alpn=["test"])
            with pytest.raises(ConnectError):
                async with theirs.connect(URI, tls=client_tls(CHACHA20), alpn=["test"]):
                    pass
            assert ours.counters().accepted == 0

    run(main)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(("server", "client"), PAIRS)
def test_chacha20_goes_through_many_keys(server: str, client: str, version: int) -> None:
    """Both sides begin updates: the keys come from the version's own labels (RFC 9369)."""

    async def main() -> None:
        config = QuicConfig(packets_per_key=200, version=version)
        async with (
            stacks(server, client, config, seed=5, loss=0.02) as (ours, theirs),
            connected(ours, theirs, server_tls(), client_tls(CHACHA20)) as (connection, accepted),
        ):
            for _ in range(2):
                await exchange(connection, accepted, DATA)
            assert theirs.counters().key_updates + ours.counters().key_updates >= 2

    run(main)


@needs_native
def test_what_was_forged_is_dropped() -> None:
    async def main() -> None:
        async with (
            stacks(seed=7, corrupt=0.05) as (ours, theirs),
            connected(ours, theirs, server_tls(), client_tls(CHACHA20)) as (connection, accepted),
        ):
            await exchange(connection, accepted, DATA)

    run(main)


@needs_native
@pytest.mark.parametrize(
    ("before", "after"), [((AES_128,), (CHACHA20,)), ((CHACHA20,), (AES_128,)), ((CHACHA20,),) * 2]
)
def test_early_data_are_encrypted_as_the_session_was(
    before: tuple[Cipher, ...], after: tuple[Cipher, ...]
) -> None:
    """With other ciphers, of the client's or of the server's, the handshake is a full one."""

    async def main() -> None:
        for changes in ("client", "server"):
            cache, early = SessionCache(), QuicConfig(early_data=True)
            async with stacks(config=early) as (ours, theirs):
                for turn, ciphers in enumerate((before, after)):
                    named = server_tls(*ciphers) if changes == "server" else server_tls()
                    tls = client_tls(*(ciphers if changes == "client" else ()), sessions=cache)
                    async with connected(ours, theirs, named, tls) as (connection, accepted):
                        await exchange(connection, accepted, DATA)
                        assert connection.cipher == accepted.cipher == ciphers[0]
                        is_again = turn == 1 and before == after
                        assert connection.is_resumed == is_again
                        states = ["accepted"] if is_again else ["none", "rejected"]
                        assert connection.early_data in states

    run(main)


@pytest.mark.parametrize("ciphers", [("rot-13",), (AES_128, AES_128)])
def test_what_can_not_be_had_is_said(ciphers: Any) -> None:
    with pytest.raises(TlsConfigError, match="each once"):
        TlsConfig(ciphers=ciphers)

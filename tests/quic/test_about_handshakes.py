"""What a connection tells of its handshake: names, certificates, cipher and version."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing

import hoststack
from hoststack import TlsConfig
from hoststack.link.memory import MemoryNetwork
from hoststack.quic.certificate import MAX_CHAIN_BYTES, within_chain
from hoststack.worker import engines
from tests.support.attached import attached
from tests.support.certificates import chain_pem, issued, key_pem

SERVER, CLIENT = "10.0.0.1", "10.0.0.2"
URI = f"quic://{SERVER}:4433"
TLS = TlsConfig.self_signed(["localhost"])

each_engine = pytest.mark.parametrize("engine", engines.available_engines())
each_way = pytest.mark.parametrize("is_attached", [False, True], ids=["embedded", "attached"])


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        with trio.fail_after(600):
            await main()

    trio.run(bounded, clock=trio.testing.MockClock(autojump_threshold=0))


def meet(
    engine: Any,
    is_attached: bool,
    server_tls: TlsConfig,
    client_tls: TlsConfig,
    look: Callable[[hoststack.Connection, hoststack.Connection], None],
) -> None:
    """Look at both ends of a connection, the client's first."""

    async def main() -> None:
        network = MemoryNetwork()
        async with (
            hoststack.open_stack(link=network.link(SERVER), engine=engine) as own,
            hoststack.open_stack(link=network.link(CLIENT), engine=engine) as near,
            attached([own]) as elsewhere,
            attached([near]) as client_elsewhere,
        ):
            server, client = (elsewhere, client_elsewhere) if is_attached else (own, near)
            async with (
                await server.listen(URI, tls=server_tls, alpn=["test"]) as listener,
                client.connect(URI, tls=client_tls, alpn=["test"]) as connection,
                await listener.accept() as accepted,
            ):
                look(connection, accepted)

    run(main)


@each_engine
@each_way
def test_both_ends_tell_of_the_handshake(engine: str, is_attached: bool) -> None:
    def look(connection: hoststack.Connection, accepted: hoststack.Connection) -> None:
        for each in (connection, accepted):
            assert each.tls_version == 0x0304
            assert each.cipher == "aes-256-gcm"
            assert each.cipher_suite == 0x1302
            assert each.server_name == "localhost"
        assert connection.peer_certificates == TLS.chain
        assert connection.peer_certificate == accepted.own_certificate == TLS.chain[0]
        assert accepted.peer_certificates == ()
        assert connection.own_certificate is accepted.peer_certificate is None

    server = TlsConfig(TLS.certificate, TLS.key, ciphers=("aes-256-gcm",))
    client = TlsConfig(ca=TLS.certificate, server_name="localhost")
    meet(engine, is_attached, server, client, look)


@each_engine
@pytest.mark.parametrize(
    ("asked", "seen"),
    [
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("LOCALHOST", "localhost"),
        (SERVER, None),
    ],
)
def test_the_name_is_told_in_lower_case(engine: str, asked: str, seen: str | None) -> None:
    def look(connection: hoststack.Connection, accepted: hoststack.Connection) -> None:
        assert accepted.server_name == seen

    meet(engine, False, TLS, TlsConfig(server_name=asked, verify=False), look)


needs_native = pytest.mark.skipif(
    "native" not in engines.available_engines(), reason="aioquic requests no client certificates"
)


@needs_native
@each_way
@pytest.mark.parametrize(("filling", "told"), [(10, 2), (20_000, 1), (40_000, 0)])
def test_a_clients_chain_is_told_as_far_as_there_is_room(
    is_attached: bool, filling: int, told: int
) -> None:
    """A client may send up to 64 KiB, more than a message to an application may have."""
    root = issued("root")
    if filling == 40_000:
        middle, leaf = issued("middle", root), issued("leaf", root, filling)
        chain = [leaf[0]]
    else:
        middle = issued("middle", root, filling)
        leaf = issued("leaf", middle, filling)
        chain = [leaf[0], middle[0]]
    alice = TlsConfig(
        certificate=chain_pem(*chain),
        key=key_pem(leaf[1]),
        ca=TLS.certificate,
        server_name="localhost",
    )
    server = TlsConfig(
        TLS.certificate, TLS.key, ca=chain_pem(root[0]), client_certificates="required"
    )

    def look(connection: hoststack.Connection, accepted: hoststack.Connection) -> None:
        assert accepted.peer_certificates == tuple(chain[:told])

    if is_attached and filling == 40_000:
        pytest.skip("the client's own process sends its certificate to its worker as PEM")
    meet("native", is_attached, server, alice, look)


def test_a_chain_is_cut_where_it_is_too_long() -> None:
    half = bytes(MAX_CHAIN_BYTES // 2)
    assert within_chain([half, half]) == (half, half)
    assert within_chain([half, half, b"x"]) == (half, half)
    assert within_chain([bytes(MAX_CHAIN_BYTES + 1), b"x"]) == ()
    assert within_chain([]) == ()

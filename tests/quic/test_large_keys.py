"""Certificates with keys that take a worker longer than all else that it does."""

from __future__ import annotations

import datetime
import secrets
from typing import Any

import pytest
import trio
import trio.testing
from aioquic import tls as aioquic_tls
from aioquic.quic.connection import QuicConnection
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

import hoststack
from hoststack import TlsConfig
from hoststack.link.memory import MemoryNetwork
from hoststack.worker.engines import available_engines
from tests.quic.test_stock_aioquic import (
    OURS,
    PORT,
    STOCK,
    TLS,
    client_configuration,
    server_configuration,
)
from tests.support.stock_peer import StockPeer

pytestmark = pytest.mark.skipif(
    "native" not in available_engines(), reason="the native engine was not built"
)
URI = f"quic://{STOCK}:{PORT}"


class FalseKey:
    """A key of that size; its signatures are none, but as long."""

    def __init__(self, bits: int, exponent_bits: int) -> None:
        modulus = secrets.randbits(bits) | 3 << bits - 2 | 1
        exponent = secrets.randbits(exponent_bits - 1) | 1 << exponent_bits - 2 | 1
        self._public = rsa.RSAPublicNumbers(exponent, modulus).public_key()
        self._bytes = bits // 8

    def sign(self, *_: object) -> bytes:
        return b"\1" * self._bytes

    def certificate(self) -> x509.Certificate:
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self._public)
            .serial_number(1)
            .not_valid_before(now - datetime.timedelta(1))
            .not_valid_after(now + datetime.timedelta(1))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
            .sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
        )


LARGE = [(16384, 17), (4096, 4096)]


@pytest.fixture(autouse=True)
def any_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """aioquic signs with a FalseKey as well."""

    def algorithms(_: aioquic_tls.Context) -> list[int]:
        return [aioquic_tls.SignatureAlgorithm.RSA_PSS_RSAE_SHA256]

    monkeypatch.setattr(aioquic_tls.Context, "_signature_algorithms_for_private_key", algorithms)


def run(main: Any) -> None:
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize(("bits", "exponent_bits"), LARGE)
def test_a_servers_key_is_not_used_where_it_is_too_large(
    bits: int, exponent_bits: int, verify: bool
) -> None:
    async def main() -> None:
        network = MemoryNetwork()
        key = FalseKey(bits, exponent_bits)
        configuration = server_configuration()
        configuration.certificate = key.certificate()
        configuration.private_key = key  # type: ignore[assignment]
        peer = StockPeer(network.link(STOCK), PORT)
        peer.accept(configuration)
        async with (
            hoststack.open_stack(link=network.link(OURS), engine="native") as stack,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(peer.run)
            with pytest.raises(hoststack.ConnectError, match="certificates is too large"):
                await stack.open_connection(URI, tls=TlsConfig(verify=verify), alpn=["test"])
            nursery.cancel_scope.cancel()

    run(main)


def test_nor_is_a_clients() -> None:
    async def main() -> None:
        network = MemoryNetwork()
        key = FalseKey(*LARGE[0])
        configuration = client_configuration()
        peer = StockPeer(network.link(STOCK))

        def prepare(quic: QuicConnection) -> None:
            quic._configuration.certificate = key.certificate()
            quic._configuration.private_key = key  # type: ignore[assignment]

        peer.prepare = prepare
        asking = TlsConfig(
            certificate=TLS.certificate,
            key=TLS.key,
            client_certificates="optional",
            verify=False,
        )
        async with (
            hoststack.open_stack(link=network.link(OURS), engine="native") as stack,
            trio.open_nursery() as nursery,
            await stack.listen(f"quic://{OURS}:{PORT}", tls=asking, alpn=["test"]),
        ):
            await peer.connect(configuration, OURS, PORT)
            nursery.start_soon(peer.run)
            await trio.sleep(5)
            assert peer.quic is not None
            assert peer.quic._close_event is not None
            assert "certificates is too large" in peer.quic._close_event.reason_phrase
            nursery.cancel_scope.cancel()

    run(main)


@pytest.mark.parametrize(("bits", "exponent_bits"), LARGE)
def test_such_a_ca_is_not_trusted(bits: int, exponent_bits: int) -> None:
    async def main() -> None:
        network = MemoryNetwork()
        network.link(STOCK)
        pem = FalseKey(bits, exponent_bits).certificate().public_bytes(serialization.Encoding.PEM)
        async with hoststack.open_stack(link=network.link(OURS), engine="native") as stack:
            with pytest.raises(hoststack.ConnectError, match="can't use the trusted CAs"):
                await stack.open_connection(URI, tls=TlsConfig(ca=pem), alpn=["test"])

    run(main)

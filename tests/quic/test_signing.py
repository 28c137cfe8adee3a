"""Signatures with this side's keys: which certificates and keys C loads, and who can check them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

import hoststack
from hoststack import TlsConfig
from hoststack.link.memory import MemoryNetwork
from hoststack.quic.certificate import Certificate
from hoststack.worker.engines import available_engines
from tests.support.certificates import self_signed

SERVER, CLIENT = "10.0.0.1", "10.0.0.2"
URI = f"quic://{SERVER}:4433"
#: Two of each kind.
KEYS: dict[str, list[Any]] = {
    "rsa": [rsa.generate_private_key(65537, 2048) for _ in range(2)],
    "ecdsa": [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)],
    "ed25519": [ed25519.Ed25519PrivateKey.generate() for _ in range(2)],
}
PAIRS = {kind: [self_signed(key) for key in keys] for kind, keys in KEYS.items()}

pytestmark = pytest.mark.skipif(
    "native" not in available_engines(), reason="the native engine was not built"
)


def load(certificate: bytes, key: bytes) -> str:
    """What the C core says of a server's certificate and key in PEM; empty if it can use them."""
    from hoststack.native.quic._quic import ffi, lib

    error = ffi.new("char[]", 256)
    made = lib.hs_tls_new(True, certificate, key, ffi.NULL, False, b"\1x", 2, error, 256)
    if made:
        lib.hs_tls_free(made)
    return bytes(ffi.string(error)).decode()


@pytest.mark.parametrize("kind", list(PAIRS))
def test_a_certificate_is_loaded_with_its_own_key_alone(kind: str) -> None:
    (certificate, key), (_, other) = PAIRS[kind]
    assert load(certificate, key) == ""
    if kind != "ed25519":  # which GnuTLS does not compare; TlsConfig has
        assert "certificate and key" in load(certificate, other)
    for another in PAIRS:
        if another != kind:
            assert "certificate and key" in load(certificate, PAIRS[another][0][1])


@pytest.mark.parametrize(
    "change",
    [
        lambda certificate, key: (b"", key),
        lambda certificate, key: (certificate, b""),
        lambda certificate, key: (key, certificate),
        lambda certificate, key: (certificate[: len(certificate) // 2], key),
        lambda certificate, key: (certificate, key[: len(key) // 2]),
    ],
    ids=["no certificate", "no key", "exchanged", "half a certificate", "half a key"],
)
def test_what_is_no_certificate_or_no_key_is_refused(
    change: Callable[[bytes, bytes], tuple[bytes, bytes]],
) -> None:
    assert "certificate and key" in load(*change(*PAIRS["rsa"][0]))


def test_a_file_of_many_certificates_begins_with_the_key_s_own() -> None:
    others = b"".join(self_signed(KEYS["ecdsa"][1])[0] for _ in range(20))
    certificate, key = PAIRS["ecdsa"][0]
    assert load(certificate + others, key) == ""
    assert "certificate and key" in load(others + certificate, key)


@pytest.mark.parametrize("name", ["SHA256", "SHA384", "SHA512"])
def test_a_client_checks_rsa_signatures_of_each_hash(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aioquic import tls as aioquic_tls

    init = aioquic_tls.Context.__init__

    def limited(self: Any, *args: Any, **options: Any) -> None:
        init(self, *args, **options)
        self._signature_algorithms = [
            getattr(aioquic_tls.SignatureAlgorithm, f"RSA_PSS_RSAE_{name}")
        ]

    monkeypatch.setattr(aioquic_tls.Context, "__init__", limited)
    hello_to("aioquic", TlsConfig(verify=False), TlsConfig(certificates=[pair("rsa")]))


@pytest.mark.parametrize("kind", list(PAIRS))
def test_a_server_checks_a_client_s_signature(kind: str) -> None:
    """The server does not verify the certificate: what is checked is the proof of its key."""
    own = TlsConfig(certificates=[pair(kind)], verify=False)
    asking = TlsConfig(certificates=[pair("ecdsa")], client_certificates="required", verify=False)
    hello_to("native", own, asking)


def pair(kind: str) -> Certificate:
    return Certificate(*PAIRS[kind][0])


def hello_to(engine: Any, client_tls: TlsConfig, server_tls: TlsConfig) -> None:
    """Send a byte from a client of an engine to a server of the native one."""

    async def main() -> None:
        network = MemoryNetwork()
        async with (
            hoststack.open_stack(link=network.link(SERVER), engine="native") as server,
            hoststack.open_stack(link=network.link(CLIENT), engine=engine) as client,
            await server.listen(URI, tls=server_tls, alpn=["test"]) as listener,
            client.connect(URI, tls=client_tls, alpn=["test"]) as connection,
            await listener.accept() as accepted,
        ):
            stream = await connection.open_stream(unidirectional=True)
            await stream.send_all(b"x")
            async for theirs in accepted.streams():
                assert await theirs.receive_some() == b"x"
                break

    run(main)


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        with trio.fail_after(600):
            await main()

    trio.run(bounded, clock=trio.testing.MockClock(autojump_threshold=0))

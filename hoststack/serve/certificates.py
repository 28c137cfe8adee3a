"""The server's certificates: from files, or made for development."""

from __future__ import annotations

import base64
import hashlib
import os
import ssl
from collections.abc import Sequence
from typing import Final, NamedTuple

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from hoststack import Certificate, TlsConfig, TlsConfigError
from hoststack.boundary.uri import Uri
from hoststack.serve.settings import ServeError, ServeSettings

_TCP_ALPN: Final = ("h2", "http/1.1")
_DEVELOPMENT_NAMES: Final = ("localhost", "127.0.0.1", "::1")


class Pair(NamedTuple):
    """A certificate chain and its key, in PEM."""

    certificate: bytes
    key: bytes


def read_pairs(settings: ServeSettings) -> list[Pair]:
    """Read the certificates and check them; raises ServeError."""
    pairs = [_read_pair(*names) for names in zip(settings.certfile, settings.keyfile, strict=True)]
    for name, pair in zip(settings.certfile, pairs if settings.tcp else (), strict=False):
        try:
            tcp_context(pair)
        except ssl.SSLError as error:
            raise ServeError(
                f"{name}: OpenSSL, which TCP needs, refuses it ({error.reason or error}): give a "
                "certificate with a signature of SHA-256 or better, or leave out --tcp"
            ) from None
    return pairs


def _read_pair(certfile: str, keyfile: str) -> Pair:
    try:
        # Read by name: what is wrong is said with the file's name.
        TlsConfig(certificate=certfile, key=keyfile)
        with open(certfile, "rb") as certificate, open(keyfile, "rb") as key:
            return Pair(certificate.read(), key.read())
    except TlsConfigError as error:
        raise ServeError(str(error)) from None
    except OSError as error:
        raise ServeError(f"{error.filename}: can't be read: {error.strerror}") from None


def self_signed(uris: Sequence[Uri]) -> Pair:
    """Make a certificate for development, for this machine's own names and the URIs' addresses."""
    hosts = (uri.host.partition("%")[0] for uri in uris)
    tls = TlsConfig.self_signed(list(dict.fromkeys((*_DEVELOPMENT_NAMES, *hosts))))
    assert isinstance(tls.certificate, bytes)
    assert isinstance(tls.key, bytes)
    return Pair(tls.certificate, tls.key)


def about_self_signed(pair: Pair, uris: Sequence[Uri]) -> list[str]:
    """Return the lines that say what clients need in order to trust a self-signed certificate."""
    certificate = TlsConfig(certificate=pair.certificate, key=pair.key).chain[0]
    fingerprint = certificate.fingerprint(SHA256()).hex()
    public = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    pin = base64.b64encode(hashlib.sha256(public).digest()).decode()
    return [
        f"no --certfile: made a certificate for localhost, SHA-256 {fingerprint}",
        f"for Chrome: --ignore-certificate-errors-spki-list={pin} "
        f"--origin-to-force-quic-on=localhost:{uris[0].port}",
    ]


def tls_of(pairs: Sequence[Pair]) -> TlsConfig:
    """Return the TLS configuration with these certificates, of which the first is the default."""
    first, *more = pairs
    return TlsConfig(
        certificate=first.certificate,
        key=first.key,
        certificates=tuple(Certificate(each.certificate, each.key) for each in more),
    )


def tcp_context(pair: Pair) -> ssl.SSLContext:
    """Return what serves TLS over TCP with this certificate. Raises SSLError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION
    context.set_alpn_protocols(_TCP_ALPN)
    # Python reads certificates from files only.
    fd = in_memory(pair.key + b"\n" + pair.certificate)
    try:
        context.load_cert_chain(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
    return context


def in_memory(data: bytes) -> int:
    """Return a descriptor of a file in memory."""
    fd = os.memfd_create("hoststack-certificates", os.MFD_CLOEXEC)
    with open(os.dup(fd), "wb") as file:
        file.write(data)
    return fd

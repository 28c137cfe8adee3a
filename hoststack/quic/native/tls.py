"""TLS configuration of GnuTLS, for the native engine."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Final

from cryptography.hazmat.primitives import serialization

from hoststack.native.quic._quic import ffi, lib
from hoststack.quic.tls import TlsConfig, TlsConfigError

_ERROR_BYTES: Final = 256
#: The most cached configurations. Loading the system's CAs takes longer than a handshake.
_KEPT: Final = 64


class ClientContexts:
    """A cache of GnuTLS credentials of clients, by configuration.

    Credentials with a private key are not cached: the last connection that uses them frees them, as
    with a listener's.
    """

    def __init__(self) -> None:
        self._made: OrderedDict[tuple[object, tuple[str, ...]], tuple[TlsConfig, Any]] = (
            OrderedDict()
        )

    def get(self, tls: TlsConfig, alpn: Sequence[str]) -> Any:
        """Return a `struct hs_tls *`; raises TlsConfigError."""
        if tls.private_key is not None:
            return make_context(tls, alpn, is_server=False)
        # Cache only configurations that contain all data, so that equal ones mean the same: each
        # connect of another process passes a new object. The file at a path may have changed since.
        is_whole = tls.ca is None or isinstance(tls.ca, bytes)
        key = (tls if is_whole else id(tls), tuple(alpn))
        found = self._made.get(key)
        if found is None:
            found = self._made[key] = (tls, make_context(tls, alpn, is_server=False))
            if len(self._made) > _KEPT:
                self._made.popitem(last=False)
        else:
            self._made.move_to_end(key)
        return found[1]


def make_context(tls: TlsConfig, alpn: Sequence[str], *, is_server: bool) -> Any:
    """Create a `struct hs_tls *`, to which listeners and connections add references.

    Raises TlsConfigError.
    """
    certificate = key = ffi.NULL
    if tls.chain and tls.private_key is not None:
        pem = b"".join(c.public_bytes(serialization.Encoding.PEM) for c in tls.chain)
        certificate = ffi.new("char[]", pem)
        key = ffi.new(
            "char[]",
            tls.private_key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            ),
        )
    try:
        return _make(tls, alpn, is_server, certificate, key)
    finally:
        if key:
            ffi.memmove(key, bytes(len(key)), len(key))


def _make(tls: TlsConfig, alpn: Sequence[str], is_server: bool, certificate: Any, key: Any) -> Any:
    names = b"".join(_alpn_name(name) for name in alpn)
    ca = ffi.new("char[]", tls.ca_pem) if tls.ca_pem is not None else ffi.NULL
    error = ffi.new("char[]", _ERROR_BYTES)
    made = lib.hs_tls_new(
        is_server, certificate, key, ca, tls.verify, names, len(names), error, _ERROR_BYTES
    )
    if not made:
        raise TlsConfigError(ffi.string(error).decode())
    made = ffi.gc(made, lib.hs_tls_free)
    if is_server and tls.client_certificates != "none":
        is_required = tls.client_certificates == "required"
        if lib.hs_tls_ask_clients(made, is_required, ca, error, _ERROR_BYTES):
            raise TlsConfigError(ffi.string(error).decode())
    if tls.ciphers:
        names_of_gnutls = ":+".join(cipher.upper() for cipher in tls.ciphers)
        if lib.hs_tls_set_ciphers(made, names_of_gnutls.encode(), error, _ERROR_BYTES):
            raise TlsConfigError(ffi.string(error).decode())
    return made


def _alpn_name(name: str) -> bytes:
    encoded = name.encode()
    return bytes((len(encoded),)) + encoded

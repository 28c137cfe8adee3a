"""TLS credentials of GnuTLS, for the native engine."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from hoststack.native.quic._quic import ffi, lib
from hoststack.quic.certificate import Certificate, TlsConfigError, presented
from hoststack.quic.tls import TlsConfig

_ERROR_BYTES: Final = 256
#: The most cached configurations.
_KEPT: Final = 64


class ClientContexts:
    """A cache of `struct hs_tls *` of clients, by configuration.

    Credentials with a private key are not cached: the last connection that uses them frees them, as
    with a listener's. The system's CAs take some 25 ms to load and stay loaded.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made: OrderedDict[tuple[object, tuple[str, ...]], tuple[TlsConfig, Any]] = (
            OrderedDict()
        )
        self._system: Any = None
        """A context with the system's CAs."""

    def find(self, tls: TlsConfig, alpn: Sequence[str]) -> Any:
        """Return a context that costs little; None if `load` has to make it."""
        if tls.private_key is not None:
            return None
        key = _key(tls, alpn)
        with self._lock:
            found = self._made.get(key)
            if found is not None:
                self._made.move_to_end(key)
                return found[1]
        if tls.ca is None and not tls.verify:
            return self.load(tls, alpn)
        if tls.ca is None and self._system is not None:
            made = ffi.gc(lib.hs_tls_like(self._system, *_names(alpn)), lib.hs_tls_free)
            if made:
                _set_ciphers(made, tls)
                return self._keep(tls, alpn, made)
        return None

    def load(self, tls: TlsConfig, alpn: Sequence[str]) -> Any:
        """Make a context, in any thread; raises TlsConfigError."""
        made = make_context(tls, alpn, is_server=False)
        if tls.private_key is not None:
            return made
        if tls.ca is None and tls.verify:
            self._system = made
        return self._keep(tls, alpn, made)

    def _keep(self, tls: TlsConfig, alpn: Sequence[str], made: Any) -> Any:
        with self._lock:
            self._made[_key(tls, alpn)] = tls, made
            if len(self._made) > _KEPT:
                self._made.popitem(last=False)
        return made


def _key(tls: TlsConfig, alpn: Sequence[str]) -> tuple[object, tuple[str, ...]]:
    # Only configurations that contain all data are compared: each connect of another process
    # passes a new object. The file at a path may have changed since.
    is_whole = tls.ca is None or isinstance(tls.ca, bytes)
    return (tls if is_whole else id(tls), tuple(alpn))


def make_context(tls: TlsConfig, alpn: Sequence[str], *, is_server: bool) -> Any:
    """Create a `struct hs_tls *`, to which listeners and connections add references.

    May be called in any thread: GnuTLS checks keys and CAs without the GIL. Raises TlsConfigError.
    """
    ca = ffi.new("char[]", tls.ca_pem) if tls.ca_pem is not None else ffi.NULL
    error = ffi.new("char[]", _ERROR_BYTES)
    groups, by_name = presented(tls.own if is_server else tls.own[:1])
    with _pem_of(groups[0][0] if groups else None) as (certificate, key):
        made = lib.hs_tls_new(
            is_server, certificate, key, ca, tls.verify, *_names(alpn), error, _ERROR_BYTES
        )
    if not made:
        raise TlsConfigError(ffi.string(error).decode())
    made = ffi.gc(made, lib.hs_tls_free)
    for number, group in enumerate(groups):
        for each in group[number == 0 :]:
            with _pem_of(each) as (certificate, key):
                if lib.hs_tls_add(made, number, certificate, key, error, _ERROR_BYTES):
                    raise TlsConfigError(ffi.string(error).decode())
    for name in sorted(name.encode() for name in by_name):
        if lib.hs_tls_add_name(made, name, by_name[name.decode()]):
            raise MemoryError("no memory for the names of certificates")
    if is_server and tls.client_certificates != "none":
        is_required = tls.client_certificates == "required"
        if lib.hs_tls_ask_clients(made, is_required, ca, error, _ERROR_BYTES):
            raise TlsConfigError(ffi.string(error).decode())
    _set_ciphers(made, tls)
    return made


@contextmanager
def _pem_of(certificate: Certificate | None) -> Iterator[tuple[Any, Any]]:
    """Pass a certificate and its key to C, and clear the key afterwards."""
    if certificate is None:
        yield ffi.NULL, ffi.NULL
        return
    key = ffi.new("char[]", certificate.key_pem())
    try:
        yield ffi.new("char[]", certificate.chain_pem()), key
    finally:
        ffi.memmove(key, bytes(len(key)), len(key))


def _set_ciphers(made: Any, tls: TlsConfig) -> None:
    if tls.ciphers:
        error = ffi.new("char[]", _ERROR_BYTES)
        names_of_gnutls = ":+".join(cipher.upper() for cipher in tls.ciphers)
        if lib.hs_tls_set_ciphers(made, names_of_gnutls.encode(), error, _ERROR_BYTES):
            raise TlsConfigError(ffi.string(error).decode())


def _names(alpn: Sequence[str]) -> tuple[bytes, int]:
    encoded = [name.encode() for name in alpn]
    names = b"".join(bytes((len(name),)) + name for name in encoded)
    return names, len(names)

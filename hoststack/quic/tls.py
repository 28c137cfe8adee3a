"""TLS configuration, the same for every engine.

Certificates and keys are read when a TlsConfig is made, so that errors appear where they are named,
not in the first handshake.
"""

from __future__ import annotations

import datetime
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, get_args

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from hoststack.quic.certificate import (
    Certificate,
    PrivateKey,
    Source,
    TlsConfigError,
    authorities,
    read_source,
)
from hoststack.quic.session_cache import SessionCache

#: The ciphers of packets (RFC 8446 section B.4).
Cipher = Literal["aes-128-gcm", "aes-256-gcm", "chacha20-poly1305"]
_CIPHERS: Final = get_args(Cipher)
#: The numbers of the suites that they belong to.
CIPHER_SUITES: Final[dict[str, int]] = {
    "aes-128-gcm": 0x1301,
    "aes-256-gcm": 0x1302,
    "chacha20-poly1305": 0x1303,
}

#: RFC 1035 section 2.3.4; underscores occur in real names.
_MOST_NAME_BYTES: Final = 253
_LABEL: Final = re.compile(r"[A-Za-z0-9_-]{1,63}")


@dataclass(frozen=True)
class TlsConfig:
    """One side's certificates, keys and choices for the handshake.

    `certificate` (a chain, the leaf first) and `key` are PEM, as bytes or as a path, and so are
    those of each Certificate in `certificates`. A server needs one; with several it presents the
    one for the name that the client asks for (SNI). A client may have one. `ca` names the
    authorities to trust, the system's if it is None, without those whose serial number is not
    positive; `verify=False` accepts any certificate.
    `server_name` is the host name or address that the certificate must be for, if it is not the
    host that is connected to. Keys are EC (P-256, P-384, P-521), Ed25519 or RSA of 2048 to 4096
    bits. Raises TlsConfigError.
    """

    certificate: Source | None = None
    key: Source | None = field(default=None, repr=False)
    ca: Source | None = None
    verify: bool = True
    server_name: str | None = None
    client_certificates: Literal["none", "optional", "required"] = "none"
    """Whether a server requests its clients' certificates, and ends handshakes without one. They
    are checked against `ca`, unless `verify` is False. The server then issues no tickets."""
    ciphers: tuple[Cipher, ...] = ()
    """The allowed ciphers of packets, the preferred one first; the server picks the first of its
    own that the client has. Empty: all of them, in the engine's order."""
    sessions: SessionCache | None = field(default=None, compare=False)
    """A client's store of tickets and tokens, with which its next connections resume."""
    certificates: Sequence[Certificate] = ()
    """Further certificates of a server. It chooses by the names in subjectAltName: an exact name,
    then a wildcard (`*.example.com`), then the first certificate of all, which clients that ask for
    an unknown name get as well. A client that asks for no name gets the one for the address that it
    connected to. Among certificates for the same names, such as RSA and ECDSA, the first one whose
    signature the client accepts is used."""

    own: tuple[Certificate, ...] = field(init=False, repr=False, compare=False, default=())
    """All certificates, the first one from `certificate` and `key` if these were given."""
    ca_pem: bytes | None = field(init=False, repr=False, compare=False, default=None)
    """The authorities of `ca` that can be used."""

    def __post_init__(self) -> None:
        if self.client_certificates not in ("none", "optional", "required"):
            raise TlsConfigError(
                "client_certificates is none, optional or required, "
                f"not {self.client_certificates!r}"
            )
        for cipher in self.ciphers:
            if cipher not in _CIPHERS or self.ciphers.count(cipher) > 1:
                raise TlsConfigError(
                    f"ciphers are some of {', '.join(_CIPHERS)}, each once, not {self.ciphers!r}"
                )
        if self.server_name is not None:
            checked_server_name(self.server_name)
        if (self.certificate is None) != (self.key is None):
            given, missing = ("certificate", "key") if self.certificate else ("key", "certificate")
            raise TlsConfigError(f"a {given} was given without its {missing}: give both")
        object.__setattr__(self, "certificates", tuple(self.certificates))
        for each in self.certificates:
            if not isinstance(each, Certificate):
                raise TlsConfigError(
                    f"certificates are a list of Certificate(certificate, key), not {each!r:.40}"
                )
        first: tuple[Certificate, ...] = ()
        if self.certificate is not None and self.key is not None:
            first = (Certificate(self.certificate, self.key),)
        object.__setattr__(self, "own", (*first, *self.certificates))
        if self.ca is not None:
            object.__setattr__(self, "ca_pem", authorities(*read_source(self.ca, "CA file")))

    @property
    def chain(self) -> tuple[x509.Certificate, ...]:
        """The first certificate's chain, the leaf first; empty without one."""
        return self.own[0].chain if self.own else ()

    @property
    def private_key(self) -> PrivateKey | None:
        """The first certificate's key."""
        return self.own[0].private_key if self.own else None

    @classmethod
    def self_signed(cls, names: Sequence[str]) -> TlsConfig:
        """Make a self-signed certificate for these host names and addresses; for tests and demos.

        A client that trusts it needs `TlsConfig(ca=server_tls.certificate)`.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
        now = datetime.datetime.now(datetime.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=90))
            .add_extension(x509.SubjectAlternativeName([_general_name(n) for n in names]), False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
            .sign(key, hashes.SHA256())
        )
        return cls(
            certificate=certificate.public_bytes(serialization.Encoding.PEM),
            key=key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            ),
        )


def checked_server_name(name: str) -> str:
    """Return a server's name in the form of a TLS handshake.

    A name loses its trailing dot (RFC 6066 section 3), an address its zone. Raises TlsConfigError
    for an invalid name.
    """
    try:
        return str(ipaddress.ip_address(name.partition("%")[0]))
    except ValueError:
        pass
    if not name.isascii():
        raise TlsConfigError(f"a server's name is ASCII (xn--... for others), not {name[:40]!r}")
    host = name.removesuffix(".")
    if len(host) > _MOST_NAME_BYTES or not all(map(_LABEL.fullmatch, host.split("."))):
        raise TlsConfigError(
            f"this is not a server's name: {name[:40]!r}: it has up to {_MOST_NAME_BYTES} "
            "characters, letters, digits, hyphens and underscores, at most 63 between dots"
        )
    return host


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)

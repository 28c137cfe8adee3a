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
from pathlib import Path
from typing import Final, Literal, get_args

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID, PublicKeyAlgorithmOID

from hoststack.quic.session_cache import SessionCache

PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey

#: PEM text, or the path of a file that contains it.
Source = bytes | str | Path

#: The ciphers of packets (RFC 8446 section B.4).
Cipher = Literal["aes-128-gcm", "aes-256-gcm", "chacha20-poly1305"]
_CIPHERS: Final = get_args(Cipher)

#: Curves of TLS 1.3's signatures (RFC 8446 section 4.2.3).
_CURVES: Final = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)
#: Peers refuse smaller keys.
_LEAST_RSA_BITS: Final = 2048
#: Each handshake signs with the key in the worker's loop, which costs the cube of its size: 4 ms
#: with 4096 bits, 25 ms with 8192.
_MOST_RSA_BITS: Final = 4096
#: A signature is blinded with the public exponent; almost all keys have 65537 (17 bits).
_MOST_EXPONENT_BITS: Final = 32
#: RFC 1035 section 2.3.4; underscores occur in real names.
_MOST_NAME_BYTES: Final = 253
_LABEL: Final = re.compile(r"[A-Za-z0-9_-]{1,63}")


class TlsConfigError(ValueError):
    """A certificate or key that cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class TlsConfig:
    """One side's certificates, keys and choices for the handshake.

    `certificate` (a chain, the leaf first) and `key` are PEM, as bytes or as a path; a server
    needs both, a client may have them. `ca` names the authorities to trust, the system's if it is
    None; `verify=False` accepts any certificate. `server_name` is the host name or address that the
    certificate must be for, if it is not the host that is connected to. Keys are EC (P-256, P-384,
    P-521), Ed25519 or RSA of 2048 to 4096 bits. Raises TlsConfigError.
    """

    certificate: Source | None = None
    key: Source | None = None
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

    chain: tuple[x509.Certificate, ...] = field(init=False, repr=False, compare=False, default=())
    private_key: PrivateKey | None = field(init=False, repr=False, compare=False, default=None)
    ca_pem: bytes | None = field(init=False, repr=False, compare=False, default=None)

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
        if self.certificate is not None and self.key is not None:
            chain = _load_chain(self.certificate)
            object.__setattr__(self, "chain", chain)
            object.__setattr__(self, "private_key", _load_key(self.key, chain[0]))
        if self.ca is not None:
            pem, name = _read(self.ca, "CA file")
            _parse_chain(pem, name)
            object.__setattr__(self, "ca_pem", pem)

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


def _read(source: Source, what: str) -> tuple[bytes, str]:
    """Return the PEM text of a source, and its name for messages."""
    if isinstance(source, bytes):
        return source, f"the {what}"
    try:
        return Path(source).read_bytes(), f"the {what} {str(source)!r}"
    except OSError as error:
        raise TlsConfigError(
            f"the {what} {str(source)!r} can't be read: {error.strerror}: "
            "check path and permissions"
        ) from None
    except ValueError as error:
        raise TlsConfigError(f"{str(source)[:40]!r} is not a path of a {what}: {error}") from None


def _parse_chain(pem: bytes, name: str) -> tuple[x509.Certificate, ...]:
    try:
        return tuple(x509.load_pem_x509_certificates(pem))
    except ValueError as error:
        raise TlsConfigError(
            f"{name} has no usable certificate ({error}): it must be PEM, "
            "with -----BEGIN CERTIFICATE-----"
        ) from None


def _load_chain(source: Source) -> tuple[x509.Certificate, ...]:
    pem, name = _read(source, "certificate")
    chain = _parse_chain(pem, name)
    now = datetime.datetime.now(datetime.UTC)
    begins, ends = chain[0].not_valid_before_utc, chain[0].not_valid_after_utc
    if ends < now:
        raise TlsConfigError(f"{name} expired on {ends:%Y-%m-%d %H:%M} UTC: get a new one")
    if begins > now:
        raise TlsConfigError(
            f"{name} is not valid before {begins:%Y-%m-%d %H:%M} UTC: set this machine's clock, or "
            "get another one"
        )
    return chain


def _check_rsa_size(key: rsa.RSAPrivateKey, name: str) -> None:
    if key.key_size < _LEAST_RSA_BITS:
        raise TlsConfigError(
            f"{name} has {key.key_size} bits, and peers refuse it: use {_LEAST_RSA_BITS} or more"
        )
    if key.key_size > _MOST_RSA_BITS:
        raise TlsConfigError(
            f"{name} has {key.key_size} bits, and each handshake would take as long as hundreds "
            f"with a smaller one: use at most {_MOST_RSA_BITS}, or EC (P-256)"
        )
    if key.public_key().public_numbers().e.bit_length() > _MOST_EXPONENT_BITS:
        raise TlsConfigError(f"{name} has an unusually large exponent: use a key with 65537")


def _check_rsa_numbers(key: rsa.RSAPrivateKey) -> None:
    """Raise ValueError if a key's numbers do not fit together, so that signing with it could fail.

    The check of cryptography also proves that p and q are primes. It takes 60 ms with 2048 bits and
    400 ms with 4096, and holds the GIL all the while: no other thread of the process runs.
    """
    numbers = key.private_numbers()
    e, n = numbers.public_numbers.e, numbers.public_numbers.n
    p, q = numbers.p, numbers.q
    least = 1 << key.key_size // 4  # p and q of very different sizes make signing slow
    if not (p * q == n and n % 2 and p > least < q):
        raise ValueError("p and q are not the factors of the modulus")
    for prime, exponent in ((p, numbers.dmp1), (q, numbers.dmq1)):
        if not (exponent < prime and e * exponent % (prime - 1) == 1):
            raise ValueError("an exponent does not fit its factor")
        if e * numbers.d % (prime - 1) != 1:
            raise ValueError("the private exponent does not fit the public one")
    if not (numbers.d < n and numbers.iqmp < p and numbers.iqmp * q % p == 1):
        raise ValueError("the coefficient is not the inverse of q")


def _load_key(source: Source, leaf: x509.Certificate) -> PrivateKey:
    pem, name = _read(source, "key")
    try:
        key = serialization.load_pem_private_key(
            pem, password=None, unsafe_skip_rsa_key_validation=True
        )
        if isinstance(key, rsa.RSAPrivateKey):
            _check_rsa_size(key, name)
            _check_rsa_numbers(key)
    except TlsConfigError:
        raise
    except TypeError:
        raise TlsConfigError(
            f"{name} is protected by a password: write it without one (openssl pkey -in KEY)"
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise TlsConfigError(
            f"{name} has no usable private key: it must be PEM, with -----BEGIN PRIVATE KEY-----"
        ) from None
    if not isinstance(key, PrivateKey):
        raise TlsConfigError(f"{name} is of an unsupported kind: use EC (P-256), Ed25519 or RSA")
    if isinstance(key, ec.EllipticCurvePrivateKey) and not isinstance(key.curve, _CURVES):
        raise TlsConfigError(
            f"{name} is on the curve {key.curve.name}, which TLS 1.3 does not use: use P-256"
        )
    if leaf.public_key_algorithm_oid == PublicKeyAlgorithmOID.RSASSA_PSS:
        raise TlsConfigError(
            f"{name} is for RSASSA-PSS only, which is not supported: use a plain RSA key"
        )
    try:
        is_its_key = key.public_key() == leaf.public_key()
    except (ValueError, UnsupportedAlgorithm):
        is_its_key = False
    if not is_its_key:
        raise TlsConfigError(f"{name} does not match the certificate: give the key it was made for")
    return key

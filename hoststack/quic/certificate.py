"""A certificate with its private key, and which of several a server presents.

Both are read and checked when a Certificate is made, so that errors appear where they are named,
not in the first handshake.
"""

from __future__ import annotations

import base64
import datetime
import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import PublicKeyAlgorithmOID

PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey

#: PEM text, or the path of a file that contains it.
Source = bytes | str | Path

#: Curves of TLS 1.3's signatures (RFC 8446 section 4.2.3).
_CURVES: Final = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)
#: Peers refuse smaller keys.
_LEAST_RSA_BITS: Final = 2048
#: Each handshake signs with the key in the worker's loop, which costs the cube of its size: 4 ms
#: with 4096 bits, 25 ms with 8192.
_MOST_RSA_BITS: Final = 4096
#: A signature is blinded with the public exponent; almost all keys have 65537 (17 bits).
_MOST_EXPONENT_BITS: Final = 32

_PEM: Final = re.compile(
    rb"-----BEGIN ((?:X509 )?CERTIFICATE)-----([A-Za-z0-9+/=\s]*)-----END \1-----"
)
_VERSION_TAG: Final = 0xA0

#: Limit of a peer's certificates that are passed on, which must fit into a message.
MAX_CHAIN_BYTES: Final = 32 << 10


class TlsConfigError(ValueError):
    """A certificate or key that cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class Certificate:
    """A certificate and its private key: PEM, as bytes or as a path.

    `certificate` is a chain, the leaf first. Keys are EC (P-256, P-384, P-521), Ed25519 or RSA of
    2048 to 4096 bits. Raises TlsConfigError.
    """

    certificate: Source
    key: Source = field(repr=False)
    chain: tuple[x509.Certificate, ...] = field(init=False, repr=False, compare=False)
    private_key: PrivateKey = field(init=False, repr=False, compare=False)
    names: frozenset[str] = field(init=False, repr=False, compare=False)
    """The host names and addresses that it is for."""

    def __post_init__(self) -> None:
        chain = _load_chain(self.certificate)
        object.__setattr__(self, "chain", chain)
        object.__setattr__(self, "private_key", _load_key(self.key, chain[0]))
        object.__setattr__(self, "names", frozenset(_names(chain[0])))

    def chain_pem(self) -> bytes:
        return b"".join(each.public_bytes(serialization.Encoding.PEM) for each in self.chain)

    def key_pem(self) -> bytes:
        return self.private_key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )


class Presented(NamedTuple):
    """Which certificates a server presents for which name."""

    groups: tuple[tuple[Certificate, ...], ...]
    """Certificates for the same names; of a group the first one whose signature the client accepts
    is used. The first group is the default."""
    by_name: dict[str, int]
    """Groups by name; a name may begin with "*."."""

    def group_for(self, name: str | None) -> tuple[Certificate, ...]:
        """Return the group for the name that a client asks for, or the address at which it came:
        the exact name's, that of a wildcard for its first label (RFC 9525 section 6.3), or the
        default."""
        name = (name or "").lower()
        _, _, parent = name.partition(".")
        found = self.by_name.get(name, self.by_name.get(f"*.{parent}", 0))
        return self.groups[found]


def presented(certificates: Sequence[Certificate]) -> Presented:
    """Return the table for a server's certificates. Of two groups for one name the first counts."""
    groups: dict[frozenset[str], list[Certificate]] = {}
    for each in certificates:
        groups.setdefault(each.names, []).append(each)
    by_name: dict[str, int] = {}
    if len(groups) > 1:
        for number, names in enumerate(groups):
            for name in names:
                by_name.setdefault(name, number)
    return Presented(tuple(map(tuple, groups.values())), by_name)


def within_chain(chain: Iterable[bytes]) -> tuple[bytes, ...]:
    """Return the first certificates of a chain, up to MAX_CHAIN_BYTES."""
    sizes = itertools.accumulate(map(len, kept := tuple(chain)))
    return tuple(each for each, size in zip(kept, sizes, strict=True) if size <= MAX_CHAIN_BYTES)


def _names(leaf: x509.Certificate) -> Iterable[str]:
    """Yield the names in subjectAltName; a common name is none (RFC 9525 section 2)."""
    try:
        extension = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise TlsConfigError(
            f"the names in the certificate (subjectAltName) can't be read: {error}: get a new one"
        ) from None
    for name in extension.value:
        if isinstance(name, x509.DNSName) and "\0" not in name.value:
            yield name.value.lower().removesuffix(".")
        elif isinstance(name, x509.IPAddress):
            yield str(name.value)


def read_source(source: Source, what: str) -> tuple[bytes, str]:
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


def parse_chain(pem: bytes, name: str) -> tuple[x509.Certificate, ...]:
    try:
        return tuple(x509.load_pem_x509_certificates(pem))
    except ValueError as error:
        raise TlsConfigError(
            f"{name} has no usable certificate ({error}): it must be PEM, "
            "with -----BEGIN CERTIFICATE-----"
        ) from None


def authorities(pem: bytes, name: str) -> bytes:
    """Return the PEM text of authorities without those that cryptography refuses in the future, and
    warns of until then: their serial number is not positive, as RFC 5280 section 4.1.2.2 requires.
    Bundles of authorities have old ones. Raises TlsConfigError if there is no other certificate."""
    usable = _PEM.sub(lambda found: b"" if _has_bad_serial(found[2]) else found[0], pem)
    if usable != pem and not _PEM.search(usable):
        raise TlsConfigError(
            f"{name} has only certificates whose serial number is not positive, which RFC 5280 "
            "forbids: get a new one"
        )
    parse_chain(usable, name)
    return usable


def _has_bad_serial(text: bytes) -> bool:
    """Whether a certificate, DER in base64, has a serial number below 1; False if it can't be read
    so far, which its parser reports."""
    try:
        der = base64.b64decode(text)
        certificate, _ = _content(der, 0)
        position, _ = _content(der, certificate)
        if der[position] == _VERSION_TAG:
            _, position = _content(der, position)
        begin, end = _content(der, position)
    except (ValueError, IndexError):
        return False
    return int.from_bytes(der[begin:end], signed=True) <= 0


def _content(der: bytes, position: int) -> tuple[int, int]:
    """Return where the content of a DER element begins and ends. Raises IndexError."""
    size, position = der[position + 1], position + 2
    if size & 0x80:
        begin, position = position, position + (size & 0x7F)
        size = int.from_bytes(der[begin:position])
    if position + size > len(der):
        raise IndexError("a DER element is cut off")
    return position, position + size


def _load_chain(source: Source) -> tuple[x509.Certificate, ...]:
    pem, name = read_source(source, "certificate")
    chain = parse_chain(pem, name)
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
    pem, name = read_source(source, "key")
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

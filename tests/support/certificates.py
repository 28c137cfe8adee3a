"""Certificates of keys of all kinds."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519
from cryptography.x509.oid import NameOID


def _name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def self_signed(
    key: Any,
    in_days: int = 0,
    purpose: x509.ObjectIdentifier | None = None,
    names: Sequence[str] = ("localhost",),
) -> tuple[bytes, bytes]:
    """A certificate for these names that begins to be valid in so many days, and its key, as PEM;
    for one purpose alone, if it is given."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    begin = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=in_days, hours=-1)
    is_edwards = isinstance(key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + datetime.timedelta(days=9))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(list(map(_name, names))), False)
    if purpose is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), False)
    certificate = builder.sign(key, None if is_edwards else hashes.SHA256())
    return chain_pem(certificate), key_pem(key)


def issued(
    name: str,
    issuer: tuple[x509.Certificate, Any] | None = None,
    filling: int = 0,
    names: Sequence[str] = (),
) -> tuple[x509.Certificate, Any]:
    """A certificate and its key: of an authority, or of a server with these names. An extension of
    it has so many bytes."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    oid = x509.ObjectIdentifier("1.3.6.1.4.1.55555.1")
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer[0].subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=9))
        .add_extension(x509.BasicConstraints(ca=not names, path_length=None), True)
        .add_extension(x509.UnrecognizedExtension(oid, bytes(filling)), False)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(list(map(_name, names))), False)
    return builder.sign(issuer[1] if issuer else key, hashes.SHA256()), key


def chain_pem(*certificates: x509.Certificate) -> bytes:
    return b"".join(each.public_bytes(serialization.Encoding.PEM) for each in certificates)


def key_pem(key: Any) -> bytes:
    data: bytes = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return data

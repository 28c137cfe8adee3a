"""TLS configuration: what is wrong with it is said in one line, when it is made."""

from __future__ import annotations

import datetime
import ssl
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa
from cryptography.x509.oid import NameOID

from hoststack import TlsConfig, TlsConfigError
from hoststack.quic.tls import checked_server_name
from tests.support.certificates import self_signed

GOOD = TlsConfig.self_signed(["localhost"])
OTHER = TlsConfig.self_signed(["localhost"])


def pem(part: object) -> bytes:
    assert isinstance(part, bytes)
    return part


def expired() -> tuple[bytes, bytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    then = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(then)
        .not_valid_after(then + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM), key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def locked() -> bytes:
    return ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )


def test_files_and_bytes_are_the_same(tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    certificate.write_bytes(pem(GOOD.certificate))
    key.write_bytes(pem(GOOD.key))
    from_files = TlsConfig(certificate=certificate, key=str(key))
    assert from_files.chain == GOOD.chain
    from_bytes = TlsConfig(certificate=GOOD.certificate, key=GOOD.key)
    assert from_bytes.chain == GOOD.chain


def test_names_of_a_certificate_of_our_own() -> None:
    tls = TlsConfig.self_signed(["localhost", "10.0.0.1", "fd00::1"])
    names = tls.chain[0].extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]
    assert [str(a) for a in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.1", "fd00::1"]


OLD_CERTIFICATE, OLD_KEY = expired()


@pytest.mark.parametrize(
    ("certificate", "key", "why"),
    [
        (GOOD.certificate, None, "key"),
        (None, GOOD.key, "certificate"),
        (GOOD.certificate, OTHER.key, "match"),
        (b"no certificate", GOOD.key, "certificate"),
        (GOOD.certificate, b"no key", "key"),
        (b"", GOOD.key, "certificate"),
        (GOOD.certificate, locked(), "password"),
        (OLD_CERTIFICATE, OLD_KEY, "expired"),
        ("/nowhere/cert.pem", "/nowhere/key.pem", "No such file"),
        ("/", "/", "director"),
        ("a\0b", "a\0b", "null"),
        (*self_signed(rsa.generate_private_key(65537, 1024)), "1024 bits"),
        (*self_signed(ec.generate_private_key(ec.SECP256K1())), "secp256k1"),
        (*self_signed(dsa.generate_private_key(2048)), "kind"),
        (*self_signed(ed448.Ed448PrivateKey.generate()), "kind"),
        (*self_signed(ec.generate_private_key(ec.SECP256R1()), in_days=3), "not valid before"),
    ],
)
def test_a_mistake_is_one_line(certificate: object, key: object, why: str) -> None:
    with pytest.raises(TlsConfigError) as caught:
        TlsConfig(certificate=certificate, key=key)  # type: ignore[arg-type]
    text = str(caught.value)
    assert why in text
    assert "\n" not in text


RSA = rsa.generate_private_key(65537, 2048)


def with_numbers(**changed: int) -> tuple[bytes, bytes]:
    """RSA's certificate, and its key with other numbers that nobody checked."""
    numbers = RSA.private_numbers()
    names = ("p", "q", "d", "dmp1", "dmq1", "iqmp")
    kept: dict[str, Any] = {name: getattr(numbers, name) for name in names}
    kept |= changed
    false = rsa.RSAPrivateNumbers(**kept, public_numbers=numbers.public_numbers)
    key = false.private_key(unsafe_skip_rsa_key_validation=True)
    form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return self_signed(RSA)[0], key.private_bytes(serialization.Encoding.PEM, *form)


@pytest.mark.parametrize("change", [lambda n: n + 1, lambda n: n - 2, lambda n: n * 3, lambda _: 1])
@pytest.mark.parametrize("name", ["p", "q", "d", "dmp1", "dmq1", "iqmp"])
def test_rsa_keys_whose_numbers_do_not_fit(name: str, change: Callable[[int], int]) -> None:
    try:
        certificate, key = with_numbers(**{name: change(getattr(RSA.private_numbers(), name))})
    except ValueError:
        return  # cryptography itself refuses to write it
    with pytest.raises(TlsConfigError, match="no usable private key"):
        TlsConfig(certificate=certificate, key=key)


def test_factors_of_rsa_keys_of_very_different_sizes() -> None:
    """Signing takes the cube of the larger one's size."""
    p, q, e = rsa.generate_private_key(65537, 4096).private_numbers().p, (1 << 107) - 1, 65537
    d = pow(e, -1, (p - 1) * (q - 1))
    public = rsa.RSAPublicNumbers(e, p * q)
    numbers = rsa.RSAPrivateNumbers(p, q, d, d % (p - 1), d % (q - 1), pow(q, -1, p), public)
    key = numbers.private_key(unsafe_skip_rsa_key_validation=True)
    with pytest.raises(TlsConfigError, match="no usable private key"):
        TlsConfig(*self_signed(key))


def test_no_check_of_an_rsa_key_holds_the_gil(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of cryptography does, for 400 ms with 4096 bits: a worker serves nobody meanwhile."""
    load = serialization.load_pem_private_key

    def without_check(*arguments: Any, unsafe_skip_rsa_key_validation: bool, **more: Any) -> Any:
        assert unsafe_skip_rsa_key_validation
        return load(*arguments, unsafe_skip_rsa_key_validation=True, **more)

    certificate, key = with_numbers()
    monkeypatch.setattr(serialization, "load_pem_private_key", without_check)
    assert TlsConfig(certificate=certificate, key=key).private_key is not None


@pytest.mark.parametrize("ca", [b"rubbish", "/nowhere/ca.pem"])
def test_authorities_that_cannot_be_read(ca: bytes | str) -> None:
    with pytest.raises(TlsConfigError):
        TlsConfig(ca=ca)


def with_serial(value: int) -> bytes:
    """A certificate whose serial number is one byte; its signature is not right."""
    certificate, _ = expired()
    der = x509.load_pem_x509_certificate(certificate).public_bytes(serialization.Encoding.DER)
    before = b"\xa0\x03\x02\x01\x02\x02\x01"  # version 3, and an integer of one byte
    assert der.count(before + b"\x01") == 1
    der = der.replace(before + b"\x01", before + value.to_bytes(1, signed=True))
    return ssl.DER_cert_to_PEM_cert(der).encode()


def test_authorities_without_a_positive_serial_number_are_left_out() -> None:
    """cryptography warns of them, and will raise (RFC 5280 section 4.1.2.2)."""
    good, fine = pem(GOOD.certificate), with_serial(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bundle = b"# a comment\n" + b"".join((with_serial(0), good, with_serial(-1), fine))
        assert TlsConfig(ca=bundle).ca_pem == b"# a comment\n\n" + good + b"\n" + fine
        assert TlsConfig(ca=good).ca_pem == good
        with pytest.raises(TlsConfigError, match="serial number is not positive"):
            TlsConfig(ca=with_serial(0))


def test_authorities_that_are_cut_off_are_reported() -> None:
    der = ssl.PEM_cert_to_DER_cert(with_serial(0).decode())
    for size in range(16):
        with pytest.raises(TlsConfigError, match="no usable certificate"):
            TlsConfig(ca=ssl.DER_cert_to_PEM_cert(der[:size]).encode())


def test_certifis_authorities_can_be_used() -> None:
    certifi = pytest.importorskip("certifi", reason="certifi is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert TlsConfig(ca=certifi.where()).ca_pem


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP384R1()),
        ec.generate_private_key(ec.SECP521R1()),
        ed25519.Ed25519PrivateKey.generate(),
        rsa.generate_private_key(65537, 2048),
    ],
    ids=lambda key: type(key).__name__,
)
def test_kinds_of_keys(key: ec.EllipticCurvePrivateKey) -> None:
    certificate, pem_key = self_signed(key)
    assert TlsConfig(certificate=certificate, key=pem_key).private_key is not None


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("localhost", "localhost"),
        ("localhost.", "localhost"),
        ("a_b.example", "a_b.example"),
        ("10.0.0.1", "10.0.0.1"),
        ("fe80::1%eth0", "fe80::1"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        (".".join(["a" * 63] * 3 + ["a" * 61]), ".".join(["a" * 63] * 3 + ["a" * 61])),
    ],
)
def test_names_of_servers(name: str, right: str) -> None:
    assert checked_server_name(name) == right
    assert TlsConfig(server_name=name).server_name == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "a..b",
        "localhost..",
        "a" * 64,
        "a." * 150,
        "a\0b",
        "localhost\n",
        "a b",
        "b\u00fccher.example",
        "*.example",
    ],
)
def test_what_is_no_name_of_a_server(name: str) -> None:
    with pytest.raises(TlsConfigError, match="server's name") as caught:
        TlsConfig(server_name=name)
    assert "\n" not in str(caught.value)
    assert "\0" not in str(caught.value)

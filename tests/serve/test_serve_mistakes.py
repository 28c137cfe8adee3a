"""What is wrong is one line that says what to do, and an exit status."""

from __future__ import annotations

import signal
import socket
import ssl
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from hoststack.cli.main import main
from hoststack.serve import certificates
from tests.serve.conftest import write_application
from tests.support.certificates import self_signed


@pytest.fixture(autouse=True)
def in_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The command runs in this process, and changes what it must of it."""
    write_application(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    sys.modules.pop("main", None)


def refusal(capfd: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """Run the command; its exit status, and the line that it ends with."""
    status = main(["serve", "--bind", "127.0.0.1:0", *words])
    said = capfd.readouterr().err
    lines = [line for line in said.splitlines() if "--certfile: made" not in line]
    lines = [line for line in lines if "for Chrome" not in line]
    assert len(lines) == 1, said
    return status, lines[0]


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("nothere:app",), 2, "no module 'nothere'"),
        (("main:nothing",), 2, "nothing"),
        (("main:number",), 2, "int"),
        (("main.py:app",), 2, "main:app"),
        (("main:make",), 2, "factory"),
        (("main:make", "--lifespan", "on"), 2, "factory"),
        (("main:broken", "--factory"), 3, "ZeroDivisionError"),
        (("main:failing",), 3, "no database"),
        (("main:app", "--app-dir", "nowhere"), 2, "no such folder"),
        (("main:app", "--bind", "127.0.0.1"), 2, "has no port"),
        (("main:app", "--bind", "192.0.2.1:4433"), 2, "is not an address of this machine"),
    ],
)
def test_applications_and_addresses(
    capfd: pytest.CaptureFixture[str], words: tuple[str, ...], status: int, said: str
) -> None:
    found, line = refusal(capfd, *words)
    assert line.startswith("hoststack: ")
    assert said in line
    assert found == status


def test_a_port_in_use(capfd: pytest.CaptureFixture[str]) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        status, line = refusal(capfd, "main:app", "--bind", f"127.0.0.1:{port}")
    assert status == 2
    assert f"UDP port {port} on 127.0.0.1 is in use" in line


def test_certificates(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for name in ("one", "other"):
        certificate, key = self_signed(ec.generate_private_key(ec.SECP256R1()))
        (tmp_path / f"{name}.pem").write_bytes(certificate)
        (tmp_path / f"{name}.key").write_bytes(key)
    for certfile, keyfile, said in (
        ("one.pem", "other.key", "does not match"),
        ("one.pem", "missing.key", "can't be read"),
        ("one.key", "one.key", "has no usable certificate"),
        ("one.pem", "one.pem", "has no usable private key"),
    ):
        words = ("main:app", "--certfile", certfile, "--keyfile", keyfile)
        status, line = refusal(capfd, *words)
        assert status == 2
        assert said in line


def test_a_certificate_that_tcp_does_not_take(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As OpenSSL refuses a signature of SHA-1, which nothing here makes any more."""

    def refuse(pair: certificates.Pair) -> None:
        error = ssl.SSLError(1, "ca md too weak")
        error.reason = "CA_MD_TOO_WEAK"
        raise error

    monkeypatch.setattr(certificates, "tcp_context", refuse)
    certificate, key = self_signed(ec.generate_private_key(ec.SECP256R1()))
    (tmp_path / "one.pem").write_bytes(certificate)
    (tmp_path / "one.key").write_bytes(key)
    words = ("main:app", "--certfile", "one.pem", "--keyfile", "one.key", "--tcp")
    status, line = refusal(capfd, *words)
    assert status == 2
    assert "one.pem: OpenSSL, which TCP needs, refuses it (CA_MD_TOO_WEAK)" in line


def test_names_that_are_no_text(capfd: pytest.CaptureFixture[str]) -> None:
    status, line = refusal(capfd, "main:app", "--access-log", "nowhere/\udcff")
    assert status == 2
    assert "the access log 'nowhere/\\udcff' can't be opened" in line

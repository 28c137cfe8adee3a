"""Mistakes: one clear line on stderr, an exit status, and JSON where that was asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from apps.quic_echo import main
from hoststack import TlsConfig


@pytest.mark.parametrize(
    ("words", "status", "complaint"),
    [
        ("", 2, "say which side"),
        ("client uri quic://127.0.0.1", 2, "has no port"),
        ("client uri http://127.0.0.1:80", 2, "scheme 'http' is not known"),
        ("server uri quic://127.0.0.1:99999", 2, "port must be a number"),
        ("client uri quic://127.0.0.1:9 connect-timeout 1", 1, "no answer from 127.0.0.1 port 9"),
        ("client uri quic://nowhere.invalid:1", 1, "no address is known"),
        ("server uri quic://192.0.2.1:1", 1, "not an address of this machine"),
        ("server uri quic://127.0.0.1:0 interface nowhere0", 1, "no interface 'nowhere0'"),
        ("server uri quic://127.0.0.1:0 cert /nowhere key /nowhere", 1, "can't be read"),
        ("client uri quic://127.0.0.1:9 ca /nowhere", 1, "can't be read"),
    ],
)
def test_mistakes(
    words: str, status: int, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words.split()) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert complaint in err
    assert len(err.splitlines()) == 1
    assert main([*words.split(), "json"]) == status
    results = json.loads(capsys.readouterr().out)["results"]
    assert results["has_failed"] == status
    assert complaint in results["fail_descr"]


def test_a_key_of_another_certificate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = TlsConfig.self_signed(["one"]), TlsConfig.self_signed(["other"])
    assert isinstance(one.certificate, bytes)
    assert isinstance(other.key, bytes)
    (tmp_path / "cert.pem").write_bytes(one.certificate)
    (tmp_path / "key.pem").write_bytes(other.key)
    words = ["cert", f"{tmp_path}/cert.pem", "key", f"{tmp_path}/key.pem"]
    assert main(["server", "uri", "quic://127.0.0.1:0", *words]) == 1
    assert "does not match the certificate" in capsys.readouterr().err

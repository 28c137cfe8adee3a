"""HTTP/3: our client and our server as their users run them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import pytest

from apps import http3_server
from tests.apps.http3.processes import (
    ADDRESS,
    assert_same,
    client,
    pattern,
)

pytestmark = pytest.mark.usefixtures("engine")


def test_our_client_and_server(
    engine: str, port: int, folder: Path, certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    base = f"https://{ADDRESS}:{port}"
    paths = ["/large", "/page.html", "/empty", "/inner", "/sub/", "/1000000", "/0", "/with%20space"]
    done = client(
        engine,
        *("--cacert", str(certificate[0])),
        *("--output", str(tmp_path)),
        "--json",
        *(f"{base}{path}" for path in paths),
        f"{base}/unreadable.tar.gz?query=1",
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(told) == len(paths) + 1
    assert {one["status"] for one in told} == {200}
    for name in ("large", "page.html", "empty", "inner", "unreadable.tar.gz"):
        assert_same(tmp_path / name, folder / name)
    assert (tmp_path / "with%20space").read_text() == "space"
    assert (tmp_path / "index.html").read_text() == "index"
    assert (tmp_path / "1000000").read_bytes() == pattern(1_000_000)
    assert (tmp_path / "0").read_bytes() == b""


OUTSIDE: Final = (
    "/nothing",
    "/../secret",
    "/%2e%2e/secret",
    "/sub/..%2f..%2fsecret",
    "/sub/../../secret",
    "//../secret",
    "/out",
    "/up/secret",
    "/loop",
    "/pipe",
    "/sub",
    "/sub/index.html/",
    "/page.html%00",
    "/page.html%00.png",
    "/" + "a" * 300,
    "/1000000000000000000000",
    "/-1",
)


def test_what_is_not_there(engine: str, port: int, certificate: tuple[Path, Path]) -> None:
    base = f"https://{ADDRESS}:{port}"
    words = ["--cacert", str(certificate[0]), "--json"]
    done = client(engine, *words, *(f"{base}{path}" for path in OUTSIDE))
    assert done.returncode == 0
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert {one["url"]: one["status"] for one in told} == {f"{base}{p}": 404 for p in OUTSIDE}
    assert "secret\n" not in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--root", "/nowhere", "quic://127.0.0.1:0"], "/nowhere"),
        (["--root", "/tmp", "127.0.0.1:0"], "write it as quic://"),
        (["--root", "/tmp", "--cert", "/nowhere", "quic://127.0.0.1:0"], "without its key"),
        (["--root", "/tmp", "--link", "af_xdp", "quic://127.0.0.1:0"], "interface"),
    ],
)
def test_mistakes_of_the_servers_user(
    capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert http3_server.main(words) == 1
    assert said in capsys.readouterr().err.splitlines()[-1]

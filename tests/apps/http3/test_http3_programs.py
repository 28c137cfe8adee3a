"""HTTP/3: our client and our server as their users run them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

from apps import http3_client, http3_server
from tests.apps.http3.processes import (
    ADDRESS,
    assert_same,
    client,
    pattern,
    serving,
)

pytestmark = pytest.mark.usefixtures("engine")


def test_our_client_and_server(
    engine: str, port: int, folder: Path, certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    base = f"https://{ADDRESS}:{port}"
    paths = ["/large", "/page.html", "/empty", "/inner", "/sub/", "/1000000", "/0", "/with%20space"]
    done = client(
        engine,
        *("--ca", str(certificate[0])),
        *("--output", str(tmp_path)),
        *(f"{base}{path}" for path in paths),
        f"{base}/unreadable.tar.gz?query=1",
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    for line in done.stdout.splitlines():
        assert re.fullmatch(r"200 \S+ \d+ bytes in [\d.]+ seconds, [\d.]+ Mbit/s", line)
    assert len(done.stdout.splitlines()) == len(paths) + 1
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
    done = client(engine, "--ca", str(certificate[0]), *(f"{base}{path}" for path in OUTSIDE))
    assert done.returncode == 1
    said = dict(line.split(" ")[1::-1] for line in done.stdout.splitlines())
    assert said == {f"{base}{path}": "404" for path in OUTSIDE}
    assert "secret\n" not in done.stderr


def test_certificates_are_checked(engine: str, folder: Path) -> None:
    with serving(engine, folder, ["--link", "udp"]) as port:
        url = f"https://{ADDRESS}:{port}/1"
        refused = client(engine, url)
        assert refused.returncode == 1
        assert "certificate" in refused.stderr
        assert len(refused.stderr.splitlines()) == 1
        assert client(engine, "--insecure", url).returncode == 0


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["http://localhost/"], 2, "write it as https://"),
        (["https:///x"], 2, "write it as https://"),
        (["https://localhost:x/"], 2, "is not a URL"),
        (["https://me@localhost/"], 2, "leave the user out"),
        (["https://a/x", "https://b/x", "--output", "/tmp"], 2, "two URLs"),
        (["https://localhost/", "--ca", "/nowhere"], 1, "can't be read"),
        (["https://no such host/"], 1, "neither an address nor a host name"),
    ],
)
def test_mistakes_of_the_clients_user(
    capsys: pytest.CaptureFixture[str], words: list[str], status: int, said: str
) -> None:
    assert http3_client.main(words) == status
    err = capsys.readouterr().err
    assert said in err
    assert len(err.splitlines()) == 1


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

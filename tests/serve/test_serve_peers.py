"""Clients by others at `hoststack serve`, with engines and applications in processes of their own.

One server for all of them, which must still be well at the end.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.apps.http3.processes import program
from tests.daemon.conftest import PATIENCE_S
from tests.serve.conftest import Served, run_server

ADDRESS: Final = "127.0.0.1"
SESSIONS: Final = 20
SIZES: Final = (0, 6, 1000, 100_000)
#: Answers with as many bytes as the path says, or with what it got.
APPLICATION: Final = """
async def app(scope, receive, send):
    assert scope["type"] == "http" and scope["http_version"] == "3"
    body, more = b"", scope["method"] == "POST"
    while more:
        message = await receive()
        body, more = body + message["body"], message["more_body"]
    body = body or bytes(int(scope["path"][1:]))
    headers = [(b"content-length", b"%d" % len(body)), (b"x-custom", b"comes again")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("peers")
    (folder / "peers.py").write_text(APPLICATION)
    words = ("--lifespan", "off", "--workers", "1", "--apps", "2")
    words += ("--cli-socket", str(folder / "cli.sock"))
    with run_server(folder, "peers:app", *words) as server:
        assert server.port
        yield server
        assert server.stop() == 0
    assert "Traceback" not in server.log


@pytest.mark.parametrize("profile", ["chrome", "safari"])
def test_curl_as_browsers_send(served: Served, profile: str) -> None:
    requests = pytest.importorskip("curl_cffi", reason="curl_cffi is not installed").requests
    from curl_cffi import CurlHttpVersion

    for _ in range(SESSIONS):
        with requests.Session(
            impersonate=profile, verify=False, http_version=CurlHttpVersion.V3ONLY
        ) as session:
            for size_bytes in SIZES:
                url = f"https://{ADDRESS}:{served.port}/{size_bytes}"
                response = session.get(url, timeout=PATIENCE_S)
                assert (response.status_code, len(response.content)) == (200, size_bytes)
            response = session.post(url, data=b"x" * 70_000, timeout=PATIENCE_S)
            assert response.content == b"x" * 70_000


@pytest.mark.filterwarnings("ignore")
def test_niquests(served: Served) -> None:
    niquests = pytest.importorskip("niquests", reason="niquests is not installed")
    for _ in range(SESSIONS):
        with niquests.Session(disable_http1=True, disable_http2=True) as session:
            session.quic_cache_layer.add_domain(ADDRESS, served.port)
            for size_bytes in SIZES:
                url = f"https://{ADDRESS}:{served.port}/{size_bytes}"
                response = session.get(url, verify=False, timeout=PATIENCE_S)
                assert (response.status_code, len(response.content)) == (200, size_bytes)
                assert response.http_version == 30


def test_gtlsclient_asks_in_its_first_flight(served: Served, tmp_path: Path) -> None:
    path = program("gtlsclient", "ngtcp2-client 1.11")
    line = [path, "--no-quic-dump", "--no-http-dump", "--exit-on-all-streams-close", "-n", "20"]
    line += [f"--download={tmp_path}", f"--session-file={tmp_path / 'session'}"]
    line += [f"--tp-file={tmp_path / 'parameters'}", "--wait-for-ticket", ADDRESS]
    line += [str(served.port), f"https://{ADDRESS}:{served.port}/100000"]
    for number in range(2):
        log = subprocess.run(
            line,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=PATIENCE_S,
            check=False,
        ).stdout.decode(errors="replace")
        assert (tmp_path / "100000").read_bytes() == bytes(100_000), log[-2000:]
        assert ("0RTT STREAM" in log) is (number == 1), log[-2000:]

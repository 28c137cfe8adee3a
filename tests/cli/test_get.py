"""`hoststack get`, as its users run it, over the loopback interface."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from hoststack import QuicConfig, http3
from hoststack.cli.main import main
from hoststack.cli.targets import parse_target
from tests.httpx_transports.places import TLS, site_on_loopback


async def answer(request: http3.Request) -> None:
    path = (request.path or b"").decode()
    match path.partition("?")[0]:
        case "/echo":
            head = [("content-type", dict(request.headers).get(b"content-type", b"-"))]
            await request.respond(200, head, await request.read())
        case "/fields":
            lines = [b"host: " + (request.authority or b"")]
            lines += [b"%s: %s" % field for field in request.headers]
            await request.respond(200, [], b"\n".join(lines))
        case "/method":
            await request.respond(200, [], request.method)
        case "/away":
            await request.respond(302, [("location", "/method?redirected")])
        case "/elsewhere":
            await request.respond(301, [("location", "http://127.0.0.1/")])
        case "/loop":
            await request.respond(302, [("location", "/loop")])
        case "/cut":
            await request.send_headers(200, [("content-length", "10")])
            await request.send_all(b"half")
            await request.send_eof()
        case "/much":
            await request.respond(200, [], bytes(8 << 20))
        case "/never":
            await trio.sleep_forever()
        case "/refuse":
            request.reset(http3.ErrorCode.REQUEST_REJECTED)
        case "/missing":
            await request.respond(404, [], b"not here")
        case _:
            await request.respond(200, [("x-one", "1\tb")], path.encode())


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with site_on_loopback(answer, quic=QuicConfig(early_data=True)) as port:
        yield port


@pytest.fixture
def base(port: int) -> str:
    return f"https://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    assert isinstance(TLS.certificate, bytes)
    path.write_bytes(TLS.certificate)
    return str(path)


class Ran:
    """A command line, run to its end."""

    def __init__(self, capfd: pytest.CaptureFixture[str], *words: str) -> None:
        self.status = main(["get", *words])
        self.out, self.err = capfd.readouterr()


def test_content_goes_to_standard_output_in_order(
    base: str, ca: str, capfd: pytest.CaptureFixture[str]
) -> None:
    urls = [f"{base}/{number}" for number in range(20)]
    ran = Ran(capfd, "--cacert", ca, *urls)
    assert (ran.status, ran.err) == (0, "")
    assert ran.out == "".join(f"/{number}" for number in range(20))


def test_files(
    base: str,
    ca: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    urls = [f"{base}/a/b", f"{base}/c"]
    first = Ran(capfd, "--cacert", ca, "-o", "one", "-o", "two", *urls)
    assert (first.status, first.out, first.err) == (0, "", "")
    assert [Path(name).read_text() for name in ("one", "two")] == ["/a/b", "/c"]
    assert Ran(capfd, "--cacert", ca, "-O", *urls).status == 0
    assert [Path(name).read_text() for name in ("b", "c")] == ["/a/b", "/c"]
    Path("folder").mkdir()
    assert Ran(capfd, "--cacert", ca, "-o", "folder", *urls, f"{base}/").status == 0
    assert sorted(path.name for path in Path("folder").iterdir()) == ["b", "c", "index.html"]
    failed = Ran(capfd, "--cacert", ca, "-o", "nowhere/x", urls[0])
    assert (failed.status, len(failed.err.splitlines())) == (23, 1)


def test_requests(
    base: str,
    ca: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def out(*words: str) -> str:
        ran = Ran(capfd, "--cacert", ca, *words)
        assert (ran.status, ran.err) == (0, "")
        return ran.out

    (tmp_path / "data").write_text("from a file")
    assert out("-d", "a=1", "-d", f"@{tmp_path / 'data'}", f"{base}/echo") == "a=1&from a file"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff\0typed")))
    assert len(out("-d", "@-", f"{base}/echo")) > 0
    assert len(out("-d", "\udcff", f"{base}/echo")) > 0
    assert out("-d", "x", f"{base}/method") == "POST"
    assert out("-X", "PUT", f"{base}/method") == "PUT"
    shown = out("-H", "X-Two: 2", "-H", "Host: named.test", "-H", "Accept: a/b", f"{base}/fields")
    assert {"host: named.test", "x-two: 2", "accept: a/b"} <= set(shown.splitlines())
    assert out("-I", f"{base}/x") == "HTTP/3 200\nx-one: 1\\tb\ncontent-length: 2\n\n"
    assert out("-i", f"{base}/x").endswith("content-length: 2\n\n/x")
    assert out(f"{base}/away") == ""
    assert out("-L", "-d", "x", f"{base}/away") == "GET"
    assert out(f"{base}/missing") == "not here"
    assert out(f"{base}/x".replace("127.0.0.1", "localhost")) == "/x"
    place = f"10.0.0.1:{base.rpartition(':')[2]}:127.0.0.1"
    assert out("--resolve", place, f"{base}/x".replace("127.0.0.1", "10.0.0.1")) == "/x"


def test_a_reader_that_goes_away(base: str, ca: str) -> None:
    line = [sys.executable, "-m", "hoststack.cli.main", "get", "--cacert", ca, f"{base}/much"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert len(process.stdout.read(10)) == 10
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


def test_verbose_and_json(base: str, ca: str, capfd: pytest.CaptureFixture[str]) -> None:
    ran = Ran(capfd, "--cacert", ca, "-v", "--json", f"{base}/x", f"{base}/missing")
    assert ran.status == 0
    assert "* connected to " in ran.err
    assert "> GET /x HTTP/3" in ran.err
    assert "< HTTP/3 200" in ran.err
    told = [json.loads(line) for line in ran.out.splitlines()]
    assert {(one["url"], one["status"], one["bytes"]) for one in told} == {
        (f"{base}/x", 200, 2),
        (f"{base}/missing", 404, 8),
    }
    for one in told:
        assert 0 < one["connect_seconds"] <= one["first_byte_seconds"] <= one["seconds"]
        assert one["http_version"] == "3"
        assert one["rtt_seconds"] > 0


def test_sessions(base: str, ca: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["--cacert", ca, "--session-file", str(tmp_path / "sessions"), "--json", f"{base}/x"]
    told = [json.loads(Ran(capfd, *words, *more).out) for more in ((), (), ("--early-data",))]
    assert [(one["is_resumed"], one["early_data"]) for one in told] == [
        (False, "none"),
        (True, "none"),
        (True, "accepted"),
    ]


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["http://localhost/"], 3, "write it as https://"),
        (["https:///x"], 3, "write it as https://"),
        (["https://localhost:x/"], 3, "is not a URL"),
        (["https://me@localhost/"], 3, "leave the user out"),
        (["https://a/x", "https://b/x", "-o", "/tmp"], 3, "two URLs"),
        (["https://a/x", "https://b/y", "-o", "/nowhere"], 3, "one for each URL"),
        (["https://a/x", "-O", "-o", "x"], 3, "one of the two"),
        (["https://localhost/", "--cacert", "/nowhere"], 77, "can't be read"),
        (["https://localhost/", "--cert", "/nowhere"], 2, "without its key"),
        (["https://no such host/"], 3, "is not a server's name"),
        (["https://name.invalid/"], 6, "no address is known"),
        (["https://localhost/", "-d", "@/nowhere"], 26, "/nowhere"),
        (["https://localhost/", "-H", "nonsense"], 2, "NAME: VALUE"),
        (["https://localhost/", "--resolve", "a:b"], 2, "HOST:PORT:ADDRESS"),
        (["https://localhost/", "--early-data"], 2, "--session-file"),
        (["https://localhost/", "--link", "af_xdp"], 7, "interface"),
        (["https://localhost/", "--socket", "/nowhere"], 7, "/nowhere"),
        (["https://localhost/", "--socket", "/x", "--link", "udp"], 2, "the daemon has"),
        (["https://127.0.0.1:1/", "--connect-timeout", "0.2"], 28, "does not answer QUIC"),
        (["-f", "BASE/missing"], 22, "answers 404"),
        (["BASE/cut"], 18, "after 4 bytes"),
        (["BASE/never", "--max-time", "0.3"], 28, "--max-time"),
        (["BASE/refuse"], 56, "reset"),
        (["-L", "BASE/loop"], 47, "redirects"),
        (["-L", "BASE/elsewhere"], 3, "redirected to"),
        (["-H", "bad name: 1", "BASE/x"], 3, ""),
        (["-H", "connection: close", "BASE/x"], 3, "no such header field"),
    ],
)
def test_what_fails(
    base: str,
    ca: str,
    capfd: pytest.CaptureFixture[str],
    words: list[str],
    status: int,
    said: str,
) -> None:
    trust = [] if "--cacert" in words else ["--cacert", ca]
    ran = Ran(capfd, *trust, *(word.replace("BASE", base) for word in words))
    assert said in ran.err
    assert (ran.status, len(ran.err.splitlines())) == (status, 1)


def test_certificates_are_checked(base: str, capfd: pytest.CaptureFixture[str]) -> None:
    ran = Ran(capfd, f"{base}/x")
    assert (ran.status, ran.out) == (60, "")
    assert "certificate" in ran.err
    assert Ran(capfd, "-k", f"{base}/x").out == "/x"


@pytest.mark.parametrize(
    ("url", "path", "name"),
    [
        ("https://a", "/", "index.html"),
        ("https://a/b/", "/b/", "index.html"),
        ("https://a/b/..", "/b/..", "index.html"),
        ("https://a/ä?b=ö#c", "/%C3%A4?b=%C3%B6", "ä"),
        ("https://a/\udcff?\udcfe", "/%FF?%FE", "\udcff"),
    ],
)
def test_urls(url: str, path: str, name: str) -> None:
    target: Any = parse_target(url)
    assert (target.path, target.name, target.authority) == (path, name, "a")

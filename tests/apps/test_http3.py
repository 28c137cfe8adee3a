"""HTTP/3: our client and server with each other, with ngtcp2's and with caddy (quic-go).

Programs of others that are not installed are skipped, with what installs them.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import pylsqpack
import pytest
import trio
import trio.testing
from aioquic.buffer import encode_uint_var
from aioquic.h3.connection import ErrorCode, FrameType, StreamType, encode_frame
from aioquic.h3.events import HeadersReceived

import hoststack
import pyxdp
from apps import http3_client, http3_server
from apps.http3 import CHUNK_BYTES, Exchange, Http3Connection
from hoststack import QuicConfig, Stack, Stream, StreamResetError, TlsConfig
from hoststack.link.memory import MemoryNetwork
from tests.apps.echo_process import PATIENCE_S
from tests.support.netns import Side, VethPair

ADDRESS: Final = "127.0.0.1"
LARGE_BYTES: Final = 20_000_000
#: Small enough that the client always has a packet of its own in flight. One that only receives
#: would wait for a server that can't know its new address.
NARROW: Final = ("--max-stream-data-bidi-local=32K",)
#: Soon after the handshake, and long before the end of what NARROW lets through.
EARLY: Final = "20ms"

pytestmark = pytest.mark.usefixtures("engine")


def pattern(size_bytes: int) -> bytes:
    return (bytes(range(256)) * (size_bytes // 256 + 1))[:size_bytes]


# --- what is served, and by whom -----------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to serve, beside what must not be."""
    top = tmp_path_factory.mktemp("http3")
    root = top / "root"
    (root / "sub").mkdir(parents=True)
    (top / "secret").write_text("secret")
    (root / "large").write_bytes(random.Random(1).randbytes(LARGE_BYTES))
    (root / "page.html").write_text("<p>page")
    (root / "empty").touch()
    (root / "sub" / "index.html").write_text("index")
    (root / "with space").write_text("space")
    (root / "unreadable.tar.gz").write_text("archive")
    (root / "inner").symlink_to("page.html")
    (root / "out").symlink_to("../secret")
    (root / "up").symlink_to("..")
    (root / "loop").symlink_to("loop")
    os.mkfifo(root / "pipe")
    return root


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Files of a certificate and its key."""
    top = tmp_path_factory.mktemp("certificate")
    tls = TlsConfig.self_signed(["localhost", ADDRESS])
    paths = top / "certificate.pem", top / "key.pem"
    for path, source in zip(paths, (tls.certificate, tls.key), strict=True):
        assert isinstance(source, bytes)
        path.write_bytes(source)
    return paths


@contextmanager
def serving(
    engine: str, folder: Path, words: Sequence[str] = (), side: Side | None = None
) -> Iterator[int]:
    """The port of our server, which must still be well at the end."""
    address = side.ipv4 if side else ADDRESS
    line = [sys.executable, "-m", "apps.http3_server", "--engine", engine, "--root", str(folder)]
    line += [*words, f"quic://{address}:0"]
    with subprocess.Popen(
        side.command(*line) if side else line,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            said = process.stdout.readline()
            found = re.fullmatch(
                rf"http3_server: listening on {address} port (\d+), link \w+, engine {engine}\n",
                said,
            )
            assert found, said or process.communicate()
            yield int(found[1])
            process.terminate()
            _, err = process.communicate(timeout=PATIENCE_S)
            assert process.returncode == 128 + 15, err
            assert "Traceback" not in err
        finally:
            process.kill()


@pytest.fixture
def port(engine: str, folder: Path, certificate: tuple[Path, Path]) -> Iterator[int]:
    cert, key = map(str, certificate)
    with serving(engine, folder, ["--link", "udp", "--cert", cert, "--key", key]) as number:
        yield number


def client(engine: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run our client to its end."""
    return subprocess.run(
        [sys.executable, "-m", "apps.http3_client", "--engine", engine, *words],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def assert_same(received: Path, sent: Path) -> None:
    # Not `==` in the assertion: pytest would show the difference of megabytes.
    is_same = received.read_bytes() == sent.read_bytes()
    assert is_same, f"{received.name}: {received.stat().st_size} of {sent.stat().st_size} bytes"


# --- our client and our server -------------------------------------------------------------------


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


# --- the server and a client of our own making, over the memory link -----------------------------

SERVER, CLIENT = "10.0.0.1", "10.0.0.2"
URI: Final = f"quic://{SERVER}:443"
Handler = Callable[[hoststack.Connection], Awaitable[None]]


@asynccontextmanager
async def over_memory(
    handler: Handler, config: QuicConfig | None = None, **impairments: Any
) -> AsyncIterator[Stack]:
    """The stack of a client that a server with this handler can be reached from."""
    network = MemoryNetwork(**impairments)
    tls = TlsConfig.self_signed([SERVER])
    async with (
        hoststack.open_stack(link=network.link(SERVER), config=config) as server,
        hoststack.open_stack(link=network.link(CLIENT), config=config) as stack,
        trio.open_nursery() as nursery,
    ):
        await nursery.start(partial(server.serve, URI, handler, tls=tls, alpn=["h3"]))
        yield stack
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def http3(stack: Stack) -> AsyncIterator[Http3Connection]:
    """An HTTP/3 connection of that stack."""
    async with (
        stack.connect(URI, tls=TlsConfig(verify=False), alpn=["h3"]) as connection,
        trio.open_nursery() as nursery,
    ):
        http = await Http3Connection.over(connection, is_client=True)
        nursery.start_soon(http.run)
        yield http
        nursery.cancel_scope.cancel()


async def request(http: Http3Connection, path: str, method: str = "GET") -> Exchange:
    return await http.request(
        [
            (b":method", method.encode()),
            (b":scheme", b"https"),
            (b":authority", SERVER.encode()),
            (b":path", path.encode()),
        ]
    )


async def response(exchange: Exchange) -> tuple[dict[bytes, bytes], bytes]:
    """The header section and the content."""
    first = await exchange.receive()
    assert isinstance(first, HeadersReceived)
    content = await rest(exchange)
    await exchange.aclose()
    return dict(first.headers), content


async def rest(exchange: Exchange) -> bytes:
    """The content, after the header section."""
    content = bytearray()
    while (part := await exchange.receive()) is not None:
        assert not isinstance(part, HeadersReceived)
        content += part.data
    return bytes(content)


def site_of(folder: Path) -> Handler:
    return partial(http3_server.serve_connection, http3_server.Site(str(folder)))


def test_methods_and_types(folder: Path) -> None:
    async def main() -> None:
        async with over_memory(site_of(folder)) as stack, http3(stack) as http:
            headers, content = await response(await request(http, "/page.html"))
            assert headers == {
                b":status": b"200",
                b"content-type": b"text/html",
                b"content-length": b"7",
            }
            assert content == b"<p>page"
            headers, _ = await response(await request(http, "/unreadable.tar.gz"))
            assert headers[b"content-type"] == b"application/octet-stream"
            headers, content = await response(await request(http, "/empty", "HEAD"))
            assert headers[b"content-length"] == b"0"
            for method in ("POST", "PUT", "DELETE", "OPTIONS", "get"):
                headers, _ = await response(await request(http, "/page.html", method))
                assert (headers[b":status"], headers[b"allow"]) == (b"405", b"GET, HEAD")

    trio.run(main)


def test_a_file_that_becomes_shorter_is_no_whole_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(4 * CHUNK_BYTES))
    config = QuicConfig(rx_fifo_bytes=4096, tx_fifo_bytes=4096)

    async def main() -> None:
        async with over_memory(site_of(tmp_path), config) as stack, http3(stack) as http:
            exchange = await request(http, "/file")
            await exchange.receive()
            os.truncate(tmp_path / "file", CHUNK_BYTES)
            with pytest.raises(StreamResetError) as caught:
                await rest(exchange)
            assert caught.value.code == ErrorCode.H3_INTERNAL_ERROR
            await exchange.aclose()
            assert (await response(await request(http, "/7")))[1] == pattern(7)

    trio.run(main)


def test_a_response_waits_for_its_reader(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    produced = 0
    read = http3_server.Generated.read

    async def counting(self: http3_server.Generated, offset: int, count: int) -> bytes:
        nonlocal produced
        data = await read(self, offset, count)
        produced += len(data)
        return data

    monkeypatch.setattr(http3_server.Generated, "read", counting)
    config = QuicConfig(rx_fifo_bytes=65536, tx_fifo_bytes=65536)

    async def main() -> None:
        async with over_memory(site_of(folder), config) as stack, http3(stack) as http:
            exchange = await request(http, "/5000000")
            await trio.testing.wait_all_tasks_blocked(0.1)
            assert 0 < produced <= 2 * 65536 + CHUNK_BYTES
            _, content = await response(exchange)
            assert content == pattern(5_000_000)

    trio.run(main)


def test_requests_that_are_given_up_end_alone(folder: Path) -> None:
    async def main() -> None:
        async with over_memory(site_of(folder)) as stack, http3(stack) as http:
            for _ in range(300):  # More than the server allows at once.
                exchange = await request(http, "/1000000000")
                await exchange.receive()
                await exchange.aclose(ErrorCode.H3_REQUEST_CANCELLED)
            assert (await response(await request(http, "/7")))[1] == pattern(7)

    trio.run(main)


def test_many_requests_over_a_bad_network(folder: Path) -> None:
    async def main() -> None:
        bad: dict[str, Any] = {
            "seed": 3,
            "loss": 0.03,
            "reorder": 0.2,
            "duplicate": 0.1,
            "corrupt": 0.02,
        }
        got = 0

        async def one(size_bytes: int) -> None:
            nonlocal got
            _, content = await response(await request(http, f"/{size_bytes}"))
            assert content == pattern(size_bytes)
            got += 1

        async with over_memory(site_of(folder), **bad) as stack, http3(stack) as http:
            async with trio.open_nursery() as nursery:
                for size_bytes in range(0, 60_000, 1000):
                    nursery.start_soon(one, size_bytes)
            assert got == 60

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def whole(stream: Stream) -> bytes:
    return b"".join([chunk async for chunk in stream])


def test_requests_wait_for_the_header_table(folder: Path) -> None:
    """The bytes of QPACK's encoder stream come after what refers to them."""
    encoder = pylsqpack.Encoder()
    table = bytearray(encode_uint_var(StreamType.QPACK_ENCODER))
    table += encoder.apply_settings(max_table_capacity=4096, blocked_streams=16)

    async def main() -> None:
        async with (
            over_memory(site_of(folder)) as stack,
            stack.connect(URI, tls=TlsConfig(verify=False), alpn=["h3"]) as connection,
        ):
            blocked = []
            for number in range(8):
                stream = await connection.open_stream()
                instructions, section = encoder.encode(
                    stream.stream_id,
                    [
                        (b":method", b"GET"),
                        (b":scheme", b"https"),
                        (b":authority", b"a name that is in no table yet"),
                        (b":path", b"/7"),
                    ],
                )
                table.extend(instructions)
                await stream.send_all(encode_frame(FrameType.HEADERS, section))
                if number % 2:
                    await stream.send_eof()
                if section[0]:  # It needs entries of the table (RFC 9204 section 4.5.1.1).
                    blocked.append(stream)
                else:
                    assert pattern(7) in await whole(stream)
            assert len(blocked) >= 4
            await trio.testing.wait_all_tasks_blocked(0.05)
            encoder_stream = await connection.open_stream(unidirectional=True)
            await encoder_stream.send_all(table)
            for stream in blocked:
                assert pattern(7) in await whole(stream)

    trio.run(main)


def uint_var(number: int) -> bytes:
    return bytes(encode_uint_var(number))


CONTROL: Final = uint_var(StreamType.CONTROL)
SETTINGS: Final = encode_frame(FrameType.SETTINGS, b"")


@pytest.mark.parametrize(
    ("unidirectional", "streams", "code"),
    [
        (True, [CONTROL + encode_frame(FrameType.GOAWAY, b"\0")], ErrorCode.H3_MISSING_SETTINGS),
        (True, [CONTROL + SETTINGS + SETTINGS], ErrorCode.H3_FRAME_UNEXPECTED),
        (True, [CONTROL + SETTINGS] * 2, ErrorCode.H3_STREAM_CREATION_ERROR),
        (
            True,
            [CONTROL + uint_var(FrameType.SETTINGS) + uint_var(1 << 30) + bytes(100_000)],
            ErrorCode.H3_EXCESSIVE_LOAD,
        ),
        (
            True,
            [uint_var(StreamType.QPACK_ENCODER) + b"\xff" * 100],
            ErrorCode.QPACK_ENCODER_STREAM_ERROR,
        ),
        (True, [uint_var(StreamType.PUSH)], ErrorCode.H3_STREAM_CREATION_ERROR),
        (False, [encode_frame(FrameType.DATA, b"data")], ErrorCode.H3_FRAME_UNEXPECTED),
        (
            False,
            [encode_frame(FrameType.HEADERS, b"\xff" * 50)],
            ErrorCode.QPACK_DECOMPRESSION_FAILED,
        ),
        (
            False,
            [uint_var(FrameType.HEADERS) + uint_var(1 << 40) + bytes(100_000)],
            ErrorCode.H3_EXCESSIVE_LOAD,
        ),
    ],
)
def test_a_peer_that_breaks_the_rules_ends_alone(
    folder: Path, unidirectional: bool, streams: list[bytes], code: ErrorCode
) -> None:
    async def main() -> None:
        tls = TlsConfig(verify=False)
        async with over_memory(site_of(folder)) as stack, http3(stack) as http:
            async with stack.connect(URI, tls=tls, alpn=["h3"]) as connection:
                for data in streams:
                    stream = await (
                        connection.open_stream(unidirectional=True)
                        if unidirectional
                        else connection.open_stream()
                    )
                    await stream.send_all(data)
                with trio.fail_after(PATIENCE_S):
                    info = await connection.wait_closed()
            assert (info.code, info.is_application, info.by_peer) == (code, True, True)
            assert (await response(await request(http, "/7")))[1] == pattern(7)

    trio.run(main)


def test_a_stream_without_a_request_is_reset(folder: Path) -> None:
    async def main() -> None:
        async with (
            over_memory(site_of(folder)) as stack,
            stack.connect(URI, tls=TlsConfig(verify=False), alpn=["h3"]) as connection,
        ):
            stream = await connection.open_stream()
            await stream.send_eof()
            with pytest.raises(StreamResetError) as caught:
                await stream.receive_some()
            assert caught.value.code == ErrorCode.H3_REQUEST_INCOMPLETE

    trio.run(main)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"", "without a response"),
        (uint_var(FrameType.HEADERS) + b"\x20", "H3_FRAME_ERROR"),
        (encode_frame(FrameType.DATA, b"data"), "H3_FRAME_UNEXPECTED"),
        (None, "reset the stream"),
    ],
)
def test_the_client_says_what_a_server_does_wrong(
    capsys: pytest.CaptureFixture[str], answer: bytes | None, said: str
) -> None:
    async def serve(connection: hoststack.Connection) -> None:
        async for stream in connection.streams():
            if isinstance(stream, Stream):
                if answer is None:
                    stream.reset(ErrorCode.H3_INTERNAL_ERROR)
                elif answer:
                    await stream.send_all(answer)
                await stream.aclose()

    async def main() -> bool:
        async with over_memory(serve) as stack:
            download = http3_client.Download(TlsConfig(verify=False))
            target = http3_client.parse_target(f"https://{SERVER}/x", None)
            await download.visit(stack, [target, target])
            return download.has_failed

    assert trio.run(main)
    err = capsys.readouterr().err
    assert said in err
    assert len(err.splitlines()) == 2


# --- ngtcp2's client at our server ---------------------------------------------------------------


def program(name: str, package: str) -> str:
    """The path of a program of others; skips where it is not installed."""
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None:
        pytest.skip(f"{name} is not installed: scripts/bootstrap.sh brings {package}")
    return found


@pytest.fixture
def fetch(tmp_path: Path) -> Callable[..., str]:
    """Runs gtlsclient, which puts files into tmp_path; what it logged."""
    path = program("gtlsclient", "ngtcp2-client 1.11")

    def run(
        port: int,
        *words: str,
        names: Sequence[str] = ("large",),
        address: str = ADDRESS,
        side: Side | None = None,
    ) -> str:
        line = [path, "--no-quic-dump", "--no-http-dump", "--exit-on-all-streams-close"]
        line += [f"--download={tmp_path}", *words, address, str(port)]
        line += [f"https://{address}:{port}/{name}" for name in names]
        done = subprocess.run(
            side.command(*line) if side else line,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=PATIENCE_S,
            check=False,
        )
        log = done.stdout.decode(errors="replace")
        assert done.returncode == 0, log[-2000:]
        return log

    return run


def test_gtlsclient_downloads(
    port: int, folder: Path, tmp_path: Path, fetch: Callable[..., str]
) -> None:
    fetch(port, "-q", names=["large", "page.html", "inner", "1000000", "with%20space"])
    for name in ("large", "page.html", "inner"):
        assert_same(tmp_path / name, folder / name)
    assert (tmp_path / "1000000").read_bytes() == pattern(1_000_000)


@pytest.mark.parametrize(
    ("method", "size", "status"), [("HEAD", 0, 200), ("POST", 4, 405), ("GET", 7, 200)]
)
def test_gtlsclients_methods(
    port: int, tmp_path: Path, fetch: Callable[..., str], method: str, size: int, status: int
) -> None:
    log = fetch(port, f"--http-method={method}", names=["page.html"])
    assert f"[:status: {status}]" in log
    assert (tmp_path / "page.html").stat().st_size == size


def test_gtlsclient_updates_keys(
    port: int, folder: Path, tmp_path: Path, fetch: Callable[..., str]
) -> None:
    log = fetch(port, f"--key-update={EARLY}", *NARROW)
    assert "key update confirmed" in log
    assert_same(tmp_path / "large", folder / "large")


@pytest.mark.parametrize("words", [(), ("--nat-rebinding",)], ids=["migrates", "is rebound"])
def test_gtlsclient_changes_its_address(
    port: int, folder: Path, tmp_path: Path, fetch: Callable[..., str], words: tuple[str, ...]
) -> None:
    log = fetch(port, f"--change-local-addr={EARLY}", *words, *NARROW)
    found = re.search(r"Local address is now \[127\.0\.0\.1\]:(\d+)", log)
    assert found
    assert f"Received packet: local=[127.0.0.1]:{found[1]} " in log, "the server did not follow"
    assert_same(tmp_path / "large", folder / "large")


def _handshake_bytes(log: str) -> int:
    """What the server said in its second flight: less than 300 bytes without a certificate."""
    sizes = re.findall(r"frm rx \d+ Handshake CRYPTO\(0x06\) offset=\d+ len=(\d+)", log)
    assert sizes
    return sum(map(int, sizes))


def test_gtlsclient_resumes(
    port: int, folder: Path, tmp_path: Path, fetch: Callable[..., str]
) -> None:
    session = f"--session-file={tmp_path / 'session'}"
    first = fetch(port, session, "--wait-for-ticket", names=["page.html"])
    again = fetch(port, session, names=["inner"])
    assert _handshake_bytes(again) < 300 < _handshake_bytes(first)
    assert_same(tmp_path / "inner", folder / "inner")


def test_gtlsclient_asks_in_its_first_flight(
    port: int, folder: Path, tmp_path: Path, fetch: Callable[..., str]
) -> None:
    words = [f"--session-file={tmp_path / 'session'}", f"--tp-file={tmp_path / 'parameters'}"]
    fetch(port, *words, "--wait-for-ticket", names=["page.html"])
    log = fetch(port, *words, names=["inner"])
    assert re.search(r"frm tx \d+ 0RTT STREAM", log)
    assert "Early data was rejected" not in log
    assert_same(tmp_path / "inner", folder / "inner")


def test_gtlsclient_loses_packets(
    port: int, folder: Path, tmp_path: Path, fetch: Callable[..., str]
) -> None:
    fetch(port, "-q", "--rx-loss=0.02", "--tx-loss=0.02")
    assert_same(tmp_path / "large", folder / "large")


@pytest.mark.needs_root
def test_gtlsclient_at_a_server_over_af_xdp(
    engine: str, veth_pair: VethPair, folder: Path, tmp_path: Path, fetch: Callable[..., str]
) -> None:
    works, why = pyxdp.available()
    if not works:
        pytest.skip(why)
    a, b = veth_pair.a, veth_pair.b
    with serving(engine, folder, ["--link", "af_xdp", "--interface", a.ifname], side=a) as port:
        fetch(port, "-q", address=a.ipv4, side=b)
        assert_same(tmp_path / "large", folder / "large")
        log = fetch(port, f"--change-local-addr={EARLY}", *NARROW, address=a.ipv4, side=b)
        assert "Local address is now" in log
        assert_same(tmp_path / "large", folder / "large")


# --- our client at servers of others -------------------------------------------------------------

#: A version that no server knows, which each answers with those that it does (RFC 9000 section 6).
PROBE: Final = bytes.fromhex("c01a2a3a4a 08 0102030405060708 00").ljust(1200, b"\0")


def free_port() -> int:
    """A UDP and TCP port of ADDRESS that nobody uses."""
    with (
        socket.socket(type=socket.SOCK_DGRAM) as udp,
        socket.socket() as tcp,
    ):
        udp.bind((ADDRESS, 0))
        port: int = udp.getsockname()[1]
        tcp.bind((ADDRESS, port))
        return port


def wait_until_it_answers(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Until a QUIC server does; fails if it ends instead."""
    with socket.socket(type=socket.SOCK_DGRAM) as probe:
        probe.connect((ADDRESS, port))
        probe.settimeout(0.1)
        for _ in range(500):
            try:
                probe.send(PROBE)
                if probe.recv(2048):
                    return
            except (ConnectionRefusedError, TimeoutError):
                pass
            try:
                process.wait(0.02)
            except subprocess.TimeoutExpired:
                continue
            break
    pytest.fail(f"it does not serve: {log.read_text()}")


def caddyfile(port: int, folder: Path, certificate: tuple[Path, Path]) -> str:
    cert, key = certificate
    # Clients name no server that is an address: default_sni finds the certificate.
    return f"""{{
    admin off
    auto_https disable_redirects
    default_sni localhost
    servers {{
        protocols h1 h2 h3
    }}
}}
https://{ADDRESS}:{port} {{
    bind {ADDRESS}
    tls {cert} {key}
    root * {folder}
    file_server
}}
"""


@pytest.fixture(params=["gtlsserver", "caddy"])
def other_server(
    request: pytest.FixtureRequest, folder: Path, certificate: tuple[Path, Path], tmp_path: Path
) -> Iterator[str]:
    """The base URL of a server by somebody else."""
    port = free_port()
    if request.param == "caddy":
        config = tmp_path / "Caddyfile"
        config.write_text(caddyfile(port, folder, certificate))
        line = [program("caddy", "caddy"), "run", "--config", str(config)]
        line += ["--adapter", "caddyfile"]
    else:
        cert, key = map(str, certificate)
        line = [program("gtlsserver", "ngtcp2-server 1.11"), "-q", "-d", str(folder)]
        line += [ADDRESS, str(port), key, cert]
    log = tmp_path / "log"
    # caddy keeps things below $HOME.
    surroundings = {**os.environ, "HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path)}
    with (
        log.open("wb") as output,
        subprocess.Popen(line, stdout=output, stderr=output, env=surroundings) as process,
    ):
        try:
            wait_until_it_answers(process, port, log)
            yield f"https://{ADDRESS}:{port}"
        finally:
            process.kill()
    # What nghttp3 says when a peer stops or ends what has to stay open.
    assert "CRITICAL_STREAM" not in log.read_text()


def test_our_client_at_servers_of_others(
    engine: str,
    other_server: str,
    folder: Path,
    certificate: tuple[Path, Path],
    tmp_path: Path,
) -> None:
    names = ["large", "page.html", "empty", "inner"]
    into = tmp_path / "into"
    into.mkdir()
    words = ["--ca", str(certificate[0])]
    done = client(
        engine, *words, "--output", str(into), *(f"{other_server}/{name}" for name in names)
    )
    assert done.returncode == 0, done.stderr
    for name in names:
        assert_same(into / name, folder / name)
    missing = client(engine, *words, *[f"{other_server}/nothing"] * 20)
    assert missing.returncode == 1
    assert [line[:4] for line in missing.stdout.splitlines()] == ["404 "] * 20
    assert missing.stderr.count("the server answers 404") == 20


def test_our_client_moves_at_servers_of_others(
    engine: str, other_server: str, folder: Path, request: pytest.FixtureRequest
) -> None:
    if engine != "native":
        pytest.skip("only the native engine's connections move")
    # Debian's quic-go says disable_active_migration: what it forbids disturbs nothing.
    is_forbidden = "caddy" in request.node.name
    authority = other_server.removeprefix("https://")

    async def main() -> None:
        async with (
            hoststack.open_stack(link="udp") as stack,
            stack.connect(
                f"quic://{authority}", tls=TlsConfig(verify=False), alpn=["h3"]
            ) as connection,
            trio.open_nursery() as nursery,
        ):
            http = await Http3Connection.over(connection, is_client=True)
            nursery.start_soon(http.run)
            # To another port, to another address, and back to the first.
            for local in (None, "127.0.0.3", ADDRESS):
                exchange = await http.request(
                    [
                        (b":method", b"GET"),
                        (b":scheme", b"https"),
                        (b":authority", authority.encode()),
                        (b":path", b"/large"),
                    ]
                )
                assert isinstance(await exchange.receive(), HeadersReceived)
                before = connection.local
                if is_forbidden:
                    with pytest.raises(hoststack.MigrationError, match="the peer forbids"):
                        await connection.migrate(local)
                else:
                    await connection.migrate(local)
                assert (connection.local == before) == is_forbidden
                assert await rest(exchange) == (folder / "large").read_bytes()
            moves = (await connection.statistics())["path_changes"]
            assert moves == (0 if is_forbidden else 3)
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_our_client_resumes_at_servers_of_others(
    engine: str,
    other_server: str,
    folder: Path,
    certificate: tuple[Path, Path],
    tmp_path: Path,
) -> None:
    words = ["--ca", str(certificate[0]), "--session-file", str(tmp_path / "sessions")]
    words += ["--output", str(tmp_path), f"{other_server}/page.html"]
    first = client(engine, *words)
    assert (first.returncode, first.stderr) == (0, "")
    again = client(engine, *words)
    assert again.returncode == 0, again.stderr
    assert "session resumed, early data: none" in again.stderr
    assert_same(tmp_path / "page.html", folder / "page.html")
    if engine == "aioquic":
        refused = client(engine, *words, "--early-data")
        assert refused.returncode == 1
        assert "take the native one" in refused.stderr
        return
    early = client(engine, *words, "--early-data")
    assert early.returncode == 0, early.stderr
    assert "session resumed, early data: accepted" in early.stderr
    assert_same(tmp_path / "page.html", folder / "page.html")

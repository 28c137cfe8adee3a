"""The access log: its formats, and how it is written."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import trio

from hoststack import http3
from hoststack.asgi import AccessLog, ApplicationError, AsgiConfig, Entry
from tests.asgi.serving import SERVER, answering, run, serving, text
from tests.http3.peers import TRUSTING

ENTRY = Entry(
    client="10.0.0.2",
    method="GET",
    target=b"/a?b",
    protocol="HTTP/3",
    status=200,
    body_bytes=5,
    seconds=0.25,
    headers=[(b"host", b"h"), (b"user-agent", b"curl"), (b"referer", b"https://x/")],
    request_id="4-0",
)
TIME = r"\[\d\d/[A-Z][a-z][a-z]/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}\]"


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def written(tmp_path: Path, entry: Entry, format: Any) -> str:
    with AccessLog(str(tmp_path / "log"), format) as log:
        log.add(entry)
    [line] = lines(tmp_path / "log")
    return line


def test_formats(tmp_path: Path) -> None:
    common = rf'10\.0\.0\.2 - - {TIME} "GET /a\?b HTTP/3" 200 5'
    assert re.fullmatch(common, written(tmp_path, ENTRY, "common"))
    (tmp_path / "log").unlink()
    combined = rf'{common} "https://x/" "curl" 4-0 0\.250000'
    assert re.fullmatch(combined, written(tmp_path, ENTRY, "combined"))
    (tmp_path / "log").unlink()
    fields = json.loads(written(tmp_path, ENTRY, "json"))
    assert fields.pop("time")
    assert fields == {
        "id": "4-0",
        "client": "10.0.0.2",
        "method": "GET",
        "target": "/a?b",
        "protocol": "HTTP/3",
        "status": 200,
        "body_bytes": 5,
        "seconds": 0.25,
        "host": "h",
        "referer": "https://x/",
        "user_agent": "curl",
    }
    with pytest.raises(ValueError, match="common, combined or json"):
        AccessLog("-", "short")  # type: ignore[arg-type]


@pytest.mark.parametrize("format", ["common", "combined", "json"])
@pytest.mark.parametrize(
    "bad",
    [
        b'" 200 5\r\n10.0.0.9 - -',
        b"\x1b[2J",
        b"\xff\xfe",
        b'\\" "',
        "\u202e".encode(),
        "é\\".encode(),
    ],
)
def test_no_request_forges_a_line(tmp_path: Path, format: Any, bad: bytes) -> None:
    entry = ENTRY._replace(target=b"/" + bad, headers=[(b"user-agent", bad), (b"referer", bad)])
    line = written(tmp_path, entry, format)
    assert line.isprintable()
    if format != "json":
        assert line.count('"') == (2 if format == "common" else 6)
        # Programs that read logs may take `\"` for a quote inside the field.
        assert not re.search(r"\\(?!x[0-9a-f]{2}|u[0-9a-f]{4}|[rnt])", line)


def test_a_write_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    writes: list[bytes] = []
    write = os.write

    def seen(fd: int, data: bytes) -> int:
        if b"/batch" in data:
            writes.append(data)
            return len(data)
        return write(fd, data)

    async def main() -> None:
        log = AccessLog(1)
        async with (
            serving(answering(b"x"), AsgiConfig(lifespan="off"), access_log=log) as (_, stack),
            http3.open_client(stack, SERVER, tls=TRUSTING) as client,
        ):
            monkeypatch.setattr(os, "write", seen)
            async with trio.open_nursery() as nursery:
                for _ in range(50):
                    nursery.start_soon(text, client, "/batch")
            await trio.sleep(1)
        assert b"".join(writes).count(b"\n") == 50
        assert len(writes) < 15

    run(main)


def test_a_file_that_is_moved(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = AccessLog(str(path), "common")
    log.add(ENTRY)
    log.flush()
    path.rename(tmp_path / "old")
    log.add(ENTRY)
    log.reopen()
    log.add(ENTRY)
    log.close()
    assert (len(lines(tmp_path / "old")), len(lines(path))) == (2, 1)
    assert path.stat().st_mode & 0o777 == 0o640


def test_files_that_can_not_be_opened(tmp_path: Path) -> None:
    for path in (str(tmp_path), str(tmp_path / "no" / "log"), "a\0b"):
        with pytest.raises(ApplicationError, match="check path and permissions"):
            AccessLog(path)


def test_a_disk_that_is_full(caplog: pytest.LogCaptureFixture) -> None:
    fd = os.open("/dev/full", os.O_WRONLY)
    log = AccessLog(fd)
    for _ in range(3):
        log.add(ENTRY)
        log.flush()
    os.close(fd)
    [record] = caplog.records
    assert "No space left on device: make room" in record.getMessage()
    assert log.lost_lines == 3


def test_lines_do_not_gather(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    monkeypatch.setattr(os, "write", lambda _, data: sizes.append(len(data)) or len(data))
    log = AccessLog(1, "common")
    for _ in range(30_000):
        log.add(ENTRY)
    assert sizes
    assert max(sizes) < 2 << 20


def test_clients_that_leave_are_logged_as_499(tmp_path: Path) -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await receive()

    async def main() -> None:
        log = AccessLog(str(tmp_path / "log"))
        off = AsgiConfig(lifespan="off")
        async with (
            serving(application, off, access_log=log) as (_, stack),
            http3.open_client(stack, SERVER, tls=TRUSTING) as client,
        ):
            async with await client.open("GET", "/") as response:
                await response.send_eof()
                await trio.sleep(1)
            await trio.sleep(1)

    run(main)
    [line] = lines(tmp_path / "log")
    assert '"GET / HTTP/3" 499 0' in line

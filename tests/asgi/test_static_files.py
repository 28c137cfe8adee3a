"""The files of a folder: what is found, in which form, and what is not."""

from __future__ import annotations

import asyncio
import os
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import trio

from hoststack.asgi import ApplicationError, AsgiConfig, StaticFiles, file_parts, kept_files
from hoststack.asgi.static_files import content_type
from tests.asgi.serving import run, talking, text
from tests.http3.peers import pattern

LARGE = pattern(700_000)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    root = tmp_path / "site"
    (root / "sub").mkdir(parents=True)
    (root / "empty").mkdir()
    (root / "index.html").write_text("the index")
    (root / "sub" / "index.html").write_text("below")
    (root / "a b.txt").write_text("0123456789")
    (root / "page.css").write_text("plain")
    (root / "page.css.br").write_text("BR")
    (root / "page.css.gz").write_text("GZ")
    (root / "none.js").write_text("")
    (root / "large.bin").write_bytes(LARGE)
    (root / "inside").symlink_to("sub")
    (root / "outside").symlink_to("..")
    (root / "secret.txt").symlink_to(tmp_path / "secret")
    (root / "loop").symlink_to("loop")
    (root / "shadow.css").write_text("shadow")
    (root / "shadow.css.br").symlink_to(tmp_path / "secret")
    os.mkfifo(root / "fifo")
    (tmp_path / "secret").write_text("SECRET")
    (tmp_path / "site2").mkdir()
    (tmp_path / "site2" / "x").write_text("SECRET")
    return root


def ask(
    site: Path,
    path: str,
    method: str = "GET",
    root_path: str = "",
    application: StaticFiles | None = None,
    **headers: str,
) -> tuple[int, dict[str, str], bytes]:
    """Ask as a server would that has no extensions."""
    raw, _, query = path.encode().partition(b"?")
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": raw,
        "query_string": query,
        "root_path": root_path,
        "headers": [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()],
    }
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run((application or StaticFiles(site))(scope, None, send))
    fields = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], fields, b"".join(each.get("body", b"") for each in sent[1:])


def test_files_and_folders(site: Path) -> None:
    assert ask(site, "/")[2] == b"the index"
    assert ask(site, "/index.html?q")[2] == b"the index"
    assert ask(site, "//sub/./")[2] == b"below"
    assert ask(site, "/inside/")[2] == b"below"
    assert ask(site, "/a%20b.txt")[2] == b"0123456789"
    assert ask(site, "/large.bin")[2] == LARGE
    assert ask(site, "/none.js")[::2] == (200, b"")
    status, fields, content = ask(site, "/a%20b.txt", "HEAD")
    assert (status, fields["content-length"], content) == (200, "10", b"")
    assert ask(site, "/api/a%20b.txt", root_path="/api")[0] == 200


def test_a_folder_without_its_slash_is_redirected_within_this_site(site: Path) -> None:
    status, fields, _ = ask(site, "/sub?a=b")
    assert (status, fields["location"]) == (308, "/sub/?a=b")
    assert ask(site, "//sub")[1]["location"] == "/sub/"  # not to another host
    assert ask(site, "/api/sub", root_path="/api")[1]["location"] == "/api/sub/"


@pytest.mark.parametrize(
    "path",
    [
        "/no",
        "/empty/",
        "/a%20b.txt/",
        "/../secret",
        "/%2e%2e/secret",
        "/.%2E/secret",
        "/sub/../../secret",
        "/sub%2f..%2f..%2fsecret",
        "/..%2fsecret",
        "/sub%2findex.html",
        "/index.html%00",
        "/%00",
        "/secret.txt",
        "/outside/secret",
        "/outside/site2/x",
        "/outside/",
        "/loop",
        "/fifo",
        "/" + "x" * 300,
        "/" + "x/" * 3000,
        "*",
        "",
        "/index.html/..",
    ],
)
def test_what_is_not_there(site: Path, path: str) -> None:
    assert ask(site, path)[0] == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_other_methods(site: Path, method: str) -> None:
    status, fields, _ = ask(site, "/", method)
    assert (status, fields["allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize(
    ("value", "status", "content"),
    [
        ("bytes=0-3", 206, b"0123"),
        ("bytes=8-", 206, b"89"),
        ("bytes=-3", 206, b"789"),
        ("bytes=-99", 206, b"0123456789"),
        ("bytes=5-99999", 206, b"56789"),
        ("BYTES = 0-0", 206, b"0"),
        ("bytes=10-", 416, b"416\n"),
        ("bytes=-0", 416, b"416\n"),
        ("bytes=5-2", 200, b"0123456789"),
        ("bytes=0-1,3-4", 200, b"0123456789"),
        ("lines=0-1", 200, b"0123456789"),
        ("bytes=a-b", 200, b"0123456789"),
        ("bytes=-", 200, b"0123456789"),
        ("bytes", 200, b"0123456789"),
        ("bytes=+1-2", 200, b"0123456789"),
        ("bytes=" + "9" * 5000 + "-", 200, b"0123456789"),
    ],
)
def test_ranges(site: Path, value: str, status: int, content: bytes) -> None:
    got, fields, body = ask(site, "/a%20b.txt", range=value)
    assert (got, body) == (status, content)
    if status == 206:
        assert int(fields["content-length"]) == len(content)
        assert fields["content-range"].endswith("/10")
    elif status == 416:
        assert fields["content-range"] == "bytes */10"


def test_conditions(site: Path) -> None:
    path = "/a%20b.txt"
    fields = ask(site, path)[1]
    tag, date = fields["etag"], fields["last-modified"]
    old = "Mon, 01 Jan 2001 00:00:00 GMT"
    for headers, status in (
        ({"if_none_match": tag}, 304),
        ({"if_none_match": f'"x", W/{tag}'}, 304),
        ({"if_none_match": "*"}, 304),
        ({"if_none_match": '"x"', "if_modified_since": date}, 200),
        ({"if_modified_since": date}, 304),
        ({"if_modified_since": old}, 200),
        ({"if_modified_since": "yesterday"}, 200),
        ({"if_match": tag}, 200),
        ({"if_match": '"x"'}, 412),
        ({"if_unmodified_since": old}, 412),
        ({"range": "bytes=0-0", "if_range": tag}, 206),
        ({"range": "bytes=0-0", "if_range": date}, 206),
        ({"range": "bytes=0-0", "if_range": '"x"'}, 200),
        ({"range": "bytes=0-0", "if_range": f"W/{tag}"}, 200),
        ({"range": "bytes=0-0", "if_range": old}, 200),
        ({"range": "bytes=0-0", "if_none_match": tag}, 304),
    ):
        assert ask(site, path, **headers)[0] == status, headers
    assert ask(site, path, "HEAD", range="bytes=0-0")[0] == 200


@pytest.mark.parametrize(
    ("accepted", "coding", "content"),
    [
        ("gzip, deflate, br", "br", b"BR"),
        ("gzip", "gzip", b"GZ"),
        ("br;q=0, gzip;q=0.5", "gzip", b"GZ"),
        ("*", "br", b"BR"),
        ("br;q=no", None, b"plain"),
        ("*;q=0", None, b"plain"),
        ("identity", None, b"plain"),
        ("", None, b"plain"),
    ],
)
def test_compressed_beforehand(
    site: Path, accepted: str, coding: str | None, content: bytes
) -> None:
    _, fields, body = ask(site, "/page.css", accept_encoding=accepted)
    assert (body, fields.get("content-encoding")) == (content, coding)
    assert fields["content-type"] == "text/css; charset=utf-8"
    assert fields["vary"] == "accept-encoding"
    assert ask(site, "/shadow.css", accept_encoding="br")[2] == b"shadow"


def _tick(scratch: Path, file: Path) -> None:
    """Wait until the file system's clock has gone on since `file` was changed."""
    while True:
        scratch.touch()
        if scratch.stat().st_ctime_ns > file.stat().st_ctime_ns:
            return


def test_a_small_file_is_kept_until_it_changes(
    site: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Also where the file looks the same: in size, and in the time that anybody can set."""
    monkeypatch.setattr(kept_files, "_SETTLED_S", -60)
    application = StaticFiles(site)
    page = site / "page.css"

    def content() -> bytes | int:
        status, _, found = ask(site, "/page.css", application=application)
        return found if status == 200 else status

    reads = []
    read_into = file_parts.read_into
    monkeypatch.setattr(
        file_parts, "read_into", lambda *line: (reads.append(line), read_into(*line))[1]
    )
    assert [content() for _ in range(3)] == [b"plain"] * 3
    assert len(reads) == 1
    before = page.stat().st_mtime_ns
    _tick(tmp_path / "scratch", page)
    page.write_text("PLAIN")
    os.utime(page, ns=(before, before))
    assert content() == b"PLAIN"
    (site / "new").write_text("other")
    os.utime(site / "new", ns=(before, before))
    (site / "new").rename(page)
    assert content() == b"other"
    assert content() == b"other"
    _tick(tmp_path / "scratch", page)
    page.rename(tmp_path / "moved")
    page.symlink_to(tmp_path / "moved")
    assert content() == 404  # out of the folder
    page.unlink()
    assert content() == 404


def test_what_was_just_written_is_not_kept(site: Path) -> None:
    files = kept_files.KeptFiles()
    (site / "page.css").write_text("plain")
    with closing(file_parts.open_path(site / "page.css")) as file:
        assert trio.run(files.read, b"page", file) is file
    assert files.get(b"page") is None


def test_kept_files_have_bounds(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_files, "_SETTLED_S", -60)
    monkeypatch.setattr(kept_files, "_ALL_BYTES", 25)
    files = kept_files.KeptFiles()
    paths = [os.fsencode(site / f"{name}.txt") for name in ("one", "two", "three")]
    for path in paths:
        Path(os.fsdecode(path)).write_text("0123456789")
        trio.run(files.read, path, file_parts.open_path(os.fsdecode(path)))
        files.get(paths[0])
    assert [files.get(path) is not None for path in paths] == [True, False, True]


def test_content_types() -> None:
    for name, expected in (
        ("a.html", b"text/html; charset=utf-8"),
        ("a.PNG", b"image/png"),
        ("a.tar.gz", b"application/octet-stream"),
        ("README", b"application/octet-stream"),
        ("a.json", b"application/json; charset=utf-8"),
    ):
        assert content_type(name) == expected, name


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ApplicationError, match="check path and permissions"):
        StaticFiles(tmp_path / "no")


def test_over_http3(site: Path) -> None:
    async def main() -> None:
        async with talking(StaticFiles(site, max_age_s=60), AsgiConfig(lifespan="on")) as client:
            assert await text(client) == b"the index"
            assert await text(client, "/large.bin") == LARGE
            response = await client.request("GET", "/large.bin", [("range", "bytes=10-400009")])
            assert await response.read() == LARGE[10:400010]
            assert response.header("cache-control") == b"max-age=60"
            response = await client.request("HEAD", "/large.bin")
            assert response.header("content-length") == b"700000"
            assert await response.read() == b""

    run(main, patience_s=0.05)  # files are read in threads

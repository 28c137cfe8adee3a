"""HTTP/3: what our server serves, over the memory link."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
import trio
import trio.testing

import hoststack
from apps import http3_server
from hoststack import QuicConfig, StreamResetError, TlsConfig, http3
from hoststack.link.memory import MemoryNetwork
from tests.apps.http3.processes import pattern

pytestmark = pytest.mark.usefixtures("engine")

SERVER, CLIENT = "10.0.0.1", "10.0.0.2"
URI: Final = f"quic://{SERVER}:443"
CHUNK_BYTES: Final = http3_server._CHUNK_BYTES


@asynccontextmanager
async def visiting(
    folder: Path, config: QuicConfig | None = None, **impairments: Any
) -> AsyncIterator[http3.ClientConnection]:
    """A client of a server of a folder."""
    network = MemoryNetwork(**impairments)
    tls = TlsConfig.self_signed([SERVER])
    site = http3_server.Site(str(folder))
    async with (
        hoststack.open_stack(link=network.link(SERVER), config=config) as server,
        hoststack.open_stack(link=network.link(CLIENT), config=config) as stack,
        trio.open_nursery() as nursery,
    ):
        await nursery.start(partial(http3.serve, server, URI, site.respond, tls=tls))
        async with http3.open_client(stack, SERVER, tls=TlsConfig(verify=False)) as client:
            yield client
        nursery.cancel_scope.cancel()


async def get(
    client: http3.ClientConnection, path: str, method: str = "GET"
) -> tuple[http3.Response, bytes]:
    async with await client.request(method, path) as response:
        return response, await response.read()


def test_methods_and_types(folder: Path) -> None:
    async def main() -> None:
        async with visiting(folder) as client:
            response, content = await get(client, "/page.html")
            assert response.status == 200
            assert response.headers == [(b"content-type", b"text/html"), (b"content-length", b"7")]
            assert content == b"<p>page"
            response, _ = await get(client, "/unreadable.tar.gz")
            assert response.header("content-type") == b"application/octet-stream"
            response, content = await get(client, "/empty", "HEAD")
            assert response.header("content-length") == b"0"
            for method in ("POST", "PUT", "DELETE", "OPTIONS", "get"):
                response, _ = await get(client, "/page.html", method)
                assert (response.status, response.header("allow")) == (405, b"GET, HEAD")

    trio.run(main)


def test_a_file_that_becomes_shorter_is_no_whole_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(4 * CHUNK_BYTES))
    config = QuicConfig(rx_fifo_bytes=4096, tx_fifo_bytes=4096)

    async def main() -> None:
        async with visiting(tmp_path, config) as client:
            async with await client.request("GET", "/file") as response:
                os.truncate(tmp_path / "file", CHUNK_BYTES)
                with pytest.raises(StreamResetError) as caught:
                    await response.read()
            assert caught.value.code == http3.ErrorCode.INTERNAL_ERROR
            assert (await get(client, "/7"))[1] == pattern(7)

    trio.run(main)


class _BugError(Exception):
    """A mistake in a handler."""


@pytest.mark.parametrize(
    "error", [_BugError(), OSError(5, "the disk"), trio.BrokenResourceError("said the handler")]
)
def test_a_handler_that_raises_in_the_middle_resets(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    read = http3_server.Generated.read

    async def failing(self: http3_server.Generated, offset: int, count: int) -> bytes:
        if offset:
            raise error
        return await read(self, offset, count)

    monkeypatch.setattr(http3_server.Generated, "read", failing)

    async def main() -> None:
        async with visiting(folder) as client:
            with pytest.raises(StreamResetError) as caught:
                await get(client, f"/{2 * CHUNK_BYTES}")
            assert caught.value.code == http3.ErrorCode.INTERNAL_ERROR
            assert (await get(client, "/7"))[1] == pattern(7)

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
        async with (
            visiting(folder, config) as client,
            await client.request("GET", "/5000000") as response,
        ):
            await trio.testing.wait_all_tasks_blocked(0.1)
            assert 0 < produced <= 3 * 65536 + CHUNK_BYTES
            assert await response.read() == pattern(5_000_000)

    trio.run(main)


def test_requests_that_are_given_up_end_alone(folder: Path) -> None:
    async def main() -> None:
        async with visiting(folder) as client:
            for _ in range(190):  # more than the server allows at once
                await (await client.request("GET", "/1000000000")).aclose()
            assert (await get(client, "/7"))[1] == pattern(7)

    trio.run(main)


def test_many_requests_over_a_bad_network(folder: Path) -> None:
    bad = {"seed": 3, "loss": 0.03, "reorder": 0.2, "duplicate": 0.1, "corrupt": 0.02}
    got = 0

    async def main() -> None:
        async def one(size_bytes: int) -> None:
            nonlocal got
            _, content = await get(client, f"/{size_bytes}")
            assert content == pattern(size_bytes)
            got += 1

        async with visiting(folder, **bad) as client, trio.open_nursery() as nursery:
            for size_bytes in range(0, 60_000, 1000):
                nursery.start_soon(one, size_bytes)
        assert got == 60

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))

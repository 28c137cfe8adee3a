"""The transports in asyncio, and in programs without a loop, over the loopback interface."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from hoststack import aio
from hoststack.httpx import AsyncHTTP3Transport, HTTP3Transport
from tests.httpx_transports.places import TLS, TRUSTING, Site, site_on_loopback

PATIENCE_S = 60


@pytest.fixture(scope="module")
def site() -> Site:
    return Site()


@pytest.fixture(scope="module")
def base(site: Site) -> Iterator[str]:
    with site_on_loopback(site) as port:
        yield f"https://127.0.0.1:{port}"


@pytest.fixture
def client(base: str) -> Iterator[httpx.Client]:
    transport = HTTP3Transport(TRUSTING)
    with httpx.Client(transport=transport, base_url=base, timeout=PATIENCE_S) as client:
        yield client


def aclient(base: str) -> httpx.AsyncClient:
    transport = AsyncHTTP3Transport(TRUSTING)
    return httpx.AsyncClient(transport=transport, base_url=base, timeout=PATIENCE_S)


def test_asyncio(site: Site, base: str) -> None:
    """Two clients share the loop's stack; each loop has one of its own."""

    async def main() -> None:
        site.connections.clear()
        async with aclient(base) as one, aclient(base) as other:
            responses = await asyncio.gather(*(one.get(f"/{n}") for n in range(100)))
            assert {response.text for response in responses} == {f"hello /{n}" for n in range(100)}
            assert len(site.connections) == 1
            assert (await other.post("/echo", content=b"x" * 100_000)).content == b"x" * 100_000
            assert len(site.connections) == 2
            await one.aclose()
            assert (await other.get("/")).status_code == 200
            with pytest.raises(httpx.ReadTimeout):
                await other.get("/never", timeout=httpx.Timeout(PATIENCE_S, read=0.05))
            arrived = asyncio.Event()
            loop = asyncio.get_running_loop()
            site.on_half = lambda: loop.call_soon_threadsafe(arrived.set)
            task = asyncio.create_task(other.get("/half"))
            await arrived.wait()
            site.on_half = lambda: None
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            with pytest.raises(httpx.RemoteProtocolError):
                await other.get("/cut")
            assert (await other.get("/")).status_code == 200
            assert len(site.connections) == 2

    asyncio.run(main())
    asyncio.run(main())


def test_a_transport_belongs_to_one_loop(base: str) -> None:
    client = aclient(base)

    async def ask() -> int:
        return (await client.get("/")).status_code

    assert asyncio.run(ask()) == 200
    with pytest.raises(RuntimeError, match="another event loop"):
        asyncio.run(ask())


def test_in_a_loop_that_has_a_stack(base: str) -> None:
    async def main() -> None:
        async with aio.open_stack(link="udp") as stack:
            async with aclient(base) as client:
                with pytest.raises(RuntimeError, match="pass the stack as `stack=`"):
                    await client.get("/")
            transport = AsyncHTTP3Transport(TRUSTING, stack=stack)
            async with httpx.AsyncClient(transport=transport, timeout=PATIENCE_S) as client:
                assert (await client.get(base)).status_code == 200

    asyncio.run(main())


def test_without_a_loop(client: httpx.Client, site: Site) -> None:
    site.connections.clear()
    assert client.get("/a").text == "hello /a"
    content = b"x" * 300_000
    for body in (content, (content[:1000] for _ in range(300))):
        response = client.post("/echo", content=body)
        assert response.content == content
        assert response.extensions["trailers"] == [(b"x-end", b"yes")]
    with client.stream("GET", "/half") as half:
        assert next(half.iter_raw()) == b"half"
    with pytest.raises(httpx.ReadTimeout):
        client.get("/never", timeout=httpx.Timeout(PATIENCE_S, read=0.05))
    assert client.post("/answers-first", content=(bytes(65536) for _ in range(100))).is_error
    with pytest.raises(httpx.RemoteProtocolError):
        client.get("/cut")
    with pytest.raises(httpx.RemoteProtocolError):
        client.post("/refuse", content=(b"x" for _ in range(2)))
    with pytest.raises(ZeroDivisionError):
        client.post("/echo", content=(bytes(1 // (1 - n)) for n in range(2)))
    assert client.get("/").status_code == 200
    assert len(site.connections) == 1


def test_several_threads_share_a_client(client: httpx.Client, site: Site) -> None:
    site.connections.clear()
    with ThreadPoolExecutor(8) as threads:
        texts = list(threads.map(lambda n: client.get(f"/{n}").text, range(40)))
    assert texts == [f"hello /{n}" for n in range(40)]
    assert len(site.connections) == 1


def test_after_a_fork(client: httpx.Client) -> None:
    assert client.get("/").status_code == 200
    pid = os.fork()
    if not pid:
        try:
            client.get("/")
        except RuntimeError as error:
            os._exit(0 if "before a fork" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert client.get("/").status_code == 200


def test_after_the_end(base: str) -> None:
    transport = HTTP3Transport(TRUSTING)
    with httpx.Client(transport=transport) as client:
        held = client.send(client.build_request("GET", f"{base}/half"), stream=True)
    transport.close()
    with pytest.raises(RuntimeError, match="was closed"):
        transport.handle_request(httpx.Request("GET", base))
    held.close()


def test_certificates_from_files(base: str, tmp_path: Path, monkeypatch: Any) -> None:
    file, empty = tmp_path / "ca" / "server.pem", tmp_path / "empty"
    file.parent.mkdir()
    empty.mkdir()
    assert isinstance(TLS.certificate, bytes)
    file.write_bytes(TLS.certificate)

    def status(transport: HTTP3Transport) -> int:
        with httpx.Client(transport=transport, timeout=PATIENCE_S) as client:
            return client.get(base).status_code

    assert status(HTTP3Transport(str(file))) == 200
    assert status(HTTP3Transport(file.parent)) == 200
    assert status(HTTP3Transport(verify=False)) == 200
    with pytest.raises(httpx.ConnectError, match="certificate"):
        status(HTTP3Transport())
    with pytest.raises(ValueError, match="has no certificates"):
        HTTP3Transport(empty)
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    assert status(HTTP3Transport()) == 200
    with pytest.raises(httpx.ConnectError, match="certificate"):
        status(HTTP3Transport(trust_env=False))

"""HTTP/3 in asyncio, over the loopback interface."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import uvloop

from hoststack import StreamResetError, TlsConfig, aio, http3
from hoststack.http3 import aio as http3_aio
from tests.http3.peers import chunks, pattern

TLS = TlsConfig.self_signed(["127.0.0.1"])
TRUSTING = TlsConfig(ca=TLS.certificate)
PATIENCE_S = 60
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}

Run = Callable[[Callable[[], Awaitable[None]]], None]


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a test in a loop, not for ever."""

    async def limited(main: Callable[[], Awaitable[None]]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            await main()

    def in_loop(main: Callable[[], Awaitable[None]]) -> None:
        with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
            runner.run(limited(main))

    return in_loop


@asynccontextmanager
async def talking(
    handler: Callable[[http3.Request], Awaitable[object]],
) -> AsyncIterator[http3_aio.ClientConnection]:
    async with aio.open_stack(link="udp") as stack:
        listening: asyncio.Future[aio.Listener] = asyncio.get_running_loop().create_future()
        serving = asyncio.create_task(
            http3_aio.serve(stack, "quic://127.0.0.1:0", handler, tls=TLS, listening=listening)
        )
        authority = f"127.0.0.1:{(await listening).local[1]}"
        async with http3_aio.open_client(stack, authority, tls=TRUSTING) as client:
            yield client
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


def test_requests_with_content(run: Run) -> None:
    content = pattern(300_000)

    async def echo(request: http3.Request) -> None:
        await request.send_headers(200, [("path", request.path or b"")])
        async for chunk in request:
            await request.send_all(chunk)
        await request.send_trailers([("a", "b")])

    async def parts() -> AsyncIterator[bytes]:
        for part in chunks(content, 7000):
            yield part

    async def main() -> None:
        async with talking(echo) as client:

            async def one(number: int) -> None:
                body = parts() if number % 2 else content
                async with await client.request("POST", f"/{number}", [], body) as response:
                    assert response.header("path") == b"/%d" % number
                    assert await response.read() == content
                    assert response.trailers == [(b"a", b"b")]

            await asyncio.gather(*map(one, range(10)))

    run(main)


def test_handlers_that_fail(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def handler(request: http3.Request) -> None:
        if request.path == b"/late":
            await request.send_headers(200)
            await request.send_all(b"a part")
            await asyncio.sleep(0.2)
        raise KeyError("a bug")

    async def main() -> None:
        async with talking(handler) as client:
            assert (await client.request("GET", "/early")).status == 500
            late = await client.request("GET", "/late")
            with pytest.raises(StreamResetError):
                await late.read()

    run(main)
    assert "a bug" in caplog.text


def test_cancelled_requests(run: Run) -> None:
    async def main() -> None:
        gone = asyncio.Queue[str]()

        async def handler(request: http3.Request) -> None:
            await request.send_headers(200)
            try:
                while True:
                    await request.send_all(bytes(100_000))
            except ConnectionError as error:
                gone.put_nowait(type(error).__name__)

        async def download(client: http3_aio.ClientConnection) -> None:
            async with await client.request("GET", "/") as response:
                await response.read()

        async with talking(handler) as client:
            for _ in range(3):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(download(client), 0.2)
                assert await gone.get() == "StreamStoppedError"

    run(main)

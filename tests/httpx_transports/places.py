"""Servers that the transports' tests talk to: in memory, and over the loopback interface."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any, Final

import httpx
import trio

import hoststack
from hoststack import Connection, TlsConfig, http3
from hoststack.httpx import AsyncHTTP3Transport
from hoststack.link.memory import MemoryNetwork
from tests.http3.peers import CLIENT, SERVER, URI

TLS: Final = TlsConfig.self_signed([SERVER, "localhost", "127.0.0.1"])
TRUSTING: Final = TlsConfig(ca=TLS.certificate)
#: A host that answers nothing.
SILENT: Final = "10.0.0.9"
BASE: Final = f"https://{SERVER}"

Serve = Callable[[Connection], Any]


class Site:
    """A handler of requests, which counts them and their connections."""

    def __init__(self) -> None:
        self.connections: list[Any] = []
        self.requests: list[http3.Request] = []
        self.codes: list[int] = []
        """Of the resets that the handlers met."""
        self.on_half: Callable[[], object] = lambda: None
        """Called when half a response was sent."""

    async def __call__(self, request: http3.Request) -> None:
        self.requests.append(request)
        if request.connection not in self.connections:
            self.connections.append(request.connection)
        path = (request.path or b"").decode()
        match path.partition("?")[0]:
            case "/echo":
                await request.send_headers(200, [("x-method", request.method)])
                async for chunk in request:
                    await request.send_all(chunk)
                await request.send_trailers([("x-end", "yes")])
            case "/fields":
                text = "".join(f"{n.decode()}: {v.decode()}\n" for n, v in request.headers)
                await request.respond(
                    200, [("x-authority", request.authority or b"")], text.encode()
                )
            case "/early":
                await request.respond(200, [], b"early" if request.may_be_replayed else b"late")
            case "/never":
                await self._note_reset(request)
            case "/half":
                await request.send_headers(200)
                await request.send_all(b"half")
                self.on_half()
                await self._note_reset(request)
            case "/cut":
                await request.send_headers(200, [("content-length", "10")])
                await request.send_all(b"half")
                request.reset(http3.ErrorCode.INTERNAL_ERROR)
            case "/refuse":
                request.reset(http3.ErrorCode.REQUEST_REJECTED)
            case "/much":
                await request.send_headers(200)
                for _ in range(64):
                    await request.send_all(bytes(65536))
                await request.send_eof()
            case "/giant":
                await request.respond(200, [(f"x-giant-{n}", "g" * 4000) for n in range(8)])
            case "/answers-first":
                await request.respond(413, [], b"too much")
            case "/unread":
                await trio.sleep(3600)
            case _:
                await request.inform(103, [("link", "</style.css>; rel=preload")])
                page = path.partition("?")[0]
                await request.respond(200, [("x-path", page)], b"hello " + page.encode())

    async def _note_reset(self, request: http3.Request) -> None:
        try:
            await request._stream.wait_acknowledged()
        except hoststack.StreamStoppedError as error:
            self.codes.append(error.code)


@asynccontextmanager
async def two_stacks(
    quic: hoststack.QuicConfig | None = None,
    *,
    delay_s: float = 0.0,
) -> AsyncIterator[tuple[hoststack.EmbeddedStack, hoststack.EmbeddedStack]]:
    """A server's stack and a client's, on one network."""
    network = MemoryNetwork(delay_s=delay_s)
    network.link(SILENT)
    async with (
        hoststack.open_stack(link=network.link(SERVER), config=quic) as server,
        hoststack.open_stack(link=network.link(CLIENT)) as client,
    ):
        yield server, client


@asynccontextmanager
async def site_client(
    site: Callable[[http3.Request], Any],
    *,
    quic: hoststack.QuicConfig | None = None,
    timeout: Any = 5.0,
    delay_s: float = 0.0,
    **options: Any,
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a site, in trio."""
    options.setdefault("verify", TRUSTING)
    async with two_stacks(quic, delay_s=delay_s) as (server, stack), trio.open_nursery() as nursery:
        await nursery.start(partial(http3.serve, server, URI, site, tls=TLS))
        transport = AsyncHTTP3Transport(stack=stack, **options)
        async with httpx.AsyncClient(
            transport=transport, base_url=BASE, timeout=timeout, trust_env=False
        ) as client:
            yield client
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def raw_server_client(
    serve: Serve, *, timeout: Any = 5.0, **options: Any
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a server that writes what it wants on each connection."""
    async with two_stacks() as (server, stack), trio.open_nursery() as nursery:
        await nursery.start(partial(server.serve, URI, serve, tls=TLS, alpn=["h3"]))
        transport = AsyncHTTP3Transport(TRUSTING, stack=stack, **options)
        async with httpx.AsyncClient(
            transport=transport, base_url=BASE, timeout=timeout, trust_env=False
        ) as client:
            yield client
        nursery.cancel_scope.cancel()


@contextmanager
def site_on_loopback(
    site: Callable[[http3.Request], Any], *, quic: hoststack.QuicConfig | None = None
) -> Iterator[int]:
    """The UDP port of a site, in a thread with a trio loop of its own."""
    ready = threading.Event()
    found: dict[str, Any] = {}

    async def serve() -> None:
        async with hoststack.open_stack(link="udp") as stack, trio.open_nursery() as nursery:
            listener = await nursery.start(
                partial(http3.serve, stack, "quic://127.0.0.1:0", site, tls=TLS, quic=quic)
            )
            found.update(port=listener.local[1], scope=nursery.cancel_scope)
            found["token"] = trio.lowlevel.current_trio_token()
            ready.set()

    thread = threading.Thread(target=trio.run, args=(serve,))
    thread.start()
    assert ready.wait(60)
    try:
        yield found["port"]
    finally:
        trio.from_thread.run_sync(found["scope"].cancel, trio_token=found["token"])
        thread.join()

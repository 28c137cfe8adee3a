"""Servers of the same ASGI application: `python -m bench.asgi_ends KIND ADDRESS PORT [BYTES]`.

It answers with 6 bytes, "hello", or with as many as the path says: /1000000 is a body of that size.

The kinds are trio and asyncio, which are Hoststack with its engine in the same loop, uvloop,
hypercorn, and uvicorn, which answers in HTTP/1.1. With "files", Hoststack in uvloop serves
files in place of the application: /page of 6 bytes, /1, and one of BYTES by that name.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio

import hoststack
from hoststack import TlsConfig, aio, asgi
from hoststack.asgi import trio as asgi_trio

TLS: Final = TlsConfig.self_signed(["localhost"])
_HEADERS: Final = [(b"content-type", b"text/plain"), (b"content-length", b"6")]


_PART: Final = bytes(256 * 1024)


async def hello(scope: Any, receive: Any, send: Any) -> None:
    """Answer each request with 6 bytes, or as many as the path says."""
    if scope["type"] != "http":
        raise NotImplementedError
    if scope["path"] != "/":
        await _send_body(int(scope["path"][1:]), send)
        return
    await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
    await send({"type": "http.response.body", "body": b"hello\n"})


async def _send_body(left: int, send: Any) -> None:
    headers = [(b"content-length", b"%d" % left)]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    while left > len(_PART):
        await send({"type": "http.response.body", "body": _PART, "more_body": True})
        left -= len(_PART)
    await send({"type": "http.response.body", "body": _PART[:left]})


async def _in_trio(uri: str) -> None:
    async with hoststack.open_stack(link="udp") as stack, trio.open_nursery() as nursery:
        await nursery.start(partial(asgi_trio.serve, hello, stack, uri, tls=TLS))
        print("ready", flush=True)


async def _in_asyncio(uri: str, application: Any = hello) -> None:
    async with aio.open_stack(link="udp") as stack:
        listening: asyncio.Future[aio.Listener] = asyncio.get_running_loop().create_future()
        listening.add_done_callback(lambda _: print("ready", flush=True))
        await asgi.serve(application, stack, uri, tls=TLS, listening=listening)


def _by_hypercorn(address: str) -> None:
    from hypercorn.asyncio import serve
    from hypercorn.config import Config

    with tempfile.TemporaryDirectory() as folder:
        files = {"certfile": TLS.certificate, "keyfile": TLS.key}
        for name, pem in files.items():
            assert isinstance(pem, bytes)
            Path(folder, name).write_bytes(pem)
        config = Config.from_mapping(
            {name: f"{folder}/{name}" for name in files}, bind=[], quic_bind=[address]
        )
        print("ready", flush=True)
        asyncio.run(serve(hello, config))  # type: ignore[arg-type]


def _by_uvicorn(address: str, port: int) -> None:
    import uvicorn

    uvicorn.run(hello, host=address, port=port, access_log=False)


def _files(uri: str, size_bytes: int) -> None:
    import uvloop

    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "page").write_bytes(b"hello\n")
        Path(folder, "1").write_bytes(b"1")
        if size_bytes:
            with Path(folder, str(size_bytes)).open("wb") as file:
                while file.tell() < size_bytes:  # into the kernel's page cache
                    file.write(_PART[: size_bytes - file.tell()])
        uvloop.run(_in_asyncio(uri, asgi.StaticFiles(folder)))


def main(kind: str, address: str, port: str, size_bytes: str = "0") -> None:
    """Serve until the process is ended."""
    uri = f"quic://{address}:{port}"
    if kind == "trio":
        trio.run(_in_trio, uri)
    elif kind == "hypercorn":
        _by_hypercorn(f"{address}:{port}")
    elif kind == "uvicorn":
        _by_uvicorn(address, int(port))
    elif kind == "files":
        _files(uri, int(size_bytes))
    elif kind == "uvloop":
        import uvloop

        uvloop.run(_in_asyncio(uri))
    else:
        asyncio.run(_in_asyncio(uri))


if __name__ == "__main__":
    main(*sys.argv[1:])

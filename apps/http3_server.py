"""An HTTP/3 server: the files of a folder, and `/N` for N bytes. See docs/http3.md."""

from __future__ import annotations

import argparse
import errno
import functools
import logging
import mimetypes
import os
import re
import signal
import stat
import sys
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final, Protocol
from urllib.parse import unquote_to_bytes

import trio

import hoststack
from hoststack import http3

logger = logging.getLogger(__name__)

#: Read and sent at once.
_CHUNK_BYTES: Final = 256 * 1024
#: A path that requests that many bytes; a number with more digits is not valid.
_GENERATED: Final = re.compile(rb"/([0-9]{1,15})")
_INDEX: Final = b"index.html"
_FALLBACK_TYPE: Final = "application/octet-stream"
#: Errors of open(2) that mean "not found" to a client.
_NOT_THERE: Final = frozenset(
    (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES, errno.ENAMETOOLONG, errno.ENXIO)
)
#: Byte i of generated content is i & 0xff, as in quic_echo. _CHUNK_BYTES is a multiple.
_PATTERN: Final = bytes(range(256)) * (_CHUNK_BYTES // 256)


class Content(Protocol):
    """The content of a response, read piece by piece and in order."""

    size_bytes: int
    content_type: str

    async def read(self, offset: int, count: int) -> bytes:
        """Return `count` bytes or fewer; none at the end. Raises OSError."""

    def close(self) -> None: ...


class Generated:
    """Generated content of the requested size."""

    content_type = _FALLBACK_TYPE

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes

    async def read(self, offset: int, count: int) -> bytes:
        await trio.lowlevel.checkpoint()
        start = offset % 256
        return _PATTERN[start : start + count]

    def close(self) -> None:
        pass


class File:
    """An open file. Its size is read once: a response announces it first."""

    def __init__(self, fd: int, name: str) -> None:
        self._fd = fd
        self.size_bytes = os.fstat(fd).st_size
        guessed, encoding = mimetypes.guess_type(name)
        self.content_type = guessed if guessed and not encoding else _FALLBACK_TYPE

    async def read(self, offset: int, count: int) -> bytes:
        return await trio.to_thread.run_sync(os.pread, self._fd, count, offset)

    def close(self) -> None:
        os.close(self._fd)


class Site:
    """Answers requests from a folder."""

    def __init__(self, root: str) -> None:
        """Open the folder; raises OSError."""
        self._root = os.fsencode(os.path.realpath(root))
        self._root_fd = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    async def respond(self, request: http3.Request) -> None:
        """Answer one request."""
        if request.method not in (b"GET", b"HEAD"):
            await _send_status(request, 405, [("allow", "GET, HEAD")])
            return
        try:
            content = await self._find(request.path or b"")
        except OSError as error:
            if error.errno not in _NOT_THERE:
                logger.error("a file can't be read: %s", error)
            await _send_status(request, 404 if error.errno in _NOT_THERE else 500)
            return
        try:
            await _send_content(request, content)
        finally:
            content.close()

    async def _find(self, target: bytes) -> Content:
        """Return the content of a path; raises OSError, ENOENT for all outside of the folder."""
        path = target.partition(b"?")[0]
        generated = _GENERATED.fullmatch(path)
        if generated is not None:
            return Generated(int(generated[1]))
        return await trio.to_thread.run_sync(self._open, _names(path))

    def _open(self, names: Sequence[bytes]) -> File:
        # Resolve links here: they must lead to a place below the folder ...
        real = os.path.realpath(os.path.join(self._root, *names), strict=True)
        inner = os.path.relpath(real, self._root).split(b"/")
        if inner[0] in (b"..", b"."):
            raise _not_found(real)
        # ... and follow none on the way down, in case one was created since.
        folder = os.dup(self._root_fd)
        try:
            for name in inner[:-1]:
                below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
                os.close(folder)
                folder = below
            # Opening a FIFO without a writer must not block the thread.
            fd = os.open(inner[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
        finally:
            os.close(folder)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise _not_found(real)
        return File(fd, os.fsdecode(inner[-1]))


def _names(path: bytes) -> list[bytes]:
    """Split a path into names; raises OSError if it leaves the folder."""
    decoded = unquote_to_bytes(path)
    if not decoded.startswith(b"/") or b"\0" in decoded:
        raise _not_found(path)
    names = [name for name in decoded.split(b"/") if name not in (b"", b".")]
    if b".." in names:
        raise _not_found(path)
    return [*names, _INDEX] if decoded.endswith(b"/") else names


def _not_found(path: bytes) -> OSError:
    return OSError(errno.ENOENT, os.strerror(errno.ENOENT), path)


async def _send_content(request: http3.Request, content: Content) -> None:
    has_content = request.method == b"GET" and content.size_bytes > 0
    headers = [
        ("content-type", content.content_type),
        ("content-length", str(content.size_bytes)),
    ]
    if has_content and content.size_bytes <= _CHUNK_BYTES:
        data = await content.read(0, content.size_bytes)
        if len(data) == content.size_bytes:
            await request.respond(200, headers, data)
            return
    await request.send_headers(200, headers, is_last=not has_content)
    sent = 0
    while has_content and sent < content.size_bytes:
        data = await content.read(sent, min(_CHUNK_BYTES, content.size_bytes - sent))
        if not data:
            # The length was announced: only a reset says that the content is incomplete.
            raise trio.BrokenResourceError("the file became shorter while it was sent")
        sent += len(data)
        await request.send_all(data)
    if has_content:
        await request.send_eof()


async def _send_status(
    request: http3.Request, status: int, extra: Sequence[tuple[str, str]] = ()
) -> None:
    """Send a response with a status and nothing else."""
    await request.respond(status, [("content-type", "text/plain"), *extra], b"%d\n" % status)


def _stack(arguments: argparse.Namespace) -> AbstractAsyncContextManager[hoststack.Stack]:
    """Return a daemon's stack, or an embedded one."""
    # All requests are safe to repeat, so a replay of early data does no harm (RFC 8470).
    config = hoststack.QuicConfig(early_data=True, preferred_addresses=tuple(arguments.preferred))
    if arguments.socket is not None:
        return hoststack.attach(arguments.socket, name="http3_server", config=config)
    return hoststack.open_stack(
        arguments.interface, link=arguments.link, engine=arguments.engine, config=config
    )


async def _serve(arguments: argparse.Namespace, site: Site) -> None:
    """Serve for ever. Raises UriError, TlsConfigError, ValueError, ListenError, LinkError and
    AttachError, also in groups, and trio.BrokenResourceError when a daemon ends."""
    if arguments.cert is None and arguments.key is None:
        tls = hoststack.TlsConfig.self_signed(["localhost"])
        print("http3_server: the certificate is self-signed, for localhost", file=sys.stderr)
    else:
        tls = hoststack.TlsConfig(certificate=arguments.cert, key=arguments.key)
    async with _stack(arguments) as stack, trio.open_nursery() as nursery:
        serve = functools.partial(http3.serve, stack, arguments.uri, site.respond, tls=tls)
        listener = await nursery.start(serve)
        host, port = listener.local
        print(
            f"http3_server: listening on {host} port {port}, "
            f"link {stack.link_name}, engine {stack.engine_name}",
            flush=True,
        )


async def _serve_until_signal(arguments: argparse.Namespace) -> int:
    """Return the exit status: 1 for an error, and 128 plus a signal's number as shells do."""
    status = 0
    try:
        site = Site(arguments.root)
        async with trio.open_nursery() as nursery:
            with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
                nursery.start_soon(_serve, arguments, site)
                status = 128 + await anext(signals)
                nursery.cancel_scope.cancel()
    except* (ValueError, OSError, trio.BrokenResourceError) as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        ours = hoststack.EndpointError, hoststack.LinkError, hoststack.AttachError
        text = error.strerror if isinstance(error, ours) else str(error)
        print(f"http3_server: {text}", file=sys.stderr)
        status = 1
    return status


def _parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="http3_server", description=__doc__)
    parser.add_argument("uri", metavar="quic://ADDRESS:PORT", help="port 0 picks a free one")
    parser.add_argument("--root", metavar="FOLDER", required=True, help="the folder to serve")
    parser.add_argument("--cert", metavar="FILE", help="certificate chain, PEM")
    parser.add_argument("--key", metavar="FILE", help="its private key, PEM")
    parser.add_argument(
        "--preferred",
        metavar="ADDRESS:PORT",
        action="append",
        default=[],
        help="where clients move after the handshake; once for IPv4, once for IPv6",
    )
    parser.add_argument("--interface", metavar="IFACE", help="AF_XDP on this interface")
    parser.add_argument("--link", choices=("auto", "af_xdp", "udp"), default="auto")
    parser.add_argument("--engine", choices=("auto", "native", "aioquic"), default="auto")
    parser.add_argument(
        "--socket", metavar="PATH", help="attach to that daemon, which has the link and the engine"
    )
    arguments = parser.parse_args(words)
    own = arguments.interface is not None or arguments.link != "auto" or arguments.engine != "auto"
    if arguments.socket is not None and own:
        parser.error("with --socket the daemon has the interface, the link and the engine")
    return arguments


def main(words: Sequence[str] | None = None) -> int:
    """Run a command line; return its exit status."""
    arguments = _parse(words)
    logging.basicConfig(format="http3_server: %(message)s", level=logging.WARNING)
    return trio.run(_serve_until_signal, arguments)


if __name__ == "__main__":
    sys.exit(main())

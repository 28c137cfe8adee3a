"""An HTTP/3 client on hoststack: gets URLs and says how fast they came. See docs/http3.md."""

from __future__ import annotations

import argparse
import functools
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote, urlsplit

import trio
from aioquic.h3.connection import ErrorCode
from aioquic.h3.events import HeadersReceived

import hoststack
from apps.http3 import ALPN, Exchange, Http3Connection

_HTTPS_PORT: Final = 443
#: What URLs may hold as it is; all else is percent-encoded (RFC 3986 section 2).
_URL_CHARACTERS: Final = "%/?:@!$&'()*+,;=~"


class MistakeError(ValueError):
    """Something in the command line that can't be used; the message is for the user."""


@dataclass(frozen=True)
class Target:
    """One URL."""

    url: str
    host: str
    port: int
    path: str
    output: Path | None

    @property
    def authority(self) -> str:
        """Host and port as URIs have them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def request(self) -> list[tuple[bytes, bytes]]:
        """The header section that asks for it."""
        return [
            (b":method", b"GET"),
            (b":scheme", b"https"),
            (b":authority", self.authority.encode()),
            (b":path", self.path.encode()),
            (b"user-agent", b"hoststack"),
        ]


class Download:
    """Gets targets, and notes what failed."""

    def __init__(self, tls: hoststack.TlsConfig) -> None:
        self.has_failed = False
        self._tls = tls

    async def visit(self, stack: hoststack.Stack, targets: Sequence[Target]) -> None:
        """All targets of one host over one connection, in parallel."""
        authority = targets[0].authority
        try:
            async with stack.connect(
                f"quic://{authority}", tls=self._tls, alpn=[ALPN]
            ) as connection:
                http = await Http3Connection.over(connection, is_client=True)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(http.run)
                    async with trio.open_nursery() as getting:
                        for target in targets:
                            getting.start_soon(self._get, http, target)
                    nursery.cancel_scope.cancel()
                await connection.wait_handshake()
                self._tell_how(authority, connection)
                await connection.aclose(ErrorCode.H3_NO_ERROR)
        except hoststack.ConnectError as error:
            self._fail(error.strerror or str(error))
        except (ValueError, trio.BrokenResourceError) as error:
            self._fail(f"{authority}: {error}")

    def _tell_how(self, authority: str, connection: hoststack.Connection) -> None:
        if self._tls.sessions is not None and connection.is_resumed:
            print(
                f"http3_client: {authority}: session resumed, early data: {connection.early_data}",
                file=sys.stderr,
            )
        elif connection.early_data == "rejected":
            print(f"http3_client: {authority}: early data: rejected", file=sys.stderr)

    async def _get(self, http: Http3Connection, target: Target) -> None:
        start = trio.current_time()
        try:
            exchange = await http.request(target.request)
            try:
                status, size_bytes = await _receive(exchange, target.output)
            finally:
                await exchange.aclose(ErrorCode.H3_REQUEST_CANCELLED)
        except (trio.BrokenResourceError, OSError) as error:
            self._fail(f"{target.url}: {error}")
            return
        seconds = trio.current_time() - start
        print(
            f"{status} {target.url} {size_bytes} bytes in {seconds:.6f} seconds, "
            f"{size_bytes * 8 / seconds / 1e6:.1f} Mbit/s",
            flush=True,
        )
        if not 200 <= status < 300:
            self._fail(f"{target.url}: the server answers {status}")

    def _fail(self, text: str) -> None:
        self.has_failed = True
        print(f"http3_client: {text}", file=sys.stderr, flush=True)


async def _receive(exchange: Exchange, output: Path | None) -> tuple[int, int]:
    """The status and the content's bytes, which go to the output if all is well."""
    status = 0
    size_bytes = 0
    file = None
    try:
        while (part := await exchange.receive()) is not None:
            if not isinstance(part, HeadersReceived):
                size_bytes += len(part.data)
                if file is not None:
                    await file.write(part.data)
            elif status < 200:  # Else these are trailers.
                status = int(dict(part.headers)[b":status"])
                if output is not None and 200 <= status < 300:
                    file = await trio.open_file(output, "wb")
    finally:
        if file is not None:
            await file.aclose()
    if status < 200:
        raise trio.BrokenResourceError("the server ended the stream without a response")
    return status, size_bytes


def parse_target(url: str, output: Path | None) -> Target:
    """Take a URL apart; raises MistakeError. An output that is a folder gets a file in it."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise MistakeError(f"{url!r} is not a URL: {error}") from None
    if parts.scheme != "https" or not parts.hostname:
        raise MistakeError(f"{url!r}: write it as https://HOST[:PORT]/PATH")
    if parts.username is not None:
        raise MistakeError(f"{url!r}: there is no way to log in here: leave the user out")
    path = quote(parts.path or "/", safe=_URL_CHARACTERS)
    if parts.query:
        path += "?" + quote(parts.query, safe=_URL_CHARACTERS)
    if output is not None and output.is_dir():
        name = parts.path.rpartition("/")[2]
        output = output / (name if name not in ("", ".", "..") else "index.html")
    return Target(url, parts.hostname, port or _HTTPS_PORT, path, output)


def _parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="http3_client", description=__doc__)
    parser.add_argument("urls", metavar="URL", nargs="+", help="https://HOST[:PORT]/PATH")
    trust = parser.add_mutually_exclusive_group()
    trust.add_argument("--insecure", action="store_true", help="take any certificate")
    trust.add_argument("--ca", metavar="FILE", help="trust these authorities, PEM")
    parser.add_argument(
        "--output", metavar="F", type=Path, help="a file, or a folder for a file of each URL"
    )
    parser.add_argument(
        "--session-file", metavar="F", type=Path, help="resume sessions that are kept in this file"
    )
    parser.add_argument(
        "--early-data",
        action="store_true",
        help="ask in the first flight (0-RTT) where that can be",
    )
    parser.add_argument("--engine", choices=("auto", "native", "aioquic"), default="auto")
    return parser.parse_args(words)


def _targets(arguments: argparse.Namespace) -> list[Target]:
    targets = [parse_target(url, arguments.output) for url in arguments.urls]
    outputs = {target.output for target in targets}
    if arguments.output is not None and len(outputs) < len(targets):
        raise MistakeError(
            f"--output {arguments.output}: two URLs would go to the same file: "
            "name a folder, and URLs that end in different names"
        )
    return targets


async def _get_all(arguments: argparse.Namespace, targets: Sequence[Target]) -> bool:
    """Whether all went well. Raises TlsConfigError, ValueError and LinkError."""
    sessions = None
    if arguments.session_file is not None:
        sessions = hoststack.SessionCache.load(arguments.session_file)
    elif arguments.early_data:
        raise MistakeError("--early-data: give --session-file too, for it takes a ticket of before")
    download = Download(
        hoststack.TlsConfig(ca=arguments.ca, verify=not arguments.insecure, sessions=sessions)
    )
    config = hoststack.QuicConfig(early_data=arguments.early_data)
    by_host: dict[str, list[Target]] = {}
    for target in targets:
        by_host.setdefault(target.authority, []).append(target)
    async with (
        hoststack.open_stack(link="udp", engine=arguments.engine, config=config) as stack,
        trio.open_nursery() as nursery,
    ):
        for group in by_host.values():
            nursery.start_soon(download.visit, stack, group)
    if sessions is not None:
        sessions.save(arguments.session_file)
    return not download.has_failed


def main(words: Sequence[str] | None = None) -> int:
    """Run a command line; the exit status is 0 if all URLs were had, 2 for a mistake in it."""
    arguments = _parse(words)
    status = 1
    try:
        targets = _targets(arguments)
        status = 0 if trio.run(functools.partial(_get_all, arguments, targets)) else 1
    except* MistakeError as group:
        print(f"http3_client: {group.exceptions[0]}", file=sys.stderr)
        status = 2
    except* BrokenPipeError:
        # Whoever read our output has gone; what is left in the buffer must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except* (ValueError, OSError) as group:
        print(f"http3_client: {group.exceptions[0]}", file=sys.stderr)
    except* KeyboardInterrupt:
        status = 128 + signal.SIGINT
    return status


if __name__ == "__main__":
    sys.exit(main())

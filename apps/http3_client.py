"""An HTTP/3 client: downloads URLs and prints how fast they arrived. See docs/http3.md."""

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

import hoststack
from hoststack import http3

_HTTPS_PORT: Final = 443
#: Characters allowed in URLs; all others are percent-encoded (RFC 3986 section 2).
_URL_CHARACTERS: Final = "%/?:@!$&'()*+,;=~"


class MistakeError(ValueError):
    """An error in the command line; the message is for the user."""


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
        """Host and port in URI syntax."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


class Download:
    """Downloads targets, and records failures."""

    def __init__(self, tls: hoststack.TlsConfig) -> None:
        self.has_failed = False
        self._tls = tls

    async def visit(self, stack: hoststack.Stack, targets: Sequence[Target]) -> None:
        """Download all targets of one host over one connection, in parallel."""
        authority = targets[0].authority
        try:
            async with http3.open_client(stack, authority, tls=self._tls) as client:
                async with trio.open_nursery() as getting:
                    for target in targets:
                        getting.start_soon(self._get, client, target)
                await client.connection.wait_handshake()
                self._tell_how(authority, client.connection)
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

    async def _get(self, client: http3.ClientConnection, target: Target) -> None:
        start = trio.current_time()
        try:
            headers = [("user-agent", "hoststack")]
            async with await client.request("GET", target.path, headers) as response:
                size_bytes = await _receive(response, target.output)
        except (trio.BrokenResourceError, OSError) as error:
            self._fail(f"{target.url}: {error}")
            return
        seconds = trio.current_time() - start
        print(
            f"{response.status} {target.url} {size_bytes} bytes in {seconds:.6f} seconds, "
            f"{size_bytes * 8 / seconds / 1e6:.1f} Mbit/s",
            flush=True,
        )
        if not 200 <= response.status < 300:
            self._fail(f"{target.url}: the server answers {response.status}")

    def _fail(self, text: str) -> None:
        self.has_failed = True
        print(f"http3_client: {text}", file=sys.stderr, flush=True)


async def _receive(response: http3.Response, output: Path | None) -> int:
    """Return the content's size; the content goes to the output if the request succeeded."""
    size_bytes = 0
    if output is None or not 200 <= response.status < 300:
        async for chunk in response:
            size_bytes += len(chunk)
        return size_bytes
    async with await trio.open_file(output, "wb") as file:
        async for chunk in response:
            size_bytes += len(chunk)
            await file.write(chunk)
    return size_bytes


def parse_target(url: str, output: Path | None) -> Target:
    """Parse a URL; raises MistakeError. An output that is a folder gets a file in it."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise MistakeError(f"{url!r} is not a URL: {error}") from None
    if parts.scheme != "https" or not parts.hostname:
        raise MistakeError(f"{url!r}: write it as https://HOST[:PORT]/PATH")
    if parts.username is not None:
        raise MistakeError(f"{url!r}: user names are not supported: leave the user out")
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
    trust.add_argument("--insecure", action="store_true", help="accept any certificate")
    trust.add_argument("--ca", metavar="FILE", help="trust these authorities, PEM")
    parser.add_argument(
        "--output", metavar="F", type=Path, help="a file, or a folder for a file of each URL"
    )
    parser.add_argument(
        "--session-file", metavar="F", type=Path, help="resume sessions that this file stores"
    )
    parser.add_argument(
        "--early-data",
        action="store_true",
        help="send requests in the first flight (0-RTT) if possible",
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
    """Return whether everything succeeded. Raises TlsConfigError, ValueError and LinkError."""
    sessions = None
    if arguments.session_file is not None:
        sessions = hoststack.SessionCache.load(arguments.session_file)
    elif arguments.early_data:
        raise MistakeError("--early-data: give --session-file too, as it needs an earlier ticket")
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
    """Run a command line; return 0 if all URLs were downloaded, 2 for an error in it."""
    arguments = _parse(words)
    status = 1
    try:
        targets = _targets(arguments)
        status = 0 if trio.run(functools.partial(_get_all, arguments, targets)) else 1
    except* MistakeError as group:
        print(f"http3_client: {group.exceptions[0]}", file=sys.stderr)
        status = 2
    except* BrokenPipeError:
        # The reader of our output is gone; flushing the rest of the buffer must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except* (ValueError, OSError) as group:
        print(f"http3_client: {group.exceptions[0]}", file=sys.stderr)
    except* KeyboardInterrupt:
        status = 128 + signal.SIGINT
    return status


if __name__ == "__main__":
    sys.exit(main())

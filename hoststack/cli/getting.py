"""What `hoststack get` does: connections, requests, output, and why something failed."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any, BinaryIO, Final
from urllib.parse import urljoin

import trio

import hoststack
from hoststack import http3
from hoststack.cli.targets import Place, Target, parse_target

_MOST_REDIRECTS: Final = 30
_REDIRECTS: Final = frozenset((301, 302, 303, 307, 308))
#: Redirects that a POST follows as a GET (RFC 9110 section 15.4).
_TO_GET: Final = frozenset((301, 302, 303))
#: Fields that are not sent to another origin than the one they were meant for.
_SECRETS: Final = frozenset(("authorization", "cookie"))


class Exit(IntEnum):
    """Exit statuses, by curl's numbers."""

    DONE = 0
    USAGE = 2
    URL = 3
    RESOLVE = 6
    CONNECT = 7
    PARTIAL = 18
    STATUS = 22
    WRITE = 23
    READ = 26
    TIMEOUT = 28
    TLS = 35
    REDIRECTS = 47
    RECEIVE = 56
    CERTIFICATE = 60
    CA_FILE = 77
    HTTP3 = 95


class FailedError(Exception):
    """What could not be done: an exit status, and a line for the user."""

    def __init__(self, status: Exit, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True)
class Settings:
    """What all URLs of a command have in common. Times in seconds."""

    method: str
    headers: Sequence[tuple[str, str]]
    content: bytes | None
    tls: hoststack.TlsConfig
    places: dict[Place, str]
    """Addresses to connect to, by host and port."""
    connect_timeout_s: float
    max_time_s: float
    follows: bool
    fails: bool
    shows_fields: bool
    is_verbose: bool
    as_json: bool


@dataclass
class _Opening:
    """A connection, from the first attempt on."""

    ready: trio.Event = field(default_factory=trio.Event)
    client: http3.ClientConnection | None = None
    error: FailedError | None = None
    seconds: float = 0.0


class Downloads:
    """Gets targets; `status` is the last failure's."""

    def __init__(self, settings: Settings) -> None:
        self.status = Exit.DONE
        self._settings = settings
        self._openings: dict[Place, _Opening] = {}

    async def run(self, stack: hoststack.Stack, targets: Sequence[Target]) -> None:
        """Get all targets, in parallel. What goes to standard output is written in their order."""
        self._stack = stack
        turn = trio.Event()
        turn.set()
        async with trio.open_nursery() as connections:
            self._connections = connections
            async with trio.open_nursery() as getting:
                for target in targets:
                    done = trio.Event()
                    getting.start_soon(self._get, target, turn, done)
                    turn = done
            connections.cancel_scope.cancel()

    async def _get(self, target: Target, turn: trio.Event, done: trio.Event) -> None:
        try:
            with trio.move_on_after(self._settings.max_time_s) as scope:
                await _Download(self, self._settings, target, turn).run()
            if scope.cancelled_caught:
                raise FailedError(
                    Exit.TIMEOUT,
                    f"it took longer than {self._settings.max_time_s:g} s: --max-time",
                )
        except FailedError as error:
            self.status = error.status
            print(f"hoststack get: {target.url}: {error}", file=sys.stderr, flush=True)
        finally:
            done.set()

    # --- connections ---

    async def client(self, target: Target) -> _Opening:
        """Return the connection to a target's host, which all of its targets share."""
        place = target.host, target.port
        opening = self._openings.get(place)
        if opening is None or (opening.client is not None and opening.client.is_going_away):
            opening = self._openings[place] = _Opening()
            self._connections.start_soon(self._connect, target, opening)
        await opening.ready.wait()
        if opening.error is not None:
            raise opening.error
        return opening

    async def _connect(self, target: Target, opening: _Opening) -> None:
        start_s = trio.current_time()
        try:
            async with self._open(target) as client:
                opening.client = client
                opening.seconds = trio.current_time() - start_s
                self._tell(target, client.connection)
                opening.ready.set()
                await trio.sleep_forever()
        except FailedError as error:
            opening.error = error
        except (OSError, trio.BrokenResourceError, ValueError) as error:
            opening.error = failure(error)
        finally:
            opening.ready.set()

    @asynccontextmanager
    async def _open(self, target: Target) -> AsyncIterator[http3.ClientConnection]:
        address = self._settings.places.get((target.host, target.port), target.host)
        host = f"[{address}]" if ":" in address else address
        tls = replace(self._settings.tls, server_name=target.host)
        with trio.move_on_after(self._settings.connect_timeout_s) as scope:
            connection = await self._stack.open_connection(
                f"quic://{host}:{target.port}", tls=tls, alpn=[http3.ALPN]
            )
        if scope.cancelled_caught:
            raise FailedError(
                Exit.TIMEOUT, f"{target.authority} does not answer QUIC: it may have no HTTP/3"
            )
        async with connection, http3.client_on(connection, target.authority) as client:
            yield client

    def _tell(self, target: Target, connection: hoststack.Connection) -> None:
        if self._settings.is_verbose:
            host, port = connection.remote
            link, engine = self._stack.link_name, self._stack.engine_name
            _say(f"* connected to {target.authority}: {host} port {port}, {link}, {engine}")


class _Download:
    """One target."""

    def __init__(
        self, downloads: Downloads, settings: Settings, target: Target, turn: trio.Event
    ) -> None:
        self._downloads = downloads
        self._settings = settings
        self._target = target
        self._turn = turn
        self._first_byte_s = 0.0
        self._size_bytes = 0

    async def run(self) -> None:
        """Request, follow redirects, and write what comes. Raises FailedError."""
        settings, target = self._settings, self._target
        method, content, headers = settings.method, settings.content, list(settings.headers)
        start_s = trio.current_time()
        for _ in range(_MOST_REDIRECTS + 1):
            opening = await self._downloads.client(target)
            client = opening.client
            assert client is not None
            async with await self._request(client, target, method, headers, content) as response:
                self._first_byte_s = self._first_byte_s or trio.current_time() - start_s
                following = self._location(target, response)
                if following is None:
                    await self._write(response)
                    await self._report(target, opening, response, start_s)
                    return
            if response.status in _TO_GET and method != "HEAD":
                method, content = "GET", None
            if (following.host, following.port) != (target.host, target.port):
                headers = [h for h in headers if h[0].lower() not in _SECRETS]
            target = following
        raise FailedError(Exit.REDIRECTS, f"more than {_MOST_REDIRECTS} redirects")

    async def _request(
        self,
        client: http3.ClientConnection,
        target: Target,
        method: str,
        headers: Sequence[tuple[str, str]],
        content: bytes | None,
    ) -> http3.Response:
        names = {name.lower() for name, _ in headers}
        fields = [("user-agent", "hoststack"), ("accept", "*/*")]
        if content is not None:
            fields.append(("content-type", "application/x-www-form-urlencoded"))
        fields = [(n, v) for n, v in fields if n not in names]
        authority = next((v for n, v in headers if n.lower() == "host"), target.authority)
        fields += [(n, v) for n, v in headers if n.lower() != "host"]
        if self._settings.is_verbose:
            _say(f"> {method} {target.path} HTTP/3", f"> host: {authority}")
            _say(*(f"> {name}: {value}" for name, value in fields))
        try:
            url = f"https://{authority}{target.path}"
            return await client.request(method, url, fields, content or b"")
        except (OSError, trio.BrokenResourceError, ValueError) as error:
            raise failure(error) from None

    def _location(self, target: Target, response: http3.Response) -> Target | None:
        location = response.header("location")
        if self._settings.is_verbose:
            _say(*(f"< {line}" for line in _head(response)))
        if not self._settings.follows or response.status not in _REDIRECTS or location is None:
            return None
        try:
            return parse_target(urljoin(target.url, location.decode("latin-1")))
        except ValueError as error:
            raise FailedError(Exit.URL, f"redirected to {error}") from None

    async def _write(self, response: http3.Response) -> None:
        settings = self._settings
        if settings.fails and response.status >= 400:
            raise FailedError(Exit.STATUS, f"the server answers {response.status}")
        output = self._target.output
        if output is None:
            await self._turn.wait()
            await self._copy(response, None if settings.as_json else sys.stdout.buffer)
            return
        try:
            with output.open("wb") as file:
                await self._copy(response, file)
        except OSError as error:
            raise FailedError(Exit.WRITE, f"{output}: {error.strerror or error}") from None

    async def _copy(self, response: http3.Response, file: BinaryIO | None) -> None:
        if self._settings.shows_fields and file is not None:
            file.write(("\n".join(_head(response)) + "\n\n").encode("latin-1", "replace"))
        try:
            async for chunk in response:
                self._size_bytes += len(chunk)
                if file is not None:
                    file.write(chunk)
        except (trio.BrokenResourceError, ConnectionError) as error:
            if isinstance(error, BrokenPipeError) and not isinstance(
                error, trio.BrokenResourceError
            ):
                raise  # the reader of our output is gone
            raise FailedError(
                Exit.PARTIAL, f"after {self._size_bytes} bytes of the response: {error}"
            ) from None
        if file is not None:
            file.flush()

    async def _report(
        self, target: Target, opening: _Opening, response: http3.Response, start_s: float
    ) -> None:
        seconds = trio.current_time() - start_s
        connection: hoststack.Connection = response.connection
        try:
            await connection.wait_handshake()
            rtt_s = (await connection.statistics()).get("rtt_s")
        except trio.BrokenResourceError:
            rtt_s = None
        if self._settings.is_verbose and connection.early_data != "none":
            _say(f"* early data: {connection.early_data}")
        if self._settings.is_verbose and connection.is_resumed:
            _say("* session resumed")
        if not self._settings.as_json:
            return
        found: dict[str, Any] = {
            "url": target.url,
            "status": response.status,
            "http_version": "3",
            "connect_seconds": round(opening.seconds, 6),
            "first_byte_seconds": round(self._first_byte_s, 6),
            "seconds": round(seconds, 6),
            "bytes": self._size_bytes,
            "remote": list(connection.remote),
            "early_data": connection.early_data,
            "is_resumed": connection.is_resumed,
            "rtt_seconds": rtt_s,
        }
        print(json.dumps(found), flush=True)


def _head(response: http3.Response) -> list[str]:
    lines = [f"HTTP/3 {response.status}"]
    for name, value in response.headers:
        lines.append(hoststack.printable(f"{name.decode('latin-1')}: {value.decode('latin-1')}"))
    return lines


def _say(*lines: str) -> None:
    for line in lines:
        print(line, file=sys.stderr, flush=True)


def failure(error: Exception) -> FailedError:
    """Return why a connection or a request failed, as an exit status and a line."""
    text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    match error:
        case hoststack.ConnectError(kind="address"):
            status = Exit.RESOLVE
        case hoststack.ConnectError(kind="timeout"):
            status = Exit.TIMEOUT
        case hoststack.ConnectError(kind="tls"):
            status = Exit.CERTIFICATE
        case hoststack.ConnectError(kind="alpn"):
            status = Exit.TLS
        case hoststack.ConnectError():
            status = Exit.CONNECT
        case http3.Http3Error():
            status = Exit.HTTP3
        case ValueError():
            status = Exit.URL
        case _:
            status = Exit.RECEIVE
    return FailedError(status, text)

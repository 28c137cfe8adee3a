"""The control socket: a unix socket that accepts lines of the debug CLI.

A request is a JSON object on a line of its own: {"line": "show app", "json": false}, or
{"complete": "show a"}. So is an answer: {"text": ...}, {"error": ...} or {"completions": [...]}.
A client may send several requests at once; they are run one after the other. When it disconnects,
or closes its sending side, its command is cancelled. The server disconnects a client that sends no
request for IDLE_S, or does not read its answer; if a new client needs the place, it disconnects the
one that has been idle for the longest time. ControlClient reconnects by itself.
"""

from __future__ import annotations

import errno
import json
import logging
import math
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any, Final

import trio

from hoststack.boundary.containment import contained, fault_text
from hoststack.control.commands import MAX_LINE_CHARACTERS, complete
from hoststack.control.grammar import FAULT, CommandError
from hoststack.control.unix_listener import group_id, unix_listener
from hoststack.text import printable

logger = logging.getLogger(__name__)

DEFAULT_PATH: Final = "/run/hoststack/cli.sock"
#: Size of a request's JSON: a character of the line may need six bytes (\\uXXXX).
_MAX_REQUEST_BYTES: Final = 6 * MAX_LINE_CHARACTERS + 64
_MAX_WAITING_REQUESTS: Final = 16
_MAX_CLIENTS: Final = 64
#: A client that sends no request for so long is disconnected.
IDLE_S: Final = 60.0
#: A client must read its answer within this time, also on a busy machine.
_MOST_SENDING_S: Final = 60.0
#: struct ucred (unix(7)).
_UCRED: Final = struct.Struct("iII")

#: Runs a line, as text or as JSON; raises CommandError.
RunLine = Callable[[str, bool], Awaitable[str]]


async def serve_commands(
    path: str,
    run_line: RunLine,
    *,
    group: str | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve clients on a unix socket, which root and `group` may use, until cancelled.

    Raises OSError as `unix_listener` does, and EINVAL for an unknown group.
    """
    try:
        group_number = None if group is None else group_id(group)
    except KeyError:
        raise OSError(errno.EINVAL, f"there is no group {group!r}") from None
    server = _Server(run_line)
    with unix_listener(path, socket.SOCK_STREAM, group_number) as listening:
        # trio logs ten tracebacks a second while there are no descriptors left.
        logging.getLogger("trio.serve_listeners").setLevel(logging.CRITICAL)
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(listening))
        task_status.started()
        await trio.serve_listeners(server.serve_client, [listener])


class _Client:
    """A connected client."""

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.is_busy = True
        self.rest()

    def rest(self) -> None:
        """Start to count idle time: all requests are answered. Partial requests do not count."""
        self.is_busy = False
        self.scope.deadline = trio.current_time() + IDLE_S

    def work(self) -> None:
        """Stop to count idle time while a command runs."""
        self.is_busy = True
        self.scope.deadline = math.inf


class _Server:
    def __init__(self, run_line: RunLine) -> None:
        self._run_line = run_line
        self._clients: list[_Client] = []
        """The first of the idle ones has been idle for the longest time."""

    async def serve_client(self, stream: trio.SocketStream) -> None:
        """Answer one client's requests until it is gone; its faults end only this task."""
        client = _Client()
        with contained(_log_fault):
            async with stream:
                raw = stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
                pid, uid, gid = _UCRED.unpack(raw)
                logger.info("control socket: process %d of user %d, group %d", pid, uid, gid)
                if not self._make_room():
                    await _send(stream, {"error": "too many clients"})
                    return
                self._clients.append(client)
                try:
                    with client.scope:
                        await self._answer_all(client, stream)
                finally:
                    self._clients.remove(client)

    def _make_room(self) -> bool:
        """Return whether another client fits, disconnecting an idle one if needed."""
        if len(self._clients) < _MAX_CLIENTS:
            return True
        for client in self._clients:
            if not client.is_busy and not client.scope.cancel_called:
                client.scope.cancel()
                return True
        return False

    async def _answer_all(self, client: _Client, stream: trio.SocketStream) -> None:
        incoming, requests = trio.open_memory_channel[bytes](_MAX_WAITING_REQUESTS)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_read_requests, stream, incoming, nursery.cancel_scope)
            async for request in requests:
                client.work()
                await _send(stream, await self._answer(request))
                client.rest()
                self._clients.remove(client)
                self._clients.append(client)
            nursery.cancel_scope.cancel()

    async def _answer(self, request: bytes) -> dict[str, Any]:
        try:
            asked = _parse_request(request)
            if "complete" in asked:
                return {"completions": complete(asked["complete"])}
            return {"text": await self._run_line(asked["line"], asked.get("json", False))}
        except CommandError as error:
            return {"error": printable(error)}
        except Exception:
            # A bug in a debug command must not end the daemon.
            logger.exception("a debug command failed")
            return {"error": FAULT}


def _parse_request(request: bytes) -> dict[str, Any]:
    """Parse a request; raises CommandError if it is invalid."""
    if len(request) > _MAX_REQUEST_BYTES:
        raise CommandError(f"a line has {MAX_LINE_CHARACTERS} characters at most")
    try:
        asked = json.loads(request)
    except (ValueError, RecursionError):
        asked = None
    if isinstance(asked, dict):
        keys = asked.keys()
        if keys == {"complete"} and isinstance(asked["complete"], str):
            return asked
        if (
            {"line"} <= keys <= {"line", "json"}
            and isinstance(asked["line"], str)
            and isinstance(asked.get("json", False), bool)
        ):
            return asked
    raise CommandError("a request is a JSON object with line and json, or with complete")


async def _read_requests(
    client: trio.SocketStream,
    incoming: trio.MemorySendChannel[bytes],
    whole: trio.CancelScope,
) -> None:
    """Pass lines on. A client that disconnects cancels `whole`; after one that sends too much, no
    more is read, and what was read is answered."""
    buffer = b""
    async with incoming:
        try:
            while chunk := await client.receive_some(_MAX_REQUEST_BYTES):
                *lines, buffer = (buffer + chunk).split(b"\n")
                for line in lines:
                    incoming.send_nowait(line)
                if len(buffer) > _MAX_REQUEST_BYTES:
                    incoming.send_nowait(buffer)
                    return
        except trio.WouldBlock:
            return
        except trio.BrokenResourceError:
            pass
    whole.cancel()


async def _send(stream: trio.SocketStream, answer: dict[str, Any]) -> None:
    """Send an answer; raises TooSlowError for a client that does not read."""
    with trio.fail_after(_MOST_SENDING_S):
        await stream.send_all(json.dumps(answer).encode() + b"\n")


def _log_fault(error: Exception) -> None:
    if isinstance(error, trio.BrokenResourceError):
        return  # it disconnected during the answer
    if isinstance(error, trio.TooSlowError):
        logger.warning(
            "control socket: a client did not read its answer in %.0f s", _MOST_SENDING_S
        )
    else:
        logger.error("control socket: %s", fault_text(error), exc_info=error)

"""The control socket: a unix socket that takes the debug CLI's lines.

A request is a JSON object on a line of its own: {"line": "show app", "json": false}, or
{"complete": "show a"}. So is an answer: {"text": ...}, {"error": ...} or {"completions": [...]}.
A client may send some requests at once; they are run one after the other. One that goes away, or
closes its sending side, has its command cancelled.
"""

from __future__ import annotations

import errno
import json
import logging
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final

import trio

from hoststack.debug.commands import MAX_LINE_CHARACTERS, complete
from hoststack.debug.grammar import FAULT, CommandError
from hoststack.debug.unix_listener import group_id, unix_listener

logger = logging.getLogger(__name__)

DEFAULT_PATH: Final = "/run/hoststack/cli.sock"
#: A request's JSON: each character of the line may take six (\\uXXXX).
_MAX_REQUEST_BYTES: Final = 6 * MAX_LINE_CHARACTERS + 64
_MAX_WAITING_REQUESTS: Final = 16
_MAX_CLIENTS: Final = 64
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

    Raises OSError as `unix_listener` does, and EINVAL for a group that is none.
    """
    try:
        group_number = None if group is None else group_id(group)
    except KeyError:
        raise OSError(errno.EINVAL, f"there is no group {group!r}") from None
    server = _Server(run_line)
    with unix_listener(path, socket.SOCK_STREAM, group_number) as listening:
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(listening))
        task_status.started()
        await trio.serve_listeners(server.serve_client, [listener])


class _Server:
    def __init__(self, run_line: RunLine) -> None:
        self._run_line = run_line
        self._clients = 0

    async def serve_client(self, client: trio.SocketStream) -> None:
        """Answer one client's requests until it is gone."""
        raw = client.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        pid, uid, gid = _UCRED.unpack(raw)
        logger.info("control socket: process %d of user %d, group %d", pid, uid, gid)
        self._clients += 1
        try:
            async with client:
                with suppress(trio.BrokenResourceError):
                    if self._clients > _MAX_CLIENTS:
                        await _send(client, {"error": "too many clients at the same time"})
                    else:
                        await self._answer_all(client)
        finally:
            self._clients -= 1

    async def _answer_all(self, client: trio.SocketStream) -> None:
        incoming, requests = trio.open_memory_channel[bytes](_MAX_WAITING_REQUESTS)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_read_requests, client, incoming, nursery.cancel_scope)
                async for request in requests:
                    await _send(client, await self._answer(request))
                nursery.cancel_scope.cancel()
        except* trio.BrokenResourceError:
            pass  # It left while it was answered.

    async def _answer(self, request: bytes) -> dict[str, Any]:
        try:
            asked = _parse_request(request)
            if "complete" in asked:
                return {"completions": complete(asked["complete"])}
            return {"text": await self._run_line(asked["line"], asked.get("json", False))}
        except CommandError as error:
            return {"error": str(error)}
        except Exception:
            # What is wrong with a debug command must not end the daemon.
            logger.exception("a debug command failed")
            return {"error": FAULT}


def _parse_request(request: bytes) -> dict[str, Any]:
    """Raises CommandError for what is no request."""
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
    """Pass on lines. A client that leaves ends `whole`; one that sends too much gets answers to
    what came until then, and no more."""
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


async def _send(client: trio.SocketStream, answer: dict[str, Any]) -> None:
    await client.send_all(json.dumps(answer).encode() + b"\n")

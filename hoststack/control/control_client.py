"""The client side of the control socket, for programs without an event loop."""

from __future__ import annotations

import errno
import json
import socket
from typing import Any, Final

from hoststack.control.grammar import CommandError

_CHUNK_BYTES: Final = 64 << 10


class ControlClient:
    """A connection to a daemon's control socket."""

    def __init__(self, path: str) -> None:
        """Connect; raises OSError, with one line that says what to do."""
        self._path = path
        self._rest = b""
        self._socket = _connected(path)

    def run(self, line: str, *, as_json: bool = False) -> str:
        """Run a line; raises CommandError if it fails, ConnectionError if the daemon is gone."""
        return str(self._ask({"line": line, "json": as_json})["text"])

    def complete(self, line: str) -> list[str]:
        """Return completions of a line's last word; raises as `run` does."""
        return [str(word) for word in self._ask({"complete": line})["completions"]]

    def close(self) -> None:
        """Disconnect; a command that still runs is cancelled."""
        self._socket.close()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        self._come_back()
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
            answer = json.loads(self._read_line())
        except ConnectionError:
            raise ConnectionResetError(
                errno.ECONNRESET, f"the daemon at {self._path} has gone"
            ) from None
        if "error" in answer:
            raise CommandError(str(answer["error"]))
        return dict(answer)

    def _come_back(self) -> None:
        """Connect again if the daemon has closed this connection while it was idle."""
        try:
            is_over = not self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            is_over = False
        except ConnectionError:
            is_over = True
        if is_over:
            self._socket.close()
            self._socket = _connected(self._path)

    def _read_line(self) -> bytes:
        chunks = [self._rest]
        while b"\n" not in chunks[-1]:
            chunk = self._socket.recv(_CHUNK_BYTES)
            if not chunk:
                raise ConnectionResetError
            chunks.append(chunk)
        line, _, self._rest = b"".join(chunks).partition(b"\n")
        return line


def _connected(path: str) -> socket.socket:
    end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        end.connect(path)
    except OSError as error:
        end.close()
        raise OSError(error.errno, _why_not(path, error)) from None
    return end


def _why_not(path: str, error: OSError) -> str:
    if error.errno in (errno.ENOENT, errno.ECONNREFUSED):
        return (
            f"no daemon at {path}: `hoststack run -i IFACE` starts one, --socket PATH names the "
            "socket of another"
        )
    if error.errno == errno.EACCES:
        return f"no permission to use {path}: be root, or in the socket's group"
    return f"{path}: {error.strerror or error}"

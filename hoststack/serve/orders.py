"""Messages between the manager and an application, and the socket that carries them."""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from hoststack.serve.certificates import Pair, in_memory
from hoststack.serve.settings import ServeSettings

_MOST_BYTES: Final = 1 << 16
_MOST_FDS: Final = 4
_MOST_TEXT: Final = 1 << 15


class Start(msgspec.Struct, frozen=True, tag=True):
    """The first order. The certificates come with it."""

    settings: str
    """In JSON, which has no words for infinity and for file names that are no UTF-8: Python's."""
    uris: list[str]
    socket: str
    """Where to attach to the engines; empty to run one in the process."""
    tcp: list[int]
    """Descriptors of listening TCP sockets, which the process has inherited."""

    def read(self) -> ServeSettings:
        """Return the settings."""
        found: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in json.loads(self.settings).items()
        }
        return ServeSettings(**found)


class NewCertificates(msgspec.Struct, frozen=True, tag=True):
    """Use the certificates that come with it from the next handshake on."""


class Stop(msgspec.Struct, frozen=True, tag=True):
    """End: gracefully, or at once."""

    at_once: bool = False


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The application listens; or the engines accept applications."""

    link: str = ""
    engine: str = ""


class Failed(msgspec.Struct, frozen=True, tag=True):
    """It can't start, or go on; it ends."""

    text: str
    status: int


class WantCertificates(msgspec.Struct, frozen=True, tag=True):
    """`hoststack ctl "tls reload"` has asked for the certificates to be read again."""


class Counts(msgspec.Struct, frozen=True, tag=True):
    """What was served since the start."""

    requests: int
    errors: int
    sent_bytes: int


Order = Start | NewCertificates | Stop
Report = Ready | Failed | WantCertificates | Counts
_read_order: Final = msgspec.json.Decoder(Order).decode
_read_report: Final = msgspec.json.Decoder(Report).decode


class End:
    """An end of the socket: `send` and `receive` never block."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._socket = end

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def send(self, message: Order | Report, pairs: Sequence[Pair] = ()) -> bool:
        """Send a message; False if the other end is gone, or does not read."""
        if isinstance(message, Failed):
            text = message.text.encode(errors="backslashreplace").decode()
            message = Failed(text[:_MOST_TEXT], message.status)
        fds = [in_memory(msgspec.msgpack.encode(pairs))] if pairs else []
        try:
            socket.send_fds(self._socket, [msgspec.json.encode(message)], fds)
        except (BlockingIOError, ConnectionError):
            return False
        finally:
            for fd in fds:
                os.close(fd)
        return True

    def orders(self) -> list[tuple[Order, list[Pair]]] | None:
        """Return the orders that have arrived; None if the manager is gone."""
        found = self._receive()
        if found is None:
            return None
        return [
            (_read_order(data), [p for fd in fds for p in _from_memory(fd)]) for data, fds in found
        ]

    def reports(self) -> list[Report] | None:
        """Return the reports that have arrived; None if the other end is gone."""
        found = self._receive()
        return None if found is None else [_read_report(data) for data, _ in found]

    def _receive(self) -> list[tuple[bytes, list[int]]] | None:
        found: list[tuple[bytes, list[int]]] = []
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(self._socket, _MOST_BYTES, _MOST_FDS)
            except BlockingIOError:
                return found
            except OSError as error:
                if error.errno not in (errno.ECONNRESET, errno.EBADF):
                    raise
                return found or None
            if not data:
                return found or None
            found.append((data, fds))


def _from_memory(fd: int) -> list[Pair]:
    with open(fd, "rb") as file:
        file.seek(0)
        return msgspec.msgpack.decode(file.read(), type=list[Pair])

"""VCL sessions as objects: the plain functions' calls, but with OSErrors of the same errno."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from hoststack.boundary.protocols import Protocol
from hoststack.vcl import app as apps
from hoststack.vcl import closing, connecting, transfer
from hoststack.vcl.attributes import Attr, session_attr
from hoststack.vcl.config import VclConfig, load_config
from hoststack.vcl.errors import error
from hoststack.vcl.functions import protocol_of
from hoststack.vcl.session import Address, Kind, VclSession
from hoststack.vcl.worker import VclWorker


@contextmanager
def application(name: str, config: VclConfig | None = None) -> Iterator[None]:
    """Run an application for the length of the block.

    VCL_CONFIG names its configuration unless one is given. Its sessions are closed at the end, or
    aborted when an exception leaves the block. Raises VclConfigError, AttachError, and OSError with
    EEXIST.
    """
    apps.create(name, config or load_config())
    aborts = True
    try:
        yield
        aborts = False
    finally:
        apps.destroy(aborts=aborts)


@contextmanager
def worker() -> Iterator[None]:
    """Make the calling thread a worker with its own sessions for the length of the block.

    They are closed at the end, or aborted when an exception leaves the block. Raises AttachError.
    """
    apps.the_app().register()
    aborts = True
    try:
        yield
        aborts = False
    finally:
        apps.the_app().unregister(aborts=aborts)


class Session:
    """A session; as a context manager it is closed, or aborted when an exception leaves the block.

    The peer of an aborted one sees a reset, or a connection closed with `hoststack.ABORTED_CODE`.
    All calls raise OSError.
    """

    def __init__(
        self, protocol: Protocol = "quic", *, alpn: Sequence[str] = (), nonblocking: bool = False
    ) -> None:
        """`alpn` names the application protocols (RFC 7301) of a QUIC connection or listener; the
        default is the configuration's."""
        created = apps.current_worker().add(protocol_of(protocol))
        created.is_nonblocking = nonblocking
        created.alpn = tuple(alpn)
        self._sh = created.sh

    @classmethod
    def of(cls, sh: int) -> Session:
        """Return the session object for a plain function's session number."""
        made = cls.__new__(cls)
        made._sh = sh
        return made

    @property
    def sh(self) -> int:
        """The session number for the plain functions."""
        return self._sh

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        caught: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if caught is None:
            self.close()
        else:
            self._end(closing.abort)

    def __repr__(self) -> str:
        return f"<vcl.Session {self._sh}>"

    def _found(self) -> tuple[VclWorker, VclSession]:
        worker = apps.current_worker()
        return worker, worker.get_open(self._sh)

    def use_certificate(self, certificate: bytes, key: bytes) -> None:
        """Set the certificate chain and the private key, PEM."""
        _, session = self._found()
        session.certificate, session.key = certificate, key

    def bind(self, endpoint: object) -> None:
        connecting.bind(*self._found(), endpoint)

    def listen(self) -> None:
        connecting.listen(*self._found())

    def accept(self, flags: int = 0) -> Session:
        """Accept a connection of a listener, or a stream of a QUIC connection."""
        return Session.of(connecting.accept(*self._found(), flags).sh)

    def connect(self, endpoint: object) -> None:
        connecting.connect(*self._found(), endpoint)

    def open_stream(self) -> Session:
        """Open a stream in this QUIC connection."""
        worker, session = self._found()
        stream = worker.add(session.protocol)
        try:
            connecting.stream_connect(worker, stream, session)
        except BaseException:
            worker.remove(stream)
            raise
        return Session.of(stream.sh)

    def read(self, size: int = 65536) -> bytes:
        """Read some bytes; returns none only at the end."""
        buffer = bytearray(size)
        return bytes(memoryview(buffer)[: self.read_into(buffer)])

    def read_into(self, buffer: bytearray | memoryview) -> int:
        """Read into a buffer as `read` does, with one copy."""
        return transfer.read(*self._found(), buffer)

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Write as many bytes as fit, and return how many."""
        return transfer.write(*self._found(), data)

    def write_all(self, data: bytes | bytearray | memoryview) -> None:
        """Write all of the bytes. If it raises, an unknown part of them was written: the session
        can't end in order any more, `shutdown` fails with EPIPE, and closing resets it."""
        transfer.write_all(*self._found(), data)

    def recvfrom(self, size: int = 65536, flags: int = 0) -> tuple[bytes, Address]:
        buffer = bytearray(size)
        count, sender = transfer.receive_from(*self._found(), buffer, flags)
        return bytes(memoryview(buffer)[:count]), sender

    def sendto(self, data: bytes | bytearray | memoryview, endpoint: object = None) -> int:
        return transfer.send_to(*self._found(), data, endpoint)

    def shutdown(self, how: int = socket.SHUT_WR) -> None:
        closing.shutdown(*self._found(), how)

    def attr(self, attribute: Attr, value: Any = None) -> Any:
        return session_attr(apps.the_app(), *self._found(), attribute, value)

    @property
    def local(self) -> Address:
        return self._found()[1].local

    @property
    def remote(self) -> Address:
        return self._found()[1].remote

    @property
    def max_datagram_bytes(self) -> int:
        """The most bytes that one datagram of a UDP session carries."""
        _, session = self._found()
        session.check_readable()
        if session.kind is not Kind.DATAGRAMS:
            raise error(errno.ENOTSUP, "it carries no datagrams")
        return session.max_datagram_bytes

    @property
    def is_connectable_listener(self) -> bool:
        return self._found()[1].is_connectable_listener

    def close(self) -> None:
        """Close; written data is still sent, unless a `write_all` was interrupted. Idempotent."""
        self._end(closing.close)

    def _end(self, how: Callable[[VclWorker, VclSession], None]) -> None:
        if self._sh >= 0:
            worker = apps.current_worker()
            sh, self._sh = self._sh, -1
            how(worker, worker.get(sh))

    def terminate(self) -> None:
        """End at once; the peer sees a reset."""
        worker = apps.current_worker()
        sh, self._sh = self._sh, -1
        closing.terminate(worker, worker.get(sh))

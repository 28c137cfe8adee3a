"""Sessions as objects: the same calls, raising OSError with the same errno."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterator
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
    """An application for the length of the block, by the configuration that VCL_CONFIG names
    unless one is given. Its sessions are closed at the end, or aborted when an exception leaves
    the block. Raises VclConfigError, AttachError, and OSError with EEXIST."""
    apps.create(name, config or load_config())
    aborts = True
    try:
        yield
        aborts = False
    finally:
        apps.destroy(aborts=aborts)


@contextmanager
def worker() -> Iterator[None]:
    """The calling thread has sessions of its own in the block. They are closed at the end, or
    aborted when an exception leaves the block. Raises AttachError."""
    apps.the_app().register()
    aborts = True
    try:
        yield
        aborts = False
    finally:
        apps.the_app().unregister(aborts=aborts)


class Session:
    """A session; a context manager that closes it, or aborts it when an exception leaves the block:
    the peer sees a reset, or a connection closed with `hoststack.ABORTED_CODE`. All calls raise
    OSError."""

    def __init__(self, protocol: Protocol = "quic", *, nonblocking: bool = False) -> None:
        created = apps.current_worker().add(protocol_of(protocol))
        created.is_nonblocking = nonblocking
        self._sh = created.sh

    @classmethod
    def of(cls, sh: int) -> Session:
        """The session of a number that a plain function gave."""
        made = cls.__new__(cls)
        made._sh = sh
        return made

    @property
    def sh(self) -> int:
        """The number that the plain functions take."""
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
        """Chain and private key, PEM."""
        _, session = self._found()
        session.certificate, session.key = certificate, key

    def bind(self, endpoint: object) -> None:
        connecting.bind(*self._found(), endpoint)

    def listen(self) -> None:
        connecting.listen(*self._found())

    def accept(self, flags: int = 0) -> Session:
        """A connection of a listener, or a stream of a QUIC connection."""
        return Session.of(connecting.accept(*self._found(), flags).sh)

    def connect(self, endpoint: object) -> None:
        connecting.connect(*self._found(), endpoint)

    def open_stream(self) -> Session:
        """A stream of this QUIC connection."""
        worker, session = self._found()
        stream = worker.add(session.protocol)
        try:
            connecting.stream_connect(worker, stream, session)
        except BaseException:
            worker.remove(stream)
            raise
        return Session.of(stream.sh)

    def read(self, size: int = 65536) -> bytes:
        """Some bytes; none at the end alone."""
        buffer = bytearray(size)
        return bytes(memoryview(buffer)[: self.read_into(buffer)])

    def read_into(self, buffer: bytearray | memoryview) -> int:
        """As `read`, with one copy."""
        return transfer.read(*self._found(), buffer)

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """As many as there is room for; how many."""
        return transfer.write(*self._found(), data)

    def write_all(self, data: bytes | bytearray | memoryview) -> None:
        """All of the bytes. If it raises, an unknown part of them was written: the session can't
        end in order any more, `shutdown` fails with EPIPE, and closing it resets it."""
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
        """What one datagram of a UDP session carries at most."""
        _, session = self._found()
        session.check_readable()
        if session.kind is not Kind.DATAGRAMS:
            raise error(errno.ENOTSUP, "it carries no datagrams")
        return session.max_datagram_bytes

    @property
    def is_connectable_listener(self) -> bool:
        return self._found()[1].is_connectable_listener

    def close(self) -> None:
        """What was written still goes out, unless a `write_all` was interrupted. Idempotent."""
        self._end(closing.close)

    def _end(self, how: Callable[[VclWorker, VclSession], None]) -> None:
        if self._sh >= 0:
            worker = apps.current_worker()
            sh, self._sh = self._sh, -1
            how(worker, worker.get(sh))

    def terminate(self) -> None:
        """At once; the peer sees a reset."""
        worker = apps.current_worker()
        sh, self._sh = self._sh, -1
        closing.terminate(worker, worker.get(sh))

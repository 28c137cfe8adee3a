"""Reading and writing bytes and datagrams: read, write, recvfrom, sendto."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from hoststack.native.memory.fifo import Fifo, FifoCorruptError
from hoststack.transport.kernel.udp import ADDRESS_BYTES, pack_address, unpack_address
from hoststack.vcl.connecting import open_endpoint, resolve
from hoststack.vcl.errors import error
from hoststack.vcl.session import Address, Kind, State, VclSession
from hoststack.vcl.stream import Tx

if TYPE_CHECKING:
    from collections.abc import Callable

    from hoststack.vcl.worker import VclWorker

Buffer = bytes | bytearray | memoryview
#: The flag of recv(2) that VCL supports.
MSG_PEEK = 2


def view_of(buffer: object, *, is_writable: bool) -> memoryview:
    """Return the octets of a buffer; raises EINVAL for other objects, for an empty buffer, and for
    a read-only one that is to be read into."""
    try:
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
    except TypeError:
        raise error(errno.EINVAL, f"{type(buffer).__name__} is not a buffer") from None
    if is_writable and (view.readonly or not len(view)):
        raise error(errno.EINVAL, "a buffer of at least one octet is expected")
    return view


def read(worker: VclWorker, session: VclSession, buffer: object) -> int:
    """Read into the caller's buffer, with one copy; returns 0 only at the end of a stream."""
    view = view_of(buffer, is_writable=True)
    session.check_readable()
    if session.kind is Kind.DATAGRAMS:
        return receive_from(worker, session, view, 0)[0]
    if session.rx is None:  # a connection or a listener that has ended
        session.raise_end_of_reading()
        return 0
    rx = session.rx
    try:
        while True:
            # Read the end flag first: more bytes, and the end, may come after the read.
            is_end = rx.eof
            if count := rx.read_into(view):
                return count
            if is_end or session.is_read_shut:
                return 0
            session.raise_end_of_reading()
            _wait(worker, session, rx.arm_read, lambda: session.can_read)
    except FifoCorruptError:
        raise error(errno.ECONNRESET, "the other side broke the FIFO") from None


def write(worker: VclWorker, session: VclSession, data: object) -> int:
    """Write as many bytes as fit, at least one, and return how many. Empty data is allowed."""
    view = view_of(data, is_writable=False)
    session.check_writable()
    if session.kind is Kind.DATAGRAMS:
        return send_to(worker, session, view, None)
    if not len(view):
        return 0
    tx = session.tx
    assert isinstance(tx, Tx)
    try:
        while not (count := tx.write(view)):
            _wait(worker, session, tx.arm_write, lambda: session.can_write)
            session.check_writable()
    except FifoCorruptError:
        raise error(errno.ECONNRESET, "the other side broke the FIFO") from None
    except OSError:
        raise  # nothing was written
    except BaseException:
        session.is_cut = True
        raise
    return count


def write_all(worker: VclWorker, session: VclSession, data: object) -> None:
    """Write all of the bytes. If it raises, an unknown part of them was written, and the session
    can't end in order any more: closing resets it."""
    view = view_of(data, is_writable=False)
    was_cut = session.is_cut
    session.is_cut = was_cut or bool(view)
    while view:
        view = view[write(worker, session, view) :]
    session.is_cut = was_cut


def _wait(
    worker: VclWorker, session: VclSession, arm: Callable[[], None], is_ready: Callable[[], bool]
) -> None:
    """Wait until something can be done; raises EAGAIN for a non-blocking session."""
    # Arm first, then look: otherwise an event in between would be missed.
    arm()
    worker.pump()
    if is_ready():
        return
    if session.is_nonblocking:
        raise error(errno.EAGAIN)
    while not is_ready():
        arm()
        if not is_ready():
            worker.pump(None)


def receive_from(
    worker: VclWorker, session: VclSession, buffer: object, flags: int
) -> tuple[int, Address]:
    """Receive a datagram, cut at the buffer's end, and its sender; or bytes from the peer."""
    view = view_of(buffer, is_writable=True)
    if flags & ~MSG_PEEK:
        raise error(errno.EINVAL, "MSG_PEEK is the only flag")
    if session.kind is not Kind.DATAGRAMS:
        if session.protocol == "udp" and session.state is State.CREATED:
            open_endpoint(worker, session)
        else:
            if flags:
                raise error(errno.ENOTSUP, "MSG_PEEK is for datagrams")
            return read(worker, session, view), session.remote
    session.check_readable()
    while True:
        message, sender = _next_message(worker, session, is_peek=bool(flags & MSG_PEEK))
        if not session.has_addresses or not session.remote[1] or sender == session.remote:
            count = min(len(message), len(view))
            view[:count] = message[:count]
            return count, sender


def _next_message(
    worker: VclWorker, session: VclSession, *, is_peek: bool
) -> tuple[bytes, Address]:
    rx = session.rx
    assert isinstance(rx, Fifo)
    try:
        while True:
            message = session.message if session.message is not None else rx.read_message()
            if message is not None:
                break
            if session.state is State.CLOSED:
                raise error(session.end_errno or errno.ECONNRESET)
            _wait(worker, session, rx.arm_read, lambda: session.can_read)
        session.message = message if is_peek else None
        if not session.has_addresses:
            return message, session.remote
        return message[ADDRESS_BYTES:], unpack_address(message)
    except (FifoCorruptError, ValueError):
        raise error(errno.ECONNRESET, "the other side broke the FIFO") from None


def send_to(worker: VclWorker, session: VclSession, data: object, where: object | None) -> int:
    """Send one whole datagram to the session's peer, or to `where`."""
    view = view_of(data, is_writable=False)
    if session.kind is not Kind.DATAGRAMS:
        if session.protocol != "udp" or session.state is not State.CREATED:
            if where is not None and session.state is State.READY:
                raise error(errno.EISCONN)
            return write(worker, session, view)
        if where is None:
            raise error(errno.ENOTCONN)
        open_endpoint(worker, session, resolve(session, where)[0][0])
    session.check_writable()
    message = bytes(view)
    if len(message) > session.max_datagram_bytes:
        raise error(errno.EMSGSIZE, f"{session.max_datagram_bytes} bytes at most")
    if session.has_addresses:
        peer = resolve(session, where)[0] if where is not None else session.remote
        if not peer[1]:
            raise error(errno.EDESTADDRREQ)
        message = pack_address(*peer) + message
    elif where is not None and resolve(session, where)[0] != session.remote:
        raise error(errno.EISCONN)
    tx = session.tx
    assert isinstance(tx, Fifo)
    try:
        while not tx.write_message(message):
            _wait(worker, session, tx.arm_write, lambda: session.can_write)
            session.check_writable()
        if tx.take_read_armed():
            worker.side.signal_sent(session.stream_handle)
    except FifoCorruptError:
        raise error(errno.ECONNRESET, "the other side broke the FIFO") from None
    return len(view)

"""Session attributes: a table from VPP's names to getters and setters."""

from __future__ import annotations

import enum
import errno
import os
from collections.abc import Callable
from typing import Any, Final

from hoststack.boundary.protocols import PROTOCOLS
from hoststack.native.memory.fifo import FifoCorruptError
from hoststack.vcl.app import App
from hoststack.vcl.closing import shutdown
from hoststack.vcl.errors import error
from hoststack.vcl.session import Kind, State, VclSession
from hoststack.vcl.worker import VclWorker


class Attr(enum.IntEnum):
    """VPPCOM_ATTR_*, those with a meaning here, by VPP's numbers."""

    GET_NREAD = 0
    GET_NWRITE = 1
    GET_FLAGS = 2
    SET_FLAGS = 3
    GET_LCL_ADDR = 4
    GET_PEER_ADDR = 6
    GET_PROTOCOL = 9
    GET_LISTEN = 10
    GET_ERROR = 11
    GET_TX_FIFO_LEN = 12
    SET_TX_FIFO_LEN = 13
    GET_RX_FIFO_LEN = 14
    SET_RX_FIFO_LEN = 15
    SET_CONNECTED = 34
    SET_CKPAIR = 35
    # Only in older versions of VPP, where they had numbers that others have now.
    SET_SHUT = 100
    GET_SHUT = 101


#: open(2): the flags of a session.
_FLAGS: Final = os.O_NONBLOCK | os.O_RDWR


def _nread(session: VclSession) -> int:
    if session.is_listener or session.kind is Kind.CONNECTION:
        return len(session.accepted) + session.offered_streams
    session.check_readable()
    return _measured(lambda: session.rx.readable if session.rx is not None else 0)


def _nwrite(session: VclSession) -> int:
    session.check_writable()
    return _measured(lambda: session.tx.writable if session.tx is not None else 0)


def _measured(look: Callable[[], int]) -> int:
    try:
        return look()
    except FifoCorruptError:
        raise error(errno.ECONNRESET, "the other side broke the FIFO") from None


def _set_flags(session: VclSession, value: Any) -> None:
    if not isinstance(value, int) or value & ~_FLAGS:
        raise error(errno.EINVAL, "the flags are O_RDWR and O_NONBLOCK")
    session.is_nonblocking = bool(value & os.O_NONBLOCK)


def _peer(session: VclSession) -> tuple[str, int]:
    if not session.remote[1] or session.state not in (State.READY, State.CLOSED):
        raise error(errno.ENOTCONN)
    return session.remote


def take_session_error(session: VclSession) -> int:
    """Return and clear the errno of what failed (SO_ERROR)."""
    if session.state is State.CLOSED and not session.ends_clean and not session.error:
        return session.end_errno
    number, session.error = session.error, 0
    return number


def _size(value: Any) -> int:
    if not isinstance(value, int) or not 1 <= value <= 1 << 32:
        raise error(errno.EINVAL, "a FIFO has 1 byte to 4 GiB")
    return value


def _shut_flags(session: VclSession) -> int:
    return int(session.is_read_shut) | int(session.is_write_shut) << 1


_GET: Final[dict[Attr, Callable[[VclSession], Any]]] = {
    Attr.GET_NREAD: _nread,
    Attr.GET_NWRITE: _nwrite,
    Attr.GET_FLAGS: lambda session: os.O_RDWR | (os.O_NONBLOCK * session.is_nonblocking),
    Attr.GET_LCL_ADDR: lambda session: session.local,
    Attr.GET_PEER_ADDR: _peer,
    Attr.GET_PROTOCOL: lambda session: session.protocol,
    Attr.GET_LISTEN: lambda session: int(session.is_listener),
    Attr.GET_ERROR: take_session_error,
    Attr.GET_TX_FIFO_LEN: lambda session: session.tx.size if session.tx is not None else 0,
    Attr.GET_RX_FIFO_LEN: lambda session: session.rx.size if session.rx is not None else 0,
    Attr.GET_SHUT: _shut_flags,
}


def session_attr(app: App, worker: VclWorker, session: VclSession, attr: object, value: Any) -> Any:
    """Get or set an attribute; return its value, or 0. Raises EINVAL for an unknown one."""
    try:
        which = Attr(attr)  # type: ignore[arg-type]
    except ValueError:
        raise error(errno.EINVAL, f"there is no attribute {attr!r} here") from None
    if which in _GET:
        return _GET[which](session)
    match which:
        case Attr.SET_FLAGS:
            _set_flags(session, value)
        case Attr.SET_TX_FIFO_LEN:
            session.tx_fifo_bytes = _size(value)
        case Attr.SET_RX_FIFO_LEN:
            session.rx_fifo_bytes = _size(value)
        case Attr.SET_CONNECTED:
            # Any UDP listener here accepts connected sessions, as VPP's do with this attribute.
            if not PROTOCOLS[session.protocol].unconnected:
                raise error(errno.ENOTSUP, f"{session.protocol} is always connected")
        case Attr.SET_SHUT:
            shutdown(worker, session, value)
        case Attr.SET_CKPAIR:
            pair = app.pairs.get(value)
            if pair is None:
                raise error(errno.EINVAL, f"there is no certificate and key pair {value!r}")
            session.certificate, session.key = pair.cert, pair.key
    return 0

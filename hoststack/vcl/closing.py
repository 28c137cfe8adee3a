"""Ending sessions: shutdown, close, terminate."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING

from hoststack.boundary import messages as m
from hoststack.quic.seam import ABORTED_CODE
from hoststack.vcl.errors import error
from hoststack.vcl.session import Kind, State, VclSession

if TYPE_CHECKING:
    from hoststack.vcl.worker import VclWorker


def shutdown(worker: VclWorker, session: VclSession, how: int) -> None:
    """Shut a stream down as shutdown(2). Raises ENOTCONN, EINVAL, ENOTSUP, and EPIPE where a write
    was interrupted: then it resets the session."""
    session.check_readable()
    if how not in (socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR):
        raise error(errno.EINVAL)
    if session.kind is Kind.DATAGRAMS:
        raise error(errno.ENOTSUP, "a datagram session can't be shut down")
    if how in (socket.SHUT_WR, socket.SHUT_RDWR):
        if session.is_cut and not session.is_write_shut:
            _reset_cut(worker, session)
            raise error(errno.EPIPE, "a write was interrupted: the session is reset, not ended")
        _end_writing(session)
    if how in (socket.SHUT_RD, socket.SHUT_RDWR):
        _end_reading(session)
    session.touch()


def _end_writing(session: VclSession) -> None:
    if session.is_write_shut or session.tx is None or session.state is not State.READY:
        return
    session.is_write_shut = True
    if session.stream is not None:
        session.stream.finish()


def _reset_cut(worker: VclWorker, session: VclSession) -> None:
    """Reset instead of a FIN, after an interrupted write."""
    session.is_write_shut = True
    if session.protocol == "quic":
        assert session.stream is not None
        session.stream.reset(ABORTED_CODE)
    else:
        worker.side.request(m.CloseConnection(session.handle, ABORTED_CODE, "interrupted"))


def _finish_writing(worker: VclWorker, session: VclSession) -> None:
    if session.is_cut and not session.is_write_shut:
        _reset_cut(worker, session)
    else:
        _end_writing(session)


def _end_reading(session: VclSession) -> None:
    if session.is_read_shut or session.rx is None or session.state is not State.READY:
        return
    session.is_read_shut = True
    _stop_reading(session)


def _stop_reading(session: VclSession) -> None:
    if not session.has_all and session.stream is not None:
        session.stream.stop(0)


def close(worker: VclWorker, session: VclSession) -> None:
    """Close a session; written data is still sent, unless a write was interrupted.

    A QUIC connection's streams end with it, but their numbers are closed separately. A blocking
    connection waits until its streams' data is acknowledged; for a non-blocking one, later calls of
    the worker wait for that.
    """
    if session.is_offered:
        worker.take(session)
    for child in _offered(session):
        close(worker, child)
    for stream in _streams(session):
        if stream.state is State.READY:
            _finish_writing(worker, stream)
            _stop_reading(stream)
        worker.end_with_connection(stream)
    if session.kind is Kind.EPOLL:
        worker.epolls.pop(session.sh).clear()
    elif session.state is State.CONNECTING:
        worker.give_up(session)
    elif session.kind is Kind.LISTENER:
        worker.side.request(m.Unlisten(session.handle))
    elif session.state is State.READY and session.kind is Kind.STREAM:
        _finish_writing(worker, session)
        if session.protocol == "quic":
            _end_reading(session)
        else:
            _close_connection(worker, session)
    elif session.state is State.READY:
        _close_lingering(worker, session)
    worker.remove(session)


def _offered(session: VclSession) -> list[VclSession]:
    """Return the children that the program has not accepted, which are closed with their parent."""
    return [each for each in session.children if each.is_offered]


def _streams(session: VclSession) -> list[VclSession]:
    """Return the streams that the program has."""
    return list(session.children) if session.kind is Kind.CONNECTION else []


def _close_lingering(worker: VclWorker, session: VclSession) -> None:
    if session.has_unfinished and not session.is_nonblocking:
        worker.wait(lambda: not session.has_unfinished, worker.LINGER_S)
    if session.has_unfinished:
        worker.linger(session)
    elif session.state is State.READY:
        _close_connection(worker, session)


def _close_connection(worker: VclWorker, session: VclSession) -> None:
    if session.handle >= 0:
        worker.side.request(m.CloseConnection(session.handle, 0, ""))


def abort(worker: VclWorker, session: VclSession) -> None:
    """Close a session whose user was interrupted: the peer must not mistake the received part for
    the whole. A direction that was shut down before ends in order."""
    if session.kind is Kind.STREAM and session.is_write_shut:
        close(worker, session)
    else:
        terminate(worker, session, ABORTED_CODE)


def terminate(worker: VclWorker, session: VclSession, code: int = 0) -> None:
    """End a session at once: unsent data is discarded, and the peer sees a reset."""
    if session.state is State.READY and session.kind is Kind.STREAM:
        if session.protocol == "quic":
            assert session.stream is not None
            session.stream.reset(code)
            session.stream.stop(code)
        else:
            worker.side.request(m.CloseConnection(session.handle, code, "terminated"))
        session.state = State.CLOSED
    elif session.state is State.READY and session.handle >= 0 and not session.is_listener:
        for child in _offered(session):
            terminate(worker, child, code)
        for stream in _streams(session):
            worker.end_with_connection(stream)
        worker.side.request(m.CloseConnection(session.handle, code, "terminated"))
        session.state = State.CLOSED
    close(worker, session)

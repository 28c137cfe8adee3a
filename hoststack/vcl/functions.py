"""VPP's functions by their names; they return 0, a count, a session, or a negative errno.

C's pointers are objects here: an endpoint is a `vppcom_endpt_t`, a (host, port) or a URI; buffers
are bytearrays and memoryviews, and bytes to write; events are `EpollEvent`s.
"""

from __future__ import annotations

import errno
import functools
import sys
from collections.abc import Callable, MutableSet, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

from hoststack.boundary.protocols import PROTOCOLS, Protocol
from hoststack.vcl import app as apps
from hoststack.vcl import closing, connecting, transfer, waiting
from hoststack.vcl.app import CertKeyPair
from hoststack.vcl.attributes import session_attr, take_session_error
from hoststack.vcl.config import VclConfigError, load_config
from hoststack.vcl.constants import VPPCOM_OK
from hoststack.vcl.epoll import EpollEvent
from hoststack.vcl.errors import error
from hoststack.vcl.session import State
from hoststack.vcl.waiting import VclPoll

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(slots=True)
class vppcom_endpt_t:  # noqa: N801
    """An address and a port; `vppcom_session_accept` and `recvfrom` fill it in."""

    ip: str = ""
    port: int = 0


#: VPP's names.
vppcom_cert_key_pair_t = CertKeyPair
vcl_poll_t = VclPoll


def _plain(function: Callable[P, int]) -> Callable[P, int]:
    """Make a function return the negative errno of the OSError that it raises."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> int:
        try:
            return function(*args, **kwargs)
        except OSError as caught:
            return -(caught.errno or errno.EIO)

    return call


def protocol_of(proto: object) -> Protocol:
    """Return the protocol of a name, whatever its case; raises EPROTONOSUPPORT."""
    for name in PROTOCOLS:
        if isinstance(proto, str) and proto.lower() == name:
            return name
    raise error(errno.EPROTONOSUPPORT, f"{proto!r}: there is {', '.join(PROTOCOLS)}")


@_plain
def vppcom_app_create(app_name: str) -> int:
    """Attach to the daemon that VCL_CONFIG names; prints errors as one line on stderr."""
    try:
        apps.create(app_name, load_config())
    except VclConfigError as caught:
        print(f"vcl: {caught}", file=sys.stderr)
        return -errno.EINVAL
    except OSError as caught:
        print(f"vcl: {caught.strerror}", file=sys.stderr)
        raise
    return VPPCOM_OK


def vppcom_app_destroy() -> None:
    """Close all sessions, and detach from the daemon."""
    apps.destroy()


@_plain
def vppcom_worker_register() -> int:
    """Make the calling thread, or the child of a fork, a worker with its own sessions."""
    apps.the_app().register()
    return VPPCOM_OK


@_plain
def vppcom_worker_unregister() -> int:
    """Close the calling thread's sessions."""
    apps.the_app().unregister()
    return VPPCOM_OK


@_plain
def vppcom_worker_index() -> int:
    """Return the calling thread's worker number."""
    return apps.current_worker().index


@_plain
def vppcom_session_create(proto: str, nonblock: bool = False) -> int:
    """Create a session of "quic", "tcp" or "udp"; return its number."""
    worker = apps.current_worker()
    session = worker.add(protocol_of(proto))
    session.is_nonblocking = bool(nonblock)
    return session.sh


@_plain
def vppcom_session_tls_add_cert(sh: int, cert: bytes, cert_len: int | None = None) -> int:
    """Set the session's certificate chain, PEM."""
    session = apps.current_worker().get_open(sh)
    session.certificate = _pem(_first(cert, cert_len))
    return VPPCOM_OK


@_plain
def vppcom_session_tls_add_key(sh: int, key: bytes, key_len: int | None = None) -> int:
    """Set the private key of the session's certificate, PEM."""
    session = apps.current_worker().get_open(sh)
    session.key = _pem(_first(key, key_len))
    return VPPCOM_OK


def _first(buffer: Any, count: int | None) -> Any:
    """Return the first `count` octets of a buffer, or all if None. Raises EINVAL."""
    if count is None:
        return buffer
    try:
        if 0 <= count <= len(buffer):
            return (memoryview(buffer) if isinstance(buffer, bytearray) else buffer)[:count]
    except TypeError:
        pass
    raise error(errno.EINVAL, f"the buffer has no {count!r} octets")


def _pem(text: object) -> bytes:
    if isinstance(text, str):
        text = text.encode()
    if not isinstance(text, bytes | bytearray) or b"-----BEGIN " not in text:
        raise error(errno.EINVAL, "PEM is expected")
    # A C string includes its terminating zero.
    return bytes(text).rstrip(b"\0")


@_plain
def vppcom_add_cert_key_pair(pair: CertKeyPair) -> int:
    """Store a certificate and its key; return the pair's number, for Attr.SET_CKPAIR."""
    if not isinstance(pair, CertKeyPair):
        raise error(errno.EINVAL)
    return apps.the_app().add_pair(CertKeyPair(_pem(pair.cert), _pem(pair.key)))


@_plain
def vppcom_del_cert_key_pair(index: int) -> int:
    """Delete a pair; sessions that use it already continue to."""
    if apps.the_app().pairs.pop(index, None) is None:
        raise error(errno.EINVAL)
    return VPPCOM_OK


@_plain
def vppcom_session_bind(sh: int, endpoint: object) -> int:
    worker = apps.current_worker()
    connecting.bind(worker, worker.get_open(sh), endpoint)
    return VPPCOM_OK


@_plain
def vppcom_session_listen(sh: int, queue_length: int = 0) -> int:
    worker = apps.current_worker()
    connecting.listen(worker, worker.get_open(sh))
    return VPPCOM_OK


@_plain
def vppcom_session_accept(sh: int, endpoint: vppcom_endpt_t | None = None, flags: int = 0) -> int:
    """Accept a connection of a listener, or a stream of a QUIC connection."""
    worker = apps.current_worker()
    accepted = connecting.accept(worker, worker.get_open(sh), flags)
    _fill(endpoint, accepted.remote)
    return accepted.sh


@_plain
def vppcom_session_connect(sh: int, endpoint: object) -> int:
    worker = apps.current_worker()
    connecting.connect(worker, worker.get_open(sh), endpoint)
    return VPPCOM_OK


@_plain
def vppcom_session_stream_connect(sh: int, connection_sh: int) -> int:
    """Open a stream in a QUIC connection."""
    worker = apps.current_worker()
    session, connection = worker.get_open(sh), worker.get_open(connection_sh)
    connecting.stream_connect(worker, session, connection)
    return VPPCOM_OK


@_plain
def vppcom_session_read(sh: int, buffer: bytearray | memoryview, n: int | None = None) -> int:
    worker = apps.current_worker()
    session = worker.get_open(sh)
    return transfer.read(worker, session, buffer if n is None else _first(buffer, n))


@_plain
def vppcom_session_write(
    sh: int, data: bytes | bytearray | memoryview, n: int | None = None
) -> int:
    worker = apps.current_worker()
    session = worker.get_open(sh)
    return transfer.write(worker, session, data if n is None else _first(data, n))


@_plain
def vppcom_session_recvfrom(
    sh: int,
    buffer: bytearray | memoryview,
    flags: int = 0,
    endpoint: vppcom_endpt_t | None = None,
) -> int:
    worker = apps.current_worker()
    count, sender = transfer.receive_from(worker, worker.get_open(sh), buffer, flags)
    _fill(endpoint, sender)
    return count


@_plain
def vppcom_session_sendto(
    sh: int, data: bytes | bytearray | memoryview, flags: int = 0, endpoint: object = None
) -> int:
    worker = apps.current_worker()
    session = worker.get_open(sh)
    if flags:
        raise error(errno.EINVAL, "sending has no flags")
    return transfer.send_to(worker, session, data, endpoint)


def _fill(endpoint: vppcom_endpt_t | None, address: tuple[str, int]) -> None:
    if endpoint is not None:
        endpoint.ip, endpoint.port = address


@_plain
def vppcom_session_shutdown(sh: int, how: int) -> int:
    worker = apps.current_worker()
    closing.shutdown(worker, worker.get_open(sh), how)
    return VPPCOM_OK


@_plain
def vppcom_session_close(sh: int) -> int:
    worker = apps.current_worker()
    closing.close(worker, worker.get(sh))
    return VPPCOM_OK


@_plain
def vppcom_session_terminate(sh: int) -> int:
    worker = apps.current_worker()
    closing.terminate(worker, worker.get(sh))
    return VPPCOM_OK


@_plain
def vppcom_session_is_connectable_listener(sh: int) -> int:
    """Return 1 for a QUIC connection, 0 for a listener and for a stream."""
    return int(apps.current_worker().get_open(sh).is_connectable_listener)


@_plain
def vppcom_session_n_accepted(sh: int) -> int:
    """Return how many sessions were accepted from it."""
    return apps.current_worker().get_open(sh).n_accepted


@_plain
def vppcom_session_get_error(sh: int) -> int:
    """Return and clear the session's error, as a negative errno."""
    worker = apps.current_worker()
    session = worker.get_open(sh)
    if session.state is State.CONNECTING:
        worker.pump()
    return -take_session_error(session)


def vppcom_session_attr(sh: int, op: int, value: Any = None) -> Any:
    """Get or set an attribute (`Attr`): returns the value, 0, or a negative errno."""
    try:
        worker = apps.current_worker()
        return session_attr(apps.the_app(), worker, worker.get_open(sh), op, value)
    except OSError as caught:
        return -(caught.errno or errno.EIO)


@_plain
def vppcom_select(
    read_map: MutableSet[int] | None,
    write_map: MutableSet[int] | None,
    except_map: MutableSet[int] | None,
    wait_for_time: float,
) -> int:
    """Reduce sets of sessions to those that are ready; the time is in seconds, < 0 forever."""
    worker = apps.current_worker()
    return waiting.select_sessions(worker, read_map, write_map, except_map, _timeout(wait_for_time))


@_plain
def vppcom_poll(entries: Sequence[VclPoll], wait_for_time: float) -> int:
    """Wait as poll(2) does; the time is in seconds, below 0 forever."""
    return waiting.poll(apps.current_worker(), entries, _timeout(wait_for_time))


@_plain
def vppcom_epoll_create() -> int:
    return waiting.epoll_create(apps.current_worker()).sh


@_plain
def vppcom_epoll_ctl(vep: int, op: int, sh: int, event: EpollEvent | None = None) -> int:
    """Change an epoll set, with EPOLL_CTL_*, and the EPOLL flags of the module `select`."""
    waiting.epoll_ctl(apps.current_worker(), vep, op, sh, event)
    return VPPCOM_OK


@_plain
def vppcom_epoll_wait(
    vep: int, events: list[EpollEvent], max_events: int, wait_for_time: float
) -> int:
    """Put ready events into the list; the time is in milliseconds, as in VPP, < 0 forever."""
    worker = apps.current_worker()
    timeout_s = _timeout(wait_for_time / 1000)
    events[:] = waiting.epoll_wait(worker, worker.get_epoll(vep), max_events, timeout_s)
    return len(events)


def _timeout(seconds: float) -> float | None:
    return None if seconds < 0 else seconds


def vppcom_retval_str(retval: int) -> str:
    """Return a result's name: "VPPCOM_OK", "VPPCOM_EAGAIN", ..."""
    if retval >= 0:
        return "VPPCOM_OK"
    return f"VPPCOM_{errno.errorcode.get(-retval, 'UNKNOWN')}"

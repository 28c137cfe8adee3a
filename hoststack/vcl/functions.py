"""VPP's functions by their names: what they return is 0, a count, a session, or a negative errno.

What a pointer is in C is an object here: an endpoint is a `vppcom_endpt_t`, a (host, port) or a
URI; buffers are bytearrays and memoryviews, and bytes to write; events are `EpollEvent`s.
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


#: What VPP calls them.
vppcom_cert_key_pair_t = CertKeyPair
vcl_poll_t = VclPoll


def _plain(function: Callable[P, int]) -> Callable[P, int]:
    """The errno of what a function raises, negative."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> int:
        try:
            return function(*args, **kwargs)
        except OSError as caught:
            return -(caught.errno or errno.EIO)

    return call


def protocol_of(proto: object) -> Protocol:
    """Of a name, in whatever case; raises EPROTONOSUPPORT."""
    for name in PROTOCOLS:
        if isinstance(proto, str) and proto.lower() == name:
            return name
    raise error(errno.EPROTONOSUPPORT, f"{proto!r}: there is {', '.join(PROTOCOLS)}")


@_plain
def vppcom_app_create(app_name: str) -> int:
    """Attach to the daemon that VCL_CONFIG names. What is wrong is told in a line on stderr."""
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
    """Close everything, and leave the daemon."""
    apps.destroy()


@_plain
def vppcom_worker_register() -> int:
    """Make the calling thread, or the child of a fork, a worker with sessions of its own."""
    apps.the_app().register()
    return VPPCOM_OK


@_plain
def vppcom_worker_unregister() -> int:
    """Close the calling thread's sessions."""
    apps.the_app().unregister()
    return VPPCOM_OK


@_plain
def vppcom_worker_index() -> int:
    """The calling thread's number."""
    return apps.current_worker().index


@_plain
def vppcom_session_create(proto: str, nonblock: bool = False) -> int:
    """A new session of "quic", "tcp" or "udp"."""
    worker = apps.current_worker()
    session = worker.add(protocol_of(proto))
    session.is_nonblocking = bool(nonblock)
    return session.sh


@_plain
def vppcom_session_tls_add_cert(sh: int, cert: bytes, cert_len: int | None = None) -> int:
    """Its certificate chain, PEM."""
    session = apps.current_worker().get_open(sh)
    session.certificate = _pem(_first(cert, cert_len))
    return VPPCOM_OK


@_plain
def vppcom_session_tls_add_key(sh: int, key: bytes, key_len: int | None = None) -> int:
    """Its certificate's private key, PEM."""
    session = apps.current_worker().get_open(sh)
    session.key = _pem(_first(key, key_len))
    return VPPCOM_OK


def _first(buffer: Any, count: int | None) -> Any:
    """So many octets of a buffer, where C's length is given, too. Raises EINVAL."""
    if count is None:
        return buffer
    try:
        if 0 <= count <= len(buffer):
            return (memoryview(buffer) if isinstance(buffer, bytearray) else buffer)[:count]
    except TypeError:
        pass
    raise error(errno.EINVAL, f"{count!r} octets of it are not there")


def _pem(text: object) -> bytes:
    if isinstance(text, str):
        text = text.encode()
    if not isinstance(text, bytes | bytearray) or b"-----BEGIN " not in text:
        raise error(errno.EINVAL, "PEM is wanted")
    # In C such a string has its zero with it.
    return bytes(text).rstrip(b"\0")


@_plain
def vppcom_add_cert_key_pair(pair: CertKeyPair) -> int:
    """A pair's number, for Attr.SET_CKPAIR."""
    if not isinstance(pair, CertKeyPair):
        raise error(errno.EINVAL)
    return apps.the_app().add_pair(CertKeyPair(_pem(pair.cert), _pem(pair.key)))


@_plain
def vppcom_del_cert_key_pair(index: int) -> int:
    """Sessions that have it already keep it."""
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
    """A connection of a listener, or a stream of a QUIC connection."""
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
        raise error(errno.EINVAL, "there are no flags for sending")
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
    """1 for a QUIC connection, 0 for a listener and for a stream."""
    return int(apps.current_worker().get_open(sh).is_connectable_listener)


@_plain
def vppcom_session_n_accepted(sh: int) -> int:
    """How many were accepted from it."""
    return apps.current_worker().get_open(sh).n_accepted


@_plain
def vppcom_session_get_error(sh: int) -> int:
    """What failed, as a negative errno: told once."""
    worker = apps.current_worker()
    session = worker.get_open(sh)
    if session.state is State.CONNECTING:
        worker.pump()
    return -take_session_error(session)


def vppcom_session_attr(sh: int, op: int, value: Any = None) -> Any:
    """Get or set an attribute (`Attr`): what was got, 0, or a negative errno."""
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
    """Sets of sessions, of which those that are ready are left; seconds, below 0 for ever."""
    worker = apps.current_worker()
    return waiting.select_sessions(worker, read_map, write_map, except_map, _timeout(wait_for_time))


@_plain
def vppcom_poll(entries: Sequence[VclPoll], wait_for_time: float) -> int:
    """Seconds, below 0 for ever."""
    return waiting.poll(apps.current_worker(), entries, _timeout(wait_for_time))


@_plain
def vppcom_epoll_create() -> int:
    return waiting.epoll_create(apps.current_worker()).sh


@_plain
def vppcom_epoll_ctl(vep: int, op: int, sh: int, event: EpollEvent | None = None) -> int:
    """With EPOLL_CTL_*, and the EPOLL flags of the module `select`."""
    waiting.epoll_ctl(apps.current_worker(), vep, op, sh, event)
    return VPPCOM_OK


@_plain
def vppcom_epoll_wait(
    vep: int, events: list[EpollEvent], max_events: int, wait_for_time: float
) -> int:
    """Puts what is ready into the list; milliseconds, as in VPP, below 0 for ever."""
    worker = apps.current_worker()
    timeout_s = _timeout(wait_for_time / 1000)
    events[:] = waiting.epoll_wait(worker, worker.get_epoll(vep), max_events, timeout_s)
    return len(events)


def _timeout(seconds: float) -> float | None:
    return None if seconds < 0 else seconds


def vppcom_retval_str(retval: int) -> str:
    """ "VPPCOM_OK", "VPPCOM_EAGAIN", ..."""
    if retval >= 0:
        return "VPPCOM_OK"
    return f"VPPCOM_{errno.errorcode.get(-retval, 'UNKNOWN')}"

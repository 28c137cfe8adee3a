"""Every call in every state, against the errno that it gives; nothing hangs, nothing is raised."""

from __future__ import annotations

import errno
import os
import select
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any, Final

import pytest

from hoststack import vcl
from hoststack.vcl import functions as f
from hoststack.vcl.session import State
from tests.daemon.conftest import PATIENCE_S, Daemon, run_daemon
from tests.vcl.conftest import CERT, KEY, Pair, config_of, free_port, in_thread, listener

pytestmark = pytest.mark.usefixtures("app")

#: Each call on a session, as a program would make it; it is made without blocking.
CALLS: Final[dict[str, Callable[[int], Any]]] = {
    "bind": lambda sh: f.vppcom_session_bind(sh, ("127.0.0.1", 0)),
    "listen": f.vppcom_session_listen,
    "accept": f.vppcom_session_accept,
    "connect": lambda sh: f.vppcom_session_connect(sh, ("127.0.0.1", 1)),
    "stream_connect": lambda sh: f.vppcom_session_stream_connect(sh, sh),
    "read": lambda sh: f.vppcom_session_read(sh, bytearray(10)),
    "write": lambda sh: f.vppcom_session_write(sh, b"x"),
    "recvfrom": lambda sh: f.vppcom_session_recvfrom(sh, bytearray(10)),
    "sendto": lambda sh: f.vppcom_session_sendto(sh, b"x"),
    "shutdown": lambda sh: f.vppcom_session_shutdown(sh, socket.SHUT_WR),
    "close": f.vppcom_session_close,
    "terminate": f.vppcom_session_terminate,
    "get_error": f.vppcom_session_get_error,
    "tls_add_cert": lambda sh: f.vppcom_session_tls_add_cert(sh, CERT),
    "tls_add_key": lambda sh: f.vppcom_session_tls_add_key(sh, KEY),
    "n_accepted": f.vppcom_session_n_accepted,
    "is_connectable_listener": f.vppcom_session_is_connectable_listener,
    "get_peer": lambda sh: f.vppcom_session_attr(sh, vcl.Attr.GET_PEER_ADDR),
    "epoll_ctl": lambda sh: f.vppcom_epoll_ctl(
        f.vppcom_epoll_create(), vcl.EPOLL_CTL_ADD, sh, vcl.EpollEvent(select.EPOLLIN)
    ),
    "epoll_wait": lambda sh: f.vppcom_epoll_wait(sh, [], 1, 0),
    "select": lambda sh: f.vppcom_select({sh}, None, None, 0),
    "poll": lambda sh: f.vppcom_poll([vcl.VclPoll(sh, select.POLLIN)], 0),
}
OK: Final = 0
EBADFD, EINVAL, ENOTCONN = -errno.EBADFD, -errno.EINVAL, -errno.ENOTCONN
EAGAIN, ENOTSUP, EPIPE, ECONNRESET = -errno.EAGAIN, -errno.ENOTSUP, -errno.EPIPE, -errno.ECONNRESET
EDESTADDRREQ, EINPROGRESS = -errno.EDESTADDRREQ, -errno.EINPROGRESS
EALREADY, ECONNREFUSED = -errno.EALREADY, -errno.ECONNREFUSED


def new(protocol: str) -> int:
    return f.vppcom_session_create(protocol, True)


def no_session(_: str) -> int:
    return 0xFFFFFF


def closed(protocol: str) -> int:
    sh = new(protocol)
    assert f.vppcom_session_close(sh) == 0
    return sh


def epoll(_: str) -> int:
    return f.vppcom_epoll_create()


def listening(protocol: str) -> int:
    made = listener(protocol)
    made.attr(vcl.Attr.SET_FLAGS, os.O_NONBLOCK)
    return made.sh


def connection(protocol: str) -> int:
    client = Pair(protocol).client
    client.attr(vcl.Attr.SET_FLAGS, os.O_NONBLOCK)
    return client.sh


def stream(protocol: str) -> int:
    ours = Pair(protocol).streams[0]
    ours.attr(vcl.Attr.SET_FLAGS, os.O_NONBLOCK)
    return ours.sh


def write_shut(protocol: str) -> int:
    sh = stream(protocol)
    assert f.vppcom_session_shutdown(sh, socket.SHUT_WR) == 0
    return sh


def reset(protocol: str) -> int:
    """The peer has terminated it."""
    pair = Pair(protocol)
    ours, theirs = pair.streams
    theirs.terminate()
    worker, session = ours._found()
    # Over QUIC it is a reset of one direction, and a stop of the other.
    assert worker.wait(
        lambda: (session.is_reset and session.is_stopped) or session.state is State.CLOSED,
        PATIENCE_S,
    )
    ours.attr(vcl.Attr.SET_FLAGS, os.O_NONBLOCK)
    return ours.sh


def connecting(protocol: str) -> int:
    """To somebody who is there and does not answer."""
    sh = new(protocol)
    assert f.vppcom_session_connect(sh, mute(protocol)) == EINPROGRESS
    return sh


@cache
def mute(protocol: str) -> tuple[str, int]:
    """Where nobody answers."""
    if protocol == "quic":
        sock = socket.socket(type=socket.SOCK_DGRAM)
        sock.bind(("127.0.0.1", 0))
        _mutes.append(sock)
    else:
        # Who accepts none, and has no room for more that wait.
        sock = socket.socket()
        sock.bind(("127.0.0.1", 0))
        sock.listen(0)
        _mutes.append(sock)
        for _ in range(3):
            waiting = socket.socket()
            waiting.setblocking(False)
            waiting.connect_ex(sock.getsockname())
            _mutes.append(waiting)
    where: tuple[str, int] = sock.getsockname()
    return where


_mutes: Final[list[socket.socket]] = []


@pytest.fixture(scope="module", autouse=True)
def _close_mutes() -> Iterator[None]:
    yield
    for sock in _mutes:
        sock.close()
    _mutes.clear()
    mute.cache_clear()


def failed(protocol: str) -> int:
    """It came to nothing, which nobody was told yet."""
    sh = new(protocol)
    assert f.vppcom_session_connect(sh, ("127.0.0.1", free_port())) == EINPROGRESS
    assert f.vppcom_poll([vcl.VclPoll(sh, select.POLLOUT)], PATIENCE_S) == 1
    return sh


def bound_udp(_: str) -> int:
    sh = new("udp")
    assert f.vppcom_session_bind(sh, ("127.0.0.1", 0)) == 0
    return sh


_NOTHING: Final = dict.fromkeys(CALLS, EBADFD) | {"poll": 1}  # which says so in POLLNVAL
_EPOLL: Final = _NOTHING | {"close": OK, "terminate": OK, "epoll_ctl": EINVAL, "epoll_wait": 0}
_ALWAYS: Final = {
    "close": OK,
    "terminate": OK,
    "get_error": 0,
    "tls_add_cert": OK,
    "tls_add_key": OK,
    "epoll_ctl": OK,
    "epoll_wait": EINVAL,
    "select": 0,
    "poll": 0,
}
_NEW: Final = _ALWAYS | {
    "bind": OK,
    "listen": EDESTADDRREQ,
    "accept": EBADFD,
    "connect": EINPROGRESS,
    "stream_connect": ENOTCONN,
    "read": ENOTCONN,
    "write": ENOTCONN,
    "recvfrom": ENOTCONN,
    "sendto": ENOTCONN,
    "shutdown": ENOTCONN,
    "n_accepted": 0,
    "is_connectable_listener": 0,
    "get_peer": ENOTCONN,
}
_LISTENING: Final = _NEW | {
    "bind": EINVAL,
    "listen": OK,
    "accept": EAGAIN,
    "connect": EINVAL,
    "stream_connect": EINVAL,
}
_READY: Final = _ALWAYS | {
    "bind": EINVAL,
    "listen": EDESTADDRREQ,
    "accept": EBADFD,
    "connect": OK,
    "stream_connect": OK,
    "read": EAGAIN,
    "write": 1,
    "recvfrom": EAGAIN,
    "sendto": 1,
    "shutdown": OK,
    "n_accepted": 0,
    "is_connectable_listener": 0,
    "get_peer": tuple,
}
_CONNECTION: Final = _READY | {
    "accept": EAGAIN,
    "read": ENOTSUP,
    "write": ENOTSUP,
    "recvfrom": ENOTSUP,
    "sendto": ENOTSUP,
    "shutdown": ENOTSUP,
    "is_connectable_listener": 1,
}
_CONNECTING: Final = _NEW | {
    "bind": EINVAL,
    "connect": EALREADY,
    "stream_connect": EALREADY,
}
_KERNELS: Final = {"stream_connect": ENOTSUP}
_IS_READY: Final = {"select": 1, "poll": 1}
_BROKEN: Final = (
    _READY
    | _IS_READY
    | {
        "read": ECONNRESET,
        "recvfrom": ECONNRESET,
        "write": EPIPE,
        "sendto": EPIPE,
    }
)
#: Of each protocol and state, what each call says.
TABLE: Final[dict[tuple[str, Callable[[str], int]], dict[str, Any]]] = {
    ("quic", no_session): _NOTHING,
    ("quic", closed): _NOTHING,
    ("quic", epoll): _EPOLL,
    ("quic", new): _NEW,
    ("quic", connecting): _CONNECTING,
    ("quic", listening): _LISTENING,
    ("quic", connection): _CONNECTION,
    ("quic", stream): _READY,
    ("quic", write_shut): _READY | {"write": EPIPE, "sendto": EPIPE},
    ("quic", reset): _BROKEN,
    ("tcp", new): _NEW | _KERNELS,
    ("tcp", connecting): _CONNECTING | _KERNELS,
    ("tcp", failed): _NEW
    | _KERNELS
    | _IS_READY
    | {"bind": EINVAL, "connect": ECONNREFUSED, "get_error": ECONNREFUSED},
    ("tcp", listening): _LISTENING | _KERNELS,
    ("tcp", stream): _READY | _KERNELS,
    ("tcp", write_shut): _READY | _KERNELS | {"write": EPIPE, "sendto": EPIPE},
    ("tcp", reset): _BROKEN
    | _KERNELS
    | {"write": ECONNRESET, "sendto": ECONNRESET}
    | {"connect": ENOTCONN, "get_error": ECONNRESET},
    ("udp", new): _NEW | _KERNELS | {"recvfrom": EAGAIN},
    ("udp", listening): _LISTENING | _KERNELS,
    ("udp", connection): _READY | _KERNELS | {"shutdown": ENOTSUP},
    ("udp", bound_udp): _READY
    | _KERNELS
    | {
        "listen": OK,
        "write": EDESTADDRREQ,
        "sendto": EDESTADDRREQ,
        "shutdown": ENOTSUP,
        "get_peer": ENOTCONN,
    },
}


#: On a stack that has died, whatever the session was; in this order, which ends it.
_DEAD: Final = {
    "bind": EINVAL,
    "stream_connect": EINVAL,
    "read": ECONNRESET,
    "write": ECONNRESET,
    "recvfrom": ECONNRESET,
    "sendto": ECONNRESET,
    "shutdown": OK,
    "is_connectable_listener": 0,
    "get_error": ECONNRESET,
    "select": 1,
    "poll": 1,
    "epoll_ctl": OK,
    "terminate": OK,
    "close": EBADFD,
}


@pytest.mark.parametrize(
    ("protocol", "make"), TABLE, ids=lambda x: x if isinstance(x, str) else x.__name__
)
def test_each_call_in_each_state(protocol: str, make: Callable[[str], int]) -> None:
    expected = TABLE[protocol, make]
    assert expected.keys() == CALLS.keys()
    found = {}
    for name, call in CALLS.items():
        # A session of its own for each: calls change what they are made on.
        said = call(make(protocol))
        found[name] = tuple if isinstance(said, tuple) else said
    assert found == expected


@pytest.mark.parametrize("buffer", [b"", bytearray(), None, 7, "text", b"not writable"])
def test_bad_buffers(buffer: Any) -> None:
    sh = stream("quic")
    assert f.vppcom_session_read(sh, buffer) == EINVAL
    assert f.vppcom_session_recvfrom(sh, buffer) == EINVAL
    # There is nothing wrong with writing nothing.
    expected = len(buffer) if isinstance(buffer, bytes | bytearray) else EINVAL
    assert f.vppcom_session_write(sh, buffer) == expected
    assert f.vppcom_session_sendto(sh, buffer) == expected


def test_lengths_beside_buffers() -> None:
    ours, theirs = Pair("tcp").streams
    assert f.vppcom_session_write(ours.sh, b"abcdef", 4) == 4
    buffer = bytearray(10)
    assert f.vppcom_session_read(theirs.sh, buffer, 3) == 3
    assert f.vppcom_session_read(theirs.sh, memoryview(buffer)[3:], 7) == 1
    assert buffer[:4] == b"abcd"
    for length in (-1, 11, "1"):
        assert f.vppcom_session_read(theirs.sh, buffer, length) == EINVAL  # type: ignore[arg-type]
        assert f.vppcom_session_write(ours.sh, buffer, length) == EINVAL  # type: ignore[arg-type]
    assert f.vppcom_session_read(theirs.sh, buffer, 0) == EINVAL
    assert f.vppcom_session_write(ours.sh, None, 1) == EINVAL  # type: ignore[arg-type]
    sh = new("quic")
    assert f.vppcom_session_tls_add_cert(sh, CERT + b"rubbish", len(CERT)) == OK
    assert f.vppcom_session_tls_add_key(sh, KEY, len(KEY)) == OK
    assert f.vppcom_session_bind(sh, ("127.0.0.1", 0)) == f.vppcom_session_listen(sh) == OK


@pytest.mark.parametrize(
    "endpoint",
    [
        None,
        "",
        "127.0.0.1",
        "quic://",
        "tcp://127.0.0.1:1",
        ("127.0.0.1",),
        ("127.0.0.1", 65536),
        ("", 1),
        (1, 1),
        ("127.0.0.1", "1"),
        ("127.0.0.1", -1),
        vcl.vppcom_endpt_t(),
    ],
)
def test_bad_endpoints(endpoint: Any) -> None:
    sh = new("quic")
    assert f.vppcom_session_bind(sh, endpoint) == EINVAL
    assert f.vppcom_session_connect(sh, endpoint) == EINVAL


def test_bad_words() -> None:
    assert f.vppcom_session_create("sctp") == -errno.EPROTONOSUPPORT
    assert f.vppcom_session_create(None) == -errno.EPROTONOSUPPORT  # type: ignore[arg-type]
    sh = new("quic")
    assert f.vppcom_session_tls_add_cert(sh, b"no PEM") == EINVAL
    assert f.vppcom_session_tls_add_key(sh, 7) == EINVAL  # type: ignore[arg-type]
    assert f.vppcom_session_shutdown(stream("quic"), 3) == EINVAL
    assert f.vppcom_session_attr(sh, 99) == EINVAL
    assert f.vppcom_session_attr(sh, vcl.Attr.SET_CKPAIR, 99) == EINVAL
    assert f.vppcom_session_attr(sh, vcl.Attr.SET_FLAGS, 1 << 30) == EINVAL
    assert f.vppcom_session_attr(sh, vcl.Attr.SET_RX_FIFO_LEN, 0) == EINVAL
    assert f.vppcom_session_recvfrom(sh, bytearray(1), 1 << 20) == EINVAL
    assert f.vppcom_del_cert_key_pair(1) == EINVAL
    assert f.vppcom_session_close("1") == EBADFD  # type: ignore[arg-type]


def test_a_listener_without_a_certificate_that_does() -> None:
    sh = new("quic")
    assert f.vppcom_session_bind(sh, ("127.0.0.1", 0)) == 0
    assert f.vppcom_session_listen(sh) == EINVAL
    assert f.vppcom_session_tls_add_cert(sh, CERT) == 0
    assert f.vppcom_session_listen(sh) == EINVAL
    assert f.vppcom_session_tls_add_key(sh, b"-----BEGIN rubbish-----") == 0
    assert f.vppcom_session_listen(sh) == EINVAL
    assert f.vppcom_session_tls_add_key(sh, KEY + b"\0") == 0
    assert f.vppcom_session_listen(sh) == 0


@pytest.mark.parametrize("protocol", ["quic", "tcp", "udp"])
def test_a_port_that_is_taken(protocol: str) -> None:
    first = listener(protocol)
    sh = new(protocol)
    f.vppcom_session_tls_add_cert(sh, CERT)
    f.vppcom_session_tls_add_key(sh, KEY)
    taken = f.vppcom_session_bind(sh, first.local) or f.vppcom_session_listen(sh)
    # Listeners of one application share a QUIC endpoint, and take turns.
    assert taken == (0 if protocol == "quic" else -errno.EADDRINUSE)
    assert f.vppcom_session_bind(new("udp"), ("192.0.2.1", 5)) == -errno.EADDRNOTAVAIL


def test_refused(daemon: Daemon) -> None:
    vcl.vppcom_app_destroy()
    impatient = replace(config_of(daemon), session_timeout_s=1)
    with vcl.application("impatient", impatient):
        for protocol in ("tcp", "quic"):
            is_refused(protocol)
        is_refused_datagrams()


def is_refused(protocol: str) -> None:
    with vcl.Session(protocol) as session:  # type: ignore[arg-type]
        nobody = free_port()
        expected = ConnectionRefusedError if protocol == "tcp" else TimeoutError
        with pytest.raises(expected):
            session.connect(("127.0.0.1", nobody))
        # And it is as new.
        assert f.vppcom_session_get_error(session.sh) == 0
        assert f.vppcom_session_connect(session.sh, ("127.0.0.1", 65536)) == EINVAL


def is_refused_datagrams() -> None:
    with vcl.Session("udp") as session:
        session.connect(("127.0.0.1", free_port()))
        while True:  # the kernel limits how often it says so
            try:
                session.write(b"x")
            except ConnectionRefusedError:
                break
            entry = vcl.VclPoll(session.sh, select.POLLIN)
            vcl.vppcom_poll([entry], 0.05)
        with pytest.raises(ConnectionRefusedError):
            session.read()


def test_a_foreign_thread() -> None:
    sh = new("quic")
    found: list[int] = []
    thread = threading.Thread(
        target=lambda: found.extend(
            (f.vppcom_session_create("quic"), *(call(sh) for call in CALLS.values()))
        )
    )
    thread.start()
    thread.join()
    assert set(found) == {EBADFD}

    def other() -> None:
        assert f.vppcom_worker_index() > 0
        assert {name: call(sh) for name, call in CALLS.items()} == _NOTHING

    with in_thread(other):
        pass
    assert f.vppcom_session_close(sh) == 0


def test_twice() -> None:
    assert f.vppcom_app_create("again") == -errno.EEXIST
    assert f.vppcom_worker_register() == -errno.EEXIST
    sh = new("tcp")
    assert f.vppcom_session_close(sh) == 0
    assert f.vppcom_session_close(sh) == EBADFD
    assert f.vppcom_session_terminate(sh) == EBADFD


def test_the_daemon_dies(daemon: Daemon) -> None:
    vcl.vppcom_app_destroy()
    with run_daemon() as mortal, vcl.application("mourner", config_of(mortal)):
        pair = Pair("quic")
        waiting = listener("quic")
        ours, _ = pair.streams
        mortal.stop(9)
        assert f.vppcom_session_read(ours.sh, bytearray(1)) == ECONNRESET
        assert f.vppcom_session_write(ours.sh, b"x") == ECONNRESET
        assert f.vppcom_session_accept(waiting.sh) == ECONNRESET
        assert f.vppcom_session_accept(pair.client.sh) == ECONNRESET
        sh = f.vppcom_session_create("quic")
        assert f.vppcom_session_connect(sh, ("127.0.0.1", 1)) == ECONNRESET
        assert f.vppcom_session_bind(f.vppcom_session_create("udp"), ("::1", 0)) == ECONNRESET
        for session in (ours, pair.client, waiting):
            assert {name: CALLS[name](session.sh) for name in _DEAD} == _DEAD
        assert f.vppcom_session_bind(sh, ("127.0.0.1", 0)) == OK
        assert f.vppcom_session_tls_add_cert(sh, CERT) == f.vppcom_session_tls_add_key(sh, KEY) == 0
        assert f.vppcom_session_listen(sh) == ECONNRESET
    assert f.vppcom_session_create("quic") == EBADFD
    vcl.vppcom_app_destroy()  # of nothing

"""Every call in every state, against the errno that it gives; nothing hangs, nothing is raised."""

from __future__ import annotations

import errno
import os
import select
import socket
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import pytest

from hoststack import vcl
from hoststack.vcl import functions as f
from hoststack.vcl.session import State
from tests.daemon.conftest import PATIENCE_S, Daemon, run_daemon
from tests.vcl.conftest import CERT, KEY, Pair, config_of, in_thread, listener

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
    "n_accepted": f.vppcom_session_n_accepted,
    "is_connectable_listener": f.vppcom_session_is_connectable_listener,
    "get_peer": lambda sh: f.vppcom_session_attr(sh, vcl.Attr.GET_PEER_ADDR),
}
OK: Final = 0
EBADFD, EINVAL, ENOTCONN = -errno.EBADFD, -errno.EINVAL, -errno.ENOTCONN
EAGAIN, ENOTSUP, EPIPE, ECONNRESET = -errno.EAGAIN, -errno.ENOTSUP, -errno.EPIPE, -errno.ECONNRESET
EDESTADDRREQ, EINPROGRESS = -errno.EDESTADDRREQ, -errno.EINPROGRESS


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


def bound_udp(_: str) -> int:
    sh = new("udp")
    assert f.vppcom_session_bind(sh, ("127.0.0.1", 0)) == 0
    return sh


_NOTHING: Final = dict.fromkeys(CALLS, EBADFD)
_NEW: Final = {
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
_READY: Final = {
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
_KERNELS: Final = {"stream_connect": ENOTSUP}
_BROKEN: Final = _READY | {
    "read": ECONNRESET,
    "recvfrom": ECONNRESET,
    "write": EPIPE,
    "sendto": EPIPE,
}
#: Of each protocol and state, what each call says.
TABLE: Final[dict[tuple[str, Callable[[str], int]], dict[str, Any]]] = {
    ("quic", no_session): _NOTHING,
    ("quic", closed): _NOTHING,
    ("quic", epoll): _NOTHING,
    ("quic", new): _NEW,
    ("quic", listening): _LISTENING,
    ("quic", connection): _CONNECTION,
    ("quic", stream): _READY,
    ("quic", write_shut): _READY | {"write": EPIPE, "sendto": EPIPE},
    ("quic", reset): _BROKEN,
    ("tcp", new): _NEW | _KERNELS,
    ("tcp", listening): _LISTENING | _KERNELS,
    ("tcp", stream): _READY | _KERNELS,
    ("tcp", write_shut): _READY | _KERNELS | {"write": EPIPE, "sendto": EPIPE},
    ("tcp", reset): _BROKEN
    | _KERNELS
    | {"write": ECONNRESET, "sendto": ECONNRESET, "connect": ENOTCONN},
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
    if buffer != b"not writable":
        assert f.vppcom_session_write(sh, buffer) == EINVAL
        assert f.vppcom_session_sendto(sh, buffer) == EINVAL


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


def free_port() -> int:
    with socket.socket(type=socket.SOCK_DGRAM) as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        two.bind(("127.0.0.1", port))
    return port


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
        assert {call(sh) for call in CALLS.values()} == {EBADFD}

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
            assert f.vppcom_session_close(session.sh) == 0
    assert f.vppcom_session_create("quic") == EBADFD
    vcl.vppcom_app_destroy()  # of nothing

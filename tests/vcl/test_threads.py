"""Threads, forks and signals; sessions that several threads listen with."""

from __future__ import annotations

import errno
import os
import select
import signal
import threading
import traceback
from types import FrameType

import pytest

from hoststack import vcl
from hoststack.vcl import functions as f
from tests.daemon.conftest import PATIENCE_S, Daemon
from tests.vcl.conftest import CERT, KEY, Pair, config_of, in_thread, listener

pytestmark = pytest.mark.usefixtures("app")


def test_threads_have_sessions_of_their_own() -> None:
    """Each listens on the same endpoint, and has a part of the connections."""
    first = listener("quic")
    where = first.local
    served: dict[int, int] = {}
    is_listening, is_over = threading.Barrier(3, timeout=PATIENCE_S), threading.Event()

    def serve() -> None:
        mine = vcl.Session("quic", nonblocking=True)
        mine.use_certificate(CERT, KEY)
        mine.bind(where)
        mine.listen()
        is_listening.wait()
        index = f.vppcom_worker_index()
        served[index] = 0
        entry = vcl.VclPoll(mine.sh, 1)
        while not is_over.is_set():
            if f.vppcom_poll([entry], 0.05) > 0:
                connection = mine.accept()
                with connection.accept() as stream:
                    stream.write_all(stream.read())
                served[index] += 1

    with in_thread(serve), in_thread(serve):
        is_listening.wait()
        first.close()
        for _ in range(8):
            with vcl.Session("quic") as connection:
                connection.connect(where)
                with connection.open_stream() as stream:
                    stream.write_all(b"which?")
                    assert stream.read() == b"which?"
        is_over.set()
    assert sum(served.values()) == 8
    assert all(served.values()), served


def test_the_parent_lives_on_and_the_child_begins_anew() -> None:
    pair = Pair("quic")
    ours, theirs = pair.streams
    where = pair.listener.local
    read_fd, write_fd = os.pipe()
    child = os.fork()
    if not child:
        # What fails here is told by the pipe: the child has no part in pytest.
        said = b"failed"
        try:
            assert f.vppcom_session_write(ours.sh, b"x") == -errno.EBADFD
            assert f.vppcom_session_create("quic") == -errno.EBADFD
            assert f.vppcom_worker_register() == 0
            with vcl.Session("quic") as connection:
                connection.connect(where)
                with connection.open_stream() as stream:
                    stream.write_all(b"from the child")
            vcl.vppcom_app_destroy()
            said = b"fine"
        except BaseException:
            said = traceback.format_exc().encode()
        finally:
            os.write(write_fd, said)
            os._exit(0)
    os.close(write_fd)
    # A child that failed connects to nobody.
    comes = vcl.VclPoll(pair.listener.sh, select.POLLIN)
    assert f.vppcom_poll([comes], PATIENCE_S) == 1, os.read(read_fd, 10_000).decode()
    with pair.listener.accept() as connection, connection.accept() as stream:
        assert stream.read() == b"from the child"
    assert os.read(read_fd, 10_000).decode() == "fine"
    os.close(read_fd)
    os.waitpid(child, 0)
    ours.write_all(b"still here")
    assert theirs.read() == b"still here"


class _InterruptedError(Exception):
    """What a handler raises."""


def test_signals_end_a_call_that_blocks() -> None:
    """By what their handlers raise; one that returns lets the call go on, as in Python's own."""
    caught = []

    def handle(number: int, frame: FrameType | None) -> None:
        caught.append(number)
        if len(caught) == 2:
            raise _InterruptedError

    waiting = listener("quic")
    old = signal.signal(signal.SIGALRM, handle)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
        with pytest.raises(_InterruptedError):
            waiting.accept()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert len(caught) == 2
    # And all is well.
    with vcl.Session("quic") as session:
        session.connect(waiting.local)
        waiting.accept()


def test_a_time_to_accept(daemon: Daemon) -> None:
    vcl.vppcom_app_destroy()
    config = vcl.VclConfig(api_socket_name=daemon.api, alpn=("test",), accept_timeout_s=0.05)
    with vcl.application("short", config), pytest.raises(BlockingIOError):
        listener("quic").accept()


@pytest.mark.parametrize("protocol", ["quic", "tcp"])
def test_a_stream_that_is_closed_at_once_has_said_all(daemon: Daemon, protocol: str) -> None:
    """Also where the program ends right after it."""
    vcl.vppcom_app_destroy()
    data = os.urandom(3_000_000)
    got = bytearray()
    port: list[int] = []
    is_listening = threading.Event()

    def serve() -> None:
        waiting = listener(protocol)
        port.append(waiting.local[1])
        is_listening.set()
        with waiting.accept() as connection:
            stream = connection.accept() if protocol == "quic" else connection
            while part := stream.read(1 << 20):
                got.extend(part)

    with vcl.application("server", config_of(daemon)):
        thread = threading.Thread(target=lambda: _as_worker(serve))
        thread.start()
        assert is_listening.wait(PATIENCE_S)
        client = os.fork()
        if not client:
            try:
                vcl.vppcom_app_destroy()
                assert f.vppcom_app_destroy() is None
                with vcl.application("client", config_of(daemon)):
                    connection = vcl.Session(protocol)  # type: ignore[arg-type]
                    connection.connect(("127.0.0.1", port[0]))
                    stream = connection.open_stream() if protocol == "quic" else connection
                    stream.write_all(data)
            finally:
                os._exit(0)
        os.waitpid(client, 0)
        thread.join(PATIENCE_S)
    assert got == data


def _as_worker(serve: object) -> None:
    with vcl.worker():
        assert callable(serve)
        serve()


def test_pairs_of_certificate_and_key() -> None:
    index = f.vppcom_add_cert_key_pair(vcl.CertKeyPair(CERT, KEY))
    assert index > 0
    with vcl.Session("quic") as made:
        made.attr(vcl.Attr.SET_CKPAIR, index)
        made.bind(("127.0.0.1", 0))
        made.listen()
        with vcl.Session("quic") as client:
            client.connect(made.local)
    assert f.vppcom_del_cert_key_pair(index) == 0
    assert f.vppcom_add_cert_key_pair(None) == -errno.EINVAL  # type: ignore[arg-type]

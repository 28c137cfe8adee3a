"""Ends: of sessions, of threads, of the application and of the daemon, while somebody waits."""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from hoststack import vcl
from hoststack.vcl import EPOLL_CTL_ADD, EpollEvent
from hoststack.vcl import functions as f
from hoststack.vcl.worker import VclWorker
from tests.daemon.conftest import PATIENCE_S, Daemon, run_daemon
from tests.support.open_files import open_files
from tests.vcl.conftest import Pair, config_of, free_port, listener, wait_until_connected

pytestmark = pytest.mark.usefixtures("app")


def test_nobody_waits_for_a_peer_that_wants_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its STOP_SENDING came before the end was written: no acknowledgement of that follows."""
    monkeypatch.setattr(VclWorker, "LINGER_S", 2 * PATIENCE_S)
    pair = Pair("quic")
    ours, theirs = pair.streams
    theirs.close()
    worker, session = ours._found()
    assert worker.wait(lambda: session.is_stopped, PATIENCE_S)
    start = time.monotonic()
    ours.close()
    pair.client.close()
    assert time.monotonic() - start < PATIENCE_S


def test_nobody_waits_for_what_was_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VclWorker, "LINGER_S", 2 * PATIENCE_S)
    pair = Pair("quic")
    ours, _ = pair.streams
    _, connection = pair.client._found()
    while f.vppcom_session_attr(ours.sh, vcl.Attr.GET_NWRITE):
        ours.write(bytes(1 << 20))  # more than the peer takes
    ours.shutdown()
    assert connection.has_unfinished
    ours.terminate()
    start = time.monotonic()
    pair.client.close()
    assert time.monotonic() - start < PATIENCE_S


def test_a_stream_that_is_still_being_opened_takes_no_connection_along() -> None:
    pair = Pair("quic")
    pair.client.attr(vcl.Attr.SET_FLAGS, os.O_NONBLOCK)
    stream = f.vppcom_session_create("quic", True)
    assert f.vppcom_session_stream_connect(stream, pair.client.sh) == -errno.EINPROGRESS
    assert f.vppcom_session_close(stream) == 0
    ours, theirs = pair.streams
    ours.write_all(b"still here")
    assert theirs.read() == b"still here"


def test_streams_end_with_their_connection() -> None:
    """And are still the program's to close: in a loop of events it may have their numbers."""
    pair = Pair("quic")
    ours, theirs = pair.streams
    theirs.write_all(b"last words")
    entry = vcl.VclPoll(ours.sh, select.POLLIN)
    assert f.vppcom_poll([entry], PATIENCE_S) == 1
    ours.write_all(b"ours")
    pair.client.close()
    assert f.vppcom_poll([entry], PATIENCE_S) == 1
    assert entry.revents & select.POLLHUP
    assert ours.read() == b"last words"
    assert f.vppcom_session_read(ours.sh, bytearray(1)) == -errno.ECONNRESET
    assert f.vppcom_session_write(ours.sh, b"x") == -errno.EPIPE
    assert f.vppcom_session_close(ours.sh) == 0
    # What was written before went out.
    assert theirs.read() == b"ours"
    assert theirs.read() == b""


def test_what_is_cut_off_is_no_end() -> None:
    """A stream whose connection is closed in the middle of it, though by code 0."""
    pair = Pair("quic")
    ours, theirs = pair.streams
    theirs.write_all(b"half of")
    assert ours.read() == b"half of"
    pair.server.terminate()
    with pytest.raises(ConnectionResetError):
        ours.read()
    # The connection itself carries no bytes, and is over.
    assert f.vppcom_session_read(pair.client.sh, bytearray(1)) == 0


def read_to_the_end(session: vcl.Session) -> None:
    while session.read():
        pass


def raise_in_a_block(pair: Pair) -> None:
    with suppress(ZeroDivisionError), pair.streams[0] as ours:
        ours.write_all(b"half of it")
        raise ZeroDivisionError


def raise_in_the_connections_block(pair: Pair) -> None:
    pair.streams[0].write_all(b"half of it")
    with suppress(ZeroDivisionError), pair.client:
        raise ZeroDivisionError


def interrupted(ours: vcl.Session) -> None:
    """A write_all that came to an exception when the peer took no more."""
    ours.attr(vcl.Attr.SET_FLAGS, os.O_NONBLOCK)
    with suppress(BlockingIOError):
        while True:
            ours.write_all(bytes(1 << 20))


def close_after_an_interrupted_write(pair: Pair) -> None:
    interrupted(pair.streams[0])
    pair.streams[0].close()


def close_the_connection_after_an_interrupted_write(pair: Pair) -> None:
    interrupted(pair.streams[0])
    pair.client.close()


def end_after_an_interrupted_write(pair: Pair) -> None:
    interrupted(pair.streams[0])
    with pytest.raises(BrokenPipeError):
        pair.streams[0].shutdown()


def write_until_a_signal_comes(pair: Pair) -> None:
    """Its handler raises while the call waits for room."""

    def handler(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, handler)
    here = threading.get_ident()
    timer = threading.Timer(0.2, lambda: signal.pthread_kill(here, signal.SIGUSR1))
    timer.start()
    try:
        with suppress(KeyboardInterrupt):
            while True:
                pair.streams[0].write(bytes(1 << 20))
    finally:
        timer.join()
        signal.signal(signal.SIGUSR1, before)
    pair.streams[0].close()


@pytest.mark.parametrize("protocol", ["quic", "tcp"])
@pytest.mark.parametrize(
    "interrupt",
    [
        raise_in_a_block,
        raise_in_the_connections_block,
        close_after_an_interrupted_write,
        close_the_connection_after_an_interrupted_write,
        end_after_an_interrupted_write,
        write_until_a_signal_comes,
    ],
)
def test_the_peer_does_not_take_a_part_for_all(
    protocol: str, interrupt: Callable[[Pair], None]
) -> None:
    pair = Pair(protocol)
    interrupt(pair)
    with pytest.raises(ConnectionResetError):
        read_to_the_end(pair.streams[1])


def test_a_message_that_was_ended_is_whole() -> None:
    pair = Pair("quic")
    with suppress(ZeroDivisionError), pair.streams[0] as ours:
        ours.write_all(b"all of it")
        ours.shutdown()
        raise ZeroDivisionError
    assert pair.streams[1].read() == b"all of it"
    assert pair.streams[1].read() == b""


@pytest.mark.parametrize("raises", [True, False])
def test_the_end_of_a_thread_that_raises_is_no_end_of_its_streams(raises: bool) -> None:
    listening = listener("quic")
    local = listening.local
    has_come = threading.Event()
    said = []

    def client() -> None:
        with vcl.worker():
            connection = vcl.Session("quic")
            connection.connect(local)
            connection.open_stream().write_all(b"some")
            assert has_come.wait(PATIENCE_S)
            if raises:
                raise ZeroDivisionError

    def run() -> None:
        try:
            client()
        except ZeroDivisionError:
            said.append("raised")

    thread = threading.Thread(target=run)
    thread.start()
    stream = listening.accept().accept()
    assert stream.read() == b"some"
    has_come.set()
    if raises:
        with pytest.raises(ConnectionResetError):
            read_to_the_end(stream)
    else:
        read_to_the_end(stream)
    thread.join(PATIENCE_S)
    assert said == ["raised"] * raises


@pytest.mark.parametrize("protocol", ["quic", "tcp"])
def test_the_addresses_of_a_name_are_tried_one_after_the_other(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    def two(host: str, port: int, **_: object) -> list[object]:
        assert host == "two.example"
        return [
            (socket.AF_INET6, socket.SOCK_DGRAM, 17, "", ("::1", port, 0, 0)),
            (socket.AF_INET, socket.SOCK_DGRAM, 17, "", ("127.0.0.1", port)),
        ]

    vcl.vppcom_app_destroy()
    config = vcl.VclConfig(api_socket_name=daemon.api, alpn=("test",), session_timeout_s=2)
    with vcl.application("names", config), listener(protocol) as listening:
        monkeypatch.setattr("hoststack.vcl.connecting.socket.getaddrinfo", two)
        with vcl.Session(protocol) as session:  # type: ignore[arg-type]
            session.connect(("two.example", listening.local[1]))
            assert session.remote == listening.local
        with vcl.Session(protocol) as session:  # type: ignore[arg-type]
            with pytest.raises(OSError, match=r".") as caught:
                session.connect(("two.example", free_port()))
            assert caught.value.errno in (errno.ECONNREFUSED, errno.ETIMEDOUT)


def test_what_has_come_can_be_read_after_the_end_of_reading() -> None:
    ours, theirs = Pair("tcp").streams
    theirs.write_all(b"late")
    entry = vcl.VclPoll(ours.sh, select.POLLIN)
    assert f.vppcom_poll([entry], PATIENCE_S) == 1
    ours.shutdown(socket.SHUT_RD)
    assert ours.read() == b"late"
    assert f.vppcom_poll([entry], -1) == 1
    assert ours.read() == b""


def test_a_connect_that_took_too_long_comes_to_nothing(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the stack still says of it is not about the next one."""
    vcl.vppcom_app_destroy()
    config = vcl.VclConfig(api_socket_name=daemon.api, alpn=("test",), session_timeout_s=0.2)
    with (
        vcl.application("impatient", config),
        socket.socket(type=socket.SOCK_DGRAM) as mute,
        vcl.Session("quic") as session,
    ):
        mute.bind(("127.0.0.1", 0))
        waiting = listener("quic")
        with pytest.raises(TimeoutError):
            session.connect(mute.getsockname())
        session.attr(vcl.Attr.SET_FLAGS, os.O_NONBLOCK)
        with pytest.raises(BlockingIOError):
            session.connect(waiting.local)
        wait_until_connected(session)
        assert session.remote == waiting.local


def test_a_connect_may_be_tried_again_after_its_error_was_told() -> None:
    nowhere = ("127.0.0.1", free_port())
    sh = f.vppcom_session_create("tcp", True)
    assert f.vppcom_session_connect(sh, nowhere) == -errno.EINPROGRESS
    assert f.vppcom_poll([vcl.VclPoll(sh, select.POLLOUT)], PATIENCE_S) == 1
    assert f.vppcom_session_get_error(sh) == -errno.ECONNREFUSED
    somewhere = listener("tcp")
    assert f.vppcom_session_connect(sh, somewhere.local) == -errno.EINPROGRESS
    entry = vcl.VclPoll(sh, select.POLLOUT)
    assert f.vppcom_poll([entry], PATIENCE_S) == 1
    assert entry.revents == select.POLLOUT


def test_how_many_were_accepted_and_are_there() -> None:
    waiting = listener("quic")
    with vcl.Session("quic") as client:
        client.connect(waiting.local)
        server = waiting.accept()
        for text in (b"1", b"2"):
            client.open_stream().write_all(text)
        first, second = server.accept(), server.accept()
        assert f.vppcom_session_n_accepted(waiting.sh) == 1
        assert f.vppcom_session_n_accepted(server.sh) == 2
        second.close()
        assert f.vppcom_session_n_accepted(server.sh) == 1
        first.close()
        server.close()
        assert f.vppcom_session_n_accepted(waiting.sh) == 0


def test_numbers_are_given_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that has had many sessions is not at its end."""
    # The package has a function of that name in front of the module.
    monkeypatch.setattr(sys.modules[VclWorker.__module__], "_MOST_SESSIONS", 4)
    kept = [f.vppcom_session_create("tcp") for _ in range(3)]
    others = set()
    for _ in range(9):
        sh = f.vppcom_session_create("tcp")
        assert sh >= 0
        assert sh not in kept
        others.add(sh)
        assert f.vppcom_session_close(sh) == 0
    assert len(others) == 1
    assert f.vppcom_session_create("tcp") >= 0
    assert f.vppcom_session_create("tcp") == -errno.EMFILE


def test_descriptors_come_back(daemon: Daemon) -> None:
    vcl.vppcom_app_destroy()

    def live() -> None:
        with vcl.application("short", config_of(daemon)):
            Pair("quic")
            thread = threading.Thread(target=lambda: f.vppcom_worker_register())
            thread.start()
            thread.join()

    live()
    before = open_files()
    for _ in range(3):
        live()
    assert open_files() == before


def test_a_thread_that_ends_without_a_word() -> None:
    """Its sessions end, too."""
    waiting = listener("quic")
    where = waiting.local

    def live() -> None:
        assert f.vppcom_worker_register() == 0
        sh = f.vppcom_session_create("quic")
        assert f.vppcom_session_connect(sh, where) == 0

    thread = threading.Thread(target=live)
    thread.start()
    connection = waiting.accept()
    thread.join()
    with pytest.raises(OSError, match="reset"):
        connection.accept()


def test_the_application_is_destroyed_while_threads_wait(daemon: Daemon) -> None:
    """Each in another call: all come back from it."""
    calls = [_accepting, _reading, _waiting]
    said: list[int] = []
    is_ready = threading.Barrier(len(calls) + 1, timeout=PATIENCE_S)

    def run(prepare: Callable[[], Callable[[], int]]) -> None:
        assert f.vppcom_worker_register() == 0
        call = prepare()
        is_ready.wait()
        said.append(call())
        said.append(f.vppcom_session_create("quic"))

    threads = [threading.Thread(target=run, args=(prepare,)) for prepare in calls]
    for thread in threads:
        thread.start()
    is_ready.wait()
    vcl.vppcom_app_destroy()
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
    # Whoever had not begun to wait is told that there is no application.
    assert set(said) <= {-errno.ECONNRESET, -errno.EBADFD}
    assert said.count(-errno.EBADFD) >= len(calls)


def _accepting() -> Callable[[], int]:
    sh = listener("udp").sh
    return lambda: f.vppcom_session_accept(sh)


def _reading() -> Callable[[], int]:
    ours = Pair("tcp").streams[0]
    return lambda: f.vppcom_session_read(ours.sh, bytearray(1))


def _waiting() -> Callable[[], int]:
    vep = f.vppcom_epoll_create()
    return lambda: f.vppcom_epoll_wait(vep, [], 1, -1)


@pytest.mark.parametrize("protocol", ["quic", "tcp", "udp"])
def test_a_worker_dies(protocol: str) -> None:
    """Its sessions are over; listeners serve on with the one in its place."""
    vcl.vppcom_app_destroy()
    with run_daemon() as daemon, vcl.application("mourner", config_of(daemon)):
        pair = Pair(protocol)
        ours, _ = pair.streams
        os.kill(daemon.worker_pid(0), signal.SIGKILL)
        assert f.vppcom_session_read(ours.sh, bytearray(1)) == -errno.ECONNRESET
        waiting = pair.listener
        waiting.attr(vcl.Attr.SET_FLAGS, os.O_NONBLOCK)
        end = time.monotonic() + PATIENCE_S
        accepted = -errno.EAGAIN
        while accepted == -errno.EAGAIN:
            assert time.monotonic() < end
            sh = f.vppcom_session_create(protocol)
            if f.vppcom_session_connect(sh, waiting.local) == 0 and protocol == "udp":
                f.vppcom_session_write(sh, b"x")
            f.vppcom_poll([vcl.VclPoll(waiting.sh, select.POLLIN)], 0.1)
            accepted = f.vppcom_session_accept(waiting.sh)
            assert f.vppcom_session_close(sh) == 0
        assert accepted >= 0


@pytest.mark.parametrize("protocol", ["quic", "tcp", "udp"])
def test_the_daemon_ends_while_an_epoll_loop_waits(protocol: str) -> None:
    """All sessions are told of, a listener among them; then there is nothing to wait for."""
    vcl.vppcom_app_destroy()
    with run_daemon() as mortal, vcl.application("mourner", config_of(mortal)):
        pair = Pair(protocol)
        sessions = {pair.listener, *pair.streams}
        vep = f.vppcom_epoll_create()
        for session in sessions:
            event = EpollEvent(select.EPOLLIN | select.EPOLLRDHUP, session)
            assert f.vppcom_epoll_ctl(vep, EPOLL_CTL_ADD, session.sh, event) == 0
        events: list[EpollEvent] = []
        assert f.vppcom_epoll_wait(vep, events, 9, 0) == 0
        threading.Thread(target=mortal.stop, args=(9,)).start()
        while sessions:
            assert f.vppcom_epoll_wait(vep, events, 9, PATIENCE_S * 1000) > 0
            for event in events:
                assert event.events & select.EPOLLHUP
                if event.data is pair.listener:
                    event.data.attr(vcl.Attr.SET_FLAGS, os.O_NONBLOCK)
                    assert f.vppcom_session_accept(event.data.sh) == -errno.ECONNRESET
                sessions.remove(event.data)
                event.data.close()
        assert f.vppcom_epoll_wait(vep, events, 9, -1) == -errno.ECONNRESET
        assert f.vppcom_epoll_wait(vep, events, 9, 10) == -errno.ECONNRESET
        assert f.vppcom_poll([], -1) == -errno.ECONNRESET
        assert f.vppcom_select(None, None, None, -1) == -errno.ECONNRESET

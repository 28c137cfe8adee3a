"""Non-blocking connects, epoll, poll and select."""

from __future__ import annotations

import errno
import os
import select

import pytest

from hoststack import vcl
from hoststack.vcl import EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD, EpollEvent
from hoststack.vcl import functions as f
from tests.daemon.conftest import PATIENCE_S
from tests.vcl.conftest import Pair, free_port, listener, wait_until_connected

pytestmark = pytest.mark.usefixtures("app")
IN, OUT, RDHUP, HUP = select.EPOLLIN, select.EPOLLOUT, select.EPOLLRDHUP, select.EPOLLHUP


@pytest.mark.parametrize("protocol", ["quic", "tcp"])
def test_a_connect_that_does_not_block(protocol: str) -> None:
    waiting = listener(protocol)
    sh = f.vppcom_session_create(protocol, True)
    uri = f"{protocol}://127.0.0.1:{waiting.local[1]}"
    assert f.vppcom_session_connect(sh, uri) == -errno.EINPROGRESS
    assert f.vppcom_session_connect(sh, uri) in (-errno.EALREADY, 0)
    vep = f.vppcom_epoll_create()
    assert f.vppcom_epoll_ctl(vep, EPOLL_CTL_ADD, sh, EpollEvent(OUT, "it")) == 0
    events: list[EpollEvent] = []
    assert f.vppcom_epoll_wait(vep, events, 1, PATIENCE_S * 1000) == 1
    assert (events[0].data, events[0].events) == ("it", OUT)
    assert f.vppcom_session_get_error(sh) == 0
    assert f.vppcom_session_connect(sh, uri) == 0
    accepted = waiting.accept()
    assert accepted.remote == f.vppcom_session_attr(sh, vcl.Attr.GET_LCL_ADDR)


def test_a_connect_that_comes_to_nothing() -> None:
    sh = f.vppcom_session_create("tcp", True)
    assert f.vppcom_session_connect(sh, ("127.0.0.1", free_port())) == -errno.EINPROGRESS
    entry = vcl.VclPoll(sh, select.POLLOUT)
    assert f.vppcom_poll([entry], PATIENCE_S) == 1
    assert entry.revents & select.POLLERR
    assert f.vppcom_session_get_error(sh) == -errno.ECONNREFUSED
    assert f.vppcom_session_get_error(sh) == 0


@pytest.mark.parametrize("protocol", ["quic", "tcp"])
def test_what_epoll_tells_of_a_stream(protocol: str) -> None:
    ours, theirs = Pair(protocol).streams
    vep = f.vppcom_epoll_create()
    assert f.vppcom_epoll_ctl(vep, EPOLL_CTL_ADD, ours.sh, EpollEvent(IN | RDHUP)) == 0

    def told(timeout_ms: float = PATIENCE_S * 1000) -> int:
        events: list[EpollEvent] = []
        count = f.vppcom_epoll_wait(vep, events, 8, timeout_ms)
        assert count == len(events) <= 1
        return events[0].events if events else 0

    assert told(0) == 0
    theirs.write(b"abc")
    assert told() == IN
    assert told() == IN, "it is level-triggered"
    assert ours.read() == b"abc"
    assert told(0) == 0
    assert f.vppcom_epoll_ctl(vep, EPOLL_CTL_MOD, ours.sh, EpollEvent(IN | OUT | RDHUP)) == 0
    assert told() == OUT
    fill(ours)
    assert told(0) == 0
    while not told(10):
        theirs.read(1 << 20)
    assert told() == OUT
    theirs.shutdown()
    assert f.vppcom_epoll_ctl(vep, EPOLL_CTL_MOD, ours.sh, EpollEvent(IN | RDHUP)) == 0
    while told() != IN | RDHUP:
        pass
    assert ours.read() == b""
    assert f.vppcom_epoll_ctl(vep, EPOLL_CTL_DEL, ours.sh) == 0
    assert told(0) == 0


@pytest.mark.parametrize("flags", [RDHUP, RDHUP | select.EPOLLET])
@pytest.mark.parametrize("protocol", ["quic", "tcp"])
def test_an_end_alone_is_waited_for(protocol: str, flags: int) -> None:
    ours, theirs = Pair(protocol).streams
    vep = f.vppcom_epoll_create()
    events: list[EpollEvent] = []
    assert f.vppcom_epoll_ctl(vep, EPOLL_CTL_ADD, ours.sh, EpollEvent(flags)) == 0
    assert f.vppcom_epoll_wait(vep, events, 1, 0) == 0
    theirs.shutdown()
    assert f.vppcom_epoll_wait(vep, events, 1, PATIENCE_S * 1000) == 1
    assert events[0].events == RDHUP


def test_both_ends_are_told_to_who_asks_for_nothing() -> None:
    ours, theirs = Pair("quic").streams
    vep = f.vppcom_epoll_create()
    events: list[EpollEvent] = []
    ours.shutdown()
    assert f.vppcom_epoll_ctl(vep, EPOLL_CTL_ADD, ours.sh, EpollEvent(0)) == 0
    assert f.vppcom_epoll_wait(vep, events, 1, 0) == 0
    theirs.shutdown()
    assert f.vppcom_epoll_wait(vep, events, 1, PATIENCE_S * 1000) == 1
    assert events[0].events == HUP


def fill(session: vcl.Session) -> None:
    """Until it takes no more."""
    session.attr(vcl.Attr.SET_FLAGS, os.O_NONBLOCK)
    entry = vcl.VclPoll(session.sh, select.POLLOUT)
    # What has left the FIFO makes room for more, until the peer's window is full as well.
    while f.vppcom_poll([entry], 0.2):
        while f.vppcom_session_write(session.sh, bytes(1 << 20)) > 0:
            pass


def test_edges_and_one_shots() -> None:
    ours, theirs = Pair("quic").streams
    vep = f.vppcom_epoll_create()
    events: list[EpollEvent] = []
    edge = EpollEvent(IN | select.EPOLLET)
    assert f.vppcom_epoll_ctl(vep, EPOLL_CTL_ADD, ours.sh, edge) == 0
    for _ in range(3):
        theirs.write(b"x")
        assert f.vppcom_epoll_wait(vep, events, 1, PATIENCE_S * 1000) == 1
        assert f.vppcom_epoll_wait(vep, events, 1, 0) == 0, "told once of each"
    assert ours.read() == b"xxx"
    once = EpollEvent(IN | select.EPOLLONESHOT)
    assert f.vppcom_epoll_ctl(vep, EPOLL_CTL_MOD, ours.sh, once) == 0
    theirs.write(b"y")
    assert f.vppcom_epoll_wait(vep, events, 1, PATIENCE_S * 1000) == 1
    theirs.write(b"z")
    assert f.vppcom_epoll_wait(vep, events, 1, 50) == 0
    assert f.vppcom_epoll_ctl(vep, EPOLL_CTL_MOD, ours.sh, once) == 0
    assert f.vppcom_epoll_wait(vep, events, 1, PATIENCE_S * 1000) == 1


def test_listeners_and_connections_are_readable_when_there_is_something_to_accept() -> None:
    waiting = listener("quic")
    vep = f.vppcom_epoll_create()
    events: list[EpollEvent] = []
    assert f.vppcom_epoll_ctl(vep, EPOLL_CTL_ADD, waiting.sh, EpollEvent(IN, waiting)) == 0
    assert f.vppcom_epoll_wait(vep, events, 9, 0) == 0
    client = vcl.Session("quic")
    client.connect(waiting.local)
    assert f.vppcom_epoll_wait(vep, events, 9, PATIENCE_S * 1000) == 1
    assert events[0].data is waiting
    connection = waiting.accept()
    assert f.vppcom_epoll_ctl(vep, EPOLL_CTL_ADD, connection.sh, EpollEvent(IN, connection)) == 0
    assert f.vppcom_epoll_wait(vep, events, 9, 0) == 0
    client.open_stream().write(b"x")
    assert f.vppcom_epoll_wait(vep, events, 9, PATIENCE_S * 1000) == 1
    assert events[0].data is connection
    assert connection.accept().read() == b"x"
    client.close()
    assert f.vppcom_epoll_wait(vep, events, 9, PATIENCE_S * 1000) == 1
    assert events[0].events == IN | HUP


def test_mistakes_with_epoll() -> None:
    ours, _ = Pair("tcp").streams
    vep, sh = f.vppcom_epoll_create(), ours.sh
    event = EpollEvent(IN)
    assert f.vppcom_epoll_ctl(vep, EPOLL_CTL_MOD, sh, event) == -errno.ENOENT
    assert f.vppcom_epoll_ctl(vep, EPOLL_CTL_DEL, sh) == -errno.ENOENT
    assert f.vppcom_epoll_ctl(vep, EPOLL_CTL_ADD, sh, event) == 0
    assert f.vppcom_epoll_ctl(vep, EPOLL_CTL_ADD, sh, event) == -errno.EEXIST
    assert f.vppcom_epoll_ctl(vep, 7, sh, event) == -errno.EINVAL
    assert f.vppcom_epoll_ctl(vep, EPOLL_CTL_MOD, sh, None) == -errno.EINVAL
    assert f.vppcom_epoll_ctl(vep, EPOLL_CTL_MOD, sh, EpollEvent(1 << 25)) == -errno.EINVAL
    assert f.vppcom_epoll_ctl(vep, EPOLL_CTL_ADD, vep, event) == -errno.EINVAL
    assert f.vppcom_epoll_ctl(sh, EPOLL_CTL_ADD, sh, event) == -errno.EINVAL
    assert f.vppcom_epoll_ctl(vep, EPOLL_CTL_ADD, 0xFFFF, event) == -errno.EBADFD
    assert f.vppcom_epoll_wait(sh, [], 1, 0) == -errno.EINVAL
    assert f.vppcom_epoll_wait(vep, [], 0, 0) == -errno.EINVAL
    # A session that is closed is in no set any more.
    ours.close()
    assert f.vppcom_epoll_wait(vep, [], 1, 0) == 0
    assert f.vppcom_session_close(vep) == 0
    assert f.vppcom_epoll_wait(vep, [], 1, 0) == -errno.EBADFD


def test_poll_and_select() -> None:
    ours, theirs = Pair("quic").streams
    entries = [
        vcl.VclPoll(ours.sh, select.POLLIN | select.POLLOUT),
        vcl.VclPoll(-1, select.POLLIN),
        vcl.VclPoll(0xFFFF, select.POLLIN),
    ]
    assert f.vppcom_poll(entries, -1) == 2
    assert [e.revents for e in entries] == [select.POLLOUT, 0, select.POLLNVAL]
    readable, writable, broken = {ours.sh, theirs.sh}, {ours.sh}, {ours.sh}
    assert f.vppcom_select(readable, writable, broken, -1) == 1
    assert (readable, writable, broken) == (set(), {ours.sh}, set())
    theirs.write(b"x")
    readable = {ours.sh, theirs.sh}
    assert f.vppcom_select(readable, set(), set(), PATIENCE_S) == 1
    assert readable == {ours.sh}
    assert f.vppcom_select({0xFFFF}, None, None, 0) == -errno.EBADFD
    readable = {theirs.sh}
    assert f.vppcom_select(readable, set(), set(), 0.01) == 0
    assert not readable
    # One session may be there twice, each time for something else.
    twice = [vcl.VclPoll(ours.sh, select.POLLIN), vcl.VclPoll(ours.sh, select.POLLOUT)]
    assert f.vppcom_poll(twice, -1) == 2
    assert [e.revents for e in twice] == [select.POLLIN, select.POLLOUT]
    # Ends are told of without being asked for; and what is broken is ready for anything.
    theirs.terminate()
    nothing = vcl.VclPoll(ours.sh, 0)
    assert f.vppcom_poll([nothing], PATIENCE_S) == 1
    assert nothing.revents & select.POLLERR
    broken = {ours.sh}
    assert f.vppcom_select(None, None, broken, PATIENCE_S) == 1


def test_attributes() -> None:
    ours, theirs = Pair("quic").streams
    theirs.write(b"abc")
    entry = vcl.VclPoll(ours.sh, select.POLLIN)
    assert f.vppcom_poll([entry], PATIENCE_S) == 1
    assert ours.attr(vcl.Attr.GET_NREAD) == 3
    assert ours.attr(vcl.Attr.GET_TX_FIFO_LEN) == 1 << 20
    # The "hello" of Pair stays until it is acknowledged.
    assert 0 <= (1 << 20) - ours.attr(vcl.Attr.GET_NWRITE) <= len("hello")
    assert ours.attr(vcl.Attr.GET_PEER_ADDR) == theirs.attr(vcl.Attr.GET_LCL_ADDR)
    assert ours.attr(vcl.Attr.GET_FLAGS) == os.O_RDWR
    assert ours.attr(vcl.Attr.GET_LISTEN) == 0
    assert ours.attr(vcl.Attr.GET_PROTOCOL) == vcl.VPPCOM_PROTO_QUIC
    assert vcl.Session("udp").attr(vcl.Attr.SET_CONNECTED) == 0
    with pytest.raises(OSError, match="always connected"):
        ours.attr(vcl.Attr.SET_CONNECTED)
    assert ours.attr(vcl.Attr.GET_SHUT) == 0
    assert ours.attr(vcl.Attr.GET_ERROR) == 0
    assert ours.attr(vcl.Attr.SET_SHUT, 1) == 0
    assert ours.attr(vcl.Attr.GET_SHUT) == 2
    with vcl.Session("tcp") as small:
        small.attr(vcl.Attr.SET_RX_FIFO_LEN, 4096)
        small.attr(vcl.Attr.SET_TX_FIFO_LEN, 8192)
        small.connect(listener("tcp").local)
        wait_until_connected(small)
        assert small.attr(vcl.Attr.GET_RX_FIFO_LEN) == 4096
        assert small.attr(vcl.Attr.GET_TX_FIFO_LEN) == 8192

"""UDP sessions: connected, unconnected, and those that a listener hands out."""

from __future__ import annotations

import errno
import socket

import pytest

from hoststack import vcl
from hoststack.vcl import functions as f
from hoststack.vcl.transfer import MSG_PEEK
from tests.vcl.conftest import Pair, listener

pytestmark = pytest.mark.usefixtures("app")
HOSTS = ["127.0.0.1", "::1"]


@pytest.fixture
def kernels() -> socket.socket:
    """Somebody else's socket."""
    made = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    made.bind(("::1", 0))
    made.settimeout(20)
    return made


@pytest.mark.parametrize("host", HOSTS)
def test_talking_to_anybody(host: str) -> None:
    one, two, three = (f.vppcom_session_create("udp") for _ in range(3))
    assert f.vppcom_session_bind(one, (host, 0)) == 0
    where = f.vppcom_session_attr(one, vcl.Attr.GET_LCL_ADDR)
    assert f.vppcom_session_sendto(two, b"first", 0, where) == 5
    assert f.vppcom_session_sendto(three, b"second one", 0, where) == 10
    found = {}
    for _ in range(2):
        sender = vcl.vppcom_endpt_t()
        buffer = bytearray(8)
        count = f.vppcom_session_recvfrom(one, buffer, 0, sender)
        assert f.vppcom_session_sendto(one, b"back", 0, sender) == 4
        found[bytes(buffer[:count])] = sender.port
    # Each datagram is one, and is cut where the buffer ends.
    assert found.keys() == {b"first", b"second o"}
    for session in (two, three):
        sender = vcl.vppcom_endpt_t()
        buffer = bytearray(10)
        assert f.vppcom_session_recvfrom(session, buffer, 0, sender) == 4
        assert (sender.ip, sender.port) == where


def test_with_somebody_elses_socket(kernels: socket.socket) -> None:
    with kernels, vcl.Session("udp") as session:
        session.bind(("::1", 0))
        kernels.sendto(b"", session.local[:2])
        kernels.sendto(b"hello", session.local[:2])
        assert session.recvfrom() == (b"", kernels.getsockname()[:2])
        assert session.recvfrom(flags=MSG_PEEK) == (b"hello", kernels.getsockname()[:2])
        data, sender = session.recvfrom()
        assert data == b"hello"
        assert session.sendto(b"", sender) == 0
        assert kernels.recvfrom(10)[0] == b""
        session.sendto(b"x" * 65000, sender)
        assert kernels.recvfrom(1 << 16)[0] == b"x" * 65000
        # Connected from now on: what others send is not for it.
        session.connect(sender)
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as stranger:
            stranger.sendto(b"psst", session.local[:2])
        kernels.sendto(b"yes?", session.local[:2])
        assert session.read() == b"yes?"
        session.write(b"no")
        assert kernels.recv(10) == b"no"


def test_boundaries_are_kept() -> None:
    ours, theirs = Pair("udp").streams
    for size in (1, 2, 1000, 1, 65507):
        ours.write(bytes([size % 256]) * size)
    assert ours.max_datagram_bytes == 65507
    assert [len(theirs.read(1 << 16)) for _ in range(5)] == [1, 2, 1000, 1, 65507]
    with pytest.raises(OSError, match="Message too long"):
        ours.write(bytes(65508))
    with pytest.raises(OSError, match="already connected"):
        ours.sendto(b"x", ("127.0.0.1", 1))


def test_a_listener_hands_out_a_session_for_each_peer() -> None:
    waiting = listener("udp")
    clients = [vcl.Session("udp") for _ in range(3)]
    for number, client in enumerate(clients):
        client.connect(waiting.local)
        client.write(b"%d" % number)
    for _ in clients:
        accepted = waiting.accept()
        accepted.write(accepted.read() * 2)
    assert [client.read() for client in clients] == [b"00", b"11", b"22"]
    waiting.close()
    # Those that are there live on; nobody new comes.
    clients[0].write(b"again")


def test_mistakes() -> None:
    with vcl.Session("udp") as session:
        assert f.vppcom_session_sendto(session.sh, b"x", 1) == -errno.EINVAL
        assert f.vppcom_session_sendto(session.sh, b"x", 0, "quic://1.1.1.1:1") == -errno.EINVAL
        session.sendto(b"x", ("127.0.0.1", 9))
        assert f.vppcom_session_sendto(session.sh, b"x") == -errno.EDESTADDRREQ
        with pytest.raises(OSError, match="too long"):
            session.sendto(bytes(65508), ("127.0.0.1", 9))

"""Ports that several workers share: which of them gets which datagram."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from hoststack.link.base import Endpoint, LinkError
from hoststack.link.udp.group import (
    _RET_K,
    _SO_ATTACH_REUSEPORT_CBPF,
    UdpGroup,
    _Filter,
    _Program,
)
from hoststack.quic.cid import CidGenerator
from hoststack.quic.seam import CidConfig
from tests.support.netns import VethPair

WORKERS, HOST, ROTATION = 3, 0x1234, 2


def new_cid(config: CidConfig) -> bytes:
    return CidGenerator(config)()


@pytest.fixture
def group() -> Iterator[UdpGroup]:
    with closing(UdpGroup(WORKERS, host=HOST, rotation=ROTATION)) as made:
        yield made


class Senders:
    """Datagrams from many ports, and who got them."""

    def __init__(self, group: UdpGroup, host: str) -> None:
        self.target = group.open_port(Endpoint(host, 0))
        self._receivers = [
            socket.socket(fileno=os.dup(group.socket_of(worker, self.target)))
            for worker in range(WORKERS)
        ]
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._senders = [socket.socket(family, socket.SOCK_DGRAM) for _ in range(32)]

    def send(self, data: bytes, sender: int = 0) -> int:
        """Which worker got it. On loopback it is there when sendto() returns."""
        self._senders[sender].sendto(data, tuple(self.target))
        got = []
        for worker, receiver in enumerate(self._receivers):
            try:
                assert receiver.recv(2000, socket.MSG_DONTWAIT) == data
                got.append(worker)
            except BlockingIOError:
                continue
        (worker,) = got
        return worker

    def close(self) -> None:
        for each in (*self._receivers, *self._senders):
            each.close()


@pytest.fixture(params=["127.0.0.1", "::1"])
def senders(group: UdpGroup, request: pytest.FixtureRequest) -> Iterator[Senders]:
    with closing(Senders(group, request.param)) as made:
        yield made


def short_header(cid: bytes) -> bytes:
    return b"\x40" + cid + os.urandom(20)


def long_header(cid: bytes, length: int | None = None) -> bytes:
    """RFC 8999 section 5.1."""
    length = len(cid) if length is None else length
    return b"\xc0\0\0\0\1" + bytes([length]) + cid + os.urandom(20)


@pytest.mark.parametrize("header", [short_header, long_header])
def test_a_connection_id_of_ours_finds_its_worker_from_any_port(
    senders: Senders, header: object
) -> None:
    assert callable(header)
    for worker in range(WORKERS):
        config = CidConfig(host=HOST, worker=worker, rotation=ROTATION)
        for sender in range(32):
            assert senders.send(header(new_cid(config)), sender) == worker


def test_all_others_spread_by_address(senders: Senders) -> None:
    """An Initial's connection ID is random (RFC 9000 section 7.2); all of a flow goes one way."""
    seen = set()
    for sender in range(32):
        ways = {senders.send(long_header(os.urandom(8)), sender) for _ in range(4)}
        assert len(ways) == 1
        seen |= ways
    assert seen == set(range(WORKERS))


def test_malformed_ones_are_nobodys_and_not_lost(senders: Senders) -> None:
    good = new_cid(CidConfig(host=HOST, worker=1, rotation=ROTATION))
    beyond = new_cid(CidConfig(host=HOST, worker=200, rotation=ROTATION))
    stranger = new_cid(CidConfig(host=HOST ^ 1, worker=1, rotation=ROTATION))
    stale = new_cid(CidConfig(host=HOST, worker=1, rotation=ROTATION ^ 1))
    wanted = senders.send(b"no QUIC at all")
    for cid in (beyond, stranger, stale):
        assert senders.send(short_header(cid)) == wanted
        assert senders.send(long_header(cid)) == wanted
    for size in range(1, 12):
        assert senders.send(b"\x40" + good[:size]) == wanted
        assert senders.send(long_header(good)[: 5 + size]) == wanted
    for length in (0, 1, 11, 13, 20, 255):
        assert senders.send(long_header(good, length)) == wanted
    rng = random.Random(5)
    for size in range(1, 200):
        senders.send(rng.randbytes(size), rng.randrange(32))


def test_a_port_of_others_is_not_joined(group: UdpGroup) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        with pytest.raises(LinkError, match="in use"):
            group.open_port(Endpoint("127.0.0.1", other.getsockname()[1]))


@pytest.mark.needs_root
def test_a_port_that_the_kernel_picks_is_nobodys(veth_pair: VethPair, group: UdpGroup) -> None:
    """With SO_REUSEPORT alone it would pick ports that another group has."""
    with veth_pair.a.inside():
        Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("40000 40019")
        picked = [group.open_port(Endpoint(veth_pair.a.ipv4, 0)).port for _ in range(20)]
        assert sorted(picked) == list(range(40000, 40020))
        with pytest.raises(LinkError):
            group.open_port(Endpoint(veth_pair.a.ipv4, 0))


def test_a_socket_stays_the_groups(group: UdpGroup) -> None:
    """As for a worker that dies: what waits there waits for the one in its place."""
    with closing(Senders(group, "127.0.0.1")) as senders:
        data = short_header(new_cid(CidConfig(host=HOST, worker=0, rotation=ROTATION)))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(data, tuple(senders.target))
        heir = socket.socket(fileno=os.dup(group.socket_of(0, senders.target)))
        with heir:
            assert heir.recv(2000, socket.MSG_DONTWAIT) == data


def test_a_worker_can_not_take_the_others_datagrams(senders: Senders) -> None:
    """By another program on its own socket, which would be all of the group's."""
    everything_to_me = bytes(_Program(1, (_Filter * 1)(_Filter(_RET_K, 0, 0, 0))))
    for each in senders._receivers:
        with pytest.raises(PermissionError):
            each.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_CBPF, everything_to_me)
    config = CidConfig(host=HOST, worker=2, rotation=ROTATION)
    assert senders.send(b"\x40" + new_cid(config) + bytes(40)) == 2

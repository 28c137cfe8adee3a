"""Frames that the kernel would not hand on, past the kernel: dropped, and counted."""

from __future__ import annotations

import struct

import pytest
import trio

import pyxdp
from hoststack import TlsConfig
from tests.link.test_af_xdp import packet_socket
from tests.link.test_xdp_datagrams import host, kernels, run_within, uri
from tests.support.checksummed import checksum, udp_frame
from tests.support.netns import Side, VethPair

pytestmark = pytest.mark.needs_root
PORT, QUIC_PORT = 5353, 4433


@pytest.fixture(autouse=True)
def _on_each_engine(engine: str) -> None:
    """The native engine has the rings in C, the other one in Python."""
    works, why = pyxdp.available()
    if not works:
        pytest.skip(why)


class Sender:
    """Frames to a side by hand."""

    def __init__(self, to: Side, source: Side) -> None:
        self._macs = to.mac + source.mac
        self._to = {4: to.ipv4, 6: to.ipv6}

    def frame(self, payload: bytes, source: str, port: int = PORT) -> bytes:
        to = self._to[6 if ":" in source else 4]
        return udp_frame(payload, macs=self._macs, hosts=(source, to), ports=(5000, port))


def with_udp_sum(frame: bytes, value: int) -> bytes:
    at = (14 + 20 if frame[12:14] == b"\x08\x00" else 14 + 40) + 6
    return frame[:at] + struct.pack("!H", value) + frame[at + 2 :]


def pseudo_sum(frame: bytes) -> int:
    """What a stack leaves in the UDP header that leaves the sum to the network card."""
    is_v4 = frame[12:14] == b"\x08\x00"
    udp_at = 14 + (20 if is_v4 else 40)
    addresses = frame[udp_at - (8 if is_v4 else 32) : udp_at]
    return ~checksum(addresses + struct.pack("!IHBB", len(frame) - udp_at, 0, 0, 17)) & 0xFFFF


def with_ip_sum(frame: bytes, value: int) -> bytes:
    return frame[:24] + struct.pack("!H", value) + frame[26:]


def martians(side: Side) -> list[str]:
    own = [side.ipv4, side.ipv6]
    network = side.ipv4.rpartition(".")[0]
    return [
        "0.0.0.1",
        "127.0.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        f"{network}.255",  # the network's broadcast address
        "::",
        "::1",
        "ff02::1",
        *own,
        "10.99.0.1",  # the side's own as well, on its loopback interface
    ]


def test_plain_datagrams(veth_pair: VethPair) -> None:
    a, b = veth_pair.a, veth_pair.b
    a.ip("link", "set", "lo", "up")
    a.ip("address", "add", "10.99.0.1/32", "dev", "lo")
    send = Sender(a, b)
    good4, good6 = send.frame(b"4", b.ipv4), send.frame(b"6", b.ipv6)
    unsound = [
        with_udp_sum(good4, 0x1234),
        with_udp_sum(good6, 0x1234),
        with_udp_sum(good6, 0),
        with_ip_sum(good4, 0x1111),
    ]
    sound = [
        good4,
        good6,
        with_udp_sum(good4, 0),
        with_udp_sum(good4, pseudo_sum(good4)),
        with_udp_sum(good6, pseudo_sum(good6)),
    ]

    async def main() -> None:
        async with (
            host(a) as server,
            await server.stack.listen(uri("0.0.0.0", PORT)) as four,
            await server.stack.listen(uri("::", PORT)) as six,
        ):
            with packet_socket(b) as raw:
                raw.send(good4)
                raw.send(good6)
                over4, over6 = await four.accept(), await six.accept()
                assert await over4.receive_datagram() == b"4"
                assert await over6.receive_datagram() == b"6"
                before = server.link.statistics()
                for frame in unsound:
                    raw.send(frame)
                for source in martians(a):
                    raw.send(send.frame(b"martian", source))
                for frame in sound:
                    raw.send(frame)
                raw.send(send.frame(b"last", b.ipv4))
                raw.send(send.frame(b"last", b.ipv6))
            # From the kernel's own sockets, whose sums are finished by nobody on a veth pair.
            with kernels(b, "ipv4") as peer:
                peer.sendto(b"from a kernel", (a.ipv4, PORT))
                third = await four.accept()
                assert third.remote == peer.getsockname()[:2]
                assert await third.receive_datagram() == b"from a kernel"
            assert [await over4.receive_datagram() for _ in range(4)] == [b"4"] * 3 + [b"last"]
            assert [await over6.receive_datagram() for _ in range(3)] == [b"6"] * 2 + [b"last"]
            after = server.link.statistics()
            counted = {name: after[name] - before.get(name, 0) for name in after}
            assert counted["rx_bad_sum"] == len(unsound)
            assert counted["rx_martian"] == len(martians(a))

    run_within(a, main)


def test_quic_is_answered_to_hosts_alone(veth_pair: VethPair) -> None:
    """No Version Negotiation, Retry or reset to what is none."""
    a, b = veth_pair.a, veth_pair.b
    send = Sender(a, b)
    # A long header of a version that nobody has (RFC 9000 section 6.1).
    unknown = (b"\xc0\x0a\x0a\x0a\x0a\x08" + bytes(8) + b"\x00").ljust(1200, b"\0")
    sources = [source for source in martians(a) if source != "10.99.0.1"]

    async def main() -> None:
        tls = TlsConfig.self_signed(["localhost"])
        async with (
            host(a) as server,
            await server.stack.listen(f"quic://0.0.0.0:{QUIC_PORT}", tls=tls, alpn=["test"]),
            await server.stack.listen(f"quic://[::]:{QUIC_PORT}", tls=tls, alpn=["test"]),
        ):
            with packet_socket(b) as raw:
                for source in sources:
                    raw.send(send.frame(unknown, source, QUIC_PORT))
                raw.send(send.frame(unknown, b.ipv4, QUIC_PORT))
            while not server.sent():
                await trio.lowlevel.checkpoint()
            assert server.link.statistics()["rx_martian"] == len(sources)
            assert server.stack.counters().dropped["unknown_version"] == 1
            assert server.sent() == 1

    run_within(a, main)

"""The steering program, packet by packet, through BPF_PROG_TEST_RUN: verdict and counter."""

from __future__ import annotations

import random
import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import pytest

import pyxdp
from hoststack.link.xdp.steering import VERDICTS, program_object
from hoststack.native.wire._wire import ffi, lib
from tests.support import packets as p
from tests.support.netns import forward, veth_pair

pytestmark = pytest.mark.needs_root

_HOP: Final = p.extension(p.UDP)
_QUIC: Final = p.udp(p.short_header(p.cid()))

GOOD: Final = {
    "short, ours": p.ethernet(p.ipv4(p.udp(p.short_header(p.cid())))),
    "short, other worker": p.ethernet(p.ipv4(p.udp(p.short_header(p.cid(1))))),
    "short, old rotation": p.ethernet(
        p.ipv4(p.udp(p.short_header(p.cid(rotation=p.OLD_ROTATION))))
    ),
    "short, unknown rotation": p.ethernet(p.ipv4(p.udp(p.short_header(p.cid(rotation=7))))),
    "short, other host": p.ethernet(p.ipv4(p.udp(p.short_header(p.cid(host=0x4321))))),
    "short, worker beyond": p.ethernet(p.ipv4(p.udp(p.short_header(p.cid(2))))),
    "short, foreign": p.ethernet(p.ipv4(p.udp(p.short_header(bytes(12))))),
    "short, another length": p.ethernet(p.ipv4(p.udp(p.short_header(b"\x6c" + p.cid()[1:])))),
    "long, ours": p.ethernet(p.ipv4(p.udp(p.long_header(p.cid(1))))),
    "long, version negotiation": p.ethernet(
        p.ipv4(p.udp(p.long_header(p.cid(1), version=0, first=0x80)))
    ),
    "long, unknown version": p.ethernet(p.ipv4(p.udp(p.long_header(p.cid(), version=0xBABA)))),
    **{
        f"long, foreign of {size}": p.ethernet(p.ipv4(p.udp(p.long_header(bytes(size)))))
        for size in range(21)
    },
    "ipv4 with options": p.ethernet(p.ipv4(_QUIC, options=bytes(40))),
    "ipv6": p.ethernet(p.ipv6(_QUIC), p.IPV6),
    "ipv6, hop by hop": p.ethernet(p.ipv6(_HOP + _QUIC, follows=p.HOP_BY_HOP), p.IPV6),
    "ipv6, long extension": p.ethernet(
        p.ipv6(p.extension(p.UDP, 264) + _QUIC, follows=p.DESTINATION), p.IPV6
    ),
    "ipv6, done with routing": p.ethernet(p.ipv6(_HOP + _QUIC, follows=p.ROUTING), p.IPV6),
    "ipv6, eight extensions": p.ethernet(
        p.ipv6(p.extension(p.DESTINATION) * 7 + _HOP + _QUIC, follows=p.DESTINATION), p.IPV6
    ),
    "one tag": p.ethernet(p.ipv4(_QUIC), tags=(0x8100,)),
    "two tags": p.ethernet(p.ipv6(_QUIC), p.IPV6, tags=(0x88A8, 0x8100)),
    "ethernet padding": p.ethernet(p.ipv4(_QUIC)) + bytes(9),
}

#: Frames that go elsewhere, and where.
OTHERS: Final = {
    "arp": (p.ethernet(bytes(28), p.ARP), "passed_not_ip"),
    "three tags": (p.ethernet(p.ipv4(_QUIC), tags=(0x88A8, 0x8100, 0x8100)), "passed_not_ip"),
    "tcp": (p.ethernet(p.ipv4(bytes(20), protocol=6)), "passed_not_udp"),
    "icmp": (p.ethernet(p.ipv4(bytes(8), protocol=1)), "passed_not_udp"),
    "neighbour discovery": (p.ethernet(p.ipv6(bytes(24), follows=58), p.IPV6), "passed_not_udp"),
    "no next header": (p.ethernet(p.ipv6(b"", follows=59), p.IPV6), "passed_not_udp"),
    "other port": (p.ethernet(p.ipv4(p.udp(bytes(40), port=53))), "passed_other_port"),
    "other address": (p.ethernet(p.ipv4(_QUIC, to=bytes(4))), "passed_other_port"),
    "other address, ipv6": (p.ethernet(p.ipv6(_QUIC, to=bytes(16)), p.IPV6), "passed_other_port"),
    "first fragment": (p.ethernet(p.ipv4(_QUIC, fragment=0x2000)), "passed_fragment"),
    "later fragment": (p.ethernet(p.ipv4(_QUIC, fragment=185)), "passed_fragment"),
    "ipv6 fragment": (
        p.ethernet(p.ipv6(_HOP + _QUIC, follows=p.FRAGMENT), p.IPV6),
        "passed_fragment",
    ),
    "not the last stop": (
        p.ethernet(p.ipv6(p.extension(p.UDP, segments_left=1) + _QUIC, follows=p.ROUTING), p.IPV6),
        "passed_extension",
    ),
    "nine extensions": (
        p.ethernet(
            p.ipv6(p.extension(p.DESTINATION) * 8 + _HOP + _QUIC, follows=p.DESTINATION), p.IPV6
        ),
        "passed_extension",
    ),
    "version lies": (p.ethernet(p.ipv4(_QUIC, version=5)), "passed_malformed"),
    "version lies, ipv6": (p.ethernet(p.ipv6(_QUIC, version=4), p.IPV6), "passed_malformed"),
    "header too short": (p.ethernet(p.ipv4(_QUIC, ihl=4)), "passed_malformed"),
    "header too long": (p.ethernet(p.ipv4(b"", ihl=15, total=60)), "passed_malformed"),
    "total below header": (p.ethernet(p.ipv4(_QUIC, total=19)), "passed_malformed"),
    "udp below its header": (p.ethernet(p.ipv4(p.udp(bytes(40), length=7))), "passed_malformed"),
    "udp beyond ip": (p.ethernet(p.ipv4(p.udp(bytes(40), length=99))), "passed_malformed"),
    "udp beyond the frame": (
        p.ethernet(p.ipv4(p.udp(bytes(40), length=999), total=2000)),
        "passed_malformed",
    ),
    "extension beyond ip": (
        p.ethernet(
            p.ipv6(p.extension(p.UDP, 64) + _QUIC, follows=p.DESTINATION, length=20), 0x86DD
        ),
        "passed_malformed",
    ),
    "broadcast": (b"\xff" * 6 + p.ethernet(p.ipv4(_QUIC))[6:], "passed_group"),
    "multicast": (b"\x33\x33" + p.ethernet(p.ipv6(_QUIC), p.IPV6)[2:], "passed_group"),
    "empty": (p.ethernet(p.ipv4(p.udp(b""))), "dropped_empty"),
    "empty, padded": (p.ethernet(p.ipv4(p.udp(b""))) + bytes(18), "dropped_empty"),
    "fixed bit unset": (
        p.ethernet(p.ipv4(p.udp(p.short_header(p.cid(), first=0x00)))),
        "dropped_not_quic",
    ),
    "short of a connection id": (
        p.ethernet(p.ipv4(p.udp(p.short_header(p.cid())[:12]))) + bytes(30),
        "dropped_too_short",
    ),
    "long without its length": (
        p.ethernet(p.ipv4(p.udp(p.long_header(b"")[:5]))) + bytes(30),
        "dropped_too_short",
    ),
    "connection id in the padding": (
        p.ethernet(p.ipv4(p.udp(p.long_header(p.cid())[:17]))) + bytes(30),
        "dropped_too_short",
    ),
    "connection id of 21": (
        p.ethernet(p.ipv4(p.udp(p.long_header(bytes(21))))),
        "dropped_long_cid",
    ),
    "connection id of 255": (
        p.ethernet(p.ipv4(p.udp(b"\xc0\0\0\0\1\xff" + bytes(300)))),
        "dropped_long_cid",
    ),
}


class Steer:
    """The loaded program; sockets are at the indexes of queue 0, unless they are taken away."""

    def __init__(self, program: pyxdp.Program) -> None:
        self.program = program
        self.maps = program.maps

    def configure(self, workers: int = p.WORKERS) -> None:
        config = ffi.new("struct hs_steer_config *", (workers, p.HOST, p.ROTATION, p.OLD_ROTATION))
        self.maps["hs_config"].update(0, bytes(ffi.buffer(config)))

    def open_port(self, address: bytes, version: int, use: int = lib.HS_STEER_QUIC) -> None:
        key = struct.pack("=BB", version, 0) + struct.pack("!H", p.PORT) + address.ljust(16, b"\0")
        self.maps["hs_ports"].update(key, use)

    def counters(self) -> dict[str, int]:
        verdicts = self.maps["hs_verdicts"]
        return {name: verdicts.sum_per_cpu(index) for index, name in enumerate(VERDICTS)}

    def run(self, frame: bytes) -> tuple[int, str]:
        """The XDP verdict, and the one counter that went up."""
        before = self.counters()
        result = self.program.test_run(frame)
        assert result.packet == frame
        after = self.counters()
        (moved,) = [name for name in VERDICTS if after[name] != before[name]]
        assert after[moved] == before[moved] + 1
        return result.verdict, moved

    def check(self, frame: bytes, expected: p.Steered) -> None:
        verdict, counter = self.run(frame)
        assert counter == expected.counter
        if expected.index is not None:
            assert verdict == pyxdp.XDP_REDIRECT
        else:
            assert verdict == (pyxdp.XDP_DROP if expected.is_dropped else pyxdp.XDP_PASS)


@pytest.fixture(scope="module")
def sockets() -> Iterator[list[pyxdp.Socket]]:
    """A socket for each worker, on a veth of their own."""
    with veth_pair() as pair, pair.a.inside(), pyxdp.Umem(256) as umem:
        yield [
            pyxdp.Socket(umem, pair.a.ifname, rx_size=64, tx_size=64, fill_frames=16)
            for _ in range(p.WORKERS)
        ]


@contextmanager
def loaded() -> Iterator[Steer]:
    """The program alone."""
    with pyxdp.Program.load(program_object(), map_sizes={"hs_sockets": p.WORKERS}) as program:
        yield Steer(program)


def set_up(steer: Steer, sockets: list[pyxdp.Socket]) -> Steer:
    """Give it configuration, ports and sockets."""
    steer.configure()
    steer.open_port(p.TO4, 4)
    steer.open_port(p.TO6, 6)
    for index, socket in enumerate(sockets):
        steer.maps["hs_sockets"].update(index, socket.fd)
    return steer


@pytest.fixture(scope="module")
def steering(sockets: list[pyxdp.Socket]) -> Iterator[Steer]:
    """The program with all that it needs, for tests that leave it so: the kernel takes half a
    second to verify it."""
    with loaded() as steer:
        yield set_up(steer, sockets)


@pytest.fixture
def steer(sockets: list[pyxdp.Socket]) -> Iterator[Steer]:
    """The same, of one's own."""
    with loaded() as steer:
        yield set_up(steer, sockets)


@pytest.mark.parametrize("name", GOOD)
def test_quic_is_steered(steering: Steer, name: str) -> None:
    expected = p.expected(GOOD[name])
    assert expected.counter.startswith("redirected")
    steering.check(GOOD[name], expected)


@pytest.mark.parametrize("name", GOOD)
def test_quic_cut_at_every_byte(steering: Steer, name: str) -> None:
    frame = GOOD[name]
    for end in range(14, len(frame)):
        steering.check(frame[:end], p.expected(frame[:end]))


@pytest.mark.parametrize("name", OTHERS)
def test_others_go_their_way(steering: Steer, name: str) -> None:
    frame, counter = OTHERS[name]
    assert p.expected(frame) == p.Steered(counter)
    steering.check(frame, p.Steered(counter))


def test_the_worker_is_the_index(steer: Steer) -> None:
    # Without its socket, a worker's packets pass; the other worker's are still steered.
    steer.maps["hs_sockets"].delete(1)
    assert steer.run(GOOD["short, other worker"]) == (pyxdp.XDP_PASS, "redirect_failed")
    assert steer.run(GOOD["short, ours"]) == (pyxdp.XDP_REDIRECT, "redirected_by_cid")
    assert steer.run(GOOD["short, foreign"]) == (pyxdp.XDP_REDIRECT, "redirected_as_new")
    steer.maps["hs_sockets"].delete(0)
    assert steer.run(GOOD["short, foreign"]) == (pyxdp.XDP_PASS, "redirect_failed")


@pytest.fixture
def no_router() -> Iterator[None]:
    """Among the network's settings are those of a machine that does not forward."""
    with veth_pair() as pair, pair.a.inside():
        forward(pair.a, 0)
        yield


def test_a_port_on_any_address(steer: Steer, no_router: None) -> None:
    other = p.ethernet(p.ipv4(_QUIC, to=b"\x0a\x09\x09\x09"))
    steer.check(other, p.Steered("passed_other_port"))
    steer.open_port(b"", 4)
    steer.check(other, p.expected(other, any_address=True))
    # IPv6 is a port of its own.
    steer.check(p.ethernet(p.ipv6(_QUIC, to=bytes(16)), p.IPV6), p.Steered("passed_other_port"))
    steer.open_port(b"", 6)
    six = p.ethernet(p.ipv6(_QUIC, to=b"\xfd" + bytes(15)), p.IPV6)
    steer.check(six, p.expected(six, any_address=True))


def test_a_port_of_plain_datagrams_is_one_workers(steer: Steer) -> None:
    steer.open_port(p.TO4, 4, use=2)
    for payload in (b"", b"x", bytes(1400), p.short_header(p.cid()), _QUIC):
        frame = p.ethernet(p.ipv4(p.udp(payload)))
        assert steer.run(frame) == (pyxdp.XDP_REDIRECT, "redirected_by_port")
    # Whose socket that is: without it the kernel gets them; the other worker's is of no interest.
    steer.maps["hs_sockets"].delete(0)
    assert steer.run(frame) == (pyxdp.XDP_REDIRECT, "redirected_by_port")
    steer.maps["hs_sockets"].delete(1)
    assert steer.run(frame) == (pyxdp.XDP_PASS, "redirect_failed")
    # Lengths are looked at as ever, and a worker that there is not has no datagrams.
    cut = p.ethernet(p.ipv4(p.udp(bytes(100))))[:-1]
    assert steer.run(cut) == (pyxdp.XDP_PASS, "passed_malformed")
    steer.open_port(p.TO4, 4, use=p.WORKERS + 1)
    assert steer.run(frame) == (pyxdp.XDP_PASS, "redirect_failed")


@pytest.mark.parametrize("workers", [0, 257, 0xFFFFFFFF])
def test_without_a_configuration_all_passes(steer: Steer, workers: int) -> None:
    steer.configure(workers)
    for frame in GOOD.values():
        steer.check(frame, p.Steered("passed_not_steering"))


def test_before_anything_is_set_all_passes() -> None:
    with loaded() as steer:
        for frame in GOOD.values():
            steer.check(frame, p.Steered("passed_not_steering"))


def test_changed_packets_against_the_rules(steer: Steer) -> None:
    """20,000 packets with up to three bytes changed, and cut or padded, from one seed."""
    rng = random.Random(20260)
    frames = [*GOOD.values(), *(frame for frame, _ in OTHERS.values())]
    before = Counter(steer.counters())
    wanted_counters: Counter[str] = Counter()
    for _ in range(20_000):
        frame = bytearray(rng.choice(frames))
        for _ in range(rng.randrange(4)):
            # Headers are where it matters.
            frame[rng.randrange(min(len(frame), 90))] = rng.choice(
                (0, 1, 4, 6, 0x0B, 0x11, 0x3C, 0x45, 0x60, 0x80, 0xC0, 0xFF, rng.randrange(256))
            )
        if rng.random() < 0.3:
            del frame[rng.randrange(14, len(frame) + 1) :]
        elif rng.random() < 0.3:
            frame += bytes(rng.randrange(40))
        data = bytes(frame)
        expected = p.expected(data)
        wanted_counters[expected.counter] += 1
        verdict = steer.program.test_run(data).verdict
        if expected.index is not None:
            assert verdict == pyxdp.XDP_REDIRECT, data.hex()
        else:
            wanted = pyxdp.XDP_DROP if expected.is_dropped else pyxdp.XDP_PASS
            assert verdict == wanted, data.hex()
    assert Counter(steer.counters()) - before == wanted_counters


def test_names_and_numbers_agree() -> None:
    assert len(VERDICTS) == lib.HS_STEER_VERDICTS
    assert VERDICTS[lib.HS_STEER_REDIRECTED_AS_NEW] == "redirected_as_new"

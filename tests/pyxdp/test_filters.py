"""Filters and flows, as the kernel runs them: pyxdp/packet.bpf.h on one packet at a time."""

from __future__ import annotations

import importlib.resources
from collections.abc import Iterator

import pytest

from pyxdp import XDP_PASS, Program
from pyxdp.tools.filters import FilterError, compile_filter, load_filter
from pyxdp.tools.flows import read_flows
from tests.pyxdp.frames import ethernet, ipv4, ipv6, ports, udp4
from tests.support import netns

EXTENSIONS = bytes([60, 0, 0, 0, 0, 0, 0, 0]) + bytes([17, 1]) + bytes(14)  # hop-by-hop, options

PACKETS = {
    "udp": udp4(),
    "back": udp4(4433, 1000),
    "tcp": ethernet(0x0800, ipv4("10.0.0.1", "192.0.2.7", 6, ports(1000, 443) + bytes(12))),
    "options": ethernet(0x0800, ipv4("10.0.0.1", "10.0.0.2", 17, ports(1, 2), words=15)),
    "fragment": ethernet(0x0800, ipv4("10.0.0.1", "10.0.0.2", 17, ports(1000, 4433), fragment=5)),
    "icmp": ethernet(0x0800, ipv4("10.1.0.1", "10.0.0.2", 1, bytes(8))),
    "short": ethernet(0x0800, b"")[:20],
    "tagged": ethernet(0x0800, ipv4("10.0.0.1", "10.0.0.2", 17, ports(9, 4433)), 5, 6),
    "six": ethernet(0x86DD, ipv6("2001:db8::1", "2001:db8:1::2", 17, ports(1000, 4433))),
    "extensions": ethernet(0x86DD, ipv6("fe80::1", "fe80::2", 0, EXTENSIONS + ports(5, 6))),
    "first6": ethernet(
        0x86DD, ipv6("fe80::1", "fe80::2", 44, bytes([17, 0, 0, 1, 0, 0, 0, 9]) + ports(7, 8))
    ),
    "later6": ethernet(
        0x86DD, ipv6("fe80::1", "fe80::2", 44, bytes([17, 0, 1, 0, 0, 0, 0, 9]) + ports(7, 8))
    ),
    "icmp6": ethernet(0x86DD, ipv6("fe80::1", "ff02::1", 58, bytes(8))),
    "arp": ethernet(0x0806, bytes(28)),
}
UDP6 = {"six", "extensions", "first6", "later6"}
UDP4 = {"udp", "back", "options", "fragment", "tagged"}
IP4 = UDP4 | {"tcp", "icmp", "short"}
IP6 = UDP6 | {"icmp6"}

ACCEPTED = {
    "": set(PACKETS),
    "udp": UDP4 | UDP6,
    "ip": IP4,
    "ip6": IP6,
    "arp": {"arp"},
    "icmp or icmp6": {"icmp", "icmp6"},
    "not ip": IP6 | {"arp"},
    "! ip && ! ip6": {"arp"},
    "udp port 4433": {"udp", "back", "tagged", "six"},
    "udp dst port 4433": {"udp", "tagged", "six"},
    "src port 4433": {"back"},
    "port 0": set(),
    "dst port 2": {"options"},
    "src port 5 or src port 7": {"extensions", "first6"},
    "tcp and not port 443": set(),
    "tcp and not port 80": {"tcp"},
    "host 192.0.2.7": {"tcp"},
    "192.0.2.7": {"tcp"},
    "src 192.0.2.7": set(),
    "src net 10.1.0.0/16": {"icmp"},
    "net 10.0.0.0/8": IP4 - {"short"},
    "net 0.0.0.0/0": IP4 - {"short"},
    "net ::/0": IP6,
    "dst net 2001:db8:1::/48": {"six"},
    "host fe80::1 and not icmp6": UDP6 - {"six"},
    # from left to right, as in pcap-filter
    "arp or ip and icmp": {"icmp"},
    "arp or (ip and icmp)": {"arp", "icmp"},
    "not (udp or tcp or arp)": {"icmp", "short", "icmp6"},
    "(udp or tcp) and (dst port 443 or dst port 4433) and not ip6": {"udp", "tcp", "tagged"},
    " or ".join(f"dst port {number}" for number in range(4402, 4434)): {"udp", "tagged", "six"},
}

REFUSED = {
    "udp prot 4433": "'prot'",
    "foo": "'foo' is none of",
    "port http": "a port is a number up to 65535, not 'http'",
    "port 65536": "not '65536'",
    "port": "it ends",
    "udp and": "it ends",
    "(udp": "')' is missing",
    "udp)": "before ')'",
    "host 10.0.0.0/8": "write 'net' before it",
    "host localhost": "host takes an address, not 'localhost'",
    "net 10.0.0.0/40": "net takes an address and its length",
    " or ".join(["port 1"] * 17): "takes 34 comparisons",
    "(" * 5000 + "udp" + ")" * 5000: "too deeply",
    "not " * 5000 + "udp": "too deeply",
}


@pytest.fixture(scope="module")
def counter() -> Iterator[Program]:
    """The program that counts flows, attached to nothing."""
    if why := netns.why_not():
        pytest.skip(why)
    source = importlib.resources.files("pyxdp").joinpath("flows.bpf.o").read_bytes()
    with Program.load(source) as program:
        yield program


def flows_of(program: Program, packet: bytes) -> list[str]:
    for key in list(program.maps["flows"].keys()):
        program.maps["flows"].delete(key)
    assert program.test_run(packet).verdict == XDP_PASS
    return [str(flow) for flow in read_flows(program)]


@pytest.mark.needs_root
@pytest.mark.parametrize("expression", ACCEPTED)
def test_the_kernel_accepts_what_the_filter_says(counter: Program, expression: str) -> None:
    counter.maps["filter"].update(0, bytes(counter.maps["filter"].value_bytes))
    load_filter(counter, expression)
    accepted = {name for name, packet in PACKETS.items() if flows_of(counter, packet)}
    assert accepted == ACCEPTED[expression]


@pytest.mark.parametrize("expression", REFUSED, ids=lambda text: text[:20])
def test_a_bad_filter_is_one_line(expression: str) -> None:
    with pytest.raises(FilterError) as refused:
        compile_filter(expression)
    assert REFUSED[expression] in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.needs_root
def test_flows_as_text(counter: Program) -> None:
    counter.maps["filter"].update(0, bytes(counter.maps["filter"].value_bytes))
    found = {name: flows_of(counter, packet) for name, packet in PACKETS.items()}
    assert found["udp"] == ["udp 10.0.0.1:1000 > 10.0.0.2:4433"]
    assert found["fragment"] == ["udp 10.0.0.1 > 10.0.0.2"]
    assert found["tagged"] == ["udp 10.0.0.1:9 > 10.0.0.2:4433"]
    assert found["six"] == ["udp [2001:db8::1]:1000 > [2001:db8:1::2]:4433"]
    assert found["extensions"] == ["udp [fe80::1]:5 > [fe80::2]:6"]
    assert found["later6"] == ["udp fe80::1 > fe80::2"]
    assert found["icmp"] == ["icmp 10.1.0.1 > 10.0.0.2"]
    assert found["arp"] == ["arp"]

"""Count packets and bytes by five-tuple: protocol, addresses and ports."""

from __future__ import annotations

import ipaddress
import itertools
import struct
from importlib.resources import files
from typing import Final, NamedTuple

from pyxdp.attach import Mode, WantedMode
from pyxdp.closing import Closing
from pyxdp.program import Program
from pyxdp.tools.filters import load_filter

# struct flow in pyxdp/packet.bpf.h
_FLOW: Final = struct.Struct(">16s16sHHHBB8x")
_COUNTS: Final = struct.Struct("=QQ")
_ETHERTYPES: Final = {0x0800: "ip", 0x86DD: "ip6", 0x0806: "arp", 0x88CC: "lldp"}
_PROTOCOLS: Final = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmp6", 132: "sctp"}
_IP: Final = (0x0800, 0x86DD)


class Flow(NamedTuple):
    """Packets of one five-tuple. Addresses are "" without IP, ports None without ports."""

    protocol: str
    source: str
    source_port: int | None
    destination: str
    destination_port: int | None
    packets: int
    size_bytes: int

    def __str__(self) -> str:
        source = _endpoint(self.source, self.source_port)
        destination = _endpoint(self.destination, self.destination_port)
        where = f" {source} > {destination}" if self.source else ""
        return f"{self.protocol}{where}"


def _endpoint(address: str, port: int | None) -> str:
    if port is None:
        return address
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


class FlowCounter(Closing):
    """Counts what an interface receives, by flow; the packets go on. Use it in a `with`."""

    def __init__(
        self,
        interface: str,
        filter: str = "",
        *,
        most_flows: int = 16384,
        mode: WantedMode = "auto",
    ) -> None:
        """Attach to an interface; `filter` is as in pyxdp.tools.filters.

        Of more than `most_flows`, those that were not seen for the longest are forgotten. Raises
        FilterError, and what Program.load and Program.attach raise.
        """
        source = files("pyxdp").joinpath("flows.bpf.o").read_bytes()
        self._program = Program.load(source, map_sizes={"flows": most_flows})
        try:
            load_filter(self._program, filter)
            self.mode: Final[Mode] = self._program.attach(interface, mode).mode
        except BaseException:
            self.close()
            raise

    def flows(self) -> list[Flow]:
        """Return all flows, those with the most packets first."""
        return sorted(read_flows(self._program), key=lambda flow: flow.packets, reverse=True)

    def close(self) -> None:
        """Detach; idempotent."""
        self._program.close()


def read_flows(program: Program) -> list[Flow]:
    """Return the flows that a program with the map of pyxdp/flows.bpf.c has counted."""
    counted: list[Flow] = []
    table = program.maps["flows"]
    # The kernel starts again at the first key if the last one was forgotten meanwhile.
    for key in dict.fromkeys(itertools.islice(table.keys(), table.max_entries)):
        # None if it was forgotten, too
        if each_cpu := table.lookup_per_cpu(key):
            packets, size_bytes = map(sum, zip(*map(_COUNTS.unpack, each_cpu), strict=True))
            counted.append(describe_flow(key, packets, size_bytes))
    return counted


def describe_flow(key: bytes, packets: int = 0, size_bytes: int = 0) -> Flow:
    """Return a `struct flow` as text and numbers."""
    source, destination, ethertype, source_port, destination_port, protocol, has_ports = (
        _FLOW.unpack(key)
    )
    if ethertype not in _IP:
        name = _ETHERTYPES.get(ethertype, f"ether {ethertype:#06x}")
        return Flow(name, "", None, "", None, packets, size_bytes)
    return Flow(
        _PROTOCOLS.get(protocol, f"{_ETHERTYPES[ethertype]} proto {protocol}"),
        _address(source),
        source_port if has_ports else None,
        _address(destination),
        destination_port if has_ports else None,
        packets,
        size_bytes,
    )


def _address(mapped: bytes) -> str:
    address = ipaddress.IPv6Address(mapped)
    return str(address.ipv4_mapped or address)

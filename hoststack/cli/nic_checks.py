"""The doctor's checks of an interface: state, driver, mode, queues, MTU, programs on it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Final

import pyxdp
from hoststack.cli.finding import Finding, bad, good, hint
from hoststack.cli.xdp import PROGRAM_NAME

_LARGEST_FRAME_BYTES: Final = 4096
_ETHERNET_BYTES: Final = 14
_VLAN_TAGS_BYTES: Final = 8


def _names() -> list[str]:
    return [name for _, name in socket.if_nameindex() if name != "lo"]


def interfaces_up() -> list[str]:
    """Return the interfaces of this network namespace that are up, except loopback."""
    return [name for name in _names() if pyxdp.describe_interface(name).is_up]


def findings(name: str) -> Iterator[Finding]:
    """Yield all findings about one interface; only one if it does not exist."""
    try:
        nic = pyxdp.describe_interface(name)
    except pyxdp.NoInterfaceError:
        yield bad(
            "interface",
            f"there is no {name!r} in this network namespace",
            f"`ip link` lists those that are: {', '.join(_names()) or 'lo alone'}",
        )
        return
    yield _state(nic)
    yield _mode(nic)
    yield _zero_copy(nic)
    yield good("queues", f"{nic.rx_queues} for receiving, {nic.tx_queues} for sending")
    yield _mtu(nic)
    if pyxdp.available()[0]:
        yield from _programs(nic)


def _state(nic: pyxdp.Interface) -> Finding:
    if not nic.is_up:
        return bad("state", "down", f"`ip link set {nic.name} up`")
    if not nic.has_carrier:
        return hint("state", "up, without a carrier", "plug it in, or set its peer up")
    return good("state", "up")


def _mode(nic: pyxdp.Interface) -> Finding:
    driver = nic.driver or "a driver without a name"
    if nic.xdp_features is None:
        return hint("mode", f"{driver}; the kernel does not tell if native", "try it")
    if {"basic", "redirect"} <= nic.xdp_features:
        return good("mode", f"{driver}: native")
    return hint("mode", f"{driver}: generic only", "for speed, use a NIC whose driver has XDP")


def _zero_copy(nic: pyxdp.Interface) -> Finding:
    if nic.xdp_features is not None and "xsk-zerocopy" in nic.xdp_features:
        return good("zero-copy", "the driver supports it")
    return good("zero-copy", "the driver does not support it: packets are copied")


def _mtu(nic: pyxdp.Interface) -> Finding:
    room_bytes = pyxdp.largest_packet_bytes(_LARGEST_FRAME_BYTES)
    most_bytes = room_bytes - _ETHERNET_BYTES - _VLAN_TAGS_BYTES
    if nic.mtu_bytes > most_bytes:
        return bad(
            "MTU",
            f"{nic.mtu_bytes} does not fit a UMEM frame",
            f"`ip link set {nic.name} mtu 1500` (at most {most_bytes})",
        )
    return good("MTU", str(nic.mtu_bytes))


def _programs(nic: pyxdp.Interface) -> Iterator[Finding]:
    found = pyxdp.attached_programs(nic.name)
    if not found:
        yield good("program", "none attached")
    for program in found:
        if program.name == PROGRAM_NAME:
            yield good("program", f"hoststack's own (id {program.program_id}, {program.mode} mode)")
            continue
        text = f"{program.name or 'unnamed'!r} (id {program.program_id}, {program.mode} mode)"
        yield bad(
            "program",
            f"{text} is attached already",
            f"end its owner, or `ip link set dev {nic.name} xdp off`",
        )

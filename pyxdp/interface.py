"""The properties of an interface: driver, queues, MTU, XDP features.

Queried by ioctl and netlink rather than read from sysfs, which shows the namespace that it was
mounted in. None of this needs privileges or pyxdp's C part.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import socket
import struct
from typing import Final, NamedTuple

from pyroute2 import IPRoute
from pyroute2.netlink import NLM_F_REQUEST, genlmsg
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.generic import GenericNetlinkSocket

from pyxdp.attach import interface_index
from pyxdp.errors import os_error

# linux/sockios.h, linux/ethtool.h
_SIOCETHTOOL: Final = 0x8946
_ETHTOOL_GDRVINFO: Final = 0x00000003
_ETHTOOL_GCHANNELS: Final = 0x0000003C
_IFREQ_BYTES: Final = 40
_IFNAME_BYTES: Final = 16
_DRVINFO_BYTES: Final = 196
_CHANNELS_WORDS: Final = 9
_IFF_UP: Final = 1
_IFF_RUNNING: Final = 0x40

# linux/netdev.h: the generic netlink family "netdev", and enum netdev_xdp_act
_NETDEV_CMD_DEV_GET: Final = 1
_XDP_FEATURES: Final = {
    1 << 0: "basic",
    1 << 1: "redirect",
    1 << 2: "ndo-xmit",
    1 << 3: "xsk-zerocopy",
    1 << 4: "hw-offload",
    1 << 5: "rx-sg",
    1 << 6: "ndo-xmit-sg",
}


class Interface(NamedTuple):
    """An interface at the time of the query.

    `driver` is "" if it does not report one; `rx_queues` are those in use, which AF_XDP sockets can
    bind to. `xdp_features` is None if the kernel does not report them (before 6.3).
    """

    name: str
    ifindex: int
    driver: str
    mac: str
    mtu_bytes: int
    rx_queues: int
    tx_queues: int
    is_up: bool
    has_carrier: bool
    xdp_features: frozenset[str] | None


def _ethtool(interface: str, request: ctypes.Array[ctypes.c_char]) -> bool:
    """Have the kernel fill in `request`; return False if the driver does not support it."""
    name = interface.encode()[: _IFNAME_BYTES - 1].ljust(_IFNAME_BYTES, b"\0")
    ifreq = bytearray(_IFREQ_BYTES)
    ifreq[: _IFNAME_BYTES + struct.calcsize("P")] = name + struct.pack(
        "P", ctypes.addressof(request)
    )
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        try:
            fcntl.ioctl(asker, _SIOCETHTOOL, ifreq)
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.EPERM, errno.EINVAL):
                return False
            raise os_error(f"cannot ask {interface}", error.errno or errno.EIO) from error
    return True


def _driver(interface: str) -> str:
    request = ctypes.create_string_buffer(struct.pack("=I", _ETHTOOL_GDRVINFO), _DRVINFO_BYTES)
    if not _ethtool(interface, request):
        return ""
    return request.raw[4:36].split(b"\0", 1)[0].decode(errors="replace")


def _channels(interface: str) -> tuple[int, int] | None:
    """Return the receive and transmit queues in use, or None if the driver does not report them."""
    layout = f"={_CHANNELS_WORDS}I"
    request = ctypes.create_string_buffer(struct.calcsize(layout))
    struct.pack_into("=I", request, 0, _ETHTOOL_GCHANNELS)
    if not _ethtool(interface, request):
        return None
    # cmd; maximum of rx, tx, other, combined; then their current values
    _, _, _, _, _, rx, tx, _, combined = struct.unpack(layout, request.raw)
    return (rx + combined, tx + combined) if rx + combined else None


class _NetdevMessage(genlmsg):  # type: ignore[misc]
    nla_map = (
        ("NETDEV_A_DEV_UNSPEC", "none"),
        ("NETDEV_A_DEV_IFINDEX", "uint32"),
        ("NETDEV_A_DEV_PAD", "none"),
        ("NETDEV_A_DEV_XDP_FEATURES", "uint64"),
    )


def _xdp_features(ifindex: int) -> frozenset[str] | None:
    with GenericNetlinkSocket() as netlink:
        try:
            netlink.bind("netdev", _NetdevMessage)
            message = _NetdevMessage()
            message["cmd"] = _NETDEV_CMD_DEV_GET
            message["version"] = 1
            message["attrs"] = [("NETDEV_A_DEV_IFINDEX", ifindex)]
            (answer,) = netlink.nlm_request(message, netlink.prid, msg_flags=NLM_F_REQUEST)
        except NetlinkError:
            return None
        bits = answer.get_attr("NETDEV_A_DEV_XDP_FEATURES")
    if bits is None:
        return None
    return frozenset(name for bit, name in _XDP_FEATURES.items() if bits & bit)


def receive_queues(interface: str) -> int:
    """Return the number of receive queues in use, to which AF_XDP sockets can bind.

    Raises NoInterfaceError.
    """
    channels = _channels(interface)
    return channels[0] if channels else describe_interface(interface).rx_queues


def describe_interface(interface: str) -> Interface:
    """Query the kernel about an interface; raises NoInterfaceError."""
    ifindex = interface_index(interface)
    with IPRoute() as netlink:
        try:
            (link,) = netlink.get_links(ifindex)
        except NetlinkError as error:
            raise os_error(f"cannot ask {interface}", error.code) from error
    channels = _channels(interface) or (
        int(link.get_attr("IFLA_NUM_RX_QUEUES") or 1),
        int(link.get_attr("IFLA_NUM_TX_QUEUES") or 1),
    )
    return Interface(
        name=interface,
        ifindex=ifindex,
        driver=_driver(interface),
        mac=str(link.get_attr("IFLA_ADDRESS") or ""),
        mtu_bytes=int(link.get_attr("IFLA_MTU")),
        rx_queues=channels[0],
        tx_queues=channels[1],
        is_up=bool(link["flags"] & _IFF_UP),
        has_carrier=bool(link["flags"] & _IFF_RUNNING),
        xdp_features=_xdp_features(ifindex),
    )

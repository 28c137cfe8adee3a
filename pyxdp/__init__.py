"""AF_XDP and XDP programs for Python, over libxdp and libbpf.

Importing needs neither privileges nor the C part; `available()` says whether the rest works.
"""

from __future__ import annotations

from pyxdp._extension import available, c_verbs, libbpf_version
from pyxdp.attach import AttachedProgram, Mode, WantedMode, XdpLink, attached_programs
from pyxdp.bpffs import ensure_bpffs, find_bpffs, remove_bpffs
from pyxdp.errors import (
    ClosedError,
    ForeignProgramError,
    FrameOwnershipError,
    NoInterfaceError,
    NoPrivilegeError,
    NotAvailableError,
    ObjectError,
    PyxdpError,
    QueueBusyError,
)
from pyxdp.interface import Interface, describe_interface, receive_queues
from pyxdp.maps import Map
from pyxdp.program import (
    XDP_ABORTED,
    XDP_DROP,
    XDP_PASS,
    XDP_REDIRECT,
    XDP_TX,
    Program,
    RunResult,
    unpin,
)
from pyxdp.ring import Ring
from pyxdp.shared import AdoptedSocket, AdoptedUmem, SharedSocket, SharedUmem
from pyxdp.umem import Umem, largest_packet_bytes
from pyxdp.xsk import Burst, Socket, Statistics

__all__ = [
    "XDP_ABORTED",
    "XDP_DROP",
    "XDP_PASS",
    "XDP_REDIRECT",
    "XDP_TX",
    "AdoptedSocket",
    "AdoptedUmem",
    "AttachedProgram",
    "Burst",
    "ClosedError",
    "ForeignProgramError",
    "FrameOwnershipError",
    "Interface",
    "Map",
    "Mode",
    "NoInterfaceError",
    "NoPrivilegeError",
    "NotAvailableError",
    "ObjectError",
    "Program",
    "PyxdpError",
    "QueueBusyError",
    "Ring",
    "RunResult",
    "SharedSocket",
    "SharedUmem",
    "Socket",
    "Statistics",
    "Umem",
    "WantedMode",
    "XdpLink",
    "attached_programs",
    "available",
    "c_verbs",
    "describe_interface",
    "ensure_bpffs",
    "find_bpffs",
    "largest_packet_bytes",
    "libbpf_version",
    "receive_queues",
    "remove_bpffs",
    "unpin",
]

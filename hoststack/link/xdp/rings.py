"""The UMEM and the sockets of an af_xdp link: one socket on each receive queue."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import Any, Final, Literal, NamedTuple

import pyxdp
from hoststack.link.base import BURST, LinkError
from hoststack.link.xdp.steering import Steering, as_link_error
from hoststack.link.xdp.watch import Setup, current_namespace

XdpMode = Literal["auto", "native", "generic"]

ETHERNET_BYTES: Final = 14 + 2 * 4  # with two VLAN tags
#: Size of a queue's RX and FILL rings. An engine run with a thousand connections' applications
#: takes milliseconds, and at a million packets a second the kernel fills such a ring in 4 ms.
RX_FRAMES: Final = 4096
TX_FRAMES: Final = 2048
#: Frames beside those of the receive queues: a full TX ring, and bursts being built.
SENDING_FRAMES: Final = 2 * TX_FRAMES


class Rings(NamedTuple):
    """Everything that a link owns on an interface."""

    steering: Steering
    umem: pyxdp.Umem
    sockets: list[pyxdp.Socket]
    setup: Setup

    @classmethod
    def open(cls, interface: str, mtu_bytes: int, mode: XdpMode, *, debug: bool) -> Rings:
        """Load the program and bind a socket to each queue. Raises LinkError."""
        opened: list[Any] = []
        try:
            about = pyxdp.describe_interface(interface)
            size = frame_bytes(interface, mtu_bytes)
            steering = Steering.adopt(interface) or Steering.load(
                interface, about.rx_queues, mode=mode
            )
            opened.append(steering)
            queues = min(about.rx_queues, steering.sockets)
            umem = pyxdp.Umem(queues * 2 * RX_FRAMES + SENDING_FRAMES, size, debug=debug)
            opened.append(umem)
            sockets = [
                pyxdp.Socket(
                    umem,
                    interface,
                    queue,
                    rx_size=RX_FRAMES,
                    tx_size=TX_FRAMES,
                    fill_frames=RX_FRAMES,
                    burst=BURST,
                )
                for queue in range(queues)
            ]
            for queue, socket in enumerate(sockets):
                steering.register(queue, socket.fd)
            steering.configure(workers=1, host=0, rotation=0)
            setup = Setup(
                interface, about.ifindex, about.rx_queues, steering.program_id, current_namespace()
            )
            return cls(steering, umem, sockets, setup)
        except BaseException as error:
            for each in reversed(opened):
                each.close()
            if isinstance(error, pyxdp.PyxdpError):
                raise as_link_error(error) from None
            raise


def adopt_rings(
    description: dict[str, Any], fds: Sequence[int]
) -> tuple[pyxdp.Umem, list[pyxdp.Socket]]:
    """Attach to rings by their descriptors, which are consumed or closed. Raises LinkError."""
    umem_fd, ledger_fd, *socket_fds = fds
    interface, worker = description["interface"], description["worker"]
    umem: pyxdp.AdoptedUmem | None = None
    try:
        umem = pyxdp.AdoptedUmem(umem_fd, ledger_fd, description["shape"], worker)
        sockets: list[pyxdp.Socket] = []
        while socket_fds:
            socket = pyxdp.AdoptedSocket(
                umem,
                socket_fds[0],
                interface,
                len(sockets),
                rx_size=description["rx_frames"],
                tx_size=description["tx_frames"],
                burst=BURST,
            )
            del socket_fds[0]
            sockets.append(socket)
    except BaseException as error:
        for fd in socket_fds:
            os.close(fd)
        if umem is None:
            os.close(umem_fd)
            os.close(ledger_fd)
        else:
            umem.close()
        if isinstance(error, pyxdp.PyxdpError):
            raise as_link_error(error) from None
        raise
    # A worker sends on the queue of its own number, so that it alone gets the completions.
    return umem, sockets[worker:] + sockets[:worker]


def frame_bytes(interface: str, mtu_bytes: int) -> int:
    """Return the smallest UMEM frame that holds the interface's packets; raises LinkError."""
    for size in (2048, 4096):
        most = pyxdp.largest_packet_bytes(size) - ETHERNET_BYTES
        if mtu_bytes <= most:
            return size
    raise LinkError(
        errno.EMSGSIZE,
        f"{interface} has an MTU of {mtu_bytes}, but a UMEM frame carries {most}: "
        f"`ip link set {interface} mtu {most}`",
    )

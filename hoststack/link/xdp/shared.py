"""AF_XDP for several worker processes: the supervisor's part, which alone has privileges.

Every worker has a socket on every receive queue, all on one UMEM: the program can redirect a packet
to its connection's worker on whatever queue it arrived. Worker N sends on queue N. The workers
adopt their sockets (AfXdpLink.adopt); the supervisor holds them open, so that the replacement of a
killed worker inherits them with the packets that wait in them.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from functools import partial
from typing import Any, Final, NamedTuple, Self

import pyxdp
from hoststack.link.base import Endpoint, KernelProtocol, LinkError
from hoststack.link.kernel.next_hop import ethernet_interface
from hoststack.link.kernel.rtnetlink import Rtnetlink
from hoststack.link.xdp.rings import RX_FRAMES, SENDING_FRAMES, TX_FRAMES, XdpMode, frame_bytes
from hoststack.link.xdp.steered_ports import SteeredPorts
from hoststack.link.xdp.steering import Steering, as_link_error
from hoststack.link.xdp.watch import Setup, current_namespace


class _Parts(NamedTuple):
    """Everything set up on an interface; `sockets` are by queue, then by worker."""

    steering: Steering
    umem: pyxdp.SharedUmem
    sockets: list[list[pyxdp.SharedSocket]]
    setup: Setup


def _open_parts(interface: str, workers: int, mode: XdpMode, host: int, rotation: int) -> _Parts:
    opened: list[Any] = []
    try:
        kernel = Rtnetlink(follows_changes=False)
        opened.append(kernel)
        ethernet = ethernet_interface(kernel, interface)
        size = frame_bytes(interface, ethernet.mtu_bytes)
        about = pyxdp.describe_interface(interface)
        _check_queues(about, workers)
        queues = about.rx_queues
        steering = _steering(interface, queues, workers, mode)
        opened.append(steering)
        umem = pyxdp.SharedUmem(
            queues,
            workers,
            rx_frames=2 * RX_FRAMES,
            tx_frames=SENDING_FRAMES,
            frame_bytes=size,
        )
        opened.append(umem)
        sockets = [
            [
                pyxdp.SharedSocket(umem, interface, queue, rx_size=RX_FRAMES, tx_size=TX_FRAMES)
                for _ in range(workers)
            ]
            for queue in range(queues)
        ]
        for queue, of_queue in enumerate(sockets):
            for worker, socket in enumerate(of_queue):
                steering.register(queue * workers + worker, socket.fd)
        steering.configure(workers=workers, host=host, rotation=rotation)
        kernel.close()
        setup = Setup(interface, ethernet.ifindex, queues, steering.program_id, current_namespace())
        return _Parts(steering, umem, sockets, setup)
    except BaseException as error:
        for each in reversed(opened):
            each.close()
        if isinstance(error, pyxdp.PyxdpError):
            raise as_link_error(error) from None
        raise


class SharedAfXdp:
    """An interface's queues, for several workers. Use `open`."""

    def __init__(self, parts: _Parts, reopen: Callable[[], _Parts]) -> None:
        self.steering = parts.steering
        self.interface: Final = parts.setup.interface
        self.trouble = ""
        """Why packets do not flow now, in one line; "" while all is well."""
        self._ports = SteeredPorts(parts.steering, parts.setup.ifindex)
        self._umem = parts.umem
        self._sockets = parts.sockets
        self._setup = parts.setup
        self._reopen = reopen

    @classmethod
    def open(
        cls,
        interface: str,
        workers: int,
        *,
        mode: XdpMode = "auto",
        host: int = 0,
        rotation: int = 0,
    ) -> Self:
        """Open an interface's queues for `workers` processes, whose connection IDs carry `host`
        and `rotation`.

        Raises LinkError as AfXdpLink.open does, and with errno EINVAL for more workers than queues.
        """
        is_available, reason = pyxdp.available()
        if not is_available:
            raise LinkError(errno.ENOTSUP, reason)
        reopen = partial(_open_parts, interface, workers, mode, host, rotation)
        return cls(reopen(), reopen)

    def look(self) -> str:
        """Check that the interface is still as it was; return what has changed, or "". After a
        change, call `take_again` until it succeeds."""
        self.trouble = self._setup.trouble()
        if self.trouble:
            self._ports.let_go()
            self.steering.close()
        return self.trouble

    def take_again(self) -> None:
        """Set everything up again; `hand_over` then returns other descriptors. Raises LinkError
        while that is not possible."""
        parts = self._reopen()
        try:
            self._ports.move(parts.steering, parts.setup.ifindex)
        except BaseException:
            parts.steering.close()
            parts.umem.close()
            raise
        self._umem.close()
        self.steering, self._umem, self._sockets, self._setup = parts
        self.trouble = ""

    def hand_over(self, worker: int) -> tuple[dict[str, Any], list[int]]:
        """Return the arguments of AfXdpLink.adopt for a worker; the descriptors stay open here.

        Call it only after the previous worker of that number has ended and was reclaimed.
        """
        description = {
            "interface": self.interface,
            "worker": worker,
            "mode": self.steering.mode,
            "shape": dict(self._umem.shape),
            "rx_frames": RX_FRAMES,
            "tx_frames": TX_FRAMES,
        }
        fds = [self._umem.fd, self._umem.ledger_fds[worker]]
        return description, fds + [of_queue[worker].fd for of_queue in self._sockets]

    def open_port(self, endpoint: Endpoint) -> Endpoint:
        """Open a UDP endpoint for all workers; port 0 picks a free one. Raises LinkError."""
        opened, _ = self._ports.open_port(endpoint)
        return opened

    def close_port(self, endpoint: Endpoint) -> None:
        """Close a UDP endpoint; no effect if it is not open."""
        self._ports.close_port(endpoint)

    def open_socket(
        self, protocol: KernelProtocol, endpoint: Endpoint, worker: int
    ) -> socket.socket:
        """See SocketSource (link/base.py); datagrams off the rings go to the worker."""
        return self._ports.open_socket(protocol, endpoint, worker)

    def close_socket(self, protocol: KernelProtocol, endpoint: Endpoint) -> None:
        """See SocketSource (link/base.py)."""
        self._ports.close_socket(protocol, endpoint)

    def use_neighbour(self, host: str) -> None:
        """See PortSource (link/base.py)."""
        self._ports.use_neighbour(host)

    def reclaim(self, worker: int) -> bool:
        """Recover the received frames that a worker held when its process ended.

        Returns False while another worker's lock on a queue prevents it: call it again before
        `hand_over`.
        """
        self._umem.reclaim(worker, [of_queue[worker] for of_queue in self._sockets])
        return self._umem.unreclaimed == 0

    def break_locks(self) -> int:
        """Break the locks of FILL rings that workers hold too long; return how many. Call it about
        once a second."""
        return self._umem.break_locks()

    def fill_levels(self) -> list[int]:
        """Return the number of frames in the FILL ring of each queue."""
        return [of_queue[0].fill_level for of_queue in self._sockets]

    def close(self) -> None:
        """Release everything; idempotent."""
        self._ports.close()
        # Detach the program first, so that it redirects nothing to closed sockets.
        self.steering.close()
        self._umem.close()


def _check_queues(about: pyxdp.Interface, workers: int) -> None:
    queues = min(about.rx_queues, about.tx_queues)
    if workers > queues:
        raise LinkError(
            errno.EINVAL,
            f"{workers} workers need as many receive and transmit queues, and {about.name} has"
            f" {queues}: `ethtool -L {about.name} combined {workers}`, or use fewer workers",
        )


def _steering(interface: str, queues: int, workers: int, mode: XdpMode) -> Steering:
    steering = Steering.adopt(interface)
    if steering is None:
        return Steering.load(interface, queues, workers=workers, mode=mode)
    if steering.sockets < queues * workers:
        steering.close()
        raise LinkError(
            errno.ENOSPC,
            f"the program that is pinned for {interface} has no room for {workers} workers:"
            f" `hoststack xdp unload {interface}`; a program of the right size is then loaded",
        )
    return steering

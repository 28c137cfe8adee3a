"""The link over AF_XDP: packets between the interface's queues and this process, bypassing the
kernel's network stack.

A worker has a socket on each receive queue, all on one UMEM, and sends on a queue of its own. The
bursts are C's (link/xdp/wire.py).
"""

from __future__ import annotations

import errno
import logging
import select
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final

import trio

import pyxdp
from hoststack.link.base import (
    BURST,
    DatagramWay,
    Endpoint,
    LinkError,
    Outgoing,
    Path,
    PortSource,
    Received,
    SocketSource,
    Wire,
    ignore_trouble,
)
from hoststack.link.kernel.next_hop import NextHops
from hoststack.link.xdp.datagrams import XdpDatagrams
from hoststack.link.xdp.rings import Rings, XdpMode, adopt_rings
from hoststack.link.xdp.steered_ports import MOST_QUIC_PORTS, SteeredPorts
from hoststack.link.xdp.steering import Steering
from hoststack.link.xdp.watch import Setup, current_namespace
from hoststack.link.xdp.wire import XdpWire
from hoststack.link.zones import without_zone, zoned

logger = logging.getLogger(__name__)

#: How often the interface is checked; usually a netlink notification arrives first.
_LOOK_EVERY_S: Final = 1.0


class AfXdpLink:
    """One worker's queues of an interface. Implements Link. Use `open`, or `adopt`."""

    name = "af_xdp"
    max_ports: Final = MOST_QUIC_PORTS

    def __init__(
        self,
        steering: Steering | None,
        mode: str,
        ports: PortSource,
        hops: NextHops,
        umem: pyxdp.Umem,
        sockets: list[pyxdp.Socket],
        setup: Setup,
        reopen: Callable[[], Rings] | None = None,
    ) -> None:
        """Send on the first of the sockets. `reopen` is for a link that owns the program."""
        self.steering = steering
        """None if another process owns the program, and while the interface is unusable."""
        self.mode: Final = mode
        self.trouble = ""
        self.on_trouble: Callable[[str], None] = ignore_trouble
        self._setup = setup
        self._reopen = reopen
        self._ports = ports
        self._hops = hops
        self._wire = XdpWire(sockets, umem, hops, self._left_frames_on_ring)
        self._plain = XdpDatagrams(ports, hops, self._wire)
        self._opened: set[Endpoint] = set()
        self._epoll = select.epoll()
        self._left_frames = trio.Event()
        self._counters: Counter[str] = Counter()
        self._use(umem, sockets)

    @classmethod
    def open(cls, interface: str, *, mode: XdpMode = "auto", debug: bool = False) -> AfXdpLink:
        """Open an interface's queues; `debug` checks the ownership of every UMEM frame.

        Raises LinkError: ENODEV, EPERM, EBUSY (another program, another process), EMSGSIZE (an
        MTU that no UMEM frame holds), ENOTSUP (built without libxdp).
        """
        is_available, reason = pyxdp.available()
        if not is_available:
            raise LinkError(errno.ENOTSUP, reason)
        hops = NextHops(interface)

        def open_rings() -> Rings:
            return Rings.open(interface, hops.interface.mtu_bytes, mode, debug=debug)

        try:
            rings = open_rings()
        except BaseException:
            hops.close()
            raise
        steering = rings.steering
        ports = SteeredPorts(steering, hops.interface.ifindex)
        return cls(
            steering, steering.mode, ports, hops, rings.umem, rings.sockets, rings.setup, open_rings
        )

    @classmethod
    def adopt(cls, description: dict[str, Any], fds: Sequence[int], ports: PortSource) -> AfXdpLink:
        """Make a worker's link from what SharedAfXdp (link/xdp/shared.py) handed over.

        The link owns the descriptors from then on. It needs no privilege: `ports` does what needs
        one. Raises LinkError.
        """
        hops = NextHops(description["interface"], use_neighbour=ports.use_neighbour)
        try:
            umem, sockets = adopt_rings(description, fds)
        except BaseException:
            hops.close()
            raise
        ifindex, namespace = hops.interface.ifindex, current_namespace()
        setup = Setup(description["interface"], ifindex, len(sockets), None, namespace)
        return cls(None, description["mode"], ports, hops, umem, sockets, setup)

    def adopt_again(self, description: dict[str, Any], fds: Sequence[int]) -> None:
        """Continue with what SharedAfXdp has set up again; see `adopt`. Raises LinkError."""
        umem, sockets = adopt_rings(description, fds)
        if not self.trouble:
            self._lose("the steering program was loaded anew")
        self._hops.take_again(self._setup.interface)
        ifindex = self._hops.interface.ifindex
        setup = self._setup._replace(ifindex=ifindex, queues=len(sockets))
        self._go_on(umem, sockets, setup)

    def _use(self, umem: pyxdp.Umem, sockets: list[pyxdp.Socket]) -> None:
        self._umem = umem
        self._sockets = sockets
        self._tx = sockets[0]
        for socket in sockets:
            self._epoll.register(socket.fd, select.EPOLLIN)

    # --- ports and paths ---

    def open_port(self, endpoint: Endpoint) -> Endpoint:
        """See Link."""
        if self.trouble:
            raise LinkError(errno.ENODEV, self.trouble)
        opened, _ = self._ports.open_port(endpoint)
        self._opened.add(opened)
        return opened

    def close_port(self, endpoint: Endpoint) -> None:
        """See Link."""
        if endpoint in self._opened:
            self._opened.discard(endpoint)
            self._ports.close_port(endpoint)

    async def connect_path(self, local_port: int, remote: Endpoint) -> Path:
        """See Link."""
        if self.trouble:
            raise LinkError(errno.ENODEV, self.trouble)
        return await self._wire.connect(local_port, remote)

    def path_from(self, local: Endpoint, remote: Endpoint) -> Path:
        """See Link."""
        return self._wire.path(local, remote)

    def local_endpoint_for(self, remote: Endpoint) -> Endpoint:
        """See Link."""
        source = self._hops.find(without_zone(remote.host)).source
        return Endpoint(zoned(source, self._hops.interface.ifindex), 0)

    def max_datagram_bytes(self, path: Path) -> int:
        """See Link."""
        self._wire.update()
        return self._wire.path_bytes(path)

    def max_datagram_bytes_of(self, local: Endpoint) -> int:
        """See Link; an unspecified address means the interface's here."""
        return self._wire.bytes_from(local)

    @property
    def interface_name(self) -> str:
        """See Link."""
        return self._hops.interface.name

    @property
    def sockets(self) -> SocketSource:
        """See Link."""
        return self._plain

    def datagrams(self) -> DatagramWay:
        """See Link."""
        return self._plain

    # --- bursts ---

    def wire(self) -> Wire:
        """See Link."""
        return self._wire

    def _left_frames_on_ring(self) -> None:
        self._left_frames.set()

    def receive(self, budget: int = BURST) -> list[Received]:
        """See Link."""
        self._wire.before_turn(0)
        return self._wire.receive(budget)

    def send(self, burst: Sequence[Outgoing]) -> int:
        """See Link."""
        return self._wire.send(burst)

    # --- waiting, and the rest ---

    def busy_poll(self, microseconds: int) -> str:
        """See Link; generic mode has no driver to poll."""
        try:
            for socket in self._sockets:
                socket.busy_poll(microseconds, BURST)
        except pyxdp.PyxdpError as error:
            return f"the driver is not busy-polled: {error.strerror}"
        return ""

    async def wait_readable(self) -> None:
        """See Link."""
        await trio.lowlevel.wait_readable(self._epoll.fileno())

    async def wait_writable(self) -> None:
        """See Link."""
        if self.trouble:
            await self.wait_readable()
            return
        # Not on the socket itself: `_kick_again` may be waiting for it.
        self._epoll.modify(self._tx.fd, select.EPOLLIN | select.EPOLLOUT)
        try:
            await trio.lowlevel.wait_readable(self._epoll.fileno())
        finally:
            if not self.trouble:
                self._epoll.modify(self._tx.fd, select.EPOLLIN)

    async def run(self) -> None:
        """See Link: follow routes and neighbours, and send the frames that a kick left."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._hops.run)
            nursery.start_soon(self._kick_again)
            nursery.start_soon(self._watch)

    # --- an interface that disappears and returns ---

    async def _watch(self) -> None:
        told = ""
        while True:
            with trio.move_on_after(_LOOK_EVERY_S):
                await self._hops.interface_changed.wait()
            if not self.trouble:
                reason = self._hops.gone or self._setup.trouble()
                if reason:
                    self._lose(reason)
                continue
            if self._reopen is None:
                continue  # the process that owns the program calls `adopt_again`
            try:
                self._take_again(self._reopen)
            except LinkError as error:
                if error.errno != errno.ENODEV and error.strerror != told:
                    told = error.strerror or ""
                    logger.warning("%s can't be used again yet: %s", self._setup.interface, told)

    def _lose(self, reason: str) -> None:
        """Stop using the interface: log why, close the sockets and report the trouble."""
        logger.error("AF_XDP: %s", reason)
        self.trouble = reason
        self._wire.detach()
        trio.lowlevel.notify_closing(self._tx.fd)
        for socket in self._sockets:
            self._epoll.unregister(socket.fd)
        if self.steering is not None:
            assert isinstance(self._ports, SteeredPorts)
            self._ports.let_go()
            self.steering.close()
            self.steering = None
        self._umem.close()
        self.on_trouble(reason)

    def _take_again(self, reopen: Callable[[], Rings]) -> None:
        """Open the interface again; raises LinkError while it is missing or unusable."""
        assert isinstance(self._ports, SteeredPorts)
        self._hops.take_again(self._setup.interface)
        rings = reopen()
        try:
            self._ports.move(rings.steering, rings.setup.ifindex)
        except BaseException:
            rings.steering.close()
            rings.umem.close()
            raise
        self.steering = rings.steering
        self._go_on(rings.umem, rings.sockets, rings.setup)

    def _go_on(self, umem: pyxdp.Umem, sockets: list[pyxdp.Socket], setup: Setup) -> None:
        self._setup = setup
        self._use(umem, sockets)
        self._wire.attach(sockets, umem)
        self.trouble = ""
        logger.warning("AF_XDP: %s is back and in use again", self._setup.interface)

    async def _kick_again(self) -> None:
        while True:
            await self._left_frames.wait()
            self._left_frames = trio.Event()
            if self.trouble:
                continue
            try:
                await trio.lowlevel.wait_writable(self._tx.fd)
                self._tx.kick()
            except trio.ClosedResourceError:
                continue
            except pyxdp.PyxdpError as error:
                self._counters[f"tx_{errno.errorcode.get(error.errno or 0, 'error').lower()}"] += 1
            if self._tx.left_frames:
                self._left_frames.set()

    def statistics(self) -> dict[str, int]:
        """See Link; also the sockets' counters ("xsk_"), and the program's ("xdp_") where this
        link owns it."""
        counters = dict(self._wire.statistics())
        for name, value in self._counters.items():
            counters[name] = counters.get(name, 0) + value
        for socket in () if self.trouble else self._sockets:
            for name, value in socket.statistics()._asdict().items():
                counters[f"xsk_{name}"] = counters.get(f"xsk_{name}", 0) + value
        if self.steering is not None:
            for name, value in self.steering.counters().items():
                counters[f"xdp_{name}"] = value
        return counters

    def close(self) -> None:
        """See Link."""
        for endpoint in list(self._opened):
            self.close_port(endpoint)
        self._wire.close()
        # Detach the program first, so that it redirects nothing to closed sockets.
        if self.steering is not None:
            self.steering.close()
        self._epoll.close()
        self._umem.close()
        self._hops.close()

"""A network in memory: hosts that exchange datagrams within one trio run, impaired if asked to.

Its impairments are drawn from one seed and timed by trio's clock, so under a MockClock that jumps
every run is the same.
"""

from __future__ import annotations

import errno
import heapq
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from itertools import count
from typing import Final

import trio

from hoststack.link.base import (
    BURST,
    Endpoint,
    LinkError,
    Outgoing,
    Path,
    Received,
    SocketSource,
    ignore_trouble,
)
from hoststack.link.kernel.sockets import OwnSockets

#: Most datagrams queued for one host; like any queue in a network it drops the rest.
_QUEUE_DATAGRAMS: Final = 65536

#: By how much a reordered datagram is late.
_REORDER_DELAY_S: Final = 0.01

#: Paths in the table; a forged source makes a new one.
_MAX_PATHS: Final = 16384

_FIRST_FREE_PORT: Final = 49152  # RFC 6335 section 6
_HEADER_BYTES: Final = {4: 28, 6: 48}  # IP and UDP


@dataclass
class Impairments:
    """Impairments of a network: probabilities from 0 to 1. May change at any time."""

    loss: float = 0.0
    reorder: float = 0.0
    duplicate: float = 0.0
    corrupt: float = 0.0
    """Flip one bit of the datagram."""
    delay_s: float = 0.0

    @property
    def is_none(self) -> bool:
        """Return whether datagrams arrive at once and unchanged."""
        return not (self.loss or self.reorder or self.duplicate or self.corrupt or self.delay_s)


class MemoryNetwork:
    """Hosts that reach each other; `link(host)` adds one."""

    def __init__(
        self,
        seed: int = 0,
        *,
        loss: float = 0.0,
        reorder: float = 0.0,
        duplicate: float = 0.0,
        corrupt: float = 0.0,
        delay_s: float = 0.0,
        mtu_bytes: int = 1500,
    ) -> None:
        self.impairments = Impairments(loss, reorder, duplicate, corrupt, delay_s)
        self.mtu_bytes = mtu_bytes
        self._random = random.Random(seed)
        self._links: dict[str, MemoryLink] = {}
        self._order = count()

    def link(self, host: str) -> MemoryLink:
        """Add a host with a numeric address; raises ValueError if the network has it already."""
        host = str(ip_address(host))
        if host in self._links:
            raise ValueError(f"{host} is in this network already")
        link = self._links[host] = MemoryLink(self, host)
        return link

    def _reaches(self, host: str) -> bool:
        return host in self._links

    def _remove(self, host: str) -> None:
        self._links.pop(host, None)

    def _carry(self, data: bytes, path: Path) -> None:
        receiver = self._links.get(path.remote.host)
        if receiver is None:
            return
        now_s = trio.current_time()
        if self.impairments.is_none:
            receiver._arrive(now_s, next(self._order), data, path)
            return
        impairments, rng = self.impairments, self._random
        if rng.random() < impairments.loss:
            return
        copies = 2 if rng.random() < impairments.duplicate else 1
        for _ in range(copies):
            arrival_s = now_s + impairments.delay_s
            if rng.random() < impairments.reorder:
                arrival_s += rng.random() * _REORDER_DELAY_S
            copy = self._corrupted(data) if rng.random() < impairments.corrupt else data
            receiver._arrive(arrival_s, next(self._order), copy, path)

    def _corrupted(self, data: bytes) -> bytes:
        if not data:
            return data
        copy = bytearray(data)
        copy[self._random.randrange(len(copy))] ^= 1 << self._random.randrange(8)
        return bytes(copy)


class MemoryLink:
    """One host of a MemoryNetwork. Implements Link."""

    name = "memory"
    interface_name: Final = None
    max_ports: Final = 1 << 16

    def __init__(self, network: MemoryNetwork, host: str) -> None:
        self.trouble = ""
        self.on_trouble: Callable[[str], None] = ignore_trouble
        self._network = network
        self._host = host
        self._ports: dict[int, Endpoint] = {}
        self._paths: dict[tuple[Endpoint, Endpoint], Path] = {}
        self._queue: list[tuple[float, int, bytes, Path]] = []
        self._arrived = trio.Event()
        self._counters: Counter[str] = Counter()

    @property
    def sockets(self) -> SocketSource:
        """See Link; these are the kernel's, not part of the network in memory."""
        return OwnSockets()

    def datagrams(self) -> None:
        """See Link."""

    # --- ports and paths ---

    def open_port(self, endpoint: Endpoint) -> Endpoint:
        """See Link."""
        address = ip_address(endpoint.host)
        if str(address) != self._host and not address.is_unspecified:
            raise LinkError(
                errno.EADDRNOTAVAIL, f"{endpoint.host} is not this host's address, {self._host} is"
            )
        port = endpoint.port or next(p for p in count(_FIRST_FREE_PORT) if p not in self._ports)
        if port in self._ports:
            raise LinkError(errno.EADDRINUSE, f"port {port} of {self._host} is in use")
        opened = self._ports[port] = Endpoint(endpoint.host, port)
        return opened

    def close_port(self, endpoint: Endpoint) -> None:
        """See Link."""
        if self._ports.get(endpoint.port) == endpoint:
            del self._ports[endpoint.port]

    async def connect_path(self, local_port: int, remote: Endpoint) -> Path:
        """See Link."""
        await trio.lowlevel.checkpoint()
        local = self.local_endpoint_for(remote)
        return self._path(Endpoint(local.host, local_port), remote)

    def path_from(self, local: Endpoint, remote: Endpoint) -> Path:
        """See Link."""
        self.local_endpoint_for(remote)
        if local.host != self._host or local.port not in self._ports:
            raise LinkError(errno.EADDRNOTAVAIL, f"{local.host} port {local.port} is not open")
        return self._path(local, remote)

    def local_endpoint_for(self, remote: Endpoint) -> Endpoint:
        """See Link."""
        if not self._network._reaches(remote.host):
            raise LinkError(errno.ENETUNREACH, f"no host {remote.host} in this network")
        return Endpoint(self._host, 0)

    def max_datagram_bytes(self, path: Path) -> int:
        """See Link."""
        return self._network.mtu_bytes - _HEADER_BYTES[ip_address(path.remote.host).version]

    def max_datagram_bytes_of(self, local: Endpoint) -> int:
        """See Link."""
        return self._network.mtu_bytes - _HEADER_BYTES[ip_address(local.host).version]

    def _path(self, local: Endpoint, remote: Endpoint) -> Path:
        path = self._paths.get((local, remote))
        if path is None:
            if len(self._paths) >= _MAX_PATHS:
                self._paths.clear()
            path = self._paths[local, remote] = Path(local, remote)
        return path

    # --- bursts ---

    def wire(self) -> None:
        """See Link; there is no implementation in C."""

    def receive(self, budget: int = BURST) -> list[Received]:
        """See Link."""
        received: list[Received] = []
        now_s = trio.current_time()
        queue = self._queue
        while queue and queue[0][0] <= now_s and len(received) < budget:
            _, _, data, path = heapq.heappop(queue)
            received.append((data, path, 0))
            self._counters["rx_bytes"] += len(data)
        self._counters["rx_datagrams"] += len(received)
        return received

    def send(self, burst: Sequence[Outgoing]) -> int:
        """See Link; a network in memory always accepts everything."""
        for data, path in burst:
            if len(data) > self.max_datagram_bytes(path):
                self._counters["tx_too_large"] += 1
                continue
            self._counters["tx_datagrams"] += 1
            self._counters["tx_bytes"] += len(data)
            self._network._carry(data, path)
        return len(burst)

    def _arrive(self, arrival_s: float, order: int, data: bytes, path: Path) -> None:
        """Receive a datagram that another host sent on `path`."""
        if path.remote.port not in self._ports:
            self._counters["rx_closed_port"] += 1
        elif len(self._queue) >= _QUEUE_DATAGRAMS:
            self._counters["rx_queue_full"] += 1
        else:
            own = self._path(path.remote, path.local)
            heapq.heappush(self._queue, (arrival_s, order, data, own))
            self._arrived.set()

    # --- waiting, and the rest ---

    def busy_poll(self, microseconds: int) -> str:
        """See Link."""
        return "a network in memory has no driver"

    async def wait_readable(self) -> None:
        """See Link."""
        while True:
            due_s = self._queue[0][0] if self._queue else math.inf
            if due_s <= trio.current_time():
                await trio.lowlevel.checkpoint()
                return
            self._arrived = trio.Event()
            with trio.move_on_at(due_s):
                await self._arrived.wait()

    async def wait_writable(self) -> None:
        """See Link."""
        await trio.lowlevel.checkpoint()

    async def run(self) -> None:
        """See Link; a network in memory needs no upkeep."""
        await trio.sleep_forever()

    def statistics(self) -> dict[str, int]:
        """See Link."""
        names = ("rx_datagrams", "rx_bytes", "tx_datagrams", "tx_bytes")
        return {name: self._counters[name] for name in names} | dict(self._counters)

    def close(self) -> None:
        """See Link."""
        self._network._remove(self._host)
        self._queue.clear()

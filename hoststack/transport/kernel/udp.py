"""UDP endpoints: FIFOs of messages, over a port (transport/kernel/udp_port.py).

There are three kinds of endpoints. A connected one has one peer. A listener creates an endpoint for
each peer that sends to it; it ends after `UdpConfig.idle_timeout_s` of silence, since UDP has no
close and the source address may be forged. An unconnected one has any peer, so each of its messages
begins with the peer's address (`pack_address`). Datagrams without room in a FIFO are dropped.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Iterable
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final

from hoststack.boundary.application import Application
from hoststack.boundary.protocols import UdpConfig
from hoststack.link.zones import without_zone, zoned
from hoststack.native.memory.fifo import Fifo
from hoststack.quic.seam import ConnectionIds, Handshake

if TYPE_CHECKING:
    from hoststack.transport.kernel.udp_peers import UdpPeers
    from hoststack.transport.kernel.udp_port import UdpPort

Address = tuple[str, int]

#: RFC 768: the largest payload that IPv4's length field allows.
MAX_DATAGRAM_BYTES: Final = 65507
#: The address in front of a message: an IPv6 address (IPv4 is mapped) and the port.
ADDRESS_BYTES: Final = 18
_MAPPED: Final = bytes(10) + b"\xff\xff"


def block_bytes_of(config: UdpConfig) -> int:
    """Return the memory of an endpoint's two FIFOs."""
    return Fifo.block_bytes(config.rx_fifo_bytes) + Fifo.block_bytes(config.tx_fifo_bytes)


def address_of(name: tuple[Any, ...]) -> Address:
    """Return the address and port of a socket module's address, with the zone if link-local."""
    scope = int(name[3]) if len(name) == 4 else 0
    return zoned(without_zone(str(name[0])), scope), int(name[1])


def pack_address(host: str, port: int) -> bytes:
    """Return the address prefix of an unconnected endpoint's message; raises ValueError."""
    address = ip_address(host)
    packed = address.packed if address.version == 6 else _MAPPED + address.packed
    return packed + port.to_bytes(2, "big")


def unpack_address(message: bytes) -> Address:
    """Return the peer of a message; raises ValueError if it is too short."""
    if len(message) < ADDRESS_BYTES:
        raise ValueError("a message without an address")
    packed = message[:16]
    host = ip_address(packed[12:] if packed.startswith(_MAPPED) else packed)
    return str(host), int.from_bytes(message[16:ADDRESS_BYTES], "big")


class UdpConnection:
    """A UDP endpoint; it is the engine seam's ConnectionContext. `remote` has port 0 if it is
    unconnected."""

    protocol: Final = "udp"
    alpn = None
    handshake = Handshake()

    def __init__(
        self,
        port: UdpPort,
        local: Address,
        remote: Address,
        application: Application,
        config: UdpConfig,
        listener: UdpListener | None = None,
        peers: UdpPeers | None = None,
    ) -> None:
        """Create an endpoint; one of a listener is added to the application's `peers`. Raises
        OSError if the application has no room for its FIFOs."""
        self.session = -1
        self.application = application
        self.config = config
        self.listener = listener
        self.local = local
        self.remote = remote
        rx_bytes, tx_bytes = config.rx_fifo_bytes, config.tx_fifo_bytes
        if not application.has_room_for(rx_bytes, tx_bytes):
            raise OSError(errno.ENOMEM, "the application's FIFOs use all the memory that they may")
        make_fifo = application.make_fifo if peers is None else application.make_peer_fifo
        self.rx: Fifo = make_fifo(rx_bytes)
        self.tx: Fifo = make_fifo(tx_bytes)
        self._peers = peers
        if peers is not None:
            peers.add(self)
        self.is_used = True
        """Whether a datagram was received or sent since UdpPort last reset this."""
        self._port = port
        self._held: deque[tuple[bytes, Address]] = deque()
        self._counts = {
            "rx_datagrams": 0,
            "tx_datagrams": 0,
            "rx_dropped_datagrams": 0,
            "tx_dropped_datagrams": 0,
        }

    @property
    def is_connected(self) -> bool:
        return self.remote[1] != 0

    @property
    def max_datagram_bytes(self) -> int:
        """Most bytes of one message, without its address."""
        own = 0 if self.is_connected else ADDRESS_BYTES
        return min(MAX_DATAGRAM_BYTES, self.tx.max_message_bytes - own)

    def connection_ids(self) -> ConnectionIds:
        """Return no IDs: a UDP endpoint is identified by its addresses."""
        return ConnectionIds()

    def statistics(self) -> dict[str, int | float]:
        """Return the counts of datagrams, including dropped ones."""
        return dict(self._counts)

    def put(self, data: bytes, peer: Address) -> None:
        """Write a received datagram into the rx FIFO."""
        self.is_used = True
        self._counts["rx_datagrams"] += 1
        if self._peers is not None:
            self._peers.heard(self, is_answered=self._counts["tx_datagrams"] > 0)
        message = data if self.is_connected else pack_address(*peer) + data
        if not self.rx.write_message(message):
            self._counts["rx_dropped_datagrams"] += 1

    def take(self, most: int) -> tuple[list[tuple[bytes, Address]], int]:
        """Return the next datagrams to send with their destinations, and the number of messages
        read for them; fewer than `most` means that there are no more."""
        taken: list[tuple[bytes, Address]] = []
        while self._held and len(taken) < most:
            taken.append(self._held.popleft())
        count = len(taken)
        while count < most and (message := self.tx.read_message()) is not None:
            count += 1
            if self.is_connected:
                taken.append((message, self.remote))
                continue
            try:
                taken.append((message[ADDRESS_BYTES:], unpack_address(message)))
            except ValueError:
                self.dropped()
        return taken, count

    def hold(self, taken: Iterable[tuple[bytes, Address]]) -> None:
        """Put back datagrams that could not be sent now; `take` returns them again."""
        self._held.extendleft(reversed(list(taken)))

    def sent(self, count: int = 1) -> None:
        self.is_used = True
        self._counts["tx_datagrams"] += count

    def dropped(self, count: int = 1) -> None:
        """Count datagrams that could not be sent."""
        self._counts["tx_dropped_datagrams"] += count

    def send_ready(self) -> None:
        """Send the messages in the tx FIFO."""
        self._port.send(self)

    def close(self) -> None:
        """Send what is left, and remove the endpoint from its port."""
        self._port.forget(self)

    def left(self) -> None:
        """Remove the endpoint from the application's peers; the port calls this."""
        if self._peers is not None:
            self._peers.remove(self)


class UdpListener:
    """A port that creates an endpoint for each peer; it is the engine seam's ListenerContext."""

    def __init__(self, port: UdpPort, config: UdpConfig) -> None:
        self.session = -1
        self.port = port
        self.config = config

    @property
    def local(self) -> Address:
        return self.port.local

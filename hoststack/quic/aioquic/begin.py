"""Creating a peer's connection, for the aioquic engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from aioquic.quic.packet import QuicProtocolVersion

from hoststack.link.base import Link, Path
from hoststack.quic.aioquic.accept import Admitted
from hoststack.quic.aioquic.connection import HostConnection
from hoststack.quic.seam import EngineOwner

_TYPES_OF_0RTT: Final = {
    int(version).to_bytes(4, "big"): kind
    for version, kind in ((QuicProtocolVersion.VERSION_1, 1), (QuicProtocolVersion.VERSION_2, 2))
}


def accepted_connection(
    admitted: Admitted,
    dcid: bytes,
    path: Path,
    now: float,
    *,
    link: Link,
    new_cid: Callable[[], bytes],
    owner: EngineOwner,
    reset_token: Callable[[bytes], bytes],
) -> HostConnection:
    """Return the connection that a client's first packet to `dcid` starts."""
    listener, tickets = admitted.listener, admitted.listener.tickets
    connection: HostConnection
    options: dict[str, Any] = {}
    if tickets is not None:
        options["session_ticket_handler"] = lambda ticket: tickets.keep(ticket, version(connection))
        options["session_ticket_fetcher"] = lambda label: tickets.take(label, version(connection))
    connection = HostConnection(
        configuration=listener.configuration(link.max_datagram_bytes(path)),
        config=listener.config,
        listener=listener,
        path=path,
        new_cid=new_cid,
        owner=owner,
        reset_token=reset_token,
        original_destination_connection_id=admitted.original_dcid,
        retry_source_connection_id=admitted.retry_scid,
        **options,
    )
    connection.handshake_deadline = now + listener.config.handshake_timeout_s
    connection.initial_dcid = dcid
    return connection


def version(connection: HostConnection) -> int:
    """Return the QUIC version of a connection."""
    assert connection._version is not None, "it has begun"
    return connection._version


def is_known(connection: HostConnection) -> bool:
    """Return whether the application knows of a connection, from an event or by its request."""
    return (
        connection.listener is None
        or connection.is_established
        or connection.handshake.early_data == "pending"
    )


def has_read_hello(connection: HostConnection) -> bool:
    """Return whether a server has the whole of its client's first message."""
    return connection._version_negotiated_compatible


def is_0rtt(data: bytes) -> bool:
    """Return whether a long-header datagram begins with a 0-RTT packet of a supported version: type
    1, in version 2 type 2 (RFC 9000 section 17.2, RFC 9369 section 3.2)."""
    return data[0] >> 4 & 3 == _TYPES_OF_0RTT.get(data[1:5])

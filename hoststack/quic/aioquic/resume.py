"""Session tickets of the aioquic engine: those that servers issue, and those that clients store."""

from __future__ import annotations

import datetime
import json
from collections import OrderedDict
from typing import Any, Final

from aioquic.quic.configuration import QuicConfiguration
from aioquic.tls import CipherSuite, SessionTicket

from hoststack.quic.session_cache import ServerSessions

#: Tickets that a listener remembers; each is some 500 bytes.
_GIVEN: Final = 4096


class GivenTickets:
    """The tickets that a listener has issued. Each is valid for one connection, so that a recorded
    first flight can't be replayed: "single-use tickets" (RFC 8446 section 8.1)."""

    def __init__(self) -> None:
        self._by_label: OrderedDict[bytes, tuple[SessionTicket, int]] = OrderedDict()

    def keep(self, ticket: SessionTicket, version: int) -> None:
        """Store a ticket that is sent to a client, and the connection's version."""
        self._by_label[ticket.ticket] = ticket, version
        if len(self._by_label) > _GIVEN:
            self._by_label.popitem(last=False)

    def take(self, label: bytes, version: int) -> SessionTicket | None:
        """Return and remove a client's ticket, if it was issued on a connection of the same version
        (RFC 9369 section 5)."""
        ticket, of_version = self._by_label.pop(label, (None, 0))
        return ticket if of_version == version else None


def resume(configuration: QuicConfiguration, sessions: ServerSessions) -> dict[str, Any]:
    """Have a connection of ours use what is stored for its server, and store what it learns.

    Returns further arguments of QuicConnection.
    """
    found = sessions.take()
    if found is not None:
        configuration.session_ticket = _decoded(found.session)
    configuration.token = sessions.take_token()

    def keep(ticket: SessionTicket) -> None:
        lifetime_s = (ticket.not_valid_after - ticket.not_valid_before).total_seconds()
        sessions.keep(_encoded(ticket), b"", None, lifetime_s)

    return {"session_ticket_handler": keep, "token_handler": sessions.keep_token}


def _encoded(ticket: SessionTicket) -> bytes:
    fields = {
        "age_add": ticket.age_add,
        "cipher_suite": int(ticket.cipher_suite),
        "not_valid_after": ticket.not_valid_after.timestamp(),
        "not_valid_before": ticket.not_valid_before.timestamp(),
        "resumption_secret": ticket.resumption_secret.hex(),
        "server_name": ticket.server_name,
        "ticket": ticket.ticket.hex(),
    }
    return json.dumps(fields).encode()


def _decoded(data: bytes) -> SessionTicket | None:
    """Decode a ticket; None if it is invalid, which means a full handshake. It never allows early
    data."""
    try:
        fields = json.loads(data)
        return SessionTicket(
            age_add=int(fields["age_add"]),
            cipher_suite=CipherSuite(fields["cipher_suite"]),
            not_valid_after=_time(fields["not_valid_after"]),
            not_valid_before=_time(fields["not_valid_before"]),
            resumption_secret=bytes.fromhex(fields["resumption_secret"]),
            server_name=str(fields["server_name"]),
            ticket=bytes.fromhex(fields["ticket"]),
        )
    except (ValueError, KeyError, TypeError, OverflowError):
        return None


def _time(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)

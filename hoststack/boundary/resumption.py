"""Session tickets and tokens that an application in another process stores and the worker uses.

The application sends what it has stored for a server with its Connect; the worker sends back what
the connection learns. A ticket contains TLS session state that the engine trusts. The worker
therefore seals the tickets that it sends, and ignores tickets without a valid seal.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from typing import Final

from hoststack.boundary import messages as m
from hoststack.quic.session_cache import ServerSessions, Ticket

_SEAL_BYTES: Final = 32
#: Larger tickets are not sent, since one must fit into a message.
_MOST_TICKET_BYTES: Final = 1 << 15


class TicketSeal:
    """Seals tickets with a key; workers with the same secret accept each other's tickets."""

    def __init__(self, secret: bytes) -> None:
        self._key = hashlib.blake2b(b"hoststack tickets", key=secret[:64]).digest()

    def close(self, ticket: Ticket) -> Ticket:
        """Return the ticket with its seal."""
        return ticket._replace(session=self._mac(ticket) + ticket.session)

    def open(self, ticket: Ticket) -> Ticket | None:
        """Return the ticket that `close` sealed; None if the seal is invalid."""
        seal, session = ticket.session[:_SEAL_BYTES], ticket.session[_SEAL_BYTES:]
        opened = ticket._replace(session=session)
        return opened if hmac.compare_digest(seal, self._mac(opened)) else None

    def _mac(self, ticket: Ticket) -> bytes:
        mac = hmac.new(self._key, digestmod=hashlib.sha256)
        for part in (ticket.session, ticket.parameters, (ticket.alpn or "").encode()):
            mac.update(len(part).to_bytes(4) + part)
        return mac.digest()


#: Most tickets and tokens that one connection reports. A server may send any number.
_MOST_LEARNED: Final = 16


class RelayedSessions(ServerSessions):
    """Session cache of one connection for an application in another process: starts with the
    contents of its Connect, and sends new tickets and tokens back."""

    def __init__(self, known: m.Known, seal: TicketSeal, tell: Callable[[m.Known], None]) -> None:
        ticket = seal.open(known.ticket) if known.ticket is not None else None
        super().__init__([ticket] if ticket else [], [known.token] if known.token else [])
        self._seal = seal
        self._tell_always = tell
        self._left = _MOST_LEARNED

    def _tell(self, known: m.Known) -> None:
        if self._left:
            self._left -= 1
            self._tell_always(known)

    def keep(self, session: bytes, parameters: bytes, alpn: str | None, lifetime_s: float) -> None:
        kept = ServerSessions()
        kept.keep(session, parameters, alpn, lifetime_s)
        ticket = kept.take()
        if ticket is not None and len(session) + len(parameters) <= _MOST_TICKET_BYTES:
            self._tell(m.Known(self._seal.close(ticket), b""))

    def keep_token(self, token: bytes) -> None:
        self._tell(m.Known(None, token))

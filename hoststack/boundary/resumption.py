"""Session tickets and tokens of an application in another process: kept there, used by the worker.

What the application knows of a server goes along with its Connect, and what the connection learns
comes back. A ticket carries the state of a TLS session, which the engine takes as its own: so the
worker seals those that it gives away, and takes none that is not sealed.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from typing import Final

from hoststack.boundary import messages as m
from hoststack.quic.session_cache import ServerSessions, Ticket

_SEAL_BYTES: Final = 32
#: Larger ones are not given away: a message has to hold one.
_MOST_TICKET_BYTES: Final = 1 << 15


class TicketSeal:
    """Seals tickets with a key; workers with the same secret take each other's."""

    def __init__(self, secret: bytes) -> None:
        self._key = hashlib.blake2b(b"hoststack tickets", key=secret[:64]).digest()

    def close(self, ticket: Ticket) -> Ticket:
        """The ticket, sealed."""
        return ticket._replace(session=self._mac(ticket) + ticket.session)

    def open(self, ticket: Ticket) -> Ticket | None:
        """What `close` was given; None if it is something else."""
        seal, session = ticket.session[:_SEAL_BYTES], ticket.session[_SEAL_BYTES:]
        opened = ticket._replace(session=session)
        return opened if hmac.compare_digest(seal, self._mac(opened)) else None

    def _mac(self, ticket: Ticket) -> bytes:
        mac = hmac.new(self._key, digestmod=hashlib.sha256)
        for part in (ticket.session, ticket.parameters, (ticket.alpn or "").encode()):
            mac.update(len(part).to_bytes(4) + part)
        return mac.digest()


#: Tickets and tokens that one connection learns: a server may send any number.
_MOST_LEARNED: Final = 16


class RelayedSessions(ServerSessions):
    """What an application in another process gave along for one connection to a server, and the way
    back for what is learned there."""

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

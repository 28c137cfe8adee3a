"""A client's cache of session tickets, and of tokens for first packets.

A ticket lets the next connection skip the certificates (RFC 8446 section 2.2), and with
`QuicConfig.early_data` send before the handshake is complete; a token avoids a Retry (RFC 9000
section 8.1.3). Each is used once: "Clients SHOULD NOT reuse a ticket for multiple connections" (RFC
8446 appendix C.4), because observers could link these connections.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import time
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from cryptography.hazmat.primitives import serialization

if TYPE_CHECKING:
    from hoststack.quic.tls import TlsConfig

#: Limit of one server; a connection that opens others at the same time needs as many.
_TICKETS: Final = 8
_TOKENS: Final = 8
#: RFC 8446 section 4.6.1: "Clients MUST NOT cache tickets for longer than 7 days".
_LONGEST_S: Final = 7 * 24 * 3600
_FORMAT: Final = 1


class Ticket(NamedTuple):
    """A session to resume, in the format of its engine."""

    session: bytes
    parameters: bytes
    """The server's transport parameters for 0-RTT; empty if it does not allow that."""
    alpn: str | None
    expires: float
    """Expiry, in seconds since 1970."""


class ServerSessions:
    """One server's part of a cache."""

    def __init__(self, tickets: Iterable[Ticket] = (), tokens: Iterable[bytes] = ()) -> None:
        self.tickets = deque(tickets, maxlen=_TICKETS)
        self.tokens = deque(tokens, maxlen=_TOKENS)

    def keep(self, session: bytes, parameters: bytes, alpn: str | None, lifetime_s: float) -> None:
        """Store a ticket for the server's lifetime; only the newest ones are kept."""
        expires = time.time() + min(lifetime_s, _LONGEST_S)
        self.tickets.append(Ticket(session, parameters, alpn, expires))

    def take(self) -> Ticket | None:
        """Return and remove the newest ticket that has not expired."""
        now = time.time()
        while self.tickets:
            ticket = self.tickets.pop()
            if ticket.expires > now:
                return ticket
        return None

    def keep_token(self, token: bytes) -> None:
        """Store a token of a NEW_TOKEN frame."""
        self.tokens.append(token)

    def take_token(self) -> bytes:
        """Return and remove the newest token; empty if there is none."""
        return self.tokens.pop() if self.tokens else b""


class SessionCache:
    """Tickets and tokens of the `max_servers` servers used last; for TlsConfig.

    Tickets from connections with other trust settings or ciphers are not used: a resumed connection
    does not check the server's certificate again, and early data are encrypted as the session was.
    """

    def __init__(self, max_servers: int = 256) -> None:
        self._max_servers = max_servers
        self._servers: OrderedDict[str, ServerSessions] = OrderedDict()

    def __len__(self) -> int:
        """The number of servers in the cache."""
        return sum(bool(s.tickets or s.tokens) for s in self._servers.values())

    def of(
        self,
        engine: str,
        server_name: str,
        remote: tuple[str, int],
        tls: TlsConfig,
        alpn: Sequence[str],
        version: int,
    ) -> ServerSessions:
        """Return the part of a server, for one engine with this configuration. It is separate for
        each version of QUIC (RFC 9369 section 5)."""
        own = [c.public_bytes(serialization.Encoding.DER).hex() for c in tls.chain]
        trust = [tls.verify, (tls.ca_pem or b"").decode("latin-1"), own]
        text = json.dumps([engine, server_name, *remote, list(alpn), trust, tls.ciphers, version])
        key = hashlib.sha256(text.encode()).hexdigest()
        found = self._servers.pop(key, None) or ServerSessions()
        self._servers[key] = found
        while len(self._servers) > self._max_servers:
            self._servers.popitem(last=False)
        return found

    def save(self, path: str | Path) -> None:
        """Write everything to a file that only its owner may read: tickets are secrets. Raises
        OSError."""
        servers = {
            key: {
                "tickets": [
                    [_text(t.session), _text(t.parameters), t.alpn, t.expires]
                    for t in server.tickets
                ],
                "tokens": [_text(token) for token in server.tokens],
            }
            for key, server in self._servers.items()
        }
        target = Path(path)
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(fd, "w", encoding="ascii") as file:
                json.dump({"format": _FORMAT, "servers": servers}, file)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | Path, max_servers: int = 256) -> SessionCache:
        """Read what `save` wrote; returns an empty cache if there is no such file.

        Raises OSError, and ValueError for a file with other contents.
        """
        cache = cls(max_servers)
        try:
            text = Path(path).read_text(encoding="ascii")
        except FileNotFoundError:
            return cache
        except UnicodeDecodeError:
            text = ""
        try:
            saved = json.loads(text)
            if saved["format"] != _FORMAT:
                raise ValueError
            for key, server in saved["servers"].items():
                cache._servers[str(key)] = _server(server)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(
                f"{str(path)!r} is not a file of saved sessions: remove it, or name another"
            ) from None
        return cache


def _server(saved: dict[str, Any]) -> ServerSessions:
    tickets = [
        Ticket(_bytes(session), _bytes(parameters), alpn and str(alpn), float(expires))
        for session, parameters, alpn, expires in saved["tickets"]
    ]
    return ServerSessions(tickets, [_bytes(token) for token in saved["tokens"]])


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _bytes(text: str) -> bytes:
    return base64.b64decode(text, validate=True)

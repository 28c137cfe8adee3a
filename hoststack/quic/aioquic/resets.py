"""Stateless resets for the aioquic engine, which aioquic does not support (RFC 9000 section 10.3).

The token of a connection ID is derived from it and a secret that workers share, so the replacement
of a dead worker can reset the dead worker's connections.
"""

from __future__ import annotations

import hmac
import os
from typing import TYPE_CHECKING, Final

from hoststack.link.base import Path
from hoststack.quic.cid import CID_BYTES

if TYPE_CHECKING:
    from hoststack.quic.aioquic.connection import HostConnection

_TOKEN_BYTES: Final = 16
#: Five unpredictable bytes and the token.
_LEAST_BYTES: Final = 5 + _TOKEN_BYTES
#: The size of a packet that is not suspiciously short.
_MOST_BYTES: Final = 43
_PER_SECOND: Final = 64
#: Tokens compared in a second: anyone can send datagrams that look like resets.
_COMPARED_PER_SECOND: Final = 100_000


class StatelessResets:
    """Makes stateless resets, and finds the connections of received ones."""

    def __init__(self, secret: bytes, cid_prefix: bytes) -> None:
        """Make resets for connection IDs with this prefix."""
        self._secret = secret
        self._prefix = cid_prefix
        self._budget = _PER_SECOND
        self._to_compare = _COMPARED_PER_SECOND
        self._filled_at = 0.0
        self._clients: dict[tuple[str, int], dict[HostConnection, None]] = {}
        """Connections of ours by the server's address. A client need not issue tokens at all."""

    def token(self, cid: bytes) -> bytes:
        """Return the token of a connection ID that we issue."""
        return hmac.digest(self._secret, b"stateless reset " + cid, "sha256")[:_TOKEN_BYTES]

    def answer(self, data: bytes, now: float) -> bytes | None:
        """Return the reset for a short-header packet of a past connection, if the connection ID was
        ours, and this second's limit is not exceeded."""
        # RFC 9000 section 10.3.3: "An endpoint MUST ensure that every Stateless Reset that it sends
        # is smaller than the packet that triggered it, unless it maintains state sufficient to
        # prevent looping."
        size = min(len(data) - 1, _MOST_BYTES)
        if size < _LEAST_BYTES or not data.startswith(self._prefix, 1):
            return None
        self._fill(now)
        if not self._budget:
            return None
        self._budget -= 1
        unpredictable = os.urandom(size - _TOKEN_BYTES)
        first = 0x40 | unpredictable[0] & 0x3F  # a short header's fixed bits
        return bytes((first,)) + unpredictable[1:] + self.token(data[1 : 1 + CID_BYTES])

    def _fill(self, now: float) -> None:
        if now - self._filled_at >= 1:
            self._filled_at = now
            self._budget, self._to_compare = _PER_SECOND, _COMPARED_PER_SECOND

    # --- of peers ----------------------------------------------------------------------------

    def add(self, connection: HostConnection, path: Path) -> None:
        """Accept resets for a connection of ours."""
        self._clients.setdefault(path.remote, {})[connection] = None

    def remove(self, connection: HostConnection, path: Path) -> None:
        """Remove a connection. Idempotent."""
        others = self._clients.get(path.remote, {})
        others.pop(connection, None)
        if not others:
            self._clients.pop(path.remote, None)

    def find(self, data: bytes, path: Path, now: float) -> HostConnection | None:
        """Return the connection that a datagram with an unknown connection ID resets."""
        # RFC 9000 section 10.3.1: "the endpoint [...] MUST NOT check for any stateless reset tokens
        # associated with connection IDs it has not used or for connection IDs that have been
        # retired."
        if len(data) < _LEAST_BYTES:
            return None
        self._fill(now)
        candidates = self._clients.get(path.remote, {})
        if len(candidates) > self._to_compare:
            return None
        self._to_compare -= len(candidates)
        token = data[-_TOKEN_BYTES:]
        for connection in candidates:
            if hmac.compare_digest(connection.peer_reset_token, token):
                return connection
        return None

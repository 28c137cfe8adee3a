"""Checking a peer's TLS messages before aioquic reads them.

aioquic merges the CRYPTO streams of all encryption levels, and accepts any message whose order is
right. QUIC defines at which level each message comes, and which never do; the native engine has the
same table (hoststack/native/quic/handshake.c).
"""

from __future__ import annotations

from typing import Final

from aioquic._buffer import Buffer, BufferReadError
from aioquic.quic.connection import QuicConnectionError
from aioquic.quic.packet import QuicErrorCode, QuicFrameType
from aioquic.tls import (
    AlertDecodeError,
    AlertUnexpectedMessage,
    Epoch,
    HandshakeType,
)

_HEADER_BYTES: Final = 4
#: aioquic buffers a message until it is complete, and a message may declare 16 MiB.
_MOST_MESSAGE_BYTES: Final = 65536

#: What a peer sends at each level; aioquic enforces their order (RFC 8446 section 2).
_OF_CLIENTS: Final = {
    Epoch.INITIAL: {HandshakeType.CLIENT_HELLO},
    Epoch.HANDSHAKE: {
        HandshakeType.CERTIFICATE,
        HandshakeType.CERTIFICATE_VERIFY,
        HandshakeType.FINISHED,
    },
}
_OF_SERVERS: Final = {
    Epoch.INITIAL: {HandshakeType.SERVER_HELLO},
    Epoch.HANDSHAKE: {
        HandshakeType.ENCRYPTED_EXTENSIONS,
        HandshakeType.CERTIFICATE_REQUEST,
        HandshakeType.CERTIFICATE,
        HandshakeType.CERTIFICATE_VERIFY,
        HandshakeType.FINISHED,
    },
    Epoch.ONE_RTT: {HandshakeType.NEW_SESSION_TICKET},
}


class MessageGuard:
    """Follows the messages in CRYPTO frames."""

    def __init__(self, *, peer_is_server: bool) -> None:
        self._allowed = _OF_SERVERS if peer_is_server else _OF_CLIENTS
        self._peer_is_server = peer_is_server
        self._header = b""
        self._left = 0
        self._epoch = Epoch.INITIAL

    def look(self, epoch: Epoch, data: bytes) -> None:
        """Check the next bytes of a level.

        Raises AlertUnexpectedMessage (RFC 9001 section 6, RFC 8446 section 5.1), AlertDecodeError
        for a message that is too large, and QuicConnectionError for a CertificateRequest after the
        handshake (RFC 9001 section 4.4).
        """
        at = 0
        while at < len(data):
            if not self._header:
                self._begin(epoch, data[at])
            elif epoch is not self._epoch:
                raise AlertUnexpectedMessage("the peer changed keys within a TLS message")
            if len(self._header) < _HEADER_BYTES:
                taken = data[at : at + _HEADER_BYTES - len(self._header)]
                self._header += taken
                at += len(taken)
                if len(self._header) < _HEADER_BYTES:
                    return
                self._left = int.from_bytes(self._header[1:], "big")
                if self._left > _MOST_MESSAGE_BYTES - _HEADER_BYTES:
                    raise AlertDecodeError("a TLS message is too large")
            skipped = min(self._left, len(data) - at)
            self._left -= skipped
            at += skipped
            if not self._left:
                self._header = b""

    def _begin(self, epoch: Epoch, kind: int) -> None:
        if kind in self._allowed.get(epoch, ()):
            self._epoch = epoch
            return
        is_late = self._peer_is_server and epoch is Epoch.ONE_RTT
        if is_late and kind == HandshakeType.CERTIFICATE_REQUEST:
            raise QuicConnectionError(
                QuicErrorCode.PROTOCOL_VIOLATION,
                QuicFrameType.CRYPTO,
                "the server asked for a certificate after the handshake",
            )
        raise AlertUnexpectedMessage(f"a TLS message of type {kind} is not expected here")


def has_duplicate_parameter(data: bytes) -> bool:
    """Return whether transport parameters contain a duplicate (RFC 9000 section 7.4). aioquic
    detects malformed ones."""
    buf = Buffer(data=data)
    seen: set[int] = set()
    try:
        while not buf.eof():
            name = buf.pull_uint_var()
            if name in seen:
                return True
            seen.add(name)
            buf.pull_bytes(buf.pull_uint_var())
    except BufferReadError:
        pass
    return False

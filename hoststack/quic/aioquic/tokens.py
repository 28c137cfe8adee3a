"""Retry for the aioquic engine (RFC 9000 section 8.1.2): clients validate their address.

No state is stored for a client in the meantime: the token returns what the server has to know. It
is encrypted with a key that is derived from the secret which workers share, so that each can read
the others' tokens. It is valid for one address, connection ID and version, for 10 seconds.
"""

from __future__ import annotations

import hmac
import os
import time
from ipaddress import ip_address
from typing import Final

from aioquic.quic.crypto import CryptoPair
from aioquic.quic.packet import QuicErrorCode, QuicPacketType, encode_long_header_first_byte
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from hoststack.link.base import Endpoint

#: First byte of our tokens, which distinguishes them from NEW_TOKEN tokens of another engine.
_MARK: Final = b"\xb8"
_NONCE_BYTES: Final = 12
_TIME_BYTES: Final = 8
_GOOD_FOR_NS: Final = 10_000_000_000


class RetryTokens:
    """Makes and reads tokens."""

    def __init__(self, secret: bytes) -> None:
        self._aead = AESGCM(hmac.digest(secret, b"retry tokens", "sha256")[:16])

    def make(self, remote: Endpoint, version: int, cid: bytes, original_dcid: bytes) -> bytes:
        """Return the token of a Retry packet whose Source Connection ID is `cid`."""
        nonce = os.urandom(_NONCE_BYTES)
        inner = time.time_ns().to_bytes(_TIME_BYTES, "big") + original_dcid
        return _MARK + nonce + self._aead.encrypt(nonce, inner, _about(remote, version, cid))

    @staticmethod
    def is_one(token: bytes) -> bool:
        """Return whether a token claims to be from a Retry packet."""
        return token.startswith(_MARK)

    def original_dcid(
        self, token: bytes, remote: Endpoint, version: int, cid: bytes
    ) -> bytes | None:
        """Return the client's first Destination Connection ID; None for an invalid token."""
        nonce, sealed = token[1 : 1 + _NONCE_BYTES], token[1 + _NONCE_BYTES :]
        try:
            inner = self._aead.decrypt(nonce, sealed, _about(remote, version, cid))
        except (InvalidTag, ValueError):
            return None
        age_ns = time.time_ns() - int.from_bytes(inner[:_TIME_BYTES], "big")
        return inner[_TIME_BYTES:] if abs(age_ns) <= _GOOD_FOR_NS else None


def _about(remote: Endpoint, version: int, cid: bytes) -> bytes:
    address = ip_address(remote.host).packed + remote.port.to_bytes(2, "big")
    return address + version.to_bytes(4, "big") + cid


def invalid_token(version: int, dcid: bytes, scid: bytes) -> bytes:
    """Return an Initial packet that closes with INVALID_TOKEN, in answer to a client's packet with
    these connection IDs."""
    # Type 0x1c, the code, no frame type, no reason (RFC 9000 section 19.19), and padding that the
    # sample of header protection needs.
    payload = bytes((0x1C, QuicErrorCode.INVALID_TOKEN, 0, 0)) + bytes(16)
    number_bytes, tag_bytes = 2, 16
    first = encode_long_header_first_byte(version, QuicPacketType.INITIAL, number_bytes - 1)
    header = (
        bytes((first,))
        + version.to_bytes(4, "big")
        + bytes((len(scid),))
        + scid
        + bytes((len(dcid),))
        + dcid
        + b"\0"  # no token
        + (0x4000 | (number_bytes + len(payload) + tag_bytes)).to_bytes(2, "big")
        + bytes(number_bytes)
    )
    crypto = CryptoPair()
    crypto.setup_initial(cid=dcid, is_client=False, version=version)
    return crypto.encrypt_packet(header, payload, 0)

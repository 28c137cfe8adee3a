"""First packets of clients, made by the thousand: a ClientHello is made once, and encrypted anew
for each connection ID (RFC 9001 section 5.2)."""

from __future__ import annotations

import os
import ssl
from typing import Final, NamedTuple

from aioquic.buffer import Buffer
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.packet import (
    QuicPacketType,
    encode_long_header_first_byte,
    pull_quic_header,
)
from aioquic.tls import Epoch

_BYTES: Final = 1200
_VERSION: Final = 1
_NUMBER_BYTES: Final = 2
_TAG_BYTES: Final = 16
_CRYPTO: Final = b"\x06"


def _varint(value: int) -> bytes:
    return (0x4000 | value).to_bytes(2, "big")


class Initials:
    """Packets of clients that begin handshakes, all with one ClientHello."""

    def __init__(self, alpn: str = "test") -> None:
        client = QuicConnection(
            configuration=QuicConfiguration(
                is_client=True,
                alpn_protocols=[alpn],
                server_name="localhost",
                verify_mode=ssl.CERT_NONE,
            )
        )
        client.connect(("10.0.0.1", 1), now=0.0)
        self.scid = client.host_cid
        sender = client._crypto_streams[Epoch.INITIAL].sender
        self.hello = bytes(sender._buffer)

    def packet(self, dcid: bytes, token: bytes = b"", *, at: int = 0, end: int = 1 << 14) -> bytes:
        """A datagram of 1,200 bytes with the ClientHello, or a part of it."""
        data = self.hello[at:end]
        payload = _CRYPTO + _varint(at) + _varint(len(data)) + data
        before = (
            bytes((encode_long_header_first_byte(_VERSION, QuicPacketType.INITIAL, 1),))
            + _VERSION.to_bytes(4, "big")
            + bytes((len(dcid),))
            + dcid
            + bytes((len(self.scid),))
            + self.scid
            + _varint(len(token))
            + token
        )
        room = _BYTES - len(before) - 2 - _NUMBER_BYTES - _TAG_BYTES
        payload += bytes(room - len(payload))
        number = at
        header = before + _varint(_NUMBER_BYTES + room + _TAG_BYTES) + number.to_bytes(2, "big")
        crypto = CryptoPair()
        crypto.setup_initial(cid=dcid, is_client=True, version=_VERSION)
        return crypto.encrypt_packet(header, payload, number)

    def first(self) -> bytes:
        """A first packet of another client."""
        return self.packet(os.urandom(8))


class Retry(NamedTuple):
    """What a client needs of a Retry packet."""

    scid: bytes
    token: bytes


def read_retry(data: bytes) -> Retry | None:
    """None for another packet."""
    if data[0] & 0xF0 != 0xF0:
        return None
    header = pull_quic_header(Buffer(data=data), host_cid_length=8)
    return Retry(header.source_cid, header.token)

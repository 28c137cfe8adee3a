"""A QUIC server that does what no server should: `python -m tests.soak.hostile_server HOST PORT`.

Each connection gets one of these by chance: EncryptedExtensions without or with broken transport
parameters, no application protocol, TLS messages after the handshake, streams that are opened and
reset at once, a close reason with terminal escapes. Says "ready" when it listens; ends with a line
on its stdin.
"""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import aioquic.tls as tls
from aioquic.asyncio import QuicConnectionProtocol, serve
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import HandshakeCompleted, QuicEvent

from tests.daemon.echoing import TLS
from tests.soak.network_attacks import ALPN, TLS_MESSAGES

_rng = random.Random(6)
_push = tls.push_encrypted_extensions


def _push_broken(buffer: Any, extensions: Any) -> None:
    kind = _rng.randrange(6)
    if kind == 0:
        extensions.other_extensions = []
    elif kind == 1:
        extensions.other_extensions = [(0x39, _rng.randbytes(40))]
    elif kind == 2:
        extensions.alpn_protocol = None
    _push(buffer, extensions)


class Hostile(QuicConnectionProtocol):
    """One connection."""

    def quic_event_received(self, event: QuicEvent) -> None:
        """Begin when the handshake is complete."""
        if isinstance(event, HandshakeCompleted):
            asyncio.get_running_loop().call_later(0.05, self._act, _rng.randrange(3), 30)

    def _act(self, kind: int, times: int) -> None:
        with suppress(Exception):  # aioquic refuses what is closed meanwhile
            if kind == 0:
                message = _rng.choice(list(TLS_MESSAGES.values()))
                self._quic._crypto_streams[tls.Epoch.ONE_RTT].sender.write(message)
                times = 0
            elif kind == 1:
                for _ in range(20):
                    stream_id = self._quic.get_next_available_stream_id()
                    self._quic.send_stream_data(stream_id, b"x")
                    self._quic.reset_stream(stream_id, 7)
            else:
                self._quic.close(error_code=7, reason_phrase="\x1b[31mRED\r\nforged: line")
                times = 0
            self.transmit()
            if times:
                asyncio.get_running_loop().call_later(0.05, self._act, kind, times - 1)


def _configuration() -> QuicConfiguration:
    configuration = QuicConfiguration(is_client=False, alpn_protocols=ALPN)
    with tempfile.TemporaryDirectory() as name:
        certificate, key = Path(name, "certificate"), Path(name, "key")
        certificate.write_bytes(TLS.certificate or b"")
        key.write_bytes(TLS.key or b"")
        configuration.load_cert_chain(certificate, key)
    return configuration


async def _main(host: str, port: str) -> None:
    tls.push_encrypted_extensions = _push_broken
    await serve(host, int(port), configuration=_configuration(), create_protocol=Hostile)
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    print("hostile server: ended", flush=True)


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))

"""An aioquic connection that checks what its peer sends where aioquic does not."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

from aioquic._buffer import Buffer
from aioquic._crypto import CryptoError
from aioquic.quic.connection import QuicConnection, QuicConnectionError, QuicReceiveContext
from aioquic.quic.crypto import KeyUnavailableError
from aioquic.quic.packet import QuicErrorCode, QuicFrameType
from aioquic.quic.stream import QuicStream
from aioquic.tls import AlertIllegalParameter, Epoch, ExtensionType

from hoststack.quic.aioquic.handshake import MessageGuard, has_duplicate_parameter
from hoststack.quic.aioquic.versions import check_downgrade

#: Pieces of a stream beyond a gap: aioquic walks through all of them for each frame. The native
#: engine's FIFOs record as many.
_MOST_PIECES: Final = 256


class TooManyPiecesError(Exception):
    """A frame would leave a stream in more pieces than a peer may ask for.

    Its packet is treated as lost: the peer sends it again.
    """


class GuardedConnection(QuicConnection):
    """The part of HostConnection that checks frames, TLS messages and transport parameters."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._crypto_epoch = Epoch.INITIAL
        self.undecryptable = 0
        """Packets that the keys do not open, since the engine last checked."""

    # --- frames ------------------------------------------------------------------------------

    def _handle_ack_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        if _peek(buf) >= self._packet_number:
            # RFC 9000 section 13.1: "An endpoint SHOULD treat receipt of an acknowledgment for a
            # packet it did not send as a connection error of type PROTOCOL_VIOLATION".
            raise QuicConnectionError(
                QuicErrorCode.PROTOCOL_VIOLATION, frame_type, "Acknowledges what was not sent"
            )
        super()._handle_ack_frame(context, frame_type, buf)

    def _handle_stream_frame(
        self, context: QuicReceiveContext, frame_type: int, buf: Buffer
    ) -> None:
        if frame_type & 4:
            stream_id, offset = _peek(buf), _peek(buf, 1)
            _check_pieces(self._streams.get(stream_id), offset)
        super()._handle_stream_frame(context, frame_type, buf)

    def _handle_crypto_frame(
        self, context: QuicReceiveContext, frame_type: int, buf: Buffer
    ) -> None:
        _check_pieces(self._crypto_streams[context.epoch], _peek(buf))
        self._crypto_epoch = context.epoch
        super()._handle_crypto_frame(context, frame_type, buf)

    # --- TLS messages and transport parameters -------------------------------------------------

    def _initialize(self, peer_cid: bytes) -> None:
        super()._initialize(peer_cid)
        guard = MessageGuard(peer_is_server=self._is_client)
        handle = self.tls.handle_message

        def guarded(input_data: bytes, output_buf: dict[Epoch, Buffer]) -> None:
            guard.look(self._crypto_epoch, input_data)
            handle(input_data, output_buf)

        self.tls.handle_message = guarded  # type: ignore[method-assign]
        for pair in {*self._cryptos.values(), *self._cryptos_initial.values()}:
            pair.decrypt_packet = partial(  # type: ignore[method-assign]
                self._decrypt, pair.decrypt_packet
            )

    def _decrypt(self, decrypt: Callable[..., Any], *packet: Any) -> Any:
        try:
            return decrypt(*packet)
        except KeyUnavailableError:
            raise
        except CryptoError:
            self.undecryptable += 1
            raise

    def _alpn_handler(self, alpn_protocol: str) -> None:
        found = [kind for kind, _ in self.tls.received_extensions or ()]
        if found.count(ExtensionType.QUIC_TRANSPORT_PARAMETERS) > 1:
            raise AlertIllegalParameter("the peer sent QUIC transport parameters twice")
        super()._alpn_handler(alpn_protocol)

    def _parse_transport_parameters(self, data: bytes, from_session_ticket: bool = False) -> None:
        if has_duplicate_parameter(data):
            raise QuicConnectionError(
                QuicErrorCode.TRANSPORT_PARAMETER_ERROR,
                QuicFrameType.CRYPTO,
                "the peer sent a transport parameter twice",
            )
        super()._parse_transport_parameters(data, from_session_ticket=from_session_ticket)
        if not from_session_ticket:
            check_downgrade(self)


def _peek(buf: Buffer, skipped: int = 0) -> int:
    """Return the next number of a frame, or the one after `skipped` others, without taking it."""
    start = buf.tell()
    for _ in range(skipped):
        buf.pull_uint_var()
    value = buf.pull_uint_var()
    buf.seek(start)
    return value


def _check_pieces(stream: QuicStream | None, offset: int) -> None:
    if (
        stream is not None
        and offset > stream.receiver.starting_offset()
        and len(stream.receiver._ranges) >= _MOST_PIECES
    ):
        raise TooManyPiecesError

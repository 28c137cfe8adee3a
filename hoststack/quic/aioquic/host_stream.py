"""An aioquic stream over a pair of FIFOs, as the session layer sees it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from aioquic.buffer import encode_uint_var
from aioquic.quic.connection import stream_is_unidirectional
from aioquic.quic.stream import QuicStream, QuicStreamReceiver, QuicStreamSender

from hoststack.native.memory.fifo import Fifo
from hoststack.quic.aioquic.stream import FifoReceiver, FifoSender
from hoststack.quic.seam import Fifos

if TYPE_CHECKING:
    from hoststack.quic.aioquic.connection import HostConnection


#: The FIFO of refused streams: nothing is ever put into it.
_UNUSED: Final = Fifo(1)


class HostStream(QuicStream):
    """A stream over FIFOs; implements the seam's StreamContext."""

    stream_id: int  # None only in aioquic's crypto streams

    def __init__(
        self, connection: HostConnection, stream: QuicStream, is_local: bool, fifos: Fifos | None
    ) -> None:
        """Without FIFOs the stream is refused: none of its data is stored or sent."""
        super().__init__(
            stream_id=stream.stream_id,
            max_stream_data_local=stream.max_stream_data_local,
            max_stream_data_remote=stream.max_stream_data_remote,
        )
        self.session = -1
        self.connection = connection
        self.is_local = is_local
        self.is_refused = fifos is None
        self.is_blocked = stream.is_blocked
        has = fifos or Fifos(None, None)
        self.rx: Fifo | None = has.rx
        self.tx: Fifo | None = has.tx
        unidirectional = self.is_unidirectional
        self.receiver: QuicStreamReceiver
        self.sender: QuicStreamSender
        if unidirectional and is_local:
            self.receiver = QuicStreamReceiver(stream_id=self.stream_id, readable=False)
        else:
            self.receiver = FifoReceiver(self.stream_id, self.rx or _UNUSED)
        if unidirectional and not is_local:
            self.sender = QuicStreamSender(stream_id=self.stream_id, writable=False)
        else:
            self.sender = FifoSender(
                self.stream_id,
                self.tx or _UNUSED,
                on_pending=partial(connection.send_queue.setdefault, self),
                on_progress=partial(connection.moved.setdefault, self),
            )
        self.has_told_send_finished = self.tx is None
        # A STREAM frame with offset and length (RFC 9000 section 19.8).
        self.frame_type_and_id = b"\x0e" + encode_uint_var(self.stream_id)

    @property
    def is_unidirectional(self) -> bool:
        return stream_is_unidirectional(self.stream_id)

    def let_go(self) -> None:
        """Break reference cycles when the connection is done with it: they would keep the FIFOs
        until a garbage collection."""
        if isinstance(self.sender, FifoSender):
            self.sender.let_go()

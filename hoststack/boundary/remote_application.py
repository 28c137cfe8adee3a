"""An application in another process, as a worker serves it.

Its streams are in C: commands and news are in rings (native/session/records.h), data is in FIFOs
in shared memory. Other requests and notices use a SOCK_SEQPACKET socket. A socket pair wakes the
worker when it sleeps. Whatever the other process sends or writes affects only its own sessions:
invalid data, or an exception while serving it, detaches it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from hoststack.boundary.application import Application, ImpossibleRequestError
from hoststack.boundary.channel import Channel, ChannelClosedError
from hoststack.boundary.codec import (
    CodecError,
    FifosReleased,
    SegmentCame,
    SegmentGone,
    ToWorker,
    Unparsed,
    decode_request,
    encode,
)
from hoststack.boundary.containment import contained, fault_text
from hoststack.boundary.fifo_pool import BlockName, FifoPool, FifoSize, SharedBlock
from hoststack.boundary.loading import Loaded, Loading
from hoststack.boundary.messages import (
    Answer,
    Cancel,
    Connect,
    EventCode,
    Failed,
    Learned,
    Listen,
    Notice,
    Request,
)
from hoststack.boundary.off_loop import OffLoop
from hoststack.boundary.protocols import PROTOCOLS
from hoststack.boundary.resumption import RelayedSessions, TicketSeal
from hoststack.boundary.rings import EventRingCorruptError, Rings
from hoststack.boundary.wake_up import WakeUp
from hoststack.native.memory.fifo import Fifo, FifoCorruptError
from hoststack.native.session._session import ffi, lib
from hoststack.quic.session_cache import ServerSessions

logger = logging.getLogger("hoststack.worker")

#: Most commands of one application in one turn; the rest waits for the next.
_COMMANDS: Final = int(lib.HS_SESSION_COMMANDS)
_TOLD_SOME: Final = int(lib.HS_TOLD_SOME)
#: While as many notices are queued, datagrams of new UDP peers are dropped: forged addresses cost
#: nothing, and whatever else is for the application waits behind these notices. Some 270 more are
#: in the socket.
_MANY_NOTICES: Final = 64
#: While as many answers are queued for an application, its requests are not read. Notices about
#: peers are not held back, and hold back nothing: what peers have open bounds them, and peers get
#: credit for more only when the application has taken them.
_MOST_UNREAD: Final = 256


#: Exceptions that only the application can cause; others may be a bug of this stack.
_ITS_OWN_FAULT: Final = (
    EventRingCorruptError,
    FifoCorruptError,
    ImpossibleRequestError,
)


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one application in one worker."""

    fifo_bytes: int = 4 << 30
    sessions: int = 65536


@dataclass(frozen=True, slots=True)
class Ends:
    """A worker's descriptors of what it shares with one application. The RemoteApplication owns
    and closes them."""

    channel: socket.socket
    rings_fd: int
    """boundary/rings.py"""
    wake_worker_fd: int
    """boundary/wake_up.py; the application writes, the worker reads."""
    wake_application_fd: int


class RemoteApplication(Application):
    """An application in another process. Attach it to a worker, and run `run` to serve it."""

    def __init__(
        self, name: str, ends: Ends, limits: Limits, seal: TicketSeal, off_loop: OffLoop
    ) -> None:
        """Wrap the descriptors. Raises OSError and ValueError for descriptors of the wrong kind,
        after closing them."""
        with contextlib.ExitStack() as ours:
            self._channel = ours.enter_context(
                contextlib.closing(Channel(ends.channel, max_waiting=None))
            )
            self._wakes_worker = ours.enter_context(contextlib.closing(WakeUp(ends.wake_worker_fd)))
            self._wakes_application = ours.enter_context(
                contextlib.closing(WakeUp(ends.wake_application_fd))
            )
            super().__init__(name)
            self.rings = Rings(ends.rings_fd)
            ours.pop_all()
        self.is_remote = True
        self.max_sessions = limits.sessions
        self.max_fifo_bytes = limits.fifo_bytes
        self._peer_blocks: dict[BlockName, int] = {}
        self._peer_fifo_bytes = 0
        self._pool = FifoPool(name, limits.fifo_bytes, self._send_segment, self._send_segment_gone)
        self._seal = seal
        self._is_readable = False
        """Whether its channel may have messages; `_receive` waits meanwhile."""
        self._drained = trio.Event()
        self._loading = Loading(off_loop)
        self._loaded: deque[Loaded] = deque()
        self._raised: dict[tuple[int, EventCode], None] = {}
        """Events of datagrams that the ring has no room for."""
        self._out = ffi.new("struct hs_event[]", _COMMANDS)
        self._done = ffi.new("struct hs_commanded *")
        self._is_crowded = False
        """Whether its ring of commands may have been full."""
        self._scope = trio.CancelScope()
        self.gone: str | None = None
        """Why it was detached; None while it is served."""
        self._why_ended: str | None = None
        """The first sign that it is leaving, while its last messages are still to be read."""

    # --- the worker's side -----------------------------------------------------------------

    @property
    def is_quiet(self) -> bool:
        return False

    @property
    def has_requests(self) -> bool:
        # It gave the commands before the requests that wait now.
        if self.gone is not None or self._is_crowded:
            return False
        return bool(self._loaded) or (self._is_readable and not self._loading.is_full)

    def take_request(self) -> Request | Loaded | None:
        if self._loaded:
            return self._loaded.popleft()
        try:
            is_read = self._channel.waiting_answers <= _MOST_UNREAD
            if is_read and (received := self._channel.receive_now(1)):
                return self._take(decode_request(received[0][0]))
        except ChannelClosedError as error:
            self.leave(self._why_ended or str(error))
        except Exception as error:
            self.on_fault(error)
        self._is_readable = False
        self._drained.set()
        return None

    def _take(self, message: ToWorker | Unparsed) -> Request | None:
        match message:
            case FifosReleased(names=names):
                for name in names:
                    self._pool.release(name)
                    self._peer_fifo_bytes -= self._peer_blocks.pop(name, 0)
                return None
            case Unparsed(request=Listen() | Connect() as request) if not _has_tls(request):
                return request  # without TLS, whatever it says
            case Unparsed():
                self._loading.add(message, self.engine)
                return None
            case Connect() if not self._has_credentials(message):
                self._loading.add(message, self.engine)
                return None
            case Cancel(token=token):
                self._loading.cancel(token)
        return message

    def _has_credentials(self, request: Connect) -> bool:
        """Return whether the credentials of a connect cost little, or it needs none."""
        if not _has_tls(request):
            return True
        try:
            found = self.engine.find_credentials(request.tls, request.alpn, is_server=False)
        except ValueError:
            return False  # loading them reports it
        return found is not None

    def _on_loaded(self, done: Loaded | Failed) -> None:
        self.account.left_s -= self._loading.take_cost()
        if isinstance(done, Loaded):
            self._loaded.append(done)
        else:
            self.notify(done)
        self.worker.wake()

    def take_commands(self) -> tuple[list[tuple[int, int, int, int]], bool]:
        if self.gone is not None:
            return [], False
        out, done = self._out, self._done
        try:
            count = _checked(lib.hs_application_commands(self.streams, out, done))
            is_crowded = bool(done.count == _COMMANDS or done.is_held_up)
            if done.has_made_room:
                # It may be asleep with commands that the ring had no room for.
                self._wakes_application.ring()
        except Exception as error:
            self.on_fault(error)
            return [], True
        self._is_crowded = is_crowded
        if is_crowded and not done.is_held_up:
            self.worker.wake()
        if not count:
            return [], bool(done.is_due)
        commands = [(each.handle, each.kind, each.arg, each.words[0]) for each in out[0:count]]
        return commands, bool(done.is_due)

    def notify(self, notice: Notice) -> None:
        if self.gone is None:
            self._send_message(notice)

    def refuse_stream(self, token: int, refusal: int) -> None:
        if self.gone is None:
            try:
                _checked(lib.hs_application_refuse(self.streams, token, refusal))
            except Exception as error:
                self.on_fault(error)

    def raise_event(self, handle: int, code: EventCode) -> None:
        if self.gone is None:
            self._raised[handle, code] = None

    def flush(self) -> bool:
        self._pool.drop_unused()
        if self.gone is None:
            try:
                told = _checked(lib.hs_application_tell(self.streams)) & _TOLD_SOME
                while self._raised:
                    first = next(iter(self._raised))
                    if not _checked(lib.hs_application_push(self.streams, *first)):
                        break
                    del self._raised[first]
                    told = True
                if told and lib.hs_application_take_armed(self.streams):
                    self._wakes_application.ring()
            except Exception as error:
                self.on_fault(error)
        # It runs in another process, so no task of this one became ready.
        return False

    def arm(self) -> bool:
        if self.gone is not None:
            return False
        try:
            waiting = _checked(lib.hs_application_arm(self.streams))
        except Exception as error:
            self.on_fault(error)
            return True
        # Commands that wait for room in the other ring: it wakes the worker when there is some.
        return self.has_requests or (waiting > 0 and not self._is_crowded)

    def make_fifos(self, sizes: Sequence[FifoSize], owner: object | None = None) -> list[Fifo]:
        if self.gone is not None:
            raise OSError(errno.ESHUTDOWN, "the application is gone")
        return self._pool.make(sizes, owner)

    def make_blocks(self, sizes: Sequence[FifoSize], owner: object | None) -> list[SharedBlock]:
        if self.gone is not None:
            raise OSError(errno.ESHUTDOWN, "the application is gone")
        return self._pool.make_blocks(sizes, owner)

    def free_block(self, name: BlockName) -> None:
        self._pool.free_block(name)

    def hand_out(self, fifo: Fifo) -> int:
        return self._pool.hand_out(fifo).place

    def take_back(self, fifo: Fifo) -> None:
        self._pool.release(self._pool.name_of(fifo))

    def choose_sizes(self, sizes: Sequence[FifoSize], owner: object | None) -> list[int]:
        if not self._channel.has_room_for_fds(len(sizes)):
            raise OSError(errno.ENOMEM, "the application does not receive the segments sent to it")
        return self._pool.choose(sizes, owner)

    def make_peer_fifo(self, size_bytes: int) -> Fifo:
        fifo = self.make_fifo(size_bytes)
        block_bytes = Fifo.block_bytes(size_bytes)
        self._peer_blocks[self._pool.name_of(fifo)] = block_bytes
        self._peer_fifo_bytes += block_bytes
        return fifo

    @property
    def peer_fifo_bytes(self) -> int:
        return self._peer_fifo_bytes

    @property
    def is_behind(self) -> bool:
        return self._channel.waiting >= _MANY_NOTICES

    def has_room_for(self, *sizes_bytes: int) -> bool:
        return self.gone is None and self._pool.has_room_for(*sizes_bytes)

    def on_fault(self, error: Exception) -> None:
        if isinstance(error, ChannelClosedError):
            self._on_end(error)
        elif isinstance(error, CodecError):
            self.leave(f"it sent invalid data: {error}")
        elif isinstance(error, _ITS_OWN_FAULT):
            self.leave(str(error))
        else:
            logger.error("serving %s failed", self.name, exc_info=error)
            self.leave(fault_text(error))

    def sessions_for(self, request: Connect, engine: str) -> ServerSessions | None:
        if request.known is None:
            return None
        token = request.token
        return RelayedSessions(
            request.known, self._seal, lambda known: self.notify(Learned(token, known))
        )

    def add_segment(self, fd: int) -> int:
        return self._pool.add_segment(fd)

    def remove_segment(self, number: int) -> None:
        self._pool.remove_segment(number)

    def adopt_fifo(
        self,
        fifo: Fifo,
        name: BlockName,
        free: Callable[[], None],
        least_bytes: int,
        owner: object | None,
    ) -> None:
        self._pool.adopt(fifo, name, free, least_bytes, owner)

    @property
    def fifo_bytes(self) -> int:
        """Memory that its FIFOs use."""
        return self._pool.used_bytes

    def leave(self, why: str) -> None:
        """Cancel `run`, which then ends soon: this may be the middle of a turn. Idempotent."""
        if self.gone is None:
            self.gone = why
            self._scope.cancel()

    # --- its tasks ---------------------------------------------------------------------------

    def _on_end(self, error: ChannelClosedError) -> None:
        """Handle the close of one of its descriptors. The kernel closes them one after another, so
        what it sent before is read first, such as a close with a code."""
        if self._why_ended is None:
            self._why_ended = str(error)
        self._channel.abandon()
        self._loading.close()
        self.worker.wake()

    async def run(self) -> None:
        """Serve it until it leaves or is detached; `gone` says why. Raises nothing that the
        application causes."""
        try:
            with contained(self.on_fault), self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._send)
                    nursery.start_soon(self._receive)
                    nursery.start_soon(self._loading.run, self._on_loaded)
                    nursery.start_soon(self._listen_to_wake_ups)
        finally:
            self.leave("the worker ends")
            self._channel.close()
            self._wakes_worker.close()
            self._wakes_application.close()
            self._pool.close()

    async def _receive(self) -> None:
        """Have the worker read the channel, in its turns: reading costs time as well."""
        while True:
            await self._channel.wait_answered(_MOST_UNREAD)
            await trio.lowlevel.wait_readable(self._channel)
            self._drained = trio.Event()
            self._is_readable = True
            self.worker.wake()
            await self._drained.wait()

    async def _send(self) -> None:
        try:
            await self._channel.run()
        except ChannelClosedError as error:
            self._on_end(error)

    async def _listen_to_wake_ups(self) -> None:
        try:
            while True:
                await trio.lowlevel.wait_readable(self._wakes_worker)
                self._wakes_worker.clear()
                self.worker.turn_over()
        except ChannelClosedError as error:
            self._on_end(error)

    def _send_segment(self, number: int, fd: int) -> None:
        try:
            self._channel.hand_over(encode(SegmentCame(number)), fd)
            self._count_message()
        except Exception as error:
            self.on_fault(error)

    def _send_segment_gone(self, number: int) -> None:
        self._send_message(SegmentGone(number))

    def _send_message(self, message: Notice | SegmentGone) -> None:
        try:
            is_answer = isinstance(message, Answer)
            self._channel.send(encode(message, self._pool.hand_out), is_answer=is_answer)
            self._count_message()
        except Exception as error:
            self.on_fault(error)

    def _count_message(self) -> None:
        """Keep the message's place among the news of streams."""
        if lib.hs_application_queue_message(self.streams):
            raise MemoryError("no memory for an application's news")


def _has_tls(request: Listen | Connect) -> bool:
    return PROTOCOLS[request.protocol].tls


def _checked(result: int) -> int:
    """Return a result of the session plane; raise for an error that the application caused."""
    if result >= 0:
        return result
    if result == lib.HS_SESSION_INVALID:
        raise CodecError("a command with a code of 2**62 or more")
    raise EventRingCorruptError

"""The application's side of a worker in another process. The worker's side is
boundary/remote_application.py."""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple, cast

from hoststack.boundary.application import Application
from hoststack.boundary.channel import Channel, ChannelClosedError, close_all
from hoststack.boundary.codec import (
    MAX_MESSAGE_BYTES,
    CodecError,
    FifosReleased,
    SegmentCame,
    SegmentGone,
    decode_notice,
    encode,
)
from hoststack.boundary.containment import fault_text
from hoststack.boundary.fifo_pool import BlockName, SharedFifos
from hoststack.boundary.messages import (
    Accepted,
    Closed,
    Command,
    Connected,
    EventCode,
    Failed,
    Notice,
    Request,
    StreamsAvailable,
    WithKeys,
)
from hoststack.boundary.opening import Opening
from hoststack.boundary.rings import EventRingCorruptError, Rings
from hoststack.boundary.wake_up import WakeUp
from hoststack.native.memory.fifo import Fifo
from hoststack.native.session._session import ffi, lib

logger = logging.getLogger(__name__)

_NAMES_IN_MESSAGE: Final = 1024
_MESSAGE: Final = int(lib.HS_TASK_MESSAGE)
_OPENED: Final = int(lib.HS_TASK_OPENED)
_REFUSED: Final = int(lib.HS_TASK_REFUSED)
_READABLE: Final = int(lib.HS_TASK_READABLE)


class Opened(NamedTuple):
    """A stream that the application asked for."""

    token: int
    handle: int
    stream_id: int
    end: Any
    """Its struct hs_end."""


class _Released:
    """Names of freed FIFOs that have yet to be reported to the worker."""

    def __init__(self) -> None:
        self._names: list[BlockName] = []
        self.on_first: Callable[[], None] = lambda: None

    def add(self, name: BlockName) -> None:
        """Add a name. A finalizer calls this, so it may interrupt any other code."""
        self._names.append(name)
        if len(self._names) == 1:
            self.on_first()

    def take(self) -> Iterator[tuple[BlockName, ...]]:
        """Return the names added since the last call, in tuples that fit into a message."""
        names, self._names = self._names, []
        for first in range(0, len(names), _NAMES_IN_MESSAGE):
            yield tuple(names[first : first + _NAMES_IN_MESSAGE])


class AttachedWorker(Application):
    """A worker in another process. Owns the socket and the descriptors.

    The program's loop reads what it sends, by way of hoststack/api/daemon_client.py.
    """

    def __init__(
        self,
        name: str,
        channel: socket.socket,
        rings_fd: int,
        wake_worker_fd: int,
        wake_fd: int,
    ) -> None:
        """Wrap the descriptors. Raises OSError and ValueError for descriptors of the wrong kind,
        after closing them."""
        with contextlib.ExitStack() as ours:
            self._channel = ours.enter_context(
                contextlib.closing(Channel(channel, takes_fds=True, max_waiting=None))
            )
            self._wakes_worker = ours.enter_context(contextlib.closing(WakeUp(wake_worker_fd)))
            self._wakes_us = ours.enter_context(contextlib.closing(WakeUp(wake_fd)))
            super().__init__(name)
            self.rings = rings = Rings(rings_fd)
            made = lib.hs_attached_new(
                self.side, rings.down, rings.up, rings.block_bytes, self._wakes_worker.fileno()
            )
            if not made:
                raise MemoryError("no memory for a worker")
            self._attached = ffi.gc(made, lib.hs_attached_free)
            ours.pop_all()
        self._news = ffi.new("struct hs_attached_news *")
        self._messages: deque[tuple[bytes, list[int]]] = deque()
        """Those that arrived before the news ahead of them."""
        self._held_up: dict[tuple[int, int, int, int], None] = {}
        """Commands about connections that the ring has no room for."""
        self._sides: dict[int, Any] = {}
        """The struct hs_end_connection of new connections, by handle, until `hold`."""
        self._opening = Opening(self._ask_for_stream)
        self._opened: list[Opened] = []
        self._released = _Released()
        this = weakref.ref(self)  # a reference cycle would hold its memory
        self._released.on_first = lambda: _tell_soon(this())

        def drop_end(end: Any) -> None:
            if lib.hs_end_drop(end):
                _tell_soon(this())

        self._drop_end = drop_end
        self._fifos = SharedFifos(self._released.add)
        self.call_soon: Callable[[Callable[[], None]], object] | None = None
        """Calls a function soon, from any thread, in the thread of the program's loop."""
        self.is_gone = False
        self.is_given_up = False
        self.on_crowded: Callable[[], None] = lambda: None
        """Called when messages wait for room in the channel's socket."""

    def join(self, side: Any) -> None:
        """Wake tasks through the struct hs_side of all the application's workers."""
        self.side = side
        lib.hs_attached_join(self._attached, side)

    # --- down --------------------------------------------------------------------------------

    def request(self, request: Request) -> None:
        self._release_fifos()
        data = encode(request)
        if len(data) <= MAX_MESSAGE_BYTES:
            self._send(data)
            return
        assert isinstance(request, WithKeys), "nothing else is large"
        text = (
            f"the certificates, keys and CAs have {len(data) >> 10} KiB, and a daemon takes "
            f"{MAX_MESSAGE_BYTES >> 10} KiB: pass fewer of them"
        )
        self.notify(Failed(request.token, errno.EMSGSIZE, text))
        self.wake_application()

    def open_stream(self, connection: int, unidirectional: bool, token: int) -> None:
        """Ask for a stream: `take_opened` or a Failed follows, perhaps after the peer allowed
        more."""
        self._opening.start(connection, unidirectional, token)

    def cancel_stream(self, token: int) -> bool:
        """Cancel `open_stream`; return False for another kind of request."""
        return self._opening.cancel(token)

    def _ask_for_stream(self, connection: int, unidirectional: bool, token: int) -> None:
        self._command(connection, Command.OPEN, int(unidirectional), token)

    def signal_sent(self, handle: int) -> None:
        self._command(handle, Command.SENT)

    def signal_consumed(self, handle: int, is_urgent: bool = True) -> None:
        # Urgency does not matter: a sleeping worker is idle, and a busy one is not woken.
        self._command(handle, Command.CONSUMED)

    def signal_taken(self, handle: int) -> None:
        self._command(handle, Command.TAKEN)

    def signal_noted(self, handle: int) -> None:
        self._command(handle, Command.NOTED)

    def _command(self, handle: int, command: Command, argument: int = 0, token: int = 0) -> None:
        key = handle, int(command), argument, token
        if self.is_gone:
            return
        if self._held_up or not self._write(key):
            self._held_up[key] = None

    def _write(self, key: tuple[int, int, int, int]) -> bool:
        written = lib.hs_attached_command(self._attached, *key)
        if written < 0:
            self.give_up(EventRingCorruptError())
        return bool(written)

    def _release_fifos(self) -> None:
        """Report the freed FIFOs to the worker; raises nothing."""
        try:
            for names in self._released.take():
                self._send(encode(FifosReleased(names)))
        except Exception as error:
            self.give_up(error)

    def _send(self, data: bytes) -> None:
        if not self.is_gone:
            with contextlib.suppress(ChannelClosedError):  # the next read reports it
                self._channel.send(data)
                if self._channel.has_waiting:
                    self.on_crowded()

    # --- up ----------------------------------------------------------------------------------

    @property
    def channel(self) -> Channel:
        """The channel that its messages arrive on."""
        return self._channel

    @property
    def wake_fd(self) -> int:
        """Descriptor that is readable when the worker raised events while this side slept."""
        return self._wakes_us.fileno()

    def take_messages(self, received: Sequence[tuple[bytes, list[int]]]) -> None:
        """Process messages received on the channel, as far as no news are ahead of them."""
        self._messages.extend(received)
        self.take_news()

    def take_news(self) -> None:
        """Process what the worker wrote into the ring, and messages in their places."""
        news = self._news
        while not self.is_gone and (
            task := lib.hs_attached_take(self._attached, bool(self._messages), news)
        ):
            try:
                if task == _MESSAGE:
                    self._take_message(*self._messages.popleft())
                elif task == _OPENED:
                    self._on_opened(news.token, news.handle, news.stream_id, news.end)
                elif task == _REFUSED:
                    failed = self._opening.on_refused(news.token, news.code)
                    if failed is not None:
                        self.notify(failed)
                elif task > 0:
                    is_readable = task == _READABLE
                    self._up.push(
                        news.handle, EventCode.READABLE if is_readable else EventCode.WRITABLE
                    )
                else:
                    raise _error(task)
            except Exception as error:
                self.give_up(error)
                return

    def hear_out(self) -> None:
        """Process what the worker, which has ended, said last. It may not have come to write into
        the ring where its messages stand among the news."""
        if self.is_gone:
            return
        with contextlib.suppress(ChannelClosedError):
            while received := self._channel.receive_now():
                self.take_messages(received)
        self.take_news()
        try:
            while self._messages and not self.is_given_up:
                self._take_message(*self._messages.popleft())
        except Exception as error:
            self.give_up(error)

    def _on_opened(self, token: int, handle: int, stream_id: int, end: Any) -> None:
        is_wanted = self._opening.on_opened(token)
        opened = Opened(token, handle, stream_id, self.hold_end(handle, end))
        if is_wanted:
            self._opened.append(opened)
        else:
            lib.hs_end_close(opened.end, True, 0)

    def hold_end(self, handle: int, end: Any) -> Any:
        """Own a stream's struct hs_end; when the result is collected, the worker is told."""
        return ffi.gc(end, self._drop_end)

    def take_opened(self) -> list[Opened]:
        """Return the streams opened since the last call."""
        opened, self._opened = self._opened, []
        return opened

    def hold(self, handle: int) -> Any:
        """Return the struct hs_end_connection of a new connection."""
        return self._sides.pop(handle)

    def take_sides(self) -> dict[int, Any]:
        """Return what `hold` has not returned yet."""
        sides, self._sides = self._sides, {}
        return sides

    def _take_message(self, data: bytes, fds: list[int]) -> None:
        try:
            message = decode_notice(data, self._fifos.open)
            match message:
                case SegmentGone(number=number):
                    self._fifos.remove_segment(number)
                    lib.hs_attached_remove_segment(self._attached, number)
                case SegmentCame(number=number):
                    self._add_segment(number, fds)
                case _:
                    self._note(message)
                    self.notify(message)
        except (OSError, MemoryError) as error:
            self._refuse(data, error)
        finally:
            close_all(fds)

    def _add_segment(self, number: int, fds: list[int]) -> None:
        if len(fds) > 1:
            raise CodecError(f"a segment came with {len(fds)} descriptors")
        # Without room for it, or its descriptor, what needs it is refused.
        lib.hs_attached_add_segment(self._attached, number, fds[0] if fds else -1)
        taken, fds[:] = list(fds), []
        self._fifos.add_segment(number, taken)

    def _note(self, notice: Notice) -> None:
        """Prepare for what follows a notice."""
        match notice:
            case Accepted(handle=handle) | Connected(handle=handle):
                made = lib.hs_attached_connection(self._attached, handle)
                if not made:
                    raise CodecError("two connections have one handle, or there is no memory")
                self._sides[handle] = ffi.gc(made, lib.hs_end_connection_drop)
            case StreamsAvailable(handle=handle):
                self._opening.on_available(handle)
            case Failed(token=token):
                self._opening.cancel(token)
            case Closed(handle=handle):
                for failed in self._opening.fail(handle):
                    self.notify(failed)

    def _refuse(self, data: bytes, error: OSError | MemoryError) -> None:
        """Refuse datagrams whose FIFOs this process has no room for."""
        named: Any = decode_notice(data, cast(Callable[[BlockName], Fifo], lambda name: name))
        for name in (named.rx, named.tx):
            self._fifos.give_up(name)
        self.signal_noted(named.handle)

    def give_up(self, error: Exception) -> None:
        """Treat the worker as dead, because it sent or wrote invalid data. Idempotent."""
        if not self.is_given_up:
            self.is_given_up = True
            if not isinstance(error, ChannelClosedError):
                logger.error("dropping a worker of the daemon: %s", fault_text(error))
            self._channel.shut()

    def arm_events(self) -> bool:
        """Ask for a wake-up before this side sleeps; return whether there are events already."""
        armed = lib.hs_attached_arm(self._attached)
        if armed < 0:
            self.give_up(EventRingCorruptError())
        return bool(armed > 0)

    def clear_wake_up(self) -> None:
        """Clear the wake-up. If the worker closed its end, close the channel as well."""
        try:
            self._wakes_us.clear()
        except ChannelClosedError:
            self._channel.abandon()

    def settle(self) -> None:
        """Report what was freed, and retry what the rings had no room for."""
        if self.is_gone:
            return
        self._release_fifos()
        if lib.hs_attached_settle(self._attached) < 0:
            self.give_up(EventRingCorruptError())
        while self._held_up and self._write(first := next(iter(self._held_up))):
            del self._held_up[first]

    def close(self) -> None:
        """Close all descriptors."""
        if not self.is_gone:
            self.is_gone = True
            lib.hs_attached_gone(self._attached)
            self._opening.end()
        while self._messages:
            close_all(self._messages.popleft()[1])
        self._channel.close()
        self._wakes_worker.close()
        self._wakes_us.close()


def _tell_soon(worker: AttachedWorker | None) -> None:
    """Have a worker told of what was freed: an idle application would otherwise hold its memory.
    From any thread, and in the middle of any other code."""
    if worker is not None and worker.call_soon is not None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            worker.call_soon(worker.settle)


def _error(task: int) -> Exception:
    if task == lib.HS_ATTACHED_NO_MEMORY:
        return MemoryError("no memory for a stream")
    if task == lib.HS_ATTACHED_INVALID:
        return CodecError("news that no worker sends")
    return EventRingCorruptError()

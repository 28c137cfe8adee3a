"""The application's side of a worker in another process. The worker's side is
boundary/remote_application.py."""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, cast

import trio

from hoststack.boundary.application import Application
from hoststack.boundary.channel import Channel, ChannelClosedError, close_all
from hoststack.boundary.codec import (
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
    DatagramsReady,
    EventCode,
    Failed,
    Request,
    ResetStream,
    StopSending,
    StreamReady,
)
from hoststack.boundary.rings import EventChannel, open_rings
from hoststack.boundary.wake_up import WakeUp
from hoststack.native.memory.event_ring import EventRing
from hoststack.native.memory.fifo import Fifo

logger = logging.getLogger(__name__)

_NAMES_IN_MESSAGE: Final = 1024


class _Released:
    """Names of freed FIFOs that have yet to be reported to the worker."""

    def __init__(self, worker: AttachedWorker) -> None:
        self._worker = weakref.ref(worker)
        self._names: list[BlockName] = []
        self.call_soon: Callable[[Callable[[], None]], object] | None = None
        """Calls a function soon, from any thread, in the thread of the program's loop."""

    def add(self, name: BlockName) -> None:
        """Add a name. A finalizer calls this, so it may interrupt any other code."""
        self._names.append(name)
        if len(self._names) == 1 and self.call_soon is not None:
            # Report soon: an idle application would otherwise hold the worker's memory.
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self.call_soon(self._tell)

    def _tell(self) -> None:
        worker = self._worker()
        if worker is not None:
            worker._release_fifos()

    def take(self) -> Iterator[tuple[BlockName, ...]]:
        """Return the names added since the last call, in tuples that fit into a message."""
        names, self._names = self._names, []
        for first in range(0, len(names), _NAMES_IN_MESSAGE):
            yield tuple(names[first : first + _NAMES_IN_MESSAGE])


class AttachedWorker(Application):
    """A worker in another process. Owns the socket and the descriptors.

    In a trio program, `run` must run; it returns when the worker or the connection to it is gone.
    Without trio, the program's own loop does the work of `run` (hoststack/api/daemon_client.py).
    """

    def __init__(
        self, name: str, channel: socket.socket, rings_fd: int, wake_worker_fd: int, wake_fd: int
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
            down, up = open_rings(rings_fd)
            self._signals, self._events = EventChannel(down), EventChannel(up)
            ours.pop_all()
        self._released = _Released(self)
        self._fifos = SharedFifos(self._released.add)
        self.is_gone = False
        self.is_given_up = False
        self.on_crowded: Callable[[], None] = lambda: None
        """Called when messages wait for room in the channel's socket."""

    @property
    def call_soon(self) -> Callable[[Callable[[], None]], object] | None:
        """Calls a function soon, from any thread, in the thread of the program's loop."""
        return self._released.call_soon

    @call_soon.setter
    def call_soon(self, call_soon: Callable[[Callable[[], None]], object] | None) -> None:
        self._released.call_soon = call_soon

    # --- down --------------------------------------------------------------------------------

    def request(self, request: Request) -> None:
        self._release_fifos()
        self._send(encode(request))

    def signal_sent(self, handle: int) -> None:
        self._signal(handle, EventCode.SENT)

    def signal_consumed(self, handle: int, is_urgent: bool = True) -> None:
        # Urgency does not matter: a sleeping worker is idle, and a busy one is not woken.
        self._signal(handle, EventCode.CONSUMED)

    def signal_taken(self, handle: int) -> None:
        self._signal(handle, EventCode.TAKEN)

    def signal_noted(self, handle: int) -> None:
        self._signal(handle, EventCode.NOTED)

    def _signal(self, handle: int, code: EventCode) -> None:
        if not self.is_gone:
            try:
                self._signals.push(handle, code)
                self._wake_worker()
            except Exception as error:
                self.give_up(error)

    def _wake_worker(self) -> None:
        ring: EventRing = self._signals.ring
        if not self.is_gone and ring.take_armed():
            self._wakes_worker.ring()

    def _release_fifos(self) -> None:
        """Report the freed FIFOs to the worker; raises nothing."""
        try:
            for names in self._released.take():
                self._send(encode(FifosReleased(names)))
        except Exception as error:
            self.give_up(error)

    def _send(self, data: bytes) -> None:
        if not self.is_gone:
            with contextlib.suppress(ChannelClosedError):  # `run` is about to report it
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
        """Process messages received on the channel."""
        for data, fds in received:
            try:
                self._take(data, fds)
            except Exception as error:
                self.give_up(error)
            finally:
                close_all(fds)

    def _take(self, data: bytes, fds: list[int]) -> None:
        try:
            message = decode_notice(data, self._fifos.open)
        except (OSError, MemoryError) as error:
            self._refuse(data, error)
            return
        if isinstance(message, SegmentGone):
            self._fifos.remove_segment(message.number)
        elif not isinstance(message, SegmentCame):
            self.notify(message)
        elif len(fds) < 2:
            taken, fds[:] = list(fds), []
            self._fifos.add_segment(message.number, taken)
        else:
            raise CodecError(f"a segment came with {len(fds)} descriptors")

    def take_events(self) -> list[tuple[int, int, int]]:
        try:
            return self._events.pop_all()
        except Exception as error:
            self.give_up(error)
            return []

    def give_up(self, error: Exception) -> None:
        """Treat the worker as dead, because it sent or wrote invalid data. Idempotent."""
        if not self.is_given_up:
            self.is_given_up = True
            if not isinstance(error, ChannelClosedError):
                logger.error("dropping a worker of the daemon: %s", fault_text(error))
            self._channel.shut()  # which ends `run`

    def _refuse(self, data: bytes, error: OSError | MemoryError) -> None:
        """Refuse a stream or datagrams whose FIFOs this process has no room for."""
        named: Any = decode_notice(data, cast(Callable[[BlockName], Fifo], lambda name: name))
        for name in (named.rx, named.tx):
            if name is not None:
                self._fifos.give_up(name)
        if isinstance(named, DatagramsReady):
            self.signal_noted(named.handle)
            return
        self.request(ResetStream(named.handle, 0))
        self.request(StopSending(named.handle, 0))
        if isinstance(named, StreamReady):
            text = f"this process has no room for the FIFOs of a stream: {error}"
            self.notify(Failed(named.token, errno.ENOMEM, text))
        else:
            self.signal_taken(named.handle)

    def arm_events(self) -> bool:
        """Ask for a wake-up before this side sleeps; return whether there are events already."""
        try:
            self._events.ring.arm()
            return bool(len(self._events.ring))
        except Exception as error:
            self.give_up(error)
            return False

    def clear_wake_up(self) -> None:
        """Clear the wake-up. If the worker closed its end, close the channel as well."""
        try:
            self._wakes_us.clear()
        except ChannelClosedError:
            self._channel.abandon()

    def settle(self) -> None:
        """Report freed FIFOs, and retry the signals that the ring had no room for."""
        self._release_fifos()
        if self._signals.is_held_up:
            try:
                self._signals.settle()
                self._wake_worker()
            except Exception as error:
                self.give_up(error)

    def close(self) -> None:
        """Close all descriptors."""
        self.is_gone = True
        self._channel.close()
        self._wakes_worker.close()
        self._wakes_us.close()

    async def run(self) -> None:
        """Receive from the worker until it is gone, or this is cancelled."""
        self.call_soon = trio.lowlevel.current_trio_token().run_sync_soon
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._send_waiting)
                nursery.start_soon(self._listen_to_events)
                await self._receive()
                nursery.cancel_scope.cancel()
        finally:
            self.close()

    async def _receive(self) -> None:
        """Receive until the worker is gone and all that it sent has been read."""
        with contextlib.suppress(ChannelClosedError):
            while True:
                self.take_messages(await self._channel.receive())
                self.wake_application()
                self.settle()

    async def _send_waiting(self) -> None:
        try:
            await self._channel.run()
        except ChannelClosedError:
            self._channel.abandon()

    async def _listen_to_events(self) -> None:
        while True:
            if not self.arm_events():
                await trio.lowlevel.wait_readable(self._wakes_us)
                self.clear_wake_up()
            self.wake_application()
            self.settle()
            await trio.lowlevel.checkpoint()

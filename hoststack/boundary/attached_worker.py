"""The application's side of a worker in another process (boundary/remote_application.py is that
worker's)."""

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
from hoststack.boundary.rings import open_rings
from hoststack.boundary.wake_up import WakeUp
from hoststack.native.memory.event_ring import EventRing
from hoststack.native.memory.fifo import Fifo

logger = logging.getLogger(__name__)

_NAMES_IN_MESSAGE: Final = 1024


class _Released:
    """FIFOs that are gone here, of which the worker has to hear."""

    def __init__(self, worker: AttachedWorker) -> None:
        self._worker = weakref.ref(worker)
        self._names: list[BlockName] = []
        self.loop: trio.lowlevel.TrioToken | None = None
        """Where `run` runs."""

    def add(self, name: BlockName) -> None:
        """Called by a finalizer, in the middle of anything."""
        self._names.append(name)
        if len(self._names) == 1 and self.loop is not None:
            # Nothing else may come to do here, and the worker would keep the memory for as long.
            with contextlib.suppress(trio.RunFinishedError):
                self.loop.run_sync_soon(self._tell, idempotent=True)

    def _tell(self) -> None:
        worker = self._worker()
        if worker is not None:
            worker._release_fifos()

    def take(self) -> Iterator[tuple[BlockName, ...]]:
        """What came since the last call, as much at a time as a message has room for."""
        names, self._names = self._names, []
        for first in range(0, len(names), _NAMES_IN_MESSAGE):
            yield tuple(names[first : first + _NAMES_IN_MESSAGE])


class AttachedWorker(Application):
    """A worker, as this process reaches it. Takes the socket and the descriptors over.

    In a trio program `run` has to run; when it ends the worker, or the way to it, is gone. Without
    trio whoever waits for descriptors does what `run` does (hoststack/vcl/client.py).
    """

    def __init__(
        self, name: str, channel: socket.socket, rings_fd: int, wake_worker_fd: int, wake_fd: int
    ) -> None:
        """Raises OSError and ValueError for what no worker shares; it is closed then."""
        with contextlib.ExitStack() as ours:
            self._channel = ours.enter_context(
                contextlib.closing(Channel(channel, takes_fds=True, max_waiting=None))
            )
            self._wakes_worker = ours.enter_context(contextlib.closing(WakeUp(wake_worker_fd)))
            self._wakes_us = ours.enter_context(contextlib.closing(WakeUp(wake_fd)))
            super().__init__(name, *open_rings(rings_fd))
            ours.pop_all()
        self._released = _Released(self)
        self._fifos = SharedFifos(self._released.add)
        self.is_gone = False
        self.is_given_up = False

    # --- down --------------------------------------------------------------------------------

    def request(self, request: Request) -> None:
        self._release_fifos()
        self._send(encode(request))

    def signal_sent(self, handle: int) -> None:
        self._signal(handle, EventCode.SENT)

    def signal_consumed(self, handle: int, is_urgent: bool = True) -> None:
        # A worker that sleeps has time, and one that does not is not woken.
        self._signal(handle, EventCode.CONSUMED)

    def signal_taken(self, handle: int) -> None:
        self._signal(handle, EventCode.TAKEN)

    def signal_noted(self, handle: int) -> None:
        self._signal(handle, EventCode.NOTED)

    def _signal(self, handle: int, code: EventCode) -> None:
        if not self.is_gone:
            try:
                self._down.push(handle, code)
                self._wake_worker()
            except Exception as error:
                self.give_up(error)

    def _wake_worker(self) -> None:
        ring: EventRing = self._down.ring
        if not self.is_gone and ring.take_armed():
            self._wakes_worker.ring()

    def _release_fifos(self) -> None:
        """Tell the worker which FIFOs are gone; raises nothing."""
        try:
            for names in self._released.take():
                self._send(encode(FifosReleased(names)))
        except Exception as error:
            self.give_up(error)

    def _send(self, data: bytes) -> None:
        if not self.is_gone:
            with contextlib.suppress(ChannelClosedError):  # `run` is about to say so
                self._channel.send(data)

    # --- up ----------------------------------------------------------------------------------

    @property
    def channel(self) -> Channel:
        """Where its messages come from."""
        return self._channel

    @property
    def wake_fd(self) -> int:
        """Readable when it has raised events for one who sleeps."""
        return self._wakes_us.fileno()

    def take_messages(self, received: Sequence[tuple[bytes, list[int]]]) -> None:
        """What came on the channel."""
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
            return super().take_events()
        except Exception as error:
            self.give_up(error)
            return []

    def give_up(self, error: Exception) -> None:
        """What the worker said or wrote makes no sense: it counts as dead. Idempotent."""
        if not self.is_given_up:
            self.is_given_up = True
            if not isinstance(error, ChannelClosedError):
                logger.error("a worker of the daemon is given up: %s", fault_text(error))
            self._channel.shut()  # `run` hears of that

    def _refuse(self, data: bytes, error: OSError | MemoryError) -> None:
        """A stream or datagrams for whose FIFOs this process has no room: nothing of them stays."""
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
        """This side is about to sleep; whether there are events for it after all."""
        try:
            self._up.ring.arm()
            return bool(len(self._up.ring))
        except Exception as error:
            self.give_up(error)
            return False

    def clear_wake_up(self) -> None:
        """The wake-up has done its work. If none will come any more, the channel ends as well."""
        try:
            self._wakes_us.clear()
        except ChannelClosedError:
            self._channel.abandon()

    def settle(self) -> None:
        """What did not fit before may now, and nobody else would look."""
        self._release_fifos()
        if self._down.is_held_up:
            try:
                self._down.settle()
                self._wake_worker()
            except Exception as error:
                self.give_up(error)

    def close(self) -> None:
        """It is gone, or nobody needs it any more."""
        self.is_gone = True
        self._channel.close()
        self._wakes_worker.close()
        self._wakes_us.close()

    async def run(self) -> None:
        """Listens to the worker until it is gone, or this is cancelled."""
        self._released.loop = trio.lowlevel.current_trio_token()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._send_waiting)
                nursery.start_soon(self._listen_to_events)
                await self._receive()
                nursery.cancel_scope.cancel()
        finally:
            self.close()

    async def _receive(self) -> None:
        """Until the worker is gone, and what it said before has been read."""
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

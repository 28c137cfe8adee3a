"""The application's side of a worker in another process (daemon/remote_application.py is that
worker's)."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Sequence

import trio

from hoststack.native.event_ring import EventRing
from hoststack.session.application import Application
from hoststack.session.channel import Channel, ChannelClosedError
from hoststack.session.codec import FifosReleased, SegmentCame, decode_notice, encode
from hoststack.session.fifo_pool import BlockName, SharedFifos
from hoststack.session.messages import EventCode, Request
from hoststack.session.rings import open_rings


class AttachedWorker(Application):
    """A worker, as this process reaches it. Takes the socket and the descriptors over.

    In a trio program `run` has to run; when it ends the worker, or the way to it, is gone. Without
    trio whoever waits for descriptors does what `run` does (hoststack/vcl/client.py).
    """

    def __init__(
        self, name: str, channel: socket.socket, rings_fd: int, wake_worker_fd: int, wake_fd: int
    ) -> None:
        super().__init__(name, *open_rings(rings_fd))
        self._channel = Channel(channel, takes_fds=True)
        self._wake_worker_fd = wake_worker_fd
        self._wake_fd = wake_fd
        self._released: list[BlockName] = []
        self._fifos = SharedFifos(self._released.append)
        self.is_gone = False

    # --- down --------------------------------------------------------------------------------

    def request(self, request: Request) -> None:
        self._release_fifos()
        self._send(encode(request))

    def signal_sent(self, handle: int) -> None:
        self._signal(handle, EventCode.SENT)

    def signal_consumed(self, handle: int, is_urgent: bool = True) -> None:
        # A worker that sleeps has time, and one that does not is not woken.
        self._signal(handle, EventCode.CONSUMED)

    def _signal(self, handle: int, code: EventCode) -> None:
        self._down.push(handle, code)
        self._wake_worker()

    def _wake_worker(self) -> None:
        ring: EventRing = self._down.ring
        if not self.is_gone and ring.take_armed():
            # Full only if 2^64 wake-ups were not read: the worker has much to do anyway.
            with contextlib.suppress(BlockingIOError):
                os.eventfd_write(self._wake_worker_fd, 1)

    def _release_fifos(self) -> None:
        if self._released:
            names, self._released[:] = tuple(self._released), []
            for first in range(0, len(names), 1024):
                self._send(encode(FifosReleased(names[first : first + 1024])))

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
        return self._wake_fd

    def take_messages(self, received: Sequence[tuple[bytes, list[int]]]) -> None:
        """What came on the channel."""
        for data, fds in received:
            message = decode_notice(data, self._fifos.open)
            if isinstance(message, SegmentCame):
                (fd,) = fds
                self._fifos.add_segment(message.number, fd)
            else:
                self.notify(message)

    def arm_events(self) -> bool:
        """This side is about to sleep; whether there are events for it after all."""
        self._up.ring.arm()
        return bool(len(self._up.ring))

    def clear_wake_up(self) -> None:
        """The eventfd has done its work."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake_fd)

    def settle(self) -> None:
        """What did not fit before may now, and nobody else would look."""
        self._release_fifos()
        if self._down.is_held_up:
            self._down.settle()
            self._wake_worker()

    def close(self) -> None:
        """It is gone, or nobody needs it any more."""
        self.is_gone = True
        self._channel.close()
        os.close(self._wake_worker_fd)
        os.close(self._wake_fd)

    async def run(self) -> None:
        """Listens to the worker until it is gone, or this is cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._channel.run)
                nursery.start_soon(self._receive)
                nursery.start_soon(self._listen_to_events)
        except* ChannelClosedError:
            pass
        finally:
            self.close()

    async def _receive(self) -> None:
        while True:
            self.take_messages(await self._channel.receive())
            self.wake_application()
            self.settle()

    async def _listen_to_events(self) -> None:
        while True:
            if not self.arm_events():
                await trio.lowlevel.wait_readable(self._wake_fd)
                self.clear_wake_up()
            self.wake_application()
            self.settle()
            await trio.lowlevel.checkpoint()

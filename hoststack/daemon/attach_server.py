"""The daemon's unix socket, where applications attach, and the task that serves each of them."""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Protocol

import msgspec
import trio

from hoststack.boundary import attaching
from hoststack.boundary.channel import Channel, ChannelClosedError
from hoststack.boundary.containment import contained, fault_text
from hoststack.boundary.rings import shared_ends
from hoststack.boundary.user_shares import Process, UserShares
from hoststack.control.unix_listener import group_id
from hoststack.daemon import orders
from hoststack.daemon.config import ConfigError, DaemonConfig
from hoststack.daemon.leaving import Attachments, OnLetGo
from hoststack.session.namespaces import NamespaceError, Namespaces

logger = logging.getLogger("hoststack.daemon")

#: How long a client that connected may be silent.
_SILENCE_S: Final = 60.0
#: Most clients that have not sent their request. Beyond its share of them, a process's oldest one
#: is disconnected.
_MOST_GREETING: Final = 64
#: Most clients that wait until workers have let go of earlier ones.
_MOST_WAITING: Final = 256
_UCRED: Final = struct.Struct("3i")  # unix(7): struct ucred


class ServesApplications(Protocol):
    """A worker process that can serve applications."""

    on_let_go: OnLetGo

    def serve(self, order: orders.Serve, fds: list[int]) -> None: ...
    async def wait_for_room(self) -> None: ...


@dataclass(eq=False, slots=True)
class _Client:
    """An attached application."""

    number: int
    name: str
    pid: int
    uid: int
    hello: attaching.Attach
    channel: Channel
    release: Callable[[], None]
    """Ends the charge for it."""
    since: float = field(default_factory=trio.current_time)


def group_of(config: DaemonConfig) -> int | None:
    """Return the group that may attach beside root and the daemon's user. Raises ConfigError."""
    try:
        return None if config.group is None else group_id(config.group)
    except KeyError:
        raise ConfigError(
            f"group: there is no group {config.group!r}: `groupadd {config.group}`"
        ) from None


class AttachServer:
    """The applications of a daemon. They are notified when workers are added or removed."""

    def __init__(
        self, config: DaemonConfig, about: attaching.Attached, namespaces: Namespaces
    ) -> None:
        self._config = config
        self._namespaces = namespaces
        self._about = about
        self._clients: list[_Client] = []
        self._workers: dict[int, ServesApplications] = {}
        self._greeting: list[tuple[Process, trio.CancelScope]] = []
        self._attachments = Attachments()
        self._greetings = UserShares("connections")
        self._waiting = UserShares("attachments waiting")
        self._attached = UserShares("attachments")
        self.refused = 0
        """Refused applications since the start."""
        self.is_draining = False

    @property
    def clients(self) -> list[_Client]:
        """The attached applications, in order of attachment."""
        return list(self._clients)

    def add_worker(self, index: int, worker: ServesApplications) -> None:
        """Add a worker that serves, perhaps the replacement of one that died."""
        self._workers[index] = worker
        worker.on_let_go = partial(self._on_let_go, index)
        for client in list(self._clients):
            self._offer(client, index)

    def _on_let_go(self, index: int, number: int) -> None:
        self._attachments.let_go(number, index)
        for client in list(self._clients):
            # A worker that ends lets go of all; their connection to the daemon ends with that.
            if client.number == number and not self.is_draining:
                self._tell(client, attaching.WorkerLeft(index))

    def remove_worker(self, index: int) -> None:
        """Remove a worker that died."""
        if self._workers.pop(index, None) is not None:
            self._attachments.worker_died(index)
            for client in list(self._clients):
                self._tell(client, attaching.WorkerLost(index))

    async def serve(self, listener: socket.socket) -> None:
        """Accept applications until cancelled."""
        async with trio.open_nursery() as nursery:
            accepting = trio.socket.from_stdlib_socket(listener)
            is_short = False
            while True:
                try:
                    end, _ = await accepting.accept()
                except OSError as error:
                    # Most likely out of descriptors: some may be closed. Log it once.
                    if not is_short:
                        logger.warning("can't accept an application: %s", error.strerror)
                    is_short = True
                    await trio.sleep(0.1)
                    continue
                is_short = False
                nursery.start_soon(self._serve_one, socket.socket(fileno=end.detach()))

    async def _serve_one(self, end: socket.socket) -> None:
        """Serve one application until it leaves; its faults end only this task."""
        channel = Channel(end, max_waiting=4 * len(self._workers) + 64)
        client: _Client | None = None
        try:
            with contained(lambda error: _log_fault("an application", error)):
                pid, uid, _ = _UCRED.unpack(
                    end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
                )
                client = await self._greet(channel, pid, uid)
                if client is not None:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(channel.run)
                        # The protocol has no further message from it; one ends the connection.
                        await channel.receive_one()
                        nursery.cancel_scope.cancel()
        finally:
            if client is not None:
                logger.info("%s (process %d) is gone", client.name, client.pid)
                self._clients.remove(client)
                self._attachments.left(client.number)
                client.release()
            channel.close()

    async def _greet(self, channel: Channel, pid: int, uid: int) -> _Client | None:
        """Read a client's request; return the application, or None if it is not served."""
        process = uid, pid
        try:
            hello = attaching.decode_attach(await self._receive_request(channel, process))
        except attaching.GreetingError as error:
            logger.info("process %d of user %d sent an invalid request: %s", pid, uid, error)
            return None
        refusal = self._refusal(hello, process) or await self._wait_for_room(channel, process)
        # Others may have attached meanwhile.
        refusal = refusal or self._refusal(hello, process)
        if refusal is not None:
            self.refused += 1
            logger.info("%s (process %d, user %d) refused: %s", hello.name, pid, uid, refusal.text)
            channel.send(attaching.encode(refusal))
            return None
        logger.info("%s (process %d, user %d) attached", hello.name, pid, uid)
        about = msgspec.structs.replace(self._about, workers=len(self._workers))
        channel.send(attaching.encode(about))
        number, release = self._attachments.add(process), self._attached.add(self._payer(process))
        client = _Client(number, hello.name, pid, uid, hello, channel, release)
        self._clients.append(client)
        for index in list(self._workers):
            self._offer(client, index)
        return client

    async def _receive_request(self, channel: Channel, process: Process) -> bytes:
        """Return a client's request, empty if it sends none. Beyond the share of its process, the
        oldest one of that which is silent is disconnected."""
        if self._greetings.refusal(process, _MOST_GREETING - len(self._greetings)) is not None:
            silent = [scope for who, scope in self._greeting if who == process]
            if not silent:
                return b""
            silent[0].cancel()
        data = b""
        with trio.move_on_after(_SILENCE_S) as scope:
            release = self._greetings.add(process)
            self._greeting.append((process, scope))
            try:
                data, _ = await channel.receive_one()
            finally:
                self._greeting.remove((process, scope))
                release()
        return data

    async def _wait_for_room(self, channel: Channel, process: Process) -> attaching.Refused | None:
        """Wait until all workers accept orders, which many attachments at once can outpace, and
        have let go of what the process has left. The watchdog replaces a worker that hangs."""
        refusal = self._waiting.refusal(process, _MOST_WAITING - len(self._waiting))
        if refusal is not None:
            return attaching.Refused(errno.EAGAIN, refusal)
        release = self._waiting.add(process)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_say_that_it_waits, channel)
                await self._attachments.wait_for_room(process)
                for worker in list(self._workers.values()):
                    await worker.wait_for_room()
                nursery.cancel_scope.cancel()
        finally:
            release()
        return None

    def _payer(self, process: Process) -> Process:
        """Return who is charged for an attachment. Without a group only the daemon's user and root
        attach: then nothing is held back for other users, only for other processes."""
        return process if self._config.group is not None else (process[1], process[1])

    def _refusal(self, hello: attaching.Attach, process: Process) -> attaching.Refused | None:
        if hello.version != attaching.PROTOCOL_VERSION:
            return attaching.Refused(
                errno.EPROTONOSUPPORT,
                f"the daemon speaks version {attaching.PROTOCOL_VERSION} of the protocol, not "
                f"{hello.version}: use the same version of Hoststack for both",
            )
        if self.is_draining:
            return attaching.Refused(errno.ESHUTDOWN, "the daemon is shutting down")
        if len(self._clients) >= self._config.max_applications:
            return attaching.Refused(
                errno.EUSERS,
                f"{self._config.max_applications} applications are attached already: raise "
                "max-applications",
            )
        left = self._config.max_applications - len(self._clients)
        refusal = self._attached.refusal(self._payer(process), left)
        if refusal is not None:
            return attaching.Refused(errno.EUSERS, f"{refusal}, or raise max-applications")
        try:
            self._namespaces.admit(hello.namespace, hello.secret, hello.scopes)
        except NamespaceError as error:
            return attaching.Refused(errno.EACCES, str(error.strerror))
        except ValueError as error:
            return attaching.Refused(errno.EINVAL, str(error))
        return None

    def _offer(self, client: _Client, index: int) -> None:
        """Create what a worker and an application share, and send each its ends. If that fails,
        the application is disconnected."""
        with contained(lambda error: self._give_up(client, error)):
            self._share(client, index)

    def _share(self, client: _Client, index: int) -> None:
        label = f"{client.name}-{client.pid}"
        with contextlib.ExitStack() as ours:
            the_workers, theirs = shared_ends(label, ours)
            config, hello = self._config, client.hello
            order = orders.Serve(
                number=client.number,
                name=label,
                uid=client.uid,
                pid=client.pid,
                fifo_bytes=config.fifo_memory_bytes,
                sessions=config.max_sessions,
                namespace=hello.namespace,
                scopes=hello.scopes,
                group=(hello.name, hello.namespace, client.uid) if hello.shares_listeners else None,
            )
            self._attachments.served(client.number, index)
            try:
                self._workers[index].serve(order, the_workers)
            except BaseException:
                self._attachments.let_go(client.number, index)
                raise
            self._tell(client, attaching.WorkerOffered(index), theirs)

    def _tell(
        self, client: _Client, message: attaching.Answer, fds: list[int] | None = None
    ) -> None:
        with contained(lambda error: self._give_up(client, error)):
            client.channel.send(attaching.encode(message), fds or ())

    def _give_up(self, client: _Client, error: Exception) -> None:
        """Disconnect an application that is dead, does not read, or can't be served: closing its
        socket ends its task."""
        _log_fault(f"{client.name} (process {client.pid})", error)
        client.channel.shut()


async def _say_that_it_waits(channel: Channel) -> None:
    while True:
        await trio.sleep(attaching.WAITING_S)
        channel.send(attaching.encode(attaching.Waiting()))


def _log_fault(who: str, error: Exception) -> None:
    if isinstance(error, ChannelClosedError):
        logger.debug("%s left: %s", who, error)
    elif isinstance(error, OSError):
        logger.warning("%s can't be served: %s", who, fault_text(error))
    else:
        logger.error("%s can't be served: %s", who, fault_text(error), exc_info=error)

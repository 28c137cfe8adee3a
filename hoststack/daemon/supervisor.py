"""The supervisor: the process that has the privileges, and handles no packets.

It loads XDP (or opens sockets), starts a worker process for each receive queue, replaces workers
that die, and hands applications over to them. When it ends, for whatever reason, the steering
program is unloaded and the workers end as well.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import pwd
import signal
import socket
from typing import Any, Final

import trio

from hoststack.boundary import attaching
from hoststack.boundary.containment import contained
from hoststack.control.console import Console, RunInWorker
from hoststack.control.control_socket import serve_commands
from hoststack.control.grammar import Command
from hoststack.control.namespaces import add_namespace
from hoststack.control.unix_listener import unix_listener
from hoststack.control.worker_side import Data
from hoststack.daemon import orders
from hoststack.daemon.attach_server import AttachServer, group_of
from hoststack.daemon.config import ConfigError, DaemonConfig
from hoststack.daemon.link_parts import LinkPart, make_link_part
from hoststack.daemon.ports import PortChannel, PortKeeper
from hoststack.daemon.sd_notify import sd_notify
from hoststack.daemon.worker_process import WorkerProcess
from hoststack.link.base import LinkError
from hoststack.session.namespaces import Namespaces
from hoststack.transport.kernel.open_files import raise_open_files
from hoststack.worker.engines import SECRET_BYTES, ChosenEngine, choose_engine

logger = logging.getLogger("hoststack.daemon")

#: The pause before a replacement grows for a worker that dies repeatedly.
_FIRST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 5.0
#: A worker that lived this long has not failed at its start.
_LONG_LIFE_S: Final = 10.0
#: By then other workers have released a queue's lock, or it has been broken.
_LOCKS_S: Final = 1.0
_RECLAIMING_AGAIN_S: Final = 0.01
_MOST_RECLAIMING_S: Final = 3 * _LOCKS_S
#: How often the interface is checked.
_LOOK_EVERY_S: Final = 1.0
#: Time after the drain limit until workers are killed.
_GRACE_S: Final = 2.0


class DaemonError(Exception):
    """The daemon can't serve; the message says why."""


class Supervisor:
    """The supervisor's state and tasks. Use `run_daemon`."""

    def __init__(
        self, config: DaemonConfig, part: LinkPart, link_reason: str, engine: ChosenEngine
    ) -> None:
        self._config = config
        self._engine = engine
        self._part = part
        self._link_reason = link_reason
        self._ports = PortKeeper(part)
        self._secret = os.urandom(SECRET_BYTES)
        self._user = worker_user(config.user)
        self._workers: dict[int, WorkerProcess] = {}
        self._spare: WorkerProcess | None = None
        self._server: AttachServer | None = None
        self._is_ending = False
        self._namespaces = Namespaces()
        for id, secret in config.namespaces.items():
            self._namespaces.add(id, secret)
        self._lines: dict[int, RunInWorker] = {}
        """For the debug CLI: how to run a line in each worker that serves, by index."""
        self._console = Console(
            self._lines,
            {"app ns add": self._on_namespace, "show xdp": lambda _: part.describe()},
        )
        self.restarts = [0] * config.workers

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until SIGTERM or SIGINT; started when applications can attach."""
        path, group = self._config.socket, group_of(self._config)
        with unix_listener(path, socket.SOCK_SEQPACKET, group) as listener:
            try:
                await self._serve(listener, task_status)
            finally:
                for worker in self._workers.values():
                    worker.close()
                if self._spare is not None:
                    self._spare.close()

    async def _serve(self, listener: socket.socket, task_status: trio.TaskStatus[None]) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async with trio.open_nursery() as keeping, trio.open_nursery() as nursery:
                for index in range(self._config.workers):
                    await keeping.start(self._keep, index)
                about = self._workers[0].about
                assert about is not None
                self._server = AttachServer(
                    self._config,
                    attaching.Attached(
                        workers=self._config.workers,
                        link_name=about.link_name,
                        link_reason=self._link_reason,
                        engine_name=about.engine_name,
                    ),
                    self._namespaces,
                )
                for index, worker in self._workers.items():
                    self._server.add_worker(index, worker)
                nursery.start_soon(self._server.serve, listener)
                nursery.start_soon(self._break_locks)
                nursery.start_soon(self._watch_link)
                if self._config.cli_socket:
                    await nursery.start(self._serve_commands)
                self._keep_spare()
                sd_notify("READY=1")
                logger.info("serving at %s", self._config.socket)
                task_status.started()
                async for number in signals:
                    logger.info("%s: draining", signal.Signals(number).name)
                    break
                async with trio.open_nursery() as draining:
                    draining.start_soon(self._drain, draining.cancel_scope)
                    async for number in signals:
                        logger.info("%s again: ending at once", signal.Signals(number).name)
                        draining.cancel_scope.cancel()
                nursery.cancel_scope.cancel()
                keeping.cancel_scope.cancel()

    async def _drain(self, scope: trio.CancelScope) -> None:
        """Refuse new applications and connections, and end as soon as the workers have."""
        sd_notify("STOPPING=1")
        self._is_ending = True
        assert self._server is not None
        self._server.is_draining = True
        for worker in self._workers.values():
            worker.drain(self._config.drain_seconds)
        with trio.move_on_after(self._config.drain_seconds + _GRACE_S):
            for worker in list(self._workers.values()):
                await worker.ended.wait()
        scope.cancel()

    async def _serve_commands(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        await serve_commands(
            self._config.cli_socket,
            self._console.run_line,
            group=self._config.group,
            task_status=task_status,
        )

    def _on_namespace(self, command: Command) -> Data:
        """Run `app ns add` here, where applications are admitted."""
        add_namespace(self._namespaces, command)
        return {}

    # --- workers -----------------------------------------------------------------------------

    async def _keep(
        self, index: int, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Start a worker of this index, and replace it whenever it dies."""
        pause_s = _FIRST_PAUSE_S
        for generation in range(1 << 30):
            began = trio.current_time()
            how = await self._run_one(index, generation, task_status)
            if self._is_ending:
                return
            if self._server is None:
                raise DaemonError(f"worker {index} can't serve ({how}): see its messages above")
            logger.error("worker %d died (%s): starting a new one", index, how)
            self.restarts[index] += 1
            self._server.remove_worker(index)
            await self._reclaim(index)
            if trio.current_time() - began > _LONG_LIFE_S:
                pause_s = _FIRST_PAUSE_S
            else:
                await trio.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _run_one(
        self, index: int, generation: int, task_status: trio.TaskStatus[None]
    ) -> str:
        """Run a worker; return how it ended. Raises OSError if the first can't start."""
        with contextlib.ExitStack() as held:
            try:
                worker, self._spare = self._spare or WorkerProcess(), None
                held.callback(worker.close)
                channel = held.enter_context(self._ports.channel(index))
            except OSError as error:
                # No descriptors, memory or processes left, which may be temporary.
                if self._server is None:
                    raise
                return f"it can't be started: {error.strerror}"
            description, fds = self._part.hand_over(index)
            start = self._start(index, generation, description)
            worker.start(start, [channel.theirs.fileno(), *fds])
            channel.theirs.close()
            return _ending(await self._run_worker(index, worker, channel, task_status))

    async def _reclaim(self, index: int) -> None:
        """Recover what a dead worker held. Locks of other workers may delay that."""
        until = trio.current_time() + _MOST_RECLAIMING_S
        is_done = self._part.reclaim(index)
        while not is_done and trio.current_time() < until:
            await trio.sleep(_RECLAIMING_AGAIN_S)
            is_done = self._part.reclaim(index)
        if not is_done:
            logger.warning(
                "some frames of worker %d are lost: another worker keeps its queues locked", index
            )

    async def _break_locks(self) -> None:
        while True:
            await trio.sleep(_LOCKS_S)
            if broken := self._part.break_locks():
                logger.warning("a worker held %d queue locks too long: they were broken", broken)

    async def _watch_link(self) -> None:
        """Handle an interface that is deleted, or altered so that packets no longer arrive: log it,
        and use it again as soon as it is back. Workers and applications stay."""
        told = ""
        while True:
            await trio.sleep(_LOOK_EVERY_S)
            if not self._part.trouble:
                if trouble := self._part.look():
                    logger.error("out of service: %s", trouble)
                continue
            try:
                self._part.take_again()
            except LinkError as error:
                if error.errno != errno.ENODEV and error.strerror != told:
                    told = error.strerror or ""
                    logger.warning("the interface can't be used again yet: %s", told)
                continue
            logger.warning("the interface is back and in use again")
            for index, worker in self._workers.items():
                description, fds = self._part.hand_over(index)
                worker.relink(orders.Relink(description), fds)

    async def _run_worker(
        self,
        index: int,
        worker: WorkerProcess,
        channel: PortChannel,
        task_status: trio.TaskStatus[None],
    ) -> int:
        self._workers[index] = worker
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._serve_ports, worker, channel)
            nursery.start_soon(self._welcome, index, worker, task_status)
            status = await worker.run(self._config.watchdog_seconds)
            self._lines.pop(index, None)
            nursery.cancel_scope.cancel()
        return status

    async def _serve_ports(self, worker: WorkerProcess, channel: PortChannel) -> None:
        if fault := await channel.serve():
            worker.kill(fault)

    def _start(self, index: int, generation: int, description: dict[str, Any]) -> orders.Start:
        return orders.Start(
            index=index,
            workers=self._config.workers,
            generation=generation,
            link=self._part.name,
            description=description,
            engine=self._engine,
            host=self._config.host,
            rotation=0,
            secret=self._secret,
            user=self._user,
            busy_poll_us=self._config.busy_poll_us,
            namespaces=dict(self._config.namespaces),
        )

    async def _welcome(
        self, index: int, worker: WorkerProcess, task_status: trio.TaskStatus[None]
    ) -> None:
        await worker.ready.wait()
        logger.info("worker %d is process %d", index, worker.pid)
        with contained(lambda error: worker.kill(f"it can't apply the settings: {error}")):
            await self._console.prepare(worker.run_line)
        self._lines[index] = worker.run_line
        if self._server is None:
            task_status.started()
            return
        self._server.add_worker(index, worker)
        self._keep_spare()

    def _keep_spare(self) -> None:
        if self._spare is not None or self._is_ending:
            return
        try:
            self._spare = WorkerProcess()
        except OSError as error:
            logger.warning("no worker can be kept in reserve: %s", error.strerror)


def worker_user(wanted: str | None) -> str | None:
    """Return the user that workers become; None to stay as we are, if not root. Raises
    ConfigError."""
    if os.geteuid() != 0:
        return None
    for name in [wanted] if wanted is not None else ["hoststack", "nobody"]:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        if entry.pw_uid == 0:
            raise ConfigError(f"user is {name!r}, which is root: name an unprivileged user")
        return entry.pw_name
    name = wanted or "hoststack"
    raise ConfigError(f"there is no user {name!r}: `useradd --system {name}`, or name another")


def _ending(status: int) -> str:
    if status < 0:
        with contextlib.suppress(ValueError):  # a real-time signal
            return signal.Signals(-status).name
        return f"signal {-status}"
    return f"exit status {status}"


async def run_daemon(
    config: DaemonConfig, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Run a daemon until it ends. Raises LinkError, OSError, ConfigError, DaemonError."""
    raise_open_files()
    try:
        # Checked here: the workers may not have permission to read the engine's files.
        engine, why_not_better = choose_engine(config.engine)
    except ValueError as error:
        raise DaemonError(str(error)) from None
    part, reason = make_link_part(config, rotation=0)
    for fallback in filter(None, (why_not_better, reason)):
        logger.warning("%s", fallback)
    try:
        await Supervisor(config, part, reason, engine).run(task_status=task_status)
    finally:
        part.close()

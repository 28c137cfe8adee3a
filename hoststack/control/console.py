"""The debug CLI over all workers: parse a line, run it in each of them, and merge the answers.

Settings are replayed in workers that start later.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Final

import trio

from hoststack.boundary.containment import fault_text
from hoststack.control.commands import parse
from hoststack.control.grammar import Command, CommandError, WorkerGoneError
from hoststack.control.merge import merge
from hoststack.control.render import render
from hoststack.control.worker_side import Data
from hoststack.session.rules import parse_rule

logger = logging.getLogger(__name__)

#: Runs a line in one worker, wherever it is (hoststack/control/run.py); raises CommandError.
RunInWorker = Callable[[str], Awaitable[Data]]

#: Called with a command before it runs in the workers: its result is merged into the answer;
#: raises CommandError to refuse the command.
Listener = Callable[[Command], Data]


class Console:
    """The daemon's part of the debug CLI."""

    def __init__(
        self, workers: Mapping[int, RunInWorker], also: Mapping[str, Listener] | None = None
    ) -> None:
        """`workers` are the live workers, by index, looked up for each line. `also` are listeners
        for commands that the daemon itself must handle, by command name."""
        self._workers = workers
        self._also = also or {}
        self._settings: dict[tuple[str, str], str] = {}
        """Lines to replay, by the setting that they change."""
        self._changing = trio.Lock()
        """Held while a setting changes, and while a new worker gets them all."""

    async def run_line(self, line: str, as_json: bool = False) -> str:
        """Return the answer to a line, as text or as JSON; raises CommandError.

        If one worker fails the command fails: the others are cancelled, and what they did is
        undone. A worker that ends meanwhile is left out, as if it had ended before, unless its
        share of the command's work is lost with it.
        """
        command = parse(line)
        if command.name not in _SETTINGS:
            return await self._run(line, command, as_json)
        async with self._changing:
            text = await self._run(line, command, as_json)
            self._remember(line, command)
        return text

    async def _run(self, line: str, command: Command, as_json: bool) -> str:
        answers: list[Data] = []
        own: Data = {}
        if command.name != "help":
            if command.name in self._also:
                own = self._also[command.name](command)
            answers = await self._run_everywhere(line, command)
        try:
            data = merge(command, answers) | own
            return json.dumps(data) if as_json else render(command, data)
        except CommandError:
            raise
        except Exception as error:
            # A faulty worker must be able to spoil only its own answer.
            raise CommandError(
                f"a worker returned an invalid answer: {fault_text(error)}"
            ) from None

    async def prepare(self, run_in: RunInWorker) -> None:
        """Replay the settings in a new worker, which the caller adds to `workers` at once, so that
        it misses none."""
        async with self._changing:
            # A disabled session layer would refuse the echo servers.
            lines = sorted(self._settings.items(), key=lambda setting: setting[0] == _ENABLING)
            for _, line in lines:
                try:
                    await run_in(line)
                except CommandError as error:
                    command = parse(line)
                    told = {key: v for key, v in command.arguments.items() if key != "secret"}
                    logger.warning("a new worker refused %r %s: %s", command.name, told, error)

    async def _run_everywhere(self, line: str, command: Command) -> list[Data]:
        workers = dict(self._workers)
        if not workers:
            raise CommandError(_NO_WORKER)
        answers: dict[int, Data] = {}
        failures: dict[int, CommandError] = {}
        async with trio.open_nursery() as nursery:

            async def run_in(index: int) -> None:
                try:
                    answers[index] = await workers[index](line)
                except WorkerGoneError as error:
                    if command.name == _WORK:
                        fail(index, error)
                except CommandError as error:
                    fail(index, error)

            def fail(index: int, error: CommandError) -> None:
                failures[index] = error
                nursery.cancel_scope.cancel()

            for index in workers:
                nursery.start_soon(run_in, index)
        if not failures:
            if not answers:
                raise CommandError(_NO_WORKER)
            return list(answers.values())
        undoing = _undoing(command)
        if undoing is not None:
            for index in answers:
                with contextlib.suppress(WorkerGoneError):
                    await workers[index](undoing)
        index, error = next(iter(failures.items()))
        raise CommandError(f"worker {index}: {error}" if len(workers) > 1 else str(error))

    def _remember(self, line: str, command: Command) -> None:
        arguments = command.arguments
        match command.name:
            case "session enable" | "session disable":
                self._settings[_ENABLING] = line
            case "quic set cc" | "quic set fifo-size":
                self._settings[command.name, ""] = line
            case "app ns add":
                self._settings["namespace", str(arguments["id"])] = line
            case "session rule add":
                self._settings["rule", _rule_key(command)] = line
            case "session rule del":
                self._settings.pop(("rule", _rule_key(command)), None)
            case "test echo server" if "stop" not in arguments:
                self._settings["server", str(arguments["uri"])] = line
            case "test echo server":
                for kind, uri in list(self._settings):
                    if kind == "server" and arguments.get("uri", uri) == uri:
                        del self._settings[kind, uri]


#: Commands whose effect a new worker has to have.
_SETTINGS: Final = frozenset(
    {
        *("session enable", "session disable", "quic set cc", "quic set fifo-size", "app ns add"),
        *("session rule add", "session rule del", "test echo server"),
    }
)
_ENABLING: Final = ("session", "")
_NO_WORKER: Final = "no worker runs now: try again"
#: The command whose work is divided among the workers, and thus is incomplete without one of them.
_WORK: Final = "test echo clients"


def _rule_key(command: Command) -> str:
    """Return the same key for rules that replace each other."""
    rule = parse_rule(str(command.arguments["rule"]), needs_action=False)
    return str(replace(rule, action="allow", tag=""))


def _undoing(command: Command) -> str | None:
    """Return the line that undoes a command; None if there is nothing to undo."""
    if command.name == "test echo server" and "stop" not in command.arguments:
        return f"test echo server stop uri {command.arguments['uri']}"
    return None

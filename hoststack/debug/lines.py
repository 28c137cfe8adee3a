"""From a line to its answer: parsed, run in all workers, put together."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping

import trio

from hoststack.debug.commands import parse
from hoststack.debug.grammar import Command, CommandError
from hoststack.debug.merge import merge
from hoststack.debug.render import render
from hoststack.debug.worker_side import Data

#: Runs a command in one worker, wherever that is (hoststack/debug/run.py); raises CommandError.
RunInWorker = Callable[[Command], Awaitable[Data]]


async def run_line(line: str, workers: Mapping[int, RunInWorker], *, as_json: bool = False) -> str:
    """The answer to a line, as text or as JSON; raises CommandError.

    `workers` are those that live, by index. Where one fails, the command fails: the others are
    cancelled, and what they did is undone.
    """
    command = parse(line)
    answers = [] if command.name == "help" else await _run_everywhere(command, workers)
    data = merge(command, answers)
    return json.dumps(data) if as_json else render(command, data)


async def _run_everywhere(command: Command, workers: Mapping[int, RunInWorker]) -> list[Data]:
    if not workers:
        raise CommandError("no worker runs now: try again")
    answers: dict[int, Data] = {}
    failures: dict[int, CommandError] = {}
    async with trio.open_nursery() as nursery:

        async def run_in(index: int) -> None:
            try:
                answers[index] = await workers[index](command)
            except CommandError as error:
                failures[index] = error
                nursery.cancel_scope.cancel()

        for index in workers:
            nursery.start_soon(run_in, index)
    if not failures:
        return list(answers.values())
    undo = _undo(command)
    if undo is not None:
        for index in answers:
            await workers[index](undo)
    index, error = next(iter(failures.items()))
    raise CommandError(f"worker {index}: {error}" if len(workers) > 1 else str(error))


def _undo(command: Command) -> Command | None:
    """What takes a command back; None if there is nothing to take back."""
    if command.name == "test echo server" and "stop" not in command.arguments:
        return Command(command.name, {"stop": True, "uri": command.arguments["uri"]})
    return None

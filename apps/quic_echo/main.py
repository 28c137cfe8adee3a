"""The program: from its arguments to its report and exit status."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict

import trio

import hoststack
from apps.quic_echo.client import run_client
from apps.quic_echo.crew import Crew
from apps.quic_echo.options import Options, UsageError, parse_options
from apps.quic_echo.progress import show_progress
from apps.quic_echo.record import Record
from apps.quic_echo.report import json_failure, json_report, text_report
from apps.quic_echo.server import run_server
from apps.quic_echo.timing import Timing
from apps.quic_echo.usage import USAGE


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; return the exit status that USAGE describes."""
    timing = Timing()
    words = sys.argv[1:] if arguments is None else arguments
    try:
        if {"--help", "-h", "help"} & set(words):
            print(USAGE, end="", flush=True)
            return 0
        try:
            options = parse_options(words)
        except UsageError as error:
            print(f"quic_echo: {error}; quic_echo --help has all words", file=sys.stderr)
            if "json" in words:
                print(json_failure(2, str(error)), flush=True)
            return 2
        return _run(options, timing)
    except BrokenPipeError:
        # The reader of our output is gone; flushing the rest of the buffer must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _run(options: Options, timing: Timing) -> int:
    # This program reports failed handshakes and the like itself.
    logging.basicConfig(
        format="quic_echo: %(name)s: %(message)s",
        level=logging.INFO if options.log_level > 1 else logging.CRITICAL,
    )
    if options.log_level:
        # These say why a link or engine is not a better one.
        for name in ("hoststack.link.auto", "hoststack.worker.engines"):
            logging.getLogger(name).setLevel(logging.WARNING)
    crew = Crew(options, timing)
    trio.run(_run_until_done, crew)
    timing.last("exit")
    record = crew.total()
    if not record.exit_status:
        for event in (options.start_event, options.end_event):
            if event not in timing.at_s:
                record.fail(f"time: the event {event!r} did not happen")
    if options.is_json:
        print(json_report(record), flush=True)
    elif record.has_begun or record.exit_status > 128:
        print(text_report(record), flush=True)
    return record.exit_status


async def _run_until_done(crew: Crew) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(_watch_signals, crew)
        nursery.start_soon(show_progress, crew)
        async with trio.open_nursery() as members:
            members.start_soon(_run_member, crew, crew.records[0])
            for record in crew.records[1:]:
                members.start_soon(trio.to_thread.run_sync, trio.run, _run_member, crew, record)
        nursery.cancel_scope.cancel()


async def _run_member(crew: Crew, record: Record) -> None:
    """Run one thread's part; an early end of it ends the others, too."""
    crew.join(record)
    try:
        await _run_role(record)
    except* hoststack.UriError as group:
        record.fail(str(_first(group)), status=2)
        crew.stop()
    except* (ValueError, OSError) as group:
        error = _first(group)
        text = error.strerror if isinstance(error, OSError) else str(error)
        record.fail(text or str(error))
        crew.stop()
    except* trio.BrokenResourceError as group:
        record.fail(str(_first(group)))
        crew.stop()


async def _run_role(record: Record) -> None:
    options = record.options
    config = hoststack.QuicConfig(
        rx_fifo_bytes=options.fifo_bytes,
        tx_fifo_bytes=options.fifo_bytes,
        connection_window_bytes=4 * options.fifo_bytes,
        idle_timeout_s=options.idle_timeout_s,
        handshake_timeout_s=options.connect_timeout_s,
    )
    async with _stack(options, config) as stack:
        record.link_name = stack.link_name
        record.engine_name = stack.engine_name
        if stack.link_reason and options.socket_name is not None:
            record.log(1, stack.link_reason)
        try:
            # The stack is outside, so that it can send the connections' ends before it closes.
            with record.scope:
                await (run_server if options.is_server else run_client)(record, stack)
        finally:
            if isinstance(stack, hoststack.EmbeddedStack):
                record.engine_counters = asdict(stack.counters())
                record.link_statistics = stack.link.statistics()


def _stack(
    options: Options, config: hoststack.QuicConfig
) -> AbstractAsyncContextManager[hoststack.Stack]:
    """Return a daemon's stack, or an embedded one."""
    if options.socket_name is not None:
        return hoststack.attach(
            options.socket_name,
            name="quic_echo",
            namespace=options.namespace or "default",
            secret=options.secret or "",
            scopes=options.scopes,
            shares_listeners=options.threads > 1,
            config=config,
        )
    return hoststack.open_stack(
        options.interface,
        link=options.link,
        mode=options.mode,
        engine=options.engine,
        config=config,
        busy_poll_us=options.busy_poll_us,
    )


async def _watch_signals(
    crew: Crew, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        task_status.started()
        async for number in signals:
            for record in crew.records:
                record.interrupt(number)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first exception of a group of groups."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error

"""Attaching to a daemon: the same API, with the engine in the daemon's worker processes."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from hoststack.api.daemon_client import DaemonClient, hello_of
from hoststack.api.in_trio import TrioRouter
from hoststack.api.stack import Stack
from hoststack.boundary import attaching
from hoststack.boundary.scope import DEFAULT_NAMESPACE, Scope
from hoststack.quic.seam import QuicConfig


@asynccontextmanager
async def attach(
    path: str | Path = attaching.DEFAULT_PATH,
    *,
    name: str | None = None,
    namespace: str = DEFAULT_NAMESPACE,
    secret: str = "",
    scopes: Collection[Scope] = frozenset({"global"}),
    shares_listeners: bool = False,
    config: QuicConfig | None = None,
) -> AsyncIterator[Stack]:
    """Attach to the daemon whose socket is at `path`, and detach at the end of the block.

    `name` is shown to the daemon's operator; the default is the program's name. `scopes` and
    `shares_listeners` are as in `EmbeddedStack.application`. Without `config`, connections use the
    daemon's defaults. Everything open is closed at the end of the block, and when the daemon ends:
    pending calls then raise BrokenResourceError or ConnectError. Raises AttachError if there is no
    daemon, or it refuses.
    """
    hello = hello_of(name, namespace, secret, scopes, shares_listeners)
    client = DaemonClient(str(path), hello, trio.current_time)
    error: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            router = None
            try:
                await nursery.start(_drive, client)
                about = client.about
                router = TrioRouter(client.workers)
                yield Stack(
                    router,
                    config,
                    link_name=about.link_name,
                    link_reason=about.link_reason,
                    engine_name=about.engine_name,
                )
            except trio.Cancelled:
                raise
            except BaseException as caught:
                # Raised again outside the nursery, which would put it into an ExceptionGroup.
                error = caught
            finally:
                if router is not None:
                    router.close_listeners()
                nursery.cancel_scope.cancel()
    finally:
        client.close()
    if error is not None:
        raise error


async def _drive(
    client: DaemonClient, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Pump a client whenever there is something to pump; started when all workers are there.
    Raises AttachError before that."""
    client.call_soon = trio.lowlevel.current_trio_token().run_sync_soon
    has_started = False
    while True:
        client.pump()
        client.workers.wake_application()
        if client.has_started and not has_started:
            has_started = True
            task_status.started()
        limit_s = client.prepare()
        if not has_started:
            left_s = client.check_start()
            limit_s = left_s if limit_s is None else min(limit_s, left_s)
        if limit_s == 0:
            await trio.lowlevel.checkpoint()
            continue
        with trio.move_on_after(math.inf if limit_s is None else limit_s):
            await trio.lowlevel.wait_readable(client)

"""Commands that change a worker's settings."""

from __future__ import annotations

from dataclasses import replace

from hoststack.boundary.messages import ReloadRequested
from hoststack.boundary.protocols import CONFIGS, Config, Protocol
from hoststack.control.grammar import Command, CommandError
from hoststack.control.worker_side import Data, WorkerSide
from hoststack.quic.seam import QuicConfig


async def session_enable(command: Command, side: WorkerSide) -> Data:
    side.worker.layer.is_enabled = True
    return {"enabled": True}


async def session_disable(command: Command, side: WorkerSide) -> Data:
    side.worker.layer.is_enabled = False
    return {"enabled": False}


async def tls_reload(command: Command, side: WorkerSide) -> Data:
    """Ask each application. One whose notices wait already is left out: it does not read them."""
    asked: list[str] = []
    behind: list[str] = []
    for application in side.worker.layer.applications:
        (behind if application.is_behind else asked).append(application.name)
        if not application.is_behind:
            application.notify(ReloadRequested())
    side.worker.wake()
    return {"asked": asked, "behind": behind}


async def quic_set_cc(command: Command, side: WorkerSide) -> Data:
    layer = side.worker.layer
    wanted = str(command.arguments["cc"])
    if wanted not in layer.engine.congestion_controls:
        raise CommandError(
            f"the {layer.engine.name} engine has no congestion control {wanted!r}: use one of "
            f"{', '.join(layer.engine.congestion_controls)}"
        )
    layer.default_config = replace(layer.default_config, congestion_control=wanted)
    return {"cc": wanted}


async def quic_set_fifo_size(command: Command, side: WorkerSide) -> Data:
    layer = side.worker.layer
    layer.default_config = with_fifos(layer.default_config, int(command.arguments["fifo_bytes"]))
    return {"fifo_bytes": layer.default_config.rx_fifo_bytes}


def with_fifos(config: QuicConfig, fifo_bytes: int) -> QuicConfig:
    """Return settings whose streams have FIFOs of that size, and whose connections let one stream
    use all of it."""
    window_bytes = max(QuicConfig().connection_window_bytes, fifo_bytes)
    return replace(
        config,
        rx_fifo_bytes=fifo_bytes,
        tx_fifo_bytes=fifo_bytes,
        connection_window_bytes=window_bytes,
    )


def echo_config(command: Command, side: WorkerSide, protocol: Protocol) -> Config | None:
    """Return the settings that a `test echo` command asks for; None for the worker's defaults."""
    if "fifo_bytes" not in command.arguments:
        return None
    fifo_bytes = int(command.arguments["fifo_bytes"])
    if protocol == "quic":
        return with_fifos(side.worker.layer.default_config, fifo_bytes)
    return CONFIGS[protocol](fifo_bytes, fifo_bytes)

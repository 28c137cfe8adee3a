"""The engines that a worker can run, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from hoststack.link.base import Link
from hoststack.quic.aioquic_engine import AioquicEngine
from hoststack.quic.seam import CidConfig, Engine, FifoFactory

EngineName = Literal["auto", "aioquic"]


def engine_maker(
    name: EngineName, link: Link, cid: CidConfig | None = None
) -> Callable[[FifoFactory], Engine]:
    """What makes the engine of that name over a link, once it is given the FIFO factory."""
    if name not in ("auto", "aioquic"):
        raise ValueError(f"there is no engine {name!r}: take 'auto' or 'aioquic'")
    return lambda make_fifo: AioquicEngine(link, make_fifo, cid or CidConfig())

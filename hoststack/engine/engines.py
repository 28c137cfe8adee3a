"""The engines that a worker can run, by name."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from typing import Literal

from hoststack.link.base import Link
from hoststack.quic.aioquic_engine import AioquicEngine
from hoststack.quic.seam import CidConfig, Engine, EngineOwner

EngineName = Literal["auto", "native", "aioquic"]

#: Of the secret that workers share.
SECRET_BYTES = 32
_NATIVE_MODULE = "hoststack.native._quic"


def available_engines() -> list[Literal["native", "aioquic"]]:
    """The engines that were built here, the best first."""
    has_native = importlib.util.find_spec(_NATIVE_MODULE) is not None
    return ["native", "aioquic"] if has_native else ["aioquic"]


def engine_maker(
    name: EngineName, link: Link, cid: CidConfig | None = None, secret: bytes | None = None
) -> Callable[[EngineOwner], Engine]:
    """What makes the engine of that name over a link, once it is given its owner.

    "auto" is the native one where it was built. Engines with the same `secret` take each other's
    tickets and tokens; without one it is drawn. Raises ValueError for a name that is not there.
    """
    available = available_engines()
    if name == "auto":
        name = available[0]
    if name == "native" and name not in available:
        raise ValueError(
            "the native engine was not built: it needs ngtcp2 1.11, GnuTLS and OpenSSL with their "
            "headers (scripts/bootstrap.sh installs them on Debian), then `make build`"
        )
    cid = cid or CidConfig()
    secret = secret or os.urandom(SECRET_BYTES)
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"a secret has {SECRET_BYTES} bytes, not {len(secret)}")
    if name == "native":
        from hoststack.quic.native_engine import NativeEngine

        return lambda owner: NativeEngine(link, owner, cid, secret)
    if name == "aioquic":
        return lambda owner: AioquicEngine(link, owner, cid, secret)
    raise ValueError(f"there is no engine {name!r}: take 'auto', 'native' or 'aioquic'")

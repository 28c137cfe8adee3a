"""The engines that a worker can run, by name."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable
from typing import Final, Literal, get_args

from hoststack.link.base import Link
from hoststack.native.build_record import left_out
from hoststack.quic.seam import CidConfig, Engine, EngineOwner

logger = logging.getLogger(__name__)

ChosenEngine = Literal["native", "aioquic"]
EngineName = Literal["auto", "native", "aioquic"]

#: Size of the secret that workers share.
SECRET_BYTES = 32
_NATIVE_MODULE: Final = "hoststack.native.quic._quic"
_HOW_TO_BUILD: Final = (
    "it needs ngtcp2 1.11, GnuTLS and OpenSSL with their headers (scripts/bootstrap.sh installs "
    "them on Debian), then `make build`"
)


def why_not_native() -> str:
    """Return why the native engine can't be used here; empty if it can.

    Loads it, to detect a missing library that it was built against.
    """
    try:
        importlib.import_module(_NATIVE_MODULE)
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == _NATIVE_MODULE:
            if "native" in left_out():
                return f"it was left out of the build (HOSTSTACK_WITHOUT): {_HOW_TO_BUILD}"
            return f"it was not built: {_HOW_TO_BUILD}"
        return f"it can't be loaded ({error}): {_HOW_TO_BUILD}"
    return ""


def available_engines() -> list[ChosenEngine]:
    """Return the engines that work here, the best first."""
    return ["aioquic"] if why_not_native() else ["native", "aioquic"]


def choose_engine(wanted: EngineName) -> tuple[ChosenEngine, str]:
    """Return the engine to use; "auto" selects the best that works here.

    The second value says in one line why "auto" did not select the native engine, else it is
    empty. Raises ValueError for an unknown name, and for an engine that does not work here.
    """
    if wanted not in get_args(EngineName):
        raise ValueError(f"there is no engine {wanted!r}: use 'auto', 'native' or 'aioquic'")
    if wanted == "aioquic":
        return wanted, ""  # without loading the native one: a worker may not read its files
    available = available_engines()
    if wanted == "auto":
        best = available[0]
        why_not = why_not_native() if best != "native" else ""
        return best, f"engine {best} instead of native: {why_not}" if why_not else ""
    if wanted not in available:
        raise ValueError(f"there is no native engine: {why_not_native()}")
    return wanted, ""


def engine_maker(
    name: EngineName, link: Link, cid: CidConfig | None = None, secret: bytes | None = None
) -> Callable[[EngineOwner], Engine]:
    """Return a function that creates the named engine on a link for a given owner.

    "auto" selects the best that works here, and logs a WARNING if that is not the native one.
    Engines with the same `secret` accept each other's tickets and tokens; the default is a random
    one. Raises ValueError as `choose_engine`, and for a secret of the wrong size.
    """
    chosen, reason = choose_engine(name)
    if reason:
        logger.warning("%s", reason)
    cid = cid or CidConfig()
    secret = secret or os.urandom(SECRET_BYTES)
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"a secret has {SECRET_BYTES} bytes, not {len(secret)}")
    if chosen == "native":
        from hoststack.quic.native.engine import NativeEngine

        return lambda owner: NativeEngine(link, owner, cid, secret)
    from hoststack.quic.aioquic.engine import AioquicEngine

    return lambda owner: AioquicEngine(link, owner, cid, secret)

"""Errors of VCL: an OSError within, a negative errno from the plain functions."""

from __future__ import annotations

import errno
import os
from typing import Final

from hoststack.quic.seam import NO_ANSWER, CloseInfo

#: RFC 9000 section 20.1.
_CONNECTION_REFUSED: Final = 2
#: What the engines say of a connection that nothing was heard of.
_SILENT: Final = (NO_ANSWER, "Idle timeout")


def error(number: int, text: str = "") -> OSError:
    """An OSError with its usual text, and more."""
    usual = os.strerror(number)
    return OSError(number, f"{usual}: {text}" if text else usual)


def errno_of(info: CloseInfo, protocol: str) -> int:
    """What a connection that ended gives to who uses it."""
    if protocol != "quic" and not info.is_application and info.by_peer and info.code:
        return info.code  # the kernel's own
    if info.reason in _SILENT and not info.by_peer:
        return errno.ETIMEDOUT
    if info.code == _CONNECTION_REFUSED and not info.is_application:
        return errno.ECONNREFUSED
    return errno.ECONNRESET

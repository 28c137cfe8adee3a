"""Errors of VCL: OSErrors internally, negative errnos from the plain functions."""

from __future__ import annotations

import errno
import os
from typing import Final

from hoststack.quic.seam import NO_ANSWER, CloseInfo

#: RFC 9000 section 20.1.
_CONNECTION_REFUSED: Final = 2
#: The engines' reasons for connections whose peer stayed silent.
_SILENT: Final = (NO_ANSWER, "Idle timeout")


def error(number: int, text: str = "") -> OSError:
    """Return an OSError with its usual text, and more."""
    usual = os.strerror(number)
    return OSError(number, f"{usual}: {text}" if text else usual)


def errno_of(info: CloseInfo, protocol: str) -> int:
    """Return the errno that users of an ended connection get."""
    if protocol != "quic" and not info.is_application and info.by_peer and info.code:
        return info.code  # the kernel's errno
    if info.reason in _SILENT and not info.by_peer:
        return errno.ETIMEDOUT
    if info.code == _CONNECTION_REFUSED and not info.is_application:
        return errno.ECONNREFUSED
    return errno.ECONNRESET

"""Importing everything that a worker needs before it drops its privileges.

The user that it becomes may have no permission to read the program: a checkout in root's home, a
virtual environment there, or Python itself. Modules that are imported late (by us, or by a library
in a function that runs for the first time) would not be found then. Python finds a module that is
already loaded whatever its file's mode. tests/daemon/test_unreadable.py runs a worker and reports
every import and every file that it opens afterwards.
"""

from __future__ import annotations

import importlib
import logging
from typing import Final

from hoststack.worker.engines import why_not_native

logger = logging.getLogger(__name__)

#: What the native engine needs beside `hoststack.quic.native.engine`.
_NATIVE: Final = (
    "hoststack.quic.native.engine",
    "hoststack.link.udp.wire",
    "hoststack.link.xdp.wire",
)
#: Modules that are imported where they are first used, by libraries and by us.
_LATE: Final = (
    "cryptography.hazmat.backends.openssl.backend",
    "hoststack.link.kernel.rtnetlink",
    "hoststack.quic.aioquic.engine",
)


def load_everything() -> None:
    """Import everything that a worker may need."""
    for name in (*_LATE, *(() if why_not_native() else _NATIVE)):
        importlib.import_module(name)

"""Our connection IDs, in the layout of bpf/steer.h, by which packets reach their worker."""

from __future__ import annotations

import os
from typing import Final

from hoststack.native.wire._wire import lib
from hoststack.quic.seam import CidConfig

CID_BYTES: Final = int(lib.HS_CID_BYTES)
_RANDOM_BYTES: Final = CID_BYTES - int(lib.HS_CID_RANDOM_OFFSET)
_ROTATION_SHIFT: Final = int(lib.HS_CID_ROTATION_SHIFT)
_MAX_ROTATION: Final = 7
_MAX_HOST: Final = 0xFFFF
_MAX_WORKER: Final = int(lib.HS_STEER_MAX_WORKERS) - 1


class CidGenerator:
    """Generates connection IDs of one worker; call it for each."""

    def __init__(self, config: CidConfig) -> None:
        """Raises ValueError for numbers that do not fit into the layout."""
        for name, value, most in (
            ("rotation", config.rotation, _MAX_ROTATION),
            ("host", config.host, _MAX_HOST),
            ("worker", config.worker, _MAX_WORKER),
        ):
            if not 0 <= value <= most:
                raise ValueError(f"a connection ID's {name} is 0 to {most}, not {value}")
        first = config.rotation << _ROTATION_SHIFT | (CID_BYTES - 1)
        self.prefix = bytes((first, *config.host.to_bytes(2, "big"), config.worker))

    def __call__(self) -> bytes:
        """Return a connection ID of CID_BYTES, its last 8 random."""
        return self.prefix + os.urandom(_RANDOM_BYTES)

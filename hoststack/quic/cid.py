import os

from hoststack.quic.seam import CidConfig

CID_BYTES = 12


class CidGenerator:
    """New connection IDs of one worker."""

    def __init__(self, config: CidConfig) -> None:
        self._prefix = (
            bytes((config.rotation << 5 | (CID_BYTES - 1),))
            + config.host.to_bytes(2, "big")
            + bytes((config.worker,))
        )

    def __call__(self) -> bytes:
        return self._prefix + os.urandom(CID_BYTES - len(self._prefix))

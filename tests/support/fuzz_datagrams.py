"""Datagrams that nobody should send, from a seed: noise, lies, and real ones that were changed."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from typing import Final

from hoststack.quic.cid import CID_BYTES

_REMEMBERED: Final = 256
_VERSIONS: Final = (0, 1, 0x6B3343CF, 0xFF00001D, 0x1A2A3A4A, 0xFFFFFFFF)


class FuzzDatagrams:
    """`next()` gives one; `learn` shows it a real one to work with."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._seen: deque[bytes] = deque(maxlen=_REMEMBERED)
        self._kinds: list[Callable[[], bytes]] = [
            self._noise,
            self._long_header,
            self._short_header,
            self._replayed,
            self._changed,
            self._changed,
            self._cut,
            self._grown,
            self._coalesced,
            self._padded_initial,
        ]

    def learn(self, datagram: bytes) -> None:
        """Remember a datagram of a good connection."""
        self._seen.append(datagram)

    def next(self) -> bytes:
        """The next one."""
        return self._random.choice(self._kinds)()

    def _real(self) -> bytes:
        return self._random.choice(self._seen) if self._seen else self._noise()

    def _noise(self) -> bytes:
        return self._random.randbytes(self._random.choice((0, 1, 5, 6, 12, 13, 20, 60, 1200, 1472)))

    def _cid(self) -> bytes:
        """One of a good connection's, or one that looks like it, or anything."""
        rng, real = self._random, self._real()
        known = real[6:18] if real[:1] and real[0] & 0x80 else real[1:13]
        kind = rng.randrange(4)
        if kind == 0:
            return known
        if kind == 1:
            return known[:4] + rng.randbytes(CID_BYTES - 4)
        return rng.randbytes(rng.randrange(21))

    def _long_header(self) -> bytes:
        rng = self._random
        dcid, scid = self._cid(), self._cid()
        lengths = (len(dcid), len(scid))
        if rng.random() < 0.2:
            lengths = (rng.randrange(256), rng.randrange(256))
        version = rng.choice(_VERSIONS).to_bytes(4, "big")
        first = bytes((0x80 | rng.randrange(128),))
        body = rng.randbytes(rng.choice((0, 3, 30, 1180, 1400)))
        parts = (first, version, lengths[0:1], dcid, lengths[1:2], scid, body)
        return b"".join(bytes(part) for part in parts)

    def _padded_initial(self) -> bytes:
        """An Initial whose header is in order and whose contents nobody can read."""
        rng = self._random
        dcid = rng.randbytes(rng.randrange(8, 21))
        length = 1200 - (1 + 4 + 1 + len(dcid) + 1 + 1 + 2)
        head = b"\xc3\0\0\0\1" + bytes((len(dcid),)) + dcid + b"\0\0"
        return head + (0x4000 | length).to_bytes(2, "big") + rng.randbytes(length)

    def _short_header(self) -> bytes:
        rng = self._random
        return bytes((rng.randrange(128),)) + self._cid() + rng.randbytes(rng.randrange(60))

    def _replayed(self) -> bytes:
        return self._real()

    def _changed(self) -> bytes:
        changed = bytearray(self._real())
        for _ in range(self._random.randrange(1, 5)):
            if changed:
                changed[self._random.randrange(len(changed))] ^= 1 << self._random.randrange(8)
        return bytes(changed)

    def _cut(self) -> bytes:
        real = self._real()
        return real[: self._random.randrange(len(real) + 1)]

    def _grown(self) -> bytes:
        return self._real() + self._random.randbytes(self._random.randrange(1, 60))

    def _coalesced(self) -> bytes:
        return (self._real()[:700] + self._real()[:700] + self._noise())[:1472]

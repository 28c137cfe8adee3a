"""The datagram size of an aioquic connection: probes of the path's MTU (RFC 8899).

aioquic sends datagrams of one size for as long as a connection lives. Here a connection starts with
1,200 bytes, uses the size that a probe has proven, and falls back when large datagrams are no
longer acknowledged.
"""

from __future__ import annotations

import math
from typing import Final

#: RFC 9000 section 14: every path for QUIC carries this.
BASE_BYTES: Final = 1200
#: Common MTUs: Ethernet, PPPoE, tunnels, IPv6's minimum.
_USUAL_MTUS: Final = (1500, 1492, 1400, 1280)
_HEADER_BYTES: Final = {4: 28, 6: 48}  # IP and UDP
#: A size that so many probes did not prove is too large (RFC 8899 section 5.1.2: MAX_PROBES).
_MOST_PROBES: Final = 3
#: Three probe timeouts in a row take 1 + 2 + 4 PTOs; the third is due by then.
_SILENT_PTOS: Final = 6
_FIRST_RAISE_S: Final = 10.0
_LAST_RAISE_S: Final = 600.0  # RFC 8899 section 5.1.1: PMTU_RAISE_TIMER


class DatagramSize:
    """The datagram size of one connection on one path; no I/O, and the caller passes the time."""

    def __init__(self, most: int, ip_version: int, *, probes: bool) -> None:
        """`most` is what the interface carries; without probes that is used at once."""
        usual = (mtu - _HEADER_BYTES[ip_version] for mtu in _USUAL_MTUS)
        self._sizes = [most, *(size for size in usual if size < most)]
        self.current = BASE_BYTES if probes else max(BASE_BYTES, most)
        """The current size of datagrams."""
        self._next = 0
        self._probes = 0
        """Probes sent of the size that is being probed."""
        self._is_probing = False
        self._was_lost = False
        self._search_at = 0.0 if probes else math.inf
        self._raise_after_s = _FIRST_RAISE_S
        self._silent_since: float | None = None
        self._silent_bytes = 0
        """The size of the packet whose acknowledgement, or a larger one's, ends the silence."""

    def take_probe(self, now: float) -> int | None:
        """Return the size of the probe to send now; None if none is due."""
        if self._is_probing:
            return None
        if self._was_lost:
            # Perhaps it is too large for the path, perhaps that was chance.
            self._was_lost = False
            if self._probes >= _MOST_PROBES:
                self._probes = 0
                self._next += 1
        if self._next and not self._has_larger:
            self._search_later(now)
        if now < self._search_at or not self._has_larger:
            return None
        self._is_probing = True
        self._probes += 1
        return self._sizes[self._next]

    @property
    def _has_larger(self) -> bool:
        return self._next < len(self._sizes) and self._sizes[self._next] > self.current

    def on_probe_acked(self, size: int) -> None:
        """Use a size that the path has proven to carry."""
        self._is_probing = False
        self.current = max(self.current, size)
        self._raise_after_s = _FIRST_RAISE_S

    def on_probe_lost(self) -> None:
        """Note that a probe was not acknowledged in time."""
        self._is_probing = False
        self._was_lost = True

    def on_sent(self, size: int, now: float) -> None:
        """Note that a packet other than a probe was sent."""
        if size > BASE_BYTES and self._silent_since is None:
            self._silent_since, self._silent_bytes = now, size

    def on_acked(self, size: int) -> None:
        """Note that a packet of that size was acknowledged."""
        if size >= self._silent_bytes:
            self._silent_since = None

    def has_shrunk(self, now: float, pto_s: float) -> bool:
        """Return whether datagrams have to shrink: the path drops all large ones (RFC 8899 section
        4.3)."""
        if self._silent_since is None or now - self._silent_since < _SILENT_PTOS * pto_s:
            return False
        self._silent_since = None
        self.current = BASE_BYTES
        self._raise_after_s = _FIRST_RAISE_S
        self._search_later(now)
        return True

    def _search_later(self, now: float) -> None:
        self._next = self._probes = 0
        self._search_at = now + self._raise_after_s
        self._raise_after_s = min(2 * self._raise_after_s, _LAST_RAISE_S)

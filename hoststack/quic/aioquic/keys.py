"""When an aioquic connection updates its keys (RFC 9001 section 6).

aioquic updates them when asked to, and reads packets of no keys but the current and the next. So
once we have begun an update, none of the peer's packets can be read until it has read one of ours.
"""

from __future__ import annotations

from typing import Any, Final

from aioquic.quic.connection import QuicConnection
from aioquic.tls import Epoch

from hoststack.quic.seam import QuicConfig

_PING: Final = 0
#: RFC 9001 section 6.5: "An endpoint SHOULD wait three times the PTO before initiating a key update
#: after receiving an acknowledgment that confirms that the previous key update was received."
_WAIT_PTO: Final = 3


class KeyUpdates(QuicConnection):
    """The part of HostConnection that updates keys."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.key_update_at = 0
        """The packet number at which the next key update is due."""
        self.key_updates = 0
        self._packets_per_key = 0
        self._key_phase = 0
        self._first_of_key = 0
        """The number of the first packet since the last update, of either side."""
        self._may_update_at: float | None = 0.0
        """None before a packet of these keys is acknowledged."""

    def _begin_keys(self, config: QuicConfig) -> None:
        self.key_update_at = self._packets_per_key = config.packets_per_key

    def _update_key_if_due(self, now: float) -> None:
        """Update the keys, if a packet of the last ones was acknowledged (section 6.1)."""
        # Section 6.1: "An endpoint MUST NOT initiate a key update prior to having confirmed the
        # handshake".
        if not self._handshake_confirmed:
            return
        self._follow_key()
        if self._may_update_at is None:
            if self._spaces[Epoch.ONE_RTT].largest_acked_packet < self._first_of_key:
                return
            self._may_update_at = now + _WAIT_PTO * self._loss.get_probe_timeout()
        if self._packet_number >= self.key_update_at and now >= self._may_update_at:
            self.key_update_at = self._packet_number + self._packets_per_key
            self.key_updates += 1
            self.request_key_update()
            # A packet that is sent again until the peer has answered it: acknowledgements alone
            # would be lost for good, and with them all that the peer sends.
            self.send_ping(_PING)
            self._follow_key()

    def _follow_key(self) -> None:
        phase = self._cryptos[Epoch.ONE_RTT].key_phase
        if phase != self._key_phase:
            self._key_phase = phase
            self._first_of_key = self._packet_number
            self._may_update_at = None

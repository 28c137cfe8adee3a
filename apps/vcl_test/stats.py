"""Counts of moved bytes, printed as VPP's programs do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final

LINE: Final = "  -----------------------------"


@dataclass(slots=True)
class Stats:
    """Counts of one session, or of several together."""

    rx_xacts: int = 0
    rx_bytes: int = 0
    rx_eagain: int = 0
    rx_incomp: int = 0
    tx_xacts: int = 0
    tx_bytes: int = 0
    tx_eagain: int = 0
    tx_incomp: int = 0
    seconds: float = 0.0

    def add(self, other: Stats) -> None:
        """Add counts; the time is the longest."""
        for name in self.__slots__:
            mine, theirs = getattr(self, name), getattr(other, name)
            setattr(self, name, max(mine, theirs) if name == "seconds" else mine + theirs)

    def took(self, count: int, wanted: int) -> None:
        """Count a read."""
        self.rx_xacts += 1
        self.rx_bytes += count
        self.rx_incomp += count < wanted

    def gave(self, count: int, wanted: int) -> None:
        """Count a write."""
        self.tx_xacts += 1
        self.tx_bytes += count
        self.tx_incomp += count < wanted

    @property
    def gbps(self) -> float:
        return (self.tx_bytes + self.rx_bytes) * 8 / self.seconds / 1e9 if self.seconds else 0.0

    def to_json(self, *, is_full_duplex: bool) -> dict[str, Any]:
        return {
            **asdict(self),
            "gbps": self.gbps,
            "duplex": "full" if is_full_duplex else "half",
        }

    def lines(self, header: str, *, show_rx: bool, show_tx: bool) -> Iterator[str]:
        """Return lines as VPP's vcl_test_stats_dump prints them."""
        duplex = "full" if show_rx and show_tx else "half"
        yield ""
        yield f"{header}: Streamed {self.tx_bytes + self.rx_bytes} bytes"
        yield f"  in {self.seconds:f} seconds ({self.gbps:f} Gbps {duplex}-duplex)!"
        if show_tx:
            yield from _table("tx", "writes", self.tx_xacts, self.tx_bytes)
            yield f"      tx eagain:  {self.tx_eagain} (0x{self.tx_eagain:08x})"
            yield f"  tx incomplete:  {self.tx_incomp} (0x{self.tx_incomp:08x})"
        if show_rx:
            yield from _table("rx", "reads", self.rx_xacts, self.rx_bytes)
            yield f"      rx eagain:  {self.rx_eagain} (0x{self.rx_eagain:08x})"
            yield f"  rx incomplete:  {self.rx_incomp} (0x{self.rx_incomp:08x})"
        yield LINE


def increment(what: str, count: int, seconds: float) -> str:
    """Return a line as VPP's vcl_test_stats_dump_inc prints it."""
    gbps = count * 8 / seconds / 1e9
    return f"{what} {count // 1_000_000} Mbytes in {seconds:.2f} seconds {gbps:.2f} Gbps"


def _table(way: str, what: str, calls: int, count: int) -> Iterator[str]:
    yield LINE
    yield f"  {way} stats:"
    yield LINE
    yield f"{what:>15}:  {calls} (0x{calls:08x})"
    yield f"       {way} bytes:  {count} (0x{count:08x})"

"""Measurements that anybody can repeat: `make bench`."""

from typing import Final

#: The application protocol (ALPN) of the benchmarks' programs.
ALPN: Final = "bench"

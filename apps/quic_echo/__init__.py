"""quic_echo: times transfers over QUIC, with the words of VPP's program. See docs/quic_echo.md."""

from apps.quic_echo.main import main

__all__ = ["main"]

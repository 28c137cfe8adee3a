"""quic_echo: VPP's QUIC echo server and traffic generator, on hoststack (docs/quic_echo.md)."""

from apps.quic_echo.main import main

__all__ = ["main"]

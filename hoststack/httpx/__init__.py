"""HTTP/3 for httpx and httpx2: transports for their clients. See docs/howto/httpx.md."""

from hoststack.httpx.asynchronous import AsyncHTTP3Transport
from hoststack.httpx.synchronous import HTTP3Transport

__all__ = ["AsyncHTTP3Transport", "HTTP3Transport"]

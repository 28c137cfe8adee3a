"""ASGI applications over HTTP/3, in asyncio; hoststack.asgi.trio has the same for trio.

docs/howto/asgi.md shows how the parts are used.
"""

from hoststack.asgi.access_log import AccessLog, Entry
from hoststack.asgi.config import ApplicationError, AsgiConfig
from hoststack.asgi.exchange import DisconnectedError
from hoststack.asgi.loading import Application, load_application
from hoststack.asgi.scopes import is_early, respond_too_early
from hoststack.asgi.server import Server, open_server, serve
from hoststack.asgi.static_files import StaticFiles

__all__ = [
    "AccessLog",
    "Application",
    "ApplicationError",
    "AsgiConfig",
    "DisconnectedError",
    "Entry",
    "Server",
    "StaticFiles",
    "is_early",
    "load_application",
    "open_server",
    "respond_too_early",
    "serve",
]

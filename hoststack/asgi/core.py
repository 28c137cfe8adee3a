"""What servers of ASGI applications do in every loop."""

from __future__ import annotations

import importlib.util
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Final

from hoststack.api.router import Lot
from hoststack.asgi.access_log import AccessLog, Entry
from hoststack.asgi.config import AsgiConfig
from hoststack.asgi.exchange import Exchange, is_failure
from hoststack.asgi.http import HttpExchange
from hoststack.asgi.loading import Application, checked
from hoststack.asgi.scopes import BadRequestError, Peer
from hoststack.asgi.webtransport import WebTransportExchange
from hoststack.http3.about_server import AboutServerConnection, Request
from hoststack.http3.fields import to_fields

logger = logging.getLogger("hoststack.asgi")

_WEBSOCKET: Final = b"websocket"
_CONNECT: Final = b"CONNECT"
_BAD_REQUEST: Final = 400
_NOT_IMPLEMENTED: Final = 501
_SERVER_ERROR: Final = 500


class Statistics:
    """What a server has done so far."""

    __slots__ = ("body_bytes", "connections", "errors", "requests", "slow")

    def __init__(self) -> None:
        self.requests = 0
        """That are over."""
        self.errors = 0
        """Of those, answered with a status of 500 or more."""
        self.slow = 0
        """Of those, given up since the client was too slow: `Http3Config.slow_seconds`."""
        self.body_bytes = 0
        """Of responses' content, sent."""
        self.connections = 0
        """That were accepted."""


class Core(ABC):
    """An application, with what its requests share."""

    def __init__(
        self,
        application: Application,
        config: AsgiConfig | None = None,
        *,
        access_log: AccessLog | None = None,
    ) -> None:
        """Raises ApplicationError if that is no ASGI application."""
        self.application = checked(application, "the application")
        self.config = config or AsgiConfig()
        self.access_log = access_log
        self.statistics = Statistics()
        self.state: dict[str, Any] = {}
        """What the application put into its lifespan's state: each scope gets a copy."""
        self.default_fields = to_fields(self.config.headers)
        self.has_date = self.config.date_header
        self._answer_limit = _limit(self.config.answer_seconds)
        self._silence_limit = _limit(self.config.silence_seconds)
        self._least_limit = min(self._answer_limit, self._silence_limit)
        self.expires_every = min(1, self._least_limit / 4) if self._least_limit < math.inf else None
        """How often to call `expire`, in seconds; None: never."""
        self.running: dict[Exchange, None] = {}
        """Calls of the application, the oldest first."""

        self._connections: set[AboutServerConnection] = set()
        self._leaving = self.new_event()
        self._idle = self.new_lot()
        self._has_reported = False
        self._websocket = _websocket_exchange()

    now: Callable[[], float]
    """The loop's time in seconds."""

    @abstractmethod
    def new_event(self) -> Any:
        """Return an event of the loop."""

    @abstractmethod
    def new_lot(self) -> Lot:
        """Return a parking lot of the loop."""

    @abstractmethod
    def spawn(self, function: Callable[[], Any]) -> object:
        """Run an asynchronous function in a task, which ends with the server at the latest."""

    @abstractmethod
    async def _call(self, exchange: Exchange, scope: dict[str, Any]) -> None:
        """Call the application. Raises what it raises; if the exchange has expired, nothing."""

    def shut_down(self) -> None:
        """End gracefully; never blocks: clients are told (GOAWAY), new connections are refused, and
        `serve` returns after the last request, or after `AsgiConfig.drain_seconds`."""
        self._leaving.set()

    async def handle(self, peer: Peer, request: Request) -> None:
        """Have the application answer a request. Raises only what ends the whole program."""
        if request.method == _CONNECT:
            make: Callable[..., Exchange] | None = None
            if request.is_webtransport:
                make = WebTransportExchange
            elif request.protocol == _WEBSOCKET:
                make = self._websocket
            if make is None:  # RFC 9220 section 3
                if request.protocol == _WEBSOCKET:
                    self._report_no_websockets()
                exchange: Exchange = HttpExchange(self, peer, request)
                await exchange.answer(_NOT_IMPLEMENTED, "this server has no such CONNECT")
                exchange.close()
                return
            exchange = make(self, peer, request)
        else:
            exchange = HttpExchange(self, peer, request)
        self.running[exchange] = None
        try:
            scope = exchange.make_scope()
            await self._call(exchange, scope)
        except BadRequestError as error:
            await exchange.answer(_BAD_REQUEST, str(error), error.fields)
        except BaseException as error:
            if not is_failure(error):
                raise
            await exchange.on_failed(error)
        else:
            if exchange.is_expired:
                await exchange.on_expired()
            elif not exchange.is_complete:
                await exchange.on_returned()
        finally:
            del self.running[exchange]
            exchange.close()
            if not self.running:
                self._idle.unpark_all()

    def _report_no_websockets(self) -> None:
        if not self._has_reported:
            self._has_reported = True
            logger.warning(
                "WebSockets are answered with 501, for wsproto is not installed: "
                "pip install hoststack[asgi]"
            )

    def expire(self) -> None:
        """Cancel calls whose response has not begun, or not gone on, in time."""
        now = self.now()
        for exchange in list(self.running):
            if now - exchange.began < self._least_limit:
                break
            if not exchange.is_expired and (
                now - exchange.began >= self._answer_limit
                if exchange.is_waiting
                else now - exchange.silent_since >= self._silence_limit
            ):
                exchange.is_expired = True
                if exchange.cancel is not None:
                    exchange.cancel()

    def _announce_end(self) -> None:
        """Tell calls that last that the server ends."""
        for exchange in list(self.running):
            exchange.on_server_leaving()

    async def _until_idle(self) -> None:
        while self.running:
            await self._idle.park()

    def _report_cut_off(self) -> None:
        logger.warning(
            "%d requests were not over within %g s, and are cut off",
            len(self.running),
            self.config.drain_seconds,
        )

    async def _flush_log(self, access_log: AccessLog) -> None:
        """Write the access log, once for all requests of a turn of the loop."""
        added = self.new_lot()
        access_log.on_first_line = added.unpark
        try:
            while True:
                await added.park()
                access_log.flush()
        finally:
            access_log.on_first_line = None
            access_log.flush()

    def on_request_over(self, exchange: Exchange) -> None:
        """Count a request, and add its line to the access log."""
        statistics = self.statistics
        statistics.requests += 1
        statistics.body_bytes += exchange.sent_bytes
        if exchange.status >= _SERVER_ERROR:
            statistics.errors += 1
        if exchange.request.is_slow:
            statistics.slow += 1
        if self.access_log is None:
            return
        request, peer = exchange.request, exchange.peer
        headers = request.headers
        if request.authority is not None:
            headers = [(b"host", request.authority), *headers]
        self.access_log.add(
            Entry(
                peer.connection.remote[0],
                request.method.decode("latin-1"),
                request.path or request.authority or b"-",
                "HTTP/3",
                exchange.status,
                exchange.sent_bytes,
                self.now() - exchange.began,
                headers,
                peer.request_id(request),
            )
        )


def _limit(seconds: float | None) -> float:
    return math.inf if seconds is None else seconds


def _websocket_exchange() -> Callable[..., Exchange] | None:
    """Return what serves WebSockets; None where wsproto is not installed."""
    if importlib.util.find_spec("wsproto") is None:
        return None
    from hoststack.asgi.websocket import WebSocketExchange

    return WebSocketExchange

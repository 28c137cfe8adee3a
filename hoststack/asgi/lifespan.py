"""The application's lifespan: it is told when the server starts, and when it ends."""

from __future__ import annotations

import logging
from typing import Any, Final

from hoststack.asgi.config import ApplicationError
from hoststack.asgi.core import Core
from hoststack.asgi.exchange import is_failure
from hoststack.text import printable

logger = logging.getLogger("hoststack.asgi")

_NEXT: Final = {
    "startup": "lifespan.startup.complete or lifespan.startup.failed comes first",
    "shutdown": "lifespan.shutdown.complete or lifespan.shutdown.failed comes next",
}


class Lifespan:
    """One call of the application, which lasts as long as the server."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self.started: Any = core.new_event()
        """The application has answered the startup, or has ended."""
        self.stopped: Any = core.new_event()
        """The same for the shutdown."""
        self._leaving: Any = core.new_event()
        self._received = 0
        self._is_started = False
        self._has_ended = False
        self._failure: str | None = None
        self._error: BaseException | None = None

    async def run(self) -> None:
        """Call the application."""
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}}
        try:
            await self._core.application(
                {**scope, "state": self._core.state}, self._receive, self._send
            )
        except BaseException as error:
            if not is_failure(error):
                raise
            self._error = error
        finally:
            self._has_ended = True
            self.started.set()
            self.stopped.set()

    async def _receive(self) -> dict[str, Any]:
        self._received += 1
        if self._received == 1:
            return {"type": "lifespan.startup"}
        await self._leaving.wait()
        return {"type": "lifespan.shutdown"}

    async def _send(self, message: Any) -> None:
        kind = message["type"]
        now = "startup" if not self._is_started else "shutdown"
        if kind == f"lifespan.{now}.failed":
            self._failure = printable(message.get("message", ""))
        elif kind != f"lifespan.{now}.complete":
            raise RuntimeError(f"the application sent {printable(repr(kind))}, but {_NEXT[now]}")
        if now == "startup":
            self._is_started = self._failure is None
            self.started.set()
        else:
            self.stopped.set()

    def check_started(self) -> None:
        """Raise ApplicationError if the server must not start."""
        if self._is_started:
            return
        if self._failure is not None:
            why = (self._failure.rstrip().splitlines() or ["it says no more"])[-1]
            raise ApplicationError(f"the application's startup failed: {why}: correct it")
        mode = self._core.config.lifespan
        if not self._has_ended:
            raise ApplicationError(
                "the application's startup was not complete within "
                f"{self._core.config.startup_seconds:g} s: find out what it waits for, or set "
                "startup_seconds"
            )
        error = self._error
        why = f"it raised {type(error).__name__}: {error}" if error else "it returned"
        if mode == "on":
            raise ApplicationError(
                f"the application has no lifespan: {printable(why)}: set lifespan to auto or off"
            )
        if self._received:
            logger.warning(
                "the application's startup had no end, and is ignored: %s: have it send "
                "lifespan.startup.complete, or set lifespan to off",
                printable(why),
            )
        else:
            logger.debug("the application has no lifespan: %s", printable(why))

    def begin_shutdown(self) -> bool:
        """Tell the application that the server ends; returns whether `stopped` follows."""
        if self._has_ended or not self._is_started:
            if self._error is not None and self._is_started:
                logger.error("the application's lifespan failed", exc_info=self._error)
            return False
        self._leaving.set()
        return True

    def report_shutdown(self) -> None:
        """Log what went wrong in the shutdown."""
        if self._error is not None:
            logger.error("the application's shutdown failed", exc_info=self._error)
        elif self._failure is not None:
            logger.error("the application's shutdown failed: %s", self._failure)
        elif not self.stopped.is_set():
            logger.error(
                "the application's shutdown was not complete within %g s, and it is cancelled",
                self._core.config.shutdown_seconds,
            )

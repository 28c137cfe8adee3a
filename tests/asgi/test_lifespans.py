"""Lifespans: state, startups that fail, shutdowns, and the end of a server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio

from hoststack import StreamResetError, http3
from hoststack.asgi import ApplicationError, AsgiConfig
from hoststack.asgi import trio as asgi_trio
from tests.asgi.serving import SERVER, answering, run, serving, text
from tests.http3.peers import TRUSTING

STARTED = {"type": "lifespan.startup.complete"}
STOPPED = {"type": "lifespan.shutdown.complete"}


def living(*, startup: Any = STARTED, shutdown: Any = STOPPED, request: Any = None) -> Any:
    """An application whose lifespan sends these messages."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            await request(scope, receive, send)
            return
        for message in (startup, shutdown):
            await receive()
            if isinstance(message, Exception):
                raise message
            if message is None:
                await trio.sleep_forever()
            await send(message)

    return application


def starting(application: Any, **config: Any) -> Callable[[], Any]:
    async def main() -> None:
        async with asgi_trio.open_server(application, AsgiConfig(**config)):
            pass

    return main


def test_state_is_shared() -> None:
    events: list[str] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            assert await receive() == {"type": "lifespan.startup"}
            scope["state"]["pool"] = ["connection"]
            await send(STARTED)
            assert await receive() == {"type": "lifespan.shutdown"}
            events.append("shutdown")
            await send(STOPPED)
            return
        scope["state"]["own"] = scope["path"]  # a shallow copy
        assert len(scope["state"]) == 2
        scope["state"]["pool"].append(scope["path"])
        await answering(",".join(scope["state"]["pool"]).encode())(scope, receive, send)

    async def main() -> None:
        async with (
            serving(application) as (_, stack),
            http3.open_client(stack, SERVER, tls=TRUSTING) as client,
        ):
            assert await text(client, "/a") == b"connection,/a"
            assert await text(client, "/b") == b"connection,/a,/b"
            assert not events
        assert events == ["shutdown"]

    run(main)


@pytest.mark.parametrize(
    ("startup", "config", "told"),
    [
        (
            {"type": "lifespan.startup.failed", "message": "Traceback:\n  no database"},
            {},
            "the application's startup failed: .*no database: correct it",
        ),
        ({"type": "lifespan.startup.failed"}, {}, "it says no more"),
        (ValueError("a\nb"), {"lifespan": "on"}, r"it raised ValueError: a\\nb: set lifespan to"),
        (STOPPED, {"lifespan": "on"}, "lifespan.startup.failed comes first"),
        (None, {"startup_seconds": 2}, "not complete within 2 s: .* or set startup_seconds"),
    ],
)
def test_startups_that_fail(startup: Any, config: dict[str, Any], told: str) -> None:
    with pytest.raises(ApplicationError, match=told) as info:
        run(starting(living(startup=startup), **config))
    assert "\n" not in str(info.value)


def test_an_application_without_a_lifespan(caplog: pytest.LogCaptureFixture) -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"

    run(starting(application))
    assert not caplog.records
    with pytest.raises(ApplicationError, match="set lifespan to auto or off"):
        run(starting(application, lifespan="on"))
    run(starting(living(startup=ValueError("a bug"))))
    [record] = caplog.records
    assert "ValueError: a bug: have it send lifespan.startup.complete" in record.getMessage()


@pytest.mark.parametrize(
    ("shutdown", "told"),
    [
        ({"type": "lifespan.shutdown.failed", "message": "a reason"}, "failed: a reason"),
        (ValueError("a bug"), "the application's shutdown failed"),
        (None, "not complete within 2 s"),
    ],
)
def test_shutdowns_that_fail(shutdown: Any, told: str, caplog: pytest.LogCaptureFixture) -> None:
    run(starting(living(shutdown=shutdown), shutdown_seconds=2))
    assert told in caplog.text


def test_a_server_that_is_cancelled_still_ends_its_application() -> None:
    events: list[str] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(STARTED)
        await receive()
        await trio.sleep(1)
        events.append("ended")
        await send(STOPPED)

    async def main() -> None:
        with trio.move_on_after(1):
            async with asgi_trio.open_server(application):
                await trio.sleep_forever()
        assert events == ["ended"]

    run(main)


def test_an_error_in_the_block_is_not_wrapped() -> None:
    async def main() -> None:
        with pytest.raises(KeyError):
            async with asgi_trio.open_server(living()):
                raise KeyError

    run(main)


def test_a_graceful_end() -> None:
    done: list[str] = []

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await trio.sleep(5)
        await answering(b"whole")(scope, receive, send)
        await trio.sleep(2)
        done.append("background")

    async def main() -> None:
        async with (
            serving(living(request=slow)) as (server, stack),
            http3.open_client(stack, SERVER, tls=TRUSTING) as client,
        ):
            response = await client.open("GET", "/")
            await response.send_eof()
            await trio.sleep(1)
            server.shut_down()
            assert await response.read() == b"whole"
            await response.aclose()
            await client.connection.wait_closed()
            assert client.connection.close_info.code == 0x100
            await trio.sleep(3)
            assert done == ["background"]

    run(main)


def test_a_graceful_end_has_a_limit(caplog: pytest.LogCaptureFixture) -> None:
    async def stuck(scope: Any, receive: Any, send: Any) -> None:
        await trio.sleep_forever()

    async def main() -> None:
        config = AsgiConfig(drain_seconds=3, answer_seconds=None)
        async with (
            serving(living(request=stuck), config) as (server, stack),
            http3.open_client(stack, SERVER, tls=TRUSTING) as client,
        ):
            response = await client.open("GET", "/")
            await response.send_eof()
            await trio.sleep(1)
            server.shut_down()
            with pytest.raises((StreamResetError, ConnectionError)):
                await response.read()

    run(main)
    assert "1 requests were not over within 3 s" in caplog.text


def test_configurations_that_are_invalid() -> None:
    for options in (
        {"root_path": "api"},
        {"root_path": "/api/"},
        {"lifespan": "maybe"},
        {"drain_seconds": -1},
        {"answer_seconds": 0},
        {"ping_seconds": float("nan")},
        {"max_message_bytes": 0},
        {"headers": [("connection", "close")]},
        {"headers": [(":status", "200")]},
    ):
        with pytest.raises(ValueError, match=r".{10}"):
            AsgiConfig(**options)
    for application in (None, 5, object(), "main:app", lambda: None, lambda a, b: None, int):
        with pytest.raises(ApplicationError, match="the application"):
            run(starting(application))

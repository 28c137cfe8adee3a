"""Applications of the frameworks that people use, unchanged, in asyncio over loopback, and those
that run in trio."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import logging
from collections.abc import Callable
from typing import Any

import pytest

from hoststack import http3
from tests.asgi.serving import SERVER, run, serving, serving_in_asyncio, text
from tests.http3.peers import TRUSTING


def fastapi() -> Any:
    from fastapi import FastAPI

    app = FastAPI()

    @app.get("/items/{number}")
    async def item(number: int, q: str = "") -> dict[str, Any]:
        return {"number": number, "q": q}

    return app


def starlette() -> Any:
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse, StreamingResponse
    from starlette.routing import Route

    async def item(request: Any) -> Any:
        if request.path_params["number"] == "0":
            return StreamingResponse(part async for part in parts())
        number = int(request.path_params["number"])
        return JSONResponse({"number": number, "q": request.query_params["q"]})

    async def parts() -> Any:
        for part in ("a", "b"):
            yield part

    return Starlette(routes=[Route("/items/{number}", item)])


def _quart(kind: Any) -> Any:
    from quart import request

    app = kind("quart_app")

    @app.get("/items/<int:number>")  # type: ignore[untyped-decorator]
    async def item(number: int) -> dict[str, Any]:
        return {"number": number, "q": request.args["q"]}

    return app


def quart() -> Any:
    from quart import Quart

    return _quart(Quart)


def quart_trio() -> Any:
    from quart_trio import QuartTrio

    return _quart(QuartTrio)


def litestar() -> Any:
    from litestar import Litestar, get

    @get("/items/{number:int}")
    async def item(number: int, q: str) -> dict[str, Any]:
        return {"number": number, "q": q}

    return Litestar([item])


def falcon() -> Any:
    from falcon.asgi import App

    class Item:
        async def on_get(self, request: Any, response: Any, number: int) -> None:
            response.media = {"number": number, "q": request.get_param("q")}

    app = App()
    app.add_route("/items/{number:int}", Item())
    return app


def blacksheep() -> Any:
    from blacksheep import Application, json

    app = Application()

    @app.router.get("/items/{number}")
    async def item(number: int, q: str) -> Any:
        return json({"number": number, "q": q})

    return app


def django() -> Any:
    from django.conf import settings
    from django.core.asgi import get_asgi_application
    from django.http import JsonResponse
    from django.urls import path

    async def item(request: Any, number: int) -> Any:
        return JsonResponse({"number": number, "q": request.GET["q"]})

    if not settings.configured:
        urls = type("urls", (), {"urlpatterns": [path("items/<int:number>", item)]})
        settings.configure(ROOT_URLCONF=urls, ALLOWED_HOSTS=["*"], LOGGING_CONFIG=None)
    return get_asgi_application()


FRAMEWORKS = {
    "fastapi": fastapi,
    "starlette": starlette,
    "quart": quart,
    "litestar": litestar,
    "falcon": falcon,
    "blacksheep": blacksheep,
    "django": django,
}


def made(name: str, make: Callable[[], Any]) -> Any:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed: pip install '.[test]'")
    return make()


async def ask(application: Any) -> list[tuple[int, bytes]]:
    """What an application answers, served in asyncio."""
    answers = []
    async with serving_in_asyncio(application) as (_, client):
        for path in ("/items/7?q=a%20b", "/no"):
            async with await client.request("GET", path) as response:
                answers.append((response.status or 0, await response.read()))
    return answers


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the frameworks themselves
@pytest.mark.parametrize("name", FRAMEWORKS)
def test_in_asyncio(name: str, caplog: pytest.LogCaptureFixture) -> None:
    application = made(name, FRAMEWORKS[name])
    (status, body), (missing, _) = asyncio.run(ask(application))
    assert (status, json.loads(body)) == (200, {"number": 7, "q": "a b"})
    assert missing == 404
    assert not [each for each in caplog.records if each.name == "hoststack.asgi"]


@pytest.mark.parametrize(("name", "make"), [("starlette", starlette), ("quart_trio", quart_trio)])
def test_in_trio(name: str, make: Callable[[], Any], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "hoststack.asgi")
    application = made(name, make)

    async def main() -> None:
        async with (
            serving(application) as (_, stack),
            http3.open_client(stack, SERVER, tls=TRUSTING) as client,
        ):
            assert json.loads(await text(client, "/items/7?q=a")) == {"number": 7, "q": "a"}
            if name == "starlette":
                assert await text(client, "/items/0") == b"ab"

    run(main)
    assert not [each for each in caplog.records if each.name == "hoststack.asgi"]

"""Names of applications: what is found, and what is said of what is not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from hoststack.asgi import ApplicationError, load_application

SOURCE = """
import types
async def app(scope, receive, send): ...
class Framework:
    async def __call__(self, scope, receive, send): ...
inner = types.SimpleNamespace(app=Framework())
class Wsgi:
    def __call__(self, environ, start_response): ...
wsgi = Wsgi()
def two(scope): ...
def make(): return app
def broken(): raise RuntimeError("no settings")
async def four(scope, receive, send, more): ...
async def flexible(*arguments): ...
number = 5
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    (tmp_path / "shop_site.py").write_text(SOURCE)
    (tmp_path / "shop_usual.py").write_text("async def application(a, b, c): ...")
    (tmp_path / "shop_raises.py").write_text("\n1 / 0")
    (tmp_path / "shop_syntax.py").write_text("\n\ndef (:")
    (tmp_path / "shop_exits.py").write_text("raise SystemExit")
    (tmp_path / "shop_needs.py").write_text("import no_such_module_of_anybody")
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "__init__.py").write_text("")
    (tmp_path / "shop" / "main.py").write_text(SOURCE)
    yield tmp_path  # type: ignore[misc]
    for name in set(sys.modules) - before:
        if name.startswith("shop"):
            del sys.modules[name]


@pytest.mark.parametrize(
    "name",
    ["shop_site:app", "shop_site", "shop_usual", "shop.main:inner.app", "shop_site:flexible"],
)
def test_applications(folder: Path, name: str) -> None:
    assert callable(load_application(name, folder=str(folder)))


def test_factories(folder: Path) -> None:
    made = load_application("shop_site:make", folder=str(folder), is_factory=True)
    assert made.__name__ == "app"
    for name, told in (("broken", "failed: RuntimeError: no settings"), ("number", "no factory")):
        with pytest.raises(ApplicationError, match=told):
            load_application(f"shop_site:{name}", folder=str(folder), is_factory=True)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("", "write MODULE:ATTRIBUTE"),
        (":app", "write MODULE:ATTRIBUTE"),
        ("shop_site:", "write MODULE:ATTRIBUTE"),
        ("shop/main.py:app", "such as shop.main:app"),
        ("./shop_site.py", "such as shop_site:app"),
        ("shop_no:app", "no module 'shop_no' in "),
        ("shop.no:app", "no module 'shop.no' in "),
        ("shop_site.deep:app", "no module 'shop_site.deep' in|can't be imported"),
        ("..shop:app", "can't be imported"),
        ("shop\nx:app", r"no module 'shop\\nx' in "),
        ("shop_raises:app", r"ZeroDivisionError.*shop_raises.py, line 2\)"),
        ("shop_syntax:app", r"SyntaxError.*shop_syntax.py, line 3\)"),
        ("shop_exits:app", "ended the program"),
        ("shop_needs:app", "ModuleNotFoundError: No module named 'no_such"),
        ("shop_site:no", r"has no 'no': .* \(it has app, inner|\(it has app, "),
        ("shop_site:inner.no", "has no 'inner.no'"),
        ("shop:app", "has no 'app'"),
        ("shop", "neither `app` nor `application`"),
        ("shop_site:number", "an object of type int"),
        ("shop_site:Framework", "is a class"),
        ("shop_site:wsgi", "as WSGI applications do: wrap it with a2wsgi"),
        ("shop_site:two", "an application of ASGI 2"),
        ("shop_site:make", "load it as a factory"),
        ("shop_site:four", "needs 4 arguments"),
    ],
)
def test_what_can_not_be_served(folder: Path, name: str, told: str) -> None:
    with pytest.raises(ApplicationError, match=told) as info:
        load_application(name, folder=str(folder))
    assert "\n" not in str(info.value)

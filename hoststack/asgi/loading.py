"""Finding an application by its name: MODULE:ATTRIBUTE."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Awaitable, Callable, MutableMapping
from types import ModuleType
from typing import Any, Final

from hoststack.asgi.config import ApplicationError
from hoststack.text import printable

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

#: Attributes that are looked for when a name has none.
_USUAL: Final = ("app", "application")
_PARAMETERS: Final = 3
_MAX_SHOWN: Final = 8


def load_application(name: str, *, folder: str = ".", is_factory: bool = False) -> Application:
    """Import an ASGI 3 application: "MODULE:ATTRIBUTE", such as "shop.main:app", or "MODULE" for
    its `app` or `application`.

    Modules are also looked for in `folder`. With `is_factory` the attribute is called without
    arguments, and returns the application. Raises ApplicationError.
    """
    module_name, colon, path = name.partition(":")
    if not module_name or (colon and not path):
        raise ApplicationError(
            f"{name!r} names no application: write MODULE:ATTRIBUTE, such as main:app"
        )
    if module_name.endswith(".py") or "/" in module_name:
        raise ApplicationError(
            f"{module_name!r} is a file: write the module's name, with dots and without "
            f".py, such as {printable(_as_module(module_name))}:app"
        )
    found: Any = _import(module_name, folder)
    found = _attribute(found, module_name, path) if path else _usual(found, module_name)
    shown = printable(name)
    if is_factory:
        found = _made(found, shown)
    return checked(found, shown)


def checked(application: Any, name: str) -> Application:
    """Return the application if it can be one of ASGI 3. Raises ApplicationError."""
    if not callable(application):
        raise ApplicationError(
            f"{name} is no application but {_a(application)}: name the ASGI application itself"
        )
    if inspect.isclass(application) and not hasattr(application, "__await__"):
        raise ApplicationError(
            f"{name} is a class: name an instance of it, or a function that returns one as a "
            "factory"
        )
    count = _required_parameters(application)
    if count is None or count == _PARAMETERS:
        found: Application = application
        return found
    if count == 0:
        raise ApplicationError(
            f"{name} takes no arguments, and so is no ASGI application: if it returns one, load it "
            "as a factory"
        )
    if count == 1:
        raise ApplicationError(
            f"{name} is an application of ASGI 2, with one argument: wrap it with "
            "asgiref.compatibility.guarantee_single_callable"
        )
    if count == 2:
        raise ApplicationError(
            f"{name} takes two arguments, as WSGI applications do: wrap it with "
            "a2wsgi.WSGIMiddleware (pip install a2wsgi)"
        )
    raise ApplicationError(
        f"{name} needs {count} arguments: an ASGI application has scope, receive and send"
    )


def _as_module(file: str) -> str:
    return file.removesuffix(".py").strip("./").replace("/", ".")


def _import(module_name: str, folder: str) -> ModuleType:
    place = os.path.abspath(folder)
    if place not in sys.path:
        sys.path.insert(0, place)
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (
            module_name == error.name or module_name.startswith(error.name + ".")
        ):
            raise ApplicationError(
                f"there is no module {error.name!r} in {printable(place)} or among the "
                "installed packages: check its name, or the folder to look in"
            ) from None
        raise ApplicationError(_failed(module_name, error)) from error
    except Exception as error:
        raise ApplicationError(_failed(module_name, error)) from error
    except SystemExit as error:
        raise ApplicationError(
            f"the module {module_name!r} ended the program when it was imported: put "
            'what runs a server below `if __name__ == "__main__":`'
        ) from error


def _failed(module_name: str, error: BaseException) -> str:
    """Say where an import failed: the last line of the module's own code, not of the importer."""
    frames = traceback.extract_tb(error.__traceback__)
    at = f" ({printable(frames[-1].filename)}, line {frames[-1].lineno})" if frames else ""
    if isinstance(error, SyntaxError):
        at = f" ({printable(error.filename)}, line {error.lineno})"
    why = f"{type(error).__name__}: {error.msg if isinstance(error, SyntaxError) else error}"
    return f"the module {module_name!r} can't be imported: {printable(why)}{at}: correct it there"


def _attribute(module: ModuleType, module_name: str, path: str) -> Any:
    found: Any = module
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            there = [
                name
                for name, value in vars(module).items()
                if not name.startswith("_") and callable(value) and not inspect.isclass(value)
            ]
            hint = f"it has {', '.join(there[:_MAX_SHOWN])}" if there else "it has none"
            raise ApplicationError(
                f"the module {module_name!r} has no {path!r}: name its application ({hint})"
            ) from None
    return found


def _usual(module: ModuleType, module_name: str) -> Any:
    for name in _USUAL:
        if hasattr(module, name):
            return getattr(module, name)
    raise ApplicationError(
        f"the module {module_name!r} has neither `app` nor `application`: write "
        f"{printable(module_name)}:NAME"
    )


def _made(factory: Any, name: str) -> Any:
    if not callable(factory):
        raise ApplicationError(f"{name} is no factory but {_a(factory)}: it can't be called")
    try:
        return factory()
    except Exception as error:
        why = printable(f"{type(error).__name__}: {error}")
        raise ApplicationError(f"the factory {name} failed: {why}: correct it") from error


def _a(value: object) -> str:
    return f"an object of type {type(value).__name__}"


def _required_parameters(application: Any) -> int | None:
    """Return how many arguments a call needs at least; None if that can't be told, or 3 do."""
    try:
        signature = inspect.signature(application)
    except (TypeError, ValueError):
        return None
    try:
        signature.bind(None, None, None)
    except TypeError:
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        return sum(
            1
            for parameter in signature.parameters.values()
            if parameter.kind in kinds and parameter.default is inspect.Parameter.empty
        )
    return None

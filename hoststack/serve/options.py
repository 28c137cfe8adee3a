"""The settings of `hoststack serve` as options, environment variables and a TOML file.

An option overrides a variable, and a variable the file. All three are made from ServeSettings.
"""

from __future__ import annotations

import argparse
import dataclasses
import tomllib
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from hoststack.serve.settings import ServeError, ServeSettings, option_of

PREFIX: Final = "HOSTSTACK_SERVE_"
_CONFIG: Final = "config"
_SHORT: Final = {"bind": "-b", "interface": "-i"}
_TRUTH: Final = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
_TYPE_NAMES: Final = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
}


class _Kind(NamedTuple):
    """What values a setting has."""

    type: type
    is_list: bool
    choices: tuple[str, ...]


def _kinds() -> dict[str, _Kind]:
    return {name: _kind(hint) for name, hint in typing.get_type_hints(ServeSettings).items()}


def _kind(hint: Any) -> _Kind:
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        return _Kind(str, False, arguments)
    if typing.get_origin(hint) is tuple:
        return _Kind(arguments[0], True, ())
    return _Kind(arguments[0] if arguments else hint, False, ())  # `T | None`


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add an option for each setting, and --config."""
    kinds = _kinds()
    for field in dataclasses.fields(ServeSettings):
        kind, about = kinds[field.name], field.metadata
        words: dict[str, Any] = {"help": about["help"] + _shown_default(field), "default": None}
        if about["metavar"]:
            words["metavar"] = about["metavar"]
        if field.name == "app":
            parser.add_argument("app", nargs="?", **words)
            continue
        if kind.type is bool:
            words["action"] = argparse.BooleanOptionalAction
        else:
            words["type"] = kind.type
            if kind.choices:
                words["choices"] = kind.choices
        if kind.is_list:
            words["action"] = "append"
            words["help"] += "; may be given again"
        short = [_SHORT[field.name]] if field.name in _SHORT else []
        parser.add_argument(*short, option_of(field.name), dest=field.name, **words)
    parser.add_argument(
        option_of(_CONFIG),
        metavar="FILE",
        help="a TOML file with any of these settings, by the same names",
    )


def _shown_default(field: dataclasses.Field[Any]) -> str:
    default = field.default
    if default is None or default in ("", ()) or isinstance(default, bool):
        return ""
    text = f"{default:g}" if isinstance(default, float) else str(default)
    if isinstance(default, tuple):
        text = ", ".join(default)
    return f" (default: {text})"


def read_settings(options: argparse.Namespace, environment: Mapping[str, str]) -> ServeSettings:
    """Return the settings of a command line, an environment and a file; raises ServeError."""
    variables = _from_environment(environment)
    path = getattr(options, _CONFIG, None) or variables.pop(_CONFIG, None)
    variables.pop(_CONFIG, None)
    found = {} if path is None else _from_file(path)
    found |= variables
    for name in _kinds():
        value = getattr(options, name, None)
        if value is not None:
            found[name] = tuple(value) if isinstance(value, list) else value
    return ServeSettings(**found)


# --- the environment ------------------------------------------------------------------------


def variable_of(name: str) -> str:
    """Return the environment variable of a setting."""
    return PREFIX + name.upper()


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    kinds = _kinds() | {_CONFIG: _Kind(str, False, ())}
    names = {variable_of(name): name for name in kinds}
    found: dict[str, Any] = {}
    for variable, text in environment.items():
        if not variable.startswith(PREFIX):
            continue
        if variable not in names:
            raise ServeError(
                f"the environment has {variable}, which is no setting: `hoststack serve --help` "
                "lists them"
            )
        kind = kinds[names[variable]]
        parts = [part.strip() for part in text.split(",")] if kind.is_list else [text]
        values = [_parsed(variable, kind, part) for part in parts if part or not kind.is_list]
        found[names[variable]] = tuple(values) if kind.is_list else values[0]
    return found


def _parsed(variable: str, kind: _Kind, text: str) -> Any:
    try:
        parse: Callable[[str], Any] = _truth if kind.type is bool else kind.type
        return _chosen(variable, kind, parse(text))
    except ValueError:
        raise ServeError(f"{variable} is {_TYPE_NAMES[kind.type]}, not {text!r}") from None


def _truth(text: str) -> bool:
    if text.lower() not in _TRUTH:
        raise ValueError(text)
    return _TRUTH[text.lower()]


def _chosen(where: str, kind: _Kind, value: Any) -> Any:
    if kind.choices and value not in kind.choices:
        raise ServeError(f"{where} is one of {', '.join(kind.choices)}, not {value!r}")
    return value


# --- the file -------------------------------------------------------------------------------


def _from_file(path: str) -> dict[str, Any]:
    try:
        raw = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ServeError(f"--config {path}: can't be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ServeError(f"--config {path}: not TOML: {error}") from None
    kinds = _kinds()
    names = {name.replace("_", "-"): name for name in kinds}
    found: dict[str, Any] = {}
    for key, value in raw.items():
        if key not in names:
            raise ServeError(f"{path}: there is no setting {key!r}: there are {', '.join(names)}")
        found[names[key]] = _from_toml(f"{path}: {key}", kinds[names[key]], value)
    return found


def _from_toml(where: str, kind: _Kind, value: Any) -> Any:
    values: Sequence[Any] = value if kind.is_list and isinstance(value, list) else [value]
    right = (int, float) if kind.type is float else (kind.type,)
    for each in values:
        if not isinstance(each, right) or (isinstance(each, bool) and kind.type is not bool):
            raise ServeError(f"{where} is {_TYPE_NAMES[kind.type]}, not {each!r}")
        _chosen(where, kind, each)
    return tuple(values) if kind.is_list else value

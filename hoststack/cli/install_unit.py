"""`hoststack install-unit run|serve`: the systemd unit of the daemon, or of a web server."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
from importlib.resources import files
from pathlib import Path
from typing import Final

_SERVICES: Final = ("run", "serve")
_FOLDER: Final = "/etc/systemd/system"
_NAMES: Final = {"run": "hoststack", "serve": "hoststack-serve"}
_USAGE: Final = 2


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `install-unit` to the command line."""
    parser = commands.add_parser(
        "install-unit",
        help="install a systemd unit for `hoststack run` or `hoststack serve`",
        description="Writes a systemd unit that starts this program: the daemon (run) or a web"
        " server (serve). It starts nothing: it says which commands do.",
    )
    parser.add_argument("service", choices=_SERVICES)
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="its settings (default: /etc/hoststack.toml, of serve /etc/hoststack-serve.toml)",
    )
    parser.add_argument(
        "--user", help="the user of serve (default: one of its own, by systemd's DynamicUser)"
    )
    parser.add_argument(
        "--name", help="the unit's (default: hoststack for run, hoststack-serve for serve)"
    )
    parser.add_argument(
        "--folder", default=_FOLDER, metavar="FOLDER", help="where to (default: %(default)s)"
    )
    parser.add_argument("--print", action="store_true", help="print the unit, and write nothing")
    parser.add_argument("--force", action="store_true", help="replace a unit that differs")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    try:
        text = unit(options.service, _program(), options.config, options.user)
        name = _checked("--name", options.name or _NAMES[options.service], r"[A-Za-z0-9@_.-]+")
    except ValueError as error:
        print(f"hoststack: {error}", file=sys.stderr)
        return _USAGE
    if options.print:
        print(text, end="")
        return 0
    path = Path(options.folder) / f"{name.removesuffix('.service')}.service"
    try:
        _write(path, text, is_forced=options.force)
    except OSError as error:
        print(f"hoststack: cannot write {path}: {error.strerror}", file=sys.stderr)
        return 1
    config = _config_of(text)
    print(f"wrote {path}")
    if not config.exists():
        print(f"write its settings to {config} before you start it")
    print(f"start it with: systemctl daemon-reload && systemctl enable --now {path.stem}")
    return 0


def unit(service: str, program: str, config: str | None, user: str | None) -> str:
    """Return a unit's text. Raises ValueError for what a unit can't have."""
    text = files("hoststack.cli").joinpath(f"{service}.service").read_text(encoding="utf-8")
    text = text.replace(
        "/usr/bin/hoststack", _checked("the program's path", program, r"/[^\s%\"'\\$;]+")
    )
    if config is not None:
        path = _checked("--config", os.path.abspath(config), r"/[^\s%\"'\\$;]+")
        text = text.replace(str(_config_of(text)), path)
    if user is not None:
        if service == "run":
            raise ValueError("--user is for serve: the daemon needs root, and its workers do not")
        user = _checked("--user", user, r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
        text = text.replace("DynamicUser=true", f"User={user}")
    return text


def _config_of(text: str) -> Path:
    """The file of settings that a unit names."""
    found = re.search(r"--config (\S+)", text)
    assert found
    return Path(found[1])


def _checked(what: str, value: str, pattern: str) -> str:
    if not re.fullmatch(pattern, value):
        raise ValueError(f"{what} can't be {value!r}: a unit has no room for such characters")
    return value


def _program() -> str:
    """The path of the `hoststack` command that runs now, or of the one that is found first."""
    started = Path(sys.argv[0]).absolute()
    if started.name == "hoststack":
        return str(started)
    beside = Path(sys.executable).with_name("hoststack")
    return str(beside) if beside.exists() else shutil.which("hoststack") or "/usr/bin/hoststack"


def _write(path: Path, text: str, *, is_forced: bool) -> None:
    """Write a unit whole; raises FileExistsError rather than replace another one."""
    if not is_forced and path.exists() and path.read_text(encoding="utf-8") != text:
        raise FileExistsError(17, "there is another one; --force replaces it, --name names this")
    beside = path.with_name(f".{path.name}.new")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)

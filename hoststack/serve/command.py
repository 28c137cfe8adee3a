"""The command's work: everything that can be wrong is checked here, before anything starts."""

from __future__ import annotations

import importlib.util
import logging
import os
import threading
from contextlib import ExitStack

from hoststack.serve import certificates
from hoststack.serve.application import run_application
from hoststack.serve.children import Here
from hoststack.serve.endpoints import resolve
from hoststack.serve.engines import daemon_config
from hoststack.serve.log import log_to_terminal
from hoststack.serve.manager import Manager
from hoststack.serve.orders import End
from hoststack.serve.settings import ServeError, ServeSettings

logger = logging.getLogger("hoststack.serve")


def serve(settings: ServeSettings) -> int:
    """Serve until told to end; return the exit status. Raises ServeError."""
    _check(settings)
    with ExitStack() as undo:
        undo.enter_context(log_to_terminal())
        uris, sockets = resolve(settings.bind, tcp=settings.tcp)
        for each in sockets:
            undo.enter_context(each)
        pairs = certificates.read_pairs(settings)
        if not pairs:
            pairs = [certificates.self_signed(uris)]
            for line in certificates.about_self_signed(pairs[0], uris):
                logger.info("%s", line)
        tcp = [each.fileno() for each in sockets]
        here = None if settings.workers or settings.reload else Here()
        manager = Manager(settings, uris, pairs, tcp, here)
        manager.take_signals()
        undo.callback(manager.ignore_signals)
        return manager.run() if here is None else _serve_here(manager, here)


def _serve_here(manager: Manager, here: Here) -> int:
    """Serve in this process: the main thread is the application's."""
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(manager.run()), name="manager")
    thread.start()
    status = 1
    try:
        status = run_application(End(here.application_end))
    finally:
        here.has_ended(status)
        thread.join()
    return found[0]


def _check(settings: ServeSettings) -> None:
    """Check what can be without starting anything. Raises ServeError."""
    if settings.tcp and importlib.util.find_spec("hypercorn") is None:
        raise ServeError("--tcp needs hypercorn: pip install 'hoststack[tcp]'")
    if settings.loop == "uvloop" and importlib.util.find_spec("uvloop") is None:
        raise ServeError("--loop uvloop needs uvloop: pip install uvloop, or leave it out")
    for name in ("app_dir", "root", *(["reload_dir"] if settings.reload else [])):
        value = getattr(settings, name)
        for folder in [value] if isinstance(value, str) else value or ():
            if not os.path.isdir(folder):
                raise ServeError(
                    f"--{name.replace('_', '-')} {folder}: there is no such folder: check the path"
                )
    try:
        if settings.workers:
            daemon_config(settings, "-")
    except ValueError as error:
        raise ServeError(str(error)) from None

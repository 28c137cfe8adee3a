"""The project's programs in processes of their own, without the start of a Python for each.

Importing all that a program needs takes most of a short test's time. Here the child is a copy of
the process that runs the tests, so it has everything. Its descriptors, signals, streams, log and
warnings are as in a new process. Tests of installed commands run those instead.
"""

from __future__ import annotations

import faulthandler
import gc
import importlib
import logging
import os
import signal
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, NoReturn

import sniffio
from trio._core._run import GLOBAL_RUN_CONTEXT

from hoststack.worker import engines
from tests.support.netns import Side

_available_engines = engines.available_engines


def start(
    module: str,
    words: Sequence[str],
    *,
    side: Side | None = None,
    env: Mapping[str, str] | None = None,
    **options: Any,
) -> subprocess.Popen[str]:
    """Start `main(words)` of a module; `options` are those of Popen."""
    main = importlib.import_module(module).main
    child = partial(_be_program, module, main, list(words), side, env)
    with warnings.catch_warnings():
        # Of a fork while there are other threads, none of which matters to the child.
        warnings.simplefilter("ignore", DeprecationWarning)
        return subprocess.Popen([module], preexec_fn=child, text=True, **options)


def run(
    module: str,
    words: Sequence[str],
    *,
    timeout: float,
    side: Side | None = None,
    env: Mapping[str, str] | None = None,
    text: str | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run `main(words)` of a module to its end, with `text` as its input."""
    pipes: Any = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with start(module, words, side=side, env=env, **pipes) as process:
        try:
            out, err = process.communicate(text, timeout=timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess([module, *words], process.returncode, out, err)


def _be_program(
    name: str,
    main: Callable[[list[str]], int],
    words: list[str],
    side: Side | None,
    env: Mapping[str, str] | None,
) -> NoReturn:
    """Run in the child; exit with the program's status."""
    status = 1
    try:
        _forget_the_parent(name, words)
        if env is not None:
            os.environ.clear()
            os.environ.update(env)
        # To the end of the process.
        with side.inside() if side else nullcontext():
            status = _status_of(main, words)
    finally:
        os._exit(status)


def _forget_the_parent(name: str, words: list[str]) -> None:
    # No finalizer of the parent's objects runs: its descriptors are others here.
    gc.freeze()
    faulthandler.disable()
    # The parent waits until the last of these is closed.
    os.closerange(3, 1 << 30)
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = [name, *words]
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    # Whatever a fixture has the parent take for all engines.
    engines.available_engines = _available_engines
    # No trio runs here.
    vars(GLOBAL_RUN_CONTEXT).clear()
    vars(sniffio.thread_local).clear()
    logging.root.handlers.clear()
    logging.root.setLevel(logging.WARNING)
    warnings.resetwarnings()
    for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
        warnings.simplefilter("ignore", category)


def _status_of(main: Callable[[list[str]], int], words: list[str]) -> int:
    """Call it, as Python does with a program."""
    try:
        status: object = main(words)
    except SystemExit as end:
        status = end.code
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
    if isinstance(status, str):
        print(status, file=sys.stderr)
        return 1
    return int(status) if isinstance(status, int) else 0

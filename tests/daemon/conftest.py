"""A daemon: `hoststack run` as a user would start it, over udp."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support import forked

#: How long anything here may take, in seconds, on a slow machine.
PATIENCE_S: Final = 240


class Daemon:
    """A daemon that serves."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self.process = process
        self.api = str(folder / "api.sock")
        self.cli = str(folder / "cli.sock")
        self._lines: list[str] = []
        self._has_more = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._has_more:
                self._lines.append(line)
                self._has_more.notify_all()
        with self._has_more:
            self._lines.append("")  # the end
            self._has_more.notify_all()

    @property
    def log(self) -> str:
        """What it has said so far."""
        return "".join(self._lines)

    def wait_for(self, pattern: str, count: int = 1) -> re.Match[str]:
        """Until it has said that so often: the last of it."""
        found: list[re.Match[str]] = []

        def is_there() -> bool:
            found[:] = re.finditer(pattern, self.log)
            return len(found) >= count or "" in self._lines

        with self._has_more:
            assert self._has_more.wait_for(is_there, PATIENCE_S), f"no {pattern!r} in: {self.log}"
        assert len(found) >= count, f"it ended without {pattern!r}: {self.log}"
        return found[count - 1]

    def account(self) -> str:
        """What a failed test says of it."""
        status = self.process.poll()
        return f"The process {'lives' if status is None else f'ended with {status}'}: {self.log}"

    def worker_pid(self, index: int) -> int:
        """The process of a worker, as the log has it last."""
        pids: list[str] = re.findall(rf"worker {index} is process (\d+)", self.log)
        return int(pids[-1])

    def ctl(self, *words: str) -> str:
        """The debug CLI's answer, by `hoststack ctl`."""
        line = ["ctl", "--socket", self.cli, *words]
        done = forked.run("hoststack.cli.main", line, timeout=PATIENCE_S)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it with a signal; its exit status."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)

    def join(self) -> None:
        """Until all of its processes have closed stderr."""
        self._reader.join(PATIENCE_S)


def started(prefix: Sequence[str], line: Sequence[str]) -> subprocess.Popen[str]:
    """A `hoststack` of its own; by a prefix, which may be a user of less privileges, a new one."""
    pipes: Any = {"stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
    if not prefix:
        return forked.start("hoststack.cli.main", line, **pipes)
    program = [*prefix, sys.executable, "-m", "hoststack.cli.main", *line]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(program, text=True, env=environment, **pipes)


@contextmanager
def run_daemon(*words: str, prefix: Sequence[str] = ()) -> Iterator[Daemon]:
    """A daemon with these options, in a folder of its own; killed at the end if it lives."""
    with tempfile.TemporaryDirectory(prefix="hs-daemon-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        line = ["run"]
        if "--link" not in words and "-i" not in words:
            line += ["--link", "udp"]
        line += ["--socket", f"{name}/api.sock", "--cli-socket", f"{name}/cli.sock", *words]
        with started(prefix, line) as process:
            daemon = Daemon(process, folder)
            try:
                daemon.wait_for("serving at")
                yield daemon
            except BaseException as error:
                error.add_note(daemon.account())
                raise
            finally:
                process.kill()
                daemon.join()


MakeDaemon = Callable[..., Daemon]


@pytest.fixture
def make_daemon() -> Iterator[MakeDaemon]:
    """Starts daemons: `make_daemon("--workers", "2")`."""
    with ExitStack() as running:
        yield lambda *words: running.enter_context(run_daemon(*words))


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """A daemon with two workers, for tests that do it no harm."""
    with run_daemon("--workers", "2") as running:
        yield running

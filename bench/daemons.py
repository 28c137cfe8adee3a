"""Daemons to measure applications of."""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.processes import Process, running
from tests.support import netns


@dataclass(frozen=True)
class Daemon:
    """One that runs."""

    api: str
    cli: str
    worker_pids: list[int]


@contextmanager
def daemon(
    side: netns.Side, engine: str, *, workers: int = 1, link: str = "af_xdp"
) -> Iterator[Daemon]:
    """`hoststack run` there. Raises BenchError."""
    with tempfile.TemporaryDirectory(prefix="hs-bench-") as folder:
        # Its workers are nobody's.
        Path(folder).chmod(0o755)
        api, cli = f"{folder}/api.sock", f"{folder}/cli.sock"
        words = ["run", "-i", side.ifname, "--link", link, "--engine", engine]
        words += ["--workers", str(workers), "--socket", api, "--cli-socket", cli]
        words += ["--drain-seconds", "0"]
        line = side.command(sys.executable, "-m", "hoststack.cli.main", *words)
        with running(line, is_ready=_serves) as process:
            pids = re.findall(r"worker \d+ is process (\d+)", process.errors())
            yield Daemon(api, cli, [int(pid) for pid in pids])


def _serves(process: Process) -> bool:
    return "serving at" in process.errors()

"""What a daemon's processes hold: open files and resident memory."""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.daemon.conftest import Daemon

#: What an allocator may keep beyond what it had before, of each process.
MORE_BYTES: Final = 32 << 20
#: What is opened for a moment, such as the socket of an application that is just attaching.
MORE_FILES: Final = 4


@dataclass(frozen=True)
class Held:
    """Of one process."""

    pid: int
    files: int
    resident_bytes: int

    @classmethod
    def by(cls, pid: int) -> Held:
        """What a process holds now."""
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found, f"process {pid} has ended"
        return cls(pid, len(os.listdir(f"/proc/{pid}/fd")), int(found[1]) << 10)

    def is_back_at(self, before: Held, more_bytes: int) -> bool:
        """Whether this is no more than was held before, but for so much memory."""
        return (
            self.pid == before.pid
            and self.files <= before.files + MORE_FILES
            and self.resident_bytes <= before.resident_bytes + more_bytes
        )

    def __str__(self) -> str:
        return f"process {self.pid}: {self.files} files, {self.resident_bytes >> 20} MiB"


def open_files(pid: int) -> str:
    """What a process has open, by kind."""
    kinds: Counter[str] = Counter()
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):  # closed meanwhile
            kinds[re.sub(r"[\d:\[\]]+", "", os.readlink(path))] += 1
    return ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())


def held(daemon: Daemon, workers: int) -> list[Held]:
    """Of the supervisor and of each worker."""
    pids = [daemon.process.pid, *(daemon.worker_pid(index) for index in range(workers))]
    return [Held.by(pid) for pid in pids]


def wait_until_back(
    daemon: Daemon,
    before: list[Held],
    patience_s: float,
    say: Callable[[str], None],
    more_bytes: int = MORE_BYTES,
) -> None:
    """Until each process holds what it held before; AssertionError when one does not."""
    end = time.monotonic() + patience_s
    while True:
        now = held(daemon, len(before) - 1)
        if all(one.is_back_at(other, more_bytes) for one, other in zip(now, before, strict=True)):
            break
        lines = "\n".join(f"{other}; now {one}" for one, other in zip(now, before, strict=True))
        if time.monotonic() > end:
            files = "\n".join(f"process {one.pid}: {open_files(one.pid)}" for one in now)
            raise AssertionError(f"not given back:\n{lines}\n{files}")
        time.sleep(0.5)
    say("held: " + "; ".join(map(str, now)))

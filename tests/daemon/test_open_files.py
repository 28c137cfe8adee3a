"""A daemon with few open files: what is one too many is refused and logged, and it serves on."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import resource
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from pathlib import Path
from typing import Final

import trio

import hoststack
from hoststack import ListenError, TlsConfig
from hoststack.boundary import attaching
from tests.daemon.conftest import PATIENCE_S, Daemon, run_daemon
from tests.daemon.echoing import is_well

LIMIT: Final = 256
HELLO: Final = attaching.encode(attaching.Attach(version=attaching.PROTOCOL_VERSION, name="raw"))
TLS: Final = TlsConfig.self_signed(["127.0.0.1"])


@contextmanager
def limited(*words: str, limits: str = f"-n {LIMIT}") -> Iterator[Daemon]:
    with run_daemon(*words, prefix=["sh", "-c", f'ulimit {limits} && exec "$@"', "sh"]) as daemon:
        yield daemon


def descriptors(daemon: Daemon) -> int:
    return len(os.listdir(f"/proc/{daemon.process.pid}/fd"))


def test_the_limit_is_raised() -> None:
    with limited(limits="-Sn 100 && ulimit -Hn 5000") as daemon:
        for pid in (daemon.process.pid, daemon.worker_pid(0)):
            limits = Path(f"/proc/{pid}/limits").read_text()
            assert re.search(r"Max open files +5000 +5000", limits), limits


async def listen_until_refused(stack: hoststack.Stack) -> tuple[int, str]:
    for count in range(LIMIT):
        try:
            await stack.listen("quic://127.0.0.1:0", tls=TLS, alpn=["test"])
        except ListenError as error:
            return count, f"{errno.errorcode[error.errno or 0]} {error}"
    raise AssertionError("nothing was refused")


def test_ports_without_end() -> None:
    """An application gets its share, and all together half of the files that there may be."""

    async def main(daemon: Daemon) -> None:
        with trio.fail_after(PATIENCE_S):
            async with AsyncExitStack() as held:
                counts = []
                why = ""
                while "too many ports for the daemon" not in why:
                    stack = await held.enter_async_context(hoststack.attach(daemon.api))
                    count, why = await listen_until_refused(stack)
                    counts.append(count)
                    assert why.startswith("EMFILE")
                assert counts[:-1] == [LIMIT // 8] * 3
                # The supervisor can replace a worker all the same.
                os.kill(daemon.worker_pid(0), signal.SIGKILL)
                await trio.to_thread.run_sync(daemon.wait_for, "worker 0 is process", 2)

    with limited() as daemon:
        before = descriptors(daemon)
        trio.run(main, daemon)
        daemon.wait_for("is gone", 4)
        is_well(daemon)
        assert "Traceback" not in daemon.log
        assert descriptors(daemon) < before + LIMIT // 2


def test_attaches_while_the_worker_hangs() -> None:
    """Their orders wait with descriptors, as many as may; whoever comes then is turned away."""
    with limited("--watchdog-seconds", "0") as daemon, ExitStack() as held:
        before = descriptors(daemon)
        os.kill(daemon.worker_pid(0), signal.SIGSTOP)
        for _ in range(400):
            end = held.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            end.connect(daemon.api)
            end.send(HELLO)
        # All of them have been heard.
        daemon.wait_for(r"raw \(process \d+, user \d+\) (attached|refused)", 300)
        assert daemon.process.poll() is None
        held.close()
        os.kill(daemon.worker_pid(0), signal.SIGCONT)
        daemon.wait_for(r"raw-\d+ left", 10)
        until = time.monotonic() + PATIENCE_S
        while True:
            assert time.monotonic() < until, daemon.log
            # The worker has those to forget that came before, who take its open files as well.
            with contextlib.suppress(ExceptionGroup, OSError):
                is_well(daemon)
                break
        assert "Traceback" not in daemon.log
        assert descriptors(daemon) <= before + 4


def test_no_worker_can_be_started_for_a_while() -> None:
    """It is replaced once there is room again, and the one in reserve, too."""
    with limited() as daemon:
        is_well(daemon)
        resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE, (5, LIMIT))
        os.kill(daemon.worker_pid(0), signal.SIGKILL)
        daemon.wait_for("it can't be started: Too many open files")
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as end:
            end.connect(daemon.api)
            daemon.wait_for("can't accept an application: Too many open files")
            resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE, (LIMIT, LIMIT))
            daemon.wait_for("worker 0 is process", 2)
            is_well(daemon)
        assert "Traceback" not in daemon.log

"""A daemon in a folder that only root can read, as a checkout in root's home is: its workers, which
are another user, have all that they need before they become that user."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

import pytest
import trio

import hoststack
from hoststack import ConnectError, TlsConfig
from hoststack.quic.session_cache import SessionCache
from hoststack.worker.engines import ChosenEngine, available_engines
from tests.daemon.conftest import PATIENCE_S, Daemon, run_daemon
from tests.daemon.echoing import TLS, TRUSTING, ask, echo, echo_server

pytestmark = pytest.mark.needs_root

ROOT = Path(__file__).resolve().parents[2]
#: Run a command with the checkout below a folder of mode 0700: FOLDER CHECKOUT COMMAND... The
#: interpreter comes from there too, if it is in the checkout.
FROM_THERE = """
folder=$1 checkout=$2 python=$3
shift 3
chmod 0700 "$folder"
mkdir "$folder/tree"
mount --make-rprivate /
mount --bind "$checkout" "$folder/tree"
cd "$folder/tree"
case $python in "$checkout"/*) python=$folder/tree/${python#"$checkout"/} ;; esac
exec "$python" "$@"
"""
#: Imported by every Python that has its folder in PYTHONPATH. A worker says on stderr what it
#: imports, and which files it opens, when it is root no more. To ask whether a module is loaded is
#: no event of "import"; /proc and /sys are no files of the program.
REPORTER = """
import os, sys

def report(event, arguments):
    if event not in ("import", "open", "ctypes.dlopen") or os.geteuid() == 0:
        return
    if isinstance(arguments[0], str) and not arguments[0].startswith(("/proc/", "/sys/", "/dev/")):
        os.write(2, f"LATE {event} {arguments[0]}\\n".encode())

if "hoststack.daemon.worker_main" in sys.orig_argv:
    sys.addaudithook(report)
"""
#: As if it had been left out of the build.
WITHOUT_NATIVE = "sys.modules['hoststack.native.quic._quic'] = None\n"


def late(said: str) -> list[str]:
    return re.findall(r"LATE .*", said)


@pytest.fixture(params=get_args(ChosenEngine))
def unreadable(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[tuple[Daemon, ChosenEngine]]:
    """A daemon with one worker whose files only root can read: with the native engine, and of a
    build without it."""
    if request.param not in available_engines():
        pytest.skip(f"the {request.param} engine was not built")
    private, hook = tmp_path / "private", tmp_path / "hook"
    private.mkdir()
    hook.mkdir()
    build = "" if request.param == "native" else WITHOUT_NATIVE
    (hook / "sitecustomize.py").write_text(REPORTER + build)
    run = ["unshare", "--mount", "sh", "-ec", FROM_THERE, "sh", str(private), str(ROOT)]
    prefix = ["env", f"PYTHONPATH={hook}", *run]
    with run_daemon("--engine", "auto", prefix=prefix) as daemon:
        yield daemon, request.param


async def resume(stack: hoststack.Stack, uri: str) -> None:
    tls = TlsConfig(ca=TLS.certificate, sessions=SessionCache())
    for _ in range(2):
        async with stack.connect(uri, tls=tls, alpn=["test"]) as connection:
            assert await ask(connection, b"resumed") == b"resumed"


async def use_every_kind(daemon: Daemon) -> None:
    """Have its worker do one of each thing that brings code to life which has not run before."""
    with trio.fail_after(PATIENCE_S):
        async with (
            hoststack.attach(daemon.api) as stack,
            hoststack.open_stack(link="udp") as other,
        ):
            async with echo_server(stack) as uri:
                await resume(other, uri)
                await resume(stack, uri)
                # Not the system's CAs, and not this name: both are the peer's fault.
                for tls in (TlsConfig(), TlsConfig(ca=TLS.certificate, server_name="nope")):
                    with pytest.raises(ConnectError) as refused:
                        async with stack.connect(uri, tls=tls, alpn=["test"]):
                            raise AssertionError
                    assert "internal error" not in str(refused.value), refused.value
                with pytest.raises(ConnectError):
                    async with stack.connect(uri, tls=TRUSTING, alpn=["nope"]):
                        raise AssertionError
            async with (
                echo_server(other) as uri,
                stack.connect(uri, tls=TRUSTING, alpn=["test"]) as connection,
            ):
                data = os.urandom(200_000)
                assert await ask(connection, data) == data
                if stack.engine_name == "native":
                    await connection.migrate()
            await ask_plain(stack, "tcp")


async def ask_plain(stack: hoststack.Stack, scheme: Literal["tcp", "udp"]) -> None:
    async with await stack.listen(f"{scheme}://127.0.0.1:0") as listener:
        host, port = listener.local
        async with (
            trio.open_nursery() as nursery,
            stack.connect(f"{scheme}://{host}:{port}") as connection,
        ):
            nursery.start_soon(echo, await listener.accept())
            assert await ask(connection, b"plain") == b"plain"


async def echo_over(daemon: Daemon) -> None:
    with trio.fail_after(PATIENCE_S):
        async with (
            hoststack.attach(daemon.api) as stack,
            echo_server(stack) as uri,
            stack.connect(uri, tls=TRUSTING, alpn=["test"]) as connection,
        ):
            assert await ask(connection, b"again") == b"again"


def test_workers_have_loaded_all_that_they_use(
    unreadable: tuple[Daemon, ChosenEngine],
) -> None:
    daemon, engine = unreadable
    trio.run(use_every_kind, daemon)
    for command in ("show app", "show session verbose 2", "show quic"):
        daemon.ctl(command)
    # So has the one in reserve.
    os.kill(daemon.worker_pid(0), signal.SIGKILL)
    daemon.wait_for("worker 0 is process", 2)
    trio.run(echo_over, daemon)
    assert engine in daemon.ctl("show workers")
    assert daemon.stop() == 0
    daemon.join()
    assert late(daemon.log) == []


def test_the_reporter_reports(tmp_path: Path) -> None:
    """The other test would hold of a worker that nobody watches."""
    (tmp_path / "sitecustomize.py").write_text(REPORTER)
    program = "import os; os.seteuid(65534); import this_is_not_there"
    # As a worker's command line has it.
    line = [sys.executable, "-c", program, "hoststack.daemon.worker_main"]
    done = subprocess.run(
        line,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "LATE import this_is_not_there" in late(done.stderr)

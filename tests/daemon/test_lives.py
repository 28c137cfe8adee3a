"""Lives and deaths of applications, workers and the supervisor, under load."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import trio

import hoststack
from hoststack import ConnectionClosedError
from tests.daemon.conftest import PATIENCE_S, Daemon, MakeDaemon, run_daemon
from tests.daemon.echoing import TRUSTING, ask, echo, echo_server, serve_while_it_lives

ROOT = Path(__file__).resolve().parents[2]
UNIT = ROOT / "hoststack" / "cli" / "run.service"


class Load:
    """Checked bytes that go on and on."""

    def __init__(self) -> None:
        self.rounds = 0
        self._more = trio.Event()

    async def run(self, connection: hoststack.Connection) -> None:
        data = os.urandom(300_000)
        while True:
            assert await ask(connection, data) == data
            self.rounds += 1
            self._more.set()
            self._more = trio.Event()

    async def one_more_round(self) -> None:
        """A whole one, from its beginning."""
        for _ in range(2):
            await self._more.wait()


class Echo:
    """An echo server that knows which worker has a connection."""

    def __init__(self, stack: hoststack.Stack) -> None:
        self._stack = stack
        self._homes: dict[tuple[str, int], int] = {}
        self.uri = ""

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        async def answer(connection: hoststack.Connection) -> None:
            self._homes[connection.remote] = connection.handle >> 32
            await echo(connection)

        async with trio.open_nursery() as nursery:
            listener = await nursery.start(
                serve_while_it_lives, self._stack, "quic://127.0.0.1:0", answer
            )
            self.uri = f"quic://127.0.0.1:{listener.local[1]}"
            task_status.started()

    async def workers_of(self, connection: hoststack.Connection) -> set[int]:
        """Of a connection's two ends, in a daemon that has both."""
        assert await ask(connection, b"where?") == b"where?"
        return {connection.handle >> 32, self._homes[connection.local]}


@asynccontextmanager
async def load(stack: hoststack.Stack, worker: int | None = None) -> AsyncIterator[Load]:
    """Through a connection whose ends are one worker's, or any, while the block lasts."""
    async with trio.open_nursery() as nursery:
        while True:
            # A worker's connections share a port: with another server port they hash to elsewhere.
            echo = Echo(stack)
            await nursery.start(echo.run)
            connection = await nursery.start(_keep, stack, echo.uri)
            if worker is None or await echo.workers_of(connection) == {worker}:
                break
        running = Load()
        async with trio.open_nursery() as moving:
            moving.start_soon(running.run, connection)
            await running.one_more_round()
            yield running
            moving.cancel_scope.cancel()
        nursery.cancel_scope.cancel()


async def _keep(
    stack: hoststack.Stack,
    uri: str,
    *,
    task_status: trio.TaskStatus[hoststack.Connection] = trio.TASK_STATUS_IGNORED,
) -> None:
    async with stack.connect(uri, tls=TRUSTING, alpn=["test"]) as connection:
        task_status.started(connection)
        await trio.sleep_forever()


def held_by(pid: int) -> tuple[int, int, int]:
    """Descriptors, mappings, and private memory in KiB of a process."""
    process = Path(f"/proc/{pid}")
    rollup = (process / "smaps_rollup").read_text()
    private = sum(int(kib) for kib in re.findall(r"^Private_\w+: +(\d+) kB", rollup, re.MULTILINE))
    maps = (process / "maps").read_text().count("\n")
    return len(list((process / "fd").iterdir())), maps, private


def is_back(now: list[tuple[int, int, int]], before: list[tuple[int, int, int]]) -> bool:
    """Whether processes have no more than they had, but for what varies by itself."""
    return all(
        fds <= fds_then + 2 and maps <= maps_then + 20 and private <= private_then + (16 << 10)
        for (fds, maps, private), (fds_then, maps_then, private_then) in zip(
            now, before, strict=True
        )
    )


@contextmanager
def victims(daemon: Daemon, uri: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-m", "tests.daemon.victims", daemon.api, uri],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def kill_one(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    word, pid = process.stdout.readline().split()
    assert word == "moving"
    os.kill(int(pid), signal.SIGKILL)
    assert process.stdout.readline() == "gone\n"


@pytest.mark.alone
def test_fifty_killed_applications_leave_nothing_behind(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon("--workers", "2")
    pids = [daemon.process.pid, daemon.worker_pid(0), daemon.worker_pid(1)]

    async def kill(process: subprocess.Popen[str], count: int, total: int) -> None:
        for _ in range(count):
            await trio.to_thread.run_sync(kill_one, process)
        await trio.to_thread.run_sync(daemon.wait_for, r"victim-\d+ left", 2 * total)

    async def main() -> None:
        with trio.fail_after(2 * PATIENCE_S):
            async with (
                hoststack.attach(daemon.api, name="well") as stack,
                echo_server(stack) as uri,
                load(stack) as running,
            ):
                with victims(daemon, uri) as process:
                    await kill(process, 10, 10)
                    await running.one_more_round()
                    before = [held_by(pid) for pid in pids]
                    await kill(process, 50, 60)
                await running.one_more_round()
                # The last ones' connections are still in their closing periods.
                for _ in range(300):
                    after = [held_by(pid) for pid in pids]
                    if is_back(after, before):
                        break
                    await trio.sleep(0.1)
        assert is_back(after, before), (before, after)

    trio.run(main)
    assert "Traceback" not in daemon.log


def loading_s() -> float:
    """How long a process that does what a worker does first takes on this machine, as it is now."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", "import hoststack.daemon.worker_main"], check=True)
    return time.monotonic() - began


@pytest.mark.alone
def test_workers_that_are_killed_again_and_again(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon("--workers", "2")
    replaced_s = []

    async def main() -> None:
        with trio.fail_after(PATIENCE_S):
            async with (
                hoststack.attach(daemon.api) as stack,
                echo_server(stack) as uri,
                load(stack, worker=1) as running,
            ):
                await kill_four_times(stack, uri, running)

    async def kill_four_times(stack: hoststack.Stack, uri: str, running: Load) -> None:
        for generation in range(1, 5):
            began = await kill_worker_0(stack, uri)
            await trio.to_thread.run_sync(daemon.wait_for, "worker 0 is process", generation + 1)
            replaced_s.append(trio.current_time() - began)
            # The other one's went on, and the listener is there again.
            await running.one_more_round()
            async with load(stack, worker=0):
                pass

    async def kill_worker_0(stack: hoststack.Stack, uri: str) -> float:
        async with trio.open_nursery() as nursery:
            while True:
                connection = await nursery.start(_keep, stack, uri)
                if connection.handle >> 32 == 0:
                    break
            doomed = await connection.open_stream()
            await doomed.send_all(b"x")
            assert await doomed.receive_some() == b"x"
            began = trio.current_time()
            os.kill(daemon.worker_pid(0), signal.SIGKILL)
            with pytest.raises(trio.BrokenResourceError):
                await doomed.receive_some()
            with pytest.raises(trio.BrokenResourceError):
                await doomed.send_all(b"x")
            with pytest.raises(ConnectionClosedError, match="the worker died"):
                await connection.open_stream()
            nursery.cancel_scope.cancel()
        return began

    trio.run(main)
    assert min(replaced_s) < max(1.0, 3 * loading_s()), replaced_s
    assert "Traceback" not in daemon.log


async def _send_for_ever(stream: trio.abc.SendStream) -> None:
    while True:
        await stream.send_all(bytes(1000))
        await trio.sleep(0.01)


@pytest.mark.parametrize("engine", ["native", "aioquic"])
def test_peers_of_a_dead_worker_hear_of_it_at_once(make_daemon: MakeDaemon, engine: str) -> None:
    """By stateless resets, over udp."""
    daemon = make_daemon("--engine", engine)

    async def main() -> None:
        with trio.fail_after(PATIENCE_S):
            async with (
                hoststack.attach(daemon.api) as server,
                hoststack.open_stack(link="udp") as client,
                echo_server(server) as uri,
                client.connect(uri, tls=TRUSTING, alpn=["test"]) as connection,
            ):
                assert await ask(connection, b"hello") == b"hello"
                stream = await connection.open_stream()
                os.kill(daemon.worker_pid(0), signal.SIGKILL)
                await trio.to_thread.run_sync(daemon.wait_for, "worker 0 is process", 2)
                # The fresh worker does not know this connection.
                with pytest.raises(trio.BrokenResourceError):
                    await _send_for_ever(stream)
                info = await connection.wait_closed()
                assert "stateless reset" in info.reason.lower()

    trio.run(main)


def test_a_worker_that_dies_at_once_is_not_started_in_a_hurry(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon()

    async def main() -> float:
        began = trio.current_time()
        for count in range(2, 6):
            os.kill(daemon.worker_pid(0), signal.SIGKILL)
            await trio.to_thread.run_sync(daemon.wait_for, "worker 0 is process", count)
        return trio.current_time() - began

    # Pauses of 0.05, 0.1, 0.2 and 0.4 s.
    assert trio.run(main) > 0.75


def test_a_second_sigterm_does_not_wait(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon("--drain-seconds", "3000")

    async def main() -> None:
        with trio.fail_after(PATIENCE_S):
            async with (
                hoststack.open_stack(link="udp") as client,
                hoststack.attach(daemon.api) as server,
                echo_server(server) as uri,
                client.connect(uri, tls=TRUSTING, alpn=["test"]) as connection,
            ):
                # From here on the listener has taken it.
                assert await ask(connection, b"here") == b"here"
                daemon.process.send_signal(signal.SIGTERM)
                await trio.to_thread.run_sync(daemon.wait_for, "SIGTERM: draining")
                assert await ask(connection, b"still here") == b"still here"
                daemon.process.send_signal(signal.SIGTERM)
                assert await trio.to_thread.run_sync(daemon.process.wait, PATIENCE_S) == 0

    trio.run(main)
    assert not Path(daemon.api).exists()


def test_a_daemon_starts_where_another_was_killed(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon("--workers", "2")
    daemon.stop(signal.SIGKILL)
    daemon.join()  # its workers, too
    again = make_daemon("--socket", daemon.api, "--cli-socket", daemon.cli)

    async def main() -> None:
        with trio.fail_after(PATIENCE_S):
            async with (
                hoststack.attach(daemon.api) as stack,
                echo_server(stack) as uri,
                stack.connect(uri, tls=TRUSTING, alpn=["test"]) as connection,
            ):
                assert await ask(connection, b"hello") == b"hello"

    trio.run(main)
    assert again.stop() == 0


def test_workers_have_no_privileges(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon()
    status = Path(f"/proc/{daemon.worker_pid(0)}/status").read_text()
    found = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert int(found[name], 16) == 0, found
    assert found["NoNewPrivs"] == "1"
    if os.geteuid() == 0:
        assert int(found["CapBnd"], 16) == 0, found
        assert "0" not in found["Uid"].split() + found["Gid"].split()
        assert found["Groups"].strip() == ""
    else:
        assert set(found["Uid"].split()) == {str(os.geteuid())}


def test_the_service_manager_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(PATIENCE_S)
        manager.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        with run_daemon() as daemon:
            assert manager.recv(100) == b"READY=1"
            assert daemon.stop() == 0
            assert manager.recv(100) == b"STOPPING=1"


def test_the_unit_is_one(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd-analyze here")
    unit = tmp_path / UNIT.name
    text = UNIT.read_text()
    assert "ExecStart=/usr/bin/hoststack run" in text
    unit.write_text(text.replace("/usr/bin/hoststack", "/usr/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(unit)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    said = [line for line in done.stderr.splitlines() if UNIT.name in line]
    assert (done.returncode, said) == (0, []), done.stderr


@pytest.mark.parametrize(
    ("words", "said", "status"),
    [
        (["-i", "nosuch", "--link", "af_xdp"], "there is no interface 'nosuch'", 1),
        (["--link", "af_xdp"], "needs an interface", 2),
        (["--link", "udp", "--group", "nosuch"], "there is no group 'nosuch'", 2),
        (["--link", "udp", "--workers", "0"], "workers is 1 to 128", 2),
        (["--link", "udp", "--socket", "/proc/nosuch/api.sock"], "/proc/nosuch", 1),
        (["--link", "udp", "--cli-socket", "/proc/nosuch/cli.sock"], "/proc/nosuch", 1),
        (["--link", "udp", "--engine", "aioquic", "--busy-poll-us", "9"], "can't poll busily", 1),
        (["--config", "/proc/nosuch"], "/proc/nosuch: can't be read", 2),
    ],
)
def test_what_can_not_be_is_said_in_a_line(
    tmp_path: Path, words: Sequence[str], said: str, status: int
) -> None:
    done = _run(tmp_path, *words)
    assert said in done.stderr
    assert (done.returncode, done.stdout) == (status, "")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("which", ["--socket", "--cli-socket"])
def test_a_file_in_the_sockets_place_stays(tmp_path: Path, which: str) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    done = _run(tmp_path, "--link", "udp", which, str(precious))
    assert done.returncode == 1
    assert f"can't listen at {precious}: there is a file that is not a socket" in done.stderr
    assert precious.read_text() == "precious"


@pytest.mark.parametrize("which", ["--socket", "--cli-socket"])
def test_another_daemons_sockets_stay_its_own(
    make_daemon: MakeDaemon, tmp_path: Path, which: str
) -> None:
    daemon = make_daemon()
    for path in (daemon.api, daemon.cli):
        done = _run(tmp_path, "--link", "udp", which, path)
        assert done.returncode == 1
        assert f"can't listen at {path}: another daemon listens there" in done.stderr
    assert daemon.ctl("show workers")


@pytest.mark.needs_root
def test_a_user_who_does_not_exist(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: nobody else can become another user")
    done = _run(tmp_path, "--link", "udp", "--user", "nosuch")
    assert done.returncode == 2
    assert done.stderr == (
        "hoststack: there is no user 'nosuch': `useradd --system nosuch`, or name another\n"
    )


def _run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    sockets = ["--socket", f"{folder}/api.sock", "--cli-socket", f"{folder}/cli.sock"]
    return subprocess.run(
        [sys.executable, "-m", "hoststack.cli.main", "run", *sockets, *words],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )

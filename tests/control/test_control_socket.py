"""The control socket, and `hoststack ctl` as a process of its own, over link udp."""

from __future__ import annotations

import errno
import functools
import grp
import json
import logging
import os
import pty
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio

from hoststack.control.control_client import ControlClient
from hoststack.control.control_socket import serve_commands
from hoststack.control.grammar import CommandError
from hoststack.link.udp.link import UdpLink
from tests.control.conftest import host_on

#: Longer than any test takes.
PATIENCE_S = 240


async def ctl(path: Path, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """A `hoststack ctl` that has come to its end."""
    done: subprocess.CompletedProcess[bytes] = await trio.run_process(
        [sys.executable, "-m", "hoststack.cli.main", "ctl", "--socket", str(path), *words],
        capture_stdout=True,
        capture_stderr=True,
        stdin=stdin.encode(),
        check=False,
    )
    return subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
    )


@asynccontextmanager
async def serving(
    path: Path, run_one: Callable[[str, bool], Awaitable[str]], group: str | None = None
) -> AsyncIterator[None]:
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            await nursery.start(functools.partial(serve_commands, str(path), run_one, group=group))
            yield
            nursery.cancel_scope.cancel()


async def echo_line(line: str, as_json: bool) -> str:
    """Stands for commands where the socket alone is looked at."""
    if line == "fail":
        raise CommandError("it failed")
    if line == "break":
        raise RuntimeError("a bug")
    return json.dumps(line) if as_json else line


def test_a_real_ctl_runs_an_echo_test_between_two_hosts(tmp_path: Path, engine: str) -> None:
    async def main() -> None:
        async with (
            host_on(UdpLink()) as server,
            host_on(UdpLink()) as client,
            serving(tmp_path / "server", server.console.run_line),
            serving(tmp_path / "client", client.console.run_line),
        ):
            started = await ctl(
                tmp_path / "server", "--json", "test echo server uri quic://127.0.0.1:0"
            )
            assert started.returncode == 0, started.stderr
            port = json.loads(started.stdout)["local"][1]
            line = f"test echo client uri quic://127.0.0.1:{port} nclients 2 streams 3 mbytes 1"
            done = await ctl(tmp_path / "client", *line.split(), "test-bytes")
            assert done.returncode == 0, done.stderr
            lines = done.stdout.splitlines()
            assert lines[0].startswith("2 three-way handshakes in ")
            assert lines[3].startswith(f"{6 << 20} bytes (6 mbytes, 0 gbytes) in ")
            assert lines[5].endswith(" gbit/second full-duplex")
            shown = await ctl(tmp_path / "server", "sh", "ses", "v")
            assert f"[0:0][Q] listener 127.0.0.1:{port}" in shown.stdout
            assert engine in (await ctl(tmp_path / "client", "show workers")).stdout
            # A connect that can't be is one line.
            closed = await ctl(
                tmp_path / "client", "test echo client uri quic://256.0.0.1:1 syn-timeout 1"
            )
            assert closed.returncode == 1
            assert len(closed.stderr.splitlines()) == 1

    trio.run(main)


def test_exit_status_and_streams(tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "cli.sock"
        async with serving(path, echo_line):
            done = await ctl(path, "hello", "there")
            assert (done.returncode, done.stdout, done.stderr) == (0, "hello there\n", "")
            done = await ctl(path, "--json", "hello")
            assert (done.returncode, done.stdout) == (0, '"hello"\n')
            done = await ctl(path, "fail")
            assert (done.returncode, done.stdout) == (1, "")
            assert done.stderr == "hoststack: it failed\n"
            # Lines from a file: all are run.
            done = await ctl(path, stdin="one\n\nfail\ntwo\n")
            assert (done.returncode, done.stdout) == (1, "one\ntwo\n")
            assert done.stderr == "hoststack: it failed\n"
        assert not path.exists()

    trio.run(main)


def test_no_daemon(tmp_path: Path) -> None:
    async def main() -> None:
        dead = tmp_path / "dead"
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(dead))
        for path in (tmp_path / "none", dead):
            done = await ctl(path, "show", "app")
            assert done.returncode == 1
            assert done.stderr == (
                f"hoststack: no daemon at {path}: `hoststack run -i IFACE` starts one, --socket "
                "PATH names the socket of another\n"
            )

    trio.run(main)


def test_a_bug_in_a_command_does_not_end_the_server(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        path = tmp_path / "cli.sock"
        async with serving(path, echo_line):
            done = await ctl(path, "break")
            assert done.returncode == 1
            assert "failed with an internal error" in done.stderr
            assert (await ctl(path, "hello")).returncode == 0

    trio.run(main)
    assert "RuntimeError: a bug" in caplog.text


def test_who_may_use_it_and_who_does(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    own = grp.getgrgid(os.getgid()).gr_name

    async def main() -> None:
        # In a folder that is not there yet.
        path = tmp_path / "folder" / "cli.sock"
        async with serving(path, echo_line, own):
            status = path.stat()
            assert stat.S_IMODE(status.st_mode) == 0o660
            assert status.st_gid == os.getgid()
            stream = await trio.open_unix_socket(str(path))
            await ask(stream, {"line": "x"})
            await stream.aclose()

    trio.run(main)
    assert f"process {os.getpid()} of user {os.getuid()}, group {os.getgid()}" in caplog.text


async def ask(stream: trio.SocketStream, request: object) -> object:
    """Send a request, JSON or raw, and have one answer."""
    raw = request if isinstance(request, bytes) else json.dumps(request).encode() + b"\n"
    await stream.send_all(raw)
    answer = b""
    while not answer.endswith(b"\n"):
        chunk = await stream.receive_some()
        assert chunk, "no answer came"
        answer += chunk
    return json.loads(answer)


async def wait_dropped(stream: trio.SocketStream) -> None:
    """Wait until the server has hung up; what it answered before is nothing to us."""
    with suppress(trio.BrokenResourceError):
        while await stream.receive_some():
            pass


@pytest.mark.parametrize(
    "request_",
    [
        b"show app\n",
        b"\n",
        b"[]\n",
        b"{}\n",
        b'{"line": 1}\n',
        b'{"line": "x", "json": 1}\n',
        b'{"line": "x", "more": 1}\n',
        b'{"complete": null}\n',
        b"\xff\xfe\n",
        b"[" * 20000 + b"\n",
    ],
)
def test_what_is_no_request(tmp_path: Path, request_: bytes) -> None:
    async def main() -> None:
        path = tmp_path / "cli.sock"
        async with serving(path, echo_line), await trio.open_unix_socket(str(path)) as stream:
            answer = await ask(stream, request_)
            assert answer == {
                "error": "a request is a JSON object with line and json, or with complete"
            }
            # It may do better the next time.
            assert await ask(stream, {"line": "x"}) == {"text": "x"}

    trio.run(main)


def test_a_line_without_an_end(tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "cli.sock"
        async with serving(path, echo_line), await trio.open_unix_socket(str(path)) as stream:
            answer = await ask(stream, b"x" * 100_000)
            assert answer == {"error": "a line has 4096 characters at most"}
            await wait_dropped(stream)

    trio.run(main)


def test_many_clients_and_many_requests(tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "cli.sock"
        async with serving(path, echo_line):
            streams = [await trio.open_unix_socket(str(path)) for _ in range(64)]
            for number, stream in enumerate(streams):
                assert await ask(stream, {"line": str(number)}) == {"text": str(number)}
            for stream in streams[1:]:
                await stream.aclose()
            # Some requests at once are answered in order.
            requests = [json.dumps({"line": str(number)}).encode() + b"\n" for number in range(10)]
            await streams[0].send_all(b"".join(requests))
            answers = b""
            while answers.count(b"\n") < 10:
                answers += await streams[0].receive_some()
            told = [json.loads(answer)["text"] for answer in answers.splitlines()]
            assert told == [str(number) for number in range(10)]
            # One that floods is dropped, and nobody else notices.
            stream = await trio.open_unix_socket(str(path))
            await stream.send_all(requests[0] * 1000)
            await wait_dropped(stream)
            assert await ask(streams[0], {"line": "x"}) == {"text": "x"}

    trio.run(main)


def test_a_client_that_goes_away_cancels_its_command(tmp_path: Path) -> None:
    async def main() -> None:
        begun, cancelled = trio.Event(), trio.Event()

        async def run_for_ever(line: str, as_json: bool) -> str:
            if line != "sleep":
                return line
            begun.set()
            try:
                await trio.sleep_forever()
            except trio.Cancelled:
                cancelled.set()
                raise
            raise AssertionError

        path = tmp_path / "cli.sock"
        async with serving(path, run_for_ever):
            stream = await trio.open_unix_socket(str(path))
            await stream.send_all(b'{"line": "sleep"}\n')
            await begun.wait()
            async with await trio.open_unix_socket(str(path)) as other:
                # Who waits holds up nobody else.
                assert await ask(other, {"line": "x"}) == {"text": "x"}
                await stream.aclose()
                await cancelled.wait()
                assert await ask(other, {"line": "x"}) == {"text": "x"}

    trio.run(main)


def test_places_that_are_taken(tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "cli.sock"
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(path))
        async with serving(path, echo_line):
            # What a dead server left was replaced.
            with pytest.raises(OSError, match="another daemon listens there") as taken:
                await serve_commands(str(path), echo_line)
            assert taken.value.errno == errno.EADDRINUSE
            assert (await ctl(path, "hello")).returncode == 0
        path.write_text("precious")
        with pytest.raises(OSError, match="a file that is not a socket"):
            await serve_commands(str(path), echo_line)
        assert path.read_text() == "precious"
        with pytest.raises(OSError, match="there is no group 'nobody-has-this'"):
            await serve_commands(str(tmp_path / "x"), echo_line, group="nobody-has-this")

    trio.run(main)


def test_completion_comes_from_the_server(tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "cli.sock"
        async with serving(path, echo_line):
            client = await trio.to_thread.run_sync(ControlClient, str(path))
            words = await trio.to_thread.run_sync(client.complete, "show s")
            assert words == ["session"]
            client.close()

    trio.run(main)


def read_until(terminal: int, wanted: bytes) -> bytes:
    """What a terminal shows, up to what is waited for."""
    shown = b""
    while wanted not in shown:
        chunk = os.read(terminal, 4096)
        assert chunk, shown
        shown += chunk
    return shown


def test_the_prompt(tmp_path: Path) -> None:
    """On a terminal: a command, completion, a failure, Ctrl-C, history without secrets, quit."""
    path = tmp_path / "cli.sock"
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path / "state"), "TERM": "dumb"}

    begun, cancelled = threading.Event(), threading.Event()

    def talk(terminal: int, pid: int) -> None:
        read_until(terminal, b"hoststack# ")
        os.write(terminal, b"sh\tsess\tverb\t2\n")
        assert b"show session verbose 2\r\nran show session verbose 2\r\n" in read_until(
            terminal, b"2\r\nhoststack# "
        )
        os.write(terminal, b"fail\n")
        assert b"hoststack: it failed\r\n" in read_until(terminal, b"\nhoststack# ")
        for line in (b"app ns add id x secret y\n", b"ap n a se y i x\n", b"x secret y\n"):
            os.write(terminal, line)
            read_until(terminal, b"\nhoststack# ")
        os.write(terminal, b"sleep\n")
        assert begun.wait(PATIENCE_S)
        os.kill(pid, signal.SIGINT)
        read_until(terminal, b"interrupted\r\nhoststack# ")
        assert cancelled.wait(PATIENCE_S)
        os.write(terminal, b"quit\n")

    async def ran(line: str, as_json: bool) -> str:
        if line == "sleep":
            begun.set()
            try:
                await trio.sleep_forever()
            finally:
                cancelled.set()
        return f"ran {await echo_line(line, as_json)}"

    async def main() -> None:
        async with serving(path, ran):
            terminal, its_side = pty.openpty()
            process = await trio.lowlevel.open_process(
                [sys.executable, "-m", "hoststack.cli.main", "ctl", "--socket", str(path)],
                stdin=its_side,
                stdout=its_side,
                stderr=its_side,
                env=environment,
                start_new_session=True,
            )
            os.close(its_side)
            try:
                await trio.to_thread.run_sync(talk, terminal, process.pid, abandon_on_cancel=True)
                assert await process.wait() == 0
            finally:
                if process.returncode is None:
                    process.kill()
                os.close(terminal)

    trio.run(main)
    history = (tmp_path / "state" / "hoststack" / "ctl_history").read_text().splitlines()
    assert [line.strip() for line in history] == [
        "show session verbose 2",
        "fail",
        "sleep",
        "quit",
    ]

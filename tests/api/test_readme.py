"""The programs of the README, the tutorial and the how-to pages, run from their text."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.daemon.conftest import run_daemon

README = Path(__file__).parents[2] / "README.md"
DOCS = README.parent / "docs"
#: Pages whose programs are run here.
TUTORIAL, DAEMON = DOCS / "tutorial.md", DOCS / "howto" / "daemon.md"


def _programs(folder: Path, page: Path = README) -> dict[str, Path]:
    """The programs of a page, written to files."""
    blocks = re.findall(r"^```python (\S+)\n(.*?)^```", page.read_text(), re.M | re.S)
    programs = {}
    for name, text in blocks:
        lines = [line for line in text.splitlines() if line]
        assert page != README or len(lines) <= 11, f"{name} is longer than the README's should be"
        programs[name] = folder / name
        programs[name].write_text(text)
    return programs


def test_the_commands_of_the_readme_work_as_pasted() -> None:
    """Those that need no server, line by line, in a checkout; what `make` would do is not done."""
    [block] = re.findall(r"^```sh\n(.*?)^```", README.read_text(), re.M | re.S)
    lines = block.splitlines()
    assert lines[0] == "make demo"
    done = subprocess.run(
        [
            "bash",
            "-c",
            "\n".join(f"{line}; statuses+=($?)" for line in lines) + "\necho ${statuses[@]}",
        ],
        cwd=README.parent,
        env=os.environ | {"MAKEFLAGS": "n", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    *statuses, doctor = done.stdout.splitlines()[-1].split()
    assert statuses == ["0"] * (len(lines) - 1), done.stderr
    assert doctor in ("0", "1")
    assert "The best link" in done.stdout


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.mark.parametrize(
    ("page", "said"), [(README, "hello\n"), (TUTORIAL, "hello\nover aes-128-gcm\n")]
)
def test_server_and_client(page: Path, said: str, tmp_path: Path) -> None:
    programs = _programs(tmp_path, page)
    uri = f"quic://127.0.0.1:{_free_port()}"
    server = subprocess.Popen(
        [sys.executable, programs["server.py"], uri],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        # The client sends its first packet again until the server is up.
        client = subprocess.run(
            [sys.executable, programs["client.py"], uri],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        server.kill()
        _, server_errors = server.communicate()
    assert client.returncode == 0, client.stderr
    assert client.stdout == said
    assert server_errors == "link udp instead of af_xdp: AF_XDP needs an interface: name one\n"


def test_attached_client(tmp_path: Path) -> None:
    program = _programs(tmp_path, DAEMON)["attached_client.py"]
    uri = f"quic://127.0.0.1:{_free_port()}"
    with run_daemon("--workers", "2") as daemon:
        assert "2 workers" in daemon.ctl(f"test echo server uri {uri}")
        client = subprocess.run(
            [sys.executable, program, uri, daemon.api],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert client.returncode == 0, client.stderr
        # The handle is one of this side's worker, and the first of them has the first connect.
        assert client.stdout == "hello from worker 0\n"

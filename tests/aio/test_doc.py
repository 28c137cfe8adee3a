"""The programs of docs/howto/asyncio.md, run from its text."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from pathlib import Path

from tests.daemon.conftest import run_daemon

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "asyncio.md"


def test_server_and_client(tmp_path: Path) -> None:
    for name, text in re.findall(r"^```python (\S+)\n(.*?)^```", PAGE.read_text(), re.M | re.S):
        (tmp_path / name).write_text(text)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        uri = f"quic://127.0.0.1:{probe.getsockname()[1]}"
    with run_daemon("--workers", "2") as daemon:
        line = [sys.executable, tmp_path / "aio_server.py", uri, daemon.api]
        with subprocess.Popen(line, stderr=subprocess.PIPE, text=True) as server:
            try:
                # The client sends its first packet again until the server is up.
                client = subprocess.run(
                    [sys.executable, tmp_path / "aio_client.py", uri, daemon.api],
                    capture_output=True,
                    text=True,
                    timeout=60,
                    check=False,
                )
            finally:
                server.kill()
            assert client.returncode == 0, client.stderr
            assert client.stdout == "hello\n"

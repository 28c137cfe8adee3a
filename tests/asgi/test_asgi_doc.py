"""The program of docs/howto/asgi.md, run from its text."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from pathlib import Path

import trio

import hoststack
from hoststack import http3
from tests.asgi.serving import text
from tests.http3.peers import TRUSTING

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "asgi.md"


def test_hello(tmp_path: Path) -> None:
    program = tmp_path / "asgi_hello.py"
    found = re.search(r"^```python asgi_hello.py\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    assert found is not None
    program.write_text(found[1])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        authority = f"127.0.0.1:{probe.getsockname()[1]}"

    async def ask() -> bytes:
        # The client sends its first packet again until the server is up.
        quic = hoststack.QuicConfig(handshake_timeout_s=60)
        with trio.fail_after(60):
            async with (
                hoststack.open_stack(link="udp") as stack,
                http3.open_client(stack, authority, tls=TRUSTING, quic=quic) as client,
            ):
                return await text(client)

    with subprocess.Popen([sys.executable, program, f"quic://{authority}"]) as server:
        try:
            assert trio.run(ask) == b"hello over HTTP/3"
        finally:
            server.kill()

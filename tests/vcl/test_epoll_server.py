"""The epoll server of apps/: a thousand streams at once, of several connections."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import trio

import hoststack
from hoststack import QuicConfig, TlsConfig
from tests.daemon.conftest import PATIENCE_S, Daemon, run_daemon

CONNECTIONS = 10
STREAMS = 1000


def test_a_thousand_streams() -> None:
    # Python lines, without its text for people: what the server promises to be.
    source = Path("apps/vcl_epoll_server.py").read_text()
    assert len([line for line in source.splitlines() if line.strip()]) < 80
    with run_daemon("--workers", "2") as daemon:
        line = [sys.executable, "-m", "apps.vcl_epoll_server", "quic://127.0.0.1:0"]
        environment = os.environ | {"VCL_VPP_API_SOCKET": daemon.api}
        with subprocess.Popen(line, stdout=subprocess.PIPE, env=environment, text=True) as server:
            try:
                assert server.stdout is not None
                found = re.fullmatch(r"port (\d+)\n", server.stdout.readline())
                assert found
                uri = f"quic://127.0.0.1:{found[1]}"
                trio.run(ask_all, uri)
                descriptors = len(os.listdir(f"/proc/{server.pid}/fd"))
                for connections in (CONNECTIONS, 1, CONNECTIONS):
                    trio.run(ask_all, uri, connections)
                # Each segment of FIFOs is an open file until the worker says that it is gone.
                until = time.monotonic() + PATIENCE_S
                while len(os.listdir(f"/proc/{server.pid}/fd")) > 2 * descriptors:
                    assert time.monotonic() < until, os.listdir(f"/proc/{server.pid}/fd")
                    time.sleep(0.05)
                server.send_signal(signal.SIGINT)
                assert server.wait(PATIENCE_S) == 0
            finally:
                server.kill()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "usage: python -m apps.vcl_epoll_server quic://"),
        (["nonsense"], "vcl_epoll_server: nonsense: Invalid argument"),
        (["quic://192.0.2.1:4"], "vcl_epoll_server: quic://192.0.2.1:4: Cannot assign requested"),
    ],
)
def test_mistakes(daemon: Daemon, words: list[str], complaint: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "apps.vcl_epoll_server", *words],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env=os.environ | {"VCL_VPP_API_SOCKET": daemon.api},
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(complaint)
    assert done.stderr.count("\n") == 1


async def ask_all(uri: str, connections: int = CONNECTIONS) -> None:
    """All streams are open before the first of them ends."""
    # Nothing is read between the first bytes of a stream and its end: all of it has to fit.
    window = STREAMS << 16
    config = QuicConfig(
        rx_fifo_bytes=1 << 16, tx_fifo_bytes=1 << 16, connection_window_bytes=window
    )
    open_ = 0
    all_open = trio.Event()

    async def ask(connection: hoststack.Connection) -> None:
        nonlocal open_
        data = os.urandom(20_000)
        stream = await connection.open_stream()
        await stream.send_all(data)
        back = await stream.receive_some()
        open_ += 1
        if open_ == STREAMS:
            all_open.set()
        await all_open.wait()
        await stream.send_eof()
        async for part in stream:
            back += part
        assert back == data

    async def connect(stack: hoststack.Stack) -> None:
        async with (
            stack.connect(
                uri, tls=TlsConfig(verify=False), alpn=["echo"], config=config
            ) as connection,
            trio.open_nursery() as nursery,
        ):
            for _ in range(STREAMS // connections):
                nursery.start_soon(ask, connection)

    with trio.fail_after(PATIENCE_S):
        async with hoststack.open_stack() as stack, trio.open_nursery() as nursery:
            for _ in range(connections):
                nursery.start_soon(connect, stack)
    assert open_ == STREAMS

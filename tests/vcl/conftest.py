"""Applications of VCL's, on a daemon over udp."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from hoststack import vcl
from tests.daemon.conftest import PATIENCE_S, Daemon, run_daemon
from tests.daemon.echoing import TLS

assert isinstance(TLS.certificate, bytes)
assert isinstance(TLS.key, bytes)
CERT: Final[bytes] = TLS.certificate
KEY: Final[bytes] = TLS.key


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """With two workers, for tests that do it no harm."""
    with run_daemon("--workers", "2") as running:
        yield running


def config_of(daemon: Daemon) -> vcl.VclConfig:
    return vcl.VclConfig(api_socket_name=daemon.api, alpn=("test",), session_timeout_s=5)


def config_file_of(daemon: Daemon, folder: Path) -> str:
    """For VCL_CONFIG: a file that says where the daemon is."""
    conf = folder / "vcl.conf"
    conf.write_text(f"vcl {{\n  api-socket-name {daemon.api}\n  alpn test\n}}\n")
    return str(conf)


@pytest.fixture
def app(daemon: Daemon) -> Iterator[None]:
    """An application, this thread its worker."""
    with vcl.application("test", config_of(daemon)):
        yield


def listener(protocol: str, host: str = "127.0.0.1") -> vcl.Session:
    """One that listens on some port."""
    made = vcl.Session(protocol)  # type: ignore[arg-type]
    if protocol == "quic":
        made.use_certificate(CERT, KEY)
    made.bind((host, 0))
    made.listen()
    return made


def free_port() -> int:
    """Where nobody listens, be it with UDP or with TCP."""
    for _ in range(20):
        with socket.socket(type=socket.SOCK_DGRAM) as one, socket.socket() as two:
            one.bind(("127.0.0.1", 0))
            port: int = one.getsockname()[1]
            try:
                two.bind(("127.0.0.1", port))
            except OSError:
                continue  # of TCP's it is somebody's
            return port
    raise AssertionError("no port is free")


@contextmanager
def in_thread(serve: Callable[[], None]) -> Iterator[None]:
    """Runs beside the block in a thread that is a worker; what it raises comes out at the end."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            with vcl.worker():
                serve()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
    if errors:
        raise errors[0]


class Pair:
    """Both ends of a connection, in one thread."""

    def __init__(self, protocol: str) -> None:
        self.listener = listener(protocol)
        self.client = vcl.Session(protocol, nonblocking=True)  # type: ignore[arg-type]
        with pytest.raises(BlockingIOError):
            self.client.connect(self.listener.local)
        if protocol == "udp":
            wait_until_connected(self.client)
            self.client.write(b"hello")
        self.server = self.listener.accept()
        self.client.attr(vcl.Attr.SET_FLAGS, 0)
        wait_until_connected(self.client)
        self.streams = (self.client, self.server)
        if protocol == "quic":
            opened = self.client.open_stream()
            opened.write(b"hello")
            self.streams = (opened, self.server.accept())
        elif protocol == "tcp":
            self.client.write(b"hello")
        assert self.streams[1].read() == b"hello"


def wait_until_connected(session: vcl.Session) -> None:
    """Until a connect under way is done."""
    entry = vcl.VclPoll(session.sh, select.POLLOUT)
    assert vcl.vppcom_poll([entry], PATIENCE_S) == 1
    assert entry.revents == select.POLLOUT

"""`hoststack serve` as a user would start it, and a client for it."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPSConnection
from pathlib import Path
from typing import Final

from tests.daemon.conftest import PATIENCE_S, Daemon

#: Says which process answers, and echoes. Its lifespan is counted in a file; `failing` raises.
APPLICATION: Final = """
import os

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        with open("started", "a") as file:
            file.write("x")
        scope["state"]["word"] = "kept"
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    assert scope["type"] == "http"
    body, more = b"", scope["method"] == "POST"
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    body = body or f"{os.getpid()} {scope['http_version']} {scope['state']['word']}".encode()
    if scope["path"] == "/raise":
        raise ZeroDivisionError
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})

async def failing(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})

def make():
    return app

def broken():
    return 1 / 0

number = 7
"""


class Served(Daemon):
    """A server that listens."""

    @property
    def port(self) -> int:
        return int(self.wait_for(r"listening on https://[^ ]*:(\d+)")[1])

    def by_tcp(self, path: str = "/") -> tuple[bytes, str | None, bytes]:
        """Ask by HTTP/1.1: the body, Alt-Svc, and the server's certificate."""
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        client = HTTPSConnection("127.0.0.1", self.port, context=context, timeout=PATIENCE_S)
        try:
            client.request("GET", path)
            answer = client.getresponse()
            certificate = client.sock.getpeercert(binary_form=True)
            return answer.read(), answer.headers["alt-svc"], certificate
        finally:
            client.close()


def write_application(folder: Path) -> None:
    (folder / "main.py").write_text(APPLICATION)


@contextmanager
def run_server(folder: Path, *words: str) -> Iterator[Served]:
    """A server of the application in `folder`; killed at the end if it lives."""
    line = [sys.executable, "-m", "hoststack.cli.main", "serve", "--bind", "127.0.0.1:0", *words]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        line,
        cwd=folder,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        env=environment,
    ) as process:
        served = Served(process, folder)
        try:
            served.wait_for("listening on")
            yield served
        except BaseException as error:
            error.add_note(served.account())
            raise
        finally:
            process.kill()
            served.join()

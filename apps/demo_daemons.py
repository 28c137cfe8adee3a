"""The second half of `make demo`: two daemons, and quic_echo attached to each."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from apps.demo_sides import (
    DemoError,
    Result,
    Side,
    finish,
    run,
    show_command,
    show_fallback,
    start,
    until_it_listens,
)

WORKERS = 2
PORT = 4434


def show_daemons(server: Side, client: Side, load: list[str], stream_mbytes: int) -> Result:
    """Transfer between applications of two daemons. Raises DemoError."""
    print("\nTwo daemons, each with two worker processes; quic_echo attaches to them:\n")
    with tempfile.TemporaryDirectory(prefix="hsdemo-") as folder:
        # Workers and applications of other users need access.
        Path(folder).chmod(0o755)
        with daemon(server, folder) as api, daemon(client, folder) as other_api:
            result = _transfer(
                (server, ["socket-name", api, "server"]),
                (client, ["socket-name", other_api, "client"]),
                load,
                stream_mbytes,
            )
            for side in (server, client):
                print(f"\n  {_place(side)}$ hoststack ctl 'show workers'")
                print(_ctl(side, folder, "show workers"), end="")
    return result


@contextlib.contextmanager
def daemon(side: Side, folder: str) -> Iterator[str]:
    """Run `hoststack run` for the length of the block; return where applications attach."""
    api, cli = (f"{folder}/{side.role}.{kind}" for kind in ("api", "cli"))
    words = ["run", *(["-i", side.interface] if side.interface else ["--link", "udp"])]
    words += ["--workers", str(WORKERS), "--socket", api, "--cli-socket", cli]
    show = " ".join(words).replace(f"{folder}/", "")
    print(f"  {_place(side)}$ hoststack {show}", flush=True)
    line = side.inside([sys.executable, "-m", "hoststack.cli.main", *words])
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True) as process:
        try:
            said: list[str] = []
            assert process.stderr is not None
            for text in process.stderr:
                said.append(text)
                if "serving at" in text:
                    break
                show_fallback(text)
            else:
                raise DemoError(f"the {side.role}'s daemon does not start: {''.join(said).strip()}")
            yield api
            process.terminate()
            process.stderr.read()
            if process.wait():
                raise DemoError(f"the {side.role}'s daemon ended with status {process.returncode}")
        finally:
            process.kill()


def _transfer(
    server: tuple[Side, list[str]],
    client: tuple[Side, list[str]],
    load: list[str],
    stream_mbytes: int,
) -> Result:
    host = f"quic://{server[0].address}"
    asked = PORT if server[0].namespace else 0
    server_words = [*server[1], "uri", f"{host}:{asked}", *load]
    with start(server[0], server_words) as serving:
        port, said = until_it_listens(serving)
        if not port:
            raise DemoError(f"no server: {said}")
        show_command(server[0], server_words)
        uri = f"{host}:{port}"
        client_words = [*client[1], "uri", uri, *load, f"TX={stream_mbytes}M"]
        show_command(client[0], client_words)
        with start(client[0], client_words) as asking:
            reports = {"client": finish(client[0], asking), "server": finish(server[0], serving)}
    return Result(reports, {})


def _ctl(side: Side, folder: str, command: str) -> str:
    """Return the output of a command of a daemon's debug CLI."""
    return run(
        *side.inside([sys.executable, "-m", "hoststack.cli.main", "ctl"]),
        "--socket",
        f"{folder}/{side.role}.cli",
        command,
    )


def _place(side: Side) -> str:
    return f"[{side.namespace}] " if side.namespace else ""

"""`hoststack serve` with a client: one process and several, signals, deaths, certificates, TCP."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509 import (
    Certificate,
    load_der_x509_certificate,
    load_pem_x509_certificate,
)

import hoststack
from hoststack import http3
from tests.daemon.conftest import PATIENCE_S
from tests.serve.conftest import Served, run_server, write_application
from tests.support.certificates import self_signed


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_application(tmp_path)
    return tmp_path


@asynccontextmanager
async def clients(served: Served, count: int = 1) -> AsyncIterator[list[http3.ClientConnection]]:
    """Connections to a server."""
    tls = hoststack.TlsConfig(verify=False)
    async with AsyncExitStack() as undo:
        stack = await undo.enter_async_context(hoststack.open_stack())
        yield [
            await undo.enter_async_context(
                http3.open_client(stack, f"127.0.0.1:{served.port}", tls=tls)
            )
            for _ in range(count)
        ]


async def get(client: http3.ClientConnection, path: str = "/") -> tuple[int, bytes]:
    with trio.fail_after(PATIENCE_S):
        async with await client.request("GET", path) as response:
            return response.status, await response.read()


def fingerprint_of(certificate: Certificate) -> str:
    return certificate.fingerprint(SHA256()).hex()


@pytest.fixture
def pairs(folder: Path) -> list[str]:
    """Two certificates with their fingerprints; the first is in the files that are served."""
    fingerprints = []
    for name in ("served", "next"):
        certificate, key = self_signed(ec.generate_private_key(ec.SECP256R1()))
        (folder / f"{name}.pem").write_bytes(certificate)
        (folder / f"{name}.key").write_bytes(key)
        fingerprints.append(fingerprint_of(load_pem_x509_certificate(certificate)))
    return fingerprints


async def ask_for_ever(client: http3.ClientConnection) -> None:
    while True:
        await get(client)


@pytest.mark.parametrize("runtime", ["asyncio", "trio"])
def test_one_process_ends_when_requests_have_ended(folder: Path, runtime: str) -> None:
    async def ask(served: Served) -> None:
        async with clients(served) as [client]:
            status, body = await get(client)
            assert (status, body) == (200, b"%d 3 kept" % served.process.pid)
            assert (await get(client, "/raise"))[0] == 500
            async with await client.open("POST", "/") as response:
                await response.send_all(b"begun, ")
                await get(client)  # so the request before it has arrived
                served.process.send_signal(signal.SIGTERM)
                await trio.to_thread.run_sync(served.wait_for, "SIGTERM: requests in progress")
                await response.send_all(b"and ended")
                await response.send_eof()
                assert await response.read() == b"begun, and ended"

    with run_server(folder, "main:app", "--runtime", runtime, "--access-log", "log") as served:
        fingerprint = served.wait_for("made a certificate for localhost, SHA-256 ([0-9a-f]{64})")
        trio.run(ask, served)
        assert served.process.wait(PATIENCE_S) == 0
    assert fingerprint
    assert (folder / "started").read_text() == "x"
    lines = (folder / "log").read_text().splitlines()
    assert [re.search(r'HTTP/3" (\d+)', line)[1] for line in lines] == ["200", "500", "200", "200"]  # type: ignore[index]


def test_a_second_signal_ends_it_at_once(folder: Path) -> None:
    async def ask(served: Served) -> None:
        async with clients(served) as [client], await client.open("POST", "/") as response:
            await response.send_all(b"never ended")
            await get(client)  # so the request before it has arrived
            served.process.send_signal(signal.SIGINT)
            await trio.to_thread.run_sync(served.wait_for, "SIGINT: requests in progress")
            served.process.send_signal(signal.SIGINT)
            await trio.to_thread.run_sync(served.process.wait, PATIENCE_S)
            assert served.process.returncode == 0

    with run_server(folder, "main:app", "--graceful-timeout", "3600") as served:
        trio.run(ask, served)


@pytest.mark.usefixtures("pairs")
def test_a_dead_application_is_replaced_and_others_notice_nothing(folder: Path) -> None:
    failed: list[bytes] = []
    answered: dict[bytes, int] = {}

    async def load(client: http3.ClientConnection, pid: bytes, over: trio.Event) -> None:
        while not over.is_set():
            status, body = await get(client)
            if status != 200 or body.split()[0] != pid:
                failed.append(body)
            answered[pid] = answered.get(pid, 0) + 1

    async def ask(served: Served) -> None:
        async with clients(served, 8) as connections:
            owners = [(await get(client))[1].split()[0] for client in connections]
            victim, *others = sorted(set(owners))
            assert len(others) == 1, "the engines give connections to both"
            over = trio.Event()
            async with trio.open_nursery() as nursery:
                for client, owner in zip(connections, owners, strict=True):
                    if owner != victim:
                        nursery.start_soon(load, client, owner, over)
                mine = connections[owners.index(victim)]
                os.kill(int(victim), signal.SIGKILL)
                with pytest.raises((OSError, trio.BrokenResourceError, http3.Http3Error)):
                    await ask_for_ever(mine)
                await trio.to_thread.run_sync(served.wait_for, f"{int(victim)} died")
                after = answered.get(others[0], 0)
                pids = set()
                while not pids - {victim, others[0]}:
                    async with clients(served, 2) as fresh:
                        pids |= {(await get(client))[1].split()[0] for client in fresh}
                assert answered[others[0]] > after
                over.set()
        assert failed == []

    words = ("--workers", "2", "--apps", "2", "--cli-socket", str(folder / "cli.sock"))
    certificates = ("--certfile", "served.pem", "--keyfile", "served.key")
    with run_server(folder, "main:app", *words, *certificates) as served:
        assert "2 engines, 2 applications" in served.wait_for("listening on .*")[0]
        trio.run(ask, served)
        served.ctl("tls", "reload")
        served.wait_for("new handshakes use the certificates of served.pem")
        assert served.stop() == 0
        # Nothing is left of it.
        pids = re.findall(r"application process (\d+) died", served.log)
        assert len(pids) == 1
    assert "Traceback" not in served.log
    assert "attached" not in served.log, "the daemon says what is wrong, and no more"


def test_an_application_that_cannot_start_ends_the_server(folder: Path) -> None:
    line = [sys.executable, "-m", "hoststack.cli.main", "serve", "main:failing"]
    done = subprocess.run(
        [*line, "--bind", "127.0.0.1:0", "--workers", "1", "--apps", "2"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 3
    assert done.stderr.count("no database") == 1


def test_certificates_are_read_again_without_losing_a_connection(
    folder: Path, pairs: list[str]
) -> None:
    async def presented(served: Served) -> set[str]:
        async with clients(served) as [client]:
            certificate = client.connection.peer_certificate
            assert certificate is not None
            _, _, by_tcp = await trio.to_thread.run_sync(served.by_tcp)
            return {
                fingerprint_of(each) for each in (certificate, load_der_x509_certificate(by_tcp))
            }

    async def ask(served: Served) -> None:
        async with clients(served) as [client]:
            assert await presented(served) == {pairs[0]}
            (folder / "served.key").write_bytes(b"nonsense")
            served.process.send_signal(signal.SIGHUP)
            line = await trio.to_thread.run_sync(served.wait_for, ".*the certificates in use stay")
            assert "served.key" in line[0]
            assert await presented(served) == {pairs[0]}
            shutil.copy(folder / "next.key", folder / "served.key")
            shutil.copy(folder / "next.pem", folder / "served.pem")
            await trio.to_thread.run_sync(served.wait_for, "new handshakes use the certificates")
            with trio.fail_after(PATIENCE_S):
                while await presented(served) != {pairs[1]}:
                    pass
            assert (await get(client))[0] == 200, "the old connection goes on"

    words = ("--certfile", "served.pem", "--keyfile", "served.key", "--tcp")
    if importlib.util.find_spec("hypercorn") is None:
        pytest.skip("hypercorn is not installed: pip install '.[test]'")
    with run_server(folder, "main:app", *words) as served:
        body, alt_svc, _ = served.by_tcp()
        assert body == b"%d 1.1 kept" % served.process.pid
        assert alt_svc == f'h3=":{served.port}"; ma=86400'
        assert (folder / "started").read_text() == "x", "one lifespan, for TCP and HTTP/3"
        trio.run(ask, served)
        assert served.stop() == 0


def test_reload_restarts_the_application(folder: Path) -> None:
    async def ask(served: Served, expected: bytes) -> None:
        with trio.fail_after(PATIENCE_S):
            async with clients(served) as [client]:
                assert expected in (await get(client))[1]

    with run_server(folder, "main:app", "--reload") as served:
        trio.run(ask, served, b"kept")
        text = (folder / "main.py").read_text()
        (folder / "main.py").write_text(text.replace("kept", "= 1 ="))
        served.wait_for("main.py changed: restarting")
        served.wait_for("listening on", 2)
        trio.run(ask, served, b"= 1 =")
        (folder / "main.py").write_text("1 / 0")
        served.wait_for("ZeroDivisionError.*; waiting for a change")
        (folder / "main.py").write_text(text)
        served.wait_for("listening on", 3)
        trio.run(ask, served, b"kept")
        assert served.stop() == 0


def test_a_folder_is_served_by_http3_and_tcp(folder: Path) -> None:
    async def ask(served: Served) -> None:
        async with clients(served) as [client]:
            assert await get(client, "/main.py") == (200, (folder / "main.py").read_bytes())
            assert (await get(client, "/missing"))[0] == 404

    if importlib.util.find_spec("hypercorn") is None:
        pytest.skip("hypercorn is not installed: pip install '.[test]'")
    with run_server(folder, "--root", ".", "--tcp") as served:
        assert served.by_tcp("/main.py")[0] == (folder / "main.py").read_bytes()
        trio.run(ask, served)
        assert served.stop() == 0

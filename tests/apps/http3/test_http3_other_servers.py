"""HTTP/3: our client at ngtcp2's server and at caddy (quic-go).

Programs of others that are not installed are skipped, with what installs them.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
import trio
import trio.testing

import hoststack
from hoststack import TlsConfig, http3
from tests.apps.http3.processes import (
    ADDRESS,
    assert_same,
    client,
    free_port,
    program,
)

pytestmark = pytest.mark.usefixtures("engine")


#: A version that no server knows, which each answers with those that it does (RFC 9000 section 6).
PROBE: Final = bytes.fromhex("c01a2a3a4a 08 0102030405060708 00").ljust(1200, b"\0")


def wait_until_it_answers(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Until a QUIC server does; fails if it ends instead."""
    with socket.socket(type=socket.SOCK_DGRAM) as probe:
        probe.connect((ADDRESS, port))
        probe.settimeout(0.1)
        for _ in range(500):
            try:
                probe.send(PROBE)
                if probe.recv(2048):
                    return
            except (ConnectionRefusedError, TimeoutError):
                pass
            try:
                process.wait(0.02)
            except subprocess.TimeoutExpired:
                continue
            break
    pytest.fail(f"it does not serve: {log.read_text()}")


def caddyfile(port: int, folder: Path, certificate: tuple[Path, Path]) -> str:
    cert, key = certificate
    # Clients name no server that is an address: default_sni finds the certificate.
    return f"""{{
    admin off
    auto_https disable_redirects
    default_sni localhost
    servers {{
        protocols h1 h2 h3
    }}
}}
https://{ADDRESS}:{port} {{
    bind {ADDRESS}
    tls {cert} {key}
    root * {folder}
    file_server
}}
"""


@pytest.fixture(params=["gtlsserver", "caddy"])
def other_server(
    request: pytest.FixtureRequest, folder: Path, certificate: tuple[Path, Path], tmp_path: Path
) -> Iterator[str]:
    """The base URL of a server by somebody else."""
    port = free_port()
    if request.param == "caddy":
        config = tmp_path / "Caddyfile"
        config.write_text(caddyfile(port, folder, certificate))
        line = [program("caddy", "caddy"), "run", "--config", str(config)]
        line += ["--adapter", "caddyfile"]
    else:
        cert, key = map(str, certificate)
        line = [program("gtlsserver", "ngtcp2-server 1.11"), "-q", "-d", str(folder)]
        line += [ADDRESS, str(port), key, cert]
    log = tmp_path / "log"
    # caddy keeps things below $HOME.
    surroundings = {**os.environ, "HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path)}
    with (
        log.open("wb") as output,
        subprocess.Popen(line, stdout=output, stderr=output, env=surroundings) as process,
    ):
        try:
            wait_until_it_answers(process, port, log)
            yield f"https://{ADDRESS}:{port}"
        finally:
            process.kill()
    # What nghttp3 says when a peer stops or ends what has to stay open.
    assert "CRITICAL_STREAM" not in log.read_text()


def test_our_client_at_servers_of_others(
    engine: str,
    other_server: str,
    folder: Path,
    certificate: tuple[Path, Path],
    tmp_path: Path,
) -> None:
    names = ["large", "page.html", "empty", "inner"]
    into = tmp_path / "into"
    into.mkdir()
    words = ["--cacert", str(certificate[0])]
    done = client(engine, *words, "-o", str(into), *(f"{other_server}/{name}" for name in names))
    assert done.returncode == 0, done.stderr
    for name in names:
        assert_same(into / name, folder / name)
    missing = client(engine, *words, "--fail", *[f"{other_server}/nothing"] * 20)
    assert (missing.returncode, missing.stdout) == (22, "")
    assert missing.stderr.count("the server answers 404") == 20


def test_our_client_moves_at_servers_of_others(
    engine: str, other_server: str, folder: Path, request: pytest.FixtureRequest
) -> None:
    if engine != "native":
        pytest.skip("only the native engine's connections move")
    # Debian's quic-go says disable_active_migration: what it forbids disturbs nothing.
    is_forbidden = "caddy" in request.node.name
    authority = other_server.removeprefix("https://")

    async def main() -> None:
        async with (
            hoststack.open_stack(link="udp") as stack,
            http3.open_client(stack, authority, tls=TlsConfig(verify=False)) as client,
        ):
            connection = client.connection
            # To another port, to another address, and back to the first.
            for local in (None, "127.0.0.3", ADDRESS):
                response = await client.request("GET", "/large")
                before = connection.local
                if is_forbidden:
                    with pytest.raises(hoststack.MigrationError, match="the peer forbids"):
                        await connection.migrate(local)
                else:
                    await connection.migrate(local)
                assert (connection.local == before) == is_forbidden
                assert await response.read() == (folder / "large").read_bytes()
                await response.aclose()
            moves = (await connection.statistics())["path_changes"]
            assert moves == (0 if is_forbidden else 3)

    trio.run(main)


def test_our_client_resumes_at_servers_of_others(
    engine: str,
    other_server: str,
    folder: Path,
    certificate: tuple[Path, Path],
    tmp_path: Path,
) -> None:
    words = ["--cacert", str(certificate[0]), "--session-file", str(tmp_path / "sessions")]
    words += ["--json", "-o", str(tmp_path), f"{other_server}/page.html"]
    first = client(engine, *words)
    assert (first.returncode, first.stderr) == (0, "")
    again = client(engine, *words)
    assert again.returncode == 0, again.stderr
    told = json.loads(again.stdout)
    assert (told["is_resumed"], told["early_data"]) == (True, "none")
    assert_same(tmp_path / "page.html", folder / "page.html")
    if engine == "aioquic":
        refused = client(engine, *words, "--early-data")
        assert refused.returncode == 7
        assert "use the native one" in refused.stderr
        return
    early = client(engine, *words, "--early-data")
    assert early.returncode == 0, early.stderr
    told = json.loads(early.stdout)
    assert (told["is_resumed"], told["early_data"]) == (True, "accepted")
    assert_same(tmp_path / "page.html", folder / "page.html")

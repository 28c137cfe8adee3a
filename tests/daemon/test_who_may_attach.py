"""The daemon's sockets: for a group, and the kernel says who comes."""

from __future__ import annotations

import grp
import os
import pwd
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.apps.echo_process import NOBODY, skip_if_nobody_cannot_run
from tests.daemon.conftest import PATIENCE_S, Daemon, run_daemon

#: One that is there on every Debian, and that nobody is in.
GROUP = "daemon"

#: Attaches, and has a word echoed: python -c ATTACH PATH URI.
ATTACH = """
import sys, trio, hoststack

async def main(path, uri):
    async with hoststack.attach(path, name="guest") as stack:
        tls = hoststack.TlsConfig(verify=False)
        async with stack.connect(uri, tls=tls, alpn=["echo"]) as connection:
            stream = await connection.open_stream()
            await stream.send_all(b"hello")
            await stream.send_eof()
            async for chunk in stream:
                print(chunk.decode())

try:
    trio.run(main, *sys.argv[1:])
except hoststack.AttachError as error:
    sys.exit(error.strerror)
"""

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: becomes other users")


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    skip_if_nobody_cannot_run()
    with run_daemon("--workers", "2", "--group", GROUP) as running:
        yield running


@pytest.fixture(scope="module")
def uri(daemon: Daemon) -> str:
    found = "quic://127.0.0.1:7780"
    daemon.ctl(f"test echo server uri {found}")
    return found


def as_nobody(groups: str, *words: str) -> subprocess.CompletedProcess[str]:
    line = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", groups, sys.executable, *words]
    return subprocess.run(line, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def ctl_as_nobody(groups: str, daemon: Daemon) -> subprocess.CompletedProcess[str]:
    words = ("-m", "hoststack.cli.main", "ctl", "--socket", daemon.cli, "show app")
    return as_nobody(groups, *words)


def test_the_sockets_are_the_groups(daemon: Daemon) -> None:
    for path in (daemon.api, daemon.cli):
        status = Path(path).stat()
        assert stat.S_IMODE(status.st_mode) == 0o660
        assert (status.st_uid, status.st_gid) == (0, grp.getgrnam(GROUP).gr_gid)


def test_a_member_of_the_group_is_served(daemon: Daemon, uri: str) -> None:
    member = f"--groups={grp.getgrnam(GROUP).gr_gid}"
    done = as_nobody(member, "-c", ATTACH, daemon.api, uri)
    assert (done.returncode, done.stdout) == (0, "hello\n"), done.stderr
    # As the kernel has it (SO_PEERCRED), not as it says itself.
    found = daemon.wait_for(r"guest \(process (\d+), user (\d+)\) attached")
    assert int(found[2]) == pwd.getpwnam("nobody").pw_uid
    assert f"process {found[1]}" in daemon.wait_for(r"guest \(process \d+\) is gone")[0]
    assert ctl_as_nobody(member, daemon).returncode == 0


def test_nobody_else_is(daemon: Daemon, uri: str) -> None:
    done = as_nobody("--clear-groups", "-c", ATTACH, daemon.api, uri)
    assert done.returncode == 1
    assert done.stderr == (
        f"{daemon.api}: permission denied: join the group that the socket belongs to\n"
    )
    done = ctl_as_nobody("--clear-groups", daemon)
    assert done.returncode == 1
    assert "no permission to use" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_secret_is_not_guarded_by_its_user(daemon: Daemon, uri: str) -> None:
    """Root too needs the secret of a namespace."""
    daemon.ctl("app ns add id vault secret deep")
    program = ATTACH.replace('name="guest"', 'namespace="vault", secret="shallow"')
    done = subprocess.run(
        [sys.executable, "-c", program, daemon.api, uri],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 1
    assert "secret" in done.stderr

"""Namespaces and scopes of applications of VCL's: two processes on one daemon, without packets."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hoststack import vcl
from tests.daemon.conftest import PATIENCE_S, Daemon
from tests.vcl.conftest import CERT, KEY

#: A client, whose configuration is VCL_CONFIG's.
CLIENT = """
import sys
from hoststack import vcl

with vcl.application("client"), vcl.Session("quic", alpn=["test"]) as connection:
    connection.connect(sys.argv[1])
    with connection.open_stream() as stream:
        stream.write_all(b"x" * 3_000_000)
        stream.shutdown()
        print(stream.read().decode())
"""


def client(conf: str, uri: str, folder: Path, **more: str) -> tuple[str, str]:
    (folder / "vcl.conf").write_text(conf)
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, uri],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env=os.environ | {"VCL_CONFIG": str(folder / "vcl.conf")} | more,
        check=False,
    )
    return done.stdout, done.stderr


def test_local_scope(daemon: Daemon, tmp_path: Path) -> None:
    """Both ends are on one stack; who has the network's scope alone does not find the listener."""
    daemon.ctl("app ns add id red secret 77")
    config = vcl.VclConfig(
        api_socket_name=daemon.api,
        namespace="red",
        secret="77",
        scope_local=True,
        scope_global=False,
    )
    conf = f"vcl {{\n  api-socket-name {daemon.api}\n  session-timeout 1\n}}\n"
    with vcl.application("server", config), vcl.Session("quic", alpn=["test"]) as waiting:
        waiting.use_certificate(CERT, KEY)
        waiting.bind(("127.0.0.1", 0))
        waiting.listen()
        uri = f"quic://127.0.0.1:{waiting.local[1]}"
        _, err = client(conf, uri, tmp_path)
        assert "Connection timed out" in err or "Connection refused" in err
        red = conf.replace("}", "  namespace-id red\n  namespace-secret 77\n  app-scope-local\n}")
        (tmp_path / "vcl.conf").write_text(red)
        with (
            subprocess.Popen(
                [sys.executable, "-c", CLIENT, uri],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=os.environ | {"VCL_CONFIG": str(tmp_path / "vcl.conf")},
            ) as process,
            waiting.accept() as connection,
            connection.accept() as stream,
        ):
            count = 0
            while part := stream.read(1 << 20):
                count += len(part)
            stream.write_all(b"%d" % count)
            stream.shutdown()
            assert process.communicate(timeout=PATIENCE_S) == ("3000000\n", "")


def test_a_secret_that_is_wrong(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon.ctl("app ns add id blue secret 78")
    monkeypatch.delenv("VCL_CONFIG", raising=False)
    monkeypatch.setenv("VCL_VPP_API_SOCKET", daemon.api)
    monkeypatch.setenv("VCL_APP_NAMESPACE_ID", "blue")
    monkeypatch.setenv("VCL_APP_NAMESPACE_SECRET", "79")
    assert vcl.vppcom_app_create("x") == -errno.EACCES
    assert "secret" in capsys.readouterr().err
    monkeypatch.setenv("VCL_APP_NAMESPACE_SECRET", "78")
    assert vcl.vppcom_app_create("x") == 0
    vcl.vppcom_app_destroy()

"""vcl.conf and the environment."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from hoststack import vcl
from hoststack.vcl.config import parse_config

FULL = """
# an application's
vcl {
  heapsize 64M
  segment-size 4000000000
  rx-fifo-size 4M       # of each session
  tx_fifo_size 0x10000
  namespace-id red
  namespace-secret 1234
  app-scope-local
  api-socket-name /run/other.sock
  session-timeout 2.5
  alpn h3,hq
  use-mq-eventfd
}
"""


def test_a_file() -> None:
    assert parse_config(FULL) == vcl.VclConfig(
        api_socket_name="/run/other.sock",
        rx_fifo_bytes=4 << 20,
        tx_fifo_bytes=0x10000,
        namespace="red",
        secret="1234",
        scope_local=True,
        scope_global=False,
        session_timeout_s=2.5,
        alpn=("h3", "hq"),
    )


@pytest.mark.parametrize("text", ["", "# nothing\n", "vcl {\n}\n", "vcl { }"])
def test_nothing_is_the_defaults(text: str) -> None:
    assert parse_config(text) == vcl.VclConfig()


def test_the_environment_wins(tmp_path: Path) -> None:
    conf = tmp_path / "vcl.conf"
    conf.write_text(FULL)
    found = vcl.load_config(
        {
            "VCL_CONFIG": str(conf),
            "VCL_APP_NAMESPACE_ID": "blue",
            "VCL_APP_NAMESPACE_SECRET": "s",
            "VCL_APP_SCOPE_GLOBAL": "",
            "VCL_VPP_API_SOCKET": "/run/third.sock",
        }
    )
    assert (found.namespace, found.secret) == ("blue", "s")
    assert (found.scope_local, found.scope_global) == (False, True)
    assert found.api_socket_name == "/run/third.sock"
    assert found.rx_fifo_bytes == 4 << 20


def test_without_a_file() -> None:
    assert vcl.load_config({}) == vcl.VclConfig()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("vcl {\n  nonsense 1\n}\n", "x.conf:2: unknown key 'nonsense'"),
        ("vcl {\n  rx-fifo-size\n}\n", "x.conf:2: after rx-fifo-size expected one value"),
        ("vcl {\n\n  rx-fifo-size 1 2\n}\n", "x.conf:3: after rx-fifo-size expected one value"),
        ("vcl {\n  rx-fifo-size big\n}\n", "x.conf:2: rx-fifo-size 'big': 'big' is no size"),
        ("vcl {\n  rx-fifo-size 0\n}\n", "x.conf:2: rx-fifo-size '0': a FIFO has"),
        ("vcl {\n  rx-fifo-size 99999G\n}\n", "x.conf:2: rx-fifo-size '99999G': a FIFO has"),
        ("vcl {\n  app-scope-local yes\n}\n", "x.conf:2: after app-scope-local expected nothing"),
        ("vcl {\n  heapsize\n}\n", "x.conf:2: after heapsize expected one value"),
        ("vcl {\n  api-socket-name here\n}\n", "x.conf:2: api-socket-name 'here': an absolute"),
        ("vcl {\n  session-timeout -1\n}\n", "x.conf:2: session-timeout '-1': a number of"),
        ("vcl {\n", "x.conf: the closing `}` is missing"),
        ("rx-fifo-size 1\n", "x.conf:1: 'rx-fifo-size' is outside"),
        ("vcl {\n}\nmore\n", "x.conf:3: 'more' is outside"),
        ("vcl {\n}\n}\n", "x.conf:3: unmatched `}`"),
        ("vcl\n{\n}\n", "x.conf:1: write `vcl {`"),
    ],
)
def test_mistakes_name_the_line(text: str, complaint: str) -> None:
    with pytest.raises(vcl.VclConfigError) as caught:
        parse_config(text, "x.conf")
    assert str(caught.value).startswith(complaint)


def test_a_mistake_is_told_where_the_application_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    conf = tmp_path / "vcl.conf"
    conf.write_text("vcl {\n  nonsense\n}\n")
    monkeypatch.setenv("VCL_CONFIG", str(conf))
    assert vcl.vppcom_app_create("x") == -errno.EINVAL
    assert f"vcl: {conf}:2: unknown key 'nonsense'" in capsys.readouterr().err
    monkeypatch.setenv("VCL_CONFIG", str(tmp_path / "nowhere"))
    assert vcl.vppcom_app_create("x") == -errno.EINVAL
    assert "No such file" in capsys.readouterr().err


def test_no_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("VCL_CONFIG", raising=False)
    monkeypatch.setenv("VCL_VPP_API_SOCKET", str(tmp_path / "none"))
    assert vcl.vppcom_app_create("x") == -errno.ENOENT
    assert "is the daemon running" in capsys.readouterr().err

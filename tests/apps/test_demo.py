"""`make demo`, as root and as somebody else; nothing of it stays."""

from __future__ import annotations

import copy
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from apps import demo, demo_daemons
from tests.apps.echo_process import AS_NOBODY, PATIENCE_S, skip_if_nobody_cannot_run

COMMAND = [sys.executable, "-m", "apps.demo"]

GOOD = demo.Result(
    {
        role: {
            "link_statistics": {
                "xdp_redirected_by_cid": 9,
                "xdp_redirected_as_new": 1,
                "xdp_redirect_failed": 0,
                "rx_datagrams": 10,
                "tx_datagrams": 10,
            }
        }
        for role in ("server", "client")
    },
    {
        role: {"InDatagrams": 0, "NoPorts": 0, "InErrors": 0, "OutDatagrams": 0}
        for role in ("server", "client")
    },
)


def leftovers(pid: int) -> list[str]:
    return [name for name in os.listdir("/run/netns") if name.startswith(f"hsdemo-{pid}-")]


@pytest.mark.needs_root
def test_over_af_xdp() -> None:
    with subprocess.Popen(COMMAND, stdout=subprocess.PIPE, text=True) as process:
        out, _ = process.communicate(timeout=PATIENCE_S)
    if out.startswith("No AF_XDP here"):
        pytest.skip(out.splitlines()[0])
    assert process.returncode == 0
    assert "64 MiB sent, echoed, and every byte checked" in out
    assert "\nProven: " in out
    assert out.count("64 MiB sent, echoed, and every byte checked") == 2
    assert "hoststack ctl 'show workers'" in out
    assert len(re.findall(r"(?m)^[01] +\d+ +af_xdp ", out)) == 4
    assert leftovers(process.pid) == []


@pytest.mark.needs_root
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ended_by_a_signal(number: signal.Signals, status: int) -> None:
    with subprocess.Popen(
        COMMAND, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "server" in line:
                assert leftovers(process.pid)
                break
        process.send_signal(number)
        _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == status
    assert err == ""
    assert leftovers(process.pid) == []


def test_over_udp_without_root() -> None:
    line = COMMAND
    if os.geteuid() == 0:
        skip_if_nobody_cannot_run()
        line = [*AS_NOBODY, *COMMAND]
    done = subprocess.run(line, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("No AF_XDP here: it needs root")
    assert lines[-1].startswith("Every byte came and was right")


def test_second_best_is_shown(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """As where the native engine was not built: it is said before the server listens."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nsys.modules['hoststack.native.quic._quic'] = None\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(demo, "STREAM_MBYTES", 1)
    monkeypatch.setattr(demo, "LOAD", ["nclients", "1"])
    monkeypatch.setattr(demo_daemons, "WORKERS", 1)
    side = demo.Side("server", "127.0.0.1")
    report = demo.transfer(side, demo.Side("client", "127.0.0.1")).reports["client"]
    assert report["rx_data"] == 1 << 20
    with demo_daemons.daemon(side, str(tmp_path)):
        pass
    assert capfd.readouterr().out.count("engine aioquic instead of native: it was not built") == 2


def test_a_good_proof(capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.show_proof(GOOD) == []
    assert "kernel UDP: OutDatagrams" in capsys.readouterr().out


def test_a_proof_with_flaws() -> None:
    for counter, value in (("xdp_redirect_failed", 1), ("rx_datagrams", 11), ("rx_datagrams", 0)):
        flawed = copy.deepcopy(GOOD)
        flawed.reports["client"]["link_statistics"][counter] = value
        assert len(demo.show_proof(flawed)) == 1
    for counter in GOOD.kernel["server"]:
        flawed = copy.deepcopy(GOOD)
        flawed.kernel["server"][counter] = 1
        assert demo.show_proof(flawed) == ["the kernel's UDP handled datagrams at the server"]

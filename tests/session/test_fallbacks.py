"""What takes second best says so: one line in the log, at WARNING, with the reason."""

from __future__ import annotations

import logging
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

import hoststack
import pyxdp
from hoststack.link.xdp.steering import Steering
from hoststack.worker import engines
from hoststack.worker.engines import EngineName
from tests.support import netns


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


def opened(engine: EngineName = "auto") -> tuple[str, str]:
    """The link and the engine of a stack without an interface."""

    async def main() -> tuple[str, str]:
        async with hoststack.open_stack(link="udp", engine=engine) as stack:
            return stack.link_name, stack.engine_name

    return trio.run(main)


def without_native(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hoststack.native.quic._quic", None)


def test_the_best_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    if "native" not in engines.available_engines():
        pytest.skip("the native engine was not built")
    assert opened() == ("udp", "native")
    assert warnings(caplog) == []


def test_an_engine_that_was_not_built(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    without_native(monkeypatch)
    assert opened() == ("udp", "aioquic")
    [line] = warnings(caplog)
    assert line.startswith("engine aioquic instead of native: it was not built: it needs ngtcp2")
    with pytest.raises(ValueError, match=r"no native engine: it was not built: .*make build"):
        opened("native")


def test_an_engine_that_was_left_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    without_native(monkeypatch)
    monkeypatch.setattr(engines, "left_out", lambda: ["native"])
    assert opened() == ("udp", "aioquic")
    [line] = warnings(caplog)
    assert "it was left out of the build (HOSTSTACK_WITHOUT)" in line


def test_an_engine_that_can_not_be_loaded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """As when a library that it was built against has gone."""
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    (tmp_path / f"engine_of_no_use{suffix}").write_bytes(b"no ELF")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(engines, "_NATIVE_MODULE", "engine_of_no_use")
    assert opened() == ("udp", "aioquic")
    [line] = warnings(caplog)
    assert line.startswith("engine aioquic instead of native: it can't be loaded (")
    assert "engine_of_no_use" in line


def test_an_engine_that_was_asked_for_is_no_fallback(caplog: pytest.LogCaptureFixture) -> None:
    assert opened("aioquic") == ("udp", "aioquic")
    assert warnings(caplog) == []


def test_a_link(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> str:
        async with hoststack.open_stack(engine="aioquic") as stack:
            return stack.link_reason

    reason = trio.run(main)
    assert reason.startswith("link udp instead of af_xdp: ")
    assert warnings(caplog) == [reason]


def test_a_program_that_sets_up_no_log_says_it_on_stderr() -> None:
    program = """
import sys, trio, hoststack
sys.modules["hoststack.native.quic._quic"] = None
async def main():
    async with hoststack.open_stack():
        pass
trio.run(main)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    link, engine = done.stderr.splitlines()
    assert link.startswith("link udp instead of af_xdp: ")
    assert engine.startswith("engine aioquic instead of native: ")


@pytest.mark.needs_root
def test_generic_mode(
    caplog: pytest.LogCaptureFixture, make_veth_pair: Callable[..., netns.VethPair]
) -> None:
    """Where the driver refuses native mode: a veth's, if its MTU does not fit a page."""
    side = make_veth_pair(mtu_bytes=9000).a
    with side.inside():
        if not pyxdp.available()[0]:
            pytest.skip(pyxdp.available()[1])
        steering = Steering.load(side.ifname, 1)
        try:
            assert steering.mode == "generic"
        finally:
            steering.close()
    [line] = warnings(caplog)
    assert line.startswith(f"{side.ifname}: XDP in generic mode instead of native")


@pytest.mark.parametrize(("wanted", "reason"), [("native", ""), ("auto", "engine aioquic instead")])
def test_a_daemon(wanted: str, reason: str, tmp_path: Path) -> None:
    """Says so at its start, or ends where what it was told to take is not there."""
    program = f"""
import sys
sys.modules["hoststack.native.quic._quic"] = None
from hoststack.cli.main import main
sys.exit(main(["run", "--engine", {wanted!r}, "--socket", {str(tmp_path / "api")!r},
    "--cli-socket", ""]))
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stderr=subprocess.PIPE, text=True
    ) as daemon:
        try:
            said: list[str] = []
            assert daemon.stderr is not None
            for line in daemon.stderr:
                said.append(line)
                if "serving at" in line:
                    break
        finally:
            daemon.kill()
    if not reason:
        [line] = said
        assert line.startswith("hoststack: there is no native engine: it was not built: it needs")
        return
    [line] = [line for line in said if " engine " in line]
    assert line.startswith("hoststack.daemon: engine aioquic instead of native: it was not built")
    [line] = [line for line in said if " link " in line]
    assert line.startswith("hoststack.daemon: link udp instead of af_xdp: AF_XDP needs")

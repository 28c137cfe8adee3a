"""`hoststack xdp`: load, show, unload, each again, and in the way of others."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

import pyxdp
from hoststack.cli.main import main
from hoststack.link.base import Endpoint
from hoststack.link.xdp.steering import BPFFS, Steering, unload
from tests.pyxdp.conftest import Veth
from tests.pyxdp.test_program import COUNT

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def hoststack(veth: Veth, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Runs a command line; returns exit status, stdout and stderr. Unloads in the end."""

    def run(*words: str) -> tuple[int, str, str]:
        status = main(words)
        return (status, *capsys.readouterr())

    yield run
    unload(veth.left)


def names(interface: str) -> list[str]:
    return [program.name for program in pyxdp.attached_programs(interface)]


@pytest.mark.parametrize(("wanted", "got"), [("auto", "native"), ("generic", "generic")])
def test_load_show_unload(hoststack: Run, veth: Veth, wanted: str, got: str) -> None:
    status, out, _ = hoststack("xdp", "load", veth.left, "--mode", wanted)
    assert status == 0
    assert f"{got} mode); it stays until" in out
    assert names(veth.left) == ["hs_steer"]
    assert pyxdp.find_bpffs(BPFFS) is not None

    status, out, _ = hoststack("xdp", "status", veth.left)
    assert status == 0
    assert f"{got} mode, kept by `hoststack xdp load`" in out
    assert "steering  nothing yet" in out
    assert "ports     none" in out

    status, out, _ = hoststack("xdp", "unload", veth.left)
    assert status == 0
    assert names(veth.left) == []


def test_twice_is_as_good_as_once(hoststack: Run, veth: Veth) -> None:
    hoststack("xdp", "load", veth.left)
    (before,) = pyxdp.attached_programs(veth.left)
    assert hoststack("xdp", "load", veth.left)[0] == 0
    assert pyxdp.attached_programs(veth.left) == [before]
    assert hoststack("xdp", "unload", veth.left)[0] == 0
    status, out, _ = hoststack("xdp", "unload", veth.left)
    assert status == 0
    assert "no program to unload" in out


def test_another_mode_needs_unloading_first(hoststack: Run, veth: Veth) -> None:
    hoststack("xdp", "load", veth.left, "--mode", "generic")
    status, _, error = hoststack("xdp", "load", veth.left, "--mode", "native")
    assert status == 1
    assert "in generic mode already; first `hoststack xdp unload" in error


def test_status_shows_what_a_stack_set(hoststack: Run, veth: Veth) -> None:
    steering = Steering.load(veth.left, 1)
    try:
        steering.configure(workers=1, host=7, rotation=2)
        steering.open_port(Endpoint("10.0.0.1", 4433))
        steering.open_port(Endpoint("::", 1234))
        status, out, _ = hoststack("xdp", "status", veth.left)
        assert status == 0
        assert "held by a stack that runs" in out
        assert "1 worker, host 7, rotation 2" in out
        assert "10.0.0.1:4433" in out
        assert "[::]:1234" in out
        assert "redirected_by_cid" in out

        status, _, error = hoststack("xdp", "unload", veth.left)
        assert status == 1
        assert "belongs to a stack that runs" in error
        assert names(veth.left) == ["hs_steer"]
    finally:
        steering.close()


def test_foreign_program_is_left_alone(hoststack: Run, veth: Veth) -> None:
    with pyxdp.Program.load(COUNT) as foreign:
        foreign.attach(veth.left)
        status, _, error = hoststack("xdp", "load", veth.left)
        assert status == 1
        assert "'count_all'" in error
        status, _, error = hoststack("xdp", "unload", veth.left)
        assert status == 1
        assert "is not removed" in error
        status, _, error = hoststack("xdp", "status", veth.left)
        assert status == 1
        assert "it carries 'count_all'" in error
        assert names(veth.left) == ["count_all"]
        # Nor did the attempt leave pins.
        bpffs = pyxdp.find_bpffs(BPFFS)
        assert bpffs is None or not any(
            path.name.startswith(f"{veth.left}-") for path in bpffs.iterdir()
        )


def test_interface_that_came_anew(hoststack: Run, veth: Veth) -> None:
    hoststack("xdp", "load", veth.left)
    subprocess.run(["ip", "link", "del", veth.left], check=True)
    add = ["ip", "link", "add", veth.left, "type", "veth", "peer", "name", veth.right]
    subprocess.run(add, check=True)
    assert hoststack("xdp", "status", veth.left)[0] == 1
    assert hoststack("xdp", "load", veth.left)[0] == 0
    assert names(veth.left) == ["hs_steer"]


@pytest.mark.parametrize("verb", ["load", "unload", "status"])
def test_no_such_interface(hoststack: Run, verb: str) -> None:
    status, out, error = hoststack("xdp", verb, "nope0")
    assert (status, out) == (1, "")
    assert error.startswith("hoststack: there is no interface 'nope0'")
    assert len(error.splitlines()) == 1


def test_survives_the_process(hoststack: Run, veth: Veth) -> None:
    command = [sys.executable, "-m", "hoststack.cli.main", "xdp"]
    subprocess.run([*command, "load", veth.left], check=True, capture_output=True)
    assert names(veth.left) == ["hs_steer"]
    done = subprocess.run(
        [*command, "status", veth.left], check=True, capture_output=True, text=True
    )
    assert done.stdout.startswith(f"{veth.left}: hs_steer, id ")


def test_doctor_knows_our_own(hoststack: Run, veth: Veth) -> None:
    hoststack("xdp", "load", veth.left)
    status, out, _ = hoststack("doctor", veth.left)
    assert "hoststack's own (id " in out
    assert status == 0
    assert out.splitlines()[-1] == f"The best link works: af_xdp on {veth.left}."


def test_usage_errors_are_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["xdp"], ["nope"], ["xdp", "load"], ["xdp", "load", "x", "--mode", "y"]):
        with pytest.raises(SystemExit) as caught:
            main(words)
        assert caught.value.code == 2
        assert "usage: hoststack" in capsys.readouterr().err

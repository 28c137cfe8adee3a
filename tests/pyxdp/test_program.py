"""Programs: loaded, run, attached, refused, pinned, and gone with their owner."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest

import pyxdp
from pyxdp import Program
from tests.pyxdp.conftest import Veth

PACKET = bytes.fromhex("ffffffffffff 020000000001 88b5") + bytes(50)

COUNT = Path(str(files("pyxdp") / "count.bpf.o"))
REDIRECT = Path(str(files("pyxdp") / "redirect.bpf.o"))


@pytest.fixture
def count(privileged: None) -> Iterator[Program]:
    with Program.load(COUNT) as program:
        yield program


@pytest.fixture
def bpffs(privileged: None, tmp_path: Path) -> Iterator[Path]:
    folder = pyxdp.ensure_bpffs(tmp_path / "bpf")
    yield folder
    for pinned in folder.iterdir():
        if pinned.is_dir():
            pyxdp.unpin(pinned)
    assert pyxdp.remove_bpffs(tmp_path / "bpf")


def test_run_counts_packets(count: Program) -> None:
    assert count.test_run(PACKET) == (pyxdp.XDP_PASS, PACKET)
    count.test_run(PACKET)
    counters = count.maps["counters"]
    assert [counters.sum_per_cpu(0), counters.sum_per_cpu(1)] == [2, 2 * len(PACKET)]
    with pytest.raises(ValueError, match="at least 14"):
        count.test_run(PACKET[:13])


def test_loads_from_bytes(privileged: None) -> None:
    with Program.load(COUNT.read_bytes(), name="count_all") as program:
        assert program.id > 0
        assert set(program.maps) == {"counters"}


@pytest.mark.parametrize("junk", [b"", b"junk", b"\x7fELF" + bytes(200)])
def test_refuses_what_is_no_object(extension: None, junk: bytes) -> None:
    with pytest.raises(pyxdp.ObjectError, match="not a BPF object"):
        Program.load(junk)


def test_refuses_a_truncated_object(privileged: None) -> None:
    whole = COUNT.read_bytes()
    for size in range(0, len(whole) - 1, 97):
        with pytest.raises(pyxdp.ObjectError):
            Program.load(whole[:size])


def test_names_what_an_object_lacks(privileged: None, tmp_path: Path) -> None:
    with pytest.raises(pyxdp.ObjectError, match="no map 'nope'"):
        Program.load(COUNT, map_sizes={"nope": 1})
    with pytest.raises(pyxdp.ObjectError, match="no program 'nope'"):
        Program.load(COUNT, name="nope")
    with pytest.raises(pyxdp.ObjectError, match="No such file"):
        Program.load(tmp_path / "nope.o")


def test_array_map(privileged: None) -> None:
    with Program.load(REDIRECT, map_sizes={"sockets": 3}) as program:
        sockets = program.maps["sockets"]
        assert sockets.max_entries == 3
        assert list(sockets.keys()) == [key.to_bytes(4, sys.byteorder) for key in range(3)]
        with pytest.raises(ValueError, match="4 bytes, not 3"):
            sockets.update(b"abc", 1)
        with pytest.raises(pyxdp.PyxdpError) as caught:
            sockets.update(3, 0)
        assert caught.value.errno == errno.ENOSPC


def test_per_cpu_map_is_told_apart(count: Program) -> None:
    with pytest.raises(TypeError, match="lookup_per_cpu"):
        count.maps["counters"].lookup(0)
    assert count.maps["counters"].lookup_per_cpu(7) is None
    assert count.maps["counters"].sum_per_cpu(7) == 0


def test_closed_objects_say_so(count: Program) -> None:
    counters = count.maps["counters"]
    count.close()
    count.close()
    with pytest.raises(pyxdp.ClosedError):
        counters.sum_per_cpu(0)
    with pytest.raises(pyxdp.ClosedError):
        count.test_run(PACKET)


@pytest.mark.parametrize("mode", ["native", "generic"])
def test_attaches_and_is_gone_when_closed(veth: Veth, mode: pyxdp.Mode) -> None:
    with Program.load(COUNT) as program:
        assert program.attach(veth.left, mode).mode == mode
        (attached,) = pyxdp.attached_programs(veth.left)
        assert attached == (program.id, "count_all", mode)
    assert pyxdp.attached_programs(veth.left) == []


def test_auto_takes_native_where_the_driver_can(veth: Veth) -> None:
    with Program.load(COUNT) as program:
        assert program.attach(veth.left).mode == "native"
        program.detach()
        assert pyxdp.attached_programs(veth.left) == []


def test_auto_takes_generic_where_the_driver_cannot(veth: Veth) -> None:
    with Program.load(COUNT) as program:
        assert program.attach("lo").mode == "generic"
        program.detach()
        with pytest.raises(pyxdp.PyxdpError) as caught:
            program.attach("lo", "native")
        assert caught.value.errno == errno.EOPNOTSUPP


@pytest.mark.parametrize("there", ["native", "generic"])
@pytest.mark.parametrize("wanted", ["auto", "native", "generic"])
def test_leaves_a_foreign_program_alone(
    veth: Veth, there: pyxdp.Mode, wanted: pyxdp.WantedMode
) -> None:
    with Program.load(COUNT) as foreign, Program.load(REDIRECT) as ours:
        foreign.attach(veth.left, there)
        with pytest.raises(pyxdp.ForeignProgramError, match="'count_all'") as caught:
            ours.attach(veth.left, wanted)
        assert caught.value.program_id == foreign.id
        assert caught.value.program_name == "count_all"
        assert ours.link is None
        assert [program.name for program in pyxdp.attached_programs(veth.left)] == ["count_all"]


def test_no_such_interface(count: Program) -> None:
    with pytest.raises(pyxdp.NoInterfaceError, match="no interface 'nope0'"):
        count.attach("nope0")


def test_sigkill_leaves_no_program(veth: Veth) -> None:
    script = (
        "import sys, time, pyxdp\n"
        "program = pyxdp.Program.load(sys.argv[1]); program.attach(sys.argv[2])\n"
        "print('attached', flush=True); time.sleep(600)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(COUNT), veth.left], stdout=subprocess.PIPE, text=True
    ) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "attached\n"
            assert [program.name for program in pyxdp.attached_programs(veth.left)] == ["count_all"]
        finally:
            child.send_signal(signal.SIGKILL)
            child.wait()
    assert pyxdp.attached_programs(veth.left) == []


def test_another_program_is_looked_into_by_its_id(count: Program) -> None:
    count.test_run(PACKET)
    with Program.from_id(count.id) as again:
        assert again.name == "count_all"
        assert again.maps["counters"].sum_per_cpu(1) == len(PACKET)
    with pytest.raises(pyxdp.PyxdpError) as caught:
        Program.from_id(2**31)
    assert caught.value.errno == errno.ENOENT


def test_pinned_program_stays_and_comes_back(veth: Veth, bpffs: Path) -> None:
    with Program.load(COUNT) as program:
        program.attach(veth.left)
        program.pin(bpffs / "ours")
        program_id = program.id
        with pytest.raises(pyxdp.PyxdpError) as caught:
            program.pin(bpffs / "ours")
        assert caught.value.errno == errno.EEXIST
    assert [program.program_id for program in pyxdp.attached_programs(veth.left)] == [program_id]

    with Program.from_pin(bpffs / "ours") as again:
        assert again.id == program_id
        assert again.link is not None
        assert (again.link.interface, again.link.mode) == (veth.left, "native")
        again.test_run(PACKET)
        assert again.maps["counters"].sum_per_cpu(0) == 1

    assert pyxdp.unpin(bpffs / "ours")
    assert not pyxdp.unpin(bpffs / "ours")
    assert pyxdp.attached_programs(veth.left) == []
    with pytest.raises(pyxdp.PyxdpError) as caught:
        Program.from_pin(bpffs / "ours")
    assert caught.value.errno == errno.ENOENT


def test_pinning_outside_a_bpffs_leaves_nothing(count: Program, tmp_path: Path) -> None:
    with pytest.raises(pyxdp.PyxdpError, match="not in a bpffs"):
        count.pin(tmp_path / "ours")
    assert list(tmp_path.iterdir()) == []


def test_pins_outlive_ip_netns_exec(veth: Veth, tmp_path: Path) -> None:
    script = (
        "import sys, pyxdp\n"
        "folder = pyxdp.ensure_bpffs(sys.argv[2])\n"
        "pyxdp.Program.load(sys.argv[1]).pin(folder / 'ours')\n"
    )
    ip = shutil.which("ip")
    assert ip is not None
    folder = tmp_path / "bpf"
    command = [ip, "netns", "exec", veth.namespace, sys.executable, "-c", script]
    try:
        subprocess.run([*command, str(COUNT), str(folder)], check=True)
        # The tests themselves may run in a private mount namespace.
        reached = pyxdp.find_bpffs(folder)
        assert reached is not None
        with Program.from_pin(reached / "ours") as program:
            assert program.name == "count_all"
    finally:
        reached = pyxdp.find_bpffs(folder)
        if reached is not None:
            pyxdp.unpin(reached / "ours")
        pyxdp.remove_bpffs(folder)
    assert pyxdp.find_bpffs(folder) is None


def test_without_privilege_it_says_which(privileged: None) -> None:
    script = (
        "import os, sys, pyxdp\n"
        "data = open(sys.argv[1], 'rb').read()\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "for what in (lambda: pyxdp.Program.load(data), lambda: pyxdp.Umem(64)):\n"
        "    try:\n"
        "        what()\n"
        "    except pyxdp.NoPrivilegeError as error:\n"
        "        print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, COUNT], capture_output=True, text=True, check=True
    )
    first, second = done.stdout.splitlines()
    assert "CAP_BPF" in first
    assert "CAP_NET_RAW" in second


def test_without_the_c_part_it_imports_and_says_why(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "sys.modules['pyxdp._pyxdp'] = None\n"
        "import pyxdp\n"
        "print(pyxdp.available())\n"
        "try:\n"
        "    pyxdp.Umem(64)\n"
        "except pyxdp.NotAvailableError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    first, second = done.stdout.splitlines()
    assert first.startswith("(False, ")
    assert "libxdp-dev" in second

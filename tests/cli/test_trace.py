"""`hoststack trace`, on stacks that run: what it counts, and that it leaves nothing behind."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

import pyxdp
from hoststack.cli.main import main
from hoststack.trace import kernel_headers, probes
from hoststack.worker import engines
from tests.apps.echo_process import PATIENCE_S, client, server
from tests.daemon.conftest import Daemon
from tests.daemon.test_af_xdp import daemon_on, verdicts
from tests.support.netns import Side, VethPair, veth_pair

pytestmark = pytest.mark.alone
OURS = {"turn_begins", "turn_ends", "tracepoint__xdp"}
_BPF_PROG_GET_NEXT_ID = 11
_SYS_BPF = {"x86_64": 321, "aarch64": 280}


@pytest.fixture(scope="module")
def tracing() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: attaches to tracepoints and to processes")
    if "native" not in engines.available_engines():
        pytest.skip("the native engine was not built")
    try:
        probes._import_bcc()
        with kernel_headers.headers():
            pass
    except OSError as error:
        pytest.skip(str(error.strerror))


class Trace:
    """A trace that runs."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def line(self) -> dict[str, Any]:
        """What the next second brought."""
        assert self.process.stdout is not None
        found: dict[str, Any] = json.loads(self.process.stdout.readline())
        return found

    def end(self, signal_: signal.Signals = signal.SIGINT) -> list[dict[str, Any]]:
        """Have it end; what it said since, the summary last."""
        self.process.send_signal(signal_)
        out, err = self.process.communicate(timeout=PATIENCE_S)
        assert (self.process.returncode, err) == (0, "")
        return [json.loads(line) for line in out.splitlines()]


@contextmanager
def trace(*words: str, side: Side | None = None) -> Iterator[Trace]:
    line = [sys.executable, "-m", "hoststack.cli.main", "trace", "--json", *words]
    with subprocess.Popen(
        side.command(*line) if side else line,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stderr is not None
            about = process.stderr.readline()
            assert about.startswith("tracing XDP"), about + process.stderr.read()
            yield Trace(process)
        finally:
            process.kill()


def program_ids() -> set[int]:
    """Of all BPF programs in the kernel."""
    libc, ids, attr = ctypes.CDLL(None), set(), (ctypes.c_uint32 * 32)()
    while not libc.syscall(_SYS_BPF[os.uname().machine], _BPF_PROG_GET_NEXT_ID, attr, 128):
        ids.add(attr[1])
        attr[0] = attr[1]
    return ids


def names_of(ids: set[int]) -> set[str]:
    found = set()
    for each in ids:
        with suppress(pyxdp.PyxdpError), pyxdp.Program.from_id(each) as program:
            found.add(program.name)
    return found


def sums(report: dict[str, Any], pid: int) -> dict[str, int]:
    (process,) = (each for each in report["processes"] if each["pid"] == pid)
    return {figure: process[figure]["sum"] for figure in probes.FIGURES}


@pytest.mark.needs_root
@pytest.mark.usefixtures("tracing")
def test_turns_and_redirects_are_those_of_the_stacks_own_counters(veth_pair: VethPair) -> None:
    a, b = veth_pair.a, veth_pair.b
    before = program_ids()
    with server(
        f"json nclients 1/1 interface {a.ifname}", uri=f"quic://{a.ipv4}:4433", side=a
    ) as running:
        pid = running.process.pid
        with trace("-i", a.ifname, side=a) as tracer:
            mapped = Path(f"/proc/{pid}/maps").read_text()
            done = client(
                f"json nclients 1/1 interface {b.ifname} TX=3M test-bytes", running.uri, side=b
            )
            assert done.returncode == 0, done.stderr
            # The engine's last turn is over when the server is.
            status, out, err = running.finish()
            assert status == 0, err
            assert "hoststack/native/quic/_quic." in mapped
            (*seconds, summary) = tracer.end()
    report = json.loads(out)
    own = report["engine_counters"]
    counted = sums(summary, pid)
    assert counted["received"] == own["rx_datagrams"]
    assert counted["sent"] == own["tx_datagrams"]
    assert counted["turn_ns"] > 0
    (process,) = (each for each in summary["processes"] if each["pid"] == pid)
    assert own["turns"] - own["empty_turns"] <= process["turns"] <= own["turns"]
    assert sum(bar["count"] for bar in process["turn_ns"]["histogram"]) == process["turns"]
    assert "pytest" in process["command"], "it was forked from here"
    # The seconds' lines are parts of the whole.
    parts = [each for second in seconds for each in second["processes"] if each["pid"] == pid]
    assert sum(each["turns"] for each in parts) <= process["turns"]
    # Only this interface's program, and all that it redirected.
    (row,) = summary["redirects"]
    assert (row["program"], row["queue"], row["worker"]) == ("hs_steer", 0, 0)
    assert row["count"] == own["rx_datagrams"]
    assert summary["redirect_errors"] == summary["exceptions"] == []
    left = names_of(program_ids() - before)
    assert not {name for name in left if name.startswith(tuple(OURS))}
    assert not list(Path("/tmp").glob("hoststack-headers-*"))


@pytest.mark.needs_root
@pytest.mark.usefixtures("tracing")
def test_a_daemon_that_runs() -> None:
    """Each worker's turns and queues; the daemon does not notice."""
    with veth_pair(queues=2) as pair, daemon_on(pair.a) as daemon:
        daemon.ctl(f"test echo server uri quic://{pair.a.ipv4}:4433")
        before, programs = verdicts(daemon), program_ids()
        with trace("-i", pair.a.ifname, side=pair.a) as tracer:
            # Each from a port of its own, until both workers have had some.
            while not all(each["rx_datagrams"] > 500 for each in workers_of(daemon)):
                done = client("TX=1M test-bytes", f"quic://{pair.a.ipv4}:4433", side=pair.b)
                assert done.returncode == 0, done.stderr
            after = verdicts(daemon)
            summary = tracer.end()[-1]
        pids = [daemon.worker_pid(index) for index in range(2)]
        assert {each["pid"] for each in summary["processes"]} > set(pids)  # and the clients
        assert {row["worker"] for row in summary["redirects"]} == {0, 1}
        assert {row["queue"] for row in summary["redirects"]} == {0, 1}
        assert sum(row["count"] for row in summary["redirects"]) == sum(
            after[name] - before[name] for name in ("redirected_by_cid", "redirected_as_new")
        )
        assert [each["pid"] for each in workers_of(daemon)] == pids
        assert not names_of(program_ids() - programs) & OURS
        assert daemon.stop() == 0


def workers_of(daemon: Daemon) -> list[dict[str, Any]]:
    workers: list[dict[str, Any]] = json.loads(daemon.ctl("--json", "show workers"))["workers"]
    return workers


@pytest.mark.needs_root
@pytest.mark.usefixtures("tracing")
def test_a_reader_that_is_behind_shows_as_redirect_errors(veth_pair: VethPair) -> None:
    a, b = veth_pair.a, veth_pair.b
    with (
        server(f"interface {a.ifname}", uri=f"quic://{a.ipv4}:4433", side=a) as running,
        trace("-i", a.ifname, side=a) as tracer,
    ):
        running.process.send_signal(signal.SIGSTOP)
        with b.inside():
            sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        # A long header of version 1: an Initial, for all that the steering program knows.
        initial = b"\xc0\0\0\0\1" + bytes(1195)
        with sender:
            for _ in range(20_000):
                sender.sendto(initial, (a.ipv4, 4433))
        *_, summary = tracer.end(signal.SIGTERM)
    errors = {row["error"]: row for row in summary["redirect_errors"]}
    assert errors.keys() <= {"ENOMEM", "ENOBUFS"}, errors
    lost = sum(row["count"] for row in errors.values())
    taken = sum(row["count"] for row in summary["redirects"])
    assert lost > 0
    assert lost + taken <= 20_000  # the veth itself may be full
    assert all("the reader is behind" in row["reason"] for row in errors.values())
    assert all((row["queue"], row["worker"]) == (0, 0) for row in errors.values())


@pytest.mark.needs_root
@pytest.mark.usefixtures("tracing")
def test_one_process_may_be_chosen_and_is_not_changed() -> None:
    with server("json nclients 1/1") as running, server("json nclients 1/1") as other:
        pid = running.process.pid
        with trace("--pid", str(pid)) as tracer:
            assert client("nclients 1/1 TX=100K test-bytes", running.uri).returncode == 0
            assert client("nclients 1/1 TX=100K test-bytes", other.uri).returncode == 0
            for each in (running, other):
                status, out, err = each.finish()
                assert status == 0, err
                assert json.loads(out)["rx_data"] == 100 << 10
            *_, summary = tracer.end()
    assert [process["pid"] for process in summary["processes"]] == [pid]


@pytest.mark.needs_root
@pytest.mark.usefixtures("tracing")
def test_text_for_people() -> None:
    with server("") as running:
        line = [sys.executable, "-m", "hoststack.cli.main", "trace", "--seconds", "2"]
        with subprocess.Popen(
            line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stderr is not None
            assert process.stderr.readline().startswith("tracing XDP")
            assert client("TX=1M", running.uri).returncode == 0
            out, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, err) == (0, "")
    # It counts for the whole machine, where others may redirect meanwhile.
    assert "XDP redirected nothing" in out or "\nredirected" in out
    assert f"process {running.process.pid}: " in out
    assert "duration of a turn, ns" in out
    assert "####" in out


@pytest.mark.parametrize(
    "words", [["--pid", "0"], ["--pid", "x"], ["--seconds", "0"], ["--seconds", "nan"], ["more"]]
)
def test_bad_options(words: Sequence[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["trace", *words])
    assert caught.value.code == 2


@pytest.mark.needs_root
@pytest.mark.usefixtures("tracing")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--pid", "4194303"], "there is no process 4194303"),
        (["--pid", str(os.getpid())], "no native engine is running there"),
        (["-i", "nosuch"], "nosuch"),
    ],
)
def test_what_is_not_there(
    words: Sequence[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(probes, "engine_files", lambda pids: {})
    assert main(["trace", *words]) == 1
    assert said in capsys.readouterr().err


def test_root_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert main(["trace"]) == 1
    assert "tracing needs root" in capsys.readouterr().err


def test_bcc_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(probes, "_DIST_PACKAGES", str(tmp_path))
    monkeypatch.delitem(sys.modules, "bcc", raising=False)
    assert main(["trace"]) == 1
    assert "install python3-bpfcc" in capsys.readouterr().err


#: A process whose native engine is another file at the same path, as in a container.
ELSEWHERE = """
mount --make-rprivate /
mount --bind "$1" "$2"
exec "$0" -c "import hoststack.native.quic._quic; print('loaded', flush=True); input()"
"""


@pytest.mark.needs_root
def test_an_engine_in_another_mount_namespace(tmp_path: Path) -> None:
    if "native" not in engines.available_engines():
        pytest.skip("the native engine was not built")
    [own] = probes._own_engine()
    copy = Path(shutil.copy2(own, tmp_path))
    line = ["unshare", "--mount", "sh", "-ec", ELSEWHERE, sys.executable, str(copy), str(own)]
    with subprocess.Popen(
        line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "loaded\n"
            [(path, users)] = probes.engine_files([process.pid]).items()
            assert users == [process.pid]
            assert path.samefile(copy)
        finally:
            process.kill()


def test_a_file_that_is_gone_is_passed_over(tmp_path: Path) -> None:
    """Its processes ended while bcc compiled; what is there and can't be traced is told."""

    class Program:
        def attach_uprobe(self, **_: object) -> None:
            raise Exception("could not determine address of symbol")

    probes._attach_to(Program(), tmp_path / "gone.so")
    (tmp_path / "there.so").touch()
    with pytest.raises(OSError, match=r"there\.so can't be traced: could not determine"):
        probes._attach_to(Program(), tmp_path / "there.so")


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine whose kernel has no headers, and where nothing is installed but what is here."""
    monkeypatch.delenv("BCC_KERNEL_SOURCE", raising=False)
    monkeypatch.setattr(kernel_headers, "_has_own", lambda: False)
    monkeypatch.setattr(kernel_headers, "_SOURCES", tmp_path / "src")
    monkeypatch.setattr(kernel_headers, "_MODULES", tmp_path / "modules")
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def install(folder: Path, common: Path | None, version: str) -> None:
    """Headers: all in one folder, or what does not depend on the machine in another one."""
    arch = kernel_headers._ARCHITECTURES.get(os.uname().machine, os.uname().machine)
    write(folder / "include/generated/version", version)
    write(folder / f"arch/{arch}/include/generated/version", version)
    write((common or folder) / "include/linux/version", version)
    if common is not None:
        write(folder / "Makefile", f"include {common}/Makefile\n")


def taken() -> str:
    """The version of the headers that are found; all of them have to be."""
    with kernel_headers.headers():
        tree = Path(os.environ["BCC_KERNEL_SOURCE"])
        version = (tree / "include/linux/version").read_text()
        assert (tree / "include/generated/version").read_text() == version
    assert not tree.exists()
    assert "BCC_KERNEL_SOURCE" not in os.environ
    return version


def test_headers_are_asked_for(installed: Path) -> None:
    for find in (kernel_headers.headers().__enter__, kernel_headers.find):
        with pytest.raises(OSError, match="install Debian's linux-headers"):
            find()


@pytest.mark.parametrize(
    ("folder", "common"),
    [
        ("linux-headers-6.1.0-18-amd64", "linux-headers-6.1.0-18-common"),
        ("linux-headers-6.12.117+deb13-amd64", "linux-headers-6.12.117+deb13-common"),
        ("linux-headers-6.12.117+deb13-cloud-amd64", "linux-headers-6.12.117+deb13-common"),
        ("linux-headers-6.12.117+deb13-rt-amd64", "linux-headers-6.12.117+deb13-common-rt"),
        ("linux-headers-6.16.3+deb13-arm64", "linux-headers-6.16.3+deb13-common"),
        ("linux-headers-6.8.0-31-generic", None),
        ("linux-headers-6.18.44", None),
    ],
)
def test_headers_of_any_name(installed: Path, folder: str, common: str | None) -> None:
    source = installed / "src"
    install(source / folder, source / common if common else None, "these")
    assert taken() == "these"
    assert str(source / folder) in kernel_headers.find()


def test_headers_where_modules_lead(installed: Path) -> None:
    """Outside of /usr/src/linux-headers-*, as Fedora has them."""
    install(installed / "elsewhere/6.8.5-301.fc40.x86_64", None, "these")
    build = installed / "modules/6.8.5-301.fc40.x86_64/build"
    build.parent.mkdir(parents=True)
    build.symlink_to(installed / "elsewhere/6.8.5-301.fc40.x86_64")
    assert taken() == "these"


def test_the_newest_whole_headers_are_taken(installed: Path) -> None:
    source = installed / "src"
    for version in ("6.1.0-9", "6.1.0-10", "6.1.0-8"):
        name = f"linux-headers-{version}"
        install(source / f"{name}-amd64", source / f"{name}-common", version)
    # Half of it is no headers, nor is what leads nowhere, nor another machine's.
    write(source / "linux-headers-6.1.0-11-amd64/include/generated/version", "half")
    write(source / "linux-headers-6.1.0-12-common/include/linux/version", "half")
    (installed / "modules/6.1.0-13").mkdir(parents=True)
    (installed / "modules/6.1.0-13/build").symlink_to(source / "nowhere")
    install(source / "linux-headers-6.1.0-14-other", None, "other")
    (source / "linux-headers-6.1.0-14-other/arch").rename(installed / "arch")
    (source / "linux-headers-6.1.0-14-other/arch/sparc").mkdir(parents=True)
    assert taken() == "6.1.0-10"


def test_headers_that_the_variable_names(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(installed / "src/linux-headers-6.18.44", None, "not these")
    monkeypatch.setenv("BCC_KERNEL_SOURCE", "/named")
    with kernel_headers.headers():
        assert os.environ["BCC_KERNEL_SOURCE"] == "/named"
    assert "/named" in kernel_headers.find()

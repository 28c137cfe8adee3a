"""What is installed is complete, or was asked to be less: from a source distribution."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BUILD = """
import sys
from setuptools import build_meta
print(getattr(build_meta, sys.argv[1])(sys.argv[2]))
"""
OPEN_A_STACK = """
import hoststack, trio

async def main() -> None:
    async with hoststack.open_stack(link="udp"):
        print("udp is open")

trio.run(main)
"""
ASK_FOR_WHAT_IS_NOT_THERE = """
import logging, sys
import hoststack, trio

logging.basicConfig(format="%(levelname)s %(message)s", stream=sys.stdout)

async def main() -> None:
    async with hoststack.open_stack("veth0") as stack:
        print("instead:", stack.link_name, stack.engine_name, flush=True)
    for asked in ({"link": "af_xdp"}, {"link": "udp", "engine": "native"}):
        try:
            async with hoststack.open_stack("veth0", **asked):
                print("open")
        except (hoststack.LinkError, ValueError) as refused:
            print("refused:", refused)

trio.run(main)
"""


#: In a network namespace that goes with its one process.
WITH_A_VETH_PAIR = """
ip link add veth0 type veth peer name veth1
ip address add 10.213.0.1/24 dev veth0
ip link set veth0 up
ip link set veth1 up
exec "$0" -S -c "$1"
"""


def path_of(installed: Path) -> dict[str, str]:
    """The environment of a `python -S` that sees this package, and what it depends on.

    Without -S an editable install of the same name would fill in what is missing here.
    """
    return {**os.environ, "PYTHONPATH": f"{installed}:{sysconfig.get_path('purelib')}"}


def run_python(*arguments: str, cwd: Path, installed: Path | None = None) -> str:
    done = subprocess.run(
        [sys.executable, *(["-S"] if installed else []), *arguments],
        cwd=cwd,
        env=path_of(installed) if installed else None,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def unpacked_sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources, as a source distribution carries them."""
    folder = tmp_path_factory.mktemp("sdist")
    copy = folder / "checkout"
    unwanted = shutil.ignore_patterns(
        ".*",
        "__pycache__",
        "build",
        "dist",
        "*.egg-info",
        "*.so",
        "*.o",
        "_memory.c",
        "_session.c",
        "_wire.c",
        "_quic.c",
        "_http3.c",
        "_pyxdp.c",
        "build.json",
    )
    shutil.copytree(ROOT, copy, ignore=unwanted)
    run_python("-c", BUILD, "build_sdist", str(folder), cwd=copy)
    [archive] = folder.glob("*.tar.gz")
    shutil.unpack_archive(archive, folder / "unpacked")
    [unpacked] = (folder / "unpacked").iterdir()
    for name in ("bench", "docs", "tests"):  # no build reads them
        shutil.rmtree(unpacked / name)
    return unpacked


def unpack_wheel(folder: Path) -> Path:
    [wheel] = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "installed")
    return folder / "installed"


def build_wheel(
    sources: Path, folder: Path, *, hide: str = ":", without: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Build where something is hidden, and HOSTSTACK_WITHOUT has this value."""
    # in a mount namespace of its own: the machine keeps its headers
    copy = folder / "sources"
    if not copy.exists():
        shutil.copytree(sources, copy)
    script = f'{hide}; exec "$0" -c "$1" build_wheel "$2"'
    line = ["sh", "-ec", script, sys.executable, BUILD, str(folder)]
    environment = {k: v for k, v in os.environ.items() if k != "HOSTSTACK_WITHOUT"}
    environment["CFLAGS"] = "-O0"  # compiles in a third of the time
    return subprocess.run(
        line if hide == ":" else ["unshare", "--mount", *line],
        cwd=copy,
        env=environment | ({} if without is None else {"HOSTSTACK_WITHOUT": without}),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_installed_from_a_source_distribution(unpacked_sdist: Path, tmp_path: Path) -> None:
    if missing := missing_parts():
        pytest.skip(f"this machine can't build {missing}")
    done = build_wheel(unpacked_sdist, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(tmp_path.glob("hoststack-*-cp311-abi3-linux_*.whl"))) == 1
    installed = unpack_wheel(tmp_path)
    for source in (*ROOT.glob("hoststack/**/*.py"), *ROOT.glob("pyxdp/**/*.py")):
        assert (installed / source.relative_to(ROOT)).exists(), source
    assert (installed / "hoststack" / "py.typed").exists()
    # bcc compiles where it traces; no other source is of use there.
    assert [each.name for each in installed.rglob("*.c")] == ["tracing.bcc.c"]
    assert (installed / "hoststack" / "link" / "xdp" / "steer.bpf.o").exists()
    assert list((installed / "pyxdp").glob("_pyxdp*.so"))
    assert list((installed / "hoststack" / "native" / "quic").glob("_quic*.so"))
    [entry_points] = installed.glob("*.dist-info/entry_points.txt")
    for name in ("hoststack", "quic_echo"):
        assert f"{name} = " in entry_points.read_text(encoding="utf-8")

    assert "udp is open" in run_python("-c", OPEN_A_STACK, cwd=tmp_path, installed=installed)
    where = "import hoststack; print(hoststack.__file__)"
    assert run_python("-c", where, cwd=tmp_path, installed=installed).startswith(str(installed))
    run_python("-m", "apps.quic_echo", "--help", cwd=tmp_path, installed=installed)


@functools.cache
def missing_parts() -> str:
    """The parts that this machine can't build."""
    done = subprocess.run(
        [sys.executable, "setup.py", "--quiet", "missing_parts"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


#: What a build says that fails, by what makes it fail; each names a Debian package to install.
HIDDEN = {
    "libxdp": ("mount -t tmpfs none /usr/include/xdp", "xdp", "install libxdp-dev"),
    "clang": (
        'mount --bind /dev/null "$(realpath "$(command -v clang)")"',
        "xdp",
        "no clang, which compiles the XDP programs: install clang",
    ),
    "a clang that knows BPF": (
        'mount --bind /bin/false "$(realpath "$(command -v clang)")"',
        "xdp",
        "clang can't compile",
    ),
    "ngtcp2": ("mount -t tmpfs none /usr/include/ngtcp2", "native", "install libngtcp2-dev"),
    "GnuTLS": ("mount -t tmpfs none /usr/include/gnutls", "native", "install libgnutls28-dev"),
}


@pytest.mark.needs_root
@pytest.mark.parametrize("missing", HIDDEN)
def test_a_build_fails_that_lacks_something(
    missing: str, unpacked_sdist: Path, tmp_path: Path
) -> None:
    if absent := missing_parts():
        pytest.skip(f"this machine can't build {absent} as it is")
    hide, part, says = HIDDEN[missing]
    done = build_wheel(unpacked_sdist, tmp_path, hide=hide)
    assert done.returncode != 0
    assert f"error: {part} can't be built here:" in done.stderr
    assert says in done.stderr
    assert f"set HOSTSTACK_WITHOUT={part}" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("*.whl"))


@pytest.mark.needs_root
def test_a_build_fails_that_lacks_both(unpacked_sdist: Path, tmp_path: Path) -> None:
    if absent := missing_parts():
        pytest.skip(f"this machine can't build {absent} as it is")
    hide = "; ".join(HIDDEN[name][0] for name in ("libxdp", "ngtcp2"))
    done = build_wheel(unpacked_sdist, tmp_path, hide=hide)
    assert "set HOSTSTACK_WITHOUT=native,xdp" in done.stderr
    done = build_wheel(unpacked_sdist, tmp_path, hide=hide, without="xdp")
    assert "error: native can't be built here:" in done.stderr
    assert "set HOSTSTACK_WITHOUT=native,xdp" in done.stderr


@pytest.mark.parametrize("without", ["ngtcp2", "native,xpd", "native xdp"])
def test_parts_that_do_not_exist(unpacked_sdist: Path, tmp_path: Path, without: str) -> None:
    done = build_wheel(unpacked_sdist, tmp_path, without=without)
    assert done.returncode != 0
    assert "error: HOSTSTACK_WITHOUT names" in done.stderr
    assert "it can name native, xdp" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.needs_root
def test_installed_without_both_parts(unpacked_sdist: Path, tmp_path: Path) -> None:
    """It was asked for: what is missing then is neither needed nor silent."""
    done = build_wheel(unpacked_sdist, tmp_path, without="native, xdp")
    assert done.returncode == 0, done.stdout + done.stderr
    installed = unpack_wheel(tmp_path)
    built = sorted(path.name.partition(".")[0] for path in installed.rglob("*.so"))
    assert (built, list(installed.rglob("*.bpf.o"))) == (["_memory", "_session", "_wire"], [])

    in_a_namespace = ["unshare", "--net", "sh", "-ec", WITH_A_VETH_PAIR]
    asked = subprocess.run(
        [*in_a_namespace, sys.executable, ASK_FOR_WHAT_IS_NOT_THERE],
        cwd=tmp_path,
        env=path_of(installed),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert asked.returncode == 0, asked.stdout + asked.stderr
    link, engine, instead, no_af_xdp, no_native = asked.stdout.splitlines()
    assert link.startswith("WARNING link udp instead of af_xdp: ")
    assert "libxdp" in link
    assert engine.startswith("WARNING engine aioquic instead of native: it was left out")
    assert "HOSTSTACK_WITHOUT" in engine
    assert instead == "instead: udp aioquic"
    assert no_af_xdp.startswith("refused: ")
    assert "libxdp" in no_af_xdp
    assert no_native.startswith("refused: there is no native engine: it was left out of the build")

    doctor = subprocess.run(
        [sys.executable, "-S", "-m", "hoststack.cli.main", "doctor", "lo"],
        cwd=tmp_path,
        env=path_of(installed),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    for subject in ("native engine", "pyxdp", "steering"):
        [line] = [line for line in doctor.stdout.splitlines() if f" {subject} " in line]
        assert "left out of the build (HOSTSTACK_WITHOUT)" in line


def test_setup_py_names_packages_of_the_one_list() -> None:
    """scripts/bootstrap.sh has the list of Debian's packages; error messages name some of them."""
    listed = set(re.findall(r"[a-z0-9.+-]+", (ROOT / "scripts/bootstrap.sh").read_text()))
    setup = (ROOT / "setup.py").read_text()
    named = set(re.findall(r"\b[a-z0-9-]+-dev\b", setup))
    assert named
    assert named <= listed

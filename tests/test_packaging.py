"""What is installed is complete: from a source distribution, with and without libxdp and clang."""

from __future__ import annotations

import os
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
ASK_FOR_NATIVE = """
import hoststack, trio

async def main() -> None:
    async with hoststack.open_stack(link="udp") as stack:
        print("instead:", stack.engine_name)
    try:
        async with hoststack.open_stack(link="udp", engine="native"):
            print("open")
    except ValueError as refused:
        print("refused:", refused)

trio.run(main)
"""
ASK_FOR_AF_XDP = """
import hoststack, trio

async def main() -> None:
    async with hoststack.open_stack("veth0") as stack:
        print("instead:", stack.link_reason)
    try:
        async with hoststack.open_stack("veth0", link="af_xdp"):
            print("open")
    except hoststack.LinkError as refused:
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
        "_native.c",
        "_quic.c",
        "_pyxdp.c",
    )
    shutil.copytree(ROOT, copy, ignore=unwanted)
    run_python("-c", BUILD, "build_sdist", str(folder), cwd=copy)
    [archive] = folder.glob("*.tar.gz")
    shutil.unpack_archive(archive, folder / "unpacked")
    [unpacked] = (folder / "unpacked").iterdir()
    return unpacked


def unpack_wheel(folder: Path) -> Path:
    [wheel] = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "installed")
    return folder / "installed"


def install_hiding(hide: str, unpacked_sdist: Path, tmp_path: Path) -> tuple[str, Path]:
    """Install where something is hidden; what the build said, and the place."""
    # in a mount namespace of its own: the machine keeps its headers
    script = f'{hide}; exec "$0" -c "$1" build_wheel "$2"'
    sources = tmp_path / "sources"
    shutil.copytree(unpacked_sdist, sources, ignore=shutil.ignore_patterns("build"))
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-ec", script, sys.executable, BUILD, str(tmp_path)],
        cwd=sources,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stderr, unpack_wheel(tmp_path)


def test_installed_from_a_source_distribution(unpacked_sdist: Path, tmp_path: Path) -> None:
    said = run_python("-c", BUILD, "build_wheel", str(tmp_path), cwd=unpacked_sdist)
    installed = unpack_wheel(tmp_path)
    for source in (*ROOT.glob("hoststack/**/*.py"), *ROOT.glob("pyxdp/**/*.py")):
        assert (installed / source.relative_to(ROOT)).exists(), source
    assert (installed / "hoststack" / "py.typed").exists()
    # bcc compiles where it traces; no other source is of use there.
    assert [each.name for each in installed.rglob("*.c")] == ["tracing.bcc.c"]
    if "built without" not in said:
        assert (installed / "hoststack" / "link" / "steer.bpf.o").exists()
        assert list((installed / "pyxdp").glob("_pyxdp*.so"))
        assert list((installed / "hoststack" / "native").glob("_quic*.so"))
    [entry_points] = installed.glob("*.dist-info/entry_points.txt")
    for name in ("hoststack", "quic_echo"):
        assert f"{name} = " in entry_points.read_text(encoding="utf-8")

    assert "udp is open" in run_python("-c", OPEN_A_STACK, cwd=tmp_path, installed=installed)
    where = "import hoststack; print(hoststack.__file__)"
    assert run_python("-c", where, cwd=tmp_path, installed=installed).startswith(str(installed))
    run_python("-m", "apps.quic_echo", "--help", cwd=tmp_path, installed=installed)


@pytest.mark.needs_root
@pytest.mark.parametrize(
    ("missing", "hide", "says"),
    [
        (
            "libxdp",
            "mount -t tmpfs none /usr/include/xdp",
            "no headers of libxdp and libbpf: built without AF_XDP",
        ),
        (
            "clang",
            'mount --bind /dev/null "$(realpath "$(command -v clang)")"',
            "no clang: built without the steering program",
        ),
    ],
    ids=["libxdp", "clang"],
)
def test_installed_without(
    missing: str, hide: str, says: str, unpacked_sdist: Path, tmp_path: Path
) -> None:
    if shutil.which("clang") is None or not Path("/usr/include/xdp").exists():
        pytest.skip("clang or libxdp's headers are not there to be hidden")
    said, installed = install_hiding(hide, unpacked_sdist, tmp_path)
    assert says in said

    assert "udp is open" in run_python("-c", OPEN_A_STACK, cwd=tmp_path, installed=installed)
    asked = subprocess.run(
        ["unshare", "--net", "sh", "-ec", WITH_A_VETH_PAIR, sys.executable, ASK_FOR_AF_XDP],
        cwd=tmp_path,
        env=path_of(installed),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert asked.returncode == 0, asked.stdout + asked.stderr
    instead, refused = asked.stdout.splitlines()
    assert instead.startswith("instead: ")
    assert missing in instead
    assert refused.startswith("refused: ")
    assert missing in refused


@pytest.mark.needs_root
def test_installed_without_ngtcp2(unpacked_sdist: Path, tmp_path: Path) -> None:
    if not Path("/usr/include/ngtcp2").exists():
        pytest.skip("ngtcp2's headers are not there to be hidden")
    hide = "mount -t tmpfs none /usr/include/ngtcp2"
    said, installed = install_hiding(hide, unpacked_sdist, tmp_path)
    assert "built without the native engine" in said
    said = run_python("-c", ASK_FOR_NATIVE, cwd=tmp_path, installed=installed)
    instead, refused = said.splitlines()
    assert instead == "instead: aioquic"
    assert refused.startswith("refused: the native engine was not built")

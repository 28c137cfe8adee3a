"""All C compiles under gcc and under clang without a warning; the BPF programs under clang."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
WARNINGS = ["-O2", "-Wall", "-Wextra", "-Werror"]
MULTIARCH = f"/usr/include/{sys.implementation._multiarch}"

NATIVE = sorted(
    path
    for path in (ROOT / "hoststack" / "native").rglob("*.c")
    if not path.name.startswith("_")  # cffi made it
)
PYXDP = sorted(
    path
    for path in (ROOT / "pyxdp").glob("*.c")
    if path.name != "_pyxdp.c" and not path.name.endswith(".bpf.c")
)
BPF = sorted([*(ROOT / "bpf").glob("*.bpf.c"), *(ROOT / "pyxdp").glob("*.bpf.c")])
NO_LIBRARIES = r"ng(tcp2|http3)/\S+: No such file|'ng(tcp2|http3)/\S+' file not found"


def short_name(path: Path) -> str:
    return str(path.relative_to(ROOT))


TO_NOTHING = ["-c", "-o", "/dev/null"]
#: clang's warnings come from its front end; some of gcc's from its optimizer.
STAGES = {"gcc": TO_NOTHING, "clang": ["-fsyntax-only"]}


def compile_without_warnings(compiler: str, source: Path, *flags: str) -> None:
    found = shutil.which(compiler)
    if found is None:
        pytest.skip(f"{compiler} is not installed: scripts/bootstrap.sh installs it")
    done = subprocess.run(
        [found, *WARNINGS, *flags, str(source)],
        capture_output=True,
        text=True,
        check=False,
    )
    if "xsk.h: No such file" in done.stderr or "'xdp/xsk.h' file not found" in done.stderr:
        pytest.skip("libxdp's headers are not installed: scripts/bootstrap.sh installs them")
    if re.search(NO_LIBRARIES, done.stderr):
        pytest.skip("no headers of ngtcp2 or nghttp3: scripts/bootstrap.sh installs them")
    assert done.returncode == 0, done.stderr


def test_there_is_something_to_compile() -> None:
    assert NATIVE
    assert PYXDP
    assert BPF


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@pytest.mark.parametrize("source", NATIVE, ids=short_name)
def test_native(compiler: str, source: Path) -> None:
    folders = [f"-I{ROOT / folder}" for folder in ("hoststack/native", "bpf", "pyxdp")]
    compile_without_warnings(compiler, source, *STAGES[compiler], "-std=c11", *folders)


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@pytest.mark.parametrize("source", PYXDP, ids=short_name)
def test_pyxdp(compiler: str, source: Path) -> None:
    compile_without_warnings(compiler, source, *STAGES[compiler], "-std=gnu11")


@pytest.mark.parametrize("source", BPF, ids=short_name)
def test_bpf(source: Path) -> None:
    flags = ["-g", "-target", "bpf", f"-I{MULTIARCH}"]
    compile_without_warnings("clang", source, *TO_NOTHING, *flags)

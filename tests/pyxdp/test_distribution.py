"""pyxdp as a distribution of its own: built from its folder alone, it works without hoststack."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

import pyxdp

ROOT = Path(__file__).resolve().parent.parent.parent
BUILD = "import sys; from setuptools import build_meta as b; print(getattr(b, sys.argv[1])('out'))"
USE = """
import importlib.util, sys
import pyxdp
from pyxdp.tools.main import main
assert importlib.util.find_spec("hoststack") is None
assert pyxdp.available() == (True, ""), pyxdp.available()
sys.exit(main(["count", "-i", "nope0"]))
"""


def test_built_from_its_own_folder(extension: None, tmp_path: Path) -> None:
    if shutil.which("clang") is None:
        pytest.skip("clang is not installed: scripts/bootstrap.sh installs it")
    unwanted = shutil.ignore_patterns("*.so", "*.o", "_pyxdp.c", "__pycache__", "build", "*-info")
    shutil.copytree(ROOT / "pyxdp", tmp_path / "checkout", ignore=unwanted)
    subprocess.run(
        [sys.executable, "-c", BUILD, "build_sdist"],
        cwd=tmp_path / "checkout",
        check=True,
        capture_output=True,
    )
    [archive] = (tmp_path / "checkout" / "out").glob("pyxdp-*.tar.gz")
    shutil.unpack_archive(archive, tmp_path / "unpacked")
    [unpacked] = (tmp_path / "unpacked").iterdir()
    done = subprocess.run(
        [sys.executable, "-c", BUILD, "build_wheel"],
        cwd=unpacked,
        env={**os.environ, "CFLAGS": "-O0"},  # compiles in a third of the time
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    [wheel] = (unpacked / "out").glob("pyxdp-*.whl")
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as whole:
        whole.extractall(installed)
    assert {path.name for path in installed.iterdir() if path.suffix != ".dist-info"} == {"pyxdp"}
    licenses = {path.name for path in installed.glob("*/licenses/**/*") if path.is_file()}
    assert licenses == {"LICENSE", "BSD-3-Clause.txt", "GPL-2.0.txt"}
    assert {path.name for path in (installed / "pyxdp").glob("*.bpf.o")} == {
        f"{path.stem}.o" for path in Path(pyxdp.__file__).parent.glob("*.bpf.c")
    }
    used = subprocess.run(
        [sys.executable, "-S", "-c", USE],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{installed}:{sysconfig.get_path('purelib')}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert used.returncode == 1, used.stderr
    assert used.stderr.count("\n") == 1


def test_both_distributions_agree() -> None:
    """hoststack carries the same package: the same version, command, and what it depends on."""
    whole, part = (
        tomllib.loads((ROOT / folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        for folder in (".", "pyxdp")
    )
    assert whole["version"] == part["version"]
    assert whole["scripts"]["pyxdp"] == part["scripts"]["pyxdp"]
    assert whole["requires-python"] == part["requires-python"]
    assert set(part["dependencies"]) <= set(whole["dependencies"])

"""What `make wheel` relies on, without building it: `make wheel-check` tries the wheel itself."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
LIBRARIES_SH = (ROOT / "scripts/libraries.sh").read_text(encoding="utf-8")


def pinned() -> dict[str, tuple[tuple[int, ...], str]]:
    """Version and SHA-256 of each library that scripts/libraries.sh builds."""
    source = r"^(\w+)_SOURCE=pool/main/\S+_([0-9.]+)\.orig\.tar\.\S+$"
    sources = re.findall(source, LIBRARIES_SH, re.M)
    sums = dict(re.findall(r"^(\w+)_SHA256=([0-9a-f]{64})$", LIBRARIES_SH, re.M))
    return {name: (tuple(map(int, version.split("."))), sums[name]) for name, version in sources}


def test_versions_are_pinned() -> None:
    """ngtcp2's qlog overflowed a buffer on the stack before 1.22.1 (CVE-2026-40170)."""
    version, _ = pinned()["NGTCP2"]
    assert version >= (1, 22, 1)
    assert len(re.findall(r"_SOURCE=", LIBRARIES_SH)) == len(pinned())


def test_a_folder_of_libraries_that_is_none(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "setup.py", "--quiet", "missing_parts"],
        cwd=ROOT,
        env=os.environ | {"HOSTSTACK_LIBRARIES": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert f"error: HOSTSTACK_LIBRARIES={tmp_path}: no include/ and lib/ there" in done.stderr
    assert "Traceback" not in done.stderr


def run_libraries(folder: Path, **commands: str) -> subprocess.CompletedProcess[str]:
    """Run scripts/libraries.sh in a checkout that has nothing else, with fake commands."""
    (folder / "scripts").mkdir()
    (folder / "bin").mkdir()
    (folder / "scripts/libraries.sh").write_text(LIBRARIES_SH, encoding="utf-8")
    for name, text in commands.items():
        command = folder / "bin" / name.replace("_", "-")
        command.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
        command.chmod(0o755)
    return subprocess.run(
        ["bash", "scripts/libraries.sh"],
        cwd=folder,
        env={"PATH": f"{folder / 'bin'}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_libraries_without_a_mirror(tmp_path: Path) -> None:
    done = run_libraries(tmp_path, apt_get="exit 0")
    assert done.returncode == 1
    assert "apt has no mirror of Debian to load pool/main/n/ngtcp2/" in done.stderr
    assert "build/sources" in done.stderr


def test_libraries_that_were_not_finished_are_built_again(tmp_path: Path) -> None:
    prefix = tmp_path / "build/libraries"
    prefix.mkdir(parents=True)
    (prefix / "versions").write_text("of another version\n", encoding="utf-8")
    (prefix / "left-over").touch()
    assert run_libraries(tmp_path, apt_get="exit 0").returncode == 1
    assert not (prefix / "left-over").exists()


def test_libraries_that_are_there_are_kept(tmp_path: Path) -> None:
    prefix = tmp_path / "build/libraries"
    prefix.mkdir(parents=True)
    versions = " ".join(sha256 for _, sha256 in pinned().values())
    (prefix / "versions").write_text(f"{versions}\n", encoding="utf-8")
    done = run_libraries(tmp_path, apt_get="exit 1")
    assert (done.returncode, done.stderr) == (0, "")


def wheel_script(libraries: Path, work: Path) -> dict[str, Any]:
    """The functions of scripts/wheel.py, with these folders in place of build/'s."""
    names = runpy.run_path(str(ROOT / "scripts/wheel.py"))
    names["license_texts"].__globals__.update(LIBRARIES=libraries, WORK=work)
    return names


def test_each_linked_library_has_its_license_in_the_wheel(tmp_path: Path) -> None:
    modules = [*ROOT.glob("hoststack/native/*/_*.so"), *ROOT.glob("pyxdp/_*.so")]
    if not {"_quic", "_pyxdp"} <= {path.name.partition(".")[0] for path in modules}:
        pytest.skip("a part was left out of the build")
    licenses = tmp_path / "libraries/licenses"
    licenses.mkdir(parents=True)
    (licenses / "ngtcp2.txt").write_text("MIT", encoding="utf-8")
    wheel = tmp_path / "hoststack.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path in modules:
            archive.write(path, str(path.relative_to(ROOT)))

    texts = wheel_script(tmp_path / "libraries", tmp_path)["license_texts"](wheel)
    for stem in ("ngtcp2", "libxdp", "libbpf", "libgnutls", "libnettle", "libssl", "libnghttp3"):
        assert any(name.startswith(stem) for name in texts), stem
    assert "libc6" not in texts
    assert "GNU LESSER GENERAL PUBLIC LICENSE" in texts["LGPL-2.1"]
    assert all(texts.values())


def test_modules_are_for_every_python() -> None:
    """They use the stable ABI; one for a single Python would be imported first."""
    modules = [*ROOT.glob("hoststack/native/*/_*.so"), *ROOT.glob("pyxdp/_*.so")]
    assert modules
    assert [path.name for path in modules if not path.name.endswith(".abi3.so")] == []

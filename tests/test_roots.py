"""What the scripts that make roots of Debian refuse: `make debian`, `make wheel-check`."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DEBIAN = ("scripts/debian.sh", "trixie", "true")
WHEEL_CHECK = ("scripts/wheel_check.sh", "trixie")


def run(command: tuple[str, ...], path: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/bash", *command],
        cwd=ROOT,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def folder_with(folder: Path, **commands: str) -> str:
    for name, text in commands.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
        (folder / name).chmod(0o755)
    return str(folder)


def test_a_command_is_needed() -> None:
    done = run(DEBIAN[:2], os.environ["PATH"])
    assert (done.returncode, done.stderr) == (1, "debian: usage: debian.sh SUITE COMMAND...\n")


@pytest.mark.parametrize("command", [DEBIAN, WHEEL_CHECK])
def test_without_root(command: tuple[str, ...], tmp_path: Path) -> None:
    done = run(command, f"{folder_with(tmp_path, id='echo 1000')}:{os.environ['PATH']}")
    assert done.returncode == 1
    assert "it makes roots and namespaces: run it as root" in done.stderr


@pytest.mark.parametrize("command", [DEBIAN, WHEEL_CHECK])
def test_without_debootstrap(command: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "dirname").symlink_to("/usr/bin/dirname")
    done = run(command, folder_with(tmp_path, id="echo 0"))
    assert done.returncode == 1
    assert "no debootstrap: install debootstrap and iproute2" in done.stderr


def test_a_root_that_can_not_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not there the next time."""
    path = folder_with(tmp_path, id="echo 0", debootstrap="echo no such suite; exit 1", ip="exit 0")
    monkeypatch.setenv("HOSTSTACK_ROOTS", str(tmp_path / "roots"))
    log = tmp_path / "roots/trixie-tests.log"
    for _ in range(2):
        done = run(DEBIAN, f"{path}:{os.environ['PATH']}")
        assert done.returncode == 1
        assert f"debootstrap failed: see {log}" in done.stderr
        assert "no such suite" in log.read_text("utf-8")

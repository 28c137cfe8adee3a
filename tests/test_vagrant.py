"""vagrant/Vagrantfile is one that Vagrant takes, and sets machines up by the bootstrap script."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "vagrant"


def test_vagrant_takes_it(tmp_path: Path) -> None:
    vagrant = shutil.which("vagrant")
    if vagrant is None:
        pytest.skip("vagrant is not installed: apt-get install vagrant")
    environment = {
        **os.environ,
        "HOME": str(tmp_path),
        "VAGRANT_HOME": str(tmp_path / "home"),
        "VAGRANT_DOTFILE_PATH": str(tmp_path / "dot"),
        "VAGRANT_CHECKPOINT_DISABLE": "1",
    }
    done = subprocess.run(
        [vagrant, "validate", "--ignore-provider"],
        cwd=FOLDER,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "validated successfully" in done.stdout


def test_it_calls_the_bootstrap_script() -> None:
    text = (FOLDER / "Vagrantfile").read_text(encoding="utf-8")
    assert "scripts/bootstrap.sh" in text
    assert (FOLDER.parent / "scripts" / "bootstrap.sh").exists()
    assert "libvirt__driver_queues: 2" in text

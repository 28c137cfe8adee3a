"""scripts/Containerfile: the packages of scripts/bootstrap.sh, and the capabilities it takes."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import netns

ROOT = Path(__file__).resolve().parent.parent
CONTAINERFILE = ROOT / "scripts" / "Containerfile"
#: For the demo's namespaces, which a container does not make.
NOT_IN_CONTAINERS = {"iproute2", "ethtool"}
OPEN_AF_XDP = """
import sys, trio, hoststack

async def main() -> None:
    async with hoststack.open_stack(sys.argv[1], link="af_xdp") as stack:
        print(stack.link_name)

trio.run(main)
"""


def test_it_installs_what_bootstrap_does() -> None:
    bootstrap = (ROOT / "scripts" / "bootstrap.sh").read_text(encoding="utf-8")
    lists = dict(re.findall(r"^(\w+)_PACKAGES=\((.*)\)$", bootstrap, re.MULTILINE))
    building = ("CORE", "XDP", "NATIVE", "NGTCP2", "NGHTTP3")
    wanted = {package for name in building for package in lists[name].split()}
    text = CONTAINERFILE.read_text(encoding="utf-8").replace("\\\n", " ")
    first = re.search(r"apt-get install -y --no-install-recommends (.*)", text)
    assert first
    assert set(first[1].split()) == wanted - NOT_IN_CONTAINERS


def test_it_copies_what_a_build_reads() -> None:
    text = CONTAINERFILE.read_text(encoding="utf-8")
    copied = {
        word for words in re.findall(r"^COPY ([^-].*) \S+$", text, re.M) for word in words.split()
    }
    assert all((ROOT / name).exists() for name in copied)
    assert copied >= {"pyproject.toml", "setup.py", "bpf", "pyxdp", "hoststack", "apps", "LICENSES"}


@pytest.mark.needs_root
def test_the_capabilities_that_are_named_are_enough(veth_pair: netns.VethPair) -> None:
    if shutil.which("setpriv") is None:
        pytest.skip("there is no setpriv here")
    page = (ROOT / "docs" / "howto" / "deploy.md").read_text(encoding="utf-8")
    names = [name.lower() for name in re.findall(r"--cap-add=(\w+)", page)]
    assert names
    limited = ("setpriv", f"--bounding-set=-all,+{',+'.join(names)}")
    side = veth_pair.a
    done = subprocess.run(
        side.command(*limited, sys.executable, "-c", OPEN_AF_XDP, side.ifname),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "af_xdp\n"), done.stderr

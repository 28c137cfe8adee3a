"""docs/vcl.md: its programs run, and it tells of all that there is."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from hoststack import vcl
from hoststack.vcl import config
from tests.daemon.conftest import PATIENCE_S, Daemon
from tests.vcl.conftest import config_file_of

DOC = Path(__file__).parents[2] / "docs" / "vcl.md"
TEXT = DOC.read_text()


def test_the_programs(daemon: Daemon, tmp_path: Path) -> None:
    blocks = dict(re.findall(r"^```python (\S+)\n(.*?)^```", TEXT, re.M | re.S))
    for name, text in blocks.items():
        (tmp_path / name).write_text(text)
    environment = os.environ | {"VCL_CONFIG": config_file_of(daemon, tmp_path)}
    with socket.socket(type=socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        uri = f"quic://127.0.0.1:{probe.getsockname()[1]}"
    with subprocess.Popen(
        [sys.executable, tmp_path / "vcl_server.py", uri],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == "listening\n"
            client = subprocess.run(
                [sys.executable, tmp_path / "vcl_client.py", uri],
                capture_output=True,
                text=True,
                timeout=PATIENCE_S,
                env=environment,
                check=False,
            )
            assert (client.returncode, client.stdout, client.stderr) == (0, "", "")
            assert server.communicate(timeout=PATIENCE_S) == ("hello from VCL\n", "")
            assert server.returncode == 0
        finally:
            server.kill()


@pytest.mark.parametrize(
    "name",
    [
        *(name for name in vcl.__all__ if name.startswith("vppcom_")),
        *(attribute.name for attribute in vcl.Attr),
        *config._KEYS,
        *config._WITHOUT_EFFECT,
        *config._VARIABLES,
        config.CONFIG_VARIABLE,
    ],
)
def test_it_tells_of(name: str) -> None:
    assert re.search(rf"\b{name}\b", TEXT)


@pytest.mark.parametrize("name", [n for n in dir(vcl.Session) if not n.startswith("_")])
def test_it_describes_session_objects(name: str) -> None:
    assert re.search(rf"\b{name}\b", TEXT.split("## Session objects")[1].split("\n## ")[0])

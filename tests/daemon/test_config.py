"""Settings: from a file and from options; the manual has all of them; mistakes are named."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from hoststack.daemon.config import ConfigError, DaemonConfig, read_config, settings

ROOT = Path(__file__).resolve().parent.parent.parent


def test_the_manual_has_every_setting_and_its_option() -> None:
    manual = (ROOT / "docs" / "daemon.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([a-z-]+)` \| (.*?) \|", manual, re.MULTILINE))
    assert list(rows) == settings()
    done = subprocess.run(
        [sys.executable, "-m", "hoststack.cli.main", "run", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    for name, option in rows.items():
        assert option in ("", "|") or f"--{name}" in option
        assert f"--{name}" in done.stdout or name == "namespaces"


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "hoststack.toml"
    path.write_text(
        'link = "udp"\nworkers = 3\ndrain-seconds = 1.5\n[namespaces]\nred = "tomato"\n'
    )
    config = DaemonConfig(**read_config(path))
    assert (config.link, config.workers, config.drain_seconds) == ("udp", 3, 1.5)
    assert config.namespaces == {"red": "tomato"}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("workers = 0", "workers is 1 to 128, not 0"),
        ('workers = "2"', "workers is a whole number, not '2'"),
        ("workers = true", "workers is a whole number, not true"),
        ("socket = 5", "socket is a text in quotes, not 5"),
        ("namespaces = 5", "namespaces is a table, not 5"),
        ('socket = ""', "socket is empty"),
        ('group = ""', "group is empty"),
        (f'cli-socket = "/run/{"x" * 103}"', "cli-socket has 107 bytes at most"),
        ('socket = "/x"\ncli-socket = "/x"', "cli-socket is the same as socket"),
        ('link = "carrier pigeon"', "link is auto, af_xdp, udp"),
        ("worker = 2", "there is no setting 'worker'"),
        ("workers", "not TOML"),
        ("[namespaces]\nred = 1", "a secret in quotes"),
        ('link = "af_xdp"', "needs an interface"),
        ("drain-seconds = -1", "drain-seconds is 0 to 3600"),
        ("drain-seconds = nan", "drain-seconds is 0 to 3600"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "hoststack.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(complaint)):
        DaemonConfig(**read_config(path))


@pytest.mark.parametrize(
    ("words", "status", "complaint"),
    [
        (["--workers", "0"], 2, "workers is 1 to 128"),
        (["--config", "/nonexistent.toml"], 2, "can't be read"),
        (["--link", "udp", "--group", "no-such-group"], 2, "there is no group"),
        (["--link", "udp", "--socket", "/proc/nowhere/api.sock"], 1, "/proc/nowhere"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], status: int, complaint: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hoststack.cli.main", "run", *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == status
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr

"""The documentation builds without a warning, its programs run, and it leaves nothing out."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import hoststack

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
MOST_README_LINES = 150


def test_it_builds(tmp_path: Path) -> None:
    for name in ("sphinx", "myst_parser", "furo"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed: `pip install '.[test]'`")
    line = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    line += ["-D", "html_theme=basic"]  # furo takes more time than all the rest
    done = subprocess.run(
        [*line, "-d", tmp_path / "doctrees", DOCS, tmp_path / "html"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    page = (tmp_path / "html" / "api.html").read_text(encoding="utf-8")
    for name in hoststack.__all__:
        assert f'id="hoststack.{name}"' in page, f"docs/api.md leaves out {name}"


def test_files_that_are_named_exist() -> None:
    places = ("", "hoststack", *(f"hoststack/{name}" for name in ("native", "quic", "link")))
    pages = [ROOT / "README.md", *DOCS.rglob("*.md")]
    for page in pages:
        for name in re.findall(
            r"`([a-z_]+/[a-z_/]+\.(?:py|c|h))`", page.read_text(encoding="utf-8")
        ):
            assert any((ROOT / place / name).exists() for place in places), f"{page.name}: {name}"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < MOST_README_LINES


@pytest.mark.parametrize(
    "path",
    [path for path in (DOCS / "decisions").glob("*.md") if path.stem != "index"],
    ids=lambda path: path.stem,
)
def test_a_decision_is_a_page(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    headings = re.findall(r"^## (.*)$", text, re.M)
    assert headings == ["Context", "Decision", "Consequences"]
    assert len(text.splitlines()) <= 40

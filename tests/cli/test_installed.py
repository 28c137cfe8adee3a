"""What is installed beside the program: the systemd units, completion, man pages."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from docs.man import write_pages
from hoststack.cli.main import COMMANDS, main

pytest.importorskip("argparse_manpage")
UNITS = {"run": "hoststack.service", "serve": "hoststack-serve.service"}


def says(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    capsys.readouterr()
    status = main(words)
    return status, *capsys.readouterr()


# --- units ---


@pytest.mark.parametrize("service", UNITS)
def test_the_unit_is_written(
    service: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("install-unit", service, "--folder", str(tmp_path))
    status, out, _ = says(capsys, *words)
    path = tmp_path / UNITS[service]
    assert status == 0
    assert out.splitlines()[0] == f"wrote {path}"
    assert out.endswith(f"systemctl enable --now {path.stem}\n")
    text = path.read_text()
    assert says(capsys, *words, "--print")[1] == text
    assert [each.name for each in tmp_path.iterdir()] == [path.name]

    program = re.findall(r"^ExecStart=(\S+)", text, re.MULTILINE)[0]
    assert Path(program).name == "hoststack"
    if shutil.which("systemd-analyze"):
        path.write_text(text.replace(program, sys.executable))
        done = subprocess.run(
            ["systemd-analyze", "verify", str(path)], capture_output=True, text=True, check=False
        )
        said = [line for line in done.stderr.splitlines() if path.name in line]
        assert (done.returncode, said) == (0, [])


def test_the_unit_has_what_was_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("install-unit", "serve", "--print", "--config", "/etc/web.toml", "--user", "web")
    text = says(capsys, *words)[1]
    assert "hoststack serve --config /etc/web.toml\n" in text
    assert "\nUser=web\n" in text
    assert "DynamicUser" not in text
    assert "\nLogsDirectory=%p\n" in text


def test_another_unit_is_not_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("install-unit", "serve", "--folder", str(tmp_path), "--name", "web.service")
    path = tmp_path / "web.service"
    path.write_text("of somebody else")
    status, out, err = says(capsys, *words)
    assert (status, out) == (1, "")
    assert err == (
        f"hoststack: cannot write {path}: there is another one; --force replaces it, --name names "
        "this\n"
    )
    assert path.read_text() == "of somebody else"
    assert says(capsys, *words, "--force")[0] == 0
    assert says(capsys, *words)[0] == 0  # the same again


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("serve", "--user", "web\nExecStartPre=/bin/sh"), "--user can't be"),
        (("serve", "--config", "/etc/a b.toml"), "--config can't be"),
        (("serve", "--name", "../web"), "--name can't be"),
        (("run", "--user", "web"), "--user is for serve"),
    ],
)
def test_what_a_unit_can_not_have(
    words: tuple[str, ...], complaint: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    status, out, err = says(capsys, "install-unit", *words, "--folder", str(tmp_path))
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert complaint in err
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status, _, err = says(capsys, "install-unit", "run", "--folder", f"{tmp_path}/no")
    assert status == 1
    assert (
        err
        == f"hoststack: cannot write {tmp_path}/no/hoststack.service: No such file or directory\n"
    )


# --- completion ---

#: Prints what bash offers for the words of a line, of which the last one is unfinished.
COMPLETE = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
complete -p hoststack >/dev/null || exit 3
function=$(complete -p hoststack | sed -n 's/.* -F \\([^ ]*\\) .*/\\1/p')
compopt() { :; }
"$function" hoststack "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def bash_script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "hoststack.bash"
    line = [sys.executable, "-m", "hoststack.cli.main", "completion", "bash"]
    path.write_bytes(subprocess.run(line, capture_output=True, check=True).stdout)
    return path


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("ser",), {"serve"}),
        (("",), set(COMMANDS)),
        (("xdp", "lo"), {"load"}),
        (("install-unit", ""), {"run", "serve"}),
        (("run", "--eng"), {"--engine"}),
        (("run", "--engine", "na"), {"native"}),
        (("completion", "z"), {"zsh"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bash_completes(bash_script: Path, words: tuple[str, ...], offered: set[str]) -> None:
    if shutil.which("bash") is None:
        pytest.skip("there is no bash here")
    done = subprocess.run(
        ["bash", "-c", COMPLETE, "bash", str(bash_script), "hoststack", *words],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = {word.strip() for word in done.stdout.splitlines()}
    assert {word for word in found if not word.startswith("-") or words[-1]} == offered


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_scripts_are_valid(
    shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell} here")
    status, script, _ = says(capsys, "completion", shell)
    path = tmp_path / "script"
    path.write_text(script)
    done = subprocess.run([shell, "-n", str(path)], capture_output=True, text=True, check=False)
    assert (status, done.returncode, done.stderr) == (0, 0, "")


# --- man pages ---


def test_every_command_has_a_man_page(tmp_path: Path) -> None:
    pages = {path.stem: path for path in write_pages(tmp_path)}
    assert set(pages) == {
        *("hoststack", "pyxdp", "pyxdp-capture", "pyxdp-replay", "pyxdp-count"),
        *(f"hoststack-{name}" for name in COMMANDS),
    }
    for name, path in pages.items():
        text = path.read_text()
        [what] = re.findall(r"^\.SH NAME\n(.*)$", text, re.MULTILINE)
        assert re.fullmatch(re.escape(name) + " - .+", what.replace("\\", "")), what
        assert ".SH SYNOPSIS" in text
    assert r"\-\-certfile" in pages["hoststack-serve"].read_text()
    if shutil.which("man"):
        done = subprocess.run(
            ["man", "--warnings", "-l", *map(str, pages.values())],
            capture_output=True,
            text=True,
            check=False,
            env={"LC_ALL": "C.UTF-8", "MANWIDTH": "100", "PATH": "/usr/bin:/bin"},
        )
        assert done.returncode == 0
        assert "Serves an ASGI application" in done.stdout

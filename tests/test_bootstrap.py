"""scripts/bootstrap.sh, with an apt that only notes what it is told."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = (ROOT / "scripts/bootstrap.sh").read_text(encoding="utf-8")

#: Commands by name; each runs with FOLDER, where `told` is the log.
COMMANDS = {
    "id": "echo $USER_ID",
    "dpkg-query": """
shift 3
for each in "$@"; do
    case " $INSTALLED " in *" $each "*) printf '%s\\tinstalled\\t1.11.0\\n' "$each" ;; esac
done
""",
    "apt-get": """
case "$*" in
indextargets*) printf '%s\\n' "$TARGETS" ;;
*) echo "apt-get $*" >>"$FOLDER/told"; exit "${APT_STATUS:-0}" ;;
esac
""",
    "apt-cache": """
grep -q bookworm-backports "$FOLDER/told" && [ -n "$BACKPORTS" ] &&
    echo "libngtcp2-dev | 1.11.0-1~bpo12+1 | http://a bookworm-backports/main amd64 Packages"
echo "libngtcp2-dev | $NGTCP2 | http://a $SUITE/main amd64 Packages"
""",
    "tee": 'cat >"$FOLDER/source"; echo "tee $1" >>"$FOLDER/told"',
    "rm": 'echo "rm $*" >>"$FOLDER/told"',
    "sudo": "exit 1",
}
DEBIAN_12 = {
    "NGTCP2": "0.12.1+dfsg-1",
    "SUITE": "bookworm",
    "BACKPORTS": "yes",
    "TARGETS": "Packages  other main https://elsewhere/apt/\n"
    "Packages Other bookworm main https://elsewhere/debian/\n"
    "Packages Debian bookworm-security main http://mirror/security/\n"
    "Packages Debian bookworm main mirror+file:/etc/apt/mirrors/debian.list/\n"
    "Translations Debian bookworm main http://mirror/debian/",
}
DEBIAN_13 = {
    "NGTCP2": "1.11.0-1+deb13u1",
    "SUITE": "trixie",
    "TARGETS": "Packages Debian trixie main http://mirror/debian/",
}


@dataclass
class Done:
    said: str
    told: str
    source: str
    is_complete: bool

    @property
    def installed(self) -> set[str]:
        lines = re.findall(r"^apt-get install (.*)", self.told, re.MULTILINE)
        return {word for line in lines for word in line.split() if not word.startswith("-")}


def install(folder: Path, purpose: str = "run", **settings: str) -> Done:
    """Run its `install_packages`."""
    commands = folder / "bin"
    commands.mkdir()
    for name, text in COMMANDS.items():
        (commands / name).write_text(f"#!/bin/sh\n{text}")
        (commands / name).chmod(0o755)
    (folder / "told").touch()
    (folder / "os-release").write_text(f"VERSION_CODENAME={settings.get('SUITE', '')}\n")
    functions = SCRIPT.partition("\npurpose=")[0].replace(
        "/etc/os-release", str(folder / "os-release")
    )
    script = f"{functions}\npurpose={purpose} is_complete=yes\ninstall_packages\n"
    script += 'echo "complete: ${is_complete:-no}"\n'
    unset = ("HOSTSTACK_WITHOUT", "HOSTSTACK_NO_APT_SOURCE")
    done = subprocess.run(
        ["bash", "-c", script, str(ROOT / "scripts/bootstrap.sh")],
        env={k: v for k, v in os.environ.items() if k not in unset}
        | {"PATH": f"{commands}:/usr/bin:/bin", "FOLDER": str(folder)}
        | {"USER_ID": "0", "INSTALLED": "", "BACKPORTS": ""}
        | settings,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stderr == ""
    source = folder / "source"
    return Done(
        done.stdout,
        (folder / "told").read_text(),
        source.read_text() if source.exists() else "",
        "complete: yes" in done.stdout,
    )


#: What only the tests take.
TESTS_ONLY = {"vagrant", "caddy", "chromium-headless-shell", "libclang-rt-dev", "python3-bpfcc"}


def test_running_takes_less_than_the_tests(tmp_path: Path) -> None:
    for purpose in ("run", "test"):
        (tmp_path / purpose).mkdir()
    run = install(tmp_path / "run", "run", **DEBIAN_13)
    test = install(tmp_path / "test", "test", **DEBIAN_13)
    suite = {"libngtcp2-dev/trixie", "libnghttp3-dev/trixie"}
    assert {"gcc", "clang", "libxdp-dev"} | suite <= run.installed
    assert run.installed < test.installed
    only = test.installed - run.installed
    assert TESTS_ONLY | {"ngtcp2-client/trixie", "ngtcp2-server/trixie"} <= only
    assert any(name.startswith("linux-headers-") for name in only)
    assert (run.source, test.source) == ("", "")


def test_nothing_is_asked_where_all_is_there(tmp_path: Path) -> None:
    names = " ".join(re.findall(r"[a-z0-9.+-]{2,}", SCRIPT))
    done = install(tmp_path, "run", INSTALLED=names)
    assert (done.said, done.told) == ("complete: yes\n", "")


def test_backports_come_from_the_mirror_that_apt_has(tmp_path: Path) -> None:
    done = install(tmp_path, **DEBIAN_12)
    assert "URIs: mirror+file:/etc/apt/mirrors/debian.list/\nSuites: bookworm-back" in done.source
    assert "libngtcp2-dev/bookworm-backports" in done.installed
    # It is said, and how to forbid it.
    assert "adding bookworm-backports at mirror+file:/etc/apt/mirrors/debian.list/" in done.said
    assert "HOSTSTACK_NO_APT_SOURCE=1 forbids" in done.said
    assert "rm " not in done.told


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"HOSTSTACK_NO_APT_SOURCE": "1"}, "HOSTSTACK_NO_APT_SOURCE forbids"),
        ({"TARGETS": "Packages Other bookworm main http://a/"}, "apt has no mirror of Debian 12"),
        ({"SUITE": "jammy"}, "apt has no ngtcp2 1.11"),
    ],
)
def test_no_source_is_added(tmp_path: Path, settings: dict[str, str], says: str) -> None:
    done = install(tmp_path, **(DEBIAN_12 | settings))
    assert says in done.said
    assert done.source == ""
    assert "tee" not in done.told
    assert not any("ngtcp2" in name for name in done.installed)
    assert not done.is_complete


def test_a_mirror_without_backports_is_taken_out_again(tmp_path: Path) -> None:
    done = install(tmp_path, **(DEBIAN_12 | {"BACKPORTS": ""}))
    assert "it is not there: taking it out of apt's sources again" in done.said
    assert re.search(r"^rm -f /etc/apt/sources.list.d/\S+$", done.told, re.MULTILINE)


def test_without_root_it_says_what_to_ask_for(tmp_path: Path) -> None:
    done = install(tmp_path, USER_ID="1000", **DEBIAN_13)
    assert done.told == ""
    [line] = [line for line in done.said.splitlines() if "ask an administrator" in line]
    assert {"gcc", "libngtcp2-dev", "libxdp-dev"} <= set(line.split())
    assert not done.is_complete


@pytest.mark.parametrize(
    ("without", "absent", "present"),
    [
        ("native", {"libgnutls28-dev", "libngtcp2-dev/trixie"}, {"gcc", "clang"}),
        ("xdp", {"clang", "libxdp-dev"}, {"gcc", "libgnutls28-dev"}),
        ("native,xdp", {"clang", "libgnutls28-dev"}, {"gcc", "python3-venv"}),
    ],
)
def test_what_is_left_out_is_not_installed(
    tmp_path: Path, without: str, absent: set[str], present: set[str]
) -> None:
    done = install(tmp_path, HOSTSTACK_WITHOUT=without, **DEBIAN_13)
    assert not absent & done.installed
    assert present <= done.installed


def test_an_install_that_fails_is_said(tmp_path: Path) -> None:
    done = install(tmp_path, APT_STATUS="100", **DEBIAN_13)
    assert "apt-get failed: ask an administrator for: gcc" in done.said
    assert not done.is_complete


def test_no_host_is_named() -> None:
    for path in (*(ROOT / "scripts").iterdir(), ROOT / "Makefile", ROOT / "setup.py"):
        text = path.read_text(encoding="utf-8")
        assert "://" not in re.sub(r"quic://[0-9.]+:", "", text), path

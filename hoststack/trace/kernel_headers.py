"""Find the kernel headers that bcc compiles against."""

from __future__ import annotations

import errno
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

#: The variable by which bcc uses another tree than the running kernel's.
_VARIABLE: Final = "BCC_KERNEL_SOURCE"
_SOURCES: Final = Path("/usr/src")
_MODULES: Final = Path("/lib/modules")
#: The names of architectures in Linux's source tree.
_ARCHITECTURES: Final = {"x86_64": "x86", "aarch64": "arm64"}


@contextmanager
def headers() -> Iterator[None]:
    """Make bcc use the running kernel's headers, or else the newest that are installed.

    The few structures that the probes read are the same in both. Lasts until the end of the block.
    Raises OSError if no headers are installed.
    """
    if _VARIABLE in os.environ or _has_own():
        yield
        return
    folders = _newest()
    with tempfile.TemporaryDirectory(prefix="hoststack-headers-") as place:
        tree = Path(place) / "source"
        _merge(tree, folders)
        os.environ[_VARIABLE] = str(tree)
        try:
            yield
        finally:
            del os.environ[_VARIABLE]


def find() -> str:
    """Return the folder that `headers` uses. Raises OSError if there is none."""
    if _VARIABLE in os.environ:
        return f"{os.environ[_VARIABLE]} ({_VARIABLE})"
    if _has_own():
        return "the running kernel's"
    return " with ".join(map(str, _newest()))


def _has_own() -> bool:
    """Return whether bcc finds the running kernel's headers by itself."""
    build = _MODULES / os.uname().release / "build"
    return build.is_dir() or Path("/sys/kernel/kheaders.tar.xz").exists()


def _newest() -> list[Path]:
    """Return the folders of the newest complete version. Raises OSError."""
    trees = {}
    for path in (*_SOURCES.glob("linux-headers-*"), *_MODULES.glob("*/build")):
        folder = path.resolve()
        if parts := _parts(folder):
            trees[tuple(map(int, re.findall(r"[0-9]+", folder.name)))] = parts
    if not trees:
        raise OSError(
            errno.ENOENT,
            "there are no kernel headers for bcc to compile with: install Debian's "
            f"linux-headers-amd64 (or the like for your machine), or name a tree in {_VARIABLE}",
        )
    return trees[max(trees)]


def _parts(folder: Path) -> list[Path]:
    """Return the folders that make a complete tree, this one first; empty if it is incomplete.

    Debian has the headers of a kernel in two folders: linux-headers-6.12.117+deb13-amd64, which is
    configured for one architecture and whose Makefile names the other, and
    linux-headers-6.12.117+deb13-common.
    """
    machine = os.uname().machine
    if not (folder / "include/generated").is_dir():
        return []  # not configured: the common part of another tree
    if (folder / "arch").is_dir() and not (
        folder / "arch" / _ARCHITECTURES.get(machine, machine)
    ).is_dir():
        return []
    if (folder / "include/linux").is_dir():
        return [folder]
    for common in (folder.with_name(f"{folder.name.rpartition('-')[0]}-common"), _named(folder)):
        if common is not None and (common / "include/linux").is_dir():
            return [folder, common]
    return []


def _named(folder: Path) -> Path | None:
    """Return the folder whose Makefile this one's includes."""
    try:
        text = (folder / "Makefile").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"(?m)^include (.+)/Makefile$", text)
    return folder / found[1] if found else None


def _merge(target: Path, folders: Sequence[Path]) -> None:
    """Make one tree of links to the files of several; earlier folders take precedence."""
    target.mkdir()
    entries: dict[str, list[Path]] = {}
    for folder in folders:
        for entry in folder.iterdir():
            entries.setdefault(entry.name, []).append(entry)
    for name, paths in entries.items():
        inner = [path for path in paths if path.is_dir()]
        if len(inner) > 1:
            _merge(target / name, inner)
        else:
            (target / name).symlink_to(paths[0])

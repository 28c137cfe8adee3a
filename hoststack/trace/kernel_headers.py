"""The kernel's headers for bcc, which compiles against them."""

from __future__ import annotations

import errno
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

#: Where bcc looks for another tree than the running kernel's.
_VARIABLE: Final = "BCC_KERNEL_SOURCE"
_SOURCES: Final = Path("/usr/src")
#: Debian has them in two folders: linux-headers-6.1.0-18-amd64 for one kind of machine, and
#: linux-headers-6.1.0-18-common for all.
_FOLDER: Final = re.compile(r"linux-headers-(?P<version>[0-9][0-9.]*-[0-9]+)-(?P<kind>amd64|arm64)")


@contextmanager
def headers() -> Iterator[None]:
    """Have bcc find headers as long as the block lasts: the running kernel's, or else those that
    Debian has, which describe the few things that we look at in the same way.

    Raises OSError where there are none.
    """
    if _VARIABLE in os.environ or _has_own():
        yield
        return
    folders = _debians()
    if not folders:
        raise OSError(
            errno.ENOENT,
            "there are no kernel headers for bcc to compile with: install linux-headers-amd64, or "
            f"name a tree of them in {_VARIABLE}",
        )
    with tempfile.TemporaryDirectory(prefix="hoststack-headers-") as place:
        tree = Path(place) / "source"
        _merge(tree, folders)
        os.environ[_VARIABLE] = str(tree)
        try:
            yield
        finally:
            del os.environ[_VARIABLE]


def _has_own() -> bool:
    """Whether bcc finds the running kernel's by itself."""
    build = Path("/lib/modules") / os.uname().release / "build"
    return build.is_dir() or Path("/sys/kernel/kheaders.tar.xz").exists()


def _debians() -> list[Path]:
    """The two folders of the newest version that is there as a whole."""
    found = []
    for folder in _SOURCES.glob("linux-headers-*"):
        match = _FOLDER.fullmatch(folder.name)
        common = _SOURCES / f"linux-headers-{match['version']}-common" if match else None
        if match and common is not None and common.is_dir():
            numbers = [int(number) for number in re.findall(r"\d+", match["version"])]
            found.append((numbers, [folder, common]))
    return max(found, key=lambda each: each[0])[1] if found else []


def _merge(target: Path, folders: Sequence[Path]) -> None:
    """Make one tree of links to what is in several; the first one's files win."""
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

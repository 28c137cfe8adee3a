"""Compiles XDP programs with clang: for setup.py, of hoststack and of pyxdp by itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

#: Where Debian keeps asm/types.h, which clang's BPF target does not look for.
MULTIARCH: Final = Path("/usr/include") / f"{sys.implementation._multiarch}"
_FLAGS: Final = ("-O2", "-g", "-target", "bpf", "-Wall", "-Wextra", "-Werror")


def compile_bpf(source: Path, target: Path) -> str:
    """Compile a BPF object; return "", or the first line of why it failed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    command = ["clang", *_FLAGS, f"-I{MULTIARCH}", "-c", str(source), "-o", str(target)]
    try:
        done = subprocess.run(command, text=True, capture_output=True, check=False)
    except OSError as error:
        return f"clang: {error.strerror}"
    sys.stderr.write(done.stderr)
    if not done.returncode:
        return ""
    target.unlink(missing_ok=True)
    said = done.stderr.strip().splitlines()
    return said[0] if said else f"exit status {done.returncode}"

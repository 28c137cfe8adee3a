"""Builds hoststack.native._native, the C core, with cffi in API mode.

The headers are the declarations: cffi reads them too, without their preprocessor lines.
"""

from __future__ import annotations

from pathlib import Path

from cffi import FFI

_HERE = Path(__file__).resolve().parent
_ROOT = _HERE.parent.parent

_HEADERS = (
    _ROOT / "bpf" / "steer.h",
    _HERE / "fifo.h",
    _HERE / "event_ring.h",
    _HERE / "udp.h",
    _HERE / "frames.h",
)
_SOURCES = ("fifo.c", "event_ring.c", "udp.c", "frames.c")


def _declarations(header: Path) -> str:
    lines = header.read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if not line.startswith("#"))


ffibuilder = FFI()
for _header in _HEADERS:
    ffibuilder.cdef(_declarations(_header))
ffibuilder.set_source(
    "hoststack.native._native",
    "\n".join(f'#include "{header.name}"' for header in _HEADERS),
    sources=[str((_HERE / source).relative_to(_ROOT)) for source in _SOURCES],
    include_dirs=[str(_HERE), str(_ROOT / "bpf")],
    depends=[str(header.relative_to(_ROOT)) for header in _HEADERS],
    py_limited_api=False,
    extra_compile_args=["-std=c11", "-O2", "-Wall", "-Wextra"],
)

if __name__ == "__main__":
    ffibuilder.compile(verbose=True, tmpdir=str(_ROOT))

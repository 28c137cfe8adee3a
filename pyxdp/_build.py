"""Builds pyxdp._pyxdp over libxdp and libbpf, with cffi in API mode.

The headers are the declarations: cffi reads them too, without their preprocessor lines.
"""

from __future__ import annotations

from pathlib import Path

from cffi import FFI

_HERE = Path(__file__).resolve().parent
#: Where setup.py runs, of hoststack or of pyxdp by itself: setuptools takes paths from there.
_ROOT = Path.cwd()

_HEADERS = (_HERE / "bpf_calls.h", _HERE / "ring.h", _HERE / "pyxdp.h")
_SOURCES = (
    *("bpf_calls.c", "ring.c", "frames.c", "fill.c", "rings.c"),
    *("map.c", "open.c", "shared.c", "reclaim.c"),
)


def _declarations(header: Path) -> str:
    lines = header.read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if not line.startswith("#"))


ffibuilder = FFI()
for _header in _HEADERS:
    ffibuilder.cdef(_declarations(_header))
ffibuilder.set_source(
    "pyxdp._pyxdp",
    "\n".join(f'#include "{header.name}"' for header in _HEADERS),
    sources=[str((_HERE / source).relative_to(_ROOT)) for source in _SOURCES],
    include_dirs=[str(_HERE)],
    depends=[str(path.relative_to(_ROOT)) for path in (*_HEADERS, _HERE / "internal.h")],
    libraries=["xdp", "bpf"],
    # Optimized as Python is (-O2, as a rule), or as CFLAGS says.
    extra_compile_args=["-std=gnu11", "-Wall", "-Wextra"],
)

if __name__ == "__main__":
    ffibuilder.compile(verbose=True, tmpdir=str(_HERE.parent))

"""Builds the C core with cffi in API mode: a shared object for each part of it.

The headers are the declarations: cffi reads them too, without their preprocessor lines. Memory,
sessions and wires need only the C library. The engine needs ngtcp2 1.11 or newer with its GnuTLS
glue, and OpenSSL; HTTP/3 needs nghttp3 1.8. Where one of these is missing, setup.py says what to
install; it leaves the part out where HOSTSTACK_WITHOUT asks for that. The modules use the stable
ABI alone, cffi's default.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cffi import FFI

_HERE: Final = Path(__file__).resolve().parent
_ROOT: Final = _HERE.parent.parent
_INCLUDE: Final = (_HERE, _ROOT / "bpf", _ROOT / "pyxdp")


def _sources(folder: str) -> tuple[str, ...]:
    """Return the C files of a folder, without those that cffi generates."""
    return tuple(sorted(f"{folder}/{path.name}" for path in (_HERE / folder).glob("[!_]*.c")))


MEMORY_SOURCES: Final = ("memory/fifo.c",)
SESSION_SOURCES: Final = (*_sources("session"), "memory/fifo.c", "memory/event_ring.c")
WIRE_SOURCES: Final = _sources("wire")
#: Includes the wire and memory files that the engine calls.
QUIC_SOURCES: Final = (*_sources("quic"), "wire/paths.c", "memory/fifo.c")
HTTP3_SOURCES: Final = _sources("http3")
QUIC_LIBRARIES: Final = ("ngtcp2_crypto_gnutls", "ngtcp2", "gnutls", "crypto")

_QUIC_CALLBACKS: Final = """
extern "Python" int hs_python_make_datagram_fifos(void *owner, uint32_t connection,
                                                  struct hs_fifo_producer **rx,
                                                  struct hs_fifo_consumer **tx);
extern "Python" void *hs_python_find_session(void *owner, uint32_t connection);
extern "Python" int64_t hs_python_find_path(void *owner, uint32_t connection,
                                            uint8_t ip_version, const uint8_t *remote_ip,
                                            uint16_t remote_port);
static char *const NGTCP2_VERSION;
static char *const GNUTLS_VERSION;
typedef struct {
    const char *version_str;
    ...;
} ngtcp2_info;
const ngtcp2_info *ngtcp2_version(int least_version);
const char *gnutls_check_version(const char *least_version);
"""

_NGHTTP3: Final = """
static char *const NGHTTP3_VERSION;
typedef struct {
    const char *version_str;
    ...;
} nghttp3_info;
const nghttp3_info *nghttp3_version(int least_version);
"""

_SESSION_CALLBACKS: Final = """
extern "Python" void hs_python_command(void *owner, uint64_t handle, uint32_t command,
                                       uint64_t code);
extern "Python" int hs_python_make_blocks(void *owner, uint64_t connection_key, int is_peers,
                                          struct hs_made_block out[2]);
"""


def _declarations(header: str) -> str:
    path = next(folder / header for folder in _INCLUDE if (folder / header).exists())
    lines = path.read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if not line.startswith("#"))


def _builder(
    module: str,
    headers: Sequence[str],
    sources: Sequence[str],
    *,
    declarations: str = "",
    includes: Sequence[str] = (),
    libraries: Sequence[str] = (),
) -> FFI:
    ffi = FFI()
    for header in headers:
        ffi.cdef(_declarations(header))
    ffi.cdef(declarations)
    ffi.set_source(
        module,
        "\n".join([*(f'#include "{header}"' for header in headers), *includes]),
        sources=[str((_HERE / source).relative_to(_ROOT)) for source in sources],
        include_dirs=[str(folder) for folder in _INCLUDE],
        depends=[str(path.relative_to(_ROOT)) for path in sorted(_HERE.rglob("*.h"))],
        libraries=list(libraries),
        # Optimized as Python is (-O2, as a rule), or as CFLAGS says.
        extra_compile_args=["-std=c11", "-Wall", "-Wextra"],
    )
    return ffi


memory = _builder("hoststack.native.memory._memory", ("memory/fifo.h",), MEMORY_SOURCES)
session = _builder(
    "hoststack.native.session._session",
    (
        "memory/event_ring.h",
        "session/transport.h",
        "session/end.h",
        "session/records.h",
        "session/attached.h",
        "session/session.h",
    ),
    SESSION_SOURCES,
    declarations=_SESSION_CALLBACKS,
)
wire = _builder(
    "hoststack.native.wire._wire",
    (
        "steer.h",
        "wire/udp.h",
        "wire/frames.h",
        "wire/wire.h",
        "wire/handed.h",
        "wire/sockets.h",
        "wire/xdp.h",
    ),
    WIRE_SOURCES,
)
quic = _builder(
    "hoststack.native.quic._quic",
    ("quic/quic.h",),
    QUIC_SOURCES,
    declarations=_QUIC_CALLBACKS,
    includes=("#include <gnutls/gnutls.h>", "#include <ngtcp2/ngtcp2.h>"),
    libraries=QUIC_LIBRARIES,
)
http3 = _builder(
    "hoststack.native.http3._http3",
    ("http3/http3.h",),
    HTTP3_SOURCES,
    declarations=_NGHTTP3,
    includes=("#include <nghttp3/nghttp3.h>",),
    libraries=("nghttp3",),
)

"""Builds hoststack.native._quic, the native engine, with cffi in API mode.

It needs ngtcp2 1.11 with its GnuTLS glue, and OpenSSL; setup.py says what to install where one of
them is missing, and leaves it out where HOSTSTACK_WITHOUT asks for that.
"""

from __future__ import annotations

from pathlib import Path

from cffi import FFI

_HERE = Path(__file__).resolve().parent
_ROOT = _HERE.parent.parent

#: What Python sees; each header brings what it needs itself.
_HEADERS = ("quic.h", "wire_xdp.h", "wire_udp.h")
_INCLUDES = (*(f'"{header}"' for header in _HEADERS), "<gnutls/gnutls.h>", "<ngtcp2/ngtcp2.h>")
_SOURCES = (
    "quic_turn.c",
    "quic_accept.c",
    "quic_half_open.c",
    "quic_held.c",
    "quic_connection.c",
    "quic_version.c",
    "quic_close.c",
    "quic_resume.c",
    "quic_callbacks.c",
    "quic_handshake.c",
    "quic_packets.c",
    "quic_frames.c",
    "quic_stream.c",
    "quic_datagram.c",
    "quic_path.c",
    "quic_size.c",
    "quic_tls.c",
    "quic_chacha.c",
    "quic_tables.c",
    "wire_handed.c",
    "wire_udp.c",
    "wire_xdp.c",
    "datagram_ports.c",
    "paths.c",
    "frames.c",
    "udp.c",
    "fifo.c",
)


def _declarations(header: Path) -> str:
    lines = header.read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if not line.startswith("#"))


ffibuilder = FFI()
for _header in _HEADERS:
    ffibuilder.cdef(_declarations(_HERE / _header))
ffibuilder.cdef(
    """
    extern "Python" int hs_python_make_fifos(void *owner, uint32_t connection, int64_t stream_id,
                                             struct hs_fifo_producer **rx,
                                             struct hs_fifo_consumer **tx);
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
)
ffibuilder.set_source(
    "hoststack.native._quic",
    "\n".join(f"#include {header}" for header in _INCLUDES),
    sources=[str((_HERE / source).relative_to(_ROOT)) for source in _SOURCES],
    include_dirs=[str(_HERE), str(_ROOT / "bpf"), str(_ROOT / "pyxdp")],
    depends=[str(path.relative_to(_ROOT)) for path in sorted(_HERE.glob("*.h"))],
    libraries=["ngtcp2_crypto_gnutls", "ngtcp2", "gnutls", "crypto"],
    py_limited_api=False,
    extra_compile_args=["-std=c11", "-O2", "-Wall", "-Wextra"],
)

if __name__ == "__main__":
    ffibuilder.compile(verbose=True, tmpdir=str(_ROOT))

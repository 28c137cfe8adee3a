"""Wires (hoststack/native/wire/wire.h) called from Python: an extension, compiled when first used.

It has the wires' own sources, and calls any wire through its verbs, those that links make as well.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
from cffi import FFI

from hoststack.native import _build

ROOT: Final = Path(__file__).resolve().parent.parent.parent
NATIVE: Final = ROOT / "hoststack" / "native"
#: Says that the extension is to be compiled with these further words (sanitizers).
EXTRA_FLAGS: Final = "HOSTSTACK_TEST_CFLAGS"

BURST: Final = 64
FAMILIES: Final = ["ipv4", "ipv6"]

_HEADERS: Final = (
    NATIVE / "wire/wire.h",
    NATIVE / "wire/frames.h",
    NATIVE / "wire/udp.h",
    ROOT / "pyxdp" / "pyxdp.h",
    NATIVE / "wire/xdp.h",
    NATIVE / "wire/sockets.h",
    NATIVE / "wire/handed.h",
)
_CDEF: Final = """
enum { HS_WIRE_BURST = 64 };
struct hs_path {
    uint32_t id;
    uint32_t references;
    uint8_t key[64];
    uint8_t is_routed;
    uint32_t max_datagram_bytes;
    int fd;
    struct hs_udp_flow flow;
    uint8_t has_header;
    struct hs_frame_header header;
    ...;
};
struct hs_received {
    const uint8_t *data;
    uint32_t bytes;
    uint8_t ecn;
    struct hs_path *path;
    const uint8_t *key;
};
struct hs_wire_counters {
    uint64_t rx_datagrams, rx_bytes, tx_datagrams, tx_bytes, tx_full;
    uint64_t drops[24];
};
struct hs_wire { struct hs_wire_counters counters; ...; };

int call_receive(struct hs_wire *wire, struct hs_received *out, int budget);
void call_release(struct hs_wire *wire);
uint8_t *call_reserve(struct hs_wire *wire, size_t *room);
void call_commit(struct hs_wire *wire, struct hs_path *path, uint32_t bytes, uint8_t ecn);
int call_flush(struct hs_wire *wire);
void call_reverse(struct hs_wire *wire, const uint8_t *key, struct hs_path *out);
struct hs_path *call_learn(struct hs_wire *wire, const uint8_t *key);
struct hs_path *path_by_id(struct hs_wire *wire, uint32_t id);
void call_free(struct hs_wire *wire);
struct hs_path *add_path(struct hs_wire *wire, uint16_t remote_port, const uint8_t *key);
"""
_CALLS: Final = """
#include "wire/verbs.h"
#include "wire/handed.h"
#include "wire/sockets.h"
#include "wire/xdp.h"
#include "pyxdp.h"

static int call_receive(struct hs_wire *wire, struct hs_received *out, int budget)
{
    return wire->verbs->receive(wire, out, budget);
}
static void call_release(struct hs_wire *wire) { wire->verbs->release(wire); }
static uint8_t *call_reserve(struct hs_wire *wire, size_t *room)
{
    return wire->verbs->reserve(wire, room);
}
static void call_commit(struct hs_wire *wire, struct hs_path *path, uint32_t bytes, uint8_t ecn)
{
    wire->verbs->commit(wire, path, bytes, ecn);
}
static int call_flush(struct hs_wire *wire) { return wire->verbs->flush(wire); }
static void call_reverse(struct hs_wire *wire, const uint8_t *key, struct hs_path *out)
{
    wire->verbs->reverse(wire, key, out);
}
static struct hs_path *call_learn(struct hs_wire *wire, const uint8_t *key)
{
    return wire->verbs->learn(wire, key);
}
static struct hs_path *path_by_id(struct hs_wire *wire, uint32_t id)
{
    return hs_paths_by_id(&wire->paths, id);
}
static void call_free(struct hs_wire *wire) { wire->verbs->free(wire); }

/* A path whose addresses nobody asks for: they only have to differ. */
static struct hs_path *add_path(struct hs_wire *wire, uint16_t remote_port, const uint8_t *key)
{
    union hs_address local = { .v4 = { .sin_family = AF_INET } }, remote = local;
    remote.v4.sin_port = remote_port;
    struct hs_path *path = hs_paths_add(&wire->paths, &local, &remote);
    if (path)
        hs_paths_set_key(&wire->paths, path, key);
    return path;
}
"""


def _declarations(header: Path) -> str:
    # The functions of `pyxdp.h` are in another module: use its types only.
    lines = header.read_text(encoding="utf-8").splitlines()
    text = "\n".join(line for line in lines if not line.startswith("#"))
    return (
        text
        if header.name != "pyxdp.h"
        else text[: text.index("int pyxdp_umem_create(")] + _verbs(text)
    )


def _verbs(text: str) -> str:
    start = text.index("struct pyxdp_verbs {")
    return text[start : text.index("};", start) + 2]


@cache
def extension() -> tuple[Any, Any]:
    """(ffi, lib) of the test extension; the test is skipped where it can't be compiled."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed: scripts/bootstrap.sh installs it")
    pytest.importorskip("setuptools", reason="cffi compiles with setuptools")
    builder = FFI()
    for header in _HEADERS:
        builder.cdef(_declarations(header))
    builder.cdef(_CDEF)
    builder.set_source(
        "_test_wires",
        _CALLS,
        sources=[str(NATIVE / name) for name in _build.WIRE_SOURCES],
        include_dirs=[str(NATIVE), str(ROOT / "bpf"), str(ROOT / "pyxdp")],
        extra_compile_args=["-std=c11", "-O1", "-Wall", "-Wextra", *_extra_flags()],
        extra_link_args=_extra_flags(),
    )
    with tempfile.TemporaryDirectory() as folder:
        built = builder.compile(tmpdir=folder)
        spec = importlib.util.spec_from_file_location("_test_wires", built)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module.ffi, module.lib


def _extra_flags() -> list[str]:
    return os.environ.get(EXTRA_FLAGS, "").split()


class Received(NamedTuple):
    """A datagram that a wire gave, copied."""

    payload: bytes
    ecn: int
    path: Any
    """struct hs_path *, or NULL."""
    key: bytes


class WireCalls:
    """A wire's verbs."""

    def __init__(self, wire: Any) -> None:
        """`wire` is a struct hs_wire *, or its address."""
        self.ffi, self.lib = extension()
        self.wire: Any = self.ffi.cast("struct hs_wire *", wire)
        self._burst = self.ffi.new("struct hs_received[64]")
        self._room = self.ffi.new("size_t *")
        self._paths = 0

    def receive(self, budget: int = 64) -> list[Received]:
        """Receive once; what came is copied and released."""
        count = self.lib.call_receive(self.wire, self._burst, budget)
        got = [
            Received(
                bytes(self.ffi.buffer(each.data, each.bytes)),
                each.ecn,
                each.path,
                bytes(self.ffi.buffer(each.key, 64)),
            )
            for each in self._burst[0:count]
        ]
        if count:
            self.lib.call_release(self.wire)
        return got

    def room(self) -> int:
        """How large the next datagram may be; 0 where the way out is full."""
        return self._room[0] if self.lib.call_reserve(self.wire, self._room) else 0

    def write(self, path: Any, payload: bytes, ecn: int = 0) -> bool:
        """Reserve, write and commit; False where the way out is full."""
        place = self.lib.call_reserve(self.wire, self._room)
        if not place:
            return False
        assert len(payload) <= self._room[0]
        self.ffi.memmove(place, payload, len(payload))
        self.lib.call_commit(self.wire, path, len(payload), ecn)
        return True

    def flush(self) -> int:
        """Returns how many datagrams have to wait."""
        return int(self.lib.call_flush(self.wire))

    def answer_path(self, key: bytes) -> Any:
        """The path of an answer to a datagram of the last burst."""
        path = self.ffi.new("struct hs_path *")
        self.lib.call_reverse(self.wire, key, path)
        return path

    def learn(self, key: bytes) -> Any:
        """The path of a datagram of the last burst, which is in the table from now on; or NULL."""
        return self.lib.call_learn(self.wire, key)

    def path(self, key: bytes) -> Any:
        """A new path, which datagrams with this key come along."""
        self._paths += 1
        return self.lib.add_path(self.wire, self._paths, key)

    def dropped(self, enum: str) -> dict[str, int]:
        """The drops that were counted, by the names of an enum: "hs_frame_drop", say."""
        names = self.ffi.typeof(f"enum {enum}").elements
        drops = self.wire.counters.drops
        return {name: drops[number] for number, name in names.items() if drops[number]}

    def free(self) -> None:
        """The wire goes."""
        self.lib.call_free(self.wire)


def payloads(count: int, size: int) -> list[bytes]:
    return [number.to_bytes(4, "big").ljust(size, b"\x5a") for number in range(count)]

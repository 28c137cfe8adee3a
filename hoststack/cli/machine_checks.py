"""The doctor's checks of the machine: kernel, privilege, libraries, the steering program."""

from __future__ import annotations

import errno
import importlib.metadata
import importlib.util
import platform
import resource
import socket
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Final

import pyxdp
from hoststack.cli.finding import Finding, bad, good, hint
from hoststack.native.build_record import left_out
from hoststack.trace import kernel_headers
from hoststack.worker.engines import why_not_native

# linux/capability.h
_CAPABILITIES: Final = {
    "CAP_NET_ADMIN": 12,
    "CAP_NET_RAW": 13,
    "CAP_IPC_LOCK": 14,
    "CAP_SYS_ADMIN": 21,
    "CAP_PERFMON": 38,
    "CAP_BPF": 39,
}
_AF_XDP: Final = 44
# bpf_link for XDP exists since 5.9; we test on 6.1 and later.
_OLDEST_KERNEL: Final = (5, 9)
_LEAST_MEMLOCK_BYTES: Final = 64 << 20
_LEFT_OUT: Final = "left out of the build (HOSTSTACK_WITHOUT)"


def findings() -> Iterator[Finding]:
    """Yield all findings about the machine, whatever the interface."""
    yield _kernel()
    yield _af_xdp()
    yield _capabilities()
    yield _locked_memory()
    yield _native_engine()
    yield _pyxdp()
    yield _steering_program()
    yield _jit()
    yield _packages()
    yield _kernel_headers()


def _kernel() -> Finding:
    release = platform.release()
    numbers = tuple(int(part) for part in release.split("-")[0].split(".")[:2] if part.isdigit())
    if numbers < _OLDEST_KERNEL:
        return bad("kernel", f"{release} is too old", "use Linux 5.10 or later, best 6.1 or later")
    return good("kernel", release)


def _af_xdp() -> Finding:
    try:
        socket.socket(_AF_XDP, socket.SOCK_RAW).close()
    except OSError as error:
        if error.errno == errno.EAFNOSUPPORT:
            return bad(
                "AF_XDP",
                "this kernel has no AF_XDP sockets",
                "use a kernel with CONFIG_XDP_SOCKETS=y, as Debian's has",
            )
        if error.errno != errno.EPERM:
            return bad("AF_XDP", f"socket() fails: {error.strerror}", "see the kernel's log")
        return bad("AF_XDP", "creating a socket is forbidden", "run as root, or with CAP_NET_RAW")
    return good("AF_XDP", "sockets can be created")


def _effective_capabilities() -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


def _has(name: str) -> bool:
    return bool(_effective_capabilities() >> _CAPABILITIES[name] & 1)


def _capabilities() -> Finding:
    missing = [name for name in ("CAP_NET_ADMIN", "CAP_NET_RAW") if not _has(name)]
    # CAP_SYS_ADMIN includes these (capabilities(7)). The verifier refuses comparisons of pointers
    # in a program that is loaded without CAP_PERFMON.
    if not _has("CAP_SYS_ADMIN"):
        missing += [name for name in ("CAP_BPF", "CAP_PERFMON") if not _has(name)]
    if missing:
        return bad(
            "privilege",
            f"without {', '.join(missing)}",
            "run as root, or grant them, e.g. with `systemd-run -p AmbientCapabilities=...`",
        )
    return good("privilege", "CAP_NET_ADMIN, CAP_NET_RAW, CAP_BPF and CAP_PERFMON are present")


def _locked_memory() -> Finding:
    limit_bytes, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if _has("CAP_IPC_LOCK") or limit_bytes == resource.RLIM_INFINITY:
        return good("locked memory", "not limited")
    text = f"limited to {limit_bytes >> 10} KiB"
    if limit_bytes < _LEAST_MEMLOCK_BYTES:
        return bad(
            "locked memory",
            f"{text}, too little for a UMEM",
            f"`ulimit -l {_LEAST_MEMLOCK_BYTES >> 10}`, or CAP_IPC_LOCK",
        )
    return good("locked memory", text)


def _native_engine() -> Finding:
    subject = "native engine"
    why_not = why_not_native()
    if why_not:
        reason, _, fix = why_not.partition(": ")
        return hint(subject, f"{reason}; the aioquic engine is used instead", fix)
    from hoststack.native.quic._quic import ffi, lib

    versions = (
        ("ngtcp2", lib.NGTCP2_VERSION, lib.ngtcp2_version(0).version_str),
        ("GnuTLS", lib.GNUTLS_VERSION, lib.gnutls_check_version(ffi.NULL)),
    )
    texts = []
    for name, *pointers in versions:
        built, loaded = (ffi.string(pointer).decode() for pointer in pointers)
        texts.append(f"{name} {loaded}" + (f" (built against {built})" if built != loaded else ""))
    return good(subject, f"built; {', '.join(texts)}")


def _pyxdp() -> Finding:
    works, why = pyxdp.available()
    if works:
        return good("pyxdp", f"built; libbpf {pyxdp.libbpf_version()}")
    return bad(
        "pyxdp",
        _LEFT_OUT if "xdp" in left_out() else why.split(";")[0],
        "install libxdp-dev, libbpf-dev, clang, gcc and python3-dev, then build again: `make"
        " build` in a checkout, else `pip install --force-reinstall`",
    )


def _steering_program() -> Finding:
    subject = "steering"
    program = files("hoststack.link.xdp").joinpath("steer.bpf.o")
    if not program.is_file():
        return bad(
            subject,
            _LEFT_OUT if "xdp" in left_out() else "the XDP program was not built",
            "install clang, libbpf-dev and linux-libc-dev, then build again (`make build`)",
        )
    if not pyxdp.available()[0]:
        return hint(subject, "the XDP program is present, but untested", "see pyxdp above")
    try:
        pyxdp.Program.load(program.read_bytes()).close()
    except pyxdp.NoPrivilegeError:
        return hint(subject, "the XDP program is present, but untested", "see privilege above")
    except pyxdp.PyxdpError as error:
        return bad(subject, error.strerror or str(error), "report this, with the kernel's version")
    return good(subject, "the kernel accepts the XDP program")


def _jit() -> Finding:
    setting = Path("/proc/sys/net/core/bpf_jit_enable")
    try:
        enabled = setting.read_text(encoding="ascii").strip() != "0"
    except OSError:
        return hint("BPF JIT", "not visible in this network namespace", "check outside of it")
    if enabled:
        return good("BPF JIT", "on")
    return hint("BPF JIT", "off: the XDP program is interpreted", f"`echo 1 > {setting}`")


def _packages() -> Finding:
    versions = [
        f"{name} {importlib.metadata.version(name)}"
        for name in ("trio", "aioquic", "cryptography", "pyroute2")
    ]
    return good("libraries", ", ".join(versions))


def _kernel_headers() -> Finding:
    subject = "headers"
    try:
        found = kernel_headers.find()
    except OSError as error:
        fix = str(error.strerror).partition(": ")[2]
        return hint(subject, "no kernel headers: only tracing needs them", fix)
    return good(subject, f"for tracing with bcc: {found}")

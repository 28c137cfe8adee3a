"""What pyproject.toml can't say: the C modules, and the BPF objects that clang makes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent

#: BPF sources by folder, and the package that carries their objects.
BPF_FOLDERS = {"bpf": "hoststack/link", "pyxdp": "pyxdp"}
#: Where Debian keeps asm/types.h, which clang's BPF target does not look for.
MULTIARCH = Path("/usr/include") / f"{sys.implementation._multiarch}"


def say(line: str) -> None:
    print(f"hoststack: {line}", file=sys.stderr)


#: What has to be there for AF_XDP, and for the native QUIC engine.
XDP_HEADERS = "#include <xdp/xsk.h>\n#include <bpf/libbpf.h>\n"
NGTCP2_HEADERS = """
#include <ngtcp2/ngtcp2.h>
#include <ngtcp2/ngtcp2_crypto_gnutls.h>
#include <gnutls/crypto.h>
#include <openssl/evp.h>
#if NGTCP2_VERSION_NUM < 0x010b00
#error
#endif
"""


def can_include(source: str) -> bool:
    found = shutil.which("gcc") or shutil.which("cc")
    if found is None:
        return False
    check = subprocess.run(
        [found, "-E", "-x", "c", "-"], input=source, text=True, capture_output=True, check=False
    )
    return check.returncode == 0


class BuildNative(build_ext):
    """C modules and BPF objects; what libxdp or clang is missing for is left out, and said so."""

    def run(self) -> None:
        if not can_include(XDP_HEADERS):
            say("no headers of libxdp and libbpf: built without AF_XDP (links udp and memory work)")
            self.leave_out("pyxdp._pyxdp")
        if not can_include(NGTCP2_HEADERS):
            say("no headers of ngtcp2 1.11, GnuTLS and OpenSSL: built without the native engine")
            self.leave_out("hoststack.native._quic")
        super().run()
        self.build_bpf()

    def leave_out(self, name: str) -> None:
        self.extensions = [e for e in self.extensions if e.name != name]

    def build_bpf(self) -> None:
        clang = shutil.which("clang")
        if clang is None:
            say("no clang: built without the steering program (links udp and memory work)")
            return
        target_root = ROOT if self.inplace else Path(self.build_lib)
        for folder, package in BPF_FOLDERS.items():
            newest = max((p.stat().st_mtime for p in (ROOT / folder).glob("*.[ch]")), default=0)
            for source in sorted((ROOT / folder).glob("*.bpf.c")):
                self.build_bpf_object(clang, source, target_root / package, newest)

    def build_bpf_object(self, clang: str, source: Path, folder: Path, newest: float) -> None:
        target = folder / f"{source.stem}.o"
        if target.exists() and target.stat().st_mtime >= newest and not self.force:
            return
        folder.mkdir(parents=True, exist_ok=True)
        flags = ["-O2", "-g", "-target", "bpf", "-Wall", "-Wextra", "-Werror"]
        command = [clang, *flags, f"-I{MULTIARCH}", "-c", str(source), "-o", str(target)]
        if subprocess.run(command, check=False).returncode:
            say(f"{source.name} could not be compiled: built without it")


setup(
    cffi_modules=[
        "hoststack/native/_build.py:ffibuilder",
        "hoststack/native/_build_quic.py:ffibuilder",
        "pyxdp/_build.py:ffibuilder",
    ],
    cmdclass={"build_ext": BuildNative},
)

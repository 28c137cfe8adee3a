"""What pyproject.toml can't say: the C modules, and the BPF objects that clang makes.

Two parts can be left out: HOSTSTACK_WITHOUT=native builds neither the native engine nor HTTP/3 in
C, HOSTSTACK_WITHOUT=xdp no AF_XDP, HOSTSTACK_WITHOUT=native,xdp neither part. A part that was not
left out is built, or the build fails and says what to install.

HOSTSTACK_LIBRARIES names a folder whose include/ and lib/ are searched before the system's, such
as that which scripts/libraries.sh makes.
"""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from setuptools import Command, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import SetupError

ROOT = Path(__file__).resolve().parent

compile_bpf = runpy.run_path(str(ROOT / "pyxdp/_bpf_build.py"))["compile_bpf"]
#: BPF sources by folder, and the package that carries their objects.
BPF_FOLDERS = {"bpf": "hoststack/link/xdp", "pyxdp": "pyxdp"}
#: What was left out, for `hoststack doctor` and for error messages.
RECORD = "hoststack/native/build.json"


@dataclass(frozen=True)
class Needs:
    """What a part is made from."""

    name: str
    headers: str
    """C that compiles where the headers are installed."""
    header_names: str
    packages: str
    """Debian's names."""


@dataclass(frozen=True)
class Part:
    """A part that HOSTSTACK_WITHOUT can leave out."""

    modules: tuple[str, ...]
    needs: tuple[Needs, ...]
    instead: str
    """What does its work where it is left out."""
    uses_clang: bool = False


#: Nothing can be built without these.
CORE_NEEDS = Needs(
    "the C core",
    "#include <Python.h>\n#include <linux/if_packet.h>\n#include <stdint.h>\n",
    "headers of Python, Linux and the C library",
    "gcc libc6-dev linux-libc-dev python3-dev",
)
PARTS = {
    "native": Part(
        ("hoststack.native.quic._quic", "hoststack.native.http3._http3"),
        (
            Needs(
                "the native engine",
                "#include <gnutls/crypto.h>\n#include <openssl/evp.h>\n",
                "headers of GnuTLS and OpenSSL",
                "libgnutls28-dev libssl-dev",
            ),
            Needs(
                "the native engine",
                "#include <ngtcp2/ngtcp2.h>\n#include <ngtcp2/ngtcp2_crypto.h>\n"
                "#if NGTCP2_VERSION_NUM < 0x010b00\n#error older than 1.11\n#endif\n",
                "headers of ngtcp2 1.11 or newer",
                "libngtcp2-dev (in Debian 12 from bookworm-backports)",
            ),
            Needs(
                "the native engine",
                "#include <gnutls/gnutls.h>\n#include <ngtcp2/ngtcp2_crypto_gnutls.h>\n",
                "headers of ngtcp2's GnuTLS glue",
                "libngtcp2-crypto-gnutls-dev (in Debian 12 from bookworm-backports)",
            ),
            Needs(
                "HTTP/3 in C",
                "#include <nghttp3/nghttp3.h>\n"
                "#if NGHTTP3_VERSION_NUM < 0x010800\n#error older than 1.8\n#endif\n",
                "headers of nghttp3 1.8 or newer",
                "libnghttp3-dev (in Debian 12 from bookworm-backports)",
            ),
        ),
        "aioquic",
    ),
    "xdp": Part(
        ("pyxdp._pyxdp",),
        (
            Needs(
                "AF_XDP",
                "#include <xdp/xsk.h>\n#include <bpf/libbpf.h>\n",
                "headers of libxdp and libbpf",
                "libxdp-dev libbpf-dev",
            ),
        ),
        "UDP sockets",
        uses_clang=True,
    ),
}


def left_out() -> list[str]:
    """The parts that HOSTSTACK_WITHOUT names."""
    names = [name.strip() for name in os.environ.get("HOSTSTACK_WITHOUT", "").split(",")]
    unknown = [name for name in names if name and name not in PARTS]
    if unknown:
        raise SetupError(
            f"HOSTSTACK_WITHOUT names {', '.join(unknown)}: it can name {', '.join(PARTS)}, with "
            "commas between"
        )
    return [name for name in PARTS if name in names]


def libraries_folder() -> Path | None:
    """What HOSTSTACK_LIBRARIES names."""
    named = os.environ.get("HOSTSTACK_LIBRARIES")
    if not named:
        return None
    folder = Path(named).resolve()
    if not (folder / "include").is_dir() or not (folder / "lib").is_dir():
        raise SetupError(
            f"HOSTSTACK_LIBRARIES={named}: no include/ and lib/ there; scripts/libraries.sh makes "
            "such a folder"
        )
    return folder


def is_missing(needs: Needs) -> bool:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        return True
    include = [f"-I{sysconfig.get_path('include')}"]
    if folder := libraries_folder():
        include.append(f"-I{folder / 'include'}")
    check = subprocess.run(
        [compiler, "-E", *include, "-x", "c", "-"],
        input=needs.headers,
        text=True,
        capture_output=True,
        check=False,
    )
    return check.returncode != 0


def what_is_missing(part: Part) -> Iterator[str]:
    """A line for each thing that the part can't be built without."""
    for needs in part.needs:
        if is_missing(needs):
            yield f"no {needs.header_names}: install {needs.packages}"
    if part.uses_clang and shutil.which("clang") is None:
        yield "no clang, which compiles the XDP programs: install clang libbpf-dev linux-libc-dev"


def refusal(names: list[str], missing: list[str]) -> SetupError:
    """The error that says what is missing, and how to do without."""
    without = ",".join(name for name in PARTS if name in {*names, *left_out()})
    instead = " and ".join(f"{PARTS[name].instead} for {name}" for name in names)
    lines = [
        f"{' and '.join(names)} can't be built here:",
        *(f"  {line}" for line in missing),
        "The names are those of Debian's packages: apt-get install --no-install-recommends ...; in "
        "a checkout scripts/bootstrap.sh installs them.",
        f"Or build without, which takes {instead}: set HOSTSTACK_WITHOUT={without}",
    ]
    return SetupError("\n".join(lines))


class BuildNative(build_ext):
    """C modules and BPF objects. Raises SetupError for what can't be built and was not left out."""

    def run(self) -> None:
        without = left_out()
        if is_missing(CORE_NEEDS):
            raise SetupError(
                "hoststack has C modules, and this machine can't compile them: no C compiler, or "
                f"no {CORE_NEEDS.header_names}. Install (Debian's names) {CORE_NEEDS.packages}"
            )
        wanted = {name: part for name, part in PARTS.items() if name not in without}
        missing = {name: list(what_is_missing(part)) for name, part in wanted.items()}
        lacking = [name for name, lines in missing.items() if lines]
        if lacking:
            raise refusal(lacking, [line for name in lacking for line in missing[name]])
        for name in without:
            for module in PARTS[name].modules:
                self.leave_out(module)
        for extension in self.extensions:
            # built for one Python alone, it would be imported before the one for every Python
            package, _, name = extension.name.rpartition(".")
            self.remove_built(f"{name}.cpython-*.so", package.replace(".", "/"))
        if "xdp" in without:
            self.remove_built("*.bpf.o", *BPF_FOLDERS.values())
        else:
            self.build_bpf()  # before the C modules, which take longer
        if folder := libraries_folder():
            for extension in self.extensions:
                extension.include_dirs.insert(0, str(folder / "include"))
                extension.library_dirs.insert(0, str(folder / "lib"))
        super().run()
        record = self.target_root() / RECORD
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps({"without": without}) + "\n", encoding="utf-8")

    def target_root(self) -> Path:
        return ROOT if self.inplace else Path(self.build_lib)

    def leave_out(self, module: str) -> None:
        self.extensions = [e for e in self.extensions if e.name != module]
        package, _, name = module.rpartition(".")
        self.remove_built(f"{name}.*.so", package.replace(".", "/"))

    def remove_built(self, pattern: str, *folders: str) -> None:
        """Remove what an earlier build made of a part that is left out now."""
        for folder in folders:
            for path in (self.target_root() / folder).glob(pattern):
                path.unlink()

    def build_bpf(self) -> None:
        for folder, package in BPF_FOLDERS.items():
            newest = max((p.stat().st_mtime for p in (ROOT / folder).glob("*.[ch]")), default=0)
            for source in sorted((ROOT / folder).glob("*.bpf.c")):
                self.build_bpf_object(source, self.target_root() / package, newest)

    def build_bpf_object(self, source: Path, folder: Path, newest: float) -> None:
        target = folder / f"{source.stem}.o"
        if target.exists() and target.stat().st_mtime >= newest and not self.force:
            return
        if why := compile_bpf(source, target):
            raise refusal(
                ["xdp"],
                [
                    f"clang can't compile {source.name} for BPF: {why}",
                    "it takes a clang with the BPF target: install clang libbpf-dev linux-libc-dev",
                ],
            )


class MissingParts(Command):
    """Print the parts that can't be built here, as HOSTSTACK_WITHOUT takes them, and why.

    Raises SetupError where HOSTSTACK_WITHOUT names what is no part.
    """

    user_options: ClassVar[list[tuple[str, str, str]]] = []

    def initialize_options(self) -> None:
        """Nothing can be set."""

    def finalize_options(self) -> None:
        """Nothing can be set."""

    def run(self) -> None:
        left_out()
        missing = {name: list(what_is_missing(part)) for name, part in PARTS.items()}
        print(",".join(name for name, lines in missing.items() if lines))
        for name, lines in missing.items():
            for line in lines:
                print(f"{name}: {line}", file=sys.stderr)


setup(
    cffi_modules=[
        "hoststack/native/_build.py:memory",
        "hoststack/native/_build.py:session",
        "hoststack/native/_build.py:wire",
        "hoststack/native/_build.py:quic",
        "hoststack/native/_build.py:http3",
        "pyxdp/_build.py:ffibuilder",
    ],
    cmdclass={"build_ext": BuildNative, "missing_parts": MissingParts},
    # the C modules need nothing of CPython but its stable ABI, as cffi builds them
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)

"""The fuzz targets: what each is made of, how it is built, how it is run."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

from hoststack.native import _build

HERE: Final = Path(__file__).resolve().parent
ROOT: Final = HERE.parent.parent
NATIVE: Final = ROOT / "hoststack" / "native"
CORPUS: Final = HERE / "corpus"
BUILD: Final = ROOT / "build" / "fuzz"

_FOLDERS: Final = (NATIVE, ROOT / "bpf", ROOT / "pyxdp")
_FLAGS: Final = (
    *("-std=c11", "-gline-tables-only", "-O1", "-Wall", "-Wextra", "-Werror"),
    *("-fno-omit-frame-pointer", "-fno-sanitize-recover=all"),
    *(f"-I{folder}" for folder in _FOLDERS),
)
_SANITIZED: Final = "-fsanitize=address,undefined"
#: Coverage is what guides the fuzzer: the core's and the target's, not that of what surrounds them.
_COVERED: Final = "-fsanitize=fuzzer-no-link,address,undefined"
_LINKED: Final = "-fsanitize=fuzzer,address,undefined"
_NGTCP2: Final = ("-lngtcp2_crypto_gnutls", "-lngtcp2", "-lgnutls", "-lcrypto")
_NGTCP2_HEADERS: Final = """
#include <ngtcp2/ngtcp2.h>
#include <ngtcp2/ngtcp2_crypto_gnutls.h>
#include <openssl/evp.h>
#include <nghttp3/nghttp3.h>
#if NGTCP2_VERSION_NUM < 0x010b00
#error
#endif
"""
#: What gets between a freed block and its next use; the default of 256 MB is mostly page faults.
_ASAN_OPTIONS: Final = "quarantine_size_mb=32:detect_stack_use_after_return=0"
#: An input that takes longer hangs, seconds.
_PATIENCE_S: Final = 20


class Target(NamedTuple):
    """One program, of fuzz_NAME.c."""

    name: str
    is_quic: bool  #: takes what the native part of the build takes, ngtcp2 and nghttp3
    helpers: tuple[str, ...] = ()
    link: tuple[str, ...] = ()
    most_bytes: int = 512  #: of an input
    libraries: tuple[str, ...] = ()  #: in place of ngtcp2's

    @property
    def program(self) -> Path:
        return BUILD / self.name

    @property
    def core(self) -> tuple[str, ...]:
        if "-lnghttp3" in self.libraries:
            return _build.HTTP3_SOURCES
        return _QUIC_SOURCES if self.is_quic else _CORE_SOURCES


#: What has no ngtcp2 in it.
_CORE_SOURCES: Final = tuple(
    dict.fromkeys((*_build.MEMORY_SOURCES, *_build.SESSION_SOURCES, "wire/frames.c", "wire/udp.c"))
)
_QUIC_SOURCES: Final = tuple(
    dict.fromkeys((*_build.QUIC_SOURCES, *_build.WIRE_SOURCES, *_build.SESSION_SOURCES))
)
_PAIR: Final = (
    *("pair.c", "pair_application.c", "pair_remote.c", "pair_streams.c"),
    *("remote.c", "steady.c", "kept_wire.c", "heap_pool.c"),
)
_HEAP_POOL: Final = ("-Wl,--wrap=hs_pool_take", "-Wl,--wrap=hs_pool_give")
TARGETS: Final = {
    target.name: target
    for target in (
        Target("frames", False),
        Target("fifo", False),
        Target("session", False, ("remote.c", "heap_pool.c"), _HEAP_POOL),
        Target("attached", False),
        Target("http3", True, libraries=("-lnghttp3",)),
        Target("stops", True, most_bytes=1472),
        Target("tokens", True, ("steady.c", "kept_wire.c")),
        Target("strangers", True, ("steady.c",)),
        Target("turn", True, _PAIR, _HEAP_POOL),
        Target(
            "handshake",
            True,
            _PAIR,
            (
                *_HEAP_POOL,
                "-Wl,--wrap=ngtcp2_crypto_gnutls_configure_client_session",
                "-Wl,--wrap=ngtcp2_crypto_gnutls_configure_server_session",
            ),
        ),
        Target("plaintext", True, _PAIR, (*_HEAP_POOL, "-Wl,--wrap=ngtcp2_crypto_encrypt_cb")),
    )
}


class BuildError(Exception):
    """A compiler's complaint."""


def _run(command: Iterable[str | Path], source: str = "") -> subprocess.CompletedProcess[str]:
    words = [str(word) for word in command]
    return subprocess.run(words, input=source, capture_output=True, text=True, check=False)


@cache
def why_not() -> str:
    """Why nothing can be built here; empty if it can."""
    clang = shutil.which("clang")
    if clang is None:
        return "clang is not installed: scripts/bootstrap.sh installs it"
    empty = "int LLVMFuzzerTestOneInput(void);\nint LLVMFuzzerTestOneInput(void) { return 0; }\n"
    done = _run([clang, _LINKED, "-x", "c", "-", "-o", "/dev/null"], empty)
    if done.returncode:
        return "clang has no runtime of libFuzzer: scripts/bootstrap.sh installs libclang-rt-dev"
    return ""


@cache
def why_no_quic() -> str:
    """Why the targets with ngtcp2 can't be built here; empty if they can."""
    if _run(["clang", "-E", "-x", "c", "-"], _NGTCP2_HEADERS).returncode:
        return (
            "no headers of ngtcp2, nghttp3, GnuTLS or OpenSSL: scripts/bootstrap.sh installs them"
        )
    return ""


def buildable() -> list[Target]:
    """The targets that can be built here."""
    if why_not():
        return []
    return [target for target in TARGETS.values() if not (target.is_quic and why_no_quic())]


def _must(command: list[str | Path]) -> None:
    done = _run(command)
    if done.returncode:
        raise BuildError(f"{' '.join(map(str, command))}\n{done.stderr}")


def _newest_header() -> float:
    return max(path.stat().st_mtime for folder in (HERE, *_FOLDERS) for path in folder.rglob("*.h"))


def _is_newer(made: Path, than: float) -> bool:
    return made.exists() and made.stat().st_mtime > than


class Builder:
    """Compiles what changed, as many files at once as there are cores."""

    def __init__(self, folder: Path = BUILD, replaced: Mapping[str, Path] | None = None) -> None:
        """`replaced` names files of the core by folder and name, and what is compiled instead."""
        self._folder = folder
        self._replaced = replaced or {}
        flags = hashlib.sha256(repr(_FLAGS).encode()).hexdigest()[:8]
        self._objects = BUILD / f"objects-{flags}"
        self._objects.mkdir(parents=True, exist_ok=True)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._newest_header = _newest_header()
        self._futures: dict[Path, Future[None]] = {}

    def build(self, targets: Iterable[Target]) -> dict[str, Path]:
        """The programs by name. Raises BuildError."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            parts = {target: self._compile(pool, target) for target in targets}
            for future in self._futures.values():
                future.result()
            links = {t.name: pool.submit(self._link, t, made) for t, made in parts.items()}
            return {name: link.result() for name, link in links.items()}

    def _compile(self, pool: ThreadPoolExecutor, target: Target) -> list[Path]:
        own = self._object(pool, HERE / f"fuzz_{target.name}.c", _COVERED)
        helpers = [self._object(pool, HERE / name, _SANITIZED) for name in target.helpers]
        core = [self._object(pool, NATIVE / name, _COVERED) for name in target.core]
        return [own, *helpers, *core]

    def _object(self, pool: ThreadPoolExecutor, source: Path, sanitizers: str) -> Path:
        source = self._replaced.get(f"{source.parent.name}/{source.name}", source)
        folder = self._folder if source in self._replaced.values() else self._objects
        made = folder / f"{source.parent.name}_{source.stem}.o"
        if made not in self._futures:
            self._futures[made] = pool.submit(self._compile_one, source, made, sanitizers)
        return made

    def _compile_one(self, source: Path, made: Path, sanitizers: str) -> None:
        if not _is_newer(made, max(source.stat().st_mtime, self._newest_header)):
            _must(["clang", *_FLAGS, sanitizers, "-c", source, "-o", made])

    def _link(self, target: Target, parts: list[Path]) -> Path:
        program = self._folder / target.name
        if not _is_newer(program, max(part.stat().st_mtime for part in parts)):
            libraries = target.libraries or (_NGTCP2 if target.is_quic else ())
            _must(["clang", _LINKED, *target.link, *parts, *libraries, "-o", program])
        return program


def run(
    target: Target, program: Path, found: Path, *options: str, grown: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """One run of libFuzzer on the committed corpus; what is new goes into `grown`. An input that
    fails is left in `found`."""
    found.mkdir(parents=True, exist_ok=True)
    folders = [CORPUS / target.name]
    if grown is not None:
        grown.mkdir(parents=True, exist_ok=True)
        folders.insert(0, grown)
    return subprocess.run(
        [
            *(str(program), f"-max_len={target.most_bytes}", f"-timeout={_PATIENCE_S}"),
            *(f"-artifact_prefix={found}/{target.name}-", *options, *map(str, folders)),
        ],
        env={
            **os.environ,
            "ASAN_OPTIONS": _ASAN_OPTIONS,
            "UBSAN_OPTIONS": "print_stacktrace=1",
        },
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )

"""The C core under AddressSanitizer and UBSan: fuzz_native.c against models, and hostile peers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hoststack.native._build import SESSION_SOURCES
from hoststack.worker.engines import available_engines
from tests.support.wires import EXTRA_FLAGS

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
NATIVE = ROOT / "hoststack" / "native"
SANITIZERS = ["-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
ROUNDS = 2000  # about three seconds


@pytest.fixture(scope="module")
def sanitizing_compiler(tmp_path_factory: pytest.TempPathFactory) -> str:
    gcc = shutil.which("gcc")
    if gcc is None:
        pytest.skip("gcc is not installed: scripts/bootstrap.sh installs it")
    folder = tmp_path_factory.mktemp("sanitizers")
    (folder / "empty.c").write_text("int main(void) { return 0; }\n", encoding="utf-8")
    program = folder / "empty"
    tried = subprocess.run(
        [gcc, *SANITIZERS, str(folder / "empty.c"), "-o", str(program)],
        capture_output=True,
        text=True,
        check=False,
    )
    if tried.returncode or subprocess.run([program], check=False).returncode:
        pytest.skip(f"gcc has no runtime of the sanitizers: {tried.stderr.strip()}")
    return gcc


def test_nothing_is_touched_that_should_not_be(sanitizing_compiler: str, tmp_path: Path) -> None:
    program = tmp_path / "fuzz_native"
    names = ("memory/fifo.c", "memory/event_ring.c", "session/table.c", "wire/frames.c")
    sources = [NATIVE / name for name in names]
    built = subprocess.run(
        [
            *[sanitizing_compiler, "-std=c11", "-Wall", "-Wextra", "-Werror", *SANITIZERS],
            *[f"-I{NATIVE}", str(HERE / "fuzz_native.c"), *map(str, sources)],
            *["-o", str(program)],
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    done = subprocess.run(
        [program, "1", str(ROUNDS)],
        env={**os.environ, "UBSAN_OPTIONS": "print_stacktrace=1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert f"{ROUNDS} rounds" in done.stdout


@pytest.mark.parametrize("sanitizers", ["thread", "address,undefined"])
def test_what_finalizers_drop(sanitizing_compiler: str, sanitizers: str, tmp_path: Path) -> None:
    program = tmp_path / "drop_threads"
    built = subprocess.run(
        [
            *[sanitizing_compiler, "-std=c11", "-g", "-O1", "-Wall", "-Wextra", "-Werror"],
            *["-Wno-tsan", f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all", f"-I{NATIVE}"],
            *[str(HERE / "drop_threads.c"), *(str(NATIVE / name) for name in SESSION_SOURCES)],
            *["-pthread", "-o", str(program)],
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if "cannot find" in built.stderr:
        pytest.skip(f"gcc has no runtime of the sanitizers: {built.stderr.strip()}")
    assert built.returncode == 0, built.stderr
    done = subprocess.run([program], capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    assert "rounds" in done.stdout


#: What goes through the C of the native engine: its own features, peers that have the
#: keys and send rubbish, and 100,000 datagrams from those that don't.
ENGINE_TESTS = (
    "tests/quic/test_native_features.py",
    "tests/quic/test_datagram.py",
    "tests/quic/test_migration.py",
    "tests/quic/test_replaced_certificates.py",
    "tests/quic/test_hostile_peer.py",
    "tests/quic/test_fuzz.py",
    "tests/api/test_streams.py",
)


def test_the_native_engine(sanitizing_compiler: str, tmp_path: Path) -> None:
    if "native" not in available_engines():
        pytest.skip("the native engine was not built: scripts/bootstrap.sh, then make build")
    for folder in ("hoststack", "pyxdp", "bpf", "apps", "tests"):
        shutil.copytree(
            ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("*.so", "*.o")
        )
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    flags = " ".join(SANITIZERS)
    built = subprocess.run(
        [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"],
        cwd=tmp_path,
        env={
            **os.environ,
            "CC": sanitizing_compiler,
            "CFLAGS": flags,
            "LDFLAGS": flags,
            "HOSTSTACK_WITHOUT": "xdp",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    runtimes = [
        subprocess.run(
            [sanitizing_compiler, f"-print-file-name=lib{name}.so"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for name in ("asan", "ubsan")
    ]
    # Without capturing, or what a sanitizer says would be lost.
    command = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", "-k"]
    done = subprocess.run(
        [*command, "not aioquic- and not aioquic]", *ENGINE_TESTS],
        cwd=tmp_path,
        env={
            **os.environ,
            "LD_PRELOAD": ":".join(runtimes),
            # Python itself keeps memory until its end.
            "ASAN_OPTIONS": "detect_leaks=0",
            "UBSAN_OPTIONS": "print_stacktrace=1",
            "PYTHONPATH": str(tmp_path),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]


def test_the_wires(sanitizing_compiler: str) -> None:
    runtime = subprocess.run(
        [sanitizing_compiler, "-print-file-name=libasan.so"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    tests = sorted(map(str, HERE.glob("test_wire_*.py")))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests],
        env={
            **os.environ,
            EXTRA_FLAGS: " ".join(SANITIZERS),
            "LD_PRELOAD": runtime,
            # Python itself keeps memory until its end.
            "ASAN_OPTIONS": "detect_leaks=0",
        },
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr

"""The C core under AddressSanitizer and UBSan: fuzz_native.c against models, and hostile peers."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
NATIVE = HERE.parent.parent / "hoststack" / "native"
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
    sources = [NATIVE / name for name in ("fifo.c", "event_ring.c", "frames.c")]
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

"""Fuzz: `python -m tests.fuzz [--seconds N] [TARGET...]`, or `make fuzz SECONDS=N`.

Targets in C run libFuzzer on the C core. What is found on the way is kept in build/fuzz/corpus and
goes on from there the next time. An input that fails lies in build/fuzz/found. Targets in Python
are programs of their own, which print their seeds.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from tests.fuzz.targets import (
    BUILD,
    ROOT,
    TARGETS,
    Builder,
    BuildError,
    Target,
    buildable,
    run,
    why_no_quic,
    why_not,
)

FOUND = BUILD / "found"
TAIL_LINES = 40
#: Those in Python: modules that take --seconds.
PROGRAMS = {"messages": "tests.fuzz.messages", "orders": "tests.fuzz.orders"}


def fuzz(target: Target, seconds: int) -> bool:
    """Run one target for so long. Returns whether nothing was found."""
    grown = BUILD / "corpus" / target.name
    done = run(target, target.program, FOUND, f"-max_total_time={seconds}", grown=grown)
    log = BUILD / f"{target.name}.log"
    log.write_text(done.stderr, encoding="utf-8")
    lines = done.stderr.splitlines()
    if done.returncode == 0:
        print(f"{target.name}: nothing found; {lines[-1] if lines else ''}", flush=True)
        return True
    print(f"{target.name}: FAILED; all of it in {log.relative_to(ROOT)}")
    print("\n".join(f"    {line}" for line in lines[-TAIL_LINES:]))
    inputs = sorted(FOUND.glob(f"{target.name}-*"), key=lambda path: path.stat().st_mtime)
    if inputs:
        program = target.program.relative_to(ROOT)
        print(f"{target.name}: again: {program} {inputs[-1].relative_to(ROOT)}", flush=True)
    return False


def fuzz_program(name: str, seconds: int) -> bool:
    """As `fuzz`, for one of PROGRAMS."""
    done = subprocess.run(
        [sys.executable, "-m", PROGRAMS[name], "--seconds", str(seconds)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = (done.stdout + done.stderr).splitlines()
    if done.returncode == 0:
        print(f"{name}: nothing found; {lines[-1] if lines else ''}", flush=True)
        return True
    print(f"{name}: FAILED")
    print("\n".join(f"    {line}" for line in lines[-TAIL_LINES:]), flush=True)
    return False


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    names = [*TARGETS, *PROGRAMS]
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(names))
    options = parser.parse_args()
    unknown = set(options.targets) - set(names)
    if unknown:
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    wanted = options.targets or names
    targets: list[Target] = []
    if set(wanted) & set(TARGETS):
        if why_not():
            print(f"fuzz: {why_not()}", file=sys.stderr)
            return 2
        if why_no_quic():
            print(f"fuzz: left out what needs ngtcp2: {why_no_quic()}", file=sys.stderr)
        targets = [t for t in buildable() if t.name in wanted]
    try:
        Builder().build(targets)
    except BuildError as error:
        print(f"fuzz: {error}", file=sys.stderr)
        return 2
    runs = [partial(fuzz, target, options.seconds) for target in targets]
    runs += [partial(fuzz_program, name, options.seconds) for name in PROGRAMS if name in wanted]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        good = list(pool.map(lambda run: run(), runs))
    return 0 if runs and all(good) else 1


if __name__ == "__main__":
    sys.exit(main())

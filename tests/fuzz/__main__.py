"""Fuzz the C core: `python -m tests.fuzz [--seconds N] [TARGET...]`, or `make fuzz SECONDS=N`.

What is found on the way is kept in build/fuzz/corpus and goes on from there the next time. An input
that fails lies in build/fuzz/found.
"""

from __future__ import annotations

import argparse
import os
import sys
from concurrent.futures import ThreadPoolExecutor

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


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    options = parser.parse_args()
    unknown = set(options.targets) - set(TARGETS)
    if unknown:
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    if why_not():
        print(f"fuzz: {why_not()}", file=sys.stderr)
        return 2
    if why_no_quic():
        print(f"fuzz: left out what needs ngtcp2: {why_no_quic()}", file=sys.stderr)
    targets = [t for t in buildable() if not options.targets or t.name in options.targets]
    try:
        Builder().build(targets)
    except BuildError as error:
        print(f"fuzz: {error}", file=sys.stderr)
        return 2
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        good = list(pool.map(lambda target: fuzz(target, options.seconds), targets))
    return 0 if targets and all(good) else 1


if __name__ == "__main__":
    sys.exit(main())

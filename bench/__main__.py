"""Run all benchmarks, one after the other; tables on the screen, JSON in bench/results/."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent
BENCHMARKS: Final = ("pyxdp_pps", "link_pps", "quic_echo")


def main() -> int:
    """The worst exit status of all."""
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    status = 0
    for name in BENCHMARKS:
        print(f"\n{name}", flush=True)
        command = [sys.executable, "-m", f"bench.{name}", "--json", str(results / f"{name}.json")]
        status = max(status, subprocess.run(command, cwd=HERE.parent, check=False).returncode)
    return status


if __name__ == "__main__":
    sys.exit(main())

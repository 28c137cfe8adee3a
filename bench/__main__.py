"""Run benchmarks, one after the other; tables on the screen, JSON in bench/results/.

`python -m bench [NAME...] [--rounds N] [--seconds S]`: all of them, or those named. Each can also
be run by itself, as `python -m bench.NAME`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent
#: And which options each has beside --json.
BENCHMARKS: Final[dict[str, tuple[str, ...]]] = {
    "pyxdp_pps": ("seconds",),
    "link_pps": ("rounds", "seconds"),
    "quic_echo": ("rounds",),
    "bulk": ("rounds", "seconds"),
    "tuning": ("rounds", "seconds"),
    "connections": ("rounds", "seconds"),
    "handshakes": ("rounds", "seconds"),
    "ping_pong": ("rounds", "seconds"),
    "cpu": ("rounds", "seconds"),
    "idle": ("rounds", "seconds"),
}


def main() -> int:
    """The worst exit status of all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", metavar="NAME", nargs="*", help=", ".join(BENCHMARKS))
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float, help="for each figure, in each round")
    options = parser.parse_args()
    if unknown := set(options.names) - set(BENCHMARKS):
        parser.error(f"no benchmark {', '.join(unknown)}: there are {', '.join(BENCHMARKS)}")
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    status = 0
    for name in options.names or BENCHMARKS:
        print(f"\n{name}", flush=True)
        command = [sys.executable, "-m", f"bench.{name}", "--json", str(results / f"{name}.json")]
        for option in BENCHMARKS[name]:
            if (value := getattr(options, option)) is not None:
                command += [f"--{option}", str(value)]
        status = max(status, subprocess.run(command, cwd=HERE.parent, check=False).returncode)
    return status


if __name__ == "__main__":
    sys.exit(main())

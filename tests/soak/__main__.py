"""Honest traffic beside a mix of attacks: `python -m tests.soak [--seconds N] [ATTACK...]`.

A daemon with two workers serves over AF_XDP between two network namespaces. Well-behaved programs
use it all the time, hostile ones come and go, a few at a time. None of the honest connections may
be lost, no process of the daemon may end, and in the end its open files and its memory are back
where they were. Each program has a session of its own, as on any machine: the kernel may divide the
CPU between sessions first (sched_autogroup_enabled).
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Final

from tests.daemon.conftest import Daemon, run_daemon
from tests.soak import application_attacks, network_attacks
from tests.soak.watched import held, wait_until_back
from tests.support import netns
from tests.support.netns import Side, VethPair, veth_pair

WORKERS: Final = 2
AT_ONCE: Final = 3
"""Attacks that run beside each other."""
SLICE_S: Final = 15.0
"""How long one of them runs."""
QUIC_PORT, UDP_PORT, CALLED_PORT, HOSTILE_PORT = "4433", "6000", "7000", "8000"
#: What the first of each attack may leave in an allocator, of each process.
WARM_BYTES: Final = 256 << 20
#: Until what attacks have left behind has timed out: idle connections, half-open handshakes.
SETTLE_S: Final = 60.0
ATTACKS: Final = (*network_attacks.ATTACKS, *application_attacks.ATTACKS)


def _say(line: str) -> None:
    print(time.strftime("%H:%M:%S"), line, flush=True)


class Program:
    """A program in a namespace that runs for the whole time."""

    def __init__(self, side: Side, module: str, *words: str) -> None:
        self._name = " ".join([module, *words[:1]])
        self._process = subprocess.Popen(
            side.command(sys.executable, "-m", module, *words),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line == "ready\n", f"{self._name} said {line!r}"

    def check(self) -> None:
        """AssertionError if it has ended."""
        status = self._process.poll()
        assert status is None, f"{self._name} ended with {status}"

    def end(self) -> str:
        """End it; what it says that it did."""
        self.check()
        out, _ = self._process.communicate("end\n", timeout=60)
        assert self._process.returncode == 0, f"{self._name}: {self._process.returncode}"
        return out.strip()

    def kill(self) -> None:
        """End it, whatever it does."""
        self._process.kill()
        self._process.wait()


class Soak:
    """The daemon, the honest programs, and the attacks that go on."""

    def __init__(self, pair: VethPair, daemon: Daemon, undo: ExitStack) -> None:
        self._pair, self._daemon = pair, daemon
        self._running: dict[str, subprocess.Popen[str]] = {}
        undo.callback(self._kill_attacks)
        called = f"quic://{pair.b.ipv4}:{CALLED_PORT}"
        honest = "tests.soak.honest"
        self._programs = []
        for side, module, *words in (
            (pair.b, "tests.soak.hostile_server", pair.b.ipv4, HOSTILE_PORT),
            (pair.b, honest, "called", pair.b.ipv4, CALLED_PORT),
            (pair.a, honest, "server", daemon.api, pair.a.ipv4, QUIC_PORT, UDP_PORT, called),
            (pair.b, honest, "clients", pair.a.ipv4, QUIC_PORT),
        ):
            program = Program(side, module, *words)
            undo.callback(program.kill)
            self._programs.append(program)

    def _start(self, name: str, seconds: float) -> None:
        a, b = self._pair.a, self._pair.b
        if name in network_attacks.ATTACKS:
            words = [a.ipv4, QUIC_PORT, UDP_PORT, str(seconds), b.ifname, (a.mac + b.mac).hex()]
            line = b.command(sys.executable, "-m", "tests.soak.network_attacks", name, *words)
        else:
            hostile = f"quic://{b.ipv4}:{HOSTILE_PORT}"
            words = [self._daemon.api, self._daemon.cli, b.ipv4, CALLED_PORT, hostile, str(seconds)]
            line = a.command(sys.executable, "-m", "tests.soak.application_attacks", name, *words)
        self._running[name] = subprocess.Popen(
            line, stdout=subprocess.PIPE, text=True, start_new_session=True
        )

    def _kill_attacks(self) -> None:
        for process in self._running.values():
            process.kill()
            process.communicate()

    def run(self, attacks: list[str], seconds: float) -> None:
        """Run these attacks, a few at a time; each for so long."""
        waiting = list(attacks)
        while waiting or self._running:
            while waiting and len(self._running) < AT_ONCE:
                self._start(waiting.pop(), seconds)
            for name, process in list(self._running.items()):
                if process.poll() is not None:
                    del self._running[name]
                    out, _ = process.communicate()
                    assert process.returncode == 0, f"attack {name} failed: {process.returncode}"
                    _say(out.strip())
            self.check()
            time.sleep(0.2)

    def check(self) -> None:
        """AssertionError if a program or the daemon has ended."""
        for program in self._programs:
            program.check()
        assert self._daemon.process.poll() is None, "the daemon has ended"

    def end(self) -> None:
        """End the honest programs; they check all that they did."""
        for program in reversed(self._programs):
            _say(program.end())


@contextmanager
def _soak() -> Iterator[tuple[Soak, Daemon]]:
    with ExitStack() as undo:
        pair = undo.enter_context(veth_pair(queues=WORKERS))
        words = ["-i", pair.a.ifname, "--link", "af_xdp", "--workers", str(WORKERS)]
        daemon = undo.enter_context(run_daemon(*words, prefix=["setsid", *pair.a.command()]))
        try:
            yield Soak(pair, daemon, undo), daemon
        except BaseException:
            print(daemon.log[-20_000:])
            with suppress(Exception):
                print(daemon.ctl("show errors"), daemon.ctl("show app"), sep="\n")
            raise


def soak(seconds: float, attacks: list[str], slice_s: float = SLICE_S, seed: int = 0) -> None:
    """Run it; AssertionError for what must not be."""
    rng = random.Random(seed)
    with _soak() as (soaked, daemon):
        fresh = held(daemon, WORKERS)
        # Each attack once: what is loaded and allocated once for all is there afterwards.
        soaked.run(list(attacks), min(slice_s, 2.0))
        wait_until_back(daemon, fresh, SETTLE_S, _say, more_bytes=WARM_BYTES)
        warm = held(daemon, WORKERS)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            soaked.run(rng.sample(attacks, len(attacks)), slice_s)
            assert "native" in daemon.ctl("show workers")
        wait_until_back(daemon, warm, SETTLE_S, _say)
        soaked.end()
        assert [one.pid for one in fresh] == [one.pid for one in held(daemon, WORKERS)], (
            "a worker was replaced"
        )
        assert "died" not in daemon.log, daemon.log
        assert "Traceback" not in daemon.log, daemon.log
        assert daemon.stop() == 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--slice-seconds", type=float, default=SLICE_S)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("attacks", nargs="*", metavar="ATTACK", help=", ".join(ATTACKS))
    options = parser.parse_args()
    if why := netns.why_not():
        print(f"soak: {why}", file=sys.stderr)
        return 2
    unknown = set(options.attacks) - set(ATTACKS)
    if unknown:
        parser.error(f"no such attack: {', '.join(sorted(unknown))}")
    _say(f"seed {options.seed}")
    soak(options.seconds, options.attacks or list(ATTACKS), options.slice_seconds, options.seed)
    _say("no connection lost, no process ended, everything given back")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Two namespaces with a third between them, whose hop treats datagrams badly.

The hop is a program of its own (lossy_hop.c) on packet sockets: what is at the two ends is real,
AF_XDP and UDP sockets alike, and kernels without netem do as well.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.netns import Namespaces, Side, bring_up, run

_SOURCE = Path(__file__).with_suffix(".c")


@dataclass(frozen=True)
class Rates:
    """The share of UDP datagrams, from 0 to 1, that each thing happens to, in both directions."""

    loss: float = 0.0
    reorder: float = 0.0
    """Held back for 0.1 to 2 ms."""
    duplicate: float = 0.0
    corrupt: float = 0.0
    """One bit of the UDP payload is flipped, and in half of them the checksum made to fit."""


class Counts(NamedTuple):
    """What happened to what came from one side; in the order of lossy_hop.c's enum count."""

    datagrams: int
    other_frames: int
    lost: int
    overtaken: int
    """Held back, and others went by in the meantime."""
    duplicated: int
    corrupted: int
    """With a UDP checksum that is wrong now, so that a receiving kernel drops them."""
    forged: int
    """With one that is right, so that QUIC alone can find out."""
    spoilt_bytes: int
    """UDP payloads that were lost, corrupted or forged, and did not go unharmed before."""
    too_long: int
    overrun: int
    refused: int

    @property
    def faults(self) -> int:
        """Frames that were lost without being meant to be."""
        return self.too_long + self.overrun + self.refused


class LossyHop:
    """The ends, and what is between them."""

    def __init__(self, a: Side, b: Side, process: subprocess.Popen[str]) -> None:
        self.a = a
        self.b = b
        self._process = process

    @property
    def pid(self) -> int:
        """The forwarder's process ID."""
        return self._process.pid

    def treat(self, rates: Rates) -> tuple[Counts, Counts]:
        """What happens to datagrams from now on; returns what `counts` does."""
        return self._ask(" ".join(str(round(rate * 1e6)) for rate in astuple(rates)))

    def counts(self) -> tuple[Counts, Counts]:
        """What happened so far to what came from side a, and from side b."""
        return self._ask("")

    def _ask(self, line: str) -> tuple[Counts, Counts]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        from_a, from_b = (self._process.stdout.readline() for _ in range(2))
        return Counts(*map(int, from_a.split())), Counts(*map(int, from_b.split()))


def build(folder: Path) -> Path:
    """Compile the forwarder; skips the test where there is no compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler is installed: scripts/bootstrap.sh installs it")
    program = folder / "lossy_hop"
    warnings = ["-Wall", "-Wextra", "-Werror"]
    run(compiler, "-std=c11", "-D_GNU_SOURCE", "-O2", *warnings, str(_SOURCE), "-o", str(program))
    return program


def _whole_frames(side: Side) -> None:
    """No frames that a card would have to cut up or to finish: the hop is a wire."""
    off = [word for name in ("tx", "tso", "gso", "tx-udp-segmentation") for word in (name, "off")]
    with side.inside():
        run("ethtool", "-K", side.ifname, *off)


@contextmanager
def lossy_hop(program: Path, *, seed: int = 1, mtu_bytes: int = 1500) -> Iterator[LossyHop]:
    """Make the namespaces and start the forwarder, which harms nothing yet; removed at the end.

    It ends with the pipe that it reads, and so with this process, however that ends.
    """
    with ExitStack() as undo:
        namespaces = Namespaces(undo)
        a, b = namespaces.sides()
        middle = Side(namespaces.add("m"), "", "", "")
        for side in (a, b):
            peer = ("peer", "name", side.ifname, "netns", middle.namespace)
            side.ip("link", "add", side.ifname, "type", "veth", *peer)
            # It is a wire, not a host: it has no addresses of its own.
            middle.ip("link", "set", side.ifname, "addrgenmode", "none")
            middle.ip("link", "set", side.ifname, "mtu", str(mtu_bytes))
            middle.ip("link", "set", side.ifname, "up")
            bring_up(side, mtu_bytes)
            _whole_frames(side)
        process = undo.enter_context(
            subprocess.Popen(
                middle.command(str(program), a.ifname, b.ifname, str(seed)),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                # A Ctrl-C is for the test, which ends this in its time.
                start_new_session=True,
            )
        )
        undo.callback(process.kill)
        hop = LossyHop(a, b, process)
        hop.counts()  # it answers, so it forwards
        yield hop

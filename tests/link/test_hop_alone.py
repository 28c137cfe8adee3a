"""The lossy hop of the tests: it does what it says, and nothing is left of it."""

from __future__ import annotations

import itertools
import os
import random
import select
import signal
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.support.lossy_hop import Counts, LossyHop, Rates, lossy_hop
from tests.support.netns import Side

pytestmark = pytest.mark.needs_root

FAMILIES = {"ipv4": socket.AF_INET, "ipv6": socket.AF_INET6}
PATIENCE_S = 60
PORT = 5000
TOTAL = 3000

#: Of all sizes, odd ones too; no two are alike, nor a bit from each other.
SENT = [random.Random(n).randbytes(16 + n % 1400) for n in range(TOTAL)]


def udp_socket(side: Side, family: str, port: int = 0) -> socket.socket:
    """A plain socket, large enough for everything."""
    with side.inside():
        made = socket.socket(FAMILIES[family], socket.SOCK_DGRAM)
    made.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
    made.settimeout(PATIENCE_S)
    made.bind((getattr(side, family), port))
    return made


def carried(hop: LossyHop, family: str, rates: Rates) -> tuple[list[bytes], Counts]:
    """All that comes out at side b of what goes in at side a, and what the hop says of it."""
    with udp_socket(hop.a, family) as here, udp_socket(hop.b, family, PORT) as there:
        to = (getattr(hop.b, family), PORT)
        here.sendto(b"so that the neighbour is known", to)
        there.recv(100)
        before, _ = hop.treat(rates)
        for data in SENT:
            here.sendto(data, to)
        while (counts := hop.counts()[0]).datagrams < before.datagrams + TOTAL:
            pass
        due = TOTAL - counts.lost + counts.duplicated - counts.corrupted
        got = [there.recv(2048) for _ in range(due)]
        there.setblocking(False)
        with pytest.raises(BlockingIOError):
            there.recv(2048)
        after, back = hop.counts()
        assert after.faults == back.faults == back.datagrams == 0
        return got, after


@pytest.mark.parametrize("family", FAMILIES)
def test_without_rates_it_is_a_wire(hop: LossyHop, family: str) -> None:
    got, counts = carried(hop, family, Rates())
    assert got == SENT
    assert counts[2:] == (0,) * len(counts[2:])


def test_it_loses_the_same_each_time(hop_program: Path) -> None:
    runs = []
    for seed in (1, 1, 2):
        with lossy_hop(hop_program, seed=seed) as hop:
            got, counts = carried(hop, "ipv4", Rates(loss=0.1))
        kept = set(got)
        assert got == [data for data in SENT if data in kept]
        assert counts.spoilt_bytes == sum(len(data) for data in SENT if data not in kept)
        assert 0.07 * TOTAL < counts.lost < 0.13 * TOTAL
        runs.append(got)
    assert runs[0] == runs[1] != runs[2]


def test_it_reorders(hop: LossyHop) -> None:
    got, counts = carried(hop, "ipv4", Rates(reorder=0.1))
    assert sorted(got) == sorted(SENT)
    place = {data: n for n, data in enumerate(SENT)}
    places = [place[data] for data in got]
    late = sum(here > after for here, after in itertools.pairwise(places))
    assert 0 < late <= counts.overtaken <= 0.13 * TOTAL


def test_it_duplicates(hop: LossyHop) -> None:
    got, counts = carried(hop, "ipv4", Rates(duplicate=0.1))
    assert list(dict.fromkeys(got)) == SENT
    assert set(Counter(got).values()) == {1, 2}
    assert 0.07 * TOTAL < counts.duplicated < 0.13 * TOTAL


@pytest.mark.parametrize("family", FAMILIES)
def test_it_flips_one_bit(hop: LossyHop, family: str) -> None:
    """Half of them have a checksum that is right; the others do not come out of a socket."""
    got, counts = carried(hop, family, Rates(corrupt=0.2))
    unharmed = set(SENT)
    by_size: dict[int, list[int]] = {}
    for data in SENT:
        by_size.setdefault(len(data), []).append(int.from_bytes(data))
    changed = [data for data in got if data not in unharmed]
    for data in changed:
        value = int.from_bytes(data)
        assert 1 in [(value ^ other).bit_count() for other in by_size[len(data)]]
    assert len(changed) == counts.forged
    for count in (counts.forged, counts.corrupted):
        assert 0.07 * TOTAL < count < 0.13 * TOTAL


#: Makes a hop, says what there is, and waits for its own end.
VICTIM = """
import sys
from pathlib import Path
from tests.support.lossy_hop import lossy_hop
from tests.support.netns import reaper_pid
with lossy_hop(Path(sys.argv[1])) as hop:
    print(hop.pid, reaper_pid(), hop.a.namespace, hop.b.namespace, flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_outlives_a_test_that_is_killed(hop_program: Path, number: int) -> None:
    line = [sys.executable, "-c", VICTIM, str(hop_program)]
    with subprocess.Popen(
        line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as victim:
        try:
            assert victim.stdout is not None
            hop, reaper, *namespaces = victim.stdout.readline().split()
            waiting = {os.pidfd_open(int(pid)) for pid in (hop, reaper)}
            assert set(namespaces) <= set(os.listdir("/run/netns"))
        finally:
            os.killpg(victim.pid, number)
    for fd in waiting:
        ended, _, _ = select.select([fd], [], [], PATIENCE_S)
        assert ended
        os.close(fd)
    stem = namespaces[0].rpartition("-")[0]
    assert not [name for name in os.listdir("/run/netns") if name.startswith(f"{stem}-")]

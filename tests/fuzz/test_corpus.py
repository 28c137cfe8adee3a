"""The fuzz targets: the committed corpus, some seconds of fuzzing, and that they can fail."""

from __future__ import annotations

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.fuzz import make_corpus
from tests.fuzz.targets import (
    CORPUS,
    NATIVE,
    TARGETS,
    Builder,
    Target,
    buildable,
    run,
    why_no_quic,
    why_not,
)

#: Runs of each target, a second or two of them, counted so that each time is the same.
RUNS = {
    "frames": 60_000,
    "fifo": 40_000,
    "session": 12_000,
    "attached": 24_000,
    "http3": 8_000,
    "stops": 60_000,
    "tokens": 8_000,
    "strangers": 4_000,
    "turn": 500,
    "handshake": 900,
    "plaintext": 600,
}
SEED = "-seed=1"
#: How many times more until a planted fault is given up: libFuzzer also learns from the values of
#: pointers, so one seed finds it after 12,000 runs or after 60,000.
PATIENCE = 20
MOST_CORPUS_BYTES = 200_000

Done = subprocess.CompletedProcess[str]


class Plant(NamedTuple):
    """A fault: what it changes in a file of the core, and a word of what is then said."""

    source: str
    right: str
    wrong: str
    said: str


#: One for each target. The text has to be in the file once.
PLANTS = {
    "frames": Plant(
        "wire/frames.c",
        "if (udp_bytes < UDP_BYTES || udp_bytes > c->left)",
        "if (udp_bytes < UDP_BYTES)",
        "not true: out[i].payload",
    ),
    "fifo": Plant(
        "memory/fifo.c",
        "tail - c->head > ring",
        "tail - c->head > 2 * ring",
        "fuzz_fifo.c",
    ),
    "session": Plant(
        "session/plane.c",
        "if (s->is_peers && !c->is_closed) {",
        "if (!c->is_closed) {",
        "not true: w.connections[i].allowed == w.connections[i].expected",
    ),
    "attached": Plant(
        "session/attached.c",
        "if (hs_table_get(ends, end->handle) == end)",
        "if (end->is_forgotten)",
        "ERROR: AddressSanitizer: heap-use-after-free",
    ),
    "http3": Plant(
        "http3/receive.c",
        "c->has_held = c->is_after_identifier;",
        "c->has_held = 0;",
        "Assertion `len > 0' failed",
    ),
    "stops": Plant(
        "quic/frames.c",
        "return skip_varints(c, 2) && c->at < c->end &&",
        "return skip_varints(c, 2) && c->at <= c->end &&",
        "ERROR: AddressSanitizer: heap-buffer-overflow",
    ),
    "tokens": Plant(
        "quic/accept.c",
        "size_t bytes = datagram->bytes - 1 < MOST_RESET_BYTES ? datagram->bytes - 1 :",
        "size_t bytes = datagram->bytes < MOST_RESET_BYTES ? datagram->bytes :",
        "not true: n < p->n",
    ),
    "strangers": Plant(
        "wire/xdp.c",
        "		memcpy(out, path->key, sizeof(*out));",
        "		memcpy(out, path->key, 8);",
        "not true: found",
    ),
    "turn": Plant(
        "quic/turn.c",
        "if (datagram->bytes < 1 + HS_CID_BYTES)",
        "if (!datagram->bytes)",
        "ERROR: AddressSanitizer: heap-buffer-overflow",
    ),
    "handshake": Plant(
        "quic/handshake.c",
        "if (!take_number(at, length_bytes, &bytes) || (size_t)(at->end - at->at) < bytes)",
        "if (!take_number(at, length_bytes, &bytes))",
        "buffer-overflow",
    ),
    "plaintext": Plant(
        "quic/frames.c",
        "realloc(q->stops, room * sizeof(*q->stops))",
        "realloc(q->stops, room)",
        "ERROR: AddressSanitizer: heap-buffer-overflow",
    ),
}


def must_build(target: Target) -> None:
    if why_not():
        pytest.skip(f"NOT FUZZED: {why_not()}")
    if target.is_quic and why_no_quic():
        pytest.skip(f"NOT FUZZED: {why_no_quic()}")


@pytest.fixture(scope="module")
def programs() -> dict[str, Path]:
    """All targets, compiled."""
    return Builder().build(buildable())


@pytest.fixture(scope="module")
def runs(programs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Done]:
    """What came of running each, on all cores at once."""
    folder = tmp_path_factory.mktemp("runs")

    def one(name: str) -> Done:
        runs = f"-runs={RUNS[name]}"
        return run(TARGETS[name], programs[name], folder, SEED, runs, grown=folder / name)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(programs, pool.map(one, programs), strict=True))


@pytest.fixture(scope="module")
def planted(programs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Done]:
    """What came of running each with its fault."""
    folder = tmp_path_factory.mktemp("planted")

    def one(name: str) -> Done:
        plant, own = PLANTS[name], folder / name
        own.mkdir()
        text = (NATIVE / plant.source).read_text(encoding="utf-8")
        assert text.count(plant.right) == 1, f"{plant.source} has changed: plant another fault"
        changed = own / Path(plant.source).name
        changed.write_text(text.replace(plant.right, plant.wrong), encoding="utf-8")
        program = Builder(own, {plant.source: changed}).build([TARGETS[name]])[name]
        runs = f"-runs={PATIENCE * RUNS[name]}"
        return run(TARGETS[name], program, own, SEED, runs, grown=own / "grown")

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(programs, pool.map(one, programs), strict=True))


def test_the_corpus_is_what_the_script_makes() -> None:
    there = {
        folder.name: {path.name: path.read_bytes() for path in folder.iterdir()}
        for folder in CORPUS.iterdir()
    }
    assert there == make_corpus.seeds(), "python -m tests.fuzz.make_corpus"
    assert set(there) == set(TARGETS) == set(RUNS) == set(PLANTS)
    assert sum(len(data) for files in there.values() for data in files.values()) < MOST_CORPUS_BYTES


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_is_found(name: str, request: pytest.FixtureRequest) -> None:
    must_build(TARGETS[name])
    done: Done = request.getfixturevalue("runs")[name]
    assert done.returncode == 0, done.stderr[-6000:]
    assert f"Done {RUNS[name]} runs" in done.stderr


@pytest.mark.parametrize("name", TARGETS)
def test_a_fault_is_found(name: str, request: pytest.FixtureRequest) -> None:
    must_build(TARGETS[name])
    done: Done = request.getfixturevalue("planted")[name]
    assert done.returncode != 0, "nothing was found"
    assert PLANTS[name].said in done.stderr, done.stderr[-6000:]

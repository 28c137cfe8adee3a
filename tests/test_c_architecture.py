"""The C files of the native core, and pyxdp's, call each other in one direction."""

from __future__ import annotations

import re
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NATIVE = ROOT / "hoststack" / "native"
STATE = NATIVE / "quic" / "state.h"

#: A definition for other files, of a function or of a variable with a value: in the first column.
DEFINITION = re.compile(
    r"^(?!static\b|typedef\b|extern\b)\w[\w \t*]*?\b(\w+)(?:\([^;{}]*\)\n\{|(?:\[\w*\])? = )",
    re.MULTILINE,
)


@cache
def code(path: Path) -> str:
    """Return a file without comments, texts and includes."""
    text = re.sub(r"/\*.*?\*/", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    text = re.sub(r'"(?:\\.|[^"\\\n])*"', '""', text)
    return re.sub(r"^#include.*", "", text, flags=re.MULTILINE)


@cache
def files() -> list[Path]:
    """Return the C files, without those that cffi generates."""
    found = [*NATIVE.rglob("*.c"), *(ROOT / "pyxdp").glob("*.c")]
    return sorted(path for path in found if not re.match(r"_|.*\.bpf\.c", path.name))


@cache
def definitions() -> dict[str, Path]:
    return {name: path for path in files() for name in DEFINITION.findall(code(path))}


@cache
def names_in(path: Path) -> set[str]:
    return set(re.findall(r"\b\w+", re.sub(r"\b(?:struct|enum|union)\s+\w+", "", code(path))))


@cache
def calls() -> dict[Path, dict[Path, list[str]]]:
    """Return for each file the others whose functions it names, and those functions."""
    graph: dict[Path, dict[Path, list[str]]] = {path: {} for path in files()}
    for path in files():
        for name in sorted(names_in(path) & definitions().keys()):
            other = definitions()[name]
            if other != path:
                graph[path].setdefault(other, []).append(name)
    return graph


def short(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def check_one_way(graph: dict[str, set[str]]) -> None:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" calls ".join(reversed(error.args[1])))


def test_no_circles_among_files() -> None:
    graph = {short(path): {short(other) for other in calls()[path]} for path in files()}
    check_one_way(graph)


def test_no_circles_among_folders() -> None:
    graph: dict[str, set[str]] = {}
    for path, others in calls().items():
        folders = {other.parent.name for other in others} - {path.parent.name}
        graph.setdefault(path.parent.name, set()).update(folders)
    check_one_way(graph)


def test_the_engine_has_the_floors_that_its_state_lists() -> None:
    floors = re.findall(r"^ \*   (quic/\w+\.c)  ", STATE.read_text(encoding="utf-8"), re.MULTILINE)
    own = [path for path in files() if path.parent == STATE.parent]
    assert sorted(floors) == [short(path) for path in own]
    for path in own:
        for other, names in calls()[path].items():
            if other in own:
                above, below = floors.index(short(path)), floors.index(short(other))
                assert above < below, f"{short(path)} calls {names} of {short(other)}"


@pytest.mark.parametrize(
    "path", [path for path in files() if path.parent == STATE.parent], ids=short
)
def test_an_include_is_a_file_that_is_called(path: Path) -> None:
    public = names_in(STATE.with_name("quic.h"))
    included = re.findall(r'^#include "(quic/\w+)\.h"', path.read_text(encoding="utf-8"), re.M)
    called = {
        short(other.with_suffix(""))
        for other, names in calls()[path].items()
        if other.parent == path.parent and not set(names) <= public
    }
    assert set(included) - {"quic/state", "quic/varint", f"quic/{path.stem}"} == called

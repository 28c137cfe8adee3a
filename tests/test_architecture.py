"""No import points up from its folder, and docs/architecture.md shows the floors."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAX_LINES = 600


class Floor(NamedTuple):
    """Folders that stand on those of the floors below, and not on each other."""

    folders: tuple[str, ...]
    contents: str
    """For docs/architecture.md."""


#: From the ground up. A folder imports itself and those of lower floors.
FLOORS = (
    Floor(
        ("hoststack/text.py", "hoststack/sizes.py"),
        "how text from outside is shown, and how sizes are read",
    ),
    Floor(("pyxdp",), "AF_XDP for Python: libxdp and libbpf through cffi; independent of QUIC"),
    Floor(
        ("hoststack/native",),
        "the C core, a shared object each: FIFOs and event rings (`memory/`), the session plane "
        "(`session/`), frames, sockets and paths (`wire/`), the native engine (`quic/`), HTTP/3 "
        "(`http3/`)",
    ),
    Floor(
        ("hoststack/link",),
        "where datagrams come from and go to: `xdp/`, `udp/`, `memory.py` for tests; the kernel's "
        "routes, neighbours and ports (`kernel/`)",
    ),
    Floor(("hoststack/trace",), "`hoststack trace`: probes by way of bcc, and what they counted"),
    Floor(
        ("hoststack/quic",),
        "the engine seam, TLS configuration, connection IDs; `native/` and `aioquic/` behind the "
        "seam",
    ),
    Floor(
        ("hoststack/boundary",),
        "between an application and a worker, both sides: messages, events, memory, attaching",
    ),
    Floor(
        ("hoststack/transport",),
        "what carries connections beside QUIC: `kernel/` (TCP, UDP), `local/` (cut-through)",
    ),
    Floor(
        ("hoststack/session",),
        "what is decided: sessions, listeners, connecting, namespaces, rules",
    ),
    Floor(("hoststack/worker",), "the loop of one engine, and which engine it is"),
    Floor(("hoststack/api",), "Stack, Connection, Stream, Listener for trio; their errors"),
    Floor(("hoststack/aio",), "the same for asyncio"),
    Floor(("hoststack/__init__.py",), "what is public"),
    Floor(
        ("hoststack/control", "hoststack/vcl", "hoststack/http3"),
        "the debug CLI: its grammar, its commands in a worker, the control socket; VCL, the "
        "blocking API; HTTP/3, for trio and for asyncio",
    ),
    Floor(
        ("hoststack/asgi", "hoststack/httpx"),
        "ASGI applications over HTTP/3, for asyncio and for trio; transports for httpx",
    ),
    Floor(
        ("hoststack/daemon", "apps"),
        "supervisor and worker processes; programs on the public API: `quic_echo`, the demo",
    ),
    Floor(
        ("hoststack/serve",),
        "`hoststack serve`: a manager, engines and applications as processes, HTTP/3 beside TCP",
    ),
    Floor(
        ("hoststack/cli",),
        "the command line: `hoststack serve`, `get`, `run`, `ctl`, `trace`, `xdp`, `doctor`, "
        "`install-unit`, `completion`",
    ),
)
#: What those above it know of a link, and nothing of any particular one.
LINK_SEAM = ("hoststack.link.base", "hoststack.link.zones")
#: The first floor that chooses a link.
CHOOSES_LINK = "hoststack/worker"
#: What applications import.
PUBLIC = (
    *("hoststack", "hoststack.aio", "hoststack.asgi", "hoststack.asgi.trio"),
    *("hoststack.http3", "hoststack.http3.aio", "hoststack.httpx", "hoststack.vcl"),
)


def modules() -> list[Path]:
    return sorted(
        path for top in ("pyxdp", "hoststack", "apps") for path in (ROOT / top).rglob("*.py")
    )


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            # `from hoststack.session import messages` imports a module
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                is_module = (ROOT / inner.replace(".", "/")).with_suffix(".py").exists()
                yield inner if is_module else node.module


def is_within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def is_ours(module: str) -> bool:
    return module.split(".")[0] in {"pyxdp", "hoststack", "apps", "bench", "tests"}


def package_of(folder: str) -> str:
    return folder.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def place_of(module: str) -> tuple[int, str]:
    """Return the floor of a module, and its folder there."""
    places = [
        (number, folder)
        for number, floor in enumerate(FLOORS)
        for folder in floor.folders
        if module == package_of(folder)
        or (not folder.endswith(".py") and is_within(module, package_of(folder)))
    ]
    assert len(places) == 1, f"{module} is on no floor"
    return places[0]


def table() -> str:
    """Return the floors for docs/architecture.md, the highest first."""
    lines = ["| floor | folder | what lives there |", "|---|---|---|"]
    for number, floor in reversed(list(enumerate(FLOORS))):
        names = [name if name.endswith(".py") else f"{name}/" for name in floor.folders]
        lines.append(f"| {number} | {', '.join(f'`{n}`' for n in names)} | {floor.contents} |")
    return "\n".join(lines)


def test_the_docs_have_the_floors() -> None:
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    assert table() in text, f"put this into docs/architecture.md:\n{table()}"


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_imports_point_down(path: Path) -> None:
    module = name_of(path)
    floor, folder = place_of(module)
    chooses_link = floor >= place_of(package_of(CHOOSES_LINK))[0]
    for imported in filter(is_ours, imports_of(path)):
        below, other = place_of(imported)
        assert below < floor or other == folder, f"{module} imports {imported}"
        if other == "hoststack/link" != folder and not chooses_link:
            assert imported in LINK_SEAM, f"{module} imports {imported}"


@pytest.mark.parametrize(
    "path", [path for path in modules() if is_within(name_of(path), "apps")], ids=name_of
)
def test_applications_use_the_public_api_alone(path: Path) -> None:
    for imported in filter(is_ours, imports_of(path)):
        assert imported in PUBLIC or is_within(imported, "apps"), imported


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_a_module_has_one_subject(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES


def test_nothing_names_the_machine_that_it_was_made_on() -> None:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a git checkout: no list of files")
    told = re.compile(r"/work/(main|shared|\.)|pypi\.org/simple|index-url|find-links|\bfarm-")
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if path == Path(__file__).resolve() or not path.is_file():
            continue
        found = told.search(path.read_text(encoding="utf-8", errors="replace"))
        assert found is None, f"{name}: {found}"

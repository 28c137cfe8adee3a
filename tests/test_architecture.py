"""The folders are the architecture: docs/architecture.md's table against the imports."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAX_LINES = 600

#: What each layer may import of ours. The engine and the session layer know what a link is, and
#: nothing of any particular one.
MAY_IMPORT = {
    "pyxdp": {"pyxdp"},
    "hoststack.native": {"hoststack.native"},
    "hoststack.link": {"hoststack.link", "hoststack.native", "pyxdp"},
    "hoststack.quic": {
        "hoststack.quic",
        "hoststack.native",
        "hoststack.link.base",
        "hoststack.link.zones",
    },
    "hoststack.session": {
        "hoststack.session",
        "hoststack.quic",
        "hoststack.native",
        "hoststack.link.base",
        "hoststack.link.zones",
    },
    "hoststack.worker": {
        "hoststack.worker",
        "hoststack.session",
        "hoststack.quic",
        "hoststack.link",
        "hoststack.native",
    },
    "hoststack.control": {
        "hoststack.control",
        "hoststack.worker",
        "hoststack.session",
        "hoststack.quic",
        "hoststack.link",
        "hoststack.native",
        "hoststack.api.connection",
        "hoststack.api.errors",
        "hoststack.api.listener",
        "hoststack.api.stack",
        "hoststack.api.stream",
    },
    "hoststack.daemon": {
        "hoststack.daemon",
        "hoststack.control",
        "hoststack.worker",
        "hoststack.session",
        "hoststack.quic",
        "hoststack.link",
        "hoststack.native",
        "hoststack.api.errors",
        "pyxdp",
    },
    "hoststack.vcl": {
        "hoststack.vcl",
        "hoststack.api.attach",
        "hoststack.api.errors",
        "hoststack.api.resolving",
        "hoststack.api.stack",
        "hoststack.session",
        "hoststack.quic",
        "hoststack.native",
    },
    "hoststack.cli": {"hoststack", "pyxdp"},
    "apps": {"hoststack", "apps"},
}
#: Needs nothing of ours.
ALL_MAY_IMPORT = {"hoststack.text"}
#: The public modules see everything below them, but for the debug CLI, the daemon and the command
#: line.
PUBLIC_MAY_NOT_IMPORT = {
    "hoststack.control",
    "hoststack.daemon",
    "hoststack.cli",
    "hoststack.vcl",
    "apps",
}


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


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_imports_point_down(path: Path) -> None:
    module = name_of(path)
    layer = next((layer for layer in MAY_IMPORT if is_within(module, layer)), None)
    for imported in filter(is_ours, imports_of(path)):
        if imported in ALL_MAY_IMPORT and module != imported and not is_within(module, "apps"):
            continue
        if layer is None:
            assert not any(is_within(imported, upper) for upper in PUBLIC_MAY_NOT_IMPORT), imported
        else:
            allowed = MAY_IMPORT[layer]
            assert any(is_within(imported, lower) for lower in allowed), f"{module}: {imported}"


@pytest.mark.parametrize(
    "path", [path for path in modules() if is_within(name_of(path), "apps")], ids=name_of
)
def test_applications_use_the_public_api_alone(path: Path) -> None:
    for imported in filter(is_ours, imports_of(path)):
        is_public = imported in ("hoststack", "hoststack.vcl")
        assert is_public or is_within(imported, "apps"), imported


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

"""A server of ours with something to serve, on each engine."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from hoststack import TlsConfig
from tests.apps.http3.processes import ADDRESS, serving

LARGE_BYTES: Final = 20_000_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to serve, beside what must not be."""
    top = tmp_path_factory.mktemp("http3")
    root = top / "root"
    (root / "sub").mkdir(parents=True)
    (top / "secret").write_text("secret")
    (root / "large").write_bytes(random.Random(1).randbytes(LARGE_BYTES))
    (root / "page.html").write_text("<p>page")
    (root / "empty").touch()
    (root / "sub" / "index.html").write_text("index")
    (root / "with space").write_text("space")
    (root / "unreadable.tar.gz").write_text("archive")
    (root / "inner").symlink_to("page.html")
    (root / "out").symlink_to("../secret")
    (root / "up").symlink_to("..")
    (root / "loop").symlink_to("loop")
    os.mkfifo(root / "pipe")
    return root


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Files of a certificate and its key."""
    top = tmp_path_factory.mktemp("certificate")
    tls = TlsConfig.self_signed(["localhost", ADDRESS])
    paths = top / "certificate.pem", top / "key.pem"
    for path, source in zip(paths, (tls.certificate, tls.key), strict=True):
        assert isinstance(source, bytes)
        path.write_bytes(source)
    return paths


@pytest.fixture
def port(engine: str, folder: Path, certificate: tuple[Path, Path]) -> Iterator[int]:
    cert, key = map(str, certificate)
    with serving(engine, folder, ["--link", "udp", "--cert", cert, "--key", key]) as number:
        yield number

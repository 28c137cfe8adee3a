"""The hop that treats datagrams badly, compiled once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.lossy_hop import LossyHop, build, lossy_hop


@pytest.fixture(scope="session")
def hop_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The forwarder."""
    return build(tmp_path_factory.mktemp("lossy_hop"))


@pytest.fixture
def hop(hop_program: Path) -> Iterator[LossyHop]:
    """A hop between two namespaces, which harms nothing yet."""
    with lossy_hop(hop_program) as made:
        yield made

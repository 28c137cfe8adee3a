"""A short form of `python -m tests.soak`: each attack for some moments, beside honest traffic."""

from __future__ import annotations

import pytest

from tests.soak.__main__ import ATTACKS, soak

pytestmark = [pytest.mark.needs_root, pytest.mark.alone]


def test_honest_traffic_beside_all_attacks() -> None:
    soak(0, list(ATTACKS), slice_s=1.5)

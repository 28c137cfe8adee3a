"""The supervisor among hostile workers, by seeds; `python -m tests.fuzz orders` goes on."""

from __future__ import annotations

import pytest

from hoststack.daemon import orders
from tests.fuzz.orders import fuzz


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_whatever_workers_say(seed: int) -> None:
    print(fuzz(seed))


@pytest.mark.parametrize("which", ["decode_report", "decode_port_request"])
def test_a_fault_is_found(which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One place that lets a decoder's exception through, as CPython 3.11 has it at this depth."""
    right = getattr(orders, which)

    def decode(data: bytes) -> object:
        if b"\x91" * 1000 in data:
            raise RecursionError
        return right(data)

    monkeypatch.setattr(orders, which, decode)
    assert _first_fault() is not None


def _first_fault() -> BaseExceptionGroup[BaseException] | None:
    """What got through within some lives. One has no time for all messages under load."""
    for seed in range(1, 11):
        try:
            fuzz(seed)
        except ExceptionGroup as group:
            return group.subgroup(RecursionError)
    return None

"""Objects that the end of an `async with` block closes, in every loop."""

from __future__ import annotations

from types import TracebackType
from typing import Self


class Leaving:
    """Base of classes that say in `_on_block_end` what the end of a block does."""

    __slots__ = ()

    async def _on_block_end(self, *, aborts: bool) -> None:
        """Close; `aborts` if an exception leaves the block."""
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close it: see its class."""
        await self._on_block_end(aborts=error is not None)

"""Lines for the terminal or the journal, on stderr."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

#: Begins a terminal's line again.
ERASE: Final = "\r\x1b[K"


@contextmanager
def log_to_terminal() -> Iterator[None]:
    """Have Hoststack's own lines on stderr. The application's logging stays its own."""
    logger = logging.getLogger("hoststack")
    handler = logging.StreamHandler()
    # On a terminal, in place of the line that shows the progress.
    erase = ERASE if handler.stream.isatty() else ""
    handler.setFormatter(logging.Formatter(f"{erase}hoststack: %(message)s"))
    logger.addHandler(handler)
    logger.propagate = False
    level = logger.level
    logger.setLevel(logging.WARNING)
    own = logging.getLogger("hoststack.serve")
    own.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = True
        logger.setLevel(level)

"""Made by _build.py; cffi has no types to offer."""

from typing import Any

ffi: Any
lib: Any

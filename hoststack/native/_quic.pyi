# cffi makes this module: its names are those of quic.h.
from typing import Any

ffi: Any
lib: Any

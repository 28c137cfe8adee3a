"""The C part, if it was built: `require` returns it, or raises with what is missing."""

from __future__ import annotations

import errno
from typing import Any, Final

from pyxdp.errors import NotAvailableError

_library: Any = None
_ffi: Any = None
_why_not: str = ""
try:
    from pyxdp._pyxdp import ffi as _ffi
    from pyxdp._pyxdp import lib as _library

    _library.pyxdp_libraries_quiet()
except ModuleNotFoundError:
    _why_not = (
        "pyxdp's C part was not built; install libxdp-dev, libbpf-dev, gcc and python3-dev, then"
        " build the package again"
    )
except ImportError as error:
    _why_not = (
        f"pyxdp's C part cannot be loaded ({error}); install libxdp1 and libbpf1, or build the"
        " package again"
    )

ffi: Final[Any] = _ffi


def available() -> tuple[bool, str]:
    """Return whether pyxdp can be used; if not, why and what to do. Needs no privileges."""
    return (_library is not None, _why_not)


def require() -> Any:
    """Return the C functions; raises NotAvailableError if they were not built."""
    if _library is None:
        raise NotAvailableError(errno.ENOSYS, _why_not)
    return _library


def c_verbs() -> int:
    """Return the address of struct pyxdp_verbs (pyxdp.h), the burst functions for C modules."""
    return int(ffi.cast("uintptr_t", require().pyxdp_get_verbs()))


def libbpf_version() -> str:
    """Return major and minor version of the libbpf in use, as in "1.1".

    Raises NotAvailableError.
    """
    library = require()
    major, minor = ffi.new("uint32_t *"), ffi.new("uint32_t *")
    library.pyxdp_libbpf_version(major, minor)
    return f"{major[0]}.{minor[0]}"

"""pyxdp as a distribution of its own: its C module, and the BPF objects that clang makes.

The folder is the package; `pip install ./pyxdp` needs nothing outside it.
"""

from __future__ import annotations

import runpy
from pathlib import Path

from setuptools import setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import SetupError

HERE = Path(__file__).resolve().parent
compile_bpf = runpy.run_path(str(HERE / "_bpf_build.py"))["compile_bpf"]


class Build(build_ext):
    """The BPF objects, then the C module. Raises SetupError for what can't be built."""

    def run(self) -> None:
        folder = HERE if self.inplace else Path(self.build_lib) / "pyxdp"
        for source in sorted(HERE.glob("*.bpf.c")):
            if why := compile_bpf(source, folder / f"{source.stem}.o"):
                raise SetupError(
                    f"clang can't compile {source.name} for BPF: {why}\n"
                    "Install (Debian's names) gcc clang python3-dev libbpf-dev libxdp-dev "
                    "linux-libc-dev"
                )
        super().run()


setup(cffi_modules=["_build.py:ffibuilder"], cmdclass={"build_ext": Build})

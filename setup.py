"""Builds ``seamfast._native``; everything else about the package is in pyproject.toml.

The extension is optional. Without a C++17 compiler the install still succeeds, and the ops run on their PyTorch
reference. ``SEAMFAST_NATIVE=0`` leaves the extension out on purpose.
"""

from __future__ import annotations

import os
from pathlib import Path

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension
from setuptools import setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
CSRC = ROOT / "csrc"


class OptionalBuildExt(build_ext):
    """``build_ext`` that says in one line why an extension was left out, where the original would stop the install."""

    def run(self) -> None:
        if os.environ.get("SEAMFAST_NATIVE", "1") == "0":
            self._leave_out("SEAMFAST_NATIVE=0")
            return
        super().run()

    def build_extensions(self) -> None:
        try:
            super().build_extensions()
        except Exception as error:  # a missing compiler, a failed compile or link: setuptools has a class for each
            self._leave_out(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}")

    def _leave_out(self, reason: str) -> None:
        for extension in self.extensions:  # an earlier build's would be packed with sources that it does not fit
            Path(self.get_ext_fullpath(extension.name)).unlink(missing_ok=True)
        self.extensions = []  # nothing to copy or to list as output
        self.warn(f"seamfast goes without its C++ kernels ({reason}); the ops will run on PyTorch alone")


def relative(pattern: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in CSRC.rglob(pattern))


native = Pybind11Extension(
    "seamfast._native",
    relative("*.cpp"),
    depends=relative("*.h"),
    include_dirs=["csrc"],
    cxx_std=17,
    # No -march: kernels pick their instruction set at run time (csrc/isa.h). No contraction into fused multiply-adds,
    # which a compiler could do in the body of a loop and not in its remainder: results are pinned to the bit. No note
    # that vectors are passed differently by level: those functions are all inlined.
    extra_compile_args=[
        "-O3",
        "-ffp-contract=off",
        "-fno-trapping-math",
        "-Wall",
        "-Wextra",
        "-Wno-psabi",
        "-pthread",
        "-g0",
    ],
    extra_link_args=["-pthread"],
)

with ParallelCompile("SEAMFAST_BUILD_JOBS", default=os.cpu_count() or 1):
    setup(ext_modules=[native], cmdclass={"build_ext": OptionalBuildExt})

"""Builds ``seamfast._native``, ``_confine`` and ``_cuda``; everything else about the package is in pyproject.toml.

The first two are optional. Without a compiler the install still succeeds: the ops run on their PyTorch reference, and
the system does not confine the gate. ``SEAMFAST_NATIVE=0`` leaves them out on purpose. The second is for Linux alone.

The third is built where ``SEAMFAST_CUDA=1`` asks for it; it wants nvcc, of ``CUDA_HOME`` or on the path, and no GPU.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

import pybind11
from pybind11.setup_helpers import ParallelCompile, Pybind11Extension
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import PlatformError

ROOT = Path(__file__).parent
CSRC = ROOT / "csrc"
CUDA_ARCHS = ("80", "90")  # the last also as PTX, which drivers compile for what is newer
EFFECTS = {  # of leaving an extension out
    "seamfast._native": ("C++ kernels", "the ops will run on PyTorch alone"),
    "seamfast._confine": ("confinement", "the system will not confine what the gate reads and runs"),
}


class BuildExt(build_ext):
    """``build_ext`` that says in one line why an extension was left out, and has nvcc build ``_cuda``."""

    def run(self) -> None:
        if os.environ.get("SEAMFAST_NATIVE", "1") == "0":
            for extension in optional:
                self._leave_out(extension, "SEAMFAST_NATIVE=0")
        super().run()

    def build_extension(self, extension: Extension) -> None:
        if extension is cuda:
            self._build_cuda()  # asked for by name: what fails there stops the install
            return
        try:
            super().build_extension(extension)
        except Exception as error:  # a missing compiler, a failed compile or link: setuptools has a class for each
            message = str(error).splitlines()[0] if str(error) else "no message"
            self._leave_out(extension, f"{type(error).__name__}: {message}")

    def _leave_out(self, extension: Extension, reason: str) -> None:
        # An earlier build's would be packed with sources that it does not fit.
        Path(self.get_ext_fullpath(extension.name)).unlink(missing_ok=True)
        self.extensions = [other for other in self.extensions if other is not extension]  # what to copy and to list
        what, effect = EFFECTS[extension.name]
        self.warn(f"seamfast goes without its {what} ({reason}); {effect}")

    def _build_cuda(self) -> None:
        home = os.environ.get("CUDA_HOME")
        path = os.environ.get("PATH", os.defpath)
        nvcc = shutil.which("nvcc", path=f"{Path(home, 'bin')}{os.pathsep}{path}" if home else path)
        if nvcc is None:
            got = f"SEAMFAST_CUDA is 1, but nvcc is neither on PATH nor in CUDA_HOME ({home or 'not set'})"
            raise PlatformError(f"{got}; install the CUDA toolkit, or unset SEAMFAST_CUDA")
        known = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout.split()
        archs = [arch for arch in CUDA_ARCHS if f"compute_{arch}" in known]
        if not archs:
            raise PlatformError(f"{nvcc} compiles for {', '.join(known)}; expected one of {', '.join(CUDA_ARCHS)}")
        codes = [f"arch=compute_{arch},code=sm_{arch}" for arch in archs]
        codes.append(f"arch=compute_{archs[-1]},code=compute_{archs[-1]}")
        target = self.get_ext_fullpath(cuda.name)
        self.mkpath(str(Path(target).parent))
        self.spawn(
            [
                *(nvcc, "-shared", "-std=c++17", "-O3", "--threads", "0", "-o", target),
                "-fmad=false",  # no fused multiply-adds: results are pinned to the bit
                "--expt-relaxed-constexpr",  # csrc/philox.h is one source for host and device
                *("--cudart", "static"),  # no runtime to be found at import, and none in the way of torch's own
                *("-Xcompiler", "-fPIC,-fvisibility=hidden,-Wall,-Wextra"),
                *(word for code in codes for word in ("-gencode", code)),
                *("-I", "csrc", "-isystem", sysconfig.get_path("include"), "-isystem", pybind11.get_include()),
                *cuda.sources,
            ]
        )


def relative(paths: Iterable[Path]) -> list[str]:
    """The largest first: compiled side by side, what takes longest is not left to the end."""
    found = sorted(paths, key=lambda path: (-path.stat().st_size, path))
    return [str(path.relative_to(ROOT)) for path in found if CSRC / "cuda" not in path.parents]


cuda = Extension("seamfast._cuda", ["csrc/cuda/module.cpp", "csrc/cuda/cross_entropy.cu", "csrc/cuda/stamp_trigger.cu"])

native = Pybind11Extension(
    "seamfast._native",
    relative(path for path in CSRC.rglob("*.cpp") if path.parent.name != "bindings"),  # which module.cpp includes
    depends=relative([*CSRC.rglob("*.h"), *CSRC.glob("bindings/*.cpp")]),
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

confine = Extension(
    "seamfast._confine", ["csrc/confine/module.c"], extra_compile_args=["-O2", "-Wall", "-Wextra", "-g0"]
)
optional = [native, confine] if sys.platform == "linux" else [native]

with ParallelCompile("SEAMFAST_BUILD_JOBS", default=os.cpu_count() or 1):
    wanted = [cuda, *optional] if os.environ.get("SEAMFAST_CUDA", "0") == "1" else optional
    setup(ext_modules=list(wanted), cmdclass={"build_ext": BuildExt})

"""Which kernels are built for which instruction set; probes the compiler and OpenMP.

Everything else about the package is in pyproject.toml. Environment variables:
  CNORM_BUILDS   comma-separated builds instead of all of them, e.g. "baseline" or "baseline,avx2"
  CNORM_OPENMP   "0" builds without OpenMP
  CNORM_CFLAGS   extra compiler flags, after ours (used by `make asan`)
"""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import Cython
import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

X86 = platform.machine().lower() in ("x86_64", "amd64")
# name: flags; the processors that have them are in cnorm/kernels/_cpu.pyx
BUILDS = {"baseline": ["-march=x86-64-v2", "-mtune=generic"] if X86 else []}
if X86:
    BUILDS["avx2"] = ["-march=x86-64-v3", "-mtune=generic"]
    BUILDS["avx512"] = ["-march=x86-64-v4", "-mtune=generic", "-mprefer-vector-width=512"]

# The same bits on every build need -ffp-contract=off; never -ffast-math, which breaks NaN.
FLAGS = ["-O3", "-g0", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"]

# GCC's own way to clear or copy a few hundred bytes is one instruction, and no load is served from
# its stores until all are done: a small call would wait for it.
BY_CALL = ["-mmemset-strategy=libcall:-1:noalign", "-mmemcpy-strategy=libcall:-1:noalign"]

OPENMP = {
    "darwin": (["-Xpreprocessor", "-fopenmp"], ["-lomp"]),
    "default": (["-fopenmp"], ["-fopenmp"]),
}

PROBE = {
    "compiler": "int main(void) { return 0; }",
    "OpenMP": "#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }",
}


class BuildExt(build_ext):
    """Adds the flags that the compiler has, and says what is missing where it lacks some.

    Where the result goes into the source tree, as of `pip install -e`, a module that lies there
    already and was compiled from the same text in the same way is kept: README's commands install
    one set of extras after the other, and would compile for minutes each time.
    """

    def run(self):
        self.into_tree = self.inplace or self.editable_mode
        super().run()

    def build_extension(self, ext):
        built = Path(self.get_ext_fullpath(ext.name))
        kept = Path(self.get_ext_filename(self.get_ext_fullname(ext.name)))
        note = Path("build", "kept", f"{kept.name}.sha256")
        source = self._identity(ext)  # before it is compiled: the text may change meanwhile
        known = self.into_tree and not self.force and kept.exists() and note.exists()
        if known and note.read_text() == self._identity_with(source, kept):
            built.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(kept, built)
            return
        super().build_extension(ext)
        if self.into_tree:
            note.parent.mkdir(parents=True, exist_ok=True)
            note.write_text(self._identity_with(source, built))

    @staticmethod
    def _identity_with(source, result):
        return f"{source} {hashlib.sha256(result.read_bytes()).hexdigest()}"

    def _identity(self, ext):
        """A digest of all that a compiled module is made of."""
        how = [self.compiler.compiler_so, self.compiler.linker_so, ext.define_macros]
        how += [ext.extra_compile_args, ext.extra_link_args, Cython.__version__, numpy.__version__]
        how += [DIRECTIVES]
        total = hashlib.sha256(repr(how).encode())
        # All text that a module may include: the kernels' shims include other .pyx files. Not the
        # generated C, which names the folder of NumPy: another one each time.
        text = [p for p in Path("cnorm").rglob("*") if p.suffix in {".h", ".pxd", ".pyx"}]
        for path in sorted(text):
            total.update(hashlib.sha256(path.read_bytes()).digest())
        return total.hexdigest()

    def build_extensions(self):
        self._require_compiler()
        openmp, link = OPENMP.get(sys.platform, OPENMP["default"])
        if os.environ.get("CNORM_OPENMP") == "0" or not self._compiles("OpenMP", openmp, link):
            warnings.warn(
                "cnorm is being built without OpenMP: it will run on one thread only. "
                "On Linux, GCC brings OpenMP (Debian: apt install gcc); on macOS: brew install "
                "libomp.",
                stacklevel=1,
            )
            openmp, link = [], []
        extra = os.environ.get("CNORM_CFLAGS", "").split()
        by_call = BY_CALL if self._compiles("compiler", BY_CALL) else []
        for extension in self.extensions:
            extension.extra_compile_args += openmp + by_call + extra
            extension.extra_link_args += link + extra
        # The builds are large single files: compile them side by side.
        self.parallel = self.parallel or os.cpu_count()
        super().build_extensions()

    def _require_compiler(self):
        if not self._compiles("compiler"):
            raise SystemExit(
                "cnorm needs a C compiler to build, and none works here. Install GCC 9 or later or "
                "Clang 9 or later with the Python headers (Debian: apt install gcc python3-dev; "
                "macOS: xcode-select --install; Windows: MSYS2's Clang), then try again."
            )

    def _compiles(self, what, flags=(), link=()):
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "probe.c")
            source.write_text(PROBE[what])
            try:
                objects = self.compiler.compile([str(source)], folder, extra_postargs=list(flags))
                self.compiler.link_executable(
                    objects, "probe", output_dir=folder, extra_postargs=list(link)
                )
                return subprocess.run([str(Path(folder, "probe"))], check=False).returncode == 0
            except Exception:  # the compiler's own exceptions differ from one to the next
                return False


def extension(name, flags=(), depends=(), macros=(), **kwargs):
    return Extension(
        f"cnorm.{name}",
        [f"cnorm/{name.replace('.', '/')}.pyx"],
        include_dirs=["cnorm", "cnorm/kernels", numpy.get_include()],
        # Headers of NumPy 2.0 hide what earlier ones lack, such as allocators, unless told not to.
        define_macros=[
            *macros,
            ("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION"),
            ("NPY_TARGET_VERSION", "NPY_2_0_API_VERSION"),
        ],
        extra_compile_args=[*FLAGS, *(["-Os"] if name in SMALL else []), *flags],
        depends=list(depends),
        **kwargs,
    )


KERNELS = Path("cnorm/kernels").rglob("*")
# What the builds do not include.
SHIMS = {"_cpu.pyx", "api.pyx", "api.pxd", "mixing.pyx", "mixing.pxd", "exponential.h"}
SHIMS |= {f"_{name}.pyx" for name in BUILDS}
SOURCES = sorted(
    str(p) for p in KERNELS if p.suffix in {".pyx", ".h", ".pxd"} and p.name not in SHIMS
)
# Each imports those before it; cythonize finds what they cimport, and compiles them again where
# that changed.
CALLS = [
    "observe",
    "arrays",
    "masks",
    "checks",
    "output",
    "running",
    "rows",
    "row_norms",
    "channels",
    "channel_norms",
    "normalize",
    "switch",
    "window",
    "moments",
    "standardize",
    "image",
]
# Modules in which a call spends no time worth counting are compiled for size: a third of it.
SMALL = {
    "_call.image",
    "_call.masks",
    "_call.moments",
    "_call.normalize",
    "_call.observe",
    "_call.standardize",
    "_call.switch",
    "_call.window",
    "steps",
    "kernels.api",
    "kernels._cpu",
}
# No `embedsignature`: functions have a signature, and help() and Sphinx would print it twice.
DIRECTIVES = {"language_level": 3, "cdivision": True, "freethreading_compatible": True}
# The text that kernels share is in `cdef inline` functions of .pxd files. Told to inline all of
# them, the compiler takes three times as long: it decides by itself.
SHARED_TEXT = [("CYTHON_INLINE", "__attribute__((unused))")]
chosen = [b for b in os.environ.get("CNORM_BUILDS", "").split(",") if b] or list(BUILDS)
unknown = set(chosen) - set(BUILDS)
if unknown:
    raise SystemExit(f"CNORM_BUILDS names {sorted(unknown)}; this machine can build {list(BUILDS)}")

setup(
    ext_modules=cythonize(
        [
            *(extension(name) for name in ["_runtime", "_plan"]),
            extension("_pool", depends=[str(p) for p in Path("cnorm").glob("*.h")]),
            *(extension(f"_call.{name}") for name in CALLS),
            *(extension(name, depends=["cnorm/_hints.h"]) for name in ["steps", "functional"]),
            extension("kernels._cpu"),
            extension("kernels.mixing", depends=["cnorm/kernels/exponential.h"]),
            extension("kernels.api", depends=["cnorm/kernels/api.pxd", "cnorm/kernels/job.pxd"]),
            *(extension(f"kernels._{name}", BUILDS[name], SOURCES, SHARED_TEXT) for name in chosen),
        ],
        compiler_directives=DIRECTIVES,
    ),
    cmdclass={"build_ext": BuildExt},
)

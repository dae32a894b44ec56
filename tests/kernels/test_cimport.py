"""Other people's Cython: the program of docs/cython.md, compiled against the package's .pxd."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

import cnorm
import cnorm.functional as F

PAGE = Path(__file__).parents[2] / "docs" / "cython.md"
IN_DOUBLE = """

from cnorm.kernels.api cimport BAD_LAYOUT


def in_double(const double[:, :] x, double[:, :] y):
    cdef const double[:] none = None
    cdef double[:] no_statistics = None
    cdef int status
    with nogil:
        status = rows_forward[double](x, y, none, none, no_statistics, no_statistics, True, 1e-5, 2)
    return status == OK, status == BAD_LAYOUT
"""
CODE = """
import numpy as np
import program

a = np.load("given.npz")
y, z = np.zeros_like(a["x"]), np.zeros((5, 33))
wide = a["x"][0].astype(float)
assert program.normalize(a["x"], y, a["weight"], 1e-5) == 0
assert program.in_double(wide, z) == (True, False)
assert program.in_double(wide[1:], z) == (False, True)
np.savez("got.npz", y=y, z=z)
"""


def test_the_program_of_the_page_calls_layer_norm_without_the_gil(tmp_path):
    page = PAGE.read_text(encoding="utf-8")
    (module,) = re.findall(r"^```cython\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    (setup,) = re.findall(r"^```py\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    (tmp_path / "program.pyx").write_text(module + IN_DOUBLE)
    (tmp_path / "setup.py").write_text(setup)
    package = str(Path(cnorm.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([package, str(tmp_path)])}

    def python(*arguments):
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    python("setup.py", "-q", "build_ext", "--inplace")
    rng = np.random.default_rng(0)
    x, weight = rng.normal(size=(6, 5, 33)).astype(np.float32), np.full(33, 2, np.float32)
    np.savez(tmp_path / "given.npz", x=x, weight=weight)
    python("-c", CODE)
    got = np.load(tmp_path / "got.npz")
    np.testing.assert_array_equal(got["y"], F.layer_norm(x, 33, weight))
    np.testing.assert_array_equal(got["z"], F.layer_norm(x[0].astype(float), 33))

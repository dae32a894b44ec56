"""Check an installation of cnorm: every function is right, on the build that fits this machine.

Run with the Python of the installation, outside the source tree. Takes nothing but cnorm and NumPy.
`cnorm._reference`, the functions in plain NumPy, says what is right. Options:

  --no-compiler   also fail where a compiler is on the PATH: this is a test of the wheel alone
  --no-openmp     this installation was built without OpenMP
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np

import cnorm
import cnorm.functional as F
from cnorm import _dispatch, _runtime
from cnorm import _reference as reference
from cnorm._operations import OPERATIONS, Inputs

FEATURES = {
    "avx512": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
    "avx2": {"avx2", "fma", "bmi1", "bmi2"},
}


class Recorder:
    """A module of functions that keeps the names of those it was asked for."""

    def __init__(self, module):
        self.module, self.asked = module, set()

    def __getattr__(self, name):
        self.asked.add(name)
        return getattr(self.module, name)


def results(module):
    """What the cases of every operation give: arrays by the case's name."""
    inputs = Inputs((4, 6, 5, 5), 1, np.dtype(np.float32))
    cases = [case for operation in OPERATIONS for case in operation.cases]
    return {name: case(module, inputs) for name, case in cases}


def check_functions():
    recorder = Recorder(F)
    found, expected = results(recorder), results(reference)
    for name, arrays in found.items():
        for got, want in zip(arrays, expected[name], strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5, err_msg=name)
    assert recorder.asked == set(F.__all__), recorder.asked ^ set(F.__all__)
    print(f"{len(recorder.asked)} functions are right")


def check_module():
    norm = cnorm.BatchNorm2d(6)
    x = np.random.default_rng(0).standard_normal((4, 6, 5, 5), np.float32)
    y = norm(x)
    assert np.abs(y.mean((0, 2, 3))).max() < 1e-6
    assert norm.backward(np.ones_like(y)).shape == x.shape and norm.bias.grad[0] == 100


def expected_build():
    """What the processor says, asked another way than cnorm asks it; None where it is not known."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    flags = next((set(x.split()) for x in lines if x.startswith("flags")), None)
    if flags is None:
        return "baseline"
    return next((name for name, needs in FEATURES.items() if needs <= flags), "baseline")


def check_build():
    """The best build runs by default, each can be forced, and all give the same bits."""
    chosen = _dispatch.name()
    if "CNORM_ISA" not in os.environ and set(_dispatch.built()) == set(_dispatch.NAMES):
        expected = expected_build() or _dispatch.available()[-1]
        assert chosen == expected, f"this machine should run {expected}, but runs {chosen}"
    bits = {}
    for name in _dispatch.available():
        with _dispatch.using(name):
            assert _dispatch.name() == name
            bits[name] = [a.tobytes() for arrays in results(F).values() for a in arrays]
    assert len({tuple(b) for b in bits.values()}) == 1, f"{list(bits)} differ"
    print(f"{chosen} was chosen; {', '.join(bits)} give the same bits")


def check_forced_build():
    code = "from cnorm import _dispatch; print(_dispatch.name())"
    forced = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"CNORM_ISA": "baseline"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert forced.stdout.strip() == "baseline"


def main(options):
    here = Path(__file__).resolve().parents[1]
    package = Path(cnorm.__file__).resolve()
    assert here not in package.parents or "site-packages" in package.parts, f"imported {package}"
    if "--no-compiler" in options:
        found = [c for c in ("cc", "gcc", "clang", "cl", "c++") if shutil.which(c)]
        assert not found, f"on the PATH: {found}"
    cnorm.show_config()
    assert _runtime.has_openmp() == ("--no-openmp" not in options)
    check_functions()
    check_module()
    check_build()
    check_forced_build()
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        assert not sys._is_gil_enabled(), "cnorm switched the GIL on"


if __name__ == "__main__":
    main(sys.argv[1:])

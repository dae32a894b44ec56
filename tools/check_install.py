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

FEATURES = {
    "avx512": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
    "avx2": {"avx2", "fma", "bmi1", "bmi2"},
}


def calls():
    """Name and arguments of a call of each function, backward with what forward returned."""
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((2, 4, 6, 5, 5), np.float32)
    w, b = rng.standard_normal((2, 6), np.float32)
    row = rng.standard_normal((2, 5), np.float32)
    mix = rng.standard_normal((2, 3), np.float32)
    zeros, ones = np.zeros(6, np.float32), np.ones(6, np.float32)

    def stats(name, *args, skip=1):
        return getattr(reference, name)(*args, return_stats=True)[skip:]

    switch = (zeros, ones, w, b, *mix, True)
    yield "batch_norm", (x, zeros, ones, w, b)
    yield "batch_norm_backward", (dy, x, *stats("batch_norm", x, None, None, w, b, True), w)
    yield "instance_norm", (x, None, None, w, b)
    yield "instance_norm_backward", (dy, x, *stats("instance_norm", x), w)
    yield "group_norm", (x, 3, w, b)
    yield "group_norm_backward", (dy, x, 3, *stats("group_norm", x, 3), w)
    yield "layer_norm", (x, 5, *row)
    yield "layer_norm_backward", (dy, x, 5, *stats("layer_norm", x, 5), row[0])
    yield "rms_norm", (x, 5, row[0])
    yield "rms_norm_backward", (dy, x, 5, *stats("rms_norm", x, 5), row[0])
    yield "add_layer_norm", (x, dy, 5, *row)
    kept = stats("add_layer_norm", x, dy, 5, *row)
    yield "add_layer_norm_backward", (dy, x, kept[0], 5, *kept[1:], row[0])
    yield "add_rms_norm", (x, dy, 5, row[0])
    kept = stats("add_rms_norm", x, dy, 5, row[0])
    yield "add_rms_norm_backward", (dy, x, kept[0], 5, *kept[1:], row[0])
    yield "switch_norm", (x, *(a.copy() for a in switch[:6]), True)
    yield "switch_norm_backward", (dy, x, switch, w, *mix)
    yield "local_response_norm", (x, 3)
    yield "local_response_norm_backward", (dy, x, 3)
    yield "cross_map_lrn", (x, 3)
    yield "cross_map_lrn_backward", (dy, x, 3)


def run(module, name, args):
    """The arrays that a call gives; switch_norm's statistics are the module's own."""
    if name == "switch_norm_backward":
        dy, x, forward, *rest = args
        forward = [a.copy() if isinstance(a, np.ndarray) else a for a in forward]
        args = (dy, x, module.switch_norm(x, *forward, return_stats=True)[1], *rest)
    result = getattr(module, name)(*args)
    return result if isinstance(result, tuple) else (result,)


def check_functions():
    functions = {name for name, f in vars(F).items() if callable(f) and not isinstance(f, type)}
    public = {name for name in functions if not name.startswith("_")}
    tried = set()
    for name, args in calls():
        for got, want in zip(run(F, name, args), run(reference, name, args), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5, err_msg=name)
        tried.add(name)
    assert tried == public, f"not tried: {sorted(public - tried)}"
    print(f"{len(tried)} functions are right")


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
            bits[name] = [a.tobytes() for call in calls() for a in run(F, *call)]
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

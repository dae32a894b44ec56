"""Picks the one kernel module this machine runs.

``CNORM_ISA=baseline|avx2|avx512`` forces one, and raises where this processor or this build of
cnorm lacks it.
"""

import os
import sys
from contextlib import contextmanager
from importlib import import_module, util

from .kernels import _cpu

NAMES = ("baseline", "avx2", "avx512")


def built():
    """Names of the kernel modules that this installation has."""
    return tuple(n for n in NAMES if util.find_spec(f"cnorm.kernels._{n}") is not None)


def available():
    """Names of the kernel modules that can run here, the plainest first."""
    runs = _cpu.builds()
    return tuple(n for n in built() if n in runs)


def choose(forced=None):
    """The kernel module to use: the one asked for, or the best that runs here."""
    if forced:
        if forced not in NAMES:
            raise ValueError(f"CNORM_ISA must be one of {', '.join(NAMES)}, but got {forced!r}")
        if forced not in _cpu.builds():
            raise RuntimeError(f"CNORM_ISA={forced}: this processor cannot run it")
        if forced not in built():
            raise RuntimeError(
                f"CNORM_ISA={forced}: this installation has only {', '.join(built())}"
            )
        return import_module(f"cnorm.kernels._{forced}")
    # the newest first; one that is there but does not load is an error, not a reason to run slower
    for name in reversed(_cpu.builds()):
        if util.find_spec(f"cnorm.kernels._{name}") is not None:
            return import_module(f"cnorm.kernels._{name}")
    raise ImportError("cnorm has no kernels for this processor: was it built for another machine?")


kernels = choose(os.environ.get("CNORM_ISA"))


def name():
    """Name of the kernel module in use."""
    return kernels.__name__.rpartition("._")[2]


def _use(module):
    """Take another kernel module; so do the extensions that keep a pointer to its table."""
    global kernels
    kernels = module
    for name in ("cnorm.functional", "cnorm.kernels.api"):
        if name in sys.modules:
            sys.modules[name]._use(module.table)


@contextmanager
def using(forced):
    """Run with another kernel module, in this whole process: for tests."""
    before = kernels
    try:
        _use(choose(forced))
        yield
    finally:
        _use(before)

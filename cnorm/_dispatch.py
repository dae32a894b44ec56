"""Picks the one kernel module this machine runs.

``CNORM_ISA=baseline|avx2|avx512`` (in any case) forces one, and raises where this processor or this
build of cnorm lacks it.
"""

import os
from contextlib import contextmanager
from importlib import import_module, util

from . import _machine, _runtime
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
        asked, forced = forced, forced.strip().lower()
        if forced not in NAMES:
            raise ValueError(f"CNORM_ISA must be one of {', '.join(NAMES)}, but got {asked!r}")
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


_informed = set()  # kernel modules that know the caches


def learn_caches():
    """Tell the kernels in use the caches of this machine, once."""
    if kernels not in _informed:
        _informed.add(kernels)
        kernels.set_machine(*_machine.caches(os.cpu_count() or 1))


kernels = choose(os.environ.get("CNORM_ISA"))
# Caches are looked up later: that reads files, which an import should not, and only calls that are
# large enough for threads depend on them.
_runtime.use_kernels(kernels.table, learn_caches)


def name():
    """Name of the kernel module in use."""
    return kernels.__name__.rpartition("._")[2]


@contextmanager
def using(forced):
    """Run with another kernel module, in this whole process: for tests."""
    global kernels
    before = kernels
    try:
        kernels = choose(forced)
        _runtime.use_kernels(kernels.table, learn_caches)
        yield
    finally:
        kernels = before
        _runtime.use_kernels(before.table, learn_caches)

"""How many threads a call gets: the one owner of that decision.

The number is, in this order: that of the innermost ``num_threads`` block of this Python thread,
the last ``set_num_threads``, ``CNORM_NUM_THREADS``, ``OMP_NUM_THREADS``, the processors that this
process may use (affinity and container limits included). A lower number that OpenMP was given, by
``threadpoolctl`` or another library, before this import or after it, applies on top, and small
calls run on one thread whatever the number.

GNU OpenMP hangs in a forked child that enters a parallel region, so a forked child runs serially.
"""

import os
from contextlib import contextmanager

from . import _runtime


def _container_limit():
    """Processors that the control group allows, or None."""
    try:
        with open("/sys/fs/cgroup/cpu.max") as f:
            quota, period = f.read().split()
        return None if quota == "max" else max(1, int(quota) // int(period))
    except (OSError, ValueError):
        return None


def _processors():
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS or Windows
        return os.cpu_count() or 1


def _from_environment(name):
    """The number that a variable holds; None where it holds none."""
    value = os.environ.get(name, "").split(",")[0].strip()
    if value.isdigit() and int(value) > 0:
        return int(value)
    if value and name.startswith("CNORM"):
        raise ValueError(f"{name} must be a positive integer, but got {value!r}")
    return None


def _checked(n):
    if isinstance(n, bool) or not isinstance(n, int):
        raise TypeError(f"number of threads must be an int, but got {type(n).__name__}")
    if n < 1:
        raise ValueError(f"number of threads must be positive, but got {n}")
    return n


def set_num_threads(n):
    """Set how many threads a call may use, in this process.

    Parameters
    ----------
    n : int
        At least 1. Results do not depend on it.

    Examples
    --------
    >>> import cnorm
    >>> before = cnorm.get_num_threads()
    >>> cnorm.set_num_threads(1)
    >>> cnorm.get_num_threads()
    1
    >>> cnorm.set_num_threads(before)
    """
    _runtime.set_threads(_checked(n))


def get_num_threads():
    """How many threads a call may use now, in this Python thread.

    Examples
    --------
    >>> import cnorm
    >>> with cnorm.num_threads(2):
    ...     cnorm.get_num_threads()
    2
    """
    return _runtime.get_threads()


@contextmanager
def num_threads(n):
    """A block in which calls of this Python thread use `n` threads.

    Examples
    --------
    >>> import cnorm
    >>> with cnorm.num_threads(1):
    ...     cnorm.get_num_threads()
    1
    """
    before = _runtime.override_threads(_checked(n))
    try:
        yield
    finally:
        _runtime.override_threads(before)


def _start():
    of_openmp = _from_environment("OMP_NUM_THREADS")
    number = _from_environment("CNORM_NUM_THREADS") or of_openmp
    allowed = _processors()  # now: later it may be a thread bound to one of them that asks

    def default():  # later: it reads a file, which an import should not
        return min(allowed, _container_limit() or allowed)

    _runtime.start_threads(number or 0, of_openmp or 0, default)


_start()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_runtime.forked)

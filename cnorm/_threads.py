"""How many threads a call gets: the one owner of that decision.

The number is, in this order: that of the innermost ``num_threads`` block of this Python thread,
the last ``set_num_threads``, ``CNORM_NUM_THREADS``, ``OMP_NUM_THREADS``, the processors that this
process may use (affinity and container limits included). A lower number that OpenMP was given, by
``threadpoolctl`` or another library, before this import or after it, applies on top, and small
calls run on one thread whatever the number.

GNU OpenMP hangs in a forked child that enters a parallel region, so a forked child runs serially.
"""

import os
import re
import warnings
from contextlib import contextmanager

from . import _runtime

MAX_THREADS = 1024  # of one call
# Bytes of stack that a kernel may take on a thread, what the C library keeps there included: twice
# what they do take, on the build that takes most.
STACK = 256 << 10


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


def _of_cnorm():
    """The number in CNORM_NUM_THREADS; None where it holds none."""
    value = os.environ.get("CNORM_NUM_THREADS", "").split(",")[0].strip()
    if not value:
        return None
    number = int(value) if re.fullmatch("[0-9]{1,9}", value) else 0
    if not 1 <= number <= MAX_THREADS:
        raise ValueError(
            f"CNORM_NUM_THREADS must be an integer from 1 to {MAX_THREADS}, but got {value[:40]!r}"
        )
    return number


def _of_openmp():
    """The number in OMP_NUM_THREADS; None where it holds none that OpenMP would take."""
    value = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    match = re.fullmatch("0*([1-9][0-9]{0,17})", value)
    return min(int(match[1]), 1 << 30) if match else None


def _of_stack():
    """The bytes of an OpenMP thread's stack, and the text that asks for them; 0 without one."""
    for name in ("OMP_STACKSIZE", "GOMP_STACKSIZE"):
        text = os.environ.get(name, "")
        if match := re.fullmatch(r"\s*\+?([0-9]{1,12})\s*([bkmg]?)\s*", text, re.I | re.A):
            size = int(match[1]) << {"b": 0, "": 10, "k": 10, "m": 20, "g": 30}[match[2].lower()]
            return size, f"{name}={text.strip()}"
    return 0, ""


def _checked(n, name):
    if isinstance(n, bool) or not isinstance(n, int):
        raise TypeError(f"{name}: the number of threads must be an int, not {type(n).__name__}")
    if not 1 <= n <= MAX_THREADS:
        raise ValueError(f"{name}: the number of threads must be 1 to {MAX_THREADS}, but got {n}")
    return n


def set_num_threads(n):
    """Set how many threads a call may use, in this process.

    Parameters
    ----------
    n : int
        From 1 to 1024. Results do not depend on it.

    Raises
    ------
    ValueError
        Where `n` is out of range; the number stays what it was.

    Examples
    --------
    >>> import cnorm
    >>> before = cnorm.get_num_threads()
    >>> cnorm.set_num_threads(1)
    >>> cnorm.get_num_threads()
    1
    >>> cnorm.set_num_threads(before)
    """
    _runtime.set_threads(_checked(n, "set_num_threads"))


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
    before = _runtime.override_threads(_checked(n, "num_threads"))
    try:
        yield
    finally:
        _runtime.override_threads(before)


def _start():
    number, of_openmp, (stack, text) = _of_cnorm(), _of_openmp(), _of_stack()
    if not number and of_openmp:
        number = min(of_openmp, MAX_THREADS)
        if number < of_openmp:
            warnings.warn(
                f"OMP_NUM_THREADS asks for more threads than cnorm runs a call on, which is "
                f"{number}; CNORM_NUM_THREADS or cnorm.set_num_threads say how many it takes",
                RuntimeWarning,
                stacklevel=2,
            )
    if short := 0 < stack < STACK:
        warnings.warn(
            f"{text} gives OpenMP's threads less stack than cnorm needs: cnorm runs on one thread. "
            f"Set it to {STACK >> 10}k or more, or unset it, before the process starts",
            RuntimeWarning,
            stacklevel=2,
        )
    # Now: later it may be a thread bound to one of them that asks.
    allowed = min(_processors(), MAX_THREADS)

    def default():  # later: it reads a file, which an import should not
        return min(allowed, _container_limit() or allowed)

    _runtime.start_threads(number or 0, of_openmp or 0, default, stack, short)


_start()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_runtime.forked)

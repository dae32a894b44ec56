"""How many threads a call may have: the one owner of that decision.

The number is, in this order: that of the innermost ``num_threads`` block of this Python thread,
the last ``set_num_threads``, ``CNORM_NUM_THREADS``, ``OMP_NUM_THREADS``, the processors that this
thread may use (affinity and container limits included, looked up again every few seconds). A lower
number that OpenMP was given, by ``threadpoolctl`` or another library, before this import or after
it, applies on top, and small calls run on one thread whatever the number.

How many of them a call gets on a busy machine is decided in ``_policy.h``, unless the policy is
``"fixed"``: by ``num_threads``, ``set_num_threads`` or ``CNORM_THREAD_POLICY``.

GNU OpenMP hangs in a forked child that enters a parallel region, so a forked child runs serially.
"""

import os
import re
import warnings
from contextlib import contextmanager
from pathlib import Path

from . import _runtime
from ._runtime import MAX_THREADS

# Bytes of stack that a kernel may take on a thread, what the C library keeps there included: twice
# what they do take, on the build that takes most.
STACK = 256 << 10
POLICIES = ("adaptive", "fixed")
# With one of these OpenMP binds threads to processors: the affinity of one says nothing then.
BINDING = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")
# With one of these the user has said how threads wait for each other.
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def _numbers(path):
    """The words of a file; none where it cannot be read."""
    try:
        return path.read_text().split()
    except (OSError, ValueError):
        return []


def _container_limit(root="/"):
    """Processors that the quotas of this process's control groups allow, or None."""
    root = Path(root)
    found = []
    for line in _numbers(root / "proc/self/cgroup"):
        _, controllers, group = [*line.split(":", 2), "", ""][:3]
        names = controllers.split(",")
        if controllers and "cpu" not in names:
            continue
        mounts = ("cpu", "cpu,cpuacct", "cpuacct,cpu") if controllers else ("", "unified")
        for mount in mounts:
            top = root / "sys/fs/cgroup" / mount
            # In a container the path may be the host's: then only the top is there.
            for part in (top / group.lstrip("/"), *(top / group.lstrip("/")).parents):
                found.append(_quota(part, controllers))
                if part == top:
                    break
    limits = [limit for limit in found if limit]
    return max(1, int(min(limits))) if limits else None


def _quota(folder, controllers):
    """Processors that one control group allows, or None."""
    if controllers:  # version 1
        words = _numbers(folder / "cpu.cfs_quota_us") + _numbers(folder / "cpu.cfs_period_us")
    else:
        words = _numbers(folder / "cpu.max")
    if len(words) != 2 or not all(re.fullmatch("[0-9]{1,15}", word) for word in words):
        return None  # "max", or -1
    quota, period = map(int, words)
    return quota / period if quota and period else None


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


def _of_policy():
    """Whether CNORM_THREAD_POLICY asks for fixed numbers of threads."""
    value = os.environ.get("CNORM_THREAD_POLICY", "").strip()
    if value and value.lower() not in POLICIES:
        raise ValueError(
            f"CNORM_THREAD_POLICY must be {' or '.join(POLICIES)}, but got {value[:40]!r}"
        )
    return value.lower() == "fixed"


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


def _checked_policy(policy, name):
    """Whether it is "fixed"; None for None."""
    if policy is None:
        return None
    if policy not in POLICIES:
        raise ValueError(f"{name}: policy must be 'adaptive' or 'fixed', but got {policy!r}")
    return policy == "fixed"


def set_num_threads(n, *, policy=None):
    """Set how many threads a call may use, in this process.

    Parameters
    ----------
    n : int
        From 1 to 1024. Results do not depend on it.
    policy : {"adaptive", "fixed"}, optional
        "fixed": a call gets `n` threads as long as its work is worth them. "adaptive", the default
        of a process: it gets fewer while other programs keep the processors busy and a team would
        take longer. Without it the policy stays what it is.

    Raises
    ------
    ValueError
        Where `n` or `policy` is none of these; nothing is changed.

    Examples
    --------
    >>> import cnorm
    >>> before = cnorm.get_num_threads()
    >>> cnorm.set_num_threads(1)
    >>> cnorm.get_num_threads()
    1
    >>> cnorm.set_num_threads(before)
    """
    n, fixed = _checked(n, "set_num_threads"), _checked_policy(policy, "set_num_threads")
    _runtime.set_threads(n)
    if fixed is not None:
        _runtime.set_fixed(fixed)


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
def num_threads(n, *, policy=None):
    """A block in which calls of this Python thread may use `n` threads.

    With a `policy`, "adaptive" or "fixed", it decides in the block whether they get all of them:
    see `set_num_threads`.

    Examples
    --------
    >>> import cnorm
    >>> with cnorm.num_threads(1):
    ...     cnorm.get_num_threads()
    1
    """
    n, fixed = _checked(n, "num_threads"), _checked_policy(policy, "num_threads")
    number, before = _runtime.get_override()
    _runtime.override_threads(n, before if fixed is None else fixed)
    try:
        yield
    finally:
        _runtime.override_threads(number, before)


def policy():
    """The policy that holds for calls of this Python thread."""
    return "fixed" if _runtime.get_fixed() else "adaptive"


def _start():
    number, of_openmp, (stack, text) = _of_cnorm(), _of_openmp(), _of_stack()
    fixed = _of_policy()
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
    bound = any(os.environ.get(name) for name in BINDING)
    imported = _processors()

    def default():  # later: it reads files, which an import should not
        allowed = min(imported if bound else _processors(), MAX_THREADS)
        return min(allowed, _container_limit() or allowed)

    told = any(os.environ.get(name) for name in WAITING)
    _runtime.start_threads(number or 0, of_openmp or 0, default, stack, short, fixed, told)


_start()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_runtime.forked)

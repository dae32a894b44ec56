"""Memory of freed results, kept for the next ones: the bound, and how to give it back.

New memory of a few MB comes from the system page by page; touching it for the first time costs as
much as a kernel takes, and for a few KB the allocation takes as long as a norm. Results therefore
use the memory of freed results of their size, up to a bound. Memory comes back only when the last
array that refers to it is gone.
"""

import os

from . import _pool


def set_cache_limit(limit):
    """Set how many bytes of freed results are kept for the next ones.

    Parameters
    ----------
    limit : int
        Bytes; 0 keeps nothing. The default is 256 MiB. Of results of less than 512 KiB, at most
        4 MiB are kept.

    Raises
    ------
    TypeError, ValueError
        A limit that is not an integer, or negative.

    Examples
    --------
    >>> import cnorm
    >>> cnorm.set_cache_limit(64 << 20)
    >>> cnorm.set_cache_limit(256 << 20)
    """
    if isinstance(limit, bool) or not isinstance(limit, int):
        raise TypeError(f"limit must be a number of bytes, an int, but got {type(limit).__name__}")
    if limit < 0:
        raise ValueError(f"limit must not be negative, but got {limit}")
    _pool.set_limit(limit)


def empty_cache():
    """Give the memory of freed results back to the system.

    Examples
    --------
    >>> import cnorm
    >>> cnorm.empty_cache()
    """
    _pool.empty()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.forked)

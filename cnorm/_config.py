"""What this installation is and what it chose: for people, and for bug reports."""

import platform
import sys

import numpy as np

from . import _dispatch, _runtime
from ._threads import get_num_threads, policy
from ._version import __version__


def config():
    """The configuration as a dict: version, build, threads, and what they run on."""
    return {
        "version": __version__,
        "build": _dispatch.name(),
        "builds": list(_dispatch.built()),
        "available": list(_dispatch.available()),
        "openmp": _runtime.has_openmp(),
        "threads": get_num_threads(),
        "thread_policy": policy(),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "platform": f"{sys.platform} {platform.machine()}",
    }


def show_config():
    """Print the version, the build of the kernels in use, the builds there are, and the threads.

    Examples
    --------
    >>> import cnorm
    >>> cnorm.show_config()  # doctest: +ELLIPSIS
    version ...
    """
    entries = config()
    width = max(map(len, entries))
    for name, value in entries.items():
        text = ", ".join(value) if isinstance(value, list) else value
        print(f"{name:<{width}}  {text}")

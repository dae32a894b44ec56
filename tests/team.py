"""Threads for calls that are too small to start as many."""

from contextlib import contextmanager

import numpy as np

import cnorm
import cnorm.functional as F


@contextmanager
def team(n):
    """A block whose calls use `n` threads from 128 KiB on, which a larger call has started."""
    with cnorm.num_threads(n, policy="fixed"):
        F.rms_norm(np.ones((n, 1 << 14), np.float32), 1 << 14)  # 64 KiB for each
        yield

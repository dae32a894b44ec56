"""A batch whose parts lie on several ranks: its moments and sums from those of the parts."""

from functools import reduce

import numpy as np


def whole_moments(counts, moments):
    """Count, mean, its low part and M2 of all parts together.

    Merged in rank order, so that every rank has the same bits.

    Parameters
    ----------
    counts : ndarray, shape (P, C)
        Elements of each channel of each part, which masks may make different.
    moments : ndarray, shape (P, 3, C)
        Mean, its low part and M2 of each channel of each part.
    """
    with np.errstate(all="ignore"):
        return reduce(merged, zip(counts, *moments.swapaxes(0, 1), strict=True))


def whole_sums(sums):
    """What the parts' sums (P, k, C) add up to, in rank order too."""
    with np.errstate(all="ignore"):
        return reduce(np.add, sums)


def like(gradient, parameter):
    """A gradient per channel, in the shape and dtype of its parameter."""
    if parameter is None:
        return None
    if parameter.size == 1:  # one slope for all channels; added in order, as batch norm does
        gradient = np.add.accumulate(gradient)[-1:]
    return gradient.reshape(parameter.shape).astype(parameter.dtype)


def merged(a, b):
    """Moments of both: `merged` of kernels/moments.pxi, operation by operation, of channels."""
    count_a, mean_a, lo_a, m2_a = a
    count_b, mean_b, lo_b, m2_b = b
    if not np.any(count_a):
        return b
    if not np.any(count_b):
        return a
    count = count_a + count_b
    share = count_b / count
    delta = (mean_b - mean_a) + (lo_b - lo_a)
    step = lo_a + delta * share
    mean = mean_a + step
    whole = mean, (mean_a - mean) + step, m2_a + m2_b + delta * delta * (count_a * share)
    only_a, only_b = count_b == 0, count_a == 0
    return count, *(
        np.where(only_b, of_b, np.where(only_a, of_a, of_both))
        for of_both, of_a, of_b in zip(whole, a[1:], b[1:], strict=True)
    )

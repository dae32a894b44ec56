"""A batch whose parts lie on several ranks: its moments and sums from those of the parts."""

from functools import partial, reduce

import numpy as np

from .._call.moments import merge


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
    return reduce(partial(merge, settle=False), zip(counts, *moments.swapaxes(0, 1), strict=True))


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

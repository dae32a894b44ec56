"""`moments` and `standardize`: statistics over any axes."""

from typing import NamedTuple

import numpy as np

from .views import widen


class Moments(NamedTuple):
    """What `cnorm.Moments` has, in the shape of the kept axes."""

    count: np.ndarray
    mean: np.ndarray
    m2: np.ndarray

    def var(self, ddof=0):
        freedom = self.count - ddof
        return np.where(freedom > 0, self.m2 / np.where(freedom > 0, freedom, 1), np.nan)


def _selected(x, where, nan_policy):
    """Where an element counts."""
    where = np.broadcast_to(True if where is None else where, x.shape)
    if nan_policy == "raise" and np.isnan(x[where]).any():
        raise ValueError("the input contains NaN")
    return where & ~np.isnan(x) if nan_policy == "omit" else where


def moments(input, axis=None, *, where=None, nan_policy="propagate"):
    x = widen(input)
    counts = _selected(x, where, nan_policy)
    axes = tuple(range(x.ndim)) if axis is None else axis
    n = counts.sum(axes, keepdims=True).astype(x.dtype)
    some = np.maximum(n, 1)
    with np.errstate(invalid="ignore"):
        mean = np.where(counts, x, 0).sum(axes, keepdims=True) / some
        mean = mean + np.where(counts, x - mean, 0).sum(axes, keepdims=True) / some
        m2 = (np.where(counts, x - mean, 0) ** 2).sum(axes, keepdims=True)
        mean = np.where(n > 0, mean + (m2 - m2), np.nan)  # infinity makes its unit NaN
    return Moments(*(np.squeeze(a, axes) for a in (n, mean, m2 + (m2 - m2))))


def standardize(
    input, axis, mean=None, var=None, eps=0.0, *, ddof=0, where=None, nan_policy="propagate",
    clip=None, dtype=None, out=None, return_stats=False,
):  # fmt: skip
    x = widen(input)
    axes = tuple(range(x.ndim)) if axis is None else axis
    if mean is None:
        m = moments(input, axis, where=where, nan_policy=nan_policy)
        mean, var = m.mean, m.var(ddof)
    reduced = {a % x.ndim for a in np.atleast_1d(axes)}
    sizes = [1 if i in reduced else n for i, n in enumerate(x.shape)]
    kept = [n for i, n in enumerate(x.shape) if i not in reduced]
    mean, var = (
        np.broadcast_to(a, sizes if a.ndim == x.ndim else kept).reshape(sizes)
        for a in (widen(mean), widen(var))
    )
    std = np.sqrt(var + eps)
    rstd = 1 / np.where(std == 0, 1, std)
    y = (x - mean) * rstd
    if clip is not None:
        y = np.clip(y, *clip)
    if dtype is None:
        dtype = np.asarray(input).dtype if out is None else out.dtype
        dtype = np.float32 if dtype.kind in "iub" else dtype
    if out is None:
        out = np.zeros(x.shape, dtype)
    np.copyto(out, y, casting="unsafe", where=True if where is None else where)
    return (out, mean, rstd) if return_stats else out

"""`Moments`: count, mean and squared deviations of data that come in parts."""

import functools
import operator

import numpy as np

from ._call import moments as calls
from ._call.standardize import apply_moments
from ._version import install

FORMAT = 1  # of `to_dict`
_KEYS = ("format", "all_axes", "axis", "ndim", "shape", "count", "mean", "mean_low", "m2")


class Moments:
    """Count, mean and variance of data over some axes, which merge exactly.

    Each part of the data, wherever it is, has moments; those of all data are their sum. Everything
    is in double, whatever the dtype of the data. The mean is kept as two doubles, and merging is
    Chan's formula: for any split of the data the mean is within 4 eps of ``|mean| + std``, and
    `m2` within 64 eps, with the eps of float64. The same parts in the same order give equal bits,
    for every number of threads.

    A constant unit has an `m2` of exactly 0, which is never negative. NaN and infinity make their
    own unit NaN. The mean and the variance of nothing are NaN.

    Parameters
    ----------
    axis : int, tuple of int or None
        What is reduced, as in `numpy.var`: the order does not matter, and negative axes are those
        of the first data. None reduces all axes, of data of any shape, and merges with None alone.

    Attributes
    ----------
    axis : tuple of int or None
    count, mean, m2 : ndarray, float64
        Of each unit, in the shape of the kept axes, read-only. `m2` is the sum of the squared
        deviations from the mean. Before the first data their shape is ``()``, and the count 0.

    References
    ----------
    T. F. Chan, G. H. Golub, R. J. LeVeque, "Updating Formulae and a Pairwise Algorithm for
    Computing Sample Variances", 1979.

    Examples
    --------
    >>> import cnorm, numpy as np
    >>> x = np.arange(12.0).reshape(6, 2)
    >>> m = cnorm.Moments(axis=0)
    >>> for part in np.split(x, 3):
    ...     m = m.update(part)
    >>> m
    Moments(axis=(0,), shape=(2,), count=6)
    >>> m.mean, m.std(ddof=1).round(4)
    (array([5., 6.]), array([3.7417, 3.7417]))
    >>> from cnorm import functional as F
    >>> m == sum(F.moments(part, 0) for part in np.split(x, 3))
    True
    """

    __slots__ = ("_state",)
    __hash__ = None
    __array_ufunc__ = None  # ndarray + Moments is a TypeError, not an array of objects

    def __init__(self, axis=None):
        if isinstance(axis, np.ndarray) and axis.dtype.kind not in "iu":
            raise TypeError(
                f"axis must be None, an integer or a tuple of integers, but got an array of shape "
                f"{axis.shape}: cnorm.functional.moments(x, axis) takes the moments of x"
            )
        self._state = calls.as_axes(axis), None, (_frozen(np.zeros(())),) * 4

    @classmethod
    def _of(cls, axes, ndim, arrays):
        """Of `ndim` dimensions of the data, whose `axes` are resolved (None: all of any data)."""
        self = cls.__new__(cls)
        self._state = axes, None if axes is None else ndim, tuple(map(_frozen, arrays))
        return self

    @property
    def axis(self):
        """What is reduced: a sorted tuple, or None for all axes of any data."""
        return self._state[0]

    @property
    def _ndim(self):
        return self._state[1]

    @property
    def _arrays(self):
        return self._state[2]

    @property
    def _is_empty(self):
        """Whether there have been no data, so that the shape is not known."""
        axes, ndim, arrays = self._state
        return ndim is None and (axes is not None or not arrays[0] > 0)

    @property
    def count(self):
        """How many elements each unit has."""
        return self._arrays[0]

    @property
    def mean(self):
        """The mean of each unit, NaN where there are no elements."""
        count, mean, _, _ = self._arrays
        return _frozen(np.where(count > 0, mean, np.nan))

    @property
    def m2(self):
        """The sum of the squared deviations of each unit from its mean."""
        return self._arrays[3]

    @property
    def shape(self):
        """Sizes of the kept axes."""
        return self.count.shape

    def var(self, ddof=0):
        """The variance, ``m2 / (count - ddof)``; NaN where ``count <= ddof``.

        Parameters
        ----------
        ddof : float
            0 for the biased variance, with which norms normalize; 1 for the unbiased one.

        Returns
        -------
        ndarray, float64
            In the shape of the kept axes.
        """
        count, _, _, m2 = self._arrays
        return calls.variance(count, m2, _number(ddof, "ddof"))

    def std(self, ddof=0):
        """The square root of `var`."""
        return np.sqrt(self.var(ddof))

    # ---- parts ----

    def update(self, input, *, where=None, nan_policy="propagate"):
        """Merge the moments of more data into these: ``self + moments(input)``, to the bit.

        Parameters
        ----------
        input : array_like
            Of any float, integer or bool dtype; of a shape that agrees at the kept axes.
        where : array_like of bool, optional
            Which elements count; broadcasts to the input.
        nan_policy : "propagate", "omit" or "raise"
            What NaN does: makes its unit NaN, does not count, or raises a ValueError.

        Returns
        -------
        Moments
            Itself. Where the call raises, nothing has changed.

        Examples
        --------
        >>> import cnorm
        >>> cnorm.Moments().update([1, 2, 3]).update([4.0], nan_policy="raise").mean
        array(2.5)
        """
        if isinstance(input, Moments):
            raise TypeError("input must be data, but got Moments: a += b, or a + b, merges two")
        self._state = (self + moments(input, self.axis, where=where, nan_policy=nan_policy))._state
        return self

    def __add__(self, other):
        if isinstance(other, int) and other == 0:  # where sum() begins
            return self.copy()
        if isinstance(other, np.ndarray):
            raise TypeError("Moments add to Moments: update(array) merges more data")
        if not isinstance(other, Moments):
            return NotImplemented
        if other._is_empty:
            return self.copy()
        if self._is_empty:
            return other.copy()
        self._check(other, self.shape, other.shape)
        return self._of(self.axis, self._ndim, calls.merge(self._arrays, other._arrays))

    __radd__ = __add__

    def _check(self, other, shape, other_shape):
        """Whether both are moments of the same axes and shapes."""
        if self.axis != other.axis:
            raise ValueError(f"moments over axis={self.axis} and axis={other.axis} do not merge")
        if shape != other_shape or self._ndim != other._ndim:
            raise ValueError(
                f"moments of shapes {self.shape} and {other.shape} at their kept axes, of data of "
                f"{self._ndim} and {other._ndim} dimensions, do not fit together"
            )

    @staticmethod
    def merge(parts):
        """The sum of moments, from the first to the last.

        Parameters
        ----------
        parts : iterable of Moments
            At least one.

        Returns
        -------
        Moments

        Raises
        ------
        ValueError
            No parts, or parts of other axes or shapes.

        Examples
        --------
        >>> import cnorm.functional as F, cnorm
        >>> cnorm.Moments.merge([F.moments([1.0, 3.0]), F.moments([5.0])]).m2
        array(8.)
        """
        parts = _parts(parts)
        return functools.reduce(operator.add, parts, Moments(parts[0].axis))

    @staticmethod
    def concatenate(parts, axis):
        """Join moments of data that lie side by side along a kept axis.

        Parameters
        ----------
        parts : iterable of Moments
            Over the same axes, and of shapes that agree but along `axis`.
        axis : int
            A kept axis of the data, counted as in the data.

        Returns
        -------
        Moments

        Raises
        ------
        ValueError
            No parts, parts that do not fit together, or an axis that is reduced.

        Examples
        --------
        >>> import numpy as np, cnorm, cnorm.functional as F
        >>> x = np.arange(6.0).reshape(2, 3)
        >>> parts = [F.moments(x[:, :1], 0), F.moments(x[:, 1:], 0)]
        >>> cnorm.Moments.concatenate(parts, axis=1) == F.moments(x, 0)
        True
        """
        parts = _parts(parts)
        first = parts[0]
        for part in parts:
            if part._is_empty:
                raise ValueError("moments without data have no shape, and cannot be joined")
        at = first._kept_axis(axis)
        for part in parts[1:]:
            first._check(part, _without(first.shape, at), _without(part.shape, at))
        of_parts = zip(*(part._arrays for part in parts), strict=True)
        arrays = [np.concatenate(arrays, at) for arrays in of_parts]
        return first._of(first.axis, first._ndim, arrays)

    def reduce(self, axis):
        """Merge along kept axes: moments over more axes of the same data.

        Parameters
        ----------
        axis : int or tuple of int
            Kept axes of the data, counted as in the data.

        Returns
        -------
        Moments
            Over these axes too.

        Raises
        ------
        ValueError
            An axis that is reduced already, or that the data do not have.

        Examples
        --------
        >>> import numpy as np, cnorm.functional as F
        >>> x = np.arange(12.0).reshape(2, 3, 2)
        >>> m = F.moments(x, axis=2)
        >>> m.shape, m.reduce(0).shape
        ((2, 3), (3,))
        >>> m.reduce(0) == F.moments(x, axis=(0, 2))
        True
        """
        axes = calls.as_axes(axis)
        if axes is None:
            axes = self._kept()
        places = sorted({self._kept_axis(one) for one in axes}, reverse=True)
        kept = self._kept()
        axes = tuple(sorted((*self.axis, *(kept[at] for at in places))))
        arrays = self._arrays
        for at in places:
            arrays = _merged_along([np.moveaxis(a, at, 0) for a in arrays])
        return self._of(axes, self._ndim, arrays)

    def _kept(self):
        """The kept axes, as in the data."""
        if self.axis is None:
            return ()
        if self._ndim is None:
            raise ValueError("moments without data have no axes yet")
        return calls.kept_axes(self.axis, self._ndim)

    def _kept_axis(self, axis):
        """The place among the kept axes of an axis of the data."""
        kept = self._kept()
        (one,) = calls.as_axes(operator.index(axis))
        if self._ndim is not None:
            (one,) = calls.resolve_axes((one,), self._ndim)
        if one not in kept:
            raise ValueError(
                f"axis must be one of the kept axes {kept} of the data, but got {axis}: these are "
                f"moments over axis={self.axis}"
            )
        return kept.index(one)

    def allreduce(self, comm):
        """The sum over all ranks of an MPI communicator, in rank order: equal bits on every rank.

        Parameters
        ----------
        comm : mpi4py.MPI.Comm
            Or anything with its `allgather`. Every rank of it makes this call.

        Returns
        -------
        Moments

        Raises
        ------
        ValueError
            Ranks with other axes or shapes; on every rank.

        Examples
        --------
        >>> from mpi4py import MPI  # doctest: +SKIP
        >>> F.moments(own_part, 0).allreduce(MPI.COMM_WORLD).mean  # doctest: +SKIP
        """
        if not hasattr(comm, "allgather"):
            raise TypeError(
                f"comm must be a communicator of mpi4py, but got {type(comm).__name__}; "
                f"for mpi4py: {install('mpi')}"
            )
        return Moments.merge(comm.allgather(self))

    # ---- use ----

    def standardize(self, input, *, eps=0.0, ddof=0, where=None, clip=None, dtype=None, out=None):
        """``(input - mean) / sqrt(var + eps)`` with these moments.

        Parameters
        ----------
        input : array_like
            Of a shape that agrees at the kept axes. Of a ``numpy.ma`` array the mask holds as well
            as `where`, and the result is masked as it is.
        eps, ddof, clip, dtype, out
            As in `cnorm.functional.standardize`.
        where : array_like of bool, optional
            Which elements to standardize; broadcasts to the input. Elsewhere `out` keeps its value,
            and the result is 0 without `out`.

        Returns
        -------
        ndarray
            Of the input's shape.

        Raises
        ------
        TypeError
            A mask that is not of bools, an input that is not of numbers.
        ValueError
            Moments without data, shapes that do not fit together, eps out of range.

        Examples
        --------
        >>> import numpy as np, cnorm.functional as F
        >>> m = F.moments([[1.0, 2.0], [3.0, 6.0]], axis=0)
        >>> m.standardize([[2.0, 8.0]])
        array([[0., 2.]])
        >>> m.standardize([[4.0, 8.0], [np.nan, 0.0]], where=[[True, True], [False, True]])
        array([[ 2.,  2.],
               [ 0., -2.]])
        """
        return self._apply(input, eps, ddof, where, clip, dtype, out, inverse=False)

    def inverse(self, input, *, eps=0.0, ddof=0, where=None, dtype=None, out=None):
        """``input * sqrt(var + eps) + mean``: what `standardize` was given.

        Parameters
        ----------
        input : array_like
            Of a shape that agrees at the kept axes. Of a ``numpy.ma`` array the mask holds as well
            as `where`, and the result is masked as it is.
        eps, ddof, dtype, out
            As `standardize` had them.
        where : array_like of bool, optional
            Which elements to restore; broadcasts to the input. Elsewhere `out` keeps its value, and
            the result is 0 without `out`.

        Returns
        -------
        ndarray
            Of the input's shape.

        Raises
        ------
        TypeError
            A mask that is not of bools, an input that is not of numbers.
        ValueError
            Moments without data, shapes that do not fit together, eps out of range.

        Examples
        --------
        >>> import numpy as np, cnorm.functional as F
        >>> m = F.moments([[1.0, 2.0], [3.0, 6.0]], axis=0)
        >>> m.inverse([[0.0, 2.0]])
        array([[2., 8.]])
        >>> m.inverse([[1.0, 2.0], [np.nan, 0.0]], where=[[True, True], [False, True]])
        array([[3., 8.],
               [0., 4.]])
        """
        return self._apply(input, eps, ddof, where, None, dtype, out, inverse=True)

    def _apply(self, input, eps, ddof, where, clip, dtype, out, inverse):
        if self._is_empty and self.axis is not None:
            raise ValueError("these moments have no data yet: update them first")
        low = self._arrays[2]
        var = self.var(ddof)
        return apply_moments(
            input, self.axis, self.mean, low, var, eps, where, clip, dtype, out, inverse
        )

    # ---- other forms ----

    @classmethod
    def from_stats(cls, count, mean, var, axis, ddof=0):
        """From statistics that are known.

        Parameters
        ----------
        count : array_like
            Elements of each unit; broadcasts to the shape of `mean`.
        mean, var : array_like
            In the shape of the kept axes.
        axis : int, tuple of int or None
            What was reduced.
        ddof : float
            Of the variance.

        Returns
        -------
        Moments

        Raises
        ------
        ValueError
            A negative count or variance, or shapes that differ.

        Examples
        --------
        >>> import cnorm
        >>> m = cnorm.Moments.from_stats(3, [1.0, 2.0], [0.5, 0.25], axis=0)
        >>> m.count, m.m2
        (array([3., 3.]), array([1.5 , 0.75]))
        """
        axes = calls.as_axes(axis)
        mean, var, count = (
            calls.to_doubles(value, name)
            for value, name in ((mean, "mean"), (var, "var"), (count, "count"))
        )
        if var.shape != mean.shape:
            raise ValueError(f"var must have the shape {mean.shape} of mean, but got {var.shape}")
        if axes is None and mean.shape:
            raise ValueError(f"with axis=None mean must be a number, but got shape {mean.shape}")
        try:
            count = np.array(np.broadcast_to(count, mean.shape))
        except ValueError:
            raise ValueError(
                f"count must broadcast to the shape {mean.shape} of mean, but got {count.shape}"
            ) from None
        if not (count >= 0).all() or not np.isfinite(count).all():
            raise ValueError("count must not be negative, NaN or infinite")
        if (var < 0).any():
            raise ValueError("var must not be negative")
        ndim = None
        if axes is not None:
            ndim = mean.ndim + len(axes)
            axes = calls.resolve_axes(axes, ndim)
        with np.errstate(invalid="ignore", over="ignore"):
            freedom = count - _number(ddof, "ddof")
            m2 = np.where(freedom > 0, var * freedom, np.nan)  # else var says nothing
        mean = np.where(np.isfinite(mean), mean, np.nan)
        m2 = np.where(count > 1, m2, 0.0) + (mean - mean)
        mean, m2 = np.where(count > 0, (mean, m2), 0.0)
        return cls._of(axes, ndim, (count, mean, np.zeros(mean.shape), m2))

    def to_dict(self):
        """Arrays and ints, for `numpy.savez`, or for JSON after `tolist`.

        Examples
        --------
        >>> import json, numpy as np, cnorm, cnorm.functional as F
        >>> m = F.moments(np.arange(6.0).reshape(2, 3), axis=0)
        >>> text = json.dumps({k: np.asarray(v).tolist() for k, v in m.to_dict().items()})
        >>> cnorm.Moments.from_dict(json.loads(text)) == m
        True
        """
        axes, ndim, (count, mean, low, m2) = self._state
        return {
            "format": FORMAT,
            "all_axes": int(axes is None),
            "axis": np.array(axes or (), np.int64),
            "ndim": -1 if ndim is None else ndim,
            "shape": np.array(count.shape, np.int64),
            "count": count,
            "mean": mean,
            "mean_low": low,
            "m2": m2,
        }

    @classmethod
    def from_dict(cls, d):
        """What `to_dict` gave, also after a file: `d` is any mapping.

        Raises
        ------
        ValueError
            A key that is missing, another format, or values that do not fit together.
        """
        try:
            if int(d["format"]) != FORMAT:
                raise ValueError(f"format must be {FORMAT}, but got {d['format']}")
            axes = None if int(d["all_axes"]) else tuple(int(i) for i in np.ravel(d["axis"]))
            ndim = int(d["ndim"])
            shape = tuple(int(n) for n in np.ravel(d["shape"]))
            arrays = [
                np.array(d[name], np.float64).reshape(shape)
                for name in ("count", "mean", "mean_low", "m2")
            ]
        except KeyError:
            missing = next((name for name in _KEYS if name not in d), "format")
            raise ValueError(
                f"a dict of moments must have the key {missing!r}: np.savez(path, **m.to_dict()) "
                "stores one"
            ) from None
        if ndim < 0:
            self = cls(axes)
            if axes is None:
                self._state = None, None, tuple(map(_frozen, arrays))
            return self
        if axes is None or len(shape) + len(axes) != ndim:
            raise ValueError(f"moments of shape {shape} over axis={axes} of {ndim} dimensions")
        return cls._of(calls.resolve_axes(axes, ndim), ndim, arrays)

    def copy(self):
        """Moments of their own; the arrays are read-only, and shared."""
        other = type(self).__new__(type(self))
        other._state = self._state
        return other

    __copy__ = copy

    def __deepcopy__(self, memo):
        return self.copy()

    def __reduce__(self):
        return _restored, (type(self), *self._state)

    def __eq__(self, other):
        if not isinstance(other, Moments):
            return NotImplemented
        return (
            self.axis == other.axis
            and self._ndim == other._ndim
            and self.shape == other.shape
            and all(_same_bits(a, b) for a, b in zip(self._arrays, other._arrays, strict=True))
        )

    def __repr__(self):
        count = np.unique(self.count)
        if count.size == 0:
            shown = "0"
        elif count.size == 1:
            shown = f"{count[0]:.17g}"
        else:
            shown = f"{count[0]:.17g}..{count[-1]:.17g}"
        return f"Moments(axis={self.axis}, shape={self.shape}, count={shown})"


def moments(input, axis=None, *, where=None, nan_policy="propagate"):
    """`cnorm.functional.moments`."""
    axes = calls.as_axes(axis)
    ndim, *arrays = calls.measure(input, axes, where, nan_policy)
    resolved = None if axes is None else calls.resolve_axes(axes, ndim)
    return Moments._of(resolved, ndim, arrays)


def _frozen(a):
    """A read-only float64 array."""
    a = np.asarray(a, np.float64)
    a.flags.writeable = False
    return a


def _restored(cls, axes, ndim, arrays):
    self = cls.__new__(cls)
    self._state = axes, ndim, tuple(map(_frozen, arrays))
    return self


def _same_bits(a, b):
    same = a.view(np.int64) == b.view(np.int64) if a.ndim else a.tobytes() == b.tobytes()
    return bool(np.all(same | (np.isnan(a) & np.isnan(b))))


def _without(shape, at):
    return shape[:at] + shape[at + 1 :]


def _number(value, name):
    from ._call.arrays import to_float

    return to_float(value, name)


def _parts(parts):
    if isinstance(parts, Moments):
        raise TypeError("parts must be several Moments, [a, b], but got one: a + b merges two")
    parts = list(parts)
    if not parts:
        raise ValueError("parts must be at least one Moments, but got none")
    for part in parts:
        if not isinstance(part, Moments):
            raise TypeError(f"parts must be Moments, but got {type(part).__name__}")
    return parts


def _merged_along(arrays):
    """Merge along the first axis, in pairs of neighbours."""
    n = len(arrays[0])
    if n == 0:
        return [np.zeros(a.shape[1:]) for a in arrays]
    while n > 1:
        pairs = n // 2
        merged = calls.merge(
            [a[: 2 * pairs : 2] for a in arrays], [a[1 : 2 * pairs : 2] for a in arrays]
        )
        rest = [a[2 * pairs :] for a in arrays]
        arrays = [np.concatenate(both) for both in zip(merged, rest, strict=True)]
        n = len(arrays[0])
    return [a[0] for a in arrays]

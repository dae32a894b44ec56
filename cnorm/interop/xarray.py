"""Statistics and z-scores of xarray's arrays, over dimensions by name.

Arrays in memory are computed at once, by `cnorm.functional`; those of dask stay lazy, by
`cnorm.interop.dask`.
"""

import cnorm.functional as F

from ._missing import needs

with needs("xarray"):
    import xarray

__all__ = ["moments", "standardize"]


def moments(da, dim=None, *, where=None, nan_policy="propagate"):
    """`cnorm.functional.moments` over dimensions by name.

    Parameters
    ----------
    da : xarray.DataArray
        Of any float, integer or bool dtype.
    dim : str, iterable of str, or None
        What is reduced; None or ``...`` all dimensions.
    where : xarray.DataArray of bool, optional
        Which elements count, matched by the names of its dimensions; or an array that broadcasts.
    nan_policy : "propagate", "omit" or "raise"
        What NaN does.

    Returns
    -------
    cnorm.Moments, or dask.delayed.Delayed of them
        Delayed where `da` is chunked by dask.

    Examples
    --------
    >>> import numpy as np, xarray as xr, cnorm.interop.xarray as cx
    >>> da = xr.DataArray(np.arange(6.0).reshape(3, 2), dims=["time", "x"])
    >>> cx.moments(da, "time").mean
    array([2., 3.])
    """
    engine, data, axis = _opened(da, dim)
    return engine.moments(data, axis, where=_mask(where, da), nan_policy=nan_policy)


def standardize(da, dim, moments=None, eps=0.0, *, ddof=0, where=None, nan_policy="propagate",
                clip=None, dtype=None):  # fmt: skip
    """`cnorm.functional.standardize` over dimensions by name: the z-score.

    Parameters
    ----------
    da : xarray.DataArray
        Of any float, integer or bool dtype.
    dim : str, iterable of str, or None
        What shares its statistics; None or ``...`` all dimensions.
    moments : Moments, or Delayed of them, optional
        Statistics over the same dimensions, in place of those of `da`. Delayed only where `da` is
        chunked by dask.
    where : xarray.DataArray of bool, optional
        As in `moments`; the result is 0 where it is False.
    eps, ddof, nan_policy, clip, dtype
        As in `cnorm.functional.standardize`.

    Returns
    -------
    xarray.DataArray
        With the name, dimensions, coordinates and attributes of `da`, lazy where `da` is. How `da`
        was encoded in a file is left out: packed integers could not hold the result.

    Examples
    --------
    >>> import xarray as xr, cnorm.interop.xarray as cx
    >>> da = xr.DataArray([[1.0, 5.0], [3.0, 9.0]], [("time", [2024, 2025]), ("x", ["a", "b"])])
    >>> z = cx.standardize(da, "time")
    >>> z.sel(x="b").values, list(z.coords)
    (array([-1.,  1.]), ['time', 'x'])
    """
    engine, data, axis = _opened(da, dim)
    where = _mask(where, da)
    options = {"eps": eps, "ddof": ddof, "clip": clip, "dtype": dtype}
    if engine is not F:
        options |= {"where": where, "nan_policy": nan_policy}
        result = engine.standardize(data, axis, moments, **options)
    elif moments is None:
        result = F.standardize(data, axis, where=where, nan_policy=nan_policy, **options)
    else:
        _check_moments(moments, axis, da.ndim)
        if where is None and nan_policy != "raise":
            result = moments.standardize(data, **options)
        else:
            mean, var = moments.mean, moments.var(options.pop("ddof"))
            result = F.standardize(
                data, axis, mean, var, where=where, nan_policy=nan_policy, **options
            )
    result = da.copy(data=result)
    result.encoding = {}
    return result


def _check_moments(moments, axis, ndim):
    from .._moments import Moments

    if not isinstance(moments, Moments):
        raise TypeError(
            f"moments must be Moments for an array in memory, but got {type(moments).__name__}: "
            "compute() a Delayed first"
        )
    axis = tuple(sorted(axis))
    if moments.axis != axis and (moments.axis is not None or len(axis) < ndim):
        raise ValueError(f"moments must be over axis={axis}, but got axis={moments.axis}")


def _opened(da, dim):
    """(what computes, data, axes) of a DataArray."""
    if isinstance(da, xarray.Dataset):
        raise TypeError(
            "expected a DataArray, but got a Dataset: use ds.map(standardize, dim=...), which "
            "takes its arrays one after the other"
        )
    if not isinstance(da, xarray.DataArray):
        raise TypeError(f"expected a DataArray, but got {type(da).__name__}")
    if dim is None or dim is ...:
        dim = da.dims
    elif isinstance(dim, str) or not hasattr(dim, "__iter__"):
        dim = (dim,)
    axis = tuple(da.get_axis_num(name) for name in dim)
    if getattr(da.data, "__dask_graph__", None) is None:
        return F, da.data, axis
    from . import dask

    return dask, da.data, axis


def _mask(where, da):
    """`where` in the dimensions of `da`."""
    if not isinstance(where, xarray.DataArray):
        return where
    where = xarray.align(da, where, join="exact", copy=False)[1]
    extra = set(where.dims) - set(da.dims)
    if extra:
        raise ValueError(f"where has dimensions that the array does not have: {sorted(extra)}")
    return where.broadcast_like(da).transpose(*da.dims).data

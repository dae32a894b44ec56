"""Parameter: an array that a module learns, and its gradient."""

import numpy as np

from .._call.arrays import trust
from ._arrays import is_float, size_text


class Parameter(np.ndarray):
    """An array that a module learns.

    It behaves as its array does; arithmetic on it gives plain arrays.

    Parameters
    ----------
    data : array_like
        The value; an ndarray is shared, not copied.
    requires_grad : bool
        Whether `Module.backward` adds to `grad`.

    Attributes
    ----------
    grad : ndarray or None
        The gradient: shape and dtype of the parameter.

    Examples
    --------
    >>> import cnorm, numpy as np
    >>> p = cnorm.Parameter(np.float32([1, 2]))
    >>> p.grad is None
    True
    >>> type(p * 2).__name__
    'ndarray'
    """

    __slots__ = ("_grad", "requires_grad")
    __array_priority__ = -1.0  # np.concatenate and its like: plain arrays

    def __new__(cls, data, requires_grad=True):
        self = np.asarray(data).view(cls)
        if requires_grad and not is_float(self.dtype):
            from .. import _hints

            error = RuntimeError(
                f"Only arrays of floating point dtype can require gradients, not {self.dtype}"
            )
            raise _hints.noted(error, _hints.cast("data", self))
        self.requires_grad = bool(requires_grad)
        return self

    def __array_finalize__(self, obj):
        self._grad = None
        self.requires_grad = True

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **kwargs):
        if out is not None:
            kwargs["out"] = tuple(map(_plain, out))
        result = getattr(ufunc, method)(*map(_plain, inputs), **kwargs)
        if out is None or result is NotImplemented:
            return result
        return out[0] if len(out) == 1 else out

    @property
    def grad(self):
        return self._grad

    @grad.setter
    def grad(self, grad):
        self._grad = None if grad is None else self._fitting(grad)

    def _fitting(self, grad):
        """`grad` as a plain array, if it has the shape and the dtype of the parameter."""
        if not isinstance(grad, np.ndarray):
            raise TypeError(f"assigned grad must be an ndarray or None, not {type(grad).__name__}")
        if grad.shape != self.shape:
            raise RuntimeError(
                f"assigned grad has a shape of {size_text(grad.shape)}, "
                f"the parameter {size_text(self.shape)}"
            )
        if grad.dtype != self.dtype:
            raise RuntimeError(
                f"assigned grad has dtype {grad.dtype}, the parameter has {self.dtype}"
            )
        return _plain(grad)

    def _plus_grad(self, grad):
        """What `grad` becomes when `grad` is added to it; changes nothing."""
        total = grad if self._grad is None else self._grad + grad
        if type(total) is np.ndarray and total.dtype == self.dtype and total.shape == self.shape:
            return total
        return self._fitting(np.asarray(total).astype(self.dtype, copy=False))

    def requires_grad_(self, requires_grad=True):
        """Set `requires_grad`; returns the parameter."""
        self.requires_grad = bool(requires_grad)
        return self

    def _converted(self, dtype):
        """This parameter in `dtype`, its gradient too; itself where it has it already."""
        if self.dtype == dtype:
            return self
        other = type(self)(np.asarray(self).astype(dtype), self.requires_grad)
        if self._grad is not None:
            other._grad = self._grad.astype(dtype)
        return other

    # A copy and a pickle hold the value, not the gradient.

    def __deepcopy__(self, memo):
        memo[id(self)] = copy = type(self)(np.array(self), self.requires_grad)
        return copy

    def __reduce_ex__(self, protocol):
        return type(self), (_plain(self), self.requires_grad)


trust(Parameter)


def _plain(array):
    return array.view(np.ndarray) if isinstance(array, Parameter) else array

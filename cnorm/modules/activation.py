"""The activations a norm can carry, as layers of their own."""

import numpy as np

from .._call.checks import as_clip
from ._arrays import as_array, as_dtype, as_gradient, as_shape, check_device, check_number, is_float
from ._base import Module
from ._parameter import Parameter


class Activation(Module):
    """The base of the activations.

    `slope` and `clip` are what the functions take as ``negative_slope`` and ``clip``: one of them
    is None.
    """

    channel_axis = 1
    slope = None
    clip = None
    _call_is_forward = True

    def forward(self, input):
        x = as_array(input)
        if not is_float(x.dtype):
            from .. import _hints

            raise TypeError(_hints.floats("input", x))
        y = self._activate(x)
        self.keep(x)
        return y

    def backward(self, grad_output):
        (x,) = self.kept()
        grad_output = as_gradient(grad_output, x)
        grad_input = self._through(x, grad_output)
        self.accumulate(*self._gradients(x, grad_output))
        return grad_input

    def _activate(self, x):
        raise NotImplementedError

    def _through(self, x, grad_output):
        """The gradient of `x`, a new array."""
        raise NotImplementedError

    def _gradients(self, x, grad_output):
        return ()


class _Slope(Activation):
    """``x`` where it is positive, else ``x * slope``."""

    def _per_channel(self, x):
        """The slope, to broadcast against `x`; a float32 at least, to round the product once."""
        slope = self.slope
        if np.size(slope) > 1:
            shape = [1] * x.ndim
            shape[self.channel_axis] = slope.size
            if x.shape[self.channel_axis] != slope.size:
                from .. import _hints

                error = RuntimeError(
                    "Mismatch of parameter numbers and input channel size. Found parameter numbers"
                    f" = {slope.size} and channel size = {x.shape[self.channel_axis]}."
                )
                hint = _hints.other_axis(x.shape, self.channel_axis, slope.size)
                raise _hints.noted(error, hint)
            return np.asarray(slope).reshape(shape)
        slope = np.asarray(slope).item()
        return slope if x.itemsize > 2 else np.float32(slope)

    def _negative(self, x, values):
        """`values` times the slope, in the dtype of `x`."""
        return (values * self._per_channel(x)).astype(x.dtype, copy=False)

    def _activate(self, x):
        return np.where(x > 0, x, self._negative(x, x))

    def _through(self, x, grad_output):
        return np.where(x > 0, grad_output, self._negative(x, grad_output))


class ReLU(_Slope):
    """``max(x, 0)``.

    Examples
    --------
    >>> import cnorm, numpy as np
    >>> cnorm.ReLU()(np.array([-2.0, 3.0])) + 0
    array([0., 3.])
    """

    slope = 0.0

    def __init__(self):
        super().__init__()

    def _activate(self, x):
        return np.maximum(x, x.dtype.type(0))  # of -inf too


class LeakyReLU(_Slope):
    """``x`` where it is positive, else ``x * negative_slope``.

    Parameters
    ----------
    negative_slope : float
        What negative elements are multiplied by.

    Examples
    --------
    >>> import cnorm, numpy as np
    >>> cnorm.LeakyReLU(0.5)(np.array([-2.0, 3.0]))
    array([-1.,  3.])
    """

    def __init__(self, negative_slope=0.01):
        super().__init__()
        self.negative_slope = check_number(negative_slope, "negative_slope")

    @property
    def slope(self):
        return self.negative_slope

    def extra_repr(self):
        return f"negative_slope={self.negative_slope}"


class PReLU(_Slope):
    """``x`` where it is positive, else ``x * weight``, a learned slope.

    Parameters
    ----------
    num_parameters : int
        1, or the number of channels.
    init : float
        The slope at first.
    device : None or "cpu"
    dtype : dtype
        Of the slope; float32 by default.
    channel_axis : int
        Where the channels are. A norm that carries this activation uses its own.

    References
    ----------
    He et al., "Delving Deep into Rectifiers", 2015, https://arxiv.org/abs/1502.01852.

    Examples
    --------
    >>> import cnorm, numpy as np
    >>> cnorm.PReLU()(np.array([-2.0, 3.0]))
    array([-0.5,  3. ])
    """

    def __init__(self, num_parameters=1, init=0.25, device=None, dtype=None, *, channel_axis=1):
        super().__init__()
        check_device(device)
        self.num_parameters = num_parameters
        self.init = check_number(init, "init")
        self.channel_axis = channel_axis
        self.weight = Parameter(
            np.empty(as_shape(num_parameters, "num_parameters"), as_dtype(dtype))
        )
        self.reset_parameters()

    def reset_parameters(self):
        """Set the slope to `init`, in place."""
        self.weight.fill(self.init)

    @property
    def slope(self):
        return self.weight

    def _gradients(self, x, grad_output):
        wide = np.promote_types(x.dtype, np.float64)
        each = np.where(x > 0, 0, grad_output.astype(wide) * x)
        if self.weight.size > 1:
            others = np.delete(np.arange(x.ndim), self.channel_axis)
            grad = each.sum(tuple(others))
        else:
            grad = each.sum().reshape(1)
        return ((self.weight, grad),)

    def extra_repr(self):
        axis = "" if self.channel_axis == 1 else f", channel_axis={self.channel_axis}"
        return f"num_parameters={self.num_parameters}{axis}"


class Hardtanh(Activation):
    """``x`` within bounds: ``min_val`` where it is less, ``max_val`` where it is more.

    NaN stays NaN. The gradient is 0 where ``x`` is at a bound or beyond.

    Parameters
    ----------
    min_val, max_val : float or None
        The bounds; None leaves a side open.

    Raises
    ------
    ValueError
        Where `min_val` is larger than `max_val`, or one is NaN.

    Examples
    --------
    >>> import cnorm, numpy as np
    >>> cnorm.Hardtanh()(np.array([-2.0, 0.5, 3.0]))
    array([-1. ,  0.5,  1. ])
    """

    def __init__(self, min_val=-1.0, max_val=1.0):
        super().__init__()
        low = check_number(min_val, "min_val", optional=True)
        high = check_number(max_val, "max_val", optional=True)
        if low is not None and high is not None and low > high:
            raise ValueError(f"min_val must be at most max_val, but got {low} and {high}")
        as_clip((min_val, max_val))
        self.min_val = min_val
        self.max_val = max_val

    @property
    def clip(self):
        return self.min_val, self.max_val

    def _bounds(self, x):
        """The bounds in the dtype that `x` is compared in; NaN, which no number passes, is open."""
        wide = np.promote_types(x.dtype, np.float32)
        bounds = as_clip(self.clip) or (None, None)
        return (wide.type(np.nan if bound is None else bound) for bound in bounds)

    def _activate(self, x):
        low, high = self._bounds(x)
        y = np.where(x < low, low, x)
        return np.where(y > high, high, y).astype(x.dtype, copy=False)

    def _through(self, x, grad_output):
        low, high = self._bounds(x)
        return np.where((x <= low) | (x >= high), grad_output.dtype.type(0), grad_output)

    def extra_repr(self):
        return f"min_val={self.min_val}, max_val={self.max_val}"


class ReLU6(Hardtanh):
    """``min(max(x, 0), 6)``.

    References
    ----------
    Krizhevsky, "Convolutional Deep Belief Networks on CIFAR-10", 2010.

    Examples
    --------
    >>> import cnorm, numpy as np
    >>> cnorm.ReLU6()(np.array([-2.0, 3.0, 8.0])) + 0
    array([0., 3., 6.])
    """

    def __init__(self):
        super().__init__(0.0, 6.0)

    def extra_repr(self):
        return ""

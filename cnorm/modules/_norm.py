"""What all norms share: parameters, an optional activation, repr, and the way back."""

import operator

import numpy as np

from .._call.arrays import to_int
from ._arrays import as_array, as_dtype, as_gradient, check_device
from ._base import Module
from ._grad_mode import get_grad_mode
from ._parameter import Parameter
from .activation import Activation


def as_axis(axis, normalized_shape=None):
    """The argument `axis`: None, an int or a tuple of ints, one for each of `normalized_shape`."""
    if axis is None:
        return None
    try:
        if hasattr(axis, "__index__") and np.ndim(axis) == 0:
            found = operator.index(axis)
        else:
            found = tuple(operator.index(i) for i in axis)
    except TypeError:
        from .. import _hints

        raise TypeError(_hints.axes("axis", axis, True)) from None
    axes = found if isinstance(found, tuple) else (found,)
    if normalized_shape is not None and len(axes) != len(normalized_shape):
        from .. import _hints

        raise ValueError(_hints.axes_of_row(normalized_shape, axes))
    return found


def without_mask(module):
    """The error of a layer that takes no mask."""
    return TypeError(
        f"{type(module).__name__} takes no mask: call it without `where`, and the norms beside it "
        "one by one"
    )


class Norm(Module):
    """The base of the normalization layers.

    A subclass defines `_forward`, which returns the output and, if `keep`, a tuple of what
    backward needs, the input first; and `_backward`, which takes those, and the mask where there
    is one, and returns the gradients of the input, of what `_learned` names and, with PReLU, of
    its slope.
    """

    _learned = ("weight", "bias")
    _takes_where = True
    _call_is_forward = True

    def __init__(self, channel_axis=1, activation=None):
        super().__init__()
        to_int(channel_axis, "channel_axis")
        self.channel_axis = channel_axis
        if not isinstance(activation, Activation | None):
            from .. import _hints

            raise TypeError(
                "activation must be None, or a ReLU, LeakyReLU, PReLU, Hardtanh or ReLU6 module, "
                f"such as activation=cnorm.ReLU(), but got {_hints.described(activation)}"
            )
        self.register_module("activation", activation)

    def _new_parameters(self, shape, device, dtype, **wanted):
        """Create the parameters that are wanted, and None in the place of the others."""
        check_device(device)
        dtype = as_dtype(dtype)
        for name, want in wanted.items():
            parameter = Parameter(np.empty(shape, dtype)) if want else None
            self.register_parameter(name, parameter)

    def _check_slopes(self, channels):
        """Whether the slopes of a PReLU are one, or one for each of `channels`, where known."""
        size = np.size(getattr(self.activation, "slope", None))
        if channels and size not in (1, channels):
            from .. import _hints

            raise ValueError(_hints.slopes(size, channels))

    def reset_parameters(self):
        """Set the weight to ones and the bias to zeros, in place."""
        if self.weight is not None:
            self.weight.fill(1)
        if self.bias is not None:
            self.bias.fill(0)

    def forward(self, input, where=None):
        """Return the normalized input: a new array of its shape and dtype.

        Parameters
        ----------
        input : array_like
        where : ndarray of bool, optional
            Which elements count, as of the function; broadcasts to the input. The result is 0
            where it is False. Backward takes it too, by reference.
        """
        mode = get_grad_mode()
        keep = self.training if mode is None else mode
        activation = self.activation
        slope = clip = None
        if activation is not None:
            slope, clip = activation.slope, activation.clip
        if type(input) is not np.ndarray:
            input = as_array(input)
        output, kept = self._forward(input, keep, slope, clip, where)
        if keep and where is not None:
            kept = (*kept, where)
        self._pass[0] = kept if keep else None
        return output

    def _forward(self, input, keep, slope, clip, where):
        raise NotImplementedError

    def _backward(self, grad_output, slope, clip, input, *stats):
        raise NotImplementedError

    def backward(self, grad_output):
        """Return the gradient of the input of the last forward; add those of the parameters.

        Parameters
        ----------
        grad_output : array_like
            The gradient of what forward returned, of its shape and dtype.

        Raises
        ------
        RuntimeError
            Where no forward pass was kept, or `grad_output` has another shape.
        TypeError
            Where `grad_output` has another dtype.
        """
        input, *stats = self.kept()
        grad_output = as_gradient(grad_output, input)
        learned = [getattr(self, name) for name in self._learned]
        slope = clip = None
        if self.activation is not None:
            slope, clip = self.activation.slope, self.activation.clip
            learned += self.activation.parameters()
        grad_input, *gradients = self._backward(grad_output, slope, clip, input, *stats)
        self.accumulate(*zip(learned, gradients, strict=True))
        return grad_input

    def _options_repr(self):
        """cnorm's own options, where they are set."""
        text = "" if self.channel_axis == 1 else f", channel_axis={self.channel_axis}"
        return text if self.activation is None else f"{text}, activation={self.activation!r}"

    def __repr__(self):
        return f"{type(self).__name__}({self.extra_repr()}{self._options_repr()})"

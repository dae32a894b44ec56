"""Layer normalization: the last axes of the input, or any others."""

from .. import functional as F
from .._call.row_norms import layer_norm_keeping
from ._arrays import as_shape, check_flag, check_number
from ._docs import parameters_of
from ._grad_mode import get_grad_mode
from ._lazy import LazyRows
from ._norm import Norm, as_axis


class LayerNorm(Norm):
    """Layer normalization over the last axes, or over any others.

    ``y = (x - mean) / sqrt(var + eps) * weight + bias``, where mean and (biased) variance are
    those of one row: the elements of `normalized_shape`.

    Parameters
    ----------
    normalized_shape : int or sequence of int
        The last sizes of the input, or those at `axis`.
    eps : float
        Added to the variance. Not checked, as in torch: one below minus the variance gives NaN.
    elementwise_affine, bias : bool
        Whether there is a weight per element of a row, and with it a bias.
    device : None or "cpu"
    dtype : dtype
        Of the parameters; float32 by default.
    activation : None, ReLU, LeakyReLU, PReLU, Hardtanh or ReLU6
        Applied to the result in the same pass.
    axis : None, int or sequence of int
        Where the dimensions of `normalized_shape` are in the input; None is its end. With
        ``axis=1`` images are ``(N, C, H, W)``, as in ConvNeXt's ``LayerNorm2d``. The state is the
        same.

    References
    ----------
    Ba et al., "Layer Normalization", 2016, https://arxiv.org/abs/1607.06450.

    Examples
    --------
    >>> import cnorm, numpy as np
    >>> cnorm.LayerNorm(2)(np.float32([[1, 3], [7, 5]])).round(2)
    array([[-1.,  1.],
           [ 1., -1.]], dtype=float32)
    """

    axis = None  # of layers that were pickled before there was one

    def __init__(
        self, normalized_shape, eps=1e-5, elementwise_affine=True, bias=True, device=None,
        dtype=None, *, activation=None, axis=None,
    ):  # fmt: skip
        super().__init__(getattr(activation, "channel_axis", 1), activation)
        self.normalized_shape = as_shape(normalized_shape, "normalized_shape")
        lazy = isinstance(self, LazyRows)
        self.axis = as_axis(axis, None if lazy else self.normalized_shape)
        self.eps = check_number(eps, "eps")
        self.elementwise_affine = check_flag(elementwise_affine, "elementwise_affine")
        check_flag(bias, "bias")
        self._new_parameters(
            self.normalized_shape, device, dtype,
            weight=elementwise_affine, bias=elementwise_affine and bias,
        )  # fmt: skip
        self.reset_parameters()

    def forward(self, input, where=None):
        """Return the normalized input; `where` says which elements count, 0 elsewhere."""
        # Norm.forward written out: rows may be short, and then each call of a function shows.
        mode = get_grad_mode()
        keep = self.training if mode is None else mode
        activation, slope, clip = self.activation, None, None
        if activation is not None:
            slope, clip = activation.slope, activation.clip
        return layer_norm_keeping(
            self._pass, input, self.normalized_shape, self.weight, self.bias, self.eps,
            self.channel_axis, slope, clip, keep, self.axis, where,
        )  # fmt: skip

    def _backward(self, grad_output, slope, clip, input, stats, where=None):
        return F.layer_norm_backward(
            grad_output, input, self.normalized_shape, None, stats, self.weight,
            channel_axis=self.channel_axis, negative_slope=slope, clip=clip, bias=self.bias,
            axis=self.axis, where=where,
        )  # fmt: skip

    def extra_repr(self):
        return (
            f"{self.normalized_shape}, eps={self.eps}, "
            f"elementwise_affine={self.elementwise_affine}, bias={self.bias is not None}"
        )

    def _options_repr(self):
        axis = "" if self.axis is None else f", axis={self.axis}"
        return axis + super()._options_repr()


@parameters_of(LayerNorm)
class LazyLayerNorm(LazyRows, LayerNorm):
    """`LayerNorm` that takes the normalized shape from its first input, or from a load.

    It is the size of the last axis, or those at `axis`. After that it is a `LayerNorm`: its class
    changes too. Before, its parameters have no shape.

    Examples
    --------
    >>> import cnorm, numpy as np
    >>> norm = cnorm.LazyLayerNorm(axis=1)
    >>> y = norm(np.zeros((4, 3, 8, 8), np.float32))
    >>> type(norm).__name__, norm.normalized_shape
    ('LayerNorm', (3,))
    """

    cls_to_become = LayerNorm

    def __init__(
        self, eps=1e-5, elementwise_affine=True, bias=True, device=None, dtype=None, *,
        activation=None, axis=None,
    ):  # fmt: skip
        super().__init__(
            0, eps, elementwise_affine, bias, device, dtype, activation=activation, axis=axis
        )

"""Root mean square normalization: the last axes of the input, or any others, not centred."""

from .. import functional as F
from .._call.row_norms import rms_norm_keeping
from ._arrays import as_shape, check_flag, check_number
from ._docs import parameters_of
from ._grad_mode import get_grad_mode
from ._lazy import LazyRows
from ._norm import Norm, as_axis


class RMSNorm(Norm):
    """Root mean square normalization over the last axes, or over any others.

    ``y = x / sqrt(mean(x ** 2) + eps) * weight``, with the mean of one row: the elements of
    `normalized_shape`.

    Parameters
    ----------
    normalized_shape : int or sequence of int
        The last sizes of the input, or those at `axis`.
    eps : float or None
        Added to the mean square; None is the machine epsilon of the dtype computed in. Not
        checked, as in torch: one below minus the mean square gives NaN.
    elementwise_affine : bool
        Whether there is a weight per element of a row.
    device : None or "cpu"
    dtype : dtype
        Of the weight; float32 by default.
    activation : None, ReLU, LeakyReLU, PReLU, Hardtanh or ReLU6
        Applied to the result in the same pass.
    axis : None, int or sequence of int
        Where the dimensions of `normalized_shape` are in the input; None is its end.
    zero_centered_gamma : bool
        Whether the weight is stored less 1, as that of Gemma and Qwen3-Next: it starts at 0, and
        the factor is ``1 + weight``.

    References
    ----------
    Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019,
    https://arxiv.org/abs/1910.07467.

    Examples
    --------
    >>> import cnorm, numpy as np
    >>> cnorm.RMSNorm(2)(np.float32([[1, 7]])).round(2)
    array([[0.2, 1.4]], dtype=float32)
    """

    _learned = ("weight",)
    bias = None

    axis, zero_centered_gamma = None, False  # of layers that were pickled before they had them

    def __init__(
        self, normalized_shape, eps=None, elementwise_affine=True, device=None, dtype=None, *,
        activation=None, axis=None, zero_centered_gamma=False,
    ):  # fmt: skip
        super().__init__(getattr(activation, "channel_axis", 1), activation)
        self.normalized_shape = as_shape(normalized_shape, "normalized_shape")
        lazy = isinstance(self, LazyRows)
        self.axis = as_axis(axis, None if lazy else self.normalized_shape)
        self.zero_centered_gamma = bool(check_flag(zero_centered_gamma, "zero_centered_gamma"))
        self.eps = check_number(eps, "eps", optional=True)
        self.elementwise_affine = check_flag(elementwise_affine, "elementwise_affine")
        self._new_parameters(self.normalized_shape, device, dtype, weight=elementwise_affine)
        self.reset_parameters()

    def reset_parameters(self):
        """Set the weight to what multiplies by 1, in place."""
        if self.weight is not None:
            self.weight.fill(0 if self.zero_centered_gamma else 1)

    def forward(self, input, where=None):
        # Norm.forward written out: rows may be short, and then each call of a function shows.
        mode = get_grad_mode()
        keep = self.training if mode is None else mode
        activation, slope, clip = self.activation, None, None
        if activation is not None:
            slope, clip = activation.slope, activation.clip
        return rms_norm_keeping(
            self._pass, input, self.normalized_shape, self.weight, self.eps, self.channel_axis,
            slope, clip, keep, self.axis, self.zero_centered_gamma, where,
        )  # fmt: skip

    def _backward(self, grad_output, slope, clip, input, stats, where=None):
        return F.rms_norm_backward(
            grad_output, input, self.normalized_shape, stats, self.weight,
            channel_axis=self.channel_axis, negative_slope=slope, clip=clip,
            axis=self.axis, zero_centered_gamma=self.zero_centered_gamma, where=where,
        )  # fmt: skip

    def extra_repr(self):
        return (
            f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}"
        )

    def _options_repr(self):
        text = "" if self.axis is None else f", axis={self.axis}"
        text += ", zero_centered_gamma=True" if self.zero_centered_gamma else ""
        return text + super()._options_repr()


@parameters_of(RMSNorm)
class LazyRMSNorm(LazyRows, RMSNorm):
    """`RMSNorm` that takes the normalized shape from its first input, or from a load.

    It is the size of the last axis, or those at `axis`. After that it is an `RMSNorm`: its class
    changes too. Before, its weight has no shape.

    Examples
    --------
    >>> import cnorm, numpy as np
    >>> norm = cnorm.LazyRMSNorm()
    >>> y = norm(np.ones((4, 3), np.float32))
    >>> type(norm).__name__, norm.normalized_shape
    ('RMSNorm', (3,))
    """

    cls_to_become = RMSNorm

    def __init__(
        self, eps=None, elementwise_affine=True, device=None, dtype=None, *, activation=None,
        axis=None, zero_centered_gamma=False,
    ):  # fmt: skip
        super().__init__(
            0, eps, elementwise_affine, device, dtype, activation=activation, axis=axis,
            zero_centered_gamma=zero_centered_gamma,
        )  # fmt: skip

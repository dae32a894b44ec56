"""Root mean square normalization: the last axes of the input, not centred."""

from .. import functional as F
from .._call.rows import rms_norm_and_saved
from ._arrays import as_shape, check_number
from ._grad_mode import get_grad_mode
from ._norm import Norm


class RMSNorm(Norm):
    """Root mean square normalization over the last axes.

    ``y = x / sqrt(mean(x ** 2) + eps) * weight``, with the mean of one row: the elements of
    `normalized_shape`.

    Parameters
    ----------
    normalized_shape : int or sequence of int
        The last sizes of the input.
    eps : float or None
        Added to the mean square; None is the machine epsilon of the dtype computed in.
    elementwise_affine : bool
        Whether there is a weight per element of a row.
    device : None or "cpu"
    dtype : dtype
        Of the weight; float32 by default.
    activation : None, ReLU, LeakyReLU, PReLU, Hardtanh or ReLU6
        Applied to the result in the same pass.

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

    def __init__(
        self, normalized_shape, eps=None, elementwise_affine=True, device=None, dtype=None, *,
        activation=None,
    ):  # fmt: skip
        super().__init__(getattr(activation, "channel_axis", 1), activation)
        self.normalized_shape = as_shape(normalized_shape, "normalized_shape")
        self.eps = check_number(eps, "eps", optional=True)
        self.elementwise_affine = elementwise_affine
        self._new_parameters(self.normalized_shape, device, dtype, weight=elementwise_affine)
        self.reset_parameters()

    def forward(self, input):
        # Norm.forward written out: rows may be short, and then each call of a function shows.
        mode = get_grad_mode()
        keep = self.training if mode is None else mode
        activation, slope, clip = self.activation, None, None
        if activation is not None:
            slope, clip = activation.slope, activation.clip
        output, self._pass[0] = rms_norm_and_saved(
            input, self.normalized_shape, self.weight, self.eps, self.channel_axis, slope,
            clip, keep,
        )  # fmt: skip
        return output

    def _backward(self, grad_output, slope, clip, input, stats):
        return F.rms_norm_backward(
            grad_output, input, self.normalized_shape, stats, self.weight,
            channel_axis=self.channel_axis, negative_slope=slope, clip=clip,
        )  # fmt: skip

    def extra_repr(self):
        return (
            f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}"
        )

"""Layer normalization: the last axes of the input."""

from .. import functional as F
from .._call.rows import layer_norm_and_saved
from ._arrays import as_shape, check_number
from ._grad_mode import get_grad_mode
from ._norm import Norm


class LayerNorm(Norm):
    """Layer normalization over the last axes.

    ``y = (x - mean) / sqrt(var + eps) * weight + bias``, where mean and (biased) variance are
    those of one row: the elements of `normalized_shape`.

    Parameters
    ----------
    normalized_shape : int or sequence of int
        The last sizes of the input.
    eps : float
        Added to the variance.
    elementwise_affine, bias : bool
        Whether there is a weight per element of a row, and with it a bias.
    device : None or "cpu"
    dtype : dtype
        Of the parameters; float32 by default.
    activation : None, ReLU, LeakyReLU, PReLU, Hardtanh or ReLU6
        Applied to the result in the same pass.

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

    def __init__(
        self, normalized_shape, eps=1e-5, elementwise_affine=True, bias=True, device=None,
        dtype=None, *, activation=None,
    ):  # fmt: skip
        super().__init__(getattr(activation, "channel_axis", 1), activation)
        self.normalized_shape = as_shape(normalized_shape, "normalized_shape")
        self.eps = check_number(eps, "eps")
        self.elementwise_affine = elementwise_affine
        self._new_parameters(
            self.normalized_shape, device, dtype,
            weight=elementwise_affine, bias=elementwise_affine and bias,
        )  # fmt: skip
        self.reset_parameters()

    def forward(self, input):
        # Norm.forward written out: rows may be short, and then each call of a function shows.
        mode = get_grad_mode()
        keep = self.training if mode is None else mode
        activation, slope, clip = self.activation, None, None
        if activation is not None:
            slope, clip = activation.slope, activation.clip
        output, self._pass[0] = layer_norm_and_saved(
            input, self.normalized_shape, self.weight, self.bias, self.eps, self.channel_axis,
            slope, clip, keep,
        )  # fmt: skip
        return output

    def _backward(self, grad_output, slope, clip, input, stats):
        return F.layer_norm_backward(
            grad_output, input, self.normalized_shape, None, stats, self.weight,
            channel_axis=self.channel_axis, negative_slope=slope, clip=clip, bias=self.bias,
        )  # fmt: skip

    def extra_repr(self):
        return (
            f"{self.normalized_shape}, eps={self.eps}, "
            f"elementwise_affine={self.elementwise_affine}, bias={self.bias is not None}"
        )

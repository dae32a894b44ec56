"""Local response normalization: each element over a window of neighbouring channels."""

from .. import functional as F
from ._arrays import as_array, check_number, check_size
from ._norm import Norm, without_mask


class _ResponseNorm(Norm):
    _learned = ()
    _takes_where = False

    def __init__(self, size, alpha, beta, k, channel_axis, activation):
        super().__init__(channel_axis, activation)
        self.size = check_size(size, "size")
        self.alpha = check_number(alpha, "alpha")
        self.beta = check_number(beta, "beta")
        self.k = check_number(k, "k")

    def extra_repr(self):
        return f"{self.size}, alpha={self.alpha}, beta={self.beta}, k={self.k}"


class LocalResponseNorm(_ResponseNorm):
    """Local response normalization of ``(N, C, ...)`` input of 3 or more dimensions.

    ``y = x / (k + alpha / size * sum(x ** 2)) ** beta``, where the sum runs over ``size // 2``
    channels before, the channel itself, and ``(size - 1) // 2`` channels after.

    Parameters
    ----------
    size : int
        How many channels a window spans.
    alpha : float
        The weight of the sum of squares, which is divided by `size`.
    beta : float
        The exponent.
    k : float
        Added to the sum.
    channel_axis : int
        Where the channels are: 1, or -1 for channels last.
    activation : None, ReLU, LeakyReLU, PReLU, Hardtanh or ReLU6
        Applied to the result in the same pass.

    References
    ----------
    Krizhevsky et al., "ImageNet Classification with Deep Convolutional Neural Networks", 2012.

    Examples
    --------
    >>> import cnorm, numpy as np
    >>> cnorm.LocalResponseNorm(2, alpha=2, beta=1)(np.ones((1, 3, 1))).round(2).ravel()
    array([0.5 , 0.33, 0.33])
    """

    def __init__(
        self, size, alpha=1e-4, beta=0.75, k=1.0, *, channel_axis=1, activation=None
    ):  # fmt: skip
        super().__init__(size, alpha, beta, k, channel_axis, activation)

    def _forward(self, input, keep, slope, clip, where):
        if where is not None:
            raise without_mask(self)
        output = F.local_response_norm(
            input, self.size, self.alpha, self.beta, self.k, channel_axis=self.channel_axis,
            negative_slope=slope, clip=clip,
        )  # fmt: skip
        return output, (input,)

    def _backward(self, grad_output, slope, clip, input):
        gradients = F.local_response_norm_backward(
            grad_output, input, self.size, self.alpha, self.beta, self.k,
            channel_axis=self.channel_axis, negative_slope=slope, clip=clip,
        )  # fmt: skip
        return gradients if isinstance(gradients, tuple) else (gradients,)


class CrossMapLRN2d(_ResponseNorm):
    """Torch's legacy response norm of ``(N, C, H, W)`` input.

    It differs from `LocalResponseNorm`: the window is as wide on both sides, and channel 0, once
    in the running sum, never leaves it.

    Parameters
    ----------
    size : int
        How many channels a window spans.
    alpha : float
        The weight of the sum of squares, which is divided by `size`.
    beta : float
        The exponent.
    k : float
        Added to the sum.

    Examples
    --------
    >>> import cnorm, numpy as np
    >>> cnorm.CrossMapLRN2d(1, alpha=1, beta=1)(np.ones((1, 3, 1, 1))).round(2).ravel()
    array([0.5 , 0.33, 0.33])
    """

    def __init__(self, size, alpha=1e-4, beta=0.75, k=1):
        super().__init__(size, alpha, beta, k, 1, None)

    def forward(self, input, where=None):
        input = as_array(input)
        if input.ndim != 4:
            raise ValueError(f"CrossMapLRN2d: Expected input to be 4D, got {input.ndim}D instead.")
        return super().forward(input, where)

    def _forward(self, input, keep, slope, clip, where):
        if where is not None:
            raise without_mask(self)
        output = F.cross_map_lrn(input, self.size, self.alpha, self.beta, self.k)
        return output, (input,)

    def _backward(self, grad_output, slope, clip, input):
        return (
            F.cross_map_lrn_backward(
                grad_output, input, self.size, self.alpha, self.beta, self.k
            ),
        )  # fmt: skip

"""`normalize_image`: pixels minus a mean, by a deviation, of each channel."""

import numpy as np

from .views import widen


def normalize_image(
    input, mean, std, max_value=None, *, channel_axis=-1, out_channel_axis=None, dtype="float32",
    out=None,
):  # fmt: skip
    x = widen(input)
    sizes = [1] * x.ndim
    if np.size(mean) > 1 or np.size(std) > 1:
        sizes[channel_axis] = x.shape[channel_axis]
    mean, std = (np.broadcast_to(np.ravel(widen(a)), max(sizes, default=1)) for a in (mean, std))
    y = (x / (255 if max_value is None else max_value) - mean.reshape(sizes)) / std.reshape(sizes)
    if out_channel_axis is not None:
        y = np.moveaxis(y, channel_axis, out_channel_axis)
    if out is None:
        out = np.empty(y.shape, dtype)
    out[...] = y
    return out

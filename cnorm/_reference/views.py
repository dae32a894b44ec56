"""How a norm sees its input: `View` for norms over channels, `RowView` for those of rows."""

import math

import numpy as np


def widen(array):
    array = np.asarray(array)
    return array.astype(np.promote_types(array.dtype, np.float64))


class View:
    """An input seen in one of the shapes of the package's table, and the way back.

    `shape` turns ``N, C, S`` into the shape of the view. Rows give their shape as it is; their
    `channel_axis` only says along which axis a PReLU slope runs. With a mask (`select`) what does
    not count is read as 0, and written as 0, or not at all where `keeps` is set.
    """

    mask = None
    keeps = False

    def __init__(self, input, channel_axis, shape=lambda n, c, s: (n, c, s)):
        self.input = np.asarray(input)
        self.channel_axis = channel_axis
        self.is_rows = not callable(shape)
        if self.is_rows:
            self.shape = shape
        else:
            n, c, *spatial = np.moveaxis(self.input, channel_axis, 1).shape
            self.shape = shape(n, c, math.prod(spatial))

    def split(self, array):
        """An array of the input's shape, widened, in the shape of the view."""
        array = widen(array)
        if not self.is_rows:
            array = np.moveaxis(array, self.channel_axis, 1)
        array = array.reshape(self.shape)
        return array if self.mask is None else np.where(self.mask, array, 0)

    def join(self, array, out=None):
        """The way back: the input's shape, dtype and memory order, or into `out`."""
        if out is None:
            out = np.empty_like(self.input, dtype=self.input.dtype.newbyteorder("="))
        self.write(array, out if self.is_rows else np.moveaxis(out, self.channel_axis, 1))
        return out

    def write(self, array, into):
        """Write an array of the view's shape."""
        where = True
        if self.mask is not None:
            array = np.where(self.mask, array, 0)
            where = self.mask.reshape(into.shape) if self.keeps else True
        np.copyto(into, array.reshape(into.shape), where=where, casting="unsafe")

    def select(self, where, out=None):
        """Take a mask, and with it an `out`, which keeps what does not count."""
        if where is not None:
            whole = np.broadcast_to(where, np.shape(self.input))
            self.mask = self.split(whole).astype(bool)
            self.keeps = out is not None
        return self

    def spread(self, values, axes):
        """One value for each element of `axes`, to broadcast against the view."""
        return widen(values).reshape([n if i in axes else 1 for i, n in enumerate(self.shape)])

    def fill(self, array, axes):
        """The opposite of `spread`: an array with only the axes that are named."""
        shape = [n if i in axes else 1 for i, n in enumerate(self.shape)]
        return np.broadcast_to(array, shape).reshape([self.shape[i] for i in axes])

    def parameter_axes(self, values, axes):
        """The axes that a parameter has: `axes`, and that of the samples where it is (N, C)."""
        of_samples = np.ndim(values) == 2 and len(values) == self.shape[0] > 1
        return (0, *axes) if of_samples else axes

    def spread_parameter(self, values, axes):
        return self.spread(values, self.parameter_axes(values, axes))

    def gather(self, array, axes, like, shape):
        """The sum over all but `axes`: the gradient of a parameter such as `like`."""
        axes = self.parameter_axes(like, axes)
        total = array.sum(tuple(i for i in range(array.ndim) if i not in axes))
        if like is None:
            return total.reshape(shape).astype(np.promote_types(self.input.dtype, np.float32))
        return total.reshape(np.shape(like)).astype(np.asarray(like).dtype)

    def spread_slope(self, slope):
        """One slope, or one for each channel, to broadcast against the view."""
        if np.size(slope) == 1:
            return widen(slope).reshape(())
        channels_last = np.moveaxis(self.input, self.channel_axis, -1).shape
        slope = np.broadcast_to(np.ravel(slope), channels_last)
        return self.split(np.moveaxis(slope, -1, self.channel_axis))

    def gather_slope(self, array, slope):
        """The gradient of `slope` from its gradient at each element."""
        slope = np.asarray(slope)
        array = self.join(array, np.zeros(self.input.shape, array.dtype))
        if slope.size != 1:
            array = np.moveaxis(array, self.channel_axis, -1)
            total = array.sum(tuple(range(array.ndim - 1)))
        else:
            total = array.sum()
        return total.reshape(slope.shape).astype(slope.dtype)


class RowView(View):
    """An input seen as ``(M, L)``: the axes of the rows, then those of `normalized_shape`.

    `offset` is added to the weight, the only parameter then.
    """

    def __init__(self, input, normalized_shape, axis, channel_axis, offset=0):
        shape, ndim = np.shape(input), np.ndim(input)
        self.row = (normalized_shape,) if np.ndim(normalized_shape) == 0 else normalized_shape
        self.row = tuple(self.row)
        if axis is None:
            axis = range(ndim - len(self.row), ndim)
        inner = [i % ndim for i in np.atleast_1d(list(axis) if np.ndim(axis) else axis)]
        outer = [i for i in range(ndim) if i not in inner]
        self.order = outer + inner
        self.outer = tuple(shape[i] for i in outer)
        self.stats = tuple(1 if i in inner else n for i, n in enumerate(shape))
        self.offset = offset
        super().__init__(input, channel_axis, (math.prod(self.outer), math.prod(self.row)))

    def split(self, array):
        return super().split(np.transpose(array, self.order))

    def join(self, array, out=None):
        if out is None:
            out = np.empty_like(self.input, dtype=self.input.dtype.newbyteorder("="))
        self.write(array, out.transpose(self.order))
        return out

    def is_row(self, values):
        return np.ndim(values) == len(self.row)

    def spread_parameter(self, values, axes):
        values = widen(values) + self.offset
        if self.is_row(values):
            return self.spread(values, axes)
        values = np.broadcast_to(values.transpose(self.order), self.outer + self.row)
        return values.reshape(self.shape)

    def gather(self, array, axes, like, shape):
        if like is None or self.is_row(like):
            return super().gather(array, axes, like, shape)
        array = array.reshape(self.outer + self.row).transpose(np.argsort(self.order))
        alike = tuple(i for i, n in enumerate(np.shape(like)) if n == 1)
        return array.sum(alike, keepdims=True).astype(np.asarray(like).dtype)

    def parameter_axes(self, values, axes):
        return axes

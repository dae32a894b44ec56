"""The ways a NumPy user holds an array: each gives the values of an array in another layout."""

import numpy as np


def contiguous(a, axis=1):
    return np.ascontiguousarray(a)


def channels_last(a, axis=1):
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(a, axis, -1)), -1, axis)


def fortran(a, axis=1):
    return np.asfortranarray(a)


def cropped(a, axis=1):
    """Rows with a margin on either side, as in a crop of a larger image."""
    whole = _spoiled((*a.shape[:-1], a.shape[-1] + 5), a.dtype)
    view = whole[..., 2:-3]
    view[...] = a
    return view


def batch_strided(a, axis=1):
    """Every second sample."""
    view = _spoiled((2 * len(a), *a.shape[1:]), a.dtype)[::2]
    view[...] = a
    return view


def channels_last_cropped(a, axis=1):
    return np.moveaxis(cropped(np.moveaxis(a, axis, -1)), -1, axis)


def negative(a, axis=1):
    flipped = (slice(None, None, -1),) * a.ndim
    return np.ascontiguousarray(a[flipped])[flipped]


def scattered(a, axis=1):
    """No axis is contiguous."""
    view = _spoiled(tuple(2 * n + 1 for n in a.shape), a.dtype)[(slice(1, None, 2),) * a.ndim]
    view[...] = a
    return view


def broadcast(a, axis=1):
    """The first sample for every sample, in the memory of one. (Not the values of `a`.)"""
    return np.broadcast_to(a[:1], a.shape)


def broadcast_channels(a, axis=1):
    """The first channel for every channel. (Not the values of `a`.)"""
    first = np.moveaxis(a, axis, 0)[:1]
    return np.moveaxis(np.broadcast_to(first, (a.shape[axis], *first.shape[1:])), 0, axis)


def byte_swapped(a, axis=1):
    """The other byte order, where the dtype has one (bfloat16 has not)."""
    if a.dtype.isbuiltin != 1:
        return a
    return a.astype(a.dtype.newbyteorder())


def unaligned(a, axis=1):
    whole = np.empty(a.nbytes + 1, np.uint8)
    view = whole[1:].view(a.dtype).reshape(a.shape)
    view[...] = a
    return view


def read_only(a, axis=1):
    a = np.array(a)
    a.flags.writeable = False
    return a


def _spoiled(shape, dtype):
    """Memory where whatever is read by mistake shows."""
    return np.full(shape, np.nan, dtype)


LAYOUTS = [
    contiguous,
    channels_last,
    fortran,
    cropped,
    batch_strided,
    channels_last_cropped,
    negative,
    scattered,
    broadcast,
    broadcast_channels,
    byte_swapped,
    unaligned,
    read_only,
]

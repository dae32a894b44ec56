"""What the plan makes of an array: a table to read beside the documentation of `cnorm._plan`.

units: (outer, inner, segments, runs, elements), elements contiguous.
columns: (samples, rows, rows, rows, columns), columns contiguous.
"""

import numpy as np
import pytest
from cnorm._plan import plan


def nchw(*shape):
    return np.empty(shape, np.float32)


def nhwc(n, c, *spatial):
    """A transposed view of an array whose channels are last."""
    return np.moveaxis(np.empty((n, *spatial, c), np.float32), -1, 1)


def cropped(*shape):
    """Rows with a margin."""
    return np.empty((*shape[:-1], shape[-1] + 3), np.float32)[..., : shape[-1]]


def every_second(*shape):
    return np.empty((2 * shape[0], *shape[1:]), np.float32)[::2]


def reversed_rows(*shape):
    return np.empty(shape, np.float32)[..., ::-1]


def fortran(*shape):
    return np.empty(shape, np.float32, order="F")


def repeated(*shape):
    """One sample, as many times as asked for."""
    return np.broadcast_to(np.empty((1, *shape[1:]), np.float32), shape)


ROWS = [
    # the input                     axes of a row  family   sizes
    (nchw(768), 1, "units", (1, 1, 1, 1, 768)),
    (nchw(8, 128, 768), 1, "units", (1, 1024, 1, 1, 768)),
    (nchw(8, 128, 768), 2, "units", (1, 8, 1, 1, 128 * 768)),
    (nchw(8, 128, 768), 3, "units", (1, 1, 1, 1, 8 * 128 * 768)),
    (cropped(4, 5, 7), 1, "units", (1, 20, 1, 1, 7)),
    (cropped(4, 5, 7), 2, "units", (1, 4, 1, 5, 7)),
    (every_second(4, 5, 7), 1, "units", (4, 5, 1, 1, 7)),
    (every_second(4, 5, 7), 2, "units", (1, 4, 1, 1, 35)),
    (repeated(4, 5, 7), 1, "units", (4, 5, 1, 1, 7)),
    (reversed_rows(4, 5, 7), 1, "copy", None),
    (fortran(4, 5, 7), 1, "copy", None),
    (nhwc(4, 5, 7), 1, "copy", None),
]

# groups is 0 where the batch shares statistics, C for instance norm
CHANNELS = [
    # the input                groups  family     sizes
    (nchw(8, 6, 4, 5), 0, "units", (1, 6, 8, 1, 20)),
    (nchw(8, 6, 4, 5), 2, "units", (8, 2, 3, 1, 20)),
    (nchw(8, 6, 4, 5), 6, "units", (8, 6, 1, 1, 20)),
    (nchw(8, 6, 3, 4, 5), 0, "units", (1, 6, 8, 1, 60)),
    (cropped(8, 6, 4, 5), 0, "units", (1, 6, 8, 4, 5)),
    (cropped(8, 6, 4, 5), 2, "units", (8, 2, 3, 4, 5)),
    (every_second(8, 6, 4, 5), 0, "units", (1, 6, 8, 1, 20)),
    (repeated(8, 6, 4, 5), 0, "units", (1, 6, 8, 1, 20)),
    (nchw(8, 6), 0, "columns", (1, 1, 1, 8, 6)),
    (nchw(8, 6), 2, "columns", (8, 1, 1, 1, 6)),
    (nchw(8, 6, 1, 1), 0, "columns", (1, 1, 1, 8, 6)),
    (nhwc(8, 6, 4, 5), 0, "columns", (1, 1, 1, 160, 6)),
    (nhwc(8, 6, 4, 5), 2, "columns", (8, 1, 1, 20, 6)),
    (every_second(8, 6), 0, "columns", (1, 1, 1, 8, 6)),
    (reversed_rows(8, 6, 4, 5), 0, "copy", None),
    (fortran(8, 6, 4, 5), 0, "copy", None),
    (nchw(8, 1), 0, "columns", (1, 1, 1, 8, 1)),
    (nhwc(8, 1, 4, 5), 0, "units", (1, 1, 8, 1, 20)),
    (nhwc(8, 6, 4, 5)[:, :1], 0, "copy", None),
    (reversed_rows(8, 1, 4, 5), 1, "copy", None),
]


def _planned(*arrays, **options):
    x = arrays[0]
    strides = (a.strides for a in arrays)
    return plan(x.shape, *strides, itemsize=x.itemsize, **options)


@pytest.mark.parametrize(("x", "normalized", "family", "sizes"), ROWS, ids=range(len(ROWS)))
def test_rows(x, normalized, family, sizes):
    planned, shape, _ = _planned(x, normalized=normalized)
    assert planned == family
    assert sizes is None or shape == sizes


@pytest.mark.parametrize(("x", "groups", "family", "sizes"), CHANNELS, ids=range(len(CHANNELS)))
def test_channels(x, groups, family, sizes):
    planned, shape, _ = _planned(x, channel_axis=1, groups=groups)
    assert planned == family
    assert sizes is None or shape == sizes


@pytest.mark.parametrize("groups", [0, 2, 6])
def test_channel_axis_is_the_view_that_has_it_second(groups):
    moved = nhwc(8, 6, 4, 5)
    as_it_is = np.moveaxis(moved, 1, -1)
    assert _planned(as_it_is, channel_axis=-1, groups=groups) == _planned(
        moved, channel_axis=1, groups=groups
    )


def test_strides_lead_to_every_element():
    """Walking the plan visits what the array holds."""
    for x, groups, family, _ in CHANNELS:
        if family != "copy" and x.strides[0]:
            _, shape, (strides,) = _planned(x, channel_axis=1, groups=groups)
            walked = np.lib.stride_tricks.as_strided(x, shape, (*strides, x.itemsize))
            ends = np.lib.array_utils.byte_bounds
            assert ends(walked) == ends(x)
            assert walked.size == x.size


def test_all_arrays_of_a_call_must_fit():
    """Axes merge only where they are one in the input, the result and the gradient."""
    x = nchw(8, 6, 4, 5)
    assert _planned(x, x, x, channel_axis=1)[1] == (1, 6, 8, 1, 20)
    assert _planned(x, cropped(8, 6, 4, 5), x, channel_axis=1)[1] == (1, 6, 8, 4, 5)
    assert _planned(x, nhwc(8, 6, 4, 5), channel_axis=1)[0] == "copy"

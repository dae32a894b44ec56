"""Units and arrays of more than 2**31 elements: ``make test-large``, with 16 GB at hand."""

import numpy as np
import pytest

import cnorm.functional as F

pytestmark = pytest.mark.large
N = 2**31 + 4099


def _pattern(n):
    """float16 that averages 3 with variance 1, whose mean a 32-bit count would miss."""
    x = np.empty(n, np.float16)
    x[0::2], x[1::2] = 2, 4
    return x


def _ends(y):
    return [*y[:4].tolist(), *y[-4:].tolist()]


def test_one_row():
    x = _pattern(N + 1)
    y, mean, rstd = F.layer_norm(x, N + 1, eps=0, out=x, return_stats=True)
    assert mean.item() == 3
    assert rstd.item() == 1
    assert _ends(y) == [-1, 1] * 4


def test_many_rows():
    x = _pattern(2 * 2**30 + 64).reshape(-1, 64)
    y = F.layer_norm(x, 64, eps=0, out=x)
    assert _ends(y.ravel()) == [-1, 1] * 4


def test_one_channel():
    x = _pattern(N + 1).reshape(1, 1, -1)
    y, mean, _ = F.batch_norm(x, training=True, eps=1e-12, out=x, return_stats=True)
    assert mean.item() == 3
    assert _ends(y.ravel()) == [-1, 1] * 4


def test_columns():
    """Every column holds one value in its even rows and another in its odd ones."""
    rows = 2**26 + 2
    x = np.empty((rows, 32), np.float16)
    x[0::2], x[1::2] = 2, 4
    y, mean, _ = F.batch_norm(x, training=True, eps=1e-12, out=x, return_stats=True)
    assert (mean == 3).all()
    assert (y[-2] == -1).all()
    assert (y[-1] == 1).all()

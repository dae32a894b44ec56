"""What the functions do around the kernels, for few channels and for more than fit on the stack."""

import numpy as np
import pytest

import cnorm
import cnorm.functional as F

CHANNELS = [1, 3, 40, 700]
SHAPES = {"columns": lambda c: (9, c), "units": lambda c: (9, c, 5)}

FORWARD = {
    "batch_norm": lambda x, m, v, w, b, **how: F.batch_norm(x, m, v, w, b, True, **how),
    "batch_norm, evaluation": lambda x, m, v, w, b, **how: F.batch_norm(x, m, v, w, b, **how),
    "instance_norm": lambda x, m, v, w, b, **how: F.instance_norm(x, m, v, w, b, **how),
    "instance_norm, evaluation": lambda x, m, v, w, b, **how: F.instance_norm(
        x, m, v, w, b, False, **how
    ),
    "group_norm": lambda x, m, v, w, b, **how: F.group_norm(x, 1, w, b, **how),
}

KINDS = {
    "double": lambda a: a.astype(np.float64),
    "strided": lambda a: np.repeat(a, 3)[1::3],
    "reversed": lambda a: a[::-1].copy()[::-1],
    "swapped": lambda a: a.astype(a.dtype.newbyteorder("S")),
    "list": lambda a: a.tolist(),
    "parameter": cnorm.Parameter,
}


def calls():
    for name, forward in FORWARD.items():
        for layout, shape in SHAPES.items():
            if layout == "units" or not name.startswith("instance"):
                for channels in CHANNELS:
                    yield pytest.param(forward, shape(channels), id=f"{name}, {layout}, {channels}")


def vectors(rng, channels):
    """Running mean and variance, weight, bias."""
    return [rng.uniform(0.5, 2, channels).astype(np.float32) for _ in range(4)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("forward", "shape"), list(calls()))
def test_parameters_of_any_kind(forward, shape, kind, rng):
    x = rng.normal(size=shape).astype(np.float32)
    running, parameters = (vectors(rng, shape[1])[i : i + 2] for i in (0, 2))
    expected = forward(x, *map(np.copy, running), *parameters)
    parameters = map(KINDS[kind], parameters)
    np.testing.assert_array_equal(forward(x, *map(np.copy, running), *parameters), expected)


@pytest.mark.parametrize(("forward", "shape"), list(calls()))
def test_statistics_change_nothing(forward, shape, rng):
    """Asking for them, or for running ones, gives the same result."""
    x = rng.normal(size=shape).astype(np.float32)
    arrays = vectors(rng, shape[1])
    expected = forward(x, *map(np.copy, arrays))
    y, mean, rstd = forward(x, *map(np.copy, arrays), return_stats=True)
    np.testing.assert_array_equal(y, expected)
    assert mean.flags.owndata and rstd.flags.owndata, "they outlive the call"
    if forward not in (FORWARD["batch_norm, evaluation"], FORWARD["instance_norm, evaluation"]):
        np.testing.assert_array_equal(forward(x, None, None, *arrays[2:]), expected)


@pytest.mark.parametrize("kind", ["single", "double", "strided", "half"])
@pytest.mark.parametrize("shape", [(9, 1, 5), (9, 3, 5), (1, 3, 5), (300, 2, 3), (2, 700, 4)])
def test_running_statistics_of_instance_norm(shape, kind, rng):
    """The mean over the samples is NumPy's, to the bit."""
    x = rng.normal(3, 2, size=shape)
    kinds = {**KINDS, "single": np.copy, "half": lambda a: a.astype(np.float16)}
    running = [kinds[kind](a) for a in vectors(rng, shape[1])[:2]]
    before = [a.astype(np.float64) for a in running]
    _, mean, rstd = F.instance_norm(x, *running, momentum=0.25, eps=1e-30, return_stats=True)
    np.testing.assert_array_equal(
        running[0], (0.75 * before[0] + 0.25 * mean.mean(0)).astype(running[0].dtype)
    )
    variance = (rstd**-2).mean(0) * shape[2] / (shape[2] - 1)
    tolerance = 1e-3 if kind == "half" else 1e-6
    np.testing.assert_allclose(running[1], 0.75 * before[1] + 0.25 * variance, rtol=tolerance)


@pytest.mark.parametrize("name", ["instance_norm", "group_norm", "batch_norm"])
def test_out_over_the_parameters(name, rng):
    """A weight that lies in the memory of the result is read before it is written."""
    x = rng.normal(size=(4, 8, 6))
    out = rng.normal(size=x.shape)
    weight, bias = out.reshape(-1)[:16].reshape(2, 8)
    expected = FORWARD[name](x, None, None, weight.copy(), bias.copy())
    np.testing.assert_array_equal(FORWARD[name](x, None, None, weight, bias, out=out), expected)


@pytest.mark.parametrize("channels", [3, 700])
@pytest.mark.parametrize("samples", [1, 2, 9])
def test_gradients_have_the_parameters_shape_and_dtype(channels, samples, rng):
    x, dy = rng.normal(size=(2, samples, channels, 4)).astype(np.float32)
    _, mean, rstd = F.instance_norm(x, return_stats=True)
    sums = {np.dtype(np.float64): F.instance_norm_backward(dy, x, mean, rstd, np.ones(channels))}
    for dtype in map(np.dtype, (np.float32, np.float16, ">f8")):
        weight = np.ones((1, channels, 1), dtype)
        sums[dtype] = F.instance_norm_backward(dy, x, mean, rstd, weight)
        for got, whole in zip(sums[dtype][1:], sums[np.dtype(np.float64)][1:], strict=True):
            assert got.shape == weight.shape
            assert got.dtype == dtype.newbyteorder("=")
            np.testing.assert_array_equal(got.ravel(), whole.astype(dtype))
    for got, whole in zip(
        F.instance_norm_backward(dy, x, mean, rstd)[1:], sums[np.dtype(np.float64)][1:], strict=True
    ):
        assert got.shape == (channels,)
        np.testing.assert_array_equal(got, whole.astype(np.float32))

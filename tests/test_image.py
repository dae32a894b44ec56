"""normalize_image against the float64 formula: every value of 8 and 16 bits, layouts, errors."""

import ml_dtypes
import numpy as np
import pytest

import cnorm
import cnorm.functional as F

MEAN = np.array([0.485, 0.456, 0.406])
STD = np.array([0.229, 0.224, 0.225])
INTEGERS = [np.uint8, np.int8, np.uint16, np.int16]
FLOATS = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16]


def expected(x, mean, std, max_value, channel_axis=-1, out_channel_axis=None):
    shape = [1] * x.ndim
    if np.size(mean) > 1 or np.size(std) > 1:
        shape[channel_axis] = -1
    mean, std = (
        np.broadcast_to(np.reshape(a, -1), max(np.size(mean), np.size(std))) for a in (mean, std)
    )
    y = (x.astype(np.float64) / max_value - mean.reshape(shape)) / std.reshape(shape)
    return y if out_channel_axis is None else np.moveaxis(y, channel_axis, out_channel_axis)


def pixels(shape, dtype, seed=0):
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind in "iu":
        info = np.iinfo(dtype)
        return rng.integers(info.min, info.max, shape, dtype, endpoint=True)
    return rng.uniform(0, 1, shape).astype(dtype)


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("out", [np.float32, np.float64, np.float16])
def test_every_value_of_an_integer_dtype_is_the_rounded_formula(dtype, out):
    info = np.iinfo(dtype)
    one = np.arange(info.min, info.max + 1).astype(dtype)
    x = np.stack([one] * 3, axis=-1).reshape(16, -1, 3)
    # a mean that is one of the values: its result is exactly 0
    mean = np.array([127 / info.max, 0.456, 0.406])
    y = F.normalize_image(x, mean, STD, info.max, dtype=out)
    assert y.dtype == out
    np.testing.assert_array_equal(y, expected(x, mean, STD, info.max).astype(out))
    # few pixels are computed, many are looked up: results agree
    few = F.normalize_image(np.ascontiguousarray(x[3:4, :5]), mean, STD, info.max, dtype=out)
    np.testing.assert_array_equal(few, y[3:4, :5])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("out", FLOATS)
def test_floats(dtype, out):
    x = pixels((2, 9, 33, 3), dtype)
    y = F.normalize_image(x, MEAN, STD, 1.0, dtype=out)
    wide = expected(x, MEAN, STD, 1.0)
    eps = float(ml_dtypes.finfo(out).eps)
    bound = 4 * eps * np.maximum(np.abs(x.astype(np.float64)), MEAN) / STD
    assert y.dtype == out
    assert (np.abs(y.astype(np.float64) - wide) <= bound).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
@pytest.mark.parametrize("seed", range(12))
def test_layouts(dtype, seed):
    rng = np.random.default_rng(seed)
    ndim = int(rng.integers(1, 6))
    axis, to = (int(a) for a in rng.integers(-ndim, ndim, 2))
    shape = rng.integers(1, 9, ndim)
    shape[axis] = rng.integers(1, 5)
    other = (axis + 1) % ndim
    if seed % 3 == 0:
        shape[other] = 1500 if ndim > 1 else shape[other]
    x = pixels(tuple(shape * 2), dtype, seed)[tuple(slice(0, n * 2, 1 + seed % 2) for n in shape)]
    x = x.transpose(rng.permutation(ndim))
    if seed % 4 == 1:
        x = x[::-1]
    if seed % 4 == 2:
        x = x.astype(x.dtype.newbyteorder(), order="K")
    channels = x.shape[axis]
    mean, std = rng.uniform(0.3, 0.6, channels), rng.uniform(0.1, 0.3, channels)
    wide = expected(x, mean, std, 255.0, axis, to)
    result = F.normalize_image(x, mean, std, 255.0, channel_axis=axis, out_channel_axis=to)
    assert result.flags.c_contiguous and result.shape == wide.shape
    np.testing.assert_allclose(result, wide, rtol=1e-6, atol=1e-6)
    out = np.full((*wide.shape, 2), 7, np.float32)[..., 0]
    if seed % 2:
        out = np.zeros(wide.shape[::-1], np.float32).T
    again = F.normalize_image(x, mean, std, 255.0, channel_axis=axis, out_channel_axis=to, out=out)
    assert again is out
    np.testing.assert_array_equal(again, result)


def test_integers_are_divided_as_numpy_divides(build):
    """To the bit, for constants within the range of the division by reciprocals and beyond it."""
    rng = np.random.default_rng(0)
    x = np.arange(1 << 16, dtype=np.uint16)
    for seed in range(12):
        top, std = 2.0 ** rng.uniform(-16, 32, 2)
        mean = rng.choice([0, -1, 1]) * 2.0 ** rng.uniform(-40, 20)
        if seed == 0:
            top, mean, std = 65535, x[4321] / 65535, np.nextafter(2, 1)
        elif seed == 1:
            top, std = 1e-70, -3e80
        y = F.normalize_image(x, mean, std, top, dtype=np.float64)
        assert np.array_equal(y, (x / top - mean) / std), (top, mean, std)


def test_results_do_not_depend_on_threads():
    x = pixels((4, 181, 171, 3), np.uint8)
    before = cnorm.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 7):
            cnorm.set_num_threads(threads)
            results.append(F.normalize_image(x, MEAN, STD, out_channel_axis=1))
    finally:
        cnorm.set_num_threads(before)
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])
    np.testing.assert_array_equal(results[0], expected(x, MEAN, STD, 255, -1, 1).astype(np.float32))


@pytest.mark.parametrize("shape", [(), (7,), (40, 50), (3, 40, 50), (2, 3, 4, 5, 6)])
def test_scalars_take_any_rank(shape):
    x = pixels(shape, np.uint8)
    y = F.normalize_image(x, 0.5, [0.25])
    np.testing.assert_array_equal(y, expected(x, 0.5, 0.25, 255).astype(np.float32))


def test_one_mean_for_all_channels_and_a_std_for_each():
    x = pixels((6, 5, 3), np.uint8)
    np.testing.assert_array_equal(
        F.normalize_image(x, 0.5, STD), expected(x, np.full(3, 0.5), STD, 255).astype(np.float32)
    )


def test_in_place_of_floats():
    x = pixels((5, 6, 3), np.float32)
    result = F.normalize_image(x, MEAN, STD, 1)
    assert F.normalize_image(x, MEAN, STD, 1, out=x) is x
    np.testing.assert_array_equal(x, result)


def test_empty():
    assert F.normalize_image(np.zeros((0, 4, 3), np.uint8), MEAN, STD).shape == (0, 4, 3)


IMAGE = np.zeros((4, 5, 3), np.uint8)


@pytest.mark.parametrize(
    ("arguments", "keywords", "error", "message"),
    [
        ((IMAGE, MEAN, [1, 0, 1]), {}, ValueError, "std must not be 0"),
        ((np.zeros((4, 5, 4), np.uint8), MEAN, STD), {}, ValueError, "3 values.*4 channels.*RGBA"),
        ((IMAGE, MEAN, STD[:2]), {}, ValueError, "std has 2 values.*3 channels"),
        (
            (IMAGE.astype(np.uint16), MEAN, STD),
            {},
            ValueError,
            "max_value must be given for dtype uint16",
        ),
        ((IMAGE, MEAN, STD, 0), {}, ValueError, "max_value must be positive"),
        ((IMAGE, MEAN, STD, np.inf), {}, ValueError, "max_value must be positive and finite"),
        ((IMAGE, MEAN, STD, "255"), {}, TypeError, "max_value"),
        ((IMAGE.astype(np.int32), MEAN, STD), {}, TypeError, "got dtype int32"),
        ((IMAGE.astype(bool), MEAN, STD), {}, TypeError, "got dtype bool"),
        ((IMAGE.astype(complex), MEAN, STD), {}, TypeError, "got dtype complex128"),
        ((IMAGE, MEAN, STD), {"dtype": np.uint8}, TypeError, "dtype must be float32"),
        ((IMAGE, MEAN, STD), {"channel_axis": 3}, ValueError, "channel_axis 3 is out of bounds"),
        ((IMAGE, MEAN, STD), {"out_channel_axis": 3}, ValueError, "out_channel_axis 3 is out of"),
        (
            (IMAGE, MEAN, STD),
            {"out": np.zeros((4, 5, 3))},
            TypeError,
            "out must have dtype float32",
        ),
        ((IMAGE, MEAN, STD), {"out": np.zeros((3, 4, 5), "f")}, ValueError, "out must have shape"),
        ((IMAGE, MEAN[None].repeat(2, 0), STD), {}, ValueError, "mean must be a number or have"),
        ((np.ma.masked_array(IMAGE), MEAN, STD), {}, TypeError, "masked array"),
        ((None, MEAN, STD), {}, TypeError, "input must be an array"),
        ((IMAGE, None, STD), {}, TypeError, "mean must be a number"),
    ],
)
def test_errors(arguments, keywords, error, message):
    with pytest.raises(error, match=message):
        F.normalize_image(*arguments, **keywords)


def test_explain_names_a_copy():
    x = pixels((2, 3, 4, 3), np.uint16)
    swapped = x.astype(x.dtype.newbyteorder())
    assert "copied" in str(cnorm.explain(F.normalize_image, swapped, MEAN, STD, 65535))
    assert "copied" not in str(cnorm.explain(F.normalize_image, x, MEAN, STD, 65535))

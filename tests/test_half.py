"""float16 and bfloat16: computed in float32 or wider, rounded once and to even."""

import digests
import layouts
import ml_dtypes
import numpy as np
import pytest
from operations import check, oracle

import cnorm.functional as F
from cnorm import _dispatch

HALVES = [np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)]


@pytest.fixture(params=HALVES, ids=str)
def half(request):
    return request.param


def _through(values):
    """The values as they pass a kernel that neither shifts nor scales them."""
    n = len(values)
    return F.batch_norm(values.reshape(1, n, 1), np.zeros(n), np.ones(n), eps=0.0).ravel()


def _every(half):
    return np.arange(1 << 16, dtype=np.uint16).view(half)


def test_every_value_passes_unchanged(build, half):
    """Subnormals, infinities and both zeros too; a NaN stays a NaN."""
    values = _every(half)
    np.testing.assert_array_equal(_through(values).astype(float), values.astype(float))


def test_results_round_to_nearest_even(build, half):
    """Every finite value times 1 + 2**-k, rounded from float32 as the type itself rounds."""
    values = _every(half)
    values = values[np.isfinite(values.astype(float))]
    n = len(values)
    for factor in (1 + 2.0**-8, 1 - 2.0**-9, 1 + 2.0**-11, 1.5, 0.5, 1 / 3, 2.0**-20):
        factor = np.float32(factor)
        weight = np.full(n, factor)
        with np.errstate(over="ignore"):
            expected = (values.astype(np.float32) * factor).astype(half).astype(float)
        y = F.batch_norm(values.reshape(1, n, 1), np.zeros(n), np.ones(n), weight, eps=0.0)
        np.testing.assert_array_equal(y.ravel().astype(float), expected, err_msg=str(factor))


@pytest.fixture
def integers():
    """bfloat16 rounded in integers, where the processor else rounds it itself."""
    if "avx512" not in _dispatch.available():
        pytest.skip("the build that rounds by the processor does not run here")
    with _dispatch.using("avx512"):
        if not _dispatch.kernels.round_bfloat16(True):
            pytest.skip("this processor has no AVX512_BF16")
        _dispatch.kernels.round_bfloat16(False)
        yield
        _dispatch.kernels.round_bfloat16(True)


def test_every_bfloat16_passes_unchanged_in_integers(integers):
    test_every_value_passes_unchanged("avx512", HALVES[1])


def test_bfloat16_rounds_to_nearest_even_in_integers(integers):
    test_results_round_to_nearest_even("avx512", HALVES[1])


@pytest.mark.parametrize(
    "shape", [(5, 12, 19, 33), (40, 6, 5, 5), (401, 96), (7, 17), (3, 6, 4003)], ids=str
)
def test_who_rounds_bfloat16_changes_no_bits(operation, shape, rng, integers):
    """Results among them that are subnormal as a float, or no numbers."""
    if not operation.accepts(shape, 1):
        return
    x, dy = rng.normal(size=(2, *shape)).astype(HALVES[1])
    x.reshape(-1)[:2] = np.inf, np.nan
    dy[-1] *= HALVES[1].type(1e-39)
    for layout in (layouts.contiguous, layouts.channels_last):
        p = operation.draw(rng, shape, 1, np.float32)
        for parameter in ("weight", "bias"):
            if parameter in p:
                p[parameter].reshape(-1)[::3] *= np.float32(1e-39)
        found = []
        for by_processor in (False, True):
            _dispatch.kernels.round_bfloat16(by_processor)
            found.append(digests.digest(operation.run(F, layout(x), layout(dy), p)))
        assert found[0] == found[1], layout.__name__


def test_overflow_is_infinity(build):
    x = np.full((1, 6, 16), 60000, np.float16)
    y = F.batch_norm(x, np.zeros(6), np.ones(6), np.full(6, 1.5))
    assert np.isposinf(y).all()


@pytest.mark.parametrize("of_parameters", ["float32", "half", "float64"])
def test_parameters(build, operation, half, of_parameters, rng):
    """float32, float64 or half parameters; their gradients are of the same type."""
    parameters = half if of_parameters == "half" else np.dtype(of_parameters)
    for shape in [(9, 6), (4, 6, 35), (4, 6, 5, 7)]:
        if operation.accepts(shape, 1):
            x, dy = rng.normal(0.5, 1, (2, *shape)).astype(half)
            p = operation.draw(rng, shape, 1, parameters)
            actual = operation.run(F, x, dy, p)
            check(actual, oracle(operation, x, dy, p), half, dy, f"{operation} {shape}")
            for name in ("weight", "bias"):
                if f"grad_{name}" in actual:
                    assert actual[f"grad_{name}"].dtype == parameters


@pytest.mark.parametrize("n", [1, 15, 16, 17, 31, 33, 4099])
def test_parameters_mean_what_their_values_mean(build, half, n, rng):
    """Every half is the same weight as the float32 of its value, wherever it lies."""
    x, dy = rng.normal(size=(2, 3, n)).astype(half)
    values = rng.permutation(_every(half))[:n]
    values[~np.isfinite(values.astype(float))] = 1
    wide = values.astype(np.float32)
    places = [
        values,
        np.repeat(values, 2)[::2],
        layouts.unaligned(values),
        layouts.byte_swapped(values),
    ]
    _, mean, rstd = F.layer_norm(x, n, return_stats=True)
    for weight in places:
        for run in (
            lambda w: F.layer_norm(x, n, w, w),
            lambda w: F.layer_norm_backward(dy, x, n, mean, rstd, w)[0],
            lambda w: F.batch_norm(x, weight=w, bias=w, training=True),
            lambda w: F.batch_norm(x.astype(float), weight=w, bias=w, training=True),
            lambda w: F.layer_norm(x.astype(float), n, w, w),
        ):
            a, b = (run(w).view(np.uint8) for w in (weight, wide))
            np.testing.assert_array_equal(a, b)


def test_a_gradient_is_rounded_once(build, half):
    """1 + 2**-k is half way between two halves, and what is less than a float holds decides."""
    bits, tiny = (11, 2.0**-24) if half == np.float16 else (8, 2.0**-40)
    step = 2.0 ** -(bits - 1)
    for sign in (1, -1):
        for rest, expected in ((tiny, 1 + step), (0, 1), (-tiny, 1)):
            dy = np.zeros((1000, 33), half)  # rows of several blocks, which are summed in double
            dy[0], dy[300], dy[600] = sign, sign * step / 2, sign * rest
            x, statistic = np.zeros_like(dy), np.ones((1000, 1))
            weight = np.ones(33, half)
            db = F.layer_norm_backward(dy, x, 33, statistic, statistic, weight)[2]
            np.testing.assert_array_equal(db.astype(float), sign * expected)


def test_running_statistics_keep_their_type(half, rng):
    for float_type in (half, np.dtype(np.float32)):
        mean, var = np.zeros(6, float_type), np.ones(6, float_type)
        x = rng.normal(3, 2, (8, 6, 35)).astype(half)
        F.batch_norm(x, mean, var, training=True)
        assert mean.dtype == var.dtype == float_type
        np.testing.assert_allclose(
            mean.astype(float), 0.1 * x.astype(float).mean((0, 2)), rtol=1e-2
        )


def test_sums_of_squares_do_not_overflow(build):
    """300**2 is no float16."""
    x = np.where(np.indices((4, 6, 64)).sum(0) % 2, 300, -300).astype(np.float16)
    for y in (F.layer_norm(x, 64), F.rms_norm(x, 64), F.batch_norm(x, training=True)):
        np.testing.assert_array_equal(np.abs(y), 1)


def test_long_half_rows_keep_their_mean(build, half, rng):
    """The sum of a hundred thousand halves needs more than a half."""
    x = rng.normal(100, 1, (2, 100_001)).astype(half)
    y = F.layer_norm(x, 100_001).astype(float)
    wide = x.astype(float)
    expected = (wide - wide.mean(1, keepdims=True)) / wide.std(1, keepdims=True)
    rounding = 0.51 * float(ml_dtypes.finfo(half).eps)
    assert (np.abs(y - expected) <= rounding * np.abs(expected) + 1e-5).all()


def test_a_mix_of_half_types_is_refused_or_right(rng):
    """The residual or the gradient of another type than the input."""
    x = rng.normal(size=(4, 8)).astype(np.float16)
    dy = rng.normal(size=(4, 8)).astype(np.float32)
    _, mean, rstd = F.layer_norm(x, 8, return_stats=True)
    with pytest.raises(TypeError, match="dtype"):
        F.layer_norm_backward(dy, x, 8, mean, rstd)

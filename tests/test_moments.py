"""Moments and standardize against NumPy in long double; their merge; bits; what is refused."""

import copy
import io
import itertools
import json
import os
import pickle
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import pytest
from schedule import STRATEGIES

import cnorm
import cnorm.functional as F
from cnorm import Moments, _dispatch

EPS = 2.0**-52
DTYPES = [
    np.dtype(t) for t in ("f2", "f4", "f8", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "?")
]
DTYPES.append(np.dtype(ml_dtypes.bfloat16))


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def exact(x, axes, mask=True):
    """Count, mean and M2 in long double, reduced axes kept."""
    x = np.asarray(x).astype(np.longdouble)
    mask = np.broadcast_to(mask, x.shape)
    count = mask.sum(axes, keepdims=True).astype(np.longdouble)
    mean = np.where(mask, x, 0).sum(axes, keepdims=True) / np.maximum(count, 1)
    mean = mean + np.where(mask, x - mean, 0).sum(axes, keepdims=True) / np.maximum(count, 1)
    d = np.where(mask, x - mean, 0)
    return count, mean, (d * d).sum(axes, keepdims=True)


def close(m, x, axes, mask=True):
    """The promise: the mean within 4 eps of |mean| + std, M2 within 64 eps of itself."""
    count, mean, m2 = (np.squeeze(a, axes) for a in exact(x, axes, mask))
    some = count > 0
    std = np.sqrt(m2 / np.maximum(count, 1))
    assert np.array_equal(m.count, count.astype(float))
    assert (np.abs(m.mean - mean) <= 4 * EPS * (np.abs(mean) + std))[some].all()
    assert (np.abs(m.m2 - m2) <= 64 * EPS * m2)[some].all()
    assert (m.m2[some] >= 0).all()
    assert np.isnan(m.mean[~some]).all()
    return True


def draw(rng, shape, dtype):
    if dtype.kind == "b":
        return rng.random(shape) < 0.4
    if dtype.kind in "iu":
        low = max(np.iinfo(dtype).min, -(2**50))
        return rng.integers(low, min(np.iinfo(dtype).max, 2**50), shape, dtype, endpoint=True)
    offset = rng.choice([0, 3, 100 if dtype.itemsize == 2 else 1e8])
    return (rng.normal(size=shape) + offset).astype(dtype)


def arrange(rng, x):
    """The same values in another order of memory."""
    kind = rng.integers(0, 6)
    if kind == 1:
        return np.asfortranarray(x)
    if kind == 2:
        order = rng.permutation(x.ndim)
        return np.ascontiguousarray(x.transpose(order)).transpose(np.argsort(order))
    if kind == 3:
        return x[tuple(slice(None, None, int(rng.choice([-1, 1]))) for _ in x.shape)]
    if kind == 4:
        return np.repeat(x, 2, -1)[..., ::2]
    if kind == 5:  # cropped
        wide = np.pad(x.astype(np.float64), 1).astype(x.dtype)
        return wide[tuple(slice(1, -1) for _ in x.shape)]
    return x


def mask_for(rng, shape):
    kind = rng.integers(0, 4)
    if kind == 0:
        return rng.random(shape) < rng.choice([0.1, 0.5, 0.99])
    if kind == 1:
        return rng.random(tuple(int(rng.choice([1, n])) for n in shape)) < 0.7
    if kind == 2:
        return np.ones(shape, bool)
    return None


def cases(number, seed):
    rng = np.random.default_rng(seed)
    while number:
        ndim = rng.integers(1, 6)
        shape = tuple(int(n) for n in rng.choice([1, 2, 3, 5, 7, 17, 33, 70, 1100], ndim))
        if np.prod(shape) > 100_000:
            continue
        number -= 1
        axes = rng.choice(ndim, rng.integers(0, ndim + 1), replace=False)
        axes = tuple(int(a) for a in sorted(axes))
        x = arrange(rng, draw(rng, shape, DTYPES[rng.integers(len(DTYPES))]))
        cnorm.set_num_threads(int(rng.integers(1, 4)))
        yield x, axes, mask_for(rng, shape)


@pytest.fixture(autouse=True)
def same_threads_afterwards():
    before = cnorm.get_num_threads()
    yield
    cnorm.set_num_threads(before)


@pytest.mark.parametrize("seed", range(4))
def test_any_axes_dtypes_layouts_and_masks(seed):
    for x, axes, mask in cases(100, seed):
        m = F.moments(x, axes, where=mask)
        close(m, x, axes, True if mask is None else mask)
        if mask is not None and mask.all():
            assert F.moments(x, axes) == m  # to the bit
        if axes and x.shape[axes[0]] > 1:  # any split gives the moments of all
            cut = [1, x.shape[axes[0]] // 2 + 1, x.shape[axes[0]]]
            cut = [slice(a, b) for a, b in itertools.pairwise([0, *cut])]
            at = (slice(None),) * axes[0]
            masks = [
                None if mask is None else np.broadcast_to(mask, x.shape)[(*at, c)] for c in cut
            ]
            parts = [F.moments(x[(*at, c)], axes, where=w) for c, w in zip(cut, masks, strict=True)]
            close(sum(parts), x, axes, True if mask is None else mask)
            assert sum(parts) == Moments.merge(parts)


@pytest.mark.parametrize("seed", range(2))
def test_standardize_any_axes_dtypes_layouts_and_masks(seed):
    for x, axes, mask in cases(100, 10 + seed):
        where = True if mask is None else np.broadcast_to(mask, x.shape)
        y, mean, rstd = F.standardize(x, axes, where=mask, return_stats=True)
        count, mu, m2 = exact(x, axes, where)
        std = np.sqrt(m2 / np.maximum(count, 1))
        std = np.where(std == 0, 1, std)
        expected = np.where(where, (x.astype(np.longdouble) - mu) / std, 0)
        some = np.broadcast_to(count > 0, x.shape)
        eps = float(ml_dtypes.finfo(y.dtype).eps)
        tolerance = eps * np.abs(expected) + 8 * EPS * (1 + np.abs(mu) / std)
        tolerance = tolerance + float(ml_dtypes.finfo(y.dtype).smallest_subnormal)
        assert (np.abs(y.astype(np.longdouble) - expected) <= tolerance)[some].all()
        assert mean.shape == rstd.shape == count.shape
        assert y.dtype == (x.dtype if x.dtype.kind not in "iub" else np.float32)
        z = F.standardize(x, axes, mean, 1 / rstd**2, where=mask)
        assert (np.abs(z.astype(float) - y.astype(float)) <= 2 * tolerance)[some].all()


def test_a_unit_is_what_its_conversion_to_double_is(rng):
    for dtype, shape, axis in itertools.product(
        DTYPES, [(3, 5003), (513, 70), (700, 3), (4, 9, 50)], (0, 1, None)
    ):
        x = draw(rng, shape, dtype)
        if dtype.itemsize < 8:
            assert F.moments(x, axis) == F.moments(x.astype(np.float64), axis)


def test_every_value_of_small_integers():
    for dtype in (np.uint8, np.int8, np.uint16, np.int16):
        info = np.iinfo(dtype)
        x = np.arange(info.min, info.max + 1).astype(dtype)
        mean, std = np.longdouble("17.25"), np.longdouble("3.7")
        y = F.standardize(x, 0, float(mean), float(std) ** 2)
        expected = (x.astype(np.longdouble) - mean) / np.sqrt(np.longdouble(float(std) ** 2))
        ulp = np.spacing(np.abs(expected).astype(np.float32))
        assert (np.abs(y - expected) <= 0.5001 * ulp).all()
        close(F.moments(x), x, (0,))


def test_integers_beyond_the_mantissa_are_rounded():
    x = np.array([2**63 - 1, -(2**63), 2**53 + 1], np.int64)
    assert F.moments(x) == F.moments(x.astype(np.float64))
    x = np.array([2**64 - 1, 2**53 + 1, 2**63 + 1025], np.uint64)
    assert F.moments(x) == F.moments(x.astype(np.float64))


@pytest.mark.parametrize("shape, axis", [((60_000,), 0), ((20_000, 3), 0), ((3, 20_000), 1)])
@pytest.mark.parametrize("mean", [0, 1e8, -1e12])
def test_hostile_means_in_any_number_of_parts(rng, shape, axis, mean):
    x = rng.normal(mean, 1, shape)
    for parts in (1, 2, 3, 64, 1000):
        m = Moments(axis)
        for part in np.array_split(x, parts, axis):
            m.update(part)
        close(m, x, (axis,))


def test_float32_data_whose_numpy_mean_is_wrong():
    x = np.full((2**22, 4), 4.4, np.float32)
    assert abs(x.mean(0)[0] - 4.4) > 1e-3
    m = F.moments(x, 0)
    assert (m.mean == np.float64(np.float32(4.4))).all()
    assert (m.m2 == 0).all()


@pytest.mark.parametrize("value", [0.1, 3.0, -7.3, 1e-300, 1e300, -1e308])
@pytest.mark.parametrize(
    "shape, axis",
    [((40_000,), None), ((5000, 37), 0), ((37, 5000), 1), ((4000, 3), 0), ((3, 99, 5), 1)],
)
def test_a_constant_has_no_variance(value, shape, axis):
    m = F.moments(np.full(shape, value), axis)
    assert (m.m2 == 0).all()
    assert (np.abs(m.mean - value) <= 4 * EPS * abs(value)).all()
    assert (F.standardize(np.full(shape, value), axis) == 0).all() or abs(value) < 1e-200
    assert ((m + m + m).m2 == 0).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("axis", [0, 1])
def test_nan_and_infinity_make_their_own_unit_nan(rng, bad, axis):
    x = rng.normal(size=(70, 90))
    x[3, 4] = bad
    for m in (F.moments(x, axis), F.moments(x, axis, where=np.ones((70, 1), bool))):
        found = [
            np.argwhere(np.isnan(a)).ravel().tolist() for a in (m.mean, m.m2, m.var(), m.std())
        ]
        assert found == [[4 if axis == 0 else 3]] * 4
    total = F.moments(x, axis) + F.moments(x, axis)
    assert np.isnan(total.mean).sum() == np.isnan(total.m2).sum() == 1


@pytest.mark.parametrize("axis", [0, 1, None])
def test_nan_policy(rng, axis):
    x = rng.normal(5, 1, (70, 90)).astype(np.float32)
    x[rng.random(x.shape) < 0.1] = np.nan
    x[:, 7] = np.nan
    mask = rng.random(x.shape) < 0.8
    axes = (0, 1) if axis is None else (axis,)
    for where in (None, mask):
        counts = ~np.isnan(x) if where is None else ~np.isnan(x) & where
        m = F.moments(x, axis, where=where, nan_policy="omit")
        close(m, np.nan_to_num(x), axes, counts)
        y = F.standardize(x, axis, where=where, nan_policy="omit")
        shown = True if where is None else where
        assert np.isnan(y[np.isnan(x) & shown]).all()
        some = np.broadcast_to(counts.sum(axes, keepdims=True) > 0, x.shape)
        assert np.isfinite(y[counts & some]).all()
        with pytest.raises(ValueError, match="contains NaN"):
            F.moments(x, axis, where=where, nan_policy="raise")
        with pytest.raises(ValueError, match="contains NaN"):
            F.standardize(x, axis, 0, 1, where=where, nan_policy="raise")
    clean = ~np.isnan(x)
    assert F.moments(x, axis, where=clean, nan_policy="raise") == F.moments(x, axis, where=clean)
    x = np.nan_to_num(x)
    x[0, 0] = np.inf  # no NaN
    assert F.moments(x, axis, nan_policy="raise") == F.moments(x, axis)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8])
def test_a_padded_sample_has_the_bits_of_the_sample_alone(rng, dtype):
    lengths = [0, 1, 17, 300, 512]
    x = (rng.normal(100, 20, (5, 512, 40))).astype(dtype)
    mask = (np.arange(512) < np.array(lengths)[:, None])[:, :, None]
    m = F.moments(x, (1, 2), where=mask)
    y = F.standardize(x, (1, 2), where=mask)
    for i, n in enumerate(lengths[1:], 1):
        alone = F.moments(x[i, :n])
        assert (alone.count, alone.mean, alone.m2) == (m.count[i], m.mean[i], m.m2[i])
        assert np.array_equal(y[i, :n], F.standardize(x[i, :n], None))
        assert not y[i, n:].any()


SHAPES = [(37_003,), (3, 17_021), (40, 300), (1100, 70), (4000, 3), (6, 200, 65), (2, 3, 16_401)]


STRATEGY = ("STRATEGY_ANY", "TWO_SWEEPS", "UNIT_BY_UNIT", "UNIT_BATCHES", "ROW_RANGES")
STRATEGY += ("SAMPLES_PER_THREAD",)


@pytest.mark.parametrize("dtype", ["f4", "f8", "i2"])
def test_bits_depend_on_nothing_but_values_and_shape(rng, dtype):
    runs = list(itertools.product(_dispatch.available(), (1, 2, 3), STRATEGY))
    for shape in SHAPES:
        x = draw(rng, shape, np.dtype(dtype))
        mask = rng.random(shape) < 0.6
        for axis in (0, -1, None):
            first = None
            for build, threads, strategy in runs:
                with _dispatch.using(build), cnorm.num_threads(threads):
                    _dispatch.kernels.force_strategy(STRATEGIES[strategy])
                    try:
                        found = (F.moments(x, axis), F.moments(x, axis, where=mask))
                        found += (F.standardize(x, axis).tobytes(),)
                    finally:
                        _dispatch.kernels.force_strategy(0)
                first = first or found
                assert found == first, (shape, axis, build, threads, strategy)


MACHINES = [(1 << 12, 1 << 14, 1 << 12), (1 << 15, 1 << 20, 1 << 25)]  # L1, L2, L3: tiny, large


@pytest.mark.parametrize("x_dtype", ["f2", "f4", "f8", "u1", "i4"])
def test_standardize_rounds_one_formula(rng, x_dtype):
    kernels = _dispatch.kernels
    _dispatch.learn_caches()
    before = kernels.set_machine(*MACHINES[0])
    ways = itertools.cycle(itertools.product(MACHINES, ("STRATEGY_ANY", "TWO_SWEEPS"), (1, 3)))
    try:
        for shape, axis in [((67, 300), 1), ((67, 300), 0), ((900, 7), 0), ((5, 12, 200), (0, 2)),
                            ((6, 30, 41), 1), ((3001,), None), ((700, 9), 1)]:  # fmt: skip
            x = draw(rng, shape, np.dtype(x_dtype))
            axes = tuple(range(x.ndim)) if axis is None else axis
            m = F.moments(x, axes)
            std = np.where(m.std() == 0, 1, m.std())
            mean, lo = (np.expand_dims(a, axes) for a in m._arrays[1:3])
            for y_dtype, (clip, inverse) in itertools.product(
                ("f2", "f4", "f8"), [(None, False), ((-0.5, 1), False), (None, True)]
            ):
                scale = np.expand_dims(std if inverse else 1 / std, axes)
                wide = x.astype(np.float64)
                with np.errstate(over="ignore"):
                    y = (wide * scale + lo) + mean if inverse else ((wide - mean) - lo) * scale
                    expected = (y if clip is None else np.clip(y, *clip)).astype(y_dtype)
                machine, strategy, threads = next(ways)
                kernels.set_machine(*machine)
                kernels.force_strategy(STRATEGIES[strategy])
                out = np.empty(x.size + 16, y_dtype)[threads:][: x.size].reshape(shape)
                with cnorm.num_threads(threads):
                    if inverse:
                        m.inverse(x, out=out)
                    else:
                        F.standardize(x, axes, clip=clip, out=out)
                kernels.force_strategy(0)
                how = shape, axis, y_dtype, clip, inverse, machine, strategy, threads
                assert out.tobytes() == expected.tobytes(), how
    finally:
        kernels.force_strategy(0)
        kernels.set_machine(*before)


def test_moments_are_pickled_copied_and_kept_in_files(rng):
    x = rng.normal(size=(20, 3, 5))
    for m in (F.moments(x, 1), F.moments(x), Moments(), Moments(-1), F.moments(x[:0], 0)):
        buffer = io.BytesIO()
        np.savez(buffer, **m.to_dict())
        buffer.seek(0)
        text = json.dumps({k: np.asarray(v).tolist() for k, v in m.to_dict().items()})
        with np.load(buffer) as file:
            others = [
                pickle.loads(pickle.dumps(m)),
                copy.copy(m),
                copy.deepcopy(m),
                Moments.from_dict(file),
                Moments.from_dict(json.loads(text)),
            ]
        for other in others:
            assert other == m
            assert other is not m
            assert repr(other) == repr(m)
            for array in (other.count, other.mean, other.m2):
                assert array.dtype == np.float64
                with pytest.raises(ValueError, match="read-only"):
                    array[...] = 0
        before = m.copy()
        others[0].update(x)
        assert m == before  # nothing is shared that changes


def test_sums(rng):
    x = rng.normal(1e4, 1, (1000, 7))
    parts = [F.moments(part, 0) for part in np.array_split(x, 7)]
    updated = Moments(0)
    for part in np.array_split(x, 7):
        before = updated.copy()
        assert updated.update(part) is updated
        assert updated == before + F.moments(part, 0)
    assert sum(parts) == updated == Moments.merge(parts) == Moments.merge(iter(parts))
    assert sum(parts, Moments(0)) == 0 + updated == updated + 0 == Moments() + updated
    assert sum(parts, Moments(0)) == updated + F.moments(x[:0], 0)
    with ThreadPoolExecutor(3) as pool:
        assert sum(pool.map(lambda p: F.moments(p, 0), np.array_split(x, 7))) == updated
    assert sum(parts[::-1]) != updated  # another order, other bits
    assert Moments(0) != Moments(1)
    assert (Moments() == 0) is False
    with pytest.raises(TypeError, match="unhashable"):
        hash(updated)
    with pytest.raises(TypeError):
        updated + 1
    with pytest.raises(TypeError):
        np.ones(3) + updated


def test_concatenate_and_reduce(rng):
    x = rng.normal(5, 2, (6, 10, 4, 3)).astype(np.float32)
    m = F.moments(x, (1, 2))
    assert m.shape == (6, 3)
    halves = [F.moments(x[:2], (1, 2)), F.moments(x[2:], (-2, -3))]
    assert Moments.concatenate(halves, 0) == m
    thirds = [F.moments(x[..., i : i + 1], (2, 1)) for i in range(3)]
    close(Moments.concatenate(thirds, -1), x, (1, 2))
    assert m.reduce(0).axis == (0, 1, 2)
    close(m.reduce(0), x, (0, 1, 2))
    close(m.reduce((0, 3)), x, (0, 1, 2, 3))
    close(m.reduce(-1), x, (1, 2, 3))
    assert m.reduce(0).update(x).count[0] == 480
    for wrong in (1, -2):
        with pytest.raises(ValueError, match="kept axes"):
            m.reduce(wrong)
    with pytest.raises(ValueError, match="kept axes"):
        Moments.concatenate(halves, 2)
    with pytest.raises(ValueError, match="do not fit together"):
        Moments.concatenate([m, F.moments(x[:, :, :, :2], (1, 2))], 0)
    with pytest.raises(ValueError, match="at least one"):
        Moments.concatenate([], 0)


def test_from_stats(rng):
    x = rng.normal(5, 2, (50, 4))
    m = Moments.from_stats(50, x.mean(0), x.var(0, ddof=1), 0, ddof=1)
    close_to = F.moments(x, 0)
    np.testing.assert_allclose(m.m2, close_to.m2, rtol=1e-14)
    np.testing.assert_allclose((m + F.moments(x, 0)).std(), x.std(0), rtol=1e-14)
    m = Moments.from_stats([0, 1, 5], [9, 2, 3], [9, 9, 2.5], -1)
    assert m.axis == (1,)
    assert m.m2.tolist() == [0, 0, 12.5]
    assert np.isnan(m.mean[0])
    for wrong in (
        lambda: Moments.from_stats(-1, [1.0], [1.0], 0),
        lambda: Moments.from_stats(1, [1.0], [-1.0], 0),
        lambda: Moments.from_stats(1, [1.0], [1.0, 2.0], 0),
        lambda: Moments.from_stats([1, 2, 3], [1.0, 2.0], [1.0, 2.0], 0),
        lambda: Moments.from_stats(1, [1.0], [1.0], None),
    ):
        with pytest.raises(ValueError, match="must"):
            wrong()


def test_nothing_has_no_mean():
    for m in (Moments(), F.moments([]), F.moments(np.zeros((0, 3)), 0), Moments(axis=(0, 2))):
        assert (m.count == 0).all()
        for values in (m.mean, m.var(), m.std(1)):
            assert np.isnan(values).all()
            assert values.shape == m.shape
    assert np.isnan(F.moments([5.0]).var(1))
    assert F.moments([5.0]).var() == 0
    y, mean, _ = F.standardize(np.zeros((0, 3)), 0, return_stats=True)
    assert y.shape == (0, 3)
    assert mean.shape == (1, 3)
    assert np.isnan(F.standardize([[5.0], [6.0]], 1, ddof=1)).all()
    assert F.standardize(np.zeros((3, 0)), 1).shape == (3, 0)


@pytest.mark.parametrize("dtype", ["f4", "f8", "f2"])
@pytest.mark.parametrize("axis", [0, 1, (0, 2), None])
def test_inverse(rng, dtype, axis):
    x = rng.normal(20, 3, (30, 40, 5)).astype(dtype)
    m = F.moments(x, axis)
    y = m.standardize(x)
    assert np.array_equal(y, F.standardize(x, axis))
    back = m.inverse(y)
    mean = F.standardize(x, axis, return_stats=True)[1]
    size = np.maximum(np.maximum(np.abs(x), np.abs(mean)), np.abs(x - mean)).astype(float)
    eps = np.finfo(dtype).eps
    assert (np.abs(back.astype(float) - x.astype(float)) <= 4 * eps * size).all()
    x = rng.integers(0, 255, (30, 40), np.uint8)
    m = F.moments(x, 0)
    assert np.array_equal(np.rint(m.inverse(m.standardize(x))), x)


def test_standardize_writes_where_it_is_told_to(rng):
    x = rng.normal(3, 2, (40, 50)).astype(np.float32)
    expected = F.standardize(x, 0)
    out = np.empty((50, 40), np.float32).T
    assert F.standardize(x, 0, out=out) is out
    assert np.array_equal(out, expected)
    for wide in (np.zeros((40, 100), np.float32)[:, ::2], np.zeros((80, 50), np.float32)[::-2]):
        assert F.standardize(x, 0, out=wide) is wide
        assert np.array_equal(wide, expected)
    in_place = x.copy()
    assert F.standardize(in_place, 0, out=in_place) is in_place
    assert np.array_equal(in_place, expected)
    overlapping = np.zeros((41, 50), np.float32)
    overlapping[:-1] = x
    F.standardize(overlapping[:-1], 0, out=overlapping[1:])
    assert np.array_equal(overlapping[1:], expected)
    half = np.zeros(x.shape, np.float16)
    assert F.standardize(x, 0, out=half).dtype == np.float16
    assert np.array_equal(half, F.standardize(x, 0, dtype=np.float16))
    mask = rng.random(x.shape) < 0.5
    kept = np.full(x.shape, 7, np.float32)
    F.standardize(x, 0, where=mask, out=kept)
    assert (kept[~mask] == 7).all()
    assert np.array_equal(kept[mask], F.standardize(x, 0, where=mask)[mask])
    assert F.standardize(np.asfortranarray(x), 1).flags.f_contiguous
    swapped = x.astype(">f4")
    assert np.array_equal(F.standardize(swapped, 0), expected)
    assert F.standardize(swapped, 0).dtype == np.float32


def test_clip_and_eps(rng):
    x = rng.normal(size=(100, 3))
    x[0, 0] = np.nan
    full = F.standardize(x, 0, np.zeros(3), np.ones(3))
    for low, high in ((-1, 1), (None, 0.5), (0, None), (0.25, 0.25)):
        clipped = F.standardize(x, 0, 0, 1, clip=(low, high))
        assert np.array_equal(clipped, np.clip(full, low, high), equal_nan=True)
    assert np.array_equal(F.standardize(x, 0, 0, 1, clip=(None, None)), full, equal_nan=True)
    _, _, rstd = F.standardize(x, 1, eps=0.5, return_stats=True)
    np.testing.assert_allclose(rstd[1:, 0], 1 / np.sqrt(x[1:].var(1) + 0.5))
    y, _, rstd = F.standardize([[2.0, 2.0], [1.0, 3.0]], 1, return_stats=True)
    assert y.tolist() == [[0, 0], [-1, 1]]
    assert rstd.tolist() == [[1], [1]]
    constant = F.moments([[2.0, 2.0]], 1)
    assert constant.standardize([[5.0]]).tolist() == [[3.0]]
    assert constant.inverse([[3.0]]).tolist() == [[5.0]]


def test_given_statistics_broadcast(rng):
    x = rng.normal(size=(4, 5, 6))
    mean, var = rng.normal(size=5), rng.uniform(1, 2, 5)
    expected = (x - mean[:, None]) / np.sqrt(var[:, None])
    for m, v in (
        (mean, var),
        (mean[None, :, None], var[None, :, None]),
        (mean[None, :, None], var),
        (mean.tolist(), np.float32(var).astype(float)),
    ):
        np.testing.assert_allclose(F.standardize(x, (0, 2), m, v), expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(F.standardize(x, 0, 2, np.ones((1, 5, 1))), x - 2)
    np.testing.assert_allclose(F.standardize(x[0, 0], 0, [2], 4), (x[0, 0] - 2) / 2)


def test_masked_arrays(rng):
    data = rng.normal(size=(20, 4))
    mask = rng.random(data.shape) < 0.3
    a = np.ma.masked_array(data, mask)
    assert F.moments(a, 0) == F.moments(data, 0, where=~mask)
    y, mean, _ = F.standardize(a, 0, return_stats=True)
    assert isinstance(y, np.ma.MaskedArray)
    assert not np.ma.isMaskedArray(mean)
    assert np.array_equal(y.mask, mask)
    assert y.mask is not a.mask
    assert not y.data[mask].any()
    both = rng.random(data.shape) < 0.5
    assert F.moments(a, 0, where=both) == F.moments(data, 0, where=~mask & both)
    assert F.moments(np.ma.masked_array(data), 0) == F.moments(data, 0)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int16", "float16"])
def test_moments_standardize_what_a_mask_selects(rng, dtype):
    """As `F.standardize` with the same statistics does, to the bit."""
    x = (rng.normal(size=(5, 4, 6)) * 9).astype(dtype)
    where = rng.random((5, 1, 6)) < 0.6
    selected = np.broadcast_to(where, x.shape)
    for axis in (0, (0, 2), None, 1):
        m = F.moments(x, axis, where=where)
        mean = np.broadcast_to(m.mean, m.shape)
        for settings in ({}, {"eps": 1e-3, "ddof": 1, "clip": (-1, None), "dtype": "float32"}):
            rest = {k: v for k, v in settings.items() if k != "ddof"}
            var = m.var(settings.get("ddof", 0))
            want = F.standardize(x, axis, mean, var, where=where, **rest)
            got = m.standardize(x, where=where, **settings)
            assert got.dtype == want.dtype
            # moments keep the mean as two doubles, of which F.standardize is given one
            np.testing.assert_allclose(got, want, rtol=2**-9 if dtype == "float16" else 2**-22)
            assert not got[~selected].any()
            assert np.array_equal(
                got[selected], m.standardize(x, **settings)[selected], equal_nan=True
            )
    if dtype != "int16":
        bad = np.where(selected, x, np.array(np.nan, dtype))
        out = np.full_like(x, 7)
        assert m.standardize(bad, where=where, out=out) is out
        assert np.array_equal(out, np.where(selected, m.standardize(x), np.array(7, dtype)))
        m.standardize(bad, where=where, out=bad)
        assert np.isnan(bad[~selected]).all()
        assert np.array_equal(bad[selected], out[selected])
    a = np.ma.masked_array(x, ~selected)
    for y in (m.standardize(a), m.inverse(m.standardize(a))):
        assert np.array_equal(y.mask, ~selected) and y.mask is not a.mask
        assert not y.data[~selected].any()
    assert np.array_equal(m.standardize(a).data, m.standardize(x, where=where))
    both = rng.random(x.shape) < 0.5
    y = m.standardize(a, where=both)
    assert np.array_equal(y.data, m.standardize(x, where=both & selected))


def test_all_true_and_no_mask_standardize_alike(rng):
    x = rng.normal(size=(5, 4)).astype(np.float32)
    m = F.moments(x, 0)
    for where in (True, np.ones(4, bool), np.ones((5, 1), bool)):
        assert m.standardize(x, where=where).tobytes() == m.standardize(x).tobytes()


X = np.ones((10, 5))


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda: F.moments(X, 2), np.exceptions.AxisError, "axis 2 is out of bounds"),
        (lambda: F.moments(X, (0, -2)), ValueError, "each axis once.*axis 0 twice"),
        (lambda: F.moments(X, 0.5), TypeError, "axis must be None, an integer or a sequence"),
        (lambda: F.moments(X * 1j), TypeError, "complex128"),
        (lambda: F.moments(np.array([None])), TypeError, "object: if all .*asarray.input"),
        (lambda: F.standardize(X.astype(object), 0), TypeError, "object: if all .*asarray.input"),
        (lambda: F.standardize(X, 0, X[0].astype("O"), 1), TypeError, "object: if .*asarray.mean"),
        (lambda: F.moments([1, None]), TypeError, "object: if all .*asarray.input"),
        (lambda: F.moments(X.astype("g")), TypeError, "got dtype"),
        (lambda: F.moments(None), TypeError, "got None"),
        (lambda: F.moments(X, where=np.ones(5)), TypeError, "where must be a bool array"),
        (lambda: F.moments(X, where=np.ones(4, bool)), ValueError, "where must broadcast"),
        (lambda: F.moments(X, where=[True] * 10), ValueError, r"where\[:, None\] does"),
        (lambda: F.standardize(X, 0, where=[True] * 10), ValueError, r"where\[:, None\] does"),
        (lambda: F.moments(X, 0).standardize(X, where=[1]), TypeError, "where must be a bool"),
        (lambda: F.moments(X, 0).standardize(X, where=[True] * 10), ValueError, "None. does"),
        (lambda: F.moments(X, nan_policy="drop"), ValueError, "'propagate', 'omit' or 'raise'"),
        (lambda: F.moments(X, 0) + F.moments(X, 1), ValueError, "axis"),
        (lambda: F.moments(X, 0) + F.moments(X), ValueError, "axis"),
        (lambda: F.moments(X, 0) + F.moments(X[:, :2], 0), ValueError, "do not fit together"),
        (lambda: F.moments(X, 0) + F.moments(X[..., None], 0), ValueError, "do not fit"),
        (lambda: F.moments(X, 0).update(X[0]), ValueError, "do not fit together"),
        (lambda: Moments.merge([]), ValueError, "at least one"),
        (lambda: Moments.merge([3]), TypeError, "must be Moments"),
        (lambda: Moments("a"), TypeError, "axis must be"),
        (lambda: Moments(0).reduce(1), ValueError, "without data"),
        (lambda: Moments(0).standardize(X), ValueError, "no data yet"),
        (lambda: F.moments(X, 0).standardize(X[:, :2]), ValueError, "shape"),
        (lambda: F.moments(X, 0).allreduce(None), TypeError, "mpi4py"),
        (lambda: Moments.from_dict({}), ValueError, "must have the key"),
        (lambda: Moments.from_dict(Moments().to_dict() | {"format": 9}), ValueError, "format"),
        (lambda: F.standardize(X, 0, 1), ValueError, "either both"),
        (lambda: F.standardize(X, 0, np.ones(3), 1), ValueError, "mean must broadcast"),
        (lambda: F.standardize(X, 0, np.ones((10, 5)), 1), ValueError, "size 1 at the reduced"),
        (lambda: F.standardize(X, 0, 1, -1), ValueError, "var must not be negative"),
        (lambda: F.standardize(X, 0, eps=-1), ValueError, "eps must be non-negative"),
        (lambda: F.standardize(X, 0, eps=np.nan), ValueError, "eps must be non-negative"),
        (lambda: F.standardize(X, 0, clip=(2, 1)), ValueError, "low <= high"),
        (lambda: F.standardize(X, 0, clip=(np.nan, 1)), ValueError, "NaN"),
        (lambda: F.standardize(X, 0, clip=3), TypeError, "pair"),
        (lambda: F.standardize(X, 0, dtype=int), TypeError, "dtype must be float32"),
        (lambda: F.standardize(X, 0, out=np.ones((5, 10))), ValueError, "out must have shape"),
        (lambda: F.standardize(X, 0, out=np.ones((10, 5), int)), TypeError, "out must be a float"),
        (lambda: F.standardize(X, 0, dtype="f4", out=X.copy()), TypeError, "out must have dtype"),
        (lambda: F.standardize(X, 0, out=[1]), TypeError, "out must be a NumPy array"),
    ],
)
def test_bad_input_is_refused(call, error, words):
    with pytest.raises(error, match=words):
        call()
    assert (X == 1).all()


def test_an_error_changes_nothing(rng):
    x = rng.normal(size=(10, 5))
    m = F.moments(x, 0)
    before = m.copy()
    for call in (
        lambda: m.update(x[:, :3]),
        lambda: m.update([["a"]]),
        lambda: m.update(np.where(x > 0, np.nan, x), nan_policy="raise"),
    ):
        with pytest.raises((TypeError, ValueError)):
            call()
        assert m == before
    out = np.full((10, 5), 3.0)
    with pytest.raises(ValueError, match="NaN"):
        F.standardize(np.where(x > 0, np.nan, x), 0, nan_policy="raise", out=out)
    assert (out == 3).all()


class Lazy:
    """What dask and xarray offer of a lazy array."""

    def __dask_graph__(self):
        return {}

    def __array__(self, dtype=None, copy=None):
        raise AssertionError("computed")


def test_a_lazy_array_is_not_computed():
    for call in (F.moments, lambda x: F.standardize(x, 0), lambda x: F.layer_norm(x, 3)):
        with pytest.raises(TypeError, match=r"cnorm\.interop\.dask"):
            call(Lazy())


def test_the_running_statistics_of_batch_norm_from_data(rng):
    x = rng.normal(3, 2, (6, 4, 5, 5)).astype(np.float32)
    norm = cnorm.BatchNorm2d(4)
    norm.load_moments(sum(F.moments(part, (0, 2, 3)) for part in np.split(x, 3)))
    once = cnorm.BatchNorm2d(4, momentum=None)
    once(x)
    np.testing.assert_allclose(norm.running_mean, once.running_mean, rtol=1e-6)
    np.testing.assert_allclose(norm.running_var, once.running_var, rtol=1e-6)
    assert norm.num_batches_tracked == 1
    state = {k: v.copy() for k, v in norm.state_dict().items()}
    for wrong in (F.moments(x, (2, 3)), F.moments(x), F.moments(x[:1, :, :1, :1], (0, 2, 3))):
        with pytest.raises(ValueError, match="must have"):
            norm.load_moments(wrong)
    with pytest.raises(TypeError, match="must be Moments"):
        norm.load_moments(3)
    with pytest.raises(RuntimeError, match="no running statistics"):
        cnorm.BatchNorm2d(4, track_running_stats=False).load_moments(F.moments(x, (0, 2, 3)))
    assert all(np.array_equal(v, state[k]) for k, v in norm.state_dict().items())


class Comm:
    """Ranks that run one after the other: what each has is known."""

    def __init__(self, parts):
        self.parts = parts

    def allgather(self, part):
        assert part in self.parts
        return [pickle.loads(pickle.dumps(p)) for p in self.parts]


def test_allreduce_adds_up_in_rank_order(rng):
    x = rng.normal(3, 2, (60, 4))
    parts = [F.moments(part, 0) for part in np.array_split(x, 4)] + [Moments(0)]
    totals = [part.allreduce(Comm(parts)) for part in parts]
    assert all(total == sum(parts) for total in totals)


def test_explain_names_what_is_copied():
    x = np.zeros((4, 5, 6, 7))
    plan = cnorm.explain(F.moments, x, (1, 3))
    assert plan.step["family"] == "sequences"
    assert plan.copies == []
    plan = cnorm.explain(F.moments, x, (0, 1))
    assert (plan.step["family"], plan.copies) == ("columns", [])
    assert cnorm.explain(F.moments, x, (0, 2)).copies == []
    assert cnorm.explain(F.standardize, x, 0, 0, 1).step["family"] == "runs"
    for y, axes in ((np.zeros((3, 4, 5, 6, 7)), (1, 3)), (x[..., ::2], 0)):
        (text,) = cnorm.explain(F.moments, y, axes).copies
        assert "the input is copied" in text
    assert "byte order" in cnorm.explain(F.moments, x.astype(">f8"), 0).copies[0]
    assert "none" in str(cnorm.explain(F.moments, x.T, 0))


# How far the peak of the resident memory rises above what was there before, in bytes, in the first
# call of each pattern and dtype.
SCRIPT = """
import json, sys, numpy as np, cnorm, cnorm.functional as F

def resident(field):
    for line in open("/proc/self/status"):
        if line.startswith(field):
            return int(line.split()[1]) * 1024

cnorm.set_num_threads(2)
small = np.ones((8, 16, 16), np.float32)
for axis in (0, 1, 2, (0, 2), (0, 1), (1, 2), None):
    F.moments(small, axis), F.standardize(small, axis)
found = {}
for name, dtype in (("float32", "f4"), ("uint8", "u1")):
    size = 8_000_000
    x = np.ones(size // np.dtype(dtype).itemsize, dtype).reshape(-1, 100, 8)
    for layout, y in (("C", x), ("F", x.T), ("cropped", x[:, 1:, 1:])):
        out = np.ones(y.shape[::-1], "f4").T if layout == "F" else np.ones(y.shape, "f4")
        for axis in ((0, 1), (0, 2), (1, 2), 0, 2, None):
            reduced = (0, 1, 2) if axis is None else np.atleast_1d(axis)
            # of many units statistics would be measured
            if np.prod([n for i, n in enumerate(y.shape) if i not in reduced]) > 1000:
                continue
            for call in (lambda: F.moments(y, axis), lambda: F.standardize(y, axis, out=out)):
                open("/proc/self/clear_refs", "w").write("5")
                before = resident("VmRSS")
                call()
                rise = resident("VmHWM") - before
                found[f"{name} {layout} {axis} {len(found)}"] = rise
print(json.dumps(found))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="measured through Linux")
def test_the_first_call_copies_no_input(elsewhere):
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    risen = json.loads(done.stdout)
    assert len(risen) > 20
    assert max(risen.values()) < 8_000_000 / 4, risen


def test_a_mask_of_numbers_beside_a_masked_array_is_refused():
    a = np.ma.masked_invalid([1.0, np.nan, 2.0])
    with pytest.raises(TypeError, match="where must be a bool array"):
        F.moments(a, where=[1.0, 0.0, 1.0])


def test_inverse_of_a_selection(rng):
    """`where` of the inverse: the bits of the whole inverse where True, `out` or 0 elsewhere."""
    x = rng.normal(5, 2, (40, 7)).astype(np.float32)
    where = rng.random(x.shape) < 0.6
    m = F.moments(x, 0)
    y = m.standardize(x)
    whole = m.inverse(y)
    holes = np.where(where, y, np.nan).astype(np.float32)
    assert np.array_equal(m.inverse(holes, where=where), np.where(where, whole, 0))
    out = np.full_like(x, 7)
    assert m.inverse(holes, where=where, out=out) is out
    assert np.array_equal(out, np.where(where, whole, 7))
    with pytest.raises(TypeError, match="where"):
        m.inverse(y, where=np.ones(7))

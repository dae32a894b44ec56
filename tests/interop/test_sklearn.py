"""The scikit-learn transformer: the library's own checks, and what they cannot know."""

import numpy as np
import pytest

pytest.importorskip("sklearn")

from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.preprocessing import StandardScaler as Theirs
from sklearn.utils.estimator_checks import check_estimator

import cnorm
import cnorm.functional as F
from cnorm.interop.sklearn import BatchNorm, StandardScaler

ESTIMATORS = [
    BatchNorm(),
    BatchNorm(eps=1e-3, momentum=0.1),
    StandardScaler(),
    StandardScaler(with_mean=False),
    StandardScaler(channel_axis=-1, with_std=False),
]


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=str)
def test_checks_of_scikit_learn(estimator):
    results = check_estimator(estimator, on_skip=None)  # raises where one fails
    others = {r["check_name"] for r in results if r["status"] != "passed"}
    assert len(results) > 40
    assert others <= {"check_array_api_input"}  # which needs SCIPY_ARRAY_API=1 set from the start


@pytest.fixture
def X(rng):
    return rng.standard_normal((60, 5)) * [1, 2, 3, 0.01, 1] + [0, 1e4, -1, 1, 0]


def test_fit_transform_is_batch_norm_in_training(X):
    want = cnorm.BatchNorm1d(5, affine=False, dtype=np.float64)(X)
    np.testing.assert_allclose(BatchNorm().fit_transform(X), want, rtol=0, atol=1e-10)


def test_fit_transform_is_standard_scaler(X):
    got = BatchNorm(eps=1e-15).fit(X)
    want = Theirs().fit(X)
    np.testing.assert_allclose(got.transform(X), want.transform(X), rtol=0, atol=1e-9)
    np.testing.assert_allclose(got.mean_, want.mean_, rtol=1e-14, atol=1e-14)
    np.testing.assert_allclose(got.var_, want.var_, rtol=1e-12)


@pytest.mark.parametrize("sizes", [[1] * 60, [7, 13, 40], [60]], ids=str)
def test_batches_merge_exactly(X, sizes):
    whole, parts = BatchNorm().fit(X), BatchNorm()
    for batch in np.split(X, np.cumsum(sizes)[:-1]):
        parts.partial_fit(batch)
    np.testing.assert_allclose(parts.mean_, whole.mean_, rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(parts.var_, whole.var_, rtol=1e-11)
    assert parts.n_samples_seen_ == 60


def test_momentum_forgets(X):
    norm = BatchNorm(momentum=0.25).partial_fit(X[:20]).partial_fit(X[20:])
    first, second = X[:20], X[20:]
    np.testing.assert_allclose(norm.mean_, 0.75 * first.mean(0) + 0.25 * second.mean(0))
    np.testing.assert_allclose(norm.var_, 0.75 * first.var(0) + 0.25 * second.var(0))


def test_fit_forgets_everything(X):
    again = BatchNorm().fit(X[:20] + 100).fit(X)
    np.testing.assert_array_equal(again.mean_, BatchNorm().fit(X).mean_)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16], ids=lambda d: d.__name__)
def test_there_and_back(rng, dtype):
    X = (rng.standard_normal((60, 5)) * 2 + 3).astype(dtype)
    norm = BatchNorm().fit(X)
    y = norm.transform(X)
    again = norm.inverse_transform(y)
    assert y.dtype == again.dtype == dtype
    np.testing.assert_allclose(again, X, rtol=0, atol=16 * np.finfo(dtype).eps)


def test_constant_feature_is_zero():
    X = np.full((4, 1), 7.0)
    norm = BatchNorm().fit(X)
    assert not norm.transform(X).any()
    np.testing.assert_array_equal(norm.inverse_transform(np.zeros((4, 1))), X)


def test_names_and_pipelines(X):
    pipeline = make_pipeline(MinMaxScaler(), BatchNorm()).fit(X)
    assert list(pipeline.get_feature_names_out()) == [f"x{i}" for i in range(5)]
    np.testing.assert_allclose(pipeline.transform(X).mean(0), 0, atol=1e-12)


@pytest.mark.parametrize("wrong", [{"eps": 0}, {"eps": -1}, {"momentum": 1.5}], ids=str)
def test_wrong_parameters(X, wrong):
    name = next(iter(wrong))
    with pytest.raises(ValueError, match=f"{name} must be"):
        BatchNorm(**wrong).fit(X)


# ---- StandardScaler ----

ATTRIBUTES = ("mean_", "var_", "scale_", "n_samples_seen_")


def agree(ours, theirs, X):
    """Attributes and results of two fitted scalers, in eps of what they are made of."""
    eps = np.finfo(X.dtype).eps if X.dtype.kind == "f" else np.finfo(np.float64).eps
    for name in ATTRIBUTES:
        got, want = getattr(ours, name), getattr(theirs, name)
        assert (got is None) == (want is None), name
        if want is not None:
            assert np.shape(got) == np.shape(want), name
            np.testing.assert_allclose(got, want, rtol=1e-13, atol=1e-13, err_msg=name)
    got, want = ours.transform(X), theirs.transform(X.copy())
    assert got.dtype == want.dtype
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    size = np.abs(np.nan_to_num(X)).max(0) if theirs.with_mean else np.abs(np.nan_to_num(want))
    scale = 1 if theirs.scale_ is None or not theirs.with_mean else np.nan_to_num(theirs.scale_, 1)
    bound = 4 * eps * (size / scale + np.abs(np.nan_to_num(want)))
    assert (np.abs(np.nan_to_num(got - want)) <= bound).all()
    back, again = ours.inverse_transform(got), theirs.inverse_transform(want.copy())
    np.testing.assert_allclose(back, again, rtol=8 * eps, atol=8 * eps * np.nanmax(np.abs(X)))


@pytest.mark.parametrize("with_std", [True, False], ids=["std", "no std"])
@pytest.mark.parametrize("with_mean", [True, False], ids=["mean", "no mean"])
@pytest.mark.parametrize("dtype", ["f8", "f4", "f2", "i4", "u1", "?"])
def test_scaler_is_scikit_learns(rng, dtype, with_mean, with_std):
    X = (rng.standard_normal((50, 4)) * [1, 2, 3, 0.5] + [0, 10, -1, 1]) * 8
    X = np.abs(X).astype(dtype)
    options = {"with_mean": with_mean, "with_std": with_std}
    agree(StandardScaler(**options).fit(X), Theirs(**options).fit(X), X)


def test_scaler_and_nan(rng):
    X = rng.standard_normal((40, 4)) * [1, 5, 1, 1]
    X[3, 1] = X[7, 1] = np.nan
    X[:, 2] = np.nan
    X[:, 3] = 0.1
    with np.errstate(all="ignore"):
        theirs = Theirs().fit(X)
    ours = StandardScaler().fit(X)
    assert list(ours.n_samples_seen_) == [40, 38, 0, 40]
    np.testing.assert_allclose(ours.mean_, theirs.mean_, rtol=1e-13)
    assert np.isnan(ours.transform(X)[:, 2]).all() and ours.scale_[3] == 1
    assert np.isnan(ours.transform(X)[3, 1]) and abs(ours.transform(X)[:, 3]).max() == 0


def test_scaler_of_parts(X):
    """partial_fit and merge: the moments of the parts, added up, to the bit."""
    cuts = [7, 20]
    parts = np.split(X, cuts)
    want = sum(F.moments(part, 0) for part in parts)
    ours, theirs = StandardScaler(), Theirs()
    for part in parts:
        ours.partial_fit(part)
        theirs.partial_fit(part)
    assert ours.moments_ == want
    agree(ours, theirs, X)
    first, *rest = (StandardScaler().fit(part) for part in parts)
    assert first.merge(*rest).moments_ == want
    assert first.n_samples_seen_ == 60 and rest[0].n_samples_seen_ == 13
    agree(first, theirs, X)


def test_scaler_forgets(X):
    assert StandardScaler().fit(X[:9] + 5).fit(X).moments_ == StandardScaler().fit(X).moments_


@pytest.mark.parametrize("channel_axis", [1, -1])
def test_scaler_of_images(rng, channel_axis):
    X = rng.standard_normal((3, 4, 5, 6)).astype(np.float32)
    scaler = StandardScaler(channel_axis=channel_axis).fit(X)
    flat = np.moveaxis(X, channel_axis, -1).reshape(-1, X.shape[channel_axis])
    want = Theirs().fit(flat)
    np.testing.assert_allclose(scaler.mean_, want.mean_, rtol=1e-5, atol=1e-7)
    assert scaler.n_samples_seen_ == len(flat)
    got = np.moveaxis(scaler.transform(X), channel_axis, -1).reshape(flat.shape)
    np.testing.assert_allclose(got, want.transform(flat), rtol=0, atol=1e-6)
    np.testing.assert_allclose(scaler.inverse_transform(scaler.transform(X)), X, atol=1e-6)
    with pytest.raises(ValueError, match="is expecting"):
        scaler.transform(X[:, :2, :, :2])
    with pytest.raises(ValueError, match="channel_axis must be from"):
        StandardScaler(channel_axis=4).fit(X)
    with pytest.raises(ValueError, match="dim 4"):
        StandardScaler().fit(X)


def test_scaler_in_place(X):
    a = X.copy()
    scaler = StandardScaler(copy=False).fit(a)
    want = StandardScaler().fit_transform(X)
    assert scaler.transform(a) is a
    np.testing.assert_array_equal(a, want)
    b = X.copy()
    assert scaler.transform(b, copy=True) is not b and (b == X).all()
    assert scaler.inverse_transform(a) is a
    np.testing.assert_allclose(a, X, rtol=1e-12)


def test_scaler_refuses(X):
    from scipy.sparse import csr_matrix

    scaler = StandardScaler().fit(X)
    before = scaler.moments_
    for fit in (scaler.fit, scaler.partial_fit, scaler.fit_transform):
        with pytest.raises(TypeError, match="does not support sample_weight"):
            fit(X, sample_weight=np.ones(60))
    with pytest.raises(TypeError, match="parse"):
        scaler.fit(csr_matrix(X))
    with pytest.raises(ValueError, match="infinity"):
        scaler.partial_fit(np.where(X > 1, np.inf, X))
    with pytest.raises(ValueError, match="infinity"):
        scaler.transform(np.where(X > 1, np.inf, X))
    with pytest.raises(ValueError, match="5 and 3 features"):
        scaler.merge(StandardScaler().fit(X[:, :3]))
    with pytest.raises(TypeError, match="but got BatchNorm"):
        scaler.merge(BatchNorm().fit(X))
    assert scaler.moments_ is before
    np.testing.assert_array_equal(scaler.mean_, before.mean)

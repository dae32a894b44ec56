"""The scikit-learn transformer: the library's own checks, and what they cannot know."""

import numpy as np
import pytest

pytest.importorskip("sklearn")

from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from sklearn.utils.estimator_checks import check_estimator

import cnorm
from cnorm.interop.sklearn import BatchNorm


@pytest.mark.parametrize("estimator", [BatchNorm(), BatchNorm(eps=1e-3, momentum=0.1)], ids=str)
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
    want = StandardScaler().fit(X)
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

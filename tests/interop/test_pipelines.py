"""standardize and normalize_image beside the functions that people use for the same."""

import numpy as np
import pytest

import cnorm.functional as F

AXES = [(0,), (1,), (-1,), (0, 2), (1, 2), (0, 1, 2)]
EPS64, EPS32 = np.finfo(np.float64).eps, np.finfo(np.float32).eps


@pytest.mark.parametrize("shape", [(37, 19), (5, 33, 18)])
@pytest.mark.parametrize("ddof", [0, 1])
def test_zscore_of_scipy(rng, shape, ddof):
    zscore = pytest.importorskip("scipy.stats").zscore
    x = rng.normal(3, 2, shape)
    for axis in range(len(shape)):
        expected = zscore(x, axis=axis, ddof=ddof)
        np.testing.assert_allclose(F.standardize(x, axis, ddof=ddof), expected, 0, 64 * EPS64)


@pytest.mark.parametrize("policy", ["propagate", "omit"])
def test_nan_as_scipy(rng, policy):
    zscore = pytest.importorskip("scipy.stats").zscore
    x = rng.normal(3, 2, (40, 7))
    x[rng.random(x.shape) < 0.1] = np.nan
    x[:, 0] = 1.5 + np.arange(40)
    expected = zscore(x, axis=0, nan_policy=policy)
    ours = F.standardize(x, 0, nan_policy=policy)
    np.testing.assert_allclose(ours, expected, 0, 64 * EPS64)


@pytest.mark.parametrize("dtype", [np.float64, np.int16])
def test_scale_of_scikit_learn(rng, dtype):
    scale = pytest.importorskip("sklearn.preprocessing").scale
    x = rng.normal(30, 20, (200, 11)).astype(dtype)
    x[:, 3] = 7  # constant: divided by 1
    ours = F.standardize(x, 0, dtype=np.float64)
    np.testing.assert_allclose(ours, scale(x.astype(np.float64)), 0, 64 * EPS64)


@pytest.mark.parametrize("axis", AXES)
def test_standardize_of_jax(rng, axis):
    standardize = pytest.importorskip("jax.nn").standardize
    x = rng.normal(0.5, 2, (6, 33, 18)).astype(np.float32)
    expected = np.asarray(standardize(x, axis=axis, epsilon=1e-5))
    np.testing.assert_allclose(F.standardize(x, axis, eps=1e-5), expected, 0, 64 * EPS32)


def test_normalize_of_torch_s_image_pipelines(rng):
    """``ToTensor`` and ``Normalize`` of torchvision, in torch: divide, subtract, divide."""
    torch = pytest.importorskip("torch")
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    images = rng.integers(0, 256, (3, 17, 23, 3), np.uint8)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).to(torch.float32).div(255)
    at = (1, 3, 1, 1)
    expected = x.sub(torch.tensor(mean).view(at)).div(torch.tensor(std).view(at)).numpy()
    ours = F.normalize_image(images, mean, std, out_channel_axis=1)
    np.testing.assert_allclose(ours, expected, 0, 8 * EPS32 / min(std))

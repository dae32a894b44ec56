"""Worked examples that can be followed by hand, and norms that are each other's special cases."""

import numpy as np
import pytest

import cnorm.functional as F

ROW = np.array([-0.9, 0.1, 0, -0.1, 0.9, -0.4, 0.9, -0.5, 0.8, 0.1])
NORMALISED = [-1.6906, 0.0171, -0.1537, -0.3245, 1.3833, -0.8368, 1.3833, -1.0076, 1.2125, 0.0171]


@pytest.mark.parametrize("float_type", [np.float32, np.float64])
def test_layer_norm_of_a_row(float_type):
    y = F.layer_norm(ROW.astype(float_type), 10, eps=0)
    np.testing.assert_array_equal(np.round(y, 4), np.array(NORMALISED, float_type))


@pytest.mark.parametrize(
    ("slope", "first"),
    [(0.0, 0.0), (np.array([0.25]), -0.4227), (0.01, -0.0169)],
    ids=["ReLU", "PReLU", "LeakyReLU"],
)
def test_layer_norm_then_activation(slope, first):
    y = F.layer_norm(ROW, 10, eps=0, negative_slope=slope)
    assert round(float(y[0]), 4) == first
    assert round(float(y[4]), 4) == 1.3833


def test_batch_norm_output_is_biased_and_running_variance_is_not(rng):
    x = rng.normal(2, 3, (4, 3, 5, 5))
    running_mean, running_var = rng.normal(size=3), rng.uniform(1, 2, 3)
    expected_mean = 0.9 * running_mean + 0.1 * x.mean((0, 2, 3))
    expected_var = 0.9 * running_var + 0.1 * x.var((0, 2, 3), ddof=1)
    y = F.batch_norm(x, running_mean, running_var, training=True, eps=1e-30)
    np.testing.assert_allclose(running_mean, expected_mean)
    np.testing.assert_allclose(running_var, expected_var)
    np.testing.assert_allclose(y.var((0, 2, 3)), 1)
    np.testing.assert_allclose(y.mean((0, 2, 3)), 0, atol=1e-14)


def test_batch_norm_by_hand():
    x = np.array([[1.0, 10.0], [3.0, 30.0], [5.0, 20.0]])
    y, mean, rstd = F.batch_norm(x, training=True, eps=1e-30, return_stats=True)
    np.testing.assert_array_equal(mean, [3, 20])
    np.testing.assert_allclose(rstd, [np.sqrt(3 / 8), np.sqrt(3 / 200)])
    a = np.sqrt(1.5)
    np.testing.assert_allclose(y, [[-a, -a], [0, a], [a, 0]], atol=1e-15)


def test_rms_norm_by_hand():
    y, rstd = F.rms_norm(np.array([[3.0, 4.0], [6.0, -8.0]]), 2, eps=0, return_stats=True)
    np.testing.assert_allclose(y, np.array([[0.6, 0.8], [0.6, -0.8]]) * np.sqrt(2))
    np.testing.assert_allclose(rstd, np.sqrt([[2 / 25], [2 / 100]]))


def test_rms_norm_default_eps():
    """That of float32, or of float64 for float64 input."""
    tiny = 1e-8
    for float_type, eps in [(np.float32, 2.0**-23), (np.float64, 2.0**-52)]:
        y = F.rms_norm(np.full((1, 4), tiny, float_type), 4)
        np.testing.assert_allclose(y, tiny / np.sqrt(tiny**2 + eps), rtol=1e-6)


def test_local_response_norm_by_hand():
    x = np.array([1.0, 2.0, 3.0, 4.0]).reshape(1, 4, 1)
    y = F.local_response_norm(x, 3, alpha=3.0, beta=1.0, k=2.0)
    np.testing.assert_allclose(y.ravel(), [1 / 7, 2 / 16, 3 / 31, 4 / 27])
    y = F.local_response_norm(x, 2, alpha=2.0, beta=1.0, k=2.0)  # one before, none after
    np.testing.assert_allclose(y.ravel(), [1 / 3, 2 / 7, 3 / 15, 4 / 27])


def test_cross_map_lrn_by_hand():
    """Channel 0 never leaves the window: 16 + 9 + 1 at the last channel."""
    x = np.array([1.0, 2.0, 3.0, 4.0]).reshape(1, 4, 1, 1)
    y = F.cross_map_lrn(x, 3, alpha=3.0, beta=1.0, k=2.0)
    np.testing.assert_allclose(y.ravel(), [1 / 7, 2 / 16, 3 / 32, 4 / 28])


@pytest.fixture
def images(rng):
    return rng.normal(1, 2, (3, 6, 4, 5)).astype(np.float32)


def test_group_norm_of_every_channel_is_instance_norm(images):
    np.testing.assert_allclose(F.group_norm(images, 6), F.instance_norm(images), atol=1e-6)


def test_group_norm_of_one_group_is_layer_norm(images):
    layer = F.layer_norm(images, (6, 4, 5))
    np.testing.assert_allclose(F.group_norm(images, 1), layer, atol=1e-6)


def test_batch_norm_of_one_sample_is_instance_norm(images):
    one = images[:1]
    np.testing.assert_allclose(F.batch_norm(one, training=True), F.instance_norm(one), atol=1e-6)


def test_switch_norm_of_one_weight_is_that_norm(images):
    """With all the weight on the instances it is instance norm of the unbiased variance."""
    only_instances = np.array([1e3, 0, 0])
    y = F.switch_norm(
        images, None, None, None, None, only_instances, only_instances, training=True, eps=0
    )
    expected = F.instance_norm(images, eps=0) * np.sqrt(19 / 20)
    np.testing.assert_allclose(y, expected, atol=1e-6)


def test_evaluation_with_the_statistics_of_the_batch_is_training(images):
    mean, var = images.mean((0, 2, 3)), images.var((0, 2, 3))
    y = F.batch_norm(images, mean, var)
    np.testing.assert_allclose(y, F.batch_norm(images, training=True), atol=1e-6)


def test_cumulative_average(rng):
    """A momentum of one over the count averages the batches."""
    batches = rng.normal(1, 2, (5, 8, 3, 4))
    mean, var = np.zeros(3), np.ones(3)
    for i, batch in enumerate(batches):
        F.batch_norm(batch, mean, var, training=True, momentum=1 / (i + 1))
    np.testing.assert_allclose(mean, batches.mean((0, 1, 3)))
    np.testing.assert_allclose(var, np.mean([b.var((0, 2), ddof=1) for b in batches], 0))

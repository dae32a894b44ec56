"""Masks through modules: kept for backward, handed on by containers."""

import numpy as np
import pytest

import cnorm
from cnorm import functional as F

X_SHAPE = (3, 4, 10)


def layers():
    yield cnorm.LayerNorm(10), (3, 4, 1)
    yield cnorm.RMSNorm(10), (3, 1, 10)
    yield cnorm.GroupNorm(2, 4), (3, 1, 10)
    yield cnorm.BatchNorm1d(4), (3, 1, 10)
    yield cnorm.InstanceNorm1d(4, affine=True, track_running_stats=True), (3, 4, 10)
    yield cnorm.SyncBatchNorm(4), (3, 1, 10)
    yield cnorm.LazyBatchNorm1d(), (3, 1, 10)
    yield cnorm.LazyLayerNorm(), (3, 4, 1)


@pytest.mark.parametrize(("layer", "sizes"), list(layers()), ids=lambda a: type(a).__name__)
def test_layers(layer, sizes, rng):
    if isinstance(layer, cnorm.SyncBatchNorm):
        pytest.importorskip("mpi4py")  # whose world it takes
    x, dy = rng.normal(size=(2, *X_SHAPE)).astype(np.float32)
    where = rng.random(sizes) < 0.7
    where.flat[0] = False
    selected = np.broadcast_to(where, x.shape)
    y = layer(x, where=where)
    assert not y[~selected].any()
    y.fill(np.nan)
    dx = layer.backward(dy)
    poisoned = np.where(selected, x, np.float32(np.nan))
    again = layer(poisoned, where)
    assert np.array_equal(dx, layer.backward(np.where(selected, dy, np.float32(np.inf))))
    layer.eval()
    with cnorm.enable_grad():
        y = layer(x, where=where)
        assert np.isfinite(y).all() and np.isfinite(again).all()
        assert not layer.backward(dy)[~selected].any()
    layer.train()
    layer(x)  # a call without a mask is one again
    assert layer.backward(dy)[~selected].any()


def test_unbatched_instance_norm(rng):
    x, dy = rng.normal(size=(2, 4, 10)).astype(np.float32)
    where = rng.random((1, 10)) < 0.7
    layer = cnorm.InstanceNorm1d(4)
    y = layer(x, where)
    expected, *stats = F.instance_norm(x[None], where=where, return_stats=True)
    assert np.array_equal(y, expected[0])
    dx, *_ = F.instance_norm_backward(dy[None], x[None], *stats, where=where)
    assert np.array_equal(layer.backward(dy), dx[0])


def test_containers(rng):
    x, dy = rng.normal(size=(2, *X_SHAPE)).astype(np.float32)
    where = rng.random((3, 1, 10)) < 0.7
    first, last = cnorm.BatchNorm1d(4), cnorm.GroupNorm(2, 4)
    net = cnorm.Sequential(first, cnorm.ReLU(), cnorm.Sequential(last))
    y = net(x, where=where)
    expected = last(np.maximum(first(x, where=where), 0), where=where)
    assert np.array_equal(y, expected)
    assert not net.backward(dy)[~np.broadcast_to(where, x.shape)].any()


def test_layers_without_masks():
    x = np.ones((2, 4, 6), np.float32)
    for layer in (cnorm.SwitchNorm1d(4), cnorm.LocalResponseNorm(2)):
        with pytest.raises(TypeError, match=f"{type(layer).__name__} takes no mask"):
            layer(x, where=x > 0)
        with pytest.raises(TypeError, match="takes no mask"):
            cnorm.Sequential(layer)(x, where=x > 0)


def test_masked_arrays(rng):
    data, dy = rng.normal(size=(2, *X_SHAPE)).astype(np.float32)
    a = np.ma.masked_array(data, rng.random(X_SHAPE) < 0.3)
    for layer in (cnorm.LayerNorm(10), cnorm.BatchNorm1d(4), cnorm.GroupNorm(2, 4)):
        y = layer(a)
        assert isinstance(y, np.ma.MaskedArray) and np.array_equal(y.mask, a.mask)
        dx = layer.backward(dy)
        assert isinstance(dx, np.ma.MaskedArray) and not dx.data[a.mask].any()


def test_nothing_runs_where_one_norm_takes_no_mask():
    inner = cnorm.Sequential(cnorm.ReLU(), cnorm.SwitchNorm1d(3))
    for second in (cnorm.SwitchNorm1d(3), cnorm.LocalResponseNorm(2), inner):
        net = cnorm.Sequential(cnorm.BatchNorm1d(3), second)
        with pytest.raises(TypeError, match="takes no mask"):
            net(np.ones((4, 3), np.float32), where=np.ones((4, 1), bool))
        assert net[0].num_batches_tracked == 0


@pytest.mark.filterwarnings("error")
def test_running_statistics_overflow_in_silence():
    layer = cnorm.BatchNorm1d(3)
    layer(np.full((4, 3), 3e38, np.float32), where=np.arange(4)[:, None] < 3)
    assert np.isfinite(layer.running_mean).all()

"""A call that fails changes nothing; threads that share a module lose nothing."""

import threading

import numpy as np
import pytest

import cnorm

SHAPES = {
    "BatchNorm1d": (4, 3), "BatchNorm2d": (2, 3, 4, 4), "InstanceNorm1d": (2, 3, 5),
    "SwitchNorm1d": (4, 3), "SwitchNorm2d": (2, 3, 4, 4), "GroupNorm": (2, 3), "LayerNorm": (2, 3),
    "RMSNorm": (2, 3),
}  # fmt: skip


def make(name):
    if name.startswith("Instance"):
        return cnorm.InstanceNorm1d(3, affine=True, track_running_stats=True)
    return getattr(cnorm, name)(*((1, 3) if name == "GroupNorm" else (3,)))


def snapshot(module):
    return {k: v.tobytes() for k, v in module.state_dict().items()}


@pytest.mark.parametrize("name", SHAPES)
def test_a_call_that_raises(name, rng):
    module = make(name)
    shape = SHAPES[name]
    x = rng.normal(size=shape).astype(np.float32)
    y = module(x)
    before = snapshot(module)
    kept = module._kept
    for wrong in (
        np.ones(shape[:1], np.float32),
        np.ones((shape[0], shape[1] + 1, *shape[2:]), np.float32),
        np.ones(shape, np.int32),
        np.ones(shape, np.complex64),
        np.full(shape, "x"),
        np.full(shape, None),
        "text",
    ):
        with pytest.raises((TypeError, ValueError, RuntimeError)):
            module(wrong)
        assert snapshot(module) == before
        assert module._kept is kept
    module.backward(y)


@pytest.mark.parametrize("name", ["BatchNorm1d", "BatchNorm2d", "InstanceNorm1d", "SwitchNorm2d"])
@pytest.mark.parametrize("buffer", ["running_mean", "running_var"])
def test_statistics_that_do_not_fit(name, buffer, rng):
    module = make(name)
    x = rng.normal(size=SHAPES[name]).astype(np.float32)
    for wrong in (np.zeros(5, np.float32), np.zeros(module.running_mean.shape, np.int64)):
        right = getattr(module, buffer)
        setattr(module, buffer, wrong)
        before = snapshot(module)
        with pytest.raises((TypeError, ValueError, RuntimeError)):
            module(x)
        assert snapshot(module) == before
        setattr(module, buffer, right)


@pytest.mark.parametrize("buffer", ["running_mean", "running_var", "num_batches_tracked"])
def test_statistics_that_cannot_be_written(buffer, rng):
    module = cnorm.BatchNorm1d(3)
    getattr(module, buffer).flags.writeable = False
    before = snapshot(module)
    with pytest.raises(ValueError, match="read-only"):
        module(rng.normal(size=(4, 3)))
    assert snapshot(module) == before


def test_a_load_that_is_interrupted(monkeypatch):
    net = cnorm.Sequential(cnorm.LayerNorm(3), cnorm.LazyBatchNorm1d(), cnorm.BatchNorm1d(3))
    before = snapshot(net[0]), snapshot(net[2])
    state = {f"{i}.{k}": np.full(v.shape, 7.0) for i, m in ((0, net[0]), (2, net[2]))
             for k, v in m.state_dict().items()}  # fmt: skip
    state |= {f"1.{k}": v for k, v in cnorm.BatchNorm1d(4).state_dict().items()}
    copyto, calls = np.copyto, []

    def interrupted(target, value, **kwargs):
        calls.append(target)
        if len(calls) == 6:
            raise KeyboardInterrupt
        copyto(target, value, **kwargs)

    monkeypatch.setattr(np, "copyto", interrupted)
    with pytest.raises(KeyboardInterrupt):
        net.load_state_dict(state)
    monkeypatch.undo()
    assert (snapshot(net[0]), snapshot(net[2])) == before
    assert type(net[1]) is cnorm.LazyBatchNorm1d
    assert net[1].num_features == 0
    assert net[1].has_uninitialized_params()
    net.load_state_dict(state)
    assert net[0].weight[0] == 7


def test_a_load_into_what_cannot_be_written():
    norm = cnorm.LayerNorm(3)
    norm.bias.flags.writeable = False
    before = snapshot(norm)
    with pytest.raises(ValueError, match="read-only"):
        norm.load_state_dict({"weight": np.zeros(3), "bias": np.zeros(3)})
    assert snapshot(norm) == before


def run_threads(target, n=16):
    errors = []

    def guarded(i):
        try:
            target(i)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(i,)) for i in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


@pytest.mark.parametrize("name", ["BatchNorm1d", "BatchNorm2d", "InstanceNorm1d", "SwitchNorm1d"])
def test_threads_lose_no_update(name, rng):
    """All batches are the same, so the statistics after n updates do not depend on their order."""
    shared, alone = make(name), make(name)
    x = rng.normal(size=SHAPES[name]).astype(np.float32)
    repeats = 30

    def work(_):
        for _ in range(repeats):
            shared(x)

    run_threads(work)
    for _ in range(16 * repeats):
        alone(x)
    assert snapshot(shared) == snapshot(alone)


def test_threads_average_all_batches(rng):
    shared = cnorm.BatchNorm1d(3, momentum=None, dtype=np.float64)
    batches = rng.normal(size=(160, 8, 3))

    def work(i):
        for batch in batches[i::16]:
            shared(batch)

    run_threads(work)
    assert int(shared.num_batches_tracked) == 160
    np.testing.assert_allclose(shared.running_mean, batches.mean((0, 1)), rtol=0, atol=1e-14)


def test_threads_share_a_lazy_module(rng):
    lazy = cnorm.LazyBatchNorm1d()
    x = rng.normal(size=(4, 3)).astype(np.float32)
    barrier = threading.Barrier(16)

    def work(_):
        barrier.wait()
        lazy(x)

    run_threads(work)
    assert type(lazy) is cnorm.BatchNorm1d
    assert int(lazy.num_batches_tracked) == 16


def test_threads_evaluate_alike(rng):
    norm = cnorm.BatchNorm1d(3)
    x = rng.normal(size=(64, 3)).astype(np.float32)
    norm(x)
    expected = norm.eval()(x)

    def work(_):
        for _ in range(50):
            np.testing.assert_array_equal(norm(x), expected)

    run_threads(work)

"""Lazy norms before and while they learn their number of features."""

import copy
import pickle

import ml_dtypes
import numpy as np
import pytest

import cnorm

CASES = [
    ("BatchNorm1d", (4, 3), 1, 3), ("BatchNorm1d", (4, 5, 3), -1, 3),
    ("BatchNorm2d", (2, 3, 4, 5), 1, 3), ("BatchNorm2d", (2, 4, 5, 3), -1, 3),
    ("BatchNorm3d", (2, 3, 2, 2, 2), 1, 3), ("InstanceNorm1d", (2, 3, 5), 1, 3),
    ("InstanceNorm1d", (3, 5), 1, 3), ("InstanceNorm1d", (5, 3), -1, 3),
    ("InstanceNorm2d", (3, 4, 5), 1, 3), ("InstanceNorm2d", (2, 4, 5, 3), -1, 3),
    ("InstanceNorm3d", (2, 2, 2, 3), -1, 3),
]  # fmt: skip


@pytest.mark.parametrize(("name", "shape", "axis", "features"), CASES)
def test_first_call(name, shape, axis, features, rng):
    x = rng.normal(size=shape).astype(np.float32)
    lazy = getattr(cnorm, f"Lazy{name}")(channel_axis=axis)
    plain = getattr(cnorm, name)(features, affine=True, track_running_stats=True, channel_axis=axis)
    np.testing.assert_array_equal(lazy(x), plain(x))
    assert type(lazy) is type(plain)
    assert repr(lazy) == repr(plain)
    assert not hasattr(lazy, "has_uninitialized_params")
    for key, value in plain.state_dict().items():
        np.testing.assert_array_equal(lazy.state_dict()[key], value)
    np.testing.assert_array_equal(lazy.backward(x), plain.backward(x))


@pytest.mark.parametrize("attribute", ["weight", "running_mean"])
def test_uninitialised_arrays_cannot_be_used(attribute):
    array = getattr(cnorm.LazyBatchNorm1d(), attribute)
    with pytest.raises(RuntimeError, match="Can't access the shape of an uninitialized"):
        array.shape  # noqa: B018
    for use in (
        lambda: array + 1, lambda: np.exp(array), lambda: array[0], lambda: len(array),
        lambda: np.concatenate([array, array]), lambda: array.__setitem__(0, 1),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="Attempted to use an uninitialized parameter in"):
            use()
    assert repr(array).startswith("<Uninitialized")


@pytest.mark.parametrize("dtype", [np.float64, np.float16, ml_dtypes.bfloat16])
def test_dtype_before_and_after(dtype, rng):
    made, converted = cnorm.LazyBatchNorm1d(dtype=dtype), cnorm.LazyBatchNorm1d().to(dtype)
    for lazy in (made, converted):
        assert lazy.weight.dtype == dtype
        lazy(rng.normal(size=(4, 3)).astype(np.float32))
        assert lazy.weight.dtype == lazy.running_var.dtype == dtype


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_lazy(duplicate, rng):
    lazy = cnorm.LazyInstanceNorm2d(dtype=np.float64)
    lazy.weight.requires_grad_(False)
    other = duplicate(lazy)
    assert type(other) is cnorm.LazyInstanceNorm2d
    assert other.has_uninitialized_params()
    assert not other.weight.requires_grad
    other(rng.normal(size=(2, 3, 4, 4)))
    assert other.weight.dtype == np.float64
    assert not other.weight.requires_grad
    assert lazy.has_uninitialized_params()


def test_state_of_a_lazy_module_moves_to_another(rng):
    lazy, other = cnorm.LazyBatchNorm1d(), cnorm.LazyBatchNorm1d()
    assert str(other.load_state_dict(lazy.state_dict())) == "<All keys matched successfully>"
    assert other.has_uninitialized_params()
    with pytest.raises(RuntimeError, match="Can't access the shape"):
        cnorm.BatchNorm1d(3).load_state_dict(lazy.state_dict())


@pytest.mark.parametrize(
    "state",
    [
        {"weight": np.ones(3), "bias": np.ones(4)},
        {"weight": np.ones((3, 1))},
        {"running_mean": np.ones(())},
    ],
)
def test_a_state_that_disagrees_with_itself(state):
    lazy = cnorm.LazyBatchNorm1d()
    with pytest.raises(RuntimeError, match="expected one 1-dimensional shape"):
        lazy.load_state_dict(state, strict=False)
    assert type(lazy) is cnorm.LazyBatchNorm1d
    assert lazy.has_uninitialized_params()


def test_a_load_without_shapes_leaves_it_lazy():
    lazy = cnorm.LazyBatchNorm1d()
    lazy.load_state_dict({"num_batches_tracked": 5}, strict=False)
    assert lazy.has_uninitialized_params()
    assert int(lazy.num_batches_tracked) == 5


@pytest.mark.parametrize("wrong", [np.ones((1, 3)), np.ones(3), np.ones((2, 3), int), "x"])
def test_a_first_call_that_raises(wrong):
    lazy = cnorm.LazyBatchNorm1d()
    with pytest.raises((ValueError, TypeError)):
        lazy(wrong)
    assert type(lazy) is cnorm.LazyBatchNorm1d
    assert lazy.has_uninitialized_params()
    assert (lazy.num_features, int(lazy.num_batches_tracked)) == (0, 0)


ROWS = [
    ("LayerNorm", {}, (7,)), ("LayerNorm", {"axis": 1}, (6,)), ("RMSNorm", {}, (7,)),
    ("LayerNorm", {"axis": (-1, 1), "bias": False}, (7, 6)), ("RMSNorm", {"axis": -3}, (6,)),
    ("RMSNorm", {"axis": 2, "zero_centered_gamma": True}, (5,)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options", "shape"), ROWS)
def test_rows_take_their_shape(name, options, shape, rng):
    check_sizes(getattr(cnorm, f"Lazy{name}"), getattr(cnorm, name), (), (shape,), options, rng)


@pytest.mark.parametrize(
    ("options", "channels"), [({}, 6), ({"channel_axis": -1, "bias": False}, 7)]
)
def test_groups_take_their_channels(options, channels, rng):
    groups = 3 if channels == 6 else 7
    arguments = (groups,), (groups, channels)
    check_sizes(cnorm.LazyGroupNorm, cnorm.GroupNorm, *arguments, options, rng)


def check_sizes(lazy_class, plain_class, lazy_arguments, arguments, options, rng):
    """The first call, a load, and copies of a lazy norm make the norm that is told its sizes."""
    x = rng.normal(size=(4, 6, 5, 7)).astype(np.float32)
    plain = plain_class(*arguments, **options)
    y, dx = plain(x), plain.backward(x)
    made = [lazy_class(*lazy_arguments, **options) for _ in range(3)]
    made[1], loaded = copy.deepcopy(made[1]), made[2]
    made[2] = pickle.loads(pickle.dumps(loaded))
    for lazy in made:
        assert lazy.has_uninitialized_params()
        np.testing.assert_array_equal(lazy(x), y)
        assert type(lazy) is plain_class
        assert repr(lazy) == repr(plain)
        np.testing.assert_array_equal(lazy.backward(x), dx)
        for mine, other in zip(lazy.parameters(), plain.parameters(), strict=True):
            np.testing.assert_array_equal(mine, other)
            np.testing.assert_array_equal(mine.grad, other.grad)
    for parameter in plain.parameters():
        parameter[...] = rng.normal(size=parameter.shape)
    loaded.load_state_dict(plain.state_dict())
    assert type(loaded) is plain_class
    np.testing.assert_array_equal(loaded(x), plain(x))


def test_sizes_that_do_not_fit_leave_a_norm_lazy():
    x = np.ones((4, 6, 5), np.float32)
    for norm, input, error, words in [
        (cnorm.LazyGroupNorm(4), x, ValueError, r"num_channels \(6\) must be divisible"),
        (cnorm.LazyGroupNorm(4), x[0, 0], RuntimeError, "at least 2 dimensions"),
        (cnorm.LazyLayerNorm(axis=3), x, ValueError, "axis 3 is out of bounds"),
    ]:
        kind = type(norm)
        with pytest.raises(error, match=words):
            norm(input)
        assert type(norm) is kind and norm.has_uninitialized_params()
    norm = cnorm.LazyLayerNorm(axis=(1, 2))
    with pytest.raises(RuntimeError, match="expected one 2-dimensional shape for all parameters"):
        norm.load_state_dict({"weight": np.ones(6), "bias": np.ones(6)})
    with pytest.raises(ValueError, match="must be divisible"):
        cnorm.LazyGroupNorm(4).load_state_dict({"weight": np.ones(6), "bias": np.ones(6)})
    assert type(norm) is cnorm.LazyLayerNorm

"""Bad calls of the functions: the class and the words of torch, and nothing changed by them."""

import re

import numpy as np
import pytest
from operations import calls_of, copied, outcome

import cnorm
import cnorm.functional as F

UNDECIDED = (ValueError, RuntimeError)  # where the contract leaves it open which


class Arrays:
    """What a call is given: `same()` says whether any of it has changed."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.x = rng.normal(size=(2, 6, 4, 5)).astype(np.float32)
        self.dy = rng.normal(size=self.x.shape).astype(np.float32)
        self.weight, self.bias = rng.normal(size=(2, 6))
        self.mean, self.var = rng.normal(size=6), rng.uniform(1, 2, 6)
        self.short = rng.uniform(1, 2, 5)
        self.out = np.full(self.x.shape, 7, np.float32)
        self.before = {k: v.copy() for k, v in vars(self).items()}

    def same(self):
        for name, value in self.before.items():
            np.testing.assert_array_equal(getattr(self, name), value, err_msg=name)


@pytest.fixture
def a():
    return Arrays()


CASES = [
    # one value in a unit
    (
        lambda a: F.batch_norm(a.x[:1, :, 0, 0], a.mean, a.var, training=True),
        ValueError,
        "Expected more than 1 value per channel when training, got input size [1, 6]",
    ),
    (
        lambda a: F.batch_norm(a.x[:1, :, :1, :1], a.mean, a.var, training=True),
        ValueError,
        "Expected more than 1 value per channel when training, got input size [1, 6, 1, 1]",
    ),
    (
        lambda a: F.instance_norm(a.x[:, :, :1, :1], a.mean, a.var),
        ValueError,
        "Expected more than 1 spatial element when training, got input size [2, 6, 1, 1]",
    ),
    (
        lambda a: F.switch_norm(
            a.x[:, :, :1, :1], a.mean, a.var, a.weight, a.bias, np.ones(3), np.ones(3), True
        ),
        ValueError,
        "Expected more than 1 spatial element when training, got input size [2, 6, 1, 1]",
    ),
    # eps
    (
        lambda a: F.batch_norm(a.x, a.mean, a.var, training=True, eps=0.0),
        ValueError,
        "batch_norm eps must be positive during training, but got 0.0",
    ),
    (
        lambda a: F.batch_norm(a.x, a.mean, a.var, eps=-0.1),
        ValueError,
        "batch_norm eps must be non-negative, but got -0.1",
    ),
    # running statistics
    (
        lambda a: F.batch_norm(a.x, a.mean, None, training=True),
        ValueError,
        "running_mean and running_var must either both be None or neither be None",
    ),
    (
        lambda a: F.batch_norm(a.x, None, a.var, training=True),
        ValueError,
        "running_mean and running_var must either both be None or neither be None",
    ),
    (
        lambda a: F.instance_norm(a.x, a.mean, None),
        ValueError,
        "running_mean and running_var must either both be None or neither be None",
    ),
    (
        lambda a: F.batch_norm(a.x),
        RuntimeError,
        "running_mean must be defined in evaluation mode",
    ),
    (
        lambda a: F.instance_norm(a.x, use_input_stats=False),
        RuntimeError,
        "Expected running_mean and running_var to be defined when use_input_stats is false",
    ),
    # the lengths of parameters
    (
        lambda a: F.batch_norm(a.x, a.mean, a.var, a.short, a.bias, True),
        RuntimeError,
        "weight should contain 6 elements not 5",
    ),
    (
        lambda a: F.batch_norm(a.x, a.mean, a.var, a.weight, a.short, True),
        RuntimeError,
        "bias should contain 6 elements not 5",
    ),
    (
        lambda a: F.batch_norm(a.x, a.short, a.var, training=True),
        RuntimeError,
        "running_mean should contain 6 elements not 5",
    ),
    (
        lambda a: F.batch_norm(a.x, a.mean, a.short, training=True),
        RuntimeError,
        "running_var should contain 6 elements not 5",
    ),
    (
        lambda a: F.instance_norm(a.x, a.mean, a.var, a.short),
        RuntimeError,
        "weight should contain 6 elements not 5",
    ),
    (
        lambda a: F.batch_norm(a.x, a.mean, a.var, a.weight, channel_axis=-1),
        RuntimeError,
        "should contain 5 elements not 6",
    ),
    # groups
    (
        lambda a: F.group_norm(a.x[0, 0, 0], 1),
        RuntimeError,
        "Expected at least 2 dimensions for input tensor but received 1",
    ),
    (
        lambda a: F.group_norm(a.x, 4),
        RuntimeError,
        "Expected number of channels in input to be divisible by num_groups, but got input of "
        "shape [2, 6, 4, 5] and num_groups=4",
    ),
    (
        lambda a: F.group_norm(a.x, 0),
        RuntimeError,
        "Expected num groups to be greater than 0, got 0",
    ),
    (
        lambda a: F.group_norm(a.x, -2),
        RuntimeError,
        "Expected num groups to be greater than 0, got -2",
    ),
    (
        lambda a: F.group_norm(a.x, 2, a.short),
        RuntimeError,
        "Expected weight to be a vector of size equal to the number of channels in input, but "
        "got weight of shape [5] and input of shape [2, 6, 4, 5]",
    ),
    (
        lambda a: F.group_norm(a.x, 2, a.weight, a.short),
        RuntimeError,
        "Expected bias to be a vector of size equal to the number of channels in input, but "
        "got bias of shape [5] and input of shape [2, 6, 4, 5]",
    ),
    # normalized_shape
    (
        lambda a: F.layer_norm(a.x, (4, 6)),
        RuntimeError,
        "Given normalized_shape=[4, 6], expected input with shape [*, 4, 6], but got input of "
        "size[2, 6, 4, 5]",
    ),
    (
        lambda a: F.layer_norm(a.x, 4),
        RuntimeError,
        "Given normalized_shape=[4], expected input with shape [*, 4], but got input of "
        "size[2, 6, 4, 5]",
    ),
    (
        lambda a: F.layer_norm(a.x, (1, 2, 6, 4, 5)),
        RuntimeError,
        "Given normalized_shape=[1, 2, 6, 4, 5], expected input with shape [*, 1, 2, 6, 4, 5]",
    ),
    (
        lambda a: F.rms_norm(a.x, 4),
        RuntimeError,
        "Given normalized_shape=[4], expected input with shape [*, 4], but got input of "
        "size[2, 6, 4, 5]",
    ),
    (
        lambda a: F.layer_norm(a.x, ()),
        RuntimeError,
        "Expected normalized_shape to be at least 1-dimensional, i.e., containing at least one "
        "element, but got normalized_shape = []",
    ),
    (
        lambda a: F.layer_norm(a.x, 5, a.weight),
        RuntimeError,
        "Expected weight to be of same shape as normalized_shape, but got weight of shape [6] "
        "and normalized_shape = [5]",
    ),
    (
        lambda a: F.layer_norm(a.x, 5, a.short, a.weight),
        RuntimeError,
        "Expected bias to be of same shape as normalized_shape, but got bias of shape [6] "
        "and normalized_shape = [5]",
    ),
    (
        lambda a: F.rms_norm(a.x, 5, a.weight),
        RuntimeError,
        "Expected weight to be of same shape as normalized_shape, but got weight of shape [6] "
        "and normalized_shape = [5]",
    ),
    # response norms
    (
        lambda a: F.local_response_norm(a.x[0, 0], 3),
        ValueError,
        "Expected 3D or higher dimensionality input (got 2 dimensions)",
    ),
    (lambda a: F.local_response_norm(a.x, 0), UNDECIDED, "size"),
    # out
    (lambda a: F.layer_norm(a.x, 5, out=a.out[:1]), ValueError, "out"),
    (lambda a: F.layer_norm(a.x, 5, out=a.out.astype(np.float64)), (TypeError, ValueError), "out"),
    (lambda a: F.layer_norm(a.x, 5, out=[1.0]), TypeError, "out"),
    (lambda a: F.batch_norm(a.x, a.mean, a.var, training=True, out=a.out[0]), ValueError, "out"),
    (
        lambda a: F.batch_norm(a.x, a.mean, a.var, training=True, out=a.out[..., ::-1][:, :5]),
        ValueError,
        "out",
    ),
    (lambda a: F.group_norm(a.x, 2, out=_frozen(a.out)), ValueError, "read-only"),
    (
        lambda a: F.group_norm(a.x, 2, out=np.broadcast_to(a.out[:1], a.out.shape)),
        ValueError,
        None,
    ),
    # the channel axis
    (lambda a: F.batch_norm(a.x, a.mean, a.var, channel_axis=4), (ValueError, IndexError), None),
    (lambda a: F.group_norm(a.x, 2, channel_axis=-5), (ValueError, IndexError), None),
    # the epilogue
    (lambda a: F.group_norm(a.x, 2, negative_slope=a.short), UNDECIDED, None),
    (lambda a: F.group_norm(a.x, 2, negative_slope="relu"), (TypeError, ValueError), None),
    # residual
    (lambda a: F.add_layer_norm(a.x, a.x[:1], 5), UNDECIDED, None),
    (lambda a: F.add_rms_norm(a.x, a.x.astype(np.int32), 5), TypeError, "int32"),
]


def _frozen(array):
    array = array.copy()
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(("call", "error", "message"), CASES, ids=range(len(CASES)))
def test_bad_calls(a, call, error, message):
    with pytest.raises(error, match=message and re.escape(message)):
        call(a)
    a.same()


@pytest.mark.parametrize("dtype", ["int32", "uint8", "bool", "complex64", "object", "S1"])
def test_what_is_no_float_is_named(a, operation, dtype):
    p = operation.draw(np.random.default_rng(0), a.x.shape, 1)
    p_before = {k: np.copy(v) for k, v in p.items() if isinstance(v, np.ndarray)}
    x = np.ones(a.x.shape).astype(dtype)
    with pytest.raises(TypeError, match=str(x.dtype).strip("|")):
        operation.forward(F, x, p)
    for name, value in p_before.items():
        np.testing.assert_array_equal(p[name], value)


BACKWARD = {
    "batch_norm": lambda a, dy, x, m, r, w, **o: F.batch_norm_backward(dy, x, m, r, w, **o),
    "layer_norm": lambda a, dy, x, m, r, w, **o: F.layer_norm_backward(
        dy, x, 5, np.zeros((*x.shape[:-1], 1)), np.ones((*x.shape[:-1], 1)), **o
    ),
    "rms_norm": lambda a, dy, x, m, r, w, **o: F.rms_norm_backward(
        dy, x, 5, np.ones((*x.shape[:-1], 1)), **o
    ),
    "group_norm": lambda a, dy, x, m, r, w, **o: F.group_norm_backward(
        dy, x, 2, np.zeros((2, 2)), np.ones((2, 2)), w, **o
    ),
    "instance_norm": lambda a, dy, x, m, r, w, **o: F.instance_norm_backward(
        dy, x, np.zeros((2, 6)), np.ones((2, 6)), w, **o
    ),
    "local_response_norm": lambda a, dy, x, m, r, w, **o: F.local_response_norm_backward(
        dy, x, 3, **o
    ),
}


@pytest.mark.parametrize("name", BACKWARD)
def test_bad_gradients(a, name):
    def backward(dy, **options):
        return BACKWARD[name](a, dy, a.x, a.mean, a.var, a.weight, **options)

    backward(a.dy)
    for dy in (a.dy[:1], a.dy[..., :4], a.dy[0], a.dy.reshape(2, 6, 20), a.dy.ravel()):
        with pytest.raises(UNDECIDED, match=r"grad_output|shape|size"):
            backward(dy)
    with pytest.raises(TypeError, match="int32"):
        backward(a.dy.astype(np.int32))
    with pytest.raises(ValueError, match="out"):
        backward(a.dy, out=a.out[:1])
    with pytest.raises((TypeError, ValueError), match="out"):
        backward(a.dy, out=a.out.astype(np.float64))
    a.same()


def test_bad_statistics(a):
    for wrong in (a.mean[:5], np.zeros((2, 6)), 0.0):
        with pytest.raises(UNDECIDED, match="mean"):
            F.batch_norm_backward(a.dy, a.x, wrong, a.var)
        with pytest.raises(UNDECIDED, match="rstd"):
            F.batch_norm_backward(a.dy, a.x, a.mean, wrong)
    with pytest.raises(UNDECIDED, match="mean"):
        F.instance_norm_backward(a.dy, a.x, a.mean, np.ones((2, 6)))
    with pytest.raises(UNDECIDED, match="mean"):
        F.layer_norm_backward(a.dy, a.x, 5, np.zeros((2, 6, 4, 5)), np.ones((2, 6, 4, 1)))
    a.same()


@pytest.mark.parametrize("error", [BufferError, TypeError, ValueError, RuntimeError])
def test_what_cannot_be_exported_is_named(a, error):
    class Elsewhere:
        def __dlpack__(self, **options):
            raise error("in the memory of another device")

        def __dlpack_device__(self):
            return 1, 0

    words = rf"__dlpack__ raised {error.__name__}: in the memory of another device"
    with pytest.raises(TypeError, match=f"input cannot be read as an array: its {words}"):
        F.layer_norm(Elsewhere(), 5)
    with pytest.raises(TypeError, match=f"weight cannot be read as an array: its {words}"):
        F.batch_norm(a.x, None, None, Elsewhere(), training=True)
    with pytest.raises(TypeError, match=f"input cannot be read as an array: its {words}"):
        cnorm.BatchNorm2d(6)(Elsewhere())
    a.same()


@pytest.mark.parametrize(
    ("groups", "error"), [(0, ValueError), (0.0, TypeError), (2.0, TypeError), ("3", TypeError)]
)
def test_groups_of_a_layer(groups, error):
    with pytest.raises(error, match="num_groups must be a positive integer"):
        cnorm.GroupNorm(groups, 6)


def test_an_empty_tuple_for_any_argument(a, operation, rng):
    """() is a shape, a size and a vector of nothing: refused where it does not fit."""
    for function, arguments in calls_of(operation, rng):
        for name in arguments:
            if name in (
                "training",
                "use_input_stats",
                "return_stats",
                "zero_centered_gamma",
            ):  # false
                continue
            if function is not F.normalize or name != "input":  # any axis may have no elements
                found = outcome(function, copied(arguments) | {name: ()})
                assert isinstance(found, tuple), (function.__name__, name)
                assert re.search(name.removeprefix("grad_"), found[1]) or "shape" in found[1], found


@pytest.mark.parametrize("name", ["eps", "momentum", "alpha", "size", "num_groups"])
def test_a_number_that_is_none_is_named(a, name):
    calls = {
        "eps": lambda v: F.layer_norm(a.x, 5, eps=v),
        "momentum": lambda v: F.batch_norm(a.x, a.mean, a.var, training=True, momentum=v),
        "alpha": lambda v: F.local_response_norm(a.x, 3, alpha=v),
        "size": lambda v: F.local_response_norm(a.x, v),
        "num_groups": lambda v: F.group_norm(a.x, v),
    }
    for value in ("text", (), [1], None):
        with pytest.raises(TypeError, match=f"{name} must be an? (number|integer), but got"):
            calls[name](value)
    a.same()


def test_options_are_keyword_only(a):
    with pytest.raises(TypeError):
        F.layer_norm(a.x, 5, None, None, 1e-5, a.out)
    with pytest.raises(TypeError):
        F.group_norm(a.x, 2, None, None, 1e-5, a.out)
    with pytest.raises(TypeError):
        F.batch_norm(a.x, a.mean, a.var, None, None, False, 0.1, 1e-5, a.out)
    a.same()

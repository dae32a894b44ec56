"""Objects that answer differently the second time, or change an array while they are asked.

A call asks each argument once, and all of them before it checks any: the outcome is the same as
if what the answers changed had been changed before the call.
"""

import numpy as np
import pytest
from operations import calls_of, copied, outcome

import cnorm

NUMBERS = {
    "eps", "momentum", "alpha", "beta", "k", "size", "num_groups", "normalized_shape", "training",
    "use_input_stats", "return_stats", "channel_axis", "using_moving_average", "p", "dim",
}  # fmt: skip
WRITTEN = ("out", "residual_out", "running_mean", "running_var", "count")


class Changing:
    """An array-like with another shape each time that it is asked."""

    def __init__(self, array, effect=lambda: None):
        self.array, self.effect, self.asked = array, effect, 0

    def __array__(self, dtype=None, copy=None):
        self.asked += 1
        self.effect()
        array = self.array if self.asked == 1 else np.ones(self.asked, self.array.dtype)
        return array.copy() if dtype is None else array.astype(dtype)


class Number(int):
    """A number with an effect when it is converted: it is no float and no int before."""

    def __new__(cls, value, effect):
        self = super().__new__(cls, int(value))
        self.value, self.effect = value, effect
        return self

    def __float__(self):
        self.effect()
        return float(self.value)


class Index:
    def __init__(self, value, effect):
        self.value, self.effect = value, effect

    def __index__(self):
        self.effect()
        return int(self.value)

    def __float__(self):
        self.effect()
        return float(self.value)

    def __bool__(self):
        self.effect()
        return bool(self.value)

    def __eq__(self, other):
        return True

    __hash__ = None


class Equal(int):
    """A size that equals every other."""

    def __eq__(self, other):
        return True

    def __ne__(self, other):
        return False

    __hash__ = int.__hash__


def _arrays(arguments):
    return [k for k, v in arguments.items() if isinstance(v, np.ndarray) and v.size]


def _shrink(array):
    array.resize((max(1, array.size // 2),), refcheck=False)


def _spoiling_numbers(arguments):
    """The arguments that are numbers, and what makes an object of each."""
    for name in NUMBERS & set(arguments):
        value = arguments[name]
        if isinstance(value, tuple):
            if value:
                yield name, lambda effect, v=value: (Index(v[0], effect), *v[1:])
        elif value is not None:
            yield name, lambda effect, v=value: Index(v, effect)
    yield "negative_slope", lambda effect: Number(0.25, effect)
    yield "clip", lambda effect: (-0.5, Number(0.25, effect))


def _with_options(function, arguments):
    """Options that a call takes besides those that the operations give."""
    options = {"channel_axis": 1} if "channel_axis" in _names(function) else {}
    like = next(arguments[k] for k in ("input", "sum") if k in arguments)
    options["out"] = np.zeros_like(like)
    if "eps" in _names(function):
        options["eps"] = 1e-5
    if "momentum" in _names(function):
        options["momentum"] = 0.25
    return options | arguments


def _names(function):
    from inspect import signature

    return signature(function).parameters


def _same_as_before_or_without(function, call, before, without):
    """As if the array had been changed before the call, or as if it was copied before that.

    The latter is also the outcome where a number is not asked for, as momentum in evaluation.
    """
    possible = outcome(function, before), outcome(function, without)
    assert outcome(function, call) in possible, function.__name__


def test_array_likes_are_asked_once(operation, rng):
    slope = rng.uniform(0.1, 0.9, 6)
    for function, arguments in calls_of(operation, rng, slope=slope):
        for name in set(_arrays(arguments)) - set(WRITTEN):
            call = copied(arguments)
            call[name] = Changing(call[name])
            expected = outcome(function, copied(arguments))
            assert outcome(function, call) == expected, (function.__name__, name)
            assert call[name].asked == 1, (function.__name__, name)


@pytest.mark.parametrize("slope", [None, "slope"])
def test_numbers_that_change_an_array(operation, slope, rng):
    slope = None if slope is None else rng.uniform(0.1, 0.9, 6)
    for function, arguments in calls_of(operation, rng, slope=slope):
        arguments = _with_options(function, arguments)
        for number, spoiling in _spoiling_numbers(arguments):
            if number in ("negative_slope", "clip") and slope is not None:
                continue
            for name in _arrays(arguments):
                before, call, without = (copied(arguments) for _ in range(3))
                _shrink(before[name])
                before[number] = without[number] = spoiling(lambda: None)
                call[number] = spoiling(lambda array=call[name]: _shrink(array))
                _same_as_before_or_without(function, call, before, without)


def test_array_likes_that_change_an_array(operation, rng):
    slope = rng.uniform(0.1, 0.9, 6)
    for function, arguments in calls_of(operation, rng, slope=slope):
        arguments = _with_options(function, arguments)
        arrays = _arrays(arguments)
        for asked in set(arrays) - set(WRITTEN):
            for name in set(arrays) - {asked}:
                before, call = copied(arguments), copied(arguments)
                _shrink(before[name])
                call[asked] = Changing(call[asked], lambda array=call[name]: _shrink(array))
                _same_as_before_or_without(function, call, before, copied(arguments))


@pytest.mark.parametrize("name", ["layer_norm", "rms_norm", "add_layer_norm", "add_rms_norm"])
def test_sizes_that_equal_every_other(name, rng):
    function = getattr(cnorm.functional, name)
    x = rng.normal(size=(3, 6))
    residual = (x,) if "add" in name else ()
    for row in (Equal(3), (Equal(3),)):
        with pytest.raises(RuntimeError, match="normalized_shape"):
            function(x, *residual, row, np.ones(6))
        with pytest.raises(RuntimeError, match="normalized_shape"):
            function(x, *residual, row, np.ones(3))


LAYERS = {
    "BatchNorm2d": lambda: cnorm.BatchNorm2d(6),
    "InstanceNorm2d": lambda: cnorm.InstanceNorm2d(6, affine=True, track_running_stats=True),
    "GroupNorm": lambda: cnorm.GroupNorm(3, 6),
    "LayerNorm": lambda: cnorm.LayerNorm(5),
    "RMSNorm": lambda: cnorm.RMSNorm(5, eps=1e-5),
    "SwitchNorm2d": lambda: cnorm.SwitchNorm2d(6),
    "LocalResponseNorm": lambda: cnorm.LocalResponseNorm(3),
    "CrossMapLRN2d": lambda: cnorm.CrossMapLRN2d(3),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_ask_their_input_once(name, rng):
    x, dy = rng.normal(size=(2, 3, 6, 4, 5)).astype(np.float32)
    layer, twin = LAYERS[name](), LAYERS[name]()
    changing = Changing(x)
    assert layer(changing).tobytes() == twin(x).tobytes()
    assert layer.backward(Changing(dy)).tobytes() == twin.backward(dy).tobytes()
    assert changing.asked == 1
    states = [[v.tobytes() for v in each.state_dict().values()] for each in (layer, twin)]
    assert states[0] == states[1]


@pytest.mark.parametrize("attribute", ["eps", "momentum", "num_groups", "size", "alpha", "k"])
@pytest.mark.parametrize("name", LAYERS)
def test_layers_whose_numbers_change_an_array(name, attribute, rng):
    for changed in ("input", "running_mean", "running_var"):
        layer = LAYERS[name]()
        if not hasattr(layer, attribute) or (not hasattr(layer, changed) and changed != "input"):
            continue
        x = rng.normal(size=(3, 6, 4, 5)).astype(np.float32)
        array = x if changed == "input" else getattr(layer, changed)
        setattr(layer, attribute, Index(getattr(layer, attribute), lambda a=array: _shrink(a)))
        with pytest.raises((TypeError, ValueError, RuntimeError)):
            layer(x)
        assert layer._kept is None


def test_a_count_of_batches_that_is_no_number(rng):
    norm = cnorm.BatchNorm1d(3)
    norm.num_batches_tracked = np.array(None)
    before = norm.running_mean.copy()
    with pytest.raises(TypeError, match="num_batches_tracked"):
        norm(rng.normal(size=(4, 3)))
    np.testing.assert_array_equal(norm.running_mean, before)

"""Common mistakes: each message names the argument, what came, and the way out."""

import re
import subprocess
import sys
import traceback
import warnings
from pathlib import Path

import numpy as np
import pytest

import cnorm
import cnorm.functional as F
from cnorm import checkpoint, steps

MOMENTS = F.moments([[1.0, 2.0], [3.0, 5.0]], 0)
P = cnorm.Parameter(np.ones(5, np.float32))


class Own(cnorm.Module):
    """A layer that somebody writes."""


class Arrays:
    """What the calls take."""

    x = np.random.default_rng(0).normal(size=(2, 6, 4, 5)).astype(np.float32)
    last = np.ones((2, 8, 8, 3), np.float32)  # channels last
    row = x[0, 0, 0]
    mean, var, weight = np.zeros(6, np.float32), np.ones(6, np.float32), np.ones(6, np.float32)
    mask = np.ma.masked_greater(x, 1)
    o = x.astype(object)
    one = np.ones((1, 6), np.float32)
    single = np.arange(x.size).reshape(x.shape) < 1

    @staticmethod
    def of(*shape):
        """A mask."""
        return np.ones(shape, bool)


class NeedsGrad:
    """A tensor of torch's that autograd follows."""

    requires_grad = True

    def __dlpack__(self, **options):
        raise BufferError("Can't export tensors that require gradient, use tensor.detach()")

    def __array__(self, *arguments, **options):
        raise RuntimeError("Can't call numpy() on Tensor that requires grad.")


class Sparse:
    """A matrix of scipy.sparse."""

    shape = (2, 5)

    def toarray(self):
        return np.ones(self.shape)


LAST = "input has 3 channels on its last axis: channel_axis=-1?"
NUMBER = "eps must be a number, but got str '1e-5': write eps=1e-5, without quotes"
FLOATS = "input must be a float32, float64, float16 or bfloat16 array, but got dtype"
AUTOGRAD = "is a torch tensor that requires grad"
ROW = "where must broadcast to the input's shape (2, 6, 4, 5)", "but got (2,)"
ONE = "Expected more than 1 value per channel", "one value has no variance: "
NONE = "where[:, None, None, None] does"
FIRST_LAST = "1 is channels first, -1 channels last"
ORDER = "the input comes first, layer_norm(input, normalized_shape)"
AXES = "normalized_shape = [4], but got axis = (0, 1)", "normalized_shape is the sizes of these"
ONES = np.zeros(1), np.ones(1)
HALF = [0.5] * 3, [0.5] * 3
SLOPES = "1 or 3 slopes, but got one of 5", "cnorm.PReLU(3) fits"
TAKES = "takes (input, where): forward() got an unexpected"
RELU = "such as activation=cnorm.ReLU(), but got"

# The call, the class, and what its text must hold.
CALLS = [
    # channels last, without channel_axis
    (lambda a: cnorm.BatchNorm2d(3)(a.last), RuntimeError, "running_mean", LAST),
    (lambda a: cnorm.SyncBatchNorm(3, process_group=Alone())(a.last), RuntimeError, LAST),
    (lambda a: cnorm.SwitchNorm2d(3)(a.last), RuntimeError, "running_mean", LAST),
    (lambda a: cnorm.GroupNorm(3, 3)(a.last), RuntimeError, "num_groups=3", LAST),
    (lambda a: cnorm.InstanceNorm2d(3, affine=True)(a.last), ValueError, "num_features (3)", LAST),
    (lambda a: cnorm.PReLU(3)(a.last), RuntimeError, "parameter", LAST),
    (lambda a: F.batch_norm(a.last, np.zeros(3), np.ones(3)), RuntimeError, "running_mean", LAST),
    (lambda a: F.instance_norm(a.last, weight=np.ones(3)), RuntimeError, "weight", LAST),
    (lambda a: F.group_norm(a.last, 4, np.ones(3)), RuntimeError, "weight", LAST),
    (
        lambda a: cnorm.BatchNorm2d(6, channel_axis=-1)(a.x),
        RuntimeError,
        "running_mean",
        "input has 6 channels on axis 1: channel_axis=1?",
    ),
    # the channel axis under other names, and other values of it
    (
        lambda a: cnorm.BatchNorm2d(3, channels_last=True),
        TypeError,
        "BatchNorm2d() got an unexpected keyword argument 'channels_last'",
        "channel_axis=-1",
    ),
    (lambda a: cnorm.GroupNorm(3, 6, data_format="NHWC"), TypeError, "channel_axis=-1"),
    (lambda a: cnorm.InstanceNorm2d(3, dim=1), TypeError, "InstanceNorm2d()", "channel_axis?"),
    (lambda a: cnorm.BatchNorm1d(3, axis=1), TypeError, "BatchNorm1d()", "channel_axis?"),
    (lambda a: F.batch_norm(a.x, axis=1), TypeError, "'axis'", "did you mean channel_axis?"),
    (lambda a: F.group_norm(a.x, 2, axis=1), TypeError, "'axis'", "did you mean channel_axis?"),
    (lambda a: F.instance_norm(a.x, channels_last=True), TypeError, "channel_axis=-1"),
    (lambda a: F.local_response_norm(a.x, 3, dim=1), TypeError, "'dim'", "channel_axis?"),
    (lambda a: cnorm.BatchNorm2d(3, channel_axis=None), TypeError, "channel_axis", FIRST_LAST),
    (lambda a: cnorm.GroupNorm(2, 6, channel_axis="last"), TypeError, "'last'", FIRST_LAST),
    (lambda a: F.group_norm(a.x, 2, channel_axis=None), TypeError, "channel_axis", FIRST_LAST),
    (lambda a: F.group_norm(a.x, 2, channel_axis=0), ValueError, "channel_axis 0", FIRST_LAST),
    (lambda a: F.batch_norm(a.x, channel_axis=4), ValueError, "channel_axis 4", FIRST_LAST),
    (lambda a: F.batch_norm(a.x, axis=(0, 2)), TypeError, "functional.standardize takes any axes"),
    # other names that other libraries use, and none
    (lambda a: F.normalize(a.x, axis=1), TypeError, "'axis'", "did you mean dim?"),
    (lambda a: F.normalize(a.x, p="inf"), TypeError, "p must be a number", "write p=np.inf"),
    (lambda a: F.normalize(a.x, p="2"), TypeError, "write p=2, without quotes"),
    (lambda a: F.standardize(a.x, 0, mask=a.x > 0), TypeError, "did you mean where?"),
    (lambda a: F.standardize(a.x, 0, std=1), TypeError, "var=std**2 is the variance"),
    (lambda a: F.moments(a.x, 0, keepdims=True), TypeError, "'keepdims'", "expand_dims(m.mean, ax"),
    (lambda a: F.standardize(a.x, 0, keepdims=True), TypeError, "of return_stats=True have size 1"),
    (lambda a: F.normalize(a.x, keepdim=True), TypeError, "of return_stats=True have size 1"),
    (lambda a: F.moments(a.x, 0, ddof=1), TypeError, "moments(...).var(ddof)"),
    (lambda a: cnorm.ReLU(inplace=True), TypeError, "ReLU()", "returns a new array"),
    (lambda a: cnorm.LayerNorm(5, epsilon=1e-5), TypeError, "'epsilon'", "did you mean eps?"),
    (lambda a: cnorm.LayerNorm(5, affine=False), TypeError, "mean elementwise_affine?"),
    (lambda a: cnorm.LayerNorm(5, channel_axis=1), TypeError, "'channel_axis'", "last axes"),
    (lambda a: cnorm.BatchNorm2d(num_channels=3), TypeError, "did you mean num_features?"),
    (lambda a: cnorm.BatchNorm2d(), TypeError, "'num_features'", "BatchNorm2d(num_features, eps"),
    (lambda a: cnorm.RMSNorm(5, bias=True), TypeError, "'bias'", "RMSNorm(normalized_shape, eps"),
    (lambda a: F.layer_norm(a.x, 5, gamma=a.x), TypeError, "'gamma'", "did you mean weight?"),
    (lambda a: F.layer_norm(a.x, 5, wieght=a.x), TypeError, "'wieght'", "did you mean weight?"),
    (
        lambda a: F.layer_norm(a.x),
        TypeError,
        "normalized_shape is missing: layer_norm(input, normalized_shape, ",
    ),
    (lambda a: F.standardize(input=a.x), TypeError, "axis is missing: standardize(input, axis, "),
    (lambda a: F.layer_norm(a.x, 5, inplace=True), TypeError, "'inplace'", "out=input"),
    (lambda a: steps.moments(a.x, axis=1), TypeError, "'axis'", "did you mean channel_axis?"),
    (lambda a: cnorm.BatchNorm2d(3)(), TypeError, "forward() missing", "'input'"),
    (lambda a: cnorm.BatchNorm2d(3)(a.last, channel_axis=-1), TypeError, "'channel_axis'"),
    (lambda a: cnorm.LayerNorm(3).backward(), TypeError, "backward() missing", "'grad_output'"),
    (lambda a: cnorm.LayerNorm(5)(a.x, mask=a.of(5)), TypeError, "'mask'", f"LayerNorm {TAKES}"),
    (lambda a: cnorm.BatchNorm2d(6)(a.x, out=a.x), TypeError, "'out'", f"BatchNorm2d {TAKES}"),
    (lambda a: cnorm.ReLU()(a.x, out=a.x), TypeError, "'out'", "ReLU takes (input): forward()"),
    # what is no array of floats
    (lambda a: F.layer_norm(np.arange(5), 5), TypeError, FLOATS, "np.asarray(input, np.float32)"),
    (lambda a: cnorm.BatchNorm2d(3)(np.ones((2, 3, 4, 4), np.uint8)), TypeError, FLOATS, "uint8"),
    (lambda a: cnorm.ReLU()(np.arange(3)), TypeError, FLOATS, "np.asarray(input, np.float32)"),
    (lambda a: F.layer_norm([1, 2, 3], 3), TypeError, FLOATS, "np.asarray(input, np.float32)"),
    (lambda a: F.layer_norm(a.x, 5, np.ones(5, int)), TypeError, "np.asarray(weight, np.float32)"),
    (lambda a: F.layer_norm(a.x * 1j, 5), TypeError, FLOATS, "complex64", "input.real"),
    (lambda a: F.layer_norm(a.x.astype(object), 5), TypeError, FLOATS, "if all its elements"),
    (lambda a: F.layer_norm(["a", "b"], 2), TypeError, FLOATS, "it holds text"),
    (
        lambda a: F.layer_norm([[1.0, 2.0], [3.0]], 2),
        ValueError,
        "input cannot be read as an array",
    ),
    (lambda a: F.layer_norm(None, 2), TypeError, "input must be an array, but got None"),
    (lambda a: cnorm.BatchNorm2d(3)(None), TypeError, "input must be an array, but got None"),
    (lambda a: F.layer_norm({"x": a.x}, 5), TypeError, "input must be an array, but got dict"),
    (lambda a: F.layer_norm(Sparse(), 5), TypeError, "Sparse of shape (2, 5)", "input.toarray()"),
    (lambda a: F.layer_norm(a.x, 5, a.mask[0, 0, 0]), TypeError, "weight", "weight.filled"),
    (lambda a: F.layer_norm(NeedsGrad(), 5), TypeError, AUTOGRAD, "cnorm.interop.torch"),
    (lambda a: cnorm.BatchNorm1d(3)(NeedsGrad()), TypeError, AUTOGRAD, "input.detach()"),
    (lambda a: F.layer_norm(a.x, 5, NeedsGrad()), TypeError, AUTOGRAD, "weight.detach()"),
    # numbers
    (lambda a: F.layer_norm(a.x, 5, eps="1e-5"), TypeError, NUMBER),
    (lambda a: cnorm.LayerNorm(5, eps="1e-5"), TypeError, NUMBER),
    (lambda a: cnorm.BatchNorm2d(3, eps="1e-5"), TypeError, NUMBER),
    (lambda a: cnorm.GroupNorm(1, 3, eps="1e-5"), TypeError, NUMBER),
    (lambda a: cnorm.BatchNorm2d(3, momentum="0.1"), TypeError, "write momentum=0.1, without"),
    (lambda a: cnorm.LayerNorm(6.0), TypeError, "normalized_shape", "float 6.0: write 6"),
    (lambda a: cnorm.RMSNorm("6"), TypeError, "normalized_shape", "without quotes"),
    (lambda a: cnorm.BatchNorm2d("3"), TypeError, "num_features", "write num_features=3, without"),
    (lambda a: cnorm.SwitchNorm2d("3"), TypeError, "num_features", "write num_features=3, without"),
    (lambda a: cnorm.BatchNorm2d(-3), RuntimeError, "negative dimension -3", "num_features"),
    (lambda a: cnorm.GroupNorm(2, "6"), TypeError, "num_channels", "write num_channels=6, without"),
    (lambda a: cnorm.GroupNorm(6, 3), ValueError, "order is GroupNorm(num_groups, num_channels)"),
    (lambda a: cnorm.GroupNorm(32, 48), ValueError, "num_groups=16 or 24 would do"),
    (lambda a: cnorm.LocalResponseNorm("3"), TypeError, "size", "write size=3, without quotes"),
    (lambda a: F.local_response_norm(a.x, 0), ValueError, "size must be", "0: a window has at le"),
    (lambda a: F.local_response_norm(a.x, 2**70), ValueError, "size", "no array has so many chann"),
    (lambda a: cnorm.LocalResponseNorm(0), ValueError, "size must be a positive integer"),
    (lambda a: cnorm.LeakyReLU("a"), TypeError, "negative_slope", "0.0 is ReLU"),
    (lambda a: F.group_norm(a.x, 2.0), TypeError, "num_groups", "float 2.0: write 2"),
    (lambda a: F.layer_norm(a.x, 5, negative_slope="relu"), TypeError, "0.0 is ReLU"),
    (lambda a: F.layer_norm(a.x, 5, negative_slope=cnorm.ReLU()), TypeError, "0.0 is ReLU"),
    (lambda a: F.batch_norm(a.x, a.mean, a.var, training="no"), TypeError, "training must be True"),
    # shapes
    (lambda a: F.layer_norm(a.x, -1), RuntimeError, "normalized_shape", "the last axis is 5"),
    (lambda a: cnorm.LayerNorm(6)(a.x), RuntimeError, "normalized_shape", "axis 1 has 6 elements"),
    (
        lambda a: cnorm.BatchNorm2d(7)(a.x),
        RuntimeError,
        "running_mean should contain 6 elements not 7",
        "input has 6 channels on axis 1, and running_mean is of 7: make the layer for 6, or name",
    ),
    (lambda a: F.batch_norm(a.x, weight=np.ones(3), training=True), RuntimeError, "weight is of 3"),
    (lambda a: cnorm.GroupNorm(1, 7)(a.x), RuntimeError, "weight is of 7: make the layer for 6"),
    (lambda a: cnorm.BatchNorm1d(6)(a.one), ValueError, *ONE, "eval() of a layer", "group_norm"),
    (lambda a: F.batch_norm(a.x, training=True, where=a.single), ValueError, *ONE, "more samples"),
    (lambda a: F.group_norm(a.one, 6), ValueError, *ONE, "fewer groups (num_groups)"),
    (lambda a: cnorm.SwitchNorm1d(1)(a.one.T), ValueError, *ONE, "batch_norm normalizes over"),
    (lambda a: cnorm.InstanceNorm1d(6)(a.one[..., None]), ValueError, "spatial", ONE[1], "layer_n"),
    (lambda a: cnorm.BatchNorm2d(6)(a.x[0]), ValueError, "got 3D input", "input[None]"),
    (lambda a: cnorm.BatchNorm1d(6)(a.x), ValueError, "got 4D input", "BatchNorm2d takes 4D input"),
    (
        lambda a: F.group_norm(a.x, 2, np.ones((1, 6, 1, 1))),
        RuntimeError,
        "weight of shape [1, 6, 1, 1]",
        "weight.reshape(-1)",
    ),
    (lambda a: cnorm.BatchNorm2d(5)(a.x[0, 0]), ValueError, "got 2D input", "BatchNorm1d takes a"),
    (lambda a: cnorm.BatchNorm1d(5)(a.x[0, 0, 0]), ValueError, "got 1D input", "input[:, None] is"),
    # masks
    (lambda a: F.batch_norm(a.x, training=True, where=a.of(2)), ValueError, *ROW, NONE),
    (lambda a: cnorm.BatchNorm2d(6)(a.x, where=a.of(2)), ValueError, *ROW, NONE),
    (lambda a: F.layer_norm(a.x, 5, where=a.of(2)), ValueError, *ROW, NONE),
    (lambda a: F.group_norm(a.x, 2, where=a.of(2, 4, 5)), ValueError, "where[:, None, :, :] does"),
    (lambda a: F.instance_norm(a.x, where=a.of(2, 5)), ValueError, "where[:, None, None, :] does"),
    (lambda a: F.rms_norm(a.x, 5, where=a.of(6)), ValueError, "where[:, None, None] does"),
    (lambda a: F.add_rms_norm(a.x, a.x, 5, where=a.of(2, 6)), ValueError, "[:, :, None, None] do"),
    (lambda a: F.rms_norm(a.x, 5, where=a.of(7)), ValueError, "got (7,): each", "must have size 1"),
    (lambda a: F.rms_norm(a.x, 5, where=a.of(5, 4, 6, 2)), ValueError, "where.transpose(...)"),
    (lambda a: F.layer_norm(np.ones((3, 3)), 3, where=a.of(1, 3, 3)), ValueError, "got (1, 3, 3)"),
    (lambda a: F.rms_norm(np.ones((3, 3, 4)), 4, where=a.of(3)), ValueError, "None] or where[:, N"),
    (lambda a: F.layer_norm(a.x, 5, where=a.of(5).astype(object)), TypeError, "where.astype(bool)"),
    (lambda a: F.layer_norm(a.x, 5, where=np.ones(5)), TypeError, "float64", "example mask > 0"),
    (lambda a: F.layer_norm(a.x, 5, where=np.arange(5)), TypeError, "lengths by np.arange(T) <"),
    # arrays of objects
    (lambda a: F.batch_norm(a.o, training=True), TypeError, "object: if", "asarray(input, np.floa"),
    (lambda a: cnorm.GroupNorm(2, 6)(a.o), TypeError, "object: if", "np.asarray(input, np.floa"),
    (lambda a: F.standardize(a.o, 0), TypeError, "object: if", "np.asarray(input, np.float32)"),
    (lambda a: F.moments(a.o), TypeError, "object: if", "np.asarray(input, np.float32)"),
    (lambda a: F.normalize_image(a.o, 0, 1), TypeError, "object", "np.asarray(input, np.float32)"),
    (
        lambda a: F.normalize_image(np.zeros((2, 3, 8, 8), np.uint8), [0.5] * 3, [0.5] * 3),
        ValueError,
        "mean has 3 values",
        "channel_axis=1?",
    ),
    (
        lambda a: F.group_norm(np.zeros((2, 6, 4, 4)), 5),
        RuntimeError,
        "divisible by num_groups",
        "num_groups of 1, 2, 3, 6 divides the 6 channels on axis 1",
    ),
    (
        lambda a: F.layer_norm(np.zeros((4, 16)), 16, axis=0),
        RuntimeError,
        "normalized_shape",
        "leave axis out?",
    ),
    (lambda a: cnorm.LayerNorm2d, AttributeError, "LayerNorm2d", "LayerNorm(C, axis=1)"),
    # arguments that are swapped, or of which one is left out
    (lambda a: F.layer_norm(5, a.x), TypeError, "of shape (2, 6, 4, 5)", ORDER),
    (lambda a: F.layer_norm(5, a.row), TypeError, "ndarray of shape (5,)", ORDER),
    (lambda a: F.rms_norm(2, [[1.0, 2.0]]), TypeError, "list [[1.0, 2.0]]", ORDER),
    (lambda a: F.group_norm(3, a.x), TypeError, "of shape (2, 6, 4, 5)", "group_norm(input, num_g"),
    (lambda a: F.layer_norm(a.x, axis=-1), TypeError, "size of what is normalized", "x.shape[-1]"),
    (
        lambda a: F.rms_norm(a.x, 5, a.row, a.row),
        TypeError,
        "eps must be a",
        "rms_norm has no bias",
    ),
    (lambda a: F.instance_norm(a.x, training=True), TypeError, "did you mean use_input_stats?"),
    (lambda a: F.batch_norm(a.x, use_input_stats=True), TypeError, "did you mean training?"),
    (lambda a: F.batch_norm(a.x, True), TypeError, "running_mean", "bool True", "training=True, "),
    (lambda a: F.batch_norm(a.x, 1e-3), TypeError, "running_mean", "eps, are passed by name"),
    (lambda a: F.batch_norm(a.x, a.mean, a.var, True), RuntimeError, "bool True", "training=True"),
    (
        lambda a: F.batch_norm(a.x[:, :1], *ONES, True),
        TypeError,
        "dtype bool: a flag is passed by its",
    ),
    (lambda a: F.batch_norm(a.x, a.mean, a.var, 1e-3), RuntimeError, "weight should", "eps=0.001?"),
    (lambda a: F.instance_norm(a.x, bias=1e-3), RuntimeError, "bias should", "eps=0.001?"),
    (lambda a: F.group_norm(a.x, 3, 2), RuntimeError, "weight is an array, but got the int 2"),
    (lambda a: F.layer_norm(a.x, 5, 1e-5), RuntimeError, "Expected weight to", "mean eps=1e-05?"),
    (lambda a: F.layer_norm(a.x, 5, a.row, 1e-5), RuntimeError, "bias is an array", "eps=1e-05?"),
    # one value in the place of several, and the other way about
    (lambda a: F.layer_norm(a.x, "16"), TypeError, "str '16': write normalized_shape=16, without"),
    (lambda a: F.layer_norm(a.x, np.array([5.0])), TypeError, "shape (1,): write (5,)"),
    (lambda a: F.group_norm(a.x, np.array([2.0])), TypeError, "num_groups", "write 2"),
    (lambda a: F.layer_norm(a.x, float), TypeError, "the class float"),
    (lambda a: F.layer_norm(a.x, 5, "ones"), RuntimeError, "weight", "it holds text"),
    (lambda a: F.layer_norm(a.x, 5, True), RuntimeError, "weight", "the other norms have none"),
    (lambda a: F.layer_norm(a.x, ["5"]), TypeError, "str '5': write normalized_shape=5, without"),
    (lambda a: cnorm.BatchNorm1d((4,)), TypeError, "num_features", "tuple (4,): write 4"),
    (lambda a: cnorm.GroupNorm(2, [4]), TypeError, "num_channels", "list [4]: write 4"),
    (lambda a: cnorm.SwitchNorm2d((4,)), TypeError, "num_features", "tuple (4,): write 4"),
    (lambda a: cnorm.GroupNorm(-2, 4), ValueError, "num_groups must be a positive", "got -2"),
    # moments
    (lambda a: cnorm.Moments.merge(MOMENTS), TypeError, "parts must be several", "a + b merges"),
    (lambda a: cnorm.Moments(0).update(MOMENTS), TypeError, "input must be data", "a += b"),
    (lambda a: cnorm.Moments.from_dict({"format": 1}), ValueError, "key 'all_axes'", "m.to_dict()"),
    (lambda a: MOMENTS.standardize(np.ones(2)), ValueError, "(2,)", "input[None] is a batch of"),
    (lambda a: cnorm.BatchNorm1d(2).load_moments(a.x), TypeError, "got ndarray", "but that of the"),
    (
        lambda a: cnorm.BatchNorm1d(3).load_moments(MOMENTS),
        ValueError,
        "must have shape (3,)",
        "but that of the channels",
    ),
    (lambda a: cnorm.Hardtanh(1, -1), ValueError, "min_val must be at most max_val", "1 and -1"),
    (lambda a: F.standardize(a.o, 0), TypeError, "to_numpy(float, na_value=np.nan)"),
    # a layer of one's own
    (lambda a: Own().accumulate(a.row, a.row), TypeError, "pairs (parameter, gradient)", "got nd"),
    (lambda a: Own().accumulate((a.row, a.row)), TypeError, "cnorm.Parameter(array)"),
    (
        lambda a: Own().accumulate((P, a.row[:2])),
        RuntimeError,
        "shape of [2]",
        "backward of Own: has",
    ),
    # axes
    (lambda a: cnorm.LayerNorm(4, axis=1.0), TypeError, "axis must be None, an", "1.0: write 1"),
    (lambda a: cnorm.LayerNorm(4, axis="1"), TypeError, "axis", "write axis=1, without quotes"),
    (lambda a: cnorm.RMSNorm(4, axis="1"), TypeError, "axis", "write axis=1, without quotes"),
    (lambda a: cnorm.RMSNorm(4, axis=(0, 1)), ValueError, *AXES, "(x.shape[0], x.shape[1])"),
    (lambda a: cnorm.LayerNorm((4, 4), axis=1), ValueError, "[4, 4]", "axis = 1", "(x.shape[1],)"),
    (lambda a: F.layer_norm(a.x, 4, axis=(0, 1)), ValueError, *AXES, "(x.shape[0], x.shape[1])"),
    (lambda a: F.normalize(a.x, dim=None), TypeError, "got None: dim=tuple(range(x.ndim)) is all"),
    (
        lambda a: F.normalize(a.x, dim=1.0),
        TypeError,
        "dim",
        "of integers, but got float 1.0: write",
    ),
    (lambda a: F.standardize(a.x, axis=0.0), TypeError, "but got float 0.0: write 0"),
    (lambda a: F.layer_norm(a.x, 5, axis=1.0), TypeError, "but got float 1.0: write 1"),
    (lambda a: cnorm.Moments(1.0), TypeError, "axis", "but got float 1.0: write 1"),
    (lambda a: F.normalize(a.row), ValueError, "dim 1 is out of bounds", "1 dimensions: dim=0?"),
    (lambda a: F.standardize(a.x, 4), ValueError, "axis 4 is out", "its axes are 0 to 3"),
    # images
    (lambda a: F.normalize_image("cat.jpg", 0.5, 0.5), TypeError, "np.asarray(PIL.Image.open(path"),
    (lambda a: F.layer_norm("x.npy", 5), TypeError, "it is text", "np.load(path)"),
    (
        lambda a: F.layer_norm(Path("x.npy"), 5),
        TypeError,
        "input must be an array",
        "np.load(path)",
    ),
    (lambda a: F.normalize_image(a.x[0, :3], *HALF, 1), ValueError, "on axis 0: channel_axis=0?"),
    (lambda a: F.normalize_image(a.x[0, 0], *HALF, 1), ValueError, "is grey: pass one number for"),
    (lambda a: F.normalize_image(a.x[0], *HALF, 1), ValueError, "slice the input"),
    # flags, dtypes and activations of layers
    (
        lambda a: cnorm.BatchNorm1d(4, affine="no"),
        TypeError,
        "affine must be True or False",
        "'no'",
    ),
    (lambda a: cnorm.GroupNorm(1, 4, bias="no"), TypeError, "bias must be True or False"),
    (
        lambda a: cnorm.LayerNorm(4, elementwise_affine="no"),
        TypeError,
        "elementwise_affine must be",
    ),
    (
        lambda a: cnorm.RMSNorm(4, zero_centered_gamma="no"),
        TypeError,
        "zero_centered_gamma must be",
    ),
    (lambda a: cnorm.InstanceNorm1d(4, track_running_stats="no"), TypeError, "track_running_stats"),
    (lambda a: cnorm.SwitchNorm2d(4, last_gamma="no"), TypeError, "last_gamma must be True"),
    (lambda a: cnorm.LayerNorm(16, dtype=int), TypeError, "dtype must be", "got int64: parameters"),
    (lambda a: F.standardize(a.x, 0, dtype="h1"), TypeError, "dtype must be float32", "'h1'"),
    (lambda a: cnorm.BatchNorm2d(3, activation=cnorm.PReLU(5)), ValueError, "activation", *SLOPES),
    (lambda a: cnorm.GroupNorm(1, 3, activation=cnorm.PReLU(5)), ValueError, "activation", *SLOPES),
    (lambda a: cnorm.SwitchNorm2d(3, activation=cnorm.PReLU(5)), ValueError, "activation", *SLOPES),
    (lambda a: cnorm.LayerNorm(16).cuda(), AttributeError, "'cuda'", "CPU alone, so leave .cuda()"),
    # moments
    (lambda a: cnorm.Moments(a.x), TypeError, "of shape (2, 6, 4, 5)", "takes the moments of x"),
    (lambda a: F.moments(a.x, 0) + a.x, TypeError, "update(array) merges more data"),
    (lambda a: a.x + F.moments(a.x, 0), TypeError, "update(array) merges more data"),
    # running statistics, out, gradients
    (lambda a: F.batch_norm(a.x, [0.0] * 6, a.var), TypeError, "running_mean", "np.asarray"),
    (lambda a: F.batch_norm(a.x, a.mean, np.ones(6, int)), TypeError, "np.asarray(running_var, n"),
    (lambda a: F.batch_norm(a.x), RuntimeError, "running_mean", "training=True"),
    (lambda a: F.layer_norm(a.x, 5, out=[1]), TypeError, "out", "np.empty_like(input)"),
    (lambda a: F.layer_norm(a.x, 5, out=a.x.astype(float)), TypeError, "out", "5), 'float32') m"),
    (lambda a: F.layer_norm(a.x, 5, out=a.x[0]), ValueError, "out", "np.empty((2, 6, 4, 5), "),
    (
        lambda a: F.layer_norm(a.x, 5, out=np.broadcast_to(a.x, a.x.shape)),
        ValueError,
        "out is read-only",
        "mode='r+'",
    ),
    (lambda a: cnorm.LayerNorm(5).backward(a.x), RuntimeError, "enable_grad"),
    # layers and containers
    (lambda a: cnorm.BatchNorm2d(3, activation="relu"), TypeError, "activation", RELU, "'relu'"),
    (lambda a: cnorm.BatchNorm2d(3, activation=cnorm.ReLU), TypeError, RELU, "the class ReLU"),
    (lambda a: cnorm.Sequential(cnorm.ReLU), TypeError, "module '0'", "ReLU(...)"),
    (lambda a: cnorm.Sequential([cnorm.ReLU()]), TypeError, "module '0'", "Sequential(*modules)"),
    (lambda a: cnorm.ModuleList(cnorm.ReLU()), TypeError, "ModuleList", "put it into a list"),
    (
        lambda a: setattr(cnorm.LayerNorm(5), "weight", np.ones(5)),
        TypeError,
        "parameter 'weight'",
        "weight[...] = values",
    ),
    (lambda a: cnorm.Parameter([1, 2]), RuntimeError, "int64", "np.asarray(data, np.float32)"),
    # devices and dtypes
    (lambda a: cnorm.BatchNorm2d(3).to("cuda"), ValueError, "'cuda'", "takes a dtype, or 'cpu'"),
    (lambda a: cnorm.BatchNorm2d(3, device="cuda"), ValueError, "device must be None or 'cpu'"),
    (
        lambda a: cnorm.BatchNorm2d(3, dtype="banana"),
        TypeError,
        "dtype must be float32",
        "'banana'",
    ),
    # files
    (lambda a: checkpoint.load("."), checkpoint.CheckpointError, "path", "folder", "a file in it"),
    (lambda a: checkpoint.load("model.h5"), checkpoint.CheckpointError, "expected one of", ".h5"),
    (lambda a: checkpoint.save({"w": a.x}, "w.npz"), TypeError, "the order is save(path, state"),
    (lambda a: checkpoint.save("a.npz", cnorm.ReLU()), TypeError, "state_dict", "pass its state_"),
    (lambda a: checkpoint.save("no/a.npz", {}), FileNotFoundError, "path must be in a folder"),
    (lambda a: checkpoint.save("a.npz", F.moments(a.x, 0)), TypeError, "Moments: pass its to_dict"),
    # states of other modules
    (
        lambda a: cnorm.LayerNorm(6).load_state_dict(cnorm.BatchNorm1d(6).state_dict()),
        RuntimeError,
        "Unexpected key(s)",
        "the state has running statistics and the module has not",
    ),
    (
        lambda a: cnorm.BatchNorm1d(6).load_state_dict(cnorm.LayerNorm(6).state_dict()),
        RuntimeError,
        "Missing key(s)",
        "the module has running statistics and the state has not",
    ),
    (
        lambda a: cnorm.LayerNorm(6).load_state_dict({"0.weight": a.mean, "0.bias": a.mean}),
        RuntimeError,
        "checkpoint.load(path, prefix='0.')",
    ),
    (
        lambda a: cnorm.Sequential(cnorm.LayerNorm(6)).load_state_dict(
            cnorm.LayerNorm(6).state_dict()
        ),
        RuntimeError,
        "get_submodule('0')",
    ),
    (lambda a: cnorm.ReLU().load_state_dict("a.pt"), TypeError, "cnorm.checkpoint.load('a.pt')"),
    # names
    (lambda a: cnorm.BatchNorm(3), AttributeError, "BatchNorm1d or BatchNorm2d or BatchNorm3d?"),
    (lambda a: cnorm.Layernorm(3), AttributeError, "did you mean LayerNorm?"),
    (lambda a: cnorm.layer_norm(a.x, 5), AttributeError, "did you mean cnorm.functional.layer_no"),
    (lambda a: cnorm.nn.LayerNorm(5), AttributeError, "'nn'", "layers are in cnorm itself"),
    (lambda a: cnorm.Linear(5, 5), AttributeError, "a layer of your own is a cnorm.Module"),
    (lambda a: cnorm.load("a.pt"), AttributeError, "did you mean cnorm.checkpoint.load?"),
    (lambda a: cnorm.explain("layer_norm"), TypeError, "function must be a function of cnorm.func"),
    (lambda a: cnorm.set_num_threads("2"), TypeError, "threads", "an int, not str"),
    (lambda a: cnorm.set_cache_limit("1 MB"), TypeError, "limit", "bytes"),
]


class Alone:
    """A communicator of one rank."""

    def Get_size(self):
        return 1


def shown(error):
    """The text that ends a traceback: the message, and its notes."""
    return "".join(traceback.format_exception_only(error))


@pytest.mark.parametrize("case", CALLS, ids=range(len(CALLS)))
def test_message(case):
    call, kind, *texts = case
    with pytest.raises(kind) as caught:
        call(Arrays)
    text = shown(caught.value)
    for expected in texts:
        assert expected in text
    assert not re.search(r"\b_[A-Z]\w+|RunningNorm|__init__|converted_", text), text


def test_there_are_many():
    assert len(CALLS) >= 60


@pytest.mark.filterwarnings("ignore:The given NumPy array")
def test_tensors_of_torch():
    torch = pytest.importorskip("torch")
    tensor = torch.zeros(2, 3, requires_grad=True)
    for call in (lambda: F.layer_norm(tensor, 3), lambda: cnorm.LayerNorm(3)(tensor)):
        with pytest.raises(TypeError, match=r"cnorm\.interop\.torch, which has"):
            call()
    with pytest.raises(TypeError, match="pass 'float16'"):
        cnorm.LayerNorm(3).to(torch.float16)


def test_a_layer_that_warns_says_where_the_channels_are():
    with pytest.warns(UserWarning, match=r"channel_axis=-1\?"):
        cnorm.InstanceNorm2d(3)(Arrays.last)


@pytest.mark.parametrize("mean", [123.675, [0.485, 116.28, 0.406], [0, 0, -128]])
def test_a_mean_of_bytes_beside_pixels_from_0_to_1(mean):
    photo = np.zeros((4, 4, 3), np.uint8)
    words = r"^uint8 is divided by 255 .*, and mean (123.675|116.28|-128.0) is not .*max_value=1 if"
    with pytest.warns(UserWarning, match=words) as caught:
        F.normalize_image(photo, mean, 58.4)
    assert caught[0].filename == __file__
    out = np.ones(photo.shape, np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        F.normalize_image(photo, mean, 58.4, 1)
        F.normalize_image(photo, [0.485, 0.456, 1], 0.229)
        with pytest.raises(UserWarning):
            F.normalize_image(photo, mean, 58.4, out=out)
    assert (out == 1).all()


def test_python_knows_which_function_was_meant(elsewhere):
    """In the traceback it prints, from what `dir` lists: a `__getattr__` would cost every call."""
    for name, meant in (("layernorm", "layer_norm"), ("BatchNorm", "batch_norm")):
        code = f"import cnorm.functional as F; F.{name}"
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        last = run.stderr.splitlines()[-1]
        assert last.endswith(f"has no attribute {name!r}. Did you mean: {meant!r}?")
    assert not hasattr(F, "__getattr__")


def test_masked_input_is_never_told_to_fill_zeros():
    with pytest.raises(TypeError) as error:
        F.local_response_norm(Arrays.mask, 3)
    assert "filled(0)" not in shown(error.value) and "where=" in shown(error.value)


def test_bfloat16_without_ml_dtypes(monkeypatch):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    words = r"dtype bfloat16 needs ml_dtypes: pip install 'cnorm-layers\[half\]'"
    for call in (lambda: cnorm.LayerNorm(3, dtype="bfloat16"), cnorm.LayerNorm(3).bfloat16):
        with pytest.raises(ModuleNotFoundError, match=words):
            call()


@pytest.mark.parametrize(
    "call",
    [
        "F.standardize(x, 0, dtype='bfloat16')",
        "F.normalize_image(x, 0, 1, 1, dtype='bfloat16')",
        "F.moments(x, 0).standardize(x, dtype='bfloat16')",
        "F.moments(x, 0).inverse(x, dtype='bfloat16')",
    ],
)
@pytest.mark.parametrize("installed", [True, False])
def test_bfloat16_of_functions(call, installed):
    """NumPy knows the name once ml_dtypes was imported, so each call is a process of its own."""
    if installed:
        pytest.importorskip("ml_dtypes")
    code = (
        "import sys, numpy as np, cnorm.functional as F\n"
        "class Without:\n"
        "    def find_spec(name, path, target=None):\n"
        "        if name == 'ml_dtypes':\n"
        "            raise ModuleNotFoundError('none here', name=name)\n"
        f"if not {installed}: sys.meta_path.insert(0, Without)\n"
        f"x = np.ones((2, 3), np.float32)\nprint({call}.dtype)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    words = "ModuleNotFoundError: dtype bfloat16 needs ml_dtypes: pip install 'cnorm-layers[half]'"
    assert run.stdout.strip() == "bfloat16" if installed else run.stderr.splitlines()[-1] == words


def test_one_sample_is_named_where_it_has_the_channels():
    for layer, shape, fits in (
        (cnorm.BatchNorm2d(3), (3, 8, 16), True),
        (cnorm.BatchNorm2d(3), (4, 8, 16), False),
        (cnorm.BatchNorm2d(3, channel_axis=-1), (8, 16, 3), True),
        (cnorm.BatchNorm2d(3, channel_axis=-1), (3, 8, 16), False),
        (cnorm.SwitchNorm3d(3), (3, 4, 8, 8), True),
        (cnorm.LazyBatchNorm2d(), (4, 8, 16), True),
    ):
        with pytest.raises(ValueError, match=r"got .D input") as caught:
            layer(np.zeros(shape, np.float32))
        assert ("input[None]" in shown(caught.value)) == fits


@pytest.mark.filterwarnings("ignore:input's size at dim=1")
def test_what_fits_is_made():
    """The checks of constructors refuse nothing that works."""
    cnorm.BatchNorm2d(3, affine=np.True_, bias=0, activation=cnorm.PReLU())
    cnorm.BatchNorm2d(np.int64(3), activation=cnorm.PReLU(3))
    cnorm.InstanceNorm2d(3, activation=cnorm.PReLU(5))(np.ones((1, 5, 2, 2)))  # 3 is not used
    cnorm.LazyBatchNorm2d(activation=cnorm.PReLU(5))
    cnorm.LazyLayerNorm(axis=(1, 2))
    cnorm.LayerNorm((3, 4), axis=[1, 2])
    assert not hasattr(cnorm.LayerNorm(3), "cuda")


EPS = {
    "layer_norm": (5,),
    "rms_norm": (5,),
    "add_layer_norm": (Arrays.row, 5),
    "add_rms_norm": (Arrays.row, 5),
    "group_norm": (2,),
    "instance_norm": (),
    "LayerNorm": (5,),
    "RMSNorm": (5,),
    "GroupNorm": (2, 6),
    "InstanceNorm2d": (6,),
    "LazyGroupNorm": (2,),
    "SwitchNorm2d": (6,),
}


@pytest.mark.skipif(sys.flags.optimize > 1, reason="there are no docstrings")
@pytest.mark.parametrize("name", EPS)
def test_help_says_that_eps_is_not_checked(name):
    what, arguments = getattr(F, name, None) or getattr(cnorm, name), EPS[name]
    if name.startswith("add"):
        result, _ = what(Arrays.row, *arguments, eps=-99)
    elif name.endswith("norm"):
        result = what(Arrays.x, *arguments, eps=-99)
    else:
        result = what(*arguments, eps=-99)(Arrays.x)
    assert np.isnan(result).all()
    assert re.search(r"Not\s+checked(, as in torch)?: one below minus the \w+", what.__doc__)


def test_a_layer_of_ones_own_keeps_its_errors():
    class Mine(cnorm.LayerNorm):
        def __init__(self, size):
            super().__init__(size)
            raise TypeError("of mine")

    with pytest.raises(TypeError, match=r"^of mine$"):
        Mine(3)
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'sizes'(\. Did you|$)"):
        Mine(sizes=3)


def test_a_hint_is_found_at_once_or_left_out():
    """What divides 2^48 channels, or how 32 axes fit among 64, would take days to list."""
    code = (
        "import numpy as np, cnorm, cnorm.functional as F\n"
        "wide = np.broadcast_to(np.float32(1), (1, (1 << 48) + 1))\n"
        "deep = np.ones((2,) + (1,) * 63, np.float32)\n"
        "for call in (\n"
        "    lambda: F.group_norm(wide, 2),\n"
        "    lambda: cnorm.GroupNorm(2, (1 << 48) + 1),\n"
        "    lambda: F.layer_norm(deep, 1, where=np.ones((3,) + (1,) * 31, bool)),\n"
        "):\n"
        "    try:\n"
        "        call()\n"
        "    except (RuntimeError, ValueError):\n"
        "        continue\n"
        "    raise AssertionError('no error')"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_calls_that_succeed_know_no_mistakes():
    code = (
        "import sys, numpy as np, cnorm, cnorm.functional as F\n"
        "F.layer_norm(np.ones((2, 5)), 5, out=None)\n"
        "cnorm.BatchNorm2d(3, eps=1e-3)(np.ones((2, 3, 4, 4)))\n"
        "assert 'cnorm._hints' not in sys.modules and 'difflib' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)

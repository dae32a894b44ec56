"""Every operation of `cnorm.functional` behind one face, so that one test can run them all.

An `Operation` draws its parameters, and runs forward and backward with any implementation
``F``, the compiled one or the reference. `check` compares two such runs in units of epsilon.
"""

from inspect import signature

import ml_dtypes
import numpy as np

import cnorm.functional as F
from cnorm import _reference

CLIP = (-0.5, 0.75)  # where tests of everything bound results
SIZES = (1, 15, 16, 17, 31, 33, 4099)  # around the lanes and the tiles of the kernels
DTYPES = [np.dtype(t) for t in (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)]


class Operation:
    """A norm. The base class fits those with a weight and a bias for each channel."""

    function = None
    by_channel = True  # takes channel_axis
    takes_slope = takes_clip = True
    takes_where = False
    mixes_samples = False
    gradients = ("grad_input", "grad_weight", "grad_bias")
    statistics = ("mean", "rstd")

    def __init__(self, **fixed):
        self.fixed = fixed
        self.name = "-".join([self.function, *(f"{k}={v}" for k, v in fixed.items())])

    def __repr__(self):
        return self.name

    def accepts(self, shape, axis):
        return len(shape) >= 2

    def draw(self, rng, shape, axis, dtype=np.float64):
        """The arguments besides the input, as a dict."""
        return _affine(rng, shape[axis], dtype)

    def forward(self, F, x, p, **options):
        """``(y, *statistics)``, running statistics updated in `p`."""
        raise NotImplementedError

    def backward(self, F, dy, x, stats, p, **options):
        """The gradients, a tuple."""
        raise NotImplementedError

    def run(self, F, x, dy, p, *, axis=1, slope=None, clip=None, where=None):
        """Everything that forward and backward give, by name. Leaves `p` as it is."""
        p = {k: np.copy(v) if isinstance(v, np.ndarray) else v for k, v in p.items()}
        options = {"channel_axis": axis} if self.by_channel else {}
        if slope is not None:
            options["negative_slope"] = slope
        if clip is not None:
            options["clip"] = clip
        if where is not None:
            options["where"] = where
        y, *stats = self.forward(F, x, p, **options)
        if (slope is not None or clip is not None) and "bias" in p:
            options["bias"] = p["bias"]
        grads = self.backward(F, dy, x, stats, p, **options)
        grads = grads if isinstance(grads, tuple) else (grads,)
        names = self.gradients + (("grad_slope",) if isinstance(slope, np.ndarray) else ())
        results = {"y": y, **dict(zip(self.statistics, stats, strict=True))}
        results |= {k: v for k, v in p.items() if k.startswith("running") and v is not None}
        return results | dict(zip(names, grads, strict=True))


def _affine(rng, shape, dtype):
    signs = rng.choice([-1, 1], shape)
    return {
        "weight": (signs * rng.uniform(0.5, 1.5, shape)).astype(dtype),
        "bias": rng.uniform(-1, 1, shape).astype(dtype),
    }


def _per_channel(operation, shape, axis):
    """The shape of weight and bias: (C,), or with `each` (N, C)."""
    return (shape[0], shape[axis]) if "each" in operation.fixed else shape[axis]


def _running(rng, size, dtype):
    return {
        "running_mean": rng.uniform(-1, 1, size).astype(dtype),
        "running_var": rng.uniform(0.5, 2, size).astype(dtype),
    }


def _spatial(shape, axis):
    return np.prod(np.delete(shape, (0, axis)))


class BatchNorm(Operation):
    function = "batch_norm"
    takes_where = True

    @property
    def mixes_samples(self):
        return self.fixed["training"]

    def accepts(self, shape, axis):
        if not super().accepts(shape, axis):
            return False
        return shape[0] * _spatial(shape, axis) != 1 or not self.fixed["training"]

    def draw(self, rng, shape, axis, dtype=np.float64):
        size = shape[axis]
        return _running(rng, size, dtype) | _affine(rng, _per_channel(self, shape, axis), dtype)

    @property
    def _mode(self):
        return {k: v for k, v in self.fixed.items() if k != "each"}

    def forward(self, F, x, p, **options):
        return F.batch_norm(x, **p, **self._mode, return_stats=True, **options)

    def backward(self, F, dy, x, stats, p, **options):
        return F.batch_norm_backward(dy, x, *stats, p["weight"], **self._mode, **options)


class InstanceNorm(BatchNorm):
    function = "instance_norm"
    mixes_samples = False

    def accepts(self, shape, axis):
        return Operation.accepts(self, shape, axis) and len(shape) > 2 and _spatial(shape, axis) > 1

    def forward(self, F, x, p, **options):
        return F.instance_norm(x, **p, **self._mode, return_stats=True, **options)

    def backward(self, F, dy, x, stats, p, **options):
        return F.instance_norm_backward(dy, x, *stats, p["weight"], **self._mode, **options)


class GroupNorm(Operation):
    function = "group_norm"
    takes_where = True

    @staticmethod
    def _groups(channels):
        return next(g for g in (3, 2, 1) if channels % g == 0)

    def accepts(self, shape, axis):
        """Not a batch of a single value, which torch refuses."""
        return super().accepts(shape, axis) and np.prod(shape) != self._groups(shape[axis])

    def draw(self, rng, shape, axis, dtype=np.float64):
        groups = self._groups(shape[axis])
        return {"num_groups": groups} | _affine(rng, _per_channel(self, shape, axis), dtype)

    def forward(self, F, x, p, **options):
        return F.group_norm(x, **p, return_stats=True, **options)

    def backward(self, F, dy, x, stats, p, **options):
        return F.group_norm_backward(dy, x, p["num_groups"], *stats, p["weight"], **options)


class LayerNorm(Operation):
    """Over the last axis, over all but the first, over the channels, or over a tuple of axes.

    `each`: the other axes along which weight and bias differ.
    """

    function = "layer_norm"
    takes_where = True
    by_channel = False

    def accepts(self, shape, axis):
        axes = self.fixed["axes"]
        if isinstance(axes, tuple):
            return len(shape) > max(axes)
        return len(shape) >= (2 if axes == "channels" or "each" in self.fixed else 1)

    def draw(self, rng, shape, axis, dtype=np.float64):
        named = {"last": (-1,), "channels": (1,), "all": range(1, len(shape)) or (0,)}
        axes = self.fixed["axes"]
        given = {"axis": axes} if isinstance(axes, tuple) else {}
        if axes == "channels":
            given = {"axis": 1}
        axes = [i % len(shape) for i in (named[axes] if isinstance(axes, str) else axes)]
        row = of_parameters = tuple(shape[i] for i in axes)
        if "each" in self.fixed:
            kept = (*axes, *self.fixed["each"])
            of_parameters = [n if i in kept else 1 for i, n in enumerate(shape)]
        return {"normalized_shape": row} | given | _affine(rng, of_parameters, dtype)

    @staticmethod
    def _given(p):
        return {k: p[k] for k in ("axis", "zero_centered_gamma") if k in p}

    def forward(self, F, x, p, **options):
        return F.layer_norm(x, **p, return_stats=True, **options)

    def backward(self, F, dy, x, stats, p, **options):
        shape, weight = p["normalized_shape"], p["weight"]
        options |= self._given(p)
        return F.layer_norm_backward(dy, x, shape, *stats, weight, **options)


class RMSNorm(LayerNorm):
    function = "rms_norm"
    gradients = ("grad_input", "grad_weight")
    statistics = ("rstd",)

    def draw(self, rng, shape, axis, dtype=np.float64):
        p = super().draw(rng, shape, axis, dtype)
        del p["bias"]
        return p | {"eps": 1e-6, "zero_centered_gamma": self.fixed.get("zero_centred", False)}

    def forward(self, F, x, p, **options):
        return F.rms_norm(x, **p, return_stats=True, **options)

    def backward(self, F, dy, x, stats, p, **options):
        options |= self._given(p)
        return F.rms_norm_backward(dy, x, p["normalized_shape"], *stats, p["weight"], **options)


class _Residual:
    """The residual is the input doubled or halved away, so that the sum is exact in any dtype."""

    def draw(self, rng, shape, axis, dtype=np.float64):
        p = super().draw(rng, shape, axis, dtype)
        doubled = np.where(rng.uniform(size=shape) < 0.5, 1, -0.5)
        return p | {"doubled": doubled, "grad_sum": np.round(rng.uniform(-8, 8, shape)) / 4}

    def forward(self, F, x, p, **options):
        residual = np.asarray(x)
        residual = (residual * p["doubled"]).astype(residual.dtype)
        p = {k: v for k, v in p.items() if k not in ("doubled", "grad_sum")}
        function = getattr(F, self.function)
        return function(x, residual, **p, return_stats=True, **options)

    def backward(self, F, dy, x, stats, p, **options):
        total, *stats = stats
        function = getattr(F, f"{self.function}_backward")
        grad_sum = p["grad_sum"].astype(dy.dtype)
        shape, weight = p["normalized_shape"], p["weight"]
        options |= self._given(p)
        return function(dy, grad_sum, total, shape, *stats, weight, **options)


class AddLayerNorm(_Residual, LayerNorm):
    function = "add_layer_norm"
    statistics = ("sum", "mean", "rstd")


class AddRMSNorm(_Residual, RMSNorm):
    function = "add_rms_norm"
    statistics = ("sum", "rstd")


class ResponseNorm(Operation):
    function = "local_response_norm"
    gradients = ("grad_input",)
    statistics = ()

    def accepts(self, shape, axis):
        """Not thousands of channels: the reference's window is a table of C x C."""
        return len(shape) >= 3 and shape[axis] < 1000

    def draw(self, rng, shape, axis, dtype=np.float64):
        return {"alpha": 0.5, "k": 1.25}

    def forward(self, F, x, p, **options):
        return (getattr(F, self.function)(x, **p, **self.fixed, **options),)

    def backward(self, F, dy, x, stats, p, **options):
        return getattr(F, f"{self.function}_backward")(dy, x, **p, **self.fixed, **options)


class CrossMapLRN(ResponseNorm):
    function = "cross_map_lrn"
    takes_slope = False


class Normalize(Operation):
    """The norm `p` over the axis `dim`."""

    function = "normalize"
    by_channel = False
    takes_slope = takes_clip = False
    gradients = ("grad_input",)
    statistics = ("norm",)

    def draw(self, rng, shape, axis, dtype=np.float64):
        return {}

    def forward(self, F, x, p, **options):
        return F.normalize(x, **p, **self.fixed, return_stats=True, **options)

    def backward(self, F, dy, x, stats, p, **options):
        return F.normalize_backward(dy, x, *stats, **p, **self.fixed, **options)


class SwitchNorm(BatchNorm):
    function = "switch_norm"
    takes_where = False
    gradients = (*Operation.gradients, "grad_mean_weight", "grad_var_weight")
    statistics = ("stats",)

    def accepts(self, shape, axis):
        if not Operation.accepts(self, shape, axis):
            return False
        if len(shape) == 2:
            return shape[1] > 1 and (shape[0] > 1 or not self.fixed["training"])
        return _spatial(shape, axis) > 1

    def draw(self, rng, shape, axis, dtype=np.float64):
        mixed = 2 if len(shape) == 2 else 3
        return super().draw(rng, shape, axis, dtype) | {
            "mean_weight": rng.uniform(-1, 1, mixed).astype(dtype),
            "var_weight": rng.uniform(-1, 1, mixed).astype(dtype),
        }

    def forward(self, F, x, p, **options):
        return F.switch_norm(x, **p, **self.fixed, return_stats=True, **options)

    def backward(self, F, dy, x, stats, p, **options):
        options.setdefault("bias", p["bias"])
        mixes = p["mean_weight"], p["var_weight"]
        return F.switch_norm_backward(dy, x, *stats, p["weight"], *mixes, **options)


OPERATIONS = [
    BatchNorm(training=True),
    BatchNorm(training=False),
    InstanceNorm(use_input_stats=True),
    InstanceNorm(use_input_stats=False),
    GroupNorm(),
    LayerNorm(axes="last"),
    LayerNorm(axes="all"),
    RMSNorm(axes="last"),
    RMSNorm(axes="all"),
    AddLayerNorm(axes="last"),
    AddRMSNorm(axes="last"),
    ResponseNorm(size=5, beta=0.75),
    ResponseNorm(size=4, beta=0.5),
    ResponseNorm(size=3, beta=1.0),
    ResponseNorm(size=7, beta=0.6),
    CrossMapLRN(size=3),
    Normalize(p=2.0, dim=1),
    Normalize(p=2.0, dim=-1),
    Normalize(p=1.0, dim=-1),
    Normalize(p=np.inf, dim=1),
    SwitchNorm(training=True),
    SwitchNorm(training=False),
]

# Of other axes, and with parameters that differ from sample to sample: what the tests of all
# operations run is the same code but for this.
FURTHER_OPERATIONS = [
    LayerNorm(axes="channels"),
    LayerNorm(axes="last", each=(0,)),
    LayerNorm(axes="channels", each=(0,)),
    RMSNorm(axes="channels"),
    RMSNorm(axes="last", each=(0,), zero_centred=True),
    AddLayerNorm(axes="channels"),
    AddRMSNorm(axes="channels", each=(0,)),
    BatchNorm(training=True, each="sample"),
    BatchNorm(training=False, each="sample"),
    InstanceNorm(use_input_stats=True, each="sample"),
    GroupNorm(each="sample"),
]


# --- without a backward -----------------------------------------------------------------------


class Statistics(Operation):
    """Over the last axis, over all but the channels, or over all axes; no parameters."""

    by_channel = False
    takes_slope = takes_clip = False
    gradients = ()

    def accepts(self, shape, axis):
        return len(shape) >= 2

    def draw(self, rng, shape, axis, dtype=np.float64):
        kept = tuple(i for i in range(len(shape)) if i != axis)
        return {"axis": {"last": -1, "channels": kept, "all": None}[self.fixed["axes"]]}

    def backward(self, F, dy, x, stats, p, **options):
        return ()


class Moments(Statistics):
    function = "moments"
    statistics = ("mean", "m2")

    def forward(self, F, x, p, **options):
        m = F.moments(x, **p)
        return m.count, m.mean, m.m2


class Standardize(Statistics):
    function = "standardize"

    def forward(self, F, x, p, **options):
        return F.standardize(x, **p, eps=1e-5, clip=(-1.5, None), return_stats=True)


class NormalizeImage(Statistics):
    """Floats, with constants per channel; tests/test_image.py has integers."""

    function = "normalize_image"
    statistics = ()

    def draw(self, rng, shape, axis, dtype=np.float64):
        mean, std = rng.uniform(0.5, 1.5, (2, shape[axis]))
        return {"mean": mean, "std": std, "max_value": 2.0, "channel_axis": axis, "dtype": dtype}

    def forward(self, F, x, p, **options):
        return (F.normalize_image(x, **p),)


STATISTICS = [
    *(kind(axes=axes) for kind in (Moments, Standardize) for axes in ("last", "channels", "all")),
    NormalizeImage(),
]


# --- calls as they are made -------------------------------------------------------------------


class Recorder:
    """Stands for `F`: makes each call, and keeps its function and arguments in `calls`."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        function = getattr(F, name)

        def record(*positional, **keywords):
            bound = signature(function).bind(*positional, **keywords).arguments
            self.calls.append((function, {k: _own(v) for k, v in bound.items()}))
            return function(*positional, **keywords)

        return record


def _own(value):
    return np.array(value) if isinstance(value, np.ndarray) else value


def calls_of(operation, rng, shape=(3, 6, 4, 5), dtype=np.float32, slope=None, clip=None):
    """Forward and backward of an operation: a list of (function, arguments by name)."""
    x, dy = rng.normal(size=(2, *shape)).astype(dtype)
    p = operation.draw(rng, shape, 1, accumulation(dtype))
    recorder = Recorder()
    slope = slope if operation.takes_slope else None
    clip = clip if operation.takes_clip else None
    operation.run(recorder, x, dy, p, slope=slope, clip=clip)
    return recorder.calls


def copied(arguments):
    """The arguments of a call, each array in memory of its own."""
    return {k: _own(v) for k, v in arguments.items()}


def outcome(function, arguments):
    """What a call gives, or what it raises, to be compared: bytes, or class and words."""
    try:
        with np.errstate(all="ignore"):
            result = function(**arguments)
    except (TypeError, ValueError, RuntimeError, IndexError, OverflowError, MemoryError) as error:
        return type(error), str(error)
    results = result if isinstance(result, tuple) else (result,)
    return [(r.shape, r.dtype, r.tobytes()) for r in results if isinstance(r, np.ndarray)]


# --- comparison -------------------------------------------------------------------------------

FORWARD_LIMIT, GRADIENT_LIMIT = 4, 16  # in units of epsilon


def epsilon(dtype):
    return float(ml_dtypes.finfo(dtype).eps)


def accumulation(dtype):
    """What is computed in: half types in float32."""
    return np.promote_types(dtype, np.float32)


def wider(dtype):
    return np.dtype(np.longdouble if dtype == np.float64 else np.float64)


def oracle(operation, x, dy, p, **options):
    """The reference's results for these values, computed and kept in a wider dtype."""
    wide = wider(x.dtype.newbyteorder("="))
    p = {k: v.astype(wide) if isinstance(v, np.ndarray) else v for k, v in p.items()}
    if isinstance(options.get("slope"), np.ndarray):
        options["slope"] = options["slope"].astype(wide)
    results = operation.run(_reference, x.astype(wide), dy.astype(wide), p, **options)
    return results | {"input": x.astype(wide)}


def check(actual, expected, dtype, dy, context="", without=()):
    """Both runs agree: within 4 epsilon forward, 16 backward, and a rounding to half types."""
    scales = _scales(expected, dy)
    for name, reference in expected.items():
        if name in ("stats", "input", *without):
            continue
        value = np.asarray(actual[name])
        what = f"{name} of {context}"
        assert value.shape == reference.shape, what
        limit = GRADIENT_LIMIT if name.startswith("grad") else FORWARD_LIMIT
        eps = epsilon(accumulation(dtype))
        tolerance = limit * eps * scales[name]
        if epsilon(value.dtype) > eps:
            tolerance = tolerance + rounding(reference, value.dtype)
        assert_close(value, reference, tolerance, what)


def rounding(reference, dtype):
    """The most that rounding to a dtype changes."""
    tiny = float(ml_dtypes.finfo(dtype).smallest_subnormal)
    return 0.501 * epsilon(dtype) * np.abs(reference) + tiny


def assert_close(value, reference, tolerance, what=""):
    error = np.abs(value.astype(reference.dtype) - reference)
    tolerance = np.broadcast_to(tolerance, error.shape)
    with np.errstate(over="ignore"):
        rounded = reference.astype(value.dtype)
    same = (value == rounded) | (np.isnan(value) & np.isnan(rounded))  # infinities are the same
    wrong = ~(error <= tolerance) & ~same
    assert not wrong.any(), (
        f"{what}: {wrong.sum()} of {wrong.size} elements are off, by up to "
        f"{np.nanmax((error / tolerance)[wrong], initial=0):.3g} times the tolerance, first at "
        f"{tuple(np.argwhere(wrong)[0])}: {value[wrong][0]} for {reference[wrong][0]}"
    )


def _scales(expected, dy):
    """The largest term in what each result is the sum of.

    Statistics are float64: of a float64 input, what is off by a rounding of its mean is as well.
    """
    largest = {k: _largest(v) for k, v in expected.items() if k != "stats"}
    dy_max, dy_norm = _largest(dy), np.linalg.norm(dy.astype(np.float64))
    scales = {k: max(v, 1) for k, v in largest.items()}
    off = 0
    if "mean" in expected:
        rstd, mean = np.abs(expected["rstd"]), np.abs(expected["mean"])
        is_float64 = expected["mean"].dtype == np.longdouble
        scales["mean"] = 1 / rstd + mean * (1 if is_float64 else 2**-29)
        off = _largest(mean * rstd) if is_float64 else 0
    if "rstd" in expected:
        scales["rstd"] = np.abs(expected["rstd"])
        gain = largest["rstd"]
    elif "stats" in expected:  # of switch norm: mixed from means that are float64 as well
        _, mean, rstd, _ = expected["stats"]
        gain = _largest(rstd)
        off = _largest(mean * rstd) if rstd.dtype == np.longdouble else 0
        scales["y"] *= 1 + off
    else:  # of response norms: the power, however much of grad_output * power cancels
        with np.errstate(all="ignore"):
            gain = _largest(expected["y"] / expected["input"])
    scales["grad_input"] = max(largest["grad_input"], 1.5 * gain * dy_max) * (1 + off)
    for name in set(expected) & {"grad_weight", "grad_bias", "grad_slope"}:
        terms = max(dy_norm / max(expected[name].size, 1) ** 0.5, dy_max)
        terms = max(terms, largest.get("grad_bias", 0))  # what a rounding of the mean changes
        scales[name] = max(largest[name], terms) * (1 + off)
    for name in set(expected) & {"grad_mean_weight", "grad_var_weight"}:
        scales[name] = max(largest[name], 1.5 * gain * dy_norm) * (1 + off)
    return scales


def _largest(array):
    array = np.abs(np.asarray(array, np.float64))
    return float(np.max(array[np.isfinite(array)], initial=0))

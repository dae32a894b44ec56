"""What messages say about mistakes that are often made.

Imported when a call has failed, and not before: a call that succeeds pays nothing for it. A message
of cnorm's own ends with the way out. Torch's messages keep their words, which people search for:
the way out is a note (`BaseException.add_note`), which a traceback shows below them.
"""

import difflib
import inspect
import itertools
import math
import os
import re
import reprlib
import sys

from ._version import install

# What people write, and what it is called here: the first name that a function takes, and in what
# words. None stands for the name itself.
_ROW = (
    "normalized_shape",
    "normalized_shape, the sizes of the last axes, says which are normalized",
)
_LAST = ("channel_axis", "channel_axis=-1 takes channels last")
_CHANNELS = ("channel_axis", "did you mean channel_axis? functional.standardize takes any axes")
_AXIS = (("axis", None), ("dim", None), _ROW, _CHANNELS)
_STATISTICS = ("nan_policy", "moments(...).var(ddof) and .std(ddof) take it")
_KEPT = "the statistics of return_stats=True have size 1 there"
_SQUEEZED = ("nan_policy", "m = moments(x, axis); np.expand_dims(m.mean, axis) has them")
_MEANT = {
    **dict.fromkeys(("channels_last", "data_format"), (_ROW, _LAST)),
    "channel_axis": (_ROW,),
    **dict.fromkeys(("axis", "axes", "dim", "dims", "channel_dim", "channels_axis"), _AXIS),
    **dict.fromkeys(("epsilon", "variance_epsilon"), (("eps", None),)),
    **dict.fromkeys(("gamma", "scale"), (("weight", None), ("affine", None))),
    **dict.fromkeys(("beta", "shift", "offset", "center"), (("bias", None),)),
    **dict.fromkeys(("x", "X", "a", "inputs", "data"), (("input", None),)),
    **dict.fromkeys(("inplace", "in_place"), (("out", "out=input works in place"),)),
    **dict.fromkeys(
        ("channels", "num_channels", "features", "n_features", "in_channels"),
        (("num_channels", None), ("num_features", None), ("normalized_shape", None)),
    ),
    **dict.fromkeys(("groups", "n_groups"), (("num_groups", None),)),
    **dict.fromkeys(("shape", "dims", "hidden_size"), (("normalized_shape", None),)),
    **dict.fromkeys(("mean", "moving_mean"), (("running_mean", None),)),
    **dict.fromkeys(("var", "variance", "moving_var"), (("running_var", None),)),
    **dict.fromkeys(("train", "is_training"), (("training", None),)),
    **dict.fromkeys(("mask", "padding_mask", "valid"), (("where", None),)),
    **dict.fromkeys(("ddof", "correction"), (("ddof", None), _STATISTICS)),
    **dict.fromkeys(("keepdims", "keepdim"), (("ddof", _KEPT), ("p", _KEPT), _SQUEEZED)),
    **dict.fromkeys(("std", "stddev"), (("var", "var=std**2 is the variance"),)),
    **dict.fromkeys(("ord", "norm"), (("p", None),)),
    **dict.fromkeys(("decay", "alpha"), (("momentum", "momentum, the share of the new batch"),)),
    **dict.fromkeys(("relu", "act"), (("activation", None), ("negative_slope", None))),
    "affine": (("elementwise_affine", None),),
    "elementwise_affine": (("affine", None),),
    "activation": (("negative_slope", "negative_slope=0.0 is ReLU"),),
    "training": (("use_input_stats", None),),
    "use_input_stats": (("training", None),),
}  # fmt: skip

# What is called in another way, or is not here.
_NO_LAYER = (
    "cnorm has the norms, and activations that end one; a layer of your own is a cnorm.Module"
)
_NAMES = {
    **dict.fromkeys(("nn", "layers", "modules"), "layers are in cnorm itself: cnorm.LayerNorm"),
    "F": "import cnorm.functional as F",
    "LayerNorm2d": "cnorm.LayerNorm(C, axis=1) takes (N, C, H, W)",
    "load": "did you mean cnorm.checkpoint.load?",
    "save": "did you mean cnorm.checkpoint.save?",
    **dict.fromkeys(
        ("zscore", "z_score", "scale", "StandardScaler"),
        "did you mean cnorm.functional.standardize?",
    ),
    **dict.fromkeys(
        (
            "Linear", "Conv1d", "Conv2d", "Conv3d", "Embedding", "Dropout", "Flatten", "Identity",
            "GELU", "SiLU", "Sigmoid", "Tanh", "Softmax",
        ),
        _NO_LAYER,
    ),
}  # fmt: skip

# The way out where a number is expected.
_NUMBERS = {
    "channel_axis": "1 is channels first, -1 channels last",
    "momentum": "what a layer's momentum=None takes is 1 / (num_batches_tracked + 1)",
    "negative_slope": "0.0 is ReLU, 0.01 LeakyReLU",
}


# The way out where an argument is missing.
_MISSING = {
    "normalized_shape": "normalized_shape is the size of what is normalized, such as x.shape[-1]"
}

# What a swapped call gives where a number is expected: the input.
_ORDER = {
    "normalized_shape": "the input comes first, layer_norm(input, normalized_shape)",
    "num_groups": "the input comes first, group_norm(input, num_groups)",
}

# The way out where one value is all that a unit has.
_ONE_VALUE = {
    "batch": (
        "pass more samples, take the running statistics (training=False, or eval() of a layer), or "
        "normalize each sample by itself (layer_norm, group_norm)"
    ),
    "instance": "batch_norm normalizes over the samples, layer_norm over the channels",
    "group": "fewer groups (num_groups) have more channels each",
    "row": "with one channel, batch_norm normalizes over the samples",
}


def noted(error, hint):
    """The error, with the hint as a note where there is one."""
    if hint:
        error.add_note(hint)
    return error


def described(value):
    """A value as a message names it."""
    if value is None:
        return "None"
    if type(value) in (str, int, float, complex, bool, tuple, list):
        return f"{type(value).__name__} {reprlib.repr(value)}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    shape = getattr(value, "shape", None)
    if type(shape) is tuple:
        return f"{type(value).__name__} of shape {shape}"
    return type(value).__name__


# --- arguments ----------------------------------------------------------------------------------


def arguments(text, name, signature):
    """The text of a TypeError about unknown or missing arguments, and what the callable takes."""
    names = list(signature.parameters)
    if match := re.search(r"unexpected keyword argument '(.*?)'", text):
        if match[1] in ("inplace", "in_place") and "out" not in names:
            return f"{text}: a layer returns a new array, so leave it out"
        return f"{text}: {_meant(match[1], names) or f'{name}{signature}'}"
    if match := re.search(r"takes (?:at least|exactly) (\d+) positional arguments? \((\d+) ", text):
        wanted, given = map(int, match.groups())
        if given < min(wanted, len(names)):
            text = f"{text}, {names[given]} is missing: {name}{signature}"
            hint = _MISSING.get(names[given])
            return f"{text}; {hint}" if hint else text
    return f"{text}: {name}{signature}"


def _meant(word, names):
    for name, words in _MEANT.get(word, ()):
        if name in names:
            return words or f"did you mean {name}?"
    close = difflib.get_close_matches(word, names, 1)
    return f"did you mean {close[0]}?" if close else None


def of_function(module, error):
    """The message of a compiled function's TypeError, which `_hints.h` asks for."""
    name = str(error).partition("(")[0].rpartition(".")[2]
    function = getattr(sys.modules.get(module), name, None)
    if function is None:
        return str(error)
    return arguments(str(error), name, inspect.signature(function))


def attribute(module, name, names, functions):
    """The message of an AttributeError of the package."""
    text = f"module {module!r} has no attribute {name!r}"
    if name in functions:
        return f"{text}: did you mean {module}.functional.{name}?"
    if hint := _NAMES.get(name):
        return f"{text}: {hint}"
    lower = {known.lower(): known for known in names}
    close = [known for small, known in lower.items() if re.sub(r"\dd$", "", small) == name.lower()]
    close = close or [lower[m] for m in difflib.get_close_matches(name.lower(), lower, 1, 0.75)]
    return f"{text}: did you mean {' or '.join(close)}?" if close else text


# --- numbers ------------------------------------------------------------------------------------


def number(name, value, kind="a number"):
    """The message where an argument is not a number, or not an integer."""
    text = f"{name} must be {kind}, but got {described(value)}"
    if hint := _number_hint(name, value, kind):
        text = f"{text}: {hint}"
    return text


def _number_hint(name, value, kind):
    if name in _NUMBERS and (value is None or name != "momentum"):
        return _NUMBERS[name]
    if isinstance(value, str):
        try:
            infinite = math.isinf(float(value))
        except ValueError:
            return ""
        return f"write {name}=np.inf" if infinite else f"write {name}={value}, without quotes"
    if "integer" in kind:
        return _integer_hint(name, value)
    if name == "eps" and getattr(value, "shape", ()):
        return "eps is one number; rms_norm has no bias, so eps follows weight"
    return ""


def _integer_hint(name, value):
    if _is_whole(value):
        return f"write {int(value)}"
    sizes = list(value) if isinstance(value, (list, tuple)) or _shape(value) else []
    if _shape(value) and all(map(_is_whole, sizes)):
        sizes = [int(n) for n in sizes]
        return f"write {tuple(sizes) if 'shape' in name or len(sizes) > 1 else sizes[0]}"
    if name in _ORDER and (_shape(value) or any(map(_is_sequence, sizes))):
        return _ORDER[name]
    if name.startswith("num_") and len(sizes) == 1 and type(sizes[0]) is int:
        return f"write {sizes[0]}"
    return ""


def _is_whole(value):
    """Whether it is a number of a float type, without a fraction."""
    return not isinstance(value, type) and bool(getattr(value, "is_integer", bool)())


def _is_sequence(value):
    return isinstance(value, (list, tuple))


def _shape(value):
    shape = getattr(value, "shape", ())
    return shape if isinstance(shape, tuple) else ()


def row_shape(value, error):
    """The message where normalized_shape is neither an integer nor several; `error` is of one."""
    if isinstance(value, str) or _shape(value) or any(map(_is_sequence, value)):
        kind = "an integer or a sequence of integers"
        return number("normalized_shape", value, kind)
    return str(error)


def axes(name, value, optional):
    """The message where an argument names no axes."""
    kind = f"{'None, ' if optional else ''}an integer or a sequence of integers"
    text = f"{name} must be {kind}, but got {described(value)}"
    if value is None:
        return f"{text}: {name}=tuple(range(x.ndim)) is all axes, (0, 1) of a table"
    if hint := _number_hint(name, value, kind):
        return f"{text}: {hint}"
    return text


def beyond(name, ndim):
    """The way out where an axis is out of bounds."""
    return f": {name}=0?" if ndim == 1 else f": its axes are 0 to {ndim - 1}" if ndim else ""


def axes_of_row(normalized_shape, axis):
    """The message where there are more axes than sizes, or fewer."""
    sizes = "".join(f"x.shape[{i}], " for i in axis)
    sizes = f"({sizes[:-1]})" if len(axis) == 1 else f"({sizes[:-2]})"
    return (
        "axis must name one axis for each dimension of normalized_shape = "
        f"{list(normalized_shape)}, but got axis = {axis if len(axis) != 1 else axis[0]}: "
        f"normalized_shape is the sizes of these axes, {sizes}"
    )


def flag(name, value):
    """The message where an argument is neither true nor false."""
    return f"{name} must be True or False, but got {described(value)}"


def channel_axis_of_batch():
    return "channel_axis 0 is the batch: 1 is channels first, -1 channels last"


# --- arrays -------------------------------------------------------------------------------------


def floats(name, array, what="a float32, float64, float16 or bfloat16 array"):
    """The message where an array has another dtype."""
    dtype = array.dtype
    return f"{name} must be {what}, but got dtype {dtype}: {cast(name, array)}"


def cast(name, array):
    """How an array of another dtype becomes one of floats."""
    dtype, as_float32 = array.dtype, f"np.asarray({name}, np.float32)"  # of lists and tensors too
    if name in ("weight", "bias") and array.ndim == 0 and dtype.kind in "biuf":
        return _not_a_weight(array.item())
    if dtype.kind in "iub":
        others = [f for f in ("standardize", "normalize_image") if f in _functions()]
        if name == "input" and others:
            takes = " and ".join(f"cnorm.functional.{other}" for other in others)
            return f"pass {as_float32}, or see {takes}"
        return f"pass {as_float32}"
    if dtype.kind == "c":
        return f"pass {name}.real and {name}.imag, each by itself"
    if dtype.kind == "f":
        return f"pass np.asarray({name}, np.float64)"
    if dtype.kind == "O":
        hint = f"if all its elements are numbers, pass {as_float32}"
        if name == "input":
            table = "input.select_dtypes('number').to_numpy(float, na_value=np.nan)"
            hint += f"; of a pandas table, {table}"
        return hint
    if name in _NUMBERS:
        return _NUMBERS[name]
    if dtype.kind in "US":
        if name == "input" and array.ndim == 0:
            return f"it is text; where that is the path of a file, {_FILE}"
        return f"it holds text; if that is numbers, pass {as_float32}"
    if dtype.str.endswith("V2"):
        return f"{BFLOAT16_OF_NPY}: cnorm.checkpoint.load knows it"
    return f"pass an array of numbers, such as {as_float32}"


BFLOAT16_OF_NPY = "bfloat16 that np.load read"

# The way out where the path of a file stands for what is in it.
_FILE = "open the file first: np.load(path), or of an image np.asarray(PIL.Image.open(path))"


def pixels(array):
    """How what normalize_image does not take becomes pixels."""
    if array.dtype.kind in "US" and array.ndim == 0:
        return cast("input", array)
    return "convert it first, for example np.asarray(input, np.float32)"


def _functions():
    return getattr(sys.modules.get("cnorm.functional"), "__all__", ())


def mask_dtype(dtype):
    """The message where a mask is not of bools."""
    text = f"where must be a bool array, but got dtype {dtype}"
    if "object" in str(dtype):
        return f"{text}: if all its elements are bools, pass where.astype(bool)"
    text = f"{text}: a mask of numbers becomes one by comparison, for example mask > 0"
    return f"{text}; lengths by np.arange(T) < lengths[:, None]" if "int" in str(dtype) else text


def mask_shape(where, shape):
    """The message where a mask does not broadcast to the input, with the axes that it lacks.

    A mask of the samples, or of samples and positions, is what comes most often: NumPy matches the
    last axes with each other, so that it needs axes of size 1 for the others.
    """
    text = f"where must broadcast to the input's shape {shape}, but got {where}"
    if len(where) == len(shape) and sorted(where) == sorted(shape):
        return f"{text}: its axes are in another order, which where.transpose(...) changes"
    few = len(shape) <= 8  # the choices of 32 axes among 64 are without end
    places = itertools.combinations(range(len(shape)), len(where)) if where and few else ()
    fits = [at for at in places if all(n in (1, shape[i]) for n, i in zip(where, at, strict=True))]
    if not fits:
        return f"{text}: each of its axes must have size 1, or that of the input's axis"
    ways = []
    for at in fits[:2]:
        index = [":" if i in at else "None" for i in range(at[0], len(shape))]
        ways.append(f"where[{', '.join(index)}]")
    return f"{text}: {' or '.join(ways)} does"


def masked(name):
    """The message where an array must not be masked."""
    text = f"{name} must not be a masked array"
    if name != "input":
        return f"{text}: pass {name}.data, or {name}.filled with the value that is meant"
    return (
        f"{text}: this function takes no mask, and filled values would count. Pass {name}.data "
        "where all elements count; the norms that take where= take masked arrays too"
    )


def not_writable_array(name, value):
    """The message where what is to be written is no array."""
    text = f"{name} must be a NumPy array, but got {described(value)}"
    if isinstance(value, bool) and name.startswith("running"):
        return f"{text}: {_flag_by_name(value)}"
    if isinstance(value, (int, float)) and name.startswith("running"):
        return f"{text}: it has one value per channel; numbers, such as eps, are passed by name"
    if name.startswith("running"):
        return (
            f"{text}: it is an array that training updates in place; make it once, "
            f"{name} = np.asarray({name}, np.float32), and pass that"
        )
    return f"{text}: make one by np.empty_like(input)"


def _flag_by_name(value):
    flags = f"batch_norm has training={value}, instance_norm use_input_stats={value}"
    return f"a flag is passed by its name: {flags}, the other norms have none"


def no_array(name, value):
    """The message where something cannot be taken for an array at all."""
    text = f"{name} must be an array, but got {described(value)}"
    if hasattr(value, "toarray"):
        return f"{text}: pass {name}.toarray()"
    if name == "negative_slope":
        return f"{text}: {_NUMBERS[name]}"
    if hasattr(value, "items"):
        return f"{text}: pass one of its arrays"
    if isinstance(value, os.PathLike):
        return f"{text}: {_FILE}"
    return text


def unreadable(name, value, error):
    """What to raise where NumPy cannot read a value."""
    if getattr(value, "requires_grad", False) is True:
        return TypeError(
            f"{name} is a torch tensor that requires grad, and these functions have no autograd: "
            f"use cnorm.interop.torch, which has, or pass {name}.detach()"
        )
    text = f"{name} cannot be read as an array: {error}"
    return (type(error) if type(error) in (TypeError, ValueError) else TypeError)(text)


def needs_ml_dtypes(error):
    """The error where bfloat16 is wanted and ml_dtypes is not installed."""
    message = f"dtype bfloat16 needs ml_dtypes: {install('half')}"
    return ModuleNotFoundError(message, name=error.name)


def not_a_dtype(value):
    """What to raise where a dtype is wanted, and a device or something else was given."""
    name = str(value)
    if re.fullmatch(r"(cuda|mps|xpu|gpu|tpu|hip|meta)(:\d+)?", name):
        return ValueError(f"cnorm computes on the CPU alone, but got {name!r}")
    text = "dtype must be float32, float64, float16 or bfloat16, but got"
    if name.startswith("torch."):
        return TypeError(f"{text} {name}: pass {name.removeprefix('torch.')!r}")
    return TypeError(f"{text} {described(value)}")


def pairs(values, parameter):
    """The message where `Module.accumulate` got anything else than pairs; "" where it got these."""
    for pair in values:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            text = "accumulate takes pairs (parameter, gradient), such as (self.weight, grad)"
            return f"{text}, but got {described(pair)}"
        if pair[0] is not None and not isinstance(pair[0], parameter):
            text = f"gradients belong to a cnorm.Parameter, but got {described(pair[0])}"
            return f"{text}: where the layer is made, self.weight = cnorm.Parameter(array)"
    return ""


def state(value):
    """How a path or a module becomes a state."""
    if isinstance(value, (str, os.PathLike)):
        return f"cnorm.checkpoint.load({str(value)!r}) reads one"
    return "pass its state_dict()" if hasattr(value, "state_dict") else ""


def prefixes(missing, unexpected):
    """What stands before all missing names of a state among its unexpected ones."""
    there = set(unexpected)
    for key in unexpected if missing else ():
        prefix = key.removesuffix(missing[0])
        if prefix != key and {prefix + name for name in missing} <= there:
            yield prefix


def keys(missing, unexpected):
    """The way out where a state has the names of a larger module, of a part, or of another norm."""
    there, here = set(unexpected), set(missing)
    for prefix in prefixes(missing, unexpected):
        if prefix.endswith("."):
            return (
                f"the names begin with {prefix!r}: cnorm.checkpoint.load(path, prefix={prefix!r}) "
                f"takes that off, and so does {{k.removeprefix({prefix!r}): v for k, v in "
                "state.items()}"
            )
    for key in missing if unexpected else ():
        prefix = key.removesuffix(unexpected[0])
        if prefix.endswith(".") and all(name.removeprefix(prefix) in there for name in here):
            return f"the names are those of a part: load them into get_submodule({prefix[:-1]!r})"
    if any(key.endswith("running_mean") for key in missing + unexpected):
        in_module = any(key.endswith("running_mean") for key in missing)
        has, lacks = ("module", "state") if in_module else ("state", "module")
        return (
            f"the {has} has running statistics and the {lacks} has not: are both of one kind of "
            "norm, with the same track_running_stats?"
        )
    return ""


def assignment(kind, name, value):
    """How an array, a class or a list gets where a parameter, a buffer or a module belongs."""
    if kind == "module":
        if isinstance(value, type):
            return f"{value.__name__} is a class: pass an object of it, {value.__name__}(...)"
        if isinstance(value, (list, tuple)):
            return "pass the modules themselves, Sequential(*modules), or a ModuleList"
        if any(base.__module__.startswith("torch.") for base in type(value).__mro__):
            return (
                "it is a module of torch, and stays in torch's containers: "
                "cnorm.interop.torch.accelerate(model) lets the norms of a torch model run in cnorm"
            )
        return "what runs in a network is a Module: give it a forward, and a backward to train"
    if kind == "parameter":
        return f"{name}[...] = values changes its values, cnorm.Parameter(array) is a new one"
    return f"{name}[...] = values changes its values, np.asarray(values) is a new array"


# --- shapes -------------------------------------------------------------------------------------


def scalar(name, array):
    """What a number that stands where weight or bias is expected was meant for."""
    return f"{name} is an array, but got the {described(array.item())}: {cast(name, array)}"


def _not_a_weight(value):
    if isinstance(value, bool):
        return _flag_by_name(value)
    if isinstance(value, float) and 0 < value < 0.1:
        return f"did you mean eps={value}? Pass it by its name"
    return "numbers come after weight and bias, pass them by their names"


def image_channels(shape, axis, size):
    """Where the channels of an image are, of which there are `size`, or which to leave out."""
    if len(shape) == 2:
        return "an image of two axes is grey: pass one number for mean, and one for std"
    if way := other_axis(shape, axis, size):
        return way
    if len(shape) == 3 and shape[0] == size:
        return f"input has {size} channels on axis 0: channel_axis=0?"
    return "slice the input, for example image[..., :3] of RGBA, or name another channel_axis"


def slopes(size, channels):
    """The message where a norm carries a PReLU of another number of slopes."""
    fits = f"cnorm.PReLU() or cnorm.PReLU({channels}) fits"
    return f"activation must be a PReLU of 1 or {channels} slopes, but got one of {size}: {fits}"


def other_axis(shape, axis, channels=-1, groups=0):
    """Name the axis on which the channels seem to be, where it is not the one given.

    There are as many as `channels`, and `groups` divides their number. Where `channels` is -1, only
    the last axis is meant: many axes can be divided.
    """
    axis %= len(shape)
    found = [
        i
        for i, n in enumerate(shape)
        if i not in (0, axis) and (n == channels or (channels == -1 and i == len(shape) - 1))
        if not groups or n % groups == 0
    ]
    if len(shape) < 3 or not found:
        return ""
    last = len(shape) - 1
    if last not in found and len(found) > 1:
        return ""
    i = -1 if last in found else found[0]
    where = "its last axis" if i == -1 else f"axis {i}"
    return f"input has {shape[i]} channels on {where}: channel_axis={i}?"


def channels(shape, axis, name, size, groups):
    """Where the channels are that a parameter of `size` values fits, or how many it is to be of.

    With `groups`, which do not divide the channels, how many would.
    """
    elsewhere = other_axis(shape, axis, size, groups)
    if groups and (fit := [str(n) for n in _divisors(shape[axis])[1:]]):
        fit = fit if len(fit) < 6 else [*fit[:4], "..."]
        few = f"num_groups of 1, {', '.join(fit)} divides the {shape[axis]} channels on axis {axis}"
        return f"{few}; or {elsewhere}" if elsewhere else few
    if elsewhere or groups:
        return elsewhere
    return (
        f"input has {shape[axis]} channels on axis {axis}, and {name} is of {size}: make the layer "
        f"for {shape[axis]}, or name the axis of the channels by channel_axis"
    )


def one_value(size, of="batch"):
    """The error of a unit, `of` a batch, an instance, a group or a row, that has one value."""
    what = "spatial element" if of == "instance" else "value per channel"
    error = ValueError(f"Expected more than 1 {what} when training, got input size {size}")
    return noted(error, f"one value has no variance: {_ONE_VALUE[of]}")


def row_at(shape, normalized_shape, axes):
    """Say what the axes are that were given, where normalized_shape is not theirs."""
    k = len(normalized_shape)
    sizes = [shape[i] for i in axes]
    at = f"axis {axes[0]} has {sizes[0]} elements" if k == 1 else f"axes {axes} have sizes {sizes}"
    if tuple(shape[len(shape) - k :]) == tuple(normalized_shape):
        return f"{at}; the last {'axis has' if k == 1 else 'axes have'} these: leave axis out?"
    return at


def row(shape, normalized_shape):
    """Say what the last axes are, where normalized_shape is not theirs."""
    k = len(normalized_shape)
    if k > len(shape):
        return f"input has {len(shape)} axes, normalized_shape {k}"
    last = f"the last {k} axes are" if k > 1 else "the last axis is"
    last = f"{last} {shape[len(shape) - k :] if k > 1 else shape[-1]}"
    if any(n < 0 for n in normalized_shape):
        return f"normalized_shape are sizes, not numbers of axes; {last}"
    if k == 1 and normalized_shape[0] in shape:
        i = shape.index(normalized_shape[0])
        return f"{last}; axis {i} has {shape[i]} elements: axis={i}?"
    return last


def rank(klass, shape, ranks, channels, channel_axis):
    """What to do with an input of another rank, whose `channels` are an int above 0 where known."""
    ndim = len(shape)
    axis = channel_axis - 1 if channel_axis > 0 else channel_axis
    known = isinstance(channels, int) and channels
    fits = not known or (-ndim <= axis < ndim and shape[axis] == channels)
    if ndim + 1 in ranks and ndim > 1 and fits:
        return "one sample? input[None] is a batch of one"
    if ndim == 1 and 2 in ranks and "Instance" not in klass:
        return "input[:, None] is many samples of one feature, input[None] one sample of many"
    if ndim == 2 and re.search(r"(Batch|Switch)Norm[23]d$", klass):
        return f"{klass[:-2]}1d takes a table, samples by features"
    if re.search(r"[123]d$", klass) and (fits := ndim - 2) in (1, 2, 3):
        return f"{klass[:-2]}{fits}d takes {ndim}D input"
    return ""


def groups(num_groups, num_channels):
    """Numbers of groups that divide the channels, near the one given."""
    fits = _divisors(num_channels) if num_groups > 0 else []
    if not fits:
        return ""
    near = sorted(sorted(fits, key=lambda n: abs(n - num_groups))[:2])
    text = f"num_groups={' or '.join(map(str, near))} would do"
    if num_channels < num_groups:
        text = f"the order is GroupNorm(num_groups, num_channels); {text}"
    return text


def _divisors(n):
    """The numbers that divide n; none where to look for them would take too long."""
    if not isinstance(n, int) or n > 1 << 16:
        return []
    return [m for m in range(1, n + 1) if n % m == 0]

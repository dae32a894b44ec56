"""What a module takes as an array, a dtype, a device, and how errors print a shape."""

from operator import index

import numpy as np

from .._call.arrays import as_dtype as to_dtype
from .._call.arrays import to_array, to_flag, to_float, to_int


def as_array(value, name="input"):
    """`value` as an ndarray, without a copy where it already is one or shares CPU memory."""
    if isinstance(value, np.ndarray):
        return value
    if value is None:
        raise TypeError(f"{name} must be an array, but got None")
    return to_array(value, name)


def is_float(dtype):
    """True for the four dtypes cnorm computes in."""
    return dtype.name in ("float32", "float64", "float16", "bfloat16")


def as_dtype(dtype):
    """The dtype of new parameters: float32 unless told otherwise."""
    if dtype is None:
        return np.dtype(np.float32)
    numpy_dtype = to_dtype(dtype)
    if not is_float(numpy_dtype):
        raise TypeError(
            f"dtype must be float32, float64, float16 or bfloat16, but got {numpy_dtype}: "
            "parameters are floats"
        )
    return numpy_dtype


def check_device(device):
    """Raise ValueError unless `device` is the CPU."""
    if device is not None and str(device) != "cpu":
        raise ValueError(f"device must be None or 'cpu', but got {str(device)!r}")


def as_shape(shape, name):
    """`shape` as a tuple without negative sizes: an integer, or several where its name is so."""
    several = "shape" in name
    try:
        if not several or (hasattr(shape, "__index__") and not isinstance(shape, np.ndarray)):
            sizes = (index(shape),)
        else:
            sizes = tuple(map(index, shape))
    except TypeError:
        kind = "an integer or a sequence of integers" if several else "an integer"
        raise TypeError(_hints().number(name, shape, kind)) from None
    for size in sizes:
        if size < 0:
            raise RuntimeError(
                f"Trying to create an array with negative dimension {size}: {name} is "
                f"{size_text(sizes)}"
            )
    return sizes


def check_number(value, name, *, optional=False):
    """`value`, if it is a number, or None where that is allowed."""
    if not (optional and value is None):
        to_float(value, name)
    return value


def check_flag(value, name):
    """`value`, if it is true or false, and no text."""
    to_flag(value, name)
    return value


def check_size(value, name):
    """`value`, if it is an integer of at least 1."""
    if to_int(value, name) < 1:
        raise ValueError(f"{name} must be a positive integer, but got {value}")
    return value


def wrong_rank(module, input, ranks):
    """The error of a module whose input has another number of dimensions."""
    expected = " or ".join(f"{rank}D" for rank in ranks)
    error = ValueError(f"expected {expected} input (got {input.ndim}D input)")
    hint = _hints().rank(
        type(module).__name__, input.shape, ranks, module.num_features, module.channel_axis
    )
    return _hints().noted(error, hint)


def _hints():
    """The module that knows common mistakes: imported when something has failed."""
    from .. import _hints

    return _hints


def size_text(shape):
    """`shape` as errors print it: ``[1, 3]``."""
    return str(list(shape))


def as_gradient(grad_output, output):
    """`grad_output` as an array that fits `output`, or an array of its shape and dtype.

    Raises
    ------
    RuntimeError
        If the shapes differ.
    TypeError
        If the dtypes do.
    """
    grad_output, output = as_array(grad_output, "grad_output"), as_array(output)
    if grad_output.shape != output.shape:
        raise RuntimeError(
            f"Mismatch in shape: grad_output has a shape of {size_text(grad_output.shape)} and "
            f"the output of the last forward has a shape of {size_text(output.shape)}: "
            "pass the gradient of that output"
        )
    if grad_output.dtype == output.dtype:
        return grad_output
    expected = output.dtype.newbyteorder("=")
    if grad_output.dtype.newbyteorder("=") != expected:
        raise TypeError(
            f"grad_output has dtype {grad_output.dtype}, but the last forward returned "
            f"{expected}: pass grad_output.astype({expected.name!r})"
        )
    return grad_output

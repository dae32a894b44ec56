"""What a module takes as an array, a dtype, a device, and how errors print a shape."""

import numpy as np

from .._call.arrays import to_array


def as_array(value):
    """`value` as an ndarray, without a copy where it already is one or shares CPU memory."""
    if isinstance(value, np.ndarray):
        return value
    if str(getattr(value, "dtype", "")) == "torch.bfloat16":  # which NumPy cannot read
        import ml_dtypes
        import torch

        return value.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    if hasattr(value, "__dlpack__") and not hasattr(value, "__array__"):
        return to_array(value, "input")
    return np.asarray(value)


def is_float(dtype):
    """True for the four dtypes cnorm computes in."""
    return dtype.name in ("float32", "float64", "float16", "bfloat16")


def as_dtype(dtype):
    """The dtype of new parameters: float32 unless told otherwise."""
    if dtype is None:
        return np.dtype(np.float32)
    if dtype == "bfloat16":
        import ml_dtypes  # optional, and needed for this dtype alone

        return np.dtype(ml_dtypes.bfloat16)
    dtype = np.dtype(dtype)
    if not is_float(dtype):
        raise TypeError(
            f"parameters must be float32, float64, float16 or bfloat16, not {dtype.name}"
        )
    return dtype


def check_device(device):
    """Raise ValueError unless `device` is the CPU."""
    if device is not None and str(device) != "cpu":
        raise ValueError(f"device must be None or 'cpu', but got {str(device)!r}")


def as_shape(shape):
    """`shape`, one integer or several, as a tuple without negative sizes."""
    shape = (shape,) if hasattr(shape, "__index__") else tuple(shape)
    for size in shape:
        if size < 0:
            raise RuntimeError(
                f"Trying to create an array with negative dimension {size}: {size_text(shape)}"
            )
    return shape


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
    grad_output, output = as_array(grad_output), as_array(output)
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

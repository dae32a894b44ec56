"""Conversion: parameters and buffers in another dtype."""

from ._arrays import as_dtype, is_float


class Conversion:
    """The part of `Module` that changes dtypes."""

    def to(self, dtype):
        """Convert parameters, gradients and floating point buffers; returns the module.

        An array of another dtype is another array: parameters become new `Parameter` objects
        (build the optimizer afterwards), one object that modules share stays one.
        ``to("cpu")`` does nothing.
        """
        if str(dtype) == "cpu":
            return self
        try:
            dtype = as_dtype(dtype)
        except ValueError as error:
            raise ValueError(f"to() takes a dtype, or 'cpu': {error}") from None
        converted = {}
        changes = []
        for module in self.modules():
            for kind in ("parameter", "buffer"):
                for name, array in module._own(kind):
                    if array is not None and is_float(array.dtype):
                        if id(array) not in converted:
                            converted[id(array)] = _convert(array, dtype)
                        changes.append((module, name, converted[id(array)]))
        for module, name, array in changes:
            module.__dict__[name] = array
        return self

    def half(self):
        """``to("float16")``, running statistics included."""
        return self.to("float16")

    def float(self):
        """``to("float32")``."""
        return self.to("float32")

    def double(self):
        """``to("float64")``."""
        return self.to("float64")

    def bfloat16(self):
        """``to("bfloat16")``; needs ml_dtypes."""
        return self.to("bfloat16")


def _convert(array, dtype):
    if hasattr(array, "_converted"):
        return array._converted(dtype)
    return array.astype(dtype, copy=False)

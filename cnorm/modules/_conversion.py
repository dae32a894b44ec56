"""Conversion: parameters and buffers in another dtype."""

from ._arrays import as_dtype, is_float


class _OnTheCpu:
    """The name of a method of torch's that moves a module, on which to say why there is none.

    A `__getattr__` of the class would do that for all names, and slow every access down.
    """

    def __set_name__(self, owner, name):
        self.name = name

    def __get__(self, module, owner=None):
        kind = type(module) if owner is None else owner
        raise AttributeError(
            f"{kind.__name__!r} object has no attribute {self.name!r}: cnorm computes on the CPU "
            f"alone, so leave .{self.name}() out"
        )


class Conversion:
    """The part of `Module` that changes dtypes."""

    cpu, cuda = _OnTheCpu(), _OnTheCpu()

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

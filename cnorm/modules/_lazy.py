"""Lazy norms: the number of features comes from the first input, or from what is loaded."""

import numpy as np

from ._arrays import as_array, as_dtype, check_device
from ._parameter import Parameter


class _Uninitialized:
    """An array whose shape is not known yet; it has a dtype, and nothing else to use."""

    __slots__ = ()

    def __new__(cls, requires_grad=False, device=None, dtype=None):
        check_device(device)
        self = np.empty(0, as_dtype(dtype)).view(cls)
        if isinstance(self, Parameter):
            self.requires_grad = bool(requires_grad)
        return self

    def materialize(self, shape, fill=0):
        """The array this becomes once its shape is known, each element `fill`."""
        array = np.full(shape, fill, self.dtype)
        return Parameter(array, self.requires_grad) if isinstance(self, Parameter) else array

    @property
    def shape(self):
        raise RuntimeError(
            "Can't access the shape of an uninitialized parameter or buffer. "
            "This error usually happens in `load_state_dict` when trying to load an uninitialized "
            "parameter into an initialized one. Call `forward` to initialize the parameters "
            "before accessing their attributes."
        )

    def _refuse(self, *args, **kwargs):
        what = getattr(args[0], "__name__", args[0]) if args else "len"
        raise ValueError(
            f"Attempted to use an uninitialized parameter in {what}. This error happens when a "
            "lazy module is used before its first forward: call it with a batch, or load a state, "
            "to initialize the parameters."
        )

    __array_ufunc__ = __array_function__ = __getitem__ = __setitem__ = __len__ = _refuse

    def _converted(self, dtype):
        return type(self)(getattr(self, "requires_grad", False), None, dtype)

    def __deepcopy__(self, memo):
        memo[id(self)] = copy = self._converted(self.dtype)
        return copy

    def __reduce_ex__(self, protocol):
        return type(self), (getattr(self, "requires_grad", False), None, self.dtype)

    def __repr__(self):
        return f"<{type(self).__name__}>"


class UninitializedParameter(_Uninitialized, Parameter):
    """A parameter of a lazy module before its first forward or load."""

    __slots__ = ()
    cls_to_become = Parameter


class UninitializedBuffer(_Uninitialized, np.ndarray):
    """A buffer of a lazy module before its first forward or load."""

    __slots__ = ()
    cls_to_become = np.ndarray


# What a lazy module leaves uninitialised, and what it starts from.
_START = {"weight": 1, "bias": 0, "running_mean": 0, "running_var": 1}


class Lazy:
    """A mixin: a norm without its sizes, which becomes `cls_to_become` when it knows them.

    A subclass says what the sizes are: `_sizes_of` an input, `_set_sizes` of the module, and
    `_check_sizes` of what is loaded.
    """

    def _uninitialize(self, device):
        """Let the parameters and buffers have no shape yet."""
        for name in _START:
            if (array := getattr(self, name, None)) is not None:
                is_parameter = isinstance(array, Parameter)
                kind = UninitializedParameter if is_parameter else UninitializedBuffer
                setattr(self, name, kind(is_parameter, device, array.dtype))

    def has_uninitialized_params(self):
        """Whether a parameter or a buffer has no shape yet."""
        return any(isinstance(getattr(self, name, None), _Uninitialized) for name in _START)

    def reset_parameters(self):
        """Nothing to reset yet."""

    def forward(self, input, where=None):
        return self._lock.run(Lazy._first_forward, self, as_array(input), where)

    def _first_forward(self, input, where):
        if not isinstance(self, Lazy):  # another thread was here first
            return self.forward(input, where)
        before = type(self), self.__dict__.copy()
        try:
            self._materialize(self._sizes_of(input))
            return self.forward(input, where)
        except BaseException:
            self.__class__ = before[0]
            self.__dict__.update(before[1])
            raise

    def _materialize(self, sizes):
        self._set_sizes(sizes)
        for name, start in _START.items():
            if isinstance(array := getattr(self, name, None), _Uninitialized):
                setattr(self, name, array.materialize(sizes, self._start(name, start)))
        self.__class__ = self.cls_to_become

    def _start(self, name, start):
        """What a parameter starts from."""
        return start

    def _check_sizes(self, sizes):
        """Whether parameters may have this shape."""
        return len(sizes) == 1

    _expected = "one 1-dimensional shape"

    def _materialize_from(self, shapes):
        found = {shape for name, shape in shapes.items() if name in _START}
        if len(found) > 1 or not all(map(self._check_sizes, found)):
            raise RuntimeError(
                f"Error(s) in loading state_dict for {type(self).__name__}:\n\t"
                f"expected {self._expected} for all parameters, but got {sorted(found)}."
            )
        for sizes in found:
            self._materialize(sizes)


class LazyNorm(Lazy):
    """Of batch and instance norm: a norm without `num_features`."""

    def __init__(
        self, eps=1e-5, momentum=0.1, affine=True, track_running_stats=True, device=None,
        dtype=None, *, bias=True, channel_axis=1, activation=None,
    ):  # fmt: skip
        super().__init__(
            0, eps, momentum, affine, track_running_stats, device, dtype, bias=bias,
            channel_axis=channel_axis, activation=activation,
        )  # fmt: skip
        self._uninitialize(device)

    def _sizes_of(self, input):
        self._check_input_dim(input)
        return (self._batched(input).shape[self.channel_axis],)

    def _set_sizes(self, sizes):
        if self.num_batches_tracked is not None:  # a new one too: the old is for the way back
            self.num_batches_tracked = self.num_batches_tracked.copy()
        (self.num_features,) = sizes


class LazyGroups(Lazy):
    """Of group norm: a norm without `num_channels`."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._uninitialize(None)

    def _sizes_of(self, input):
        if input.ndim < 2:
            raise RuntimeError(
                f"Expected at least 2 dimensions for input tensor but received {input.ndim}"
            )
        return (input.shape[self.channel_axis],)

    def _set_sizes(self, sizes):
        (channels,) = sizes
        if channels % self.num_groups != 0:
            raise ValueError(
                f"num_channels ({channels}) must be divisible by num_groups ({self.num_groups})"
            )
        self.num_channels = channels


class LazyRows(Lazy):
    """Of layer and rms norm: a norm without `normalized_shape`."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._uninitialize(None)

    def _axes(self):
        """The axes that are normalized."""
        if self.axis is None:
            return (-1,)
        return self.axis if isinstance(self.axis, tuple) else (self.axis,)

    def _sizes_of(self, input):
        for axis in self._axes():
            if not -input.ndim <= axis < input.ndim:
                raise ValueError(
                    f"axis {axis} is out of bounds for an input with {input.ndim} dimensions"
                )
        return tuple(input.shape[axis] for axis in self._axes())

    def _set_sizes(self, sizes):
        self.normalized_shape = sizes

    def _start(self, name, start):
        return 0 if getattr(self, "zero_centered_gamma", False) else start

    def _check_sizes(self, sizes):
        return len(sizes) == len(self._axes())

    @property
    def _expected(self):
        return f"one {len(self._axes())}-dimensional shape"

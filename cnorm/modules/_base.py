"""Module: what every layer and container is made of."""

from functools import wraps
from types import FunctionType

import numpy as np

from .. import _runtime
from ._conversion import Conversion
from ._grad_mode import get_grad_mode
from ._parameter import Parameter
from ._state import State
from ._traversal import Traversal


def _explained(init):
    """`__init__` whose error about unknown or missing arguments says what the class takes."""

    @wraps(init)
    def __init__(self, *args, **kwargs):
        try:
            init(self, *args, **kwargs)
        except TypeError as error:
            if error.__traceback__.tb_next is not None:  # raised inside, not by the call itself
                raise
            from inspect import signature

            from .. import _hints

            klass = type(self)
            text = str(error).replace(f"{init.__qualname__}()", f"{klass.__name__}()")
            raise TypeError(_hints.arguments(text, klass.__name__, signature(klass))) from None

    return __init__


def _called(layer, forward):
    """`forward` as `__call__` of a layer.

    The interpreter raises where arguments do not fit, and its message begins with `__qualname__`:
    that of the package's functions says what the layer takes, and costs a call nothing.
    """
    if not forward.__module__.startswith(__package__):
        return forward
    code, rest = forward.__code__, (forward.__defaults__, forward.__closure__)
    call = FunctionType(code, forward.__globals__, "__call__", *rest)
    names = ", ".join(code.co_varnames[1 : code.co_argcount])
    call.__qualname__ = f"{layer} takes ({names}): forward"
    call.__doc__ = forward.__doc__
    return call


class Module(Traversal, Conversion, State):
    """The base of all layers and containers.

    Parameters, buffers and child modules are ordinary attributes; assigning a `Parameter` or a
    `Module` registers it. A layer of your own defines `forward` and `backward`:

    Examples
    --------
    >>> import cnorm, numpy as np
    >>> class Linear(cnorm.Module):
    ...     def __init__(self, weight):
    ...         super().__init__()
    ...         self.weight = cnorm.Parameter(weight)
    ...     def forward(self, x):
    ...         self.keep(x)
    ...         return x @ self.weight
    ...     def backward(self, grad_output):
    ...         (x,) = self.kept()
    ...         self.accumulate((self.weight, x.T @ grad_output))
    ...         return grad_output @ self.weight.T
    >>> layer = Linear(np.eye(2))
    >>> y = layer(np.ones((1, 2)))
    >>> layer.backward(y)
    array([[1., 1.]])
    >>> layer.weight.grad
    array([[1., 1.],
           [1., 1.]])
    """

    _call_is_forward = False  # which saves a small call a fifth of its time

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if cls._call_is_forward and "__call__" not in vars(cls):
            cls.__call__ = _called(cls.__name__, cls.forward)
        if not cls.__module__.startswith(__package__):
            return
        if "__init__" in vars(cls):
            cls.__init__ = _explained(cls.__init__)
        for name in ("forward", "backward"):  # errors about arguments name no class but the user's
            if name in vars(cls):
                vars(cls)[name].__qualname__ = name

    def __init__(self):
        # Names only: the values are ordinary attributes, so that reading one costs nothing more.
        self.__dict__.update(_kinds={}, _non_persistent=set(), training=True)
        self._forget_transients()

    def _forget_transients(self):
        """Create what copies and pickles do not hold: the kept forward pass, and the lock."""
        # In a list: to set its item takes half as long as one of __dict__, and an attribute goes
        # through __setattr__.
        self.__dict__.update(_pass=[None], _lock=_runtime.Lock())

    def __getstate__(self):
        state = {k: v for k, v in self.__dict__.items() if k not in ("_pass", "_lock")}
        state.update(_kinds=self._kinds.copy(), _non_persistent=self._non_persistent.copy())
        return state

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._forget_transients()

    # --- forward and backward ---------------------------------------------------------------

    @property
    def _kept(self):
        """What the last forward pass kept, or None."""
        return self._pass[0]

    @_kept.setter
    def _kept(self, values):
        self._pass[0] = values

    def __call__(self, *args, **kwargs):
        return self.forward(*args, **kwargs)

    def forward(self, *args, **kwargs):
        """Run the layer; subclasses define it."""
        raise NotImplementedError(
            f'Module [{type(self).__name__}] is missing the required "forward" function'
        )

    def backward(self, grad_output):
        """Return the gradient of the input of the last forward; add those of the parameters."""
        raise NotImplementedError(
            f'Module [{type(self).__name__}] is missing the required "backward" function'
        )

    def _keeps(self):
        """Whether this forward pass keeps what backward needs."""
        mode = get_grad_mode()
        return self.training if mode is None else mode

    def keep(self, *values):
        """Keep `values`, by reference, for the backward pass of this forward, if it can come.

        It can in training mode and inside ``enable_grad()``, not inside ``no_grad()``.
        """
        self._pass[0] = values if self._keeps() else None

    def kept(self):
        """What the last forward kept; RuntimeError where it kept nothing."""
        if self._kept is None:
            raise RuntimeError(
                f"{type(self).__name__}.backward has no forward pass to go back through: call the "
                "module first, once for each backward, in training mode (`train()`) or inside "
                "`with cnorm.enable_grad():`, and not inside `with cnorm.no_grad():`"
            )
        return self._kept

    def accumulate(self, *pairs):
        """Add to the gradients, all or none, and release what forward kept.

        Parameters
        ----------
        *pairs : (Parameter or None, ndarray)
            Each parameter and what to add to its gradient; None and frozen ones are passed over.
        """
        # A new array each time, never in place: whoever holds the old one can put it back.
        try:
            totals = [
                (parameter, parameter._grad, parameter._plus_grad(grad))
                for parameter, grad in pairs
                if parameter is not None and parameter.requires_grad
            ]
        except (AttributeError, TypeError, ValueError, RuntimeError) as error:
            raise self._not_accumulated(pairs, error) from None
        kept = self._kept
        try:
            for parameter, _, total in totals:
                parameter._grad = total
            self._pass[0] = None
        except BaseException:  # an interrupt
            for parameter, before, _ in totals:
                parameter._grad = before
            self._pass[0] = kept
            raise

    def _not_accumulated(self, pairs, error):
        """What to raise where a gradient does not fit its parameter, or there are no such pairs."""
        from .. import _hints

        if message := _hints.pairs(pairs, Parameter):
            return TypeError(message)
        kind = type(self).__name__
        return _hints.noted(error, f"backward of {kind}: has grad_output the shape of its output?")

    def train(self, mode=True):
        """Set training mode, here and in all children; returns the module."""
        if not isinstance(mode, bool):
            raise ValueError("training mode is expected to be boolean")
        self.training = mode
        for child in self.children():
            child.train(mode)
        return self

    def eval(self):
        """Set evaluation mode, here and in all children; returns the module."""
        return self.train(False)

    # --- registration -----------------------------------------------------------------------

    def __setattr__(self, name, value):
        if isinstance(value, Parameter):
            self._set("parameter", name, value)
        elif isinstance(value, Module):
            self._set("module", name, value)
        elif (kind := self.__dict__.get("_kinds", {}).get(name)) is None:
            object.__setattr__(self, name, value)
        else:
            self._check_value(kind, name, value)
            self.__dict__[name] = value

    def __delattr__(self, name):
        object.__delattr__(self, name)
        self._kinds.pop(name, None)
        self._non_persistent.discard(name)

    def _set(self, kind, name, value):
        if "_kinds" not in self.__dict__:
            raise AttributeError(f"cannot assign {kind}s before Module.__init__() call")
        self._kinds[name] = kind
        self._non_persistent.discard(name)
        self.__dict__[name] = value

    def _check_value(self, kind, name, value):
        expected = {"parameter": Parameter, "buffer": np.ndarray, "module": Module}[kind]
        if value is not None and not isinstance(value, expected):
            from .. import _hints

            error = TypeError(
                f"cannot assign '{type(value).__name__}' as {kind} '{name}' "
                f"({expected.__name__} or None expected)"
            )
            raise _hints.noted(error, _hints.assignment(kind, name, value))

    def _register(self, kind, name, value):
        if not isinstance(name, str):
            raise TypeError(f"{kind} name should be a string. Got {type(name).__name__}")
        if "." in name:
            raise KeyError(f'{kind} name can\'t contain ".", got: {name}')
        if name == "":
            raise KeyError(f'{kind} name can\'t be empty string ""')
        if hasattr(self, name) and self._kinds.get(name) != kind:
            raise KeyError(f"attribute '{name}' already exists")
        self._check_value(kind, name, value)
        self._set(kind, name, value)

    def register_parameter(self, name, param):
        """Add a parameter, or None in the place of one."""
        self._register("parameter", name, param)

    def register_buffer(self, name, value, persistent=True):
        """Add a buffer: an array that is state but not learned, or None in the place of one.

        `persistent=False` keeps it out of `state_dict`.
        """
        self._register("buffer", name, value)
        if not persistent:
            self._non_persistent.add(name)

    def register_module(self, name, module):
        """Add a child module, or None in the place of one."""
        self._check_value("module", name, module)
        self._register("module", name, module)

    add_module = register_module

    # --- text -------------------------------------------------------------------------------

    def extra_repr(self):
        """What `repr` prints between the parentheses, before the children."""
        return ""

    def __repr__(self):
        extra = self.extra_repr()
        children = [
            f"({name}): {child!r}".replace("\n", "\n  ") for name, child in self._own("module")
        ]
        if not children:
            return f"{type(self).__name__}({extra})"
        lines = ([extra] if extra else []) + children
        return f"{type(self).__name__}(\n  " + "\n  ".join(lines) + "\n)"

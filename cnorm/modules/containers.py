"""Containers: modules in a row."""

from operator import index

from ._base import Module
from ._norm import Norm, without_mask


class _Indexed(Module):
    """Modules registered under "0", "1", ..., in that order."""

    def __init__(self, modules=()):
        super().__init__()
        self.extend(modules)

    def _names(self):
        return [name for name, _ in self._own("module")]

    def __len__(self):
        return len(self._names())

    def __iter__(self):
        return iter([module for _, module in self._own("module")])

    def _name(self, i):
        if not -len(self) <= index(i) < len(self):
            raise IndexError(f"index {i} is out of range")
        return self._names()[i]

    def __getitem__(self, i):
        if isinstance(i, slice):
            return type(self)._of(list(self)[i])
        return getattr(self, self._name(i))

    def __setitem__(self, i, module):
        setattr(self, self._name(i), module)

    def __delitem__(self, i):
        modules = list(self)
        del modules[i]
        self._rebuild(modules)

    def _rebuild(self, modules):
        for name in self._names():
            delattr(self, name)
        self.extend(modules)

    def append(self, module):
        """Add a module at the end; returns the container."""
        self.register_module(str(len(self)), module)
        return self

    def extend(self, modules):
        """Add modules at the end; returns the container."""
        try:
            modules = list(modules)
        except TypeError:
            raise TypeError(
                f"{type(self).__name__} takes a sequence of modules, but got "
                f"{type(modules).__name__}: put it into a list"
            ) from None
        for module in modules:
            self.append(module)
        return self

    def insert(self, i, module):
        """Add a module before position `i`; returns the container."""
        modules = list(self)
        modules.insert(i, module)
        self._rebuild(modules)
        return self


class ModuleList(_Indexed):
    """A list of modules; it has no forward.

    Parameters
    ----------
    modules : iterable of Module
        What the list holds at first.

    Examples
    --------
    >>> import cnorm
    >>> norms = cnorm.ModuleList(cnorm.LayerNorm(4) for _ in range(3))
    >>> len(norms), len(list(norms.parameters()))
    (3, 6)
    """

    _of = classmethod(lambda cls, modules: cls(modules))


class Sequential(_Indexed):
    """Modules run one after the other; backward runs them in reverse.

    Parameters
    ----------
    *modules : Module
        Or one mapping of names to modules.

    Examples
    --------
    >>> import cnorm, numpy as np
    >>> net = cnorm.Sequential(cnorm.LayerNorm(2), cnorm.ReLU())
    >>> y = net(np.float64([[1, 3]]))
    >>> net.backward(np.ones_like(y)).shape
    (1, 2)
    """

    _of = classmethod(lambda cls, modules: cls(*modules))

    def __init__(self, *modules):
        named = len(modules) == 1 and hasattr(modules[0], "items")
        super().__init__(() if named else modules)
        if named:
            for name, module in modules[0].items():
                self.register_module(name, module)

    def forward(self, input, where=None):
        """Run the modules; the norms and the containers among them take `where`.

        Parameters
        ----------
        input : array_like
        where : ndarray of bool, optional
            Which elements count, as of the norms: a mask that broadcasts to the input of each.
        """
        if where is not None:
            self._check_takes_where()
        for module in self:
            if where is not None and isinstance(module, Norm | Sequential):
                input = module(input, where)
            else:
                input = module(input)
        return input

    def _check_takes_where(self):
        """Whether all norms do: before the first of them counts a batch."""
        for module in self:
            if isinstance(module, Sequential):
                module._check_takes_where()
            elif isinstance(module, Norm) and not module._takes_where:
                raise without_mask(module)

    def backward(self, grad_output):
        before = [(module, "_kept", module._kept) for module in self.modules()]
        before += [(parameter, "_grad", parameter.grad) for parameter in self.parameters()]
        try:
            for module in reversed(list(self)):
                grad_output = module.backward(grad_output)
        except BaseException:  # no gradient is added where not all are
            for owner, name, value in before:
                object.__setattr__(owner, name, value)
            raise
        return grad_output

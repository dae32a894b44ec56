"""Traversal: the ways to walk over a module, its children, parameters and buffers."""

import numpy as np


class Traversal:
    """The part of `Module` that walks over what is registered."""

    def _own(self, kind):
        """The names and values of one kind registered here, None included."""
        values = self.__dict__
        return [(name, values[name]) for name, k in self._kinds.items() if k == kind]

    def named_modules(self, memo=None, prefix="", remove_duplicate=True):
        """Yield the dotted name and the module, this one first, each module once."""
        memo = set() if memo is None else memo
        if self in memo:
            return
        if remove_duplicate:
            memo.add(self)
        yield prefix, self
        for name, child in self._own("module"):
            if child is not None:
                yield from child.named_modules(memo, _join(prefix, name), remove_duplicate)

    def modules(self):
        """Yield this module and all below it, each once."""
        for _, module in self.named_modules():
            yield module

    def named_children(self):
        """Yield the name and the module of the direct children, each module once."""
        seen = set()
        for name, child in self._own("module"):
            if child is not None and child not in seen:
                seen.add(child)
                yield name, child

    def children(self):
        """Yield the direct children, each once."""
        for _, child in self.named_children():
            yield child

    def _named_arrays(self, kind, prefix, recurse, remove_duplicate):
        seen = set()
        modules = (
            self.named_modules(prefix=prefix, remove_duplicate=remove_duplicate)
            if recurse
            else [(prefix, self)]
        )
        for path, module in modules:
            for name, array in module._own(kind):
                if array is None or id(array) in seen:
                    continue
                if remove_duplicate:
                    seen.add(id(array))
                yield _join(path, name), array

    def named_parameters(self, prefix="", recurse=True, remove_duplicate=True):
        """Yield the dotted name and the `Parameter`, each parameter once."""
        return self._named_arrays("parameter", prefix, recurse, remove_duplicate)

    def parameters(self, recurse=True):
        """Yield the parameters, each once: what an optimizer takes."""
        for _, parameter in self.named_parameters(recurse=recurse):
            yield parameter

    def named_buffers(self, prefix="", recurse=True, remove_duplicate=True):
        """Yield the dotted name and the buffer, each buffer once."""
        return self._named_arrays("buffer", prefix, recurse, remove_duplicate)

    def buffers(self, recurse=True):
        """Yield the buffers, each once."""
        for _, buffer in self.named_buffers(recurse=recurse):
            yield buffer

    def get_submodule(self, target):
        """The module at a dotted path; AttributeError where there is none."""
        module = self
        for name in target.split(".") if target else ():
            if not hasattr(module, name):
                raise AttributeError(f"{type(module).__name__} has no attribute `{name}`")
            module = getattr(module, name)
            if not isinstance(module, Traversal):
                raise AttributeError(f"`{name}` is not a Module")
        return module

    def apply(self, fn):
        """Call ``fn(module)`` on all children, then on this module; returns the module."""
        for child in self.children():
            child.apply(fn)
        fn(self)
        return self

    def zero_grad(self, set_to_none=True):
        """Reset the gradients of all parameters: to None, or to zeros where there is one."""
        for parameter in self.parameters():
            if parameter.grad is not None:
                parameter.grad = None if set_to_none else np.zeros_like(parameter.grad)

    def requires_grad_(self, requires_grad=True):
        """Set whether backward adds to the gradients of the parameters; returns the module."""
        for parameter in self.parameters():
            parameter.requires_grad_(requires_grad)
        return self


def replaced(module, replacement, done=None):
    """`module` with ``replacement(m)`` in the place of each module m in it, itself included.

    `done` has what each became: a module that is shared stays shared.
    """
    done = {} if done is None else done
    if module not in done:
        done[module] = new = replacement(module)
        for name, child in module._own("module"):
            if child is not None:
                new.add_module(name, replaced(child, replacement, done))
    return done[module]


def _join(prefix, name):
    return f"{prefix}.{name}" if prefix else name

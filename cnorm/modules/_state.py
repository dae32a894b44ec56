"""State: `state_dict` and `load_state_dict`, with torch's keys, versions and errors."""

from collections import OrderedDict, namedtuple
from collections.abc import Mapping

import numpy as np

from ._arrays import as_array, is_float, size_text

_MANY = 12  # unexpected keys that look like those of a larger model


class IncompatibleKeys(namedtuple("IncompatibleKeys", ["missing_keys", "unexpected_keys"])):
    """What `load_state_dict` did not find, and what it did not expect."""

    __slots__ = ()

    def __repr__(self):
        if not self.missing_keys and not self.unexpected_keys:
            return "<All keys matched successfully>"
        return super().__repr__()

    __str__ = __repr__


class State:
    """The part of `Module` that saves and loads."""

    _version = 1

    def _state(self):
        """The name and array of each parameter and persistent buffer, parameters first."""
        for name, array in self._own("parameter") + self._own("buffer"):
            if array is not None and name not in self._non_persistent:
                yield name, array

    def state_dict(self, *, destination=None, prefix="", keep_vars=False):
        """The state of this module and all below it, by dotted name.

        Returns
        -------
        OrderedDict of ndarray
            The arrays share memory with the module. Each module's version is in ``_metadata``.
        """
        if destination is None:
            destination = OrderedDict()
            destination._metadata = OrderedDict()
        if hasattr(destination, "_metadata"):
            destination._metadata[prefix[:-1]] = {"version": self._version}
        for name, array in self._state():
            destination[prefix + name] = array if keep_vars else _detached(array)
        for name, child in self._own("module"):
            if child is not None:
                child.state_dict(
                    destination=destination, prefix=f"{prefix}{name}.", keep_vars=keep_vars
                )
        return destination

    def load_state_dict(self, state_dict, strict=True):
        """Copy arrays into this module and all below it, all or nothing.

        Parameters
        ----------
        state_dict : mapping of str to array_like
            What `state_dict` returns; torch tensors on the CPU are welcome. Values are cast.
        strict : bool
            Whether missing and unexpected keys are errors.

        Returns
        -------
        IncompatibleKeys
            ``(missing_keys, unexpected_keys)``.

        Raises
        ------
        RuntimeError
            Everything that does not fit, in one error.
        """
        if not isinstance(state_dict, Mapping):
            from .. import _hints

            error = TypeError(f"Expected state_dict to be dict-like, got {type(state_dict)}.")
            raise _hints.noted(error, _hints.state(state_dict))
        plan = _Plan(getattr(state_dict, "_metadata", None) or {})
        plan.add(self, dict(state_dict), "")
        plan.check(self, strict)
        plan.commit()
        return IncompatibleKeys(plan.missing, plan.unexpected)

    def _upgrade_state(self, state, prefix, version, errors):
        """Adapt `state`, a copy, from an older version, or append to `errors`."""

    def _materialize_from(self, shapes):
        """Lazy modules: give what is uninitialised the shapes about to be loaded."""


class _Plan:
    """A load: everything is checked, then everything is copied."""

    def __init__(self, metadata):
        self.metadata = metadata
        self.missing, self.unexpected, self.errors = [], [], []
        self.copies = []  # (module, name, value)

    def add(self, module, state, prefix):
        """Plan the load of `module` from the items of `state`, which start with `prefix`."""
        version = self.metadata.get(prefix[:-1], {}).get("version")
        module._upgrade_state(state, prefix, version, self.errors)
        expected = dict(module._state())
        for name, target in expected.items():
            if (key := prefix + name) not in state:
                self.missing.append(key)
            elif (value := self._fitting(key, state[key], target)) is not None:
                self.copies.append((module, name, value))
        children = dict(module._own("module"))
        for key in state:
            name, *rest = key[len(prefix) :].split(".", 1)
            if name not in (children if rest else expected):
                self.unexpected.append(key)
        for name, child in children.items():
            if child is not None:
                below = f"{prefix}{name}."
                self.add(child, {k: v for k, v in state.items() if k.startswith(below)}, below)

    def _fitting(self, key, value, target):
        """`value` as an array that can be copied into `target`, or None and an error."""
        if _is_lazy(target) and _is_lazy(value):
            return None
        if _is_lazy(value):
            value.shape  # noqa: B018, raises: it has none
        array = _value_array(value)
        if array is None:
            self.errors.append(
                f'While copying the parameter named "{key}", expected an array or array-like '
                f"object from checkpoint but received {type(value)}"
            )
        elif _is_lazy(target) or array.shape == target.shape:
            return array
        elif target.ndim == 0 and array.shape == (1,):  # as checkpoints of torch 0.3 have it
            return array[0]
        else:
            self.errors.append(
                f"size mismatch for {key}: copying a param with shape {size_text(array.shape)} "
                "from checkpoint, the shape in current model is "
                f"{size_text(target.shape)}."
            )
        return None

    def check(self, module, strict):
        errors = self.errors
        if strict and self.unexpected:
            errors.insert(0, f"Unexpected key(s) in state_dict: {_quoted(self.unexpected)}. ")
        if strict and self.missing:
            errors.insert(0, f"Missing key(s) in state_dict: {_quoted(self.missing)}. ")
        if strict and len(self.unexpected) >= _MANY:
            errors += _prefix_hint(self.missing, self.unexpected)
        if errors:
            from .. import _hints

            error = RuntimeError(
                f"Error(s) in loading state_dict for {type(module).__name__}:\n\t"
                + "\n\t".join(errors)
            )
            small = strict and len(self.unexpected) < _MANY
            raise _hints.noted(error, _hints.keys(self.missing, self.unexpected) if small else "")

    def commit(self):
        modules = {module: module.__dict__.copy() for module, _, _ in self.copies}
        classes = {module: type(module) for module in modules}
        before = []
        try:
            for module in modules:
                module._materialize_from({n: v.shape for m, n, v in self.copies if m is module})
            for module, name, value in self.copies:
                target = module.__dict__[name]
                before.append((target, target.copy()))
                np.copyto(target, value, casting="unsafe")
        except BaseException:  # an interrupt too leaves everything as it was
            for target, value in reversed(before):
                if target.flags.writeable:
                    np.copyto(target, value)
            for module, attributes in modules.items():
                module.__dict__.update(attributes)
                module.__class__ = classes[module]
            raise


def _value_array(value):
    """`value` as a real, numeric array, or None."""
    if hasattr(value, "detach"):  # a torch tensor, perhaps one that autograd follows
        value = value.detach()
    try:
        array = as_array(value)
    except (TypeError, ValueError, RuntimeError):
        return None
    return array if array.dtype.kind in "biuf" or is_float(array.dtype) else None


def _is_lazy(value):
    return getattr(type(value), "cls_to_become", None) is not None


def _detached(array):
    return array if _is_lazy(array) else np.asarray(array)


def _prefix_hint(missing, unexpected):
    """Where the state is that of a larger model: how to load a part of it, in a list."""
    from .. import _hints

    for prefix in _hints.prefixes(missing, unexpected):
        return [f"cnorm.checkpoint.load(path, prefix={prefix!r}) keeps the names that fit."]
    parts = list(dict.fromkeys(key.partition(".")[0] + "." for key in unexpected if "." in key))
    shown = ", ".join(map(repr, parts[:5])) + (", ..." if len(parts) > 5 else "")
    hint = f"cnorm.checkpoint.load(path, prefix=...) keeps the names below one of {shown}."
    return [hint] if parts else []


def _quoted(keys):
    return ", ".join(f'"{key}"' for key in keys)

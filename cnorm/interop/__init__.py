"""cnorm's norms inside other libraries: use the one you have, say ``cnorm.interop.torch``.

cnorm itself imports none of them, so these libraries stay optional.
"""

from importlib import import_module as _import_module
from importlib.util import find_spec as _find_spec

_LIBRARIES = ("dask", "jax", "sklearn", "torch", "xarray")


def __getattr__(name):
    if name in _LIBRARIES:  # imported when first used; says what to install where it is missing
        return _import_module(f"cnorm.interop.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return [name for name in _LIBRARIES if _find_spec(name) is not None]

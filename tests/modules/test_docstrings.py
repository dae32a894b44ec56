"""What `cnorm.BatchNorm2d?` shows: each layer's own parameters and an example that runs."""

import inspect
import re

import pytest

import cnorm
from cnorm import functional
from cnorm.modules import Module
from cnorm.modules._docs import parameters_of

MODULES = [
    value
    for name in cnorm.__all__
    if isinstance(value := getattr(cnorm, name), type) and issubclass(value, Module)
]
FUNCTIONS = [
    value
    for name, value in vars(functional).items()
    if name.islower() and not name.startswith("_") and callable(value)
]


def section(documented, name):
    """Return the text under a heading of a numpydoc docstring, or ""."""
    parts = re.split(r"^(\w+)\n-+\n", inspect.getdoc(documented), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True)).get(name, "")


def described(documented):
    """Return the names of the parameters, and the entries that say nothing about theirs."""
    names, empty = [], []
    for entry in filter(None, re.split(r"\n(?=\S)", section(documented, "Parameters").strip())):
        head, _, text = entry.partition("\n")
        names += [name.lstrip("*") for name in head.split(" : ")[0].split(", ") if name]
        if not text.strip() and head != 'device : None or "cpu"':
            empty.append(head)
    return names, empty


def test_there_are_modules():
    assert len(MODULES) >= 25
    assert {cnorm.BatchNorm3d, cnorm.LazyInstanceNorm1d, cnorm.PReLU} <= set(MODULES)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_each_layer_has_its_own_parameters_and_example(module):
    names, empty = described(module)
    assert sorted(names) == sorted(inspect.signature(module).parameters)
    assert not empty
    assert "See `" not in section(module, "Parameters")
    assert f"cnorm.{module.__name__}" in section(module, "Examples")
    assert ">>> " in section(module, "Examples")
    first = inspect.getdoc(module).partition("\n")[0]
    assert first.endswith(".")
    assert "\n" not in first


def test_no_two_layers_have_the_same_docstring():
    assert len({module.__doc__ for module in MODULES}) == len(MODULES)


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_each_function_can_be_completed(function):
    """Keyword completion reads the signature, and help shows all of it."""
    names = list(inspect.signature(function).parameters)
    assert "input" in names or "sum" in names
    assert not {"args", "kwargs"} & set(names)
    assert ">>> " in inspect.getdoc(function) or function.__name__.endswith("_backward")


def test_what_is_shared_is_taken_from_the_model():
    class Model:
        """Shown first.

        Parameters
        ----------
        a, b : int
            Two sizes.
        c : float
            A factor.

        References
        ----------
        Somebody.

        Examples
        --------
        >>> Model()
        """

    @parameters_of(Model)
    class Own:
        """Shown instead.

        Parameters
        ----------
        c : str
            A name.

        Examples
        --------
        >>> Own()
        """

        def __init__(self, c, b, *, d=None):
            pass

    assert (
        inspect.getdoc(Own)
        == """Shown instead.

Parameters
----------
c : str
    A name.
a, b : int
    Two sizes.

References
----------
Somebody.

Examples
--------
>>> Own()"""
    )

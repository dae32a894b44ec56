"""Docstrings of layers that share parameters: each parameter is described once."""

import re
from textwrap import dedent

_HEADING = re.compile(r"^(\w+)\n-+\n", re.MULTILINE)


def parameters_of(model):
    """Decorate a class: what its docstring leaves out of Parameters is that of `model`.

    The parameters are those of the class, in their order; References are the model's where the
    class has none.
    """

    def decorate(cls):
        if cls.__doc__ is None or model.__doc__ is None:  # python -OO
            return cls
        own, others = _sections(cls.__doc__), _sections(model.__doc__)
        entries = _entries(others["Parameters"]) | _entries(own.get("Parameters", ""))
        init = cls.__init__
        code = getattr(init, "__wrapped__", init).__code__  # see `Module.__init_subclass__`
        names = code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount]
        chosen = dict.fromkeys(entries[name] for name in names if name in entries)
        sections = {
            "Parameters": "\n".join(chosen),
            "References": own.get("References", others.get("References")),
            "Examples": own["Examples"],
        }
        parts = [own[""].strip()]
        for name, text in sections.items():
            if text:
                parts.append(f"{name}\n{'-' * len(name)}\n{text.strip()}")
        cls.__doc__ = "\n\n".join(parts) + "\n"
        return cls

    return decorate


def _sections(docstring):
    """The text under each heading of a docstring; that before the first under ''."""
    first, _, others = docstring.strip().partition("\n")  # inspect.cleandoc takes 5 ms to import
    opening, *rest = _HEADING.split(f"{first}\n{dedent(others)}")
    return {"": opening} | dict(zip(rest[::2], rest[1::2], strict=True))


def _entries(parameters):
    """The entry of each parameter by its name; several names may share one."""
    entries = re.split(r"\n(?=\S)", parameters.strip())
    return {name: entry for entry in entries for name in entry.split(" : ")[0].split(", ") if name}

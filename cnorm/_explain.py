"""`cnorm.explain`: what a call would do, without doing it."""

import os

from . import _dispatch
from ._call import observe

if os.environ.get("CNORM_VERBOSE", "0") not in ("", "0"):
    observe.set_verbose(True)


class Plan:
    """What a call would do, as a table.

    Attributes
    ----------
    function : str
        Name of the function or layer.
    step : dict or None
        Family, direction, dtype, layout, activation, strategy, threads, threads_allowed,
        fewer_because, items, rows_per_pass, units_per_batch, stores and prefetch of the first
        kernel that the call would run; None where it would run none.
    copies : list of str
        Arrays that the call would copy before or after, and why.
    """

    def __init__(self, function, step, copies):
        self.function = function
        self.step = step
        self.copies = copies

    def _lines(self):
        yield "function", self.function
        if self.step is None:
            yield "kernel", "none: nothing to compute"
            return
        step = self.step
        yield "kernel", f"{step['family']}, {step['direction']} ({_dispatch.name()} build)"
        yield "dtype", step["dtype"]
        yield "layout", ", ".join(f"{name} {n}" for name, n in step["layout"].items())
        if step["activation"]:
            yield "activation", step["activation"]
        yield "copies", "; ".join(self.copies) or "none"
        yield "strategy", step["strategy"]
        for name in ("rows_per_pass", "units_per_batch"):
            if step[name] > 1:
                yield name.replace("_", " "), str(step[name])
        threads, because = str(step["threads"]), step["fewer_because"]
        if because:
            threads += f" of {step['threads_allowed']}"
        note = f": {because}" if because else ""
        yield "threads", f"{threads} for {step['items']} items{note}"
        yield "stores", step["stores"]
        yield "prefetch", "yes" if step["prefetch"] else "left to the processor"

    def __str__(self):
        rows = list(self._lines())
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)

    __repr__ = __str__


def explain(function, /, *args, **kwargs):
    """Tell what a call would do: family, layout, copies and why, strategy, threads, stores.

    Nothing is run, and nothing changes: no result is computed, no running statistic, no counter. A
    function that takes several steps (switch norm, a backward with an array of slopes) is explained
    by its first.

    Parameters
    ----------
    function : callable
        A function of `cnorm.functional` or of `cnorm.steps`, or a layer.
    *args, **kwargs
        What it would be called with.

    Returns
    -------
    Plan
        Prints as a table.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        What the call itself would raise.

    Examples
    --------
    >>> import numpy as np, cnorm, cnorm.functional as F
    >>> plan = cnorm.explain(F.layer_norm, np.ones((1024, 768), np.float32), 768)
    >>> print(plan)  # doctest: +ELLIPSIS
    function  layer_norm
    kernel    rows, forward (... build)
    dtype     float32
    layout    outer 1, rows 1024, segments 1, runs 1, elements 768
    copies    none
    strategy  row batches
    ...
    """
    if not callable(function):
        from ._hints import described

        raise TypeError(
            "function must be a function of cnorm.functional or a layer, such as "
            f"cnorm.functional.layer_norm, but got {described(function)}"
        )
    name = getattr(function, "__name__", type(function).__name__)
    step, copies = observe.explain_call(function, args, kwargs)
    return Plan(name, step, copies)

"""What ``make memcheck`` runs under valgrind: every operation, on arrays that end where they end.

Small ones, of sizes around the lanes, in all layouts; every result is looked at, so that one that
was not written shows.
"""

import numpy as np
from layouts import LAYOUTS, channels_last, contiguous
from operations import CLIP, DTYPES, OPERATIONS, accumulation

import cnorm
import cnorm.functional as F
from cnorm import _dispatch

SHAPES = [(3, 6, 5, 7), (2, 4, 33), (5, 17)]
LARGE = (9, 12, 1300)  # more than threads are for


def results(operation, x, dy, **activation):
    p = operation.draw(np.random.default_rng(0), x.shape, 1, accumulation(x.dtype))
    return operation.run(F, x, dy, p, **activation)


def main():
    rng = np.random.default_rng(0)
    cases = [(shape, layout) for shape in SHAPES for layout in LAYOUTS]
    cases += [(LARGE, contiguous), (LARGE, channels_last)]
    runs = 0
    for operation in OPERATIONS:
        for dtype in DTYPES:
            for shape, layout in cases:
                if not operation.accepts(shape, 1):
                    continue
                x, dy = (layout(a) for a in rng.normal(size=(2, *shape)).astype(dtype))
                how = ({}, {"slope": 0.1}, {"clip": CLIP})[runs % 3]
                if not operation.takes_clip or ("slope" in how and not operation.takes_slope):
                    how = {}
                for name, value in results(operation, x, dy, **how).items():
                    if name != "stats" and not np.isfinite(value.astype(np.float64)).all():
                        raise ArithmeticError(f"{name} of {operation} {dtype} {layout.__name__}")
                runs += 1
    print(f"{runs} runs of forward and backward, build {_dispatch.name()}")


if __name__ == "__main__":
    with cnorm.num_threads(2, policy="fixed"):
        main()

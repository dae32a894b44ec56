"""The schedule chooses for speed alone: any strategy, threads and machine give the same bits.

Jobs are drawn from a grid of operations, shapes around the constants of the kernels, layouts,
dtypes and activations, a few for each operation. `CNORM_TEST_JOBS=100` draws so many for each
operation, `CNORM_TEST_JOBS=all` runs the whole grid, which takes hours.
"""

import itertools
import os
import random

import numpy as np
import pytest
from layouts import batch_strided, channels_last, channels_last_cropped, contiguous, cropped
from operations import CLIP, DTYPES, accumulation
from schedule import STRATEGIES, constant

import cnorm
import cnorm.functional as F
from cnorm import _dispatch

JOBS = os.environ.get("CNORM_TEST_JOBS", "4")  # of each operation
THREADS = (1, 2, 3)
KIB, MIB = 1 << 10, 1 << 20
MACHINES = {  # L1 and L2 of a core, and the shared L3
    "small": (32 * KIB, 256 * KIB, 4 * MIB),
    "large": (48 * KIB, 2 * MIB, 300 * MIB),
    "tiny": (4 * KIB, 16 * KIB, 64 * KIB),  # what is drawn here then counts as coming from memory
}
LAYOUTS = (contiguous, channels_last, cropped, batch_strided, channels_last_cropped)
ELEMENTS = (1 << 13, 1 << 18)  # of a job: from what one thread takes to many blocks and ranges


def around(*sizes):
    return sorted({n + d for n in sizes for d in (-1, 0, 1)} - {0})


WINDOW = ("STRATEGY_ANY", "WINDOW_SPANS")  # of the norms over a window of channels
TILE, BLOCK = constant("TILE"), constant("TILE") * constant("BLOCK_TILES")
ROWS = around(1, 3, constant("ROW_BLOCK_MIN_ROWS"), constant("ROW_BLOCK_ROWS"))
ROWS += around(constant("ROW_RANGE_ROWS"), 4 * constant("ROW_RANGE_ROWS"))
LENGTHS = around(1, 8, constant("SHORT_SEGMENT"), 147, TILE, 2 * TILE, BLOCK, 2 * BLOCK + TILE)
CHANNELS = around(1, 12, constant("MIN_COLUMNS"), constant("PACKED_COLUMNS_MAX"), 1088)
CHANNELS += around(2 * constant("BATCH_UNITS") + 6)
SAMPLES = (1, 2, 3, 7, 16)


def shapes(operation):
    if operation.by_channel:
        flat = list(itertools.product(SAMPLES, CHANNELS, LENGTHS))
        found = flat + [(n, c, 3, s) for n, c, s in flat] + list(itertools.product(ROWS, CHANNELS))
    else:
        found = list(itertools.product(ROWS, LENGTHS)) + [(3, 2, 5, n) for n in LENGTHS]
    low, high = ELEMENTS
    return [s for s in found if low <= np.prod(s) <= high and operation.accepts(s, 1)]


def jobs(operation):
    """Some of the grid, the same in every run; or all of it."""
    activations = (None,)
    activations += ("clip",) * operation.takes_clip + (0.1, "each") * operation.takes_slope
    grid = list(itertools.product(shapes(operation), LAYOUTS, DTYPES, activations))
    if JOBS == "all":
        return grid
    return random.Random(str(operation)).sample(grid, min(len(grid), int(JOBS)))


def strategies_of(operation):
    is_window = operation.function in ("local_response_norm", "cross_map_lrn")
    return [name for name in STRATEGIES if not is_window or name in WINDOW]


def bits(results):
    return {k: (v.shape, v.dtype, v.tobytes()) for k, v in results.items() if k != "stats"}


@pytest.fixture
def kernels():
    """The kernels in use, which forget afterwards what a test told them."""
    module = _dispatch.kernels
    _dispatch.learn_caches()  # else a large call would, in the middle of a test
    before = module.set_machine(*MACHINES["small"])
    module.set_machine(*before)
    yield module
    module.force_strategy(0)
    module.set_machine(*before)


def test_every_strategy_gives_the_same_bits(operation, kernels):
    machines = itertools.cycle(MACHINES)
    for shape, layout, dtype, activation in jobs(operation):
        rng = np.random.default_rng(shape)
        far = 10.0 ** rng.integers(-1, 4, (1, shape[1], *[1] * (len(shape) - 2)))  # of the means
        x = layout((rng.normal(size=shape) + far).astype(dtype))
        dy = layout(rng.normal(size=shape).astype(dtype))
        p = operation.draw(rng, shape, 1, accumulation(dtype))
        how = {"slope": activation}
        if activation == "clip":
            how = {"clip": CLIP}
        elif activation == "each":
            how = {"slope": rng.uniform(-1, 1, shape[1]).astype(accumulation(dtype))}

        def run(p=p, x=x, dy=dy, how=how):
            return bits(operation.run(F, x, dy, p, **how))

        with cnorm.num_threads(1):
            expected = run()
        for name, threads in itertools.product(strategies_of(operation), THREADS):
            machine = next(machines)
            kernels.set_machine(*MACHINES[machine])
            kernels.force_strategy(STRATEGIES[name])
            with cnorm.num_threads(threads):
                got = run()
            kernels.force_strategy(0)
            wrong = [k for k in expected if got[k] != expected[k]]
            assert not wrong, (
                f"{wrong} of {operation} {shape} {dtype} {layout.__name__} {how}: "
                f"{name} on {threads} threads and a {machine} machine has other bits than the "
                "schedule's choice on one thread"
            )

"""Every norm of torch.nn over a grid of arguments, shapes, modes and dtypes, several passes."""

from itertools import product

import numpy as np
import pytest
import torch
from twins import DTYPES, Twins, close, same

import cnorm

# (N, C, ...) of each rank: ordinary, one sample, one position, one channel, none of either.
SHAPES = {
    2: [(4, 3), (5, 1), (0, 3)],
    3: [(2, 3, 5), (1, 3, 7), (5, 3, 1)],
    4: [(2, 3, 4, 5), (1, 4, 1, 6), (0, 3, 2, 2)],
    5: [(2, 3, 2, 3, 4), (1, 2, 3, 1, 2)],
}
UNBATCHED = {2: [(3, 5)], 3: [(3, 4, 5)], 4: [(2, 3, 4, 5)]}


def combinations(**axes):
    return [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]


def batch_cases():
    grids = combinations(
        eps=[1e-5, 1e-2],
        momentum=[0.1, None, 1.0],
        affine=[True, False],
        bias=[True, False],
        track_running_stats=[True, False],
    )
    for name, ranks in (("BatchNorm1d", (2, 3)), ("BatchNorm2d", (4,)), ("BatchNorm3d", (5,))):
        for arguments, shape in product(grids, [s for rank in ranks for s in SHAPES[rank]]):
            plain = arguments["momentum"] == 0.1 or arguments["eps"] == 1e-5
            if plain and (arguments["affine"] or arguments["bias"]):
                yield name, {"num_features": shape[1], **arguments}, shape


def instance_cases():
    grids = combinations(
        momentum=[0.1, None],
        affine=[True, False],
        bias=[True, False],
        track_running_stats=[True, False],
    )
    for rank, name in ((3, "InstanceNorm1d"), (4, "InstanceNorm2d"), (5, "InstanceNorm3d")):
        shapes = [s for s in SHAPES[rank] if np.prod(s) and np.prod(s[2:]) > 1]
        for arguments, shape in product(grids, shapes + UNBATCHED[rank - 1]):
            if arguments["affine"] or arguments["bias"]:
                channels = shape[1] if len(shape) == rank else shape[0]
                yield name, {"num_features": channels, **arguments}, shape


def group_cases():
    shapes = [(4, 6), (2, 6, 5), (1, 6, 2, 3), (2, 6, 2, 2, 3), (0, 6, 2)]
    for groups, affine, bias, eps, shape in product(
        [1, 2, 3], [True, False], [True, False], [1e-5, 1e-2], shapes
    ):
        yield "GroupNorm", {
            "num_groups": groups, "num_channels": 6, "affine": affine, "bias": bias, "eps": eps
        }, shape  # fmt: skip


def row_cases():
    shapes = [(4,), (5, 7), (2, 3, 4), (2, 1, 3, 4), (0, 4), (3, 1)]
    for shape, axes, affine in product(shapes, [1, 2, 3], [True, False]):
        if axes <= len(shape):
            row = {"normalized_shape": shape[-axes:], "elementwise_affine": affine}
            # over single elements rstd is 1 / sqrt(eps), and multiplies a gradient of 0
            for bias, eps in product(
                [True, False], [0.1] if shape[-axes:] == (1,) else [1e-5, 0.1]
            ):
                yield "LayerNorm", {**row, "bias": bias, "eps": eps}, shape
            for eps in (None, 1e-5, 0.1) if len(shape) > 1 or axes == 1 else ():
                yield "RMSNorm", {**row, "eps": eps}, shape


def response_cases():
    shapes = [(2, 5, 6), (2, 7, 3, 4), (1, 3, 2, 2, 3), (2, 1, 4)]
    for size, (alpha, k), beta, shape in product(
        [1, 2, 3, 5, 8], [(1e-4, 1.0), (0.5, 2.0)], [0.75, 0.5, 1.0, 1.3], shapes
    ):
        yield "LocalResponseNorm", {"size": size, "alpha": alpha, "beta": beta, "k": k}, shape
    for size, alpha, beta in product([1, 2, 3, 5], [1e-4, 0.5], [0.75, 1.0]):
        for shape in ((2, 7, 3, 4), (1, 2, 3, 3)):
            yield "CrossMapLRN2d", {"size": size, "alpha": alpha, "beta": beta, "k": 2.0}, shape


CASES = [
    *batch_cases(),
    *instance_cases(),
    *group_cases(),
    *row_cases(),
    *response_cases(),
]
WIDE, NARROW = DTYPES[:2], DTYPES[2:]
# Both wide types everywhere; the half types, whose arithmetic is the same, at every seventh case.
RUNS = [(*case, dtype) for case in CASES for dtype in WIDE]
RUNS += [(*case, dtype) for case in CASES[::7] for dtype in NARROW]


def _id(run):
    name, arguments, shape, dtype = run
    return f"{name}-{'-'.join(f'{v}' for v in arguments.values())}-{shape}-{dtype}"


def test_grid_is_large():
    assert len(RUNS) > 1000  # each makes a dozen comparisons or more


@pytest.mark.grid(4)
@pytest.mark.parametrize("run", RUNS, ids=_id)
def test_passes_and_state(run, rng):
    name, arguments, shape, dtype = run
    twins = Twins(name, arguments, dtype, rng)
    for train in (True, True, False, True, False):
        # torch's legacy layer does not return the gradient of its forward: see the departures
        twins.step(shape, train, backward=name != "CrossMapLRN2d")
    twins.compare_description()


CHANNELS_LAST = [
    case for case in CASES
    if not case[0].endswith(("LayerNorm", "RMSNorm", "CrossMapLRN2d"))
    and not (case[0].startswith("Instance") and len(case[2]) == int(case[0][-2]) + 1)
][::5]  # fmt: skip


@pytest.mark.parametrize("run", [(*case, WIDE[0]) for case in CHANNELS_LAST], ids=_id)
def test_channels_last(run, rng):
    name, arguments, shape, dtype = run
    twins = Twins(name, arguments, dtype, rng, {"channel_axis": -1})
    for train in (True, False):
        twins.step(shape, train)
    twins.compare_description()


# With neither, torch never learns num_features: see the departures.
@pytest.mark.parametrize(("affine", "track"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("BatchNorm1d", (4, 3)),
        ("BatchNorm1d", (4, 3, 5)),
        ("BatchNorm2d", (2, 3, 2, 2)),
        ("BatchNorm3d", (2, 3, 2, 2, 2)),
        ("InstanceNorm1d", (4, 3, 5)),
        ("InstanceNorm2d", (2, 3, 2, 2)),
        ("InstanceNorm3d", (2, 3, 2, 2, 2)),
    ],
)
def test_lazy(name, shape, affine, track, bias, rng):
    arguments = {"affine": affine, "track_running_stats": track, "bias": bias, "dtype": None}
    ours = getattr(cnorm, f"Lazy{name}")(**arguments)
    theirs = getattr(torch.nn, f"Lazy{name}")(**arguments)
    same(repr(ours), repr(theirs))
    same(list(ours.state_dict()), list(theirs.state_dict()))
    same([repr(v) for v in ours.parameters()], [repr(v) for v in theirs.parameters()])
    same(ours.has_uninitialized_params(), theirs.has_uninitialized_params())
    x = rng.normal(size=shape).astype(np.float32)
    close(ours(x), theirs(torch.tensor(x)), 40)
    same(type(ours).__name__, type(theirs).__name__)
    same(repr(ours), repr(theirs))
    for key, value in theirs.state_dict().items():
        close(ours.state_dict()[key], value, 4, key)


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("shape", SHAPES[4][:2], ids=str)
def test_tracking_switched_off_afterwards(mode, shape, rng):
    twins = Twins("BatchNorm2d", {"num_features": shape[1]}, WIDE[0], rng)
    twins.step(shape, True)
    twins.ours.track_running_stats = twins.theirs.track_running_stats = False
    twins.step(shape, mode)
    twins.step(shape, not mode)


@pytest.mark.parametrize("name", ["BatchNorm2d", "InstanceNorm2d"])
def test_reset(name, rng):
    twins = Twins(name, {"num_features": 3, "track_running_stats": True}, WIDE[0], rng)
    twins.step((2, 3, 4, 4), True)
    twins.ours.reset_running_stats()
    twins.theirs.reset_running_stats()
    twins.compare_state()
    twins.ours.reset_parameters()
    twins.theirs.reset_parameters()
    twins.compare_state()

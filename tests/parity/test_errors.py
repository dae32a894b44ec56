"""What is refused, by which class of error and with which words, input and arguments alike."""

from itertools import product

import numpy as np
import pytest
import torch
from twins import message, outcome, same, same_error

import cnorm

# Shapes of every rank, with 3 channels, another number, one value per channel, one position.
SHAPES = [
    (), (3,), (2, 3), (1, 3), (2, 4), (2, 3, 5), (1, 3, 1), (2, 3, 1), (2, 5, 4), (3, 5, 4),
    (2, 3, 4, 4), (1, 3, 1, 1), (2, 3, 1, 1), (2, 4, 4, 4), (2, 3, 2, 2, 2), (1, 3, 1, 1, 1),
    (2, 3, 1, 1, 1), (2, 4, 2, 2, 2), (1, 3, 2, 2, 2, 2), (2, 0), (2, 0, 4), (0, 3, 4, 4),
]  # fmt: skip
TRACKING = [f"{kind}Norm{rank}d" for kind, rank in product(("Batch", "Instance"), (1, 2, 3))]
LAYERS = [
    *(
        (name, {"num_features": 3, "affine": affine, "track_running_stats": track})
        for name, affine, track in product(TRACKING, (True, False), (True, False))
    ),
    *(("GroupNorm", {"num_groups": g, "num_channels": 3, "affine": a})
      for g, a in product((1, 3), (True, False))),
    *((name, {"normalized_shape": row, "elementwise_affine": a})
      for name, row, a in product(("LayerNorm", "RMSNorm"), (3, (4,), (4, 4), (3, 1)),
                                  (True, False))),
    *((name, {"size": size}) for name, size in product(("LocalResponseNorm",), (1, 3))),
    ("CrossMapLRN2d", {"size": 3}),
]  # fmt: skip


def _id(layer):
    return f"{layer[0]}-{'-'.join(map(str, layer[1].values()))}"


def _calls(layer, shape, train, **changes):
    name, arguments = layer
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    modules = getattr(cnorm, name)(**arguments), getattr(torch.nn, name)(**arguments)
    for module in modules:
        module.train(train)
        for key, value in changes.items():
            setattr(module, key, value)
    return lambda: modules[0](x), lambda: modules[1](torch.tensor(x))


def torch_is_lost(layer, shape):
    """Where torch answers by accident, and cnorm does not follow: see the departures."""
    name, arguments = layer
    if name == "RMSNorm":
        return len(shape) < np.size(arguments["normalized_shape"])  # another class than LayerNorm
    if name.startswith("Batch"):
        return shape[1:2] == (0,)  # it does not look at an empty batch
    return name.startswith(("Instance", "CrossMap")) and not np.prod(shape)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("layer", LAYERS, ids=_id)
@pytest.mark.filterwarnings("ignore:input's size at dim")
def test_input(layer, train):
    # torch counts the elements of running statistics of all samples together
    words = not (layer[0].startswith("Instance") and layer[1]["track_running_stats"])
    for shape in SHAPES:
        if not torch_is_lost(layer, shape):
            same_error(*_calls(layer, shape, train), f"{layer} {shape}", words)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("eps", [0.0, -1e-5])
@pytest.mark.parametrize("name", [name for name in TRACKING if name.startswith("Batch")])
def test_eps(name, eps, train):
    shape = (2, 3, 4, 4, 4)[: 2 + int(name[-2])]
    same_error(*_calls((name, {"num_features": 3, "eps": eps}), shape, train))


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("missing", ["running_mean", "running_var"])
@pytest.mark.parametrize("name", [name for name in TRACKING if name.startswith("Batch")])
def test_one_running_statistic(name, missing, train):
    """The words are the contract's; torch's come from its compiler's checks."""
    shape = (2, 3, 4, 4, 4)[: 2 + int(name[-2])]
    ours, _ = _calls((name, {"num_features": 3}), shape, train, **{missing: None})
    same(
        outcome(ours),
        (ValueError, "running_mean and running_var must either both be None or neither be None"),
    )


@pytest.mark.parametrize("layer", [x for x in LAYERS if x[0].startswith("Instance")], ids=_id)
def test_warning(layer):
    if layer[1]["affine"] or layer[1]["track_running_stats"]:
        return
    shape = (2, 4, 5, 5, 5)[: 2 + int(layer[0][-2])]
    heard = []
    for call in _calls(layer, shape, True):
        with pytest.warns(UserWarning) as record:
            call()
        heard.append([str(w.message) for w in record])
    same(*heard)


CONSTRUCTIONS = [
    *((name, {"num_features": n}) for name in TRACKING for n in (0, 1, 3, -1)),
    *(("GroupNorm", {"num_groups": g, "num_channels": c})
      for g, c in product((1, 2, 3, 7), (0, 1, 4, 6))),  # 0 and less: test_departures
    *((name, {"normalized_shape": row}) for name in ("LayerNorm", "RMSNorm")
      for row in (3, (), (2, 3), [4], 0, (2, 0), np.int64(3))),
]  # fmt: skip
WRONG_KINDS = [
    *((name, {"num_features": n}) for name in TRACKING for n in (2.5, "3", None, [2, "x"])),
    *(("GroupNorm", {"num_groups": 1, "num_channels": c}) for c in (2.5, None)),
    *((name, {"normalized_shape": row}) for name in ("LayerNorm", "RMSNorm")
      for row in (2.5, None, (2, None), "ab")),
    *((name, {"num_features": -2}) for name in TRACKING),
    *((name, {}) for name in (*TRACKING, "GroupNorm", "LayerNorm", "RMSNorm",
                              "LocalResponseNorm", "CrossMapLRN2d")),
    *((name, {"num_features": 3, "nonsense": 1}) for name in TRACKING),
]  # fmt: skip


@pytest.mark.parametrize("layer", CONSTRUCTIONS, ids=_id)
def test_construction(layer):
    name, arguments = layer
    same_error(
        lambda: getattr(cnorm, name)(**arguments),
        lambda: getattr(torch.nn, name)(**arguments),
        words=-1 not in arguments.values(),
    )


@pytest.mark.parametrize("layer", WRONG_KINDS, ids=_id)
def test_construction_by_class(layer):
    """The words name C++ signatures or Python functions: the class alone is compared."""
    name, arguments = layer
    same_error(
        lambda: getattr(cnorm, name)(**arguments),
        lambda: getattr(torch.nn, name)(**arguments),
        words=False,
    )


@pytest.mark.parametrize("name", [*TRACKING, "GroupNorm", "LayerNorm", "RMSNorm"])
def test_signature(name):
    """Positions, names and defaults; what is cnorm's own comes behind, by keyword alone."""
    from inspect import signature

    ours = list(signature(getattr(cnorm, name)).parameters.values())
    theirs = list(signature(getattr(torch.nn, name)).parameters.values())
    shape = [[(p.name, p.kind, p.default) for p in each] for each in (ours, theirs)]
    same(shape[0][: len(shape[1])], shape[1])
    assert {p.name for p in ours[len(theirs) :]} <= {
        "channel_axis", "activation", "axis", "zero_centered_gamma"
    }  # fmt: skip


@pytest.mark.parametrize("mode", [None, 1, "train"])
def test_training_mode(mode):
    same_error(lambda: cnorm.LayerNorm(3).train(mode), lambda: torch.nn.LayerNorm(3).train(mode))


@pytest.mark.parametrize("value", [np.ones(3), "x", 1.0, [1.0]], ids=str)
@pytest.mark.parametrize("name", ["weight", "running_mean"])
def test_assignment(name, value):
    """Something else in the place of a parameter or a buffer."""
    theirs = torch.tensor(value) if isinstance(value, np.ndarray) else value
    ours_norm, theirs_norm = cnorm.BatchNorm1d(3), torch.nn.BatchNorm1d(3)
    same_error(
        lambda: setattr(ours_norm, name, value),
        lambda: setattr(theirs_norm, name, theirs),
        words=False,
    )


NAMES = ["", "a.b", "weight", "running_mean", "eps", "forward", 3, "fine"]


@pytest.mark.parametrize("name", NAMES, ids=repr)
@pytest.mark.parametrize("kind", ["parameter", "buffer", "module"])
def test_registration(kind, name):
    values = {
        "parameter": (cnorm.Parameter(np.ones(2)), torch.nn.Parameter(torch.ones(2))),
        "buffer": (np.ones(2), torch.ones(2)),
        "module": (cnorm.LayerNorm(2), torch.nn.LayerNorm(2)),
    }[kind]
    for values_ in (values, (None, None), ("x", "x")):
        ours, theirs = cnorm.BatchNorm1d(3), torch.nn.BatchNorm1d(3)
        same_error(
            lambda m=ours, v=values_[0]: getattr(m, f"register_{kind}")(name, v),
            lambda m=theirs, v=values_[1]: getattr(m, f"register_{kind}")(name, v),
            words=False,
        )


@pytest.mark.parametrize("path", ["", "0", "0.weight", "1", "1.0", "7", "1.0.x"])
def test_get_submodule(path):
    nets = [
        lib.Sequential(lib.LayerNorm(2), lib.Sequential(lib.LayerNorm(3)))
        for lib in (cnorm, torch.nn)
    ]
    same(*[outcome(lambda net=net: net.get_submodule(path)) is None for net in nets])
    ours, theirs = [outcome(lambda net=net: net.get_submodule(path)) for net in nets]
    if theirs:
        same(ours[0], theirs[0])
        same(ours[1], message(theirs[1]).replace("an nn.Module", "a Module"))

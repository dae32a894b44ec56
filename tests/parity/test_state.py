"""State: keys, versions, loads that fit and loads that do not, and the same words for both."""

from collections import OrderedDict
from functools import partial
from itertools import combinations

import numpy as np
import pytest
import torch
from twins import close, outcome, same, same_error

import cnorm

LAYERS = [
    ("BatchNorm2d", (3,), {}),
    ("BatchNorm1d", (3,), {"affine": False}),
    ("BatchNorm3d", (3,), {"track_running_stats": False}),
    ("BatchNorm2d", (3,), {"bias": False, "momentum": None}),
    ("InstanceNorm2d", (3,), {}),
    ("InstanceNorm1d", (3,), {"affine": True, "track_running_stats": True}),
    ("InstanceNorm3d", (3,), {"track_running_stats": True}),
    ("GroupNorm", (1, 3), {}),
    ("LayerNorm", ((3, 2),), {}),
    ("LayerNorm", (3,), {"bias": False}),
    ("RMSNorm", (3,), {}),
    ("LocalResponseNorm", (3,), {}),
]
# What can be wrong with a state, each a change of a copy of it.
FULL = {"weight": (3,), "running_mean": (3,), "running_var": (3,), "num_batches_tracked": ()}
CHANGES = {
    "missing_weight": lambda s: s.pop("weight", None),
    "missing_count": lambda s: s.pop("num_batches_tracked", None),
    "missing_mean": lambda s: s.pop("running_mean", None),
    "unexpected": lambda s: s.update(other=np.ones(2)),
    "unexpected_below": lambda s: s.update({"a.b": np.ones(2)}),
    "running_stats": lambda s: s.update(running_mean=np.ones(3), running_var=np.ones(3)),
    "wrong_weight": lambda s: s.update(weight=np.ones(4)),
    "wrong_bias": lambda s: s.update(bias=np.ones((1, 3))),
    "wrong_mean": lambda s: s.update(running_mean=np.ones(5)),
    "one_element_count": lambda s: s.update(num_batches_tracked=np.array([7])),
    "double": lambda s: s.update({k: v.astype(np.float64) for k, v in s.items()}),
    "empty": lambda s: s.clear(),
}
VARIANTS = [(), *combinations(CHANGES, 1), *combinations(CHANGES, 2)]


def _pair(layer):
    name, positional, keywords = layer
    return [getattr(lib, name)(*positional, **keywords) for lib in (cnorm, torch.nn)]


def _state(module, changes, version, rng, prefix=""):
    state = OrderedDict(
        (k, rng.normal(size=v.shape).astype(np.float32) if v.ndim else np.array(5))
        for k, v in module.state_dict().items()
    )
    for change in changes:
        CHANGES[change](state)
    ours = OrderedDict((prefix + k, v) for k, v in state.items())
    theirs = OrderedDict((k, torch.from_numpy(v)) for k, v in ours.items())
    if version is not None:
        for s in (ours, theirs):
            s._metadata = OrderedDict({prefix[:-1]: {"version": version}})
    return ours, theirs


def load(module, state, strict, answers):
    answers.append(module.load_state_dict(state, strict=strict))


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("version", [None, 1, 2])
@pytest.mark.parametrize("layer", LAYERS, ids=lambda x: f"{x[0]}-{x[2]}")
def test_load(layer, version, nested, rng):
    for changes in VARIANTS:
        for strict in (True, False):
            ours, theirs = _pair(layer)
            ours_state, theirs_state = _state(ours, changes, version, rng, "0." if nested else "")
            if nested:
                ours, theirs = cnorm.Sequential(ours), torch.nn.Sequential(theirs)
            before = {k: v.copy() for k, v in ours.state_dict().items()}
            what = f"{changes} strict={strict}"
            answers = []
            calls = [
                partial(load, module, state, strict, answers)
                for module, state in ((ours, ours_state), (theirs, theirs_state))
            ]
            same_error(*calls, what)
            if answers:
                same(*map(tuple, answers), what)
                same(*map(repr, answers), what) if not any(answers[0]) else None
                for key, value in theirs.state_dict().items():
                    close(ours.state_dict()[key], value, 1, f"{key} {what}")
            else:
                for key, value in ours.state_dict().items():
                    same(value.tobytes(), before[key].tobytes(), f"{key} {what}")
            same(len(ours_state), len(theirs_state), what)


@pytest.mark.parametrize("value", ["text", None, 3, {"a": 1}, b"x"], ids=repr)
def test_not_a_mapping(value):
    ours, theirs = cnorm.LayerNorm(3), torch.nn.LayerNorm(3)
    same_error(lambda: ours.load_state_dict(value), lambda: theirs.load_state_dict(value))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int32])
def test_values_are_tensors(dtype):
    ours, theirs = cnorm.BatchNorm1d(3), torch.nn.BatchNorm1d(3)
    state = {k: (torch.arange(v.numel()).reshape(v.shape) / 3).to(dtype)
             for k, v in theirs.state_dict().items()}  # fmt: skip
    ours.load_state_dict(state)
    theirs.load_state_dict(state)
    for key, value in theirs.state_dict().items():
        close(ours.state_dict()[key], value, 0, key)
    theirs.load_state_dict({k: torch.from_numpy(v) for k, v in ours.state_dict().items()})


def test_parameters_are_values():
    theirs = torch.nn.LayerNorm(3)
    ours = cnorm.LayerNorm(3)
    same(repr(ours.load_state_dict(dict(theirs.named_parameters()))),
         "<All keys matched successfully>")  # fmt: skip


LAZY = ["LazyBatchNorm1d", "LazyBatchNorm2d", "LazyInstanceNorm2d", "LazyInstanceNorm3d"]


@pytest.mark.parametrize("name", LAZY)
def test_lazy_loads(name, rng):
    plain = name.removeprefix("Lazy")
    source = getattr(torch.nn, plain)(4, affine=True, track_running_stats=True)
    ours, theirs = getattr(cnorm, name)(), getattr(torch.nn, name)()
    lazy_state = [m.state_dict() for m in (ours, theirs)]
    same(*[m.load_state_dict(s) and 0 for m, s in zip((ours, theirs), lazy_state, strict=True)])
    same(ours.has_uninitialized_params(), theirs.has_uninitialized_params())
    # an uninitialised state into a plain module: both refuse
    eager = getattr(cnorm, plain)(4, affine=True, track_running_stats=True)
    same_error(
        lambda: eager.load_state_dict(lazy_state[0]),
        lambda: source.load_state_dict(lazy_state[1]),
    )
    same(tuple(ours.load_state_dict(source.state_dict())),
         tuple(theirs.load_state_dict(source.state_dict())))  # fmt: skip
    for key, value in theirs.state_dict().items():
        close(ours.state_dict()[key], value, 0, key)


def test_names_and_order():
    nets = [
        lib.Sequential(
            lib.BatchNorm2d(3), lib.ModuleList([lib.LayerNorm(2), lib.RMSNorm(2)]),
            lib.InstanceNorm2d(3, affine=True),
        )
        for lib in (cnorm, torch.nn)
    ]  # fmt: skip
    for method in ("named_parameters", "named_buffers", "named_children", "named_modules"):
        same(*[[name for name, _ in getattr(net, method)()] for net in nets], method)
    for method in ("parameters", "buffers", "children", "modules"):
        same(*[len(list(getattr(net, method)())) for net in nets], method)
    same(*[list(net.state_dict()) for net in nets])
    same(*[net.state_dict()._metadata for net in nets])
    same(*map(repr, nets))
    called = [[], []]
    for net, names in zip(nets, called, strict=True):
        net.apply(lambda module, names=names: names.append(type(module).__name__))
    same(*called)


def test_shared_modules_and_parameters():
    nets = []
    for lib in (cnorm, torch.nn):
        norm, other = lib.LayerNorm(2), lib.LayerNorm(2)
        other.weight = norm.weight
        nets.append(lib.Sequential(norm, other, norm))
    for method in ("named_parameters", "named_modules"):
        for once in (True, False):
            same(*[[n for n, _ in getattr(net, method)(remove_duplicate=once)] for net in nets])
    same(*[list(net.state_dict()) for net in nets])
    same(outcome(lambda: nets[0].load_state_dict(nets[1].state_dict())), None)

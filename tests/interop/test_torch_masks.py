"""Masks in torch: values and gradients, wherever the norm is computed."""

# ruff: noqa: E402 -- the optional library first, then what needs it
import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

import cnorm
import cnorm.functional as F
import cnorm.interop.torch as ct
from cnorm import _reference as reference

OPS = torch.ops.cnorm
pytestmark = pytest.mark.filterwarnings(
    "ignore:`torch.jit.script` is deprecated"
)  # by torch itself
SHAPE = (4, 6, 5)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def _running():
    return [torch.linspace(-1, 1, 6).double(), torch.linspace(0.5, 2, 6).double()]


# name: the norm of x, weight and bias with a mask, by a module of functions; by the operator;
# the shape of the parameters
CASES = {
    "batch_norm": (
        lambda f, x, w, b, m: f.batch_norm(x, None, None, w, b, True, where=m),
        lambda x, w, b, m: OPS.batch_norm(x, w, b, None, None, True, where=m)[0],
        6,
    ),
    "batch_norm evaluation": (
        lambda f, x, w, b, m: f.batch_norm(x, *like(x, _running()), w, b, where=m),
        lambda x, w, b, m: OPS.batch_norm(x, w, b, *_running(), False, 0.1, 1e-5, m)[0],
        6,
    ),
    "instance_norm": (
        lambda f, x, w, b, m: f.instance_norm(x, None, None, w, b, where=m),
        lambda x, w, b, m: OPS.instance_norm(x, w, b, None, None, True, where=m)[0],
        6,
    ),
    "instance_norm evaluation": (
        lambda f, x, w, b, m: f.instance_norm(x, *like(x, _running()), w, b, False, where=m),
        lambda x, w, b, m: OPS.instance_norm(x, w, b, *_running(), False, where=m)[0],
        6,
    ),
    "group_norm": (
        lambda f, x, w, b, m: f.group_norm(x, 3, w, b, where=m),
        lambda x, w, b, m: OPS.group_norm(x, w, b, 3, where=m)[0],
        6,
    ),
    "layer_norm": (
        lambda f, x, w, b, m: f.layer_norm(x, (6, 5), w, b, where=m),
        lambda x, w, b, m: OPS.layer_norm(x, w, b, [6, 5], where=m)[0],
        (6, 5),
    ),
    "rms_norm": (
        lambda f, x, w, b, m: f.rms_norm(x, 5, w, 1e-4, where=m),
        lambda x, w, b, m: OPS.rms_norm(x, w, [5], 1e-4, where=m)[0],
        5,
    ),
}
MASKS = [(4, 1, 5), (1, 5), SHAPE, (4, 1, 1)]


def like(x, tensors):
    """Running statistics as the arrays or tensors that x is."""
    return tensors if isinstance(x, torch.Tensor) else [t.numpy() for t in tensors]


@pytest.fixture(params=CASES)
def case(request):
    """The norm of arrays or tensors, the operator, and its tensors."""
    function, operator, parameter = CASES[request.param]
    tensors = [2 * torch.randn(SHAPE) + 1, torch.rand(parameter) + 0.5, torch.randn(parameter)]
    if request.param == "rms_norm":
        tensors[2] = None
    return function, operator, [None if t is None else t.double() for t in tensors]


def mask_of(shape):
    """A mask of which each unit has at least two True; the last sample has none, where it may."""
    where = torch.rand(shape) < 0.6
    where[..., :2] = True
    if shape in ((4, 1, 5), (4, 1, 1)):
        where[-1] = False
    return where


def trainable(tensors):
    return [t.clone().requires_grad_() for t in tensors if t is not None]


def of_tensors(function, where):
    """The norm as a function of the tensors that have gradients."""
    return lambda x, w, b=None: function(ct, x, w, b, where)


@pytest.mark.parametrize("shape", MASKS, ids=str)
def test_values_and_gradients(case, shape):
    """Against the reference; what is left out may be NaN."""
    function, _, (x, w, b) = case
    where = mask_of(shape)
    outside = ~where.expand(SHAPE)
    y = function(ct, x, w, b, where)
    arrays = [None if t is None else t.numpy() for t in (x, w, b, where)]
    torch.testing.assert_close(y, torch.from_numpy(function(reference, *arrays)))
    assert np.array_equal(y, function(F, *arrays)) and not y[outside].any()
    assert torch.autograd.gradcheck(
        of_tensors(function, where), trainable((x, w, b)), fast_mode=True
    )
    results = []
    for given in (x, x.masked_fill(outside, torch.nan)):
        inputs = trainable((given, w, b))
        y = of_tensors(function, where)(*inputs)
        results.append([y, *torch.autograd.grad(y.pow(3).sum(), inputs)])
        assert not results[-1][1][outside].any()
    for got, want in zip(*results, strict=True):
        assert torch.equal(got, want)
    everything = torch.ones(shape, dtype=torch.bool)
    assert torch.equal(function(ct, x, w, b, everything), function(ct, x, w, b, None))


def test_in_torchs_operations(case):
    """Forward mode, gradients of gradients and of batches, vmap, graphs."""
    function, _, tensors = case
    where = mask_of(SHAPE)
    norm, inputs = of_tensors(function, where), trainable(tensors)
    assert torch.autograd.gradcheck(norm, inputs, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(norm, inputs, fast_mode=True)
    y = norm(*inputs)
    dy = torch.randn(3, *SHAPE, dtype=y.dtype)
    batched = torch.autograd.grad(y, inputs, dy, is_grads_batched=True, retain_graph=True)
    one_by_one = [torch.autograd.grad(y, inputs, g, retain_graph=True) for g in dy]
    for got, want in zip(batched, zip(*one_by_one, strict=True), strict=True):
        torch.testing.assert_close(got, torch.stack(want))

    x, *rest = [t.detach() for t in inputs]
    many = torch.randn(3, *SHAPE, dtype=x.dtype)
    want = torch.stack([norm(one, *rest) for one in many])
    torch.testing.assert_close(torch.vmap(lambda x: norm(x, *rest))(many), want)
    masks = torch.stack([mask_of((4, 1, 5)) for _ in many])
    full = [None] * (3 - len(inputs))
    by_mask = torch.vmap(lambda x, m: function(ct, x, *rest, *full, m))(many, masks)
    want = torch.stack(
        [function(ct, *one, *rest, *full, m) for *one, m in zip(many, masks, strict=True)]
    )
    torch.testing.assert_close(by_mask, want)

    graph = make_fx(lambda x, m: function(ct, x, *rest, *full, m))(x, where)
    other, bad = mask_of(SHAPE), many[0].masked_fill(~mask_of(SHAPE), torch.nan)
    torch.testing.assert_close(graph(many[0], other), function(ct, many[0], *rest, *full, other))
    torch._dynamo.reset()
    compiled = torch.compile(norm, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(many[0], *rest), norm(many[0], *rest))
        assert torch.equal(compiled(bad, *rest).isnan(), norm(bad, *rest).isnan())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_torchs_operations_in_other_dtypes(case, dtype):
    """What torch computes and what cnorm does agree, and keep the dtype."""
    function, _, tensors = case
    where = mask_of((4, 1, 5))
    x, w, b = [None if t is None else t.to(dtype) for t in tensors]
    want = function(ct, x, w, b, where)
    with forward_ad.dual_level():  # where torch computes
        got = function(ct, x, w, b, where)
    assert got.dtype == want.dtype == dtype
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(got, want, rtol=4 * eps, atol=16 * eps)


def test_operators(case):
    """What torch asks of an operator; the bits of the functions; one node of a graph."""
    function, operator, (x, w, b) = case
    where = mask_of((4, 1, 5))
    x = x.masked_fill(~where.expand(SHAPE), torch.nan)
    results = []
    for call in (of_tensors(function, where), lambda x, w, b=None: operator(x, w, b, where)):
        inputs = trainable((x, w, b))
        y = call(*inputs)
        results.append([y, *torch.autograd.grad(y.pow(3).sum(), inputs)])
    for got, want in zip(*results, strict=True):
        assert torch.equal(got, want)

    def masked(x, where):
        return operator(x, w, b, where)

    graph = make_fx(masked)(x, where)
    assert sum("cnorm" in str(node.target) for node in graph.graph.nodes) == 1
    other, another = torch.randn_like(x), mask_of((4, 1, 5))
    assert torch.equal(graph(other, another), masked(other, another))
    torch._dynamo.reset()
    compiled = torch.compile(masked, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(other, another), masked(other, another))
    several = torch.stack([where, another])
    got = torch.vmap(masked, in_dims=(None, 0))(other, several)
    assert torch.equal(got, torch.stack([masked(other, m) for m in several]))
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="no forward-mode"):
        masked(forward_ad.make_dual(other, other), where)


@pytest.mark.parametrize(
    "name, settings, weighted",
    [
        ("batch_norm", (True, 0.1, 1e-5), True),
        ("group_norm", (3, 1e-5), True),
        ("layer_norm", ([5], 1e-5), False),
        ("rms_norm", ([5], None), False),
    ],
)
def test_opcheck(name, settings, weighted):
    x, where = torch.randn(SHAPE, requires_grad=True), mask_of((4, 1, 5))
    parameters = [(torch.rand(6) + 0.5).requires_grad_() if weighted else None for _ in range(2)]
    if name == "rms_norm":
        del parameters[1]
    running = [torch.zeros(6), torch.ones(6)] if name == "batch_norm" else []
    arguments = (x, *parameters, *running, *settings, where)
    torch.library.opcheck(getattr(OPS, name).default, arguments)
    y, *stats = [t.detach() for t in getattr(OPS, name)(*arguments)]
    stats = [s for s in stats if s.dtype is torch.float64]
    arguments = (torch.randn_like(y), x.detach(), parameters[0], *stats, *settings, where)
    arguments = [a.detach() if isinstance(a, torch.Tensor) else a for a in arguments]
    torch.library.opcheck(getattr(OPS, name + "_backward").default, tuple(arguments))


@pytest.mark.parametrize("name", ["batch_norm", "instance_norm"])
def test_running_statistics(name):
    """By cnorm, by torch's operations and by the operator, as the reference."""
    x, where = torch.randn(SHAPE).double(), mask_of(SHAPE)
    where[0], where[:, 2], where[1, 0, 1:] = True, False, False  # a unit of one, channels of none
    want = [t.numpy().copy() for t in _running()]
    norm = getattr(reference, name)
    norm(x.numpy(), *want, None, None, True, 0.3, where=where.numpy())
    here, in_torch = _running(), _running()
    getattr(ct, name)(x, *here, None, None, True, 0.3, where=where)
    with forward_ad.dual_level():
        getattr(ct, name)(x, *in_torch, None, None, True, 0.3, where=where)
    *_, mean, var = getattr(OPS, name)(x, None, None, *_running(), True, 0.3, 1e-5, where)
    for got in (here, in_torch, (mean, var)):
        for g, w, old in zip(got, want, _running(), strict=True):
            np.testing.assert_allclose(g, w, rtol=1e-12)
            assert g[2] == old[2]


LAYERS = {
    "BatchNorm1d": lambda: (nn.BatchNorm1d(6), cnorm.BatchNorm1d(6)),
    "BatchNorm1d of an average": lambda: (
        nn.BatchNorm1d(6, momentum=None),
        cnorm.BatchNorm1d(6, momentum=None),
    ),
    "InstanceNorm1d": lambda: (
        nn.InstanceNorm1d(6, affine=True, track_running_stats=True),
        cnorm.InstanceNorm1d(6, affine=True, track_running_stats=True),
    ),
    "GroupNorm": lambda: (nn.GroupNorm(3, 6), cnorm.GroupNorm(3, 6)),
    "LayerNorm": lambda: (nn.LayerNorm((6, 5)), cnorm.LayerNorm((6, 5))),
    "RMSNorm": lambda: (nn.RMSNorm(5), cnorm.RMSNorm(5)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name):
    """Small as the input is: torch's layer has no mask to hand it to."""
    layer, ours = LAYERS[name]()
    ct.accelerate(layer)
    for training in (True, True, False):
        layer.train(training), ours.train(training)
        x, where = torch.randn(SHAPE), mask_of((4, 1, 5))
        y = layer(x, where=where)
        want = ours(x.numpy(), where=where.numpy())
        assert np.array_equal(y.detach().numpy(), want)
        if training:
            dy = torch.randn_like(y)
            y.backward(dy)
            ours.backward(dy.numpy())
    for key, value in layer.state_dict().items():
        np.testing.assert_array_equal(value, ours.state_dict()[key], err_msg=key)
    for parameter, other in zip(layer.parameters(), ours.parameters(), strict=True):
        np.testing.assert_allclose(parameter.grad, other.grad, rtol=1e-5, atol=1e-6)
    assert torch.equal(layer(x, where=None), layer(x))


def test_a_compiled_layer():
    layer = ct.accelerate(nn.BatchNorm1d(6))
    other = copy.deepcopy(layer)
    x, where = torch.randn(SHAPE), mask_of((4, 1, 5))
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda x, where: layer(x, where=where), backend="aot_eager", fullgraph=True
    )
    torch.testing.assert_close(compiled(x, where), other(x, where=where))
    torch.testing.assert_close(layer.state_dict(), other.state_dict())


def test_layers_without_a_batch_axis_and_without_a_mask():
    layer = ct.accelerate(nn.InstanceNorm1d(6))
    x, where = torch.randn(6, 5), torch.arange(5) < 3
    assert torch.equal(layer(x, where=where), layer(x[None], where=where)[0])
    response = ct.accelerate(nn.LocalResponseNorm(3))
    with pytest.raises(TypeError, match=r"LocalResponseNorm takes no where=.*BatchNorm1d"):
        response(torch.randn(SHAPE), where=where)
    with pytest.raises(TypeError, match="where"):
        ct.restore(layer)(x, where=where)


def test_errors():
    x, weight = torch.randn(SHAPE), torch.ones(6)
    for call in (
        lambda m: ct.batch_norm(x, None, None, training=True, where=m),
        lambda m: ct.layer_norm(x, 5, where=m),
        lambda m: OPS.group_norm(x, weight, weight, 3, where=m),
        lambda m: ct.accelerate(nn.LayerNorm(5))(x, where=m),
        lambda m: torch.func.jvp(lambda x: ct.rms_norm(x, 5, where=m), (x,), (x,)),
    ):
        with pytest.raises(TypeError, match="must be a bool tensor, but got dtype torch"):
            call(torch.ones(4, 1, 5))
        with pytest.raises(ValueError, match=r"got \(4,\): where\[:, None, None\] does"):
            call(torch.ones(4, dtype=torch.bool))
    with pytest.raises(TypeError, match="where must be a bool tensor, but got ndarray"):
        ct.layer_norm(x, 5, where=np.ones(5, bool))
    alone = torch.zeros(4, 1, 5, dtype=torch.bool)
    alone[0, 0, 0] = True

    class Other(torch.Tensor):
        """What torch's operations compute."""

    for given in (x, x.as_subclass(Other)):
        with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
            ct.batch_norm(given, None, None, training=True, where=alone)
        with pytest.raises(RuntimeError, match="running_mean must be defined in evaluation mode"):
            ct.batch_norm(given, None, None, where=alone)
        with pytest.raises((ValueError, RuntimeError), match="running_mean and running_var must"):
            ct.instance_norm(given, weight, where=alone)
        with pytest.raises(RuntimeError, match="normalized_shape"):
            ct.layer_norm(given, 4, where=alone)
        with pytest.raises(RuntimeError, match="to be divisible by num_groups"):
            ct.group_norm(given, 4, where=alone)


def test_a_mask_that_changes_before_backward_is_noticed():
    x, where = torch.randn(SHAPE, requires_grad=True), mask_of(SHAPE)
    y = ct.layer_norm(x, 5, where=where)
    where[0] = False
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_large_results():
    """Those that lie in memory which cnorm reuses."""
    x = torch.randn(9, 1 << 20)
    where = torch.arange(9)[:, None] < 5
    y = ct.layer_norm(x, x.shape[1], where=where)
    assert torch.equal(y[:5], ct.layer_norm(x[:5], x.shape[1])) and not y[5:].any()

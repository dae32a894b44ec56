"""``torch.ops.cnorm.*``: what torch asks of an operator, and the values of the functions."""

# ruff: noqa: E402 -- the optional library first, then what needs it
import pytest

torch = pytest.importorskip("torch")

from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

import cnorm.interop.torch as ct

OPS = torch.ops.cnorm
pytestmark = pytest.mark.filterwarnings(
    "ignore:`torch.jit.script` is deprecated"
)  # by torch itself


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def tensors(*shapes, dtype=torch.float32):
    return [torch.rand(s, dtype=dtype) + 0.5 for s in shapes]


# name: arguments, and the call of the function with the tensors among them
CASES = {
    "batch_norm": (
        lambda t: [*t((4, 6, 5), 6, 6, 6, 6), True, 0.2, 1e-4],
        lambda x, w, b, m, v, *s: ct.batch_norm(x, m, v, w, b, *s),
    ),
    "batch_norm evaluation": (
        lambda t: [*t((4, 6, 5), 6, 6, 6, 6), False, 0.2, 1e-4],
        lambda x, w, b, m, v, *s: ct.batch_norm(x, m, v, w, b, *s),
    ),
    "batch_norm plain": (
        lambda t: [*t((4, 6, 5)), None, None, None, None, True, 0.1, 1e-5],
        lambda x, w, b, m, v, *s: ct.batch_norm(x, m, v, w, b, *s),
    ),
    "instance_norm": (
        lambda t: [*t((4, 6, 5), 6, 6, 6, 6), True, 0.2, 1e-4],
        lambda x, w, b, m, v, *s: ct.instance_norm(x, m, v, w, b, *s),
    ),
    "group_norm": (
        lambda t: [*t((4, 6, 5), 6, 6), 3, 1e-4],
        lambda x, w, b, n, eps: ct.group_norm(x, n, w, b, eps),
    ),
    "layer_norm": (
        lambda t: [*t((4, 6, 5), (6, 5), (6, 5)), [6, 5], 1e-4],
        lambda x, w, b, shape, eps: ct.layer_norm(x, shape, w, b, eps),
    ),
    "layer_norm plain": (
        lambda t: [*t((4, 6, 5)), None, None, [5], 1e-5],
        lambda x, w, b, shape, eps: ct.layer_norm(x, shape, w, b, eps),
    ),
    "rms_norm": (
        lambda t: [*t((4, 6, 5), 5), [5], 1e-4],
        lambda x, w, shape, eps: ct.rms_norm(x, shape, w, eps),
    ),
    "rms_norm plain": (
        lambda t: [*t((4, 6, 5)), None, [6, 5], None],
        lambda x, w, shape, eps: ct.rms_norm(x, shape, w, eps),
    ),
    "local_response_norm": (
        lambda t: [*t((4, 6, 5)), 3, 0.5, 0.75, 2.0],
        lambda x, *s: ct.local_response_norm(x, *s),
    ),
}


@pytest.fixture(params=CASES)
def case(request):
    """The operator's name, a maker of its arguments, the function."""
    arguments, function = CASES[request.param]

    def make(dtype=torch.float32, grad=False):
        made = arguments(lambda *shapes: tensors(*shapes, dtype=dtype))
        if grad:
            for t in differentiable(made):
                t.requires_grad_()
        return made

    return request.param.split()[0], make, function


def differentiable(arguments):
    """Input, weight and bias; running statistics follow where there are five tensors."""
    found = [a for a in arguments if isinstance(a, torch.Tensor)]
    return found[:3] if len(found) == 5 else found


def results(value):
    return value if isinstance(value, (list, tuple)) else (value,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
def test_opcheck(case, dtype):
    name, make, _ = case
    torch.library.opcheck(getattr(OPS, name).default, make(dtype, grad=dtype is torch.float32))


def test_opcheck_of_backward(case):
    name, make, _ = case
    arguments = make()
    y, *stats = results(getattr(OPS, name)(*arguments))
    settings = [a for a in arguments if a is not None and not isinstance(a, torch.Tensor)]
    if name == "rms_norm":
        settings = arguments[2:]
    stats = [s for s in stats if s.dtype is torch.float64]
    weight = [] if name == "local_response_norm" else [arguments[1]]
    backward = getattr(OPS, name + "_backward").default
    torch.library.opcheck(backward, (torch.randn_like(y), arguments[0], *weight, *stats, *settings))


def test_values_and_gradients_of_the_functions(case):
    name, make, function = case
    arguments = make(grad=True)
    ours = [a.clone() if torch.is_tensor(a) and not a.requires_grad else a for a in arguments]
    y, *others = results(getattr(OPS, name)(*arguments))
    want = function(*ours)
    assert torch.equal(y, want)
    assert not any(t.requires_grad for t in others)
    dy, inputs = torch.randn_like(y), differentiable(arguments)
    for got, expected in zip(
        torch.autograd.grad(y, inputs, dy), torch.autograd.grad(want, inputs, dy), strict=True
    ):
        assert torch.equal(got, expected)
    if name in ("batch_norm", "instance_norm") and arguments[-3] and arguments[3] is not None:
        assert torch.equal(others[-2], ours[3]) and torch.equal(others[-1], ours[4])


def test_gradcheck(case):
    name, make, _ = case
    arguments = make(torch.float64, grad=True)
    inputs = differentiable(arguments)

    def call(*tensors):
        given = list(tensors)
        filled = [given.pop(0) if any(a is t for t in inputs) else a for a in arguments]
        return results(getattr(OPS, name)(*filled))[0]

    assert torch.autograd.gradcheck(call, inputs)


def test_vmap(case):
    name, make, _ = case
    x, *rest = make()
    call = getattr(OPS, name)
    batch = torch.randn(3, *x.shape)
    got = torch.vmap(lambda x: results(call(x, *rest))[0])(batch)
    assert torch.equal(got, torch.stack([results(call(x, *rest))[0] for x in batch]))
    with pytest.raises(RuntimeError, match="setup_context"):  # of torch, for every such operator
        torch.func.grad(lambda x: results(call(x, *rest))[0].sum())(x)


def test_graphs_hold_the_operator(case):
    name, make, _ = case
    x, *rest = make()
    call = getattr(OPS, name)

    def function(x):
        return results(call(x, *rest))[0]

    graph = make_fx(function)(x)
    assert call.default in [node.target for node in graph.graph.nodes]
    other = torch.randn_like(x)
    assert torch.equal(graph(other), function(other))
    torch._dynamo.reset()
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(other), function(other))


def test_forward_mode_is_refused(case):
    name, make, _ = case
    x, *rest = make()
    message = f"torch.ops.cnorm.{name} has no forward-mode derivative: use the layer or"
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match=message):
        getattr(OPS, name)(forward_ad.make_dual(x, x), *rest)
    with pytest.raises(NotImplementedError, match=message):
        torch.func.jvp(lambda x: results(getattr(OPS, name)(x, *rest))[0], (x,), (x,))


def test_tensors_that_it_cannot_compute():
    with pytest.raises(TypeError, match=r"cnorm\.rms_norm computes .*float32.*, but got .*int32"):
        OPS.rms_norm(torch.ones(2, 3, dtype=torch.int32), None, [3])
    with pytest.raises(RuntimeError, match="normalized_shape"):
        OPS.layer_norm(torch.ones(2, 3), None, None, [4])

"""Whoever records, transforms or rewrites torch's programs meets torch's own norms."""

# ruff: noqa: E402 -- the optional library first, then what needs it
import copy

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as nnF
from torch import nn
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

import cnorm.interop.torch as ct

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node"),
]


@pytest.fixture(autouse=True)
def setup(here):
    torch.manual_seed(0)


# name: the call with a module of functions, what the names of torch's operators contain
FUNCTIONS = {
    "batch_norm": (lambda f, x, w, b: f.batch_norm(x, None, None, w, b, True), "batch_norm"),
    "batch_norm evaluation": (lambda f, x, w, b: f.batch_norm(x, b, w, w, b), "batch_norm"),
    "instance_norm": (lambda f, x, w, b: f.instance_norm(x, None, None, w, b), "batch_norm"),
    "group_norm": (lambda f, x, w, b: f.group_norm(x, 2, w, b), "group_norm"),
    "layer_norm": (lambda f, x, w, b: f.layer_norm(x, (6,), w, b), "layer_norm"),
    "rms_norm": (lambda f, x, w, b: f.rms_norm(x, (6,), w), "rms_norm|rsqrt"),
    "local_response_norm": (lambda f, x, w, b: f.local_response_norm(x, 3, 0.5), "avg_pool"),
}


@pytest.fixture(params=FUNCTIONS)
def norm(request):
    """A function of one input, cnorm's and torch's, and what torch calls its operator."""
    call, operator = FUNCTIONS[request.param]
    w, b = torch.rand(6) + 0.5, torch.randn(6)
    return lambda x: call(ct, x, w, b), lambda x: call(nnF, x, w, b), operator.split("|")


@pytest.fixture
def x():
    return torch.randn(4, 6, 6)


def test_forward_mode(norm, x):
    ours, theirs, _ = norm
    tangent = torch.randn_like(x)
    with forward_ad.dual_level():
        got, want = (
            forward_ad.unpack_dual(f(forward_ad.make_dual(x, tangent))) for f in (ours, theirs)
        )
    assert got.tangent is not None
    torch.testing.assert_close(got.tangent, want.tangent)
    torch.testing.assert_close(got.primal, want.primal)
    torch.testing.assert_close(
        torch.func.jvp(ours, (x,), (tangent,)), torch.func.jvp(theirs, (x,), (tangent,))
    )


def test_linearize(norm, x):
    ours, theirs, _ = norm
    tangent = torch.randn_like(x)
    (y, push), (want, want_push) = torch.func.linearize(ours, x), torch.func.linearize(theirs, x)
    torch.testing.assert_close(y, want)
    torch.testing.assert_close(push(tangent), want_push(tangent))


def test_make_fx(norm, x):
    """The graph computes the norm; it does not hold the result for the input it was made with."""
    ours, theirs, names = norm
    graph = make_fx(ours)(x)
    assert any(name in str(node.target) for node in graph.graph.nodes for name in names)
    other = torch.randn_like(x)
    torch.testing.assert_close(graph(other), theirs(other))


def test_make_fx_of_a_gradient(norm, x):
    ours, theirs, _ = norm

    def gradient(f, x):
        x = x.detach().requires_grad_()
        return torch.autograd.grad(f(x).pow(2).sum(), x)[0]

    graph = make_fx(lambda x: gradient(ours, x))(x)
    other = torch.randn_like(x)
    torch.testing.assert_close(graph(other), gradient(theirs, other))


class Seen(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **kwargs or {})


def test_dispatch_modes(norm, x, computed):
    ours, theirs, names = norm
    with Seen() as seen:
        y = ours(x)
    assert any(name in s for s in seen.names for name in names)
    assert not computed
    torch.testing.assert_close(y, theirs(x))
    x.requires_grad_()
    y = ours(x)
    assert len(computed) == 1
    with Seen() as seen:  # of the backward pass alone
        (grad,) = torch.autograd.grad(y.pow(2).sum(), x)
    assert len(seen.names) > 2
    torch.testing.assert_close(grad, torch.autograd.grad(theirs(x).pow(2).sum(), x)[0])


def test_function_modes(norm, x, computed):
    ours, theirs, _ = norm
    calls = []

    class Mode(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            calls.append(func)
            return func(*args, **kwargs or {})

    with Mode():
        ours(x)
    assert calls and not computed
    with torch.device("cpu"):  # a mode too, of new tensors only
        torch.testing.assert_close(ours(x), theirs(x))
    assert len(computed) == 1


def test_vmap(norm, x, computed):
    ours, theirs, _ = norm
    batch = torch.randn(3, *x.shape)
    torch.testing.assert_close(torch.vmap(ours)(batch), torch.stack([theirs(b) for b in batch]))
    per_sample = torch.vmap(torch.func.grad(lambda x: ours(x).pow(2).sum()))(batch)
    assert not computed
    want = [torch.func.grad(lambda x: theirs(x).pow(2).sum())(b) for b in batch]
    torch.testing.assert_close(per_sample, torch.stack(want))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compile(norm, x, backend, computed):
    ours, theirs, _ = norm
    torch._dynamo.reset()
    compiled = torch.compile(ours, backend=backend, fullgraph=True)
    for batch in (4, 5, 7):  # the second makes the size dynamic, the third must not recompile
        x = torch.randn(batch, 6, 6)
        torch.testing.assert_close(compiled(x), theirs(x))
    assert not computed


def network():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.GroupNorm(2, 8),
        nn.InstanceNorm2d(8),
        nn.LocalResponseNorm(3),
        nn.LayerNorm(8),
        nn.RMSNorm(8),
    ).double()


@pytest.fixture
def pair():
    model = network()
    return ct.accelerate(copy.deepcopy(model)), model


@pytest.fixture
def image():
    return torch.randn(2, 3, 10, 10, dtype=torch.float64)


def close(got, want):
    torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-8)


def test_symbolic_trace(pair, image, computed):
    """The layers are leaves of the graph, as torch's are, and compute with cnorm."""
    fast, model = pair
    graph = torch.fx.symbolic_trace(fast)
    targets = [(n.op, n.target) for n in graph.graph.nodes]
    assert targets == [(n.op, n.target) for n in torch.fx.symbolic_trace(model).graph.nodes]
    close(graph(image), model(image))
    assert len(computed) == 6


@pytest.mark.parametrize("training", [False, True])
def test_fuse_modules(pair, image, training):
    from torch.ao.quantization import fuse_modules, fuse_modules_qat

    fuse = fuse_modules_qat if training else fuse_modules
    fused, plain = (fuse(m.train(training), [["0", "1", "2"]]) for m in pair)
    assert [type(m) for m in fused] == [type(m) for m in plain]
    close(fused(image), plain(image))


def test_compiled_network(pair, image, computed):
    fast, model = pair
    for training in (True, False):
        compiled = torch.compile(fast.train(training), backend="aot_eager", fullgraph=True)
        close(compiled(image), model.train(training)(image))
    assert not computed
    assert fast[1].num_batches_tracked == 1
    torch.testing.assert_close(fast[1].running_var, model[1].running_var)


@pytest.mark.parametrize("dynamic", [False, True])
def test_export(pair, image, dynamic):
    fast, model = (m.eval() for m in pair)
    shapes = {"input": {0: torch.export.Dim("batch", min=2)}} if dynamic else None
    program = torch.export.export(fast, (image,), dynamic_shapes=shapes)
    assert not any("cnorm" in str(node.target) for node in program.graph.nodes)
    close(program.module()(image), model(image))


def test_export_of_a_layer():
    x = torch.randn(4, 6)
    program = torch.export.export(ct.accelerate(nn.LayerNorm(6)), (x,))
    assert "input" in [node.name for node in program.graph.nodes]
    torch.testing.assert_close(program.module()(x), nnF.layer_norm(x, (6,)))


def test_tracing_and_scripting(pair, image, computed):
    fast, model = (m.eval() for m in pair)
    traced = torch.jit.trace(fast, image, check_trace=False)
    assert not computed
    other = torch.randn_like(image)
    close(traced(other), model(other))
    with pytest.raises(TypeError, match="got AcceleratedForward"):  # the documents name restore
        torch.jit.script(fast)
    close(torch.jit.script(ct.restore(fast))(other), model(other))


def test_functional_calls_of_the_network(pair, image):
    fast, model = pair
    parameters = {k: 2 * v.detach() for k, v in model.named_parameters()}
    got, want = (torch.func.functional_call(m.eval(), parameters, (image,)) for m in (fast, model))
    close(got, want)


def test_storages_stay_resizable(pair, image):
    fast, _ = pair
    image.requires_grad_()
    y = fast(image)
    y.sum().backward()
    tensors = [image, y, *fast.parameters(), *fast.buffers()]
    assert all(t.untyped_storage().resizable() for t in tensors)


def test_fully_sharded(pair, image):
    """FSDP2 resizes the storages of parameters between forward and backward."""
    distributed = pytest.importorskip("torch.distributed")
    if not distributed.is_available() or not distributed.is_gloo_available():
        pytest.skip("torch was built without gloo")
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    fast, model = pair
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        for layer in fast:
            if any(True for _ in layer.parameters()):
                fully_shard(layer, mesh=mesh)
        fully_shard(fast, mesh=mesh)
        for _ in range(2):
            got, want = fast(image), model(image)
            close(got, want)
            got.pow(2).sum().backward()
            want.pow(2).sum().backward()
        for a, b in zip(fast.parameters(), model.parameters(), strict=True):
            close(a.grad.to_local(), b.grad)
    finally:
        distributed.destroy_process_group()


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged], ids=str)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors(layout):
    rows = [torch.randn(2, 6), torch.randn(4, 6)]
    nested = torch.nested.nested_tensor(rows, layout=layout)
    norm = ct.accelerate(nn.LayerNorm(6))
    for y in (norm(nested), ct.layer_norm(nested, 6, norm.weight, norm.bias)):
        assert y.is_nested
        for got, row in zip(y.unbind(), rows, strict=True):
            torch.testing.assert_close(got, nnF.layer_norm(row, (6,)))


@pytest.mark.parametrize(
    "unseen",
    [
        lambda x: x.to("meta"),
        lambda x: torch.complex(x, -x).conj().imag,  # negated when it is read
        lambda x: torch.nn.Buffer(x),
        lambda x: x.as_subclass(type("Mine", (torch.Tensor,), {})),
    ],
    ids=["meta", "negated", "buffer", "subclass"],
)
def test_tensors_that_are_not_what_they_seem(norm, x, unseen):
    ours, theirs, _ = norm
    x = unseen(x)
    try:
        want = theirs(x)
    except Exception as error:
        with pytest.raises(type(error)):
            ours(x)
    else:
        got = ours(x)
        assert type(got) is type(want) and got.device == want.device
        if want.device.type == "cpu":
            torch.testing.assert_close(got, want)


def test_inference_mode(norm, x, computed):
    ours, theirs, _ = norm
    with torch.inference_mode():
        y = ours(x.clone())
        assert y.is_inference() and len(computed) == 1
        torch.testing.assert_close(y, theirs(x))

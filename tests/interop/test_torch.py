"""cnorm's norms in torch: the same values, gradients, state and errors, and no copies."""

# ruff: noqa: E402 -- the optional library first, then what needs it
import copy
import pickle
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as nnF
from torch import nn

import cnorm.interop.torch as ct
from cnorm.interop import _torch_autograd as bridge

EPS = {torch.float32: 2**-23, torch.float64: 2**-52, torch.float16: 2**-10, torch.bfloat16: 2**-7}


def affine(channels):
    return {"weight": torch.rand(channels) + 0.5, "bias": torch.randn(channels)}


def running(channels):
    return {"running_mean": torch.randn(channels), "running_var": torch.rand(channels) + 0.5}


# name: shape of the input, what follows it, tensors
CASES = {
    "batch_norm": lambda: ((4, 6, 5), (None, None), affine(6) | {"training": True}),
    "batch_norm plain": lambda: ((9, 6), (None, None), {"training": True}),
    "batch_norm eval": lambda: ((4, 6, 5), (), running(6) | affine(6)),
    "instance_norm": lambda: ((4, 6, 5), (), affine(6)),
    "instance_norm plain": lambda: ((4, 6, 5), (), {}),
    "instance_norm eval": lambda: (
        (4, 6, 5),
        (),
        running(6) | affine(6) | {"use_input_stats": False},
    ),
    "group_norm": lambda: ((4, 6, 5), (3,), affine(6)),
    "group_norm plain": lambda: ((4, 6), (3,), {}),
    "layer_norm": lambda: ((4, 3, 5), ((3, 5),), affine((3, 5))),
    "layer_norm plain": lambda: ((4, 5), ((5,),), {}),
    "rms_norm": lambda: ((4, 3, 5), ((5,),), {"weight": torch.rand(5) + 0.5}),
    "rms_norm plain": lambda: ((4, 3, 5), ((3, 5),), {}),
    "local_response_norm": lambda: ((4, 6, 5), (3,), {"alpha": 0.5}),
}


pytestmark = pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(params=CASES)
def case(request):
    """A call: our function, torch's, the input in float64, and its arguments."""
    name = request.param.split()[0]
    shape, args, kwargs = CASES[request.param]()
    kwargs = {k: v.double() if torch.is_tensor(v) else v for k, v in kwargs.items()}
    return SimpleNamespace(
        ours=getattr(ct, name),
        theirs=getattr(nnF, name),
        x=2 * torch.randn(shape, dtype=torch.float64) + 1,
        args=args,
        kwargs=kwargs,
        to=lambda dtype: {k: v.to(dtype) if torch.is_tensor(v) else v for k, v in kwargs.items()},
    )


def differentiable(case):
    """Our function of the tensors that have gradients, and those tensors."""
    names = [n for n in ("weight", "bias") if n in case.kwargs]
    tensors = [case.x, *(case.kwargs[n] for n in names)]

    def function(x, *parameters):
        return case.ours(x, *case.args, **case.kwargs | dict(zip(names, parameters, strict=True)))

    return function, [t.clone().requires_grad_() for t in tensors]


def test_gradcheck(case):
    assert torch.autograd.gradcheck(*differentiable(case))


def test_gradient_of_the_gradient(case):
    assert torch.autograd.gradgradcheck(*differentiable(case))


def test_a_batch_of_gradients(case):
    function, tensors = differentiable(case)
    y = function(*tensors)
    dy = torch.randn(3, *y.shape, dtype=y.dtype)
    batched = torch.autograd.grad(y, tensors, dy, is_grads_batched=True, retain_graph=True)
    one_by_one = [torch.autograd.grad(y, tensors, g, retain_graph=True) for g in dy]
    for got, want in zip(batched, zip(*one_by_one, strict=True), strict=True):
        torch.testing.assert_close(got, torch.stack(want))


@pytest.mark.parametrize("dtype", EPS, ids=str)
def test_values_and_gradients(case, dtype):
    """Against torch in float64, on inputs that `dtype` holds exactly."""
    x, kwargs = case.x.to(dtype), case.to(dtype)
    if case.ours is ct.rms_norm:  # whose eps depends on the dtype
        kwargs["eps"] = 1e-5

    def results(function, x, kwargs):
        inputs = [x, *(kwargs[n] for n in ("weight", "bias") if n in kwargs)]
        for t in inputs:
            t.requires_grad_()
        y = function(x, *case.args, **kwargs)
        dy = torch.linspace(-1, 1, y.numel()).view(y.shape).to(dtype).to(y.dtype)
        return y, *torch.autograd.grad(y, inputs, dy)

    exact = {k: v.double() if torch.is_tensor(v) else v for k, v in kwargs.items()}
    want = results(case.theirs, x.double(), exact)
    for got, expected in zip(results(case.ours, x, kwargs), want, strict=True):
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), expected, rtol=2 * EPS[dtype], atol=8 * EPS[dtype])


def test_nothing_goes_to_torch_by_mistake(case, monkeypatch):
    """Forward and backward of a plain call run in cnorm."""
    for name in {name.split()[0] for name in CASES}:
        monkeypatch.setattr(nnF, name, None)
    function, tensors = differentiable(case)
    function(*tensors).sum().backward()
    assert all(t.grad is not None and t.grad.shape == t.shape for t in tensors)


@pytest.mark.parametrize("dtype", EPS, ids=str)
@pytest.mark.parametrize(
    "layout",
    [
        lambda t: t,
        lambda t: t.contiguous(memory_format=torch.channels_last),
        lambda t: t[:, 1:, ::2, 1:],
        lambda t: t[:1].expand(3, -1, -1, -1),
        lambda t: t[:, :, :0],
    ],
    ids=["contiguous", "channels_last", "cropped", "expanded", "empty"],
)
def test_no_copies(layout, dtype):
    tensor = layout(torch.randn(2, 3, 4, 5).to(dtype))
    array = bridge.as_array(tensor)
    again = bridge.as_tensor(array)
    assert again.data_ptr() == tensor.data_ptr()
    assert array.dtype.name == str(dtype).removeprefix("torch.")
    assert again.dtype == dtype and again.shape == tensor.shape
    assert not tensor.numel() or again.stride() == tensor.stride()


def test_only_the_needed_gradients():
    x, w = torch.randn(4, 6), torch.ones(6, requires_grad=True)
    ct.layer_norm(x, 6, w).sum().backward()
    assert w.grad is not None and x.grad is None


def test_changed_input_is_noticed():
    x = torch.randn(4, 6, requires_grad=True)
    z = 2 * x
    y = ct.layer_norm(z, 6)
    z.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_changed_running_statistics_are_noticed():
    x = torch.randn(4, 6, requires_grad=True)
    mean, var = torch.zeros(6), torch.ones(6)
    y = ct.batch_norm(x, mean, var)
    ct.batch_norm(x, mean, var, training=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_elsewhere_it_is_torch():
    """What has no memory of its own here goes to torch's function."""
    x = torch.randn(4, 6)
    want = nnF.layer_norm(x, (6,))
    assert ct.layer_norm(x.to("meta"), (6,)).device.type == "meta"
    mapped = torch.func.vmap(lambda row: ct.layer_norm(row, (6,)))(x)
    torch.testing.assert_close(mapped, want)
    compiled = torch.compile(lambda x: ct.layer_norm(x, (6,)), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), want)
    with pytest.warns(DeprecationWarning):
        traced = torch.jit.trace(lambda x: ct.layer_norm(x, (6,)), x)
    torch.testing.assert_close(traced(2 * x), nnF.layer_norm(2 * x, (6,)))
    exported = torch.export.export(ct.accelerate(nn.LayerNorm(6)), (x,))
    torch.testing.assert_close(exported.module()(x), want)


def test_errors_are_torchs():
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        ct.batch_norm(torch.randn(1, 3), None, None, training=True)
    with pytest.raises(RuntimeError, match="normalized_shape"):
        ct.layer_norm(torch.randn(2, 3), 4)
    with pytest.raises(ValueError, match="must either both be None"):
        ct.batch_norm(torch.randn(2, 3), torch.zeros(3), None, training=True)
    with pytest.raises(NotImplementedError):  # from torch itself
        ct.layer_norm(torch.ones(2, 3, dtype=torch.int64), 3)


def network():
    """Convolutions with every norm there is, and gradients that depend on all of them."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.LocalResponseNorm(5, alpha=0.1),
        nn.Conv2d(8, 12, 3, stride=2),
        nn.InstanceNorm2d(12, affine=True, track_running_stats=True),
        nn.GELU(),
        nn.Sequential(nn.Conv2d(12, 8, 3), nn.GroupNorm(4, 8), nn.SiLU()),
        nn.Conv2d(8, 6, 1),
        nn.InstanceNorm2d(6),
        nn.Flatten(),
        nn.LazyLinear(10),
        nn.BatchNorm1d(10, momentum=None),
        nn.LayerNorm(10),
        nn.Linear(10, 7),
        nn.RMSNorm(7),
    )


def pair(dtype=torch.float32, memory_format=torch.contiguous_format):
    """A network and its accelerated copy, and a batch."""
    model = network()
    x = torch.randn(4, 3, 17, 17).to(memory_format=memory_format)
    with torch.no_grad():
        model(x)
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    model = model.to(dtype).to(memory_format=memory_format)
    return model, ct.accelerate(copy.deepcopy(model)), x.to(dtype)


def gradients(model, x):
    x = x.clone().requires_grad_()
    y = model(x)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
    return y.detach(), x.grad, {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)], ids=str
)
def test_accelerated_network(dtype, tolerance, memory_format):
    model, fast, x = pair(dtype, memory_format)
    assert sum("cnorm" in type(m).__module__ for m in fast.modules()) == 8
    for training in (True, True, False):
        model.train(training), fast.train(training)
        model.zero_grad(), fast.zero_grad()
        want, got = gradients(model, x), gradients(fast, x)
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(
            fast.state_dict(), model.state_dict(), rtol=tolerance, atol=tolerance
        )


def test_channels_last_stays_so():
    norm = ct.accelerate(nn.BatchNorm2d(3))
    x = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last).requires_grad_()
    y = norm(x)
    y.sum().backward()
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert x.grad.is_contiguous(memory_format=torch.channels_last)


def test_accelerate_keeps_everything():
    model = network()
    model(torch.randn(2, 3, 9, 9))
    calls = []
    model[1].register_forward_hook(lambda *_: calls.append("forward"))
    model[5].register_full_backward_hook(lambda *_: calls.append("backward"))
    model[5].eval()
    keys = list(model.state_dict())
    layers, parameters = list(model.modules()), list(model.parameters())
    buffers = list(model.buffers())
    fast = ct.accelerate(model)
    assert fast is model
    assert list(fast.state_dict()) == keys
    for before, after in [
        (layers, fast.modules()),
        (parameters, fast.parameters()),
        (buffers, fast.buffers()),
    ]:
        assert all(a is b for a, b in zip(before, after, strict=True))
    assert fast[1].training and not fast[5].training
    gradients(fast, torch.randn(2, 3, 9, 9))
    assert calls == ["forward", "backward"]


def test_restore_and_pickle():
    model, fast, x = pair()
    plain = [type(m) for m in model.modules()]
    again = pickle.loads(pickle.dumps(fast))
    assert [type(m) for m in again.modules()] == [type(m) for m in fast.modules()] != plain
    torch.testing.assert_close(again.eval()(x), fast.eval()(x), rtol=0, atol=0)
    assert [type(m) for m in ct.restore(fast).modules()] == plain


def test_accelerate_leaves_others_alone():
    class Mine(nn.LayerNorm):
        pass

    replaced = nn.LayerNorm(3)
    replaced.forward = lambda x: x
    lazy = nn.LazyBatchNorm1d()
    model = ct.accelerate(nn.ModuleList([Mine(3), replaced, lazy]))
    assert [type(m) for m in model] == [Mine, nn.LayerNorm, nn.LazyBatchNorm1d]
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module, but got list"):
        ct.accelerate([])


def test_accelerated_errors_change_nothing():
    norm = ct.accelerate(nn.BatchNorm1d(3))
    with pytest.raises(ValueError, match=r"expected 2D or 3D input \(got 4D input\)"):
        norm(torch.randn(2, 3, 4, 5))
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        norm(torch.randn(1, 3))
    assert norm.num_batches_tracked == 0 and not norm.running_mean.any()


def test_unbatched_instance_norm():
    norm, x = nn.InstanceNorm1d(3), torch.randn(3, 8)
    want = norm(x)
    torch.testing.assert_close(ct.accelerate(norm)(x), want)


def test_autocast():
    model, fast, x = pair()
    with torch.autocast("cpu", torch.bfloat16):
        want, got = model(x), fast(x)
    assert got.dtype == want.dtype
    torch.testing.assert_close(got, want, rtol=0.1, atol=0.1)


def test_checkpointed_activations():
    from torch.utils.checkpoint import checkpoint

    norm, x = ct.accelerate(nn.LayerNorm(6)), torch.randn(4, 6, requires_grad=True)
    dy = torch.randn(4, 6)
    (want,) = torch.autograd.grad(norm(x), x, dy)
    (got,) = torch.autograd.grad(checkpoint(norm, x, use_reentrant=False), x, dy)
    assert np.array_equal(got.numpy(), want.numpy())

"""cnorm's norms in torch: the same values, gradients, state and errors, and no copies."""

# ruff: noqa: E402 -- the optional library first, then what needs it
import copy
import pickle
import time
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as nnF
from torch import nn

import cnorm.interop.torch as ct
from cnorm.interop import _torch_autograd as bridge
from cnorm.interop import _torch_modules as layers

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


pytestmark = [
    pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated"),  # by torch itself
]


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
    assert torch.autograd.gradcheck(*differentiable(case), check_forward_ad=True)


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
    (array,) = bridge.arrays_of([tensor])
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


@pytest.mark.parametrize("of_instances", [False, True])
def test_evaluation_then_training_then_backward(of_instances):
    """The gradient is that of the statistics which were used, whatever became of them."""
    x = torch.randn(4, 6, 5, dtype=torch.float64, requires_grad=True)
    mean, var = torch.randn(6).double(), torch.rand(6).double() + 0.5
    norm = ct.instance_norm if of_instances else ct.batch_norm
    want = nnF.batch_norm(x, mean.clone(), var.clone(), None, None).pow(2).sum()
    (want,) = torch.autograd.grad(want, x)
    y = norm(x, mean, var, None, None, False)
    norm(x, mean, var, None, None, True)
    (got,) = torch.autograd.grad(y.pow(2).sum(), x, create_graph=True)
    (again,) = torch.autograd.grad(y.pow(2).sum(), x)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(again, want)


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
    ("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float64, 1e-12)], ids=str
)
def test_accelerated_network(dtype, tolerance, memory_format, here):
    model, fast, x = pair(dtype, memory_format)
    assert len(ct.report(fast).replaced) == 8
    for training in (True, True, False):
        model.train(training), fast.train(training)
        model.zero_grad(), fast.zero_grad()
        want, got = gradients(model, x), gradients(fast, x)
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(
            fast.state_dict(), model.state_dict(), rtol=tolerance, atol=tolerance
        )


def test_channels_last_stays_so(here):
    norm = ct.accelerate(nn.BatchNorm2d(3))
    x = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last).requires_grad_()
    y = norm(x)
    y.sum().backward()
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert x.grad.is_contiguous(memory_format=torch.channels_last)


def test_accelerate_keeps_everything(here):
    model = network()
    model(torch.randn(2, 3, 9, 9))
    calls = []
    model[1].register_forward_hook(lambda *_: calls.append("forward"))
    model[5].register_full_backward_hook(lambda *_: calls.append("backward"))
    model[5].eval()
    keys = list(model.state_dict())
    modules, parameters = list(model.modules()), list(model.parameters())
    classes, text = [type(m) for m in modules], str(model)
    buffers = list(model.buffers())
    fast = ct.accelerate(model)
    assert fast is model
    assert list(fast.state_dict()) == keys
    assert [type(m) for m in fast.modules()] == classes and str(fast) == text
    for before, after in [
        (modules, fast.modules()),
        (parameters, fast.parameters()),
        (buffers, fast.buffers()),
    ]:
        assert all(a is b for a, b in zip(before, after, strict=True))
    assert fast[1].training and not fast[5].training
    gradients(fast, torch.randn(2, 3, 9, 9))
    assert calls == ["forward", "backward"]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_restore_and_copies(copied, here):
    model, fast, x = pair()
    again = copied(fast)
    assert ct.report(again) == ct.report(fast)
    with torch.no_grad():
        for p in fast.parameters():  # the copy has parameters of its own
            p.zero_()
    want = model.eval()(x)
    torch.testing.assert_close(again.eval()(x), want, rtol=1e-5, atol=1e-5)
    ct.restore(again)
    assert not ct.report(again).replaced
    assert [vars(m).keys() for m in again.modules()] == [vars(m).keys() for m in model.modules()]
    torch.testing.assert_close(again(x), want, rtol=0, atol=0)


def test_accelerate_leaves_others_alone():
    class Mine(nn.LayerNorm):
        pass

    replaced = nn.LayerNorm(3)
    replaced.forward = lambda x: x
    model = nn.ModuleDict(
        {
            "mine": Mine(3),
            "replaced": replaced,
            "lazy": nn.LazyBatchNorm1d(),
            "sync": nn.SyncBatchNorm(3),
            "norm": nn.LayerNorm(3),
            "linear": nn.Linear(3, 3),
        }
    )
    before = ct.report(model)
    assert not before.replaced
    assert before.left["norm"] == ("LayerNorm", "accelerate would replace it")
    done = ct.report(ct.accelerate(model))
    assert done.replaced == {"norm": "LayerNorm"}
    assert done.left == {
        "mine": ("Mine", "its forward is none that cnorm knows"),
        "replaced": ("LayerNorm", "its forward was replaced"),
        "lazy": ("LazyBatchNorm1d", "it has not seen its first batch"),
        "sync": (
            "SyncBatchNorm",
            "it merges statistics over processes, which is torch's part",
        ),
    }
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module, but got list"):
        ct.accelerate([])


def test_accelerate_says_what_it_did(capsys):
    model = nn.Sequential(nn.LayerNorm(3), nn.BatchNorm1d(3), nn.LayerNorm(3), nn.SyncBatchNorm(3))
    ct.accelerate(model)
    assert capsys.readouterr().out == ""
    ct.accelerate(model, verbose=True)  # again, which changes nothing
    assert capsys.readouterr().out.splitlines() == [
        "cnorm computes 3 layers and leaves 1 norms",
        "     2 LayerNorm: replaced",
        "     1 BatchNorm1d: replaced",
        "     1 SyncBatchNorm: left, it merges statistics over processes, which is torch's part",
    ]


def test_accelerate_warns_where_nothing_was_replaced():
    with pytest.warns(UserWarning, match="^no layer of the model was accelerated$"):
        ct.accelerate(nn.Linear(2, 2))
    with pytest.warns(
        UserWarning, match="no layer of the model was accelerated\n.*\n.*SyncBatchNorm"
    ):
        ct.accelerate(nn.Sequential(nn.SyncBatchNorm(2)))


def test_small_inputs_go_to_torch(monkeypatch):
    """Layers leave small inputs to torch's own function, and compute large ones here."""
    calls = []
    monkeypatch.setattr(layers, "run_here", lambda *args: calls.append(args))
    norm = ct.accelerate(nn.GroupNorm(2, 4))
    with torch.no_grad():
        norm(torch.ones(1, 4, 8, 8))
        assert not calls
        norm(torch.ones(2, 4, 128, 128))
        assert len(calls) == 1
    norm(torch.ones(2, 4, 128, 128))  # with backward to come the bound is higher
    assert len(calls) == 1
    ct.accelerate(nn.RMSNorm(4))(torch.ones(4))  # which torch computes in several operations
    assert len(calls) == 2


def test_accelerated_errors_change_nothing(here):
    norm = ct.accelerate(nn.BatchNorm1d(3))
    with pytest.raises(ValueError, match=r"expected 2D or 3D input \(got 4D input\)"):
        norm(torch.randn(2, 3, 4, 5))
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        norm(torch.randn(1, 3))
    assert norm.num_batches_tracked == 0 and not norm.running_mean.any()


def test_keywords(here):
    x = torch.randn(4, 6)
    for norm, name in (
        (nn.RMSNorm(6), "x"),
        (nn.LayerNorm(6), "input"),
        (nn.BatchNorm1d(6), "input"),
    ):
        want = norm(x)
        ct.accelerate(norm)
        torch.testing.assert_close(norm(**{name: x}), want)
        with pytest.raises(TypeError, match="unexpected keyword argument 'inputs'"):
            norm(inputs=x)
        with pytest.raises(TypeError, match="missing 1 required positional argument"):
            norm()


def test_unbatched_instance_norm(here):
    norm, x = nn.InstanceNorm1d(3), torch.randn(3, 8)
    want = norm(x)
    torch.testing.assert_close(ct.accelerate(norm)(x), want)


def test_autocast(here):
    model, fast, x = pair()
    with torch.autocast("cpu", torch.bfloat16):
        want, got = model(x), fast(x)
    assert got.dtype == want.dtype
    torch.testing.assert_close(got, want, rtol=0.1, atol=0.1)


def test_checkpointed_activations(here):
    from torch.utils.checkpoint import checkpoint

    norm, x = ct.accelerate(nn.LayerNorm(6)), torch.randn(4, 6, requires_grad=True)
    dy = torch.randn(4, 6)
    (want,) = torch.autograd.grad(norm(x), x, dy)
    (got,) = torch.autograd.grad(checkpoint(norm, x, use_reentrant=False), x, dy)
    assert np.array_equal(got.numpy(), want.numpy())


def test_what_a_call_costs_beyond_torchs(here):
    """In pairs on one thread: 6 and 33 µs, where torch's own take 6 and 34 µs."""
    norm, x = nn.LayerNorm(64), torch.randn(16, 64)
    fast, dy = ct.accelerate(copy.deepcopy(norm)), torch.randn(16, 64)
    given = x.clone().requires_grad_()

    def forward(norm):
        with torch.no_grad():
            norm(x)

    def forward_and_backward(norm):
        torch.autograd.grad(norm(given), [given, *norm.parameters()], dy)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for call, limit in ((forward, 2.5), (forward_and_backward, 1.2)):
            least = [float("inf")] * 2
            for _ in range(500):
                for i, layer in enumerate((norm, fast)):
                    start = time.perf_counter()
                    call(layer)
                    least[i] = min(least[i], time.perf_counter() - start)
            assert least[1] - least[0] < limit * least[0]
    finally:
        torch.set_num_threads(threads)

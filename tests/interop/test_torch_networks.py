"""Layers and networks of timm, torchvision, transformers and diffusers, accelerated.

What is not installed is skipped; bench/networks.txt names the versions that fit each other.
"""

# ruff: noqa: E402 -- the optional library first, then what needs it
import copy
import pickle

import libraries
import pytest

torch = pytest.importorskip("torch")

from torch import nn

import cnorm.interop.torch as ct
from cnorm.interop import _torch_modules as layers

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight"),
]

networks = libraries.networks()
library = libraries.library


@pytest.fixture(autouse=True)
def setup(here):
    torch.manual_seed(0)


def timm(name, *args, **kwargs):
    return lambda: getattr(library("timm.layers"), name)(*args, **kwargs)


def transformers(model, name, *args):
    def make():
        module = library(f"transformers.models.{model}.modeling_{model}")
        return getattr(module, name)(*args)

    return make


def frozen():
    return library("torchvision.ops").FrozenBatchNorm2d(6)


def torchvision_layer_norm():
    return library("torchvision.models.convnext").LayerNorm2d(6)


def diffusers(*args, **kwargs):
    return lambda: library("diffusers.models.normalization").RMSNorm(*args, **kwargs)


IMAGE, ROWS = (3, 6, 4, 5), (3, 4, 6)
CASES = {
    "BatchNormAct2d": (timm("BatchNormAct2d", 6), IMAGE),
    "BatchNormAct2d leaky": (timm("BatchNormAct2d", 6, act_layer=nn.LeakyReLU), IMAGE),
    "BatchNormAct2d relu6": (timm("BatchNormAct2d", 6, act_layer=nn.ReLU6), IMAGE),
    "BatchNormAct2d hardtanh": (timm("BatchNormAct2d", 6, act_layer=nn.Hardtanh), IMAGE),
    "BatchNormAct2d silu": (timm("BatchNormAct2d", 6, act_layer=nn.SiLU), IMAGE),
    "BatchNormAct2d none": (timm("BatchNormAct2d", 6, apply_act=False), IMAGE),
    "BatchNormAct2d average": (timm("BatchNormAct2d", 6, momentum=None), IMAGE),
    "BatchNormAct2d plain": (
        timm("BatchNormAct2d", 6, affine=False, track_running_stats=False),
        IMAGE,
    ),
    "FrozenBatchNormAct2d": (timm("FrozenBatchNormAct2d", 6), IMAGE),
    "GroupNormAct": (timm("GroupNormAct", 6, 2), IMAGE),
    "GroupNormAct relu6": (timm("GroupNormAct", 6, 2, act_layer=nn.ReLU6), IMAGE),
    "GroupNormAct gelu": (timm("GroupNormAct", 6, 2, act_layer=nn.GELU), IMAGE),
    "GroupNorm1": (timm("GroupNorm1", 6), IMAGE),
    "GroupNorm": (timm("GroupNorm", 6, 3), IMAGE),
    "LayerNorm": (timm("LayerNorm", 6), ROWS),
    "LayerNorm2d": (timm("LayerNorm2d", 6), IMAGE),
    "RmsNorm": (timm("RmsNorm", 6), ROWS),
    "torchvision LayerNorm2d": (torchvision_layer_norm, IMAGE),
    "torchvision FrozenBatchNorm2d": (frozen, IMAGE),
    "Llama": (transformers("llama", "LlamaRMSNorm", 6, 1e-2), ROWS),
    "Qwen3": (transformers("qwen3", "Qwen3RMSNorm", 6, 1e-2), ROWS),
    "Olmo2": (transformers("olmo2", "Olmo2RMSNorm", 6, 1e-2), ROWS),
    "Helium": (transformers("helium", "HeliumRMSNorm", 6, 1e-2), ROWS),
    "T5": (transformers("t5", "T5LayerNorm", 6, 1e-2), ROWS),
    "diffusers RMSNorm": (diffusers(6, 1e-2), ROWS),
    "diffusers RMSNorm plain": (diffusers(6, 1e-2, elementwise_affine=False), ROWS),
}


@pytest.fixture(params=CASES)
def layer(request):
    """A layer whose parameters and buffers say something, and an input."""
    make, shape = CASES[request.param]
    layer = make()
    with torch.no_grad():
        for t in [*layer.parameters(), *layer.buffers()]:
            if t.is_floating_point():
                t.uniform_(0.5, 1.5)
    return layer, torch.randn(shape)


def results(layer, x):
    x = x.clone().requires_grad_()
    y = layer(x)
    dy = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
    grads = torch.autograd.grad(y, [x, *layer.parameters()], dy)
    return [y.detach(), *grads, *layer.buffers()]


# transformers computes in float32 whatever the dtype of the input
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-5, torch.bfloat16: 3e-2}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_layer(layer, training, dtype, computed):
    layer, x = layer
    layer, x = layer.train(training).to(dtype), x.to(dtype)
    fast = ct.accelerate(copy.deepcopy(layer))
    assert ct.report(fast).replaced == {"": type(layer).__name__}
    got, want = results(fast, x), results(layer, x)
    assert len(computed) == 1
    assert [(g.dtype, g.shape) for g in got] == [(w.dtype, w.shape) for w in want]
    n = 1 if dtype is torch.bfloat16 else None  # which decides by its rounding where ReLU begins
    for g, w in zip(got[:n], want[:n], strict=True):
        torch.testing.assert_close(g, w, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    assert got[0].stride() == want[0].stride()
    if not isinstance(layer, nn.modules.batchnorm._NormBase) or not training:
        fast(x=x) if "x" in str(fast.forward.__signature__) else fast(hidden_states=x)
        assert len(computed) == 2
    again = pickle.loads(pickle.dumps(fast))
    torch.testing.assert_close(again(x), fast(x), rtol=0, atol=0)
    assert ct.report(again) == ct.report(fast)
    ct.restore(fast)
    assert not ct.report(fast).replaced


def test_layer_in_other_dtypes(layer, computed):
    """A dtype that differs from the parameters' decides that of the result as it always did."""
    layer, x = layer
    fast = ct.accelerate(copy.deepcopy(layer))
    try:
        want = layer(x.bfloat16())
    except RuntimeError:
        return  # torch's own refuses
    got = fast(x.bfloat16())
    assert got.dtype == want.dtype
    torch.testing.assert_close(got, want, rtol=3e-2, atol=3e-2)


def test_channels_last(layer):
    layer, x = layer
    if x.ndim == 4:
        x = x.to(memory_format=torch.channels_last)
        got, want = results(ct.accelerate(copy.deepcopy(layer)), x), results(layer, x)
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
        assert got[0].stride() == want[0].stride()


def test_hooks_of_an_activation_run(computed):
    """ReLU is computed in one pass with the norm only where nobody listens."""
    norm = ct.accelerate(timm("BatchNormAct2d", 6)())
    x, seen = torch.randn(IMAGE), []
    norm(x)
    norm.act.register_forward_hook(lambda m, args, y: seen.append(y))
    y = norm(x)
    assert [n.negative_slope for n in computed] == [0.0, None]
    assert seen[0] is y and (y >= 0).all() and (y == 0).any()


@pytest.mark.parametrize("act", [nn.ReLU6(), nn.Hardtanh(-0.5, 0.75), nn.LeakyReLU(0.1)], ids=str)
@pytest.mark.parametrize("name", ["BatchNorm2d", "GroupNorm"])
def test_activations_in_one_pass(name, act):
    """As in timm's layers, and as torch has them, with a second derivative."""
    norm, make = {
        "BatchNorm2d": (layers._batch_norm, lambda: nn.BatchNorm2d(6)),
        "GroupNorm": (layers._group_norm, lambda: nn.GroupNorm(2, 6)),
    }[name]
    layer, twin = make().double(), make().double()
    layer.drop, layer.act = nn.Identity(), act
    assert layers._fused(layer)
    fused = layers._with_activation(norm, layers.RMS_NORM)
    x = torch.randn(4, 6, 80, 80, dtype=torch.float64)
    dy = torch.randn_like(x)

    def derivatives(call):
        a = x.clone().requires_grad_()
        y = call(a)
        (first,) = torch.autograd.grad(y, a, dy, create_graph=True)
        return y, first, *torch.autograd.grad(first.square().sum(), a)

    ours = derivatives(lambda a: fused(layer, a))
    for got, want in zip(ours, derivatives(lambda a: act(twin(a))), strict=True):
        torch.testing.assert_close(got, want)


def test_fast_norm_of_timm_is_left():
    fast_norm = library("timm.layers.fast_norm")
    fast_norm.set_fast_norm(True)
    try:
        norm = timm("LayerNorm", 6)()
    finally:
        fast_norm.set_fast_norm(False)
    with pytest.warns(UserWarning, match="LayerNorm: left, timm's fast norm is on"):
        ct.accelerate(norm)
    norm = ct.accelerate(timm("LayerNorm", 6)())
    norm._fast_norm = True  # switched on later
    x = torch.randn(ROWS)
    torch.testing.assert_close(norm(x), nn.functional.layer_norm(x, (6,), eps=1e-6))


@pytest.mark.parametrize(
    ("model", "name", "args"),
    [
        ("gemma", "GemmaRMSNorm", (6,)),  # 1 + weight
        ("mamba2", "MambaRMSNormGated", (6, 6)),
        ("llama4", "Llama4TextRMSNorm", (6,)),
    ],
)
def test_other_computations_of_transformers_are_left(model, name, args):
    norm = transformers(model, name, *args)()
    with pytest.warns(UserWarning, match=f"{name}: left, its forward is none that cnorm knows"):
        ct.accelerate(norm)


class LlamaRMSNorm(nn.Module):
    """The name of a layer that is known, and another computation."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(6))
        self.variance_epsilon = 1e-6

    def forward(self, hidden_states):
        input_dtype = hidden_states.dtype
        hidden_states = hidden_states.to(torch.float32)
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        hidden_states = hidden_states * torch.rsqrt(variance - self.variance_epsilon)
        return self.weight * hidden_states.to(input_dtype)


class Mine(LlamaRMSNorm):
    """Another name, and the computation of a layer that is known."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Annotations, comments and documentation do not matter."""
        input_dtype = hidden_states.dtype
        hidden_states = hidden_states.to(torch.float32)  # here
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        hidden_states = hidden_states * torch.rsqrt(variance + self.variance_epsilon)
        return self.weight * hidden_states.to(input_dtype)


def test_the_computation_counts_and_not_the_name(monkeypatch):
    model = ct.accelerate(nn.ModuleList([LlamaRMSNorm(), Mine()]))
    assert ct.report(model).replaced == {"1": "Mine"}
    assert ct.report(model).left == {"0": ("LlamaRMSNorm", "its forward is none that cnorm knows")}
    layers.digest_of.cache_clear()
    monkeypatch.setitem(Mine.forward.__globals__, "torch", object())  # another meaning of a name
    assert layers.digest_of(Mine.forward) is None
    layers.digest_of.cache_clear()


NAMES = (
    "timm mobilenetv3_small_100",
    "torchvision resnet18",
    "torchvision swin_t",
    "transformers Llama",
    "transformers T5",
    "diffusers UNet2DModel",
)


@pytest.fixture(params=NAMES)
def network(request):
    (found,) = (n for n in networks.NETWORKS if n.name == request.param)
    library(request.param.split()[0])
    model = networks.made(found)
    return model, found.inputs(found.sizes[0])


@pytest.mark.parametrize("training", [True, False])
def test_network(network, training, computed):
    """Results and gradients, and errors against float64, are those of torch."""
    model, inputs = network
    fast = ct.accelerate(copy.deepcopy(model))
    of_torch, of_cnorm = networks.errors(model, fast, inputs, training)
    assert computed
    assert of_cnorm < 2 * of_torch + 1e-6


def test_feature_extractor(computed):
    create = library("torchvision.models.feature_extraction").create_feature_extractor
    model = library("torchvision.models").resnet18(weights=None)
    fast = ct.accelerate(copy.deepcopy(model))
    nodes = {"layer1.0.bn1": "norm", "layer2": "block"}
    x = torch.randn(2, 3, 32, 32)
    got, want = (create(m, nodes)(x) for m in (fast, model))
    assert computed and got.keys() == want.keys() == {"norm", "block"}
    for name in nodes.values():
        torch.testing.assert_close(got[name], want[name], rtol=1e-3, atol=1e-3)


def test_feature_extractor_of_timm():
    create = library("timm").create_model
    fast = create("resnet18", features_only=True)
    model = copy.deepcopy(fast)
    ct.accelerate(fast)
    x = torch.randn(2, 3, 32, 32)
    for got, want in zip(fast(x), model(x), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)

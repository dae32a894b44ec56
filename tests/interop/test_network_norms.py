"""The table "your network's norm -> cnorm" of docs/migrating.md, each line beside the original.

What is not installed is skipped; bench/networks.txt names the versions that fit each other.
"""

import importlib
import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import cnorm  # noqa: E402 -- the optional library first, then what needs it
import cnorm.functional as F  # noqa: E402

ROOT = Path(__file__).parents[2]
_spec = importlib.util.spec_from_file_location("networks", ROOT / "bench" / "networks.py")
networks = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(networks)

C = D = 24
IMAGE, TOKENS = (2, C, 5, 7), (2, 9, D)
CASES = {  # the original, its arguments, an input, and the line of the table
    "timm.layers.LayerNorm2d": ((C,), IMAGE, "cnorm.LayerNorm(C, eps=1e-6, axis=1)"),
    "timm.layers.BatchNormAct2d": ((C,), IMAGE, "cnorm.BatchNorm2d(C, activation=cnorm.ReLU())"),
    "timm.layers.GroupNorm1": ((C,), IMAGE, "cnorm.GroupNorm(1, C)"),
    "timm.layers.RmsNorm": ((D,), TOKENS, "cnorm.RMSNorm(D, eps=1e-6)"),
    "transformers.models.llama.modeling_llama.LlamaRMSNorm": (
        (D,), TOKENS, "cnorm.RMSNorm(D, eps=1e-6)",
    ),
    "transformers.models.gemma.modeling_gemma.GemmaRMSNorm": (
        (D,), TOKENS, "cnorm.RMSNorm(D, eps=1e-6, zero_centered_gamma=True)",
    ),
    "transformers.models.t5.modeling_t5.T5LayerNorm": (
        (D,), TOKENS, "cnorm.RMSNorm(D, eps=1e-6)",
    ),
    "torchvision.ops.FrozenBatchNorm2d": ((C,), IMAGE, "cnorm.BatchNorm2d(C).eval()"),
}  # fmt: skip


def original(path):
    package, _, _ = path.partition(".")
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"needs {package}")
    networks.library(package)
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.rpartition(".")[2])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_one_line_and_its_state(path):
    arguments, shape, line = CASES[path]
    theirs = original(path)(*arguments)
    torch.manual_seed(0)
    for name, tensor in theirs.state_dict().items():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5) if "var" in name else tensor.normal_(0.5, 0.5)
    ours = eval(line, {"cnorm": cnorm, "C": C, "D": D})
    ours.load_state_dict(theirs.state_dict())
    x, dy = torch.randn(2, *shape)
    x.requires_grad_()
    expected = theirs(x)
    expected.backward(dy)
    with cnorm.enable_grad():
        y = ours(x.detach().numpy())
    np.testing.assert_allclose(y, expected.detach().numpy(), atol=4e-6, rtol=4e-6)
    np.testing.assert_allclose(ours.backward(dy.numpy()), x.grad.numpy(), atol=2e-5, rtol=2e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_ada_layer_norm():
    theirs = original("diffusers.models.normalization.AdaLayerNorm")(
        D, output_dim=2 * D, chunk_dim=1
    )
    torch.manual_seed(0)
    x, condition = torch.randn(TOKENS), torch.randn(TOKENS[0], D)
    expected = theirs(x, temb=condition).detach().numpy()
    shift, scale = theirs.linear(theirs.silu(condition)).detach().numpy()[:, None].reshape(
        TOKENS[0], 2, 1, D
    ).swapaxes(0, 1)  # fmt: skip
    y = F.layer_norm(x.numpy(), D, 1 + scale, shift)
    np.testing.assert_allclose(y, expected, atol=4e-6, rtol=4e-6)


def test_the_table_has_these_lines():
    text = (ROOT / "docs" / "migrating.md").read_text(encoding="utf-8")
    for path, (_, _, line) in CASES.items():
        name = path.rpartition(".")[2]
        assert re.search(rf"`{name}`[^\n]*`{re.escape(line)}`", text), f"{name}: {line}"
    assert re.search(r"`AdaLayerNorm`[^\n]*`F.layer_norm\(x, D, 1 \+ scale, shift\)`", text)

"""Write the .pt files beside this script, which the tests read without torch (made with 2.13)."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch

HERE = Path(__file__).parent
DTYPES = ["float64", "float32", "float16", "bfloat16", "complex64", "complex128", "bool"]
DTYPES += ["int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8"]


def numbered(model: torch.nn.Module) -> torch.nn.Module:
    """A model whose n-th tensor counts up from 100 n."""
    with torch.no_grad():
        for n, tensor in enumerate(model.state_dict().values()):
            tensor.copy_(torch.arange(tensor.numel()).reshape(tensor.shape) + 100 * n)
    return model


def main() -> None:
    model = numbered(torch.nn.Sequential(torch.nn.BatchNorm2d(4), torch.nn.GroupNorm(2, 4)))
    torch.save(model.state_dict(), HERE / "state.pt")

    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer = torch.optim.Adam(model.parameters())
    optimizer.step()
    numbered(model)
    training = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "epoch": 3,
        "loss": 0.25,
        "note": "best",
        "size": torch.Size([1, 2]),
        "dtype": torch.float32,
        "device": torch.device("cpu"),
        "more": [torch.nn.Parameter(torch.ones(2)), None, (torch.zeros(1), True)],
    }
    for protocol in (2, 5):
        torch.save(training, HERE / f"training{protocol}.pt", pickle_protocol=protocol)

    torch.save(
        {name: torch.arange(6).to(getattr(torch, name)) for name in DTYPES}, HERE / "dtypes.pt"
    )

    base = torch.arange(24.0)
    views = {
        "transposed": base.reshape(4, 6).t(),
        "sliced": base[5:20:3],
        "tile": base.reshape(2, 3, 4)[1:, ::2, 1:],
        "scalar": base[7],
        "empty": base.reshape(2, 12)[:, 12:],
        "tied": base,
        "expanded": base[3:4].expand(5),
        "windows": base.unfold(0, 4, 2),
        "repeated": torch.as_strided(base, (2, 3), (1, 1)),
    }
    torch.save(views, HERE / "views.pt")

    refused = {
        "model": model,
        "tensor": torch.ones(2),
        "float8": {"a": torch.ones(2).to(torch.float8_e4m3fn)},
        "conjugated": {"a": torch.ones(2, dtype=torch.complex64).conj()},
    }
    for name, content in refused.items():
        torch.save(content, HERE / f"refused_{name}.pt")
    legacy = HERE / "refused_legacy.pt"
    torch.save({"a": torch.ones(2)}, legacy, _use_new_zipfile_serialization=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(torch.nn.Identity()), HERE / "refused_torchscript.pt")


if __name__ == "__main__":
    main()

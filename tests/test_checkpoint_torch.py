"""Checkpoints: files that the installed torch writes, read here, and the other way round."""

from __future__ import annotations

import zipfile

import ml_dtypes
import numpy as np
import pytest

import cnorm
from cnorm import checkpoint

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")

WRITTEN = [".safetensors", ".npz"]
TORCH_DTYPES = ["float64", "float32", "float16", "bfloat16", "complex64", "complex128", "bool"]
TORCH_DTYPES += ["int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8"]


def assert_same(got: np.ndarray, tensor: torch.Tensor) -> None:
    if tensor.dtype == torch.bfloat16:
        assert got.dtype == ml_dtypes.bfloat16
        got, tensor = got.view(np.int16), tensor.contiguous().view(torch.int16)
    assert got.dtype == tensor.numpy().dtype
    assert got.shape == tuple(tensor.shape)
    np.testing.assert_array_equal(got, tensor.numpy())


def model() -> torch.nn.Module:
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.GroupNorm(2, 4)
    )
    net(torch.randn(2, 3, 8, 8))
    return net


@pytest.mark.parametrize("name", ["float64", "float32", "float16", "bfloat16", "int64", "bool"])
def test_torch_and_cnorm_read_each_other_s_safetensors(tmp_path, name):
    tensor = torch.arange(6).reshape(2, 3).to(getattr(torch, name))
    safetensors_torch.save_file({"a": tensor}, tmp_path / "x.safetensors")
    loaded = checkpoint.load(tmp_path / "x.safetensors")
    assert_same(loaded["a"], tensor)
    checkpoint.save(tmp_path / "y.safetensors", loaded)
    back = safetensors_torch.load_file(tmp_path / "y.safetensors")["a"]
    assert back.dtype == tensor.dtype
    assert torch.equal(back, tensor)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt", ".PT"])
def test_torch_state_dict(tmp_path, suffix, protocol):
    state = model().state_dict()
    torch.save(state, tmp_path / f"x{suffix}", pickle_protocol=protocol)
    loaded = checkpoint.load(tmp_path / f"x{suffix}")
    assert list(loaded) == list(state)
    for name, tensor in state.items():
        assert_same(loaded[name], tensor)
    assert loaded._metadata == state._metadata


@pytest.mark.parametrize("name", TORCH_DTYPES)
def test_torch_dtypes(tmp_path, name):
    tensor = torch.arange(12).to(getattr(torch, name))
    torch.save({"a": tensor, "none": tensor[:0]}, tmp_path / "x.pt")
    loaded = checkpoint.load(tmp_path / "x.pt")
    assert_same(loaded["a"], tensor)
    assert_same(loaded["none"], tensor[:0])


def test_torch_views(tmp_path):
    base = torch.arange(24.0)
    views = {
        "transposed": base.reshape(4, 6).t(),
        "sliced": base[5:20:3],
        "tile": base.reshape(2, 3, 4)[1:, ::2, 1:],
        "scalar": base[7],
        "empty": base.reshape(2, 12)[:, 12:],
        "last": base[23:],
    }
    torch.save(views, tmp_path / "x.pt")
    loaded = checkpoint.load(tmp_path / "x.pt")
    for name, tensor in views.items():
        assert_same(loaded[name], tensor)


def test_torch_tied_tensors_stay_tied_and_expanded_ones_are_read_only(tmp_path):
    weight = torch.ones(3)
    torch.save({"in": weight, "out": weight, "wide": weight[:1].expand(5)}, tmp_path / "x.pt")
    loaded = checkpoint.load(tmp_path / "x.pt")
    assert np.shares_memory(loaded["in"], loaded["out"])
    assert loaded["in"].flags.writeable
    assert loaded["wide"].tolist() == [1] * 5
    assert not loaded["wide"].flags.writeable


def test_nested_torch_checkpoint(tmp_path):
    net = model()
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.randn(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    content = {
        "model": net.state_dict(),
        "optimizer": optimizer.state_dict(),
        "epoch": 3,
        "note": "best",
        "size": torch.Size([1, 2]),
        "dtype": torch.float32,
        "device": torch.device("cpu"),
        "parameters": [torch.nn.Parameter(torch.ones(2)), None],
    }
    torch.save(content, tmp_path / "x.pt")
    loaded = checkpoint.load(tmp_path / "x.pt")
    assert_same(loaded["model.1.running_mean"], net[1].running_mean)
    assert_same(loaded["optimizer.state.0.exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"])
    assert loaded["parameters.0"].tolist() == [1, 1]
    assert all(isinstance(array, np.ndarray) for array in loaded.values())


def test_prefix_picks_a_sub_tree_with_its_metadata(tmp_path):
    net = model()
    torch.save({"model": net.state_dict()}, tmp_path / "x.pt")
    loaded = checkpoint.load(tmp_path / "x.pt", prefix="model.1.")
    assert list(loaded) == list(net[1].state_dict())
    assert loaded._metadata == {"": {"version": 2}}
    arrays = {name: tensor.numpy() for name, tensor in net.state_dict().items()}
    for suffix in WRITTEN:
        checkpoint.save(tmp_path / f"x{suffix}", arrays)
        part = checkpoint.load(tmp_path / f"x{suffix}", prefix="1.")
        assert sorted(part) == sorted(net[1].state_dict())
        with pytest.raises(
            checkpoint.CheckpointError, match=r"no tensor's name begins with 'no\.'"
        ):
            checkpoint.load(tmp_path / f"x{suffix}", prefix="no.")


def test_prefix_reads_no_other_storage(tmp_path):
    torch.save({"a": torch.ones(3), "b": torch.ones(4)}, tmp_path / "x.pt")
    damaged = (tmp_path / "x.pt").read_bytes().replace(np.ones(4, "f4").tobytes(), b"\xff" * 16)
    (tmp_path / "x.pt").write_bytes(damaged)
    assert checkpoint.load(tmp_path / "x.pt", prefix="a")[""].tolist() == [1, 1, 1]
    with pytest.raises(checkpoint.CheckpointError, match="CRC"):
        checkpoint.load(tmp_path / "x.pt")


@pytest.mark.parametrize("name", ["float32", "int16", "bfloat16", "complex64", "uint8"])
def test_big_endian_torch_file(tmp_path, name):
    tensor = torch.arange(4).to(getattr(torch, name))
    torch.save({"a": tensor}, tmp_path / "little.pt")
    unit = tensor.element_size() // (2 if tensor.is_complex() else 1)
    with (
        zipfile.ZipFile(tmp_path / "little.pt") as old,
        zipfile.ZipFile(tmp_path / "big.pt", "w") as new,
    ):
        for entry in old.infolist():
            data = old.read(entry)
            if entry.filename.endswith("/byteorder"):
                data = b"big"
            elif entry.filename.endswith("/data/0"):
                data = np.frombuffer(data, f"u{unit}").byteswap().tobytes()
            new.writestr(entry.filename, data)
    assert_same(checkpoint.load(tmp_path / "big.pt")["a"], tensor)


def layers():
    return cnorm.Sequential(
        cnorm.BatchNorm2d(4),
        cnorm.GroupNorm(2, 4),
        cnorm.LayerNorm((8, 8)),
        cnorm.LazyBatchNorm2d(),
    )


def test_torch_trained_layers_run_in_cnorm(tmp_path):
    nn = torch.nn
    theirs = nn.Sequential(
        nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.LayerNorm((8, 8)), nn.BatchNorm2d(4)
    )
    for parameter in theirs.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(5, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    theirs(x)
    torch.save({"model": theirs.state_dict()}, tmp_path / "x.pt")
    ours = layers()
    ours.load_state_dict(checkpoint.load(tmp_path / "x.pt", prefix="model."))
    expected = theirs.eval()(x).detach().numpy()
    np.testing.assert_allclose(ours.eval()(x.numpy()), expected, rtol=1e-4, atol=1e-4)
    for suffix in WRITTEN:
        checkpoint.save(tmp_path / f"x{suffix}", ours.state_dict())
        again = layers()
        again.load_state_dict(checkpoint.load(tmp_path / f"x{suffix}"))
        np.testing.assert_array_equal(again.eval()(x.numpy()), ours(x.numpy()))

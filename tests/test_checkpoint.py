"""Checkpoints: every format, both ways, and against files that torch wrote."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import cnorm
from cnorm import checkpoint

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")

WRITTEN = [".safetensors", ".npz"]
FLOATS = [np.float64, np.float32, np.float16, ml_dtypes.bfloat16]
OTHERS = [*(np.int64, np.int32, np.int16, np.int8), *(np.uint64, np.uint32, np.uint16, np.uint8)]
TORCH_DTYPES = ["float64", "float32", "float16", "bfloat16", "complex64", "complex128", "bool"]
TORCH_DTYPES += ["int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8"]


def bits(array: np.ndarray) -> bytes:
    return np.ascontiguousarray(array).tobytes()


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


@pytest.mark.parametrize("suffix", WRITTEN)
@pytest.mark.parametrize("dtype", [*FLOATS, *OTHERS, np.bool_])
def test_round_trip_keeps_every_bit(tmp_path, suffix, dtype):
    values = np.random.default_rng(0).integers(0, 2, (3, 4)).astype(dtype)
    state = {
        "matrix": values,
        "transposed": values.T,
        "reversed": values[::-1, ::2],
        "scalar": np.array(values[0, 0]),
        "empty": values[:0],
    }
    checkpoint.save(tmp_path / f"x{suffix}", state)
    loaded = checkpoint.load(tmp_path / f"x{suffix}")
    assert loaded.keys() == state.keys()
    for name, array in state.items():
        assert loaded[name].dtype == dtype
        assert loaded[name].shape == array.shape
        assert bits(loaded[name]) == bits(array)
        assert loaded[name].flags.writeable


@pytest.mark.parametrize("suffix", WRITTEN)
def test_nothing_is_a_checkpoint_too(tmp_path, suffix):
    checkpoint.save(tmp_path / f"x{suffix}", {})
    assert checkpoint.load(tmp_path / f"x{suffix}") == {}


@pytest.mark.parametrize("suffix", WRITTEN)
def test_byte_swapped_input_and_odd_names(tmp_path, suffix):
    names = ["a/b", "../up", "file", "x.npy", "ünïcode", "", "with space"]
    state = {name: np.arange(3, dtype=">f4") for name in names}
    checkpoint.save(str(tmp_path / f"x{suffix}"), state)
    loaded = checkpoint.load(tmp_path / f"x{suffix}")
    assert sorted(loaded) == sorted(names)
    assert all(array.dtype == np.dtype("=f4") for array in loaded.values())
    assert all(array.tolist() == [0, 1, 2] for array in loaded.values())
    assert os.listdir(tmp_path) == [f"x{suffix}"]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_reads_what_numpy_wrote(tmp_path, save):
    save(tmp_path / "x.npz", a=np.zeros(1 << 20), b=np.asfortranarray([[1, 2], [3, 4]]))
    loaded = checkpoint.load(tmp_path / "x.npz")
    np.testing.assert_array_equal(loaded["a"], np.zeros(1 << 20))
    np.testing.assert_array_equal(loaded["b"], [[1, 2], [3, 4]])


def test_numpy_reads_what_is_saved(tmp_path):
    checkpoint.save(tmp_path / "x.npz", {"a": np.arange(5.0)})
    with np.load(tmp_path / "x.npz") as arrays:
        np.testing.assert_array_equal(arrays["a"], np.arange(5.0))


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


def test_torch_is_not_needed(tmp_path):
    torch.save(model().state_dict(), tmp_path / "x.pt")
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from cnorm import checkpoint; print(len(checkpoint.load(sys.argv[1])))"
    )
    command = [sys.executable, "-c", code, tmp_path / "x.pt"]
    environment = os.environ | {"PYTHONPATH": str(Path(cnorm.__file__).parents[1])}
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=tmp_path, env=environment
    )
    assert done.stdout == "9\n"


@pytest.mark.parametrize(
    ("library", "suffix", "dtype"),
    [
        ("safetensors", ".safetensors", "f4"),
        ("ml_dtypes", ".safetensors", ml_dtypes.bfloat16),
        ("ml_dtypes", ".npz", ml_dtypes.bfloat16),
    ],
)
def test_a_missing_library_is_named_with_its_extra(tmp_path, monkeypatch, library, suffix, dtype):
    checkpoint.save(tmp_path / f"x{suffix}", {"a": np.ones(3, dtype)})
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=rf"{library}.*cnorm-layers\[checkpoint\]"):
        checkpoint.load(tmp_path / f"x{suffix}")


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


# Saving


def test_a_lazy_layer_without_parameters_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match="uninitialized"):
        checkpoint.save(tmp_path / "x.npz", cnorm.LazyBatchNorm1d().state_dict())
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("suffix", WRITTEN)
@pytest.mark.parametrize("when", ["write", "sync", "replace"])
def test_a_failed_save_leaves_the_old_file_alone(tmp_path, monkeypatch, suffix, when):
    path = tmp_path / f"x{suffix}"
    checkpoint.save(path, {"a": np.zeros(3)})
    before = path.read_bytes()

    def fail(*args, **kwargs):
        raise OSError("the disk is full")

    target = {
        "write": (
            "numpy.lib.format.write_array" if suffix == ".npz" else "safetensors.numpy.save_file"
        ),
        "sync": "os.fsync",
        "replace": "pathlib.Path.replace",
    }[when]
    monkeypatch.setattr(target, fail)
    with pytest.raises(OSError, match="the disk is full"):
        checkpoint.save(path, {"a": np.ones(3)})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("suffix", WRITTEN)
def test_data_is_on_disk_before_it_takes_the_place(tmp_path, monkeypatch, suffix):
    path = tmp_path / f"x{suffix}"
    events = []
    sync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append("sync"), sync(fd)))
    monkeypatch.setattr(
        Path, "replace", lambda old, new: (events.append((old.parent, new)), replace(old, new))
    )
    checkpoint.save(path, {"a": np.zeros(3)})
    assert events[:2] == ["sync", (tmp_path.resolve(), path.resolve())]


@pytest.mark.skipif(os.name == "nt", reason="POSIX modes and links")
@pytest.mark.parametrize("suffix", WRITTEN)
def test_saving_keeps_the_mode_and_the_link(tmp_path, suffix):
    real, link = tmp_path / f"real{suffix}", tmp_path / f"link{suffix}"
    checkpoint.save(real, {"a": np.zeros(3)})
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(real.stat().st_mode) == 0o666 & ~umask
    real.chmod(0o640)
    link.symlink_to(real)
    checkpoint.save(link, {"a": np.ones(3)})
    assert link.is_symlink()
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    assert checkpoint.load(real)["a"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("suffix", WRITTEN)
def test_unsuitable_values_are_refused_by_name(tmp_path, suffix):
    with pytest.raises(TypeError, match="'a' must be an array of numbers, got dtype object"):
        checkpoint.save(tmp_path / f"x{suffix}", {"a": np.array([None])})
    with pytest.raises(TypeError, match="names must be strings, got 3"):
        checkpoint.save(tmp_path / f"x{suffix}", {3: np.zeros(2)})
    assert os.listdir(tmp_path) == []


def test_unsuitable_files(tmp_path):
    with pytest.raises(checkpoint.CheckpointError, match=r"a \.pt file is not written"):
        checkpoint.save(tmp_path / "x.pt", {})
    with pytest.raises(checkpoint.CheckpointError, match=r"a \.h5 file is not read"):
        checkpoint.load(tmp_path / "x.h5")
    with pytest.raises(checkpoint.CheckpointError, match="a bare file is not read"):
        checkpoint.load(tmp_path / "x")
    with pytest.raises(checkpoint.CheckpointError, match="safetensors cannot hold"):
        checkpoint.save(tmp_path / "x.safetensors", {"a": np.zeros(2, "c16")})
    for suffix in (".pt", ".npz", ".safetensors"):
        with pytest.raises(FileNotFoundError):
            checkpoint.load(tmp_path / f"missing{suffix}")
    assert issubclass(checkpoint.CheckpointError, ValueError)

"""Checkpoints: every format, both ways, and against files that torch wrote."""

from __future__ import annotations

import json
import os
import socket
import stat
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from libraries import NEEDS_SAFETENSORS, SAFETENSORS
from torch_files import STORAGES, tensor_pickle, write_arrays, write_torch

import cnorm
from cnorm import checkpoint

DATA = Path(__file__).parent / "data"  # .pt files, and the script that made them
WRITTEN = [SAFETENSORS, ".npz"]
FLOATS = [np.float64, np.float32, np.float16, ml_dtypes.bfloat16]
OTHERS = [*(np.int64, np.int32, np.int16, np.int8), *(np.uint64, np.uint32, np.uint16, np.uint8)]


def bits(array: np.ndarray) -> bytes:
    return np.ascontiguousarray(array).tobytes()


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


@pytest.mark.parametrize(
    ("library", "suffix", "dtype"),
    [
        pytest.param("safetensors", ".safetensors", "f4", marks=NEEDS_SAFETENSORS),
        pytest.param("ml_dtypes", ".safetensors", ml_dtypes.bfloat16, marks=NEEDS_SAFETENSORS),
        ("ml_dtypes", ".npz", ml_dtypes.bfloat16),
    ],
)
def test_a_missing_library_is_named_with_its_extra(tmp_path, monkeypatch, library, suffix, dtype):
    checkpoint.save(tmp_path / f"x{suffix}", {"a": np.ones(3, dtype)})
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(
        ImportError, match=rf"needs {library}: .*cnorm-layers\[checkpoint\]"
    ) as raised:
        checkpoint.load(tmp_path / f"x{suffix}")
    assert str(tmp_path / f"x{suffix}") in str(raised.value)
    assert raised.value.name == library
    if library == "safetensors":
        monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
        with pytest.raises(ImportError, match=r"cnorm-layers\[checkpoint\]"):
            checkpoint.save(tmp_path / f"x{suffix}", {"a": np.ones(3)})


# torch's files, stored


def numbered(name, loaded, expected):
    """The n-th tensor of a model counts up from 100 n, as the script that made the files has it."""
    for n, (key, shape) in enumerate(expected.items()):
        want = np.arange(np.prod(shape, dtype=int)).reshape(shape) + 100 * n
        np.testing.assert_array_equal(loaded[name + key], want)


STATE = {
    "0.weight": (4,),
    "0.bias": (4,),
    "0.running_mean": (4,),
    "0.running_var": (4,),
    "0.num_batches_tracked": (),
    "1.weight": (4,),
    "1.bias": (4,),
}


def test_a_stored_state_dict():
    loaded = checkpoint.load(DATA / "state.pt")
    assert list(loaded) == list(STATE)
    numbered("", loaded, STATE)
    assert loaded._metadata == {"": {"version": 1}, "0": {"version": 2}, "1": {"version": 1}}
    net = cnorm.Sequential(cnorm.BatchNorm2d(4), cnorm.GroupNorm(2, 4))
    net.load_state_dict(loaded)
    numbered("", net.state_dict(), STATE)


@pytest.mark.parametrize("protocol", [2, 5])
def test_a_stored_training_state(protocol):
    loaded = checkpoint.load(DATA / f"training{protocol}.pt")
    numbered("model.", loaded, STATE)
    moments = {f"optimizer.state.{n}.{key}" for n in range(4) for key in ("exp_avg", "exp_avg_sq")}
    steps = {f"optimizer.state.{n}.step" for n in range(4)}
    others = {"more.0", "more.2.0"}
    assert loaded.keys() == {f"model.{key}" for key in STATE} | moments | steps | others
    np.testing.assert_array_equal(loaded["optimizer.state.0.exp_avg"], np.full(4, np.float32(0.1)))
    assert loaded["optimizer.state.3.step"] == 1
    assert loaded["more.0"].tolist() == [1, 1]
    part = checkpoint.load(DATA / f"training{protocol}.pt", prefix="model.0.")
    assert list(part) == [key[2:] for key in STATE if key.startswith("0.")]
    assert part._metadata == {"": {"version": 2}}


def test_stored_dtypes():
    loaded = checkpoint.load(DATA / "dtypes.pt")
    assert len(loaded) == 15
    for name, array in loaded.items():
        assert array.dtype == np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
        np.testing.assert_array_equal(array, np.arange(6).astype(array.dtype))


def test_stored_views():
    loaded = checkpoint.load(DATA / "views.pt")
    base = np.arange(24.0, dtype=np.float32)
    expected = {
        "transposed": base.reshape(4, 6).T,
        "sliced": base[5:20:3],
        "tile": base.reshape(2, 3, 4)[1:, ::2, 1:],
        "scalar": base[7],
        "empty": base.reshape(2, 12)[:, 12:],
        "tied": base,
        "expanded": np.full(5, base[3]),
        "windows": np.stack([base[i : i + 4] for i in range(0, 21, 2)]),
        "repeated": np.array([[0, 1, 2], [1, 2, 3]]),
    }
    assert list(loaded) == list(expected)
    for name, want in expected.items():
        assert loaded[name].dtype == np.float32
        np.testing.assert_array_equal(loaded[name], want)
    shared = {"expanded", "windows", "repeated"}
    for name, array in loaded.items():
        assert array.flags.writeable == (name not in shared), name
    loaded["tied"][7] = -1
    assert loaded["scalar"] == loaded["transposed"][1, 1] == -1


def test_prefix_reads_no_other_storage(tmp_path):
    path = tmp_path / "x.pt"
    write_arrays(path, {"a.x": np.ones(3), "b.x": np.ones(4)})
    path.write_bytes(path.read_bytes().replace(np.ones(4).tobytes(), b"\xff" * 32))
    assert checkpoint.load(path, prefix="a.")["x"].tolist() == [1, 1, 1]
    assert checkpoint.keys(path)["b.x"] == ((4,), "float64")
    with pytest.raises(checkpoint.CheckpointError, match="CRC"):
        checkpoint.load(path)


@pytest.mark.parametrize("dtype", ["f4", "f8", "i8", "i4", "u1"])
def test_the_other_byte_order(tmp_path, dtype):
    values = np.arange(4, dtype=dtype)
    kind = f"{STORAGES[dtype]}Storage"
    for order, signs in (("little", "<"), ("big", ">")):
        data = tensor_pickle(shape=(4,), count=4, kind=kind)
        content = values.astype(signs + dtype).tobytes()
        write_torch(tmp_path / "x.pt", data, byteorder=order, _0=content)
        np.testing.assert_array_equal(checkpoint.load(tmp_path / "x.pt")["a"], values)


@pytest.mark.parametrize(
    "order", [b"", b"Little", b"BIG", b"little\n", b"native", b"\xff", b"x" * 99]
)
def test_an_unknown_byte_order_is_refused(tmp_path, order):
    write_torch(tmp_path / "x.pt", tensor_pickle(), byteorder=order, _0=bytes(8))
    with pytest.raises(checkpoint.CheckpointError, match="byte order"):
        checkpoint.load(tmp_path / "x.pt")


def test_torch_is_not_needed(elsewhere):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from cnorm import checkpoint; print(len(checkpoint.load(sys.argv[1])))"
    )
    command = [sys.executable, "-c", code, DATA / "state.pt"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "7\n"


# What is in a file


@pytest.mark.parametrize("suffix", WRITTEN)
def test_keys_are_what_load_gives(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    dtypes = [*FLOATS, *OTHERS, np.bool_, np.complex64]
    state = {
        np.dtype(dtype).name: np.zeros((3, 0, 2)[: n % 4], dtype) for n, dtype in enumerate(dtypes)
    }
    checkpoint.save(path, state)
    keys = checkpoint.keys(path)
    assert keys == {name: (array.shape, name) for name, array in state.items()}
    assert keys["float64"].shape == ()
    assert keys["float64"].dtype == "float64"


@pytest.mark.parametrize("name", ["state", "training2", "training5", "dtypes", "views"])
def test_keys_of_torch_s_files(name):
    loaded = checkpoint.load(DATA / f"{name}.pt")
    expected = {key: (array.shape, array.dtype.name) for key, array in loaded.items()}
    assert checkpoint.keys(DATA / f"{name}.pt") == expected


@pytest.mark.parametrize("suffix", [*WRITTEN, ".pt"])
def test_keys_read_no_array(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    state = {"a": np.zeros(4 << 20), "b": np.ones(3)}
    write_arrays(path, state) if suffix == ".pt" else checkpoint.save(path, state)
    checkpoint.keys(path)
    tracemalloc.start()
    keys = checkpoint.keys(path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    assert keys == {"a": ((4 << 20,), "float64"), "b": ((3,), "float64")}


@pytest.mark.parametrize("suffix", [".npz", ".pt"])
def test_load_takes_each_array_once(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    state = {"a": np.ones((1 << 10, 4 << 10)), "b": np.ones(5)}
    write_arrays(path, state) if suffix == ".pt" else np.savez(path, a=state["a"].T, b=state["b"])
    checkpoint.keys(path)
    tracemalloc.start()
    checkpoint.load(path)
    assert tracemalloc.get_traced_memory()[1] < state["a"].nbytes + (4 << 20)
    tracemalloc.stop()


@NEEDS_SAFETENSORS
def test_keys_name_dtypes_that_are_not_read(tmp_path):
    header = {"a": {"dtype": "F8_E5M2", "shape": [2], "data_offsets": [0, 2]}}
    data = json.dumps(header).encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(data)) + data + bytes(2))
    assert checkpoint.keys(tmp_path / "x.safetensors") == {"a": ((2,), "F8_E5M2")}


def test_keys_need_no_ml_dtypes(monkeypatch):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    assert checkpoint.keys(DATA / "dtypes.pt")["bfloat16"] == ((6,), "bfloat16")


# Prefixes


@pytest.fixture(params=[*WRITTEN, ".pt"])
def nested(request, tmp_path):
    names = ["model.layer.1.weight", "model.layer.10.weight", "model.norm.bias", "model.scale"]
    names += ["ema_weight", "optimizer.0.moment"]
    path = tmp_path / f"x{request.param}"
    state = {name: np.full(2, n, "f4") for n, name in enumerate(names)}
    write_arrays(path, state) if request.param == ".pt" else checkpoint.save(path, state)
    return path


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        ("model.layer.1.", {"weight": 0}),
        ("model.layer.1", {"weight": 0}),
        ("model.layer.10", {"weight": 1}),
        ("model.layer", {"1.weight": 0, "10.weight": 1}),
        ("ema_", {"weight": 4}),
        ("model.scale", {"": 3}),
    ],
)
def test_a_prefix_with_its_dot_or_without(nested, prefix, expected):
    loaded = checkpoint.load(nested, prefix=prefix)
    assert {name: array[0] for name, array in loaded.items()} == expected


@pytest.mark.parametrize(
    ("prefix", "there"),
    [
        ("bert.", "'ema_weight', 'model.', 'optimizer.'"),
        ("model.encoder.layer.1.", "'model.layer.', 'model.norm.', 'model.scale'"),
        ("model.layer.2", "'model.layer.1.', 'model.layer.10.'"),
    ],
)
def test_a_wrong_prefix_lists_those_that_exist(nested, prefix, there):
    with pytest.raises(checkpoint.CheckpointError) as raised:
        checkpoint.load(nested, prefix=prefix)
    message = f"no tensor's name begins with {prefix!r}: there are "
    assert message in str(raised.value)
    listed = str(raised.value).partition(message)[2]
    assert sorted(listed.split(", ")) == there.split(", ")


def test_a_wrong_prefix_lists_few_of_many(tmp_path):
    checkpoint.save(tmp_path / "x.npz", {f"{n:03}{'a' * 100}.x": 0 for n in range(500)})
    with pytest.raises(checkpoint.CheckpointError, match=r"and 488 more$") as raised:
        checkpoint.load(tmp_path / "x.npz", prefix="b")
    assert len(str(raised.value)) < 1500
    checkpoint.save(tmp_path / "x.npz", {})
    with pytest.raises(checkpoint.CheckpointError, match="the file has no tensors"):
        checkpoint.load(tmp_path / "x.npz", prefix="b")


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


@NEEDS_SAFETENSORS
def test_unsuitable_files(tmp_path):
    with pytest.raises(checkpoint.CheckpointError, match=r"a \.pt file is not written"):
        checkpoint.save(tmp_path / "x.pt", {})
    with pytest.raises(checkpoint.CheckpointError, match=r"a \.h5 file is not read"):
        checkpoint.load(tmp_path / "x.h5")
    with pytest.raises(checkpoint.CheckpointError, match="a file without a suffix is not read"):
        checkpoint.load(tmp_path / "x")
    with pytest.raises(checkpoint.CheckpointError, match="safetensors cannot hold"):
        checkpoint.save(tmp_path / "x.safetensors", {"a": np.zeros(2, "c16")})
    for suffix in (".pt", ".npz", ".safetensors"):
        with pytest.raises(FileNotFoundError):
            checkpoint.load(tmp_path / f"missing{suffix}")
    assert issubclass(checkpoint.CheckpointError, ValueError)


@pytest.mark.parametrize("call", [checkpoint.load, checkpoint.keys])
@pytest.mark.parametrize("suffix", ["", ".pt", ".npz", ".safetensors"])
def test_a_folder_is_named_as_one(tmp_path, call, suffix):
    folder = tmp_path / f"run{suffix}"
    folder.mkdir()
    with pytest.raises(
        checkpoint.CheckpointError, match="path must be a file, got a folder"
    ) as raised:
        call(folder)
    assert str(folder) in str(raised.value)
    with pytest.raises(checkpoint.CheckpointError, match="path must be a file, got a folder"):
        checkpoint.save(folder, {})


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("suffix", [".pt", ".npz", ".safetensors"])
def test_what_is_no_ordinary_file_is_refused_and_nothing_waits(tmp_path, suffix):
    pipe = tmp_path / f"pipe{suffix}"
    os.mkfifo(pipe)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / f"socket{suffix}"))
    (tmp_path / f"device{suffix}").symlink_to("/dev/zero")
    kinds = {"pipe": "a named pipe", "socket": "a socket", "device": "a device"}
    for name, kind in kinds.items():
        path = tmp_path / f"{name}{suffix}"
        for call in (checkpoint.load, checkpoint.keys, lambda path: checkpoint.save(path, {})):
            with pytest.raises(
                checkpoint.CheckpointError, match=f"path must be a file, got {kind}"
            ):
                call(path)
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_wrong_arguments_are_named(tmp_path):
    for call in (checkpoint.load, checkpoint.keys, lambda path: checkpoint.save(path, {})):
        with pytest.raises(TypeError, match="path must be the name of a file, got 3"):
            call(3)
    with pytest.raises(TypeError, match="prefix must be a string, got 3"):
        checkpoint.load(tmp_path / "x.npz", prefix=3)
    with pytest.raises(TypeError, match="state_dict must be a dict of arrays, got LayerNorm"):
        checkpoint.save(tmp_path / "x.npz", cnorm.LayerNorm(3))


# Nested dicts


def training_state():
    net = cnorm.Sequential(cnorm.BatchNorm1d(4), cnorm.LayerNorm(4))
    shapes = [array.shape for array in net.parameters()]
    return {
        "model": net.state_dict(),
        "optimizer": {
            "state": {
                n: {"step": 7, "exp_avg": np.full(shape, n, np.float32)}
                for n, shape in enumerate(shapes)
            },
            "param_groups": [{"lr": 0.1, "betas": (0.9, 0.999), "params": [0, 1, 2, 3]}],
        },
        "epoch": 3,
        "best": np.float16(0.5),
        "nothing": {},
    }


@pytest.mark.parametrize("suffix", WRITTEN)
def test_nested_dicts_make_a_round_trip(tmp_path, suffix):
    path, again = tmp_path / f"x{suffix}", tmp_path / f"y{suffix}"
    state = training_state()
    checkpoint.save(path, state)
    loaded = checkpoint.load(path)
    expected = {f"model.{name}": array for name, array in state["model"].items()}
    for n, entries in state["optimizer"]["state"].items():
        for key, value in entries.items():
            expected[f"optimizer.state.{n}.{key}"] = np.asarray(value)
    expected["optimizer.param_groups.0.lr"] = np.asarray(0.1)
    expected["optimizer.param_groups.0.betas"] = np.asarray([0.9, 0.999])
    expected["optimizer.param_groups.0.params"] = np.arange(4)
    expected["epoch"], expected["best"] = np.asarray(3), np.asarray(np.float16(0.5))
    assert loaded.keys() == expected.keys()
    for name, array in expected.items():
        assert loaded[name].dtype == array.dtype
        assert loaded[name].shape == array.shape
        assert bits(loaded[name]) == bits(array)
    parts = {name: checkpoint.load(path, prefix=name) for name in ("model", "optimizer")}
    checkpoint.save(again, parts | {"epoch": loaded["epoch"], "best": loaded["best"]})
    back = checkpoint.load(again)
    assert back.keys() == loaded.keys()
    assert all(bits(back[name]) == bits(array) for name, array in loaded.items())
    net = cnorm.Sequential(cnorm.BatchNorm1d(4), cnorm.LayerNorm(4))
    net.load_state_dict(parts["model"])


@pytest.mark.parametrize("suffix", WRITTEN)
def test_nested_dicts_that_cannot_be_saved(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    cycle = {}
    cycle["again"] = cycle
    cases = [
        ({"a": {"b": 1}, "a.b": 2}, checkpoint.CheckpointError, r"would both be named 'a\.b'"),
        ({"a": cycle}, checkpoint.CheckpointError, "nested more than 32 deep"),
        ({"a": {(1, 2): 3}}, TypeError, r"names must be strings, got \(1, 2\)"),
        ({"a": {"note": "best"}}, TypeError, r"'a\.note' must be an array of numbers"),
        ({"a": [{"b": None}]}, TypeError, r"'a\.0\.b' must be an array of numbers"),
    ]
    for state, error, match in cases:
        with pytest.raises(error, match=match):
            checkpoint.save(path, state)
    assert os.listdir(tmp_path) == []


@NEEDS_SAFETENSORS
@pytest.mark.parametrize("dtype", [np.complex128, np.longdouble])
def test_what_only_npz_can_hold(tmp_path, dtype):
    state = {"model": {"a": np.ones(2, dtype)}}
    name = np.dtype(dtype).name
    with pytest.raises(
        checkpoint.CheckpointError, match=rf"cannot hold 'model\.a'.* {name}.*\.npz"
    ):
        checkpoint.save(tmp_path / "x.safetensors", state)
    checkpoint.save(tmp_path / "x.npz", state)
    assert checkpoint.load(tmp_path / "x.npz")["model.a"].dtype == dtype
    with pytest.raises(checkpoint.CheckpointError, match=r"a \.pt file is not written"):
        checkpoint.save(tmp_path / "x.pt", state)
    with pytest.raises(checkpoint.CheckpointError, match="cannot hold the name"):
        checkpoint.save(tmp_path / "y.npz", {"a\0b": 1})


class Adam:
    """An optimizer with state, in a few lines."""

    def __init__(self, net):
        self.parameters = list(net.parameters())
        self.step_count = 0
        self.moments = [[np.zeros_like(p), np.zeros_like(p)] for p in self.parameters]

    def step(self, gradients):
        self.step_count += 1
        for p, g, (m, v) in zip(self.parameters, gradients, self.moments, strict=True):
            m += 0.1 * (g - m)
            v += 0.001 * (g * g - v)
            scale = 0.01 / (1 - 0.9**self.step_count)
            p -= scale * m / (np.sqrt(v / (1 - 0.999**self.step_count)) + 1e-8)

    def state_dict(self):
        return {"step": self.step_count, "moments": dict(enumerate(map(self._named, self.moments)))}

    @staticmethod
    def _named(pair):
        return dict(zip("mv", pair, strict=True))

    def load_state_dict(self, state):
        self.step_count = int(state["step"])
        for n, pair in enumerate(self.moments):
            for key, array in zip("mv", pair, strict=True):
                array[:] = state[f"moments.{n}.{key}"]


@pytest.mark.parametrize("suffix", WRITTEN)
@pytest.mark.parametrize("momentum", [0.1, None])
def test_a_resumed_training_run_has_the_same_bits(tmp_path, suffix, momentum):
    def start():
        net = cnorm.Sequential(
            cnorm.BatchNorm2d(6, momentum=momentum), cnorm.GroupNorm(2, 6), cnorm.LayerNorm(5)
        )
        return net, Adam(net)

    def train(net, adam, batches):
        for x, target in batches:
            y = net(x)
            net.zero_grad()
            net.backward((y - target) / y.size)
            adam.step([p.grad for p in net.parameters()])

    rng = np.random.default_rng(0)
    batches = rng.normal(3, 2, (12, 2, 4, 6, 5, 5)).astype(np.float32)
    net, adam = start()
    train(net, adam, batches)

    half, half_adam = start()
    train(half, half_adam, batches[:5])
    state = {"model": half.state_dict(), "optimizer": half_adam.state_dict()}
    checkpoint.save(tmp_path / f"run{suffix}", state)
    resumed, resumed_adam = start()
    resumed.load_state_dict(checkpoint.load(tmp_path / f"run{suffix}", prefix="model"))
    resumed_adam.load_state_dict(checkpoint.load(tmp_path / f"run{suffix}", prefix="optimizer"))
    train(resumed, resumed_adam, batches[5:])

    for name, array in net.state_dict().items():
        assert bits(resumed.state_dict()[name]) == bits(array), name
    for mine, theirs in zip(adam.moments, resumed_adam.moments, strict=True):
        assert [bits(array) for array in mine] == [bits(array) for array in theirs]
    assert any(bits(a) != bits(b) for a, b in zip(net.parameters(), half.parameters(), strict=True))


# Keys that do not fit


def test_dozens_of_unexpected_keys_suggest_a_prefix(tmp_path):
    norm = cnorm.BatchNorm2d(3)
    whole = {f"model.layer{n}.{k}": v for n in range(5) for k, v in norm.state_dict().items()}
    with pytest.raises(RuntimeError, match="Unexpected key") as raised:
        norm.load_state_dict(whole)
    hint = "checkpoint.load(path, prefix='model.layer0.') keeps the names that fit"
    assert hint in str(raised.value)
    checkpoint.save(tmp_path / "x.npz", whole)
    norm.load_state_dict(checkpoint.load(tmp_path / "x.npz", prefix="model.layer0."))
    others = {f"{part}.{n}": np.zeros(2) for part in ("encoder", "decoder") for n in range(20)}
    with pytest.raises(RuntimeError) as raised:
        norm.load_state_dict(norm.state_dict() | others)
    hint = "checkpoint.load(path, prefix=...) keeps the names below one of 'encoder.', 'decoder.'"
    assert hint in str(raised.value)
    with pytest.raises(RuntimeError) as raised:
        norm.load_state_dict(norm.state_dict() | {"a.b": np.zeros(2)})
    assert "prefix" not in str(raised.value)

"""Damaged, mislabelled and hostile files: a clear error, soon, in bounded memory, nothing run."""

from __future__ import annotations

import builtins
import io
import json
import os
import pickle
import struct
import time
import tracemalloc
import zipfile
import zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from cnorm import checkpoint
from cnorm.checkpoint import CheckpointError, UnsafeCheckpointError

pytest.importorskip("safetensors")
import safetensors.numpy
from torch_files import DICT, REBUILD, tensor, tensor_pickle, text, write_arrays, write_torch

DATA = Path(__file__).parent / "data"
SUFFIXES = [".safetensors", ".npz", ".pt"]
SECONDS, MEGABYTES = 1.0, 32


@contextmanager
def refused(path, match, error=CheckpointError):
    """The block raises an error with the file's name, within the limits."""
    tracemalloc.start()
    start = time.process_time()
    try:
        with pytest.raises(error, match=match) as raised:
            yield
        assert time.process_time() - start < SECONDS
        assert tracemalloc.get_traced_memory()[1] < MEGABYTES << 20
        assert str(path) in str(raised.value)
    finally:
        tracemalloc.stop()


def write_valid(path, size=20_000):
    """A valid file of about 250 kB."""
    arrays = {f"layer.{i}.weight": np.random.default_rng(i).normal(size=size) for i in range(3)}
    arrays["count"] = np.array(7)
    writers = {".pt": write_arrays, ".npz": lambda path, arrays: np.savez(path, **arrays)}
    write = writers.get(path.suffix, lambda path, arrays: safetensors.numpy.save_file(arrays, path))
    write(path, arrays)


def write_safetensors(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


# Any format


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_cut_at_every_1000th_byte(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    write_valid(path)
    whole = path.read_bytes()
    cuts = [*range(0, len(whole), 1000), len(whole) - 1]
    assert len(cuts) > 400
    for cut in cuts:
        path.write_bytes(whole[:cut])
        start = time.process_time()
        with pytest.raises(CheckpointError) as raised:
            checkpoint.load(path)
        assert time.process_time() - start < SECONDS
        assert str(path) in str(raised.value)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_changed_bytes_raise_nothing_else(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    write_valid(path, size=20)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    failed = 0
    for _ in range(400):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), rng.integers(1, 4)):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            checkpoint.load(path)
        except CheckpointError:
            failed += 1
    assert failed > 10


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "an empty file"),
        (b"\x80\x02}.", "legacy"),
        (b"\x93NUMPY\x01\x00", "a single NumPy array"),
        (b"\x89HDF\r\n\x1a\n" + bytes(64), "an HDF5 file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (b"not a checkpoint", "a file beginning with b'not a ch'"),
    ],
)
def test_other_kinds_are_named(tmp_path, suffix, content, kind):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    with refused(path, f"expected .*{kind}"):
        checkpoint.load(path)


@pytest.mark.parametrize("real", SUFFIXES)
@pytest.mark.parametrize("label", SUFFIXES)
def test_mislabelled(tmp_path, real, label):
    if real == label:
        return
    path = tmp_path / f"x{real}"
    write_valid(path, size=10)
    path = path.rename(tmp_path / f"y{label}")
    with refused(path, "expected"):
        checkpoint.load(path)


# Pickles


class Call:
    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (os.mkdir, ("PATH",)),
        (builtins.eval, ("__import__('os').mkdir('PATH')",)),
        (builtins.getattr, ("x", "upper")),
        (builtins.open, ("PATH", "w")),
        (pickle.loads, (b"",)),
        (zlib.decompress, (zlib.compress(bytes(1 << 20)),)),
        (bytearray, (1 << 40,)),
        (np.zeros, (1 << 40,)),
    ],
)
def test_code_is_refused_by_name_and_not_run(tmp_path, protocol, function, arguments):
    trace = tmp_path / "trace"
    arguments = [a.replace("PATH", str(trace)) if isinstance(a, str) else a for a in arguments]
    path = tmp_path / "x.pt"
    data = pickle.dumps({"weight": Call(function, *arguments)}, protocol)
    write_torch(path, data)
    with refused(
        path, function.__name__ if protocol >= 2 else "opcode|names", UnsafeCheckpointError
    ):
        checkpoint.load(path)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("model", r"torch\.nn\.modules\.container\.Sequential.*state_dict"),
        ("float8", r"torch\.float8_e4m3fn"),
        ("conjugated", "resolve_conj"),
        ("tensor", "expected a state dict, got a bare tensor"),
        ("legacy", r"legacy \.pt format: save it again"),
        ("torchscript", "TorchScript"),
    ],
)
def test_other_files_of_torch_are_refused_by_name(name, match):
    path = DATA / f"refused_{name}.pt"
    with refused(path, match):
        checkpoint.load(path)
    with refused(path, match):
        checkpoint.keys(path)


def test_the_tensor_pickle_of_these_tests_is_valid(tmp_path):
    write_torch(tmp_path / "x.pt", tensor_pickle(), _0=np.ones(2, "f4").tobytes())
    assert checkpoint.load(tmp_path / "x.pt")["a"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"offset": 1}, "beyond its storage"),
        ({"offset": -1}, "a way that torch does not"),
        ({"shape": (3,)}, "beyond its storage"),
        ({"strides": (2,)}, "beyond its storage"),
        ({"strides": (-1,)}, "a way that torch does not"),
        ({"shape": (2, 2)}, "a way that torch does not"),
        ({"shape": (1 << 62, 1 << 62), "strides": (0, 0)}, "damaged"),
        ({"shape": (0, 1 << 80), "strides": (1, 1)}, "a way that torch does not"),
        ({"shape": (1,) * 65, "strides": (1,) * 65}, "a way that torch does not"),
        ({"shape": (0, 1 << 62), "strides": (1, 1)}, "damaged"),
        ({"count": 1 << 60}, "needs .* bytes, got 8"),
        ({"count": 1}, "needs 4 bytes, got 8"),
        ({"count": -2}, "a way that torch does not"),
        ({"kind": "DoubleStorage"}, "needs 16 bytes, got 8"),
        ({"kind": "QInt8Storage"}, r"torch\.QInt8Storage"),
        ({"key": "../data.pkl"}, "no item"),
        ({"key": "9"}, "no item"),
    ],
)
def test_tensors_that_do_not_fit_their_storage(tmp_path, change, match):
    path = tmp_path / "x.pt"
    write_torch(path, tensor_pickle(**change), _0=bytes(8))
    with refused(path, match):
        checkpoint.load(path)


def test_an_expanded_tensor_takes_no_memory(tmp_path):
    path = tmp_path / "x.pt"
    write_torch(path, tensor_pickle(shape=(1 << 40,), strides=(0,)), _0=bytes(8))
    tracemalloc.start()
    assert checkpoint.load(path)["a"].shape == (1 << 40,)
    assert tracemalloc.get_traced_memory()[1] < MEGABYTES << 20
    tracemalloc.stop()


def laughs(levels):
    """Lists that hold the next list ten times: 10**levels items in a few hundred bytes."""
    data = b"\x80\x02]q\x00"
    for level in range(levels):
        data += b"](" + b"h" + bytes([level]) + b"".join(b"h" + bytes([level]) for _ in range(9))
        data += b"eq" + bytes([level + 1])
    return data + b"."


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (laughs(20), "no end"),
        (b"\x80\x02]q\x00h\x00a.", "no end|nested"),
        (b"\x80\x02" + b"]" * 5000 + b"a" * 4999 + b".", "nested"),
        (b"\x80\x02" + b")" + b"\x85" * 20_000 + b".", "nested"),
        (b"\x80\x02}r\xff\xff\xff\x7f.", "the pickle's memo has no place 2147483647"),
        (b"\x80\x02}r\x05\x00\x00\x00h\x04s.", "the pickle's memo has nothing in place 4"),
        (b"\x80\x02}(\x8a\x09" + b"\x7f" * 9 + b"Nu.", "dict key of more than 64 bits"),
        (b"\x80\x02}(K\x01NX\x01\0\0\x001Nu.", "two items named '1'"),
        (b"\x80\x02" + REBUILD + b"(" + b"N" * 17 + b"tR.", "with 17 arguments"),
        (b"\x80\x02X\xff\xff\xff\x7fabc.", "damaged"),
        (b"\x80\x05\x8d\xff\xff\xff\xff\xff\xff\xff\x0fabc.", "damaged"),
        (b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\x0fabc.", "opcode BYTEARRAY8"),
        (b"\x80\x02\x8b\xff\xff\xff\x7f1.", "opcode LONG4"),
        (b"L" + b"9" * 1_000_000 + b"L\n.", "damaged|LONG"),
        (b"\x80\x02}\x8b\x00\x00\x10\x00" + b"\x7f" * (1 << 20) + b"]s.", "opcode LONG4"),
        (b"\x80\x02h\x07.", "damaged"),
        (b"\x80\x02.", "damaged"),
        (b"\x80\x02tR.", "damaged"),
        (b"", "damaged"),
        (b"\xff", "damaged"),
        (b"\x80\x02K\x01.", "expected a state dict, got a bare int"),
        (b"\x80\x02K\x01K\x02a.", "appends to a int"),
        (b"\x80\x02K\x01K\x02K\x03s.", "sets an item of a int"),
        (b"\x80\x02})K\x01s.", "dict key of type tuple"),
        (b"\x80\x02}(K\x01u.", "damaged"),
        (b"\x80\x02" + DICT + b"}X\x07\0\0\0__len__K\x01sb.", None),
        (b"\x80\x02" + REBUILD + b"}X\x08\0\0\0__code__K\x01sb.", "sets attributes of a Function"),
        (b"\x80\x02" + DICT + b"N}X\x05\0\0\0itemsK\x01s\x86b.", "sets attributes"),
        (b"\x80\x02ctorch\nfloat32\n)R.", "calls a Dtype"),
        (b"\x80\x02" + REBUILD + b")R.", "damaged"),
        (b"\x80\x02" + REBUILD + b")\x81.", "opcode NEWOBJ"),
        (b"(ios\nsystem\n.", "opcode INST"),
        (b"\x80\x02\x82\x01.", "opcode EXT1"),
        (b"\x80\x02}X\x03\0\0\0a.bX\x01\0\0\0xs.", None),
    ],
)
def test_hostile_pickles(tmp_path, data, match):
    """Where nothing matches, the oddity is harmless: no tensor is found."""
    path = tmp_path / "x.pt"
    write_torch(path, data)
    if match is None:
        tracemalloc.start()
        assert checkpoint.load(path) == {}
        assert tracemalloc.get_traced_memory()[1] < MEGABYTES << 20
        tracemalloc.stop()
        return
    with refused(path, match):
        checkpoint.load(path)


def test_two_tensors_of_one_name(tmp_path):
    path = tmp_path / "x.pt"
    nested = b"}" + text("b") + tensor() + b"s"
    items = text("a") + nested + text("a.b") + tensor()
    write_torch(path, b"\x80\x02}(" + items + b"u.", _0=bytes(8))
    with refused(path, r"two tensors would both be named 'a\.b'"):
        checkpoint.load(path)


# Zip archives


@pytest.mark.parametrize("name", ["x/data.pkl", "a.npy"])
def test_zip_bomb(tmp_path, name):
    path = tmp_path / ("x.npz" if name.endswith("npy") else "x.pt")
    head = io.BytesIO()
    count = 1 << 27
    np.lib.format.write_array_header_1_0(
        head, {"descr": "|u1", "fortran_order": False, "shape": (count,)}
    )
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, head.getvalue() + bytes(count))
    assert path.stat().st_size < count / 900
    with refused(path, "zip bomb", UnsafeCheckpointError):
        checkpoint.load(path)


@pytest.mark.parametrize("claimed", [1 << 20, (1 << 32) - 2])
def test_zip_entry_that_is_larger_than_it_claims(tmp_path, claimed):
    """Sizes in the directory are only claims: what is read stops there."""
    path = tmp_path / "x.npz"
    size = 8 << 20
    np.savez_compressed(path, a=np.zeros(size, "u1"))
    data = bytearray(path.read_bytes())
    directory = data.rindex(b"PK\x01\x02")
    struct.pack_into("<I", data, directory + 24, claimed)
    path.write_bytes(data)
    with refused(path, "needs 8388608 bytes, got|zip bomb"):
        checkpoint.load(path)


@pytest.mark.parametrize("suffix", [".npz", ".pt"])
def test_a_stored_entry_that_claims_a_larger_size(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    count = 8 << 20
    if suffix == ".npz":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.npy", npy((count,), data=bytes(8)))
    else:
        write_torch(path, tensor_pickle(shape=(count // 2,), count=count), _0=bytes(8))
    data = bytearray(path.read_bytes())
    directory = data.rindex(b"PK\x01\x02")  # that of the last entry, the data
    claimed = 4 * count if suffix == ".pt" else 8 * count + 128
    struct.pack_into("<I", data, directory + 24, claimed)
    path.write_bytes(data)
    with refused(path, "stored, with two sizes|zip bomb"):
        checkpoint.load(path)


@pytest.mark.parametrize("suffix", [".npz", ".pt"])
def test_overlapping_zip_entries(tmp_path, suffix):
    """Many names for one run of bytes, the way a zip bomb without compression works."""
    path = tmp_path / f"x{suffix}"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl" if suffix == ".pt" else "a.npy", bytes(1 << 20))
    data = path.read_bytes()
    start = data.rindex(b"PK\x01\x02")
    end = data.rindex(b"PK\x05\x06")
    entry, copies = data[start:end], 1000
    tail = bytearray(data[end:])
    struct.pack_into("<HHI", tail, 8, copies, copies, len(entry) * copies)
    path.write_bytes(data[:start] + entry * copies + tail)
    with refused(path, "zip bomb", UnsafeCheckpointError):
        checkpoint.load(path)


def test_a_pickle_of_absurd_size(tmp_path):
    path = tmp_path / "x.pt"
    write_torch(path, b"\x80\x02" + b"]" * (40 << 20), zipfile.ZIP_DEFLATED)
    with refused(path, "compressed", UnsafeCheckpointError):
        checkpoint.load(path)
    write_torch(path, b"\x80\x02" + b"]" * (40 << 20))
    with refused(path, "pickle of .* bytes", UnsafeCheckpointError):
        checkpoint.load(path)


def test_encrypted_and_unknown_compression(tmp_path):
    for offset, value, match in ((8, 1, "damaged"), (10, 99, "number 99"), (10, 14, "number 14")):
        path = tmp_path / "x.npz"
        np.savez(path, a=np.zeros(3))
        data = bytearray(path.read_bytes())
        struct.pack_into("<H", data, data.rindex(b"PK\x01\x02") + offset, value)
        path.write_bytes(data)
        with refused(path, match):
            checkpoint.load(path)


def npy(shape, descr="<f8", data=b""):
    head = io.BytesIO()
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(head, header)
    return head.getvalue() + data


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (npy((1 << 50,)), "needs .* bytes, got 0"),
        (npy((1 << 40, 1 << 40)), "needs .* bytes, got 0"),
        (npy((2,), data=bytes(17)), "needs 16 bytes, got 17"),
        (npy((-2, -1), data=bytes(16)), "needs 16 bytes"),
        (npy((1,), "|O", b"cos\nsystem\n."), "pickled objects"),
        (npy((1,), "<U4", bytes(16)), "not numbers"),
        (npy((1,), [("a", "<f8")], bytes(8)), "not numbers"),
        (b"\x93NUMPY\x03\x00" + npy((1,))[8:], "version"),
        (b"\x93NUMPY\x01\x00\x04\x00((((", "damaged"),
        (b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535, "damaged"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\x7f" + b"(" * 100, "damaged"),
        (b"PK", "damaged"),
        (b"", "damaged"),
    ],
)
def test_hostile_npy(tmp_path, content, match):
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", content)
    with refused(path, match):
        checkpoint.load(path)


def test_a_changed_byte_fails_the_checksum(tmp_path):
    for suffix in (".npz", ".pt"):
        path = tmp_path / f"x{suffix}"
        value = np.full(1000, 1.2345)
        np.savez(path, a=value) if suffix == ".npz" else write_arrays(path, {"a": value})
        data = bytearray(path.read_bytes())
        data[data.index(value[:1].tobytes()) + 800] ^= 1
        path.write_bytes(data)
        with refused(path, "CRC"):
            checkpoint.load(path)


# safetensors


def entry(start, end, shape=None, dtype="F32"):
    shape = [(end - start) // 4] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    ("header", "data"),
    [
        ({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)),
        ({"a": entry(0, 8), "b": entry(0, 8)}, bytes(8)),
        ({"a": entry(0, 4), "b": entry(8, 12)}, bytes(12)),
        ({"a": entry(4, 8)}, bytes(8)),
        ({"a": entry(8, 0)}, bytes(8)),
        ({"a": entry(0, 8)}, bytes(4)),
        ({"a": entry(0, 8)}, bytes(12)),
        ({"a": entry(0, 8, [3])}, bytes(8)),
        ({"a": entry(0, 8, [1 << 62, 1 << 62])}, bytes(8)),
        ({"a": entry(0, 1 << 60)}, bytes(8)),
        ({"a": entry(0, 8, [-2])}, bytes(8)),
        ({"a": entry(0, 8, dtype="F99")}, bytes(8)),
        ({"a": {"dtype": "F32"}}, bytes(8)),
        ({"a": 1}, b""),
        (b"[]", b""),
        (b"{", b""),
        (b"{" + b'"a":{' * 100_000, b""),
        (b"\xff{}", b""),
        (b'{"a":' + json.dumps(entry(0, 8)).encode() + b',"a":1}', bytes(8)),
    ],
)
def test_hostile_safetensors_headers(tmp_path, header, data):
    path = tmp_path / "x.safetensors"
    write_safetensors(path, header, data)
    with refused(path, "not a whole safetensors file|expected a safetensors file"):
        checkpoint.load(path)


@pytest.mark.parametrize("size", [3, 1000, 100_000_001, 1 << 40, 1 << 62, (1 << 64) - 1])
def test_absurd_header_sizes(tmp_path, size):
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", size) + b"{}" + bytes(100))
    with refused(path, "not a whole safetensors file"):
        checkpoint.load(path)


def test_a_dtype_that_is_not_read(tmp_path):
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {"a": entry(0, 2, dtype="F8_E5M2", shape=[2])}, bytes(2))
    with refused(path, "tensor 'a' is of dtype F8_E5M2"):
        checkpoint.load(path)

"""torch's archives, written by hand: their pickles opcode by opcode, valid ones and others."""

from __future__ import annotations

import struct
import zipfile

import numpy as np

DICT = b"ccollections\nOrderedDict\n)R"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
STORAGES = {"f4": "Float", "f8": "Double", "i8": "Long", "i4": "Int", "u1": "Byte"}


def text(string):
    data = string if isinstance(string, bytes) else string.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(n):
    if 0 <= n < 256:
        return b"K" + bytes([n])
    data = n.to_bytes(n.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def numbers(values):
    return b"(" + b"".join(map(number, values)) + b"t"


def tensor(offset=0, shape=(2,), strides=(1,), count=2, kind="FloatStorage", key="0"):
    """What describes a tensor, in the middle of a pickle."""
    storage = b"(" + text("storage") + b"ctorch\n" + kind.encode() + b"\n"
    storage += text(key) + text("cpu") + number(count) + b"tQ"
    return (
        REBUILD + b"(" + storage + number(offset) + numbers(shape) + numbers(strides) + b"\x89)tR"
    )


def tensor_pickle(**changes):
    """The pickle of a dict with one tensor, named a."""
    return b"\x80\x02}" + text("a") + tensor(**changes) + b"s."


def write_torch(path, data, compression=zipfile.ZIP_STORED, byteorder=None, **files):
    """An archive around a pickle; `_0` is the content of the storage 0."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("x/data.pkl", data)
        if byteorder is not None:
            archive.writestr("x/byteorder", byteorder)
        for name, content in files.items():
            archive.writestr(f"x/data/{name.removeprefix('_')}", content)


def write_arrays(path, arrays):
    """What torch would write for a flat dict of arrays."""
    items, files = b"", {}
    for key, (name, array) in enumerate(arrays.items()):
        array = np.ascontiguousarray(array)
        strides = [step // array.itemsize for step in array.strides]
        kind = STORAGES[array.dtype.str[1:]] + "Storage"
        items += text(name)
        items += tensor(0, array.shape, strides, array.size, kind, str(key))
        files[f"_{key}"] = array.tobytes()
    write_torch(path, b"\x80\x02" + DICT + b"(" + items + b"u.", **files)

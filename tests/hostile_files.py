"""A generator of checkpoints that cost as much as their bytes can: seeded, of many shapes.

``python tests/hostile_files.py 500 7`` loads 500 of each kind, of the seeds from 7 on, each in a
process of its own, and prints a line of JSON for each: kind, seed, bytes, seconds of CPU, megabytes
beyond the file and the result, outcome. Of the costliest that are known it loads six where it is
asked for fewer than 20 of each kind, and all elsewhere.
"""

from __future__ import annotations

import json
import os
import random
import struct
import sys
import time
import traceback
import zipfile
import zlib
from pathlib import Path

import numpy as np
from torch_files import REBUILD, numbers, tensor, tensor_pickle, text, write_torch

MEGABYTES = 8  # the largest pickle, header or directory

# Pickles. What the memo holds when their bodies begin, and what a body is made of:

PRELUDE = [
    b"ccollections\nOrderedDict\n",
    b"X\x01\0\0\0k",
    tensor(),
    REBUILD,
    # the arguments of a tensor: a storage, an offset, 64 sizes and 64 strides
    tensor(shape=(1,) * 64, strides=(1,) * 64).removeprefix(REBUILD).removesuffix(b"R"),
    b"}" + text("_metadata") + b"}" + text("a.b") + b"}s" + b"s",
    b"ctorch\ndevice\n",
    b"(" + b"N" * 100_000 + b"t",
    b"(" + b"N" * 16 + b"t",
    numbers([1] * 16),
    b"](" + b"]" * 1000 + b"e",
]
ITEMS = [b"}", b"]", b")", b"N", b"\x88", b"K\x01", b"\x8a\x08" + b"\x7f" * 8, b"G" + bytes(8)]
ITEMS += [b"h%c" % n for n in range(len(PRELUDE))]
ITEMS += [b"h\x00)R", b"h\x00)Rh\x01h\x02s", b"h\x00)Rh\x05b", b"h\x03h\x04R", b"h\x06h\x08R"]
ITEMS += [b"h\x06h\x07\x85R", b"}h\x01h\x02s", b"}h\x01Ns", b"]h\x02a", b"]Na"]
ITEMS += [
    b"N\x85",
    b"NN\x86",
    b"NNN\x87",
    b"(t",
    b"((((tttt",
    b"](h\x02h\x02h\x02e",
    b"ctorch\nSize\n",
]
ITEMS += [b"]" * 30 + b"a" * 29, b"N" + b"\x85" * 30, b"h\x02q\x20", b"]r\xff\0\0\0", b"\x8c\x01a"]
ITEMS += [text("\U0001f600"), text("x" * 100), text("\U0001f600" * 400)]


def keyed(rng, n):
    """A key: short, long, of wide characters, or an integer."""
    kinds = [f"{n}", f"{n}" + "k" * rng.choice([30, 500, 1900]), f"{n}" + "\U0001f600" * 480]
    return rng.choice(
        [*map(text, kinds), b"\x8a\x08" + struct.pack("<q", n << rng.choice([0, 30]))]
    )


def pickled(rng):
    size = int(2 ** rng.uniform(12, 23))
    head = b"\x80\x02" + b"".join(item + b"q%c" % n for n, item in enumerate(PRELUDE))
    chosen = rng.choices(ITEMS, k=rng.choice([1, 1, 2, 4]))
    pieces, length, n = [], 0, 0
    as_dict = rng.random() < 0.4
    fresh = rng.random() < 0.3 and size < 1 << 20
    unit = b"".join(chosen)
    while length < size and n < 1_200_000:
        if as_dict:
            unit = keyed(rng, n) + rng.choice(chosen)
        elif fresh:
            unit = rng.choice(ITEMS)
        pieces.append(unit)
        length += len(unit)
        n += 1
    body = (b"}(%bu" if as_dict else b"](%be") % b"".join(pieces)
    index = len(PRELUDE)
    for _ in range(
        rng.choice([0, 0, 1, 1, 3, 3, 10, 31, 40])
    ):  # lists of references to the level below
        body += b"r" + struct.pack("<I", index)
        again = b"j" + struct.pack("<I", index)
        wide = rng.choice([1, 2, 10, 1000])
        if rng.random() < 0.5:
            body += b"}(" + b"".join(keyed(rng, m) + again for m in range(min(wide, 10))) + b"u"
        else:
            body += b"](" + again * wide + b"e"
        index += 1
    data = bytearray(head + body + b".")
    if rng.random() < 0.1:
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
    if rng.random() < 0.05:
        del data[rng.randrange(len(data)) :]
    return bytes(data[: MEGABYTES << 20])


def torch_file(path, rng):
    order = rng.choice([None, b"little", b"big"] * 9 + [b"little" * 9])
    write_torch(path, pickled(rng), byteorder=order, _0=bytes(8))


# The costliest pickles that are known, at their largest: each made the reader slow, or large, or
# would with a limit fewer. What it begins with, what is repeated, what it ends with.

ORDERED = b"ccollections\nOrderedDict\n"
ARGUMENTS = tensor().removeprefix(REBUILD).removesuffix(b"R")
TENSOR = tensor() + b"q\0"
COSTLIEST = {
    "empty dicts": (b"](", b"}", b"e."),
    "empty lists": (b"](", b"]", b"e."),
    "marks": (b"", b"(", b"."),
    "dicts of one item": (b"](X\1\0\0\0aq\0", b"}h\0Ns", b"e."),
    "ordered dicts": (b"](" + ORDERED + b"q\0", b"h\0)R", b"e."),
    "ordered dicts of one item": (b"](" + ORDERED + b"q\0X\1\0\0\0aq\1", b"h\0)Rh\1Ns", b"e."),
    "state dicts": (b"](" + ORDERED + b"q\0}" + text("_metadata") + b"}sq\1", b"h\0)Rh\1b", b"e."),
    "descriptions of a tensor": (b"](" + REBUILD + b"q\0" + ARGUMENTS + b"q\1", b"h\0h\1R", b"e."),
    "one tensor, again and again": (b"](" + TENSOR, b"h\0", b"e."),
    "calls of a million arguments": (
        b"](ctorch\ndevice\nq\0(" + b"N" * 1_000_000 + b"tq\1",
        b"h\0h\1R",
        b"e.",
    ),
    "wide characters": (b"](", b"X\4\0\0\0\xf0\x9f\x98\x80", b"e."),
    "names of classes": (b"](", b"ctorch\nSize\n", b"e."),
}


def referenced(key, count):
    """A tensor that is referred to many times, below a long key."""
    return b"}(" + text(key) + b"](" + TENSOR + b"h\0" * count + b"eu."


def costliest():
    """Each by its name."""
    for name, (head, unit, tail) in COSTLIEST.items():
        count = ((MEGABYTES << 20) - len(head + tail) - 2) // len(unit)
        yield name, b"\x80\x02" + head + unit * count + tail
    yield "900,009 references below a long key", b"\x80\x02" + referenced("k" * 1990, 900_009)
    yield "4,000,000 such", b"\x80\x02" + referenced("k" * 1990, 4_000_000)
    yield "4,000,000 with wide characters", b"\x80\x02" + referenced("\U0001f600" * 1990, 4_000_000)
    yield "90,000 tensors", b"\x80\x02](" + TENSOR + b"h\0" * 90_000 + b"e."
    far = tensor(shape=(1,) * 64, strides=(1,) * 64)
    yield "90,000 tensors of 64 axes", b"\x80\x02](" + far + b"q\0" + b"h\0" * 90_000 + b"e."
    memo = (b"r" + struct.pack("<I", n * 4) for n in range(1_600_000))
    yield "a memo with holes", b"\x80\x02N" + b"".join(memo) + b"."
    for step in (1, 1 << 20, 1 << 40):
        keys = (b"\x8a\x08" + struct.pack("<q", n * step) + b"N" for n in range(700_000))
        yield f"integers as keys, {step} apart", b"\x80\x02}(" + b"".join(keys) + b"u."
    keys = (
        b"\x8a\x0c" + (n * ((1 << 61) - 1)).to_bytes(12, "little") + b"N" for n in range(500_000)
    )
    yield "integers of one hash as keys", b"\x80\x02}(" + b"".join(keys) + b"u."
    keys = (text(f"{n:06x}" + "m" * 200) + b"}" for n in range(37_000))
    versions = b"(" + b"".join(keys) + b"u"
    yield "versions", b"\x80\x02" + ORDERED + b")R}" + text("_metadata") + b"}" + versions + b"sb."
    yield "one long key", b"\x80\x02}" + text("k" * 8_000_000 + "\U0001f600") + TENSOR + b"s."
    yield "one long name of a class", b"\x80\x02c" + b"k" * 8_000_000 + b"\nb\n."
    layer = (text(f"layers.{n}.norm.weight") + tensor() for n in range(60_000))
    yield "a model", b"\x80\x02}(" + b"".join(layer)[: (MEGABYTES << 20) - 100] + b"u."


# Headers of arrays, and zip archives


def npy(rng):
    pieces = ["-", "+", "~", "(", "[", "{", "1,", "()", "'a'", "not ", "{'descr':", "lambda:", "**"]
    pieces += ["'descr': '<f8', ", "'shape': (3,), ", "'fortran_order': False, ", "0x", "9", "f'{"]
    length = int(2 ** rng.uniform(1, 13.3))
    header = rng.choice(pieces) * length if rng.random() < 0.5 else ""
    while len(header) < length:
        header += rng.choice(pieces)
    header = header[:length]
    if rng.random() < 0.3:
        sizes = rng.choice(["3,", "1," * 64, "1," * 65, "0," + "9" * 19, "-1,-3,", "9" * 4000])
        descr = rng.choice(["<f8", "<f9", "V2", "|O", "<U4", ">c16", "b1"])
        header = f"{{'descr': '{descr}', 'fortran_order': True, 'shape': ({sizes}), }}\n"
    if rng.random() < 0.3:
        header = "{'descr': '<f8', 'fortran_order': False, 'shape': (3,), }\n"
    version, layout = rng.choice([(b"\1\0", "<H")] * 8 + [(b"\2\0", "<I"), (b"\3\0", "<I")])
    claimed = rng.choice([len(header)] * 9 + [65535])
    data = b"\x93NUMPY" + version + struct.pack(layout, claimed) + header.encode()
    return data + bytes(rng.choice([24, 24, 24, 0, 100]))


def npz_file(path, rng):
    kind = rng.choice(["header", "header", "header", "many", "long", "packed"])
    with zipfile.ZipFile(
        path, "w", rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
    ) as archive:
        if kind == "packed":
            archive.writestr("a.npy", npy(rng) + bytes(rng.choice([1 << 20, 48 << 20])))
        elif kind == "long":
            for n in range(60):
                archive.writestr(f"{n}{'a' * 60_000}.npy", npy(rng))
        else:
            for n in range(1 if kind == "header" else rng.choice([10, 1000, 20_000])):
                archive.writestr(f"{n}.npy", npy(rng))
    data = bytearray(path.read_bytes())
    if rng.random() < 0.2:
        data[rng.randrange(len(data))] = rng.randrange(256)
    path.write_bytes(data)


def zip_file(path, rng):
    """A directory of many entries, for one and the same run of bytes or for none."""
    name = rng.choice([b"", b"a.npy", b"x/data/0", b"n" * 65_000, b"x/data.pkl", b"x/\0"])
    extra = rng.choice([b"", b"\x75\x70\0\0" * 1000, b"\1\0\x08\0" + bytes(8), b"\xff\xff\xff\xff"])
    count = int((MEGABYTES << 20) / (46 + len(name) + len(extra)) * rng.choice([0.01, 0.3, 0.7, 1]))
    content = tensor_pickle()
    local = struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, 0, 0, 33, 0, 0, 0, len(name), 0) + name
    sizes = (zlib.crc32(content), len(content), len(content)) if rng.random() < 0.5 else (0, 0, 0)
    entries = []
    for n in range(count):
        own = name.replace(b"a", b"%x" % n) if len(name) < 9 else name
        entries.append(
            struct.pack(
                "<4s4B4HL2L5H2L",
                *(b"PK\1\2", 20, 3, 20, 0, 0, 0, 0, 33, *sizes),
                *(len(own), len(extra), 0, 0, 0, 0, 0),
            )
            + own
            + extra
        )
    directory = b"".join(entries)
    comment = rng.choice([b"", b"PK\5\6" * 16_000])
    end = (0, 0, count % 65536, count % 65536, len(directory), len(local + content), len(comment))
    path.write_bytes(
        local + content + directory + struct.pack("<4s4H2LH", b"PK\5\6", *end) + comment
    )


# safetensors


def safetensors_file(path, rng):
    size = int(2 ** rng.uniform(8, 23))
    entry = '{"dtype":"F32","shape":[%s],"data_offsets":[0,%d]}'
    kind = rng.choice(["names", "axes", "metadata", "deep", "text", "repeated", "digits"])
    data = b""
    if kind == "names":
        header = ",".join(f'"{n:x}":{entry % ("0", 0)}' for n in range(size // 60))
    elif kind == "axes":
        header, data = f'"a":{entry % ("1," * (size // 2) + "1", 4)}', bytes(4)
    elif kind == "metadata":
        header = '"__metadata__":{' + ",".join(f'"{n:x}":""' for n in range(size // 12)) + "}"
    elif kind == "deep":
        header = '"a":' * rng.choice([0, 1]) + rng.choice(["[", '{"a":']) * (size // 5)
    elif kind == "text":
        header = (
            '"'
            + rng.choice(["a", "\\u0000", "\\ud83d\\ude00"]) * (size // 6)
            + f'":{entry % (0, 0)}'
        )
    elif kind == "repeated":
        header = ",".join([f'"a":{entry % ("0", 0)}'] * (size // 60))
    else:
        header = f'"a":{entry % ("9" * size, 4)}'
    raw = ("{" + header + "}").encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)


KINDS = {
    "torch": (".pt", torch_file),
    "npz": (".npz", npz_file),
    "zip": (".pt", zip_file),
    "zip-npz": (".npz", zip_file),
    "safetensors": (".safetensors", safetensors_file),
}


# One load of one file, in a process of its own


def resident(field):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024


def loaded(path):
    """What became of a file: seconds of CPU, megabytes beyond it and the result, words."""
    from cnorm import checkpoint

    size = path.stat().st_size
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before, start = resident("VmRSS"), time.process_time()
    held = 0
    try:
        arrays = checkpoint.load(path)
        held = sum(array.nbytes for array in arrays.values() if array.base is None)
        outcome = "loaded"
    except checkpoint.CheckpointError as error:
        outcome = str(error)[len(str(path)) :]
        printed = "".join(traceback.format_exception(error))
        if len(outcome) > 1100 or len(printed) > 10_000:
            outcome = f"WRONG: a message of {len(outcome)} characters, {len(printed)} printed"
    except BaseException as error:
        outcome = f"WRONG: {type(error).__name__} {error}"[:1000]
    seconds = time.process_time() - start
    return seconds, resident("VmHWM") - before - (size + held) / (1 << 20), outcome


def apart(path):
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, json.dumps(loaded(path)).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        words = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return json.loads(words) if words else (0, 0, f"WRONG: ended with {status}")


def report(kind, n, path):
    print(json.dumps([kind, n, path.stat().st_size, *apart(path)]), flush=True)
    path.unlink()


def main(count, seed):
    import ml_dtypes
    import safetensors

    from cnorm import checkpoint

    del ml_dtypes, safetensors
    np.savez("warm.npz", a=np.zeros(1))
    checkpoint.load("warm.npz")
    few = set(random.Random(seed).sample(range(26), 6)) if count < 20 else range(100)
    for number, (name, data) in enumerate(costliest()):
        if number not in few:
            continue
        write_torch(Path("x.pt"), data, _0=bytes(8))
        report("costliest", name, Path("x.pt"))
    for header in ("-" * 9000, "~" * 9000, "(" * 9000, "{" * 9000, "[" * 9000, "1**" * 3000):
        content = b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header.encode()
        with zipfile.ZipFile("x.npz", "w") as archive:
            archive.writestr("a.npy", content)
        report("costliest", f"a header of {header[:3]}", Path("x.npz"))
    for kind, (suffix, write) in KINDS.items():
        for n in range(seed, seed + count):
            path = Path(f"x{suffix}")
            write(path, random.Random(f"{kind}{n}"))
            report(kind, n, path)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))

"""Digests of what every operation computes: equal bits, equal digests.

``python tests/digests.py 1 3`` prints them as JSON for 1 and for 3 threads, ``--check 1 3``
compares them with the golden ones, ``--write`` stores new golden ones. A change of those is a
change of results: name it in the changelog. ``3:1/4`` in the place of a number of threads is part
1 of 4 of the digests, on 3 threads; parts are drawn by name.
"""

import hashlib
import json
import sys
import zlib
from pathlib import Path

import numpy as np
from layouts import channels_last, contiguous
from operations import CLIP, DTYPES, FURTHER_OPERATIONS, OPERATIONS, STATISTICS, accumulation
from team import team

import cnorm.functional as F

GOLDEN = Path(__file__).with_name("digests.json")
SHAPES = [(5, 12, 19, 33), (3, 6, 4003), (401, 96)]  # more and less than threads are for
PLATFORM = ("beta=0.6",)  # this calls pow, which is the platform's


def exact(random, shape, dtype):
    """Numbers that every machine draws alike: whole multiples of 2**-6."""
    return (random.randint(-256, 257, shape) / 64).astype(dtype)


def digest(results):
    """Of the bytes of all arrays, in the order of their names."""
    total = hashlib.sha256()
    for name in sorted(set(results) - {"stats"}):
        total.update(np.ascontiguousarray(results[name]).tobytes())
    return total.hexdigest()[:16]


def digests(part=0, parts=1):
    """All of them, or those of one part of the cases."""
    found = {}
    for operation in OPERATIONS + FURTHER_OPERATIONS + STATISTICS:
        for dtype in DTYPES:
            for shape in SHAPES:
                case = f"{operation} {dtype} {shape}"
                if operation.accepts(shape, 1) and zlib.crc32(case.encode()) % parts == part:
                    random = np.random.RandomState(0)
                    x, dy = exact(random, shape, dtype), exact(random, shape, dtype)
                    p = operation.draw(random, shape, 1, accumulation(dtype))
                    for layout in (contiguous, channels_last):
                        key = f"{case} {layout.__name__}"
                        found[key] = digest(operation.run(F, layout(x), layout(dy), p))
                        if shape == SHAPES[0] and operation.takes_clip:
                            results = operation.run(F, layout(x), layout(dy), p, clip=CLIP)
                            found[f"{key} clip"] = digest(results)
                        for name, where in (
                            masks(shape) if shape == SHAPES[0] and operation.takes_where else ()
                        ):
                            results = operation.run(F, layout(x), layout(dy), p, where=where)
                            found[f"{key} {name}"] = digest(results)
    return found


def masks(shape):
    """Masks of three kinds: padding, positions that count, elements that count."""
    random = np.random.RandomState(1)
    yield (
        "padded",
        np.arange(shape[-1])
        < random.randint(2, shape[-1] + 1, shape[:1] + (1,) * (len(shape) - 1)),
    )
    yield "positions", random.random_sample((shape[0], 1, *shape[2:])) < 0.7
    yield "elements", random.random_sample(shape) < 0.5


def portable(found):
    """Those that do not depend on the platform's own functions."""
    return {k: v for k, v in found.items() if not any(word in k for word in PLATFORM)}


def differing(found, expected):
    """The keys of digests that are not equal, or that only one of both has."""
    keys = found.keys() | expected.keys()
    return sorted(key for key in keys if found.get(key) != expected.get(key))


def main(arguments):
    if arguments == ["--write"]:
        GOLDEN.write_text(json.dumps(portable(digests()), indent=0, sort_keys=True) + "\n")
        return
    check = arguments[:1] == ["--check"]
    found = {}
    for argument in arguments[check:]:
        n, _, part = argument.partition(":")
        with team(int(n)):
            found[argument] = digests(*map(int, part.split("/"))) if part else digests()
    if not check:
        print(json.dumps(found))
        return
    golden = json.loads(GOLDEN.read_text())
    for n, of_n in found.items():
        expected = {k: v for k, v in golden.items() if k in of_n} if ":" in n else golden
        if keys := differing(portable(of_n), expected):
            sys.exit(f"{n} threads: {len(keys)} digests differ, {keys[0]} first")
        print(f"{n} threads: {len(expected)} digests as stored")


if __name__ == "__main__":
    main(sys.argv[1:])

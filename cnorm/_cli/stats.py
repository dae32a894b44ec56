"""``python -m cnorm stats FILE``: count, mean, deviation and extremes of the arrays of a file.

Files are read in parts: ``.npy`` by memory map, zarr by its chunks. An array of ``.npz`` is read as
a whole, and so is an image.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import cnorm
from cnorm import functional as F
from cnorm._cli._screen import progress, table
from cnorm._hints import BFLOAT16_OF_NPY
from cnorm._version import install

PART_BYTES = 2**26  # of a file that has no chunks of its own
ROWS = 64  # of a table: more are left out, and counted
IMAGES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


class Unreadable(Exception):
    """What is wrong with a file or an argument, as the command line says it."""


@dataclass(frozen=True)
class Source:
    """An array of a file, or a zarr array: anything with a shape that slices give parts of."""

    name: str
    array: Any
    chunks: tuple[int, ...] | None = None

    def slices(self) -> list[tuple[slice, ...]]:
        """Parts of the array in its own order: a multiple of its chunks, about PART_BYTES each."""
        shape = tuple(self.array.shape)
        size = list(self.chunks or (1,) * len(shape))
        itemsize = np.dtype(self.array.dtype).itemsize
        for axis in reversed(range(len(shape))):  # grow the last axes first
            rest = math.prod(size) * itemsize
            factor = max(1, min(PART_BYTES // max(rest, 1), math.ceil(shape[axis] / size[axis])))
            size[axis] *= factor
        starts = [range(0, max(n, 1), step) for n, step in zip(shape, size, strict=True)]
        return [
            tuple(slice(at, at + step) for at, step in zip(corner, size, strict=True))
            for corner in product(*starts)
        ]


@dataclass
class Units:
    """Moments and extremes of the units of an array, which grow part by part."""

    shape: tuple[int, ...]
    axes: tuple[int, ...]
    kept: tuple[int, ...] = field(init=False)
    blocks: dict[tuple[tuple[int, int], ...], cnorm.Moments] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.kept = tuple(i for i in range(len(self.shape)) if i not in self.axes)
        sizes = tuple(self.shape[i] for i in self.kept)
        self.least: NDArray[Any] = np.full(sizes, np.inf)
        self.greatest: NDArray[Any] = np.full(sizes, -np.inf)
        self.count, self.mean, self.std = np.zeros(sizes), np.empty(sizes), np.empty(sizes)

    def add(self, part: NDArray[Any], slices: tuple[slice, ...], nan_policy: str) -> None:
        m = F.moments(part, self.axes, nan_policy=nan_policy)  # type: ignore[call-overload]
        where = tuple((slices[i].start, min(slices[i].stop, self.shape[i])) for i in self.kept)
        self.blocks[where] = self.blocks.get(where, 0) + m
        if not part.size:
            return
        at = tuple(slice(*ends) for ends in where)
        low, high = (np.fmin, np.fmax) if nan_policy == "omit" else (np.minimum, np.maximum)
        part = part.view(np.uint8) if part.dtype == bool else part
        for extremes, function in ((self.least, low), (self.greatest, high)):
            found = function.reduce(part, self.axes) if self.axes else part
            extremes[at] = function(extremes[at], found)

    def finish(self, ddof: float) -> None:
        for where, m in self.blocks.items():
            at = tuple(slice(*ends) for ends in where)
            self.count[at], self.mean[at], self.std[at] = m.count, m.mean, m.std(ddof)
        empty = ~(self.count > 0)
        self.least = np.where(empty, np.nan, self.least)
        self.greatest = np.where(empty, np.nan, self.greatest)


def run(
    path: str, axes: list[int] | None, nan_policy: str, ddof: float, key: str | None = None
) -> dict[str, Any]:
    """Read the arrays of a file, part by part; statistics over `axes`, by default over all."""
    found = list(_open(Path(path), key))
    if not found:
        raise Unreadable(f"{path} has no array{'' if key is None else f' {key!r}'}")
    left_out = {source.name: what for source in found if (what := _no_numbers(source.array.dtype))}
    sources = [source for source in found if source.name not in left_out]
    if not sources:
        names = ", ".join(f"{name} holds {what}" for name, what in left_out.items())
        raise Unreadable(f"{path} has nothing to take statistics of: {names}")
    jobs = [(source, _units(source, axes)) for source in sources]
    parts = [(source, units, s) for source, units in jobs for s in source.slices()]
    for source, units, slices in progress(parts, "cnorm stats"):
        part = np.asarray(source.array[slices])
        try:
            units.add(part, slices, nan_policy)
        except (TypeError, ValueError) as error:
            raise Unreadable(f"{source.name}: {error}") from None
    results = []
    for source, units in jobs:
        units.finish(ddof)
        results.append(
            {
                "array": source.name,
                "shape": list(units.shape),
                "dtype": str(source.array.dtype),
                "axis": list(units.axes),
                "count": units.count.astype(np.int64).tolist(),
                "mean": _listed(units.mean),
                "std": _listed(units.std),
                "min": _listed(units.least),
                "max": _listed(units.greatest),
            }
        )
    return {
        "file": path, "ddof": ddof, "nan_policy": nan_policy, "left_out": left_out,
        "results": results,
    }  # fmt: skip


def _no_numbers(dtype: Any) -> str:
    """What an array holds that has no statistics, "" of one that has them."""
    dtype = np.dtype(dtype)
    kinds = {"U": "text", "S": "text", "T": "text", "O": "objects", "c": "complex numbers"}
    kinds |= {"M": "dates", "m": "time spans", "V": "raw bytes"}
    if dtype.kind in "biuf" or dtype.name == "bfloat16":
        return ""
    if dtype.str.endswith("V2"):
        return f"{BFLOAT16_OF_NPY}, which cnorm.checkpoint.load knows"
    return f"{kinds.get(dtype.kind, 'no numbers')} ({dtype})"


def _listed(values: NDArray[Any]) -> Any:
    """Numbers for JSON, which has neither NaN nor infinity: None, and strings."""

    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return [plain(one) for one in value]
        if math.isnan(value):
            return None
        return value if math.isfinite(value) else str(value)

    return plain(values.tolist())


def _units(source: Source, axes: list[int] | None) -> Units:
    shape = tuple(source.array.shape)
    given = range(len(shape)) if axes is None else axes
    for axis in given:
        if not -len(shape) <= axis < len(shape):
            raise Unreadable(f"--axis {axis}: {source.name} of shape {shape} has {len(shape)} axes")
    return Units(shape, tuple(sorted({axis % len(shape) for axis in given})))


# ---- files ----


def _open(path: Path, key: str | None) -> Iterator[Source]:
    if not path.exists():
        raise Unreadable(f"{path} does not exist")
    suffix = path.suffix.lower()
    try:
        if path.is_dir():
            yield from _zarr(path, key)
        elif suffix == ".npz":
            yield from _npz(path, key)
        elif suffix == ".npy":
            yield Source(path.name, np.load(path, mmap_mode="r", allow_pickle=False))
        elif suffix in IMAGES:
            yield Source(path.name, _image(path))
        else:
            raise Unreadable(f"{path} must be .npy, .npz, a folder of zarr or an image")
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        if "Python objects" in str(error):
            raise Unreadable(f"{path} holds objects, not numbers") from None
        raise Unreadable(f"{path} cannot be read: {error}") from None


def _npz(path: Path, key: str | None) -> Iterator[Source]:
    with np.load(path, allow_pickle=False) as file:
        for name in file.files:
            if key is None or name == key:
                try:
                    yield Source(name, file[name])
                except ValueError as error:
                    if "Object arrays" not in str(error):
                        raise
                    yield Source(name, np.empty(0, object))  # such as it is not loaded


def _zarr(path: Path, key: str | None) -> Iterator[Source]:
    try:
        import zarr
    except ModuleNotFoundError:
        raise Unreadable(f"{path} is a folder, as zarr's are: {install('dask')}") from None
    try:
        root = zarr.open(str(path), mode="r")
    except Exception as error:  # each version has classes of its own
        raise Unreadable(f"{path} is not a zarr store: {error}") from None
    if hasattr(root, "dtype"):
        yield Source(path.name, root, root.chunks)
        return
    for name, array in sorted(root.arrays()):
        if key is None or name == key:
            yield Source(name, array, array.chunks)


def _image(path: Path) -> NDArray[Any]:
    try:
        from PIL import Image
    except ModuleNotFoundError:
        raise Unreadable(f"{path} is an image, which Pillow reads: pip install pillow") from None
    with Image.open(path) as image:
        return np.asarray(image)


def render(report: dict[str, Any]) -> str:
    """A table: one line for each unit."""
    head = ["array, indices of the kept axes", "count", "mean", "std", "min", "max"]
    rows: list[list[str]] = []
    left = 0
    for result in report["results"]:
        name, shape = result["array"], "x".join(map(str, result["shape"])) or "()"
        columns = [np.asarray(result[one], dtype=object) for one in head[1:]]
        kept = [i for i in range(len(result["shape"])) if i not in result["axis"]]
        for index in np.ndindex(columns[0].shape):
            if len(rows) == ROWS:
                left = sum(np.size(r["count"]) for r in report["results"]) - ROWS
                break
            places = [":"] * len(result["shape"])
            for axis, number in zip(kept, index, strict=True):
                places[axis] = str(number)
            unit = f"{name}[{', '.join(places)}]" if index else f"{name} {shape} {result['dtype']}"
            rows.append([unit, *(_shown(column[index]) for column in columns)])
    text = table(head, rows)
    return f"{text}\n... and {left} more: --json has all" if left else text


def _shown(value: Any) -> str:
    if value is None:
        return "nan"
    return str(value) if isinstance(value, int) else f"{float(value):.8g}"

"""Statistics, z-scores and images beside what people run for them.

    python bench/pipelines.py                     # all cases, a few minutes
    python bench/pipelines.py --only moments --rounds 5 --threads 1

The peers are NumPy, SciPy, scikit-learn, numbagg, bottleneck, OpenCV and torch, each where it is
installed. A round runs cnorm and each peer, in turns; the table has the least time of each over all
rounds, how many times longer the best peer takes, and cnorm's time beside that of a parallel copy
of the input (of images: of the result). Some peers do less: bottleneck, numbagg and torch sum
float32 in float32. Add a case by a line in `CASES`, a peer by a function in `PEERS`.
"""

import argparse
import importlib
import importlib.util
import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

import cnorm
import cnorm.functional as F


@dataclass(frozen=True)
class Case:
    """One job: moments or the z-score of an array over some axes, or images for a network.

    Images are channels last; `axis` is where their channels go.
    """

    job: str
    shape: tuple
    axis: int | tuple | None
    dtype: str = "float32"

    def __str__(self):
        over = "to channel axis" if self.job == "normalize_image" else "over"
        return f"{self.job} {self.dtype} {self.shape} {over} {self.axis}"

    def data(self):
        rng = np.random.default_rng(0)
        if np.dtype(self.dtype).kind in "iu":
            return rng.integers(0, np.iinfo(self.dtype).max, self.shape).astype(self.dtype)
        x = rng.standard_normal(self.shape, np.float32)
        return (x * 3 + 10).astype(self.dtype)


CASES = [
    Case("moments", (65536, 256), 0),  # 64 MiB
    Case("moments", (65536, 256), 1),
    Case("moments", (32768, 256), 0, "float64"),
    Case("moments", (32768, 256), 1, "float64"),
    Case("moments", (1_000_000, 50), 0),
    Case("moments", (1_000_000, 16), 1),
    Case("moments", (32, 224, 224, 3), (0, 1, 2)),
    Case("moments", (32, 224, 224, 3), (0, 1, 2), "uint8"),
    Case("moments", (32, 64, 112, 112), (0, 2, 3)),
    Case("moments", (65536, 256), 0, "int16"),
    Case("moments", (65536, 256), 1, "float16"),
    Case("standardize", (1_000_000, 50), 0),
    Case("standardize", (65536, 64), 0),
    Case("standardize", (65536, 256), 1),
    Case("standardize", (250, 250, 250), None),
    Case("standardize", (65536, 64), 0, "float64"),
    Case("standardize", (32, 224, 224, 3), (0, 1, 2), "uint8"),
    Case("standardize", (64, 256, 512), (0, 2)),
    Case("standardize", (8, 96, 56, 56), 1),
    Case("normalize_image", (32, 224, 224, 3), 1, "uint8"),
    Case("normalize_image", (32, 224, 224, 3), -1, "uint8"),
    Case("normalize_image", (1, 224, 224, 3), 1, "uint8"),
    Case("normalize_image", (32, 224, 224, 3), 1, "uint16"),
]
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def of_numpy(case, x):
    """What stands in most code: sums in double, as the result of cnorm is."""
    if case.job == "normalize_image":
        top, mean, std = np.iinfo(x.dtype).max, np.float32(MEAN), np.float32(STD)

        def image():
            y = (x.astype(np.float32) / np.float32(top) - mean) / std
            return np.ascontiguousarray(np.moveaxis(y, -1, case.axis))

        return image
    if case.job == "moments":
        return lambda: (x.mean(case.axis, np.float64), x.var(case.axis, np.float64))

    def standardize():
        mean = x.mean(case.axis, np.float64, keepdims=True)
        std = x.std(case.axis, np.float64, keepdims=True)
        return ((x - mean) / std).astype(np.float32 if x.dtype.kind in "iu" else x.dtype)

    return standardize


def of_scipy(case, x):
    """scipy.stats; None for what it has not."""
    from scipy import stats

    if case.job == "standardize":
        return lambda: stats.zscore(x, case.axis)
    return None


def of_sklearn(case, x):
    """scikit-learn's StandardScaler: tables alone."""
    from sklearn.preprocessing import StandardScaler

    if x.ndim != 2 or case.axis != 0 or case.job == "normalize_image":
        return None
    if case.job == "moments":
        return lambda: StandardScaler().fit(x)
    return lambda: StandardScaler().fit_transform(x)


def of_nan_functions(library):
    """A peer with NumPy's nan functions, of float arrays."""

    def peer(case, x):
        module = importlib.import_module(library)
        if case.job == "normalize_image" or x.dtype.kind != "f":
            return None
        if library == "bottleneck" and isinstance(case.axis, tuple):
            return None
        options = {} if case.axis is None and library == "numbagg" else {"axis": case.axis}
        if case.job == "moments":
            return lambda: (module.nanmean(x, **options), module.nanvar(x, ddof=0, **options))
        reduced = range(x.ndim) if case.axis is None else np.atleast_1d(case.axis) % x.ndim
        shape = tuple(1 if i in reduced else n for i, n in enumerate(x.shape))

        def standardize():
            mean = np.reshape(module.nanmean(x, **options), shape)
            return (x - mean) / np.reshape(module.nanstd(x, ddof=0, **options), shape)

        return standardize

    return peer


def of_opencv(case, x):
    """OpenCV: images of up to four channels, in its own loops."""
    import cv2

    cv2.setNumThreads(cnorm.get_num_threads())
    if x.ndim != 4 or x.shape[-1] > 4:
        return None
    sheet = x.reshape(-1, x.shape[2], x.shape[3])  # one tall image
    if case.job == "moments" and case.axis == (0, 1, 2):
        return lambda: cv2.meanStdDev(sheet)
    if case.job != "normalize_image" or case.axis != 1:
        return None
    top = np.iinfo(x.dtype).max
    scale = np.float32(1 / (top * np.float64(STD))).reshape(1, 3, 1, 1)
    centre = tuple(top * m for m in MEAN)
    return lambda: cv2.dnn.blobFromImages(list(x), 1.0, None, centre) * scale


def of_torch(case, x):
    """torch, with a tensor over the same memory."""
    import torch

    torch.set_num_threads(cnorm.get_num_threads())
    t, axis = torch.from_numpy(x), case.axis
    if case.job == "normalize_image":
        top, mean, std = np.iinfo(x.dtype).max, torch.tensor(MEAN), torch.tensor(STD)
        return lambda: ((t.float() / top - mean) / std).movedim(-1, axis).contiguous()
    if not t.is_floating_point():
        return None
    if case.job == "moments":
        return lambda: torch.var_mean(t, axis, correction=0)

    def standardize():
        var, mean = torch.var_mean(t, axis, correction=0, keepdim=True)
        return (t - mean) * var.rsqrt()

    return standardize


PEERS = {
    "numpy": of_numpy,
    "scipy": of_scipy,
    "sklearn": of_sklearn,
    "numbagg": of_nan_functions("numbagg"),
    "bottleneck": of_nan_functions("bottleneck"),
    "cv2": of_opencv,
    "torch": of_torch,
}


def of_cnorm(case, x):
    """The function itself, with a result of its own each time, as the peers have it."""
    if case.job == "normalize_image":
        top = np.iinfo(x.dtype).max
        return lambda: F.normalize_image(x, MEAN, STD, top, out_channel_axis=case.axis)
    function = getattr(F, case.job)
    return lambda: function(x, case.axis)


def copy_of(x, threads):
    """A copy of an array by several threads, into memory that is there."""
    source, target = x.reshape(-1), np.ones_like(x).reshape(-1)
    cuts = np.linspace(0, x.size, threads + 1).astype(int)
    pool = ThreadPoolExecutor(threads)

    def part(i):
        target[cuts[i] : cuts[i + 1]] = source[cuts[i] : cuts[i + 1]]

    return lambda: list(pool.map(part, range(threads)))


def measure(case, rounds):
    """Return the least milliseconds of each, by name."""
    x = case.data()
    copied = np.ones(x.shape, np.float32) if case.job == "normalize_image" else x
    calls = {"cnorm": of_cnorm(case, x), "copy": copy_of(copied, cnorm.get_num_threads())}
    for name, peer in PEERS.items():
        if importlib.util.find_spec(name) is not None:
            calls[name] = peer(case, x)
    calls = {name: call for name, call in calls.items() if call is not None}
    for call in calls.values():
        call()  # compiles, in numbagg, and touches new memory
    best = dict.fromkeys(calls, math.inf)
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            best[name] = min(best[name], 1e3 * (time.perf_counter() - start))
    return best


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="", help="cases whose text has this in it")
    parser.add_argument("--threads", type=int, help="of cnorm, torch, OpenCV and the copy")
    args = parser.parse_args()
    if args.threads:
        cnorm.set_num_threads(args.threads)
    found = [name for name in PEERS if importlib.util.find_spec(name) is not None]
    print(f"{cnorm.get_num_threads()} threads; peers: {', '.join(found)}")
    cases = [case for case in CASES if args.only in str(case)]
    ratios = []
    print(f"{'':60} {'cnorm':>9} {'best peer':>20} {'x':>6} {'/ copy':>7}")
    for case in tqdm(cases, leave=False):
        best = measure(case, args.rounds)
        own, copy = best.pop("cnorm"), best.pop("copy")
        peer = min(best, key=best.get)
        ratios.append(best[peer] / own)
        tqdm.write(
            f"{case!s:60} {own:6.2f} ms {peer:>8} {best[peer]:8.2f} ms "
            f"{ratios[-1]:6.1f} {own / copy:7.2f}"
        )
    if ratios:
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        print(f"best peer / cnorm: geometric mean {mean:.1f}, least {min(ratios):.1f}")


if __name__ == "__main__":
    main()

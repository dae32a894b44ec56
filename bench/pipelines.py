"""Statistics and z-scores beside what people run for them: NumPy, SciPy and scikit-learn.

    python bench/pipelines.py                     # all cases
    python bench/pipelines.py --only moments --rounds 5

A round runs cnorm and each peer that is installed, in turns; the table has the least time of each
over all rounds, how many times longer the best peer takes, and cnorm's time beside that of a
parallel copy of the input. Add a case by a line in `CASES`, a peer by a function in `PEERS`.
"""

import argparse
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
    """One job: moments, or the z-score, of an array over some axes."""

    job: str
    shape: tuple
    axis: int | tuple | None
    dtype: str = "float32"

    def __str__(self):
        return f"{self.job} {self.dtype} {self.shape} over {self.axis}"

    def data(self):
        rng = np.random.default_rng(0)
        if np.dtype(self.dtype).kind in "iu":
            return rng.integers(0, 255, self.shape).astype(self.dtype)
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
    Case("standardize", (1_000_000, 50), 0),
    Case("standardize", (65536, 64), 0),
    Case("standardize", (65536, 256), 1),
    Case("standardize", (250, 250, 250), None),
    Case("standardize", (65536, 64), 0, "float64"),
    Case("standardize", (32, 224, 224, 3), (0, 1, 2), "uint8"),
]


def of_numpy(case, x):
    """What stands in most code: sums in double, as the result of cnorm is."""
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

    if x.ndim != 2 or case.axis != 0:
        return None
    if case.job == "moments":
        return lambda: StandardScaler().fit(x)
    return lambda: StandardScaler().fit_transform(x)


PEERS = {"numpy": of_numpy, "scipy": of_scipy, "sklearn": of_sklearn}


def of_cnorm(case, x):
    """The function itself, with a result of its own each time, as the peers have it."""
    function = getattr(F, case.job)
    return lambda: function(x, case.axis)


def copy_of(x, threads):
    """A copy of the input by several threads, into memory that is there."""
    source, target = x.reshape(-1), np.ones_like(x).reshape(-1)
    cuts = np.linspace(0, x.size, threads + 1).astype(int)
    pool = ThreadPoolExecutor(threads)

    def part(i):
        target[cuts[i] : cuts[i + 1]] = source[cuts[i] : cuts[i + 1]]

    return lambda: list(pool.map(part, range(threads)))


def measure(case, rounds):
    """Return the least milliseconds of each, by name."""
    x = case.data()
    calls = {"cnorm": of_cnorm(case, x), "copy": copy_of(x, cnorm.get_num_threads())}
    for name, peer in PEERS.items():
        if importlib.util.find_spec(name) is not None:
            calls[name] = peer(case, x)
    calls = {name: call for name, call in calls.items() if call is not None}
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
    args = parser.parse_args()
    cases = [case for case in CASES if args.only in str(case)]
    ratios = []
    print(f"{'':52} {'cnorm':>9} {'best peer':>20} {'x':>6} {'/ copy':>7}")
    for case in tqdm(cases, leave=False):
        best = measure(case, args.rounds)
        own, copy = best.pop("cnorm"), best.pop("copy")
        peer = min(best, key=best.get)
        ratios.append(best[peer] / own)
        tqdm.write(
            f"{case!s:52} {own:6.2f} ms {peer:>8} {best[peer]:8.2f} ms "
            f"{ratios[-1]:6.1f} {own / copy:7.2f}"
        )
    if ratios:
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        print(f"best peer / cnorm: geometric mean {mean:.1f}, least {min(ratios):.1f}")


if __name__ == "__main__":
    main()

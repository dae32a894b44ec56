"""How much faster calls are on all threads than on one, over 1 MiB of input and in cache.

    python bench/threads.py --rounds 10

A round takes each case on new arrays, on one thread and on all in turns; what a second thread gains
is the ratio of both in a round, and the table has the median of the rounds. Beside it, with torch,
that of a parallel copy of the same bytes (backward, of a sum of two arrays): a machine that others
use has spells in which its processors are far apart, or memory gives two no more than one.
"""

import argparse
import functools
import importlib.util
import itertools
import math
import statistics

from cases import Case
from implementations import CnormOut, Copy, available_threads
from scaling import seconds
from tqdm import tqdm

import cnorm

ROWS = [(512, 768), (1024, 768), (128, 4096), (1024, 1024), (4096, 256), (16384, 64)]
IMAGES = [(4, 64, 56, 56), (8, 128, 32, 32)]
MATRICES = [(4096, 256), (1024, 1024)]
ENOUGH = 1.8  # of two threads
TURNS = 3


def cases():
    for direction in ("forward", "backward"):
        for op, shape in itertools.product(("layer_norm", "rms_norm"), ROWS):
            yield Case(op, shape, direction)
        for shape in MATRICES:
            yield Case("batch_norm", shape, direction)
        for layout, shape in itertools.product(("first", "last"), IMAGES):
            yield Case("batch_norm", shape, direction, layout=layout)
            yield Case("batch_norm", shape, direction, layout=layout, training=False)
            yield Case("group_norm", shape, direction, layout=layout)
            yield Case("instance_norm", shape, direction, layout=layout)
            yield Case("local_response_norm", shape, direction, layout=layout)


def measure(implementation, set_threads, case, threads):
    """Return the seconds per call on one thread and on `threads`, of the same arrays in turns."""
    call = implementation(threads).prepare(case)
    best = [math.inf, math.inf]
    for _ in range(TURNS):
        for i, n in enumerate((1, threads)):
            set_threads(n)
            best[i] = min(best[i], seconds(call, at_least=0.003, repeats=2))
    set_threads(threads)
    return best


def gain(times):
    """Return the median of what more threads gained in each round."""
    return statistics.median(one / all_ for one, all_ in times)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args(argv)
    threads = available_threads()
    if threads == 1:
        parser.error("there is one processor only")
    measured = [(CnormOut, functools.partial(cnorm.set_num_threads, policy="fixed"))]
    if importlib.util.find_spec("torch"):
        import torch

        measured.append((Copy, torch.set_num_threads))
    grid = list(cases())
    times = {case.name: [[] for _ in measured] for case in grid}
    # a round is over all cases: a noisy spell then spoils one round of each, not all of one
    for case in tqdm(grid * args.rounds, unit="case"):
        for found, (implementation, set_threads) in zip(times[case.name], measured, strict=True):
            found.append(measure(implementation, set_threads, case, threads))
    gains = {name: [gain(rounds) for rounds in found] for name, found in times.items()}
    print(f"{'':56} {'1 thread':>11} {threads:4} threads    gain  copy's")
    for name, found in times.items():
        one, all_ = (1e6 * statistics.median(t) for t in zip(*found[0], strict=True))
        columns = "".join(f"{value:8.2f}" for value in gains[name])
        print(f"{name:56} {one:8.1f} us {all_:8.1f} us{columns}")
    for (implementation, _), column in zip(
        measured, zip(*gains.values(), strict=True), strict=True
    ):
        mean = math.exp(sum(map(math.log, column)) / len(column))
        print(f"{implementation.name}: {mean:.2f} times as fast, the geometric mean of {len(grid)}")
        if threads == 2:
            enough = sum(value >= ENOUGH for value in column)
            print(f"  {enough} of them {ENOUGH} times or more, the least {min(column):.2f}")


if __name__ == "__main__":
    main()

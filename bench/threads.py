"""How much faster calls are on all threads than on one, over 1 MiB of input and in cache.

    python bench/threads.py --rounds 10

Prints, for each case, the best time on one thread and on all, and how many times as fast that is.
"""

import argparse
import itertools
import math

from cases import Case
from implementations import CnormOut, available_threads
from scaling import seconds
from tqdm import tqdm

import cnorm

ROWS = [(512, 768), (1024, 768), (128, 4096), (1024, 1024), (4096, 256), (16384, 64)]
IMAGES = [(4, 64, 56, 56), (8, 128, 32, 32)]
MATRICES = [(4096, 256), (1024, 1024)]
ENOUGH = 1.8  # of two threads


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


def measure(case, threads):
    """Return the seconds per call on one thread and on `threads`."""
    call = CnormOut(threads).prepare(case)
    found = []
    for n in (1, threads):
        with cnorm.num_threads(n):
            found.append(seconds(call, at_least=0.005, repeats=5))
    return found


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args(argv)
    threads = available_threads()
    if threads == 1:
        parser.error("there is one processor only")
    grid = list(cases())
    best = {case.name: [math.inf, math.inf] for case in grid}
    # a round is over all cases: a noisy spell then spoils one round of each, not all of one
    for case in tqdm(grid * args.rounds, unit="case"):
        best[case.name] = list(map(min, best[case.name], measure(case, threads)))
    times = {name: one / all_ for name, (one, all_) in best.items()}
    for name, (one, all_) in best.items():
        print(f"{name:56} {1e6 * one:8.1f} us {1e6 * all_:8.1f} us {times[name]:6.2f}")
    mean = math.exp(sum(map(math.log, times.values())) / len(times))
    print(f"{threads} threads: {mean:.2f} times as fast (geometric mean of {len(times)} cases)")
    if threads == 2:
        enough = sum(value >= ENOUGH for value in times.values())
        print(f"{enough} of them {ENOUGH} times or more, the least {min(times.values()):.2f}")


if __name__ == "__main__":
    main()

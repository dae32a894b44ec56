"""Two source trees of cnorm against each other, over the grid: did a change cost speed?

    python bench/trees.py ../before . --pairs 5 --turns 8 --cases '^layer_norm'

Both trees are built in place. A pair is two new processes, one for each tree, that make the same
arrays and call in turns of a few milliseconds, so that both meet the same spells of the machine.
A case's figure is the median over all turns of new / old; each pair of processes has its own, since
where the memory of a process lies can make 5 % of difference.
"""

import argparse
import json
import math
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

from cases import Case, grid
from tqdm import tqdm


def worker():
    """Answer lines of stdin: a case is prepared, a number of seconds is a turn of it."""
    from implementations import Cnorm, available_threads, timer

    import cnorm

    threads = int(os.environ.get("TREES_THREADS", 0)) or available_threads()
    cnorm.set_num_threads(threads, policy="fixed")
    timed = None
    for line in sys.stdin:
        asked = json.loads(line)
        if isinstance(asked, dict):
            asked["shape"] = tuple(asked["shape"])
            timed = timer(Cnorm(threads).prepare(Case(**asked)))
            timed.timeit(2)
            answer = str(Path(cnorm.__file__).parent)
        else:
            once = timed.timeit(1)
            count = max(1, int(asked / max(once, 1e-9)))
            answer = timed.timeit(count) / count
        print(json.dumps(answer), flush=True)


class Process:
    def __init__(self, tree):
        environment = {**os.environ, "PYTHONPATH": str(Path(tree).resolve())}
        command = [sys.executable, __file__, "--worker"]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def ask(self, what):
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def compare(old, new, cases, turns, seconds):
    """Return {name: (median of new / old, seconds of old)} of one pair of processes."""
    pair = [Process(old), Process(new)]
    found = {}
    for case in tqdm(cases, unit="case", leave=False):
        for process, tree in zip(pair, (old, new), strict=True):
            place = process.ask(vars(case))
            if Path(place) != Path(tree).resolve() / "cnorm":
                raise SystemExit(f"cnorm comes from {place}, not from {tree}")
        times = []
        for turn in range(turns):
            order = (0, 1) if turn % 2 else (1, 0)
            both = {i: pair[i].ask(seconds) for i in order}
            times.append((both[0], both[1]))
        found[case.name] = (
            statistics.median(b / a for a, b in times),
            statistics.median(a for a, _ in times),
        )
    for process in pair:
        process.close()
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old")
    parser.add_argument("new")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=0.006, help="of a turn")
    parser.add_argument("--cases", default="", help="a regular expression")
    args = parser.parse_args()
    cases = [case for case in grid() if case.op != "np.add" and re.search(args.cases, case.name)]
    rounds = []
    for _ in tqdm(range(args.pairs), unit="pair"):
        rounds.append(compare(args.old, args.new, cases, args.turns, args.seconds))
    medians = {}
    for case in cases:
        ratios = sorted(found[case.name][0] for found in rounds)
        medians[case.name] = statistics.median(ratios)
        old = statistics.median(found[case.name][1] for found in rounds)
        spread = f"{ratios[0]:6.2f} to {ratios[-1]:.2f}"
        print(f"{case.name:58} {1e6 * old:10.2f} us {medians[case.name]:6.3f} {spread}")
    mean = math.exp(statistics.fmean(map(math.log, medians.values())))
    slower = [name for name, ratio in medians.items() if ratio > 1.1]
    print(f"new / old, geometric mean of {len(cases)} cases: {mean:.3f}")
    print(f"more than 10 % slower: {', '.join(slower) or 'none'}")


if __name__ == "__main__":
    worker() if sys.argv[1:] == ["--worker"] else main()

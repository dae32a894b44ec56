"""One implementation in a process of its own, driven over its standard input and output.

    python bench/worker.py NAME THREADS

Each line in is a request as JSON, each line out its answer. `measure` asks for one round; what
goes wrong comes back as {"error": ...} and the worker lives on.
"""

import dataclasses
import json
import os
import sys
import warnings

import implementations
from cases import Case

BATCH_SECONDS = 0.004  # what one timed batch of calls should take
WARM_SECONDS = 0.002  # untimed calls before each round: others have used the caches since


class Worker:
    def __init__(self, name, threads):
        self.implementation = implementations.BY_NAME[name](threads)
        self.timer = None
        self.number = 1

    def versions(self):
        return self.implementation.versions()

    def prepare(self, case):
        case = Case(**(case | {"shape": tuple(case["shape"])}))
        self.timer = None  # let go of the last case's arrays first
        self.timer = implementations.timer(self.implementation.prepare(case))
        self.timer.timeit(2)
        self.number = 1
        while (seconds := self.timer.timeit(self.number)) < BATCH_SECONDS / 2:
            self.number *= 2
        return seconds / self.number

    def measure(self, batches):
        """Return the seconds per call of a few batches."""
        per_call = self.timer.timeit(1)
        self.timer.timeit(min(self.number, 1 + int(WARM_SECONDS / max(per_call, 1e-9))))
        return [self.timer.timeit(self.number) / self.number for _ in range(batches)]

    def release(self):
        self.timer = None


def main():
    name, threads = sys.argv[1], int(sys.argv[2])
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print goes to stderr, not between the answers
    warnings.simplefilter("ignore")
    worker = Worker(name, threads)
    for line in sys.stdin:
        do, arguments = json.loads(line)
        try:
            answer = {"value": getattr(worker, do)(*arguments)}
        except Exception as error:  # any failure of a peer is an answer
            answer = {"error": f"{type(error).__name__}: {error}"[:300]}
        print(json.dumps(answer), file=answers)


def encode(case):
    return dataclasses.asdict(case)


if __name__ == "__main__":
    main()

"""What synchronising costs: SyncBatchNorm beside BatchNorm2d, on as many ranks as mpiexec starts.

    mpiexec -n 2 python bench/bench_sync.py
    mpiexec -n 2 python bench/bench_sync.py --shape 8 256 14 14 --rounds 200

Each rank has an input of the shape. A round runs everything once, all ranks starting together, and
takes the time of the slowest rank; the table has the medians. Each rank has its share of the
processors. "Allgather" is the collective alone, of as many bytes.
"""

import argparse
import copy
import statistics
from time import perf_counter

import numpy as np
from implementations import available_threads
from mpi4py import MPI

import cnorm
from cnorm.modules._exchange import Exchange

NAMES = ("BatchNorm2d", "SyncBatchNorm", "Allgather")


def prepare(shape, comm):
    """Return {name: call}; a backward follows the forward of its own norm."""
    rng = np.random.default_rng(comm.Get_rank())
    x, dy = (rng.standard_normal(shape, np.float32) for _ in range(2))
    batch = cnorm.BatchNorm2d(shape[1])
    sync = cnorm.SyncBatchNorm.convert_sync_batchnorm(batch, comm)
    frozen, synced = copy.deepcopy(batch).eval(), copy.deepcopy(sync).eval()
    row = np.ones(Exchange(comm, shape[1], True).length)
    rows = np.ones((comm.Get_size(), row.size))
    return {
        "forward": {
            "BatchNorm2d": lambda: batch(x),
            "SyncBatchNorm": lambda: sync(x),
            "Allgather": lambda: comm.Allgather(row, rows),
        },
        "backward": {
            "BatchNorm2d": lambda: batch.backward(dy),
            "SyncBatchNorm": lambda: sync.backward(dy),
            "Allgather": lambda: comm.Allgather(row, rows),
        },
        "evaluation": {
            "BatchNorm2d": lambda: frozen(x),
            "SyncBatchNorm": lambda: synced(x),
            "Allgather": lambda: comm.Allgather(row, rows),
        },
    }


def measure(calls, comm, rounds):
    """Return {(direction, name): median seconds of the slowest rank}."""
    times = {(way, name): [] for way, named in calls.items() for name in named}
    for turn in range(rounds + 2):
        for (way, name), found in times.items():
            comm.Barrier()
            start = perf_counter()
            calls[way][name]()
            slowest = comm.allreduce(perf_counter() - start, MPI.MAX)
            if turn >= 2:  # the first ones map memory
                found.append(slowest)
    return {key: statistics.median(found) for key, found in times.items()}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", type=int, nargs=4, default=[32, 64, 56, 56], help="N C H W")
    parser.add_argument("--rounds", type=int, default=50)
    args = parser.parse_args(argv)
    comm = MPI.COMM_WORLD
    threads = max(1, available_threads() // comm.Get_size())
    cnorm.set_num_threads(threads)
    times = measure(prepare(tuple(args.shape), comm), comm, args.rounds)
    if comm.Get_rank() == 0:
        print(f"{comm.Get_size()} ranks of {threads} threads, {tuple(args.shape)} float32 each, µs")
        print(" " * 10, *(f"{name:>13}" for name in NAMES), "overhead")
        for way in ("forward", "backward", "evaluation"):
            found = [times[way, name] for name in NAMES]
            overhead = found[1] / found[0] - 1
            print(f"{way:10}", *(f"{1e6 * time:13.0f}" for time in found), f"{overhead:8.0%}")


if __name__ == "__main__":
    main()

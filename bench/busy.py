"""Calls on a busy machine: as many threads as there are processors against one, in turns.

    python bench/busy.py                  # a table; about six minutes
    python bench/busy.py --write docs     # and docs/busy.svg

Beside the calls run as many programs that only spin as the state says (0, 1, n and 2n of them on n
processors), a pool of n processes that make the same calls, or torch on its threads in the same
process. In a block of a second a call is made again and again, with one number of threads; blocks
take turns, so that whatever else changes falls on all of them. A time is the mean over all calls
of all blocks: rare long ones count. Ratios have the 95 % interval of a bootstrap over the blocks.

On the idle machine, "fixed" is the full number of threads without the policy that takes fewer on a
busy one; `--fixed` measures it in the other states too.
"""

import argparse
import contextlib
import importlib.util
import multiprocessing
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from implementations import available_threads
from tqdm import tqdm

import cnorm
import cnorm.functional as F

CASES = {
    "layer norm (256, 768)": (256, 768),
    "layer norm (8, 128, 768)": (8, 128, 768),
    "batch norm (32, 64, 56, 56)": (32, 64, 56, 56),
}
ARMS = ("one", "policy", "fixed")
RESAMPLES = 2000
ENOUGH = 1.5  # the mean on n threads, of that on one, at most


def call_of(shape):
    """Return a function that makes the call of a shape."""
    x = np.random.default_rng(0).standard_normal(shape, np.float32)
    out = np.ones_like(x)
    if len(shape) == 4:
        weight, bias = np.ones(shape[1], np.float32), np.zeros(shape[1], np.float32)
        return lambda: F.batch_norm(x, None, None, weight, bias, training=True, out=out)
    weight, bias = np.ones(shape[-1], np.float32), np.zeros(shape[-1], np.float32)
    return lambda: F.layer_norm(x, shape[-1], weight, bias, out=out)


def arm(name, threads):
    """Return the block in which calls run as this arm has it."""
    if name == "one":
        return cnorm.num_threads(1)
    return cnorm.num_threads(threads, policy="fixed" if name == "fixed" else "adaptive")


@dataclass
class Block:
    """What was measured in a block: seconds in calls, and how many there were."""

    seconds: float
    calls: int

    @property
    def mean(self):
        return self.seconds / self.calls


def block(call, seconds):
    """Return a block of calls."""
    spent, calls = 0.0, 0
    end = time.perf_counter() + seconds
    before = time.perf_counter()
    while before < end:
        call()
        after = time.perf_counter()
        spent += after - before
        calls += 1
        before = after
    return Block(spent, calls)


@contextlib.contextmanager
def spinning(count):
    """So many processes that do nothing and never wait."""
    programs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        time.sleep(0.2 if count else 0)
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()


@contextlib.contextmanager
def torch_at_work(threads):
    """A Python thread that keeps torch's own threads busy in this process."""
    import torch

    torch.set_num_threads(threads)
    a, b, c = (torch.ones(1 << 22) for _ in range(3))
    stop = threading.Event()

    def work():
        while not stop.is_set():
            torch.add(a, b, out=c)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        yield
    finally:
        stop.set()
        worker.join()


def pool_worker(pipe, shape, threads):
    """Make calls of a shape as the other end of the pipe says: (arm, seconds), or None."""
    call = call_of(shape)
    while (asked := pipe.recv()) is not None:
        with arm(asked[0], threads):
            pipe.send(block(call, asked[1]))


@contextlib.contextmanager
def pool(shape, threads):
    """A pool of spawned processes; gives a function that runs a block on all of them at once."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for _ in range(threads):
        ours, theirs = context.Pipe()
        process = context.Process(target=pool_worker, args=(theirs, shape, threads))
        process.start()
        pipes.append(ours)
        processes.append(process)

    def run(name, seconds):
        for pipe in pipes:
            pipe.send((name, seconds))
        blocks = [pipe.recv() for pipe in pipes]
        return Block(sum(b.seconds for b in blocks), sum(b.calls for b in blocks))

    try:
        run("one", 0.05)
        yield run
    finally:
        for pipe in pipes:
            pipe.send(None)
        for process in processes:
            process.join()


@contextlib.contextmanager
def at_work(state, shape, threads):
    """The state of the machine; gives the function that runs a block: (arm, seconds)."""
    if state == "pool":
        with pool(shape, threads) as run:
            yield run
        return
    call = call_of(shape)

    def run(name, seconds):
        with arm(name, threads):
            return block(call, seconds)

    beside = torch_at_work(threads) if state == "torch" else spinning(int(state))
    with beside:
        yield run


def ratio(above, below, rng):
    """Return the ratio of the means of two lists of blocks, and its 95 % interval."""

    def means(blocks):
        seconds = np.array([b.seconds for b in blocks])
        calls = np.array([b.calls for b in blocks])
        drawn = rng.integers(len(blocks), size=(RESAMPLES, len(blocks)))
        return seconds.sum() / calls.sum(), seconds[drawn].sum(1) / calls[drawn].sum(1)

    (a, a_drawn), (b, b_drawn) = means(above), means(below)
    return a / b, *np.percentile(a_drawn / b_drawn, [2.5, 97.5])


def pairs(above, below):
    """Return the median of the ratios of neighbouring blocks."""
    return float(np.median([a.mean / b.mean for a, b in zip(above, below, strict=True)]))


def measure(states, cases, threads, blocks, seconds, with_fixed):
    """Return {(state, case): {arm: [Block]}}."""
    found = {}
    rng = np.random.default_rng(0)
    todo = [(state, case) for state in states for case in cases]
    for state, case in tqdm(todo, unit="case"):
        arms = ARMS if with_fixed or state == "0" else ARMS[:2]
        times = {name: [] for name in arms}
        with at_work(state, CASES[case], threads) as run:
            for name in arms:  # memory, caches, and the policy find their state
                run(name, min(seconds, 0.3))
            for _ in range(-(-blocks // len(arms))):
                for name in rng.permutation(arms):  # no arm always follows the same one
                    times[name].append(run(name, seconds))
        found[state, case] = times
    return found


def label(state, threads):
    """Return a state in words."""
    if state == "pool":
        return f"a pool of {threads}"
    if state == "torch":
        return "torch in the process"
    return {"0": "idle", "1": "1 spins"}.get(state, f"{state} spin")


def rows(found, threads):
    """Return a row for each case: labels, times in ms, the ratio with its interval."""
    rng = np.random.default_rng(0)
    for (state, case), times in found.items():
        means = {
            name: 1e3 * sum(b.seconds for b in blocks) / sum(b.calls for b in blocks)
            for name, blocks in times.items()
        }
        kept = pairs(times["policy"], times["fixed"]) if "fixed" in times else None
        yield label(state, threads), case, means, ratio(times["policy"], times["one"], rng), kept


def print_table(table, threads):
    head = f"{'state':<22}{'case':<30}{'1 thread':>10}{f'{threads} threads':>11}{'fixed':>10}"
    print(f"{head}{'ratio':>8}  {'95 %':<14}{'to fixed':>9}")
    for state, case, means, (middle, low, high), kept in table:
        fixed = f"{means['fixed']:8.3f}ms" if "fixed" in means else ""
        interval, kept = f"{low:.2f} to {high:.2f}", "" if kept is None else f"{kept:9.3f}"
        print(
            f"{state:<22}{case:<30}{means['one']:8.3f}ms{means['policy']:9.3f}ms{fixed:>10}"
            f"{middle:8.2f}  {interval:<14}{kept}"
        )
    slow = [(state, case) for state, case, _, (_, low, _), _ in table if low > ENOUGH]
    print(f"more than {ENOUGH} times one thread's mean:", slow or "none")


def draw(table, threads, path):
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "cnorm"  # the same file from the same numbers
    import matplotlib.pyplot as plt

    states = list(dict.fromkeys(state for state, *_ in table))
    figure, grid = plt.subplots(1, len(CASES), figsize=(10, 3.6), sharey=True, squeeze=False)
    for axes, case in zip(grid[0], CASES, strict=True):
        for state, name, means, (middle, low, high), _ in table:
            if name != case:
                continue
            at = states.index(state)
            axes.barh(at, middle, color="#4c78a8", height=0.6)
            axes.plot([low, high], [at, at], color="#222222", linewidth=1.2)
            if "fixed" in means:
                fixed = means["fixed"] / means["one"]
                axes.plot(min(fixed, 10), at, marker="D" if fixed < 10 else ">", color="#e45756")
        axes.axvline(1, color="#888888", linewidth=0.8)
        axes.set_title(case, fontsize=10)
        axes.set_yticks(range(len(states)), states)
        axes.spines[["right", "top"]].set_visible(False)
        axes.set_xlim(left=0)
    grid[0, 0].invert_yaxis()
    figure.supxlabel(
        f"mean time on up to {threads} threads, of that on one (line: 95 %; red: policy fixed)",
        fontsize=10,
    )
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main(argv=None):
    threads = available_threads()
    states = ["0", "1", *(str(n) for n in (threads, 2 * threads) if n > 1), "pool"]
    if importlib.util.find_spec("torch"):
        states.append("torch")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=20, help="of all arms of a case together")
    parser.add_argument("--seconds", type=float, default=1.0, help="of a block")
    parser.add_argument("--states", nargs="+", default=states, help="programs; pool; torch")
    parser.add_argument("--cases", type=int, nargs="+", default=range(len(CASES)), help="0, 1, 2")
    parser.add_argument("--fixed", action="store_true", help="without the policy in every state")
    parser.add_argument("--write", metavar="DIR", help="write busy.svg")
    args = parser.parse_args(argv)
    if threads == 1:
        parser.error("there is one processor only")
    cases = [list(CASES)[i] for i in args.cases]
    found = measure(args.states, cases, threads, args.blocks, args.seconds, args.fixed)
    table = list(rows(found, threads))
    print_table(table, threads)
    if args.write:
        draw(table, threads, Path(args.write) / "busy.svg")


if __name__ == "__main__":
    main()

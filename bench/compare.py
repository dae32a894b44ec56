"""Compare cnorm with everything a user would otherwise run, case by case.

    python bench/compare.py --quick                 # a few minutes, printed
    python bench/compare.py --write docs            # the whole grid, table and chart
    python bench/compare.py --cases 'layer_norm.*backward' --peers torch,JAX

Every implementation lives in a process of its own. For each case all of them are prepared, then
measured in rounds that take turns in a shuffled order, the others stopped meanwhile, so that a
drift of the machine meets everybody alike. The median over all batches of all rounds counts, or
the minimum.
"""

import argparse
import json
import os
import platform
import random
import re
import selectors
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import implementations
import report
from cases import grid
from tqdm import tqdm
from worker import encode

HERE = Path(__file__).parent
PREPARE_SECONDS = 240  # torch.compile needs a C++ compiler's time
MEASURE_SECONDS = 60


class Remote:
    """A worker process; starts again after it died or hung."""

    def __init__(self, name, threads):
        self.name, self.threads = name, threads
        self.process = None

    def ask(self, do, *arguments, timeout=MEASURE_SECONDS):
        """Return the answer, or raise RuntimeError with what went wrong."""
        if self.process is None:
            self._start()
        self.process.send_signal(signal.SIGCONT)
        try:
            self.process.stdin.write(json.dumps([do, arguments]).encode() + b"\n")
            self.process.stdin.flush()
            answer = json.loads(self._line(timeout))
        except (OSError, ValueError, TimeoutError) as error:
            self.stop()
            raise RuntimeError(f"{self.name} died: {error!r}") from error
        self.process.send_signal(signal.SIGSTOP)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["value"]

    def _start(self):
        command = [sys.executable, str(HERE / "worker.py"), self.name, str(self.threads)]
        threads = str(self.threads)
        self.process = subprocess.Popen(
            command,
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads},
        )

    def _line(self, timeout):
        end, line = time.monotonic() + timeout, b""
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                if not selector.select(max(0, end - time.monotonic())):
                    raise TimeoutError(f"no answer within {timeout} s")
                part = os.read(self.process.stdout.fileno(), 65536)
                if not part:
                    raise OSError("closed its output")
                line += part
        return line

    def stop(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process.stdin.close()
            self.process.stdout.close()
            self.process = None


def measure(case, remotes, rounds, batches, say):
    """Return {implementation: times or error} for one case."""
    record = {"case": encode(case), "name": case.name, "times": {}, "errors": {}}
    ready = []
    for remote in remotes:
        say(remote.name)
        try:
            remote.ask("prepare", encode(case), timeout=PREPARE_SECONDS)
            ready.append(remote)
            record["times"][remote.name] = []
        except RuntimeError as error:
            record["errors"][remote.name] = str(error)
    shuffle = random.Random(case.name).shuffle
    for i in range(rounds):
        say(f"round {i + 1}")
        shuffle(ready)
        for remote in list(ready):
            try:
                record["times"][remote.name] += remote.ask("measure", batches)
            except RuntimeError as error:
                ready.remove(remote)
                del record["times"][remote.name]
                record["errors"][remote.name] = str(error)
    for remote in ready:
        remote.ask("release")
    record["median"] = {name: statistics.median(t) for name, t in record["times"].items()}
    record["minimum"] = {name: min(t) for name, t in record["times"].items()}
    del record["times"]
    return record


def machine(threads):
    """Describe where the numbers come from."""
    model = platform.processor() or platform.machine()
    try:
        text = Path("/proc/cpuinfo").read_text()
        model = re.search(r"model name\s*:\s*(.*)", text).group(1)
    except (OSError, AttributeError):
        pass
    return {
        "processor": model,
        "threads": threads,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0,
    }


def choose(args):
    """Return the cases and the implementations that the command line asks for."""
    cases = [case for case in grid() if re.search(args.cases, case.name)]
    if args.quick:
        cases = [case for case in cases if case.headline or case.overhead]
    if args.peers is None:
        peers = implementations.PEERS
    else:
        peers = args.peers.split(",") if args.peers else ()
    names = ["cnorm", "cnorm out=", *peers, "copy"]
    unknown = set(names) - set(implementations.BY_NAME)
    if unknown:
        known = ", ".join(implementations.PEERS)
        raise SystemExit(f"unknown peers: {', '.join(unknown)}; there are {known}")
    return cases, [name for name in names if implementations.BY_NAME[name].is_installed()]


def run(args):
    """Measure, and return everything the report needs."""
    cases, names = choose(args)
    if hasattr(os, "sched_setaffinity"):  # the only limit that every implementation obeys
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    remotes = [Remote(name, args.threads) for name in names]
    stamp, records = machine(args.threads) | {"versions": {}}, []
    try:
        for remote in list(remotes):
            try:
                stamp["versions"].update(remote.ask("versions", timeout=PREPARE_SECONDS))
            except RuntimeError as error:
                print(f"left out: {error}", file=sys.stderr)
                remotes.remove(remote)
        with tqdm(cases, unit="case", disable=args.no_progress) as bar:
            for case in bar:
                say = lambda text, name=case.name: bar.set_postfix_str(f"{name}: {text}")  # noqa: E731
                records.append(measure(case, remotes, args.rounds, args.batches, say))
                if args.json:  # after each case, so that an interrupted run is not lost
                    save({"machine": stamp, "records": records}, args.json)
    finally:
        for remote in remotes:
            remote.stop()
    return {"machine": stamp, "records": records}


def save(results, path):
    Path(path).write_text(json.dumps(results, indent=1) + "\n")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the headline cases and call overhead")
    parser.add_argument("--cases", default="", metavar="REGEX", help="cases whose name matches")
    parser.add_argument("--peers", metavar="A,B", help=", ".join(implementations.PEERS))
    parser.add_argument("--threads", type=int, default=implementations.available_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=5, help="timed batches in a round")
    parser.add_argument(
        "--statistic",
        choices=["median", "minimum"],
        default="median",
        help="minimum suits a machine that others use at the same time",
    )
    parser.add_argument("--json", metavar="FILE", help="save the results")
    parser.add_argument("--read", metavar="FILE", nargs="+", help="report saved results instead")
    parser.add_argument("--write", metavar="DIR", help="write benchmarks.md and benchmarks.svg")
    parser.add_argument("--no-progress", action="store_true")
    args = parser.parse_args(argv)

    results = report.read(args.read) if args.read else run(args)
    report.choose(results, args.statistic)
    print(report.text(results))
    if args.write:
        report.write(results, Path(args.write))


if __name__ == "__main__":
    main()

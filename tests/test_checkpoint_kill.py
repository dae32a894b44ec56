"""Saves that are killed: the file is the old one or the new one, whole, whatever the moment."""

import os
import subprocess
import sys

import pytest
from libraries import SAFETENSORS

KILLS = int(os.environ.get("CNORM_KILLS", "40"))

# One process imports everything; what it forks saves states in which all numbers are the same, one
# state after the other, until it is killed. It says in a pipe which it began and which it finished.
SCENE = """
import os, random, signal, sys, time
from pathlib import Path
import ml_dtypes, numpy as np
from cnorm import checkpoint

name, kills = sys.argv[1], int(sys.argv[2])
random.seed(name)

def state(number):
    sizes = {"weight": (300, 400), "bias": 7, "running": (3, 50_000), "num_batches_tracked": ()}
    return {key: np.full(size, number, np.float32) for key, size in sizes.items()}

def saved():
    values = {float(v) for array in checkpoint.load(name).values() for v in np.unique(array)}
    assert len(values) == 1, f"a mixture of {values}"
    return int(values.pop())

def save_from(number, pipe):
    while True:
        os.write(pipe, b"b%d " % number)
        checkpoint.save(name, state(number))
        os.write(pipe, b"f%d " % number)
        number += 1

start = time.perf_counter()
checkpoint.save(name, state(0))
duration = time.perf_counter() - start
old = new = 0
for _ in range(kills):
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        save_from(saved() + 1, writer)
    os.close(writer)
    words = os.read(reader, 1 << 16)  # it has begun
    time.sleep(random.uniform(0, 2 * duration))
    os.kill(pid, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    while more := os.read(reader, 1 << 16):
        words += more
    os.close(reader)
    words = words.decode().split()
    begun = max(int(word[1:]) for word in words if word[0] == "b")
    finished = max((int(word[1:]) for word in words if word[0] == "f"), default=begun - 1)
    found = saved()
    assert finished <= found <= begun, f"{found} of {words}"
    old, new = old + (found < begun), new + (found == begun)
left = [entry for entry in os.listdir() if entry != name]  # ours, or the library's
assert all(entry.startswith(".") for entry in left), left
checkpoint.save(name, state(5))  # and what the killed ones left is in nobody's way
assert saved() == 5
print(len(left), old, new)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("suffix", [SAFETENSORS, ".npz"])
def test_a_save_that_is_killed(elsewhere, suffix):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCENE, f"x{suffix}", str(KILLS)],
        capture_output=True,
        text=True,
        timeout=120 + KILLS,
    )
    assert done.returncode == 0, done.stderr
    left, old, new = map(int, done.stdout.split())
    assert old + new == KILLS
    assert left > 0, "no kill came while a file was being written"

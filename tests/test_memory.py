"""Peak memory: a call takes its result, a little for its channels, and no copy of anything.

Measured from outside of Python's allocator, in a process of its own.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent

# For each operation and layout: how far the peak of the resident memory rose above what was there
# before, in bytes, in the first forward and backward and in the second; the result is written into
# memory that exists. Threads and the pages of the code are there from calls of a smaller size.
# Neither cnorm's pool nor malloc keeps freed memory: an array made in it would not be seen.
SCRIPT = """
import json, sys, numpy as np, cnorm, cnorm.functional as F
from layouts import batch_strided, channels_last, contiguous, cropped
from operations import OPERATIONS

def resident(field):
    for line in open("/proc/self/status"):
        if line.startswith(field):
            return int(line.split()[1]) * 1024

def risen(call):
    most = 0
    for _ in range(2):
        cnorm.empty_cache()
        open("/proc/self/clear_refs", "w").write("5")  # the peak starts again from here
        before = resident("VmRSS")
        result = call()
        most = max(most, resident("VmHWM") - before)
    return most, result

found = {}
small = np.random.default_rng(0).normal(size=(8, 32, 16, 16)).astype(np.float32)
shape = tuple(map(int, sys.argv[1:]))
rng = np.random.default_rng(0)
values = rng.normal(size=shape).astype(np.float32)
cnorm.set_num_threads(2)
for operation in OPERATIONS:
    for layout in (contiguous, channels_last, cropped, batch_strided):
        if layout is channels_last and not operation.by_channel:
            continue  # rows that are not contiguous are copied, and said to be
        if layout is cropped and operation.fixed.get("dim") == 1:
            continue  # so are columns whose rows lie apart
        if operation.function.startswith("add") or operation.function == "cross_map_lrn":
            continue  # the sum is a result too; the legacy norm knows channels first alone
        few = layout(small)
        operation.run(F, few, few, operation.draw(rng, small.shape, 1, np.float32))
        x, dy, out = (layout(values.copy()) for _ in range(3))  # "contiguous" copies nothing
        p = operation.draw(rng, shape, 1, np.float32)
        forward, (_, *stats) = risen(lambda: operation.forward(F, x, dict(p), out=out))
        backward, _ = risen(lambda: operation.backward(F, dy, x, stats, p, out=out))
        size = x.nbytes if layout is contiguous else values.nbytes
        # beside a third of the input (normalize keeps 4 doubles for the 32 elements of a position):
        # gradients of the parameters and their partial sums
        parameter = max((v.size for v in p.values() if isinstance(v, np.ndarray)), default=0)
        found[f"{operation} {layout.__name__}"] = forward, backward, size / 3, 4 * 8 * parameter
print(json.dumps(found))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="measured through Linux")
def test_peak_memory_of_every_operation(elsewhere, whole):
    """On 4 MB, or 17, which is past most caches."""
    shape = ("16", "32", "96", "86") if whole else ("8", "32", "64", "61")
    path = os.pathsep.join([str(TESTS), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *shape],
        env=os.environ | {"PYTHONPATH": path, "MALLOC_MMAP_THRESHOLD_": str(1 << 20)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    for name, (forward, backward, limit, of_parameters) in json.loads(done.stdout).items():
        assert forward < limit, name
        assert backward < limit + of_parameters, name


# Forward and backward of each layer with less and less memory left to take.
EXHAUSTED = """
import copy, resource
import numpy as np, cnorm

def size():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()

def state(module):
    arrays = [*module.state_dict().values(), *[p.grad for p in module.parameters()]]
    return [None if a is None else np.asarray(a).tobytes() for a in arrays]

def attempt(call, limit):
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size() + limit, before[1]))
    try:
        return call()
    except MemoryError:
        return None
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)

cnorm.set_num_threads(2)
cnorm.set_cache_limit(0)
shape = (16, 64, 32, 32)
x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
last = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)
layers = {
    "batch": (cnorm.BatchNorm2d(64, activation=cnorm.PReLU(64)), x),
    "batch, channels last": (cnorm.BatchNorm2d(64), last),
    "batch, double": (cnorm.BatchNorm2d(64).double(), x),
    "lazy batch": (cnorm.LazyBatchNorm2d(), x),
    "instance": (cnorm.InstanceNorm2d(64, affine=True, track_running_stats=True), x),
    "switch": (cnorm.SwitchNorm2d(64), last),
    "switch of rows": (cnorm.SwitchNorm1d(1024), x.reshape(-1, 1024)),
    "group": (cnorm.GroupNorm(8, 64), last),
    "layer": (cnorm.LayerNorm(32), x),
    "response": (cnorm.LocalResponseNorm(5), x),
}
refused = 0
for name, (module, x) in layers.items():
    fresh = copy.deepcopy(module)
    module(x)  # the whole pass, with memory, and with threads that have started
    forward = state(module)
    module.backward(x)
    backward = state(module)
    for share in (0.02, 0.3, 0.7, 1.1, 1.6, 2.2, 3.3, 5):
        module = copy.deepcopy(fresh)
        done = attempt(lambda: module(x), int(share * x.nbytes))
        if done is None:
            refused += 1
            assert type(module) is type(fresh) and state(module) == state(fresh), name
            assert module._kept is None, name
            module(x)
        assert state(module) == forward, name
        del done
        done = attempt(lambda: module.backward(x), int(share * x.nbytes))
        if done is None:
            refused += 1
            assert state(module) == forward, name
            module.backward(x)
        assert state(module) == backward, name
        del done
print(refused)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="limited through Linux")
def test_what_cannot_be_allocated_leaves_the_module_as_it_was(elsewhere):
    # Large blocks go back to the system when they are freed, so that the limit is on all of them.
    done = subprocess.run(
        [sys.executable, "-c", EXHAUSTED],
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 40  # of 160 attempts: at least a whole result is needed

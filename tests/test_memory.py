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

# For each operation and layout: how far the peak of the resident memory rose above what was
# there before, in bytes, forward and backward; the result is written into memory that exists.
SCRIPT = """
import json, numpy as np, cnorm, cnorm.functional as F
from layouts import batch_strided, channels_last, contiguous, cropped
from operations import OPERATIONS

def resident(field):
    for line in open("/proc/self/status"):
        if line.startswith(field):
            return int(line.split()[1]) * 1024

def risen(call):
    call()
    open("/proc/self/clear_refs", "w").write("5")  # the peak starts again from here
    before = resident("VmRSS")
    call()
    return resident("VmHWM") - before

found = {}
shape = (16, 32, 96, 86)
rng = np.random.default_rng(0)
values = rng.normal(size=shape).astype(np.float32)
cnorm.set_num_threads(2)
for operation in OPERATIONS:
    for layout in (contiguous, channels_last, cropped, batch_strided):
        if layout is channels_last and not operation.by_channel:
            continue  # rows that are not contiguous are copied, and said to be
        if operation.function.startswith("add") or operation.function == "cross_map_lrn":
            continue  # the sum is a result too; the legacy norm knows channels first alone
        x, dy, out = layout(values), layout(values), layout(values)
        p = operation.draw(rng, shape, 1, np.float32)
        _, *stats = operation.forward(F, x, dict(p), out=out)
        found[f"{operation} {layout.__name__}"] = [
            risen(lambda: operation.forward(F, x, dict(p), out=out)),
            risen(lambda: operation.backward(F, dy, x, stats, p, out=out)),
            x.nbytes if layout is contiguous else values.nbytes,
        ]
print(json.dumps(found))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="measured through Linux")
def test_peak_memory_of_every_operation(elsewhere):
    path = os.pathsep.join([str(TESTS), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    for name, (forward, backward, size) in json.loads(done.stdout).items():
        assert forward < size / 4, name
        assert backward < size / 4, name

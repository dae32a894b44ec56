"""An allocation that fails in one thread of several: MemoryError, never a wrong result."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent

# A malloc in front of the system's: once armed, the first call from another thread fails.
MALLOC = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <unistd.h>
#include <sys/syscall.h>

static void *(*system_malloc)(size_t);
static volatile int armed, failures;

void arm(int value) { armed = value; if (value) failures = 0; }
int failed(void) { return failures; }

void *malloc(size_t size) {
    if (!system_malloc) system_malloc = (void *(*)(size_t))dlsym(RTLD_NEXT, "malloc");
    if (armed && size >= 64 && syscall(SYS_gettid) != getpid()
        && !__sync_fetch_and_add(&failures, 1))
        return NULL;
    return system_malloc(size);
}
"""

SCENE = """
import ctypes, sys
import numpy as np
import cnorm, cnorm.functional as F
from layouts import channels_last, contiguous
from operations import OPERATIONS

shim = ctypes.CDLL(sys.argv[1])
cnorm.set_num_threads(2)
rng = np.random.default_rng(0)
refused = 0
for operation in OPERATIONS:
    for dtype in (np.float32, np.float16):
        for shape in [(16, 32, 24, 24)]:
            x, dy = rng.normal(size=(2, *shape)).astype(dtype)
            p = operation.draw(rng, shape, 1)
            for layout in (contiguous, channels_last):
                arguments = F, layout(x), layout(dy), p
                expected = operation.run(*arguments)
                shim.arm(1)
                try:
                    results = operation.run(*arguments)
                except MemoryError:
                    results, refused = expected, refused + 1
                else:
                    assert not shim.failed(), f"{operation} {layout.__name__}"
                finally:
                    shim.arm(0)
                for name, value in results.items():
                    if name != "stats":
                        assert value.tobytes() == expected[name].tobytes(), f"{operation} {name}"
print(refused)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a malloc of ours: Linux alone")
@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_one_thread_lacks_memory(elsewhere, tmp_path):
    source, library = tmp_path / "malloc.c", tmp_path / "malloc.so"
    source.write_text(MALLOC)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    path = os.pathsep.join([str(TESTS), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCENE, library],
        env=os.environ | {"LD_PRELOAD": str(library), "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0, "no thread but the caller's allocated"

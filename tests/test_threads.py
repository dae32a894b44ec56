"""Python threads that share functions and modules, and who decides on the number of threads."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import cnorm
import cnorm.functional as F
from cnorm import _runtime

pytestmark = pytest.mark.usefixtures("elsewhere")
TESTS = Path(__file__).parent
SECONDS = float(os.environ.get("CNORM_SECONDS", "1"))


def _same_from_many_threads(jobs, **policy):
    """Call jobs from 16 Python threads, on 1 to 3 threads each: all have the bits of one thread."""
    with cnorm.num_threads(1):
        expected = [job().tobytes() for job in jobs]
    deadline = time.monotonic() + SECONDS

    def call(i):
        while time.monotonic() < deadline:
            with cnorm.num_threads(1 + i % 3, **policy):
                assert jobs[i % len(jobs)]().tobytes() == expected[i % len(jobs)]

    _run_together(call, 16)


def _run_together(target, count):
    """Each thread's exception, if any, raised here."""
    errors = []

    def guarded(i):
        try:
            target(i)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def test_functions_and_a_shared_module_from_many_threads(rng):
    x = rng.normal(size=(16, 12, 30, 17)).astype(np.float32)
    module = cnorm.BatchNorm2d(12)
    module(x)
    module.eval()
    jobs = [
        lambda: module(x),
        lambda: F.layer_norm(x, 17),
        lambda: F.group_norm(x, 3),
        lambda: F.instance_norm(x[:2]),
        lambda: F.batch_norm(x, training=True),
    ]
    _same_from_many_threads(jobs)


def test_a_shared_training_module_counts_every_call(rng):
    x = rng.normal(size=(8, 6, 9)).astype(np.float32)
    module = cnorm.BatchNorm1d(6, momentum=1.0)
    _run_together(lambda i: [module(x) for _ in range(50)], 8)
    assert module.num_batches_tracked == 400
    np.testing.assert_allclose(module.running_mean, x.mean((0, 2)), atol=1e-6)


def test_other_threads_run_during_a_call(rng):
    """The interpreter is free while a kernel works."""
    x = rng.normal(size=(2000, 20_000)).astype(np.float32)
    out = np.empty_like(x)
    steps, stop = [], threading.Event()

    def tick():
        while not stop.is_set():
            steps.append(time.perf_counter())
            time.sleep(1e-4)

    thread = threading.Thread(target=tick)
    thread.start()
    with cnorm.num_threads(1):
        start = time.perf_counter()
        F.layer_norm(x, 20_000, out=out)
        end = time.perf_counter()
    stop.set()
    thread.join()
    assert sum(start < step < end for step in steps) >= 3


def test_num_threads_nests_and_is_a_threads_own():
    before = cnorm.get_num_threads()
    with cnorm.num_threads(3):
        assert cnorm.get_num_threads() == 3
        with cnorm.num_threads(1):
            assert cnorm.get_num_threads() == 1
            seen = []
            _run_together(lambda i: seen.append(cnorm.get_num_threads()), 1)
            assert seen == [before]
        assert cnorm.get_num_threads() == 3
    assert cnorm.get_num_threads() == before


def test_num_threads_ends_with_its_block_whatever_happens():
    before = cnorm.get_num_threads()
    with pytest.raises(KeyError), cnorm.num_threads(before + 1):
        raise KeyError
    assert cnorm.get_num_threads() == before


def test_set_num_threads():
    before = cnorm.get_num_threads()
    try:
        cnorm.set_num_threads(before + 2)
        assert cnorm.get_num_threads() == before + 2
    finally:
        cnorm.set_num_threads(before)


@pytest.mark.parametrize(
    ("n", "error"),
    [
        (0, ValueError),
        (-1, ValueError),
        (1025, ValueError),
        (1 << 70, ValueError),
        (1.5, TypeError),
        ("2", TypeError),
    ],
)
def test_bad_numbers(n, error):
    before = cnorm.get_num_threads()
    with pytest.raises(error, match=r"^set_num_threads: .*threads must be"):
        cnorm.set_num_threads(n)
    with pytest.raises(error, match=r"^num_threads: .*threads must be"), cnorm.num_threads(n):
        pass
    assert cnorm.get_num_threads() == before


VARIABLES = (
    *("CNORM_ISA", "CNORM_NUM_THREADS", "GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME"),
    *("OMP_NUM_THREADS", "OMP_STACKSIZE", "GOMP_STACKSIZE", "OMP_THREAD_LIMIT"),
)


def _python(code, **environment):
    plain = {k: v for k, v in os.environ.items() if k not in VARIABLES}
    path = os.pathsep.join([str(TESTS), *filter(None, sys.path)])
    return subprocess.run(
        [sys.executable, "-c", code],
        env=plain | {"PYTHONPATH": path} | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize(
    ("environment", "n"),
    [
        ({"CNORM_NUM_THREADS": "3"}, 3),
        ({"OMP_NUM_THREADS": "5"}, 5),
        ({"CNORM_NUM_THREADS": "2", "OMP_NUM_THREADS": "5"}, 2),
        ({"CNORM_NUM_THREADS": "2", "OMP_NUM_THREADS": "5000"}, 2),
        ({"CNORM_NUM_THREADS": "1024"}, 1024),
        ({"OMP_NUM_THREADS": "1024"}, 1024),
    ],
)
def test_the_environment_says_how_many(environment, n):
    done = _python("import cnorm; print(cnorm.get_num_threads())", **environment)
    assert done.stdout.strip() == str(n), done.stderr
    assert done.stderr == ""


@pytest.mark.parametrize("value", ["1025", "5000,2", "5000000000"])
def test_more_than_it_takes_from_openmp(value):
    code = """
import cnorm
with cnorm.num_threads(3):
    pass
print(cnorm.get_num_threads())
"""
    done = _python(code, OMP_NUM_THREADS=value)
    assert done.stdout.strip() == "1024", done.stderr
    ours = [line for line in done.stderr.splitlines() if "RuntimeWarning" in line]
    assert len(ours) == 1, done.stderr
    assert "OMP_NUM_THREADS" in ours[0]


def test_the_processors_of_this_process_are_the_default():
    if hasattr(os, "sched_setaffinity"):
        code = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]);"
        done = _python(code + "import cnorm; print(cnorm.get_num_threads())")
        assert done.stdout.strip() == "1", done.stderr


@pytest.mark.parametrize(
    ("environment", "word"),
    [
        *(
            ({"CNORM_NUM_THREADS": n}, "CNORM_NUM_THREADS")
            for n in ("many", "0", "-2", "1025", "²")
        ),
        ({"CNORM_NUM_THREADS": "9" * 5000}, "CNORM_NUM_THREADS"),
        ({"CNORM_ISA": "mmx"}, "CNORM_ISA"),
    ],
)
def test_a_bad_environment_is_named_at_import(environment, word):
    done = _python("import cnorm", **environment)
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1].startswith(f"ValueError: {word}"), done.stderr


def test_a_limit_from_before_the_import():
    pytest.importorskip("threadpoolctl")
    if not _runtime.has_openmp():
        pytest.skip("this cnorm was built without OpenMP")
    code = """
import cnorm, threadpoolctl
print(*[p["filepath"] for p in threadpoolctl.threadpool_info() if p["user_api"] == "openmp"])
"""
    (library,) = _python(code).stdout.split()
    code = f"""
import ctypes
openmp = ctypes.CDLL({library!r})
openmp.omp_set_num_threads(1)
import cnorm
print(cnorm.get_num_threads())
openmp.omp_set_num_threads(3)
print(cnorm.get_num_threads())
"""
    done = _python(code, OMP_NUM_THREADS="3")
    assert done.stdout.split() == ["1", "3"], done.stderr


def test_a_team_made_while_subnormals_are_flushed_counts_them():
    """Threads of OpenMP inherit the modes of the thread that creates them, and keep them."""
    pytest.importorskip("torch")
    code = """
import numpy as np, torch, cnorm.functional as F
torch.set_flush_denormal(True)
x = np.full((1, 1 << 18, 1), 71362, np.uint32).view(np.float32)  # 1e-40
zeros, ones = np.zeros(1 << 18), np.ones(1 << 18)
print(np.count_nonzero(F.batch_norm(x, zeros, ones, eps=0.0).view(np.uint32)) == 1 << 18)
"""
    done = _python(code, CNORM_NUM_THREADS="2")
    assert done.stdout.strip() == "True", done.stderr


def test_threadpoolctl_sees_and_limits(rng):
    threadpoolctl = pytest.importorskip("threadpoolctl")
    x = rng.normal(size=(500, 700)).astype(np.float32)
    expected = F.layer_norm(x, 700)
    with threadpoolctl.threadpool_limits(1):
        assert cnorm.get_num_threads() == 1
        np.testing.assert_array_equal(F.layer_norm(x, 700), expected)
    code = """
import cnorm, threadpoolctl
pools = [p for p in threadpoolctl.threadpool_info() if p["user_api"] == "openmp"]
print(len(pools) > 0 or not cnorm._runtime.has_openmp())
"""
    done = _python(code)
    assert done.stdout.strip() == "True", done.stderr


LINUX = pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="counted through Linux")
OPENMP = pytest.mark.skipif(not _runtime.has_openmp(), reason="this cnorm was built without OpenMP")
STARTED = """
import os, resource, threading
import numpy as np, cnorm, cnorm.functional as F

def started():
    return len(os.listdir("/proc/self/task")) - before

def size():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()

x = np.random.default_rng(0).normal(size=(2048, 512)).astype(np.float32)  # 4 MiB
with cnorm.num_threads(1):
    expected = F.layer_norm(x, 512).tobytes()
before = len(os.listdir("/proc/self/task"))
"""


@LINUX
@OPENMP
def test_a_call_starts_no_more_threads_than_it_has_work_for():
    """One for each 64 KiB, and the second from 128 KiB on."""
    code = """
with cnorm.num_threads(64):
    for kib in (64, 127, 128, 192, 512, 128, 4096, 256):
        F.layer_norm(x.reshape(-1, 256)[:kib], 256)
        print(started(), end=" ")
with cnorm.num_threads(2):
    F.layer_norm(x, 512)
"""
    done = _python(STARTED + code)
    assert done.stdout.split() == ["0", "0", "1", "2", "7", "7", "63", "63"], done.stderr


# So many threads more are all that the system gives.
LIMITS = {
    "RLIMIT_NPROC": """
if os.getuid() == 0:  # whom that does not limit: become somebody who has no other process
    os.setgroups([]), os.setgid(54321), os.setuid(54321)
    more = 3
else:
    more = -before  # whatever else runs is counted too
resource.setrlimit(resource.RLIMIT_NPROC, (before + more, before + more))
few = range(1 + max(more, 0))
""",
    "RLIMIT_AS": """
resource.setrlimit(resource.RLIMIT_AS, (size() + (48 << 20),) * 2)  # a thread's stack is 8 MiB
few = range(1, 7)
""",
}


@LINUX
@OPENMP
@pytest.mark.parametrize("limit", LIMITS)
def test_threads_that_cannot_be_created(limit):
    code = """
for turn in range(50):
    with cnorm.num_threads(8 + turn % 3):
        assert F.layer_norm(x, 512).tobytes() == expected
    assert started() in few, started()
print("all right")
"""
    done = _python(STARTED + LIMITS[limit] + code, OMP_STACKSIZE="8m")
    assert done.stdout.strip() == "all right", (done.returncode, done.stderr)


@LINUX
@OPENMP
def test_threads_that_cannot_be_created_for_many_at_once():
    """Teams that end leave room a little later; two that grow do not count on the same room."""
    code = """
wrong = []
def work():
    with cnorm.num_threads(4):
        if F.layer_norm(x, 512).tobytes() != expected:
            wrong.append(1)

def start(thread):
    try:
        thread.start()
    except RuntimeError:  # Python's own thread cannot be had
        return False
    return True

calls = 0
for turn in range(100):
    threads = [thread for _ in range(3) if start(thread := threading.Thread(target=work))]
    for thread in threads:
        thread.join()
    calls += len(threads)
assert calls and not wrong
print("all right")
"""
    done = _python(STARTED + LIMITS["RLIMIT_NPROC"].replace("-before", "6") + code)
    if done.returncode and os.getuid() != 0:
        pytest.skip("needs a user of its own")
    assert done.stdout.strip() == "all right", (done.returncode, done.stderr)


STACKS = """
import threading
import numpy as np, cnorm, cnorm.functional as F
from cnorm import _dispatch
from layouts import channels_last
from operations import DTYPES, OPERATIONS, accumulation

SHAPES = [(16, 12, 30, 17), (200, 700), (3, 70000), (3, 2000, 13)]
rng = np.random.default_rng(0)

def run(threads, shapes):
    for build in _dispatch.available():
        for operation in OPERATIONS:
            for dtype in DTYPES:
                for shape in shapes:
                    if operation.accepts(shape, 1):
                        x, dy = rng.normal(size=(2, *shape)).astype(dtype)
                        p = operation.draw(rng, shape, 1, accumulation(dtype))
                        slope = 0.1 if operation.takes_slope else None
                        with _dispatch.using(build), cnorm.num_threads(threads):
                            assert cnorm.get_num_threads() == threads
                            operation.run(F, x, dy, p)
                            operation.run(F, channels_last(x), channels_last(dy), p, slope=slope)
"""


@OPENMP
def test_the_stack_that_a_thread_needs():
    code = """
run(4, SHAPES)
threading.stack_size(2 * cnorm._threads.STACK)  # half of it for Python
thread = threading.Thread(target=run, args=(1, SHAPES[:2]))
thread.start()
thread.join()
print("all right")
"""
    done = _python("import warnings; warnings.simplefilter('ignore')" + STACKS + code,
                   OMP_STACKSIZE=f"{cnorm._threads.STACK >> 10}k")  # fmt: skip
    assert done.stdout.strip() == "all right", (done.returncode, done.stderr)


@OPENMP
@pytest.mark.parametrize(
    "environment",
    [
        {"OMP_STACKSIZE": "64k"},
        {"OMP_STACKSIZE": " 255 "},
        {"OMP_STACKSIZE": "65536B"},
        {"OMP_STACKSIZE": "large", "GOMP_STACKSIZE": "100K"},
    ],
)
def test_a_stack_that_is_too_small(environment):
    code = """
with cnorm.num_threads(4):
    assert cnorm.get_num_threads() == 1
    assert F.layer_norm(x, 512).tobytes() == expected
cnorm.set_num_threads(3)
print(cnorm.get_num_threads(), F.layer_norm(x, 512).tobytes() == expected)
"""
    done = _python(STARTED + code, **environment)
    assert done.stdout.split() == ["1", "True"], (done.returncode, done.stderr)
    (warning,) = [line for line in done.stderr.splitlines() if "RuntimeWarning" in line]
    assert "STACKSIZE=" in warning
    assert "256k" in warning


# What each does on threads of its own, as a number.
OTHERS = {
    "torch": """
import torch
def other():
    return float(torch.arange(1e6).reshape(1000, 1000).softmax(1).sum())
""",
    "sklearn": """
from sklearn.cluster import KMeans
def other():
    points = np.random.default_rng(0).normal(size=(5000, 4))
    return round(float(KMeans(4, n_init=1, random_state=0).fit(points).inertia_), 3)
""",
    "numba": """
import numba
numba.config.THREADING_LAYER = "omp"
@numba.njit(parallel=True)
def other():
    total = 0
    for i in numba.prange(1000000):
        total += i
    return total
""",
}
BESIDE = """
import threading
import numpy as np
import threadpoolctl
{imports}
import cnorm.functional as F

x = (np.arange(900_000) % 1013).astype(np.float32).reshape(30, 30, 1000)
def digest():
    y, mean, rstd = F.batch_norm(x, training=True, return_stats=True)
    return hash((y.tobytes(), *[g.tobytes() for g in F.batch_norm_backward(x, x, mean, rstd)]))

with cnorm.num_threads(2):
    alone, theirs = digest(), other()
    wrong = []
    def work():
        with cnorm.num_threads(2):
            wrong.extend(d for d in (digest() for _ in range(20)) if d != alone)
    thread = threading.Thread(target=work)
    thread.start()
    assert [other() for _ in range(20)] == [theirs] * 20
    thread.join()
    assert not wrong
with threadpoolctl.threadpool_limits(1):
    assert cnorm.get_num_threads() == 1
    assert (digest(), other()) == (alone, theirs)
print(alone)
"""


@pytest.mark.parametrize("name", OTHERS)
def test_beside_another_library_in_either_order(name):
    pytest.importorskip(name)
    pytest.importorskip("threadpoolctl")
    orders = [OTHERS[name] + "import cnorm", "import cnorm" + OTHERS[name]]
    scripts = [BESIDE.format(imports=imports) for imports in (*orders, "import cnorm\nother = int")]
    runs = [_python(script, PYTHONHASHSEED="0") for script in scripts]
    assert [run.returncode for run in runs] == [0] * 3, "".join(run.stderr for run in runs)
    assert len({run.stdout for run in runs}) == 1, "the bits depend on what else was imported"


ONES = """
import sys, threading
import numpy as np
import cnorm.functional as F

sys.setswitchinterval(1e-6)
wrong = 0
bias = {n: np.linspace(-1, 1, n) for n in range(1025, 1 << 16, 256)}
x = {dtype: np.linspace(-2, 3, 1 << 16).astype(dtype) for dtype in (np.float32, np.float64)}
# Each round needs longer vectors of ones than all before it, in threads that start together.
for n in bias:
    barrier = threading.Barrier(4)

    def call(i, n=n):
        m = max(n - 64 * i, 1025)
        barrier.wait()
        F.layer_norm(x[np.float32][:m], m, None, bias[n][:m])

    threads = [threading.Thread(target=call, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    row = x[np.float64][:n]
    y = F.layer_norm(row, n, None, bias[n])
    wrong += y.tobytes() != F.layer_norm(row, n, np.ones(n), bias[n]).tobytes()
print(wrong)
"""


def test_rows_without_a_weight_in_threads(elsewhere):
    """As many ones stand for a weight as the row has elements, whoever else needs some."""
    done = subprocess.run([sys.executable, "-c", ONES], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == 0

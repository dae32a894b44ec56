"""Python threads that share functions and modules, and who decides on the number of threads."""

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import cnorm
import cnorm.functional as F
from cnorm import _runtime

pytestmark = pytest.mark.usefixtures("elsewhere")
SECONDS = float(os.environ.get("CNORM_SECONDS", "1"))


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
    with cnorm.num_threads(1):
        expected = [job().tobytes() for job in jobs]
    deadline = time.monotonic() + SECONDS

    def call(i):
        while time.monotonic() < deadline:
            with cnorm.num_threads(1 + i % 3):
                assert jobs[i % len(jobs)]().tobytes() == expected[i % len(jobs)]

    _run_together(call, 16)


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
    ("n", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), ("2", TypeError)]
)
def test_bad_numbers(n, error):
    before = cnorm.get_num_threads()
    with pytest.raises(error, match="threads"):
        cnorm.set_num_threads(n)
    with pytest.raises(error, match="threads"), cnorm.num_threads(n):
        pass
    assert cnorm.get_num_threads() == before


def _python(code, **environment):
    plain = {k: v for k, v in os.environ.items() if k not in ("CNORM_ISA", "CNORM_NUM_THREADS")}
    plain.pop("OMP_NUM_THREADS", None)
    path = os.pathsep.join(filter(None, sys.path))
    return subprocess.run(
        [sys.executable, "-c", code],
        env=plain | {"PYTHONPATH": path} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("environment", "n"),
    [
        ({"CNORM_NUM_THREADS": "3"}, 3),
        ({"OMP_NUM_THREADS": "5"}, 5),
        ({"CNORM_NUM_THREADS": "2", "OMP_NUM_THREADS": "5"}, 2),
    ],
)
def test_the_environment_says_how_many(environment, n):
    done = _python("import cnorm; print(cnorm.get_num_threads())", **environment)
    assert done.stdout.strip() == str(n), done.stderr


def test_the_processors_of_this_process_are_the_default():
    if hasattr(os, "sched_setaffinity"):
        code = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]);"
        done = _python(code + "import cnorm; print(cnorm.get_num_threads())")
        assert done.stdout.strip() == "1", done.stderr


@pytest.mark.parametrize(
    ("environment", "word"),
    [({"CNORM_NUM_THREADS": "many"}, "CNORM_NUM_THREADS"), ({"CNORM_ISA": "mmx"}, "CNORM_ISA")],
)
def test_a_bad_environment_is_named_at_import(environment, word):
    done = _python("import cnorm", **environment)
    assert done.returncode != 0
    assert word in done.stderr


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

"""Children of a process that has run in parallel: right results, and no hang.

GNU OpenMP hangs in a forked child that enters a parallel region. Each scene plays in a process of
its own, under a deadline.
"""

import os
import subprocess
import sys

import pytest

FORKS = int(os.environ.get("CNORM_FORKS", "20"))

PRELUDE = f"""
import os, sys
import numpy as np
import cnorm, cnorm.functional as F

FORKS = {FORKS}
x = np.random.default_rng(0).normal(size=(64, 16, 40, 33)).astype(np.float32)
rows = x.reshape(-1, 33)

def work(_=None):
    y, mean, rstd = F.batch_norm(x, training=True, return_stats=True)
    dx = F.batch_norm_backward(x, x, mean, rstd)[0]
    z = F.layer_norm(rows, 33)
    return float(y.sum()), float(np.abs(dx).sum()), float(np.abs(z).sum())

if __name__ == "__main__":
    cnorm.set_num_threads(2)
    expected = work()
"""

SCENES = {
    "fork": """
    for _ in range(FORKS):
        pid = os.fork()
        if pid == 0:
            os._exit(0 if work() == expected else 3)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert work() == expected  # and the parent still runs in parallel
    """,
    "grandchild": """
    pid = os.fork()
    if pid == 0:
        first = work()
        pid = os.fork()
        if pid == 0:
            os._exit(0 if work() == first == expected else 3)
        os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    """,
    "several at once, as a server does": """
    for _ in range(max(FORKS // 4, 1)):
        children = []
        for _ in range(4):
            pid = os.fork()
            if pid == 0:
                os._exit(0 if all(work() == expected for _ in range(3)) else 3)
            children.append(pid)
        for pid in children:
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    """,
    "the child asks for threads": """
    pid = os.fork()
    if pid == 0:
        cnorm.set_num_threads(4)
        with cnorm.num_threads(2):
            os._exit(0 if work() == expected else 3)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    """,
    "fork from a thread": """
    import threading
    failed = []
    def fork():
        pid = os.fork()
        if pid == 0:
            os._exit(0 if work() == expected else 3)
        failed.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    threads = [threading.Thread(target=fork) for _ in range(2)]
    [t.start() for t in threads], [t.join() for t in threads]
    assert failed == [0, 0]
    """,
}
for method in ("fork", "forkserver", "spawn"):
    SCENES[f"multiprocessing {method}"] = f"""
    import multiprocessing
    with multiprocessing.get_context("{method}").Pool(2) as pool:
        assert pool.map(work, range(4)) == [expected] * 4
    """
    SCENES[f"executor {method}"] = f"""
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor
    with ProcessPoolExecutor(2, multiprocessing.get_context("{method}")) as pool:
        assert list(pool.map(work, range(4))) == [expected] * 4
    """


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("scene", SCENES)
def test_children_of_a_parallel_process(scene, tmp_path):
    script = tmp_path / "scene.py"
    script.write_text(PRELUDE + SCENES[scene])
    path = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", script],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr

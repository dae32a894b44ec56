"""How tests run a Python program under mpiexec, with a deadline."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import cnorm


def run_ranks(size, *arguments, seconds=120):
    """Run a Python program on `size` ranks; its `CompletedProcess`.

    Fails where it has not ended after so many seconds: then some rank hangs.
    """
    folders = [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    mpiexec = shutil.which("mpiexec", path=os.pathsep.join(folders))
    assert mpiexec, 'mpi4py is installed, but there is no mpiexec: pip install "cnorm-layers[mpi]"'
    paths = [str(Path(cnorm.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    one_thread = {"CNORM_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    running = subprocess.Popen(
        [mpiexec, "-n", str(size), sys.executable, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | one_thread | {"PYTHONPATH": os.pathsep.join(paths)},
        start_new_session=True,
    )
    try:
        printed, errors = running.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(running.pid, signal.SIGKILL)
        printed, errors = running.communicate()
        pytest.fail(f"the ranks did not end within {seconds} s:\n{printed}\n{errors}")
    return subprocess.CompletedProcess(running.args, running.returncode, printed, errors)

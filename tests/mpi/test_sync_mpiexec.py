"""SyncBatchNorm on processes under mpiexec."""

from pathlib import Path

import numpy as np
import pytest
from mpiexec import run_ranks
from sync_checks import CHECKS

pytest.importorskip("mpi4py", reason="the extra [mpi] brings mpi4py")

HERE = Path(__file__).parent
EXAMPLE = HERE.parents[1] / "examples/train_digits_mpi.py"

# Something is wrong on rank 1 in its second step, and nobody catches anything.
RAISES = """
import sys
import traceback
from pathlib import Path

import numpy as np
from mpi4py import MPI

import cnorm

rank = MPI.COMM_WORLD.Get_rank()
norm = cnorm.SyncBatchNorm(3)
x = np.ones((4, 3), np.float32) * rank
try:
    for step in range(3):
        if rank == 1 and step == 1:
            {wrong}
        norm(x)
        norm.backward(x)
except Exception as error:
    (Path(sys.argv[1]) / str(rank)).write_text(f"{{step}} {{type(error).__name__}}: {{error}}")
    raise
"""


@pytest.fixture(scope="module", params=[1, 2, 3, 4])
def report(request, tmp_path_factory):
    """The checks that passed on so many ranks, in one call of mpiexec, and what it printed."""
    path = tmp_path_factory.mktemp("mpi") / "passed.txt"
    path.touch()
    run = run_ranks(request.param, HERE / "run_checks.py", path)
    return path.read_text().split(), f"exit status {run.returncode}\n{run.stdout}\n{run.stderr}"


@pytest.mark.parametrize("check", [check.__name__ for check in CHECKS])
def test_on_processes(report, check):
    passed, printed = report
    assert check in passed, printed


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ("x = x[0]", "failed on rank 1 of 3: expected at least 2D input (got 1D input)"),
        (
            "norm.eval()",
            "needs one mode on all ranks, but got training on rank 0, evaluation on rank 1, "
            "training on rank 2; where one rank evaluates alone, let it do so inside "
            "cnorm.no_grad()",
        ),
    ],
    ids=["bad input", "evaluation"],
)
def test_what_is_wrong_on_one_rank_leaves_nobody_waiting(wrong, expected, tmp_path):
    program = tmp_path / "raises.py"
    program.write_text(RAISES.format(wrong=wrong))
    run = run_ranks(3, program, tmp_path, seconds=60)
    assert run.returncode != 0
    for rank in range(3):
        text = (tmp_path / str(rank)).read_text()
        assert text == f"1 ValueError: SyncBatchNorm {expected}", run.stderr


def test_the_digits_follow_one_curve_on_any_number_of_ranks():
    for module in ("sklearn", "matplotlib", "tqdm"):
        pytest.importorskip(module, reason=f"the extra [examples] brings {module}")
    curves = []
    for size in (1, 2, 3):
        run = run_ranks(size, EXAMPLE, "--epochs", "5")
        assert run.returncode == 0, run.stderr
        _, _, results = run.stdout.partition(f"loss of each epoch on {size} ranks:\n")
        losses, _, held_out = results.partition("held out: ")
        assert float(held_out.partition("%")[0]) > 95
        curves.append([float(loss) for loss in losses.split()])
    assert len(curves[0]) == 5 and curves[0][-1] < 0.1 * curves[0][0]
    np.testing.assert_allclose(curves[1], curves[0], rtol=0, atol=1e-5)
    np.testing.assert_allclose(curves[2], curves[0], rtol=0, atol=1e-5)

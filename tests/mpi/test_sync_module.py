"""SyncBatchNorm as a module: repr, state, conversion, and life without mpi4py."""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from communicators import on_threads

import cnorm
from cnorm.modules._exchange import Exchange
from cnorm.modules._parts import whole_moments

convert = cnorm.SyncBatchNorm.convert_sync_batchnorm


class Alone:
    """The communicator of one rank."""

    def Get_size(self):
        return 1


def test_repr_is_torchs():
    norm = cnorm.SyncBatchNorm(3)
    text = "3, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=True"
    assert repr(norm) == f"SyncBatchNorm({text})"


def test_positions_are_torchs():
    group = Alone()
    norm = cnorm.SyncBatchNorm(3, 1e-3, 0.2, True, True, group, None, np.float64, bias=False)
    assert (norm.eps, norm.momentum, norm.process_group) == (1e-3, 0.2, group)
    assert norm.weight.dtype == np.float64 and norm.bias is None


def test_state_is_that_of_batch_norm():
    batch, sync = cnorm.BatchNorm2d(3), cnorm.SyncBatchNorm(3)
    assert list(sync.state_dict()) == list(batch.state_dict())
    assert sync.state_dict()._metadata[""] == {"version": 2}
    batch.running_mean += 1
    sync.load_state_dict(batch.state_dict())
    assert sync.running_mean.tolist() == [1, 1, 1]


@pytest.mark.parametrize("shape", [(), (3,), (2, 0), (2, 0, 4)], ids=str)
def test_bad_input(shape):
    norm = cnorm.SyncBatchNorm(3, process_group=Alone())
    words = (
        "SyncBatchNorm number of input channels should be non-zero"
        if 0 in shape
        else rf"expected at least 2D input \(got {len(shape)}D input\)"
    )
    for mode in (True, False):
        with pytest.raises(ValueError, match=f"^{words}$"):
            norm.train(mode)(np.zeros(shape, np.float32))


class Net(cnorm.Module):
    def __init__(self):
        super().__init__()
        shared = cnorm.BatchNorm1d(4)
        self.first = self.again = shared
        self.inner = cnorm.Sequential(
            cnorm.BatchNorm2d(4, 1e-3, None, activation=cnorm.PReLU(4), channel_axis=-1),
            cnorm.ModuleList([cnorm.BatchNorm3d(4, affine=False, track_running_stats=False)]),
            cnorm.InstanceNorm2d(4),
        )
        self.nothing = None


def test_conversion():
    net, group = Net(), Alone()
    net.inner[0].eval()
    net.inner[0].bias.requires_grad = False
    net.inner[0].running_mean += 2
    names = [name for name, _ in net.named_parameters()]
    parameters, old = list(net.parameters()), net.inner[0]
    assert convert(net, group) is net
    assert [name for name, _ in net.named_parameters()] == names
    assert all(a is b for a, b in zip(net.parameters(), parameters, strict=True))
    norms = [m for m in net.modules() if isinstance(m, cnorm.SyncBatchNorm)]
    assert len(norms) == 3 and all(norm.process_group is group for norm in norms)
    assert net.first is net.again
    new = net.inner[0]
    assert (new.eps, new.momentum, new.channel_axis, new.training) == (1e-3, None, -1, False)
    assert new.activation is old.activation and type(net.inner[2]) is cnorm.InstanceNorm2d
    assert new.running_mean.tolist() == [2] * 4 and new.running_mean is not old.running_mean
    assert new.num_batches_tracked.shape == () and new.num_batches_tracked.dtype == np.int64
    assert net.inner[1][0].weight is None and net.inner[1][0].running_mean is None


def test_conversion_of_a_norm_returns_another():
    batch = cnorm.BatchNorm1d(3, dtype=np.float64)
    sync = convert(batch)
    assert type(sync) is cnorm.SyncBatchNorm and sync.process_group is None
    assert sync.running_mean.dtype == np.float64
    group = Alone()
    assert convert(sync, group) is not sync and convert(sync, group).process_group is group


def test_a_lazy_norm_is_not_converted():
    with pytest.raises(ValueError, match="LazyBatchNorm2d is lazy: call it with a batch"):
        convert(cnorm.Sequential(cnorm.LazyBatchNorm2d()))


def test_a_pickle_holds_a_communicator_that_can_be_pickled():
    norm = pickle.loads(pickle.dumps(cnorm.SyncBatchNorm(3, process_group=Alone())))
    assert type(norm.process_group) is Alone
    assert norm(np.eye(3, dtype=np.float32)).shape == (3, 3)


@pytest.mark.parametrize("at", range(3))
def test_merging_is_exact_where_the_numbers_are(at):
    """Of 0 and 2, and of 3 and 7; a rank without elements changes nothing, wherever it is."""
    parts = [(2, 1, 0, 2), (2, 5, 0, 8)]
    parts.insert(at, (0, 9, 9, 9))
    counts, *moments = np.array(parts, np.float64).T[:, :, None]
    count, mean, lo, m2 = whole_moments(counts, np.stack(moments, axis=1))
    assert (*count, *mean, *lo, *m2) == (4, 3, 0, 26)


def test_an_error_of_any_class_and_length_arrives():
    class Strange(Exception):
        pass

    def tell(comm):
        exchange = Exchange(comm, 3, True)
        try:
            with exchange.reporting("forward"):
                if comm.Get_rank() == 1:
                    raise Strange("ä" * 5000)
            exchange.gather("forward", np.dtype(np.float32), 0)
        except Exception as error:
            return error

    errors = on_threads(2, tell)
    assert {type(error) for error in errors} == {RuntimeError}
    assert str(errors[0]) == str(errors[1])
    assert str(errors[0]).startswith("SyncBatchNorm failed on rank 1 of 2: Strange: ää")
    assert isinstance(errors[1].__context__, Strange)


def run_python(code):
    code = f"import sys\nimport numpy as np, cnorm\n{code}"
    root = str(Path(cnorm.__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_without_mpi4py_the_error_names_the_extra():
    run_python(
        """
sys.modules["mpi4py"] = None
norm, x = cnorm.SyncBatchNorm(3), np.ones((2, 3), np.float32)
norm.eval()(x)  # needs no other rank
try:
    norm.train()(x)
except ImportError as error:
    assert "cnorm-layers[mpi]" in str(error), error
else:
    raise AssertionError
assert norm.num_batches_tracked == 0
"""
    )


def test_evaluation_does_not_start_mpi():
    run_python(
        """
norm, x = cnorm.SyncBatchNorm(3).eval(), np.ones((2, 3), np.float32)
with cnorm.enable_grad():
    norm.backward(norm(x))
try:
    norm.backward(x)
except RuntimeError as error:
    assert "no forward pass" in str(error), error
else:
    raise AssertionError
assert "mpi4py" not in sys.modules
"""
    )


def test_evaluation_where_another_library_imported_mpi4py_and_mpi_does_not_run():
    pytest.importorskip("mpi4py", reason="the extra [mpi] brings mpi4py")
    run_python(
        """
import mpi4py
mpi4py.rc.initialize = False
from mpi4py import MPI
norm, x = cnorm.SyncBatchNorm(3).eval(), np.ones((2, 3), np.float32)
norm(x)
assert not MPI.Is_initialized()
MPI.Init()
norm(x)
MPI.Finalize()
norm(x)
"""
    )

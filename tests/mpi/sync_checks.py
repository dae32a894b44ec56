"""What must hold on every rank of a communicator: run by threads, and by processes under MPI.

A check is a function of the communicator, called on every rank at once. What it compares with is
batch norm, in one process, on the whole batch.
"""

import copy
import pickle
import time

import numpy as np
import pytest
from communicators import Recording

import cnorm

try:
    from ml_dtypes import bfloat16, finfo
except ImportError:
    bfloat16, finfo = None, np.finfo

CHECKS = []
BATCH = {2: cnorm.BatchNorm1d, 3: cnorm.BatchNorm1d, 4: cnorm.BatchNorm2d, 5: cnorm.BatchNorm3d}
SPATIAL = {2: (), 3: (7,), 4: (3, 5), 5: (2, 3, 2)}


def check(function):
    CHECKS.append(function)
    return function


# --- what the checks share ----------------------------------------------------------------------


def numbers(shape, dtype=np.float32, seed=0, mean=0.0):
    return (np.random.default_rng(seed).standard_normal(shape) + mean).astype(dtype)


def fill(module, seed=5):
    """Give a module parameters and statistics that are not ones and zeros."""
    rng = np.random.default_rng(seed)
    for array in [*module.parameters(), *module.buffers()]:
        if array.ndim:
            array[...] = rng.uniform(0.5, 1.5, array.shape)
    return module


def part(comm, sizes):
    """The slice of the batch of this rank."""
    stop = np.cumsum(sizes)
    rank = comm.Get_rank()
    return slice(int(stop[rank] - sizes[rank]), int(stop[rank]))


def splits(comm):
    """Ways to share a batch: even, uneven, and with an empty rank, first or last."""
    size = comm.Get_size()
    yield [4] * size
    yield [2 + 3 * rank for rank in range(size)]
    if size > 1:
        yield [5] * (size - 1) + [0]
        yield [0, 9] + [1] * (size - 2)


def same_everywhere(comm, *arrays):
    """Assert that all ranks have the same bits."""
    mine = b"".join(np.asarray(array).tobytes() for array in arrays)
    assert set(comm.allgather(mine)) == {mine}


def total(comm, array):
    """The sum over the ranks, in float64."""
    return sum(comm.allgather(np.asarray(array, np.float64)))


def assert_close(found, expected, at_least=1.0, epsilons=2):
    """Within 2 epsilon of the largest value, or of `at_least`; integers are equal."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape and found.dtype == expected.dtype
    eps = 0.0 if found.dtype == np.int64 else float(finfo(found.dtype).eps)
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    largest = np.nanmax(abs(expected), initial=at_least)
    error = np.nanmax(abs(found - expected), initial=0) / largest
    assert error <= epsilons * eps, f"error {error}, epsilon {eps}"


def largest_terms(batch, x, dy):
    """The largest of what an output is the sum of, and a gradient; each is rounded."""
    x, dy = (np.moveaxis(a.astype(np.float64), batch.channel_axis, -1) for a in (x, dy))
    axes = tuple(range(x.ndim - 1))
    weight = 1.0 if batch.weight is None else batch.weight.astype(np.float64)
    bias = 0.0 if batch.bias is None else batch.bias.astype(np.float64)
    scale = weight / np.sqrt(x.var(axes) + batch.eps)
    return np.max(abs((x - x.mean(axes)) * scale) + abs(bias)), np.max(abs(dy * scale))


def compare(comm, sync, batch, x, dy, sizes):
    """Forward and backward of a part on every rank, against `batch` on all of it."""
    mine = part(comm, sizes)
    y, dx = batch(x), batch.backward(dy)
    of_y, of_dx = largest_terms(batch, x, dy)
    assert_close(sync(x[mine]), y[mine], of_y)
    assert_close(sync.backward(dy[mine]), dx[mine], of_dx)
    for buffer, expected in zip(sync.buffers(), batch.buffers(), strict=True):
        assert_close(buffer, expected)
    same_everywhere(comm, *sync.buffers())
    of_a_sum = 2 * np.sqrt(x.size)  # what a running sum of so many numbers near one reaches
    for ours, theirs in zip(sync.parameters(), batch.parameters(), strict=True):
        grad = total(comm, ours.grad).astype(ours.dtype)
        assert_close(grad, theirs.grad, of_a_sum, epsilons=3)  # each rank's sum is rounded


def twins(comm, batch):
    """A batch norm and its synchronised twin, apart."""
    fill(batch)
    sync = cnorm.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(batch), comm)
    assert type(sync) is cnorm.SyncBatchNorm and sync.process_group is comm
    return sync, batch


def raises_everywhere(comm, kind, words, call):
    """Assert that every rank raises the same error, and return its text."""
    try:
        call()
        mine = None
    except Exception as error:
        mine = type(error), str(error)
    all_of_them = comm.allgather(mine)
    assert mine is not None and set(all_of_them) == {mine}, all_of_them
    assert mine[0] is kind and words in mine[1], mine
    return mine[1]


# --- equal to batch norm on the whole batch -----------------------------------------------------


@check
def ranks_and_layouts(comm):
    for ndim in (2, 3, 4, 5):
        for axis in (1, -1):
            for sizes in splits(comm):
                shape = [sum(sizes), *SPATIAL[ndim]]
                shape.insert(axis if axis == 1 else len(shape), 6)
                sync, batch = twins(comm, BATCH[ndim](6, channel_axis=axis))
                x, dy = numbers(shape, seed=1), numbers(shape, seed=2)
                compare(comm, sync, batch, x, dy, sizes)


@check
def dtypes_and_large_means(comm):
    for dtype in filter(None, (np.float64, np.float32, np.float16, bfloat16)):
        for mean in (0.0, 1e4):
            wide = dtype if dtype in (np.float64, np.float32) else np.float32
            sync, batch = twins(comm, cnorm.BatchNorm2d(3, dtype=wide))
            for sizes in splits(comm):
                shape = (sum(sizes), 3, 4, 5)
                x, dy = numbers(shape, dtype, 3, mean), numbers(shape, dtype, 4)
                compare(comm, sync, batch, x, dy, sizes)


@check
def means_that_differ_between_ranks(comm):
    sizes = [3] * comm.Get_size()
    x, dy = numbers((sum(sizes), 4, 9), np.float64), numbers((sum(sizes), 4, 9), np.float64, 1)
    x += 1e4 * np.repeat(np.arange(comm.Get_size()), 3)[:, None, None]
    sync, batch = twins(comm, cnorm.BatchNorm1d(4, dtype=np.float64))
    compare(comm, sync, batch, x, dy, sizes)


@check
def options(comm):
    sizes = [2 + rank for rank in range(comm.Get_size())]
    x, dy = numbers((sum(sizes), 4, 5)), numbers((sum(sizes), 4, 5), seed=1)
    for given in (
        {"momentum": None},
        {"momentum": 0.0},
        {"eps": 0.1},
        {"bias": False},
        {"affine": False},
        {"track_running_stats": False},
        {"affine": False, "track_running_stats": False},
        {"activation": cnorm.ReLU()},
        {"activation": cnorm.LeakyReLU(0.3)},
        {"activation": cnorm.PReLU()},
        {"activation": cnorm.PReLU(4)},
    ):
        sync, batch = twins(comm, cnorm.BatchNorm1d(4, **given))
        for step in range(3):
            compare(comm, sync, batch, x + np.float32(step), dy, sizes)
    batch = cnorm.BatchNorm1d(4)
    batch.track_running_stats = False  # afterwards: trains without, evaluates with them
    sync, batch = twins(comm, batch)
    compare(comm, sync, batch, x, dy, sizes)
    assert_close(sync.eval()(x), batch.eval()(x))


@check
def strange_memory(comm):
    sizes = [3] * comm.Get_size()
    x = numbers((sum(sizes), 8, 6, 6))[:, ::2, ::-1, 1:]
    dy = numbers((sum(sizes), 5, 4, 6), seed=1).transpose(0, 2, 3, 1)
    sync, batch = twins(comm, cnorm.BatchNorm2d(4))
    compare(comm, sync, batch, x, dy, sizes)
    compare(comm, sync, batch, x.astype(">f4"), dy, sizes)


@check
def one_value_per_rank(comm):
    size = comm.Get_size()
    sync, batch = twins(comm, cnorm.BatchNorm1d(3))
    if size > 1:
        x, dy = numbers((size, 3)), numbers((size, 3), seed=1)
        compare(comm, sync, batch, x, dy, [1] * size)


@check
def an_empty_batch(comm):
    sync, _ = twins(comm, cnorm.BatchNorm2d(3))
    before = [buffer.copy() for buffer in sync.buffers()]
    x = np.zeros((0, 3, 2, 2), np.float32)
    assert sync(x).shape == x.shape and sync.backward(x).shape == x.shape
    assert not sync.weight.grad.any() and not sync.bias.grad.any()
    mean, var, count = sync.buffers()
    assert mean.tolist() == before[0].tolist() and var.tolist() == before[1].tolist()
    assert count == before[2] + 1


@check
def nan_spoils_its_channel_on_all_ranks(comm):
    last = comm.Get_rank() == comm.Get_size() - 1
    for bad in (np.nan, np.inf, -np.inf):
        sync = cnorm.SyncBatchNorm(4, process_group=comm)
        x = numbers((3, 4, 5), seed=comm.Get_rank())
        if last:
            x[1, 2, 3] = bad
        nan = np.isnan(sync(x)).any((0, 2))
        assert nan.tolist() == [False, False, True, False]
        assert np.isnan(sync.running_var).tolist() == nan.tolist()
        assert np.isnan(sync.backward(np.ones_like(x))).any((0, 2)).tolist() == nan.tolist()


@check
def groups_of_ranks(comm):
    rank, size = comm.Get_rank(), comm.Get_size()
    color = rank % 2
    group = comm.Split(color)
    mine = [r for r in range(size) if r % 2 == color]
    parts = [numbers((2 + r, 3, 4), seed=r, mean=r) for r in mine]
    whole = np.concatenate(parts)
    sync, batch = twins(group, cnorm.BatchNorm1d(3))
    compare(group, sync, batch, whole, numbers(whole.shape, seed=9), [len(p) for p in parts])
    if size > 1:  # the groups have statistics of their own
        assert len(set(comm.allgather(sync.running_mean.tobytes()))) == 2


@check
def alone_it_is_batch_norm(comm):
    alone = comm.Split(comm.Get_rank())
    for axis in (1, -1):
        sync, batch = twins(alone, cnorm.BatchNorm2d(4, channel_axis=axis))
        x, dy = numbers((3, 4, 4, 4), seed=comm.Get_rank()), numbers((3, 4, 4, 4), seed=7)
        assert sync(x).tobytes() == batch(x).tobytes()
        assert sync.backward(dy).tobytes() == batch.backward(dy).tobytes()
        assert sync.weight.grad.tobytes() == batch.weight.grad.tobytes()
        for ours, theirs in zip(sync.buffers(), batch.buffers(), strict=True):
            assert ours.tobytes() == theirs.tobytes()
    with pytest.raises(ValueError, match=r"^Expected more than 1 value .* size \[1, 4\]"):
        cnorm.SyncBatchNorm(4, process_group=alone)(x[:1, :, 0, 0])


# --- what is communicated -----------------------------------------------------------------------


@check
def one_collective_each_way(comm):
    recording = Recording(comm)
    alone = comm.Get_size() == 1
    lengths = set()
    for samples in (1, 2, 50):
        sync = cnorm.SyncBatchNorm(100, process_group=recording)
        x = numbers((samples, 100, 3))
        recording.calls.clear()
        sync(x)
        assert [name for name, _ in recording.calls] == ["Allgather"] * (not alone)
        sync.backward(x)
        assert [name for name, _ in recording.calls] == ["Allgather"] * (2 * (not alone))
        lengths.update(nbytes for _, nbytes in recording.calls)
    assert alone or lengths == {4096}  # whatever the batch, and both ways
    for channels in (3, 83, 512, 2048):
        recording.calls.clear()
        cnorm.SyncBatchNorm(channels, process_group=recording)(numbers((2, channels)))
        assert all(nbytes <= max(2048, 64 * channels) for _, nbytes in recording.calls)


@check
def evaluation_is_one_collective_too(comm):
    recording = Recording(comm)
    names = ["Allgather"] * (comm.Get_size() > 1)
    x = numbers((3, 4, 5), seed=comm.Get_rank())
    for tracked in (True, False):  # without statistics it uses those of the part
        sync, batch = twins(recording, cnorm.BatchNorm1d(4, track_running_stats=tracked).eval())
        recording.calls.clear()
        assert sync(x).tobytes() == batch(x).tobytes()
        assert [name for name, _ in recording.calls] == names
        with cnorm.enable_grad():
            sync(x), batch(x)
        assert [name for name, _ in recording.calls] == names * 2
        assert sync.backward(x).tobytes() == batch.backward(x).tobytes()
        assert [name for name, _ in recording.calls] == names * 3
    empty = np.zeros((0, 4), np.float32)
    sync(empty if comm.Get_rank() == 0 else x)


@check
def one_rank_evaluates_alone(comm):
    recording = Recording(comm)
    x = numbers((3, 4, 5), seed=comm.Get_rank())
    sync, _ = twins(recording, cnorm.BatchNorm1d(4))
    for _ in range(2):
        sync(x)
        sync.backward(x)
        if comm.Get_rank() == 0:  # while the others go on, and wait in their next forward
            recording.calls.clear()
            sync.eval()
            with cnorm.no_grad():
                sync(x[:1])
                with pytest.raises(ValueError, match="expected at least 2D input"):
                    sync(x[0, 0])
            sync.train()
            assert recording.calls == []
    with cnorm.no_grad():  # in training it takes the statistics of all all the same
        recording.calls.clear()
        sync(x)
        assert len(recording.calls) == (comm.Get_size() > 1)
    same_everywhere(comm, *sync.buffers())


# --- errors, on every rank or on none -----------------------------------------------------------


def untouched(sync):
    return [array.tobytes() for array in sync.buffers()]


@check
def a_rank_with_bad_input(comm):
    size = comm.Get_size()
    sync = fill(cnorm.SyncBatchNorm(4, process_group=comm))
    good = numbers((3, 4, 5))
    bad = {
        "expected at least 2D input (got 1D input)": (ValueError, good[0, 0]),
        "should contain 5 elements not 4": (RuntimeError, numbers((3, 5))),
        "number of input channels should be non-zero": (ValueError, good[:, :0]),
        "input must be a float32": (TypeError, good.astype(np.int64)),
        "complex64": (TypeError, good.astype(np.complex64)),
    }
    for training in (True, False):
        sync.train(training)
        for words, (kind, wrong) in bad.items():
            before = untouched(sync)
            for guilty in {0, size - 1}:
                x = wrong if comm.Get_rank() == guilty else good
                text = raises_everywhere(comm, kind, words, lambda x=x: sync(x))
                if size > 1:
                    assert text.startswith(f"SyncBatchNorm failed on rank {guilty} of {size}: ")
            text = raises_everywhere(comm, kind, words, lambda wrong=wrong: sync(wrong))
            assert "failed on rank" not in text  # where all ranks say the same
            assert untouched(sync) == before
        sync(good)  # and then goes on
    sync.train()
    sync(good)
    sync.backward(good)
    if size > 1:  # the length of a message follows from num_features
        bare = cnorm.SyncBatchNorm(4, affine=False, track_running_stats=False, process_group=comm)
        wide = numbers((3, 5))
        raises_everywhere(comm, ValueError, "expected 4 channels, got 5", lambda: bare(wide))


@check
def ranks_that_disagree(comm):
    rank, size = comm.Get_rank(), comm.Get_size()
    if size == 1:
        return
    odd = rank == size - 1
    where = f"on rank {size - 1}"
    x = numbers((3, 4, 5))

    sync = fill(cnorm.SyncBatchNorm(4, process_group=comm))
    before = untouched(sync)
    mixed = x.astype(np.float64) if odd else x
    channels = 7 if odd else 4
    other = cnorm.SyncBatchNorm(channels, affine=False, process_group=comm)
    wide = numbers((3, channels, 5))
    for training in (True, False):
        sync.train(training), other.train(training)
        text = raises_everywhere(comm, ValueError, "one dtype on all ranks", lambda: sync(mixed))
        assert "float32 on rank 0" in text and f"float64 {where}" in text
        text = raises_everywhere(comm, ValueError, "one num_features on all", lambda: other(wide))
        assert "4 on rank 0" in text and f"7 {where}" in text
    assert before == untouched(sync)
    sync.train()

    with cnorm.no_grad() if odd else cnorm.enable_grad():
        sync(x)
    text = raises_everywhere(comm, RuntimeError, "no forward pass", lambda: sync.backward(x))
    assert f"rank {size - 1}" in text
    assert sync.weight.grad is None

    with cnorm.enable_grad():
        sync(x)

    def out_of_step():
        sync(x) if odd else sync.backward(x)

    raises_everywhere(comm, ValueError, "one call on all ranks", out_of_step)
    assert before != untouched(sync)  # by the two forwards that worked
    same_everywhere(comm, *sync.buffers())


@check
def training_beside_evaluation(comm):
    rank, size = comm.Get_rank(), comm.Get_size()
    if size == 1:
        return
    x = numbers((3, 4, 5))
    for tracked in (True, False):
        sync = cnorm.SyncBatchNorm(4, track_running_stats=tracked, process_group=comm)
        before = untouched(fill(sync))
        for odd in {0, size - 1}:
            for odd_trains in (True, False):
                for odd_is_late in (True, False):
                    sync.train((rank == odd) is odd_trains)
                    if (rank == odd) is odd_is_late:
                        time.sleep(0.02)
                    text = raises_everywhere(
                        comm, ValueError, "one mode on all ranks", lambda sync=sync: sync(x)
                    )
                    assert f"{'training' if odd_trains else 'evaluation'} on rank {odd}" in text
                    assert "let it do so inside cnorm.no_grad()" in text
        assert untouched(sync) == before
        sync.train(rank != 0)
        for bad in (rank == 0, rank != 0):  # input that is bad as well does not hide it
            given = x[0, 0] if bad else x
            words = "one mode on all ranks"
            raises_everywhere(comm, ValueError, words, lambda sync=sync, x=given: sync(x))
        sync.train()  # and then goes on
        sync(x)
        sync.backward(x)


@check
def a_mode_that_changes_before_backward(comm):
    """Backward goes back through the forward there was, and talks as that did."""
    odd = comm.Get_rank() == comm.Get_size() - 1
    x = numbers((3, 4, 5), seed=comm.Get_rank())
    sync, _ = twins(comm, cnorm.BatchNorm1d(4))
    expected = copy.deepcopy(sync)
    for training in (True, False):
        sync.train(training), expected.train(training)
        with cnorm.enable_grad():
            sync(x), expected(x)
        if odd:
            sync.train(not training)
        with cnorm.no_grad() if odd else cnorm.enable_grad():
            dy = x[:2] if odd else x
            raises_everywhere(comm, RuntimeError, "grad_output", lambda dy=dy: sync.backward(dy))
            found = sync.backward(x)
        assert found.tobytes() == expected.backward(x).tobytes()


@check
def errors_of_backward_in_evaluation(comm):
    odd = comm.Get_rank() == comm.Get_size() - 1
    x = numbers((3, 4, 5))
    trained = cnorm.SyncBatchNorm(4, process_group=comm)
    frozen = cnorm.SyncBatchNorm(4, process_group=comm).eval()
    net = cnorm.Sequential(trained, frozen)

    def forward():
        with cnorm.enable_grad():
            net(x)

    # The others would go on to the layer below, which trains, and wait there.
    for kind, wrong in ((RuntimeError, x[:2]), (TypeError, x.astype(np.float64))):
        forward()
        dy = wrong if odd else x
        raises_everywhere(comm, kind, "grad_output", lambda dy=dy: net.backward(dy))
    forward()
    if odd:
        with cnorm.no_grad():
            frozen(x)  # alone, and so keeps nothing
    raises_everywhere(comm, RuntimeError, "no forward pass", lambda: net.backward(x))
    with cnorm.no_grad():
        raises_everywhere(comm, RuntimeError, "no forward pass", lambda: frozen.backward(x))
    assert trained.weight.grad is None and frozen.weight.grad is None
    forward()
    net.backward(x)


@check
def errors_of_backward(comm):
    rank, size = comm.Get_rank(), comm.Get_size()
    sync = cnorm.SyncBatchNorm(4, process_group=comm)
    x = numbers((3, 4, 5))
    raises_everywhere(comm, RuntimeError, "no forward pass", lambda: sync.backward(x))
    guilty = rank == size - 1
    for kind, wrong in ((RuntimeError, x[:2]), (TypeError, x.astype(np.float64))):
        sync(x)
        dy = wrong if guilty else x
        raises_everywhere(comm, kind, "grad_output", lambda dy=dy: sync.backward(dy))
    assert sync.weight.grad is None
    weight = sync.weight
    sync.weight = cnorm.Parameter(np.ones(5 if guilty else 4, np.float32))
    words = "weight should contain 4 elements not 5"
    raises_everywhere(comm, RuntimeError, words, lambda: sync.backward(x))
    sync.weight = weight
    sync.backward(x)  # forward is still kept
    raises_everywhere(comm, RuntimeError, "no forward pass", lambda: sync.backward(x))


@check
def one_value_of_all_ranks(comm):
    if comm.Get_size() > 1:
        sync = cnorm.SyncBatchNorm(3, process_group=comm)
        x = numbers((int(comm.Get_rank() == 1), 3, 1))
        before = untouched(sync)
        words = "Expected more than 1 value per channel when training, got input size [1, 3]"
        raises_everywhere(comm, ValueError, words, lambda: sync(x))
        assert untouched(sync) == before


# --- copies -------------------------------------------------------------------------------------


@check
def copies_share_the_communicator(comm):
    group = comm.Split(0)
    net = cnorm.Sequential(cnorm.SyncBatchNorm(3, process_group=group), cnorm.ReLU())
    twin = copy.deepcopy(net)
    assert twin[0].process_group is group and twin[0].weight is not net[0].weight
    assert copy.copy(net[0]).process_group is group
    x = numbers((4, 3), seed=comm.Get_rank())
    assert net(x).tobytes() == twin(x).tobytes()
    with pytest.raises(TypeError, match="set process_group to None first"):
        pickle.dumps(net)
    net[0].process_group = None
    again = pickle.loads(pickle.dumps(net))
    assert again[0].process_group is None
    again[0].process_group = group
    assert again(x).tobytes() == twin(x).tobytes()

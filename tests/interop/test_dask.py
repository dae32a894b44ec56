"""Dask arrays: what the functions in memory give, lazily, whatever the chunks and the workers."""

import itertools
import weakref

import numpy as np
import pytest

pytest.importorskip("dask.array", reason="the extra [dask] brings dask")

import dask
import dask.array as da

import cnorm
import cnorm.functional as F
import cnorm.interop.dask as cd

SHAPE, CHUNKS = (7, 6, 5, 4), (2, 3, 5, 3)
AXES = [None, 0, -1, (0, 2, 3), (1, 2), (0, 1, 2, 3), ()]


@pytest.fixture(autouse=True)
def synchronous():
    with dask.config.set(scheduler="synchronous"):
        yield


@pytest.fixture
def a(rng):
    return rng.normal(3, 2, SHAPE).astype(np.float32)


@pytest.fixture
def x(a):
    return da.from_array(a, chunks=CHUNKS)


def close(got, want, eps=8 * 2**-23):
    assert got.dtype == want.dtype and got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=eps, atol=eps * np.abs(want).max(initial=1))


def same_moments(got, want):
    assert (got.axis, got.shape) == (want.axis, want.shape)
    np.testing.assert_array_equal(got.count, want.count)
    error = np.abs(got.mean - want.mean)
    bound = 4 * 2**-52 * (np.abs(want.mean) + want.std())
    assert ((error <= bound) | (want.count == 0)).all()
    np.testing.assert_allclose(got.m2, want.m2, rtol=64 * 2**-52)


@pytest.mark.parametrize("axis", AXES, ids=str)
def test_moments_and_standardize(a, x, axis, rng):
    same_moments(cd.moments(x, axis).compute(), F.moments(a, axis))
    results = cd.standardize(x, axis, return_stats=True)
    wanted = F.standardize(a, axis, return_stats=True)
    assert results[0].chunks == x.chunks
    for lazy, got, want in zip(results, dask.compute(*results), wanted, strict=True):
        assert lazy.shape == want.shape and lazy.dtype == want.dtype
        close(got, want)
    z = results[0].compute()
    for moments in (cd.moments(x, axis), cd.moments(x, axis).compute()):
        assert np.array_equal(cd.standardize(x, axis, moments).compute(), z)
    mask = rng.random((7, 1, 5, 4)) < 0.7
    same_moments(cd.moments(x, axis, where=mask).compute(), F.moments(a, axis, where=mask))
    got = cd.standardize(x, axis, where=da.from_array(mask)).compute()
    close(np.nan_to_num(got), np.nan_to_num(F.standardize(a, axis, where=mask)))


def test_options(a, x):
    a = np.where(a > 5, np.nan, a)
    x = da.where(x > 5, np.nan, x)
    options = {"ddof": 1, "nan_policy": "omit", "clip": (-1, 1), "dtype": "f8"}
    got, want = (
        cd.standardize(x, 0, eps=0.5, **options),
        F.standardize(a, 0, eps=0.5, **options),
    )
    np.testing.assert_allclose(got.compute(), want, rtol=1e-12)
    with pytest.raises(ValueError, match="contains NaN"):
        cd.moments(x, 0, nan_policy="raise").compute()


@pytest.mark.parametrize("chunks", [-1, 5, 1], ids=str)
def test_a_tree_of_many_chunks(rng, chunks):
    a = rng.integers(0, 255, (200, 3), np.uint8)
    x = da.from_array(a, chunks=(chunks, 2))
    same_moments(cd.moments(x, 0).compute(), F.moments(a, 0))
    assert cd.standardize(x, 0).dtype == np.float32
    # The parts in order, eight to a task: these bits, whoever computes them.
    parts = [F.moments(part, 0) for part in np.split(a, 200)]
    while chunks == 1 and len(parts) > 1:
        parts = [cnorm.Moments.merge(parts[i : i + 8]) for i in range(0, len(parts), 8)]
    assert chunks != 1 or cd.moments(x, 0).compute() == parts[0]


def test_nothing_is_computed_early():
    def block():
        raise AssertionError("computed")

    x = da.from_delayed(dask.delayed(block)(), (4, 3), np.float32, meta=np.empty((0, 0), "f4"))
    cd.moments(x, 0)
    cd.standardize(x, 0, return_stats=True)
    cd.batch_norm(x, training=True, return_stats=True)
    lazy = cd.layer_norm(x, 3)
    with pytest.raises(AssertionError, match="computed"):
        lazy.compute()


@pytest.mark.parametrize("channel_axis", [1, -1])
def test_batch_norm(a, x, rng, channel_axis):
    w, b = rng.normal(size=(2, a.shape[channel_axis])).astype(np.float32)
    options = {"channel_axis": channel_axis, "return_stats": True, "negative_slope": b}
    for args in [(None, None, w, b, True), (b, w * w, w, None)]:
        got, want = cd.batch_norm(x, *args, **options), F.batch_norm(a, *args, **options)
        for lazy, one, other in zip(got, dask.compute(*got), want, strict=True):
            assert lazy.shape == other.shape
            close(one, other, 32 * 2**-23)


def test_norms_of_whole_blocks_have_the_bits_of_memory(a, x, rng):
    x = x.rechunk({3: -1})
    w, b = rng.normal(size=(2, 6)).astype(np.float32)
    rows = rng.normal(size=(5, 4)).astype(np.float32)
    whole = x.rechunk((2, -1, -1, -1))
    mixed = (b, w * w, w, b, w[:3], b[:3])
    cases = [
        ("instance_norm", x, (None, None, w, b), (None, None, w, b), True),
        ("instance_norm", x, (b, w * w, w, b, False), (b, w * w, w, b, False), False),
        ("group_norm", x, (2, w, b), (2, w, b), True),
        ("layer_norm", x, ((5, 4), rows, rows), ((5, 4), rows, rows), True),
        ("rms_norm", x, (4,), (4,), True),
        ("add_layer_norm", x, (2 * x, 4), (2 * a, 4), True),
        ("add_rms_norm", x, (2 * x, (5, 4), rows), (2 * a, (5, 4), rows), True),
        ("local_response_norm", whole, (3,), (3,), False),
        ("switch_norm", whole, mixed, mixed, False),
    ]  # fmt: skip
    for name, x, lazy_args, args, stats in cases:
        options = {"return_stats": True} if stats else {}
        got = getattr(cd, name)(x, *lazy_args, **options)
        want = getattr(F, name)(a, *args, **options)
        pairs = zip(got, want, strict=True) if isinstance(want, tuple) else [(got, want)]
        for lazy, other in pairs:
            one = lazy.compute()
            assert lazy.shape == one.shape == other.shape and one.dtype == other.dtype, name
            assert np.array_equal(one, other), name


def test_errors(a, x):
    for call, needed in [
        (lambda: cd.layer_norm(x, 4), {3: -1}),
        (lambda: cd.instance_norm(x), {3: -1}),
        (lambda: cd.group_norm(x, 1), {1: -1, 3: -1}),
        (lambda: cd.local_response_norm(x, 3), {1: -1}),
    ]:
        with pytest.raises(ValueError, match="in one chunk") as error:
            call()
        assert f"x.rechunk({needed})" in str(error.value)
    b = np.ones(6, "f4")
    for call, kind, said in [
        (lambda: cd.batch_norm(x, b, b, training=True), ValueError, "a graph may run twice"),
        (lambda: cd.instance_norm(x.rechunk(), b, b), ValueError, "a graph may run twice"),
        (lambda: cd.batch_norm(x), RuntimeError, "running_mean must be defined"),
        (lambda: cd.batch_norm(x, b[:2], b[:2]), RuntimeError, "should contain 6 elements"),
        (lambda: cd.batch_norm(x[:1, :, 0, 0], training=True), ValueError, "more than 1 value"),
        (lambda: cd.moments(a, 0), TypeError, "must be a dask array, but got ndarray"),
        (lambda: cd.moments(x, 9), np.exceptions.AxisError, "out of bounds"),
        (lambda: cd.moments(x.astype(complex), 0), TypeError, "complex"),
        (lambda: cd.moments(x, 0, nan_policy="o"), ValueError, "nan_policy must be"),
        (lambda: cd.standardize(x, 0, clip=(2, 1)), ValueError, "low <= high"),
        (lambda: cd.standardize(x, 0, F.moments(a, 1)), ValueError, "moments must be over"),
        (lambda: cd.standardize(x, 0, 3), TypeError, "moments must be Moments"),
        (lambda: cd.moments(x, 0, where=a), TypeError, "where must be a bool array"),
        (lambda: cd.layer_norm(x.rechunk(), 4, np.ones((7, 1, 1, 4))), ValueError, "per sample"),
        (lambda: F.moments(x, 0), TypeError, r"cnorm\.interop\.dask"),
    ]:
        with pytest.raises(kind, match=said):
            call()


@pytest.mark.parametrize("name", ["standardize", "batch_norm"])
def test_no_chunk_is_kept_until_the_statistics_are_known(name):
    """Each chunk is read by the task that needs it, twice, and forgotten."""
    alive = reads = most = 0

    def forget():
        nonlocal alive
        alive -= 1

    def read(block_info=None):
        nonlocal alive, reads, most
        chunk = np.arange(12.0).reshape(4, 3) + 0
        weakref.finalize(chunk, forget)
        alive, reads = alive + 1, reads + 1
        most = max(most, alive)
        return chunk

    x = da.map_blocks(read, chunks=((4,) * 40, (3,)), dtype=np.float64, meta=np.empty((0, 0)))
    lazy = cd.standardize(x, 0) if name == "standardize" else cd.batch_norm(x, training=True)
    assert abs(lazy.sum().compute()) < 1e-9
    assert reads == 80 and most < 5
    x = x.persist()
    lazy = cd.standardize(x, 0) if name == "standardize" else cd.batch_norm(x, training=True)
    assert abs(lazy.sum().compute()) < 1e-9 and reads == 120


@pytest.fixture
def cluster_bits(tmp_path):
    """The function that computes on a cluster of so many processes."""
    distributed = pytest.importorskip("distributed", reason="the extra [dask] brings distributed")

    def compute(x, workers):
        options = {"n_workers": workers, "threads_per_worker": 1, "processes": True}
        with (
            dask.config.set(scheduler=None, temporary_directory=str(tmp_path)),
            distributed.LocalCluster(**options, dashboard_address=None) as cluster,
            distributed.Client(cluster) as client,
        ):
            client.wait_for_workers(workers)
            z, m = cd.standardize(client.persist(x), (0, 1)), cd.moments(x, (0, 1))
            y, mean, _ = cd.batch_norm(x, training=True, channel_axis=-1, return_stats=True)
            where = client.run(lambda: __import__("os").getpid())
            assert len(set(where.values())) == workers
            return [m.compute(), *(one.compute() for one in (z, y, mean))]

    return compute


def test_a_cluster_gives_the_bits_of_one_process(rng, cluster_bits, tmp_path):
    """Several worker processes, which read a zarr store where zarr is there."""
    a = rng.integers(0, 4096, (40, 30, 3)).astype(np.uint16).astype(np.float32)
    x = da.from_array(a, chunks=(7, 30, 3))
    try:
        import zarr
    except ImportError:
        pass
    else:
        stored = zarr.open_array(
            str(tmp_path / "x.zarr"), mode="w", shape=a.shape, chunks=(7, 30, 3), dtype=a.dtype
        )
        stored[...] = a
        x = da.from_zarr(str(tmp_path / "x.zarr"))
    here = [cd.moments(x, (0, 1)).compute(), cd.standardize(x, (0, 1)).compute()]
    y, mean, _ = cd.batch_norm(x, training=True, channel_axis=-1, return_stats=True)
    here += [y.compute(), mean.compute()]
    there = cluster_bits(x, 3)
    assert there[0] == here[0]
    for one, other in itertools.islice(zip(there, here, strict=True), 1, None):
        assert np.array_equal(one, other)
    same_moments(here[0], F.moments(a, (0, 1)))

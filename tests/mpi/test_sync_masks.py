"""SyncBatchNorm of what masks select: the counts of the ranks merge."""

import numpy as np
from communicators import on_threads

import cnorm


def test_sync_batch_norm(rng):
    """Three ranks, one of them without a mask, as one batch norm of the whole batch."""
    parts = [rng.normal(0.4, 2, (n, 4, 10)) for n in (3, 2, 4)]
    masks = [rng.random((3, 1, 10)) < 0.6, None, rng.random((4, 4, 10)) < 0.5]
    masks[2][:, 3] = False
    grads = [rng.normal(size=p.shape) for p in parts]
    whole = np.concatenate(
        [
            np.broadcast_to(True if m is None else m, p.shape)
            for m, p in zip(masks, parts, strict=True)
        ]
    )

    def run(comm):
        rank = comm.rank
        layer = cnorm.SyncBatchNorm(4, process_group=comm, dtype=np.float64)
        y = layer(parts[rank], where=masks[rank])
        dx = layer.backward(grads[rank])
        return y, dx, layer.weight.grad, layer.running_mean, layer.running_var

    found = on_threads(3, run)
    layer = cnorm.BatchNorm1d(4, dtype=np.float64)
    y = layer(np.concatenate(parts), where=whole)
    dx = layer.backward(np.concatenate(grads))
    np.testing.assert_allclose(np.concatenate([f[0] for f in found]), y, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(np.concatenate([f[1] for f in found]), dx, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(sum(f[2] for f in found), layer.weight.grad, rtol=1e-11, atol=1e-11)
    for rank in found:
        np.testing.assert_allclose(rank[3], layer.running_mean, rtol=1e-13)
        np.testing.assert_allclose(rank[4], layer.running_var, rtol=1e-13)


def test_ranks_with_masks_of_all_true_and_masked_arrays(rng):
    parts = rng.normal(0.4, 2, (2, 3, 4, 10)).astype(np.float32)
    dy = rng.normal(size=parts.shape).astype(np.float32)
    holes = rng.random(parts.shape) < 0.3

    def call(kind):
        def of_rank(comm):
            rank = comm.rank
            layer = cnorm.SyncBatchNorm(4, process_group=comm)
            x, where = parts[rank], None
            if kind == "all True":
                where = np.ones((1, 4, 1), bool)
            elif kind == "where":
                where = ~holes[rank]
            elif kind == "numpy.ma":
                x = np.ma.masked_array(x, holes[rank])
            y = layer(x, where=where)
            dx = layer.backward(
                np.ma.masked_array(dy[rank], holes[rank]) if kind == "numpy.ma" else dy[rank]
            )
            if kind == "numpy.ma":
                for a in (y, dx):
                    assert isinstance(a, np.ma.MaskedArray) and np.array_equal(a.mask, holes[rank])
            arrays = y, dx, layer.weight.grad, layer.running_mean, layer.running_var
            return [np.ma.getdata(a).tobytes() for a in arrays]

        return on_threads(2, of_rank)

    assert call("all True") == call("none")
    assert call("numpy.ma") == call("where")

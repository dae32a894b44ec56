"""Norms of the elements that a mask selects: `where=`.

The oracle is the definition: each unit's True values, in float64 NumPy. Its gradients are those of
the formulas; finite differences check the functions themselves once more.
"""

import sys

import ml_dtypes
import numpy as np
import pytest
from operations import FURTHER_OPERATIONS, OPERATIONS

import cnorm
from cnorm import _dispatch, _reference
from cnorm import functional as F

ALL = OPERATIONS + FURTHER_OPERATIONS
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
# tolerance of results of size 1: a few roundings of the dtype, or of float32 where it is wider
TOLERANCE = {"float64": 1e-12, "float32": 4e-6, "float16": 4e-3, "bfloat16": 3e-2}


# ---- the oracle: a table (units, elements) with a mask ----


def normalized(x, mask, weight, bias, eps, centred=True):
    """(y, mean, rstd) of a table of units; y is 0 where the mask is False."""
    y, means, rstds = np.zeros_like(x), [], []
    for i, (row, selected) in enumerate(zip(x, mask, strict=True)):
        values = row[selected]
        if values.size == 0:
            means.append(0.0), rstds.append(0.0)
            continue
        mean = values.mean() if centred else 0.0
        rstd = 1 / np.sqrt(((values - mean) ** 2).mean() + eps)
        y[i, selected] = (values - mean) * rstd * weight[i, selected] + bias[i, selected]
        means.append(mean), rstds.append(rstd)
    return y, np.array(means), np.array(rstds)


def gradients(dy, x, mask, mean, rstd, weight, centred=True, constant=False):
    """(dx, terms of grad_weight, terms of grad_bias), each a table, 0 where the mask is False."""
    dx, dw, db = np.zeros_like(x), np.zeros_like(x), np.zeros_like(x)
    for i, selected in enumerate(mask):
        if not selected.any():
            continue
        xhat = (x[i, selected] - mean[i]) * rstd[i]
        g = dy[i, selected] * weight[i, selected]
        dw[i, selected], db[i, selected] = dy[i, selected] * xhat, dy[i, selected]
        if not constant:
            g = g - (g.mean() if centred else 0) - xhat * (g * xhat).mean()
        dx[i, selected] = rstd[i] * g
    return dx, dw, db


class Table:
    """An input as a table of units, and back."""

    def __init__(self, shape, unit_axes, channel_axis=None):
        self.shape, self.unit_axes, self.channel_axis = shape, unit_axes, channel_axis
        self.order = [*unit_axes, *(i for i in range(len(shape)) if i not in unit_axes)]
        self.units = int(np.prod([shape[i] for i in unit_axes], dtype=int))

    def split(self, a):
        a = np.broadcast_to(a, self.shape).transpose(self.order)
        return np.ascontiguousarray(a).reshape(self.units, -1)

    def join(self, table):
        sizes = [self.shape[i] for i in self.order]
        return table.reshape(sizes).transpose(np.argsort(self.order))


def grouped(x, groups, channel_axis):
    """A shape with the channel axis split in two, and where they are."""
    shape = list(x.shape)
    axis = channel_axis % x.ndim
    return [*shape[:axis], groups, shape[axis] // groups, *shape[axis + 1 :]], axis


class Case:
    """One norm of one input: the functions, and the oracle."""

    def __init__(self, norm, rng, shape, dtype, channel_axis=1, layout="C"):
        self.norm, self.axis = norm, channel_axis
        self.dtype = np.dtype(dtype)
        self.x = laid_out(rng.normal(0.3, 1.0, shape).astype(self.dtype), layout)
        self.dy = laid_out(rng.normal(0.1, 1.0, shape).astype(self.dtype), layout)
        wide = np.promote_types(self.dtype, np.float32)
        self.rows = norm in ("layer", "rms")
        size = shape[-1] if self.rows else shape[channel_axis]
        self.groups = {"instance": size, "group": max(1, size // 2)}.get(norm)
        if norm == "group" and size % self.groups:
            self.groups = 1
        self.weight, self.bias = rng.uniform(0.5, 1.5, (2, size)).astype(wide)
        self.eps = 1e-3

    def forward(self, x=None, **kwargs):
        x = self.x if x is None else x
        if self.norm == "layer":
            return F.layer_norm(x, x.shape[-1], self.weight, self.bias, self.eps, **kwargs)
        if self.norm == "rms":
            return F.rms_norm(x, x.shape[-1], self.weight, self.eps, **kwargs)
        kwargs["channel_axis"] = self.axis
        if self.norm == "group":
            return F.group_norm(x, self.groups, self.weight, self.bias, self.eps, **kwargs)
        if self.norm == "instance":
            return F.instance_norm(x, None, None, self.weight, self.bias, eps=self.eps, **kwargs)
        return F.batch_norm(x, None, None, self.weight, self.bias, True, eps=self.eps, **kwargs)

    def backward(self, stats, x=None, dy=None, **kwargs):
        x, dy = self.x if x is None else x, self.dy if dy is None else dy
        if self.norm == "layer":
            return F.layer_norm_backward(dy, x, x.shape[-1], *stats, self.weight, **kwargs)
        if self.norm == "rms":
            return F.rms_norm_backward(dy, x, x.shape[-1], *stats, self.weight, **kwargs)
        kwargs["channel_axis"] = self.axis
        if self.norm == "group":
            return F.group_norm_backward(dy, x, self.groups, *stats, self.weight, **kwargs)
        function = F.batch_norm_backward if self.norm == "batch" else F.instance_norm_backward
        return function(dy, x, *stats, self.weight, **kwargs)

    def expected(self, mask):
        """(y, statistics, dx, dw, db) in float64; statistics as the function returns them."""
        x, dy = (np.asarray(a, np.float64) for a in (self.x, self.dy))
        mask = np.broadcast_to(mask, x.shape)
        ndim = x.ndim
        if self.rows:
            table = Table(x.shape, list(range(ndim - 1)))
            parameter = (1,) * (ndim - 1) + (x.shape[-1],)
            stats_shape = (*x.shape[:-1], 1)
        else:
            axis = self.axis % ndim
            parameter = [1] * ndim
            parameter[axis] = x.shape[axis]
            if self.norm == "group":
                shape, axis = grouped(x, self.groups, self.axis)
                x, dy, mask = (a.reshape(shape) for a in (x, dy, mask))
                parameter = [1] * (ndim + 1)
                parameter[axis], parameter[axis + 1] = shape[axis], shape[axis + 1]
            unit_axes = [axis] if self.norm == "batch" else [0, axis]
            table = Table(x.shape, unit_axes)
            stats_shape = tuple(x.shape[i] for i in unit_axes)
        weight, bias = (
            np.asarray(a, np.float64).reshape(parameter) for a in (self.weight, self.bias)
        )
        if self.norm == "rms":
            bias = np.zeros_like(bias)
        args = [table.split(a) for a in (x, mask, weight, bias)]
        centred = self.norm != "rms"
        y, mean, rstd = normalized(*args, self.eps, centred)
        grads = gradients(table.split(dy), args[0], args[1], mean, rstd, args[2], centred)
        dx, dw, db = (table.join(a) for a in grads)
        over = tuple(i for i, n in enumerate(parameter) if n == 1)
        stats = (mean.reshape(stats_shape), rstd.reshape(stats_shape))
        size = self.weight.shape
        return (
            table.join(y).reshape(self.x.shape),
            stats if centred else stats[1:],
            dx.reshape(self.x.shape),
            dw.sum(over).reshape(size),
            db.sum(over).reshape(size),
        )

    def check(self, mask):
        tol = TOLERANCE[str(self.dtype)]
        y, stats, dx, dw, db = self.expected(mask)
        got, *got_stats = self.forward(where=mask, return_stats=True)
        assert got.dtype == self.dtype and got.shape == self.x.shape
        close(got, y, tol)
        for a, b in zip(got_stats, stats, strict=True):
            close(a, b, max(tol / 4, 1e-6 if self.dtype != np.float64 else 1e-12))
        got_dx, *grads = self.backward(got_stats, where=mask)
        close(got_dx, dx, 4 * tol)
        selected = np.broadcast_to(mask, self.x.shape)
        terms = np.abs(np.asarray(self.dy, np.float64)[selected]).sum() / self.weight.size
        for a, b in zip(grads, (dw, db), strict=False):  # sums, whose terms may cancel
            single = self.dtype != np.float64
            rounding = terms * (2**-25 if single else 2**-54)
            close(a, b, max(tol / 8, 2e-6) if single else 1e-11, rounding)
        assert not np.asarray(got, np.float64)[~selected].any()
        assert not np.asarray(got_dx, np.float64)[~selected].any()
        return got, got_stats, got_dx, grads

    def check_poisoned(self, mask, found):
        """What is not selected reaches nothing: the same bits whatever is there."""
        selected = np.broadcast_to(mask, self.x.shape)
        big = {"float16": 6e4, "bfloat16": 1e38}.get(str(self.dtype), 1e38)
        for poison in (np.nan, big, -np.inf):
            x, dy = self.x.copy("K"), self.dy.copy("K")
            x[~selected] = poison
            dy[~selected] = poison
            got, *got_stats = self.forward(x, where=mask, return_stats=True)
            assert_same((got, *got_stats, *self.backward(got_stats, x, dy, where=mask)), found)


def assert_same(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert a.tobytes() == b.tobytes()


def close(got, want, tol, rounding=0):
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    scale = np.maximum(1, np.abs(want).max(initial=1))
    np.testing.assert_allclose(got, want, rtol=tol, atol=tol * scale + rounding)


def laid_out(a, layout):
    if layout == "C":
        return a
    if layout == "F":
        return np.asfortranarray(a)
    if layout == "last":  # channels last in memory
        order = [0, *range(2, a.ndim), 1] if a.ndim > 2 else list(range(a.ndim))
        return np.ascontiguousarray(a.transpose(order)).transpose(np.argsort(order))
    if layout == "strided":
        into = np.zeros([2 * n + 1 for n in a.shape], a.dtype)[
            tuple(slice(1, None, 2) for _ in a.shape)
        ]
    elif layout == "cropped":
        into = np.zeros([n + 3 for n in a.shape], a.dtype)[tuple(slice(1, n + 1) for n in a.shape)]
    elif layout == "negative":
        into = np.zeros(a.shape, a.dtype)[..., ::-1]
    into[...] = a
    return into


def masks(rng, shape, rows):
    """Masks of many kinds for a shape (N, C, ...) or, `rows`, (..., L)."""
    n = shape[0]
    ndim = len(shape)
    last = shape[-1]
    lengths = rng.integers(0, last + 1, n)
    prefix = (np.arange(last) < lengths.reshape((-1, 1))).reshape((n, *[1] * (ndim - 2), last))
    yield "none", np.zeros((1,) * ndim, bool)
    one = np.zeros(shape, bool)
    if rows:
        one[..., last // 2] = True
    else:
        one[..., : 2 if last > 1 else 1] = True
    yield "few True", one
    yield "prefix", prefix
    yield "suffix", prefix[..., ::-1]
    yield "full prefix", np.ascontiguousarray(np.broadcast_to(prefix, shape))
    yield "samples", (rng.random(n) < 0.6).reshape((-1, *[1] * (ndim - 1)))
    for axis in range(1, ndim):
        sizes = [1] * ndim
        sizes[axis] = shape[axis]
        yield f"axis {axis}", rng.random(sizes) < 0.6
    sizes = list(shape)
    sizes[-1] = 1
    yield "rows", rng.random(sizes) < 0.5
    yield "positions", rng.random((n, 1, *shape[2:])) < 0.7
    yield "random", rng.random(shape) < 0.5
    yield "mostly", rng.random(shape) < 0.97


NORMS = ["layer", "rms", "instance", "group", "batch"]
SHAPES = {
    True: [(5, 7), (3, 4, 33), (2, 3, 129), (40, 16), (2, 5, 2, 31), (3, 2500), (2, 40000)],
    False: [
        (4, 6, 17),
        (3, 4, 5, 9),
        (2, 8, 130),
        (5, 272, 9),  # channels last: rows that are taken where they lie, in every dtype
        (6, 4, 2, 3, 5),
        (3, 2, 2100),
        (2, 2, 40000),
        (70, 32),
    ],
}


def some_true(case, mask):
    """A mask that the norm accepts: batch norm in training refuses one True in a channel."""
    if case.norm != "batch":
        return mask
    whole = np.broadcast_to(mask, case.x.shape)
    axes = tuple(i for i in range(whole.ndim) if i != case.axis % whole.ndim)
    alone = np.broadcast_to(whole.sum(axes, keepdims=True) == 1, whole.shape)
    return whole & ~alone if alone.any() else mask


def cases():
    for norm in NORMS:
        rows = norm in ("layer", "rms")
        for shape in SHAPES[rows][: 7 if norm == "instance" else 8]:
            for layout in ["C", "last", "F", "strided", "cropped", "negative"]:
                for dtype in ["float32", "float64", "float16", BFLOAT16]:
                    yield norm, shape, layout, dtype


@pytest.mark.grid(12)
@pytest.mark.parametrize(("norm", "shape", "layout", "dtype"), list(cases()), ids=str)
def test_compacted_data(norm, shape, layout, dtype, rng):
    """All kinds of masks, against each unit's True values alone; what is masked reaches nothing."""
    case = Case(norm, rng, shape, dtype, 1, layout)
    for name, mask in masks(rng, shape, case.rows):
        mask = some_true(case, mask)
        try:
            found = case.check(mask)
            case.check_poisoned(mask, (found[0], *found[1], found[2], *found[3]))
        except AssertionError as error:
            raise AssertionError(f"mask of {name}: {error}") from error


@pytest.mark.grid(3)
@pytest.mark.parametrize("operation", [o for o in ALL if o.takes_where], ids=str)
@pytest.mark.parametrize("layout", ["C", "last"])
def test_reference(operation, layout, rng):
    """Every operation beside the one in plain NumPy, slopes and clips too."""
    shape = (3, 6, 5, 7)
    x, dy = (laid_out(a, layout) for a in rng.normal(size=(2, *shape)))
    p = operation.draw(rng, shape, 1)
    kinds = [(3, 1, 5, 7), (3, 6, 5, 1), (6, 1, 1), shape]
    for where in [rng.random(sizes) < 0.6 for sizes in kinds]:
        for how in ({}, {"clip": (-0.5, 0.7)}, {"slope": rng.uniform(0.1, 0.4, 6)}):
            found = operation.run(F, x, dy, p, where=where, **how)
            expected = operation.run(_reference, x, dy, p, where=where, **how)
            for name in expected:
                close(found[name], expected[name], 1e-10)


# ---- bits ----


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("layout", ["C", "last", "cropped"])
def test_all_true_is_no_mask(norm, layout, rng):
    case = Case(norm, rng, (3, 4, 37), "float32", 1, layout)
    y, *stats = case.forward(return_stats=True)
    expected = (y, *stats, *case.backward(stats))
    for where in (
        True,
        np.ones((1, 1, 1), bool),
        np.ones((3, 4, 37), bool),
        np.broadcast_to(True, (3, 4, 37)),
    ):
        found, *_ = case.forward(where=where, return_stats=True)
        assert_same((found, *stats, *case.backward(stats, where=where)), expected)
    assert_same([case.forward(where=None)], [y])


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", BFLOAT16], ids=str)
@pytest.mark.parametrize("layout", ["C", "last", "cropped"])
@pytest.mark.parametrize("norm", ["layer", "rms", "instance", "group"])
def test_a_padded_sample_has_the_bits_of_itself_alone(norm, layout, dtype, rng):
    """Prefixes, crops and any other mask of positions."""
    n, c = 4, 6
    for sizes in ((19,), (2100,), (5, 9)):
        if norm in ("layer", "rms"):
            case = Case(norm, rng, (n, 3, *sizes), dtype, 1, layout)
        else:
            case = Case(norm, rng, (n, c, *sizes), dtype, 1, layout)
        where = np.zeros((n, 1, *sizes), bool)
        for i in range(n):
            where[(i, 0, *(slice(0, max(1, k * (i + 1) // (n + 1))) for k in sizes))] = True
        if norm in ("layer", "rms"):
            where = np.broadcast_to(where.any(1, keepdims=True), where.shape)
        y, *stats = case.forward(where=where, return_stats=True)
        dx = case.backward(stats, where=where)[0]
        for i in range(n):
            alone = tuple(slice(0, max(1, k * (i + 1) // (n + 1))) for k in sizes)
            if norm in ("layer", "rms") and len(sizes) > 1:
                continue  # rows of the last axis: what is cropped elsewhere is rows left out
            at = (slice(i, i + 1), slice(None), *alone)
            x, dy = (np.array(a[at], order="C") for a in (case.x, case.dy))
            if layout == "last" and x.ndim > 2:
                x, dy = (laid_out(a, "last") for a in (x, dy))
            part = case.__class__.__new__(case.__class__)
            part.__dict__.update(case.__dict__)
            part.x, part.dy = x, dy
            if norm in ("layer", "rms"):
                part.weight, part.bias = case.weight[alone[-1]], case.bias[alone[-1]]
            if x[0, 0].size == 1:
                continue  # no spatial axis is left: of another family, or refused
            found, *found_stats = part.forward(return_stats=True)
            assert np.ascontiguousarray(y[at]).tobytes() == np.ascontiguousarray(found).tobytes()
            found_dx = part.backward(found_stats)[0]
            assert (
                np.ascontiguousarray(dx[at]).tobytes() == np.ascontiguousarray(found_dx).tobytes()
            )


@pytest.mark.parametrize("norm", NORMS)
def test_bits_do_not_depend_on_threads(norm, rng):
    for shape, layout in (
        ((40, 8, 700), "C"),
        ((3, 2, 70000), "C"),
        ((40, 136, 70), "last"),
        ((40, 8, 700), "last"),
        ((2, 136, 2000), "last"),
    ):
        case = Case(norm, rng, shape, "float32", 1, layout)
        for where in (
            rng.random((shape[0], 1, shape[2])) < 0.8,
            rng.random((shape[0], shape[1], 1)) < 0.6,
            rng.random(shape) < 0.5,
        ):
            found = []
            for threads in (1, 2, 3):
                with cnorm.num_threads(threads):
                    y, *stats = case.forward(where=where, return_stats=True)
                    found.append((y, *stats, *case.backward(stats, where=where)))
            assert_same(found[1], found[0])
            assert_same(found[2], found[0])


@pytest.fixture
def kernels():
    """The kernels in use, which forget afterwards the cache sizes that a test told them."""
    module = _dispatch.kernels
    _dispatch.learn_caches()  # else a large call would, in the middle of a test
    before = module.set_machine(1 << 15, 1 << 20, 1 << 30)
    yield module
    module.set_machine(*before)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("layout", ["C", "last", "cropped"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_bits_do_not_depend_on_caches(norm, layout, dtype, rng, kernels):
    """With small ones results go past the cache, the ends of runs with the zeros after them."""
    for shape in ((6, 9, 700), (5, 136, 48), (7, 20, 333)):
        case = Case(norm, rng, shape, dtype, 1, layout)
        lengths = rng.integers(0, shape[2] + 1, (shape[0], 1, 1))
        starts = np.arange(shape[2]) >= shape[2] // 3
        for where in (
            np.arange(shape[2]) < lengths,
            (np.arange(shape[2]) < lengths) & starts,
            np.arange(shape[2]) < rng.integers(0, shape[2] + 1, (*shape[:2], 1)),
            rng.random((shape[0], 1, shape[2])) < 0.8,
            rng.random(shape) < 0.5,
        ):
            where = some_true(case, where)
            found = []
            for caches in ((1 << 15, 1 << 20, 1 << 30), (1 << 12, 1 << 14, 1 << 16)):
                kernels.set_machine(*caches)
                for threads in (1, 2):
                    with cnorm.num_threads(threads):
                        y, *stats = case.forward(where=where, return_stats=True)
                        found.append((y, *stats, *case.backward(stats, where=where)))
            for other in found[1:]:
                assert_same(other, found[0])


@pytest.mark.parametrize("norm", NORMS)
def test_bits_do_not_depend_on_strides(norm, rng):
    """Units first or last in memory aside, which are families of their own."""
    case = Case(norm, rng, (3, 4, 5, 16), "float32")
    for where in (
        rng.random((3, 1, 5, 16)) < 0.8,
        rng.random((3, 4, 5, 1)) < 0.6,
        rng.random(case.x.shape) < 0.5,
    ):
        y, *stats = case.forward(where=where, return_stats=True)
        expected = (y, *stats, *case.backward(stats, where=where))
        for layout in ("cropped", "strided", "negative"):
            x, dy = laid_out(case.x, layout), laid_out(case.dy, layout)
            y, *stats = case.forward(x, where=where, return_stats=True)
            assert_same(
                [
                    np.ascontiguousarray(a)
                    for a in (y, *stats, *case.backward(stats, x, dy, where=where))
                ],
                expected,
            )
    full = np.ascontiguousarray(np.broadcast_to(where, case.x.shape))
    assert_same([case.forward(where=full)], [case.forward(where=where)])


# ---- where the mask is False ----


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("layout", ["C", "last", "strided"])
def test_out_keeps_its_value(norm, layout, rng):
    case = Case(norm, rng, (3, 4, 21), "float32", 1, layout)
    kinds = [
        rng.random((3, 1, 21)) < 0.5,
        np.arange(21) < 9,
        rng.random((3, 4, 21)) < 0.5,
        rng.random((3, 4, 1)) < 0.5,
    ]
    for where in kinds:
        where = some_true(case, where)
        selected = np.broadcast_to(where, case.x.shape)
        y, *stats = case.forward(where=where, return_stats=True)
        into = np.full_like(case.x, 7)
        assert case.forward(where=where, out=into) is into
        np.testing.assert_array_equal(into, np.where(selected, y, 7))
        x = case.x.copy("K")
        x[~selected] = np.nan
        assert case.forward(x, where=where, out=x) is x
        np.testing.assert_array_equal(x, np.where(selected, y, np.nan))
        overlapping = np.zeros((4, 4, 21), np.float32)  # memory that overlaps the input partly
        overlapping[1:] = case.x
        case.forward(overlapping[1:], where=where, out=overlapping[:3])
        close(overlapping[:3][selected], y[selected], 2e-6)
        swapped = np.full(case.x.shape, 7, ">f4")
        case.forward(where=where, out=swapped)
        np.testing.assert_array_equal(swapped, np.where(selected, y, 7))
        # backward: 0, in `out` too, and in place
        dx, *_ = case.backward(stats, where=where)
        dy = case.dy.copy("K")
        dy[~selected] = np.nan
        assert case.backward(stats, dy=dy, where=where, out=dy)[0] is dy
        np.testing.assert_array_equal(dy, dx)


def test_residual_norms(rng):
    for dtype in ("float32", "float16"):
        x, residual, dy, grad_sum = rng.normal(size=(4, 3, 5, 24)).astype(dtype)
        weight, bias = rng.uniform(0.5, 1.5, (2, 24)).astype(np.float32)
        for where in (
            rng.random((3, 5, 1)) < 0.6,
            rng.random((3, 1, 24)) < 0.6,
            np.arange(24) < 11,
        ):
            selected = np.broadcast_to(where, x.shape)
            total = np.where(selected, x + residual, 0).astype(dtype)
            poisoned = np.where(selected, x, np.nan).astype(dtype)
            y, found, *stats = F.add_layer_norm(
                poisoned, residual, 24, weight, bias, where=where, return_stats=True
            )
            expected, *_ = F.layer_norm(total, 24, weight, bias, where=where, return_stats=True)
            assert_same([y, found], [expected, total])
            out, kept = np.full_like(x, 5), np.full_like(x, 6)
            F.add_layer_norm(
                poisoned, residual, 24, weight, bias, where=where, out=out, residual_out=kept
            )
            np.testing.assert_array_equal(kept, np.where(selected, total, 6))
            np.testing.assert_array_equal(out, np.where(selected, y, 5))
            dx, dw, db = F.add_layer_norm_backward(
                dy, grad_sum, found, 24, *stats, weight, where=where
            )
            plain = F.layer_norm_backward(dy, found, 24, *stats, weight, where=where)
            want = np.where(selected, plain[0].astype(np.float64) + grad_sum, 0)
            np.testing.assert_allclose(
                dx,
                want,
                rtol=4e-3 if dtype == "float16" else 2e-6,
                atol=4e-3 if dtype == "float16" else 2e-6,
            )
            assert_same([dw, db], plain[1:])
            y, found, rstd = F.add_rms_norm(x, residual, 24, weight, where=where, return_stats=True)
            assert_same([y], [F.rms_norm(total, 24, weight, where=where)])
            dx, dw = F.add_rms_norm_backward(dy, grad_sum, found, 24, rstd, weight, where=where)
            assert not dx[~selected].any()


# ---- units with few True values ----


@pytest.mark.parametrize("norm", NORMS)
def test_no_true_and_one_true(norm, rng):
    case = Case(norm, rng, (3, 4, 9), "float32")
    where = np.zeros((3, 4, 9), bool)
    y, *stats = case.forward(where=where, return_stats=True)
    assert not y.any() and not any(a.any() for a in stats)
    assert not any(a.any() for a in case.backward(stats, where=where))
    where[1, 2, 4] = True
    if norm == "batch":
        with pytest.raises(
            ValueError, match="Expected more than 1 value per channel when training"
        ):
            case.forward(where=where)
    elif norm != "rms":  # a mean of one value: the bias
        y, *stats = case.forward(where=where, return_stats=True)
        assert y[1, 2, 4] == case.bias[4 if norm == "layer" else 2]
        close(case.backward(stats, where=where)[0], np.zeros(where.shape), 1e-5)


def test_running_statistics(rng):
    x = rng.normal(1, 2, (5, 4, 30)).astype(np.float32)
    where = rng.random((5, 4, 30)) < 0.6
    where[:, 2] = False
    for dtype in (np.float32, np.float64):
        mean, var = np.full(4, 0.3, dtype), np.full(4, 0.7, dtype)
        F.batch_norm(x, mean, var, training=True, momentum=0.25, where=where)
        for c in range(4):
            values = x[:, c][where[:, c]].astype(np.float64)
            if c == 2:
                assert (mean[c], var[c]) == (dtype(0.3), dtype(0.7))
                continue
            np.testing.assert_allclose(mean[c], 0.75 * 0.3 + 0.25 * values.mean(), rtol=1e-6)
            np.testing.assert_allclose(var[c], 0.75 * 0.7 + 0.25 * values.var(ddof=1), rtol=1e-6)
    where[1, 3] = False
    where[1, 3, 5] = True  # one True: this sample does not count
    mean, var = np.full(4, 0.3, np.float32), np.full(4, 0.7, np.float32)
    F.instance_norm(x, mean, var, momentum=0.25, where=where)
    for c in range(4):
        units = [x[n, c][where[n, c]].astype(np.float64) for n in range(5) if where[n, c].sum() > 1]
        if c == 2:
            assert (mean[c], var[c]) == (np.float32(0.3), np.float32(0.7))
            continue
        np.testing.assert_allclose(
            mean[c], 0.75 * 0.3 + 0.25 * np.mean([u.mean() for u in units]), rtol=1e-6
        )
        np.testing.assert_allclose(
            var[c], 0.75 * 0.7 + 0.25 * np.mean([u.var(ddof=1) for u in units]), rtol=1e-6
        )


@pytest.mark.parametrize("layout", ["C", "last"])
@pytest.mark.parametrize("shape", [(5, 4, 30), (40, 16)])
def test_given_statistics(layout, shape, rng):
    """Evaluation: elementwise, so what is selected has the bits of the unmasked call."""
    x, dy = (laid_out(a.astype(np.float32), layout) for a in rng.normal(size=(2, *shape)))
    c = shape[1]
    mean, var, weight, bias = rng.uniform(0.5, 1.5, (4, c)).astype(np.float32)
    y, *stats = F.batch_norm(x, mean, var, weight, bias, return_stats=True)
    dx, *_ = F.batch_norm_backward(dy, x, *stats, weight, training=False)
    for where in (rng.random((shape[0], *[1] * (len(shape) - 1))) < 0.5, rng.random(shape) < 0.5):
        selected = np.broadcast_to(where, shape)
        got, *got_stats = F.batch_norm(x, mean, var, weight, bias, return_stats=True, where=where)
        assert_same(got_stats, stats)
        np.testing.assert_array_equal(got, np.where(selected, y, 0))
        got, _, db = F.batch_norm_backward(dy, x, *stats, weight, training=False, where=where)
        np.testing.assert_array_equal(got, np.where(selected, dx, 0))
        over = tuple(i for i in range(len(shape)) if i != 1)
        np.testing.assert_allclose(db, np.where(selected, dy, 0).sum(over), rtol=1e-5, atol=1e-5)
        if len(shape) > 2:
            one = F.instance_norm(x, mean, var, weight, bias, False, where=where)
            np.testing.assert_array_equal(one, np.where(selected, y, 0))


# ---- activations, parameters per sample, other axes ----


@pytest.mark.parametrize("norm", ["instance", "group", "batch", "layer"])
@pytest.mark.parametrize("layout", ["C", "last"])
def test_activations(norm, layout, rng):
    case = Case(norm, rng, (3, 6, 31), "float32", 1, layout)
    slopes = rng.uniform(0.1, 0.4, 6).astype(np.float32)
    for where in (
        rng.random((3, 1, 31)) < 0.6,
        rng.random((3, 6, 31)) < 0.6,
        rng.random((3, 6, 1)) < 0.6,
    ):
        selected = np.broadcast_to(where, case.x.shape)
        z, *stats = case.forward(where=where, return_stats=True)
        for options in ({"negative_slope": 0.2}, {"negative_slope": slopes}, {"clip": (-0.5, 0.8)}):
            y = case.forward(where=where, **options)
            slope = np.reshape(options.get("negative_slope", 1), (-1, 1))
            want = np.clip(z, -0.5, 0.8) if "clip" in options else np.where(z > 0, z, z * slope)
            close(np.where(selected, y, 0), np.where(selected, want, 0), 1e-6)
            bias = {"bias": case.bias}
            dx, dw, db, *rest = case.backward(stats, where=where, **options, **bias)
            inside = (z > -0.5) & (z < 0.8) if "clip" in options else np.where(z > 0, 1, slope)
            dy = np.where(selected, case.dy * inside, 0).astype(np.float32)
            plain = case.backward(stats, dy=laid_out(dy, layout), where=where)
            for a, b in zip((dx, dw, db), plain, strict=True):
                close(a, b, 2e-5)
            if rest:
                terms = np.where(selected & (z <= 0), case.dy * z, 0)
                close(rest[0], terms.sum((0, 2)), 2e-5)


@pytest.mark.parametrize("layout", ["C", "last"])
@pytest.mark.parametrize("norm", ["instance", "group", "batch"])
def test_parameters_per_sample(norm, layout, rng):
    case = Case(norm, rng, (3, 4, 31), "float64", 1, layout)
    weight, bias = rng.uniform(0.5, 1.5, (2, 3, 4))
    for where in (rng.random((3, 1, 31)) < 0.6, rng.random((3, 4, 31)) < 0.6):
        selected = np.broadcast_to(where, case.x.shape)
        case.weight, case.bias = np.ones(4), np.zeros(4)
        z, *stats = case.forward(where=where, return_stats=True)
        case.weight, case.bias = weight, bias
        y = case.forward(where=where)
        close(y, np.where(selected, z * weight[..., None] + bias[..., None], 0), 1e-12)
        dx, dw, db = case.backward(stats, where=where)
        case.weight = np.ones(4)
        plain = case.backward(stats, dy=laid_out(case.dy * weight[..., None], layout), where=where)
        close(dx, plain[0], 1e-11)
        close(db, np.where(selected, case.dy, 0).sum(2), 1e-12)
        close(dw, np.where(selected, case.dy * z, 0).sum(2), 1e-12)


def test_rows_with_parameters_per_sample(rng):
    x, dy = rng.normal(size=(2, 3, 70, 12))
    weight, bias = rng.uniform(0.5, 1.5, (2, 3, 1, 12))
    for where in (
        rng.random((3, 70, 1)) < 0.6,
        rng.random((3, 1, 12)) < 0.6,
        rng.random((3, 70, 12)) < 0.6,
    ):
        selected = np.broadcast_to(where, x.shape)
        z, *stats = F.layer_norm(x, 12, where=where, return_stats=True)
        y = F.layer_norm(x, 12, weight, bias, where=where)
        close(y, np.where(selected, z * weight + bias, 0), 1e-12)
        dx, dw, db = F.layer_norm_backward(dy, x, 12, *stats, weight, where=where)
        close(dx, F.layer_norm_backward(dy * weight, x, 12, *stats, where=where)[0], 1e-11)
        close(db, np.where(selected, dy, 0).sum(1, keepdims=True), 1e-12)
        close(dw, np.where(selected, dy * z, 0).sum(1, keepdims=True), 1e-12)


@pytest.mark.parametrize("layout", ["C", "last"])
def test_rows_over_other_axes(layout, rng):
    x, dy = (laid_out(a, layout) for a in rng.normal(size=(2, 3, 8, 5, 7)))
    weight, bias = rng.uniform(0.5, 1.5, (2, 8))
    for where in (
        rng.random((3, 1, 5, 7)) < 0.6,
        rng.random((3, 8, 1, 1)) < 0.6,
        rng.random((3, 8, 5, 7)) < 0.6,
    ):
        last = np.moveaxis(np.broadcast_to(where, x.shape), 1, -1)
        y, *stats = F.layer_norm(x, 8, weight, bias, axis=1, where=where, return_stats=True)
        moved = (
            np.ascontiguousarray(np.moveaxis(x, 1, -1)),
            np.ascontiguousarray(np.moveaxis(dy, 1, -1)),
        )
        z, *expected = F.layer_norm(moved[0], 8, weight, bias, where=last, return_stats=True)
        close(np.moveaxis(y, 1, -1), z, 1e-13)
        found = F.layer_norm_backward(dy, x, 8, *stats, weight, axis=1, where=where)
        want = F.layer_norm_backward(moved[1], moved[0], 8, *expected, weight, where=last)
        close(np.moveaxis(found[0], 1, -1), want[0], 1e-12)
        close(found[1], want[1], 1e-12)


def test_gradients_by_finite_differences(rng):
    for norm in NORMS:
        case = Case(norm, rng, (3, 4, 6), "float64")
        for where in (rng.random((3, 1, 6)) < 0.7, rng.random((3, 4, 6)) < 0.7):
            _, *stats = case.forward(where=where, return_stats=True)
            dx, dw, *_ = case.backward(stats, where=where)

            def loss(x=None, case=case, where=where):
                return (case.forward(x, where=where) * case.dy).sum()

            for _ in range(8):
                at = tuple(rng.integers(0, n) for n in case.x.shape)
                high, low = case.x.copy(), case.x.copy()
                high[at] += 1e-5
                low[at] -= 1e-5
                np.testing.assert_allclose(
                    (loss(high) - loss(low)) / 2e-5, dx[at], rtol=1e-6, atol=1e-7
                )
            weight = case.weight
            case.weight = weight + np.eye(len(weight))[1] * 1e-5
            high = loss()
            case.weight = weight - np.eye(len(weight))[1] * 1e-5
            low = loss()
            case.weight = weight
            np.testing.assert_allclose((high - low) / 2e-5, dw[1], rtol=1e-6, atol=1e-7)


# ---- arguments ----


def test_errors(rng):
    x = rng.normal(size=(3, 4, 5)).astype(np.float32)
    for call in (
        lambda where: F.layer_norm(x, 5, where=where),
        lambda where: F.rms_norm(x, 5, where=where),
        lambda where: F.batch_norm(x, training=True, where=where),
        lambda where: F.instance_norm(x, where=where),
        lambda where: F.group_norm(x, 2, where=where),
        lambda where: F.add_layer_norm(x, x, 5, where=where),
    ):
        with pytest.raises(TypeError, match="where must be a bool array, but got dtype float32"):
            call(np.ones((3, 1, 5), np.float32))
        with pytest.raises(ValueError, match="where must broadcast to the input's shape"):
            call(np.ones((3, 2, 5), bool))
        assert call([[[True]]]) is not None
    with pytest.raises(TypeError, match="where must be a bool array"):
        F.layer_norm_backward(
            x, x, 5, np.zeros((3, 4, 1)), np.ones((3, 4, 1)), where=np.ones(5, int)
        )


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("layout", ["C", "last"])
def test_bits_do_not_depend_on_where_the_mask_lies(norm, layout, rng):
    """A mask in another order than the input, with gaps, or of bytes other than 0 and 1."""
    case = Case(norm, rng, (3, 37, 5, 50), "float32", 1, layout)
    where = rng.random(case.x.shape) < 0.8
    y, *stats = case.forward(where=where, return_stats=True)
    expected = [y, *stats, *case.backward(stats, where=where)]
    others = [laid_out(where, kind) for kind in ("last", "F", "strided", "negative")]
    others.append((laid_out(where, "last").view(np.uint8) * np.uint8(5)).view(bool))
    for other in others:
        y, *stats = case.forward(where=other, return_stats=True)
        assert_same([y, *stats, *case.backward(stats, where=other)], expected)


def test_bytes_other_than_one_are_true(rng):
    x = rng.normal(size=(3, 4, 5)).astype(np.float32)
    where = rng.integers(0, 3, (3, 4, 5)).astype(np.uint8)
    assert_same([F.layer_norm(x, 5, where=where.view(bool))], [F.layer_norm(x, 5, where=where > 0)])


def test_masked_arrays(rng):
    data, dy = rng.normal(size=(2, 3, 4, 9)).astype(np.float32)
    mask = rng.random((3, 4, 9)) < 0.4
    weight = np.ones(9, np.float32)
    a = np.ma.masked_array(data, mask)
    y, mean, rstd = F.layer_norm(a, 9, weight, return_stats=True)
    assert isinstance(y, np.ma.MaskedArray) and not isinstance(mean, np.ma.MaskedArray)
    expected, *stats = F.layer_norm(data, 9, weight, where=~mask, return_stats=True)
    assert_same([y.data, mean, rstd], [expected, *stats])
    assert np.array_equal(y.mask, mask) and not np.shares_memory(y.mask, mask)
    other = rng.random((3, 4, 9)) < 0.7
    both = F.layer_norm(a, 9, weight, where=other)
    assert_same([both.data], [F.layer_norm(data, 9, weight, where=~mask & other)])
    assert np.array_equal(both.mask, mask)
    assert_same([F.layer_norm(np.ma.masked_array(data), 9).data], [F.layer_norm(data, 9)])
    gradient = np.ma.masked_array(dy, mask)
    dx, dw, _ = F.layer_norm_backward(gradient, a, 9, mean, rstd, weight)
    assert isinstance(dx, np.ma.MaskedArray) and not isinstance(dw, np.ma.MaskedArray)
    assert_same([dx.data, dw], F.layer_norm_backward(dy, data, 9, *stats, weight, where=~mask)[:2])
    with pytest.raises(ValueError, match="grad_output must have the input's mask"):
        F.layer_norm_backward(np.ma.masked_array(dy, ~mask), a, 9, mean, rstd)
    for kwargs in ({"weight": np.ma.masked_array(weight)}, {"out": np.ma.masked_array(data)}):
        with pytest.raises(TypeError, match="masked array"):
            F.layer_norm(a, 9, **kwargs)
    for norm in ("batch", "instance", "group", "rms"):
        case = Case(norm, rng, (3, 4, 9), "float32")
        case.x = a
        y, *stats = case.forward(return_stats=True)
        assert isinstance(y, np.ma.MaskedArray)
        assert isinstance(case.backward(stats)[0], np.ma.MaskedArray)


def test_explain_and_small_views(rng):
    x = rng.normal(size=(30, 4, 900)).astype(np.float32)
    where = np.arange(900) < rng.integers(1, 900, (30, 1, 1))
    plan = cnorm.explain(F.batch_norm, x, training=True, where=where)
    assert "segments, masked" in str(plan) and "parts 30" in str(plan)
    assert "masked" not in str(cnorm.explain(F.batch_norm, x, training=True, where=where | True))


@pytest.mark.parametrize("dtype", ["<f4", ">f4"])
def test_a_mask_in_the_memory_of_a_result(dtype):
    """It is read after the first result is written, and copied therefore."""
    x = np.arange(12, dtype=np.float32).reshape(3, 4) ** 2
    mask = np.array([[1, 0, 1, 1], [1, 1, 1, 1], [0, 1, 1, 0]], bool)
    for where in (mask, mask[:, :1]):
        expected = F.layer_norm(x, 4, where=where, out=np.zeros((3, 4), dtype))
        total, of_total = (np.zeros((3, 4), dtype) for _ in range(2))
        F.add_layer_norm(x, x, 4, where=where, out=total, residual_out=of_total)
        for at in (0, 8, 36):
            memory = np.zeros(48, np.uint8)
            inside = memory[at:].view(bool)[: where.size].reshape(where.shape)
            inside[...] = where
            out = memory.view(dtype).reshape(3, 4)
            kept = out.copy()
            F.layer_norm(x, 4, where=inside, out=out)
            selected = np.broadcast_to(where, x.shape)
            assert out.tobytes() == np.where(selected, expected, kept).astype(dtype).tobytes()
            memory[...] = 0
            inside[...] = where
            kept = out.copy()
            y = np.zeros((3, 4), dtype)
            F.add_layer_norm(x, x, 4, where=inside, out=y, residual_out=out)
            assert y.tobytes() == total.tobytes()
            assert out.tobytes() == np.where(selected, of_total, kept).astype(dtype).tobytes()


def test_as_many_axes_as_numpy_has(rng):
    x = rng.normal(size=(2, 4, 5)).astype(np.float32)
    mask = rng.random((2, 1, 5)) < 0.7
    mask[:, :, :2] = True
    long, longer = (2, 4) + (1,) * 61 + (5,), (8,) + (1,) * 62 + (5,)
    for call in (
        lambda x, m: F.batch_norm(x, training=True, where=m),
        lambda x, m: F.group_norm(x, 2, where=m),
        lambda x, m: F.instance_norm(x, where=m),
        lambda x, m: F.layer_norm(x, 5, where=m),
    ):
        y = call(x.reshape(long), mask.reshape((2, 1, *long[2:])))
        assert y.tobytes() == call(x, mask).tobytes()
    y = F.instance_norm(x.reshape(longer), channel_axis=0, where=np.arange(5) < 3)
    z = F.instance_norm(x.reshape(1, 8, 5), where=np.arange(5) < 3)
    assert y.tobytes() == z.tobytes()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("length", [70, 2500, 17000])
def test_parts_in_one_sweep_have_the_bits_of_a_job_each(dtype, length):
    """Batch norm's samples: in one sweep, each as a job of its own, and of a mask of full size."""
    rng = np.random.default_rng(length)
    x, dy = rng.normal(3, 2, (2, 5, 3, length)).astype(dtype)
    lengths = np.array([length, length // 2, 0, 1, length - 3])
    padded = (np.arange(length) < lengths[:, None])[:, None]
    builds = [
        module
        for name, module in sys.modules.items()
        if name.startswith("cnorm.kernels._") and hasattr(module, "force_strategy")
    ]
    assert builds

    def results(where, weight):
        options = {"negative_slope": 0.1, "where": where}
        y, mean, rstd = F.batch_norm(x, weight=weight, training=True, return_stats=True, **options)
        return [y, mean, rstd, *F.batch_norm_backward(dy, x, mean, rstd, weight, **options)]

    for where in (padded, padded[..., ::-1], rng.random((5, 1, length)) < 0.7):
        for weight in rng.normal(size=3).astype(dtype), rng.normal(size=(5, 3)).astype(dtype):
            found = results(where, weight)
            whole = results(np.ascontiguousarray(np.broadcast_to(where, x.shape)), weight)
            for build in builds:
                build.force_strategy(1)
            try:
                jobs = results(where, weight)
            finally:
                for build in builds:
                    build.force_strategy(0)
            for one, other, third in zip(found, whole, jobs, strict=True):
                assert one.tobytes() == other.tobytes() == third.tobytes()

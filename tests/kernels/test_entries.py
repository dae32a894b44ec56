"""The kernels by `cnorm.kernels.api`: no plan, no conversion, any number of threads.

Each family and direction against the float64 reference, over dtypes, layouts, threads and every
strategy of the schedule; and what an entry refuses.
"""

import itertools

import numpy as np
import pytest
from operations import check
from schedule import STRATEGIES

from cnorm import _dispatch, _reference
from cnorm.kernels import api

OK, BAD_LAYOUT = 0, -2
EPS = 1e-5
THREADS = (1, 2, 3, 8)
DTYPES = (np.float32, np.float64)


def dense(a):
    return np.ascontiguousarray(a)


def apart(a):
    """Outer axes reversed and with gaps; the last one contiguous."""
    room = np.full((*(2 * n for n in a.shape[:-1]), a.shape[-1] + 3), np.nan, a.dtype)
    view = room[(*(slice(None, None, -2),) * (a.ndim - 1), slice(1, -2))]
    view[...] = a
    return view


def middle_last(a):
    """Axis 1 of three contiguous: channels last."""
    return np.swapaxes(np.ascontiguousarray(np.swapaxes(a, 1, 2)), 1, 2)


LAYOUTS = (dense, apart)


class Norm:
    """A family's entries and what they should give."""

    statistics = ("mean", "rstd")
    layouts = LAYOUTS

    def __init__(self, name, shapes, groups=None, given=False):
        self.name, self.shapes, self.groups, self.given = name, shapes, groups, given

    def __repr__(self):
        words = [self.name, *(["eval"] if self.given else [])]
        return "-".join(words if self.groups is None else [*words, f"groups={self.groups}"])

    def parameters(self, rng, shape, dtype):
        n = shape[self.axis(shape)]
        return {k: rng.uniform(0.5, 1.5, n).astype(dtype) for k in ("weight", "bias")}


class Rows(Norm):
    def axis(self, shape):
        return 1

    def reference(self, x, dy, weight, bias, given):
        n = x.shape[1]
        if self.name == "rms":
            y, rstd = _reference.rms_norm(x, n, weight, EPS, return_stats=True)
            dx, dw = _reference.rms_norm_backward(dy, x, n, rstd, weight)
            return {"y": y, "rstd": rstd.ravel(), "grad_input": dx, "grad_weight": dw}
        y, mean, rstd = _reference.layer_norm(x, n, weight, bias, EPS, return_stats=True)
        dx, dw, db = _reference.layer_norm_backward(dy, x, n, mean, rstd, weight)
        grads = {"grad_input": dx, "grad_weight": dw, "grad_bias": db}
        return {"y": y, "mean": mean.ravel(), "rstd": rstd.ravel(), **grads}

    def forward(self, x, y, p, r, threads):
        bias, mean = (None, None) if self.name == "rms" else (p["bias"], r["mean"])
        return api._rows_forward(
            x, y, p["weight"], bias, mean, r["rstd"], self.name == "layer", EPS, threads
        )

    def backward(self, dy, x, dx, p, r, threads):
        bias, mean = (None, None) if self.name == "rms" else (r["grad_bias"], r["mean"])
        return api._rows_backward(
            dy, x, dx, p["weight"], mean, r["rstd"], r["grad_weight"], bias,
            self.name == "layer", threads,
        )  # fmt: skip


class Channels(Norm):
    def axis(self, shape):
        return 1

    def reference(self, x, dy, weight, bias, given):
        F = _reference
        if self.groups:
            y, mean, rstd = F.group_norm(x, self.groups, weight, bias, EPS, return_stats=True)
            dx, dw, db = F.group_norm_backward(dy, x, self.groups, mean, rstd, weight)
        else:
            training = not self.given
            y, mean, rstd = F.batch_norm(
                x, *given, weight, bias, training, 0, EPS, return_stats=True
            )
            dx, dw, db = F.batch_norm_backward(dy, x, mean, rstd, weight, training=training)
        grads = {"grad_input": dx, "grad_weight": dw, "grad_bias": db}
        return {"y": y, "mean": mean.ravel(), "rstd": rstd.ravel(), **grads}

    def forward(self, x, y, p, r, threads):
        entry = api._columns_forward if self.name == "columns" else api._segments_forward
        groups = () if self.name == "columns" else (self.groups,)
        statistics = r["mean"], r["rstd"]
        return entry(x, y, p["weight"], p["bias"], *statistics, *groups, self.given, EPS, threads)

    def backward(self, dy, x, dx, p, r, threads):
        entry = api._columns_backward if self.name == "columns" else api._segments_backward
        groups = () if self.name == "columns" else (self.groups,)
        arrays = r["mean"], r["rstd"], r["grad_weight"], r["grad_bias"]
        return entry(dy, x, dx, p["weight"], *arrays, *groups, self.given, threads)


class Crossed(Norm):
    """SwitchNorm of rows and columns; `rows` and `columns` are what forward wrote."""

    shares = np.array([0.3, 0.7, 0.6, 0.4])

    def axis(self, shape):
        return 1

    def reference(self, x, dy, weight, bias, given):
        logits = np.log(self.shares[:2]), np.log(self.shares[2:])
        training = not self.given
        y, stats = _reference.switch_norm(
            x, *given, weight, bias, *logits, training, eps=EPS, return_stats=True
        )
        dx, dw, db, dp, dq = _reference.switch_norm_backward(dy, x, stats, weight, *logits)
        products = self.shares[[0, 2]] * self.shares[[1, 3]]
        self.differences = np.array([dp[0], dq[0]]) / products
        grads = {"grad_input": dx, "grad_weight": dw, "grad_bias": db}
        return {"y": y, "stats": stats, **grads}

    def forward(self, x, y, p, r, threads):
        self.rows, self.columns = np.empty((3, x.shape[0])), np.empty((3, x.shape[1]))
        if self.given:
            self.columns[0], self.columns[1], self.columns[2] = r["mean"], 0, r["rstd"] ** -2 - EPS
        return api._crossed_forward(
            x, y, p["weight"], p["bias"], self.shares, self.rows, self.columns, self.given, EPS,
            threads,
        )  # fmt: skip

    def backward(self, dy, x, dx, p, r, threads):
        differences = np.empty(2)
        status = api._crossed_backward(
            dy, x, dx, p["weight"], self.shares, self.rows, self.columns, r["grad_weight"],
            r["grad_bias"], differences, self.given, EPS, threads,
        )  # fmt: skip
        terms = 1e-5 * x.size**0.5
        np.testing.assert_allclose(differences, self.differences.astype(float), 1e-5, terms)
        return status


class Window(Norm):
    layouts = (dense, apart, middle_last)
    arguments = 5, 0.5, 0.75, 1.25

    def axis(self, shape):
        return 1

    def reference(self, x, dy, weight, bias, given):
        y = _reference.local_response_norm(x, *self.arguments)
        dx = _reference.local_response_norm_backward(dy, x, *self.arguments)
        return {"y": y, "grad_input": dx, "input": x}

    def forward(self, x, y, p, r, threads):
        return api._window_forward(x, y, *self.arguments, threads)

    def backward(self, dy, x, dx, p, r, threads):
        return api._window_backward(dy, x, dx, *self.arguments, threads)


MATRICES = [(1, 1), (3, 16), (17, 31), (65, 33), (130, 64), (600, 7), (5, 2049), (3, 16385)]
VOLUMES = [(1, 2, 1), (3, 6, 4), (2, 32, 33), (5, 12, 100), (2, 2, 16385), (40, 2, 7)]
NORMS = [
    Rows("layer", MATRICES),
    Rows("rms", MATRICES),
    *(Channels("segments", VOLUMES, groups) for groups in (0, 1, 2)),
    Channels("segments", VOLUMES, 0, given=True),
    Channels("columns", [*MATRICES[1:], (530, 1000)]),
    Channels("columns", MATRICES[1:], given=True),
    Crossed("crossed", MATRICES[1:]),
    Crossed("crossed", MATRICES[1:], given=True),
    Window("window", VOLUMES),
]


def run(norm, x, dy, p, expected, given, layout, threads):
    """Everything that forward and backward give, by name."""
    kept = set(expected) - {"y", "grad_input", "input", "stats"}
    r = {k: np.full(expected[k].shape, np.nan) for k in kept}
    if norm.given:
        r["mean"], r["rstd"] = given[0].copy(), 1 / np.sqrt(given[1] + EPS)
    y, dx = layout(np.full_like(x, np.nan)), layout(np.full_like(x, np.nan))
    assert norm.forward(layout(x), y, p, r, threads) == OK
    assert norm.backward(layout(dy), layout(x), dx, p, r, threads) == OK
    return {k: v for k, v in r.items() if k in kept} | {"y": y, "grad_input": dx}


@pytest.fixture
def force():
    """Tells the kernels in use which strategy to take."""
    yield _dispatch.kernels.force_strategy
    _dispatch.kernels.force_strategy(0)


@pytest.mark.grid(4)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", NORMS, ids=str)
def test_entries_agree_with_the_reference(norm, dtype, build, force, rng):
    for shape in norm.shapes:
        x, dy = rng.normal(0.5, 1, (2, *shape)).astype(dtype)
        p = norm.parameters(rng, shape, dtype)
        c = shape[1]
        given = rng.uniform(-1, 1, c), rng.uniform(0.5, 2, c)
        wide = np.float64 if dtype == np.float32 else np.longdouble
        of = [given[0].astype(wide), given[1].astype(wide)] if norm.given else [None, None]
        arrays = (a.astype(wide) for a in (x, dy, *p.values()))
        expected = norm.reference(*arrays, of)
        first = None
        strategies = itertools.product(norm.layouts, STRATEGIES.items())
        for (layout, (name, strategy)), threads in zip(strategies, itertools.cycle(THREADS)):
            force(strategy)
            got = run(norm, x, dy, p, expected, given, layout, threads)
            what = f"{norm} {shape} {layout.__name__}, {name} on {threads} threads"
            if first is None:
                check(got, expected, dtype, dy, what)
                first = layout, {k: v.tobytes() for k, v in got.items()}
            elif layout is first[0] or norm.name != "window":
                wrong = [k for k, v in got.items() if v.tobytes() != first[1][k]]
                assert not wrong, f"{wrong} of {what}"
            else:
                check(got, expected, dtype, dy, what)


def test_parameters_and_statistics_may_be_absent(rng):
    x, dy = rng.normal(size=(2, 4, 6)).astype(np.float32)
    ones, zeros = np.ones(6, np.float32), np.zeros(6, np.float32)
    some = rng.normal(size=6).astype(np.float32)
    mean, rstd = np.empty((2, 4))
    y, whole = np.empty((2, 4, 6), np.float32)
    for weight, bias in itertools.product((None, some), repeat=2):
        assert api._rows_forward(x, y, weight, bias, None, None, True, EPS, 1) == OK
        w, b = ones if weight is None else weight, zeros if bias is None else bias
        assert api._rows_forward(x, whole, w, b, mean, rstd, True, EPS, 1) == OK
        np.testing.assert_allclose(y, whole, 1e-6, 1e-6)
        assert api._columns_forward(x, y, weight, bias, None, None, False, EPS, 1) == OK
        assert api._columns_forward(x, whole, w, b, None, None, False, EPS, 1) == OK
        np.testing.assert_allclose(y, whole, 1e-6, 1e-6)
    grads = np.empty((2, 6))
    assert api._rows_backward(dy, x, y, None, mean, rstd, None, None, True, 1) == OK
    assert api._rows_backward(dy, x, whole, ones, mean, rstd, *grads, True, 1) == OK
    np.testing.assert_array_equal(y, whole)


def test_in_place(rng):
    x = rng.normal(size=(5, 33)).astype(np.float32)
    y = np.empty_like(x)
    assert api._rows_forward(x, y, None, None, None, None, True, EPS, 1) == OK
    assert api._rows_forward(x, x, None, None, None, None, True, EPS, 1) == OK
    np.testing.assert_array_equal(x, y)


def test_empty_arrays():
    for shape in ((0, 6), (4, 0)):
        x = np.empty(shape, np.float32)
        grads = np.full((2, shape[1]), np.nan)
        stats = np.ones((2, shape[0]))
        assert api._rows_forward(x, x, None, None, *stats, True, EPS, 1) == OK
        assert api._rows_backward(x, x, x, None, *stats, *grads, True, 1) == OK
        assert not grads.any()


def test_what_no_kernel_takes_is_refused_and_nothing_is_written():
    a, y = np.ones((4, 6), np.float32), np.zeros((4, 6), np.float32)
    gaps, unaligned = np.ones((4, 12), np.float32)[:, ::2], np.ones(97, np.uint8)[1:]
    unaligned = unaligned.view(np.float32).reshape(4, 6)
    row, long, stats = np.ones(6, np.float32), np.ones(7, np.float32), np.ones((2, 4))

    def rows(x=a, y=y, weight=row, bias=row, mean=stats[0], rstd=stats[1]):
        return api._rows_forward(x, y, weight, bias, mean, rstd, True, EPS, 1)

    assert rows(x=gaps) == rows(y=gaps) == rows(x=a[:3]) == rows(y=y[:, :5]) == BAD_LAYOUT
    assert rows(weight=long) == rows(bias=long) == rows(mean=stats[0, :3]) == BAD_LAYOUT
    assert rows(weight=np.ones(12, np.float32)[::2]) == BAD_LAYOUT
    assert rows(rstd=np.ones(8)[::2]) == rows(x=unaligned) == BAD_LAYOUT
    assert api._rows_backward(a, a, y, row, None, stats[1], None, None, True, 1) == BAD_LAYOUT
    assert api._rows_backward(a, a, y, row, *stats, np.ones(5), None, True, 1) == BAD_LAYOUT
    volume = np.ones((2, 6, 5), np.float32)
    into, given = np.zeros_like(volume), np.ones((2, 6))
    for groups in (4, -1):
        status = api._segments_forward(volume, into, None, None, None, None, groups, False, EPS, 1)
        assert status == BAD_LAYOUT
    assert (
        api._segments_forward(volume, into, None, None, None, None, 0, True, EPS, 1) == BAD_LAYOUT
    )
    assert (
        api._segments_backward(volume, volume, into[:1], None, *given, None, None, 0, False, 1)
        == BAD_LAYOUT
    )
    assert api._columns_forward(a, y, long, None, None, None, False, EPS, 1) == BAD_LAYOUT
    assert api._columns_forward(a, y, None, None, None, None, True, EPS, 1) == BAD_LAYOUT
    assert api._window_forward(volume, into, 0, 1, 1, 1, 1) == BAD_LAYOUT
    every_other = np.ones((2, 12, 10), np.float32)[:, ::2, ::2]
    assert api._window_forward(every_other, into, 3, 1, 1, 1, 1) == BAD_LAYOUT
    assert not y.any() and not into.any()

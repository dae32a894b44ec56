"""Any strides, `out=`, in place, overlapping: the right answer, and no copy of the input."""

import tracemalloc
from contextlib import contextmanager

import numpy as np
import pytest
from layouts import LAYOUTS, channels_last, cropped, negative, scattered
from operations import GroupNorm, InstanceNorm, LayerNorm, ResponseNorm, SwitchNorm

import cnorm.functional as F


def _forward(operation, x, p, **options):
    """y alone."""
    p = {k: v.copy() if isinstance(v, np.ndarray) else v for k, v in p.items()}
    return operation.forward(F, x, p, **options)[0]


def _same(actual, expected, what=""):
    """To a few roundings: another layout may sum in another order."""
    tolerance = 4 * float(np.finfo(np.float32).eps) * max(np.abs(expected).max(), 1)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance, err_msg=str(what))


@pytest.fixture
def x(rng):
    return rng.normal(size=(4, 6, 5, 7)).astype(np.float32)


# --- the result -------------------------------------------------------------------------------


def _order(array):
    """The axes by their strides, the slowest first."""
    return tuple(np.argsort([-abs(s) for s in array.strides], kind="stable"))


def test_a_dense_input_gives_its_memory_order_to_the_result(operation, x, rng):
    for order in [(0, 1, 2, 3), (0, 2, 3, 1), (3, 2, 1, 0), (1, 0, 2, 3)]:
        back = np.argsort(order)
        dense = np.ascontiguousarray(x.transpose(order)).transpose(back)
        p = operation.draw(rng, x.shape, 1, np.float32)
        results = operation.run(F, dense, dense, p)
        for name in ("y", "grad_input"):
            assert results[name].strides == dense.strides, (name, order)


def test_any_other_input_gives_a_dense_result(operation, x, rng):
    p = operation.draw(rng, x.shape, 1, np.float32)
    for layout in (cropped, scattered):
        y = _forward(operation, layout(x), p)
        assert y.flags.c_contiguous
    y = _forward(operation, np.broadcast_to(x[:1], x.shape), p)
    assert y.flags.writeable
    assert len({y[i].__array_interface__["data"][0] for i in range(4)}) == 4


def test_the_result_is_a_plain_native_array(operation, x, rng):
    class Labelled(np.ndarray):
        pass

    p = operation.draw(rng, x.shape, 1, np.float32)
    for special in (x.view(Labelled), x.astype(x.dtype.newbyteorder()), x.tolist()):
        y = _forward(operation, special, p)
        assert type(y) is np.ndarray
        assert y.dtype.isnative
        assert y.flags.owndata or y.base is not None


def test_memory_maps(x, tmp_path):
    mapped = np.memmap(tmp_path / "x", np.float32, "w+", shape=x.shape)
    mapped[...] = x
    y = F.group_norm(np.memmap(tmp_path / "x", np.float32, "r", shape=x.shape), 3)
    assert type(y) is np.ndarray
    np.testing.assert_array_equal(y, F.group_norm(x, 3))


def test_masked_arrays_are_refused_where_no_mask_is_taken(x):
    with pytest.raises(TypeError, match=r"[Mm]asked"):
        F.local_response_norm(np.ma.masked_array(x, x > 1), 3)


def test_dlpack_and_array_protocols(x):
    class Exporter:
        def __init__(self, array):
            self.array = array
            self.exported = 0

    class OfDLPack(Exporter):
        def __dlpack__(self, **options):
            self.exported += 1
            return self.array.__dlpack__(**options)

        def __dlpack_device__(self):
            return self.array.__dlpack_device__()

    class OfArray(Exporter):
        def __array__(self, dtype=None, copy=None):
            self.exported += 1
            return self.array

    for exporter in (OfDLPack(x), OfArray(x)):
        np.testing.assert_array_equal(F.layer_norm(exporter, 7), F.layer_norm(x, 7))
        assert exporter.exported


# --- out= -------------------------------------------------------------------------------------


def test_out_takes_the_result_in_any_layout(operation, x, rng):
    p = operation.draw(rng, x.shape, 1, np.float32)
    expected = _forward(operation, x, p)
    for layout in LAYOUTS:
        out = layout(np.zeros_like(x))
        if out.flags.writeable and out.dtype.isnative:
            assert _forward(operation, x, p, out=out) is out
            _same(out, expected, layout.__name__)


def test_out_touches_nothing_beside_itself(operation, x, rng):
    p = operation.draw(rng, x.shape, 1, np.float32)
    whole = np.full((8, 6, 5, 20), 7, np.float32)
    view = whole[::2, :, :, 3:10]
    _forward(operation, x, p, out=view)
    margin = np.ones(whole.shape, bool)
    margin[::2, :, :, 3:10] = False
    assert (whole[margin] == 7).all()


@pytest.mark.parametrize("layout", [np.copy, channels_last, cropped, negative, scattered])
def test_in_place(operation, layout, x, rng):
    p = operation.draw(rng, x.shape, 1, np.float32)
    array = layout(x)
    expected = _forward(operation, array, p)
    assert _forward(operation, array, p, out=array) is array
    np.testing.assert_array_equal(array, expected)


def test_backward_in_place_on_the_gradient(operation, x, rng):
    p = operation.draw(rng, x.shape, 1, np.float32)
    dy = rng.normal(size=x.shape).astype(np.float32)
    for layout in (np.copy, channels_last, cropped):
        _, *stats = operation.forward(F, x, dict(p))
        grad = layout(dy)
        expected = operation.backward(F, grad, x, stats, p)
        grads = operation.backward(F, grad, x, stats, p, out=grad)
        expected, grads = (g if isinstance(g, tuple) else (g,) for g in (expected, grads))
        assert grads[0] is grad
        for a, e in zip(grads, expected, strict=True):
            np.testing.assert_array_equal(a, e)


def test_backward_in_place_on_the_input(operation, x, rng):
    p = operation.draw(rng, x.shape, 1, np.float32)
    dy = rng.normal(size=x.shape).astype(np.float32)
    _, *stats = operation.forward(F, x, dict(p))
    expected = operation.backward(F, dy, x, stats, p)
    target = stats[0] if "sum" in operation.statistics else x
    grads = operation.backward(F, dy, x, stats, p, out=target)
    expected, grads = (g if isinstance(g, tuple) else (g,) for g in (expected, grads))
    assert grads[0] is target
    for a, e in zip(grads, expected, strict=True):
        np.testing.assert_array_equal(a, e)


@contextmanager
def _right_or_refused(out, expected):
    """Either the right result, or a ValueError that names the overlap and wrote nothing."""
    before = out.copy()
    try:
        yield
    except ValueError as error:
        assert "overlap" in str(error)
        np.testing.assert_array_equal(out, before)
    else:
        _same(out, expected)


def test_partial_overlap_is_right_or_refused(operation, x, rng):
    """`out` starts one row, one sample or one element after the input, in the same memory."""
    p = operation.draw(rng, x.shape, 1, np.float32)
    expected = _forward(operation, x, p)
    flat = np.zeros(3 * x.size, np.float32)
    for shift in (1, 7, -1, -7, x[0].size, -x[0].size):
        for shape in (x.shape, x.shape[::-1]):
            order = (3, 2, 1, 0) if shape != x.shape else (0, 1, 2, 3)
            source = flat[x.size : 2 * x.size].reshape(x.shape)
            source[...] = x
            start = x.size + shift
            out = flat[start : start + x.size].reshape(shape).transpose(order)
            with _right_or_refused(out, expected):
                _forward(operation, source, p, out=out)


def test_out_over_the_same_memory_in_another_order(operation, rng):
    """A transposed view of the input: every element is read after another has been written."""
    x = rng.normal(size=(6, 6, 6, 6)).astype(np.float32)
    p = operation.draw(rng, x.shape, 1, np.float32)
    expected = _forward(operation, x, p)
    out = x.transpose(3, 2, 1, 0)
    with _right_or_refused(out, expected):
        _forward(operation, x, p, out=out)


def test_out_over_a_parameter_is_right_or_refused(x):
    weight = np.linspace(0.5, 1.5, 7).astype(np.float32)
    expected = F.layer_norm(x[0, 0], 7, weight)
    memory = np.zeros((5, 7), np.float32)
    memory[2] = weight
    with _right_or_refused(memory, expected):
        F.layer_norm(x[0, 0], 7, memory[2], out=memory)


# --- without a copy ---------------------------------------------------------------------------


def _row_strided(a, axis=1):
    """Rows apart from each other, each contiguous."""
    whole = np.empty((*a.shape[:-1], a.shape[-1] + 8), a.dtype)
    whole[..., : a.shape[-1]] = a
    return whole[..., : a.shape[-1]]


def _every_second_sample(a, axis=1):
    whole = np.empty((2 * len(a), *a.shape[1:]), a.dtype)
    whole[::2] = a
    return whole[::2]


CHANNEL_NORMS = [
    InstanceNorm(use_input_stats=True),
    GroupNorm(),
    ResponseNorm(size=5, beta=0.75),
    SwitchNorm(training=True),
]
NO_COPY = [
    (norm, layout)
    for norm in CHANNEL_NORMS
    for layout in (np.ascontiguousarray, channels_last, _row_strided, _every_second_sample)
]
NO_COPY += [
    (LayerNorm(axes="last"), layout)
    for layout in (np.ascontiguousarray, _row_strided, _every_second_sample)
]


def _allocated(call):
    """The most that a call had allocated at once, in bytes."""
    call()
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("operation", "layout"), NO_COPY, ids=lambda v: getattr(v, "__name__", v))
def test_no_copy_of_the_input(operation, layout, rng):
    x = layout(rng.normal(size=(16, 32, 24, 36)).astype(np.float32))
    p = operation.draw(rng, x.shape, 1, np.float32)
    out, dy = layout(np.empty(x.shape, np.float32)), layout(np.ones(x.shape, np.float32))
    _, *stats = operation.forward(F, x, dict(p))
    forward = _allocated(lambda: operation.forward(F, x, dict(p), out=out))
    assert forward < x.nbytes / 8
    backward = _allocated(lambda: operation.backward(F, dy, x, stats, p, out=out))
    assert backward < x.nbytes / 8


def test_no_copy_of_channels_last_arrays_as_they_are(rng):
    x = rng.normal(size=(16, 24, 36, 32)).astype(np.float32)
    out = np.empty_like(x)
    options = {"training": True, "channel_axis": -1, "out": out}
    assert _allocated(lambda: F.batch_norm(x, **options)) < x.nbytes / 8

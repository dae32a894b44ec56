"""standardize and its inverse: any dtype, any axes, with statistics of the input or given ones."""

import numpy as np

cimport numpy as cnp

from cnorm cimport _runtime
from cnorm._call.arrays cimport (
    as_array, as_dtype, as_float, as_out, check_written, copy_if_overlapping, dtype_code, float64_data, is_native,
    may_overlap, same_memory, shape_of)
from cnorm._call.checks cimport check_eps, clip_bounds
from cnorm._call.launch cimport launch
from cnorm._call.masks cimport as_mask, without_mask
from cnorm._call.moments cimport (
    Measurement, add_axis, as_axes, as_numbers, check_policy, kept_axes, measured, memory_order, resolve_axes,
    to_doubles, variance, wide_code)
from cnorm._call.observe cimport note
from cnorm._pool cimport empty_like, new_array
from cnorm._runtime cimport threads_for
from cnorm.kernels.job cimport STANDARDIZE_FORWARD, MomentsJob, StandardizeJob

cnp.import_array()


cdef int float_code(object dtype) except -2:
    return dtype_code(np.empty(0, dtype))


cdef object result_dtype(cnp.ndarray x, object dtype, cnp.ndarray out):
    """The dtype of the result, one of the four float dtypes, native."""
    if dtype is not None:
        dtype = as_dtype(dtype)
        if float_code(dtype) < 0:
            raise TypeError(f"dtype must be float32, float64, float16 or bfloat16, but got {dtype}")
        if out is not None and float_code(out.dtype) != float_code(dtype):
            raise TypeError(f"out must have dtype {dtype}, but got {out.dtype}: dtype={out.dtype} asks for another")
    elif out is not None:
        dtype = out.dtype
        if float_code(dtype) < 0:
            raise TypeError(f"out must be a float32, float64, float16 or bfloat16 array, but got dtype {dtype}")
    else:
        dtype = x.dtype if dtype_code(x) >= 0 else np.dtype(np.float32)
    return dtype.newbyteorder("=")


cdef tuple as_bounds(object clip):
    """The argument `clip` as (low, high), of which an open side is NaN, or None."""
    cdef double low, high
    return (low, high) if clip_bounds(clip, &low, &high) else None


def given_statistic(values, str name, shape, axes, kept_shape):
    """Statistics that were given, float64, in the shape of the kept axes."""
    cdef cnp.ndarray a = to_doubles(values, name)
    if cnp.PyArray_NDIM(a) == len(shape) and cnp.PyArray_NDIM(a) > 0 and len(kept_shape) < len(shape):
        if any([cnp.PyArray_DIM(a, i) != 1 for i in axes]):
            raise ValueError(f"{name} must have size 1 at the reduced axes {axes}, but got shape {shape_of(a)}")
        a = a.reshape([n for i, n in enumerate(shape_of(a)) if i not in axes])
    try:
        return np.array(np.broadcast_to(a, kept_shape), order="C")
    except ValueError:
        raise ValueError(f"{name} must broadcast to the shape {kept_shape} of the kept axes, or have the input's "
                         f"number of dimensions with size 1 at the axes {axes}, but got shape {shape_of(values)}"
                         if hasattr(values, "shape") else
                         f"{name} must broadcast to the shape {kept_shape} of the kept axes") from None


def scale_from(var, double eps, bint inverse):
    """1 / sqrt(var + eps), 1 where that is 0; inverse: sqrt(var + eps), and 1 there."""
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        std = np.sqrt(var + eps)
        std = np.where(std == 0, 1.0, std)
        return std if inverse else 1 / std


cdef class Application:
    """One pass over an input: standardize, or its inverse, with statistics in the shape of the kept axes."""

    cdef cnp.ndarray x, mask, y, result
    cdef cnp.ndarray mean, lo, scale
    cdef tuple kept
    cdef bint inverse, read_before
    cdef tuple bounds

    cdef int plan(self, StandardizeJob *job) except -1:
        cdef list order = memory_order(self.y), kept = [i for i in order if i in self.kept]
        cdef dict unit = {}
        cdef Py_ssize_t step = 1
        cdef int i
        for i in reversed(kept):
            unit[i] = step
            step *= cnp.PyArray_DIM(self.x, i)
        if kept != list(self.kept):
            axes = [self.kept.index(i) for i in kept]
            self.mean, self.lo, self.scale = [np.ascontiguousarray(one.transpose(axes))
                                              for one in (self.mean, self.lo, self.scale)]
        job.axes.count = 0
        for i in order:
            add_axis(&job.axes, cnp.PyArray_DIM(self.x, i), cnp.PyArray_STRIDE(self.x, i),
                     cnp.PyArray_STRIDE(self.y, i),
                     cnp.PyArray_STRIDE(self.mask, i) if self.mask is not None else 0, unit.get(i, 0))
        job.x = cnp.PyArray_BYTES(self.x)
        job.y = cnp.PyArray_BYTES(self.y)
        job.mask = cnp.PyArray_BYTES(self.mask) if self.mask is not None else NULL
        return 0

    cdef int set_statistics(self, object mean, object lo, object scale) except -1:
        self.mean, self.lo, self.scale = [np.ascontiguousarray(one, np.float64) for one in (mean, lo, scale)]
        return 0

    cdef int resolve_output(self, object dtype, cnp.ndarray out) except -1:
        """Choose where the result goes: memory of its own where `out` cannot be written while the input is read."""
        cdef bint same
        if out is None:
            if self.mask is not None:
                self.y = np.zeros_like(self.x, dtype)
            elif self.x.dtype == dtype:
                self.y = empty_like(self.x)
            elif cnp.PyArray_IS_C_CONTIGUOUS(self.x):
                self.y = new_array(dtype.num, cnp.PyArray_NDIM(self.x), cnp.PyArray_DIMS(self.x))
            else:
                self.y = np.empty_like(self.x, dtype)
            self.result = self.y
            return 0
        if shape_of(out) != shape_of(self.x):
            raise ValueError(f"out must have shape {shape_of(self.x)}, but got {shape_of(out)}")
        self.result = check_written(out, "out")
        self.mask = copy_if_overlapping(self.mask, out)
        self.y = out
        same = out.dtype == self.x.dtype and same_memory(out, self.x)
        if not is_native(out) or not same and may_overlap(out, self.x) or not self.has_dense_run(out):
            if _runtime.observing:
                note("the result goes through memory of its own: out overlaps the input, or its innermost axis is not "
                     "contiguous, or it is not aligned, or not in this machine's byte order")
            self.y = np.empty(shape_of(out), dtype)
            if self.mask is not None and not _runtime.observing:
                self.y[...] = out
        return 0

    cdef bint has_dense_run(self, cnp.ndarray a) except -1:
        """Whether the elements of the innermost axis lie side by side."""
        for i in reversed(memory_order(a)):
            if cnp.PyArray_DIM(a, i) > 1:
                return cnp.PyArray_STRIDE(a, i) == cnp.PyArray_ITEMSIZE(a)
        return True

    cdef bint keeps_order(self, Measurement m) except -1:
        """Whether the kept axes lie in memory as in the shape, in the input as it was measured and in the result."""
        if m.x is not self.x or m.order != list(self.kept):
            return False
        return [i for i in memory_order(self.y) if i in self.kept] == m.order

    cdef bint measure(self, Measurement m, double ddof, double eps) except -1:
        """Standardize by moments that the same call of the kernels takes; False where it has no job for that: all is
        as before, but the moments are known."""
        cdef MomentsJob moments
        cdef StandardizeJob job
        cdef bint columns = m.prepare(&moments)
        cdef Py_ssize_t units = moments.units
        cdef int i
        if not self.keeps_order(m):
            m.launch(&moments, columns)
            return False
        self.mean, self.lo, self.scale = m.mean, m.lo, np.empty_like(m.mean)
        self.plan(&job)
        job.measure = &moments
        job.by_columns = columns
        job.outer_axis = -1
        if moments.kept.count:
            for i in range(job.axes.count):
                if job.axes.unit[i] and job.axes.unit[i] * job.axes.shape[i] == units and (
                        job.axes.shape[i] == moments.kept.shape[0] and job.axes.x[i] == moments.kept.x[0]):
                    job.outer_axis = i
        job.ddof = ddof
        job.eps = eps
        self.launch(&job)
        return True

    cdef int run(self) except -1:
        cdef StandardizeJob job
        if cnp.PyArray_SIZE(self.x):
            self.plan(&job)
            job.measure = NULL
            self.launch(&job)
        return 0

    cdef int launch(self, StandardizeJob *job) except -1:
        job.head.dtype = wide_code(self.x)
        job.out_dtype = dtype_code(self.y)
        job.head.threads = threads_for(cnp.PyArray_NBYTES(self.x))
        job.read_before = self.read_before
        job.call_bytes = 0
        job.inverse = self.inverse
        job.clips = self.bounds is not None
        job.low, job.high = self.bounds if self.bounds is not None else (0.0, 0.0)
        job.mean = float64_data(self.mean)
        job.lo = float64_data(self.lo)
        job.scale = float64_data(self.scale)
        job.head.schedule_only = NULL
        launch(STANDARDIZE_FORWARD, &job.head, cnp.PyArray_NBYTES(self.x), "result")
        if self.y is not self.result:
            cnp.PyArray_CopyInto(self.result, self.y)
        return 0


cdef Application application(cnp.ndarray x, cnp.ndarray mask, tuple kept, tuple bounds, bint inverse):
    cdef Application call = Application.__new__(Application)
    call.x, call.mask, call.kept = x, mask, kept
    call.bounds, call.inverse, call.read_before = bounds, inverse, False
    return call


cdef object masked_like(object input, object result):
    """A new result, as a masked array where the input is one, with a copy of its mask."""
    if not isinstance(input, np.ma.MaskedArray):
        return result
    return np.ma.masked_array(result, np.ma.getmaskarray(input).copy())


def standardize(input, axis, mean, var, eps, ddof, where, nan_policy, clip, dtype, out, return_stats):
    """`cnorm.functional.standardize`."""
    cdef cnp.ndarray x, mask, into = as_out(out, "out")
    cdef Measurement m
    cdef Application call
    cdef double added = as_float(eps, "eps"), less = as_float(ddof, "ddof")
    cdef tuple bounds = as_bounds(clip), axes, kept, shape
    cdef bint with_stats = return_stats
    whole = input
    input, where = without_mask(input, where)
    x, mask = as_array(input, "input"), as_array(where, "where")
    x = as_numbers(x, "input")
    check_policy(nan_policy)
    mask = as_mask(mask, x)
    axes = resolve_axes(as_axes(axis), cnp.PyArray_NDIM(x))
    kept = kept_axes(axes, cnp.PyArray_NDIM(x))
    shape = tuple([cnp.PyArray_DIM(x, i) for i in kept])
    check_eps("standardize", added, False)
    dtype = result_dtype(x, dtype, into)
    if (mean is None) != (var is None):
        raise ValueError("mean and var must either both be given or neither")
    call = application(x, mask, kept, bounds, False)
    if mean is None and mask is None and nan_policy == "propagate" and cnp.PyArray_SIZE(x):
        m = Measurement.__new__(Measurement)
        m.take(x, mask, axes, False)
        call.resolve_output(dtype, into)
        if call.measure(m, less, added):
            return finished(call, whole, into, with_stats, m.mean, call.scale, axes)
    elif mean is None:
        m = measured(x, mask, axes, nan_policy)
        call.resolve_output(dtype, into)
    if mean is None:
        lo = m.lo
        average = np.where(m.count > 0, m.mean, np.nan)
        spread = variance(m.count, m.m2, less)
    else:
        average = given_statistic(mean, "mean", shape_of(x), axes, shape)
        spread = given_statistic(var, "var", shape_of(x), axes, shape)
        if (spread < 0).any():
            raise ValueError("var must not be negative")
        lo = np.zeros(shape)
        if nan_policy == "raise":
            measured(x, mask, tuple(range(cnp.PyArray_NDIM(x))), nan_policy)
        call.resolve_output(dtype, into)
    rstd = scale_from(spread, added, False)
    call.set_statistics(average, lo, rstd)
    call.read_before = mean is None
    call.run()
    return finished(call, whole, into, with_stats, average, rstd, axes)


cdef object finished(Application call, object whole, cnp.ndarray into, bint with_stats, object mean, object rstd,
                     tuple axes):
    """What `standardize` returns."""
    y = call.result if into is not None else masked_like(whole, call.result)
    if not with_stats:
        return y
    sizes = [1 if i in axes else n for i, n in enumerate(shape_of(call.x))]
    return y, np.reshape(mean, sizes), np.reshape(rstd, sizes)


def apply_moments(input, axes, mean, lo, var, eps, where, clip, dtype, out, bint inverse):
    """`Moments.standardize` and `Moments.inverse`, of moments over `axes`."""
    cdef cnp.ndarray x, mask, into = as_out(out, "out")
    cdef Application call
    cdef tuple kept
    cdef double added = as_float(eps, "eps")
    cdef tuple bounds = as_bounds(clip)
    cdef tuple reduced
    whole = input
    input, where = without_mask(input, where)
    x, mask = as_array(input, "input"), as_array(where, "where")
    x = as_numbers(x, "input")
    mask = as_mask(mask, x)
    reduced = resolve_axes(axes, cnp.PyArray_NDIM(x))
    kept = kept_axes(reduced, cnp.PyArray_NDIM(x))
    check_eps("standardize", added, False)
    dtype = result_dtype(x, dtype, into)
    if tuple([cnp.PyArray_DIM(x, i) for i in kept]) != np.shape(mean):
        raise ValueError(f"the input must have the shape {np.shape(mean)} of these moments at the kept axes {kept}, "
                         f"but its shape is {shape_of(x)}"
                         + (": input[None] is a batch of one" if shape_of(x) == np.shape(mean) else ""))
    call = application(x, mask, kept, bounds, inverse)
    call.resolve_output(dtype, into)
    call.set_statistics(mean, lo, scale_from(var, added, inverse))
    call.run()
    return masked_like(whole, call.result) if into is None else call.result

"""Moments of any dtype over any axes, from arguments to kernels, and their merge.

Axes are taken in the order of memory, the largest stride first, so that a transposed or Fortran-ordered array is read
as it lies. Where the innermost axis is reduced, the units are sequences (kernels/sequences.pyx), whatever lies outside.
Where it is kept, they are columns (kernels/columns_selected.pyx), of which at most one kept axis and three reduced axes
may lie outside. All else is copied, once, so that the reduced axes come last.
"""

import numpy as np

cimport numpy as cnp

from cnorm cimport _runtime
from cnorm._call cimport checks
from cnorm._call.arrays cimport as_array, dtype_code, float64_data, hints, is_native, native_copy, shape_of
from cnorm._call.launch cimport launch
from cnorm._call.masks cimport as_mask, without_mask
from cnorm._call.observe cimport note
from cnorm._plan cimport MAX_DIMS
from cnorm._pool cimport new_array
from cnorm._runtime cimport threads_for
from cnorm.kernels.job cimport (
    FLOAT64, SELECTED_COLUMNS_MOMENTS, SEQUENCES_MOMENTS, WIDE_BFLOAT16, WIDE_FLOAT16, WIDE_FLOAT32, WIDE_INT8,
    WIDE_INT16, WIDE_INT32, WIDE_INT64, WIDE_UINT8, WIDE_UINT16, WIDE_UINT32, WIDE_UINT64, Axes, MomentsJob)
from cnorm.kernels.statistics cimport merge_counted_moments, settle_moments

cnp.import_array()

POLICIES = ("propagate", "omit", "raise")


# ---- what is accepted ----


cdef int wide_code(cnp.ndarray a) noexcept:
    """The Dtype as which kernels read an array as double, or -1."""
    cdef int code = dtype_code(a)
    if code >= 0:
        return (WIDE_FLOAT32, FLOAT64, WIDE_FLOAT16, WIDE_BFLOAT16)[code]
    kind = (<object> cnp.PyArray_DESCR(a)).kind
    if kind == "b":
        return WIDE_UINT8
    if kind == "i" and cnp.PyArray_TYPE(a) < 256:
        return {1: WIDE_INT8, 2: WIDE_INT16, 4: WIDE_INT32, 8: WIDE_INT64}.get(cnp.PyArray_ITEMSIZE(a), -1)
    if kind == "u" and cnp.PyArray_TYPE(a) < 256:
        return {1: WIDE_UINT8, 2: WIDE_UINT16, 4: WIDE_UINT32, 8: WIDE_UINT64}.get(cnp.PyArray_ITEMSIZE(a), -1)
    return -1


cdef cnp.ndarray as_numbers(cnp.ndarray a, str name):
    """A native array of a dtype that can be read as double."""
    if a is None:
        raise TypeError(f"{name} must be an array, but got None")
    if wide_code(a) < 0:
        raise TypeError(hints().floats(name, a, "a float16, bfloat16, float32, float64, integer or bool array"))
    return a if is_native(a) else native_copy(a, name)


cpdef tuple as_axes(axis):
    """The argument `axis` as a sorted tuple of ints, which may be negative; None stays None."""
    axes = checks.as_axes(axis)
    return None if axes is None else tuple(sorted(axes))


cpdef tuple resolve_axes(axes, int ndim):
    """Axes of an input of `ndim` dimensions, not negative, in order; of None all."""
    cdef int found[MAX_DIMS]
    cdef int i
    if axes is None:
        return tuple(range(ndim))
    return tuple(sorted([found[i] for i in range(checks.resolve_axes(axes, ndim, found))]))


cpdef tuple kept_axes(tuple reduced, int ndim):
    """The axes of an input of `ndim` dimensions that are not reduced."""
    return tuple([i for i in range(ndim) if i not in reduced])


cpdef int check_policy(nan_policy) except -1:
    if not isinstance(nan_policy, str) or nan_policy not in POLICIES:
        raise ValueError(f"nan_policy must be 'propagate', 'omit' or 'raise', but got {nan_policy!r}")
    return 0


cpdef cnp.ndarray to_doubles(values, str name):
    """Statistics of any float or integer dtype as a new float64 array."""
    cdef cnp.ndarray a = as_numbers(as_array(values, name), name)
    return np.array(a, np.float64, order="C")


# ---- axes in the order of memory ----


cdef list memory_order(cnp.ndarray a):
    """The axes of an array, the largest stride first; those along which nothing moves before all others."""
    cdef list strides = [cnp.PyArray_STRIDE(a, i) if cnp.PyArray_DIM(a, i) > 1 else 0
                         for i in range(cnp.PyArray_NDIM(a))]
    return sorted(range(cnp.PyArray_NDIM(a)), key=lambda i: -abs(strides[i]) if strides[i] else -(1 << 62))


cdef void add_axis(Axes *axes, Py_ssize_t size, Py_ssize_t x, Py_ssize_t y, Py_ssize_t mask, Py_ssize_t unit) noexcept:
    """Append an axis inside the others, or let the last one grow where the two are one in memory."""
    cdef int last = axes.count - 1
    if size == 1:
        return
    if last >= 0 and axes.x[last] == size * x and axes.y[last] == size * y and (
            axes.mask[last] == size * mask and axes.unit[last] == size * unit):
        axes.shape[last] *= size
    else:
        axes.count += 1
        last += 1
        axes.shape[last] = size
    axes.x[last] = x
    axes.y[last] = y
    axes.mask[last] = mask
    axes.unit[last] = unit


cdef class Measurement:
    """The moments of an input over some of its axes."""

    cdef int take(self, cnp.ndarray x, cnp.ndarray mask, tuple reduced, bint omit) except -1:
        self.x = x
        self.mask = mask
        self.reduced = reduced
        self.kept = kept_axes(reduced, cnp.PyArray_NDIM(x))
        self.omit = omit and wide_code(x) in (FLOAT64, WIDE_FLOAT32, WIDE_FLOAT16, WIDE_BFLOAT16)
        return 0

    cdef tuple kept_shape(self):
        return tuple([cnp.PyArray_DIM(self.x, i) for i in self.kept])

    cdef bint plan(self, MomentsJob *job, bint with_mask) except -1:
        """Fill in the axes of the job; whether its units are columns: the innermost axis is kept."""
        cdef Py_ssize_t size, x, mask
        cdef bint columns = False
        cdef int i
        job.kept.count = 0
        job.reduced.count = 0
        self.order = []
        job.x = cnp.PyArray_BYTES(self.x)
        job.mask = cnp.PyArray_BYTES(self.mask) if self.mask is not None else NULL
        for i in memory_order(self.x):
            size = cnp.PyArray_DIM(self.x, i)
            x = cnp.PyArray_STRIDE(self.x, i)
            mask = cnp.PyArray_STRIDE(self.mask, i) if with_mask else 0
            if i in self.reduced:
                if x < 0:  # a sum has no direction
                    job.x += (size - 1) * x
                    x = -x
                    if job.mask != NULL:
                        job.mask += (size - 1) * mask
                        mask = -mask
                add_axis(&job.reduced, size, x, 0, mask, 0)
            else:
                self.order.append(i)
                add_axis(&job.kept, size, x, 0, mask, 0)
            if size > 1:
                columns = i not in self.reduced
        return columns

    cdef bint fits_columns(self, const MomentsJob *job) noexcept:
        return job.kept.count <= 2 and job.reduced.count <= 3 and (
            job.kept.x[job.kept.count - 1] == cnp.PyArray_ITEMSIZE(self.x))

    cdef bint is_empty(self):
        """Whether there is nothing to measure; the moments are then filled in."""
        cdef tuple shape = self.kept_shape()
        if cnp.PyArray_SIZE(self.x):
            return False
        self.count, self.mean, self.lo, self.m2 = [np.zeros(shape) for _ in range(4)]
        return True

    cdef bint prepare(self, MomentsJob *job) except -1:
        """Fill in the job, of an input that is not empty, and make its results; whether its units are columns."""
        cdef bint columns
        cdef Py_ssize_t units = 1, n
        cdef int axes
        for n in self.kept_shape():
            units *= n
        job.elements = cnp.PyArray_SIZE(self.x) // units
        # the family follows from the input alone: a mask changes no bits by its strides
        columns = self.plan(job, False)
        if columns and not self.fits_columns(job):
            columns = False  # units are sequences: of a copy, or of single elements
            if job.elements > 1:
                if _runtime.observing:
                    note("the input is copied: no kernel reads its strides over these axes")
                self.copy()
        if self.mask is not None:
            axes = job.kept.count
            self.plan(job, True)
            if columns and (job.kept.count != axes or not self.fits_columns(job)):
                if _runtime.observing:
                    note("the mask is copied: no kernel reads its strides together with the input's")
                self.copy_mask()
                self.plan(job, True)
        elif not columns:
            self.plan(job, False)
        job.head.dtype = wide_code(self.x)
        job.omit_nan = self.omit
        job.units = units
        job.head.threads = threads_for(cnp.PyArray_NBYTES(self.x))
        self.make_results()
        job.count = float64_data(self.count)
        job.mean = float64_data(self.mean)
        job.lo = float64_data(self.lo)
        job.m2 = float64_data(self.m2)
        job.head.schedule_only = NULL
        return columns

    cdef int launch(self, MomentsJob *job, bint columns) except -1:
        """Fill in the moments."""
        launch(SELECTED_COLUMNS_MOMENTS if columns else SEQUENCES_MOMENTS, &job.head, cnp.PyArray_NBYTES(self.x),
               "sums")
        self.order_results()
        return 0

    cdef int run(self) except -1:
        cdef MomentsJob job
        cdef bint columns
        if not self.is_empty():
            columns = self.prepare(&job)
            self.launch(&job, columns)
        return 0

    cdef int copy(self) except -1:
        """Copy the input so that the kept axes come first."""
        cdef list axes = [*self.kept, *self.reduced]
        back = np.argsort(axes)
        self.x = np.ascontiguousarray(self.x.transpose(axes)).transpose(back)
        return 0

    cdef int copy_mask(self) except -1:
        """Copy the mask in the input's order of memory, along the kept axes, or the reduced ones, or both: not along
        those where it is one for all."""
        cdef list order = memory_order(self.x), axes = []
        cdef cnp.ndarray part, copy
        for group in (self.kept, self.reduced):
            if any([cnp.PyArray_STRIDE(self.mask, i) and cnp.PyArray_DIM(self.mask, i) > 1 for i in group]):
                axes.extend(group)
        part = self.mask[tuple([slice(None) if i in axes else slice(0, 1) for i in range(cnp.PyArray_NDIM(self.x))])]
        copy = np.ascontiguousarray(part.transpose(order)).transpose(np.argsort(order))
        self.mask = np.broadcast_to(copy, shape_of(self.x))
        return 0

    cdef int make_results(self) except -1:
        """Memory for the results, in the order in which the kernels number units."""
        cdef cnp.npy_intp shape[MAX_DIMS]
        cdef int i, ndim = len(self.order)
        for i in range(ndim):
            shape[i] = cnp.PyArray_DIM(self.x, self.order[i])
        self.count = new_array(cnp.NPY_DOUBLE, ndim, shape)
        self.mean = new_array(cnp.NPY_DOUBLE, ndim, shape)
        self.lo = new_array(cnp.NPY_DOUBLE, ndim, shape)
        self.m2 = new_array(cnp.NPY_DOUBLE, ndim, shape)
        return 0

    cdef int order_results(self) except -1:
        """The results in the order of the kept axes: C-contiguous arrays, no views of larger ones."""
        if self.order != sorted(self.order):
            back = np.argsort(self.order)
            self.count, self.mean, self.lo, self.m2 = [
                np.array(one.transpose(back), order="C") for one in (self.count, self.mean, self.lo, self.m2)]
        return 0


cdef int refuse_nan(Measurement m) except -1:
    """Raise for a NaN that counts. The moments are known: without a NaN among them there is none in the input."""
    cdef Measurement others
    if not np.isnan(m.mean).any():
        return 0
    others = Measurement.__new__(Measurement)
    others.take(m.x, m.mask, m.reduced, True)
    if others.omit:
        others.run()
        if not np.array_equal(others.count, m.count):
            raise ValueError("the input contains NaN, and nan_policy is 'raise'")
    return 0


cdef Measurement measured(cnp.ndarray x, cnp.ndarray mask, tuple reduced, str nan_policy):
    cdef Measurement m = Measurement.__new__(Measurement)
    m.take(x, mask, reduced, nan_policy == "omit")
    m.run()
    if nan_policy == "raise":
        refuse_nan(m)
    return m


def measure(input, axes, where, nan_policy):
    """The moments of an input over `axes`, as `as_axes` gives them: (ndim, count, mean, lo, m2)."""
    cdef cnp.ndarray x, mask
    cdef Measurement m
    input, where = without_mask(input, where)
    x, mask = as_array(input, "input"), as_array(where, "where")
    x = as_numbers(x, "input")
    check_policy(nan_policy)
    mask = as_mask(mask, x)
    m = measured(x, mask, resolve_axes(axes, cnp.PyArray_NDIM(x)), nan_policy)
    return cnp.PyArray_NDIM(x), m.count, m.mean, m.lo, m.m2


# ---- merging ----


cdef void merge_arrays(Py_ssize_t n, double *count, double *mean, double *lo, double *m2, const double *other_count,
                       const double *other_mean, const double *other_lo, const double *other_m2,
                       bint settle) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        merge_counted_moments(&count[i], &mean[i], &lo[i], &m2[i], other_count[i], other_mean[i], other_lo[i],
                              other_m2[i])
        if settle:
            settle_moments(&mean[i], &lo[i], &m2[i])


def merge(one, other, bint settle=True):
    """Merge moments, each (count, mean, lo, m2) of one shape: new arrays. With `settle` NaN and infinity make all of
    their unit NaN."""
    cdef list into = [np.array(a, np.float64, order="C") for a in one]
    cdef list rest = [np.ascontiguousarray(a, np.float64) for a in other]
    cdef cnp.ndarray a
    cdef double *to[4]
    cdef const double *read[4]
    cdef Py_ssize_t n = cnp.PyArray_SIZE(<cnp.ndarray> into[0]), i
    for i in range(4):
        a = into[i]
        to[i] = float64_data(a)
        a = rest[i]
        if cnp.PyArray_SIZE(a) != n or cnp.PyArray_SIZE(<cnp.ndarray> into[i]) != n:
            raise ValueError(f"moments of shapes {shape_of(into[0])} and {shape_of(a)} do not merge")
        read[i] = float64_data(a)
    with nogil:
        merge_arrays(n, to[0], to[1], to[2], to[3], read[0], read[1], read[2], read[3], settle)
    return tuple(into)


cpdef variance(count, m2, double ddof):
    """m2 / (count - ddof), NaN where count <= ddof."""
    return np.divide(m2, count - ddof, out=np.full(np.shape(m2), np.nan), where=np.asarray(count) > ddof)

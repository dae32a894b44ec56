"""A call of a norm with a weight per element of a row: its arrays and parameters, and the jobs of its kernels."""

import numpy as np

cimport cython
cimport numpy as cnp
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.string cimport memcpy, memset

from cnorm._call.arrays cimport (
    accumulation_type, as_plain, checked_product, converted, copy_if_overlapping, float64_array, float64_data, shape_of)
from cnorm cimport _runtime
from cnorm._call.launch cimport launch
from cnorm._call.masks cimport Pieces, same_along
from cnorm._call.observe cimport note
from cnorm._call.output cimport Call, gradient_from_sums, set_tensor
from cnorm._plan cimport ARRAYS, COLUMNS, UNITS, Plan, plan_row_axes, plan_rows
from cnorm._pool cimport empty_like
from cnorm.kernels.job cimport (
    ACT_SLOPES, COLUMNS_BACKWARD, COLUMNS_FORWARD, FLOAT64, ITEM_ELEMENTS, ITEM_UNITS, ROWS_BACKWARD, ROWS_FORWARD, Job)
from cnorm.kernels.tuning cimport MASKED_CHUNK_PIECES, MASKED_CHUNKS

cnp.import_array()

cdef enum:
    MAX_SHARED_ONES = 8192   # elements; for a longer row a call makes its own

# Made once and never replaced, so that a thread which has either reads no other length than it was told.
cdef cnp.ndarray ONES32 = np.ones(MAX_SHARED_ONES, np.float32)
cdef cnp.ndarray ONES64 = np.ones(MAX_SHARED_ONES, np.float64)


cdef cnp.ndarray ones(Py_ssize_t n, int dtype):
    """A weight of at least n elements where there is none; never written."""
    if n > MAX_SHARED_ONES:
        return np.ones(n, np.float64 if dtype == FLOAT64 else np.float32)
    return ONES64 if dtype == FLOAT64 else ONES32


cdef cnp.ndarray row_parameter(cnp.ndarray values, str name, int dtype):
    """A row's parameter as the loops take it: contiguous, of the accumulation type."""
    if values is None:
        return None
    cdef cnp.ndarray a = as_plain(values, name)
    cdef int number = accumulation_type(dtype)
    return a if cnp.PyArray_TYPE(a) == number else converted(a, number)


@cython.no_gc
cdef class RowsCall(Call):
    """One call of layer or rms norm."""

    cdef int set_rows(self, cnp.ndarray x, int normalized, tuple row_axes, bint centred, double eps) except -1:
        """Take the input. `row_axes` are the axes of normalized_shape; None: the last ones."""
        cdef int i, first = cnp.PyArray_NDIM(x) - normalized
        self.set_input(x)
        self.normalized = normalized
        self.trailing = row_axes is None
        self.centred = centred
        self.eps = eps
        self.length = 1
        self.param_sets = 1
        for i in range(cnp.PyArray_NDIM(x)):
            self.axes[i] = i
        for i in range(normalized):
            self.places[i] = i
        if not self.trailing:
            order = [axis for _, axis in sorted([(-abs((<object> x).strides[axis]), axis) for axis in row_axes])]
            for i, axis in enumerate([axis for axis in range(cnp.PyArray_NDIM(x)) if axis not in row_axes] + order):
                self.axes[i] = axis
            for i in range(normalized):
                self.places[i] = order.index(row_axes[i])
        for i in range(normalized):
            self.length *= cnp.PyArray_DIM(x, self.axes[first + i])
        return 0

    cdef int protect_inputs(self, cnp.ndarray written) except -1:
        Call.protect_inputs(self, written)
        self.weight = copy_if_overlapping(self.weight, written)
        self.bias = copy_if_overlapping(self.bias, written)
        self.mean = copy_if_overlapping(self.mean, written)
        self.rstd = copy_if_overlapping(self.rstd, written)
        self.unit_slopes = copy_if_overlapping(self.unit_slopes, written)
        return 0

    cdef Py_ssize_t rows(self) noexcept:
        """How many rows the input has."""
        cdef Py_ssize_t n = 1
        cdef int i
        for i in range(cnp.PyArray_NDIM(self.x) - self.normalized):
            n *= cnp.PyArray_DIM(self.x, self.axes[i])
        return n

    cdef tuple stats_shape(self):
        """The shape of the statistics: the input's, with ones for the axes of a row."""
        shape = list(shape_of(self.x))
        for i in range(cnp.PyArray_NDIM(self.x) - self.normalized, cnp.PyArray_NDIM(self.x)):
            shape[self.axes[i]] = 1
        return tuple(shape)

    cdef int use_packed(self, bytes packed) except -1:
        """Take mean and rstd from, or let them be written to, packed statistics."""
        self.rstd = packed_view(packed, self.rows(), 0)
        if self.centred:
            self.mean = packed_view(packed, self.rows(), 1)
        return 0

    cdef int plan(self, int arrays, Plan *p) except -1:
        cdef const Py_ssize_t *shape
        cdef const Py_ssize_t *strides[ARRAYS]
        cdef int ndim = cnp.PyArray_NDIM(self.x)
        self.layouts(arrays, &shape, strides)
        if self.trailing:
            plan_rows(p, ndim, shape, strides, arrays, self.normalized, cnp.PyArray_ITEMSIZE(self.x))
        else:
            plan_row_axes(p, ndim, shape, strides, arrays, self.axes, self.normalized,
                          self.units_per_set if self.param_sets > 1 else 0, cnp.PyArray_ITEMSIZE(self.x))
        return 0

    cdef cnp.ndarray copy_in_order(self, cnp.ndarray a):
        if self.trailing:
            return np.ascontiguousarray(a)
        order = self.all_axes()
        return np.ascontiguousarray(a.transpose(order)).transpose(np.argsort(order))

    cdef list all_axes(self):
        return [self.axes[i] for i in range(cnp.PyArray_NDIM(self.x))]

    cdef int fill_job(self, const Plan *p, bint fuse_add, Job *a) except -1:
        """Describe the call to a kernel. With `fuse_add`, dy and addend are the terms of the sum."""
        cdef int i
        self.begin_job(self.eps, a)
        for i in range(5):
            a.shape[i] = p.shape[i]
        set_tensor(&a.x, self.x, p, 0)
        set_tensor(&a.y, self.y, p, 1)
        if fuse_add:
            a.elements.fuse_add = True
            set_tensor(&a.elements.addend[0], self.dy, p, 2)
            set_tensor(&a.elements.addend[1], self.addend, p, 3)
        else:
            if self.dy is not None:
                set_tensor(&a.dy, self.dy, p, 2)
            if self.addend is not None:
                a.elements.add_to_grad = True
                set_tensor(&a.elements.addend[0], self.addend, p, 3)
        a.centred = self.centred
        a.mean = float64_data(self.mean)
        a.rstd = float64_data(self.rstd)
        if self.weight is not None:
            a.elements.weight = cnp.PyArray_DATA(self.weight)
        if self.bias is not None:
            a.elements.bias = cnp.PyArray_DATA(self.bias)
        if self.slopes is not None:
            a.elements.slopes = cnp.PyArray_DATA(self.slopes)
        a.elements.param_sets = self.param_sets
        a.elements.units_per_set = self.units_per_set
        a.elements.unit_slopes = float64_data(self.unit_slopes)
        a.elements.unit_slope_grads = float64_data(self.unit_slope_grads)
        if p.family == COLUMNS:
            self.fill_statistics(a, not fuse_add and self.dy is not None)
        return 0

    cdef int fill_statistics(self, Job *a, bint backward) except -1:
        """The columns kernels need all statistics between sums and results; backward only mean and lo."""
        cdef Py_ssize_t rows = self.rows()
        a.channels.channels_per_group = 1
        if a.mean == NULL:
            a.mean = self.workspace(rows)
            memset(a.mean, 0, rows * sizeof(double))
        if not backward or self.dtype == FLOAT64:
            a.lo = self.workspace(rows)
            memset(a.lo, 0, rows * sizeof(double))
        if not backward:
            a.m2 = self.workspace(rows)
            if a.rstd == NULL:
                a.rstd = self.workspace(rows)
        return 0

    # ---- parameters ----

    cdef bint has_sets(self, cnp.ndarray values) noexcept:
        """Whether a parameter has the units' axes, and differs along any."""
        cdef int i, first = cnp.PyArray_NDIM(self.x) - self.normalized
        if values is None or first == 0 or cnp.PyArray_NDIM(values) != cnp.PyArray_NDIM(self.x):
            return False
        for i in range(first):
            if cnp.PyArray_DIM(values, self.axes[i]) != 1:
                return True
        return False

    cdef Py_ssize_t set_size(self, int i) noexcept:
        """Along axis i of the units: how many sets there are."""
        return cnp.PyArray_DIM(self.x, self.axes[i]) if self.varies[i] else 1

    cdef bint is_all_sets(self, cnp.ndarray values) noexcept:
        """Whether a parameter has the elements of every set, each once."""
        cdef int i
        if not self.has_sets(values):
            return False
        for i in range(cnp.PyArray_NDIM(self.x) - self.normalized):
            if cnp.PyArray_DIM(values, self.axes[i]) != self.set_size(i):
                return False
        return True

    cdef bint sets_in_order(self) noexcept:
        """Whether the sets of a C-contiguous parameter lie end to end, each with the elements of a row in order."""
        cdef int i, first = cnp.PyArray_NDIM(self.x) - self.normalized
        if not self.trailing:
            for i in range(first):
                if self.varies[i] and self.axes[i] > self.axes[first]:
                    return False
        return self.trailing or self.normalized == 1

    cdef int choose_sets(self, cnp.ndarray weight, cnp.ndarray bias) except -1:
        """How units share weight and bias: unit u takes set u // units_per_set % param_sets."""
        cdef int i, first = cnp.PyArray_NDIM(self.x) - self.normalized, begin = first, end = 0
        cdef bint of_weight = self.has_sets(weight), of_bias = self.has_sets(bias)
        if not of_weight and not of_bias:
            return 0
        self.by_set = True
        for i in range(first):
            self.varies[i] = (of_weight and cnp.PyArray_DIM(weight, self.axes[i]) != 1) or (
                of_bias and cnp.PyArray_DIM(bias, self.axes[i]) != 1)
            if self.varies[i]:
                begin = min(begin, i)
                end = i + 1
        for i in range(begin, end):
            if not self.varies[i] and cnp.PyArray_DIM(self.x, self.axes[i]) != 1:
                memset(self.varies, True, first)  # an axis in between is shared: a set for each unit
                end = first
        self.units_per_set = 1
        for i in range(first):
            self.param_sets *= self.set_size(i)
            if i >= end:
                self.units_per_set *= cnp.PyArray_DIM(self.x, self.axes[i])
        return 0

    cdef object as_row(self, object values, bint shared):
        """A parameter with the axes of the units, if not shared, then those of a row in the order of its elements."""
        cdef int first = cnp.PyArray_NDIM(self.x) - self.normalized, i
        if not shared:
            return values.transpose(self.all_axes())
        order = [i for _, i in sorted([(self.places[i], i) for i in range(self.normalized)])]
        if values.ndim == self.normalized:
            return values.transpose(order)
        return values.transpose(self.all_axes()).reshape([cnp.PyArray_DIM(self.x, self.axes[first + i])
                                                          for i in range(self.normalized)])

    cdef cnp.ndarray lay_out(self, cnp.ndarray values, str name):
        """A parameter as the kernels take it."""
        cdef int first = cnp.PyArray_NDIM(self.x) - self.normalized
        if values is None:
            return None
        if self.sets_in_order() and (not self.by_set or self.is_all_sets(values)):
            return row_parameter(values, name, self.dtype)
        laid = self.as_row(values, not self.has_sets(values))
        if self.by_set:
            sizes = tuple([self.set_size(i) for i in range(first)])
            laid = np.broadcast_to(laid, sizes + laid.shape[laid.ndim - self.normalized:])
        return row_parameter(laid, name, self.dtype)

    cdef int parameters(self, cnp.ndarray weight, cnp.ndarray bias, bint always, bint zero_centred) except -1:
        """Take weight and bias. A weight of ones stands in where only others are given, or `always`."""
        self.choose_sets(weight, bias)
        self.weight = self.lay_out(weight, "weight")
        self.bias = self.lay_out(bias, "bias")
        if zero_centred and self.weight is not None:
            self.weight = np.add(self.weight, 1, dtype=self.weight.dtype)
        if self.weight is None and (self.bias is not None or self.activation == ACT_SLOPES or always):
            self.weight = ones(checked_product(self.length, self.param_sets, "the weight"), self.dtype)
        return 0

    cdef Py_ssize_t runs(self) noexcept:
        """Of rows that share a set of parameters, each of which has gradients of its own."""
        return self.rows() // self.units_per_set if self.param_sets > 1 and self.units_per_set else 1

    cdef bint kernels_write(self, cnp.ndarray parameter) except -1:
        """Whether the kernels' gradient of a parameter is the one that the caller gets."""
        if not self.trailing:
            return False
        return not self.by_set or (self.is_all_sets(parameter) and self.runs() == self.param_sets)

    cdef cnp.ndarray totals(self, int which, tuple of_parameter, bint shared, object order):
        """A gradient in double, in the order of the parameter: the sums of all runs of rows that share its elements."""
        cdef int first = cnp.PyArray_NDIM(self.x) - self.normalized
        cdef Py_ssize_t runs = self.runs()
        if self.elements == 0:
            return np.zeros(of_parameter)
        row = [cnp.PyArray_DIM(self.x, self.axes[i]) for i in range(first, cnp.PyArray_NDIM(self.x))]
        sums = float64_array(self.grads, runs * 3 * self.length).reshape(runs, 3, self.length)[:, which]
        if shared or not self.by_set:
            sums = sums.sum(0).reshape(row)
            places = [self.places[i] for i in range(self.normalized)]
            if len(of_parameter) != self.normalized:  # of the input's rank
                places = np.argsort(order[first:])
            return np.ascontiguousarray(sums.transpose(places)).reshape(of_parameter)
        units = [cnp.PyArray_DIM(self.x, self.axes[i]) for i in range(first)]
        for i in range(first - 1, -1, -1):  # the axes after the last that differs share their set
            if product(units) != runs:
                units[i] = 1
        sums = sums.reshape(units + row)
        alike = tuple([i for i in range(first) if of_parameter[self.axes[i]] == 1])
        sums = sums.sum(alike, keepdims=True)
        return np.ascontiguousarray(sums.transpose(np.argsort(order))).reshape(of_parameter)

    cdef object parameter_gradient(self, int which, cnp.ndarray written, cnp.ndarray parameter, tuple shape):
        """The gradient of weight (0) or bias (1), in its shape and dtype; without one, in normalized_shape."""
        cdef cnp.ndarray sums
        if written is not None:
            return written
        of_parameter = shape if parameter is None else shape_of(parameter)
        sums = self.totals(which, of_parameter, not self.has_sets(parameter), self.all_axes())
        return gradient_from_sums(float64_data(sums), cnp.PyArray_SIZE(sums), parameter, self.dtype,
                                  cnp.PyArray_NDIM(sums), cnp.PyArray_DIMS(sums))

    # ---- the call ----

    cdef cnp.ndarray forward(self, cnp.ndarray out, cnp.ndarray one=None, cnp.ndarray other=None):
        """Compute the norm of x; with `one` and `other`, of their sum, which is written to x."""
        cdef Plan p
        cdef Job a
        self.resolve_output(&p, out, one, other)
        if self.elements == 0:
            self.empty_statistics()
            return self.result
        if self.mask is not None:
            p.family = UNITS
            self.fill_job(&p, one is not None, &a)
            self.run_masked(&a, False)
            return self.copy_out()
        self.fill_job(&p, one is not None, &a)
        launch(COLUMNS_FORWARD if p.family == COLUMNS else ROWS_FORWARD, &a.head, self.bytes, "statistics")
        return self.copy_out()

    cdef int empty_statistics(self) except -1:
        """The statistics of rows without elements, where any are wanted."""
        if self.mean is not None:
            self.mean[...] = 0
        if self.rstd is not None:
            self.rstd[...] = 1 / np.sqrt(self.eps) if self.eps > 0 else np.inf
        return 0

    cdef cnp.ndarray backward(self, cnp.ndarray grad_output, cnp.ndarray out, cnp.ndarray addend=None):
        """grad_input, to which `addend` is added. The sums of weight, bias and slope go to `grads`, but to
        grad_weight and grad_bias where these are arrays."""
        cdef Plan p
        cdef Job a
        cdef Py_ssize_t n = checked_product(self.length, self.runs(), "the gradients of all sets of parameters")
        self.grads = self.workspaces(n, 3)
        self.resolve_output(&p, out, grad_output, addend)
        if self.elements and self.mask is not None:
            p.family = UNITS
            self.fill_job(&p, False, &a)
            self.run_masked(&a, True)
        elif self.elements:
            self.fill_job(&p, False, &a)
            a.elements.grad_weight = self.grads
            a.elements.grad_bias = a.elements.grad_weight + self.length
            a.elements.grad_slope = a.elements.grad_bias + self.length
            if self.grad_weight is not None:
                a.elements.final_weight = cnp.PyArray_DATA(self.grad_weight)
            if self.grad_bias is not None:
                a.elements.final_bias = cnp.PyArray_DATA(self.grad_bias)
            launch(COLUMNS_BACKWARD if p.family == COLUMNS else ROWS_BACKWARD, &a.head, self.bytes, "sums")
        else:
            memset(self.grads, 0, 3 * n * sizeof(double))
            for a_gradient in (self.grad_weight, self.grad_bias):
                if a_gradient is not None:
                    a_gradient[...] = 0
        return self.copy_out()

    # ---- masks ----

    cdef int run_masked(self, Job *a, bint backward) except -1:
        """Run the job of the unmasked call in pieces: rows that count or do not, or elements of rows."""
        cdef Pieces pieces = <Pieces> Pieces.__new__(Pieces)
        cdef int first = cnp.PyArray_NDIM(self.x) - self.normalized, of_set = 0, i
        cdef list order = self.all_axes(), units = list(range(first)), row = list(range(first, len(order))), sizes
        cdef list views = [None if one is None else one.transpose(order)
                           for one in (self.x, self.y, self.dy, self.addend)]
        cdef cnp.ndarray where = self.mask.where.transpose(order)
        cdef Py_ssize_t runs = self.runs()
        cdef bint whole_rows
        for i in row:
            if same_along(where, i):
                where = where[(slice(None),) * i + (slice(0, 1),)]
        sizes = [cnp.PyArray_DIM(views[0], i) for i in units]
        if self.param_sets > 1:  # rows of a set lie along the axes from this one on
            of_set = first
            while product(sizes[of_set:]) != self.units_per_set:
                of_set -= 1
        whole_rows = all([cnp.PyArray_DIM(where, i) == 1 for i in row])
        if whole_rows and not all([one is None or is_one_run(one, row) for one in views]):
            self.copy_rows(backward)
            views = [None if one is None else one.transpose(order) for one in (self.x, self.y, self.dy, self.addend)]
        pieces.m.job = a[0]
        pieces.m.backward = backward
        pieces.m.reads_add = a.elements.fuse_add
        pieces.m.zero = backward or not self.mask.keeps
        pieces.m.zero_sum = not self.sum_keeps
        if whole_rows:
            pieces.set_arrays(views, where, ITEM_UNITS, units[:of_set], [], [], [], units[of_set:])
        else:
            # rows along one axis may share a mask: what a piece is shall not depend on strides
            shared = [i for i in units[of_set:] if sizes[i] > 1][-1:]
            shared = [i for i in shared if cnp.PyArray_DIM(where, i) == 1]
            pieces.set_arrays(views, where, ITEM_ELEMENTS, [i for i in units if i not in shared], shared, [], [], row)
        if self.param_sets > 1:
            pieces.m.sets = self.param_sets
            pieces.m.pieces_per_set = pieces.pieces(0) // runs
        if not backward:
            pieces.run(ROWS_FORWARD, self.bytes)
            return 0
        self.choose_chunks(pieces, runs)
        pieces.run(ROWS_BACKWARD, self.bytes)
        if self.param_sets <= 1:
            add_chunks(pieces.m.sums, pieces.m.chunks, 3 * self.length, self.grads)
        return 0

    cdef int copy_rows(self, bint backward) except -1:
        """Copy arrays so that the elements of a row lie side by side; the result goes to one such."""
        if _runtime.observing:
            note("the arrays are copied: rows that count are taken as they are, if their elements lie side by side")
        sums = self.addend is not None and not backward
        self.x = empty_like(self.copy_in_order(self.x)) if sums else self.copy_in_order(self.x)
        self.y = empty_like(self.x)
        self.dy = self.copy_in_order(self.dy) if self.dy is not None else None
        self.addend = self.copy_in_order(self.addend) if self.addend is not None else None
        return 0

    cdef int choose_chunks(self, Pieces pieces, Py_ssize_t runs) except -1:
        """Where pieces add up the gradients of parameters: of each set, or, if all rows share theirs, in chunks whose
        number follows from the shape."""
        cdef Py_ssize_t n = pieces.pieces(0), chunks = runs
        if self.param_sets <= 1:
            chunks = max(1, min(<Py_ssize_t> MASKED_CHUNKS, n // MASKED_CHUNK_PIECES))
            while chunks > 1 and 3 * chunks * self.length > self.elements:
                chunks //= 2
        pieces.m.pieces_per_chunk = (n + chunks - 1) // chunks
        pieces.m.chunks = (n + pieces.m.pieces_per_chunk - 1) // pieces.m.pieces_per_chunk
        pieces.m.sums = self.grads if self.param_sets > 1 else self.workspaces(chunks, 3 * self.length)
        memset(pieces.m.sums, 0, 3 * self.length * chunks * sizeof(double))
        return 0


cdef bint is_one_run(cnp.ndarray a, list axes) except -1:
    """Whether the elements along some axes lie side by side."""
    cdef Py_ssize_t expected = cnp.PyArray_ITEMSIZE(a)
    for i in reversed(axes):
        if cnp.PyArray_DIM(a, i) > 1 and cnp.PyArray_STRIDE(a, i) != expected:
            return False
        expected *= cnp.PyArray_DIM(a, i)
    return True


cdef void add_chunks(const double *sums, Py_ssize_t chunks, Py_ssize_t n, double *total) noexcept:
    """Add up sums of chunks in their order."""
    cdef Py_ssize_t chunk, i
    memcpy(total, sums, n * sizeof(double))
    for chunk in range(1, chunks):
        for i in range(n):
            total[i] += sums[chunk * n + i]


cdef object product(object sizes):
    n = 1
    for size in sizes:
        n *= size
    return n


cdef Py_ssize_t packed_size(Py_ssize_t rows, bint centred) except -1:
    """Bytes of packed statistics."""
    return checked_product(rows, sizeof(double) * (2 if centred else 1), "the statistics of the rows")


cdef bytes packed_statistics(Py_ssize_t rows, bint centred):
    """Bytes for a kernel to write packed statistics to."""
    return PyBytes_FromStringAndSize(NULL, packed_size(rows, centred))


cdef cnp.ndarray packed_view(bytes packed, Py_ssize_t rows, int which):
    """Packed statistics `which` (0 rstd, 1 mean) as an array."""
    cdef cnp.npy_intp n = rows
    cdef cnp.ndarray a = <cnp.ndarray> cnp.PyArray_SimpleNewFromData(
        1, &n, cnp.NPY_FLOAT64, PyBytes_AS_STRING(packed) + which * rows * sizeof(double))
    cnp.set_array_base(a, packed)
    return a

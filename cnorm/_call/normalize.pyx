"""normalize: division by a norm over any axes, from arguments to kernels."""

import numpy as np

cimport numpy as cnp
from libc.math cimport INFINITY
from libc.string cimport memset

from cnorm cimport _runtime
from cnorm._call.arrays cimport (as_array, as_doubles, as_float, as_floats, as_out, checked_out, checked_product,
                                 float64_data, new_float64, shape_of)
from cnorm._call.channels cimport ChannelsCall
from cnorm._call.checks cimport as_axes, as_gradient, check_eps, resolve_axes
from cnorm._call.observe cimport note
from cnorm._call.output cimport ARENA_DOUBLES
from cnorm._plan cimport ARRAYS, COPY, MAX_DIMS, Plan, has_plan, plan_axes
from cnorm._pool cimport empty_like
from cnorm.kernels.job cimport NORM_1, NORM_2, NORM_MAX, Job, Norm

cnp.import_array()


cdef class NormalizeCall(ChannelsCall):
    """One call: what shares a norm is a unit, or a column, without parameters."""
    cdef Norm norm
    cdef double rstd_max
    cdef unsigned char reduced[MAX_DIMS]   # per axis: whether norms are taken over it
    cdef int kept[MAX_DIMS]                # after a plan: the axes that count units, in their order
    cdef int n_kept

    cdef int set_reduced(self, cnp.ndarray x, Norm norm, tuple dim, double eps) except -1:
        """Take the input and what it is divided by: a norm over the axes `dim`, but at least eps."""
        cdef int found[MAX_DIMS]
        cdef int axis, i, count
        self.norm = norm
        check_eps("normalize", eps, False)
        self.eps = eps
        self.rstd_max = 1 / eps if eps > 0 else INFINITY
        count = resolve_axes(dim, cnp.PyArray_NDIM(x), found, "dim")
        if count == 0:
            raise ValueError("dim must name at least one axis, but got ()")
        memset(self.reduced, 0, MAX_DIMS)
        for i in range(count):
            self.reduced[found[i]] = True
        self.set_input(x)
        self.samples = self.channels = 1
        for axis in range(cnp.PyArray_NDIM(x)):
            if not self.reduced[axis]:
                self.channels = checked_product(self.channels, cnp.PyArray_DIM(x, axis), "the norms of this call")
        return 0

    cdef int plan(self, int arrays, Plan *p) except -1:
        cdef const Py_ssize_t *shape
        cdef const Py_ssize_t *strides[ARRAYS]
        self.layouts(arrays, &shape, strides)
        self.n_kept = plan_axes(p, cnp.PyArray_NDIM(self.x), shape, strides, arrays, self.reduced,
                                cnp.PyArray_ITEMSIZE(self.x), self.kept)
        return 0

    cdef int fill_job(self, const Plan *p, Job *a) except -1:
        ChannelsCall.fill_job(self, p, a)
        a.centred = False
        a.finish.norm = self.norm
        a.finish.rstd_max = self.rstd_max
        return 0

    cdef bint is_planned(self) noexcept:
        """Whether kernels take the input, or a copy of it in C order."""
        return has_plan(cnp.PyArray_NDIM(self.x), <const Py_ssize_t *> cnp.PyArray_DIMS(self.x), self.reduced)

    cdef tuple norms_shape(self):
        """The shape of the norms: the input's, with ones for the axes they are taken over."""
        return tuple([1 if self.reduced[i] else cnp.PyArray_DIM(self.x, i) for i in range(cnp.PyArray_NDIM(self.x))])

    cdef list unit_order(self):
        """The axes in the order in which units are counted, all others behind them."""
        cdef list order = [self.kept[i] for i in range(self.n_kept)]
        return order + [i for i in range(cnp.PyArray_NDIM(self.x)) if i not in order]

    cdef cnp.ndarray from_units(self, cnp.ndarray values):
        """A value per unit as an array of norms_shape."""
        cdef list order = self.unit_order()
        shape = self.norms_shape()
        return values.reshape([shape[i] for i in order]).transpose(np.argsort(order))

    cdef cnp.ndarray to_units(self, cnp.ndarray values):
        """An array of norms_shape as a value per unit."""
        return np.ascontiguousarray(values.reshape(self.norms_shape()).transpose(self.unit_order())).ravel()

    cdef cnp.ndarray backward_of_norms(self, cnp.ndarray grad_output, cnp.ndarray norms, cnp.ndarray out):
        """grad_input from norms of norms_shape."""
        cdef Plan p
        self.plan(1, &p)
        if p.family == COPY:  # now, since a copy may count units in another order
            self.x = np.ascontiguousarray(self.x)
            self.plan(1, &p)
            if _runtime.observing:
                note("the input is copied: no kernel reads its strides")
        norms = self.to_units(norms)
        self.rstd_array = np.maximum(norms, self.eps)
        with np.errstate(divide="ignore"):
            np.divide(1, self.rstd_array, self.rstd_array)
        # a norm of at least eps has a gradient: its rstd stays below that of eps
        np.copyto(self.rstd_array, np.nextafter(self.rstd_max, 0),
                  where=(self.rstd_array == self.rstd_max) & (norms >= self.eps))
        self.mean_array = norms if self.norm == NORM_MAX else np.zeros(self.channels)
        self.rstd = float64_data(self.rstd_array)
        self.mean = float64_data(self.mean_array)
        return self.backward(grad_output, out)


cdef Norm norm_of(object p) except *:
    """The argument `p` as a Norm."""
    cdef double power = as_float(p, "p")
    if power == 2:
        return NORM_2
    if power == 1:
        return NORM_1
    if power == INFINITY:
        return NORM_MAX
    raise ValueError(f"p must be 1, 2 or infinity, but got {p}")


cdef object normalize_forward(object input, object p, object dim, object eps, object out, object return_stats):
    """normalize."""
    cdef NormalizeCall call = <NormalizeCall> NormalizeCall.__new__(NormalizeCall)
    cdef cnp.ndarray x = as_array(input, "input"), into = as_out(out, "out"), sums = None
    cdef bint with_norms = return_stats
    cdef double arena[ARENA_DOUBLES]
    cdef double epsilon = as_float(eps, "eps")
    cdef Norm kind = norm_of(p)
    cdef tuple axes = as_axes(dim, "dim", False)
    x = as_floats(x, "input")
    call.set_reduced(x, kind, axes, epsilon)
    if not call.is_planned():
        return normalize_rearranged(call, into, with_norms)
    call.use_arena(arena)
    if with_norms:
        sums = new_float64(call.channels)
        call.m2 = float64_data(sums)
    y = call.forward(into)
    if not with_norms:
        return y
    if call.norm == NORM_2:
        np.sqrt(sums, sums)
    return y, call.from_units(sums)


cdef object normalize_backward_of(object grad_output, object input, object norm, object p, object dim, object eps,
                                  object out):
    """normalize_backward."""
    cdef NormalizeCall call = <NormalizeCall> NormalizeCall.__new__(NormalizeCall)
    cdef cnp.ndarray x = as_array(input, "input"), dy = as_array(grad_output, "grad_output"), into = as_out(out, "out")
    cdef cnp.ndarray norms = as_array(norm, "norm")
    cdef double arena[ARENA_DOUBLES]
    cdef double epsilon = as_float(eps, "eps")
    cdef Norm kind = norm_of(p)
    cdef tuple axes = as_axes(dim, "dim", False)
    x = as_floats(x, "input")
    dy = as_gradient(dy, x)
    if norms is None:
        raise TypeError("norm must be an array, as return_stats of normalize gives it, but got None")
    call.set_reduced(x, kind, axes, epsilon)
    if shape_of(norms) != call.norms_shape():
        raise ValueError(f"norm must have shape {call.norms_shape()}, as return_stats of normalize gives it, but got "
                         f"{shape_of(norms)}")
    norms = as_doubles(norms, "norm")
    if not call.is_planned():
        return normalize_backward_rearranged(call, dy, norms, into)
    call.use_arena(arena)
    return call.backward_of_norms(dy, norms, into)


# ---- axes that alternate too often for a plan: those that norms are taken over go last, in a copy ----


cdef NormalizeCall rearranged(NormalizeCall call, list order):
    """A call for a copy of the input with its axes in this order, kept ones first."""
    cdef NormalizeCall moved = <NormalizeCall> NormalizeCall.__new__(NormalizeCall)
    cdef int i
    if _runtime.observing:
        note("the input is copied with its axes in another order: those that norms are taken over alternate too often "
             "with the others")
    moved.set_input(np.ascontiguousarray((<object> call.x).transpose(order)))
    moved.norm, moved.eps, moved.rstd_max, moved.channels, moved.samples = (
        call.norm, call.eps, call.rstd_max, call.channels, 1)
    for i in range(len(order)):
        moved.reduced[i] = call.reduced[order[i]]
    return moved


cdef list reduced_last(NormalizeCall call):
    axes = range(cnp.PyArray_NDIM(call.x))
    return [i for i in axes if not call.reduced[i]] + [i for i in axes if call.reduced[i]]


cdef object normalize_rearranged(NormalizeCall call, cnp.ndarray out, bint with_norms):
    cdef list order = reduced_last(call)
    cdef cnp.ndarray result = empty_like(call.x) if out is None else checked_out(out, call.x), sums
    cdef NormalizeCall moved = rearranged(call, order)
    sums = new_float64(call.channels)
    moved.m2 = float64_data(sums)
    result[...] = moved.forward(None).transpose(np.argsort(order))
    if not with_norms:
        return result
    if call.norm == NORM_2:
        np.sqrt(sums, sums)
    return result, sums.reshape(call.norms_shape())


cdef object normalize_backward_rearranged(NormalizeCall call, cnp.ndarray grad_output, cnp.ndarray norms,
                                          cnp.ndarray out):
    cdef list order = reduced_last(call)
    cdef cnp.ndarray result = empty_like(call.x) if out is None else checked_out(out, call.x)
    cdef NormalizeCall moved = rearranged(call, order)
    dy = np.ascontiguousarray((<object> grad_output).transpose(order))
    norms = norms.reshape(call.norms_shape()).transpose(order)
    result[...] = moved.backward_of_norms(dy, norms, None).transpose(np.argsort(order))
    return result

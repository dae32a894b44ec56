cdef enum Family:
    COPY = 0       # no kernel takes these strides: copy to C order, then plan again
    UNITS = 1      # rows or segments
    COLUMNS = 2

cdef extern from *:
    """
    #ifndef CNORM_MAX_DIMS
    #define CNORM_MAX_DIMS 64
    #endif
    """
    enum:
        MAX_DIMS "CNORM_MAX_DIMS"   # axes of an array; _call/output.pyx asserts that NumPy allows no more

cdef enum:
    ARRAYS = 4     # input, result, grad_output, what is added

cdef struct Plan:
    Family family
    Py_ssize_t shape[5]
    Py_ssize_t stride[4][4]   # per array, in bytes; the last axis is contiguous

cdef list axes_together(list axes)
cdef void plan_rows(Plan *p, int ndim, const Py_ssize_t *shape, const Py_ssize_t **strides, int arrays,
                    int normalized, Py_ssize_t itemsize) noexcept nogil
cdef void plan_row_axes(Plan *p, int ndim, const Py_ssize_t *shape, const Py_ssize_t **strides, int arrays,
                        const int *axes, int normalized, Py_ssize_t units_per_set, Py_ssize_t itemsize) noexcept nogil
cdef void plan_channels(Plan *p, int ndim, const Py_ssize_t *shape, const Py_ssize_t **strides, int arrays,
                        int batch_axis, int channel_axis, Py_ssize_t groups,
                        Py_ssize_t itemsize) noexcept nogil
cdef int plan_axes(Plan *p, int ndim, const Py_ssize_t *shape, const Py_ssize_t **strides, int arrays,
                   const unsigned char *reduced, Py_ssize_t itemsize, int *kept) noexcept nogil
cdef bint has_plan(int ndim, const Py_ssize_t *shape, const unsigned char *reduced) noexcept nogil

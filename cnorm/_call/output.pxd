# One call of a norm: its arrays, where the result goes, workspace. `rows`, `channels` and `window` build on it.
#
# What most calls pass by, such as a mask that is not given, is tested here, inline: a call of another module costs 10
# instructions, and a small norm has some twenty such tests.
cimport cython
cimport numpy as cnp

from cnorm._call.arrays cimport checked_product, dtype_code, shape_and_strides, size_of
from cnorm._call.masks cimport Mask
from cnorm._plan cimport Plan
from cnorm.kernels.job cimport Job, Tensor

cdef enum:
    ARENA_DOUBLES = 4096   # workspace that a function has on its stack for its call


# A call, which nothing refers to, is in no cycle: the garbage collector need not know of it.
@cython.no_gc
cdef class Call:
    cdef cnp.ndarray x, y, dy, addend
    cdef cnp.ndarray result        # what the caller gets: y, or what y is copied to at the end
    cdef cnp.ndarray slope_array   # the negative_slope that was given, where it is no number
    cdef bint slope_gradient       # whether its gradient is wanted
    cdef cnp.ndarray slopes        # where there is a slope per channel
    cdef int dtype, activation
    cdef Py_ssize_t elements, bytes
    cdef double slope
    cdef double low, high          # with ACT_CLIP: the bounds, NaN where a side is open
    cdef double *arena             # what is left of the workspace that the caller has on its stack
    cdef Py_ssize_t arena_left     # doubles
    cdef Mask mask                 # of elements that count, where not all do; or None
    cdef object heap_blocks        # workspace that did not fit: (array, those before)

    cdef double *heap_workspace(self, Py_ssize_t n) except NULL
    cdef int protect_inputs(self, cnp.ndarray written) except -1
    cdef int plan(self, int arrays, Plan *p) except -1
    cdef int resolve_output(self, Plan *p, cnp.ndarray out, cnp.ndarray grad_output, cnp.ndarray addend=*) except -1
    cdef int copy_for_plan(self, int arrays, Plan *p) except -1
    cdef int note_copies(self, cnp.ndarray out, cnp.ndarray grad_output) except -1
    cdef cnp.ndarray copy_in_order(self, cnp.ndarray a)
    cdef int copy_for_plan(self, int arrays, Plan *p) except -1
    cdef int check_mask(self, Mask given, cnp.ndarray x, cnp.ndarray out) except -1
    cdef cnp.ndarray copied_out(self)
    cdef int begin_job(self, double eps, Job *a) except -1
    cdef int convert_given_activation(self, object negative_slope, object clip) except -1
    cdef int convert_slope(self, object negative_slope) except -1
    cdef int check_slope_array(self, Py_ssize_t channels) except -1

    @cython.final
    cdef inline void set_input(self, cnp.ndarray x) noexcept:
        self.x = x
        self.dtype = dtype_code(x)
        self.elements = size_of(x)
        self.bytes = self.elements * cnp.PyArray_ITEMSIZE(x)

    @cython.final
    cdef inline void layouts(self, int arrays, const Py_ssize_t **shape, const Py_ssize_t **strides) noexcept:
        """The shape, and the strides of the first `arrays` of x, y, dy and addend."""
        shape_and_strides(self.x, shape, &strides[0])
        if arrays > 1:
            shape_and_strides(self.y, shape, &strides[1])
        if arrays > 2:
            shape_and_strides(self.dy, shape, &strides[2])
        if arrays > 3:
            shape_and_strides(self.addend, shape, &strides[3])

    @cython.final
    cdef inline void use_arena(self, double *arena) noexcept:
        """Take workspace from ARENA_DOUBLES doubles, which outlive the call, first: short vectors then need
        no allocation."""
        self.arena = arena
        self.arena_left = ARENA_DOUBLES

    @cython.final
    cdef inline double *workspace(self, Py_ssize_t n) except NULL:
        """Workspace of n doubles while the call lasts."""
        if n >= self.arena_left:
            return self.heap_workspace(n)
        self.arena += n
        self.arena_left -= n
        return self.arena - n

    @cython.final
    cdef inline double *workspaces(self, Py_ssize_t n, Py_ssize_t times) except NULL:
        """Workspace of several times n doubles."""
        return self.workspace(checked_product(n, times, "the workspace of this call"))

    @cython.final
    cdef inline int convert_activation(self, object negative_slope, object clip) except -1:
        """Convert the arguments, of which one may be an activation."""
        return 0 if negative_slope is None and clip is None else self.convert_given_activation(negative_slope, clip)

    @cython.final
    cdef inline int check_slope(self, Py_ssize_t channels) except -1:
        """Check the slopes that `convert_slope` took."""
        return 0 if self.slope_array is None else self.check_slope_array(channels)

    @cython.final
    cdef inline int take_mask(self, Mask given, cnp.ndarray x, cnp.ndarray out) except -1:
        """Check the argument `where`, of an input that is checked. A mask of all True is none."""
        return 0 if given is None else self.check_mask(given, x, out)

    @cython.final
    cdef inline cnp.ndarray copy_out(self):
        """The result, once it has what a kernel wrote to memory of its own."""
        return self.result if self.y is self.result else self.copied_out()


@cython.no_gc
cdef class ChannelAxisCall(Call):
    cdef int batch_axis            # -1 where the input is one sample
    cdef int channel_axis
    cdef Py_ssize_t groups, channels, samples

    cdef int set_axes(self, cnp.ndarray x, int batch_axis, int channel_axis, Py_ssize_t groups) except -1


cdef cnp.ndarray gradient_buffer(cnp.ndarray parameter, int dtype, int ndim, cnp.npy_intp *shape)
cdef object gradient_from_sums(const double *sums, Py_ssize_t n, cnp.ndarray parameter, int dtype, int ndim,
                               cnp.npy_intp *shape)
cdef object slope_gradient(cnp.ndarray per_channel, cnp.ndarray slope)


cdef inline void set_tensor(Tensor *v, cnp.ndarray a, const Plan *p, int which) noexcept:
    """Fill in address and strides of array `which` of a plan."""
    cdef int i
    v.data = cnp.PyArray_BYTES(a)
    for i in range(4):
        v.strides[i] = p.stride[which][i]

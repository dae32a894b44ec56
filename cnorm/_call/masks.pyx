"""Masks: what `where` may be, and the pieces that a masked call consists of (kernels/masked.pyx).

A mask is looked at once, as small as it is: before it broadcasts, and with size 1 along axes where it was broadcast
before. A mask of all True is no mask. What is selected along the axes of a unit are its items; along the other axes
lie pieces, each with a mask of its own.
"""

import numpy as np

cimport numpy as cnp
from cython.parallel cimport prange
from libc.string cimport memchr, memset

from cnorm._call.arrays cimport as_array, float64_data, hints, shape_of
from cnorm._call.launch cimport launch
from cnorm._plan cimport ARRAYS, axes_together
from cnorm._runtime cimport PolicyCall, begin_team, end_team, policy_tag, threads_for
from cnorm.kernels.job cimport FLOAT64, ITEM_ELEMENTS, ITEM_UNITS, MASKED, Items, Kernel, MaskedAxis, MaskedJob
from cnorm.kernels.tuning cimport MASKED_PIECE_BYTES

cnp.import_array()


cdef extern from *:
    """
    #include <stddef.h>
    #include <stdint.h>
    #include <string.h>
    /* How many of n bytes are not 0; whether one is neither 0 nor 1. Eight at a time: 31 words add up without a carry. */
    static double cnorm_count_true(const char *mask, ptrdiff_t n, int *others) {
        const uint64_t ones = 0x0101010101010101u;
        ptrdiff_t i = 0, count = 0;
        while (i + 8 <= n) {
            const ptrdiff_t stop = n - i >= 8 * 31 ? i + 8 * 31 : i + (n - i) / 8 * 8;
            uint64_t sum = 0, word;
            for (; i < stop; i += 8) {
                memcpy(&word, mask + i, 8);
                if (word & ~ones) { /* a bool of another byte than 1 */
                    *others = 1;
                    word |= word >> 4;
                    word |= word >> 2;
                    word |= word >> 1;
                    word &= ones;
                }
                sum += word;
            }
            for (int k = 0; k < 8; ++k) count += (sum >> (8 * k)) & 0xff;
        }
        for (; i < n; ++i) {
            count += mask[i] != 0;
            *others |= mask[i] & ~1;
        }
        return (double)count;
    }
    /* The counts of the rows of n bytes; whether one differs from the first (1), and whether a byte is neither 0 nor 1
     * (2). */
    static int cnorm_scan_rows(const char *mask, ptrdiff_t rows, ptrdiff_t n, double *counts) {
        int differ = 0, others = 0;
        for (ptrdiff_t row = 0; row < rows; ++row) {
            const int other = row == 0 || memcmp(mask, mask + row * n, n);
            counts[row] = other ? cnorm_count_true(mask + row * n, n, &others) : counts[0];
            differ |= row && other;
        }
        return differ | (others ? 2 : 0);
    }
    """
    int cnorm_scan_rows(const char *mask, Py_ssize_t rows, Py_ssize_t n, double *counts) nogil


cdef int scan_samples(const char *mask, Py_ssize_t samples, Py_ssize_t channels, Py_ssize_t n, double *counts,
                       int threads) noexcept nogil:
    """Count what a mask selects of each channel of each sample. Whether channels of a sample differ (1), and whether a
    byte is neither 0 nor 1 (2)."""
    cdef Py_ssize_t i, differ = 0, others = 0
    cdef int found
    if threads == 1:
        for i in range(samples):
            found = cnorm_scan_rows(mask + i * channels * n, channels, n, counts + i * channels)
            differ += found & 1
            others += found & 2
    else:
        for i in prange(samples, num_threads=threads, schedule="static"):
            found = cnorm_scan_rows(mask + i * channels * n, channels, n, counts + i * channels)
            differ += found & 1
            others += found & 2
    return (1 if differ else 0) | (2 if others else 0)


# ---- the argument ----


cdef int check_bool(cnp.ndarray where) except -1:
    if where is not None and cnp.PyArray_TYPE(where) != cnp.NPY_BOOL:
        raise TypeError(hints().mask_dtype(where.dtype))
    return 0


cdef cnp.ndarray as_mask(cnp.ndarray where, cnp.ndarray x):
    """`where` as a mask of the input's shape, or None."""
    if where is None:
        return None
    check_bool(where)
    try:
        return np.broadcast_to(where, shape_of(x))
    except ValueError:
        raise ValueError(hints().mask_shape(shape_of(where), shape_of(x))) from None


cdef tuple without_mask(object input, object where):
    """The data of a masked array, and `where` and not its mask; of anything else, what was given."""
    cdef cnp.ndarray given
    if type(input) is not np.ndarray and isinstance(input, np.ma.MaskedArray):
        mask = np.ma.getmask(input)
        given = as_array(where, "where")
        check_bool(given)
        if mask is not np.ma.nomask:
            where = ~mask if given is None else ~mask & given
        input = np.ma.getdata(input)
    return input, where


cdef Mask mask_of_call(object input, object where):
    """`mask_argument` where the input is no plain array, or there is a `where`."""
    cdef Mask mask
    cdef bint masked = not cnp.PyArray_CheckExact(input) and isinstance(input, np.ma.MaskedArray)
    if where is None and not masked:
        return None
    mask = <Mask> Mask.__new__(Mask)
    mask.given = as_array(where, "where")
    mask.data = input
    if masked:
        mask.of_input = np.ma.getmask(input)
        mask.data = np.ma.getdata(input)
    return mask


cdef class Mask:
    """The mask of a call."""

    cdef int check(self, cnp.ndarray x, bint keeps) except -1:
        """Take the mask, of an input that is checked."""
        cdef cnp.ndarray where, whole
        self.keeps = keeps
        where = self.given
        if where is not None:
            where = as_mask(where, x)
        if self.of_input is not None and self.of_input is not np.ma.nomask:
            whole = np.logical_not(self.of_input)
            where = whole if where is None else whole & where
        if where is None:
            return 0
        where = where[tuple([slice(None) if cnp.PyArray_STRIDE(where, i) else slice(0, 1)
                             for i in range(cnp.PyArray_NDIM(where))])]
        if cnp.PyArray_IS_C_CONTIGUOUS(where):  # most masks have a False among the first elements
            if memchr(cnp.PyArray_BYTES(where), 0, cnp.PyArray_SIZE(where)) != NULL:
                self.where = where
        elif not np.logical_and.reduce(where, None):
            self.where = where
        return 0

    cdef int scan(self, int batch_axis, int channel_axis) except -1:
        """Look, once, at a mask of the input's own size. One that is the same for all channels is from now on that of
        one channel."""
        cdef cnp.ndarray where = self.where, counts
        cdef Py_ssize_t samples, channels, n, size
        cdef PolicyCall call
        cdef int threads, found
        cdef const char *mask
        cdef double *to
        cdef Py_ssize_t shape[5]
        if self.scanned:
            return 0
        self.scanned = True
        channels = cnp.PyArray_DIM(where, channel_axis)
        size = cnp.PyArray_SIZE(where)
        if channels <= 1 or size == 0 or channel_axis != batch_axis + 1 or not cnp.PyArray_IS_C_CONTIGUOUS(where):
            return 0
        samples = cnp.PyArray_DIM(where, 0) if batch_axis == 0 else 1
        n = size // (samples * channels)
        counts = np.empty((samples, channels))
        to = float64_data(counts)
        mask = cnp.PyArray_BYTES(where)
        threads = threads_for(size)
        if threads == 1:
            found = scan_samples(mask, samples, channels, n, to, 1)
        else:
            shape = [samples, channels, n, 0, 0]
            with nogil:
                threads = begin_team(&call, policy_tag(MASKED, 255, shape), size, threads)
                found = scan_samples(mask, samples, channels, n, to, threads)
                end_team(&call)
        self.plain_bytes = not found & 2
        if found & 1:
            self.counts = counts
        else:
            self.where = where[(slice(None),) * channel_axis + (slice(0, 1),)]
        return 0

    cdef object gradient(self, object grad_output, str name="grad_output"):
        """A gradient of the result; a masked one must have the mask of the input."""
        if self.of_input is None or not isinstance(grad_output, np.ma.MaskedArray):
            return grad_output
        if np.shape(grad_output) == np.shape(self.data) and not np.array_equal(
                np.ma.getmaskarray(grad_output), np.broadcast_to(self.of_input, np.shape(self.data))):
            raise ValueError(f"{name} must have the input's mask, but its mask is another one")
        return np.ma.getdata(grad_output)

    cdef object wrapped(self, object result):
        """An array of the input's shape, as a masked array where the input is one."""
        if self.of_input is None:
            return result
        mask = self.of_input if self.of_input is np.ma.nomask else np.array(self.of_input)
        return np.ma.MaskedArray(result, mask)

    cdef int copy_selected(self, cnp.ndarray to, cnp.ndarray values) except -1:
        """Copy a result to `out`, where the mask is True, or where the rest is 0 everywhere."""
        if self.keeps:
            np.copyto(to, values, where=self.where)
        else:
            cnp.PyArray_CopyInto(to, values)
        return 0


def mask_of(input, where):
    """(array, mask) of an input, which may be a masked array: the mask as small as it was given, None where it selects
    all."""
    cdef Mask given = mask_argument(input, where)
    cdef cnp.ndarray x
    if given is None:
        return input, None
    x = as_array(given.data, "input")
    given.check(x, False)
    return x, given.where


def masked_as(input, result):
    """A result of the input's shape, as a masked array where the input is one."""
    cdef Mask given = mask_argument(input, None)
    return result if given is None else given.wrapped(result)


def plain_gradient(input, grad_output):
    """A gradient of such a result; a masked one must have the mask of the input."""
    cdef Mask given = mask_argument(input, None)
    return grad_output if given is None else given.gradient(grad_output)


cdef bint same_along(cnp.ndarray where, int axis) except -1:
    """Whether a mask is one for all along an axis."""
    cdef cnp.ndarray first
    if cnp.PyArray_DIM(where, axis) == 1:
        return True
    head = (slice(None),) * axis
    first = where[head + (slice(0, 1),)]
    if not np.array_equal(first, where[head + (slice(-1, None),)]):  # most masks that are not, differ here
        return False
    return bool(np.equal(where, first).all())


# ---- pieces ----


cdef int set_axis(MaskedAxis *axis, object of) except -1:
    cdef int k
    memset(axis, 0, sizeof(MaskedAxis))
    axis.size, strides = of
    for k in range(ARRAYS):
        axis.stride[k] = strides[k]
    axis.mask = strides[ARRAYS]
    return 0


cdef class Pieces:
    """The pieces of a masked call. Its job (MaskedJob.job) is that of the unmasked call, of which here the axes become
    those of pieces."""

    cdef int set_arrays(self, list views, cnp.ndarray where, Items items, list outer, list unit, list part,
                        list segment, list inner, bint plain_bytes=False) except -1:
        """Take x, y, dy or the first addend, the second addend (each may be None) and the mask. All have the same axes;
        the mask has size 1 along those of units and of segments.

        outer, unit, part, segment, inner: axes of pieces; of units that share a mask; of parts of a unit, and of those
        that share a mask; of items. Axes that are not named are within an item. plain_bytes: the mask is known to be of
        bytes 0 and 1."""
        cdef MaskedJob *m = &self.m
        cdef cnp.ndarray x = views[0], view
        cdef list order = outer + unit + part + segment + inner, axes
        cdef Py_ssize_t n, itemsize = cnp.PyArray_ITEMSIZE(x)
        cdef int i, k
        shape = [cnp.PyArray_DIM(where, i) for i in outer + unit + part + segment]
        within = [i for i in range(cnp.PyArray_NDIM(x)) if i not in order]
        where = where[tuple([slice(0, 1) if i in within else slice(None) for i in range(cnp.PyArray_NDIM(x))])]
        # a large mask is not copied: each piece takes its own
        m.gathers = (items == ITEM_ELEMENTS and not part and not within
                     and all([cnp.PyArray_DIM(where, i) == cnp.PyArray_DIM(x, i) for i in inner])
                     and any([cnp.PyArray_DIM(where, i) > 1 for i in outer]))
        where = where.transpose(order + within)
        where = np.broadcast_to(where, shape + [cnp.PyArray_DIM(x, i) for i in inner] + [1] * len(within))
        if m.gathers:
            self.mask = where.view(np.uint8)
        elif plain_bytes:
            self.mask = np.ascontiguousarray(where.view(np.uint8))
        else:
            self.mask = np.ascontiguousarray(np.not_equal(where.view(np.uint8), 0))
        m.mask = cnp.PyArray_BYTES(self.mask)
        m.item_bytes = itemsize
        for i in within:
            m.item_bytes *= cnp.PyArray_DIM(x, i)
        m.element_bytes = 8 if m.job.head.dtype == FLOAT64 else 4
        m.items = items
        for k in range(ARRAYS):
            view = views[k]
            m.array[k] = cnp.PyArray_BYTES(view) if view is not None else NULL
        axes = [(cnp.PyArray_DIM(x, i), [cnp.PyArray_STRIDE(view, i) if view is not None else 0 for view in views]
                 + [cnp.PyArray_STRIDE(self.mask, k) if cnp.PyArray_DIM(self.mask, k) > 1 else 0])
                for k, i in enumerate(order)]
        none = (1, [0] * (ARRAYS + 1))
        found = axes_together(axes[:len(outer)])
        axes = axes[len(outer):]
        m.outers = len(found)
        for i in range(m.outers):
            set_axis(&m.outer[i], found[i])
        for group, name in ((unit, "unit"), (part, "part"), (segment, "segment")):
            found = axes_together(axes[:len(group)])
            axes = axes[len(group):]
            of = found[0] if found else none
            if name == "unit":
                set_axis(&m.unit, of)
            elif name == "part":
                set_axis(&m.part, of)
            else:
                set_axis(&m.segment, of)
        found = axes_together(axes)
        if not found:
            found = [(1, [itemsize] * ARRAYS + [0])]
        m.inners = len(found)
        m.length = 1
        for i in range(m.inners):
            set_axis(&m.inner[i], found[i])
            m.length *= m.inner[i].size
        m.items_per_piece = m.length
        m.units_per_piece = 1
        m.stats_per_piece = 1
        if items == ITEM_UNITS:
            m.items_per_piece = min(m.length, max(1, MASKED_PIECE_BYTES // max(m.item_bytes, 1)))
        elif items == ITEM_ELEMENTS:
            n = m.segment.size * m.length * m.item_bytes
            least = MASKED_PIECE_BYTES // 8 if m.part.size > 1 else 0  # of a part, where it is a job: so that it pays
            m.units_per_piece = min(m.unit.size, max(1, MASKED_PIECE_BYTES // max(m.part.size * n, 1),
                                                     least // max(n, 1)))
        m.job.shape[0] = 1
        m.job.shape[1] = 1
        m.job.shape[2] = m.segment.size
        m.job.shape[3] = 1
        m.job.shape[4] = 1
        for i in within:
            m.job.shape[4] *= cnp.PyArray_DIM(x, i)
        memset(m.job.x.strides, 0, sizeof(m.job.x.strides))
        memset(m.job.y.strides, 0, sizeof(m.job.y.strides))
        memset(m.job.dy.strides, 0, sizeof(m.job.dy.strides))
        memset(m.job.elements.addend, 0, sizeof(m.job.elements.addend))
        return 0

    cdef Py_ssize_t pieces(self, int first_outer) noexcept:
        """How many pieces lie within the axes of pieces from one on."""
        cdef MaskedJob *m = &self.m
        cdef Py_ssize_t n = ((m.unit.size + m.units_per_piece - 1) // m.units_per_piece
                             * ((m.length + m.items_per_piece - 1) // m.items_per_piece))
        cdef int i
        for i in range(first_outer, m.outers):
            n *= m.outer[i].size
        return n

    cdef int run(self, Kernel kernel, Py_ssize_t size) except -1:
        """Run all pieces by the kernel that takes one."""
        self.m.kernel = kernel
        self.m.head.dtype = self.m.job.head.dtype
        self.m.head.threads = self.m.job.head.threads
        self.m.job.call_bytes = size
        return launch(MASKED, &self.m.head, size, "workspace")

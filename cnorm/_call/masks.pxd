# Masks: what `where` may be, and the pieces that a masked call consists of.
cimport numpy as cnp

from cnorm.kernels.job cimport Items, Kernel, MaskedJob


cdef class Mask:
    cdef cnp.ndarray given        # the argument `where`
    cdef object data              # the input, without the mask of a masked array
    cdef object of_input          # this mask, or nomask; None where the input is no masked array
    cdef cnp.ndarray where        # once it is checked, with as many axes as the input, of size 1 where it is one for
                                  # all; None where all is True
    cdef cnp.ndarray counts       # after `scan`, where channels differ: how many elements of each sample's channel count
    cdef bint scanned
    cdef bint plain_bytes         # after `scan`: it is known that the bytes of `where` are 0 and 1
    cdef bint keeps               # forward with an `out`, which keeps its values where the mask is False

    cdef int scan(self, int batch_axis, int channel_axis) except -1
    cdef int check(self, cnp.ndarray x, bint keeps) except -1
    cdef object gradient(self, object grad_output, str name=*)
    cdef object wrapped(self, object result)
    cdef int copy_selected(self, cnp.ndarray to, cnp.ndarray values) except -1


cdef class Pieces:
    cdef MaskedJob m
    cdef cnp.ndarray mask         # bytes, contiguous along the axes of items

    cdef int set_arrays(self, list views, cnp.ndarray where, Items items, list outer, list unit, list part,
                        list segment, list inner, bint plain_bytes=*) except -1
    cdef Py_ssize_t pieces(self, int first_outer) noexcept
    cdef int run(self, Kernel kernel, Py_ssize_t size) except -1


cdef cnp.ndarray as_mask(cnp.ndarray where, cnp.ndarray x)
cdef tuple without_mask(object input, object where)
cdef Mask mask_of_call(object input, object where)
cdef bint same_along(cnp.ndarray where, int axis) except -1


cdef inline Mask mask_argument(object input, object where):
    """The mask of a call, of `where` or of a masked array; None where there is neither.

    Called before anything is checked: to ask `where` for its array may run code of the caller's."""
    return None if where is None and cnp.PyArray_CheckExact(input) else mask_of_call(input, where)

"""Shape and strides -> kernel family and sizes. Pure: touches no data.

Neighbouring axes collapse into one where every array of the call lets them. What remains must fit one
of the families:

  units    (outer, inner, segments, runs, elements)   elements are contiguous
  columns  (samples, rows, rows, rows, columns)       columns are contiguous; they are channels, or (layer norm
                                                      over other axes than the last) units

Otherwise the family is COPY: the caller copies the arrays to C order and plans again. The family
follows from the order of the axes in memory; within a family the results depend on shape and values
alone, never on strides.
"""

from libc.string cimport memset

cdef struct Axis:
    Py_ssize_t size
    Py_ssize_t stride[4]


cdef int collapse(int count, const int *axes, const Py_ssize_t *shape, const Py_ssize_t **strides,
                  int arrays, Axis *out) noexcept nogil:
    """Merge neighbouring axes that are one in memory in every array; axes of size 1 vanish."""
    cdef int found = 0, i, k, axis
    cdef bint together
    for i in range(count):
        axis = axes[i]
        if shape[axis] == 1:
            continue
        together = found > 0
        for k in range(arrays):
            if together and out[found - 1].stride[k] != shape[axis] * strides[k][axis]:
                together = False
        if together:
            out[found - 1].size *= shape[axis]
        else:
            found += 1
            out[found - 1].size = shape[axis]
        for k in range(arrays):
            out[found - 1].stride[k] = strides[k][axis]
    return found


cdef list axes_together(list axes):
    """`collapse` for any number of arrays: of axes (size, strides)."""
    cdef list found = []
    for size, strides in axes:
        if size == 1:
            continue
        if found and all([outer == size * inner for outer, inner in zip(found[-1][1], strides)]):
            found[-1] = (found[-1][0] * size, strides)
        else:
            found.append((size, strides))
    return found


cdef inline bint contiguous(const Axis *axis, int arrays, Py_ssize_t itemsize) noexcept nogil:
    cdef int k
    for k in range(arrays):
        if axis.stride[k] != itemsize:
            return False
    return True


cdef void put(Plan *p, int at, const Axis *axis, int arrays) noexcept nogil:
    cdef int k
    p.shape[at] = axis.size
    if at < 4:
        for k in range(arrays):
            p.stride[k][at] = axis.stride[k]


cdef void put_axes(Plan *p, int first, int last, const Axis *axes, int count, int arrays) noexcept nogil:
    """Axes in places first..last, at the end of them; places before hold one."""
    cdef int i, at = last - count + 1
    for i in range(count):
        put(p, at + i, axes + i, arrays)


cdef void clear(Plan *p) noexcept nogil:
    cdef int i
    memset(p, 0, sizeof(Plan))
    p.family = COPY
    for i in range(5):
        p.shape[i] = 1


cdef void plan_rows(Plan *p, int ndim, const Py_ssize_t *shape, const Py_ssize_t **strides, int arrays,
                    int normalized, Py_ssize_t itemsize) noexcept nogil:
    """LayerNorm and RMSNorm over the last `normalized` axes: a unit is a row of one segment."""
    cdef int axes[MAX_DIMS]
    cdef Axis outer[MAX_DIMS]
    cdef Axis inner[MAX_DIMS]
    cdef int i, outers, inners
    clear(p)
    for i in range(ndim):
        axes[i] = i
    outers = collapse(ndim - normalized, axes, shape, strides, arrays, outer)
    inners = collapse(normalized, axes + ndim - normalized, shape, strides, arrays, inner)
    if outers > 2 or inners > 2 or (inners and not contiguous(inner + inners - 1, arrays, itemsize)):
        return
    put_axes(p, 0, 1, outer, outers, arrays)
    put_axes(p, 3, 4, inner, inners, arrays)
    p.family = UNITS


cdef void plan_row_axes(Plan *p, int ndim, const Py_ssize_t *shape, const Py_ssize_t **strides, int arrays,
                        const int *axes, int normalized, Py_ssize_t units_per_set, Py_ssize_t itemsize) noexcept nogil:
    """LayerNorm and RMSNorm over any axes: `axes` has those of the units, then the `normalized` ones, all in the order
    in which their elements count. A unit is a row of one segment, or a column: then the samples are the axes of units
    before that of the columns. units_per_set: how many units share weight and bias, if not all; columns of a sample do.
    """
    cdef Axis outer[MAX_DIMS]
    cdef Axis inner[MAX_DIMS]
    cdef int outers, inners
    clear(p)
    outers = collapse(ndim - normalized, axes, shape, strides, arrays, outer)
    inners = collapse(normalized, axes + ndim - normalized, shape, strides, arrays, inner)
    if outers > 2:
        return
    if inners == 0 or (inners <= 2 and contiguous(inner + inners - 1, arrays, itemsize)):
        put_axes(p, 0, 1, outer, outers, arrays)
        put_axes(p, 3, 4, inner, inners, arrays)
        p.family = UNITS
        return
    if inners > 3 or outers == 0 or not contiguous(outer + outers - 1, arrays, itemsize):
        return
    if outer[outers - 1].size == 0 or units_per_set % outer[outers - 1].size:
        return
    put_axes(p, 0, 0, outer, outers - 1, arrays)
    put_axes(p, 1, 3, inner, inners, arrays)
    put(p, 4, outer + outers - 1, arrays)
    p.family = COLUMNS


cdef void plan_channels(Plan *p, int ndim, const Py_ssize_t *shape, const Py_ssize_t **strides, int arrays,
                        int batch_axis, int channel_axis, Py_ssize_t groups,
                        Py_ssize_t itemsize) noexcept nogil:
    """BatchNorm (groups 0: a unit is a channel) and GroupNorm (a unit is a group of one sample).

    batch_axis is -1 where the input has none.
    """
    cdef int axes[MAX_DIMS]
    cdef Axis spatial[MAX_DIMS]
    cdef Axis sample, channel
    cdef int i, k, count = 0, spatials
    clear(p)
    sample.size = 1
    channel.size = shape[channel_axis]
    for k in range(arrays):
        sample.stride[k] = 0
        channel.stride[k] = strides[k][channel_axis] if channel.size > 1 else itemsize
    if batch_axis >= 0:
        sample.size = shape[batch_axis]
        for k in range(arrays):
            sample.stride[k] = strides[k][batch_axis]
    for i in range(ndim):
        if i != batch_axis and i != channel_axis:
            axes[count] = i
            count += 1
    spatials = collapse(count, axes, shape, strides, arrays, spatial)
    if spatials and spatials <= 2 and contiguous(spatial + spatials - 1, arrays, itemsize):
        p.family = UNITS
        put_axes(p, 3, 4, spatial, spatials, arrays)
        if groups == 0:
            put(p, 1, &channel, arrays)
            put(p, 2, &sample, arrays)
        else:
            put(p, 0, &sample, arrays)
            channel.size //= groups
            put(p, 2, &channel, arrays)
            for k in range(arrays):
                channel.stride[k] *= channel.size
            channel.size = groups
            put(p, 1, &channel, arrays)
        return
    # A single channel is no row of columns: its contiguous copy has units.
    if not contiguous(&channel, arrays, itemsize) or (spatials and channel.size == 1):
        return
    if groups == 0 and batch_axis >= 0:
        # the batch is one more axis of rows
        for i in range(count, 0, -1):
            axes[i] = axes[i - 1]
        axes[0] = batch_axis
        spatials = collapse(count + 1, axes, shape, strides, arrays, spatial)
        sample.size = 1
    if spatials > 3:
        return
    p.family = COLUMNS
    put(p, 0, &sample, arrays)
    put_axes(p, 1, 3, spatial, spatials, arrays)
    p.shape[4] = channel.size


cdef enum:
    STRETCHES = 4   # of neighbouring axes that are all reduced, or all kept: as many as a plan has room for


cdef inline Py_ssize_t magnitude(Py_ssize_t stride) noexcept nogil:
    return -stride if stride < 0 else stride


cdef int stretches_of(int count, const int *axes, const unsigned char *reduced, int *ends) noexcept nogil:
    """Cut axes into stretches that are all reduced or all kept; where each ends. Returns how many there are."""
    cdef int i, found = 0
    for i in range(count):
        if i == 0 or reduced[axes[i]] != reduced[axes[i - 1]]:
            found += 1
        if found <= STRETCHES:
            ends[found - 1] = i + 1
    return found


cdef bint has_plan(int ndim, const Py_ssize_t *shape, const unsigned char *reduced) noexcept nogil:
    """Whether plan_axes takes C-contiguous arrays of this shape."""
    cdef int axes[MAX_DIMS]
    cdef int ends[STRETCHES]
    cdef int i, count = 0
    for i in range(ndim):
        if shape[i] != 1:
            axes[count] = i
            count += 1
    return stretches_of(count, axes, reduced, ends) <= STRETCHES


cdef int plan_axes(Plan *p, int ndim, const Py_ssize_t *shape, const Py_ssize_t **strides, int arrays,
                   const unsigned char *reduced, Py_ssize_t itemsize, int *kept) noexcept nogil:
    """Statistics over the axes that are marked as reduced, without parameters.

    Taken in the order of memory of the first array, the axes are stretches of reduced ones and of kept ones. Where
    the last is reduced, units are (kept, reduced, kept, reduced) -> (outer, segments, inner, runs and elements); else
    columns are (reduced, kept, reduced, kept) -> (rows, samples, rows, columns). What a stretch becomes depends on
    the shape and that order alone.

    kept: OUT, the kept axes of more than one element, in the order in which units or columns count them. Returns how
    many there are.
    """
    cdef int axes[MAX_DIMS]
    cdef int ends[STRETCHES]
    cdef Axis found[STRETCHES + 1][MAX_DIMS]   # of each stretch from the last on; the one after it is empty
    cdef int counts[STRETCHES + 1]
    cdef int i, k, axis, count = 0, stretches, begin, n_kept = 0
    cdef Py_ssize_t stride
    clear(p)
    memset(counts, 0, sizeof(counts))
    for i in range(ndim):
        if shape[i] == 1:
            continue
        stride = magnitude(strides[0][i])
        k = count
        while k > 0 and magnitude(strides[0][axes[k - 1]]) < stride:
            axes[k] = axes[k - 1]
            k -= 1
        axes[k] = i
        count += 1
    for i in range(count):
        if not reduced[axes[i]]:
            kept[n_kept] = axes[i]
            n_kept += 1
    stretches = stretches_of(count, axes, reduced, ends)
    if stretches > STRETCHES:
        return n_kept
    for i in range(stretches):
        begin = ends[stretches - 2 - i] if i + 1 < stretches else 0
        counts[i] = collapse(ends[stretches - 1 - i] - begin, axes + begin, shape, strides, arrays, found[i])
    if count == 0 or reduced[axes[count - 1]]:
        if counts[0] > 2 or counts[2] > 1 or counts[3] > 1 or counts[1] > (2 if counts[2] == 0 else 1) or (
                counts[0] and not contiguous(found[0] + counts[0] - 1, arrays, itemsize)):
            return n_kept
        put_axes(p, 3, 4, found[0], counts[0], arrays)
        put_axes(p, 2, 2, found[2], counts[2], arrays)
        if counts[3]:
            put(p, 0, found[3], arrays)
        put_axes(p, 0, 1, found[1], counts[1], arrays)
        p.family = UNITS
    elif counts[0] == 1 and counts[2] <= 1 and counts[1] + counts[3] <= 3 and contiguous(found[0], arrays, itemsize):
        put(p, 4, found[0], arrays)
        put_axes(p, 0, 0, found[2], counts[2], arrays)
        put_axes(p, 1, 3 - counts[1], found[3], counts[3], arrays)
        put_axes(p, 1, 3, found[1], counts[1], arrays)
        p.family = COLUMNS
    return n_kept


NAMES = {COPY: "copy", UNITS: "units", COLUMNS: "columns"}


def plan(shape, *strides, itemsize, normalized=None, axes=None, channel_axis=None, batch_axis=0, groups=0,
         reduced=None):
    """The plan of a call, for reading and for tests: (family, shape, strides of each array).

    Parameters
    ----------
    shape : tuple of int
        Of the input.
    *strides : tuple of int
        One per array of the call (input, result, gradient of the result), in bytes.
    itemsize : int
        Bytes of an element.
    normalized : int, optional
        How many trailing axes a row has (LayerNorm, RMSNorm).
    axes : tuple of int, optional
        With `normalized`: all axes, the normalized ones last, where these are not the trailing ones.
    channel_axis, batch_axis : int, optional
        Of the other norms; batch_axis -1 where there is none.
    groups : int
        Groups of channels per sample; 0 where the statistics are over the batch.
    reduced : tuple of int, optional
        Instead of these: the axes that statistics are taken over (normalize).

    Examples
    --------
    >>> from cnorm._plan import plan
    >>> plan((8, 3, 4, 4), (192, 64, 16, 4), itemsize=4, channel_axis=1)
    ('units', (1, 3, 8, 1, 16), ((0, 64, 192, 0),))
    """
    cdef Py_ssize_t sizes[MAX_DIMS]
    cdef Py_ssize_t steps[ARRAYS][MAX_DIMS]
    cdef const Py_ssize_t *pointers[ARRAYS]
    cdef int ndim = len(shape), arrays = len(strides), i, k
    cdef int order[MAX_DIMS]
    cdef int kept[MAX_DIMS]
    cdef unsigned char marks[MAX_DIMS]
    cdef Plan p
    if ndim > MAX_DIMS:
        raise ValueError(f"shape must have at most {MAX_DIMS} axes, but got {ndim}")
    if arrays > ARRAYS:
        raise ValueError(f"a plan is for at most {ARRAYS} arrays, but got the strides of {arrays}")
    for i in range(ndim):
        sizes[i] = shape[i]
    for k in range(arrays):
        pointers[k] = steps[k]
        for i in range(ndim):
            steps[k][i] = strides[k][i]
    if reduced is not None:
        for i in range(ndim):
            marks[i] = i in reduced
        plan_axes(&p, ndim, sizes, pointers, arrays, marks, itemsize, kept)
    elif axes is not None:
        for i in range(ndim):
            order[i] = axes[i]
        plan_row_axes(&p, ndim, sizes, pointers, arrays, order, normalized, 0, itemsize)
    elif normalized is not None:
        plan_rows(&p, ndim, sizes, pointers, arrays, normalized, itemsize)
    else:
        plan_channels(&p, ndim, sizes, pointers, arrays, batch_axis, channel_axis % ndim, groups, itemsize)
    return (NAMES[p.family], tuple(p.shape[i] for i in range(5)),
            tuple(tuple(p.stride[k][i] for i in range(4)) for k in range(arrays)))

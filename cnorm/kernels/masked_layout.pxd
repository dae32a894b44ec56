# Masked norms: where a piece is, and its workspace. What a piece is: masked.pyx.
from libc.string cimport memcpy

from cnorm.kernels.job cimport ITEM_ELEMENTS, ITEM_ROWS, ITEM_UNITS, MaskedAxis, MaskedJob
from cnorm.kernels.loops cimport LANES_ALIGN, stream_end, zero_bytes


cdef struct Piece:
    char *array[4]            # of its first unit's or part's item 0
    const char *mask          # of its first item
    Py_ssize_t begin          # its first item, of those along the inner axes
    Py_ssize_t length         # items
    Py_ssize_t count          # that are selected
    Py_ssize_t first          # the first of them
    bint one_run              # they lie side by side
    Py_ssize_t units
    Py_ssize_t unit           # the number of its first unit, or of its first item (ITEM_UNITS)
    Py_ssize_t part
    char *packed[4]           # workspace
    char *parameters
    double *stats


cdef struct Workspace:        # bytes of one thread's
    Py_ssize_t packed         # of one array
    Py_ssize_t parameters     # of one parameter per element
    Py_ssize_t sums           # of (3, length) doubles
    Py_ssize_t stats
    Py_ssize_t mask           # of a piece, gathered
    Py_ssize_t parts          # what is selected of each part (masked_sweep.pxd)
    Py_ssize_t turned         # of one array of some pieces whose items lie side by side, one after another
    Py_ssize_t total


cdef inline Py_ssize_t pieces_of(const MaskedJob *m) noexcept nogil:
    """Pieces; with parts: groups of pieces, of which each has all parts of its units."""
    cdef Py_ssize_t n = ((m.unit.size + m.units_per_piece - 1) // m.units_per_piece
                         * ((m.length + m.items_per_piece - 1) // m.items_per_piece))
    cdef int i
    for i in range(m.outers):
        n *= m.outer[i].size
    return n


cdef inline void step(Piece *piece, const MaskedAxis *axis, Py_ssize_t n) noexcept nogil:
    cdef int k
    for k in range(4):
        piece.array[k] += n * axis.stride[k]
    piece.mask += n * axis.mask


cdef inline void place_piece(const MaskedJob *m, Py_ssize_t number, Piece *piece) noexcept nogil:
    cdef Py_ssize_t chunks = (m.length + m.items_per_piece - 1) // m.items_per_piece, chunk, group, i, rest
    cdef int k
    memcpy(piece.array, m.array, sizeof(piece.array))
    piece.mask = m.mask
    piece.part = 0
    chunk = number % chunks
    number //= chunks
    piece.length = min(m.items_per_piece, m.length - chunk * m.items_per_piece)
    piece.begin = chunk * m.items_per_piece
    piece.mask += piece.begin
    chunks = (m.unit.size + m.units_per_piece - 1) // m.units_per_piece
    group = number % chunks
    number //= chunks
    piece.units = min(m.units_per_piece, m.unit.size - group * m.units_per_piece)
    step(piece, &m.unit, group * m.units_per_piece)
    if m.items == ITEM_UNITS:
        piece.unit = number * m.length + chunk * m.items_per_piece
    elif m.items == ITEM_ROWS:
        piece.unit = number * m.stats_per_piece
    else:
        piece.unit = number * m.unit.size + group * m.units_per_piece
    for k in range(m.outers - 1, -1, -1):
        rest = number // m.outer[k].size
        i = number - rest * m.outer[k].size
        step(piece, &m.outer[k], i)
        number = rest


cdef inline void bind_piece(const MaskedJob *m, Piece *piece, char *workspace, const Workspace *size) noexcept nogil:
    cdef int k
    for k in range(4):
        piece.packed[k] = workspace + k * size.packed
    if m.channels and m.items == ITEM_ELEMENTS:  # a result takes the place of x, which is in cache
        piece.packed[1] = piece.packed[0]
    piece.parameters = workspace + 4 * size.packed
    piece.stats = <double *> (piece.parameters + 3 * size.parameters)


cdef inline const double *offset(const double *values, Py_ssize_t n) noexcept nogil:
    return values + n if values != NULL else NULL


cdef inline Py_ssize_t end_of_run(const char *y, Py_ssize_t stop, Py_ssize_t count, Py_ssize_t length,
                                  Py_ssize_t item_bytes) noexcept nogil:
    """Elements of the last cache line of a run of `count` elements that ends at element `stop` of `length` at y, where
    zeros follow and both go past the cache: they are stored with these (stream_end). -1 where no whole line is before
    them, or nothing follows."""
    cdef Py_ssize_t n = (<Py_ssize_t> y + stop * item_bytes) % LANES_ALIGN // item_bytes
    return n if n < count and stop < length and <Py_ssize_t> y % item_bytes == 0 else -1


cdef inline void zero_around(char *y, Py_ssize_t first, Py_ssize_t stop, Py_ssize_t length, Py_ssize_t item_bytes,
                             bint stream, const char *values, Py_ssize_t end) noexcept nogil:
    """Set elements before `first` and from `stop` on to 0; the last `end` before `stop` come from `values`, unless -1
    (end_of_run)."""
    if first:
        zero_bytes(y, first * item_bytes, stream)
    if end >= 0:
        stream_end(values, end * item_bytes, y + (stop - end) * item_bytes, (length - stop + end) * item_bytes)
    elif stop < length:
        zero_bytes(y + stop * item_bytes, (length - stop) * item_bytes, stream)

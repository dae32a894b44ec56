# Window: LocalResponseNorm. Each element is divided by a power of the sum of squares over a window of
# neighbouring channels.
#
# a) The window's sums are taken directly: a running sum that adds one channel and drops another drifts.
# b) Channels first, the rows of a window are stretches of channels; channels last, they are one row of
#    all channels, shifted, with zeros beyond its ends. Either way the same loops see rows of a window.
# c) Backward, `shared` of each channel goes to every channel of its window: the window turned round.

cdef enum:
    SPAN = 1024                 # elements of a channel at a time
    SPAN_BYTES = 1 << 19        # what one visit may keep: it stays in L2


cdef struct Room:
    # What one visit needs: pointers to a window's rows, and buffers of the accumulator's type.
    const char **rows
    char *power
    char *shared
    char *padded
    char *slopes
    char *zeroth


cdef inline Py_ssize_t span_of(const Window *a, bint backward) noexcept nogil:
    """Elements of a channel at a time: all channels of them must stay in cache."""
    cdef Py_ssize_t span = SPAN
    if backward:
        span = SPAN_BYTES // (2 * a.shape[1] * TILES[a.storage].wide)
    return max(64, min(span, SPAN))


cdef inline Response response_of(const Window *a, Py_ssize_t channel) noexcept nogil:
    cdef Response r
    r.alpha = a.alpha
    r.beta = a.beta
    r.k = a.k
    r.slope = a.slopes[channel] if a.activation == 2 else a.slope
    r.slopes = NULL
    return r


# ---- channels first ----

cdef Py_ssize_t window_rows(const Window *a, const char *base, Py_ssize_t stride, Py_ssize_t channel,
                            bint backward, const char **rows) noexcept nogil:
    """Rows of the window of a channel, or (backward) of those whose windows it is in."""
    cdef Py_ssize_t first = channel - (a.after if backward else a.before)
    cdef Py_ssize_t last = channel + (a.before if backward else a.after)
    cdef Py_ssize_t count = 0, c
    if a.legacy and backward and channel == 0:
        last = a.shape[1] - 1
    first = max(first, 0)
    if a.legacy and not backward and first > 0:
        rows[0] = base
        count = 1
    for c in range(first, min(last, a.shape[1] - 1) + 1):
        rows[count] = base + c * stride
        count += 1
    return count


cdef inline Py_ssize_t spans_of(const Window *a, bint backward) noexcept nogil:
    cdef Py_ssize_t span = span_of(a, backward)
    return (a.shape[4] + span - 1) // span


cdef void first_item(const Window *a, Py_ssize_t item, bint backward, Room *room) noexcept nogil:
    """One stretch of elements of one sample, all channels."""
    cdef const Tile *loops = TILES[a.storage]
    cdef Py_ssize_t spans = spans_of(a, backward), span = span_of(a, backward)
    cdef Py_ssize_t at = (item % spans) * span, n = min(span, a.shape[4] - at)
    cdef Py_ssize_t run = item // spans % a.shape[3], sample = item // spans // a.shape[3], c, count
    cdef const char *x = a.x.data + sample * a.x.stride[0] + run * a.x.stride[3] + at * loops.size
    cdef char *y = a.y.data + sample * a.y.stride[0] + run * a.y.stride[3] + at * loops.size
    cdef const char *dy = a.dy.data + sample * a.dy.stride[0] + run * a.dy.stride[3] + at * loops.size
    cdef Py_ssize_t kept = span * loops.wide
    cdef int activation = 1 if a.activation else 0
    cdef Response r
    for c in range(a.shape[1]):
        count = window_rows(a, x, a.x.stride[1], c, False, room.rows)
        r = response_of(a, c)
        if backward:
            loops.window_prepare(room.rows, count, 0, x + c * a.x.stride[1], dy + c * a.dy.stride[1], n, &r,
                                 activation, room.power + c * kept, room.shared + c * kept)
        else:
            loops.window_apply(room.rows, count, 0, x + c * a.x.stride[1], y + c * a.y.stride[1], n, &r,
                               activation)
    if not backward:
        return
    for c in range(a.shape[1]):
        count = window_rows(a, room.shared, kept, c, True, room.rows)
        r = response_of(a, c)
        loops.window_grad(room.rows, count, x + c * a.x.stride[1], dy + c * a.dy.stride[1],
                          room.power + c * kept, y + c * a.y.stride[1], n, &r, activation)


# ---- channels last ----

cdef inline char *window_row_at(const Window *a, const View *v, Py_ssize_t row) noexcept nogil:
    cdef Py_ssize_t third = row % a.shape[3], second = row // a.shape[3] % a.shape[2]
    row = row // a.shape[3] // a.shape[2]
    return (v.data + row // a.shape[1] * v.stride[0] + row % a.shape[1] * v.stride[1] + second * v.stride[2]
            + third * v.stride[3])


cdef void shifted_rows(const char *padded, Py_ssize_t count, int wide, const char **rows) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(count):
        rows[i] = padded + i * wide


cdef void last_item(const Window *a, Py_ssize_t row, bint backward, Room *room) noexcept nogil:
    """One row: all channels of one position."""
    cdef const Tile *loops = TILES[a.storage]
    cdef Py_ssize_t channels = a.shape[4], size = a.before + 1 + a.after, c, first = 0
    cdef const char *x = window_row_at(a, &a.x, row)
    cdef char *y = window_row_at(a, &a.y, row)
    cdef const char *dy
    cdef Response r = response_of(a, 0)
    r.slopes = room.slopes
    loops.widen(x, channels, room.padded + a.before * loops.wide)
    shifted_rows(room.padded, size, loops.wide, room.rows)
    if a.legacy:  # one more row: channel 0 where the window has left it
        for c in range(a.before + 1, channels):
            memcpy(room.zeroth + c * loops.wide, room.padded + a.before * loops.wide, loops.wide)
        room.rows[size] = room.zeroth
    if not backward:
        loops.window_apply(room.rows, size + a.legacy, 1, x, y, channels, &r, a.activation)
        return
    dy = window_row_at(a, &a.dy, row)
    loops.window_prepare(room.rows, size + a.legacy, 1, x, dy, channels, &r, a.activation, room.power,
                         room.shared + a.after * loops.wide)
    if a.legacy:  # channel 0 is in every window
        shifted_rows(room.shared + a.after * loops.wide, channels, loops.wide, room.rows)
        loops.window_grad(room.rows, channels, x, dy, room.power, y, 1, &r, a.activation)
        first = 1
        r.slopes = room.slopes + loops.wide
    shifted_rows(room.shared + first * loops.wide, size, loops.wide, room.rows)
    loops.window_grad(room.rows, size, x + first * loops.size, dy + first * loops.size,
                      room.power + first * loops.wide, y + first * loops.size, channels - first, &r,
                      a.activation)


# ---- both ----

cdef int room_for(const Window *a, bint backward, Room *room) noexcept nogil:
    """Memory for one visit; zeroed, so that what lies beyond a row's ends is zero."""
    cdef const Tile *loops = TILES[a.storage]
    cdef Py_ssize_t channels = a.shape[4] if a.channels_last else a.shape[1]
    cdef Py_ssize_t size = a.before + 1 + a.after, c
    cdef Py_ssize_t line = (channels + size if a.channels_last else span_of(a, backward)) * loops.wide
    cdef Py_ssize_t kept = line if a.channels_last else line * channels
    cdef char *block
    # padded, slopes, zeroth: a line each; power and shared: all that is kept
    room.rows = <const char **> malloc((size + channels + 1) * sizeof(char *))
    block = <char *> calloc(3 * line + (2 * kept if backward else 0), 1)
    if room.rows == NULL or block == NULL:
        free(room.rows)
        free(block)
        room.rows = NULL
        return -1
    room.padded = block
    room.slopes = block + line
    room.zeroth = block + 2 * line
    room.power = block + 3 * line
    room.shared = block + 3 * line + kept
    if a.channels_last and a.activation == 2:
        for c in range(channels):
            set_value(loops, room.slopes, c, a.slopes[c])
    return 0


cdef int window_stretch(const Window *a, Py_ssize_t begin, Py_ssize_t end, bint backward) noexcept nogil:
    cdef Room room
    cdef Py_ssize_t item
    if room_for(a, backward, &room) < 0:
        return -1
    for item in range(begin, end):
        if a.channels_last:
            last_item(a, item, backward, &room)
        else:
            first_item(a, item, backward, &room)
    free(room.rows)
    free(room.padded)
    return 0


cdef int window_both(const Window *a, bint backward) noexcept nogil:
    cdef Py_ssize_t items, stretch, stretches, i
    cdef int failed = 0
    if a.channels_last:
        items = a.shape[0] * a.shape[1] * a.shape[2] * a.shape[3]
    else:
        items = a.shape[0] * a.shape[3] * spans_of(a, backward)
    if a.threads == 1:
        return window_stretch(a, 0, items, backward)
    stretch = chunk_of(items, a.threads)
    stretches = (items + stretch - 1) // stretch
    for i in prange(stretches, num_threads=a.threads, schedule="dynamic"):
        failed += window_stretch(a, i * stretch, min((i + 1) * stretch, items), backward)  # over the threads
    return -1 if failed else 0


cdef int window_forward(Window *a) noexcept nogil:
    """y = x * (k + alpha * sum of squares over the window) ** -beta."""
    return window_both(a, False)


cdef int window_backward(Window *a) noexcept nogil:
    """The gradient of the input, in place on dy if asked: every channel of a stretch is prepared before
    the first is written."""
    return window_both(a, True)

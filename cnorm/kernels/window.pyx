# Window: LocalResponseNorm. Each element is divided by a power of the sum of squares over a window of
# neighbouring channels.
#
# a) The window's sums are taken directly: a running sum that adds one channel and drops another drifts.
# b) Each element is squared once; the squares are kept until the last window that they are in.
# c) Channels first, the rows of a window are stretches of channels; channels last, they are some
#    positions with all their channels, shifted, with zeros beyond the ends. Either way the same loops
#    see rows of a window.
# d) Backward, `shared` of each channel goes to every channel of its window: the window turned round.


from cython.parallel cimport prange, threadid
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset
from cnorm.kernels.coefficients cimport set_value
from cnorm.kernels.jobs cimport View, Window
from cnorm.kernels.loops cimport LANES_ALIGN, TILES, Tile, WindowTile
from cnorm.kernels.tuning cimport KEPT_BYTES, SPAN
from cnorm.kernels.workspace cimport up_to


cdef struct Room:
    # What one visit keeps, of the accumulator's type: lines of squares, power and shared. Channels first,
    # a line is a stretch of a channel, and channels take turns; channels last, it is a position. They begin
    # where no store crosses a line of the cache.
    Py_ssize_t span    # elements of a channel at a time, or positions
    Py_ssize_t lines   # of each kind
    Py_ssize_t line    # bytes
    bint backward
    Py_ssize_t *turns  # where in each kind a channel's line is while a window needs it
    const char **rows  # of a window
    char *block        # as it was allocated
    char *squares
    char *power
    char *shared
    char *extra        # legacy: what channel 0 adds to a window, or takes from all
    char *slopes


cdef inline WindowTile tile_of(const Window *a, const Room *room) noexcept nogil:
    cdef WindowTile w
    memset(&w, 0, sizeof(w))
    w.runs = 1
    w.kept_stride = room.line
    w.rows = room.rows
    w.alpha = a.alpha
    w.beta = a.beta
    w.k = a.k
    w.activation = a.activation
    w.slope = a.slope
    w.slopes = room.slopes
    return w


cdef inline Py_ssize_t spans_of(const Window *a, const Room *room) noexcept nogil:
    return ((a.shape[3] if a.channels_last else a.shape[4]) + room.span - 1) // room.span


# ---- channels first ----


cdef void to_channel(const Window *a, const Room *room, Py_ssize_t channel, const WindowTile *zeroth,
                     WindowTile *w) noexcept nogil:
    """From the tile of channel 0, that of another one."""
    w.x = zeroth.x + channel * a.x.stride[1]
    w.dy = zeroth.dy + channel * a.dy.stride[1]
    w.y = zeroth.y + channel * a.y.stride[1]
    w.squares = room.squares + room.turns[channel]
    w.power = room.power + room.turns[channel]
    w.shared = room.shared + room.turns[channel]
    if a.activation == 2:
        w.slope = a.slopes[channel]


cdef void add_rows(const Window *a, const Room *room, char *lines, Py_ssize_t first, Py_ssize_t last,
                   WindowTile *w) noexcept nogil:
    """The lines of the channels from first to last that there are."""
    cdef Py_ssize_t c
    for c in range(max(first, 0), min(last, a.shape[1] - 1) + 1):
        w.rows[w.count] = lines + room.turns[c]
        w.count += 1


cdef void to_window(const Window *a, const Room *room, Py_ssize_t channel, const WindowTile *zeroth,
                    WindowTile *w) noexcept nogil:
    """The rows of a channel's window, the last of which is not yet squared, and what comes after them."""
    cdef Py_ssize_t last = channel + a.after, channels = a.shape[1]
    to_channel(a, room, channel, zeroth, w)
    w.count = 0
    if a.legacy and channel > a.before:  # channel 0 is in every window
        w.rows[0] = room.squares
        w.count = 1
    add_rows(a, room, room.squares, channel - a.before, last - 1, w)
    w.fresh = NULL
    if last < channels:
        w.fresh = zeroth.x + last * a.x.stride[1]
        w.squares = room.squares + room.turns[last]
    w.x_ahead = (a.after + 1) * a.x.stride[1] if last + 1 < channels else 0
    w.dy_ahead = a.dy.stride[1] if channel + 1 < channels else 0
    if room.backward:  # its gradient follows
        w.y_ahead = -a.before * a.y.stride[1] if channel >= a.before else 0
    else:
        w.y_ahead = a.y.stride[1] if channel + 1 < channels else 0


cdef void first_item(const Window *a, Py_ssize_t item, const Room *room) noexcept nogil:
    """One stretch of elements of one sample. As many channels are under way as a window has: each step
    squares one, which completes a window, and that one's `shared` completes a gradient."""
    cdef const Tile *loops = TILES[a.storage]
    cdef Py_ssize_t spans = spans_of(a, room), at = item % spans * room.span, step, c
    cdef Py_ssize_t run = item // spans % a.shape[3], sample = item // spans // a.shape[3]
    cdef Py_ssize_t channels = a.shape[1]
    cdef WindowTile w = tile_of(a, room), zeroth
    w.x = a.x.data + sample * a.x.stride[0] + run * a.x.stride[3] + at * loops.size
    w.y = a.y.data + sample * a.y.stride[0] + run * a.y.stride[3] + at * loops.size
    w.dy = a.dy.data + sample * a.dy.stride[0] + run * a.dy.stride[3] + at * loops.size
    w.n = min(room.span, a.shape[4] - at)
    w.activation = 1 if a.activation else 0
    zeroth = w
    for c in range(min(a.after, channels)):
        to_channel(a, room, c, &zeroth, &w)
        loops.window_squares(&w)
    if not room.backward:
        for c in range(channels):
            to_window(a, room, c, &zeroth, &w)
            loops.window_apply(&w)
        return
    if a.legacy:
        memset(room.extra, 0, room.line)
    for step in range(channels + a.before):
        if step < channels:
            to_window(a, room, step, &zeroth, &w)
            loops.window_prepare(&w)
            if a.legacy:
                TILES[loops.accumulator].add(room.extra, w.shared, room.extra, w.n)
        c = step - a.before
        if c >= a.legacy:
            to_channel(a, room, c, &zeroth, &w)
            w.count = 0
            add_rows(a, room, room.shared, c - a.after, c + a.before, &w)
            loops.window_grad(&w)
    if a.legacy:  # channel 0 is in every window
        to_channel(a, room, 0, &zeroth, &w)
        w.rows[0] = room.extra
        w.count = 1
        loops.window_grad(&w)


# ---- channels last ----


cdef inline char *position(const View *v, const Py_ssize_t *at) noexcept nogil:
    return v.data + at[0] * v.stride[0] + at[1] * v.stride[1] + at[2] * v.stride[2] + at[3] * v.stride[3]


cdef void shifted_rows(const char *lines, Py_ssize_t count, int wide, WindowTile *w) noexcept nogil:
    cdef Py_ssize_t i
    w.count = count
    for i in range(count):
        w.rows[i] = lines + i * wide


cdef void last_item(const Window *a, Py_ssize_t item, const Room *room) noexcept nogil:
    """Some positions, all their channels."""
    cdef const Tile *loops = TILES[a.storage]
    cdef int wide = loops.wide
    cdef Py_ssize_t channels = a.shape[4], size = a.before + 1 + a.after, spans = spans_of(a, room), i, c
    cdef Py_ssize_t[4] at
    cdef WindowTile w = tile_of(a, room)
    at[3] = item % spans * room.span
    at[2] = item // spans % a.shape[2]
    at[1] = item // spans // a.shape[2] % a.shape[1]
    at[0] = item // spans // a.shape[2] // a.shape[1]
    w.x = position(&a.x, at)
    w.y = position(&a.y, at)
    w.dy = position(&a.dy, at)
    w.x_stride = a.x.stride[3]
    w.y_stride = a.y.stride[3]
    w.dy_stride = a.dy.stride[3]
    w.runs = min(room.span, a.shape[3] - at[3])
    w.n = channels
    w.squares = room.squares
    w.power = room.power
    w.shared = room.shared
    w.x_ahead = w.runs * w.x_stride
    w.y_ahead = w.runs * w.y_stride
    w.dy_ahead = w.runs * w.dy_stride
    loops.window_squares(&w)
    shifted_rows(w.squares - a.before * wide, size, wide, &w)
    if a.legacy:  # one more row: channel 0 where the window has left it
        for i in range(w.runs):
            for c in range(a.before + 1, channels):
                memcpy(room.extra + i * room.line + c * wide, w.squares + i * room.line, wide)
        w.rows[size] = room.extra
        w.count += 1
    if not room.backward:
        loops.window_apply(&w)
        return
    w.y_ahead = 0
    loops.window_prepare(&w)
    if a.legacy:  # channel 0 is in every window
        shifted_rows(w.shared, channels, wide, &w)
        w.n = 1
        loops.window_grad(&w)
        w.n = channels - 1
        w.x += loops.size
        w.y += loops.size
        w.dy += loops.size
        w.power += wide
        w.slopes = room.slopes + wide
    shifted_rows(w.shared + (a.legacy - a.after) * wide, size, wide, &w)
    loops.window_grad(&w)


# ---- both ----


cdef inline Py_ssize_t whole_lines(Py_ssize_t bytes) noexcept nogil:
    return up_to(bytes, LANES_ALIGN)


cdef inline Py_ssize_t kinds_of(const Room *room, bint legacy) noexcept nogil:
    """Of what is kept: squares, backward also power and shared, and `extra`."""
    return (3 if room.backward else 1) + (1 if legacy else 0)


cdef Room room_of(const Window *a, bint backward) noexcept nogil:
    """How much is kept at a time."""
    cdef int wide = TILES[a.storage].wide
    cdef Py_ssize_t size = a.before + 1 + a.after, fit
    cdef Room room
    memset(&room, 0, sizeof(room))
    room.backward = backward
    fit = KEPT_BYTES // kinds_of(&room, a.legacy)
    if a.channels_last:  # zeros before a position, and after it: `before` is no less than `after`
        room.line = whole_lines(a.before * wide) + whole_lines((a.shape[4] + a.before) * wide)
        room.span = max(1, min(fit // room.line, SPAN))
        room.lines = room.span
    else:
        room.lines = min(size, a.shape[1]) + 1
        room.span = max(64, min(fit // (room.lines * wide) // 64 * 64, SPAN))
        room.line = room.span * wide
    return room


cdef void release(Room *room) noexcept nogil:
    free(room.turns)
    free(room.rows)
    free(room.block)


cdef int allocate(const Window *a, Room *room) noexcept nogil:
    """Memory for it; zeroed, so that what lies beyond the ends of a position is zero."""
    cdef const Tile *loops = TILES[a.storage]
    cdef Py_ssize_t channels = a.shape[4] if a.channels_last else a.shape[1], c
    cdef Py_ssize_t kept = room.lines * room.line, ends = 0
    if a.channels_last:
        ends = whole_lines(a.before * loops.wide)
    room.rows = <const char **> malloc((a.before + a.after + channels + 2) * sizeof(char *))
    room.block = <char *> calloc(kinds_of(room, a.legacy) * kept + channels * loops.wide + LANES_ALIGN, 1)
    room.turns = <Py_ssize_t *> malloc(channels * sizeof(Py_ssize_t))
    if room.rows == NULL or room.block == NULL or room.turns == NULL:
        release(room)
        return -1
    for c in range(channels):  # channel 0 has a line of its own
        room.turns[c] = (1 + (c - 1) % (a.before + 1 + a.after) if c else 0) * room.line
    room.squares = <char *> whole_lines(<Py_ssize_t> room.block) + ends
    room.extra = room.squares + kept
    room.power = room.extra + (kept if a.legacy else 0)
    room.shared = room.power + kept
    room.slopes = room.squares - ends + kinds_of(room, a.legacy) * kept
    if a.channels_last and a.activation == 2:
        for c in range(channels):
            set_value(loops, room.slopes, c, a.slopes[c])
    return 0


cdef int window_item(const Window *a, Py_ssize_t item, bint backward, Room *room) noexcept nogil:
    """One item, in the room of its thread, which is made when it is first needed."""
    if room.block == NULL:
        room[0] = room_of(a, backward)
        if allocate(a, room) < 0:
            room.block = NULL
            return -1
    if a.channels_last:
        last_item(a, item, room)
    else:
        first_item(a, item, room)
    return 0


cdef int window_both(const Window *a, bint backward) noexcept nogil:
    cdef Room room = room_of(a, backward)
    cdef Room *rooms
    cdef Py_ssize_t items = a.shape[0] * a.shape[3], i
    cdef int failed = 0, thread
    if a.channels_last:
        items = a.shape[0] * a.shape[1] * a.shape[2]
    items *= spans_of(a, &room)
    rooms = <Room *> calloc(a.threads, sizeof(Room))
    if rooms == NULL:
        return -1
    if a.threads == 1:
        for i in range(items):
            failed += window_item(a, i, backward, rooms)
    else:
        for i in prange(items, num_threads=a.threads, schedule="guided"):
            failed += window_item(a, i, backward, rooms + threadid())  # summed over the threads
    for thread in range(a.threads):
        if rooms[thread].block != NULL:
            release(rooms + thread)
    free(rooms)
    return -1 if failed else 0


cdef int window_forward(Window *a) noexcept nogil:
    """y = x * (k + alpha * sum of squares over the window) ** -beta."""
    return window_both(a, False)


cdef int window_backward(Window *a) noexcept nogil:
    """The gradient of the input, in place on dy or x if asked: what is written has been read for the
    last time, but for squares and `shared`, which are kept."""
    return window_both(a, True)

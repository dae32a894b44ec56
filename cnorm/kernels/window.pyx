# Window: LocalResponseNorm. Each element is divided by a power of the sum of squares over a window of
# neighbouring channels.
#
# a) The window's sums are taken directly: a running sum that adds one channel and drops another drifts.
# b) Each element is squared once; the squares are kept until the last window that they are in.
# c) Channels first, the rows of a window are spans of channels; channels last, they are some positions with
#    all their channels, shifted, with zeros beyond the ends. Either way the loops see rows of a window.
# d) Backward, the gradient term of each channel goes to every channel of its window. Each channel so sums the
#    terms of the windows that it is in: a window with `before` and `after` exchanged.
from cython.parallel cimport prange, threadid
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from cnorm.kernels.coefficients cimport set_value
from cnorm.kernels.job cimport ACT_SLOPE, ACT_SLOPES, Tensor, WindowJob
from cnorm.kernels.loops cimport LANES_ALIGN, LOOPS_BY_DTYPE, LoopTable, WindowTile
from cnorm.kernels.machine cimport window_bytes
from cnorm.kernels.schedule cimport schedule_window
from cnorm.kernels.tuning cimport SPAN_MAX, SPAN_MULTIPLE
from cnorm.kernels.workspace cimport round_up


cdef struct WindowWorkspace:
    # What one thread keeps: lines of squares, scale_pow and grad_term, of the accumulation type. Channels
    # first, a line is a span of a channel, and the channels of a window share the lines as a ring buffer;
    # channels last, a line is a position. Lines begin where no vector store crosses a cache line.
    Py_ssize_t span          # elements of a channel at a time, or positions
    Py_ssize_t lines         # of each kind
    Py_ssize_t line          # bytes
    bint backward
    Py_ssize_t *ring_offset  # of a channel's line in each kind, while a window needs it
    const char **rows        # of a window
    char *block              # as it was allocated; NULL: not yet
    char *squares
    char *scale_pow
    char *grad_term
    char *extra              # legacy: what channel 0 adds to a window, or takes from all
    char *slopes


cdef inline WindowTile window_tile(const WindowJob *job, const WindowWorkspace *workspace) noexcept nogil:
    """A tile with what all tiles of a job have in common."""
    cdef WindowTile tile
    memset(&tile, 0, sizeof(tile))
    tile.runs = 1
    tile.workspace_stride = workspace.line
    tile.rows = workspace.rows
    tile.alpha = job.alpha
    tile.beta = job.beta
    tile.k = job.k
    tile.activation = job.activation
    tile.slope = job.slope
    tile.low = job.low
    tile.high = job.high
    tile.slopes = workspace.slopes
    return tile


cdef inline Py_ssize_t spans_of(const WindowJob *job, const WindowWorkspace *workspace) noexcept nogil:
    """Spans of a run of elements, or of an axis of positions."""
    cdef Py_ssize_t n = job.shape[3] if job.channels_last else job.shape[4]
    return (n + workspace.span - 1) // workspace.span


# ---- channels first ----


cdef void set_channel_tile(const WindowJob *job, const WindowWorkspace *workspace, Py_ssize_t channel,
                           const WindowTile *zeroth, WindowTile *tile) noexcept nogil:
    """Let a tile be one channel's span, given the tile of channel 0."""
    cdef Py_ssize_t offset = workspace.ring_offset[channel]
    tile.x = zeroth.x + channel * job.x.strides[1]
    tile.dy = zeroth.dy + channel * job.dy.strides[1]
    tile.y = zeroth.y + channel * job.y.strides[1]
    tile.squares = workspace.squares + offset
    tile.scale_pow = workspace.scale_pow + offset
    tile.grad_term = workspace.grad_term + offset
    if job.activation == ACT_SLOPES:
        tile.slope = job.slopes[channel]


cdef void add_window_rows(const WindowJob *job, const WindowWorkspace *workspace, char *lines,
                          Py_ssize_t first, Py_ssize_t last, WindowTile *tile) noexcept nogil:
    """Add the lines of the existing channels among first .. last (included) to the rows of a tile."""
    cdef Py_ssize_t channel
    for channel in range(max(first, 0), min(last, job.shape[1] - 1) + 1):
        tile.rows[tile.count] = lines + workspace.ring_offset[channel]
        tile.count += 1


cdef void set_window_tile(const WindowJob *job, const WindowWorkspace *workspace, Py_ssize_t channel,
                          const WindowTile *zeroth, WindowTile *tile) noexcept nogil:
    """Let a tile be one channel's span with the rows of its window, the last of which is squared by the
    loops, and with the distances to what is needed next."""
    cdef Py_ssize_t last = channel + job.after, channels = job.shape[1]
    set_channel_tile(job, workspace, channel, zeroth, tile)
    tile.count = 0
    if job.legacy and channel > job.before:  # channel 0 is in every window
        tile.rows[0] = workspace.squares
        tile.count = 1
    add_window_rows(job, workspace, workspace.squares, channel - job.before, last - 1, tile)
    tile.newest = NULL
    if last < channels:
        tile.newest = zeroth.x + last * job.x.strides[1]
        tile.squares = workspace.squares + workspace.ring_offset[last]
    tile.x_prefetch = (job.after + 1) * job.x.strides[1] if last + 1 < channels else 0
    tile.dy_prefetch = job.dy.strides[1] if channel + 1 < channels else 0
    if workspace.backward:  # the gradient of channel - before is written next
        tile.y_prefetch = -job.before * job.y.strides[1] if channel >= job.before else 0
    else:
        tile.y_prefetch = job.y.strides[1] if channel + 1 < channels else 0


cdef void channels_first_span(const WindowJob *job, Py_ssize_t item,
                              const WindowWorkspace *workspace) noexcept nogil:
    """One span of elements of one sample, all channels.

    As many channels are under way as a window has: each step squares one channel, which completes a window,
    whose gradient term completes a gradient."""
    cdef const LoopTable *loops = LOOPS_BY_DTYPE[job.head.dtype]
    cdef Py_ssize_t spans = spans_of(job, workspace), first = item % spans * workspace.span
    cdef Py_ssize_t run = item // spans % job.shape[3], sample = item // spans // job.shape[3]
    cdef Py_ssize_t channels = job.shape[1], bytes = first * loops.size, step, c
    cdef WindowTile tile = window_tile(job, workspace), zeroth
    tile.x = job.x.data + sample * job.x.strides[0] + run * job.x.strides[3] + bytes
    tile.y = job.y.data + sample * job.y.strides[0] + run * job.y.strides[3] + bytes
    tile.dy = job.dy.data + sample * job.dy.strides[0] + run * job.dy.strides[3] + bytes
    tile.n = min(workspace.span, job.shape[4] - first)
    if job.activation == ACT_SLOPES:  # a channel has one slope
        tile.activation = ACT_SLOPE
    zeroth = tile
    for c in range(min(job.after, channels)):
        set_channel_tile(job, workspace, c, &zeroth, &tile)
        loops.window_squares(&tile)
    if not workspace.backward:
        for c in range(channels):
            set_window_tile(job, workspace, c, &zeroth, &tile)
            loops.window_apply(&tile)
        return
    if job.legacy:
        memset(workspace.extra, 0, workspace.line)
    for step in range(channels + job.before):
        if step < channels:
            set_window_tile(job, workspace, step, &zeroth, &tile)
            loops.window_prepare(&tile)
            if job.legacy:
                LOOPS_BY_DTYPE[loops.acc_dtype].add(workspace.extra, tile.grad_term, workspace.extra, tile.n)
        c = step - job.before
        if c >= job.legacy:
            set_channel_tile(job, workspace, c, &zeroth, &tile)
            tile.count = 0
            add_window_rows(job, workspace, workspace.grad_term, c - job.after, c + job.before, &tile)
            loops.window_grad(&tile)
    if job.legacy:  # channel 0 is in every window
        set_channel_tile(job, workspace, 0, &zeroth, &tile)
        tile.rows[0] = workspace.extra
        tile.count = 1
        loops.window_grad(&tile)


# ---- channels last ----


cdef inline char *position_at(const Tensor *tensor, const Py_ssize_t *index) noexcept nogil:
    """The address of a position, given its index[4]: sample, and three axes of positions."""
    return (tensor.data + index[0] * tensor.strides[0] + index[1] * tensor.strides[1]
            + index[2] * tensor.strides[2] + index[3] * tensor.strides[3])


cdef void set_shifted_rows(const char *lines, Py_ssize_t count, int acc_size,
                           WindowTile *tile) noexcept nogil:
    """Let the rows of a tile be `count` views of the lines, each shifted by one more channel."""
    cdef Py_ssize_t i
    tile.count = count
    for i in range(count):
        tile.rows[i] = lines + i * acc_size


cdef void channels_last_span(const WindowJob *job, Py_ssize_t item,
                             const WindowWorkspace *workspace) noexcept nogil:
    """One span of positions, all their channels."""
    cdef const LoopTable *loops = LOOPS_BY_DTYPE[job.head.dtype]
    cdef int acc_size = loops.acc_size
    cdef Py_ssize_t channels = job.shape[4], size = job.before + 1 + job.after, line = workspace.line
    cdef Py_ssize_t spans = spans_of(job, workspace), rest = item // spans, i, c
    cdef Py_ssize_t[4] index
    cdef WindowTile tile = window_tile(job, workspace)
    index[3] = item % spans * workspace.span
    index[2] = rest % job.shape[2]
    index[1] = rest // job.shape[2] % job.shape[1]
    index[0] = rest // job.shape[2] // job.shape[1]
    tile.x = position_at(&job.x, index)
    tile.y = position_at(&job.y, index)
    tile.dy = position_at(&job.dy, index)
    tile.x_stride = job.x.strides[3]
    tile.y_stride = job.y.strides[3]
    tile.dy_stride = job.dy.strides[3]
    tile.runs = min(workspace.span, job.shape[3] - index[3])
    tile.n = channels
    tile.squares = workspace.squares
    tile.scale_pow = workspace.scale_pow
    tile.grad_term = workspace.grad_term
    tile.x_prefetch = tile.runs * tile.x_stride
    tile.y_prefetch = tile.runs * tile.y_stride
    tile.dy_prefetch = tile.runs * tile.dy_stride
    loops.window_squares(&tile)
    set_shifted_rows(tile.squares - job.before * acc_size, size, acc_size, &tile)
    if job.legacy:  # one more row: channel 0 where the window has left it
        for i in range(tile.runs):
            for c in range(job.before + 1, channels):
                memcpy(workspace.extra + i * line + c * acc_size, tile.squares + i * line, acc_size)
        tile.rows[size] = workspace.extra
        tile.count += 1
    if not workspace.backward:
        loops.window_apply(&tile)
        return
    tile.y_prefetch = 0
    loops.window_prepare(&tile)
    if job.legacy:  # channel 0 is in every window, so it sums the terms of all channels
        set_shifted_rows(tile.grad_term, channels, acc_size, &tile)
        tile.n = 1
        loops.window_grad(&tile)
        tile.n = channels - 1
        tile.x += loops.size
        tile.y += loops.size
        tile.dy += loops.size
        tile.scale_pow += acc_size
        tile.slopes = workspace.slopes + acc_size
    set_shifted_rows(tile.grad_term + (job.legacy - job.after) * acc_size, size, acc_size, &tile)
    loops.window_grad(&tile)


# ---- the workspace of a thread ----


cdef inline Py_ssize_t whole_lines(Py_ssize_t bytes) noexcept nogil:
    """Bytes rounded up to whole cache lines."""
    return round_up(bytes, LANES_ALIGN)


cdef inline Py_ssize_t kinds_kept(const WindowWorkspace *workspace, bint legacy) noexcept nogil:
    """Kinds of lines: squares; backward also scale_pow and grad_term; legacy also `extra`."""
    return (3 if workspace.backward else 1) + (1 if legacy else 0)


cdef WindowWorkspace window_workspace(const WindowJob *job, bint backward) noexcept nogil:
    """The sizes of a thread's workspace, which fits L1; nothing is allocated."""
    cdef int acc_size = LOOPS_BY_DTYPE[job.head.dtype].acc_size
    cdef Py_ssize_t size = job.before + 1 + job.after, fit, span
    cdef WindowWorkspace workspace
    memset(&workspace, 0, sizeof(workspace))
    workspace.backward = backward
    fit = window_bytes() // kinds_kept(&workspace, job.legacy)
    if job.channels_last:  # zeros before a position, and after it: `before` is no less than `after`
        workspace.line = whole_lines(job.before * acc_size)
        workspace.line += whole_lines((job.shape[4] + job.before) * acc_size)
        workspace.span = max(1, min(fit // workspace.line, SPAN_MAX))
        workspace.lines = workspace.span
    else:
        workspace.lines = min(size, job.shape[1]) + 1
        span = fit // (workspace.lines * acc_size) // SPAN_MULTIPLE * SPAN_MULTIPLE
        workspace.span = max(<Py_ssize_t> SPAN_MULTIPLE, min(span, SPAN_MAX))
        workspace.line = workspace.span * acc_size
    return workspace


cdef void release_window_workspace(WindowWorkspace *workspace) noexcept nogil:
    free(workspace.ring_offset)
    free(workspace.rows)
    free(workspace.block)


cdef int allocate_window_workspace(const WindowJob *job, WindowWorkspace *workspace) noexcept nogil:
    """Allocate the workspace; 0, or -1 where memory ran out. Lines are zeroed: what is beyond the ends of a
    position must be zero."""
    cdef const LoopTable *loops = LOOPS_BY_DTYPE[job.head.dtype]
    cdef Py_ssize_t channels = job.shape[4] if job.channels_last else job.shape[1], c
    cdef Py_ssize_t size = job.before + 1 + job.after, kinds = kinds_kept(workspace, job.legacy)
    cdef Py_ssize_t kind_bytes = workspace.lines * workspace.line, slope_bytes = channels * loops.acc_size
    cdef Py_ssize_t zeros = whole_lines(job.before * loops.acc_size) if job.channels_last else 0
    cdef char *begin
    workspace.rows = <const char **> malloc((size + channels + 1) * sizeof(char *))
    workspace.block = <char *> calloc(kinds * kind_bytes + slope_bytes + LANES_ALIGN, 1)
    workspace.ring_offset = <Py_ssize_t *> malloc(channels * sizeof(Py_ssize_t))
    if workspace.rows == NULL or workspace.block == NULL or workspace.ring_offset == NULL:
        release_window_workspace(workspace)
        return -1
    for c in range(channels):  # legacy needs channel 0 to the end: it has a line of its own
        workspace.ring_offset[c] = (1 + (c - 1) % size if c > 0 else 0) * workspace.line
    begin = <char *> whole_lines(<Py_ssize_t> workspace.block)
    workspace.squares = begin + zeros
    workspace.extra = workspace.squares + kind_bytes
    workspace.scale_pow = workspace.extra + (kind_bytes if job.legacy else 0)
    workspace.grad_term = workspace.scale_pow + kind_bytes
    workspace.slopes = begin + kinds * kind_bytes
    if job.channels_last and job.activation == ACT_SLOPES:
        for c in range(channels):
            set_value(loops, workspace.slopes, c, job.slopes[c])
    return 0


# ---- forward and backward ----


cdef int window_item(const WindowJob *job, Py_ssize_t item, bint backward,
                     WindowWorkspace *workspace) noexcept nogil:
    """One span, in the workspace of its thread, which is allocated when it is first needed; 0, or -1 where
    memory ran out."""
    if workspace.block == NULL:
        workspace[0] = window_workspace(job, backward)
        if allocate_window_workspace(job, workspace) < 0:
            workspace.block = NULL
            return -1
    if job.channels_last:
        channels_last_span(job, item, workspace)
    else:
        channels_first_span(job, item, workspace)
    return 0


cdef int window_spans(const WindowJob *job, bint backward) noexcept nogil:
    """All spans, each by one thread."""
    cdef WindowWorkspace sizes = window_workspace(job, backward)
    cdef WindowWorkspace *workspaces
    cdef Py_ssize_t items = job.shape[0] * job.shape[3], i
    cdef int failed = 0, thread
    if job.channels_last:
        items = job.shape[0] * job.shape[1] * job.shape[2]
    items *= spans_of(job, &sizes)
    if job.head.schedule_only != NULL:
        schedule_window(job, items, job.head.schedule_only)
        return 0
    workspaces = <WindowWorkspace *> calloc(job.head.threads, sizeof(WindowWorkspace))
    if workspaces == NULL:
        return -1
    if job.head.threads == 1:
        for i in range(items):
            failed += window_item(job, i, backward, workspaces)
    else:
        for i in prange(items, num_threads=job.head.threads, schedule="guided"):
            failed += window_item(job, i, backward, workspaces + threadid())  # summed over the threads
    for thread in range(job.head.threads):
        if workspaces[thread].block != NULL:
            release_window_workspace(workspaces + thread)
    free(workspaces)
    return -1 if failed else 0


cdef int window_forward(WindowJob *job) noexcept nogil:
    """y = x * (k + alpha * sum of squares over the window) ** -beta."""
    return window_spans(job, False)


cdef int window_backward(WindowJob *job) noexcept nogil:
    """The gradient of the input, which may be written over dy or x: what is overwritten has been read for the
    last time, but for squares and gradient terms, which are kept."""
    return window_spans(job, True)

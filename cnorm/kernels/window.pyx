# WindowJob: LocalResponseNorm. Each element is divided by a power of the sum of squares over a window of
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
from cnorm.kernels.job cimport ACT_SLOPES, Tensor, WindowJob
from cnorm.kernels.loops cimport LANES_ALIGN, LOOPS_BY_DTYPE, LoopTable, WindowTile
from cnorm.kernels.machine cimport window_bytes
from cnorm.kernels.tuning cimport SPAN_MAX, SPAN_MULTIPLE
from cnorm.kernels.workspace cimport round_up


cdef struct WindowWorkspace:
    # What one visit keeps, of the accumulation type: lines of squares, scale_pow and grad_term. Channels first, a line
    # is a span of a channel, and the channels of a window share the lines as a ring buffer; channels last, a line is a
    # position. Lines begin where no store crosses a cache line.
    Py_ssize_t span          # elements of a channel at a time, or positions
    Py_ssize_t lines         # of each kind
    Py_ssize_t line          # bytes
    bint backward
    Py_ssize_t *ring_offset  # of a channel's line in each kind, while a window needs it
    const char **rows        # of a window
    char *block              # as it was allocated
    char *squares
    char *scale_pow
    char *grad_term
    char *extra              # legacy: what channel 0 adds to a window, or takes from all
    char *slopes


cdef inline WindowTile window_tile(const WindowJob *job, const WindowWorkspace *workspace) noexcept nogil:
    cdef WindowTile w
    memset(&w, 0, sizeof(w))
    w.runs = 1
    w.workspace_stride = workspace.line
    w.rows = workspace.rows
    w.alpha = job.alpha
    w.beta = job.beta
    w.k = job.k
    w.activation = job.activation
    w.slope = job.slope
    w.slopes = workspace.slopes
    return w


cdef inline Py_ssize_t spans_of(const WindowJob *job, const WindowWorkspace *workspace) noexcept nogil:
    return ((job.shape[3] if job.channels_last else job.shape[4]) + workspace.span - 1) // workspace.span


# ---- channels first ----


cdef void set_channel_tile(const WindowJob *job, const WindowWorkspace *workspace, Py_ssize_t channel,
                           const WindowTile *zeroth, WindowTile *w) noexcept nogil:
    """From the tile of channel 0, that of another one."""
    w.x = zeroth.x + channel * job.x.strides[1]
    w.dy = zeroth.dy + channel * job.dy.strides[1]
    w.y = zeroth.y + channel * job.y.strides[1]
    w.squares = workspace.squares + workspace.ring_offset[channel]
    w.scale_pow = workspace.scale_pow + workspace.ring_offset[channel]
    w.grad_term = workspace.grad_term + workspace.ring_offset[channel]
    if job.activation == ACT_SLOPES:
        w.slope = job.slopes[channel]


cdef void add_window_rows(const WindowJob *job, const WindowWorkspace *workspace, char *lines,
                          Py_ssize_t first, Py_ssize_t last, WindowTile *w) noexcept nogil:
    """The lines of the channels from first to last that there are."""
    cdef Py_ssize_t c
    for c in range(max(first, 0), min(last, job.shape[1] - 1) + 1):
        w.rows[w.count] = lines + workspace.ring_offset[c]
        w.count += 1


cdef void set_window_tile(const WindowJob *job, const WindowWorkspace *workspace, Py_ssize_t channel,
                          const WindowTile *zeroth, WindowTile *w) noexcept nogil:
    """The rows of a channel's window, the last of which is not yet squared, and what comes after them."""
    cdef Py_ssize_t last = channel + job.after, channels = job.shape[1]
    set_channel_tile(job, workspace, channel, zeroth, w)
    w.count = 0
    if job.legacy and channel > job.before:  # channel 0 is in every window
        w.rows[0] = workspace.squares
        w.count = 1
    add_window_rows(job, workspace, workspace.squares, channel - job.before, last - 1, w)
    w.newest = NULL
    if last < channels:
        w.newest = zeroth.x + last * job.x.strides[1]
        w.squares = workspace.squares + workspace.ring_offset[last]
    w.x_prefetch = (job.after + 1) * job.x.strides[1] if last + 1 < channels else 0
    w.dy_prefetch = job.dy.strides[1] if channel + 1 < channels else 0
    if workspace.backward:  # its gradient follows
        w.y_prefetch = -job.before * job.y.strides[1] if channel >= job.before else 0
    else:
        w.y_prefetch = job.y.strides[1] if channel + 1 < channels else 0


cdef void channels_first_span(const WindowJob *job, Py_ssize_t item,
                              const WindowWorkspace *workspace) noexcept nogil:
    """One stretch of elements of one sample. As many channels are under way as a window has: each step
    squares one, which completes a window, and that one's `shared` completes a gradient."""
    cdef const LoopTable *loops = LOOPS_BY_DTYPE[job.dtype]
    cdef Py_ssize_t spans = spans_of(job, workspace), at = item % spans * workspace.span, step, c
    cdef Py_ssize_t run = item // spans % job.shape[3], sample = item // spans // job.shape[3]
    cdef Py_ssize_t channels = job.shape[1]
    cdef WindowTile w = window_tile(job, workspace), zeroth
    w.x = job.x.data + sample * job.x.strides[0] + run * job.x.strides[3] + at * loops.size
    w.y = job.y.data + sample * job.y.strides[0] + run * job.y.strides[3] + at * loops.size
    w.dy = job.dy.data + sample * job.dy.strides[0] + run * job.dy.strides[3] + at * loops.size
    w.n = min(workspace.span, job.shape[4] - at)
    w.activation = 1 if job.activation else 0
    zeroth = w
    for c in range(min(job.after, channels)):
        set_channel_tile(job, workspace, c, &zeroth, &w)
        loops.window_squares(&w)
    if not workspace.backward:
        for c in range(channels):
            set_window_tile(job, workspace, c, &zeroth, &w)
            loops.window_apply(&w)
        return
    if job.legacy:
        memset(workspace.extra, 0, workspace.line)
    for step in range(channels + job.before):
        if step < channels:
            set_window_tile(job, workspace, step, &zeroth, &w)
            loops.window_prepare(&w)
            if job.legacy:
                LOOPS_BY_DTYPE[loops.acc_dtype].add(workspace.extra, w.grad_term, workspace.extra, w.n)
        c = step - job.before
        if c >= job.legacy:
            set_channel_tile(job, workspace, c, &zeroth, &w)
            w.count = 0
            add_window_rows(job, workspace, workspace.grad_term, c - job.after, c + job.before, &w)
            loops.window_grad(&w)
    if job.legacy:  # channel 0 is in every window
        set_channel_tile(job, workspace, 0, &zeroth, &w)
        w.rows[0] = workspace.extra
        w.count = 1
        loops.window_grad(&w)


# ---- channels last ----


cdef inline char *position(const Tensor *tensor, const Py_ssize_t *at) noexcept nogil:
    return tensor.data + at[0] * tensor.strides[0] + at[1] * tensor.strides[1] + at[2] * tensor.strides[2] + at[3] * tensor.strides[3]


cdef void shifted_rows(const char *lines, Py_ssize_t count, int acc_size, WindowTile *w) noexcept nogil:
    cdef Py_ssize_t i
    w.count = count
    for i in range(count):
        w.rows[i] = lines + i * acc_size


cdef void channels_last_span(const WindowJob *job, Py_ssize_t item,
                             const WindowWorkspace *workspace) noexcept nogil:
    """Some positions, all their channels."""
    cdef const LoopTable *loops = LOOPS_BY_DTYPE[job.dtype]
    cdef int acc_size = loops.acc_size
    cdef Py_ssize_t channels = job.shape[4], size = job.before + 1 + job.after, spans = spans_of(job,
            workspace), i, c
    cdef Py_ssize_t[4] at
    cdef WindowTile w = window_tile(job, workspace)
    at[3] = item % spans * workspace.span
    at[2] = item // spans % job.shape[2]
    at[1] = item // spans // job.shape[2] % job.shape[1]
    at[0] = item // spans // job.shape[2] // job.shape[1]
    w.x = position(&job.x, at)
    w.y = position(&job.y, at)
    w.dy = position(&job.dy, at)
    w.x_stride = job.x.strides[3]
    w.y_stride = job.y.strides[3]
    w.dy_stride = job.dy.strides[3]
    w.runs = min(workspace.span, job.shape[3] - at[3])
    w.n = channels
    w.squares = workspace.squares
    w.scale_pow = workspace.scale_pow
    w.grad_term = workspace.grad_term
    w.x_prefetch = w.runs * w.x_stride
    w.y_prefetch = w.runs * w.y_stride
    w.dy_prefetch = w.runs * w.dy_stride
    loops.window_squares(&w)
    shifted_rows(w.squares - job.before * acc_size, size, acc_size, &w)
    if job.legacy:  # one more row: channel 0 where the window has left it
        for i in range(w.runs):
            for c in range(job.before + 1, channels):
                memcpy(workspace.extra + i * workspace.line + c * acc_size, w.squares + i * workspace.line,
                       acc_size)
        w.rows[size] = workspace.extra
        w.count += 1
    if not workspace.backward:
        loops.window_apply(&w)
        return
    w.y_prefetch = 0
    loops.window_prepare(&w)
    if job.legacy:  # channel 0 is in every window
        shifted_rows(w.grad_term, channels, acc_size, &w)
        w.n = 1
        loops.window_grad(&w)
        w.n = channels - 1
        w.x += loops.size
        w.y += loops.size
        w.dy += loops.size
        w.scale_pow += acc_size
        w.slopes = workspace.slopes + acc_size
    shifted_rows(w.grad_term + (job.legacy - job.after) * acc_size, size, acc_size, &w)
    loops.window_grad(&w)


# ---- both ----


cdef inline Py_ssize_t whole_lines(Py_ssize_t bytes) noexcept nogil:
    return round_up(bytes, LANES_ALIGN)


cdef inline Py_ssize_t kinds_kept(const WindowWorkspace *workspace, bint legacy) noexcept nogil:
    """Of what is kept: squares, backward also power and shared, and `extra`."""
    return (3 if workspace.backward else 1) + (1 if legacy else 0)


cdef WindowWorkspace window_workspace(const WindowJob *job, bint backward) noexcept nogil:
    """How much is kept at a time."""
    cdef int acc_size = LOOPS_BY_DTYPE[job.dtype].acc_size
    cdef Py_ssize_t size = job.before + 1 + job.after, fit
    cdef WindowWorkspace workspace
    memset(&workspace, 0, sizeof(workspace))
    workspace.backward = backward
    fit = window_bytes() // kinds_kept(&workspace, job.legacy)
    if job.channels_last:  # zeros before a position, and after it: `before` is no less than `after`
        workspace.line = whole_lines(job.before * acc_size) + whole_lines((job.shape[4] + job.before) * acc_size)
        workspace.span = max(1, min(fit // workspace.line, SPAN_MAX))
        workspace.lines = workspace.span
    else:
        workspace.lines = min(size, job.shape[1]) + 1
        workspace.span = max(<Py_ssize_t> SPAN_MULTIPLE,
                             min(fit // (workspace.lines * acc_size) // SPAN_MULTIPLE * SPAN_MULTIPLE,
                             SPAN_MAX))
        workspace.line = workspace.span * acc_size
    return workspace


cdef void workspace_release(WindowWorkspace *workspace) noexcept nogil:
    free(workspace.ring_offset)
    free(workspace.rows)
    free(workspace.block)


cdef int workspace_allocate(const WindowJob *job, WindowWorkspace *workspace) noexcept nogil:
    """Memory for it; zeroed, so that what lies beyond the ends of a position is zero."""
    cdef const LoopTable *loops = LOOPS_BY_DTYPE[job.dtype]
    cdef Py_ssize_t channels = job.shape[4] if job.channels_last else job.shape[1], c
    cdef Py_ssize_t kept = workspace.lines * workspace.line, ends = 0
    if job.channels_last:
        ends = whole_lines(job.before * loops.acc_size)
    workspace.rows = <const char **> malloc((job.before + job.after + channels + 2) * sizeof(char *))
    workspace.block = <char *> calloc(kinds_kept(workspace, job.legacy) * kept + channels * loops.acc_size
                                      + LANES_ALIGN, 1)
    workspace.ring_offset = <Py_ssize_t *> malloc(channels * sizeof(Py_ssize_t))
    if workspace.rows == NULL or workspace.block == NULL or workspace.ring_offset == NULL:
        workspace_release(workspace)
        return -1
    for c in range(channels):  # channel 0 has a line of its own
        workspace.ring_offset[c] = (1 + (c - 1) % (job.before + 1 + job.after) if c else 0) * workspace.line
    workspace.squares = <char *> whole_lines(<Py_ssize_t> workspace.block) + ends
    workspace.extra = workspace.squares + kept
    workspace.scale_pow = workspace.extra + (kept if job.legacy else 0)
    workspace.grad_term = workspace.scale_pow + kept
    workspace.slopes = workspace.squares - ends + kinds_kept(workspace, job.legacy) * kept
    if job.channels_last and job.activation == ACT_SLOPES:
        for c in range(channels):
            set_value(loops, workspace.slopes, c, job.slopes[c])
    return 0


cdef int window_item(const WindowJob *job, Py_ssize_t item, bint backward,
                     WindowWorkspace *workspace) noexcept nogil:
    """One item, in the room of its thread, which is made when it is first needed."""
    if workspace.block == NULL:
        workspace[0] = window_workspace(job, backward)
        if workspace_allocate(job, workspace) < 0:
            workspace.block = NULL
            return -1
    if job.channels_last:
        channels_last_span(job, item, workspace)
    else:
        channels_first_span(job, item, workspace)
    return 0


cdef int window_both(const WindowJob *job, bint backward) noexcept nogil:
    cdef WindowWorkspace workspace = window_workspace(job, backward)
    cdef WindowWorkspace *rooms
    cdef Py_ssize_t items = job.shape[0] * job.shape[3], i
    cdef int failed = 0, thread
    if job.channels_last:
        items = job.shape[0] * job.shape[1] * job.shape[2]
    items *= spans_of(job, &workspace)
    rooms = <WindowWorkspace *> calloc(job.threads, sizeof(WindowWorkspace))
    if rooms == NULL:
        return -1
    if job.threads == 1:
        for i in range(items):
            failed += window_item(job, i, backward, rooms)
    else:
        for i in prange(items, num_threads=job.threads, schedule="guided"):
            failed += window_item(job, i, backward, rooms + threadid())  # summed over the threads
    for thread in range(job.threads):
        if rooms[thread].block != NULL:
            workspace_release(rooms + thread)
    free(rooms)
    return -1 if failed else 0


cdef int window_forward(WindowJob *job) noexcept nogil:
    """y = x * (k + alpha * sum of squares over the window) ** -beta."""
    return window_both(job, False)


cdef int window_backward(WindowJob *job) noexcept nogil:
    """The gradient of the input, in place on dy or x if asked: what is written has been read for the
    last time, but for squares and `shared`, which are kept."""
    return window_both(job, True)

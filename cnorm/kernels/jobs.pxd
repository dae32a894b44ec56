"""What a function asks of the kernels: plain structs, the same for every build.

Sizes: a norm sees its input as (N, C, S): sample, channel, everything spatial. The units and columns
families below name the axes by what they are to the kernel; `_plan.py` maps one on the other.
"""

cdef enum Storage:  # the order of TILES in tiles.h
    FLOAT32 = 0
    FLOAT64 = 1
    FLOAT16 = 2
    BFLOAT16 = 3

cdef struct View:
    # One array under the axes of a job: an address and strides in bytes. The last axis is contiguous.
    char *data
    Py_ssize_t stride[4]

cdef struct Moments:
    # mean + lo is the mean in two doubles; m2 is the sum of squared deviations.
    double count
    double mean
    double lo
    double m2

cdef struct Norm:
    # The rows, segments and columns families. Axes of rows and segments: outer, inner (together: units),
    # segments of a unit, runs of a segment, elements of a run. Of columns: samples, then three axes of rows,
    # then columns; a unit is then a group of columns of one sample.
    int storage
    int threads
    Py_ssize_t shape[5]
    View x
    View y            # OUT: the result, or the gradient of the input
    View dy
    View plus
    bint stream       # set by the kernels: the result is too large for the cache
    Py_ssize_t ahead  # the same: bytes from a unit to the next, where its segments lie apart
    bint add          # forward: x is OUT, x = dy + plus, and then normalised
    bint add_grad     # backward, rows: plus is added to the gradient of the input
    bint centred      # false: root mean square
    bint given        # mean and rstd are IN
    bint by_element   # rows: a weight per element of the unit
    bint by_segment   # segments: a weight per (inner, segment); else one per inner
    int activation    # 0: none, 1: one slope, 2: a slope per channel or element
    double eps
    double slope
    Py_ssize_t group  # columns: how many share their statistics
    double *mean      # per unit: OUT, or IN where given; may be NULL in rows
    double *rstd
    double *m2        # OUT, may be NULL
    double *lo        # with mean, OUT or IN, may be NULL
    const double *weight   # per channel, may be NULL
    const double *bias
    const double *slopes
    const void *row_weight  # per element, of the accumulation type, may be NULL
    const void *row_bias
    const void *row_slopes
    const double *unit_slopes    # per unit, instead of the slopes above; may be NULL
    double *unit_slope_grads     # OUT, per unit, with unit_slopes
    double *sums      # OUT (SUMS_ONLY) or IN (SUMS_GIVEN): sum of g, sum of g * (x - mean), per unit
    int sums_mode     # 0: internal, 1: only compute the sums, 2: the sums (and count) are given
    double count      # with sums_mode 2: elements of the whole unit, over all parts of it elsewhere
    double *grad_weight    # OUT, per channel or element
    double *grad_bias
    double *grad_slope
    void *final_weight     # OUT, rows: the same in the accumulation type; then those in double may be left
    void *final_bias       # as they are; may be NULL

cdef struct Window:
    # The window family. Channels first: axes sample, channel, (one), run, elements, as in segments.
    # Channels last: axes sample, three of rows, channels, as in columns.
    int storage
    int threads
    Py_ssize_t shape[5]
    View x
    View y
    View dy
    bint channels_last
    bint legacy        # CrossMapLRN2d: channel 0 is in every window
    Py_ssize_t before  # channels of a window before the one it is for
    Py_ssize_t after
    double alpha       # divided by the size of a window
    double beta
    double k
    int activation
    double slope
    const double *slopes   # per channel

ctypedef int (*norm_kernel)(Norm *) noexcept nogil
ctypedef int (*window_kernel)(Window *) noexcept nogil
ctypedef void (*widen_kernel)(int storage, const char *values, Py_ssize_t n, void *out) noexcept nogil
ctypedef void (*widen64_kernel)(int storage, const char *values, Py_ssize_t n, double *out) noexcept nogil
ctypedef void (*deviations_kernel)(double *values, Py_ssize_t n, double eps) noexcept nogil
ctypedef void (*narrow_kernel)(int storage, const double *values, Py_ssize_t n, char *out) noexcept nogil

cdef struct Kernels:
    # What one build offers. Each kernel returns 0, or -1 where memory ran out (nothing was written).
    norm_kernel rows_forward
    norm_kernel rows_backward
    norm_kernel segments_moments
    norm_kernel segments_forward
    norm_kernel segments_backward
    norm_kernel columns_moments
    norm_kernel columns_forward
    norm_kernel columns_backward
    window_kernel window_forward
    window_kernel window_backward
    int (*run_norm)(norm_kernel, Norm *) noexcept nogil         # runs one of them
    int (*run_window)(window_kernel, Window *) noexcept nogil
    widen_kernel widen       # parameters to the type that their storage type is computed in,
    widen64_kernel widen64   # to doubles,
    narrow_kernel narrow     # and doubles rounded to a storage type
    deviations_kernel deviations   # variances become 1 / sqrt(variance + eps)

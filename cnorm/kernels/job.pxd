# What the functions ask of the kernels: plain structs, the same for every build.
#
# Every job begins with a JobHead, which is all that whoever runs a kernel looks at; `Kernel` says which job each kernel
# takes.
#
# A norm is described by a Job: the arrays, the statistics, the activation, and the parameters of its family:
# ElementParams (rows) or ChannelParams (segments, columns and crossed), with CrossedParams. What the other family would
# have is zero. IN and OUT say who writes a field's target: the caller (IN) or the kernel (OUT).
#
# Axes of a job's shape, by family (docs/architecture.md says how (N, C, S) maps on them):
#     rows, segments   outer, inner (together: the units), segments of a unit, runs of a segment, elements of a run
#     columns          samples, three axes of rows, columns; a unit is then a group of columns of one sample
#     crossed          as columns, of one sample
#     window           channels first: sample, channel, (one), run, elements; channels last: sample, rows (3), channels

cdef extern from "enums.h" nogil:  # which describes the values
    enum Dtype:
        FLOAT32
        FLOAT64
        FLOAT16
        BFLOAT16
        WIDE_FLOAT32
        WIDE_FLOAT16
        WIDE_BFLOAT16
        WIDE_INT8
        WIDE_UINT8
        WIDE_INT16
        WIDE_UINT16
        WIDE_INT32
        WIDE_UINT32
        WIDE_INT64
        WIDE_UINT64
        DTYPES

    enum Activation:
        ACT_NONE
        ACT_CLIP
        ACT_SLOPE
        ACT_SLOPES

    bint has_slopes(int activation)

cdef extern from "finish.h" nogil:
    enum Norm:
        NORM_NONE
        NORM_2
        NORM_1
        NORM_MAX

    bint has_signs(int norm)

    ctypedef struct Finish:
        double eps
        double rstd_max
        int norm    # Norm, of units that are not centred (backward: not of rows); m2 is what it is made of

cdef enum SumsMode:    # of the two sums per unit that the gradient of the input needs
    SUMS_INTERNAL = 0  # computed and used by the call itself
    SUMS_ONLY = 1      # OUT: computed, and nothing else
    SUMS_GIVEN = 2     # IN: given, with the count of elements they are over

cdef struct Tensor:
    # One array under the axes of a job: address, and strides in bytes. The last axis is contiguous.
    char *data
    Py_ssize_t strides[4]

cdef struct Moments:
    # mean + lo is the mean in two doubles; m2 is the sum of squared deviations.
    double count
    double mean
    double lo
    double m2
    bint largest    # m2 is the largest magnitude, and mean and lo are 0

cdef enum Strategy:
    # What a call does with its threads and caches. schedule.pxd chooses; no result depends on it.
    STRATEGY_ANY = 0       # as a forced strategy: the schedule chooses
    ROW_BATCHES = 1        # units of one tile: many of them in one call of the loops
    UNIT_BY_UNIT = 2       # each unit from its first sum to its last result, while it is in cache
    UNIT_BATCHES = 3       # units that lie side by side: the statistics of some, then all that is applied to them
    TWO_SWEEPS = 4         # few, large units: the sums of all blocks, then all results, both shared by the threads
    GIVEN_IN_ORDER = 5     # statistics are given: segments in the order of memory
    GIVEN_BATCHES = 6      # statistics are given: short segments of many units at once
    PARTIALS_STATIC = 7    # rows backward: each thread takes neighbouring partials and adds them up itself
    PARTIALS_GUIDED = 8    # rows backward: threads take partials one by one
    SAMPLES_PER_THREAD = 9 # columns: each thread takes samples of its own
    COLUMN_BLOCKS = 10     # columns: each column block from its first sum to its last result
    ROW_RANGES = 11        # columns: sums of row ranges and column blocks, a merge, then the results
    WINDOW_SPANS = 12      # window: spans of elements or of positions
    RUNS = 13              # standardize, images: runs in the order of memory

cdef struct Schedule:
    int strategy                   # Strategy
    int threads
    Py_ssize_t items               # pieces of work that the threads share
    Py_ssize_t units_per_batch     # UNIT_BATCHES, GIVEN_BATCHES
    Py_ssize_t rows_per_pass       # ROW_BATCHES: rows of one call of the loops; columns: rows the loops take together
    bint nontemporal               # results are stored past the cache
    bint apart                     # units lie apart: no cache line of the result has two of them
    Py_ssize_t prefetch_bytes      # with it: from an element to the one wanted in cache next, or 0
    Py_ssize_t prefetch_segments   # where segments lie apart: to the one to prefetch, or 0

cdef struct JobHead:
    # What every job begins with: a pointer to a job is a pointer to its head.
    int dtype                  # Dtype of the input
    int threads
    Schedule *schedule_only    # OUT where it is not NULL: the schedule, and nothing else is done

cdef struct ElementParams:
    # The rows family, and columns that are units: parameters of one value per element of a unit. Pointers may be NULL
    # but for the gradients.
    Tensor addend[2]         # forward with fuse_add: x = addend[0] + addend[1]; backward: addend[0] is added to y
    bint fuse_add            # forward: x is OUT, the sum of the addends, and then normalized
    bint add_to_grad         # backward: add addend[0] to the gradient of the input
    const void *weight       # of the accumulation type; (param_sets, elements)
    const void *bias
    const void *slopes       # of one set
    Py_ssize_t param_sets    # 0, 1: all units share weight and bias; else unit u has set u // units_per_set % param_sets
    Py_ssize_t units_per_set
    const Py_ssize_t *rows       # rows, backward, and columns: which rows of the arrays the job's are; NULL: all of them
    const double *unit_slopes    # a slope per row instead of the slopes above
    double *unit_slope_grads     # OUT, per row, with unit_slopes
    double *grad_weight          # OUT, per element. With sets: for each run of units_per_set units, (3, elements)
    double *grad_bias
    double *grad_slope
    void *final_weight           # OUT: grad_weight in the accumulation type, (runs, elements); grad_weight is then
    void *final_bias             # undefined

cdef struct ChannelParams:
    # The segments and columns families: parameters of one value per channel. weight, bias and slopes may be NULL.
    bint by_segment                  # segments: a weight for each segment of a unit; else one per unit
    Py_ssize_t channels_per_group    # columns: how many share their statistics
    Py_ssize_t sample_channels       # from an outer index's (columns: a sample's) parameters to the next; 0: all share
    Py_ssize_t inner_channels        # segments: from an inner index's to the next
    Py_ssize_t segment_channels      # segments, by_segment: from a segment's to the next
    bint of_batch                    # columns: samples share the statistics, which are IN, and the slopes, and have
                                     # weight and bias of their own, of the accumulation type or (wide_sets) double:
    const void *set_weight           # with these bytes from one sample's to the next; may be NULL
    const void *set_bias
    Py_ssize_t weight_step
    Py_ssize_t bias_step
    bint wide_sets
    void *final_weight               # of_batch, OUT: grad_weight (samples, columns) of the accumulation type; or NULL
    void *final_bias
    bint shift_overflows             # columns of float64 sums: where squares overflow, sums about the first element
    const double *weight
    const double *bias
    const double *slopes
    double *sums             # sum of g and sum of g * (x - mean), per unit: OUT (SUMS_ONLY) or IN (SUMS_GIVEN)
    int sums_mode            # SumsMode
    double count             # with SUMS_GIVEN: elements of the whole unit, over all its parts elsewhere
    double *grad_weight      # OUT, per channel
    double *grad_bias
    double *grad_slope

cdef struct CrossedParams:
    # Tables with statistics of rows and of columns. Those of columns are the job's mean, lo and, in m2, the unbiased
    # variance: OUT of forward unless stats_given, IN of backward.
    double share[2]          # of the row's mean and the column's
    double var_share[2]      # of their variances
    double *row_mean         # per row: OUT of forward, IN of backward
    double *row_lo
    double *row_var          # unbiased
    double *grad_shares      # OUT[2]: the gradient of share[0] less that of share[1], and that of var_share

cdef struct Job:
    JobHead head
    Py_ssize_t shape[5]
    Tensor x
    Tensor y             # OUT: the result, or the gradient of the input
    Tensor dy
    bint centred         # False: root mean square
    bint stats_given     # mean and rstd are IN
    Py_ssize_t call_bytes    # of the input of the call that the job is a piece of, or 0: of speed alone
    bint read_before     # these were taken of x just before, so that some of it is in cache: of speed alone
    int activation       # Activation
    double slope
    double low           # with ACT_CLIP: the bounds, NaN where a side is open
    double high
    Finish finish        # how moments become rstd
    double *mean         # per unit: OUT, or IN where given; may be NULL in rows
    double *rstd
    double *m2           # OUT, may be NULL
    double *lo           # with mean, OUT or IN, may be NULL
    ElementParams elements      # rows
    ChannelParams channels      # segments, columns and crossed
    CrossedParams crossed

cdef struct WindowJob:
    JobHead head
    Py_ssize_t shape[5]
    Tensor x
    Tensor y
    Tensor dy
    bint channels_last
    bint legacy        # CrossMapLRN2d: channel 0 is in every window
    Py_ssize_t before  # channels of a window before the one it is for
    Py_ssize_t after
    double alpha       # divided by the size of a window
    double beta
    double k
    int activation
    double slope
    double low             # as in Job
    double high
    const double *slopes   # per channel

cdef enum:
    JOB_AXES = 64      # of an array; _plan.pxd has the same bound

cdef struct Axes:
    # Axes of some arrays, outermost first: sizes, and strides in bytes; of `unit` in units.
    int count
    Py_ssize_t shape[JOB_AXES]
    Py_ssize_t x[JOB_AXES]
    Py_ssize_t y[JOB_AXES]
    Py_ssize_t mask[JOB_AXES]
    Py_ssize_t unit[JOB_AXES]

cdef struct MomentsJob:
    # Moments of any array, in double. Units are numbered along the kept axes.
    JobHead head           # with a Dtype that is read as double
    Axes kept              # columns: the last is contiguous
    Axes reduced           # the elements of a unit, in their order
    const char *x
    const char *mask       # bytes, where not 0 an element counts; NULL: everywhere
    bint omit_nan          # NaN does not count
    Py_ssize_t units
    Py_ssize_t elements    # of a unit
    double *count          # per unit, OUT; mean, lo and m2 of a unit without elements are 0
    double *mean
    double *lo
    double *m2

cdef struct StandardizeJob:
    # y = (x - mean - lo) * scale, or x * scale + mean + lo, of any array, in double; with statistics of x itself where
    # `measure` is not NULL.
    JobHead head           # with a Dtype that is read as double
    int out_dtype          # one of the first four
    Axes axes              # of x, y and mask; `unit` leads to the statistics, and is 0 or 1 for the last axis
    const char *x
    char *y
    const char *mask       # where 0, y keeps its value
    bint read_before       # the call has read x from end to end
    bint inverse
    bint clips
    double low
    double high
    const double *mean     # per unit
    const double *lo
    const double *scale
    MomentsJob *measure    # the moments of x, whose results are `mean` and `lo`, and from which `scale` follows; or NULL
    bint by_columns        # whether they are those of columns
    int outer_axis         # of `axes`: the outermost kept axis of these moments, or -1
    double ddof
    double eps
    Py_ssize_t call_bytes  # of a part of a call: read and written by all of it; else 0

cdef struct ImageJob:
    # y = (x / max_value - mean) / std per channel.
    JobHead head           # with a Dtype that is read as double
    int out_dtype          # one of the first four
    Py_ssize_t shape[4]    # images, channels, rows, pixels of a row
    const char *x
    Py_ssize_t x_strides[4]
    char *y
    Py_ssize_t y_strides[4]
    const double *mean     # per channel
    const double *std
    double max_value
    const char *table      # dtypes of 8 bits: the results of all 256 values, per channel; or NULL

ctypedef int Kernel   # one of these, by what job it takes:

cdef enum:
    ROWS_FORWARD = 0              # a Job
    ROWS_BACKWARD
    SEGMENTS_MOMENTS
    SEGMENTS_FORWARD
    SEGMENTS_BACKWARD
    COLUMNS_MOMENTS
    COLUMNS_FORWARD
    COLUMNS_BACKWARD
    CROSSED_FORWARD
    CROSSED_BACKWARD
    WINDOW_FORWARD                # a WindowJob
    WINDOW_BACKWARD
    SEQUENCES_MOMENTS             # a MomentsJob
    SELECTED_COLUMNS_MOMENTS
    STANDARDIZE_FORWARD           # a StandardizeJob
    IMAGE_FORWARD                 # an ImageJob
    MASKED                        # a MaskedJob
    KERNELS

cdef struct MaskedAxis:
    Py_ssize_t size
    Py_ssize_t stride[4]   # bytes: x, y, dy or the first addend, the second addend
    Py_ssize_t mask        # bytes

cdef enum Items:           # what a mask selects as one: along which axis of a piece's job they lie
    ITEM_UNITS = 1         # rows (rows)
    ITEM_ROWS = 3          # rows (columns)
    ITEM_ELEMENTS = 4      # elements (rows, segments)

cdef struct MaskedJob:
    # A norm of the elements that a mask selects. A piece is what shares a mask: each becomes a job of its own, with as
    # many items as are selected.
    JobHead head
    Job job                # of any piece: dtype, activation, strides of axes but that of the items; parameters and
                           # statistics of the first unit
    Kernel kernel          # of the pieces
    Kernel moments         # with parts, forward: the moments of a part alone
    Items items
    bint backward
    bint reads_add         # the third array is the first addend: of a sum that is normalized
    bint zero              # where the mask is False, y becomes 0; else y keeps its value
    bint zero_sum          # as `zero`, of x, where it is such a sum
    char *array[4]         # as in MaskedAxis; NULL where there is none
    const char *mask
    bint gathers                # the mask of a piece is read with strides; else it is contiguous along the inner axes
    Py_ssize_t item_bytes
    Py_ssize_t element_bytes    # of the accumulation type
    int outers                  # axes of pieces, outermost first
    MaskedAxis outer[JOB_AXES]
    MaskedAxis unit             # units that share a mask
    Py_ssize_t units_per_piece
    MaskedAxis part             # parts of a unit that have masks of their own: moments and sums merge over them
    bint merges
    MaskedAxis segment          # parts of a unit that share a mask
    int inners                  # axes of items, outermost first
    MaskedAxis inner[JOB_AXES]
    Py_ssize_t length           # items along them, selected or not
    Py_ssize_t items_per_piece
    Py_ssize_t stats_per_piece  # ITEM_ROWS: units of a piece
    Py_ssize_t channels         # of a unit, without parts; 0: parameters per element
    Py_ssize_t groups           # units of a sample: unit u has the parameters of unit u % groups
    Py_ssize_t part_channels    # groups 0: channels of all units
    bint per_sample             # weight and bias have rows of groups * channels values, one for each sample
    Py_ssize_t chunks           # parameters per element: sums of pieces that one thread adds up
    Py_ssize_t pieces_per_chunk
    Py_ssize_t pieces_per_set   # pieces that share weight and bias; 0: all
    Py_ssize_t sets
    double *sums                # OUT: (chunks, 3, length), zero at first

ctypedef void (*widen_kernel)(int dtype, const char *values, Py_ssize_t n, void *out) noexcept nogil
ctypedef void (*widen64_kernel)(int dtype, const char *values, Py_ssize_t n, double *out) noexcept nogil
ctypedef void (*rstds_kernel)(double *values, Py_ssize_t n, double eps) noexcept nogil
ctypedef void (*narrow_kernel)(int dtype, const double *values, Py_ssize_t n, char *out) noexcept nogil

cdef struct Kernels:
    # What one build offers.
    int (*run)(Kernel kernel, JobHead *job) noexcept nogil   # 0, or -1 where memory ran out: then nothing was written
    widen_kernel widen       # parameters to the accumulation type of their dtype
    widen64_kernel widen64   # parameters to float64
    narrow_kernel narrow     # float64 rounded to a dtype
    rstds_kernel rstds       # variances become 1 / sqrt(variance + eps), in place

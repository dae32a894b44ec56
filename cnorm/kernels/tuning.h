/* Every constant of the kernels, in two lists.
 *
 * BITS: block borders, reduction trees, the choice of formula. A change of any of them changes results; it needs a
 * line in CHANGELOG.md and new digests (tests/digests.py --write).
 *
 * TUNING: speed alone. No result depends on them. Sizes that follow from the machine's caches are not here: they
 * are computed in schedule.pxd from the sizes in machine.h.
 *
 * "Measured on" names the machine a value was found on; docs/performance.md describes the measurements.
 * tuning.pxd declares the names for Cython.
 */
#ifndef CNORM_TUNING_H
#define CNORM_TUNING_H

/* ======================================== BITS ======================================== */

/* ---- moments and sums over units (rows and segments) ---- */
enum {
    TILE = 2048,             /* elements of a unit that are summed at a time: 16 KiB of doubles, they stay in L1 */
    BLOCK_TILES = 8,         /* tiles whose sums are added in double before blocks merge: a merge costs a division */
    SHORT_SEGMENT = 32,      /* elements: shorter segments are packed before they are summed, else partial vectors take
                                most of the time */
    CASCADE = 256,           /* elements after which accumulators are added to a running sum: an outlier then meets few
                                others; a multiple of two vectors */
    PROBE_VECTORS = 4,       /* vectors (64 bytes of accumulators) at a block's head that decide whether its sums need a
                                shift: enough for a mean, few enough to be read twice */
    TREE_LEVELS = 48,        /* of a reduction tree: 2**48 blocks are more than memory holds */
};

/* Mean square below which squares of floats have lost bits to underflow: the sums are computed again in double. */
#define TINY_SQUARE 1e-30

/* rstd**2 * eps = eps / (variance + eps) from which on a unit counts as constant: its variance is below eps / 99, and
 * the deviations of a really constant unit are rounding errors of this size. The mean is then always subtracted. */
#define CONSTANT_UNIT 0.99

/* ---- gradients of rows' parameters ---- */
enum {
    ROW_BLOCK_ROWS = 64,           /* rows summed in the accumulation type before their sums are added to a float64
                                      partial sum, at most: more would cost accuracy of float32 sums */
    ROW_BLOCK_MIN_ROWS = 16,       /* rows of a block, at least */
    ROW_BLOCK_BYTES = 1 << 17,     /* of a block's input, approximately: it stays in L2 */
    ROW_PARTIALS_MAX = 16,         /* float64 partial sums per parameter: enough to share among threads */
    ROW_PARTIALS_ELEMENTS = 1 << 17, /* elements of all partials together, at most: 3 MiB */
};

/* ---- columns ---- */
enum {
    MIN_COLUMNS = 32,          /* fewer columns leave lanes idle: consecutive rows are then packed into one */
    PACKED_COLUMNS_MAX = 64,   /* columns that packed rows make, at most */
    COLUMN_BLOCK_ROWS = 64,    /* rows summed in the accumulation type before their sums are added in float64 */
    ROW_RANGES_MAX = 64,       /* row ranges of a sample, at most: each has partial sums of every column */
    ROW_RANGE_ROWS = 512,      /* rows of a range, while there are fewer than ROW_RANGES_MAX: a range costs a merge */
    ROW_RANGE_MULTIPLE = 16,   /* rows of a range are a multiple of this */
    PROBE_ROWS = 16,           /* rows at a range's head that decide whether a column's sums need a shift */
    ROW_SUM_COLUMNS = 512,     /* columns of a row whose gradients of the row's parameters add up in the accumulation
                                  type: a multiple of COLUMN_BLOCK_MULTIPLE */
};

/* ---- tables with statistics of rows and of columns ---- */
enum {
    CROSSED_ROWS_MAX = 64,      /* rows of a block: sums down its columns are taken in the accumulation type before they
                                   are added in float64 */
    CROSSED_COLUMNS_MAX = 512,  /* columns whose terms of a row's sums are added up in the accumulation type: the sums
                                   down the columns stay in L1 */
    N_CROSSED_SUMS = 5,         /* sums of a column: see crossed_grad_sums */
    CROSSED_EXPONENT_MAX = 100, /* of the power of two that values are scaled by: gradients of up to 2**27 overflow no
                                   float; of float64 five times as much */
};

/* ---- masks ---- */
enum {
    MASKED_PIECE_BYTES = 1 << 18, /* of the units that share a mask and are one job, approximately: with their results they
                                     stay in L2. Gradients of parameters add up piece by piece */
    MASKED_ROW_MIN = 1 << 9,      /* bytes of a row of columns from which on rows are taken where they are */
    MASKED_CHUNKS = 64,           /* float64 sums of the gradients of a parameter, at most */
    MASKED_CHUNK_PIECES = 4,      /* pieces of a chunk, at least */
};

/* ======================================= TUNING ======================================= */

/* ---- all kernels ---- */
enum {
    GIL_RELEASE_MIN_BYTES = 1 << 14, /* of input: a shorter call ends before another Python thread would start */
    PARALLEL_MIN_BYTES = 1 << 17,    /* of input: entering a parallel region costs about 2 us (two cores, Zen 5) */
    STACK_DOUBLES = 1024,            /* workspace that a kernel takes from its stack; more is allocated */
    CHUNKS_PER_THREAD = 8,           /* a guided loop hands out at least 1/8 of a thread's fair share at a time */
    SWEEP_UNITS_PER_THREAD = 4,      /* fewer units per thread, and unevenly many: two sweeps over blocks instead */
    PEEL_MIN_VECTORS = 8,            /* vectors (64 bytes of accumulators) of a run from which on its first elements are
                                        peeled, so that the other stores touch one cache line each: a store to two takes
                                        up to twice as long */
    PAGE_BYTES = 4096,               /* rows whole pages apart meet in one set of L1 (set conflict) */
};

/* ---- rows and segments ---- */
enum {
    NONTEMPORAL_ROW_MIN_BYTES = 1 << 12, /* of a row with non-temporal stores though it begins within a cache line: the
                                            lines it shares with its neighbours are written twice */
    NONTEMPORAL_RUN_MIN_LINES = 16,  /* cache lines of a run with non-temporal stores: its first and last line are
                                        stored in part, with plain stores, and are then at most an eighth of it */
    NONTEMPORAL_APART_MIN_LINES = 6, /* the same, where no other run has a part of these lines */
    APART_MIN_BYTES = 1 << 8,        /* of a gap between units, from which on hardware prefetchers may not pass over it: on
                                        Zen 4 they did with 248 bytes, and not with 448 */
    ROW_PASS_APART = 8,              /* rows of a pass from memory, with such gaps, at least: the next pass is prefetched
                                        by the loops alone, and takes as long as memory answers */
    PREFETCH_SEGMENT_MIN = 1 << 9,   /* bytes of the segments that the loops prefetch, where segments are not */
    PREFETCH_SEGMENT_MAX = 1 << 15,  /* contiguous: hardware prefetchers do not follow from one to the next */
    PREFETCH_DISTANCE = 1 << 12,     /* bytes, in whole segments */
    ALIGN_MIN_ROWS = 16,             /* rows from which on weight and bias are copied to aligned addresses, where no
                                        vector load touches two cache lines, */
    ALIGN_MIN_ELEMENTS = 1 << 13,    /* elements of all these rows, */
    ALIGN_MIN_ELEMENTS_THREADED = 1 << 20, /* and elements where other threads read what one thread copied */
    ROW_BATCH_MAX = 64,              /* whole rows of one call of the loops, at most */
    ROW_PASS_MAX_LONG = 16,          /* rows of a pass, of long rows */
    ROW_PASS_MAX_HALF = 32,          /* the same, of half types */
    ROW_PASS_SHORT_BYTES = 1 << 13,  /* bytes of short rows of a pass, at most */
    BATCH_UNITS = 32,                /* units of a batch, at most: 256 bytes per coefficient */
    SHORT_SEGMENT_BYTES = 1 << 11,   /* of a segment with its own weight: several segments share a call of the loops */
    BATCH_MIN_CALL_BYTES = 1 << 20,  /* that a call reads and writes: the units of smaller calls are in cache anyhow */
    BATCH_GIVEN_SEGMENT_MAX = 1 << 12, /* bytes of a segment, with statistics given */
    BATCH_BYTES_FROM_MEMORY = 1 << 12, /* read for a batch from memory: reads and writes alternate within a page */
    BATCH_MIN_UNITS = 4,             /* units of a batch of single segments, at least */
    STACK_PARTIALS = 256,            /* partial sums of a unit that are kept on the stack */
};

/* ---- rows, backward ---- */
enum {
    GRAD_BLOCK_ROWS = ROW_BLOCK_ROWS, /* rows whose addresses one call of the loops takes */
    PREFETCH_WRITE_ROW_MAX = 1 << 10, /* bytes of a row whose result's lines are prefetched before they are written */
    PREFETCH_READ_ROW_MAX = 1 << 9,   /* bytes of a row prefetched while the block before it is written */
    ELEMENT_RANGE = 1024,             /* elements of its rows that a thread takes where partial sums are few */
    STATIC_ROWS_MAX = 512,            /* rows per partial sum up to which threads take fixed shares of them */
    PARTIALS_CHUNK = 128,             /* elements of all partial sums reduced at a time: they stay in L1 */
    PARTIAL_STRIDE_MULTIPLE = 512,    /* doubles, a page: partial sums begin some pages and PARTIALS_CHUNK apart,
                                         so that few share a set of L1 (set conflict) */
    PARALLEL_TOTALS_MIN = 1 << 14,    /* elements of partial sums from which on threads share their reduction */
};

/* ---- columns ---- */
enum {
    COEFFICIENT_CHUNK = 256,       /* channels whose coefficients are prepared at a time, on the stack */
    COLUMN_BLOCK_DOUBLES = 1 << 10, /* columns of a column block in float64, at most; of float32 twice as many */
    COLUMN_BLOCK_MULTIPLE = 64,    /* columns of a block are a multiple of this */
    COLUMN_BLOCK_MIN = 128,        /* columns of a block where row ranges are fewer than threads, at least */
    DOUBLE_COLUMNS = 16,           /* columns summed again in double at a time */
    COLUMN_ROWS_PER_PASS = 8,      /* rows of a pass of the loops: coefficients are loaded once for all of them */
    LANE_MULTIPLE = 16,            /* elements of any dtype that make whole vectors */
    PEEL_MIN_BYTES = 1 << 12,      /* of a contiguous run from which on its first elements are peeled */
    PEEL_MAX_ELEMENTS = 32,        /* peeled before a cache line */
    COLUMN_PREFETCH_BYTES = 1 << 11, /* prefetch distance of the column loops */
    WIDE_PREFETCH_BYTES = 1 << 12, /* the same, of loops that convert to double and take WIDE_ROWS_PER_PASS rows or more */
    WIDE_ROWS_PER_PASS = 4,        /* at a time: sums in double are loaded and stored for every pass */
    WIDE_ROWS = 8,                 /* rows and columns that are converted to double at a time: 16 KiB, */
    WIDE_COLUMNS = 256,            /* which stay in L1 until they are summed */
};

/* ---- moments in double ---- */
enum {
    MOMENT_ROWS = 16,              /* short rows of one call of the loops, at most: what is done once a row is done for
                                      them side by side */
    MOMENT_ROW_MAX = 512,          /* elements of such a row, at most: beside longer ones a call of the loops is short */
};

/* ---- standardize ---- */
enum {
    STANDARDIZE_CHUNK = 512,       /* elements whose coefficients are spread out, 12 KiB, or that are converted to double
                                      before they are changed, 4 KiB */
    STANDARDIZE_SHORT_RUN = 128,   /* elements of a run below which coefficients are spread out, and runs joined */
    STANDARDIZE_ITEM = 1 << 14,    /* elements of a piece of work, approximately */
    CHANGE_PEEL_MIN = 128,         /* elements of a run from which on its stores begin at a cache line */
};

/* ---- images ---- */
enum {
    IMAGE_TABLE_MIN_PIXELS = 1024, /* from so many on, the results of 8 bits come from a table: it costs 256 divisions a
                                      channel, about as much as 512 pixels that are computed */
};

/* ---- window ---- */
enum {
    SPAN_MAX = 1024,               /* elements of a channel, or positions, of one span */
    SPAN_MULTIPLE = 64,            /* elements of a span are a multiple of this: whole cache lines */
};

#endif

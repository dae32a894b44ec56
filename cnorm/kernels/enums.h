/* Enums that the C loops and Cython share; job.pxd declares them for Cython. */
#ifndef CNORM_ENUMS_H
#define CNORM_ENUMS_H

/* Storage types: the index of LOOPS_BY_DTYPE in loops/table.h. Those from WIDE_FLOAT32 on are read as double, and have
 * the loops of moments alone (loops/wide.h); float64 is read as it is. A bool is a WIDE_UINT8. */
enum Dtype {
    FLOAT32, FLOAT64, FLOAT16, BFLOAT16,
    WIDE_FLOAT32, WIDE_FLOAT16, WIDE_BFLOAT16, WIDE_INT8, WIDE_UINT8, WIDE_INT16, WIDE_UINT16, WIDE_INT32, WIDE_UINT32,
    WIDE_INT64, WIDE_UINT64,
    DTYPES
};

/* The activation after the normalization: none; z within two bounds; z where z > 0, else slope * z, with one slope, or
 * with a slope per channel or per element. 0 means none everywhere, so `if (activation)` reads as "with an activation".
 */
enum Activation { ACT_NONE, ACT_CLIP, ACT_SLOPE, ACT_SLOPES };

/* Whether an activation has slopes, whose gradients backward sums. */
static inline int has_slopes(int activation) { return activation >= ACT_SLOPE; }

#endif

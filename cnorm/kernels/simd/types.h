/* Register width, storage types and the types of vectors.
 *
 * A *vector* is 64 bytes of accumulators: 16 floats (f32l) or 8 doubles (f64l), on every processor. It is held in as
 * many *registers* as fill it: one on AVX-512, two on AVX2, four on SSE and NEON. A register of floats is an f32v, one
 * of doubles an f64v. Storage types are f32, f64, f16 and bf16; f16 and bf16 are computed in float.
 */
#ifndef CNORM_SIMD_TYPES_H
#define CNORM_SIMD_TYPES_H

#include <stddef.h>
#include <stdint.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__SANITIZE_ADDRESS__) /* its check of every load, inlined everywhere, would take minutes to compile */
#define INLINE static inline
#else
#define INLINE static inline __attribute__((always_inline))
#endif

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define REGISTER_BYTES 64
#elif defined(__AVX2__)
#define REGISTER_BYTES 32
#else
#define REGISTER_BYTES 16
#endif
#define REGISTERS_PER_VECTOR (64 / REGISTER_BYTES)
/* Bytes of storage type S that one register of accumulation type A narrows to: what one store writes. */
#define STORE_BYTES(S, A) (REGISTER_BYTES * sizeof(S) / sizeof(A))
#define FOR_REGISTERS for (int k = 0; k < REGISTERS_PER_VECTOR; ++k)

typedef struct { uint16_t bits; } f16;
typedef struct { uint16_t bits; } bf16;
typedef float f32;
typedef double f64;

enum { f32_lanes = 16, f64_lanes = 8 };

/* How many vectors or rows the loops hold in registers at a time: more of them than the registers hold, or than a set
 * of L1 has lines for, cost more than they save. No result depends on these. */
#define VECTORS_PER_COLUMN_BLOCK (REGISTER_BYTES == 64 ? 4 : REGISTER_BYTES == 32 ? 2 : 1)
enum {
    ROWS_UNROLLED = REGISTER_BYTES == 64 ? 4 : REGISTER_BYTES == 32 ? 2 : 1, /* rows, forward */
    GRAD_ROWS_UNROLLED = REGISTER_BYTES >= 32 ? 2 : 1,                       /* rows, backward */
    GRAD_ROW_PAIRS = REGISTERS_PER_VECTOR == 1 /* whether rows backward take two vectors of a row at a time */
};

#endif

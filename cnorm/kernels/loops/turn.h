/* Items of several columns, which lie side by side, moved so that those of each column do (a transpose), and back.
 *
 * Elements of any dtype are moved as bytes, and so are masks: tiles of as many items as columns, whose rows are vectors of
 * 16 bytes. Rows r and r + L/2 of a tile are interleaved, log2(L) times; then row and column are exchanged.
 */
#ifndef CNORM_TURN_H
#define CNORM_TURN_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "loops/select.h"

#ifdef __clang__
#define SHUFFLE(V, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(V, a, b, ...) __builtin_shuffle(a, b, (V){__VA_ARGS__})
#endif
#define LOWER_2 0, 2
#define UPPER_2 1, 3
#define LOWER_4 0, 4, 1, 5
#define UPPER_4 2, 6, 3, 7
#define LOWER_8 0, 8, 1, 9, 2, 10, 3, 11
#define UPPER_8 4, 12, 5, 13, 6, 14, 7, 15
#define LOWER_16 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define UPPER_16 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31

/* turn_N, of elements of N bits, L of which are a vector: to[column][item] = x[item][column], each row of `to` of
 * to_stride bytes. */
#define TURN(BITS, L)                                                                               \
    typedef uint##BITS##_t __attribute__((vector_size(16))) turned##BITS;                           \
    typedef uint##BITS##_t __attribute__((may_alias)) element##BITS;                                \
    INLINE void turn_tile_##BITS(const char *x, ptrdiff_t stride, char *to, ptrdiff_t to_stride) {  \
        turned##BITS a[L], b[L];                                                                    \
        _Pragma("GCC unroll 16") for (int r = 0; r < L; ++r) memcpy(&a[r], x + r * stride, 16);     \
        _Pragma("GCC unroll 4") for (int done = 1; done < L; done *= 2) {                           \
            _Pragma("GCC unroll 8") for (int r = 0; r < L / 2; ++r) {                               \
                b[2 * r] = SHUFFLE(turned##BITS, a[r], a[r + L / 2], LOWER_##L);                    \
                b[2 * r + 1] = SHUFFLE(turned##BITS, a[r], a[r + L / 2], UPPER_##L);                \
            }                                                                                       \
            _Pragma("GCC unroll 16") for (int r = 0; r < L; ++r) a[r] = b[r];                       \
        }                                                                                           \
        _Pragma("GCC unroll 16") for (int r = 0; r < L; ++r) memcpy(to + r * to_stride, &a[r], 16); \
    }                                                                                               \
    static void turn_##BITS(const char *x, ptrdiff_t stride, ptrdiff_t n, ptrdiff_t columns, char *to, \
                            ptrdiff_t to_stride) {                                                  \
        for (ptrdiff_t i = 0; i < n; i += L)                                                        \
            for (ptrdiff_t k = 0; k < columns; k += L) {                                            \
                const char *const from = x + i * stride + k * (BITS / 8);                           \
                char *const at = to + k * to_stride + i * (BITS / 8);                               \
                if (i + L <= n && k + L <= columns) {                                               \
                    turn_tile_##BITS(from, stride, at, to_stride);                                  \
                    continue;                                                                       \
                }                                                                                   \
                for (ptrdiff_t r = 0; r < L && i + r < n; ++r)                                      \
                    for (ptrdiff_t c = 0; c < L && k + c < columns; ++c)                            \
                        ((element##BITS *)(at + c * to_stride))[r] = ((const element##BITS *)(from + r * stride))[c]; \
            }                                                                                       \
    }
TURN(8, 16)
TURN(16, 8)
TURN(32, 4)
TURN(64, 2)
#undef TURN

/* Some items of some columns, of elements of `size` bytes. */
INLINE void turn_block(ptrdiff_t size, const char *x, ptrdiff_t stride, ptrdiff_t n, ptrdiff_t columns, char *to,
                       ptrdiff_t to_stride) {
    if (size == 4) turn_32(x, stride, n, columns, to, to_stride);
    else if (size == 2) turn_16(x, stride, n, columns, to, to_stride);
    else if (size == 1) turn_8(x, stride, n, columns, to, to_stride);
    else turn_64(x, stride, n, columns, to, to_stride);
}

enum { TURN_ITEMS = 16, TURN_AHEAD = 4 * TURN_ITEMS }; /* prefetched, as items lie in pages of their own */

/* n items of `columns` columns, `stride` bytes apart, to rows of row_stride bytes, one for each column; or back. */
static void turn_items(ptrdiff_t size, char *items, ptrdiff_t stride, ptrdiff_t n, ptrdiff_t columns, char *rows,
                       ptrdiff_t row_stride, int back) {
    for (ptrdiff_t first = 0; first < n; first += TURN_ITEMS) {
        const ptrdiff_t count = n - first < TURN_ITEMS ? n - first : TURN_ITEMS;
        char *const at = items + first * stride, *const to = rows + first * size;
        for (ptrdiff_t i = TURN_AHEAD; i < TURN_AHEAD + count; ++i)
            if (back) prefetch_write(at + i * stride, columns * size);
            else prefetch_read(at + i * stride, columns * size);
        if (back) turn_block(size, to, row_stride, columns, count, at, stride);
        else turn_block(size, at, stride, count, columns, to, row_stride);
    }
}

#undef SHUFFLE
#endif

/* Selected elements of any dtype, as bytes: where a mask has them, move them together, put them back.
 *
 * An item is what is selected or not as one: an element (2, 4 or 8 bytes), a row of a table (any number of bytes).
 * Items lie `stride` bytes apart. Masks are bytes, 0 or 1. Eight of them are looked at together: all of the items count, or
 * none does, in most masks, which leave out paddings and backgrounds. The rest goes without branches.
 */
#ifndef CNORM_SELECT_H
#define CNORM_SELECT_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "simd/lanes.h"

/* Items of any type are moved as these. */
typedef uint16_t __attribute__((may_alias)) item16;
typedef uint32_t __attribute__((may_alias)) item32;
typedef uint64_t __attribute__((may_alias)) item64;

enum { SELECT_SLACK = 64 };  /* bytes after packed items that are written and read: a vector */

#define EIGHT_TRUE 0x0101010101010101u

INLINE uint64_t eight_of(const char *mask) {
    uint64_t word;
    memcpy(&word, mask, 8);
    return word;
}

/* How many of n items are selected; the first of them, and whether they lie side by side. */
static ptrdiff_t find_selected(const char *mask, ptrdiff_t n, ptrdiff_t *first, int *one_run) {
    const char *const begin = memchr(mask, 1, n), *const end = mask + n;
    *one_run = 0;
    *first = n;
    if (!begin) return 0;
    *first = begin - mask;
    const char *at = memchr(begin, 0, end - begin);
    if (!at || !memchr(at, 1, end - at)) {
        *one_run = 1;
        return (at ? at : end) - begin;
    }
    ptrdiff_t count = at - begin;
    while (at < end) { /* bytes add up without a carry for 31 words */
        uint64_t sum = 0;
        const char *const stop = end - at > 8 * 31 ? at + 8 * 31 : at + (end - at) / 8 * 8;
        if (stop == at) {
            for (; at < end; ++at) count += *at;
            break;
        }
        for (; at < stop; at += 8) sum += eight_of(at);
        for (int k = 0; k < 8; ++k) count += (sum >> (8 * k)) & 0xff;
    }
    return count;
}

/* pack_N and unpack_N move items of N bits. Where a processor has AVX-512, a vector of items is compressed or expanded
 * in a register: done by a store it takes ten times as long on some processors. 16-bit items go as 32-bit ones. */
#if defined __AVX512BW__ && defined __AVX512VL__
#include <immintrin.h>

INLINE __mmask16 selection_of(const char *mask, int lanes) {
    const __m128i bytes = lanes == 16 ? _mm_loadu_si128((const __m128i *)mask) : _mm_loadl_epi64((const __m128i *)mask);
    return _mm_test_epi8_mask(bytes, bytes);
}

#define LOAD16(at) _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(at)))
#define LOAD32(at) _mm512_loadu_si512(at)
#define LOAD64(at) _mm512_loadu_si512(at)
#define STORE16(at, v) _mm256_storeu_si256((__m256i *)(at), _mm512_cvtepi32_epi16(v))
#define STORE32(at, v) _mm512_storeu_si512(at, v)
#define STORE64(at, v) _mm512_storeu_si512(at, v)
#define STORE_SELECTED16(at, k, v) _mm256_mask_storeu_epi16(at, k, _mm512_cvtepi32_epi16(v))
#define STORE_SELECTED32(at, k, v) _mm512_mask_storeu_epi32(at, k, v)
#define STORE_SELECTED64(at, k, v) _mm512_mask_storeu_epi64(at, k, v)
#define STREAM16(at, v) _mm256_stream_si256((__m256i *)(at), _mm512_cvtepi32_epi16(v))
#define STREAM32(at, v) _mm512_stream_si512((__m512i *)(at), v)
#define STREAM64(at, v) _mm512_stream_si512((__m512i *)(at), v)
#define COMPRESS16 _mm512_maskz_compress_epi32
#define COMPRESS32 _mm512_maskz_compress_epi32
#define COMPRESS64 _mm512_maskz_compress_epi64
#define EXPAND16 _mm512_maskz_expand_epi32
#define EXPAND32 _mm512_maskz_expand_epi32
#define EXPAND64 _mm512_maskz_expand_epi64

#define PACK_VECTORS(BITS, LANES)                                                                   \
    if (stride == BITS / 8)                                                                         \
        for (; i + LANES <= n; i += LANES) {                                                        \
            const __mmask16 k = selection_of(mask + i, LANES);                                      \
            STORE##BITS(out, COMPRESS##BITS(k, LOAD##BITS((const item##BITS *)x + i)));             \
            out += __builtin_popcount(k);                                                           \
        }
#define UNPACK_VECTORS(BITS, LANES)                                                                 \
    if (stride == BITS / 8) {                                                                       \
        if (stream) for (; i < n && (uintptr_t)(y + i * stride) % LANES_ALIGN; ++i) UNPACK_ONE(BITS) \
        for (; i + LANES <= n; i += LANES) {                                                        \
            const __mmask16 k = selection_of(mask + i, LANES);                                      \
            const __m512i v = EXPAND##BITS(k, LOAD##BITS(in));                                      \
            if (stream) STREAM##BITS((item##BITS *)y + i, v);                                       \
            else if (zero) STORE##BITS((item##BITS *)y + i, v);                                          \
            else STORE_SELECTED##BITS((item##BITS *)y + i, k, v);                                   \
            in += __builtin_popcount(k);                                                            \
        }                                                                                           \
    }

/* Of n items that lie as in y, LANES at a time. */
#define SELECTION16(mask) _mm256_test_epi8_mask(BYTES32(mask), BYTES32(mask))
#define SELECTION32(mask) selection_of(mask, 16)
#define SELECTION64(mask) selection_of(mask, 8)
#define BYTES32(mask) _mm256_loadu_si256((const __m256i *)(mask))
#define SELECT_VECTORS(BITS, LANES)                                                                 \
    for (; i + LANES <= n; i += LANES) {                                                            \
        const __mmask32 k = SELECTION##BITS(mask + i);                                              \
        const __m512i v = _mm512_loadu_si512(in + i);                                               \
        if (stream) _mm512_stream_si512((void *)(out + i), _mm512_maskz_mov_epi##BITS(k, v));       \
        else if (zero) _mm512_storeu_si512(out + i, _mm512_maskz_mov_epi##BITS(k, v));              \
        else _mm512_mask_storeu_epi##BITS(out + i, k, v);                                           \
    }
#else
#define SELECT_VECTORS(BITS, LANES)
/* Eight items at a time, of which most masks select all or none. */
#define PACK_VECTORS(BITS, LANES)                                                                   \
    if (stride == BITS / 8)                                                                         \
        for (; i + 8 <= n; i += 8) {                                                                \
            const uint64_t word = eight_of(mask + i);                                               \
            const item##BITS *const at = (const item##BITS *)x + i;                                 \
            if (word == EIGHT_TRUE) {                                                               \
                memcpy(out, at, BITS);                                                              \
                out += 8;                                                                           \
            } else if (word)                                                                        \
                for (int k = 0; k < 8; ++k) {                                                       \
                    *out = at[k];                                                                   \
                    out += mask[i + k];                                                             \
                }                                                                                   \
        }
#define UNPACK_VECTORS(BITS, LANES)                                                                 \
    if (stride == BITS / 8)                                                                         \
        for (; i + 8 <= n; i += 8) {                                                                \
            const uint64_t word = eight_of(mask + i);                                               \
            item##BITS *const at = (item##BITS *)y + i;                                             \
            if (word == EIGHT_TRUE) {                                                               \
                memcpy(at, in, BITS);                                                               \
                in += 8;                                                                            \
            } else if (word == 0) {                                                                 \
                if (zero) memset(at, 0, BITS);                                                      \
            } else                                                                                  \
                for (int k = 0; k < 8; ++k) {                                                       \
                    const item##BITS all = -(item##BITS)mask[i + k], other = zero ? 0 : at[k];      \
                    at[k] = (*in & all) | (other & ~all);                                           \
                    in += mask[i + k];                                                              \
                }                                                                                   \
        }
#endif

#define UNPACK_ONE(BITS)                                                                            \
    {                                                                                               \
        item##BITS *const at = (item##BITS *)(y + i * stride);                                      \
        const item##BITS all = -(item##BITS)mask[i], other = zero ? 0 : *at;                        \
        *at = (*in & all) | (other & ~all);                                                         \
        in += mask[i];                                                                              \
    }

#define MOVE(BITS, LANES)                                                                           \
    static ptrdiff_t pack_##BITS(const char *x, ptrdiff_t stride, const char *mask, ptrdiff_t n,    \
                                 char *to) {                                                        \
        item##BITS *out = (item##BITS *)to;                                                         \
        ptrdiff_t i = 0;                                                                            \
        PACK_VECTORS(BITS, LANES)                                                                   \
        for (; i < n; ++i) {                                                                        \
            *out = *(const item##BITS *)(x + i * stride);                                           \
            out += mask[i];                                                                         \
        }                                                                                           \
        return out - (item##BITS *)to;                                                              \
    }                                                                                               \
    static ptrdiff_t unpack_##BITS(const char *from, const char *mask, ptrdiff_t n, char *y,        \
                                   ptrdiff_t stride, int zero, int stream) {                        \
        const item##BITS *in = (const item##BITS *)from;                                            \
        ptrdiff_t i = 0;                                                                            \
        UNPACK_VECTORS(BITS, LANES)                                                                 \
        for (; i < n; ++i) UNPACK_ONE(BITS)                                                         \
        (void)stream; /* of use to vectors alone */                                                 \
        return in - (const item##BITS *)from;                                                       \
    }                                                                                               \
    static void select_##BITS(const char *from, const char *mask, ptrdiff_t n, char *y, int zero,   \
                              int stream) {                                                         \
        const item##BITS *const in = (const item##BITS *)from;                                      \
        item##BITS *const out = (item##BITS *)y;                                                    \
        ptrdiff_t i = 0, peel = stream ? -(uintptr_t)y % LANES_ALIGN / sizeof(item##BITS) : 0;      \
        for (; i < peel && i < n; ++i) out[i] = in[i] & -(item##BITS)mask[i];                       \
        SELECT_VECTORS(BITS, 512 / BITS)                                                            \
        if (zero) for (; i < n; ++i) out[i] = in[i] & -(item##BITS)mask[i];                         \
        for (; i < n; ++i) {                                                                        \
            const item##BITS all = -(item##BITS)mask[i];                                            \
            out[i] = (in[i] & all) | (out[i] & ~all);                                               \
        }                                                                                           \
    }

MOVE(16, 16)
MOVE(32, 16)
MOVE(64, 8)

/* Moves the selected ones of n items together; returns how many. `to` has room for SELECT_SLACK bytes more. */
static ptrdiff_t pack_items(ptrdiff_t size, const char *x, ptrdiff_t stride, const char *mask, ptrdiff_t n, char *to) {
    if (size == 4) return pack_32(x, stride, mask, n, to);
    if (size == 2) return pack_16(x, stride, mask, n, to);
    if (size == 8) return pack_64(x, stride, mask, n, to);
    char *out = to;
    for (ptrdiff_t i = 0; i < n; ++i)
        if (mask[i]) {
            memcpy(out, x + i * stride, size);
            out += size;
        }
    return (out - to) / size;
}

/* Puts items back to where they are selected among n; the others become 0 (zero) or stay. Returns how many were
 * selected. SELECT_SLACK bytes after them may be read. stream, with zero: past the cache. */
static ptrdiff_t unpack_items(ptrdiff_t size, const char *from, const char *mask, ptrdiff_t n, char *y,
                              ptrdiff_t stride, int zero, int stream) {
    stream = stream && (uintptr_t)y % size == 0;
    if (size == 4) return unpack_32(from, mask, n, y, stride, zero, stream);
    if (size == 2) return unpack_16(from, mask, n, y, stride, zero, stream);
    if (size == 8) return unpack_64(from, mask, n, y, stride, zero, stream);
    const char *in = from;
    for (ptrdiff_t i = 0; i < n; ++i) {
        if (mask[i]) {
            memcpy(y + i * stride, in, size);
            in += size;
        } else if (zero) memset(y + i * stride, 0, size);
    }
    return (in - from) / size;
}

/* Copies the selected ones of n elements of 2, 4 or 8 bytes to where they are in y; the others become 0 (zero) or stay.
 * stream, with zero: past the cache. */
static void select_items(ptrdiff_t size, const char *from, const char *mask, ptrdiff_t n, char *y, int zero,
                         int stream) {
    stream = stream && (uintptr_t)y % size == 0;
    if (size == 4) select_32(from, mask, n, y, zero, stream);
    else if (size == 2) select_16(from, mask, n, y, zero, stream);
    else select_64(from, mask, n, y, zero, stream);
}

/* Copies n bytes of a mask, `stride` bytes apart, as 0 or 1. */
static void copy_mask(const char *mask, ptrdiff_t stride, ptrdiff_t n, char *to) {
    if (stride == 1) for (ptrdiff_t i = 0; i < n; ++i) to[i] = mask[i] != 0;
    else for (ptrdiff_t i = 0; i < n; ++i) to[i] = mask[i * stride] != 0;
}

/* Prefetches n bytes into L2. */
INLINE void prefetch_read(const char *p, ptrdiff_t n) {
    for (ptrdiff_t i = 0; i < n; i += LANES_ALIGN) __builtin_prefetch(p + i, 0, 2);
}
INLINE void prefetch_write(const char *p, ptrdiff_t n) {
    for (ptrdiff_t i = 0; i < n; i += LANES_ALIGN) __builtin_prefetch(p + i, 1, 2);
}

/* Sets n bytes to 0; stream: whole cache lines past the cache. */
static void zero_bytes(char *y, ptrdiff_t n, int stream) {
    const ptrdiff_t head = -(uintptr_t)y % LANES_ALIGN;
    if (!stream || n < head + 8 * LANES_ALIGN) {
        memset(y, 0, n);
        return;
    }
    memset(y, 0, head);
    ptrdiff_t i = head;
    for (; i + LANES_ALIGN <= n; i += LANES_ALIGN) f32_stream((f32 *)(y + i), f32_set(0));
    memset(y + i, 0, n - i);
}

/* Writes `used` bytes at y, which begins a cache line, and 0 after them, up to n bytes: whole lines past the cache. A
 * plain store to the line that has both would wait for it, and hold up those that go past the cache. */
static void stream_end(const char *values, ptrdiff_t used, char *y, ptrdiff_t n) {
    _Alignas(LANES_ALIGN) char line[LANES_ALIGN] = {0};
    ptrdiff_t i;
    memcpy(line, values, used);
    if (n >= LANES_ALIGN) f32_stream((f32 *)y, f32_load((const f32 *)line));
    else memcpy(y, line, n);
    for (i = LANES_ALIGN; i + LANES_ALIGN <= n; i += LANES_ALIGN) f32_stream((f32 *)(y + i), f32_set(0));
    if (i < n) memset(y + i, 0, n - i);
}

/* Sets n items to 0. */
static void zero_items(ptrdiff_t size, char *y, ptrdiff_t stride, ptrdiff_t n) {
    if (stride == size) memset(y, 0, n * size);
    else for (ptrdiff_t i = 0; i < n; ++i) memset(y + i * stride, 0, size);
}

/* The first of n items whose mask is `value`; n where there is none. */
INLINE ptrdiff_t items_until(int value, const char *mask, ptrdiff_t n) {
    const char *const at = n ? memchr(mask, value, n) : 0;
    return at ? at - mask : n;
}

/* The numbers of the selected ones of n items; `items` has room for n. */
static void list_items(const char *mask, ptrdiff_t n, ptrdiff_t *items) {
    for (ptrdiff_t i = 0; i < n; ++i) {
        *items = i;
        items += mask[i];
    }
}

/* Adds the selected ones of n sums, of the accumulation type. */
#define ADD_SELECTED(A)                                                                             \
    static void add_selected_##A(double *restrict total, const A *restrict sums,                    \
                                 const char *restrict mask, ptrdiff_t n) {                          \
        for (ptrdiff_t i = 0; i < n; ++i) total[i] += mask[i] ? (double)sums[i] : 0;                \
    }
ADD_SELECTED(f32)
ADD_SELECTED(f64)
#undef ADD_SELECTED
static void add_selected_sums(ptrdiff_t acc_size, const void *sums, const char *mask, ptrdiff_t n, double *total) {
    if (acc_size == 8) add_selected_f64(total, sums, mask, n);
    else add_selected_f32(total, sums, mask, n);
}

/* Adds sums to the places of the selected ones of n. */
static void add_to_selected(double *restrict total, const double *restrict sums, const char *mask, ptrdiff_t n) {
    for (ptrdiff_t i = 0; i < n; ++i)
        if (mask[i]) total[i] += *sums++;
}

#undef MOVE
#undef PACK_VECTORS
#undef SELECT_VECTORS
#undef UNPACK_ONE
#undef UNPACK_VECTORS
#endif

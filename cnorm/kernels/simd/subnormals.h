/* Subnormal numbers count: flush-to-zero and denormals-are-zero are switched off while a kernel runs.
 *
 * Other libraries leave these modes set in threads that call cnorm, and the threads of a parallel region inherit the
 * modes of the thread that created them. enable_subnormals returns the former state for restore_subnormals.
 */
#ifndef CNORM_SIMD_SUBNORMALS_H
#define CNORM_SIMD_SUBNORMALS_H

#include "simd/types.h"

#if defined(__SSE2__)
/* MXCSR: flush to zero, denormals are zero */
#define FLUSH_MODES 0x8040u
INLINE unsigned enable_subnormals(void) {
    const unsigned before = _mm_getcsr();
    if (before & FLUSH_MODES) _mm_setcsr(before & ~FLUSH_MODES);
    return before;
}
INLINE void restore_subnormals(unsigned before) {
    if (before & FLUSH_MODES) _mm_setcsr(before);
}
#else
INLINE unsigned enable_subnormals(void) { return 0; }
INLINE void restore_subnormals(unsigned before) { (void)before; }
#endif

#endif

/* The vectors that the loops compute with: the interface, and what it promises.
 *
 * simd/ alone knows register widths and storage formats. The loops see vectors of 64 bytes (types.h) and these:
 *   for each accumulation type A (f32, f64)
 *     A_set, A_add, A_sub, A_mul, A_div, A_sqrt, A_load, A_store                         arithmetic.h
 *     A_select_positive, A_clip, A_zero_outside, A_magnitude, A_larger, A_sign_of_large  arithmetic.h
 *     f64_divide, reciprocal_rest, may_divide                                            arithmetic.h
 *     A_power_minus_3_4                                                                  arithmetic.h
 *     A_hsum, A_hsum_all                                                                 hsum.h
 *     A_negative_power                                                                   pow.h
 *   for each storage type S (f32, f64, f16, bf16, bf16n)
 *     S_load, S_store, partial vectors, halves, pairs, non-temporal stores              memory.h, half.h, bf16_native.h
 *   for S = f32w and u8w, which are computed in double, loads, and stores of f32w      wide.h
 *   store_fence                                                                         memory.h
 *   enable_subnormals, restore_subnormals                                                subnormals.h
 *
 * Equal bits on every build: element i of a run goes to lane i modulo the lane count, lanes are summed by one fixed
 * reduction tree, and no build contracts a * b + c to one rounding (-ffp-contract=off).
 */
#ifndef CNORM_LANES_H
#define CNORM_LANES_H

#include "simd/types.h"
#include "simd/arithmetic.h"
#include "simd/hsum.h"
#include "simd/pow.h"
#include "simd/half.h"
#include "simd/memory.h"
#include "simd/bf16_native.h"
#include "simd/wide.h"
#include "simd/subnormals.h"

#endif

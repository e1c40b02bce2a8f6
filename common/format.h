/* SPDX-License-Identifier: Apache-2.0 */
/* Number formats, cache records and page addressing; byte layouts in docs/formats.md. */
#ifndef MLA_COMMON_FORMAT_H
#define MLA_COMMON_FORMAT_H

#include "kernel.h"
#include "mla/mla.h"

/* Exact widening. */
float mla_bf16_to_f32(uint16_t bits);
float mla_f16_to_f32(uint16_t bits);
float mla_e4m3_to_f32(uint8_t bits); /* e4m3fn: max 448, NaN 0x7F and 0xFF, no inf */
float mla_e2m1_to_f32(uint8_t nibble);
float mla_ue8m0_to_f32(uint8_t bits); /* 2^(bits-127); 255 = NaN */

/* Round to nearest, ties to even. bf16 and f16 overflow to inf; e4m3 and e2m1 saturate.
 * From double: rounded once, not through float. */
uint16_t mla_f32_to_bf16(float x);
uint16_t mla_f32_to_f16(float x);
uint8_t mla_f32_to_e4m3(float x);
uint8_t mla_f32_to_e2m1(float x);
uint16_t mla_f64_to_bf16(double x);
uint16_t mla_f64_to_f16(double x);

/* Arrays of n elements of a dtype (BF16, F16, F32, F64) to float or double, and back. */
void mla_load_f32(mla_dtype dtype, const void *src, int64_t n, float *dst);
void mla_load_f64(mla_dtype dtype, const void *src, int64_t n, double *dst);
void mla_store_f32(mla_dtype dtype, void *dst, int64_t n, const float *src);
void mla_store_f64(mla_dtype dtype, void *dst, int64_t n, const double *src);

/* dtype of a plain cache format; MLA_F64 for packed ones (meaning: none). */
mla_dtype mla_cache_dtype(mla_cache_format format);
static inline bool mla_cache_is_packed(mla_cache_format format)
{
    return format >= MLA_CACHE_FP8_DS_MLA;
}

/* Reads n latent cache rows (L latent values, then dr rope values; row i to dst + i·ld) of request
 * r, exactly dequantised: keys index[i], or first + i where index is NULL. Works on every format,
 * flat and paged. Keys outside [0, seq_len_kv) or on a page outside [0, num_pages) give a row of
 * zeros and valid[i] = 0, else 1. valid may be NULL. Latent and absorbed problems. Any thread. */
void mla_cache_rows_f32(const mla_problem *problem, const mla_tensors *tensors,
                        const struct mla_request *request, int64_t seq_len_kv, const int32_t *index,
                        int64_t first, int64_t n, float *dst, int64_t ld, uint8_t *valid);
void mla_cache_rows_f64(const mla_problem *problem, const mla_tensors *tensors,
                        const struct mla_request *request, int64_t seq_len_kv, const int32_t *index,
                        int64_t first, int64_t n, double *dst, int64_t ld, uint8_t *valid);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* Cache records: quantise and append, read back. Byte layouts, scale rules and worked examples are
 * in docs/formats.md.
 *
 * A slot is a place for one token: page · page_size + offset in a paged cache, the row number in a
 * flat one. Two families: latent rows (mla_cache) and the indexer's keys (mla_cache_index).
 *
 * Every call checks its arguments first and writes nothing unless the status is MLA_OK. Nothing is
 * allocated. CPU context: host pointers, stream NULL, done on return. CUDA context: device pointers
 * (slots too), enqueued on stream; slots cannot be checked, so one outside the cache counts as -1;
 * values and plain caches aligned to their elements. Calls may overlap as long as no one writes
 * what another reads or writes. */
#ifndef MLA_CACHE_H
#define MLA_CACHE_H

#include "mla/index.h"
#include "mla/mla.h"

#ifdef __cplusplus
extern "C" {
#endif

/* How a writer chooses scales. */
typedef enum mla_scale_rule {
    MLA_SCALE_DEFAULT = 0, /* powers of two; nvfp4_ds_mla: e4m3, rounded up */
    MLA_SCALE_F32          /* amax / 448 as it comes: fp8_ds_mla and fp8 indexer keys, whose scales
                              are f32. Every reader here takes both kinds */
} mla_scale_rule;

/* ------------------------------------------------------------- latent rows */

/* A latent cache and its shape. Plain value; the memory stays the caller's. */
typedef struct mla_cache {
    mla_cache_format format;
    int64_t kv_lora_rank; /* L; packed formats: 512 */
    int64_t qk_rope_dim;  /* dr; fp8_ds_mla, nvfp4_ds_mla: 64; model1, v41: 0 */
    int64_t page_size;    /* tokens of a page; 0 = flat, plain formats only */
    int64_t num_pages;    /* paged: pages of kv_cache */
    int64_t num_rows;     /* flat: rows of kv_c and k_pe */
    mla_tensor kv_cache; /* paged: as in mla_tensors (strides in elements, packed formats: bytes) */
    mla_tensor kv_c;     /* flat [num_rows, L] */
    mla_tensor k_pe;     /* flat [num_rows, dr]; absent if dr = 0 */
} mla_cache;

/* Values of some tokens, one row each. A joint row [n, L + dr] is k_pe.data = row + L with both
 * stride[0] = L + dr. */
typedef struct mla_cache_values {
    mla_dtype dtype; /* write: bf16, f16, f32; read: also f64 */
    mla_tensor kv_c; /* [n, L]; model1: the last 64 of 512 are stored as bf16 */
    mla_tensor k_pe; /* [n, dr]; absent if dr = 0 */
} mla_cache_values;

/* Bytes of an unpadded page: page_size rows, footer included; 0 if that makes no sense. */
MLA_API size_t mla_cache_page_bytes(mla_cache_format format, int64_t kv_lora_rank,
                                    int64_t qk_rope_dim, int64_t page_size);

/* Quantises n tokens and puts token i into slot slots[i].
 * values: the tokens. slots: [n]; -1 = leave token i out; a slot named twice gets the later token.
 * rule: how fp8_ds_mla scales are chosen; MLA_SCALE_DEFAULT for all other formats.
 * A value that is NaN or infinite becomes NaN where the record can say so (e4m3: that value; e2m1:
 * its block of 16); scales come from the tile's finite values. Plain formats round to nearest even.
 * MLA_ERR_ARGUMENT (names the field; on the CPU slots out of range too), MLA_ERR_UNSUPPORTED,
 * MLA_ERR_CUDA. Any thread. */
MLA_API mla_status mla_cache_write(const mla_context *context, const mla_cache *cache,
                                   const mla_cache_values *values, const int64_t *slots, int64_t n,
                                   mla_scale_rule rule, void *stream);

/* Reads the tokens of n slots: values row i = the row in slots[i], dequantised exactly and rounded
 * once to values->dtype; slots[i] = -1 gives a row of zeros.
 * MLA_ERR_ARGUMENT (on the CPU slots out of range too), MLA_ERR_UNSUPPORTED, MLA_ERR_CUDA. Any
 * thread. */
MLA_API mla_status mla_cache_read(const mla_context *context, const mla_cache *cache,
                                  const int64_t *slots, int64_t n, const mla_cache_values *values,
                                  void *stream);

/* ------------------------------------------------------------ indexer keys */

/* The indexer's key cache; 128 values a token: data of all tokens of a page, then its footer. A
 * flat one is a single page. mla_index_append stores quantised keys; here values come in. */
typedef struct mla_cache_index {
    /* MLA_INDEX_FP8: 132 B a token, 128 e4m3; footer one f32 scale a token.
     * MLA_INDEX_FP4: 68 B a token, 128 e2m1; footer four ue8m0 a token, 32 values each. */
    mla_index_format format;
    int64_t page_size; /* tokens of a page, >= 1 */
    int64_t num_pages;
    mla_tensor pages; /* bytes; stride[0] = a page in bytes, 0 = packed; stride[1] is not used */
} mla_cache_index;

/* 132 or 68 times page_size; 0 if that makes no sense. Any thread. */
MLA_API size_t mla_cache_index_page_bytes(mla_index_format format, int64_t page_size);

/* As mla_cache_write: keys [n, 128] of dtype bf16, f16 or f32; stride[0] in elements, 0 = packed.
 * rule MLA_SCALE_F32 needs MLA_INDEX_FP8. A non-finite value: e4m3 NaN, or its block of 32. */
MLA_API mla_status mla_cache_index_write(const mla_context *context, const mla_cache_index *cache,
                                         mla_dtype dtype, const mla_tensor *keys,
                                         const int64_t *slots, int64_t n, mla_scale_rule rule,
                                         void *stream);
/* As mla_cache_read: keys [n, 128] of dtype bf16, f16, f32 or f64. */
MLA_API mla_status mla_cache_index_read(const mla_context *context, const mla_cache_index *cache,
                                        const int64_t *slots, int64_t n, mla_dtype dtype,
                                        const mla_tensor *keys, void *stream);

#ifdef __cplusplus
}
#endif
#endif

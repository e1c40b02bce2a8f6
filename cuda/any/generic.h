/* SPDX-License-Identifier: Apache-2.0 */
/* Attention of any shape and type: what the host (generic.c) passes to the kernels of generic.cu.
 * Plain C, shared by host and device code. */
#ifndef MLA_CUDA_ANY_GENERIC_H
#define MLA_CUDA_ANY_GENERIC_H

#include "kernel.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { MLA_GENERIC_THREADS = 256 };

struct mla_generic_request {
    int64_t index, q_start, query_len, kv_start, seq_len_kv;
    int64_t first_row; /* query rows of earlier requests of the job */
};

/* Latent cache rows. Strides in bytes. Expanded problems have none: page_size 0. */
struct mla_generic_cache {
    const char *data, *rope; /* rope: plain formats, at the rope part of the first row */
    int64_t row_bytes, rope_row_bytes, page_bytes;
    int64_t page_size, num_pages, max_pages; /* page_size 0 = flat */
    int64_t scales_at, scale_bytes;          /* page footer: offset in the page, bytes a row */
    const int32_t *page_table;
    int64_t page_table_stride;
    int32_t format, dtype; /* dtype: of plain formats */
    int64_t rank;
};

/* A tensor [rows, heads, width], strides in elements. */
struct mla_generic_rows {
    const void *data;
    int64_t stride[2];
    int32_t dtype;
};

struct mla_generic_args {
    const struct mla_generic_request *requests; /* device */
    int64_t num_requests;
    int64_t first_row, rows;         /* of the job, that this launch computes */
    int32_t first_head, heads;       /* that this launch computes */
    int32_t group;                   /* query heads of a key head */
    struct mla_generic_rows q, rope; /* q's columns from q_width on come from rope */
    int64_t q_width, rope_width;
    struct mla_generic_rows uk, uv; /* data NULL, or what absorbs q and expands the output */
    /* Keys and values per head, or (data NULL) the cache. own_keys: row 0 is the request's first
     * key, head 0 the launch's first head. */
    struct mla_generic_rows k, v;
    int32_t own_keys;
    int64_t d_qk, d_v, d_out; /* of keys and values as they are read; of out */
    struct mla_generic_cache cache;
    int32_t causal;
    const int32_t *seq_lens_kv; /* or NULL */
    const uint32_t *mask;       /* or NULL */
    int64_t mask_stride;
    const int32_t *indices, *topk_lens; /* or NULL */
    int64_t indices_stride, topk;
    const float *sink; /* or NULL */
    float scale;
    float lse_unit; /* 1, or 1 / ln 2 for logarithms of base 2 */
    int32_t out_dtype;
    void *out; /* [T, H, d_out], strides in elements */
    int64_t out_stride[2];
    float *lse, *max_logits; /* or NULL */
    int64_t lse_stride[2], max_stride[2];
    float *slabs; /* slab_floats of scratch for each block */
    int64_t slab_floats;
    /* projection kernel: where keys [keys, heads, d_qk] and values [keys, heads, d_v] go */
    float *k_out, *v_out;
};

/* Floats of a block's slab. */
static inline int64_t mla_generic_slab(const struct mla_generic_args *a)
{
    return (a->d_qk + a->d_v + a->q_width + 31) / 32 * 32;
}

const void *mla_generic_attend_function(void);
const void *mla_generic_project_function(void);

#ifdef __cplusplus
}
#endif
#endif

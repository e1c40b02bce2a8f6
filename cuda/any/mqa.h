/* SPDX-License-Identifier: Apache-2.0 */
/* Absorbed-form attention (multi-query over latents) on any GPU from sm_80: what the host passes to
 * the kernels of mqa.cuh and combine.cu. Plain C, shared by host and device code. */
#ifndef MLA_CUDA_ANY_MQA_H
#define MLA_CUDA_ANY_MQA_H

#include "kernel.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    MLA_MQA_LATENT = 512,
    MLA_MQA_KEYS = 32,
    MLA_MQA_THREADS = 256,
    MLA_MQA_COMBINE_WARPS = 4,
    MLA_MQA_COMBINE_GROUPS = 4
};

/* The cache of one launch. Strides in bytes. */
struct mla_mqa_cache {
    const char *data;       /* kv_c or the pages */
    const char *rope;       /* plain formats: at the rope part of the first row */
    int64_t row_bytes;      /* to the next row (of kv_c; inside a page) */
    int64_t rope_row_bytes; /* flat: to the next row of k_pe */
    int64_t page_bytes;
    const int32_t *page_table;
    int64_t page_table_stride;
    int32_t page_size;   /* 0 = flat */
    uint32_t page_magic; /* n / page_size = (2n · magic >> 32) >> shift for n < 2^31 */
    int32_t page_shift;
    int32_t num_pages, max_pages;
    int32_t format;       /* mla_cache_format */
    int32_t record_bytes; /* packed: bytes of a row without its footer */
    int32_t footer_bytes; /* packed: bytes of a row's scales in the page footer */
    int32_t align;        /* of every row: 16, 8, 4 or 1 */
};

/* One request of one launch. */
struct mla_mqa_request {
    int32_t index, q_start, query_len, kv_start, seq_len_kv;
    int32_t splits;
    int32_t first_block; /* blocks (clusters) of earlier requests of this launch */
    int32_t first_row;   /* merged rows of earlier requests of this launch */
    int64_t part_row;    /* first row of this request's partial results */
};

struct mla_mqa_args {
    const struct mla_mqa_request *requests; /* device */
    int32_t num_requests;
    int32_t tile_parts;  /* mqa_any: blocks that share a tile of another engine's; 0 = 1 */
    int32_t heads, topk; /* topk 0 = dense */
    int32_t causal;
    const char *q; /* [T, H, 512 + rope], strides in bytes */
    int64_t q_stride[2];
    int32_t q_align;
    int32_t out_dtype;
    struct mla_mqa_cache cache;
    const int32_t *seq_lens_kv; /* or NULL */
    const uint32_t *mask;       /* or NULL */
    int64_t mask_stride;
    const int32_t *indices, *topk_lens; /* topk_lens or NULL */
    int64_t indices_stride;
    const float *sink; /* or NULL */
    float scale_log2;  /* softmax_scale · log2(e) */
    float lse_unit;    /* of one binary digit: 1, or ln 2 for natural logarithms */
    char *out;         /* [T, H, 512], strides in elements */
    int64_t out_stride[2];
    float *lse, *max_logits; /* or NULL */
    int64_t lse_stride[2], max_stride[2];
    /* Partial results of split requests: rows of 512 floats, divided by their own sum; log2 of the
     * sum (-inf: no key, and then the row of floats is not written); largest score in log2. */
    float *part_out, *part_lse, *part_max;
    char *scratch; /* the engine's own, 256-byte aligned; the host's to divide */
    /* Of lists: tokens of groups that count at least 0 are left alone (union.h); or NULL. */
    const int32_t *group_counts;
    int32_t group_size;
};

/* The kernel that computes tiles of some query rows, and how a block of it is launched. */
struct mla_mqa_tile {
    const void *function; /* NULL = none */
    size_t shared_bytes;  /* dynamic */
    int threads;
    int cluster; /* blocks that compute a tile together, 1 or 2 */
};
/* rows 16, 32 or 64; rope_dim 0 or 64; q_dtype bf16 or f16. */
struct mla_mqa_tile mla_mqa_tile_bf16(int rows, int rope_dim, bool packed);
struct mla_mqa_tile mla_mqa_tile_f16(int rows, int rope_dim, bool packed);
/* Joins the partial results of split requests; MLA_MQA_COMBINE_WARPS times groups a row,
 * MLA_MQA_THREADS threads a block. groups: 1, or MLA_MQA_COMBINE_GROUPS for more than eight
 * parts. */
const void *mla_mqa_combine_function(int groups);

#ifdef __cplusplus
}
#endif
#endif

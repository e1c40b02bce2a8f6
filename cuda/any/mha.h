/* SPDX-License-Identifier: Apache-2.0 */
/* Expanded-form attention (keys and values per head) on any GPU from sm_80: what the host passes to
 * the kernels of mha.cuh and mask.cu. Plain C, shared by host and device code. */
#ifndef MLA_CUDA_ANY_MHA_H
#define MLA_CUDA_ANY_MHA_H

#include "kernel.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { MLA_MHA_KEYS = 64, MLA_MHA_HEADS = 16, MLA_MHA_THREADS = 128, MLA_MASK_THREADS = 256 };

/* Query rows of one request that are computed in one pass. */
struct mla_mha_segment {
    int32_t index, q_start; /* request; its first row in the batch */
    int32_t query_len, seq_len_kv;
    int32_t row0, rows; /* the pass's rows, inside the request */
    int32_t first_tile; /* query tiles of earlier segments of this pass */
    int32_t first_row;  /* rows of earlier segments of this pass */
    int32_t tiles;
    int64_t first_word; /* of the request in args.alive */
    int64_t kv_start;   /* first row of k and v */
};

/* A query tile: of which segment of the pass, and which of its tiles. */
struct mla_mha_place {
    int32_t segment, tile;
};

struct mla_mha_args {
    const struct mla_mha_segment *segments; /* device; this pass's */
    const struct mla_mha_place *order;      /* or NULL: its tiles, the longest first */
    int32_t num_segments, tiles;
    int32_t heads, heads_kv, d_qk, d_v;
    int32_t causal;
    /* [T, H, d_qk], [S, Hk, d_qk], [S, Hk, d_v]; strides in bytes. Columns of q from q_split on
     * come from q_rope. */
    const char *q, *q_rope, *k, *v;
    int64_t q_stride[2], q_rope_stride[2], k_stride[2], v_stride[2];
    int32_t q_split;
    int32_t out_dtype;
    const int32_t *seq_lens_kv; /* or NULL */
    /* Bits of visible keys, or NULL. Row of a query: mask_row0 + (whole_mask ? its row in the batch
     * : its row in the pass). columns: of a query tile, the union over its rows, [tiles, words]. */
    const uint32_t *mask, *columns;
    int64_t mask_stride;
    int32_t whole_mask, words;
    const uint32_t *alive; /* or NULL: bits of keys that exist, request by request */
    const float *sink;     /* or NULL */
    float scale_log2;      /* |softmax_scale| · log2(e), 1 where that is 0 */
    float sign;            /* of softmax_scale: scores are multiplied by it first */
    float lse_unit;        /* of one binary digit: 1, or ln 2 for natural logarithms */
    char *out;             /* [T, H, d_v], strides in elements */
    int64_t out_stride[2];
    float *lse, *max_logits; /* or NULL */
    int64_t lse_stride[2], max_stride[2];
};

/* Bits from top-k lists, or (indices NULL) the union of given bits over each query tile. */
struct mla_mask_args {
    const struct mla_mha_segment *segments;
    int32_t num_segments, rows; /* rows of the pass */
    int32_t tile_rows, causal, topk, words;
    const int32_t *indices, *topk_lens; /* topk_lens or NULL */
    int64_t indices_stride;
    const int32_t *seq_lens_kv;
    const uint32_t *given; /* the caller's mask, indices NULL */
    int64_t given_stride;
    uint32_t *mask;    /* out: [rows, words] from lists */
    uint32_t *columns; /* out: [tiles, words], zero before */
};

struct mla_mha_tile {
    const void *function;
    size_t shared_bytes;
    int32_t rows; /* query rows of a block */
    int32_t threads;
};
/* The smallest tile that holds these widths; function NULL if none does. */
struct mla_mha_tile mla_mha_tile_bf16(int64_t d_qk, int64_t d_v);
struct mla_mha_tile mla_mha_tile_f16(int64_t d_qk, int64_t d_v);
const void *mla_mask_function(void);

#ifdef __cplusplus
}
#endif
#endif

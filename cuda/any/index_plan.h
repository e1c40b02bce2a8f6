/* SPDX-License-Identifier: Apache-2.0 */
/* mla_index_run on a device: what the engines (kernels of different architectures) share. The host
 * cuts the work into launches of tiles; index_plan.c has that, the workspace and the choice of the
 * engine. Kernels and planning agree on the struct below. */
#ifndef MLA_CUDA_ANY_INDEX_PLAN_H
#define MLA_CUDA_ANY_INDEX_PLAN_H

#include "../device.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { INDEX_REQUESTS = 96, /* of one launch: kernel arguments are 4 KB */ INDEX_DIM = 128 };

struct index_request {
    int32_t index, q_start, query_len, seq_len, first_tile, unused;
    int64_t first_key;
};

struct index_launch {
    /* queries */
    const char *q;
    const float *weights;
    int64_t q_row, q_head, weight_row; /* q in bytes */
    bool q_fp8;
    bool q_wide; /* 16-byte copies of q are aligned */
    int heads, dim;
    /* keys */
    const char *k, *k_scale;
    const int32_t *page_table;
    int64_t k_row, page_bytes, table_row; /* k_row: bytes of a flat row */
    int page_size, num_pages;
    bool k_fp8;
    bool wide; /* 16-byte copies of keys, 4-byte copies of scales are aligned */
    bool wide_scale;
    /* rows */
    const int32_t *key_start, *key_end;
    bool causal, relative;
    /* lists */
    int k_list, capacity;
    int64_t topk, index_stride, score_stride;
    bool ascending;
    int32_t *indices, *lens;
    float *scores;
    float *logits;
    int64_t logits_row;
    uint64_t *items; /* [blocks, buffers, rows, capacity] */
    int *counts;     /* [blocks, buffers, rows], parts > 1 */
    /* work */
    int rows, tiles, parts, num_requests;
    int buffers; /* of a row in a block: more than one are joined in the end */
    struct index_request requests[INDEX_REQUESTS];
};

struct mla_index_engine {
    const char *name;
    mla_proof proof;
    /* Can it serve the device and the call? If not, writes why as a clause. Shapes alone. */
    bool (*supports)(const mla_context *context, const mla_index_args *args, char *why,
                     size_t bytes);
    int (*most_rows)(const mla_index_args *args);         /* of a tile; a power of two */
    int (*buffers)(const mla_index_args *args, int rows); /* of a row, in tiles of so many rows */
    /* Enqueues the tiles of a launch: lists where parts are 1, else counts and items. */
    cudaError_t (*launch)(const struct index_launch *launch, unsigned blocks, cudaStream_t stream);
};

extern const struct mla_index_engine mla_index_any; /* any/index_logits.cu */
#ifdef MLA_WITH_SM90
extern const struct mla_index_engine mla_index_sm90; /* sm90/index_logits.cu */
#endif
#ifdef MLA_WITH_SM100
extern const struct mla_index_engine mla_index_sm100; /* sm100/index_logits.cu */
#endif

/* any/index_logits.cu: -inf in all logits; the lists of a launch whose keys are parted. */
cudaError_t mla_index_fill(float *logits, int64_t rows, int64_t columns, int64_t stride,
                           cudaStream_t stream);
cudaError_t mla_index_merge(const struct index_launch *launch, int first_row, unsigned rows,
                            cudaStream_t stream);

#ifdef __cplusplus
}
static_assert(sizeof(struct index_launch) <= 4096, "kernel arguments");
#endif
#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* Sparse attention in the absorbed form for sm_100: what the host passes to the kernels of
 * sparse_mqa_prefill.cu. Plain C, shared by host and device code. */
#ifndef MLA_CUDA_SM100_SPARSE_MQA_PREFILL_H
#define MLA_CUDA_SM100_SPARSE_MQA_PREFILL_H

#include "any/mqa.h"
#include "any/union.h"
#include "tensor_map.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { MLA_SPARSE_THREADS = 768 };

struct mla_sparse_args {
    struct mla_tensor_map q;            /* [T, H, 512 + rope], box 1 x M x 64, 128-byte swizzle */
    struct mla_tensor_map latent, rope; /* rows of the cache, box 1 x 64, 128-byte swizzle */
    struct mla_tensor_map out;          /* [T, H, 512], box 1 x M x 64, 128-byte swizzle */
    struct mla_mqa_args a;
    int32_t units;         /* row tiles times key splits */
    int32_t rows_per_page; /* of the maps latent and rope; paged */
    int32_t out_by_map;    /* out may be stored through its map */
    /* Of tiles of groups: the units; q's and out's boxes are all heads of a group. */
    struct mla_mqa_groups groups;
};

/* Tile 0: at most 32 heads; 1: 64; 2: 128, by a pair of CTAs. */
struct mla_mqa_tile mla_sparse_tile(int tile, int rope_dim, bool is_bf16);
/* 64 rows: the heads of a group of tokens, which fill them. */
struct mla_mqa_tile mla_sparse_group_tile(int rope_dim, bool is_bf16);

#ifdef __cplusplus
}
#endif
#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* Absorbed-form attention over top-k lists on sm_90: what the host passes to the kernels of
 * sparse_mqa_prefill.cuh. */
#ifndef MLA_CUDA_SM90_SPARSE_MQA_PREFILL_H
#define MLA_CUDA_SM90_SPARSE_MQA_PREFILL_H

#include "any/mqa.h"
#include "any/union.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { MLA_SPARSE_SM90_KEYS = 64, MLA_SPARSE_SM90_HEADS = 64 };

struct mla_sparse_sm90_args {
    struct mla_mqa_args a;
    int32_t works;                /* tokens times head tiles times splits, or groups */
    int32_t wide_stores;          /* rows of out are multiples of 16 bytes apart */
    struct mla_mqa_groups groups; /* of tokens that fill 64 rows */
};

struct mla_mqa_tile mla_sparse_sm90_tile_bf16(int rope_dim);
struct mla_mqa_tile mla_sparse_sm90_tile_f16(int rope_dim);
/* A work is a group of tokens over the union of their lists. Heads times tokens of a group: 64. */
struct mla_mqa_tile mla_sparse_sm90_group_bf16(int rope_dim);
struct mla_mqa_tile mla_sparse_sm90_group_f16(int rope_dim);

#ifdef __cplusplus
}
#endif
#endif

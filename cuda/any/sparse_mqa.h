/* SPDX-License-Identifier: Apache-2.0 */
/* Absorbed-form attention over top-k lists for few heads on any GPU from sm_80: what the host passes
 * to the kernels of sparse_mqa.cuh. */
#ifndef MLA_CUDA_ANY_SPARSE_MQA_H
#define MLA_CUDA_ANY_SPARSE_MQA_H

#include "mqa.h"
#include "union.h"

#ifdef __cplusplus
extern "C" {
#endif

struct mla_sparse_any_args {
    struct mla_mqa_args a;
    struct mla_mqa_groups groups; /* size 0: none */
    int32_t wide_stores;          /* rows of out are multiples of 16 bytes apart */
};

/* rows 16 or 32; rope_dim 0 or 64. group: a tile is the tokens of a group. */
struct mla_mqa_tile mla_sparse_any_tile_bf16(int rows, int rope_dim, bool group);
struct mla_mqa_tile mla_sparse_any_tile_f16(int rows, int rope_dim, bool group);

#ifdef __cplusplus
}
#endif
#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* Absorbed-form attention of up to 16 heads on sm_90: what the host passes to the kernels of
 * sparse_mqa_few.cuh. */
#ifndef MLA_CUDA_SM90_SPARSE_MQA_FEW_H
#define MLA_CUDA_SM90_SPARSE_MQA_FEW_H

#include "any/mqa_plan.h"
#include "tensor_map.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { MLA_FEW_SM90_KEYS = 64, MLA_FEW_SM90_HEADS = 16, MLA_FEW_SM90_STATE = 80 * 128 };

struct mla_few_sm90_args {
    struct mla_mqa_args a;
    struct mla_tensor_map q; /* dimensions d, heads, tokens; boxes of 64 columns of 16 heads */
    int32_t works;           /* tokens times splits */
    /* Works that are handed on from block to block; steps 0: none. */
    int32_t steps;    /* blocks of keys of a work, at most */
    uint32_t *ticket; /* 0 */
    uint32_t *flags;  /* of each block: 0; 1: its state is there */
    float *states;    /* of each block */
    /* Groups whose tokens are left to this kernel; NULL: all tokens are its. */
    const uint32_t *left;
};

struct mla_mqa_tile mla_few_sm90_tile_bf16(int rope_dim);
struct mla_mqa_tile mla_few_sm90_tile_f16(int rope_dim);

/* sparse_mqa_few.c. Can the kernel take a job's lists, whose tiles are mqa_any's of 16 rows? */
bool mla_few_sm90_fits(const struct mla_job *job);
/* Permission for the kernel's shared memory, and the bytes of scratch it takes; once a plan. */
mla_status mla_few_sm90_prepare(const struct mla_job *job, size_t *bytes);
/* Bytes at the beginning of its scratch that have to be zero before a launch. */
mla_status mla_few_sm90_zeros(const struct mla_job *job, const struct mla_mqa_launch *launch,
                              size_t *bytes);
/* The same work as that of mqa_any's tile; left to it where rows are not aligned to 16 bytes. left:
 * as in mla_few_sm90_args. */
mla_status mla_few_sm90_launch(const struct mla_job *job, const struct mla_mqa_tile *any_tile,
                               const struct mla_mqa_args *args, const struct mla_mqa_launch *launch,
                               char *scratch, const uint32_t *left, void *stream);

#ifdef __cplusplus
}
#endif
#endif

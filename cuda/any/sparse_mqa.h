/* SPDX-License-Identifier: Apache-2.0 */
/* Absorbed-form attention over top-k lists for few heads on any GPU from sm_80: what the host passes
 * to the kernels of sparse_mqa.cuh. */
#ifndef MLA_CUDA_ANY_SPARSE_MQA_H
#define MLA_CUDA_ANY_SPARSE_MQA_H

#include "mqa_plan.h"
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

/* sparse_mqa.c, for engines that bring another kernel of groups: which groups there are, and their
 * launch. All else is the same: single tokens, and the tokens of groups whose unions are too long,
 * are left to the kernel above. */
struct mla_sparse_grouping {
    int most; /* longest union that gains, in 256ths of its entries */
    /* Tokens of a group; 0: none. Looks at heads alone. */
    int (*size)(const mla_problem *problem);
    /* Once a device. */
    mla_status (*prepare)(const mla_problem *problem);
    mla_status (*launch)(const struct mla_job *job, const struct mla_sparse_any_args *args,
                         void *stream);
};
bool mla_sparse_any_supports(const struct mla_job *job, char *why, size_t bytes);
struct mla_mqa_cut mla_sparse_any_cut(const struct mla_job *job, const struct mla_request *request);
struct mla_mqa_tile mla_sparse_any_tile(const mla_problem *problem, int tile);
mla_status mla_sparse_any_scratch(const struct mla_job *job, const struct mla_sparse_grouping *how,
                                  size_t *bytes);
/* Unions and the launches of groups; g->groups afterwards says what single tokens leave alone. */
mla_status mla_sparse_any_groups(const struct mla_job *job, const struct mla_sparse_grouping *how,
                                 struct mla_sparse_any_args *g, void *stream);
mla_status mla_sparse_any_launch(const struct mla_job *job, const struct mla_sparse_grouping *how,
                                 const struct mla_mqa_tile *tile, const struct mla_mqa_args *args,
                                 const struct mla_mqa_launch *launch, void *stream);
/* Groups that fill 32 rows, computed by the kernel above. */
extern const struct mla_sparse_grouping mla_sparse_any_grouping;
enum { MLA_SPARSE_ANY_TILES = 2 };

#ifdef __cplusplus
}
#endif
#endif

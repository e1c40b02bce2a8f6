/* SPDX-License-Identifier: Apache-2.0 */
/* Absorbed-form attention over top-k lists for few heads on sm_90, host side. Groups of neighbouring
 * tokens that fill 64 rows (16 heads of four tokens) go over the union of their lists in the wgmma
 * kernel of sparse_mqa_prefill.cuh; all else is any/sparse_mqa.c's. */
#include "any/sparse_mqa.h"
#include "device.h"
#include "sparse_mqa_prefill.h"
#include "status.h"

#include <stdio.h>

enum { ROWS = MLA_SPARSE_SM90_HEADS };

static bool supports(const struct mla_job *job, char *why, size_t bytes)
{
    if (job->context->sm == 90)
        return mla_sparse_any_supports(job, why, bytes);
    snprintf(why, bytes, "sm_%d, want sm_90", job->context->sm);
    return false;
}

/* Tokens whose heads fill a tile; 0: other groups. */
static int full_tile(const mla_problem *p)
{
    bool fits = p->heads_q >= ROWS / MLA_UNION_TOKENS && p->heads_q < ROWS && ROWS % p->heads_q == 0;
    return fits ? (int)(ROWS / p->heads_q) : 0;
}

static int group_size(const mla_problem *p)
{
    int size = full_tile(p);
    return size ? size : mla_sparse_any_grouping.size(p);
}

static struct mla_mqa_tile group_tile(const mla_problem *p)
{
    int rope = (int)p->qk_rope_dim;
    return p->q_dtype == MLA_BF16 ? mla_sparse_sm90_group_bf16(rope)
                                  : mla_sparse_sm90_group_f16(rope);
}

static mla_status prepare_groups(const mla_problem *p)
{
    if (!full_tile(p))
        return mla_sparse_any_grouping.prepare(p);
    struct mla_mqa_tile t = group_tile(p);
    return mla_cuda_allow_shared(t.function, t.shared_bytes, 0);
}

static mla_status launch_groups(const struct mla_job *job, const struct mla_sparse_any_args *args,
                                void *stream)
{
    const mla_problem *p = job->problem;
    const struct mla_mqa_args *a = &args->a;
    if (!full_tile(p))
        return mla_sparse_any_grouping.launch(job, args, stream);
    struct mla_mqa_tile t = group_tile(p);
    struct mla_sparse_sm90_args g = {
        .a = *a,
        .works = args->groups.count,
        .wide_stores = args->wide_stores,
        .groups = args->groups,
    };
    const uint64_t dims[3] = {(uint64_t)(MLA_MQA_LATENT + p->qk_rope_dim), (uint64_t)p->heads_q,
                              (uint64_t)mla_total_q(p)};
    const uint64_t strides[2] = {(uint64_t)a->q_stride[1], (uint64_t)a->q_stride[0]};
    const uint32_t box[3] = {64, (uint32_t)p->heads_q, (uint32_t)args->groups.size};
    int sms;
    mla_status status = mla_tensor_map_tiled(&g.q, 2, 3, a->q, dims, strides, box, 128);
    if (status != MLA_OK)
        return status;
    MLA_CUDA(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, job->context->device));
    return mla_mqa_launch_grid(&t, &g, g.works < sms ? g.works : sms, stream);
}

static const struct mla_sparse_grouping grouping = {
    .most = 170,
    .size = group_size,
    .prepare = prepare_groups,
    .launch = launch_groups,
};

static mla_status scratch(const struct mla_job *job, size_t *bytes)
{
    return mla_sparse_any_scratch(job, &grouping, bytes);
}

static mla_status launch(const struct mla_job *job, const struct mla_mqa_tile *tile,
                         const struct mla_mqa_args *args, const struct mla_mqa_launch *launch,
                         void *stream)
{
    return mla_sparse_any_launch(job, &grouping, tile, args, launch, stream);
}

static const struct mla_mqa_engine engine = {
    .name = "sparse_mqa_few_sm90",
    .num_tiles = MLA_SPARSE_ANY_TILES,
    .most_shared = MLA_ANY_SHARED_BYTES,
    .supports = supports,
    .cut = mla_sparse_any_cut,
    .tile = mla_sparse_any_tile,
    .scratch = scratch,
    .launch = launch,
};

const struct mla_kernel mla_sparse_mqa_few_sm90 = {
    .name = "sparse_mqa_few_sm90",
    .architecture = "sm_90a",
    .proof = MLA_PROOF_MODEL,
    .formats = MLA_BIT(MLA_CACHE_BF16) | MLA_BIT(MLA_CACHE_F16),
    .engine = &engine,
    MLA_MQA_ABSORBED_ROW,
};

const struct mla_kernel mla_sparse_mqa_few_latent_sm90 = {
    .name = "sparse_mqa_few_latent_sm90",
    .architecture = "sm_90a",
    .proof = MLA_PROOF_MODEL,
    .formats = MLA_BIT(MLA_CACHE_BF16) | MLA_BIT(MLA_CACHE_F16),
    .engine = &engine,
    MLA_MQA_LATENT_ROW,
};

/* SPDX-License-Identifier: Apache-2.0 */
/* Absorbed-form attention of up to 16 heads on sm_90, host side: the engine of sparse_mqa_few.cuh
 * and its rows. Requests are cut as mqa_any cuts them, whose tile of 16 rows takes the launches
 * that this kernel can't: rows of q or the cache that are not aligned to 16 bytes. */
#include "sparse_mqa_few.h"

#include "device.h"
#include "format.h"
#include "status.h"

#include <inttypes.h>
#include <stdio.h>

/* Blocks of keys of a work that is worth handing on. */
enum { LEAST_STEPS = 4 };

bool mla_few_sm90_fits(const struct mla_job *job)
{
    const mla_problem *p = job->problem;
    return p->heads_q <= MLA_FEW_SM90_HEADS && !mla_cache_is_packed(p->cache_format) &&
           mla_total_q(p) <= INT32_MAX;
}

static bool supports(const struct mla_job *job, char *why, size_t bytes)
{
    const mla_problem *p = job->problem;
    bool several = false;
    for (int64_t i = 0; i < job->num_requests; i++)
        several = several || job->requests[i].query_len > 1;
    if (job->context->sm != 90)
        snprintf(why, bytes, "sm_%d, want sm_90", job->context->sm);
    else if (p->heads_q > MLA_FEW_SM90_HEADS)
        snprintf(why, bytes, "%" PRId64 " heads, want at most %d", p->heads_q, MLA_FEW_SM90_HEADS);
    else if (mla_cache_is_packed(p->cache_format))
        snprintf(why, bytes, "a %s cache, want bf16 or f16",
                 mla_cache_format_name(p->cache_format));
    else if (!mla_mqa_uses_lists(job) && (several || p->has_mask))
        snprintf(why, bytes, "no top-k lists, and %s",
                 several ? "several query tokens of a request" : "a mask");
    else if (!mla_mqa_uses_lists(job) && !job->named)
        snprintf(why, bytes, "no top-k lists, other kernels are faster");
    else if (!mla_few_sm90_fits(job))
        snprintf(why, bytes, "%" PRId64 " queries, want fewer than 2^31", mla_total_q(p));
    else
        return true;
    return false;
}

static struct mla_mqa_tile few_tile(const mla_problem *p)
{
    int rope = (int)p->qk_rope_dim;
    return p->q_dtype == MLA_BF16 ? mla_few_sm90_tile_bf16(rope) : mla_few_sm90_tile_f16(rope);
}

/* Blocks of a grid of so many works. */
static mla_status few_blocks(const struct mla_job *job, int64_t works, int64_t *blocks)
{
    int sms;
    MLA_CUDA(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, job->context->device));
    *blocks = works < 2 * sms ? works : 2 * sms;
    return MLA_OK;
}

/* Blocks of keys of a work, if works are handed on from block to block: where there are more than
 * blocks, and long ones. 0: they are not. */
static int handed_steps(const struct mla_job *job, int64_t works, int64_t blocks)
{
    int64_t steps = (job->problem->topk + MLA_FEW_SM90_KEYS - 1) / MLA_FEW_SM90_KEYS;
    return mla_mqa_uses_lists(job) && works > blocks && steps >= LEAST_STEPS ? (int)steps : 0;
}

/* Of the ticket and the flags. */
static size_t flag_bytes(int64_t blocks)
{
    return ((size_t)(1 + blocks) * 4 + 255) & ~(size_t)255;
}

mla_status mla_few_sm90_prepare(const struct mla_job *job, size_t *bytes)
{
    struct mla_mqa_tile t = few_tile(job->problem);
    int64_t works = 0, blocks = 0;
    for (int64_t i = 0; i < job->num_requests; i++) {
        struct mla_mqa_cut cut = mla_mqa_any_cut(job, &job->requests[i]);
        works += cut.tiles * cut.splits;
    }
    mla_status status = few_blocks(job, works, &blocks);
    if (status != MLA_OK)
        return status;
    *bytes = handed_steps(job, works, blocks)
                 ? flag_bytes(blocks) + (size_t)blocks * MLA_FEW_SM90_STATE * sizeof(float)
                 : 0;
    return mla_cuda_allow_shared(t.function, t.shared_bytes, 0);
}

mla_status mla_few_sm90_zeros(const struct mla_job *job, const struct mla_mqa_launch *launch,
                              size_t *bytes)
{
    int64_t blocks = 0;
    mla_status status = few_blocks(job, launch->blocks, &blocks);
    *bytes = handed_steps(job, launch->blocks, blocks) ? flag_bytes(blocks) : 0;
    return status;
}

mla_status mla_few_sm90_launch(const struct mla_job *job, const struct mla_mqa_tile *any_tile,
                               const struct mla_mqa_args *args, const struct mla_mqa_launch *launch,
                               char *scratch, const uint32_t *left, void *stream)
{
    const mla_problem *p = job->problem;
    struct mla_few_sm90_args g = {.a = *args, .works = (int32_t)launch->blocks, .left = left};
    int64_t blocks = 0;
    if (args->cache.align < 16 || args->q_align < 16)
        return mla_mqa_launch_grid(any_tile, &g.a, launch->blocks, stream);
    const uint64_t dims[3] = {(uint64_t)(MLA_MQA_LATENT + p->qk_rope_dim), (uint64_t)p->heads_q,
                              (uint64_t)mla_total_q(p)};
    const uint64_t strides[2] = {(uint64_t)args->q_stride[1], (uint64_t)args->q_stride[0]};
    const uint32_t box[3] = {64, MLA_FEW_SM90_HEADS, 1};
    mla_status status = mla_tensor_map_tiled(&g.q, 2, 3, args->q, dims, strides, box, 128);
    if (status == MLA_OK)
        status = few_blocks(job, launch->blocks, &blocks);
    if (status != MLA_OK)
        return status;
    g.steps = handed_steps(job, launch->blocks, blocks);
    if (g.steps) {
        g.ticket = (uint32_t *)scratch;
        g.flags = g.ticket + 1;
        g.states = (float *)(scratch + flag_bytes(blocks));
    }
    struct mla_mqa_tile t = few_tile(p);
    return mla_mqa_launch_grid(&t, &g, blocks, stream);
}

static mla_status launch_row(const struct mla_job *job, const struct mla_mqa_tile *tile,
                             const struct mla_mqa_args *args, const struct mla_mqa_launch *launch,
                             void *stream)
{
    size_t zeros;
    mla_status status = mla_few_sm90_zeros(job, launch, &zeros);
    if (status == MLA_OK && zeros)
        MLA_CUDA(cudaMemsetAsync(args->scratch, 0, zeros, stream));
    return status == MLA_OK
               ? mla_few_sm90_launch(job, tile, args, launch, args->scratch, NULL, stream)
               : status;
}

static const struct mla_mqa_engine engine = {
    .name = "sparse_mqa_few_sm90",
    .num_tiles = MLA_MQA_ANY_TILES,
    .most_shared = MLA_ANY_SHARED_BYTES,
    .supports = supports,
    .cut = mla_mqa_any_cut,
    .tile = mla_mqa_any_tile,
    .scratch = mla_few_sm90_prepare,
    .launch = launch_row,
};

const struct mla_kernel mla_sparse_mqa_few_sm90 = {
    .name = "sparse_mqa_few_sm90",
    .architecture = "sm_90a",
    .proof = MLA_PROOF_SILICON,
    .formats = MLA_BIT(MLA_CACHE_BF16) | MLA_BIT(MLA_CACHE_F16),
    .engine = &engine,
    MLA_MQA_ABSORBED_ROW,
};

const struct mla_kernel mla_sparse_mqa_few_latent_sm90 = {
    .name = "sparse_mqa_few_latent_sm90",
    .architecture = "sm_90a",
    .proof = MLA_PROOF_SILICON,
    .formats = MLA_BIT(MLA_CACHE_BF16) | MLA_BIT(MLA_CACHE_F16),
    .engine = &engine,
    MLA_MQA_LATENT_ROW,
};

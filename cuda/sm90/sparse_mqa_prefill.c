/* SPDX-License-Identifier: Apache-2.0 */
/* Absorbed-form attention over top-k lists on sm_90, host side: the engine of
 * sparse_mqa_prefill.cuh and its rows. */
#include "sparse_mqa_prefill.h"

#include "any/mqa_plan.h"
#include "device.h"
#include "format.h"
#include "status.h"

#include <inttypes.h>
#include <stdio.h>

enum {
    SMS = 132, /* a request with as many tiles needs no splits */
    LEAST_KEYS = 512,
    FEW_HEADS = 16 /* mqa_any's tiles of 16 rows are faster than 64 rows of which 48 are empty */
};

static bool supports(const struct mla_job *job, char *why, size_t bytes)
{
    if (job->context->sm != 90)
        snprintf(why, bytes, "sm_%d, want sm_90", job->context->sm);
    else if (!mla_mqa_uses_lists(job))
        snprintf(why, bytes, "no top-k lists");
    else if (mla_cache_is_packed(job->problem->cache_format))
        snprintf(why, bytes, "a %s cache, want bf16 or f16",
                 mla_cache_format_name(job->problem->cache_format));
    else if (mla_total_q(job->problem) > INT32_MAX)
        snprintf(why, bytes, "%" PRId64 " queries, want fewer than 2^31",
                 mla_total_q(job->problem));
    else if (job->problem->heads_q <= FEW_HEADS && !job->named)
        snprintf(why, bytes, "heads_q %" PRId64 ", other kernels are faster up to %d",
                 job->problem->heads_q, FEW_HEADS);
    else
        return true;
    return false;
}

/* From the request's own shape alone: the batch around it changes no bit of its result. */
static struct mla_mqa_cut cut(const struct mla_job *job, const struct mla_request *r)
{
    const mla_problem *p = job->problem;
    int64_t heads = MLA_SPARSE_SM90_HEADS, steps;
    struct mla_mqa_cut c = {.tile = 0};
    c.tiles = r->query_len * ((p->heads_q + heads - 1) / heads);
    if (c.tiles == 0)
        return c;
    steps = (p->topk + MLA_SPARSE_SM90_KEYS - 1) / MLA_SPARSE_SM90_KEYS;
    c.splits = mla_mqa_choose_splits(job->wanted_splits, SMS / c.tiles, p->topk, LEAST_KEYS, steps);
    return c;
}

static struct mla_mqa_tile tile(const mla_problem *p, int index)
{
    (void)index;
    return p->q_dtype == MLA_BF16 ? mla_sparse_sm90_tile_bf16((int)p->qk_rope_dim)
                                  : mla_sparse_sm90_tile_f16((int)p->qk_rope_dim);
}

static mla_status launch(const struct mla_job *job, const struct mla_mqa_tile *tile,
                         const struct mla_mqa_args *args, const struct mla_mqa_launch *launch,
                         void *stream)
{
    int sms;
    if (args->cache.align < 16 || args->q_align < 16)
        return mla_fail(MLA_ERR_ARGUMENT,
                        "mla_run: sparse_mqa_prefill_sm90: q and the cache: got rows aligned to %d "
                        "and %d bytes, want 16",
                        args->q_align, args->cache.align);
    int64_t item = args->out_dtype == MLA_F32 ? 4 : 2;
    struct mla_sparse_sm90_args g = {
        .a = *args,
        .works = (int32_t)launch->blocks,
        .wide_stores = ((uint64_t)(uintptr_t)args->out | (uint64_t)(args->out_stride[0] * item) |
                        (uint64_t)(args->out_stride[1] * item)) %
                           16 ==
                       0,
    };
    MLA_CUDA(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, job->context->device));
    return mla_mqa_launch_grid(tile, &g, launch->blocks < sms ? launch->blocks : sms, stream);
}

static const struct mla_mqa_engine engine = {
    .name = "sparse_mqa_prefill_sm90",
    .num_tiles = 1,
    .supports = supports,
    .cut = cut,
    .tile = tile,
    .launch = launch,
};

const struct mla_kernel mla_sparse_mqa_prefill_sm90 = {
    .name = "sparse_mqa_prefill_sm90",
    .architecture = "sm_90a",
    .proof = MLA_PROOF_SILICON,
    .formats = MLA_BIT(MLA_CACHE_BF16) | MLA_BIT(MLA_CACHE_F16),
    .engine = &engine,
    MLA_MQA_ABSORBED_ROW,
};

const struct mla_kernel mla_sparse_mqa_latent_sm90 = {
    .name = "sparse_mqa_latent_sm90",
    .architecture = "sm_90a",
    .proof = MLA_PROOF_SILICON,
    .formats = MLA_BIT(MLA_CACHE_BF16) | MLA_BIT(MLA_CACHE_F16),
    .engine = &engine,
    MLA_MQA_LATENT_ROW,
};

/* SPDX-License-Identifier: Apache-2.0 */
/* Absorbed-form attention over top-k lists for few heads on sm_90, host side. Groups of
 * neighbouring tokens whose heads fill 64 rows (four tokens of 16 heads) go over the union of their
 * lists (any/union.h) in the wgmma kernel of sparse_mqa_prefill.cuh. Tokens of groups whose lists
 * have too little in common are left to the kernel of sparse_mqa_few.cuh (32 heads: mqa_any's),
 * which runs behind it. The device decides. */
#include "any/mqa_plan.h"
#include "any/union.h"
#include "device.h"
#include "format.h"
#include "sparse_mqa_few.h"
#include "sparse_mqa_prefill.h"
#include "status.h"

#include <inttypes.h>
#include <stdio.h>

enum {
    ROWS = MLA_SPARSE_SM90_HEADS,
    LEAST_HEADS = ROWS / MLA_UNION_TOKENS,
    MOST_CAPACITY = 1 << 20 /* entries */
};

/* Longest union that gains, in 256ths of its entries. Beside tokens alone, a key costs 64 rows of 8
 * or 16 heads 1.9 or 1.7 times what it costs sparse_mqa_few_sm90, those of 32 heads 0.8 times what it
 * costs mqa_any (docs/performance.md). */
static int most_union(const mla_problem *p)
{
    return p->heads_q <= 8 ? 136 : p->heads_q <= 16 ? 152 : 256;
}

static int64_t longest_request(const struct mla_job *job)
{
    int64_t longest = 0;
    for (int64_t i = 0; i < job->num_requests; i++)
        if (job->requests[i].seq_len_kv > longest)
            longest = job->requests[i].seq_len_kv;
    return longest;
}

static bool supports(const struct mla_job *job, char *why, size_t bytes)
{
    const mla_problem *p = job->problem;
    if (job->context->sm != 90)
        snprintf(why, bytes, "sm_%d, want sm_90", job->context->sm);
    else if (!mla_mqa_uses_lists(job))
        snprintf(why, bytes, "no top-k lists");
    else if (p->heads_q < LEAST_HEADS || p->heads_q >= ROWS || ROWS % p->heads_q)
        snprintf(why, bytes, "%" PRId64 " heads, want 8, 16 or 32", p->heads_q);
    else if (mla_cache_is_packed(p->cache_format))
        snprintf(why, bytes, "a %s cache, want bf16 or f16",
                 mla_cache_format_name(p->cache_format));
    else if (longest_request(job) >= (int64_t)1 << MLA_UNION_MASK)
        snprintf(why, bytes, "a request of %" PRId64 " keys, want fewer than 2^%d",
                 longest_request(job), MLA_UNION_MASK);
    else if (mla_total_q(p) > INT32_MAX)
        snprintf(why, bytes, "%" PRId64 " queries, want fewer than 2^31", mla_total_q(p));
    else
        return true;
    return false;
}

static int group_size(const mla_problem *p)
{
    return (int)(ROWS / p->heads_q);
}

static int capacity_of(const mla_problem *p)
{
    int64_t most = p->topk * group_size(p) * most_union(p) / 256;
    return (int)(most < MOST_CAPACITY ? most : MOST_CAPACITY);
}

static struct mla_mqa_tile group_tile(const mla_problem *p)
{
    int rope = (int)p->qk_rope_dim;
    return p->q_dtype == MLA_BF16 ? mla_sparse_sm90_group_bf16(rope)
                                  : mla_sparse_sm90_group_f16(rope);
}

/* Scratch: the unions, then what the kernel of few heads takes. */
static size_t union_bytes(const struct mla_job *job)
{
    const mla_problem *p = job->problem;
    size_t bytes = mla_union_bytes(p, group_size(p), capacity_of(p));
    return mla_union_has_groups(job, mla_mqa_any_cut) ? bytes : 0;
}

static mla_status scratch(const struct mla_job *job, size_t *bytes)
{
    size_t few = 0;
    mla_status status = mla_few_sm90_fits(job) ? mla_few_sm90_prepare(job, &few) : MLA_OK;
    *bytes = union_bytes(job) + few;
    if (!union_bytes(job) || status != MLA_OK)
        return status;
    struct mla_mqa_tile t = group_tile(job->problem);
    status = mla_cuda_allow_shared(t.function, t.shared_bytes, 0);
    return status == MLA_OK ? mla_union_prepare() : status;
}

static mla_status launch_groups(const struct mla_job *job, const struct mla_mqa_args *a,
                                const struct mla_mqa_groups *groups, void *stream)
{
    const mla_problem *p = job->problem;
    int64_t item = a->out_dtype == MLA_F32 ? 4 : 2;
    struct mla_mqa_tile t = group_tile(p);
    struct mla_sparse_sm90_args g = {
        .a = *a,
        .works = groups->count,
        .wide_stores = ((uint64_t)(uintptr_t)a->out | (uint64_t)(a->out_stride[0] * item) |
                        (uint64_t)(a->out_stride[1] * item)) %
                           16 ==
                       0,
        .groups = *groups,
    };
    int sms;
    MLA_CUDA(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, job->context->device));
    return mla_mqa_launch_grid(&t, &g, g.works < sms ? g.works : sms, stream);
}

static mla_status launch(const struct mla_job *job, const struct mla_mqa_tile *tile,
                         const struct mla_mqa_args *args, const struct mla_mqa_launch *launch,
                         void *stream)
{
    const mla_problem *p = job->problem;
    struct mla_mqa_args a = *args;
    char *few = a.scratch + union_bytes(job);
    size_t zeros = 0;
    const bool fits = mla_few_sm90_fits(job);
    mla_status status = fits ? mla_few_sm90_zeros(job, launch, &zeros) : MLA_OK;
    uint32_t *tally = NULL;
    if (status == MLA_OK && mla_union_has_groups(job, mla_mqa_any_cut) && a.cache.align == 16 &&
        a.q_align == 16) {
        tally = mla_union_tally(p, group_size(p), capacity_of(p), a.scratch);
        zeros += MLA_UNION_TALLY_BYTES; /* they lie before few's */
        MLA_CUDA(cudaMemsetAsync(tally, 0, zeros, stream));
        status = mla_union_run(job, &a, group_size(p), capacity_of(p), most_union(p), tally,
                               launch_groups, stream);
    } else if (status == MLA_OK && zeros) {
        MLA_CUDA(cudaMemsetAsync(few, 0, zeros, stream));
    }
    if (status != MLA_OK)
        return status;
    if (fits)
        return mla_few_sm90_launch(job, tile, &a, launch, few, tally ? tally + 1 : NULL, stream);
    return mla_mqa_launch_grid(tile, &a, launch->blocks, stream);
}

static const struct mla_mqa_engine engine = {
    .name = "sparse_mqa_group_sm90",
    .num_tiles = MLA_MQA_ANY_TILES,
    .most_shared = MLA_ANY_SHARED_BYTES,
    .supports = supports,
    .cut = mla_mqa_any_cut,
    .tile = mla_mqa_any_tile,
    .scratch = scratch,
    .launch = launch,
};

const struct mla_kernel mla_sparse_mqa_group_sm90 = {
    .name = "sparse_mqa_group_sm90",
    .architecture = "sm_90a",
    .proof = MLA_PROOF_SILICON,
    .formats = MLA_BIT(MLA_CACHE_BF16) | MLA_BIT(MLA_CACHE_F16),
    .engine = &engine,
    MLA_MQA_ABSORBED_ROW,
};

const struct mla_kernel mla_sparse_mqa_group_latent_sm90 = {
    .name = "sparse_mqa_group_latent_sm90",
    .architecture = "sm_90a",
    .proof = MLA_PROOF_SILICON,
    .formats = MLA_BIT(MLA_CACHE_BF16) | MLA_BIT(MLA_CACHE_F16),
    .engine = &engine,
    MLA_MQA_LATENT_ROW,
};

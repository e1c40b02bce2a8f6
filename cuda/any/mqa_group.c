/* SPDX-License-Identifier: Apache-2.0 */
/* Absorbed-form attention over top-k lists of up to 16 heads on any GPU from sm_80, host side.
 * Groups of neighbouring tokens, whose heads fill a tile of mqa.cuh, go over the union of their
 * lists (union.h): a key is gathered, and widened where the cache is packed, once for all of them.
 * Tokens of groups whose lists have too little in common are left to mqa_any's kernel, which runs
 * behind. The device decides. */
#include "../device.h"
#include "format.h"
#include "mqa_plan.h"
#include "status.h"
#include "union.h"

#include <inttypes.h>
#include <stdio.h>

enum {
    TILES = MLA_MQA_ANY_TILES,
    MOST_HEADS = 16,
    MOST_CAPACITY = 1 << 20 /* entries */
};
static const int tile_rows[TILES] = {16, 32, 64};
/* Times of a tile over a list, on an H100, relative to each other: plain caches, packed ones. */
static const int list_cost[2][TILES] = {{181, 281, 474}, {289, 379, 620}};
/* Hundredths of a list that the union of so many takes where attention makes them
 * (docs/performance.md). */
static const int union_growth[MLA_UNION_TOKENS + 1] = {0, 100, 116, 126, 135, 144, 153, 162, 170};

/* Tokens of a group, and the tile that computes it. */
struct grouping {
    int tile, size;
    int most; /* longest union that gains, in 256ths of its entries */
};

/* The cheapest tile; a larger one only if it gains a thirtieth, since fewer unions suit it. size 1:
 * tokens gather for themselves. */
static struct grouping grouping_of(const mla_problem *p)
{
    const int *cost = list_cost[mla_cache_is_packed(p->cache_format)];
    struct grouping best = {0, 1, 0};
    int least = 100 * cost[0];
    for (int t = 0; t < TILES; t++) {
        int size = (int)(tile_rows[t] / p->heads_q);
        size = size < MLA_UNION_TOKENS ? size : MLA_UNION_TOKENS;
        if (size < 2)
            continue;
        int most = 256 * cost[0] / cost[t], per_token = union_growth[size] * cost[t] / size;
        if (30 * per_token < 29 * least) {
            best = (struct grouping){t, size, most};
            least = per_token;
        }
    }
    return best;
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
    if (!mla_mqa_uses_lists(job))
        snprintf(why, bytes, "no top-k lists");
    else if (p->heads_q > MOST_HEADS)
        snprintf(why, bytes, "%" PRId64 " heads, want at most %d", p->heads_q, MOST_HEADS);
    else if (longest_request(job) >= (int64_t)1 << MLA_UNION_MASK)
        snprintf(why, bytes, "a request of %" PRId64 " keys, want fewer than 2^%d",
                 longest_request(job), MLA_UNION_MASK);
    else if (mla_total_q(p) > INT32_MAX)
        snprintf(why, bytes, "%" PRId64 " queries, want fewer than 2^31", mla_total_q(p));
    else
        return true;
    return false;
}

static int capacity_of(const mla_problem *p, const struct grouping *g)
{
    int64_t most = p->topk * g->size * g->most / 256;
    return (int)(most < MOST_CAPACITY ? most : MOST_CAPACITY);
}

static struct mla_mqa_tile group_tile(const mla_problem *p, const struct grouping *g)
{
    int rows = tile_rows[g->tile], rope = (int)p->qk_rope_dim;
    bool packed = mla_cache_is_packed(p->cache_format);
    return p->q_dtype == MLA_BF16 ? mla_mqa_group_tile_bf16(rows, rope, packed)
                                  : mla_mqa_group_tile_f16(rows, rope, packed);
}

static mla_status scratch(const struct mla_job *job, size_t *bytes)
{
    const mla_problem *p = job->problem;
    struct grouping g = grouping_of(p);
    struct mla_mqa_tile t = group_tile(p, &g);
    *bytes = 0;
    if (!mla_union_has_groups(job, mla_mqa_any_cut))
        return MLA_OK;
    *bytes = mla_union_bytes(p, g.size, capacity_of(p, &g));
    mla_status status = mla_cuda_allow_shared(t.function, t.shared_bytes, MLA_ANY_SHARED_BYTES);
    return status == MLA_OK ? mla_union_prepare() : status;
}

static mla_status attend_groups(const struct mla_job *job, const struct mla_mqa_args *args,
                                const struct mla_mqa_groups *groups, void *stream)
{
    struct grouping chosen = grouping_of(job->problem);
    struct mla_mqa_tile t = group_tile(job->problem, &chosen);
    struct mla_mqa_group_args g = {.a = *args, .groups = *groups};
    return mla_mqa_launch_grid(&t, &g, groups->count, stream);
}

static mla_status launch(const struct mla_job *job, const struct mla_mqa_tile *tile,
                         const struct mla_mqa_args *args, const struct mla_mqa_launch *launch,
                         void *stream)
{
    const mla_problem *p = job->problem;
    struct grouping g = grouping_of(p);
    struct mla_mqa_args a = *args;
    mla_status status = MLA_OK;
    if (mla_union_has_groups(job, mla_mqa_any_cut))
        status =
            mla_union_run(job, &a, g.size, capacity_of(p, &g), g.most, NULL, attend_groups, stream);
    return status == MLA_OK ? mla_mqa_launch_grid(tile, &a, launch->blocks, stream) : status;
}

static const struct mla_mqa_engine engine = {
    .name = "sparse_mqa_group_any",
    .num_tiles = TILES,
    .most_shared = MLA_ANY_SHARED_BYTES,
    .supports = supports,
    .cut = mla_mqa_any_cut,
    .tile = mla_mqa_any_tile,
    .scratch = scratch,
    .launch = launch,
};

const struct mla_kernel mla_sparse_mqa_group_any = {
    .name = "sparse_mqa_group_any",
    .architecture = "sm_80+",
    .proof = MLA_PROOF_SILICON,
    .formats = MLA_BIT(MLA_CACHE_BF16) | MLA_BIT(MLA_CACHE_F16) | MLA_BIT(MLA_CACHE_FP8_DS_MLA) |
               MLA_BIT(MLA_CACHE_MODEL1) | MLA_BIT(MLA_CACHE_V41) | MLA_BIT(MLA_CACHE_NVFP4_DS_MLA),
    .engine = &engine,
    MLA_MQA_ABSORBED_ROW,
};

const struct mla_kernel mla_sparse_mqa_group_latent_any = {
    .name = "sparse_mqa_group_latent_any",
    .architecture = "sm_80+",
    .proof = MLA_PROOF_SILICON,
    .formats = MLA_BIT(MLA_CACHE_BF16) | MLA_BIT(MLA_CACHE_F16) | MLA_BIT(MLA_CACHE_FP8_DS_MLA) |
               MLA_BIT(MLA_CACHE_NVFP4_DS_MLA),
    .engine = &engine,
    MLA_MQA_LATENT_ROW,
};

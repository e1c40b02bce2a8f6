/* SPDX-License-Identifier: Apache-2.0 */
/* Absorbed-form attention over top-k lists for few heads, host side: the engine of sparse_mqa.cuh
 * and its rows. Requests of several tokens are tried in groups first (union.h): the kernel of groups
 * runs, then that of single tokens, each leaving the other's tokens alone. */
#include "sparse_mqa.h"

#include "../device.h"
#include "format.h"
#include "status.h"

#include <inttypes.h>
#include <stdio.h>

enum {
    TILE_16,
    TILE_32,
    MOST_HEADS = 48, /* three tiles of 16 rows */
    /* A request with this many tiles fills a GPU without splitting its lists. */
    ENOUGH_TILES = 128,
    LEAST_KEYS = 1024,
    MOST_SPLITS = 64,
    GROUP_ROWS = 32,
    MOST_CAPACITY = 7 << 10
};

bool mla_sparse_any_supports(const struct mla_job *job, char *why, size_t bytes)
{
    const mla_problem *p = job->problem;
    if (!mla_mqa_uses_lists(job))
        snprintf(why, bytes, "no top-k lists");
    else if (p->heads_q > MOST_HEADS)
        snprintf(why, bytes, "%" PRId64 " heads, want at most %d", p->heads_q, MOST_HEADS);
    else if (mla_cache_is_packed(p->cache_format))
        snprintf(why, bytes, "a %s cache, want bf16 or f16",
                 mla_cache_format_name(p->cache_format));
    else if (mla_total_q(p) > INT32_MAX)
        snprintf(why, bytes, "%" PRId64 " queries, want fewer than 2^31", mla_total_q(p));
    else
        return true;
    return false;
}

static int rows_of(int tile)
{
    return tile == TILE_16 ? 16 : 32;
}

/* From the request's own shape alone: the batch around it changes no bit of its result. */
struct mla_mqa_cut mla_sparse_any_cut(const struct mla_job *job, const struct mla_request *r)
{
    const mla_problem *p = job->problem;
    struct mla_mqa_cut c = {.tile = p->heads_q > 16 && p->heads_q <= 32 ? TILE_32 : TILE_16};
    int64_t rows = rows_of(c.tile), steps = (p->topk + MLA_MQA_KEYS - 1) / MLA_MQA_KEYS;
    c.tiles = r->query_len * ((p->heads_q + rows - 1) / rows);
    if (c.tiles == 0)
        return c;
    c.splits = job->wanted_splits;
    if (c.splits == 0) {
        int64_t room = ENOUGH_TILES / c.tiles, most = p->topk / LEAST_KEYS;
        c.splits = most < room ? most : room;
        c.splits = c.splits < MOST_SPLITS ? c.splits : MOST_SPLITS;
    }
    c.splits = c.splits < steps ? c.splits : steps;
    c.splits = c.splits < 1 ? 1 : c.splits;
    return c;
}

static struct mla_mqa_tile tile_of(const mla_problem *p, int rows, bool group)
{
    int rope = (int)p->qk_rope_dim;
    return p->q_dtype == MLA_BF16 ? mla_sparse_any_tile_bf16(rows, rope, group)
                                  : mla_sparse_any_tile_f16(rows, rope, group);
}

struct mla_mqa_tile mla_sparse_any_tile(const mla_problem *p, int index)
{
    return tile_of(p, rows_of(index), false);
}

/* ------------------------------------------------------------------- groups */

static int group_size(const mla_problem *p)
{
    int64_t size = GROUP_ROWS / p->heads_q;
    return size < 2 ? 0 : (int)(size < MLA_UNION_TOKENS ? size : MLA_UNION_TOKENS);
}

static mla_status prepare_groups(const mla_problem *p)
{
    struct mla_mqa_tile t = tile_of(p, GROUP_ROWS, true);
    return mla_cuda_allow_shared(t.function, t.shared_bytes, MLA_ANY_SHARED_BYTES);
}

static mla_status launch_groups(const struct mla_job *job, const struct mla_sparse_any_args *args,
                                void *stream)
{
    struct mla_mqa_tile t = tile_of(job->problem, GROUP_ROWS, true);
    return mla_mqa_launch_grid(&t, (void *)args, args->groups.count, stream);
}

const struct mla_sparse_grouping mla_sparse_any_grouping = {
    .most = 204,
    .size = group_size,
    .prepare = prepare_groups,
    .launch = launch_groups,
};

static int capacity_of(const mla_problem *p, const struct mla_sparse_grouping *how)
{
    int64_t most = p->topk * how->size(p) * how->most / 256;
    return (int)(most < MOST_CAPACITY ? most : MOST_CAPACITY);
}

static bool has_groups(const struct mla_job *job, const struct mla_sparse_grouping *how)
{
    const struct mla_mqa_engine *engine = job->kernel->engine;
    if (!how->size(job->problem))
        return false;
    for (int64_t i = 0; i < job->num_requests; i++)
        if (job->requests[i].query_len > 1 && engine->cut(job, &job->requests[i]).splits == 1)
            return true;
    return false;
}

mla_status mla_sparse_any_scratch(const struct mla_job *job, const struct mla_sparse_grouping *how,
                                  size_t *bytes)
{
    const mla_problem *p = job->problem;
    *bytes = 0;
    if (!has_groups(job, how))
        return MLA_OK;
    *bytes = mla_union_bytes(p, how->size(p), capacity_of(p, how));
    mla_status status = how->prepare(p);
    return status == MLA_OK ? mla_union_prepare() : status;
}

/* ------------------------------------------------------------------- launch */

/* Rows that no 16-byte load may read go to mqa_any: its tiles of so many rows count alike. */
static mla_status launch_any(const mla_problem *p, const struct mla_mqa_args *args,
                             const struct mla_mqa_launch *launch, void *stream)
{
    int rows = rows_of(launch->tile), rope = (int)p->qk_rope_dim;
    struct mla_mqa_tile any = p->q_dtype == MLA_BF16 ? mla_mqa_tile_bf16(rows, rope, false)
                                                     : mla_mqa_tile_f16(rows, rope, false);
    struct mla_mqa_args a = *args;
    MLA_CUDA(cudaFuncSetAttribute(any.function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  (int)any.shared_bytes));
    return mla_mqa_launch_grid(&any, &a, launch->blocks, stream);
}

mla_status mla_sparse_any_groups(const struct mla_job *job, const struct mla_sparse_grouping *how,
                                 struct mla_sparse_any_args *g, void *stream)
{
    const mla_problem *p = job->problem;
    if (!has_groups(job, how))
        return MLA_OK;
    int64_t all = mla_union_numbers(p, how->size(p)), here;
    g->groups = mla_union_groups(p, how->size(p), capacity_of(p, how), g->a.scratch);
    for (here = g->groups.count; g->groups.first < all; g->groups.first += (int32_t)here) {
        int64_t left = all - g->groups.first;
        g->groups.count = (int32_t)(left < here ? left : here);
        mla_status status = mla_union_launch(p, &g->a, &g->groups, how->most, stream);
        if (status == MLA_OK)
            status = how->launch(job, g, stream);
        if (status != MLA_OK)
            return status;
    }
    return MLA_OK;
}

mla_status mla_sparse_any_launch(const struct mla_job *job, const struct mla_sparse_grouping *how,
                                 const struct mla_mqa_tile *tile, const struct mla_mqa_args *args,
                                 const struct mla_mqa_launch *launch, void *stream)
{
    const mla_problem *p = job->problem;
    if (args->cache.align < 16 || args->q_align < 16)
        return launch_any(p, args, launch, stream);
    int64_t item = args->out_dtype == MLA_F32 ? 4 : 2;
    struct mla_sparse_any_args g = {
        .a = *args,
        .wide_stores = ((uint64_t)(uintptr_t)args->out | (uint64_t)(args->out_stride[0] * item) |
                        (uint64_t)(args->out_stride[1] * item)) %
                           16 ==
                       0,
    };
    mla_status status = mla_sparse_any_groups(job, how, &g, stream);
    return status == MLA_OK ? mla_mqa_launch_grid(tile, &g, launch->blocks, stream) : status;
}

static mla_status scratch(const struct mla_job *job, size_t *bytes)
{
    return mla_sparse_any_scratch(job, &mla_sparse_any_grouping, bytes);
}

static mla_status launch(const struct mla_job *job, const struct mla_mqa_tile *tile,
                         const struct mla_mqa_args *args, const struct mla_mqa_launch *launch,
                         void *stream)
{
    return mla_sparse_any_launch(job, &mla_sparse_any_grouping, tile, args, launch, stream);
}

static const struct mla_mqa_engine engine = {
    .name = "sparse_mqa_any",
    .num_tiles = MLA_SPARSE_ANY_TILES,
    .most_shared = MLA_ANY_SHARED_BYTES,
    .supports = mla_sparse_any_supports,
    .cut = mla_sparse_any_cut,
    .tile = mla_sparse_any_tile,
    .scratch = scratch,
    .launch = launch,
};

const struct mla_kernel mla_sparse_mqa_any = {
    .name = "sparse_mqa_any",
    .architecture = "sm_80+",
    .proof = MLA_PROOF_SILICON,
    .formats = MLA_BIT(MLA_CACHE_BF16) | MLA_BIT(MLA_CACHE_F16),
    .engine = &engine,
    MLA_MQA_ABSORBED_ROW,
};

const struct mla_kernel mla_sparse_mqa_latent_any = {
    .name = "sparse_mqa_latent_any",
    .architecture = "sm_80+",
    .proof = MLA_PROOF_SILICON,
    .formats = MLA_BIT(MLA_CACHE_BF16) | MLA_BIT(MLA_CACHE_F16),
    .engine = &engine,
    MLA_MQA_LATENT_ROW,
};

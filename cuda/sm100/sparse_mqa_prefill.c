/* SPDX-License-Identifier: Apache-2.0 */
/* sparse_mqa_prefill: the engine for top-k lists on sm_100: tiles, key splits, tensor maps. Device
 * side: sparse_mqa_prefill.cu. */
#include "sparse_mqa_prefill.h"

#include "any/mqa_plan.h"
#include "any/union.h"
#include "device.h"
#include "format.h"
#include "status.h"

#include <inttypes.h>
#include <stdio.h>

enum {
    TILES = 3,
    PAIR = 2,                 /* tile of a pair of CTAs */
    KEYS = 64,                /* a split is some blocks of that many, or twice */
    SMS = 148,                /* a request with as many tiles needs no splits */
    LEAST_KEYS = 512,         /* below, a split costs more than it gains */
    GROUP_ROWS = 64,          /* of a tile whose tokens are a group */
    MOST_UNION = 204,         /* longest union that gains, in 256ths of its entries */
    MOST_CAPACITY = 14 << 10, /* entries: what union.cu has shared memory for */
};
/* Rows of a CTA. The table counts tiles of so many rows; a pair computes two. */
static const int tile_rows[TILES] = {32, 64, 64};

/* Pairs for whole multiples of 128 heads, the last up to half empty; odd tiles go alone. */
static int tile_of(int64_t heads)
{
    return heads <= 32 ? 0 : (heads + 63) / 64 % 2 ? 1 : PAIR;
}

static bool supports(const struct mla_job *job, char *why, size_t bytes)
{
    const mla_problem *p = job->problem;
    int sm = job->context->sm;
    if (sm != 100 && sm != 103)
        snprintf(why, bytes, "sm_%d, want sm_100 or sm_103", sm);
    else if (!mla_mqa_uses_lists(job))
        snprintf(why, bytes, "no lists, want topk_indices");
    else if (mla_cache_is_packed(p->cache_format))
        snprintf(why, bytes, "a %s cache, want bf16 or f16",
                 mla_cache_format_name(p->cache_format));
    else
        return true;
    return false;
}

/* From the request's own shape alone: the batch around it changes no bit of its result. */
static struct mla_mqa_cut cut(const struct mla_job *job, const struct mla_request *r)
{
    const mla_problem *p = job->problem;
    struct mla_mqa_cut c = {.tile = tile_of(p->heads_q)};
    int64_t rows = tile_rows[c.tile], keys = c.tile == PAIR ? 2 * KEYS : KEYS;
    c.tiles = r->query_len * ((p->heads_q + rows - 1) / rows);
    if (c.tiles == 0)
        return c;
    int64_t steps = (p->topk + keys - 1) / keys;
    c.splits = mla_mqa_choose_splits(job->wanted_splits, SMS / c.tiles, p->topk, LEAST_KEYS, steps);
    return c;
}

static struct mla_mqa_tile tile(const mla_problem *p, int index)
{
    return mla_sparse_tile(index, (int)p->qk_rope_dim, p->q_dtype == MLA_BF16);
}

/* ------------------------------------------------------------------ launch */

/* Can TMA read these rows? Pages must lie a whole number of rows apart. */
static bool rows_fit_maps(const mla_problem *p, const struct mla_mqa_args *a)
{
    const struct mla_mqa_cache *c = &a->cache;
    int64_t limit = (int64_t)1 << 40;
    if (c->align != 16 || a->q_align != 16 || c->row_bytes >= limit || c->rope_row_bytes >= limit ||
        a->q_stride[0] >= limit || a->q_stride[1] >= limit)
        return false;
    if (c->page_size == 0)
        return true;
    return c->row_bytes > 0 && c->page_bytes % c->row_bytes == 0 &&
           c->page_bytes / c->row_bytes * p->num_pages <= INT32_MAX;
}

/* rows of heads and tokens a box; one of them is 1, or it is a group. */
static mla_status set_maps(const mla_problem *p, int rows, int group, struct mla_sparse_args *g)
{
    const struct mla_mqa_args *a = &g->a;
    const struct mla_mqa_cache *c = &a->cache;
    const uint64_t heads = (uint64_t)a->heads, tokens = (uint64_t)mla_total_q(p);
    const uint32_t box[3] = {64, (uint32_t)rows, (uint32_t)group}, row_box[2] = {64, 1};
    uint64_t strides[2] = {(uint64_t)a->q_stride[1], (uint64_t)a->q_stride[0]};
    uint64_t dims[3] = {(uint64_t)(MLA_MQA_LATENT + p->qk_rope_dim), heads, tokens};
    mla_status status = mla_tensor_map_tiled(&g->q, 2, 3, a->q, dims, strides, box, 128);

    uint64_t row_bytes = (uint64_t)c->row_bytes, rope_bytes = row_bytes;
    int64_t keys = 0;
    if (c->page_size) {
        g->rows_per_page = (int32_t)(c->page_bytes / c->row_bytes);
        if (p->num_pages)
            keys = (p->num_pages - 1) * g->rows_per_page + p->page_size;
    } else {
        for (int64_t b = 0; b < p->batch; b++)
            keys += p->seq_lens_kv[b];
        rope_bytes = (uint64_t)c->rope_row_bytes;
    }
    /* Without keys nothing is gathered, yet maps want an address. */
    const void *latent = keys ? (const void *)c->data : a->q;
    const void *rope = keys ? (const void *)c->rope : a->q;
    uint64_t row_dims[2] = {MLA_MQA_LATENT, keys ? (uint64_t)keys : 1};
    if (status == MLA_OK)
        status = mla_tensor_map_tiled(&g->latent, 2, 2, latent, row_dims, &row_bytes, row_box, 128);
    row_dims[0] = (uint64_t)p->qk_rope_dim;
    if (status == MLA_OK && p->qk_rope_dim)
        status = mla_tensor_map_tiled(&g->rope, 2, 2, rope, row_dims, &rope_bytes, row_box, 128);

    uint64_t out_strides[2] = {2 * (uint64_t)a->out_stride[1], 2 * (uint64_t)a->out_stride[0]};
    uint64_t all = (uint64_t)(uintptr_t)a->out | out_strides[0] | out_strides[1];
    g->out_by_map = a->out_dtype == (int32_t)p->q_dtype && all % 16 == 0;
    dims[0] = MLA_MQA_LATENT;
    if (status == MLA_OK && g->out_by_map)
        status = mla_tensor_map_tiled(&g->out, 2, 3, a->out, dims, out_strides, box, 128);
    return status;
}

/* Rows that no map describes go to the portable kernel: its tiles of so many rows count alike. */
static mla_status launch_any(const mla_problem *p, const struct mla_mqa_args *args,
                             const struct mla_mqa_launch *launch, void *stream)
{
    int rows = tile_rows[launch->tile], rope = (int)p->qk_rope_dim;
    struct mla_mqa_tile any = p->q_dtype == MLA_BF16 ? mla_mqa_tile_bf16(rows, rope, false)
                                                     : mla_mqa_tile_f16(rows, rope, false);
    struct mla_mqa_args a = *args;
    MLA_CUDA(cudaFuncSetAttribute(any.function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  (int)any.shared_bytes));
    return mla_mqa_launch_grid(&any, &a, launch->blocks, stream);
}

/* A persistent grid over the units. */
static mla_status launch_units(const struct mla_job *job, const struct mla_mqa_tile *tile, int rows,
                               int group, struct mla_sparse_args *g, void *stream)
{
    mla_status status = set_maps(job->problem, rows, group, g);
    if (status != MLA_OK)
        return status;
    int sms = SMS;
    MLA_CUDA(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, job->context->device));
    int64_t clusters = sms / tile->cluster;
    clusters = clusters < 1 ? 1 : clusters < g->units ? clusters : g->units;
    return mla_mqa_launch_grid(tile, g, clusters, stream);
}

/* ------------------------------------------------------------------ groups */

/* Tokens whose heads fill 64 rows; 0: none. */
static int group_size(const mla_problem *p)
{
    bool fits = p->heads_q >= GROUP_ROWS / MLA_UNION_TOKENS && p->heads_q < GROUP_ROWS &&
                GROUP_ROWS % p->heads_q == 0;
    return fits ? (int)(GROUP_ROWS / p->heads_q) : 0;
}

static struct mla_mqa_tile group_tile(const mla_problem *p)
{
    return mla_sparse_group_tile((int)p->qk_rope_dim, p->q_dtype == MLA_BF16);
}

/* Gathering binds few heads, so that any union much shorter than its lists gains. */
static int capacity_of(const mla_problem *p)
{
    int64_t most = p->topk * group_size(p) * MOST_UNION / 256;
    return (int)(most < MOST_CAPACITY ? most : MOST_CAPACITY);
}

static bool has_groups(const struct mla_job *job)
{
    if (!group_size(job->problem))
        return false;
    for (int64_t i = 0; i < job->num_requests; i++)
        if (job->requests[i].seq_len_kv >= (int64_t)1 << MLA_UNION_MASK)
            return false;
    return mla_union_has_groups(job, cut);
}

static mla_status scratch(const struct mla_job *job, size_t *bytes)
{
    const mla_problem *p = job->problem;
    *bytes = 0;
    if (!has_groups(job))
        return MLA_OK;
    struct mla_mqa_tile t = group_tile(p);
    *bytes = mla_union_bytes(p, group_size(p), capacity_of(p));
    mla_status status = mla_cuda_allow_shared(t.function, t.shared_bytes, 0);
    return status == MLA_OK ? mla_union_prepare() : status;
}

static mla_status launch_groups(const struct mla_job *job, const struct mla_mqa_args *a,
                                const struct mla_mqa_groups *groups, void *stream)
{
    struct mla_mqa_tile t = group_tile(job->problem);
    struct mla_sparse_args args = {.a = *a, .units = groups->count, .groups = *groups};
    return launch_units(job, &t, (int)job->problem->heads_q, groups->size, &args, stream);
}

static mla_status launch(const struct mla_job *job, const struct mla_mqa_tile *tile,
                         const struct mla_mqa_args *args, const struct mla_mqa_launch *launch,
                         void *stream)
{
    const mla_problem *p = job->problem;
    if (!rows_fit_maps(p, args))
        return launch_any(p, args, launch, stream);
    struct mla_sparse_args g = {.a = *args, .units = (int32_t)(launch->blocks / tile->cluster)};
    if (has_groups(job)) {
        mla_status status = mla_union_run(job, &g.a, group_size(p), capacity_of(p), MOST_UNION,
                                          NULL, launch_groups, stream);
        if (status != MLA_OK)
            return status;
    }
    return launch_units(job, tile, tile_rows[launch->tile], 1, &g, stream);
}

static const struct mla_mqa_engine engine = {
    .name = "sparse_mqa_prefill_sm100",
    .num_tiles = TILES,
    .supports = supports,
    .cut = cut,
    .tile = tile,
    .scratch = scratch,
    .launch = launch,
};

const struct mla_kernel mla_sparse_mqa_prefill_sm100 = {
    .name = "sparse_mqa_prefill_sm100",
    .architecture = "sm_100f",
    .proof = MLA_PROOF_MODEL,
    .formats = MLA_BIT(MLA_CACHE_BF16) | MLA_BIT(MLA_CACHE_F16),
    .engine = &engine,
    MLA_MQA_ABSORBED_ROW,
};

const struct mla_kernel mla_sparse_mqa_latent_sm100 = {
    .name = "sparse_mqa_latent_sm100",
    .architecture = "sm_100f",
    .proof = MLA_PROOF_MODEL,
    .formats = MLA_BIT(MLA_CACHE_BF16) | MLA_BIT(MLA_CACHE_F16),
    .engine = &engine,
    MLA_MQA_LATENT_ROW,
};

/* SPDX-License-Identifier: Apache-2.0 */
/* mqa_decode: the engine for absorbed decode on sm_90: tiles, key splits, tensor maps. Device side:
 * mqa_decode.cuh, and mqa_dense.cuh for dense requests of several row tiles. */
#include "mqa_decode.h"

#include "any/mqa_plan.h"
#include "device.h"
#include "format.h"
#include "mqa_maps.h"
#include "status.h"

#include <inttypes.h>
#include <stdio.h>

enum {
    SMS = 132, /* a request with as many row tiles needs no splits */
    FEW_ROWS = 32,
    LEAST_DENSE_ROWS = 16, /* of a box of keys, for mqa_dense */
    PAIR = 1,
    DENSE = 2,         /* tiles beside the plain one, 0 */
    LEAST_BOX_ROWS = 8 /* smaller pages: more TMA instructions than rows are worth */
};
/* Requests of as many row tiles stay with mqa_decode's own kernel: memory bounds both. */
static const int64_t MOST_PLAIN_TILES = 1;
/* So do requests of fewer keys: the two kernels are launched one after the other, and batches of
 * small requests would pay for both where this one has little to gain. */
static const int64_t least_dense_keys = 2048;
/* Keys of a split, at least: each writes and reads a partial tile of 128 KB, beside 74 KB for 64
 * keys of a bf16 cache. */
static const int64_t least_keys = 4096, least_of_few_rows = 2048, least_of_list = 2048;

/* Rows that share keys: with few of them mqa_any's smaller tiles are as fast, and their splits cost
 * less. */
static int64_t rows_together(const struct mla_job *job, const struct mla_request *r)
{
    int64_t heads = job->problem->heads_q;
    return mla_mqa_uses_lists(job) ? heads : r->query_len * heads;
}

static bool supports(const struct mla_job *job, char *why, size_t bytes)
{
    const mla_problem *p = job->problem;
    if (job->context->sm != 90)
        snprintf(why, bytes, "sm_%d, want sm_90", job->context->sm);
    else if (mla_cache_is_packed(p->cache_format) && p->q_dtype != MLA_BF16)
        snprintf(why, bytes, "q of %s over packed records, want bf16", mla_dtype_name(p->q_dtype));
    else if (mla_total_q(p) * p->heads_q > INT32_MAX - MLA_DECODE90_ROWS)
        snprintf(why, bytes, "%" PRId64 " queries times heads, want fewer than 2^31",
                 mla_total_q(p) * p->heads_q);
    else {
        for (int64_t i = 0; i < job->num_requests && !job->named; i++)
            if (rows_together(job, &job->requests[i]) <= FEW_ROWS) {
                snprintf(why, bytes,
                         "request %" PRId64 " has %" PRId64
                         " rows of query tokens and heads to share keys, more than %d pay",
                         job->requests[i].index, rows_together(job, &job->requests[i]), FEW_ROWS);
                return false;
            }
        return true;
    }
    return false;
}

/* Dense and plain, with keys in boxes of LEAST_DENSE_ROWS or more: mqa_dense. */
static bool dense_serves(const struct mla_job *job)
{
    const mla_problem *p = job->problem;
    const int64_t page = p->page_size;
    if (mla_mqa_uses_lists(job) || p->has_mask || mla_cache_is_packed(p->cache_format))
        return false;
    return page == 0 || page % MLA_DECODE90_KEYS == 0 ||
           (page >= LEAST_DENSE_ROWS && MLA_DECODE90_KEYS % page == 0);
}

/* From the request's own shape alone, the wanted splits aside: with MLA_SPLITS_ALONE the batch round
 * it changes no bit of its result. */
static struct mla_mqa_cut cut(const struct mla_job *job, const struct mla_request *r)
{
    const mla_problem *p = job->problem;
    const int64_t rows = MLA_DECODE90_ROWS;
    bool lists = mla_mqa_uses_lists(job);
    int64_t all = r->query_len * p->heads_q, keys = lists ? p->topk : r->seq_len_kv;
    int64_t together = (rows_together(job, r) + rows - 1) / rows; /* tiles that share keys */
    struct mla_mqa_cut c = {.tiles = lists ? r->query_len * together : together};
    if (c.tiles == 0)
        return c;
    int64_t steps = (keys + MLA_DECODE90_KEYS - 1) / MLA_DECODE90_KEYS;
    int64_t least = lists ? least_of_list : all <= rows / 2 ? least_of_few_rows : least_keys;
    const int64_t room = SMS / c.tiles;
    /* Pairs: each block widens half of the keys. */
    if (mla_cache_is_packed(p->cache_format) && !p->has_mask &&
        (together % 2 == 0 || together > 4)) {
        c.tile = PAIR;
        c.tiles = c.tiles / together * ((together + 1) / 2);
    }
    if (c.tiles > MOST_PLAIN_TILES && dense_serves(job) && (job->named || keys >= least_dense_keys))
        c.tile = DENSE;
    c.splits = mla_mqa_choose_splits(job->wanted_splits, room, keys, least, steps);
    return c;
}

static struct mla_mqa_tile tile_of(const mla_problem *p, int index)
{
    int rope = (int)p->qk_rope_dim;
    if (index == DENSE)
        return p->q_dtype == MLA_BF16 ? mla_dense90_tile_bf16(rope) : mla_dense90_tile_f16(rope);
    return p->q_dtype == MLA_BF16
               ? mla_decode90_tile_bf16((int)p->cache_format, rope, index == PAIR, p->has_mask)
               : mla_decode90_tile_f16(rope);
}

/* Queries by TMA, if heads of all tokens are evenly spaced rows. */
static mla_status set_query_map(const mla_problem *p, struct mla_decode90_args *g)
{
    const struct mla_mqa_args *a = &g->a;
    int64_t rows = mla_total_q(p) * a->heads;
    if (a->q_stride[0] != a->q_stride[1] * a->heads || a->q_stride[1] >= (int64_t)1 << 40)
        return MLA_OK;
    const uint64_t dims[2] = {(uint64_t)(MLA_MQA_LATENT + p->qk_rope_dim), (uint64_t)rows};
    const uint64_t stride = (uint64_t)a->q_stride[1];
    const uint32_t box[2] = {64, MLA_DECODE90_ROWS};
    g->q_boxes = 1;
    return mla_tensor_map_tiled(&g->q, 2, 2, a->q, dims, &stride, box, 128);
}

/* Rows that are not 16-byte aligned (model1: odd page sizes) go to the portable kernel. */
static mla_status launch_unaligned(const mla_problem *p, const struct mla_mqa_args *args,
                                   const struct mla_mqa_launch *launch, void *stream)
{
    int rows = MLA_DECODE90_ROWS, rope = (int)p->qk_rope_dim;
    bool packed = mla_cache_is_packed(p->cache_format);
    struct mla_mqa_tile any = p->q_dtype == MLA_BF16 ? mla_mqa_tile_bf16(rows, rope, packed)
                                                     : mla_mqa_tile_f16(rows, rope, packed);
    struct mla_mqa_args a = *args;
    a.tile_parts = launch->tile == PAIR ? 2 : 1;
    MLA_CUDA(cudaFuncSetAttribute(any.function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  (int)any.shared_bytes));
    return mla_mqa_launch_grid(&any, &a, launch->blocks * a.tile_parts, stream);
}

static mla_status launch(const struct mla_job *job, const struct mla_mqa_tile *tile,
                         const struct mla_mqa_args *args, const struct mla_mqa_launch *launch,
                         void *stream)
{
    const mla_problem *p = job->problem;
    int sms;
    if (args->cache.align < 16 || args->q_align < 16)
        return launch_unaligned(p, args, launch, stream);
    int64_t item = args->out_dtype == MLA_F32 ? 4 : 2;
    struct mla_decode90_args g = {
        .a = *args,
        .works = (int32_t)launch->blocks,
        .only = launch->only,
        .wide_stores = ((uint64_t)(uintptr_t)args->out | (uint64_t)(args->out_stride[0] * item) |
                        (uint64_t)(args->out_stride[1] * item)) %
                           16 ==
                       0,
    };
    g.a.tile_parts = tile->cluster;
    mla_status status = mla_mqa_cache_maps(p, args, MLA_DECODE90_KEYS, LEAST_BOX_ROWS, &g.latent,
                                           &g.rope, &g.box_rows);
    if (status == MLA_OK)
        status = set_query_map(p, &g);
    if (status != MLA_OK)
        return status;
    struct mla_mqa_tile used = *tile;
    if (launch->tile == DENSE && !(g.box_rows && g.q_boxes)) { /* other queries than TMA takes */
        used = tile_of(p, 0);
        MLA_CUDA(cudaFuncSetAttribute(used.function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      (int)used.shared_bytes));
    }
    MLA_CUDA(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, job->context->device));
    const int64_t room = sms / tile->cluster; /* persistent */
    return mla_mqa_launch_grid(&used, &g, launch->blocks < room ? launch->blocks : room, stream);
}

static const struct mla_mqa_engine engine = {
    .name = "mqa_decode_sm90",
    .num_tiles = 3,
    .fills = true,
    .supports = supports,
    .cut = cut,
    .tile = tile_of,
    .launch = launch,
};

const struct mla_kernel mla_mqa_decode_sm90 = {
    .name = "mqa_decode_sm90",
    .architecture = "sm_90a",
    .proof = MLA_PROOF_SILICON,
    .formats = MLA_BIT(MLA_CACHE_BF16) | MLA_BIT(MLA_CACHE_F16) | MLA_BIT(MLA_CACHE_FP8_DS_MLA) |
               MLA_BIT(MLA_CACHE_MODEL1) | MLA_BIT(MLA_CACHE_V41) | MLA_BIT(MLA_CACHE_NVFP4_DS_MLA),
    .engine = &engine,
    MLA_MQA_ABSORBED_ROW,
};

const struct mla_kernel mla_mqa_decode_latent_sm90 = {
    .name = "mqa_decode_latent_sm90",
    .architecture = "sm_90a",
    .proof = MLA_PROOF_SILICON,
    .formats = MLA_BIT(MLA_CACHE_BF16) | MLA_BIT(MLA_CACHE_F16) | MLA_BIT(MLA_CACHE_FP8_DS_MLA) |
               MLA_BIT(MLA_CACHE_NVFP4_DS_MLA),
    .engine = &engine,
    MLA_MQA_LATENT_ROW,
};

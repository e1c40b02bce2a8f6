/* SPDX-License-Identifier: Apache-2.0 */
/* mqa_decode: the engine for decode on sm_100: tiles, key splits, tensor maps. Device side:
 * mqa_decode.cu. */
#include "mqa_decode.h"

#include "any/mqa_plan.h"
#include "device.h"
#include "format.h"
#include "mqa_maps.h"
#include "status.h"

#include <inttypes.h>
#include <stdio.h>

enum {
    TILES = 4,
    MOST_QUERY_TOKENS = 16,
    SMS = 148,         /* a request with as many row tiles needs no splits */
    LEAST_BOX_ROWS = 8 /* smaller pages: more TMA instructions than rows are worth */
};
static const int tile_rows[TILES] = {16, 32, 64, 128}; /* 128: a pair of CTAs */
/* Keys of a split, at least: to start and end a block takes some 4 us, and 2048 keys of a bf16
 * cache come in 44 us at an SM's share of the memory. Lists are short: half the latency is worth
 * more. */
static const int64_t least_keys[TILES] = {2048, 2048, 4096, 4096}, least_of_list = 1024;

static bool supports(const struct mla_job *job, char *why, size_t bytes)
{
    int sm = job->context->sm;
    if (sm != 100 && sm != 103) {
        snprintf(why, bytes, "sm_%d, want sm_100 or sm_103", sm);
        return false;
    }
    if (mla_cache_is_packed(job->problem->cache_format) && job->problem->q_dtype != MLA_BF16) {
        snprintf(why, bytes, "q of %s over packed records, want bf16",
                 mla_dtype_name(job->problem->q_dtype));
        return false;
    }
    for (int64_t i = 0; i < job->num_requests; i++)
        if (job->requests[i].query_len > MOST_QUERY_TOKENS) {
            snprintf(why, bytes, "request %" PRId64 " of %" PRId64 " query tokens, at most %d",
                     job->requests[i].index, job->requests[i].query_len, MOST_QUERY_TOKENS);
            return false;
        }
    return true;
}

/* From the request's own shape alone: the batch around it changes no bit of its result. */
static struct mla_mqa_cut cut(const struct mla_job *job, const struct mla_request *r)
{
    const mla_problem *p = job->problem;
    bool lists = mla_mqa_uses_lists(job);
    int64_t all = r->query_len * p->heads_q, keys = lists ? p->topk : r->seq_len_kv;
    int64_t together = lists ? p->heads_q : all; /* rows that share keys */
    struct mla_mqa_cut c = {.tile = together <= 16   ? 0
                                    : together <= 32 ? 1
                                    : together <= 64 ? 2
                                                     : 3};
    int64_t rows = tile_rows[c.tile];
    c.tiles = lists ? r->query_len * ((p->heads_q + rows - 1) / rows) : (all + rows - 1) / rows;
    if (c.tiles == 0)
        return c;
    int64_t steps = (keys + MLA_DECODE_KEYS - 1) / MLA_DECODE_KEYS;
    int64_t room = SMS / (c.tiles * (c.tile == 3 ? 2 : 1));
    int64_t least = lists ? least_of_list : least_keys[c.tile];
    c.splits = mla_mqa_choose_splits(job->wanted_splits, room, keys, least, steps);
    return c;
}

static struct mla_mqa_tile tile(const mla_problem *p, int index)
{
    (void)p;
    return index == 3 ? mla_mqa_decode_pair_tile() : mla_mqa_decode_tile(tile_rows[index]);
}

/* Rows that are not 16-byte aligned (model1: odd page sizes) go to the portable kernel, by tiles of
 * at most 64 rows. */
static mla_status launch_unaligned(const mla_problem *p, const struct mla_mqa_args *args,
                                   const struct mla_mqa_launch *launch, void *stream)
{
    int all = tile_rows[launch->tile], rows = all < 64 ? all : 64, rope = (int)p->qk_rope_dim;
    bool packed = mla_cache_is_packed(p->cache_format);
    struct mla_mqa_tile any = p->q_dtype == MLA_BF16 ? mla_mqa_tile_bf16(rows, rope, packed)
                                                     : mla_mqa_tile_f16(rows, rope, packed);
    struct mla_mqa_args a = *args;
    a.tile_parts = all / rows;
    MLA_CUDA(cudaFuncSetAttribute(any.function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  (int)any.shared_bytes));
    return mla_mqa_launch_grid(&any, &a, launch->blocks * a.tile_parts, stream);
}

static mla_status launch(const struct mla_job *job, const struct mla_mqa_tile *tile,
                         const struct mla_mqa_args *args, const struct mla_mqa_launch *launch,
                         void *stream)
{
    const mla_problem *p = job->problem;
    if (args->cache.align < 16 || args->q_align < 16)
        return launch_unaligned(p, args, launch, stream);
    struct mla_decode_args g = {.a = *args,
                                .bands = p->qk_rope_dim ? 9 : 8,
                                .is_bf16 = p->q_dtype == MLA_BF16};
    mla_status status = mla_mqa_cache_maps(p, args, MLA_DECODE_KEYS, LEAST_BOX_ROWS, &g.latent,
                                           &g.rope, &g.box_rows);
    return status == MLA_OK ? mla_mqa_launch_grid(tile, &g, launch->blocks, stream) : status;
}

static const struct mla_mqa_engine engine = {
    .name = "mqa_decode_sm100",
    .num_tiles = TILES,
    .fills = true,
    .supports = supports,
    .cut = cut,
    .tile = tile,
    .launch = launch,
};

const struct mla_kernel mla_mqa_decode_sm100 = {
    .name = "mqa_decode_sm100",
    .architecture = "sm_100f",
    .proof = MLA_PROOF_MODEL,
    .formats = MLA_BIT(MLA_CACHE_BF16) | MLA_BIT(MLA_CACHE_F16) | MLA_BIT(MLA_CACHE_FP8_DS_MLA) |
               MLA_BIT(MLA_CACHE_MODEL1) | MLA_BIT(MLA_CACHE_V41) | MLA_BIT(MLA_CACHE_NVFP4_DS_MLA),
    .engine = &engine,
    MLA_MQA_ABSORBED_ROW,
};

const struct mla_kernel mla_mqa_decode_latent_sm100 = {
    .name = "mqa_decode_latent_sm100",
    .architecture = "sm_100f",
    .proof = MLA_PROOF_MODEL,
    .formats = MLA_BIT(MLA_CACHE_BF16) | MLA_BIT(MLA_CACHE_F16) | MLA_BIT(MLA_CACHE_FP8_DS_MLA) |
               MLA_BIT(MLA_CACHE_NVFP4_DS_MLA),
    .engine = &engine,
    MLA_MQA_LATENT_ROW,
};

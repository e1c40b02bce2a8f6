/* SPDX-License-Identifier: Apache-2.0 */
/* Expanded-form attention on sm_90, host side: the engine of mha_prefill.cuh and its rows. */
#include "mha_prefill.h"

#include "any/mha_plan.h"
#include "device.h"
#include "status.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>

static bool supports(const struct mla_job *job, mla_dtype dtype, int64_t d_qk, int64_t d_v,
                     char *why, size_t bytes)
{
    const mla_problem *p = job->problem;
    int64_t keys = 0;
    (void)dtype, (void)d_qk, (void)d_v;
    for (int64_t b = 0; b < p->batch; b++)
        keys += p->seq_lens_kv[b];
    if (job->context->sm != 90)
        snprintf(why, bytes, "sm_%d, want sm_90", job->context->sm);
    else if (p->form == MLA_FORM_LATENT && p->qk_nope_dim % 64)
        snprintf(why, bytes, "qk_nope_dim %" PRId64 ", want a multiple of 64", p->qk_nope_dim);
    else if (keys > INT32_MAX - 256 || mla_total_q(p) > INT32_MAX - 256)
        snprintf(why, bytes, "%" PRId64 " keys and %" PRId64 " queries, want fewer than 2^31", keys,
                 mla_total_q(p));
    else
        return true;
    return false;
}

static struct mla_mha_tile tile_and_keys(mla_dtype dtype, int64_t d_qk, int64_t d_v, int *keys)
{
    return dtype == MLA_BF16 ? mla_mha_sm90_tile_bf16(d_qk, d_v, keys)
                             : mla_mha_sm90_tile_f16(d_qk, d_v, keys);
}

static struct mla_mha_tile tile(mla_dtype dtype, int64_t d_qk, int64_t d_v)
{
    int keys;
    return tile_and_keys(dtype, d_qk, d_v, &keys);
}

/* Works of a head that are under way together share its keys in L2, so as many heads at a time as
 * give each block one. The last ones come in a larger group, whose short works fill up the end. */
static void group_heads(struct mla_mha_sm90_args *g, int sms)
{
    int group = g->a.tiles < sms ? sms / g->a.tiles : 1, last = g->a.heads - 4 * group;
    g->group = group;
    g->last_group = last > 0 ? last / group * group : 0;
}

/* One block takes works one after another; beyond two each they are dealt as blocks get free, as
 * they are where bits make their lengths uneven. */
static mla_status launch(const struct mla_job *job, const struct mla_mha_tile *tile,
                         const struct mla_mha_args *a, const struct mla_mha_operands *o,
                         void *scratch, bool zeroed, void *stream)
{
    int keys, sms;
    int64_t works = (int64_t)a->tiles * a->heads;
    tile_and_keys(o->dtype, o->d_qk, o->d_v, &keys);
    struct mla_mha_sm90_args g = {
        .a = *a,
        .works = (int32_t)works,
        .k_split = o->k_split < o->d_qk ? (int32_t)o->k_split : INT32_MAX,
        .wide_stores = mla_mha_out_aligned(a),
    };
    if (works == 0)
        return MLA_OK;
    g.minus_inf = -INFINITY;
    const int box_rows[3] = {MLA_MHA_SM90_WG_ROWS, keys, keys};
    mla_status status = mla_mha_set_maps(&g.maps, &g.a, o, box_rows);
    if (status != MLA_OK)
        return status;
    g.chunks = g.maps;
    if (a->mask) {
        const int chunk_rows[3] = {MLA_MHA_SM90_WG_ROWS, MLA_MHA_SM90_CHUNK, MLA_MHA_SM90_CHUNK};
        struct mla_mha_args unused = *a;
        status = mla_mha_set_maps(&g.chunks, &unused, o, chunk_rows);
        if (status != MLA_OK)
            return status;
    }
    MLA_CUDA(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, job->context->device));
    group_heads(&g, sms);
    if (works > 2 * (int64_t)sms || (a->mask && works > sms)) {
        g.counter = scratch;
        if (!zeroed)
            MLA_CUDA(cudaMemsetAsync(scratch, 0, sizeof *g.counter, stream));
    }
    void *args[] = {&g};
    MLA_CUDA(cudaLaunchKernel(tile->function, (dim3){(unsigned)(works < sms ? works : sms), 1, 1},
                              (dim3){(unsigned)tile->threads, 1, 1}, args, tile->shared_bytes,
                              stream));
    return MLA_OK;
}

static mla_status make_mask(const struct mla_mask_args *a, int64_t tiles, void *stream)
{
    struct mla_mask_args copy = *a;
    void *args[] = {&copy};
    int64_t slices = ((int64_t)a->words * 32 + MLA_MHA_SM90_MASK_KEYS - 1) / MLA_MHA_SM90_MASK_KEYS;
    int64_t blocks = MLA_MHA_SM90_ROWS / MLA_MHA_SM90_MASK_ROWS * tiles * slices;
    MLA_CUDA(cudaLaunchKernel(mla_mha_sm90_mask_function(), (dim3){(unsigned)blocks, 1, 1},
                              (dim3){MLA_MHA_SM90_MASK_THREADS, 1, 1}, args,
                              MLA_MHA_SM90_MASK_SHARED, stream));
    return MLA_OK;
}

static const struct mla_mha_engine engine = {
    .supports = supports,
    .tile = tile,
    .ordered = true,
    .split_keys = true,
    .mask_bytes = MLA_MHA_SM90_ROWS / MLA_MHA_SM90_WG_ROWS * (32 / MLA_MHA_SM90_CHUNK) *
                  MLA_MHA_SM90_CHUNK_BYTES,
    .make_mask = make_mask,
    .mask_function = mla_mha_sm90_mask_function,
    .mask_shared = MLA_MHA_SM90_MASK_SHARED,
    .scratch_bytes = sizeof(uint32_t),
    .launch = launch,
};

const struct mla_kernel mla_mha_prefill_sm90 = {
    .name = "mha_prefill_sm90",
    .architecture = "sm_90a",
    .proof = MLA_PROOF_SILICON,
    .engine = &engine,
    MLA_MHA_EXPANDED_ROW,
};

const struct mla_kernel mla_mha_latent_sm90 = {
    .name = "mha_latent_sm90",
    .architecture = "sm_90a",
    .proof = MLA_PROOF_SILICON,
    .engine = &engine,
    MLA_MHA_LATENT_ROW,
};

/* SPDX-License-Identifier: Apache-2.0 */
/* Expanded-form attention on sm_90, host side: the engine of mha_prefill.cuh and its rows. They
 * stand behind mha_any's in the table: taken by name only, until they are measured on silicon. */
#include "mha_prefill.h"

#include "any/mha_plan.h"
#include "device.h"
#include "status.h"

#include <inttypes.h>
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

/* [rows, heads, width] in boxes of 64 columns of box_rows rows; strides in bytes. */
static mla_status set_map(struct mla_tensor_map *map, const void *data, int64_t width, int64_t rows,
                          int64_t heads, const int64_t *strides, int box_rows)
{
    const uint64_t dims[3] = {(uint64_t)width, (uint64_t)rows, (uint64_t)heads};
    const uint64_t bytes[2] = {(uint64_t)strides[0], (uint64_t)strides[1]};
    const uint32_t box[3] = {64, (uint32_t)box_rows, 1};
    return mla_tensor_map_tiled(map, 2, 3, data, dims, bytes, box, 128);
}

static mla_status launch(const struct mla_job *job, const struct mla_mha_tile *tile,
                         const struct mla_mha_args *a, const struct mla_mha_operands *o,
                         void *stream)
{
    int keys, sms;
    int64_t works = (int64_t)a->tiles * a->heads, item = a->out_dtype == MLA_F32 ? 4 : 2;
    tile_and_keys(o->dtype, o->d_qk, o->d_v, &keys);
    struct mla_mha_sm90_args g = {
        .a = *a,
        .works = (int32_t)works,
        .group = MLA_MHA_SM90_HEADS,
        .wide_stores = ((uintptr_t)a->out | (uint64_t)(a->out_stride[0] * item) |
                        (uint64_t)(a->out_stride[1] * item)) %
                           16 ==
                       0,
    };
    if (works == 0)
        return MLA_OK;
    mla_status status =
        set_map(&g.q, a->q, o->q_split, o->rows_q, a->heads, a->q_stride, MLA_MHA_SM90_WG_ROWS);
    if (o->q_split == o->d_qk)
        g.a.q_split = INT32_MAX; /* columns behind the last are q's too: TMA's zeros */
    else if (status == MLA_OK)
        status = set_map(&g.q_rope, a->q_rope, o->d_qk - o->q_split, o->rows_q, a->heads,
                         a->q_rope_stride, MLA_MHA_SM90_WG_ROWS);
    if (status == MLA_OK && o->rows_kv) /* without keys nothing is loaded */
        status = set_map(&g.k, a->k, o->d_qk, o->rows_kv, a->heads_kv, a->k_stride, keys);
    if (status == MLA_OK && o->rows_kv)
        status = set_map(&g.v, a->v, o->d_v, o->rows_kv, a->heads_kv, a->v_stride, keys);
    if (status != MLA_OK)
        return status;
    MLA_CUDA(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, job->context->device));
    void *args[] = {&g};
    MLA_CUDA(cudaLaunchKernel(tile->function, (dim3){(unsigned)(works < sms ? works : sms), 1, 1},
                              (dim3){(unsigned)tile->threads, 1, 1}, args, tile->shared_bytes,
                              stream));
    return MLA_OK;
}

static const struct mla_mha_engine engine = {
    .supports = supports,
    .tile = tile,
    .ordered = true,
    .launch = launch,
};

const struct mla_kernel mla_mha_prefill_sm90 = {
    .name = "mha_prefill_sm90",
    .architecture = "sm_90a",
    .proof = MLA_PROOF_MODEL,
    .engine = &engine,
    MLA_MHA_EXPANDED_ROW,
};

const struct mla_kernel mla_mha_latent_sm90 = {
    .name = "mha_latent_sm90",
    .architecture = "sm_90a",
    .proof = MLA_PROOF_MODEL,
    .engine = &engine,
    MLA_MHA_LATENT_ROW,
};

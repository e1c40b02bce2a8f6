/* SPDX-License-Identifier: Apache-2.0 */
/* Host side of mha_prefill.cu: the engine of sm_100, its tensor maps and its two rows. */
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
    if (job->context->sm != 100 && job->context->sm != 103)
        snprintf(why, bytes, "a device of sm_%d, want sm_100 or sm_103", job->context->sm);
    else if (p->form == MLA_FORM_LATENT && p->qk_rope_dim && p->qk_nope_dim % MLA_MHA_BOX)
        snprintf(why, bytes, "qk_nope_dim %" PRId64 ", want a multiple of %d", p->qk_nope_dim,
                 MLA_MHA_BOX);
    else if (keys > INT32_MAX - MLA_MHA100_KEYS)
        snprintf(why, bytes, "%" PRId64 " keys in all, want fewer than 2^31", keys);
    else
        return true;
    return false;
}

static mla_status launch(const struct mla_job *job, const struct mla_mha_tile *tile,
                         const struct mla_mha_args *a, const struct mla_mha_operands *o,
                         void *scratch, bool zeroed, void *stream)
{
    (void)scratch, (void)zeroed;
    struct mla_mha100_args x = {.a = *a,
                                .works = a->tiles * a->heads,
                                .out_aligned = mla_mha_out_aligned(a)};
    int processors = 0;
    if (x.works == 0)
        return MLA_OK;
    MLA_CUDA(
        cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, job->context->device));
    const int box_rows[3] = {MLA_MHA100_ROWS, MLA_MHA100_KEYS,
                             tile->rows == 2 * MLA_MHA100_ROWS ? 64 : 32};
    mla_status status = mla_mha_set_maps(&x.maps, &x.a, o, box_rows);
    if (status != MLA_OK)
        return status;
    void *args[] = {&x};
    unsigned blocks = (unsigned)(x.works < processors ? x.works : processors);
    MLA_CUDA(cudaLaunchKernel(tile->function, (dim3){blocks, 1, 1},
                              (dim3){(unsigned)tile->threads, 1, 1}, args, tile->shared_bytes,
                              stream));
    return MLA_OK;
}

static const struct mla_mha_engine engine = {
    .supports = supports,
    .tile = mla_mha100_tile,
    .ordered = true,
    .launch = launch,
};

const struct mla_kernel mla_mha_prefill_sm100 = {
    .name = "mha_prefill_sm100",
    .architecture = "sm_100f",
    .proof = MLA_PROOF_MODEL,
    .engine = &engine,
    MLA_MHA_EXPANDED_ROW,
};

const struct mla_kernel mla_mha_latent_sm100 = {
    .name = "mha_latent_sm100",
    .architecture = "sm_100f",
    .proof = MLA_PROOF_MODEL,
    .engine = &engine,
    MLA_MHA_LATENT_ROW,
};

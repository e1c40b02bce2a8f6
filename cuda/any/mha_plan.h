/* SPDX-License-Identifier: Apache-2.0 */
/* Host side of expanded-form attention: what a kernel row, of expanded or latent problems, calls.
 *
 *   prepare: mla_mha_prepare cuts the requests into passes of query rows whose mask fits the budget
 *            and puts their table on the device; mla_mha_mask_bytes of the workspace hold the mask
 *   run:     mla_mha_launch, with q, k and v wherever they lie; launches only
 *   release: mla_mha_release */
#ifndef MLA_CUDA_ANY_MHA_PLAN_H
#define MLA_CUDA_ANY_MHA_PLAN_H

#include "kernel.h"

#ifdef __cplusplus
extern "C" {
#endif

struct mla_mha_plan;

/* q, k and v of one launch and where the result goes; strides in elements, all given. heads of them
 * from first_head of the problem on (a latent problem may come in groups of heads). */
struct mla_mha_operands {
    int64_t first_head, heads, heads_kv, d_qk, d_v;
    mla_dtype dtype;
    mla_tensor q, k, v;
    mla_tensor q_rope; /* columns q_split … d_qk - 1 of q; not looked at where q_split = d_qk */
    int64_t q_split;
    mla_tensor out; /* of head 0 of the problem; out_dtype of the problem */
    const uint32_t
        *alive; /* or NULL: a bit for each key, requests of the job one after another, each
                              from a new word on; 0 hides the key */
};

/* Can the kernels take these widths and types? If not, why. */
bool mla_mha_supports(const struct mla_job *job, mla_dtype dtype, int64_t d_qk, int64_t d_v,
                      char *why, size_t bytes);
/* heads: the most of one launch. Sets job->rows_per_pass. */
mla_status mla_mha_prepare(struct mla_job *job, int64_t heads, int64_t d_qk, int64_t d_v,
                           mla_dtype dtype, struct mla_mha_plan **out);
void mla_mha_release(struct mla_mha_plan *plan);
size_t mla_mha_mask_bytes(const struct mla_mha_plan *plan);

/* sm_80's 16-byte copies: MLA_ERR_ARGUMENT unless address and strides are multiples of 16 bytes. */
mla_status mla_mha_check_rows(const char *name, const mla_tensor *t);
/* The same of out, which is written in pairs. */
mla_status mla_mha_check_out(const mla_tensor *out);

/* mask: mla_mha_mask_bytes, 256-byte aligned. The context's device is current. With several passes
 * the mask is made anew for each; with one it is kept in `mask` for a later call with build_mask
 * false. */
mla_status mla_mha_launch(const struct mla_job *job, const struct mla_mha_plan *plan,
                          const mla_tensors *tensors, const struct mla_mha_operands *operands,
                          void *mask, bool build_mask, void *stream);
/* Is one mask kept for all calls? */
bool mla_mha_one_pass(const struct mla_mha_plan *plan);

#ifdef __cplusplus
}
#endif
#endif

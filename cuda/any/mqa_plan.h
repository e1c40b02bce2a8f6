/* SPDX-License-Identifier: Apache-2.0 */
/* Host side of absorbed-form attention: what a kernel row, of absorbed or latent problems, calls.
 *
 *   prepare: mla_mqa_prepare chooses tiles and key splits and puts the request table on the device;
 *            mla_mqa_part_bytes of the workspace hold partial results
 *   run:     mla_mqa_launch, with q and out wherever they lie (a latent row passes its absorbed q
 *            and latent output); launches only
 *   release: mla_mqa_release */
#ifndef MLA_CUDA_ANY_MQA_PLAN_H
#define MLA_CUDA_ANY_MQA_PLAN_H

#include "kernel.h"

#ifdef __cplusplus
extern "C" {
#endif

struct mla_mqa_plan;

/* Can the kernels take the job's dims, types and cache? If not, why. Form is not looked at. */
bool mla_mqa_supports(const struct mla_job *job, char *why, size_t bytes);
mla_status mla_mqa_prepare(const struct mla_job *job, struct mla_mqa_plan **out);
void mla_mqa_release(struct mla_mqa_plan *plan);
size_t mla_mqa_part_bytes(const struct mla_mqa_plan *plan);
/* Largest number of key splits of a request. */
int64_t mla_mqa_splits(const struct mla_mqa_plan *plan);

/* q [T, H, 512 + rope] of the problem's q_dtype and out [T, H, 512] of out_dtype, T rows of the
 * whole batch; strides 0 = packed. parts: mla_mqa_part_bytes, 256-byte aligned. The context's
 * device is current. */
mla_status mla_mqa_launch(const struct mla_job *job, const struct mla_mqa_plan *plan,
                          const mla_tensors *tensors, const mla_tensor *q, const mla_tensor *out,
                          mla_dtype out_dtype, void *parts, void *stream);

#ifdef __cplusplus
}
#endif
#endif

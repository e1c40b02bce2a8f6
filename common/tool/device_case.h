/* SPDX-License-Identifier: Apache-2.0 */
/* A case on a CUDA device: inputs copied there, one run at a time, outputs copied back. In builds
 * without the CUDA backend no such context opens and every call fails. */
#ifndef MLA_TOOL_DEVICE_CASE_H
#define MLA_TOOL_DEVICE_CASE_H

#include "case.h"

struct mla_device_case;

/* Host buffers of the outputs, packed; max_logits may be NULL. */
struct mla_device_outputs {
    mla_dtype out_dtype, lse_dtype;
    void *out, *lse, *max_logits;
};

/* Copies the inputs of k and allocates workspace and outputs for plan (NULL: neither), which runs
 * on device number `device`. MLA_ERR_MEMORY, MLA_ERR_CUDA. */
mla_status mla_device_case_open(int device, const mla_plan *plan, const struct mla_case *k,
                                const struct mla_device_outputs *outputs,
                                struct mla_device_case **out);
/* Poisons workspace and outputs (every byte 0xFF), runs on a stream of its own and waits; seconds
 * is the device's own time between the first and the last kernel. Bytes behind each output must
 * come back untouched. */
mla_status mla_device_case_run(struct mla_device_case *c, double *seconds);
/* The inputs there, for runs of another plan (timer.h); outputs are those of the plan, if any. */
const mla_tensors *mla_device_case_tensors(const struct mla_device_case *c);
void mla_device_case_free(struct mla_device_case *c);

#endif

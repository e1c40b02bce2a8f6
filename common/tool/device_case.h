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

/* Copies the inputs of k and allocates workspace and outputs for plan, which runs on device number
 * `device`. MLA_ERR_MEMORY, MLA_ERR_CUDA. */
mla_status mla_device_case_open(int device, const mla_plan *plan, const struct mla_case *k,
                                const struct mla_device_outputs *outputs,
                                struct mla_device_case **out);
/* Poisons workspace and outputs (every byte 0xFF), runs on a stream of its own and waits; seconds
 * is the device's own time between the first and the last kernel. Bytes behind each output must
 * come back untouched. */
mla_status mla_device_case_run(struct mla_device_case *c, double *seconds);
/* The same with the L2 cache flushed before (a write of 256 MB), nothing poisoned, copied back or
 * looked at: for timings of a case whose results have been seen. */
mla_status mla_device_case_time(struct mla_device_case *c, double *seconds);
/* Mean of n runs behind one another, caches warm. */
mla_status mla_device_case_back_to_back(struct mla_device_case *c, int n, double *seconds);
/* Device time of each part of one run (common/trace.h), summed by name; [*count], at most
 * MLA_CASE_PARTS. */
enum { MLA_CASE_PARTS = 8 };
struct mla_case_part {
    const char *name;
    double seconds;
};
mla_status mla_device_case_parts(struct mla_device_case *c, struct mla_case_part *parts,
                                 int *count);
void mla_device_case_free(struct mla_device_case *c);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* What a kernel keeps a GPU's units busy with, by role of the warps that ask for it: printed after
 * each launch if MLA_MODEL_COUNTS names a file ("-": stderr). */
#ifndef MLA_CUDA_MODEL_COUNT_H
#define MLA_CUDA_MODEL_COUNT_H

#include <stdint.h>

enum model_counted {
    COUNT_TENSOR,    /* clocks of an SM's tensor cores at their full rate */
    COUNT_OPERANDS,  /* bytes of shared memory that they read */
    COUNT_SHARED_LD, /* bytes of ld.shared */
    COUNT_SHARED_ST,
    COUNT_COPIED_IN, /* bytes to shared memory by TMA, bulk copies and cp.async */
    COUNT_COPIED_OUT,
    COUNT_TMEM_LD, /* bytes of tcgen05.ld */
    COUNT_TMEM_ST,
    COUNT_EX2,
    COUNTS
};

extern bool model_counting;

void model_tally_add(enum model_counted what, uint64_t amount); /* for the running thread */

static inline void model_tally(enum model_counted what, uint64_t amount)
{
    if (model_counting)
        model_tally_add(what, amount);
}

void model_counts_begin(void);
void model_counts_end(const char *kernel, uint64_t blocks);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* Bugs to inject in the kernels of any/, those of validation/mutants.def, to prove that checks
 * notice them. CUDA: only test builds define MLA_DEVICE_MUTANTS; elsewhere MUTANT is false and
 * nothing is left of it. A file with mutants ends in MLA_MUTANT_SETTER(stem), a kernel that says
 * which bug is active. The model has them always; MLA_MODEL_MUTANT="any:<n>" chooses (ptx/at.cuh),
 * n counting the lines of mutants.def from 1. */
#ifndef MLA_CUDA_MUTANT_CUH
#define MLA_CUDA_MUTANT_CUH

#include "ptx/at.cuh"

#include <stdint.h>

#if defined(MLA_MODEL) && !defined(MLA_DEVICE_MUTANTS)
#define MLA_DEVICE_MUTANTS
#endif

#ifdef MLA_DEVICE_MUTANTS

#include "ptx/launch.cuh"

#pragma push_macro("MLA_MUTANT")
#undef MLA_MUTANT
enum {
    MUTANT_NONE,
#define MLA_MUTANT(name, setting, text) MUTANT_##name,
#include "validation/mutants.def"
#undef MLA_MUTANT
};
#pragma pop_macro("MLA_MUTANT")

/* The query token (row of the batch) that bugs of one row hit: TARGET of the tests. */
static const int mutant_token = 5;
static __device__ uint4 mutant_nans[80]; /* a cache row of NaN, once the bug is chosen */

#ifdef MLA_MODEL
#define MUTANT(name) (MLA_MUTANT == MUTANT_##name)
#define MLA_MUTANT_SETTER(stem)
#else
static __device__ int mutant;
#define MUTANT(name) (mutant == MUTANT_##name)
#define MLA_MUTANT_SETTER(stem)                                                                    \
    static __global__ void set_mutant(int which)                                                   \
    {                                                                                              \
        mutant = which;                                                                            \
    }                                                                                              \
    extern "C" const void *mla_mutant_setter_##stem(void)                                          \
    {                                                                                              \
        return mla_kernel_address(set_mutant);                                                     \
    }
#endif
#define MUTANT_HITS(name, token) (MUTANT(name) && (token) == mutant_token)

/* 1280 bytes of NaN. */
static __device__ __forceinline__ const char *mutated_row()
{
    for (int i = 0; i < 80; i++)
        mutant_nans[i] = make_uint4(~0u, ~0u, ~0u, ~0u);
    return (const char *)mutant_nans;
}

#else

#define MUTANT(name) false
#define MUTANT_HITS(name, token) false
#define MLA_MUTANT_SETTER(stem)

#endif

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* Bugs to inject in the kernels, those of validation/mutants.def, to prove that checks notice them.
 * Only test builds define MLA_DEVICE_MUTANTS; elsewhere MUTANT is false and nothing is left of it.
 * A file with mutants ends in MLA_MUTANT_SETTER(stem), whose kernel says which bug is active and
 * which query token (row of the batch) it hits, where it hits but one. */
#ifndef MLA_CUDA_MUTANT_CUH
#define MLA_CUDA_MUTANT_CUH

#ifdef MLA_DEVICE_MUTANTS

#include "ptx/launch.cuh"

#include <stdint.h>

enum {
    MUTANT_NONE,
#define MLA_MUTANT(name, setting, text) MUTANT_##name,
#include "validation/mutants.def"
#undef MLA_MUTANT
};

static __device__ int mutant, mutant_token;
static __device__ uint4 mutant_nans[80]; /* a cache row of NaN */

#define MUTANT(name) (mutant == MUTANT_##name)
#define MUTANT_HITS(name, token) (mutant == MUTANT_##name && (token) == mutant_token)
#define MUTANT_NANS(or_else) ((const char *)mutant_nans)
#define MLA_MUTANT_SETTER(stem)                                                                    \
    static __global__ void set_mutant(int which, int token)                                        \
    {                                                                                              \
        mutant = which;                                                                            \
        mutant_token = token;                                                                      \
        for (int i = 0; i < 80; i++)                                                               \
            mutant_nans[i] = make_uint4(~0u, ~0u, ~0u, ~0u);                                       \
    }                                                                                              \
    extern "C" const void *mla_mutant_setter_##stem(void)                                          \
    {                                                                                              \
        return mla_kernel_address(set_mutant);                                                     \
    }

#else

#define MUTANT(name) false
#define MUTANT_HITS(name, token) false
#define MUTANT_NANS(or_else) (or_else)
#define MLA_MUTANT_SETTER(stem)

#endif

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* Values whose origin the compiler forgets: it neither computes them again nor merges what is added
 * to them with how they came about, so constants added to an address stay in the instructions that
 * use it. No instruction. */
#ifndef MLA_CUDA_PTX_OPAQUE_CUH
#define MLA_CUDA_PTX_OPAQUE_CUH

#include "at.cuh"

__device__ __forceinline__ u32 opaque(u32 x)
{
#ifndef MLA_MODEL
    asm volatile("" : "+r"(x));
#endif
    return x;
}

/* threadIdx.x, read again each time: holds no register between uses. */
__device__ __forceinline__ u32 thread_again()
{
#ifdef MLA_MODEL
    return threadIdx.x;
#else
    u32 x;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(x));
    return x;
#endif
}

__device__ __forceinline__ const char *opaque(const char *x)
{
#ifndef MLA_MODEL
    asm volatile("" : "+l"(x));
#endif
    return x;
}

#endif

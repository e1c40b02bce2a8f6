/* SPDX-License-Identifier: Apache-2.0 */
/* Named barriers: part of a block. `threads` counts all that sync or arrive, whole warps. */
#ifndef MLA_CUDA_PTX_BARRIER_CUH
#define MLA_CUDA_PTX_BARRIER_CUH

#include "at.cuh"

/* Waits until `threads` threads have come to barrier id (0 to 15); 0 is __syncthreads'. */
__device__ __forceinline__ void bar_sync(int id, int threads MLA_AT)
{
#ifdef MLA_MODEL
    model_bar_sync(id, threads, at);
#else
    asm volatile("bar.sync %0, %1;\n" ::"r"(id), "r"(threads) : "memory");
#endif
}

/* Counts as having come, and goes on. */
__device__ __forceinline__ void bar_arrive(int id, int threads MLA_AT)
{
#ifdef MLA_MODEL
    model_bar_arrive(id, threads, at);
#else
    asm volatile("bar.arrive %0, %1;\n" ::"r"(id), "r"(threads) : "memory");
#endif
}

#endif

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

/* The same; and was the condition true in any of the threads? */
__device__ __forceinline__ bool bar_sync_or(int id, int threads, bool condition MLA_AT)
{
#ifdef MLA_MODEL
    return model_bar_sync_or(id, threads, condition, at) != 0;
#else
    u32 any;
    asm volatile("{\n.reg .pred p, q;\nsetp.ne.b32 p, %3, 0;\nbarrier.cta.red.or.pred q, %1, %2, "
                 "p;\nselp.b32 %0, 1, 0, q;\n}\n"
                 : "=r"(any)
                 : "r"(id), "r"(threads), "r"((u32)condition)
                 : "memory");
    return any != 0;
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

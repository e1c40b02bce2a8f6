/* SPDX-License-Identifier: Apache-2.0 */
/* Barriers of part of a block. */
#ifndef MLA_CUDA_PTX_BARRIER_CUH
#define MLA_CUDA_PTX_BARRIER_CUH

/* Waits until `threads` threads (whole warps) have come to barrier id; 0 is __syncthreads'. */
__device__ __forceinline__ void bar_sync(int id, int threads)
{
    asm volatile("bar.sync %0, %1;\n" ::"r"(id), "r"(threads) : "memory");
}

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* TMA's way to L2 alone: nobody waits for it, nothing lands in shared memory. */
#ifndef MLA_CUDA_PTX_TMA_PREFETCH_CUH
#define MLA_CUDA_PTX_TMA_PREFETCH_CUH

#include "tma.cuh"

/* A box into L2, without waiting. */
__device__ __forceinline__ void tma_prefetch_3d(const struct mla_tensor_map *map, int c0, int c1,
                                                int c2 MLA_AT)
{
#ifdef MLA_MODEL
    (void)c0, (void)c1, (void)c2;
    model_tma_prefetch_map(map, at);
#else
    asm volatile("cp.async.bulk.prefetch.tensor.3d.L2.global.tile [%0, {%1, %2, %3}];\n" ::"l"(map),
                 "r"(c0), "r"(c1), "r"(c2)
                 : "memory");
#endif
}

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* cp.async: copies from global to shared memory that pass by no register (sm_80 and later). */
#ifndef MLA_CUDA_PTX_CP_ASYNC_CUH
#define MLA_CUDA_PTX_CP_ASYNC_CUH

#include <stdint.h>

/* Reads the first `valid` bytes of the source and fills the rest of the destination with zeros;
 * valid = 0 reads nothing. Both addresses are multiples of the size. */
__device__ __forceinline__ void cp_async_cg_16(uint32_t smem, const void *gmem, uint32_t valid)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(smem), "l"(gmem),
                 "r"(valid)
                 : "memory");
}

__device__ __forceinline__ void cp_async_ca_8(uint32_t smem, const void *gmem, uint32_t valid)
{
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;\n" ::"r"(smem), "l"(gmem), "r"(valid)
                 : "memory");
}

__device__ __forceinline__ void cp_async_ca_4(uint32_t smem, const void *gmem, uint32_t valid)
{
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;\n" ::"r"(smem), "l"(gmem), "r"(valid)
                 : "memory");
}

__device__ __forceinline__ void cp_async_wait_all()
{
    asm volatile("cp.async.wait_all;\n" ::: "memory");
}

#endif

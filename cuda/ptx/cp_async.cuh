/* SPDX-License-Identifier: Apache-2.0 */
/* cp.async: copies from global to shared memory that pass by no register (sm_80 and later). */
#ifndef MLA_CUDA_PTX_CP_ASYNC_CUH
#define MLA_CUDA_PTX_CP_ASYNC_CUH

#include "at.cuh"

/* Reads the first `valid` bytes of the source and fills the rest of the destination with zeros;
 * valid = 0 reads nothing. Both addresses are multiples of the size. */
__device__ __forceinline__ void cp_async_cg_16(uint32_t smem, const void *gmem,
                                               uint32_t valid MLA_AT)
{
#ifdef MLA_MODEL
    model_cp_async(smem, gmem, 16, valid, at);
#else
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(smem), "l"(gmem),
                 "r"(valid)
                 : "memory");
#endif
}

__device__ __forceinline__ void cp_async_ca_8(uint32_t smem, const void *gmem,
                                              uint32_t valid MLA_AT)
{
#ifdef MLA_MODEL
    model_cp_async(smem, gmem, 8, valid, at);
#else
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;\n" ::"r"(smem), "l"(gmem), "r"(valid)
                 : "memory");
#endif
}

__device__ __forceinline__ void cp_async_ca_4(uint32_t smem, const void *gmem,
                                              uint32_t valid MLA_AT)
{
#ifdef MLA_MODEL
    model_cp_async(smem, gmem, 4, valid, at);
#else
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;\n" ::"r"(smem), "l"(gmem), "r"(valid)
                 : "memory");
#endif
}

__device__ __forceinline__ void cp_async_wait_all(MLA_AT0)
{
#ifdef MLA_MODEL
    model_cp_async_wait_all(at);
#else
    asm volatile("cp.async.wait_all;\n" ::: "memory");
#endif
}

/* Closes a group of this thread's copies. */
__device__ __forceinline__ void cp_async_commit(MLA_AT0)
{
#ifdef MLA_MODEL
    model_cp_async_commit(at);
#else
    asm volatile("cp.async.commit_group;\n" ::: "memory");
#endif
}

/* Waits until at most N of this thread's groups are under way. */
template <int N> __device__ __forceinline__ void cp_async_wait_group(MLA_AT0)
{
#ifdef MLA_MODEL
    model_cp_async_wait_group(N, at);
#else
    asm volatile("cp.async.wait_group %0;\n" ::"n"(N) : "memory");
#endif
}

/* Arrives once, at a barrier of this block, when all earlier copies of this thread have landed. The
 * arrival is one of the barrier's count. */
__device__ __forceinline__ void cp_async_mbarrier_arrive_noinc(uint32_t bar MLA_AT)
{
#ifdef MLA_MODEL
    model_cp_async_mbarrier_arrive_noinc(bar, at);
#else
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];\n" ::"r"(bar) : "memory");
#endif
}

#endif

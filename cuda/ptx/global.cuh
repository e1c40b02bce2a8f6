/* SPDX-License-Identifier: Apache-2.0 */
/* Loads from global memory that stay where they are written, so that others may be under way, and
 * flags between blocks. */
#ifndef MLA_CUDA_PTX_GLOBAL_CUH
#define MLA_CUDA_PTX_GLOBAL_CUH

#include "at.cuh"

#include <string.h>

/* 4, 8 or 16 bytes that no one writes meanwhile. */
template <class T> __device__ __forceinline__ T ld_global(const void *gmem)
{
    static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16, "4, 8 or 16 bytes");
    T value;
#ifdef MLA_MODEL
    memcpy(&value, gmem, sizeof(T));
#else
    u32 w[4];
    if (sizeof(T) == 16)
        asm volatile("ld.global.nc.v4.b32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(w[0]), "=r"(w[1]), "=r"(w[2]), "=r"(w[3])
                     : "l"(gmem));
    else if (sizeof(T) == 8)
        asm volatile("ld.global.nc.v2.b32 {%0, %1}, [%2];" : "=r"(w[0]), "=r"(w[1]) : "l"(gmem));
    else
        asm volatile("ld.global.nc.b32 %0, [%1];" : "=r"(w[0]) : "l"(gmem));
    memcpy(&value, w, sizeof(T));
#endif
    return value;
}

/* A flag that another block sets when what it wrote before is there for all to read. */
__device__ __forceinline__ void st_release(u32 *gmem, u32 value)
{
#ifdef MLA_MODEL
    *gmem = value;
#else
    asm volatile("st.release.gpu.global.b32 [%0], %1;" ::"l"(gmem), "r"(value) : "memory");
#endif
}

__device__ __forceinline__ u32 ld_acquire(const u32 *gmem)
{
    u32 value;
#ifdef MLA_MODEL
    value = *gmem;
#else
    asm volatile("ld.acquire.gpu.global.b32 %0, [%1];" : "=r"(value) : "l"(gmem) : "memory");
#endif
    return value;
}

/* Calls the line of 128 bytes at an address to L2. */
__device__ __forceinline__ void prefetch_global_l2(const void *gmem)
{
#ifdef MLA_MODEL
    (void)gmem;
#else
    asm volatile("prefetch.global.L2 [%0];" ::"l"(gmem) : "memory");
#endif
}

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* Loads from global memory. */
#ifndef MLA_CUDA_PTX_GLOBAL_CUH
#define MLA_CUDA_PTX_GLOBAL_CUH

#include "at.cuh"

#include <string.h>

/* 16 bytes, 16-byte aligned, that the kernel only reads. L2 fetches the whole 128-byte line. */
__device__ __forceinline__ uint4 ld_global_nc_16(const void *gmem)
{
    uint4 v;
#ifdef MLA_MODEL
    memcpy(&v, gmem, sizeof v);
#else
    asm volatile("ld.global.nc.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(gmem));
#endif
    return v;
}

#endif

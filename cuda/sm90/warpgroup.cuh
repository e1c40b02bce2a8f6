/* SPDX-License-Identifier: Apache-2.0 */
/* What the kernels of this folder share. */
#ifndef MLA_CUDA_SM90_WARPGROUP_CUH
#define MLA_CUDA_SM90_WARPGROUP_CUH

#include "arrive.cuh"

/* Four lanes hold words 0 to 3 each of four 16-byte pieces; afterwards lane t holds piece t. */
__device__ __forceinline__ uint4 transpose_quad(u32 w0, u32 w1, u32 w2, u32 w3)
{
    const bool odd = threadIdx.x & 1, high = threadIdx.x & 2;
    u32 x = __shfl_xor_sync(~0u, odd ? w0 : w1, 1), y = __shfl_xor_sync(~0u, odd ? w2 : w3, 1);
    w0 = odd ? x : w0, w1 = odd ? w1 : x;
    w2 = odd ? y : w2, w3 = odd ? w3 : y;
    x = __shfl_xor_sync(~0u, high ? w0 : w2, 2), y = __shfl_xor_sync(~0u, high ? w1 : w3, 2);
    return high ? make_uint4(x, y, w2, w3) : make_uint4(w0, w1, x, y);
}

#endif

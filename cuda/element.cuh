/* SPDX-License-Identifier: Apache-2.0 */
/* The two 16-bit types that queries, plain caches and tensor cores use, under one set of names. */
#ifndef MLA_CUDA_ELEMENT_CUH
#define MLA_CUDA_ELEMENT_CUH

#include "ptx/convert.cuh"
#include "ptx/mma_sync.cuh"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

struct bf16 {
    static __device__ __forceinline__ uint32_t pack(float low, float high)
    {
        return cvt_rn_bf16x2_f32(low, high);
    }
    static __device__ __forceinline__ void mma(float c[4], const uint32_t a[4], uint32_t b0,
                                               uint32_t b1)
    {
        mma_m16n8k16_bf16(c, a, b0, b1);
    }
    static const bool is_bf16 = true;
};

struct f16 {
    static __device__ __forceinline__ uint32_t pack(float low, float high)
    {
        return cvt_rn_f16x2_f32(low, high);
    }
    static __device__ __forceinline__ void mma(float c[4], const uint32_t a[4], uint32_t b0,
                                               uint32_t b1)
    {
        mma_m16n8k16_f16(c, a, b0, b1);
    }
    static const bool is_bf16 = false;
};

#endif

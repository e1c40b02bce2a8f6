/* SPDX-License-Identifier: Apache-2.0 */
/* Conversions and ex2 as single instructions. */
#ifndef MLA_CUDA_PTX_CONVERT_CUH
#define MLA_CUDA_PTX_CONVERT_CUH

#include <stdint.h>

/* Two floats, rounded to nearest even; `low` lands in the low half. */
__device__ __forceinline__ uint32_t cvt_rn_bf16x2_f32(float low, float high)
{
    uint32_t r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(r) : "f"(high), "f"(low));
    return r;
}

__device__ __forceinline__ uint32_t cvt_rn_f16x2_f32(float low, float high)
{
    uint32_t r;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;\n" : "=r"(r) : "f"(high), "f"(low));
    return r;
}

/* 2^x with at most 2 ulp; subnormal results are zero, 2^-inf = 0. */
__device__ __forceinline__ float ex2_approx_ftz(float x)
{
    float r;
    asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(r) : "f"(x));
    return r;
}

#endif

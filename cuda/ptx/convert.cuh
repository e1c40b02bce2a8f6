/* SPDX-License-Identifier: Apache-2.0 */
/* Conversions, ex2, and arithmetic on pairs as single instructions. */
#ifndef MLA_CUDA_PTX_CONVERT_CUH
#define MLA_CUDA_PTX_CONVERT_CUH

#include "at.cuh"

/* Two floats, rounded to nearest even; `low` lands in the low half. */
__device__ __forceinline__ uint32_t cvt_rn_bf16x2_f32(float low, float high)
{
#ifdef MLA_MODEL
    return model_cvt_rn_bf16x2_f32(low, high);
#else
    uint32_t r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(r) : "f"(high), "f"(low));
    return r;
#endif
}

__device__ __forceinline__ uint32_t cvt_rn_f16x2_f32(float low, float high)
{
#ifdef MLA_MODEL
    return model_cvt_rn_f16x2_f32(low, high);
#else
    uint32_t r;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;\n" : "=r"(r) : "f"(high), "f"(low));
    return r;
#endif
}

/* Two e4m3 bytes as two f16; exact (sm_89 and later). */
__device__ __forceinline__ uint32_t cvt_rn_f16x2_e4m3x2(uint16_t two)
{
#ifdef MLA_MODEL
    return model_cvt_rn_f16x2_e4m3x2(two);
#else
    uint32_t r;
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;\n" : "=r"(r) : "h"(two));
    return r;
#endif
}

/* The same of a word's low (HIGH 0) or high half, without a shift. */
template <int HIGH> __device__ __forceinline__ uint32_t cvt_rn_f16x2_e4m3x2_of(uint32_t word)
{
#ifdef MLA_MODEL
    return model_cvt_rn_f16x2_e4m3x2((uint16_t)(word >> HIGH * 16));
#else
    uint32_t r;
    if (HIGH)
        asm("{\n.reg .b16 low, high;\nmov.b32 {low, high}, %1;\n"
            "cvt.rn.f16x2.e4m3x2 %0, high;\n}\n"
            : "=r"(r)
            : "r"(word));
    else
        asm("{\n.reg .b16 low, high;\nmov.b32 {low, high}, %1;\n"
            "cvt.rn.f16x2.e4m3x2 %0, low;\n}\n"
            : "=r"(r)
            : "r"(word));
    return r;
#endif
}

/* Two floats as e4m3, rounded to nearest even; beyond 448 becomes 448 (sm_89 and later). */
__device__ __forceinline__ uint16_t cvt_rn_satfinite_e4m3x2_f32(float low, float high)
{
#ifdef MLA_MODEL
    return model_cvt_rn_satfinite_e4m3x2_f32(low, high);
#else
    uint16_t r;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;\n" : "=h"(r) : "f"(high), "f"(low));
    return r;
#endif
}

/* 2^x with at most 2 ulp; subnormal results are zero, 2^-inf = 0. */
__device__ __forceinline__ float ex2_approx_ftz(float x)
{
#ifdef MLA_MODEL
    return model_ex2_approx_ftz(x);
#else
    float r;
    asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(r) : "f"(x));
    return r;
#endif
}

/* x where `keep` is not 0, else a + b: a sum under a predicate, which unlike a select does not take
 * the pipe of integers and comparisons. */
__device__ __forceinline__ void add_unless(float &x, uint32_t keep, float a, float b)
{
#ifdef MLA_MODEL
    x = keep ? x : a + b;
#else
    asm("{\n.reg .pred p;\nsetp.eq.u32 p, %1, 0;\n@p add.f32 %0, %2, %3;\n}\n"
        : "+f"(x)
        : "r"(keep), "f"(a), "f"(b));
#endif
}

/* Two floats in a register pair, low first: one instruction works on both (sm_100 and later). */
__device__ __forceinline__ uint64_t pack_f32x2(float low, float high)
{
#ifdef MLA_MODEL
    return model_pack_f32x2(low, high);
#else
    uint64_t r;
    asm("mov.b64 %0, {%1, %2};\n" : "=l"(r) : "f"(low), "f"(high));
    return r;
#endif
}

__device__ __forceinline__ void unpack_f32x2(float *low, float *high, uint64_t two)
{
#ifdef MLA_MODEL
    model_unpack_f32x2(low, high, two);
#else
    asm("mov.b64 {%0, %1}, %2;\n" : "=f"(*low), "=f"(*high) : "l"(two));
#endif
}

__device__ __forceinline__ uint64_t fma_rn_f32x2(uint64_t a, uint64_t b, uint64_t c)
{
#ifdef MLA_MODEL
    return model_fma_rn_f32x2(a, b, c);
#else
    uint64_t r;
    asm("fma.rn.f32x2 %0, %1, %2, %3;\n" : "=l"(r) : "l"(a), "l"(b), "l"(c));
    return r;
#endif
}

__device__ __forceinline__ uint64_t mul_rn_f32x2(uint64_t a, uint64_t b)
{
#ifdef MLA_MODEL
    return model_mul_rn_f32x2(a, b);
#else
    uint64_t r;
    asm("mul.rn.f32x2 %0, %1, %2;\n" : "=l"(r) : "l"(a), "l"(b));
    return r;
#endif
}

__device__ __forceinline__ uint64_t add_rn_f32x2(uint64_t a, uint64_t b)
{
#ifdef MLA_MODEL
    return model_add_rn_f32x2(a, b);
#else
    uint64_t r;
    asm("add.rn.f32x2 %0, %1, %2;\n" : "=l"(r) : "l"(a), "l"(b));
    return r;
#endif
}

/* The largest of three; NaN only if all are (sm_100 and later). */
__device__ __forceinline__ float max3_f32(float a, float b, float c)
{
#ifdef MLA_MODEL
    return model_max3_f32(a, b, c);
#else
    float r;
    asm("max.f32 %0, %1, %2, %3;\n" : "=f"(r) : "f"(a), "f"(b), "f"(c));
    return r;
#endif
}

/* The larger; NaN if one is. */
__device__ __forceinline__ float max_nan_f32(float a, float b)
{
#ifdef MLA_MODEL
    return a != a || b != b ? __builtin_nanf("") : a > b ? a : b;
#else
    float r;
    asm("max.NaN.f32 %0, %1, %2;\n" : "=f"(r) : "f"(a), "f"(b));
    return r;
#endif
}

#endif

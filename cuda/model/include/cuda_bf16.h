/* SPDX-License-Identifier: Apache-2.0 */
/* bfloat16 under CUDA's names: storage and conversions. */
#ifndef MLA_MODEL_CUDA_BF16_H
#define MLA_MODEL_CUDA_BF16_H

#include "cuda_runtime.h"
#include "model/number.h"

struct __nv_bfloat16 {
    unsigned short bits;
    __nv_bfloat16() = default;
    __nv_bfloat16(float x) : bits(model_bf16_of(x))
    {
    }
    operator float() const
    {
        return model_of_bf16(bits);
    }
};
struct __align__(4) __nv_bfloat162
{
    __nv_bfloat16 x, y;
};

static inline float __bfloat162float(__nv_bfloat16 b)
{
    return b;
}
static inline __nv_bfloat16 __float2bfloat16(float x)
{
    return __nv_bfloat16(x);
}
static inline __nv_bfloat16 __float2bfloat16_rn(float x)
{
    return __nv_bfloat16(x);
}
static inline float2 __bfloat1622float2(__nv_bfloat162 b)
{
    return {b.x, b.y};
}
static inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y)
{
    return {__nv_bfloat16(x), __nv_bfloat16(y)};
}

#endif

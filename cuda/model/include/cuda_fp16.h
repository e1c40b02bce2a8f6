/* SPDX-License-Identifier: Apache-2.0 */
/* IEEE half precision under CUDA's names: storage and conversions. */
#ifndef MLA_MODEL_CUDA_FP16_H
#define MLA_MODEL_CUDA_FP16_H

#include "cuda_runtime.h"
#include "model/number.h"

struct __half_raw {
    unsigned short x;
};
struct __half2_raw {
    unsigned short x, y;
};
struct __half {
    unsigned short bits;
    __half() = default;
    __half(float x) : bits(model_f16_of(x))
    {
    }
    __half(__half_raw r) : bits(r.x)
    {
    }
    operator float() const
    {
        return model_of_f16(bits);
    }
};
typedef __half half;
struct __align__(4) __half2
{
    __half x, y;
};
typedef __half2 half2;

static inline float __half2float(__half h)
{
    return h;
}
static inline __half __float2half(float x)
{
    return __half(x);
}
static inline __half __float2half_rn(float x)
{
    return __half(x);
}
static inline float2 __half22float2(__half2 h)
{
    return {h.x, h.y};
}
static inline __half2 __floats2half2_rn(float x, float y)
{
    return {__half(x), __half(y)};
}
static inline unsigned short __half_as_ushort(__half h)
{
    return h.bits;
}
static inline __half __ushort_as_half(unsigned short bits)
{
    return __half(__half_raw{bits});
}

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* Number conversions of the cache codecs on the device, bit for bit those of common/format.c and
 * reference/cache.c. Values travel as the bits of floats, so that no arithmetic touches a NaN, and
 * everything narrow is rounded on integers: the same on every architecture. */
#ifndef MLA_CUDA_CODEC_CUH
#define MLA_CUDA_CODEC_CUH

#include "mla/cache.h"

#include <stdint.h>

#define INLINE __device__ __forceinline__

INLINE bool finite_bits(uint32_t x)
{
    return (x & 0x7F800000u) != 0x7F800000u;
}

INLINE bool nan_bits(uint32_t x)
{
    return (x & 0x7FFFFFFFu) > 0x7F800000u;
}

/* --------------------------------------------------------------- 16-bit types */

INLINE uint32_t widen_f16(uint32_t h)
{
    uint32_t magnitude = h & 0x7FFF, sign = (h & 0x8000) << 16;
    if (magnitude < 0x400) /* times 2^-24: exact, and never a subnormal float */
        return __float_as_uint((float)magnitude * 0x1p-24f) | sign;
    uint32_t top = magnitude < 0x7C00 ? 112u << 23 : 224u << 23;
    uint32_t quiet = magnitude > 0x7C00 ? 0x400000u : 0;
    return ((magnitude << 13) + top) | quiet | sign;
}

/* As the CPU's conversion of float to bf16: a NaN keeps sign and upper payload. */
INLINE uint32_t round_bf16(uint32_t x)
{
    return nan_bits(x) ? x >> 16 | 0x40 : (x + 0x7FFF + (x >> 16 & 1)) >> 16;
}

/* As the CPU's conversion by way of double: a NaN keeps its sign alone. */
INLINE uint32_t f32_to_bf16(uint32_t x)
{
    return nan_bits(x) ? (x >> 16 & 0x8000) | 0x7FC0 : round_bf16(x);
}

INLINE uint32_t f32_to_f16(uint32_t x)
{
    uint32_t sign = x >> 16 & 0x8000, a = x & 0x7FFFFFFFu;
    if (a > 0x7F800000u)
        return sign | 0x7E00;
    if (a < 0x38800000u) /* below 2^-14: steps of 2^-24 */
        return sign | (uint32_t)__float2int_rn(__uint_as_float(a) * 0x1p24f);
    return sign | min(((a + 0xFFF + (a >> 13 & 1)) >> 13) - (112u << 10), 0x7C00u);
}

/* Magnitude code of a finite double with `mantissa` bits and smallest normal 2^emin, to nearest
 * even, no upper end. */
INLINE uint64_t narrow(uint64_t bits, int mantissa, int emin)
{
    int exponent = (int)(bits >> 52 & 0x7FF) - 1023;
    if (exponent < emin - mantissa - 2)
        return 0;
    uint64_t significand = (bits & 0xFFFFFFFFFFFFFull) | 0x10000000000000ull;
    int place = exponent > emin ? exponent : emin;
    int shift = 52 - mantissa + place - exponent;
    uint64_t code = significand >> shift;
    uint64_t rest = significand & ((1ull << shift) - 1), half = 1ull << (shift - 1);
    code += rest > half || (rest == half && (code & 1));
    return code + ((uint64_t)(place - emin) << mantissa);
}

INLINE uint32_t f64_to_16(double x, bool bf16)
{
    uint64_t bits = (uint64_t)__double_as_longlong(x), a = bits & ~(1ull << 63);
    uint32_t sign = (uint32_t)(bits >> 48) & 0x8000, inf = bf16 ? 0x7F80 : 0x7C00;
    if (a > 0x7FF0000000000000ull)
        return sign | (bf16 ? 0x7FC0 : 0x7E00);
    uint64_t code = a == 0x7FF0000000000000ull ? inf
                    : bf16                     ? narrow(a, 7, -126)
                                               : narrow(a, 10, -14);
    return sign | (uint32_t)(code < inf ? code : inf);
}

INLINE double f32_to_f64(uint32_t x)
{
    if (!nan_bits(x))
        return (double)__uint_as_float(x);
    uint64_t payload = (uint64_t)(x & 0x7FFFFF) << 29;
    return __longlong_as_double(
        (long long)((uint64_t)(x >> 31) << 63 | 0x7FF8000000000000ull | payload));
}

/* ---------------------------------------------------------------- fp8 and fp4 */

INLINE uint32_t widen_e4m3(uint32_t code)
{
    uint32_t magnitude = code & 0x7F, sign = (code & 0x80) << 24;
    if (magnitude < 8)
        return __float_as_uint((float)magnitude * 0x1p-9f) | sign;
    return (magnitude == 0x7F ? 0x7FC00000u : (magnitude << 20) + (120u << 23)) | sign;
}

INLINE uint32_t widen_e2m1(uint32_t code)
{
    return __float_as_uint(__uint_as_float((code & 7) << 22) * 0x1p126f) | (code & 8) << 28;
}

INLINE uint32_t widen_ue8m0(uint32_t code)
{
    return code == 255 ? 0x7FC00000u : code ? code << 23 : 0x00400000u;
}

/* x is no NaN. */
INLINE uint32_t round_e4m3(float x)
{
    uint32_t bits = __float_as_uint(x), a = bits & 0x7FFFFFFFu;
    uint32_t code = a < 0x3C800000u ? (uint32_t)__float2int_rn(__uint_as_float(a) * 512.0f)
                                    : ((a + 0x7FFFF + (a >> 20 & 1)) >> 20) - (120u << 3);
    return min(code, 0x7Eu) | (bits >> 24 & 0x80);
}

INLINE uint32_t round_e2m1(float x)
{
    uint32_t bits = __float_as_uint(x), a = bits & 0x7FFFFFFFu;
    uint32_t code = a < 0x3F800000u ? (uint32_t)__float2int_rn(__uint_as_float(a) * 2.0f)
                                    : ((a + 0x1FFFFF + (a >> 22 & 1)) >> 22) - (126u << 1);
    return min(code, 7u) | (bits >> 28 & 8);
}

/* e2m1 as fp4 indexers write it: ties go towards zero, and zero has no sign. */
INLINE uint32_t index_e2m1(float x)
{
    float a = fabsf(x);
    uint32_t code = (a > 0.25f) + (a > 0.75f) + (a > 1.25f) + (a > 1.75f) + (a > 2.5f) +
                    (a > 3.5f) + (a > 5.0f);
    return code && x < 0 ? code | 8 : code;
}

/* Smallest e with 2^e >= x, for normal x > 0. */
INLINE int ceil_log2(float x)
{
    uint32_t bits = __float_as_uint(x);
    return (int)(bits >> 23) - 127 + ((bits & 0x7FFFFF) != 0);
}

INLINE float power_of_two(int e) /* a normal one */
{
    return __uint_as_float((uint32_t)(e + 127) << 23);
}

/* x / scale to e4m3; x that is not finite becomes NaN. The division rounds as the CPU's. */
INLINE uint32_t quantise_e4m3(uint32_t x, float scale)
{
    return finite_bits(x) ? round_e4m3(__fdiv_rn(__uint_as_float(x), scale)) : 0x7F;
}

/* The scales of reference/cache.c; most: largest finite magnitude. */
INLINE float latent_scale(float most, bool any)
{
    float scale = __fdiv_rn(most, 448.0f);
    if (any)
        return scale > 0x1p-126f ? scale : 0x1p-126f;
    return power_of_two(ceil_log2(scale > 1e-4f ? scale : 1e-4f));
}

INLINE float index_scale(float most, bool any)
{
    float scale = __fdiv_rn(most > 1e-4f ? most : 1e-4f, 448.0f);
    return any ? scale : power_of_two(ceil_log2(scale));
}

INLINE uint32_t e4m3_above(float x)
{
    uint32_t code = round_e4m3(x > 0x1p-9f ? x : 0x1p-9f);
    return __uint_as_float(widen_e4m3(code)) < x && code < 0x7E ? code + 1 : code;
}

/* ---------------------------------------------------------- arrays of elements */

/* n consecutive elements (n·size a multiple of 16 where wide) as float bits. */
template <int N> INLINE void load_values(mla_dtype dtype, const char *src, bool wide, uint32_t *x)
{
    if (dtype == MLA_F32) {
#pragma unroll
        for (int i = 0; i < N; i += 4) {
            if (wide && N >= 4) {
                uint4 v = *(const uint4 *)(src + 4 * i);
                x[i] = v.x, x[i + 1] = v.y, x[i + 2] = v.z, x[i + 3] = v.w;
            } else {
                for (int j = i; j < i + 4 && j < N; j++)
                    x[j] = ((const uint32_t *)src)[j];
            }
        }
        return;
    }
#pragma unroll
    for (int i = 0; i < N; i += 8) {
        if (wide && N >= 8) {
            uint4 v = *(const uint4 *)(src + 2 * i);
            uint32_t w[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
            for (int j = 0; j < 8; j++)
                x[i + j] = w[j / 2] >> 16 * (j & 1) & 0xFFFF;
        } else {
#pragma unroll
            for (int j = i; j < i + 8 && j < N; j++)
                x[j] = ((const uint16_t *)src)[j];
        }
    }
#pragma unroll
    for (int i = 0; i < N; i++)
        x[i] = dtype == MLA_BF16 ? x[i] << 16 : widen_f16(x[i]);
}

/* Stores N bytes held in words; wide: the address is a multiple of min(N, 16). */
template <int N> INLINE void store_bytes(char *dst, bool wide, const uint32_t *words)
{
    if (!wide) {
#pragma unroll
        for (int i = 0; i < N; i++)
            dst[i] = (char)(words[i / 4] >> 8 * (i & 3));
    } else if (N >= 16) {
#pragma unroll
        for (int i = 0; i < N; i += 16)
            *(uint4 *)(dst + i) =
                make_uint4(words[i / 4], words[i / 4 + 1], words[i / 4 + 2], words[i / 4 + 3]);
    } else if (N == 8) {
        *(uint2 *)dst = make_uint2(words[0], words[1]);
    } else {
        *(uint32_t *)dst = words[0];
    }
}

template <int N> INLINE void load_bytes(const char *src, bool wide, uint32_t *words)
{
    if (!wide) {
#pragma unroll
        for (int i = 0; i < (N + 3) / 4; i++)
            words[i] = 0;
#pragma unroll
        for (int i = 0; i < N; i++)
            words[i / 4] |= (uint32_t)(uint8_t)src[i] << 8 * (i & 3);
    } else if (N >= 16) {
#pragma unroll
        for (int i = 0; i < N; i += 16) {
            uint4 v = *(const uint4 *)(src + i);
            words[i / 4] = v.x, words[i / 4 + 1] = v.y, words[i / 4 + 2] = v.z,
                      words[i / 4 + 3] = v.w;
        }
    } else if (N == 8) {
        uint2 v = *(const uint2 *)src;
        words[0] = v.x, words[1] = v.y;
    } else {
        words[0] = *(const uint32_t *)src;
    }
}

/* One element, by way of float bits (plain rows) or from a double product (packed records). */
INLINE void store_value(mla_dtype dtype, char *dst, int64_t i, uint32_t x)
{
    if (dtype == MLA_BF16)
        ((uint16_t *)dst)[i] = (uint16_t)f32_to_bf16(x);
    else if (dtype == MLA_F16)
        ((uint16_t *)dst)[i] = (uint16_t)f32_to_f16(x);
    else if (dtype == MLA_F32)
        ((uint32_t *)dst)[i] = nan_bits(x) ? x | 0x400000 : x;
    else
        ((double *)dst)[i] = f32_to_f64(x);
}

/* Bits of a bf16 or f16 product. */
INLINE uint32_t product_16(mla_dtype dtype, uint32_t value, uint32_t scale)
{
    double x = (double)__uint_as_float(value) * (double)__uint_as_float(scale);
    return f64_to_16(x, dtype == MLA_BF16) & 0xFFFF;
}

INLINE void store_product(mla_dtype dtype, char *dst, int64_t i, uint32_t value, uint32_t scale)
{
    double x = (double)__uint_as_float(value) * (double)__uint_as_float(scale);
    if (dtype == MLA_F64)
        ((double *)dst)[i] = x;
    else if (dtype == MLA_F32)
        ((float *)dst)[i] = __double2float_rn(x);
    else
        ((uint16_t *)dst)[i] = (uint16_t)f64_to_16(x, dtype == MLA_BF16);
}

#endif

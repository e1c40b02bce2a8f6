/* SPDX-License-Identifier: Apache-2.0 */
/* Narrow floating-point formats, bit by bit, for the model. */
#ifndef MLA_CUDA_MODEL_NUMBER_H
#define MLA_CUDA_MODEL_NUMBER_H

#include <math.h>
#include <stdint.h>
#include <string.h>

static inline float model_of_bits(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline uint32_t model_bits_of(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline float model_of_bf16(uint16_t bits)
{
    return model_of_bits((uint32_t)bits << 16);
}

/* To nearest, ties to even; NaN is 7FFF as the hardware's. */
static inline uint16_t model_bf16_of(float x)
{
    uint32_t bits = model_bits_of(x);
    if (x != x)
        return 0x7FFF;
    return (uint16_t)((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

static inline float model_of_f16(uint16_t bits)
{
    uint32_t sign = (uint32_t)(bits & 0x8000) << 16, rest = bits & 0x7FFF;
    if (rest >= 0x7C00)
        return model_of_bits(sign | 0x7F800000u | (rest & 0x3FF) << 13);
    /* Exponent and mantissa as those of a float 2^112 times smaller: subnormals come out right. */
    return model_of_bits(sign | model_bits_of(model_of_bits(rest << 13) * 0x1p112f));
}

static inline uint16_t model_f16_of(float x)
{
    uint32_t bits = model_bits_of(x), sign = bits >> 16 & 0x8000, rest = bits & 0x7FFFFFFF;
    if (x != x)
        return 0x7FFF;
    if (rest >= 0x477FF000u) /* 65520 and beyond */
        return (uint16_t)(sign | 0x7C00);
    if (rest < 0x38800000u) /* subnormal: the sum rounds at 2^-24 */
        return (uint16_t)(sign | (model_bits_of(fabsf(x) + 0.5f) - 0x3F000000u));
    return (uint16_t)(sign | ((rest - 0x38000000u + 0xFFF + (rest >> 13 & 1)) >> 13));
}

static inline float model_of_e4m3(uint8_t bits)
{
    uint32_t sign = (uint32_t)(bits & 0x80) << 24, rest = bits & 0x7F;
    if (rest == 0x7F)
        return model_of_bits(0x7FC00000u);
    return model_of_bits(sign | model_bits_of(model_of_bits(rest << 20) * 0x1p120f));
}

/* To nearest, ties to even, largest 448; NaN stays NaN. */
static inline uint8_t model_e4m3_of(float x)
{
    uint32_t bits = model_bits_of(x), sign = bits >> 24 & 0x80, rest = bits & 0x7FFFFFFF;
    if (x != x)
        return 0x7F;
    if (rest >= 0x43E00000u) /* 448 */
        return (uint8_t)(sign | 0x7E);
    if (rest < 0x3C800000u) /* 2^-6: the sum rounds at 2^-9 */
        return (uint8_t)(sign | (model_bits_of(fabsf(x) + 0x1p14f) - 0x46800000u));
    uint32_t r = (rest - 0x3C000000u + 0x7FFFF + (rest >> 20 & 1)) >> 20;
    return (uint8_t)(sign | (r > 0x7E ? 0x7E : r));
}

#endif

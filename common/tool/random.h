/* SPDX-License-Identifier: Apache-2.0 */
/* Random numbers by counter: (seed, stream, index) -> value, so that any thread, thread count and
 * machine gets the same bits. Only integer arithmetic and exact conversions are used. */
#ifndef MLA_TOOL_RANDOM_H
#define MLA_TOOL_RANDOM_H

#include <stdint.h>

/* A bijection of 64-bit words in which every input bit moves about half of the output bits
 * (the finaliser of SplitMix64). */
static inline uint64_t mla_random_mix(uint64_t z)
{
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return z ^ (z >> 31);
}

#define MLA_RANDOM_STEP UINT64_C(0x9E3779B97F4A7C15) /* 2^64 / golden ratio, odd */

/* Key of one stream of a seed. */
static inline uint64_t mla_random_key(uint64_t seed, uint64_t stream)
{
    return mla_random_mix(mla_random_mix(seed + MLA_RANDOM_STEP) + (stream + 1) * MLA_RANDOM_STEP);
}

/* Word index of the stream. */
static inline uint64_t mla_random_word(uint64_t key, uint64_t index)
{
    return mla_random_mix(key + (index + 1) * MLA_RANDOM_STEP);
}

/* 0 … n-1 from a word, n < 2^32; off from uniform by less than n / 2^32. */
static inline int64_t mla_random_below(uint64_t word, int64_t n)
{
    return (int64_t)(((word >> 32) * (uint64_t)n) >> 32);
}

/* +1 or -1. */
static inline float mla_random_sign(uint64_t key, uint64_t index)
{
    return mla_random_word(key, index) >> 63 ? 1.0f : -1.0f;
}

/* Standard normal to within the central limit of twelve uniforms: twelve 16-bit words are summed as
 * integers, which gives mean 0, variance 1 - 2^-32, excess kurtosis -0.1 and |z| < 6. The sum has
 * 20 bits and the divisor is a power of two, so the float is exact. */
static inline float mla_random_normal(uint64_t key, uint64_t index)
{
    int32_t sum = 0;
    for (uint64_t i = 0; i < 3; i++) {
        uint64_t w = mla_random_word(key, 3 * index + i);
        /* four 16-bit lanes: fold to two 32-bit sums, then to one */
        w = (w & UINT64_C(0x0000FFFF0000FFFF)) + ((w >> 16) & UINT64_C(0x0000FFFF0000FFFF));
        sum += (int32_t)((w & 0xFFFFFFFF) + (w >> 32));
    }
    return (float)(2 * sum - 12 * 65535) * 0x1p-17f;
}

#endif

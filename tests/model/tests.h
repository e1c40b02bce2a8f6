/* SPDX-License-Identifier: Apache-2.0 */
/* The files of tests, and what their kernels share. */
#ifndef MLA_TESTS_MODEL_TESTS_H
#define MLA_TESTS_MODEL_TESTS_H

#include <stdint.h>

void test_tensor_memory(void);
void test_tensor_shapes(void);
void test_wgmma(void);
void test_tma(void);
void test_threads(void);
void test_locals(void);
void test_timeline(void);
void test_threads_wrong(void);

/* Element (row, k) of operand `which` of the tests' multiplications: -3 to 3. */
static inline int test_value(uint32_t which, uint32_t row, uint32_t k)
{
    uint32_t x = which * 0x9E3779B9u + row * 0x85EBCA6Bu + k * 0xC2B2AE35u + 1;
    x = (x ^ x >> 15) * 0x2C1B3C6Du;
    x = (x ^ x >> 13) * 0x297A2D39u;
    return (int)((x ^ x >> 16) % 7) - 3;
}

static inline uint32_t test_bf16(int v)
{
    static const uint32_t magnitudes[4] = {0, 0x3F80, 0x4000, 0x4040};
    return (v < 0 ? 0x8000u : 0) | magnitudes[v < 0 ? -v : v];
}

static inline uint32_t test_e4m3(int v)
{
    static const uint32_t magnitudes[4] = {0, 0x38, 0x40, 0x44};
    return (v < 0 ? 0x80u : 0) | magnitudes[v < 0 ? -v : v];
}

#endif

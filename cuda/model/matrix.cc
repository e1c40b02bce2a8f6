/* SPDX-License-Identifier: Apache-2.0 */
/* Descriptors, operand gathers and the multiplication of the modelled tensor cores. */
#include "matrix.h"

#include <string.h>

static uint32_t field(uint64_t desc, int low, int bits)
{
    return (uint32_t)(desc >> low & (((uint64_t)1 << bits) - 1));
}

static struct model_matrix decode(uint64_t desc, bool trans)
{
    struct model_matrix m;
    m.start = field(desc, 0, 14) << 4;
    m.leading = field(desc, 16, 14) << 4;
    m.stride = field(desc, 32, 14) << 4;
    m.swizzle = 0;
    m.trans = trans;
    return m;
}

static void zero_bits(uint64_t desc, int low, int bits, const char *what, struct model_at at)
{
    if (field(desc, low, bits) != 0)
        model_fail(at, "%s: descriptor %016llx: bits %d to %d: got %u, want 0", what,
                   (unsigned long long)desc, low, low + bits - 1, field(desc, low, bits));
}

struct model_matrix model_decode_wgmma(uint64_t desc, bool trans, const char *what,
                                       struct model_at at)
{
    static const int swizzles[4] = {0, 128, 64, 32};
    struct model_matrix m = decode(desc, trans);
    zero_bits(desc, 14, 2, what, at);
    zero_bits(desc, 30, 2, what, at);
    zero_bits(desc, 46, 3, what, at); /* tcgen05's constant is not Hopper's */
    zero_bits(desc, 49, 3, what, at); /* base offset: not needed where tiles are aligned */
    zero_bits(desc, 52, 10, what, at);
    m.swizzle = swizzles[field(desc, 62, 2)];
    return m;
}

struct model_matrix model_decode_tcgen05(uint64_t desc, bool trans, const char *what,
                                         struct model_at at)
{
    static const int swizzles[8] = {0, -1, 128, -1, 64, -1, 32, -1};
    struct model_matrix m = decode(desc, trans);
    zero_bits(desc, 14, 2, what, at);
    zero_bits(desc, 30, 2, what, at);
    if (field(desc, 46, 3) != 1)
        model_fail(at, "%s: descriptor %016llx: bits 46 to 48: got %u, want 1", what,
                   (unsigned long long)desc, field(desc, 46, 3));
    zero_bits(desc, 49, 3, what, at);
    zero_bits(desc, 52, 9, what, at);
    m.swizzle = swizzles[field(desc, 61, 3)];
    if (m.swizzle < 0)
        model_fail(at,
                   "%s: descriptor %016llx: swizzle code: got %u, want 0, 2 (128 bytes), 4 (64) or "
                   "6 (32)",
                   what, (unsigned long long)desc, field(desc, 61, 3));
    return m;
}

int model_type_bytes(operand_type type)
{
    return type == OPERAND_F32 ? 4 : type == OPERAND_F16 || type == OPERAND_BF16 ? 2 : 1;
}

static float from_bits(uint32_t bits)
{
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

/* exponent and mantissa of an IEEE-like type of fewer bits, at a float's places; bias by product */
static float widen(uint32_t sign, uint32_t magnitude, int mantissa, int bias)
{
    float f = from_bits(magnitude << (23 - mantissa));
    f *= from_bits((uint32_t)(127 + 127 - bias) << 23);
    return sign ? -f : f;
}

float model_element(operand_type type, uint32_t bits)
{
    switch (type) {
    case OPERAND_BF16:
        return from_bits(bits << 16);
    case OPERAND_F16:
        if ((bits & 0x7C00) == 0x7C00)
            return from_bits((bits & 0x8000) << 16 | 0x7F800000 | (bits & 0x3FF) << 13);
        return widen(bits & 0x8000, bits & 0x7FFF, 10, 15);
    case OPERAND_E4M3:
        if ((bits & 0x7F) == 0x7F)
            return from_bits(0x7FC00000);
        return widen(bits & 0x80, bits & 0x7F, 3, 7);
    case OPERAND_E5M2:
        if ((bits & 0x7C) == 0x7C)
            return from_bits((bits & 0x80) << 24 | 0x7F800000 | (bits & 3) << 21);
        return widen(bits & 0x80, bits & 0x7F, 2, 15);
    default:
        return from_bits(bits);
    }
}

/* The swizzle exchanges 16-byte units by bits 7 and up of the absolute address. */
static uint32_t swizzled(uint32_t address, int swizzle)
{
    return address ^ ((address >> 7 & ((uint32_t)(swizzle >> 4) - 1)) << 4);
}

uint32_t model_unit_k_major(const struct model_matrix *m, uint32_t mn, uint32_t unit)
{
    if (m->swizzle == 0)
        return m->start + mn / 8 * m->stride + mn % 8 * 16 + unit * m->leading;
    uint32_t span = (uint32_t)m->swizzle;
    return swizzled(m->start + mn / 8 * m->stride + mn % 8 * span + unit * 16, m->swizzle);
}

uint32_t model_unit_mn_major(const struct model_matrix *m, uint32_t unit, uint32_t k)
{
    if (m->swizzle == 0)
        return m->start + unit * m->stride + k % 8 * 16 + k / 8 * m->leading;
    uint32_t span = (uint32_t)m->swizzle, units = span / 16;
    return swizzled(m->start + unit % units * 16 + unit / units * m->leading + k % 8 * span +
                        k / 8 * m->stride,
                    m->swizzle);
}

static float tables[2][256]; /* e4m3, e5m2 */
static bool tables_made;

static void make_tables()
{
    for (uint32_t i = 0; i < 256; i++) {
        tables[0][i] = model_element(OPERAND_E4M3, i);
        tables[1][i] = model_element(OPERAND_E5M2, i);
    }
    tables_made = true;
}

static void expand(const unsigned char *unit, operand_type type, float *out, int stride)
{
    if (model_type_bytes(type) == 2) {
        for (int i = 0; i < 8; i++) {
            uint16_t bits;
            memcpy(&bits, unit + 2 * i, 2);
            out[i * stride] = model_element(type, bits);
        }
    } else {
        const float *table = tables[type == OPERAND_E5M2];
        for (int i = 0; i < 16; i++)
            out[i * stride] = table[unit[i]];
    }
}

void model_gather(const struct model_matrix *m, operand_type type, uint32_t mn0, uint32_t count,
                  struct model_block *block, float *out, int stride_mn, int stride_k)
{
    if (!tables_made)
        make_tables();
    const unsigned char *data = block->shared.data - MODEL_SHARED_BASE;
    uint32_t per_unit = 16 / (uint32_t)model_type_bytes(type), k = 2 * per_unit;
    if (m->trans) {
        for (uint32_t u = 0; u < count / per_unit; u++)
            for (uint32_t i = 0; i < k; i++)
                expand(data + model_unit_mn_major(m, mn0 / per_unit + u, i), type,
                       out + (int)(u * per_unit) * stride_mn + (int)i * stride_k, stride_mn);
    } else {
        for (uint32_t r = 0; r < count; r++)
            for (uint32_t u = 0; u < 2; u++)
                expand(data + model_unit_k_major(m, mn0 + r, u), type,
                       out + (int)r * stride_mn + (int)(u * per_unit) * stride_k, stride_k);
    }
}

void model_gather_ranges(struct model_op *op, const struct model_matrix *m, operand_type type,
                         uint32_t mn0, uint32_t count, struct model_block *block, const char *what)
{
    /* a bit a unit, so that neighbours make one range whatever the order */
    static uint64_t bits[(1 << 18) / 16 / 64];
    uint32_t per_unit = 16 / (uint32_t)model_type_bytes(type), k = 2 * per_unit;
    uint32_t low = UINT32_MAX, high = 0;
    uint32_t outer = m->trans ? count / per_unit : count, inner = m->trans ? k : 2;
    for (uint32_t i = 0; i < outer; i++)
        for (uint32_t j = 0; j < inner; j++) {
            uint32_t a = m->trans ? model_unit_mn_major(m, mn0 / per_unit + i, j)
                                  : model_unit_k_major(m, mn0 + i, j);
            if (a < MODEL_SHARED_BASE || a + 16 > MODEL_SHARED_BASE + block->shared.bytes) {
                memset(bits, 0, sizeof bits);
                model_fail(op->at,
                           "%s: %s %u, %s %u lies at 0x%x, outside the block's shared memory (0x%x "
                           "to 0x%x)",
                           what, m->trans ? "mn chunk" : "row", i, m->trans ? "k" : "k unit", j, a,
                           (unsigned)MODEL_SHARED_BASE, MODEL_SHARED_BASE + block->shared.bytes);
            }
            uint32_t u = a >> 4;
            bits[u >> 6] |= (uint64_t)1 << (u & 63);
            low = u < low ? u : low;
            high = u > high ? u : high;
        }
    for (uint32_t u = low; u <= high;) {
        if ((bits[u >> 6] >> (u & 63)) == 0) {
            u = (u | 63) + 1;
            continue;
        }
        u += (uint32_t)__builtin_ctzll(bits[u >> 6] >> (u & 63));
        uint32_t first = u;
        while (u <= high && (bits[u >> 6] >> (u & 63) & 1) != 0)
            u++;
        model_op_reads(op, &block->shared, first * 16 - MODEL_SHARED_BASE, (u - first) * 16);
    }
    memset(bits + (low >> 6), 0, ((high >> 6) - (low >> 6) + 1) * sizeof bits[0]);
}

typedef float vector __attribute__((vector_size(32), aligned(4), may_alias));

template <int V>
static inline __attribute__((always_inline)) void columns(float *d, const float *a, const float *b,
                                                          int n, int k)
{
    vector sum[V];
    for (int j = 0; j < V; j++)
        sum[j] = *(const vector *)(d + 8 * j);
    for (int i = 0; i < k; i++) {
        float x = a[i];
        const vector *row = (const vector *)(b + (size_t)i * (size_t)n);
        for (int j = 0; j < V; j++)
            sum[j] += x * row[j];
    }
    for (int j = 0; j < V; j++)
        *(vector *)(d + 8 * j) = sum[j];
}

static inline __attribute__((always_inline)) void multiply(float *d, const float *a, const float *b,
                                                           int rows, int n, int k)
{
    for (int r = 0; r < rows; r++) {
        int j = 0;
        for (; j + 64 <= n; j += 64)
            columns<8>(d + j, a, b + j, n, k);
        for (; j < n; j += 8)
            columns<1>(d + j, a, b + j, n, k);
        d += n;
        a += k;
    }
}

/* Without FMA, so that both give the same bits. */
#if defined(__x86_64__)
__attribute__((target("avx2"))) static void multiply_avx2(float *d, const float *a, const float *b,
                                                          int rows, int n, int k)
{
    multiply(d, a, b, rows, n, k);
}
#endif

void model_multiply(float *d, const float *a, const float *b, int rows, int n, int k)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2")) {
        multiply_avx2(d, a, b, rows, n, k);
        return;
    }
#endif
    multiply(d, a, b, rows, n, k);
}

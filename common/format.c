/* SPDX-License-Identifier: Apache-2.0 */
/* Number formats and the readers of latent cache rows. Narrow formats are converted on their
 * bits, so that neither rounding mode nor flush-to-zero of the caller matters. */
#include "format.h"

#include <math.h>
#include <string.h>

#include "record.h"
#include "simd.h"

/* ------------------------------------------------------------------ scalars */

static inline uint32_t bits_of_f32(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline float f32_of_bits(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* The wideners have no branch and no float operation that depends on a condition, so that the array
 * loops below become vector code. A subnormal code gets the exponent of the smallest normal, whose
 * value is then taken off again: exact, and no subnormal float is ever an operand. */
static inline float widen_bf16(uint16_t bits)
{
    return f32_of_bits((uint32_t)bits << 16);
}

static inline float take_off(uint32_t bits, uint32_t smallest, uint32_t sign)
{
    uint32_t magnitude = bits_of_f32(f32_of_bits(bits) - f32_of_bits(smallest));
    return f32_of_bits((magnitude & 0x7FFFFFFFu) | sign);
}

static inline float widen_f16(uint16_t bits)
{
    uint32_t magnitude = bits & 0x7FFFu;
    uint32_t tiny = magnitude < 0x400u ? 0xFFFFFFFFu : 0,
             top = magnitude < 0x7C00u ? 0 : 112u << 23;
    return take_off((magnitude << 13) + (112u << 23) + (tiny & 1u << 23) + top, tiny & 0x38800000u,
                    (uint32_t)(bits & 0x8000u) << 16); /* 2^-14 */
}

static inline float widen_e4m3(uint8_t bits)
{
    uint32_t magnitude = bits & 0x7Fu;
    uint32_t tiny = magnitude < 8u ? 0xFFFFFFFFu : 0, nan = magnitude == 0x7Fu ? 0x7FC00000u : 0;
    return take_off(((magnitude << 20) + (120u << 23) + (tiny & 1u << 23)) | nan,
                    tiny & 0x3C800000u, (uint32_t)(bits & 0x80u) << 24); /* 2^-6 */
}

static const float e2m1_values[16] = {0.0f,  0.5f,  1.0f,  1.5f,  2.0f,  3.0f,  4.0f,  6.0f,
                                      -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};

static inline float widen_ue8m0(uint8_t bits)
{
    uint32_t value = bits == 255 ? 0x7FC00000u : bits ? (uint32_t)bits << 23 : 0x00400000u;
    return f32_of_bits(value);
}

float mla_bf16_to_f32(uint16_t bits)
{
    return widen_bf16(bits);
}

float mla_f16_to_f32(uint16_t bits)
{
    return widen_f16(bits);
}

float mla_e4m3_to_f32(uint8_t bits)
{
    return widen_e4m3(bits);
}

float mla_e2m1_to_f32(uint8_t nibble)
{
    return e2m1_values[nibble & 15];
}

float mla_ue8m0_to_f32(uint8_t bits)
{
    return widen_ue8m0(bits);
}

/* Magnitude of a finite x, as the code of a format with mantissa bits and the smallest normal
 * 2^emin, rounded to nearest even as if exponents had no upper end. The caller caps the code.
 * Codes of neighbouring values are neighbours, so a carry out of the mantissa needs no care. */
static inline uint64_t narrow(double x, int mantissa, int emin)
{
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    int exponent = (int)(bits >> 52 & 0x7FF) - 1023;
    if (exponent < emin - mantissa - 2) /* below half of the smallest step, zero included */
        return 0;
    uint64_t significand = (bits & 0xFFFFFFFFFFFFFu) | 0x10000000000000u;
    int place = exponent > emin ? exponent : emin;
    int shift = 52 - mantissa + place - exponent; /* bits to drop, at least 1 and at most 54 */
    uint64_t code = significand >> shift;
    uint64_t rest = significand & (((uint64_t)1 << shift) - 1), half = (uint64_t)1 << (shift - 1);
    code += rest > half || (rest == half && (code & 1));
    return code + ((uint64_t)(place - emin) << mantissa);
}

static inline uint16_t sign16(double x)
{
    return signbit(x) ? 0x8000u : 0;
}

static inline uint16_t round_bf16(float x)
{
    uint32_t bits = bits_of_f32(x);
    uint32_t rounded = (bits + 0x7FFFu + (bits >> 16 & 1)) >> 16;
    uint32_t nan = bits >> 16 | 0x40u; /* quiet, whatever the payload loses */
    return (uint16_t)((bits & 0x7FFFFFFFu) > 0x7F800000u ? nan : rounded);
}

uint16_t mla_f32_to_bf16(float x)
{
    return round_bf16(x);
}

uint16_t mla_f64_to_bf16(double x)
{
    if (isnan(x))
        return sign16(x) | 0x7FC0u;
    uint64_t code = isinf(x) ? 0x7F80u : narrow(x, 7, -126);
    return sign16(x) | (uint16_t)(code < 0x7F80u ? code : 0x7F80u);
}

uint16_t mla_f64_to_f16(double x)
{
    if (isnan(x))
        return sign16(x) | 0x7E00u;
    uint64_t code = isinf(x) ? 0x7C00u : narrow(x, 10, -14);
    return sign16(x) | (uint16_t)(code < 0x7C00u ? code : 0x7C00u);
}

uint16_t mla_f32_to_f16(float x)
{
    return mla_f64_to_f16((double)x);
}

uint8_t mla_f32_to_e4m3(float x)
{
    if (isnan(x))
        return 0x7Fu;
    uint64_t code = isinf(x) ? 0x7Eu : narrow((double)x, 3, -6);
    return (uint8_t)((sign16((double)x) >> 8) | (code < 0x7Eu ? code : 0x7Eu));
}

uint8_t mla_f32_to_e2m1(float x)
{
    if (isnan(x)) /* the format has none: the largest value, as the hardware conversion gives */
        return 7u;
    uint64_t code = isinf(x) ? 7u : narrow((double)x, 1, 0);
    return (uint8_t)((sign16((double)x) >> 12) | (code < 7u ? code : 7u));
}

/* ------------------------------------------------------------------- arrays */

/* Sources may lie at any byte address (packed records do not align their parts). */
static inline uint16_t load_u16(const void *p, int64_t i)
{
    uint16_t bits;
    memcpy(&bits, (const char *)p + 2 * i, sizeof bits);
    return bits;
}

static inline void store_u16(void *p, int64_t i, uint16_t bits)
{
    memcpy((char *)p + 2 * i, &bits, sizeof bits);
}

static inline float load_scale_f32(const void *p)
{
    float x;
    memcpy(&x, p, sizeof x);
    return x;
}

static MLA_CLONES void load_f32(mla_dtype dtype, const void *src, int64_t n, float *dst)
{
    switch (dtype) {
    case MLA_BF16:
#pragma omp simd
        for (int64_t i = 0; i < n; i++)
            dst[i] = widen_bf16(load_u16(src, i));
        return;
    case MLA_F16:
#pragma omp simd
        for (int64_t i = 0; i < n; i++)
            dst[i] = widen_f16(load_u16(src, i));
        return;
    case MLA_F32:
        if (n > 0)
            memcpy(dst, src, (size_t)n * sizeof *dst);
        return;
    case MLA_F64:
#pragma omp simd
        for (int64_t i = 0; i < n; i++)
            dst[i] = (float)((const double *)src)[i];
        return;
    }
}

void mla_load_f32(mla_dtype dtype, const void *src, int64_t n, float *dst)
{
    load_f32(dtype, src, n, dst);
}

static MLA_CLONES void load_f64(mla_dtype dtype, const void *src, int64_t n, double *dst)
{
    switch (dtype) {
    case MLA_BF16:
#pragma omp simd
        for (int64_t i = 0; i < n; i++)
            dst[i] = (double)widen_bf16(load_u16(src, i));
        return;
    case MLA_F16:
#pragma omp simd
        for (int64_t i = 0; i < n; i++)
            dst[i] = (double)widen_f16(load_u16(src, i));
        return;
    case MLA_F32:
#pragma omp simd
        for (int64_t i = 0; i < n; i++)
            dst[i] = (double)((const float *)src)[i];
        return;
    case MLA_F64:
        if (n > 0)
            memcpy(dst, src, (size_t)n * sizeof *dst);
        return;
    }
}

void mla_load_f64(mla_dtype dtype, const void *src, int64_t n, double *dst)
{
    load_f64(dtype, src, n, dst);
}

static MLA_CLONES void store_f32(mla_dtype dtype, void *dst, int64_t n, const float *src)
{
    switch (dtype) {
    case MLA_BF16:
#pragma omp simd
        for (int64_t i = 0; i < n; i++)
            store_u16(dst, i, round_bf16(src[i]));
        return;
    case MLA_F16:
        for (int64_t i = 0; i < n; i++)
            store_u16(dst, i, mla_f32_to_f16(src[i]));
        return;
    case MLA_F32:
        if (n > 0)
            memcpy(dst, src, (size_t)n * sizeof *src);
        return;
    case MLA_F64:
#pragma omp simd
        for (int64_t i = 0; i < n; i++)
            ((double *)dst)[i] = (double)src[i];
        return;
    }
}

void mla_store_f32(mla_dtype dtype, void *dst, int64_t n, const float *src)
{
    store_f32(dtype, dst, n, src);
}

static MLA_CLONES void store_f64(mla_dtype dtype, void *dst, int64_t n, const double *src)
{
    switch (dtype) {
    case MLA_BF16:
        for (int64_t i = 0; i < n; i++)
            store_u16(dst, i, mla_f64_to_bf16(src[i]));
        return;
    case MLA_F16:
        for (int64_t i = 0; i < n; i++)
            store_u16(dst, i, mla_f64_to_f16(src[i]));
        return;
    case MLA_F32:
#pragma omp simd
        for (int64_t i = 0; i < n; i++)
            ((float *)dst)[i] = (float)src[i];
        return;
    case MLA_F64:
        if (n > 0)
            memcpy(dst, src, (size_t)n * sizeof *src);
        return;
    }
}

void mla_store_f64(mla_dtype dtype, void *dst, int64_t n, const double *src)
{
    store_f64(dtype, dst, n, src);
}

/* -------------------------------------------------------------------- sizes */

size_t mla_dtype_bytes(mla_dtype value)
{
    static const size_t bytes[] = {[MLA_BF16] = 2, [MLA_F16] = 2, [MLA_F32] = 4, [MLA_F64] = 8};
    return (unsigned)value < sizeof bytes / sizeof *bytes ? bytes[value] : 0;
}

mla_dtype mla_cache_dtype(mla_cache_format format)
{
    switch (format) {
    case MLA_CACHE_BF16:
        return MLA_BF16;
    case MLA_CACHE_F16:
        return MLA_F16;
    case MLA_CACHE_F32:
        return MLA_F32;
    default:
        return MLA_F64;
    }
}

size_t mla_cache_row_bytes(mla_cache_format format, int64_t kv_lora_rank, int64_t qk_rope_dim)
{
    switch (format) {
    case MLA_CACHE_BF16:
    case MLA_CACHE_F16:
    case MLA_CACHE_F32: {
        uint64_t item = mla_dtype_bytes(mla_cache_dtype(format));
        if (kv_lora_rank < 0 || qk_rope_dim < 0 || kv_lora_rank > INT64_MAX / 8 ||
            qk_rope_dim > INT64_MAX / 8)
            return 0;
        return (size_t)(((uint64_t)kv_lora_rank + (uint64_t)qk_rope_dim) * item);
    }
    case MLA_CACHE_FP8_DS_MLA:
        return FP8_ROW_BYTES;
    case MLA_CACHE_MODEL1:
        return MODEL1_ROW_BYTES;
    case MLA_CACHE_V41:
        return V41_ROW_BYTES;
    case MLA_CACHE_NVFP4_DS_MLA:
        return NVFP4_ROW_BYTES;
    }
    return 0;
}

/* --------------------------------------------------------------------- rows */

/* What stays the same for all rows of one call. */
struct row_map {
    const mla_problem *problem;
    const char *kv_c, *k_pe;       /* flat, at the request's first key */
    const char *pages;             /* paged */
    const int32_t *page_ids;       /* of the request */
    int64_t row_bytes, page_bytes; /* strides; flat: row_bytes of kv_c, page_bytes of k_pe */
    int64_t latent_bytes;          /* plain formats: rope follows the latent part */
    int64_t end;                   /* keys at or past it do not exist */
};

static struct row_map map_rows(const mla_problem *p, const mla_tensors *t,
                               const struct mla_request *r, int64_t seq_len_kv)
{
    struct row_map m = {.problem = p, .end = seq_len_kv};
    int64_t item = mla_cache_is_packed(p->cache_format)
                       ? 1
                       : (int64_t)mla_dtype_bytes(mla_cache_dtype(p->cache_format));
    m.latent_bytes = p->kv_lora_rank * item;
    if (p->page_size > 0) {
        int64_t row =
            (int64_t)mla_cache_row_bytes(p->cache_format, p->kv_lora_rank, p->qk_rope_dim);
        m.row_bytes = t->kv_cache.stride[1] ? t->kv_cache.stride[1] * item : row;
        /* Pages with a footer have no row stride: their parts lie where page_size puts them. */
        if (p->cache_format == MLA_CACHE_MODEL1 || p->cache_format == MLA_CACHE_V41)
            m.row_bytes = row;
        m.page_bytes = mla_stride0(&t->kv_cache, 0) * item;
        if (m.page_bytes == 0)
            m.page_bytes = p->page_size * m.row_bytes;
        m.pages = t->kv_cache.data;
        if (t->page_table.data)
            m.page_ids = (const int32_t *)t->page_table.data +
                         r->index * mla_stride0(&t->page_table, p->max_pages);
        int64_t held = p->max_pages * p->page_size;
        m.end = m.end < held ? m.end : held;
    } else if (mla_cache_is_packed(p->cache_format)) {
        m.end = 0; /* packed records live in pages only */
    } else {
        m.row_bytes = mla_stride0(&t->kv_c, p->kv_lora_rank) * item;
        m.page_bytes = mla_stride0(&t->k_pe, p->qk_rope_dim) * item;
        if (t->kv_c.data)
            m.kv_c = (const char *)t->kv_c.data + r->kv_start * m.row_bytes;
        if (p->qk_rope_dim > 0 && t->k_pe.data)
            m.k_pe = (const char *)t->k_pe.data + r->kv_start * m.page_bytes;
    }
    return m;
}

/* Parts of key j; false where there is no such key. */
static inline bool find_record(const struct row_map *m, int64_t j, struct mla_record *out)
{
    const mla_problem *p = m->problem;
    if (j < 0 || j >= m->end)
        return false;
    if (p->page_size == 0) {
        out->data = m->kv_c + j * m->row_bytes;
        out->rope = m->k_pe ? m->k_pe + j * m->page_bytes : NULL;
        return true;
    }
    int64_t column, slot;
    if ((uint64_t)(j | p->page_size) <=
        UINT32_MAX) { /* a 64-bit division is several times slower */
        column = (uint32_t)j / (uint32_t)p->page_size;
        slot = (uint32_t)j % (uint32_t)p->page_size;
    } else {
        column = j / p->page_size;
        slot = j % p->page_size;
    }
    int64_t id = m->page_ids[column];
    if (id < 0 || id >= p->num_pages)
        return false;
    *out = mla_record_at(p->cache_format, m->pages + id * m->page_bytes, slot, p->page_size,
                         m->row_bytes, m->latent_bytes);
    return true;
}

/* The readers, once for float and once for double. Inlined by force, because a function that a
 * clone calls is not compiled for the clone's instructions. */
#define ALWAYS_INLINE static inline __attribute__((always_inline))
#define REAL float
#define NAME(stem) stem##_f32
#include "format_tmpl.c"
#undef REAL
#undef NAME
#define REAL double
#define NAME(stem) stem##_f64
#include "format_tmpl.c"

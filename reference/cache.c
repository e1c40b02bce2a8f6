/* SPDX-License-Identifier: Apache-2.0 */
/* mla/cache.h on the CPU: the tile quantisers, then one record after another. */
#include "mla/cache.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "common/format.h"
#include "common/record.h"
#include "reference/reference.h"

/* --------------------------------------------------------------- quantisers */

/* Largest finite magnitude; *clean = false if anything is not finite. */
static float amax_of(const float *x, int64_t n, bool *clean)
{
    float most = 0;
    *clean = true;
    for (int64_t i = 0; i < n; i++) {
        float a = fabsf(x[i]);
        if (!isfinite(a))
            *clean = false;
        else if (a > most)
            most = a;
    }
    return most;
}

int mla_ceil_log2(float x)
{
    int exponent;
    return frexpf(x, &exponent) == 0.5f ? exponent - 1 : exponent;
}

float mla_latent_scale(const float *x, int64_t n, mla_scale_rule rule)
{
    bool clean;
    float scale = amax_of(x, n, &clean) / 448.0f;
    if (rule == MLA_SCALE_F32)
        return scale > FLT_MIN ? scale : FLT_MIN;
    return ldexpf(1.0f, mla_ceil_log2(scale > 1e-4f ? scale : 1e-4f));
}

float mla_index_scale(const float *x, int64_t n, mla_scale_rule rule)
{
    bool clean;
    float most = amax_of(x, n, &clean);
    float scale = (most > 1e-4f ? most : 1e-4f) / 448.0f;
    return rule == MLA_SCALE_F32 ? scale : ldexpf(1.0f, mla_ceil_log2(scale));
}

void mla_quantise_e4m3(const float *x, int64_t n, float scale, uint8_t *dst)
{
    for (int64_t i = 0; i < n; i++)
        dst[i] = isfinite(x[i]) ? mla_f32_to_e4m3(x[i] / scale) : 0x7Fu;
}

/* The ue8m0 byte of a power of two that mla_latent_scale gave. */
static uint8_t ue8m0_of(float scale)
{
    return (uint8_t)(mla_ceil_log2(scale) + 127);
}

/* Round a positive value up to e4m3: at least the smallest code, at most 448. */
static uint8_t e4m3_above(float x)
{
    uint8_t code = mla_f32_to_e4m3(x > 0x1p-9f ? x : 0x1p-9f);
    return mla_e4m3_to_f32(code) < x && code < 0x7E ? code + 1 : code;
}

/* 16 values to 8 bytes and one scale byte. A block that is not finite says so in its scale. */
static uint8_t write_nvfp4_block(const float *x, uint8_t *dst)
{
    bool clean;
    float most = amax_of(x, NVFP4_TILE, &clean);
    uint8_t scale = clean ? e4m3_above(most / 6.0f) : 0x7Fu;
    float inverse = 1.0f / mla_e4m3_to_f32(scale);
    for (int i = 0; i < NVFP4_TILE; i += 2)
        dst[i / 2] = clean ? (uint8_t)(mla_f32_to_e2m1(x[i] * inverse) |
                                       mla_f32_to_e2m1(x[i + 1] * inverse) << 4)
                           : 0;
    return scale;
}

/* e2m1 as fp4 indexers write it: ties go towards zero, and zero has no sign. */
static uint8_t index_e2m1(float x)
{
    static const float above[7] = {0.25f, 0.75f, 1.25f, 1.75f, 2.5f, 3.5f, 5.0f};
    uint8_t code = 0;
    for (int i = 0; i < 7; i++)
        code += fabsf(x) > above[i];
    return code && x < 0 ? code | 8u : code;
}

uint8_t mla_index_fp4_block(const float *x, uint8_t *dst)
{
    bool clean;
    float most = amax_of(x, INDEX_FP4_TILE, &clean);
    if (!clean) {
        memset(dst, 0, INDEX_FP4_TILE / 2);
        return 0xFFu;
    }
    int exponent = mla_ceil_log2((most > 1e-4f ? most : 1e-4f) / 6.0f);
    for (int i = 0; i < INDEX_FP4_TILE; i += 2)
        dst[i / 2] = (uint8_t)(index_e2m1(ldexpf(x[i], -exponent)) |
                               index_e2m1(ldexpf(x[i + 1], -exponent)) << 4);
    return (uint8_t)(exponent + 127);
}

/* ------------------------------------------------------------------ records */

static void write_fp8_ds_mla(const float *latent, const float *rope, mla_scale_rule rule,
                             uint8_t *data, uint8_t *rope_to, uint8_t *scales)
{
    for (int s = 0; s < FP8_TILES; s++) {
        float scale = mla_latent_scale(latent + s * FP8_TILE, FP8_TILE, rule);
        mla_quantise_e4m3(latent + s * FP8_TILE, FP8_TILE, scale, data + s * FP8_TILE);
        memcpy(scales + 4 * s, &scale, sizeof scale);
    }
    mla_store_f32(MLA_BF16, rope_to, PACKED_ROPE, rope);
}

/* model1 and v41: e4m3 tiles with ue8m0 scales. */
static void write_ue8m0_tiles(const float *latent, int tiles, int tile, uint8_t *data,
                              uint8_t *scales)
{
    for (int s = 0; s < tiles; s++) {
        float scale = mla_latent_scale(latent + s * tile, tile, MLA_SCALE_DEFAULT);
        mla_quantise_e4m3(latent + s * tile, tile, scale, data + s * tile);
        scales[s] = ue8m0_of(scale);
    }
}

static void write_nvfp4_ds_mla(const float *latent, const float *rope, uint8_t *data,
                               uint8_t *rope_to, uint8_t *scales)
{
    for (int s = 0; s < NVFP4_TILES; s++)
        scales[nvfp4_scale_place(s)] =
            write_nvfp4_block(latent + s * NVFP4_TILE, data + s * NVFP4_TILE / 2);
    mla_quantise_e4m3(rope, PACKED_ROPE, 1.0f, rope_to);
}

/* One packed record; row holds the latent and then the rope values. */
static void write_packed(mla_cache_format format, const struct mla_record *record, const float *row,
                         mla_scale_rule rule)
{
    uint8_t *data = (uint8_t *)record->data, *rope = (uint8_t *)record->rope;
    uint8_t *scales = (uint8_t *)record->scales;
    if (format == MLA_CACHE_FP8_DS_MLA) {
        write_fp8_ds_mla(row, row + PACKED_LATENT, rule, data, rope, scales);
    } else if (format == MLA_CACHE_MODEL1) {
        write_ue8m0_tiles(row, MODEL1_TILES, MODEL1_TILE, data, scales);
        scales[MODEL1_TILES] = 0; /* padding */
        mla_store_f32(MLA_BF16, rope, PACKED_ROPE, row + MODEL1_ROPE_AT);
    } else if (format == MLA_CACHE_V41) {
        write_ue8m0_tiles(row, V41_TILES, V41_TILE, data, scales);
    } else if (format == MLA_CACHE_NVFP4_DS_MLA) {
        write_nvfp4_ds_mla(row, row + PACKED_LATENT, data, rope, scales);
    }
}

/* n elements from one dtype to another, rounded once. In pieces: no allocation for any width. */
static void convert(mla_dtype from, const char *src, mla_dtype to, char *dst, int64_t n)
{
    double piece[256];
    int64_t in = (int64_t)mla_dtype_bytes(from), out = (int64_t)mla_dtype_bytes(to);
    for (int64_t at = 0; at < n; at += 256) {
        int64_t count = n - at < 256 ? n - at : 256;
        mla_load_f64(from, src + at * in, count, piece);
        mla_store_f64(to, dst + at * out, count, piece);
    }
}

/* -------------------------------------------------------------- latent rows */

static struct mla_record record_of(const mla_cache *c, const struct mla_cache_layout *l,
                                   int64_t slot)
{
    if (!l->packed && !l->paged)
        return (struct mla_record){(const char *)c->kv_c.data + slot * l->row_bytes,
                                   c->qk_rope_dim > 0
                                       ? (const char *)c->k_pe.data + slot * l->page_bytes
                                       : NULL,
                                   NULL};
    const char *page = (const char *)c->kv_cache.data + slot / c->page_size * l->page_bytes;
    return mla_record_at(c->format, page, slot % c->page_size, c->page_size, l->row_bytes,
                         c->kv_lora_rank * l->item);
}

/* Row i of a tensor of width elements. */
static char *row_of(const mla_tensor *t, int64_t i, int64_t width, mla_dtype dtype)
{
    return (char *)t->data + i * mla_stride0(t, width) * (int64_t)mla_dtype_bytes(dtype);
}

mla_status mla_cache_write_cpu(const mla_context *context, const mla_cache *cache,
                               const struct mla_cache_layout *layout,
                               const mla_cache_values *values, const int64_t *slots, int64_t n,
                               mla_scale_rule rule, void *stream)
{
    (void)context;
    (void)stream;
    mla_dtype plain = mla_cache_dtype(cache->format);
    for (int64_t i = 0; i < n; i++) {
        if (slots[i] < 0)
            continue;
        struct mla_record record = record_of(cache, layout, slots[i]);
        const char *latent = row_of(&values->kv_c, i, cache->kv_lora_rank, values->dtype);
        const char *rope = cache->qk_rope_dim > 0
                               ? row_of(&values->k_pe, i, cache->qk_rope_dim, values->dtype)
                               : NULL;
        if (layout->packed) {
            float row[PACKED_LATENT + PACKED_ROPE];
            mla_load_f32(values->dtype, latent, PACKED_LATENT, row);
            mla_load_f32(values->dtype, rope, cache->qk_rope_dim, row + PACKED_LATENT);
            write_packed(cache->format, &record, row, rule);
        } else {
            convert(values->dtype, latent, plain, (char *)record.data, cache->kv_lora_rank);
            convert(values->dtype, rope, plain, (char *)record.rope, cache->qk_rope_dim);
        }
    }
    return MLA_OK;
}

mla_status mla_cache_read_cpu(const mla_context *context, const mla_cache *cache,
                              const struct mla_cache_layout *layout, const int64_t *slots,
                              int64_t n, const mla_cache_values *values, void *stream)
{
    (void)context;
    (void)stream;
    size_t item = mla_dtype_bytes(values->dtype);
    mla_dtype plain = mla_cache_dtype(cache->format);
    for (int64_t i = 0; i < n; i++) {
        char *latent = row_of(&values->kv_c, i, cache->kv_lora_rank, values->dtype);
        char *rope = cache->qk_rope_dim > 0
                         ? row_of(&values->k_pe, i, cache->qk_rope_dim, values->dtype)
                         : NULL;
        if (slots[i] < 0) {
            memset(latent, 0, (size_t)cache->kv_lora_rank * item);
            if (rope)
                memset(rope, 0, (size_t)cache->qk_rope_dim * item);
            continue;
        }
        struct mla_record record = record_of(cache, layout, slots[i]);
        if (layout->packed) {
            double row[PACKED_LATENT + PACKED_ROPE];
            mla_record_read_f64(cache->format, &record, PACKED_LATENT, PACKED_ROPE, row);
            mla_store_f64(values->dtype, latent, PACKED_LATENT, row);
            mla_store_f64(values->dtype, rope, cache->qk_rope_dim, row + PACKED_LATENT);
        } else {
            convert(plain, record.data, values->dtype, latent, cache->kv_lora_rank);
            convert(plain, record.rope, values->dtype, rope, cache->qk_rope_dim);
        }
    }
    return MLA_OK;
}

/* ------------------------------------------------------------- indexer keys */

/* Data and footer of a slot. */
static uint8_t *index_record(const mla_cache_index *c, int64_t slot, uint8_t **footer)
{
    int64_t data = mla_index_key_bytes(c->format), offset = slot % c->page_size;
    int64_t page_bytes =
        mla_stride0(&c->pages, (int64_t)mla_cache_index_page_bytes(c->format, c->page_size));
    uint8_t *page = (uint8_t *)c->pages.data + slot / c->page_size * page_bytes;
    *footer = page + c->page_size * data + offset * INDEX_SCALE_BYTES;
    return page + offset * data;
}

mla_status mla_cache_index_write_cpu(const mla_context *context, const mla_cache_index *cache,
                                     mla_dtype dtype, const mla_tensor *keys, const int64_t *slots,
                                     int64_t n, mla_scale_rule rule, void *stream)
{
    (void)context;
    (void)stream;
    for (int64_t i = 0; i < n; i++) {
        if (slots[i] < 0)
            continue;
        float x[INDEX_DIM];
        mla_load_f32(dtype, row_of(keys, i, INDEX_DIM, dtype), INDEX_DIM, x);
        uint8_t *footer, *data = index_record(cache, slots[i], &footer);
        if (cache->format == MLA_INDEX_FP8) {
            float scale = mla_index_scale(x, INDEX_DIM, rule);
            mla_quantise_e4m3(x, INDEX_DIM, scale, data);
            memcpy(footer, &scale, sizeof scale);
        } else {
            for (int s = 0; s < INDEX_DIM / INDEX_FP4_TILE; s++)
                footer[s] =
                    mla_index_fp4_block(x + s * INDEX_FP4_TILE, data + s * INDEX_FP4_TILE / 2);
        }
    }
    return MLA_OK;
}

mla_status mla_cache_index_read_cpu(const mla_context *context, const mla_cache_index *cache,
                                    const int64_t *slots, int64_t n, mla_dtype dtype,
                                    const mla_tensor *keys, void *stream)
{
    (void)context;
    (void)stream;
    for (int64_t i = 0; i < n; i++) {
        double x[INDEX_DIM] = {0};
        if (slots[i] >= 0) {
            uint8_t *footer, *data = index_record(cache, slots[i], &footer);
            float scale = 0;
            if (cache->format == MLA_INDEX_FP8)
                memcpy(&scale, footer, sizeof scale);
            for (int d = 0; d < INDEX_DIM; d++) {
                if (cache->format == MLA_INDEX_FP8) {
                    x[d] = (double)mla_e4m3_to_f32(data[d]) * (double)scale;
                    continue;
                }
                uint8_t code = data[d / 2] >> (d % 2 * 4);
                x[d] = (double)mla_e2m1_to_f32(code) *
                       (double)mla_ue8m0_to_f32(footer[d / INDEX_FP4_TILE]);
            }
        }
        mla_store_f64(dtype, row_of(keys, i, INDEX_DIM, dtype), INDEX_DIM, x);
    }
    return MLA_OK;
}

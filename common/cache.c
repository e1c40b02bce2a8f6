/* SPDX-License-Identifier: Apache-2.0 */
/* mla/cache.h on the CPU: argument checks, then one record after another. */
#include "mla/cache.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "format.h"
#include "record.h"
#include "status.h"

/* Bounds on a size field: products of three of them and an element size stay below 2^63. */
#define SIZE_LIMIT ((int64_t)1 << 40)

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
    } else {
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

/* ------------------------------------------------------------------- checks */

static mla_status bad(const char *call, const char *field, int64_t got, const char *want)
{
    return mla_fail(MLA_ERR_ARGUMENT, "%s: %s: got %lld, want %s", call, field, (long long)got,
                    want);
}

static mla_status null(const char *call, const char *field)
{
    return mla_fail(MLA_ERR_ARGUMENT, "%s: %s: got NULL, want a pointer", call, field);
}

static mla_status check_range(const char *call, const char *field, int64_t got, int64_t least)
{
    if (got >= least && got <= SIZE_LIMIT)
        return MLA_OK;
    return mla_fail(MLA_ERR_ARGUMENT, "%s: %s: got %lld, want %lld to 2^40", call, field,
                    (long long)got, (long long)least);
}

/* A stride of rows that hold at least width; 0 stands for width itself. rows x stride must fit. */
static mla_status check_stride(const char *call, const char *field, int64_t stride, int64_t width,
                               int64_t rows)
{
    if (stride != 0 && (stride < width || stride > INT64_MAX / 16))
        return mla_fail(MLA_ERR_ARGUMENT, "%s: %s: got %lld, want 0 or at least %lld", call, field,
                        (long long)stride, (long long)width);
    int64_t step = stride ? stride : width;
    if (step > 0 && rows > INT64_MAX / 16 / step)
        return mla_fail(MLA_ERR_ARGUMENT, "%s: %s: got %lld for %lld rows, want less than 2^59",
                        call, field, (long long)step, (long long)rows);
    return MLA_OK;
}

static mla_status check_context(const char *call, const mla_context *context, const void *stream)
{
    if (!context)
        return null(call, "context");
    if (context->backend != MLA_BACKEND_CPU)
        return mla_fail(MLA_ERR_UNSUPPORTED,
                        "%s: context: got backend %s, cache records are done by backend cpu only",
                        call, mla_backend_name(context->backend));
    if (stream)
        return mla_fail(MLA_ERR_ARGUMENT, "%s: stream: got a pointer, want NULL on the cpu backend",
                        call);
    return MLA_OK;
}

/* Shape and strides, resolved: what the loops below need. */
struct layout {
    bool paged, packed;
    int64_t width, item;           /* elements of a row; bytes of one */
    int64_t row_bytes, page_bytes; /* paged: strides. flat: of kv_c and of k_pe */
    int64_t slots;
};

static mla_status check_packed_shape(const char *call, const mla_cache *c)
{
    bool joined = c->format == MLA_CACHE_MODEL1 || c->format == MLA_CACHE_V41;
    if (c->kv_lora_rank != PACKED_LATENT)
        return bad(call, "cache.kv_lora_rank", c->kv_lora_rank, "512 for a packed format");
    if (c->qk_rope_dim != (joined ? 0 : PACKED_ROPE))
        return bad(call, "cache.qk_rope_dim", c->qk_rope_dim,
                   joined ? "0 for model1 and v41" : "64 for fp8_ds_mla and nvfp4_ds_mla");
    if (c->page_size == 0)
        return bad(call, "cache.page_size", c->page_size, "at least 1 for a packed format");
    return MLA_OK;
}

static mla_status check_paged(const char *call, const mla_cache *c, int64_t n, struct layout *l)
{
    mla_status status = check_range(call, "cache.num_pages", c->num_pages, 0);
    if (status)
        return status;
    bool footer = c->format == MLA_CACHE_MODEL1 || c->format == MLA_CACHE_V41;
    int64_t row =
        l->packed ? (int64_t)mla_cache_row_bytes(c->format, PACKED_LATENT, PACKED_ROPE) : l->width;
    int64_t stride1 = footer ? 0 : c->kv_cache.stride[1];
    status = check_stride(call, "cache.kv_cache.stride[1]", stride1, row, c->page_size);
    if (status)
        return status;
    int64_t step = stride1 ? stride1 : row;
    /* The last row of a page need not reach as far as the stride does. */
    int64_t page = (c->page_size - 1) * step + row;
    int64_t stride0 = c->kv_cache.stride[0] ? c->kv_cache.stride[0] : c->page_size * step;
    status = check_stride(call, "cache.kv_cache.stride[0]", stride0, page, c->num_pages);
    if (status)
        return status;
    l->slots = c->num_pages * c->page_size;
    if (n > 0 && l->slots > 0 && !c->kv_cache.data)
        return null(call, "cache.kv_cache");
    l->row_bytes = step * l->item;
    l->page_bytes = stride0 * l->item;
    return MLA_OK;
}

static mla_status check_flat(const char *call, const mla_cache *c, int64_t n, struct layout *l)
{
    mla_status status = check_range(call, "cache.num_rows", c->num_rows, 0);
    if (!status)
        status = check_stride(call, "cache.kv_c.stride[0]", c->kv_c.stride[0], c->kv_lora_rank,
                              c->num_rows);
    if (!status)
        status = check_stride(call, "cache.k_pe.stride[0]", c->k_pe.stride[0], c->qk_rope_dim,
                              c->num_rows);
    if (status)
        return status;
    l->slots = c->num_rows;
    if (n > 0 && l->slots > 0 && !c->kv_c.data)
        return null(call, "cache.kv_c");
    if (n > 0 && l->slots > 0 && c->qk_rope_dim > 0 && !c->k_pe.data)
        return null(call, "cache.k_pe");
    l->row_bytes = mla_stride0(&c->kv_c, c->kv_lora_rank) * l->item;
    l->page_bytes = mla_stride0(&c->k_pe, c->qk_rope_dim) * l->item;
    return MLA_OK;
}

static mla_status check_cache(const char *call, const mla_cache *c, int64_t n, struct layout *l)
{
    if (!c)
        return null(call, "cache");
    if ((unsigned)c->format > MLA_CACHE_NVFP4_DS_MLA)
        return bad(call, "cache.format", (int)c->format, "an enumerator of mla_cache_format");
    mla_status status = check_range(call, "cache.kv_lora_rank", c->kv_lora_rank, 1);
    if (!status)
        status = check_range(call, "cache.qk_rope_dim", c->qk_rope_dim, 0);
    if (!status)
        status = check_range(call, "cache.page_size", c->page_size, 0);
    if (!status && mla_cache_is_packed(c->format))
        status = check_packed_shape(call, c);
    if (status)
        return status;
    l->paged = c->page_size > 0;
    l->packed = mla_cache_is_packed(c->format);
    l->width = c->kv_lora_rank + c->qk_rope_dim;
    l->item = l->packed ? 1 : (int64_t)mla_dtype_bytes(mla_cache_dtype(c->format));
    return l->paged ? check_paged(call, c, n, l) : check_flat(call, c, n, l);
}

static mla_status check_dtype(const char *call, const char *field, mla_dtype dtype, bool f64)
{
    if ((unsigned)dtype <= (f64 ? MLA_F64 : MLA_F32))
        return MLA_OK;
    return bad(call, field, (int)dtype, f64 ? "bf16, f16, f32 or f64" : "bf16, f16 or f32");
}

static mla_status check_values(const char *call, const mla_cache *c, const mla_cache_values *v,
                               int64_t n, bool reading)
{
    if (!v)
        return null(call, "values");
    mla_status status = check_dtype(call, "values.dtype", v->dtype, reading);
    if (!status)
        status = check_stride(call, "values.kv_c.stride[0]", v->kv_c.stride[0], c->kv_lora_rank, n);
    if (!status)
        status = check_stride(call, "values.k_pe.stride[0]", v->k_pe.stride[0], c->qk_rope_dim, n);
    if (status)
        return status;
    if (n > 0 && !v->kv_c.data)
        return null(call, "values.kv_c");
    if (n > 0 && c->qk_rope_dim > 0 && !v->k_pe.data)
        return null(call, "values.k_pe");
    return MLA_OK;
}

static mla_status check_slots(const char *call, const int64_t *slots, int64_t n, int64_t limit)
{
    if (n > 0 && !slots)
        return null(call, "slots");
    for (int64_t i = 0; i < n; i++)
        if (slots[i] < -1 || slots[i] >= limit)
            return mla_fail(MLA_ERR_ARGUMENT, "%s: slots[%lld]: got %lld, want -1 or 0 to %lld",
                            call, (long long)i, (long long)slots[i], (long long)limit - 1);
    return MLA_OK;
}

static mla_status check_rule(const char *call, mla_scale_rule rule, bool may_be_f32)
{
    if (rule == MLA_SCALE_DEFAULT || (rule == MLA_SCALE_F32 && may_be_f32))
        return MLA_OK;
    return bad(call, "rule", (int)rule,
               may_be_f32 ? "MLA_SCALE_DEFAULT or MLA_SCALE_F32"
                          : "MLA_SCALE_DEFAULT, the only rule of this format");
}

/* -------------------------------------------------------------- latent rows */

size_t mla_cache_page_bytes(mla_cache_format format, int64_t kv_lora_rank, int64_t qk_rope_dim,
                            int64_t page_size)
{
    size_t row = mla_cache_row_bytes(format, kv_lora_rank, qk_rope_dim);
    if (page_size < 0 || (row && (uint64_t)page_size > (uint64_t)INT64_MAX / row))
        return 0;
    return row * (size_t)page_size;
}

static struct mla_record record_of(const mla_cache *c, const struct layout *l, int64_t slot)
{
    if (!l->paged)
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

mla_status mla_cache_write(const mla_context *context, const mla_cache *cache,
                           const mla_cache_values *values, const int64_t *slots, int64_t n,
                           mla_scale_rule rule, void *stream)
{
    const char *call = "mla_cache_write";
    struct layout l = {0};
    mla_status status = check_context(call, context, stream);
    if (!status)
        status = check_range(call, "n", n, 0);
    if (!status)
        status = check_cache(call, cache, n, &l);
    if (!status)
        status = check_values(call, cache, values, n, false);
    if (!status)
        status = check_rule(call, rule, cache->format == MLA_CACHE_FP8_DS_MLA);
    if (!status)
        status = check_slots(call, slots, n, l.slots);
    if (status)
        return status;
    mla_dtype plain = mla_cache_dtype(cache->format);
    for (int64_t i = 0; i < n; i++) {
        if (slots[i] < 0)
            continue;
        struct mla_record record = record_of(cache, &l, slots[i]);
        const char *latent = row_of(&values->kv_c, i, cache->kv_lora_rank, values->dtype);
        const char *rope = cache->qk_rope_dim > 0
                               ? row_of(&values->k_pe, i, cache->qk_rope_dim, values->dtype)
                               : NULL;
        if (l.packed) {
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

mla_status mla_cache_read(const mla_context *context, const mla_cache *cache, const int64_t *slots,
                          int64_t n, const mla_cache_values *values, void *stream)
{
    const char *call = "mla_cache_read";
    struct layout l = {0};
    mla_status status = check_context(call, context, stream);
    if (!status)
        status = check_range(call, "n", n, 0);
    if (!status)
        status = check_cache(call, cache, n, &l);
    if (!status)
        status = check_values(call, cache, values, n, true);
    if (!status)
        status = check_slots(call, slots, n, l.slots);
    if (status)
        return status;
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
        struct mla_record record = record_of(cache, &l, slots[i]);
        if (l.packed) {
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

/* Bytes of a token's data; the footer has INDEX_SCALE_BYTES more. 0 if unknown. */
static int64_t index_data_bytes(mla_index_format format)
{
    return format == MLA_INDEX_FP8 ? INDEX_DIM : format == MLA_INDEX_FP4 ? INDEX_DIM / 2 : 0;
}

size_t mla_cache_index_page_bytes(mla_index_format format, int64_t page_size)
{
    int64_t data = index_data_bytes(format);
    if (data == 0 || page_size < 0 || page_size > INT64_MAX / (data + INDEX_SCALE_BYTES))
        return 0;
    return (size_t)(page_size * (data + INDEX_SCALE_BYTES));
}

static mla_status check_index(const char *call, const mla_cache_index *c, const int64_t *slots,
                              int64_t n, mla_dtype dtype, const mla_tensor *keys, bool reading)
{
    mla_status status = check_range(call, "n", n, 0);
    if (status)
        return status;
    if (!c)
        return null(call, "cache");
    if (index_data_bytes(c->format) == 0)
        return bad(call, "cache.format", (int)c->format, "MLA_INDEX_FP8 or MLA_INDEX_FP4");
    status = check_range(call, "cache.page_size", c->page_size, 1);
    if (!status)
        status = check_range(call, "cache.num_pages", c->num_pages, 0);
    if (!status)
        status = check_stride(call, "cache.pages.stride[0]", c->pages.stride[0],
                              (int64_t)mla_cache_index_page_bytes(c->format, c->page_size),
                              c->num_pages);
    if (!status)
        status = check_dtype(call, "dtype", dtype, reading);
    if (status)
        return status;
    if (!keys || (n > 0 && !keys->data))
        return null(call, "keys");
    if (n > 0 && c->num_pages > 0 && !c->pages.data)
        return null(call, "cache.pages");
    status = check_stride(call, "keys.stride[0]", keys->stride[0], INDEX_DIM, n);
    return status ? status : check_slots(call, slots, n, c->num_pages * c->page_size);
}

/* Data and footer of a slot. */
static uint8_t *index_record(const mla_cache_index *c, int64_t slot, uint8_t **footer)
{
    int64_t data = index_data_bytes(c->format), offset = slot % c->page_size;
    int64_t page_bytes =
        mla_stride0(&c->pages, (int64_t)mla_cache_index_page_bytes(c->format, c->page_size));
    uint8_t *page = (uint8_t *)c->pages.data + slot / c->page_size * page_bytes;
    *footer = page + c->page_size * data + offset * INDEX_SCALE_BYTES;
    return page + offset * data;
}

mla_status mla_cache_index_write(const mla_context *context, const mla_cache_index *cache,
                                 mla_dtype dtype, const mla_tensor *keys, const int64_t *slots,
                                 int64_t n, mla_scale_rule rule, void *stream)
{
    const char *call = "mla_cache_index_write";
    mla_status status = check_context(call, context, stream);
    if (!status)
        status = check_index(call, cache, slots, n, dtype, keys, false);
    if (!status)
        status = check_rule(call, rule, cache->format == MLA_INDEX_FP8);
    if (status)
        return status;
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

mla_status mla_cache_index_read(const mla_context *context, const mla_cache_index *cache,
                                const int64_t *slots, int64_t n, mla_dtype dtype,
                                const mla_tensor *keys, void *stream)
{
    const char *call = "mla_cache_index_read";
    mla_status status = check_context(call, context, stream);
    if (!status)
        status = check_index(call, cache, slots, n, dtype, keys, true);
    if (status)
        return status;
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

/* SPDX-License-Identifier: Apache-2.0 */
/* mla/cache.h: argument checks for every backend, then the backend. */
#include "mla/cache.h"

#include "backend.h"
#include "format.h"
#include "record.h"
#include "status.h"

/* Bounds on a size field: products of three of them and an element size stay below 2^63. */
#define SIZE_LIMIT ((int64_t)1 << 40)

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

static const struct mla_backend_ops *ops_of(const mla_context *context)
{
    return mla_backend_ops_of(context->backend);
}

static mla_status check_context(const char *call, const mla_context *context, const void *stream)
{
    if (!context)
        return null(call, "context");
    const struct mla_backend_ops *ops = ops_of(context);
    if (!ops || !ops->cache_write)
        return mla_fail(MLA_ERR_UNSUPPORTED, "%s: context: got backend %s, want cpu%s", call,
                        mla_backend_name(context->backend), MLA_OR_CUDA);
    if (stream && context->backend == MLA_BACKEND_CPU)
        return mla_fail(MLA_ERR_ARGUMENT, "%s: stream: got a pointer, want NULL on the cpu backend",
                        call);
    return MLA_OK;
}

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

static mla_status check_paged(const char *call, const mla_cache *c, int64_t n,
                              struct mla_cache_layout *l)
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

static mla_status check_flat(const char *call, const mla_cache *c, int64_t n,
                             struct mla_cache_layout *l)
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

static mla_status check_cache(const char *call, const mla_cache *c, int64_t n,
                              struct mla_cache_layout *l)
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

/* Slots in device memory are looked at where they are used. */
static mla_status check_slots(const char *call, const mla_context *context, const int64_t *slots,
                              int64_t n, int64_t limit)
{
    if (n > 0 && !slots)
        return null(call, "slots");
    if (context->backend != MLA_BACKEND_CPU)
        return MLA_OK;
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

mla_status mla_cache_write(const mla_context *context, const mla_cache *cache,
                           const mla_cache_values *values, const int64_t *slots, int64_t n,
                           mla_scale_rule rule, void *stream)
{
    const char *call = "mla_cache_write";
    struct mla_cache_layout l = {0};
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
        status = check_slots(call, context, slots, n, l.slots);
    if (status)
        return status;
    return ops_of(context)->cache_write(context, cache, &l, values, slots, n, rule, stream);
}

mla_status mla_cache_read(const mla_context *context, const mla_cache *cache, const int64_t *slots,
                          int64_t n, const mla_cache_values *values, void *stream)
{
    const char *call = "mla_cache_read";
    struct mla_cache_layout l = {0};
    mla_status status = check_context(call, context, stream);
    if (!status)
        status = check_range(call, "n", n, 0);
    if (!status)
        status = check_cache(call, cache, n, &l);
    if (!status)
        status = check_values(call, cache, values, n, true);
    if (!status)
        status = check_slots(call, context, slots, n, l.slots);
    if (status)
        return status;
    return ops_of(context)->cache_read(context, cache, &l, slots, n, values, stream);
}

/* ------------------------------------------------------------- indexer keys */

size_t mla_cache_index_page_bytes(mla_index_format format, int64_t page_size)
{
    int64_t data = mla_index_key_bytes(format);
    if (data == 0 || page_size < 0 || page_size > INT64_MAX / (data + INDEX_SCALE_BYTES))
        return 0;
    return (size_t)(page_size * (data + INDEX_SCALE_BYTES));
}

static mla_status check_index(const char *call, const mla_context *context,
                              const mla_cache_index *c, const int64_t *slots, int64_t n,
                              mla_dtype dtype, const mla_tensor *keys, bool reading)
{
    mla_status status = check_range(call, "n", n, 0);
    if (status)
        return status;
    if (!c)
        return null(call, "cache");
    if (mla_index_key_bytes(c->format) == 0)
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
    return status ? status : check_slots(call, context, slots, n, c->num_pages * c->page_size);
}

mla_status mla_cache_index_write(const mla_context *context, const mla_cache_index *cache,
                                 mla_dtype dtype, const mla_tensor *keys, const int64_t *slots,
                                 int64_t n, mla_scale_rule rule, void *stream)
{
    const char *call = "mla_cache_index_write";
    mla_status status = check_context(call, context, stream);
    if (!status)
        status = check_index(call, context, cache, slots, n, dtype, keys, false);
    if (!status)
        status = check_rule(call, rule, cache->format == MLA_INDEX_FP8);
    if (status)
        return status;
    return ops_of(context)->cache_index_write(context, cache, dtype, keys, slots, n, rule, stream);
}

mla_status mla_cache_index_read(const mla_context *context, const mla_cache_index *cache,
                                const int64_t *slots, int64_t n, mla_dtype dtype,
                                const mla_tensor *keys, void *stream)
{
    const char *call = "mla_cache_index_read";
    mla_status status = check_context(call, context, stream);
    if (!status)
        status = check_index(call, context, cache, slots, n, dtype, keys, true);
    if (status)
        return status;
    return ops_of(context)->cache_index_read(context, cache, slots, n, dtype, keys, stream);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* Writer of problem files. What it writes, mla_case_load reads back bit for bit. */
#include "case_file.h"
#include "format.h"
#include "kernel.h"
#include "try.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum { MAX_TENSORS = 17, MAX_KEYS = 7 };

struct saver {
    const char *path;
    struct mla_st_tensor tensors[MAX_TENSORS];
    void *owned[MAX_TENSORS]; /* packed copies of strided tensors */
    int64_t num_tensors;
    const char *keys[MAX_KEYS], *values[MAX_KEYS];
    char texts[MAX_KEYS][40];
    int64_t num_metadata;
};

static bool is_packed(const mla_tensor *t, int rank, const int64_t *shape)
{
    int64_t row = rank == 3 ? shape[1] * shape[2] : rank == 2 ? shape[1] : 1;
    return mla_stride0(t, row) == row && (rank < 3 || mla_stride1(t, shape[2]) == shape[2]);
}

/* Adds a tensor of elements as the file spells them; strided ones are gathered first. */
static mla_status add(struct saver *s, const char *name, enum mla_st_dtype dtype,
                      const mla_tensor *t, int rank, int64_t d0, int64_t d1, int64_t d2)
{
    struct mla_st_tensor *out = &s->tensors[s->num_tensors];
    size_t element = mla_st_dtype_bytes(dtype);
    *out =
        (struct mla_st_tensor){.name = name, .dtype = dtype, .rank = rank, .shape = {d0, d1, d2}};
    int64_t count = 1;
    for (int i = 0; i < rank; i++)
        if (out->shape[i] < 0 || __builtin_mul_overflow(count, out->shape[i], &count))
            return mla_fail(MLA_ERR_ARGUMENT,
                            "mla_case_save: %.300s: %s: got dimension %" PRId64
                            ", want a size in 64 bits",
                            s->path, name, out->shape[i]);
    out->bytes = (size_t)count * element;
    out->data = t->data;
    if (count > 0 && !t->data)
        return mla_fail(MLA_ERR_ARGUMENT,
                        "mla_case_save: %.300s: %s: got NULL, want %" PRId64 " elements", s->path,
                        name, count);
    if (count > 0 && !is_packed(t, rank, out->shape)) {
        int64_t rows = rank == 3 ? d1 : 1;
        size_t width = (size_t)(rank == 3 ? d2 : rank == 2 ? d1 : 1) * element;
        size_t outer = (size_t)mla_stride0(t, rank == 3 ? d1 * d2 : d1) * element;
        size_t inner = (size_t)mla_stride1(t, d2) * element;
        char *packed = s->owned[s->num_tensors] = mla_alloc((size_t)count, element);
        if (!packed)
            return mla_fail(MLA_ERR_MEMORY, "mla_case_save: %.300s: no memory for %s", s->path,
                            name);
        for (int64_t i = 0; i < d0; i++)
            for (int64_t j = 0; j < rows; j++, packed += width)
                memcpy(packed, (const char *)t->data + (size_t)i * outer + (size_t)j * inner,
                       width);
        out->data = s->owned[s->num_tensors];
    }
    s->num_tensors++;
    return MLA_OK;
}

static mla_status add_array(struct saver *s, const char *name, enum mla_st_dtype dtype,
                            const void *data, int64_t n)
{
    return add(s, name, dtype, &(mla_tensor){.data = (void *)(uintptr_t)data}, 1, n, 0, 0);
}

__attribute__((format(printf, 3, 4))) static void add_key(struct saver *s, const char *key,
                                                          const char *format, ...)
{
    va_list list;
    va_start(list, format);
    vsnprintf(s->texts[s->num_metadata], sizeof s->texts[0], format, list);
    va_end(list);
    s->keys[s->num_metadata] = key;
    s->values[s->num_metadata] = s->texts[s->num_metadata];
    s->num_metadata++;
}

static mla_status add_cache(struct saver *s, const mla_problem *p, const mla_tensors *t,
                            int64_t sum_kv)
{
    int64_t L = p->kv_lora_rank, dr = p->qk_rope_dim;
    add_key(s, "cache_format", "%s", mla_cache_format_name(p->cache_format));
    if (mla_cache_is_packed(p->cache_format)) {
        /* Scales of footer formats lie behind the rows of a page: the page is one run of bytes. */
        bool footer = p->cache_format == MLA_CACHE_MODEL1 || p->cache_format == MLA_CACHE_V41;
        int64_t bytes = (int64_t)mla_cache_row_bytes(p->cache_format, L, dr);
        mla_tensor pages = t->kv_cache;
        if (footer)
            pages.stride[1] = 0;
        if (footer && mla_stride0(&pages, p->page_size * bytes) != p->page_size * bytes) {
            TRY(add(s, "kv_cache", MLA_ST_U8, &pages, 2, p->num_pages, p->page_size * bytes, 0));
            s->tensors[s->num_tensors - 1].rank = 3;
            s->tensors[s->num_tensors - 1].shape[1] = p->page_size;
            s->tensors[s->num_tensors - 1].shape[2] = bytes;
        } else {
            TRY(add(s, "kv_cache", MLA_ST_U8, &pages, 3, p->num_pages, p->page_size, bytes));
        }
        return add(s, "page_table", MLA_ST_I32, &t->page_table, 2, p->batch, p->max_pages, 0);
    }
    enum mla_st_dtype dtype = mla_case_dtype_to_st(mla_cache_dtype(p->cache_format));
    if (p->page_size > 0) {
        TRY(add(s, "kv_cache", dtype, &t->kv_cache, 3, p->num_pages, p->page_size, L + dr));
        return add(s, "page_table", MLA_ST_I32, &t->page_table, 2, p->batch, p->max_pages, 0);
    }
    TRY(add(s, "kv_c", dtype, &t->kv_c, 2, sum_kv, L, 0));
    return dr > 0 ? add(s, "k_pe", dtype, &t->k_pe, 2, sum_kv, dr, 0) : MLA_OK;
}

static mla_status collect(struct saver *s, const struct mla_case *c)
{
    const mla_problem *p = &c->problem;
    const mla_tensors *t = &c->tensors;
    static const int32_t zero = 0;
    int64_t T = mla_total_q(p), H = p->heads_q, L = p->kv_lora_rank, sum_kv = 0, max_kv = 0;
    int64_t dn = p->qk_nope_dim, dr = p->qk_rope_dim, dv = p->v_dim;
    for (int64_t b = 0; b < p->batch; b++) {
        sum_kv += p->seq_lens_kv[b];
        max_kv = p->seq_lens_kv[b] > max_kv ? p->seq_lens_kv[b] : max_kv;
    }
    enum mla_st_dtype q = mla_case_dtype_to_st(p->q_dtype);
    add_key(s, "softmax_scale", "%.17g", p->softmax_scale);
    add_key(s, "causal", "%s", p->causal ? "true" : "false");
    add_key(s, "lse_base", "%s", p->lse_base == MLA_LSE_2 ? "2" : "e");
    if (c->fill[0]) {
        add_key(s, "fill", "%s", c->fill);
        add_key(s, "seed", "%" PRIu64, c->seed);
    }
    TRY(add_array(s, "cu_seqlens_q", MLA_ST_I32, p->batch ? p->cu_seqlens_q : &zero, p->batch + 1));
    TRY(add_array(s, "seq_lens_kv", MLA_ST_I32, p->seq_lens_kv, p->batch));
    if (p->form == MLA_FORM_EXPANDED) {
        enum mla_st_dtype kv = mla_case_dtype_to_st(p->kv_dtype);
        TRY(add(s, "q", q, &t->q, 3, T, H, dn + dr));
        TRY(add(s, "k", kv, &t->k, 3, sum_kv, p->heads_kv, dn + dr));
        TRY(add(s, "v", kv, &t->v, 3, sum_kv, p->heads_kv, dv));
    } else {
        add_key(s, "kv_lora_rank", "%" PRId64, L);
        if (p->form == MLA_FORM_ABSORBED) {
            TRY(add(s, "q", q, &t->q, 3, T, H, L + dr));
        } else {
            TRY(add(s, "q_nope", q, &t->q_nope, 3, T, H, dn));
            if (dr > 0)
                TRY(add(s, "q_pe", q, &t->q_pe, 3, T, H, dr));
            TRY(add(s, "w_uk", q, &t->w_uk, 3, H, dn, L));
            TRY(add(s, "w_uv", q, &t->w_uv, 3, H, L, dv));
        }
        TRY(add_cache(s, p, t, sum_kv));
    }
    if (p->topk > 0)
        TRY(add(s, "topk_indices", MLA_ST_I32, &t->topk_indices, 2, T, p->topk, 0));
    if (p->topk > 0 && p->has_topk_lens)
        TRY(add_array(s, "topk_lens", MLA_ST_I32, t->topk_lens, T));
    if (p->has_mask)
        TRY(add(s, "mask", MLA_ST_I32, &t->mask, 2, T, (max_kv + 31) / 32, 0));
    return p->has_sink ? add_array(s, "attn_sink", MLA_ST_F32, t->attn_sink, H) : MLA_OK;
}

mla_status mla_case_save(const struct mla_case *c, const char *path)
{
    mla_status status = mla_problem_check(&c->problem);
    if (status != MLA_OK)
        return status;
    struct saver s = {.path = path};
    status = collect(&s, c);
    if (status == MLA_OK)
        status = mla_st_write(path, s.tensors, s.num_tensors, s.keys, s.values, s.num_metadata);
    for (int i = 0; i < MAX_TENSORS; i++)
        mla_free(s.owned[i]);
    return status;
}

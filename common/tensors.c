/* SPDX-License-Identifier: Apache-2.0 */
/* Tensors against their problem: layout (pointers, strides) and, on the host, contents. */
#include "tensors.h"

#include "kernel.h"
#include "status.h"

#include <inttypes.h>
#include <math.h>

/* ------------------------------------------------------------------ layout */

mla_status mla_tensor_layout(const char *call, const struct mla_tensor_shape *s)
{
    const mla_tensor *t = s->tensor;
    if (s->rows == 0 || s->columns == 0 || s->width == 0)
        return MLA_OK;
    if (!t->data)
        return mla_fail(MLA_ERR_ARGUMENT,
                        "%s: %s: got NULL, want a tensor [%" PRId64 ", %" PRId64 ", %" PRId64 "]",
                        call, s->name, s->rows, s->columns, s->width);
    if ((uintptr_t)t->data % s->bytes)
        return mla_fail(MLA_ERR_ARGUMENT, "%s: %s: got address %p, want a multiple of %zu", call,
                        s->name, t->data, s->bytes);
    int64_t end, more;
    if (s->free_strides) {
        if (t->stride[0] < 0 || t->stride[1] < 0 ||
            __builtin_mul_overflow(s->rows * (int64_t)s->bytes, t->stride[0], &end) ||
            __builtin_mul_overflow(s->columns * (int64_t)s->bytes, t->stride[1], &more) ||
            __builtin_add_overflow(end, more, &end))
            return mla_fail(MLA_ERR_ARGUMENT,
                            "%s: %s: got strides %" PRId64 ", %" PRId64
                            ", want none negative and a tensor below 2^63 bytes",
                            call, s->name, t->stride[0], t->stride[1]);
        return MLA_OK;
    }
    int64_t inner = mla_stride1(t, s->width);
    if (s->columns > 1 && inner < s->width)
        return mla_fail(MLA_ERR_ARGUMENT,
                        "%s: %s: got stride[1] %" PRId64 ", want 0 or at least %" PRId64, call,
                        s->name, inner, s->width);
    if (__builtin_mul_overflow(s->columns, inner, &end) ||
        __builtin_add_overflow(end, s->width, &more))
        return mla_fail(MLA_ERR_ARGUMENT,
                        "%s: %s: got stride[1] %" PRId64 " over %" PRId64
                        " columns, want a tensor below 2^63 bytes",
                        call, s->name, inner, s->columns);
    int64_t least = end - inner + s->width;
    int64_t outer = mla_stride0(t, end);
    if (s->rows > 1 && outer < least)
        return mla_fail(MLA_ERR_ARGUMENT,
                        "%s: %s: got stride[0] %" PRId64 ", want 0 or at least %" PRId64, call,
                        s->name, outer, least);
    if (__builtin_mul_overflow(s->rows, outer, &end) ||
        __builtin_mul_overflow(end, (int64_t)s->bytes, &end))
        return mla_fail(MLA_ERR_ARGUMENT,
                        "%s: %s: got stride[0] %" PRId64 " over %" PRId64
                        " rows, want a tensor below 2^63 bytes",
                        call, s->name, outer, s->rows);
    return MLA_OK;
}

static mla_status check_paged_cache(const mla_problem *p, const mla_tensors *t)
{
    bool packed = p->cache_format >= MLA_CACHE_FP8_DS_MLA;
    size_t element = packed ? 1 : mla_cache_row_bytes(p->cache_format, 1, 0);
    int64_t row =
        (int64_t)(mla_cache_row_bytes(p->cache_format, p->kv_lora_rank, p->qk_rope_dim) / element);
    bool footer = p->cache_format == MLA_CACHE_MODEL1 || p->cache_format == MLA_CACHE_V41;
    struct mla_tensor_shape cache = {
        "kv_cache", &t->kv_cache, p->num_pages, p->page_size, row, element, 0};
    if (footer) {
        /* A page is one block of bytes; the row stride has no meaning. */
        cache.columns = 1;
        cache.width = p->page_size * row;
    }
    mla_status status = mla_tensor_layout("mla_run", &cache);
    if (status != MLA_OK || !t->kv_cache.data)
        return status;
    /* Rows of fp8_ds_mla hold f32 scales, the others bf16 values at even places. */
    size_t align = p->cache_format == MLA_CACHE_FP8_DS_MLA ? 4
                   : p->cache_format == MLA_CACHE_MODEL1   ? 2
                                                           : 1;
    if (packed && ((uintptr_t)t->kv_cache.data | (uintptr_t)t->kv_cache.stride[0] |
                   (uintptr_t)(footer ? 0 : t->kv_cache.stride[1])) %
                      align)
        return mla_fail(MLA_ERR_ARGUMENT,
                        "mla_run: kv_cache: got address %p and strides %" PRId64 ", %" PRId64
                        ", want multiples of %zu bytes for %s",
                        t->kv_cache.data, t->kv_cache.stride[0], t->kv_cache.stride[1], align,
                        mla_cache_format_name(p->cache_format));
    return MLA_OK;
}

mla_status mla_tensors_layout(const mla_problem *p, const mla_tensors *t, bool lists)
{
    int64_t total_q = mla_total_q(p), sum_kv = 0, max_kv = 0, H = p->heads_q;
    int64_t L = p->kv_lora_rank, dr = p->qk_rope_dim, d_v = mla_d_v(p);
    size_t q = mla_dtype_bytes(p->q_dtype), out = mla_dtype_bytes(p->out_dtype);
    size_t lse = p->out_dtype == MLA_F64 ? 8 : 4;
    bool latent = p->form == MLA_FORM_LATENT, expanded = p->form == MLA_FORM_EXPANDED;
    for (int64_t b = 0; b < p->batch; b++) {
        sum_kv += p->seq_lens_kv[b];
        max_kv = p->seq_lens_kv[b] > max_kv ? p->seq_lens_kv[b] : max_kv;
    }
    bool flat = !expanded && p->page_size == 0;
    size_t kv = expanded ? mla_dtype_bytes(p->kv_dtype)
                : flat   ? mla_cache_row_bytes(p->cache_format, 1, 0)
                         : 1;
    int64_t wide_q = latent ? total_q : 0, heads_kv = expanded ? sum_kv : 0;
    const struct mla_tensor_shape shapes[] = {
        {"q_nope", &t->q_nope, wide_q, H, p->qk_nope_dim, q, false},
        {"q_pe", &t->q_pe, wide_q, H, dr, q, false},
        {"w_uk", &t->w_uk, latent && total_q ? H : 0, p->qk_nope_dim, L, q, false},
        {"w_uv", &t->w_uv, latent && total_q ? H : 0, L, d_v, q, false},
        {"q", &t->q, latent ? 0 : total_q, H, mla_d_qk(p), q, false},
        {"k", &t->k, heads_kv, p->heads_kv, mla_d_qk(p), kv, false},
        {"v", &t->v, heads_kv, p->heads_kv, d_v, kv, false},
        {"kv_c", &t->kv_c, flat ? sum_kv : 0, 1, L, kv, false},
        {"k_pe", &t->k_pe, flat ? sum_kv : 0, 1, dr, kv, false},
        {"page_table", &t->page_table, !expanded && !flat ? p->batch : 0, 1, p->max_pages, 4,
         false},
        {"mask", &t->mask, p->has_mask ? total_q : 0, 1, (max_kv + 31) / 32, 4, false},
        {"topk_indices", &t->topk_indices, lists ? total_q : 0, 1, p->topk, 4, false},
        {"out", &t->out, total_q, H, d_v, out, false},
        {"lse", &t->lse, p->wants_lse ? total_q : 0, H, 1, lse, true},
        {"max_logits", &t->max_logits, p->wants_max_logits ? total_q : 0, H, 1, lse, true},
    };
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        mla_status status = mla_tensor_layout("mla_run", &shapes[i]);
        if (status != MLA_OK)
            return status;
    }
    if (lists && p->has_topk_lens && total_q && !t->topk_lens)
        return mla_fail(MLA_ERR_ARGUMENT,
                        "mla_run: topk_lens: got NULL, want %" PRId64 " values (has_topk_lens)",
                        total_q);
    if (p->has_sink && total_q && !t->attn_sink)
        return mla_fail(MLA_ERR_ARGUMENT,
                        "mla_run: attn_sink: got NULL, want %" PRId64 " values (has_sink)", H);
    return !expanded && !flat && max_kv ? check_paged_cache(p, t) : MLA_OK;
}

/* ---------------------------------------------------------------- contents */

static mla_status check_pages(const mla_problem *p, const mla_tensors *t,
                              const struct mla_request *r)
{
    const int32_t *pages =
        (const int32_t *)t->page_table.data + r->index * mla_stride0(&t->page_table, p->max_pages);
    int64_t used = (mla_run_seq_len(r, t) + p->page_size - 1) / p->page_size;
    for (int64_t i = 0; i < used; i++)
        if (pages[i] < 0 || pages[i] >= p->num_pages)
            return mla_fail(MLA_ERR_ARGUMENT,
                            "page_table[%" PRId64 "][%" PRId64 "]: got %d, want 0 to %" PRId64,
                            r->index, i, (int)pages[i], p->num_pages - 1);
    return MLA_OK;
}

/* Rows of one request: topk_lens in range, no visible key twice; does every row list all it may
 * see? seen[j] = 1 + the last row that listed key j. */
static mla_status check_lists(const mla_problem *p, const mla_tensors *t,
                              const struct mla_request *r, int32_t *seen, bool *complete)
{
    int64_t n = mla_run_seq_len(r, t);
    int64_t stride = mla_stride0(&t->topk_indices, p->topk);
    *complete = true;
    for (int64_t i = 0; i < r->query_len; i++) {
        int64_t row = r->q_start + i, listed = 0, end = mla_causal_end(p, r, i, n);
        int64_t counted = p->has_topk_lens ? t->topk_lens[row] : p->topk;
        const int32_t *list = (const int32_t *)t->topk_indices.data + row * stride;
        if (counted < 0 || counted > p->topk)
            return mla_fail(MLA_ERR_ARGUMENT,
                            "topk_lens[%" PRId64 "]: got %" PRId64 ", want 0 to %" PRId64, row,
                            counted, p->topk);
        for (int64_t e = 0; e < counted; e++) {
            int64_t j = list[e];
            if (j < 0 || j >= end)
                continue;
            if (seen[j] == i + 1)
                return mla_fail(MLA_ERR_ARGUMENT,
                                "topk_indices[%" PRId64 "][%" PRId64 "]: got key %" PRId64
                                " a second time, want each key once in a row",
                                row, e, j);
            seen[j] = (int32_t)(i + 1);
            listed++;
        }
        *complete &= listed == (end > 0 ? end : 0);
    }
    return MLA_OK;
}

static mla_status check_request(const mla_problem *p, const mla_tensors *t,
                                const struct mla_request *r, bool *complete)
{
    *complete = false;
    if (t->seq_lens_kv) {
        int64_t n = t->seq_lens_kv[r->index];
        if (n < 0 || n > r->seq_len_kv)
            return mla_fail(MLA_ERR_ARGUMENT,
                            "seq_lens_kv[%" PRId64 "]: got %" PRId64
                            " at run time, want 0 to the planned %" PRId64,
                            r->index, n, r->seq_len_kv);
    }
    if (p->form != MLA_FORM_EXPANDED && p->page_size > 0 && r->seq_len_kv > 0) {
        mla_status status = check_pages(p, t, r);
        if (status != MLA_OK)
            return status;
    }
    if (p->topk == 0)
        return MLA_OK;
    int32_t *seen = mla_alloc((size_t)r->seq_len_kv, sizeof *seen);
    if (!seen)
        return mla_fail(MLA_ERR_MEMORY, "mla_tensors_check: cannot allocate %" PRId64 " bytes",
                        r->seq_len_kv * 4);
    mla_status status = check_lists(p, t, r, seen, complete);
    mla_free(seen);
    return status;
}

mla_status mla_tensors_check(const mla_problem *p, const mla_tensors *t, bool *complete)
{
    mla_status status = mla_problem_check(p);
    if (status != MLA_OK)
        return status;
    if (!t)
        return mla_fail(MLA_ERR_ARGUMENT, "mla_tensors_check: tensors: got NULL, want a pointer");
    mla_problem inputs = *p;
    mla_tensors with_out = *t;
    /* Outputs may not be there yet: only the inputs' layout counts here. */
    inputs.wants_lse = inputs.wants_max_logits = false;
    with_out.out = (mla_tensor){.data = (void *)(uintptr_t)64};
    status = mla_tensors_layout(&inputs, &with_out, p->topk > 0);
    if (status != MLA_OK)
        return status;
    for (int64_t h = 0; p->has_sink && t->attn_sink && h < p->heads_q; h++)
        if (isnan(t->attn_sink[h]))
            return mla_fail(MLA_ERR_ARGUMENT,
                            "attn_sink[%" PRId64 "]: got NaN, want a number or an infinity", h);
    for (int64_t b = 0, kv_start = 0; b < p->batch; b++) {
        struct mla_request r = {.index = b,
                                .q_start = p->cu_seqlens_q[b],
                                .query_len = (int64_t)p->cu_seqlens_q[b + 1] - p->cu_seqlens_q[b],
                                .kv_start = kv_start,
                                .seq_len_kv = p->seq_lens_kv[b]};
        bool all;
        kv_start += r.seq_len_kv;
        status = check_request(p, t, &r, &all);
        if (status != MLA_OK)
            return status;
        if (complete)
            complete[b] = all;
    }
    return MLA_OK;
}

/* SPDX-License-Identifier: Apache-2.0 */
#include "support_attend.h"

#include "common/format.h"
#include "common/record.h"
#include "common/route.h"
#include "common/status.h"
#include "reference/attend.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { GUARD = 256, POISON = 0xA5 };

static void *own(struct attend_case *c, size_t bytes)
{
    void *memory = calloc(bytes + 64, 1);
    assert_non_null(memory);
    assert_true(c->num_owned < (int)(sizeof c->owned / sizeof *c->owned));
    return c->owned[c->num_owned++] = memory;
}

static double normal(uint64_t *state)
{
    double sum = 0;
    for (int i = 0; i < 12; i++)
        sum += mla_test_uniform(state);
    return sum - 6;
}

void attend_put(const mla_tensor *t, mla_dtype dtype, int64_t columns, int64_t width, int64_t row,
                int64_t column, int64_t i, double x)
{
    char *at = mla_element(t, dtype, columns, width, row, column);
    mla_store_f64(dtype, at + i * (int64_t)mla_dtype_bytes(dtype), 1, &x);
}

/* Random tensor [rows, columns, width], with gaps that hold NaN if pad. */
static mla_tensor fill(struct attend_case *c, mla_dtype dtype, int64_t rows, int64_t columns,
                       int64_t width, bool pad, double scale)
{
    mla_tensor t = {NULL, {0, 0}};
    int64_t inner = width + (pad ? 3 : 0), outer = columns * inner + (pad ? 5 : 0);
    if (pad) {
        t.stride[0] = outer;
        t.stride[1] = inner;
    }
    size_t bytes = (size_t)(rows * outer) * mla_dtype_bytes(dtype);
    t.data = own(c, bytes);
    memset(t.data, 0xFF, bytes);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t k = 0; k < columns; k++)
            for (int64_t i = 0; i < width; i++)
                attend_put(&t, dtype, columns, width, r, k, i, scale * normal(&c->random));
    return t;
}

/* A packed cache: random codes that are finite, scales of all sizes. */
static void fill_packed(struct attend_case *c, unsigned char *page, int64_t page_size,
                        mla_cache_format format)
{
    for (int64_t i = 0; i < page_size; i++) {
        if (format == MLA_CACHE_FP8_DS_MLA) {
            unsigned char *row = page + i * FP8_ROW_BYTES;
            for (int k = 0; k < 512; k++)
                row[k] = (unsigned char)(mla_test_below(&c->random, 2) * 128 +
                                         mla_test_below(&c->random, 0x7F));
            for (int k = 0; k < 4; k++) {
                float scale = (float)((0.5 + mla_test_uniform(&c->random)) / 300);
                memcpy(row + FP8_SCALES_AT + 4 * k, &scale, 4);
            }
            for (int k = 0; k < 64; k++) {
                uint16_t x = mla_f64_to_bf16(normal(&c->random));
                memcpy(row + FP8_ROPE_AT + 2 * k, &x, 2);
            }
        } else if (format == MLA_CACHE_MODEL1 || format == MLA_CACHE_V41) {
            bool model1 = format == MLA_CACHE_MODEL1;
            int64_t data = model1 ? MODEL1_DATA_BYTES : V41_DATA_BYTES;
            int64_t codes = model1 ? MODEL1_ROPE_AT : 512, scales = model1 ? 8 : 16;
            unsigned char *row = page + i * data, *foot = page + page_size * data + i * scales;
            for (int64_t k = 0; k < codes; k++)
                row[k] = (unsigned char)(mla_test_below(&c->random, 2) * 128 +
                                         mla_test_below(&c->random, 0x7F));
            for (int k = 0; model1 && k < 64; k++) {
                uint16_t x = mla_f64_to_bf16(normal(&c->random));
                memcpy(row + MODEL1_ROPE_AT + 2 * k, &x, 2);
            }
            for (int64_t k = 0; k < scales; k++)
                foot[k] = (unsigned char)(118 + mla_test_below(&c->random, 3));
        } else {
            unsigned char *row = page + i * NVFP4_ROW_BYTES;
            for (int k = 0; k < 256; k++)
                row[k] = (unsigned char)mla_test_below(&c->random, 256);
            for (int k = 0; k < 96; k++) /* e4m3 rope and scales: moderate, finite */
                row[256 + k] = (unsigned char)(0x28 + mla_test_below(&c->random, 0x10));
        }
    }
}

static void fill_cache(struct attend_case *c, bool pad)
{
    const mla_problem *p = &c->p;
    int64_t keys = 0, width = p->kv_lora_rank + p->qk_rope_dim;
    for (int64_t b = 0; b < p->batch; b++)
        keys += p->seq_lens_kv[b];
    mla_dtype dtype = mla_cache_dtype(p->cache_format);
    if (p->page_size == 0) {
        c->t.kv_c = fill(c, dtype, keys, 1, p->kv_lora_rank, pad, 1);
        if (p->qk_rope_dim)
            c->t.k_pe = fill(c, dtype, keys, 1, p->qk_rope_dim, pad, 1);
        return;
    }
    int32_t *pages = own(c, (size_t)(p->batch * p->max_pages + 1) * sizeof *pages);
    c->t.page_table.data = pages;
    int64_t start = mla_test_below(&c->random, p->num_pages), next = 0;
    for (int64_t b = 0; b < p->batch; b++)
        for (int64_t k = 0; k < p->max_pages; k++) {
            bool used = k * p->page_size < p->seq_lens_kv[b];
            pages[b * p->max_pages + k] =
                used ? (int32_t)((start + 7 * next++) % p->num_pages) : -77;
        }
    if (!mla_cache_is_packed(p->cache_format)) {
        c->t.kv_cache = fill(c, dtype, p->num_pages, p->page_size, width, pad, 1);
        return;
    }
    int64_t row = (int64_t)mla_cache_row_bytes(p->cache_format, p->kv_lora_rank, p->qk_rope_dim);
    unsigned char *cache = own(c, (size_t)(p->num_pages * p->page_size * row));
    for (int64_t k = 0; k < p->num_pages; k++)
        fill_packed(c, cache + k * p->page_size * row, p->page_size, p->cache_format);
    c->t.kv_cache.data = cache;
}

/* Distinct entries in random order: the visible keys (all, or some), then junk between them. */
static void fill_lists(struct attend_case *c, bool junk, bool complete)
{
    const mla_problem *p = &c->p;
    int64_t rows = mla_total_q(p), longest = mla_mask_words(p) * 32 + 1;
    int32_t *lists = own(c, (size_t)(rows * p->topk) * sizeof *lists);
    int32_t *lens = own(c, (size_t)rows * sizeof *lens);
    int32_t *keys = malloc((size_t)longest * sizeof *keys);
    c->t.topk_indices.data = lists;
    c->t.topk_lens = p->has_topk_lens ? lens : NULL;
    for (int64_t b = 0; b < p->batch; b++) {
        struct mla_request r = attend_request(c, b);
        for (int64_t i = 0; i < r.query_len; i++) {
            int32_t *list = lists + (r.q_start + i) * p->topk;
            int64_t end = mla_causal_end(p, &r, i, r.seq_len_kv), limit = junk ? r.seq_len_kv : end;
            for (int64_t j = 0; j < limit; j++)
                keys[j] = (int32_t)j;
            for (int64_t j = limit - 1; j > 0; j--) {
                int64_t k = mla_test_below(&c->random, j + 1);
                int32_t swap = keys[j];
                keys[j] = keys[k];
                keys[k] = swap;
            }
            int64_t used = 0;
            for (int64_t e = 0; e < p->topk; e++) {
                bool hole = junk && mla_test_below(&c->random, 4) == 0;
                list[e] = hole || used >= limit
                              ? (mla_test_below(&c->random, 2) ? -1 : (int32_t)(1000000 + e))
                              : keys[used++];
            }
            int64_t count = complete ? p->topk : mla_test_below(&c->random, p->topk + 1);
            lens[r.q_start + i] = (int32_t)count;
            for (int64_t e = count; p->has_topk_lens && e < p->topk; e++)
                list[e] = list[0]; /* past the length: never looked at */
        }
    }
    free(keys);
}

static void fill_mask(struct attend_case *c)
{
    const mla_problem *p = &c->p;
    int64_t words = mla_mask_words(p), rows = mla_total_q(p);
    uint32_t *mask = own(c, (size_t)(rows * words) * sizeof *mask);
    for (int64_t i = 0; i < rows; i++) {
        int64_t kind = mla_test_below(&c->random, 5), from = mla_test_below(&c->random, words);
        for (int64_t w = 0; w < words; w++) /* empty rows, leading empty words, sparse and dense */
            mask[i * words + w] = kind == 0 || (kind == 1 && w < from)
                                      ? 0
                                      : (uint32_t)(mla_test_uniform(&c->random) * 4294967296.0) |
                                            (kind == 2 ? ~0u : 0);
    }
    c->t.mask.data = mask;
}

static void make_output(struct attend_case *c, struct attend_output *o, mla_tensor *t,
                        mla_dtype dtype, int64_t width, bool pad)
{
    o->dtype = dtype;
    o->rows = mla_total_q(&c->p);
    o->heads = c->p.heads_q;
    o->width = width;
    o->stride1 = width + (pad ? 2 : 0);
    o->stride0 = o->heads * o->stride1 + (pad ? 3 : 0);
    o->bytes = (size_t)(o->rows * o->stride0) * mla_dtype_bytes(dtype);
    o->memory = own(c, o->bytes + 2 * GUARD);
    t->data = o->memory + GUARD;
    t->stride[0] = o->stride0;
    t->stride[1] = o->stride1;
}

static double word_value(const char *rest, const char *key, double otherwise)
{
    const char *at = strstr(rest, key);
    return at ? atof(at + strlen(key)) : otherwise;
}

struct mla_request attend_request(const struct attend_case *c, int64_t b)
{
    struct mla_request r = {.index = b};
    r.q_start = c->p.cu_seqlens_q[b];
    r.query_len = c->p.cu_seqlens_q[b + 1] - r.q_start;
    for (int64_t k = 0; k < b; k++)
        r.kv_start += c->p.seq_lens_kv[k];
    r.seq_len_kv = c->p.seq_lens_kv[b];
    return r;
}

void attend_make(struct attend_case *c, const char *text, uint64_t seed)
{
    char rest[256];
    *c = (struct attend_case){.random = seed, .text = text};
    assert_ok(mla_problem_parse(&c->p, text, rest, sizeof rest));
    mla_problem *p = &c->p;
    bool pad = word_value(rest, "pad=", 0) != 0, junk = word_value(rest, "junk=", 0) != 0;
    bool complete = word_value(rest, "complete=", 0) != 0;
    double spread = word_value(rest, "spread=", 1);
    int64_t T = mla_total_q(p), H = p->heads_q, L = p->kv_lora_rank, keys = 0;
    for (int64_t b = 0; b < p->batch; b++)
        keys += p->seq_lens_kv[b];
    if (p->form == MLA_FORM_LATENT) {
        c->t.q_nope = fill(c, p->q_dtype, T, H, p->qk_nope_dim, pad, spread);
        if (p->qk_rope_dim)
            c->t.q_pe = fill(c, p->q_dtype, T, H, p->qk_rope_dim, pad, spread);
        c->t.w_uk = fill(c, p->q_dtype, H, p->qk_nope_dim, L, pad, 1 / sqrt((double)L));
        c->t.w_uv = fill(c, p->q_dtype, H, L, p->v_dim, pad, 1 / sqrt((double)L));
    } else {
        c->t.q = fill(c, p->q_dtype, T, H, mla_d_qk(p), pad, spread);
    }
    if (p->form == MLA_FORM_EXPANDED) {
        c->t.k = fill(c, p->kv_dtype, keys, p->heads_kv, mla_d_qk(p), pad, 1);
        c->t.v = fill(c, p->kv_dtype, keys, p->heads_kv, p->v_dim, pad, 1);
    } else {
        fill_cache(c, pad);
    }
    if (p->topk)
        fill_lists(c, junk, complete);
    if (p->has_mask)
        fill_mask(c);
    if (p->has_sink) {
        float *sink = own(c, (size_t)H * sizeof *sink);
        for (int64_t h = 0; h < H; h++)
            sink[h] = h % 4 == 1   ? -INFINITY
                      : h % 4 == 3 ? INFINITY
                                   : (float)(3 * normal(&c->random));
        c->t.attn_sink = sink;
    }
    mla_dtype lse_dtype = p->out_dtype == MLA_F64 ? MLA_F64 : MLA_F32;
    make_output(c, &c->out, &c->t.out, p->out_dtype, mla_d_v(p), pad);
    if (p->wants_lse)
        make_output(c, &c->lse, &c->t.lse, lse_dtype, 1, pad);
    if (p->wants_max_logits)
        make_output(c, &c->max_logits, &c->t.max_logits, lse_dtype, 1, pad);
}

void attend_free(struct attend_case *c)
{
    for (int i = 0; i < c->num_owned; i++)
        free(c->owned[i]);
    mla_problem_release(&c->p);
}

/* ------------------------------------------------------------------ running */

static void poison(struct attend_output *o)
{
    if (o->memory)
        memset(o->memory, POISON, o->bytes + 2 * GUARD);
}

/* Guards and the gaps between rows still hold the poison. */
static void check_untouched(const struct attend_case *c, const struct attend_output *o,
                            const char *name)
{
    size_t elem = mla_dtype_bytes(o->dtype);
    for (size_t k = 0; o->memory && k < o->bytes + 2 * GUARD; k++) {
        int64_t at = k >= GUARD ? (int64_t)((k - GUARD) / elem) : -1;
        int64_t in_row = at % o->stride0;
        bool written = at >= 0 && k < GUARD + o->bytes && in_row < o->heads * o->stride1 &&
                       in_row % o->stride1 < o->width;
        if (!written && o->memory[k] != POISON)
            fail_msg("%s: byte %zu beside %s was written", c->text, k, name);
    }
}

void attend_run_unchecked(struct attend_case *c, mla_route route, mla_precision precision,
                          const char *kernel, int threads, size_t limit, int64_t splits)
{
    mla_context *context;
    mla_plan *plan;
    assert_ok(
        mla_context_create(&(mla_context_options){.backend = MLA_BACKEND_CPU, .threads = threads},
                           &context));
    mla_plan_options options = {.route = route,
                                .kernel = kernel,
                                .precision = precision,
                                .num_splits = splits,
                                .workspace_limit_bytes = limit,
                                .complete = c->complete};
    assert_ok(mla_plan_create(context, &c->p, &options, &plan));
    poison(&c->out);
    poison(&c->lse);
    poison(&c->max_logits);
    size_t bytes = c->workspace_bytes = mla_plan_workspace_bytes(plan);
    unsigned char *workspace = aligned_alloc(256, (bytes + 511) / 256 * 256);
    assert_non_null(workspace);
    memset(workspace, 0xFF, (bytes + 511) / 256 * 256); /* NaN: nothing may rely on zeros */
    mla_alloc_fail_at(0);
    assert_ok(mla_run(plan, &c->t, workspace, bytes, NULL));
    assert_int_equal(mla_alloc_fail_at(0), 0); /* none in mla_run */
    for (size_t k = bytes; k < (bytes + 511) / 256 * 256; k++)
        assert_int_equal(workspace[k], 0xFF);
    free(workspace);
    mla_plan_destroy(plan);
    mla_context_destroy(context);
    check_untouched(c, &c->out, "out");
    check_untouched(c, &c->lse, "lse");
    check_untouched(c, &c->max_logits, "max_logits");
}

void attend_run(struct attend_case *c, mla_route route, mla_precision precision, const char *kernel,
                int threads, size_t limit, int64_t splits)
{
    c->complete = calloc((size_t)c->p.batch + 1, sizeof *c->complete);
    assert_ok(mla_tensors_check(&c->p, &c->t, c->complete));
    attend_run_unchecked(c, route, precision, kernel, threads, limit, splits);
    free(c->complete);
    c->complete = NULL;
}

double attend_output_at(const struct attend_output *o, int64_t row, int64_t head, int64_t i)
{
    double x;
    int64_t at = row * o->stride0 + head * o->stride1 + i;
    mla_load_f64(o->dtype, o->memory + GUARD + at * (int64_t)mla_dtype_bytes(o->dtype), 1, &x);
    return x;
}

static uint64_t hash_bytes(uint64_t h, const struct attend_output *o)
{
    for (size_t k = 0; o->memory && k < o->bytes + 2 * GUARD; k++)
        h = (h ^ o->memory[k]) * 0x100000001B3u;
    return h;
}

uint64_t attend_hash(const struct attend_case *c)
{
    return hash_bytes(hash_bytes(hash_bytes(0xCBF29CE484222325u, &c->out), &c->lse),
                      &c->max_logits);
}

/* ---------------------------------------------------------------- comparing */

/* Largest sums of absolute products behind any logit and any value of a row: the same loops as the
 * oracle with |x| for x. */
struct magnitude {
    double logit, value;
};

static struct magnitude magnitude_of(const struct attend_case *c, const struct mla_request *r,
                                     int64_t row, int64_t head)
{
    const mla_problem *p = &c->p;
    bool latent = p->form == MLA_FORM_LATENT, expanded = p->form == MLA_FORM_EXPANDED;
    int64_t L = p->kv_lora_rank, dr = p->qk_rope_dim, dn = p->qk_nope_dim, dv = mla_d_v(p);
    int64_t n = mla_run_seq_len(r, &c->t), d_qk = expanded ? dn + dr : L + dr;
    double q[2048], key[2048], w[2048], value[2048];
    struct magnitude m = {0, 0};
    if (latent) {
        double q_nope[2048];
        mla_load_f64(p->q_dtype, mla_element(&c->t.q_nope, p->q_dtype, p->heads_q, dn, row, head),
                     dn, q_nope);
        memset(q, 0, sizeof q);
        for (int64_t d = 0; d < dn; d++) {
            mla_load_f64(p->q_dtype, mla_element(&c->t.w_uk, p->q_dtype, dn, L, head, d), L, w);
            for (int64_t l = 0; l < L; l++)
                q[l] += fabs(q_nope[d] * w[l]);
        }
        if (dr)
            mla_load_f64(p->q_dtype, mla_element(&c->t.q_pe, p->q_dtype, p->heads_q, dr, row, head),
                         dr, q + L);
    } else {
        mla_load_f64(p->q_dtype, mla_element(&c->t.q, p->q_dtype, p->heads_q, d_qk, row, head),
                     d_qk, q);
    }
    for (int64_t j = 0; j < n; j++) {
        double logit = 0;
        if (!mla_visible(p, &c->t, r, row - r->q_start, j, n))
            continue;
        if (expanded) {
            int64_t h = head / (p->heads_q / p->heads_kv), at = r->kv_start + j;
            mla_load_f64(p->kv_dtype, mla_element(&c->t.k, p->kv_dtype, p->heads_kv, d_qk, at, h),
                         d_qk, key);
            mla_load_f64(p->kv_dtype, mla_element(&c->t.v, p->kv_dtype, p->heads_kv, dv, at, h), dv,
                         value);
        } else {
            mla_cache_rows_f64(p, &c->t, r, n, NULL, j, 1, key, d_qk, NULL);
            memcpy(value, key, (size_t)L * sizeof *value);
        }
        for (int64_t d = 0; d < d_qk; d++)
            logit += fabs(q[d] * key[d]);
        m.logit = fmax(m.logit, fabs(p->softmax_scale) * logit);
        if (latent) {
            memset(value, 0, sizeof value);
            for (int64_t l = 0; l < L; l++) {
                mla_load_f64(p->q_dtype, mla_element(&c->t.w_uv, p->q_dtype, L, dv, head, l), dv,
                             w);
                for (int64_t k = 0; k < dv; k++)
                    value[k] += fabs(key[l] * w[k]);
            }
        }
        for (int64_t k = 0; k < dv; k++)
            m.value = fmax(m.value, fabs(value[k]));
    }
    return m;
}

static double unit_of(mla_dtype dtype)
{
    return dtype == MLA_BF16 ? 0x1p-8 : dtype == MLA_F16 ? 0x1p-11 : dtype == MLA_F32 ? 0x1p-24 : 0;
}

static void compare(const struct attend_case *c, const char *what, int64_t row, int64_t head,
                    int64_t i, double got, double want, double bound)
{
    bool right = isnan(want) ? isnan(got) : isinf(want) ? got == want : fabs(got - want) <= bound;
    if (!right)
        fail_msg("%s: %s[%d %d %d]: got %.17g, want %.17g +- %.3g", c->text, what, (int)row,
                 (int)head, (int)i, got, want, bound);
}

/* known, lse, max, magnitudes, out [d_v] of a row: computed once for a case whose inputs stay. */
static const double *oracle_row(struct attend_case *c, const struct mla_request *r, int64_t row,
                                int64_t head)
{
    int64_t size = 5 + mla_d_v(&c->p);
    if (!c->want)
        c->want = own(c, (size_t)(mla_total_q(&c->p) * c->p.heads_q * size) * sizeof *c->want);
    double *x = c->want + (row * c->p.heads_q + head) * size;
    if (c->inputs_stay && x[0] == 1)
        return x;
    assert_int_equal(mla_attend_naive(&c->p, &c->t, r, row, head, x + 5, &x[1], &x[2]), 0);
    struct magnitude m = magnitude_of(c, r, row, head);
    x[0] = 1;
    x[3] = m.logit;
    x[4] = m.value;
    return x;
}

/* With u the roundoff, n keys, D the length of all dot products behind a logit (its own and a
 * projection), A and V the magnitudes above: a logit is off by dl <= (D + 8)·u·A, so a weight by
 * the factor exp(2·dl) at most; the sums over keys and over a projection of the output add
 * (n + D + 16)·u·V. Doubled for the oracle's own rounding (it matters where u = 2^-53). */
void attend_compare(struct attend_case *c, double u)
{
    const mla_problem *p = &c->p;
    bool latent = p->form == MLA_FORM_LATENT;
    int64_t D = p->form == MLA_FORM_EXPANDED
                    ? mla_d_qk(p)
                    : p->kv_lora_rank + p->qk_rope_dim + (latent ? p->qk_nope_dim : 0);
    int64_t d_v = mla_d_v(p);
    double unit = p->lse_base == MLA_LSE_2 ? 1 / M_LN2 : 1;
    for (int64_t b = 0; b < p->batch; b++) {
        struct mla_request r = attend_request(c, b);
        int64_t n = mla_run_seq_len(&r, &c->t);
        for (int64_t row = r.q_start; row < r.q_start + r.query_len; row++)
            for (int64_t head = 0; head < p->heads_q; head++) {
                const double *want = oracle_row(c, &r, row, head);
                const double lse = want[1], max = want[2], *out = want + 5;
                struct magnitude m = {want[3], want[4]};
                double dl = (double)(D + 8) * u * m.logit;
                double bound = 2 * (expm1(2 * dl) + (double)(n + D + 16) * u) * m.value + 0x1p-1000;
                for (int64_t i = 0; i < d_v; i++)
                    compare(c, "out", row, head, i, attend_output_at(&c->out, row, head, i), out[i],
                            bound + unit_of(p->out_dtype) * (fabs(out[i]) + bound) +
                                (p->out_dtype == MLA_F16 ? 0x1p-25 : 0));
                double lse_bound = 2 * (dl + (double)(n + 16) * u) * unit;
                double rounding = (unit_of(c->lse.dtype) + 4 * u);
                if (p->wants_lse)
                    compare(c, "lse", row, head, 0, attend_output_at(&c->lse, row, head, 0), lse,
                            lse_bound + rounding * fabs(lse));
                if (p->wants_max_logits)
                    compare(c, "max_logits", row, head, 0,
                            attend_output_at(&c->max_logits, row, head, 0), max,
                            2 * dl + rounding * fabs(max));
            }
    }
}

/* Both precisions where the kernel has them; threads 1 to 3 with equal bits. */
static void check_kernel(struct attend_case *c, mla_route route, const char *kernel)
{
    bool fp64_only = kernel && strcmp(kernel, "naive_cpu") == 0;
    bool fp32_only = kernel && strstr(kernel, "_avx2");
    for (int precision = fp64_only; precision <= !fp32_only; precision++) {
        uint64_t first = 0;
        for (int threads = 1; threads <= 3; threads++) {
            attend_run(c, route, (mla_precision)precision, kernel, threads, 0, 0);
            if (threads == 1) {
                first = attend_hash(c);
                attend_compare(c, precision ? 0x1p-53 : 0x1p-24);
            } else if (attend_hash(c) != first) {
                fail_msg("%s: route %s: %d threads give other bits", c->text, mla_route_name(route),
                         threads);
            }
        }
    }
}

void attend_check_all(const char *text, uint64_t seed)
{
    struct attend_case c;
    attend_make(&c, text, seed);
    bool *complete = calloc((size_t)c.p.batch + 1, sizeof *complete);
    assert_ok(mla_tensors_check(&c.p, &c.t, complete));
    int routes = 0;
    c.inputs_stay = true;
    for (int route = MLA_ROUTE_AUTO; route < MLA_ROUTES; route++) {
        bool all = true;
        const char *why;
        for (int64_t b = 0; b < c.p.batch; b++)
            all &= complete[b];
        if (route != MLA_ROUTE_AUTO && !mla_route_admissible(&c.p, (mla_route)route, all, &why))
            continue;
        routes++;
        for (int k = -1; k < mla_kernel_count(); k++) {
            mla_kernel_info info = {.name = NULL, .runnable = true};
            if (k >= 0)
                assert_ok(mla_kernel_get(k, &info));
            if (!info.runnable || info.backend != MLA_BACKEND_CPU ||
                (k >= 0 && !strstr(info.routes, mla_route_name((mla_route)route))))
                continue;
            if (k >= 0 && strcmp(info.name, "naive_cpu") == 0 && routes > 2)
                continue; /* the same loops on every route */
            check_kernel(&c, (mla_route)route, info.name);
        }
    }
    assert_true(routes >= 2);
    free(complete);
    attend_free(&c);
}

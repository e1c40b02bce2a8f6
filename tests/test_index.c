/* SPDX-License-Identifier: Apache-2.0 */
// labels: fast
// timeout: 120
/* The indexer and top-k against plain loops and a full sort. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/format.h"
#include "common/kernel.h"
#include "common/status.h"
#include "mla/index.h"

static uint64_t seed = 1;
static uint32_t random_bits(void)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(seed >> 33);
}
static float uniform(void) /* [-1, 1) */
{
    return (float)random_bits() / 1073741824.0f - 1;
}

static struct mla_context cpu(int threads)
{
    return (struct mla_context){.backend = MLA_BACKEND_CPU, .threads = threads};
}

static void *make(size_t bytes) /* 256-byte aligned, never NULL */
{
    void *p = aligned_alloc(256, (bytes + 511) / 256 * 256);
    assert_non_null(p);
    memset(p, 0xA5, bytes);
    return p;
}

/* ------------------------------------------------------------------- top-k */

/* The order that the header promises, over scores by pointer. */
static const double *sort_scores;
static int by_score(const void *pa, const void *pb)
{
    int32_t a = *(const int32_t *)pa, b = *(const int32_t *)pb;
    double x = sort_scores[a], y = sort_scores[b];
    if (isnan(x) != isnan(y))
        return isnan(x) ? 1 : -1;
    if (!isnan(x) && x != y)
        return x > y ? -1 : 1;
    return a < b ? -1 : 1;
}
static int by_index(const void *pa, const void *pb)
{
    int32_t a = *(const int32_t *)pa, b = *(const int32_t *)pb;
    return (a > b) - (a < b);
}

/* Full sort of scores[low, high); list [k] relative to base, -1 at the end; returns its length. */
static int32_t sorted_list(const double *scores, int64_t low, int64_t high, int64_t k,
                           bool ascending, int64_t base, int32_t *list)
{
    int64_t n = high > low ? high - low : 0, len = n < k ? n : k;
    int32_t *all = make((size_t)n * sizeof *all);
    for (int64_t i = 0; i < n; i++)
        all[i] = (int32_t)(low + i);
    sort_scores = scores;
    qsort(all, (size_t)n, sizeof *all, by_score);
    if (ascending)
        qsort(all, (size_t)len, sizeof *all, by_index);
    for (int64_t i = 0; i < k; i++)
        list[i] = i < len ? (int32_t)(all[i] - base) : -1;
    free(all);
    return (int32_t)len;
}

static float pattern(int kind, int64_t i, int64_t n)
{
    static const float odd[] = {NAN, INFINITY, -INFINITY, 0.0f,    -0.0f,
                                1,   -1,       1e-45f,    -1e-45f, 3e38f};
    switch (kind) {
    case 0:
        return uniform();
    case 1:
        return 2.5f; /* all equal */
    case 2:
        return (float)i; /* ascending: every score enters */
    case 3:
        return (float)(n - i);
    case 4:
        return (float)(random_bits() % 3); /* ties at the threshold */
    case 5:
        return odd[random_bits() % 10];
    case 6:
        return i % 2 ? 0.0f : -0.0f;
    case 7:
        return NAN;
    case 8:
        return i < n * 3 / 5 ? NAN : i % 2 ? -INFINITY : uniform(); /* the floor is a NaN */
    default:
        return (float)(i % 1024) - 512; /* saw */
    }
}
enum { PATTERNS = 10 };

static void topk_run(int threads, const mla_topk_args *a)
{
    struct mla_context c = cpu(threads);
    size_t bytes;
    assert_int_equal(mla_topk_workspace_bytes(&c, a, &bytes), MLA_OK);
    if (a->workspace_limit_bytes)
        assert_true(bytes <= a->workspace_limit_bytes);
    void *workspace = make(bytes);
    mla_alloc_fail_at(1); /* any allocation would fail */
    assert_int_equal(mla_topk_run(&c, a, workspace, bytes, NULL), MLA_OK);
    assert_int_equal(mla_alloc_fail_at(0), 0);
    free(workspace);
}

static void check_topk(int kind, int64_t rows, int64_t n, int64_t k, bool ranged, bool ascending,
                       int threads)
{
    int64_t ld = n + 3, ldk = k + 2;
    float *in = make((size_t)(rows * ld + 1) * sizeof *in);
    double *row = make((size_t)(n + 1) * sizeof *row);
    int32_t *start = make((size_t)rows * 4), *end = make((size_t)rows * 4);
    int32_t *list = make((size_t)(rows * ldk) * 4), *lens = make((size_t)rows * 4);
    int32_t *want = make((size_t)k * 4);
    float *scores = make((size_t)(rows * ldk) * 4);
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t i = 0; i < n; i++)
            in[r * ld + i] = pattern(kind, i, n);
        start[r] = (int32_t)(random_bits() % (n + 1)) - (r % 5 == 1 ? 7 : 0);
        end[r] = r % 5 == 2   ? INT32_MAX
                 : r % 5 == 3 ? INT32_MIN
                              : (int32_t)(random_bits() % (n + 9));
    }
    mla_topk_args a = {.rows = rows,
                       .columns = n,
                       .topk = k,
                       .relative = ranged,
                       .order = ascending ? MLA_TOPK_ASCENDING : MLA_TOPK_BY_SCORE,
                       .in = {in, {ld, 0}},
                       .indices = {list, {ldk, 0}},
                       .topk_lens = lens,
                       .scores = {scores, {ldk, 0}},
                       .key_start = ranged ? start : NULL,
                       .key_end = ranged ? end : NULL};
    topk_run(threads, &a);
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t i = 0; i < n; i++)
            row[i] = in[r * ld + i];
        int64_t low = ranged && start[r] > 0 ? start[r] : 0;
        int64_t high = ranged && end[r] < n ? end[r] : n, base = ranged ? low : 0;
        int32_t len = sorted_list(row, low, high, k, ascending, base, want);
        assert_int_equal(lens[r], len);
        assert_memory_equal(list + r * ldk, want, (size_t)k * 4);
        for (int64_t i = 0; i < k; i++) {
            float got = scores[r * ldk + i],
                  in_row = i < len ? in[r * ld + base + want[i]] : -INFINITY;
            assert_true(isnan(in_row) ? isnan(got) : got == in_row && !(got == 0 && signbit(got)));
        }
        assert_int_equal((uint32_t)list[r * ldk + k], 0xA5A5A5A5u); /* gap between rows untouched */
    }
    free(in), free(row), free(start), free(end), free(list), free(lens), free(want), free(scores);
}

static void topk_patterns(void **state)
{
    (void)state;
    for (int kind = 0; kind < PATTERNS; kind++) {
        check_topk(kind, 3, 5000, 1, false, false, 1);
        check_topk(kind, 2, 5000, 300, false, false, 2);
        check_topk(kind, 2, 9001, 2048, false, true, 1);
        check_topk(kind, 2, 6000, 2048, false, false, 1);
        check_topk(kind, 2, 100, 100, false, false, 1);
        check_topk(kind, 2, 100, 131, false, true, 1); /* k > keys */
        check_topk(kind, 7, 700, 33, true, false, 3);
        check_topk(kind, 7, 700, 900, true, true, 2);
    }
    check_topk(0, 3, 0, 5, false, false, 1);  /* no columns */
    check_topk(0, 0, 10, 5, false, false, 1); /* no rows */
    check_topk(0, 1, 1, 1, false, false, 1);
}

static void topk_random_sizes(void **state)
{
    (void)state;
    for (int i = 0; i < 200; i++)
        check_topk((int)(random_bits() % PATTERNS), 1 + random_bits() % 4, 1 + random_bits() % 3000,
                   1 + random_bits() % 700, random_bits() % 2, random_bits() % 2,
                   1 + (int)(random_bits() % 3));
}

/* ----------------------------------------------------------------- indexer */

/* A call with its data: one of each input, whatever the formats. */
struct call {
    mla_index_args a;
    double *q, *k, *k_scale; /* exact values, for the plain loops */
    int32_t cu[8], lens[8], first[8];
    void *logits, *scores;
    int32_t *indices, *topk_lens, *start, *end;
    void *own[8];
};

static void fill(mla_index_format format, int64_t rows, int64_t dim, double *values, void **data,
                 uint8_t **scale)
{
    char *out = *data = make((size_t)(rows * dim * 4) + 1);
    uint8_t *s = *scale = make((size_t)rows * 4 + 1);
    for (int64_t i = 0; i < rows; i++) {
        for (int g = 0; g < 4; g++)
            s[4 * i + g] = (uint8_t)(122 + random_bits() % 8);
        for (int64_t d = 0; d < dim; d++) {
            int64_t e = i * dim + d;
            float x = uniform();
            uint8_t byte = (uint8_t)random_bits();
            if (format == MLA_INDEX_F32) {
                ((float *)out)[e] = x;
                values[e] = x;
            } else if (format == MLA_INDEX_BF16) {
                ((uint16_t *)out)[e] = mla_f32_to_bf16(x);
                values[e] = mla_bf16_to_f32(mla_f32_to_bf16(x));
            } else if (format == MLA_INDEX_FP8) {
                byte = (byte & 0x7F) == 0x7F ? 0 : byte;
                ((uint8_t *)out)[e] = byte;
                values[e] = mla_e4m3_to_f32(byte);
            } else {
                byte &= 15;
                uint8_t *at = (uint8_t *)out + e / 2;
                *at = (uint8_t)(e % 2 ? (*at & 15) | byte << 4 : byte);
                values[e] = ldexp(mla_e2m1_to_f32(byte), s[4 * i + d / 32] - 127);
            }
        }
    }
}

static struct call make_call(int64_t batch, const int32_t *q_lens, const int32_t *kv_lens,
                             int64_t heads, int64_t dim, mla_index_format q_format,
                             mla_index_format k_format)
{
    struct call c = {0};
    int64_t total = 0;
    for (int64_t r = 0; r < batch; r++) {
        c.cu[r + 1] = c.cu[r] + q_lens[r];
        c.lens[r] = kv_lens[r];
        c.first[r] = (int32_t)total;
        total += kv_lens[r];
    }
    int64_t t = c.cu[batch];
    mla_index_args *a = &c.a;
    a->num_queries = t, a->heads = heads, a->dim = dim, a->num_keys = total, a->batch = batch;
    a->q_format = q_format, a->k_format = k_format;
    c.q = make((size_t)(t * heads * dim) * 8), c.k = make((size_t)(total * dim) * 8);
    c.k_scale = make((size_t)total * 8);
    uint8_t *q_scale, *k_scale;
    fill(q_format, t * heads, dim, c.q, &a->q.data, &q_scale);
    fill(k_format, total, dim, c.k, &a->k.data, &k_scale);
    a->q_scale.data = q_scale;
    a->k_scale = k_format == MLA_INDEX_F32 ? NULL : k_scale; /* optional for f32 */
    for (int64_t s = 0; s < total; s++) {
        c.k_scale[s] = 1;
        if (k_format == MLA_INDEX_FP8 || k_format == MLA_INDEX_BF16) {
            float scale = 0.01f + fabsf(uniform());
            ((float *)k_scale)[s] = scale;
            c.k_scale[s] = scale;
        }
    }
    float *w = a->weights.data = make((size_t)(t * heads) * 4);
    for (int64_t i = 0; i < t * heads; i++)
        w[i] = uniform();
    c.own[0] = a->q.data, c.own[1] = a->k.data, c.own[2] = q_scale, c.own[3] = k_scale;
    c.own[4] = w, c.own[5] = c.q, c.own[6] = c.k, c.own[7] = c.k_scale;
    return c;
}

static void want_outputs(struct call *c, int64_t columns, int64_t topk)
{
    size_t t = (size_t)c->a.num_queries;
    c->a.logits_columns = columns, c->a.topk = topk;
    c->a.logits.data = c->logits = make(t * (size_t)columns * 8);
    c->a.indices.data = c->indices = make(t * (size_t)topk * 4);
    c->a.scores.data = c->scores = make(t * (size_t)topk * 8);
    c->a.topk_lens = c->topk_lens = make(t * 4);
}

static void free_call(struct call *c)
{
    for (int i = 0; i < 8; i++)
        free(c->own[i]);
    free(c->logits), free(c->scores), free(c->indices), free(c->topk_lens);
    free(c->start), free(c->end);
}

static size_t run_call(int threads, const mla_index_args *a)
{
    struct mla_context context = cpu(threads);
    size_t bytes;
    if (mla_index_workspace_bytes(&context, a, &bytes))
        fail_msg("%s", mla_last_error());
    if (a->workspace_limit_bytes)
        assert_true(bytes <= a->workspace_limit_bytes);
    char *workspace = make(bytes + 64);
    mla_alloc_fail_at(1);
    if (mla_index_run(&context, a, workspace, bytes, NULL))
        fail_msg("%s", mla_last_error());
    assert_int_equal(mla_alloc_fail_at(0), 0);
    for (int i = 0; i < 64; i++)
        assert_int_equal((uint8_t)workspace[bytes + (size_t)i], 0xA5);
    free(workspace);
    return bytes;
}

/* Plain loops. */
static double plain_score(const struct call *c, int64_t t, int64_t s)
{
    const mla_index_args *a = &c->a;
    double sum = 0;
    for (int64_t h = 0; h < a->heads; h++) {
        double dot = 0;
        for (int64_t d = 0; d < a->dim; d++)
            dot += c->q[(t * a->heads + h) * a->dim + d] * c->k[s * a->dim + d];
        sum += ((const float *)a->weights.data)[t * a->heads + h] * (dot > 0 ? dot : 0);
    }
    return c->k_scale[s] * sum;
}
static float plain_score_f32(const struct call *c, int64_t t, int64_t s, double *bound)
{
    const mla_index_args *a = &c->a;
    volatile float sum = 0, dot, product; /* volatile: every operation rounds */
    *bound = 0;
    for (int64_t h = 0; h < a->heads; h++) {
        double magnitude = 0;
        float w = ((const float *)a->weights.data)[t * a->heads + h];
        dot = 0;
        for (int64_t d = 0; d < a->dim; d++) {
            double x = c->q[(t * a->heads + h) * a->dim + d] * c->k[s * a->dim + d];
            product = (float)x;
            dot = dot + product;
            magnitude += fabs(x);
        }
        product = w * (dot > 0 ? dot : 0);
        sum = sum + product;
        *bound += fabs(w) * magnitude;
    }
    *bound *= fabs(c->k_scale[s]) * (double)(a->dim + a->heads + 4) * 0x1p-24 * 1.01;
    return (float)c->k_scale[s] * sum;
}

/* Logits and lists of both precisions against the plain loops; the lists against a full sort of the
 * computed logits, and, for fp64, of the plain ones too. */
static void check_call(struct call *c, int threads)
{
    mla_index_args *a = &c->a;
    int64_t columns = a->logits_columns;
    double *row = make((size_t)(columns + 1) * 8);
    int32_t *want = make((size_t)(a->topk + 1) * 4);
    bool exact = a->q_format != MLA_INDEX_F32 && a->k_format != MLA_INDEX_F32;
    for (int precision = 0; precision < 2; precision++) {
        a->precision = (mla_precision)precision;
        run_call(threads, a);
        for (int64_t t = 0; t < a->num_queries; t++) {
            int64_t r = 0;
            while (a->cu_seqlens_q && c->cu[r + 1] <= t)
                r++;
            int64_t keys = a->cu_seqlens_q ? c->lens[r] : a->num_keys;
            int64_t n = a->cu_seqlens_q ? c->cu[r + 1] - c->cu[r] : a->num_queries;
            int64_t i = a->cu_seqlens_q ? t - c->cu[r] : t, low = 0, high = keys;
            if (a->causal && high > keys - n + i + 1)
                high = keys - n + i + 1;
            if (a->key_start && a->key_start[t] > low)
                low = a->key_start[t];
            if (a->key_end && a->key_end[t] < high)
                high = a->key_end[t];
            int64_t base = a->relative ? low : 0;
            for (int64_t j = 0; j < columns; j++) {
                double got = precision ? ((double *)c->logits)[t * columns + j]
                                       : ((float *)c->logits)[t * columns + j];
                row[j] = got;
                if (j + base < low || j + base >= high) {
                    assert_true(got == -INFINITY);
                    continue;
                }
                double bound, plain = plain_score(c, t, c->first[r] + j + base);
                float single = plain_score_f32(c, t, c->first[r] + j + base, &bound);
                if (precision)
                    assert_true(fabs(got - plain) <= bound * 0x1p-28);
                else if (exact)
                    assert_true((float)got == single);
                assert_true(fabs(got - plain) <= bound);
            }
            int32_t len = sorted_list(row, low - base, high - base, a->topk,
                                      a->order == MLA_TOPK_ASCENDING, 0, want);
            assert_int_equal(c->topk_lens[t], len);
            assert_memory_equal(c->indices + t * a->topk, want, (size_t)a->topk * 4);
            for (int64_t e = 0; e < a->topk; e++) {
                double got = precision ? ((double *)c->scores)[t * a->topk + e]
                                       : ((float *)c->scores)[t * a->topk + e];
                assert_true(got == (e < len ? row[want[e]] : -INFINITY));
            }
        }
    }
    free(row), free(want);
}

static void index_formats(void **state)
{
    (void)state;
    static const int32_t q_lens[] = {5, 1, 0, 3}, kv_lens[] = {70, 33, 9, 0};
    for (int q = 0; q < 4; q++) {
        for (int k = 0; k < 4; k++) {
            struct call c =
                make_call(4, q_lens, kv_lens, 6, 64, (mla_index_format)q, (mla_index_format)k);
            c.a.cu_seqlens_q = c.cu, c.a.seq_lens_kv = c.lens;
            c.a.causal = q != 1;
            c.a.order = k % 2 ? MLA_TOPK_ASCENDING : MLA_TOPK_BY_SCORE;
            want_outputs(&c, 71, 17);
            check_call(&c, 2);
            free_call(&c);
        }
    }
}

static void index_dims(void **state)
{
    (void)state;
    static const int64_t heads[] = {1, 3, 4, 64, 9}, dims[] = {1, 7, 32, 128, 100};
    static const int32_t q_lens[] = {2}, kv_lens[] = {301};
    for (int i = 0; i < 5; i++) {
        struct call c =
            make_call(1, q_lens, kv_lens, heads[i], dims[i], MLA_INDEX_FP8, MLA_INDEX_FP8);
        want_outputs(&c, 301, i == 0 ? 1 : 400); /* k > keys */
        check_call(&c, 3);
        free_call(&c);
    }
}

static void index_ranges(void **state)
{
    (void)state;
    static const int32_t q_lens[] = {11}, kv_lens[] = {260};
    for (int relative = 0; relative < 2; relative++) {
        struct call c = make_call(1, q_lens, kv_lens, 8, 32, MLA_INDEX_BF16, MLA_INDEX_FP8);
        c.a.key_start = c.start = make(11 * 4), c.a.key_end = c.end = make(11 * 4);
        for (int t = 0; t < 11; t++) {
            c.start[t] = (int32_t)(random_bits() % 260);
            c.end[t] = c.start[t] + (int32_t)(random_bits() % 200);
        }
        c.start[0] = -5, c.end[0] = INT32_MAX;        /* everything */
        c.start[1] = 77, c.end[1] = 77;               /* empty */
        c.start[2] = INT32_MAX, c.end[2] = INT32_MIN; /* emptier */
        c.start[3] = 259, c.end[3] = 260;             /* the last key */
        c.a.relative = relative;
        c.a.causal = !relative;
        want_outputs(&c, 260, 40);
        check_call(&c, 2);
        free_call(&c);
    }
}

/* Same bits for any limit and thread count; also without logits, where nothing else remembers. */
static void index_blocking(void **state)
{
    (void)state;
    static const int32_t shapes[][4] = {{19, 2, 900, 1300}, {1, 1, 1700, 40}, {1, 0, 2500, 0}};
    for (int shape = 0; shape < 3; shape++) {
        for (int precision = 0; precision < 2; precision++) {
            struct call c =
                make_call(2, shapes[shape], shapes[shape] + 2, 5, 32, MLA_INDEX_FP8, MLA_INDEX_FP8);
            size_t t = (size_t)c.a.num_queries, k = 100, columns = 2500;
            c.a.cu_seqlens_q = c.cu, c.a.seq_lens_kv = c.lens, c.a.causal = true;
            c.a.precision = (mla_precision)precision;
            want_outputs(&c, (int64_t)columns, (int64_t)k);
            size_t full = run_call(1, &c.a), real = precision ? 8 : 4;
            void *logits = make(t * columns * 8), *scores = make(t * k * 8);
            int32_t *indices = make(t * k * 4);
            memcpy(logits, c.logits, t * columns * real);
            memcpy(scores, c.scores, t * k * real);
            memcpy(indices, c.indices, t * k * 4);
            struct mla_context one = cpu(1);
            size_t least = full, bytes;
            for (c.a.workspace_limit_bytes = full;
                 mla_index_workspace_bytes(&one, &c.a, &bytes) == MLA_OK;
                 c.a.workspace_limit_bytes = bytes - 1)
                least = bytes;
            assert_true(least < full);
            for (int threads = 1; threads <= 4; threads++) {
                for (size_t limit = least; limit < 40 * full; limit += limit / 3) {
                    memset(c.logits, 0x5A, t * columns * real);
                    memset(c.scores, 0x5A, t * k * real);
                    memset(c.indices, 0x5A, t * k * 4);
                    c.a.workspace_limit_bytes = limit < 30 * full ? limit : 0;
                    c.a.logits_columns = threads == 2 ? 0 : (int64_t)columns;
                    run_call(threads, &c.a);
                    if (threads != 2)
                        assert_memory_equal(c.logits, logits, t * columns * real);
                    assert_memory_equal(c.scores, scores, t * k * real);
                    assert_memory_equal(c.indices, indices, t * k * 4);
                }
            }
            free(logits), free(scores), free(indices);
            free_call(&c);
        }
    }
}

/* Paged caches hold the flat keys on shuffled pages; holes hide theirs. */
static void index_paged(void **state)
{
    (void)state;
    static const int32_t q_lens[] = {3, 2}, kv_lens[] = {150, 61};
    static const int64_t page_sizes[] = {64, 1, 7};
    for (int i = 0; i < 6; i++) {
        mla_index_format format = i % 2 ? MLA_INDEX_FP4 : MLA_INDEX_FP8;
        int64_t ps = page_sizes[i / 2], columns = 150, max_pages = 151 / ps + 2,
                pages = 2 * max_pages;
        struct call c = make_call(2, q_lens, kv_lens, 4, 64, MLA_INDEX_FP8, format);
        c.a.cu_seqlens_q = c.cu, c.a.seq_lens_kv = c.lens, c.a.causal = true;
        want_outputs(&c, columns, 50);
        run_call(2, &c.a);
        float *logits = make(5 * 150 * 4);
        int32_t *indices = make(5 * 50 * 4), *table = make((size_t)(2 * max_pages) * 4);
        memcpy(logits, c.logits, 5 * 150 * 4), memcpy(indices, c.indices, 5 * 50 * 4);
        int64_t page_bytes = ps * (int64_t)mla_index_row_bytes(format, 64) + 12;
        char *cache = make((size_t)(pages * page_bytes));
        int64_t slots[211];
        for (int64_t p = 0; p < 2 * max_pages;
             p++) /* odd stride over an odd-free count: a shuffle */
            table[p] = (int32_t)((p * (pages - 1) + 3) % pages);
        for (int64_t r = 0; r < 2; r++) {
            for (int64_t j = 0; j < kv_lens[r]; j++)
                slots[c.first[r] + j] = table[r * max_pages + j / ps] * ps + j % ps;
        }
        assert_int_equal(mla_index_append(format, 64, ps, pages, page_bytes, slots, 211, c.a.k.data,
                                          c.a.k_scale, cache),
                         MLA_OK);
        mla_index_args a = c.a;
        a.k = (mla_tensor){0}, a.k_scale = NULL, a.num_keys = 0;
        a.page_size = ps, a.num_pages = pages, a.max_pages = max_pages;
        a.k_cache = (mla_tensor){cache, {page_bytes, 0}};
        a.page_table.data = table;
        memset(c.logits, 0, 5 * 150 * 4), memset(c.indices, 0, 5 * 50 * 4);
        run_call(3, &a);
        assert_memory_equal(c.logits, logits, 5 * 150 * 4);
        assert_memory_equal(c.indices, indices, 5 * 50 * 4);
        /* A hole: the second page of the first request. */
        table[1] = i % 3 ? -1 : (int32_t)pages;
        run_call(2, &a);
        int64_t hidden = ps < 150 - ps ? ps : 150 - ps;
        for (int t = 0; t < 3; t++) {
            double row[150];
            int32_t want[50];
            int64_t n = 0, end = 150 - 3 + t + 1, where[150];
            for (int64_t j = 0; j < end; j++) {
                float got = ((float *)c.logits)[t * 150 + j];
                if (j / ps == 1) {
                    assert_true(got == -INFINITY);
                } else {
                    assert_true(got == logits[t * 150 + j]);
                    where[n] = j, row[n++] = got;
                }
            }
            assert_int_equal(n, end - (hidden < end - ps ? hidden : end - ps));
            int32_t len = sorted_list(row, 0, n, 50, false, 0, want);
            assert_int_equal(c.topk_lens[t], len);
            for (int e = 0; e < len; e++)
                assert_int_equal(c.indices[t * 50 + e], where[want[e]]);
        }
        free(logits), free(indices), free(table), free(cache);
        free_call(&c);
    }
}

/* fp8 with its scales = the dequantised numbers as float, in fp64 up to its rounding. */
static void index_dequantised(void **state)
{
    (void)state;
    static const int32_t q_lens[] = {4}, kv_lens[] = {90};
    struct call c = make_call(1, q_lens, kv_lens, 8, 64, MLA_INDEX_FP8, MLA_INDEX_FP8);
    c.a.precision = MLA_PRECISION_FP64;
    for (int s = 0; s < 90; s++) /* powers of two: dequantised values are exact */
        ((float *)(uintptr_t)c.a.k_scale)[s] = ldexpf(1, -(int)(random_bits() % 9));
    want_outputs(&c, 90, 20);
    run_call(1, &c.a);
    float *q = make(4 * 8 * 64 * 4), *k = make(90 * 64 * 4);
    double *logits = make(4 * 90 * 8);
    memcpy(logits, c.logits, 4 * 90 * 8);
    for (int i = 0; i < 4 * 8 * 64; i++)
        q[i] = mla_e4m3_to_f32(((uint8_t *)c.a.q.data)[i]);
    for (int i = 0; i < 90 * 64; i++)
        k[i] = mla_e4m3_to_f32(((uint8_t *)c.a.k.data)[i]) * ((const float *)c.a.k_scale)[i / 64];
    mla_index_args a = c.a;
    a.q_format = a.k_format = MLA_INDEX_F32;
    a.q.data = q, a.k.data = k, a.k_scale = NULL;
    run_call(2, &a);
    /* Scaling by a power of two commutes with every rounding. */
    assert_memory_equal(c.logits, logits, 4 * 90 * 8);
    free(q), free(k), free(logits);
    free_call(&c);
}

/* NaN keys rank last but are listed; NaN survives ReLU. */
static void index_nan(void **state)
{
    (void)state;
    static const int32_t q_lens[] = {2}, kv_lens[] = {50};
    struct call c = make_call(1, q_lens, kv_lens, 4, 32, MLA_INDEX_FP8, MLA_INDEX_FP8);
    ((uint8_t *)c.a.k.data)[7 * 32 + 5] = 0x7F;
    ((uint8_t *)c.a.k.data)[20 * 32] = 0xFF;
    ((float *)(uintptr_t)c.a.k_scale)[30] = NAN;
    want_outputs(&c, 50, 60);
    run_call(2, &c.a);
    for (int t = 0; t < 2; t++) {
        assert_int_equal(c.topk_lens[t], 50);
        assert_int_equal(c.indices[t * 60 + 47], 7);
        assert_int_equal(c.indices[t * 60 + 48], 20);
        assert_int_equal(c.indices[t * 60 + 49], 30);
        assert_true(isnan(((float *)c.scores)[t * 60 + 49]));
        assert_int_equal(c.indices[t * 60 + 50], -1);
    }
    free_call(&c);
}

/* Strides of every tensor, poisoned gaps. */
static void index_strides(void **state)
{
    (void)state;
    static const int32_t q_lens[] = {3}, kv_lens[] = {40};
    struct call c = make_call(1, q_lens, kv_lens, 5, 32, MLA_INDEX_FP4, MLA_INDEX_BF16);
    want_outputs(&c, 40, 10);
    run_call(1, &c.a);
    mla_index_args a = c.a;
    uint8_t *q = make(3 * 200), *q_scale = make(3 * 64);
    float *w = make(3 * 9 * 4), *logits = make(3 * 44 * 4), *scores = make(3 * 13 * 4);
    uint16_t *k = make(40 * 37 * 2);
    int32_t *indices = make(3 * 12 * 4);
    for (int i = 0; i < 3 * 9; i++)
        w[i] = NAN; /* weights past the last head must not be read */
    for (int t = 0; t < 3; t++) {
        for (int h = 0; h < 5; h++) {
            memcpy(q + t * 200 + h * 20, (char *)c.a.q.data + (t * 5 + h) * 16, 16);
            memcpy(q_scale + t * 64 + h * 6, (char *)c.a.q_scale.data + (t * 5 + h) * 4, 4);
        }
        memcpy(w + t * 9, (float *)c.a.weights.data + t * 5, 20);
    }
    for (int s = 0; s < 40; s++)
        memcpy(k + s * 37, (uint16_t *)c.a.k.data + s * 32, 64);
    a.q = (mla_tensor){q, {200, 20}}, a.q_scale = (mla_tensor){q_scale, {64, 6}};
    a.weights = (mla_tensor){w, {9, 0}}, a.k = (mla_tensor){k, {37, 0}};
    a.logits = (mla_tensor){logits, {44, 0}}, a.scores = (mla_tensor){scores, {13, 0}};
    a.indices = (mla_tensor){indices, {12, 0}};
    run_call(2, &a);
    for (int t = 0; t < 3; t++) {
        assert_memory_equal(logits + t * 44, (float *)c.logits + t * 40, 160);
        assert_memory_equal(scores + t * 13, (float *)c.scores + t * 10, 40);
        assert_memory_equal(indices + t * 12, c.indices + t * 10, 40);
    }
    free(q), free(q_scale), free(w), free(logits), free(scores), free(k), free(indices);
    free_call(&c);
}

/* --------------------------------------------------------------- bad input */

static void refuse(mla_status status, mla_status want, const char *function, const char *field)
{
    char head[128];
    snprintf(head, sizeof head, "%s: %s: got ", function, field);
    if (status != want || strncmp(mla_last_error(), head, strlen(head)))
        fail_msg("status %s, sentence '%s', want '%s'", mla_status_name(status), mla_last_error(),
                 head);
    assert_non_null(strstr(mla_last_error(), ", want "));
}

static void index_bad(void **state)
{
    (void)state;
    static const int32_t q_lens[] = {3, 1}, kv_lens[] = {40, 10};
    static const int32_t down[] = {0, 4, 3}, late[] = {1, 3, 4}, minus[] = {40, -1};
    struct mla_context context = cpu(2), other = {.backend = (mla_backend)99, .threads = 1};
    struct call c = make_call(2, q_lens, kv_lens, 5, 32, MLA_INDEX_FP8, MLA_INDEX_FP8);
    c.a.cu_seqlens_q = c.cu, c.a.seq_lens_kv = c.lens;
    want_outputs(&c, 40, 10);
    size_t bytes;
    assert_int_equal(mla_index_workspace_bytes(&context, &c.a, &bytes), MLA_OK);
    char *workspace = make(bytes);
#define RUN(field, change)                                                                         \
    do {                                                                                           \
        mla_index_args a = c.a;                                                                    \
        change;                                                                                    \
        refuse(mla_index_run(&context, &a, workspace, bytes, NULL), MLA_ERR_ARGUMENT,              \
               "mla_index_run", field);                                                            \
    } while (0)
#define SHAPE(field, change)                                                                       \
    do {                                                                                           \
        mla_index_args a = c.a;                                                                    \
        size_t got = 1;                                                                            \
        change;                                                                                    \
        refuse(mla_index_workspace_bytes(&context, &a, &got), MLA_ERR_ARGUMENT,                    \
               "mla_index_workspace_bytes", field);                                                \
        assert_int_equal(got, 0);                                                                  \
        RUN(field, change);                                                                        \
    } while (0)
    SHAPE("num_queries", a.num_queries = -1);
    SHAPE("heads", a.heads = 0);
    SHAPE("heads", a.heads = 4097);
    SHAPE("dim", a.dim = 0);
    SHAPE("dim", (a.dim = 48, a.k_format = MLA_INDEX_FP4));
    SHAPE("dim", (a.dim = 160, a.q_format = MLA_INDEX_FP4));
    SHAPE("num_keys", a.num_keys = -1);
    SHAPE("num_keys", a.num_keys = 49);
    SHAPE("num_keys", (a.num_keys = INT64_C(1) << 31, a.cu_seqlens_q = NULL, a.batch = 0));
    SHAPE("batch", a.batch = -1);
    SHAPE("batch", a.cu_seqlens_q = NULL);
    SHAPE("q_format", a.q_format = (mla_index_format)4);
    SHAPE("k_format", a.k_format = (mla_index_format)9);
    SHAPE("k_format", (a.k_format = MLA_INDEX_BF16, a.page_size = 64));
    SHAPE("page_size", a.page_size = -1);
    SHAPE("num_pages", a.num_pages = -1);
    SHAPE("max_pages", a.max_pages = -1);
    SHAPE("max_pages", (a.page_size = 8, a.max_pages = 4));
    SHAPE("topk", a.topk = -1);
    SHAPE("order", a.order = (mla_topk_order)2);
    SHAPE("relative", a.relative = true);
    SHAPE("logits_columns", a.logits_columns = 39);
    SHAPE("logits_columns", a.logits_columns = -1);
    SHAPE("logits_columns", (a.logits_columns = 0, a.topk = 0));
    SHAPE("precision", a.precision = (mla_precision)2);
    SHAPE("workspace_limit_bytes", a.workspace_limit_bytes = 2000);
    SHAPE("seq_lens_kv", a.seq_lens_kv = NULL);
    SHAPE("seq_lens_kv[1]", a.seq_lens_kv = minus);
    SHAPE("cu_seqlens_q[2]", a.cu_seqlens_q = down);
    SHAPE("cu_seqlens_q[0]", a.cu_seqlens_q = late);
    SHAPE("cu_seqlens_q[2]", a.num_queries = 5);
    RUN("q", a.q.data = NULL);
    RUN("q_scale", (a.q_format = MLA_INDEX_FP4, a.q_scale.data = NULL));
    RUN("weights", a.weights.data = NULL);
    RUN("weights", a.weights.data = (char *)a.weights.data + 2);
    RUN("k", a.k.data = NULL);
    RUN("k_scale", a.k_scale = NULL);
    RUN("k_cache", (a.page_size = 8, a.max_pages = 8, a.num_pages = 9));
    RUN("page_table", (a.page_size = 8, a.max_pages = 8));
    RUN("logits", a.logits.data = NULL);
    RUN("indices", a.indices.data = NULL);
    RUN("q.stride[0]", a.q.stride[0] = 31);
    RUN("q.stride[1]", a.q.stride[1] = -32);
    RUN("weights.stride[0]", a.weights.stride[0] = 4);
    RUN("k.stride[0]", a.k.stride[0] = INT64_MAX / 8);
    RUN("logits.stride[0]", a.logits.stride[0] = 39);
    RUN("indices.stride[0]", a.indices.stride[0] = 9);
    RUN("scores.stride[0]", a.scores.stride[0] = 9);
    const char *run = "mla_index_run";
    refuse(mla_index_run(NULL, &c.a, workspace, bytes, NULL), MLA_ERR_ARGUMENT, run, "context");
    refuse(mla_index_run(&context, NULL, workspace, bytes, NULL), MLA_ERR_ARGUMENT, run, "args");
    refuse(mla_index_run(&other, &c.a, workspace, bytes, NULL), MLA_ERR_UNSUPPORTED, run,
           "context");
    refuse(mla_index_run(&context, &c.a, workspace, bytes - 1, NULL), MLA_ERR_ARGUMENT, run,
           "workspace_bytes");
    refuse(mla_index_run(&context, &c.a, NULL, bytes, NULL), MLA_ERR_ARGUMENT, run, "workspace");
    refuse(mla_index_run(&context, &c.a, workspace + 8, bytes, NULL), MLA_ERR_ARGUMENT, run,
           "workspace");
    refuse(mla_index_run(&context, &c.a, workspace, bytes, workspace), MLA_ERR_ARGUMENT, run,
           "stream");
    refuse(mla_index_workspace_bytes(&context, &c.a, NULL), MLA_ERR_ARGUMENT,
           "mla_index_workspace_bytes", "bytes");
    for (int i = 0; i < 4 * 10; i++) /* after all that, nothing is written */
        assert_int_equal((uint32_t)c.indices[i], 0xA5A5A5A5u);
    /* The smallest limit that the sentence names works. */
    mla_index_args a = c.a;
    a.workspace_limit_bytes = 1;
    assert_int_equal(mla_index_workspace_bytes(&context, &a, &bytes), MLA_ERR_ARGUMENT);
    a.workspace_limit_bytes = (size_t)atoll(strstr(mla_last_error(), "least ") + 6);
    assert_int_equal(mla_index_workspace_bytes(&context, &a, &bytes), MLA_OK);
    assert_int_equal(bytes, a.workspace_limit_bytes);
    a.workspace_limit_bytes--;
    assert_int_equal(mla_index_workspace_bytes(&context, &a, &bytes), MLA_ERR_ARGUMENT);
    free(workspace);
    free_call(&c);
}
#undef RUN

static void topk_bad(void **state)
{
    (void)state;
    struct mla_context context = cpu(1), other = {.backend = (mla_backend)99, .threads = 1};
    float in[20] = {0};
    int32_t indices[8] = {-7, -7, -7, -7, -7, -7, -7, -7};
    mla_topk_args good = {
        .rows = 2, .columns = 10, .topk = 4, .in = {in, {0, 0}}, .indices = {indices, {0, 0}}};
    size_t bytes;
    assert_int_equal(mla_topk_workspace_bytes(&context, &good, &bytes), MLA_OK);
    char *workspace = make(bytes);
#define RUN(field, change)                                                                         \
    do {                                                                                           \
        mla_topk_args a = good;                                                                    \
        change;                                                                                    \
        refuse(mla_topk_run(&context, &a, workspace, bytes, NULL), MLA_ERR_ARGUMENT,               \
               "mla_topk_run", field);                                                             \
    } while (0)
    RUN("rows", a.rows = -1);
    RUN("columns", a.columns = INT64_C(1) << 31);
    RUN("topk", a.topk = 0);
    RUN("order", a.order = (mla_topk_order)-1);
    RUN("relative", a.relative = true);
    RUN("workspace_limit_bytes", a.workspace_limit_bytes = 100);
    RUN("in", a.in.data = NULL);
    RUN("in", a.in.data = (char *)in + 1);
    RUN("in.stride[0]", a.in.stride[0] = 9);
    RUN("indices", a.indices.data = NULL);
    RUN("indices.stride[0]", a.indices.stride[0] = 3);
#undef RUN
    const char *run = "mla_topk_run";
    refuse(mla_topk_run(NULL, &good, workspace, bytes, NULL), MLA_ERR_ARGUMENT, run, "context");
    refuse(mla_topk_run(&other, &good, workspace, bytes, NULL), MLA_ERR_UNSUPPORTED, run,
           "context");
    refuse(mla_topk_run(&context, NULL, workspace, bytes, NULL), MLA_ERR_ARGUMENT, run, "args");
    refuse(mla_topk_run(&context, &good, workspace, bytes - 1, NULL), MLA_ERR_ARGUMENT, run,
           "workspace_bytes");
    refuse(mla_topk_run(&context, &good, workspace, bytes, in), MLA_ERR_ARGUMENT, run, "stream");
    refuse(mla_topk_workspace_bytes(&context, &good, NULL), MLA_ERR_ARGUMENT,
           "mla_topk_workspace_bytes", "bytes");
    assert_int_equal(indices[0], -7);
    free(workspace);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(topk_patterns), cmocka_unit_test(topk_random_sizes),
        cmocka_unit_test(index_formats), cmocka_unit_test(index_dims),
        cmocka_unit_test(index_ranges),  cmocka_unit_test(index_blocking),
        cmocka_unit_test(index_paged),   cmocka_unit_test(index_dequantised),
        cmocka_unit_test(index_nan),     cmocka_unit_test(index_strides),
        cmocka_unit_test(index_bad),     cmocka_unit_test(topk_bad),
    };
    return cmocka_run_group_tests_name("index", tests, NULL, NULL);
}

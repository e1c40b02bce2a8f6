/* SPDX-License-Identifier: Apache-2.0 */
/* The rules of meaning that hold for every backend and route (docs/numerics.md), one test each, on
 * every route, form and precision that admits the case. */
// timeout: 240
#include "support.h"

#include "support_run.h"

#include "common/kernel.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Small, with a mixed batch: a prefill, an extend, two decodes; odd lengths. */
#define BATCH "batch=q9,q5s21,2q1s18"
#define LATENT "attend form=latent " BATCH " heads=3 rank=32 nope=16 rope=8 v=12 "
#define ABSORBED "attend form=absorbed " BATCH " heads=3 rank=32 rope=8 "
#define EXPANDED "attend form=expanded " BATCH " heads=6 heads_kv=2 nope=16 rope=8 v=12 "

static const char *const forms[] = {LATENT, ABSORBED, EXPANDED};

typedef void check_fn(struct mla_case *c, const struct run_options *options);

/* Runs check over forms × visibility words × admissible routes × precisions. */
static void each(const char *words, check_fn *check)
{
    int runs = 0;
    for (size_t f = 0; f < sizeof forms / sizeof *forms; f++) {
        for (int route = MLA_ROUTE_DENSE_MHA; route <= MLA_ROUTE_DENSE_MQA; route++) {
            for (int precision = 0; precision <= MLA_PRECISION_FP64; precision++) {
                struct mla_case c = run_make("%s%s", forms[f], words);
                struct run_options o = {.route = (mla_route)route,
                                        .precision = (mla_precision)precision,
                                        .threads = 2};
                if (run_routes(&c) & MLA_BIT(route)) {
                    check(&c, &o);
                    runs++;
                }
                mla_case_free(&c);
            }
        }
    }
    assert_true(runs >= 4);
}

static int32_t *list(const struct mla_case *c, int64_t row)
{
    const mla_tensor *t = &c->tensors.topk_indices;
    return (int32_t *)t->data + row * mla_stride0(t, c->problem.topk);
}

/* Request of a query row, and its first key in flat tensors. */
static int64_t request_of(const mla_problem *p, int64_t row, int64_t *kv_start)
{
    int64_t b = 0;
    *kv_start = 0;
    while (row >= p->cu_seqlens_q[b + 1])
        *kv_start += p->seq_lens_kv[b++];
    return b;
}

/* ----------------------------------------------------- 1: what is visible */

static void check_visible(struct mla_case *c, const struct run_options *o)
{
    /* Against the oracle, whose one function mla_visible is the definition. */
    struct run_options naive = *o;
    naive.kernel = "naive_cpu";
    naive.precision = MLA_PRECISION_FP64;
    struct run a = run_case(c, o), b = run_case(c, &naive);
    assert_close_run(&a, &b, o->precision == MLA_PRECISION_FP64 ? 1e-12 : 2e-5);
    run_free(&a), run_free(&b);
}

static void test_visible_dense(void **state)
{
    (void)state;
    each("dtype=f32", check_visible);
    each("causal=0 dtype=f16", check_visible);
}
static void test_visible_lists(void **state)
{
    (void)state;
    each("topk=7 dtype=bf16", check_visible);
    each("topk=7 topk_lens=1 sink=1 causal=0", check_visible);
    each("topk=32", check_visible); /* every row lists all it may see: dense routes too */
}
static void test_visible_mask(void **state)
{
    (void)state;
    each("mask=1", check_visible);
    each("mask=1 sink=1 base=2 causal=0", check_visible);
}

/* -------------------------------------------------- 2: entries to be ignored */

static void check_ignored(struct mla_case *c, const struct run_options *o)
{
    static const int32_t junk[] = {-1, INT32_MIN, -123456, INT32_MAX, 2147480000};
    const mla_problem *p = &c->problem;
    int64_t rows = mla_total_q(p);
    /* Drop some entries (-1), then put other ignored values in their place: same bits. */
    for (int64_t t = 0; t < rows; t++)
        for (int64_t e = t % 3; e < p->topk; e += 3)
            list(c, t)[e] = -1;
    struct run a = run_case(c, o);
    for (int64_t t = 0; t < rows; t++) {
        int64_t kv_start, b = request_of(p, t, &kv_start);
        int64_t n = p->seq_lens_kv[b];
        for (int64_t e = t % 3; e < p->topk; e += 3) {
            int64_t future = n - (p->cu_seqlens_q[b + 1] - t) + 1;
            const int32_t values[] = {junk[(t + e) % 5], (int32_t)n, (int32_t)future};
            list(c, t)[e] = values[e % 3];
        }
    }
    struct run b = run_case(c, o);
    assert_same_run(&a, &b);
    run_free(&a), run_free(&b);
}

static void test_ignored_entries(void **state)
{
    (void)state;
    each("topk=7", check_ignored);
    each("topk=12 sink=1", check_ignored);
}

static void check_past_lens(struct mla_case *c, const struct run_options *o)
{
    struct run a = run_case(c, o);
    for (int64_t t = 0; t < mla_total_q(&c->problem); t++)
        for (int64_t e = c->tensors.topk_lens[t]; e < c->problem.topk; e++)
            list(c, t)[e] = e % 2 ? 0 : INT32_MAX; /* a visible key, or junk */
    struct run b = run_case(c, o);
    assert_same_run(&a, &b);
    run_free(&a), run_free(&b);
}

static void test_past_topk_lens(void **state)
{
    (void)state;
    each("topk=7 topk_lens=1", check_past_lens);
}

/* ------------------------------------------------------- 3: duplicate keys */

static void test_duplicates_are_refused(void **state)
{
    (void)state;
    struct mla_case c = run_make(LATENT "topk=7");
    list(&c, 13)[3] = list(&c, 13)[5] = 4;
    assert_refused(mla_tensors_check(&c.problem, &c.tensors, NULL), MLA_ERR_ARGUMENT,
                   "topk_indices[13][");
    mla_case_free(&c);
}

/* ------------------------------------------------- 4: rows without any key */

/* Makes row `row` see nothing, by whatever the problem uses. */
static void blind(struct mla_case *c, int64_t row)
{
    if (c->problem.topk)
        for (int64_t e = 0; e < c->problem.topk; e++)
            list(c, row)[e] = -1;
    else
        memset((int32_t *)c->tensors.mask.data + row * mla_stride0(&c->tensors.mask, 1), 0, 4);
}

static void check_blind_rows(struct mla_case *c, const struct run_options *o)
{
    const mla_problem *p = &c->problem;
    struct run before = run_case(c, o);
    int64_t heads = p->heads_q;
    float *sink = (float *)(uintptr_t)c->tensors.attn_sink;
    blind(c, 0), blind(c, 11);
    if (sink)
        sink[0] = INFINITY, sink[1] = -INFINITY, sink[2] = 1.5f;
    struct run r = run_case(c, o);
    double base = p->lse_base == MLA_LSE_2 ? log(2) : 1;
    for (int64_t t = 0; t < r.rows; t++) {
        for (int64_t h = 0; h < heads; h++) {
            double lse = r.lse[t * heads + h];
            bool is_blind = t == 0 || t == 11 || before.max_logits[t * heads + h] == -INFINITY;
            bool full_sink = sink && h == 0;
            double want = full_sink        ? INFINITY
                          : !is_blind      ? lse
                          : sink && h == 2 ? 1.5 / base
                                           : -INFINITY;
            if (sink && h > 2 && is_blind)
                want = sink[h] / base;
            assert_false(isnan(lse));
            assert_true(isinf(want) ? lse == want : fabs(lse - want) < 1e-6);
            assert_true((r.max_logits[t * heads + h] == -INFINITY) == is_blind);
            for (int64_t d = 0; d < r.dim; d++) {
                double x = r.out[(t * heads + h) * r.dim + d];
                assert_false(isnan(x));
                if (is_blind || full_sink)
                    assert_true(x == 0);
            }
            /* Rows that see keys did not notice (where sinks did not change). */
            if (!is_blind && !sink)
                assert_memory_equal(&r.out[(t * heads + h) * r.dim],
                                    &before.out[(t * heads + h) * r.dim],
                                    (size_t)r.dim * sizeof(double));
        }
    }
    run_free(&before), run_free(&r);
}

static void test_rows_without_keys(void **state)
{
    (void)state;
    each("topk=7", check_blind_rows);
    each("topk=7 sink=1", check_blind_rows);
    each("topk=7 sink=1 base=2", check_blind_rows);
    each("mask=1 sink=1", check_blind_rows);
    each("mask=1 base=2", check_blind_rows);
}

static void check_no_sink_effect(struct mla_case *c, const struct run_options *o)
{
    /* sink = -inf is the same as none. */
    float *sink = (float *)(uintptr_t)c->tensors.attn_sink;
    for (int64_t h = 0; h < c->problem.heads_q; h++)
        sink[h] = -INFINITY;
    struct run a = run_case(c, o);
    c->problem.has_sink = false;
    c->tensors.attn_sink = NULL;
    struct run b = run_case(c, o);
    assert_same_run(&a, &b);
    run_free(&a), run_free(&b);
}

static void test_sink_minus_infinity(void **state)
{
    (void)state;
    each("sink=1", check_no_sink_effect);
    each("sink=1 topk=7", check_no_sink_effect);
}

/* ------------------------------------------- 5: what is not seen has no effect */

/* Latent, rope and V values of key j of the flat tensors become x. */
static void poison_key(struct mla_case *c, int64_t key, float x)
{
    const mla_problem *p = &c->problem;
    struct {
        mla_tensor *t;
        int64_t width;
    } parts[] = {{&c->tensors.kv_c, p->kv_lora_rank},
                 {&c->tensors.k_pe, p->qk_rope_dim},
                 {&c->tensors.k, p->heads_kv * mla_d_qk(p)},
                 {&c->tensors.v, p->heads_kv * p->v_dim}};
    for (size_t i = 0; i < 4; i++)
        for (int64_t d = 0; parts[i].t->data && d < parts[i].width; d++)
            ((float *)parts[i].t->data)[key * parts[i].width + d] = x;
}

static void check_unseen(struct mla_case *c, const struct run_options *o)
{
    const mla_problem *p = &c->problem;
    struct run a = run_case(c, o);
    /* The last key of request 0 is seen by its last row alone; key 2 of request 1 by no row once it
     * is taken off every list. */
    poison_key(c, 8, NAN);
    struct run b = run_case(c, o);
    int64_t heads = p->heads_q;
    for (int64_t t = 0; t < a.rows; t++)
        for (int64_t i = 0; t != 8 && i < heads * a.dim; i++)
            assert_true(a.out[t * heads * a.dim + i] == b.out[t * heads * a.dim + i]);
    for (int64_t t = 0; t < a.rows; t++)
        for (int64_t h = 0; t != 8 && h < heads; h++)
            assert_true(a.lse[t * heads + h] == b.lse[t * heads + h]);
    bool last_sees_it = p->topk == 0;
    for (int64_t e = 0; e < p->topk; e++)
        last_sees_it |= list(c, 8)[e] == 8;
    if (last_sees_it) {
        assert_true(isnan(b.out[8 * heads * a.dim]));
        assert_true(isnan(b.lse[8 * heads]));
    } else {
        assert_same_run(&a, &b);
    }
    run_free(&a), run_free(&b);
}

static void check_unseen_infinities(struct mla_case *c, const struct run_options *o)
{
    static const float values[] = {NAN, INFINITY, -INFINITY, 3e38f};
    const mla_problem *p = &c->problem;
    /* Nobody sees key 2 of request 1 (flat key 11). */
    for (int64_t t = 9; t < 14; t++)
        for (int64_t e = 0; e < p->topk; e++)
            if (list(c, t)[e] == 2)
                list(c, t)[e] = -1;
    struct run a = run_case(c, o);
    for (int i = 0; i < 4; i++) {
        poison_key(c, 11, values[i]);
        struct run b = run_case(c, o);
        assert_same_run(&a, &b);
        run_free(&b);
    }
    run_free(&a);
}

static void test_unseen_keys(void **state)
{
    (void)state;
    each("dtype=f32", check_unseen);
    each("dtype=f32 topk=4", check_unseen);
    each("dtype=f32 topk=7", check_unseen_infinities);
}

static void check_unread_pages(struct mla_case *c, const struct run_options *o)
{
    /* Page-table entries past the last page, and slots past the last key, hold garbage. */
    const mla_problem *p = &c->problem;
    struct run a = run_case(c, o);
    for (int64_t b = 0; b < p->batch; b++) {
        int64_t used = (p->seq_lens_kv[b] + p->page_size - 1) / p->page_size;
        int32_t *pages = (int32_t *)c->tensors.page_table.data +
                         b * mla_stride0(&c->tensors.page_table, p->max_pages);
        for (int64_t i = used; i < p->max_pages; i++)
            pages[i] = 2147480000;
        for (int64_t j = p->seq_lens_kv[b]; j < used * p->page_size; j++) {
            int64_t width = p->kv_lora_rank + p->qk_rope_dim;
            float *row = (float *)c->tensors.kv_cache.data +
                         (pages[j / p->page_size] * p->page_size + j % p->page_size) * width;
            for (int64_t d = 0; d < width; d++)
                row[d] = NAN;
        }
    }
    struct run b = run_case(c, o);
    assert_same_run(&a, &b);
    run_free(&a), run_free(&b);
}

/* Paged words for the two forms that have a cache. */
static void each_cached(const char *words, check_fn *check)
{
    for (int f = 0; f < 2; f++) {
        for (int route = MLA_ROUTE_DENSE_MHA; route <= MLA_ROUTE_DENSE_MQA; route++) {
            struct mla_case c = run_make("%s%s", forms[f], words);
            struct run_options o = {.route = (mla_route)route};
            if (run_routes(&c) & MLA_BIT(route))
                check(&c, &o);
            mla_case_free(&c);
        }
    }
}

static void test_unread_memory(void **state)
{
    (void)state;
    each_cached("dtype=f32 page=4", check_unread_pages);
    each_cached("dtype=f32 page=4 topk=7", check_unread_pages);
    each_cached("dtype=f32 page=1", check_unread_pages);
}

/* A page id outside the cache hides its keys and is never followed. */
static void check_bad_page(struct mla_case *c, const struct run_options *o)
{
    const mla_problem *p = &c->problem;
    int32_t *pages = c->tensors.page_table.data;
    int64_t stride = mla_stride0(&c->tensors.page_table, p->max_pages);
    pages[stride + 1] = -5; /* request 1, keys 4 … 7 */
    struct run a = run_case(c, o);
    pages[stride + 1] = (int32_t)p->num_pages;
    struct run b = run_case(c, o);
    struct run_options naive = {.route = o->route,
                                .kernel = "naive_cpu",
                                .precision = MLA_PRECISION_FP64};
    struct run oracle = run_case(c, &naive);
    assert_same_run(&a, &b);
    assert_close_run(&a, &oracle, 2e-5);
    run_free(&a), run_free(&b), run_free(&oracle);
}

static void test_bad_page_ids_hide_keys(void **state)
{
    (void)state;
    each_cached("dtype=f32 page=4", check_bad_page);
    each_cached("dtype=f32 page=4 topk=7", check_bad_page);
}

/* --------------------------------------------------------------- 6: lse */

static void check_lse_base(struct mla_case *c, const struct run_options *o)
{
    struct run e = run_case(c, o);
    c->problem.lse_base = MLA_LSE_2;
    struct run two = run_case(c, o);
    for (int64_t i = 0; i < e.rows * e.heads; i++) {
        double want = e.lse[i] / M_LN2;
        assert_true(isinf(want) ? two.lse[i] == want : fabs(two.lse[i] - want) < 1e-5);
        assert_true(e.max_logits[i] == two.max_logits[i]); /* always natural */
    }
    run_free(&e), run_free(&two);
}

static void test_lse_base(void **state)
{
    (void)state;
    each("topk=7 sink=1", check_lse_base);
    each("sink=1", check_lse_base);
}

static void check_sink_in_lse(struct mla_case *c, const struct run_options *o)
{
    /* lse with the sink = log(exp(lse without) + exp(sink)), out shrinks by the same factor. */
    struct run with = run_case(c, o);
    const float *sink = c->tensors.attn_sink;
    c->problem.has_sink = false;
    struct run without = run_case(c, o);
    for (int64_t i = 0; i < with.rows * with.heads; i++) {
        double s = sink[i % with.heads], l = without.lse[i];
        double want = log(exp(l) + exp(s)), shrink = exp(l - want);
        assert_true(fabs(with.lse[i] - want) < 1e-5);
        for (int64_t d = 0; d < with.dim; d++)
            assert_true(fabs(with.out[i * with.dim + d] - shrink * without.out[i * with.dim + d]) <
                        1e-5);
    }
    run_free(&with), run_free(&without);
}

static void test_sink_counts_in_lse(void **state)
{
    (void)state;
    each("topk=7 sink=1", check_sink_in_lse);
    each("sink=1 causal=0", check_sink_in_lse);
}

/* ------------------------------------------------- 7: empty requests, lengths */

static void test_empty_requests(void **state)
{
    (void)state;
    static const char *const texts[] = {
        "attend form=latent batch= heads=2 rank=16 nope=8 rope=4 v=8",
        "attend form=latent batch=q0,q3s0,q0s9,q2s5 heads=2 rank=16 nope=8 rope=4 v=8 topk=3",
        "attend form=absorbed batch=q0,q3s0,q0s9,q2s5 heads=2 rank=16 rope=4 page=3",
        "attend form=expanded batch=q0,q3s0,q0s9,q2s5 heads=2 heads_kv=1 nope=8 rope=0 v=8",
        "attend form=latent batch=q3s0 heads=2 rank=16 nope=8 rope=4 v=8 causal=0 sink=1",
    };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        struct mla_case c = run_make("%s", texts[i]);
        for (int precision = 0; precision <= MLA_PRECISION_FP64; precision++) {
            struct run_options o = {.precision = (mla_precision)precision};
            struct run r = run_case(&c, &o);
            int64_t blind_rows = c.problem.batch ? 3 : 0;
            for (int64_t j = 0; j < blind_rows * r.heads; j++) {
                double want = c.problem.has_sink ? c.tensors.attn_sink[j % r.heads] : -INFINITY;
                assert_true(r.lse[j] == want || fabs(r.lse[j] - want) < 1e-6);
                for (int64_t d = 0; d < r.dim; d++)
                    assert_true(r.out[j * r.dim + d] == 0);
            }
            run_free(&r);
        }
        mla_case_free(&c);
    }
}

static void test_fewer_keys_than_queries(void **state)
{
    (void)state;
    struct mla_case_spec spec;
    assert_refused(mla_case_spec_parse(&spec, "attend batch=q4s3"), MLA_ERR_ARGUMENT,
                   "seq_lens_kv[0]: got 3");
    struct mla_case c = run_make("attend form=latent batch=q4s3 causal=0 heads=2 rank=16 nope=8 "
                                 "rope=4 v=8");
    struct run_options naive = {.kernel = "naive_cpu", .precision = MLA_PRECISION_FP64};
    struct run a = run_case(&c, NULL), b = run_case(&c, &naive);
    assert_close_run(&a, &b, 2e-5);
    run_free(&a), run_free(&b);
    mla_case_free(&c);
}

/* Lengths given at run time shorten the planned ones. */
static void check_run_lengths(struct mla_case *c, const struct run_options *o)
{
    int32_t shorter[] = {9, 17, 0, 3};
    c->tensors.seq_lens_kv = shorter;
    struct run_options naive = *o;
    naive.kernel = "naive_cpu";
    naive.precision = MLA_PRECISION_FP64;
    struct run a = run_case(c, o), b = run_case(c, &naive);
    assert_close_run(&a, &b, o->precision == MLA_PRECISION_FP64 ? 1e-12 : 2e-5);
    assert_true(a.lse[14 * a.heads] == -INFINITY); /* the request without keys */
    run_free(&a), run_free(&b);
}

static void test_lengths_at_run_time(void **state)
{
    (void)state;
    each("dtype=f32", check_run_lengths);
    each("dtype=f32 topk=7", check_run_lengths);
}

/* ---------------------------------- 8: sinks, packed caches, paging, mixed batches */

static void test_formats_on_every_route(void **state)
{
    (void)state;
    static const char *const texts[] = {
        "attend form=latent " BATCH " heads=2 nope=8 v=8 cache=fp8_ds_mla page=4 sink=1",
        "attend form=latent " BATCH " heads=2 nope=8 v=8 cache=nvfp4_ds_mla page=5 sink=1",
        "attend form=latent " BATCH " heads=2 nope=8 v=8 cache=fp8_ds_mla page=4 sink=1 topk=7",
        "attend form=latent " BATCH " heads=2 nope=8 v=8 cache=nvfp4_ds_mla page=5 topk=32",
        "attend form=absorbed " BATCH " heads=2 cache=fp8_ds_mla page=64 sink=1 topk=7 topk_lens=1",
        "attend form=absorbed " BATCH " heads=2 rope=0 cache=model1 page=4 sink=1 topk=7",
        "attend form=absorbed " BATCH " heads=2 rope=0 cache=v41 page=3 sink=1",
        "attend form=absorbed " BATCH " heads=2 rope=0 cache=v41 page=3 topk=5",
    };
    unsigned seen = 0;
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        struct mla_case c = run_make("%s", texts[i]);
        unsigned routes = run_routes(&c);
        for (int route = MLA_ROUTE_DENSE_MHA; route <= MLA_ROUTE_DENSE_MQA; route++) {
            struct run_options o = {.route = (mla_route)route, .precision = MLA_PRECISION_FP64};
            if (!(routes & MLA_BIT(route)))
                continue;
            check_visible(&c, &o);
            o.precision = MLA_PRECISION_FP32;
            check_visible(&c, &o);
        }
        seen |= routes;
        mla_case_free(&c);
    }
    assert_int_equal(seen, MLA_BIT(MLA_ROUTE_DENSE_MHA) | MLA_BIT(MLA_ROUTE_MASKED_MHA) |
                               MLA_BIT(MLA_ROUTE_SPARSE_MQA) | MLA_BIT(MLA_ROUTE_DENSE_MQA));
}

/* Routes that may not serve a problem say why. */
static void test_routes_that_do_not_apply(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        mla_route route;
        const char *why;
    } cases[] = {
        {LATENT, MLA_ROUTE_SPARSE_MQA, "needs topk_indices"},
        {LATENT, MLA_ROUTE_MASKED_MHA, "needs topk_indices or mask"},
        {LATENT "topk=7", MLA_ROUTE_DENSE_MHA, "leave out keys"},
        {LATENT "topk=7", MLA_ROUTE_DENSE_MQA, "leave out keys"},
        {LATENT "mask=1", MLA_ROUTE_SPARSE_MQA, "needs topk_indices"},
        {ABSORBED, MLA_ROUTE_DENSE_MHA, "no per-head k and v"},
        {ABSORBED "topk=7", MLA_ROUTE_MASKED_MHA, "no per-head k and v"},
        {EXPANDED, MLA_ROUTE_DENSE_MQA, "no latents"},
        {EXPANDED "topk=7", MLA_ROUTE_SPARSE_MQA, "no latents"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct mla_case c = run_make("%s", cases[i].text);
        struct run_options o = {.route = cases[i].route};
        assert_refused(run_status(&c, &o), MLA_ERR_UNSUPPORTED, cases[i].why);
        mla_case_free(&c);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_visible_dense),
        cmocka_unit_test(test_visible_lists),
        cmocka_unit_test(test_visible_mask),
        cmocka_unit_test(test_ignored_entries),
        cmocka_unit_test(test_past_topk_lens),
        cmocka_unit_test(test_duplicates_are_refused),
        cmocka_unit_test(test_rows_without_keys),
        cmocka_unit_test(test_sink_minus_infinity),
        cmocka_unit_test(test_unseen_keys),
        cmocka_unit_test(test_unread_memory),
        cmocka_unit_test(test_bad_page_ids_hide_keys),
        cmocka_unit_test(test_lse_base),
        cmocka_unit_test(test_sink_counts_in_lse),
        cmocka_unit_test(test_empty_requests),
        cmocka_unit_test(test_fewer_keys_than_queries),
        cmocka_unit_test(test_lengths_at_run_time),
        cmocka_unit_test(test_formats_on_every_route),
        cmocka_unit_test(test_routes_that_do_not_apply),
    };
    return cmocka_run_group_tests_name("rules", tests, NULL, NULL);
}

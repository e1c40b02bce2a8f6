/* SPDX-License-Identifier: Apache-2.0 */
// labels: fast
// timeout: 300
/* mla_reference against the oracle, and the bounds against simulated kernels: H holds for every
 * variant and fill, T and z where they are meant to. Prints the shares that docs/numerics.md
 * quotes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "common/format.h"
#include "common/status.h"
#include "common/tool/case.h"
#include "reference/bound.h"
#include "validation/mutants.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct mla_context cpu = {.backend = MLA_BACKEND_CPU, .threads = 2};

static void make(struct mla_case *c, const char *text)
{
    struct mla_case_spec spec;
    if (mla_case_spec_parse(&spec, text) != MLA_OK || mla_case_make(&spec, c) != MLA_OK)
        fail_msg("%s: %s", text, mla_last_error());
    mla_problem_release(&spec.problem);
}

struct reference {
    int64_t T, H, d;
    double *out, *lse, *max, *hard, *stat, *sigma, *lse_hard, *max_hard, *lse_sigma, *max_sigma;
};

static void reference_free(struct reference *r)
{
    free(r->out);
}

static mla_status reference(const struct mla_case *c, const mla_rounding *one, const int64_t *rows,
                            int64_t num_rows, struct reference *r)
{
    r->T = rows ? num_rows : mla_total_q(&c->problem);
    r->H = c->problem.heads_q;
    r->d = mla_d_v(&c->problem);
    size_t n = (size_t)(r->T * r->H), e = n * (size_t)r->d;
    double *x = r->out = malloc((4 * e + 6 * n + 1) * sizeof *x);
    for (size_t i = 0; i < 4 * e + 6 * n; i++)
        x[i] = 12345;
    r->hard = x + e;
    r->stat = x + 2 * e;
    r->sigma = x + 3 * e;
    r->lse = x + 4 * e;
    r->max = r->lse + n;
    r->lse_hard = r->max + n;
    r->max_hard = r->lse_hard + n;
    r->lse_sigma = r->max_hard + n;
    r->max_sigma = r->lse_sigma + n;
    mla_rounding rounding[16];
    for (int i = 0; one && i < 16; i++)
        rounding[i] = *one;
    mla_reference_args args = {
        .rows = rows, .num_rows = num_rows, .out = r->out, .lse = r->lse, .max_logits = r->max};
    if (one) {
        args.rounding = rounding;
        args.hard = r->hard;
        args.statistical = r->stat;
        args.sigma = r->sigma;
        args.lse_hard = r->lse_hard;
        args.max_hard = r->max_hard;
        args.lse_sigma = r->lse_sigma;
        args.max_sigma = r->max_sigma;
    }
    return mla_reference(&cpu, &c->problem, &c->tensors, &args);
}

static bool close_to(double a, double b, double size)
{
    if (isnan(a) || isnan(b))
        return isnan(a) && isnan(b);
    return a == b || fabs(a - b) <= 1e-12 * size;
}

static const char *const shapes[] = {
    "attend form=latent b=2 sq=5 skv=70 hq=3 rank=32 nope=16 rope=8 v=24",
    "attend form=latent b=2 sq=3 skv=1100 hq=3 rank=32 nope=16 rope=0 v=24 sink=1 base=2",
    "attend form=latent b=1 sq=40 skv=600 hq=2 rank=32 nope=16 rope=8 v=24 mask=1",
    "attend form=latent b=2 sq=4 skv=900 hq=4 rank=48 nope=16 rope=8 v=16 topk=200 page=16",
    "attend form=absorbed b=3 sq=2 skv=333 hq=5 rank=40 rope=8 page=64",
    "attend form=absorbed b=2 sq=1 skv=300 hq=4 topk=64 page=64 cache=fp8_ds_mla sink=1",
    "attend form=expanded b=2 sq=33 skv=90 hq=6 hk=2 nope=16 rope=8 v=20 dtype=f16",
    "attend form=expanded b=2 sq=7 skv=90 hq=2 hk=2 nope=16 rope=8 v=20 dtype=f32 topk=30",
};

static void agrees_with_oracle(void **state)
{
    (void)state;
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        struct mla_case c;
        struct reference r;
        make(&c, shapes[s]);
        mla_rounding rounding =
            mla_rounding_of(&c.problem, MLA_BACKEND_CUDA, MLA_PRECISION_FP32, 0, MLA_BF16);
        assert_int_equal(reference(&c, &rounding, NULL, 0, &r), MLA_OK);
        double *out = malloc((size_t)r.d * sizeof *out), lse, max;
        int64_t kv_start = 0;
        for (int64_t b = 0; b < c.problem.batch; b++) {
            const int32_t *cu = c.problem.cu_seqlens_q;
            struct mla_request q = {b, cu[b], cu[b + 1] - cu[b], kv_start,
                                    c.problem.seq_lens_kv[b]};
            kv_start += q.seq_len_kv;
            for (int64_t i = 0; i < q.query_len; i++)
                for (int64_t h = 0; h < r.H; h++) {
                    int64_t m = (q.q_start + i) * r.H + h;
                    assert_int_equal(mla_attend_naive(&c.problem, &c.tensors, &q, q.q_start + i, h,
                                                      out, &lse, &max),
                                     0);
                    for (int64_t x = 0; x < r.d; x++)
                        if (!close_to(r.out[m * r.d + x], out[x], 10))
                            fail_msg("%s: out[%d %d %d] %.17g, oracle %.17g", shapes[s], (int)i,
                                     (int)h, (int)x, r.out[m * r.d + x], out[x]);
                    if (!close_to(r.lse[m], lse, 100) || !close_to(r.max[m], max, 100))
                        fail_msg("%s: lse %.17g %.17g max %.17g %.17g", shapes[s], r.lse[m], lse,
                                 r.max[m], max);
                }
        }
        free(out);
        reference_free(&r);
        mla_case_free(&c);
    }
}

/* ---------------------------------------------------------- bounds hold */

struct share {
    double hard, stat, z, lse, max, lse_stat, max_stat;
    int64_t vacuous;
};

/* Worst shares of one simulated or computed result. */
static void measure(const struct reference *r, const double *out, const double *lse,
                    const double *max, struct share *worst)
{
    for (int64_t m = 0; m < r->T * r->H; m++) {
        double z = 0;
        for (int64_t c = 0; c < r->d; c++) {
            int64_t i = m * r->d + c;
            double err = fabs(out[i] - r->out[i]);
            worst->vacuous += isinf(r->hard[i]);
            worst->hard = fmax(worst->hard, err / r->hard[i]);
            worst->stat = fmax(worst->stat, err / r->stat[i]);
            z += err / r->sigma[i] * (err / r->sigma[i]);
        }
        worst->z = fmax(worst->z, sqrt(z / (double)r->d));
        double l = lse[m] == r->lse[m] ? 0 : fabs(lse[m] - r->lse[m]) / r->lse_hard[m];
        double x = max[m] == r->max[m] ? 0 : fabs(max[m] - r->max[m]) / r->max_hard[m];
        double y = lse[m] == r->lse[m] ? 0 : fabs(lse[m] - r->lse[m]) / (6 * r->lse_sigma[m]);
        worst->lse_stat = fmax(worst->lse_stat, y);
        y = max[m] == r->max[m] ? 0 : fabs(max[m] - r->max[m]) / (6 * r->max_sigma[m]);
        worst->max_stat = fmax(worst->max_stat, y);
        worst->lse = fmax(worst->lse, l);
        worst->max = fmax(worst->max, x);
    }
}

static void simulate(const struct mla_case *c, const struct mla_simulation *sim,
                     const struct reference *r, struct share *worst)
{
    int64_t n = r->T * r->H;
    void *raw = malloc((size_t)(n * r->d) * 4);
    float *lse = malloc((size_t)n * 8), *max = lse + n;
    double *out = malloc((size_t)(n * r->d + 2 * n) * 8);
    assert_int_equal(mla_simulate(&c->problem, &c->tensors, sim, raw, lse, max), MLA_OK);
    mla_load_f64(sim->out, raw, n * r->d, out);
    mla_load_f64(MLA_F32, lse, 2 * n, out + n * r->d);
    measure(r, out, out + n * r->d, out + n * r->d + n, worst);
    free(raw);
    free(lse);
    free(out);
}

struct setting {
    const char *name, *text;
    mla_route route;
    mla_dtype round, out;
};

#define LATENT "attend form=latent b=2 sq=4 skv=1024 hq=4 rank=128 nope=64 rope=32 v=64 "
static const struct setting settings[] = {
    {"MQA lists bf16", LATENT "topk=512 page=64 sink=1", MLA_ROUTE_SPARSE_MQA, MLA_BF16, MLA_BF16},
    {"MQA dense f16", LATENT "dtype=f16 cache=f16", MLA_ROUTE_DENSE_MQA, MLA_F16, MLA_F16},
    {"MHA mask bf16", LATENT "mask=1", MLA_ROUTE_MASKED_MHA, MLA_BF16, MLA_BF16},
    {"MHA dense f16", LATENT "dtype=f16 cache=f16", MLA_ROUTE_DENSE_MHA, MLA_F16, MLA_F32},
    {"expanded bf16", "attend form=expanded b=2 sq=4 skv=1024 hq=4 hk=2 nope=128 rope=64 v=128",
     MLA_ROUTE_DENSE_MHA, MLA_BF16, MLA_BF16},
    {"absorbed fp8",
     "attend form=absorbed b=1 sq=4 skv=1024 hq=4 topk=512 cache=fp8_ds_mla page=64",
     MLA_ROUTE_SPARSE_MQA, MLA_BF16, MLA_BF16},
    {"latent fp8",
     "attend form=latent b=1 sq=4 skv=1024 hq=2 nope=64 v=64 cache=fp8_ds_mla page=64",
     MLA_ROUTE_DENSE_MQA, MLA_BF16, MLA_BF16},
};
static const char *const fills[] = {"normal", "diffuse", "large",  "counting", "needle",
                                    "peaky",  "equal",   "cancel", "huge"};
static const struct {
    int block;
    enum mla_sum_order order;
    bool sum_rounded;
} variants[] = {
    {64, MLA_SUM_SEQUENTIAL, false},
    {128, MLA_SUM_BLOCKS, true},
    {64, MLA_SUM_TRUNCATING, false},
    {128, MLA_SUM_REVERSED, false},
};

/* Sanitized code is an order slower: one way to add up a row stands for the others there. */
#ifdef MLA_SANITIZED
enum { VARIANTS = 1 };
#else
enum { VARIANTS = sizeof variants / sizeof *variants };
#endif

static void bounds_hold(void **state)
{
    (void)state;
    print_message("| setting | fill | err/H | err/T | row z | lse/H | lse/T | max/H | max/T |\n"
                  "|---|---|---|---|---|---|---|---|---|\n");
    int broken = 0;
    for (size_t s = 0; s < sizeof settings / sizeof *settings; s++)
        for (size_t f = 0; f < sizeof fills / sizeof *fills; f++) {
            struct share worst = {0};
            char text[512];
            snprintf(text, sizeof text, "%s fill=%s seed=1", settings[s].text, fills[f]);
            struct mla_case c;
            make(&c, text);
            struct mla_simulation sim = {.route = settings[s].route,
                                         .round = settings[s].round,
                                         .out = settings[s].out};
            mla_rounding rounding = mla_simulated_rounding(&c.problem, &sim);
            struct reference r;
            /* Both ways to statistics of V take turns; only MQA routes have two. */
            mla_bound_path = 1 + (int)(f & 1);
            assert_int_equal(reference(&c, &rounding, NULL, 0, &r), MLA_OK);
            mla_bound_path = 0;
            for (size_t v = 0; v < VARIANTS; v++) {
                sim.block = variants[v].block;
                sim.order = variants[v].order;
                sim.sum_rounded = variants[v].sum_rounded;
                simulate(&c, &sim, &r, &worst);
            }
            reference_free(&r);
            mla_case_free(&c);
            print_message("| %s | %s | %.3f | %.2f | %.2f | %.3f | %.2f | %.3f | %.2f |%s\n",
                          settings[s].name, fills[f], worst.hard, worst.stat, worst.z, worst.lse,
                          worst.lse_stat, worst.max, worst.max_stat,
                          worst.vacuous ? " vacuous" : "");
            bool random = f < 3;
            broken += !(worst.hard <= 1) || !(worst.lse <= 1) || !(worst.max <= 1);
            broken += random && (!(worst.stat <= 1) || !(worst.z <= 1.3) || worst.vacuous ||
                                 !(worst.lse_stat <= 1) || !(worst.max_stat <= 1));
        }
    assert_int_equal(broken, 0);
}

/* A Gram matrix instead of every key's v: H no smaller, T and sigma about the same. */
static void gram_agrees(void **state)
{
    (void)state;
    static const char *const kinds[] = {"normal", "diffuse", "large", "peaky"};
    for (int f = 0; f < 4; f++) {
        char text[512];
        snprintf(text, sizeof text, "%s fill=%s seed=5", settings[0].text, kinds[f]);
        struct mla_case c;
        struct reference a, b;
        make(&c, text);
        mla_rounding rounding =
            mla_rounding_of(&c.problem, MLA_BACKEND_CUDA, MLA_PRECISION_FP32, 0, MLA_BF16);
        mla_bound_path = 1;
        assert_int_equal(reference(&c, &rounding, NULL, 0, &a), MLA_OK);
        mla_bound_path = 2;
        assert_int_equal(reference(&c, &rounding, NULL, 0, &b), MLA_OK);
        mla_bound_path = 0;
        double t = 0, sigma = 0;
        int64_t n = a.T * a.H * a.d;
        for (int64_t i = 0; i < n; i++) {
            assert_true(close_to(a.out[i], b.out[i], 10));
            assert_true(b.hard[i] >= a.hard[i] * (1 - 1e-3));
            t += b.stat[i] / a.stat[i] / (double)n;
            sigma += b.sigma[i] / a.sigma[i] / (double)n;
        }
        assert_true(t > 0.9 && t < 1.1 && sigma > 0.9 && sigma < 1.1);
        reference_free(&a);
        reference_free(&b);
        mla_case_free(&c);
    }
}

/* A key that holds NaN changes no bound of a row that does not see it, by either path. */
static void unseen_nan_keeps_bounds(void **state)
{
    (void)state;
    static const char text[] =
        "attend b=1 sq=4 skv=600 hq=2 rank=32 nope=16 rope=8 v=24 fill=diffuse";
    for (int path = 1; path <= 2; path++) {
        struct mla_case c;
        struct reference a, b;
        make(&c, text);
        mla_rounding rounding =
            mla_rounding_of(&c.problem, MLA_BACKEND_CUDA, MLA_PRECISION_FP32, 0, MLA_BF16);
        mla_bound_path = path;
        assert_int_equal(reference(&c, &rounding, NULL, 0, &a), MLA_OK);
        ((uint16_t *)c.tensors.kv_c.data)[599 * 32 + 5] = 0x7FC0; /* the last query sees it */
        assert_int_equal(reference(&c, &rounding, NULL, 0, &b), MLA_OK);
        mla_bound_path = 0;
        int64_t n = 3 * a.H * a.d;
        assert_true(isnan(b.out[n]));
        for (int64_t i = 0; i < n; i++) {
            assert_true(close_to(a.out[i], b.out[i], 10));
            assert_true(fabs(b.hard[i] / a.hard[i] - 1) < 0.01);
            assert_true(fabs(b.stat[i] / a.stat[i] - 1) < 0.05);
        }
        reference_free(&a);
        reference_free(&b);
        mla_case_free(&c);
    }
}

/* A sample of rows gives what all rows give, and threads change no bit. */
static void samples_and_threads(void **state)
{
    (void)state;
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        struct mla_case c;
        struct reference all, some;
        make(&c, shapes[s]);
        mla_rounding rounding =
            mla_rounding_of(&c.problem, MLA_BACKEND_CUDA, MLA_PRECISION_FP32, 0, MLA_BF16);
        assert_int_equal(reference(&c, &rounding, NULL, 0, &all), MLA_OK);
        int64_t rows[2] = {0, mla_total_q(&c.problem) - 1}, d = all.H * all.d;
        assert_int_equal(reference(&c, &rounding, rows, 2, &some), MLA_OK);
        for (int i = 0; i < 2; i++)
            for (int64_t x = 0; x < d; x++) {
                assert_true(close_to(some.out[i * d + x], all.out[rows[i] * d + x], 10));
                double ratio = some.hard[i * d + x] / all.hard[rows[i] * d + x];
                assert_true(ratio > 0.9 && ratio < 1.1);
            }
        reference_free(&some);
        struct mla_context one = {.backend = MLA_BACKEND_CPU, .threads = 1};
        mla_reference_args args = {.out = malloc((size_t)(all.T * d) * sizeof(double))};
        struct reference again;
        assert_int_equal(reference(&c, NULL, NULL, 0, &again), MLA_OK);
        assert_int_equal(mla_reference(&one, &c.problem, &c.tensors, &args), MLA_OK);
        assert_memory_equal(args.out, again.out, (size_t)(all.T * d) * sizeof(double));
        free(args.out);
        reference_free(&again);
        reference_free(&all);
        mla_case_free(&c);
    }
}

static void bad_arguments(void **state)
{
    (void)state;
    struct mla_case c;
    make(&c, shapes[0]);
    double out[8000];
    mla_reference_args args = {.out = out};
    int64_t falling[2] = {3, 3}, past[1] = {10};
    assert_int_equal(mla_reference(NULL, &c.problem, &c.tensors, &args), MLA_ERR_ARGUMENT);
    assert_int_equal(mla_reference(&cpu, NULL, &c.tensors, &args), MLA_ERR_ARGUMENT);
    assert_int_equal(mla_reference(&cpu, &c.problem, NULL, &args), MLA_ERR_ARGUMENT);
    assert_int_equal(mla_reference(&cpu, &c.problem, &c.tensors, NULL), MLA_ERR_ARGUMENT);
    args.rows = falling;
    args.num_rows = 2;
    assert_int_equal(mla_reference(&cpu, &c.problem, &c.tensors, &args), MLA_ERR_ARGUMENT);
    assert_non_null(strstr(mla_last_error(), "rows[1]"));
    args.rows = past;
    args.num_rows = 1;
    assert_int_equal(mla_reference(&cpu, &c.problem, &c.tensors, &args), MLA_ERR_ARGUMENT);
    args.num_rows = -1;
    assert_int_equal(mla_reference(&cpu, &c.problem, &c.tensors, &args), MLA_ERR_ARGUMENT);
    args = (mla_reference_args){.hard = out};
    assert_int_equal(mla_reference(&cpu, &c.problem, &c.tensors, &args), MLA_ERR_ARGUMENT);
    mla_tensors t = c.tensors;
    t.q_nope.data = NULL;
    args = (mla_reference_args){.out = out};
    assert_int_equal(mla_reference(&cpu, &c.problem, &t, &args), MLA_ERR_ARGUMENT);
    mla_case_free(&c);
}

/* At scale 0 all scores are 0 however the queries round: a bound there is finite and small. */
static void scale_zero_has_a_bound(void **state)
{
    (void)state;
    struct mla_case_spec spec;
    struct mla_case c;
    assert_int_equal(mla_case_spec_parse(&spec, "attend model=tiny topk=0 b=1 sq=4 skv=20 scale=0"),
                     MLA_OK);
    assert_int_equal(mla_case_make(&spec, &c), MLA_OK);
    mla_problem_release(&spec.problem);
    mla_context *context;
    assert_int_equal(mla_context_create(NULL, &context), MLA_OK);
    enum { N = 4 * 4 * 32 };
    double *hard = malloc(N * sizeof *hard);
    assert_non_null(hard);
    for (int route = MLA_ROUTE_DENSE_MHA; route <= MLA_ROUTE_DENSE_MQA; route++) {
        mla_rounding rounding = mla_rounding_of(&c.problem, MLA_BACKEND_CUDA, MLA_PRECISION_FP32,
                                                (mla_route)route, MLA_BF16);
        mla_reference_args args = {.rounding = &rounding, .hard = hard};
        assert_int_equal(mla_reference(context, &c.problem, &c.tensors, &args), MLA_OK);
        for (int i = 0; i < N; i++)
            assert_true(hard[i] > 0 && hard[i] < 1);
    }
    free(hard);
    mla_context_destroy(context);
    mla_case_free(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(agrees_with_oracle),
        cmocka_unit_test(samples_and_threads),
        cmocka_unit_test(bad_arguments),
        cmocka_unit_test(gram_agrees),
        cmocka_unit_test(unseen_nan_keeps_bounds),
        cmocka_unit_test(scale_zero_has_a_bound),
        cmocka_unit_test(bounds_hold),
    };
    return cmocka_run_group_tests_name("bound", tests, NULL, NULL);
}

/* SPDX-License-Identifier: Apache-2.0 */
// labels: fast
// timeout: 300
/* The verdict: right results of the CPU backend pass on every route, spoilt ones fail, and the
 * report says where and how. With --show, prints the reports. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "common/format.h"
#include "common/kernel.h"
#include "common/status.h"
#include "common/tool/case.h"
#include "validation/check.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static mla_context *context;
static FILE *show;

static int open_context(void **state)
{
    (void)state;
    return mla_context_create(NULL, &context) != MLA_OK;
}

static int close_context(void **state)
{
    (void)state;
    mla_context_destroy(context);
    return 0;
}

/* A case and what the CPU backend computes for it. */
struct run {
    struct mla_case c;
    struct mla_result result;
    mla_rounding rounding[16];
    struct mla_check_options options;
    struct mla_check_report report;
    int64_t n, d; /* rows times heads, width */
    void *out;
    void *lse, *max;
};

static void make(struct run *r, const char *text)
{
    struct mla_case_spec spec;
    memset(r, 0, sizeof *r);
    if (mla_case_spec_parse(&spec, text) != MLA_OK || mla_case_make(&spec, &r->c) != MLA_OK)
        fail_msg("%s: %s", text, mla_last_error());
    mla_problem_release(&spec.problem);
}

static void compute(struct run *r, mla_route route, mla_precision precision)
{
    mla_problem *p = &r->c.problem;
    r->n = mla_total_q(p) * p->heads_q;
    r->d = mla_d_v(p);
    p->out_dtype = precision == MLA_PRECISION_FP64 ? MLA_F64 : MLA_F32;
    p->wants_lse = p->wants_max_logits = true;
    size_t bytes = mla_dtype_bytes(p->out_dtype);
    free(r->out);
    free(r->lse);
    free(r->max);
    r->out = malloc((size_t)(r->n * r->d + 1) * bytes);
    r->lse = malloc((size_t)(r->n + 1) * bytes);
    r->max = malloc((size_t)(r->n + 1) * bytes);
    mla_plan_options options = {.route = route, .precision = precision, .complete = r->c.complete};
    mla_plan *plan;
    if (mla_plan_create(context, p, &options, &plan) != MLA_OK)
        fail_msg("%s", mla_last_error());
    size_t size = mla_plan_workspace_bytes(plan);
    void *workspace = aligned_alloc(256, (size + 511) / 256 * 256);
    mla_tensors t = r->c.tensors;
    t.out.data = r->out;
    t.lse.data = r->lse;
    t.max_logits.data = r->max;
    assert_int_equal(mla_run(plan, &t, workspace, size, NULL), MLA_OK);
    for (int64_t b = 0; b < p->batch; b++) {
        mla_request_info info;
        assert_int_equal(mla_plan_request(plan, b, &info), MLA_OK);
        r->rounding[b] = mla_rounding_of(p, MLA_BACKEND_CPU, precision, info.route, p->out_dtype);
    }
    free(workspace);
    mla_plan_destroy(plan);
    r->result = (struct mla_result){p->out_dtype, p->out_dtype, r->out, r->lse, r->max};
    r->options = (struct mla_check_options){.context = context,
                                            .rounding = r->rounding,
                                            .name = "cpu",
                                            .rerun = "mla check 'attend …'"};
}

static enum mla_verdict judge(struct run *r)
{
    if (mla_check_result(&r->c, &r->result, &r->options, &r->report) != MLA_OK)
        fail_msg("%s", mla_last_error());
    if (show) {
        mla_check_print(show, &r->c, &r->options, &r->report);
        fprintf(show, "\n");
    }
    return r->report.verdict;
}

static void done(struct run *r)
{
    free(r->out);
    free(r->lse);
    free(r->max);
    mla_case_free(&r->c);
}

#define SMALL "attend form=latent b=2 sq=40 skv=300 hq=4 rank=64 nope=32 rope=16 v=32 "
static float *value(struct run *r, int64_t row, int64_t head, int64_t dim)
{
    return (float *)r->out + (row * r->c.problem.heads_q + head) * r->d + dim;
}

static void start(struct run *r, const char *text)
{
    make(r, text);
    compute(r, MLA_ROUTE_AUTO, MLA_PRECISION_FP32);
}

/* ----------------------------------------------------------------- verdicts */

static void cpu_passes(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        mla_route routes[4];
    } cases[] = {
        {SMALL "sink=1 base=2", {MLA_ROUTE_DENSE_MHA, MLA_ROUTE_DENSE_MQA}},
        {SMALL "mask=1", {MLA_ROUTE_MASKED_MHA}},
        {SMALL "topk=100 page=16 sink=1", {MLA_ROUTE_MASKED_MHA, MLA_ROUTE_SPARSE_MQA}},
        {"attend form=absorbed b=2 sq=3 skv=400 hq=4 cache=fp8_ds_mla page=64",
         {MLA_ROUTE_DENSE_MQA}},
        {"attend form=expanded b=2 sq=20 skv=300 hq=4 hk=2 nope=32 rope=16 v=32 dtype=f16",
         {MLA_ROUTE_DENSE_MHA}},
    };
    static const char *const fills[] = {"normal", "diffuse", "large", "counting",
                                        "needle", "peaky",   "equal", "huge"};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (size_t f = 0; f < sizeof fills / sizeof *fills; f++)
            for (int k = 0; k < 4 && cases[i].routes[k]; k++)
                for (int precision = 0; precision < 2; precision++) {
                    char text[512];
                    struct run r;
                    snprintf(text, sizeof text, "%s fill=%s seed=3", cases[i].text, fills[f]);
                    make(&r, text);
                    compute(&r, cases[i].routes[k], (mla_precision)precision);
                    r.options.mode = f < 3 ? MLA_VERDICT_STRICT : MLA_VERDICT_DEFAULT;
                    if (judge(&r) == MLA_FAIL) {
                        mla_check_print(stderr, &r.c, &r.options, &r.report);
                        fail_msg("%s, %s, fp%d", text, mla_route_name(cases[i].routes[k]),
                                 precision ? 64 : 32);
                    }
                    assert_true(r.report.out.share_hard < 0.7);
                    done(&r);
                }
}

static void spoilt_elements(void **state)
{
    (void)state;
    struct run r;
    start(&r, SMALL "seed=1");
    *value(&r, 5, 2, 7) *= 1.01f;
    assert_int_equal(judge(&r), MLA_FAIL);
    assert_int_equal(r.report.out.bad, 1);
    assert_int_equal(r.report.points[0].row, 5);
    assert_int_equal(r.report.points[0].dim, 7);
    assert_string_equal(r.report.where, "request 0 only; head 2 only; query 5 only; d 7 only");
    *value(&r, 5, 2, 7) = NAN;
    assert_int_equal(judge(&r), MLA_FAIL);
    assert_int_equal(r.report.out.nonfinite, 1);
    memset(value(&r, 5, 2, 7), 0xFF, 4);
    assert_int_equal(judge(&r), MLA_FAIL);
    assert_int_equal(r.report.out.unwritten, 1);
    assert_non_null(strstr(r.report.reason, "never written"));
    done(&r);
}

static void clusters(void **state)
{
    (void)state;
    struct run r;
    start(&r, SMALL "seed=2");
    for (int64_t row = 40; row < 80; row++)
        for (int64_t h = 2; h < 4; h++)
            for (int64_t d = 0; d < 3; d++)
                *value(&r, row, h, d) += 1;
    assert_int_equal(judge(&r), MLA_FAIL);
    assert_string_equal(r.report.where, "request 1 only; head 2-3 only; d 0-2 only");
    done(&r);

    start(&r, SMALL "seed=2");
    for (int64_t row = 1; row < 80; row += 2)
        for (int64_t h = 0; h < 4; h++)
            for (int64_t d = 0; d < 32; d++)
                if (d % 16 >= 12)
                    *value(&r, row, h, d) += 1;
    assert_int_equal(judge(&r), MLA_FAIL);
    assert_string_equal(r.report.where, "odd queries only; d 12-15 of every 16 only");
    done(&r);
}

static void hints(void **state)
{
    (void)state;
    struct run r;
    size_t row = 32 * sizeof(float);
    start(&r, SMALL "seed=4");
    for (int64_t t = 0; t < 80; t++)
        memcpy(value(&r, t, 1, 0), value(&r, t, 2, 0), row);
    assert_int_equal(judge(&r), MLA_FAIL);
    assert_string_equal(r.report.where, "head 1 only");
    assert_string_equal(r.report.hint, "bad rows hold the value of another head (head +1)");
    done(&r);

    start(&r, SMALL "seed=4");
    for (int64_t t = 79; t > 0; t--)
        memcpy(value(&r, t, 0, 0), value(&r, t - 1, 0, 0), row * 4);
    assert_int_equal(judge(&r), MLA_FAIL);
    assert_string_equal(r.report.hint, "bad rows hold the value of another query (query -1)");
    done(&r);

    start(&r, SMALL "seed=4");
    for (int64_t d = 0; d < 32; d++)
        *value(&r, 17, 3, d) *= 0.875f;
    assert_int_equal(judge(&r), MLA_FAIL);
    assert_non_null(strstr(r.report.hint, "times 0.875"));
    done(&r);

    start(&r, SMALL "seed=4 sink=1");
    for (int64_t i = 0; i < r.n; i++)
        ((float *)r.lse)[i] *= 1.44269504f;
    assert_int_equal(judge(&r), MLA_FAIL);
    assert_int_equal(r.report.out.bad, 0);
    assert_string_equal(r.report.hint, "lse looks computed in base 2, want base e");
    done(&r);

    start(&r, SMALL "seed=4 sink=1");
    for (int64_t i = 0; i < r.n; i++) {
        float *x = (float *)r.lse + i, sink = r.c.tensors.attn_sink[i % 4];
        *x = *x + log1pf(-expf(sink - *x));
    }
    assert_int_equal(judge(&r), MLA_FAIL);
    assert_string_equal(r.report.hint, "lse looks computed without the sink");
    done(&r);
}

static void weak_and_mistrusted(void **state)
{
    (void)state;
    struct run r;
    start(&r, "attend form=latent b=3 sq=1 skv=1 hq=2 rank=32 nope=16 rope=8 v=16");
    assert_int_equal(judge(&r), MLA_WEAK);
    done(&r);
    start(&r, "attend form=latent b=2 sq=0 skv=5 hq=2 rank=32 nope=16 rope=8 v=16");
    assert_int_equal(judge(&r), MLA_WEAK);
    done(&r);
    start(&r, SMALL "fill=cancel causal=0");
    assert_int_equal(judge(&r), MLA_MISTRUSTED);
    done(&r);
    start(&r, SMALL "fill=normal");
    uint16_t *c = r.c.tensors.kv_c.data;
    for (int64_t j = 1; j < 600; j++)
        memcpy(c + j * 64, c, 64 * sizeof *c);
    compute(&r, MLA_ROUTE_AUTO, MLA_PRECISION_FP32);
    assert_int_equal(judge(&r), MLA_MISTRUSTED);
    done(&r);
}

/* A key that holds NaN: rows that see it must be NaN; other rows of that request may, others
 * not. */
static void non_finite_keys(void **state)
{
    (void)state;
    struct run r;
    make(&r, SMALL "seed=6");
    uint16_t *c = r.c.tensors.kv_c.data;
    c[290 * 64 + 3] = 0x7FC0; /* request 0, key 290: queries 30 to 39 see it */
    compute(&r, MLA_ROUTE_AUTO, MLA_PRECISION_FP32);
    assert_true(isnan(*value(&r, 30, 0, 0)) && !isnan(*value(&r, 29, 0, 0)));
    assert_int_equal(judge(&r), MLA_PASS);
    *value(&r, 30, 0, 0) = INFINITY; /* which of the two may depend on the order of sums */
    assert_int_equal(judge(&r), MLA_PASS);
    *value(&r, 29, 0, 0) = NAN;
    assert_int_equal(judge(&r), MLA_FAIL); /* never on the CPU */
    assert_int_equal(r.report.out.nonfinite, 1);
    r.options.nonfinite_may_spread = true;
    assert_int_equal(judge(&r), MLA_PASS);
    *value(&r, 35, 0, 0) = 1;
    assert_int_equal(judge(&r), MLA_FAIL);
    *value(&r, 35, 0, 0) = NAN;
    *value(&r, 50, 0, 0) = NAN;
    assert_int_equal(judge(&r), MLA_FAIL);
    assert_int_equal(r.report.out.nonfinite, 1);
    done(&r);

    /* NaN in every query: both sides agree, and nothing was compared. */
    make(&r, SMALL "seed=6");
    uint16_t *q = r.c.tensors.q_nope.data;
    for (int64_t i = 0; i < 80 * 4; i++)
        q[i * 32] = 0x7FC0;
    compute(&r, MLA_ROUTE_AUTO, MLA_PRECISION_FP32);
    assert_int_equal(judge(&r), MLA_WEAK);
    done(&r);
}

/* A row that sees no key has lse -inf, also beside a key that holds NaN. */
static void empty_rows_beside_nan(void **state)
{
    (void)state;
    struct run r;
    make(&r, SMALL "seed=6 mask=1");
    uint16_t *c = r.c.tensors.kv_c.data;
    int32_t *mask = r.c.tensors.mask.data;
    c[20 * 64 + 3] = 0x7FC0;
    for (int64_t w = 0; w < 10; w++) {
        mask[0 * 10 + w] = 0;
        mask[1 * 10 + w] = -1;
    }
    compute(&r, MLA_ROUTE_AUTO, MLA_PRECISION_FP32);
    float *lse = r.lse;
    assert_true(lse[0] == -INFINITY && isnan(lse[4]));
    assert_int_equal(judge(&r), MLA_PASS);
    lse[0] = NAN;
    assert_int_equal(judge(&r), MLA_FAIL);
    done(&r);
}

static void modes_and_samples(void **state)
{
    (void)state;
    struct run r;
    start(&r, SMALL "seed=7 fill=peaky");
    r.rounding[0].out = r.rounding[1].out = 0x1p-8; /* as if out were bf16 */
    for (int64_t i = 0; i < r.n * r.d; i++) {
        float *x = (float *)r.out + i; /* towards zero: within H, not what rounding does */
        *x *= 1 - 0x1p-8f;
    }
    r.options.mode = MLA_VERDICT_STRICT;
    assert_int_equal(judge(&r), MLA_FAIL);
    assert_true(r.report.out.bad == 0 && r.report.out.bad_z > 0);
    r.options.mode = MLA_VERDICT_DEFAULT;
    assert_int_equal(judge(&r), MLA_PASS);
    assert_non_null(strstr(r.report.reason, "warning"));
    r.options.mode = MLA_VERDICT_HARD;
    assert_int_equal(judge(&r), MLA_PASS);
    r.options.rows = 7;
    assert_int_equal(judge(&r), MLA_PASS);
    assert_int_equal(r.report.out.elements, 7 * 4 * 32);
    done(&r);
}

/* A sample of rows out of very many requests. */
static void many_requests(void **state)
{
    (void)state;
    struct run r;
    make(&r, "attend b=100000 sq=1 skv=2 hq=1 rank=2 nope=2 rope=0 v=2 dtype=f32");
    mla_rounding *rounding = malloc((size_t)r.c.problem.batch * sizeof *rounding);
    for (int64_t b = 0; b < r.c.problem.batch; b++)
        rounding[b] = mla_rounding_of(&r.c.problem, MLA_BACKEND_CPU, MLA_PRECISION_FP32,
                                      MLA_ROUTE_DENSE_MQA, MLA_F32);
    float *out = calloc((size_t)r.c.problem.batch * 2, sizeof *out);
    const struct mla_result result = {MLA_F32, MLA_F32, out, NULL, NULL};
    const struct mla_check_options options = {.context = context, .rounding = rounding, .rows = 2};
    assert_int_equal(mla_check_result(&r.c, &result, &options, &r.report), MLA_OK);
    assert_int_equal(r.report.verdict, MLA_FAIL);
    assert_int_equal(r.report.out.elements, 4);
    free(out);
    free(rounding);
    done(&r);
}

static void report_as_json(void **state)
{
    (void)state;
    struct run r;
    start(&r, SMALL "seed=8");
    *value(&r, 3, 0, 0) = INFINITY;
    assert_int_equal(judge(&r), MLA_FAIL);
    r.c.text[0] = '\0'; /* as for a file, which has no problem string */
    json_t *j = mla_check_json(&r.c, &r.options, &r.report);
    assert_non_null(j);
    assert_string_equal(json_string_value(json_object_get(j, "verdict")), "fail");
    assert_non_null(strstr(json_string_value(json_object_get(j, "problem")), "latent"));
    json_t *point = json_array_get(json_object_get(j, "points"), 0);
    assert_string_equal(json_string_value(json_object_get(point, "got")), "inf");
    assert_int_equal(json_integer_value(json_object_get(point, "row")), 3);
    char *text = json_dumps(j, 0);
    assert_non_null(text);
    free(text);
    json_decref(j);
    done(&r);
}

static void allocations_and_arguments(void **state)
{
    (void)state;
    struct run r;
    mla_context_options one = {MLA_BACKEND_CPU, 0, 1}; /* so that each allocation has its number */
    mla_context *single;
    assert_int_equal(mla_context_create(&one, &single), MLA_OK);
    start(&r, SMALL "seed=9 topk=40");
    r.options.context = single;
    mla_alloc_fail_at(0);
    assert_int_equal(judge(&r), MLA_PASS);
    int64_t count = mla_alloc_fail_at(0);
    assert_true(count > 5);
    int failures = 0;
    for (int64_t i = 1; i <= count; i += i < 40 ? 1 : count / 40 + 1) {
        mla_alloc_fail_at(i);
        mla_status status = mla_check_result(&r.c, &r.result, &r.options, &r.report);
        mla_alloc_fail_at(0);
        /* Words about clusters are done without where memory lacks. */
        assert_true(status == MLA_ERR_MEMORY || (status == MLA_OK && i > count - 8));
        failures += status != MLA_OK;
    }
    assert_true(failures > 5);
    r.options.rounding = NULL;
    assert_int_equal(mla_check_result(&r.c, &r.result, &r.options, &r.report), MLA_ERR_ARGUMENT);
    r.options.rounding = r.rounding;
    r.result.lse_dtype = MLA_BF16;
    assert_int_equal(mla_check_result(&r.c, &r.result, &r.options, &r.report), MLA_ERR_ARGUMENT);
    r.result.out = NULL;
    assert_int_equal(mla_check_result(&r.c, &r.result, &r.options, &r.report), MLA_ERR_ARGUMENT);
    mla_context_destroy(single);
    done(&r);
}

int main(int argc, char **argv)
{
    show = argc > 1 && strcmp(argv[1], "--show") == 0 ? stdout : NULL;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(spoilt_elements),
        cmocka_unit_test(clusters),
        cmocka_unit_test(hints),
        cmocka_unit_test(weak_and_mistrusted),
        cmocka_unit_test(non_finite_keys),
        cmocka_unit_test(empty_rows_beside_nan),
        cmocka_unit_test(modes_and_samples),
        cmocka_unit_test(many_requests),
        cmocka_unit_test(report_as_json),
        cmocka_unit_test(allocations_and_arguments),
        cmocka_unit_test(cpu_passes),
    };
    return cmocka_run_group_tests_name("check", tests, open_context, close_context);
}

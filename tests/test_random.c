/* SPDX-License-Identifier: Apache-2.0 */
/* Random problem strings over forms, dims, formats, visibility and fills: every admissible route in
 * fp64 against the oracle, in fp32 within the error bound. A failure prints the string that reruns
 * it. MLA_RANDOM_SEED and MLA_RANDOM_CASES widen the search by hand. */
// timeout: 300
#include "support.h"

#include "support_run.h"

#include "common/kernel.h"
#include "common/text.h"
#include "validation/check.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static int64_t from(uint64_t *seed, const int64_t *values, int64_t n)
{
    return values[mla_test_below(seed, n)];
}
#define FROM(seed, ...)                                                                            \
    from(seed, (const int64_t[]){__VA_ARGS__}, sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t))

static void random_batch(struct mla_text *t, uint64_t *seed, bool causal)
{
    int64_t requests = 1 + mla_test_below(seed, 4);
    mla_text_add(t, " batch=");
    for (int64_t b = 0; b < requests; b++) {
        int64_t query_len = FROM(seed, 0, 1, 1, 2, 5, 17, 33);
        int64_t context = FROM(seed, 0, 0, 1, 31, 64, 100);
        int64_t keys = mla_test_below(seed, 12) == 0 ? 0
                       : causal                      ? query_len + context
                                                     : 1 + context;
        mla_text_add(t, "%sq%lds%ld", b ? "," : "", (long)query_len, (long)keys);
    }
}

/* A problem string of every kind there is; the dims of packed formats are fixed by them. */
static void random_string(char *text, size_t bytes, uint64_t *seed)
{
    static const char *const forms[] = {"latent", "absorbed", "expanded"};
    static const char *const dtypes[] = {"bf16", "f16", "f32"};
    static const char *const fills[] = {"normal", "diffuse", "large", "counting", "needle", "peaky",
                                        "equal",  "huge",    "sink",  "cancel",   "masked"};
    struct mla_text t = {.at = text, .bytes = bytes};
    int form = (int)mla_test_below(seed, 3);
    bool causal = mla_test_below(seed, 4) != 0;
    mla_text_add(&t, "attend form=%s", forms[form]);
    random_batch(&t, seed, causal);
    int64_t heads = FROM(seed, 1, 2, 3, 4, 6, 12);
    mla_text_add(&t, " heads=%ld dtype=%s", (long)heads, dtypes[mla_test_below(seed, 3)]);
    int packed = form < 2 && mla_test_below(seed, 4) == 0;
    if (form == 2) {
        mla_text_add(&t, " heads_kv=%ld", (long)(heads % 2 ? 1 : FROM(seed, 1, 2, heads)));
        mla_text_add(&t, " kv_dtype=%s", dtypes[mla_test_below(seed, 3)]);
    }
    if (packed) {
        int64_t which = mla_test_below(seed, form == 1 ? 4 : 2);
        static const char *const names[] = {"fp8_ds_mla", "nvfp4_ds_mla", "model1", "v41"};
        mla_text_add(&t, " cache=%s page=%ld", names[which], (long)FROM(seed, 1, 2, 7, 64));
        if (which >= 2)
            mla_text_add(&t, " rope=0");
    } else {
        mla_text_add(&t, " rope=%ld", (long)FROM(seed, 0, 1, 8, 16));
        if (form < 2) {
            mla_text_add(&t, " rank=%ld cache=%s", (long)FROM(seed, 1, 5, 32, 48),
                         dtypes[mla_test_below(seed, 3)]);
            if (mla_test_below(seed, 2))
                mla_text_add(&t, " page=%ld", (long)FROM(seed, 1, 3, 16, 64));
        }
    }
    if (form != 1)
        mla_text_add(&t, " nope=%ld v=%ld", (long)FROM(seed, 1, 7, 16, 24),
                     (long)FROM(seed, 1, 5, 16, 32));
    switch (mla_test_below(seed, 4)) {
    case 0:
        mla_text_add(&t, " mask=1");
        break;
    case 1:
    case 2:
        mla_text_add(&t, " topk=%ld topk_lens=%d", (long)FROM(seed, 1, 3, 8, 33, 200),
                     (int)mla_test_below(seed, 2));
    }
    mla_text_add(&t, " causal=%d sink=%d base=%c fill=%s seed=%ld", causal,
                 (int)mla_test_below(seed, 2), "e2"[mla_test_below(seed, 2)],
                 fills[mla_test_below(seed, 11)], (long)mla_test_below(seed, 1000000));
}

/* |got - want| against the size of what is averaged: the largest |v|-ish output of the oracle. */
static void against_oracle(const struct mla_case *c, const struct run_options *o,
                           const struct run *oracle, const char *text)
{
    struct run r = run_case(c, o);
    double largest = 1, worst = 0;
    for (int64_t i = 0; i < r.rows * r.heads * r.dim; i++)
        if (isfinite(oracle->out[i]))
            largest = fmax(largest, fabs(oracle->out[i]));
    for (int64_t i = 0; i < r.rows * r.heads * r.dim; i++)
        if (isfinite(oracle->out[i]) && isfinite(r.out[i]))
            worst = fmax(worst, fabs(r.out[i] - oracle->out[i]) / largest);
        else
            assert_true(isnan(oracle->out[i]) ? isnan(r.out[i]) : r.out[i] == oracle->out[i]);
    if (worst > 1e-9)
        fail_msg("fp64 %s off by %g of the largest output: mla check --precision fp64 --route %s "
                 "'%s'",
                 mla_route_name(o->route), worst, mla_route_name(o->route), text);
    run_free(&r);
}

static void within_bound(const struct mla_case *c, const struct run_options *o, const char *text)
{
    struct run r = run_case(c, o);
    mla_context *context;
    mla_context_options threads = {.threads = 2};
    mla_rounding *rounding = calloc((size_t)c->problem.batch, sizeof *rounding);
    assert_non_null(rounding);
    assert_ok(mla_context_create(&threads, &context));
    for (int64_t b = 0; b < c->problem.batch; b++)
        rounding[b] =
            mla_rounding_of(&c->problem, MLA_BACKEND_CPU, o->precision, o->route, MLA_F32);
    struct mla_check_options options = {.context = context,
                                        .rounding = rounding,
                                        .mode = MLA_VERDICT_HARD,
                                        .name = "random"};
    struct mla_result result = {.out_dtype = MLA_F64,
                                .lse_dtype = MLA_F64,
                                .out = r.out,
                                .lse = r.lse,
                                .max_logits = r.max_logits};
    struct mla_check_report report;
    struct mla_case judged = *c;
    judged.problem.wants_lse = judged.problem.wants_max_logits = true;
    assert_ok(mla_check_result(&judged, &result, &options, &report));
    if (report.verdict == MLA_FAIL) {
        mla_check_print(stderr, &judged, &options, &report);
        fail_msg("rerun: mla check --route %s '%s'", mla_route_name(o->route), text);
    }
    free(rounding);
    mla_context_destroy(context);
    run_free(&r);
}

static void one_case(uint64_t *seed, int64_t *runs)
{
    char text[512];
    random_string(text, sizeof text, seed);
    struct mla_case c = run_make("%s", text);
    struct run_options naive = {.kernel = "naive_cpu", .precision = MLA_PRECISION_FP64};
    struct run oracle = run_case(&c, &naive);
    unsigned routes = run_routes(&c);
    assert_true(routes != 0);
    for (int route = MLA_ROUTE_AUTO; route <= MLA_ROUTE_DENSE_MQA; route++) {
        if (route != MLA_ROUTE_AUTO && !(routes & MLA_BIT(route)))
            continue;
        struct run_options o = {.route = (mla_route)route,
                                .precision = MLA_PRECISION_FP64,
                                .threads = 1 + route % 2};
        against_oracle(&c, &o, &oracle, text);
        o.precision = MLA_PRECISION_FP32;
        if (route != MLA_ROUTE_AUTO)
            within_bound(&c, &o, text);
        ++*runs;
    }
    run_free(&oracle);
    mla_case_free(&c);
}

static void test_random_strings(void **state)
{
    (void)state;
    const char *seed_text = getenv("MLA_RANDOM_SEED"), *cases_text = getenv("MLA_RANDOM_CASES");
    uint64_t seed = seed_text ? strtoull(seed_text, NULL, 10) : 20261122;
    int64_t cases = cases_text ? strtoll(cases_text, NULL, 10) : 250, runs = 0;
    for (int64_t i = 0; i < cases; i++)
        one_case(&seed, &runs);
    print_message("%lld problem strings, %lld runs\n", (long long)cases, (long long)runs);
    assert_true(runs > 2 * cases);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_random_strings)};
    return cmocka_run_group_tests_name("random", tests, NULL, NULL);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* Shared inputs of timings: whatever the order of problems, the tensors are what a plan may run on
 * (lists checked, values finite, outputs right), and growing or changing settings leaves no stale
 * bytes. On the CPU, where everything can be looked at. */
#include "support.h"

#include "common/kernel.h"
#include "common/status.h"
#include "common/tool/case.h"
#include "common/tool/pool.h"
#include "common/tool/timer.h"
#include "reference/reference.h"
#include "validation/check.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static mla_context *context;

static int set_up(void **state)
{
    (void)state;
    return mla_context_create(NULL, &context) != MLA_OK;
}

static int tear_down(void **state)
{
    (void)state;
    mla_context_destroy(context);
    return 0;
}

static void make(struct mla_pool *pool, const char *text, struct mla_case_spec *spec,
                 struct mla_pool_case *out)
{
    assert_ok(mla_case_spec_parse(spec, text));
    assert_true(mla_pool_takes(spec));
    assert_ok(mla_pool_make(pool, spec, out));
}

/* The case as the checker wants it; runs every admissible route and judges it. */
static void judge(struct mla_pool_case *made)
{
    bool complete[64];
    mla_problem *p = &made->problem;
    assert_in_range(p->batch, 1, 64);
    assert_ok(mla_tensors_check(p, &made->tensors, complete));
    for (int64_t b = 0; b < p->batch; b++)
        assert_int_equal(complete[b], made->complete[b]);
    p->out_dtype = MLA_F32;
    p->wants_lse = true;
    struct mla_case k = {.problem = *p, .tensors = made->tensors, .fill = "normal"};
    size_t rows = (size_t)(mla_total_q(p) * p->heads_q);
    float *out = malloc(rows * (size_t)mla_d_v(p) * sizeof *out), *lse = malloc(rows * sizeof *lse);
    assert_true(out && lse);
    for (int r = MLA_ROUTE_DENSE_MHA; r <= MLA_ROUTE_DENSE_MQA; r++) {
        mla_rounding rounding[64];
        mla_plan *plan;
        mla_plan_options o = {.route = (mla_route)r, .complete = made->complete};
        if (mla_plan_create(context, p, &o, &plan) != MLA_OK)
            continue;
        void *workspace = aligned_alloc(256, (mla_plan_workspace_bytes(plan) + 255) / 256 * 256);
        mla_tensors t = made->tensors;
        struct mla_check_report report;
        t.out.data = out;
        t.lse.data = lse;
        assert_ok(mla_run(plan, &t, workspace, mla_plan_workspace_bytes(plan), NULL));
        for (int64_t b = 0; b < p->batch; b++)
            rounding[b] =
                mla_rounding_of(p, MLA_BACKEND_CPU, MLA_PRECISION_FP32, (mla_route)r, MLA_F32);
        const struct mla_result result = {MLA_F32, MLA_F32, out, lse, NULL};
        const struct mla_check_options options = {.context = context,
                                                  .rounding = rounding,
                                                  .rows = 20,
                                                  .name = "pool"};
        assert_ok(mla_check_result(&k, &result, &options, &report));
        assert_int_equal(report.verdict == MLA_FAIL, 0);
        mla_plan_destroy(plan);
        free(workspace);
    }
    free(out);
    free(lse);
}

static void inputs_can_be_run(void **state)
{
    static const char *const texts[] = {
        "attend model=tiny batch=q40",
        "attend model=tiny batch=q300s2000,3q1s900 page=16",
        "attend model=tiny batch=q16 topk=0", /* smaller than what is there */
        "attend model=tiny batch=q900 heads=12 fill=sink",
        "attend form=absorbed model=tiny batch=5q2s1100 topk=64 sink=1",
        "attend form=expanded model=tiny batch=q70s90 topk=0",
        "attend heads=3 batch=2q4s5k cache=fp8_ds_mla page=64 topk=256",
        "attend heads=3 batch=q3s100 cache=nvfp4_ds_mla page=64 topk=0",
        "attend form=absorbed heads=3 rope=0 batch=2q2s300 cache=model1 page=64 topk=100",
        "attend model=tiny batch=q1030s2060,q40s40 dtype=f16",
        "attend model=tiny batch=q40",
    };
    (void)state;
    struct mla_pool *pool;
    assert_ok(mla_pool_new(context, &pool));
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        struct mla_case_spec spec;
        struct mla_pool_case made;
        make(pool, texts[i], &spec, &made);
        judge(&made);
        mla_problem_release(&spec.problem);
    }
    mla_pool_free(pool);
}

static void lists_go_by_position(void **state)
{
    (void)state;
    struct mla_pool *pool;
    struct mla_case_spec spec;
    struct mla_pool_case made;
    int32_t row[32];
    assert_ok(mla_pool_new(context, &pool));
    /* Row 1500 of a prefill is the only row of an extend that ends there. */
    make(pool, "attend model=tiny batch=q2000", &spec, &made);
    memcpy(row, (const int32_t *)made.tensors.topk_indices.data + (size_t)1500 * 32, sizeof row);
    mla_problem_release(&spec.problem);
    make(pool, "attend model=tiny batch=q1s1501", &spec, &made);
    assert_memory_equal(row, made.tensors.topk_indices.data, sizeof row);
    mla_problem_release(&spec.problem);
    /* Decodes of one length take different lists. */
    make(pool, "attend model=tiny batch=3q1s1501", &spec, &made);
    const int32_t *lists = made.tensors.topk_indices.data;
    assert_memory_equal(row, lists, sizeof row);
    assert_true(memcmp(lists, lists + 32, sizeof row) != 0);
    assert_true(memcmp(lists + 32, lists + 64, sizeof row) != 0);
    mla_problem_release(&spec.problem);
    /* Sink-like lists share keys between neighbours, random ones hardly any. */
    for (int sink = 0; sink < 2; sink++) {
        int shared = 0;
        make(pool,
             sink ? "attend model=tiny batch=2q1s4k fill=sink" : "attend model=tiny batch=q2s4k",
             &spec, &made);
        lists = made.tensors.topk_indices.data;
        for (int i = 0; i < 32; i++)
            for (int j = 0; j < 32; j++)
                shared += lists[i] == lists[32 + j];
        assert_true(sink ? shared > 8 : shared < 8);
        mla_problem_release(&spec.problem);
    }
    mla_pool_free(pool);
}

static void what_does_not_repeat_is_refused(void **state)
{
    static const char *const texts[] = {"attend model=tiny batch=q40 fill=needle",
                                        "attend model=tiny topk=0 mask=1 batch=q4",
                                        "attend model=tiny topk_lens=1 batch=q40",
                                        "attend model=tiny causal=0 batch=q4",
                                        "attend model=tiny holes=1 batch=q40"};
    (void)state;
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        struct mla_case_spec spec;
        assert_ok(mla_case_spec_parse(&spec, texts[i]));
        assert_false(mla_pool_takes(&spec));
        mla_problem_release(&spec.problem);
    }
}

static void times_are_times(void **state)
{
    (void)state;
    struct mla_pool *pool;
    struct mla_timer *timer;
    struct mla_case_spec spec;
    struct mla_pool_case made;
    mla_plan *plan;
    mla_index_args index;
    double seconds[9], few[] = {3, 1, 2, 10};
    struct mla_times t = mla_times_of(few, 4);
    assert_true(t.median == 2.5 && t.least == 1 && t.most == 10);
    assert_ok(mla_pool_new(context, &pool));
    assert_ok(mla_timer_new(context, &timer));
    make(pool, "attend model=tiny batch=q70,2q1s90", &spec, &made);
    made.problem.out_dtype = MLA_F32;
    assert_ok(mla_plan_create(context, &made.problem, NULL, &plan));
    assert_ok(mla_timer_take(timer, plan, &made.problem, &made.tensors));
    assert_ok(mla_timer_cold(timer, 9, seconds));
    for (int i = 0; i < 9; i++)
        assert_true(seconds[i] > 0 && seconds[i] < 60);
    assert_ok(mla_timer_warm(timer, 9, seconds));
    assert_ok(mla_pool_index(pool, &made.problem, &index));
    assert_ok(mla_timer_take_index(timer, &index));
    assert_ok(mla_timer_cold(timer, 2, seconds));
    mla_plan_destroy(plan);
    mla_timer_free(timer);
    mla_pool_free(pool);
    mla_problem_release(&spec.problem);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(inputs_can_be_run),
        cmocka_unit_test(lists_go_by_position),
        cmocka_unit_test(what_does_not_repeat_is_refused),
        cmocka_unit_test(times_are_times),
    };
    return cmocka_run_group_tests_name("pool", tests, set_up, tear_down);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* The front end as callers meet it: contexts, plans, kernel choice, description, misuse. */
#include "support.h"

#include "support_run.h"

#include "common/kernel.h"
#include "common/status.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* A mixed batch whose requests take four different routes at tiny sizes (topk 32). */
#define MIXED "attend model=tiny batch=q24,q80,q200,2q1s180 topk=32 seed=3"

static mla_context *new_context(void)
{
    mla_context *context;
    mla_context_options options = {.threads = 2};
    assert_ok(mla_context_create(&options, &context));
    return context;
}

static void test_contexts(void **state)
{
    (void)state;
    mla_context *context = (mla_context *)1;
    char text[256], tiny[6];
    assert_refused(mla_context_create(NULL, NULL), MLA_ERR_ARGUMENT, "out: got NULL");
    mla_context_options o = {.backend = (mla_backend)7};
    assert_refused(mla_context_create(&o, &context), MLA_ERR_ARGUMENT, "backend: got 7");
    assert_null(context);
    o = (mla_context_options){.device = -1};
    assert_refused(mla_context_create(&o, &context), MLA_ERR_ARGUMENT, "device: got -1");
    o = (mla_context_options){.threads = -1};
    assert_refused(mla_context_create(&o, &context), MLA_ERR_ARGUMENT, "threads: got -1");
    o = (mla_context_options){.threads = 5000};
    assert_refused(mla_context_create(&o, &context), MLA_ERR_ARGUMENT, "threads: got 5000");
#ifndef MLA_WITH_MODEL
    o = (mla_context_options){.backend = MLA_BACKEND_MODEL};
    assert_refused(mla_context_create(&o, &context), MLA_ERR_NO_DEVICE, "backend: got model");
#endif
    assert_null(context);
    assert_ok(mla_context_create(NULL, &context));
    size_t length = mla_context_describe(context, text, sizeof text);
    assert_int_equal(length, strlen(text));
    assert_true(length > 10);
    assert_int_equal(mla_context_describe(context, tiny, sizeof tiny), length);
    assert_int_equal(strlen(tiny), 5);
    assert_int_equal(mla_context_describe(NULL, text, sizeof text), 0);
    mla_context_destroy(context);
    mla_context_destroy(NULL);
    for (int64_t n = 1; n <= 1; n++) {
        mla_alloc_fail_at(n);
        assert_status(mla_context_create(NULL, &context), MLA_ERR_MEMORY);
        mla_alloc_fail_at(0);
        assert_null(context);
    }
}

static void test_kernel_table(void **state)
{
    (void)state;
    int count = mla_kernel_count();
    unsigned routes = 0;
    mla_kernel_info info;
    assert_true(count >= 4);
    for (int i = 0; i < count; i++) {
        assert_ok(mla_kernel_get(i, &info));
        assert_true(strlen(info.name) > 3 && strlen(info.routes) > 3 && strlen(info.forms) > 3);
        for (int route = MLA_ROUTE_DENSE_MHA; route <= MLA_ROUTE_DENSE_MQA; route++)
            if (info.backend == MLA_BACKEND_CPU && strstr(info.routes, mla_route_name(route)))
                routes |= MLA_BIT(route);
        if (info.backend == MLA_BACKEND_CPU) {
            assert_int_equal(info.proof, MLA_PROOF_CPU);
            assert_true(info.runnable);
        }
    }
    assert_int_equal(routes, MLA_BIT(MLA_ROUTE_DENSE_MHA) | MLA_BIT(MLA_ROUTE_MASKED_MHA) |
                                 MLA_BIT(MLA_ROUTE_SPARSE_MQA) | MLA_BIT(MLA_ROUTE_DENSE_MQA));
    assert_refused(mla_kernel_get(-1, &info), MLA_ERR_ARGUMENT, "i:");
    assert_refused(mla_kernel_get(count, &info), MLA_ERR_ARGUMENT, "i:");
    assert_refused(mla_kernel_get(0, NULL), MLA_ERR_ARGUMENT, "out: got NULL");
}

static void test_routes_of_a_mixed_batch(void **state)
{
    (void)state;
    static const mla_route want[] = {MLA_ROUTE_DENSE_MHA, MLA_ROUTE_MASKED_MHA,
                                     MLA_ROUTE_SPARSE_MQA, MLA_ROUTE_SPARSE_MQA,
                                     MLA_ROUTE_SPARSE_MQA};
    struct mla_case c = run_make(MIXED);
    mla_context *context = new_context();
    mla_plan *plan;
    mla_plan_options o = {.complete = c.complete};
    mla_request_info r;
    assert_ok(mla_plan_create(context, &c.problem, &o, &plan));
    for (int64_t i = 0; i < 5; i++) {
        assert_ok(mla_plan_request(plan, i, &r));
        if (r.route != want[i])
            print_error("request %d: %s (%s)\n", (int)i, mla_route_name(r.route), r.reason);
        assert_int_equal(r.route, want[i]);
        assert_true(r.flop > 0 && r.bytes > 0 && r.num_splits >= 1 && r.rows_per_pass >= 1);
        assert_true(r.workspace_bytes <= mla_plan_workspace_bytes(plan));
        assert_true(strstr(r.kernel, "_cpu") || strstr(r.kernel, "_avx2"));
    }
    assert_refused(mla_plan_request(plan, 5, &r), MLA_ERR_ARGUMENT, "i: got 5");
    assert_refused(mla_plan_request(plan, -1, &r), MLA_ERR_ARGUMENT, "i: got -1");
    assert_refused(mla_plan_request(NULL, 0, &r), MLA_ERR_ARGUMENT, "plan");
    assert_refused(mla_plan_request(plan, 0, NULL), MLA_ERR_ARGUMENT, "out");
    size_t length = mla_plan_describe(plan, NULL, 0);
    char *text = malloc(length + 1);
    assert_non_null(text);
    assert_int_equal(mla_plan_describe(plan, text, length + 1), length);
    assert_non_null(strstr(text, "masked-mha"));
    assert_int_equal(mla_plan_describe(NULL, text, length), 0);
    free(text);
    assert_int_equal(mla_plan_workspace_bytes(NULL), 0);
    mla_plan_destroy(plan);
    mla_plan_destroy(NULL);
    /* Without the answer about complete lists they are honoured: masked MHA for the first too. */
    assert_ok(mla_plan_create(context, &c.problem, NULL, &plan));
    assert_ok(mla_plan_request(plan, 0, &r));
    assert_int_equal(r.route, MLA_ROUTE_MASKED_MHA);
    mla_plan_destroy(plan);
    c.problem.indices_complete = true; /* a promise does the same as the answer */
    assert_ok(mla_plan_create(context, &c.problem, NULL, &plan));
    assert_ok(mla_plan_request(plan, 0, &r));
    assert_int_equal(r.route, MLA_ROUTE_DENSE_MHA);
    assert_ok(mla_plan_request(plan, 1, &r));
    assert_int_equal(r.route, MLA_ROUTE_MASKED_MHA);
    mla_plan_destroy(plan);
    mla_context_destroy(context);
    mla_case_free(&c);
}

/* A mixed batch in one run equals its requests one by one, bit by bit. */
static void test_batch_equals_single_requests(void **state)
{
    (void)state;
    struct mla_case c = run_make(MIXED);
    struct run whole = run_case(&c, NULL);
    const mla_problem *p = &c.problem;
    for (int64_t b = 0, kv_start = 0; b < p->batch; b++) {
        struct mla_case one = c;
        int64_t q0 = p->cu_seqlens_q[b], rows = p->cu_seqlens_q[b + 1] - q0;
        int32_t cu[] = {0, (int32_t)rows};
        one.problem.batch = 1;
        one.problem.cu_seqlens_q = cu;
        one.problem.seq_lens_kv = p->seq_lens_kv + b;
        one.complete = c.complete + b;
        mla_tensors *t = &one.tensors;
        int64_t heads = p->heads_q;
        t->q_nope.data = (uint16_t *)t->q_nope.data + q0 * heads * p->qk_nope_dim;
        t->q_pe.data = (uint16_t *)t->q_pe.data + q0 * heads * p->qk_rope_dim;
        t->kv_c.data = (uint16_t *)t->kv_c.data + kv_start * p->kv_lora_rank;
        t->k_pe.data = (uint16_t *)t->k_pe.data + kv_start * p->qk_rope_dim;
        t->topk_indices.data = (int32_t *)t->topk_indices.data + q0 * p->topk;
        struct run r = run_case(&one, NULL);
        assert_memory_equal(r.out, whole.out + q0 * heads * whole.dim,
                            (size_t)(rows * heads * whole.dim) * sizeof(double));
        assert_memory_equal(r.lse, whole.lse + q0 * heads, (size_t)(rows * heads) * sizeof(double));
        run_free(&r);
        kv_start += p->seq_lens_kv[b];
    }
    run_free(&whole);
    mla_case_free(&c);
}

static void test_thread_counts_and_limits_agree(void **state)
{
    (void)state;
    struct mla_case c = run_make(MIXED);
    struct run_options o = {.threads = 1};
    struct run one = run_case(&c, &o);
    for (int threads = 2; threads <= 5; threads++) {
        o.threads = threads;
        struct run many = run_case(&c, &o);
        assert_same_run(&one, &many);
        run_free(&many);
    }
    o.workspace_limit = 1; /* split over query rows, not refused */
    struct run split = run_case(&c, &o);
    assert_close_run(&split, &one, 1e-5);
    run_free(&split), run_free(&one);
    mla_case_free(&c);
}

static void test_named_kernels(void **state)
{
    (void)state;
    struct mla_case c = run_make(MIXED);
    struct run_options o = {.kernel = "sparse_mqa_cpu"};
    struct run a = run_case(&c, &o); /* every request by the one route the kernel serves */
    setenv("MLA_KERNEL", "sparse_mqa_cpu", 1);
    struct run b = run_case(&c, NULL);
    assert_same_run(&a, &b);
    setenv("MLA_KERNEL", "no_such_kernel", 1);
    assert_refused(run_status(&c, NULL), MLA_ERR_ARGUMENT, "kernel: got 'no_such_kernel'");
    assert_ok(run_status(&c, &o)); /* the option beats the environment */
    unsetenv("MLA_KERNEL");
    o.route = MLA_ROUTE_MASKED_MHA; /* never falls back */
    assert_refused(run_status(&c, &o), MLA_ERR_UNSUPPORTED, "does not serve this route");
    o = (struct run_options){.kernel = "dense_mha_cpu"};
    assert_refused(run_status(&c, &o), MLA_ERR_UNSUPPORTED, "no kernel of backend cpu takes");
    run_free(&a), run_free(&b);
    mla_case_free(&c);
}

static void test_plan_misuse(void **state)
{
    (void)state;
    mla_context *context = new_context();
    mla_problem p;
    mla_plan *plan = (mla_plan *)1;
    assert_ok(mla_problem_parse(&p, "attend model=tiny b=1 sq=3", NULL, 0));
    assert_refused(mla_plan_create(context, &p, NULL, NULL), MLA_ERR_ARGUMENT, "out");
    assert_refused(mla_plan_create(NULL, &p, NULL, &plan), MLA_ERR_ARGUMENT, "context");
    assert_null(plan);
    plan = (mla_plan *)1;
    assert_refused(mla_plan_create(context, NULL, NULL, &plan), MLA_ERR_ARGUMENT, "problem");
    assert_null(plan);
    mla_plan_options o = {.route = (mla_route)5};
    assert_refused(mla_plan_create(context, &p, &o, &plan), MLA_ERR_ARGUMENT, "route: got 5");
    o = (mla_plan_options){.precision = (mla_precision)2};
    assert_refused(mla_plan_create(context, &p, &o, &plan), MLA_ERR_ARGUMENT, "precision: got 2");
    o = (mla_plan_options){.num_splits = -2};
    assert_refused(mla_plan_create(context, &p, &o, &plan), MLA_ERR_ARGUMENT, "num_splits: got -2");
    o = (mla_plan_options){.num_splits = MLA_SPLITS_ALONE};
    assert_ok(mla_plan_create(context, &p, &o, &plan));
    mla_plan_destroy(plan);
    for (int64_t n = 1;; n++) {
        mla_alloc_fail_at(n);
        mla_status status = mla_plan_create(context, &p, NULL, &plan);
        mla_alloc_fail_at(0);
        if (status == MLA_OK) {
            assert_true(n > 3);
            break;
        }
        assert_int_equal(status, MLA_ERR_MEMORY);
        assert_null(plan);
    }
    mla_plan_destroy(plan);
    mla_problem_release(&p);
    mla_context_destroy(context);
}

static void test_run_misuse(void **state)
{
    (void)state;
    struct mla_case c = run_make("attend model=tiny b=1 sq=3 skv=9 out=f32");
    mla_context *context = new_context();
    mla_plan *plan;
    assert_ok(mla_plan_create(context, &c.problem, NULL, &plan));
    size_t bytes = mla_plan_workspace_bytes(plan);
    assert_true(bytes > 0);
    char *workspace = aligned_alloc(256, (bytes + 511) / 256 * 256);
    float out[3 * 4 * 32], lse[3 * 4];
    assert_non_null(workspace);
    for (size_t i = 0; i < sizeof out / sizeof *out; i++)
        out[i] = 77;
    mla_tensors t = c.tensors;
    t.out.data = out;
    t.lse.data = lse;
    assert_refused(mla_run(NULL, &t, workspace, bytes, NULL), MLA_ERR_ARGUMENT, "plan: got NULL");
    assert_refused(mla_run(plan, NULL, workspace, bytes, NULL), MLA_ERR_ARGUMENT, "tensors");
    assert_refused(mla_run(plan, &t, NULL, bytes, NULL), MLA_ERR_ARGUMENT, "workspace: got");
    assert_refused(mla_run(plan, &t, workspace + 8, bytes, NULL), MLA_ERR_ARGUMENT, "256 bytes");
    assert_refused(mla_run(plan, &t, workspace, bytes - 1, NULL), MLA_ERR_ARGUMENT,
                   "workspace_bytes: got");
    assert_refused(mla_run(plan, &t, workspace, bytes, &bytes), MLA_ERR_ARGUMENT, "stream");
    t.q_nope.data = NULL;
    assert_refused(mla_run(plan, &t, workspace, bytes, NULL), MLA_ERR_ARGUMENT, "q_nope: got NULL");
    t.q_nope = c.tensors.q_nope;
    t.lse.data = NULL;
    assert_refused(mla_run(plan, &t, workspace, bytes, NULL), MLA_ERR_ARGUMENT, "lse: got NULL");
    t.lse.data = lse;
    for (size_t i = 0; i < sizeof out / sizeof *out; i++)
        assert_true(out[i] == 77); /* nothing was written by any refused call */
    assert_ok(mla_run(plan, &t, workspace, bytes, NULL));
    for (size_t i = 0; i < sizeof out / sizeof *out; i++)
        assert_true(out[i] != 77 && isfinite(out[i]));
    free(workspace);
    mla_plan_destroy(plan);
    mla_context_destroy(context);
    mla_case_free(&c);
}

/* Tensors with gaps between rows and heads, lse as [H, T]: same numbers as packed ones. */
static void test_strides(void **state)
{
    (void)state;
    enum { T = 5, H = 4, DN = 32, DV = 32, PAD = 7 };
    struct mla_case c = run_make("attend model=tiny b=1 sq=5 skv=9 dtype=f32");
    struct run packed = run_case(&c, NULL);
    mla_context *context = new_context();
    mla_plan *plan;
    assert_ok(mla_plan_create(context, &c.problem, NULL, &plan));
    float *wide_q = malloc(T * H * (DN + PAD) * sizeof *wide_q), out[T * H * (DV + PAD)],
          lse[H * T];
    assert_non_null(wide_q);
    for (int i = 0; i < T * H; i++) {
        memcpy(wide_q + i * (DN + PAD), (float *)c.tensors.q_nope.data + i * DN, DN * 4);
        for (int d = DN; d < DN + PAD; d++)
            wide_q[i * (DN + PAD) + d] = NAN;
        for (int d = 0; d < DV + PAD; d++)
            out[i * (DV + PAD) + d] = 77;
    }
    mla_tensors t = c.tensors;
    t.q_nope = (mla_tensor){wide_q, {H * (DN + PAD), DN + PAD}};
    t.out = (mla_tensor){out, {H * (DV + PAD), DV + PAD}};
    t.lse = (mla_tensor){lse, {1, T}};
    size_t bytes = mla_plan_workspace_bytes(plan);
    void *workspace = aligned_alloc(256, (bytes + 255) / 256 * 256);
    assert_ok(mla_run(plan, &t, workspace, bytes, NULL));
    for (int i = 0; i < T * H; i++) {
        for (int d = 0; d < DV; d++)
            assert_true(out[i * (DV + PAD) + d] == packed.out[i * DV + d]);
        for (int d = DV; d < DV + PAD; d++)
            assert_true(out[i * (DV + PAD) + d] == 77);
        assert_true(lse[i % H * T + i / H] == (float)packed.lse[i]);
    }
    free(workspace);
    free(wide_q);
    mla_plan_destroy(plan);
    mla_context_destroy(context);
    run_free(&packed);
    mla_case_free(&c);
}

/* The plan keeps nothing of the caller's problem. */
static void test_plan_owns_its_lengths(void **state)
{
    (void)state;
    struct mla_case c = run_make("attend model=tiny batch=q3,q2s9");
    mla_context *context = new_context();
    mla_plan *plan;
    mla_request_info r;
    int32_t cu[] = {0, 3, 5}, kv[] = {3, 9};
    mla_problem p = c.problem;
    p.cu_seqlens_q = cu, p.seq_lens_kv = kv;
    assert_ok(mla_plan_create(context, &p, NULL, &plan));
    memset(cu, 0, sizeof cu), memset(kv, 0, sizeof kv);
    memset(&p, 0, sizeof p);
    assert_ok(mla_plan_request(plan, 1, &r));
    assert_int_equal(r.query_len, 2);
    assert_int_equal(r.seq_len_kv, 9);
    mla_plan_destroy(plan);
    mla_context_destroy(context);
    mla_case_free(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_contexts),
        cmocka_unit_test(test_kernel_table),
        cmocka_unit_test(test_routes_of_a_mixed_batch),
        cmocka_unit_test(test_batch_equals_single_requests),
        cmocka_unit_test(test_thread_counts_and_limits_agree),
        cmocka_unit_test(test_named_kernels),
        cmocka_unit_test(test_plan_misuse),
        cmocka_unit_test(test_run_misuse),
        cmocka_unit_test(test_strides),
        cmocka_unit_test(test_plan_owns_its_lengths),
    };
    return cmocka_run_group_tests_name("plan", tests, NULL, NULL);
}

// labels: fast
/* SPDX-License-Identifier: Apache-2.0 */
/* Running out of memory: every allocation of every call fails once. Each time the call says
 * MLA_ERR_MEMORY with a sentence, leaves no output behind, and works again afterwards. What leaks
 * is caught by the build with AddressSanitizer. */
#include "support.h"

#include "common/status.h"
#include "common/tool/case.h"
#include "validation/check.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char problem_text[] =
    "attend model=tiny batch=q3s5,q1s9,q0s4,q20 topk=6 page=4 fill=normal seed=11 sink=1";

/* What the attempts work on; made once, without failures. */
struct fixture {
    mla_context *context;
    struct mla_case c;
    char path[64];
    mla_plan_options plan_options;
    int64_t bad; /* elements that the comparison found without failures */
};

/* Runs attempt with each of its allocations failing in turn. An attempt frees what it made, and
 * checks by itself that a failing call left its outputs empty. */
static void exhaust_or(const char *name, mla_status (*attempt)(struct fixture *), struct fixture *f,
                       bool may_do_without)
{
    mla_alloc_fail_at(0);
    assert_ok(attempt(f));
    int64_t allocations = mla_alloc_fail_at(0);
    printf("%-28s %lld allocations\n", name, (long long)allocations);
    assert_true(allocations > 0);
    for (int64_t i = 1; i <= allocations; i++) {
        /* A sentence of another status first, so that an old one is not taken for new. */
        mla_fail(MLA_ERR_IO, "none");
        mla_alloc_fail_at(i);
        mla_status status = attempt(f);
        mla_alloc_fail_at(0);
        if (status == MLA_OK && may_do_without)
            continue;
        if (status != MLA_ERR_MEMORY || strcmp(mla_last_error(), "none") == 0)
            fail_msg("%s, allocation %lld of %lld failed: got %s and '%s', want MLA_ERR_MEMORY and "
                     "a sentence",
                     name, (long long)i, (long long)allocations, mla_status_name(status),
                     mla_last_error());
    }
    assert_ok(attempt(f));
}

static void exhaust(const char *name, mla_status (*attempt)(struct fixture *), struct fixture *f)
{
    exhaust_or(name, attempt, f, false);
}

/* ------------------------------------------------------------- the library */

static mla_status create_context(struct fixture *f)
{
    mla_context *context = (mla_context *)(void *)f; /* anything but NULL */
    mla_status status = mla_context_create(NULL, &context);
    assert_true((status == MLA_OK) == (context != NULL));
    mla_context_destroy(context);
    return status;
}

static mla_status parse_problem(struct fixture *f)
{
    (void)f;
    mla_problem problem;
    mla_status status = mla_problem_parse(&problem, "attend model=tiny batch=q3s5,2q1s9", NULL, 0);
    assert_true((status == MLA_OK) == (problem.storage != NULL));
    mla_problem_release(&problem);
    return status;
}

static mla_status create_plan(struct fixture *f)
{
    mla_plan *plan = (mla_plan *)(void *)f;
    mla_status status = mla_plan_create(f->context, &f->c.problem, &f->plan_options, &plan);
    assert_true((status == MLA_OK) == (plan != NULL));
    mla_plan_destroy(plan);
    return status;
}

static mla_status check_tensors(struct fixture *f)
{
    bool complete[8];
    assert_true(f->c.problem.batch <= 8);
    return mla_tensors_check(&f->c.problem, &f->c.tensors, complete);
}

static mla_status reference(struct fixture *f)
{
    const mla_problem *p = &f->c.problem;
    size_t rows = (size_t)p->cu_seqlens_q[p->batch] * (size_t)p->heads_q;
    size_t elements = rows * (size_t)p->v_dim;
    mla_rounding rounding[8];
    double *values = calloc(4 * elements + 4 * rows, sizeof *values), *at = values;
    assert_non_null(values);
    for (int64_t b = 0; b < p->batch; b++)
        rounding[b] =
            mla_rounding_of(p, MLA_BACKEND_CPU, MLA_PRECISION_FP32, MLA_ROUTE_MASKED_MHA, MLA_F32);
    mla_reference_args args = {.rounding = rounding};
    double **wide[] = {&args.out, &args.hard, &args.statistical, &args.sigma};
    double **narrow[] = {&args.lse, &args.max_logits, &args.lse_hard, &args.max_hard};
    for (int i = 0; i < 4; i++, at += elements)
        *wide[i] = at;
    for (int i = 0; i < 4; i++, at += rows)
        *narrow[i] = at;
    mla_status status = mla_reference(f->context, p, &f->c.tensors, &args);
    free(values);
    return status;
}

/* ------------------------------------------------------- cases and verdicts */

static mla_status make_case(struct fixture *f)
{
    (void)f;
    struct mla_case_spec spec;
    struct mla_case c;
    mla_status status = mla_case_spec_parse(&spec, problem_text);
    if (status != MLA_OK)
        return status;
    status = mla_case_make(&spec, &c);
    mla_problem_release(&spec.problem);
    if (status == MLA_OK)
        mla_case_free(&c);
    return status;
}

static mla_status load_case(struct fixture *f)
{
    struct mla_case c;
    mla_status status = mla_case_load(f->path, &c, NULL, NULL);
    if (status == MLA_OK)
        mla_case_free(&c);
    return status;
}

/* A write that fails leaves no file, whole or torn. */
static mla_status save_case(struct fixture *f)
{
    char path[80];
    snprintf(path, sizeof path, "%s.copy", f->path);
    mla_status status = mla_case_save(&f->c, path);
    assert_true((status == MLA_OK) == (access(path, F_OK) == 0));
    unlink(path);
    return status;
}

static mla_status judge(struct fixture *f)
{
    const mla_problem *p = &f->c.problem;
    size_t rows = (size_t)p->cu_seqlens_q[p->batch] * (size_t)p->heads_q;
    float *out = calloc(rows * (size_t)p->v_dim, sizeof *out);
    mla_rounding rounding[8];
    struct mla_check_report report;
    assert_non_null(out);
    for (int64_t b = 0; b < p->batch; b++)
        rounding[b] =
            mla_rounding_of(p, MLA_BACKEND_CPU, MLA_PRECISION_FP32, MLA_ROUTE_MASKED_MHA, MLA_F32);
    struct mla_result result = {.out_dtype = MLA_F32, .lse_dtype = MLA_F32, .out = out};
    struct mla_check_options options = {.context = f->context, .rounding = rounding};
    mla_status status = mla_check_result(&f->c, &result, &options, &report);
    /* Where bad elements cluster is advice: without memory it may be left out, but then the verdict
     * must stand all the same. out is all zeros, which is wrong nearly everywhere. */
    if (status == MLA_OK) {
        assert_int_equal(report.verdict, MLA_FAIL);
        if (f->bad == 0)
            f->bad = report.out.bad;
        assert_int_equal(report.out.bad, f->bad);
    }
    free(out);
    return status;
}

/* --------------------------------------------------------------- the tests */

static int setup(void **state)
{
    static struct fixture f;
    struct mla_case_spec spec;
    /* Dynamic allocations inside a parallel region would make the count depend on the team. */
    mla_context_options options = {.backend = MLA_BACKEND_CPU, .threads = 1};
    strcpy(f.path, "/tmp/mla-test-alloc-XXXXXX");
    int file = mkstemp(f.path);
    if (file < 0)
        return -1;
    close(file);
    assert_ok(mla_context_create(&options, &f.context));
    assert_ok(mla_case_spec_parse(&spec, problem_text));
    assert_ok(mla_case_make(&spec, &f.c));
    mla_problem_release(&spec.problem);
    assert_ok(mla_case_save(&f.c, f.path));
    *state = &f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    unlink(f->path);
    mla_case_free(&f->c);
    mla_context_destroy(f->context);
    return 0;
}

static void test_library(void **state)
{
    exhaust("mla_context_create", create_context, *state);
    exhaust("mla_problem_parse", parse_problem, *state);
    exhaust("mla_tensors_check", check_tensors, *state);
    exhaust("mla_reference", reference, *state);
}

static void test_plans(void **state)
{
    struct fixture *f = *state;
    char name[64];
    for (int route = MLA_ROUTE_AUTO; route <= MLA_ROUTE_SPARSE_MQA; route++) {
        if (route == MLA_ROUTE_DENSE_MHA)
            continue; /* the lists of this case leave keys out */
        for (int precision = MLA_PRECISION_FP32; precision <= MLA_PRECISION_FP64; precision++) {
            f->plan_options = (mla_plan_options){.route = (mla_route)route,
                                                 .precision = (mla_precision)precision};
            snprintf(name, sizeof name, "mla_plan_create %s fp%d", mla_route_name((mla_route)route),
                     precision == MLA_PRECISION_FP64 ? 64 : 32);
            exhaust(name, create_plan, f);
        }
    }
}

static void test_cases(void **state)
{
    exhaust("mla_case_make", make_case, *state);
    exhaust("mla_case_save", save_case, *state);
    exhaust("mla_case_load", load_case, *state);
    exhaust_or("mla_check_result", judge, *state, true); /* judge says what it does without */
}

/* mla_run must not allocate at all: with the very next allocation set to fail, it still runs, and
 * no allocation was asked for. */
static void test_run_allocates_nothing(void **state)
{
    struct fixture *f = *state;
    const mla_problem *p = &f->c.problem;
    size_t elements = (size_t)p->cu_seqlens_q[p->batch] * (size_t)p->heads_q * (size_t)p->v_dim;
    double *out = calloc(elements, sizeof *out), *lse = calloc(elements, sizeof *lse);
    assert_non_null(out);
    assert_non_null(lse);
    for (int route = MLA_ROUTE_AUTO; route <= MLA_ROUTE_SPARSE_MQA; route++) {
        if (route == MLA_ROUTE_DENSE_MHA)
            continue;
        mla_plan_options options = {.route = (mla_route)route};
        mla_plan *plan;
        mla_tensors tensors = f->c.tensors;
        tensors.out.data = out;
        tensors.lse.data = lse;
        tensors.max_logits.data = lse; /* not asked for, so not touched */
        assert_ok(mla_plan_create(f->context, p, &options, &plan));
        size_t bytes = mla_plan_workspace_bytes(plan);
        void *workspace = aligned_alloc(256, (bytes + 255) / 256 * 256 + 256);
        assert_non_null(workspace);
        mla_alloc_fail_at(1);
        mla_status status = mla_run(plan, &tensors, workspace, bytes, NULL);
        assert_int_equal(mla_alloc_fail_at(0), 0);
        assert_ok(status);
        free(workspace);
        mla_plan_destroy(plan);
    }
    free(out);
    free(lse);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_library),
        cmocka_unit_test(test_plans),
        cmocka_unit_test(test_cases),
        cmocka_unit_test(test_run_allocates_nothing),
    };
    return cmocka_run_group_tests_name("alloc", tests, setup, teardown);
}

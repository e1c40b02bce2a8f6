/* SPDX-License-Identifier: Apache-2.0 */
#include "support_run.h"

#include "common/format.h"
#include "common/route.h"
#include "support.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { GUARD = 64, POISON = 0xA5 };

struct mla_case run_make(const char *format, ...)
{
    char text[2048];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    struct mla_case_spec spec;
    struct mla_case c;
    assert_ok(mla_case_spec_parse(&spec, text));
    assert_ok(mla_case_make(&spec, &c));
    mla_problem_release(&spec.problem);
    return c;
}

/* An output of n elements between two guard zones, all poisoned. */
struct guarded {
    unsigned char *base;
    size_t bytes;
};

static void *guarded_new(struct guarded *g, int64_t n, size_t element)
{
    g->bytes = (size_t)n * element;
    g->base = malloc(g->bytes + 2 * GUARD);
    assert_non_null(g->base);
    memset(g->base, POISON, g->bytes + 2 * GUARD);
    return g->base + GUARD;
}

/* Checks guards and that each element was written, widens to double, frees. */
static double *guarded_take(struct guarded *g, mla_dtype dtype)
{
    size_t element = mla_dtype_bytes(dtype);
    int64_t n = (int64_t)(g->bytes / element);
    unsigned char poison[8];
    memset(poison, POISON, sizeof poison);
    double *wide = malloc((size_t)(n ? n : 1) * sizeof *wide);
    assert_non_null(wide);
    for (size_t i = 0; i < GUARD; i++) {
        assert_int_equal(g->base[i], POISON);
        assert_int_equal(g->base[GUARD + g->bytes + i], POISON);
    }
    for (int64_t i = 0; i < n; i++)
        if (memcmp(g->base + GUARD + (size_t)i * element, poison, element) == 0)
            fail_msg("element %lld was not written", (long long)i);
    mla_load_f64(dtype, g->base + GUARD, n, wide);
    free(g->base);
    return wide;
}

static mla_status make_plan(const struct mla_case *c, const mla_problem *problem,
                            const struct run_options *o, mla_context **context, mla_plan **plan)
{
    mla_context_options context_options = {.threads = o->threads};
    mla_plan_options plan_options = {
        .route = o->route,
        .kernel = o->kernel,
        .precision = o->precision,
        .workspace_limit_bytes = o->workspace_limit,
        .complete = c->complete,
    };
    *plan = NULL;
    mla_status status = mla_context_create(&context_options, context);
    return status == MLA_OK ? mla_plan_create(*context, problem, &plan_options, plan) : status;
}

static mla_status run_any(const struct mla_case *c, const struct run_options *o, struct run *r)
{
    static const struct run_options defaults;
    o = o ? o : &defaults;
    mla_problem problem = c->problem;
    problem.out_dtype = o->precision == MLA_PRECISION_FP64 ? MLA_F64 : MLA_F32;
    problem.wants_lse = problem.wants_max_logits = true;
    mla_dtype dtype = problem.out_dtype;
    mla_context *context = NULL;
    mla_plan *plan = NULL;
    mla_status status = make_plan(c, &problem, o, &context, &plan);
    if (status == MLA_OK) {
        struct guarded out, lse, max;
        *r = (struct run){.rows = mla_total_q(&problem),
                          .heads = problem.heads_q,
                          .dim = mla_d_v(&problem)};
        mla_tensors tensors = c->tensors;
        int64_t n = r->rows * r->heads;
        tensors.out = (mla_tensor){guarded_new(&out, n * r->dim, mla_dtype_bytes(dtype)), {0, 0}};
        tensors.lse = (mla_tensor){guarded_new(&lse, n, mla_dtype_bytes(dtype)), {0, 0}};
        tensors.max_logits = (mla_tensor){guarded_new(&max, n, mla_dtype_bytes(dtype)), {0, 0}};
        size_t bytes = mla_plan_workspace_bytes(plan);
        void *workspace = bytes ? aligned_alloc(256, (bytes + 255) / 256 * 256) : NULL;
        if (bytes) {
            assert_non_null(workspace);
            memset(workspace, POISON, bytes);
        }
        status = mla_run(plan, &tensors, workspace, bytes, NULL);
        free(workspace);
        if (status == MLA_OK) {
            r->out = guarded_take(&out, dtype);
            r->lse = guarded_take(&lse, dtype);
            r->max_logits = guarded_take(&max, dtype);
        } else {
            free(out.base), free(lse.base), free(max.base);
        }
    }
    mla_plan_destroy(plan);
    mla_context_destroy(context);
    return status;
}

struct run run_case(const struct mla_case *c, const struct run_options *options)
{
    struct run r = {0};
    assert_ok(run_any(c, options, &r));
    return r;
}

mla_status run_status(const struct mla_case *c, const struct run_options *options)
{
    struct run r = {0};
    mla_status status = run_any(c, options, &r);
    run_free(&r);
    return status;
}

void run_free(struct run *r)
{
    free(r->out);
    free(r->lse);
    free(r->max_logits);
    *r = (struct run){0};
}

static bool close_enough(double a, double b, double tolerance)
{
    if (isnan(a) || isnan(b))
        return isnan(a) && isnan(b);
    if (isinf(a) || isinf(b) || tolerance == 0)
        return a == b;
    return fabs(a - b) <= tolerance * (1 + fabs(b));
}

static void compare(const char *what, const double *a, const double *b, const struct run *r,
                    int64_t dim, double tolerance, const char *file, int line)
{
    for (int64_t i = 0; i < r->rows * r->heads * dim; i++) {
        if (close_enough(a[i], b[i], tolerance))
            continue;
        print_error("%s[row %lld, head %lld, dim %lld]: %.17g and %.17g differ by %g, allowed %g\n",
                    what, (long long)(i / dim / r->heads), (long long)(i / dim % r->heads),
                    (long long)(i % dim), a[i], b[i], a[i] - b[i], tolerance * (1 + fabs(b[i])));
        _fail(file, line);
    }
}

void run_assert_close(const struct run *a, const struct run *b, double tolerance, const char *file,
                      int line)
{
    _assert_true(a->rows == b->rows && a->heads == b->heads && a->dim == b->dim, "same shape", file,
                 line);
    compare("out", a->out, b->out, a, a->dim, tolerance, file, line);
    compare("lse", a->lse, b->lse, a, 1, tolerance, file, line);
    compare("max_logits", a->max_logits, b->max_logits, a, 1, tolerance, file, line);
}

unsigned run_routes(const struct mla_case *c)
{
    unsigned routes = 0;
    bool complete = c->complete && c->problem.topk > 0;
    for (int64_t b = 0; complete && b < c->problem.batch; b++)
        complete = c->complete[b];
    for (int route = MLA_ROUTE_DENSE_MHA; route <= MLA_ROUTE_DENSE_MQA; route++)
        if (mla_route_admissible(&c->problem, (mla_route)route, complete, NULL))
            routes |= MLA_BIT(route);
    return routes;
}

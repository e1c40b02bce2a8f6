/* SPDX-License-Identifier: Apache-2.0 */
/* mla run: computes attention and writes a result file. */
#include "command.h"
#include "result_file.h"

#include "common/kernel.h"
#include "common/status.h"

#include <string.h>

struct run_options {
    struct compute compute;
    bool bound, max_logits, explain;
    const char *out;
};

static void explain(const mla_request_info *requests, int64_t n)
{
    printf("%-8s %7s %8s  %-10s  %-20s %10s %9s %12s %6s %6s  %s\n", "request", "queries", "keys",
           "route", "kernel", "GFLOP", "MB", "workspace-MB", "splits", "rows", "why");
    for (int64_t i = 0; i < n; i++) {
        const mla_request_info *r = &requests[i];
        printf("%-8lld %7lld %8lld  %-10s  %-20s %10.4g %9.4g %12.4g %6lld %6lld  %s\n",
               (long long)i, (long long)r->query_len, (long long)r->seq_len_kv,
               mla_route_name(r->route), r->kernel ? r->kernel : "-", r->flop * 1e-9,
               r->bytes * 1e-6, (double)r->workspace_bytes * 1e-6, (long long)r->num_splits,
               (long long)r->rows_per_pass, r->reason);
    }
}

/* The hard bound H of every element of out, for the route that each request took. */
static mla_status compute_bound(const struct compute *c, const struct mla_case *k,
                                const struct run_result *r, const mla_request_info *requests,
                                double **bound)
{
    const mla_problem *p = &k->problem;
    mla_rounding *rounding = mla_alloc((size_t)p->batch + 1, sizeof *rounding);
    *bound = mla_alloc((size_t)mla_out_elements(p) + 1, sizeof **bound);
    mla_status status = MLA_OK;
    if (!rounding || !*bound) {
        status = mla_fail(MLA_ERR_MEMORY, "bound: no memory for %lld elements",
                          (long long)mla_out_elements(p));
    } else {
        for (int64_t b = 0; b < p->batch; b++)
            rounding[b] =
                mla_rounding_of(p, c->chosen, c->precision_value, requests[b].route, r->out_dtype);
        mla_reference_args args = {.rounding = rounding, .hard = *bound};
        status = mla_reference(c->host, p, &k->tensors, &args);
    }
    mla_free(rounding);
    return status;
}

static mla_status run_and_save(const struct run_options *o, struct mla_case *k,
                               struct run_result *r, const mla_request_info *requests)
{
    const struct compute *c = &o->compute;
    const mla_problem *p = &k->problem;
    double *bound = NULL;
    mla_status status = mla_run_case(k, r);
    if (!status && o->bound)
        status = compute_bound(c, k, r, requests, &bound);
    if (!status) {
        const struct mla_result_file result = {.out_dtype = r->out_dtype,
                                               .lse_dtype = r->lse_dtype,
                                               .out = r->out,
                                               .lse = r->lse,
                                               .max_logits = r->max_logits,
                                               .bound = bound};
        status = mla_result_save(o->out, p, &result, c->chosen, requests);
    }
    mla_free(bound);
    if (!status) {
        double flop = 0;
        for (int64_t b = 0; b < p->batch; b++)
            flop += requests[b].flop;
        printf("wrote %s: out [%lld, %lld, %lld] %s, lse%s%s; %.4g GFLOP in %.3f s\n", o->out,
               (long long)mla_total_q(p), (long long)p->heads_q, (long long)mla_d_v(p),
               mla_dtype_name(r->out_dtype), o->max_logits ? ", max_logits" : "",
               o->bound ? ", bound" : "", flop * 1e-9, r->seconds);
    }
    return status;
}

static mla_status run_file(const struct run_options *o, struct mla_case *k)
{
    struct run_result r;
    mla_status status = mla_run_plan(&o->compute, k, o->max_logits, &r);
    mla_request_info *requests = NULL;
    if (!status) {
        requests = mla_alloc((size_t)k->problem.batch + 1, sizeof *requests);
        if (!requests)
            status = mla_fail(MLA_ERR_MEMORY, "requests: no memory for %lld",
                              (long long)k->problem.batch);
    }
    for (int64_t b = 0; !status && b < k->problem.batch; b++)
        status = mla_plan_request(r.plan, b, &requests[b]);
    if (!status && o->explain)
        explain(requests, k->problem.batch);
    if (!status && o->out)
        status = run_and_save(o, k, &r, requests);
    mla_free(requests);
    mla_run_free(&r);
    return status;
}

static int run_run(const struct command *command, int argc, char **argv)
{
    struct run_options o = {0};
    struct text_list files = {0};
    const struct option options[] = {
        {"output", 'o', OPTION_TEXT, &o.out, "OUT", "the result file"},
        COMPUTE_OPTIONS(o.compute),
        {"bound", 0, OPTION_FLAG, &o.bound, NULL, "also the error bound H of every element"},
        {"max-logits", 0, OPTION_FLAG, &o.max_logits, NULL, "also the largest logit of each row"},
        {"explain", 0, OPTION_FLAG, &o.explain, NULL,
         "prints each request's route, kernel, reason, FLOP, bytes, workspace"},
        {0},
    };
    int exit_status;
    if (!mla_options_read(command, options, argc, argv, &files, &exit_status))
        return exit_status;
    if (files.count != 1)
        exit_status = mla_usage(command,
                                "FILE: got %d of them, want one problem file or problem "
                                "string",
                                files.count);
    else if (!o.out && !o.explain)
        exit_status = mla_usage(command, "-o: got nothing, want the result file");
    else
        exit_status = mla_compute_words(command, &o.compute);
    if (!exit_status)
        exit_status = mla_compute_open(command, &o.compute);
    if (!exit_status) {
        struct mla_case k;
        mla_status status = mla_case_open(files.items[0], &k, mla_warning, NULL);
        if (!status) {
            mla_warnings_show(command);
            status = run_file(&o, &k);
            mla_case_free(&k);
        }
        if (status)
            exit_status = mla_report(command, status);
    }
    mla_compute_close(&o.compute);
    mla_options_free(options, &files);
    return exit_status;
}

const struct command mla_command_run = {
    "run",
    "FILE -o OUT [options]",
    "computes attention and writes out and lse",
    "FILE is a problem file or a problem string in quotes ('attend batch=q64 heads=16').\n"
    "Without -o, --explain only shows what would be done.",
    run_run,
};

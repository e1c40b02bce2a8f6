/* SPDX-License-Identifier: Apache-2.0 */
/* The shared front end: routes every request, walks the backend's kernel table, lays out the
 * workspace, runs. */
#include "backend.h"
#include "qualify.h"
#include "route.h"
#include "status.h"
#include "tensors.h"
#include "text.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

struct decision {
    const struct mla_kernel *kernel; /* NULL for a request without query rows */
    mla_route route;
    const char *reason;
    int64_t rows_per_pass;
    int64_t job; /* -1 without query rows */
};

struct mla_plan {
    const mla_context *context;
    mla_problem problem; /* lengths point into this plan */
    mla_precision precision;
    struct mla_request *requests; /* [batch], sorted by job */
    struct decision *decisions;   /* [batch], by request */
    struct mla_job *jobs;
    size_t *offsets; /* [num_jobs] of each job's part of the workspace */
    int64_t num_jobs;
    bool reads_lists;
    size_t workspace_bytes;
};

/* ---------------------------------------------------------------- choosing */

enum { FEW_REQUESTS = 64 };

struct chooser {
    const struct mla_backend_ops *ops;
    const mla_plan *plan;
    const mla_plan_options *options;
    const struct mla_kernel *named; /* NULL = free choice */
    char refusals[512];
};

static struct mla_job job_of(const mla_plan *plan, const mla_plan_options *options,
                             const struct mla_kernel *kernel, mla_route route)
{
    bool dense = route == MLA_ROUTE_DENSE_MHA || route == MLA_ROUTE_DENSE_MQA;
    return (struct mla_job){
        .context = plan->context,
        .problem = &plan->problem,
        .kernel = kernel,
        .route = route,
        .precision = plan->precision,
        .ignore_lists = dense && plan->problem.topk > 0,
        .wanted_splits = options->num_splits,
        .workspace_limit = options->workspace_limit_bytes,
        .num_splits = 1,
    };
}

static void refuse(struct chooser *c, const struct mla_kernel *kernel, mla_route route,
                   const char *why)
{
    struct mla_text t = {.at = c->refusals,
                         .bytes = sizeof c->refusals,
                         .used = strlen(c->refusals)};
    mla_text_add(&t, "%s%s (%s): %s", t.used ? "; " : "", kernel->name, mla_route_name(route), why);
}

static bool accepts(struct chooser *c, const struct mla_kernel *kernel, mla_route route,
                    const struct mla_request *request)
{
    const mla_problem *p = &c->plan->problem;
    char why[160] = "";
    if (!(kernel->routes & MLA_BIT(route))) {
        if (kernel == c->named)
            refuse(c, kernel, route, "the kernel does not serve this route");
        return false;
    }
    if (!(kernel->forms & MLA_BIT(p->form))) {
        snprintf(why, sizeof why, "form %s is not served", mla_form_name(p->form));
    } else if (p->form != MLA_FORM_EXPANDED && !(kernel->formats & MLA_BIT(p->cache_format))) {
        snprintf(why, sizeof why, "cache format %s is not served",
                 mla_cache_format_name(p->cache_format));
    } else if (kernel != c->named && !mla_kernel_trusted(c->plan->context, kernel)) {
        snprintf(why, sizeof why, "status is %s, and this device has no record of it (mla qualify)",
                 mla_proof_name(kernel->proof));
    } else {
        struct mla_job job = job_of(c->plan, c->options, kernel, route);
        job.named = kernel == c->named;
        job.requests = request;
        job.num_requests = 1;
        if (!kernel->supports || kernel->supports(&job, why, sizeof why))
            return true;
    }
    refuse(c, kernel, route, why);
    return false;
}

/* last_resort: which rows to look at, if none is named. */
static const struct mla_kernel *kernel_for(struct chooser *c, mla_route route, bool last_resort,
                                           const struct mla_request *request)
{
    if (c->named)
        return accepts(c, c->named, route, request) ? c->named : NULL;
    for (int k = 0; c->ops->kernels[k]; k++)
        if (c->ops->kernels[k]->last_resort == last_resort &&
            accepts(c, c->ops->kernels[k], route, request))
            return c->ops->kernels[k];
    return NULL;
}

/* The route with the least cost not tried yet, or MLA_ROUTE_AUTO. */
static mla_route next_best(const struct mla_route_choice *choice, unsigned tried)
{
    mla_route best = MLA_ROUTE_AUTO;
    for (int r = MLA_ROUTE_DENSE_MHA; r < MLA_ROUTES; r++)
        if (!(tried & MLA_BIT(r)) && isfinite(choice->cost[r]) &&
            (best == MLA_ROUTE_AUTO || choice->cost[r] < choice->cost[best]))
            best = (mla_route)r;
    return best;
}

static bool is_complete(const struct chooser *c, const struct mla_request *r)
{
    const mla_problem *p = &c->plan->problem;
    return p->topk > 0 && ((c->options->complete && c->options->complete[r->index]) ||
                           (p->indices_complete && r->seq_len_kv <= p->topk));
}

static mla_route forced_route(const mla_plan_options *o, const struct mla_request *r)
{
    return o->routes ? o->routes[r->index] : o->route;
}

/* The preferred route's kernel, or (any_route) another's, or at last a row that takes anything. */
static void find_kernel(struct chooser *c, const struct mla_route_choice *choice, bool any_route,
                        const struct mla_request *r, struct decision *d)
{
    mla_route wanted = d->route;
    for (int last = 0; !d->kernel && last < (c->named ? 1 : 2); last++) {
        unsigned tried = 0;
        for (mla_route route = wanted; !d->kernel && route != MLA_ROUTE_AUTO;) {
            d->kernel = kernel_for(c, route, last, r);
            d->route = route;
            tried |= MLA_BIT(route);
            route = any_route ? next_best(choice, tried) : MLA_ROUTE_AUTO;
        }
    }
    if (d->route != wanted)
        d->reason = c->named ? "the kernel that was named serves it"
                             : "no kernel takes the preferred route";
}

/* A kernel for the chosen route, or for the next best one. */
static mla_status decide_request(struct chooser *c, const struct mla_request *r,
                                 const struct mla_route_choice *choice, struct decision *d)
{
    const mla_problem *p = &c->plan->problem;
    mla_route forced = forced_route(c->options, r);
    *d = (struct decision){.route = choice->route,
                           .reason = choice->reason,
                           .rows_per_pass = choice->rows_per_pass,
                           .job = -1};
    if (forced != MLA_ROUTE_AUTO) {
        const char *why;
        if (!mla_route_admissible(p, forced, is_complete(c, r), &why))
            return mla_fail(MLA_ERR_UNSUPPORTED, "mla_plan_create: route: got %s, but %s",
                            mla_route_name(forced), why);
        d->route = forced;
        d->reason = "asked for";
    }
    if (r->query_len == 0)
        return MLA_OK;
    c->refusals[0] = '\0';
    find_kernel(c, choice, forced == MLA_ROUTE_AUTO, r, d);
    if (!d->kernel)
        return mla_fail(MLA_ERR_UNSUPPORTED,
                        "mla_plan_create: no kernel of backend %s takes request %" PRId64 ": %s",
                        mla_backend_name(c->ops->backend), r->index,
                        c->refusals[0] ? c->refusals : "none serves an admissible route");
    return MLA_OK;
}

/* The kernel that each route of a request would get; routes that none serves cost too much. */
static void find_jobs(struct chooser *c, const struct mla_request *r,
                      struct mla_route_choice *choice)
{
    bool any = false;
    c->refusals[0] = '\0';
    for (int route = MLA_ROUTE_DENSE_MHA; route < MLA_ROUTES; route++) {
        const struct mla_kernel *kernel = NULL;
        if (!isfinite(choice->cost[route]))
            continue;
        for (int last = 0; !kernel && last < 2; last++)
            kernel = kernel_for(c, (mla_route)route, last, r);
        for (int k = 0; kernel && c->ops->kernels[k]; k++)
            if (c->ops->kernels[k] == kernel)
                choice->job[route] = k + 1;
        any |= kernel != NULL;
    }
    for (int route = MLA_ROUTE_DENSE_MHA; any && route < MLA_ROUTES; route++)
        if (!choice->job[route])
            choice->cost[route] = INFINITY;
}

/* Routes of all requests: each by its own cost, then together. Which requests would share a job is
 * asked of few only: what a job costs more hardly counts among many. */
static mla_status decide(struct chooser *c, struct mla_request *requests,
                         struct decision *decisions)
{
    const mla_problem *p = &c->plan->problem;
    const struct mla_route_table *table = c->plan->context->crossovers
                                              ? c->plan->context->crossovers
                                              : mla_route_table_of(c->plan->context->backend);
    struct mla_route_choice *choices = mla_alloc((size_t)p->batch, sizeof *choices);
    bool *skip = mla_alloc((size_t)p->batch, sizeof *skip);
    mla_status status = MLA_OK;
    if (!choices || !skip)
        status = mla_fail(MLA_ERR_MEMORY, "mla_plan_create: cannot route %" PRId64 " requests",
                          p->batch);
    for (int64_t b = 0; status == MLA_OK && b < p->batch; b++) {
        const struct mla_request *r = &requests[b];
        mla_route_choose(p, r->query_len, r->seq_len_kv, is_complete(c, r), table,
                         c->options->workspace_limit_bytes, &choices[b]);
        skip[b] = r->query_len == 0 || forced_route(c->options, r) != MLA_ROUTE_AUTO;
        if (choices[b].measured && !skip[b] && !c->named && p->batch <= FEW_REQUESTS)
            find_jobs(c, r, &choices[b]);
    }
    if (status == MLA_OK && table->num_curves)
        mla_route_settle(choices, skip, p->batch);
    for (int64_t b = 0; status == MLA_OK && b < p->batch; b++)
        status = decide_request(c, &requests[b], &choices[b], &decisions[b]);
    mla_free(choices);
    mla_free(skip);
    return status;
}

static mla_status find_named(struct chooser *c)
{
    const char *name = c->options->kernel ? c->options->kernel : getenv("MLA_KERNEL");
    char known[512];
    struct mla_text t = {.at = known, .bytes = sizeof known};
    if (!name || !*name)
        return MLA_OK;
    for (int k = 0; c->ops->kernels[k]; k++) {
        if (strcmp(name, c->ops->kernels[k]->name) == 0) {
            c->named = c->ops->kernels[k];
            return MLA_OK;
        }
        mla_text_add(&t, "%s%s", k ? ", " : "", c->ops->kernels[k]->name);
    }
    return mla_fail(MLA_ERR_ARGUMENT,
                    "mla_plan_create: kernel: got '%s', want one of backend %s: %s", name,
                    mla_backend_name(c->ops->backend), known);
}

/* ---------------------------------------------------------------- creating */

static mla_status check_options(const mla_plan_options *o, int64_t batch)
{
    for (int64_t b = 0; o->routes && b < batch; b++)
        if ((unsigned)o->routes[b] >= MLA_ROUTES)
            return mla_fail(MLA_ERR_ARGUMENT,
                            "mla_plan_create: routes[%" PRId64 "]: got %d, want a mla_route", b,
                            (int)o->routes[b]);
    if (o->routes && o->route != MLA_ROUTE_AUTO)
        return mla_fail(MLA_ERR_ARGUMENT,
                        "mla_plan_create: route: got %s beside routes, want MLA_ROUTE_AUTO",
                        mla_route_name(o->route));
    if ((unsigned)o->route >= MLA_ROUTES)
        return mla_fail(MLA_ERR_ARGUMENT, "mla_plan_create: route: got %d, want a mla_route",
                        (int)o->route);
    if ((unsigned)o->precision > MLA_PRECISION_FP64)
        return mla_fail(MLA_ERR_ARGUMENT,
                        "mla_plan_create: precision: got %d, want MLA_PRECISION_FP32 or _FP64",
                        (int)o->precision);
    if (o->num_splits < MLA_SPLITS_ALONE || o->num_splits > 65536)
        return mla_fail(MLA_ERR_ARGUMENT,
                        "mla_plan_create: num_splits: got %" PRId64
                        ", want 0 to 65536 or MLA_SPLITS_ALONE",
                        o->num_splits);
    return MLA_OK;
}

/* The problem's own copy of the lengths, and the requests. */
static mla_status copy_problem(mla_plan *plan, const mla_problem *problem)
{
    int64_t batch = problem->batch;
    int32_t *lengths = mla_alloc((size_t)(2 * batch + 1), sizeof *lengths);
    plan->problem = *problem;
    plan->problem.storage = lengths;
    plan->requests = mla_alloc((size_t)batch, sizeof *plan->requests);
    plan->decisions = mla_alloc((size_t)batch, sizeof *plan->decisions);
    if (!lengths || !plan->requests || !plan->decisions)
        return mla_fail(MLA_ERR_MEMORY,
                        "mla_plan_create: cannot allocate a plan of %" PRId64 " requests", batch);
    plan->problem.cu_seqlens_q = lengths;
    plan->problem.seq_lens_kv = lengths + batch + 1;
    if (batch == 0)
        return MLA_OK;
    memcpy(lengths, problem->cu_seqlens_q, (size_t)(batch + 1) * sizeof *lengths);
    memcpy(lengths + batch + 1, problem->seq_lens_kv, (size_t)batch * sizeof *lengths);
    for (int64_t b = 0, kv_start = 0; b < batch; b++) {
        plan->requests[b] = (struct mla_request){
            .index = b,
            .q_start = lengths[b],
            .query_len = (int64_t)lengths[b + 1] - lengths[b],
            .kv_start = kv_start,
            .seq_len_kv = problem->seq_lens_kv[b],
        };
        kv_start += problem->seq_lens_kv[b];
    }
    return MLA_OK;
}

/* Requests of one route and kernel become one job; requests stay in batch order inside it. */
static mla_status group_requests(mla_plan *plan, const mla_plan_options *options,
                                 const struct mla_kernel *named)
{
    int64_t batch = plan->problem.batch, count = 0;
    for (int64_t b = 0; b < batch; b++) {
        struct decision *d = &plan->decisions[b];
        for (int64_t j = 0; d->kernel && j < plan->num_jobs && d->job < 0; j++)
            if (plan->jobs[j].kernel == d->kernel && plan->jobs[j].route == d->route)
                d->job = j;
        if (!d->kernel || d->job >= 0)
            continue;
        struct mla_job *jobs =
            mla_realloc(plan->jobs, (size_t)plan->num_jobs + 1, sizeof *plan->jobs);
        if (!jobs)
            return mla_fail(MLA_ERR_MEMORY, "mla_plan_create: cannot allocate a job");
        plan->jobs = jobs;
        d->job = plan->num_jobs++;
        jobs[d->job] = job_of(plan, options, d->kernel, d->route);
        jobs[d->job].named = d->kernel == named;
    }
    struct mla_request *sorted = mla_alloc((size_t)batch, sizeof *sorted);
    if (!sorted)
        return mla_fail(MLA_ERR_MEMORY, "mla_plan_create: cannot sort %" PRId64 " requests", batch);
    for (int64_t j = 0; j < plan->num_jobs; j++) {
        struct mla_job *job = &plan->jobs[j];
        int64_t first = count;
        for (int64_t b = 0; b < batch; b++) {
            const struct decision *d = &plan->decisions[b];
            if (d->job != j)
                continue;
            sorted[count++] = plan->requests[b];
            job->rows_per_pass =
                d->rows_per_pass > job->rows_per_pass ? d->rows_per_pass : job->rows_per_pass;
        }
        job->requests = sorted + first;
        job->num_requests = count - first;
    }
    mla_free(plan->requests);
    plan->requests = sorted;
    return MLA_OK;
}

/* Jobs run one after another and may share memory. If places of their own cost little, they get
 * them: what a job makes of lists then outlives the run (mla_tensors.same_lists). */
static void place_jobs(mla_plan *plan, size_t limit)
{
    const size_t little = (size_t)64 << 20;
    size_t total = 0, most = 0;
    for (int64_t j = 0; j < plan->num_jobs; j++) {
        size_t bytes = plan->jobs[j].workspace_bytes;
        plan->offsets[j] = total;
        total += (bytes + 255) / 256 * 256;
        most = bytes > most ? bytes : most;
    }
    bool own = plan->num_jobs == 1 || (!limit && (total <= little || total <= most + most / 4));
    plan->workspace_bytes = own && plan->num_jobs > 1 ? total : most;
    for (int64_t j = 0; j < plan->num_jobs; j++) {
        plan->jobs[j].alone = own;
        plan->offsets[j] = own ? plan->offsets[j] : 0;
    }
}

static mla_status prepare_jobs(mla_plan *plan, size_t limit)
{
    for (int64_t j = 0; j < plan->num_jobs; j++) {
        struct mla_job *job = &plan->jobs[j];
        mla_status status = job->kernel->prepare ? job->kernel->prepare(job) : MLA_OK;
        if (status != MLA_OK)
            return status;
        plan->reads_lists |= plan->problem.topk > 0 && !job->ignore_lists;
    }
    plan->offsets = mla_alloc((size_t)plan->num_jobs, sizeof *plan->offsets);
    if (!plan->offsets)
        return mla_fail(MLA_ERR_MEMORY, "mla_plan_create: cannot place %" PRId64 " jobs",
                        plan->num_jobs);
    place_jobs(plan, limit);
    return MLA_OK;
}

static mla_status build(mla_plan *plan, const mla_problem *problem, const mla_plan_options *options)
{
    struct chooser chooser = {.ops = mla_backend_ops_of(plan->context->backend),
                              .plan = plan,
                              .options = options};
    mla_status status = find_named(&chooser);
    if (status == MLA_OK)
        status = copy_problem(plan, problem);
    if (status == MLA_OK)
        status = decide(&chooser, plan->requests, plan->decisions);
    if (status == MLA_OK)
        status = group_requests(plan, options, chooser.named);
    return status == MLA_OK ? prepare_jobs(plan, options->workspace_limit_bytes) : status;
}

mla_status mla_plan_create(const mla_context *context, const mla_problem *problem,
                           const mla_plan_options *options, mla_plan **out)
{
    static const mla_plan_options defaults;
    if (!out)
        return mla_fail(MLA_ERR_ARGUMENT, "mla_plan_create: out: got NULL, want a pointer");
    *out = NULL;
    if (!context)
        return mla_fail(MLA_ERR_ARGUMENT, "mla_plan_create: context: got NULL, want a context");
    options = options ? options : &defaults;
    mla_status status = mla_problem_check(problem);
    if (status == MLA_OK)
        status = check_options(options, problem->batch);
    if (status != MLA_OK)
        return status;
    mla_plan *plan = mla_alloc(1, sizeof *plan);
    if (!plan)
        return mla_fail(MLA_ERR_MEMORY, "mla_plan_create: cannot allocate a plan");
    plan->context = context;
    plan->precision = options->precision;
    status = build(plan, problem, options);
    if (status != MLA_OK) {
        mla_plan_destroy(plan);
        return status;
    }
    *out = plan;
    return MLA_OK;
}

void mla_plan_destroy(mla_plan *plan)
{
    if (!plan)
        return;
    for (int64_t j = 0; j < plan->num_jobs; j++)
        if (plan->jobs[j].kernel->release)
            plan->jobs[j].kernel->release(&plan->jobs[j]);
    mla_free(plan->jobs);
    mla_free(plan->decisions);
    mla_free(plan->requests);
    mla_free(plan->offsets);
    mla_free(plan->problem.storage);
    mla_free(plan);
}

/* -------------------------------------------------------------- describing */

size_t mla_plan_workspace_bytes(const mla_plan *plan)
{
    return plan ? plan->workspace_bytes : 0;
}

mla_status mla_plan_request(const mla_plan *plan, int64_t i, mla_request_info *out)
{
    if (!plan || !out)
        return mla_fail(MLA_ERR_ARGUMENT, "mla_plan_request: %s: got NULL, want a pointer",
                        plan ? "out" : "plan");
    if (i < 0 || i >= plan->problem.batch)
        return mla_fail(MLA_ERR_ARGUMENT,
                        "mla_plan_request: i: got %" PRId64 ", want 0 to %" PRId64, i,
                        plan->problem.batch - 1);
    const mla_problem *p = &plan->problem;
    const struct decision *d = &plan->decisions[i];
    const struct mla_job *job = d->job >= 0 ? &plan->jobs[d->job] : NULL;
    int64_t query_len = (int64_t)p->cu_seqlens_q[i + 1] - p->cu_seqlens_q[i];
    int64_t rows = job ? job->rows_per_pass : 0;
    *out = (mla_request_info){
        .query_len = query_len,
        .seq_len_kv = p->seq_lens_kv[i],
        .route = d->route,
        .kernel = d->kernel ? d->kernel->name : "none",
        .reason = d->kernel ? d->reason : "no query tokens",
        .flop = mla_route_flop(p, d->route, query_len, p->seq_lens_kv[i]),
        .bytes = query_len ? mla_route_bytes(p, d->route, query_len, p->seq_lens_kv[i]) : 0,
        .num_splits = job ? job->num_splits : 1,
        .rows_per_pass = rows < query_len ? rows : query_len,
        .workspace_bytes = job ? job->workspace_bytes : 0,
    };
    if (query_len == 0)
        out->flop = 0;
    return MLA_OK;
}

size_t mla_plan_describe(const mla_plan *plan, char *text, size_t bytes)
{
    struct mla_text t = {.at = text, .bytes = bytes};
    if (bytes)
        text[0] = '\0';
    if (!plan)
        return 0;
    mla_text_add(&t,
                 "request query_len seq_len_kv route      kernel               splits rows/pass "
                 "     GFLOP       MB workspace MB  why\n");
    for (int64_t i = 0; i < plan->problem.batch; i++) {
        mla_request_info r;
        mla_plan_request(plan, i, &r);
        mla_text_add(&t,
                     "%7" PRId64 " %9" PRId64 " %10" PRId64 " %-10s %-20s %6" PRId64 " %9" PRId64
                     " %10.4g %8.4g %12.4g  %s\n",
                     i, r.query_len, r.seq_len_kv, mla_route_name(r.route), r.kernel, r.num_splits,
                     r.rows_per_pass, r.flop * 1e-9, r.bytes * 1e-6,
                     (double)r.workspace_bytes * 1e-6, r.reason);
    }
    return t.used;
}

/* ----------------------------------------------------------------- running */

mla_status mla_run(const mla_plan *plan, const mla_tensors *tensors, void *workspace,
                   size_t workspace_bytes, void *stream)
{
    if (!plan || !tensors)
        return mla_fail(MLA_ERR_ARGUMENT, "mla_run: %s: got NULL, want a pointer",
                        plan ? "tensors" : "plan");
    if (plan->context->backend == MLA_BACKEND_CPU && stream)
        return mla_fail(MLA_ERR_ARGUMENT, "mla_run: stream: got %p, want NULL on the CPU", stream);
    if (workspace_bytes < plan->workspace_bytes)
        return mla_fail(MLA_ERR_ARGUMENT,
                        "mla_run: workspace_bytes: got %zu, want at least %zu "
                        "(mla_plan_workspace_bytes)",
                        workspace_bytes, plan->workspace_bytes);
    if (plan->workspace_bytes && (!workspace || (uintptr_t)workspace % 256))
        return mla_fail(MLA_ERR_ARGUMENT,
                        "mla_run: workspace: got %p, want memory aligned to 256 bytes", workspace);
    mla_status status = mla_tensors_layout(&plan->problem, tensors, plan->reads_lists);
    for (int64_t j = 0; status == MLA_OK && j < plan->num_jobs; j++)
        status = plan->jobs[j].kernel->run(&plan->jobs[j], tensors,
                                           (char *)workspace + plan->offsets[j], stream);
    return status;
}

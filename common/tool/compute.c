/* SPDX-License-Identifier: Apache-2.0 */
/* What mla run, check and bench share: backend words, and one run of a case, on the host or on a
 * device. */
#include "command.h"
#include "device_case.h"

#include "common/kernel.h"
#include "common/route.h"
#include "common/status.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

double mla_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* "eager", "late" or "random:SEED". */
static bool read_splits(const char *text, int64_t *splits)
{
    char *end;
    *splits = strcmp(text, "alone") == 0 ? MLA_SPLITS_ALONE : 0;
    if (*splits || strcmp(text, "auto") == 0)
        return true;
    *splits = strtol(text, &end, 10);
    return end != text && *end == '\0' && *splits > 0 && *splits <= 65536;
}

static bool is_schedule(const char *text)
{
    if (strcmp(text, "eager") == 0 || strcmp(text, "late") == 0)
        return true;
    if (strncmp(text, "random:", 7) != 0 || !text[7])
        return false;
    for (text += 7; *text; text++)
        if (!isdigit((unsigned char)*text))
            return false;
    return true;
}

int mla_compute_words(const struct command *command, struct compute *c)
{
    mla_backend backend;
    c->backend = c->backend ? c->backend : "cpu";
    if (strcmp(c->backend, "auto") != 0 && mla_backend_parse(c->backend, &backend) != MLA_OK)
        return mla_usage(command, "--backend: got '%.80s', want cpu, cuda, model or auto",
                         c->backend);
    if (c->route && mla_route_parse(c->route, &c->forced) != MLA_OK)
        return mla_usage(command,
                         "--route: got '%.80s', want auto, dense-mha, masked-mha, sparse-mqa or "
                         "dense-mqa",
                         c->route);
    if (c->precision && strcmp(c->precision, "fp64") == 0)
        c->precision_value = MLA_PRECISION_FP64;
    else if (c->precision && strcmp(c->precision, "fp32") != 0)
        return mla_usage(command, "--precision: got '%.80s', want fp32 or fp64", c->precision);
    if (c->threads > 4096)
        return mla_usage(command, "--threads: got %lld, want 0 to 4096", (long long)c->threads);
    if (c->splits && !read_splits(c->splits, &c->num_splits))
        return mla_usage(command, "--splits: got '%.80s', want auto, alone or a number up to 65536",
                         c->splits);
    if (c->schedule && !is_schedule(c->schedule))
        return mla_usage(command, "--schedule: got '%.80s', want eager, late or random:SEED",
                         c->schedule);
    if (c->schedule && strcmp(c->backend, "model") != 0)
        return mla_usage(command, "--schedule: got it with --backend %s, want --backend model",
                         c->backend);
    return EXIT_DONE;
}

/* auto: a CUDA device if this build has the backend and the machine one, else the CPU. */
static mla_status open_backend(struct compute *c)
{
    mla_context_options options = {MLA_BACKEND_CUDA, 0, (int)c->threads};
    bool any = strcmp(c->backend, "auto") == 0;
    if (!any)
        mla_backend_parse(c->backend, &options.backend);
    if (c->schedule) /* the model reads it at every launch */
        setenv("MLA_MODEL_SCHEDULE", c->schedule, 1);
    mla_status status = mla_context_create(&options, &c->context);
    if (status == MLA_ERR_NO_DEVICE && any) {
        options.backend = MLA_BACKEND_CPU;
        status = mla_context_create(&options, &c->context);
    }
    c->chosen = options.backend;
    return status;
}

int mla_compute_open(const struct command *command, struct compute *c)
{
    mla_context_options host = {MLA_BACKEND_CPU, 0, (int)c->threads};
    mla_status status = open_backend(c);
    if (!status)
        status = mla_context_create(&host, &c->host);
    return status ? mla_report(command, status) : EXIT_DONE;
}

void mla_compute_close(struct compute *c)
{
    mla_context_destroy(c->context);
    mla_context_destroy(c->host);
    c->context = c->host = NULL;
}

const char *mla_cpu_name(void)
{
    static char name[256] = "unknown CPU";
    FILE *file = fopen("/proc/cpuinfo", "r");
    char line[512];
    while (file && fgets(line, sizeof line, file))
        if (strncmp(line, "model name", 10) == 0 && strchr(line, ':')) {
            const char *value = strchr(line, ':') + 1;
            value += strspn(value, " \t");
            snprintf(name, sizeof name, "%.*s", (int)strcspn(value, "\n"), value);
            break;
        }
    if (file)
        fclose(file);
    return name;
}

void mla_gpu_state(const mla_context *context, char *text, size_t bytes)
{
    char command[256], line[256] = "";
    text[0] = '\0';
    if (context->backend != MLA_BACKEND_CUDA)
        return;
    snprintf(command, sizeof command,
             "nvidia-smi -i %d --format=csv,noheader --query-gpu=driver_version,clocks.sm,"
             "clocks.max.sm,clocks.mem,power.draw,temperature.gpu 2>/dev/null",
             context->device);
    FILE *file = popen(command, "r");
    bool read = file && fgets(line, sizeof line, file) && strchr(line, ',');
    if (file && pclose(file) != 0)
        read = false;
    if (read)
        snprintf(text, bytes, "driver, SM clock now, at most, memory clock, power, degrees: %.*s",
                 (int)strcspn(line, "\r\n"), line);
}

int64_t mla_out_elements(const mla_problem *p)
{
    return mla_total_q(p) * p->heads_q * mla_d_v(p);
}

mla_status mla_run_plan(const struct compute *c, struct mla_case *k, bool max_logits,
                        struct run_result *out)
{
    return mla_run_plan_routes(c, k, NULL, max_logits, out);
}

mla_status mla_run_plan_routes(const struct compute *c, struct mla_case *k, const mla_route *routes,
                               bool max_logits, struct run_result *out)
{
    mla_problem *p = &k->problem;
    memset(out, 0, sizeof *out);
    p->out_dtype = c->precision_value == MLA_PRECISION_FP64 ? MLA_F64 : MLA_F32;
    if (c->chosen != MLA_BACKEND_CPU)
        p->out_dtype = p->q_dtype;
    p->wants_lse = true;
    p->wants_max_logits = max_logits;
    out->context = c->context;
    out->out_dtype = p->out_dtype;
    out->lse_dtype = p->out_dtype == MLA_F64 ? MLA_F64 : MLA_F32;
    mla_plan_options options = {.route = routes ? MLA_ROUTE_AUTO : c->forced,
                                .routes = routes,
                                .kernel = c->kernel,
                                .precision = c->precision_value,
                                .num_splits = c->num_splits,
                                .complete = k->complete};
    return mla_plan_create(c->context, p, &options, &out->plan);
}

/* Outputs start as NaN, so that what a kernel leaves unwritten shows. */
static void *poisoned(int64_t elements, mla_dtype dtype)
{
    size_t bytes = mla_dtype_bytes(dtype);
    void *data = mla_alloc((size_t)elements + 1, bytes);
    if (data)
        memset(data, 0xFF, ((size_t)elements + 1) * bytes);
    return data;
}

mla_status mla_run_case(struct mla_case *k, struct run_result *r)
{
    const mla_problem *p = &k->problem;
    int64_t rows = mla_total_q(p) * p->heads_q;
    size_t bytes = mla_plan_workspace_bytes(r->plan);
    r->out = poisoned(mla_out_elements(p), r->out_dtype);
    r->lse = poisoned(rows, r->lse_dtype);
    if (p->wants_max_logits)
        r->max_logits = poisoned(rows, r->lse_dtype);
    if (r->context->backend == MLA_BACKEND_CUDA)
        bytes = 0;
    r->workspace = mla_alloc(bytes + 256, 1);
    if (!r->out || !r->lse || !r->workspace || (p->wants_max_logits && !r->max_logits))
        return mla_fail(
            MLA_ERR_MEMORY,
            "outputs: no memory for %lld rows of %lld values and %zu bytes of workspace",
            (long long)rows, (long long)mla_d_v(p), bytes);
    if (r->context->backend == MLA_BACKEND_CUDA) {
        const struct mla_device_outputs outputs = {r->out_dtype, r->lse_dtype, r->out, r->lse,
                                                   r->max_logits};
        mla_status status =
            mla_device_case_open(r->context->device, r->plan, k, &outputs, &r->device);
        if (status != MLA_OK)
            return status;
    }
    return mla_run_again(k, r);
}

mla_status mla_run_again(const struct mla_case *k, struct run_result *r)
{
    if (r->device)
        return mla_device_case_run(r->device, &r->seconds);
    char *workspace = r->workspace;
    workspace += (256 - (uintptr_t)workspace % 256) % 256;
    mla_tensors t = k->tensors;
    t.out.data = r->out;
    t.lse.data = r->lse;
    t.max_logits.data = r->max_logits;
    double start = mla_seconds();
    mla_status status = mla_run(r->plan, &t, workspace, mla_plan_workspace_bytes(r->plan), NULL);
    r->seconds = mla_seconds() - start;
    return status;
}

void mla_run_free(struct run_result *r)
{
    mla_device_case_free(r->device);
    mla_plan_destroy(r->plan);
    mla_free(r->out);
    mla_free(r->lse);
    mla_free(r->max_logits);
    mla_free(r->workspace);
    memset(r, 0, sizeof *r);
}

mla_route mla_loosest_route(const mla_problem *p, bool complete)
{
    /* MQA rounds once more (the latent output) and its absorbed queries meet longer keys; a masked
     * row has the same roundings as a dense one. */
    static const mla_route order[] = {MLA_ROUTE_SPARSE_MQA, MLA_ROUTE_DENSE_MQA,
                                      MLA_ROUTE_MASKED_MHA, MLA_ROUTE_DENSE_MHA};
    for (int i = 0; i < 4; i++)
        if (mla_route_admissible(p, order[i], complete, NULL))
            return order[i];
    return MLA_ROUTE_DENSE_MHA;
}

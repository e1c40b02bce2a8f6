/* SPDX-License-Identifier: Apache-2.0 */
/* mla bench: timings of problems on every route they admit, each judged on a sample of rows. */
#include "command.h"
#include "routes.h"

#include "bench/bench.h"
#include "bench/yardstick.h"
#include "common/kernel.h"
#include "common/route.h"
#include "common/status.h"
#include "common/text.h"
#include "reference/reference.h"
#include "validation/check.h"

#include "mla_commit.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum {
    MAX_REPEATS = 1000,
    LONG_ENOUGH = 10, /* seconds after which a route is not run again */
    SAVE_SECONDS = 3
};

struct bench {
    const struct command *command;
    struct compute compute;
    struct text_list batches, configs;
    const char *model, *form, *heads, *topk, *fill, *cache, *page, *seed;
    const char *json, *routes, *from;
    struct text_list plots;
    int64_t repeats, rows, seconds;
    bool csv, unchecked, quick;
    /* running: */
    FILE *text;
    json_t *results;
    bool failed;
    struct route_bench by_route; /* with --routes or --plot */
    char about[256], state[256];
    double saved;
};

struct timing {
    const char *kernel;
    mla_route route; /* AUTO where requests took different ones */
    double median, least, flop, bytes, sgemm;
    int64_t runs;
    const char *checked; /* "ok", "weak", "mistrusted", "FAIL", "no" */
};

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* -------------------------------------------------------------------- one row */

static void print_legend(const struct bench *o)
{
    if (o->csv)
        fprintf(o->text, "kernel,route,median_us,min_us,runs,gflops,gbytes_per_s,sgemm_gflops,"
                         "sgemm_share,checked,problem\n");
    else
        fprintf(o->text,
                "%% GFLOP/s and GB/s count attention and projections (median time); %%sgemm is the "
                "share of a\n"
                "%% square fp32 sgemm timed beside the row; checked: a sample of rows against the "
                "fp64 reference\n"
                "%% %-15s %-10s %12s %12s %5s %9s %8s %7s %-10s  %s\n",
                "kernel", "route", "us(median)", "us(min)", "runs", "GFLOP/s", "GB/s", "%sgemm",
                "checked", "problem");
}

static void print_row(struct bench *o, const struct timing *t, const char *problem)
{
    double gflops = t->flop / t->median * 1e-9, gbytes = t->bytes / t->median * 1e-9;
    double share = t->sgemm > 0 ? gflops / t->sgemm : 0;
    if (o->csv)
        fprintf(o->text, "%s,%s,%.3f,%.3f,%lld,%.4g,%.4g,%.4g,%.4g,%s,\"%s\"\n", t->kernel,
                mla_route_name(t->route), t->median * 1e6, t->least * 1e6, (long long)t->runs,
                gflops, gbytes, t->sgemm, share, t->checked, problem);
    else
        fprintf(o->text, "  %-15s %-10s %12.1f %12.1f %5lld %9.4g %8.3g %6.1f%% %-10s  %s\n",
                t->kernel, mla_route_name(t->route), t->median * 1e6, t->least * 1e6,
                (long long)t->runs, gflops, gbytes, 100 * share, t->checked, problem);
    fflush(o->text);
    if (o->results)
        json_array_append_new(
            o->results,
            json_pack("{s:s, s:s, s:s, s:f, s:f, s:I, s:f, s:f, s:f, s:f, s:f, s:s}", "problem",
                      problem, "kernel", t->kernel, "route", mla_route_name(t->route), "median_us",
                      t->median * 1e6, "min_us", t->least * 1e6, "runs", (json_int_t)t->runs,
                      "flop", t->flop, "bytes", t->bytes, "gflops", gflops, "sgemm_gflops",
                      t->sgemm, "sgemm_share", share, "checked", t->checked));
}

/* Judges what the last run left. */
static mla_status check_timed(struct bench *o, const struct mla_case *k, const struct run_result *r,
                              const mla_request_info *requests, const char **verdict)
{
    static const char *const names[] = {"ok", "weak", "mistrusted", "FAIL"};
    const mla_problem *p = &k->problem;
    mla_rounding *rounding = mla_alloc((size_t)p->batch + 1, sizeof *rounding);
    struct mla_check_report report;
    if (!rounding)
        return mla_fail(MLA_ERR_MEMORY, "requests: no memory for %lld", (long long)p->batch);
    for (int64_t b = 0; b < p->batch; b++)
        rounding[b] = mla_rounding_of(p, o->compute.chosen, o->compute.precision_value,
                                      requests[b].route, r->out_dtype);
    const struct mla_result result = {r->out_dtype, r->lse_dtype, r->out, r->lse, r->max_logits};
    const struct mla_check_options options = {.context = o->compute.host,
                                              .rounding = rounding,
                                              .rows = o->rows,
                                              .name = "bench"};
    mla_status status = mla_check_result(k, &result, &options, &report);
    if (!status) {
        *verdict = names[report.verdict];
        o->failed |= report.verdict == MLA_FAIL;
    }
    mla_free(rounding);
    return status;
}

/* Times one route of one case: the run that allocated the outputs warms up. */
static mla_status time_route(struct bench *o, struct mla_case *k, const char *source)
{
    const mla_problem *p = &k->problem;
    struct timing t = {.kernel = "-", .checked = "no"};
    struct run_result r;
    double times[MAX_REPEATS], spent = 0, sgemm[2] = {0, 0};
    mla_status status = mla_run_plan(&o->compute, k, false, &r);
    mla_request_info *requests = mla_alloc((size_t)p->batch + 1, sizeof *requests);
    if (!status && !requests)
        status = mla_fail(MLA_ERR_MEMORY, "requests: no memory for %lld", (long long)p->batch);
    bool first = true;
    for (int64_t b = 0; !status && b < p->batch; b++) {
        status = mla_plan_request(r.plan, b, &requests[b]);
        if (status || !requests[b].kernel)
            continue;
        bool other = !first && (t.route != requests[b].route);
        t.kernel = other || (!first && strcmp(t.kernel, requests[b].kernel) != 0)
                       ? "several"
                       : requests[b].kernel;
        t.route = other ? MLA_ROUTE_AUTO : requests[b].route;
        t.flop += requests[b].flop;
        t.bytes += requests[b].bytes;
        if (other) /* stays so */
            t.kernel = "several";
        first = false;
    }
    if (!status)
        status = mla_run_case(k, &r);
    if (!status)
        status = mla_bench_yardstick((int)o->compute.threads, &sgemm[0]);
    while (!status && t.runs < o->repeats && (t.runs == 0 || spent < LONG_ENOUGH)) {
        status = mla_run_again(k, &r);
        times[t.runs++] = r.seconds;
        spent += r.seconds;
    }
    if (!status)
        status = mla_bench_yardstick((int)o->compute.threads, &sgemm[1]);
    if (!status && !o->unchecked)
        status = check_timed(o, k, &r, requests, &t.checked);
    if (!status) {
        qsort(times, (size_t)t.runs, sizeof *times, by_value);
        t.median = (times[t.runs / 2] + times[(t.runs - 1) / 2]) / 2;
        t.least = times[0];
        t.sgemm = sgemm[0] > sgemm[1] ? sgemm[0] : sgemm[1];
        print_row(o, &t, source);
    }
    mla_free(requests);
    mla_run_free(&r);
    return status;
}

/* Every admissible route, or the one asked for. */
static mla_status bench_source(struct bench *o, const char *source)
{
    struct mla_case k;
    if (o->by_route.routes)
        return mla_route_bench_add(&o->by_route, source);
    mla_status status = mla_case_open(source, &k, mla_warning, NULL);
    if (status)
        return status;
    mla_warnings_show(o->command);
    const char *shown = k.text && *k.text ? k.text : source;
    bool timed = false;
    for (int r = MLA_ROUTE_DENSE_MHA; r < MLA_ROUTES && !status && !o->compute.route; r++) {
        bool admissible = k.problem.batch > 0;
        for (int64_t b = 0; b < k.problem.batch; b++)
            admissible = admissible && mla_route_admissible(&k.problem, (mla_route)r,
                                                            k.complete && k.complete[b], NULL);
        if (!admissible)
            continue;
        o->compute.forced = (mla_route)r;
        status = time_route(o, &k, shown);
        timed = true;
    }
    if (!o->compute.route)
        o->compute.forced = MLA_ROUTE_AUTO;
    /* Chosen per request: where asked for, and beside the single routes of a mixed batch. */
    if (!status && (!timed || k.problem.batch > 1))
        status = time_route(o, &k, shown);
    mla_case_free(&k);
    return status;
}

/* ---------------------------------------------------------------- command */

/* Problem strings of a file, one a line, # comments. */
static mla_status bench_config(struct bench *o, const char *path)
{
    FILE *file = fopen(path, "r");
    char line[4096];
    mla_status status = MLA_OK;
    if (!file)
        return mla_fail(errno == ENOENT ? MLA_ERR_ARGUMENT : MLA_ERR_IO,
                        "--config: got '%.300s' (%s), want a file of problem strings", path,
                        strerror(errno));
    while (!status && fgets(line, sizeof line, file)) {
        line[strcspn(line, "#\r\n")] = '\0';
        const char *start = line + strspn(line, " \t");
        if (*start && strncmp(start, "attend", 6) != 0)
            status = mla_fail(MLA_ERR_ARGUMENT,
                              "--config: %.300s: got '%.60s', want a problem string that begins "
                              "with attend",
                              path, start);
        else if (*start)
            status = bench_source(o, start);
    }
    fclose(file);
    return status;
}

static mla_status bench_batch(struct bench *o, const char *batch)
{
    const struct {
        const char *key, *value;
    } words[] = {{"model", o->model}, {"batch", batch},  {"form", o->form},
                 {"heads", o->heads}, {"topk", o->topk}, {"fill", o->fill},
                 {"cache", o->cache}, {"page", o->page}, {"seed", o->seed}};
    char source[3072];
    struct mla_text t = {.at = source, .bytes = sizeof source};
    mla_text_add(&t, "attend");
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        for (const char *c = words[i].value; c && *c; c++)
            if (isspace((unsigned char)*c))
                return mla_fail(MLA_ERR_ARGUMENT, "--%s: got '%.80s', want one word without blanks",
                                words[i].key, words[i].value);
        if (words[i].value)
            mla_text_add(&t, " %s=%s", words[i].key, words[i].value);
    }
    if (t.used >= sizeof source)
        return mla_fail(MLA_ERR_ARGUMENT, "--batch: got %zu characters, want fewer", t.used);
    return bench_source(o, source);
}

static mla_status read_all(struct bench *o, const struct text_list *files)
{
    mla_status status = MLA_OK;
    for (int i = 0; i < files->count && !status; i++)
        status = bench_source(o, files->items[i]);
    for (int i = 0; i < o->configs.count && !status; i++)
        status = bench_config(o, o->configs.items[i]);
    for (int i = 0; i < o->batches.count && !status; i++)
        status = bench_batch(o, o->batches.items[i]);
    return status;
}

/* What --json writes, so far or at the end. */
static json_t *report_json(const struct bench *o, const char *after)
{
    json_t *root = json_pack("{s:s, s:s, s:s, s:s, s:o}", "version", mla_version(), "commit",
                             MLA_COMMIT, "cpu", mla_cpu_name(), "context", o->about, "results",
                             o->by_route.routes ? mla_route_bench_json(&o->by_route)
                                                : json_incref(o->results));
    if (*o->state)
        json_object_set_new(root, "clocks", json_string(o->state));
    if (*after)
        json_object_set_new(root, "clocks_after", json_string(after));
    return root;
}

/* A program that is killed leaves what it had measured some seconds before. */
static void save_rows(void *user)
{
    struct bench *o = user;
    double now = mla_seconds();
    if (now - o->saved < SAVE_SECONDS)
        return;
    o->saved = now;
    mla_json_write(o->command, report_json(o, ""), o->json);
}

static int run_all(struct bench *o, const struct text_list *files)
{
    char after[256] = "";
    mla_context_describe(o->compute.context, o->about, sizeof o->about);
    mla_gpu_state(o->compute.context, o->state, sizeof o->state);
    if (!o->csv)
        fprintf(o->text, "# mla %s, commit %s; %s\n# %s\n%s%s%s", mla_version(), MLA_COMMIT,
                mla_cpu_name(), o->about, *o->state ? "# " : "", o->state, *o->state ? "\n" : "");
    if (!o->by_route.routes)
        print_legend(o);
    mla_status status = read_all(o, files);
    struct stat info;
    bool fresh = o->json && strcmp(o->json, "-") != 0 && stat(o->json, &info) != 0;
    if (!status && o->by_route.routes) {
        o->by_route.text = o->text;
        o->by_route.save = fresh ? save_rows : NULL;
        o->by_route.user = o;
        o->saved = mla_seconds();
        status = mla_route_bench_run(&o->by_route);
        mla_gpu_state(o->compute.context, after, sizeof after);
        if (!o->csv && *after)
            fprintf(o->text, "# at the end: %s\n", after);
    }
    if (status) {
        if (fresh)
            remove(o->json); /* no output of a run that failed */
        return mla_report(o->command, status);
    }
    int exit_status = o->failed ? EXIT_OUTSIDE : EXIT_DONE;
    for (int i = 0; i < o->plots.count; i++) {
        int drawn = mla_route_plot(&o->by_route, o->about, o->plots.items[i]);
        exit_status = drawn ? drawn : exit_status;
    }
    if (o->json) {
        int written = mla_json_write(o->command, report_json(o, after), o->json);
        exit_status = written ? written : exit_status;
    }
    return exit_status;
}

static void add_ratio(const struct mla_bench_ratio *row, void *user)
{
    json_array_append_new(user,
                          json_pack("{s:s, s:s, s:i, s:f, s:f, s:f, s:i}", "kernel", row->kernel,
                                    "form", mla_form_name(row->form), "heads", row->heads, "gflops",
                                    row->gflops, "sgemm_gflops", row->sgemm, "sgemm_share",
                                    row->share, "steady", row->steady));
}

/* mla bench alone: the kernels as shares of sgemm. Tests check these kernels; the table doesn't. */
static int run_ratio(struct bench *o)
{
    fprintf(o->text, "# mla %s, commit %s; %s; results not checked here\n", mla_version(),
            MLA_COMMIT, mla_cpu_name());
    int exit_status = mla_bench_cpu_ratio(o->text, (int)o->compute.threads, (int)o->repeats,
                                          o->quick, add_ratio, o->results);
    if (exit_status) {
        fprintf(stderr, "mla bench: %s\n", mla_last_error());
        return exit_status;
    }
    if (!o->json)
        return EXIT_DONE;
    return mla_json_write(o->command,
                          json_pack("{s:s, s:s, s:s, s:O}", "version", mla_version(), "commit",
                                    MLA_COMMIT, "cpu", mla_cpu_name(), "ratios", o->results),
                          o->json);
}

/* Pictures of an earlier run. */
static int plot_from(struct bench *o)
{
    char about[256];
    int exit_status = mla_route_bench_load(&o->by_route, o->from, about, sizeof about);
    for (int i = 0; i < o->plots.count && !exit_status; i++)
        exit_status = mla_route_plot(&o->by_route, about, o->plots.items[i]);
    return exit_status;
}

static int run_bench(const struct command *command, int argc, char **argv)
{
    struct bench o = {.command = command, .repeats = 5, .rows = 16};
    struct text_list files = {0};
    const struct option options[] = {
        {"model", 0, OPTION_TEXT, &o.model, "NAME", "of --batch (default deepseek-v3.2)"},
        {"batch", 0, OPTION_LIST, &o.batches, "SPEC", "requests; may be repeated, a row each"},
        {"config", 0, OPTION_LIST, &o.configs, "FILE", "problem strings, one a line, # comments"},
        {"form", 0, OPTION_TEXT, &o.form, "FORM", "latent (default), absorbed or expanded"},
        {"heads", 0, OPTION_TEXT, &o.heads, "N", "query heads, in place of the model's"},
        {"topk", 0, OPTION_TEXT, &o.topk, "K", "listed keys a row, 0 = no lists"},
        {"fill", 0, OPTION_TEXT, &o.fill, "KIND", "as in mla make"},
        {"cache", 0, OPTION_TEXT, &o.cache, "FORMAT", "as in mla make"},
        {"page", 0, OPTION_TEXT, &o.page, "P", "as in mla make"},
        {"seed", 0, OPTION_TEXT, &o.seed, "N", "as in mla make"},
        COMPUTE_OPTIONS(o.compute),
        {"repeats", 0, OPTION_COUNT, &o.repeats, "N", "timed runs of a row (default 5)"},
        {"rows", 0, OPTION_COUNT, &o.rows, "N", "query rows judged after timing (default 16)"},
        {"no-check", 0, OPTION_FLAG, &o.unchecked, NULL, "judge nothing"},
        {"quick", 0, OPTION_FLAG, &o.quick, NULL, "of the sgemm table: fewer query rows"},
        {"csv", 0, OPTION_FLAG, &o.csv, NULL, "comma-separated values"},
        {"json", 0, OPTION_TEXT, &o.json, "FILE", "the same as JSON; - = stdout"},
        {"routes", 0, OPTION_TEXT, &o.routes, "LIST",
         "all, or routes: end to end and by part, unjudged"},
        {"plot", 0, OPTION_LIST, &o.plots, "FILE",
         "of --routes: .html, .svg, or .png through gnuplot"},
        {"from", 0, OPTION_TEXT, &o.from, "FILE", "with --plot: what --json wrote; times nothing"},
        {"seconds", 0, OPTION_COUNT, &o.seconds, "N",
         "of --routes: fewer runs, and at last fewer problems, so that all take so long"},
        {0},
    };
    int exit_status;
    if (!mla_options_read(command, options, argc, argv, &files, &exit_status))
        return exit_status;
    if (o.batches.count && !o.model)
        o.model = "deepseek-v3.2";
    bool problems = files.count || o.configs.count || o.batches.count;
    bool words = o.model || o.form || o.heads || o.topk || o.fill || o.cache || o.page || o.seed;
    if (o.routes || o.plots.count)
        o.by_route = (struct route_bench){.command = command,
                                          .compute = &o.compute,
                                          .routes = o.routes ? o.routes : "all",
                                          .repeats = o.repeats,
                                          .seconds = o.seconds,
                                          .csv = o.csv};
    if (o.from) {
        bool alone = o.plots.count && !problems && !words && !o.json && !o.routes;
        exit_status = alone ? plot_from(&o)
                            : mla_usage(command, "--from: got it %s, want it with --plot alone",
                                        o.plots.count ? "beside problems, --routes or --json"
                                                      : "without --plot");
        mla_route_bench_free(&o.by_route);
        mla_options_free(options, &files);
        return exit_status;
    }
    if (o.by_route.routes && !problems) {
        exit_status = mla_usage(command,
                                "--%s: got it without problems, want --batch, --config or "
                                "a problem",
                                o.routes ? "routes" : "plot");
    } else if (o.by_route.routes && o.compute.route) {
        exit_status = mla_usage(command, "--route: got it beside --routes, want one of the two");
    } else if (o.seconds && !o.by_route.routes) {
        exit_status = mla_usage(command, "--seconds: got it without --routes, want both");
    } else if (words && !o.batches.count) {
        exit_status = mla_usage(command, "--batch: got nothing, want "
                                         "[count]q<query_len>[k][s<kv_len>[k]],...");
    } else if (o.repeats < 1 || o.repeats > MAX_REPEATS) {
        exit_status = mla_usage(command, "--repeats: got %lld, want 1 to %d", (long long)o.repeats,
                                MAX_REPEATS);
    } else if (!problems && o.csv) {
        exit_status =
            mla_usage(command,
                      "--csv: got it without problems, want --batch, --config or a problem");
    } else {
        exit_status = mla_compute_words(command, &o.compute);
    }
    if (!exit_status && strcmp(o.compute.backend, "model") == 0)
        exit_status = mla_usage(command, "--backend: got model, whose times say nothing; want cpu, "
                                         "cuda or auto");
    if (!exit_status && o.by_route.routes)
        exit_status = mla_route_bench_words(&o.by_route);
    if (!exit_status)
        exit_status = mla_compute_open(command, &o.compute);
    if (!exit_status) {
        o.text = mla_text_open(o.json);
        o.results = json_array();
        if (!o.text || !o.results) {
            mla_usage(command, "--json: no memory");
            exit_status = EXIT_DEVICE;
        } else {
            exit_status = problems ? run_all(&o, &files) : run_ratio(&o);
        }
        mla_text_close(o.text);
        json_decref(o.results);
    }
    mla_route_bench_free(&o.by_route);
    mla_compute_close(&o.compute);
    mla_options_free(options, &files);
    return exit_status;
}

const struct command mla_command_bench = {
    "bench",
    "[--model NAME --batch SPEC... | --config FILE | 'attend ...'] [options]",
    "times every admissible route of problems",
    "Without a problem: the CPU kernels as shares of this machine's sgemm rate.\n"
    "A route runs once to warm up, then --repeats times, but no longer than 10 s.",
    run_bench,
};

/* SPDX-License-Identifier: Apache-2.0 */
/* mla bench --routes: timings of every admissible route, end to end and part by part. */
#include "routes.h"

#include "common/kernel.h"
#include "common/route.h"
#include "common/status.h"
#include "common/text.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MOST_REPEATS = 1000, WARM_RUNS = 10, LONG_ENOUGH = 5 /* seconds of one row's runs */ };

static volatile sig_atomic_t interrupted;

static void on_interrupt(int number)
{
    interrupted = 1;
    signal(number, SIG_DFL); /* the second one ends the program */
}

bool mla_route_bench_interrupted(void)
{
    return interrupted;
}

int mla_route_bench_words(struct route_bench *b)
{
    char list[128];
    char *save = NULL;
    snprintf(list, sizeof list, "%s", b->routes);
    b->wanted = 0;
    for (char *word = strtok_r(list, ",", &save); word; word = strtok_r(NULL, ",", &save)) {
        mla_route route;
        if (strcmp(word, "all") == 0)
            b->wanted = MLA_BIT(MLA_ROUTES) - 1;
        else if (mla_route_parse(word, &route) == MLA_OK)
            b->wanted |= MLA_BIT(route);
        else
            return mla_usage(b->command,
                             "--routes: got '%.80s', want all or a list of auto, dense-mha, "
                             "masked-mha, sparse-mqa, dense-mqa",
                             word);
    }
    if (!b->wanted || strlen(b->routes) >= sizeof list)
        return mla_usage(b->command, "--routes: got '%.80s', want all or a list of routes",
                         b->routes);
    b->start = mla_seconds();
    interrupted = 0;
    signal(SIGINT, on_interrupt);
    return EXIT_DONE;
}

void mla_route_bench_legend(const struct route_bench *b)
{
    if (b->csv)
        fprintf(b->text, "route,kernel,median_us,min_us,max_us,warm_us,tflops,gbytes_per_s,"
                         "of_fastest,parts,problem\n");
    else
        fprintf(b->text,
                "%% us: median of runs with the L2 cache flushed (device) with least and most; "
                "warm: mean back\n%% to back; x: times the fastest route that was forced; parts in "
                "us: gather and projections around\n%% attention, mask building. auto is what the "
                "library routes.\n%% %-10s %-22s %11s %11s %11s %11s %8s %6s  %s\n",
                "route", "kernel", "us(median)", "us(min)", "us(max)", "us(warm)", "TFLOP/s", "x",
                "parts");
}

/* ------------------------------------------------------------------ timing */

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static mla_status time_row(const struct route_bench *b, struct mla_case *k, struct run_result *r,
                           struct route_row *row)
{
    double times[MOST_REPEATS], spent = 0;
    int n = 0;
    mla_status status = mla_run_case(k, r); /* warms up, allocates */
    while (!status && n < b->repeats && (n < 2 || spent < LONG_ENOUGH) && !interrupted) {
        status = r->device ? mla_device_case_time(r->device, &r->seconds) : mla_run_again(k, r);
        times[n++] = r->seconds;
        spent += r->seconds;
    }
    if (status || n == 0)
        return status;
    qsort(times, (size_t)n, sizeof *times, by_value);
    row->median = (times[n / 2] + times[(n - 1) / 2]) / 2;
    row->least = times[0];
    row->most = times[n - 1];
    if (r->device && !interrupted) {
        status = mla_device_case_back_to_back(r->device, WARM_RUNS, &row->warm);
        if (!status)
            status = mla_device_case_parts(r->device, row->parts, &row->num_parts);
    }
    return status;
}

static void describe_run(const struct run_result *r, int64_t batch, struct route_row *row)
{
    struct mla_text t = {.at = row->kernel, .bytes = sizeof row->kernel};
    const char *last = NULL;
    for (int64_t i = 0; i < batch; i++) {
        mla_request_info info;
        if (mla_plan_request(r->plan, i, &info) != MLA_OK || info.query_len == 0)
            continue;
        if (!last || strcmp(last, info.kernel) != 0)
            mla_text_add(&t, "%s%s", last ? "+" : "", info.kernel);
        last = info.kernel;
        row->flop += info.flop;
        row->bytes += info.bytes;
        row->query_len += info.query_len;
        row->seq_len_kv += info.seq_len_kv;
    }
}

/* The word behind key= of a problem string, or the whole. */
static char *word_of(const char *problem, const char *key)
{
    const char *at = strstr(problem, key);
    at = at ? at + strlen(key) : problem;
    size_t length = strcspn(at, " ");
    char *word = mla_alloc(length + 1, 1);
    if (word)
        memcpy(word, at, length);
    return word;
}

static mla_status add_row(struct route_bench *b, struct mla_case *k, const char *problem,
                          mla_route route)
{
    struct route_row row = {.route = route, .heads = k->problem.heads_q};
    struct run_result r = {0};
    b->compute->forced = route;
    mla_status status = mla_run_plan(b->compute, k, false, &r);
    if (status == MLA_ERR_UNSUPPORTED) {
        fprintf(b->text, "skip %s: %s\n", mla_route_name(route), mla_last_error());
        mla_run_free(&r);
        return MLA_OK;
    }
    if (!status) {
        describe_run(&r, k->problem.batch, &row);
        status = time_row(b, k, &r, &row);
    }
    mla_run_free(&r);
    if (status || row.median <= 0)
        return status;
    struct route_row *more = mla_realloc(b->rows, (size_t)b->count + 1, sizeof *b->rows);
    if (more)
        b->rows = more;
    row.problem = mla_alloc(strlen(problem) + 1, 1);
    row.batch = word_of(problem, "batch=");
    if (!more || !row.problem || !row.batch) {
        mla_free(row.problem);
        mla_free(row.batch);
        return mla_fail(MLA_ERR_MEMORY, "routes: no memory for row %d", b->count);
    }
    memcpy(row.problem, problem, strlen(problem));
    b->rows[b->count++] = row;
    return MLA_OK;
}

static void print_rows(const struct route_bench *b, int first)
{
    double fastest = 0;
    for (int i = first; i < b->count; i++)
        if (b->rows[i].route != MLA_ROUTE_AUTO && (!fastest || b->rows[i].median < fastest))
            fastest = b->rows[i].median;
    if (!b->csv && first < b->count)
        fprintf(b->text, "%s\n", b->rows[first].problem);
    for (int i = first; i < b->count; i++) {
        const struct route_row *row = &b->rows[i];
        char parts[160] = "";
        struct mla_text t = {.at = parts, .bytes = sizeof parts};
        double x = fastest > 0 ? row->median / fastest : 1;
        for (int n = 0; n < row->num_parts; n++)
            mla_text_add(&t, "%s%s %.1f", n ? ", " : "", row->parts[n].name,
                         row->parts[n].seconds * 1e6);
        if (b->csv)
            fprintf(b->text, "%s,%s,%.2f,%.2f,%.2f,%.2f,%.4g,%.4g,%.4f,\"%s\",\"%s\"\n",
                    mla_route_name(row->route), row->kernel, row->median * 1e6, row->least * 1e6,
                    row->most * 1e6, row->warm * 1e6, row->flop / row->median * 1e-12,
                    row->bytes / row->median * 1e-9, x, parts, row->problem);
        else
            fprintf(b->text, "  %-10s %-22s %11.1f %11.1f %11.1f %11.1f %8.3g %6.2f  %s\n",
                    mla_route_name(row->route), row->kernel, row->median * 1e6, row->least * 1e6,
                    row->most * 1e6, row->warm * 1e6, row->flop / row->median * 1e-12, x, parts);
    }
    fflush(b->text);
}

static void progress(struct route_bench *b)
{
    double spent = mla_seconds() - b->start;
    b->batches_done++;
    b->batches_left--;
    if (isatty(STDERR_FILENO) && b->batches_left > 0)
        fprintf(stderr, "%lld of %lld problems, about %.0f s left\n", (long long)b->batches_done,
                (long long)(b->batches_done + b->batches_left),
                spent * (double)b->batches_left / (double)b->batches_done);
}

mla_status mla_route_bench_source(struct route_bench *b, const char *source)
{
    struct mla_case k;
    int first = b->count;
    if (interrupted)
        return MLA_OK;
    mla_status status = mla_case_open(source, &k, mla_warning, NULL);
    if (status)
        return status;
    mla_warnings_show(b->command);
    const char *shown = k.text && *k.text ? k.text : source;
    for (int route = MLA_ROUTE_DENSE_MHA; route <= MLA_ROUTES && !status; route++) {
        mla_route r = (mla_route)(route % MLA_ROUTES); /* AUTO last */
        bool admissible = k.problem.batch > 0 && (b->wanted & MLA_BIT(r));
        for (int64_t i = 0; i < k.problem.batch && r != MLA_ROUTE_AUTO; i++)
            admissible = admissible &&
                         mla_route_admissible(&k.problem, r, k.complete && k.complete[i], NULL);
        if (admissible && !interrupted)
            status = add_row(b, &k, shown, r);
    }
    b->compute->forced = MLA_ROUTE_AUTO;
    if (!status)
        print_rows(b, first);
    progress(b);
    mla_case_free(&k);
    return status;
}

json_t *mla_route_bench_json(const struct route_bench *b)
{
    json_t *rows = json_array();
    for (int i = 0; i < b->count; i++) {
        const struct route_row *r = &b->rows[i];
        json_t *parts = json_object();
        for (int n = 0; n < r->num_parts; n++)
            json_object_set_new(parts, r->parts[n].name, json_real(r->parts[n].seconds * 1e6));
        json_array_append_new(
            rows,
            json_pack("{s:s, s:s, s:s, s:I, s:I, s:I, s:f, s:f, s:f, s:f, s:f, s:f, s:o}",
                      "problem", r->problem, "route", mla_route_name(r->route), "kernel", r->kernel,
                      "heads", (json_int_t)r->heads, "query_tokens", (json_int_t)r->query_len,
                      "keys", (json_int_t)r->seq_len_kv, "median_us", r->median * 1e6, "min_us",
                      r->least * 1e6, "max_us", r->most * 1e6, "warm_us", r->warm * 1e6, "flop",
                      r->flop, "bytes", r->bytes, "parts_us", parts));
    }
    return rows;
}

void mla_route_bench_free(struct route_bench *b)
{
    for (int i = 0; i < b->count; i++) {
        mla_free(b->rows[i].problem);
        mla_free(b->rows[i].batch);
    }
    mla_free(b->rows);
    b->rows = NULL;
    b->count = 0;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* mla bench --routes: timings of every admissible route, end to end and part by part. */
#include "routes.h"

#include "input.h"
#include "pool.h"

#include "common/kernel.h"
#include "common/route.h"
#include "common/status.h"
#include "common/text.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    FEWEST = 3, /* runs that give a median */
    TURNS = 3,  /* of the ways to run a mixed batch */
    MOST_ROWS = MLA_ROUTES + 3,
    WARM_RUNS = 10, /* back to back, at most */
    LONG_ENOUGH = 5 /* seconds of one row's runs, where no time is given */
};

static volatile sig_atomic_t interrupted;

static void on_interrupt(int number)
{
    interrupted = 1;
    signal(number, SIG_DFL); /* the second one ends the program */
}

const char *mla_route_row_name(const struct route_row *row)
{
    static const char *const names[] = {NULL, "auto", "batch-wide", "indexer"};
    return row->way == WAY_FORCED ? mla_route_name(row->route) : names[row->way];
}

int mla_route_bench_words(struct route_bench *b)
{
    char list[128];
    char *save = NULL;
    snprintf(list, sizeof list, "%s", b->routes);
    b->wanted = 0;
    for (char *word = strtok_r(list, ",", &save); word; word = strtok_r(NULL, ",", &save)) {
        mla_route route;
        if (strcmp(word, "all") == 0) {
            b->wanted = MLA_BIT(MLA_ROUTES) - 1;
            b->batch_wide = true;
        } else if (strcmp(word, "batch-wide") == 0) {
            b->batch_wide = true;
        } else if (strcmp(word, "indexer") == 0) {
            b->indexer = true;
        } else if (mla_route_parse(word, &route) == MLA_OK) {
            b->wanted |= MLA_BIT(route);
        } else {
            return mla_usage(b->command,
                             "--routes: got '%.80s', want all or a list of auto, dense-mha, "
                             "masked-mha, sparse-mqa, dense-mqa, batch-wide, indexer",
                             word);
        }
    }
    if ((!b->wanted && !b->batch_wide && !b->indexer) || strlen(b->routes) >= sizeof list)
        return mla_usage(b->command, "--routes: got '%.80s', want all or a list of routes",
                         b->routes);
    interrupted = 0;
    signal(SIGINT, on_interrupt);
    return EXIT_DONE;
}

static void print_legend(const struct route_bench *b)
{
    if (b->csv)
        fprintf(b->text, "route,kernel,median_us,min_us,max_us,runs,warm_us,warm_min_us,"
                         "warm_max_us,shared_us,tflops,gbytes_per_s,of_fastest,parts,problem\n");
    else
        fprintf(
            b->text,
            "%% us: median, least and most of runs with the L2 cache flushed (device); warm: "
            "median back to back;\n%% shared: lists are those of the run before; x: times the "
            "fastest route that was forced. Parts in us:\n%% gather and projections around "
            "attention, mask building. auto: as the library routes each request;\n%% batch-wide: "
            "the longest prefill decides for all. Results are not checked here.\n"
            "%% %-10s %-26s %10s %10s %10s %10s %10s %8s %6s  %s\n",
            "route", "kernel", "us(median)", "us(min)", "us(max)", "us(warm)", "us(shared)",
            "TFLOP/s", "x", "parts");
}

/* ------------------------------------------------------------------ timing */

/* Runs that fit into a time, at least FEWEST and at most `most`. */
static int runs_in(double time, double run, int64_t most)
{
    double n = time / (run > 1e-7 ? run : 1e-7);
    most = most < MLA_TIMER_RUNS ? most : MLA_TIMER_RUNS;
    if (n >= (double)most)
        return (int)most;
    return n > FEWEST ? (int)n : most < FEWEST ? (int)most : FEWEST;
}

/* What the timer has taken, in about `time` seconds. Where that is hardly enough: three flushed
 * runs and the parts. */
static mla_status time_row(struct route_bench *b, double time, struct route_row *row, bool *tight)
{
    double times[MLA_TIMER_RUNS];
    bool device = b->compute->chosen == MLA_BACKEND_CUDA;
    mla_status status = mla_timer_cold(b->timer, 1, times);
    double first = times[0], flush = device ? 3e-4 : 0;
    *tight = time < 12 * (first + flush);
    row->runs = *tight ? FEWEST : runs_in(time * 0.6, first + flush, b->repeats);
    int more = *tight ? FEWEST - 1 : row->runs;
    if (!status)
        status = mla_timer_cold(b->timer, more, &times[row->runs - more]);
    if (!status)
        row->cold = mla_times_of(times, row->runs);
    if (status || !device)
        return status;
    if (!*tight) {
        int n = runs_in(time * 0.2, first, WARM_RUNS);
        status = mla_timer_warm(b->timer, n, times);
        if (!status)
            row->warm = mla_times_of(times, n);
    }
    if (!status && row->way != WAY_INDEXER)
        status = mla_timer_parts(b->timer, row->parts, &row->num_parts);
    return status;
}

/* What the plan keeps of its lists saves this much of the next layer's run. */
static mla_status time_shared(struct route_bench *b, double time, struct route_row *row)
{
    double times[MLA_TIMER_RUNS], own[MLA_TIMER_RUNS];
    bool mask = false;
    for (int i = 0; i < row->num_parts; i++)
        mask |= strcmp(row->parts[i].name, "mask") == 0;
    if (!mask)
        return MLA_OK; /* nothing was made of lists */
    /* In turns: clocks move while a device warms up. */
    int n = runs_in(time * 0.1, row->cold.median, row->runs);
    mla_status status = MLA_OK;
    for (int i = 0; i < n && !status; i++)
        for (int same = 0; same < 2 && !status; same++) {
            mla_timer_same_lists(b->timer, same == 1);
            status = mla_timer_cold(b->timer, 1, same ? &times[i] : &own[i]);
        }
    mla_timer_same_lists(b->timer, false);
    if (!status) {
        row->shared = mla_times_of(times, n).median;
        row->unshared = mla_times_of(own, n).median;
    }
    return status;
}

static void describe_run(const mla_plan *plan, int64_t batch, struct route_row *row)
{
    struct mla_text t = {.at = row->kernel, .bytes = sizeof row->kernel};
    row->kernel[0] = '\0';
    for (int64_t i = 0; i < batch; i++) {
        mla_request_info info;
        if (mla_plan_request(plan, i, &info) != MLA_OK || info.query_len == 0)
            continue;
        if (!strstr(row->kernel, info.kernel))
            mla_text_add(&t, "%s%s", t.used ? "+" : "", info.kernel);
        row->flop += info.flop;
        row->bytes += info.bytes;
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

static mla_status keep_row(struct route_bench *b, const struct mla_input *in, struct route_row row)
{
    struct route_row *more = mla_realloc(b->rows, (size_t)b->count + 1, sizeof *b->rows);
    if (more)
        b->rows = more;
    size_t length = strlen(in->text);
    row.problem = mla_alloc(length + 1, 1);
    row.batch = word_of(in->text, "batch=");
    if (!more || !row.problem || !row.batch) {
        mla_free(row.problem);
        mla_free(row.batch);
        return mla_fail(MLA_ERR_MEMORY, "routes: no memory for row %d", b->count);
    }
    memcpy(row.problem, in->text, length);
    row.order = b->count;
    b->rows[b->count++] = row;
    return MLA_OK;
}

/* The plan of a way to run a batch. */
static mla_status plan_of(const struct route_bench *b, const struct mla_input *in,
                          enum route_way way, mla_route route, mla_plan **plan)
{
    const mla_problem *p = &in->problem;
    if (way != WAY_BATCH_WIDE)
        return mla_input_plan(in, b->compute, route, NULL, plan);
    mla_route *routes = mla_alloc((size_t)p->batch, sizeof *routes);
    if (!routes)
        return mla_fail(MLA_ERR_MEMORY, "routes: no memory for %lld requests", (long long)p->batch);
    mla_input_batch_wide(in, b->compute, routes);
    mla_status status = mla_input_plan(in, b->compute, route, routes, plan);
    mla_free(routes);
    return status;
}

/* Times one row. What does not fit, or has no kernel, is said and left out. */
static mla_status add_row(struct route_bench *b, const struct mla_input *in, double time,
                          enum route_way way, mla_route route, int64_t source)
{
    const mla_problem *p = &in->problem;
    struct route_row row = {.source = source,
                            .heads = p->heads_q,
                            .requests = p->batch,
                            .topk = p->topk,
                            .cache = mla_cache_format_name(p->cache_format),
                            .way = way,
                            .route = route,
                            .query_len = mla_total_q(p)};
    memcpy(row.fill, in->fill, sizeof row.fill);
    for (int64_t i = 0; i < p->batch; i++)
        row.seq_len_kv += p->seq_lens_kv[i];
    mla_plan *plan = NULL;
    mla_status status = MLA_OK;
    if (way == WAY_INDEXER) {
        mla_index_args args;
        snprintf(row.kernel, sizeof row.kernel, "mla_index_run");
        status = mla_pool_index(b->pool, p, &args);
        if (!status)
            status = mla_timer_take_index(b->timer, &args);
        for (int64_t i = 0; i < p->batch; i++)
            row.flop += 2.0 * 64 * 128 *
                        mla_pairs_dense(p, (int64_t)p->cu_seqlens_q[i + 1] - p->cu_seqlens_q[i],
                                        p->seq_lens_kv[i]);
        row.bytes = (double)row.query_len * (64 * 132 + 4.0 * (double)p->topk) +
                    132.0 * (double)row.seq_len_kv;
    } else {
        status = plan_of(b, in, way, route, &plan);
        if (!status) {
            describe_run(plan, p->batch, &row);
            status = mla_timer_take(b->timer, plan, p, &in->tensors);
        }
    }
    bool tight = false;
    if (!status)
        status = time_row(b, time, &row, &tight);
    if (!status && way != WAY_INDEXER && !tight)
        status = time_shared(b, time, &row);
    if (!status)
        status = keep_row(b, in, row);
    mla_plan_destroy(plan);
    if (status == MLA_ERR_UNSUPPORTED || status == MLA_ERR_MEMORY) {
        fprintf(b->text, "%sskip %s of %s: %s\n", b->csv ? "# " : "", mla_route_row_name(&row),
                in->text, mla_last_error());
        return MLA_OK;
    }
    return status;
}

/* Ways to run a mixed batch stand against each other: they are timed again in turns, since clocks
 * move with what ran before. Those times replace the first ones. */
static mla_status time_in_turns(struct route_bench *b, const struct mla_input *in, int first,
                                double time)
{
    int rows = b->count - first, counts[MOST_ROWS] = {0};
    double times[MOST_ROWS][MLA_TIMER_RUNS];
    mla_status status = MLA_OK;
    for (int turn = 0; turn < TURNS && !interrupted; turn++)
        for (int i = 0; i < rows && !status; i++) {
            const struct route_row *row = &b->rows[first + i];
            if (row->way == WAY_INDEXER)
                continue;
            /* One of a turn's runs warms up. */
            double fit = time / (TURNS * rows * (row->cold.median + 3e-4)) - 1;
            int most = row->runs / TURNS, runs = fit < most ? (int)fit : most;
            runs = runs < 1 ? 1 : runs;
            mla_plan *plan = NULL;
            status = plan_of(b, in, row->way, row->route, &plan);
            if (!status)
                status = mla_timer_take(b->timer, plan, &in->problem, &in->tensors);
            if (!status)
                status = mla_timer_cold(b->timer, runs, &times[i][counts[i]]);
            counts[i] += status ? 0 : runs;
            mla_plan_destroy(plan);
        }
    for (int i = 0; i < rows && !status; i++)
        if (counts[i]) {
            b->rows[first + i].runs = counts[i];
            b->rows[first + i].cold = mla_times_of(times[i], counts[i]);
        }
    return status;
}

/* ------------------------------------------------------------------- output */

static void print_rows(const struct route_bench *b, int first)
{
    double fastest = 0;
    for (int i = first; i < b->count; i++)
        if (b->rows[i].way == WAY_FORCED && (!fastest || b->rows[i].cold.median < fastest))
            fastest = b->rows[i].cold.median;
    if (!b->csv && first < b->count)
        fprintf(b->text, "%s\n", b->rows[first].problem);
    for (int i = first; i < b->count; i++) {
        const struct route_row *r = &b->rows[i];
        char parts[160] = "", shared[16] = "-";
        struct mla_text t = {.at = parts, .bytes = sizeof parts};
        double x = fastest > 0 ? r->cold.median / fastest : 1;
        for (int n = 0; n < r->num_parts; n++)
            mla_text_add(&t, "%s%s %.1f", n ? ", " : "", r->parts[n].name,
                         r->parts[n].seconds * 1e6);
        if (r->shared > 0)
            snprintf(shared, sizeof shared, "%.1f", r->shared * 1e6);
        if (b->csv)
            fprintf(b->text,
                    "%s,%s,%.2f,%.2f,%.2f,%d,%.2f,%.2f,%.2f,%.2f,%.4g,%.4g,%.4f,\"%s\",\"%s\"\n",
                    mla_route_row_name(r), r->kernel, r->cold.median * 1e6, r->cold.least * 1e6,
                    r->cold.most * 1e6, r->runs, r->warm.median * 1e6, r->warm.least * 1e6,
                    r->warm.most * 1e6, r->shared * 1e6, r->flop / r->cold.median * 1e-12,
                    r->bytes / r->cold.median * 1e-9, x, parts, r->problem);
        else
            fprintf(b->text, "  %-10s %-26s %10.1f %10.1f %10.1f %10.1f %10s %8.3g %6.2f  %s\n",
                    mla_route_row_name(r), r->kernel, r->cold.median * 1e6, r->cold.least * 1e6,
                    r->cold.most * 1e6, r->warm.median * 1e6, shared,
                    r->flop / r->cold.median * 1e-12, x, parts);
    }
    fflush(b->text);
}

static void progress(const struct route_bench *b)
{
    double spent = mla_seconds() - b->start;
    double left = spent * (double)(b->num_sources - b->done) / (double)(b->done ? b->done : 1);
    if (b->seconds && left > (double)b->seconds - spent)
        left = (double)b->seconds > spent ? (double)b->seconds - spent : 0;
    if (isatty(STDERR_FILENO))
        fprintf(stderr, "\r%lld of %lld problems, about %.0f s left   %s", (long long)b->done,
                (long long)b->num_sources, left, b->done == b->num_sources ? "\n" : "");
}

/* ---------------------------------------------------------------- all sources */

static mla_status time_source(struct route_bench *b, int64_t source, double time)
{
    struct mla_input in;
    struct {
        enum route_way way;
        mla_route route;
    } rows[MOST_ROWS];
    int first = b->count, n = 0;
    mla_status status = mla_input_open(b->pool, b->compute, b->sources[source], &in);
    if (status == MLA_ERR_MEMORY) {
        fprintf(b->text, "%sskip %s: %s\n", b->csv ? "# " : "", b->sources[source],
                mla_last_error());
        return MLA_OK;
    }
    if (status)
        return status;
    mla_warnings_show(b->command);
    const mla_problem *p = &in.problem;
    for (int r = MLA_ROUTE_DENSE_MHA; r < MLA_ROUTES; r++) {
        bool admissible = p->batch > 0 && (b->wanted & MLA_BIT(r));
        for (int64_t i = 0; i < p->batch; i++)
            admissible = admissible &&
                         mla_route_admissible(p, (mla_route)r, in.complete && in.complete[i], NULL);
        if (admissible) {
            rows[n].way = WAY_FORCED;
            rows[n++].route = (mla_route)r;
        }
    }
    static const enum route_way ways[] = {WAY_BATCH_WIDE, WAY_AUTO, WAY_INDEXER};
    for (int w = 0; w < 3; w++) {
        bool lists = p->topk > 0 && p->batch > 0;
        if ((ways[w] == WAY_BATCH_WIDE && b->batch_wide && lists && p->form == MLA_FORM_LATENT &&
             mla_input_mixed(p)) ||
            (ways[w] == WAY_AUTO && (b->wanted & MLA_BIT(MLA_ROUTE_AUTO)) && p->batch > 0) ||
            (ways[w] == WAY_INDEXER && b->indexer && lists)) {
            rows[n].way = ways[w];
            rows[n++].route = MLA_ROUTE_AUTO;
        }
    }
    bool turns = n > 1 && mla_input_mixed(p);
    time = turns ? time / 2 : time;
    for (int i = 0; i < n && !status && !interrupted; i++)
        status = add_row(b, &in, time / n, rows[i].way, rows[i].route, source);
    if (!status && turns && !interrupted)
        status = time_in_turns(b, &in, first, time);
    if (!status)
        print_rows(b, first);
    mla_input_free(&in);
    return status;
}

mla_status mla_route_bench_add(struct route_bench *b, const char *source)
{
    if (strncmp(source, "attend ", 7) == 0) { /* a wrong word is told before anything is timed */
        struct mla_case_spec spec;
        mla_status status = mla_case_spec_parse(&spec, source);
        if (status == MLA_OK)
            status = mla_problem_check(&spec.problem);
        mla_problem_release(&spec.problem);
        if (status)
            return status;
    }
    char **more = mla_realloc(b->sources, (size_t)b->num_sources + 1, sizeof *b->sources);
    char *copy = mla_alloc(strlen(source) + 1, 1);
    if (more)
        b->sources = more;
    if (!more || !copy) {
        mla_free(copy);
        return mla_fail(MLA_ERR_MEMORY, "routes: no memory for %lld problems",
                        (long long)b->num_sources);
    }
    memcpy(copy, source, strlen(source));
    b->sources[b->num_sources++] = copy;
    return MLA_OK;
}

static int by_source(const void *a, const void *b)
{
    const struct route_row *x = a, *y = b;
    if (x->source != y->source)
        return x->source < y->source ? -1 : 1;
    return x->order - y->order;
}

/* i-th of n in an order in which any beginning is spread evenly: multiples of a number without a
 * common divisor, near n times the golden ratio. */
static int64_t spread(int64_t i, int64_t n)
{
    int64_t step = (int64_t)(0.618 * (double)n);
    for (step = step < 1 ? 1 : step; step < n; step++) {
        int64_t a = step, c = n;
        while (c) {
            int64_t t = a % c;
            a = c;
            c = t;
        }
        if (a == 1)
            break;
    }
    return i * step % n;
}

mla_status mla_route_bench_run(struct route_bench *b)
{
    mla_status status = mla_pool_new(b->compute->context, &b->pool);
    if (!status)
        status = mla_timer_new(b->compute->context, &b->timer);
    b->start = mla_seconds();
    print_legend(b);
    while (!status && b->done < b->num_sources && !interrupted) {
        double left = b->start + (double)b->seconds - mla_seconds();
        if (b->seconds && left <= 0)
            break;
        double time = b->seconds ? left / (double)(b->num_sources - b->done) : LONG_ENOUGH * 6.0;
        status = time_source(b, b->seconds ? spread(b->done, b->num_sources) : b->done, time);
        b->done += !status;
        progress(b);
        if (!status && b->save)
            b->save(b->user);
    }
    if (!status && b->done < b->num_sources)
        fprintf(b->text, "# %lld of %lld problems were left out: %s\n",
                (long long)(b->num_sources - b->done), (long long)b->num_sources,
                interrupted ? "interrupted" : "no time left");
    if (b->count)
        qsort(b->rows, (size_t)b->count, sizeof *b->rows, by_source);
    return status;
}

/* {"median": us, "min": us, "max": us} */
static json_t *times_json(const struct mla_times *t)
{
    return json_pack("{s:f, s:f, s:f}", "median", t->median * 1e6, "min", t->least * 1e6, "max",
                     t->most * 1e6);
}

json_t *mla_route_bench_json(const struct route_bench *b)
{
    json_t *rows = json_array();
    for (int i = 0; i < b->count; i++) {
        const struct route_row *r = &b->rows[i];
        json_t *parts = json_object();
        for (int n = 0; n < r->num_parts; n++)
            json_object_set_new(parts, r->parts[n].name, json_real(r->parts[n].seconds * 1e6));
        json_t *row = json_pack(
            "{s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:s, s:s, s:f, s:f, s:f, s:i, s:f, s:f, s:o}",
            "problem", r->problem, "route", mla_route_row_name(r), "kernel", r->kernel, "heads",
            (json_int_t)r->heads, "requests", (json_int_t)r->requests, "query_tokens",
            (json_int_t)r->query_len, "keys", (json_int_t)r->seq_len_kv, "topk",
            (json_int_t)r->topk, "cache", r->cache, "fill", r->fill, "median_us",
            r->cold.median * 1e6, "min_us", r->cold.least * 1e6, "max_us", r->cold.most * 1e6,
            "runs", r->runs, "flop", r->flop, "bytes", r->bytes, "parts_us", parts);
        if (r->warm.median > 0)
            json_object_set_new(row, "warm_us", times_json(&r->warm));
        if (r->shared > 0)
            json_object_update_new(row, json_pack("{s:f, s:f}", "shared_us", r->shared * 1e6,
                                                  "unshared_us", r->unshared * 1e6));
        json_array_append_new(rows, row);
    }
    return rows;
}

static double number(const json_t *object, const char *name)
{
    return json_number_value(json_object_get(object, name));
}

static struct mla_times times_of(const json_t *median, const json_t *least, const json_t *most)
{
    return (struct mla_times){json_number_value(median) * 1e-6, json_number_value(least) * 1e-6,
                              json_number_value(most) * 1e-6};
}

/* The row's words; false if one is missing or unknown. */
static bool row_of_json(const json_t *j, struct route_row *row)
{
    const char *problem = json_string_value(json_object_get(j, "problem"));
    const char *route = json_string_value(json_object_get(j, "route"));
    const char *cache = json_string_value(json_object_get(j, "cache"));
    const char *fill = json_string_value(json_object_get(j, "fill"));
    const char *kernel = json_string_value(json_object_get(j, "kernel"));
    const json_t *warm = json_object_get(j, "warm_us");
    mla_cache_format format;
    if (!problem || !route || !cache || !fill || !kernel ||
        mla_cache_format_parse(cache, &format) != MLA_OK || number(j, "requests") < 1 ||
        !(number(j, "median_us") > 0))
        return false;
    row->way = strcmp(route, "batch-wide") == 0 ? WAY_BATCH_WIDE
               : strcmp(route, "indexer") == 0  ? WAY_INDEXER
               : strcmp(route, "auto") == 0     ? WAY_AUTO
                                                : WAY_FORCED;
    if (row->way == WAY_FORCED && mla_route_parse(route, &row->route) != MLA_OK)
        return false;
    row->heads = (int64_t)number(j, "heads");
    row->requests = (int64_t)number(j, "requests");
    row->query_len = (int64_t)number(j, "query_tokens");
    row->seq_len_kv = (int64_t)number(j, "keys");
    row->topk = (int64_t)number(j, "topk");
    row->cache = mla_cache_format_name(format);
    snprintf(row->fill, sizeof row->fill, "%s", fill);
    snprintf(row->kernel, sizeof row->kernel, "%s", kernel);
    row->cold = times_of(json_object_get(j, "median_us"), json_object_get(j, "min_us"),
                         json_object_get(j, "max_us"));
    row->warm = times_of(json_object_get(warm, "median"), json_object_get(warm, "min"),
                         json_object_get(warm, "max"));
    row->shared = number(j, "shared_us") * 1e-6;
    row->unshared = number(j, "unshared_us") * 1e-6;
    row->runs = (int)number(j, "runs");
    row->flop = number(j, "flop");
    row->bytes = number(j, "bytes");
    return true;
}

int mla_route_bench_load(struct route_bench *b, const char *path, char *about, size_t bytes)
{
    json_error_t error;
    json_t *root = json_load_file(path, 0, &error), *rows = json_object_get(root, "results");
    const char *context = json_string_value(json_object_get(root, "context"));
    const char *before = "";
    int64_t source = -1;
    if (!json_is_array(rows) || !context) {
        int status = mla_usage(b->command, "--from: got '%.300s' (%s), want what --json wrote",
                               path, root ? "no results of --routes" : error.text);
        json_decref(root);
        return status;
    }
    snprintf(about, bytes, "%s", context);
    for (size_t i = 0; i < json_array_size(rows); i++) {
        struct route_row row = {0};
        struct mla_input in = {0};
        const json_t *j = json_array_get(rows, i);
        in.text = (char *)(uintptr_t)json_string_value(json_object_get(j, "problem"));
        bool good = row_of_json(j, &row);
        if (good) {
            source += strcmp(before, in.text) != 0;
            before = in.text;
            row.source = source;
        }
        if (!good || keep_row(b, &in, row) != MLA_OK) {
            int status = mla_usage(b->command,
                                   "--from: '%.300s': row %zu: got one without a problem, route, "
                                   "kernel, cache, fill, requests or median_us, want all",
                                   path, i);
            json_decref(root);
            return status;
        }
    }
    json_decref(root);
    return EXIT_DONE;
}

void mla_route_bench_free(struct route_bench *b)
{
    for (int i = 0; i < b->count; i++) {
        mla_free(b->rows[i].problem);
        mla_free(b->rows[i].batch);
    }
    for (int64_t i = 0; i < b->num_sources; i++)
        mla_free(b->sources[i]);
    mla_free(b->sources);
    mla_free(b->rows);
    mla_timer_free(b->timer);
    mla_pool_free(b->pool);
    b->rows = NULL;
    b->sources = NULL;
    b->count = 0;
    b->num_sources = 0;
    b->timer = NULL;
    b->pool = NULL;
}

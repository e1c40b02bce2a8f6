/* SPDX-License-Identifier: Apache-2.0 */
/* mla tune: times every route over a grid of query tokens and keys on this device, and writes the
 * table that routing reads (common/crossover.h). With --verify, times random mixed batches that the
 * tuner did not see: as routed, and under every assignment of routes to requests. */
#include "command.h"

#include "common/crossover.h"
#include "common/kernel.h"
#include "common/status.h"
#include "common/text.h"
#include "common/tool/random.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_HEADS = 16, RUNS = 5, MOST_REQUESTS = 5 };

struct tune {
    const struct command *command;
    struct compute compute;
    const char *out, *json, *model, *heads, *cache, *dtype, *from;
    int64_t topk, most_queries, most_keys, verify, seed;
    /* running: */
    int64_t head_list[MAX_HEADS];
    int num_heads;
    struct mla_route_curve *curves;
    double limit; /* seconds of a run above which larger points are left out */
    double start;
    int64_t points, done;
};

/* ------------------------------------------------------------------ timing */

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Median of a few runs of a case under the routes given ([B], or NULL: as the library routes it);
 * NaN where no kernel takes a route. */
static mla_status time_case(struct tune *t, struct mla_case *k, const mla_route *routes,
                            double *seconds)
{
    struct run_result r = {0};
    double times[RUNS], spent = 0;
    int n = 0;
    *seconds = NAN;
    mla_status status = mla_run_plan_routes(&t->compute, k, routes, false, &r);
    if (status == MLA_ERR_UNSUPPORTED)
        return MLA_OK;
    if (!status)
        status = mla_run_case(k, &r); /* warms up */
    while (!status && n < RUNS && (n < 2 || spent < 2 * t->limit)) {
        status = mla_run_again(k, &r);
        spent += r.seconds;
        times[n++] = r.seconds;
    }
    if (!status) {
        qsort(times, (size_t)n, sizeof *times, by_value);
        *seconds = n % 2 ? times[n / 2] : times[n / 2 - 1];
    }
    mla_run_free(&r);
    return status;
}

/* "attend model=… heads=… topk=… batch=…" */
static mla_status open_case(const struct tune *t, int64_t heads, int64_t topk, const char *batch,
                            struct mla_case *k)
{
    char text[512];
    snprintf(text, sizeof text,
             "attend model=%s heads=%" PRId64 " topk=%" PRId64
             " dtype=%s cache=%s batch=%s seed=%" PRId64 " fill=normal",
             t->model, heads, topk, t->dtype, t->cache, batch, t->seed);
    return mla_case_open(text, k, NULL, NULL);
}

/* Requests of one timing: enough to fill a device, few enough to fit. */
static int64_t copies_for(const struct tune *t, int64_t queries, int64_t context)
{
    bool device = t->compute.chosen == MLA_BACKEND_CUDA;
    int64_t want = (device ? 256 : 16) / queries, room = (device ? 1 << 19 : 1 << 15);
    int64_t most = room / (queries + context);
    want = want < 1 ? 1 : want;
    return want < most ? want : most < 1 ? 1 : most;
}

static bool lists_route(int route)
{
    return route == MLA_ROUTE_MASKED_MHA || route == MLA_ROUTE_SPARSE_MQA;
}

static void progress(struct tune *t, const struct mla_route_curve *c, int i, int j)
{
    double spent = mla_seconds() - t->start;
    if (!isatty(STDERR_FILENO))
        return;
    fprintf(stderr,
            "\r%3.0f %%  heads %" PRId64 ", %" PRId64 " query tokens behind %" PRId64
            " keys, about %.0f s left   ",
            100.0 * (double)t->done / (double)t->points, c->heads_q, c->queries[i], c->contexts[j],
            t->done ? spent * (double)(t->points - t->done) / (double)t->done : 0);
}

/* All routes at one point of the grid. */
static mla_status tune_point(struct tune *t, struct mla_route_curve *c, int i, int j)
{
    int64_t queries = c->queries[i], context = c->contexts[j];
    int64_t copies = copies_for(t, queries, context);
    char batch[96];
    mla_status status = MLA_OK;
    mla_problem p;
    mla_curve_problem(c, &p);
    snprintf(batch, sizeof batch, "%" PRId64 "q%" PRId64 "s%" PRId64, copies, queries,
             queries + context);
    for (int lists = 0; lists < 2 && !status; lists++) {
        struct mla_case k;
        bool opened = false;
        for (int route = MLA_ROUTE_DENSE_MHA; route < MLA_ROUTES && !status; route++) {
            double seconds, flop = mla_route_flop(&p, (mla_route)route, queries, queries + context);
            if (lists_route(route) != (lists == 1) || (lists && c->topk == 0))
                continue;
            /* What the nearest smaller point says about the time of this one. */
            double rate = i ? c->rate[route][i - 1][j] : 0;
            rate = j && c->rate[route][i][j - 1] > rate ? c->rate[route][i][j - 1] : rate;
            if ((i || j) && (rate <= 0 || flop * (double)copies / rate > t->limit))
                continue;
            if (!opened) {
                status = open_case(t, c->heads_q, lists ? c->topk : 0, batch, &k);
                if (status)
                    break;
                opened = true;
            }
            mla_route forced[256];
            for (int64_t b = 0; b < copies; b++)
                forced[b] = (mla_route)route;
            status = time_case(t, &k, forced, &seconds);
            if (status || !(seconds > 0))
                continue;
            /* The first point is one copy of next to nothing: the overhead itself. */
            double each = (seconds - c->overhead[route]) / (double)copies;
            if (each < 0.05 * seconds / (double)copies)
                each = 0.05 * seconds / (double)copies;
            c->rate[route][i][j] = flop / each;
        }
        if (opened)
            mla_case_free(&k);
    }
    return status;
}

/* One request of one query and its own key: what using a route costs at all. */
static mla_status tune_overhead(struct tune *t, struct mla_route_curve *c)
{
    mla_status status = MLA_OK;
    for (int route = MLA_ROUTE_DENSE_MHA; route < MLA_ROUTES && !status; route++) {
        struct mla_case k;
        mla_route forced = (mla_route)route;
        double seconds;
        if (lists_route(route) && c->topk == 0)
            continue;
        status = open_case(t, c->heads_q, lists_route(route) ? c->topk : 0, "q1s1", &k);
        if (status)
            break;
        status = time_case(t, &k, &forced, &seconds);
        c->overhead[route] = !status && seconds > 0 ? seconds : 0;
        mla_case_free(&k);
    }
    return status;
}

static int grid(int64_t *at, int64_t first, int64_t most, int64_t zero)
{
    int n = 0;
    if (zero)
        at[n++] = 0;
    for (int64_t x = first; x <= most && n < MLA_CURVE_POINTS; x *= 4)
        at[n++] = x;
    return n;
}

static mla_status tune_heads(struct tune *t, const mla_problem *p, int64_t heads,
                             struct mla_route_curve *c)
{
    *c = (struct mla_route_curve){.heads_q = heads,
                                  .kv_lora_rank = p->kv_lora_rank,
                                  .qk_nope_dim = p->qk_nope_dim,
                                  .qk_rope_dim = p->qk_rope_dim,
                                  .v_dim = p->v_dim,
                                  .topk = p->topk,
                                  .q_dtype = p->q_dtype,
                                  .cache_format = p->cache_format};
    c->num_queries = grid(c->queries, 1, t->most_queries, 0);
    c->num_contexts = grid(c->contexts, 256, t->most_keys, 1);
    t->points = (int64_t)t->num_heads * c->num_queries * c->num_contexts;
    mla_status status = tune_overhead(t, c);
    for (int i = 0; i < c->num_queries && !status; i++)
        for (int j = 0; j < c->num_contexts && !status; j++) {
            progress(t, c, i, j);
            status = tune_point(t, c, i, j);
            t->done++;
        }
    return status;
}

/* ------------------------------------------------------------------ report */

/* Smallest prefill, in steps of 1/64 octave, from which on sparse MQA beats masked MHA; 0 = none
 * up to the largest point. */
static int64_t crossover_of(const struct mla_route_table *table, const struct mla_route_curve *c)
{
    mla_problem p;
    int64_t found = 0;
    mla_curve_problem(c, &p);
    for (int step = 6 * 64; exp2(step / 64.0) <= (double)c->queries[c->num_queries - 1]; step++) {
        int64_t n = (int64_t)exp2(step / 64.0);
        double masked, sparse, unused;
        mla_curves_cost(table, &p, MLA_ROUTE_MASKED_MHA, n, n, &masked, &unused);
        mla_curves_cost(table, &p, MLA_ROUTE_SPARSE_MQA, n, n, &sparse, &unused);
        if (sparse >= masked)
            found = 0;
        else if (!found)
            found = n;
    }
    return found;
}

static void show(const struct tune *t, FILE *text)
{
    const struct mla_route_table table = {.name = "measured",
                                          .num_curves = t->num_heads,
                                          .curves = t->curves};
    fprintf(text, "%-6s %-6s %-12s %s\n", "heads", "topk", "cache",
            "prefill length from which sparse-mqa beats masked-mha");
    for (int i = 0; i < t->num_heads; i++) {
        struct mla_route_curve *c = &t->curves[i];
        char at[32] = "no top-k";
        if (c->topk) {
            int64_t n = crossover_of(&table, c);
            snprintf(at, sizeof at, n ? "%" PRId64 : "beyond the grid", n);
        }
        fprintf(text, "%-6" PRId64 " %-6" PRId64 " %-12s %s\n", c->heads_q, c->topk,
                mla_cache_format_name(c->cache_format), at);
    }
}

static int write_table(const struct tune *t, const char *text)
{
    char beside[4096];
    int used = snprintf(beside, sizeof beside, "%s.%ld", t->out, (long)getpid());
    FILE *file = used > 0 && (size_t)used < sizeof beside ? fopen(beside, "wb") : NULL;
    bool good = file && fputs(text, file) >= 0;
    good = file && fclose(file) == 0 && good && rename(beside, t->out) == 0;
    if (good)
        return EXIT_DONE;
    mla_usage(t->command, "-o: cannot write '%.300s': %s", t->out, strerror(errno));
    if (file)
        remove(beside);
    return EXIT_DEVICE;
}

static json_t *table_json(const struct tune *t)
{
    json_t *curves = json_array();
    for (int n = 0; n < t->num_heads; n++) {
        const struct mla_route_curve *c = &t->curves[n];
        json_t *points = json_array();
        mla_problem p;
        mla_curve_problem(c, &p);
        for (int route = MLA_ROUTE_DENSE_MHA; route < MLA_ROUTES; route++)
            for (int i = 0; i < c->num_queries; i++)
                for (int j = 0; j < c->num_contexts; j++)
                    if (c->rate[route][i][j] > 0)
                        json_array_append_new(
                            points, json_pack("{s:s, s:I, s:I, s:f}", "route",
                                              mla_route_name((mla_route)route), "query_len",
                                              (json_int_t)c->queries[i], "context",
                                              (json_int_t)c->contexts[j], "us",
                                              mla_route_flop(&p, (mla_route)route, c->queries[i],
                                                             c->queries[i] + c->contexts[j]) /
                                                  c->rate[route][i][j] * 1e6));
        json_array_append_new(curves,
                              json_pack("{s:I, s:I, s:s, s:o}", "heads", (json_int_t)c->heads_q,
                                        "topk", (json_int_t)c->topk, "cache",
                                        mla_cache_format_name(c->cache_format), "points", points));
    }
    return json_pack("{s:s, s:s, s:o}", "device", t->compute.context->identity, "version",
                     mla_version(), "curves", curves);
}

/* ------------------------------------------------------------------ verify */

/* A mixed batch within the grid: log-uniform lengths, few enough requests to try all
 * assignments. */
static double uniform(uint64_t key, uint64_t *index)
{
    return (double)(mla_random_word(key, (*index)++) >> 11) * 0x1p-53;
}

static int64_t random_batch(const struct tune *t, uint64_t key, uint64_t *at_word, char *text,
                            size_t bytes)
{
    struct mla_text at = {.at = text, .bytes = bytes};
    int64_t n = 1 + (int64_t)(uniform(key, at_word) * MOST_REQUESTS);
    for (int64_t b = 0; b < n; b++) {
        double queries = exp2(uniform(key, at_word) * log2((double)t->most_queries));
        double context = exp2(uniform(key, at_word) * log2((double)t->most_keys + 64)) - 64;
        int64_t q = (int64_t)queries, c = context > 0 ? (int64_t)context : 0;
        mla_text_add(&at, "%sq%" PRId64 "s%" PRId64, b ? "," : "", q, q + c);
    }
    return n;
}

static mla_status verify_batch(struct tune *t, int64_t heads, const char *batch, int64_t n,
                               double *routed, double *best, char *which, size_t bytes)
{
    static const mla_route with_lists[] = {MLA_ROUTE_MASKED_MHA, MLA_ROUTE_SPARSE_MQA};
    static const mla_route without[] = {MLA_ROUTE_DENSE_MHA, MLA_ROUTE_DENSE_MQA};
    const mla_route *choice = t->topk ? with_lists : without;
    struct mla_case k;
    mla_status status = open_case(t, heads, t->topk, batch, &k);
    if (status)
        return status;
    *best = INFINITY;
    for (int64_t set = 0; set < (int64_t)1 << n && !status; set++) {
        mla_route routes[MOST_REQUESTS + 1];
        double seconds;
        struct mla_text at = {.at = which, .bytes = bytes};
        for (int64_t b = 0; b < n; b++)
            routes[b] = choice[set >> b & 1];
        status = time_case(t, &k, routes, &seconds);
        if (!status && seconds < *best) {
            *best = seconds;
            for (int64_t b = 0; b < n; b++)
                mla_text_add(&at, "%s%s", b ? "," : "", mla_route_name(routes[b]));
        }
    }
    if (!status)
        status = time_case(t, &k, NULL, routed);
    mla_case_free(&k);
    return status;
}

static mla_status verify(struct tune *t, FILE *text, double *mean, double *worst)
{
    uint64_t key = mla_random_key((uint64_t)t->seed, 1), at_word = 0;
    mla_status status = MLA_OK;
    *mean = *worst = 0;
    fprintf(text, "%-6s %12s %12s %7s  %s\n", "heads", "us(routed)", "us(best)", "regret", "batch");
    for (int64_t i = 0; i < t->verify && !status; i++) {
        char batch[256], which[256];
        double routed = NAN, best = NAN;
        int64_t heads = t->head_list[i % t->num_heads];
        int64_t n = random_batch(t, key, &at_word, batch, sizeof batch);
        status = verify_batch(t, heads, batch, n, &routed, &best, which, sizeof which);
        if (status)
            break;
        double regret = routed / best - 1;
        fprintf(text, "%-6" PRId64 " %12.1f %12.1f %6.1f%%  %s (best: %s)\n", heads, routed * 1e6,
                best * 1e6, 100 * regret, batch, which);
        fflush(text);
        *mean += regret / (double)t->verify;
        *worst = regret > *worst ? regret : *worst;
    }
    return status;
}

/* ----------------------------------------------------------------- command */

static int read_heads(struct tune *t)
{
    for (const char *at = t->heads; *at;) {
        char *end;
        long long value = strtoll(at, &end, 10);
        if (end == at || value < 1 || value > 1024 || (*end && *end != ',') ||
            t->num_heads == MAX_HEADS)
            return mla_usage(t->command,
                             "--heads: got '%.80s', want up to %d numbers such as "
                             "128,64,16",
                             t->heads, MAX_HEADS);
        t->head_list[t->num_heads++] = value;
        at = *end ? end + 1 : end;
    }
    return t->num_heads ? EXIT_DONE : mla_usage(t->command, "--heads: got none, want a number");
}

static mla_status tune_all(struct tune *t)
{
    mla_problem p;
    mla_status status = mla_problem_init_model(&p, t->model);
    if (!status)
        status = mla_dtype_parse(t->dtype, &p.q_dtype);
    if (!status)
        status = mla_cache_format_parse(t->cache, &p.cache_format);
    if (status)
        return status;
    if (t->topk < 0)
        t->topk = p.topk;
    p.topk = t->topk;
    t->curves = mla_alloc((size_t)t->num_heads, sizeof *t->curves);
    if (!t->curves)
        return mla_fail(MLA_ERR_MEMORY, "curves: no memory");
    t->start = mla_seconds();
    for (int i = 0; i < t->num_heads && !status && !t->from; i++)
        status = tune_heads(t, &p, t->head_list[i], &t->curves[i]);
    if (isatty(STDERR_FILENO) && !t->from)
        fputc('\n', stderr);
    return status;
}

static int tune_and_write(struct tune *t)
{
    mla_status status = tune_all(t);
    int exit_status = EXIT_DONE;
    FILE *text = mla_text_open(t->json);
    if (!status && text && !t->from) {
        char *table = mla_crossovers_text(t->compute.context, t->curves, t->num_heads);
        if (!table)
            status = mla_fail(MLA_ERR_MEMORY, "table: no memory");
        else if (t->out)
            exit_status = write_table(t, table);
        mla_free(table);
        char why[80];
        for (int i = 0; i < t->num_heads && !status; i++)
            if (!mla_curve_fill(&t->curves[i], why, sizeof why))
                status = mla_fail(MLA_ERR_UNSUPPORTED, "heads %" PRId64 ": %s on this device",
                                  t->curves[i].heads_q, why);
        if (!status)
            show(t, text);
    }
    if (!status && !exit_status && t->verify) {
        double mean, worst;
        const char *table = t->from ? t->from : t->out;
        status = table ? mla_context_load_crossovers(t->compute.context, table) : MLA_OK;
        if (!status)
            status = verify(t, text, &mean, &worst);
        if (!status)
            fprintf(text, "%" PRId64 " batches: regret %.1f %% in the mean, %.1f %% at worst\n",
                    t->verify, 100 * mean, 100 * worst);
    }
    if (text)
        mla_text_close(text);
    if (status)
        return mla_report(t->command, status);
    if (!exit_status && t->json && !t->from)
        exit_status = mla_json_write(t->command, table_json(t), t->json);
    return exit_status;
}

static int run_tune(const struct command *command, int argc, char **argv)
{
    struct tune t = {.command = command,
                     .model = "deepseek-v3.2",
                     .cache = "bf16",
                     .dtype = "bf16",
                     .most_queries = 16384,
                     .most_keys = 65536,
                     .seed = 1};
    const char *topk = NULL;
    int64_t limit_ms = 200;
    const struct option options[] = {
        {"output", 'o', OPTION_TEXT, &t.out, "FILE", "the table"},
        {"json", 0, OPTION_TEXT, &t.json, "FILE", "the same as JSON; - = stdout"},
        {"backend", 0, OPTION_TEXT, &t.compute.backend, "NAME", "auto (default), cuda or cpu"},
        {"threads", 0, OPTION_COUNT, &t.compute.threads, "N", "CPU threads (default: all)"},
        {"model", 0, OPTION_TEXT, &t.model, "NAME", "dims and topk (default deepseek-v3.2)"},
        {"heads", 0, OPTION_TEXT, &t.heads, "LIST", "heads of a rank (default 128,64,32,16,8)"},
        {"topk", 0, OPTION_TEXT, &topk, "K", "instead of the model's; 0 = dense routes alone"},
        {"cache", 0, OPTION_TEXT, &t.cache, "FORMAT", "cache format (default bf16)"},
        {"dtype", 0, OPTION_TEXT, &t.dtype, "TYPE", "of queries (default bf16)"},
        {"queries", 0, OPTION_COUNT, &t.most_queries, "N", "largest prefill (default 16k)"},
        {"keys", 0, OPTION_COUNT, &t.most_keys, "N", "largest context before it (default 64k)"},
        {"limit", 0, OPTION_COUNT, &limit_ms, "MS",
         "leave out points whose runs take longer (200)"},
        {"verify", 0, OPTION_COUNT, &t.verify, "N", "then time N random batches; show the regret"},
        {"from", 0, OPTION_TEXT, &t.from, "FILE", "with --verify: this table, measure none"},
        {"seed", 0, OPTION_COUNT, &t.seed, "N", "of fills and batches (default 1)"},
        {0},
    };
    int exit_status;
    if (!mla_options_read(command, options, argc, argv, NULL, &exit_status))
        return exit_status;
    t.heads = t.heads ? t.heads : "128,64,32,16,8";
    t.compute.backend = t.compute.backend ? t.compute.backend : "auto";
    t.limit = (double)limit_ms * 1e-3;
    t.topk = -1;
    if (topk) {
        char *end;
        t.topk = strtoll(topk, &end, 10);
        if (end == topk || *end || t.topk < 0 || t.topk > 1 << 20)
            return mla_usage(command, "--topk: got '%.40s', want 0 to 1048576", topk);
    }
    if (!t.out && !t.json && !t.from)
        return mla_usage(command, "-o: got nothing, want the file to write");
    if (t.from && (t.out || !t.verify))
        return mla_usage(command, "--from: got it %s, want it with --verify alone",
                         t.out ? "beside -o" : "without --verify");
    if (t.verify && !t.from && !t.out)
        return mla_usage(command, "--verify: got it without -o or --from, want a table to verify");
    if (t.most_queries < 4 || t.most_queries > 1 << 20 || t.most_keys > 1 << 22)
        return mla_usage(command,
                         "--queries, --keys: got %" PRId64 " and %" PRId64
                         ", want 4 to 1M and 0 to 4M",
                         t.most_queries, t.most_keys);
    if (strcmp(t.compute.backend, "model") == 0)
        return mla_usage(command,
                         "--backend: got model, which has no times; want cuda, cpu or auto");
    exit_status = read_heads(&t);
    if (!exit_status)
        exit_status = mla_compute_words(command, &t.compute);
    if (!exit_status)
        exit_status = mla_compute_open(command, &t.compute);
    if (!exit_status)
        exit_status = tune_and_write(&t);
    mla_free(t.curves);
    mla_compute_close(&t.compute);
    return exit_status;
}

const struct command mla_command_tune = {
    "tune",
    "-o FILE [options]",
    "measures how long each route takes on this device, for routing",
    "MLA_CROSSOVERS=FILE or mla_context_load_crossovers makes plans route by the table. Minutes on "
    "a\n"
    "GPU; --heads, --queries, --keys and --limit bound the time.",
    run_tune,
};

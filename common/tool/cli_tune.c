/* SPDX-License-Identifier: Apache-2.0 */
/* mla tune: times every route over a grid of query tokens and keys on this device, and writes the
 * table that routing reads. With --regret, judges a table on random mixed batches. */
#include "tune.h"

#include "common/kernel.h"
#include "common/status.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ------------------------------------------------------------------ report */

/* Between which numbers of query tokens, in steps of 1/64 octave, one more request behind so many
 * keys is faster by masked MHA than by sparse MQA: "from-to" or "never", + where the grid ends. */
static void masked_range(const struct mla_route_table *table, const struct mla_route_curve *c,
                         int64_t context, char *text, size_t bytes)
{
    const int64_t most = c->queries[c->num_queries - 1];
    int64_t from = 0, to = 0;
    mla_problem p;
    mla_curve_problem(c, &p);
    for (int step = 0; exp2(step / 64.0) <= (double)most; step++) {
        int64_t n = (int64_t)exp2(step / 64.0);
        double masked, sparse, unused;
        mla_curves_cost(table, &p, MLA_ROUTE_MASKED_MHA, n, n + context, &masked, &unused);
        mla_curves_cost(table, &p, MLA_ROUTE_SPARSE_MQA, n, n + context, &sparse, &unused);
        if (masked < sparse) {
            from = from ? from : n;
            to = n;
        }
    }
    if (!from)
        snprintf(text, bytes, "never");
    else
        snprintf(text, bytes, "%" PRId64 "-%" PRId64 "%s", from, to,
                 (double)to * exp2(1.0 / 64) >= (double)most ? "+" : "");
}

static void show(const struct tune *t, FILE *text)
{
    static const int64_t contexts[] = {0, 4096, 16384, 65536};
    const struct mla_route_table table = {.name = "measured",
                                          .num_curves = t->num_settings,
                                          .curves = t->curves};
    fprintf(
        text,
        "query tokens of a request for which masked-mha is faster than sparse-mqa, by keys before "
        "them\n%-14s %-6s %-6s %-12s %16s %16s %16s %16s\n",
        "model", "heads", "topk", "cache", "0", "4k", "16k", "64k");
    for (int n = 0; n < t->num_settings; n++) {
        const struct mla_route_curve *c = &t->curves[n];
        fprintf(text, "%-14s %-6" PRId64 " %-6" PRId64 " %-12s", t->settings[n].model, c->heads_q,
                c->topk, mla_cache_format_name(c->cache_format));
        for (int i = 0; i < 4; i++) {
            char range[48] = "-";
            if (c->topk && contexts[i] <= c->contexts[c->num_contexts - 1])
                masked_range(&table, c, contexts[i], range, sizeof range);
            fprintf(text, " %16s", range);
        }
        fprintf(text, "\n");
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

static void add_points(json_t *points, const mla_problem *p, const struct mla_route_curve *c,
                       mla_route route)
{
    for (int i = 0; i < c->num_queries; i++)
        for (int j = 0; j < c->num_contexts; j++) {
            double flop = mla_route_flop(p, route, c->queries[i], c->queries[i] + c->contexts[j]);
            if (c->more[route][i][j] > 0)
                json_array_append_new(points,
                                      json_pack("{s:s, s:I, s:I, s:f, s:f}", "route",
                                                mla_route_name(route), "query_len",
                                                (json_int_t)c->queries[i], "context",
                                                (json_int_t)c->contexts[j], "us",
                                                flop / c->more[route][i][j] * 1e6, "alone_us",
                                                flop / c->alone[route][i][j] * 1e6));
        }
}

static json_t *curves_json(const struct tune *t)
{
    json_t *curves = json_array();
    for (int n = 0; n < t->num_settings; n++) {
        const struct mla_route_curve *c = &t->curves[n];
        json_t *points = json_array();
        mla_problem p;
        mla_curve_problem(c, &p);
        for (int route = MLA_ROUTE_DENSE_MHA; route < MLA_ROUTES; route++)
            add_points(points, &p, c, (mla_route)route);
        json_array_append_new(curves,
                              json_pack("{s:s, s:I, s:I, s:s, s:o}", "model", t->settings[n].model,
                                        "heads", (json_int_t)c->heads_q, "topk",
                                        (json_int_t)c->topk, "cache",
                                        mla_cache_format_name(c->cache_format), "points", points));
    }
    return curves;
}

/* ----------------------------------------------------------------- command */

/* Every model, cache and head count; head counts above a model's own are left out. */
static int read_settings(struct tune *t, int64_t topk)
{
    char models[256], caches[256];
    char *save_model = NULL;
    snprintf(models, sizeof models, "%s", t->models);
    for (char *model = strtok_r(models, ",", &save_model); model;
         model = strtok_r(NULL, ",", &save_model)) {
        mla_problem p;
        char *save_cache = NULL;
        if (mla_problem_init_model(&p, model) != MLA_OK)
            return mla_report(t->command, MLA_ERR_ARGUMENT);
        snprintf(caches, sizeof caches, "%s", t->caches);
        for (char *cache = strtok_r(caches, ",", &save_cache); cache;
             cache = strtok_r(NULL, ",", &save_cache)) {
            mla_cache_format format;
            if (mla_cache_format_parse(cache, &format) != MLA_OK)
                return mla_report(t->command, MLA_ERR_ARGUMENT);
            for (const char *at = t->heads; *at;) {
                char *end;
                long long heads = strtoll(at, &end, 10);
                if (end == at || heads < 1 || heads > 1024 || (*end && *end != ',') ||
                    t->num_settings == TUNE_SETTINGS)
                    return mla_usage(t->command,
                                     "--heads: got '%.80s', want numbers such as 128,64,16; at "
                                     "most %d of them times models and caches",
                                     t->heads, TUNE_SETTINGS);
                at = *end ? end + 1 : end;
                if (heads > p.heads_q)
                    continue;
                /* Names that live as long as the table does. */
                const char *name = model;
                for (int i = 0; mla_model_name(i); i++)
                    name = strcmp(mla_model_name(i), model) == 0 ? mla_model_name(i) : name;
                t->settings[t->num_settings++] =
                    (struct tune_setting){name, mla_cache_format_name(format), heads,
                                          topk < 0 ? p.topk : topk};
            }
        }
    }
    return t->num_settings
               ? EXIT_DONE
               : mla_usage(t->command, "--heads, --model, --cache: got no setting, want a model, a "
                                       "cache format and at most its heads");
}

/* The table so far, of whole curves: what is left if the program is killed. */
static void save_table(struct tune *t)
{
    struct mla_route_curve *curves = mla_alloc((size_t)t->num_settings, sizeof *curves);
    int count = 0;
    for (int n = 0; curves && n < t->num_settings; n++)
        if (mla_tune_whole(&t->curves[n]))
            curves[count++] = t->curves[n];
    char *table = count ? mla_crossovers_text(t->compute.context, curves, count) : NULL;
    if (table)
        write_table(t, table);
    mla_free(table);
    mla_free(curves);
}

static int measure(struct tune *t, FILE *text, json_t *root)
{
    int exit_status = EXIT_DONE;
    char why[80];
    bool fresh = t->out && access(t->out, F_OK) != 0;
    t->save = fresh ? save_table : NULL;
    mla_status status = mla_tune_measure(t);
    if (status) {
        if (fresh)
            remove(t->out); /* no output of a run that failed */
        return mla_report(t->command, status);
    }
    char *table = mla_crossovers_text(t->compute.context, t->curves, t->num_settings);
    if (!table)
        status = mla_fail(MLA_ERR_MEMORY, "table: no memory");
    else if (t->out)
        exit_status = write_table(t, table);
    mla_free(table);
    json_object_set_new(root, "curves", curves_json(t));
    for (int n = 0; n < t->num_settings && !status; n++)
        if (!mla_curve_fill(&t->curves[n], why, sizeof why))
            status = mla_fail(MLA_ERR_UNSUPPORTED, "heads %" PRId64 ": %s on this device",
                              t->curves[n].heads_q, why);
    if (status)
        return mla_report(t->command, status);
    fprintf(text, "# %" PRId64 " points in %.0f s", t->points - t->late, mla_seconds() - t->start);
    if (t->late)
        fprintf(text, "; %" PRId64 " more had no time left, and take what lies beside them",
                t->late);
    fprintf(text, "\n");
    show(t, text);
    return exit_status;
}

static int tune_and_write(struct tune *t)
{
    char about[256], state[256];
    mla_context_describe(t->compute.context, about, sizeof about);
    mla_gpu_state(t->compute.context, state, sizeof state);
    json_t *root = json_pack("{s:s, s:s, s:s}", "device", t->compute.context->identity, "version",
                             mla_version(), "clocks", state);
    FILE *text = mla_text_open(t->json);
    int exit_status = EXIT_DONE;
    mla_status status = mla_pool_new(t->compute.context, &t->pool);
    if (!status)
        status = mla_timer_new(t->compute.context, &t->timer);
    if (!status && t->from)
        status = mla_context_load_crossovers(t->compute.context, t->from);
    if (status || !text || !root) {
        exit_status = mla_report(t->command, status ? status : MLA_ERR_MEMORY);
    } else {
        fprintf(text, "# mla %s; %s\n%s%s%s", mla_version(), about, *state ? "# " : "", state,
                *state ? "\n" : "");
        mla_tune_watch(t);
        if (!t->from)
            exit_status = measure(t, text, root);
        if (!exit_status && t->regret && !mla_tune_interrupted()) {
            json_t *regret = NULL;
            mla_tune_watch(t);
            if (!t->from)
                status = mla_context_load_crossovers(t->compute.context, t->out);
            if (!status)
                status = mla_tune_regret(t, text, &regret);
            if (regret)
                json_object_set_new(root, "regret", regret);
            exit_status = status ? mla_report(t->command, status) : EXIT_DONE;
        }
    }
    mla_text_close(text);
    if (!exit_status && t->json)
        exit_status = mla_json_write(t->command, json_incref(root), t->json);
    json_decref(root);
    return exit_status;
}

static int run_tune(const struct command *command, int argc, char **argv)
{
    struct tune t = {.command = command,
                     .models = "deepseek-v3.2",
                     .caches = "bf16",
                     .heads = "128,64,32,16,8",
                     .dtype = "bf16",
                     .fill = "normal",
                     .most_queries = 16384,
                     .most_keys = 65536,
                     .seed = 1};
    const char *topk = NULL;
    int64_t limit_ms = 200, topk_value = -1;
    const struct option options[] = {
        {"output", 'o', OPTION_TEXT, &t.out, "FILE", "the table"},
        {"json", 0, OPTION_TEXT, &t.json, "FILE", "the same as JSON; - = stdout"},
        {"backend", 0, OPTION_TEXT, &t.compute.backend, "NAME", "auto (default), cuda or cpu"},
        {"threads", 0, OPTION_COUNT, &t.compute.threads, "N", "CPU threads (default: all)"},
        {"model", 0, OPTION_TEXT, &t.models, "LIST", "dims (default deepseek-v3.2)"},
        {"heads", 0, OPTION_TEXT, &t.heads, "LIST", "heads of a rank (default 128,64,32,16,8)"},
        {"topk", 0, OPTION_TEXT, &topk, "K", "list width, 0 = none (default: the model's)"},
        {"cache", 0, OPTION_TEXT, &t.caches, "LIST", "formats (default bf16)"},
        {"dtype", 0, OPTION_TEXT, &t.dtype, "TYPE", "of queries (default bf16)"},
        {"fill", 0, OPTION_TEXT, &t.fill, "KIND", "of lists: normal (default) or sink"},
        {"queries", 0, OPTION_COUNT, &t.most_queries, "N", "largest prefill (default 16k)"},
        {"keys", 0, OPTION_COUNT, &t.most_keys, "N", "largest context before it (default 64k)"},
        {"limit", 0, OPTION_COUNT, &limit_ms, "MS",
         "leave out points whose runs take longer (200)"},
        {"seconds", 0, OPTION_COUNT, &t.seconds, "N",
         "a coarser grid, or fewer batches, so that each takes so long"},
        {"regret", 0, OPTION_COUNT, &t.regret, "N", "then judge the table on N random batches"},
        {"from", 0, OPTION_TEXT, &t.from, "FILE", "with --regret: this table, measure none"},
        {"seed", 0, OPTION_COUNT, &t.seed, "N", "of fills and batches (default 1)"},
        {0},
    };
    int exit_status;
    if (!mla_options_read(command, options, argc, argv, NULL, &exit_status))
        return exit_status;
    t.compute.backend = t.compute.backend ? t.compute.backend : "auto";
    t.limit = (double)limit_ms * 1e-3;
    if (topk) {
        char *end;
        topk_value = strtoll(topk, &end, 10);
        if (end == topk || *end || topk_value < 0 || topk_value > 1 << 20)
            return mla_usage(command, "--topk: got '%.40s', want 0 to 1048576", topk);
    }
    if (!t.out && !t.json && !t.from)
        return mla_usage(command, "-o: got nothing, want the file to write");
    if (t.from && (t.out || !t.regret))
        return mla_usage(command, "--from: got it %s, want it with --regret alone",
                         t.out ? "beside -o" : "without --regret");
    if (t.regret && !t.from && !t.out)
        return mla_usage(command, "--regret: got it without -o or --from, want a table to judge");
    if (strcmp(t.fill, "normal") != 0 && strcmp(t.fill, "sink") != 0)
        return mla_usage(command, "--fill: got '%.40s', want normal or sink", t.fill);
    if (t.most_queries < 4 || t.most_queries > 1 << 19 || t.most_keys > 1 << 19)
        return mla_usage(command,
                         "--queries, --keys: got %" PRId64 " and %" PRId64
                         ", want 4 to 512k and 0 to 512k",
                         t.most_queries, t.most_keys);
    if (strcmp(t.compute.backend, "model") == 0)
        return mla_usage(command,
                         "--backend: got model, which has no times; want cuda, cpu or auto");
    setenv("MLA_CROSSOVERS", "", 1); /* an old table there must not hinder making a new one */
    exit_status = read_settings(&t, topk_value);
    if (!exit_status)
        exit_status = mla_compute_words(command, &t.compute);
    if (!exit_status)
        exit_status = mla_compute_open(command, &t.compute);
    if (!exit_status)
        exit_status = tune_and_write(&t);
    mla_free(t.curves);
    mla_timer_free(t.timer);
    mla_pool_free(t.pool);
    mla_compute_close(&t.compute);
    return exit_status;
}

const struct command mla_command_tune = {
    "tune",
    "-o FILE [options]",
    "measures how long each route takes on this device, for routing",
    "MLA_CROSSOVERS=FILE or mla_context_load_crossovers makes plans route by the table. Minutes on "
    "a\n"
    "GPU; --seconds bounds the time, --heads, --queries, --keys and --limit what is measured.",
    run_tune,
};

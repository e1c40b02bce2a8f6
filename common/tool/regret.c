/* SPDX-License-Identifier: Apache-2.0 */
/* mla tune --regret: random mixed batches that the tuner did not see, as routed and under every
 * assignment of routes to requests. */
#include "input.h"
#include "tune.h"

#include "common/kernel.h"
#include "common/route.h"
#include "common/status.h"
#include "common/text.h"
#include "common/tool/random.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>
#include <unistd.h>

#define LONG 4e-3 /* seconds */

enum { MOST_REQUESTS = 4, MOST_WAYS = 64, FINALISTS = 3, FINAL_RUNS = 9 };

struct contest {
    struct mla_input in;
    mla_route routes[MOST_WAYS][MOST_REQUESTS];
    double seconds[MOST_WAYS];
    int ways;
};

static double uniform(uint64_t key, uint64_t *index)
{
    return (double)(mla_random_word(key, (*index)++) >> 11) * 0x1p-53;
}

/* Log-uniform lengths within the grid; a third are pure prefills, a sixth decodes. */
static void random_batch(const struct tune *t, uint64_t key, uint64_t *word, char *text,
                         size_t bytes)
{
    struct mla_text at = {.at = text, .bytes = bytes};
    int64_t n = 1 + (int64_t)(uniform(key, word) * MOST_REQUESTS);
    for (int64_t b = 0; b < n; b++) {
        double kind = uniform(key, word);
        double queries = exp2(uniform(key, word) * log2((double)t->most_queries));
        double context = exp2(uniform(key, word) * log2((double)t->most_keys + 64)) - 64;
        int64_t q = kind > 5.0 / 6 ? 1 : (int64_t)queries;
        int64_t c = kind < 1.0 / 3 || context < 0 ? 0 : (int64_t)context;
        mla_text_add(&at, "%sq%" PRId64 "s%" PRId64, b ? "," : "", q, q + c);
    }
}

/* Median of `runs` runs, of a third of them where they are long and hardly scatter. */
static mla_status time_plan(struct tune *t, const struct mla_input *in, const mla_route *routes,
                            int runs, double *seconds)
{
    mla_plan *plan;
    double times[MLA_TIMER_RUNS];
    mla_status status = mla_input_plan(in, &t->compute, MLA_ROUTE_AUTO, routes, &plan);
    if (!status)
        status = mla_timer_take(t->timer, plan, &in->problem, &in->tensors);
    if (!status)
        status = mla_timer_cold(t->timer, 1, times);
    if (!status && times[0] > LONG)
        runs = (runs + 2) / 3;
    if (!status && runs > 1)
        status = mla_timer_cold(t->timer, runs, times);
    if (!status)
        *seconds = mla_times_of(times, runs).median;
    mla_plan_destroy(plan);
    return status;
}

/* Every assignment of admissible routes; the last requests keep their first one if there would be
 * too many. */
static void list_ways(struct contest *c)
{
    const mla_problem *p = &c->in.problem;
    c->ways = 1;
    for (int64_t b = 0; b < p->batch; b++) {
        int ways = c->ways, first = 0;
        for (int r = MLA_ROUTE_DENSE_MHA; r < MLA_ROUTES; r++) {
            bool complete = c->in.complete && c->in.complete[b];
            if (!mla_route_admissible(p, (mla_route)r, complete, NULL))
                continue;
            if (first++ == 0) {
                for (int w = 0; w < ways; w++)
                    c->routes[w][b] = (mla_route)r;
                continue;
            }
            if (c->ways + ways > MOST_WAYS)
                break;
            for (int w = 0; w < ways; w++) {
                memcpy(c->routes[c->ways + w], c->routes[w], sizeof c->routes[w]);
                c->routes[c->ways + w][b] = (mla_route)r;
            }
            c->ways += ways;
        }
    }
}

static int fastest(const struct contest *c, const bool *taken)
{
    int best = -1;
    for (int w = 0; w < c->ways; w++)
        if (!taken[w] && c->seconds[w] > 0 && (best < 0 || c->seconds[w] < c->seconds[best]))
            best = w;
    return best;
}

struct verdict {
    double routed, best, sparse, wide;
    char which[96], chosen[96];
};

static void name_routes(const mla_route *routes, int64_t n, char *text, size_t bytes)
{
    struct mla_text at = {.at = text, .bytes = bytes};
    for (int64_t b = 0; b < n; b++)
        mla_text_add(&at, "%s%s", b ? "," : "", mla_route_name(routes[b]));
}

static mla_status routes_of(const struct tune *t, const struct mla_input *in, mla_route *routes)
{
    mla_plan *plan;
    mla_request_info info;
    mla_status status = mla_input_plan(in, &t->compute, MLA_ROUTE_AUTO, NULL, &plan);
    for (int64_t b = 0; b < in->problem.batch && !status; b++) {
        status = mla_plan_request(plan, b, &info);
        routes[b] = status ? MLA_ROUTE_AUTO : info.route;
    }
    mla_plan_destroy(plan);
    return status;
}

/* The best of the first round are timed again, beside the library's own choice: the least of many
 * noisy times is less than any of them takes. */
static mla_status judge(struct tune *t, struct contest *c, struct verdict *v)
{
    bool taken[MOST_WAYS] = {false};
    mla_route own[MOST_REQUESTS], wide[MOST_REQUESTS], sparse[MOST_REQUESTS];
    int64_t n = c->in.problem.batch;
    mla_status status = routes_of(t, &c->in, own);
    list_ways(c);
    for (int w = 0; w < c->ways && !status; w++) {
        c->seconds[w] = NAN;
        status = time_plan(t, &c->in, c->routes[w], 2, &c->seconds[w]);
        if (status == MLA_ERR_UNSUPPORTED)
            status = MLA_OK; /* no kernel */
    }
    if (!status)
        status = time_plan(t, &c->in, own, FINAL_RUNS, &v->routed);
    v->best = v->routed;
    if (!status)
        name_routes(own, n, v->chosen, sizeof v->chosen);
    memcpy(v->which, v->chosen, sizeof v->which);
    for (int f = 0; f < FINALISTS && !status; f++) {
        double seconds;
        int w = fastest(c, taken);
        if (w < 0)
            break;
        taken[w] = true;
        if (memcmp(c->routes[w], own, (size_t)n * sizeof *own) == 0)
            continue;
        status = time_plan(t, &c->in, c->routes[w], FINAL_RUNS, &seconds);
        if (!status && seconds < v->best) {
            v->best = seconds;
            name_routes(c->routes[w], n, v->which, sizeof v->which);
        }
    }
    for (int64_t b = 0; b < n; b++)
        sparse[b] = t->settings[0].topk ? MLA_ROUTE_SPARSE_MQA : MLA_ROUTE_DENSE_MQA;
    if (!status)
        status = time_plan(t, &c->in, sparse, TUNE_RUNS, &v->sparse);
    v->wide = v->sparse;
    if (!status && t->settings[0].topk) {
        mla_input_batch_wide(&c->in, &t->compute, wide);
        status = time_plan(t, &c->in, wide, TUNE_RUNS, &v->wide);
    }
    return status;
}

static json_t *row_json(const struct tune_setting *s, const char *batch, const struct verdict *v)
{
    return json_pack("{s:s, s:s, s:I, s:s, s:f, s:f, s:f, s:f, s:s, s:s}", "model", s->model,
                     "cache", s->cache, "heads", (json_int_t)s->heads, "batch", batch, "routed_us",
                     v->routed * 1e6, "best_us", v->best * 1e6, "all_mqa_us", v->sparse * 1e6,
                     "batch_wide_us", v->wide * 1e6, "routed", v->chosen, "best", v->which);
}

mla_status mla_tune_regret(struct tune *t, FILE *text, json_t **out)
{
    uint64_t key = mla_random_key((uint64_t)t->seed, 1), word = 0;
    double mean = 0, worst = 0, sparse = 0, wide = 0;
    int64_t done = 0;
    json_t *rows = json_array();
    mla_status status = MLA_OK;
    fprintf(text, "%-14s %5s %-11s %11s %11s %7s %8s %10s  %s\n", "model", "heads", "cache",
            "us(routed)", "us(best)", "regret", "all-mqa", "batch-wide", "batch");
    for (int64_t i = 0; i < t->regret && !status && !mla_tune_over(t); i++) {
        const struct tune_setting *s = &t->settings[i % t->num_settings];
        struct contest c = {0};
        struct verdict v = {0};
        char batch[256], problem[512];
        random_batch(t, key, &word, batch, sizeof batch);
        mla_tune_problem(t, s, s->topk, batch, problem, sizeof problem);
        status = mla_input_open(t->pool, &t->compute, problem, &c.in);
        if (!status)
            status = judge(t, &c, &v);
        mla_input_free(&c.in);
        if (status == MLA_ERR_MEMORY || status == MLA_ERR_UNSUPPORTED) {
            fprintf(text, "skip %s: %s\n", batch, mla_last_error());
            status = MLA_OK;
            continue;
        }
        if (status)
            break;
        double regret = v.routed / v.best - 1;
        fprintf(text, "%-14s %5" PRId64 " %-11s %11.1f %11.1f %6.1f%% %7.2fx %9.2fx  %s (%s%s%s)\n",
                s->model, s->heads, s->cache, v.routed * 1e6, v.best * 1e6, 100 * regret,
                v.sparse / v.routed, v.wide / v.routed, batch, v.chosen,
                regret > 0 ? "; best: " : "", regret > 0 ? v.which : "");
        fflush(text);
        if (isatty(STDERR_FILENO))
            fprintf(stderr, "\rbatch %" PRId64 " of %" PRId64 ", about %.0f s left   %s", i + 1,
                    t->regret,
                    (mla_seconds() - t->start) * (double)(t->regret - i - 1) / (double)(i + 1),
                    i + 1 == t->regret ? "\n" : "");
        json_array_append_new(rows, row_json(s, batch, &v));
        mean += regret;
        worst = regret > worst ? regret : worst;
        sparse += log(v.sparse / v.routed);
        wide += log(v.wide / v.routed);
        done++;
    }
    if (done)
        fprintf(text,
                "%" PRId64 " batches: regret %.1f %% in the mean, %.1f %% at worst; all sparse MQA "
                "takes %.2f times as long, batch-wide routing %.2f times (geometric means)\n",
                done, 100 * mean / (double)done, 100 * worst, exp(sparse / (double)done),
                exp(wide / (double)done));
    *out = json_pack("{s:I, s:f, s:f, s:f, s:f, s:o}", "batches", (json_int_t)done, "mean_regret",
                     done ? mean / (double)done : 0, "worst_regret", worst, "all_mqa_over_routed",
                     done ? exp(sparse / (double)done) : 1, "batch_wide_over_routed",
                     done ? exp(wide / (double)done) : 1, "rows", rows);
    return status;
}

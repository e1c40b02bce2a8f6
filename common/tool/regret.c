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

#define LONG 4e-3    /* seconds */
#define LOST 1.25    /* times the fastest so far: not timed again */
#define CLOSE 1.1    /* times the fastest of the first round: timed again */
#define STARTUP 2e-2 /* seconds that a first run may take for what is done once */

enum { MOST_REQUESTS = 4, MOST_WAYS = 128, CONTENDERS = 4, ROUNDS = 3, ROUND_RUNS = 3 };

struct contest {
    struct mla_input in;
    bool lost[MOST_REQUESTS]
             [MLA_ROUTES]; /* this request alone takes longer than the routed batch */
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

/* Runs of a plan: `runs`, a third of them where they are long and hardly scatter; one, or the
 * first that warms up, where it is slower than cut. *count: how many times there are. */
static mla_status time_runs(struct tune *t, const struct mla_input *in, const mla_plan *plan,
                            int runs, double cut, double *times, int *count)
{
    double start = mla_seconds();
    mla_status status = mla_timer_take(t->timer, plan, &in->problem, &in->tensors);
    *count = 1;
    times[0] = mla_seconds() - start;
    if (status || times[0] > 2 * cut + STARTUP)
        return status;
    status = mla_timer_cold(t->timer, 1, times);
    if (status || times[0] > cut)
        return status;
    *count = times[0] > LONG ? (runs + 2) / 3 : runs;
    return *count > 1 ? mla_timer_cold(t->timer, *count, times) : status;
}

static mla_status time_ways(struct tune *t, const struct mla_input *in, mla_route route,
                            const mla_route *routes, int runs, double cut, double *seconds)
{
    mla_plan *plan;
    double times[MLA_TIMER_RUNS];
    int count;
    mla_status status = mla_input_plan(in, &t->compute, route, routes, &plan);
    *seconds = NAN;
    if (!status)
        status = time_runs(t, in, plan, runs, cut, times, &count);
    if (!status)
        *seconds = mla_times_of(times, count).median;
    mla_plan_destroy(plan);
    return status;
}

/* Every assignment of admissible routes that are not lost; the last requests keep their first one
 * if there would be too many. */
static void list_ways(struct contest *c)
{
    const mla_problem *p = &c->in.problem;
    c->ways = 1;
    for (int64_t b = 0; b < p->batch; b++) {
        int ways = c->ways, first = 0;
        for (int r = MLA_ROUTE_DENSE_MHA; r < MLA_ROUTES; r++) {
            bool complete = c->in.complete && c->in.complete[b];
            if (c->lost[b][r] || !mla_route_admissible(p, (mla_route)r, complete, NULL))
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
    int ways;
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

/* A batch takes at least as long as any of its requests alone: which routes are lost, then. */
static mla_status find_lost(struct tune *t, const struct tune_setting *s, struct contest *c,
                            double routed)
{
    const mla_problem *p = &c->in.problem;
    int64_t n = p->batch;
    mla_status status = MLA_OK;
    for (int64_t b = 0; b < n && n > 1 && !status; b++) {
        char batch[64], problem[512];
        struct mla_input one;
        int64_t queries = (int64_t)p->cu_seqlens_q[b + 1] - p->cu_seqlens_q[b];
        snprintf(batch, sizeof batch, "q%" PRId64 "s%d", queries, (int)p->seq_lens_kv[b]);
        mla_tune_problem(t, s, s->topk, batch, problem, sizeof problem);
        status = mla_input_open(t->pool, &t->compute, problem, &one);
        for (int r = MLA_ROUTE_DENSE_MHA; r < MLA_ROUTES && !status; r++) {
            double seconds;
            bool complete = one.complete && one.complete[0];
            if (!mla_route_admissible(&one.problem, (mla_route)r, complete, NULL))
                continue;
            status = time_ways(t, &one, (mla_route)r, NULL, 1, routed, &seconds);
            c->lost[b][r] = !status && seconds > LOST * routed;
            if (status == MLA_ERR_UNSUPPORTED) { /* no kernel */
                c->lost[b][r] = true;
                status = MLA_OK;
            }
        }
        mla_input_free(&one);
    }
    return status;
}

/* The best of the first round in turns with the library's own choice, so that a clock that moves
 * moves all of them: the least of many noisy times is less than any of them takes. */
static mla_status last_rounds(struct tune *t, const struct mla_input *in,
                              mla_route (*routes)[MOST_REQUESTS], int contenders, double *seconds)
{
    double times[CONTENDERS][ROUNDS * ROUND_RUNS];
    int counts[CONTENDERS] = {0}, count;
    mla_status status = MLA_OK;
    for (int round = 0; round < ROUNDS && !status; round++)
        for (int i = 0; i < contenders && !status; i++) {
            mla_plan *plan;
            status = mla_input_plan(in, &t->compute, MLA_ROUTE_AUTO, routes[i], &plan);
            if (!status)
                status = time_runs(t, in, plan, ROUND_RUNS, INFINITY, &times[i][counts[i]], &count);
            counts[i] += status ? 0 : count;
            mla_plan_destroy(plan);
        }
    for (int i = 0; i < contenders && !status; i++)
        seconds[i] = mla_times_of(times[i], counts[i]).median;
    return status;
}

static mla_status judge(struct tune *t, const struct tune_setting *s, const char *problem,
                        struct contest *c, struct verdict *v)
{
    bool taken[MOST_WAYS] = {false};
    mla_route routes[CONTENDERS][MOST_REQUESTS], wide[MOST_REQUESTS], sparse[MOST_REQUESTS];
    double least, seconds[CONTENDERS];
    int64_t n = c->in.problem.batch;
    int contenders = 1;
    mla_status status = routes_of(t, &c->in, routes[0]);
    if (!status)
        status = time_ways(t, &c->in, MLA_ROUTE_AUTO, routes[0], 1, INFINITY, &least);
    if (!status)
        status = find_lost(t, s, c, least);
    mla_input_free(&c->in); /* single requests have taken its memory */
    if (!status)
        status = mla_input_open(t->pool, &t->compute, problem, &c->in);
    if (status)
        return status;
    list_ways(c);
    for (int w = 0; w < c->ways && !status && !mla_tune_over(t); w++) {
        status =
            time_ways(t, &c->in, MLA_ROUTE_AUTO, c->routes[w], 2, LOST * least, &c->seconds[w]);
        if (c->seconds[w] < least)
            least = c->seconds[w];
        if (status == MLA_ERR_UNSUPPORTED)
            status = MLA_OK; /* no kernel */
    }
    for (int w; contenders < CONTENDERS && (w = fastest(c, taken)) >= 0; taken[w] = true)
        if (c->seconds[w] < CLOSE * least &&
            memcmp(c->routes[w], routes[0], (size_t)n * sizeof(mla_route)) != 0)
            memcpy(routes[contenders++], c->routes[w], sizeof routes[0]);
    if (!status)
        status = last_rounds(t, &c->in, routes, contenders, seconds);
    if (status)
        return status;
    int best = 0;
    for (int i = 1; i < contenders; i++)
        best = seconds[i] < seconds[best] ? i : best;
    v->ways = c->ways;
    v->routed = seconds[0];
    v->best = seconds[best];
    name_routes(routes[0], n, v->chosen, sizeof v->chosen);
    name_routes(routes[best], n, v->which, sizeof v->which);
    for (int64_t b = 0; b < n; b++)
        sparse[b] = t->settings[0].topk ? MLA_ROUTE_SPARSE_MQA : MLA_ROUTE_DENSE_MQA;
    status = time_ways(t, &c->in, MLA_ROUTE_AUTO, sparse, TUNE_RUNS, INFINITY, &v->sparse);
    v->wide = v->sparse;
    if (!status && t->settings[0].topk) {
        mla_input_batch_wide(&c->in, &t->compute, wide);
        status = time_ways(t, &c->in, MLA_ROUTE_AUTO, wide, TUNE_RUNS, INFINITY, &v->wide);
    }
    return status;
}

static json_t *row_json(const struct tune_setting *s, const char *batch, const struct verdict *v)
{
    return json_pack("{s:s, s:s, s:I, s:s, s:i, s:f, s:f, s:f, s:f, s:s, s:s}", "model", s->model,
                     "cache", s->cache, "heads", (json_int_t)s->heads, "batch", batch, "ways",
                     v->ways, "routed_us", v->routed * 1e6, "best_us", v->best * 1e6, "all_mqa_us",
                     v->sparse * 1e6, "batch_wide_us", v->wide * 1e6, "routed", v->chosen, "best",
                     v->which);
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
            status = judge(t, s, problem, &c, &v);
        mla_input_free(&c.in);
        if (!status && mla_tune_over(t))
            break; /* in the middle of it */
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

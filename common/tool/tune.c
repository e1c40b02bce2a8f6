/* SPDX-License-Identifier: Apache-2.0 */
/* Measuring of a table of route times (common/crossover.h). */
#include "tune.h"

#include "input.h"

#include "common/kernel.h"
#include "common/status.h"

#include <inttypes.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LONG 4e-3  /* seconds of a run that keeps any device busy, and whose times hardly scatter */
#define SHORT 5e-4 /* seconds of a run in which launching counts, and whose times scatter */
#define HOPELESS 5 /* times the best route so far: such a point is not timed */
#define ENOUGH 6e-3 /* seconds of a batch from which one more request's time can be told */

static volatile sig_atomic_t interrupted;

static void on_interrupt(int number)
{
    interrupted = 1;
    signal(number, SIG_DFL); /* the second one ends the program */
}

void mla_tune_watch(struct tune *t)
{
    t->start = mla_seconds();
    interrupted = 0;
    signal(SIGINT, on_interrupt);
}

bool mla_tune_interrupted(void)
{
    return interrupted;
}

bool mla_tune_over(const struct tune *t)
{
    return interrupted || (t->seconds && mla_seconds() - t->start > (double)t->seconds);
}

void mla_tune_problem(const struct tune *t, const struct tune_setting *s, int64_t topk,
                      const char *batch, char *text, size_t bytes)
{
    snprintf(text, bytes,
             "attend model=%s heads=%" PRId64 " topk=%" PRId64
             " dtype=%s cache=%s batch=%s seed=%" PRId64 " fill=%s%s%s",
             s->model, s->heads, topk, t->dtype, s->cache, batch, t->seed, t->fill,
             strstr(s->cache, "_ds_mla") ? " page=64" : "", topk ? " complete=1" : "");
}

/* Median time of `copies` equal requests by a route, of fewer runs where they are long; NaN where
 * no kernel takes it or memory does not suffice. */
static mla_status time_copies(struct tune *t, const struct tune_setting *s, int64_t topk,
                              mla_route route, int64_t queries, int64_t context, int64_t copies,
                              double *seconds)
{
    char batch[96], text[512];
    struct mla_input in;
    mla_plan *plan = NULL;
    double times[3 * TUNE_RUNS] = {0};
    *seconds = NAN;
    snprintf(batch, sizeof batch, "%" PRId64 "q%" PRId64 "s%" PRId64, copies, queries,
             queries + context);
    mla_tune_problem(t, s, topk, batch, text, sizeof text);
    mla_status status = mla_input_open(t->pool, &t->compute, text, &in);
    if (status == MLA_ERR_MEMORY)
        return MLA_OK;
    if (status)
        return status;
    status = mla_input_plan(&in, &t->compute, route, NULL, &plan);
    if (!status)
        status = mla_timer_take(t->timer, plan, &in.problem, &in.tensors);
    if (!status)
        status = mla_timer_cold(t->timer, 1, times);
    int runs = times[0] > LONG ? 1 : times[0] > SHORT ? TUNE_RUNS : 3 * TUNE_RUNS;
    if (!status && runs > 1)
        status = mla_timer_cold(t->timer, runs, times);
    if (!status)
        *seconds = mla_times_of(times, runs).median;
    mla_plan_destroy(plan);
    mla_input_free(&in);
    return status == MLA_ERR_UNSUPPORTED || status == MLA_ERR_MEMORY ? MLA_OK : status;
}

static bool lists_route(int route)
{
    return route == MLA_ROUTE_MASKED_MHA || route == MLA_ROUTE_SPARSE_MQA;
}

/* Requests of one timing: enough to fill a device, few enough to fit. */
static int64_t copies_for(const struct tune *t, int64_t queries, int64_t context)
{
    bool device = t->compute.chosen == MLA_BACKEND_CUDA;
    int64_t want = (device ? 8192 : 64) / queries, most = (device ? 1 << 20 : 1 << 15);
    want = want > (device ? 64 : 8) ? (device ? 64 : 8) : want;
    most /= queries + context;
    want = want < most ? want : most;
    return want < 1 ? 1 : want;
}

/* Seconds of one request at a point of the grid; 0 where it was not timed. */
static double alone_at(const struct mla_route_curve *c, int route, int i, int j)
{
    mla_problem p;
    mla_curve_problem(c, &p);
    return c->alone[route][i][j] > 0 ? mla_route_flop(&p, (mla_route)route, c->queries[i],
                                                      c->queries[i] + c->contexts[j]) /
                                           c->alone[route][i][j]
                                     : 0;
}

/* By its smaller points, may a route be chosen at this one, and is it timed soon enough? At least
 * it takes what they take. At most it takes their rate; but small points are slow by that measure,
 * so that the mean of the two is as good a guess. */
static bool worth_timing(const struct tune *t, const struct mla_route_curve *c, int route, int i,
                         int j)
{
    double least = 0, rate = 0, other = INFINITY;
    mla_problem p;
    mla_curve_problem(c, &p);
    for (int k = 0; k <= i; k++)
        for (int l = 0; l <= j; l++) {
            least = fmax(least, alone_at(c, route, k, l));
            rate = fmax(rate, c->alone[route][k][l]);
        }
    if (rate <= 0)
        return true;
    for (int r = MLA_ROUTE_DENSE_MHA; r < MLA_ROUTES; r++)
        if (lists_route(r) == lists_route(route) && alone_at(c, r, i, j) > 0)
            other = fmin(other, alone_at(c, r, i, j));
    double most =
        mla_route_flop(&p, (mla_route)route, c->queries[i], c->queries[i] + c->contexts[j]) / rate;
    return least < HOPELESS * other && sqrt(least * most) < t->limit;
}

/* A route's time at one point of the grid: one request, and what one more adds. */
static mla_status tune_route(struct tune *t, int which, mla_route route, int i, int j)
{
    const struct tune_setting *s = &t->settings[which];
    struct mla_route_curve *c = &t->curves[which];
    int64_t queries = c->queries[i], context = c->contexts[j];
    int64_t topk = lists_route((int)route) ? c->topk : 0, copies = copies_for(t, queries, context);
    double flop, one, all;
    mla_problem p;
    mla_curve_problem(c, &p);
    flop = mla_route_flop(&p, route, queries, queries + context);
    if (!worth_timing(t, c, (int)route, i, j))
        return MLA_OK;
    mla_status status = time_copies(t, s, topk, route, queries, context, 1, &one);
    if (status || !(one > 0))
        return status;
    c->alone[route][i][j] = c->more[route][i][j] = flop / one;
    bool device = t->compute.chosen == MLA_BACKEND_CUDA;
    double most = device && ENOUGH < t->limit ? ENOUGH : t->limit;
    if ((double)copies * one > most)
        copies = (int64_t)(most / one);
    if (copies < 2 || (device && one > LONG))
        return MLA_OK;
    status = time_copies(t, s, topk, route, queries, context, copies, &all);
    if (status || !(all > 0))
        return status;
    double more = (all - one) / (double)(copies - 1), least = 0.25 * all / (double)copies;
    c->more[route][i][j] = flop / (more > least ? more : least);
    return MLA_OK;
}

static void progress(struct tune *t, const struct mla_route_curve *c, int i, int j)
{
    double spent = mla_seconds() - t->start;
    double left = t->done ? spent * (double)(t->points - t->done) / (double)t->done : 0;
    if (!isatty(STDERR_FILENO))
        return;
    if (t->seconds && left > (double)t->seconds - spent)
        left = (double)t->seconds - spent;
    fprintf(stderr,
            "\r%3.0f %%  heads %" PRId64 ", %" PRId64 " query tokens behind %" PRId64
            " keys, about %.0f s left   ",
            100.0 * (double)t->done / (double)t->points, c->heads_q, c->queries[i], c->contexts[j],
            left);
}

enum { PASSES = 3 };

/* Rows of the grid by pass: every fourth from the last and the first, every second, all. */
static int pass_of(const struct mla_route_curve *c, int i)
{
    int from_last = c->num_queries - 1 - i;
    return i == 0 || from_last % 4 == 0 ? 0 : from_last % 2 == 0 ? 1 : 2;
}

static mla_status tune_pass(struct tune *t, int which, int pass)
{
    struct mla_route_curve *c = &t->curves[which];
    mla_status status = MLA_OK;
    /* What seldom takes long first: others are left out where they would. */
    static const mla_route order[] = {MLA_ROUTE_SPARSE_MQA, MLA_ROUTE_MASKED_MHA,
                                      MLA_ROUTE_DENSE_MQA, MLA_ROUTE_DENSE_MHA};
    for (int i = 0; i < c->num_queries && !status; i++) {
        if (pass_of(c, i) != pass)
            continue;
        for (int j = 0; j < c->num_contexts && !status; j++) {
            progress(t, c, i, j);
            t->late += mla_tune_over(t);
            for (int r = 0; r < 4 && !status; r++)
                if (!mla_tune_over(t) && (!lists_route((int)order[r]) || c->topk))
                    status = tune_route(t, which, order[r], i, j);
            t->done++;
        }
    }
    return status;
}

/* 1, 4, 16, 64, then doubling: where routes cross, prefills are longer. */
static int query_grid(int64_t *at, int64_t most)
{
    int n = 0;
    for (int64_t x = 1; x <= most && n < MLA_CURVE_POINTS; x *= x < 64 ? 4 : 2)
        at[n++] = x;
    return n;
}

/* 0, 256, then times 4. */
static int context_grid(int64_t *at, int64_t most)
{
    int n = 0;
    at[n++] = 0;
    for (int64_t x = 256; x <= most && n < MLA_CURVE_POINTS; x *= 4)
        at[n++] = x;
    return n;
}

static mla_status start_curve(const struct tune *t, const struct tune_setting *s,
                              struct mla_route_curve *c)
{
    mla_problem p;
    mla_status status = mla_problem_init_model(&p, s->model);
    if (!status)
        status = mla_dtype_parse(t->dtype, &p.q_dtype);
    if (!status)
        status = mla_cache_format_parse(s->cache, &p.cache_format);
    *c = (struct mla_route_curve){.heads_q = s->heads,
                                  .kv_lora_rank = p.kv_lora_rank,
                                  .qk_nope_dim = p.qk_nope_dim,
                                  .qk_rope_dim = p.qk_rope_dim,
                                  .v_dim = p.v_dim,
                                  .topk = s->topk,
                                  .q_dtype = p.q_dtype,
                                  .cache_format = p.cache_format};
    c->num_queries = query_grid(c->queries, t->most_queries);
    c->num_contexts = context_grid(c->contexts, t->most_keys);
    return status;
}

bool mla_tune_whole(const struct mla_route_curve *c)
{
    for (int route = MLA_ROUTE_DENSE_MHA; route < MLA_ROUTES; route++) {
        bool any = lists_route(route) && !c->topk;
        for (int i = 0; i < c->num_queries; i++)
            for (int j = 0; j < c->num_contexts; j++)
                any |= c->more[route][i][j] > 0;
        if (!any)
            return false;
    }
    return true;
}

mla_status mla_tune_measure(struct tune *t)
{
    mla_status status = MLA_OK;
    t->curves = mla_alloc((size_t)t->num_settings, sizeof *t->curves);
    if (!t->curves)
        return mla_fail(MLA_ERR_MEMORY, "curves: no memory");
    for (int n = 0; n < t->num_settings && !status; n++) {
        status = start_curve(t, &t->settings[n], &t->curves[n]);
        t->points += (int64_t)t->curves[n].num_queries * t->curves[n].num_contexts;
    }
    for (int pass = 0; pass < PASSES; pass++)
        for (int n = 0; n < t->num_settings && !status; n++) {
            status = tune_pass(t, n, pass);
            if (!status && t->save)
                t->save(t);
        }
    if (isatty(STDERR_FILENO))
        fputc('\n', stderr);
    int kept = 0;
    for (int n = 0; n < t->num_settings && !status; n++) {
        if (!mla_tune_whole(&t->curves[n])) {
            fprintf(stderr, "mla tune: no time for heads %" PRId64 " of %s, cache %s: left out\n",
                    t->settings[n].heads, t->settings[n].model, t->settings[n].cache);
            continue;
        }
        t->settings[kept] = t->settings[n];
        t->curves[kept++] = t->curves[n];
    }
    t->num_settings = kept;
    if (!status && kept == 0 && mla_tune_over(t))
        status =
            mla_fail(MLA_ERR_UNSUPPORTED,
                     "tune: ended before any setting had a time of every route, want more time");
    else if (!status && kept == 0)
        status = mla_fail(MLA_ERR_UNSUPPORTED, "tune: no setting has a time of every route that it "
                                               "needs on this device");
    return status;
}

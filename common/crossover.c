/* SPDX-License-Identifier: Apache-2.0 */
/* Curves of measured rates: interpolation, and the choice of a curve. Reading and writing them is
 * in crossover_file.c. */
#include "crossover.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

void mla_curve_problem(const struct mla_route_curve *c, mla_problem *p)
{
    memset(p, 0, sizeof *p);
    p->form = MLA_FORM_LATENT;
    p->heads_q = c->heads_q;
    p->heads_kv = 1;
    p->kv_lora_rank = c->kv_lora_rank;
    p->qk_nope_dim = c->qk_nope_dim;
    p->qk_rope_dim = c->qk_rope_dim;
    p->v_dim = c->v_dim;
    p->q_dtype = p->kv_dtype = p->out_dtype = c->q_dtype;
    p->cache_format = c->cache_format;
    p->topk = c->topk;
    p->causal = true;
}

/* ------------------------------------------------------------ one curve */

/* Between measured neighbours in query tokens, log(rate) linear in log(queries). */
static void fill_between(const struct mla_route_curve *c, double (*rate)[MLA_CURVE_POINTS])
{
    for (int j = 0; j < c->num_contexts; j++)
        for (int i = 1, low = -1; i < c->num_queries; i++) {
            low = rate[i - 1][j] > 0 ? i - 1 : low;
            int high = i;
            while (high < c->num_queries && rate[high][j] <= 0)
                high++;
            if (low < 0 || high == i || high == c->num_queries)
                continue;
            double x = log((double)c->queries[i] / (double)c->queries[low]) /
                       log((double)c->queries[high] / (double)c->queries[low]);
            rate[i][j] = exp(log(rate[low][j]) * (1 - x) + log(rate[high][j]) * x);
        }
}

/* From the nearest in steps of the grid; the one with the fewest queries, then the fewest keys, of
 * several. */
static bool fill_nearest(const struct mla_route_curve *c, double (*rate)[MLA_CURVE_POINTS])
{
    double given[MLA_CURVE_POINTS][MLA_CURVE_POINTS];
    bool any = false;
    memcpy(given, rate, sizeof given);
    for (int i = 0; i < c->num_queries; i++)
        for (int j = 0; j < c->num_contexts; j++) {
            int best = 1 << 20;
            for (int k = 0; k < c->num_queries; k++)
                for (int l = 0; l < c->num_contexts; l++) {
                    int steps = (k > i ? k - i : i - k) + (l > j ? l - j : j - l);
                    if (given[k][l] > 0 && steps < best) {
                        best = steps;
                        rate[i][j] = given[k][l];
                    }
                }
            any |= best < 1 << 20;
        }
    return any;
}

bool mla_curve_fill(struct mla_route_curve *c, char *why, size_t bytes)
{
    for (int route = MLA_ROUTE_DENSE_MHA; route < MLA_ROUTES; route++) {
        bool needed = c->topk > 0 || route == MLA_ROUTE_DENSE_MHA || route == MLA_ROUTE_DENSE_MQA;
        fill_between(c, c->more[route]);
        fill_between(c, c->alone[route]);
        bool more = fill_nearest(c, c->more[route]);
        if (needed && !more) {
            snprintf(why, bytes, "no time of route %s", mla_route_name((mla_route)route));
            return false;
        }
        if (!fill_nearest(c, c->alone[route])) /* nobody knows better */
            memcpy(c->alone[route], c->more[route], sizeof c->alone[route]);
    }
    return true;
}

/* Where x lies among n ascending coordinates: cell and share of its upper end. */
static int locate(double x, const int64_t *at, int n, double shift, double *share)
{
    int i = 0;
    *share = 0;
    if (n < 2 || x <= log2((double)at[0] + shift))
        return 0;
    while (i < n - 2 && log2((double)at[i + 1] + shift) < x)
        i++;
    double low = log2((double)at[i] + shift), high = log2((double)at[i + 1] + shift);
    *share = x >= high ? 1 : (x - low) / (high - low);
    return i;
}

static double curve_rate(const struct mla_route_curve *c, const double (*rate)[MLA_CURVE_POINTS],
                         int64_t queries, int64_t context)
{
    double u, v, low, high;
    int i = locate(log2((double)(queries < 1 ? 1 : queries)), c->queries, c->num_queries, 0, &u);
    int j = locate(log2((double)(context < 0 ? 0 : context) + 64), c->contexts, c->num_contexts, 64,
                   &v);
    int i1 = u > 0 ? i + 1 : i, j1 = v > 0 ? j + 1 : j;
    if (rate[i][j] <= 0)
        return 0; /* a route that the curve does not have */
    low = log(rate[i][j]) * (1 - v) + log(rate[i][j1]) * v;
    high = log(rate[i1][j]) * (1 - v) + log(rate[i1][j1]) * v;
    return exp(low * (1 - u) + high * u);
}

/* -------------------------------------------------------- among the curves */

static bool same_dims(const struct mla_route_curve *c, const mla_problem *p)
{
    return c->kv_lora_rank == p->kv_lora_rank && c->qk_nope_dim == p->qk_nope_dim &&
           c->qk_rope_dim == p->qk_rope_dim && c->v_dim == p->v_dim;
}

/* Distance in what heads do not decide. */
static double distance(const struct mla_route_curve *c, const mla_problem *p)
{
    double topk = fabs(log2((double)(c->topk + 1)) - log2((double)(p->topk + 1)));
    if (p->topk == 0) /* then only dense routes count, which every curve has */
        topk = 0;
    else if (c->topk == 0)
        topk = 1e3;
    return (c->q_dtype != p->q_dtype) * 1e6 + (c->cache_format != p->cache_format) * 1e4 + topk;
}

/* The curves around the problem's heads among the nearest ones; NULL if none has its dims. */
static void around(const struct mla_route_table *table, const mla_problem *p,
                   const struct mla_route_curve **below, const struct mla_route_curve **above)
{
    double best = INFINITY;
    *below = *above = NULL;
    for (int64_t i = 0; i < table->num_curves; i++) {
        const struct mla_route_curve *c = &table->curves[i];
        double far = same_dims(c, p) ? distance(c, p) : INFINITY;
        if (!(far <= best) || !isfinite(far))
            continue;
        if (far < best)
            *below = *above = NULL;
        best = far;
        if (c->heads_q <= p->heads_q && (!*below || c->heads_q > (*below)->heads_q))
            *below = c;
        if (c->heads_q >= p->heads_q && (!*above || c->heads_q < (*above)->heads_q))
            *above = c;
    }
    *below = *below ? *below : *above;
    *above = *above ? *above : *below;
}

/* Rate at these lengths, in between two curves. */
static double rate_between(const struct mla_route_curve *low, const struct mla_route_curve *high,
                           double share, bool alone, mla_route route, int64_t queries,
                           int64_t context)
{
    double a = curve_rate(low, alone ? low->alone[route] : low->more[route], queries, context);
    if (high == low || a <= 0)
        return a;
    double b = curve_rate(high, alone ? high->alone[route] : high->more[route], queries, context);
    return b > 0 ? exp(log(a) * (1 - share) + log(b) * share) : 0;
}

bool mla_curves_cost(const struct mla_route_table *table, const mla_problem *p, mla_route route,
                     int64_t query_len, int64_t seq_len_kv, double *seconds, double *overhead)
{
    const struct mla_route_curve *low, *high;
    around(table, p, &low, &high);
    if (!low)
        return false;
    int64_t context = seq_len_kv - query_len;
    double share = high == low ? 0
                               : log((double)p->heads_q / (double)low->heads_q) /
                                     log((double)high->heads_q / (double)low->heads_q);
    double more = rate_between(low, high, share, false, route, query_len, context);
    double alone = rate_between(low, high, share, true, route, query_len, context);
    double flop = mla_route_flop(p, route, query_len, seq_len_kv);
    *seconds = more > 0 ? flop / more : INFINITY;
    *overhead = more > 0 && alone > 0 && alone < more ? flop / alone - flop / more : 0;
    return true;
}

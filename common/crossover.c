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

bool mla_curve_fill(struct mla_route_curve *c, char *why, size_t bytes)
{
    for (int route = MLA_ROUTE_DENSE_MHA; route < MLA_ROUTES; route++) {
        double given[MLA_CURVE_POINTS][MLA_CURVE_POINTS];
        bool any = false;
        memcpy(given, c->rate[route], sizeof given);
        for (int i = 0; i < c->num_queries; i++) {
            for (int j = 0; j < c->num_contexts; j++) {
                int best = 1 << 20;
                for (int k = 0; k < c->num_queries; k++)
                    for (int l = 0; l < c->num_contexts; l++) {
                        /* Nearest in steps of the grid; the one with the fewest queries, then the
                         * fewest keys, of several. */
                        int steps = (k > i ? k - i : i - k) + (l > j ? l - j : j - l);
                        if (given[k][l] > 0 && steps < best) {
                            best = steps;
                            c->rate[route][i][j] = given[k][l];
                        }
                    }
                any |= best < 1 << 20;
            }
        }
        bool needed = c->topk > 0 || route == MLA_ROUTE_DENSE_MHA || route == MLA_ROUTE_DENSE_MQA;
        if (needed && !any) {
            snprintf(why, bytes, "no time of route %s", mla_route_name((mla_route)route));
            return false;
        }
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

static double curve_rate(const struct mla_route_curve *c, mla_route route, int64_t queries,
                         int64_t context)
{
    double u, v, low, high;
    int i = locate(log2((double)(queries < 1 ? 1 : queries)), c->queries, c->num_queries, 0, &u);
    int j = locate(log2((double)(context < 0 ? 0 : context) + 64), c->contexts, c->num_contexts, 64,
                   &v);
    int i1 = u > 0 ? i + 1 : i, j1 = v > 0 ? j + 1 : j;
    const double(*rate)[MLA_CURVE_POINTS] = c->rate[route];
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
    for (int64_t i = 0; i < table->num_curves; i++)
        if (same_dims(&table->curves[i], p) && distance(&table->curves[i], p) < best)
            best = distance(&table->curves[i], p);
    for (int64_t i = 0; i < table->num_curves; i++) {
        const struct mla_route_curve *c = &table->curves[i];
        if (!same_dims(c, p) || distance(c, p) > best)
            continue;
        if (c->heads_q <= p->heads_q && (!*below || c->heads_q > (*below)->heads_q))
            *below = c;
        if (c->heads_q >= p->heads_q && (!*above || c->heads_q < (*above)->heads_q))
            *above = c;
    }
    *below = *below ? *below : *above;
    *above = *above ? *above : *below;
}

bool mla_curves_cost(const struct mla_route_table *table, const mla_problem *p, mla_route route,
                     int64_t query_len, int64_t seq_len_kv, double *seconds, double *overhead)
{
    const struct mla_route_curve *low, *high;
    around(table, p, &low, &high);
    if (!low)
        return false;
    int64_t context = seq_len_kv - query_len;
    double rate = curve_rate(low, route, query_len, context), share = 0;
    *overhead = low->overhead[route];
    if (high != low) {
        double other = curve_rate(high, route, query_len, context);
        share = log((double)p->heads_q / (double)low->heads_q) /
                log((double)high->heads_q / (double)low->heads_q);
        rate = rate > 0 && other > 0 ? exp(log(rate) * (1 - share) + log(other) * share) : 0;
        *overhead = *overhead * (1 - share) + high->overhead[route] * share;
    }
    *seconds = rate > 0 ? mla_route_flop(p, route, query_len, seq_len_kv) / rate : INFINITY;
    return true;
}

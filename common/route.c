/* SPDX-License-Identifier: Apache-2.0 */
/* Routing of one request. FLOP a query-key pair and head (multiply-add = 2):
 *   expanded form (MHA)  2·(d_qk + d_v) = 2·(192 + 128) = 640 at DeepSeek-V3's dims
 *   absorbed form (MQA)  2·(2·L + dr)   = 2·(1024 + 64) = 2176
 * and the projections, 2·L·(dn + dv) = 262144 a head: MHA up-projects every key once, MQA absorbs
 * into every query. A causal prefill of s tokens has s²/2 pairs masked, at most topk·s listed, so
 * MHA and sparse MQA meet where 320·s² = 2176·(topk·s - topk²/2): s = 12 813 at topk 2048. */
#include "route.h"

#include "crossover.h"
#include "kernel.h"
#include "status.h"

#include <math.h>

static const struct mla_route_rate flop_rates[] = {{1, {1, 1, 1, 1, 1}}};
const struct mla_route_table mla_route_table_flop = {"flop", 1, flop_rates, 0, 0, 0, NULL};
static const struct mla_route_rate gpu_rates[] = {{1, {1, 1, 0.93, 0.5, 0.7}}};
const struct mla_route_table mla_route_table_gpu = {
    "flop and gather", 1, gpu_rates, 70, 16, 0, NULL};

const struct mla_route_table *mla_route_table_of(mla_backend backend)
{
    return backend == MLA_BACKEND_CPU ? &mla_route_table_flop : &mla_route_table_gpu;
}

static bool is_mha(mla_route route)
{
    return route == MLA_ROUTE_DENSE_MHA || route == MLA_ROUTE_MASKED_MHA;
}

static bool is_dense(mla_route route)
{
    return route == MLA_ROUTE_DENSE_MHA || route == MLA_ROUTE_DENSE_MQA;
}

/* Sum over query rows of min(limit, keys allowed by causality). */
static double sum_of_ends(const mla_problem *p, int64_t query_len, int64_t seq_len_kv,
                          int64_t limit)
{
    double q = (double)query_len, n = (double)seq_len_kv, k = (double)limit;
    if (query_len <= 0 || seq_len_kv <= 0)
        return 0;
    if (!p->causal)
        return q * (n < k ? n : k);
    /* Row i may see first + i keys; the first `short_rows` rows stay below the limit. */
    double first = n - q + 1;
    double short_rows = k - first;
    short_rows = short_rows < 0 ? 0 : short_rows > q ? q : short_rows;
    return short_rows * first + short_rows * (short_rows - 1) / 2 +
           (q - short_rows) * (n < k ? n : k);
}

double mla_pairs_dense(const mla_problem *p, int64_t query_len, int64_t seq_len_kv)
{
    return sum_of_ends(p, query_len, seq_len_kv, seq_len_kv);
}

double mla_pairs_listed(const mla_problem *p, int64_t query_len, int64_t seq_len_kv)
{
    return sum_of_ends(p, query_len, seq_len_kv, p->topk ? p->topk : seq_len_kv);
}

double mla_route_flop(const mla_problem *p, mla_route route, int64_t query_len, int64_t seq_len_kv)
{
    double heads = (double)p->heads_q, rank = (double)p->kv_lora_rank;
    double pairs = route == MLA_ROUTE_SPARSE_MQA ? mla_pairs_listed(p, query_len, seq_len_kv)
                                                 : mla_pairs_dense(p, query_len, seq_len_kv);
    double pair_flop = is_mha(route) ? 2.0 * (double)(p->qk_nope_dim + p->qk_rope_dim + p->v_dim)
                                     : 2.0 * (2.0 * rank + (double)p->qk_rope_dim);
    double projection = 0;
    if (p->form == MLA_FORM_LATENT)
        projection = 2.0 * rank * (double)(p->qk_nope_dim + p->v_dim) *
                     (double)(is_mha(route) ? seq_len_kv : query_len);
    return heads * (pairs * pair_flop + projection);
}

double mla_route_bytes(const mla_problem *p, mla_route route, int64_t query_len, int64_t seq_len_kv)
{
    double q = (double)query_len, n = (double)seq_len_kv, heads = (double)p->heads_q;
    double element = (double)mla_dtype_bytes(p->q_dtype), bytes;
    bytes = q * heads *
            ((double)(p->form == MLA_FORM_LATENT ? p->qk_nope_dim + p->qk_rope_dim : mla_d_qk(p)) *
                 element +
             (double)mla_d_v(p) * (double)mla_dtype_bytes(p->out_dtype));
    if (p->form == MLA_FORM_EXPANDED)
        return bytes + n * (double)p->heads_kv * (double)(mla_d_qk(p) + p->v_dim) *
                           (double)mla_dtype_bytes(p->kv_dtype);
    if (p->form == MLA_FORM_LATENT)
        bytes += heads * (double)p->kv_lora_rank * (double)(p->qk_nope_dim + p->v_dim) * element;
    double rows = route == MLA_ROUTE_SPARSE_MQA ? mla_pairs_listed(p, query_len, seq_len_kv) : n;
    return bytes +
           rows * (double)mla_cache_row_bytes(p->cache_format, p->kv_lora_rank, p->qk_rope_dim);
}

bool mla_route_admissible(const mla_problem *p, mla_route route, bool lists_complete,
                          const char **why)
{
    static const char *unused;
    why = why ? why : &unused;
    if (p->form == MLA_FORM_ABSORBED && is_mha(route))
        *why = "an absorbed problem has no per-head k and v";
    else if (p->form == MLA_FORM_EXPANDED && !is_mha(route))
        *why = "an expanded problem has no latents";
    else if (route == MLA_ROUTE_SPARSE_MQA && p->topk == 0)
        *why = "it needs topk_indices";
    else if (route == MLA_ROUTE_MASKED_MHA && p->topk == 0 && !p->has_mask)
        *why = "it needs topk_indices or mask";
    else if (is_dense(route) && p->topk > 0 && !lists_complete)
        *why = "topk_indices leave out keys that a row may see, or are not known to be complete";
    else
        return true;
    return false;
}

/* Rate of a route at this head count, interpolated in log(heads). */
static double rate_of(const struct mla_route_table *table, mla_route route, int64_t heads)
{
    const struct mla_route_rate *rows = table->rows;
    int64_t last = table->num_rows - 1, i = 0;
    if (heads <= rows[0].heads_q)
        return rows[0].rate[route];
    while (i < last && rows[i + 1].heads_q < heads)
        i++;
    if (i == last)
        return rows[last].rate[route];
    double x = log((double)heads / (double)rows[i].heads_q) /
               log((double)rows[i + 1].heads_q / (double)rows[i].heads_q);
    return rows[i].rate[route] * (1 - x) + rows[i + 1].rate[route] * x;
}

/* FLOP over rate. Of sparse MQA, listed pairs count in whole tiles of heads, and take at least what
 * the gather of their rows does. */
static double model_cost(const struct mla_route_table *table, const mla_problem *p, mla_route route,
                         int64_t query_len, int64_t seq_len_kv)
{
    double flop = mla_route_flop(p, route, query_len, seq_len_kv);
    double rate = rate_of(table, route, p->heads_q), heads = (double)p->heads_q;
    if (route != MLA_ROUTE_SPARSE_MQA || table->tile_heads <= 0)
        return flop / rate;
    double pairs = mla_pairs_listed(p, query_len, seq_len_kv);
    double pair_flop = 2.0 * (2.0 * (double)p->kv_lora_rank + (double)p->qk_rope_dim);
    double tiles = ceil(heads / (double)table->tile_heads);
    double attention = pairs * pair_flop * tiles * (double)table->tile_heads / rate;
    double gather = pairs * table->gather_flop *
                    (double)mla_cache_row_bytes(p->cache_format, p->kv_lora_rank, p->qk_rope_dim);
    return (flop - pairs * pair_flop * heads) / rate + fmax(attention, gather);
}

static mla_route set(struct mla_route_choice *out, mla_route route, const char *reason)
{
    out->reason = reason;
    return out->route = route;
}

/* The rules in order; first match wins. cost[] is filled. */
static mla_route decide(const mla_problem *p, int64_t seq_len_kv, bool lists_complete,
                        double mqa_over_mha, struct mla_route_choice *out)
{
    bool lists = p->topk > 0;
    const double *cost = out->cost;
    if (p->form == MLA_FORM_EXPANDED)
        return lists || p->has_mask
                   ? set(out, MLA_ROUTE_MASKED_MHA, "expanded problem with lists or a mask")
                   : set(out, MLA_ROUTE_DENSE_MHA, "expanded problem");
    if (p->form == MLA_FORM_ABSORBED)
        return lists ? set(out, MLA_ROUTE_SPARSE_MQA, "absorbed problem with top-k lists")
                     : set(out, MLA_ROUTE_DENSE_MQA, "absorbed problem");
    if (mqa_over_mha <= 1)
        return lists ? set(out, MLA_ROUTE_SPARSE_MQA, "few query tokens, top-k lists")
                     : set(out, MLA_ROUTE_DENSE_MQA, "few query tokens");
    if (!lists)
        return p->has_mask ? set(out, MLA_ROUTE_MASKED_MHA, "mask given, MHA costs less")
                           : set(out, MLA_ROUTE_DENSE_MHA, "no lists, MHA costs less");
    if (lists_complete && seq_len_kv <= p->topk)
        return set(out, MLA_ROUTE_DENSE_MHA, "lists hold every visible key");
    return cost[MLA_ROUTE_MASKED_MHA] <= cost[MLA_ROUTE_SPARSE_MQA]
               ? set(out, MLA_ROUTE_MASKED_MHA, "up to the crossover")
               : set(out, MLA_ROUTE_SPARSE_MQA, "beyond the crossover");
}

/* Measured times decide alone: of the admissible routes the fastest. */
static bool decide_measured(const mla_problem *p, const struct mla_route_table *table,
                            int64_t query_len, int64_t seq_len_kv, bool lists_complete,
                            struct mla_route_choice *out)
{
    if (p->form != MLA_FORM_LATENT || table->num_curves == 0 || query_len <= 0)
        return false;
    for (int route = MLA_ROUTE_DENSE_MHA; route < MLA_ROUTES; route++) {
        out->cost[route] = INFINITY;
        if (mla_route_admissible(p, (mla_route)route, lists_complete, NULL) &&
            !mla_curves_cost(table, p, (mla_route)route, query_len, seq_len_kv, &out->cost[route],
                             &out->overhead[route]))
            return false;
    }
    mla_route best = MLA_ROUTE_DENSE_MHA;
    for (int route = MLA_ROUTE_DENSE_MHA; route < MLA_ROUTES; route++)
        if (out->cost[route] < out->cost[best])
            best = (mla_route)route;
    out->measured = isfinite(out->cost[best]);
    if (out->measured)
        set(out, best, "fastest by measured times");
    return out->measured;
}

/* Seconds of the batch: each request one more in its job, and each job's largest overhead. */
static double batch_seconds(const struct mla_route_choice *choices, const bool *skip, int64_t n)
{
    enum { JOBS = 32 };
    double total = 0, most[JOBS];
    int keys[JOBS], jobs = 0;
    for (int64_t i = 0; i < n; i++) {
        const struct mla_route_choice *c = &choices[i];
        if (skip[i] || !c->measured)
            continue;
        int key = c->job[c->route] * MLA_ROUTES + (int)c->route, j = 0;
        while (j < jobs && keys[j] != key)
            j++;
        if (j == jobs && jobs < JOBS) {
            keys[jobs] = key;
            most[jobs++] = 0;
        }
        j = j < JOBS ? j : JOBS - 1;
        most[j] = fmax(most[j], c->overhead[c->route]);
        total += c->cost[c->route];
    }
    for (int j = 0; j < jobs; j++)
        total += most[j];
    return total;
}

/* Each request's cheapest route of a set; false if one has none. */
static bool take_set(struct mla_route_choice *choices, const bool *skip, int64_t n, unsigned routes)
{
    for (int64_t i = 0; i < n; i++) {
        struct mla_route_choice *c = &choices[i];
        mla_route best = MLA_ROUTE_AUTO;
        if (skip[i] || !c->measured)
            continue;
        for (int r = MLA_ROUTE_DENSE_MHA; r < MLA_ROUTES; r++)
            if ((routes & MLA_BIT(r)) && isfinite(c->cost[r]) &&
                (best == MLA_ROUTE_AUTO || c->cost[r] < c->cost[best]))
                best = (mla_route)r;
        if (best == MLA_ROUTE_AUTO)
            return false;
        c->route = best;
    }
    return true;
}

/* One request at a time moves to another route while the batch gains. */
static void improve(struct mla_route_choice *choices, const bool *skip, int64_t n)
{
    double least = batch_seconds(choices, skip, n);
    bool moved = true;
    for (int pass = 0; pass < 4 && moved; pass++) {
        moved = false;
        for (int64_t i = 0; i < n; i++) {
            struct mla_route_choice *c = &choices[i];
            mla_route best = c->route;
            if (skip[i] || !c->measured)
                continue;
            for (int r = MLA_ROUTE_DENSE_MHA; r < MLA_ROUTES; r++) {
                if (!isfinite(c->cost[r]))
                    continue;
                c->route = (mla_route)r;
                double total = batch_seconds(choices, skip, n);
                if (total < least * (1 - 1e-9)) {
                    least = total;
                    best = (mla_route)r;
                    moved = true;
                }
            }
            c->route = best;
        }
    }
}

/* Each set of routes in turn, and from it one request at a time; the best stays in best[]. Batches
 * of many requests improve on the best set alone: what that costs grows with the square of n. */
static double settle(struct mla_route_choice *choices, const bool *skip, int64_t n, mla_route *best)
{
    enum { FEW = 16, SOME = 64 };
    double least = INFINITY;
    for (unsigned routes = 2; routes < MLA_BIT(MLA_ROUTES); routes += 2) { /* AUTO is bit 0 */
        if (!take_set(choices, skip, n, routes))
            continue;
        if (n <= FEW)
            improve(choices, skip, n);
        double total = batch_seconds(choices, skip, n);
        if (total >= least)
            continue;
        least = total;
        for (int64_t i = 0; i < n; i++)
            best[i] = choices[i].route;
    }
    if (n <= FEW || n > SOME || !isfinite(least))
        return least;
    for (int64_t i = 0; i < n; i++)
        choices[i].route = best[i];
    improve(choices, skip, n);
    for (int64_t i = 0; i < n; i++)
        best[i] = choices[i].route;
    return batch_seconds(choices, skip, n);
}

void mla_route_settle(struct mla_route_choice *choices, const bool *skip, int64_t n)
{
    mla_route *before = n > 0 ? mla_alloc((size_t)n * 2, sizeof *before) : NULL;
    if (!before)
        return; /* each request's own choice is a good one */
    mla_route *best = before + n;
    for (int64_t i = 0; i < n; i++)
        before[i] = choices[i].route;
    bool found = isfinite(settle(choices, skip, n, best));
    for (int64_t i = 0; i < n; i++) {
        bool settled = found && !skip[i] && choices[i].measured;
        choices[i].route = settled ? best[i] : before[i];
        if (choices[i].route != before[i])
            choices[i].reason = "fastest together with the batch, by measured times";
    }
    mla_free(before);
}

static void fit_mask(int64_t query_len, int64_t seq_len_kv, size_t budget,
                     struct mla_route_choice *out)
{
    size_t row_bytes = (size_t)((seq_len_kv + 31) / 32 * 4);
    budget = budget ? budget : MLA_DEFAULT_MASK_BYTES;
    out->rows_per_pass = query_len > 0 ? query_len : 1;
    if (row_bytes && (size_t)out->rows_per_pass > budget / row_bytes)
        out->rows_per_pass = budget >= row_bytes ? (int64_t)(budget / row_bytes) : 1;
}

void mla_route_choose(const mla_problem *p, int64_t query_len, int64_t seq_len_kv,
                      bool lists_complete, const struct mla_route_table *table, size_t budget,
                      struct mla_route_choice *out)
{
    *out = (struct mla_route_choice){0};
    fit_mask(query_len, seq_len_kv, budget, out);
    if (decide_measured(p, table, query_len, seq_len_kv, lists_complete, out))
        return;
    for (int route = MLA_ROUTE_DENSE_MHA; route < MLA_ROUTES; route++)
        out->cost[route] = mla_route_admissible(p, (mla_route)route, lists_complete, NULL)
                               ? model_cost(table, p, (mla_route)route, query_len, seq_len_kv)
                               : INFINITY;
    /* "Few" query tokens: absorbing them costs no more than up-projecting every key, lists
     * aside. */
    double mha = model_cost(table, p, MLA_ROUTE_DENSE_MHA, query_len, seq_len_kv);
    double mqa = model_cost(table, p, MLA_ROUTE_DENSE_MQA, query_len, seq_len_kv);
    decide(p, seq_len_kv, lists_complete, mha > 0 ? mqa / mha : 1, out);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* Counts of bad elements by head, dim, row and request, and their description in words. */
#include "cluster.h"

#include "common/format.h"
#include "common/kernel.h"
#include "common/status.h"
#include "common/text.h"
#include "reference/reference.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { KEPT = 32, TILE = 64 };
#define LOG2E 1.4426950408889634

struct mla_cluster {
    const struct mla_case *c;
    int64_t H, d, T, B;
    int64_t *head, *dim, *row, *request; /* bad elements by … */
    bool *judged_row, *judged_request;
    int64_t bad, rows_seen; /* bad elements; rows given to mla_cluster_row */
    struct {
        int64_t row, head;
    } kept[KEPT];
    int num_kept;
    /* what wrong rows look like */
    int64_t scaled, like_head, like_row, zero;
    double least_factor, most_factor;
    int64_t head_step, row_step; /* of like_head, like_row; INT64_MIN = mixed */
    int64_t lse_bad, lse_base2, lse_base_e, lse_no_sink, lse_twice_sink;
};

struct mla_cluster *mla_cluster_new(const struct mla_case *c, const int64_t *rows, int64_t num_rows)
{
    const mla_problem *p = &c->problem;
    struct mla_cluster *k = mla_alloc(1, sizeof *k);
    if (!k)
        return NULL;
    *k = (struct mla_cluster){
        .c = c, .H = p->heads_q, .d = mla_d_v(p), .T = mla_total_q(p), .B = p->batch};
    k->head = mla_alloc((size_t)(k->H + k->d + k->T + k->B), sizeof *k->head);
    k->judged_row = mla_alloc((size_t)(k->T + k->B) + 1, 1);
    if (!k->head || !k->judged_row) {
        mla_cluster_free(k);
        return NULL;
    }
    k->dim = k->head + k->H;
    k->row = k->dim + k->d;
    k->request = k->row + k->T;
    k->judged_request = k->judged_row + k->T;
    int64_t b = 0;
    for (int64_t i = 0; i < num_rows; i++) {
        while (p->cu_seqlens_q[b + 1] <= rows[i])
            b++;
        k->judged_row[rows[i]] = k->judged_request[b] = true;
    }
    return k;
}

void mla_cluster_free(struct mla_cluster *k)
{
    if (!k)
        return;
    mla_free(k->head);
    mla_free(k->judged_row);
    mla_free(k);
}

void mla_cluster_bad(struct mla_cluster *k, int64_t request, int64_t row, int64_t head, int64_t dim)
{
    k->bad++;
    k->head[head]++;
    k->dim[dim]++;
    k->row[row]++;
    k->request[request]++;
}

/* Does got equal other as closely as a right result would (twice the bound, by distance)? */
static bool like(const double *other, const double *got, const double *hard, int64_t d)
{
    double size = 0;
    for (int64_t c = 0; c < d; c++) {
        if (!(fabs(got[c] - other[c]) <= 2 * hard[c]))
            return false;
        size += fabs(other[c]);
    }
    return size > 0;
}

void mla_cluster_row(struct mla_cluster *k, int64_t row, int64_t head, const double *want,
                     const double *got, const double *hard, const struct mla_cluster_slice *slice)
{
    k->rows_seen++;
    if (k->num_kept < KEPT) {
        k->kept[k->num_kept].row = row;
        k->kept[k->num_kept++].head = head;
    }
    double xy = 0, yy = 0, size = 0;
    for (int64_t c = 0; c < k->d; c++) {
        xy += got[c] * want[c];
        yy += want[c] * want[c];
        size += fabs(got[c]);
    }
    k->zero += size == 0;
    double factor = yy > 0 ? xy / yy : 0, rest = 0, off = 0;
    for (int64_t c = 0; c < k->d; c++) {
        rest += (got[c] - factor * want[c]) * (got[c] - factor * want[c]);
        off += (got[c] - want[c]) * (got[c] - want[c]);
    }
    if (size > 0 && rest < 0.01 * off) { /* nine tenths of the error are one factor */
        k->least_factor = k->scaled ? fmin(k->least_factor, factor) : factor;
        k->most_factor = k->scaled ? fmax(k->most_factor, factor) : factor;
        k->scaled++;
    }
    if (k->rows_seen > 256 || size == 0) /* enough to tell */
        return;
    for (int64_t i = 0; i < slice->n; i++) {
        int64_t step = slice->rows[i] - row;
        if (step < -2 || step > 2)
            continue;
        for (int64_t h = 0; h < k->H; h++) {
            if ((step == 0) == (h == head)) /* another head of this row, or this head elsewhere */
                continue;
            if (!like(slice->out + (i * k->H + h) * k->d, got, hard, k->d))
                continue;
            int64_t *count = step ? &k->like_row : &k->like_head;
            int64_t *found = step ? &k->row_step : &k->head_step, now = step ? step : h - head;
            *found = *count == 0 || *found == now ? now : INT64_MIN;
            (*count)++;
            return;
        }
    }
}

void mla_cluster_lse(struct mla_cluster *k, double sink, double want, double got, double hard)
{
    double near = 4 * hard + 1e-5 * (fabs(want) + 1);
    double unit = k->c->problem.lse_base == MLA_LSE_2 ? LOG2E : 1, e = want / unit;
    k->lse_bad++;
    if (!isfinite(want) || !isfinite(got))
        return;
    k->lse_base2 += fabs(got - want * LOG2E) <= near;
    k->lse_base_e += fabs(got - want / LOG2E) <= near;
    if (!(sink > -INFINITY) || sink >= e)
        return;
    k->lse_no_sink += fabs(got - unit * (e + log1p(-exp(sink - e)))) <= near;
    k->lse_twice_sink += fabs(got - unit * (e + log1p(exp(sink - e)))) <= near;
}

/* --------------------------------------------------------------------- words */

static void say(struct mla_text *t, const char *between)
{
    if (t->used > 0)
        mla_text_add(t, "%s", between);
}

/* Which of n places are bad, in the shortest true words; nothing if all or none are. judged NULL =
 * all places were looked at. */
static void describe(struct mla_text *t, const char *name, const char *plural, const int64_t *count,
                     const bool *judged, int64_t n)
{
    int64_t bad = 0, all = 0, first = -1, last = -1, gaps = 0, total = 0;
    for (int64_t i = 0; i < n; i++) {
        if (judged && !judged[i])
            continue;
        all++;
        total += count[i];
        if (!count[i])
            continue;
        first = first < 0 ? i : first;
        last = i;
        bad++;
    }
    if (bad == 0 || bad == all)
        return;
    say(t, "; ");
    if (bad == 1) {
        mla_text_add(t, "%s %lld only", name, (long long)first);
        return;
    }
    for (int64_t i = first; i <= last; i++)
        gaps += !count[i] && (!judged || judged[i]);
    if (gaps == 0) {
        mla_text_add(t, "%s %lld-%lld only", name, (long long)first, (long long)last);
        return;
    }
    for (int64_t m = 2; m <= 128 && 2 * m <= n; m *= 2) {
        /* Places whose remainder is bad somewhere: are they all bad, and at most half of all? */
        bool hit[128] = {false};
        int64_t hits = 0, low = -1, high = -1, members = 0;
        for (int64_t i = 0; i < n; i++)
            if (count[i] && !hit[i % m]) {
                hit[i % m] = true;
                hits++;
            }
        for (int64_t i = 0; i < n; i++)
            members += hit[i % m] && (!judged || judged[i]);
        for (int64_t i = 0; i < m; i++)
            if (hit[i]) {
                low = low < 0 ? i : low;
                high = i;
            }
        if (2 * hits > m || high - low + 1 != hits || 10 * bad < 9 * members)
            continue;
        if (m == 2)
            mla_text_add(t, "%s %s only", low ? "odd" : "even", plural);
        else if (hits == 1)
            mla_text_add(t, "%s %lld of every %lld only", name, (long long)low, (long long)m);
        else
            mla_text_add(t, "%s %lld-%lld of every %lld only", name, (long long)low,
                         (long long)high, (long long)m);
        return;
    }
    if (bad <= 4) {
        const char *comma = "";
        mla_text_add(t, "%s ", plural);
        for (int64_t i = first; i <= last; i++)
            if (count[i]) {
                mla_text_add(t, "%s%lld", comma, (long long)i);
                comma = ", ";
            }
        mla_text_add(t, " only");
        return;
    }
    /* The shortest stretch that holds nine tenths of the bad elements. */
    int64_t best = n, from = 0, sum = 0;
    for (int64_t a = 0, e = 0; a < n; sum -= count[a++]) {
        while (e < n && 10 * sum < 9 * total)
            sum += count[e++];
        if (10 * sum >= 9 * total && e - a < best) {
            best = e - a;
            from = a;
        }
    }
    if (2 * best <= n)
        mla_text_add(t, "mostly %s %lld-%lld", name, (long long)from, (long long)(from + best - 1));
    else
        mla_text_add(t, "%lld of %lld %s", (long long)bad, (long long)all, plural);
}

/* Position of the key with more than half of the weight in one row, or -1. */
static int64_t heaviest_key(const struct mla_cluster *k, int64_t row, int64_t head, double *scratch)
{
    const mla_problem *p = &k->c->problem;
    const mla_tensors *t = &k->c->tensors;
    struct mla_request r = {0};
    while (p->cu_seqlens_q[r.index + 1] <= row) {
        r.kv_start += p->seq_lens_kv[r.index];
        r.index++;
    }
    r.q_start = p->cu_seqlens_q[r.index];
    r.query_len = p->cu_seqlens_q[r.index + 1] - r.q_start;
    r.seq_len_kv = p->seq_lens_kv[r.index];
    int64_t seq = mla_run_seq_len(&r, t), L = p->kv_lora_rank, dr = p->qk_rope_dim, best = -1;
    bool latent = p->form == MLA_FORM_LATENT;
    int64_t dk = latent ? L + dr : mla_d_qk(p), dn = latent ? p->qk_nope_dim : 0;
    size_t size = mla_dtype_bytes(p->q_dtype);
    double *q = scratch, *key = q + dk, *w = key + dk, *nope = w + dk, max = -INFINITY, sum = 0;
    const mla_tensor *source = latent ? &t->q_nope : &t->q;
    int64_t width = latent ? dn : dk;
    const char *data = source->data;
    mla_load_f64(p->q_dtype,
                 data + size * (size_t)(row * mla_stride0(source, width * p->heads_q) +
                                        head * mla_stride1(source, width)),
                 width, latent ? nope : q);
    if (latent) {
        memset(q, 0, (size_t)L * sizeof *q);
        for (int64_t d = 0; d < dn; d++) {
            mla_load_f64(p->q_dtype,
                         (const char *)t->w_uk.data +
                             size * (size_t)(head * mla_stride0(&t->w_uk, dn * L) +
                                             d * mla_stride1(&t->w_uk, L)),
                         L, w);
            for (int64_t l = 0; l < L; l++)
                q[l] += nope[d] * w[l];
        }
        if (dr)
            mla_load_f64(p->q_dtype,
                         (const char *)t->q_pe.data +
                             size * (size_t)(row * mla_stride0(&t->q_pe, dr * p->heads_q) +
                                             head * mla_stride1(&t->q_pe, dr)),
                         dr, q + L);
    }
    for (int64_t j = 0; j < seq; j++) {
        if (!mla_visible(p, t, &r, row - r.q_start, j, seq))
            continue;
        if (p->form == MLA_FORM_EXPANDED) {
            int64_t hk = head / (p->heads_q / p->heads_kv);
            mla_load_f64(p->kv_dtype,
                         (const char *)t->k.data +
                             mla_dtype_bytes(p->kv_dtype) *
                                 (size_t)((r.kv_start + j) * mla_stride0(&t->k, dk * p->heads_kv) +
                                          hk * mla_stride1(&t->k, dk)),
                         dk, key);
        } else {
            mla_cache_rows_f64(p, t, &r, seq, NULL, j, 1, key, dk, NULL);
        }
        double s = 0;
        for (int64_t d = 0; d < dk; d++)
            s += q[d] * key[d];
        s *= p->softmax_scale;
        if (s > max) {
            sum *= exp(max - s);
            max = s;
            best = j;
        }
        sum += exp(s - max);
    }
    return sum < 2 ? best : -1;
}

/* Where the dominating keys of bad rows lie. */
static void describe_keys(const struct mla_cluster *k, struct mla_text *t)
{
    const mla_problem *p = &k->c->problem;
    int64_t width = p->kv_lora_rank + p->qk_nope_dim + p->qk_rope_dim, longest = 1, n = 0;
    int64_t key[KEPT], low = INT64_MAX, high = -1;
    for (int64_t b = 0; b < p->batch; b++)
        longest = p->seq_lens_kv[b] > longest ? p->seq_lens_kv[b] : longest;
    /* Lists are searched for each key, so a row costs keys · topk. */
    double cost = (double)longest * (double)(width + (p->topk > 0 ? p->topk / 2 : 0));
    double *scratch = mla_alloc((size_t)(4 * width) + 1, sizeof *scratch);
    for (int i = 0; scratch && i < k->num_kept && cost * (i + 1) < 1e9; i++) {
        key[n] = heaviest_key(k, k->kept[i].row, k->kept[i].head, scratch);
        if (key[n] < 0)
            break; /* rows without a dominating key tell nothing */
        low = key[n] < low ? key[n] : low;
        high = key[n] > high ? key[n] : high;
        n++;
    }
    mla_free(scratch);
    if (n < k->num_kept || n == 0 || k->rows_seen == k->H * k->T)
        return;
    int64_t page = p->page_size > 0 ? p->page_size : TILE;
    const char *unit = p->page_size > 0 ? "page" : "64 keys";
    bool ends = true, starts = true;
    for (int64_t i = 0; i < n; i++) {
        ends &= key[i] % page == page - 1;
        starts &= key[i] % page == 0;
    }
    if (low == high) {
        say(t, "; ");
        mla_text_add(t, "heaviest key always %lld", (long long)low);
    } else if (n > 2 && (ends || starts)) {
        say(t, "; ");
        mla_text_add(t, "heaviest key always the %s of a %s", ends ? "last" : "first", unit);
    } else if (n > 2 && low / TILE == high / TILE) {
        say(t, "; ");
        mla_text_add(t, "heaviest key always in keys %lld-%lld", (long long)(low / TILE * TILE),
                     (long long)(low / TILE * TILE + TILE - 1));
    }
}

/* Positions within requests, if rows of several requests are bad. */
static void describe_rows(const struct mla_cluster *k, struct mla_text *t)
{
    const mla_problem *p = &k->c->problem;
    int64_t longest = 0, requests = 0, one = 0;
    for (int64_t b = 0; b < k->B; b++) {
        int64_t n = p->cu_seqlens_q[b + 1] - p->cu_seqlens_q[b];
        longest = n > longest ? n : longest;
        if (k->request[b]) {
            requests++;
            one = b;
        }
    }
    if (requests == 1) {
        int64_t from = p->cu_seqlens_q[one], n = p->cu_seqlens_q[one + 1] - from;
        describe(t, "query", "queries", k->row + from, k->judged_row + from, n);
        return;
    }
    int64_t *count = mla_alloc((size_t)longest + 1, sizeof *count);
    bool *judged = mla_alloc((size_t)longest + 1, 1);
    for (int64_t b = 0; count && judged && b < k->B; b++)
        for (int64_t r = p->cu_seqlens_q[b]; r < p->cu_seqlens_q[b + 1]; r++) {
            judged[r - p->cu_seqlens_q[b]] |= k->judged_row[r];
            count[r - p->cu_seqlens_q[b]] += k->row[r];
        }
    if (count && judged)
        describe(t, "query", "queries", count, judged, longest);
    mla_free(count);
    mla_free(judged);
}

static bool most(int64_t part, int64_t all)
{
    return all > 0 && 10 * part >= 9 * all;
}

void mla_cluster_describe(const struct mla_cluster *k, struct mla_check_report *report)
{
    struct mla_text t = {.at = report->where, .bytes = sizeof report->where};
    if (k->bad) {
        describe(&t, "request", "requests", k->request, k->judged_request, k->B);
        describe(&t, "head", "heads", k->head, NULL, k->H);
        describe_rows(k, &t);
        describe(&t, "d", "dims", k->dim, NULL, k->d);
        describe_keys(k, &t);
        if (t.used == 0)
            mla_text_add(&t, "everywhere: all requests, heads, queries and dims");
    }
    t = (struct mla_text){.at = report->hint, .bytes = sizeof report->hint};
    int64_t rows = k->rows_seen, looked = rows < 256 ? rows : 256;
    if (most(k->zero, rows)) {
        mla_text_add(&t, "bad rows are all zero");
    } else if (most(k->like_head, looked)) {
        mla_text_add(&t, "bad rows hold the value of another head");
        if (k->head_step != INT64_MIN)
            mla_text_add(&t, " (head %+lld)", (long long)k->head_step);
    } else if (most(k->like_row, looked)) {
        mla_text_add(&t, "bad rows hold the value of another query");
        if (k->row_step != INT64_MIN)
            mla_text_add(&t, " (query %+lld)", (long long)k->row_step);
    } else if (most(k->scaled, rows)) {
        mla_text_add(&t, "bad rows are the right ones times %.4g", k->least_factor);
        if (k->most_factor - k->least_factor > 1e-3 * fabs(k->least_factor))
            mla_text_add(&t, " to %.4g", k->most_factor);
        mla_text_add(&t, ": look at the row sum%s",
                     k->c->problem.has_sink ? ", the sink and the rescale" : " and the rescale");
    }
    const char *lse = most(k->lse_base2, k->lse_bad)        ? "in base 2, want base e"
                      : most(k->lse_base_e, k->lse_bad)     ? "in base e, want base 2"
                      : most(k->lse_no_sink, k->lse_bad)    ? "without the sink"
                      : most(k->lse_twice_sink, k->lse_bad) ? "with the sink counted twice"
                                                            : NULL;
    if (k->lse_bad && k->c->problem.lse_base == MLA_LSE_2 && most(k->lse_base2, k->lse_bad))
        lse = "multiplied by log2(e) once too often";
    if (lse) {
        say(&t, "; ");
        mla_text_add(&t, "lse looks %s%s", lse[0] == 'm' ? "" : "computed ", lse);
    }
}

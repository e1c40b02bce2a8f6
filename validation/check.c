/* SPDX-License-Identifier: Apache-2.0 */
/* The verdict: a result element by element against the fp64 reference and its bounds. Rows are
 * taken in slices, so that reference and bounds of a large case need not be in memory at once. What
 * bad elements have in common is worked out in cluster.c; text and JSON are in report.c. */
#include "validation/check.h"

#include "cluster.h"
#include "common/format.h"
#include "common/kernel.h"
#include "common/status.h"
#include "reference/reference.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define SLICE ((int64_t)4 << 20) /* elements of out judged at once: five doubles each */
#define Z_LIMIT 1.3

struct judge {
    const struct mla_case *c;
    const mla_problem *p;
    const struct mla_result *result;
    const struct mla_check_options *o;
    struct mla_check_report *r;
    struct mla_cluster *cluster;
    int64_t H, d, at;    /* at: first judged row of the slice */
    const int64_t *rows; /* judged rows, ascending */
    int64_t num_rows, slice, num_slice;
    bool counts;       /* T and z count */
    bool *poisoned;    /* per request: some row sees a key that is not finite */
    int64_t *kv_start; /* per request: its first key in a flat cache */
    double *out, *hard, *stat, *sigma, *lse, *lse_hard, *lse_sigma, *max, *max_hard, *max_sigma,
        *got;
    double xy, xx, yy, ee;
    double sum[2]; /* of err / sigma: lse, max_logits */
    int64_t summed[2];
    int64_t zeros, most_keys;
    int64_t compared; /* elements of out that are finite on both sides */
};

/* The request that holds a row: the only one whose start is <= row < end. */
static int64_t request_of(const mla_problem *p, int64_t row)
{
    int64_t low = 0, high = p->batch - 1;
    while (low < high) {
        int64_t b = (low + high) / 2;
        if (p->cu_seqlens_q[b + 1] <= row)
            low = b + 1;
        else
            high = b;
    }
    return low;
}

static struct mla_request request_at(const struct judge *j, int64_t b)
{
    const mla_problem *p = j->p;
    return (struct mla_request){.index = b,
                                .q_start = p->cu_seqlens_q[b],
                                .query_len = p->cu_seqlens_q[b + 1] - p->cu_seqlens_q[b],
                                .kv_start = j->kv_start[b],
                                .seq_len_kv = p->seq_lens_kv[b]};
}

/* -------------------------------------------------------------- what it sees */

/* Number of keys that a row may see, up to 2: enough to tell a weak row. */
static int64_t keys_seen(const struct judge *judge, int64_t row)
{
    const struct mla_case *c = judge->c;
    const mla_problem *p = judge->p;
    struct mla_request r = request_at(judge, request_of(p, row));
    int64_t seq = mla_run_seq_len(&r, &c->tensors), i = row - r.q_start, seen = 0;
    if (p->topk > 0 && !p->has_mask) {
        const int32_t *list = (const int32_t *)c->tensors.topk_indices.data +
                              row * mla_stride0(&c->tensors.topk_indices, p->topk);
        int64_t n = p->has_topk_lens ? c->tensors.topk_lens[row] : p->topk;
        int64_t end = mla_causal_end(p, &r, i, seq);
        end = end < seq ? end : seq;
        for (int64_t e = 0; e < n && e < p->topk && seen < 2; e++)
            seen += list[e] >= 0 && list[e] < end;
        return seen;
    }
    for (int64_t j = 0; j < seq && seen < 2; j++)
        seen += mla_visible(p, &c->tensors, &r, i, j, seq);
    return seen;
}

/* Does some row of the request see a key that holds NaN or inf? */
static mla_status find_poisoned(struct judge *j)
{
    const mla_problem *p = j->p;
    const mla_tensors *t = &j->c->tensors;
    int64_t width =
        p->form == MLA_FORM_EXPANDED ? mla_d_qk(p) + p->v_dim : p->kv_lora_rank + p->qk_rope_dim;
    double *x = mla_alloc((size_t)width, sizeof *x);
    if (!x)
        return mla_fail(MLA_ERR_MEMORY, "mla_check_result: no memory for a key");
    for (int64_t b = 0; b < p->batch; b++) {
        struct mla_request r = request_at(j, b);
        int64_t seq = mla_run_seq_len(&r, t);
        for (int64_t k = 0; k < seq && !j->poisoned[b]; k++) {
            if (p->form == MLA_FORM_EXPANDED) {
                size_t size = mla_dtype_bytes(p->kv_dtype);
                int64_t dk = mla_d_qk(p), row = r.kv_start + k;
                bool bad = false;
                for (int64_t h = 0; h < p->heads_kv && !bad; h++) {
                    int64_t at =
                        row * mla_stride0(&t->k, dk * p->heads_kv) + h * mla_stride1(&t->k, dk);
                    mla_load_f64(p->kv_dtype, (const char *)t->k.data + (size_t)at * size, dk, x);
                    at = row * mla_stride0(&t->v, p->v_dim * p->heads_kv) +
                         h * mla_stride1(&t->v, p->v_dim);
                    mla_load_f64(p->kv_dtype, (const char *)t->v.data + (size_t)at * size, p->v_dim,
                                 x + dk);
                    for (int64_t i = 0; i < width; i++)
                        bad |= !isfinite(x[i]);
                }
                if (!bad)
                    continue;
            } else {
                double sum = 0;
                mla_cache_rows_f64(p, t, &r, seq, NULL, k, 1, x, width, NULL);
                for (int64_t i = 0; i < width; i++)
                    sum += 0 * x[i];
                if (sum == 0)
                    continue;
            }
            for (int64_t i = 0; i < r.query_len && !j->poisoned[b]; i++)
                j->poisoned[b] = mla_visible(p, t, &r, i, k, seq);
        }
    }
    mla_free(x);
    return MLA_OK;
}

/* Values of a few keys of the first request that has some: nearly constant, or neighbours of
 * opposite sign? Both hide bugs (docs/numerics.md §6). */
static mla_status judge_values(const struct judge *j, const char **why)
{
    enum { KEYS = 32 };
    const mla_problem *p = j->p;
    const mla_tensors *t = &j->c->tensors;
    bool expanded = p->form == MLA_FORM_EXPANDED;
    int64_t dv = mla_d_v(p), L = p->kv_lora_rank, ld = expanded ? dv : L + p->qk_rope_dim;
    double *x = mla_alloc((size_t)(KEYS * (ld + dv) + dv), sizeof *x);
    if (!x)
        return mla_fail(MLA_ERR_MEMORY, "mla_check_result: no memory for keys");
    double *v = x + KEYS * ld;
    for (int64_t b = 0; b < p->batch; b++) {
        struct mla_request r = request_at(j, b);
        int64_t seq = mla_run_seq_len(&r, t), n = seq < KEYS ? seq / 2 * 2 : KEYS;
        if (n < 4)
            continue;
        if (expanded) {
            for (int64_t i = 0; i < n; i++)
                mla_load_f64(p->kv_dtype,
                             (const char *)t->v.data +
                                 mla_dtype_bytes(p->kv_dtype) *
                                     (size_t)((r.kv_start + i) *
                                              mla_stride0(&t->v, dv * p->heads_kv)),
                             dv, x + i * ld);
        } else {
            mla_cache_rows_f64(p, t, &r, seq, NULL, 0, n, x, ld, NULL);
        }
        memset(v, 0, (size_t)(n * dv) * sizeof *v);
        for (int64_t l = 0; p->form == MLA_FORM_LATENT && l < L; l++) {
            double *w = v + KEYS * dv;
            mla_load_f64(p->q_dtype,
                         (const char *)t->w_uv.data +
                             mla_dtype_bytes(p->q_dtype) * (size_t)(l * mla_stride1(&t->w_uv, dv)),
                         dv, w);
            for (int64_t i = 0; i < n; i++)
                for (int64_t c = 0; c < dv; c++)
                    v[i * dv + c] += x[i * ld + l] * w[c];
        }
        double size = 0, change = 0, pair = 0;
        for (int64_t i = 0; i < n; i++)
            for (int64_t c = 0; c < dv; c++) {
                const double *y = p->form == MLA_FORM_LATENT ? v : x;
                int64_t s = p->form == MLA_FORM_LATENT ? dv : ld;
                size += fabs(y[i * s + c]);
                change += fabs(y[i * s + c] - y[c]);
                pair += fabs(y[i * s + c] + y[(i ^ 1) * s + c]);
            }
        if (change <= size / 64)
            *why = "values of the keys are nearly constant: a lost or swapped key would not show";
        else if (pair <= size / 64)
            *why = "values come in pairs of opposite sign: outputs are near 0 whatever is lost";
        break;
    }
    mla_free(x);
    return MLA_OK;
}

/* ------------------------------------------------------------------- points */

/* Hard violations come before statistical ones. */
static double badness(const struct mla_check_point *x)
{
    if (!isfinite(x->got) || !isfinite(x->want))
        return INFINITY;
    double err = fabs(x->got - x->want);
    return err > x->hard || x->tensor ? err / x->hard : err / x->statistical * 0x1p-100;
}

/* Keeps the worst eight, at most two of one row and head. */
static void keep_point(struct mla_check_report *r, const struct mla_check_point *x)
{
    int same = 0, weakest = -1, weakest_same = -1;
    for (int i = 0; i < r->num_points; i++) {
        const struct mla_check_point *y = &r->points[i];
        if (weakest < 0 || badness(y) < badness(&r->points[weakest]))
            weakest = i;
        if (y->tensor == x->tensor && y->row == x->row && y->head == x->head) {
            same++;
            if (weakest_same < 0 || badness(y) < badness(&r->points[weakest_same]))
                weakest_same = i;
        }
    }
    int at = same >= 2 ? weakest_same : r->num_points < 8 ? r->num_points : weakest;
    if (at == r->num_points)
        r->num_points++;
    else if (badness(x) <= badness(&r->points[at]))
        return;
    r->points[at] = *x;
}

static void sort_points(struct mla_check_report *r)
{
    for (int i = 1; i < r->num_points; i++)
        for (int k = i; k > 0 && badness(&r->points[k]) > badness(&r->points[k - 1]); k--) {
            struct mla_check_point x = r->points[k];
            r->points[k] = r->points[k - 1];
            r->points[k - 1] = x;
        }
}

/* ------------------------------------------------------------------ elements */

/* All ones, the pattern that outputs hold before a run. */
static bool is_poison(const void *data, mla_dtype type, int64_t i)
{
    size_t bytes = mla_dtype_bytes(type);
    const unsigned char *x = (const unsigned char *)data + (size_t)i * bytes;
    for (size_t k = 0; k < bytes; k++)
        if (x[k] != 0xFF)
            return false;
    return true;
}

/* What passes where got is not what the reference has: nothing; NaN and inf for each other (their
 * meeting depends on the order of sums); NaN for anything. */
enum tolerance { TOLERATE_NOTHING, TOLERATE_KIND, TOLERATE_NAN };

/* A request with a key that holds NaN or inf, seen by some row of it. */
static enum tolerance tolerance_of(const struct judge *j, int64_t request)
{
    return !j->poisoned[request]        ? TOLERATE_NOTHING
           : j->o->nonfinite_may_spread ? TOLERATE_NAN
                                        : TOLERATE_KIND;
}

/* One element: counts it, returns whether it is bad (H or not finite). */
static bool judge_element(struct mla_check_tensor *t, double want, double got, double hard,
                          bool poison, enum tolerance tolerance)
{
    t->elements++;
    if (!isfinite(want) || !isfinite(got)) {
        if (isnan(want) ? isnan(got) : got == want)
            return false;
        bool kind = tolerance != TOLERATE_NOTHING && !isfinite(want) && !isfinite(got);
        if (!poison && (kind || (tolerance == TOLERATE_NAN && isnan(got))))
            return false;
        t->bad++;
        if (poison)
            t->unwritten++;
        else
            t->nonfinite += isfinite(want) != isfinite(got);
        return true;
    }
    double err = fabs(got - want);
    if (isinf(hard)) {
        t->vacuous++;
        return false;
    }
    double share = err > 0 ? err / hard : 0;
    t->share_hard = fmax(t->share_hard, share);
    t->bad += share > 1;
    return share > 1;
}

/* Do T and z count? */
static bool statistics_count(const struct judge *j)
{
    const char *fill = j->c->fill;
    bool random = !strcmp(fill, "normal") || !strcmp(fill, "diffuse") || !strcmp(fill, "large");
    return j->o->mode == MLA_VERDICT_STRICT || (j->o->mode == MLA_VERDICT_DEFAULT && random);
}

/* One value of lse or max_logits. */
static void judge_scalar(struct judge *j, struct mla_check_tensor *t, struct mla_check_point *x,
                         const void *data, int64_t flat, double sigma)
{
    mla_dtype type = j->result->lse_dtype;
    mla_load_f64(type, (const char *)data + (size_t)flat * mla_dtype_bytes(type), 1, &x->got);
    bool poison = isnan(x->got) && is_poison(data, type, flat);
    enum tolerance tolerance = tolerance_of(j, x->request);
    if (tolerance == TOLERATE_KIND && x->want == -INFINITY) /* a row without keys */
        tolerance = TOLERATE_NOTHING;
    bool bad = judge_element(t, x->want, x->got, x->hard, poison, tolerance);
    if (isfinite(x->want) && isfinite(x->got) && !isinf(x->hard)) {
        double err = x->got - x->want, units = err == 0 ? 0 : err / sigma;
        x->statistical = fmin(x->hard, 6 * sigma);
        t->share_statistical = fmax(t->share_statistical, fabs(units) / 6);
        t->bad_t += fabs(units) > 6;
        bad |= j->counts && fabs(units) > 6;
        j->sum[x->tensor - 1] += units;
        j->summed[x->tensor - 1]++;
    }
    if (bad)
        keep_point(j->r, x);
    if (bad && x->tensor == 1) {
        double sink = j->p->has_sink ? j->c->tensors.attn_sink[x->head] : -INFINITY;
        mla_cluster_lse(j->cluster, sink, x->want, x->got, x->hard);
    }
}

static void judge_row(struct judge *j, int64_t i, int64_t h)
{
    struct mla_check_report *r = j->r;
    int64_t m = i * j->H + h, row = j->rows[j->at + i], b = request_of(j->p, row);
    int64_t flat = row * j->H + h;
    struct mla_check_point x = {.row = row,
                                .head = h,
                                .request = b,
                                .position = row - j->p->cu_seqlens_q[b]};
    enum tolerance tolerance = tolerance_of(j, b);
    double z = 0;
    int64_t judged = 0, bad = 0;
    for (int64_t c = 0; c < j->d; c++) {
        int64_t e = m * j->d + c;
        double want = j->out[e], got = j->got[e];
        bool poison =
            isnan(got) && is_poison(j->result->out, j->result->out_dtype, flat * j->d + c);
        x.dim = c;
        x.want = want;
        x.got = got;
        x.hard = j->hard[e];
        x.statistical = j->stat[e];
        if (judge_element(&r->out, want, got, j->hard[e], poison, tolerance)) {
            mla_cluster_bad(j->cluster, b, row, h, c);
            keep_point(r, &x);
            bad++;
        }
        j->zeros += want == 0;
        r->rtol_bad += isfinite(want) != isfinite(got);
        if (!isfinite(want) || !isfinite(got))
            continue;
        double err = fabs(got - want);
        j->compared++;
        j->xy += got * want;
        j->xx += got * got;
        j->yy += want * want;
        j->ee += err * err;
        r->rtol_bad += err > 1e-2 + 1e-2 * fabs(want);
        if (isinf(j->hard[e]))
            continue;
        double share = err > 0 ? err / j->stat[e] : 0;
        r->out.share_statistical = fmax(r->out.share_statistical, share);
        r->out.bad_t += share > 1;
        if (j->counts && share > 1 && err <= j->hard[e]) {
            mla_cluster_bad(j->cluster, b, row, h, c);
            keep_point(r, &x);
            bad++;
        }
        z += err / j->sigma[e] * (err / j->sigma[e]);
        judged++;
    }
    z = judged ? sqrt(z / (double)judged) : 0;
    r->out.worst_z = fmax(r->out.worst_z, z);
    r->out.bad_z += z > Z_LIMIT;
    for (int64_t c = 0; j->counts && z > Z_LIMIT && !bad && c < j->d; c++)
        mla_cluster_bad(j->cluster, b, row, h, c);
    if (bad || (j->counts && z > Z_LIMIT)) {
        struct mla_cluster_slice slice = {j->rows + j->at, j->num_slice, j->out};
        mla_cluster_row(j->cluster, row, h, j->out + m * j->d, j->got + m * j->d,
                        j->hard + m * j->d, &slice);
    }
    x.dim = -1;
    x.statistical = 0;
    if (j->result->lse) {
        x.tensor = 1;
        x.want = j->lse[m];
        x.hard = j->lse_hard[m];
        judge_scalar(j, &r->lse, &x, j->result->lse, flat, j->lse_sigma[m]);
    }
    if (j->result->max_logits) {
        x.tensor = 2;
        x.want = j->max[m];
        x.hard = j->max_hard[m];
        judge_scalar(j, &r->max_logits, &x, j->result->max_logits, flat, j->max_sigma[m]);
    }
}

static mla_status judge_slice(struct judge *j, int64_t n)
{
    mla_reference_args args = {.rows = j->rows + j->at,
                               .num_rows = n,
                               .rounding = j->o->rounding,
                               .out = j->out,
                               .lse = j->lse,
                               .max_logits = j->max,
                               .hard = j->hard,
                               .statistical = j->stat,
                               .sigma = j->sigma,
                               .lse_hard = j->lse_hard,
                               .lse_sigma = j->lse_sigma,
                               .max_sigma = j->max_sigma,
                               .max_hard = j->max_hard};
    mla_status status = mla_reference(j->o->context, j->p, &j->c->tensors, &args);
    if (status != MLA_OK)
        return status;
    int64_t width = j->H * j->d;
    j->num_slice = n;
    for (int64_t i = 0; i < n; i++)
        mla_load_f64(j->result->out_dtype,
                     (const char *)j->result->out + (size_t)(j->rows[j->at + i] * width) *
                                                        mla_dtype_bytes(j->result->out_dtype),
                     width, j->got + i * width);
    for (int64_t i = 0; i < n; i++)
        for (int64_t h = 0; h < j->H; h++)
            judge_row(j, i, h);
    for (int64_t i = 0; i < n; i++) {
        int64_t seen = keys_seen(j, j->rows[j->at + i]);
        j->most_keys = seen > j->most_keys ? seen : j->most_keys;
    }
    return MLA_OK;
}

/* ------------------------------------------------------------------- verdict */

static void decide(struct judge *j, const char *mistrust)
{
    struct mla_check_report *r = j->r;
    const struct mla_check_tensor *t[3] = {&r->out, &r->lse, &r->max_logits};
    const char *name[3] = {"out", "lse", "max_logits"};
    r->verdict = MLA_FAIL;
    for (int i = 0; i < 3; i++) {
        long long bad = t[i]->bad, all = t[i]->elements;
        if (t[i]->unwritten) {
            snprintf(r->reason, sizeof r->reason, "%s: %lld of %lld elements were never written",
                     name[i], (long long)t[i]->unwritten, all);
            return;
        }
        if (t[i]->nonfinite) {
            snprintf(r->reason, sizeof r->reason,
                     "%s: %lld of %lld elements are finite on one side only", name[i],
                     (long long)t[i]->nonfinite, all);
            return;
        }
        if (bad) {
            snprintf(r->reason, sizeof r->reason, "%s: %lld of %lld elements outside their bound",
                     name[i], bad, all);
            return;
        }
    }
    for (int i = 0; i < 3; i++)
        if (t[i]->vacuous) {
            snprintf(r->reason, sizeof r->reason,
                     "%s: no bound holds for %lld of %lld elements: scores so large that rounding "
                     "alone may change any weight; try a smaller scale or --precision fp64",
                     name[i], (long long)t[i]->vacuous, (long long)t[i]->elements);
            return;
        }
    if (statistics_count(j) && (r->out.bad_t || r->out.bad_z)) {
        snprintf(
            r->reason, sizeof r->reason,
            "out: within the hard bound, but %lld elements exceed the statistical one and %lld "
            "rows have z > 1.3: more error than rounding makes",
            (long long)r->out.bad_t, (long long)r->out.bad_z);
        return;
    }
    for (int i = 1; i < 3 && statistics_count(j); i++)
        if (t[i]->bad_t || t[i]->drift > 1) {
            snprintf(r->reason, sizeof r->reason,
                     "%s: within the hard bound, but %s: look at softmax_scale and at roundings of "
                     "the scores",
                     name[i],
                     t[i]->bad_t ? "errors exceed what rounding makes"
                                 : "errors of all rows lean to one side");
            return;
        }
    r->verdict = MLA_WEAK;
    if (r->out.elements == 0) {
        snprintf(r->reason, sizeof r->reason, "nothing to compare: no query rows");
        return;
    }
    if (j->compared == 0) {
        snprintf(r->reason, sizeof r->reason,
                 "nothing to compare: no output is finite, in the reference neither");
        return;
    }
    if (j->most_keys < 2) {
        snprintf(r->reason, sizeof r->reason,
                 j->most_keys ? "no row sees more than one key: weights are all 1"
                              : "no row sees any key: every output is 0");
        return;
    }
    r->verdict = MLA_MISTRUSTED;
    if (2 * j->zeros > r->out.elements) {
        snprintf(r->reason, sizeof r->reason, "%lld of %lld outputs are exactly 0",
                 (long long)j->zeros, (long long)r->out.elements);
        return;
    }
    if (mistrust) {
        snprintf(r->reason, sizeof r->reason, "%s", mistrust);
        return;
    }
    r->verdict = MLA_PASS;
    if (r->out.bad_t || r->out.bad_z)
        snprintf(
            r->reason, sizeof r->reason,
            "warning: %lld elements of out exceed the statistical bound, %lld rows have z > 1.3 "
            "(model of random inputs; counts with --strict)",
            (long long)r->out.bad_t, (long long)r->out.bad_z);
    else if (r->lse.bad_t || r->max_logits.bad_t || r->lse.drift > 1 || r->max_logits.drift > 1)
        snprintf(r->reason, sizeof r->reason,
                 "warning: lse or max_logits exceed the statistical bound (model of random inputs; "
                 "counts with --strict)");
}

/* One random row of each of `count` equal stretches; all rows where count is 0 or too large. */
static int64_t sample_rows(int64_t total, int64_t count, uint64_t seed, int64_t *rows)
{
    if (count <= 0 || count > total)
        count = total;
    for (int64_t i = 0; i < count; i++) {
        int64_t first = total * i / count, end = total * (i + 1) / count;
        uint64_t z = (seed + 1) * 0x9E3779B97F4A7C15u + (uint64_t)i * 0xD1B54A32D192ED03u;
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
        z ^= z >> 31;
        rows[i] = first + (int64_t)(z % (uint64_t)(end - first));
    }
    return count;
}

static mla_status check_arguments(const struct mla_case *c, const struct mla_result *result,
                                  const struct mla_check_options *o)
{
    if (!c || !result || !o || !o->context || !o->rounding || !result->out)
        return mla_fail(MLA_ERR_ARGUMENT, "mla_check_result: %s: got NULL, want a pointer",
                        !c             ? "case"
                        : !result      ? "result"
                        : !o           ? "options"
                        : !o->context  ? "context"
                        : !o->rounding ? "rounding"
                                       : "out");
    if (!mla_dtype_bytes(result->out_dtype) ||
        (result->lse_dtype != MLA_F32 && result->lse_dtype != MLA_F64 &&
         (result->lse || result->max_logits)))
        return mla_fail(MLA_ERR_ARGUMENT,
                        "mla_check_result: dtype: got %s and %s, want lse and "
                        "max_logits in f32 or f64",
                        mla_dtype_name(result->out_dtype), mla_dtype_name(result->lse_dtype));
    return MLA_OK;
}

mla_status mla_check_result(const struct mla_case *c, const struct mla_result *result,
                            const struct mla_check_options *o, struct mla_check_report *report)
{
    mla_status status = check_arguments(c, result, o);
    if (status != MLA_OK)
        return status;
    memset(report, 0, sizeof *report);
    report->out.present = true;
    report->lse.present = result->lse != NULL;
    report->max_logits.present = result->max_logits != NULL;
    struct judge j = {.c = c, .p = &c->problem, .result = result, .o = o, .r = report};
    j.H = j.p->heads_q;
    j.d = mla_d_v(j.p);
    j.counts = statistics_count(&j);
    int64_t total = mla_total_q(j.p), width = j.H * j.d;
    int64_t *rows = mla_alloc((size_t)total + 1, sizeof *rows);
    j.poisoned = mla_alloc((size_t)j.p->batch + 1, sizeof *j.poisoned);
    j.kv_start = mla_alloc((size_t)j.p->batch + 1, sizeof *j.kv_start);
    for (int64_t b = 0; j.kv_start && b < j.p->batch; b++)
        j.kv_start[b + 1] = j.kv_start[b] + j.p->seq_lens_kv[b];
    j.num_rows = rows ? sample_rows(total, o->rows, o->sample_seed, rows) : 0;
    j.rows = rows;
    j.slice = width > 0 && SLICE / width > 1 ? SLICE / width : 1;
    j.slice = j.slice < j.num_rows ? j.slice : j.num_rows;
    size_t n = (size_t)(j.slice * j.H), e = n * (size_t)j.d;
    double *x = mla_alloc(5 * e + 6 * n + 1, sizeof *x);
    j.cluster = rows ? mla_cluster_new(c, rows, j.num_rows) : NULL;
    if (!rows || !j.poisoned || !j.kv_start || !x || !j.cluster) {
        status = mla_fail(MLA_ERR_MEMORY, "mla_check_result: no memory for %lld rows",
                          (long long)j.num_rows);
    } else {
        j.out = x;
        j.hard = x + e;
        j.stat = x + 2 * e;
        j.sigma = x + 3 * e;
        j.got = x + 4 * e;
        j.lse = x + 5 * e;
        j.lse_hard = j.lse + n;
        j.max = j.lse_hard + n;
        j.max_hard = j.max + n;
        j.lse_sigma = j.max_hard + n;
        j.max_sigma = j.lse_sigma + n;
    }
    const char *mistrust = NULL;
    if (status == MLA_OK)
        status = find_poisoned(&j);
    if (status == MLA_OK)
        status = judge_values(&j, &mistrust);
    for (; status == MLA_OK && j.at < j.num_rows; j.at += j.slice)
        status = judge_slice(&j, j.num_rows - j.at < j.slice ? j.num_rows - j.at : j.slice);
    if (status == MLA_OK) {
        double sum = j.xx + j.yy;
        report->cosine_error = sum > 0 ? fmax(0, 1 - 2 * j.xy / sum) : 0;
        report->frobenius_error = j.yy > 0 ? sqrt(j.ee / j.yy) : j.ee > 0 ? INFINITY : 0;
        /* A mean of k independent errors stays below 6 / sqrt(k) units; beyond 64 rows the model
         * itself is not that exact. */
        struct mla_check_tensor *scalar[2] = {&report->lse, &report->max_logits};
        for (int i = 0; i < 2; i++)
            if (j.summed[i] > 0) {
                double k = (double)j.summed[i];
                scalar[i]->drift = fabs(j.sum[i] / k) * sqrt(fmin(k, 64)) / 6;
            }
        sort_points(report);
        decide(&j, mistrust);
        mla_cluster_describe(j.cluster, report);
    }
    mla_cluster_free(j.cluster);
    mla_free(x);
    mla_free(j.poisoned);
    mla_free(j.kv_start);
    mla_free(rows);
    return status;
}

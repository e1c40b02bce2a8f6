/* SPDX-License-Identifier: Apache-2.0 */
/* One block of the fp64 reference: query rows that share their keys (or one row with its list),
 * some heads, all their keys. Scores are kept whole (rows · heads · keys, bounded by the caller),
 * keys pass in tiles. Everything that decides a value is fp64; what only enters bounds is fp32,
 * with its own rounding added (SLACK).
 *
 *   s[m][j]  = tau · q[m] · k[j]            m = head · rows + row
 *   dl[m][j] = bound of the log-weight error of key j           (docs/numerics.md §4)
 *   w[m][j]  = exp(s - max) / (sum + exp(sink - max))
 *   o        = sum_j w v_j, and sums of w|v|, w v^2, w^2 g v^2, w d v (d: one probe of q's
 * rounding) */
#include "bound.h"
#include "reference/blas.h"

#include "format.h"
#include "status.h"

#include <math.h>
#include <string.h>

/* fp32 sums of one tile, of at most 1024 + 512 terms, and conversions: relative error. */
#define SLACK (1 + 0x1p-12)
#define RMS 0.425 /* rms relative rounding error in units of u, log-uniform mantissas */

struct block {
    const struct mla_bound_task *t;
    const mla_problem *p;
    int64_t m, rows, n, dk, dv, lat; /* lat: width summed in fp64 over keys */
    int64_t tile0, tile_n;
    bool bounds, probe, latent_sum;
    double *q, *s, *key, *value, *o, *latent, *head_w, *head_a;
    double *e1, *e2, *g2, *pr;
    float *b, *pq, *dl, *dj, *kf, *cn, *kn, *wt, *gt, *pt, *vt, *va, *vs, *tmp, *bk, *sk, *kt;
    double *dl0, *latn, *qn, *qt; /* per m: additive log error, factor of |c|, |q|, q for T */
    double *wn;
    int32_t *index;
    uint8_t *valid;
    struct mla_bound_row *row;
};

static int64_t key_at(const struct block *b, int64_t j)
{
    return b->t->list ? b->t->list[j] : j;
}

/* Number of leading keys that row i of the block may see. */
static int64_t row_end(const struct block *b, int64_t i)
{
    if (b->t->list)
        return b->n;
    int64_t end = mla_causal_end(b->p, b->t->request, b->t->row[i], b->t->seq_len_kv);
    return end < 0 ? 0 : end < b->n ? end : b->n;
}

static const char *element(const mla_tensor *t, mla_dtype type, int64_t i, int64_t stride0,
                           int64_t j, int64_t stride1)
{
    return (const char *)t->data + (size_t)(i * stride0 + j * stride1) * mla_dtype_bytes(type);
}

static void load_q(const struct block *b, const mla_tensor *t, int64_t row, int64_t head,
                   int64_t width, double *dst)
{
    int64_t s1 = mla_stride1(t, width), s0 = mla_stride0(t, width * b->p->heads_q);
    mla_load_f64(b->p->q_dtype, element(t, b->p->q_dtype, row, s0, head, s1), width, dst);
}

/* Loads row l of a weight [H, n, width]. */
static void load_w(const mla_problem *p, const mla_tensor *t, int64_t head, int64_t l, int64_t n,
                   int64_t width, double *dst)
{
    int64_t s1 = mla_stride1(t, width), s0 = mla_stride0(t, n * width);
    mla_load_f64(p->q_dtype, element(t, p->q_dtype, head, s0, l, s1), width, dst);
}

/* Queries of the block, absorbed for latent problems, times tau; and per dimension what multiplies
 * |k| in the error of a logit. */
static void load_queries(struct block *b)
{
    const struct mla_bound_task *t = b->t;
    const mla_problem *p = b->p;
    const struct mla_bound_units *u = t->units;
    int64_t dn = p->qk_nope_dim, dr = p->qk_rope_dim, L = p->kv_lora_rank, dk = b->dk;
    double tau = p->softmax_scale;
    double *w = b->head_w, *x = b->head_a; /* w: a row of w_uk; x: q_nope of the rows */
    for (int64_t h = 0; h < t->heads; h++) {
        if (p->form != MLA_FORM_LATENT) {
            for (int64_t i = 0; i < b->rows; i++)
                load_q(b, &t->tensors->q, t->request->q_start + t->row[i], t->head + h, dk,
                       b->q + (h * b->rows + i) * dk);
        } else {
            double *abs_sum = x + b->rows * dn;
            for (int64_t i = 0; i < b->rows; i++) {
                double *q = b->q + (h * b->rows + i) * dk;
                int64_t row = t->request->q_start + t->row[i];
                load_q(b, &t->tensors->q_nope, row, t->head + h, dn, x + i * dn);
                if (dr)
                    load_q(b, &t->tensors->q_pe, row, t->head + h, dr, q + L);
                memset(q, 0, (size_t)L * sizeof *q);
                memset(abs_sum + i * L, 0, (size_t)L * sizeof *abs_sum);
            }
            for (int64_t d = 0; d < dn; d++) {
                load_w(p, &t->tensors->w_uk, t->head + h, d, dn, L, w);
                for (int64_t i = 0; i < b->rows; i++) {
                    double *q = b->q + (h * b->rows + i) * dk, *a = abs_sum + i * L;
                    double f = x[i * dn + d], g = fabs(f);
                    for (int64_t l = 0; l < L; l++) {
                        q[l] += f * w[l];
                        a[l] += g * fabs(w[l]);
                    }
                }
            }
        }
        for (int64_t i = 0; i < b->rows; i++) {
            int64_t m = h * b->rows + i;
            double *q = b->q + m * dk, nq = 0;
            for (int64_t l = 0; l < dk; l++) {
                q[l] *= tau;
                nq += q[l] * q[l];
            }
            if (!b->bounds)
                continue;
            double at = fabs(tau), na = 0, nl = 0, huge = mla_bound_huge(u->r.projected);
            const double *a = x + b->rows * dn + i * L;
            float *c = b->b + m * dk;
            b->qn[m] = b->qt[m] = sqrt(nq);
            b->dl0[m] = b->latn[m] = 0;
            if (!u->latent) {
                double f = mla_bound_gam((double)dk, u->ua) + u->r.dequantised;
                for (int64_t l = 0; l < dk; l++)
                    c[l] = (float)(f * fabs(q[l]) * SLACK);
                continue;
            }
            double tiny = mla_bound_tiny(u->r.projected);
            for (int64_t l = 0; l < L; l++) {
                na += a[l] * a[l];
                nl += q[l] * q[l];
            }
            na = at * sqrt(na);
            nl = sqrt(nl);
            b->qt[m] = fmax(b->qn[m], na / sqrt((double)dn));
            if (u->mqa) { /* absorbed q: dn-term sums, rounded; then a dot product over L + dr */
                double up = u->r.projected, ud = u->r.dequantised;
                double f = up + ud + mla_bound_gam((double)dk, u->ua) * (1 + up) * (1 + ud);
                double ga = mla_bound_gam((double)dn, u->ua) * (1 + up) * (1 + ud);
                for (int64_t l = 0; l < L; l++) {
                    c[l] = (float)((f * fabs(q[l]) + at * (ga * a[l] + tiny)) * SLACK);
                    if (fabs(q[l]) > huge * at) /* both are 0 where tau is */
                        b->dl0[m] = INFINITY;
                }
                for (int64_t l = L; l < dk; l++)
                    c[l] = (float)((mla_bound_gam((double)dk, u->ua) * (1 + ud) + ud) * fabs(q[l]) *
                                   SLACK);
            } else if (!u->up) { /* k = w_uk · c in fp32 or fp64, nothing rounded between */
                double f = mla_bound_gam((double)(dn + dr + L), u->ua);
                double ud = u->r.dequantised;
                for (int64_t l = 0; l < L; l++)
                    c[l] = (float)((f * at * a[l] * (1 + ud) + ud * fabs(q[l])) * SLACK);
                for (int64_t l = L; l < dk; l++)
                    c[l] = (float)((f * (1 + ud) + ud) * fabs(q[l]) * SLACK);
            } else { /* k rounded: |q||k| per head; sums of w_uk · c through norms */
                double up = u->r.projected, ud = u->r.dequantised, sum = 0;
                double f = mla_bound_gam((double)(dn + dr), u->ua);
                for (int64_t d = 0; d < dn; d++) {
                    double y = at * fabs(x[i * dn + d]);
                    sum += y;
                    b->bk[m * dn + d] = (float)((up + f * (1 + up)) * y * SLACK);
                    b->sk[m * dn + d] = (float)(RMS * RMS * up * up * y * y);
                }
                for (int64_t l = L; l < dk; l++)
                    c[l] = (float)((f * (1 + ud) + ud) * fabs(q[l]) * SLACK);
                b->latn[m] = (1 + 2 * up + 2 * f) *
                             (mla_bound_gam((double)L, u->ua) * (1 + ud) * na + ud * nl);
                b->dl0[m] = tiny * sum;
            }
            if (b->probe) { /* one draw of the rounding of q: random signs, rms size */
                uint64_t z = (uint64_t)(t->request->q_start + t->row[i]) * 0x9E3779B97F4A7C15u +
                             (uint64_t)(t->head + h) * 0xBF58476D1CE4E5B9u + 1;
                for (int64_t l = 0; l < L; l++) {
                    z ^= z << 13;
                    z ^= z >> 7;
                    z ^= z << 17;
                    double y = RMS * u->r.projected * q[l];
                    b->pq[m * dk + l] = (float)(z >> 63 ? y : -y);
                }
            }
        }
    }
}

/* Keys of the tile, in fp64: key [tile_n, dk] and, in expanded form, value. False: a key that some
 * rows see and others don't is not finite. */
static bool load_tile(struct block *b)
{
    const struct mla_bound_task *t = b->t;
    const mla_problem *p = b->p;
    if (p->form == MLA_FORM_EXPANDED) {
        int64_t hk = t->head / (p->heads_q / p->heads_kv);
        const mla_tensor *k = &t->tensors->k, *v = &t->tensors->v;
        int64_t k1 = mla_stride1(k, b->dk), k0 = mla_stride0(k, b->dk * p->heads_kv);
        int64_t v1 = mla_stride1(v, b->dv), v0 = mla_stride0(v, b->dv * p->heads_kv);
        for (int64_t j = 0; j < b->tile_n; j++) {
            int64_t row = t->request->kv_start + key_at(b, b->tile0 + j);
            mla_load_f64(p->kv_dtype, element(k, p->kv_dtype, row, k0, hk, k1), b->dk,
                         b->key + j * b->dk);
            mla_load_f64(p->kv_dtype, element(v, p->kv_dtype, row, v0, hk, v1), b->dv,
                         b->value + j * b->dv);
            b->valid[j] = 1;
        }
    } else {
        for (int64_t j = 0; j < b->tile_n; j++)
            b->index[j] = (int32_t)key_at(b, b->tile0 + j);
        mla_cache_rows_f64(p, t->tensors, t->request, t->seq_len_kv, b->index, 0, b->tile_n, b->key,
                           b->dk, b->valid);
    }
    if (b->rows == 1)
        return true;
    double sum = 0; /* 0 · x is 0 for finite x only */
    for (int64_t j = 0; j < b->tile_n * b->dk; j++)
        sum += 0 * b->key[j];
    if (p->form == MLA_FORM_EXPANDED)
        for (int64_t j = 0; j < b->tile_n * b->dv; j++)
            sum += 0 * b->value[j];
    return sum == 0;
}

/* Scores of the tile, log-weight errors of their dot products, and the probe or the variance. */
static void score_tile(struct block *b)
{
    const struct mla_bound_task *t = b->t;
    int m = (int)b->m, n = (int)b->tile_n, dk = (int)b->dk, ld = (int)b->n;
    cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasTrans, m, n, dk, 1, b->q, dk, b->key, dk, 0,
                b->s + b->tile0, ld);
    for (int64_t i = 0; i < b->rows; i++) {
        int64_t end = row_end(b, i);
        for (int64_t h = 0; h < t->heads; h++) {
            double *s = b->s + (h * b->rows + i) * b->n + b->tile0;
            for (int64_t j = 0; j < b->tile_n; j++)
                if (!b->valid[j] || b->tile0 + j >= end)
                    s[j] = -INFINITY;
        }
    }
    if (!b->bounds)
        return;
    int64_t L = b->p->form == MLA_FORM_EXPANDED ? 0 : b->p->kv_lora_rank;
    if (b->probe) {
        for (int64_t j = 0; j < b->tile_n * b->dk; j++)
            b->kf[j] = (float)b->key[j];
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, m, n, (int)L, 1, b->pq, dk, b->kf, dk,
                    0, b->dj + b->tile0, ld);
    }
    for (int64_t j = 0; j < b->tile_n; j++) {
        double c = 0, r = 0;
        const double *k = b->key + j * b->dk;
        for (int64_t l = 0; l < L; l++)
            c += k[l] * k[l];
        for (int64_t l = L; l < b->dk; l++)
            r += k[l] * k[l];
        b->cn[b->tile0 + j] = (float)(sqrt(c) * SLACK);
        b->kn[b->tile0 + j] = (float)(sqrt(c + r) * SLACK);
        for (int64_t l = 0; l < b->dk; l++)
            b->kf[j * b->dk + l] = (float)fabs(k[l]);
    }
    int64_t skip = t->units->up ? L : 0;
    if (skip < b->dk)
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, m, n, (int)(b->dk - skip), 1,
                    b->b + skip, dk, b->kf + skip, dk, 0, b->dl + b->tile0, ld);
    else
        for (int64_t i = 0; i < b->m; i++)
            memset(b->dl + i * b->n + b->tile0, 0, (size_t)n * sizeof *b->dl);
    if (!t->units->up)
        return;
    int dn = (int)b->p->qk_nope_dim, rows = (int)b->rows;
    for (int64_t h = 0; h < t->heads; h++) {
        const struct mla_bound_cache *c = t->cache;
        const float *k = c->k + (t->head + h - c->head) * c->n * dn;
        for (int64_t j = 0; j < b->tile_n; j++) {
            const float *src = k + (int64_t)c->slot[key_at(b, b->tile0 + j)] * dn;
            for (int64_t d = 0; d < dn; d++)
                b->kt[j * dn + d] = fabsf(src[d]);
        }
        int64_t at = h * b->rows;
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, rows, n, dn, 1, b->bk + at * dn, dn,
                    b->kt, dn, 1, b->dl + at * b->n + b->tile0, ld);
        for (int64_t j = 0; j < b->tile_n * dn; j++)
            b->kt[j] *= b->kt[j];
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, rows, n, dn, 1, b->sk + at * dn, dn,
                    b->kt, dn, 0, b->dj + at * b->n + b->tile0, ld);
    }
}

/* Variance of the log weight of key j: score roundings that differ from key to key. */
static double score_variance(const struct block *b, int64_t m, int64_t j, double dacc2)
{
    const struct mla_bound_units *u = b->t->units;
    double v = dacc2;
    if (u->up)
        v += b->dj[m * b->n + j];
    if (u->r.dequantised > 0) {
        double y = RMS * u->r.dequantised * b->qn[m] * b->kn[j];
        v += y * y / (double)b->dk;
    }
    return v;
}

/* The same and what the absorbed query's rounding adds: of one key, not of their mean, so that a
 * sink does not shrink it. */
static double max_variance(const struct block *b, int64_t m, int64_t j, double dacc2)
{
    const struct mla_bound_units *u = b->t->units;
    double v = score_variance(b, m, j, dacc2);
    if (u->mqa && u->latent) {
        double y = RMS * u->r.projected * b->qn[m] * b->cn[j];
        v += y * y / (double)b->lat;
    }
    return v;
}

/* s becomes w; dl becomes g, the variance of the weight. */
static void softmax_row(struct block *b, int64_t m)
{
    const struct mla_bound_task *t = b->t;
    struct mla_bound_row *row = b->row + m;
    int64_t h = m / b->rows, end = row_end(b, m % b->rows);
    double *s = b->s + m * b->n, max = -INFINITY, sum = 0;
    double sink = b->p->has_sink ? t->tensors->attn_sink[t->head + h] : -INFINITY;
    memset(row, 0, sizeof *row);
    row->sink = sink;
    bool nan = false;
    for (int64_t j = 0; j < end; j++) {
        nan |= isnan(s[j]);
        max = s[j] > max ? s[j] : max;
        row->n += s[j] > -INFINITY; /* invalid pages are -inf */
    }
    row->max = nan ? NAN : max;
    double top = sink > max ? sink : max;
    row->empty = row->n == 0 && !nan;
    if (row->empty || sink == INFINITY) {
        row->lse = row->empty && sink < INFINITY ? sink : INFINITY;
        row->empty = true;
        /* A sink of +inf leaves max_logits, and its error, as they are. */
        float *dots = b->dl + m * b->n;
        for (int64_t j = 0; j < end && b->bounds && row->n; j++)
            if (s[j] > -INFINITY) {
                double e = dots[j] + b->dl0[m] + b->latn[m] * b->cn[j];
                e += 2 * t->units->ua * fabs(s[j]);
                row->max_err = fmax(row->max_err, s[j] == max ? e : s[j] + e - max);
                if (s[j] == max)
                    row->max_var = max_variance(b, m, j, 0);
            }
        memset(s, 0, (size_t)b->n * sizeof *s);
        return;
    }
    for (int64_t j = 0; j < end; j++)
        sum += exp(s[j] - top);
    double sink_weight = exp(sink - top);
    sum += sink_weight;
    row->lse = nan ? NAN : top + log(sum);
    sink_weight /= sum;
    row->mref = fabs(top);
    if (!b->bounds) {
        for (int64_t j = 0; j < b->n; j++)
            s[j] = j < end ? exp(s[j] - top) / sum : 0;
        return;
    }

    const struct mla_bound_units *u = t->units;
    float *dl = b->dl + m * b->n;
    double nb = ceil((double)row->n / 64), ex1 = u->ua * (8 + 3 * nb);
    double r2 = 0, kn2 = 0, over = max;
    row->max_err = 0;
    int64_t top_key = 0;
    for (int64_t j = 0; j < b->n; j++) {
        if (j >= end || s[j] == -INFINITY) {
            s[j] = 0;
            dl[j] = 0;
            continue;
        }
        double w = exp(s[j] - top) / sum;
        double dot = dl[j] + b->dl0[m] + b->latn[m] * b->cn[j];
        double d = dot + u->exp_unit + ex1 * (fmax(fabs(s[j]), row->mref) + 1);
        double e = dot + 2 * u->ua * fabs(s[j]);
        over = fmax(over, s[j] + e);
        if (s[j] == max) {
            row->max_err = fmax(row->max_err, e);
            top_key = j;
        }
        s[j] = w;
        dl[j] = 0;
        if (!(w > 0)) { /* weight below e^-740: no part, unless its error is of that size */
            r2 += d < 600 ? 0 : INFINITY;
            continue;
        }
        double em = expm1(d < 700 ? d : 700);
        r2 += w * em * em;
        row->x1 += w * em;
        row->np += w / (1 + em);
        row->cbar += w * (1 + em) * b->cn[j];
        row->c2 += w * (1 + em) * b->cn[j] * b->cn[j];
        row->c2q += w * w * b->cn[j] * b->cn[j];
        kn2 += w * b->kn[j] * b->kn[j];
        row->wmax = fmax(row->wmax, w);
    }
    row->max_err = fmax(row->max_err, over - max);
    if (sink_weight > 0) {
        double em = expm1(u->exp_unit + ex1 * (row->mref + 1));
        r2 += sink_weight * em * em;
        row->x1 += sink_weight * em;
        row->np += sink_weight / (1 + em);
    }
    row->r = sqrt(r2);
    double d = (double)(u->dk + u->dn), dacc = sqrt(d) * u->ua * b->qt[m] * sqrt(kn2);
    dacc += (sqrt(nb) * 3 + 2) * u->ua * (row->mref + 1) + u->exp_unit / 6;
    double uw = u->r.weights * u->r.weights, q2 = 0, q4 = 0, up = u->r.projected;
    row->sq = RMS * RMS * up * up * b->qn[m] * b->qn[m] * row->c2 / (double)b->lat;
    for (int64_t j = 0; j < b->n; j++) {
        if (!(s[j] > 0))
            continue;
        /* P = w / wmax as the kernel rounds it: rms u / (sqrt(3) mantissa). */
        int exponent;
        double mantissa = 2 * frexp(s[j] / row->wmax, &exponent), w2 = s[j] * s[j];
        double g = score_variance(b, m, j, dacc * dacc), gp = uw / (3 * mantissa * mantissa);
        row->g0 += w2 * g;
        row->w2 += w2;
        q2 += w2 * (g + gp);
        q4 += w2 * w2 * (g + gp) * (g + gp);
        dl[j] = (float)(g + gp);
    }
    row->max_var = max_variance(b, m, top_key, dacc * dacc);
    row->draws = q4 > 0 ? q2 * q2 / q4 : 1;
    row->q0 = sqrt(q2);
}

/* Sums over the tile. Latent problems: c in fp64, statistics from each head's own v. */
static void value_tile(struct block *b)
{
    const struct mla_bound_task *t = b->t;
    const mla_problem *p = b->p;
    bool expanded = p->form == MLA_FORM_EXPANDED;
    int n = (int)b->tile_n, dv = (int)b->dv, ld = expanded ? dv : (int)b->dk;
    const double *v = expanded ? b->value : b->key;
    cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)b->m, (int)b->lat, n, 1,
                b->s + b->tile0, (int)b->n, v, ld, 1, b->o, (int)b->lat);
    if (!b->bounds)
        return;
    /* Weights are divided by their largest: no underflow where a sink takes nearly all. */
    const struct mla_bound_units *u = t->units;
    double gv = u->up ? u->r.projected : !u->latent ? u->r.dequantised : 0;
    gv *= gv * RMS * RMS;
    for (int64_t m = 0; m < b->m; m++) {
        double f = b->row[m].wmax > 0 ? 1 / b->row[m].wmax : 0;
        const double *w = b->s + m * b->n + b->tile0;
        const float *g = b->dl + m * b->n + b->tile0, *d = b->dj + m * b->n + b->tile0;
        for (int64_t j = 0; j < b->tile_n; j++) {
            float x = (float)(w[j] * f);
            b->wt[m * b->tile_n + j] = x;
            b->gt[m * b->tile_n + j] = x * x * (float)(g[j] + gv);
            if (b->probe)
                b->pt[m * b->tile_n + j] = x > 0 ? x * d[j] : 0;
        }
    }
    if (t->gram_v2) { /* statistics come from gram and heavy keys; the probe from latents */
        if (!b->probe)
            return;
        for (int64_t j = 0; j < b->tile_n * b->dk; j++)
            b->kf[j] = (float)b->key[j];
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)b->m, (int)b->lat, n, 1, b->pt,
                    n, b->kf, (int)b->dk, 0, b->tmp, (int)b->lat);
        for (int64_t i = 0; i < b->m * b->lat; i++)
            b->latent[i] += b->tmp[i];
        return;
    }
    int64_t groups = u->latent ? t->heads : 1, rows = u->latent ? b->rows : b->m;
    const struct mla_bound_cache *c = t->cache;
    for (int64_t h = 0; h < groups; h++) {
        int64_t at = t->head + h - c->head;
        if (expanded)
            at = t->head / (p->heads_q / p->heads_kv);
        else if (!u->latent)
            at = 0;
        const double *scale = c->scale + at * dv;
        for (int64_t j = 0; j < b->tile_n; j++) {
            float *x = b->vt + j * dv;
            if (u->latent)
                memcpy(x, c->v + (at * c->n + c->slot[key_at(b, b->tile0 + j)]) * dv,
                       (size_t)dv * sizeof *x);
            else
                for (int64_t i = 0; i < dv; i++)
                    x[i] = (float)(v[j * ld + i] / scale[i]);
        }
        for (int64_t i = 0; i < b->tile_n * dv; i++) {
            b->va[i] = fabsf(b->vt[i]);
            b->vs[i] = b->vt[i] * b->vt[i];
        }
        int64_t m0 = h * rows;
        const float *left[4] = {b->wt, b->wt, b->gt, b->pt};
        const float *right[4] = {b->va, b->vs, b->vs, b->vt};
        double *sum[4] = {b->e1, b->e2, b->g2, b->pr};
        for (int k = 0; k < (b->probe ? 4 : 3); k++) {
            cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)rows, dv, n, 1,
                        left[k] + m0 * n, n, right[k], dv, 0, b->tmp, dv);
            for (int64_t i = 0; i < rows * dv; i++)
                sum[k][m0 * dv + i] += b->tmp[i];
        }
    }
}

/* Without every key's v: E1, E2 and Q2 from the heaviest keys and, for the rest, from
 * sum_j v_jc^2 over all keys (an upper bound for E1, E2; the mean for Q2). */
static void heavy_keys(struct block *b, int64_t m, const double *w_uv, double *e)
{
    const struct mla_bound_task *t = b->t;
    int64_t heavy[BOUND_HEAVY], count = 0, L = b->lat, dv = b->dv;
    const double *w = b->s + m * b->n;
    double least = 0, f = b->row[m].wmax > 0 ? 1 / b->row[m].wmax : 0;
    for (int64_t j = 0; j < b->n; j++) {
        if (!(w[j] > least) && (count == BOUND_HEAVY || !(w[j] > 0)))
            continue;
        int64_t i = count < BOUND_HEAVY ? count++ : BOUND_HEAVY - 1;
        for (; i > 0 && w[heavy[i - 1]] < w[j]; i--)
            heavy[i] = heavy[i - 1];
        heavy[i] = j;
        least = count == BOUND_HEAVY ? w[heavy[count - 1]] : 0;
    }
    double rest = 0, rest_g = 0, top = count == BOUND_HEAVY ? least * f : 0;
    const float *g = b->dl + m * b->n;
    for (int64_t j = 0; j < b->n; j++) {
        rest += w[j];
        rest_g += w[j] * w[j] * g[j];
    }
    for (int64_t i = 0; i < count; i++) {
        b->index[i] = (int32_t)key_at(b, heavy[i]);
        rest -= w[heavy[i]];
        rest_g -= w[heavy[i]] * w[heavy[i]] * g[heavy[i]];
    }
    rest = fmax(0, rest) * f + 0x1p-40;
    rest_g = fmax(0, rest_g) * f * f;
    mla_cache_rows_f64(b->p, t->tensors, t->request, t->seq_len_kv, b->index, 0, count, b->key,
                       b->dk, b->valid);
    double *v = b->head_a;
    if (count)
        cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)count, (int)dv, (int)L, 1,
                    b->key, (int)b->dk, w_uv, (int)dv, 0, v, (int)dv);
    const double *v2 = t->gram_v2 + (t->head + m / b->rows) * dv;
    for (int64_t c = 0; c < dv; c++) {
        double e1 = 0, e2 = 0, g2 = 0;
        for (int64_t i = 0; i < count; i++) {
            double x = v[i * dv + c], y = w[heavy[i]] * f;
            e1 += y * fabs(x);
            e2 += y * x * x;
            g2 += y * y * g[heavy[i]] * x * x;
        }
        double more = b->n > count ? v2[c] : 0; /* nothing rests where all are heavy */
        e[c] = e1 + sqrt(rest * top * more);
        e[dv + c] = e2 + top * more;
        e[2 * dv + c] = g2 + rest_g * more / (double)b->n;
        e[3 * dv + c] = e2 + rest * more / (double)b->n;
    }
}

static void finish_head(struct block *b, int64_t h)
{
    const struct mla_bound_task *t = b->t;
    const mla_reference_args *args = t->args;
    const struct mla_bound_units *u = t->units;
    const mla_problem *p = b->p;
    int64_t dv = b->dv, L = b->lat;
    bool latent = p->form == MLA_FORM_LATENT;
    double *w = b->head_w;
    if (latent)
        for (int64_t l = 0; l < L; l++)
            load_w(p, &t->tensors->w_uv, t->head + h, l, L, dv, w + l * dv);
    if (latent && b->bounds) {
        memset(b->wn, 0, (size_t)dv * sizeof *b->wn);
        for (int64_t l = 0; l < L; l++)
            for (int64_t c = 0; c < dv; c++)
                b->wn[c] += w[l * dv + c] * w[l * dv + c];
    }
    double *o = b->value, *olw = o + dv, *ol2 = olw + dv, *probe = ol2 + dv, *e = probe + dv;
    for (int64_t i = 0; i < b->rows; i++) {
        int64_t m = h * b->rows + i;
        const struct mla_bound_row *row = b->row + m;
        const double *lat = b->o + m * L;
        double olatn = 0;
        memset(o, 0, (size_t)(8 * dv) * sizeof *o);
        if (latent)
            for (int64_t l = 0; l < L; l++) {
                double x = lat[l], a = fabs(x),
                       y = b->probe && t->gram_v2 ? b->latent[m * L + l] : 0;
                olatn += x * x;
                for (int64_t c = 0; c < dv; c++) {
                    double z = w[l * dv + c];
                    o[c] += x * z;
                    olw[c] += a * fabs(z);
                    ol2[c] += x * x * z * z;
                    probe[c] += y * z;
                }
            }
        else
            memcpy(o, lat, (size_t)dv * sizeof *o);
        int64_t at = ((t->out_row + i) * p->heads_q + t->head + h);
        double base = p->lse_base == MLA_LSE_2 ? 1.4426950408889634 : 1;
        if (row->empty)
            memset(o, 0, (size_t)dv * sizeof *o);
        if (args->out)
            memcpy(args->out + at * dv, o, (size_t)dv * sizeof *o);
        if (args->lse)
            args->lse[at] = row->lse * base;
        if (args->max_logits)
            args->max_logits[at] = row->max;
        if (!b->bounds)
            continue;
        if (args->lse_hard)
            args->lse_hard[at] = mla_bound_lse(u, row, p->lse_base);
        if (args->max_hard)
            args->max_hard[at] = mla_bound_max(u, row);
        b->row[m].seen = latent && row->c2 > 0 ? olatn / row->c2 : 0;
        if (args->lse_sigma)
            args->lse_sigma[at] = mla_bound_lse_sigma(u, row, p->lse_base);
        if (args->max_sigma)
            args->max_sigma[at] = mla_bound_max_sigma(u, row);
        if (!args->hard && !args->statistical && !args->sigma)
            continue;
        struct mla_bound_element x = {.olatn = sqrt(olatn)};
        const double *scale = NULL, *v2 = NULL;
        if (t->gram_v2 && !row->empty) {
            heavy_keys(b, m, w, e);
            v2 = t->gram_v2 + (t->head + h) * dv;
        } else if (!t->gram_v2) {
            const struct mla_bound_cache *c = t->cache;
            int64_t k = latent                         ? t->head + h - c->head
                        : p->form == MLA_FORM_EXPANDED ? t->head / (p->heads_q / p->heads_kv)
                                                       : 0;
            scale = c->scale + k * dv;
            v2 = c->v2 + k * dv;
            memcpy(e, b->e1 + m * dv, (size_t)dv * sizeof *e);
            memcpy(e + dv, b->e2 + m * dv, (size_t)dv * sizeof *e);
            memcpy(e + 2 * dv, b->g2 + m * dv, (size_t)dv * sizeof *e);
            memcpy(e + 3 * dv, e + dv, (size_t)dv * sizeof *e);
            memcpy(probe, b->pr + m * dv, (size_t)dv * sizeof *e);
        }
        /* One draw of the q-rounding, relative to the spread of V, averaged over columns. */
        double pd = 0, hit = 0, spread = 0;
        if (b->probe && !row->empty)
            for (int64_t j = 0; j < b->n; j++)
                pd += b->s[m * b->n + j] > 0 ? b->s[m * b->n + j] * b->dj[m * b->n + j] : 0;
        for (int64_t c = 0; c < dv && b->probe && !row->empty; c++) {
            double f = row->wmax;
            double err = probe[c] * f * (scale ? scale[c] : 1) - pd * o[c];
            hit += err * err;
            spread += fmax(0, e[3 * dv + c] * f * (scale ? scale[c] * scale[c] : 1) - o[c] * o[c]);
        }
        x.rho2 = spread > 0 ? hit / spread : 0;
        for (int64_t c = 0; c < dv; c++) {
            double sc = scale ? scale[c] : 1, f = row->wmax;
            x.o = o[c];
            x.e1 = e[c] * f * sc * SLACK;
            x.e2 = e[dv + c] * f * sc * sc * SLACK;
            x.e2_likely = e[3 * dv + c] * f * sc * sc;
            x.g2 = e[2 * dv + c] * f * f * sc * sc;
            x.v2 = v2 ? v2[c] * sc * sc : 0;
            x.scale = scale ? sc : sqrt(x.v2);
            x.wn = latent ? sqrt(b->wn[c]) : 0;
            x.olw = olw[c];
            x.ol2 = ol2[c];
            double hard, stat, sigma;
            mla_bound_element(u, row, &x, &hard, &stat, &sigma);
            if (args->hard)
                args->hard[at * dv + c] = hard;
            if (args->statistical)
                args->statistical[at * dv + c] = stat;
            if (args->sigma)
                args->sigma[at * dv + c] = sigma;
        }
    }
}

/* Carves arrays out of one allocation; the first pass counts. */
static size_t lay_out(struct block *b, char *base)
{
    size_t used = 0;
    int64_t tile = b->n < BOUND_TILE ? b->n : BOUND_TILE;
    int64_t m = b->m, n = b->n, dk = b->dk, dv = b->dv, lat = b->lat;
    int64_t keep = tile < BOUND_HEAVY ? BOUND_HEAVY : tile, wide = dv > lat ? dv : lat;
    const mla_problem *p = b->p;
    bool latent = p->form == MLA_FORM_LATENT, f = b->bounds;
    int64_t dn = p->qk_nope_dim, L = latent ? p->kv_lora_rank : 0;
    int64_t up = f && b->t->units->up;
    int64_t a1 = b->rows * (dn + L), a2 = BOUND_HEAVY * dv;
#define TAKE(field, count)                                                                         \
    do {                                                                                           \
        b->field = base ? (void *)(base + used) : NULL;                                            \
        used += ((size_t)(count) * sizeof *b->field + 63) / 64 * 64;                               \
    } while (0)
    TAKE(row, m);
    TAKE(q, m * dk);
    TAKE(s, m * n);
    TAKE(key, keep * dk);
    TAKE(value, keep * dv + 8 * dv);
    TAKE(o, m * lat);
    TAKE(latent, f && b->t->gram_v2 ? m * lat : 0);
    TAKE(head_w, latent ? L * (dv > 1 ? dv : 1) + L : 1);
    TAKE(head_a, latent ? (a1 > a2 ? a1 : a2) : 1);
    int64_t stat = f && !b->t->gram_v2 ? m * dv : 0;
    TAKE(e1, stat);
    TAKE(e2, stat);
    TAKE(g2, stat);
    TAKE(pr, stat);
    TAKE(dl0, m);
    TAKE(latn, m);
    TAKE(qn, m);
    TAKE(qt, m);
    TAKE(wn, dv);
    TAKE(index, keep);
    TAKE(valid, keep);
    TAKE(b, f ? m * dk : 0);
    TAKE(pq, b->probe ? m * dk : 0);
    TAKE(dl, f ? m * n : 0);
    TAKE(dj, f ? m * n : 0);
    TAKE(kf, f ? tile * dk : 0);
    TAKE(cn, f ? n : 0);
    TAKE(kn, f ? n : 0);
    TAKE(wt, f ? m * tile : 0);
    TAKE(gt, f ? m * tile : 0);
    TAKE(pt, f ? m * tile : 0);
    TAKE(vt, f ? tile * dv : 0);
    TAKE(va, f ? tile * dv : 0);
    TAKE(vs, f ? tile * dv : 0);
    TAKE(tmp, f ? m * wide : 0);
    TAKE(bk, up ? m * dn : 0);
    TAKE(sk, up ? m * dn : 0);
    TAKE(kt, up ? tile * dn : 0);
#undef TAKE
    return used;
}

int mla_bound_block(const struct mla_bound_task *t)
{
    struct block b = {.t = t, .p = t->problem, .rows = t->rows, .m = t->rows * t->heads, .n = t->n};
    bool latent = b.p->form == MLA_FORM_LATENT;
    b.dk = latent ? b.p->kv_lora_rank + b.p->qk_rope_dim : mla_d_qk(b.p);
    b.dv = mla_d_v(b.p);
    b.lat = latent ? b.p->kv_lora_rank : b.dv;
    b.bounds = t->units != NULL;
    b.probe = b.bounds && t->units->mqa && t->units->latent && t->units->r.projected > 0;
    struct block count = b;
    size_t bytes = lay_out(&count, NULL);
    char *memory = mla_alloc(bytes + 64, 1);
    if (!memory)
        return 1;
    lay_out(&b, memory + (64 - (uintptr_t)memory % 64) % 64);

    int result = 0;
    load_queries(&b);
    for (b.tile0 = 0; b.tile0 < b.n && !result; b.tile0 += BOUND_TILE) {
        b.tile_n = b.n - b.tile0 < BOUND_TILE ? b.n - b.tile0 : BOUND_TILE;
        if (load_tile(&b))
            score_tile(&b);
        else
            result = 2;
    }
    if (!result) {
        for (int64_t m = 0; m < b.m; m++)
            softmax_row(&b, m);
        for (b.tile0 = 0; b.tile0 < b.n; b.tile0 += BOUND_TILE) {
            b.tile_n = b.n - b.tile0 < BOUND_TILE ? b.n - b.tile0 : BOUND_TILE;
            if (b.n > BOUND_TILE)
                load_tile(&b);
            value_tile(&b);
        }
        for (int64_t h = 0; h < t->heads; h++)
            finish_head(&b, h);
    }
    mla_free(memory);
    return result;
}

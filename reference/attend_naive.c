/* SPDX-License-Identifier: Apache-2.0 */
/* The oracle: attention of one query row and head in plain double loops. For a query q and the keys
 * k_j that it sees, with values v_j,
 *
 *     score_j  = softmax_scale * sum_d q_d k_jd
 *     max      = max_j score_j
 *     weight_j = exp(score_j - max)
 *     sum      = sum_j weight_j + exp(sink - max)
 *     out_c    = sum_j weight_j v_jc / sum
 *     lse      = max + log(sum)
 *
 * Expanded form: q, k, v as given, query head h reading key head h / (heads_q / heads_kv).
 * Absorbed form: k_j is cache row j and v_j its first kv_lora_rank values.
 * Latent form: the absorbed form with q = (q_nope · w_uk, q_pe), and out = (sum_j ...) · w_uv at
 * the end. That is k_j = w_uk · c_j and v_j = c_j · w_uv with the sums in another order: equal in
 * exact arithmetic, and qk_nope_dim times cheaper a key. */
#include "reference/attend.h"

#include "common/format.h"
#include "common/status.h"

#include <math.h>

bool mla_visible(const mla_problem *problem, const mla_tensors *tensors,
                 const struct mla_request *request, int64_t i, int64_t j, int64_t seq_len_kv)
{
    int64_t row = request->q_start + i;
    if (j < 0 || j >= seq_len_kv || j >= mla_causal_end(problem, request, i, seq_len_kv))
        return false;
    if (problem->form != MLA_FORM_EXPANDED && problem->page_size > 0) {
        const int32_t *pages =
            (const int32_t *)tensors->page_table.data +
            request->index * mla_stride0(&tensors->page_table, problem->max_pages);
        int64_t column = j / problem->page_size;
        if (column >= problem->max_pages || pages[column] < 0 ||
            pages[column] >= problem->num_pages)
            return false;
    }
    if (problem->has_mask) {
        const int32_t *words = (const int32_t *)tensors->mask.data +
                               row * mla_stride0(&tensors->mask, mla_mask_words(problem));
        return (uint32_t)words[j / 32] >> (j % 32) & 1;
    }
    if (problem->topk > 0) {
        const int32_t *list = (const int32_t *)tensors->topk_indices.data +
                              row * mla_stride0(&tensors->topk_indices, problem->topk);
        int64_t length = mla_list_length(problem, tensors, row);
        for (int64_t e = 0; e < length; e++)
            if (list[e] == j)
                return true;
        return false;
    }
    return true;
}

/* x [n]: n elements of a strided tensor, at [row, head, 0], as doubles. */
static void load(const mla_tensor *t, mla_dtype dtype, int64_t row, int64_t heads, int64_t head,
                 int64_t n, double *x)
{
    mla_load_f64(dtype, mla_element(t, dtype, heads, n, row, head), n, x);
}

/* Row i of matrix w[head] of a latent problem: w_uk [heads, dn, L] or w_uv [heads, L, dv]. */
static void load_weight(const mla_tensor *t, mla_dtype dtype, int64_t head, int64_t rows, int64_t i,
                        int64_t n, double *x)
{
    mla_load_f64(dtype, mla_element(t, dtype, rows, n, head, i), n, x);
}

int64_t mla_attend_naive_scratch(const mla_problem *p)
{
    int64_t longest = 0;
    for (int64_t b = 0; b < p->batch; b++)
        if (p->seq_lens_kv[b] > longest)
            longest = p->seq_lens_kv[b];
    if (p->form == MLA_FORM_EXPANDED)
        return longest + 2 * mla_d_qk(p) + 2 * p->v_dim;
    /* q and a key; o, which is L wide here; a row of w_uk or w_uv, later the output; q_nope. */
    return longest + 2 * (p->kv_lora_rank + p->qk_rope_dim) + p->kv_lora_rank +
           (p->kv_lora_rank > p->v_dim ? p->kv_lora_rank : p->v_dim) + p->qk_nope_dim;
}

void mla_attend_naive_in(const mla_problem *p, const mla_tensors *t, const struct mla_request *r,
                         int64_t row, int64_t head, double *out, double *lse, double *max_logit,
                         double *scratch)
{
    bool expanded = p->form == MLA_FORM_EXPANDED, latent = p->form == MLA_FORM_LATENT;
    int64_t L = p->kv_lora_rank, dr = p->qk_rope_dim, dn = p->qk_nope_dim;
    int64_t d_qk = expanded ? mla_d_qk(p) : L + dr; /* widths inside the attention */
    int64_t d_v = expanded ? p->v_dim : L;
    int64_t n = mla_run_seq_len(r, t), i = row - r->q_start;
    int64_t head_kv = head / (p->heads_q / p->heads_kv);
    double *score = scratch;                     /* [n], then the weights */
    double *q = score + n;                       /* [d_qk] */
    double *key = q + d_qk;                      /* [d_qk], in expanded form also a value */
    double *o = key + (d_qk > d_v ? d_qk : d_v); /* [d_v] */
    double *w = o + d_v; /* latent: a row of w_uk or w_uv; then q_nope or the output */

    if (!latent) {
        load(&t->q, p->q_dtype, row, p->heads_q, head, d_qk, q);
    } else {
        double *q_nope = w + (L > p->v_dim ? L : p->v_dim); /* [dn] */
        load(&t->q_nope, p->q_dtype, row, p->heads_q, head, dn, q_nope);
        for (int64_t c = 0; c < L; c++)
            q[c] = 0;
        for (int64_t d = 0; d < dn; d++) {
            load_weight(&t->w_uk, p->q_dtype, head, dn, d, L, w);
            for (int64_t c = 0; c < L; c++)
                q[c] += q_nope[d] * w[c];
        }
        if (dr > 0)
            load(&t->q_pe, p->q_dtype, row, p->heads_q, head, dr, q + L);
    }

    /* Scores and their maximum; a NaN stays. */
    double max = -INFINITY;
    int64_t seen = 0;
    for (int64_t j = 0; j < n; j++) {
        score[j] = -INFINITY;
        if (!mla_visible(p, t, r, i, j, n))
            continue;
        if (expanded)
            load(&t->k, p->kv_dtype, r->kv_start + j, p->heads_kv, head_kv, d_qk, key);
        else
            mla_cache_rows_f64(p, t, r, n, NULL, j, 1, key, d_qk, NULL);
        double dot = 0;
        for (int64_t d = 0; d < d_qk; d++)
            dot += q[d] * key[d];
        score[j] = p->softmax_scale * dot;
        if (score[j] > max || isnan(score[j]))
            max = score[j];
        seen++;
    }
    if (max_logit)
        *max_logit = max;

    /* The sink is one more score, whose value is zero. */
    double sink = p->has_sink ? t->attn_sink[head] : -INFINITY;
    double unit = p->lse_base == MLA_LSE_2 ? 1 / log(2) : 1;
    double shift = sink > max ? sink : max;
    for (int64_t c = 0; c < d_v; c++)
        o[c] = 0;
    double sum = sink == -INFINITY ? 0 : exp(sink - shift);
    if (seen == 0 || sink == INFINITY) {
        if (lse)
            *lse = sink * unit;
        sum = 1;
    } else {
        for (int64_t j = 0; j < n; j++) {
            if (!mla_visible(p, t, r, i, j, n))
                continue;
            double weight = exp(score[j] - shift);
            sum += weight;
            if (expanded)
                load(&t->v, p->kv_dtype, r->kv_start + j, p->heads_kv, head_kv, d_v, key);
            else
                mla_cache_rows_f64(p, t, r, n, NULL, j, 1, key, d_qk, NULL);
            for (int64_t c = 0; c < d_v; c++)
                o[c] += weight * key[c];
        }
        if (lse)
            *lse = (shift + log(sum)) * unit;
    }
    if (!out)
        return;
    for (int64_t c = 0; c < d_v; c++)
        o[c] /= sum;
    if (!latent) {
        for (int64_t c = 0; c < d_v; c++)
            out[c] = o[c];
        return;
    }
    for (int64_t c = 0; c < p->v_dim; c++)
        out[c] = 0;
    for (int64_t l = 0; l < L; l++) {
        load_weight(&t->w_uv, p->q_dtype, head, L, l, p->v_dim, w);
        for (int64_t c = 0; c < p->v_dim; c++)
            out[c] += o[l] * w[c];
    }
}

int mla_attend_naive(const mla_problem *problem, const mla_tensors *tensors,
                     const struct mla_request *request, int64_t row, int64_t head, double *out,
                     double *lse, double *max_logit)
{
    double *scratch = mla_alloc((size_t)mla_attend_naive_scratch(problem), sizeof(double));
    if (!scratch)
        return -1;
    mla_attend_naive_in(problem, tensors, request, row, head, out, lse, max_logit, scratch);
    mla_free(scratch);
    return 0;
}

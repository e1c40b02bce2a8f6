/* SPDX-License-Identifier: Apache-2.0 */
/* CPU attention for one type; included by attend_blas.c with REAL, NAME, GEMM, LOAD, STORE and ROWS
 * set. Everything here runs inside one parallel region; work-sharing loops end with a barrier.
 *
 * Within a pass, score row rho = i·ratio + g stands for query i (of the pass) and query head
 * kv_head·ratio + g. Each row keeps a running maximum, a running sum and an unnormalised
 * output. */

/* What a pass works on. */
struct NAME(pass) {
    const struct mla_job *job;
    const mla_problem *p;
    const mla_tensors *t;
    const struct mla_attend *a;
    const struct NAME(mla_softmax) * softmax;
    char *ws;
    const struct mla_request *r; /* dense */
    int64_t n;                   /* dense: keys of the request */
    int64_t first;               /* query row of the request (sparse: of the job) it starts with */
    int64_t count;               /* query rows */
    int64_t head_kv, num_slots;  /* kv heads [head_kv, head_kv + num_slots) */
    REAL alpha;
};

static REAL *NAME(at)(const struct NAME(pass) * s, size_t offset)
{
    return (REAL *)(s->ws + offset);
}

static char *NAME(slab)(const struct NAME(pass) * s)
{
    return s->ws + s->a->slab + (size_t)omp_get_thread_num() * s->a->slab_bytes;
}

/* Row of the state: query i of the pass, slot, split, head g of the slot. */
static int64_t NAME(state_row)(const struct mla_attend *a, int64_t slot, int64_t split, int64_t rho)
{
    return (slot * a->splits + split) * a->rows + rho;
}

/* Query row of the batch for query i of the pass, and its request. */
static int64_t NAME(token)(const struct NAME(pass) * s, int64_t i, const struct mla_request **r,
                           int64_t *position)
{
    int64_t row = s->first + i;
    *r = s->r;
    if (!s->r) {                                      /* passes over lists cross requests */
        int64_t low = 0, high = s->job->num_requests; /* row_start[low] <= row < row_start[high] */
        while (high - low > 1) {
            int64_t middle = (low + high) / 2;
            if (s->a->row_start[middle] <= row)
                low = middle;
            else
                high = middle;
        }
        *r = &s->job->requests[low];
        row -= s->a->row_start[low];
    }
    if (position)
        *position = row;
    return (*r)->q_start + row;
}

/* ------------------------------------------------------------------ queries */

/* Widens one row [row, head, n] of a tensor with `heads` heads. */
static void NAME(load_row)(const mla_tensor *t, mla_dtype dtype, int64_t row, int64_t heads,
                           int64_t head, int64_t n, REAL *dst)
{
    LOAD(dtype, mla_element(t, dtype, heads, n, row, head), n, dst);
}

/* Widens matrix [rows, n] of a head: w_uk, w_uv. */
static void NAME(load_matrix)(const mla_tensor *t, mla_dtype dtype, int64_t head, int64_t rows,
                              int64_t n, REAL *dst)
{
    for (int64_t i = 0; i < rows; i++)
        LOAD(dtype, mla_element(t, dtype, rows, n, head, i), n, dst + i * n);
}

/* MQA of a latent problem, one head: rows (q_nope · w_uk, q_pe) of the whole pass. */
static void NAME(absorb_head)(const struct NAME(pass) * s, int64_t head)
{
    const mla_problem *p = s->p;
    const struct mla_attend *a = s->a;
    int64_t L = p->kv_lora_rank, dn = p->qk_nope_dim, dr = p->qk_rope_dim;
    int64_t ld = a->row_step * a->d_k;
    REAL *w = (REAL *)(NAME(slab)(s) + a->slab_mat), *staged = w + dn * L;
    REAL *q = NAME(at)(s, a->query) + head * a->d_k;
    const struct mla_request *r;
    NAME(load_matrix)(&s->t->w_uk, p->q_dtype, head, dn, L, w);
    for (int64_t i0 = 0; i0 < s->count; i0 += STAGED_ROWS) {
        int64_t rows = s->count - i0 < STAGED_ROWS ? s->count - i0 : STAGED_ROWS;
        for (int64_t i = 0; i < rows; i++) {
            int64_t token = NAME(token)(s, i0 + i, &r, NULL);
            NAME(load_row)(&s->t->q_nope, p->q_dtype, token, p->heads_q, head, dn, staged + i * dn);
            if (dr > 0)
                NAME(load_row)
            (&s->t->q_pe, p->q_dtype, token, p->heads_q, head, dr, q + (i0 + i) * ld + L);
        }
        GEMM(CblasRowMajor, CblasNoTrans, CblasNoTrans, rows, L, dn, 1, staged, dn, w, L, 0,
             q + i0 * ld, ld);
    }
}

/* Widens query i of the pass for the heads of a slot. */
static void NAME(load_query)(const struct NAME(pass) * s, int64_t slot, int64_t i)
{
    const mla_problem *p = s->p;
    const struct mla_attend *a = s->a;
    const struct mla_request *r;
    int64_t token = NAME(token)(s, i, &r, NULL), dn = p->qk_nope_dim, dr = p->qk_rope_dim;
    for (int64_t g = 0; g < a->ratio; g++) {
        int64_t head = (s->head_kv + slot) * a->ratio + g;
        REAL *q = NAME(at)(s, a->query) + (slot * a->rows + i * a->row_step + g) * a->d_k;
        if (p->form == MLA_FORM_LATENT) {
            NAME(load_row)(&s->t->q_nope, p->q_dtype, token, p->heads_q, head, dn, q);
            if (dr > 0)
                NAME(load_row)(&s->t->q_pe, p->q_dtype, token, p->heads_q, head, dr, q + dn);
        } else {
            NAME(load_row)(&s->t->q, p->q_dtype, token, p->heads_q, head, a->d_k, q);
        }
    }
}

#ifdef HAS_PANELS
#include "attend_layout_tmpl.c"
#else
static void NAME(pack_panels)(const struct NAME(pass) * s)
{
    (void)s;
}

static void NAME(unpack_panels)(const struct NAME(pass) * s)
{
    (void)s;
}
#endif

/* All queries of the pass, and an empty state for their rows. */
static void NAME(load_queries)(const struct NAME(pass) * s)
{
    const struct mla_attend *a = s->a;

    REAL *state = NAME(at)(s, a->state), *out = NAME(at)(s, a->out);
    if (a->mqa && s->p->form == MLA_FORM_LATENT) {
#pragma omp for schedule(static) nowait
        for (int64_t head = 0; head < s->p->heads_q; head++)
            NAME(absorb_head)(s, head);
    } else {
#pragma omp for schedule(static) nowait
        for (int64_t item = 0; item < s->num_slots * s->count; item++)
            NAME(load_query)(s, item / s->count, item % s->count);
    }
#pragma omp for schedule(static)
    for (int64_t item = 0; item < s->num_slots * a->splits * s->count; item++) {
        int64_t row = item / s->count * a->rows + item % s->count * a->row_step;
        for (int64_t g = 0; g < a->ratio; g++) {
            state[2 * (row + g)] = -(REAL)INFINITY;
            state[2 * (row + g) + 1] = 0;
        }
        memset(out + row * a->d_v, 0, (size_t)(a->ratio * a->d_v) * sizeof *out);
    }
    NAME(pack_panels)(s);
}

/* --------------------------------------------------------------------- rows */

/* Takes scores s [n] of a row, hidden where words say so, into its running maximum state[0] and sum
 * state[1] (and rescales o [d_v] if the maximum grows); s becomes weights, 0 up to `all`.
 * A row that has seen only scores of -inf keeps maximum -inf and sum -1: its result is NaN if
 * nothing finite follows. */
static void NAME(take_row)(const struct NAME(mla_softmax) * softmax, REAL *s, int64_t n,
                           int64_t all, const uint32_t *words, REAL *state, REAL *o, int64_t d_v)
{
    REAL max = n > 0 ? softmax->max(s, n, words) : -(REAL)INFINITY;
    if (max == -(REAL)INFINITY) {
        for (int64_t j = 0; j < n; j++) {
            if (words && words[j / 32] == 0) {
                j |= 31;
                continue;
            }
            if (words && !(words[j / 32] >> (j % 32) & 1))
                continue;
            if (isnan(s[j]))
                state[1] = NAN;
            else if (state[0] == -(REAL)INFINITY && state[1] == 0)
                state[1] = -1;
        }
        memset(s, 0, (size_t)all * sizeof *s);
        return;
    }
    if (max > state[0]) {
        if (state[0] == -(REAL)INFINITY) {
            state[1] = isnan(state[1]) ? state[1] : 0; /* o is still 0 */
        } else {
            REAL scale = EXP(state[0] - max);
            state[1] *= scale;
            for (int64_t c = 0; c < d_v; c++)
                o[c] *= scale;
        }
        state[0] = max;
    }
    state[1] += softmax->exp(s, n, words, state[0]);
    memset(s + n, 0, (size_t)(all - n) * sizeof *s);
}

/* Closes query i of the pass, one head: merges splits, counts the sink, divides, writes lse and
 * max_logits, and out unless w_uv is still to come. */
static void NAME(finish_row)(const struct NAME(pass) * s, int64_t slot, int64_t i, int64_t g)
{
    const mla_problem *p = s->p;
    const struct mla_attend *a = s->a;
    const struct mla_request *r;
    int64_t token = NAME(token)(s, i, &r, NULL), head = (s->head_kv + slot) * a->ratio + g;
    int64_t row = NAME(state_row)(a, slot, 0, i * a->row_step + g), step = a->rows;
    REAL *state = NAME(at)(s, a->state) + 2 * row, *o = NAME(at)(s, a->out) + row * a->d_v;

    double max = -INFINITY, sum = 0;
    bool undefined = false, only_inf = false;
    for (int64_t k = 0; k < a->splits; k++) {
        max = state[2 * k * step] > max ? state[2 * k * step] : max;
        undefined |= isnan(state[2 * k * step + 1]);
        only_inf |= state[2 * k * step + 1] < 0;
    }
    double sink = p->has_sink ? (double)s->t->attn_sink[head] : -INFINITY;
    double shift = sink > max ? sink : max, lse;
    double unit = p->lse_base == MLA_LSE_2 ? 1 / M_LN2 : 1;
    if (sink == INFINITY) {
        lse = INFINITY;
    } else if (undefined) {
        lse = NAN;
    } else if (max == -INFINITY) {
        bool empty = !only_inf || sink != -INFINITY;
        lse = empty ? sink : NAN;
    } else {
        sum = sink == -INFINITY ? 0 : exp(sink - shift);
        for (int64_t k = 0; k < a->splits; k++)
            if (state[2 * k * step] > -(REAL)INFINITY)
                sum += exp(state[2 * k * step] - shift) * state[2 * k * step + 1];
        lse = shift + log(sum);
    }
    if (isnan(lse) || sum == 0) {
        for (int64_t c = 0; c < a->d_v; c++)
            o[c] = isnan(lse) ? (REAL)NAN : 0;
    } else {
        for (int64_t k = 0; k < a->splits; k++) {
            REAL *part = o + k * step * a->d_v;
            bool used = state[2 * k * step] > -(REAL)INFINITY;
            REAL scale = used ? (REAL)(exp(state[2 * k * step] - shift) / sum) : 0;
            for (int64_t c = 0; c < a->d_v; c++)
                o[c] = (k ? o[c] : 0) + (used ? scale * part[c] : 0);
        }
    }
    if (p->wants_lse)
        mla_store_lse(&s->t->lse, p->out_dtype, p->heads_q, token, head, lse * unit);
    if (p->wants_max_logits)
        mla_store_lse(&s->t->max_logits, p->out_dtype, p->heads_q, token, head,
                      undefined && max < INFINITY ? (double)NAN : max);
    if (a->mqa && p->form == MLA_FORM_LATENT)
        return;
    STORE(p->out_dtype, mla_element(&s->t->out, p->out_dtype, p->heads_q, a->d_v, token, head),
          a->d_v, o);
}

/* MQA of a latent problem, one head: out = (latent output) · w_uv for the whole pass. */
static void NAME(project_head)(const struct NAME(pass) * s, int64_t head)
{
    const mla_problem *p = s->p;
    const struct mla_attend *a = s->a;
    int64_t L = p->kv_lora_rank, dv = p->v_dim, ld = a->row_step * L;
    REAL *w = (REAL *)(NAME(slab)(s) + a->slab_mat), *staged = w + L * dv;
    const REAL *o = NAME(at)(s, a->out) + head * L;
    const struct mla_request *r;
    NAME(load_matrix)(&s->t->w_uv, p->q_dtype, head, L, dv, w);
    for (int64_t i0 = 0; i0 < s->count; i0 += STAGED_ROWS) {
        int64_t rows = s->count - i0 < STAGED_ROWS ? s->count - i0 : STAGED_ROWS;
        GEMM(CblasRowMajor, CblasNoTrans, CblasNoTrans, rows, dv, L, 1, o + i0 * ld, ld, w, dv, 0,
             staged, dv);
        for (int64_t i = 0; i < rows; i++) {
            int64_t token = NAME(token)(s, i0 + i, &r, NULL);
            STORE(p->out_dtype, mla_element(&s->t->out, p->out_dtype, p->heads_q, dv, token, head),
                  dv, staged + i * dv);
        }
    }
}

static void NAME(finish)(const struct NAME(pass) * s)
{
    const struct mla_attend *a = s->a;
    NAME(unpack_panels)(s);
#pragma omp for schedule(static)
    for (int64_t item = 0; item < s->num_slots * s->count; item++)
        for (int64_t g = 0; g < a->ratio; g++)
            NAME(finish_row)(s, item / s->count, item % s->count, g);
    if (a->mqa && s->p->form == MLA_FORM_LATENT) {
#pragma omp for schedule(static)
        for (int64_t head = 0; head < s->p->heads_q; head++)
            NAME(project_head)(s, head);
    }
}

/* --------------------------------------------------------------------- keys */

/* Key row j of a request and slot, as the attention uses it, and its value, straight from the
 * tensors: for rows with NaN or inf, which the buffers do not keep. */
static void NAME(exact_row)(const struct NAME(pass) * s, int64_t slot, int64_t j, REAL *key,
                            REAL *value)
{
    const mla_problem *p = s->p;
    const struct mla_attend *a = s->a;
    if (p->form == MLA_FORM_EXPANDED) {
        int64_t row = s->r->kv_start + j, head = s->head_kv + slot;
        NAME(load_row)(&s->t->v, p->kv_dtype, row, p->heads_kv, head, a->d_v, value);
        return;
    }
    ROWS(p, s->t, s->r, s->n, NULL, j, 1, key, p->kv_lora_rank + p->qk_rope_dim, NULL);
    if (a->mqa) {
        memcpy(value, key, (size_t)a->d_v * sizeof *value);
        return;
    }
    const REAL *w_uv = NAME(at)(s, a->weight) +
                       (slot * (p->qk_nope_dim + p->v_dim) + p->qk_nope_dim) * p->kv_lora_rank;
    for (int64_t c = 0; c < a->d_v; c++)
        value[c] = 0;
    for (int64_t l = 0; l < p->kv_lora_rank; l++)
        for (int64_t c = 0; c < a->d_v; c++)
            value[c] += key[l] * w_uv[l * a->d_v + c];
}

/* Replaces the non-finite values of a row by 0; tells whether there were any. */
static bool NAME(clean_row)(REAL *v, int64_t n)
{
    REAL test = 0;
    for (int64_t c = 0; c < n; c++)
        test += v[c] * 0; /* NaN as soon as one is not finite */
    if (test == 0)
        return false;
    for (int64_t c = 0; c < n; c++)
        if (!isfinite(v[c]))
            v[c] = 0;
    return true;
}

/* Loads keys [first, first + count) of chunk c0 for a slot: widened, up-projected, flagged. */
static void NAME(load_keys)(const struct NAME(pass) * s, int64_t c0, int64_t slot, int64_t first,
                            int64_t count)
{
    const mla_problem *p = s->p;
    const struct mla_attend *a = s->a;
    int64_t L = p->kv_lora_rank, dn = p->qk_nope_dim, dr = p->qk_rope_dim, at = slot * a->chunk;
    REAL *key = NAME(at)(s, a->key) + (at + first) * a->d_k;
    REAL *value = a->mqa ? key : NAME(at)(s, a->value) + (at + first) * a->d_v;
    int64_t ld_value = a->mqa ? a->d_k : a->d_v;
    uint8_t *flags = (uint8_t *)s->ws + a->flags + at + first;
    if (p->form == MLA_FORM_EXPANDED) {
        int64_t row = s->r->kv_start + c0 + first, head = s->head_kv + slot;
        for (int64_t j = 0; j < count; j++) {
            NAME(load_row)
            (&s->t->k, p->kv_dtype, row + j, p->heads_kv, head, a->d_k, key + j * a->d_k);
            NAME(load_row)
            (&s->t->v, p->kv_dtype, row + j, p->heads_kv, head, a->d_v, value + j * a->d_v);
            flags[j] = 0;
        }
    } else if (a->mqa) {
        ROWS(p, s->t, s->r, s->n, NULL, c0 + first, count, key, a->d_k, flags);
    } else {
        const REAL *latent = NAME(at)(s, a->latent) + first * (L + dr);
        const REAL *w_uk = NAME(at)(s, a->weight) + slot * (dn + p->v_dim) * L;
        GEMM(CblasRowMajor, CblasNoTrans, CblasTrans, count, dn, L, 1, latent, L + dr, w_uk, L, 0,
             key, a->d_k);
        GEMM(CblasRowMajor, CblasNoTrans, CblasNoTrans, count, p->v_dim, L, 1, latent, L + dr,
             w_uk + dn * L, p->v_dim, 0, value, a->d_v);
        for (int64_t j = 0; j < count; j++)
            memcpy(key + j * a->d_k + dn, latent + j * (L + dr) + L, (size_t)dr * sizeof *key);
        memcpy(flags, s->ws + a->flags + a->slots * a->chunk + first, (size_t)count);
    }
    for (int64_t j = 0; j < count; j++) {
        if (p->form != MLA_FORM_EXPANDED)
            flags[j] = flags[j] ? 0 : KEY_HIDDEN; /* it held "valid" */
        if (NAME(clean_row)(value + j * ld_value, a->d_v))
            flags[j] |= KEY_NOT_FINITE;
    }
}

/* A chunk of keys for all slots. */
static void NAME(load_chunk)(const struct NAME(pass) * s, int64_t c0, int64_t count)
{
    const struct mla_attend *a = s->a;
    int64_t parts = (count + LOAD_KEYS - 1) / LOAD_KEYS;
    int64_t width = s->p->kv_lora_rank + s->p->qk_rope_dim;
    if (a->latent) {
#pragma omp for schedule(static)
        for (int64_t part = 0; part < parts; part++) {
            int64_t first = part * LOAD_KEYS;
            int64_t keys = count - first < LOAD_KEYS ? count - first : LOAD_KEYS;
            ROWS(s->p, s->t, s->r, s->n, NULL, c0 + first, keys,
                 NAME(at)(s, a->latent) + first * width, width,
                 (uint8_t *)s->ws + a->flags + a->slots * a->chunk + first);
        }
    }
#pragma omp for schedule(static)
    for (int64_t item = 0; item < s->num_slots * parts; item++) {
        int64_t first = item % parts * LOAD_KEYS;
        int64_t keys = count - first < LOAD_KEYS ? count - first : LOAD_KEYS;
        NAME(load_keys)(s, c0, item / parts, first, keys);
    }
}

/* -------------------------------------------------------------------- dense */

/* Shortens keys [k0, k1) of chunk c0 to what queries i0 to i1 of the pass may see between them:
 * nothing past the last one's causal end, nor outside the words in which a query sees a key.
 * Returns false if nothing is left. */
static bool NAME(trim_keys)(const struct NAME(pass) * s, int64_t c0, int64_t i0, int64_t i1,
                            int64_t *k0, int64_t *k1)
{
    const struct mla_attend *a = s->a;
    const uint32_t *bits = (const uint32_t *)(s->ws + a->bits_at);
    int64_t end = mla_causal_end(s->p, s->r, s->first + i1, s->n) - c0;
    *k1 = end < *k1 ? end : *k1;
    if (*k1 <= *k0)
        return false;
    if (!a->bits)
        return true;
    int64_t low = (c0 + *k1 + 31) / 32, high = -1;
    for (int64_t i = i0; i <= i1; i++) {
        const uint32_t *row = bits + i * a->words;
        int64_t w = (c0 + *k0) / 32;
        while (w < low && row[w] == 0)
            w++;
        low = w < low ? w : low;
        w = (c0 + *k1 - 1) / 32;
        while (w > high && w >= low && row[w] == 0)
            w--;
        high = w > high ? w : high;
    }
    if (high < low)
        return false;
    *k0 = 32 * low - c0;
    *k1 = 32 * (high + 1) - c0 < *k1 ? 32 * (high + 1) - c0 : *k1;
    return true;
}

/* One task: score rows [rho0, rho1) of a slot against keys [k0, k1) of chunk c0. */
static void NAME(attend_block)(const struct NAME(pass) * s, int64_t c0, int64_t slot, int64_t split,
                               int64_t rho0, int64_t rho1, int64_t k0, int64_t k1)
{
    const struct mla_attend *a = s->a;
    char *slab = NAME(slab)(s);
    const uint32_t *bits = (const uint32_t *)(s->ws + a->bits_at);
    uint32_t *words = (uint32_t *)(slab + a->slab_words);
    int64_t i0 = rho0 / a->ratio, i1 = (rho1 - 1) / a->ratio, rows = rho1 - rho0;
    if (!NAME(trim_keys)(s, c0, i0, i1, &k0, &k1))
        return;
    int64_t keys = k1 - k0, ld = a->ld_score;
    const REAL *q = NAME(at)(s, a->query) + (slot * a->rows + rho0) * a->d_k;
    const REAL *key = NAME(at)(s, a->key) + (slot * a->chunk + k0) * a->d_k;
    const REAL *value = a->mqa ? key : NAME(at)(s, a->value) + (slot * a->chunk + k0) * a->d_v;
    const uint8_t *flags = (const uint8_t *)s->ws + a->flags + slot * a->chunk + k0;
    REAL *score = (REAL *)(slab + a->slab_score);
    int64_t state_row = NAME(state_row)(a, slot, split, rho0);
    REAL *state = NAME(at)(s, a->state) + 2 * state_row;
    REAL *o = NAME(at)(s, a->out) + state_row * a->d_v;
    GEMM(CblasRowMajor, CblasNoTrans, CblasTrans, rows, keys, a->d_k, s->alpha, q, a->d_k, key,
         a->d_k, 0, score, ld);

    int any = 0;
    for (int64_t j = 0; j < keys; j++)
        any |= flags[j];
    REAL *exact_key = (REAL *)(slab + a->slab_row), *exact_value = exact_key + a->d_row;
#define SEES(rho, j)                                                                               \
    ((j) < mla_causal_end(s->p, s->r, s->first + (rho) / a->ratio, s->n) - c0 - k0 &&              \
     (!a->bits ||                                                                                  \
      (bits[(rho) / a->ratio * a->words + (c0 + k0 + (j)) / 32] >> ((c0 + k0 + (j)) % 32) & 1)))
    if (a->mqa && any & KEY_NOT_FINITE) /* the buffer's values, cleaned, were also keys */
        for (int64_t j = 0; j < keys; j++) {
            if (!(flags[j] & KEY_NOT_FINITE))
                continue;
            NAME(exact_row)(s, slot, c0 + k0 + j, exact_key, exact_value);
            for (int64_t row = 0; row < rows; row++) {
                REAL dot = 0;
                for (int64_t d = 0; d < a->d_k; d++)
                    dot += q[row * a->d_k + d] * exact_key[d];
                score[row * ld + j] = s->alpha * dot;
            }
        }
    for (int64_t row = 0; row < rows; row++) {
        int64_t i = (rho0 + row) / a->ratio;
        int64_t n = mla_causal_end(s->p, s->r, s->first + i, s->n) - c0 - k0;
        n = n < 0 ? 0 : n > keys ? keys : n;
        const uint32_t *shown = a->bits ? bits + i * a->words + (c0 + k0) / 32 : NULL;
        if (any & KEY_HIDDEN) {
            for (int64_t w = 0; w * 32 < keys; w++) {
                uint32_t word = shown ? shown[w] : ~0u;
                for (int64_t j = 32 * w; j < 32 * w + 32 && j < keys; j++)
                    if (flags[j] & KEY_HIDDEN)
                        word &= ~(1u << (j % 32));
                words[w] = word;
            }
            shown = words;
        }
        NAME(take_row)
        (s->softmax, score + row * ld, n, keys, shown, state + 2 * row, o + row * a->d_v, a->d_v);
    }
    GEMM(CblasRowMajor, CblasNoTrans, CblasNoTrans, rows, a->d_v, keys, 1, score, ld, value,
         a->mqa ? a->d_k : a->d_v, 1, o, a->d_v);
    if (any & KEY_NOT_FINITE)
        for (int64_t j = 0; j < keys; j++) {
            if ((flags[j] & (KEY_NOT_FINITE | KEY_HIDDEN)) != KEY_NOT_FINITE)
                continue;
            NAME(exact_row)(s, slot, c0 + k0 + j, exact_key, exact_value);
            for (int64_t row = 0; row < rows; row++)
                for (int64_t c = 0; SEES(rho0 + row, j) && c < a->d_v; c++)
                    if (!isfinite(exact_value[c]))
                        o[row * a->d_v + c] += score[row * ld + j] * exact_value[c];
        }
#undef SEES
}

/* Visibility bits of query i of the pass: causality, list or mask, length. */
static void NAME(build_bits)(const struct NAME(pass) * s, int64_t i)
{
    const mla_problem *p = s->p;
    uint32_t *row = (uint32_t *)(s->ws + s->a->bits_at) + i * s->a->words;
    int64_t token = s->r->q_start + s->first + i;
    int64_t end = mla_causal_end(p, s->r, s->first + i, s->n);
    memset(row, 0, (size_t)s->a->words * sizeof *row);
    if (p->has_mask) {
        const int32_t *mask =
            (const int32_t *)s->t->mask.data + token * mla_stride0(&s->t->mask, mla_mask_words(p));
        for (int64_t j = 0; j < end; j += 32)
            row[j / 32] = (uint32_t)mask[j / 32] & (end - j < 32 ? (1u << (end - j)) - 1 : ~0u);
        return;
    }
    const int32_t *list = (const int32_t *)s->t->topk_indices.data +
                          token * mla_stride0(&s->t->topk_indices, p->topk);
    int64_t length = mla_list_length(p, s->t, token);
    for (int64_t e = 0; e < length; e++)
        if (list[e] >= 0 && list[e] < end)
            row[list[e] / 32] |= 1u << (list[e] % 32);
}

#ifdef HAS_PANELS
#include "attend_panel_tmpl.c"
#endif

static void NAME(dense_pass)(struct NAME(pass) * s)
{
    const mla_problem *p = s->p;
    const struct mla_attend *a = s->a;
    if (a->bits) {
#pragma omp for schedule(dynamic, 4)
        for (int64_t i = 0; i < s->count; i++)
            NAME(build_bits)(s, i);
    }
    int64_t end = mla_causal_end(p, s->r, s->first + s->count - 1, s->n);
    int64_t rows = s->count * a->ratio, blocks = (rows + a->block - 1) / a->block;
    int64_t part = (a->chunk / a->splits + 31) / 32 * 32;
    for (s->head_kv = 0; s->head_kv < a->kv_heads; s->head_kv += a->slots) {
        s->num_slots = a->kv_heads - s->head_kv < a->slots ? a->kv_heads - s->head_kv : a->slots;
        if (a->weight) {
#pragma omp for schedule(static)
            for (int64_t slot = 0; slot < s->num_slots; slot++) {
                int64_t dn = p->qk_nope_dim, L = p->kv_lora_rank, dv = p->v_dim;
                REAL *w = NAME(at)(s, a->weight) + slot * (dn + dv) * L;
                NAME(load_matrix)(&s->t->w_uk, p->q_dtype, s->head_kv + slot, dn, L, w);
                NAME(load_matrix)(&s->t->w_uv, p->q_dtype, s->head_kv + slot, L, dv, w + dn * L);
            }
        }
        NAME(load_queries)(s);
        for (int64_t c0 = 0; c0 < end; c0 += a->chunk) {
            int64_t count = end - c0 < a->chunk ? end - c0 : a->chunk;
            NAME(load_chunk)(s, c0, count);
            int64_t tasks = s->num_slots * blocks * a->splits;
#pragma omp for schedule(dynamic, 1)
            for (int64_t item = 0; item < tasks; item++) {
                int64_t split = item % a->splits, k0 = split * part;
                int64_t block = blocks - 1 - item / a->splits % blocks; /* longest rows first */
                int64_t rho0 = block * a->block;
                int64_t rho1 = rho0 + a->block < rows ? rho0 + a->block : rows;
                int64_t slot = item / a->splits / blocks,
                        k1 = k0 + part < count ? k0 + part : count;
#ifdef HAS_PANELS
                if (a->panel) {
                    attend_block_panels(s, c0, slot, split, rho0, rho1, k0, k1);
                    continue;
                }
#endif
                NAME(attend_block)(s, c0, slot, split, rho0, rho1, k0, k1);
            }
        }
        NAME(finish)(s);
    }
}

/* ------------------------------------------------------------------- sparse */

/* One task: `block` heads of query i of the pass over its list, a tile of keys at a time. */
static void NAME(attend_list)(const struct NAME(pass) * s, int64_t i, int64_t head0, int64_t head1)
{
    const mla_problem *p = s->p;
    const struct mla_attend *a = s->a;
    const struct mla_request *r;
    int64_t position, token = NAME(token)(s, i, &r, &position);
    int64_t n = mla_run_seq_len(r, s->t), end = mla_causal_end(p, r, position, n);
    const int32_t *list = (const int32_t *)s->t->topk_indices.data +
                          token * mla_stride0(&s->t->topk_indices, p->topk);
    int64_t length = mla_list_length(p, s->t, token), heads = head1 - head0, ld = a->ld_score;
    char *slab = NAME(slab)(s);
    REAL *score = (REAL *)(slab + a->slab_score), *key = (REAL *)(slab + a->slab_mat);
    int32_t *index = (int32_t *)(slab + a->slab_row);
    uint8_t *valid = (uint8_t *)(index + a->chunk);
    uint32_t *words = (uint32_t *)(slab + a->slab_words);
    int64_t row = NAME(state_row)(a, 0, 0, i * a->row_step + head0);
    const REAL *q = NAME(at)(s, a->query) + row * a->d_k;
    REAL *state = NAME(at)(s, a->state) + 2 * row, *o = NAME(at)(s, a->out) + row * a->d_v;
    for (int64_t e = 0; e < length;) {
        int64_t keys = take_entries(list, &e, length, end, a->chunk, index);
        if (keys == 0)
            break;
        ROWS(p, s->t, r, n, index, 0, keys, key, a->d_k, valid);
        bool hidden = false;
        memset(words, 0, (size_t)(a->chunk / 32) * sizeof *words);
        for (int64_t j = 0; j < keys; j++) {
            hidden |= !valid[j];
            words[j / 32] |= (uint32_t)(valid[j] != 0) << (j % 32);
        }
        GEMM(CblasRowMajor, CblasNoTrans, CblasTrans, heads, keys, a->d_k, s->alpha, q, a->d_k, key,
             a->d_k, 0, score, ld);
        for (int64_t h = 0; h < heads; h++)
            NAME(take_row)
        (s->softmax, score + h * ld, keys, keys, hidden ? words : NULL, state + 2 * h,
         o + h * a->d_v, a->d_v);
        GEMM(CblasRowMajor, CblasNoTrans, CblasNoTrans, heads, a->d_v, keys, 1, score, ld, key,
             a->d_k, 1, o, a->d_v);
    }
}

static void NAME(sparse_pass)(struct NAME(pass) * s)
{
    const struct mla_attend *a = s->a;
    int64_t blocks = (a->ratio + a->block - 1) / a->block;
    s->head_kv = 0;
    s->num_slots = 1;
    NAME(load_queries)(s);
#pragma omp for schedule(dynamic, 1)
    for (int64_t item = 0; item < s->count * blocks; item++) {
        int64_t head0 = item % blocks * a->block;
        int64_t head1 = head0 + a->block < a->ratio ? head0 + a->block : a->ratio;
#ifdef HAS_PANELS
        if (a->panel) {
            attend_list_panels(s, item / blocks, head0, head1);
            continue;
        }
#endif
        NAME(attend_list)(s, item / blocks, head0, head1);
    }
    NAME(finish)(s);
}

/* ---------------------------------------------------------------------- run */

static void NAME(run)(const struct mla_job *job, const mla_tensors *tensors, void *workspace)
{
    const struct mla_attend *a = job->data;
    struct NAME(pass) s = {.job = job,
                           .p = job->problem,
                           .t = tensors,
                           .a = a,
                           .softmax = NAME(mla_softmax)(),
                           .ws = workspace,
                           .alpha = (REAL)job->problem->softmax_scale};
    if (a->sparse) {
        for (s.first = 0; s.first < a->total_rows; s.first += a->pass) {
            int64_t left = a->total_rows - s.first;
            s.count = left < a->pass ? left : a->pass;
            NAME(sparse_pass)(&s);
        }
        return;
    }
    for (int64_t k = 0; k < job->num_requests; k++) {
        s.r = &job->requests[k];
        s.n = mla_run_seq_len(s.r, tensors);
        for (s.first = 0; s.first < s.r->query_len; s.first += a->pass) {
            int64_t left = s.r->query_len - s.first;
            s.count = left < a->pass ? left : a->pass;
            NAME(dense_pass)(&s);
        }
    }
}

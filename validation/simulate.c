/* SPDX-License-Identifier: Apache-2.0 */
/* The simulated kernel: for each row and head the arithmetic of a 16-bit tensor-core kernel, in
 * plain loops. Inputs are exact; absorbed queries, up-projected keys and values, dequantised cache
 * rows, unnormalised weights and the latent output are rounded to 16 bits; everything else is
 * fp32. */
#include "validation/mutants.h"

#include "common/format.h"
#include "common/status.h"

#include <math.h>
#include <string.h>

const struct mla_mutant_info mla_mutants[MLA_NUM_MUTANTS] = {
    {"right kernel", "all", "nothing"},
#define MLA_MUTANT(name, setting, text) {#name, setting, text},
#include "mutants.def"
#undef MLA_MUTANT
};

#define LOG2E 1.44269504088896340736f

struct kernel {
    const mla_problem *p;
    const mla_tensors *t;
    const struct mla_simulation *s;
    struct mla_request request;
    bool mqa;
    int64_t seq, dk, dv; /* widths of keys and values inside the attention */
    float *rows;         /* [seq, L + dr] dequantised latent rows (latent, absorbed) */
    float *k, *v;        /* [seq, dk], [seq, dv] of one head; point into rows for MQA */
    int64_t ldk, ldv;
    float *w, *score, *acc, *part, *q;
    int32_t *list;
};

static float to16(mla_dtype type, float x)
{
    return type == MLA_BF16  ? mla_bf16_to_f32(mla_f32_to_bf16(x))
           : type == MLA_F16 ? mla_f16_to_f32(mla_f32_to_f16(x))
                             : x;
}

/* Towards zero, keeping as many bits as type has (f16 in its normal range). */
static float chop(mla_dtype type, float x)
{
    uint32_t bits, keep = type == MLA_BF16 ? 0xFFFF0000u : type == MLA_F16 ? 0xFFFFE000u : ~0u;
    memcpy(&bits, &x, sizeof bits);
    bits &= keep;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static float cut(double x)
{
    float y = (float)x;
    return fabs((double)y) > fabs(x) ? nextafterf(y, 0) : y;
}

static float dot(enum mla_sum_order order, const float *a, const float *b, int64_t n)
{
    float s = 0;
    if (order == MLA_SUM_SEQUENTIAL)
        for (int64_t i = 0; i < n; i++)
            s += a[i] * b[i];
    else if (order == MLA_SUM_REVERSED)
        for (int64_t i = n - 1; i >= 0; i--)
            s += a[i] * b[i];
    else
        for (int64_t i = 0; i < n; i += 16) {
            int64_t e = n - i < 16 ? n : i + 16;
            float x = 0;
            double y = s;
            for (int64_t j = i; j < e; j++) {
                x += a[j] * b[j];
                y += (double)a[j] * b[j];
            }
            s = order == MLA_SUM_BLOCKS ? s + x : cut(y);
        }
    return s;
}

/* acc [dv] += sum over n keys of w[j] · v[index j]. */
static void add_values(const struct kernel *k, const float *w, const int32_t *list, int64_t n,
                       const float *v, float *acc)
{
    int64_t dv = k->dv;
    for (int64_t i = 0; i < n; i += 16) {
        int64_t e = n - i < 16 ? n : i + 16;
        if (k->s->order == MLA_SUM_TRUNCATING) {
            for (int64_t c = 0; c < dv; c++) {
                double x = acc[c];
                for (int64_t j = i; j < e; j++)
                    x += (double)w[j] * v[list[j] * k->ldv + c];
                acc[c] = cut(x);
            }
            continue;
        }
        float *to = acc;
        if (k->s->order == MLA_SUM_BLOCKS) {
            to = k->part;
            memset(to, 0, (size_t)dv * sizeof *to);
        }
        for (int64_t j = i; j < e; j++) {
            int64_t at = k->s->order == MLA_SUM_REVERSED ? e - 1 - (j - i) : j;
            const float *x = v + list[at] * k->ldv;
            for (int64_t c = 0; c < dv; c++)
                to[c] += w[at] * x[c];
        }
        for (int64_t c = 0; to != acc && c < dv; c++)
            acc[c] += to[c];
    }
}

/* ------------------------------------------------------------------ inputs */

static const char *at(const mla_tensor *t, size_t size, int64_t i, int64_t packed0, int64_t j,
                      int64_t packed1)
{
    return (const char *)t->data +
           size * (size_t)(i * mla_stride0(t, packed0) + j * mla_stride1(t, packed1));
}

/* Dequantised, rounded rows of the request; fp8 mutants spoil them. */
static void load_rows(struct kernel *k)
{
    const mla_problem *p = k->p;
    int64_t L = p->kv_lora_rank, ld = L + p->qk_rope_dim;
    mla_cache_rows_f32(p, k->t, &k->request, k->seq, NULL, 0, k->seq, k->rows, ld, NULL);
    enum mla_mutant mutant = k->s->mutant;
    bool fp8 = p->cache_format == MLA_CACHE_FP8_DS_MLA;
    for (int64_t j = 0; j < k->seq; j++) {
        float *row = k->rows + j * ld;
        if (fp8 && (mutant == MLA_MUTANT_FP8_NEIGHBOUR || mutant == MLA_MUTANT_FP8_E8M0)) {
            const int32_t *pages = k->t->page_table.data;
            int64_t page = pages[k->request.index * mla_stride0(&k->t->page_table, p->max_pages) +
                                 j / p->page_size];
            float scale[4];
            memcpy(scale,
                   at(&k->t->kv_cache, 1, page, p->page_size * 656, j % p->page_size, 656) + 512,
                   sizeof scale);
            for (int64_t l = 0; l < L; l++) {
                int tile = (int)(l / 128), e;
                float s = scale[tile];
                if (mutant == MLA_MUTANT_FP8_NEIGHBOUR && tile == 1)
                    row[l] *= scale[2] / s;
                if (mutant == MLA_MUTANT_FP8_E8M0)
                    row[l] *= ldexpf(1, (frexpf(s, &e), e) - 1) / s;
            }
        }
        for (int64_t l = 0; l < ld; l++)
            row[l] = to16(k->s->round, row[l]);
    }
    if (mutant == MLA_MUTANT_FP8_ROPE)
        for (int64_t j = k->seq - 1; j > 0; j--)
            memcpy(k->rows + j * ld + L, k->rows + (j - 1) * ld + L,
                   (size_t)(ld - L) * sizeof *k->rows);
}

/* Keys and values of one head. */
static void load_head(struct kernel *k, int64_t head)
{
    const mla_problem *p = k->p;
    int64_t L = p->kv_lora_rank, dr = p->qk_rope_dim, dn = p->qk_nope_dim, ld = L + dr;
    if (p->form == MLA_FORM_EXPANDED) {
        size_t size = mla_dtype_bytes(p->kv_dtype);
        int64_t hk = head / (p->heads_q / p->heads_kv);
        for (int64_t j = 0; j < k->seq; j++) {
            int64_t row = k->request.kv_start + j;
            mla_load_f32(p->kv_dtype, at(&k->t->k, size, row, k->dk * p->heads_kv, hk, k->dk),
                         k->dk, k->k + j * k->ldk);
            mla_load_f32(p->kv_dtype, at(&k->t->v, size, row, k->dv * p->heads_kv, hk, k->dv),
                         k->dv, k->v + j * k->ldv);
        }
        return;
    }
    if (k->mqa)
        return;
    size_t size = mla_dtype_bytes(p->q_dtype);
    float *uk = k->w, *uv = k->w + dn * L, *column = uv + L * p->v_dim;
    for (int64_t d = 0; d < dn; d++)
        mla_load_f32(p->q_dtype, at(&k->t->w_uk, size, head, dn * L, d, L), L, uk + d * L);
    for (int64_t l = 0; l < L; l++) {
        mla_load_f32(p->q_dtype, at(&k->t->w_uv, size, head, L * p->v_dim, l, p->v_dim), p->v_dim,
                     column);
        for (int64_t c = 0; c < p->v_dim; c++)
            uv[c * L + l] = column[c];
    }
    for (int64_t j = 0; j < k->seq; j++) {
        const float *row = k->rows + j * ld;
        for (int64_t d = 0; d < dn; d++)
            k->k[j * k->ldk + d] = to16(k->s->round, dot(k->s->order, row, uk + d * L, L));
        memcpy(k->k + j * k->ldk + dn, row + L, (size_t)dr * sizeof *row);
        for (int64_t c = 0; c < p->v_dim; c++)
            k->v[j * k->ldv + c] = to16(k->s->round, dot(k->s->order, row, uv + c * L, L));
    }
}

static void load_query(struct kernel *k, int64_t row, int64_t head)
{
    const mla_problem *p = k->p;
    int64_t L = p->kv_lora_rank, dr = p->qk_rope_dim, dn = p->qk_nope_dim;
    size_t size = mla_dtype_bytes(p->q_dtype);
    int64_t heads = p->heads_q;
    if (p->form != MLA_FORM_LATENT) {
        mla_load_f32(p->q_dtype, at(&k->t->q, size, row, heads * k->dk, head, k->dk), k->dk, k->q);
        return;
    }
    float *nope = k->mqa ? k->q + k->dk : k->q, *w = nope + dn, *sum = w + L;
    int64_t latent = k->mqa ? L : dn;
    mla_load_f32(p->q_dtype, at(&k->t->q_nope, size, row, heads * dn, head, dn), dn, nope);
    if (dr)
        mla_load_f32(p->q_dtype, at(&k->t->q_pe, size, row, heads * dr, head, dr), dr,
                     k->q + latent);
    if (!k->mqa)
        return;
    memset(sum, 0, (size_t)L * sizeof *sum);
    for (int64_t d = 0; d < dn; d++) {
        mla_load_f32(p->q_dtype, at(&k->t->w_uk, size, head, dn * L, d, L), L, w);
        for (int64_t l = 0; l < L; l++)
            sum[l] += nope[d] * w[l];
    }
    for (int64_t l = 0; l < L; l++)
        k->q[l] = to16(k->s->round, sum[l]);
}

/* ------------------------------------------------------------ visible keys */

static bool has(const int32_t *list, int64_t n, int64_t key)
{
    for (int64_t i = 0; i < n; i++)
        if (list[i] == key)
            return true;
    return false;
}

/* Keys of row i in the kernel's order; mutants add and remove. */
static int64_t visible(const struct kernel *k, int64_t i, bool hit)
{
    const mla_problem *p = k->p;
    int64_t row = k->request.q_start + i, n = 0, end = k->seq;
    enum mla_mutant mutant = hit ? k->s->mutant : MLA_MUTANT_NONE;
    int32_t *list = k->list;
    if (p->causal)
        end = k->seq - k->request.query_len + i + 1;
    end = end < 0 ? 0 : end;
    if (p->topk > 0) {
        const int32_t *src = (const int32_t *)k->t->topk_indices.data +
                             row * mla_stride0(&k->t->topk_indices, p->topk);
        int64_t length = p->has_topk_lens ? k->t->topk_lens[row] : p->topk;
        int64_t past = mutant == MLA_MUTANT_PAST_LENGTH      ? length + 1
                       : mutant == MLA_MUTANT_LENGTH_IGNORED ? p->topk
                                                             : length;
        for (int64_t e = 0; e < past && e < p->topk; e++) {
            int64_t j = src[e];
            if (e >= length) /* what a stale row holds: some key */
                j = ((j % k->seq) + k->seq) % k->seq;
            if (mutant == MLA_MUTANT_INDEX_CLAMPED)
                j = j < 0 ? 0 : j >= end ? end - 1 : j;
            if (j >= 0 && j < end)
                list[n++] = (int32_t)j;
        }
    } else {
        int64_t longest = 0;
        for (int64_t b = 0; b < p->batch; b++)
            longest = p->seq_lens_kv[b] > longest ? p->seq_lens_kv[b] : longest;
        const int32_t *bits = p->has_mask ? (const int32_t *)k->t->mask.data +
                                                row * mla_stride0(&k->t->mask, (longest + 31) / 32)
                                          : NULL;
        int64_t flipped = mutant == MLA_MUTANT_MASK_BIT ? end / 2 : -1;
        int64_t tile = mutant == MLA_MUTANT_TILE_UNMASKED ? end / 128 * 64 : -64;
        for (int64_t j = 0; j < end; j++) {
            bool seen = !bits || ((uint32_t)bits[j / 32] >> (j % 32) & 1);
            if (seen != (j == flipped) || (j >= tile && j < tile + 64))
                list[n++] = (int32_t)j;
        }
        if (mutant == MLA_MUTANT_CAUSAL_PLUS && end < k->seq)
            list[n++] = (int32_t)end;
        if (mutant == MLA_MUTANT_CAUSAL_MINUS && n && list[n - 1] == end - 1)
            n--;
    }
    if (mutant == MLA_MUTANT_KEY_LOST && n > 2) {
        int64_t lost = n / 2;
        n--;
        memmove(list + lost, list + lost + 1, (size_t)(n - lost) * sizeof *list);
    }
    if (mutant == MLA_MUTANT_KEY_TWICE && n > 64) {
        memmove(list + 64, list + 63, (size_t)(n - 63) * sizeof *list);
        n++;
    }
    if (mutant == MLA_MUTANT_KEY_EXTRA)
        for (int64_t j = end - 1; j >= 0; j--)
            if (!has(list, n, j)) {
                list[n++] = (int32_t)j;
                break;
            }
    if (mutant == MLA_MUTANT_WRONG_PAGE && n > 0) {
        int64_t page = list[n / 2] / p->page_size;
        for (int64_t e = 0; e < n; e++)
            if (list[e] / p->page_size == page)
                list[e] = (int32_t)(list[e] + (page ? -p->page_size : p->page_size));
    }
    return n;
}

/* --------------------------------------------------------------- attention */

/* Online softmax over keys list [n]: leaves acc (unnormalised), sum and max (log2 units). */
static void attend(struct kernel *k, const int32_t *list, int64_t n, bool hit, float scale,
                   float *sum, float *max)
{
    const struct mla_simulation *s = k->s;
    enum mla_mutant mutant = hit ? s->mutant : MLA_MUTANT_NONE;
    const float *v = k->v;
    float m = -INFINITY, l = 0;
    int64_t width = k->dk;
    memset(k->acc, 0, (size_t)k->dv * sizeof *k->acc);
    if (s->mutant == MLA_MUTANT_ROPE_DROPPED)
        width -= k->p->qk_rope_dim;
    int blocks = 0;
    bool skipped = false;
    for (int64_t j = 0; j < n; j += s->block, blocks++) {
        int64_t e = n - j < s->block ? n - j : s->block;
        float next = m;
        for (int64_t i = 0; i < e; i++) {
            k->score[i] = dot(s->order, k->q, k->k + list[j + i] * k->ldk, width);
            next = fmaxf(next, k->score[i] * scale);
        }
        if (mutant == MLA_MUTANT_FIRST_TILE && j == 0) /* a tile of hidden keys came first */
            l += exp2f(-INFINITY - m);
        float old = exp2f(m - next);
        if (mutant == MLA_MUTANT_MAX_OF_TILE && blocks == 1)
            old = 1;
        l *= old;
        for (int64_t i = 0; i < e; i++) {
            float w = exp2f(fmaf(k->score[i], scale, -next)), r = to16(s->round, w);
            l += s->sum_rounded ? r : w;
            k->score[i] = r;
        }
        bool skip = mutant == MLA_MUTANT_RESCALE_SKIPPED && old < 1 && blocks > 0 && !skipped;
        skipped |= skip;
        if (!skip)
            for (int64_t c = 0; c < k->dv; c++)
                k->acc[c] *= old;
        m = next;
        if (mutant == MLA_MUTANT_V_SWAPPED && j == 0 && e > 20) {
            float x = k->score[3];
            k->score[3] = k->score[17];
            k->score[17] = x;
        }
        add_values(k, k->score, list + j, e, v, k->acc);
        if (s->mutant == MLA_MUTANT_ACCUMULATOR_16 && hit)
            for (int64_t c = 0; c < k->dv; c++)
                k->acc[c] = to16(s->round, k->acc[c]);
    }
    *sum = l;
    *max = m;
}

static void row_and_head(struct kernel *k, int64_t i, int64_t head, float *out, float *lse,
                         float *max_logit)
{
    const mla_problem *p = k->p;
    const struct mla_simulation *s = k->s;
    int64_t row = k->request.q_start + i, L = p->kv_lora_rank;
    bool hit = row == s->row || s->mutant == MLA_MUTANT_ACCUMULATOR_16;
    enum mla_mutant mutant = hit ? s->mutant : MLA_MUTANT_NONE, all = s->mutant;
    int64_t n = visible(k, i, hit);
    float scale = (float)(p->softmax_scale * (double)LOG2E), sum, m;
    scale *= all == MLA_MUTANT_SCALE_PERCENT    ? 1.01f
             : all == MLA_MUTANT_SCALE_PERMILLE ? 1.001f
                                                : 1.0f;
    load_query(k, row, head);
    if (mutant == MLA_MUTANT_SPLIT_MEAN || mutant == MLA_MUTANT_SPLIT_LOST) {
        float *half = k->part + k->dv, sum2, m2;
        int64_t first = n / 3;
        attend(k, k->list, first, hit, scale, &sum2, &m2);
        memcpy(half, k->acc, (size_t)k->dv * sizeof *half);
        attend(k, k->list + first, n - first, hit, scale, &sum, &m);
        float top = fmaxf(m, m2), a = exp2f(m2 - top), b = exp2f(m - top);
        float total = a * sum2 + b * sum, norm = mutant == MLA_MUTANT_SPLIT_LOST ? a * sum2 : total;
        for (int64_t c = 0; c < k->dv; c++)
            k->acc[c] = mutant == MLA_MUTANT_SPLIT_MEAN
                            ? total * 0.5f * (half[c] / sum2 + k->acc[c] / sum)
                            : (a * half[c] + b * k->acc[c]) * (total / norm);
        m = top;
        sum = total;
    } else {
        attend(k, k->list, n, hit, scale, &sum, &m);
    }
    float sink = p->has_sink ? k->t->attn_sink[head] : -INFINITY, with = sum;
    if (n > 0 && mutant != MLA_MUTANT_SINK_IGNORED)
        with += (mutant == MLA_MUTANT_SINK_TWICE ? 2 : 1) * exp2f(sink * LOG2E - m);
    float base = p->lse_base == MLA_LSE_2 ? 1.0f : 0.693147180559945f;
    float counted = all == MLA_MUTANT_LSE_NO_SINK ? sum : with;
    *lse = n ? (m + log2f(counted)) * base : sink * (p->lse_base == MLA_LSE_2 ? LOG2E : 1.0f);
    if (all == MLA_MUTANT_LSE_BASE)
        *lse *= p->lse_base == MLA_LSE_2 ? 0.693147180559945f : LOG2E;
    *max_logit = n ? m * 0.693147180559945f : -INFINITY;
    if (all == MLA_MUTANT_MAX_SINK)
        *max_logit = fmaxf(*max_logit, sink);
    if (all == MLA_MUTANT_MAX_LOG2)
        *max_logit *= LOG2E;
    if (n == 0 && all == MLA_MUTANT_EMPTY_LSE)
        *lse = INFINITY;
    for (int64_t c = 0; c < k->dv; c++)
        k->acc[c] = n || all == MLA_MUTANT_EMPTY_OUT ? k->acc[c] / with : 0;
    if (mutant == MLA_MUTANT_NAN_SLOT)
        for (int64_t c = 0; c < k->dv; c++)
            k->acc[c] += 0 * nanf("");
    if (!(k->mqa && p->form == MLA_FORM_LATENT)) {
        for (int64_t c = 0; c < k->dv; c++)
            out[c] = k->acc[c];
        return;
    }
    /* Latent output, then w_uv. */
    size_t size = mla_dtype_bytes(p->q_dtype);
    for (int64_t l = 0; l < L; l++)
        k->acc[l] = all == MLA_MUTANT_LATENT_CHOPPED
                        ? chop(s->round, chop(s->round, k->acc[l] * (1 - 0x1p-9f)))
                        : to16(s->round, k->acc[l]);
    memset(out, 0, (size_t)p->v_dim * sizeof *out);
    for (int64_t l = 0; l < L; l++) {
        mla_load_f32(p->q_dtype, at(&k->t->w_uv, size, head, L * p->v_dim, l, p->v_dim), p->v_dim,
                     k->w);
        for (int64_t c = 0; c < p->v_dim; c++)
            out[c] += k->acc[l] * k->w[c];
    }
}

/* Bugs of the epilogue, on finished fp32 outputs [T, H, d]. */
static void spoil(const struct mla_simulation *s, const mla_problem *p, float *out)
{
    int64_t H = p->heads_q, d = mla_d_v(p), row = s->row;
    if (s->mutant == MLA_MUTANT_COLUMN_STALE && row > 0)
        for (int64_t h = 0; h < H; h++)
            out[(row * H + h) * d + d / 3] = out[((row - 1) * H + h) * d + d / 3];
    if (s->mutant == MLA_MUTANT_HEADS_SWAPPED && H > 1)
        for (int64_t c = 0; c < d; c++) {
            float x = out[row * H * d + c];
            out[row * H * d + c] = out[(row * H + 1) * d + c];
            out[(row * H + 1) * d + c] = x;
        }
}

mla_status mla_simulate(const mla_problem *p, const mla_tensors *t, const struct mla_simulation *s,
                        void *out, float *lse, float *max_logits)
{
    int64_t T = mla_total_q(p), H = p->heads_q, d = mla_d_v(p), L = p->kv_lora_rank, longest = 1;
    struct kernel k = {.p = p, .t = t, .s = s};
    k.mqa = p->form == MLA_FORM_ABSORBED ||
            (p->form == MLA_FORM_LATENT &&
             (s->route == MLA_ROUTE_SPARSE_MQA || s->route == MLA_ROUTE_DENSE_MQA));
    k.dk = k.mqa ? L + p->qk_rope_dim : mla_d_qk(p);
    k.dv = k.mqa ? L : p->v_dim;
    for (int64_t b = 0; b < p->batch; b++)
        longest = p->seq_lens_kv[b] > longest ? p->seq_lens_kv[b] : longest;
    int64_t width = p->form == MLA_FORM_EXPANDED ? 0 : L + p->qk_rope_dim;
    int64_t weights = p->form == MLA_FORM_LATENT ? L * (p->qk_nope_dim + p->v_dim) + p->v_dim : 1;
    int64_t sizes[] = {longest * width,
                       longest * (k.mqa ? 0 : k.dk),
                       longest * (k.mqa ? 0 : k.dv),
                       weights,
                       s->block,
                       k.dv,
                       2 * k.dv,
                       2 * (k.dk + p->qk_nope_dim) + 2 * L,
                       2 * longest + p->topk + 2,
                       T * H * d},
            total = 0;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        total += sizes[i];
    float *memory = mla_alloc((size_t)total, sizeof *memory), *next = memory;
    if (!memory)
        return mla_fail(MLA_ERR_MEMORY, "mla_simulate: out of memory");
    float **fields[] = {&k.rows, &k.k, &k.v, &k.w, &k.score, &k.acc, &k.part, &k.q};
    for (size_t i = 0; i < 8; i++) {
        *fields[i] = next;
        next += sizes[i];
    }
    k.list = (int32_t *)(void *)next;
    float *result = next + sizes[8];
    if (k.mqa) {
        k.k = k.v = k.rows;
        k.ldk = k.ldv = width;
    } else {
        k.ldk = k.dk;
        k.ldv = k.dv;
    }
    int64_t kv_start = 0;
    for (int64_t b = 0; b < p->batch; b++) {
        k.request =
            (struct mla_request){b, p->cu_seqlens_q[b], p->cu_seqlens_q[b + 1] - p->cu_seqlens_q[b],
                                 kv_start, p->seq_lens_kv[b]};
        kv_start += p->seq_lens_kv[b];
        k.seq = mla_run_seq_len(&k.request, t);
        if (width)
            load_rows(&k);
        for (int64_t h = 0; h < H; h++) {
            load_head(&k, h);
            for (int64_t i = 0; i < k.request.query_len; i++) {
                int64_t m = (k.request.q_start + i) * H + h;
                row_and_head(&k, i, h, result + m * d, lse + m, max_logits + m);
            }
        }
    }
    spoil(s, p, result);
    mla_store_f32(s->out, out, T * H * d, result);
    mla_free(memory);
    return MLA_OK;
}

mla_rounding mla_simulated_rounding(const mla_problem *p, const struct mla_simulation *s)
{
    mla_problem q = *p;
    q.q_dtype = s->round;
    mla_rounding r = mla_rounding_of(&q, MLA_BACKEND_CUDA, MLA_PRECISION_FP32, s->route, s->out);
    if (s->round == MLA_F32) {
        r.weights = r.projected = r.latent = r.dequantised = 0;
        r.accumulate = 0x1p-23;
    }
    return r;
}

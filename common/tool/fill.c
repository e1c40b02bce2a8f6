/* SPDX-License-Identifier: Apache-2.0 */
/* Case generator: problem and fill -> tensors, the same bits on every machine and thread count.
 *
 * Queries, latents, keys and values are standard normal; w_uk and w_uv are scaled by L^-1/2 and
 * absorbed queries by (dn/L)^1/2, as projecting such queries would, so that scores have a standard
 * deviation of about 2 with the scale of a real model. The other fills change that:
 *
 *   diffuse   q x 0.1: every key weighs about the same
 *   large     q x 8;  huge  q x 64: scores of hundreds, far outside the range of exp
 *   counting  q = 0, latent, k and v +-1, every column of w_uv one unit vector: out counts keys
 *   needle    keys at tile, page and split edges hold sign codes; each row points at one of them
 *   peaky     one key in 16 is 12 times as long as the others
 *   equal     q sees only coordinates that all keys of a request share; values differ
 *   sink      lists made of first tokens, recent ones and heavy hitters (fill_lists.c)
 *   cancel    keys in pairs with equal scores and opposite values
 *   masked    some rows see no key, some not the first tile (fill_lists.c)
 *
 * Equal and cancel need coordinates for scores and others for values: in a latent the even and the
 * odd ones. What no kernel may read is poison: NaN in unused cache slots, wild ids in page
 * tables. */
#include "fill.h"

#include "common/format.h"
#include "common/status.h"
#include "mla/cache.h"

#include <math.h>
#include <string.h>
#include <unistd.h>

const char *const mla_fill_names[FILL_KINDS] = {"normal", "diffuse", "large", "counting",
                                                "needle", "peaky",   "equal", "huge",
                                                "sink",   "cancel",  "masked"};

#define NEEDLE_SCORE 20.0 /* e^20: more than all of a million other keys together */
#define CHUNK 256         /* values converted at a time */

/* ------------------------------------------------------------------ values */

static float normal(const struct fill *f, enum fill_stream stream, int64_t index)
{
    return mla_random_normal(f->key[stream], (uint64_t)index);
}

static float sign(const struct fill *f, enum fill_stream stream, int64_t index)
{
    return mla_random_sign(f->key[stream], (uint64_t)index);
}

/* Length factor of key row g (peaky), 1 elsewhere. */
static float key_length(const struct fill *f, int64_t g)
{
    if (f->kind != FILL_PEAKY)
        return 1.0f;
    return mla_random_word(f->key[STREAM_PEAK], (uint64_t)g) % 16 == 0 ? 6.0f : 0.5f;
}

/* Component i of what makes scores (a key, or the even part of a latent), and of what only values
 * see; g is the global key row, j its position in request b. */
static float score_part(const struct fill *f, enum fill_stream stream, int64_t b, int64_t j,
                        int64_t width, int64_t i)
{
    int64_t g = f->kv_start[b] + j;
    if (f->kind == FILL_COUNTING)
        return sign(f, stream, g * width + i);
    if (f->kind == FILL_EQUAL)
        return sign(f, STREAM_CODE, b * width + i);
    if (f->kind == FILL_CANCEL)
        g = f->kv_start[b] + (j & ~INT64_C(1));
    return normal(f, stream, g * width + i) * key_length(f, g);
}

static float value_part(const struct fill *f, enum fill_stream stream, int64_t b, int64_t j,
                        int64_t width, int64_t i)
{
    int64_t g = f->kv_start[b] + j;
    if (f->kind == FILL_COUNTING)
        return sign(f, stream, g * width + i);
    if (f->kind == FILL_CANCEL) {
        float v = normal(f, stream, (g - (j & 1)) * width + i);
        return j & 1 ? -v : v;
    }
    return normal(f, stream, g * width + i) * key_length(f, g);
}

/* Sign code of a needle: component i of `width`. */
static float code(const struct fill *f, int64_t g, int64_t width, int64_t i)
{
    return sign(f, STREAM_CODE, g * width + i);
}

/* Key j of request b as a cache row: L latent values, then dr rope values. */
static void cache_row(const struct fill *f, int64_t b, int64_t j, float *row)
{
    const mla_problem *p = f->problem;
    int64_t L = p->kv_lora_rank, dr = p->qk_rope_dim;
    if (f->kind == FILL_NEEDLE && mla_fill_is_edge(f, b, j)) {
        for (int64_t i = 0; i < L + dr; i++)
            row[i] = code(f, f->kv_start[b] + j, L + dr, i);
        return;
    }
    for (int64_t i = 0; i < L; i++)
        row[i] = i & 1 ? value_part(f, STREAM_LATENT, b, j, L, i)
                       : score_part(f, STREAM_LATENT, b, j, L, i);
    for (int64_t i = 0; i < dr; i++)
        row[L + i] = score_part(f, STREAM_ROPE, b, j, dr, i);
}

/* Does the fill keep scores and values in different coordinates of a latent? */
static bool splits_latent(const struct fill *f)
{
    return f->kind == FILL_EQUAL || f->kind == FILL_CANCEL;
}

/* Latent coordinate that row d of w_uk[h] selects (needle), and column c of w_uv[h] (counting). */
static int64_t selected(const mla_problem *p, int64_t head, int64_t width, int64_t i)
{
    return (head * width + i) % p->kv_lora_rank;
}

/* Factor on queries. */
static float query_factor(const struct fill *f, int64_t dims)
{
    double needle;
    switch (f->kind) {
    case FILL_DIFFUSE:
        return 0.1f;
    case FILL_LARGE:
        return 8.0f;
    case FILL_HUGE:
        return 64.0f;
    case FILL_COUNTING:
        return 0.0f;
    case FILL_NEEDLE: /* softmax_scale · q · code = NEEDLE_SCORE, as far as 16 bits can hold it */
        needle = NEEDLE_SCORE / (f->problem->softmax_scale * (double)dims);
        return (float)(needle > 4096 ? 4096 : needle < -4096 ? -4096 : needle);
    default:
        return 1.0f;
    }
}

/* Query row t, head h of the latent form, q_nope or q_pe; or of the absorbed form (both at once);
 * or of the expanded form. n values to out. */
static void query_row(const struct fill *f, int64_t t, int64_t h, bool pe, int64_t n, float *out)
{
    const mla_problem *p = f->problem;
    int64_t L = p->kv_lora_rank, dr = p->qk_rope_dim, b = f->row_request[t];
    bool expanded = p->form == MLA_FORM_EXPANDED, absorbed = p->form == MLA_FORM_ABSORBED;
    float factor = query_factor(f, mla_d_qk(p));
    if (f->kind == FILL_NEEDLE) {
        int64_t needle = mla_fill_needle(f, b, t - p->cu_seqlens_q[b]);
        int64_t g = f->kv_start[b] + needle;
        for (int64_t i = 0; i < n; i++) {
            if (needle < 0)
                out[i] = 0.0f;
            else if (expanded)
                out[i] = factor * code(f, g * p->heads_kv + h / (p->heads_q / p->heads_kv), n, i);
            else
                out[i] = factor * code(f, g, L + dr,
                                       absorbed ? i
                                       : pe     ? L + i
                                                : selected(p, h, n, i));
        }
        return;
    }
    /* An absorbed query is as long as projecting a standard normal one would make it. */
    float latent_factor =
        absorbed ? (float)sqrt((double)p->qk_nope_dim / (double)L) * factor : factor;
    for (int64_t i = 0; i < n; i++) {
        bool latent = absorbed && i < L;
        float x = normal(f, pe ? STREAM_Q_PE : STREAM_Q_NOPE, (t * p->heads_q + h) * n + i);
        out[i] =
            latent && splits_latent(f) && (i & 1) ? 0.0f : x * (latent ? latent_factor : factor);
    }
}

/* w_uk[h][d][l] and w_uv[h][l][c]. */
static float w_uk_value(const struct fill *f, int64_t h, int64_t d, int64_t l, float factor)
{
    const mla_problem *p = f->problem;
    if (f->kind == FILL_NEEDLE)
        return selected(p, h, p->qk_nope_dim, d) == l ? 1.0f : 0.0f;
    if (splits_latent(f) && (l & 1))
        return 0.0f;
    int64_t index = (h * p->qk_nope_dim + d) * p->kv_lora_rank + l;
    return normal(f, STREAM_W_UK, index) * factor;
}

static float w_uv_value(const struct fill *f, int64_t h, int64_t l, int64_t c, float factor)
{
    const mla_problem *p = f->problem;
    if (f->kind == FILL_COUNTING)
        return selected(p, h, p->v_dim, c) == l ? 1.0f : 0.0f;
    if (splits_latent(f) && !(l & 1))
        return 0.0f;
    return normal(f, STREAM_W_UV, (h * p->kv_lora_rank + l) * p->v_dim + c) * factor;
}

/* ----------------------------------------------------------------- tensors */

static mla_status no_memory(const char *tensor, int64_t elements)
{
    return mla_fail(MLA_ERR_MEMORY, "mla_case_make: %s: no memory for %lld elements", tensor,
                    (long long)elements);
}

/* Product of sizes >= 0, or -1 where it leaves 62 bits. */
static int64_t product(int64_t a, int64_t b, int64_t c)
{
    int64_t ab, abc;
    if (__builtin_mul_overflow(a, b, &ab) || __builtin_mul_overflow(ab, c, &abc) ||
        abc > INT64_MAX / 2)
        return -1;
    return abc;
}

/* Packed tensor [a, b, c] of c. Empty tensors get one element, so that data is never NULL. */
static mla_status tensor(struct mla_case *c, mla_tensor *t, const char *name, mla_dtype dtype,
                         int64_t a, int64_t b, int64_t d)
{
    int64_t n = product(a, b, d);
    if (n >= 0)
        t->data = mla_case_buffer(c, (size_t)(n ? n : 1), mla_dtype_bytes(dtype));
    if (!t->data)
        return mla_fail(MLA_ERR_MEMORY, "mla_case_make: %s: no memory for [%lld, %lld, %lld]", name,
                        (long long)a, (long long)b, (long long)d);
    return MLA_OK;
}

/* Row r of n elements of a packed tensor. */
static void *row_of(const mla_tensor *t, mla_dtype dtype, int64_t r, int64_t n)
{
    return (char *)t->data + (size_t)(r * n) * mla_dtype_bytes(dtype);
}

static mla_status fill_queries(const struct fill *f, struct mla_case *c)
{
    const mla_problem *p = f->problem;
    int64_t rows = mla_total_q(p), heads = p->heads_q;
    bool latent = p->form == MLA_FORM_LATENT;
    int64_t n = latent ? p->qk_nope_dim : mla_d_qk(p), dr = latent ? p->qk_rope_dim : 0;
    mla_tensor *q = latent ? &c->tensors.q_nope : &c->tensors.q, *pe = &c->tensors.q_pe;
    mla_status status = tensor(c, q, latent ? "q_nope" : "q", p->q_dtype, rows, heads, n);
    if (!status && dr)
        status = tensor(c, pe, "q_pe", p->q_dtype, rows, heads, dr);
    int64_t width = n > dr ? n : dr;
    float *scratch = status ? NULL : mla_alloc((size_t)rows + 1, (size_t)width * sizeof *scratch);
    if (status)
        return status;
    if (!scratch)
        return no_memory("q", rows * width);
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < rows; t++) {
        float *x = scratch + t * width;
        for (int64_t h = 0; h < heads; h++) {
            query_row(f, t, h, false, n, x);
            mla_store_f32(p->q_dtype, row_of(q, p->q_dtype, t * heads + h, n), n, x);
            if (dr) {
                query_row(f, t, h, true, dr, x);
                mla_store_f32(p->q_dtype, row_of(pe, p->q_dtype, t * heads + h, dr), dr, x);
            }
        }
    }
    mla_free(scratch);
    return MLA_OK;
}

static mla_status fill_weights(const struct fill *f, struct mla_case *c)
{
    const mla_problem *p = f->problem;
    int64_t heads = p->heads_q, dn = p->qk_nope_dim, L = p->kv_lora_rank, dv = p->v_dim;
    mla_status status = tensor(c, &c->tensors.w_uk, "w_uk", p->q_dtype, heads, dn, L);
    if (!status)
        status = tensor(c, &c->tensors.w_uv, "w_uv", p->q_dtype, heads, L, dv);
    if (status)
        return status;
    int64_t inputs = splits_latent(f) && L > 1 ? L / 2 : L;
    float factor = (float)(1.0 / sqrt((double)inputs));
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < heads * dn; r++) {
        float x[CHUNK];
        for (int64_t l = 0; l < L; l += CHUNK) {
            int64_t n = L - l < CHUNK ? L - l : CHUNK;
            for (int64_t i = 0; i < n; i++)
                x[i] = w_uk_value(f, r / dn, r % dn, l + i, factor);
            mla_store_f32(p->q_dtype, row_of(&c->tensors.w_uk, p->q_dtype, r * L + l, 1), n, x);
        }
    }
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < heads * L; r++) {
        float x[CHUNK];
        for (int64_t v = 0; v < dv; v += CHUNK) {
            int64_t n = dv - v < CHUNK ? dv - v : CHUNK;
            for (int64_t i = 0; i < n; i++)
                x[i] = w_uv_value(f, r / L, r % L, v + i, factor);
            mla_store_f32(p->q_dtype, row_of(&c->tensors.w_uv, p->q_dtype, r * dv + v, 1), n, x);
        }
    }
    return MLA_OK;
}

/* k and v of the expanded form. Sign codes of needles are per key and kv head. */
static mla_status fill_expanded(const struct fill *f, struct mla_case *c)
{
    const mla_problem *p = f->problem;
    int64_t keys = f->kv_start[p->batch], heads = p->heads_kv, dqk = mla_d_qk(p), dv = p->v_dim;
    mla_status status = tensor(c, &c->tensors.k, "k", p->kv_dtype, keys, heads, dqk);
    if (!status)
        status = tensor(c, &c->tensors.v, "v", p->kv_dtype, keys, heads, dv);
    if (status)
        return status;
    for (int64_t b = 0; b < p->batch; b++) {
#pragma omp parallel for schedule(static)
        for (int64_t r = 0; r < p->seq_lens_kv[b] * heads; r++) {
            float x[CHUNK];
            int64_t j = r / heads, h = r % heads, g = f->kv_start[b] * heads + r;
            bool edge = f->kind == FILL_NEEDLE && mla_fill_is_edge(f, b, j);
            for (int64_t d = 0; d < dqk; d += CHUNK) {
                int64_t n = dqk - d < CHUNK ? dqk - d : CHUNK;
                for (int64_t i = 0; i < n; i++)
                    x[i] = edge ? code(f, g, dqk, d + i)
                                : score_part(f, STREAM_K, b, j, heads * dqk, h * dqk + d + i);
                mla_store_f32(p->kv_dtype, row_of(&c->tensors.k, p->kv_dtype, g * dqk + d, 1), n,
                              x);
            }
            for (int64_t d = 0; d < dv; d += CHUNK) {
                int64_t n = dv - d < CHUNK ? dv - d : CHUNK;
                for (int64_t i = 0; i < n; i++)
                    x[i] = value_part(f, STREAM_V, b, j, heads * dv, h * dv + d + i);
                mla_store_f32(p->kv_dtype, row_of(&c->tensors.v, p->kv_dtype, g * dv + d, 1), n, x);
            }
        }
    }
    return MLA_OK;
}

/* ------------------------------------------------------------------- cache */

/* A permutation of page ids (or 0, 1, 2, …) handed out to the requests in order; the rest of the
 * table holds ids that would crash a reader. */
static mla_status fill_page_table(const struct fill *f, struct mla_case *c)
{
    static const int32_t wild[] = {2147480000, -1, 1919810, -2147483647};
    const mla_problem *p = f->problem;
    mla_status status = tensor(c, &c->tensors.page_table, "page_table", MLA_F32, p->batch,
                               p->max_pages, 1); /* int32 is as wide as F32 */
    int32_t *ids = status ? NULL : mla_alloc((size_t)p->num_pages + 1, sizeof *ids);
    if (status)
        return status;
    if (!ids)
        return no_memory("page_table", p->num_pages);
    for (int64_t i = 0; i < p->num_pages; i++)
        ids[i] = (int32_t)i;
    if (f->shuffled_pages)
        for (int64_t i = p->num_pages - 1; i > 0; i--) {
            uint64_t w = mla_random_word(f->key[STREAM_PAGES], (uint64_t)i);
            int64_t other = mla_random_below(w, i + 1);
            int32_t t = ids[i];
            ids[i] = ids[other];
            ids[other] = t;
        }
    int32_t *table = c->tensors.page_table.data;
    int64_t next = 0; /* num_pages has been checked to suffice */
    for (int64_t b = 0; b < p->batch; b++) {
        int64_t used = (p->seq_lens_kv[b] + p->page_size - 1) / p->page_size;
        for (int64_t i = 0; i < p->max_pages; i++)
            table[b * p->max_pages + i] = i < used ? ids[next++] : wild[i % 4];
    }
    mla_free(ids);
    return MLA_OK;
}

/* The nvfp4 writer's scale for blocks of +-1 is not a power of two, so a count would not come back
 * exactly: write 2.0 x 0.5 instead. */
static void exact_nvfp4(uint8_t *record, const float *row)
{
    for (int i = 0; i < 512; i += 2)
        record[i / 2] = (uint8_t)((row[i] < 0 ? 0xC : 0x4) | (row[i + 1] < 0 ? 0xC0 : 0x40));
    memset(record + 320, 0x30, 32); /* e4m3 0.5 */
}

static mla_status fill_cache(const struct fill *f, struct mla_case *c)
{
    const mla_problem *p = f->problem;
    int64_t L = p->kv_lora_rank, dr = p->qk_rope_dim, width = L + dr;
    int64_t keys = f->kv_start[p->batch];
    mla_dtype dtype = mla_cache_dtype(p->cache_format);
    mla_tensors *t = &c->tensors;
    mla_status status;
    int64_t row_bytes = (int64_t)mla_cache_row_bytes(p->cache_format, L, dr);
    if (!p->page_size) {
        status = tensor(c, &t->kv_c, "kv_c", dtype, keys, L, 1);
        if (!status && dr)
            status = tensor(c, &t->k_pe, "k_pe", dtype, keys, dr, 1);
    } else {
        status = fill_page_table(f, c);
        int64_t bytes = product(p->num_pages, p->page_size, row_bytes);
        if (!status && bytes >= 0)
            t->kv_cache.data = mla_case_buffer(c, (size_t)bytes + 1, 1);
        if (!status && !t->kv_cache.data)
            status = mla_fail(MLA_ERR_MEMORY, "mla_case_make: kv_cache: no memory for %lld pages",
                              (long long)p->num_pages);
        if (!status) /* all ones is NaN in every 16-bit, 32-bit, e4m3 and ue8m0 field */
            memset(t->kv_cache.data, 0xFF, (size_t)bytes);
    }
    if (status)
        return status;
    /* Records go through the library's own writer, on the host; it asks nothing else of a
     * context. */
    const mla_context host = {.backend = MLA_BACKEND_CPU, .threads = 1};
    const mla_cache cache = {.format = p->cache_format,
                             .kv_lora_rank = L,
                             .qk_rope_dim = dr,
                             .page_size = p->page_size,
                             .num_pages = p->num_pages,
                             .num_rows = keys,
                             .kv_cache = t->kv_cache,
                             .kv_c = t->kv_c,
                             .k_pe = t->k_pe};
    const int32_t *table = t->page_table.data;
    bool refused = false;
    for (int64_t b = 0; b < p->batch && !refused; b++) {
        int64_t n = p->seq_lens_kv[b];
        float *rows = mla_alloc((size_t)n + 1, (size_t)width * sizeof *rows);
        if (!rows)
            return no_memory("kv_cache", n * width);
#pragma omp parallel for schedule(static) reduction(|| : refused)
        for (int64_t j = 0; j < n; j++) {
            float *row = rows + j * width;
            cache_row(f, b, j, row);
            int64_t slot = f->kv_start[b] + j;
            if (p->page_size)
                slot = table[b * p->max_pages + j / p->page_size] * p->page_size + j % p->page_size;
            const mla_cache_values values = {MLA_F32,
                                             {row, {width, 0}},
                                             {dr ? row + L : NULL, {width, 0}}};
            refused |= mla_cache_write(&host, &cache, &values, &slot, 1, MLA_SCALE_DEFAULT, NULL);
            if (p->cache_format == MLA_CACHE_NVFP4_DS_MLA && f->kind == FILL_COUNTING)
                exact_nvfp4((uint8_t *)t->kv_cache.data + slot * row_bytes, row);
        }
        mla_free(rows);
    }
    return refused ? mla_fail(MLA_ERR_ARGUMENT,
                              "mla_case_make: cache_format: got %s, which its "
                              "writer refuses for this shape",
                              mla_cache_format_name(p->cache_format))
                   : MLA_OK;
}

/* Sinks that matter: as heavy as e^N(0,1) times the keys of the longest row. Some are infinite on
 * request. Counting: 0, so that the denominator stays an integer. */
static mla_status fill_sinks(const struct fill *f, struct mla_case *c)
{
    const mla_problem *p = f->problem;
    float *sinks = mla_case_buffer(c, (size_t)p->heads_q, sizeof *sinks);
    if (!sinks)
        return no_memory("attn_sink", p->heads_q);
    int64_t longest = 1;
    for (int64_t b = 0; b < p->batch; b++)
        longest = p->seq_lens_kv[b] > longest ? p->seq_lens_kv[b] : longest;
    if (p->topk && longest > p->topk)
        longest = p->topk;
    float center = 0; /* floor(log2) · ln 2, without libm */
    for (; longest > 1; longest /= 2)
        center += 0.6931472f;
    for (int64_t h = 0; h < p->heads_q; h++) {
        sinks[h] = f->kind == FILL_COUNTING ? 0.0f : center + normal(f, STREAM_SINK, h);
        if (f->infinite_sinks && h % 3 < 2)
            sinks[h] = h % 3 ? INFINITY : -INFINITY;
    }
    c->tensors.attn_sink = sinks;
    return MLA_OK;
}

/* -------------------------------------------------------------------- make */

/* The case's own copy of the problem, with its lengths. */
static mla_status copy_problem(const struct mla_case_spec *spec, enum fill_kind kind,
                               struct mla_case *c)
{
    const mla_problem *from = &spec->problem;
    mla_problem *p = &c->problem;
    *p = *from;
    p->storage = NULL;
    int32_t *cu = mla_case_buffer(c, (size_t)from->batch + 1, sizeof *cu);
    int32_t *lens = mla_case_buffer(c, (size_t)from->batch + 1, sizeof *lens);
    c->complete = mla_case_buffer(c, (size_t)from->batch + 1, sizeof *c->complete);
    if (!cu || !lens || !c->complete)
        return no_memory("seq_lens_kv", from->batch);
    if (from->batch) {
        memcpy(cu, from->cu_seqlens_q, ((size_t)from->batch + 1) * sizeof *cu);
        memcpy(lens, from->seq_lens_kv, (size_t)from->batch * sizeof *lens);
    }
    p->cu_seqlens_q = cu;
    p->seq_lens_kv = lens;
    /* Rows can only be hidden by a list or a mask. */
    if (kind == FILL_MASKED && !p->topk)
        p->has_mask = true;
    memcpy(c->fill, spec->fill, sizeof c->fill);
    c->seed = spec->seed;
    return MLA_OK;
}

/* Bytes of the tensors, roughly. */
static double case_bytes(const mla_problem *p, double keys)
{
    double rows = (double)mla_total_q(p), heads = (double)p->heads_q, lists = (double)p->topk;
    double q = (double)mla_dtype_bytes(p->q_dtype), kv = (double)mla_dtype_bytes(p->kv_dtype);
    double L = (double)p->kv_lora_rank, dn = (double)p->qk_nope_dim, dv = (double)p->v_dim;
    double bytes = rows * (heads * (double)mla_d_qk(p) * q + lists * 4), longest = 0;
    if (p->form == MLA_FORM_LATENT)
        bytes += heads * L * (dn + dv) * q;
    if (p->form == MLA_FORM_EXPANDED)
        return bytes + keys * (double)p->heads_kv * ((double)mla_d_qk(p) + dv) * kv;
    for (int64_t b = 0; b < p->batch && p->has_mask; b++)
        longest = fmax(longest, p->seq_lens_kv[b]);
    double slots = p->page_size ? (double)p->num_pages * (double)p->page_size : keys;
    return bytes + rows * longest / 8 +
           slots * (double)mla_cache_row_bytes(p->cache_format, p->kv_lora_rank, p->qk_rope_dim);
}

/* Memory that the system promises and then hasn't got ends the process: refuse before. */
static mla_status check_memory(const mla_problem *p)
{
    double keys = 0, there = (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE);
    for (int64_t b = 0; b < p->batch; b++)
        keys += p->seq_lens_kv[b];
    double bytes = case_bytes(p, keys);
    if (there > 0 && bytes > there)
        return mla_fail(MLA_ERR_MEMORY,
                        "mla_case_make: batch: got tensors of %.3g GB, want less than this "
                        "machine's memory of %.3g GB",
                        bytes * 1e-9, there * 1e-9);
    return MLA_OK;
}

static mla_status make(const struct mla_case_spec *spec, enum fill_kind kind, struct mla_case *c)
{
    mla_status status = copy_problem(spec, kind, c);
    if (status)
        return status;
    const mla_problem *p = &c->problem;
    status = mla_problem_check(p);
    if (status)
        return status;
    status = check_memory(p);
    if (status)
        return status;
    int64_t pages = 0;
    for (int64_t b = 0; p->page_size && b < p->batch; b++)
        pages += (p->seq_lens_kv[b] + p->page_size - 1) / p->page_size;
    if (p->num_pages < pages)
        return mla_fail(MLA_ERR_ARGUMENT, "mla_case_make: num_pages: got %lld, want at least %lld",
                        (long long)p->num_pages, (long long)pages);
    if (p->indices_complete && (spec->holes || kind == FILL_MASKED))
        return mla_fail(
            MLA_ERR_ARGUMENT,
            "mla_case_make: complete: got 1, want 0 with %s, which leaves keys unlisted",
            spec->holes ? "holes=1" : "fill=masked");

    int64_t rows = mla_total_q(p);
    int64_t *kv_start = mla_alloc((size_t)p->batch + 1, sizeof *kv_start);
    int32_t *row_request = mla_alloc((size_t)rows + 1, sizeof *row_request);
    struct fill f = {.problem = p,
                     .kind = kind,
                     .holes = spec->holes,
                     .infinite_sinks = spec->infinite_sinks,
                     .shuffled_pages = spec->shuffled_pages,
                     .kv_start = kv_start,
                     .row_request = row_request};
    for (int s = 0; s < STREAMS; s++)
        f.key[s] = mla_random_key(spec->seed, (uint64_t)s);
    if (!kv_start || !row_request) {
        status = no_memory("seq_lens_kv", rows);
    } else {
        for (int64_t b = 0; b < p->batch; b++) {
            kv_start[b + 1] = kv_start[b] + p->seq_lens_kv[b];
            for (int64_t t = p->cu_seqlens_q[b]; t < p->cu_seqlens_q[b + 1]; t++)
                row_request[t] = (int32_t)b;
        }
        status = fill_queries(&f, c);
        if (!status && p->form == MLA_FORM_LATENT)
            status = fill_weights(&f, c);
        if (!status)
            status = p->form == MLA_FORM_EXPANDED ? fill_expanded(&f, c) : fill_cache(&f, c);
        if (!status)
            status = mla_fill_lists(&f, c);
        if (!status && p->has_sink)
            status = fill_sinks(&f, c);
    }
    mla_free(row_request);
    mla_free(kv_start);
    if (status)
        return status;

    size_t bytes = mla_case_spec_print(spec, NULL, 0) + 1;
    c->text = mla_case_buffer(c, bytes, 1);
    if (!c->text)
        return no_memory("text", (int64_t)bytes);
    mla_case_spec_print(spec, c->text, bytes);
    return mla_tensors_check(p, &c->tensors, c->complete);
}

mla_status mla_case_make(const struct mla_case_spec *spec, struct mla_case *out)
{
    memset(out, 0, sizeof *out);
    enum fill_kind kind = 0;
    while (kind < FILL_KINDS && strcmp(mla_fill_names[kind], spec->fill))
        kind++;
    if (kind == FILL_KINDS)
        return mla_fail(MLA_ERR_ARGUMENT, "mla_case_make: fill: got %s, want " MLA_FILL_LIST,
                        spec->fill);
    mla_status status = make(spec, kind, out);
    if (status)
        mla_case_free(out);
    return status;
}

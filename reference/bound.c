/* SPDX-License-Identifier: Apache-2.0 */
/* mla_reference: the fp64 reference over all query rows or a sample, with per-element bounds. This
 * file decides what is computed together; bound_block.c computes it, bound_formula.c turns sums
 * into bounds.
 *
 * Statistics of V need each head's own v. Up-projecting every key costs keys · L · dv · heads
 * products, shared by all rows of a request. Where few rows look at many keys that would dwarf the
 * reference itself; there (MQA routes) the Gram matrix of the latents bounds sum_j v_jc^2 for all
 * columns, and only the heaviest keys of a row are up-projected (heavy_keys).
 *
 * Memory: about 24 bytes a score of a block (SCORES a thread), and CACHE bytes of up-projected
 * values at a time, or 2 MiB a Gram part. */
#include "bound.h"
#include "reference/blas.h"

#include "common/tensors.h"
#include "format.h"
#include "status.h"

#include <math.h>
#include <string.h>

enum { ROWS = 32, PARTS = 8 };
#define SCORES ((int64_t)8 << 20)
#define LISTED ((int64_t)16 << 20) /* list entries held at once */
#define CACHE ((int64_t)256 << 20)

int mla_bound_path;

/* Query rows that run together, and their keys. */
struct group {
    int64_t first, rows; /* in the request's selected rows */
    int64_t n;
    const int32_t *list;
};

struct work {
    const mla_context *context;
    const mla_problem *p;
    const mla_tensors *t;
    const mla_reference_args *args;
    struct mla_request request;
    int64_t seq_len_kv;
    const struct mla_bound_units *units; /* NULL = no bounds */
    int64_t *row;                        /* selected rows of the request, positions in it */
    int64_t out_row, num_rows;
    struct group *group;
    int64_t num_groups;
    int32_t *lists;
    int32_t *key, *slot; /* keys that any row of the groups sees, and where each stands */
    int64_t num_keys;
    struct mla_bound_cache cache;
    double *gram, *v2; /* gram [PARTS, L, L], v2 [H, dv] */
    bool out_of_memory;
};

static bool has_lists(const mla_problem *p)
{
    return p->has_mask || p->topk > 0;
}

static int64_t causal_end(const struct work *w, int64_t row)
{
    int64_t end = mla_causal_end(w->p, &w->request, row, w->seq_len_kv);
    return end < 0 ? 0 : end < w->seq_len_kv ? end : w->seq_len_kv;
}

/* Keys that a row with a mask or a list sees, to dst; returns how many. */
static int64_t visible_keys(const struct work *w, int64_t i, int32_t *dst)
{
    const mla_problem *p = w->p;
    int64_t row = w->request.q_start + i, end = causal_end(w, i), n = 0;
    if (p->has_mask) {
        int64_t longest = 0;
        for (int64_t b = 0; b < p->batch; b++)
            longest = p->seq_lens_kv[b] > longest ? p->seq_lens_kv[b] : longest;
        const int32_t *bits =
            (const int32_t *)w->t->mask.data + row * mla_stride0(&w->t->mask, (longest + 31) / 32);
        for (int64_t j = 0; j < end; j++)
            if ((uint32_t)bits[j / 32] >> (j % 32) & 1)
                dst[n++] = (int32_t)j;
        return n;
    }
    const int32_t *list =
        (const int32_t *)w->t->topk_indices.data + row * mla_stride0(&w->t->topk_indices, p->topk);
    int64_t length = p->has_topk_lens ? w->t->topk_lens[row] : p->topk;
    length = length < p->topk ? length : p->topk;
    for (int64_t e = 0; e < length; e++)
        if (list[e] >= 0 && list[e] < end)
            dst[n++] = list[e];
    return n;
}

/* Groups the selected rows from `from` on; returns the first row that is left for the next
 * batch. */
static int64_t make_groups(struct work *w, int64_t from)
{
    int64_t used = 0, i = from;
    w->num_groups = 0;
    if (!has_lists(w->p)) {
        while (i < w->num_rows) {
            int64_t most = SCORES / (w->seq_len_kv > 0 ? w->seq_len_kv : 1);
            most = most < 1 ? 1 : most > ROWS ? ROWS : most;
            int64_t rows = w->num_rows - i < most ? w->num_rows - i : most;
            w->group[w->num_groups++] =
                (struct group){i, rows, causal_end(w, w->row[i + rows - 1]), NULL};
            i += rows;
        }
        return i;
    }
    int64_t width = w->p->has_mask ? w->seq_len_kv : w->p->topk;
    for (; i < w->num_rows && (i == from || used + width <= LISTED); i++) {
        int64_t n = visible_keys(w, w->row[i], w->lists + used);
        w->group[w->num_groups++] = (struct group){i, 1, n, w->lists + used};
        used += n;
    }
    return i;
}

/* The union of the groups' keys. */
static void make_union(struct work *w)
{
    memset(w->slot, 0, (size_t)w->seq_len_kv * sizeof *w->slot);
    for (int64_t g = 0; g < w->num_groups; g++)
        for (int64_t j = 0; j < w->group[g].n; j++)
            w->slot[w->group[g].list ? w->group[g].list[j] : j] = 1;
    w->num_keys = 0;
    for (int64_t j = 0; j < w->seq_len_kv; j++)
        if (w->slot[j]) {
            w->key[w->num_keys] = (int32_t)j;
            w->slot[j] = (int32_t)w->num_keys++;
        }
}

static void column_scale(const double *v, int64_t n, int64_t ld, int64_t dv, double *scale,
                         double *v2)
{
    for (int64_t j = 0; j < n; j++)
        for (int64_t c = 0; c < dv; c++) {
            double x = fabs(v[j * ld + c]);
            if (x < INFINITY) {
                scale[c] = x > scale[c] ? x : scale[c];
                v2[c] += x * x;
            }
        }
}

static void end_scale(int64_t dv, double *scale, double *v2)
{
    for (int64_t c = 0; c < dv; c++) {
        scale[c] = scale[c] > 0 ? scale[c] : 1;
        v2[c] /= scale[c] * scale[c];
    }
}

/* v (and k) of one head over the union of keys. c: room for a tile. */
static void fill_head(struct work *w, int64_t head, double *c, float *cf, float *weight)
{
    const mla_problem *p = w->p;
    struct mla_bound_cache *cache = &w->cache;
    int64_t L = p->kv_lora_rank, dn = p->qk_nope_dim, dv = p->v_dim, ld = L + p->qk_rope_dim;
    int64_t at = head - cache->head, n = w->num_keys;
    float *v = cache->v + at * n * dv, *k = cache->k ? cache->k + at * n * dn : NULL;
    double *scale = cache->scale + at * dv, *v2 = cache->v2 + at * dv;
    const mla_tensor *uv = &w->t->w_uv, *uk = &w->t->w_uk;
    size_t size = mla_dtype_bytes(p->q_dtype);
    for (int64_t l = 0; l < L; l++)
        mla_load_f32(p->q_dtype,
                     (const char *)uv->data +
                         size * (size_t)(head * mla_stride0(uv, L * dv) + l * mla_stride1(uv, dv)),
                     dv, weight + l * dv);
    for (int64_t d = 0; k && d < dn; d++)
        mla_load_f32(p->q_dtype,
                     (const char *)uk->data +
                         size * (size_t)(head * mla_stride0(uk, dn * L) + d * mla_stride1(uk, L)),
                     L, weight + L * dv + d * L);
    for (int64_t j = 0; j < n; j += BOUND_TILE) {
        int64_t m = n - j < BOUND_TILE ? n - j : BOUND_TILE;
        mla_cache_rows_f64(p, w->t, &w->request, w->seq_len_kv, w->key + j, 0, m, c, ld, NULL);
        for (int64_t i = 0; i < m * ld; i++)
            cf[i] = (float)c[i];
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)m, (int)dv, (int)L, 1, cf,
                    (int)ld, weight, (int)dv, 0, v + j * dv, (int)dv);
        if (k)
            cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)m, (int)dn, (int)L, 1, cf,
                        (int)ld, weight + L * dv, (int)L, 0, k + j * dn, (int)dn);
    }
    memset(scale, 0, (size_t)dv * sizeof *scale);
    memset(v2, 0, (size_t)dv * sizeof *v2);
    for (int64_t j = 0; j < n; j++)
        for (int64_t x = 0; x < dv; x++) {
            double y = fabs((double)v[j * dv + x]);
            if (y < INFINITY) {
                scale[x] = y > scale[x] ? y : scale[x];
                v2[x] += y * y;
            }
        }
    end_scale(dv, scale, v2);
    for (int64_t j = 0; j < n; j++)
        for (int64_t x = 0; x < dv; x++)
            v[j * dv + x] = (float)(v[j * dv + x] / scale[x]);
}

static void fill_cache(struct work *w)
{
    const mla_problem *p = w->p;
    int64_t L = p->kv_lora_rank, ld = L + p->qk_rope_dim;
    int64_t most = L * (p->v_dim + p->qk_nope_dim);
#pragma omp parallel num_threads(w->context->threads)
    {
        double *c = mla_alloc((size_t)(BOUND_TILE * ld), sizeof *c);
        float *cf = mla_alloc((size_t)(BOUND_TILE * ld + most), sizeof *cf);
#pragma omp for schedule(dynamic)
        for (int64_t h = w->cache.head; h < w->cache.head + w->cache.heads; h++) {
            if (c && cf)
                fill_head(w, h, c, cf, cf + BOUND_TILE * ld);
            else
#pragma omp atomic write
                w->out_of_memory = true;
        }
        mla_free(c);
        mla_free(cf);
    }
}

/* Column scales of v in absorbed and expanded form, over the union of keys. */
static bool scan_values(struct work *w)
{
    const mla_problem *p = w->p;
    struct mla_bound_cache *cache = &w->cache;
    bool expanded = p->form == MLA_FORM_EXPANDED;
    int64_t dv = mla_d_v(p), sets = expanded ? p->heads_kv : 1, ld = expanded ? dv : mla_d_qk(p);
    double *x = mla_alloc((size_t)(BOUND_TILE * ld), sizeof *x);
    if (!x)
        return false;
    memset(cache->scale, 0, (size_t)(sets * dv) * sizeof *cache->scale);
    memset(cache->v2, 0, (size_t)(sets * dv) * sizeof *cache->v2);
    const mla_tensor *v = &w->t->v;
    for (int64_t h = 0; h < sets; h++) {
        for (int64_t j = 0; j < w->num_keys; j += BOUND_TILE) {
            int64_t m = w->num_keys - j < BOUND_TILE ? w->num_keys - j : BOUND_TILE;
            if (!expanded)
                mla_cache_rows_f64(p, w->t, &w->request, w->seq_len_kv, w->key + j, 0, m, x, ld,
                                   NULL);
            for (int64_t i = 0; expanded && i < m; i++) {
                int64_t at =
                    (w->request.kv_start + w->key[j + i]) * mla_stride0(v, dv * p->heads_kv) +
                    h * mla_stride1(v, dv);
                mla_load_f64(p->kv_dtype,
                             (const char *)v->data + (size_t)at * mla_dtype_bytes(p->kv_dtype), dv,
                             x + i * ld);
            }
            column_scale(x, m, ld, dv, cache->scale + h * dv, cache->v2 + h * dv);
        }
        end_scale(dv, cache->scale + h * dv, cache->v2 + h * dv);
    }
    mla_free(x);
    return true;
}

/* Zeros in place of n keys that are not finite: rows that see one have no bound, and the others'
 * must not depend on it. */
static void drop_nonfinite(double *c, int64_t n, int64_t ld)
{
    for (int64_t i = 0; i < n; i++) {
        double sum = 0; /* 0 · x is 0 for finite x only */
        for (int64_t l = 0; l < ld; l++)
            sum += 0 * c[i * ld + l];
        if (sum != 0)
            memset(c + i * ld, 0, (size_t)ld * sizeof *c);
    }
}

/* v2[h][c] = sum over the group's keys of v_jc^2 = w_c · (sum_j c_j c_j^T) · w_c. */
static void gram_values(struct work *w, const struct group *g)
{
    const mla_problem *p = w->p;
    int64_t L = p->kv_lora_rank, dv = p->v_dim, ld = L + p->qk_rope_dim;
    int64_t part = ((g->n + PARTS - 1) / PARTS + BOUND_TILE - 1) / BOUND_TILE * BOUND_TILE;
    int64_t room = BOUND_TILE > 2 * dv ? BOUND_TILE : 2 * dv;
    memset(w->gram, 0, (size_t)(PARTS * L * L) * sizeof *w->gram);
#pragma omp parallel num_threads(w->context->threads)
    {
        double *c = mla_alloc((size_t)(room * ld), sizeof *c);
        int32_t *index = mla_alloc(BOUND_TILE, sizeof *index);
        if (!c || !index) {
#pragma omp atomic write
            w->out_of_memory = true;
        }
#pragma omp for schedule(dynamic)
        for (int64_t k = 0; k < PARTS; k++)
            for (int64_t j = k * part; c && index && j < g->n && j < (k + 1) * part;
                 j += BOUND_TILE) {
                int64_t m = g->n - j < BOUND_TILE ? g->n - j : BOUND_TILE;
                for (int64_t i = 0; i < m; i++)
                    index[i] = g->list ? g->list[j + i] : (int32_t)(j + i);
                mla_cache_rows_f64(p, w->t, &w->request, w->seq_len_kv, index, 0, m, c, ld, NULL);
                drop_nonfinite(c, m, ld);
                cblas_dsyrk(CblasRowMajor, CblasUpper, CblasTrans, (int)L, (int)m, 1, c, (int)ld, 1,
                            w->gram + k * L * L, (int)L);
            }
#pragma omp single
        for (int64_t k = 1; k < PARTS; k++)
            for (int64_t i = 0; i < L * L; i++)
                w->gram[i] += w->gram[k * L * L + i];
#pragma omp for schedule(dynamic)
        for (int64_t h = 0; h < p->heads_q; h++) {
            const mla_tensor *uv = &w->t->w_uv;
            double *v2 = w->v2 + h * dv, *gw = c + L * dv;
            memset(v2, 0, (size_t)dv * sizeof *v2);
            if (!c)
                continue;
            for (int64_t l = 0; l < L; l++)
                mla_load_f64(p->q_dtype,
                             (const char *)uv->data + mla_dtype_bytes(p->q_dtype) *
                                                          (size_t)(h * mla_stride0(uv, L * dv) +
                                                                   l * mla_stride1(uv, dv)),
                             dv, c + l * dv);
            cblas_dsymm(CblasRowMajor, CblasLeft, CblasUpper, (int)L, (int)dv, 1, w->gram, (int)L,
                        c, (int)dv, 0, gw, (int)dv);
            for (int64_t l = 0; l < L; l++)
                for (int64_t x = 0; x < dv; x++)
                    v2[x] += c[l * dv + x] * gw[l * dv + x];
            for (int64_t x = 0; x < dv; x++)
                v2[x] = v2[x] > 0 ? v2[x] : 0;
        }
        mla_free(c);
        mla_free(index);
    }
}

/* One group, some heads; rows that share a key which is not finite run one by one. */
static void run_block(struct work *w, const struct group *g, int64_t head, int64_t heads,
                      bool cached)
{
    struct mla_bound_task t = {.problem = w->p,
                               .tensors = w->t,
                               .request = &w->request,
                               .units = w->units,
                               .args = w->args,
                               .cache = cached ? &w->cache : NULL,
                               .gram_v2 = cached ? NULL : w->v2,
                               .seq_len_kv = w->seq_len_kv,
                               .row = w->row + g->first,
                               .out_row = w->out_row + g->first,
                               .rows = g->rows,
                               .head = head,
                               .heads = heads,
                               .list = g->list,
                               .n = g->n};
    int result = mla_bound_block(&t);
    for (int64_t i = 0; result == 2 && i < g->rows; i++) {
        t.row = w->row + g->first + i;
        t.out_row = w->out_row + g->first + i;
        t.rows = 1;
        t.n = causal_end(w, *t.row);
        if (mla_bound_block(&t) == 1)
            result = 1;
    }
    if (result == 1) {
#pragma omp atomic write
        w->out_of_memory = true;
    }
}

/* Heads [head, head + heads) of groups [first, first + count). How work is cut depends on sizes
 * alone, so that the bits do not depend on the number of threads. */
static void run_groups(struct work *w, int64_t first, int64_t count, int64_t head, int64_t heads,
                       bool cached)
{
    const mla_problem *p = w->p;
    int64_t most = 1, even = count * heads / 8;
    for (int64_t g = first; g < first + count; g++)
        most = w->group[g].n * w->group[g].rows > most ? w->group[g].n * w->group[g].rows : most;
    int64_t step = SCORES / most;
    step = step > even ? even : step;
    step = step < 1 ? 1 : step > 256 ? 256 : step > heads ? heads : step;
    if (p->form == MLA_FORM_EXPANDED) /* heads of a task share their kv head */
        while (p->heads_q / p->heads_kv % step)
            step--;
    int64_t per_group = (heads + step - 1) / step;
#pragma omp parallel for schedule(dynamic) num_threads(w->context->threads)
    for (int64_t i = 0; i < count * per_group; i++) {
        int64_t h = i % per_group * step;
        run_block(w, w->group + first + i / per_group, head + h,
                  heads - h < step ? heads - h : step, cached);
    }
}

/* Statistics from the v (and k) of every key of the union, as many heads at a time as CACHE
 * holds. */
static void run_cached(struct work *w)
{
    const mla_problem *p = w->p;
    struct mla_bound_cache *c = &w->cache;
    int64_t H = p->heads_q, dv = p->v_dim, dk = w->units->up ? p->qk_nope_dim : 0;
    int64_t bytes = (w->num_keys > 0 ? w->num_keys : 1) * (dv + dk) * (int64_t)sizeof(float);
    int64_t step = CACHE / bytes < 1 ? 1 : CACHE / bytes > H ? H : CACHE / bytes;
    float *memory = mla_alloc((size_t)(step * bytes), 1);
    w->out_of_memory = !memory;
    for (c->head = 0; c->head < H && !w->out_of_memory; c->head += step) {
        c->heads = H - c->head < step ? H - c->head : step;
        c->v = memory;
        c->k = dk ? memory + c->heads * w->num_keys * dv : NULL;
        fill_cache(w);
        if (!w->out_of_memory)
            run_groups(w, 0, w->num_groups, c->head, c->heads, true);
    }
    mla_free(memory);
}

static void run_gram(struct work *w)
{
    int64_t L = w->p->kv_lora_rank;
    w->gram = mla_alloc((size_t)(PARTS * L * L), sizeof *w->gram);
    w->v2 = mla_alloc((size_t)(w->p->heads_q * w->p->v_dim), sizeof *w->v2);
    w->out_of_memory = !w->gram || !w->v2;
    for (int64_t g = 0; g < w->num_groups && !w->out_of_memory; g++) {
        gram_values(w, w->group + g);
        if (!w->out_of_memory)
            run_groups(w, g, 1, 0, w->p->heads_q, false);
    }
    mla_free(w->gram);
    mla_free(w->v2);
}

static void run_batch(struct work *w)
{
    const mla_problem *p = w->p;
    if (!w->units || p->form != MLA_FORM_LATENT) {
        w->cache.head = 0;
        w->out_of_memory = w->units && !scan_values(w);
        if (!w->out_of_memory)
            run_groups(w, 0, w->num_groups, 0, p->heads_q, true);
        return;
    }
    double L = (double)p->kv_lora_rank, values = L * (double)(p->heads_q * p->v_dim), pairs = 0;
    double gram = 0;
    for (int64_t g = 0; g < w->num_groups; g++) {
        pairs += (double)(w->group[g].n * w->group[g].rows * p->heads_q);
        gram += (double)w->group[g].n * L * L + values * L;
    }
    /* products: to up-project all keys, against the reference's own (fp64 counts twice) */
    double all = (double)w->num_keys * values;
    bool cached = !w->units->mqa || all < 2e9 || all < 8 * pairs * L || all < 3 * gram;
    if (w->units->mqa && mla_bound_path)
        cached = mla_bound_path == 1;
    if (cached)
        run_cached(w);
    else
        run_gram(w);
}

static mla_status run_request(struct work *w)
{
    const mla_problem *p = w->p;
    int64_t n = w->seq_len_kv > 0 ? w->seq_len_kv : 1, sets = p->heads_q;
    int64_t width = !has_lists(p) ? 0 : p->has_mask ? n : p->topk;
    int64_t listed = width > LISTED                 ? width
                     : width * w->num_rows < LISTED ? width * w->num_rows
                                                    : LISTED;
    w->group = mla_alloc((size_t)w->num_rows, sizeof *w->group);
    w->lists = mla_alloc((size_t)(listed > 0 ? listed : 1), sizeof *w->lists);
    w->key = mla_alloc((size_t)n, sizeof *w->key);
    w->slot = mla_alloc((size_t)n, sizeof *w->slot);
    w->cache = (struct mla_bound_cache){.key = w->key, .slot = w->slot};
    w->cache.scale = mla_alloc((size_t)(sets * mla_d_v(p)), sizeof *w->cache.scale);
    w->cache.v2 = mla_alloc((size_t)(sets * mla_d_v(p)), sizeof *w->cache.v2);
    w->out_of_memory =
        !w->group || !w->lists || !w->key || !w->slot || !w->cache.scale || !w->cache.v2;
    for (int64_t row = 0; row < w->num_rows && !w->out_of_memory;) {
        row = make_groups(w, row);
        if (w->units)
            make_union(w);
        w->cache.n = w->num_keys;
        run_batch(w);
    }
    mla_free(w->group);
    mla_free(w->lists);
    mla_free(w->key);
    mla_free(w->slot);
    mla_free(w->cache.scale);
    mla_free(w->cache.v2);
    return w->out_of_memory ? mla_fail(MLA_ERR_MEMORY,
                                       "mla_reference: out of memory at request "
                                       "%lld",
                                       (long long)w->request.index)
                            : MLA_OK;
}

static struct mla_bound_units units_of(const mla_problem *p, const mla_rounding *r)
{
    struct mla_bound_units u = {.r = *r,
                                .ua = r->accumulate + 0x1p-52, /* the reference's own errors */
                                .exp_unit = r->accumulate > 0x1p-40 ? 0x1p-22 : 0x1p-50,
                                .latent = p->form == MLA_FORM_LATENT,
                                .dk = mla_d_qk(p),
                                .dr = p->qk_rope_dim,
                                .dv = mla_d_v(p)};
    u.mqa = r->route == MLA_ROUTE_SPARSE_MQA || r->route == MLA_ROUTE_DENSE_MQA ||
            (r->route == MLA_ROUTE_AUTO && p->form != MLA_FORM_EXPANDED);
    if (u.latent) {
        u.L = p->kv_lora_rank;
        u.dn = p->qk_nope_dim;
        u.dk = u.L + u.dr;
        u.up = !u.mqa && r->projected > 0;
    }
    return u;
}

static mla_status check_arguments(const mla_context *context, const mla_problem *p,
                                  const mla_tensors *t, const mla_reference_args *args)
{
    if (!context || !p || !t || !args)
        return mla_fail(MLA_ERR_ARGUMENT, "mla_reference: %s: got NULL, want a pointer",
                        !context ? "context"
                        : !p     ? "problem"
                        : !t     ? "tensors"
                                 : "args");
    if (context->backend != MLA_BACKEND_CPU)
        return mla_fail(MLA_ERR_ARGUMENT, "mla_reference: context: got backend %s, want cpu",
                        mla_backend_name(context->backend));
    mla_status status = mla_problem_check(p);
    if (status != MLA_OK)
        return status;
    int64_t total = mla_total_q(p), before = -1;
    if (args->rows && args->num_rows < 0)
        return mla_fail(MLA_ERR_ARGUMENT, "mla_reference: num_rows: got %lld, want >= 0",
                        (long long)args->num_rows);
    for (int64_t i = 0; args->rows && i < args->num_rows; i++) {
        int64_t row = args->rows[i];
        if (row <= before || row >= total)
            return mla_fail(MLA_ERR_ARGUMENT,
                            "mla_reference: rows[%lld]: got %lld, want rising rows below %lld",
                            (long long)i, (long long)row, (long long)total);
        before = row;
    }
    if (!args->rounding && (args->hard || args->statistical || args->sigma || args->lse_hard ||
                            args->max_hard || args->lse_sigma || args->max_sigma))
        return mla_fail(MLA_ERR_ARGUMENT,
                        "mla_reference: rounding: got NULL, want roundings for bounds");
    /* Outputs of the tensors are not used: judge the layout without them. */
    mla_problem shape = *p;
    mla_tensors in = *t;
    float aligned;
    shape.wants_lse = shape.wants_max_logits = false;
    in.out = (mla_tensor){.data = &aligned};
    in.lse = in.max_logits = (mla_tensor){0};
    shape.out_dtype = MLA_F32;
    return mla_tensors_layout(&shape, &in, p->topk > 0);
}

mla_status mla_reference(const mla_context *context, const mla_problem *p, const mla_tensors *t,
                         const mla_reference_args *args)
{
    mla_status status = check_arguments(context, p, t, args);
    if (status != MLA_OK)
        return status;
    int64_t total = args->rows ? args->num_rows : mla_total_q(p), at = 0, kv_start = 0;
    int64_t *row = mla_alloc((size_t)(total > 0 ? total : 1), sizeof *row);
    if (!row)
        return mla_fail(MLA_ERR_MEMORY, "mla_reference: out of memory for %lld rows",
                        (long long)total);
    struct mla_blas_guard guard;
    mla_blas_enter(&guard, context->threads);
    for (int64_t b = 0; b < p->batch && status == MLA_OK; b++) {
        struct mla_bound_units units;
        struct work w = {
            .context = context, .p = p, .t = t, .args = args, .row = row, .out_row = at};
        w.request = (struct mla_request){.index = b,
                                         .q_start = p->cu_seqlens_q[b],
                                         .query_len = p->cu_seqlens_q[b + 1] - p->cu_seqlens_q[b],
                                         .kv_start = kv_start,
                                         .seq_len_kv = p->seq_lens_kv[b]};
        kv_start += p->seq_lens_kv[b];
        w.seq_len_kv = mla_run_seq_len(&w.request, t);
        if (args->rounding) {
            units = units_of(p, args->rounding + b);
            w.units = &units;
        }
        for (; at < total; at++) {
            int64_t i = (args->rows ? args->rows[at] : at) - w.request.q_start;
            if (i >= w.request.query_len)
                break;
            row[w.num_rows++] = i;
        }
        if (w.num_rows > 0)
            status = run_request(&w);
    }
    mla_blas_leave(&guard);
    mla_free(row);
    return status;
}

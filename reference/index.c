/* SPDX-License-Identifier: Apache-2.0 */
/* The lightning indexer on the CPU: scores (index_score.c) streamed into exact top-k (topk.c).
 *
 *     task (block of query rows, part of the keys):
 *         for each request in the block
 *             decode its query rows
 *             for each block of keys that any of the rows sees
 *                 decode the keys into panels
 *                 for each row: scores of the panels -> logits row, top-k state
 *     then, where keys were parted, for each row: merge the parts' states
 *
 * Neither scores nor lists depend on how rows and keys are blocked, so layout() may fit the blocks
 * to any workspace limit and thread count. */
#include <math.h>
#include <omp.h>
#include <string.h>

#include "common/format.h"
#include "common/status.h"
#include "index_score.h"
#include "reference.h"
#include "topk.h"

/* Where everything lies in the workspace, and how the work is cut. */
struct layout {
    int64_t rows; /* query rows of a block */
    int64_t keys; /* keys decoded together, a multiple of MLA_PANEL */
    int64_t k;    /* entries of a list that can be filled; 0 = no lists */
    int64_t blocks, parts, threads, states;
    int64_t tiled_heads; /* heads rounded up to whole tiles */
    size_t item_bytes;   /* items of one state */
    /* offsets from a thread's own part, and its size */
    size_t panel, k_scale, seen, score, thread_bytes;
    /* offsets from the start */
    size_t thread_base, state_base, item_base, total;
};

union state {
    struct mla_select_f32 f32;
    struct mla_select_f64 f64;
};

/* One request of a call. */
struct keys {
    int64_t request, q_start, query_len, seq_len, first; /* first: row of flat k */
};

static size_t round_up(size_t bytes)
{
    return (bytes + 63) & ~(size_t)63;
}

/* Bytes of the elements of one row, and of its scale in a cache. */
static int64_t data_bytes(mla_index_format format, int64_t dim)
{
    return format == MLA_INDEX_F32    ? dim * 4
           : format == MLA_INDEX_BF16 ? dim * 2
           : format == MLA_INDEX_FP8  ? dim
                                      : dim / 2;
}

static struct keys request_keys(const mla_index_args *a, int64_t request, int64_t first)
{
    if (!a->cu_seqlens_q)
        return (struct keys){0, 0, a->num_queries, a->num_keys, 0};
    int64_t start = a->cu_seqlens_q[request];
    return (struct keys){request, start, a->cu_seqlens_q[request + 1] - start,
                         a->seq_lens_kv[request], first};
}

/* Keys [low, high) of its request that row t sees, page ids aside. */
static void row_range(const mla_index_args *a, const struct keys *r, int64_t t, int64_t *low,
                      int64_t *high)
{
    int64_t start = a->key_start ? a->key_start[t] : 0, end = r->seq_len;
    if (a->causal && r->seq_len - r->query_len + (t - r->q_start) + 1 < end)
        end = r->seq_len - r->query_len + (t - r->q_start) + 1;
    if (a->key_end && a->key_end[t] < end)
        end = a->key_end[t];
    *low = start > 0 ? start : 0;
    *high = end > *low ? end : *low;
}

/* ------------------------------------------------------------------ layout */

static void place(const mla_index_args *a, struct layout *l)
{
    bool f64 = a->precision == MLA_PRECISION_FP64;
    l->blocks = (a->num_queries + l->rows - 1) / l->rows;
    /* Few rows (decode) leave threads without a block: then the keys are parted. */
    l->parts = l->threads == 1 || l->blocks >= 4 * l->threads || !l->blocks
                   ? 1
                   : (2 * l->threads + l->blocks - 1) / l->blocks;
    l->states = !l->k ? 0 : l->rows * (l->parts > 1 ? l->blocks * l->parts : l->threads);
    l->panel = round_up((size_t)(l->rows * l->tiled_heads * a->dim) * sizeof(float));
    l->k_scale = l->panel + round_up((size_t)(l->keys * a->dim) * sizeof(float));
    l->seen = l->k_scale + round_up((size_t)l->keys * sizeof(float));
    l->score = l->seen + round_up((size_t)l->keys);
    l->thread_bytes = l->score + round_up((size_t)l->keys * (f64 ? sizeof(double) : sizeof(float)));
    l->item_bytes = round_up((size_t)(l->k ? mla_select_capacity(l->k) : 0) *
                             (f64 ? sizeof(mla_item_f64) : sizeof(mla_item_f32)));
    l->thread_base = 256 * sizeof(float); /* the e4m3 table lies in front */
    l->state_base = l->thread_base + (size_t)l->threads * l->thread_bytes;
    l->item_base = l->state_base + round_up((size_t)l->states * sizeof(union state));
    l->total = l->item_base + (size_t)l->states * l->item_bytes;
}

/* The largest blocks that fit: threads matter more than block sizes. */
static mla_status layout(const char *function, const mla_index_args *a, int threads,
                         int64_t longest, struct layout *l)
{
    static const int64_t rows[] = {8, 4, 2, 1}, keys[] = {240, 96, 24};
    size_t limit = a->workspace_limit_bytes;
    *l = (struct layout){.k = a->topk < longest ? a->topk : longest};
    if (a->topk && !l->k)
        l->k = 1;
    l->tiled_heads = (a->heads + MLA_TILE - 1) / MLA_TILE * MLA_TILE;
    for (l->threads = threads;; l->threads /= 2) {
        for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
            for (size_t j = 0; j < sizeof keys / sizeof *keys; j++) {
                l->rows = rows[i];
                l->keys = keys[j];
                place(a, l);
                if (!limit || l->total <= limit)
                    return MLA_OK;
            }
        }
        if (l->threads <= 1)
            break;
    }
    return mla_fail(MLA_ERR_ARGUMENT, "%s: workspace_limit_bytes: got %zu, want 0 or at least %zu",
                    function, limit, l->total);
}

mla_status mla_index_workspace_cpu(const char *function, const mla_context *context,
                                   const mla_index_args *args, int64_t longest, size_t *bytes)
{
    struct layout l = {0};
    mla_status status = layout(function, args, context->threads, longest, &l);
    if (!status)
        *bytes = l.total;
    return status;
}

/* --------------------------------------------------------------------- run */

/* What one thread works with. */
struct work {
    const mla_index_args *args;
    const struct layout *layout;
    char *workspace;
    const float *e4m3;
    float *q, *panel, *k_scale;
    uint8_t *seen;
    void *score; /* float or double, one for each key of a block */
};

static struct work thread_work(const mla_index_args *a, const struct layout *l, char *workspace)
{
    char *own = workspace + l->thread_base + (size_t)omp_get_thread_num() * l->thread_bytes;
    return (struct work){a,
                         l,
                         workspace,
                         (const float *)workspace,
                         (float *)own,
                         (float *)(own + l->panel),
                         (float *)(own + l->k_scale),
                         (uint8_t *)(own + l->seen),
                         own + l->score};
}

static union state *state_at(const struct layout *l, char *workspace, int64_t i)
{
    return (union state *)(workspace + l->state_base) + i;
}

static void decode_query(const struct work *w, int64_t t, float *q)
{
    const mla_index_args *a = w->args;
    int64_t bytes = data_bytes(a->q_format, a->dim);
    int64_t element = a->q_format == MLA_INDEX_F32 ? 4 : a->q_format == MLA_INDEX_BF16 ? 2 : 1;
    int64_t head = a->q.stride[1] ? a->q.stride[1] * element : bytes;
    int64_t row = a->q.stride[0] ? a->q.stride[0] * element : a->heads * head;
    int64_t scale_head = mla_stride1(&a->q_scale, 4);
    int64_t scale_row = mla_stride0(&a->q_scale, a->heads * scale_head);
    for (int64_t h = 0; h < w->layout->tiled_heads; h++) {
        float *dst = q + h / MLA_TILE * MLA_TILE * a->dim + h % MLA_TILE;
        if (h < a->heads) {
            const char *scale = a->q_scale.data;
            mla_index_decode(a->q_format, a->dim, (const char *)a->q.data + t * row + h * head,
                             scale ? scale + t * scale_row + h * scale_head : NULL, w->e4m3, dst,
                             MLA_TILE);
        } else {
            for (int64_t d = 0; d < a->dim; d++)
                dst[d * MLA_TILE] = 0;
        }
    }
}

/* Decodes keys [first, first + n) of the request; true if the row may see all of them. */
static bool decode_keys(const struct work *w, const struct keys *r, int64_t first, int64_t n)
{
    const mla_index_args *a = w->args;
    int64_t bytes = data_bytes(a->k_format, a->dim), padded = n + MLA_PANEL - 1;
    int64_t element = a->k_format == MLA_INDEX_F32 ? 4 : a->k_format == MLA_INDEX_BF16 ? 2 : 1;
    int64_t row = a->k.stride[0] ? a->k.stride[0] * element : bytes;
    int64_t page_bytes = mla_stride0(&a->k_cache, a->page_size * (bytes + 4));
    bool all = true;
    for (int64_t i = 0; i < padded - padded % MLA_PANEL; i++) {
        float *dst = w->panel + i / MLA_PANEL * MLA_PANEL * a->dim + i % MLA_PANEL;
        const char *data = NULL, *scale = NULL;
        if (i < n && a->page_size) {
            const int32_t *table = a->page_table.data;
            int64_t j = first + i, offset = j % a->page_size;
            int64_t page =
                table[r->request * mla_stride0(&a->page_table, a->max_pages) + j / a->page_size];
            if (page >= 0 && page < a->num_pages) {
                data = (const char *)a->k_cache.data + page * page_bytes + offset * bytes;
                scale = data - offset * bytes + a->page_size * bytes + offset * 4;
            }
        } else if (i < n) {
            data = (const char *)a->k.data + (r->first + first + i) * row;
            scale = a->k_scale ? (const char *)a->k_scale + (r->first + first + i) * 4 : NULL;
        }
        if (i < n)
            all &= w->seen[i] = data != NULL;
        w->k_scale[i] = 1;
        if (!data) {
            for (int64_t d = 0; d < a->dim; d++)
                dst[d * MLA_PANEL] = 0;
            continue;
        }
        mla_index_decode(a->k_format, a->dim, data, scale, w->e4m3, dst, MLA_PANEL);
        if (scale && a->k_format != MLA_INDEX_FP4)
            memcpy(w->k_scale + i, scale, sizeof(float));
    }
    return all;
}

/* Scores of keys [low, high) of the decoded block, which begins at key `block`. */
static void score_keys(const struct work *w, const float *q, int64_t t, int64_t block, int64_t low,
                       int64_t high)
{
    const mla_index_args *a = w->args;
    const float *weights = (const float *)a->weights.data + t * mla_stride0(&a->weights, a->heads);
    for (int64_t i = (low - block) / MLA_PANEL * MLA_PANEL; i < high - block; i += MLA_PANEL) {
        const float *panel = w->panel + i * a->dim;
        if (a->precision == MLA_PRECISION_FP64)
            mla_index_score_f64(q, weights, a->heads, a->dim, panel, w->k_scale + i,
                                (double *)w->score + i);
        else
            mla_index_score_f32(q, weights, a->heads, a->dim, panel, w->k_scale + i,
                                (float *)w->score + i);
    }
}

/* Hands scores [i, i + n) of the block, all of seen keys, to the logits row and the state. */
static void deliver(const struct work *w, union state *state, int64_t t, int64_t block, int64_t i,
                    int64_t n, int64_t base)
{
    const mla_index_args *a = w->args;
    bool f64 = a->precision == MLA_PRECISION_FP64;
    size_t real = f64 ? sizeof(double) : sizeof(float);
    const char *score = (const char *)w->score + (size_t)i * real;
    if (a->logits_columns) {
        int64_t column = t * mla_stride0(&a->logits, a->logits_columns) + block + i - base;
        memcpy((char *)a->logits.data + (size_t)column * real, score, (size_t)n * real);
    }
    if (state && f64)
        mla_select_push_f64(&state->f64, (const double *)score, block + i, n);
    else if (state)
        mla_select_push_f32(&state->f32, (const float *)score, block + i, n);
}

/* Rows [t0, t1), all of request r; their states from state on (NULL without lists). */
static void run_rows(const struct work *w, const struct keys *r, int64_t t0, int64_t t1,
                     int64_t part, union state *state)
{
    const mla_index_args *a = w->args;
    const struct layout *l = w->layout;
    int64_t q_size = l->tiled_heads * a->dim, from = INT64_MAX, to = 0, low, high;
    for (int64_t t = t0; t < t1; t++) {
        row_range(a, r, t, &low, &high);
        if (low < high) {
            from = low < from ? low : from;
            to = high > to ? high : to;
        }
        decode_query(w, t, w->q + (t - t0) * q_size);
    }
    if (from >= to)
        return;
    int64_t share = (to - from + l->parts - 1) / l->parts;
    from += part * share;
    to = from + share < to ? from + share : to;
    for (int64_t block = from; block < to; block += l->keys) {
        int64_t n = to - block < l->keys ? to - block : l->keys;
        bool all = decode_keys(w, r, block, n);
        for (int64_t t = t0; t < t1; t++) {
            row_range(a, r, t, &low, &high);
            int64_t base = a->relative ? low : 0;
            low = low > block ? low : block;
            high = high < block + n ? high : block + n;
            if (low >= high)
                continue;
            score_keys(w, w->q + (t - t0) * q_size, t, block, low, high);
            /* Runs of seen keys; one run unless the page table has holes. */
            for (int64_t i = low - block, end; i < high - block; i = end + 1) {
                end = all ? high - block : i;
                while (end < high - block && w->seen[end])
                    end++;
                if (end > i)
                    deliver(w, state ? state + (t - t0) : NULL, t, block, i, end - i, base);
            }
        }
    }
}

static void finish_row(const mla_index_args *a, int64_t t, union state *state)
{
    bool f64 = a->precision == MLA_PRECISION_FP64;
    size_t real = f64 ? sizeof(double) : sizeof(float);
    int64_t row = t * mla_stride0(&a->scores, a->topk);
    struct mla_select_out out = {
        .indices = (int32_t *)a->indices.data + t * mla_stride0(&a->indices, a->topk),
        .scores = a->scores.data ? (char *)a->scores.data + (size_t)row * real : NULL,
        .len = a->topk_lens ? a->topk_lens + t : NULL,
        .k = a->topk,
        .base = a->relative && a->key_start[t] > 0 ? a->key_start[t] : 0,
    };
    if (f64)
        mla_select_end_f64(&state->f64, a->order, &out);
    else
        mla_select_end_f32(&state->f32, a->order, &out);
}

/* Rows of one block against one part of their keys. */
static void run_task(const struct work *w, int64_t task)
{
    const mla_index_args *a = w->args;
    const struct layout *l = w->layout;
    int64_t t0 = task / l->parts * l->rows, first = 0;
    int64_t t1 = t0 + l->rows < a->num_queries ? t0 + l->rows : a->num_queries;
    int64_t slot = (l->parts > 1 ? task : omp_get_thread_num()) * l->rows;
    union state *state = l->k ? state_at(l, w->workspace, slot) : NULL;
    for (int64_t i = 0; state && i < t1 - t0; i++) {
        void *items = w->workspace + l->item_base + (size_t)(slot + i) * l->item_bytes;
        if (a->precision == MLA_PRECISION_FP64)
            mla_select_begin_f64(&state[i].f64, l->k, items);
        else
            mla_select_begin_f32(&state[i].f32, l->k, items);
    }
    int64_t batch = a->cu_seqlens_q ? a->batch : 1;
    for (int64_t b = 0; b < batch; b++) {
        struct keys r = request_keys(a, b, first);
        int64_t low = r.q_start > t0 ? r.q_start : t0, end = r.q_start + r.query_len;
        int64_t high = end < t1 ? end : t1;
        if (r.q_start >= t1)
            break;
        if (low < high)
            run_rows(w, &r, low, high, task % l->parts, state ? state + (low - t0) : NULL);
        first += r.seq_len;
    }
    for (int64_t i = 0; state && l->parts == 1 && i < t1 - t0; i++)
        finish_row(a, t0 + i, state + i);
}

static void clear_logits(const mla_index_args *a, int64_t t)
{
    int64_t row = t * mla_stride0(&a->logits, a->logits_columns);
    for (int64_t c = 0; c < a->logits_columns; c++) {
        if (a->precision == MLA_PRECISION_FP64)
            ((double *)a->logits.data)[row + c] = -INFINITY;
        else
            ((float *)a->logits.data)[row + c] = -INFINITY;
    }
}

/* Joins the states of row t's parts into the first part's. */
static void merge_row(const mla_index_args *a, const struct layout *l, char *workspace, int64_t t)
{
    int64_t slot = t / l->rows * l->parts * l->rows + t % l->rows;
    union state *state = state_at(l, workspace, slot);
    for (int64_t part = 1; part < l->parts; part++) {
        union state *other = state + part * l->rows;
        if (a->precision == MLA_PRECISION_FP64)
            mla_select_merge_f64(&state->f64, &other->f64);
        else
            mla_select_merge_f32(&state->f32, &other->f32);
    }
    finish_row(a, t, state);
}

mla_status mla_index_run_cpu(const mla_context *context, const mla_index_args *a, int64_t longest,
                             void *workspace, void *stream)
{
    (void)stream;
    struct layout l = {0};
    mla_status status = layout("mla_index_run", a, context->threads, longest, &l);
    if (status)
        return status;
    for (int i = 0; i < 256; i++)
        ((float *)workspace)[i] = mla_e4m3_to_f32((uint8_t)i);
#pragma omp parallel num_threads((int)l.threads)
    {
        struct work w = thread_work(a, &l, workspace);
        if (a->logits_columns) {
#pragma omp for schedule(static)
            for (int64_t t = 0; t < a->num_queries; t++)
                clear_logits(a, t);
        }
        /* Last blocks first: under causality they are the longest. */
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < l.blocks * l.parts; task++)
            run_task(&w, l.blocks * l.parts - 1 - task);
        if (l.k && l.parts > 1) {
#pragma omp for schedule(dynamic, 4)
            for (int64_t t = 0; t < a->num_queries; t++)
                merge_row(a, &l, workspace, t);
        }
    }
    return MLA_OK;
}

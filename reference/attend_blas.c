/* SPDX-License-Identifier: Apache-2.0 */
/* Production-size attention on the CPU: OpenBLAS for the products, OpenMP over tasks, in float or
 * double. Inputs are widened exactly and nothing is rounded to 16 bits on the way.
 *
 * MHA routes (attend_tmpl.c, dense_pass): one kv head at a time, keys and values in chunks, widened
 * or up-projected once for all query rows of a pass. A task takes a block of score rows against a
 * chunk: Q·K^T, then a softmax in two sweeps over the rows (maximum, then exp and sum), then P·V.
 * The dense MQA route is the same with one kv head whose values are the first columns of its keys.
 * Sparse MQA: a task takes the heads of one query and gathers the keys of its list, tile by tile.
 * Running maxima, sums and outputs join the chunks, so no [queries × keys] matrix exists.
 *
 * Lists and masks become one bit a key, built once a pass for all heads. Keys with NaN or inf among
 * their values are kept at 0 in the buffers (0·NaN would reach rows that do not see them) and
 * added where they are seen.
 *
 * Sizes, task shapes and the order of all sums depend on the shape of the job alone; threads only
 * share the tasks. So results are the same bits for any thread count.
 *
 * Workspace, in elements of 4 or 8 bytes (prepare() is the exact sum): for a pass of P query rows,
 * s slots (kv heads together), r query heads a kv head and chunks of C keys
 *   queries and outputs   s·P·r·(d_k + splits·d_v)
 *   keys, values          s·C·(d_k + d_v)   (MQA: C·d_k), latent MHA also C·(L + dr), s·(dn +
 * dv)·L
 *   bits                  P·seq_len_kv / 32 words, with lists or a mask
 *   each thread           block·C scores; sparse: C·d_k keys; latent MQA: a head's w_uk or w_uv
 * P falls until that fits the limit. Only the bits grow with seq_len_kv, and only linearly. */
#include "reference/attend.h"
#include "reference/blas.h"
#include "reference/panel.h"

#include "common/format.h"
#include "common/status.h"

#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <string.h>

enum {
    STAGED_ROWS = 64, /* query rows of one head that meet w_uk or w_uv together */
    LOAD_KEYS = 128,  /* keys that one task loads */
    BLOCK = 128,      /* score rows of a task: what OpenBLAS packs stays in L2 */
    CHUNK_MHA = 1024,
    CHUNK_MQA = 512,
    TILE_MHA = 256, /* keys that a panel meets at once: K and V of a tile stay in L2 */
    TILE_MQA = 64,
    CHUNK_PANELS = 2048,
    PASS_ROWS = 4096, /* score rows of a kv head in one pass */
    SPLIT_KEYS = 256  /* least keys of a split */
};

enum { KEY_HIDDEN = 1, KEY_NOT_FINITE = 2 }; /* flags of a key in a chunk */

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static int64_t most(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

/* The next entries of a list that name keys below end, at most `room`; *e moves past them. */
static int64_t take_entries(const int32_t *list, int64_t *e, int64_t length, int64_t end,
                            int64_t room, int32_t *index)
{
    int64_t keys = 0;
    for (; *e < length && keys < room; ++*e)
        if (list[*e] >= 0 && list[*e] < end)
            index[keys++] = list[*e];
    return keys;
}

/* Starts fetching the cache rows that the next entries of a list name: they lie anywhere, and a row
 * is too short for the hardware to notice. Only a hint: what is skipped here is loaded all the
 * same. */
static void prefetch_entries(const mla_problem *p, const mla_tensors *t,
                             const struct mla_request *r, const int32_t *list, int64_t count,
                             int64_t end)
{
    int64_t L = p->kv_lora_rank, dr = p->qk_rope_dim;
    bool packed = mla_cache_is_packed(p->cache_format);
    int64_t unit = packed ? 1 : (int64_t)mla_dtype_bytes(mla_cache_dtype(p->cache_format));
    int64_t bytes = (int64_t)mla_cache_row_bytes(p->cache_format, L, dr);
    int64_t width = packed ? bytes : L + dr;
    for (int64_t e = 0; e < count; e++) {
        int64_t j = list[e], at;
        if (j < 0 || j >= end)
            continue;
        const char *base = t->kv_cache.data;
        if (p->page_size == 0) {
            base = t->kv_c.data;
            at = mla_offset(&t->kv_c, 1, L, r->kv_start + j, 0) * unit;
        } else {
            const int32_t *pages = t->page_table.data;
            int64_t id =
                pages[mla_offset(&t->page_table, 1, p->max_pages, r->index, 0) + j / p->page_size];
            if (id < 0 || id >= p->num_pages)
                continue;
            at = mla_offset(&t->kv_cache, p->page_size, width, id, j % p->page_size) * unit;
        }
        for (int64_t b = 0; b < bytes; b += 64)
            __builtin_prefetch(base + at + b, 0, 2);
    }
}

#define HAS_PANELS 1
#define REAL float
#define NAME(x) x##_f32
#define GEMM cblas_sgemm
#define LOAD mla_load_f32
#define STORE mla_store_f32
#define ROWS mla_cache_rows_f32
#define EXP expf
#include "attend_tmpl.c"
#undef REAL
#undef NAME
#undef GEMM
#undef LOAD
#undef STORE
#undef ROWS
#undef EXP
#undef HAS_PANELS

#define REAL double
#define NAME(x) x##_f64
#define GEMM cblas_dgemm
#define LOAD mla_load_f64
#define STORE mla_store_f64
#define ROWS mla_cache_rows_f64
#define EXP exp
#include "attend_tmpl.c"

/* Reserves bytes at a multiple of 256 and returns their offset. */
static size_t reserve(size_t *total, int64_t count, size_t bytes)
{
    size_t at = *total;
    *total = (at + (size_t)count * bytes + 255) / 256 * 256;
    return at;
}

/* Offsets for the sizes chosen so far. The workspace starts with 256 unused bytes, so that an
 * offset of 0 means "none". */
static void lay_out(struct mla_attend *a, const mla_problem *p, size_t elem)
{
    bool latent = p->form == MLA_FORM_LATENT;
    int64_t L = p->kv_lora_rank, dn = p->qk_nope_dim, dv = p->v_dim, dr = p->qk_rope_dim;
    a->rows = a->pass * a->row_step;
    if (a->panel)
        a->rows = (a->rows + MLA_PANEL - 1) / MLA_PANEL * MLA_PANEL;
    int64_t rows = a->slots * a->rows, states = rows * a->splits;
    a->total = 256;
    a->latent = a->key = a->value = a->weight = a->bits_at = a->flags = 0;
    a->query = reserve(&a->total, rows * a->d_k, elem);
    a->out = reserve(&a->total, states * a->d_v, elem);
    a->state = reserve(&a->total, states * 2, elem);
    if (!a->sparse) {
        a->key = reserve(&a->total, a->slots * a->chunk * a->d_k, elem);
        a->flags = reserve(&a->total, (a->slots + 1) * a->chunk, 1);
        if (!a->mqa)
            a->value = reserve(&a->total, a->slots * a->chunk * a->d_v, elem);
        if (!a->mqa && latent) {
            a->latent = reserve(&a->total, a->chunk * (L + dr), elem);
            a->weight = reserve(&a->total, a->slots * (dn + dv) * L, elem);
        }
        if (a->bits)
            a->bits_at = reserve(&a->total, a->pass * a->words, sizeof(uint32_t));
    }
    size_t slab = 0;
    int64_t mat = a->mqa && latent ? most(dn, dv) * (L + STAGED_ROWS) : 0;
    if (a->sparse)
        mat = most(mat, a->chunk * a->d_k);
    int64_t scores = a->block * a->ld_score;
    if (a->panel)
        scores = MLA_PANEL * (a->tile + most(a->d_k, a->d_v));
    a->slab_score = reserve(&slab, scores, elem);
    a->slab_words = reserve(&slab, a->chunk / 32, sizeof(uint32_t));
    a->slab_row = reserve(&slab, most((a->d_row + a->d_v) * (int64_t)elem, a->chunk * 5), 1);
    a->slab_mat = reserve(&slab, mat, elem);
    a->slab_bytes = slab;
    a->slab = reserve(&a->total, a->threads, slab);
}

static mla_status prepare(struct mla_job *job, const struct mla_panel_ops *panel)
{
    const mla_problem *p = job->problem;
    struct mla_attend *a = mla_alloc(1, sizeof *a);
    int64_t *row_start = NULL;
    if (!a)
        return mla_fail(MLA_ERR_MEMORY, "mla_plan_create: out of memory for a CPU plan");
    bool expanded = p->form == MLA_FORM_EXPANDED;
    int64_t longest_q = 1, longest_kv = 1, total_q = 0;
    for (int64_t k = 0; k < job->num_requests; k++) {
        longest_q = most(longest_q, job->requests[k].query_len);
        longest_kv = most(longest_kv, job->requests[k].seq_len_kv);
        total_q += job->requests[k].query_len;
    }
    size_t elem = job->precision == MLA_PRECISION_FP64 ? sizeof(double) : sizeof(float);
    int64_t grow = (int64_t)(sizeof(double) / elem); /* fp64 takes half the keys at a time */
    a->sparse = job->route == MLA_ROUTE_SPARSE_MQA;
    a->mqa = a->sparse || job->route == MLA_ROUTE_DENSE_MQA;
    a->bits = !a->sparse && (p->has_mask || (p->topk > 0 && !job->ignore_lists));
    a->threads = job->context->threads;
    a->panel = panel;
    a->d_k = a->mqa ? p->kv_lora_rank + p->qk_rope_dim : p->qk_nope_dim + p->qk_rope_dim;
    a->d_v = a->mqa ? p->kv_lora_rank : p->v_dim;
    a->d_row = most(a->d_k, expanded ? 0 : p->kv_lora_rank + p->qk_rope_dim);
    a->kv_heads = a->mqa ? 1 : expanded ? p->heads_kv : p->heads_q;
    a->ratio = p->heads_q / a->kv_heads;
    a->row_step = a->ratio;
    if (a->sparse && panel)
        a->row_step = (a->ratio + MLA_PANEL - 1) / MLA_PANEL * MLA_PANEL;
    a->words = (longest_kv + 31) / 32;
    a->total_rows = total_q;
    if (a->sparse) {
        row_start = mla_alloc((size_t)job->num_requests + 1, sizeof *row_start);
        if (!row_start) {
            mla_free(a);
            return mla_fail(MLA_ERR_MEMORY, "mla_plan_create: out of memory for a CPU plan");
        }
        for (int64_t k = 0; k < job->num_requests; k++)
            row_start[k + 1] = row_start[k] + job->requests[k].query_len;
        a->row_start = row_start;
    }

    int64_t keys = a->sparse ? p->topk : longest_kv;
    int64_t rows = a->sparse ? most(total_q, 1) : longest_q;
    int64_t chunk = a->mqa ? CHUNK_MQA : CHUNK_MHA;
    if (panel) {
        a->tile = a->mqa ? TILE_MQA : TILE_MHA;
        chunk = a->sparse ? a->tile : CHUNK_PANELS;
    }
    a->chunk = least(chunk * grow / 2, (keys + 31) / 32 * 32);
    a->tile = least(a->tile, a->chunk);
    a->pass = least(rows, most(PASS_ROWS / a->ratio, 1));
    a->block = least(BLOCK, a->sparse ? a->ratio : a->pass * a->ratio);
    a->splits = a->slots = 1;
    if (!a->sparse) {
        int64_t blocks = (a->pass * a->ratio + a->block - 1) / a->block;
        if (job->wanted_splits > 0)
            a->splits = least(job->wanted_splits, a->chunk / 32);
        a->slots = least(a->kv_heads, (4 * a->threads + blocks - 1) / blocks);
    }
    a->splits = most(a->splits, 1);
    for (;;) {
        int64_t part = (a->chunk / a->splits + 31) / 32 * 32;
        /* Rows of the score buffer end off a power of two: else they fall on the same cache
         * sets. */
        a->ld_score = (a->sparse ? a->chunk : part) + 16;
        lay_out(a, p, elem);
        if (job->workspace_limit == 0 || a->total <= job->workspace_limit)
            break;
        if (a->slots > 1)
            a->slots = (a->slots + 1) / 2;
        else if (a->pass > 1)
            a->pass = (a->pass + 1) / 2;
        else
            break;
    }
    job->num_splits = a->splits;
    job->rows_per_pass = a->sparse ? least(a->pass, longest_q) : a->pass;
    job->workspace_bytes = a->total;
    job->data = a;
    return MLA_OK;
}

mla_status mla_attend_prepare(struct mla_job *job)
{
    return prepare(job, NULL);
}

mla_status mla_attend_prepare_panels(struct mla_job *job)
{
    return prepare(job, mla_panel_ops());
}

bool mla_attend_supports_panels(const struct mla_job *job, char *why, size_t bytes)
{
    if (!mla_panel_ops())
        snprintf(why, bytes, "the processor lacks AVX2 or FMA");
    else if (job->precision != MLA_PRECISION_FP32)
        snprintf(why, bytes, "precision fp64, want fp32");
    else
        return true;
    return false;
}

void mla_attend_release(struct mla_job *job)
{
    struct mla_attend *a = job->data;
    if (a)
        mla_free((void *)a->row_start);
    mla_free(a);
    job->data = NULL;
}

mla_status mla_attend_run(const struct mla_job *job, const mla_tensors *tensors, void *workspace,
                          void *stream)
{
    (void)stream;
    const struct mla_attend *a = job->data;
    struct mla_blas_guard guard;
    mla_blas_enter(&guard, a->threads);
#pragma omp parallel num_threads(a->threads)
    {
        if (job->precision == MLA_PRECISION_FP64)
            run_f64(job, tensors, workspace);
        else
            run_f32(job, tensors, workspace);
    }
    mla_blas_leave(&guard);
    return MLA_OK;
}

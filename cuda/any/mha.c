/* SPDX-License-Identifier: Apache-2.0 */
/* Expanded-form attention: passes, masks, launches, and what the kernel rows of expanded problems
 * share; mha_any, the engine and rows of any GPU from sm_80. */
#include "mha_plan.h"

#include "cuda/device.h"
#include "status.h"
#include "trace.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

struct pass {
    int first, count; /* segments */
    int64_t rows, tiles;
    int64_t first_tile; /* tiles of earlier passes */
};

struct mla_mha_plan {
    const struct mla_mha_engine *engine;
    struct mla_mha_tile tile;
    struct mla_mha_segment *table; /* device */
    struct mla_mha_place *order;   /* device, behind the table; NULL unless the engine wants it */
    struct pass *passes;
    int64_t num_passes;
    int64_t words, given_words; /* of a mask row, here and the caller's; 0 = no mask */
    int64_t most_rows, most_tiles;
    bool from_lists;
};

static const double ln2 = 0.69314718055994530942;

static const struct mla_mha_engine *engine_of(const struct mla_job *job)
{
    return job->kernel->engine;
}

bool mla_mha_supports(const struct mla_job *job, mla_dtype dtype, int64_t d_qk, int64_t d_v,
                      char *why, size_t bytes)
{
    const mla_problem *p = job->problem;
    if (dtype != MLA_BF16 && dtype != MLA_F16)
        snprintf(why, bytes, "q, k and v of %s, want bf16 or f16", mla_dtype_name(dtype));
    else if (p->out_dtype == MLA_F64)
        snprintf(why, bytes, "out of f64, want bf16, f16 or f32");
    else if (d_qk % 8 || d_v % 8)
        snprintf(why, bytes, "widths %" PRId64 " and %" PRId64 ", want multiples of 8", d_qk, d_v);
    else if (!engine_of(job)->supports(job, dtype, d_qk, d_v, why, bytes))
        return false;
    else if (!engine_of(job)->tile(dtype, d_qk, d_v).function)
        snprintf(why, bytes, "widths %" PRId64 " and %" PRId64 ", want at most 256", d_qk, d_v);
    else {
        for (int64_t i = 0; i < job->num_requests; i++) {
            const struct mla_request *r = &job->requests[i];
            if (r->seq_len_kv > INT32_MAX - 4 * MLA_MHA_KEYS || r->query_len > INT32_MAX - 256) {
                snprintf(why, bytes,
                         "request %" PRId64 " of %" PRId64 " keys, want fewer than 2^31", r->index,
                         r->seq_len_kv);
                return false;
            }
        }
        return true;
    }
    return false;
}

static int64_t most_words(const mla_problem *p)
{
    int64_t most = 0;
    for (int64_t b = 0; b < p->batch; b++)
        most = p->seq_lens_kv[b] > most ? p->seq_lens_kv[b] : most;
    return (most + 31) / 32;
}

static bool uses_lists(const struct mla_job *job)
{
    return job->problem->topk > 0 && !job->ignore_lists;
}

/* Are the bits made here, not the caller's? */
static bool makes_bits(const struct mla_mha_plan *plan)
{
    return plan->words && (plan->from_lists || plan->engine->make_mask);
}

static size_t limit_of(const struct mla_job *job)
{
    return job->workspace_limit ? job->workspace_limit : (size_t)64 << 20;
}

/* Query tiles whose mask fits the limit, where the engine has its own. */
static int64_t tiles_of_a_pass(const struct mla_job *job, const struct mla_mha_plan *plan)
{
    if (!plan->words || !plan->engine->make_mask)
        return INT32_MAX;
    int64_t fit = (int64_t)(limit_of(job) / ((size_t)plan->words * (plan->engine->mask_bytes + 4)));
    return fit < 1 ? 1 : fit < INT32_MAX ? fit : INT32_MAX;
}

/* Rows whose mask fits the limit, whole tiles of them. */
static int64_t rows_of_a_pass(const struct mla_job *job, const struct mla_mha_plan *plan)
{
    int64_t rows = plan->tile.rows, total = 0;
    for (int64_t i = 0; i < job->num_requests; i++)
        total += job->requests[i].query_len;
    if (!plan->from_lists || plan->engine->make_mask)
        return total;
    int64_t fit = (int64_t)(limit_of(job) / ((size_t)plan->words * 4 + 1));
    fit = fit / rows * rows;
    return fit < rows ? rows : fit < total ? fit : total;
}

/* Cuts the requests into segments and passes. With table NULL counts only. */
static int64_t cut(const struct mla_job *job, struct mla_mha_plan *plan, int64_t heads,
                   struct mla_mha_segment *table)
{
    int64_t limit = rows_of_a_pass(job, plan), most = tiles_of_a_pass(job, plan);
    int64_t segments = 0, words = 0, tiles_before = 0;
    struct pass pass = {0};
    plan->num_passes = 0;
    for (int64_t i = 0; i < job->num_requests; i++) {
        const struct mla_request *r = &job->requests[i];
        for (int64_t row0 = 0, rows; row0 < r->query_len; row0 += rows) {
            if (pass.rows == limit || pass.tiles == most) {
                if (table)
                    plan->passes[plan->num_passes] = pass;
                plan->num_passes++;
                pass = (struct pass){.first = (int)segments, .first_tile = tiles_before};
            }
            rows = r->query_len - row0;
            rows = rows < limit - pass.rows ? rows : limit - pass.rows;
            int64_t room = (most - pass.tiles) * plan->tile.rows;
            rows = rows < room ? rows : room;
            int64_t tiles = (rows + plan->tile.rows - 1) / plan->tile.rows;
            if (table)
                table[segments] = (struct mla_mha_segment){
                    .index = (int32_t)r->index,
                    .q_start = (int32_t)r->q_start,
                    .query_len = (int32_t)r->query_len,
                    .seq_len_kv = (int32_t)r->seq_len_kv,
                    .row0 = (int32_t)row0,
                    .rows = (int32_t)rows,
                    .first_tile = (int32_t)pass.tiles,
                    .first_row = (int32_t)pass.rows,
                    .tiles = (int32_t)tiles,
                    .first_word = words,
                    .kv_start = r->kv_start,
                };
            segments++;
            pass.count++;
            pass.rows += rows;
            pass.tiles += tiles;
            tiles_before += tiles;
            plan->most_rows = pass.rows > plan->most_rows ? pass.rows : plan->most_rows;
            plan->most_tiles = pass.tiles > plan->most_tiles ? pass.tiles : plan->most_tiles;
            if (pass.tiles * heads > INT32_MAX)
                return -1;
        }
        words += (r->seq_len_kv + 31) / 32;
    }
    if (pass.count) {
        if (table)
            plan->passes[plan->num_passes] = pass;
        plan->num_passes++;
    }
    return segments;
}

/* Keys that the last row of a tile may see. */
struct length {
    int64_t keys;
    struct mla_mha_place at;
};

static int longest_first(const void *x, const void *y)
{
    const struct length *a = x, *b = y;
    if (a->keys != b->keys)
        return a->keys < b->keys ? 1 : -1;
    if (a->at.segment != b->at.segment)
        return a->at.segment < b->at.segment ? -1 : 1;
    return a->at.tile < b->at.tile ? -1 : a->at.tile > b->at.tile;
}

/* Tiles of every pass, the longest first; of equal ones the first. */
static mla_status order_tiles(const struct mla_job *job, const struct mla_mha_plan *plan,
                              const struct mla_mha_segment *table, struct mla_mha_place *order)
{
    struct length *lengths = mla_alloc((size_t)plan->most_tiles, sizeof *lengths);
    if (!lengths)
        return mla_fail(MLA_ERR_MEMORY, "mla_plan_create: cannot allocate %" PRId64 " tiles",
                        plan->most_tiles);
    for (int64_t i = 0; i < plan->num_passes; i++) {
        const struct pass *pass = &plan->passes[i];
        int64_t n = 0;
        for (int j = 0; j < pass->count; j++) {
            const struct mla_mha_segment *s = &table[pass->first + j];
            for (int32_t tile = 0; tile < s->tiles; tile++) {
                int64_t last = (int64_t)(tile + 1) * plan->tile.rows;
                last = s->row0 + (last < s->rows ? last : s->rows);
                lengths[n++] =
                    (struct length){job->problem->causal ? s->seq_len_kv - s->query_len + last
                                                         : s->seq_len_kv,
                                    {j, tile}};
            }
        }
        qsort(lengths, (size_t)n, sizeof *lengths, longest_first);
        for (int64_t j = 0; j < n; j++)
            order[pass->first_tile + j] = lengths[j].at;
    }
    mla_free(lengths);
    return MLA_OK;
}

static mla_status upload(const struct mla_job *job, struct mla_mha_plan *plan,
                         const struct mla_mha_segment *table, int64_t segments,
                         const struct mla_mha_place *order, int64_t tiles)
{
    int before;
    size_t bytes = (size_t)segments * sizeof *table;
    size_t more = order ? (size_t)tiles * sizeof *order : 0;
    mla_status status = mla_cuda_enter(job->context, &before);
    if (status != MLA_OK || segments == 0)
        return status;
    status = mla_cuda_allow_shared(plan->tile.function, plan->tile.shared_bytes,
                                   plan->engine->most_shared);
    if (status == MLA_OK && plan->words && plan->engine->make_mask)
        status = mla_cuda_allow_shared(plan->engine->mask_function(), plan->engine->mask_shared, 0);
    cudaError_t error = cudaSuccess;
    if (status == MLA_OK)
        error = cudaMalloc((void **)&plan->table, bytes + more);
    if (status == MLA_OK && error == cudaSuccess)
        error = mla_cuda_upload(plan->table, table, bytes);
    if (status == MLA_OK && error == cudaSuccess && order) {
        plan->order = (struct mla_mha_place *)(void *)(plan->table + segments);
        error = mla_cuda_upload(plan->order, order, more);
    }
    mla_cuda_leave(job->context, before);
    return error == cudaSuccess ? status : mla_cuda_fail(__func__, "table of requests", error);
}

mla_status mla_mha_prepare(struct mla_job *job, int64_t heads, int64_t d_qk, int64_t d_v,
                           mla_dtype dtype, struct mla_mha_plan **out)
{
    struct mla_mha_segment *table = NULL;
    struct mla_mha_place *order = NULL;
    struct mla_mha_plan *plan = mla_alloc(1, sizeof *plan);
    *out = NULL;
    if (!plan)
        return mla_fail(MLA_ERR_MEMORY, "mla_plan_create: cannot allocate a plan");
    plan->engine = engine_of(job);
    plan->tile = plan->engine->tile(dtype, d_qk, d_v);
    plan->from_lists = uses_lists(job);
    plan->given_words = plan->from_lists || job->problem->has_mask ? most_words(job->problem) : 0;
    plan->words = plan->given_words;
    if (plan->engine->make_mask)
        plan->words = (plan->words + 3) / 4 * 4;
    int64_t segments = cut(job, plan, heads, NULL);
    mla_status status = MLA_OK;
    if (segments < 0)
        status =
            mla_fail(MLA_ERR_UNSUPPORTED, "mla_plan_create: %s: more than 2^31 blocks of %d rows",
                     job->kernel->name, plan->tile.rows);
    if (status == MLA_OK) {
        plan->passes = mla_alloc((size_t)plan->num_passes, sizeof *plan->passes);
        table = mla_alloc((size_t)segments, sizeof *table);
        if (!plan->passes || !table)
            status = mla_fail(MLA_ERR_MEMORY,
                              "mla_plan_create: cannot allocate %" PRId64 " segments", segments);
    }
    int64_t tiles = 0;
    if (status == MLA_OK) {
        cut(job, plan, heads, table);
        for (int64_t i = 0; i < plan->num_passes; i++)
            tiles += plan->passes[i].tiles;
        if (plan->engine->ordered && tiles) {
            order = mla_alloc((size_t)tiles, sizeof *order);
            status = order ? order_tiles(job, plan, table, order)
                           : mla_fail(MLA_ERR_MEMORY,
                                      "mla_plan_create: cannot allocate %" PRId64 " tiles", tiles);
        }
    }
    if (status == MLA_OK)
        status = upload(job, plan, table, segments, order, tiles);
    mla_free(order);
    mla_free(table);
    if (status != MLA_OK) {
        mla_mha_release(plan);
        return status;
    }
    job->rows_per_pass = plan->most_rows;
    *out = plan;
    return MLA_OK;
}

void mla_mha_release(struct mla_mha_plan *plan)
{
    if (!plan)
        return;
    cudaFree(plan->table); /* by address: any current device will do */
    mla_free(plan->passes);
    mla_free(plan);
}

static size_t aligned(size_t bytes)
{
    return (bytes + 255) & ~(size_t)255;
}

static size_t bits_bytes(const struct mla_mha_plan *plan)
{
    if (!makes_bits(plan))
        return 0;
    if (plan->engine->make_mask)
        return aligned((size_t)(plan->most_tiles * plan->words) * plan->engine->mask_bytes);
    return aligned((size_t)(plan->most_rows * plan->words) * 4);
}

static size_t columns_bytes(const struct mla_mha_plan *plan)
{
    return aligned((size_t)(plan->most_tiles * plan->words) * 4);
}

size_t mla_mha_mask_bytes(const struct mla_mha_plan *plan)
{
    return bits_bytes(plan) + columns_bytes(plan) + aligned(plan->engine->scratch_bytes);
}

bool mla_mha_one_pass(const struct mla_mha_plan *plan)
{
    return plan->num_passes <= 1;
}

/* ------------------------------------------------------------------ launch */

static mla_status make_mask(const struct mla_job *job, const struct mla_mha_plan *plan,
                            const mla_tensors *t, const struct pass *pass, uint32_t *mask,
                            char *scratch, void *stream)
{
    const mla_problem *p = job->problem;
    const size_t before = aligned(plan->engine->scratch_bytes);
    struct mla_mask_args a = {
        .segments = plan->table + pass->first,
        .num_segments = pass->count,
        .rows = (int32_t)pass->rows,
        .tile_rows = plan->tile.rows,
        .causal = p->causal,
        .topk = (int32_t)p->topk,
        .words = (int32_t)plan->words,
        .seq_lens_kv = t->seq_lens_kv,
        .mask = mask,
        .columns = (uint32_t *)(void *)(scratch + before),
    };
    if (plan->from_lists) {
        a.indices = t->topk_indices.data;
        a.indices_stride = mla_stride0(&t->topk_indices, p->topk);
        a.topk_lens = p->has_topk_lens ? t->topk_lens : NULL;
    } else {
        a.given = t->mask.data;
        a.given_stride = mla_stride0(&t->mask, plan->given_words);
    }
    void *args[] = {&a};
    MLA_CUDA(cudaMemsetAsync(scratch, 0, before + (size_t)(pass->tiles * plan->words) * 4, stream));
    if (plan->engine->make_mask)
        return plan->engine->make_mask(&a, pass->tiles, stream);
    MLA_CUDA(cudaLaunchKernel(mla_mask_function(), (dim3){(unsigned)pass->rows, 1, 1},
                              (dim3){MLA_MASK_THREADS, 1, 1}, args, 0, stream));
    return MLA_OK;
}

static struct mla_mha_args args_of(const struct mla_job *job, const struct mla_mha_plan *plan,
                                   const mla_tensors *t, const struct mla_mha_operands *o)
{
    const mla_problem *p = job->problem;
    int64_t head = o->first_head;
    size_t out_bytes = mla_dtype_bytes(p->out_dtype);
    struct mla_mha_args a = {
        .heads = (int32_t)o->heads,
        .heads_kv = (int32_t)o->heads_kv,
        .d_qk = (int32_t)o->d_qk,
        .d_v = (int32_t)o->d_v,
        .causal = p->causal,
        .q = o->q.data,
        .q_rope = o->q_rope.data,
        .q_split = (int32_t)o->q_split,
        .alive = o->alive,
        .k = o->k.data,
        .v = o->v.data,
        .out_dtype = p->out_dtype,
        .seq_lens_kv = t->seq_lens_kv,
        .words = (int32_t)plan->words,
        .scale_log2 = (float)(fabs(p->softmax_scale) / ln2),
        .sign = p->softmax_scale > 0   ? 1
                : p->softmax_scale < 0 ? -1
                                       : 0,
        .lse_unit = p->lse_base == MLA_LSE_2 ? 1 : (float)ln2,
        .sink = p->has_sink ? t->attn_sink + head : NULL,
        .out = (char *)o->out.data + (size_t)(head * o->out.stride[1]) * out_bytes,
        .out_stride = {o->out.stride[0], o->out.stride[1]},
    };
    if (a.scale_log2 == 0) {
        a.scale_log2 = 1;
        a.sign = 0;
    }
    for (int i = 0; i < 2; i++) {
        a.q_stride[i] = o->q.stride[i] * 2;
        a.q_rope_stride[i] = o->q_rope.stride[i] * 2;
        a.k_stride[i] = o->k.stride[i] * 2;
        a.v_stride[i] = o->v.stride[i] * 2;
    }
    if (p->wants_lse) {
        a.lse_stride[0] = mla_stride0(&t->lse, p->heads_q);
        a.lse_stride[1] = mla_stride1(&t->lse, 1);
        a.lse = (float *)t->lse.data + head * a.lse_stride[1];
    }
    if (p->wants_max_logits) {
        a.max_stride[0] = mla_stride0(&t->max_logits, p->heads_q);
        a.max_stride[1] = mla_stride1(&t->max_logits, 1);
        a.max_logits = (float *)t->max_logits.data + head * a.max_stride[1];
    }
    return a;
}

mla_status mla_mha_launch(const struct mla_job *job, const struct mla_mha_plan *plan,
                          const mla_tensors *t, const struct mla_mha_operands *o, void *mask,
                          bool build_mask, void *stream)
{
    struct mla_mha_args a = args_of(job, plan, t, o);
    uint32_t *bits = mask;
    char *scratch = (char *)mask + bits_bytes(plan); /* columns behind it: zeroed together */
    for (int64_t i = 0; i < plan->num_passes; i++) {
        const struct pass *pass = &plan->passes[i];
        a.segments = plan->table + pass->first;
        a.num_segments = pass->count;
        a.order = plan->order ? plan->order + pass->first_tile : NULL;
        a.tiles = (int32_t)pass->tiles;
        bool zeroed = false;
        if (plan->words) {
            a.columns = (uint32_t *)(void *)(scratch + aligned(plan->engine->scratch_bytes));
            a.whole_mask = !makes_bits(plan);
            a.mask = makes_bits(plan) ? bits : t->mask.data;
            a.mask_stride = makes_bits(plan) ? plan->words : mla_stride0(&t->mask, plan->words);
            if (build_mask || plan->num_passes > 1) {
                mla_trace_part("mask", stream);
                mla_status status = make_mask(job, plan, t, pass, bits, scratch, stream);
                if (status != MLA_OK)
                    return status;
                zeroed = true;
            }
        }
        mla_trace_part("attention", stream);
        mla_status status = plan->engine->launch(job, &plan->tile, &a, o, scratch, zeroed, stream);
        if (status != MLA_OK)
            return status;
    }
    return MLA_OK;
}

mla_status mla_mha_check_rows(const char *name, const mla_tensor *t)
{
    if ((uintptr_t)t->data % 16 || t->stride[0] % 8 || t->stride[1] % 8)
        return mla_fail(MLA_ERR_ARGUMENT,
                        "mla_run: %s: got address %p and strides %" PRId64 ", %" PRId64
                        ", want multiples of 16 bytes and of 8 elements",
                        name, t->data, t->stride[0], t->stride[1]);
    return MLA_OK;
}

mla_status mla_mha_check_out(const mla_tensor *out)
{
    if ((uintptr_t)out->data % 8 || out->stride[0] % 2 || out->stride[1] % 2)
        return mla_fail(MLA_ERR_ARGUMENT,
                        "mla_run: out: got address %p and strides %" PRId64 ", %" PRId64
                        ", want multiples of 8 bytes and of 2 elements",
                        out->data, out->stride[0], out->stride[1]);
    return MLA_OK;
}

/* --------------------------------------------------------------------- row */

bool mla_mha_row_supports(const struct mla_job *job, char *why, size_t bytes)
{
    const mla_problem *p = job->problem;
    if (p->kv_dtype != p->q_dtype) {
        snprintf(why, bytes, "k and v of %s under q of %s, want one type",
                 mla_dtype_name(p->kv_dtype), mla_dtype_name(p->q_dtype));
        return false;
    }
    return mla_mha_supports(job, p->q_dtype, mla_d_qk(p), p->v_dim, why, bytes);
}

mla_status mla_mha_row_prepare(struct mla_job *job)
{
    const mla_problem *p = job->problem;
    struct mla_mha_plan *plan;
    mla_status status = mla_mha_prepare(job, p->heads_q, mla_d_qk(p), p->v_dim, p->q_dtype, &plan);
    if (status != MLA_OK)
        return status;
    job->data = plan;
    job->num_splits = 1;
    job->workspace_bytes = mla_mha_mask_bytes(plan);
    return MLA_OK;
}

void mla_mha_row_release(struct mla_job *job)
{
    mla_mha_release(job->data);
    job->data = NULL;
}

static int64_t total_keys(const mla_problem *p)
{
    int64_t total = 0;
    for (int64_t b = 0; b < p->batch; b++)
        total += p->seq_lens_kv[b];
    return total;
}

static mla_tensor strided(const mla_tensor *t, int64_t heads, int64_t width)
{
    int64_t inner = mla_stride1(t, width);
    return (mla_tensor){t->data, {mla_stride0(t, heads * inner), inner}};
}

mla_status mla_mha_row_run(const struct mla_job *job, const mla_tensors *t, void *workspace,
                           void *stream)
{
    const mla_problem *p = job->problem;
    int before;
    struct mla_mha_operands o = {
        .heads = p->heads_q,
        .heads_kv = p->heads_kv,
        .d_qk = mla_d_qk(p),
        .d_v = p->v_dim,
        .q_split = mla_d_qk(p),
        .k_split = mla_d_qk(p),
        .dtype = p->q_dtype,
        .rows_q = mla_total_q(p),
        .rows_kv = total_keys(p),
        .q = strided(&t->q, p->heads_q, mla_d_qk(p)),
        .k = strided(&t->k, p->heads_kv, mla_d_qk(p)),
        .v = strided(&t->v, p->heads_kv, p->v_dim),
        .out = strided(&t->out, p->heads_q, p->v_dim),
    };
    mla_status status = mla_mha_check_rows("q", &o.q);
    if (status == MLA_OK)
        status = mla_mha_check_rows("k", &o.k);
    if (status == MLA_OK)
        status = mla_mha_check_rows("v", &o.v);
    if (status == MLA_OK)
        status = mla_mha_check_out(&o.out);
    if (status == MLA_OK)
        status = mla_cuda_enter(job->context, &before);
    if (status != MLA_OK)
        return status;
    /* Several passes make their masks in turns; other jobs would have overwritten a single one. */
    bool kept = t->same_lists && job->alone;
    status = mla_mha_launch(job, job->data, t, &o, workspace, !kept, stream);
    mla_cuda_leave(job->context, before);
    return status;
}

/* ----------------------------------------------------------------- mha_any */

static bool any_supports(const struct mla_job *job, mla_dtype dtype, int64_t d_qk, int64_t d_v,
                         char *why, size_t bytes)
{
    (void)job, (void)dtype, (void)d_qk, (void)d_v, (void)why, (void)bytes;
    return true;
}

static struct mla_mha_tile any_tile(mla_dtype dtype, int64_t d_qk, int64_t d_v)
{
    return dtype == MLA_BF16 ? mla_mha_tile_bf16(d_qk, d_v) : mla_mha_tile_f16(d_qk, d_v);
}

static mla_status any_launch(const struct mla_job *job, const struct mla_mha_tile *tile,
                             const struct mla_mha_args *a, const struct mla_mha_operands *o,
                             void *scratch, bool zeroed, void *stream)
{
    struct mla_mha_args copy = *a;
    void *args[] = {&copy};
    (void)job, (void)o, (void)scratch, (void)zeroed;
    MLA_CUDA(cudaLaunchKernel(tile->function, (dim3){(unsigned)(a->tiles * a->heads), 1, 1},
                              (dim3){(unsigned)tile->threads, 1, 1}, args, tile->shared_bytes,
                              stream));
    return MLA_OK;
}

static const struct mla_mha_engine any_engine = {
    .supports = any_supports,
    .tile = any_tile,
    .most_shared = MLA_ANY_SHARED_BYTES,
    .launch = any_launch,
};

const struct mla_kernel mla_mha_any = {
    .name = "mha_any",
    .architecture = "sm_80+",
    .proof = MLA_PROOF_SILICON,
    .engine = &any_engine,
    MLA_MHA_EXPANDED_ROW,
};

const struct mla_kernel mla_mha_latent_any = {
    .name = "mha_latent_any",
    .architecture = "sm_80+",
    .proof = MLA_PROOF_SILICON,
    .engine = &any_engine,
    MLA_MHA_LATENT_ROW,
};

/* SPDX-License-Identifier: Apache-2.0 */
/* Latent problems as expanded attention: keys and values of a group of heads are projected from the
 * cache rows into the workspace, then attended to, group after group.
 *
 *   gather   cache rows, dequantised where packed, as [keys, rank] and [keys, rope]; a flat cache
 *            whose rows suit cuBLAS is used where it lies
 *   project  k[key, h, :dn] = w_uk[h] · c, v[key, h] = c · w_uv[h], rounded to the type of q
 *   spread   k[key, h, dn:] = rope of the key, unless the engine reads it where it lies
 *   attend   by the engine of the row; q_nope and q_pe are read where they lie
 *
 * Workspace: heads of a group times keys, so it grows with the keys alone; the group shrinks to fit
 * the limit, down to one head of one request. */
#include "cuda/blas.h"
#include "cuda/device.h"
#include "format.h"
#include "latent.h"
#include "mha_plan.h"
#include "status.h"
#include "trace.h"

#include <inttypes.h>
#include <stdio.h>

/* Requests that are gathered and projected together. */
struct group {
    int64_t first, count, keys, words, heads;
    bool contiguous; /* in a flat cache */
    struct mla_mha_plan *attention;
};

struct plan {
    struct group *groups;
    int64_t num_groups;
    struct mla_request *requests;     /* the job's; kv_start counts from the group's first key */
    struct mla_latent_request *table; /* device */
};

/* Offsets of one group's buffers in the workspace. */
struct layout {
    size_t mask, blas, c, rope, alive, k, v, total;
};

static size_t aligned(size_t bytes)
{
    return (bytes + 255) & ~(size_t)255;
}

/* Does the engine read the keys' rope apart? */
static bool splits_keys(const struct mla_job *job)
{
    const struct mla_mha_engine *engine = job->kernel->engine;
    return engine->split_keys && job->problem->qk_rope_dim > 0;
}

/* Columns of a projected key. */
static int64_t k_width(const struct mla_job *job)
{
    return splits_keys(job) ? job->problem->qk_nope_dim : mla_d_qk(job->problem);
}

static struct layout layout_of(const struct mla_job *job, const struct group *g)
{
    const mla_problem *p = job->problem;
    struct layout l = {0};
    size_t keys = (size_t)g->keys;
    l.blas = mla_mha_mask_bytes(g->attention);
    l.c = l.blas + MLA_BLAS_BYTES;
    l.rope = l.c + aligned(keys * (size_t)p->kv_lora_rank * 2);
    l.alive = l.rope + aligned(keys * (size_t)p->qk_rope_dim * 2);
    l.k = l.alive + aligned((size_t)(g->words + 2) * 4); /* tiles of 64 keys read pairs of words */
    l.v = l.k + aligned(keys * (size_t)(g->heads * k_width(job)) * 2);
    l.total = l.v + aligned(keys * (size_t)(g->heads * p->v_dim) * 2);
    return l;
}

/* ----------------------------------------------------------------- prepare */

bool mla_mha_latent_supports(const struct mla_job *job, char *why, size_t bytes)
{
    const mla_problem *p = job->problem;
    bool packed = mla_cache_is_packed(p->cache_format);
    if (!packed && mla_cache_dtype(p->cache_format) != p->q_dtype)
        snprintf(why, bytes, "a %s cache under q of %s, want one type",
                 mla_cache_format_name(p->cache_format), mla_dtype_name(p->q_dtype));
    else if (p->qk_nope_dim % 8 || p->qk_rope_dim % 8)
        snprintf(why, bytes,
                 "qk_nope_dim %" PRId64 ", qk_rope_dim %" PRId64 ", want multiples of 8",
                 p->qk_nope_dim, p->qk_rope_dim);
    else if (p->page_size > INT32_MAX || p->num_pages > INT32_MAX || p->max_pages > INT32_MAX)
        snprintf(why, bytes,
                 "page_size %" PRId64 ", num_pages %" PRId64 ", max_pages %" PRId64
                 ", want less than 2^31",
                 p->page_size, p->num_pages, p->max_pages);
    else
        return mla_mha_supports(job, p->q_dtype, mla_d_qk(p), p->v_dim, why, bytes) &&
               mla_blas_found(why, bytes);
    return false;
}

static size_t limit_of(const struct mla_job *job)
{
    return job->workspace_limit ? job->workspace_limit : (size_t)512 << 20;
}

/* Cuts the requests into groups. With groups NULL counts only. */
static int64_t cut(const struct mla_job *job, struct group *groups)
{
    const mla_problem *p = job->problem;
    size_t limit = limit_of(job), fixed = limit / 8 + MLA_BLAS_BYTES;
    size_t a_row = (size_t)(p->kv_lora_rank + p->qk_rope_dim) * 2; /* gathered */
    size_t a_head = (size_t)(k_width(job) + p->v_dim) * 2;         /* projected */
    size_t room = limit > fixed ? limit - fixed : 0, all_heads = a_head * (size_t)p->heads_q;
    int64_t count = 0;
    for (int64_t i = 0; i < job->num_requests;) {
        struct group g = {.first = i, .contiguous = true};
        for (; i < job->num_requests; i++) {
            const struct mla_request *r = &job->requests[i];
            if (g.count && (size_t)(g.keys + r->seq_len_kv) * (a_row + all_heads) > room)
                break;
            g.contiguous &= r->kv_start == job->requests[g.first].kv_start + g.keys;
            g.count++;
            g.keys += r->seq_len_kv;
            g.words += (r->seq_len_kv + 31) / 32;
        }
        size_t keys = (size_t)g.keys, rows = keys * a_row;
        int64_t heads =
            keys ? (int64_t)((room > rows ? room - rows : 0) / (keys * a_head)) : p->heads_q;
        heads = heads < 1 ? 1 : heads > p->heads_q ? p->heads_q : heads;
        int64_t rounds = (p->heads_q + heads - 1) / heads;
        g.heads = (p->heads_q + rounds - 1) / rounds; /* of about one size */
        if (groups)
            groups[count] = g;
        count++;
    }
    return count;
}

static mla_status upload(const struct mla_job *job, struct plan *plan,
                         const struct mla_latent_request *table)
{
    int before;
    size_t bytes = (size_t)job->num_requests * sizeof *table;
    mla_status status = mla_cuda_enter(job->context, &before);
    if (status != MLA_OK)
        return status;
    status = mla_blas_open(job->context->data);
    if (status == MLA_OK && bytes) {
        cudaError_t error = cudaMalloc((void **)&plan->table, bytes);
        if (error == cudaSuccess)
            error = mla_cuda_upload(plan->table, table, bytes);
        if (error != cudaSuccess)
            status = mla_cuda_fail("mla_plan_create", "table of requests", error);
    }
    mla_cuda_leave(job->context, before);
    return status;
}

/* The requests as the attention sees them, the table of the gather, and a plan for each group. */
static mla_status prepare_groups(struct mla_job *job, struct plan *plan,
                                 struct mla_latent_request *table)
{
    const mla_problem *p = job->problem;
    job->rows_per_pass = 0;
    for (int64_t i = 0; i < plan->num_groups; i++) {
        struct group *g = &plan->groups[i];
        int64_t keys = 0, words = 0;
        for (int64_t j = g->first; j < g->first + g->count; j++) {
            const struct mla_request *r = &job->requests[j];
            table[j] = (struct mla_latent_request){
                .index = (int32_t)r->index,
                .seq_len_kv = (int32_t)r->seq_len_kv,
                .first_word = words,
                .first_key = keys,
                .kv_start = r->kv_start,
            };
            plan->requests[j] = *r;
            plan->requests[j].kv_start = keys;
            keys += r->seq_len_kv;
            words += (r->seq_len_kv + 31) / 32;
        }
        if (words > INT32_MAX)
            return mla_fail(MLA_ERR_UNSUPPORTED,
                            "mla_plan_create: %s: %" PRId64 " keys, want fewer", job->kernel->name,
                            keys);
        struct mla_job sub = *job;
        sub.requests = plan->requests + g->first;
        sub.num_requests = g->count;
        sub.workspace_limit = limit_of(job) / 8;
        mla_status status =
            mla_mha_prepare(&sub, g->heads, mla_d_qk(p), p->v_dim, p->q_dtype, &g->attention);
        if (status != MLA_OK)
            return status;
        size_t bytes = layout_of(job, g).total;
        if (bytes > job->workspace_bytes)
            job->workspace_bytes = bytes;
        if (sub.rows_per_pass > job->rows_per_pass)
            job->rows_per_pass = sub.rows_per_pass;
    }
    return MLA_OK;
}

void mla_mha_latent_release(struct mla_job *job)
{
    struct plan *plan = job->data;
    job->data = NULL;
    if (!plan)
        return;
    for (int64_t i = 0; plan->groups && i < plan->num_groups; i++)
        mla_mha_release(plan->groups[i].attention);
    cudaFree(plan->table); /* by address: any current device will do */
    mla_free(plan->groups);
    mla_free(plan->requests);
    mla_free(plan);
}

mla_status mla_mha_latent_prepare(struct mla_job *job)
{
    struct plan *plan = mla_alloc(1, sizeof *plan);
    struct mla_latent_request *table = mla_alloc((size_t)job->num_requests, sizeof *table);
    job->data = plan;
    job->num_splits = 1;
    job->workspace_bytes = 0;
    if (plan) {
        plan->num_groups = cut(job, NULL);
        plan->groups = mla_alloc((size_t)plan->num_groups, sizeof *plan->groups);
        plan->requests = mla_alloc((size_t)job->num_requests, sizeof *plan->requests);
    }
    mla_status status = MLA_OK;
    if (!plan || !table || !plan->groups || !plan->requests)
        status = mla_fail(MLA_ERR_MEMORY,
                          "mla_plan_create: cannot allocate a table of %" PRId64 " requests",
                          job->num_requests);
    if (status == MLA_OK) {
        cut(job, plan->groups);
        status = prepare_groups(job, plan, table);
    }
    if (status == MLA_OK)
        status = upload(job, plan, table);
    mla_free(table);
    if (status != MLA_OK)
        mla_mha_latent_release(job);
    return status;
}

/* --------------------------------------------------------------------- run */

/* Latent and rope rows of one group: where they are and, in elements, how far apart. */
struct rows {
    const uint16_t *c, *rope;
    int64_t c_stride, rope_stride;
    const uint32_t *alive;
};

static bool usable(const mla_tensor *t, int64_t stride)
{
    return (uintptr_t)t->data % 16 == 0 && stride % 8 == 0;
}

static mla_status gather(const struct mla_job *job, const struct group *g, const mla_tensors *t,
                         const struct layout *l, char *workspace, void *stream, struct rows *out)
{
    const mla_problem *p = job->problem;
    const struct plan *plan = job->data;
    int64_t c_stride = mla_stride0(&t->kv_c, p->kv_lora_rank);
    int64_t rope_stride = mla_stride0(&t->k_pe, p->qk_rope_dim);
    if (p->page_size == 0 && g->contiguous && usable(&t->kv_c, c_stride) &&
        usable(&t->k_pe, rope_stride)) {
        int64_t start = g->count ? job->requests[g->first].kv_start : 0;
        *out = (struct rows){(const uint16_t *)t->kv_c.data + start * c_stride, NULL, c_stride,
                             rope_stride, NULL};
        if (p->qk_rope_dim)
            out->rope = (const uint16_t *)t->k_pe.data + start * rope_stride;
        return MLA_OK;
    }
    bool packed = mla_cache_is_packed(p->cache_format);
    int64_t row = (int64_t)mla_cache_row_bytes(p->cache_format, p->kv_lora_rank, p->qk_rope_dim);
    int64_t item = packed ? 1 : 2;
    struct mla_gather_args a = {
        .requests = plan->table + g->first,
        .num_requests = (int32_t)g->count,
        .format = p->cache_format,
        .rank = (int32_t)p->kv_lora_rank,
        .rope_dim = (int32_t)p->qk_rope_dim,
        .page_size = (int32_t)p->page_size,
        .num_pages = (int32_t)p->num_pages,
        .max_pages = (int32_t)p->max_pages,
        .seq_lens_kv = t->seq_lens_kv,
        .record_bytes = packed ? (int32_t)row : 0,
        .is_bf16 = p->q_dtype == MLA_BF16,
        .c_out = (uint16_t *)(void *)(workspace + l->c),
        .rope_out = (uint16_t *)(void *)(workspace + l->rope),
        .alive = (uint32_t *)(void *)(workspace + l->alive),
    };
    if (p->page_size) {
        a.data = t->kv_cache.data;
        a.rope = a.data + p->kv_lora_rank * item;
        a.row_bytes = mla_stride1(&t->kv_cache, row / item) * item;
        a.page_bytes = mla_stride0(&t->kv_cache, p->page_size * a.row_bytes / item) * item;
        a.page_table = t->page_table.data;
        a.page_table_stride = mla_stride0(&t->page_table, p->max_pages);
    } else {
        a.data = t->kv_c.data;
        a.rope = t->k_pe.data;
        a.row_bytes = c_stride * item;
        a.rope_row_bytes = rope_stride * item;
    }
    *out = (struct rows){a.c_out, a.rope_out, p->kv_lora_rank, p->qk_rope_dim,
                         p->page_size ? a.alive : NULL};
    if (g->words) {
        void *args[] = {&a};
        MLA_CUDA(cudaLaunchKernel(mla_gather_function(), (dim3){(unsigned)g->words, 1, 1},
                                  (dim3){MLA_LATENT_THREADS, 1, 1}, args, 0, stream));
    }
    return MLA_OK;
}

/* Keys and values of heads [head, head + heads). */
static mla_status project(const struct mla_job *job, const struct group *g, const mla_tensors *t,
                          const struct layout *l, char *workspace, const struct rows *rows,
                          int64_t head, int64_t heads, void *stream)
{
    const mla_problem *p = job->problem;
    int64_t width = k_width(job), uk_row = mla_stride1(&t->w_uk, p->kv_lora_rank);
    int64_t uk_head = mla_stride0(&t->w_uk, p->qk_nope_dim * uk_row);
    int64_t uv_row = mla_stride1(&t->w_uv, p->v_dim);
    int64_t uv_head = mla_stride0(&t->w_uv, p->kv_lora_rank * uv_row);
    uint16_t *k = (uint16_t *)(void *)(workspace + l->k);
    /* All heads in one product where both sides have them without gaps. */
    bool joined = width == p->qk_nope_dim && uk_head == p->qk_nope_dim * uk_row;
    const struct mla_gemm products[] = {
        {.transpose = true,
         .m = joined ? heads * p->qk_nope_dim : p->qk_nope_dim,
         .n = g->keys,
         .k = p->kv_lora_rank,
         .batch = joined ? 1 : heads,
         .a = (const uint16_t *)t->w_uk.data + head * uk_head,
         .lda = uk_row,
         .step_a = uk_head,
         .b = rows->c,
         .ldb = rows->c_stride,
         .c = k,
         .ldc = heads * width,
         .step_c = width,
         .in = p->q_dtype,
         .out = p->q_dtype},
        {.m = p->v_dim,
         .n = g->keys,
         .k = p->kv_lora_rank,
         .batch = heads,
         .a = (const uint16_t *)t->w_uv.data + head * uv_head,
         .lda = uv_row,
         .step_a = uv_head,
         .b = rows->c,
         .ldb = rows->c_stride,
         .c = workspace + l->v,
         .ldc = heads * p->v_dim,
         .step_c = p->v_dim,
         .in = p->q_dtype,
         .out = p->q_dtype},
    };
    mla_status status = mla_blas_run(job->context->data, products, 2, workspace + l->blas, stream);
    if (status != MLA_OK || p->qk_rope_dim == 0 || splits_keys(job) || g->keys == 0)
        return status;
    struct mla_spread_args a = {
        .in = rows->rope,
        .out = k + p->qk_nope_dim,
        .rows = g->keys,
        .heads = (int32_t)heads,
        .width = (int32_t)p->qk_rope_dim,
        .in_stride = {rows->rope_stride, 0},
        .out_stride = {heads * width, width},
    };
    int64_t threads = g->keys * heads * ((p->qk_rope_dim + 7) / 8);
    unsigned blocks = (unsigned)((threads + MLA_LATENT_THREADS - 1) / MLA_LATENT_THREADS);
    void *args[] = {&a};
    MLA_CUDA(cudaLaunchKernel(mla_spread_function(), (dim3){blocks, 1, 1},
                              (dim3){MLA_LATENT_THREADS, 1, 1}, args, 0, stream));
    return MLA_OK;
}

static mla_tensor strided(const mla_tensor *t, int64_t heads, int64_t width)
{
    int64_t inner = mla_stride1(t, width);
    return (mla_tensor){t->data, {mla_stride0(t, heads * inner), inner}};
}

static mla_status run_group(const struct mla_job *job, const struct group *g, const mla_tensors *t,
                            struct mla_mha_operands *o, char *workspace, void *stream)
{
    const mla_problem *p = job->problem;
    struct layout l = layout_of(job, g);
    struct rows rows;
    mla_trace_part("gather", stream);
    mla_status status = gather(job, g, t, &l, workspace, stream, &rows);
    for (int64_t head = 0; status == MLA_OK && head < p->heads_q; head += g->heads) {
        int64_t heads = p->heads_q - head < g->heads ? p->heads_q - head : g->heads;
        struct mla_mha_operands part = *o;
        mla_trace_part("project", stream);
        status = project(job, g, t, &l, workspace, &rows, head, heads, stream);
        if (status != MLA_OK)
            break;
        part.first_head = head;
        part.heads = part.heads_kv = heads;
        part.rows_kv = g->keys;
        part.q.data = (uint16_t *)o->q.data + head * o->q.stride[1];
        if (p->qk_rope_dim)
            part.q_rope.data = (uint16_t *)o->q_rope.data + head * o->q_rope.stride[1];
        part.k = (mla_tensor){workspace + l.k, {heads * k_width(job), k_width(job)}};
        part.k_split = k_width(job);
        part.k_rope = (mla_tensor){(void *)rows.rope, {rows.rope_stride, rows.rope_stride}};
        part.v = (mla_tensor){workspace + l.v, {heads * o->d_v, o->d_v}};
        part.alive = rows.alive;
        bool kept = t->same_lists && job->alone && ((struct plan *)job->data)->num_groups == 1;
        status = mla_mha_launch(job, g->attention, t, &part, workspace + l.mask, head == 0 && !kept,
                                stream);
    }
    return status;
}

mla_status mla_mha_latent_run(const struct mla_job *job, const mla_tensors *t, void *workspace,
                              void *stream)
{
    const mla_problem *p = job->problem;
    const struct plan *plan = job->data;
    int before;
    struct mla_mha_operands o = {
        .d_qk = mla_d_qk(p),
        .d_v = p->v_dim,
        .dtype = p->q_dtype,
        .rows_q = mla_total_q(p),
        .q = strided(&t->q_nope, p->heads_q, p->qk_nope_dim),
        .q_rope = strided(&t->q_pe, p->heads_q, p->qk_rope_dim),
        .q_split = p->qk_nope_dim,
        .out = strided(&t->out, p->heads_q, p->v_dim),
    };
    mla_status status = mla_mha_check_rows("q_nope", &o.q);
    if (status == MLA_OK && p->qk_rope_dim)
        status = mla_mha_check_rows("q_pe", &o.q_rope);
    if (status == MLA_OK)
        status = mla_mha_check_out(&o.out);
    if (status == MLA_OK)
        status = mla_cuda_enter(job->context, &before);
    if (status != MLA_OK)
        return status;
    for (int64_t i = 0; status == MLA_OK && i < plan->num_groups; i++)
        status = run_group(job, &plan->groups[i], t, &o, workspace, stream);
    mla_cuda_leave(job->context, before);
    return status;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* Host side of generic.cu, and the last two rows of the table, which take every shape:
 *
 *   mqa_generic   absorbed and latent problems on MQA routes: one launch
 *   mha_generic   expanded problems: one launch. Latent ones: for every request and group of heads
 *                 keys and values are projected into the workspace, then attended to
 *
 * Workspace: a slab a block, and for latent MHA fp32 keys and values of a group of heads of the
 * longest request; the group shrinks to fit the limit, down to one head. */
#include "generic.h"

#include "../device.h"
#include "format.h"
#include "record.h"
#include "status.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>

/* Eight blocks an SM of a large GPU; more would only take more slabs. */
enum { BLOCKS = 1024 };

struct plan {
    struct mla_generic_request *table; /* device */
    int64_t rows, most_keys, blocks, slab_floats;
    int64_t heads; /* of a group */
};

static bool projects(const struct mla_job *job)
{
    return job->problem->form == MLA_FORM_LATENT &&
           (job->route == MLA_ROUTE_DENSE_MHA || job->route == MLA_ROUTE_MASKED_MHA);
}

static bool supports(const struct mla_job *job, char *why, size_t bytes)
{
    const mla_problem *p = job->problem;
    if (p->out_dtype == MLA_F64)
        snprintf(why, bytes, "out of f64, want bf16, f16 or f32");
    else if (p->heads_q > INT32_MAX)
        snprintf(why, bytes, "heads_q %" PRId64 ", want less than 2^31", p->heads_q);
    else
        return true;
    return false;
}

static size_t aligned(size_t bytes)
{
    return (bytes + 255) & ~(size_t)255;
}

/* Bytes of projected keys, of values: for all keys of the longest request and a group of heads. */
static size_t k_bytes(const mla_problem *p, const struct plan *plan)
{
    return aligned((size_t)(plan->most_keys * plan->heads * mla_d_qk(p)) * 4);
}

static size_t v_bytes(const mla_problem *p, const struct plan *plan)
{
    return aligned((size_t)(plan->most_keys * plan->heads * p->v_dim) * 4);
}

/* ----------------------------------------------------------------- prepare */

static void release(struct mla_job *job)
{
    struct plan *plan = job->data;
    job->data = NULL;
    if (!plan)
        return;
    cudaFree(plan->table); /* by address: any current device will do */
    mla_free(plan);
}

static mla_status upload(const struct mla_job *job, struct plan *plan,
                         const struct mla_generic_request *table)
{
    size_t bytes = (size_t)job->num_requests * sizeof *table;
    int before;
    mla_status status = mla_cuda_enter(job->context, &before);
    if (status != MLA_OK || bytes == 0)
        return status;
    cudaError_t error = cudaMalloc((void **)&plan->table, bytes);
    if (error == cudaSuccess)
        error = mla_cuda_upload(plan->table, table, bytes);
    mla_cuda_leave(job->context, before);
    return error == cudaSuccess ? MLA_OK : mla_cuda_fail(__func__, "table of requests", error);
}

/* Widths as the attention kernel sees them, and the floats of a slab. */
static struct mla_generic_args widths_of(const struct mla_job *job)
{
    const mla_problem *p = job->problem;
    struct mla_generic_args a = {.d_qk = mla_d_qk(p), .d_v = mla_d_v(p), .d_out = mla_d_v(p)};
    a.q_width = a.d_qk;
    if (p->form == MLA_FORM_LATENT) {
        a.q_width = p->qk_nope_dim;
        a.rope_width = p->qk_rope_dim;
        if (!projects(job)) {
            a.d_qk = p->kv_lora_rank + p->qk_rope_dim;
            a.d_v = p->kv_lora_rank;
        }
    }
    return a;
}

static void lay_out(struct mla_job *job, struct plan *plan)
{
    const mla_problem *p = job->problem;
    const struct mla_generic_args a = widths_of(job);
    size_t limit = job->workspace_limit ? job->workspace_limit : (size_t)512 << 20;
    int64_t slab = mla_generic_slab(&a), row = p->kv_lora_rank + p->qk_rope_dim;
    if (projects(job) && slab < row) /* the projection's own slab is a cache row */
        slab = (row + 31) / 32 * 32;
    plan->slab_floats = slab;
    plan->blocks = plan->rows * p->heads_q;
    if (projects(job) && plan->blocks < plan->most_keys)
        plan->blocks = plan->most_keys;
    int64_t fit = (int64_t)(limit / 4 / ((size_t)slab * 4 + 1));
    fit = fit < 1 ? 1 : fit < BLOCKS ? fit : BLOCKS;
    plan->blocks = plan->blocks < fit ? plan->blocks : fit;
    job->workspace_bytes = aligned((size_t)(plan->blocks * slab) * 4);
    if (!projects(job))
        return;
    size_t head = (size_t)(plan->most_keys * (mla_d_qk(p) + p->v_dim)) * 4 + 512;
    size_t room = limit > job->workspace_bytes ? limit - job->workspace_bytes : 0;
    int64_t heads = (int64_t)(room / head);
    plan->heads = heads < 1 ? 1 : heads < p->heads_q ? heads : p->heads_q;
    job->workspace_bytes += k_bytes(p, plan) + v_bytes(p, plan);
}

static mla_status prepare(struct mla_job *job)
{
    struct plan *plan = mla_alloc(1, sizeof *plan);
    struct mla_generic_request *table = mla_alloc((size_t)job->num_requests, sizeof *table);
    mla_status status = MLA_OK;
    job->data = plan;
    job->num_splits = 1;
    job->rows_per_pass = 0;
    if (!plan || !table)
        status = mla_fail(MLA_ERR_MEMORY,
                          "mla_plan_create: cannot allocate a table of %" PRId64 " requests",
                          job->num_requests);
    for (int64_t i = 0; status == MLA_OK && i < job->num_requests; i++) {
        const struct mla_request *r = &job->requests[i];
        table[i] = (struct mla_generic_request){.index = r->index,
                                                .q_start = r->q_start,
                                                .query_len = r->query_len,
                                                .kv_start = r->kv_start,
                                                .seq_len_kv = r->seq_len_kv,
                                                .first_row = plan->rows};
        plan->rows += r->query_len;
        plan->most_keys = r->seq_len_kv > plan->most_keys ? r->seq_len_kv : plan->most_keys;
        job->rows_per_pass = r->query_len > job->rows_per_pass ? r->query_len : job->rows_per_pass;
    }
    if (status == MLA_OK) {
        lay_out(job, plan);
        status = upload(job, plan, table);
    }
    mla_free(table);
    if (status != MLA_OK)
        release(job);
    return status;
}

/* --------------------------------------------------------------------- run */

static struct mla_generic_rows rows_of(const mla_tensor *t, mla_dtype dtype, int64_t heads,
                                       int64_t width)
{
    int64_t inner = mla_stride1(t, width);
    return (struct mla_generic_rows){t->data, {mla_stride0(t, heads * inner), inner}, dtype};
}

static struct mla_generic_cache cache_of(const mla_problem *p, const mla_tensors *t)
{
    struct mla_generic_cache c = {.format = p->cache_format, .rank = p->kv_lora_rank};
    if (p->form == MLA_FORM_EXPANDED)
        return c;
    bool packed = mla_cache_is_packed(p->cache_format);
    int64_t row = (int64_t)mla_cache_row_bytes(p->cache_format, p->kv_lora_rank, p->qk_rope_dim);
    int64_t item = packed ? 1 : (int64_t)mla_dtype_bytes(mla_cache_dtype(p->cache_format));
    c.dtype = mla_cache_dtype(p->cache_format);
    c.page_size = p->page_size;
    if (p->page_size == 0) {
        c.data = t->kv_c.data;
        c.rope = t->k_pe.data;
        c.row_bytes = mla_stride0(&t->kv_c, p->kv_lora_rank) * item;
        c.rope_row_bytes = mla_stride0(&t->k_pe, p->qk_rope_dim) * item;
        return c;
    }
    c.data = t->kv_cache.data;
    c.rope = c.data + p->kv_lora_rank * item;
    c.row_bytes = mla_stride1(&t->kv_cache, row / item) * item;
    c.page_bytes = mla_stride0(&t->kv_cache, p->page_size * c.row_bytes / item) * item;
    if (p->cache_format == MLA_CACHE_MODEL1 || p->cache_format == MLA_CACHE_V41) {
        /* Pages with a footer have no row stride: their parts lie where page_size puts them. */
        bool model1 = p->cache_format == MLA_CACHE_MODEL1;
        c.row_bytes = model1 ? MODEL1_DATA_BYTES : V41_DATA_BYTES;
        c.scale_bytes = model1 ? MODEL1_SCALE_BYTES : V41_SCALE_BYTES;
        c.scales_at = p->page_size * c.row_bytes;
        c.page_bytes = mla_stride0(&t->kv_cache, p->page_size * row);
    }
    c.page_table = t->page_table.data;
    c.page_table_stride = mla_stride0(&t->page_table, p->max_pages);
    c.num_pages = p->num_pages;
    c.max_pages = p->max_pages;
    return c;
}

static int64_t mask_words(const mla_problem *p)
{
    int64_t most = 0;
    for (int64_t b = 0; b < p->batch; b++)
        most = p->seq_lens_kv[b] > most ? p->seq_lens_kv[b] : most;
    return (most + 31) / 32;
}

/* Everything but q, k, v and the projections. */
static struct mla_generic_args args_of(const struct mla_job *job, const mla_tensors *t,
                                       void *workspace)
{
    const mla_problem *p = job->problem;
    const struct plan *plan = job->data;
    struct mla_generic_args a = widths_of(job);
    struct mla_generic_rows out = rows_of(&t->out, p->out_dtype, p->heads_q, mla_d_v(p));
    a.requests = plan->table;
    a.num_requests = job->num_requests;
    a.rows = plan->rows;
    a.heads = (int32_t)p->heads_q;
    a.group = 1;
    a.cache = cache_of(p, t);
    a.causal = p->causal;
    a.seq_lens_kv = t->seq_lens_kv;
    a.scale = (float)p->softmax_scale;
    a.lse_unit = p->lse_base == MLA_LSE_2 ? 1.44269504f : 1;
    a.sink = p->has_sink ? t->attn_sink : NULL;
    a.out_dtype = p->out_dtype;
    a.out = t->out.data;
    a.out_stride[0] = out.stride[0];
    a.out_stride[1] = out.stride[1];
    a.slabs = workspace;
    a.slab_floats = plan->slab_floats;
    if (p->has_mask) {
        a.mask = t->mask.data;
        a.mask_stride = mla_stride0(&t->mask, mask_words(p));
    }
    if (p->topk > 0 && !job->ignore_lists) {
        a.topk = p->topk;
        a.indices = t->topk_indices.data;
        a.indices_stride = mla_stride0(&t->topk_indices, p->topk);
        a.topk_lens = p->has_topk_lens ? t->topk_lens : NULL;
    }
    if (p->wants_lse) {
        a.lse = t->lse.data;
        a.lse_stride[0] = mla_stride0(&t->lse, p->heads_q);
        a.lse_stride[1] = mla_stride1(&t->lse, 1);
    }
    if (p->wants_max_logits) {
        a.max_logits = t->max_logits.data;
        a.max_stride[0] = mla_stride0(&t->max_logits, p->heads_q);
        a.max_stride[1] = mla_stride1(&t->max_logits, 1);
    }
    if (p->form == MLA_FORM_EXPANDED) {
        a.q = rows_of(&t->q, p->q_dtype, p->heads_q, a.d_qk);
        a.k = rows_of(&t->k, p->kv_dtype, p->heads_kv, a.d_qk);
        a.v = rows_of(&t->v, p->kv_dtype, p->heads_kv, a.d_v);
        a.group = (int32_t)(p->heads_q / p->heads_kv);
    } else if (p->form == MLA_FORM_ABSORBED) {
        a.q = rows_of(&t->q, p->q_dtype, p->heads_q, a.d_qk);
    } else {
        a.q = rows_of(&t->q_nope, p->q_dtype, p->heads_q, p->qk_nope_dim);
        a.rope = rows_of(&t->q_pe, p->q_dtype, p->heads_q, p->qk_rope_dim);
        a.uk = rows_of(&t->w_uk, p->q_dtype, p->qk_nope_dim, p->kv_lora_rank);
        a.uv = rows_of(&t->w_uv, p->q_dtype, p->kv_lora_rank, p->v_dim);
    }
    return a;
}

static mla_status launch(const void *function, struct mla_generic_args *a, int64_t items,
                         int64_t blocks, void *stream)
{
    void *args[] = {a};
    unsigned grid = (unsigned)(items < blocks ? items : blocks);
    if (grid)
        MLA_CUDA(cudaLaunchKernel(function, (dim3){grid, 1, 1}, (dim3){MLA_GENERIC_THREADS, 1, 1},
                                  args, 0, stream));
    return MLA_OK;
}

/* Latent problems on MHA routes: request by request, group of heads by group. */
static mla_status run_projected(const struct mla_job *job, const struct mla_generic_args *all,
                                char *workspace, void *stream)
{
    const mla_problem *p = job->problem;
    const struct plan *plan = job->data;
    float *k =
        (float *)(void *)(workspace + aligned((size_t)(plan->blocks * plan->slab_floats) * 4));
    float *v = (float *)(void *)((char *)k + k_bytes(p, plan));
    mla_status status = MLA_OK;
    for (int64_t i = 0, row = 0; i < job->num_requests; row += job->requests[i++].query_len) {
        const struct mla_request *r = &job->requests[i];
        for (int64_t head = 0; status == MLA_OK && head < p->heads_q; head += plan->heads) {
            struct mla_generic_args a = *all;
            a.requests += i;
            a.num_requests = 1;
            a.first_row = row;
            a.rows = r->query_len;
            a.first_head = (int32_t)head;
            a.heads = (int32_t)(p->heads_q - head < plan->heads ? p->heads_q - head : plan->heads);
            a.k_out = k;
            a.v_out = v;
            status =
                launch(mla_generic_project_function(), &a, r->seq_len_kv, plan->blocks, stream);
            a.uk.data = a.uv.data = NULL;
            a.own_keys = 1;
            a.k = (struct mla_generic_rows){k, {a.heads * a.d_qk, a.d_qk}, MLA_F32};
            a.v = (struct mla_generic_rows){v, {a.heads * a.d_v, a.d_v}, MLA_F32};
            if (status == MLA_OK)
                status = launch(mla_generic_attend_function(), &a, a.rows * a.heads, plan->blocks,
                                stream);
        }
    }
    return status;
}

static mla_status run(const struct mla_job *job, const mla_tensors *t, void *workspace,
                      void *stream)
{
    const struct plan *plan = job->data;
    struct mla_generic_args a = args_of(job, t, workspace);
    int before;
    mla_status status = mla_cuda_enter(job->context, &before);
    if (status != MLA_OK)
        return status;
    if (projects(job))
        status = run_projected(job, &a, workspace, stream);
    else
        status = launch(mla_generic_attend_function(), &a, a.rows * a.heads, plan->blocks, stream);
    mla_cuda_leave(job->context, before);
    return status;
}

#define ALL_FORMATS                                                                                \
    (MLA_BIT(MLA_CACHE_BF16) | MLA_BIT(MLA_CACHE_F16) | MLA_BIT(MLA_CACHE_F32) |                   \
     MLA_BIT(MLA_CACHE_FP8_DS_MLA) | MLA_BIT(MLA_CACHE_MODEL1) | MLA_BIT(MLA_CACHE_V41) |          \
     MLA_BIT(MLA_CACHE_NVFP4_DS_MLA))

const struct mla_kernel mla_mqa_generic = {
    .name = "mqa_generic",
    .backend = MLA_BACKEND_CUDA,
    .architecture = "sm_80+",
    .proof = MLA_PROOF_SILICON,
    .last_resort = true,
    .routes = MLA_BIT(MLA_ROUTE_SPARSE_MQA) | MLA_BIT(MLA_ROUTE_DENSE_MQA),
    .forms = MLA_BIT(MLA_FORM_LATENT) | MLA_BIT(MLA_FORM_ABSORBED),
    .formats = ALL_FORMATS,
    .supports = supports,
    .prepare = prepare,
    .release = release,
    .run = run,
};

const struct mla_kernel mla_mha_generic = {
    .name = "mha_generic",
    .backend = MLA_BACKEND_CUDA,
    .architecture = "sm_80+",
    .proof = MLA_PROOF_SILICON,
    .last_resort = true,
    .routes = MLA_BIT(MLA_ROUTE_DENSE_MHA) | MLA_BIT(MLA_ROUTE_MASKED_MHA),
    .forms = MLA_BIT(MLA_FORM_LATENT) | MLA_BIT(MLA_FORM_EXPANDED),
    .formats = ALL_FORMATS,
    .supports = supports,
    .prepare = prepare,
    .release = release,
    .run = run,
};

/* SPDX-License-Identifier: Apache-2.0 */
/* Latent problems as absorbed attention: q[h] = q_nope[h] · w_uk[h] with q_pe behind it, attention
 * over the cache where it lies, out[h] = o_lat[h] · w_uv[h]. Query rows go in passes whose
 * absorbed queries and latent outputs fit the workspace limit. */
#include "cuda/blas.h"
#include "cuda/device.h"
#include "latent.h"
#include "mqa_plan.h"
#include "status.h"
#include "trace.h"

#include <inttypes.h>
#include <stdio.h>

/* Rows [first_row, end_row) of the batch, as far as they belong to this job. */
struct pass {
    int64_t first, count; /* parts of requests */
    int64_t first_row, end_row;
    int64_t index, by; /* by rows of request index come later; by 0 = none do */
    struct mla_mqa_plan *attention;
};

struct plan {
    struct pass *passes;
    int64_t num_passes, rows; /* rows: the most of a pass */
    struct mla_request *parts;
    size_t part_bytes;
};

struct layout {
    size_t parts, blas, lengths, q, latent, total;
};

static size_t aligned(size_t bytes)
{
    return (bytes + 255) & ~(size_t)255;
}

static struct layout layout_of(const mla_problem *p, const struct plan *plan)
{
    struct layout l = {0};
    size_t rows = (size_t)(plan->rows * p->heads_q) * 2, rank = (size_t)p->kv_lora_rank;
    l.blas = aligned(plan->part_bytes);
    l.lengths = l.blas + MLA_BLAS_BYTES;
    l.q = l.lengths + aligned((size_t)p->batch * 4);
    l.latent = l.q + aligned(rows * (rank + (size_t)p->qk_rope_dim));
    l.total = l.latent + aligned(rows * rank);
    return l;
}

/* ----------------------------------------------------------------- prepare */

bool mla_mqa_latent_supports(const struct mla_job *job, char *why, size_t bytes)
{
    const mla_problem *p = job->problem;
    if (p->qk_nope_dim < 1)
        snprintf(why, bytes, "qk_nope_dim %" PRId64 ", want 1 or more", p->qk_nope_dim);
    else if (p->out_dtype != MLA_F32 && p->out_dtype != p->q_dtype)
        snprintf(why, bytes, "out of %s under q of %s, want that or f32",
                 mla_dtype_name(p->out_dtype), mla_dtype_name(p->q_dtype));
    else
        return mla_mqa_supports(job, why, bytes) && mla_blas_found(why, bytes);
    return false;
}

static int64_t rows_that_fit(const struct mla_job *job)
{
    const mla_problem *p = job->problem;
    size_t limit = job->workspace_limit ? job->workspace_limit : (size_t)512 << 20;
    size_t row = (size_t)(p->heads_q * (2 * p->kv_lora_rank + p->qk_rope_dim)) * 2;
    size_t rows = (limit > MLA_BLAS_BYTES ? limit - MLA_BLAS_BYTES : 0) / row;
    return rows < 1 ? 1 : rows > INT32_MAX ? INT32_MAX : (int64_t)rows;
}

/* Cuts the requests into passes; returns the number of parts. With parts NULL counts only. */
static int64_t cut(const struct mla_job *job, struct plan *plan, struct mla_request *parts)
{
    int64_t most = rows_that_fit(job), count = 0;
    struct pass pass = {0};
    plan->num_passes = 0;
    for (int64_t i = 0; i < job->num_requests; i++) {
        const struct mla_request *r = &job->requests[i];
        for (int64_t row0 = 0, rows; row0 < r->query_len; row0 += rows) {
            int64_t row = r->q_start + row0;
            if (pass.count && row >= pass.first_row + most) {
                if (parts)
                    plan->passes[plan->num_passes] = pass;
                plan->num_passes++;
                pass = (struct pass){.first = count};
            }
            if (pass.count == 0)
                pass.first_row = row;
            rows = pass.first_row + most - row;
            rows = rows < r->query_len - row0 ? rows : r->query_len - row0;
            int64_t later = r->query_len - row0 - rows, keys = r->seq_len_kv;
            if (later && job->problem->causal) {
                keys = keys > later ? keys - later : 0;
                pass.index = r->index;
                pass.by = later;
            }
            if (parts) {
                parts[count] = *r;
                parts[count].q_start = row;
                parts[count].query_len = rows;
                parts[count].seq_len_kv = keys;
            }
            count++;
            pass.count++;
            pass.end_row = row + rows;
            if (pass.end_row - pass.first_row > plan->rows)
                plan->rows = pass.end_row - pass.first_row;
        }
    }
    if (pass.count) {
        if (parts)
            plan->passes[plan->num_passes] = pass;
        plan->num_passes++;
    }
    return count;
}

void mla_mqa_latent_release(struct mla_job *job)
{
    struct plan *plan = job->data;
    job->data = NULL;
    if (!plan)
        return;
    for (int64_t i = 0; plan->passes && i < plan->num_passes; i++)
        mla_mqa_release(plan->passes[i].attention);
    mla_free(plan->passes);
    mla_free(plan->parts);
    mla_free(plan);
}

static mla_status prepare_passes(struct mla_job *job, struct plan *plan)
{
    for (int64_t i = 0; i < plan->num_passes; i++) {
        struct pass *pass = &plan->passes[i];
        struct mla_job sub = *job;
        sub.requests = plan->parts + pass->first;
        sub.num_requests = pass->count;
        mla_status status = mla_mqa_prepare(&sub, &pass->attention);
        if (status != MLA_OK)
            return status;
        int64_t splits = mla_mqa_splits(pass->attention);
        size_t bytes = mla_mqa_part_bytes(pass->attention);
        job->num_splits = splits > job->num_splits ? splits : job->num_splits;
        plan->part_bytes = bytes > plan->part_bytes ? bytes : plan->part_bytes;
    }
    return MLA_OK;
}

mla_status mla_mqa_latent_prepare(struct mla_job *job)
{
    struct plan *plan = mla_alloc(1, sizeof *plan);
    int before;
    job->data = plan;
    job->num_splits = 1;
    if (plan) {
        plan->parts = mla_alloc((size_t)cut(job, plan, NULL), sizeof *plan->parts);
        plan->passes = mla_alloc((size_t)plan->num_passes, sizeof *plan->passes);
    }
    mla_status status = MLA_OK;
    if (!plan || !plan->parts || !plan->passes)
        status = mla_fail(MLA_ERR_MEMORY,
                          "mla_plan_create: cannot allocate a table of %" PRId64 " requests",
                          job->num_requests);
    if (status == MLA_OK) {
        cut(job, plan, plan->parts);
        status = mla_cuda_enter(job->context, &before);
    }
    if (status == MLA_OK) {
        status = mla_blas_open(job->context->data);
        mla_cuda_leave(job->context, before);
    }
    if (status == MLA_OK)
        status = prepare_passes(job, plan);
    if (status != MLA_OK) {
        mla_mqa_latent_release(job);
        return status;
    }
    job->rows_per_pass = plan->rows;
    job->workspace_bytes = layout_of(job->problem, plan).total;
    return MLA_OK;
}

/* --------------------------------------------------------------------- run */

static void set(int64_t out[2], const mla_tensor *t, int64_t columns, int64_t width)
{
    out[1] = mla_stride1(t, width);
    out[0] = mla_stride0(t, columns * out[1]);
}

/* Adjoining parts of a pass are projected by one product. Calls for each such run of rows. */
static mla_status each_run(const struct mla_job *job, const struct pass *pass,
                           mla_status (*call)(const struct mla_job *, const struct pass *,
                                              const mla_tensors *, char *, int64_t, int64_t,
                                              void *),
                           const mla_tensors *t, char *workspace, void *stream)
{
    const struct plan *plan = job->data;
    const struct mla_request *parts = plan->parts + pass->first;
    mla_status status = MLA_OK;
    for (int64_t i = 0; status == MLA_OK && i < pass->count;) {
        int64_t row = parts[i].q_start, end = row;
        for (; i < pass->count && parts[i].q_start == end; i++)
            end += parts[i].query_len;
        status = call(job, pass, t, workspace, row, end - row, stream);
    }
    return status;
}

static mla_status absorb(const struct mla_job *job, const struct pass *pass, const mla_tensors *t,
                         char *workspace, int64_t row, int64_t rows, void *stream)
{
    const mla_problem *p = job->problem;
    struct layout l = layout_of(p, job->data);
    int64_t rank = p->kv_lora_rank, width = rank + p->qk_rope_dim;
    int64_t q[2], pe[2], uk[2];
    set(q, &t->q_nope, p->heads_q, p->qk_nope_dim);
    set(pe, &t->q_pe, p->heads_q, p->qk_rope_dim);
    set(uk, &t->w_uk, p->qk_nope_dim, rank);
    uint16_t *to =
        (uint16_t *)(void *)(workspace + l.q) + (row - pass->first_row) * p->heads_q * width;
    const struct mla_gemm product = {.m = rank,
                                     .n = rows,
                                     .k = p->qk_nope_dim,
                                     .batch = p->heads_q,
                                     .a = t->w_uk.data,
                                     .lda = uk[1],
                                     .step_a = uk[0],
                                     .b = (const uint16_t *)t->q_nope.data + row * q[0],
                                     .ldb = q[0],
                                     .step_b = q[1],
                                     .c = to,
                                     .ldc = p->heads_q * width,
                                     .step_c = width,
                                     .in = p->q_dtype,
                                     .out = p->q_dtype};
    mla_status status = mla_blas_run(job->context->data, &product, 1, workspace + l.blas, stream);
    if (status != MLA_OK || p->qk_rope_dim == 0)
        return status;
    struct mla_spread_args a = {
        .in = (const uint16_t *)t->q_pe.data + row * pe[0],
        .out = to + rank,
        .rows = rows,
        .heads = (int32_t)p->heads_q,
        .width = (int32_t)p->qk_rope_dim,
        .in_stride = {pe[0], pe[1]},
        .out_stride = {p->heads_q * width, width},
    };
    int64_t threads = rows * p->heads_q * ((p->qk_rope_dim + 7) / 8);
    unsigned blocks = (unsigned)((threads + MLA_LATENT_THREADS - 1) / MLA_LATENT_THREADS);
    void *args[] = {&a};
    MLA_CUDA(cudaLaunchKernel(mla_spread_function(), (dim3){blocks, 1, 1},
                              (dim3){MLA_LATENT_THREADS, 1, 1}, args, 0, stream));
    return MLA_OK;
}

static mla_status expand(const struct mla_job *job, const struct pass *pass, const mla_tensors *t,
                         char *workspace, int64_t row, int64_t rows, void *stream)
{
    const mla_problem *p = job->problem;
    struct layout l = layout_of(p, job->data);
    int64_t rank = p->kv_lora_rank, uv[2], out[2];
    set(uv, &t->w_uv, rank, p->v_dim);
    set(out, &t->out, p->heads_q, p->v_dim);
    const struct mla_gemm product = {.m = p->v_dim,
                                     .n = rows,
                                     .k = rank,
                                     .batch = p->heads_q,
                                     .a = t->w_uv.data,
                                     .lda = uv[1],
                                     .step_a = uv[0],
                                     .b = workspace + l.latent +
                                          (row - pass->first_row) * p->heads_q * rank * 2,
                                     .ldb = p->heads_q * rank,
                                     .step_b = rank,
                                     .c = (char *)t->out.data +
                                          row * out[0] * (int64_t)mla_dtype_bytes(p->out_dtype),
                                     .ldc = out[0],
                                     .step_c = out[1],
                                     .in = p->q_dtype,
                                     .out = p->out_dtype};
    return mla_blas_run(job->context->data, &product, 1, workspace + l.blas, stream);
}

static mla_status attend(const struct mla_job *job, const struct pass *pass, const mla_tensors *t,
                         char *workspace, void *stream)
{
    const mla_problem *p = job->problem;
    struct layout l = layout_of(p, job->data);
    int64_t width = p->kv_lora_rank + p->qk_rope_dim;
    mla_tensors its = *t;
    if (pass->by && t->seq_lens_kv) {
        struct mla_shorten_args a = {.in = t->seq_lens_kv,
                                     .out = (int32_t *)(void *)(workspace + l.lengths),
                                     .count = (int32_t)p->batch,
                                     .index = (int32_t)pass->index,
                                     .by = (int32_t)pass->by};
        unsigned blocks = (unsigned)((p->batch + MLA_LATENT_THREADS - 1) / MLA_LATENT_THREADS);
        void *args[] = {&a};
        MLA_CUDA(cudaLaunchKernel(mla_shorten_function(), (dim3){blocks, 1, 1},
                                  (dim3){MLA_LATENT_THREADS, 1, 1}, args, 0, stream));
        its.seq_lens_kv = a.out;
    }
    /* Buffers begin with the pass's first row; the kernels count rows of the batch. */
    mla_tensor q = {(void *)((uintptr_t)(workspace + l.q) -
                             (uintptr_t)(pass->first_row * p->heads_q * width * 2)),
                    {0, 0}};
    mla_tensor out = {(void *)((uintptr_t)(workspace + l.latent) -
                               (uintptr_t)(pass->first_row * p->heads_q * p->kv_lora_rank * 2)),
                      {0, 0}};
    return mla_mqa_launch(job, pass->attention, &its, &q, &out, p->q_dtype, workspace + l.parts,
                          stream);
}

mla_status mla_mqa_latent_run(const struct mla_job *job, const mla_tensors *t, void *workspace,
                              void *stream)
{
    const struct plan *plan = job->data;
    int before;
    mla_status status = mla_cuda_enter(job->context, &before);
    if (status != MLA_OK)
        return status;
    for (int64_t i = 0; status == MLA_OK && i < plan->num_passes; i++) {
        const struct pass *pass = &plan->passes[i];
        mla_trace_part("project", stream);
        status = each_run(job, pass, absorb, t, workspace, stream);
        mla_trace_part("attention", stream);
        if (status == MLA_OK)
            status = attend(job, pass, t, workspace, stream);
        mla_trace_part("project", stream);
        if (status == MLA_OK)
            status = each_run(job, pass, expand, t, workspace, stream);
    }
    mla_cuda_leave(job->context, before);
    return status;
}

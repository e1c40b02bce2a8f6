/* SPDX-License-Identifier: Apache-2.0 */
/* A case on a CUDA device. */
#include "device_case.h"
#include "try.h"

#include "common/format.h"
#include "common/kernel.h"

#ifndef MLA_WITH_CUDA

mla_status mla_device_case_open(int device, const mla_plan *plan, const struct mla_case *k,
                                const struct mla_device_outputs *outputs,
                                struct mla_device_case **out)
{
    (void)device, (void)plan, (void)k, (void)outputs;
    *out = NULL;
    return mla_fail(MLA_ERR_NO_DEVICE, "this build has no CUDA backend");
}

mla_status mla_device_case_run(struct mla_device_case *c, double *seconds)
{
    (void)c, (void)seconds;
    return mla_fail(MLA_ERR_NO_DEVICE, "this build has no CUDA backend");
}

const mla_tensors *mla_device_case_tensors(const struct mla_device_case *c)
{
    (void)c;
    return NULL;
}

void mla_device_case_free(struct mla_device_case *c)
{
    (void)c;
}

#else

#include <string.h>

enum { MOST_BUFFERS = 24, GUARD_BYTES = 1024 };

struct output {
    void *device, *host;
    size_t bytes;
};

struct mla_device_case {
    int device;
    const mla_plan *plan;
    mla_tensors tensors;
    void *buffers[MOST_BUFFERS];
    int num_buffers;
    struct output outputs[3];
    int num_outputs;
    void *workspace;
    size_t workspace_bytes;
    cudaStream_t stream;
    cudaEvent_t start, stop;
};

static mla_status buffer(struct mla_device_case *c, size_t bytes, void **out)
{
    TRY_CUDA(cudaMalloc(out, bytes ? bytes : 1));
    c->buffers[c->num_buffers++] = *out;
    return MLA_OK;
}

/* A copy of `bytes` bytes at *data, whose address *data becomes. */
static mla_status move(struct mla_device_case *c, const void *host, size_t bytes, const void **data)
{
    void *device;
    if (!host)
        return MLA_OK;
    mla_status status = buffer(c, bytes, &device);
    if (status != MLA_OK)
        return status;
    TRY_CUDA(cudaMemcpy(device, host, bytes, cudaMemcpyHostToDevice));
    TRY_CUDA(
        cudaStreamSynchronize(cudaStreamLegacy)); /* a run's stream does not wait for that one */
    *data = device;
    return MLA_OK;
}

/* [rows, columns, width] with the tensor's strides. */
static mla_status move_tensor(struct mla_device_case *c, mla_tensor *t, int64_t rows,
                              int64_t columns, int64_t width, size_t item)
{
    int64_t inner = mla_stride1(t, width), outer = mla_stride0(t, columns * inner);
    int64_t elements = 0;
    if (rows > 0 && columns > 0)
        elements = (rows - 1) * outer + (columns - 1) * inner + width;
    const void *data = t->data;
    mla_status status = move(c, t->data, (size_t)elements * item, &data);
    t->data = (void *)data;
    return status;
}

static mla_status move_cache(struct mla_device_case *c, const mla_problem *p, int64_t keys)
{
    mla_tensors *t = &c->tensors;
    bool packed = mla_cache_is_packed(p->cache_format);
    size_t item = packed ? 1 : mla_dtype_bytes(mla_cache_dtype(p->cache_format));
    int64_t row = (int64_t)mla_cache_row_bytes(p->cache_format, p->kv_lora_rank, p->qk_rope_dim);
    mla_status status = move_tensor(c, &t->kv_c, keys, 1, p->kv_lora_rank, item);
    if (status == MLA_OK)
        status = move_tensor(c, &t->k_pe, keys, 1, p->qk_rope_dim, item);
    if (status == MLA_OK)
        status =
            move_tensor(c, &t->kv_cache, p->num_pages, p->page_size, row / (int64_t)item, item);
    if (status == MLA_OK)
        status = move_tensor(c, &t->page_table, p->batch, 1, p->max_pages, 4);
    return status;
}

static mla_status move_lists(struct mla_device_case *c, const mla_problem *p)
{
    mla_tensors *t = &c->tensors;
    int64_t total = mla_total_q(p), longest = 0;
    const void *data;
    for (int64_t b = 0; b < p->batch; b++)
        longest = p->seq_lens_kv[b] > longest ? p->seq_lens_kv[b] : longest;
    mla_status status = move_tensor(c, &t->mask, total, 1, (longest + 31) / 32, 4);
    if (status == MLA_OK)
        status = move_tensor(c, &t->topk_indices, total, 1, p->topk, 4);
    data = t->topk_lens;
    if (status == MLA_OK)
        status = move(c, t->topk_lens, (size_t)total * 4, &data);
    t->topk_lens = data;
    data = t->attn_sink;
    if (status == MLA_OK)
        status = move(c, t->attn_sink, (size_t)p->heads_q * 4, &data);
    t->attn_sink = data;
    data = t->seq_lens_kv;
    if (status == MLA_OK)
        status = move(c, t->seq_lens_kv, (size_t)p->batch * 4, &data);
    t->seq_lens_kv = data;
    return status;
}

static mla_status move_inputs(struct mla_device_case *c, const mla_problem *p)
{
    mla_tensors *t = &c->tensors;
    int64_t total = mla_total_q(p), keys = 0, heads = p->heads_q;
    size_t q = mla_dtype_bytes(p->q_dtype), kv = mla_dtype_bytes(p->kv_dtype);
    for (int64_t b = 0; b < p->batch; b++)
        keys += p->seq_lens_kv[b];
    mla_status status = MLA_OK;
    if (p->form == MLA_FORM_LATENT) {
        status = move_tensor(c, &t->q_nope, total, heads, p->qk_nope_dim, q);
        if (status == MLA_OK)
            status = move_tensor(c, &t->q_pe, total, heads, p->qk_rope_dim, q);
        if (status == MLA_OK)
            status = move_tensor(c, &t->w_uk, heads, p->qk_nope_dim, p->kv_lora_rank, q);
        if (status == MLA_OK)
            status = move_tensor(c, &t->w_uv, heads, p->kv_lora_rank, p->v_dim, q);
    } else {
        status = move_tensor(c, &t->q, total, heads, mla_d_qk(p), q);
    }
    if (status == MLA_OK && p->form == MLA_FORM_EXPANDED) {
        status = move_tensor(c, &t->k, keys, p->heads_kv, mla_d_qk(p), kv);
        if (status == MLA_OK)
            status = move_tensor(c, &t->v, keys, p->heads_kv, p->v_dim, kv);
    } else if (status == MLA_OK) {
        status = move_cache(c, p, keys);
    }
    return status == MLA_OK ? move_lists(c, p) : status;
}

static mla_status add_output(struct mla_device_case *c, mla_tensor *t, int64_t elements,
                             mla_dtype dtype, void *host)
{
    struct output *o = &c->outputs[c->num_outputs];
    *t = (mla_tensor){0};
    if (!host)
        return MLA_OK;
    o->host = host;
    o->bytes = (size_t)elements * mla_dtype_bytes(dtype);
    mla_status status = buffer(c, o->bytes + GUARD_BYTES, &o->device);
    c->num_outputs += status == MLA_OK;
    t->data = o->device;
    return status;
}

static mla_status prepare(struct mla_device_case *c, const struct mla_case *k,
                          const struct mla_device_outputs *o)
{
    const mla_problem *p = &k->problem;
    int64_t rows = mla_total_q(p) * p->heads_q;
    TRY_CUDA(cudaSetDevice(c->device));
    TRY_CUDA(cudaStreamCreateWithFlags(&c->stream, cudaStreamNonBlocking));
    TRY_CUDA(cudaEventCreate(&c->start));
    TRY_CUDA(cudaEventCreate(&c->stop));
    c->tensors = k->tensors;
    mla_status status = move_inputs(c, p);
    if (status == MLA_OK)
        status = add_output(c, &c->tensors.out, rows * mla_d_v(p), o->out_dtype, o->out);
    if (status == MLA_OK)
        status = add_output(c, &c->tensors.lse, rows, o->lse_dtype, o->lse);
    if (status == MLA_OK)
        status = add_output(c, &c->tensors.max_logits, rows, o->lse_dtype, o->max_logits);
    c->workspace_bytes = mla_plan_workspace_bytes(c->plan);
    if (status == MLA_OK)
        status = buffer(c, c->workspace_bytes + GUARD_BYTES, &c->workspace);
    return status;
}

mla_status mla_device_case_open(int device, const mla_plan *plan, const struct mla_case *k,
                                const struct mla_device_outputs *outputs,
                                struct mla_device_case **out)
{
    struct mla_device_case *c = mla_alloc(1, sizeof *c);
    *out = NULL;
    if (!c)
        return mla_fail(MLA_ERR_MEMORY, "device: no memory for a case");
    c->device = device;
    c->plan = plan;
    mla_status status = prepare(c, k, outputs);
    if (status != MLA_OK) {
        mla_device_case_free(c);
        return status;
    }
    *out = c;
    return MLA_OK;
}

static mla_status check_guard(const char *what, const void *device, size_t bytes)
{
    unsigned char guard[GUARD_BYTES];
    TRY_CUDA(cudaMemcpy(guard, (const char *)device + bytes, GUARD_BYTES, cudaMemcpyDeviceToHost));
    for (int i = 0; i < GUARD_BYTES; i++)
        if (guard[i] != 0xFF)
            return mla_fail(MLA_ERR_DEVICE, "%s: the run wrote byte %d behind its end", what, i);
    return MLA_OK;
}

mla_status mla_device_case_run(struct mla_device_case *c, double *seconds)
{
    float ms;
    TRY_CUDA(cudaSetDevice(c->device));
    TRY_CUDA(cudaMemsetAsync(c->workspace, 0xFF, c->workspace_bytes + GUARD_BYTES, c->stream));
    for (int i = 0; i < c->num_outputs; i++)
        TRY_CUDA(cudaMemsetAsync(c->outputs[i].device, 0xFF, c->outputs[i].bytes + GUARD_BYTES,
                                 c->stream));
    TRY_CUDA(cudaEventRecord(c->start, c->stream));
    mla_status status = mla_run(c->plan, &c->tensors, c->workspace, c->workspace_bytes, c->stream);
    if (status != MLA_OK)
        return status;
    TRY_CUDA(cudaEventRecord(c->stop, c->stream));
    TRY_CUDA(cudaStreamSynchronize(c->stream));
    TRY_CUDA(cudaEventElapsedTime(&ms, c->start, c->stop));
    *seconds = ms * 1e-3;
    for (int i = 0; i < c->num_outputs; i++) {
        const struct output *o = &c->outputs[i];
        TRY_CUDA(cudaMemcpy(o->host, o->device, o->bytes, cudaMemcpyDeviceToHost));
        status = check_guard("outputs", o->device, o->bytes);
        if (status != MLA_OK)
            return status;
    }
    return check_guard("workspace", c->workspace, c->workspace_bytes);
}

const mla_tensors *mla_device_case_tensors(const struct mla_device_case *c)
{
    return &c->tensors;
}

void mla_device_case_free(struct mla_device_case *c)
{
    if (!c)
        return;
    for (int i = 0; i < c->num_buffers; i++)
        cudaFree(c->buffers[i]);
    if (c->start)
        cudaEventDestroy(c->start);
    if (c->stop)
        cudaEventDestroy(c->stop);
    if (c->stream)
        cudaStreamDestroy(c->stream);
    mla_free(c);
}

#endif

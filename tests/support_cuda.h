/* SPDX-License-Identifier: Apache-2.0 */
/* What the tests on a CUDA device share: checked calls, memory on both sides, random numbers, and a
 * case whose tensors lie on the device and whose contents can change under fixed addresses. */
#ifndef MLA_TESTS_SUPPORT_CUDA_H
#define MLA_TESTS_SUPPORT_CUDA_H

#include "cuda_calls.h"

#include "common/format.h"
#include "common/kernel.h"
#include "common/tool/case.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Host memory, aligned to 256. */
static inline void *allocate(size_t bytes)
{
    void *p = aligned_alloc(256, (bytes + 511) / 256 * 256);
    if (!p) {
        printf("no memory for %zu bytes\n", bytes);
        exit(1);
    }
    return p;
}

static inline void *device(size_t bytes)
{
    void *p;
    CUDA(cudaMalloc(&p, bytes + 256));
    return p;
}

static inline void *upload(const void *from, size_t bytes)
{
    void *p = device(bytes);
    CUDA(cudaMemcpy(p, from, bytes, cudaMemcpyHostToDevice));
    return p;
}

static inline void download(void *to, const void *from, size_t bytes)
{
    CUDA(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost));
}

/* A CUDA and a CPU context, or the reason why this test is skipped (false). */
static inline bool open_both(mla_context **cuda, mla_context **cpu)
{
    const mla_context_options options = {MLA_BACKEND_CUDA, 0, 0};
    if (mla_context_create(&options, cuda) != MLA_OK) {
        printf("skipped: %s\n", mla_last_error());
        return false;
    }
    OK(mla_context_create(NULL, cpu));
    return true;
}

/* ------------------------------------------------------------------- cases */

enum { CASE_PARTS = 16 };

/* Inputs of a case on the device, and outputs. */
struct device_inputs {
    mla_tensors tensors;
    size_t bytes[CASE_PARTS]; /* of each part, 0 = absent */
};

/* Part i of the tensors: where its pointer lies, and its bytes. Packed tensors only, as generated
 * cases have them. */
static inline void **case_part(const mla_problem *p, mla_tensors *t, int i, size_t *bytes)
{
    int64_t rows = mla_total_q(p), keys = 0, heads = p->heads_q, longest = 0;
    for (int64_t b = 0; b < p->batch; b++) {
        keys += p->seq_lens_kv[b];
        longest = p->seq_lens_kv[b] > longest ? p->seq_lens_kv[b] : longest;
    }
    bool latent = p->form == MLA_FORM_LATENT;
    bool packed = p->form != MLA_FORM_EXPANDED && mla_cache_is_packed(p->cache_format);
    size_t q = mla_dtype_bytes(p->q_dtype), kv = mla_dtype_bytes(p->kv_dtype);
    size_t item = packed || p->form == MLA_FORM_EXPANDED
                      ? 1
                      : mla_dtype_bytes(mla_cache_dtype(p->cache_format));
    size_t row = mla_cache_row_bytes(p->cache_format, p->kv_lora_rank, p->qk_rope_dim);
    size_t sizes[CASE_PARTS] = {
        (size_t)(rows * heads * p->qk_nope_dim) * q,
        (size_t)(rows * heads * p->qk_rope_dim) * q,
        (size_t)(heads * p->qk_nope_dim * p->kv_lora_rank) * q,
        (size_t)(heads * p->kv_lora_rank * p->v_dim) * q,
        latent ? 0 : (size_t)(rows * heads * mla_d_qk(p)) * q,
        (size_t)(keys * p->heads_kv * mla_d_qk(p)) * kv,
        (size_t)(keys * p->heads_kv * p->v_dim) * kv,
        (size_t)(keys * p->kv_lora_rank) * item,
        (size_t)(keys * p->qk_rope_dim) * item,
        (size_t)(p->num_pages * p->page_size) * row,
        (size_t)(p->batch * p->max_pages) * 4,
        (size_t)p->batch * 4,
        (size_t)(rows * ((longest + 31) / 32)) * 4,
        (size_t)(rows * p->topk) * 4,
        (size_t)rows * 4,
        (size_t)heads * 4,
    };
    void **parts[CASE_PARTS] = {&t->q_nope.data,
                                &t->q_pe.data,
                                &t->w_uk.data,
                                &t->w_uv.data,
                                &t->q.data,
                                &t->k.data,
                                &t->v.data,
                                &t->kv_c.data,
                                &t->k_pe.data,
                                &t->kv_cache.data,
                                &t->page_table.data,
                                (void **)(uintptr_t)&t->seq_lens_kv,
                                &t->mask.data,
                                &t->topk_indices.data,
                                (void **)(uintptr_t)&t->topk_lens,
                                (void **)(uintptr_t)&t->attn_sink};
    *bytes = *parts[i] ? sizes[i] : 0;
    return parts[i];
}

/* Copies the inputs of a case to the device; load again to change contents under fixed
 * addresses (shapes must be equal). */
static inline void load_inputs(struct device_inputs *d, const struct mla_case *k)
{
    mla_tensors host = k->tensors;
    for (int i = 0; i < CASE_PARTS; i++) {
        size_t bytes, ours;
        void *from = *case_part(&k->problem, &host, i, &bytes);
        void **to = case_part(&k->problem, &d->tensors, i, &ours);
        if (!from)
            continue;
        if (!*to)
            *to = device(bytes);
        CUDA(cudaMemcpy(*to, from, bytes, cudaMemcpyHostToDevice));
    }
}

static inline void free_inputs(struct device_inputs *d, const mla_problem *p)
{
    for (int i = 0; i < CASE_PARTS; i++) {
        size_t bytes;
        CUDA(cudaFree(*case_part(p, &d->tensors, i, &bytes)));
    }
}

#endif

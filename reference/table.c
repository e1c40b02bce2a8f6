/* SPDX-License-Identifier: Apache-2.0 */
/* The CPU backend: its kernel rows, its context and the oracle as a kernel. */
#include "reference/attend.h"
#include "reference/panel.h"

#include "common/format.h"
#include "common/status.h"

#include <omp.h>
#include <stdio.h>
#include <string.h>
#ifdef __x86_64__
#include <cpuid.h>
#endif

#define ALL_FORMATS                                                                                \
    (MLA_BIT(MLA_CACHE_BF16) | MLA_BIT(MLA_CACHE_F16) | MLA_BIT(MLA_CACHE_F32) |                   \
     MLA_BIT(MLA_CACHE_FP8_DS_MLA) | MLA_BIT(MLA_CACHE_MODEL1) | MLA_BIT(MLA_CACHE_V41) |          \
     MLA_BIT(MLA_CACHE_NVFP4_DS_MLA))
#define MHA_FORMS (MLA_BIT(MLA_FORM_LATENT) | MLA_BIT(MLA_FORM_EXPANDED))
#define MQA_FORMS (MLA_BIT(MLA_FORM_LATENT) | MLA_BIT(MLA_FORM_ABSORBED))

/* ---------------------------------------------------- the oracle as a kernel */

/* Doubles that a thread of the oracle needs: its scratch and a row of out. */
static size_t naive_slab(const struct mla_job *job)
{
    int64_t n = mla_attend_naive_scratch(job->problem) + mla_d_v(job->problem);
    return (size_t)(n + 7) / 8 * 8 * sizeof(double);
}

static mla_status naive_prepare(struct mla_job *job)
{
    job->num_splits = 1;
    job->rows_per_pass = 0;
    for (int64_t k = 0; k < job->num_requests; k++)
        if (job->requests[k].query_len > job->rows_per_pass)
            job->rows_per_pass = job->requests[k].query_len;
    job->workspace_bytes = naive_slab(job) * (size_t)job->context->threads;
    return MLA_OK;
}

static void naive_row(const struct mla_job *job, const mla_tensors *t, const struct mla_request *r,
                      int64_t row, int64_t head, double *slab)
{
    const mla_problem *p = job->problem;
    int64_t d_v = mla_d_v(p);
    double lse, max, *out = slab, *scratch = slab + d_v;
    mla_attend_naive_in(p, t, r, row, head, out, &lse, &max, scratch);
    mla_store_f64(p->out_dtype, mla_element(&t->out, p->out_dtype, p->heads_q, d_v, row, head), d_v,
                  out);
    if (p->wants_lse)
        mla_store_lse(&t->lse, p->out_dtype, p->heads_q, row, head, lse);
    if (p->wants_max_logits)
        mla_store_lse(&t->max_logits, p->out_dtype, p->heads_q, row, head, max);
}

static mla_status naive_run(const struct mla_job *job, const mla_tensors *tensors, void *workspace,
                            void *stream)
{
    (void)stream;
    size_t slab = naive_slab(job);
    int64_t heads = job->problem->heads_q;
    for (int64_t k = 0; k < job->num_requests; k++) {
        const struct mla_request *r = &job->requests[k];
#pragma omp parallel for num_threads(job->context->threads) schedule(dynamic, 1)
        for (int64_t item = 0; item < r->query_len * heads; item++)
            naive_row(job, tensors, r, r->q_start + item / heads, item % heads,
                      (double *)((char *)workspace + (size_t)omp_get_thread_num() * slab));
    }
    return MLA_OK;
}

/* --------------------------------------------------------------------- rows */

/* All production rows share one file and one interface; they differ in route and forms. */
#define ROW(label, route_bits, form_bits)                                                          \
    {                                                                                              \
        .name = label, .backend = MLA_BACKEND_CPU, .architecture = "cpu", .proof = MLA_PROOF_CPU,  \
        .routes = route_bits, .forms = form_bits, .formats = ALL_FORMATS,                          \
        .prepare = mla_attend_prepare, .release = mla_attend_release, .run = mla_attend_run        \
    }

#define ROW_AVX2(label, route_bits, form_bits)                                                     \
    {                                                                                              \
        .name = label, .backend = MLA_BACKEND_CPU, .architecture = "cpu avx2",                     \
        .proof = MLA_PROOF_CPU, .routes = route_bits, .forms = form_bits, .formats = ALL_FORMATS,  \
        .supports = mla_attend_supports_panels, .prepare = mla_attend_prepare_panels,              \
        .release = mla_attend_release, .run = mla_attend_run                                       \
    }

#define EACH_ROUTE(row, label)                                                                     \
    row("dense_mha_" label, MLA_BIT(MLA_ROUTE_DENSE_MHA), MHA_FORMS),                              \
        row("masked_mha_" label, MLA_BIT(MLA_ROUTE_MASKED_MHA), MHA_FORMS),                        \
        row("sparse_mqa_" label, MLA_BIT(MLA_ROUTE_SPARSE_MQA), MQA_FORMS),                        \
        row("dense_mqa_" label, MLA_BIT(MLA_ROUTE_DENSE_MQA), MQA_FORMS)

/* Panels where the processor and the precision allow them, BLAS everywhere. */
static const struct mla_kernel rows[] = {EACH_ROUTE(ROW_AVX2, "avx2"), EACH_ROUTE(ROW, "cpu")};

/* Last: a row above takes every shape, so this one runs only when it is named. fp64 always. */
static const struct mla_kernel naive = {
    .name = "naive_cpu",
    .backend = MLA_BACKEND_CPU,
    .architecture = "cpu",
    .proof = MLA_PROOF_CPU,
    .routes = MLA_BIT(MLA_ROUTE_DENSE_MHA) | MLA_BIT(MLA_ROUTE_MASKED_MHA) |
              MLA_BIT(MLA_ROUTE_SPARSE_MQA) | MLA_BIT(MLA_ROUTE_DENSE_MQA),
    .forms = MHA_FORMS | MQA_FORMS,
    .formats = ALL_FORMATS,
    .prepare = naive_prepare,
    .run = naive_run,
};

static const struct mla_kernel *const kernels[] = {&rows[0], &rows[1], &rows[2], &rows[3], &rows[4],
                                                   &rows[5], &rows[6], &rows[7], &naive,   NULL};

/* ------------------------------------------------------------------ context */

/* Name of the processor, from cpuid. */
static const char *processor(void)
{
#ifdef __x86_64__
    static _Thread_local unsigned words[13];
    for (unsigned leaf = 0; leaf < 3; leaf++)
        if (!__get_cpuid(0x80000002u + leaf, &words[4 * leaf], &words[4 * leaf + 1],
                         &words[4 * leaf + 2], &words[4 * leaf + 3]))
            return "x86-64";
    return (const char *)words + strspn((const char *)words, " ");
#else
    return "unknown processor";
#endif
}

static mla_status open_cpu(const mla_context_options *options, mla_context *context)
{
    context->threads = options->threads > 0 ? options->threads : omp_get_max_threads();
    snprintf(context->about, sizeof context->about, "cpu, %d thread%s, %s", context->threads,
             context->threads == 1 ? "" : "s", mla_blas_describe());
    snprintf(context->identity, sizeof context->identity, "%.100s", processor());
    return MLA_OK;
}

static bool runnable(const struct mla_kernel *kernel)
{
    return kernel->prepare != mla_attend_prepare_panels || mla_panel_ops();
}

const struct mla_backend_ops mla_cpu_backend = {
    .backend = MLA_BACKEND_CPU,
    .kernels = kernels,
    .open = open_cpu,
    .merge = mla_merge_cpu,
    .runnable = runnable,
    .cache_write = mla_cache_write_cpu,
    .cache_read = mla_cache_read_cpu,
    .cache_index_write = mla_cache_index_write_cpu,
    .cache_index_read = mla_cache_index_read_cpu,
    .index_workspace = mla_index_workspace_cpu,
    .index_run = mla_index_run_cpu,
    .topk_workspace = mla_topk_workspace_cpu,
    .topk_run = mla_topk_run_cpu,
};

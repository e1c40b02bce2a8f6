/* SPDX-License-Identifier: Apache-2.0 */
/* Exact top-k of rows of scores: the streaming selection of topk.h, and mla_topk_run on the CPU. */
#include <math.h>
#include <omp.h>
#include <string.h>

#include "common/kernel.h"
#include "common/status.h"
#include "reference.h"
#include "topk.h"

/* Scores looked at together before any is taken in; states have room for one chunk. */
enum { CHUNK = 64 };

#define REAL float
#define BITS 32
#define ORDERED uint32_t
#define SUFFIX f32
#include "topk_tmpl.c"

#define REAL double
#define BITS 64
#define ORDERED uint64_t
#define SUFFIX f64
#include "topk_tmpl.c"

struct layout {
    int64_t k;       /* entries that can be filled */
    int64_t threads; /* one state each */
    size_t state_bytes, total;
};

static mla_status layout(const char *function, const mla_context *context, const mla_topk_args *a,
                         struct layout *l)
{
    l->k = a->topk < a->columns ? a->topk : a->columns > 1 ? a->columns : 1;
    l->state_bytes = (size_t)mla_select_capacity(l->k) * sizeof(mla_item_f32);
    l->threads = context->threads < a->rows ? context->threads : a->rows > 1 ? a->rows : 1;
    size_t limit = a->workspace_limit_bytes;
    if (limit && limit < l->state_bytes)
        return mla_fail(MLA_ERR_ARGUMENT,
                        "%s: workspace_limit_bytes: got %zu, want 0 or at least %zu", function,
                        limit, l->state_bytes);
    if (limit && (size_t)l->threads > limit / l->state_bytes)
        l->threads = (int64_t)(limit / l->state_bytes);
    l->total = (size_t)l->threads * l->state_bytes;
    return MLA_OK;
}

mla_status mla_topk_workspace_cpu(const char *function, const mla_context *context,
                                  const mla_topk_args *args, size_t *bytes)
{
    struct layout l = {0};
    mla_status status = layout(function, context, args, &l);
    if (!status)
        *bytes = l.total;
    return status;
}

mla_status mla_topk_run_cpu(const mla_context *context, const mla_topk_args *a, void *workspace,
                            void *stream)
{
    (void)stream;
    struct layout l = {0};
    mla_status status = layout("mla_topk_run", context, a, &l);
    if (status)
        return status;

#pragma omp parallel for num_threads((int)l.threads) schedule(dynamic, 4)
    for (int64_t r = 0; r < a->rows; r++) {
        int64_t start = a->key_start && a->key_start[r] > 0 ? a->key_start[r] : 0;
        int64_t end = a->key_end && a->key_end[r] < a->columns ? a->key_end[r] : a->columns;
        const float *in = a->in.data;
        float *scores = a->scores.data;
        struct mla_select_out out = {
            .indices = (int32_t *)a->indices.data + r * mla_stride0(&a->indices, a->topk),
            .scores = scores ? scores + r * mla_stride0(&a->scores, a->topk) : NULL,
            .len = a->topk_lens ? a->topk_lens + r : NULL,
            .k = a->topk,
            .base = a->relative ? start : 0,
        };
        struct mla_select_f32 state;
        mla_select_begin_f32(&state, l.k,
                             (char *)workspace + (size_t)omp_get_thread_num() * l.state_bytes);
        if (start < end)
            mla_select_push_f32(&state, in + r * mla_stride0(&a->in, a->columns) + start, start,
                                end - start);
        mla_select_end_f32(&state, a->order, &out);
    }
    return MLA_OK;
}

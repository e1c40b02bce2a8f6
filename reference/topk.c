/* SPDX-License-Identifier: Apache-2.0 */
/* Exact top-k of rows of scores: the streaming selection of topk.h, and the public call. */
#include <math.h>
#include <omp.h>
#include <string.h>

#include "common/kernel.h"
#include "common/status.h"
#include "index_check.h"
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

static mla_status check(const char *function, const mla_context *context, const mla_topk_args *a,
                        struct layout *l)
{
    mla_status status = mla_check_backend(function, context, a);
    if (status)
        return status;
    const struct mla_range ranges[] = {
        {"rows", a->rows, 0, INT32_MAX, "0 to 2147483647"},
        {"columns", a->columns, 0, INT32_MAX, "0 to 2147483647"},
        {"topk", a->topk, 1, INT32_MAX, "1 to 2147483647"},
        {"order", (int64_t)a->order, 0, MLA_TOPK_ASCENDING, "a mla_topk_order"},
        {"relative", a->relative && !a->key_start, 0, 0, "false where key_start is not given"},
    };
    status = mla_check_ranges(function, ranges, sizeof ranges / sizeof *ranges);
    if (status)
        return status;
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

mla_status mla_topk_workspace_bytes(const mla_context *context, const mla_topk_args *args,
                                    size_t *bytes)
{
    struct layout l = {0};
    if (!bytes)
        return mla_fail(MLA_ERR_ARGUMENT,
                        "mla_topk_workspace_bytes: bytes: got NULL, want a pointer");
    *bytes = 0;
    mla_status status = check("mla_topk_workspace_bytes", context, args, &l);
    if (!status)
        *bytes = l.total;
    return status;
}

mla_status mla_topk_run(const mla_context *context, const mla_topk_args *a, void *workspace,
                        size_t workspace_bytes, void *stream)
{
    const char *function = "mla_topk_run";
    struct layout l = {0};
    mla_status status = check(function, context, a, &l);
    if (status)
        return status;
    const struct mla_tensor_rule rules[] = {
        {"in", &a->in, sizeof(float), a->rows, 1, a->columns, a->rows && a->columns},
        {"indices", &a->indices, sizeof(int32_t), a->rows, 1, a->topk, a->rows},
        {"scores", &a->scores, sizeof(float), a->rows, 1, a->topk, false},
    };
    status = mla_check_tensors(function, rules, sizeof rules / sizeof *rules);
    if (!status)
        status = mla_check_workspace(function, workspace, workspace_bytes, l.total, stream);
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

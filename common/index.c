/* SPDX-License-Identifier: Apache-2.0 */
/* mla/index.h, the calls that a backend serves: argument checks for all of them, then the
 * backend. */
#include "mla/index.h"

#include "backend.h"
#include "index_check.h"
#include "status.h"

const char *mla_index_format_name(mla_index_format value)
{
    static const char *const names[] = {"f32", "bf16", "fp8", "fp4"};
    return (unsigned)value < 4 ? names[value] : "unknown";
}

size_t mla_index_row_bytes(mla_index_format format, int64_t dim)
{
    bool cached = format == MLA_INDEX_FP8 || format == MLA_INDEX_FP4;
    return cached && dim > 0 ? (size_t)(format == MLA_INDEX_FP8 ? dim : dim / 2) + 4 : 0;
}

/* The backend's table, or NULL and a sentence. */
static const struct mla_backend_ops *find(const char *function, const mla_context *context,
                                          const void *args, mla_status *status)
{
    if (!context || !args) {
        *status = mla_fail(MLA_ERR_ARGUMENT, "%s: %s: got NULL, want a pointer", function,
                           context ? "args" : "context");
        return NULL;
    }
    const struct mla_backend_ops *ops = mla_backend_ops_of(context->backend);
    if (ops && ops->index_run && ops->topk_run)
        return ops;
    *status = mla_fail(MLA_ERR_UNSUPPORTED, "%s: context: got backend %s, want cpu%s", function,
                       mla_backend_name(context->backend), MLA_OR_CUDA);
    return NULL;
}

static mla_status check_stream(const char *function, const mla_context *context, const void *stream)
{
    if (!stream || context->backend != MLA_BACKEND_CPU)
        return MLA_OK;
    return mla_fail(MLA_ERR_ARGUMENT, "%s: stream: got %p, want NULL on the CPU", function, stream);
}

/* ----------------------------------------------------------------- indexer */

static mla_status check_kernel(const char *function, const mla_context *context,
                               const mla_index_args *a)
{
    if (!a->kernel || context->backend != MLA_BACKEND_CPU)
        return MLA_OK;
    return mla_fail(MLA_ERR_ARGUMENT, "%s: kernel: got %s, want NULL on the CPU", function,
                    a->kernel);
}

static mla_status check_lengths(const char *function, const mla_index_args *a, int64_t *longest)
{
    *longest = a->num_keys;
    if (!a->cu_seqlens_q)
        return MLA_OK;
    if (!a->seq_lens_kv)
        return mla_fail(MLA_ERR_ARGUMENT, "%s: seq_lens_kv: got NULL, want %lld lengths", function,
                        (long long)a->batch);
    int64_t total = 0, previous = 0;
    *longest = 0;
    for (int64_t r = 0; r <= a->batch; r++) {
        int64_t start = a->cu_seqlens_q[r];
        if (start < previous || (r == 0 && start != 0) ||
            (r == a->batch && start != a->num_queries))
            return mla_fail(MLA_ERR_ARGUMENT,
                            "%s: cu_seqlens_q[%lld]: got %lld, want an ascending list from 0 to "
                            "num_queries %lld",
                            function, (long long)r, (long long)start, (long long)a->num_queries);
        previous = start;
        if (r == a->batch)
            break;
        if (a->seq_lens_kv[r] < 0)
            return mla_fail(MLA_ERR_ARGUMENT, "%s: seq_lens_kv[%lld]: got %d, want >= 0", function,
                            (long long)r, a->seq_lens_kv[r]);
        total += a->seq_lens_kv[r];
        *longest = a->seq_lens_kv[r] > *longest ? a->seq_lens_kv[r] : *longest;
    }
    if (!a->page_size && total > a->num_keys)
        return mla_fail(MLA_ERR_ARGUMENT,
                        "%s: num_keys: got %lld, want at least the sum of seq_lens_kv, %lld",
                        function, (long long)a->num_keys, (long long)total);
    return MLA_OK;
}

static mla_status check_shape(const char *function, const mla_index_args *a, int64_t *longest)
{
    bool fp4 = a->q_format == MLA_INDEX_FP4 || a->k_format == MLA_INDEX_FP4;
    int64_t most = INT32_MAX, one = a->cu_seqlens_q ? 0 : 1;
    const struct mla_range ranges[] = {
        {"num_queries", a->num_queries, 0, most, "0 to 2147483647"},
        {"heads", a->heads, 1, 4096, "1 to 4096"},
        {"dim", a->dim, 1, 4096, "1 to 4096"},
        {"num_keys", a->num_keys, 0, one ? most : (int64_t)1 << 40,
         one ? "0 to 2147483647" : "0 to 2^40"},
        {"batch", a->batch, 0, one ? 1 : most, one ? "0 or 1 without cu_seqlens_q" : ">= 0"},
        {"q_format", (int64_t)a->q_format, 0, MLA_INDEX_FP4, "a mla_index_format"},
        {"k_format", (int64_t)a->k_format, 0, MLA_INDEX_FP4, "a mla_index_format"},
        {"dim", fp4 ? a->dim : 32, 32, 128, "32, 64, 96 or 128 with fp4"},
        {"dim", fp4 ? a->dim % 32 ? a->dim : 0 : 0, 0, 0, "32, 64, 96 or 128 with fp4"},
        {"page_size", a->page_size, 0, 65536, "0 to 65536"},
        {"num_pages", a->num_pages, 0, most, "0 to 2147483647"},
        {"max_pages", a->max_pages, 0, most, "0 to 2147483647"},
        {"k_format", a->page_size && a->k_format < MLA_INDEX_FP8 ? (int64_t)a->k_format : 0, 0, 0,
         "fp8 or fp4 where paged"},
        {"topk", a->topk, 0, most, "0 to 2147483647"},
        {"order", (int64_t)a->order, 0, MLA_TOPK_ASCENDING, "a mla_topk_order"},
        {"relative", a->relative && !a->key_start, 0, 0, "false where key_start is not given"},
        {"logits_columns", a->logits_columns, 0, most, "0 to 2147483647"},
        {"logits_columns", a->topk || a->logits_columns ? 1 : 0, 1, 1,
         "topk or logits_columns above 0"},
        {"precision", (int64_t)a->precision, 0, MLA_PRECISION_FP64, "a mla_precision"},
    };
    mla_status status = mla_check_ranges(function, ranges, sizeof ranges / sizeof *ranges);
    if (!status)
        status = check_lengths(function, a, longest);
    if (status)
        return status;
    if (a->logits_columns && a->logits_columns < *longest)
        return mla_fail(MLA_ERR_ARGUMENT,
                        "%s: logits_columns: got %lld, want 0 or at least the longest request's "
                        "keys, %lld",
                        function, (long long)a->logits_columns, (long long)*longest);
    if (a->page_size && (*longest + a->page_size - 1) / a->page_size > a->max_pages)
        return mla_fail(MLA_ERR_ARGUMENT,
                        "%s: max_pages: got %lld, want at least %lld for %lld keys", function,
                        (long long)a->max_pages,
                        (long long)((*longest + a->page_size - 1) / a->page_size),
                        (long long)*longest);
    return MLA_OK;
}

static mla_status check_tensors(const char *function, const mla_index_args *a, int64_t longest)
{
    int64_t t = a->num_queries, b = a->cu_seqlens_q ? a->batch : 1, width = a->dim;
    bool any = t > 0, keys = t > 0 && longest > 0, paged = a->page_size > 0;
    bool fp4 = a->q_format == MLA_INDEX_FP4;
    size_t real = a->precision == MLA_PRECISION_FP64 ? sizeof(double) : sizeof(float);
    const size_t align[] = {4, 2, 1, 1};
    int64_t q_width = fp4 ? width / 2 : width;
    int64_t k_width = a->k_format == MLA_INDEX_FP4 ? width / 2 : width;
    int64_t page = a->page_size * (int64_t)mla_index_row_bytes(a->k_format, width);
    mla_tensor k_scale = {(void *)a->k_scale, {0, 0}};
    const struct mla_tensor_rule rules[] = {
        {"q", &a->q, align[a->q_format], t, a->heads, q_width, any},
        {"q_scale", &a->q_scale, 1, t, a->heads, 4, any && fp4},
        {"weights", &a->weights, sizeof(float), t, 1, a->heads, any},
        {"k", &a->k, align[a->k_format], a->num_keys, 1, k_width, keys && !paged},
        {"k_scale", &k_scale, a->k_format == MLA_INDEX_FP4 ? 1 : sizeof(float), 1, 1, 1,
         keys && !paged && a->k_format >= MLA_INDEX_FP8},
        {"k_cache", &a->k_cache, 1, a->num_pages, 1, page, keys && paged && a->num_pages},
        {"page_table", &a->page_table, sizeof(int32_t), b, 1, a->max_pages, keys && paged},
        {"logits", &a->logits, real, t, 1, a->logits_columns, any && a->logits_columns},
        {"indices", &a->indices, sizeof(int32_t), t, 1, a->topk, any && a->topk},
        {"scores", &a->scores, real, t, 1, a->topk, false},
    };
    return mla_check_tensors(function, rules, sizeof rules / sizeof *rules);
}

mla_status mla_index_workspace_bytes(const mla_context *context, const mla_index_args *args,
                                     size_t *bytes)
{
    const char *function = "mla_index_workspace_bytes";
    int64_t longest;
    mla_status status = MLA_OK;
    if (!bytes)
        return mla_fail(MLA_ERR_ARGUMENT, "%s: bytes: got NULL, want a pointer", function);
    *bytes = 0;
    const struct mla_backend_ops *ops = find(function, context, args, &status);
    if (ops)
        status = check_kernel(function, context, args);
    if (ops && !status)
        status = check_shape(function, args, &longest);
    return status ? status : ops->index_workspace(function, context, args, longest, bytes);
}

mla_status mla_index_run(const mla_context *context, const mla_index_args *args, void *workspace,
                         size_t workspace_bytes, void *stream)
{
    const char *function = "mla_index_run";
    int64_t longest;
    size_t want = 0;
    mla_status status = MLA_OK;
    const struct mla_backend_ops *ops = find(function, context, args, &status);
    if (ops)
        status = check_kernel(function, context, args);
    if (ops && !status)
        status = check_shape(function, args, &longest);
    if (!status)
        status = ops->index_workspace(function, context, args, longest, &want);
    if (!status)
        status = check_tensors(function, args, longest);
    if (!status)
        status = check_stream(function, context, stream);
    if (!status)
        status = mla_check_workspace(function, workspace, workspace_bytes, want);
    return status ? status : ops->index_run(context, args, longest, workspace, stream);
}

/* ------------------------------------------------------------- top-k alone */

static mla_status check_topk(const char *function, const mla_topk_args *a)
{
    const struct mla_range ranges[] = {
        {"rows", a->rows, 0, INT32_MAX, "0 to 2147483647"},
        {"columns", a->columns, 0, INT32_MAX, "0 to 2147483647"},
        {"topk", a->topk, 1, INT32_MAX, "1 to 2147483647"},
        {"order", (int64_t)a->order, 0, MLA_TOPK_ASCENDING, "a mla_topk_order"},
        {"relative", a->relative && !a->key_start, 0, 0, "false where key_start is not given"},
    };
    return mla_check_ranges(function, ranges, sizeof ranges / sizeof *ranges);
}

mla_status mla_topk_workspace_bytes(const mla_context *context, const mla_topk_args *args,
                                    size_t *bytes)
{
    const char *function = "mla_topk_workspace_bytes";
    mla_status status = MLA_OK;
    if (!bytes)
        return mla_fail(MLA_ERR_ARGUMENT, "%s: bytes: got NULL, want a pointer", function);
    *bytes = 0;
    const struct mla_backend_ops *ops = find(function, context, args, &status);
    if (ops)
        status = check_topk(function, args);
    return status ? status : ops->topk_workspace(function, context, args, bytes);
}

mla_status mla_topk_run(const mla_context *context, const mla_topk_args *a, void *workspace,
                        size_t workspace_bytes, void *stream)
{
    const char *function = "mla_topk_run";
    size_t want = 0;
    mla_status status = MLA_OK;
    const struct mla_backend_ops *ops = find(function, context, a, &status);
    if (ops)
        status = check_topk(function, a);
    if (!status)
        status = ops->topk_workspace(function, context, a, &want);
    if (status)
        return status;
    const struct mla_tensor_rule rules[] = {
        {"in", &a->in, sizeof(float), a->rows, 1, a->columns, a->rows && a->columns},
        {"indices", &a->indices, sizeof(int32_t), a->rows, 1, a->topk, a->rows},
        {"scores", &a->scores, sizeof(float), a->rows, 1, a->topk, false},
    };
    status = mla_check_tensors(function, rules, sizeof rules / sizeof *rules);
    if (!status)
        status = check_stream(function, context, stream);
    if (!status)
        status = mla_check_workspace(function, workspace, workspace_bytes, want);
    return status ? status : ops->topk_run(context, a, workspace, stream);
}

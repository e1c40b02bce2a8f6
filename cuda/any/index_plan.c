/* SPDX-License-Identifier: Apache-2.0 */
/* Host side of mla_index_run on a device: which engine serves, how the work is cut, and where it
 * lies in the workspace. */
#include "index_plan.h"

#include "index.h"
#include "qualify.h"
#include "status.h"

#include <stdlib.h>
#include <string.h>

static const struct mla_index_engine *const engines[] = {
#ifdef MLA_WITH_SM100
    &mla_index_sm100,
#endif
#ifdef MLA_WITH_SM90
    &mla_index_sm90,
#endif
    &mla_index_any,
};
enum { ENGINES = sizeof engines / sizeof *engines };

/* Buffers take what comes in between two looks at their counts: 1024 items at most. */
enum { SLACK = 1024 };

/* How the work is cut: items, then counts. */
struct plan {
    const struct mla_index_engine *engine;
    int64_t k;        /* entries of a list that can be filled */
    int64_t capacity; /* items of a row's buffer */
    int64_t blocks;   /* at most, of a launch */
    int rows;         /* of a tile, at most */
    size_t total;
};

/* Walks the requests launch by launch: those that follow one another and have tiles of as many
 * rows. */
struct walk {
    int64_t request, first_key;
};

static void request_of(const mla_index_args *a, int64_t i, struct index_request *r)
{
    *r = (struct index_request){.index = (int)i};
    r->query_len = (int)a->num_queries;
    r->seq_len = (int)a->num_keys;
    if (a->cu_seqlens_q) {
        r->q_start = a->cu_seqlens_q[i];
        r->query_len = a->cu_seqlens_q[i + 1] - r->q_start;
        r->seq_len = a->seq_lens_kv[i];
    }
}

static int rows_of(const struct plan *p, int64_t query_len)
{
    int rows = 1;
    while (rows < p->rows && rows < query_len)
        rows *= 2;
    return rows;
}

/* Fills requests, tiles, rows and buffers of the next launch; false at the end. */
static bool next_launch(const mla_index_args *a, const struct plan *p, struct walk *at,
                        struct index_launch *out, int *longest)
{
    int64_t batch = a->cu_seqlens_q ? a->batch : 1;
    out->num_requests = 0;
    out->tiles = 0;
    *longest = 0;
    for (; at->request < batch && out->num_requests < INDEX_REQUESTS; at->request++) {
        struct index_request r;
        request_of(a, at->request, &r);
        r.first_key = at->first_key;
        if (r.query_len > 0) {
            int rows = rows_of(p, r.query_len);
            if (out->num_requests && rows != out->rows)
                break;
            out->rows = rows;
            out->buffers = p->engine->buffers(a, rows);
            r.first_tile = out->tiles;
            out->requests[out->num_requests++] = r;
            out->tiles += (int)((r.query_len + (int64_t)rows - 1) / rows);
            *longest = r.seq_len > *longest ? r.seq_len : *longest;
        }
        at->first_key += r.seq_len;
    }
    return out->num_requests > 0;
}

/* Parts of the keys, so that few tiles fill the device too; a part has 2048 keys at least. */
static int parts_of(const struct index_launch *l, int64_t blocks, int longest)
{
    int64_t most = (longest + INT64_C(2047)) / 2048, parts = l->tiles ? blocks / l->tiles : 1;
    parts = parts < most ? parts : most;
    return parts > 1 ? (int)parts : 1;
}

/* Bytes with the plan's rows, capacity and blocks; blocks shrink to what the launches use. */
static void measure(const mla_index_args *a, struct plan *p)
{
    struct index_launch l = {0};
    struct walk at = {0};
    int longest;
    int64_t buffers = 0;
    while (next_launch(a, p, &at, &l, &longest)) {
        int64_t n = (int64_t)l.tiles * parts_of(&l, p->blocks, longest);
        n = (n < p->blocks ? n : p->blocks) * l.rows * l.buffers;
        buffers = n > buffers ? n : buffers;
    }
    p->total = p->k ? (size_t)buffers * ((size_t)p->capacity * sizeof(uint64_t) + sizeof(int)) : 0;
}

/* The engine that is named, in the call or by MLA_KERNEL where that names an indexer, or the best
 * that takes the call and may be chosen unasked. */
static mla_status choose(const char *function, const mla_context *context,
                         const mla_index_args *args, const struct mla_index_engine **out)
{
    const char *name = args->kernel, *field = "kernel";
    if (!name) {
        name = getenv("MLA_KERNEL");
        field = "MLA_KERNEL";
        if (name && strncmp(name, "index_logits", strlen("index_logits")) != 0)
            name = NULL;
    }
    char why[160] = "";
    for (int i = 0; i < ENGINES; i++) {
        const struct mla_kernel row = {.name = engines[i]->name, .proof = engines[i]->proof};
        *out = engines[i];
        if (name ? strcmp(name, row.name) != 0 : !mla_kernel_trusted(context, &row))
            continue;
        if (engines[i]->supports(context, args, why, sizeof why))
            return MLA_OK;
        if (name)
            return mla_fail(MLA_ERR_UNSUPPORTED,
                            "%s: %s: got %s, which does not take this call: %s", function, field,
                            name, why);
    }
    if (name)
        return mla_fail(MLA_ERR_ARGUMENT, "%s: %s: got %s, want index_logits_any, _sm90 or _sm100",
                        function, field, name);
    return mla_fail(MLA_ERR_UNSUPPORTED, "%s: no kernel takes this call: %s", function, why);
}

static mla_status make_plan(const char *function, const mla_context *context,
                            const mla_index_args *a, int64_t longest, struct plan *p)
{
    const char *const names[] = {"f32", "bf16", "fp8", "fp4"};
    if (a->q_format != MLA_INDEX_BF16 && a->q_format != MLA_INDEX_FP8)
        return mla_fail(MLA_ERR_UNSUPPORTED, "%s: q_format: got %s, want bf16 or fp8 on CUDA",
                        function, names[a->q_format]);
    if (a->k_format != MLA_INDEX_BF16 && a->k_format != MLA_INDEX_FP8)
        return mla_fail(MLA_ERR_UNSUPPORTED, "%s: k_format: got %s, want bf16 or fp8 on CUDA",
                        function, names[a->k_format]);
    if (a->dim > INDEX_DIM)
        return mla_fail(MLA_ERR_UNSUPPORTED, "%s: dim: got %lld, want at most %d on CUDA", function,
                        (long long)a->dim, INDEX_DIM);
    if (a->precision != MLA_PRECISION_FP32)
        return mla_fail(MLA_ERR_UNSUPPORTED, "%s: precision: got fp64, want fp32 on CUDA",
                        function);
    if (longest > INT32_MAX - 1024) /* positions run past the end by some tiles */
        return mla_fail(MLA_ERR_UNSUPPORTED, "%s: %s: got %lld keys, want at most %d on CUDA",
                        function, a->cu_seqlens_q ? "seq_lens_kv" : "num_keys", (long long)longest,
                        INT32_MAX - 1024);
    if (a->num_queries > 1 << 30)
        return mla_fail(MLA_ERR_UNSUPPORTED, "%s: num_queries: got %lld, want at most 2^30 on CUDA",
                        function, (long long)a->num_queries);
    p->k = a->topk < longest ? a->topk : longest;
    if (a->topk && !p->k)
        p->k = 1;
    if (p->k > 1 << 28)
        return mla_fail(MLA_ERR_UNSUPPORTED, "%s: topk: got %lld, want at most 2^28 on CUDA",
                        function, (long long)p->k);
    mla_status status = choose(function, context, a, &p->engine);
    if (status)
        return status;
    int processors = 0;
    cudaError_t error =
        cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, context->device);
    if (error != cudaSuccess)
        return mla_cuda_fail(function, "cudaDeviceGetAttribute", error);
    size_t limit = a->workspace_limit_bytes;
    for (int small = 0; small < 2; small++) {
        p->capacity = mla_index_capacity(p->k, SLACK, small);
        for (p->blocks = processors;; p->blocks /= 2) {
            for (p->rows = p->engine->most_rows(a); p->rows; p->rows /= 2) {
                measure(a, p);
                if (!limit || p->total <= limit)
                    return MLA_OK;
            }
            if (p->blocks <= 1)
                break;
        }
    }
    return mla_fail(MLA_ERR_ARGUMENT, "%s: workspace_limit_bytes: got %zu, want 0 or at least %zu",
                    function, limit, p->total);
}

mla_status mla_cuda_index_workspace(const char *function, const mla_context *context,
                                    const mla_index_args *args, int64_t longest, size_t *bytes)
{
    struct plan p = {0};
    mla_status status = make_plan(function, context, args, longest, &p);
    if (!status)
        *bytes = p.total;
    return status;
}

static void set_inputs(const mla_index_args *args, struct index_launch *a)
{
    a->q = args->q.data;
    a->q_fp8 = args->q_format == MLA_INDEX_FP8;
    a->k_fp8 = args->k_format == MLA_INDEX_FP8;
    int64_t item = a->q_fp8 ? 1 : 2, k_item = a->k_fp8 ? 1 : 2;
    a->heads = (int)args->heads;
    a->dim = (int)args->dim;
    a->q_head = mla_stride1(&args->q, args->dim) * item;
    a->q_row = args->q.stride[0] ? args->q.stride[0] * item : args->heads * a->q_head;
    a->q_wide = ((int64_t)(uintptr_t)a->q | a->q_head | a->q_row) % 16 == 0;
    a->weights = args->weights.data;
    a->weight_row = mla_stride0(&args->weights, args->heads);
    int64_t row = args->dim * k_item;
    a->page_size = (int)args->page_size;
    a->num_pages = (int)args->num_pages;
    if (args->page_size) {
        a->k = args->k_cache.data;
        a->page_bytes = mla_stride0(&args->k_cache, args->page_size * (row + 4));
        a->page_table = args->page_table.data;
        a->table_row = mla_stride0(&args->page_table, args->max_pages);
        int64_t bits = (int64_t)(uintptr_t)a->k | a->page_bytes;
        a->wide = (bits | row) % 16 == 0;
        a->wide_scale = (bits | args->page_size * row) % 4 == 0;
    } else {
        a->k = args->k.data;
        a->k_row = mla_stride0(&args->k, args->dim) * k_item;
        a->k_scale = args->k_scale;
        a->wide = ((int64_t)(uintptr_t)a->k | a->k_row) % 16 == 0;
        a->wide_scale = true;
    }
    a->key_start = args->key_start;
    a->key_end = args->key_end;
    a->causal = args->causal;
    a->relative = args->relative;
}

static void set_outputs(const mla_index_args *args, const struct plan *p, void *workspace,
                        struct index_launch *a)
{
    a->k_list = (int)p->k;
    a->capacity = (int)p->capacity;
    a->topk = args->topk;
    a->index_stride = mla_stride0(&args->indices, args->topk);
    a->score_stride = mla_stride0(&args->scores, args->topk);
    a->ascending = args->order == MLA_TOPK_ASCENDING;
    a->indices = args->indices.data;
    a->lens = args->topk_lens;
    a->scores = args->scores.data;
    a->logits = args->logits_columns ? args->logits.data : NULL;
    a->logits_row = mla_stride0(&args->logits, args->logits_columns);
    a->items = workspace;
}

static cudaError_t launch_all(const mla_index_args *args, const struct plan *p,
                              struct index_launch *a, cudaStream_t stream)
{
    cudaError_t error = cudaSuccess;
    if (a->logits && args->num_queries)
        error = mla_index_fill(a->logits, args->num_queries, args->logits_columns, a->logits_row,
                               stream);
    struct walk at = {0};
    int longest;
    while (!error && next_launch(args, p, &at, a, &longest)) {
        a->parts = parts_of(a, p->blocks, longest);
        int64_t blocks = (int64_t)a->tiles * a->parts;
        blocks = blocks < p->blocks ? blocks : p->blocks;
        /* Counts end where the plan's bytes do. */
        if (p->k)
            a->counts = (int *)((char *)a->items + p->total) - blocks * a->rows * a->buffers;
        error = p->engine->launch(a, (unsigned)blocks, stream);
        if (error || a->parts == 1 || !a->k_list)
            continue;
        const struct index_request *last = &a->requests[a->num_requests - 1];
        int first = a->requests[0].q_start;
        error =
            mla_index_merge(a, first, (unsigned)(last->q_start + last->query_len - first), stream);
    }
    return error;
}

mla_status mla_cuda_index_run(const mla_context *context, const mla_index_args *args,
                              int64_t longest, void *workspace, void *stream)
{
    const char *function = "mla_index_run";
    struct plan p = {0};
    struct index_launch a = {0};
    mla_status status = make_plan(function, context, args, longest, &p);
    if (status)
        return status;
    set_inputs(args, &a);
    set_outputs(args, &p, workspace, &a);
    int before;
    status = mla_cuda_enter(context, &before);
    if (status)
        return status;
    cudaError_t error = launch_all(args, &p, &a, stream);
    mla_cuda_leave(context, before);
    return error == cudaSuccess ? MLA_OK : mla_cuda_fail(function, "cudaLaunchKernel", error);
}

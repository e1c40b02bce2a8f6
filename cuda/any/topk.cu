/* SPDX-License-Identifier: Apache-2.0 */
/* mla_topk_run on the device: a block streams one row after another through the row state of
 * select.cuh. Each score is read once; most are turned away by one comparison with the floor. */
#include "../device.h"
#include "../ptx/launch.cuh"
#include "index.h"
#include "select.cuh"

extern "C" {
#include "status.h"
}

static const int STEP = 2048;       /* scores between two looks at the count */
static const int SORT_ITEMS = 2048; /* lists up to this are sorted in shared memory */
static const int BLOCKS_SM = 5;
static const int THREADS = 256;

struct topk_launch {
    const float *in;
    int64_t rows, stride, topk, index_stride, score_stride;
    int columns, k, capacity;
    const int32_t *key_start, *key_end;
    int32_t *indices, *lens;
    float *scores;
    bool ascending, relative, wide;
    uint64_t *items;
};

__global__ void __launch_bounds__(THREADS, BLOCKS_SM) topk_kernel(struct topk_launch a)
{
    __shared__ __align__(16) char select[SELECT_BYTES];
    __shared__ uint64_t sorted[SORT_ITEMS];
    __shared__ int count, need_at[2];
    const struct block_team<THREADS> team = {
        select
    };
    const struct items_at scratch = {sorted};
    uint64_t *items = a.items + (int64_t)blockIdx.x * a.capacity;
    for (int64_t r = blockIdx.x; r < a.rows; r += gridDim.x) {
        int start = a.key_start ? max(0, a.key_start[r]) : 0;
        int end = a.key_end ? min(a.columns, a.key_end[r]) : a.columns;
        const float *in = a.in + r * a.stride;
        if (threadIdx.x == 0) {
            count = 0;
            need_at[0] = need_at[1] = -1;
        }
        __syncthreads();
        uint64_t least = 0;
        int step = 0;
        for (int first = start & ~3; first < end; first += STEP, step++) {
            float x[STEP / THREADS];
#pragma unroll
            for (int j = 0; j < STEP / THREADS; j += 4) {
                int at = first + (j / 4 * THREADS + threadIdx.x) * 4;
                if (a.wide && at >= start && at <= end - 4) {
                    float4 v = __ldcs((const float4 *)(in + at));
                    x[j] = v.x, x[j + 1] = v.y, x[j + 2] = v.z, x[j + 3] = v.w;
                } else {
#pragma unroll
                    for (int i = 0; i < 4; i++)
                        x[j + i] = at + i >= start && at + i < end ? in[at + i] : 0;
                }
            }
            /* Counted up in the step before: all threads agree. */
            if (need_at[step & 1] == step) {
                int n = count;
                uint64_t largest;
                least = keep_largest(team, items, &n, a.k, &largest);
                if (threadIdx.x == 0)
                    count = n;
                __syncthreads();
            }
#pragma unroll
            for (int j = 0; j < STEP / THREADS; j++) {
                int at = first + (j / 4 * THREADS + threadIdx.x) * 4 + j % 4;
                uint64_t item = item_of(x[j], at);
                bool accept = at >= start && at < end && item >= least;
                if (append(items, &count, accept, item) > a.capacity - STEP)
                    need_at[(step + 1) & 1] = step + 1;
            }
            __syncthreads();
        }
        struct list_out out = {};
        out.indices = a.indices + r * a.index_stride;
        out.scores = a.scores ? a.scores + r * a.score_stride : NULL;
        out.len = a.lens ? a.lens + r : NULL;
        out.topk = a.topk;
        out.base = a.relative ? start : 0;
        out.ascending = a.ascending;
        finish_row(team, items, count, a.k, scratch, SORT_ITEMS, out);
    }
}

/* Blocks and items of a buffer under the limit. */
static mla_status layout(const char *function, const mla_context *context, const mla_topk_args *a,
                         int64_t *blocks, int64_t *capacity, int64_t *k)
{
    int processors = 0;
    cudaError_t error =
        cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, context->device);
    if (error != cudaSuccess)
        return mla_cuda_fail(function, "cudaDeviceGetAttribute", error);
    *k = a->topk < a->columns ? a->topk : a->columns > 1 ? a->columns : 1;
    if (*k > 1 << 28)
        return mla_fail(MLA_ERR_UNSUPPORTED, "%s: topk: got %lld, want at most 2^28 on CUDA",
                        function, (long long)*k);
    if (a->columns > INT32_MAX - 2 * STEP)
        return mla_fail(MLA_ERR_UNSUPPORTED, "%s: columns: got %lld, want at most %d on CUDA",
                        function, (long long)a->columns, INT32_MAX - 2 * STEP);
    size_t limit = a->workspace_limit_bytes, bytes = 0;
    for (int small = 0; small < 2; small++) {
        *blocks = (int64_t)processors * BLOCKS_SM;
        *blocks = *blocks < a->rows ? *blocks : a->rows > 1 ? a->rows : 1;
        *capacity = mla_index_capacity(*k, STEP, small);
        bytes = (size_t)*capacity * sizeof(uint64_t);
        if (!limit || bytes <= limit) {
            if (limit && (size_t)*blocks > limit / bytes)
                *blocks = (int64_t)(limit / bytes);
            return MLA_OK;
        }
    }
    return mla_fail(MLA_ERR_ARGUMENT, "%s: workspace_limit_bytes: got %zu, want 0 or at least %zu",
                    function, limit, bytes);
}

extern "C" mla_status mla_cuda_topk_workspace(const char *function, const mla_context *context,
                                              const mla_topk_args *args, size_t *bytes)
{
    int64_t blocks = 0, capacity = 0, k = 0;
    mla_status status = layout(function, context, args, &blocks, &capacity, &k);
    if (!status)
        *bytes = (size_t)(blocks * capacity) * sizeof(uint64_t);
    return status;
}

extern "C" mla_status mla_cuda_topk_run(const mla_context *context, const mla_topk_args *args,
                                        void *workspace, void *stream)
{
    const char *function = "mla_topk_run";
    int64_t blocks = 0, capacity = 0, k = 0;
    mla_status status = layout(function, context, args, &blocks, &capacity, &k);
    if (status || args->rows == 0)
        return status;
    struct topk_launch a = {};
    a.in = (const float *)args->in.data;
    a.rows = args->rows;
    a.stride = mla_stride0(&args->in, args->columns);
    a.topk = args->topk;
    a.index_stride = mla_stride0(&args->indices, args->topk);
    a.score_stride = mla_stride0(&args->scores, args->topk);
    a.columns = (int)args->columns;
    a.k = (int)k;
    a.capacity = (int)capacity;
    a.key_start = args->key_start;
    a.key_end = args->key_end;
    a.indices = (int32_t *)args->indices.data;
    a.lens = args->topk_lens;
    a.scores = (float *)args->scores.data;
    a.ascending = args->order == MLA_TOPK_ASCENDING;
    a.relative = args->relative;
    a.wide = (uintptr_t)a.in % 16 == 0 && a.stride % 4 == 0;
    a.items = (uint64_t *)workspace;
    int before;
    status = mla_cuda_enter(context, &before);
    if (status)
        return status;
    void *list[] = {&a};
    cudaError_t error = cudaLaunchKernel(mla_kernel_address(topk_kernel), dim3((unsigned)blocks),
                                         dim3(THREADS), list, 0, (cudaStream_t)stream);
    mla_cuda_leave(context, before);
    return error == cudaSuccess ? MLA_OK : mla_cuda_fail(function, "cudaLaunchKernel", error);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* mla_topk_run on the device: a block takes one row after another through list.cuh. A row is read
 * twice (counted, marked), the second time from L2 unless rows are very long. */
#include "../device.h"
#include "../ptx/launch.cuh"
#include "index.h"
#include "list.cuh"

extern "C" {
#include "status.h"
}

static const int BLOCKS_SM = 5;
static const int THREADS = 256;

static const int SHARED = KTH_BYTES + 4 * MAP_WORDS; /* bins; a bitmap, or items to sort */

struct topk_launch {
    const float *in;
    int64_t rows, stride, topk, index_stride, score_stride;
    int columns, k;
    int64_t room; /* items of a block */
    const int32_t *key_start, *key_end;
    int32_t *indices, *lens;
    float *scores;
    bool ascending, relative, wide;
    uint64_t *items;
};

struct topk_team {
    static const int THREADS = ::THREADS;
    u32 memory;

    __device__ __forceinline__ int rank() const
    {
        return threadIdx.x;
    }
    __device__ __forceinline__ void sync() const
    {
        __syncthreads();
    }
    template <class T> __device__ __forceinline__ T get(int at) const
    {
        return ld_shared<T>(memory + at);
    }
    template <class T> __device__ __forceinline__ void put(int at, T value) const
    {
        st_shared(memory + at, value);
    }
    __device__ __forceinline__ uint32_t add(int at, uint32_t n) const
    {
        return atom_add_shared(memory + at, n);
    }
};

struct row_scores {
    const float *in;
    int start, end;
    bool wide; /* 16-byte loads are aligned where the column is a multiple of 4 */

    __device__ __forceinline__ int total() const
    {
        return max(0, end - start);
    }
    __device__ __forceinline__ void sample(const struct topk_team &, u32 *least, u32 *most) const
    {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int64_t rank = 2 * threadIdx.x + i;
            int at = start + (int)(rank * (end - start) / (2 * THREADS));
            u32 score = (u32)(item_of(in[at], at) >> 32);
            *least = min(*least, score);
            *most = max(*most, score);
        }
    }
    template <class F>
    __device__ __forceinline__ void each(const struct topk_team &, const F &f) const
    {
        const int batch = 4;
#pragma unroll 1
        for (int first = start & ~3; first < end; first += 4 * batch * THREADS) {
            float x[batch][4];
            int at = first + 4 * (int)threadIdx.x;
#pragma unroll
            for (int j = 0; j < batch; j++) {
                int k = at + 4 * j * THREADS;
                if (wide && k >= start && k <= end - 4) {
                    float4 v = *(const float4 *)(in + k);
                    x[j][0] = v.x, x[j][1] = v.y, x[j][2] = v.z, x[j][3] = v.w;
                } else {
#pragma unroll
                    for (int i = 0; i < 4; i++)
                        x[j][i] = k + i >= start && k + i < end ? in[k + i] : 0;
                }
            }
#pragma unroll
            for (int j = 0; j < batch; j++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    int k = at + 4 * j * THREADS + i;
                    f(k >= start && k < end, item_of(x[j][i], k));
                }
            }
        }
    }
};

__global__ void __launch_bounds__(THREADS, BLOCKS_SM) topk_kernel(struct topk_launch a)
{
    const struct topk_team team = {dynamic_smem()};
    for (int64_t r = blockIdx.x; r < a.rows; r += gridDim.x) {
        struct row_scores x;
        x.in = a.in + r * a.stride;
        x.start = a.key_start ? max(0, a.key_start[r]) : 0;
        x.end = a.key_end ? min(a.columns, a.key_end[r]) : a.columns;
        x.wide = a.wide;
        struct list_out out = {};
        out.indices = a.indices + r * a.index_stride;
        out.scores = a.scores ? a.scores + r * a.score_stride : NULL;
        out.len = a.lens ? a.lens + r : NULL;
        out.topk = a.topk;
        out.base = a.relative ? x.start : 0;
        out.ascending = a.ascending;
        write_list(team, x, a.k, x.start, x.end, a.items + blockIdx.x * a.room,
                   team.memory + KTH_BYTES, out);
    }
}

/* Blocks, and items of one, under the limit. */
static mla_status layout(const char *function, const mla_context *context, const mla_topk_args *a,
                         int64_t *blocks, int64_t *room, int64_t *k)
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
    if (a->columns > INT32_MAX - 16 * THREADS)
        return mla_fail(MLA_ERR_UNSUPPORTED, "%s: columns: got %lld, want at most %d on CUDA",
                        function, (long long)a->columns, INT32_MAX - 16 * THREADS);
    size_t limit = a->workspace_limit_bytes, bytes = 0;
    *blocks = (int64_t)processors * BLOCKS_SM;
    *blocks = *blocks < a->rows ? *blocks : a->rows > 1 ? a->rows : 1;
    *room = 2;
    while (*room < *k)
        *room *= 2;
    bytes = (size_t)*room * sizeof(uint64_t);
    if (!limit || bytes <= limit) {
        if (limit && (size_t)*blocks > limit / bytes)
            *blocks = (int64_t)(limit / bytes);
        return MLA_OK;
    }
    return mla_fail(MLA_ERR_ARGUMENT, "%s: workspace_limit_bytes: got %zu, want 0 or at least %zu",
                    function, limit, bytes);
}

extern "C" mla_status mla_cuda_topk_workspace(const char *function, const mla_context *context,
                                              const mla_topk_args *args, size_t *bytes)
{
    int64_t blocks = 0, room = 0, k = 0;
    mla_status status = layout(function, context, args, &blocks, &room, &k);
    if (!status)
        *bytes = (size_t)(blocks * room) * sizeof(uint64_t);
    return status;
}

extern "C" mla_status mla_cuda_topk_run(const mla_context *context, const mla_topk_args *args,
                                        void *workspace, void *stream)
{
    const char *function = "mla_topk_run";
    int64_t blocks = 0, room = 0, k = 0;
    mla_status status = layout(function, context, args, &blocks, &room, &k);
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
    a.room = room;
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
                                         dim3(THREADS), list, SHARED, (cudaStream_t)stream);
    mla_cuda_leave(context, before);
    return error == cudaSuccess ? MLA_OK : mla_cuda_fail(function, "cudaLaunchKernel", error);
}

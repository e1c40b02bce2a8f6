/* SPDX-License-Identifier: Apache-2.0 */
/* mla_index_run on the device: scores of the lightning indexer, streamed into exact top-k.
 *
 *     I[t,s] = k_scale[s] · sum_h W[t,h] · ReLU(sum_d q[t,h,d] · k[s,d])
 *
 * Tile. ROWS = 1, 2, 4 or 8 query rows of one request; 128 keys a step; 8 warps, one block an SM.
 * Each warp keeps the 64 heads of one query row in registers as the A operand of m16n8k16 (128
 * registers), so that shared memory is read for keys alone: 64 B a mma, where about 190 B fit into
 * the time of one. With fewer rows, warps of one row share the keys of a step between them. A lane
 * then has scores of 8 keys for 8 of the 64 heads in its accumulators: ReLU, times W and the sum
 * over its heads stay in registers, three exchange steps leave one finished score of 32 keys in
 * each lane. More than 64 heads go in groups of 64, reloading q.
 *
 * e4m3 keys come into shared memory as they are (cp.async), one step ahead; the thread that copied
 * 16 bytes widens them to f16 (bf16 where q is bf16: both exact) while other warps still compute.
 *     issue raw(i+1) | scores of step i -> items | wait raw(i+1), widen -> K(i+1) | barrier
 * bf16 keys are copied straight to where the fragments are read from.
 *
 * Items above the row's floor are appended to the row's buffer in the workspace (select.cuh): about
 * k·(1 + ln(S/k)) of S keys on random scores, all of them in the worst case. Work stays linear.
 *
 * Few query rows: the keys are parted between blocks, and merge_kernel joins the parts' buffers.
 *
 * Shared memory: K 2 x 32768 B, raw 16384 B, select and small things 13.5 KB: 95.5 KB of 99.
 *
 * Bits. A score is computed by the same instructions whatever its place, so lists and scores do not
 * depend on tiles, parts or limits. They differ from the CPU's by the order of summation alone:
 * docs/index.md has the bound. */
#include "../device.h"
#include "../ptx/cp_async.cuh"
#include "../ptx/launch.cuh"
#include "../ptx/mma_sync.cuh"
#include "../ptx/shared.cuh"
#include "index_plan.h"
#include "index_rows.cuh"
#include "select.cuh"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

static const int KEYS = 128;      /* a step */
static const int GROUP = 64;      /* heads of a pass */
static const int DIM = INDEX_DIM; /* smaller ones are padded with zeros */
static const int K_BYTES = KEYS * DIM * 2;
static const int RAW_BYTES = KEYS * DIM;
static const int ROWS = 8;
static const int THREADS = 256;
static const int WARPS = THREADS / 32;

enum mode { FP8_F16, FP8_BF16, BF16 }; /* keys, and what they are multiplied as */

struct shared {
    __align__(16) char select[SELECT_BYTES];
    uint64_t floor[ROWS];
    int count[ROWS], low[ROWS], high[ROWS];
    int need_at[2], found;
    float scale[2][KEYS];
    uint8_t seen[2][KEYS];
    float total[WARPS][KEYS]; /* more than 64 heads: sums over the groups so far */
};

struct work {
    struct index_request r;
    int t0, rows; /* rows of the tile: [t0, t0 + rows) */
    int from, to; /* keys of the part */
    const int32_t *pages;
};

__device__ __forceinline__ void find_request(const struct index_launch &a, int tile, int row,
                                             int *found)
{
    for (int i = threadIdx.x; i < a.num_requests; i += THREADS) {
        const struct index_request *r = &a.requests[i];
        int next = i + 1 < a.num_requests ? a.requests[i + 1].first_tile : a.tiles;
        if (row < 0 ? r->first_tile <= tile && tile < next
                    : r->q_start <= row && row < r->q_start + r->query_len)
            *found = i;
    }
    __syncthreads();
}

/* Two adjacent values of q as the mma takes them. */
template <int MODE> __device__ __forceinline__ uint32_t widen2(uint32_t two)
{
    __half2_raw h = __nv_cvt_fp8x2_to_halfraw2((__nv_fp8x2_storage_t)two, __NV_E4M3);
    if (MODE == FP8_F16)
        return (uint32_t)h.y << 16 | h.x;
    float2 f = __half22float2(*(__half2 *)&h);
    __nv_bfloat162 b = __floats2bfloat162_rn(f.x, f.y);
    return *(uint32_t *)&b;
}

template <int MODE>
__device__ __forceinline__ uint32_t load_q(const struct index_launch &a, const char *row, int head,
                                           int d)
{
    if (head >= a.heads || d >= a.dim)
        return 0;
    const char *at = row + head * a.q_head;
    bool both = d + 1 < a.dim;
    if (a.q_fp8) {
        uint32_t low = (uint8_t)at[d], high = both ? (uint8_t)at[d + 1] : 0;
        return widen2<MODE>(low | high << 8);
    }
    uint32_t low = ((const uint16_t *)at)[d], high = both ? ((const uint16_t *)at)[d + 1] : 0;
    return low | high << 16;
}

/* A fragments of 64 heads and their weights. */
template <int MODE>
__device__ __forceinline__ void load_group(const struct index_launch &a, int t, int head0,
                                           uint32_t q[4][8][4], float w[8])
{
    int lane = threadIdx.x % 32, g = lane / 4, d0 = lane % 4 * 2;
    const char *row = a.q + t * a.q_row;
#pragma unroll
    for (int m = 0; m < 4; m++) {
        int head = head0 + 16 * m + g;
#pragma unroll
        for (int k = 0; k < 8; k++) {
            q[m][k][0] = load_q<MODE>(a, row, head, 16 * k + d0);
            q[m][k][1] = load_q<MODE>(a, row, head + 8, 16 * k + d0);
            q[m][k][2] = load_q<MODE>(a, row, head, 16 * k + d0 + 8);
            q[m][k][3] = load_q<MODE>(a, row, head + 8, 16 * k + d0 + 8);
        }
        w[2 * m] = head < a.heads ? a.weights[t * a.weight_row + head] : 0;
        w[2 * m + 1] = head + 8 < a.heads ? a.weights[t * a.weight_row + head + 8] : 0;
    }
}

/* Starts the copies of keys [pos0, pos0 + 128) into slot. */
template <int MODE>
__device__ __forceinline__ void issue(const struct index_launch &a, const struct work &w,
                                      struct shared *s, char *to, int slot, int pos0)
{
    const int chunks = MODE == BF16 ? DIM / 8 : DIM / 16; /* 16 bytes each */
    int row_bytes = MODE == BF16 ? 2 * a.dim : a.dim;
#pragma unroll
    for (int i = 0; i < KEYS * chunks / THREADS; i++) {
        int c = threadIdx.x + i * THREADS, key = c / chunks, part = c % chunks;
        int bytes = max(0, min(16, row_bytes - 16 * part));
        const char *scale, *src = NULL;
        if (pos0 + key < w.to)
            src = find_key(a, w.r, w.pages, pos0 + key, &scale);
        int at = MODE == BF16 ? key * 2 * DIM + ((part ^ (key & 7)) << 4) : 16 * c;
        if (src == NULL)
            bytes = 0;
        if (a.wide) {
            cp_async_cg_16((uint32_t)__cvta_generic_to_shared(to + at),
                           bytes ? src + 16 * part : a.k, bytes);
        } else {
            for (int j = 0; j < 16; j++)
                to[at + j] = j < bytes ? src[16 * part + j] : 0;
        }
    }
    if (threadIdx.x < KEYS) {
        const char *scale = NULL, *src = NULL;
        if (pos0 + (int)threadIdx.x < w.to)
            src = find_key(a, w.r, w.pages, pos0 + threadIdx.x, &scale);
        float *dst = &s->scale[slot][threadIdx.x];
        s->seen[slot][threadIdx.x] = src != NULL;
        if (src == NULL || scale == NULL)
            *dst = 1;
        else if (a.wide_scale)
            cp_async_ca_4((uint32_t)__cvta_generic_to_shared(dst), scale, 4);
        else
            for (int j = 0; j < 4; j++)
                ((char *)dst)[j] = scale[j];
    }
}

/* Waits for the thread's own copies and widens them. */
template <int MODE> __device__ __forceinline__ void widen(const char *raw, char *to)
{
    cp_async_wait_all();
#pragma unroll
    for (int i = 0; MODE != BF16 && i < RAW_BYTES / 16 / THREADS; i++) {
        int c = threadIdx.x + i * THREADS, key = c / 8, part = c % 8;
        uint4 v = *(const uint4 *)(raw + 16 * c);
        uint32_t in[4] = {v.x, v.y, v.z, v.w}, out[8];
#pragma unroll
        for (int j = 0; j < 8; j++)
            out[j] = widen2<MODE>(in[j / 2] >> 16 * (j & 1) & 0xFFFF);
        char *row = to + key * 2 * DIM;
        *(uint4 *)(row + ((2 * part ^ (key & 7)) << 4)) =
            make_uint4(out[0], out[1], out[2], out[3]);
        *(uint4 *)(row + (((2 * part + 1) ^ (key & 7)) << 4)) =
            make_uint4(out[4], out[5], out[6], out[7]);
    }
}

/* Sums over the group's heads for 32 keys at k (rows of 256 swizzled bytes, the first a multiple of
 * 8): the lane's key is 8·(g/2) + 2·t + g%2. */
template <int MODE>
__device__ __forceinline__ float score32(uint32_t k, const uint32_t q[4][8][4], const float w[8],
                                         int heads)
{
    int lane = threadIdx.x % 32, g = lane / 4;
    float acc[4][4][4];
#pragma unroll
    for (int i = 0; i < 64; i++)
        acc[i / 16][i / 4 % 4][i % 4] = 0;
    /* Matrices of one ldmatrix: keys 0-7 and 8-15, each with d 0-7 and 8-15 of the step. */
    uint32_t row = k + (lane % 8 + (lane / 16) * 8) * 2 * DIM;
#pragma unroll
    for (int d = 0; d < 8; d++) {
        uint32_t b[2][4], at = ((2 * d + (lane / 8 & 1)) ^ lane % 8) << 4;
        ldmatrix_x4(b[0], row + at);
        ldmatrix_x4(b[1], row + at + 16 * 2 * DIM);
#pragma unroll
        for (int m = 0; m < 4; m++) {
#pragma unroll
            for (int n = 0; n < 4; n++) {
                if (MODE == FP8_F16)
                    mma_m16n8k16_f16(acc[m][n], q[m][d], b[n / 2][n % 2 * 2],
                                     b[n / 2][n % 2 * 2 + 1]);
                else
                    mma_m16n8k16_bf16(acc[m][n], q[m][d], b[n / 2][n % 2 * 2],
                                      b[n / 2][n % 2 * 2 + 1]);
            }
        }
    }
    if (heads < GROUP) { /* zeros times an infinite key would be NaN */
#pragma unroll
        for (int m = 0; m < 4; m++) {
#pragma unroll
            for (int i = 0; i < 16; i++)
                if (16 * m + g + i % 4 / 2 * 8 >= heads)
                    acc[m][i / 4][i % 4] = 0;
        }
    }
    float v[8];
#pragma unroll
    for (int i = 0; i < 8; i++) { /* key 8·(i/2) + 2t + i%2 */
        v[i] = 0;
#pragma unroll
        for (int m = 0; m < 4; m++) {
            v[i] = fmaf(w[2 * m], relu(acc[m][i / 2][i % 2]), v[i]);
            v[i] = fmaf(w[2 * m + 1], relu(acc[m][i / 2][i % 2 + 2]), v[i]);
        }
    }
    /* The eight lanes of a column add up, each keeping one of the eight keys. */
#pragma unroll
    for (int half = 4; half; half /= 2) {
        bool upper = g & half;
#pragma unroll
        for (int i = 0; i < half; i++) {
            float give = upper ? v[i] : v[i + half], keep = upper ? v[i + half] : v[i];
            v[i] = keep + __shfl_xor_sync(0xFFFFFFFFu, give, 4 * half);
        }
    }
    return v[0];
}

template <int MODE>
__global__ void __launch_bounds__(THREADS, 1)
    index_kernel(const __grid_constant__ struct index_launch a)
{
    MLA_DYNAMIC_SHARED(memory, 128);
    __shared__ struct shared s;
    const struct block_team<THREADS> team = {
        s.select
    };
    const struct items_at scratch = {(uint64_t *)memory};
    char *raw = memory + 2 * K_BYTES;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int key_in_32 = 8 * (lane / 8) + 2 * (lane % 4) + lane / 4 % 2;
    int slot_row = warp % a.rows, share = warp / a.rows, shares = WARPS / a.rows;
    uint64_t *items = a.items + (int64_t)blockIdx.x * a.rows * a.capacity;

    for (int task = blockIdx.x; task < a.tiles * a.parts; task += gridDim.x) {
        /* Causality makes late tiles long: they start first. */
        int tile = a.tiles - 1 - task / a.parts, part = task % a.parts;
        struct work w;
        find_request(a, tile, -1, &s.found);
        w.r = a.requests[s.found];
        w.t0 = w.r.q_start + (tile - w.r.first_tile) * a.rows;
        w.rows = min(a.rows, w.r.q_start + w.r.query_len - w.t0);
        w.pages = a.page_size ? a.page_table + w.r.index * a.table_row : NULL;
        if (threadIdx.x < ROWS) {
            int i = threadIdx.x, low = 0, high = 0;
            if (i < w.rows)
                row_range(a, w.r, w.t0 + i, &low, &high);
            s.low[i] = low;
            s.high[i] = high;
            s.count[i] = 0;
            s.floor[i] = 0;
            if (i < 2)
                s.need_at[i] = -1;
        }
        __syncthreads();
        w.from = INT32_MAX, w.to = 0;
        for (int i = 0; i < w.rows; i++) {
            if (s.low[i] < s.high[i]) {
                w.from = min(w.from, s.low[i]);
                w.to = max(w.to, s.high[i]);
            }
        }
        int low = s.low[slot_row], high = s.high[slot_row];
        int base = a.relative ? low : 0;
        w.from = min(w.from, w.to) / KEYS * KEYS;
        int64_t extent = ((int64_t)w.to - w.from + KEYS - 1) / KEYS;
        int64_t piece = (extent + a.parts - 1) / a.parts * KEYS;
        w.from = (int)min((int64_t)w.to, w.from + part * piece);
        w.to = (int)min((int64_t)w.to, w.from + piece);
        int steps = (w.to - w.from + KEYS - 1) / KEYS;

        uint32_t q[4][8][4];
        float weights[8];
        if (a.heads <= GROUP && slot_row < w.rows)
            load_group<MODE>(a, w.t0 + slot_row, 0, q, weights);
        if (steps > 0) {
            issue<MODE>(a, w, &s, MODE == BF16 ? memory : raw, 0, w.from);
            widen<MODE>(raw, memory);
        }
        __syncthreads();

        for (int i = 0; i < steps; i++) {
            char *keys = memory + (i & 1) * K_BYTES, *next = memory + ((i + 1) & 1) * K_BYTES;
            int pos0 = w.from + i * KEYS;
            if (i + 1 < steps)
                issue<MODE>(a, w, &s, MODE == BF16 ? next : raw, (i + 1) & 1, pos0 + KEYS);
            if (s.need_at[i & 1] == i) { /* set in the step before: all threads agree */
                for (int r = 0; r < a.rows; r++) {
                    int n = s.count[r];
                    if (n <= a.capacity - KEYS)
                        continue;
                    uint64_t largest, floor = keep_largest(team, items + (int64_t)r * a.capacity,
                                                           &n, a.k_list, &largest);
                    if (threadIdx.x == 0) {
                        s.count[r] = n;
                        s.floor[r] = floor;
                    }
                }
                __syncthreads();
            }
#pragma unroll 1
            for (int sub = share; sub < KEYS / 32; sub += shares) {
                int first = pos0 + 32 * sub;
                if (first >= high || first + 32 <= low)
                    continue; /* the warp's row has no key here */
                uint32_t k = (uint32_t)__cvta_generic_to_shared(keys + sub * 32 * 2 * DIM);
                float sum;
                if (a.heads <= GROUP) {
                    sum = score32<MODE>(k, q, weights, a.heads);
                } else {
                    float *total = &s.total[warp][32 * sub + lane];
#pragma unroll 1
                    for (int head = 0; head < a.heads; head += GROUP) {
                        load_group<MODE>(a, w.t0 + slot_row, head, q, weights);
                        sum = score32<MODE>(k, q, weights, min(GROUP, a.heads - head));
                        *total = head ? *total + sum : sum;
                    }
                    sum = *total;
                }
                int pos = first + key_in_32, in_step = 32 * sub + key_in_32;
                float score = s.scale[i & 1][in_step] * sum;
                bool sees = pos >= low && pos < high && s.seen[i & 1][in_step];
                if (a.logits && sees)
                    a.logits[(w.t0 + slot_row) * a.logits_row + pos - base] = score;
                if (a.k_list) {
                    uint64_t item = item_of(score, pos);
                    if (append(items + (int64_t)slot_row * a.capacity, &s.count[slot_row],
                               sees && item >= s.floor[slot_row], item) > a.capacity - KEYS)
                        s.need_at[(i + 1) & 1] = i + 1;
                }
            }
            if (i + 1 < steps)
                widen<MODE>(raw, next);
            __syncthreads();
        }
        if (a.k_list && a.parts > 1 && threadIdx.x < a.rows)
            a.counts[blockIdx.x * a.rows + threadIdx.x] = s.count[threadIdx.x];
        for (int i = 0; a.k_list && a.parts == 1 && i < w.rows; i++) {
            int64_t t = w.t0 + i;
            finish_row(team, items + (int64_t)i * a.capacity, s.count[i], a.k_list, scratch,
                       2 * K_BYTES / 8, row_list(a, t, s.low[i]));
        }
        __syncthreads();
    }
}

/* Joins the parts of one row into the first part's buffer, and writes the list. */
__global__ void
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1200
__launch_bounds__(THREADS, 4) /* 64 registers; of itself ptxas takes 40 here, and spills */
#else
__launch_bounds__(THREADS)
#endif
    merge_kernel(const __grid_constant__ struct index_launch a, int first_row)
{
    MLA_DYNAMIC_SHARED(memory, 128);
    __shared__ __align__(16) char select[SELECT_BYTES];
    __shared__ int found;
    const struct block_team<THREADS> team = {
        select
    };
    const struct items_at scratch = {(uint64_t *)memory};
    int t = first_row + blockIdx.x, low, high;
    find_request(a, 0, t, &found);
    const struct index_request &r = a.requests[found];
    int tile = r.first_tile + (t - r.q_start) / a.rows, row = (t - r.q_start) % a.rows;
    /* The row's first buffer; the others of this block and of the next parts follow. */
    int64_t place = (int64_t)(a.tiles - 1 - tile) * a.parts * a.buffers * a.rows + row;
    uint64_t *items = a.items + place * a.capacity;
    const int *counts = a.counts + place;
    int n = counts[0];
    for (int i = 1; i < a.parts * a.buffers; i++)
        n = join(team, items, n, 0, items + (int64_t)i * a.rows * a.capacity, counts[i * a.rows],
                 a.k_list, a.capacity);
    row_range(a, r, t, &low, &high);
    finish_row(team, items, n, a.k_list, scratch, 2 * K_BYTES / 8, row_list(a, t, low));
}

__global__ void fill_kernel(float *logits, int64_t rows, int64_t columns, int64_t stride)
{
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    for (; i < rows * columns; i += (int64_t)gridDim.x * blockDim.x)
        logits[i / columns * stride + i % columns] = -INFINITY;
}

/* --------------------------------------------------------------------- host */

extern "C" cudaError_t mla_index_fill(float *logits, int64_t rows, int64_t columns, int64_t stride,
                                      cudaStream_t stream)
{
    void *list[] = {&logits, &rows, &columns, &stride};
    return cudaLaunchKernel(mla_kernel_address(fill_kernel), dim3(1024), dim3(256), list, 0,
                            stream);
}

extern "C" cudaError_t mla_index_merge(const struct index_launch *launch, int first_row,
                                       unsigned rows, cudaStream_t stream)
{
    const void *kernel = mla_kernel_address(merge_kernel);
    static_assert(2 * K_BYTES + SELECT_BYTES + 16 <= MLA_ANY_SHARED_BYTES, "any GPU from sm_80");
    cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 2 * K_BYTES);
    void *list[] = {(void *)launch, &first_row};
    return error ? error
                 : cudaLaunchKernel(kernel, dim3(rows), dim3(THREADS), list, 2 * K_BYTES, stream);
}

static cudaError_t launch(const struct index_launch *a, unsigned blocks, cudaStream_t stream)
{
    const void *kernel = !a->k_fp8  ? mla_kernel_address(index_kernel<BF16>)
                         : a->q_fp8 ? mla_kernel_address(index_kernel<FP8_F16>)
                                    : mla_kernel_address(index_kernel<FP8_BF16>);
    int bytes = 2 * K_BYTES + (a->k_fp8 ? RAW_BYTES : 0);
    static_assert(2 * K_BYTES + RAW_BYTES + sizeof(struct shared) <= MLA_ANY_SHARED_BYTES,
                  "any GPU from sm_80");
    cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    void *list[] = {(void *)a};
    return error ? error
                 : cudaLaunchKernel(kernel, dim3(blocks), dim3(THREADS), list, bytes, stream);
}

static bool supports(const mla_context *, const mla_index_args *, char *, size_t)
{
    return true; /* index_plan.c has turned away what no engine takes */
}

static int most_rows(const mla_index_args *)
{
    return ROWS;
}

static int buffers(const mla_index_args *, int)
{
    return 1;
}

extern "C" const struct mla_index_engine mla_index_any = {
    "index_logits_any", MLA_PROOF_SILICON, supports, most_rows, buffers, launch};

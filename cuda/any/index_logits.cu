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
#include "../ptx/mma_sync.cuh"
#include "index.h"
#include "select.cuh"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

extern "C" {
#include "status.h"
}

static const int KEYS = 128; /* a step */
static const int GROUP = 64; /* heads of a pass */
static const int DIM = 128;  /* smaller ones are padded with zeros */
static const int K_BYTES = KEYS * DIM * 2;
static const int RAW_BYTES = KEYS * DIM;
static const int REQUESTS = 96; /* of one launch: kernel arguments are 4 KB */
static const int ROWS = 8;

enum mode { FP8_F16, FP8_BF16, BF16 }; /* keys, and what they are multiplied as */

struct index_request {
    int32_t index, q_start, query_len, seq_len, first_tile, unused;
    int64_t first_key;
};

struct index_launch {
    /* queries */
    const char *q;
    const float *weights;
    int64_t q_row, q_head, weight_row; /* q in bytes */
    bool q_fp8;
    int heads, dim;
    /* keys */
    const char *k, *k_scale;
    const int32_t *page_table;
    int64_t k_row, page_bytes, table_row; /* k_row: bytes of a flat row */
    int page_size, num_pages;
    bool wide; /* 16-byte copies of keys, 4-byte copies of scales are aligned */
    bool wide_scale;
    /* rows */
    const int32_t *key_start, *key_end;
    bool causal, relative;
    /* lists */
    int k_list, capacity;
    int64_t topk, index_stride, score_stride;
    bool ascending;
    int32_t *indices, *lens;
    float *scores;
    float *logits;
    int64_t logits_row;
    uint64_t *items; /* [blocks, rows, capacity] */
    int *counts;     /* [blocks, rows], parts > 1 */
    /* work */
    int rows, tiles, parts, num_requests;
    struct index_request requests[REQUESTS];
};
static_assert(sizeof(struct index_launch) <= 4096, "kernel arguments");

struct shared {
    struct select_shared select;
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

/* Keys [low, high) that row t of the request may see, page ids aside. */
__device__ __forceinline__ void row_range(const struct index_launch &a,
                                          const struct index_request &r, int t, int *low, int *high)
{
    int64_t start = a.key_start ? a.key_start[t] : 0, end = r.seq_len;
    if (a.causal)
        end = min(end, (int64_t)r.seq_len - r.query_len + (t - r.q_start) + 1);
    if (a.key_end)
        end = min(end, (int64_t)a.key_end[t]);
    *low = (int)max(start, (int64_t)0);
    *high = (int)max(end, (int64_t)*low);
}

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

/* Address of key pos of the request, NULL if it lies on no page; *scale to where its scale is. */
__device__ __forceinline__ const char *find_key(const struct index_launch &a, const struct work &w,
                                                int pos, const char **scale)
{
    if (a.page_size == 0) {
        int64_t row = w.r.first_key + pos;
        *scale = a.k_scale ? a.k_scale + 4 * row : NULL;
        return a.k + row * a.k_row;
    }
    uint32_t column = (uint32_t)pos / (uint32_t)a.page_size, slot = pos - column * a.page_size;
    int page = w.pages[column];
    if (page < 0 || page >= a.num_pages)
        return NULL;
    const char *base = a.k + page * a.page_bytes;
    *scale = base + (int64_t)a.page_size * a.dim + 4 * slot;
    return base + (int64_t)slot * a.dim;
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
            src = find_key(a, w, pos0 + key, &scale);
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
            src = find_key(a, w, pos0 + threadIdx.x, &scale);
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

__device__ __forceinline__ float relu(float x) /* keeps NaN */
{
    float r;
    asm("max.NaN.f32 %0, %1, 0f00000000;" : "=f"(r) : "f"(x));
    return r;
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
    extern __shared__ __align__(128) char memory[];
    __shared__ struct shared s;
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
                for (int r = 0; r < a.rows; r++)
                    if (s.count[r] > a.capacity - KEYS)
                        keep_largest(items + (int64_t)r * a.capacity, &s.count[r], &s.floor[r],
                                     a.k_list, &s.select);
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
            struct list_out out = {};
            out.indices = a.indices + t * a.index_stride;
            out.scores = a.scores ? a.scores + t * a.score_stride : NULL;
            out.len = a.lens ? a.lens + t : NULL;
            out.topk = a.topk;
            out.base = a.relative ? s.low[i] : 0;
            out.ascending = a.ascending;
            finish_row(items + (int64_t)i * a.capacity, &s.count[i], &s.floor[i], a.k_list,
                       (uint64_t *)memory, 2 * K_BYTES / 8, &s.select, out);
        }
        __syncthreads();
    }
}

/* Joins the parts of one row into the first part's buffer, and writes the list. */
__global__ void __launch_bounds__(THREADS)
    merge_kernel(const __grid_constant__ struct index_launch a, int first_row)
{
    extern __shared__ __align__(128) char memory[];
    __shared__ struct select_shared select;
    __shared__ uint64_t floor;
    __shared__ int count, found;
    int t = first_row + blockIdx.x, low, high;
    find_request(a, 0, t, &found);
    const struct index_request &r = a.requests[found];
    int tile = r.first_tile + (t - r.q_start) / a.rows, row = (t - r.q_start) % a.rows;
    int block = (a.tiles - 1 - tile) * a.parts; /* of the first part */
    uint64_t *items = a.items + ((int64_t)block * a.rows + row) * a.capacity;
    if (threadIdx.x == 0) {
        count = a.counts[block * a.rows + row];
        floor = 0;
    }
    for (int part = 1; part < a.parts; part++) {
        const uint64_t *other = items + (int64_t)part * a.rows * a.capacity;
        int n = a.counts[(block + part) * a.rows + row];
        for (int at = 0; at < n; at += THREADS) {
            __syncthreads();
            bool full = count > a.capacity - THREADS;
            __syncthreads(); /* all have looked before any appends */
            if (full)
                keep_largest(items, &count, &floor, a.k_list, &select);
            uint64_t item = at + (int)threadIdx.x < n ? other[at + threadIdx.x] : 0;
            append(items, &count, item && item >= floor, item);
        }
    }
    __syncthreads();
    row_range(a, r, t, &low, &high);
    struct list_out out = {};
    out.indices = a.indices + t * a.index_stride;
    out.scores = a.scores ? a.scores + t * a.score_stride : NULL;
    out.len = a.lens ? a.lens + t : NULL;
    out.topk = a.topk;
    out.base = a.relative ? low : 0;
    out.ascending = a.ascending;
    finish_row(items, &count, &floor, a.k_list, (uint64_t *)memory, 2 * K_BYTES / 8, &select, out);
}

__global__ void fill_kernel(float *logits, int64_t rows, int64_t columns, int64_t stride)
{
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    for (; i < rows * columns; i += (int64_t)gridDim.x * blockDim.x)
        logits[i / columns * stride + i % columns] = -INFINITY;
}

/* --------------------------------------------------------------------- host */

/* How the work is cut, and where it lies in the workspace: items, then counts. */
struct plan {
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
    *r = {};
    r->index = (int)i;
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

/* Fills requests, tiles, rows and parts of the next launch; false at the end. */
static bool next_launch(const mla_index_args *a, const struct plan *p, struct walk *at,
                        struct index_launch *out, int *longest)
{
    int64_t batch = a->cu_seqlens_q ? a->batch : 1;
    out->num_requests = 0;
    out->tiles = 0;
    *longest = 0;
    for (; at->request < batch && out->num_requests < REQUESTS; at->request++) {
        struct index_request r;
        request_of(a, at->request, &r);
        r.first_key = at->first_key;
        if (r.query_len > 0) {
            int rows = rows_of(p, r.query_len);
            if (out->num_requests && rows != out->rows)
                break;
            out->rows = rows;
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
    int64_t most = (longest + 2047) / 2048, parts = l->tiles ? blocks / l->tiles : 1;
    parts = parts < most ? parts : most;
    return parts > 1 ? (int)parts : 1;
}

/* Bytes with the plan's rows, capacity and blocks; blocks shrink to what the launches use. */
static void measure(const mla_index_args *a, struct plan *p)
{
    struct index_launch l = {};
    struct walk at = {};
    int longest;
    int64_t blocks = 0, rows = 0;
    while (next_launch(a, p, &at, &l, &longest)) {
        int64_t n = (int64_t)l.tiles * parts_of(&l, p->blocks, longest);
        n = n < p->blocks ? n : p->blocks;
        blocks = n > blocks ? n : blocks;
        rows = n * l.rows > rows ? n * l.rows : rows;
    }
    p->total = p->k ? (size_t)rows * ((size_t)p->capacity * sizeof(uint64_t) + sizeof(int)) : 0;
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
    if (a->dim > DIM)
        return mla_fail(MLA_ERR_UNSUPPORTED, "%s: dim: got %lld, want at most %d on CUDA", function,
                        (long long)a->dim, DIM);
    if (a->precision != MLA_PRECISION_FP32)
        return mla_fail(MLA_ERR_UNSUPPORTED, "%s: precision: got fp64, want fp32 on CUDA",
                        function);
    if (longest > INT32_MAX - 2 * KEYS)
        return mla_fail(MLA_ERR_UNSUPPORTED, "%s: %s: got %lld keys, want at most %d on CUDA",
                        function, a->cu_seqlens_q ? "seq_lens_kv" : "num_keys", (long long)longest,
                        INT32_MAX - 2 * KEYS);
    if (a->num_queries > 1 << 30)
        return mla_fail(MLA_ERR_UNSUPPORTED, "%s: num_queries: got %lld, want at most 2^30 on CUDA",
                        function, (long long)a->num_queries);
    p->k = a->topk < longest ? a->topk : longest;
    if (a->topk && !p->k)
        p->k = 1;
    if (p->k > 1 << 28)
        return mla_fail(MLA_ERR_UNSUPPORTED, "%s: topk: got %lld, want at most 2^28 on CUDA",
                        function, (long long)p->k);
    int processors = 0;
    cudaError_t error =
        cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, context->device);
    if (error != cudaSuccess)
        return mla_cuda_fail(function, "cudaDeviceGetAttribute", error);
    size_t limit = a->workspace_limit_bytes;
    for (int small = 0; small < 2; small++) {
        p->capacity = select_capacity(p->k, 1024, small);
        for (p->blocks = processors;; p->blocks /= 2) {
            for (p->rows = ROWS; p->rows; p->rows /= 2) {
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

extern "C" mla_status mla_cuda_index_workspace(const char *function, const mla_context *context,
                                               const mla_index_args *args, int64_t longest,
                                               size_t *bytes)
{
    struct plan p = {};
    mla_status status = make_plan(function, context, args, longest, &p);
    if (!status)
        *bytes = p.total;
    return status;
}

static void set_inputs(const mla_index_args *args, struct index_launch *a)
{
    a->q = (const char *)args->q.data;
    a->q_fp8 = args->q_format == MLA_INDEX_FP8;
    int64_t item = a->q_fp8 ? 1 : 2;
    a->heads = (int)args->heads;
    a->dim = (int)args->dim;
    a->q_head = mla_stride1(&args->q, args->dim) * item;
    a->q_row = args->q.stride[0] ? args->q.stride[0] * item : args->heads * a->q_head;
    a->weights = (const float *)args->weights.data;
    a->weight_row = mla_stride0(&args->weights, args->heads);
    int64_t row = args->dim * (args->k_format == MLA_INDEX_FP8 ? 1 : 2);
    a->page_size = (int)args->page_size;
    a->num_pages = (int)args->num_pages;
    if (args->page_size) {
        a->k = (const char *)args->k_cache.data;
        a->page_bytes = mla_stride0(&args->k_cache, args->page_size * (row + 4));
        a->page_table = (const int32_t *)args->page_table.data;
        a->table_row = mla_stride0(&args->page_table, args->max_pages);
        int64_t bits = (int64_t)(uintptr_t)a->k | a->page_bytes;
        a->wide = (bits | row) % 16 == 0;
        a->wide_scale = (bits | args->page_size * row) % 4 == 0;
    } else {
        a->k = (const char *)args->k.data;
        a->k_row = mla_stride0(&args->k, args->dim) * (args->k_format == MLA_INDEX_FP8 ? 1 : 2);
        a->k_scale = (const char *)args->k_scale;
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
    a->indices = (int32_t *)args->indices.data;
    a->lens = args->topk_lens;
    a->scores = (float *)args->scores.data;
    a->logits = args->logits_columns ? (float *)args->logits.data : NULL;
    a->logits_row = mla_stride0(&args->logits, args->logits_columns);
    a->items = (uint64_t *)workspace;
}

static cudaError_t launch_all(const mla_index_args *args, const struct plan *p,
                              struct index_launch *a, cudaStream_t stream)
{
    const void *kernel = args->k_format == MLA_INDEX_BF16  ? (const void *)index_kernel<BF16>
                         : args->q_format == MLA_INDEX_FP8 ? (const void *)index_kernel<FP8_F16>
                                                           : (const void *)index_kernel<FP8_BF16>;
    int bytes = 2 * K_BYTES + (args->k_format == MLA_INDEX_BF16 ? 0 : RAW_BYTES), longest;
    cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (!error)
        error = cudaFuncSetAttribute((const void *)merge_kernel,
                                     cudaFuncAttributeMaxDynamicSharedMemorySize, 2 * K_BYTES);
    if (!error && a->logits && args->num_queries) {
        int64_t rows = args->num_queries, columns = args->logits_columns, stride = a->logits_row;
        void *list[] = {&a->logits, &rows, &columns, &stride};
        error = cudaLaunchKernel((const void *)fill_kernel, dim3(1024), dim3(256), list, 0, stream);
    }
    struct walk at = {};
    while (!error && next_launch(args, p, &at, a, &longest)) {
        a->parts = parts_of(a, p->blocks, longest);
        int64_t blocks = (int64_t)a->tiles * a->parts;
        blocks = blocks < p->blocks ? blocks : p->blocks;
        /* Counts end where the plan's bytes do. */
        a->counts = (int *)((char *)a->items + p->total) - blocks * a->rows;
        void *list[] = {a};
        error =
            cudaLaunchKernel(kernel, dim3((unsigned)blocks), dim3(THREADS), list, bytes, stream);
        if (error || a->parts == 1 || !a->k_list)
            continue;
        const struct index_request *last = &a->requests[a->num_requests - 1];
        int first = a->requests[0].q_start, rows = last->q_start + last->query_len - first;
        void *merge[] = {a, &first};
        error = cudaLaunchKernel((const void *)merge_kernel, dim3((unsigned)rows), dim3(THREADS),
                                 merge, 2 * K_BYTES, stream);
    }
    return error;
}

extern "C" mla_status mla_cuda_index_run(const mla_context *context, const mla_index_args *args,
                                         int64_t longest, void *workspace, void *stream)
{
    const char *function = "mla_index_run";
    struct plan p = {};
    struct index_launch a = {};
    mla_status status = make_plan(function, context, args, longest, &p);
    if (status)
        return status;
    set_inputs(args, &a);
    set_outputs(args, &p, workspace, &a);
    int before;
    status = mla_cuda_enter(context, &before);
    if (status)
        return status;
    cudaError_t error = launch_all(args, &p, &a, (cudaStream_t)stream);
    mla_cuda_leave(context, before);
    return error == cudaSuccess ? MLA_OK : mla_cuda_fail(function, "cudaLaunchKernel", error);
}

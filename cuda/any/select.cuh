/* SPDX-License-Identifier: Apache-2.0 */
/* Exact selection by a block of 256 threads. As on the CPU (reference/topk.h), a score and its
 * index are one 64-bit item, ordered as the lists are: larger score first, -0 = +0, NaN below -inf,
 * lower index first. All items of a row differ, so "the k largest" is one set and its order is one
 * order, in whatever sequence items arrive.
 *
 * A row's state is a buffer of items in global memory, their count, and a floor: the k-th largest
 * so far is at or above it, so what lies below the floor cannot be in the list. When the buffer is
 * full, keep_largest() leaves k items and raises the floor. */
#ifndef MLA_CUDA_SELECT_CUH
#define MLA_CUDA_SELECT_CUH

#include "mla/index.h"

#include <stdint.h>

static const int THREADS = 256;
static const int WARPS = THREADS / 32;
static const int BINS = 2048, BIN_BITS = 11;

struct select_shared {
    uint32_t histogram[BINS];
    uint64_t low[WARPS], high[WARPS];
    uint32_t sum[WARPS];
    uint32_t bin, above, count;
    int kept;
};

__device__ __forceinline__ uint64_t item_of(float x, int index)
{
    uint32_t bits = __float_as_uint(x + 0.0f); /* -0 becomes +0 */
    bits = x != x ? 0 : bits >> 31 ? ~bits : bits | 0x80000000u;
    return (uint64_t)bits << 32 | ~(uint32_t)index;
}

__device__ __forceinline__ float score_of(uint32_t bits)
{
    if (bits == 0)
        return __uint_as_float(0x7FC00000u);
    return __uint_as_float(bits >> 31 ? bits & 0x7FFFFFFFu : ~bits);
}

/* x such that exactly k of the n > k >= 1 items are >= x. A radix select whose digits cover just
 * the range that is left, so that scores of one binade spread over all bins: two rounds as a
 * rule. */
static __device__ uint64_t find_floor(const uint64_t *items, int n, int k, struct select_shared *s)
{
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    uint64_t low = ~0ull, high = 0;
    for (int i = threadIdx.x; i < n; i += THREADS) {
        uint64_t x = items[i];
        low = x < low ? x : low;
        high = x > high ? x : high;
    }
    for (int step = 16; step; step /= 2) {
        uint64_t l = __shfl_xor_sync(0xFFFFFFFFu, low, step);
        uint64_t h = __shfl_xor_sync(0xFFFFFFFFu, high, step);
        low = l < low ? l : low;
        high = h > high ? h : high;
    }
    if (lane == 0) {
        s->low[warp] = low;
        s->high[warp] = high;
    }
    __syncthreads();
    for (int i = 0; i < WARPS; i++) {
        low = s->low[i] < low ? s->low[i] : low;
        high = s->high[i] > high ? s->high[i] : high;
    }
    int shift = max(0, 64 - __clzll((long long)(high - low)) - BIN_BITS), bins = BINS;
    uint32_t need = k;
    for (;;) {
        for (int i = threadIdx.x; i < BINS; i += THREADS)
            s->histogram[i] = 0;
        __syncthreads();
        for (int i = threadIdx.x; i < n; i += THREADS) {
            uint64_t x = items[i], digit = (x - low) >> shift;
            if (x >= low && digit < (uint64_t)bins)
                atomicAdd(&s->histogram[digit], 1u);
        }
        __syncthreads();
        /* The bin from the top where the count reaches need. */
        const int each = BINS / THREADS;
        int top = BINS - 1 - each * threadIdx.x;
        uint32_t own = 0;
        for (int i = 0; i < each; i++)
            own += s->histogram[top - i];
        uint32_t upto = own;
        for (int step = 1; step < 32; step *= 2) {
            uint32_t other = __shfl_up_sync(0xFFFFFFFFu, upto, step);
            upto += lane >= step ? other : 0;
        }
        if (lane == 31)
            s->sum[warp] = upto;
        __syncthreads();
        for (int i = 0; i < warp; i++)
            upto += s->sum[i];
        uint32_t above = upto - own;
        if (above < need && upto >= need) {
            int bin = top;
            for (; above + s->histogram[bin] < need; bin--)
                above += s->histogram[bin];
            s->bin = bin;
            s->above = above;
            s->count = s->histogram[bin];
        }
        __syncthreads();
        low += (uint64_t)s->bin << shift;
        need -= s->above;
        if (s->count == need) /* at the latest where a bin is one item */
            return low;
        bins = 1 << min(shift, BIN_BITS);
        shift = max(0, shift - BIN_BITS);
    }
}

/* Moves the items >= floor to the front, in place; returns their number. */
static __device__ int keep_above(uint64_t *items, int n, uint64_t floor, struct select_shared *s)
{
    int lane = threadIdx.x % 32;
    if (threadIdx.x == 0)
        s->kept = 0;
    for (int at = 0; at < n; at += 4 * THREADS) {
        uint64_t x[4];
        for (int j = 0; j < 4; j++) {
            int i = at + j * THREADS + threadIdx.x;
            x[j] = i < n ? items[i] : 0;
        }
        __syncthreads(); /* all of the piece is read: it may be overwritten */
        for (int j = 0; j < 4; j++) {
            bool keep = at + j * THREADS + (int)threadIdx.x < n && x[j] >= floor;
            uint32_t votes = __ballot_sync(0xFFFFFFFFu, keep);
            int to = 0;
            if (lane == 0 && votes)
                to = atomicAdd(&s->kept, __popc(votes));
            to = __shfl_sync(0xFFFFFFFFu, to, 0) + __popc(votes & ((1u << lane) - 1));
            if (keep)
                items[to] = x[j];
        }
    }
    __syncthreads();
    return s->kept;
}

/* The block's row state: all threads call, with no append under way. */
static __device__ void keep_largest(uint64_t *items, int *count, uint64_t *floor, int k,
                                    struct select_shared *s)
{
    uint64_t low = find_floor(items, *count, k, s);
    int n = keep_above(items, *count, low, s);
    if (threadIdx.x == 0) {
        *count = n;
        *floor = low;
    }
    __syncthreads();
}

/* Adds the items of lanes that `accept`; whole warps call. Returns the row's count after it. */
__device__ __forceinline__ int append(uint64_t *items, int *count, bool accept, uint64_t item)
{
    int lane = threadIdx.x % 32, at = 0;
    uint32_t votes = __ballot_sync(0xFFFFFFFFu, accept);
    if (votes == 0)
        return 0;
    if (lane == 0)
        at = atomicAdd(count, __popc(votes));
    at = __shfl_sync(0xFFFFFFFFu, at, 0);
    if (accept)
        items[at + __popc(votes & ((1u << lane) - 1))] = item;
    return at + __popc(votes);
}

/* A power of two no less than n. */
__device__ __forceinline__ int sort_length(int n)
{
    return n <= 1 ? n : 1 << (32 - __clz(n - 1));
}

/* Bitonic, largest first; n is 0, 1 or a power of two. */
static __device__ void sort(uint64_t *x, int n)
{
    for (int size = 2; size <= n; size *= 2) {
        for (int stride = size / 2; stride; stride /= 2) {
            __syncthreads();
            for (int i = threadIdx.x; i < n / 2; i += THREADS) {
                int a = 2 * i - (i & (stride - 1)), b = a + stride;
                uint64_t p = x[a], q = x[b];
                if ((p < q) == ((a & size) == 0)) {
                    x[a] = q;
                    x[b] = p;
                }
            }
        }
    }
    __syncthreads();
}

/* Where a row's list goes; entry = index - base. */
struct list_out {
    int32_t *indices;
    float *scores; /* or NULL */
    int32_t *len;  /* or NULL */
    int64_t topk;  /* entries of the row; past the list -1 and -inf */
    int base;
    bool ascending;
};

/* Selects, sorts and writes a row. items has room for sort_length(k); scratch, in shared memory, is
 * used where the list fits its `room` items. */
static __device__ void finish_row(uint64_t *items, int *count, uint64_t *floor, int k,
                                  uint64_t *scratch, int room, struct select_shared *s,
                                  const struct list_out &out)
{
    if (*count > k)
        keep_largest(items, count, floor, k, s);
    int n = *count, length = sort_length(n);
    uint64_t *x = length <= room ? scratch : items;
    for (int i = threadIdx.x; i < length; i += THREADS) {
        uint64_t item = i < n ? items[i] : 0;
        /* Complemented indices descend where indices ascend. */
        x[i] = out.ascending ? item << 32 | item >> 32 : item;
    }
    sort(x, length);
    for (int64_t i = threadIdx.x; i < out.topk; i += THREADS) {
        uint64_t item = i < n ? x[i] : 0;
        uint32_t index = ~(uint32_t)(out.ascending ? item >> 32 : item);
        uint32_t score = (uint32_t)(out.ascending ? item : item >> 32);
        out.indices[i] = i < n ? (int32_t)index - out.base : -1;
        if (out.scores)
            out.scores[i] = i < n ? score_of(score) : -INFINITY;
    }
    if (out.len && threadIdx.x == 0)
        *out.len = n;
    __syncthreads();
}

/* Items of one row's buffer: the more, the fewer selections. At least k and what comes in between
 * two looks at the count, and room to sort k of them in place. */
static inline int64_t select_capacity(int64_t k, int64_t step, bool small)
{
    int64_t power = 1, most = small ? k + step : 3 * k > k + 2 * step ? 3 * k : k + 2 * step;
    while (power < k)
        power *= 2;
    most = most > power ? most : power;
    return (most + 15) & ~(int64_t)15;
}

#endif

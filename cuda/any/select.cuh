/* SPDX-License-Identifier: Apache-2.0 */
/* Exact selection by a team of threads. As on the CPU (reference/topk.h), a score and its index are
 * one 64-bit item, ordered as the lists are: larger score first, -0 = +0, NaN below -inf, lower
 * index first. All items of a row differ, so "the k largest" is one set and its order is one order,
 * in whatever sequence items arrive.
 *
 * A row's state is a buffer of items in global memory, their count, and a floor: the k-th largest
 * so far is at or above it, so what lies below the floor cannot be in the list. When the buffer is
 * full, keep_largest() leaves k items and raises the floor.
 *
 * A team is THREADS threads, whole warps, with SELECT_BYTES of shared memory. Its class says how
 * they reach it, since kernels of sm_100 use 32-bit addresses alone: rank(), sync(), get<T>(at),
 * put(at, value) and add(at, n), which returns what was there. Every function here is called by all
 * threads of the team, with the same arguments. */
#ifndef MLA_CUDA_SELECT_CUH
#define MLA_CUDA_SELECT_CUH

#include "mla/index.h"

#include <stdint.h>

static const int BINS = 2048, BIN_BITS = 11;

/* Where a team's shared memory has what. */
enum {
    SELECT_LOW = 0,   /* a warp's smallest item, 8 bytes for each of up to 8 warps */
    SELECT_HIGH = 64, /* its largest */
    SELECT_SUM = 128, /* items in its bins */
    SELECT_BIN = 160,
    SELECT_ABOVE = 164,
    SELECT_COUNT = 168,
    SELECT_KEPT = 172,
    SELECT_BINS = 176,
    SELECT_BYTES = SELECT_BINS + 4 * BINS
};

/* All threads of a block of N, shared memory by pointer. */
template <int N> struct block_team {
    static const int THREADS = N;
    char *memory;

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
        return *(const T *)(memory + at);
    }
    template <class T> __device__ __forceinline__ void put(int at, T value) const
    {
        *(T *)(memory + at) = value;
    }
    __device__ __forceinline__ uint32_t add(int at, uint32_t n) const
    {
        return atomicAdd((uint32_t *)(memory + at), n);
    }
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

/* x such that exactly k of the n > k >= 1 items are >= x, and the largest item. A radix select
 * whose digits cover just the range that is left, so that scores of one binade spread over all
 * bins: two rounds as a rule. */
template <class TEAM>
static __device__ uint64_t find_floor(const TEAM &team, const uint64_t *items, int n, int k,
                                      uint64_t *largest)
{
    const int threads = TEAM::THREADS, warps = threads / 32;
    int rank = team.rank(), lane = rank % 32, warp = rank / 32;
    uint64_t low = ~0ull, high = 0;
    for (int i = rank; i < n; i += threads) {
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
        team.put(SELECT_LOW + 8 * warp, low);
        team.put(SELECT_HIGH + 8 * warp, high);
    }
    team.sync();
    for (int i = 0; i < warps; i++) {
        uint64_t l = team.template get<uint64_t>(SELECT_LOW + 8 * i);
        uint64_t h = team.template get<uint64_t>(SELECT_HIGH + 8 * i);
        low = l < low ? l : low;
        high = h > high ? h : high;
    }
    *largest = high;
    int shift = max(0, 64 - __clzll((long long)(high - low)) - BIN_BITS), bins = BINS;
    uint32_t need = k;
    for (;;) {
        for (int i = rank; i < BINS; i += threads)
            team.put(SELECT_BINS + 4 * i, 0u);
        team.sync();
        for (int i = rank; i < n; i += threads) {
            uint64_t x = items[i], digit = (x - low) >> shift;
            if (x >= low && digit < (uint64_t)bins)
                team.add(SELECT_BINS + 4 * (int)digit, 1u);
        }
        team.sync();
        /* The bin from the top where the count reaches need. */
        const int each = BINS / threads;
        int top = BINS - 1 - each * rank;
        uint32_t own = 0;
        for (int i = 0; i < each; i++)
            own += team.template get<uint32_t>(SELECT_BINS + 4 * (top - i));
        uint32_t upto = own;
        for (int step = 1; step < 32; step *= 2) {
            uint32_t other = __shfl_up_sync(0xFFFFFFFFu, upto, step);
            upto += lane >= step ? other : 0;
        }
        if (lane == 31)
            team.put(SELECT_SUM + 4 * warp, upto);
        team.sync();
        for (int i = 0; i < warp; i++)
            upto += team.template get<uint32_t>(SELECT_SUM + 4 * i);
        uint32_t above = upto - own;
        if (above < need && upto >= need) {
            int bin = top;
            uint32_t count;
            while (count = team.template get<uint32_t>(SELECT_BINS + 4 * bin),
                   above + count < need) {
                above += count;
                bin--;
            }
            team.put(SELECT_BIN, (uint32_t)bin);
            team.put(SELECT_ABOVE, above);
            team.put(SELECT_COUNT, count);
        }
        team.sync();
        low += (uint64_t)team.template get<uint32_t>(SELECT_BIN) << shift;
        need -= team.template get<uint32_t>(SELECT_ABOVE);
        if (team.template get<uint32_t>(SELECT_COUNT) == need) /* at the latest a bin is one item */
            return low;
        bins = 1 << min(shift, BIN_BITS);
        shift = max(0, shift - BIN_BITS);
    }
}

/* Puts the items of lanes that keep behind the SELECT_KEPT items that are there; whole warps. */
template <class TEAM>
__device__ __forceinline__ void keep_items(const TEAM &team, uint64_t *items, bool keep, uint64_t x)
{
    int lane = team.rank() % 32, to = 0;
    uint32_t votes = __ballot_sync(0xFFFFFFFFu, keep);
    if (lane == 0 && votes)
        to = (int)team.add(SELECT_KEPT, __popc(votes));
    to = __shfl_sync(0xFFFFFFFFu, to, 0) + __popc(votes & ((1u << lane) - 1));
    if (keep)
        items[to] = x;
}

/* Moves the items >= floor to the front, in place; returns their number. */
template <class TEAM>
static __device__ int keep_above(const TEAM &team, uint64_t *items, int n, uint64_t floor)
{
    const int threads = TEAM::THREADS;
    int rank = team.rank();
    if (rank == 0)
        team.put(SELECT_KEPT, 0u);
    for (int at = 0; at < n; at += 4 * threads) {
        uint64_t x[4];
        for (int j = 0; j < 4; j++) {
            int i = at + j * threads + rank;
            x[j] = i < n ? items[i] : 0;
        }
        team.sync(); /* all of the piece is read: it may be overwritten */
        for (int j = 0; j < 4; j++)
            keep_items(team, items, at + j * threads + rank < n && x[j] >= floor, x[j]);
    }
    team.sync();
    return (int)team.template get<uint32_t>(SELECT_KEPT);
}

/* Leaves the k largest of *n > k items; returns the smallest of them, the floor. No append is under
 * way. */
template <class TEAM>
static __device__ uint64_t keep_largest(const TEAM &team, uint64_t *items, int *n, int k,
                                        uint64_t *largest)
{
    uint64_t floor = find_floor(team, items, *n, k, largest);
    *n = keep_above(team, items, *n, floor);
    return floor;
}

/* Adds m other items to the n of a buffer, selecting when it is full; returns the new count. */
template <class TEAM>
static __device__ int join(const TEAM &team, uint64_t *items, int n, uint64_t floor,
                           const uint64_t *other, int m, int k, int capacity)
{
    const int threads = TEAM::THREADS;
    uint64_t largest;
    for (int at = 0; at < m; at += threads) {
        if (n > capacity - threads)
            floor = keep_largest(team, items, &n, k, &largest);
        team.sync(); /* all have read SELECT_KEPT */
        if (team.rank() == 0)
            team.put(SELECT_KEPT, (uint32_t)n);
        team.sync();
        uint64_t x = at + team.rank() < m ? other[at + team.rank()] : 0;
        keep_items(team, items, x && x >= floor, x);
        team.sync();
        n = (int)team.template get<uint32_t>(SELECT_KEPT);
    }
    return n;
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

/* Items that are sorted: where the list is, or in the team's shared memory. */
struct items_at {
    uint64_t *p;
    __device__ __forceinline__ uint64_t get(int i) const
    {
        return p[i];
    }
    __device__ __forceinline__ void put(int i, uint64_t x) const
    {
        p[i] = x;
    }
};

/* Bitonic, largest first; n is 0, 1 or a power of two. */
template <class TEAM, class ITEMS>
static __device__ void sort(const TEAM &team, const ITEMS &x, int n)
{
    for (int size = 2; size <= n; size *= 2) {
        for (int stride = size / 2; stride; stride /= 2) {
            team.sync();
            for (int i = team.rank(); i < n / 2; i += TEAM::THREADS) {
                int a = 2 * i - (i & (stride - 1)), b = a + stride;
                uint64_t p = x.get(a), q = x.get(b);
                if ((p < q) == ((a & size) == 0)) {
                    x.put(a, q);
                    x.put(b, p);
                }
            }
        }
    }
    team.sync();
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

/* Sorts the n selected items in `to` (may be where they are) and writes the row. */
template <class TEAM, class ITEMS>
static __device__ void write_row(const TEAM &team, const uint64_t *items, int n, const ITEMS &to,
                                 const struct list_out &out)
{
    int length = sort_length(n);
    for (int i = team.rank(); i < length; i += TEAM::THREADS) {
        uint64_t item = i < n ? items[i] : 0;
        /* Complemented indices descend where indices ascend. */
        to.put(i, out.ascending ? item << 32 | item >> 32 : item);
    }
    sort(team, to, length);
    for (int64_t i = team.rank(); i < out.topk; i += TEAM::THREADS) {
        uint64_t item = i < n ? to.get((int)i) : 0;
        uint32_t index = ~(uint32_t)(out.ascending ? item >> 32 : item);
        uint32_t score = (uint32_t)(out.ascending ? item : item >> 32);
        out.indices[i] = i < n ? (int32_t)index - out.base : -1;
        if (out.scores)
            out.scores[i] = i < n ? score_of(score) : -INFINITY;
    }
    if (out.len && team.rank() == 0)
        *out.len = n;
    team.sync();
}

/* Selects, sorts and writes a row of n items. items has room for sort_length(k); scratch, in shared
 * memory, is used where the list fits its `room` items. */
template <class TEAM, class ITEMS>
static __device__ void finish_row(const TEAM &team, uint64_t *items, int n, int k,
                                  const ITEMS &scratch, int room, const struct list_out &out)
{
    uint64_t largest;
    if (n > k)
        keep_largest(team, items, &n, k, &largest);
    team.sync();
    if (sort_length(n) <= room) {
        write_row(team, items, n, scratch, out);
    } else {
        struct items_at in_place = {items};
        write_row(team, items, n, in_place, out);
    }
}

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* Unions of the top-k lists of neighbouring query tokens (union.h), one block of 256 threads a
 * group: a bit a key and token in shared memory, from which keys come out in ascending order. Keys
 * beyond what the bits hold are taken in further rounds over the lists, window by window. What a
 * token may not see (out of range, of its future, past its length) is in no union. A group of one
 * token, or whose union is longer than most / 256 of its entries or than its room, counts -1: it
 * would gain nothing.
 *
 * Shared memory: bits [token][window / 32]. Memory traffic: the lists once a window (from L2), the
 * union once; neighbouring threads have neighbouring words, so their entries share lines. */
#include "../mutant.cuh"
#include "../ptx/launch.cuh"
#include "../ptx/shared.cuh"
#include "union.cuh"

static const int THREADS = MLA_UNION_THREADS;

/* Sum of x over the threads before this one; all: over all. */
__device__ __forceinline__ int sum_before(int x, int *warp_sums, int *all)
{
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, sum = x;
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
        int below = __shfl_up_sync(0xFFFFFFFFu, sum, offset);
        sum += lane >= offset ? below : 0;
    }
    if (lane == 31)
        warp_sums[warp] = sum;
    __syncthreads();
    int before = sum - x, total = 0;
#pragma unroll
    for (int w = 0; w < THREADS / 32; w++) {
        before += w < warp ? warp_sums[w] : 0;
        total += warp_sums[w];
    }
    __syncthreads();
    *all = total;
    return before;
}

/* Lists of one group. */
struct group_lists {
    const int32_t *list; /* of the first token */
    int64_t stride;
    int tokens, token0, query_len, seq_len, causal, topk;
    const int32_t *lens; /* of the first token, or NULL */
};

__device__ __forceinline__ int end_of(const struct group_lists &l, int t)
{
    if (MLA_MUTANT == 1)
        t = l.tokens - 1;
    return l.causal ? min(l.seq_len, l.seq_len - l.query_len + l.token0 + t + 1) : l.seq_len;
}

__device__ __forceinline__ int count_of(const struct group_lists &l, int t)
{
    return l.lens && MLA_MUTANT != 2 ? max(0, min(l.topk, l.lens[t])) : l.topk;
}

/* Sets bits of the keys first … first + 32 words - 1 that some of the tokens list. */
__device__ __forceinline__ void mark_keys(const struct group_lists &l, uint32_t *bits, int words,
                                          int first, int from, int to)
{
    if (from == 0)
        for (int i = threadIdx.x; i < l.tokens * words && (MLA_MUTANT != 3 || first == 0);
             i += THREADS)
            bits[i] = 0;
    __syncthreads();
    for (int t = from; t < to; t++) {
        const int32_t *list = l.list + t * l.stride;
        int count = count_of(l, t), end = end_of(l, t);
        for (int j0 = threadIdx.x; j0 < count; j0 += 8 * THREADS) {
            int pos[8]; /* so many loads at a time */
#pragma unroll
            for (int u = 0; u < 8; u++)
                pos[u] = j0 + u * THREADS < count ? list[j0 + u * THREADS] : -1;
#pragma unroll
            for (int u = 0; u < 8; u++) {
                int at = pos[u] - first;
                if (pos[u] >= 0 && pos[u] < end && at >= 0 && at < words * 32)
                    atomicOr(bits + t * words + at / 32, 1u << at % 32);
            }
        }
    }
    __syncthreads();
}

/* The first entries of the other tokens' lists, which hold keys in any order: an entry of each a
 * thread, -1 for none. */
__device__ __forceinline__ void first_entries(const struct group_lists &l,
                                              int (&pos)[MLA_UNION_TOKENS])
{
#pragma unroll
    for (int t = 1; t < MLA_UNION_TOKENS; t++) {
        int j = threadIdx.x;
        pos[t] = t < l.tokens && j < count_of(l, t) ? l.list[t * l.stride + j] : -1;
        pos[t] = pos[t] < end_of(l, t) ? pos[t] : -1;
    }
}

/* Do they meet the first token's keys so seldom that the union would be too long, if lists of that
 * much in common met by chance? Most groups of lists without relation end here, with a fraction of
 * their entries read. */
__device__ __forceinline__ bool unrelated(const int (&pos)[MLA_UNION_TOKENS], int tokens, int most,
                                          const uint32_t *bits, int *warp_sums)
{
    int found = 0, all; /* keys, and from bit 16 on those of the first token */
#pragma unroll
    for (int t = 1; t < MLA_UNION_TOKENS; t++)
        if (pos[t] >= 0)
            found += 1 + (int)((bits[pos[t] / 32] >> pos[t] % 32 & 1) << 16);
    sum_before(found, warp_sums, &all);
    const float common = (float)(all >> 16) / (float)(all & 0xFFFF);
    float missed = 1; /* by all tokens, of the keys that are as likely in each list */
    for (int t = 0; t < tokens; t++)
        missed *= 1 - common;
    return (1 - missed) * 256 > (float)(most * tokens) * common;
}

/* What a group counts. */
__device__ __forceinline__ void end_group(const struct mla_mqa_groups &g, int number, int count)
{
    if (threadIdx.x != 0)
        return;
    g.counts[number] = count;
    if (g.tally)
        atomicAdd(g.tally + (count < 0), 1u);
}

__global__ void __launch_bounds__(MLA_UNION_THREADS)
    union_kernel(const __grid_constant__ struct mla_union_args args)
{
    const struct mla_mqa_groups &g = args.groups;
    const int number = g.first + (int)blockIdx.x;
    MLA_DYNAMIC_SHARED(shared, 16);
    __shared__ int warp_sums[THREADS / 32];
    int found = find_group(args.requests, args.num_requests, g.size, number);
    if (found < 0)
        return;
    const struct mla_mqa_request *r = &args.requests[found];
    struct group_lists l;
    l.token0 = (number - group_of(g.size, *r, 0)) * g.size;
    l.query_len = r->query_len;
    l.tokens = min(g.size, l.query_len - l.token0);
    if (r->splits > 1 || l.tokens < 2)
        return end_group(g, number, -1);
    l.seq_len = r->seq_len_kv;
    if (args.seq_lens_kv)
        l.seq_len = max(0, min(l.seq_len, args.seq_lens_kv[r->index]));
    l.causal = args.causal;
    l.topk = args.topk;
    l.list = args.indices + (int64_t)(r->q_start + l.token0) * args.indices_stride;
    l.stride = args.indices_stride;
    l.lens = args.topk_lens ? args.topk_lens + r->q_start + l.token0 : NULL;
    int listed = 0;
    for (int t = 0; t < l.tokens; t++)
        listed += count_of(l, t);
    int most = min(g.capacity, (int)((int64_t)listed * args.most / 256));

    uint32_t *bits = (uint32_t *)shared, *entries = g.entries + (int64_t)blockIdx.x * g.capacity;
    int used = 0; /* entries so far */
    for (int first = 0; first < l.seq_len; first += args.words * 32) {
        int words = min(args.words, (l.seq_len - first + 31) / 32);
        const bool looks = args.most < 192 && words * 32 >= l.seq_len;
        int pos[MLA_UNION_TOKENS];
        if (looks)
            first_entries(l, pos);
        mark_keys(l, bits, words, first, 0, 1);
        if (looks && unrelated(pos, l.tokens, args.most, bits, warp_sums))
            return end_group(g, number, -1);
        mark_keys(l, bits, words, first, 1, l.tokens);
        for (int i = threadIdx.x; i - (int)threadIdx.x < words; i += THREADS) {
            uint32_t of_token[MLA_UNION_TOKENS], left = 0;
#pragma unroll
            for (int t = 0; t < MLA_UNION_TOKENS; t++) {
                of_token[t] = t < l.tokens && i < words ? bits[t * words + i] : 0;
                left |= of_token[t];
            }
            int all, at = used + sum_before(__popc(left), warp_sums, &all);
            if (used + all > most) /* the same in every thread */
                return end_group(g, number, -1);
            used += all;
            for (; left; left &= left - 1) {
                int bit = __ffs((int)left) - 1;
                uint32_t mask = 0;
#pragma unroll
                for (int t = 0; t < MLA_UNION_TOKENS; t++)
                    mask |= (of_token[t] >> bit & 1) << t;
                mask = MLA_MUTANT == 4 ? 255 : mask;
                entries[at++] = (uint32_t)(first + i * 32 + bit) | mask << MLA_UNION_MASK;
            }
        }
    }
    end_group(g, number, used);
}

extern "C" const void *mla_union_function(void)
{
    return mla_kernel_address(union_kernel);
}

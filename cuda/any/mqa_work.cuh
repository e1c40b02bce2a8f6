/* SPDX-License-Identifier: Apache-2.0 */
/* Absorbed-form attention: what every kernel's tiles have in common, whatever computes them. Which
 * request, rows and split of the keys a block works on; where keys lie; how a row ends. */
#ifndef MLA_CUDA_ANY_MQA_WORK_CUH
#define MLA_CUDA_ANY_MQA_WORK_CUH

#include "../cache.cuh"
#include "../mutant.cuh"
#include "mqa.h"
#include "union.cuh"

#include <limits.h>

/* What every thread of a block knows about its tile. */
struct work {
    struct mla_mqa_request r;
    int split;
    int row0, rows; /* rows of the request (token · heads + head) */
    int seq_len;
    int end;              /* keys at or past it are invisible to the whole tile */
    int count;            /* entries to walk: end, or the counted part of the list */
    int token0, tokens;   /* query tokens of the tile, token0 within the request */
    const int32_t *list;  /* or NULL */
    const int32_t *pages; /* row of the page table, or NULL */
};

/* Exclusive end of what query token i of the request may see. */
__device__ __forceinline__ int causal_end(const struct mla_mqa_args &a, const struct work &w, int i)
{
    return a.causal ? w.seq_len - w.r.query_len + i + 1 : w.seq_len;
}

/* The n lowest bits, for any n. */
__device__ __forceinline__ uint32_t bits_below(int n)
{
    return n <= 0 ? 0 : n >= 32 ? 0xFFFFFFFFu : (1u << n) - 1;
}

/* Tile `block` of the launch, which is one of request `found` of the table; of its rows the ROWS
 * from ROWS · part on, where tiles have a.tile_parts · ROWS. */
template <int ROWS>
__device__ __forceinline__ void set_work(const struct mla_mqa_args &a, int found, int block,
                                         int part, struct work *w)
{
    int parts = max(1, a.tile_parts), rows = ROWS * parts;
    w->r = a.requests[found];
    int local = block - w->r.first_block;
    w->split = local % w->r.splits;
    int t = local / w->r.splits;
    if (a.topk) {
        int tiles = (a.heads + rows - 1) / rows;
        int head0 = t % tiles * rows;
        w->row0 = t / tiles * a.heads + head0;
        w->rows = min(rows, a.heads - head0);
    } else {
        /* Causality makes late tiles long: they start first. */
        int tiles = (w->r.query_len * a.heads + rows - 1) / rows;
        w->row0 = (tiles - 1 - t) * rows;
        w->rows = min(rows, w->r.query_len * a.heads - w->row0);
    }
    part *= ROWS;
    w->row0 += min(part, w->rows - 1); /* a part without rows repeats the last one */
    w->rows = max(1, min(ROWS, w->rows - part));
    w->token0 = w->row0 / a.heads;
    w->tokens = (w->row0 + w->rows - 1) / a.heads - w->token0 + 1;
    w->seq_len = w->r.seq_len_kv;
    if (a.seq_lens_kv)
        w->seq_len = max(0, min(w->seq_len, a.seq_lens_kv[w->r.index]));
    w->end = max(0, min(w->seq_len, causal_end(a, *w, w->token0 + w->tokens - 1)));
    w->count = w->end;
    w->list = NULL;
    if (a.topk) {
        int64_t token = w->r.q_start + w->token0;
        w->list = a.indices + token * a.indices_stride;
        w->count = a.topk_lens ? max(0, min(a.topk, a.topk_lens[token])) : a.topk;
        if (MUTANT_HITS(PAST_LENGTH, token) || MUTANT_HITS(KEY_EXTRA, token) ||
            MUTANT_HITS(KEY_TWICE, token))
            w->count++;
        if (MUTANT_HITS(LENGTH_IGNORED, token))
            w->count = a.topk;
    }
    w->pages = NULL;
    if (a.cache.page_size > 0)
        w->pages = a.cache.page_table + w->r.index * a.cache.page_table_stride;
}

/* The group of this block; false: it has no union, or there is no such group. */
__device__ __forceinline__ bool set_group_work(const struct mla_mqa_group_args &args,
                                               struct work *w)
{
    const struct mla_mqa_args &a = args.a;
    const struct mla_mqa_groups &g = args.groups;
    int number = g.first + (int)blockIdx.x;
    int found = find_group(a.requests, a.num_requests, g.size, number);
    if (found < 0 || g.counts[number] < 0)
        return false;
    w->r = a.requests[found];
    w->split = 0;
    w->token0 = (number - group_of(g.size, w->r, 0)) * g.size;
    w->tokens = min(g.size, w->r.query_len - w->token0);
    w->row0 = w->token0 * a.heads;
    w->rows = w->tokens * a.heads;
    w->seq_len = w->r.seq_len_kv;
    w->end = INT_MAX; /* what no token may see is not in the union */
    w->count = g.counts[number];
    w->list = (const int32_t *)g.entries + (int64_t)blockIdx.x * g.capacity;
    w->pages = NULL;
    if (a.cache.page_size > 0)
        w->pages = a.cache.page_table + w->r.index * a.cache.page_table_stride;
    return true;
}

/* Has the kernel of groups computed this token's rows? */
__device__ __forceinline__ bool in_group(const struct mla_mqa_args &a, const struct work &w)
{
    return a.group_counts && a.group_counts[group_of(a.group_size, w.r, w.token0)] >= 0;
}

/* The request that holds tile `block` of `blocks`, found by each warp for itself. */
__device__ __forceinline__ int find_request(const struct mla_mqa_args &a, int block, int blocks)
{
    int found = 0;
    for (int i = threadIdx.x % 32; i < a.num_requests; i += 32) {
        int next = i + 1 < a.num_requests ? a.requests[i + 1].first_block : blocks;
        if (block >= a.requests[i].first_block && block < next)
            found = i;
    }
    return __reduce_max_sync(0xFFFFFFFFu, found);
}

/* Page id of a position, -1 where the tile cannot see it. */
__device__ __forceinline__ int fetch_page(const struct mla_mqa_args &a, const struct work &w,
                                          int pos)
{
    if (pos < 0 || pos >= w.end)
        return -1;
    if (!w.pages)
        return 0;
    int column = page_column(&a.cache, pos);
    if (MUTANT_HITS(WRONG_PAGE, w.r.q_start + w.token0) && column == 1)
        column = 0;
    return column < a.cache.max_pages ? w.pages[column] : -1;
}

__device__ __forceinline__ void store_pair(int dtype, char *out, int64_t at, float x, float y)
{
    if (dtype == MLA_F32) {
        ((float *)out)[at] = x;
        ((float *)out)[at + 1] = y;
        return;
    }
    uint32_t two = dtype == MLA_BF16 ? cvt_rn_bf16x2_f32(x, y) : cvt_rn_f16x2_f32(x, y);
    uint16_t *to = (uint16_t *)out + at;
    if ((uintptr_t)to % 4 == 0) {
        *(uint32_t *)to = two;
    } else {
        to[0] = (uint16_t)two;
        to[1] = (uint16_t)(two >> 16);
    }
}

/* The denominator is 2^reference · sum, plus the sink: its logarithm in lse_log2, and the factor
 * that makes sums of weighted rows the output. */
__device__ __forceinline__ float finish_row(float reference, float sum, bool has_sink, float sink,
                                            float *lse_log2)
{
    float sink_log2 = has_sink && !MUTANT(SINK_IGNORED) ? sink * 1.44269504f : -INFINITY;
    if (MUTANT(SINK_TWICE))
        sink_log2 += 1;
    float top = fmaxf(reference, sink_log2);
    *lse_log2 = top;
    if (isinf(top)) /* no key and no sink, or a sink that takes everything */
        return 0;
    float weight = exp2f(reference - top);
    float all = sum * weight + exp2f(sink_log2 - top);
    *lse_log2 = top + log2f(all);
    return weight / all;
}

#endif

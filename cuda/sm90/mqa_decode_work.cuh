/* SPDX-License-Identifier: Apache-2.0 */
/* Works of the kernels of mqa_decode and mqa_dense: which tile, rows and keys, and where boxes of
 * keys lie. */
#ifndef MLA_CUDA_SM90_MQA_DECODE_WORK_CUH
#define MLA_CUDA_SM90_MQA_DECODE_WORK_CUH

#include "mqa_tile.cuh"

/* Blocks of keys of a work. */
struct span {
    int first, last, boxes; /* boxes: end of those that TMA brings */
};

/* The first of the keys [from, until) whose page does not exist, or until. All lanes of a warp. */
__device__ __forceinline__ int first_missing(const struct mla_mqa_args &a, const struct work &w,
                                             int from, int until)
{
    const int first = page_column(&a.cache, from), end = page_column(&a.cache, until - 1) + 1;
    int missing = end;
#pragma unroll 4
    for (int i = first + (int)threadIdx.x % 32; i < end; i += 32) {
        const int page = i < a.cache.max_pages ? w.pages[i] : -1;
        if (page < 0 || page >= a.cache.num_pages)
            missing = min(missing, i);
    }
    missing = __reduce_min_sync(~0u, missing);
    return missing == end ? until : max(from, missing * a.cache.page_size);
}

/* Work `index` of the launch. Tiles that share keys are neighbours: L2 serves all but the first.
 * SCAN: boxes end at the first page that does not exist. */
template <bool PAIR, bool SCAN = true>
__device__ __forceinline__ struct span find_decode_work(const struct mla_decode90_args &g,
                                                        int index, u32 rank, struct work *w)
{
    struct mla_mqa_args a = g.a;
    struct mla_mqa_request r = g.only;
    int low = 0, high = a.num_requests - 1;
    while (low < high) { /* the last request that begins at or before this work */
        int middle = (low + high + 1) / 2;
        if (a.requests[middle].first_block <= index)
            low = middle;
        else
            high = middle - 1;
    }
    const int end = low + 1 < a.num_requests ? a.requests[low + 1].first_block : g.works;
    if (a.num_requests > 1)
        r = a.requests[low];
    a.requests = &r;
    const int first = r.first_block, splits = r.splits, tiles = (end - first) / splits;
    const int t = (index - first) % tiles, split = (index - first) / tiles;
    const int block = first + t * splits + split;
    set_work<ROWS>(a, 0, block, (int)rank, w);
    if (PAIR && !a.topk &&
        MLA_MUTANT != 14) { /* both blocks walk the keys that the later rows see */
        struct work later;
        set_work<ROWS>(a, 0, block, 1, &later);
        w->end = later.end;
        w->count = later.count;
    }
    const int steps = (w->count + KEYS - 1) / KEYS, share = (steps + splits - 1) / splits;
    struct span s;
    s.first = min(steps, w->split * share);
    s.last = min(steps, s.first + share);
    s.boxes = s.first;
    if (g.box_rows && !w->list && !a.mask)
        s.boxes = max(s.first, min(s.last, w->end / KEYS));
    /* TMA brings zeros of a page that does not exist, which would count as keys. */
    if (SCAN && w->pages && s.boxes > s.first)
        s.boxes = first_missing(a, *w, s.first * KEYS, s.boxes * KEYS) / KEYS;
    return s;
}

__device__ __forceinline__ struct decode_note note_of(const struct mla_mqa_args &a,
                                                      const struct work &w, const struct span &s)
{
    struct decode_note n;
    n.steps = s.last - s.first;
    n.boxes = s.boxes - s.first;
    n.row0 = w.row0;
    n.rows = w.rows;
    n.first = s.first * KEYS;
    n.limit = causal_end(a, w, 0);
    n.q_start = w.r.q_start;
    n.split = w.r.splits > 1;
    n.part = w.r.part_row + (int64_t)w.split * w.r.query_len * a.heads + w.row0;
    n.seen = w.end - n.first;
    n.kv_start = w.r.kv_start;
    n.pages = w.pages;
    n.number = 0;
    return n;
}

/* Where a box of keys lies. */
struct box {
    int slot, page;
};

__device__ __forceinline__ struct box find_box(const struct mla_mqa_args &a, const struct work &w,
                                               int pos)
{
    struct box b = {w.r.kv_start + pos, 0};
    if (w.pages && pos < w.end) {
        const int column = page_column(&a.cache, pos);
        b.slot = pos - column * a.cache.page_size;
        b.page = column < a.cache.max_pages ? w.pages[column] : -1;
    }
    return b;
}

#endif

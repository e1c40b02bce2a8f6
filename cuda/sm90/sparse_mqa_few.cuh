/* SPDX-License-Identifier: Apache-2.0 */
/* Absorbed-form attention of up to 16 heads on sm_90a (wgmma, cp.async, TMA for Q), over top-k
 * lists or all keys: out = softmax(scale · q · K^T) · K[:, :512], one query token a tile; bf16 or
 * f16 caches, flat or paged.
 *
 * wgmma has 64 rows, so keys and columns are the rows here and heads the columns: S^T = K·Q^T, 64
 * keys x 16 heads, and O^T = V^T·P^T, eight tiles of 64 columns x 16 heads. No row is padding.
 *
 * Two persistent blocks an SM of two warpgroups; a work is a token and a split of its keys. Of the
 * last works each block has as many blocks of keys as any other: what two blocks share of a work, one
 * of them does first of all and leaves O, sums and largest scores in memory, and the other goes on
 * from there at its end. That is one chain of sums, and the bits are those of an unshared work.
 *
 *   warpgroup  duty
 *   0          gathers rows: 36 cp.async of 16 bytes a thread and block of 64 keys
 *   1          scores, softmax, output
 *
 * Shared memory, bytes
 *   Q       16 heads x 576, nine tiles of [16][128 bytes], swizzled      18432
 *   K       a ring of five pairs of tiles [64 keys][128 bytes], swizzled  81920
 *   rope    such a tile                                                   8192
 *   P       64 keys x 16 heads, swizzled by 32 bytes                      2048
 *   largest scores of each warp, sums, visible keys, notes, barriers: 1.4 KB
 *
 * A block of keys is four pairs and its rope, which is free again when the scores are done, the
 * pairs as soon as their columns of the output are. The ring runs on over the ends of works.
 *
 *   barrier            count     arrives                              waits
 *   work_full[2]       1         gather                               math
 *   work_free[2]       4         math warps: are through              gather
 *   q_full             1 + tx    first math warp (TMA)                math
 *   k_full[5]          128       cp.async of the gather have landed   math
 *   k_free[5]          4         math warps                           gather
 *   rope_full, _free   128, 4    the same                             math, gather
 *   seen[2]            4         gather warps: visible keys           math
 *   named 1            128       math: P is written, is it too large?; largest scores are; sums are
 *
 * Rows that land by cp.async are writes of the generic proxy; the threads that wait for them make
 * the proxy fence before wgmma reads. Visible keys of block b + 2 are written when its first pair is
 * free, which was the last of block b, so two places are enough.
 *
 * Weights are relative to a score that all warps know, at first the largest of the first block. They
 * may be up to 2^8. So most blocks need one barrier between scores and output; where one of some warp
 * would be larger, they tell each other their largest scores, O is rescaled, and P written anew.
 *
 * Clocks of 64 keys: shared memory 245 KB (keys written 72, A of 68 products 136, B 34, P) 1960 at
 * 128 bytes; L2 72 KB, 2240 at the 33 bytes a clock and SM that a gather alone reaches; the tensor
 * cores' own time is a third of that.
 *
 * A key that the token does not see is zero in shared memory and its score -inf: what an invisible
 * slot holds reaches nothing. P is rounded to the input type unnormalised, its sum is of fp32
 * values. Same inputs, same bits. */
#ifndef MLA_CUDA_SM90_SPARSE_MQA_FEW_CUH
#define MLA_CUDA_SM90_SPARSE_MQA_FEW_CUH

#include "any/mqa_work.cuh"
#include "any/union.cuh"
#include "element.cuh"
#include "ptx/barrier.cuh"
#include "ptx/cp_async.cuh"
#include "ptx/global.cuh"
#include "ptx/launch.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/opaque.cuh"
#include "ptx/shared.cuh"
#include "ptx/tma.cuh"
#include "ptx/warp.cuh"
#include "ptx/wgmma.cuh"
#include "ring.cuh"
#include "sparse_mqa_few.h"
#include "warpgroup.cuh"

#include <limits.h>

static const int FEW_THREADS = 256, KEYS = MLA_FEW_SM90_KEYS, HEADS = MLA_FEW_SM90_HEADS;
static const int OUT_TILES = MLA_MQA_LATENT / 64, PAIRS = OUT_TILES / 2;

template <int ROPE_> struct few_shape {
    static const int ROPE = ROPE_, TILES = OUT_TILES + ROPE / 64, SLOTS = 5;
    static const int GATHER = 4, /* warps; keys of each thread of them */
        ROWS = KEYS / (4 * GATHER);
    static const u32 tile_bytes = KEYS * 128, q_tile_bytes = HEADS * 128;
    static const u32 k_at = 9 * q_tile_bytes, rope_at = k_at + SLOTS * 2 * tile_bytes,
                     p_at = rope_at + tile_bytes;
    static const u32 tops_at = p_at + KEYS * HEADS * 2; /* [work % 2][warp][head], floats */
    static const u32 sums_at = tops_at + 8 * HEADS * 4; /* [work % 2][warp][head] */
    static const u32 seen_at = sums_at + 8 * HEADS * 4; /* [block % 2][key], bytes */
    static const u32 works_at = seen_at + 2 * KEYS;     /* 32 bytes each */
    static const u32 work_full = works_at + 2 * 32, work_free = work_full + 16,
                     seen = work_free + 16, k_full = seen + 16, k_free = k_full + 8 * SLOTS,
                     rope_full = k_free + 8 * SLOTS, rope_free = rope_full + 8,
                     q_full = rope_free + 8, number_at = q_full + 8, shared_bytes = number_at + 8;
    static_assert(ROPE == 0 || ROPE == 64, "rope 0 or 64");
    static_assert(SLOTS > PAIRS && SLOTS <= 2 * PAIRS, "visible keys: two places");
    static_assert(shared_bytes <= 115712, "two blocks an SM");
};

/* What the math warps learn of a work. */
struct few_note {
    int steps; /* blocks of keys; -1: no more works */
    int token, split;
    int hand;     /* state: h > 0 is left at place h - 1, h < 0 begins with that of place -h - 1 */
    int64_t part; /* row of head 0 in the partial results */
};

/* ------------------------------------------------------------------- gather */

/* One work as the gather warps see it. */
struct few_work {
    const int32_t *list, *pages; /* list NULL: all keys; pages NULL: flat */
    int first;                   /* without a list: the first key */
    int kv_start, count, end;    /* entries; keys below end count */
    int index, from, to;         /* of all works; blocks of keys of it, or of its split */
    struct few_note note;
};

/* A block's share of the works: every count-th one, and of the last ones, which are one to two a
 * block, as many blocks of keys as any other: it begins with the first keys of a work that its
 * successor ends, goes on with whole works, and ends with the last keys of its predecessor's. */
struct few_turn {
    int number, count; /* of this block, of all */
    int turn;          /* so far: 0 is that of the first keys */
    int rounds;        /* of works that are not among the last */
    int first, end;    /* of the last works, whole ones for this block */
    int head, rest;    /* blocks of keys of work `end`; those of work first - 1 that are done; 0 */
};

__device__ __forceinline__ struct few_turn begin_turns(const struct mla_few_sm90_args &args,
                                                       u32 number)
{
    struct few_turn t = {};
    t.count = gridDim.x;
    if (!args.steps) {
        t.number = blockIdx.x;
        t.rounds = (args.works - t.number + t.count - 1) / t.count;
        return t;
    }
    t.number = ld_shared<int>(number);
    t.rounds = args.works / t.count - 1;
    const int begin = t.rounds * t.count;
    const int64_t steps = (int64_t)(args.works - begin) * args.steps;
    const int64_t from = t.number * steps / t.count, to = (t.number + 1) * steps / t.count;
    t.rest = (int)(from % args.steps);
    t.first = begin + (int)(from / args.steps) + (t.rest > 0);
    t.end = begin + (int)(to / args.steps);
    t.head = (int)(to % args.steps);
    return t;
}

/* False: there are no more. */
__device__ __forceinline__ bool next_work(struct few_turn *t, struct few_work *w)
{
    if (t->turn == 0 && t->head == 0)
        t->turn++;
    const int turn = t->turn++, last = turn - 1 - t->rounds;
    w->from = 0;
    w->to = INT_MAX;
    w->note.hand = 0;
    if (turn == 0) {
        w->index = t->end;
        w->to = t->head;
        w->note.hand = t->number + 1;
    } else if (last < 0) {
        w->index = t->number + (turn - 1) * t->count;
    } else if (t->first + last < t->end) {
        w->index = t->first + last;
    } else {
        w->index = t->first - 1;
        w->from = t->rest;
        w->note.hand = -t->number;
        return t->rest > 0 && t->first + last == t->end;
    }
    return true;
}

/* False if the work is another kernel's. */
__device__ __forceinline__ bool find_few_work(const struct mla_mqa_args &a, struct few_work *w)
{
    const int index = w->index;
    int low = 0, high = a.num_requests - 1;
    while (low < high) { /* the last request that begins at or before this work */
        int middle = (low + high + 1) / 2;
        if (a.requests[middle].first_block <= index)
            low = middle;
        else
            high = middle - 1;
    }
    const struct mla_mqa_request *r = &a.requests[low];
    int local = index - r->first_block, split = local % r->splits, in_request = local / r->splits;
    int token = r->q_start + in_request, seq_len = r->seq_len_kv;
    if (a.group_counts && a.group_counts[group_of(a.group_size, *r, in_request)] >= 0)
        return false;
    if (a.seq_lens_kv)
        seq_len = max(0, min(seq_len, a.seq_lens_kv[r->index]));
    w->end = max(0, a.causal ? min(seq_len, seq_len - r->query_len + in_request + 1) : seq_len);
    w->count = !a.topk ? w->end : a.topk_lens ? max(0, min(a.topk, a.topk_lens[token])) : a.topk;
    w->pages = a.cache.page_size ? a.cache.page_table + r->index * a.cache.page_table_stride : NULL;
    w->kv_start = r->kv_start;
    int all = (w->count + KEYS - 1) / KEYS, share = (all + r->splits - 1) / r->splits;
    int first = min(all, split * share), last = min(all, first + share);
    last = first + min(w->to, last - first);
    first = min(last, first + w->from);
    w->first = first * KEYS;
    w->list = a.topk ? a.indices + token * a.indices_stride + first * KEYS : NULL;
    w->count = max(0, min(w->count, last * KEYS) - first * KEYS);
    w->note.steps = last - first;
    w->note.token = token;
    w->note.split = r->splits > 1;
    w->note.part = r->part_row + ((int64_t)split * r->query_len + in_request) * a.heads;
    return true;
}

template <class S>
__device__ __forceinline__ void gather_works(const struct mla_few_sm90_args &args, u32 smem)
{
    const struct mla_mqa_args &a = args.a;
    const struct mla_mqa_cache &c = a.cache;
    /* Eight threads a row: key 16 i + sub of a block, pieces part, part + 8, ... */
    const u32 lane = opaque((u32)threadIdx.x), sub = lane / 8, part = lane % 8, warp = lane / 32;
    const u32 to = opaque(smem + S::k_at + sub * 128 + ((part ^ (sub & 7)) << 4));
    const bool joined =
        !S::ROPE || (c.rope - c.data == 1024 && (c.page_size || c.rope_row_bytes == c.row_bytes));
    struct ring<2> slot;
    struct ring<S::SLOTS> pair;
    u32 blocks = 0;
    struct few_turn turns = begin_turns(args, smem + S::number_at);
    for (;;) {
        struct few_work w = {};
        bool stop;
        do
            stop = !next_work(&turns, &w);
        while (!stop && !find_few_work(a, &w));
        if (warp == 0) {
            mbarrier_wait(smem + S::work_free + slot.stage * 8, slot.phase ^ 1);
            if (elect_one()) {
                const u32 note = smem + S::works_at + slot.stage * 32;
                st_shared(note, stop ? -1 : w.note.steps);
                st_shared(note + 4, w.note.token);
                st_shared(note + 8, w.note.split);
                st_shared(note + 12, w.note.hand);
                st_shared(note + 16, w.note.part);
                mbarrier_arrive(smem + S::work_full + slot.stage * 8);
            }
            others_arrive(smem + S::work_full + slot.stage * 8);
            __syncwarp();
        }
        slot.next();
        if (stop)
            return;
        const char *base = c.data + part * 16, *rope_base = S::ROPE ? c.rope + part * 16 : base;
        if (!w.pages) {
            base += (int64_t)w.kv_start * c.row_bytes;
            rope_base += (int64_t)w.kv_start * c.rope_row_bytes;
        }
        /* Entries of the list are fetched two blocks ahead of the rows, page ids one. Nothing waits
         * for them where they are fetched. */
        int pos[S::ROWS], page[S::ROWS], ahead[S::ROWS];
        auto fetch_entries = [&](int step) __attribute__((always_inline))
        {
            const int at = step * KEYS + (int)sub, left = w.count - at;
#pragma unroll
            for (int i = 0; i < S::ROWS; i++)
                ahead[i] = i * 16 >= left ? -1
                           : w.list       ? w.list[at + i * 16]
                                          : w.first + at + i * 16;
        };
        auto fetch_pages = [&]() __attribute__((always_inline))
        {
#pragma unroll
            for (int i = 0; i < S::ROWS; i++)
                page[i] = pos[i] = ahead[i] < w.end ? ahead[i] : -1;
            if (w.pages) {
#pragma unroll
                for (int i = 0; i < S::ROWS; i++) {
                    const int column = page_column(&c, pos[i]);
                    page[i] = pos[i] >= 0 && column < c.max_pages ? w.pages[column] : -1;
                }
            }
        };
        fetch_entries(0);
        fetch_pages();
        fetch_entries(1);
#pragma unroll 1
        for (int step = 0; step < w.note.steps; step++, blocks++) {
            const char *data[S::ROWS], *rope[S::ROWS];
            u32 there = 0;
#pragma unroll
            for (int i = 0; i < S::ROWS; i++) {
                const bool see = page[i] >= 0 && (!w.pages || page[i] < c.num_pages);
                u32 in_page = (u32)pos[i];
                int64_t at = 0;
                if (w.pages) {
                    in_page -= (u32)(page_column(&c, pos[i]) * c.page_size);
                    at = page[i] * c.page_bytes;
                }
                data[i] = base + (at + in_page * c.row_bytes);
                rope[i] = joined ? data[i] + 1024
                                 : rope_base +
                                       (at + in_page * (w.pages ? c.row_bytes : c.rope_row_bytes));
                if (!see) /* nothing is read, but let the address be one of the cache */
                    data[i] = base, rope[i] = rope_base;
                data[i] = opaque(data[i]);
                rope[i] = opaque(rope[i]);
                there |= (u32)see << i;
            }
            auto copy_tile = [&](u32 at, const char *const(&from)[S::ROWS], int column)
                __attribute__((always_inline))
            {
#pragma unroll
                for (int i = 0; i < S::ROWS; i++)
                    cp_async_cg_16(at + i * 2048, from[i] + column * 128, there >> i & 1 ? 16 : 0);
            };
            auto copy_pair = [&](int number) __attribute__((always_inline))
            {
                if (MLA_MUTANT != 7)
                    mbarrier_wait(smem + S::k_free + pair.stage * 8, pair.phase ^ 1);
                const u32 at = opaque(to + pair.stage * 2 * S::tile_bytes);
                copy_tile(at, data, number * 2);
                copy_tile(at + S::tile_bytes, data, number * 2 + 1);
                cp_async_mbarrier_arrive_noinc(smem + S::k_full + pair.stage * 8);
                pair.next();
            };
            copy_pair(0);
            if (part == 0) {
#pragma unroll
                for (int i = 0; i < S::ROWS; i++)
                    st_shared(smem + S::seen_at + (blocks & 1) * KEYS + i * 16 + sub,
                              (unsigned char)(MLA_MUTANT == 5 || (there >> i & 1)));
            }
            release(smem + S::seen + (blocks & 1) * 8);
            fetch_pages();
            fetch_entries(step + 2);
            if (S::ROPE) {
                mbarrier_wait(smem + S::rope_free, ~blocks & 1);
                copy_tile(to + (S::rope_at - S::k_at), rope, 0);
                cp_async_mbarrier_arrive_noinc(smem + S::rope_full);
            }
#pragma unroll
            for (int i = 1; i < PAIRS; i++)
                copy_pair(i);
        }
    }
}

/* ------------------------------------------------------------------- queries */

/* The queries of the work in a slot of notes, if there is one; by a warp. */
template <class S>
__device__ __forceinline__ void load_queries(const struct mla_few_sm90_args &args, u32 smem,
                                             struct ring<2> slot)
{
    const u32 note = smem + S::works_at + slot.stage * 32;
    mbarrier_wait(smem + S::work_full + slot.stage * 8, slot.phase);
    if (ld_shared<int>(note) <= 0)
        return;
    if (elect_one()) {
        const int token = ld_shared<int>(note + 4);
        mbarrier_arrive_expect_tx(smem + S::q_full, S::TILES * S::q_tile_bytes);
#pragma unroll
        for (int i = 0; i < S::TILES; i++)
            tma_load_3d(smem + i * S::q_tile_bytes, &args.q, smem + S::q_full, i * 64, 0, token,
                        L2_EVICT_FIRST);
    }
    others_arrive(smem + S::q_full);
    __syncwarp();
}

/* ------------------------------------------------------------------- scores */

/* A lane of the math warps holds S^T of two keys, 16 warp + lane / 4 and + 8, and O^T of as many
 * columns of each tile, for four heads: of number j = 0 to 3 the head
 * 8 (j / 2) + 2 (lane % 4) + j % 2, in registers 4 (j / 2) + j % 2 and + 2 of each accumulator. */
__device__ __forceinline__ int few_head(int j)
{
    return j / 2 * 8 + (threadIdx.x & 3) * 2 + j % 2;
}

/* What a lane knows of its heads: what weights are relative to (the same in all warps), in log2; the
 * score above which they would be too large, -inf before the first; of its own keys the largest
 * score and the sum of weights. */
struct few_rows {
    float reference[4], limit[4], best[4], sum[4];
};

/* Of four values that all lanes with the same lane % 4 hold, combined over them, the one of head
 * number lane / 8: x[0] to x[3] are those of few_head. */
template <class F> __device__ __forceinline__ float combine_keys(const float (&x)[4], F both)
{
    const bool upper = threadIdx.x & 16, odd = threadIdx.x & 8;
    float y[2], z;
#pragma unroll
    for (int j = 0; j < 2; j++)
        y[j] = both(upper ? x[j + 2] : x[j], __shfl_xor_sync(~0u, upper ? x[j] : x[j + 2], 16));
    z = both(odd ? y[1] : y[0], __shfl_xor_sync(~0u, odd ? y[0] : y[1], 8));
    return both(z, __shfl_xor_sync(~0u, z, 4));
}

/* Writes such a value for the other warps; a barrier later all read what the four warps have. */
__device__ __forceinline__ void share_heads(u32 at, float x)
{
    const int lane = threadIdx.x % 32;
    if (!(lane & 4))
        st_shared(at + (threadIdx.x / 32 % 4 * HEADS + lane % 4 * 4 + lane / 8) * 4, x);
}

template <class F> __device__ __forceinline__ void read_heads(u32 at, float (&x)[4], F both)
{
    float4 four[4];
#pragma unroll
    for (int warp = 0; warp < 4; warp++)
        four[warp] = ld_shared<float4>(at + (warp * HEADS + threadIdx.x % 4 * 4) * 4);
    x[0] = both(both(four[0].x, four[1].x), both(four[2].x, four[3].x));
    x[1] = both(both(four[0].y, four[1].y), both(four[2].y, four[3].y));
    x[2] = both(both(four[0].z, four[1].z), both(four[2].z, four[3].z));
    x[3] = both(both(four[0].w, four[1].w), both(four[2].w, four[3].w));
}

/* S^T of a block: waits for its tiles one after another. at[i]: where pair i of tiles lies.
 * seen: does the token see this lane's keys? */
template <class T, class S>
__device__ __forceinline__ void score_block(float (&s)[8], u32 (&at)[PAIRS], bool (&seen)[2],
                                            u32 smem, u32 block, struct ring<S::SLOTS> *pair)
{
    auto multiply = [&](u32 keys, int tile, bool first) __attribute__((always_inline))
    {
        const u64 a = wgmma_desc(keys, 16, 1024, 128);
        const u64 b = wgmma_desc(smem + tile * S::q_tile_bytes, 16, 1024, 128);
#pragma unroll
        for (int k = 0; k < 4; k++)
            wgmma_ss<T, HEADS>(s, desc_advance(a, k * 32), desc_advance(b, k * 32),
                               !first || k > 0);
    };
#pragma unroll
    for (int n = 0; n < PAIRS; n++) {
        at[n] = smem + S::k_at + pair->stage * 2 * S::tile_bytes;
        if (MLA_MUTANT != 6 || n == 0)
            mbarrier_wait(smem + S::k_full + pair->stage * 8, pair->phase);
        pair->next();
        if (S::ROPE && n == 0)
            mbarrier_wait(smem + S::rope_full, block & 1);
        if (MLA_MUTANT != 1)
            fence_proxy_async();
        wgmma_fence();
        multiply(at[n], 2 * n, n == 0);
        multiply(at[n] + S::tile_bytes, 2 * n + 1, false);
        if (S::ROPE && n == 0)
            multiply(smem + S::rope_at, OUT_TILES, false);
        wgmma_commit();
        if (n == 0) {
            const u32 from = smem + S::seen_at + (block & 1) * KEYS + threadIdx.x / 32 % 4 * 16 +
                             threadIdx.x % 32 / 4;
            mbarrier_wait(smem + S::seen + (block & 1) * 8, block >> 1 & 1);
            seen[0] = ld_shared<unsigned char>(from) != 0;
            seen[1] = ld_shared<unsigned char>(from + 8) != 0;
        }
    }
}

/* Weights relative to r->reference; they go to shared memory. */
template <class T>
__device__ __forceinline__ void write_weights(float (&p)[8], const float (&s)[8], u32 to, u32 key,
                                              float scale, const struct few_rows *r)
{
#pragma unroll
    for (int i = 0; i < 8; i++)
        p[i] = ex2_approx_ftz(fmaf(s[i], scale, -r->reference[i / 4 * 2 + i % 2]));
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int half = 0; half < 2; half++)
            st_shared(to + half * 256 + ((u32)(i ^ (key >> 2 & 1)) << 4),
                      T::pack(p[i * 4 + half * 2], p[i * 4 + half * 2 + 1]));
    if (MLA_MUTANT != 3)
        fence_proxy_async();
}

__device__ __forceinline__ void rescale(float (&o)[OUT_TILES][8], const float (&factor)[4])
{
#pragma unroll
    for (int m = 0; m < OUT_TILES && MLA_MUTANT != 2; m++)
#pragma unroll
        for (int i = 0; i < 8; i++)
            o[m][i] *= factor[i / 4 * 2 + i % 2];
}

/* Softmax of a block: P^T goes to shared memory. Weights may be up to 2^8: only if one of some warp
 * would be larger, do the warps tell each other their largest scores, and is O rescaled. */
template <class T, class S>
__device__ __forceinline__ void weigh_block(float (&s)[8], float (&p)[8], const bool (&seen)[2],
                                            float (&o)[OUT_TILES][8], u32 smem, u32 tops,
                                            float scale, struct few_rows *r)
{
    const u32 t = threadIdx.x & 3, key = threadIdx.x / 32 % 4 * 16 + threadIdx.x % 32 / 4;
    const u32 to = smem + S::p_at + key * 32 + t * 4;
    bool beyond = false;
    float best[4];
#pragma unroll
    for (int i = 0; i < 8; i++)
        s[i] = seen[i >> 1 & 1] ? s[i] : -INFINITY;
#pragma unroll
    for (int j = 0; j < 4; j++) {
        best[j] = fmaxf(s[j / 2 * 4 + j % 2], s[j / 2 * 4 + j % 2 + 2]);
        r->best[j] = fmaxf(r->best[j], best[j]);
        beyond = beyond || best[j] > r->limit[j];
    }
    write_weights<T>(p, s, to, key, scale, r);
    if (MLA_MUTANT == 11)
        beyond = beyond && r->limit[0] == -INFINITY;
    if (!bar_sync_or(1, 128, beyond))
        return;
    auto larger = [](float x, float y) { return fmaxf(x, y); };
    share_heads(tops, combine_keys(best, larger));
    bar_sync(1, 128);
    read_heads(tops, best, larger);
    float factor[4];
#pragma unroll
    for (int j = 0; j < 4; j++) {
        /* -inf before the first key: any finite reference gives weights 0. */
        const float before = r->reference[j], now = best[j] * scale;
        const bool first = r->limit[j] == -INFINITY;
        factor[j] = 1;
        if (first ? now > -INFINITY : now > before) {
            r->reference[j] = now;
            r->limit[j] = (now + 8) / scale;
            factor[j] = first ? 1 : ex2_approx_ftz(before - now);
        }
        r->sum[j] *= factor[j];
    }
    rescale(o, factor);
    write_weights<T>(p, s, to, key, scale, r);
    if (MLA_MUTANT != 4)
        bar_sync(1, 128);
}

/* ------------------------------------------------------------------- output */

/* O^T += V^T·P^T, tile by tile, each of which is then given back. */
template <class T, class S>
__device__ __forceinline__ void add_values(float (&o)[OUT_TILES][8], const u32 (&at)[PAIRS],
                                           u32 smem)
{
    const u64 b = wgmma_desc(smem + S::p_at, 16, 256, 32);
    wgmma_fence();
#pragma unroll
    for (int m = 0; m < PAIRS; m++) {
#pragma unroll
        for (int k = 0; k < KEYS / 16; k++)
#pragma unroll
            for (int i = 0; i < 2; i++)
                wgmma_ss<T, HEADS, 1, 1>(
                    o[m * 2 + i],
                    desc_advance(wgmma_desc(at[m] + i * S::tile_bytes, 16, 1024, 128), k * 2048),
                    desc_advance(b, k * 512), true);
        wgmma_commit();
    }
}

/* Tiles that products have read, which this warp has waited for. */
template <class S> __device__ __forceinline__ void free_pair(u32 at, u32 smem)
{
    release(smem + S::k_free + (at - smem - S::k_at) / (2 * S::tile_bytes) * 8);
}

/* Denominators: lse and max_logits or their partial values, and the factor of the output. */
template <class S>
__device__ __forceinline__ void end_rows(const struct mla_mqa_args &a, const struct few_note &n,
                                         u32 smem, u32 slot, float scale, struct few_rows *r,
                                         float (&factor)[4])
{
    const u32 sums = smem + S::sums_at + slot * 4 * HEADS * 4,
              tops = smem + S::tops_at + slot * 4 * HEADS * 4;
    auto plus = [](float x, float y) { return x + y; };
    auto larger = [](float x, float y) { return fmaxf(x, y); };
    share_heads(sums, combine_keys(r->sum, plus));
    share_heads(tops, combine_keys(r->best, larger));
    bar_sync(1, 128);
    read_heads(sums, r->sum, plus);
    read_heads(tops, r->best, larger);
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const int head = few_head(j);
        const bool there = head < a.heads, sink = there && !n.split && a.sink;
        const float top = r->best[j] * scale;
        const float reference = r->limit[j] == -INFINITY ? -INFINITY : r->reference[j];
        float lse_log2;
        factor[j] = finish_row(reference, r->sum[j], sink, sink ? a.sink[head] : 0, &lse_log2);
        if (!there || threadIdx.x % 128 >= 4)
            continue;
        if (n.split) {
            a.part_lse[n.part + head] = lse_log2;
            a.part_max[n.part + head] = top;
        } else {
            if (a.lse)
                a.lse[n.token * a.lse_stride[0] + head * a.lse_stride[1]] = lse_log2 * a.lse_unit;
            if (a.max_logits)
                a.max_logits[n.token * a.max_stride[0] + head * a.max_stride[1]] =
                    top * 0.693147181f;
        }
    }
}

__device__ __forceinline__ void store_one(int dtype, char *out, int64_t at, float x)
{
    if (dtype == MLA_F32)
        ((float *)out)[at] = x;
    else
        ((uint16_t *)out)[at] =
            (uint16_t)(dtype == MLA_BF16 ? cvt_rn_bf16x2_f32(x, 0) : cvt_rn_f16x2_f32(x, 0));
}

__device__ __forceinline__ void store_out(const struct mla_mqa_args &a, const struct few_note &n,
                                          const float (&factor)[4], const float (&o)[OUT_TILES][8])
{
    const int column = threadIdx.x / 32 % 4 * 16 + threadIdx.x % 32 / 4;
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const int head = few_head(j);
        if (head >= a.heads)
            continue;
        int64_t to = column + (n.split ? (n.part + head) * MLA_MQA_LATENT
                                       : n.token * a.out_stride[0] + head * a.out_stride[1]);
#pragma unroll
        for (int m = 0; m < OUT_TILES; m++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                /* zeros, whatever o holds */
                float x = factor[j] == 0 ? 0 : o[m][j / 2 * 4 + half * 2 + j % 2] * factor[j];
                if (n.split)
                    a.part_out[to + m * 64 + half * 8] = x;
                else
                    store_one(a.out_dtype, a.out, to + m * 64 + half * 8, x);
            }
    }
}

/* What a lane knows of a work whose other keys are another block's. */
__device__ __forceinline__ float *few_state(const struct mla_few_sm90_args &args, int place)
{
    return args.states + (int64_t)place * MLA_FEW_SM90_STATE + threadIdx.x % 128;
}

__device__ __forceinline__ void leave_state(const struct mla_few_sm90_args &args, int place,
                                            const float (&o)[OUT_TILES][8],
                                            const struct few_rows &r)
{
    float *to = few_state(args, place);
#pragma unroll
    for (int i = 0; i < OUT_TILES * 8; i++)
        to[i * 128] = o[i / 8][i % 8];
    to += OUT_TILES * 8 * 128;
#pragma unroll
    for (int j = 0; j < 4; j++) {
        to[j * 128] = r.reference[j];
        to[(4 + j) * 128] = r.limit[j];
        to[(8 + j) * 128] = r.best[j];
        to[(12 + j) * 128] = r.sum[j];
    }
    bar_sync(1, 128);
    if (threadIdx.x % 128 == 0)
        st_release(args.flags + place, 1);
}

__device__ __forceinline__ void take_state(const struct mla_few_sm90_args &args, int place,
                                           float (&o)[OUT_TILES][8], struct few_rows *r)
{
    const float *from = few_state(args, place);
    while (!ld_acquire(args.flags + place)) {
    }
#pragma unroll
    for (int i = 0; i < OUT_TILES * 8; i++)
        o[i / 8][i % 8] = from[i * 128];
    from += OUT_TILES * 8 * 128;
#pragma unroll
    for (int j = 0; j < 4; j++) {
        r->reference[j] = from[j * 128];
        r->limit[j] = from[(4 + j) * 128];
        r->best[j] = from[(8 + j) * 128];
        r->sum[j] = from[(12 + j) * 128];
    }
}

template <class T, class S>
__device__ __forceinline__ void attend_works(const struct mla_few_sm90_args &args, u32 smem)
{
    const struct mla_mqa_args &a = args.a;
    struct ring<2> slot;
    struct ring<S::SLOTS> pair;
    u32 q_phase = 0, block = 0;
    const bool loads = warp_index() == 4;
    /* so that the largest score is the largest */
    const float scale = a.scale_log2 == 0 ? 1 : fabsf(a.scale_log2);
    if (loads)
        load_queries<S>(args, smem, slot);
    for (;;) {
        mbarrier_wait(smem + S::work_full + slot.stage * 8, slot.phase);
        const u32 note = smem + S::works_at + slot.stage * 32;
        const struct few_note n = {ld_shared<int>(note), ld_shared<int>(note + 4),
                                   ld_shared<int>(note + 8), ld_shared<int>(note + 12),
                                   ld_shared<int64_t>(note + 16)};
        if (n.steps < 0)
            return;
        struct ring<2> next = slot;
        next.next();
        float o[OUT_TILES][8];
        struct few_rows r;
#pragma unroll
        for (int i = 0; i < OUT_TILES * 8; i++)
            o[i / 8][i % 8] = 0;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            r.reference[j] = r.sum[j] = 0;
            r.limit[j] = r.best[j] = -INFINITY;
        }
        if (n.hand < 0 && MLA_MUTANT != 10)
            take_state(args, -n.hand - 1, o, &r);
        if (n.steps > 0) {
            mbarrier_wait(smem + S::q_full, q_phase);
            q_phase ^= 1;
        } else if (loads) {
            load_queries<S>(args, smem, next);
        }
#pragma unroll 1
        for (int step = 0; step < n.steps; step++, block++) {
            float s[8], p[8];
            u32 at[PAIRS];
            bool seen[2];
            score_block<T, S>(s, at, seen, smem, block, &pair);
            if (MLA_MUTANT == 8 && loads && step + 1 == n.steps)
                load_queries<S>(args, smem, next);
            wgmma_wait<0>();
            wgmma_bind(s);
            if (S::ROPE)
                release(smem + S::rope_free);
            if (MLA_MUTANT == 9)
                free_pair<S>(at[0], smem);
            if (a.scale_log2 <= 0) {
#pragma unroll
                for (int i = 0; i < 8; i++)
                    s[i] = a.scale_log2 == 0 ? 0 : -s[i];
            }
            weigh_block<T, S>(s, p, seen, o, smem, smem + S::tops_at + slot.stage * 4 * HEADS * 4,
                              scale, &r);
            /* all warps' scores are done */
            if (MLA_MUTANT != 8 && loads && step + 1 == n.steps)
                load_queries<S>(args, smem, next);
            add_values<T, S>(o, at, smem);
#pragma unroll
            for (int j = 0; j < 4; j++)
                r.sum[j] += p[j / 2 * 4 + j % 2] + p[j / 2 * 4 + j % 2 + 2];
            wgmma_wait<3>();
            if (MLA_MUTANT != 9)
                free_pair<S>(at[0], smem);
            wgmma_wait<2>();
            free_pair<S>(at[1], smem);
            wgmma_wait<1>();
            free_pair<S>(at[2], smem);
            wgmma_wait<0>();
            free_pair<S>(at[3], smem);
#pragma unroll
            for (int m = 0; m < OUT_TILES; m++)
                wgmma_bind(o[m]);
        }
        if (n.hand > 0) {
            leave_state(args, n.hand - 1, o, r);
        } else {
            float factor[4];
            end_rows<S>(a, n, smem, slot.stage, scale, &r, factor);
            store_out(a, n, factor, o);
        }
        release(smem + S::work_free + slot.stage * 8);
        slot.next();
    }
}

/* ------------------------------------------------------------------- kernel */

template <class T, class S>
__global__ void __launch_bounds__(FEW_THREADS, 2)
    few_sm90_kernel(const __grid_constant__ struct mla_few_sm90_args args)
{
    const u32 smem = dynamic_smem();
    const u32 warp = warp_index();
    if (args.left && *args.left == 0)
        return;
    if (warp == 0 && elect_one()) {
        for (int i = 0; i < 2; i++) {
            mbarrier_init(smem + S::work_full + i * 8, LANES_THAT_ARRIVE);
            mbarrier_init(smem + S::work_free + i * 8, 4 * LANES_THAT_ARRIVE);
            mbarrier_init(smem + S::seen + i * 8, S::GATHER * LANES_THAT_ARRIVE);
        }
        for (int i = 0; i < S::SLOTS; i++) {
            mbarrier_init(smem + S::k_full + i * 8, 32 * S::GATHER);
            mbarrier_init(smem + S::k_free + i * 8, 4 * LANES_THAT_ARRIVE);
        }
        mbarrier_init(smem + S::rope_full, 32 * S::GATHER);
        mbarrier_init(smem + S::rope_free, 4 * LANES_THAT_ARRIVE);
        mbarrier_init(smem + S::q_full, LANES_THAT_ARRIVE);
        fence_mbarrier_init();
        if (args.steps) /* blocks count in the order they start: a predecessor has started before */
            st_shared(smem + S::number_at, (int)atomicAdd(args.ticket, 1u));
    }
    __syncthreads();
    if (warp < 4) {
        MLA_ROLE("gather");
        gather_works<S>(args, smem);
    } else {
        MLA_ROLE("softmax");
        attend_works<T, S>(args, smem);
    }
}

template <class T, int ROPE> static struct mla_mqa_tile few_entry()
{
    typedef few_shape<ROPE> S;
    return {mla_kernel_address(few_sm90_kernel<T, S>), S::shared_bytes, FEW_THREADS, 1};
}

template <class T> static struct mla_mqa_tile few_tile(int rope_dim)
{
    return rope_dim ? few_entry<T, 64>() : few_entry<T, 0>();
}

#endif

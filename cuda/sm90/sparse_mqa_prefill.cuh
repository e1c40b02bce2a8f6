/* SPDX-License-Identifier: Apache-2.0 */
/* Absorbed-form attention over top-k lists on sm_90a (wgmma, cp.async): out = softmax(scale · q ·
 * K^T) · K[:, :512], 64 heads of one query token a block, bf16 or f16 caches, flat or paged.
 *
 * Persistent blocks, one an SM, of four warpgroups; a work is a token, 64 heads and a split of its
 * list. Queries come as a block of keys of their own, ahead of the work's keys, 64 at a time.
 *
 *   warpgroup  registers  duty
 *   0          32         gathers rows: 36 cp.async of 16 bytes a thread and block of keys
 *   1          160        scores and softmax; six tiles of queries in registers (96 of them)
 *   2, 3       160        O += P·V: columns 0-127 and 256-383 of the output, the others
 *
 * With 512 threads ptxas counts 128 registers a thread, so that products of 256 columns are two of
 * 128 each.
 *
 * Shared memory, bytes; a tile is [64][128 bytes], swizzled
 *   Q       tiles 6, 7 and rope                                          24576
 *   values  a ring of eleven pairs of tiles, four pairs a block         180224
 *   rope    three tiles, block n's is n % 3; P of a block takes its place 24576
 *   factors of a block's rows and of the results, visible keys, notes, barriers: 2 KB
 *
 * Block n, counted over all works of the block, has the barriers n % 3. Its tiles land in pairs, rope
 * with the third. Pair j of block n takes the place of pair j + 1 of block n - 3, the last
 * that of pair 0 of block n - 2; its rope the place of P of block n - 3, all of whose pairs are free
 * by then.
 *
 *   barrier              count  arrives                                 waits
 *   work_full[2]         1      gather                                  1, 2, 3
 *   work_free[2]         12     warps of 1, 2, 3: are through           gather
 *   k_full[block][pair]  128    cp.async of the gather have landed      1
 *   seen[block]          4      gather warps: visible keys              1
 *   k_free[block][pair]  4      warps of 2 (pairs 0, 2), 3 (1, 3);      gather; 0: warpgroup 3
 *                               1 where the block is queries
 *   p_full[block]        4      warps of 1: P and its factors           2, 3
 *   turn[block]          4      warps of 1: scores of the next block    2, 3
 *                               are nearly done, or there is none
 *   done[2]              4      warps of 1: factors of the results      2, 3
 *   named 1              128    1: scores are done, P may be written; queries are in their place
 *
 * Values wait for their turn: beside scores they would delay them, and then nothing fills the tensor
 * cores during the next softmax. The third warpgroup starts behind the second's first half, which
 * frees the pair that the gather waits for.
 *
 * Rows that land by cp.async are writes of the generic proxy; the threads that wait for them make
 * the proxy fence before wgmma reads, as the barrier has ordered the writes before it.
 *
 * Clocks of 64 keys x 64 heads: 8.9 MFLOP take 2176 at 4096 a clock; shared memory 272 KB (Q and K
 * 96, V 64, P 8 written and 32 read, keys 72) 2176 at 128 bytes; L2 72 KB, 2240 at the 33 bytes a
 * clock and SM that a gather alone reaches. Measured: 3060 to 3100 (docs/performance.md).
 *
 * A key that the token does not see is zero in shared memory and its score -inf: what an invisible
 * slot holds reaches nothing. P is rounded to the input type unnormalised, its sum is of fp32
 * values. Same inputs, same bits. */
#ifndef MLA_CUDA_SM90_SPARSE_MQA_PREFILL_CUH
#define MLA_CUDA_SM90_SPARSE_MQA_PREFILL_CUH

#include "any/mqa_work.cuh"
#include "any/union.cuh"
#include "element.cuh"
#include "ptx/barrier.cuh"
#include "ptx/cp_async.cuh"
#include "ptx/launch.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/opaque.cuh"
#include "ptx/shared.cuh"
#include "ptx/warp.cuh"
#include "ptx/wgmma.cuh"
#include "ring.cuh"
#include "sparse_mqa_prefill.h"
#include "warpgroup.cuh"

#include <limits.h>

static const int SPARSE_THREADS = 512, KEYS = MLA_SPARSE_SM90_KEYS, HEADS = MLA_SPARSE_SM90_HEADS;
static const int GATHER_REGISTERS = 32, SCORE_REGISTERS = 160, VALUE_REGISTERS = 160;
static_assert(GATHER_REGISTERS + SCORE_REGISTERS + 2 * VALUE_REGISTERS <= 4 * 128,
              "what the launch gives a block");

template <int ROPE_, bool GROUP_> struct sparse_shape {
    static const bool GROUP = GROUP_; /* rows are the heads of several tokens */
    static const int TOKENS = GROUP ? MLA_UNION_TOKENS : 1; /* at most */
    static const int ROPE = ROPE_, TILES = (MLA_MQA_LATENT + ROPE) / 64,
                     HELD = 6;               /* tiles of Q in registers */
    static const int STAGES = 3, PAIRS = 11; /* of barriers and P; of tiles of values */
    static const int GATHER = 4,             /* warps; keys of each thread of them */
        ROWS = KEYS / (4 * GATHER);
    static const u32 tile_bytes = KEYS * 128, pair_bytes = 2 * tile_bytes;
    static const u32 pairs_at = 3 * HEADS * 128, p_at = pairs_at + PAIRS * pair_bytes;
    static const u32 factors_at = p_at + STAGES * tile_bytes;     /* [stage][row], floats */
    static const u32 finals_at = factors_at + STAGES * HEADS * 4; /* [slot][row], floats */
    static const u32 seen_at = finals_at + 2 * HEADS * 4;         /* [stage][token][warp], words */
    static const u32 works_at = seen_at + STAGES * TOKENS * 16;   /* 48 bytes each */
    static const u32 work_full = works_at + 2 * 48, work_free = work_full + 16,
                     k_full = work_free + 16, /* [stage][pair], as the next */
        k_free = k_full + 32 * STAGES, seen = k_free + 32 * STAGES, p_full = seen + 8 * STAGES,
                     turn = p_full + 8 * STAGES, done = turn + 8 * STAGES, shared_bytes = done + 16;
    static_assert(ROPE == 0 || ROPE == 64, "rope 0 or 64");
    static_assert(shared_bytes <= 232448, "227 KB of shared memory a block");
};

/* What the consumers learn of a work. */
struct sparse_note {
    int steps; /* blocks of keys; -1: no more works */
    int head0, rows, token;
    int split;    /* is the result partial? */
    int64_t part; /* row of head0 in the partial results */
};

/* ------------------------------------------------------------------- gather */

/* One work as the gather warps see it. */
struct sparse_work {
    const int32_t *list, *pages; /* pages NULL: flat */
    int kv_start, count, end;    /* entries of the list; keys below end count */
    int steps;
    int head0, rows, token;
};

/* Group `index` of those whose lists are here has a union and a request. By a whole warp. */
__device__ __forceinline__ bool is_group(const struct mla_sparse_sm90_args &args, int index)
{
    const struct mla_mqa_groups &g = args.groups;
    int number = g.first + index;
    return find_group(args.a.requests, args.a.num_requests, g.size, number) >= 0 &&
           g.counts[number] >= 0;
}

__device__ __forceinline__ struct sparse_work
find_sparse_group(const struct mla_sparse_sm90_args &args, int index, u32 note)
{
    const struct mla_mqa_args &a = args.a;
    const struct mla_mqa_groups &g = args.groups;
    int number = g.first + index;
    const struct mla_mqa_request *r =
        &a.requests[find_group(a.requests, a.num_requests, g.size, number)];
    int token0 = (number - group_of(g.size, *r, 0)) * g.size;
    int rows = min(g.size, r->query_len - token0) * a.heads;
    struct sparse_work w;
    w.list = (const int32_t *)g.entries + (int64_t)index * g.capacity;
    w.pages = a.cache.page_size ? a.cache.page_table + r->index * a.cache.page_table_stride : NULL;
    w.kv_start = r->kv_start;
    w.count = g.counts[number];
    w.end = INT_MAX; /* what no token may see is not in the union */
    w.steps = (w.count + KEYS - 1) / KEYS;
    w.head0 = 0;
    w.rows = rows;
    w.token = r->q_start + token0;
    if (note) {
        st_shared(note, w.steps);
        st_shared(note + 4, 0);
        st_shared(note + 8, rows);
        st_shared(note + 12, r->q_start + token0);
        st_shared(note + 16, 0);
        st_shared(note + 24, (int64_t)0);
    }
    return w;
}

/* The work, and a note of it for the consumers where note is not 0. */
__device__ __forceinline__ struct sparse_work find_sparse_work(const struct mla_mqa_args &a,
                                                               int index, u32 note)
{
    int low = 0, high = a.num_requests - 1;
    while (low < high) { /* the last request that begins at or before this work */
        int middle = (low + high + 1) / 2;
        if (a.requests[middle].first_block <= index)
            low = middle;
        else
            high = middle - 1;
    }
    const struct mla_mqa_request *r = &a.requests[low];
    const int tiles = (a.heads + HEADS - 1) / HEADS;
    int local = index - r->first_block, split = local % r->splits, t = local / r->splits;
    int in_request = t / tiles, token = r->q_start + in_request, seq_len = r->seq_len_kv;
    if (a.seq_lens_kv)
        seq_len = max(0, min(seq_len, a.seq_lens_kv[r->index]));
    struct sparse_work w;
    w.count = a.topk_lens ? max(0, min(a.topk, a.topk_lens[token])) : a.topk;
    w.end = max(0, a.causal ? min(seq_len, seq_len - r->query_len + in_request + 1) : seq_len);
    w.pages = a.cache.page_size ? a.cache.page_table + r->index * a.cache.page_table_stride : NULL;
    w.kv_start = r->kv_start;
    int all = (w.count + KEYS - 1) / KEYS, share = (all + r->splits - 1) / r->splits;
    int first = min(all, split * share), last = min(all, first + share);
    w.steps = last - first;
    w.list = a.indices + token * a.indices_stride + first * KEYS;
    w.count = min(w.count, last * KEYS) - first * KEYS;
    int head0 = t % tiles * HEADS;
    w.head0 = head0;
    w.rows = max(0, min(HEADS, a.heads - head0));
    w.token = token;
    if (note) {
        int64_t part = ((int64_t)split * r->query_len + in_request) * a.heads + head0;
        st_shared(note, w.steps);
        st_shared(note + 4, head0);
        st_shared(note + 8, max(0, min(HEADS, a.heads - head0)));
        st_shared(note + 12, token);
        st_shared(note + 16, (int)(r->splits > 1));
        st_shared(note + 24, r->part_row + part);
    }
    return w;
}

template <class S>
__device__ __forceinline__ void gather_works(const struct mla_sparse_sm90_args &args, u32 smem)
{
    const struct mla_mqa_args &a = args.a;
    const struct mla_mqa_cache &c = a.cache;
    /* Eight threads a row: key 16 i + 4 warp + lane / 8 of a block, pieces lane % 8, + 8, ... A
     * lane finds the address of one of its warp's 16 rows, and that of lane + 16 is the same. */
    const u32 warp = warp_index(), lane = threadIdx.x % 32, sub = warp * 4 + lane / 8;
    const u32 own = lane / 4 % 4 * 16 + warp * 4 + lane % 4, part = lane % 8 * 16;
    const u32 to = opaque(smem + S::pairs_at + sub * 128 + (part ^ ((sub & 7) << 4)));
    struct ring<2> slot;
    struct ring<S::STAGES> stage;
    struct ring<S::PAIRS> pair;
    for (int index = blockIdx.x;; index += gridDim.x) {
        if (S::GROUP)
            while (index < args.works && !is_group(args, index))
                index += gridDim.x;
        const bool stop = index >= args.works;
        const u32 note = smem + S::works_at + slot.stage * 48;
        struct sparse_work w;
        bool writes = false;
        if (warp == 0) {
            mbarrier_wait(smem + S::work_free + slot.stage * 8, slot.phase ^ 1);
            writes = elect_one();
        }
        if (!stop)
            w = S::GROUP ? find_sparse_group(args, index, writes ? note : 0)
                         : find_sparse_work(a, index, writes ? note : 0);
        else if (writes)
            st_shared(note, -1);
        __syncwarp();
        if (writes)
            mbarrier_arrive(smem + S::work_full + slot.stage * 8);
        if (warp == 0)
            others_arrive(smem + S::work_full + slot.stage * 8);
        slot.next();
        if (stop)
            return;
        /* Entries of the list are fetched two blocks ahead of the rows, page ids one. Nothing waits
         * for them where they are fetched. */
        int pos, page, ahead;
        u32 mask = 0; /* of a group's tokens */
        auto fetch_entry = [&](int step) __attribute__((always_inline))
        {
            const int entry = step * KEYS + (int)own;
            ahead = entry < w.count ? w.list[entry] : S::GROUP ? 0 : -1;
        };
        auto fetch_page = [&]() __attribute__((always_inline))
        {
            if (S::GROUP) {
                mask = (u32)ahead >> MLA_UNION_MASK;
                pos = mask ? ahead & ((1 << MLA_UNION_MASK) - 1) : -1;
            } else {
                pos = ahead < w.end ? ahead : -1;
            }
            page = pos;
            if (w.pages) {
                const int column = page_column(&c, pos);
                page = pos >= 0 && column < c.max_pages ? w.pages[column] : -1;
            }
        };
        /* Queries come first, as a block of their own. Nothing is read of what is not seen, but let
         * its address be one of the cache. */
        bool see = own < w.rows;
        int64_t data = 0, rope = 0;
        u32 tokens = 0;
        if (see) {
            const int64_t token = w.token + (S::GROUP ? (int)own / a.heads : 0);
            const int head = S::GROUP ? (int)own % a.heads : w.head0 + (int)own;
            data = a.q + token * a.q_stride[0] + head * a.q_stride[1] - c.data;
            rope = S::ROPE ? data + 1024 + (c.data - c.rope) : 0;
        }
        fetch_entry(0);
#pragma unroll 1
        for (int step = w.steps > 0 ? -1 : 0; step < w.steps; step++) {
            const u32 there = __ballot_sync(~0u, see);
            const char *from[S::ROWS];
            auto find_rows = [&](const char *base, int64_t at) __attribute__((always_inline))
            {
#pragma unroll
                for (int i = 0; i < S::ROWS; i++)
                    from[i] = opaque(base + __shfl_sync(~0u, at, i * 4 + lane / 8));
            };
            const u32 k_full = smem + S::k_full + stage.stage * 32;
            const u32 k_free = smem + S::k_free + stage.stage * 32;
            auto copy_tile = [&](u32 at, int column) __attribute__((always_inline))
            {
#pragma unroll
                for (int i = 0; i < S::ROWS; i++)
                    cp_async_cg_16(at + i * 2048, from[i] + column,
                                   there >> (i * 4 + lane / 8) & 1 ? 16 : 0);
            };
            auto copy_pair = [&](int j) __attribute__((always_inline))
            {
                const u32 at = opaque(to + pair.stage * S::pair_bytes);
                copy_tile(at, j * 256);
                copy_tile(at + S::tile_bytes, j * 256 + 128);
                pair.next();
            };
            find_rows(c.data + part, data);
            mbarrier_wait(k_free + 8, stage.phase ^ 1);
            copy_pair(0);
            cp_async_mbarrier_arrive_noinc(k_full);
            fetch_page();
            fetch_entry(step + 2);
            const int seers = S::GROUP ? args.groups.size : 1;
#pragma unroll 1
            for (int token = 0; token < seers; token++) {
                u32 seen = S::GROUP ? __ballot_sync(~0u, see && (tokens >> token & 1)) : there;
                if (lane == 0)
                    st_shared(smem + S::seen_at + (stage.stage * S::TOKENS + token) * 16 + warp * 4,
                              MLA_MUTANT == 20 ? ~0u : seen);
            }
            release(smem + S::seen + stage.stage * 8);
            mbarrier_wait(k_free + 16, stage.phase ^ 1);
            copy_pair(1);
            cp_async_mbarrier_arrive_noinc(k_full + 8);
            mbarrier_wait(k_free + 24, stage.phase ^ 1);
            copy_pair(2);
            if (S::ROPE) { /* the stage's P has been read: all of its pairs are free */
                find_rows(c.rope + part, rope);
                copy_tile(opaque(to - S::pairs_at + S::p_at + stage.stage * S::tile_bytes), 0);
                find_rows(c.data + part, data);
            }
            cp_async_mbarrier_arrive_noinc(k_full + 16);
            struct ring<S::STAGES> next = stage;
            next.next();
            if (MLA_MUTANT != 9)
                mbarrier_wait(smem + S::k_free + next.stage * 32, next.phase ^ 1);
            copy_pair(3);
            cp_async_mbarrier_arrive_noinc(k_full + 24);
            stage = next;
            see = page >= 0 && (!w.pages || page < c.num_pages);
            tokens = mask;
            data = rope = 0;
            if (see && w.pages) {
                const u32 in_page = (u32)pos - (u32)(page_column(&c, pos) * c.page_size);
                data = rope = page * c.page_bytes + in_page * c.row_bytes;
            } else if (see) {
                data = ((int64_t)w.kv_start + pos) * c.row_bytes;
                rope = ((int64_t)w.kv_start + pos) * c.rope_row_bytes;
            }
        }
    }
}

/* ------------------------------------------------------------------- queries */

template <class S> __device__ __forceinline__ struct sparse_note read_note(u32 smem, u32 slot)
{
    const u32 note = smem + S::works_at + slot * 48;
    return {ld_shared<int>(note),      ld_shared<int>(note + 4),  ld_shared<int>(note + 8),
            ld_shared<int>(note + 12), ld_shared<int>(note + 16), ld_shared<int64_t>(note + 24)};
}

/* Two tiles of a block have come, with the third pair its rope too. */
template <class S>
__device__ __forceinline__ void wait_keys(u32 smem, const struct ring<S::STAGES> &stage, int j)
{
    mbarrier_wait(smem + S::k_full + stage.stage * 32 + j * 8, stage.phase);
}

/* The queries of a block, which is given back: HELD tiles to registers, as A of wgmma, the others
 * to their place. All scores before are done: the warps have met since. */
template <class S>
__device__ __forceinline__ void take_queries(u32 (&q)[S::HELD * 4][4], u32 smem,
                                             const struct ring<S::STAGES> &stage,
                                             struct ring<S::PAIRS> *pair, int row)
{
    const u32 p = smem + S::p_at + stage.stage * S::tile_bytes, thread = threadIdx.x % 128 * 16;
    const u32 k_free = smem + S::k_free + stage.stage * 32;
    /* Which queries there are is not asked, but no phase of a barrier passes unseen. */
    mbarrier_wait(smem + S::seen + stage.stage * 8, stage.phase);
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const u32 at = smem + S::pairs_at + pair->stage * S::pair_bytes;
        pair->next();
        wait_keys<S>(smem, stage, j);
        if (MLA_MUTANT == 6)
            release(k_free + j * 8);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            if (j * 2 + i / 4 >= S::HELD)
                break;
            const u32 from = at + i / 4 * S::tile_bytes + (u32)row * 128 + (threadIdx.x & 3) * 4;
#pragma unroll
            for (int r = 0; r < 4; r++)
                q[(j * 8 + i) % (S::HELD * 4)][r] = ld_shared<u32>(
                    from + (r & 1) * 1024 + ((u32)((i % 4 * 2 + (r >> 1)) ^ (row & 7)) << 4));
        }
        if (j == 3) {
            const u32 bytes = (8 - S::HELD) * S::tile_bytes;
#pragma unroll
            for (u32 i = 0; i < bytes; i += 2048)
                st_shared(smem + i + thread,
                          ld_shared<uint4>(at + (S::HELD - 6) * S::tile_bytes + i + thread));
            if (S::ROPE)
#pragma unroll
                for (u32 i = 0; i < S::tile_bytes; i += 2048)
                    st_shared(smem + bytes + i + thread, ld_shared<uint4>(p + i + thread));
        }
        if (MLA_MUTANT != 6)
            release(k_free + j * 8);
    }
    fence_proxy_async();
    if (MLA_MUTANT != 10)
        bar_sync(1, 128);
    release(smem + S::p_full + stage.stage * 8);
    release(smem + S::turn + stage.stage * 8);
}

/* ------------------------------------------------------------------- scores */

/* Issues S (+)= Q·K^T of two tiles of a block, number j of four, and of rope behind the third. */
template <class T, class S>
__device__ __forceinline__ void issue_scores(float (&s)[KEYS / 2], const u32 (&q)[S::HELD * 4][4],
                                             u32 smem, u32 pair, u32 stage, int j)
{
    const u64 b = wgmma_desc(smem + S::pairs_at + pair * S::pair_bytes, 16, 1024, 128);
    const u64 a = wgmma_desc(smem, 16, 1024, 128);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const int step = j * 8 + i, tile = step / 4;
        const u64 keys = desc_advance(b, i / 4 * S::tile_bytes + i % 4 * 32);
        if (tile < S::HELD)
            wgmma_rs<T, KEYS>(s, q[step % (S::HELD * 4)], keys, step > 0);
        else
            wgmma_ss<T, KEYS>(s, desc_advance(a, (tile - S::HELD) * (HEADS * 128) + step % 4 * 32),
                              keys, true);
    }
    if (j == 2 && S::ROPE) {
        const u64 qr = wgmma_desc(smem + (8 - S::HELD) * (HEADS * 128), 16, 1024, 128);
        const u64 kr = wgmma_desc(smem + S::p_at + stage * S::tile_bytes, 16, 1024, 128);
#pragma unroll
        for (int i = 0; i < 4; i++)
            wgmma_ss<T, KEYS>(s, desc_advance(qr, i * 32), desc_advance(kr, i * 32), true);
    }
    wgmma_commit();
}

/* What a lane of the scores' warpgroup knows of its two rows: the largest score of all, its own
 * sum of weights. */
struct sparse_rows {
    float top[2], sum[2];
};

/* Which keys of a block this lane's rows see. */
template <class S>
__device__ __forceinline__ void read_seen(u32 smem, const struct ring<S::STAGES> &stage, u32 tokens,
                                          u32 (*words)[4])
{
    const int t = threadIdx.x & 3;
    const u32 seen = smem + S::seen_at + stage.stage * S::TOKENS * 16 + (t >> 1) * 4;
    mbarrier_wait(smem + S::seen + stage.stage * 8, stage.phase);
    /* Bits of keys 16 n + 2 t, + 1: 4 n, + 1 of words[0]; of keys 16 n + 8 + 2 t those of words[1].
     * The same of row + 8, which may be another token's, in words[2] and [3]. */
#pragma unroll
    for (int i = 0; i < 4; i++) {
        u32 token = S::GROUP ? tokens >> i / 2 * 16 & 0xFFFF : 0;
        (*words)[i] = ld_shared<u32>(seen + token * 16 + i % 2 * 8) >> 2 * (t & 1);
    }
}

/* Softmax of a block. P goes to where the keys' rope was, the factors of what was summed before
 * beside it. */
template <class T, class S>
__device__ __forceinline__ void
weigh_block(float (&s)[KEYS / 2], u32 smem, const struct ring<S::STAGES> &stage, int row,
            const u32 (&words)[4], float scale, struct sparse_rows *r)
{
    const int t = threadIdx.x & 3;
    const u32 all = words[0] & words[1] & words[2] & words[3];
    if (scale <= 0) { /* so that the largest is the largest */
#pragma unroll
        for (int i = 0; i < KEYS / 2; i++)
            s[i] = scale == 0 ? 0 : -s[i];
        scale = scale == 0 ? 1 : -scale;
    }
    if (__any_sync(~0u, (all & 0x3333) != 0x3333) && MLA_MUTANT != 5) {
#pragma unroll
        for (int i = 0; i < KEYS / 8; i++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                if (!(words[(i & 1) + (e & 2)] >> (i / 2 * 4 + (e & 1)) & 1))
                    s[4 * i + e] = -INFINITY;
    }
    float reference[2], factor[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float best[2] = {s[half * 2], s[half * 2 + 1]};
#pragma unroll
        for (int i = 1; i < KEYS / 8; i++)
#pragma unroll
            for (int e = 0; e < 2; e++)
                best[e] = fmaxf(best[e], s[4 * i + half * 2 + e]);
        best[0] = fmaxf(best[0], best[1]);
        best[0] = fmaxf(best[0], __shfl_xor_sync(~0u, best[0], 1));
        best[0] = fmaxf(best[0], __shfl_xor_sync(~0u, best[0], 2));
        float before = r->top[half];
        r->top[half] = fmaxf(before, best[0] * scale);
        /* -inf before the first key: any finite reference gives weights 0. */
        reference[half] = r->top[half] == -INFINITY ? 0 : r->top[half];
        factor[half] = r->top[half] == before ? 1 : ex2_approx_ftz(before - reference[half]);
        if (t == 0)
            st_shared(smem + S::factors_at + (stage.stage * HEADS + row + half * 8) * 4,
                      MLA_MUTANT == 2 ? 1.0f : factor[half]);
    }
    /* P goes where keys' rope was: all four warps' scores are done. */
    if (MLA_MUTANT != 4)
        bar_sync(1, 128);
    /* This lane names row lane % 8 of the 8 rows and 8 keys of number lane / 8 of two by two. */
    const u32 lane = threadIdx.x % 32;
    const u32 to = smem + S::p_at + stage.stage * S::tile_bytes + ((row & 48) + (lane & 15)) * 128 +
                   (((lane >> 4) ^ (lane & 7)) << 4);
    float total[2][2] = {};
#pragma unroll
    for (int i = 0; i < KEYS / 8; i += 2) {
        u32 p[2][2];
#pragma unroll
        for (int e = 0; e < 2; e++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int at = 4 * (i + e) + half * 2;
                float x = ex2_approx_ftz(fmaf(s[at], scale, -reference[half]));
                float y = ex2_approx_ftz(fmaf(s[at + 1], scale, -reference[half]));
                total[half][0] += x;
                total[half][1] += y;
                p[e][half] = T::pack(x, y);
            }
        st_matrix(to ^ (u32)(i << 4), p[0][0], p[0][1], p[1][0], p[1][1]);
    }
#pragma unroll
    for (int half = 0; half < 2; half++)
        r->sum[half] = fmaf(r->sum[half], factor[half], total[half][0] + total[half][1]);
    if (MLA_MUTANT != 3)
        fence_proxy_async();
    release(smem + S::p_full + stage.stage * 8);
}

/* Denominators: lse and max_logits or their partial values, and the factors of the output. */
template <class S>
__device__ __forceinline__ void end_rows(const struct mla_mqa_args &a, const struct sparse_note &n,
                                         u32 smem, int row0, u32 slot, const struct sparse_rows &r)
{
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float sum = r.sum[half];
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        const int row = row0 + half * 8, head = S::GROUP ? row % a.heads : n.head0 + row;
        float top = r.top[half], lse_log2;
        bool there = row < n.rows, sink = there && !n.split && a.sink;
        float factor = finish_row(top, sum, sink, sink ? a.sink[head] : 0, &lse_log2);
        if (threadIdx.x & 3)
            continue;
        st_shared(smem + S::finals_at + (slot * HEADS + row) * 4, factor);
        if (!there)
            continue;
        if (n.split) {
            a.part_lse[n.part + row] = lse_log2;
            a.part_max[n.part + row] = top;
        } else {
            int64_t token = n.token + (S::GROUP ? row / a.heads : 0);
            if (a.lse)
                a.lse[token * a.lse_stride[0] + head * a.lse_stride[1]] = lse_log2 * a.lse_unit;
            if (a.max_logits)
                a.max_logits[token * a.max_stride[0] + head * a.max_stride[1]] = top * 0.693147181f;
        }
    }
    release(smem + S::done + slot * 8);
}

/* The warpgroup of scores. */
template <class T, class S>
__device__ __forceinline__ void weigh_works(const struct mla_sparse_sm90_args &args, u32 smem)
{
    const struct mla_mqa_args &a = args.a;
    /* This lane's rows: row and row + 8. */
    const int row = (int)(threadIdx.x / 32 % 4) * 16 + (int)(threadIdx.x % 32) / 4;
    /* Tokens of a group that these rows are of; the last group may lack some. */
    const u32 tokens = S::GROUP ? row / a.heads | (row + 8) / a.heads << 16 : 0;
    struct ring<2> slot;
    struct ring<S::STAGES> stage;
    struct ring<S::PAIRS> pair;
    for (;;) {
        mbarrier_wait(smem + S::work_full + slot.stage * 8, slot.phase);
        const int steps = ld_shared<int>(smem + S::works_at + slot.stage * 48);
        if (steps < 0)
            return;
        u32 q[S::HELD * 4][4];
        struct sparse_rows r = {{-INFINITY, -INFINITY}, {0, 0}};
        if (steps > 0) {
            take_queries<S>(q, smem, stage, &pair, row);
            stage.next();
        }
#pragma unroll 1
        for (int step = 0; step < steps; step++) {
            float s[KEYS / 2];
#pragma unroll
            for (int j = 0; j < 4; j++) {
                if (MLA_MUTANT != 7 || j < 3)
                    wait_keys<S>(smem, stage, j);
                if (MLA_MUTANT != 1)
                    fence_proxy_async();
                issue_scores<T, S>(s, q, smem, pair.stage, stage.stage, j);
                pair.next();
            }
            u32 words[4];
            read_seen<S>(smem, stage, tokens, &words);
            wgmma_wait<1>(); /* what is left leaves room for values of the block before */
            if (step > 0)
                release(smem + S::turn + (stage.stage ? stage.stage - 1 : S::STAGES - 1) * 8);
            wgmma_wait<0>();
            wgmma_bind(s);
            weigh_block<T, S>(s, smem, stage, row, words, a.scale_log2, &r);
            if (step + 1 == steps)
                release(smem + S::turn + stage.stage * 8);
            stage.next();
        }
        end_rows<S>(a, read_note<S>(smem, slot.stage), smem, row, slot.stage, r);
        release(smem + S::work_free + slot.stage * 8);
        slot.next();
    }
}

/* ------------------------------------------------------------------- output */

/* This warpgroup's 256 columns of the output, 128 and 128: number i of them. */
__device__ __forceinline__ float &at_column(float (&o)[2][64], int i)
{
    return o[i / 64][i % 64];
}

__device__ __forceinline__ void rescale(float (&o)[2][64], const float (&factor)[2])
{
    if (__any_sync(~0u, factor[0] != 1 || factor[1] != 1)) {
#pragma unroll
        for (int i = 0; i < 128; i++)
            at_column(o, i) *= factor[i >> 1 & 1];
    }
}

/* Issues O += P·V of half of this warpgroup's columns; V lies [key][column]: transposed. */
template <class T, class S>
__device__ __forceinline__ void issue_values(float (&o)[64], u32 smem, u32 stage, u32 pair)
{
    const u64 a = wgmma_desc(smem + S::p_at + stage * S::tile_bytes, 16, 1024, 128);
    const u64 b = wgmma_desc(smem + S::pairs_at + pair * S::pair_bytes, S::tile_bytes, 1024, 128);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < KEYS / 16; i++)
        wgmma_ss<T, 128, 0, 1>(o, desc_advance(a, i * 32), desc_advance(b, i * 2048), true);
    wgmma_commit();
}

/* This warpgroup's 256 columns of two rows, times their factors, 16 bytes at a time. */
template <class X>
__device__ __forceinline__ void store_wide(char *const (&to)[2], const bool (&there)[2],
                                           const float (&factors)[2], float (&o)[2][64])
{
#pragma unroll
    for (int j = 0; j < 8; j++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            u32 two[4];
#pragma unroll
            for (int i = 0; i < 4; i++)
                two[i] = X::pack(at_column(o, (j * 4 + i) * 4 + half * 2) * factors[half],
                                 at_column(o, (j * 4 + i) * 4 + half * 2 + 1) * factors[half]);
            uint4 piece = transpose_quad(two[0], two[1], two[2], two[3]);
            if (there[half])
                *(uint4 *)(to[half] + j / 4 * 512 + j % 4 * 64) = piece;
        }
    }
}

/* The same of the rows that exist, in any type. */
template <class S>
__device__ __forceinline__ void store_columns(const struct mla_sparse_sm90_args &args,
                                              const struct sparse_note &n, int wg, int row0,
                                              const float (&factors)[2], float (&o)[2][64])
{
    const struct mla_mqa_args &a = args.a;
    const int t = (int)opaque(threadIdx.x & 3); /* no columns' offsets wait in registers */
    const bool there[2] = {row0 < n.rows, row0 + 8 < n.rows};
    if (__any_sync(~0u, factors[0] == 0 || factors[1] == 0)) { /* zeros, whatever o holds */
#pragma unroll
        for (int i = 0; i < 128; i++)
            at_column(o, i) = factors[i >> 1 & 1] == 0 ? 0 : at_column(o, i);
    }
    int64_t column[2]; /* this warpgroup's first one of a row */
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int row = row0 + half * 8;
        const int token = n.token + (S::GROUP ? row / a.heads : 0);
        const int head = S::GROUP ? row % a.heads : n.head0 + row;
        column[half] =
            wg * 128 + (n.split ? (n.part + row) * MLA_MQA_LATENT
                                : (int64_t)token * a.out_stride[0] + head * a.out_stride[1]);
    }
    if (!n.split && a.out_dtype != MLA_F32 && args.wide_stores) {
        char *const to[2] = {a.out + (column[0] + t * 8) * 2, a.out + (column[1] + t * 8) * 2};
        if (a.out_dtype == MLA_BF16)
            store_wide<bf16>(to, there, factors, o);
        else
            store_wide<f16>(to, there, factors, o);
        return;
    }
#pragma unroll
    for (int i = 0; i < 64; i++) {
        const int half = i & 1;
        const int64_t at = column[half] + t * 2 + i / 32 * 256 + i / 2 % 16 * 8;
        const float x = at_column(o, i * 2) * factors[half],
                    y = at_column(o, i * 2 + 1) * factors[half];
        if (there[half] && n.split)
            *(float2 *)(a.part_out + at) = make_float2(x, y);
        else if (there[half])
            store_pair(a.out_dtype, a.out, at, x, y);
    }
}

/* A warpgroup of 256 columns of the output. */
template <class T, class S>
__device__ __forceinline__ void attend_works(const struct mla_sparse_sm90_args &args, u32 smem,
                                             u32 wg)
{
    const int row = (int)(threadIdx.x / 32 % 4) * 16 + (int)(threadIdx.x % 32) / 4;
    struct ring<2> slot;
    struct ring<S::STAGES> stage;
    struct ring<S::PAIRS> pair;
    pair.stage = wg;
    for (;;) {
        mbarrier_wait(smem + S::work_full + slot.stage * 8, slot.phase);
        const int steps = ld_shared<int>(smem + S::works_at + slot.stage * 48);
        if (steps < 0)
            return;
        float o[2][64];
#pragma unroll
        for (int i = 0; i < 128; i++)
            at_column(o, i) = 0;
        if (steps > 0) { /* queries: nothing to do here */
            stage.next();
            pair.stage += pair.stage + 4 < S::PAIRS ? 4 : 4 - S::PAIRS;
        }
#pragma unroll 1
        for (int step = 0; step < steps; step++) {
            mbarrier_wait(smem + S::p_full + stage.stage * 8, stage.phase);
            const u32 from = smem + S::factors_at + (stage.stage * HEADS + row) * 4;
            const float factors[2] = {ld_shared<float>(from), ld_shared<float>(from + 32)};
            rescale(o, factors);
            const u32 k_free = smem + S::k_free + stage.stage * 32 + wg * 8;
            if (MLA_MUTANT == 8)
                release(k_free);
            mbarrier_wait(smem + S::turn + stage.stage * 8, stage.phase);
            if (wg == 1) /* so that the first pair is free earlier than if both went at once */
                mbarrier_wait(smem + S::k_free + stage.stage * 32, stage.phase);
            issue_values<T, S>(o[0], smem, stage.stage, pair.stage);
            pair.stage += pair.stage + 2 < S::PAIRS ? 2 : 2 - S::PAIRS;
            issue_values<T, S>(o[1], smem, stage.stage, pair.stage);
            pair.stage += pair.stage + 2 < S::PAIRS ? 2 : 2 - S::PAIRS;
            wgmma_wait<1>();
            wgmma_bind(o[0]);
            if (MLA_MUTANT != 8)
                release(k_free);
            wgmma_wait<0>();
            wgmma_bind(o[1]);
            release(k_free + 16);
            stage.next();
        }
        mbarrier_wait(smem + S::done + slot.stage * 8, slot.phase);
        const u32 from = smem + S::finals_at + (slot.stage * HEADS + row) * 4;
        const float factors[2] = {ld_shared<float>(from), ld_shared<float>(from + 32)};
        store_columns<S>(args, read_note<S>(smem, slot.stage), wg, row, factors, o);
        release(smem + S::work_free + slot.stage * 8);
        slot.next();
    }
}

/* ------------------------------------------------------------------- kernel */

template <class T, class S>
__global__ void __launch_bounds__(SPARSE_THREADS, 1)
    sparse_sm90_kernel(const __grid_constant__ struct mla_sparse_sm90_args args)
{
    const u32 smem = dynamic_smem();
    const u32 warp = warp_index();
    if (S::GROUP && args.groups.tally && args.groups.tally[0] == 0)
        return;
    if (warp == 0 && elect_one()) {
        for (int i = 0; i < 2; i++) {
            mbarrier_init(smem + S::work_full + i * 8, LANES_THAT_ARRIVE);
            mbarrier_init(smem + S::work_free + i * 8, 12 * LANES_THAT_ARRIVE);
            mbarrier_init(smem + S::done + i * 8, 4 * LANES_THAT_ARRIVE);
        }
        for (int i = 0; i < S::STAGES; i++) {
            mbarrier_init(smem + S::seen + i * 8, S::GATHER * LANES_THAT_ARRIVE);
            mbarrier_init(smem + S::p_full + i * 8, 4 * LANES_THAT_ARRIVE);
            mbarrier_init(smem + S::turn + i * 8, 4 * LANES_THAT_ARRIVE);
        }
        for (int i = 0; i < S::STAGES * 4; i++) {
            mbarrier_init(smem + S::k_full + i * 8, 32 * S::GATHER);
            mbarrier_init(smem + S::k_free + i * 8, 4 * LANES_THAT_ARRIVE);
        }
        fence_mbarrier_init();
    }
    __syncthreads();
    if (warp < 4) {
        setmaxnreg_dec<GATHER_REGISTERS>();
        MLA_ROLE("gather");
        gather_works<S>(args, smem);
    } else if (warp < 8) {
        setmaxnreg_inc<SCORE_REGISTERS>();
        MLA_ROLE("softmax");
        weigh_works<T, S>(args, smem);
    } else {
        setmaxnreg_inc<VALUE_REGISTERS>();
        MLA_ROLE("values");
        attend_works<T, S>(args, smem, warp / 4 - 2);
    }
}

template <class T, int ROPE, bool GROUP> static struct mla_mqa_tile sparse_entry()
{
    typedef sparse_shape<ROPE, GROUP> S;
    return {mla_kernel_address(sparse_sm90_kernel<T, S>), S::shared_bytes, SPARSE_THREADS, 1};
}

template <class T> static struct mla_mqa_tile sparse_tile(int rope_dim)
{
    return rope_dim ? sparse_entry<T, 64, false>() : sparse_entry<T, 0, false>();
}

template <class T> static struct mla_mqa_tile sparse_group_tile(int rope_dim)
{
    return rope_dim ? sparse_entry<T, 64, true>() : sparse_entry<T, 0, true>();
}

#endif

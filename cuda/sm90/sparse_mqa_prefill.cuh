/* SPDX-License-Identifier: Apache-2.0 */
/* Absorbed-form attention over top-k lists on sm_90a (wgmma, cp.async, TMA for Q): out =
 * softmax(scale · q · K^T) · K[:, :512], 64 heads of one query token a block, bf16 or f16 caches,
 * flat or paged.
 *
 * Persistent blocks, one an SM, of three warpgroups; a work is a token, 64 heads and a split of its
 * list. Keys come in blocks of 64; block n, counted over all works of the block, lies in stage n %
 * 2, which belongs to warpgroup n % 2 + 1.
 *
 *   warpgroup  registers  duty
 *   0          88         gathers rows: 36 cp.async of 16 bytes a thread and block of keys
 *   1          208        scores and softmax of stage 0; columns 0-255 of the output
 *   2          208        scores and softmax of stage 1; columns 256-511 of the output
 *
 * Shared memory, bytes
 *   Q       64 heads x 576, nine tiles of [64][128 bytes], swizzled      73728
 *   K       two stages of 64 keys x 576, the same tiles                 147456
 *           the rope tile of a stage holds P once its scores are done
 *   largest scores and factors of a stage's rows, sums, visible keys, notes, barriers: 3 KB
 *
 * A stage has two halves: the four tiles of its owner's columns, then the other four and rope. Each
 * lands, is released and is filled again by itself.
 *
 *   barrier               count     arrives                              waits
 *   work_full[2]          1         gather                               1, 2
 *   work_free[2]          8         warps of 1, 2: are through           gather
 *   q_full                1 + tx    warp 0 of 1 (TMA)                    1, 2
 *   k_full[stage][half]   128       cp.async of the gather have landed   owner
 *   seen[stage]           4         gather warps: visible keys           owner
 *   k_free[stage][0]      4         warps of the owner                   gather
 *   k_free[stage][1]      4         warps of the other warpgroup         gather
 *   p_full[stage]         4         warps of the owner                   the other
 *   named 1               256       1, 2: sums are exchanged
 *   named 2, 3            128       warps of 1, of 2: scores are done, P may be written
 *
 * A warpgroup's turn: scores of its stage's first half; O += P·V of the other's stage, which frees
 * that one's second half; scores of the second half; softmax, P to shared memory for the other; O +=
 * P·V of its own stage, P in registers, which frees its first half. The other warpgroup is half a
 * turn off, so that its products fill the tensor cores during the softmax.
 *
 * Rows that land by cp.async are writes of the generic proxy; the threads that wait for them make
 * the proxy fence before wgmma reads, as the barrier has ordered the writes before it. Queries need
 * no barrier to be overwritten: a warpgroup that has seen P of every block knows that all scores of
 * the work are done.
 *
 * The running maximum is one chain: block j starts from the maximum of j-1, so that both halves of
 * the output are rescaled alike.
 *
 * Clocks of 64 keys x 64 heads: 8.9 MFLOP take 2176 at 4096 a clock; shared memory 296 KB (Q and K
 * of 36 steps 144, V 64, P 8 written and 8 read, keys 72) 2312 at 128 bytes; L2 72 KB, 2240 at the
 * 33 bytes a clock and SM that a gather alone reaches. Measured: 3400 to 3500 (docs/performance.md).
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
#include "ptx/tma.cuh"
#include "ptx/warp.cuh"
#include "ptx/wgmma.cuh"
#include "ring.cuh"
#include "sparse_mqa_prefill.h"
#include "warpgroup.cuh"

#include <limits.h>

static const int SPARSE_THREADS = 384, KEYS = MLA_SPARSE_SM90_KEYS, HEADS = MLA_SPARSE_SM90_HEADS;
static const int GATHER_REGISTERS = 88, MATH_REGISTERS = 208;
static_assert(GATHER_REGISTERS + 2 * MATH_REGISTERS <= 3 * 168, "what the launch gives a block");

template <int ROPE_, bool GROUP_> struct sparse_shape {
    static const bool GROUP = GROUP_; /* rows are the heads of several tokens */
    static const int TOKENS = GROUP ? MLA_UNION_TOKENS : 1; /* at most */
    static const int ROPE = ROPE_, STAGES = 2, TILES = (MLA_MQA_LATENT + ROPE) / 64;
    static const int GATHER = 4, /* warps; keys of each thread of them */
        ROWS = KEYS / (4 * GATHER);
    static const u32 tile_bytes = KEYS * 128;
    static const u32 stage_bytes = 9 * tile_bytes; /* the ninth also without rope: P */
    static const u32 q_bytes = TILES * HEADS * 128;
    static const u32 k_at = 9 * HEADS * 128, p_in_stage = 8 * tile_bytes;
    static const u32 tops_at = k_at + STAGES * stage_bytes;     /* [stage][row], floats */
    static const u32 factors_at = tops_at + STAGES * HEADS * 4; /* [stage][row], floats */
    static const u32 sums_at = factors_at + STAGES * HEADS * 4; /* [slot][warpgroup][row] */
    static const u32 seen_at = sums_at + 4 * HEADS * 4;         /* [stage][token][warp], words */
    static const u32 works_at = seen_at + STAGES * TOKENS * 16; /* 48 bytes each */
    static const u32 work_full = works_at + 2 * 48, work_free = work_full + 16,
                     k_full = work_free + 16, /* [stage][half], as the next */
        k_free = k_full + 16 * STAGES, seen = k_free + 16 * STAGES, p_full = seen + 8 * STAGES,
                     q_full = p_full + 8 * STAGES, shared_bytes = q_full + 8;
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
    if (note) {
        int head0 = t % tiles * HEADS;
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

/* Copies a half of a stage's tiles: those of the warpgroup that owns it, or the others and rope.
 * from: this thread's pieces of its rows; rows in `there` are zeros elsewhere. */
template <class S>
__device__ __forceinline__ void copy_half(u32 smem, u32 to, u32 stage, u32 half,
                                          const char *const (&data)[S::ROWS],
                                          const char *const (&rope)[S::ROWS], u32 there)
{
    const u32 tile0 = (stage ^ half) * 4;
    const u32 at = opaque(to + stage * S::stage_bytes + tile0 * S::tile_bytes);
    const u32 rope_at = opaque(to + stage * S::stage_bytes + 8 * S::tile_bytes);
#pragma unroll
    for (int i = 0; i < S::ROWS; i++) {
        const u32 bytes = there >> i & 1 ? 16 : 0;
        const char *from = opaque(data[i] + tile0 * 128);
#pragma unroll
        for (int tile = 0; tile < 4; tile++)
            cp_async_cg_16(at + i * 2048 + tile * S::tile_bytes, from + tile * 128, bytes);
        if (S::ROPE && half)
            cp_async_cg_16(rope_at + i * 2048, rope[i], bytes);
    }
    cp_async_mbarrier_arrive_noinc(smem + S::k_full + stage * 16 + half * 8);
}

template <class S>
__device__ __forceinline__ void gather_works(const struct mla_sparse_sm90_args &args, u32 smem)
{
    const struct mla_mqa_args &a = args.a;
    const struct mla_mqa_cache &c = a.cache;
    /* Eight threads a row: key 16 i + sub of a block, pieces part, part + 8, ... */
    const u32 lane = opaque((u32)threadIdx.x), sub = lane / 8, part = lane % 8, warp = lane / 32;
    const u32 to = opaque(smem + S::k_at + sub * 128 + ((part ^ (sub & 7)) << 4));
    const bool joined =
        !S::ROPE || (c.rope - c.data == 1024 && (c.page_size || c.rope_row_bytes == c.row_bytes));
    u32 works = 0, blocks = 0;
    for (int index = blockIdx.x;; index += gridDim.x) {
        if (S::GROUP)
            while (index < args.works && !is_group(args, index))
                index += gridDim.x;
        const bool stop = index >= args.works;
        const u32 note = smem + S::works_at + (works & 1) * 48;
        struct sparse_work w;
        bool writes = false;
        if (warp == 0) {
            mbarrier_wait(smem + S::work_free + (works & 1) * 8, (works >> 1 & 1) ^ 1);
            writes = elect_one();
        }
        if (!stop)
            w = S::GROUP ? find_sparse_group(args, index, writes ? note : 0)
                         : find_sparse_work(a, index, writes ? note : 0);
        else if (writes)
            st_shared(note, -1);
        __syncwarp();
        if (writes)
            mbarrier_arrive(smem + S::work_full + (works & 1) * 8);
        if (warp == 0)
            others_arrive(smem + S::work_full + (works & 1) * 8);
        works++;
        if (stop)
            return;
        const int32_t *list = w.list + sub;
        const char *base = c.data + part * 16, *rope_base = S::ROPE ? c.rope + part * 16 : base;
        if (!w.pages) {
            base += (int64_t)w.kv_start * c.row_bytes;
            rope_base += (int64_t)w.kv_start * c.rope_row_bytes;
        }
        /* Entries of the list are fetched two blocks ahead of the rows, page ids one. Nothing waits
         * for them where they are fetched. */
        int pos[S::ROWS], page[S::ROWS], ahead[S::ROWS];
        u32 masks[S::ROWS]; /* of a group's tokens */
        auto fetch_entries = [&](int step) __attribute__((always_inline))
        {
            const int left = w.count - step * KEYS - (int)sub;
#pragma unroll
            for (int i = 0; i < S::ROWS; i++)
                ahead[i] = i * 16 < left ? list[step * KEYS + i * 16] : S::GROUP ? 0 : -1;
        };
        auto fetch_pages = [&]() __attribute__((always_inline))
        {
#pragma unroll
            for (int i = 0; i < S::ROWS; i++) {
                if (S::GROUP) {
                    masks[i] = (u32)ahead[i] >> MLA_UNION_MASK;
                    pos[i] = masks[i] ? ahead[i] & ((1 << MLA_UNION_MASK) - 1) : -1;
                } else {
                    pos[i] = ahead[i] < w.end ? ahead[i] : -1;
                }
                page[i] = pos[i];
            }
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
        for (int step = 0; step < w.steps; step++, blocks++) {
            const u32 stage = blocks & 1, phase = (blocks >> 1 & 1) ^ 1;
            const char *data[S::ROWS], *rope[S::ROWS];
            u32 there = 0, tokens[S::ROWS];
#pragma unroll
            for (int i = 0; i < S::ROWS; i++) {
                tokens[i] = S::GROUP ? masks[i] : 0;
                const bool see = page[i] >= 0 && (!w.pages || page[i] < c.num_pages);
                u32 slot = (u32)pos[i];
                int64_t at = 0;
                if (w.pages) {
                    slot -= (u32)(page_column(&c, pos[i]) * c.page_size);
                    at = page[i] * c.page_bytes;
                }
                data[i] = base + (at + slot * c.row_bytes);
                rope[i] =
                    joined ? data[i] + 1024
                           : rope_base + (at + slot * (w.pages ? c.row_bytes : c.rope_row_bytes));
                if (!see) /* nothing is read, but let the address be one of the cache */
                    data[i] = base, rope[i] = rope_base;
                data[i] = opaque(data[i]);
                rope[i] = opaque(rope[i]);
                there |= (u32)see << i;
            }
            mbarrier_wait(smem + S::k_free + stage * 16, phase);
            copy_half<S>(smem, to, stage, 0, data, rope, there);
            fetch_pages();
            fetch_entries(step + 2);
            const int seers = S::GROUP ? args.groups.size : 1;
#pragma unroll 1
            for (int token = 0; token < seers; token++) {
                u32 seen = 0; /* four keys a number i */
#pragma unroll
                for (int i = 0; i < S::ROWS; i++) {
                    u32 lanes = __ballot_sync(~0u, (there >> i & 1) &&
                                                       (!S::GROUP || tokens[i] >> token & 1));
                    seen |= ((lanes & 1) | (lanes >> 7 & 2) | (lanes >> 14 & 4) | (lanes >> 21 & 8))
                            << 4 * i;
                }
                if (lane % 32 == 0)
                    st_shared(smem + S::seen_at + (stage * S::TOKENS + token) * 16 + warp * 4,
                              MLA_MUTANT == 20 ? ~0u : seen);
            }
            release(smem + S::seen + stage * 8);
            mbarrier_wait(smem + S::k_free + stage * 16 + 8, phase);
            copy_half<S>(smem, to, stage, 1, data, rope, there);
        }
    }
}

/* ------------------------------------------------------------------- queries */

/* The queries of the work in a slot of notes, if there is one; by a warp. */
template <class S>
__device__ __forceinline__ void load_queries(const struct mla_sparse_sm90_args &args, u32 smem,
                                             struct ring<2> slot)
{
    const u32 note = smem + S::works_at + slot.stage * 48;
    mbarrier_wait(smem + S::work_full + slot.stage * 8, slot.phase);
    if (ld_shared<int>(note) <= 0)
        return;
    if (elect_one()) {
        const int head0 = ld_shared<int>(note + 4), token = ld_shared<int>(note + 12);
        mbarrier_arrive_expect_tx(smem + S::q_full, S::q_bytes);
#pragma unroll
        for (int i = 0; i < S::TILES; i++)
            tma_load_3d(smem + i * HEADS * 128, &args.q, smem + S::q_full, i * 64, head0, token,
                        L2_EVICT_FIRST);
    }
    others_arrive(smem + S::q_full);
    __syncwarp();
}

/* ------------------------------------------------------------------- scores */

template <class S> __device__ __forceinline__ struct sparse_note read_note(u32 smem, u32 slot)
{
    const u32 note = smem + S::works_at + slot * 48;
    return {ld_shared<int>(note),      ld_shared<int>(note + 4),  ld_shared<int>(note + 8),
            ld_shared<int>(note + 12), ld_shared<int>(note + 16), ld_shared<int64_t>(note + 24)};
}

/* Half of a stage's keys have come. */
template <class S>
__device__ __forceinline__ void wait_keys(u32 smem, u32 stage, int half, u32 phase)
{
    if (MLA_MUTANT != 7 || half == 0)
        mbarrier_wait(smem + S::k_full + stage * 16 + half * 8, phase);
    if (MLA_MUTANT != 1)
        fence_proxy_async();
}

/* Issues S (+)= Q·K^T of half of this warpgroup's stage: its own columns, then the rest. */
template <class T, class S>
__device__ __forceinline__ void issue_half_scores(float (&s)[KEYS / 2], u32 smem, u32 wg, int half)
{
    const u32 tile0 = (wg ^ half) * 4;
    const u64 a = wgmma_desc(smem + tile0 * (HEADS * 128), 16, 1024, 128);
    const u64 b =
        wgmma_desc(smem + S::k_at + wg * S::stage_bytes + tile0 * S::tile_bytes, 16, 1024, 128);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < 16; i++)
        wgmma_ss<T, KEYS>(s, desc_advance(a, i / 4 * (HEADS * 128) + i % 4 * 32),
                          desc_advance(b, i / 4 * S::tile_bytes + i % 4 * 32), half || i > 0);
    if (half && S::ROPE) {
        const u64 qr = wgmma_desc(smem + 8 * (HEADS * 128), 16, 1024, 128);
        const u64 kr =
            wgmma_desc(smem + S::k_at + wg * S::stage_bytes + 8 * S::tile_bytes, 16, 1024, 128);
#pragma unroll
        for (int i = 0; i < 4; i++)
            wgmma_ss<T, KEYS>(s, desc_advance(qr, i * 32), desc_advance(kr, i * 32), true);
    }
    wgmma_commit();
}

/* What a lane knows of its two rows: of the block before this one, and its own sum of weights. */
struct sparse_rows {
    float top[2], factor[2], sum[2];
    u32 phase; /* of this warpgroup's stage */
};

/* Softmax of this warpgroup's stage. P goes to p and, for the other warpgroup, to the stage, as do
 * the largest scores and the factors of what was summed before. r->top is that of the block before,
 * r->factor its factor. */
template <class T, class S>
__device__ __forceinline__ void weigh_block(float (&s)[KEYS / 2], u32 (&p)[KEYS / 16][4], u32 smem,
                                            u32 wg, u32 tokens, float scale, struct sparse_rows *r)
{
    const int t = threadIdx.x & 3;
    const u32 seen = smem + S::seen_at + wg * S::TOKENS * 16 + (t >> 1) * 4;
    mbarrier_wait(smem + S::seen + wg * 8, r->phase);
    /* Bits of keys 16 n + 2 t, + 1: 4 n, + 1 of words[0]; of keys 16 n + 8 + 2 t those of words[1].
     * The same of row + 8, which may be another token's, in words[2] and [3]. */
    u32 words[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        u32 token = S::GROUP ? tokens >> i / 2 * 16 & 0xFFFF : 0;
        words[i] = ld_shared<u32>(seen + token * 16 + i % 2 * 8) >> 2 * (t & 1);
    }
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
        float reference = r->top[half] == -INFINITY ? 0 : r->top[half];
        float factor = r->top[half] == before ? 1 : ex2_approx_ftz(before - reference);
        float total[2] = {0, 0};
#pragma unroll
        for (int i = 0; i < KEYS / 8; i++) {
            float x = ex2_approx_ftz(fmaf(s[4 * i + half * 2], scale, -reference));
            float y = ex2_approx_ftz(fmaf(s[4 * i + half * 2 + 1], scale, -reference));
            total[0] += x;
            total[1] += y;
            p[i / 2][i % 2 * 2 + half] = T::pack(x, y);
        }
        r->sum[half] = fmaf(r->sum[half], r->factor[half] * factor, total[0] + total[1]);
        r->factor[half] = factor;
    }
}

/* P goes to the other warpgroup, with the largest scores and factors. */
template <class S>
__device__ __forceinline__ void publish_block(const u32 (&p)[KEYS / 16][4], u32 smem, u32 wg,
                                              int row, const struct sparse_rows &r)
{
    const int t = threadIdx.x & 3;
    /* P goes where keys' rope was: all four warps' scores are done. */
    if (MLA_MUTANT != 4)
        bar_sync(2 + wg, 128);
    const u32 to = smem + S::k_at + wg * S::stage_bytes + S::p_in_stage + row * 128 + t * 4;
#pragma unroll
    for (int half = 0; half < 2; half++) {
#pragma unroll
        for (int i = 0; i < KEYS / 8; i++)
            st_shared(to + half * 1024 + ((u32)(i ^ (row & 7)) << 4), p[i / 2][i % 2 * 2 + half]);
        if (t == 0) {
            u32 at = (wg * HEADS + row + half * 8) * 4;
            st_shared(smem + S::tops_at + at, r.top[half]);
            st_shared(smem + S::factors_at + at, MLA_MUTANT == 2 ? 1.0f : r.factor[half]);
        }
    }
    if (MLA_MUTANT != 3)
        fence_proxy_async();
    release(smem + S::p_full + wg * 8);
}

/* ------------------------------------------------------------------- output */

__device__ __forceinline__ void rescale(float (&o)[128], const float (&factor)[2])
{
    if (__any_sync(~0u, factor[0] != 1 || factor[1] != 1)) {
#pragma unroll
        for (int i = 0; i < 128; i++)
            o[i] *= factor[i >> 1 & 1];
    }
}

/* This warpgroup's columns of V in a stage; V lies [key][column]: transposed. */
template <class S> __device__ __forceinline__ u64 values_desc(u32 smem, u32 stage, u32 wg)
{
    return wgmma_desc(smem + S::k_at + stage * S::stage_bytes + wg * 4 * S::tile_bytes,
                      S::tile_bytes, 1024, 128);
}

/* Issues O += P·V of the other warpgroup's stage. */
template <class T, class S>
__device__ __forceinline__ void issue_other_values(float (&o)[128], u32 smem, u32 wg)
{
    const u64 a =
        wgmma_desc(smem + S::k_at + (wg ^ 1) * S::stage_bytes + S::p_in_stage, 16, 1024, 128);
    const u64 b = values_desc<S>(smem, wg ^ 1, wg);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < KEYS / 16; i++)
        wgmma_ss<T, 256, 0, 1>(o, desc_advance(a, i * 32), desc_advance(b, i * 2048), true);
    wgmma_commit();
}

/* The same of its own stage, P in registers. */
template <class T, class S>
__device__ __forceinline__ void issue_own_values(float (&o)[128], const u32 (&p)[KEYS / 16][4],
                                                 u32 smem, u32 wg)
{
    const u64 b = values_desc<S>(smem, wg, wg);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < KEYS / 16; i++)
        wgmma_rs<T, 256, 1>(o, p[i], desc_advance(b, i * 2048), true);
    wgmma_commit();
}

/* Denominators from both warpgroups' sums: lse and max_logits or their partial values, and the
 * factor of the output. */
template <class S>
__device__ __forceinline__ void end_rows(const struct mla_mqa_args &a, const struct sparse_note &n,
                                         u32 smem, int wg, int row0, u32 slot,
                                         struct sparse_rows *r)
{
    const u32 sums = smem + S::sums_at + slot * 2 * HEADS * 4;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float sum = r->sum[half];
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        if ((threadIdx.x & 3) == 0)
            st_shared(sums + (wg * HEADS + row0 + half * 8) * 4, sum);
    }
    sync_warps(1, 256);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int row = row0 + half * 8, head = S::GROUP ? row % a.heads : n.head0 + row;
        float sum = ld_shared<float>(sums + row * 4) + ld_shared<float>(sums + (HEADS + row) * 4);
        float top = r->top[half], lse_log2;
        bool there = row < n.rows, sink = there && !n.split && a.sink;
        r->factor[half] = finish_row(top, sum, sink, sink ? a.sink[head] : 0, &lse_log2);
        if (!there || wg != 0 || (threadIdx.x & 3))
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
}

/* The other warpgroup's block is weighed: its largest scores and factors. */
template <class S>
__device__ __forceinline__ void read_block(u32 smem, u32 stage, u32 phase, int row,
                                           struct sparse_rows *r)
{
    mbarrier_wait(smem + S::p_full + stage * 8, phase);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        u32 from = (stage * HEADS + row + half * 8) * 4;
        r->top[half] = ld_shared<float>(smem + S::tops_at + from);
        r->factor[half] = ld_shared<float>(smem + S::factors_at + from);
    }
}

/* This warpgroup's 256 columns of two rows, times their factors, 16 bytes at a time. */
template <class X>
__device__ __forceinline__ void store_wide(char *const (&to)[2], const bool (&there)[2],
                                           const float (&factors)[2], const float (&o)[128])
{
#pragma unroll
    for (int j = 0; j < 8; j++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            u32 two[4];
#pragma unroll
            for (int i = 0; i < 4; i++)
                two[i] = X::pack(o[(j * 4 + i) * 4 + half * 2] * factors[half],
                                 o[(j * 4 + i) * 4 + half * 2 + 1] * factors[half]);
            uint4 piece = transpose_quad(two[0], two[1], two[2], two[3]);
            if (there[half])
                *(uint4 *)(to[half] + j * 64) = piece;
        }
    }
}

/* The same of the rows that exist, in any type. */
template <class S>
__device__ __forceinline__ void store_columns(const struct mla_sparse_sm90_args &args,
                                              const struct sparse_note &n, int wg, int row0,
                                              const float (&factors)[2], float (&o)[128])
{
    const struct mla_mqa_args &a = args.a;
    const int t = threadIdx.x & 3;
    const bool there[2] = {row0 < n.rows, row0 + 8 < n.rows};
    if (__any_sync(~0u, factors[0] == 0 || factors[1] == 0)) { /* zeros, whatever o holds */
#pragma unroll
        for (int i = 0; i < 128; i++)
            o[i] = factors[i >> 1 & 1] == 0 ? 0 : o[i];
    }
    int64_t column[2]; /* this warpgroup's first one of a row */
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int row = row0 + half * 8;
        const int token = n.token + (S::GROUP ? row / a.heads : 0);
        const int head = S::GROUP ? row % a.heads : n.head0 + row;
        column[half] =
            wg * 256 + (n.split ? (n.part + row) * MLA_MQA_LATENT
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
        const int64_t at = column[half] + i / 2 * 8 + t * 2;
        const float x = o[i * 2] * factors[half], y = o[i * 2 + 1] * factors[half];
        if (there[half] && n.split)
            *(float2 *)(a.part_out + at) = make_float2(x, y);
        else if (there[half])
            store_pair(a.out_dtype, a.out, at, x, y);
    }
}

struct yes {
    static const bool value = true;
};
struct no {
    static const bool value = false;
};

template <class T, class S>
__device__ __forceinline__ void attend_works(const struct mla_sparse_sm90_args &args, u32 smem,
                                             u32 wg)
{
    const struct mla_mqa_args &a = args.a;
    /* This lane's rows: row and row + 8. */
    const int row = (int)(threadIdx.x / 32 % 4) * 16 + (int)(threadIdx.x % 32) / 4;
    /* Tokens of a group that these rows are of; the last group may lack some. */
    const u32 tokens = S::GROUP ? row / a.heads | (row + 8) / a.heads << 16 : 0;
    struct ring<2> slot;
    u32 q_phase = 0, other_phase = 0, first = 0; /* first: stage of the work's first block */
    struct sparse_rows r;
    r.phase = 0;
    const bool loads = warp_index() == 4;
    if (loads)
        load_queries<S>(args, smem, slot);
    for (;;) {
        mbarrier_wait(smem + S::work_full + slot.stage * 8, slot.phase);
        const int steps = ld_shared<int>(smem + S::works_at + slot.stage * 48);
        if (steps < 0)
            return;
        float o[128];
#pragma unroll
        for (int i = 0; i < 128; i++)
            o[i] = 0;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            r.top[half] = -INFINITY;
            r.factor[half] = 1;
            r.sum[half] = 0;
        }
        if (steps > 0) {
            /* Who has no block of this work would come too late: the next queries may be there. */
            if ((int)(wg ^ first) < steps)
                mbarrier_wait(smem + S::q_full, q_phase);
            q_phase ^= 1;
        }
        struct ring<2> next = slot;
        next.next();
        auto take_turn = [&](auto is_first, bool last) __attribute__((always_inline))
        {
            constexpr bool FIRST = decltype(is_first)::value;
            float s[KEYS / 2];
            u32 p[KEYS / 16][4];
            wait_keys<S>(smem, wg, 0, r.phase);
            issue_half_scores<T, S>(s, smem, wg, 0);
            if (!FIRST) {
                read_block<S>(smem, wg ^ 1, other_phase, row, &r);
                rescale(o, r.factor);
                issue_other_values<T, S>(o, smem, wg);
            }
            wait_keys<S>(smem, wg, 1, r.phase);
            issue_half_scores<T, S>(s, smem, wg, 1);
            if (MLA_MUTANT == 6 && loads && last)
                load_queries<S>(args, smem, next);
            if (!FIRST) {
                wgmma_wait<1>();
                wgmma_bind(o);
                release(smem + S::k_free + (wg ^ 1) * 16 + 8);
                other_phase ^= 1;
            }
            wgmma_wait<0>();
            wgmma_bind(s);
            weigh_block<T, S>(s, p, smem, wg, tokens, a.scale_log2, &r);
            publish_block<S>(p, smem, wg, row, r);
            rescale(o, r.factor);
            issue_own_values<T, S>(o, p, smem, wg);
            if (MLA_MUTANT == 8)
                release(smem + S::k_free + wg * 16);
            wgmma_wait<0>();
            wgmma_bind(o);
            if (MLA_MUTANT != 8)
                release(smem + S::k_free + wg * 16);
            r.phase ^= 1;
        };
        int j = (int)(wg ^ first);
        if (j == 0 && steps > 0) {
            take_turn(yes(), 2 >= steps);
            j = 2;
        }
#pragma unroll 1
        for (; j < steps; j += 2)
            take_turn(no(), j + 2 >= steps);
        /* The last block is the other's, unless this warpgroup's was. */
        if (steps > 0 && ((steps - 1 + first) & 1) != wg) {
            read_block<S>(smem, wg ^ 1, other_phase, row, &r);
            r.sum[0] *= r.factor[0];
            r.sum[1] *= r.factor[1];
            rescale(o, r.factor);
            issue_other_values<T, S>(o, smem, wg);
            wgmma_wait<0>();
            wgmma_bind(o);
            release(smem + S::k_free + (wg ^ 1) * 16 + 8);
            other_phase ^= 1;
        }
        first ^= steps & 1;
        if (loads && MLA_MUTANT != 6) /* all scores are done: P of every block has been seen */
            load_queries<S>(args, smem, next);
        const struct sparse_note n = read_note<S>(smem, slot.stage);
        end_rows<S>(a, n, smem, wg, row, slot.stage, &r);
        store_columns<S>(args, n, wg, row, r.factor, o);
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
            mbarrier_init(smem + S::work_free + i * 8, 8 * LANES_THAT_ARRIVE);
            mbarrier_init(smem + S::seen + i * 8, S::GATHER * LANES_THAT_ARRIVE);
            mbarrier_init(smem + S::p_full + i * 8, 4 * LANES_THAT_ARRIVE);
        }
        for (int i = 0; i < 4; i++) {
            mbarrier_init(smem + S::k_full + i * 8, 32 * S::GATHER);
            mbarrier_init(smem + S::k_free + i * 8, 4 * LANES_THAT_ARRIVE);
        }
        mbarrier_init(smem + S::q_full, LANES_THAT_ARRIVE);
        fence_mbarrier_init();
    }
    __syncthreads();
    if (warp < 4) {
        setmaxnreg_dec<GATHER_REGISTERS>();
        MLA_ROLE("gather");
        gather_works<S>(args, smem);
    } else {
        setmaxnreg_inc<MATH_REGISTERS>();
        MLA_ROLE("softmax");
        attend_works<T, S>(args, smem, warp / 4 - 1);
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

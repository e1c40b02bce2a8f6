/* SPDX-License-Identifier: Apache-2.0 */
/* Absorbed-form attention of up to 16 heads on sm_90a (wgmma, cp.async, TMA for Q), over top-k
 * lists or all keys: out = softmax(scale · q · K^T) · K[:, :512], one query token a tile; bf16 or
 * f16 caches, flat or paged.
 *
 * wgmma has 64 rows, so keys and columns are the rows here and heads the columns: S^T = K·Q^T, 64
 * keys x 16 heads, and O^T = V^T·P^T, eight tiles of 64 columns x 16 heads. No row is padding.
 *
 * Two persistent blocks an SM of two warpgroups; a work is a token and a split of its keys.
 *
 *   warpgroup  duty
 *   0          gathers rows: 36 cp.async of 16 bytes a thread and block of 64 keys
 *   1          scores, softmax, output
 *
 * Shared memory, bytes
 *   Q       16 heads x 576, nine tiles of [16][128 bytes], swizzled      18432
 *   K       a ring of eleven tiles [64 keys][128 bytes], swizzled        90112
 *   P       64 keys x 16 heads, swizzled by 32 bytes                      2048
 *   largest scores of each warp, sums, visible keys, notes, barriers: 1.1 KB
 *
 * A block of keys is nine tiles of the ring, rope first: it is free again when the scores are done;
 * the others as soon as their columns of the output are. The ring runs on over the ends of works.
 *
 *   barrier            count     arrives                              waits
 *   work_full[2]       1         gather                               math
 *   work_free[2]       4         math warps: are through              gather
 *   q_full             1 + tx    first math warp (TMA)                math
 *   k_full[11]         128       cp.async of the gather have landed   math
 *   k_free[11]         4         math warps                           gather
 *   seen[2]            4         gather warps: visible keys           math
 *   named 1            128       math: largest scores are written; P is written; sums are
 *
 * Rows that land by cp.async are writes of the generic proxy; the threads that wait for them make
 * the proxy fence before wgmma reads. Visible keys of block b + 2 are written when a tile that the
 * output of block b has read is free, so two places are enough.
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

static const int FEW_THREADS = 256, KEYS = MLA_FEW_SM90_KEYS, HEADS = MLA_FEW_SM90_HEADS;
static const int OUT_TILES = MLA_MQA_LATENT / 64;

template <int ROPE_> struct few_shape {
    static const int ROPE = ROPE_, TILES = OUT_TILES + ROPE / 64, SLOTS = 11;
    static const int GATHER = 4, /* warps; keys of each thread of them */
        ROWS = KEYS / (4 * GATHER);
    static const u32 tile_bytes = KEYS * 128, q_tile_bytes = HEADS * 128;
    static const u32 k_at = 9 * q_tile_bytes, p_at = k_at + SLOTS * tile_bytes;
    static const u32 tops_at = p_at + KEYS * HEADS * 2; /* [warp][head], floats */
    static const u32 sums_at = tops_at + 4 * HEADS * 4; /* [work % 2][warp][head] */
    static const u32 seen_at = sums_at + 8 * HEADS * 4; /* [block % 2][key], bytes */
    static const u32 works_at = seen_at + 2 * KEYS;     /* 32 bytes each */
    static const u32 work_full = works_at + 2 * 32, work_free = work_full + 16,
                     seen = work_free + 16, k_full = seen + 16, k_free = k_full + 8 * SLOTS,
                     q_full = k_free + 8 * SLOTS, shared_bytes = q_full + 8;
    static_assert(ROPE == 0 || ROPE == 64, "rope 0 or 64");
    static_assert(2 * TILES - SLOTS >= 1 && 2 * TILES - SLOTS < TILES, "visible keys: two places");
    static_assert(shared_bytes <= 115712, "two blocks an SM");
};

/* What the math warps learn of a work. */
struct few_note {
    int steps; /* blocks of keys; -1: no more works */
    int token, split;
    int64_t part; /* row of head 0 in the partial results */
};

/* ------------------------------------------------------------------- gather */

/* One work as the gather warps see it. */
struct few_work {
    const int32_t *list, *pages; /* list NULL: all keys; pages NULL: flat */
    int first;                   /* without a list: the first key */
    int kv_start, count, end;    /* entries; keys below end count */
    struct few_note note;
};

/* False if the work is another kernel's. */
__device__ __forceinline__ bool find_few_work(const struct mla_mqa_args &a, int index,
                                              struct few_work *w)
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
    w->first = first * KEYS;
    w->list = a.topk ? a.indices + token * a.indices_stride + first * KEYS : NULL;
    w->count = min(w->count, last * KEYS) - first * KEYS;
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
    struct ring<S::SLOTS> tile;
    u32 blocks = 0;
    for (int index = blockIdx.x;; index += gridDim.x) {
        struct few_work w = {};
        while (index < args.works && !find_few_work(a, index, &w))
            index += gridDim.x;
        const bool stop = index >= args.works;
        if (warp == 0) {
            mbarrier_wait(smem + S::work_free + slot.stage * 8, slot.phase ^ 1);
            if (elect_one()) {
                const u32 note = smem + S::works_at + slot.stage * 32;
                st_shared(note, stop ? -1 : w.note.steps);
                st_shared(note + 4, w.note.token);
                st_shared(note + 8, w.note.split);
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
            auto copy_tile = [&](const char *const(&from)[S::ROWS], int column)
                __attribute__((always_inline))
            {
                const u32 at = opaque(to + tile.stage * S::tile_bytes);
#pragma unroll
                for (int i = 0; i < S::ROWS; i++)
                    cp_async_cg_16(at + i * 2048, from[i] + column * 128, there >> i & 1 ? 16 : 0);
                cp_async_mbarrier_arrive_noinc(smem + S::k_full + tile.stage * 8);
                tile.next();
            };
            auto wait_free = [&]() __attribute__((always_inline))
            {
                if (MLA_MUTANT != 7)
                    mbarrier_wait(smem + S::k_free + tile.stage * 8, tile.phase ^ 1);
            };
            wait_free();
            if (S::ROPE)
                copy_tile(rope, 0);
            else
                copy_tile(data, 0);
            if (part == 0) {
#pragma unroll
                for (int i = 0; i < S::ROWS; i++)
                    st_shared(smem + S::seen_at + (blocks & 1) * KEYS + i * 16 + sub,
                              (unsigned char)(MLA_MUTANT == 5 || (there >> i & 1)));
            }
            release(smem + S::seen + (blocks & 1) * 8);
            fetch_pages();
            fetch_entries(step + 2);
#pragma unroll
            for (int i = S::ROPE ? 0 : 1; i < OUT_TILES; i++) {
                wait_free();
                copy_tile(data, i);
            }
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

/* What a lane knows of its heads: the largest score of all, its own keys' sum of weights. */
struct few_rows {
    float top[4], factor[4], sum[4];
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

/* S^T of a block: waits for its tiles one after another. at[i]: where tile i of Q's order lies.
 * seen: does the token see this lane's keys? */
template <class T, class S>
__device__ __forceinline__ void score_block(float (&s)[8], u32 (&at)[S::TILES], bool (&seen)[2],
                                            u32 smem, u32 block, struct ring<S::SLOTS> *tile)
{
#pragma unroll
    for (int n = 0; n < S::TILES; n++) {
        const int i = (n + S::TILES - S::ROPE / 64) % S::TILES; /* rope comes first */
        at[i] = smem + S::k_at + tile->stage * S::tile_bytes;
        if (MLA_MUTANT != 6 || n == 0)
            mbarrier_wait(smem + S::k_full + tile->stage * 8, tile->phase);
        tile->next();
        if (MLA_MUTANT != 1)
            fence_proxy_async();
        wgmma_fence();
        const u64 a = wgmma_desc(at[i], 16, 1024, 128);
        const u64 b = wgmma_desc(smem + i * S::q_tile_bytes, 16, 1024, 128);
#pragma unroll
        for (int k = 0; k < 4; k++)
            wgmma_ss<T, HEADS>(s, desc_advance(a, k * 32), desc_advance(b, k * 32), n > 0 || k > 0);
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

/* Softmax of a block; P^T goes to shared memory. */
template <class T, class S>
__device__ __forceinline__ void weigh_block(float (&s)[8], const bool (&seen)[2], u32 smem,
                                            float scale, struct few_rows *r)
{
    const int t = threadIdx.x & 3, key = threadIdx.x / 32 % 4 * 16 + threadIdx.x % 32 / 4;
    if (scale <= 0) { /* so that the largest is the largest */
#pragma unroll
        for (int i = 0; i < 8; i++)
            s[i] = scale == 0 ? 0 : -s[i];
        scale = scale == 0 ? 1 : -scale;
    }
    float best[4];
#pragma unroll
    for (int i = 0; i < 8; i++)
        s[i] = seen[i >> 1 & 1] ? s[i] : -INFINITY;
#pragma unroll
    for (int j = 0; j < 4; j++)
        best[j] = fmaxf(s[j / 2 * 4 + j % 2], s[j / 2 * 4 + j % 2 + 2]);
    auto larger = [](float x, float y) { return fmaxf(x, y); };
    share_heads(smem + S::tops_at, combine_keys(best, larger));
    bar_sync(1, 128);
    read_heads(smem + S::tops_at, best, larger);
    u32 to = smem + S::p_at + key * 32 + t * 4;
    float p[8];
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const int at = j / 2 * 4 + j % 2;
        float before = r->top[j];
        r->top[j] = fmaxf(before, best[j] * scale);
        /* -inf before the first key: any finite reference gives weights 0. */
        float reference = r->top[j] == -INFINITY ? 0 : r->top[j];
        r->factor[j] = r->top[j] == before ? 1 : ex2_approx_ftz(before - reference);
        p[at] = ex2_approx_ftz(fmaf(s[at], scale, -reference));
        p[at + 2] = ex2_approx_ftz(fmaf(s[at + 2], scale, -reference));
        r->sum[j] = fmaf(r->sum[j], r->factor[j], p[at] + p[at + 2]);
    }
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int half = 0; half < 2; half++)
            st_shared(to + half * 256 + ((u32)(i ^ (key >> 2 & 1)) << 4),
                      T::pack(p[i * 4 + half * 2], p[i * 4 + half * 2 + 1]));
    if (MLA_MUTANT != 3)
        fence_proxy_async();
    if (MLA_MUTANT != 4)
        bar_sync(1, 128);
}

/* ------------------------------------------------------------------- output */

__device__ __forceinline__ void rescale(float (&o)[OUT_TILES][8], const float (&factor)[4])
{
    if (MLA_MUTANT != 2 &&
        __any_sync(~0u, factor[0] != 1 || factor[1] != 1 || factor[2] != 1 || factor[3] != 1)) {
#pragma unroll
        for (int m = 0; m < OUT_TILES; m++)
#pragma unroll
            for (int i = 0; i < 8; i++)
                o[m][i] *= factor[i / 4 * 2 + i % 2];
    }
}

/* O^T += V^T·P^T, tile by tile, each of which is then given back. */
template <class T, class S>
__device__ __forceinline__ void add_values(float (&o)[OUT_TILES][8], const u32 (&at)[S::TILES],
                                           u32 smem)
{
    const int TOGETHER = 2; /* tiles */
    const u64 b = wgmma_desc(smem + S::p_at, 16, 256, 32);
    wgmma_fence();
#pragma unroll
    for (int m = 0; m < OUT_TILES; m += TOGETHER) {
#pragma unroll
        for (int k = 0; k < KEYS / 16; k++)
#pragma unroll
            for (int i = m; i < m + TOGETHER; i++)
                wgmma_ss<T, HEADS, 1, 1>(o[i],
                                         desc_advance(wgmma_desc(at[i], 16, 1024, 128), k * 2048),
                                         desc_advance(b, k * 512), true);
        wgmma_commit();
    }
}

/* A tile that products have read, which this warp has waited for. */
template <class S> __device__ __forceinline__ void free_tile(u32 at, u32 smem)
{
    if (arrives())
        mbarrier_arrive(smem + S::k_free + (at - smem - S::k_at) / S::tile_bytes * 8);
}

/* Denominators: lse and max_logits or their partial values, and the factor of the output. */
template <class S>
__device__ __forceinline__ void end_rows(const struct mla_mqa_args &a, const struct few_note &n,
                                         u32 smem, u32 slot, struct few_rows *r)
{
    const u32 sums = smem + S::sums_at + slot * 4 * HEADS * 4;
    auto plus = [](float x, float y) { return x + y; };
    share_heads(sums, combine_keys(r->sum, plus));
    bar_sync(1, 128);
    read_heads(sums, r->sum, plus);
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const int head = few_head(j);
        const bool there = head < a.heads, sink = there && !n.split && a.sink;
        float lse_log2;
        r->factor[j] = finish_row(r->top[j], r->sum[j], sink, sink ? a.sink[head] : 0, &lse_log2);
        if (!there || threadIdx.x % 128 >= 4)
            continue;
        if (n.split) {
            a.part_lse[n.part + head] = lse_log2;
            a.part_max[n.part + head] = r->top[j];
        } else {
            if (a.lse)
                a.lse[n.token * a.lse_stride[0] + head * a.lse_stride[1]] = lse_log2 * a.lse_unit;
            if (a.max_logits)
                a.max_logits[n.token * a.max_stride[0] + head * a.max_stride[1]] =
                    r->top[j] * 0.693147181f;
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

template <class T, class S>
__device__ __forceinline__ void attend_works(const struct mla_few_sm90_args &args, u32 smem)
{
    const struct mla_mqa_args &a = args.a;
    struct ring<2> slot;
    struct ring<S::SLOTS> tile;
    u32 q_phase = 0, block = 0;
    const bool loads = warp_index() == 4;
    if (loads)
        load_queries<S>(args, smem, slot);
    for (;;) {
        mbarrier_wait(smem + S::work_full + slot.stage * 8, slot.phase);
        const u32 note = smem + S::works_at + slot.stage * 32;
        const struct few_note n = {ld_shared<int>(note), ld_shared<int>(note + 4),
                                   ld_shared<int>(note + 8), ld_shared<int64_t>(note + 16)};
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
            r.top[j] = -INFINITY;
            r.factor[j] = 1;
            r.sum[j] = 0;
        }
        if (n.steps > 0) {
            mbarrier_wait(smem + S::q_full, q_phase);
            q_phase ^= 1;
        } else if (loads) {
            load_queries<S>(args, smem, next);
        }
#pragma unroll 1
        for (int step = 0; step < n.steps; step++, block++) {
            float s[8];
            u32 at[S::TILES];
            bool seen[2];
            score_block<T, S>(s, at, seen, smem, block, &tile);
            if (MLA_MUTANT == 8 && loads && step + 1 == n.steps)
                load_queries<S>(args, smem, next);
            wgmma_wait<0>();
            wgmma_bind(s);
            if (S::ROPE)
                free_tile<S>(at[S::TILES - 1], smem);
            if (MLA_MUTANT == 9)
                free_tile<S>(at[0], smem);
            weigh_block<T, S>(s, seen, smem, a.scale_log2, &r);
            /* all warps' scores are done */
            if (MLA_MUTANT != 8 && loads && step + 1 == n.steps)
                load_queries<S>(args, smem, next);
            rescale(o, r.factor);
            add_values<T, S>(o, at, smem);
            auto free_two = [&](int i) __attribute__((always_inline))
            {
                if (MLA_MUTANT != 9 || i > 0)
                    free_tile<S>(at[i], smem);
                free_tile<S>(at[i + 1], smem);
            };
            wgmma_wait<3>();
            free_two(0);
            wgmma_wait<2>();
            free_two(2);
            wgmma_wait<1>();
            free_two(4);
            wgmma_wait<0>();
            free_two(6);
#pragma unroll
            for (int m = 0; m < OUT_TILES; m++)
                wgmma_bind(o[m]);
        }
        end_rows<S>(a, n, smem, slot.stage, &r);
        store_out(a, n, r.factor, o);
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
        mbarrier_init(smem + S::q_full, LANES_THAT_ARRIVE);
        fence_mbarrier_init();
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

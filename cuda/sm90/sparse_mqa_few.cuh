/* SPDX-License-Identifier: Apache-2.0 */
/* Absorbed-form attention of up to 16 heads on sm_90a (wgmma, cp.async, TMA for Q), over top-k lists
 * or all keys: out = softmax(scale · q · K^T) · K[:, :512], one query token a tile; bf16 or f16
 * caches, flat or paged.
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

static const int KEYS = MLA_FEW_SM90_KEYS;
static const int OUT_TILES = MLA_MQA_LATENT / 64 / 2; /* of a warpgroup */
#ifndef FEW_GATHER
#define FEW_GATHER 4
#endif
#ifndef FEW_CHAINS
#define FEW_CHAINS 1
#endif
static const int CHAINS = FEW_CHAINS; /* sums of the scores under way side by side */

template <int ROPE_, int HEADS_> struct few_shape {
    static const int ROPE = ROPE_, HEADS = HEADS_, TILES = MLA_MQA_LATENT / 64 + ROPE / 64;
    static const int LANE_HEADS = HEADS / 4; /* of a lane */
    static const int GATHER = FEW_GATHER,    /* warps; keys of each thread of them */
        ROWS = KEYS / (4 * GATHER), STEP = 4 * GATHER;
    static const int THREADS = (GATHER + 8) * 32;
    static const int GROUP = ROPE ? 3 : 4, GROUPS = TILES / GROUP; /* tiles that come together */
    static const u32 tile_bytes = KEYS * 128, q_tile_bytes = HEADS * 128;
    static const u32 p_bytes = KEYS * HEADS * 2, head_bytes = HEADS * 4;
    static const int SLOTS = (HEADS == 16 ? 25 : 22) / GROUP;
    static const u32 group_bytes = GROUP * tile_bytes;
    static const u32 k_at = 9 * q_tile_bytes, p_at = k_at + SLOTS * group_bytes; /* [block % 2] */
    static const u32 best_at = p_at + 2 * p_bytes;         /* [warpgroup][warp][head] */
    static const u32 tops_at = best_at + 8 * head_bytes;   /* [block % 2][head] */
    static const u32 factors_at = tops_at + 2 * head_bytes; /* [block % 2][head] */
    static const u32 sums_at = factors_at + 2 * head_bytes; /* [work % 2][warpgroup][warp][head] */
    static const u32 seen_at = sums_at + 16 * head_bytes;  /* [block % 4][key], bytes */
    static const u32 works_at = seen_at + 4 * KEYS;        /* 32 bytes each */
    static const u32 work_full = works_at + 2 * 32, work_free = work_full + 16,
                     seen = work_free + 16, p_full = seen + 32, k_full = p_full + 16,
                     k_free = k_full + 8 * SLOTS, q_full = k_free + 8 * SLOTS,
                     shared_bytes = q_full + 8;
    static_assert(ROPE == 0 || ROPE == 64, "rope 0 or 64");
    static_assert(HEADS == 16 || HEADS == 32, "16 or 32 heads");
    static_assert(4 * GROUPS >= SLOTS && SLOTS >= 2 * GROUPS, "visible keys: four places");
    static_assert(shared_bytes <= 232448, "227 KB of shared memory a block");
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
    w->count = !a.topk       ? w->end
               : a.topk_lens ? max(0, min(a.topk, a.topk_lens[token]))
                             : a.topk;
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
    /* Eight threads a row: key STEP i + sub of a block, pieces part, part + 8, ... */
    const u32 lane = opaque((u32)threadIdx.x), sub = lane / 8, part = lane % 8, warp = lane / 32;
    const u32 to = opaque(smem + S::k_at + sub * 128 + ((part ^ (sub & 7)) << 4));
    const bool joined =
        !S::ROPE || (c.rope - c.data == 1024 && (c.page_size || c.rope_row_bytes == c.row_bytes));
    struct ring<2> slot;
    struct ring<S::SLOTS> slots;
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
                ahead[i] = i * S::STEP >= left ? -1
                           : w.list            ? w.list[at + i * S::STEP]
                                               : w.first + at + i * S::STEP;
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
                                 : rope_base + (at + in_page * (w.pages ? c.row_bytes
                                                                        : c.rope_row_bytes));
                if (!see) /* nothing is read, but let the address be one of the cache */
                    data[i] = base, rope[i] = rope_base;
                data[i] = opaque(data[i]);
                rope[i] = opaque(rope[i]);
                there |= (u32)see << i;
            }
#pragma unroll
            for (int n = 0; n < S::TILES; n++) { /* rope comes first */
                const int column = n - S::ROPE / 64;
                if (n % S::GROUP == 0 && MLA_MUTANT != 7)
                    mbarrier_wait(smem + S::k_free + slots.stage * 8, slots.phase ^ 1);
                const u32 at = opaque(to + slots.stage * S::group_bytes);
#pragma unroll
                for (int i = 0; i < S::ROWS; i++)
                    cp_async_cg_16(at + n % S::GROUP * S::tile_bytes + i * S::STEP * 128,
                                   column < 0 ? rope[i] : data[i] + column * 128,
                                   there >> i & 1 ? 16 : 0);
                if (n % S::GROUP != S::GROUP - 1)
                    continue;
                cp_async_mbarrier_arrive_noinc(smem + S::k_full + slots.stage * 8);
                slots.next();
                if (n != S::GROUP - 1)
                    continue;
                if (part == 0) {
#pragma unroll
                    for (int i = 0; i < S::ROWS; i++)
                        st_shared(smem + S::seen_at + (blocks & 3) * KEYS + i * S::STEP + sub,
                                  (unsigned char)(MLA_MUTANT == 5 || (there >> i & 1)));
                }
                release(smem + S::seen + (blocks & 3) * 8);
                fetch_pages();
                fetch_entries(step + 2);
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
    __syncwarp();
}

/* ------------------------------------------------------------------- scores */

/* A lane of the math warps holds S^T of two keys, 16 warp + lane / 4 and + 8, and O^T of as many
 * columns of each tile, for LANE_HEADS heads: of number j the head 8 (j / 2) + 2 (lane % 4) + j % 2,
 * in registers 4 (j / 2) + j % 2 and + 2 of each accumulator. */
__device__ __forceinline__ int few_head(int j)
{
    return j / 2 * 8 + (threadIdx.x & 3) * 2 + j % 2;
}

/* What a lane knows of its heads: of the block before, and its own keys' sum of weights. */
template <int N> struct few_rows {
    float top[N], factor[N], sum[N];
    u32 phase; /* of the other warpgroup's P */
};

/* Of N values that all lanes with the same lane % 4 hold, combined over them, the one of head number
 * lane / 4 · N / 8: x[j] is that of few_head(j). */
template <int N, class F> __device__ __forceinline__ float combine_keys(const float (&x)[N], F both)
{
    float y[N];
#pragma unroll
    for (int j = 0; j < N; j++)
        y[j] = x[j];
#pragma unroll
    for (int n = N / 2, bit = 16; bit >= 4; bit /= 2, n /= 2) {
        const bool upper = threadIdx.x & bit;
        if (n == 0)
            y[0] = both(y[0], __shfl_xor_sync(~0u, y[0], bit));
#pragma unroll
        for (int j = 0; j < n; j++)
            y[j] = both(upper ? y[j + n] : y[j],
                        __shfl_xor_sync(~0u, upper ? y[j] : y[j + n], bit));
    }
    return y[0];
}

/* Writes such a value, at[warp][head], for the other warps to read behind a barrier. */
template <class S> __device__ __forceinline__ void share_heads(u32 at, float x)
{
    const int lane = threadIdx.x % 32;
    if (S::LANE_HEADS == 8 || !(lane & 4))
        st_shared(at + threadIdx.x / 32 % 4 * S::head_bytes +
                      few_head(lane / 4 * S::LANE_HEADS / 8) * 4,
                  x);
}

/* x: what `rows` rows of all heads hold, combined. */
template <class S, class F>
__device__ __forceinline__ void read_heads(u32 at, int rows, float (&x)[S::LANE_HEADS], F both)
{
#pragma unroll
    for (int row = 0; row < rows; row++)
#pragma unroll
        for (int i = 0; i < S::LANE_HEADS; i += 2) {
            float2 two = ld_shared<float2>(at + row * S::head_bytes + few_head(i) * 4);
            x[i] = row ? both(x[i], two.x) : two.x;
            x[i + 1] = row ? both(x[i + 1], two.y) : two.y;
        }
}

/* S^T of a block, whose tiles come in groups. */
template <class T, class S>
__device__ __forceinline__ void score_block(float (&s)[CHAINS][S::HEADS / 2], u32 smem,
                                            struct ring<S::SLOTS> slots)
{
#pragma unroll
    for (int group = 0; group < S::GROUPS; group++) {
        if (MLA_MUTANT != 6 || group == 0)
            mbarrier_wait(smem + S::k_full + slots.stage * 8, slots.phase);
        if (MLA_MUTANT != 1)
            fence_proxy_async();
        wgmma_fence();
        const u64 a = wgmma_desc(smem + S::k_at + slots.stage * S::group_bytes, 16, 1024, 128);
#pragma unroll
        for (int j = 0; j < S::GROUP; j++) {
            const int n = group * S::GROUP + j, i = (n + S::TILES - S::ROPE / 64) % S::TILES;
            const u64 b = wgmma_desc(smem + i * S::q_tile_bytes, 16, 1024, 128);
#pragma unroll
            for (int k = 0; k < 4; k++)
                wgmma_ss<T, S::HEADS>(s[k % CHAINS], desc_advance(a, j * S::tile_bytes + k * 32),
                                      desc_advance(b, k * 32), n > 0 || k >= CHAINS);
        }
        slots.next();
    }
    wgmma_commit();
}

/* Softmax of this warpgroup's block; r->top and factor are those of the block before. */
template <class T, class S>
__device__ __forceinline__ void weigh_block(float (&s)[S::HEADS / 2], u32 (&p)[S::HEADS / 4],
                                            u32 smem, u32 wg, u32 block, float scale,
                                            struct few_rows<S::LANE_HEADS> *r)
{
    const int N = S::LANE_HEADS, key = threadIdx.x / 32 % 4 * 16 + threadIdx.x % 32 / 4;
    const u32 seen_at = smem + S::seen_at + (block & 3) * KEYS + key;
    mbarrier_wait(smem + S::seen + (block & 3) * 8, block >> 2 & 1);
    const bool seen[2] = {ld_shared<unsigned char>(seen_at) != 0,
                          ld_shared<unsigned char>(seen_at + 8) != 0};
    if (scale <= 0) { /* so that the largest is the largest */
#pragma unroll
        for (int i = 0; i < 2 * N; i++)
            s[i] = scale == 0 ? 0 : -s[i];
        scale = scale == 0 ? 1 : -scale;
    }
    float best[N];
#pragma unroll
    for (int i = 0; i < 2 * N; i++)
        s[i] = seen[i >> 1 & 1] ? s[i] : -INFINITY;
#pragma unroll
    for (int j = 0; j < N; j++)
        best[j] = fmaxf(s[j / 2 * 4 + j % 2], s[j / 2 * 4 + j % 2 + 2]);
    auto larger = [](float x, float y) { return fmaxf(x, y); };
    const u32 best_at = smem + S::best_at + wg * 4 * S::head_bytes;
    share_heads<S>(best_at, combine_keys(best, larger));
    bar_sync(2 + wg, 128);
    read_heads<S>(best_at, 4, best, larger);
#pragma unroll
    for (int j = 0; j < N; j++) {
        const int at = j / 2 * 4 + j % 2;
        float before = r->top[j];
        r->top[j] = fmaxf(before, best[j] * scale);
        /* -inf before the first key: any finite reference gives weights 0. */
        float reference = r->top[j] == -INFINITY ? 0 : r->top[j];
        float factor = r->top[j] == before ? 1 : ex2_approx_ftz(before - reference);
        s[at] = ex2_approx_ftz(fmaf(s[at], scale, -reference));
        s[at + 2] = ex2_approx_ftz(fmaf(s[at + 2], scale, -reference));
        r->sum[j] = fmaf(r->sum[j], r->factor[j] * factor, s[at] + s[at + 2]);
        r->factor[j] = factor;
    }
#pragma unroll
    for (int i = 0; i < N; i++)
        p[i] = T::pack(s[2 * i], s[2 * i + 1]);
}

/* P^T, the largest scores and factors of block % 2 = wg go to both warpgroups. */
template <class S>
__device__ __forceinline__ void publish_block(const u32 (&p)[S::HEADS / 4], u32 smem, u32 wg,
                                              const struct few_rows<S::LANE_HEADS> &r)
{
    const int key = threadIdx.x / 32 % 4 * 16 + threadIdx.x % 32 / 4;
    const u32 to = smem + S::p_at + wg * S::p_bytes + (threadIdx.x & 3) * 4;
#pragma unroll
    for (int i = 0; i < S::HEADS / 8; i++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const u32 at = (key + half * 8) * S::HEADS * 2 + i * 16;
            st_shared(to + (at ^ (at >> 7 & (S::HEADS / 8 - 1)) << 4), p[i * 2 + half]);
        }
    if (threadIdx.x % 128 < 4)
#pragma unroll
        for (int j = 0; j < S::LANE_HEADS; j++) {
            st_shared(smem + S::tops_at + wg * S::head_bytes + few_head(j) * 4, r.top[j]);
            st_shared(smem + S::factors_at + wg * S::head_bytes + few_head(j) * 4,
                      MLA_MUTANT == 2 ? 1.0f : r.factor[j]);
        }
    if (MLA_MUTANT != 3)
        fence_proxy_async();
    release(smem + S::p_full + wg * 8);
}

/* The other warpgroup's block is weighed: its largest scores and factors. */
template <class S>
__device__ __forceinline__ void read_block(u32 smem, u32 wg, struct few_rows<S::LANE_HEADS> *r)
{
    auto none = [](float x, float) { return x; };
    mbarrier_wait(smem + S::p_full + wg * 8, r->phase);
    read_heads<S>(smem + S::tops_at + wg * S::head_bytes, 1, r->top, none);
    read_heads<S>(smem + S::factors_at + wg * S::head_bytes, 1, r->factor, none);
}

/* ------------------------------------------------------------------- output */

template <class S>
__device__ __forceinline__ void rescale(float (&o)[OUT_TILES][S::HEADS / 2],
                                        const float (&factor)[S::LANE_HEADS])
{
    bool moved = false;
#pragma unroll
    for (int j = 0; j < S::LANE_HEADS; j++)
        moved |= factor[j] != 1;
    if (__any_sync(~0u, moved)) {
#pragma unroll
        for (int m = 0; m < OUT_TILES; m++)
#pragma unroll
            for (int i = 0; i < S::HEADS / 2; i++)
                o[m][i] *= factor[i / 4 * 2 + i % 2];
    }
}

/* Where tile n of a block lies whose first group is in slot `first`. */
template <class S> __device__ __forceinline__ u32 tile_at(u32 smem, u32 first, u32 n)
{
    const u32 group = S::GROUP == 3 ? n * 11 >> 5 : n / S::GROUP; /* n / 3 */
    u32 slot = first + group;
    slot = slot >= S::SLOTS ? slot - S::SLOTS : slot;
    return smem + S::k_at + (slot * S::GROUP + n - group * S::GROUP) * S::tile_bytes;
}

template <class S>
__device__ __forceinline__ void bind_values(float (&o)[OUT_TILES][S::HEADS / 2])
{
#pragma unroll
    for (int m = 0; m < OUT_TILES; m++)
        wgmma_bind(o[m]);
}

/* Issues O^T += V^T·P^T of a block. */
template <class T, class S>
__device__ __forceinline__ void issue_values(float (&o)[OUT_TILES][S::HEADS / 2], u32 smem, u32 wg,
                                             u32 owner, u32 first)
{
    const u64 b = wgmma_desc(smem + S::p_at + owner * S::p_bytes, 16, S::HEADS * 16, S::HEADS * 2);
    u64 a[OUT_TILES];
#pragma unroll
    for (int m = 0; m < OUT_TILES; m++)
        a[m] = wgmma_desc(tile_at<S>(smem, first, S::ROPE / 64 + wg * OUT_TILES + m), 16, 1024, 128);
    bind_values<S>(o);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < KEYS / 16; k++)
#pragma unroll
        for (int m = 0; m < OUT_TILES; m++)
            wgmma_ss<T, S::HEADS, 1, 1>(o[m], desc_advance(a[m], k * 2048),
                                        desc_advance(b, k * S::HEADS * 32), true);
    wgmma_commit();
}

/* This warpgroup has no more use for a block. */
template <class S> __device__ __forceinline__ void free_block(u32 smem, u32 first)
{
    __syncwarp();
    if (elect_one()) {
#pragma unroll
        for (u32 group = 0; group < S::GROUPS; group++) {
            const u32 slot = first + group;
            mbarrier_arrive(smem + S::k_free + (slot >= S::SLOTS ? slot - S::SLOTS : slot) * 8);
        }
    }
    __syncwarp();
}

/* Denominators: lse and max_logits or their partial values, and the factor of the output. */
template <class S>
__device__ __forceinline__ void end_rows(const struct mla_mqa_args &a, const struct few_note &n,
                                         u32 smem, u32 wg, u32 slot,
                                         struct few_rows<S::LANE_HEADS> *r)
{
    const u32 sums = smem + S::sums_at + slot * 8 * S::head_bytes;
    auto plus = [](float x, float y) { return x + y; };
    share_heads<S>(sums + wg * 4 * S::head_bytes, combine_keys(r->sum, plus));
    bar_sync(1, 256);
    read_heads<S>(sums, 8, r->sum, plus);
#pragma unroll
    for (int j = 0; j < S::LANE_HEADS; j++) {
        const int head = few_head(j);
        const bool there = head < a.heads, sink = there && !n.split && a.sink;
        float lse_log2;
        r->factor[j] = finish_row(r->top[j], r->sum[j], sink, sink ? a.sink[head] : 0, &lse_log2);
        if (!there || wg != 0 || threadIdx.x % 128 >= 4)
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

template <class S>
__device__ __forceinline__ void store_out(const struct mla_mqa_args &a, const struct few_note &n,
                                          u32 wg, const float (&factor)[S::LANE_HEADS],
                                          const float (&o)[OUT_TILES][S::HEADS / 2])
{
    const int column = wg * 256 + threadIdx.x / 32 % 4 * 16 + threadIdx.x % 32 / 4;
#pragma unroll
    for (int j = 0; j < S::LANE_HEADS; j++) {
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

struct yes {
    static const bool value = true;
};
struct no {
    static const bool value = false;
};

template <class T, class S>
__device__ __forceinline__ void attend_works(const struct mla_few_sm90_args &args, u32 smem, u32 wg)
{
    const struct mla_mqa_args &a = args.a;
    struct ring<2> slot;
    struct ring<S::SLOTS> first; /* group of the block at hand */
    u32 q_phase = 0, own_phase = 0, block = 0; /* block: counted over all works */
    struct few_rows<S::LANE_HEADS> r;
    r.phase = 0;
    const bool loads = warp_index() == S::GATHER;
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
        float o[OUT_TILES][S::HEADS / 2];
#pragma unroll
        for (int m = 0; m < OUT_TILES; m++)
#pragma unroll
            for (int i = 0; i < S::HEADS / 2; i++)
                o[m][i] = 0;
#pragma unroll
        for (int j = 0; j < S::LANE_HEADS; j++) {
            r.top[j] = -INFINITY;
            r.factor[j] = 1;
            r.sum[j] = 0;
        }
        const u32 end = block + n.steps;
        if (n.steps > 0) {
            /* Who has no block of this work would come too late: the next queries may be there. */
            if (n.steps > 1 || (block & 1) == wg)
                mbarrier_wait(smem + S::q_full, q_phase);
            q_phase ^= 1;
        }
        u32 before = 0; /* slot of the first group of the block before */
        auto take_turn = [&](auto is_first, bool last) __attribute__((always_inline))
        {
            constexpr bool FIRST = decltype(is_first)::value;
            float s[CHAINS][S::HEADS / 2];
            u32 p[S::HEADS / 4];
            score_block<T, S>(s, smem, first);
            if (MLA_MUTANT == 8 && loads && last)
                load_queries<S>(args, smem, next);
            if (!FIRST) {
                read_block<S>(smem, wg ^ 1, &r);
                rescale<S>(o, r.factor);
                issue_values<T, S>(o, smem, wg, wg ^ 1, before);
                wgmma_wait<1>();
            } else {
                wgmma_wait<0>();
            }
#pragma unroll
            for (int c = 0; c < CHAINS; c++)
                wgmma_bind(s[c]);
#pragma unroll
            for (int c = 1; c < CHAINS; c++)
#pragma unroll
                for (int i = 0; i < S::HEADS / 2; i++)
                    s[0][i] += s[c][i];
            weigh_block<T, S>(s[0], p, smem, wg, block, a.scale_log2, &r);
            if (!FIRST) { /* the other's P is read: it may write the next */
                mbarrier_wait(smem + S::p_full + (wg ^ 1) * 8, r.phase); /* holds the wait here */
                wgmma_wait<0>();
                bind_values<S>(o);
                if (MLA_MUTANT != 9)
                    free_block<S>(smem, before);
                r.phase ^= 1;
            }
            publish_block<S>(p, smem, wg, r);
            rescale<S>(o, r.factor);
            if (MLA_MUTANT != 4)
                mbarrier_wait(smem + S::p_full + wg * 8, own_phase);
            own_phase ^= 1;
            issue_values<T, S>(o, smem, wg, wg, first.stage);
            if (MLA_MUTANT == 9) {
                free_block<S>(smem, first.stage);
                if (!FIRST)
                    free_block<S>(smem, before);
            }
            wgmma_wait<0>();
            bind_values<S>(o);
            if (MLA_MUTANT != 9)
                free_block<S>(smem, first.stage);
        };
        if (n.steps > 0 && (block & 1) == wg) {
            take_turn(yes(), n.steps <= 2);
            block++;
            before = first.stage;
            first.skip(S::GROUPS);
        }
#pragma unroll 1
        while (block < end) {
            /* the other's block */
            before = first.stage;
            first.skip(S::GROUPS);
            if (++block == end) {
                read_block<S>(smem, wg ^ 1, &r);
#pragma unroll
                for (int j = 0; j < S::LANE_HEADS; j++)
                    r.sum[j] *= r.factor[j];
                rescale<S>(o, r.factor);
                issue_values<T, S>(o, smem, wg, wg ^ 1, before);
                wgmma_wait<0>();
                bind_values<S>(o);
                free_block<S>(smem, before);
                r.phase ^= 1;
                break;
            }
            take_turn(no(), block + 2 >= end);
            block++;
            before = first.stage;
            first.skip(S::GROUPS);
        }
        if (loads && MLA_MUTANT != 8) /* all scores are done: P of every block has been seen */
            load_queries<S>(args, smem, next);
        end_rows<S>(a, n, smem, wg, slot.stage, &r);
        store_out<S>(a, n, wg, r.factor, o);
        release(smem + S::work_free + slot.stage * 8);
        slot.next();
    }
}

/* ------------------------------------------------------------------- kernel */

template <class T, class S>
__global__ void __launch_bounds__(S::THREADS, 1)
    few_sm90_kernel(const __grid_constant__ struct mla_few_sm90_args args)
{
    const u32 smem = dynamic_smem();
    const u32 warp = warp_index();
    if (warp == 0 && elect_one()) {
        for (int i = 0; i < 2; i++) {
            mbarrier_init(smem + S::work_full + i * 8, 1);
            mbarrier_init(smem + S::work_free + i * 8, 8);
            mbarrier_init(smem + S::p_full + i * 8, 4);
        }
        for (int i = 0; i < 4; i++) {
            mbarrier_init(smem + S::seen + i * 8, S::GATHER);
        }
        for (int i = 0; i < S::SLOTS; i++) {
            mbarrier_init(smem + S::k_full + i * 8, 32 * S::GATHER);
            mbarrier_init(smem + S::k_free + i * 8, 8);
        }
        mbarrier_init(smem + S::q_full, 1);
        fence_mbarrier_init();
    }
    __syncthreads();
    if (warp < S::GATHER) {
        if (S::GATHER == 8 && S::HEADS == 32)
            setmaxnreg_dec<88>();
        MLA_ROLE("gather");
        gather_works<S>(args, smem);
    } else {
        if (S::GATHER == 8 && S::HEADS == 32)
            setmaxnreg_inc<168>();
        MLA_ROLE("softmax");
        attend_works<T, S>(args, smem, (warp - S::GATHER) / 4);
    }
}

template <class T, int ROPE, int HEADS> static struct mla_mqa_tile few_entry()
{
    typedef few_shape<ROPE, HEADS> S;
    return {mla_kernel_address(few_sm90_kernel<T, S>), S::shared_bytes, S::THREADS, 1};
}

/* heads: 16 or 32 */
template <class T> static struct mla_mqa_tile few_tile(int heads, int rope_dim)
{
    if (heads == 16)
        return rope_dim ? few_entry<T, 64, 16>() : few_entry<T, 0, 16>();
    return rope_dim ? few_entry<T, 64, 32>() : few_entry<T, 0, 32>();
}

#endif

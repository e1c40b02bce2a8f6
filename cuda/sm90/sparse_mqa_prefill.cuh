/* SPDX-License-Identifier: Apache-2.0 */
/* Absorbed-form attention over top-k lists on sm_90a (wgmma, TMA for Q): out = softmax(scale · q ·
 * K^T) · K[:, :512], 64 heads of one query token a block, bf16 or f16 caches, flat or paged.
 *
 * Persistent blocks, one an SM, of three warpgroups; a work is a token, 64 heads (128 for a cluster
 * of two blocks) and a split of its list. Keys come in blocks of 64.
 *
 *   warpgroup  registers  duty
 *   0          120        gathers rows: 16-byte loads into registers, from there to shared memory
 *   1          192        scores and softmax of even blocks; columns 0-255 of the output
 *   2          192        scores and softmax of odd blocks; columns 256-511 of the output
 *
 * Registers are the third stage of the gather: rows of the next block are loaded while both stages
 * in shared memory are in use. In a cluster each block gathers 32 of the 64 keys and writes them to
 * both, which halves what L2 must deliver.
 *
 * Shared memory, bytes
 *   Q       64 heads x 576, nine tiles of [64][128 bytes], swizzled      73728
 *   K       two stages of 64 keys x 576, the same tiles                 147456
 *           the rope tile of a stage holds P once its scores are done
 *   largest scores and factors of a stage's rows, sums, valid keys, notes, barriers: 3 KB
 *
 *   barrier          count        arrives                       waits
 *   work_full[2]     1            gather                        1, 2
 *   work_free[2]     8            warps of 1, 2: are through    gather
 *   q_full           1 + tx       gather (TMA)                  1, 2
 *   q_free           8            warps of 1, 2: last scores    gather
 *   k_full[stage]    4 · blocks   gather warps of the cluster   1 or 2
 *   k_free[stage]    8 · blocks   warps of 1, 2 of the cluster  gather
 *   p_full[stage]    4            warps of 1 or 2               the other
 *   named 1          256          1, 2: sums are exchanged
 *   named 2, 3       128          warps of 1, of 2: scores are done, P may be written
 *
 * A warpgroup's turn, j its block: S(j) is issued, behind it O += P(j-1)·V(j-1) of the other's
 * block; the softmax of j runs beside the latter; then O += P(j)·V(j). The other warpgroup is half
 * a turn off:
 *
 *   1   S(2) PV(1) | softmax 2 | PV(2) | S(4) PV(3) | softmax 4 | ...
 *   2   ... | PV(1) | S(3) PV(2) | softmax 3 | PV(3) | S(5) PV(4) | ...
 *
 * The running maximum is one chain: block j starts from the maximum of j-1, so that both halves of
 * the output are rescaled alike.
 *
 * Clocks of 64 keys x 64 heads: 8.9 MFLOP take 2176 at 4096 a clock; shared memory 304 KB (Q and K
 * of 36 steps 144, P and V of 8 steps 80, writes 80) 2375 at 128 bytes.
 *
 * A key that the token does not see is zero in shared memory and its score -inf: what an invisible
 * slot holds reaches nothing. P is rounded to the input type unnormalised, its sum is of fp32
 * values. Same inputs, same bits. */
#ifndef MLA_CUDA_SM90_SPARSE_MQA_PREFILL_CUH
#define MLA_CUDA_SM90_SPARSE_MQA_PREFILL_CUH

#include "any/mqa_work.cuh"
#include "element.cuh"
#include "ptx/barrier.cuh"
#include "ptx/cluster.cuh"
#include "ptx/launch.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/shared.cuh"
#include "ptx/tma.cuh"
#include "ptx/warp.cuh"
#include "ptx/wgmma.cuh"
#include "ring.cuh"
#include "sparse_mqa_prefill.h"
#include "warpgroup.cuh"

static const int SPARSE_THREADS = 384, KEYS = MLA_SPARSE_SM90_KEYS, HEADS = MLA_SPARSE_SM90_HEADS;
static const int GATHER_REGISTERS = 120, MATH_REGISTERS = 192;
static_assert((GATHER_REGISTERS + 2 * MATH_REGISTERS) * 128 <= 65536, "register file");

template <int ROPE_, int CLUSTER_> struct sparse_shape {
    static const int ROPE = ROPE_, CLUSTER = CLUSTER_, STAGES = 2;
    static const int TILES = (MLA_MQA_LATENT + ROPE) / 64;
    /* A group is 16 keys, four of each gather warp: two register sets of them take turns. */
    static const int GROUPS = KEYS / 16 / CLUSTER;
    static const u32 tile_bytes = KEYS * 128;
    static const u32 stage_bytes = 9 * tile_bytes; /* the ninth also without rope: P */
    static const u32 q_bytes = TILES * HEADS * 128;
    static const u32 k_at = 9 * HEADS * 128, p_in_stage = 8 * tile_bytes;
    static const u32 tops_at = k_at + STAGES * stage_bytes;     /* [stage][row], floats */
    static const u32 factors_at = tops_at + STAGES * HEADS * 4; /* [stage][row], floats */
    static const u32 sums_at = factors_at + STAGES * HEADS * 4; /* [slot][warpgroup][row] */
    static const u32 valid_at = sums_at + 4 * HEADS * 4;        /* [stage][16]: a word, 4 keys */
    static const u32 works_at = valid_at + STAGES * 64;         /* 48 bytes each */
    static const u32 work_full = works_at + 2 * 48, work_free = work_full + 16,
                     k_full = work_free + 16, k_free = k_full + 8 * STAGES,
                     p_full = k_free + 8 * STAGES, q_full = p_full + 8 * STAGES,
                     q_free = q_full + 8, shared_bytes = q_free + 8;
    static_assert(ROPE == 0 || ROPE == 64, "rope 0 or 64");
    static_assert(GROUPS % 2 == 0, "two register sets take turns");
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

/* The work, and a note of it for the consumers where note is not 0. */
template <class S>
__device__ __forceinline__ struct sparse_work find_sparse_work(const struct mla_mqa_args &a,
                                                               int index, int rank, u32 note)
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
    const int tiles = (a.heads + S::CLUSTER * HEADS - 1) / (S::CLUSTER * HEADS);
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
        int head0 = (t % tiles * S::CLUSTER + rank) * HEADS;
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

/* This lane's key of group n, counted from the start of the work: its place in the list. */
template <class S> __device__ __forceinline__ int key_in_block(int group, int rank)
{
    return rank * (KEYS / S::CLUSTER) + group % S::GROUPS * 16 + (int)(threadIdx.x / 32 % 4) * 4 +
           (int)(threadIdx.x % 32) / 8;
}

template <class S>
__device__ __forceinline__ int fetch_position(const struct sparse_work &w, int group, int rank)
{
    int j = group / S::GROUPS * KEYS + key_in_block<S>(group, rank);
    int pos = j < w.count ? w.list[j] : -1;
    return pos < w.end ? pos : -1;
}

__device__ __forceinline__ int fetch_page_of(const struct mla_mqa_cache &c,
                                             const struct sparse_work &w, int pos)
{
    if (pos < 0 || !w.pages)
        return pos < 0 ? -1 : 0;
    int column = page_column(&c, pos);
    int page = column < c.max_pages ? w.pages[column] : -1;
    return page < c.num_pages ? page : -1;
}

/* Nine pieces of a row, 128 bytes apart: eight of the latent part and one of rope. */
struct row_pieces {
    uint4 v[9];
    bool valid;
};

template <class S>
__device__ __forceinline__ void load_row(const struct mla_mqa_cache &c, const struct sparse_work &w,
                                         int pos, int page, struct row_pieces *r)
{
    const int at = (int)(threadIdx.x % 8) * 16;
    r->valid = page >= 0;
    if (r->valid) {
        struct row_place place = place_row(&c, w.kv_start, pos, page);
        const char *data = c.data + place.data + at, *rope = c.rope + place.other + at;
#pragma unroll
        for (int i = 0; i < 8; i++)
            r->v[i] = *(const uint4 *)(data + i * 128);
        if (S::ROPE)
            r->v[8] = *(const uint4 *)rope;
    } else {
#pragma unroll
        for (int i = 0; i < 9; i++)
            r->v[i] = make_uint4(0, 0, 0, 0);
    }
}

/* A group's rows to a stage, of both blocks of a cluster (other: shared memory of the other
 * one). */
template <class S>
__device__ __forceinline__ void store_row(u32 smem, u32 other, u32 stage, int group, int rank,
                                          const struct row_pieces &r)
{
    const int key = key_in_block<S>(group, rank), part = threadIdx.x % 8;
    const u32 at = S::k_at + stage * S::stage_bytes + key * 128 + ((part ^ (key & 7)) << 4);
#pragma unroll
    for (int i = 0; i < S::TILES; i++) {
        st_shared(smem + at + i * S::tile_bytes, r.v[i]);
        if (S::CLUSTER == 2)
            st_shared_cluster(other + at + i * S::tile_bytes, r.v[i]);
    }
    u32 lanes = __ballot_sync(~0u, r.valid);
    if (threadIdx.x % 32 == 0) {
        u32 four = (lanes & 1) | (lanes >> 7 & 2) | (lanes >> 14 & 4) | (lanes >> 21 & 8);
        u32 word = S::valid_at + stage * 64 + (key / 4) * 4;
        st_shared(smem + word, four);
        if (S::CLUSTER == 2)
            st_shared_cluster(other + word, four);
    }
}

template <class S>
__device__ __forceinline__ void load_sparse_q(const struct mla_sparse_sm90_args &args, u32 smem,
                                              u32 note, u32 phase)
{
    mbarrier_wait(smem + S::q_free, phase ^ 1);
    if (elect_one()) {
        const int head0 = ld_shared<int>(note + 4), token = ld_shared<int>(note + 12);
        mbarrier_arrive_expect_tx(smem + S::q_full, S::q_bytes);
#pragma unroll
        for (int i = 0; i < S::TILES; i++)
            tma_load_3d(smem + i * HEADS * 128, &args.q, smem + S::q_full, i * 64, head0, token);
    }
    __syncwarp();
}

template <class S>
__device__ __forceinline__ void gather_works(const struct mla_sparse_sm90_args &args, u32 smem)
{
    const struct mla_mqa_args &a = args.a;
    const int rank = S::CLUSTER == 2 ? (int)cluster_ctarank() : 0;
    const u32 other = S::CLUSTER == 2 ? mapa(smem, rank ^ 1) : 0;
    const int warp = threadIdx.x / 32;
    /* Counts of works, of works with keys and of blocks of keys, from which slots, stages and
     * phases follow: registers are short here. */
    u32 works = 0, loads = 0, blocks = 0;
    for (int index = blockIdx.x / S::CLUSTER;; index += gridDim.x / S::CLUSTER) {
        const bool stop = index >= args.works;
        const u32 note = smem + S::works_at + (works & 1) * 48;
        struct sparse_work w;
        bool writes = false;
        if (warp == 0) {
            mbarrier_wait(smem + S::work_free + (works & 1) * 8, (works >> 1 & 1) ^ 1);
            writes = elect_one();
        }
        if (!stop)
            w = find_sparse_work<S>(a, index, rank, writes ? note : 0);
        else if (writes)
            st_shared(note, -1);
        __syncwarp();
        if (writes)
            mbarrier_arrive(smem + S::work_full + (works & 1) * 8);
        works++;
        if (stop)
            break;
        if (w.steps == 0)
            continue;
        /* Positions are fetched two groups ahead of the rows, page ids one. */
        struct row_pieces rows[2];
        int pos = fetch_position<S>(w, 0, rank), ahead = fetch_position<S>(w, 1, rank);
        int page = fetch_page_of(a.cache, w, pos);
#pragma unroll
        for (int i = 0; i < 2; i++) {
            load_row<S>(a.cache, w, pos, page, &rows[i]);
            pos = ahead;
            page = fetch_page_of(a.cache, w, pos);
            ahead = fetch_position<S>(w, i + 2, rank);
        }
        if (warp == 0)
            load_sparse_q<S>(args, smem, note, loads & 1);
        loads++;
#pragma unroll 1
        for (int step = 0; step < w.steps; step++) {
            mbarrier_wait(smem + S::k_free + (blocks & 1) * 8, (blocks >> 1 & 1) ^ 1);
#pragma unroll 1
            for (int pair = 0; pair < S::GROUPS; pair += 2) {
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    int group = step * S::GROUPS + pair + i;
                    store_row<S>(smem, other, (blocks & 1), pair + i, rank, rows[i]);
                    load_row<S>(a.cache, w, pos, page, &rows[i]);
                    pos = ahead;
                    page = fetch_page_of(a.cache, w, pos);
                    ahead = fetch_position<S>(w, group + 4, rank);
                }
            }
            if (MLA_MUTANT != 1) {
                if (S::CLUSTER == 2)
                    fence_proxy_async_cluster();
                else
                    fence_proxy_async();
            }
            release(smem + S::k_full + (blocks & 1) * 8);
            if (S::CLUSTER == 2 && elect_one())
                mbarrier_arrive_cluster(other + S::k_full + (blocks & 1) * 8);
            __syncwarp();
            blocks++;
        }
    }
    /* Arrivals of the other block are on their way until the stages are free again. */
    for (u32 back = 1; back <= 2 && back <= blocks; back++) {
        u32 block = blocks - back;
        mbarrier_wait(smem + S::k_free + (block & 1) * 8, block >> 1 & 1);
    }
}

/* ------------------------------------------------------------------- scores */

template <class S> __device__ __forceinline__ struct sparse_note read_note(u32 smem, u32 slot)
{
    const u32 note = smem + S::works_at + slot * 48;
    return {ld_shared<int>(note),      ld_shared<int>(note + 4),  ld_shared<int>(note + 8),
            ld_shared<int>(note + 12), ld_shared<int>(note + 16), ld_shared<int64_t>(note + 24)};
}

/* Issues S = Q·K^T of a stage. */
template <class T, class S>
__device__ __forceinline__ void issue_block_scores(float (&s)[KEYS / 2], u32 smem, u32 stage)
{
    const u64 a = wgmma_desc(smem, 16, 1024, 128);
    const u64 b = wgmma_desc(smem + S::k_at + stage * S::stage_bytes, 16, 1024, 128);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < S::TILES * 4; i++)
        wgmma_ss<T, KEYS>(s, desc_advance(a, i / 4 * (HEADS * 128) + i % 4 * 32),
                          desc_advance(b, i / 4 * S::tile_bytes + i % 4 * 32), i > 0);
    wgmma_commit();
}

/* What a lane knows of its two rows: of the block before this one, and its own sum of weights. */
struct sparse_rows {
    float top[2], factor[2], sum[2];
};

/* Softmax of a stage's scores; P, the largest scores and the factors of what was summed before go
 * to the stage. r->top is that of the block before, r->factor its factor. */
template <class T, class S>
__device__ __forceinline__ void weigh_block(float (&s)[KEYS / 2], u32 smem, u32 stage, int wg,
                                            int row, float scale, struct sparse_rows *r)
{
    const int t = threadIdx.x & 3;
    const u32 valid = smem + S::valid_at + stage * 64 + (t >> 1) * 4;
    const u32 p = smem + S::k_at + stage * S::stage_bytes + S::p_in_stage;
#pragma unroll
    for (int i = 0; i < KEYS / 8; i++) {
        u32 bits = ld_shared<u32>(valid + i * 8) >> 2 * (t & 1);
#pragma unroll
        for (int e = 0; e < 4; e++)
            s[4 * i + e] =
                bits & 1u << (e & 1) || MLA_MUTANT == 5 ? s[4 * i + e] * scale : -INFINITY;
    }
    /* P goes where keys' rope was: all four warps' scores are done. */
    if (MLA_MUTANT != 4)
        bar_sync(2 + wg, 128);
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
        r->top[half] = fmaxf(before, best[0]);
        /* -inf before the first key: any finite reference gives weights 0. */
        float reference = r->top[half] == -INFINITY ? 0 : r->top[half];
        float factor = r->top[half] == before ? 1 : ex2_approx_ftz(before - reference);
        float total[2] = {0, 0};
#pragma unroll
        for (int i = 0; i < KEYS / 8; i++) {
            float x = ex2_approx_ftz(s[4 * i + half * 2] - reference);
            float y = ex2_approx_ftz(s[4 * i + half * 2 + 1] - reference);
            total[0] += x;
            total[1] += y;
            u32 at = (u32)((row + half * 8) * 128) + ((u32)(i ^ (row & 7)) << 4) + t * 4;
            st_shared(p + at, T::pack(x, y));
        }
        r->sum[half] = fmaf(r->sum[half], r->factor[half] * factor, total[0] + total[1]);
        r->factor[half] = factor;
        if (t == 0) {
            u32 at = (stage * HEADS + row + half * 8) * 4;
            st_shared(smem + S::tops_at + at, r->top[half]);
            st_shared(smem + S::factors_at + at, MLA_MUTANT == 2 ? 1.0f : factor);
        }
    }
    if (MLA_MUTANT != 3)
        fence_proxy_async();
    release(smem + S::p_full + stage * 8);
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

/* Issues O += P·V of a stage, this warpgroup's columns; V lies [key][column]: transposed. */
template <class T, class S>
__device__ __forceinline__ void issue_block_values(float (&o)[128], u32 smem, u32 stage, int wg)
{
    const u32 at = smem + S::k_at + stage * S::stage_bytes;
    const u64 a = wgmma_desc(at + S::p_in_stage, 16, 1024, 128);
    const u64 b = wgmma_desc(at + wg * 4 * S::tile_bytes, S::tile_bytes, 1024, 128);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < KEYS / 16; i++)
        wgmma_ss<T, 256, 0, 1>(o, desc_advance(a, i * 32), desc_advance(b, i * 2048), true);
    wgmma_commit();
}

/* A stage has been read, by this warp. */
template <class S> __device__ __forceinline__ void release_stage(u32 smem, u32 other, u32 stage)
{
    release(smem + S::k_free + stage * 8);
    if (S::CLUSTER == 2 && elect_one())
        mbarrier_arrive_cluster_read(other + S::k_free + stage * 8);
    __syncwarp();
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
    bar_sync(1, 256);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int row = row0 + half * 8, head = n.head0 + row;
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
            int64_t token = n.token;
            if (a.lse)
                a.lse[token * a.lse_stride[0] + head * a.lse_stride[1]] = lse_log2 * a.lse_unit;
            if (a.max_logits)
                a.max_logits[token * a.max_stride[0] + head * a.max_stride[1]] = top * 0.693147181f;
        }
    }
}

/* The other warpgroup's block is weighed: its largest scores and factors. */
template <class S>
__device__ __forceinline__ void read_block(u32 smem, struct ring<S::STAGES> at, int row,
                                           struct sparse_rows *r)
{
    mbarrier_wait(smem + S::p_full + at.stage * 8, at.phase);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        u32 from = (at.stage * HEADS + row + half * 8) * 4;
        r->top[half] = ld_shared<float>(smem + S::tops_at + from);
        r->factor[half] = ld_shared<float>(smem + S::factors_at + from);
    }
}

/* This warpgroup's 256 columns of the rows that exist, times their factors. */
__device__ __forceinline__ void store_columns(const struct mla_sparse_sm90_args &args,
                                              const struct sparse_note &n, int wg, int row0,
                                              const float (&factors)[2], const float (&o)[128])
{
    const struct mla_mqa_args &a = args.a;
    const int t = threadIdx.x & 3;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int row = row0 + half * 8;
        const bool there = row < n.rows;
        const float factor = factors[half];
        const int64_t to =
            n.split ? (n.part + row) * MLA_MQA_LATENT
                    : (int64_t)n.token * a.out_stride[0] + (n.head0 + row) * a.out_stride[1];
#pragma unroll
        for (int j = 0; j < 8; j++) {
            float x[4][2];
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int e = 0; e < 2; e++) /* without weight zero, whatever o holds */
                    x[i][e] = factor == 0 ? 0 : o[(j * 4 + i) * 4 + half * 2 + e] * factor;
            const int64_t column = to + wg * 256 + j * 32;
            if (n.split || a.out_dtype == MLA_F32 || !args.wide_stores) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const int64_t at = column + i * 8 + t * 2;
                    if (there && n.split)
                        *(float2 *)(a.part_out + at) = make_float2(x[i][0], x[i][1]);
                    else if (there)
                        store_pair(a.out_dtype, a.out, at, x[i][0], x[i][1]);
                }
                continue;
            }
            u32 two[4];
#pragma unroll
            for (int i = 0; i < 4; i++)
                two[i] = a.out_dtype == MLA_BF16 ? cvt_rn_bf16x2_f32(x[i][0], x[i][1])
                                                 : cvt_rn_f16x2_f32(x[i][0], x[i][1]);
            uint4 piece = transpose_quad(two[0], two[1], two[2], two[3]);
            if (there)
                *(uint4 *)(a.out + (column + t * 8) * 2) = piece;
        }
    }
}

template <class T, class S>
__device__ __forceinline__ void attend_works(const struct mla_sparse_sm90_args &args, u32 smem,
                                             int wg)
{
    const struct mla_mqa_args &a = args.a;
    const u32 other = S::CLUSTER == 2 ? mapa(smem, cluster_ctarank() ^ 1) : 0;
    /* This lane's rows: row and row + 8. */
    const int row = (int)(threadIdx.x / 32 % 4) * 16 + (int)(threadIdx.x % 32) / 4;
    struct ring<2> slot;
    struct ring<S::STAGES> now; /* at this warpgroup's next block or, after it, the one before */
    u32 q_phase = 0;
    for (;;) {
        mbarrier_wait(smem + S::work_full + slot.stage * 8, slot.phase);
        const int steps = ld_shared<int>(smem + S::works_at + slot.stage * 48);
        if (steps < 0)
            return;
        struct sparse_rows r = {{-INFINITY, -INFINITY}, {1, 1}, {0, 0}};
        float o[128];
#pragma unroll
        for (int i = 0; i < 128; i++)
            o[i] = 0;
        if (steps > 0) {
            mbarrier_wait(smem + S::q_full, q_phase);
            q_phase ^= 1;
            if (wg >= steps)
                release(smem + S::q_free);
        }
        /* now stands at block 0, then at block j - 1 (for j = 0: at 0). */
#pragma unroll 1
        for (int j = wg; j < steps; j += 2) {
            float s[KEYS / 2];
            struct ring<S::STAGES> mine = now;
            if (j > 0)
                mine.next();
            mbarrier_wait(smem + S::k_full + mine.stage * 8, mine.phase);
            if (j + 2 >= steps && MLA_MUTANT == 6)
                release(smem + S::q_free);
            issue_block_scores<T, S>(s, smem, mine.stage);
            if (j > 0) { /* the other's block */
                read_block<S>(smem, now, row, &r);
                rescale(o, r.factor);
                issue_block_values<T, S>(o, smem, now.stage, wg);
                wgmma_wait<1>();
            } else {
                wgmma_wait<0>();
            }
            wgmma_bind(s);
            if (j + 2 >= steps && MLA_MUTANT != 6)
                release(smem + S::q_free);
            weigh_block<T, S>(s, smem, mine.stage, wg, row, a.scale_log2, &r);
            wgmma_wait<0>();
            wgmma_bind(o);
            if (j > 0)
                release_stage<S>(smem, other, now.stage);
            rescale(o, r.factor);
            /* Other warps' rows of P: the whole warpgroup has written. */
            mbarrier_wait(smem + S::p_full + mine.stage * 8, mine.phase);
            issue_block_values<T, S>(o, smem, mine.stage, wg);
            wgmma_wait<0>();
            wgmma_bind(o);
            release_stage<S>(smem, other, mine.stage);
            now = mine;
            now.next();
        }
        /* The last block is the other's, unless this warpgroup's was. */
        if (steps > 0 && (steps - 1) % 2 != wg) {
            read_block<S>(smem, now, row, &r);
            r.sum[0] *= r.factor[0];
            r.sum[1] *= r.factor[1];
            rescale(o, r.factor);
            issue_block_values<T, S>(o, smem, now.stage, wg);
            wgmma_wait<0>();
            wgmma_bind(o);
            release_stage<S>(smem, other, now.stage);
            now.next();
        }
        const struct sparse_note n = read_note<S>(smem, slot.stage);
        end_rows<S>(a, n, smem, wg, row, slot.stage, &r);
        store_columns(args, n, wg, row, r.factor, o);
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
    if (warp == 0 && elect_one()) {
        for (int i = 0; i < 2; i++) {
            mbarrier_init(smem + S::work_full + i * 8, 1);
            mbarrier_init(smem + S::work_free + i * 8, 8);
            mbarrier_init(smem + S::k_full + i * 8, 4 * S::CLUSTER);
            mbarrier_init(smem + S::k_free + i * 8, 8 * S::CLUSTER);
            mbarrier_init(smem + S::p_full + i * 8, 4);
        }
        mbarrier_init(smem + S::q_full, 1);
        mbarrier_init(smem + S::q_free, 8);
        fence_mbarrier_init();
    }
    if (S::CLUSTER == 2)
        cluster_sync();
    else
        __syncthreads();
    if (warp < 4) {
        setmaxnreg_dec<GATHER_REGISTERS>();
        MLA_ROLE("gather");
        gather_works<S>(args, smem);
    } else {
        setmaxnreg_inc<MATH_REGISTERS>();
        MLA_ROLE("softmax");
        attend_works<T, S>(args, smem, (int)warp / 4 - 1);
    }
    if (S::CLUSTER == 2)
        cluster_sync(); /* the other block has no more arrivals or rows for this one */
}

template <class T, int ROPE, int CLUSTER> static struct mla_mqa_tile sparse_entry()
{
    typedef sparse_shape<ROPE, CLUSTER> S;
    return {mla_kernel_address(sparse_sm90_kernel<T, S>), S::shared_bytes, SPARSE_THREADS, CLUSTER};
}

template <class T> static struct mla_mqa_tile sparse_tile(int rope_dim, int cluster)
{
    if (cluster == 2)
        return rope_dim ? sparse_entry<T, 64, 2>() : sparse_entry<T, 0, 2>();
    return rope_dim ? sparse_entry<T, 64, 1>() : sparse_entry<T, 0, 1>();
}

#endif

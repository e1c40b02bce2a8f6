/* SPDX-License-Identifier: Apache-2.0 */
/* Attention with keys and values per head on sm_90a (wgmma, TMA): dense, causal at any context
 * offset, or under a bit per query and key; variable lengths, grouped key heads, sinks, lse,
 * max_logits. bf16 or f16 in, fp32 accumulation.
 *
 * Persistent blocks, one an SM, of three warpgroups. A work is 128 query rows of one head; its keys
 * come in tiles of KEYS. Which work a block takes when is fixed beforehand: works are sorted from
 * the longest to the shortest inside groups of heads, and dealt out to and fro, so that long and
 * short ones even out.
 *
 *   warpgroup  registers  duty
 *   0          40         warp 0 loads: finds tiles that hold a visible key, starts their copies,
 *                         zeroes values of keys that nobody in the work sees
 *   1, 2       232        64 query rows each: scores, softmax, output
 *
 * Shared memory, bytes      192/128, KEYS 128   128/128, KEYS 128   256/256, KEYS 64
 *   Q  2 x 64 rows                      49152               32768              65536
 *   K  two stages                       98304               65536              65536
 *   V  two stages                       65536               65536              65536
 *   tiles, works, barriers                1 KB                1 KB               1 KB
 * All in boxes of 64 elements (128 bytes, swizzled) x rows. V is read as it lies: transposed.
 *
 *   barrier        count   arrives                         waits
 *   q_full[2]      1 + tx  load                            warpgroup 1, 2, once a work
 *   q_free[2]      4       warps of 1, 2: last scores read load
 *   k_full[stage]  1 + tx  load                            1 and 2, a tile
 *   k_free[stage]  8       warps of 1 and 2: scores read   load
 *   v_full[stage]  1 (+tx) load                            1 and 2
 *   v_raw[stage]   1 + tx  load: V that must be scrubbed   load
 *   v_free[stage]  8       warps of 1 and 2: P·V read      load
 *   work_full[2]   1       load                            1 and 2
 *   work_free[2]   8       warps of 1 and 2: have read it  load
 *   named 1, 2     256     the other warpgroup has issued  warpgroup 1, 2 before it issues
 *
 * A warpgroup issues S(i+1) = Q·K(i+1) and O += P(i)·V(i) together and does the softmax of i+1
 * while the latter runs; the two warpgroups take turns at issuing, so that one's softmax falls into
 * the other's products:
 *
 *   1   S1 PV0 | softmax 1 ........ | S2 PV1 | softmax 2 ........
 *   2 .......... | S1 PV0 | softmax 1 ........ | S2 PV1 | ...
 *
 * Clocks of a tile of 128 x 128 at 192/128: 10.5 MFLOP take 2560 at 4096 a clock; 16384
 * exponentials 1024 at 16; shared memory 236 KB (Q and K of 12 steps, V of 8, for two warpgroups)
 * 1850 at 128 bytes.
 *
 * A score that a row may not see becomes -inf whatever it was, so K may hold NaN where nobody
 * looks; V may not, since 0 · NaN is NaN, and is zeroed there. P is rounded to the input type
 * unnormalised; the row sum adds the unrounded fp32 values. Same inputs, same bits. */
#ifndef MLA_CUDA_SM90_MHA_PREFILL_CUH
#define MLA_CUDA_SM90_MHA_PREFILL_CUH

#include "element.cuh"
#include "mha_prefill.h"
#include "ptx/barrier.cuh"
#include "ptx/launch.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/shared.cuh"
#include "ptx/tma.cuh"
#include "ptx/warp.cuh"
#include "ptx/wgmma.cuh"
#include "ring.cuh"
#include "warpgroup.cuh"

#include <math_constants.h>

static const int MHA_THREADS = 384, MHA_ROWS = 128, MHA_WG_ROWS = MLA_MHA_SM90_WG_ROWS;
static const int PRODUCER_REGISTERS = 40, CONSUMER_REGISTERS = 232;

template <int D_QK_, int D_V_, int KEYS_, int STAGES_> struct mha_shape {
    static const int D_QK = D_QK_, D_V = D_V_, KEYS = KEYS_, STAGES = STAGES_;
    static const int WORDS = KEYS / 32;
    static const u32 q_wg_bytes = MHA_WG_ROWS * D_QK * 2;
    static const u32 k_bytes = KEYS * D_QK * 2, v_bytes = KEYS * D_V * 2;
    static const u32 k_at = 2 * q_wg_bytes, v_at = k_at + STAGES * k_bytes;
    static const u32 tiles_at = v_at + STAGES * v_bytes; /* 32 bytes a stage: see tile_note */
    static const u32 works_at = tiles_at + STAGES * 32;  /* 48 bytes each: see work_note */
    static const u32 barriers_at = works_at + 2 * 48;
    static const u32 q_full = barriers_at, q_free = q_full + 16, k_full = q_free + 16,
                     k_free = k_full + 8 * STAGES, v_full = k_free + 8 * STAGES,
                     v_raw = v_full + 8 * STAGES, v_free = v_raw + 8 * STAGES,
                     work_full = v_free + 8 * STAGES, work_free = work_full + 16,
                     shared_bytes = work_free + 16;
    static_assert(D_QK % 64 == 0 && D_V % 64 == 0, "boxes of 64 columns");
    static_assert(KEYS == 64 || KEYS == 128, "whole mask words, at most four");
    static_assert(shared_bytes <= 232448, "227 KB of shared memory a block");
    static_assert(CONSUMER_REGISTERS >= D_V / 2 + KEYS / 2 + KEYS / 4 + 40, "O, S, P and the rest");
    static_assert((PRODUCER_REGISTERS + 2 * CONSUMER_REGISTERS) * 128 <= 65536, "register file");
};

/* What consumers learn of a key tile: bits of keys that exist and that some row sees, its first
 * key, whether a bit is missing, whether it is the work's last. */
struct tile_note {
    uint4 seen;
    int key0, partial, last;
};

/* What consumers learn of a work. */
struct work_note {
    int head, count; /* head -1: no more works */
    int keys, limit; /* row i of the work sees keys below limit + i (causal), below keys (all) */
    int any;         /* is there a visible key? */
    int64_t batch, mask; /* its first row in the batch and in the mask */
};

/* ---------------------------------------------------------------- load warp */

/* Everything the load warp knows about a work. */
struct work_rows {
    int first, count, keys, shift, end, tile, head;
    int64_t batch, mask;
    const struct mla_mha_segment *segment;
};

__device__ __forceinline__ struct work_rows find_rows(const struct mla_mha_sm90_args &args,
                                                      int index)
{
    const struct mla_mha_args &a = args.a;
    int group = index / (a.tiles * args.group);
    int heads = min(args.group, a.heads - group * args.group);
    index -= group * a.tiles * args.group;
    struct mla_mha_place place = a.order[index / heads];
    const struct mla_mha_segment *s = &a.segments[place.segment];
    struct work_rows r;
    r.head = group * args.group + index % heads;
    r.segment = s;
    r.tile = s->first_tile + place.tile;
    r.first = s->row0 + place.tile * MHA_ROWS;
    r.count = min(MHA_ROWS, s->row0 + s->rows - r.first);
    r.batch = (int64_t)s->q_start + r.first;
    r.mask = a.whole_mask ? r.batch : (int64_t)s->first_row + place.tile * MHA_ROWS;
    r.keys = a.seq_lens_kv ? min(max(a.seq_lens_kv[s->index], 0), s->seq_len_kv) : s->seq_len_kv;
    r.shift = r.keys - s->query_len + 1;
    r.end = a.causal ? max(0, min(r.keys, r.shift + r.first + r.count - 1)) : r.keys;
    return r;
}

/* Walks the key tiles that hold a visible key; each lane keeps the bits of one of 32 tiles. */
template <class S> struct key_walk {
    int next; /* first key of the 32 tiles after these */
    u32 live; /* of these, tiles still to come that are not empty */
    u32 mine[S::WORDS];
};

/* First key of the next tile and the bits of its keys, or the end. */
template <class S>
__device__ __forceinline__ int next_tile(const struct mla_mha_args &a, const struct work_rows &r,
                                         const u32 *alive, struct key_walk<S> *w,
                                         u32 (&seen)[S::WORDS])
{
    while (w->live == 0) {
        if (w->next >= r.end)
            return r.end;
        int key = w->next + (int)(threadIdx.x % 32) * S::KEYS;
        u32 some = 0;
#pragma unroll
        for (int i = 0; i < S::WORDS; i++) {
            int left = r.keys - key - 32 * i, word = key / 32 + i;
            u32 bits = 0;
            if (key < r.end && left > 0) {
                bits = left >= 32 ? ~0u : (1u << left) - 1;
                if (a.columns)
                    bits &= a.columns[(int64_t)r.tile * a.words + word];
                if (alive)
                    bits &= alive[word];
            }
            w->mine[i] = bits;
            some |= bits;
        }
        w->live = __ballot_sync(~0u, some != 0);
        w->next += 32 * S::KEYS;
    }
    int i = __ffs((int)w->live) - 1;
    w->live &= w->live - 1;
#pragma unroll
    for (int j = 0; j < S::WORDS; j++)
        seen[j] = __shfl_sync(~0u, w->mine[j], i);
    return w->next - (32 - i) * S::KEYS;
}

template <int WORDS> __device__ __forceinline__ bool all_seen(const u32 (&seen)[WORDS])
{
    u32 all = ~0u;
#pragma unroll
    for (int i = 0; i < WORDS; i++)
        all &= seen[i];
    return all == ~0u;
}

template <class S>
__device__ __forceinline__ void load_q(const struct mla_mha_sm90_args &args, u32 smem,
                                       const struct work_rows &r, u32 phase)
{
#pragma unroll 1
    for (int wg = 0; wg < 2; wg++) {
        u32 full = smem + S::q_full + wg * 8;
        mbarrier_wait(smem + S::q_free + wg * 8, phase ^ 1);
        if (elect_one()) {
            mbarrier_arrive_expect_tx(full, S::q_wg_bytes);
#pragma unroll
            for (int c = 0; c < S::D_QK / 64; c++) {
                u32 to = smem + wg * S::q_wg_bytes + c * MHA_WG_ROWS * 128;
                int row = (int)r.batch + wg * MHA_WG_ROWS;
                /* Columns past the last are zeros of whichever map. */
                if (c * 64 < args.a.q_split || args.a.q_split == args.a.d_qk)
                    tma_load_3d(to, &args.maps.q, full, c * 64, r.head, row);
                else
                    tma_load_3d(to, &args.maps.q_rope, full, c * 64 - args.a.q_split, r.head, row);
            }
        }
        __syncwarp();
    }
}

template <class S>
__device__ __forceinline__ void load_k(const struct mla_mha_sm90_args &args, u32 smem, u32 stage,
                                       u32 phase, int key0, int64_t kv_start, int head_kv,
                                       const u32 (&seen)[S::WORDS], bool last)
{
    u32 full = smem + S::k_full + stage * 8;
    mbarrier_wait(smem + S::k_free + stage * 8, phase ^ 1);
    if (elect_one()) {
        u32 note = smem + S::tiles_at + stage * 32;
        st_shared(note, make_uint4(seen[0], seen[1], seen[S::WORDS - 2], seen[S::WORDS - 1]));
        st_shared(note + 16, make_uint4((u32)key0, !all_seen(seen), last, 0));
        mbarrier_arrive_expect_tx(full, S::k_bytes);
#pragma unroll
        for (int c = 0; c < S::D_QK / 64; c++)
            tma_load_3d(smem + S::k_at + stage * S::k_bytes + c * S::KEYS * 128, &args.maps.k, full,
                        c * 64, head_kv, (int)(kv_start + key0));
    }
    __syncwarp();
}

/* Zeroes the values of keys that nobody in the work sees; all lanes. */
template <class S> __device__ __forceinline__ void scrub(u32 values, const u32 (&seen)[S::WORDS])
{
    const int LANES = S::D_V / 8; /* 16-byte pieces of a row */
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int w = 0; w < S::WORDS; w++) {
        u32 gone = ~seen[w];
        while (gone) {
            int key = w * 32 + __ffs((int)gone) - 1;
            gone &= gone - 1;
            if (lane < LANES)
                st_shared(values + (lane / 8) * S::KEYS * 128 + key * 128 + lane % 8 * 16,
                          make_uint4(0, 0, 0, 0));
        }
    }
}

template <class S>
__device__ __forceinline__ void load_v(const struct mla_mha_sm90_args &args, u32 smem, u32 stage,
                                       u32 phase, u32 *raw_phases, int key0, int64_t kv_start,
                                       int head_kv, const u32 (&seen)[S::WORDS])
{
    const bool clean = all_seen(seen);
    const u32 full = smem + S::v_full + stage * 8, raw = smem + S::v_raw + stage * 8;
    const u32 to = smem + S::v_at + stage * S::v_bytes, bar = clean ? full : raw;
    mbarrier_wait(smem + S::v_free + stage * 8, phase ^ 1);
    if (elect_one()) {
        mbarrier_arrive_expect_tx(bar, S::v_bytes);
#pragma unroll
        for (int c = 0; c < S::D_V / 64; c++)
            tma_load_3d(to + c * S::KEYS * 128, &args.maps.v, bar, c * 64, head_kv,
                        (int)(kv_start + key0));
    }
    __syncwarp();
    if (clean)
        return;
    mbarrier_wait(raw, *raw_phases >> stage & 1);
    *raw_phases ^= 1u << stage;
    scrub<S>(to, seen);
    if (MLA_MUTANT != 1)
        fence_proxy_async();
    __syncwarp();
    if (elect_one())
        mbarrier_arrive(full);
    __syncwarp();
}

template <class S>
__device__ __forceinline__ void load_works(const struct mla_mha_sm90_args &args, u32 smem)
{
    const struct mla_mha_args &a = args.a;
    struct ring<S::STAGES> k, v;
    struct ring<2> slot;
    u32 q_phase = 0, raw_phases = 0;
    for (int round = 0;; round++) {
        int place = round & 1 ? (int)(gridDim.x - 1 - blockIdx.x) : (int)blockIdx.x;
        int64_t index = (int64_t)round * gridDim.x + place;
        bool stop = index >= args.works;
        struct work_rows r;
        struct key_walk<S> walk = {
        };
        const u32 *alive = NULL;
        u32 seen[S::WORDS], seen_v[S::WORDS];
        int key = 0;
        r.end = 0;
        if (!stop) {
            r = find_rows(args, (int)index);
            alive = a.alive ? a.alive + r.segment->first_word : NULL;
            key = next_tile<S>(a, r, alive, &walk, seen);
        }
        mbarrier_wait(smem + S::work_free + slot.stage * 8, slot.phase ^ 1);
        if (elect_one()) {
            u32 note = smem + S::works_at + slot.stage * 48;
            st_shared(note, stop ? -1 : r.head);
            if (!stop) {
                st_shared(note + 4, r.count);
                st_shared(note + 8, r.keys);
                st_shared(note + 12, a.causal ? r.shift + r.first : r.keys);
                st_shared(note + 16, (int)(key < r.end));
                st_shared(note + 24, r.batch);
                st_shared(note + 32, r.mask);
            }
            mbarrier_arrive(smem + S::work_full + slot.stage * 8);
        }
        __syncwarp();
        slot.next();
        if (stop)
            return;
        const int head_kv = r.head / (a.heads / a.heads_kv);
        const int64_t kv_start = r.segment->kv_start;
        int key_v = -1;
        while (key < r.end) {
            u32 seen_k[S::WORDS];
#pragma unroll
            for (int i = 0; i < S::WORDS; i++)
                seen_k[i] = seen[i];
            int key_k = key;
            key = next_tile<S>(a, r, alive, &walk, seen);
            load_k<S>(args, smem, k.stage, k.phase, key_k, kv_start, head_kv, seen_k, key >= r.end);
            k.next();
            if (key_v < 0) {
                load_q<S>(args, smem, r, q_phase);
                q_phase ^= 1;
            } else {
                load_v<S>(args, smem, v.stage, v.phase, &raw_phases, key_v, kv_start, head_kv,
                          seen_v);
                v.next();
            }
            key_v = key_k;
#pragma unroll
            for (int i = 0; i < S::WORDS; i++)
                seen_v[i] = seen_k[i];
        }
        if (key_v >= 0) {
            load_v<S>(args, smem, v.stage, v.phase, &raw_phases, key_v, kv_start, head_kv, seen_v);
            v.next();
        }
    }
}

/* -------------------------------------------------------- softmax warpgroups */

/* Issues S = Q·K^T. */
template <class T, class S>
__device__ __forceinline__ void issue_scores(float (&s)[S::KEYS / 2], u32 q, u32 k)
{
    const u64 a = wgmma_desc(q, 16, 1024, 128), b = wgmma_desc(k, 16, 1024, 128);
#pragma unroll
    for (int i = 0; i < S::D_QK / 16; i++)
        wgmma_ss<T, S::KEYS>(s, desc_advance(a, i / 4 * (MHA_WG_ROWS * 128) + i % 4 * 32),
                             desc_advance(b, i / 4 * (S::KEYS * 128) + i % 4 * 32), i > 0);
    wgmma_commit();
}

/* Issues O += P·V; V lies [key][column]: transposed. */
template <class T, class S>
__device__ __forceinline__ void issue_values(float (&o)[S::D_V / 2],
                                             const u32 (&p)[S::KEYS / 16][4], u32 v)
{
    const u64 b = wgmma_desc(v, S::KEYS * 128, 1024, 128);
#pragma unroll
    for (int i = 0; i < S::KEYS / 16; i++)
        wgmma_rs<T, S::D_V, 1>(o, p[i], desc_advance(b, i * 2048), true);
    wgmma_commit();
}

/* Bits of a lane's two rows in the key tile at key0, zero outside the mask. */
template <class S>
__device__ __forceinline__ void read_mask(const struct mla_mha_args &a, int64_t mask, int count,
                                          int row, int key0, u32 (&bits)[2][S::WORDS])
{
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const u32 *from = a.mask + (mask + row + half * 8) * a.mask_stride + key0 / 32;
#pragma unroll
        for (int i = 0; i < S::WORDS; i++)
            bits[half][i] = row + half * 8 < count && key0 / 32 + i < a.words ? from[i] : 0;
    }
}

/* -inf where a row may not see a key: the end of its keys, bits of the mask and of the tile. */
template <class S>
__device__ __forceinline__ void hide(float (&s)[S::KEYS / 2], const u32 (&bits)[2][S::WORDS],
                                     bool masked, uint4 seen, int left0, int left1)
{
    const int t2 = (threadIdx.x & 3) * 2;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int left = half ? left1 : left0;
#pragma unroll
        for (int w = 0; w < S::WORDS; w++) {
            int n = left - 32 * w;
            u32 word = n >= 32 ? ~0u : n > 0 ? (1u << n) - 1 : 0;
            word &= w == 0 ? seen.x : w == 1 ? seen.y : w == 2 ? seen.z : seen.w;
            if (masked)
                word &= bits[half][w];
            word >>= t2;
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int e = 0; e < 2; e++)
                    if (!(word & 1u << (8 * i + e)))
                        s[(w * 4 + i) * 4 + half * 2 + e] = -CUDART_INF_F;
        }
    }
}

/* Running softmax of a tile, in place: s becomes P in fp32, top the largest score so far in log2
 * units, shrink the factor of everything before. True if some factor of this warp is not 1. */
template <int N>
__device__ __forceinline__ bool softmax(float (&s)[N], float (&top)[2], float (&sum)[2],
                                        float (&shrink)[2], float scale)
{
    bool moved = false;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float best[2] = {s[half * 2], s[half * 2 + 1]};
#pragma unroll
        for (int i = 1; i < N / 4; i++)
#pragma unroll
            for (int e = 0; e < 2; e++)
                best[e] = fmaxf(best[e], s[4 * i + half * 2 + e]);
        best[0] = fmaxf(best[0], best[1]);
        best[0] = fmaxf(best[0], __shfl_xor_sync(~0u, best[0], 1));
        best[0] = fmaxf(best[0], __shfl_xor_sync(~0u, best[0], 2));
        float before = top[half];
        top[half] = fmaxf(before, best[0] * scale);
        moved |= top[half] != before;
        /* -inf before the first key: any finite reference gives weights 0. */
        float base = top[half] == -CUDART_INF_F ? 0 : top[half];
        shrink[half] = ex2_approx_ftz(before - base);
        float total[2] = {0, 0};
#pragma unroll
        for (int i = 0; i < N / 4; i++) {
#pragma unroll
            for (int e = 0; e < 2; e++) {
                float &x = s[4 * i + half * 2 + e];
                x = ex2_approx_ftz(fmaf(x, scale, -base));
                total[e] += x;
            }
        }
        sum[half] = fmaf(sum[half], shrink[half], total[0] + total[1]);
    }
    return __any_sync(~0u, moved);
}

template <class T, int KEYS>
__device__ __forceinline__ void pack_weights(u32 (&p)[KEYS / 16][4], const float (&s)[KEYS / 2])
{
#pragma unroll
    for (int k = 0; k < KEYS / 16; k++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            p[k][i] = T::pack(s[8 * k + 2 * i], s[8 * k + 2 * i + 1]);
}

/* Divides, adds the sink, writes out, lse and max_logits of this lane's rows. */
template <class S>
__device__ __forceinline__ void finish(const struct mla_mha_sm90_args &args,
                                       const struct work_note &w, const float (&o)[S::D_V / 2],
                                       const float (&top)[2], const float (&sum)[2], int row)
{
    const struct mla_mha_args &a = args.a;
    const float sink = a.sink ? a.sink[w.head] * 1.4426950408889634f : -CUDART_INF_F;
    const int t = threadIdx.x & 3;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float total = sum[half];
        total += __shfl_xor_sync(~0u, total, 1);
        total += __shfl_xor_sync(~0u, total, 2);
        float best = top[half];
        float lse = best == -CUDART_INF_F ? -CUDART_INF_F : best + log2f(total);
        /* Weight of the keys beside the sink: 2^lse / (2^lse + 2^sink). */
        float weight = best == -CUDART_INF_F ? 0 : 1 / total;
        if (sink > -CUDART_INF_F) {
            float high = fmaxf(lse, sink);
            float both = isinf(high) ? high : high + log2f(exp2f(lse - high) + exp2f(sink - high));
            weight = isinf(both) ? 0 : weight * exp2f(lse - both);
            lse = both;
        }
        const bool there = row + half * 8 < w.count;
        const int64_t token = w.batch + row + half * 8;
        if (there && t == 0) {
            if (a.lse)
                a.lse[token * a.lse_stride[0] + w.head * a.lse_stride[1]] = lse * a.lse_unit;
            if (a.max_logits)
                a.max_logits[token * a.max_stride[0] + w.head * a.max_stride[1]] =
                    best * 0.69314718055994531f;
        }
        const int64_t at = token * a.out_stride[0] + w.head * a.out_stride[1];
#pragma unroll
        for (int j = 0; j < S::D_V / 32; j++) {
            float x[4][2];
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int e = 0; e < 2; e++) /* without weight zero, whatever O holds */
                    x[i][e] = weight == 0 ? 0 : o[(j * 4 + i) * 4 + half * 2 + e] * weight;
            if (a.out_dtype == MLA_F32) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    int column = (j * 4 + i) * 8 + t * 2;
                    if (there && column < a.d_v)
                        *(float2 *)(a.out + (at + column) * 4) = make_float2(x[i][0], x[i][1]);
                }
                continue;
            }
            u32 two[4];
#pragma unroll
            for (int i = 0; i < 4; i++)
                two[i] = a.out_dtype == MLA_BF16 ? cvt_rn_bf16x2_f32(x[i][0], x[i][1])
                                                 : cvt_rn_f16x2_f32(x[i][0], x[i][1]);
            uint4 piece = transpose_quad(two[0], two[1], two[2], two[3]);
            int column = (j * 4 + t) * 8;
            if (!there || column >= a.d_v)
                continue;
            char *to = a.out + (at + column) * 2;
            if (args.wide_stores) {
                *(uint4 *)to = piece;
            } else {
                u32 *words = (u32 *)to;
                words[0] = piece.x, words[1] = piece.y, words[2] = piece.z, words[3] = piece.w;
            }
        }
    }
}

template <class S> __device__ __forceinline__ struct work_note read_work(u32 smem, u32 slot)
{
    const u32 note = smem + S::works_at + slot * 48;
    struct work_note w;
    w.head = ld_shared<int>(note);
    w.count = w.keys = w.limit = w.any = 0;
    w.batch = w.mask = 0;
    if (w.head >= 0) {
        w.count = ld_shared<int>(note + 4);
        w.keys = ld_shared<int>(note + 8);
        w.limit = ld_shared<int>(note + 12);
        w.any = ld_shared<int>(note + 16);
        w.batch = ld_shared<int64_t>(note + 24);
        w.mask = ld_shared<int64_t>(note + 32);
    }
    return w;
}

template <class S> __device__ __forceinline__ struct tile_note read_tile(u32 smem, u32 stage)
{
    const u32 note = smem + S::tiles_at + stage * 32;
    uint4 rest = ld_shared<uint4>(note + 16);
    return {ld_shared<uint4>(note), (int)rest.x, (int)rest.y, (int)rest.z};
}

/* Masks and softmax of the scores of one tile. */
template <class S>
__device__ __forceinline__ bool weigh(const struct mla_mha_args &a, const struct work_note &w,
                                      const struct tile_note &tile, float (&s)[S::KEYS / 2],
                                      const u32 (&bits)[2][S::WORDS], float (&top)[2],
                                      float (&sum)[2], float (&shrink)[2], int row)
{
    if (a.sign != 1) {
#pragma unroll
        for (int i = 0; i < S::KEYS / 2; i++)
            s[i] *= a.sign;
    }
    const int wg_row = row & ~63;
    /* Where the warpgroup's first row sees all keys, so do the others. */
    if (a.mask || tile.partial ||
        tile.key0 + S::KEYS > min(w.keys, a.causal ? w.limit + wg_row : w.keys)) {
        int left0 = min(w.keys, a.causal ? w.limit + row + (MLA_MUTANT == 4) : w.keys) - tile.key0;
        int left1 = min(w.keys, a.causal ? w.limit + row + 8 : w.keys) - tile.key0;
        hide<S>(s, bits, a.mask != NULL, tile.seen, left0, left1);
    }
    return softmax(s, top, sum, shrink, a.scale_log2);
}

template <class T, class S>
__device__ __forceinline__ void attend_works(const struct mla_mha_sm90_args &args, u32 smem, int wg)
{
    const struct mla_mha_args &a = args.a;
    const u32 q = smem + wg * S::q_wg_bytes;
    const u32 turn = 1 + wg, other = 2 - wg;
    /* This lane's rows of the work: row and row + 8. */
    const int row =
        wg * MHA_WG_ROWS + (int)(threadIdx.x / 32 % 4) * 16 + (int)(threadIdx.x % 32) / 4;
    struct ring<S::STAGES> k, v;
    struct ring<2> slot;
    u32 q_phase = 0;
    if (wg == 1)
        bar_arrive((int)other, 256);
    for (;;) {
        mbarrier_wait(smem + S::work_full + slot.stage * 8, slot.phase);
        const struct work_note w = read_work<S>(smem, slot.stage);
        release(smem + S::work_free + slot.stage * 8);
        slot.next();
        if (w.head < 0)
            break;
        float o[S::D_V / 2], top[2] = {-CUDART_INF_F, -CUDART_INF_F}, sum[2] = {0, 0};
#pragma unroll
        for (int i = 0; i < S::D_V / 2; i++)
            o[i] = 0;
        if (w.any) {
            float s[S::KEYS / 2], shrink[2];
            u32 p[S::KEYS / 16][4], bits[2][S::WORDS] = {};
            mbarrier_wait(smem + S::q_full + wg * 8, q_phase);
            q_phase ^= 1;
            mbarrier_wait(smem + S::k_full + k.stage * 8, k.phase);
            struct tile_note tile = read_tile<S>(smem, k.stage);
            if (a.mask)
                read_mask<S>(a, w.mask, w.count, row, tile.key0, bits);
            wgmma_fence();
            issue_scores<T, S>(s, q, smem + S::k_at + k.stage * S::k_bytes);
            wgmma_wait<0>();
            wgmma_bind(s);
            release(smem + S::k_free + k.stage * 8);
            if (tile.last)
                release(smem + S::q_free + wg * 8);
            k.next();
            weigh<S>(a, w, tile, s, bits, top, sum, shrink, row);
            pack_weights<T, S::KEYS>(p, s);
            while (!tile.last) {
                mbarrier_wait(smem + S::k_full + k.stage * 8, k.phase);
                tile = read_tile<S>(smem, k.stage);
                if (a.mask)
                    read_mask<S>(a, w.mask, w.count, row, tile.key0, bits);
                bar_sync((int)turn, 256);
                wgmma_fence();
                issue_scores<T, S>(s, q, smem + S::k_at + k.stage * S::k_bytes);
                mbarrier_wait(smem + S::v_full + v.stage * 8, v.phase);
                wgmma_fence();
                issue_values<T, S>(o, p, smem + S::v_at + v.stage * S::v_bytes);
                bar_arrive((int)other, 256);
                wgmma_wait<1>();
                wgmma_bind(s);
                release(smem + S::k_free + k.stage * 8);
                if (MLA_MUTANT == 3 ? !tile.last : tile.last)
                    release(smem + S::q_free + wg * 8);
                k.next();
                bool moved = weigh<S>(a, w, tile, s, bits, top, sum, shrink, row);
                wgmma_bind(s); /* all exponentials before the wait */
                if (moved) {
                    wgmma_wait<0>();
                    wgmma_bind(o);
#pragma unroll
                    for (int i = 0; i < S::D_V / 2; i++)
                        o[i] *= MLA_MUTANT == 2 ? 1 : shrink[i / 2 & 1];
                } else {
                    wgmma_wait<0>();
                    wgmma_bind(o);
                }
                release(smem + S::v_free + v.stage * 8);
                v.next();
                pack_weights<T, S::KEYS>(p, s);
            }
            mbarrier_wait(smem + S::v_full + v.stage * 8, v.phase);
            wgmma_fence();
            issue_values<T, S>(o, p, smem + S::v_at + v.stage * S::v_bytes);
            wgmma_wait<0>();
            wgmma_bind(o);
            release(smem + S::v_free + v.stage * 8);
            v.next();
        }
        finish<S>(args, w, o, top, sum, row);
    }
    if (wg == 0)
        bar_sync((int)turn, 256); /* the other's last turn */
}

/* -------------------------------------------------------------------- kernel */

template <class T, class S>
__global__ void __launch_bounds__(MHA_THREADS, 1)
    mha_sm90_kernel(const __grid_constant__ struct mla_mha_sm90_args args)
{
    const u32 smem = dynamic_smem();
    const u32 warp = warp_index();
    if (warp == 0 && elect_one()) {
        for (int i = 0; i < 2; i++) {
            mbarrier_init(smem + S::q_full + i * 8, 1);
            mbarrier_init(smem + S::q_free + i * 8, 4);
            mbarrier_init(smem + S::work_full + i * 8, 1);
            mbarrier_init(smem + S::work_free + i * 8, 8);
        }
        for (int i = 0; i < S::STAGES; i++) {
            mbarrier_init(smem + S::k_full + i * 8, 1);
            mbarrier_init(smem + S::k_free + i * 8, 8);
            mbarrier_init(smem + S::v_full + i * 8, 1);
            mbarrier_init(smem + S::v_raw + i * 8, 1);
            mbarrier_init(smem + S::v_free + i * 8, 8);
        }
        fence_mbarrier_init();
    }
    __syncthreads();
    if (warp < 4) {
        setmaxnreg_dec<PRODUCER_REGISTERS>();
        if (warp == 0) {
            MLA_ROLE("load");
            load_works<S>(args, smem);
        }
    } else {
        setmaxnreg_inc<CONSUMER_REGISTERS>();
        MLA_ROLE("softmax");
        attend_works<T, S>(args, smem, (int)warp / 4 - 1);
    }
}

template <class T, class S> static struct mla_mha_tile tile_entry(int *keys)
{
    *keys = S::KEYS;
    return {mla_kernel_address(mha_sm90_kernel<T, S>), S::shared_bytes, MHA_ROWS, MHA_THREADS};
}

template <class T> static struct mla_mha_tile tile_for_widths(int64_t d_qk, int64_t d_v, int *keys)
{
    if (d_qk <= 128 && d_v <= 128)
        return tile_entry<T, mha_shape<128, 128, 128, 2>>(keys);
    if (d_qk <= 192 && d_v <= 128)
        return tile_entry<T, mha_shape<192, 128, 128, 2>>(keys);
    if (d_qk <= 256 && d_v <= 256)
        return tile_entry<T, mha_shape<256, 256, 64, 2>>(keys);
    *keys = 0;
    return {NULL, 0, 0, 0};
}

#endif

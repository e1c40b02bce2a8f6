/* SPDX-License-Identifier: Apache-2.0 */
/* Attention with keys and values per head on sm_90a (wgmma, TMA): dense, causal at any context
 * offset, or under a bit per query and key; variable lengths, grouped key heads, sinks, lse,
 * max_logits. bf16 or f16 in, fp32 accumulation.
 *
 * Persistent blocks, one an SM, of three warpgroups. A work is 128 query rows of one head; its keys
 * come in tiles of KEYS. Works are sorted from the longest to the shortest inside groups of heads;
 * a block takes the next one when it comes to the end of its own (an atomic counter, unless all
 * blocks have two at most). Who computes a work does not change its result.
 *
 *   warpgroup  registers  duty
 *   0          40         warp 0: works, queries, keys and bits; warp 1: values, zeroed where
 *                         nobody in the work sees the key (mha_prefill_load.cuh)
 *   1, 2       232        64 query rows each: scores, softmax, output
 *
 * Shared memory, bytes      192/128, KEYS 128   128/128, KEYS 128   256/256, KEYS 80
 *   Q  2 x 64 rows                      49152               32768              65536
 *   K  two stages                       98304               65536              81920
 *   V  two stages                       65536               65536              81920
 *   bits of the mask, two stages         4096                4096               2560
 *   tiles, works, barriers                1 KB                1 KB               1 KB
 * Q, K and V in boxes of 64 elements (128 bytes, swizzled) x rows. V is read as it lies:
 * transposed.
 *
 *   barrier        count   arrives                         waits
 *   q_full[2]      1 + tx  load keys                       warpgroup 1, 2, once a work
 *   q_free[2]      4       warps of 1, 2: last scores read load keys
 *   k_full[stage]  1 + tx  load keys: K, its bits, a note  1 and 2, a tile
 *   k_free[stage]  8       warps of 1 and 2: scores read   load keys
 *   v_full[stage]  1 (+tx) load values                     1 and 2
 *   v_raw[stage]   1 + tx  load values: V to be scrubbed   load values
 *   v_free[stage]  8       warps of 1 and 2: P·V read      load values
 *   work_full[4]   1       load keys                       load values, 1 and 2
 *   work_free[4]   9       load values; warps of 1 and 2   load keys
 *                          that have written the result
 *   named 1, 2     256     the other warpgroup has issued  warpgroup 1, 2 before it issues
 *
 * A warpgroup issues S(i+1) = Q·K(i+1) and O += P(i)·V(i) together and does the softmax of i+1
 * while the latter runs; the two warpgroups take turns at issuing, so that one's softmax falls into
 * the other's products. Works follow each other without a gap: the last P·V of one is issued before
 * the first scores of the next (whose queries come while it runs), and O is written while these
 * run:
 *
 *   1   S1 PV0 | softmax 1 ........ | S2 PV1 | softmax 2 .... | PV2 S0' | write O, softmax 0' | ...
 *   2 .......... | S1 PV0 | softmax 1 ........ | S2 PV1 | softmax 2 .... | PV2 S0' | ...
 *
 * Clocks of a tile of 128 x 128 at 192/128: 10.5 MFLOP take 2560 at 4096 a clock; 16384
 * exponentials 1024 at 16; shared memory 236 KB (Q and K of 12 steps, V of 8, for two warpgroups)
 * 1850 at 128 bytes. 80 KB come from L2: 5 TB/s for 132 blocks at this pace. At 256/256 shared
 * memory binds: Q comes from it for every tile, so a tile has as many keys as fit. 80 keys take
 * 2560 clocks of products and 2430 of shared memory; 64 took 2048 of both.
 *
 * Masked works have a loop of their own. A bit that is not set adds under a predicate, on the pipe
 * of FADD; a select would take the ALU, which maxima and packing fill: twice the time.
 *
 * A score that a row may not see becomes -inf whatever it was, so K may hold NaN where nobody
 * looks; V may not, since 0 · NaN is NaN, and is zeroed there. P is rounded to the input type
 * unnormalised; the row sum adds the unrounded fp32 values. Same inputs, same bits. */
#ifndef MLA_CUDA_SM90_MHA_PREFILL_CUH
#define MLA_CUDA_SM90_MHA_PREFILL_CUH

#include "element.cuh"
#include "mha_prefill_load.cuh"
#include "ptx/barrier.cuh"
#include "ptx/launch.cuh"
#include "ptx/wgmma.cuh"

#include <math_constants.h>

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

/* This lane's byte of each chunk (see mha_mask.cu). */
template <class S>
__device__ __forceinline__ void read_bits(u32 smem, u32 stage, int wg, u32 (&bits)[S::CHUNKS])
{
    const u32 from = smem + S::bits_at + (stage * 2 + wg) * S::bits_wg_bytes + threadIdx.x % 128;
#pragma unroll
    for (int c = 0; c < S::CHUNKS; c++)
        bits[c] = ld_shared<unsigned char>(from + c * MLA_MHA_SM90_CHUNK_BYTES);
}

/* minus_inf where the mask has no bit. Each adds another constant to it, or ptxas would add once
 * and select. */
template <class S>
__device__ __forceinline__ void hide_bits(float (&s)[S::KEYS / 2], const u32 (&bits)[S::CHUNKS],
                                          float minus_inf)
{
#pragma unroll
    for (int c = 0; c < S::CHUNKS; c++)
#pragma unroll
        for (int i = 0; i < 8; i++)
            add_unless(s[c * 8 + i], bits[c] & 1u << i, minus_inf, (float)(c * 8 + i));
}

/* -inf where a key is hidden from all rows, or from this lane's beyond the first left0 (left1) of
 * the tile. */
template <class S>
__device__ __forceinline__ void hide(float (&s)[S::KEYS / 2], uint4 seen, int left0, int left1)
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
            word >>= t2;
#pragma unroll
            for (int i = 0; i < 4 && w * 4 + i < S::KEYS / 8; i++)
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

/* Writes one lane's part of a row of out, of any type and address. */
template <class S>
__device__ __forceinline__ void store_row(const struct mla_mha_sm90_args &args,
                                          const float (&o)[S::D_V / 2], int half, float weight,
                                          int64_t at, bool there)
{
    const struct mla_mha_args &a = args.a;
    const int t = threadIdx.x & 3;
#pragma unroll
    for (int j = 0; j < S::D_V / 32; j++) {
        float x[4][2];
        u32 two[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
#pragma unroll
            for (int e = 0; e < 2; e++)
                x[i][e] = o[(j * 4 + i) * 4 + half * 2 + e] * weight;
            int column = (j * 4 + i) * 8 + t * 2;
            if (a.out_dtype == MLA_F32 && there && column < a.d_v)
                *(float2 *)(a.out + (at + column) * 4) = make_float2(x[i][0], x[i][1]);
            two[i] = a.out_dtype == MLA_BF16 ? cvt_rn_bf16x2_f32(x[i][0], x[i][1])
                                             : cvt_rn_f16x2_f32(x[i][0], x[i][1]);
        }
        uint4 piece = transpose_quad(two[0], two[1], two[2], two[3]);
        int column = (j * 4 + t) * 8;
        if (a.out_dtype == MLA_F32 || !there || column >= a.d_v)
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

/* Divides, adds the sink, writes out, lse and max_logits of this lane's rows. */
template <class T, class S>
__device__ __forceinline__ void finish(const struct mla_mha_sm90_args &args, u32 note,
                                       float (&o)[S::D_V / 2], const float (&top)[2],
                                       const float (&sum)[2], int row)
{
    const struct mla_mha_args &a = args.a;
    const uint4 about = ld_shared<uint4>(note);
    const int head = (int)about.x, count = (int)about.y;
    const int64_t batch = ld_shared<int64_t>(note + 4 * WORK_BATCH);
    const int t = threadIdx.x & 3;
    float weight[2], lse[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float total = sum[half], best = top[half];
        total += __shfl_xor_sync(~0u, total, 1);
        total += __shfl_xor_sync(~0u, total, 2);
        lse[half] = best == -CUDART_INF_F ? -CUDART_INF_F : best + log2f(total);
        weight[half] = best == -CUDART_INF_F ? 0 : 1 / total;
    }
    if (a.sink) {
        const float sink = a.sink[head] * 1.4426950408889634f;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            /* Weight of the keys beside the sink: 2^lse / (2^lse + 2^sink). */
            float high = fmaxf(lse[half], sink);
            float both =
                isinf(high) ? high : high + log2f(exp2f(lse[half] - high) + exp2f(sink - high));
            if (sink > -CUDART_INF_F) {
                weight[half] = isinf(both) ? 0 : weight[half] * exp2f(lse[half] - both);
                lse[half] = both;
            }
        }
    }
    /* Without weight zero, whatever O holds. */
    if (__any_sync(~0u, weight[0] == 0 || weight[1] == 0)) {
#pragma unroll
        for (int i = 0; i < S::D_V / 2; i++)
            o[i] = weight[i / 2 & 1] == 0 ? 0 : o[i];
    }
    const bool plain =
        args.wide_stores && a.d_v == S::D_V &&
        a.out_dtype == (operand_type_of<T>::value == OPERAND_BF16 ? MLA_BF16 : MLA_F16);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const bool there = row + half * 8 < count;
        const int64_t token = batch + row + half * 8;
        if (there && t == 0) {
            if (a.lse)
                a.lse[token * a.lse_stride[0] + head * a.lse_stride[1]] = lse[half] * a.lse_unit;
            if (a.max_logits)
                a.max_logits[token * a.max_stride[0] + head * a.max_stride[1]] =
                    top[half] * 0.69314718055994531f;
        }
        const int64_t at = token * a.out_stride[0] + head * a.out_stride[1];
        if (!plain) {
            store_row<S>(args, o, half, weight[half], at, there);
            continue;
        }
        char *to = a.out + (at + t * 8) * 2;
#pragma unroll
        for (int j = 0; j < S::D_V / 32; j++) {
            u32 two[4];
#pragma unroll
            for (int i = 0; i < 4; i++)
                two[i] = T::pack(o[(j * 4 + i) * 4 + half * 2] * weight[half],
                                 o[(j * 4 + i) * 4 + half * 2 + 1] * weight[half]);
            uint4 piece = transpose_quad(two[0], two[1], two[2], two[3]);
            if (there)
                *(uint4 *)(to + j * 64) = piece;
        }
    }
}

template <class S> __device__ __forceinline__ struct tile_note read_tile(u32 smem, u32 stage)
{
    const u32 note = smem + S::tiles_at + stage * 32;
    uint4 rest = ld_shared<uint4>(note + 16);
    return {ld_shared<uint4>(note), (int)rest.x, (int)rest.y, (int)rest.z};
}

/* Is there another work, one with a visible key? Its note stays until the slot is released. */
template <class S>
__device__ __forceinline__ bool more_work(u32 smem, const struct ring<MHA_WORKS> &slot)
{
    const u32 note = smem + S::works_at + slot.stage * 32;
    mbarrier_wait(smem + S::work_full + slot.stage * 8, slot.phase);
    return ld_shared<int>(note) >= 0 && ld_shared<int>(note + 4 * WORK_ANY);
}

/* The same, where no other work is pending: those without a key are finished on the way. */
template <class T, class S>
__device__ __forceinline__ bool next_work(const struct mla_mha_sm90_args &args, u32 smem,
                                          struct ring<MHA_WORKS> *slot, int row)
{
    for (;; slot->next()) {
        const u32 note = smem + S::works_at + slot->stage * 32;
        if (more_work<S>(smem, *slot))
            return true;
        if (ld_shared<int>(note) < 0)
            return false;
        const float top[2] = {-CUDART_INF_F, -CUDART_INF_F}, sum[2] = {};
        float none[S::D_V / 2] = {};
        finish<T, S>(args, note, none, top, sum, row);
        release(smem + S::work_free + slot->stage * 8);
    }
}

/* Masks and softmax of the scores of one tile. Bits know of causality. */
template <class S, bool BITS>
__device__ __forceinline__ bool weigh(const struct mla_mha_args &a, int limit,
                                      const struct tile_note &tile, float (&s)[S::KEYS / 2],
                                      const u32 (&bits)[S::CHUNKS], float (&top)[2],
                                      float (&sum)[2], float (&shrink)[2], int row, float minus_inf)
{
    if (a.sign != 1) {
#pragma unroll
        for (int i = 0; i < S::KEYS / 2; i++)
            s[i] *= a.sign;
    }
    const bool causal = !BITS && a.causal;
    const int wg_row = row & ~63;
    if (BITS)
        hide_bits<S>(s, bits, minus_inf);
    /* Where the warpgroup's first row sees all keys, so do the others. */
    if (tile.partial || (causal && tile.key0 + S::KEYS > limit + wg_row)) {
        int left = causal ? limit + row - tile.key0 : S::KEYS;
        hide<S>(s, tile.seen, left + (MLA_MUTANT == 4), left + (causal ? 8 : 0));
    }
    return softmax(s, top, sum, shrink, a.scale_log2);
}

template <class T, class S, bool BITS>
__device__ __forceinline__ void attend_works(const struct mla_mha_sm90_args &args, u32 smem, int wg)
{
    const struct mla_mha_args &a = args.a;
    const u32 q = smem + wg * S::q_wg_bytes;
    const u32 turn = 1 + wg, other = 2 - wg;
    /* This lane's rows of the work: row and row + 8. */
    const int row =
        wg * MHA_WG_ROWS + (int)(threadIdx.x / 32 % 4) * 16 + (int)(threadIdx.x % 32) / 4;
    struct ring<S::STAGES> k, v;
    struct ring<MHA_WORKS> slot;
    u32 q_phase = 0;
    if (wg == 1)
        bar_arrive((int)other, 256);
    while (next_work<T, S>(args, smem, &slot, row)) {
        float o[S::D_V / 2], s[S::KEYS / 2];
        float top[2] = {-CUDART_INF_F, -CUDART_INF_F}, sum[2] = {0, 0}, shrink[2];
        u32 p[S::KEYS / 16][4], bits[S::CHUNKS] = {};
#pragma unroll
        for (int i = 0; i < S::D_V / 2; i++)
            o[i] = 0;
        u32 note = smem + S::works_at + slot.stage * 32;
        int limit = ld_shared<int>(note + 4 * WORK_LIMIT);
        mbarrier_wait(smem + S::q_full + wg * 8, q_phase);
        q_phase ^= 1;
        mbarrier_wait(smem + S::k_full + k.stage * 8, k.phase);
        struct tile_note tile = read_tile<S>(smem, k.stage);
        __syncwarp();
        wgmma_fence();
        issue_scores<T, S>(s, q, smem + S::k_at + k.stage * S::k_bytes);
        if (BITS)
            read_bits<S>(smem, k.stage, wg, bits);
        wgmma_wait<0>();
        wgmma_bind(s);
        release(smem + S::k_free + k.stage * 8);
        if (tile.last)
            release(smem + S::q_free + wg * 8);
        k.next();
        weigh<S, BITS>(a, limit, tile, s, bits, top, sum, shrink, row, args.minus_inf);
        pack_weights<T, S::KEYS>(p, s);
        for (;;) {
            while (!tile.last) {
                mbarrier_wait(smem + S::k_full + k.stage * 8, k.phase);
                tile = read_tile<S>(smem, k.stage);
                __syncwarp();
                bar_sync((int)turn, 256);
                wgmma_fence();
                issue_scores<T, S>(s, q, smem + S::k_at + k.stage * S::k_bytes);
                mbarrier_wait(smem + S::v_full + v.stage * 8, v.phase);
                __syncwarp();
                wgmma_fence();
                issue_values<T, S>(o, p, smem + S::v_at + v.stage * S::v_bytes);
                bar_arrive((int)other, 256);
                if (BITS)
                    read_bits<S>(smem, k.stage, wg, bits);
                wgmma_wait<1>();
                wgmma_bind(s);
                release(smem + S::k_free + k.stage * 8);
                if (MLA_MUTANT == 3 ? !tile.last : tile.last)
                    release(smem + S::q_free + wg * 8);
                k.next();
                bool moved =
                    weigh<S, BITS>(a, limit, tile, s, bits, top, sum, shrink, row, args.minus_inf);
                wgmma_bind(s);
                /* It has ended. Its branch keeps the wait for P·V, which ptxas moves to the start
                 * of its basic block, behind the exponentials. */
                mbarrier_wait(smem + S::v_full + v.stage * 8, v.phase);
                wgmma_wait<0>();
                wgmma_bind(o);
                if (moved) {
#pragma unroll
                    for (int i = 0; i < S::D_V / 2; i++)
                        o[i] *= MLA_MUTANT == 2 ? 1 : shrink[i / 2 & 1];
                }
                release(smem + S::v_free + v.stage * 8);
                v.next();
                pack_weights<T, S::KEYS>(p, s);
            }
            /* The last P·V of this work and the first scores of the next. */
            slot.next();
            if (!more_work<S>(smem, slot))
                break;
            mbarrier_wait(smem + S::v_full + v.stage * 8, v.phase);
            __syncwarp();
            bar_sync((int)turn, 256);
            wgmma_fence();
            issue_values<T, S>(o, p, smem + S::v_at + v.stage * S::v_bytes);
            mbarrier_wait(smem + S::q_full + wg * 8, q_phase);
            q_phase ^= 1;
            mbarrier_wait(smem + S::k_full + k.stage * 8, k.phase);
            tile = read_tile<S>(smem, k.stage);
            __syncwarp();
            wgmma_fence();
            issue_scores<T, S>(s, q, smem + S::k_at + k.stage * S::k_bytes);
            bar_arrive((int)other, 256);
            if (BITS)
                read_bits<S>(smem, k.stage, wg, bits);
            if (MLA_MUTANT != 7)
                wgmma_wait<1>();
            wgmma_bind(o);
            release(smem + S::v_free + v.stage * 8);
            v.next();
            finish<T, S>(args, note, o, top, sum, row);
            release(smem + S::work_free + (note - smem - S::works_at) / 4);
            note = smem + S::works_at + slot.stage * 32;
            limit = ld_shared<int>(note + 4 * WORK_LIMIT);
#pragma unroll
            for (int i = 0; i < S::D_V / 2; i++)
                o[i] = 0;
            top[0] = top[1] = -CUDART_INF_F;
            sum[0] = sum[1] = 0;
            wgmma_wait<0>();
            wgmma_bind(s);
            release(smem + S::k_free + k.stage * 8);
            if (tile.last)
                release(smem + S::q_free + wg * 8);
            k.next();
            weigh<S, BITS>(a, limit, tile, s, bits, top, sum, shrink, row, args.minus_inf);
            pack_weights<T, S::KEYS>(p, s);
        }
        mbarrier_wait(smem + S::v_full + v.stage * 8, v.phase);
        __syncwarp();
        bar_sync((int)turn, 256);
        wgmma_fence();
        issue_values<T, S>(o, p, smem + S::v_at + v.stage * S::v_bytes);
        bar_arrive((int)other, 256);
        wgmma_wait<0>();
        wgmma_bind(o);
        release(smem + S::v_free + v.stage * 8);
        v.next();
        finish<T, S>(args, note, o, top, sum, row);
        release(smem + S::work_free + (note - smem - S::works_at) / 4);
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
            mbarrier_init(smem + S::q_full + i * 8, LANES_THAT_ARRIVE);
            mbarrier_init(smem + S::q_free + i * 8, 4 * LANES_THAT_ARRIVE);
        }
        for (int i = 0; i < MHA_WORKS; i++) {
            mbarrier_init(smem + S::work_full + i * 8, LANES_THAT_ARRIVE);
            mbarrier_init(smem + S::work_free + i * 8, 9 * LANES_THAT_ARRIVE);
        }
        for (int i = 0; i < S::STAGES; i++) {
            mbarrier_init(smem + S::k_full + i * 8, LANES_THAT_ARRIVE);
            mbarrier_init(smem + S::k_free + i * 8, 8 * LANES_THAT_ARRIVE);
            mbarrier_init(smem + S::v_full + i * 8, LANES_THAT_ARRIVE);
            mbarrier_init(smem + S::v_raw + i * 8, LANES_THAT_ARRIVE);
            mbarrier_init(smem + S::v_free + i * 8, 8 * LANES_THAT_ARRIVE);
        }
        fence_mbarrier_init();
    }
    __syncthreads();
    if (warp < 4) {
        setmaxnreg_dec<PRODUCER_REGISTERS>();
        if (warp == 0) {
            MLA_ROLE("load keys");
            load_keys<S>(args, smem);
        } else if (warp == 1) {
            MLA_ROLE("load values");
            load_values<S>(args, smem);
        }
    } else {
        setmaxnreg_inc<CONSUMER_REGISTERS>();
        MLA_ROLE("softmax");
        const int wg = (int)warp / 4 - 1;
        if (args.a.mask)
            attend_works<T, S, true>(args, smem, wg);
        else
            attend_works<T, S, false>(args, smem, wg);
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
        return tile_entry<T, mha_shape<256, 256, 80, 2>>(keys);
    *keys = 0;
    return {NULL, 0, 0, 0};
}

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* Absorbed decode on sm_90a (wgmma, TMA): out = softmax(scale · q · K^T) · K[:, :512], dense or
 * over top-k lists, plain caches and packed records, flat or paged. A tile is 64 rows: pairs of
 * query token and head of a request (dense), or heads of one token (lists).
 *
 * Persistent blocks, one an SM, of three warpgroups (fp8 records: four); a work is a tile and a
 * split of its keys. Keys come in blocks of 64. Pair: where two tiles share packed records, a
 * cluster of two blocks takes both. Each widens half of the keys and copies them to the other.
 *
 *   warpgroup  registers  duty
 *   0          120        finds works, brings queries and keys (mqa_decode_keys.cuh)
 *   1          192        scores and softmax of even blocks; columns 0-255 of the output
 *   2          192        scores and softmax of odd blocks; columns 256-511 of the output
 *
 * Records of fp8_ds_mla: warpgroups 0 and 1 have 64 registers each (mqa_decode_stream.cuh), 2 and 3
 * are what 1 and 2 are here.
 *
 * Shared memory, bytes
 *   Q       64 rows x 576, nine tiles of [64][128 bytes], swizzled       73728
 *   K       two stages of 64 keys x 576, the same tiles                 147456
 *           the rope tile of a stage holds P once its scores are done
 *   largest scores and factors of a stage's rows, sums, valid keys, notes, barriers: 3 KB
 *   pair: rope of a stage's 32 keys on its way to the other block, 2 x 4 KB
 *
 *   barrier            count   arrives                             waits
 *   work_full[2]       1       producer                            1, 2
 *   work_free[2]       8       warps of 1, 2: are through          producer
 *                              (fp8 records: eight producer warps, so 8 + tx where 4 + tx stands)
 *   q_full             4 + tx  producer warps (TMA)                1, 2
 *   q_free             8       warps of 1, 2: last scores          producer
 *   k_full[stage]      4 + tx  producer warps (TMA): columns       1 or 2: the block's owner
 *                              0-255 are there
 *   k_right[stage]     4 + tx  the same: all the others            the owner, in its scores
 *   left_free[stage]   4       warps of 1: columns 0-255 are read  producer
 *   right_free[stage]  8       warps of 1, 2: all is read          producer
 *                              (pair: twice as many, those of both blocks)
 *   p_full[stage]      4       warps of 1 or 2, the owner          the other
 *   named 1            256     1, 2: sums are exchanged
 *   named 2, 3         128     warps of 1, of 2: scores are done, P may be written
 *
 * A warpgroup's turn, j its block: O += P(j-1)·V(j-1) of the other's block, behind it S(j),
 * softmax, then O += P(j)·V(j), P from registers. The other warpgroup is half a turn off:
 *
 *   1   PV(1) S(2) | softmax 2 | PV(2) | PV(3) S(4) | softmax 4 | ...
 *   2   ... softmax 1 | PV(1) | PV(2) S(3) | softmax 3 | PV(3) | PV(4) S(5) | ...
 *
 * Values come before scores: with two stages the next keys wait for the stage that they leave, and
 * the scores for the keys.
 *
 * The running maximum is one chain: block j starts from the maximum of j-1, so that both halves of
 * the output are rescaled alike.
 *
 * Clocks of 64 keys x 64 rows: 8.9 MFLOP take 2176 at 4096 a clock; shared memory 296 KB (Q and K
 * of 36 steps 144, P and V 72, writes 80) 2368 at 128 bytes. Widening fp8: 620 instructions a warp
 * for eight keys, two warps a scheduler, once for 64 keys, in a pair half. 16 rows cost as much as
 * 64; a bf16 cache read at 3 TB/s brings 64 keys to each of 132 SMs in 5700 clocks.
 *
 * A key that no row of the tile sees is zero in shared memory and its score -inf: what an invisible
 * slot holds reaches nothing. P is rounded to the input type unnormalised, its sum is of fp32
 * values. Same inputs, same bits. */
#ifndef MLA_CUDA_SM90_MQA_DECODE_CUH
#define MLA_CUDA_SM90_MQA_DECODE_CUH

#include "mqa_decode_keys.cuh"
#include "ptx/barrier.cuh"
#include "ptx/launch.cuh"
#include "ptx/wgmma.cuh"

/* Of a kernel whose producers are so many warps. */
template <int WARPS> struct decode_block {
    static const int threads = WARPS * 32 + 256;
    static const int producer_registers = WARPS == 4 ? 120 : 64, math_registers = 192;
    static_assert(producer_registers * WARPS * 32 + math_registers * 256 <= 65536, "register file");
};

/* What a lane knows of its two rows: of the block before this one, its own sum of weights, and
 * where they stand. */
struct decode_rows {
    float top[2], factor[2], sum[2];
    int limit[2]; /* end of the keys that a row sees, from the work's first on */
};

/* ------------------------------------------------------------------- scores */

/* Issues S = Q·K^T of a stage. */
template <class T, class F>
__device__ __forceinline__ void issue_block_scores(float (&s)[KEYS / 2], u32 smem, u32 stage,
                                                   u32 phase)
{
    const u64 a = wgmma_desc(smem, 16, 1024, 128);
    const u64 b = wgmma_desc(smem + S::k_at + stage * S::stage_bytes, 16, 1024, 128);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < F::TILES * 4; i++) {
        if (i == 16) {
            mbarrier_wait(smem + S::k_right + stage * 8, phase);
            wgmma_fence();
        }
        wgmma_ss<T, KEYS>(s, desc_advance(a, i / 4 * TILE_BYTES + i % 4 * 32),
                          desc_advance(b, i / 4 * TILE_BYTES + i % 4 * 32), i > 0);
    }
    wgmma_commit();
}

/* Keys of block j, of the work, that a row sees: bit i = key i. */
__device__ __forceinline__ u64 visible_keys(const struct mla_mqa_args &a, u32 note, u32 smem,
                                            u32 stage, int j, int row, int limit)
{
    u64 bits = ~(u64)0;
    if (j >= ld_shared<int>(note + NOTE_BOXES) && MLA_MUTANT != 5)
        bits = ld_shared<u64>(smem + S::valid_at + stage * 8);
    if (a.topk)
        return bits;
    const int left = limit - j * KEYS;
    u32 low = bits_below(left), high = bits_below(left - 32);
    if (a.mask) {
        const struct decode_note n = read_note(note);
        const int token = n.q_start + (n.row0 + min(row, n.rows - 1)) / a.heads;
        const u32 *words = a.mask + token * a.mask_stride + n.first / 32 + j * 2;
        low &= left > 0 ? words[0] : 0;
        high &= left > 32 ? words[1] : 0;
    }
    return bits & ((u64)high << 32 | low);
}

/* Softmax of a stage's scores; P (and in registers, for this warpgroup), the largest scores and the
 * factors of what was summed before go to the stage. r->top is that of the block before, r->factor
 * its factor. */
template <class T>
__device__ __forceinline__ void
weigh_block(const struct mla_mqa_args &a, u32 note, float (&s)[KEYS / 2], u32 (&p)[KEYS / 16][4],
            u32 smem, u32 stage, int j, int wg, int row, struct decode_rows *r)
{
    const int t = threadIdx.x & 3;
    const u32 to = smem + S::k_at + stage * S::stage_bytes + S::p_in_stage;
#pragma unroll
    for (int i = 0; i < KEYS / 2; i++)
        s[i] *= a.scale_log2;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        u64 bits = visible_keys(a, note, smem, stage, j, row + half * 8, r->limit[half]);
        if (bits == ~(u64)0)
            continue;
        const u32 low = (u32)bits >> 2 * t, high = (u32)(bits >> 32) >> 2 * t;
#pragma unroll
        for (int i = 0; i < KEYS / 8; i++)
#pragma unroll
            for (int e = 0; e < 2; e++)
                if (!((i < 4 ? low : high) >> (i % 4 * 8 + e) & 1))
                    s[4 * i + half * 2 + e] = -INFINITY;
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
            p[i / 2][i % 2 * 2 + half] = T::pack(x, y);
            st_shared(to + at, p[i / 2][i % 2 * 2 + half]);
        }
        r->sum[half] = fmaf(r->sum[half], r->factor[half] * factor, total[0] + total[1]);
        r->factor[half] = factor;
        if (t == 0) {
            u32 at = (stage * ROWS + row + half * 8) * 4;
            st_shared(smem + S::tops_at + at, r->top[half]);
            st_shared(smem + S::factors_at + at, MLA_MUTANT == 2 ? 1.0f : factor);
        }
    }
    if (MLA_MUTANT != 3)
        fence_proxy_async();
    release(smem + S::p_full + stage * 8);
}

/* ------------------------------------------------------------------- output */

/* This warpgroup's columns of a stage's V, which lies [key][column]: transposed. */
__device__ __forceinline__ u64 values_desc(u32 smem, u32 stage, int wg)
{
    return wgmma_desc(smem + S::k_at + stage * S::stage_bytes + wg * 4 * TILE_BYTES, TILE_BYTES,
                      1024, 128);
}

/* Columns 0-127 or 128-255 of a warpgroup's output. */
__device__ __forceinline__ float (&half_of(float (&o)[128], int half))[64]
{
    return *(float(*)[64]) & o[half * 64];
}

/* Issues O += P·V of the other warpgroup's block. HALVES: products of 128 columns: those of 256
 * want more registers than ptxas grants a thread of 512. */
template <class T, bool HALVES>
__device__ __forceinline__ void issue_other_values(float (&o)[128], u32 smem, u32 stage, int wg)
{
    const u64 a =
        wgmma_desc(smem + S::k_at + stage * S::stage_bytes + S::p_in_stage, 16, 1024, 128);
    const u64 b = values_desc(smem, stage, wg);
    wgmma_bind(o);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < KEYS / 16; i++)
        if constexpr (HALVES) {
            wgmma_ss<T, 128, 0, 1>(half_of(o, 0), desc_advance(a, i * 32),
                                   desc_advance(b, i * 2048), true);
            wgmma_ss<T, 128, 0, 1>(half_of(o, 1), desc_advance(a, i * 32),
                                   desc_advance(b, i * 2048 + 2 * TILE_BYTES), true);
        } else {
            wgmma_ss<T, 256, 0, 1>(o, desc_advance(a, i * 32), desc_advance(b, i * 2048), true);
        }
    wgmma_commit();
}

/* And of this one's, P in registers. */
template <class T, bool HALVES>
__device__ __forceinline__ void issue_own_values(float (&o)[128], u32 (&p)[KEYS / 16][4], u32 smem,
                                                 u32 stage, int wg)
{
    const u64 b = values_desc(smem, stage, wg);
    wgmma_bind(o);
#pragma unroll
    for (int i = 0; i < KEYS / 16; i++)
        wgmma_bind(p[i]);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < KEYS / 16; i++)
        if constexpr (HALVES) {
            wgmma_rs<T, 128, 1>(half_of(o, 0), p[i], desc_advance(b, i * 2048), true);
            wgmma_rs<T, 128, 1>(half_of(o, 1), p[i], desc_advance(b, i * 2048 + 2 * TILE_BYTES),
                                true);
        } else {
            wgmma_rs<T, 256, 1>(o, p[i], desc_advance(b, i * 2048), true);
        }
    wgmma_commit();
}

/* A stage has been read, by this warp. */
template <bool PAIR>
__device__ __forceinline__ void release_stage(u32 smem, u32 peer, u32 stage, int wg)
{
    __syncwarp();
    if (arrives()) {
        if (wg == 0)
            mbarrier_arrive(smem + S::left_free + stage * 8);
        mbarrier_arrive(smem + S::right_free + stage * 8);
        if (PAIR && wg == 0)
            mbarrier_arrive_cluster_read(peer + S::left_free + stage * 8);
        if (PAIR)
            mbarrier_arrive_cluster_read(peer + S::right_free + stage * 8);
    }
    __syncwarp();
}

/* The other warpgroup's block is weighed: its largest scores and factors. */
__device__ __forceinline__ void read_block(u32 smem, const ring<2> &at, int row,
                                           struct decode_rows *r)
{
    mbarrier_wait(smem + S::p_full + at.stage * 8, at.phase);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        u32 from = (at.stage * ROWS + row + half * 8) * 4;
        r->top[half] = ld_shared<float>(smem + S::tops_at + from);
        r->factor[half] = ld_shared<float>(smem + S::factors_at + from);
    }
}

/* Denominators from both warpgroups' sums: lse and max_logits or their partial values. The
 * factor of the output goes to r->factor; to: where a row's output begins, -1 for nowhere. */
__device__ __forceinline__ void end_rows(const struct mla_mqa_args &a, const struct decode_note &n,
                                         u32 smem, int wg, int row0, u32 slot,
                                         struct decode_rows *r, int64_t (&to)[2])
{
    const u32 sums = smem + S::sums_at + slot * 2 * ROWS * 4;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float sum = r->sum[half];
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        if ((threadIdx.x & 3) == 0)
            st_shared(sums + (wg * ROWS + row0 + half * 8) * 4, sum);
    }
    sync_warps(1, 256);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int row = row0 + half * 8, at = n.row0 + row, head = at % a.heads;
        const int64_t token = n.q_start + at / a.heads;
        float sum = ld_shared<float>(sums + row * 4) + ld_shared<float>(sums + (ROWS + row) * 4);
        float top = r->top[half], lse_log2;
        bool there = row < n.rows, sink = there && !n.split && a.sink;
        r->factor[half] = finish_row(top, sum, sink, sink ? a.sink[head] : 0, &lse_log2);
        to[half] = token * a.out_stride[0] + head * a.out_stride[1];
        if (n.split)
            to[half] = lse_log2 == -INFINITY ? -1 : (n.part + row) * MLA_MQA_LATENT;
        if (!there)
            to[half] = -1;
        if (!there || wg != 0 || (threadIdx.x & 3))
            continue;
        if (n.split) {
            a.part_lse[n.part + row] = lse_log2;
            a.part_max[n.part + row] = top;
            continue;
        }
        if (a.lse)
            a.lse[token * a.lse_stride[0] + head * a.lse_stride[1]] = lse_log2 * a.lse_unit;
        if (a.max_logits)
            a.max_logits[token * a.max_stride[0] + head * a.max_stride[1]] = top * 0.693147181f;
    }
}

/* Rows of a new work. */
__device__ __forceinline__ void begin_rows(const struct mla_mqa_args &a,
                                           const struct decode_note &n, int row,
                                           struct decode_rows *r)
{
#pragma unroll
    for (int half = 0; half < 2; half++) {
        r->top[half] = -INFINITY;
        r->factor[half] = 1;
        r->sum[half] = 0;
        r->limit[half] = 0;
        if (a.topk)
            continue;
        const int token = (n.row0 + min(row + half * 8, n.rows - 1)) / a.heads;
        r->limit[half] = n.limit - n.first + (a.causal ? token : 0) + (MLA_MUTANT == 9 ? 1 : 0);
    }
}

template <class T, class F, bool PAIR>
__device__ __forceinline__ void attend_works(const struct mla_decode90_args &g, u32 smem, u32 peer,
                                             int wg)
{
    const struct mla_mqa_args &a = g.a;
    /* This lane's rows: row and row + 8. */
    const int row = (int)(threadIdx.x / 32 % 4) * 16 + (int)(threadIdx.x % 32) / 4;
    struct ring<2> slot;
    struct ring<2> now; /* at this warpgroup's next block or, after it, the one before */
    u32 q_phase = 0;
    for (;;) {
        mbarrier_wait(smem + S::work_full + slot.stage * 8, slot.phase);
        const u32 note = smem + S::works_at + slot.stage * 64;
        const int steps = ld_shared<int>(note + NOTE_STEPS);
        if (steps < 0)
            return;
        struct decode_rows r;
        begin_rows(a, read_note(note), row, &r);
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
            u32 p[KEYS / 16][4];
            struct ring<2> mine = now;
            if (j > 0)
                mine.next();
            if (j > 0) { /* the other's block first: its stage is wanted */
                read_block(smem, now, row, &r);
                rescale(o, r.factor);
                issue_other_values<T, (F::WARPS > 4)>(o, smem, now.stage, wg);
            }
            mbarrier_wait(smem + S::k_full + mine.stage * 8, mine.phase);
            if (j + 2 >= steps && MLA_MUTANT == 6)
                release(smem + S::q_free);
            issue_block_scores<T, F>(s, smem, mine.stage, mine.phase);
            if (j > 0) {
                wgmma_wait<1>();
                wgmma_bind(o);
                release_stage<PAIR>(smem, peer, now.stage, wg);
            }
            wgmma_wait<0>();
            wgmma_bind(s);
            if (j + 2 >= steps && MLA_MUTANT != 6)
                release(smem + S::q_free);
            weigh_block<T>(a, note, s, p, smem, mine.stage, j, wg, row, &r);
            rescale(o, r.factor);
            issue_own_values<T, (F::WARPS > 4)>(o, p, smem, mine.stage, wg);
            wgmma_wait<0>();
            wgmma_bind(o);
            release_stage<PAIR>(smem, peer, mine.stage, wg);
            now = mine;
            now.next();
        }
        /* The last block is the other's, unless this warpgroup's was. */
        if (steps > 0 && (steps - 1) % 2 != wg) {
            read_block(smem, now, row, &r);
            r.sum[0] *= r.factor[0];
            r.sum[1] *= r.factor[1];
            rescale(o, r.factor);
            issue_other_values<T, (F::WARPS > 4)>(o, smem, now.stage, wg);
            wgmma_wait<0>();
            wgmma_bind(o);
            release_stage<PAIR>(smem, peer, now.stage, wg);
            now.next();
        }
        const struct decode_note n = read_note(note);
        int64_t to[2];
        end_rows(a, n, smem, wg, row, slot.stage, &r, to);
        store_columns(a, g.wide_stores, n.split, wg, to, r.factor, o);
        release(smem + S::work_free + slot.stage * 8);
        slot.next();
    }
}

/* ------------------------------------------------------------------- kernel */

template <class T, class F, bool PAIR>
__global__ void __launch_bounds__(decode_block<F::WARPS>::threads, 1)
    decode90_kernel(const __grid_constant__ struct mla_decode90_args g)
{
    const u32 smem = dynamic_smem();
    const u32 warp = warp_index(), rank = PAIR ? cluster_ctarank() : 0;
    const u32 peer = PAIR ? mapa(smem, rank ^ 1) : 0, both = PAIR ? 2 : 1;
    if (warp == F::WARPS && elect_one()) {
        if (g.q_boxes)
            tma_prefetch_map(&g.q);
        if (g.box_rows)
            tma_prefetch_map(&g.latent);
        if (g.box_rows && F::TILES == 9)
            tma_prefetch_map(&g.rope);
    }
    if (warp == 0 && elect_one()) {
        for (int i = 0; i < 2; i++) {
            mbarrier_init(smem + S::work_full + i * 8, LANES_THAT_ARRIVE);
            mbarrier_init(smem + S::work_free + i * 8, 8 * LANES_THAT_ARRIVE);
            mbarrier_init(smem + S::k_full + i * 8, F::WARPS * LANES_THAT_ARRIVE);
            mbarrier_init(smem + S::left_free + i * 8, 4 * both * LANES_THAT_ARRIVE);
            mbarrier_init(smem + S::k_right + i * 8, F::WARPS * LANES_THAT_ARRIVE);
            mbarrier_init(smem + S::right_free + i * 8, 8 * both * LANES_THAT_ARRIVE);
            mbarrier_init(smem + S::p_full + i * 8, 4 * LANES_THAT_ARRIVE);
        }
        mbarrier_init(smem + S::q_full, F::WARPS * LANES_THAT_ARRIVE);
        mbarrier_init(smem + S::q_free, 8 * LANES_THAT_ARRIVE);
        fence_mbarrier_init();
    }
    if (PAIR)
        cluster_sync();
    else
        __syncthreads();
    griddep_launch_dependents(); /* combine waits for the end of this grid all the same */
    if (warp < F::WARPS) {
        setmaxnreg_dec<decode_block<F::WARPS>::producer_registers>();
        MLA_ROLE("keys");
        produce<T, F, PAIR>(g, smem, peer, rank);
    } else {
        setmaxnreg_inc<decode_block<F::WARPS>::math_registers>();
        MLA_ROLE("softmax");
        attend_works<T, F, PAIR>(g, smem, peer, (int)(warp - F::WARPS) / 4);
    }
    if (PAIR)
        cluster_sync(); /* the other block still writes to this one's barriers */
}

template <class T, class F> static struct mla_mqa_tile decode_alone(void)
{
    return {mla_kernel_address((decode90_kernel<T, F, false>)), S::shared_bytes,
            decode_block<F::WARPS>::threads, 1};
}

/* Of packed records: two blocks that share keys. */
template <class T, class F> static struct mla_mqa_tile decode_pair(void)
{
    return {mla_kernel_address((decode90_kernel<T, F, true>)), S::pair_bytes,
            decode_block<F::WARPS>::threads, 2};
}

#endif

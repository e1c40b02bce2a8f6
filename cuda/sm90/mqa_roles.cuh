/* SPDX-License-Identifier: Apache-2.0 */
/* Absorbed attention of 64 rows by three math warpgroups, each with one duty: SCORES computes scores
 * and softmax, with the queries in registers; two VALUES warpgroups add P·V, half of the output's
 * columns each. Who brings keys and finds works stands elsewhere (BRING); this is what the three do
 * with them.
 *
 * Keys lie in tiles, [64 keys][128 bytes], swizzled: a ring of STAGES stages of eight, columns 0-255
 * (left) and 256-511 (right), and a ring of two ninth tiles, rope. A work is an item of queries, in
 * the places of keys, then its blocks of keys; a work without blocks has no item. SCORES takes the
 * queries of HELD tiles to registers (16 a tile), those of the others to a place of their own. Then,
 * block by block: scores, softmax, P over the block's ninth tile. P is unnormalised, the running
 * maximum one chain in SCORES' registers; VALUES get the factors of what they hold.
 *
 *   barrier            count   arrives                           waits
 *   work_full[slot]    1       who finds works                   all
 *   work_free[slot]    12      warps: are through                who finds works
 *   k_left[stage]      FULL    columns 0-255 are there           SCORES
 *   k_right[stage]     FULL    columns 256-511 are there         SCORES
 *   k_rope[ninth]      FULL    rope is there, or P may be        SCORES
 *   s_full[2]          4       warps of SCORES: a block's        VALUES: P·V of the block before
 *                              scores are under way
 *   p_full[stage]      4       warps of SCORES: P and factors    VALUES
 *                              are there (queries: are taken)
 *   left_free[stage]   4       warps of VALUES 0 have read       who brings keys
 *   right_free[stage]  4       warps of VALUES 1 have read       who brings keys
 *   end_full[slot]     4       warps of SCORES: factors of rows  VALUES
 *   named 2            128     SCORES: scores are done, P may be written
 *
 * The left half of a stage is free when VALUES 0 have read it: SCORES were before. A ninth tile, P,
 * is free when both halves of its item are.
 *
 * Values of keys that no row of the work sees are zeroed, their scores are -inf. */
#ifndef MLA_CUDA_SM90_MQA_ROLES_CUH
#define MLA_CUDA_SM90_MQA_ROLES_CUH

#include "mqa_tile.cuh"
#include "ptx/barrier.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/opaque.cuh"
#include "ptx/warp.cuh"
#include "ptx/wgmma.cuh"
#include "ring.cuh"

/* In works of as many blocks P·V waits until the next scores are under way: its products of 256
 * columns would win the tensor core from them, and leave it idle in the softmax. In short ones keys
 * come late, and waiting for the next costs more. */
static const int LONG_WORK = 32;

/* TILES: of 64 columns, 8 or 9. HELD: of them in SCORES' registers. */
template <int TILES_, int HELD_, int STAGES_> struct role_shape {
    static const int TILES = TILES_, HELD = HELD_ < TILES_ ? HELD_ : TILES_, STAGES = STAGES_;
    static const int SLOTS = 3; /* of works; the factors of their rows have two */
    static const u32 stage_bytes = 8 * TILE_BYTES;
    static const u32 q_at = 0, k_at = (TILES - HELD) * TILE_BYTES; /* q: tiles that are not held */
    static const u32 ninths_at = k_at + STAGES * stage_bytes;
    static const u32 factors_at = ninths_at + 2 * TILE_BYTES;  /* [stage][row], floats */
    static const u32 ends_at = factors_at + STAGES * ROWS * 4; /* [slot][row], floats */
    static const u32 places_at = ends_at + 2 * ROWS * 4;       /* [slot][row], 64 bits */
    static const u32 valid_at = places_at + 2 * ROWS * 8;      /* [phase][stage], 64 bits */
    static const u32 works_at = valid_at + 2 * STAGES * 8;     /* NOTE_BYTES each */
    static const u32 work_full = works_at + SLOTS * NOTE_BYTES, work_free = work_full + 8 * SLOTS,
                     end_full = work_free + 8 * SLOTS, k_left = end_full + 8 * SLOTS,
                     k_right = k_left + 8 * STAGES, k_rope = k_right + 8 * STAGES,
                     s_full = k_rope + 16, left_free = s_full + 16,
                     right_free = left_free + 8 * STAGES, p_full = right_free + 8 * STAGES,
                     shared_bytes = p_full + 8 * STAGES;
    static_assert(shared_bytes <= 232448, "227 KB of shared memory a block");
};

/* Where a role stands: an item's stage and its ninth tile. */
template <class S> struct item_place {
    ring<S::STAGES> in;
    ring<2> ninth;

    __device__ __forceinline__ void next()
    {
        in.next();
        ninth.next();
    }
    /* The place `count` items on, at most STAGES. */
    __device__ __forceinline__ item_place<S> ahead(u32 count) const
    {
        item_place<S> to = *this;
        to.in.stage += count;
        if (to.in.stage >= (u32)S::STAGES) {
            to.in.stage -= S::STAGES;
            to.in.phase ^= 1;
        }
        to.ninth.phase ^= (to.ninth.stage + count) >> 1 & 1;
        to.ninth.stage = (to.ninth.stage + count) & 1;
        return to;
    }
};

/* By one thread. half, ninth: arrivals at k_left and k_right, and at k_rope. */
template <class S> __device__ __forceinline__ void init_role_barriers(u32 smem, u32 half, u32 ninth)
{
    for (int i = 0; i < S::SLOTS; i++) {
        mbarrier_init(smem + S::work_full + i * 8, LANES_THAT_ARRIVE);
        mbarrier_init(smem + S::work_free + i * 8, 12 * LANES_THAT_ARRIVE);
        mbarrier_init(smem + S::end_full + i * 8, 4 * LANES_THAT_ARRIVE);
    }
    for (int i = 0; i < 2; i++) {
        mbarrier_init(smem + S::k_rope + i * 8, ninth * LANES_THAT_ARRIVE);
        mbarrier_init(smem + S::s_full + i * 8, 4 * LANES_THAT_ARRIVE);
    }
    for (int i = 0; i < S::STAGES; i++) {
        mbarrier_init(smem + S::k_left + i * 8, half * LANES_THAT_ARRIVE);
        mbarrier_init(smem + S::k_right + i * 8, half * LANES_THAT_ARRIVE);
        mbarrier_init(smem + S::left_free + i * 8, 4 * LANES_THAT_ARRIVE);
        mbarrier_init(smem + S::right_free + i * 8, 4 * LANES_THAT_ARRIVE);
        mbarrier_init(smem + S::p_full + i * 8, 4 * LANES_THAT_ARRIVE);
    }
    fence_mbarrier_init();
}

/* ------------------------------------------------------------------- scores */

/* What a lane of SCORES knows of its two rows. */
struct score_rows {
    float top[2], sum[2];
};

/* The first of this lane's rows; the other is eight further on. */
__device__ __forceinline__ int score_row()
{
    const u32 thread = thread_again();
    return (int)(thread / 32 % 4 * 16 + thread % 32 / 4);
}

/* The queries of a stage: HELD tiles to registers, as A of wgmma. */
template <class S>
__device__ __forceinline__ void take_queries(u32 (&q)[S::HELD * 4][4], u32 smem,
                                             const item_place<S> &at)
{
    const int row = score_row(), t = threadIdx.x & 3;
    const u32 stage = smem + S::k_at + at.in.stage * S::stage_bytes;
    const u32 ninth = smem + S::ninths_at + at.ninth.stage * TILE_BYTES;
    mbarrier_wait(smem + S::k_left + at.in.stage * 8, at.in.phase);
    mbarrier_wait(smem + S::k_right + at.in.stage * 8, at.in.phase);
    mbarrier_wait(smem + S::k_rope + at.ninth.stage * 8, at.ninth.phase);
#pragma unroll
    for (int i = 0; i < S::HELD * 4; i++)
#pragma unroll
        for (int r = 0; r < 4; r++)
            q[i][r] = ld_shared<u32>((i < 32 ? stage + i / 4 * TILE_BYTES : ninth) +
                                     (u32)(row + (r & 1) * 8) * 128 +
                                     ((u32)((i % 4 * 2 + (r >> 1)) ^ (row & 7)) << 4) + t * 4);
    if constexpr (S::HELD < S::TILES) {
#pragma unroll
        for (int tile = S::HELD; tile < S::TILES; tile++)
            for (u32 i = threadIdx.x % 128 * 16; i < TILE_BYTES; i += 128 * 16)
                st_shared(smem + S::q_at + (tile - S::HELD) * TILE_BYTES + i,
                          ld_shared<uint4>((tile < 8 ? stage + tile * TILE_BYTES : ninth) + i));
        if (MLA_MUTANT != 5)
            fence_proxy_async();
        bar_sync(2, 128);
    }
}

/* Issues S = Q·K^T of a stage. */
template <class T, class S>
__device__ __forceinline__ void issue_scores(float (&s)[KEYS / 2], const u32 (&q)[S::HELD * 4][4],
                                             u32 smem, const item_place<S> &at)
{
    const u64 a = wgmma_desc(smem + S::q_at, 16, 1024, 128);
    const u64 b = wgmma_desc(smem + S::k_at + at.in.stage * S::stage_bytes, 16, 1024, 128);
    const u64 ninth = wgmma_desc(smem + S::ninths_at + at.ninth.stage * TILE_BYTES, 16, 1024, 128);
    mbarrier_wait(smem + S::k_left + at.in.stage * 8, at.in.phase);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < S::TILES * 4; i++) {
        if (i == 16) {
            if (MLA_MUTANT != 7)
                mbarrier_wait(smem + S::k_right + at.in.stage * 8, at.in.phase);
            wgmma_fence();
        }
        if (i == 32) {
            mbarrier_wait(smem + S::k_rope + at.ninth.stage * 8, at.ninth.phase);
            wgmma_fence();
        }
        const u64 keys = desc_advance(i < 32 ? b : ninth, i % 32 / 4 * TILE_BYTES + i % 4 * 32);
        if (i < S::HELD * 4)
            wgmma_rs<T, KEYS>(s, q[i < S::HELD * 4 ? i : 0], keys, i > 0);
        else
            wgmma_ss<T, KEYS>(s, desc_advance(a, (i / 4 - S::HELD) * TILE_BYTES + i % 4 * 32), keys,
                              i > 0);
    }
    wgmma_commit();
    if (S::TILES == 8) /* P's place */
        mbarrier_wait(smem + S::k_rope + at.ninth.stage * 8, at.ninth.phase);
}

/* Keys of a block that are there. */
template <class S> __device__ __forceinline__ u64 valid_keys(u32 smem, const item_place<S> &at)
{
    return ld_shared<u64>(smem + S::valid_at + (at.in.phase * S::STAGES + at.in.stage) * 8);
}

/* Keys of block j, of the work, that a row sees: bit i = key i. */
template <class S>
__device__ __forceinline__ u64 seen_keys(const struct mla_mqa_args &a, u32 note, u32 smem,
                                         const item_place<S> &at, int j, int row)
{
    const u64 bits =
        ld_shared<u64>(smem + S::valid_at + (at.in.phase * S::STAGES + at.in.stage) * 8);
    if (a.topk)
        return bits;
    const int rows = ld_shared<int>(note + NOTE_ROWS), row0 = ld_shared<int>(note + NOTE_ROW0);
    const int token = a.causal ? (row0 + min(row, rows - 1)) / a.heads : 0;
    const int left = ld_shared<int>(note + NOTE_LIMIT) - ld_shared<int>(note + NOTE_FIRST) + token +
                     (MLA_MUTANT == 6 ? 1 : 0) - j * KEYS;
    return bits & ((u64)bits_below(left - 32) << 32 | bits_below(left));
}

/* Zeros the values of a stage from key `first` on: no row sees them. */
template <class S> __device__ __forceinline__ void clear_keys(u32 smem, u32 stage, int first)
{
    const u32 at = smem + S::k_at + stage * S::stage_bytes;
#pragma unroll 1
    for (int i = max(0, first) * 64 + (int)threadIdx.x % 128; i < KEYS * 64; i += 128)
        st_shared(at + (u32)(i / 64 * 128 + i % 64 / 8 * TILE_BYTES + i % 8 * 16),
                  make_uint4(0, 0, 0, 0));
}

/* Softmax of a stage's scores, all of which are done in this warp; P and the factors of what was
 * summed before go to the stage. masked: some row does not see some key; no row sees keys from `seen`
 * on. */
template <class T, class S>
__device__ __forceinline__ void weigh(const struct mla_mqa_args &a, u32 note, bool masked, int seen,
                                      float (&s)[KEYS / 2], u32 smem, const item_place<S> &at,
                                      int j, struct score_rows *r)
{
    const u32 to = smem + S::ninths_at + at.ninth.stage * TILE_BYTES;
    /* Scores times scale grow with scores; if they do not, scores are scaled first. */
    float scale = a.scale_log2;
    if (!(scale > 0)) {
#pragma unroll
        for (int i = 0; i < KEYS / 2; i++)
            s[i] *= scale;
        scale = 1;
    }
    if (masked) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const u64 bits = seen_keys<S>(a, note, smem, at, j, score_row() + half * 8);
            const u32 t = thread_again() & 3;
            const u32 low = (u32)bits >> 2 * t, high = (u32)(bits >> 32) >> 2 * t;
#pragma unroll
            for (int i = 0; i < KEYS / 8; i++)
#pragma unroll
                for (int e = 0; e < 2; e++)
                    if (!((i < 4 ? low : high) >> (i % 4 * 8 + e) & 1))
                        s[4 * i + half * 2 + e] = -INFINITY;
        }
    }
    u32 p[KEYS / 8][2];
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
        const float before = r->top[half];
        r->top[half] = fmaxf(before, best[0] * scale);
        /* -inf before the first key: any finite reference gives weights 0. */
        const float reference = r->top[half] == -INFINITY ? 0 : r->top[half];
        const float factor = r->top[half] == before ? 1 : ex2_approx_ftz(before - reference);
        float total[2] = {0, 0};
#pragma unroll
        for (int i = 0; i < KEYS / 8; i++) {
            const float x = ex2_approx_ftz(fmaf(s[4 * i + half * 2], scale, -reference));
            const float y = ex2_approx_ftz(fmaf(s[4 * i + half * 2 + 1], scale, -reference));
            total[0] += x;
            total[1] += y;
            p[i][half] = T::pack(x, y);
        }
        r->sum[half] = fmaf(r->sum[half], factor, total[0] + total[1]);
        if ((thread_again() & 3) == 0)
            st_shared(smem + S::factors_at + (at.in.stage * ROWS + (u32)score_row() + half * 8) * 4,
                      MLA_MUTANT == 2 ? 1.0f : factor);
    }
    /* P goes where keys' rope was: all four warps' scores are done. */
    if (MLA_MUTANT != 4)
        bar_sync(2, 128);
    if (seen < KEYS && MLA_MUTANT != 8)
        clear_keys<S>(smem, at.in.stage, seen);
    const u32 row = (u32)score_row(), t = thread_again() & 3;
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
        for (int i = 0; i < KEYS / 8; i++)
            st_shared(to + (row + half * 8) * 128 + (((u32)i ^ (row & 7)) << 4) + t * 4,
                      p[i][half]);
    if (MLA_MUTANT != 3)
        fence_proxy_async();
    release(smem + S::p_full + at.in.stage * 8);
}

/* Denominators: lse and max_logits or their partial values; each row's factor and where its output
 * begins (-1: nowhere) go to the work's slot. */
__device__ __forceinline__ void end_scores(const struct mla_mqa_args &a,
                                           const struct decode_note &n, u32 ends, u32 places,
                                           int row0, const struct score_rows &r)
{
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int row = row0 + half * 8, at = n.row0 + row, head = at % a.heads;
        const int64_t token = n.q_start + at / a.heads;
        const bool there = row < n.rows, sink = there && !n.split && a.sink;
        float sum = r.sum[half], lse_log2;
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        if (threadIdx.x & 3)
            continue;
        const float factor = finish_row(r.top[half], sum, sink, sink ? a.sink[head] : 0, &lse_log2);
        int64_t to = token * a.out_stride[0] + head * a.out_stride[1];
        if (n.split)
            to = lse_log2 == -INFINITY ? -1 : (n.part + row) * MLA_MQA_LATENT;
        st_shared(ends + row * 4, factor);
        st_shared(places + row * 8, there ? to : (int64_t)-1);
        if (!there)
            continue;
        if (n.split) {
            a.part_lse[n.part + row] = lse_log2;
            a.part_max[n.part + row] = r.top[half];
            continue;
        }
        if (a.lse)
            a.lse[token * a.lse_stride[0] + head * a.lse_stride[1]] = lse_log2 * a.lse_unit;
        if (a.max_logits)
            a.max_logits[token * a.max_stride[0] + head * a.max_stride[1]] =
                r.top[half] * 0.693147181f;
    }
}

/* SCORES, until a note says that there are no more works. BRING:
 *   begin   by all warps of SCORES before a work, whose note is waited for behind it */
template <class T, class S, class BRING>
__device__ __forceinline__ void attend_scores(const struct mla_mqa_args &a, const BRING &bring,
                                              u32 smem)
{
    u32 works = 0;
    struct item_place<S> now;
    ring<2> scored;
    for (;; works++) {
        const u32 slot = works % S::SLOTS, note = smem + S::works_at + slot * NOTE_BYTES;
        bring.begin(smem, works);
        mbarrier_wait(smem + S::work_full + slot * 8, works / S::SLOTS & 1);
        if (ld_shared<int>(note + NOTE_STEPS) < 0)
            return;
        struct score_rows r = {{-INFINITY, -INFINITY}, {0, 0}};
        if (ld_shared<int>(note + NOTE_STEPS) > 0) {
            u32 q[S::HELD * 4][4];
            take_queries<S>(q, smem, now);
            release(smem + S::p_full + now.in.stage * 8);
            now.next();
            const int steps = ld_shared<int>(note + NOTE_STEPS);
            const int boxes = ld_shared<int>(note + NOTE_BOXES);
            int seen = ld_shared<int>(note + NOTE_SEEN);
#pragma unroll 1
            for (int j = 0; j < steps; j++, seen -= KEYS) {
                float s[KEYS / 2];
                issue_scores<T, S>(s, q, smem, now);
                release(smem + S::s_full + scored.stage * 8);
                const bool masked = j >= boxes || valid_keys<S>(smem, now) != ~(u64)0;
                wgmma_wait<0>();
                scored.next();
                wgmma_bind(s);
                weigh<T, S>(a, note, masked, seen, s, smem, now, j, &r);
                now.next();
            }
        }
        works = ld_shared<u32>(note + NOTE_NUMBER);
        if (works >= 2) /* who has read what lies there */
            mbarrier_wait(smem + S::work_free + (works - 2) % S::SLOTS * 8,
                          (works - 2) / S::SLOTS & 1);
        end_scores(a, read_note(note), smem + S::ends_at + works % 2 * ROWS * 4,
                   smem + S::places_at + works % 2 * ROWS * 8, score_row(), r);
        release(smem + S::end_full + slot * 8);
        release(smem + S::work_free + slot * 8);
    }
}

/* ------------------------------------------------------------------- values */

/* Issues O += P·V of a stage, V of columns 256 · half on, which lies [key][column]: transposed.
 * N: columns an instruction; with 512 threads a block ptxas has no registers for 256. */
template <class T, class S, int N>
__device__ __forceinline__ void issue_values(float (&o)[128], u32 smem, const item_place<S> &at,
                                             int half)
{
    const u32 v = smem + S::k_at + at.in.stage * S::stage_bytes + half * 4 * TILE_BYTES;
    const u64 a = wgmma_desc(smem + S::ninths_at + at.ninth.stage * TILE_BYTES, 16, 1024, 128);
    const u64 b = wgmma_desc(v, TILE_BYTES, 1024, 128);
    wgmma_bind(o);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < KEYS / 16; i++)
#pragma unroll
        for (int n = 0; n < 256; n += N)
            wgmma_ss<T, N, 0, 1>(*(float(*)[N / 2]) & o[n / 2], desc_advance(a, i * 32),
                                 desc_advance(b, n / 64 * TILE_BYTES + i * 2048), true);
    wgmma_commit();
}

/* VALUES 0 or 1. wide: rows of out are multiples of 16 bytes apart. BRING:
 *   asks     what a warp remembers
 *   refill   before a work's queries, and when a warp has read the item before `now` (read = 1) and
 *            has said so; known: works whose notes are there
 */
template <class T, class S, int N, class BRING>
__device__ __forceinline__ void attend_values(const struct mla_mqa_args &a, const BRING &bring,
                                              bool wide, u32 smem, int half)
{
    const u32 row = threadIdx.x / 32 % 4 * 16 + threadIdx.x % 32 / 4;
    const u32 free = smem + (half ? S::right_free : S::left_free);
    u32 works = 0;
    struct item_place<S> now;
    typename BRING::asks asks;
    ring<2> scored;
    for (;; works++) {
        const u32 slot = works % S::SLOTS, note = smem + S::works_at + slot * NOTE_BYTES;
        mbarrier_wait(smem + S::work_full + slot * 8, works / S::SLOTS & 1);
        int steps = ld_shared<int>(note + NOTE_STEPS);
        if (steps < 0)
            return;
        const bool in_turn = steps >= LONG_WORK;
        float o[128];
#pragma unroll
        for (int i = 0; i < 128; i++)
            o[i] = 0;
        if (steps > 0) { /* queries */
            bring.refill(smem, now, half, works + 1, 0, &asks);
            mbarrier_wait(smem + S::p_full + now.in.stage * 8, now.in.phase);
            release(free + now.in.stage * 8);
            now.next();
            bring.refill(smem, now, half, works + 2, 1, &asks);
        }
#pragma unroll 1
        for (; steps > 0; steps--) {
            mbarrier_wait(smem + S::p_full + now.in.stage * 8, now.in.phase);
            const u32 factors = smem + S::factors_at + (now.in.stage * ROWS + row) * 4;
            const float factor[2] = {ld_shared<float>(factors), ld_shared<float>(factors + 32)};
            rescale(o, factor);
            scored.next();
            if (in_turn && steps > 1)
                mbarrier_wait(smem + S::s_full + scored.stage * 8, scored.phase);
            issue_values<T, S, N>(o, smem, now, half);
            wgmma_wait<0>();
            wgmma_bind(o);
            release(free + now.in.stage * 8);
            now.next();
            bring.refill(smem, now, half, works + 2, 1, &asks);
        }
        mbarrier_wait(smem + S::end_full + slot * 8, works / S::SLOTS & 1);
        const u32 end = works % 2 * ROWS + row;
        const float factors[2] = {ld_shared<float>(smem + S::ends_at + end * 4),
                                  ld_shared<float>(smem + S::ends_at + end * 4 + 32)};
        const int64_t to[2] = {ld_shared<int64_t>(smem + S::places_at + end * 8),
                               ld_shared<int64_t>(smem + S::places_at + end * 8 + 64)};
        const bool split = ld_shared<int>(note + NOTE_SPLIT);
        store_columns(a, wide, split, half, to, factors, o);
        release(smem + S::work_free + slot * 8);
    }
}

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* What every role of mha_prefill.cu knows: the block's layout, its share of the work, the walk over
 * key tiles, and the arithmetic of one row's softmax. */
#ifndef MLA_CUDA_SM100_MHA_PREFILL_CUH
#define MLA_CUDA_SM100_MHA_PREFILL_CUH

#include "element.cuh"
#include "mha_prefill.h"
#include "ptx/convert.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/shared.cuh"
#include "ptx/tcgen05.cuh"
#include "ring.cuh"

#include <math_constants.h>

/* Faults that checks must find: mutants.def. */
#define MLA_MUTATED(number, wrong, right) (MLA_MUTANT == (number) ? (wrong) : (right))

/* ------------------------------------------------------------------ layout */

template <int D_QK_, int D_V_> struct mha_shape {
    static const int D_QK = D_QK_, D_V = D_V_;
    static const int SLOT = 16384; /* bytes: 128 rows of 128 bytes */
    static const int ROWS = MLA_MHA100_ROWS, KEYS = MLA_MHA100_KEYS;
    /* Query tiles in flight, each with its own O; S and P always have two places. */
    static const int TILES = 512 - 2 * KEYS >= 2 * D_V ? 2 : 1;
    static const int K_SLOTS = D_QK / 64, V_SLOTS = D_V / 64, V_KEYS = KEYS / V_SLOTS;
    static const int ALL_SLOTS = 14, SLOTS = ALL_SLOTS - TILES * K_SLOTS;

    /* Warps: softmax, correction, then one warp each for MMA, loads and V's dead rows. */
    static const int CORRECTION = TILES * 4, MMA = CORRECTION + 4, LOAD = MMA + 1, CLEAN = MMA + 2,
                     WARPS = MMA + 4;
    static const int THREADS = WARPS * 32;
    /* Registers a thread, from setmaxnreg on. */
    static const int LAUNCH_REGISTERS = 65536 / THREADS / 8 * 8;
    static const int SOFTMAX_REGISTERS = TILES == 2 ? 200 : 240;
    static const int CORRECTION_REGISTERS = TILES == 2 ? 64 : 152;
    static const int OTHER_REGISTERS = TILES == 2 ? 48 : 96;
    static_assert(TILES * SOFTMAX_REGISTERS + CORRECTION_REGISTERS + OTHER_REGISTERS <= 512,
                  "128 threads each of 65536 registers");

    /* TMEM columns. P, two keys a column, covers the upper half of the S it was made from. */
    static const int S = 0, P = 64, O = 2 * KEYS, TMEM = 512;
    static_assert(O + TILES * D_V <= TMEM, "S0, S1 and O fill tensor memory");

    /* Shared memory. */
    static const int Q = 0, RING = TILES * K_SLOTS * SLOT, BARS = ALL_SLOTS * SLOT;
    static const int Q_FULL = BARS, Q_FREE = Q_FULL + 8 * TILES;
    static const int K_FULL = Q_FREE + 8 * TILES, V_FULL = K_FULL + 8 * SLOTS;
    static const int READY = V_FULL + 8 * SLOTS, FREE = READY + 8 * SLOTS;
    static const int S_FULL = FREE + 8 * SLOTS, P_READY = S_FULL + 16, P_MORE = P_READY + 16,
                     FACTOR_FULL = P_MORE + 16;
    static const int O_FULL = FACTOR_FULL + 16, WEIGHT_FULL = O_FULL + 8 * TILES,
                     WEIGHT_FREE = WEIGHT_FULL + 8 * TILES;
    static const int TMEM_BASE = WEIGHT_FREE + 8 * TILES;
    static const int FACTOR = (TMEM_BASE + 4 + 127) / 128 * 128, WEIGHT = FACTOR + 2 * ROWS * 4;
    static const int BYTES = WEIGHT + TILES * ROWS * 4;
    static_assert(BYTES <= 232448, "shared memory of a block");
};

/* -------------------------------------------------------------------- work */

/* A head and a block of query rows: TILES tiles of 128. */
struct mha_work {
    int head, head_kv;
    int first;     /* row of the request */
    int count;     /* rows that exist */
    int64_t batch; /* first row in the batch */
    int64_t mask;  /* first row in the mask */
    int tile;      /* in columns */
    int keys;      /* of the request in this run */
    int shift;     /* row i of the request sees keys < shift + i (causal) */
    int end;       /* keys that any row may see by causality */
    int64_t kv_start;
    const u32 *alive; /* of the request, or NULL */
};

/* The n-th work of this block: there and back over the blocks, so that with the longest first all
 * get about the same. Blocks that run together share a group of heads, whose keys stay in L2. */
template <class L>
__device__ __forceinline__ bool nth_work(const struct mla_mha100_args &x, int n, struct mha_work *w)
{
    const struct mla_mha_args &a = x.a;
    const int blocks = gridDim.x, block = blockIdx.x;
    const int64_t at = (int64_t)n * blocks + ((n & 1) ? blocks - 1 - block : block);
    if (at >= x.works)
        return false;
    const int whole = a.tiles * MLA_MHA_HEADS; /* works of a group */
    const int group = (int)(at / whole), within = (int)(at % whole);
    const int heads = min((int)MLA_MHA_HEADS, a.heads - group * MLA_MHA_HEADS);
    const struct mla_mha_place place = a.order[within / heads];
    const struct mla_mha_segment *s = &a.segments[place.segment];
    const int row = place.tile * L::TILES * L::ROWS; /* of the segment */
    w->head = group * MLA_MHA_HEADS + within % heads;
    w->head_kv = w->head / (a.heads / a.heads_kv);
    w->first = s->row0 + row;
    w->count = min(L::TILES * L::ROWS, s->rows - row);
    w->batch = (int64_t)s->q_start + w->first;
    w->mask = a.whole_mask ? w->batch : (int64_t)s->first_row + row;
    w->tile = s->first_tile + place.tile;
    w->keys = a.seq_lens_kv ? min(max(a.seq_lens_kv[s->index], 0), s->seq_len_kv) : s->seq_len_kv;
    w->shift = w->keys - s->query_len + 1;
    w->end = a.causal ? max(0, min(w->keys, w->shift + w->first + w->count - 1)) : w->keys;
    w->kv_start = s->kv_start;
    w->alive = a.alive ? a.alive + s->first_word : NULL;
    return true;
}

/* Keys that the rows of query tile t may see: tiles of keys from there on are not its business. */
template <class L>
__device__ __forceinline__ int limit_of(const struct mla_mha100_args &x, const struct mha_work &w,
                                        int t)
{
    const int rows = min(w.count - t * L::ROWS, (int)L::ROWS);
    if (rows <= 0)
        return 0;
    return x.a.causal ? max(0, min(w.keys, w.shift + w.first + t * L::ROWS + rows - 1)) : w.keys;
}

/* The tiles of keys that hold a key which some row may see. Each lane keeps the bits of one of 32
 * tiles; all lanes of the warp step together. */
struct mha_walk {
    int next = 0; /* first key of the 32 tiles after these */
    u32 live = 0; /* of these, tiles still to come that are not empty */
    int lane = 0; /* that holds the current tile's bits */
    u32 mine[4];
};

/* First key of the next tile, or the work's end. */
__device__ __forceinline__ int next_tile(const struct mla_mha100_args &x, const struct mha_work &w,
                                         struct mha_walk *walk)
{
    while (walk->live == 0) {
        if (walk->next >= w.end)
            return w.end;
        const int key = walk->next + (int)(threadIdx.x % 32) * MLA_MHA100_KEYS;
        u32 any = 0;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int left = w.end - key - i * 32, word = key / 32 + i;
            u32 bits = left >= 32 ? ~0u : left > 0 ? (1u << left) - 1 : 0;
            if (bits && x.a.columns)
                bits &= x.a.columns[(int64_t)w.tile * x.a.words + word];
            if (bits && w.alive)
                bits &= w.alive[word];
            walk->mine[i] = bits;
            any |= bits;
        }
        walk->live = __ballot_sync(~0u, any != 0);
        walk->next += 32 * MLA_MHA100_KEYS;
    }
    walk->lane = __ffs((int)walk->live) - 1;
    walk->live &= walk->live - 1;
    return walk->next - (32 - walk->lane) * MLA_MHA100_KEYS;
}

/* The current tile's keys that some row may see. */
__device__ __forceinline__ void seen_keys(const struct mha_walk &walk, u32 (&seen)[4])
{
#pragma unroll
    for (int i = 0; i < 4; i++)
        seen[i] = __shfl_sync(~0u, walk.mine[i], walk.lane);
}

__device__ __forceinline__ bool all_seen(const u32 (&seen)[4])
{
    return (seen[0] & seen[1] & seen[2] & seen[3]) == ~0u;
}

/* ----------------------------------------------------------------- softmax */

/* 2^x of two numbers up to about 100 on the FMA pipes, within 2^-23: 2^x = 2^n · p(x - n), n the
 * nearest integer, added to p's exponent. -127 and below give exactly 0, as the result's bits are
 * then those of p(0) = 1 less 127 exponents. */
__device__ __forceinline__ u64 exp2_by_fma(u64 two)
{
    const float round = 12582912; /* 1.5 · 2^23: its sum with x ends in n */
    float low, high, n_low, n_high;
    unpack_f32x2(&low, &high, two);
    const u64 x = pack_f32x2(fmaxf(low, -127), fmaxf(high, -127));
    const u64 n = add_rn_f32x2(x, pack_f32x2(round, round));
    const u64 whole = add_rn_f32x2(n, pack_f32x2(-round, -round));
    const u64 f = fma_rn_f32x2(whole, pack_f32x2(-1, -1), x);
    u64 p = pack_f32x2(1.55946778e-4f, 1.55946778e-4f);
    p = fma_rn_f32x2(p, f, pack_f32x2(1.34066434e-3f, 1.34066434e-3f));
    p = fma_rn_f32x2(p, f, pack_f32x2(9.61769279e-3f, 9.61769279e-3f));
    p = fma_rn_f32x2(p, f, pack_f32x2(5.55031039e-2f, 5.55031039e-2f));
    p = fma_rn_f32x2(p, f, pack_f32x2(0.240226522f, 0.240226522f));
    p = fma_rn_f32x2(p, f, pack_f32x2(0.693147242f, 0.693147242f));
    p = fma_rn_f32x2(p, f, pack_f32x2(1, 1));
    unpack_f32x2(&low, &high, p);
    unpack_f32x2(&n_low, &n_high, n);
    return pack_f32x2(__uint_as_float(__float_as_uint(low) + (__float_as_uint(n_low) << 23)),
                      __uint_as_float(__float_as_uint(high) + (__float_as_uint(n_high) << 23)));
}

/* A row so far. Weights are 2^(score · scale - base); base follows the largest score only when that
 * has grown by 2^8, so that O is rescaled rarely. The weights then stay below 2^8: far from the end
 * of f16. */
struct mha_row {
    float top;    /* the largest score */
    float at;     /* the score that base was made from */
    float base;   /* at · scale, 0 before the first key */
    float sum[2]; /* of weights of even and odd keys */
};

__device__ __forceinline__ void hide(u32 (&s)[4][32], const u32 (&visible)[4])
{
#pragma unroll
    for (int c = 0; c < 4; c++)
#pragma unroll
        for (int i = 0; i < 32; i++)
            if (!(visible[c] & 1u << i))
                s[c][i] = __float_as_uint(-CUDART_INF_F);
}

/* Takes the scores of a tile in; returns what O and the sum of earlier tiles must be multiplied
 * by. */
__device__ __forceinline__ float take_scores(const u32 (&s)[4][32], struct mha_row *r, float scale)
{
    float top[4] = {r->top, -CUDART_INF_F, -CUDART_INF_F, -CUDART_INF_F};
#pragma unroll
    for (int i = 0; i < 32; i += 2)
#pragma unroll
        for (int c = 0; c < 4; c++)
            top[c] = max3_f32(top[c], __uint_as_float(s[c][i]), __uint_as_float(s[c][i + 1]));
    r->top = fmaxf(max3_f32(top[0], top[1], top[2]), top[3]);
    /* False where neither is finite; true where the row sees its first key. */
    if (!((r->top - r->at) * scale > 8))
        return 1;
    const float base = r->top * scale, shrink = ex2_approx_ftz(r->at * scale - base);
    r->at = r->top;
    r->base = base;
    r->sum[0] *= shrink;
    r->sum[1] *= MLA_MUTATED(20, 1.0f, shrink);
    return shrink;
}

/* Scores of 32 keys become weights, two a word; every fourth pair by FMA where FMA is set. */
template <class T, bool FMA>
__device__ __forceinline__ void make_weights(const u32 (&s)[32], u32 (&p)[16], struct mha_row *r,
                                             float scale)
{
    const u64 scales = pack_f32x2(scale, scale), base = pack_f32x2(-r->base, -r->base);
    u64 sum = pack_f32x2(r->sum[0], r->sum[1]);
#pragma unroll
    for (int i = 0; i < 16; i++) {
        u64 two = pack_f32x2(__uint_as_float(s[2 * i]), __uint_as_float(s[2 * i + 1]));
        float low, high;
        two = fma_rn_f32x2(two, scales, base);
        if (FMA && i % 4 == 1) {
            two = exp2_by_fma(two);
            unpack_f32x2(&low, &high, two);
        } else {
            unpack_f32x2(&low, &high, two);
            low = ex2_approx_ftz(low);
            high = ex2_approx_ftz(high);
            two = pack_f32x2(low, high);
        }
        sum = add_rn_f32x2(sum, two);
        p[i] = T::pack(low, high);
    }
    unpack_f32x2(&r->sum[0], &r->sum[1], sum);
}

/* Writes lse and max_logits of a row and returns what its O is to be multiplied by. */
__device__ __forceinline__ float finish_row(const struct mla_mha100_args &x,
                                            const struct mha_work &w, const struct mha_row &r,
                                            int row)
{
    const struct mla_mha_args &a = x.a;
    const float log2e = 1.4426950408889634f, total = r.sum[0] + r.sum[1];
    const float sink = a.sink ? a.sink[w.head] * log2e : -CUDART_INF_F;
    const bool empty = r.top == -CUDART_INF_F;
    float lse = empty ? -CUDART_INF_F : r.base + log2f(total);
    /* Weight of the keys beside the sink: 2^lse / (2^lse + 2^sink). */
    float weight = empty ? 0 : 1 / total;
    if (sink > -CUDART_INF_F) {
        const float high = fmaxf(lse, sink);
        const float both =
            isinf(high) ? high : high + log2f(exp2f(lse - high) + exp2f(sink - high));
        weight = isinf(both) ? 0 : weight * exp2f(lse - both);
        lse = both;
    }
    if (row < w.count) {
        const int64_t t = w.batch + row;
        if (a.lse)
            a.lse[t * a.lse_stride[0] + w.head * a.lse_stride[1]] = lse * a.lse_unit;
        if (a.max_logits)
            a.max_logits[t * a.max_stride[0] + w.head * a.max_stride[1]] =
                r.top * a.scale_log2 * 0.69314718055994531f;
    }
    return weight;
}

/* ------------------------------------------------------------------ output */

/* 32 columns of a row from `column` on. A row without weight is zero even where O holds nothing
 * finite. */
__device__ __forceinline__ void store_columns(const struct mla_mha100_args &x, char *row,
                                              int column, const u32 (&o)[32], float weight)
{
    const struct mla_mha_args &a = x.a;
    float y[32];
#pragma unroll
    for (int i = 0; i < 32; i++)
        y[i] = weight == 0 ? 0 : __uint_as_float(o[i]) * weight;
    if (a.out_dtype == MLA_F32) {
#pragma unroll
        for (int i = 0; i < 32; i += 4) {
            float *to = (float *)row + column + i;
            if (x.out_aligned && column + i + 4 <= a.d_v) {
                *(float4 *)to = make_float4(y[i], y[i + 1], y[i + 2], y[i + 3]);
                continue;
            }
            if (column + i < a.d_v)
                *(float2 *)to = make_float2(y[i], y[i + 1]);
            if (column + i + 2 < a.d_v)
                *(float2 *)(to + 2) = make_float2(y[i + 2], y[i + 3]);
        }
        return;
    }
#pragma unroll
    for (int i = 0; i < 32; i += 8) {
        u32 *to = (u32 *)(row + (column + i) * 2);
        u32 two[4];
        if (column + i >= a.d_v) /* a multiple of 8 */
            break;
#pragma unroll
        for (int j = 0; j < 4; j++)
            two[j] = a.out_dtype == MLA_BF16 ? cvt_rn_bf16x2_f32(y[i + 2 * j], y[i + 2 * j + 1])
                                             : cvt_rn_f16x2_f32(y[i + 2 * j], y[i + 2 * j + 1]);
        if (x.out_aligned) {
            *(uint4 *)to = make_uint4(two[0], two[1], two[2], two[3]);
            continue;
        }
#pragma unroll
        for (int j = 0; j < 4; j++)
            to[j] = two[j];
    }
}

#endif

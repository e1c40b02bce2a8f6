/* SPDX-License-Identifier: Apache-2.0 */
/* mqa_decode: absorbed-form attention for at most 64 query rows on tcgen05 (sm_100f):
 * out = softmax(scale · q · K^T) · K[:, :512]. Dense (causal, bitmask, flat or paged) and over
 * top-k lists, plain caches and packed records. More rows: mqa_decode_pair.cu.
 *
 * Rows are (query token, head) pairs of one request, 16, 32 or 64 of them a block; over a list,
 * heads of one token. Few rows would waste an MMA whose M is rows, so operands are swapped: keys
 * are M of the scores, columns of out are M of the output, rows are N of both.
 *   S^T [64 keys x ROWS]              = K [64 x 576] · Q^T       M 64, K-major, K-major
 *   O^T [4 x 128 columns x ROWS]     += V^T [128 x 64] · P^T     M 128, both MN-major
 * One tile of K in shared memory is both operands: 64 keys x 64 columns with 128-byte swizzle is K
 * by rows and V^T by columns.
 *
 * Roles                        registers, ROWS 16 and 32 (16 warps)   64 (20 warps)
 *   softmax   0-3   152          0-7    80   S^T from TMEM, maximum, P, rescale of O^T; results
 *   loaders   4-11  152          8-15  136   keys that TMA can't bring: see mqa_decode.cuh
 *   scores    12     56          16     48   one thread issues S^T of tile t + 1 during softmax of t
 *   output    13     56          17     48   one thread issues O^T
 *   tma       14     56          18     48   whole tiles of plain dense caches
 *   none      15     56          19     48   completes a warpgroup
 * With 64 rows two warpgroups have the softmax of half of the rows each: one took so long for all
 * that keys waited.
 *
 * Shared memory, bytes (of 232448)   ROWS 16        32       64
 *   keys, stages of two bands 16384  11 180224  10 163840  8 131072
 *   rope bands, stages of 8192        2  16384   2  16384  1   8192
 *   Q, 9 bands x ROWS x 128              18432      36864     73728
 *   P^T, 64 x ROWS x 2                    2048       4096      8192
 *   maxima, bases, factors, limits        1088       2176      4352
 *   barriers, TMEM address                 272        256       208
 * TMEM columns: O^T 4 x ROWS from 0, S^T 2 x ROWS from 4 · ROWS; 128, 256, 512 allocated. S^T of
 * M 64 uses lanes 0 to 15 of each warp's 32.
 *
 * Barriers           count   arrive                            wait
 *   full[stage]          8   loader warps, or TMA + bytes      scores
 *   empty[stage]         1   commit of output                  loaders, tma        (start free)
 *   rope_full, _empty  8, 1  the same; commit of scores        scores; loaders, tma
 *   s_full[2]            1   commit of scores                  softmax
 *   s_free[2]   128 or 256   softmax has loaded S^T            scores              (start free)
 *   p_full      128 or 256   P^T is written, O^T rescaled      output
 *   out_done             1   commit of output                  softmax, before it touches O^T, P^T
 *   handed               1   tma, after its last tile          loaders, which go on with the stages
 *
 * Timeline, tile t:  keys(t+2) land | S(t+1) | softmax(t) | O(t), frees two bands after another.
 *
 * Cycles a tile of 64 keys at 1.85 GHz, 148 SMs; HBM gives an SM 29.2 bytes a clock, its shared
 * memory 128.
 *                              HBM: bf16  fp8_ds_mla  model1   v41  nvfp4
 *                                   2525        1438    1279  1157    771
 *                                ROWS 16          32      64
 *   tensor core, S^T + O^T     288 + 128   576 + 256  1152 + 512    (M 64 runs at half rate)
 *   shared memory: keys written      576         576         576
 *     S^T reads K and Q        576 + 144   576 + 288   576 + 576
 *     O^T reads V and P         512 + 64   512 + 128   512 + 256
 *     sum                           1872        2080        2496
 *     packed: raw through L1    + 328 of fp8_ds_mla, 292, 264, 176
 *   ex2, P to memory                   ~100        ~200        ~400
 * bf16: HBM binds with 16 and 32 rows (shared memory 74 and 82 % busy); with 64 rows both are even
 * (99 %), so that 85 % of the roofline is what can be hoped for, not more. Packed records: the
 * shared-memory port binds, since a key crosses it as 1152 + 1152 + 1024 bytes beside its raw form:
 * fp8_ds_mla reaches 65, 60 and 51 % of HBM's time at 16, 32 and 64 rows.
 *
 * NaN. A key that the block does not see is written as zeros, and its score is -inf. A key that one
 * row of the block sees is multiplied by P = 0 in others.
 * Rounding. Scores and output accumulate in fp32; P = 2^(score - base), less than 2^8, rounded to 16
 * bits; base follows the running maximum when that has grown by 2^8 (so that O^T is rescaled
 * rarely). The row sum adds unrounded P in fp32. One order of additions: results repeat
 * bit by bit.
 * Limits. Latent width 512, rope 64 or 0; packed records under bf16 queries. Rows and keys that are
 * not 16-byte aligned (model1: odd page sizes) go to the portable kernel. */
#include "mqa_decode.cuh"
#include "ptx/barrier.cuh"
#include "ptx/launch.cuh"
#include "ptx/tcgen05.cuh"
#include "ptx/tma.cuh"
#include "ptx/warp.cuh"
#include "ring.cuh"

static const int TEAM_WARPS = 4; /* a warpgroup reaches all lanes of TMEM: warp % 4 */
static const int LOADER_WARPS = LOADERS / 32;

/* Warps of a block, and registers a thread. 64 rows are too many for one warpgroup's softmax: two
 * take half of them each. */
template <int ROWS> struct crew {
    static const int teams = ROWS == 64 ? 2 : 1, team_rows = ROWS / teams;
    static const int loader_warp = TEAM_WARPS * teams, score_warp = loader_warp + LOADER_WARPS;
    static const int out_warp = score_warp + 1, tma_warp = out_warp + 1;
    /* One warp more makes whole warpgroups, which is what registers are handed out to. */
    static const int threads = 32 * (tma_warp + 2);
    static const int at_launch = 65536 / threads / 8 * 8;
    static const int softmax = ROWS == 64 ? 80 : 152, loader = ROWS == 64 ? 136 : 152,
                     other = ROWS == 64 ? 48 : 56;
    static_assert(128 * (teams * softmax + 2 * loader + other) == threads * at_launch,
                  "registers of a block");
};
static const int PAIR_BYTES = 2 * BAND_BYTES;
static const int TILE_PAIRS = LATENT_BANDS / 2;
static const int DIM_GROUPS = MLA_MQA_LATENT / 128; /* accumulators, 128 columns of out each */

template <int ROWS> struct tile {
    static const int pairs = ROWS == 16 ? 11 : ROWS == 32 ? 10 : 8; /* stages of the key ring */
    static const int ropes = ROWS == 64 ? 1 : 2;
    static const int rope_at = pairs * PAIR_BYTES;
    static const int q_at = rope_at + ropes * BAND_BYTES;
    static const int q_band = ROWS * 128;
    static const int p_at = q_at + MOST_BANDS * q_band;
    static const int p_bytes = KEYS * ROWS * 2;
    static const int exchange_at = p_at + p_bytes; /* [2][warp][row] floats */
    static const int exchange_half = TEAM_WARPS * ROWS * 4;
    static const int factors_at = exchange_at + 2 * exchange_half; /* [warp][row] floats */
    static const int bases_at = factors_at + exchange_half;        /* [warp][row] floats */
    static const int limits_at = bases_at + exchange_half;         /* [row] ints */
    static const int bars_at = limits_at + ROWS * 4;
    static const int full = 0, empty = full + pairs, rope_full = empty + pairs,
                     rope_empty = rope_full + ropes, s_full = rope_empty + ropes,
                     s_free = s_full + 2, p_full = s_free + 2, out_done = p_full + 1,
                     handed = out_done + 1, bars = handed + 1;
    static const int tmem_at = bars_at + bars * 8;
    static const int shared_bytes = tmem_at + 8;
    static const int s_column = DIM_GROUPS * ROWS; /* scores, two buffers */
    static const int columns = ROWS == 16 ? 128 : ROWS == 32 ? 256 : 512;
    static_assert(s_column + 2 * ROWS <= columns, "TMEM: output and two buffers of scores");
    static_assert(shared_bytes <= MOST_SHARED, "227 KiB a block");
    static_assert(bars_at % 8 == 0 && q_band % 1024 == 0 && p_at % 1024 == 0, "alignment");
    /* P and the swizzle of its rows of 2 · ROWS bytes */
    static const int p_swizzle = 2 * ROWS;
};

template <class S> __device__ __forceinline__ u32 bar_of(u32 smem, int index)
{
    return smem + S::bars_at + 8 * index;
}

/* ------------------------------------------------------------------- start */

/* Q, K-major with 128-byte swizzle, a tile a band; rows past the last are zeros. Exclusive end of
 * the keys that each row may see. */
template <int ROWS>
__device__ __forceinline__ void load_q(const struct mla_decode_args &g, const struct work &w,
                                       u32 smem)
{
    typedef tile<ROWS> S;
    const struct mla_mqa_args &a = g.a;
    int units = g.bands * 8;
    for (int i = threadIdx.x; i < ROWS * units; i += crew<ROWS>::threads) {
        int row = i / units, unit = i % units;
        u32 to = smem + S::q_at + unit / 8 * S::q_band + row * 128 + ((unit % 8 ^ row % 8) << 4);
        st_shared(to, fetch_unit(query_row(a, w, row) + 16 * unit, row < w.rows));
    }
    if (threadIdx.x < ROWS) {
        int at = w.row0 + min((int)threadIdx.x, w.rows - 1);
        st_shared(smem + S::limits_at + 4 * threadIdx.x,
                  min(w.seq_len, causal_end(a, w, at / a.heads)) + (MLA_MUTANT == 11));
    }
}

template <int ROWS> __device__ __forceinline__ void init_barriers(u32 smem)
{
    typedef tile<ROWS> S;
    for (int i = 0; i < S::bars; i++) {
        int count = 1; /* commits */
        if (i < S::empty || (i >= S::rope_full && i < S::rope_empty))
            count = LOADER_WARPS;
        if ((i >= S::s_free && i < S::p_full) || i == S::p_full)
            count = crew<ROWS>::teams * TEAM_WARPS * 32;
        mbarrier_init(bar_of<S>(smem, i), count);
    }
    fence_mbarrier_init();
}

/* ----------------------------------------------------------------- keys: TMA */

/* Tiles [first, whole) of a plain dense cache: all 64 keys lie before the end of what the rows see.
 * Pages that are out of range become a coordinate past the last page: zeros. */
template <int ROWS>
__device__ __forceinline__ void tma_role(const struct mla_decode_args &g, const struct work &w,
                                         u32 smem, int first, int whole)
{
    typedef tile<ROWS> S;
    const struct mla_mqa_cache &c = g.a.cache;
    int lane = threadIdx.x % 32, boxes = first < whole ? KEYS / g.box_rows : 1;
    ring<S::pairs> pair;
    ring<S::ropes> rope;
    if (lane == 0 && first < whole) {
        tma_prefetch_map(&g.latent);
        if (g.bands > LATENT_BANDS)
            tma_prefetch_map(&g.rope);
    }
    for (int t = first; t < whole; t++) {
        /* Lane i: where box i begins. */
        int key = t * KEYS + min(lane, boxes - 1) * g.box_rows;
        int slot = w.r.kv_start + key, page = 0;
        if (w.pages) {
            page = fetch_page(g.a, w, key);
            if (page < 0 || page >= c.num_pages)
                page = c.num_pages;
            slot = key - page_column(&c, key) * c.page_size;
        }
#pragma unroll
        for (int p = 0; p < TILE_PAIRS; p++) {
            u32 full = bar_of<S>(smem, S::full + pair.stage);
            u32 to = smem + pair.stage * PAIR_BYTES;
            mbarrier_wait(bar_of<S>(smem, S::empty + pair.stage), pair.phase ^ 1);
            if (lane == 0)
                mbarrier_arrive_expect_tx(full, MLA_MUTANT == 5 ? PAIR_BYTES - 128 : PAIR_BYTES);
            else if (lane < LOADER_WARPS)
                mbarrier_arrive(full);
            for (int b = 0; b < boxes; b++) {
                int at = __shfl_sync(0xFFFFFFFFu, slot, b);
                int of = __shfl_sync(0xFFFFFFFFu, page, b);
                if (lane == 0)
                    for (int h = 0; h < 2; h++)
                        tma_load_3d(to + h * BAND_BYTES + b * g.box_rows * 128, &g.latent, full,
                                    (2 * p + h) * 64, at, of);
            }
            pair.next();
        }
        if (g.bands == LATENT_BANDS)
            continue;
        u32 full = bar_of<S>(smem, S::rope_full + rope.stage);
        u32 to = smem + S::rope_at + rope.stage * BAND_BYTES;
        mbarrier_wait(bar_of<S>(smem, S::rope_empty + rope.stage), rope.phase ^ 1);
        if (lane == 0)
            mbarrier_arrive_expect_tx(full, BAND_BYTES);
        else if (lane < LOADER_WARPS)
            mbarrier_arrive(full);
        for (int b = 0; b < boxes; b++) {
            int at = __shfl_sync(0xFFFFFFFFu, slot, b);
            int of = __shfl_sync(0xFFFFFFFFu, page, b);
            if (lane == 0)
                tma_load_3d(to + b * g.box_rows * 128, &g.rope, full, 0, at, of);
        }
        rope.next();
    }
}

/* ------------------------------------------------------- keys: any cache format */

/* This warp's writes are visible to the tensor core once the barrier's phase has ended. */
__device__ __forceinline__ void stage_written(u32 full)
{
    if (MLA_MUTANT != 2)
        fence_proxy_async();
    __syncwarp();
    if (threadIdx.x % 32 == 0)
        mbarrier_arrive(full);
}

template <int ROWS, class F>
__device__ __forceinline__ void load_tiles(const struct mla_decode_args &g, const struct work &w,
                                           u32 smem, const struct span &s, int first)
{
    typedef tile<ROWS> S;
    int thread = threadIdx.x - crew<ROWS>::loader_warp * 32, part = thread % 4;
    struct stream k;
    start_stream(g.a, w, first, 1, s.last, thread / 4, &k);
    ring<S::pairs> pair;
    ring<S::ropes> rope;
    pair.skip((first - s.first) * TILE_PAIRS % (2 * S::pairs));
    rope.skip((first - s.first) % (2 * S::ropes));
    struct raw_key<F> raw;
    struct key_source from = source_of(g.a, w, k);
#pragma unroll
    for (int band = 0; band < LATENT_BANDS; band++)
        fetch_latent(&raw, band, part, from);
    if (g.bands > LATENT_BANDS)
        fetch_rope(&raw, part, from);
    fetch_scales<F>(raw.scale, part, from);
    advance_stream(g.a, w, first, &k);
    if (first > s.first && MLA_MUTANT != 19)
        mbarrier_wait(bar_of<S>(smem, S::handed), 0);
    for (int t = first; t < s.last; t++) {
        /* What a band's registers held is replaced by the next tile's at once. */
        from = source_of(g.a, w, k);
        uint32_t scale[F::scale ? F::scale : 1];
        fetch_scales<F>(scale, part, from);
        advance_stream(g.a, w, t + 1, &k);
#pragma unroll
        for (int p = 0; p < TILE_PAIRS; p++) {
            if (MLA_MUTANT != 13)
                mbarrier_wait(bar_of<S>(smem, S::empty + pair.stage), pair.phase ^ 1);
#pragma unroll
            for (int h = 0; h < 2; h++) {
                uint4 x[2];
                widen_latent<F, bf16>(raw, 2 * p + h, part, x);
                store_columns(smem + pair.stage * PAIR_BYTES + h * BAND_BYTES, k.key, part, x);
            }
            stage_written(bar_of<S>(smem, S::full + pair.stage));
#pragma unroll
            for (int h = 0; h < 2; h++)
                fetch_latent(&raw, 2 * p + h, part, from);
            pair.next();
        }
        if (F::rope && g.bands > LATENT_BANDS) {
            mbarrier_wait(bar_of<S>(smem, S::rope_empty + rope.stage), rope.phase ^ 1);
            uint4 x[2];
            widen_rope<F, bf16>(raw, x);
            store_columns(smem + S::rope_at + rope.stage * BAND_BYTES, k.key, part, x);
            stage_written(bar_of<S>(smem, S::rope_full + rope.stage));
            fetch_rope(&raw, part, from);
            rope.next();
        }
#pragma unroll
        for (int i = 0; i < F::scale; i++)
            raw.scale[i] = scale[i];
    }
}

template <int ROWS>
__device__ __forceinline__ void loader_role(const struct mla_decode_args &g, const struct work &w,
                                            u32 smem, const struct span &s, int first)
{
    switch (g.a.cache.format) {
    case MLA_CACHE_FP8_DS_MLA:
        load_tiles<ROWS, fp8_record>(g, w, smem, s, first);
        break;
    case MLA_CACHE_MODEL1:
        load_tiles<ROWS, model1_record>(g, w, smem, s, first);
        break;
    case MLA_CACHE_V41:
        load_tiles<ROWS, v41_record>(g, w, smem, s, first);
        break;
    case MLA_CACHE_NVFP4_DS_MLA:
        load_tiles<ROWS, nvfp4_record>(g, w, smem, s, first);
        break;
    default:
        load_tiles<ROWS, plain_record>(g, w, smem, s,
                                       first); /* bf16 and f16: 16 bits are 16 bits */
        break;
    }
}

/* ---------------------------------------------------------------- tensor core */

/* Scores of each tile: [64 keys x ROWS] = K · Q^T, four steps of 16 columns a band. One thread. */
template <int ROWS>
__device__ __forceinline__ void score_role(const struct mla_decode_args &g, u32 smem, u32 tmem,
                                           operand_type type, int tiles)
{
    typedef tile<ROWS> S;
    u32 idesc = umma_idesc(64, ROWS, type, type, OPERAND_F32, false, false);
    ring<S::pairs> pair;
    ring<S::ropes> rope;
    ring<2> buffer;
    for (int t = 0; t < tiles; t++) {
        u32 d = tmem + S::s_column + buffer.stage * ROWS;
        mbarrier_wait(bar_of<S>(smem, S::s_free + buffer.stage), buffer.phase ^ 1);
        tcgen05_fence_after();
        for (int band = 0; band < g.bands; band++) {
            u32 keys = smem + pair.stage * PAIR_BYTES + band % 2 * BAND_BYTES;
            if (band == LATENT_BANDS) {
                keys = smem + S::rope_at + rope.stage * BAND_BYTES;
                if (MLA_MUTANT != 1)
                    mbarrier_wait(bar_of<S>(smem, S::rope_full + rope.stage), rope.phase);
            } else if (band % 2 == 0) {
                mbarrier_wait(bar_of<S>(smem, S::full + pair.stage), pair.phase);
            }
            u64 k_desc = umma_desc(keys, 16, 1024, 128);
            u64 q_desc = umma_desc(smem + S::q_at + band * S::q_band, 16, 1024, 128);
#pragma unroll
            for (int k = 0; k < 4; k++) /* 32 bytes, in units of 16 */
                tcgen05_mma_ss<1, KIND_F16>(d, k_desc + 2 * k, q_desc + 2 * k, idesc,
                                            band > 0 || k > 0);
            if (band == LATENT_BANDS) {
                tcgen05_commit<1>(bar_of<S>(smem, S::rope_empty + rope.stage));
                rope.next();
            } else if (band % 2 == 1) {
                pair.next();
            }
        }
        tcgen05_commit<1>(bar_of<S>(smem, S::s_full + buffer.stage));
        buffer.next();
    }
}

/* Output: [128 columns x ROWS] += V^T · P^T of each pair of bands, four steps of 16 keys. A stage
 * is free once its products are done. One thread. */
template <int ROWS>
__device__ __forceinline__ void out_role(u32 smem, u32 tmem, operand_type type, int tiles)
{
    typedef tile<ROWS> S;
    u32 idesc = umma_idesc(128, ROWS, type, type, OPERAND_F32, true, true);
    ring<S::pairs> pair;
    for (int t = 0; t < tiles; t++) {
        mbarrier_wait(bar_of<S>(smem, S::p_full), t & 1);
        tcgen05_fence_after();
        for (int p = 0; p < TILE_PAIRS; p++) {
            /* 8 keys are 1024 bytes on, the pair's second 64 columns BAND_BYTES. */
            u64 v_desc = umma_desc(smem + pair.stage * PAIR_BYTES,
                                   MLA_MUTANT == 3 ? BAND_BYTES / 2 : BAND_BYTES, 1024, 128);
            u64 p_desc = umma_desc(smem + S::p_at, 16, (MLA_MUTANT == 4 ? 4 : 8) * S::p_swizzle,
                                   S::p_swizzle);
#pragma unroll
            for (int k = 0; k < KEYS / 16; k++) {
                if (MLA_MUTANT == 9 && k == 3)
                    tcgen05_commit<1>(bar_of<S>(smem, S::empty + pair.stage));
                tcgen05_mma_ss<1, KIND_F16>(tmem + p * ROWS, v_desc + k * (16 * 128 / 16),
                                            p_desc + k * (16 * S::p_swizzle / 16), idesc,
                                            t > 0 || k > 0 || MLA_MUTANT == 10);
            }
            if (MLA_MUTANT != 9)
                tcgen05_commit<1>(bar_of<S>(smem, S::empty + pair.stage));
            pair.next();
        }
        tcgen05_commit<1>(bar_of<S>(smem, S::out_done));
    }
}

/* -------------------------------------------------------------------- softmax */

/* A warp has 16 keys of a tile; a lane keys lane/4 and lane/4 + 8 of them, and of every eight rows
 * rows 2·(lane%4) and + 1: scores and sums are held in that shape. The largest scores and bases of
 * rows are held by one lane each (and copies) in every warp: of the eight rows lane/4 % groups. */
template <int ROWS> struct running {
    static const int groups = ROWS / 8;
    float sum[groups][2];
    float2 top, base;
};

/* The largest of each row over the eight lanes that hold it: each step halves the rows a lane keeps,
 * down to two of the eight rows key % groups. */
template <int ROWS>
__device__ __forceinline__ float2 largest_of_rows(float (&best)[ROWS / 8][2], int key)
{
    const int groups = ROWS / 8;
#pragma unroll
    for (int half = groups / 2; half > 0; half /= 2) {
        bool upper = key & half;
#pragma unroll
        for (int j = 0; j < half; j++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                float give = upper ? best[j][e] : best[j + half][e];
                float keep = upper ? best[j + half][e] : best[j][e];
                best[j][e] = fmaxf(keep, __shfl_xor_sync(0xFFFFFFFFu, give, 4 * half));
            }
    }
    float2 most = make_float2(best[0][0], best[0][1]);
#pragma unroll
    for (int bit = groups; bit < 8; bit *= 2) {
        most.x = fmaxf(most.x, __shfl_xor_sync(0xFFFFFFFFu, most.x, 4 * bit));
        most.y = fmaxf(most.y, __shfl_xor_sync(0xFFFFFFFFu, most.y, 4 * bit));
    }
    return most;
}

/* Takes a row's largest score of a tile in; returns what earlier weights must be multiplied by. */
__device__ __forceinline__ float follow(float most, float *top, float *base)
{
    *top = fmaxf(*top, most);
    if (!(*top > *base + GROWTH))
        return 1;
    float factor = ex2_approx_ftz(*base - *top);
    *base = *top;
    return factor;
}

/* O (this warp's lanes, its team's rows) times the factor of each row. */
template <int ROWS> __device__ __forceinline__ void rescale_out(u32 tmem_lanes, int row0, u32 from)
{
#pragma unroll 1
    for (int d = 0; d < DIM_GROUPS; d++)
#pragma unroll 1
        for (int row = row0; row < row0 + crew<ROWS>::team_rows; row += 16) {
            u32 x[16], at = tmem_lanes + d * ROWS + row;
            tcgen05_ld_32x32b(x, at);
            tcgen05_wait_ld(x);
#pragma unroll
            for (int i = 0; i < 16; i += 4) {
                float4 f = ld_shared<float4>(from + (row + i) * 4);
                x[i] = __float_as_uint(__uint_as_float(x[i]) * f.x);
                x[i + 1] = __float_as_uint(__uint_as_float(x[i + 1]) * f.y);
                x[i + 2] = __float_as_uint(__uint_as_float(x[i + 2]) * f.z);
                x[i + 3] = __float_as_uint(__uint_as_float(x[i + 3]) * f.w);
            }
            tcgen05_st_32x32b(at, x);
        }
    if (MLA_MUTANT != 18)
        tcgen05_wait_st();
}

template <int ROWS>
__device__ __forceinline__ void softmax_role(const struct mla_decode_args &g, const struct work &w,
                                             u32 smem, u32 tmem, const struct span &s,
                                             struct running<crew<ROWS>::team_rows> *run)
{
    typedef tile<ROWS> S;
    const int TEAM_ROWS = crew<ROWS>::team_rows, groups = TEAM_ROWS / 8;
    const struct mla_mqa_args &a = g.a;
    int team = threadIdx.x / 128, row0 = team * TEAM_ROWS;
    int warp = threadIdx.x / 32 % TEAM_WARPS, lane = threadIdx.x % 32, key = lane / 4,
        rows_at = 2 * (lane % 4);
    bool is_bf16 = g.is_bf16;
    u32 lanes = (u32)(MLA_MUTANT == 17 ? warp ^ 1 : warp) * 32 << 16;
    u32 factors = smem + S::factors_at + warp * ROWS * 4;
    u32 bases = smem + S::bases_at + warp * ROWS * 4;
    /* Rows whose largest score this lane follows: own, own + 1. */
    int own = row0 + 8 * (key % groups) + rows_at;
    int least = min(w.seq_len, causal_end(a, w, w.token0));
    struct stream k;
    start_stream(a, w, s.first, 1, s.last, 16 * warp + lane % 16, &k);
    ring<2> buffer;
#pragma unroll 1
    for (int t = s.first; t < s.last; t++) {
        uint32_t visible = __ballot_sync(0xFFFFFFFFu, stream_sees(a, w, k)) & 0xFFFF;
        advance_stream(a, w, t, &k);
        mbarrier_wait(bar_of<S>(smem, S::s_full + buffer.stage), buffer.phase);
        if (MLA_MUTANT != 16)
            tcgen05_fence_after();
        u32 x[TEAM_ROWS / 2];
        tcgen05_ld_16x256b(x, tmem + lanes + S::s_column + buffer.stage * ROWS +
                                  (MLA_MUTANT == 21 ? 0 : row0));
        if (MLA_MUTANT == 6)
            mbarrier_arrive(bar_of<S>(smem, S::s_free + buffer.stage));
        tcgen05_wait_ld(x);
        tcgen05_fence_before();
        if (MLA_MUTANT != 6)
            mbarrier_arrive(bar_of<S>(smem, S::s_free + buffer.stage));

        /* Scores in log2; the warp's largest of each row. */
        bool differ = !w.list && (a.mask || (t + 1) * KEYS > least);
        u32 exchange = smem + S::exchange_at + buffer.stage * S::exchange_half;
        float best[groups][2];
#pragma unroll
        for (int j = 0; j < groups; j++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                uint32_t bits = visible;
                int row = row0 + 8 * j + rows_at + e;
                if (differ)
                    bits &= row_sees(a, w, row, ld_shared<int>(smem + S::limits_at + 4 * row),
                                     t * KEYS + 16 * warp);
                float low = __uint_as_float(x[4 * j + e]) * a.scale_log2;
                float high = __uint_as_float(x[4 * j + 2 + e]) * a.scale_log2;
                low = bits >> key & 1 ? low : -INFINITY;
                high = bits >> (key + 8) & 1 ? high : -INFINITY;
                x[4 * j + e] = __float_as_uint(low);
                x[4 * j + 2 + e] = __float_as_uint(high);
                best[j][e] = fmaxf(low, high);
            }
        float2 most = largest_of_rows<TEAM_ROWS>(best, key);
        if (key < groups)
            st_shared(exchange + (warp * ROWS + own) * 4, most);
        bar_sync(1 + team, TEAM_WARPS * 32);

        /* Every warp follows the same base of each row, so that P needs no other factor. */
#pragma unroll
        for (int v = 0; v < TEAM_WARPS; v++) {
            float2 of = ld_shared<float2>(exchange + (v * ROWS + own) * 4);
            most = make_float2(fmaxf(most.x, of.x), fmaxf(most.y, of.y));
        }
        float2 factor = make_float2(follow(most.x, &run->top.x, &run->base.x),
                                    follow(most.y, &run->top.y, &run->base.y));
        bool moved = __any_sync(0xFFFFFFFFu, factor.x != 1 || factor.y != 1);
        if (key < groups) {
            /* No key yet: any finite reference gives weights 0. */
            st_shared(bases + 4 * own, make_float2(run->base.x == -INFINITY ? 0 : run->base.x,
                                                   run->base.y == -INFINITY ? 0 : run->base.y));
            if (moved)
                st_shared(factors + 4 * own, factor);
        }
        __syncwarp();
        if (moved && MLA_MUTANT != 12) {
#pragma unroll
            for (int j = 0; j < groups; j++) {
                float2 f = ld_shared<float2>(factors + (row0 + 8 * j + rows_at) * 4);
                run->sum[j][0] *= f.x;
                run->sum[j][1] *= f.y;
            }
        }
        u32 weights[2 * groups];
#pragma unroll
        for (int j = 0; j < groups; j++) {
            float2 base = ld_shared<float2>(bases + (row0 + 8 * j + rows_at) * 4);
#pragma unroll
            for (int h = 0; h < 2; h++) {
                float p0 = ex2_approx_ftz(__uint_as_float(x[4 * j + 2 * h]) - base.x);
                float p1 = ex2_approx_ftz(__uint_as_float(x[4 * j + 2 * h + 1]) - base.y);
                run->sum[j][0] += p0;
                run->sum[j][1] += p1;
                weights[2 * j + h] = is_bf16 ? cvt_rn_bf16x2_f32(p0, p1) : cvt_rn_f16x2_f32(p0, p1);
            }
        }
        if (t > s.first) {
            mbarrier_wait(bar_of<S>(smem, S::out_done),
                          (t - s.first - (MLA_MUTANT == 8 ? 0 : 1)) & 1);
            tcgen05_fence_after();
            if (moved && MLA_MUTANT != 7) /* the same in all the team's warps */
                rescale_out<ROWS>(tmem + lanes, row0, factors);
        }
        /* P^T [key][row], rows of 2 · ROWS bytes: pairs of rows are neighbours. */
#pragma unroll
        for (int j = 0; j < groups; j++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                u32 at =
                    smem + S::p_at + (16 * warp + 8 * h + key) * S::p_swizzle + 2 * row0 + 16 * j;
                at ^= (at >> 7 & (ROWS / 8 - 1)) << 4;
                st_shared(at + 2 * rows_at, weights[2 * j + h]);
            }
        tcgen05_fence_before();
        if (MLA_MUTANT != 14)
            fence_proxy_async();
        mbarrier_arrive(bar_of<S>(smem, S::p_full));
        buffer.next();
    }
}

/* -------------------------------------------------------------------- results */

/* Ends the rows: sums of all warps, then the output, 32 neighbouring columns a warp and row. */
template <int ROWS>
__device__ __forceinline__ void store_rows(const struct mla_decode_args &g, const struct work &w,
                                           u32 smem, u32 tmem, int tiles,
                                           const struct running<crew<ROWS>::team_rows> &run)
{
    typedef tile<ROWS> S;
    const int TEAM_ROWS = crew<ROWS>::team_rows, groups = TEAM_ROWS / 8;
    const struct mla_mqa_args &a = g.a;
    int team = threadIdx.x / 128, row0 = team * TEAM_ROWS;
    int warp = threadIdx.x / 32 % TEAM_WARPS, lane = threadIdx.x % 32;
    /* One half for the sums; the other, whose maxima have been read, for places of rows. */
    u32 sums = smem + S::exchange_at + (tiles & 1) * S::exchange_half;
    u32 places = smem + S::exchange_at + (~tiles & 1) * S::exchange_half;
    u32 tops = smem + S::factors_at, factors = tops + ROWS * 4, bases = factors + ROWS * 4;
    if (tiles) {
        mbarrier_wait(bar_of<S>(smem, S::out_done), (tiles - 1) & 1);
        tcgen05_fence_after();
    }
    bar_sync(1 + team, TEAM_WARPS * 32); /* the last tile's factors have been read */
#pragma unroll
    for (int j = 0; j < groups; j++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
            int row = row0 + 8 * j + 2 * (lane % 4) + e;
            float sum = run.sum[j][e];
            sum += __shfl_xor_sync(0xFFFFFFFFu, sum, 4);
            sum += __shfl_xor_sync(0xFFFFFFFFu, sum, 8);
            sum += __shfl_xor_sync(0xFFFFFFFFu, sum, 16);
            if (lane < 4)
                st_shared(sums + (warp * ROWS + row) * 4, sum);
        }
    if (warp == 0 && lane / 4 < groups) { /* rows 2 · lane of the team, and + 1 */
        st_shared(tops + 4 * (row0 + 2 * lane), run.top);
        st_shared(bases + 4 * (row0 + 2 * lane), run.base);
    }
    bar_sync(1 + team, TEAM_WARPS * 32);
    if (threadIdx.x % 128 < TEAM_ROWS) {
        int row = row0 + threadIdx.x % 128;
        float sum = 0;
        for (int v = 0; v < TEAM_WARPS; v++)
            sum += ld_shared<float>(sums + (v * ROWS + row) * 4);
        int64_t to;
        float factor = finish(a, w, row, ld_shared<float>(bases + 4 * row),
                              ld_shared<float>(tops + 4 * row), sum, true, &to);
        st_shared(factors + 4 * row, factor);
        st_shared(places + 8 * row, to);
    }
    bar_sync(1 + team, TEAM_WARPS * 32);
    bool split = w.r.splits > 1;
#pragma unroll 1
    for (int c = 0; c < DIM_GROUPS * TEAM_ROWS; c += 16) {
        u32 x[16];
        int band = c / TEAM_ROWS, row = row0 + c % TEAM_ROWS;
        if (tiles) {
            tcgen05_ld_32x32b(x, tmem + ((u32)warp * 32 << 16) + band * ROWS + row);
            tcgen05_wait_ld(x);
        }
        int column = band * 128 + 32 * warp + lane;
#pragma unroll
        for (int i = 0; i < 16; i++) {
            int64_t to = ld_shared<int64_t>(places + 8 * (row + i)) + column;
            float factor = ld_shared<float>(factors + 4 * (row + i));
            if (to < column)
                continue;
            float v = tiles && factor != 0 ? __uint_as_float(x[i]) * factor : 0;
            if (split)
                a.part_out[to] = v;
            else if (a.out_dtype == MLA_F32)
                ((float *)a.out)[to] = v;
            else
                ((uint16_t *)a.out)[to] =
                    (uint16_t)(a.out_dtype == MLA_BF16 ? cvt_rn_bf16x2_f32(v, 0)
                                                       : cvt_rn_f16x2_f32(v, 0));
        }
    }
}

/* --------------------------------------------------------------------- kernel */

template <int ROWS>
__global__ void __launch_bounds__(crew<ROWS>::threads, 1)
    mqa_decode_kernel(const __grid_constant__ struct mla_decode_args g)
{
    typedef tile<ROWS> S;
    typedef crew<ROWS> C;
    u32 smem = dynamic_smem();
    int warp = warp_index();
    struct work w;
    set_work<ROWS>(g.a, find_request(g.a, blockIdx.x, gridDim.x), blockIdx.x, 0, &w);
    struct span s = span_of<KEYS>(w);
    int tiles = s.last - s.first;
    int whole = end_of_boxes<KEYS>(g, w, s);
    if (warp == C::score_warp && elect_one())
        init_barriers<ROWS>(smem);
    if (warp == C::out_warp) {
        tcgen05_alloc<1>(smem + S::tmem_at, S::columns);
        tcgen05_relinquish<1>();
    }
    load_q<ROWS>(g, w, smem);
    fence_proxy_async();
    tcgen05_fence_before();
    __syncthreads();
    tcgen05_fence_after();
    u32 tmem = ld_shared<u32>(smem + S::tmem_at);
    operand_type type = g.is_bf16 ? OPERAND_BF16 : OPERAND_F16;

    if (warp < C::loader_warp) {
        MLA_ROLE("softmax");
        if constexpr (C::softmax > C::at_launch)
            setmaxnreg_inc<C::softmax>();
        else
            setmaxnreg_dec<C::softmax>();
        struct running<C::team_rows> run;
#pragma unroll
        for (int j = 0; j < C::team_rows / 8; j++)
            run.sum[j][0] = run.sum[j][1] = 0;
        run.top = run.base = make_float2(-INFINITY, -INFINITY);
        softmax_role<ROWS>(g, w, smem, tmem, s, &run);
        store_rows<ROWS>(g, w, smem, tmem, tiles, run);
    } else if (warp < C::score_warp) {
        MLA_ROLE("loader");
        setmaxnreg_inc<C::loader>();
        if (whole < s.last)
            loader_role<ROWS>(g, w, smem, s, whole);
    } else {
        setmaxnreg_dec<C::other>();
        if (warp == C::score_warp) {
            MLA_ROLE("scores");
            if (elect_one())
                score_role<ROWS>(g, smem, tmem, type, tiles);
        } else if (warp == C::out_warp) {
            MLA_ROLE("output");
            if (elect_one())
                out_role<ROWS>(smem, tmem, type, tiles);
        } else if (warp == C::tma_warp) {
            MLA_ROLE("tma");
            tma_role<ROWS>(g, w, smem, s.first, whole);
            /* The stages of its last tiles were free once: loaders can tell phases by parity. */
            if (threadIdx.x % 32 == 0)
                mbarrier_arrive(bar_of<S>(smem, S::handed));
        }
    }
    tcgen05_fence_before();
    __syncthreads();
    tcgen05_fence_after();
    if (warp == C::out_warp && MLA_MUTANT != 15)
        tcgen05_dealloc<1>(tmem, S::columns);
}

extern "C" struct mla_mqa_tile mla_mqa_decode_tile(int rows)
{
    struct mla_mqa_tile t = {NULL, 0, crew<16>::threads, 1};
    if (rows == 16) {
        t.function = mla_kernel_address(mqa_decode_kernel<16>);
        t.shared_bytes = tile<16>::shared_bytes;
    } else if (rows == 32) {
        t.function = mla_kernel_address(mqa_decode_kernel<32>);
        t.shared_bytes = tile<32>::shared_bytes;
    } else if (rows == 64) {
        t.function = mla_kernel_address(mqa_decode_kernel<64>);
        t.shared_bytes = tile<64>::shared_bytes;
        t.threads = crew<64>::threads;
    }
    return t;
}

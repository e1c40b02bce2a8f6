/* SPDX-License-Identifier: Apache-2.0 */
/* mqa_decode_pair: absorbed-form attention for 65 to 128 query rows on tcgen05 (sm_100f), by a pair
 * of CTAs: out = softmax(scale · q · K^T) · K[:, :512]. The same problems as mqa_decode.cu;
 * requests of more rows take several pairs.
 *
 * A pair has 128 rows, 64 a CTA, and walks 128 keys a step. Each CTA brings what its half of the
 * tensor cores' B operands is: for the scores 64 of the keys, all 576 columns; for the output all
 * 128 keys, 256 of the columns. The halves of B cross between the SMs inside the MMA, so that an SM
 * reads half of what two single CTAs would.
 *   S [128 rows x 128 keys]          = Q · K^T   M 128, N 128: lane row % 64 + 64 · half of keys
 *   O [128 rows x 2 x 256 columns]  += P · V     M 128, N 256: lane row % 64 + 64 · half of columns
 *
 * Roles (16 warps)              registers
 *   0-3   softmax                     112   a thread: a row, half of the keys, then of the columns
 *   4-11  loaders                     168   keys that TMA can't bring: see mqa_decode.cuh
 *   12    scores                       64   even CTA: one thread issues S
 *   13    output                       64   even CTA: one thread issues O
 *   14    tma of keys                  64   whole steps of plain dense caches
 *   15    tma of values                64
 *
 * Shared memory of a CTA, bytes (of 232448)
 *   keys, 15 bands of 64 keys x 64 columns      122880
 *   V, two parts of 128 keys x 128 columns       65536
 *   Q, the last 3 of 9 bands                     24576
 *   P, 64 rows x 128 keys                        16384
 *   maxima and sums                               1024
 *   barriers, TMEM address                         320
 * TMEM columns: O 0-255, S 256-319, Q's first 6 bands 320-511 (A operand, lanes 64-127 a copy: each
 * half of the lanes multiplies with its own).
 *
 * Barriers (E: of the even CTA; B: one of each)  count   arrive                          wait
 *   full[15]                                  E     16   both CTAs' loaders or TMA     scores
 *   empty[15]                                 B      1   commit of scores              loaders, tma
 *   v_full[2]                                 E     16   both CTAs' loaders or TMA     output
 *   v_empty[2]                                B      1   commit of output              loaders, tma
 *   s_full                                    B      1   commit of scores                softmax
 *   s_free                                    E    256   both softmaxes have loaded S    scores
 *   p_full                                    E    256   P is written, O rescaled        output
 *   out_done                                  B      1   commit of output                softmax
 *   handed                                    B      2   tma, after their last step      loaders
 *
 * Cycles a step of 128 keys at 1.85 GHz; HBM gives a pair 58.4 bytes a clock, an SM's shared memory
 * 128.
 *                                  HBM: bf16  fp8_ds_mla  model1   v41  nvfp4
 *                                       2525        1438    1279  1157    771
 *   tensor core: S 36 x 32, O 16 x 64                   2176
 *   shared memory: K and V written                576 + 512
 *     S reads K, and Q of three bands             576 + 192
 *     O reads V and P                             512 + 256
 *     P written                                         128
 *     sum                                              2752
 *     packed: raw through L1                  + 464 of fp8_ds_mla (64 whole keys, 64 halves)
 *   ex2: 64 rows x 128 keys / 16                        512
 * bf16: HBM (2525) and shared memory (2752) are nearly even: at most 92 % of the roofline, HBM's.
 * fp8_ds_mla: the roofline is the tensor core's 2176; shared memory's 3216 leaves 68 % of it.
 * Keeping all of Q in shared memory would cost 384 clocks more: hence its six bands in TMEM.
 *
 * NaN, rounding, limits: as mqa_decode.cu. */
#include "mqa_decode.cuh"
#include "ptx/barrier.cuh"
#include "ptx/cluster.cuh"
#include "ptx/launch.cuh"
#include "ptx/tcgen05.cuh"
#include "ptx/tma.cuh"
#include "ptx/warp.cuh"
#include "ring.cuh"

static const int THREADS = MLA_DECODE_THREADS;
static const int ROWS = 128, OWN_ROWS = 64; /* of the pair; of a CTA */
static const int STEP = 2 * KEYS;   /* keys: each CTA has the scores' operand of half of them */
static const int SOFTMAX_WARPS = 4; /* warps 0 to 3: lanes of TMEM by warp % 4 */
static const int LOADER_WARP = SOFTMAX_WARPS, LOADER_WARPS = LOADERS / 32;
static const int SCORE_WARP = LOADER_WARP + LOADER_WARPS;
static const int OUT_WARP = SCORE_WARP + 1;
static const int KEY_TMA_WARP = OUT_WARP + 1, VALUE_TMA_WARP = KEY_TMA_WARP + 1;
static_assert(32 * (VALUE_TMA_WARP + 1) == THREADS, "roles make up the block");
static const int MANY = 168, SOME = 112,
                 FEW = 64; /* registers a thread: loaders, softmax, others */
static_assert(128 * (2 * MANY + SOME + FEW) == 65536, "registers of an SM");
static const u16 BOTH = 3; /* CTAs of the pair */

/* Shared memory of each CTA. */
static const int TMEM_BANDS = 6; /* of Q; the others are in shared memory */
static const int Q_BAND = OWN_ROWS * 128;
static const int KEY_STAGES = 15;
static const int V_BAND = STEP * 128; /* 64 of this CTA's 256 columns, all keys of a step */
static const int V_PART = 2 * V_BAND;
static const int V_AT = KEY_STAGES * BAND_BYTES;
static const int Q_AT = V_AT + 2 * V_PART;
static const int P_AT = Q_AT + (MOST_BANDS - TMEM_BANDS) * Q_BAND;
static const int P_HALF = OWN_ROWS * 128;         /* 64 keys */
static const int EXCHANGE_AT = P_AT + 2 * P_HALF; /* [2][half of the keys][row] floats */
static const int EXCHANGE_HALF = 2 * OWN_ROWS * 4;
static const int BARS_AT = EXCHANGE_AT + 2 * EXCHANGE_HALF;
/* Barriers: of the even CTA (E), or one of each CTA (B) */
static const int FULL = 0;                                          /* E */
static const int EMPTY = FULL + KEY_STAGES;                         /* B */
static const int V_FULL = EMPTY + KEY_STAGES, V_EMPTY = V_FULL + 2; /* E, B */
static const int S_FULL = V_EMPTY + 2, S_FREE = S_FULL + 1;         /* B, E */
static const int P_FULL = S_FREE + 1, OUT_DONE = P_FULL + 1;        /* E, B */
static const int HANDED = OUT_DONE + 1;                             /* B */
static const int BARS = HANDED + 1;
static const int TMEM_AT = BARS_AT + 8 * BARS;
static const int SHARED_BYTES = TMEM_AT + 8;
static_assert(SHARED_BYTES <= MOST_SHARED, "227 KiB a block");
static_assert(V_AT % 1024 == 0 && Q_AT % 1024 == 0 && P_AT % 1024 == 0, "swizzled tiles");

/* TMEM columns. */
static const int O_COLUMN = 0, S_COLUMN = 256, Q_COLUMN = 320, COLUMNS = 512;
static_assert(Q_COLUMN + 32 * TMEM_BANDS == COLUMNS, "TMEM: output, scores, part of Q");

__device__ __forceinline__ u32 bar_of(u32 smem, int index)
{
    return smem + BARS_AT + 8 * index;
}

/* ------------------------------------------------------------------- start */

/* The last bands of this CTA's rows of Q to shared memory, K-major with 128-byte swizzle. */
__device__ __forceinline__ void load_q(const struct mla_decode_args &g, const struct work &w,
                                       u32 smem, int rank)
{
    int units = (g.bands - TMEM_BANDS) * 8;
    for (int i = threadIdx.x; i < OWN_ROWS * units; i += THREADS) {
        int own = i / units, unit = i % units, row = OWN_ROWS * rank + own;
        const char *from = query_row(g.a, w, row) + TMEM_BANDS * 128 + 16 * unit;
        st_shared(smem + Q_AT + unit / 8 * Q_BAND + own * 128 + ((unit % 8 ^ own % 8) << 4),
                  fetch_unit(from, row < w.rows));
    }
}

/* The first bands to TMEM, lanes 64 to 127 as lanes 0 to 63: each half of the tensor core's lanes
 * multiplies with its own copy. Warps 0 to 3. */
__device__ __forceinline__ void store_q(const struct mla_decode_args &g, const struct work &w,
                                        u32 tmem, int rank)
{
    int row = OWN_ROWS * rank + threadIdx.x % OWN_ROWS;
    const char *from = query_row(g.a, w, row);
#pragma unroll 1
    for (int band = 0; band < TMEM_BANDS; band++) {
        u32 x[32];
        fetch_words<32>(x, from + 128 * band, row < w.rows);
        if (MLA_MUTANT != 3 || threadIdx.x < OWN_ROWS)
            tcgen05_st_32x32b(tmem + (threadIdx.x / 32 * 32 << 16) + Q_COLUMN + 32 * band, x);
    }
    tcgen05_wait_st();
}

__device__ __forceinline__ void init_barriers(u32 smem)
{
    for (int i = 0; i < BARS; i++) {
        int count = 1; /* commits */
        if (i < EMPTY || (i >= V_FULL && i < V_EMPTY))
            count = 2 * LOADER_WARPS;
        else if (i == HANDED)
            count = 2;
        else if (i == S_FREE || i == P_FULL)
            count = 2 * SOFTMAX_WARPS * 32;
        mbarrier_init(bar_of(smem, i), count);
    }
    fence_mbarrier_init();
}

/* ----------------------------------------------------------------- keys: TMA */

/* The boxes of one half of a step: lane i knows where box i begins. Pages that are out of range
 * become a coordinate past the last page: zeros. count is KEYS / box_rows, which takes long. */
struct boxes {
    int slot, page;
};

__device__ __forceinline__ int count_boxes(const struct mla_decode_args &g, int first, int whole)
{
    return first < whole ? KEYS / g.box_rows : 1;
}

__device__ __forceinline__ struct boxes find_boxes(const struct mla_decode_args &g,
                                                   const struct work &w, int count, int tile)
{
    const struct mla_mqa_cache &c = g.a.cache;
    int key = tile * KEYS + min((int)threadIdx.x % 32, count - 1) * g.box_rows;
    struct boxes b = {w.r.kv_start + key, 0};
    if (w.pages) {
        b.page = fetch_page(g.a, w, key);
        if (b.page < 0 || b.page >= c.num_pages)
            b.page = c.num_pages;
        b.slot = key - page_column(&c, key) * c.page_size;
    }
    return b;
}

/* 64 keys of 64 columns to `to`, bytes counted by the even CTA. */
__device__ __forceinline__ void load_boxes(const struct mla_decode_args &g,
                                           const struct mla_tensor_map *map, int count,
                                           const struct boxes &where, u32 to, u32 bar, int column)
{
#pragma unroll 1
    for (int b = 0; b < count; b++) {
        int slot = __shfl_sync(0xFFFFFFFFu, where.slot, b);
        int page = __shfl_sync(0xFFFFFFFFu, where.page, b);
        if (threadIdx.x % 32 == 0)
            tma_load_3d_pair(to + b * g.box_rows * 128, map, tma_even_barrier(bar), column, slot,
                             page);
    }
}

/* One warp's arrivals in place of eight loader warps'. */
__device__ __forceinline__ void expect_boxes(u32 bar, int bytes)
{
    int lane = threadIdx.x % 32;
    if (lane == 0)
        mbarrier_arrive_expect_tx_cluster(mapa(bar, 0), bytes);
    else if (lane < LOADER_WARPS)
        mbarrier_arrive_cluster(mapa(bar, 0));
}

/* This CTA's half of the keys of each step, band by band. */
__device__ __forceinline__ void key_tma_role(const struct mla_decode_args &g, const struct work &w,
                                             u32 smem, int rank, int first, int whole)
{
    ring<KEY_STAGES> stage;
    int count = count_boxes(g, first, whole);
    for (int t = first; t < whole; t++) {
        struct boxes where = find_boxes(g, w, count, 2 * t + (MLA_MUTANT == 8 ? 1 - rank : rank));
#pragma unroll
        for (int band = 0; band < MOST_BANDS; band++) {
            u32 full = bar_of(smem, FULL + stage.stage);
            bool rope = band == LATENT_BANDS;
            if (rope && g.bands == LATENT_BANDS)
                break;
            mbarrier_wait(bar_of(smem, EMPTY + stage.stage), stage.phase ^ 1);
            expect_boxes(full, BAND_BYTES);
            load_boxes(g, rope ? &g.rope : &g.latent, count, where, smem + stage.stage * BAND_BYTES,
                       full, rope ? 0 : band * 64);
            stage.next();
        }
    }
}

/* All keys of each step, this CTA's columns of V. */
__device__ __forceinline__ void value_tma_role(const struct mla_decode_args &g,
                                               const struct work &w, u32 smem, int rank, int first,
                                               int whole)
{
    int count = count_boxes(g, first, whole);
    for (int t = first; t < whole; t++) {
        struct boxes where[2] = {find_boxes(g, w, count, 2 * t),
                                 find_boxes(g, w, count, 2 * t + 1)};
#pragma unroll
        for (int part = 0; part < 2; part++) {
            u32 full = bar_of(smem, V_FULL + part), to = smem + V_AT + part * V_PART;
            int column = (4 * (MLA_MUTANT == 2 ? 1 - rank : rank) + 2 * part) * 64;
            mbarrier_wait(bar_of(smem, V_EMPTY + part), ((t - first) & 1) ^ 1);
            expect_boxes(full, V_PART);
#pragma unroll
            for (int half = 0; half < 2; half++)
#pragma unroll
                for (int b = 0; b < 2; b++)
                    load_boxes(g, &g.latent, count, where[half],
                               to + b * V_BAND + half * BAND_BYTES, full, column + 64 * b);
        }
    }
}

/* ------------------------------------------------------- keys: any cache format */

/* This warp's writes are visible to the tensor core once the even CTA's barrier has ended. */
__device__ __forceinline__ void stage_written(u32 full)
{
    fence_proxy_async();
    __syncwarp();
    if (threadIdx.x % 32 == 0)
        mbarrier_arrive_cluster(mapa(full, MLA_MUTANT == 4 ? cluster_ctarank() : 0));
}

/* A thread brings one key of the CTA's own half of a step, all bands for the scores and the CTA's
 * columns for V, and the same key of the other half, for V alone. */
template <int RANK, class F>
__device__ __forceinline__ void load_tiles(const struct mla_decode_args &g, const struct work &w,
                                           u32 smem, const struct span &s, int first)
{
    const int V_FIRST = 4 * RANK; /* bands that are this CTA's columns of V */
    /* Bands of the other half in flight: registers hold no whole step of a plain cache. */
    const int AHEAD = is<F, plain_record> ? 2 : 4;
    int thread = threadIdx.x - LOADER_WARP * 32, part = thread % 4, key = thread / 4;
    struct stream k, other;
    start_stream(g.a, w, 2 * first + RANK, 2, 2 * s.last, key, &k);
    start_stream(g.a, w, 2 * first + 1 - RANK, 2, 2 * s.last, key, &other);
    ring<KEY_STAGES> stage;
    stage.skip((first - s.first) * g.bands % (2 * KEY_STAGES));
    u32 phase = (first - s.first) & 1;
    struct raw_key<F> raw, raw_other;
    struct key_source from = source_of(g.a, w, k), from_other = source_of(g.a, w, other);
#pragma unroll
    for (int band = 0; band < LATENT_BANDS; band++)
        fetch_latent(&raw, band, part, from);
    if (g.bands > LATENT_BANDS)
        fetch_rope(&raw, part, from);
    fetch_scales<F>(raw.scale, part, from);
#pragma unroll
    for (int b = 0; b < AHEAD; b++)
        fetch_latent(&raw_other, V_FIRST + b, part, from_other);
    fetch_scales<F>(raw_other.scale, part, from_other);
    advance_stream(g.a, w, 2 * first + RANK, &k);
    advance_stream(g.a, w, 2 * first + 1 - RANK, &other);
    if (first > s.first)
        mbarrier_wait(bar_of(smem, HANDED), 0);
    for (int t = first; t < s.last; t++) {
        struct key_source of_other = from_other;
        from = source_of(g.a, w, k);
        from_other = source_of(g.a, w, other);
        uint32_t scale[F::scale ? F::scale : 1], scale_other[F::scale ? F::scale : 1];
        fetch_scales<F>(scale, part, from);
        fetch_scales<F>(scale_other, part, from_other);
        advance_stream(g.a, w, 2 * t + 2 + RANK, &k);
        advance_stream(g.a, w, 2 * t + 3 - RANK, &other);
        uint4 x[2];
#pragma unroll
        for (int band = 0; band < LATENT_BANDS; band++) {
            mbarrier_wait(bar_of(smem, EMPTY + stage.stage), stage.phase ^ 1);
            widen_latent<F, bf16>(raw, band, part, x);
            store_columns(smem + stage.stage * BAND_BYTES, key, part, x);
            stage_written(bar_of(smem, FULL + stage.stage));
            if (band / 4 != RANK) /* what a band's registers held is replaced at once */
                fetch_latent(&raw, band, part, from);
            stage.next();
        }
        if (F::rope && g.bands > LATENT_BANDS) {
            mbarrier_wait(bar_of(smem, EMPTY + stage.stage), stage.phase ^ 1);
            widen_rope<F, bf16>(raw, x);
            store_columns(smem + stage.stage * BAND_BYTES, key, part, x);
            stage_written(bar_of(smem, FULL + stage.stage));
            fetch_rope(&raw, part, from);
            stage.next();
        }
#pragma unroll
        for (int v = 0; v < 2; v++) {
            if (MLA_MUTANT != 12)
                mbarrier_wait(bar_of(smem, V_EMPTY + v), phase ^ 1);
#pragma unroll
            for (int b = 0; b < 2; b++) {
                int band = V_FIRST + 2 * v + b;
                u32 to = smem + V_AT + v * V_PART + b * V_BAND;
                widen_latent<F, bf16>(raw, band, part, x);
                store_columns(to + RANK * BAND_BYTES, key, part, x);
                fetch_latent(&raw, band, part, from);
                widen_latent<F, bf16>(raw_other, band, part, x);
                store_columns(to + (1 - RANK) * BAND_BYTES, key, part, x);
                if (AHEAD == 4)
                    fetch_latent(&raw_other, band, part, from_other);
                else if (v == 0)
                    fetch_latent(&raw_other, band + 2, part, of_other);
                else
                    fetch_latent(&raw_other, band - 2, part, from_other);
            }
            stage_written(bar_of(smem, V_FULL + v));
        }
        phase ^= 1;
#pragma unroll
        for (int i = 0; i < F::scale; i++) {
            raw.scale[i] = scale[i];
            raw_other.scale[i] = scale_other[i];
        }
    }
}

template <int RANK>
__device__ __forceinline__ void loader_role(const struct mla_decode_args &g, const struct work &w,
                                            u32 smem, const struct span &s, int first)
{
    switch (g.a.cache.format) {
    case MLA_CACHE_FP8_DS_MLA:
        load_tiles<RANK, fp8_record>(g, w, smem, s, first);
        break;
    case MLA_CACHE_MODEL1:
        load_tiles<RANK, model1_record>(g, w, smem, s, first);
        break;
    case MLA_CACHE_V41:
        load_tiles<RANK, v41_record>(g, w, smem, s, first);
        break;
    case MLA_CACHE_NVFP4_DS_MLA:
        load_tiles<RANK, nvfp4_record>(g, w, smem, s, first);
        break;
    default:
        load_tiles<RANK, plain_record>(g, w, smem, s,
                                       first); /* bf16 and f16: 16 bits are 16 bits */
        break;
    }
}

/* ---------------------------------------------------------------- tensor core */

/* Scores of each step: [128 rows x 128 keys] = Q · K^T. One thread of the even CTA. */
__device__ __forceinline__ void score_role(const struct mla_decode_args &g, u32 smem, u32 tmem,
                                           operand_type type, int steps)
{
    u32 idesc = umma_idesc(ROWS, STEP, type, type, OPERAND_F32, false, false);
    ring<KEY_STAGES> stage;
    for (int t = 0; t < steps; t++) {
        mbarrier_wait(bar_of(smem, S_FREE), (t & 1) ^ 1);
        tcgen05_fence_after();
        for (int band = 0; band < g.bands; band++) {
            mbarrier_wait(bar_of(smem, FULL + stage.stage), stage.phase);
            u64 k_desc = umma_desc(smem + stage.stage * BAND_BYTES, 16, 1024, 128);
            u64 q_desc = umma_desc(smem + Q_AT + (band - TMEM_BANDS) * Q_BAND, 16, 1024, 128);
#pragma unroll
            for (int k = 0; k < 4; k++) {
                if (band < TMEM_BANDS)
                    tcgen05_mma_ts<2, KIND_F16>(tmem + S_COLUMN,
                                                tmem + Q_COLUMN + 32 * band + 8 * k, k_desc + 2 * k,
                                                idesc, band > 0 || k > 0);
                else
                    tcgen05_mma_ss<2, KIND_F16>(tmem + S_COLUMN, q_desc + 2 * k, k_desc + 2 * k,
                                                idesc, true);
            }
            tcgen05_commit_multicast<2>(bar_of(smem, EMPTY + stage.stage), BOTH);
            stage.next();
        }
        tcgen05_commit_multicast<2>(bar_of(smem, S_FULL), MLA_MUTANT == 1 ? 1 : BOTH);
    }
    /* The last arrivals of the odd CTA land before this one exits. */
    if (steps)
        mbarrier_wait(bar_of(smem, S_FREE), (steps & 1) ^ 1);
}

/* Output: [128 rows x 256 columns] += P · V, twice: 128 columns of each CTA. One thread of the even
 * CTA. */
__device__ __forceinline__ void out_role(u32 smem, u32 tmem, operand_type type, int steps)
{
    u32 idesc = umma_idesc(ROWS, 256, type, type, OPERAND_F32, false, true);
    for (int t = 0; t < steps; t++) {
        mbarrier_wait(bar_of(smem, P_FULL), t & 1);
        tcgen05_fence_after();
        for (int part = 0; part < 2; part++) {
            if (MLA_MUTANT != 5)
                mbarrier_wait(bar_of(smem, V_FULL + part), t & 1);
            /* 8 keys are 1024 bytes on, the next 64 columns V_BAND. */
            u64 v_desc = umma_desc(smem + V_AT + part * V_PART,
                                   MLA_MUTANT == 9 ? BAND_BYTES : V_BAND, 1024, 128);
#pragma unroll
            for (int k = 0; k < STEP / 16; k++) {
                u64 p_desc = umma_desc(smem + P_AT + k / 4 * P_HALF + k % 4 * 32, 16, 1024, 128);
                tcgen05_mma_ss<2, KIND_F16>(tmem + O_COLUMN + part * 128, p_desc,
                                            v_desc + k * (16 * 128 / 16), idesc, t > 0 || k > 0);
            }
            tcgen05_commit_multicast<2>(bar_of(smem, V_EMPTY + part), BOTH);
        }
        tcgen05_commit_multicast<2>(bar_of(smem, OUT_DONE), BOTH);
    }
}

/* -------------------------------------------------------------------- softmax */

/* O (256 columns of this lane's row and half) times factor. */
__device__ __forceinline__ void rescale_out(u32 tmem_lanes, float factor)
{
#pragma unroll 1
    for (int c = 0; c < 256; c += 32) {
        u32 x[32];
        tcgen05_ld_32x32b(x, tmem_lanes + O_COLUMN + c);
        tcgen05_wait_ld(x);
#pragma unroll
        for (int i = 0; i < 32; i++)
            x[i] = __float_as_uint(__uint_as_float(x[i]) * factor);
        tcgen05_st_32x32b(tmem_lanes + O_COLUMN + c, x);
    }
    tcgen05_wait_st();
}

/* 32 columns of a row of the output. */
__device__ __forceinline__ void store_columns_of_row(const struct mla_mqa_args &a, bool split,
                                                     int64_t to, const float v[32])
{
    if (split || a.out_dtype == MLA_F32) {
        float *out = (split ? a.part_out : (float *)a.out) + to;
        if ((uintptr_t)out % 16 == 0) {
#pragma unroll
            for (int i = 0; i < 32; i += 4)
                *(float4 *)(out + i) = make_float4(v[i], v[i + 1], v[i + 2], v[i + 3]);
        } else {
#pragma unroll
            for (int i = 0; i < 32; i++)
                out[i] = v[i];
        }
        return;
    }
    u32 two[16];
#pragma unroll
    for (int i = 0; i < 16; i++)
        two[i] = a.out_dtype == MLA_BF16 ? cvt_rn_bf16x2_f32(v[2 * i], v[2 * i + 1])
                                         : cvt_rn_f16x2_f32(v[2 * i], v[2 * i + 1]);
    uint16_t *out = (uint16_t *)a.out + to;
    if ((uintptr_t)out % 16 == 0) {
#pragma unroll
        for (int i = 0; i < 16; i += 4)
            *(uint4 *)(out + 2 * i) = make_uint4(two[i], two[i + 1], two[i + 2], two[i + 3]);
    } else {
#pragma unroll
        for (int i = 0; i < 16; i++) {
            out[2 * i] = (uint16_t)two[i];
            out[2 * i + 1] = (uint16_t)(two[i] >> 16);
        }
    }
}

/* A thread has one row and 64 of a step's 128 keys, later 256 of its 512 columns: half 0 or 1. */
__device__ __forceinline__ void softmax_role(const struct mla_decode_args &g, const struct work &w,
                                             u32 smem, u32 tmem, int rank, const struct span &s)
{
    const struct mla_mqa_args &a = g.a;
    int lane = threadIdx.x % 32, own = threadIdx.x % OWN_ROWS, half = threadIdx.x / OWN_ROWS;
    int row = OWN_ROWS * rank + own;
    int limit = causal_end(a, w, (w.row0 + min(row, w.rows - 1)) / a.heads);
    int least = min(w.seq_len, causal_end(a, w, w.token0));
    limit = min(limit, w.seq_len);
    u32 lanes = tmem + (threadIdx.x / 32 * 32 << 16);
    float top = -INFINITY, base = -INFINITY, sum = 0;
    struct stream low, high;
    start_stream(a, w, 2 * s.first + half, 2, 2 * s.last, lane, &low);
    start_stream(a, w, 2 * s.first + half, 2, 2 * s.last, lane + 32, &high);
    u32 phase = 0;
#pragma unroll 1
    for (int t = s.first; t < s.last; t++, phase ^= 1) {
        int tile = 2 * t + half;
        uint32_t sees[2] = {__ballot_sync(0xFFFFFFFFu, stream_sees(a, w, low)),
                            __ballot_sync(0xFFFFFFFFu, stream_sees(a, w, high))};
        advance_stream(a, w, tile, &low);
        advance_stream(a, w, tile, &high);
        if (!w.list && (a.mask || (t + 1) * STEP > least)) {
            sees[0] &= row_sees(a, w, row, limit, tile * KEYS);
            sees[1] &= row_sees(a, w, row, limit, tile * KEYS + 32);
        }
        mbarrier_wait(bar_of(smem, S_FULL), phase);
        tcgen05_fence_after();
        u32 x[64];
        tcgen05_ld_32x32b(x, lanes + S_COLUMN);
        if (MLA_MUTANT == 10)
            mbarrier_arrive_cluster(mapa(bar_of(smem, S_FREE), 0));
        tcgen05_wait_ld(x);
        tcgen05_fence_before();
        if (MLA_MUTANT != 10)
            mbarrier_arrive_cluster(mapa(bar_of(smem, S_FREE), 0));

#pragma unroll
        for (int i = 0; i < 64; i++) {
            float v = __uint_as_float(x[i]) * a.scale_log2;
            v = sees[i / 32] >> i % 32 & 1 ? v : -INFINITY;
            x[i] = __float_as_uint(v);
            top = fmaxf(top, v);
        }
        /* Both halves follow one maximum. */
        u32 exchange = smem + EXCHANGE_AT + phase * EXCHANGE_HALF;
        st_shared(exchange + (half * OWN_ROWS + own) * 4, top);
        bar_sync(1, SOFTMAX_WARPS * 32);
        if (MLA_MUTANT != 6)
            top = fmaxf(top, ld_shared<float>(exchange + ((1 - half) * OWN_ROWS + own) * 4));
        /* No key yet: any finite reference gives weights 0. */
        float factor = 1;
        if (top > base + GROWTH) {
            factor = ex2_approx_ftz(base - top);
            base = top;
        }
        float reference = base == -INFINITY ? 0 : base;
        float some[4] = {0, 0, 0, 0};
#pragma unroll
        for (int i = 0; i < 32; i++) {
            float p0 = ex2_approx_ftz(__uint_as_float(x[2 * i]) - reference);
            float p1 = ex2_approx_ftz(__uint_as_float(x[2 * i + 1]) - reference);
            some[i % 4] += p0 + p1;
            x[i] = g.is_bf16 ? cvt_rn_bf16x2_f32(p0, p1) : cvt_rn_f16x2_f32(p0, p1);
        }
        sum = sum * factor + ((some[0] + some[1]) + (some[2] + some[3]));
        if (t > s.first) {
            mbarrier_wait(bar_of(smem, OUT_DONE), phase ^ 1);
            tcgen05_fence_after();
            if (__any_sync(0xFFFFFFFFu, factor != 1) && MLA_MUTANT != 13)
                rescale_out(lanes, factor);
        }
        u32 to = smem + P_AT + (MLA_MUTANT == 7 ? 1 - half : half) * P_HALF + own * 128;
#pragma unroll
        for (int u = 0; u < 8; u++)
            st_shared(to + ((u ^ own % 8) << 4),
                      make_uint4(x[4 * u], x[4 * u + 1], x[4 * u + 2], x[4 * u + 3]));
        tcgen05_fence_before();
        fence_proxy_async();
        mbarrier_arrive_cluster(mapa(bar_of(smem, P_FULL), 0));
    }

    /* Results: the half of the exchange that the last step did not use. */
    int steps = s.last - s.first;
    u32 sums = smem + EXCHANGE_AT + phase * EXCHANGE_HALF;
    st_shared(sums + (half * OWN_ROWS + own) * 4, sum);
    bar_sync(1, SOFTMAX_WARPS * 32);
    float both[2] = {ld_shared<float>(sums + own * 4),
                     ld_shared<float>(sums + (OWN_ROWS + own) * 4)};
    int64_t to;
    float factor = finish(a, w, row, base, top, both[0] + both[1], half == 0, &to);
    if (steps) {
        mbarrier_wait(bar_of(smem, OUT_DONE), phase ^ 1);
        tcgen05_fence_after();
    }
#pragma unroll 1
    for (int c = 0; c < 256; c += 32) {
        u32 x[32];
        float v[32];
        if (steps) {
            tcgen05_ld_32x32b(x, lanes + O_COLUMN + c);
            tcgen05_wait_ld(x);
        }
#pragma unroll
        for (int i = 0; i < 32; i++)
            v[i] = steps && factor != 0 ? __uint_as_float(x[i]) * factor : 0;
        if (to >= 0)
            store_columns_of_row(a, w.r.splits > 1, to + 256 * half + c, v);
    }
}

/* --------------------------------------------------------------------- kernel */

__global__ void __launch_bounds__(THREADS, 1)
    mqa_decode_pair_kernel(const __grid_constant__ struct mla_decode_args g)
{
    u32 smem = dynamic_smem();
    int warp = warp_index(), rank = cluster_ctarank(), block = blockIdx.x / 2;
    struct work w;
    set_work<ROWS>(g.a, find_request(g.a, block, gridDim.x / 2), block, 0, &w);
    struct span s = span_of<STEP>(w);
    int steps = s.last - s.first, whole = end_of_boxes<STEP>(g, w, s);

    if (warp == SCORE_WARP && elect_one())
        init_barriers(smem);
    __syncwarp();
    cluster_sync(); /* the peer runs */
    if (warp == OUT_WARP) {
        tcgen05_alloc<2>(smem + TMEM_AT, COLUMNS);
        tcgen05_relinquish<2>();
    }
    load_q(g, w, smem, rank);
    fence_proxy_async();
    tcgen05_fence_before();
    __syncthreads();
    tcgen05_fence_after();
    u32 tmem = ld_shared<u32>(smem + TMEM_AT);
    if (warp < SOFTMAX_WARPS)
        store_q(g, w, tmem, rank);
    tcgen05_fence_before();
    cluster_sync(); /* Q and the barriers of both */
    tcgen05_fence_after();
    operand_type type = g.is_bf16 ? OPERAND_BF16 : OPERAND_F16;

    if (warp < SOFTMAX_WARPS) {
        MLA_ROLE("softmax");
        setmaxnreg_dec<SOME>();
        softmax_role(g, w, smem, tmem, rank, s);
    } else if (warp < LOADER_WARP + LOADER_WARPS) {
        MLA_ROLE("loader");
        setmaxnreg_inc<MANY>();
        if (whole < s.last) {
            if (rank == 0)
                loader_role<0>(g, w, smem, s, whole);
            else
                loader_role<1>(g, w, smem, s, whole);
        }
    } else {
        setmaxnreg_dec<FEW>();
        if (warp == SCORE_WARP) {
            MLA_ROLE("scores");
            if (rank == 0 && elect_one())
                score_role(g, smem, tmem, type, steps);
        } else if (warp == OUT_WARP) {
            MLA_ROLE("output");
            if (rank == 0 && elect_one())
                out_role(smem, tmem, type, steps);
        } else if (warp == KEY_TMA_WARP) {
            MLA_ROLE("tma of keys");
            key_tma_role(g, w, smem, rank, s.first, whole);
        } else {
            MLA_ROLE("tma of values");
            value_tma_role(g, w, smem, rank, s.first, whole);
        }
        /* The stages of its last step were free once: loaders can tell phases by parity. */
        if (warp >= KEY_TMA_WARP && threadIdx.x % 32 == 0)
            mbarrier_arrive(bar_of(smem, HANDED));
        __syncwarp();
    }
    tcgen05_fence_before();
    if (MLA_MUTANT != 11)
        cluster_sync(); /* the peer's tensor core is done with this CTA's memory */
    tcgen05_fence_after();
    if (warp == OUT_WARP)
        tcgen05_dealloc<2>(tmem, COLUMNS);
}

extern "C" struct mla_mqa_tile mla_mqa_decode_pair_tile(void)
{
    struct mla_mqa_tile t = {mla_kernel_address(mqa_decode_pair_kernel), SHARED_BYTES, THREADS, 2};
    return t;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* Absorbed-form attention for tiles of 64 query rows: what mqa.cuh does for 16 and 32, arranged for
 * the case where the products bound. mma.sync, ldmatrix and cp.async only, at most 99 KB of shared
 * memory a block, 8 warps, one block an SM.
 *
 * O (64 x 512 floats, 128 registers a thread) and Q (72) fill the register file, so a scheduler has
 * two warps and little to hide latency with. Hence one straight line of instructions a step of 16
 * keys, whose pieces do not wait for each other:
 *   copy     rows of step j + 3 start on their way (packed caches: records of step j + 2 are
 *            widened, those of step j + 4 start)
 *   scores   of step j + 1: 32 rows x 16 keys over a quarter of d, a fragment of K feeding four
 *            mma; the quarters are exchanged through shared memory, a warp finishes eight rows
 *   values   O (all rows, 64 columns) += P(j) · V(j), and between these mma the softmax of step
 *            j + 1: maximum, weights P(j + 1), the factor for what was summed before
 * One barrier of all warps a step, one of four warps for the exchange.
 *
 * Addresses: a batch is 32 keys (two steps). One warp in turn finds those of a batch, in three of
 * its steps: positions, page ids, then addresses in shared memory for all to read.
 *
 * Shared memory, bytes (rope 64)                    plain cache            packed cache
 *   K rows, 16 x 1152 a step                        4 steps   73728        3 steps   55296
 *   raw records, 16 x 656 a step                                           2 steps   20992
 *   scores on their way across                                16384                  16384
 *   P and row factors, two steps each                          4608                   4608
 *   addresses of two batches, key bits, the block's work       1180                   1180
 *   in all                                                    95904                  98464
 * Q passes through the rows of K at the start.
 * Registers: 255; spills are listed in docs/kernel-table.md.
 *
 * Clocks of a step on an H100 (mma: 1.5 clocks an SM; shared memory: 128 bytes a clock):
 *   tensor cores    288 mma of scores, 256 of values                                          816
 *   shared memory   K twice 288, V 128, P 128, copy 144, exchange 256                         944
 *   a warp alone    68 mma at 6.2 clocks; about 230 instructions in all */
#ifndef MLA_CUDA_ANY_MQA_WIDE_CUH
#define MLA_CUDA_ANY_MQA_WIDE_CUH

#include "mqa.cuh"

static const int WIDE_ROWS = 64;
static const int WIDE_KEYS = 16; /* a step */
static const int WIDE_AHEAD = 2; /* fragments of K on their way */

template <int ROPE, bool PACKED> struct wide_tile {
    static const int bands = (MLA_MQA_LATENT + ROPE) / 64; /* of 64 columns of d */
    static const int row_bytes = (MLA_MQA_LATENT + ROPE) * 2;
    static const int step_bytes = WIDE_KEYS * row_bytes;
    static const int slots = PACKED ? 3 : 4; /* steps j (values), j + 1 (scores) and later */
    static const int lead = PACKED ? 4 : 3;  /* steps from a copy's start to its values */
    static const int raw_bytes = WIDE_KEYS * RAW_PITCH;
    static const int raw_at = slots * step_bytes;
    static const int exchange_at = raw_at + (PACKED ? 2 : 0) * raw_bytes;
    static const int weights_at = exchange_at + 4 * WIDE_ROWS * WIDE_KEYS * 4;
    static const int weight_bytes = WIDE_ROWS * WIDE_KEYS * 2;
    static const int rows_at = weights_at + 2 * weight_bytes; /* factors */
    static const int places_at = rows_at + 2 * WIDE_ROWS * 4;
    static const int visible_at = places_at + 2 * KEYS * 16; /* bits of four batches */
    static const int moved_at = visible_at + 16; /* last steps that had a factor other than 1 */
    static const int found_at = moved_at + 8;
    static const int work_at = found_at + 8; /* struct work, once for all */
    static const int shared_bytes = work_at + sizeof(struct work);
    /* What store_row wants to know. */
    static const int rows_warp = WIDE_ROWS / WARPS;
    static const int lanes_row = 32 / rows_warp;
    static_assert(shared_bytes <= MAX_SHARED, "the tile must fit sm_120's 99 KB");
    static_assert(WIDE_ROWS * row_bytes <= exchange_at, "Q passes through the rows of keys");
    static_assert(places_at % 16 == 0 && work_at % 8 == 0, "aligned accesses");
};

/* The value itself, which the compiler now keeps rather than computes again. */
__device__ __forceinline__ uint32_t keep(uint32_t x)
{
    return __shfl_sync(0xFFFFFFFFu, x, threadIdx.x % 32);
}

/* Q of the tile through shared memory into this warp's fragments: rows 32 · (warp / 4) and on, of
 * each band the quarter warp % 4. */
template <class S>
__device__ __forceinline__ void wide_load_q(const struct mla_mqa_args &a, const struct work &w,
                                            char *shared, uint32_t smem, uint32_t q[S::bands][2][4])
{
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll 1
    for (int row = warp; row < WIDE_ROWS; row += WARPS) {
        int at = w.row0 + min(row, w.rows - 1);
        const char *src = a.q + (int64_t)(w.r.q_start + at / a.heads) * a.q_stride[0] +
                          at % a.heads * a.q_stride[1];
        for (int chunk = lane; chunk < S::row_bytes / 16; chunk += 32) {
            int to = row * S::row_bytes + ((chunk ^ (row & 7)) << 4);
            if (a.q_align == 16)
                cp_async_cg_16(smem + to, src + 16 * chunk, row < w.rows ? 16 : 0);
            else
                copy_unaligned(smem + to, shared + to, src + 16 * chunk, 16, row < w.rows,
                               a.q_align);
        }
    }
    cp_async_wait_all();
    __syncthreads();
    int row = warp / 4 * 32 + lane % 16, chunk = warp % 4 * 2 + lane / 16;
#pragma unroll
    for (int b = 0; b < S::bands; b++)
#pragma unroll
        for (int m = 0; m < 2; m++)
            ldmatrix_x4(q[b][m], smem + (row + 16 * m) * S::row_bytes + b * 128 +
                                     ((chunk ^ (row & 7)) << 4));
    __syncthreads();
}

/* ---------------------------------------------------------------- addresses */

/* Offsets of a batch's keys and their bits, for all warps to read after a barrier. */
template <class S>
__device__ __forceinline__ void wide_store_places(const struct mla_mqa_args &a,
                                                  const struct work &w, char *shared, int batch,
                                                  int pos, int page)
{
    bool ok = page >= 0 && (!w.pages || page < a.cache.num_pages);
    struct row_place place = {0, 0};
    if (ok)
        place = place_row(&a.cache, w.r.kv_start, pos, page);
    uint32_t visible = __ballot_sync(0xFFFFFFFFu, ok);
    *(struct row_place *)(shared + S::places_at + (batch % 2 * KEYS + threadIdx.x % 32) * 16) =
        place;
    if (threadIdx.x % 32 == 0)
        ((uint32_t *)(shared + S::visible_at))[batch & 3] = visible;
}

/* Bits of the 16 keys of a step. */
template <class S> __device__ __forceinline__ uint32_t wide_visible(const char *shared, int step)
{
    return ((const uint32_t *)(shared + S::visible_at))[step >> 1 & 3] >> (step & 1) * 16 & 0xFFFF;
}

/* The turn that a warp has: in steps 2b - 9, 2b - 7 and 2b - 5 for batch b, then for batch b + 8. */
struct wide_turn {
    int batch, step;
    int pos, page;
};

template <class S>
__device__ __forceinline__ void wide_take_turn(const struct mla_mqa_args &a, const struct work &w,
                                               char *shared, int last, struct wide_turn *t)
{
    int left = 2 * t->batch - t->step;
    if (left == 9) {
        t->pos = fetch_position(a, w, t->batch, last);
    } else if (left == 7) {
        t->page = fetch_page(a, w, t->pos);
    } else {
        wide_store_places<S>(a, w, shared, t->batch, t->pos, t->page);
        t->batch += WARPS;
        t->step = 2 * t->batch - 11;
    }
    t->step += 2;
}

/* --------------------------------------------------------------------- rows */

/* The same for rows that are not 16-byte aligned: rare, so small rather than fast. */
template <class S, bool PACKED>
__device__ __noinline__ void wide_copy_unaligned(const struct mla_mqa_cache &c, char *shared,
                                                 uint32_t smem, int to, struct row_place place,
                                                 bool see)
{
    int part = threadIdx.x % 16, key = threadIdx.x / 16;
    int chunks = PACKED ? c.record_bytes / 16 : S::row_bytes / 16;
#pragma unroll 1
    for (int chunk = part; chunk < chunks; chunk += 16) {
        const char *from = c.data + place.data + 16 * chunk;
        int at = to + 16 * (PACKED ? chunk : chunk ^ (key & 7));
        if (!PACKED && chunk >= MLA_MQA_LATENT / 8)
            from = c.rope + place.other + 16 * chunk - 2 * MLA_MQA_LATENT;
        copy_unaligned(smem + at, shared + at, from, 16, see, c.align);
    }
}

/* Starts the copy of two keys of a step into the rows (records) at `to`, 16 lanes a key; keys that
 * are not visible become zeros. */
template <class S, bool PACKED>
__device__ __forceinline__ void wide_copy(const struct mla_mqa_args &a, char *shared, uint32_t smem,
                                          int step, int to, bool aligned)
{
    const struct mla_mqa_cache &c = a.cache;
    int part = threadIdx.x % 16, key = threadIdx.x / 16;
    struct row_place place = *(const struct row_place *)(shared + S::places_at +
                                                         ((step & 3) * WIDE_KEYS + key) * 16);
    bool see = wide_visible<S>(shared, step) >> key & 1;
    uint32_t bytes = see ? 16 : 0;
    if (PACKED) {
        to += key * RAW_PITCH;
        /* Scales from the page footer, behind the record: at most 8-byte aligned for model1. */
        if (part == 0 && c.footer_bytes)
            copy_unaligned(smem + to + c.record_bytes, shared + to + c.record_bytes,
                           c.data + place.other, c.footer_bytes, see, min(c.align, 8));
    } else {
        to += key * S::row_bytes;
    }
    if (!aligned) {
        wide_copy_unaligned<S, PACKED>(c, shared, smem, to, place, see);
        return;
    }
    const char *src = c.data + place.data + 16 * part;
    if (PACKED) {
#pragma unroll
        for (int i = 0; i < (RAW_PITCH + 255) / 256; i++)
            if (i * 256 + 16 * part < c.record_bytes)
                cp_async_cg_16(smem + to + i * 256 + 16 * part, src + i * 256, bytes);
    } else {
        uint32_t first = smem + to + ((part ^ (key & 7)) << 4);
#pragma unroll
        for (int i = 0; i < MLA_MQA_LATENT / 128; i++)
            cp_async_cg_16(first + i * 256, src + i * 256, bytes);
        if (S::row_bytes > 2 * MLA_MQA_LATENT && part < 8)
            cp_async_cg_16(first + 2 * MLA_MQA_LATENT, c.rope + place.other + 16 * part, bytes);
    }
}

/* Raw records of this warp's two keys to rows of T. */
template <class S, class T>
__device__ __forceinline__ void wide_widen(int format, const char *raw, char *rows)
{
    int lane = threadIdx.x % 32, first = threadIdx.x / 32 * 2;
#pragma unroll
    for (int k = 0; k < 2; k++) {
        int key = first + k;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            int chunk = h * 32 + lane;
            *(uint4 *)(rows + key * S::row_bytes + ((chunk ^ (key & 7)) << 4)) =
                dequant_chunk<T>(format, raw + key * RAW_PITCH, chunk);
        }
    }
    if (S::row_bytes > 2 * MLA_MQA_LATENT && lane < 16) {
        int key = first + lane / 8, from = MUTANT(FP8_ROPE) && key ? key - 1 : key;
        *(uint4 *)(rows + key * S::row_bytes + 2 * MLA_MQA_LATENT + ((lane % 8 ^ (key & 7)) << 4)) =
            dequant_chunk<T>(format, raw + from * RAW_PITCH, MLA_MQA_LATENT / 8 + lane % 8);
    }
}

/* ----------------------------------------------------------------- products */

/* Addresses of this lane, for good. */
struct wide_lane {
    uint32_t k;        /* of a fragment of K, within a step's rows */
    uint32_t v;        /* of one of V */
    uint32_t p;        /* of one of P */
    uint32_t put, get; /* scores across: octet 0 of this quarter; this warp's octet, quarter 0 */
    uint32_t weight;   /* where P of this lane's first two keys goes */
    uint32_t factor;   /* of the eight rows' factors that this lane's accumulators want */
};

template <class S> __device__ __forceinline__ struct wide_lane wide_lane_of(uint32_t smem)
{
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    struct wide_lane l;
    int key = lane / 16 * 8 + lane % 8, chunk = warp % 4 * 2 + lane / 8 % 2;
    l.k = keep(smem + key * S::row_bytes + ((chunk ^ lane % 8) << 4));
    key = lane / 8 % 2 * 8 + lane % 8;
    l.v = keep(smem + key * S::row_bytes + warp * 128 + ((lane / 16 ^ lane % 8) << 4));
    int row = lane % 16;
    l.p = keep(smem + S::weights_at + row * 32 + ((lane / 16 ^ (row >> 2 & 1)) << 4));
    l.put = keep(S::exchange_at + warp / 4 * 8192 + warp % 4 * 512 + lane * 16);
    l.get = keep(S::exchange_at + warp / 4 * 8192 + warp % 4 * 2048 + lane * 16);
    row = warp * 8 + lane / 4;
    l.weight = keep(S::weights_at + row * 32 + ((row >> 2 & 1) << 4) + lane % 4 * 4);
    l.factor = keep(S::rows_at + lane / 4 * 4);
    return l;
}

/* 32 rows x 16 keys over this warp's quarter of d, to where the warps that finish the rows will read
 * them: octets of 8 rows, 16 bytes a lane. */
template <class S, class T>
__device__ __forceinline__ void wide_scores(char *shared, uint32_t put, uint32_t from,
                                            uint32_t q[S::bands][2][4])
{
    float s[2][2][4];
#pragma unroll
    for (int i = 0; i < 16; i++)
        s[i / 8][i / 4 % 2][i % 4] = 0;
    uint32_t k[WIDE_AHEAD + 1][4];
#pragma unroll
    for (int i = 0; i < S::bands + WIDE_AHEAD; i++) {
        if (i < S::bands)
            ldmatrix_x4(k[i % (WIDE_AHEAD + 1)], from + i * 128);
        int j = i - WIDE_AHEAD;
        if (j < 0 || (MUTANT(ROPE_DROPPED) && j == MLA_MQA_LATENT / 64))
            continue;
        const uint32_t *fresh = k[j % (WIDE_AHEAD + 1)];
#pragma unroll
        for (int m = 0; m < 2; m++) {
            T::mma(s[m][0], q[j][m], fresh[0], fresh[1]);
            T::mma(s[m][1], q[j][m], fresh[2], fresh[3]);
        }
    }
#pragma unroll
    for (int o = 0; o < 4; o++)
        *(float4 *)(shared + put + o * 2048) =
            make_float4(s[o / 2][0][o % 2 * 2], s[o / 2][0][o % 2 * 2 + 1], s[o / 2][1][o % 2 * 2],
                        s[o / 2][1][o % 2 * 2 + 1]);
}

/* Scores of this lane's row, keys 8n + 2 · (lane % 4) and the next: x[2n], x[2n + 1]; hidden ones
 * -inf, in log2. bits: the keys that the row sees. */
__device__ __forceinline__ void wide_gather(const char *shared, uint32_t get, uint32_t bits,
                                            float scale_log2, float x[4])
{
    float4 part[4];
#pragma unroll
    for (int i = 0; i < 4; i++)
        part[i] = *(const float4 *)(shared + get + i * 512);
    x[0] = (part[0].x + part[1].x) + (part[2].x + part[3].x);
    x[1] = (part[0].y + part[1].y) + (part[2].y + part[3].y);
    x[2] = (part[0].z + part[1].z) + (part[2].z + part[3].z);
    x[3] = (part[0].w + part[1].w) + (part[2].w + part[3].w);
    bits >>= threadIdx.x % 4 * 2;
#pragma unroll
    for (int i = 0; i < 4; i++)
        x[i] = bits >> (i / 2 * 8 + i % 2) & 1 ? x[i] * scale_log2 : -INFINITY;
}

/* Leaves P of the step and the factor that rescales what was summed before; if it is not 1, `step`
 * in *moved. */
__device__ __forceinline__ float wide_maximum(const float x[4], struct row_state *st)
{
    float top = fmaxf(fmaxf(x[0], x[1]), fmaxf(x[2], x[3]));
    top = fmaxf(top, __shfl_xor_sync(0xFFFFFFFFu, top, 1));
    top = fmaxf(top, __shfl_xor_sync(0xFFFFFFFFu, top, 2));
    float before = st->max_log2;
    st->max_log2 = fmaxf(before, top);
    /* No key yet: any finite reference gives weights 0. */
    float reference = st->max_log2 == -INFINITY ? 0 : st->max_log2;
    return st->max_log2 == before ? 1 : ex2_approx_ftz(before - reference);
}

template <class S, class T>
__device__ __forceinline__ void wide_weights(char *shared, uint32_t weight, int step,
                                             const float x[4], float factor, struct row_state *st)
{
    int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 8 + lane / 4, odd = step & 1;
    float reference = st->max_log2 == -INFINITY ? 0 : st->max_log2, p[4];
#pragma unroll
    for (int i = 0; i < 4; i++)
        p[i] = ex2_approx_ftz(x[i] - reference);
    st->sum = st->sum * factor + ((p[0] + p[1]) + (p[2] + p[3]));
    uint32_t to = weight + odd * S::weight_bytes;
    *(uint32_t *)(shared + to) = T::pack(p[0], p[1]);
    *(uint32_t *)(shared + (to ^ 16)) = T::pack(p[2], p[3]);
    if (lane % 4 == 0) {
        *(float *)(shared + S::rows_at + odd * WIDE_ROWS * 4 + 4 * row) = factor;
        if (factor != 1)
            *(int *)(shared + S::moved_at + odd * 4) = step;
    }
}

/* o *= the factors of a step. */
__device__ __forceinline__ void wide_rescale(const char *factors,
                                             float o[WIDE_ROWS / 16][OUT_TILES][4])
{
#pragma unroll
    for (int m = 0; m < 4; m++) {
        float low = *(const float *)(factors + m * 64), high = *(const float *)(factors + m * 64 + 32);
        if (!__any_sync(0xFFFFFFFFu, low != 1 || high != 1))
            continue;
#pragma unroll
        for (int n = 0; n < OUT_TILES; n++) {
            o[m][n][0] *= low;
            o[m][n][1] *= low;
            o[m][n][2] *= high;
            o[m][n][3] *= high;
        }
    }
}

/* ------------------------------------------------------------------- kernel */

template <int ROPE, bool PACKED, class T>
__global__ void __launch_bounds__(MLA_MQA_THREADS, 1)
    mqa_wide_kernel(const __grid_constant__ struct mla_mqa_args a)
{
    typedef wide_tile<ROPE, PACKED> S;
    MLA_DYNAMIC_SHARED(shared, 1024);
    uint32_t smem = (uint32_t)__cvta_generic_to_shared(shared);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    /* In shared memory, for want of registers. */
    const struct work &w = *(const struct work *)(shared + S::work_at);
    {
        struct work found;
        find_work<WIDE_ROWS>(a, (int *)(shared + S::found_at), &found);
        if (threadIdx.x == 0) {
            *(struct work *)(shared + S::work_at) = found;
            ((int *)(shared + S::moved_at))[0] = ((int *)(shared + S::moved_at))[1] = -100;
        }
        __syncthreads();
    }
    int batches = (w.count + KEYS - 1) / KEYS;
    int share = (batches + w.r.splits - 1) / w.r.splits;
    const int first = min(batches, w.split * share), last = min(batches, first + share);
    const bool aligned = a.cache.align == 16;

    uint32_t q[S::bands][2][4];
    wide_load_q<S>(a, w, shared, smem, q);
    float o[WIDE_ROWS / 16][OUT_TILES][4];
#pragma unroll
    for (int i = 0; i < 128; i++)
        o[i / 32][i / 4 % 8][i % 4] = 0;
    struct row_state state = {-INFINITY, 0};
    const struct wide_lane at = wide_lane_of<S>(smem);

    /* The row whose softmax this lane shares: keys before own_end, and its mask. */
    int own_end = 0x7FFFFFFF;
    const uint32_t *own_mask = NULL;
    if (!w.list) {
        int token = (w.row0 + min(warp * 8 + lane / 4, w.rows - 1)) / a.heads;
        own_end = causal_end(a, w, token);
        if (a.mask)
            own_mask = a.mask + (int64_t)(w.r.q_start + token) * a.mask_stride;
    }

    struct wide_turn turn;
    turn.batch = first + warp;
    turn.pos = fetch_position(a, w, turn.batch, last);
    turn.page = fetch_page(a, w, turn.pos);
    if (warp < 2) {
        wide_store_places<S>(a, w, shared, turn.batch, turn.pos, turn.page);
        turn.batch += WARPS;
    }
    turn.step = max(2 * turn.batch - 9, 2 * first - 1);
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 2; i++) {
        wide_copy<S, PACKED>(a, shared, smem, 2 * first + i,
                             PACKED ? S::raw_at + i * S::raw_bytes : i * S::step_bytes, aligned);
        cp_async_commit();
    }
    /* Rows of step j. The first steps have no values yet: plain caches begin with one, packed ones,
     * whose first records are still to be widened, with two. */
    int slot = (S::slots - (S::lead - 2)) * S::step_bytes;
#pragma unroll 1
    for (int j = 2 * first - (S::lead - 2); j < 2 * last; j++) {
        if (!PACKED)
            cp_async_wait_group<1>();
        /* What this step reads is here: rows (copied, or widened), P, factors, places. Nothing is
         * read any more that this step overwrites. */
        __syncthreads();
        if (j == turn.step)
            wide_take_turn<S>(a, w, shared, last, &turn);
        const int next = slot + S::step_bytes == S::slots * S::step_bytes ? 0 : slot + S::step_bytes;
        const int before = slot == 0 ? (S::slots - 1) * S::step_bytes : slot - S::step_bytes;
        if (PACKED) {
            int raw = S::raw_at + (j & 1) * S::raw_bytes;
            cp_async_wait_group<1>();
            __syncwarp();
            wide_widen<S, T>(a.cache.format, shared + raw, shared + before);
            __syncwarp();
            wide_copy<S, PACKED>(a, shared, smem, j + 4, raw, aligned);
        } else {
            wide_copy<S, PACKED>(a, shared, smem, j + 3, before, aligned);
        }
        cp_async_commit();

        const bool scored = j + 1 >= 2 * first && j + 1 < 2 * last;
        uint32_t bits = wide_visible<S>(shared, j + 1) & bits_below(own_end - (j + 1) * WIDE_KEYS);
        if (own_mask && scored)
            bits &= own_mask[(j + 1) / 2] >> (j + 1) % 2 * 16;
        bits = scored ? bits : 0;
        wide_scores<S, T>(shared, at.put, at.k + next, q);

        uint32_t p[4][4], v[2][4];
        const uint32_t v_at = at.v + slot;
        ldmatrix_x4_trans(v[0], v_at);
#pragma unroll
        for (int m = 0; m < 4; m++)
            ldmatrix_x4(p[m], at.p + (j & 1) * S::weight_bytes + m * 512);
        const bool rescale = *(const int *)(shared + S::moved_at + (j & 1) * 4) == j;
        bar_sync(1 + warp / 4, 128);
        float x[4];
        wide_gather(shared, at.get, bits, a.scale_log2, x);
        if (j >= 2 * first) {
            if (rescale)
                wide_rescale(shared + at.factor + (j & 1) * WIDE_ROWS * 4, o);
            float factor = 1;
#pragma unroll
            for (int n = 0; n < OUT_TILES; n += 2) {
                const uint32_t *now = v[n / 2 % 2];
                if (n + 2 < OUT_TILES)
                    ldmatrix_x4_trans(v[n / 2 % 2 ^ 1], v_at ^ (n + 2) << 4);
#pragma unroll
                for (int m = 0; m < 4; m++) {
                    T::mma(o[m][n], p[m], now[0], now[1]);
                    T::mma(o[m][n + 1], p[m], now[2], now[3]);
                }
                if (n == 2)
                    factor = wide_maximum(x, &state);
                if (n == 4)
                    wide_weights<S, T>(shared, at.weight, j + 1, x, factor, &state);
            }
        } else {
            float factor = wide_maximum(x, &state);
            wide_weights<S, T>(shared, at.weight, j + 1, x, factor, &state);
        }
        slot = next;
    }
    cp_async_wait_all();
    __syncthreads();
    store_row<S>(a, w, shared, state);
    __syncthreads();
    store_out<S, WIDE_ROWS>(a, w, shared, o);
}

template <int ROPE, bool PACKED, class T> static struct mla_mqa_tile wide_entry()
{
    struct mla_mqa_tile t = {mla_kernel_address(mqa_wide_kernel<ROPE, PACKED, T>),
                             wide_tile<ROPE, PACKED>::shared_bytes, MLA_MQA_THREADS, 1};
    return t;
}

/* The tile of 64 rows of one element type. */
template <class T> static struct mla_mqa_tile wide_tile_of(int rope, bool packed)
{
    if (rope)
        return packed ? wide_entry<64, true, T>() : wide_entry<64, false, T>();
    return packed ? wide_entry<0, true, T>() : wide_entry<0, false, T>();
}

#endif

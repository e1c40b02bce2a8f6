/* SPDX-License-Identifier: Apache-2.0 */
/* Absorbed-form attention for tiles of 64 query rows: what mqa.cuh does for 16 and 32, arranged for
 * the case where the products bound. mma.sync, ldmatrix and cp.async only, at most 99 KB of shared
 * memory a block, 8 warps, one block an SM.
 *
 * O (64 x 512 floats, 128 registers a thread) and Q (72) fill the register file, so a scheduler has
 * two warps, and what they do must differ at any moment. A step is 16 keys. In the step j a warp has
 * three pieces of work that do not depend on each other:
 *   S   scores of step j + 1: 16 rows x 16 keys over half of d; the halves are exchanged with the
 *       warp that has the other one, each finishes 8 rows: mask, maximum, weights P(j + 1)
 *   PV  O (all rows, 64 columns) += P(j) · V(j), rescaled before where a maximum moved
 *   W   copy of step j + 4 starts; packed caches: records of step j + 2 become rows of T
 * Warps 0 to 3 do S, PV, W, warps 4 to 7 do W, PV, S: a scheduler has one warp of each kind, and the
 * softmax of one lies under the products of the other. One barrier a step joins them.
 *
 * Addresses: a batch is 32 keys (two steps). One warp in turn finds those of a batch, over three
 * pairs of steps: positions, page ids, then slots in shared memory for all.
 *
 * Shared memory, bytes (rope 64)                    plain cache                packed cache
 *   K rows, 16 x 1152 a step: V(j), S(j + 1),        5 steps    92160           3 steps    55296
 *   being written                                   (j .. j+4)                 (j .. j+2)
 *   raw records, 16 x 656 a step                                               3 steps    31488
 *   scores on their way across; P, two steps                      4096; 4096
 *   row factors, two steps; slots of two batches; key bits         512; 256; 32
 *   in all                                                      101152                     95776
 * Registers: 255; spills are listed in docs/performance.md.
 *
 * Clocks of a step on an H100 (mma: 1.5 clocks an SM; shared memory: 128 bytes a clock):
 *   tensor cores    288 mma of S, 256 of PV                                                   816
 *   shared memory   K for S, four times 18 KB: 576; V 128; P 128; copy 144; exchange 64      1040
 * so that shared memory, not the tensor cores, is what an ideal schedule would wait for. */
#ifndef MLA_CUDA_ANY_MQA_WIDE_CUH
#define MLA_CUDA_ANY_MQA_WIDE_CUH

#include "mqa.cuh"

static const int WIDE_ROWS = 64;
static const int WIDE_KEYS = 16; /* a step */
static const int WIDE_AHEAD = 3; /* fragments of K on their way */

template <int ROPE, bool PACKED> struct wide_tile {
    static const int bands = (MLA_MQA_LATENT + ROPE) / 64; /* of 64 columns of d */
    static const int row_bytes = (MLA_MQA_LATENT + ROPE) * 2;
    static const int step_bytes = WIDE_KEYS * row_bytes;
    static const int slots = PACKED ? 3 : 5;
    static const int raw_slots = PACKED ? 3 : 0;
    static const int raw_bytes = WIDE_KEYS * RAW_PITCH;
    static const int raw_at = slots * step_bytes;
    static const int exchange_at = raw_at + raw_slots * raw_bytes;
    static const int weights_at = exchange_at + WARPS * 512;
    static const int weight_bytes = WIDE_ROWS * WIDE_KEYS * 2;
    static const int rows_at = weights_at + 2 * weight_bytes; /* factors */
    static const int places_at = rows_at + 2 * WIDE_ROWS * 4;
    static const int visible_at = places_at + 2 * KEYS * 4; /* bits of four batches */
    static const int found_at = visible_at + 16;
    static const int work_at = found_at + 16; /* struct work, once for all */
    static const int shared_bytes = work_at + sizeof(struct work);
    /* What store_row wants to know. */
    static const int rows_warp = WIDE_ROWS / WARPS;
    static const int lanes_row = 32 / rows_warp;
    static_assert(shared_bytes <= MAX_SHARED, "the tile must fit sm_120's 99 KB");
    static_assert(WIDE_ROWS * row_bytes <= exchange_at, "Q passes through the rows of keys");
};

/* Q of the tile through shared memory into this warp's fragments: rows 16 · (warp / 2), of each
 * band the half warp % 2. */
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
    int row = warp / 2 * 16 + lane % 16, chunk = warp % 2 * 4 + lane / 16;
#pragma unroll
    for (int b = 0; b < S::bands; b++)
#pragma unroll
        for (int f = 0; f < 2; f++)
            ldmatrix_x4(q[b][f],
                        smem + row * S::row_bytes + b * 128 + (((chunk + 2 * f) ^ (row & 7)) << 4));
    __syncthreads();
}

/* ---------------------------------------------------------------- addresses */

/* Slots of a batch's keys, or -1, and their bits, for all warps to read after a barrier. A slot is
 * a row of a flat cache, or page · page_size + row of the page. */
template <class S>
__device__ __forceinline__ void wide_store_places(const struct mla_mqa_args &a,
                                                  const struct work &w, char *shared, int batch,
                                                  int pos, int page)
{
    const struct mla_mqa_cache &c = a.cache;
    bool ok = page >= 0 && (!w.pages || page < c.num_pages);
    int place = w.r.kv_start + pos;
    if (w.pages)
        place = page * c.page_size + pos - page_column(&c, pos) * c.page_size;
    uint32_t visible = __ballot_sync(0xFFFFFFFFu, ok);
    ((int *)(shared + S::places_at))[batch % 2 * KEYS + threadIdx.x % 32] = ok ? place : -1;
    if (threadIdx.x % 32 == 0)
        ((uint32_t *)(shared + S::visible_at))[batch % 4] = visible;
}

/* Bits of the 16 keys of a step. */
template <class S> __device__ __forceinline__ uint32_t wide_visible(const char *shared, int step)
{
    return ((const uint32_t *)(shared + S::visible_at))[step / 2 % 4] >> step % 2 * 16 & 0xFFFF;
}

/* Where the key of this slot lies. */
__device__ __forceinline__ struct row_place wide_place(const struct mla_mqa_cache &c, int slot)
{
    struct row_place p = {0, 0};
    if (slot < 0)
        return p;
    if (c.page_size == 0) {
        p.data = slot * c.row_bytes;
        p.other = slot * c.rope_row_bytes;
        return p;
    }
    int page = page_column(&c, slot), row = slot - page * c.page_size;
    p.data = page * c.page_bytes + row * c.row_bytes;
    p.other = p.data;
    if (c.footer_bytes)
        p.other = page * c.page_bytes + c.page_size * c.row_bytes + row * (int64_t)c.footer_bytes;
    return p;
}

/* Starts the copy of two keys of a step, 16 lanes each; rows that are not visible become zeros. */
template <class S, bool PACKED>
__device__ __forceinline__ void wide_copy(const struct mla_mqa_args &a, char *shared, uint32_t smem,
                                          int step, int slot)
{
    const struct mla_mqa_cache &c = a.cache;
    int lane = threadIdx.x % 32, key = threadIdx.x / 32 * 2 + lane / 16, part = lane % 16;
    int at = ((const int *)(shared + S::places_at))[step % 4 * WIDE_KEYS + key];
    struct row_place place = wide_place(c, at);
    const char *src = c.data + place.data;
    uint32_t bytes = at >= 0 ? 16 : 0;
    int to = slot * S::step_bytes + key * S::row_bytes;
    if (PACKED) {
        to = S::raw_at + slot * S::raw_bytes + key * RAW_PITCH;
        /* Scales from the page footer, behind the record: at most 8-byte aligned for model1. */
        if (part == 0 && c.footer_bytes)
            copy_unaligned(smem + to + c.record_bytes, shared + to + c.record_bytes,
                           c.data + place.other, c.footer_bytes, at >= 0, min(c.align, 8));
    }
    if (c.align != 16) { /* rare, so small rather than fast */
        int chunks = PACKED ? c.record_bytes / 16 : S::row_bytes / 16;
#pragma unroll 1
        for (int chunk = part; chunk < chunks; chunk += 16) {
            const char *from = src + 16 * chunk;
            int chunk_to = to + 16 * (PACKED ? chunk : chunk ^ (key & 7));
            if (!PACKED && chunk >= MLA_MQA_LATENT / 8)
                from = c.rope + place.other + 16 * chunk - 2 * MLA_MQA_LATENT;
            copy_unaligned(smem + chunk_to, shared + chunk_to, from, 16, at >= 0, c.align);
        }
        return;
    }
    src += 16 * part;
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
__device__ __forceinline__ void wide_widen(int format, char *shared, int raw_slot, int slot)
{
    int lane = threadIdx.x % 32, first = threadIdx.x / 32 * 2;
    const char *raw = shared + S::raw_at + raw_slot * S::raw_bytes;
    char *rows = shared + slot * S::step_bytes;
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

/* 16 rows x 16 keys over this warp's half of d, then the other half's sums for the eight rows that
 * this warp finishes: x[n] are keys 8n + 2 · (lane % 4) and the next of row 8 · warp + lane / 4. */
template <class S, class T>
__device__ __forceinline__ void wide_scores(char *shared, uint32_t k_smem,
                                            uint32_t q[S::bands][2][4], float x[2][2])
{
    const int LOADS = S::bands * 2;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, key = lane / 16 * 8 + lane % 8;
    int chunk = warp % 2 * 4 + lane / 8 % 2;
    uint32_t from = k_smem + key * S::row_bytes + ((chunk ^ lane % 8) << 4);
    float s[2][2][4]; /* even and odd fragments: chains half as long */
#pragma unroll
    for (int i = 0; i < 16; i++)
        s[i / 8][i / 4 % 2][i % 4] = 0;
    uint32_t k[WIDE_AHEAD + 1][4];
#pragma unroll
    for (int i = 0; i < LOADS + WIDE_AHEAD; i++) {
        if (i < LOADS)
            ldmatrix_x4(k[i % (WIDE_AHEAD + 1)], (from ^ (i % 2) << 5) + i / 2 * 128);
        if (i >= WIDE_AHEAD) {
            int j = i - WIDE_AHEAD;
            if (MUTANT(ROPE_DROPPED) && j / 2 == MLA_MQA_LATENT / 64)
                continue;
            const uint32_t *fresh = k[j % (WIDE_AHEAD + 1)];
            T::mma(s[j % 2][0], q[j / 2][j % 2], fresh[0], fresh[1]);
            T::mma(s[j % 2][1], q[j / 2][j % 2], fresh[2], fresh[3]);
        }
    }
    bool upper = warp % 2 == 1; /* finishes rows 8 to 15 */
    float sum[2][4];
#pragma unroll
    for (int n = 0; n < 2; n++)
#pragma unroll
        for (int e = 0; e < 4; e++)
            sum[n][e] = s[0][n][e] + s[1][n][e];
    float4 *mine = (float4 *)(shared + S::exchange_at + warp * 512) + lane;
    const float4 *other = (const float4 *)(shared + S::exchange_at + (warp ^ 1) * 512) + lane;
    *mine = upper ? make_float4(sum[0][0], sum[0][1], sum[1][0], sum[1][1])
                  : make_float4(sum[0][2], sum[0][3], sum[1][2], sum[1][3]);
    bar_sync(1 + warp / 2, 64);
    float4 got = *other;
    x[0][0] = (upper ? sum[0][2] : sum[0][0]) + got.x;
    x[0][1] = (upper ? sum[0][3] : sum[0][1]) + got.y;
    x[1][0] = (upper ? sum[1][2] : sum[1][0]) + got.z;
    x[1][1] = (upper ? sum[1][3] : sum[1][1]) + got.w;
}

/* P of 8 keys (chunk 0 or 1) of a row, 16 bytes. */
template <class S> __device__ __forceinline__ int wide_weight_at(int row, int chunk)
{
    return S::weights_at + row * 32 + ((chunk ^ (row >> 2 & 1)) << 4);
}

/* Masks, and leaves P and the factor that rescales what was summed before. bits: the keys of the
 * step that this lane's row sees. Returns whether the factor is other than 1. */
template <class S, class T>
__device__ __forceinline__ bool wide_softmax(char *shared, float x[2][2], uint32_t bits,
                                             float scale_log2, int buffer, struct row_state *st)
{
    int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 8 + lane / 4;
    bits >>= lane % 4 * 2;
    float top = -INFINITY;
#pragma unroll
    for (int n = 0; n < 2; n++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            x[n][i] = bits >> (8 * n + i) & 1 ? x[n][i] * scale_log2 : -INFINITY;
            top = fmaxf(top, x[n][i]);
        }
    top = fmaxf(top, __shfl_xor_sync(0xFFFFFFFFu, top, 1));
    top = fmaxf(top, __shfl_xor_sync(0xFFFFFFFFu, top, 2));
    float before = st->max_log2;
    st->max_log2 = fmaxf(before, top);
    /* No key yet: any finite reference gives weights 0. */
    float reference = st->max_log2 == -INFINITY ? 0 : st->max_log2;
    float factor = st->max_log2 == before ? 1 : ex2_approx_ftz(before - reference);
    st->sum *= factor;
#pragma unroll
    for (int n = 0; n < 2; n++) {
        float p0 = ex2_approx_ftz(x[n][0] - reference), p1 = ex2_approx_ftz(x[n][1] - reference);
        st->sum += p0 + p1;
        *(uint32_t *)(shared + buffer * S::weight_bytes + wide_weight_at<S>(row, n) +
                      lane % 4 * 4) = T::pack(p0, p1);
    }
    if (lane % 4 == 0)
        *(float *)(shared + S::rows_at + buffer * WIDE_ROWS * 4 + 4 * row) = factor;
    return factor != 1;
}

/* o (all rows, this warp's 64 columns) = o · factor + P · V. */
template <class S, class T>
__device__ __forceinline__ void wide_values(const char *shared, uint32_t smem, uint32_t k_smem,
                                            int buffer, bool moved,
                                            float o[WIDE_ROWS / 16][OUT_TILES][4])
{
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    uint32_t p[4][4], v[2][4];
    int key = lane / 8 % 2 * 8 + lane % 8;
    uint32_t at = k_smem + key * S::row_bytes + warp * 128 + ((lane / 16 ^ lane % 8) << 4);
    ldmatrix_x4_trans(v[0], at);
#pragma unroll
    for (int m = 0; m < 4; m++)
        ldmatrix_x4(p[m], smem + buffer * S::weight_bytes +
                              wide_weight_at<S>(m * 16 + lane % 16, lane / 16));
    if (moved) {
#pragma unroll
        for (int m = 0; m < 4; m++) {
            const char *from =
                shared + S::rows_at + buffer * WIDE_ROWS * 4 + (m * 16 + lane / 4) * 4;
            float low = *(const float *)from, high = *(const float *)(from + 32);
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
#pragma unroll
    for (int n = 0; n < OUT_TILES; n += 2) {
        const uint32_t *now = v[n / 2 % 2];
        if (n + 2 < OUT_TILES)
            ldmatrix_x4_trans(v[n / 2 % 2 ^ 1], at ^ (n + 2) << 4);
#pragma unroll
        for (int m = 0; m < 4; m++) {
            T::mma(o[m][n], p[m], now[0], now[1]);
            T::mma(o[m][n + 1], p[m], now[2], now[3]);
        }
    }
}

/* ------------------------------------------------------------------- kernel */

template <int N> __device__ __forceinline__ int wide_next(int slot, int by)
{
    return slot + by >= N ? slot + by - N : slot + by;
}

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
        if (threadIdx.x == 0)
            *(struct work *)(shared + S::work_at) = found;
        __syncthreads();
    }
    int batches = (w.count + KEYS - 1) / KEYS;
    int share = (batches + w.r.splits - 1) / w.r.splits;
    const int first = min(batches, w.split * share), last = min(batches, first + share);

    uint32_t q[S::bands][2][4];
    wide_load_q<S>(a, w, shared, smem, q);
    float o[WIDE_ROWS / 16][OUT_TILES][4];
#pragma unroll
    for (int i = 0; i < 128; i++)
        o[i / 32][i / 4 % 8][i % 4] = 0;
    struct row_state state = {-INFINITY, 0};

    /* The row whose softmax this lane shares: keys before own_end, and its mask. */
    int own_end = 0x7FFFFFFF;
    const uint32_t *own_mask = NULL;
    if (!w.list) {
        int token = (w.row0 + min(warp * 8 + lane / 4, w.rows - 1)) / a.heads;
        own_end = causal_end(a, w, token);
        if (a.mask)
            own_mask = a.mask + (int64_t)(w.r.q_start + token) * a.mask_stride;
    }

    /* pos, page: of the batch whose turn this warp has, which is first + warp to begin with. */
    int turn_batch = first + warp;
    int pos = fetch_position(a, w, turn_batch, last), page = fetch_page(a, w, pos);
    if (warp < 2)
        wide_store_places<S>(a, w, shared, turn_batch, pos, page);
    if (warp < 2)
        turn_batch += WARPS;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 2; i++) {
        wide_copy<S, PACKED>(a, shared, smem, 2 * first + i, i);
        cp_async_commit();
    }
    if (PACKED)
        cp_async_wait_group<1>();
    bool moved = false;
    /* Slots of steps j (rows), j + 2 (raw records). */
    int slot = S::slots - 2, raw_slot = 0;
#pragma unroll 1
    for (int j = 2 * first - 2; j < 2 * last; j++) {
        /* What this step reads is here: rows (copied, or widened), P, factors, places. Nothing is
         * read any more that this step overwrites. */
        const bool rescale = __syncthreads_or(moved);
        moved = false;
        if (j % 2 == 0) { /* a pair of steps: batches ahead go on */
            int batch = j / 2 + 3;
            if (turn_batch == batch)
                wide_store_places<S>(a, w, shared, batch, pos, page);
            else if (turn_batch == batch + 1)
                page = fetch_page(a, w, pos);
            else if (turn_batch == batch + 2)
                pos = fetch_position(a, w, turn_batch, last);
            if (turn_batch == batch)
                turn_batch += WARPS;
        }
#pragma unroll 1
        for (int turn = 0; turn < 3; turn++) {
            int part = warp < WARPS / 2 ? turn : 2 - turn;
            if (part == 0) {
                uint32_t bits =
                    j + 1 >= 2 * first && j + 1 < 2 * last ? wide_visible<S>(shared, j + 1) : 0;
                if (bits) {
                    uint32_t word = own_mask ? own_mask[(j + 1) / 2] : 0xFFFFFFFFu;
                    float x[2][2];
                    wide_scores<S, T>(shared, smem + wide_next<S::slots>(slot, 1) * S::step_bytes,
                                      q, x);
                    bits &= bits_below(own_end - (j + 1) * WIDE_KEYS) & word >> (j + 1) % 2 * 16;
                    moved = wide_softmax<S, T>(shared, x, bits, a.scale_log2, (j + 1) & 1, &state);
                }
            } else if (part == 1) {
                if (j >= 2 * first && wide_visible<S>(shared, j))
                    wide_values<S, T>(shared, smem, smem + slot * S::step_bytes, j & 1, rescale, o);
            } else {
                int to = PACKED ? wide_next<3>(raw_slot, 2) : wide_next<S::slots>(slot, 4);
                if (j + 4 < 2 * last)
                    wide_copy<S, PACKED>(a, shared, smem, j + 4, to);
                cp_async_commit();
                if (PACKED && j + 2 < 2 * last && wide_visible<S>(shared, j + 2))
                    wide_widen<S, T>(a.cache.format, shared, raw_slot,
                                     wide_next<S::slots>(slot, 2));
            }
        }
        slot = wide_next<S::slots>(slot, 1);
        raw_slot = wide_next<3>(raw_slot, 1);
        cp_async_wait_group<PACKED ? 1 : 2>();
    }
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

/* SPDX-License-Identifier: Apache-2.0 */
/* Attention with keys and values per head, for any GPU from sm_80 (mma.sync, ldmatrix, cp.async):
 * dense, causal at any context offset, or under a bit per query and key; variable lengths, grouped
 * key heads, sinks, lse. bf16 or f16 in, fp32 accumulation.
 *
 * A block takes one head and a tile of 64·MT query rows (MT = 2, or 1 where both widths exceed
 * 192) and walks the keys in tiles of 64. Four warps, each with 16·MT rows of everything:
 *
 *   shared memory   Q [64·MT][D_QK], K [64][D_QK], V [64][D_V], 16-byte chunks XOR-swizzled by row
 *                   192/128: 49152 + 24576 + 16384 =  90112 B      256/256: 32768 · 3 =  98304 B
 *                   128/128: 32768 + 16384 + 16384 =  65536 B        64/64:           32768 B
 *                   and 8 bytes of mask bits for every query row
 *   registers       O: MT·D_V/2 floats a thread (128 at 192/128 and at 256/256), S: MT·32 floats
 *
 *   cp.async   K0 | V0        | K1                   | V1        | K2 ...
 *   warps         | S = Q·K0  | softmax   O += P·V0  | S = Q·K1  | softmax ...     | = barrier
 *
 * MT = 2 halves what shared memory must deliver: a B fragment of 16 x 16 (512 bytes) feeds 4 mma of
 * 4096 FLOP, not 2. At 128 bytes a clock an SM moves the 212 KB of a 128 x 64 tile (192/128) in
 * 1660 clocks; its 5.2 MFLOP take about 1850 at the mma.sync rate of an H100.
 *
 * A key tile without a visible key for the query tile is skipped; a key that no row of the tile
 * sees is not read but zero in shared memory, so NaN in it reaches nobody. P is rounded to the
 * input type unnormalised; the row sum adds the unrounded fp32 values. Same inputs, same bits. */
#ifndef MLA_CUDA_MHA_CUH
#define MLA_CUDA_MHA_CUH

#include "element.cuh"
#include "mha.h"
#include "mutant.cuh"
#include "ptx/cp_async.cuh"
#include "ptx/launch.cuh"
#include "ptx/shared.cuh"

#include <math_constants.h>

/* Byte offset of a 16-byte chunk in a tile whose rows have `chunks` of them (a multiple of 8): the
 * eight rows that one ldmatrix phase reads lie in different banks. */
template <int CHUNKS> __device__ __forceinline__ uint32_t swizzled(int row, int chunk)
{
    return (uint32_t)(row * CHUNKS + (chunk ^ (row & 7))) * 16;
}

/* Everything a block knows about its rows. */
struct mha_rows {
    int first;     /* of the tile, inside the request */
    int count;     /* rows of the tile that exist */
    int64_t batch; /* first row of the tile in the batch */
    int64_t mask;  /* first row of the tile in the mask */
    int tile;      /* in columns */
    int keys;      /* of the request in this run */
    int shift;     /* row i of the request sees keys < shift + i (causal) */
    int end;       /* keys that any row of the tile may see by causality */
};

/* Copies 64 rows of `width` elements into a swizzled tile of 64 x D, zeros where there is no row,
 * no column, or the row's bit in `seen` is 0. Eight threads take 128 bytes of a row, so that a
 * thread's row stays the same modulo 8 and its swizzle a constant. */
template <int D>
__device__ __forceinline__ void load_tile(uint32_t smem, const char *src, int64_t stride, int rows,
                                          int width, uint64_t seen)
{
    constexpr int STEP = MLA_MHA_THREADS / 8;
    const int row0 = threadIdx.x / 8, chunk0 = threadIdx.x % 8;
    uint32_t to = smem + swizzled<D / 8>(row0, chunk0);
    const char *from = src + row0 * stride + chunk0 * 16;
    if (rows >= MLA_MHA_KEYS && width == D && seen == ~0ull) {
        /* Most tiles; conditions for each row would cost as much as the softmax's sums. */
#pragma unroll
        for (int i = 0; i < MLA_MHA_KEYS / STEP; i++) {
#pragma unroll
            for (int c = 0; c < D / 64; c++)
                cp_async_cg_16(to + (uint32_t)(i * STEP * D * 2 + c * 128), from + c * 128, 16);
            from += STEP * stride;
        }
        return;
    }
    seen >>= row0;
#pragma unroll 1
    for (int i = 0; i < MLA_MHA_KEYS / STEP; i++) {
        bool there = row0 + i * STEP < rows && (seen & 1);
#pragma unroll
        for (int c = 0; c < D / 64; c++) {
            bool inside = there && c * 64 + chunk0 * 8 < width;
            cp_async_cg_16(to + (uint32_t)(c * 128), inside ? from + c * 128 : src,
                           inside ? 16 : 0);
        }
        to += STEP * D * 2;
        from += STEP * stride;
        seen >>= STEP;
    }
}

/* The query tile: columns below q_split from q, the others from q_rope. */
template <int D, int ROWS>
__device__ __forceinline__ void load_queries(uint32_t smem, const struct mla_mha_args &a,
                                             const struct mha_rows &r, int head)
{
    constexpr int STEP = MLA_MHA_THREADS / 8;
    const int row0 = threadIdx.x / 8, chunk0 = threadIdx.x % 8;
    const char *q = a.q + r.batch * a.q_stride[0] + head * a.q_stride[1];
    const char *rope = a.q_rope + r.batch * a.q_rope_stride[0] + head * a.q_rope_stride[1];
    uint32_t to = smem + swizzled<D / 8>(row0, chunk0);
#pragma unroll
    for (int c = 0; c < D / 64; c++) {
        int column = c * 64 + chunk0 * 8;
        bool low = column < a.q_split;
        int64_t stride = low ? a.q_stride[0] : a.q_rope_stride[0];
        const char *from = low ? q + column * 2 : rope + (column - a.q_split) * 2;
        from += row0 * stride;
#pragma unroll 4
        for (int i = 0; i < ROWS / STEP; i++) {
            bool inside = row0 + i * STEP < r.count && column < a.d_qk;
            cp_async_cg_16(to + (uint32_t)(i * STEP * D * 2 + c * 128), inside ? from : a.q,
                           inside ? 16 : 0);
            from += STEP * stride;
        }
    }
}

/* Mask bits of the tile of keys at key0, two words a row. */
template <int ROWS>
__device__ __forceinline__ void load_mask(uint32_t smem, const struct mla_mha_args &a,
                                          const struct mha_rows &r, int key0)
{
    int row = threadIdx.x, word = key0 / 32;
    if (row >= ROWS)
        return;
    const uint32_t *from = a.mask + (r.mask + row) * a.mask_stride + word;
    bool there = row < r.count, both = there && word + 1 < a.words;
    cp_async_ca_4(smem + row * 8, there ? from : a.mask, there ? 4 : 0);
    cp_async_ca_4(smem + row * 8 + 4, both ? from + 1 : a.mask, both ? 4 : 0);
}

/* Address of a lane's 16 bytes for ldmatrix `step` 16-column steps and `row16` times 16 rows on
 * from `first`, whose own step is 0: the swizzle only touches address bits 4 to 6, so that a step
 * is an XOR with a constant and everything else an immediate offset. */
template <int D>
__device__ __forceinline__ uint32_t fragment_at(uint32_t first, int step, int row16)
{
    return (first ^ (uint32_t)(step & 3) * 32) + (uint32_t)(step >> 2) * 128 +
           (uint32_t)row16 * 16 * D * 2;
}

/* S = Q·K^T for this warp's rows: s[m][n] is a 16 x 8 fragment. A fragment is read for the next 16
 * columns right behind its last use, eight mma before the next one. */
template <class T, int D, int MT>
__device__ __forceinline__ void scores(float s[MT][8][4], uint32_t q_first, uint32_t k_first)
{
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int n = 0; n < 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                s[m][n][i] = 0;
    uint32_t a[MT][4], b[4][4];
#pragma unroll
    for (int n = 0; n < 4; n++)
        ldmatrix_x4(b[n], fragment_at<D>(k_first, 0, n));
#pragma unroll
    for (int m = 0; m < MT; m++)
        ldmatrix_x4(a[m], fragment_at<D>(q_first, 0, m));
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
#pragma unroll
        for (int m = 0; m < MT; m++) {
#pragma unroll
            for (int n = 0; n < 4; n++) {
                T::mma(s[m][2 * n], a[m], b[n][0], b[n][1]);
                T::mma(s[m][2 * n + 1], a[m], b[n][2], b[n][3]);
                if (m == MT - 1 && k + 1 < D / 16)
                    ldmatrix_x4(b[n], fragment_at<D>(k_first, k + 1, n));
            }
            if (k + 1 < D / 16)
                ldmatrix_x4(a[m], fragment_at<D>(q_first, k + 1, m));
        }
    }
}

/* O += P·V; p[m][k] are the A fragments of 16 keys. */
template <class T, int D, int MT>
__device__ __forceinline__ void add_values(float o[MT][D / 8][4], uint32_t p[MT][4][4],
                                           uint32_t v_first)
{
    uint32_t b[3][4]; /* two read ahead */
    ldmatrix_x4_trans(b[0], fragment_at<D>(v_first, 0, 0));
    ldmatrix_x4_trans(b[1], fragment_at<D>(v_first, 1, 0));
#pragma unroll
    for (int k = 0; k < 4; k++) {
#pragma unroll
        for (int n = 0; n < D / 16; n++) {
            int now = k * (D / 16) + n, next = now + 2;
            if (next < D / 4)
                ldmatrix_x4_trans(b[next % 3],
                                  fragment_at<D>(v_first, next % (D / 16), next / (D / 16)));
#pragma unroll
            for (int m = 0; m < MT; m++) {
                T::mma(o[m][2 * n], p[m][k], b[now % 3][0], b[now % 3][1]);
                T::mma(o[m][2 * n + 1], p[m][k], b[now % 3][2], b[now % 3][3]);
            }
        }
    }
}

/* -inf where a row may not see a key: the end of the keys, causality, mask bits, `seen`. */
template <int MT>
__device__ __forceinline__ void hide(const struct mla_mha_args &a, const struct mha_rows &r,
                                     const uint2 *mask, float s[MT][8][4], int key0, uint64_t seen,
                                     int warp, int lane)
{
#pragma unroll
    for (int m = 0; m < MT; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int row = (warp * MT + m) * 16 + half * 8 + (lane >> 2);
            int left = r.keys - key0;
            if (a.causal)
                left = min(left, r.shift + r.first + row - key0);
            if (MUTANT_HITS(CAUSAL_PLUS, r.batch + row))
                left++;
            if (MUTANT_HITS(CAUSAL_MINUS, r.batch + row))
                left--;
            uint64_t bits = left >= 64 ? seen : left > 0 ? seen & ~(~0ull << left) : 0;
            uint32_t low = (uint32_t)bits, high = (uint32_t)(bits >> 32);
            if (a.mask) {
                low &= mask[row].x;
                high &= mask[row].y;
            }
            if (MUTANT_HITS(MASK_BIT, r.batch + row) && key0 == r.keys / 128 * 64)
                low ^= 1;
            if (MUTANT_HITS(TILE_UNMASKED, r.batch + row) && key0 == r.keys / 128 * 64)
                low = high = ~0u;
            low >>= (lane & 3) * 2;
            high >>= (lane & 3) * 2;
#pragma unroll
            for (int n = 0; n < 8; n++)
#pragma unroll
                for (int i = 0; i < 2; i++)
                    if (!((n < 4 ? low : high) & 1u << (n * 8 + i) % 32))
                        s[m][n][half * 2 + i] = -CUDART_INF_F;
        }
    }
}

/* Running softmax: updates the row maxima and sums, rescales O, leaves P as A fragments. Maxima are
 * of the scores before `scale` > 0. */
template <class T, int D, int MT>
__device__ __forceinline__ void softmax(float s[MT][8][4], float o[MT][D / 8][4],
                                        uint32_t p[MT][4][4], float top[MT][2], float sum[MT][2],
                                        float scale)
{
#pragma unroll
    for (int m = 0; m < MT; m++) {
        float shrink[2];
        bool moved = false;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float best[2] = {top[m][half], s[m][0][half * 2]};
#pragma unroll
            for (int n = 0; n < 8; n++)
#pragma unroll
                for (int i = 0; i < 2; i++)
                    best[i] = fmaxf(best[i], s[m][n][half * 2 + i]);
            best[0] = fmaxf(best[0], best[1]);
            best[0] = fmaxf(best[0], __shfl_xor_sync(~0u, best[0], 1));
            best[0] = fmaxf(best[0], __shfl_xor_sync(~0u, best[0], 2));
            /* Both sides of a rescale use the same rounded products; -inf before the first key. */
            bool none = best[0] == -CUDART_INF_F && !MUTANT(FIRST_TILE);
            float base = none ? 0 : __fmul_rn(best[0], scale);
            /* Not contracted: a maximum that stays must give exactly 1, or the sum drifts from
             * O. */
            shrink[half] = ex2_approx_ftz(__fmul_rn(top[m][half], scale) - base);
            moved |= best[0] != top[m][half];
            top[m][half] = best[0];
            float total[2] = {sum[m][half] * shrink[half], 0};
#pragma unroll
            for (int n = 0; n < 8; n++) {
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    float w = ex2_approx_ftz(fmaf(s[m][n][half * 2 + i], scale, -base));
                    s[m][n][half * 2 + i] = w;
                    total[i] += w;
                }
            }
            sum[m][half] = total[0] + total[1];
        }
        if (__any_sync(~0u, moved)) {
#pragma unroll
            for (int n = 0; n < D / 8; n++)
#pragma unroll
                for (int i = 0; i < 4; i++)
                    o[m][n][i] *= shrink[i / 2];
        }
#pragma unroll
        for (int k = 0; k < 4; k++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                p[m][k][i] =
                    T::pack(s[m][2 * k + i / 2][i % 2 * 2], s[m][2 * k + i / 2][i % 2 * 2 + 1]);
    }
}

template <class T>
__device__ __forceinline__ void store_pair(char *out, int64_t at, int dtype, float x, float y)
{
    if (dtype == MLA_F32)
        *(float2 *)(out + at * 4) = make_float2(x, y);
    else
        *(uint32_t *)(out + at * 2) =
            dtype == MLA_BF16 ? cvt_rn_bf16x2_f32(x, y) : cvt_rn_f16x2_f32(x, y);
}

/* Divides, adds the sink, writes out, lse and max_logits of this warp's rows. */
template <class T, int D, int MT>
__device__ __forceinline__ void finish(const struct mla_mha_args &a, const struct mha_rows &r,
                                       float o[MT][D / 8][4], float top[MT][2], float sum[MT][2],
                                       int head, int warp, int lane)
{
    const float log2e = 1.4426950408889634f;
    float sink = a.sink ? a.sink[head] * log2e : -CUDART_INF_F;
#pragma unroll
    for (int m = 0; m < MT; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int row = (warp * MT + m) * 16 + half * 8 + (lane >> 2);
            float total = sum[m][half];
            total += __shfl_xor_sync(~0u, total, 1);
            total += __shfl_xor_sync(~0u, total, 2);
            float best = top[m][half] * a.scale_log2;
            float lse = best == -CUDART_INF_F ? -CUDART_INF_F : best + log2f(total);
            /* Weight of the keys beside the sink: 2^lse / (2^lse + 2^sink). */
            float weight = best == -CUDART_INF_F ? 0 : 1 / total;
            if (sink > -CUDART_INF_F) {
                float high = fmaxf(lse, sink);
                float both =
                    isinf(high) ? high : high + log2f(exp2f(lse - high) + exp2f(sink - high));
                weight = isinf(both) ? 0 : weight * exp2f(lse - both);
                lse = both;
            }
            if (row >= r.count)
                continue;
            int64_t t = r.batch + row;
            if ((lane & 3) == 0) {
                if (a.lse)
                    a.lse[t * a.lse_stride[0] + head * a.lse_stride[1]] = lse * a.lse_unit;
                if (a.max_logits)
                    a.max_logits[t * a.max_stride[0] + head * a.max_stride[1]] =
                        best * 0.69314718055994531f;
            }
#pragma unroll
            for (int n = 0; n < D / 8; n++) {
                int column = n * 8 + (lane & 3) * 2;
                if (column >= a.d_v)
                    continue;
                /* A row without weight is zero even where O holds nothing finite. */
                float x = weight == 0 ? 0 : o[m][n][half * 2] * weight;
                float y = weight == 0 ? 0 : o[m][n][half * 2 + 1] * weight;
                store_pair<T>(a.out, t * a.out_stride[0] + head * a.out_stride[1] + column,
                              a.out_dtype, x, y);
            }
        }
    }
}

/* Walks the key tiles that hold a visible key. Each lane keeps the bits of one of 32 tiles: keys
 * that exist and that some row of the query tile sees. */
struct tile_walk {
    int next;      /* first key of the 32 tiles after these */
    uint32_t live; /* of these, tiles still to come that are not empty */
    uint64_t mine;
};

/* First key of the next tile and the bits of its keys, or the end. */
__device__ __forceinline__ int next_tile(const struct mla_mha_args &a, const struct mha_rows &r,
                                         const uint32_t *alive, struct tile_walk *w, uint64_t *seen)
{
    while (w->live == 0) {
        if (w->next >= r.end)
            return r.end;
        int key = w->next + (threadIdx.x % 32) * MLA_MHA_KEYS, word = key / 32;
        bool second = key + 32 < r.end;
        w->mine = 0;
        if (key < r.end) {
            uint32_t low = ~0u, high = ~0u;
            if (a.columns) {
                const uint32_t *words = a.columns + (int64_t)r.tile * a.words + word;
                low = words[0];
                high = second ? words[1] : 0;
            }
            if (alive) {
                low &= alive[word];
                high &= second ? alive[word + 1] : 0;
            }
            w->mine = low | (uint64_t)high << 32;
        }
        w->live = __ballot_sync(~0u, w->mine != 0);
        w->next += 32 * MLA_MHA_KEYS;
    }
    int i = __ffs(w->live) - 1;
    w->live &= w->live - 1;
    *seen = __shfl_sync(~0u, w->mine, i);
    return w->next - (32 - i) * MLA_MHA_KEYS;
}

/* Which rows this block computes. Blocks start in the order of their numbers: groups of heads,
 * inside them query tiles from the longest to the shortest, inside them heads. The tiles of a head
 * that run together share its keys in L2, and the last blocks to start are short ones. */
__device__ __forceinline__ struct mha_rows rows_of(const struct mla_mha_args &a, int tile_rows,
                                                   int *head, const struct mla_mha_segment **at)
{
    int block = blockIdx.x, group = block / (a.tiles * MLA_MHA_HEADS);
    int heads = min(MLA_MHA_HEADS, a.heads - group * MLA_MHA_HEADS);
    block -= group * a.tiles * MLA_MHA_HEADS;
    int order = block / heads;
    *head = group * MLA_MHA_HEADS + block % heads;
    int low = 0, high = a.num_segments - 1;
    while (low < high) { /* the last segment that begins at or before this tile */
        int middle = (low + high + 1) / 2;
        if (a.segments[middle].first_tile <= order)
            low = middle;
        else
            high = middle - 1;
    }
    const struct mla_mha_segment *s = &a.segments[low];
    struct mha_rows r;
    int tile = s->tiles - 1 - (order - s->first_tile);
    *at = s;
    r.tile = s->first_tile + tile;
    r.first = s->row0 + tile * tile_rows;
    r.count = min(tile_rows, s->row0 + s->rows - r.first);
    r.batch = (int64_t)s->q_start + r.first;
    r.mask = a.whole_mask ? r.batch : (int64_t)s->first_row + tile * tile_rows;
    r.keys = a.seq_lens_kv ? min(max(a.seq_lens_kv[s->index], 0), s->seq_len_kv) : s->seq_len_kv;
    r.shift = r.keys - s->query_len + 1;
    r.end = a.causal ? max(0, min(r.keys, r.shift + r.first + r.count - 1)) : r.keys;
    return r;
}

template <class T, int D_QK, int D_V, int MT>
__global__ void __launch_bounds__(MLA_MHA_THREADS, MT == 2 ? 2 : 1)
    mha_kernel(const __grid_constant__ struct mla_mha_args a)
{
    MLA_DYNAMIC_SHARED(smem, 128);
    constexpr int ROWS = 64 * MT, Q_BYTES = ROWS * D_QK * 2, K_BYTES = MLA_MHA_KEYS * D_QK * 2,
                  V_BYTES = MLA_MHA_KEYS * D_V * 2;
    const uint32_t q_smem = (uint32_t)__cvta_generic_to_shared(smem);
    const uint32_t k_smem = q_smem + Q_BYTES, v_smem = k_smem + K_BYTES;
    const uint32_t mask_smem = v_smem + V_BYTES;
    const uint2 *mask = (const uint2 *)(smem + Q_BYTES + K_BYTES + V_BYTES);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const struct mla_mha_segment *segment;
    int head;
    const struct mha_rows r = rows_of(a, ROWS, &head, &segment);
    const int head_kv = head / (a.heads / a.heads_kv);
    const char *k = a.k + segment->kv_start * a.k_stride[0] + head_kv * a.k_stride[1];
    const char *v = a.v + segment->kv_start * a.v_stride[0] + head_kv * a.v_stride[1];
    const uint32_t *alive = a.alive ? a.alive + segment->first_word : NULL;

    /* This lane's rows and columns of the ldmatrix tiles: A (Q), B (K: [key][d]), B transposed
     * (V). */
    const uint32_t q_first = q_smem + swizzled<D_QK / 8>(warp * MT * 16 + (lane & 15), lane >> 4);
    const uint32_t k_first =
        k_smem + swizzled<D_QK / 8>((lane & 7) + (lane >> 4) * 8, lane >> 3 & 1);
    const uint32_t v_first = v_smem + swizzled<D_V / 8>(lane & 15, lane >> 4);

    float o[MT][D_V / 8][4], top[MT][2], sum[MT][2];
#pragma unroll
    for (int m = 0; m < MT; m++) {
        top[m][0] = top[m][1] = -CUDART_INF_F;
        sum[m][0] = sum[m][1] = 0;
#pragma unroll
        for (int n = 0; n < D_V / 8; n++)
            o[m][n][0] = o[m][n][1] = o[m][n][2] = o[m][n][3] = 0;
    }

    struct tile_walk walk = {0, 0, 0};
    uint64_t seen = 0;
    int key0 = next_tile(a, r, alive, &walk, &seen);
    if (key0 < r.end) {
        load_queries<D_QK, ROWS>(q_smem, a, r, head);
        load_tile<D_QK>(k_smem, k + key0 * a.k_stride[0], a.k_stride[0], r.end - key0, a.d_qk,
                        seen);
        cp_async_wait_all();
        __syncthreads();
    }
    /* Keys below this are visible to every row unless bits say otherwise. */
    const int inner = a.causal ? r.shift + r.first : r.keys;
    while (key0 < r.end) {
        float s[MT][8][4];
        uint32_t p[MT][4][4];
        load_tile<D_V>(v_smem, v + key0 * a.v_stride[0], a.v_stride[0], r.end - key0, a.d_v, seen);
        if (a.mask)
            load_mask<ROWS>(mask_smem, a, r, key0);
        scores<T, D_QK, MT>(s, q_first, k_first);
        float sign = a.sign;
        if (MUTANT(SCALE_PERCENT) || MUTANT(SCALE_PERMILLE))
            sign *= MUTANT(SCALE_PERCENT) ? 1.01f : 1.001f;
        if (sign != 1) {
#pragma unroll
            for (int i = 0; i < MT * 32; i++)
                s[i / 32][i / 4 % 8][i % 4] *= sign;
        }
        cp_async_wait_all();
        __syncthreads(); /* K has been read by all, V and the mask have arrived */
        if (a.mask || key0 + MLA_MHA_KEYS > inner || seen != ~0ull)
            hide<MT>(a, r, mask, s, key0, seen, warp, lane);
        key0 = next_tile(a, r, alive, &walk, &seen);
        if (key0 < r.end)
            load_tile<D_QK>(k_smem, k + key0 * a.k_stride[0], a.k_stride[0], r.end - key0, a.d_qk,
                            seen);
        softmax<T, D_V, MT>(s, o, p, top, sum, a.scale_log2);
        add_values<T, D_V, MT>(o, p, v_first);
        cp_async_wait_all();
        __syncthreads(); /* the next K has arrived, V has been read by all */
    }
    finish<T, D_V, MT>(a, r, o, top, sum, head, warp, lane);
}

template <class T, int D_QK, int D_V, int MT> static struct mla_mha_tile tile_entry()
{
    static_assert(D_QK % 64 == 0 && D_V % 64 == 0, "rows of 128 bytes or a multiple");
    const size_t bytes = ((64 * MT + MLA_MHA_KEYS) * D_QK + MLA_MHA_KEYS * D_V) * 2 + 64 * MT * 8;
    static_assert(bytes <= 99 * 1024, "a block of any GPU from sm_80 has 99 KB");
    return {mla_kernel_address(mha_kernel<T, D_QK, D_V, MT>), bytes, 64 * MT, MLA_MHA_THREADS};
}

template <class T> static struct mla_mha_tile tile_for_widths(int64_t d_qk, int64_t d_v)
{
    if (d_qk <= 64 && d_v <= 64)
        return tile_entry<T, 64, 64, 2>();
    if (d_qk <= 128 && d_v <= 128)
        return tile_entry<T, 128, 128, 2>();
    if (d_qk <= 192 && d_v <= 128)
        return tile_entry<T, 192, 128, 2>();
    if (d_qk <= 256 && d_v <= 256)
        return tile_entry<T, 256, 256, 1>();
    return {NULL, 0, 0, 0};
}

#endif

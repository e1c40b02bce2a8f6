/* SPDX-License-Identifier: Apache-2.0 */
/* Absorbed-form attention for tiles of 64 query rows: plain caches, arranged for the case
 * where the products bound (packed caches, and fewer rows: mqa.cuh). mma.sync, ldmatrix and cp.async only, at most 99 KB of shared
 * memory a block, 8 warps, one block an SM.
 *
 * O (64 x 512 floats, 128 registers a thread) and Q (72) fill the register file, so a scheduler has
 * two warps. They belong to two groups of four warps that share nothing but the keys: group g has
 * rows 32g to 32g + 31, of the scores each of its warps a quarter of d, of O a quarter of the
 * columns. The groups take turns, so that on every scheduler the softmax of one lies under the
 * products of the other (| = barrier of all; a step is 32 keys):
 *
 *   phase      2i                      | 2i + 1                  | 2i + 2
 *   group 0    scores, softmax of i    | P·V of i                | scores, softmax of i + 1
 *   group 1    P·V of i - 1            | scores, softmax of i    | P·V of i
 *   copies     rows of i arrived       | rows of i + 1 start     | have arrived
 *
 * Scores: a fragment of K feeds four mma; partial sums cross in shared memory, a barrier of the
 * group, and each warp finishes eight rows.
 *
 * Addresses of a step are one warp's to find: positions three steps ahead, page ids two, places one.
 *
 * Shared memory, bytes (rope 64)
 *   K rows, 32 x 1152, of steps i - 1 and i                   73728
 *   scores on their way across, one group at a time           16384
 *   P of both groups, factors                                  4352
 *   places, key bits, the block's work                         1180
 * Q passes through the rows of K at the start.
 * Registers: 255; spills are listed in docs/kernel-table.md.
 *
 * Clocks of a step on an H100 (mma: 1.5 clocks an SM, 6.2 a scheduler; shared memory: 128 bytes a
 * clock):
 *   tensor cores    576 mma of scores, 512 of values                                    1690
 *   shared memory   K twice 576, V twice 512, P 128, copy 288, scores across 512        2016
 */
#ifndef MLA_CUDA_ANY_MQA_WIDE_CUH
#define MLA_CUDA_ANY_MQA_WIDE_CUH

#include "mqa.cuh"

static const int WIDE_ROWS = 64, GROUP_ROWS = 32, GROUP_THREADS = 128;
static const int WIDE_TILES = MLA_MQA_LATENT / 4 / 8; /* 8-wide output tiles of a warp */

template <int ROPE> struct wide_tile {
    static const int bands = (MLA_MQA_LATENT + ROPE) / 64; /* of 64 columns of d */
    static const int row_bytes = (MLA_MQA_LATENT + ROPE) * 2;
    static const int stage_bytes = KEYS * row_bytes;
    static const int scores_at = 2 * stage_bytes;
    static const int weights_at = scores_at + 4 * GROUP_ROWS * KEYS * 4;
    static const int weight_bytes = GROUP_ROWS * KEYS * 2;    /* of a group */
    static const int rows_at = weights_at + 2 * weight_bytes; /* factors */
    static const int places_at = rows_at + WIDE_ROWS * 4;     /* of two steps' keys */
    static const int visible_at = places_at + 2 * KEYS * 16;  /* bits of four steps */
    static const int moved_at = visible_at + 16; /* of each warp, the last step with a factor */
    static const int found_at = moved_at + 4 * WARPS;
    static const int work_at = found_at + 8; /* struct work, once for all */
    static const int shared_bytes = work_at + sizeof(struct work);
    /* What store_row and copy_step want to know. */
    static const int rows_warp = WIDE_ROWS / WARPS;
    static const int lanes_row = 32 / rows_warp;
    static const int raw_at = 0;
    static_assert(shared_bytes <= MAX_SHARED, "the tile must fit sm_120's 99 KB");
    static_assert(WIDE_ROWS * row_bytes <= scores_at, "Q passes through the rows of keys");
    static_assert(places_at % 16 == 0 && work_at % 8 == 0, "aligned accesses");
};

/* Q of the tile through shared memory into this warp's fragments: rows of its group, of each band
 * the quarter warp % 4. */
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
    int row = warp / 4 * GROUP_ROWS + lane % 16, chunk = warp % 4 * 2 + lane / 16;
#pragma unroll
    for (int b = 0; b < S::bands; b++)
#pragma unroll
        for (int m = 0; m < 2; m++)
            ldmatrix_x4(q[b][m], smem + (row + 16 * m) * S::row_bytes + b * 128 +
                                     ((chunk ^ (row & 7)) << 4));
    __syncthreads();
}

/* 32 rows x 16 keys over this warp's quarter of d, to where the warps that finish the rows will
 * read them: four octets of rows, 16 bytes a lane. */
template <class S, class T>
__device__ __forceinline__ void wide_scores(char *to, uint32_t from, uint32_t q[S::bands][2][4])
{
    float s[2][2][4];
#pragma unroll
    for (int i = 0; i < 16; i++)
        s[i / 8][i / 4 % 2][i % 4] = 0;
    uint32_t k[3][4];
    ldmatrix_x4(k[0], from);
    ldmatrix_x4(k[1], from + 128);
#pragma unroll
    for (int b = 0; b < S::bands; b++) {
        if (b + 2 < S::bands)
            ldmatrix_x4(k[(b + 2) % 3], from + (b + 2) * 128);
        if (MUTANT(ROPE_DROPPED) && b == MLA_MQA_LATENT / 64)
            continue;
#pragma unroll
        for (int m = 0; m < 2; m++) {
            T::mma(s[m][0], q[b][m], k[b % 3][0], k[b % 3][1]);
            T::mma(s[m][1], q[b][m], k[b % 3][2], k[b % 3][3]);
        }
    }
#pragma unroll
    for (int o = 0; o < 4; o++)
        *(float4 *)(to + o * 2048) =
            make_float4(s[o / 2][0][o % 2 * 2], s[o / 2][0][o % 2 * 2 + 1], s[o / 2][1][o % 2 * 2],
                        s[o / 2][1][o % 2 * 2 + 1]);
}

/* Bytes of P of 8 keys (chunk 0 to 3) of a row of the group. */
__device__ __forceinline__ int wide_weight_at(int row, int chunk)
{
    return row * (KEYS * 2) + ((chunk ^ (row >> 1 & 3)) << 4);
}

/* Sums of this lane's row, keys 8n + 2 · (lane % 4) and the next, for n = 0 to 3; then maximum, P
 * and factor. bits: the keys that the row sees. */
template <class S, class T>
__device__ __forceinline__ void wide_softmax(const char *from, char *shared, uint32_t bits,
                                             float scale_log2, int step, struct row_state *st)
{
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, row = warp % 4 * 8 + lane / 4;
    float x[8], top = -INFINITY;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float4 part[4];
#pragma unroll
        for (int i = 0; i < 4; i++)
            part[i] = *(const float4 *)(from + half * 8192 + i * 512);
        x[4 * half] = (part[0].x + part[1].x) + (part[2].x + part[3].x);
        x[4 * half + 1] = (part[0].y + part[1].y) + (part[2].y + part[3].y);
        x[4 * half + 2] = (part[0].z + part[1].z) + (part[2].z + part[3].z);
        x[4 * half + 3] = (part[0].w + part[1].w) + (part[2].w + part[3].w);
    }
    bits >>= lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        x[i] = bits >> (i / 2 * 8 + i % 2) & 1 ? x[i] * scale_log2 : -INFINITY;
        top = fmaxf(top, x[i]);
    }
    top = fmaxf(top, __shfl_xor_sync(0xFFFFFFFFu, top, 1));
    top = fmaxf(top, __shfl_xor_sync(0xFFFFFFFFu, top, 2));
    float before = st->max_log2;
    st->max_log2 = fmaxf(before, top);
    /* No key yet: any finite reference gives weights 0. */
    float reference = st->max_log2 == -INFINITY ? 0 : st->max_log2;
    float factor = st->max_log2 == before ? 1 : ex2_approx_ftz(before - reference), sum = 0;
    char *to = shared + S::weights_at + warp / 4 * S::weight_bytes + lane % 4 * 4;
#pragma unroll
    for (int n = 0; n < 4; n++) {
        float p0 = ex2_approx_ftz(x[2 * n] - reference);
        float p1 = ex2_approx_ftz(x[2 * n + 1] - reference);
        sum += p0 + p1;
        *(uint32_t *)(to + wide_weight_at(row, n)) = T::pack(p0, p1);
    }
    st->sum = st->sum * factor + sum;
    if (lane % 4 == 0)
        *(float *)(shared + S::rows_at + 4 * (warp / 4 * GROUP_ROWS + row)) = factor;
    if (__any_sync(0xFFFFFFFFu, factor != 1) && lane == 0)
        ((int *)(shared + S::moved_at))[warp] = step;
}

/* o (the group's rows, this warp's 128 columns) = o · factor + P · V. */
template <class S, class T>
__device__ __forceinline__ void wide_values(const char *shared, uint32_t smem, uint32_t k_smem,
                                            int step, float o[2][WIDE_TILES][4])
{
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, group = warp / 4;
    const int LOADS = KEYS / 16 * WIDE_TILES / 2;
    const uint32_t at = k_smem + (lane / 8 % 2 * 8 + lane % 8) * S::row_bytes + warp % 4 * 256 +
                        ((lane / 16 ^ lane % 8) << 4);
    const int4 last = ((const int4 *)(shared + S::moved_at))[group];
    const bool moved = last.x == step || last.y == step || last.z == step || last.w == step;
    uint32_t p[2][2][4], v[3][4];
#pragma unroll
    for (int kk = 0; kk < 2; kk++)
#pragma unroll
        for (int m = 0; m < 2; m++)
            ldmatrix_x4(p[kk][m], smem + S::weights_at + group * S::weight_bytes +
                                      wide_weight_at(m * 16 + lane % 16, kk * 2 + lane / 16));
#pragma unroll
    for (int i = 0; i < 2; i++)
        ldmatrix_x4_trans(v[i], at ^ i << 5);
    if (moved) {
#pragma unroll
        for (int m = 0; m < 2; m++) {
            const char *from = shared + S::rows_at + (group * GROUP_ROWS + m * 16 + lane / 4) * 4;
            float low = *(const float *)from, high = *(const float *)(from + 32);
#pragma unroll
            for (int n = 0; n < WIDE_TILES; n++) {
                o[m][n][0] *= low;
                o[m][n][1] *= low;
                o[m][n][2] *= high;
                o[m][n][3] *= high;
            }
        }
    }
#pragma unroll
    for (int i = 0; i < LOADS; i++) { /* 16 keys x 16 columns each, loaded two ahead */
        const int n = i % 8 * 2, kk = i / 8, next = i + 2;
        if (next < LOADS)
            ldmatrix_x4_trans(v[next % 3], (at ^ next % 4 << 5) + next % 8 / 4 * 128 +
                                               next / 8 * 16 * S::row_bytes);
#pragma unroll
        for (int m = 0; m < 2; m++) {
            T::mma(o[m][n], p[kk][m], v[i % 3][0], v[i % 3][1]);
            T::mma(o[m][n + 1], p[kk][m], v[i % 3][2], v[i % 3][3]);
        }
    }
}

template <class S>
__device__ __forceinline__ void wide_store_out(const struct mla_mqa_args &a, const struct work &w,
                                               const char *shared, float o[2][WIDE_TILES][4])
{
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, column = warp % 4 * 128 + lane % 4 * 2;
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int row = warp / 4 * GROUP_ROWS + m * 16 + half * 8 + lane / 4, at = w.row0 + row;
            float factor = *(const float *)(shared + S::rows_at + 4 * row);
            if (row >= w.rows)
                continue;
            bool split = w.r.splits > 1;
            int64_t to =
                (w.r.q_start + at / a.heads) * a.out_stride[0] + at % a.heads * a.out_stride[1];
            if (split)
                to = (w.r.part_row + (int64_t)w.split * w.r.query_len * a.heads + at) *
                     MLA_MQA_LATENT;
#pragma unroll
            for (int n = 0; n < WIDE_TILES; n++) {
                float x = o[m][n][2 * half] * factor, y = o[m][n][2 * half + 1] * factor;
                if (split)
                    *(float2 *)(a.part_out + to + column + n * 8) = make_float2(x, y);
                else
                    store_pair(a.out_dtype, a.out, to + column + n * 8, x, y);
            }
        }
}

/* ------------------------------------------------------------------- kernel */

template <int ROPE, class T>
__global__ void __launch_bounds__(MLA_MQA_THREADS, 1)
    mqa_wide_kernel(const __grid_constant__ struct mla_mqa_args a)
{
    typedef wide_tile<ROPE> S;
    MLA_DYNAMIC_SHARED(shared, 1024);
    uint32_t smem = (uint32_t)__cvta_generic_to_shared(shared);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = warp / 4;
    /* In shared memory, for want of registers. */
    const struct work &w = *(const struct work *)(shared + S::work_at);
    {
        struct work found;
        find_work<WIDE_ROWS>(a, (int *)(shared + S::found_at), &found);
        if (threadIdx.x == 0)
            *(struct work *)(shared + S::work_at) = found;
        if (threadIdx.x < WARPS)
            ((int *)(shared + S::moved_at))[threadIdx.x] = -1;
        __syncthreads();
    }
    const int steps = (w.count + KEYS - 1) / KEYS, share = (steps + w.r.splits - 1) / w.r.splits;
    const int first = min(steps, w.split * share), last = min(steps, first + share);

    uint32_t q[S::bands][2][4];
    wide_load_q<S>(a, w, shared, smem, q);
    float o[2][WIDE_TILES][4];
#pragma unroll
    for (int i = 0; i < 128; i++)
        o[i / 64][i / 4 % WIDE_TILES][i % 4] = 0;
    struct row_state state = {-INFINITY, 0};

    /* The row whose softmax this lane shares. */
    const int row_token = (w.row0 + min(warp * 8 + lane / 4, w.rows - 1)) / a.heads;
    uint32_t mask_word = first < last ? row_bits(a, w, row_token, first) : 0;
    int pos = fetch_position(a, w, first + warp, last), page = fetch_page(a, w, pos);
    if (warp == 0)
        store_places<S>(a, w, shared, first, pos, page);
    __syncthreads();
    if (first < last)
        copy_step<S, false>(a, w, first, shared, smem, first & 1);
    cp_async_wait_all();

    /* This lane's fragments of K; scores across: octet 0 of this quarter, and this warp's octet of
     * quarter 0. */
    const int key = lane / 16 * 8 + lane % 8, chunk = warp % 4 * 2 + lane / 8 % 2;
    const uint32_t k_lane = smem + key * S::row_bytes + ((chunk ^ lane % 8) << 4);
    char *const put = shared + S::scores_at + warp % 4 * 512 + lane * 16;
    const char *const get = shared + S::scores_at + warp % 4 * 2048 + lane * 16;
#pragma unroll 1
    for (int phase = 2 * first; phase <= 2 * last; phase++) {
        const int step = phase / 2;
        __syncthreads();
        if (phase % 2 == 0) { /* addresses of the steps ahead */
            int ahead = (warp - (step - first)) & (WARPS - 1);
            if (ahead == 1)
                store_places<S>(a, w, shared, step + 1, pos, page);
            else if (ahead == 2)
                page = fetch_page(a, w, pos);
            else if (ahead == 3)
                pos = fetch_position(a, w, step + 3, last);
        } else if (step + 1 < last) {
            copy_step<S, false>(a, w, step + 1, shared, smem, (step + 1) & 1);
        }
        if (phase % 2 == group) {
            uint32_t visible = step < last ? visible_keys<S>(shared, step) : 0;
            if (visible) { /* the whole group agrees */
                const uint32_t from = k_lane + (step & 1) * S::stage_bytes;
                wide_scores<S, T>(put, from, q);
                wide_scores<S, T>(put + 8192, from + 16 * S::row_bytes, q);
                bar_sync(1 + group, GROUP_THREADS);
                wide_softmax<S, T>(get, shared, visible & mask_word, a.scale_log2, step, &state);
            }
            if (step + 1 < last)
                mask_word = row_bits(a, w, row_token, step + 1);
        } else {
            const int old = step - group;
            if (old >= first && visible_keys<S>(shared, old))
                wide_values<S, T>(shared, smem, smem + (old & 1) * S::stage_bytes, old, o);
        }
        if (phase % 2 == 1)
            cp_async_wait_all();
    }
    __syncthreads();
    store_row<S>(a, w, shared, state);
    __syncthreads();
    wide_store_out<S>(a, w, shared, o);
}

template <int ROPE, class T> static struct mla_mqa_tile wide_entry()
{
    struct mla_mqa_tile t = {mla_kernel_address(mqa_wide_kernel<ROPE, T>),
                             wide_tile<ROPE>::shared_bytes, MLA_MQA_THREADS, 1};
    return t;
}

#endif

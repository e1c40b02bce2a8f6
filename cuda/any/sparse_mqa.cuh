/* SPDX-License-Identifier: Apache-2.0 */
/* Absorbed-form attention over top-k lists for few heads: out = softmax(scale · q · K^T) ·
 * K[:, :512]. sm_80 and later, bf16 or f16 caches, flat or paged, rows of 16-byte multiples.
 *
 * Tile. 16 or 32 query rows: heads of one token, or (GROUP) the heads of a few neighbouring tokens
 * over the union of their lists (union.h). 8 warps, 32 keys a step.
 *
 * Few rows leave the gather as the bound, and shared memory as the next: rows that pass through it
 * are written once and read twice. Here they don't: a warp owns 64 of the 512 columns of every key,
 * loads them from global memory straight into fragments, and uses them for both products.
 *   scores  B fragments [16 d][8 keys]: lane (g, t) holds 16 bytes of key g, for which columns of d
 *           change places (64 bytes a key and load, Q in the same order). Each warp has the share of
 *           its columns; the eight shares are added up through shared memory.
 *   values  B fragments [16 keys][8 d] are the same registers, transposed by movmatrix.
 * The rope part (128 bytes a key) goes to shared memory by cp.async: a warp takes 8 keys and half of
 * the columns, so that it is one more product a step.
 *
 * Timeline of a step (| = barrier):
 *   scores of i from registers | loads of i+1 start, rope of i+2; add up, softmax, P of i | P·V of i
 * Registers hold two steps of keys in turn (32 rows: three, two of them under way). Loads start
 * behind the scores, so that no wait for one set includes the other's.
 * Addresses: warp w works out those of step i+8 at the steps i = w mod 8, its list entries and page
 * ids having been fetched 16 and 8 steps before, so that no step waits for list -> page -> row.
 *
 * Shared memory, bytes                        ROWS 16     32
 *   shares of the scores, 8 x ROWS x 128        16384  32768
 *   Q as fragments (rope last)                  18432  36864
 *   P, ROWS x 128                                2048   4096
 *   rope of three steps, 32 x 128               12288  12288
 *   row addresses of 16 steps, masks             8704   8704
 *   factors, flags                                 80    144
 * Registers: 128 (two blocks an SM); 32 rows: 255 (one).
 * Clocks of an SM for 64 keys of 16 rows: shared memory 576 (loads) + 576 (shares) + 290 (Q) + 290
 * (P, rope); mma.sync 800; L2 at 33 bytes a clock 2230.
 *
 * NaN. A key that the tile does not see is loaded from a row of zeros, its score is -inf. A key that
 * one row of the tile sees is multiplied by P = 0 in others.
 * Rounding and order of additions: as mqa.cuh, shares in the order of columns. Same inputs, same
 * bits. */
#ifndef MLA_CUDA_ANY_SPARSE_MQA_CUH
#define MLA_CUDA_ANY_SPARSE_MQA_CUH

#include "../mutant.cuh"
#include "../ptx/global.cuh"
#include "../ptx/launch.cuh"
#include "../ptx/shared.cuh"
#include "mqa_mutant.cuh"
#include "mqa_work.cuh"
#include "sparse_mqa.h"
#include "union.cuh"

static const int KEYS = 32, TILES = KEYS / 8, WARPS = 8, THREADS = 256;
static const int RING = 16;  /* steps whose addresses are known */
static const int AHEAD = 8;  /* steps that addresses run ahead */
static const int ROPE_STAGES = 3;

template <int ROWS_, int ROPE_, bool GROUP_> struct sparse_shape {
    static const int ROWS = ROWS_, ROPE = ROPE_, M = ROWS / 16;
    static const bool GROUP = GROUP_;
    static const int TOKENS = GROUP ? MLA_UNION_TOKENS : 1; /* at most, of a tile */
    static const int SETS = M == 1 ? 2 : 3;
    static const int scores_at = 0; /* [warp][row][32 keys], swizzled */
    static const int q_at = scores_at + WARPS * ROWS * KEYS * 4; /* [warp][m][h][row half][lane] */
    static const int q_warp = M * 2048;
    static const int q_rope_at = q_at + WARPS * q_warp; /* [kh][m][row half][lane] */
    static const int weights_at = q_rope_at + 2 * M * 1024;
    static const int rope_at = weights_at + ROWS * 128;
    static const int places_at = rope_at + ROPE_STAGES * KEYS * 128; /* [ring][key] two int64_t */
    static const int seen_at = places_at + RING * KEYS * 16;         /* [ring][token] words */
    static const int factors_at = seen_at + RING * MLA_UNION_TOKENS * 4;
    static const int tile_at = factors_at + ROWS * 4; /* struct sparse_tile */
    static const int shared_bytes = tile_at + 128;
    static const int rows_warp = ROWS / WARPS, lanes_row = 32 / rows_warp;
    static const int pairs = KEYS / 2 / lanes_row;
};

/* Where a lane's keys come from when they are not to be seen. */
static __device__ uint4 sparse_zeros[(MLA_MQA_LATENT + 64) / 8];

/* What every thread knows of its tile beside struct work. */
struct sparse_tile {
    struct work w;
    const uint8_t *masks; /* of a group's list */
    int first, steps;     /* steps of this split */
};
static_assert(sizeof(struct sparse_tile) <= 128, "room for it in shared memory");

/* ------------------------------------------------------------------- groups */

/* Group `block` of those whose lists are here: which request's, which tokens; false: none. */
__device__ __forceinline__ bool set_group(const struct mla_sparse_any_args &args, int block,
                                          struct sparse_tile *t)
{
    const struct mla_mqa_args &a = args.a;
    const struct mla_mqa_groups &g = args.groups;
    int number = g.first + block;
    int found = find_group(a.requests, a.num_requests, g.size, number);
    if (found < 0)
        return false;
    struct work *w = &t->w;
    w->r = a.requests[found];
    w->count = g.counts[number];
    w->split = 0;
    w->token0 = (number - group_of(g.size, w->r, 0)) * g.size;
    w->tokens = min(g.size, w->r.query_len - w->token0);
    w->row0 = w->token0 * a.heads;
    w->rows = w->tokens * a.heads;
    w->seq_len = w->r.seq_len_kv;
    if (a.seq_lens_kv)
        w->seq_len = max(0, min(w->seq_len, a.seq_lens_kv[w->r.index]));
    w->end = w->seq_len; /* what tokens may not see is not in the union */
    w->list = g.keys + (int64_t)block * g.capacity;
    t->masks = g.masks + (int64_t)block * g.capacity;
    w->pages = NULL;
    if (a.cache.page_size > 0)
        w->pages = a.cache.page_table + w->r.index * a.cache.page_table_stride;
    return w->count >= 0;
}

/* --------------------------------------------------------------- addresses */

/* Entry of this lane in a step, unchecked, with the tokens that see it. */
struct sparse_entry {
    int pos;
    uint32_t mask;
};

template <class S>
__device__ __forceinline__ struct sparse_entry fetch_entry(const struct mla_mqa_args &a,
                                                           const struct sparse_tile &t, int step)
{
    const struct work &w = t.w;
    int j = (t.first + step) * KEYS + (int)threadIdx.x % 32;
    struct sparse_entry e = {-1, 1};
    if (step >= t.steps)
        return e;
    e.pos = j < w.count ? w.list[j] : -1;
    if (S::GROUP)
        e.mask = j < w.count ? t.masks[j] : 0;
#ifdef MLA_DEVICE_MUTANTS
    if (!S::GROUP)
        e.pos = mutated_position(a, w, j, e.pos);
#endif
    return e;
}

/* Addresses of a step's rows, one key a lane, and which keys are seen by whom. */
template <class S>
__device__ __forceinline__ void put_places(const struct mla_mqa_args &a,
                                           const struct sparse_tile &t, char *shared, int step,
                                           struct sparse_entry e, int page)
{
    const struct mla_mqa_cache &c = a.cache;
    int lane = threadIdx.x % 32, at = step % RING;
    bool ok = page >= 0 && (!t.w.pages || page < c.num_pages);
    const char *rows[2] = {(const char *)sparse_zeros,
                           (const char *)sparse_zeros + 2 * MLA_MQA_LATENT};
#ifdef MLA_DEVICE_MUTANTS
    if (MUTANT_HITS(NAN_SLOT, t.w.r.q_start + t.w.token0))
        rows[0] = mutated_row();
#endif
    if (ok) {
        struct row_place place = place_row(&c, t.w.r.kv_start, e.pos, page);
        rows[0] = c.data + place.data;
        rows[1] = c.rope + place.other;
    }
    const char **to = (const char **)(shared + S::places_at + (at * KEYS + lane) * 16);
    to[0] = rows[0];
    to[1] = rows[1];
    uint32_t *seen = (uint32_t *)(shared + S::seen_at) + at * MLA_UNION_TOKENS;
#pragma unroll
    for (int i = 0; i < S::TOKENS; i++) {
        uint32_t word = __ballot_sync(0xFFFFFFFFu, ok && (!S::GROUP || e.mask >> i & 1));
        if (lane == i)
            seen[i] = word;
    }
}

/* The keys of a step that any row of the tile sees. */
template <class S> __device__ __forceinline__ uint32_t seen_keys(const char *shared, int step)
{
    const uint32_t *seen = (const uint32_t *)(shared + S::seen_at) + step % RING * MLA_UNION_TOKENS;
    uint32_t all = 0;
#pragma unroll
    for (int i = 0; i < S::TOKENS; i++)
        all |= seen[i];
    return all;
}

/* -------------------------------------------------------------------- keys */

#ifndef SPARSE_LINES
#define SPARSE_LINES 1
#endif
#ifndef SPARSE_ROPE_LD
#define SPARSE_ROPE_LD 1
#endif
/* Keys of a step in registers. v[n][u]: 16 bytes of key 8n + 2 (lane / 8) + u, the lane % 8th of this
 * warp's. */
struct sparse_keys {
    uint4 v[TILES][2];
};

template <class S>
__device__ __forceinline__ void load_keys(const char *shared, int step, struct sparse_keys *k)
{
#if SPARSE_LINES
    int lane = threadIdx.x % 32, at = threadIdx.x / 32 * 128 + lane % 8 * 16;
    const char *const *places =
        (const char *const *)(shared + S::places_at + (step % RING * KEYS + lane / 8 * 2) * 16);
#pragma unroll
    for (int n = 0; n < TILES; n++) {
        k->v[n][0] = ld_global_nc_16(places[n * 16] + at);
        k->v[n][1] = ld_global_nc_16(places[n * 16 + 2] + at);
    }
#else
    int lane = threadIdx.x % 32, at = threadIdx.x / 32 * 128 + lane % 4 * 16;
    const char *const *places =
        (const char *const *)(shared + S::places_at + (step % RING * KEYS + lane / 4) * 16);
#pragma unroll
    for (int n = 0; n < TILES; n++) {
        const char *row = places[n * 16] + at;
        k->v[n][0] = ld_global_nc_16(row);
        k->v[n][1] = ld_global_nc_16(row + 64);
    }
#endif
}

/* Rope of a step, eight threads a key: loaded at one step, put into shared memory at the next. Even
 * and odd keys exchange their halves, so that eight lanes that read two keys find different banks. */
template <class S>
__device__ __forceinline__ const char *rope_piece(const char *shared, int step)
{
    int key = threadIdx.x / 8, part = threadIdx.x % 8;
    return *(const char *const *)(shared + S::places_at + (step % RING * KEYS + key) * 16 + 8) +
           16 * part;
}

template <class S> __device__ __forceinline__ int rope_at(int step)
{
    int key = threadIdx.x / 8, part = threadIdx.x % 8;
    return S::rope_at + (step % ROPE_STAGES * KEYS + key) * 128 + ((part ^ (key & 1) << 2) << 4);
}

/* ------------------------------------------------------------------- scores */

/* 16 bytes of q: of head row `at` of the request from column d on, zeros past the tile. */
__device__ __forceinline__ uint4 read_q(const struct mla_mqa_args &a, const struct work &w, int row,
                                        int d)
{
    if (row >= w.rows)
        return make_uint4(0, 0, 0, 0);
    int at = w.row0 + row;
    return ld_global_nc_16(a.q + (int64_t)(w.r.q_start + at / a.heads) * a.q_stride[0] +
                           at % a.heads * a.q_stride[1] + 2 * d);
}

/* Q to shared memory as the lanes will want it: 16 bytes of row g, then of row g + 8. */
template <class S>
__device__ __forceinline__ void place_q(const struct mla_mqa_args &a, const struct work &w,
                                        char *shared)
{
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int m = 0; m < S::M; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int row = m * 16 + half * 8 + lane / 4;
#pragma unroll
            for (int h = 0; h < 2; h++)
                *(uint4 *)(shared + S::q_at + warp * S::q_warp + (m * 4 + h * 2 + half) * 512 +
                           lane * 16) = read_q(a, w, row, warp * 64 + h * 32 + lane % 4 * 8);
            if (S::ROPE && warp < 2)
                *(uint4 *)(shared + S::q_rope_at + warp * S::M * 1024 + (m * 2 + half) * 512 +
                           lane * 16) =
                    read_q(a, w, row, MLA_MQA_LATENT + warp * 32 + lane % 4 * 8);
        }
}

/* A fragments of 16 rows x 32 columns: two products. */
__device__ __forceinline__ void read_q_fragments(const char *at, uint32_t q[2][4])
{
    uint4 low = *(const uint4 *)at, high = *(const uint4 *)(at + 512);
    q[0][0] = low.x, q[0][1] = high.x, q[0][2] = low.y, q[0][3] = high.y;
    q[1][0] = low.z, q[1][1] = high.z, q[1][2] = low.w, q[1][3] = high.w;
}

/* Bytes of the pair of scores p (keys 2p, 2p+1) of a row in a warp's share. The swizzle keeps both
 * the fragments' writes (8 rows x 4 pairs) and the reads of whole rows off each other's banks. */
template <class S> __device__ __forceinline__ int share_at(int warp, int row, int pair)
{
    int swizzle = (row & 1) << 3 | (row & 2) << 1;
    return S::scores_at + (warp * S::ROWS + row) * (KEYS * 4) + ((pair ^ swizzle) << 3);
}

/* P of 8 keys (chunk 0 to 3) of a row, 16 bytes. */
template <class S> __device__ __forceinline__ int weight_at(int row, int chunk)
{
    return S::weights_at + row * 128 + ((chunk ^ (row & 7)) << 4);
}

/* This warp's share of a step's scores, to shared memory. */
template <class S, class T>
__device__ __forceinline__ void share_scores(char *shared, int step, const struct sparse_keys &k)
{
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float rope[S::M][4] = {};
    if (S::ROPE && !MUTANT(ROPE_DROPPED)) {
        int key = warp % 4 * 8 + lane / 4, part = warp / 4 * 4 + lane % 4;
        uint4 v = *(const uint4 *)(shared + S::rope_at + (step % ROPE_STAGES * KEYS + key) * 128 +
                                   ((part ^ (key & 1) << 2) << 4));
#pragma unroll
        for (int m = 0; m < S::M; m++) {
            uint32_t q[2][4];
            read_q_fragments(shared + S::q_rope_at + (warp / 4 * S::M + m) * 1024 + lane * 16, q);
            T::mma(rope[m], q[0], v.x, v.y);
            T::mma(rope[m], q[1], v.z, v.w);
        }
    }
    const char *q_at = shared + S::q_at + warp * S::q_warp + lane * 16;
#pragma unroll
    for (int m = 0; m < S::M; m++) {
        float s[TILES][4];
#if SPARSE_LINES
        uint32_t q[2][2][4];
        read_q_fragments(q_at + m * 2048, q[0]);
        read_q_fragments(q_at + m * 2048 + 1024, q[1]);
#pragma unroll
        for (int n = 0; n < TILES; n++) {
            float d[2][2][4] = {}; /* [u][h] */
#pragma unroll
            for (int j = 0; j < 2; j++)
#pragma unroll
                for (int u = 0; u < 2; u++)
#pragma unroll
                    for (int h = 0; h < 2; h++) {
                        const uint4 &v = k.v[n][u];
                        T::mma(d[u][h], q[h][j], j ? v.z : v.x, j ? v.w : v.y);
                    }
#pragma unroll
            for (int e = 0; e < 4; e++) {
                int u = e % 2, row = e & 2;
                s[n][e] = d[u][0][row] + d[u][1][row + 1];
                if (S::ROPE)
                    s[n][e] += n == warp % 4 ? rope[m][e] : 0;
            }
        }
#else
#pragma unroll
        for (int n = 0; n < TILES; n++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                s[n][e] = S::ROPE && n == warp % 4 ? rope[m][e] : 0;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            uint32_t q[2][4];
            read_q_fragments(q_at + (m * 2 + h) * 1024, q);
#pragma unroll
            for (int n = 0; n < TILES; n++)
                T::mma(s[n], q[0], k.v[n][h].x, k.v[n][h].y);
#pragma unroll
            for (int n = 0; n < TILES; n++)
                T::mma(s[n], q[1], k.v[n][h].z, k.v[n][h].w);
        }
#endif
        int to = share_at<S>(warp, m * 16 + lane / 4, lane % 4);
#pragma unroll
        for (int n = 0; n < TILES; n++) {
            *(float2 *)(shared + (to ^ n << 5)) = make_float2(s[n][0], s[n][1]);
            *(float2 *)(shared + (to ^ n << 5) + 8 * KEYS * 4) = make_float2(s[n][2], s[n][3]);
        }
    }
}

/* ------------------------------------------------------------------ softmax */

/* Running state of the row that this lane helps to finish. */
struct row_state {
    float max_log2; /* largest score so far, in log2; -inf = none */
    float sum;      /* this lane's share of the sum of weights */
};

/* Adds up the shares of this warp's rows, masks, and leaves P and the factor that rescales what was
 * summed before. bits: the keys that this lane's row sees. Returns whether the factor is not 1. */
template <class S, class T>
__device__ __forceinline__ bool softmax_step(char *shared, uint32_t bits, float scale_log2,
                                             struct row_state *st)
{
    int lane = threadIdx.x % 32, in_row = lane % S::lanes_row;
    int row = threadIdx.x / 32 * S::rows_warp + lane / S::lanes_row;
    float x[S::pairs][2];
    float top = -INFINITY;
#pragma unroll
    for (int j = 0; j < S::pairs; j++) {
        int pair = j * S::lanes_row + in_row;
        float2 sum = make_float2(0, 0);
#pragma unroll
        for (int warp = 0; warp < WARPS; warp++) {
            float2 v = *(const float2 *)(shared + share_at<S>(warp, row, pair));
            sum.x += v.x;
            sum.y += v.y;
        }
        x[j][0] = bits >> 2 * pair & 1 ? sum.x * scale_log2 : -INFINITY;
        x[j][1] = bits >> (2 * pair + 1) & 1 ? sum.y * scale_log2 : -INFINITY;
        top = fmaxf(top, fmaxf(x[j][0], x[j][1]));
    }
#pragma unroll
    for (int offset = S::lanes_row / 2; offset; offset /= 2)
        top = fmaxf(top, __shfl_xor_sync(0xFFFFFFFFu, top, offset));
    float before = st->max_log2;
    st->max_log2 = fmaxf(before, top);
    /* No key yet: any finite reference gives weights 0. */
    float reference = st->max_log2 == -INFINITY ? 0 : st->max_log2;
    float factor = st->max_log2 == before ? 1 : ex2_approx_ftz(before - reference);
    st->sum *= factor;
#pragma unroll
    for (int j = 0; j < S::pairs; j++) {
        int pair = j * S::lanes_row + in_row;
        float p0 = ex2_approx_ftz(x[j][0] - reference);
        float p1 = ex2_approx_ftz(x[j][1] - reference);
        st->sum += p0 + p1;
        *(uint32_t *)(shared + weight_at<S>(row, pair / 4) + pair % 4 * 4) = T::pack(p0, p1);
    }
    if (in_row == 0)
        *(float *)(shared + S::factors_at + 4 * row) = factor;
    return factor != 1;
}

#ifdef MLA_DEVICE_MUTANTS
/* Weights of keys 3 and 17 of the step change places: as if the keys' values had. */
template <class S> __device__ void swap_weights(char *shared)
{
    int lane = threadIdx.x % 32, row = threadIdx.x / 32 * S::rows_warp + lane / S::lanes_row;
    __syncwarp();
    if (lane % S::lanes_row == 0) {
        uint16_t *x = (uint16_t *)(shared + weight_at<S>(row, 0)) + 3;
        uint16_t *y = (uint16_t *)(shared + weight_at<S>(row, 2)) + 1, keep = *x;
        *x = *y;
        *y = keep;
    }
    __syncwarp();
}
#endif

/* ------------------------------------------------------------------- values */

template <class S>
__device__ __forceinline__ void rescale(const char *shared, float o[S::M][8][4])
{
#pragma unroll
    for (int m = 0; m < S::M; m++) {
        const char *at = shared + S::factors_at + (m * 16 + threadIdx.x % 32 / 4) * 4;
        float low = *(const float *)at, high = *(const float *)(at + 32);
        if (!__any_sync(0xFFFFFFFFu, low != 1 || high != 1))
            continue;
#pragma unroll
        for (int n = 0; n < 8; n++) {
            o[m][n][0] *= low;
            o[m][n][1] *= low;
            o[m][n][2] *= high;
            o[m][n][3] *= high;
        }
    }
}

/* o[m][4h + i]: rows g and g + 8 of the tile, columns 32h + 8t + 2i and the next of this warp's
 * 64. */
template <class S, class T>
__device__ __forceinline__ void add_weighted(uint32_t smem, const struct sparse_keys &k,
                                             float o[S::M][8][4])
{
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int kk = 0; kk < KEYS / 16; kk++) {
        uint32_t p[S::M][4];
#pragma unroll
        for (int m = 0; m < S::M; m++)
            ldmatrix_x4(p[m], smem + weight_at<S>(m * 16 + lane % 16, kk * 2 + lane / 16));
#if SPARSE_LINES
        const struct sparse_keys *t = &k;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            uint32_t two[2][2]; /* [tile][u]: key 2t + u of a tile, a column of each half */
#pragma unroll
            for (int n = 0; n < 2; n++)
#pragma unroll
                for (int u = 0; u < 2; u++) {
                    const uint4 &v = t->v[2 * kk + n][u];
                    two[n][u] = movmatrix_trans(i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w);
                }
#pragma unroll
            for (int h = 0; h < 2; h++) {
                uint32_t v0 = __byte_perm(two[0][0], two[0][1], h ? 0x7632 : 0x5410);
                uint32_t v1 = __byte_perm(two[1][0], two[1][1], h ? 0x7632 : 0x5410);
#pragma unroll
                for (int m = 0; m < S::M; m++)
                    T::mma(o[m][4 * h + i], p[m], v0, v1);
            }
        }
#else
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const uint4 &low = k.v[2 * kk][h], &high = k.v[2 * kk + 1][h];
            const uint32_t b0[4] = {low.x, low.y, low.z, low.w};
            const uint32_t b1[4] = {high.x, high.y, high.z, high.w};
#pragma unroll
            for (int i = 0; i < 4; i++) {
                uint32_t v0 = movmatrix_trans(b0[i]), v1 = movmatrix_trans(b1[i]);
#pragma unroll
                for (int m = 0; m < S::M; m++)
                    T::mma(o[m][4 * h + i], p[m], v0, v1);
            }
        }
#endif
    }
}

/* ------------------------------------------------------------------ results */

/* lse and max_logits of this lane's row, or its partial values; the output's factor to shared. */
template <class S>
__device__ __forceinline__ void store_row(const struct mla_mqa_args &a, const struct work &w,
                                          char *shared, struct row_state st)
{
    int lane = threadIdx.x % 32, row = threadIdx.x / 32 * S::rows_warp + lane / S::lanes_row;
#pragma unroll
    for (int offset = S::lanes_row / 2; offset; offset /= 2)
        st.sum += __shfl_xor_sync(0xFFFFFFFFu, st.sum, offset);
    if (lane % S::lanes_row != 0)
        return;
    float lse_log2, factor;
    int at = w.row0 + row, head = at % a.heads;
    if (row >= w.rows) {
        factor = 0;
    } else if (w.r.splits > 1) {
        factor = finish_row(st.max_log2, st.sum, false, 0, &lse_log2);
        int64_t part = w.r.part_row + (int64_t)w.split * w.r.query_len * a.heads + at;
        a.part_lse[part] = lse_log2;
        a.part_max[part] = st.max_log2;
    } else {
        int64_t token = w.r.q_start + at / a.heads;
        factor =
            finish_row(st.max_log2, st.sum, a.sink != NULL, a.sink ? a.sink[head] : 0, &lse_log2);
        float unit = a.lse_unit * (MUTANT(LSE_BASE) ? 1.44269504f : 1), top = st.max_log2;
        if (MUTANT(LSE_NO_SINK))
            finish_row(st.max_log2, st.sum, false, 0, &lse_log2);
        if (MUTANT(EMPTY_LSE) && st.max_log2 == -INFINITY)
            lse_log2 = INFINITY;
        if (MUTANT(EMPTY_OUT) && st.max_log2 == -INFINITY)
            factor = NAN;
        if (MUTANT(MAX_SINK) && a.sink)
            top = fmaxf(top, a.sink[head] * 1.44269504f);
        if (MUTANT(MAX_LOG2))
            top *= 1.44269504f;
        if (a.lse)
            a.lse[token * a.lse_stride[0] + head * a.lse_stride[1]] = lse_log2 * unit;
        if (a.max_logits)
            a.max_logits[token * a.max_stride[0] + head * a.max_stride[1]] = top * 0.693147181f;
    }
    *(float *)(shared + S::factors_at + 4 * row) = factor;
}

/* Eight neighbouring columns of one row. */
__device__ __forceinline__ void store_eight(const struct mla_sparse_any_args &args, bool split,
                                            int64_t to, const float x[8])
{
    const struct mla_mqa_args &a = args.a;
    if (split) {
        float4 *out = (float4 *)(a.part_out + to);
        out[0] = make_float4(x[0], x[1], x[2], x[3]);
        out[1] = make_float4(x[4], x[5], x[6], x[7]);
    } else if (a.out_dtype != MLA_F32 && args.wide_stores) {
        uint32_t two[4];
#pragma unroll
        for (int i = 0; i < 4; i++)
            two[i] = a.out_dtype == MLA_BF16 ? cvt_rn_bf16x2_f32(x[2 * i], x[2 * i + 1])
                                             : cvt_rn_f16x2_f32(x[2 * i], x[2 * i + 1]);
        *(uint4 *)(a.out + 2 * to) = make_uint4(two[0], two[1], two[2], two[3]);
    } else {
#pragma unroll
        for (int i = 0; i < 4; i++)
            store_pair(a.out_dtype, a.out, to + 2 * i, x[2 * i], x[2 * i + 1]);
    }
}

template <class S>
__device__ __forceinline__ void store_out(const struct mla_sparse_any_args &args,
                                          const struct work &w, const char *shared,
                                          float o[S::M][8][4])
{
    const struct mla_mqa_args &a = args.a;
    int lane = threadIdx.x % 32, column = threadIdx.x / 32 * 64 + lane % 4 * 8;
#pragma unroll
    for (int m = 0; m < S::M; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int row = m * 16 + half * 8 + lane / 4, at = w.row0 + row;
            float factor = *(const float *)(shared + S::factors_at + 4 * row);
#ifdef MLA_DEVICE_MUTANTS
            float stale = __shfl_up_sync(0xFFFFFFFFu, o[m][3][2 * half] * factor, 4);
#endif
            if (row >= w.rows)
                continue;
            int64_t token = w.r.q_start + at / a.heads;
            int head = at % a.heads;
            if (MUTANT_HITS(HEADS_SWAPPED, token))
                head = head < 2 ? 1 - head : head;
            int64_t to = token * a.out_stride[0] + head * a.out_stride[1];
            if (w.r.splits > 1)
                to = (w.r.part_row + (int64_t)w.split * w.r.query_len * a.heads + at) *
                     MLA_MQA_LATENT;
#pragma unroll
            for (int h = 0; h < 2; h++) {
                float x[8];
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    x[i] = o[m][4 * h + i / 2][2 * half + i % 2] * factor;
#ifdef MLA_DEVICE_MUTANTS
                    if (MUTANT_HITS(COLUMN_STALE, token) && h == 0 && i == 6 && lane >= 4)
                        x[i] = stale;
                    if (MUTANT(LATENT_CHOPPED))
                        x[i] = chopped(x[i]);
#endif
                }
                store_eight(args, w.r.splits > 1, to + column + h * 32, x);
            }
        }
}

/* ------------------------------------------------------------------- kernel */

/* Everything that a step needs and that lives longer. */
template <class S> struct sparse_state {
    const struct sparse_tile *t; /* in shared memory: registers are short */
    int steps;
    struct sparse_entry next, later; /* entries of the steps AHEAD and 2 AHEAD after this warp's */
    int page;                        /* of next */
    int row_token;                   /* token within the tile of the row whose softmax is shared */
    struct row_state row;
    float o[S::M][8][4];
    uint4 rope; /* this thread's piece of the rope of the step after next */
#ifdef MLA_DEVICE_MUTANTS
    bool skipped;
#endif
};

/* This warp's turn to work out addresses: those of step + AHEAD. */
template <class S>
__device__ __forceinline__ void run_ahead(const struct mla_mqa_args &a, char *shared, int step,
                                          struct sparse_state<S> *s)
{
    put_places<S>(a, *s->t, shared, step + AHEAD, s->next, s->page);
    s->next = s->later;
    s->page = fetch_page(a, s->t->w, s->next.pos);
    s->later = fetch_entry<S>(a, *s->t, step + 3 * AHEAD);
}

/* Step i with its keys in `now`; the loads of step i + SETS - 1 go to `fresh`. */
template <class S, class T>
__device__ __forceinline__ void attend_step(const struct mla_mqa_args &a, char *shared,
                                            uint32_t smem, int i, const struct sparse_keys &now,
                                            struct sparse_keys *fresh, struct sparse_state<S> *s)
{
    const int warp = threadIdx.x / 32, ahead = S::SETS - 1;
    const bool any_key = seen_keys<S>(shared, i) != 0;
    if (any_key)
        share_scores<S, T>(shared, i, now);
    if (i + ahead < s->steps)
        load_keys<S>(shared, i + ahead, fresh);
#if SPARSE_ROPE_LD
    if (S::ROPE && i + 1 < s->steps)
        *(uint4 *)(shared + rope_at<S>(i + 1)) = s->rope;
    if (S::ROPE && i + 2 < s->steps)
        s->rope = ld_global_nc_16(rope_piece<S>(shared, i + 2));
#else
    if (S::ROPE) {
        if (i + 2 < s->steps)
            cp_async_cg_16(smem + rope_at<S>(i + 2), rope_piece<S>(shared, i + 2), 16);
        cp_async_commit();
    }
#endif
    if (i % AHEAD == warp)
        run_ahead<S>(a, shared, i, s);
#if !SPARSE_ROPE_LD
    if (S::ROPE)
        cp_async_wait_group<1>(); /* rope of the next step */
#endif
    __syncthreads();
    if (!any_key)
        return; /* the whole block agrees */
    const uint32_t bits =
        ((const uint32_t *)(shared + S::seen_at))[i % RING * MLA_UNION_TOKENS + s->row_token];
#ifdef MLA_DEVICE_MUTANTS
    const int token = s->t->w.r.q_start + s->t->w.token0 + s->row_token;
    if (s->t->first + i == 1 && MUTANT_HITS(MAX_OF_TILE, token))
        s->row.max_log2 = -INFINITY;
#endif
    bool moved = softmax_step<S, T>(shared, bits, a.scale_log2, &s->row);
#ifdef MLA_DEVICE_MUTANTS
    if (s->t->first + i == 0 && MUTANT_HITS(V_SWAPPED, token))
        swap_weights<S>(shared);
    if (s->t->first + i >= 1 && moved && !s->skipped && MUTANT_HITS(RESCALE_SKIPPED, token)) {
        s->skipped = true;
        __syncwarp(__activemask());
        *(float *)(shared + S::factors_at +
                   4 * (warp * S::rows_warp + threadIdx.x % 32 / S::lanes_row)) = 1;
    }
#endif
    if (__syncthreads_or(moved))
        rescale<S>(shared, s->o);
    add_weighted<S, T>(smem, now, s->o);
#ifdef MLA_DEVICE_MUTANTS
    for (int j = 0; MUTANT(ACCUMULATOR_16) && j < S::M * 32; j++) {
        float *x = &s->o[0][0][0] + j;
        *x = T::is_bf16 ? __uint_as_float(T::pack(*x, 0) << 16) : *x;
    }
#endif
}

/* The tile of this block; false: nothing to do. */
template <class S>
__device__ __forceinline__ bool find_tile(const struct mla_sparse_any_args &args,
                                          struct sparse_tile *t)
{
    const struct mla_mqa_args &a = args.a;
    struct work *w = &t->w;
    t->masks = NULL;
    if (S::GROUP) {
        if (!set_group(args, (int)blockIdx.x, t))
            return false;
    } else {
        int found = find_request(a, (int)blockIdx.x, (int)gridDim.x);
        set_work<S::ROWS>(a, found, (int)blockIdx.x, 0, w);
        if (args.groups.size && args.groups.counts[group_of(args.groups.size, w->r, w->token0)] >= 0)
            return false;
    }
    int steps = (w->count + KEYS - 1) / KEYS, splits = S::GROUP ? 1 : w->r.splits;
    int share = (steps + splits - 1) / splits;
    t->first = min(steps, w->split * share);
    t->steps = min(steps, t->first + share) - t->first;
    return true;
}

template <class S, class T>
__global__ void __launch_bounds__(MLA_MQA_THREADS, S::M == 1 ? 2 : 1)
    sparse_any_kernel(const __grid_constant__ struct mla_sparse_any_args args)
{
    const struct mla_mqa_args &a = args.a;
    MLA_DYNAMIC_SHARED(shared, 1024);
    const uint32_t smem = (uint32_t)__cvta_generic_to_shared(shared);
    const int warp = threadIdx.x / 32;
    struct sparse_state<S> s;
    struct sparse_tile tile;
    if (!find_tile<S>(args, &tile))
        return;
    const int steps = tile.steps;
    if (threadIdx.x == 0)
        *(struct sparse_tile *)(shared + S::tile_at) = tile;
    s.t = (const struct sparse_tile *)(shared + S::tile_at);
    s.steps = steps;

    /* Addresses of the first AHEAD steps; on the way, Q. */
    struct sparse_entry e = fetch_entry<S>(a, tile, warp);
    s.next = fetch_entry<S>(a, tile, warp + AHEAD);
    s.later = fetch_entry<S>(a, tile, warp + 2 * AHEAD);
    place_q<S>(a, tile.w, shared);
    put_places<S>(a, tile, shared, warp, e, fetch_page(a, tile.w, e.pos));
    s.page = fetch_page(a, tile.w, s.next.pos);
    __syncthreads();

    struct sparse_keys k[S::SETS];
#pragma unroll
    for (int i = 0; i < S::SETS - 1; i++)
        if (i < steps)
            load_keys<S>(shared, i, &k[i]);
#if SPARSE_ROPE_LD
    if (S::ROPE) {
        if (steps > 0)
            *(uint4 *)(shared + rope_at<S>(0)) = ld_global_nc_16(rope_piece<S>(shared, 0));
        if (steps > 1)
            s.rope = ld_global_nc_16(rope_piece<S>(shared, 1));
        __syncthreads();
    }
#else
    if (S::ROPE) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            if (i < steps)
                cp_async_cg_16(smem + rope_at<S>(i), rope_piece<S>(shared, i), 16);
            cp_async_commit();
        }
        cp_async_wait_group<1>();
        __syncthreads();
    }
#endif
    int row = min(warp * S::rows_warp + (int)threadIdx.x % 32 / S::lanes_row, tile.w.rows - 1);
    s.row_token = S::GROUP ? row / a.heads : 0;
    s.row.max_log2 = -INFINITY;
    s.row.sum = 0;
#ifdef MLA_DEVICE_MUTANTS
    s.skipped = false;
#endif
#pragma unroll
    for (int m = 0; m < S::M; m++)
#pragma unroll
        for (int n = 0; n < 8; n++)
#pragma unroll
            for (int j = 0; j < 4; j++)
                s.o[m][n][j] = 0;

#pragma unroll 1
    for (int i = 0; i < steps; i += S::SETS) {
#pragma unroll
        for (int u = 0; u < S::SETS; u++) {
            if (i + u >= steps)
                break;
            attend_step<S, T>(a, shared, smem, i + u, k[u], &k[(u + S::SETS - 1) % S::SETS], &s);
        }
    }
    __syncthreads(); /* the last factors are read */
    store_row<S>(a, s.t->w, shared, s.row);
    __syncthreads();
    store_out<S>(args, s.t->w, shared, s.o);
}

template <class S, class T> static struct mla_mqa_tile sparse_entry_of()
{
    struct mla_mqa_tile t = {mla_kernel_address(sparse_any_kernel<S, T>), S::shared_bytes,
                             MLA_MQA_THREADS, 1};
    return t;
}

template <int ROWS, class T> static struct mla_mqa_tile sparse_tile_of(int rope, bool group)
{
    if (rope)
        return group ? sparse_entry_of<sparse_shape<ROWS, 64, true>, T>()
                     : sparse_entry_of<sparse_shape<ROWS, 64, false>, T>();
    return group ? sparse_entry_of<sparse_shape<ROWS, 0, true>, T>()
                 : sparse_entry_of<sparse_shape<ROWS, 0, false>, T>();
}

#endif

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
 *   wait keys; scores of i | add up, softmax, P of i | P·V of i
 * Registers hold six tiles of 8 keys: the four of a step and two of the next, loaded behind the
 * scores; the other two follow as P·V frees theirs. (32 rows: four, all loaded behind P·V.) Loads
 * into registers hold a scoreboard each; ptxas gives them all the same one, so at most one set is
 * under way and nothing else is loaded from global memory by that way: lists, page ids and rope
 * come by cp.async, and nothing spills in the loop (a spilled value comes back behind the keys).
 * Two blocks an SM overlap.
 * Addresses: warp w works out those of step i+8 at the steps i = w mod 8. Its list entries were
 * fetched 16 steps before, page ids 8, so that no step waits for list -> page -> row.
 *
 * Shared memory, bytes                        ROWS 16     32
 *   shares of the scores, 8 x ROWS x 128        16384  32768
 *   Q as fragments (rope last)                  18432  36864
 *   P, ROWS x 64                                 1024   2048
 *   rope of three steps, 32 x 128               12288  12288
 *   row addresses of 12 steps, who sees them     6528   6528
 *   entries, page ids, running rows, the tile   10368  10432
 * Registers: 128, two blocks an SM.
 * Clocks of an SM for 64 keys of 16 rows: shared memory 576 (loads) + 576 (shares) + 290 (Q) + 250
 * (P, rope); mma.sync 800, movmatrix 512 beside it; L2 at 33 bytes a clock 2230.
 *
 * NaN. A key that the tile does not see is loaded from a row of zeros, its score is -inf. A key that
 * one row of the tile sees is multiplied by P = 0 in others.
 * Rounding and order of additions: as mqa.cuh, shares in the order of columns. Same inputs, same
 * bits. */
#ifndef MLA_CUDA_ANY_SPARSE_MQA_CUH
#define MLA_CUDA_ANY_SPARSE_MQA_CUH

#include "../ptx/global.cuh"
#include "../ptx/launch.cuh"
#include "../ptx/shared.cuh"
#include "mqa_work.cuh"
#include "sparse_mqa.h"
#include "union.cuh"

#include <limits.h>

static const int KEYS = 32, TILES = KEYS / 8, WARPS = 8, THREADS = 256;
static const int RING = 12;  /* steps whose addresses are known */
static const int AHEAD = 8;  /* steps that addresses run ahead */
static const int ROPE_STAGES = 3;

#ifndef SPARSE_SLOTS32
#define SPARSE_SLOTS32 4
#endif
#ifndef SPARSE_SLOTS16
#define SPARSE_SLOTS16 6
#endif
#ifndef SPARSE_NSTEP32
#define SPARSE_NSTEP32 1
#endif
template <int ROWS_, int ROPE_, bool GROUP_> struct sparse_shape {
    static const int ROWS = ROWS_, ROPE = ROPE_, M = ROWS / 16;
    static const bool GROUP = GROUP_;
    static const int TOKENS = GROUP ? MLA_UNION_TOKENS : 1; /* at most, of a tile */
    /* Tiles of 8 keys that registers hold: the four of a step and early ones of the next. */
    static const int SLOTS = M == 1 ? SPARSE_SLOTS16 : SPARSE_SLOTS32;
    static const int EARLY = SLOTS - TILES, PERIOD = SLOTS == 6 ? 3 : SLOTS == 8 ? 2 : 1;
    static const int N_STEP = M == 1 ? TILES : SPARSE_NSTEP32; /* tiles of scores at a time */
    static const int BLOCKS = M == 1 || SLOTS == 4 ? 2 : 1; /* an SM */
    static const int scores_at = 0; /* [warp][row][32 keys], swizzled */
    static const int q_at = scores_at + WARPS * ROWS * KEYS * 4; /* [warp][m][h][row half][lane] */
    static const int q_warp = M * 2048;
    static const int q_rope_at = q_at + WARPS * q_warp; /* [kh][m][row half][lane] */
    static const int weights_at = q_rope_at + 2 * M * 1024;
    static const int rope_at = weights_at + ROWS * KEYS * 2;
    static const int places_at = rope_at + ROPE_STAGES * KEYS * 128; /* [ring][key] two int64_t */
    static const int seen_at = places_at + RING * KEYS * 16;         /* [ring][token] words */
    static const int factors_at = seen_at + RING * MLA_UNION_TOKENS * 4;
    static const int tile_at = factors_at + ROWS * 4; /* struct sparse_tile */
    static const int entries_at = tile_at + 128; /* [warp][turn % 3][lane] position, mask */
    static const int pages_at = entries_at + WARPS * 3 * 256; /* [warp][turn % 2][lane] */
    static const int state_at = pages_at + WARPS * 2 * 128;   /* [thread] struct row_state */
    static const int shared_bytes = state_at + THREADS * 8;
    static_assert(shared_bytes <= 101376, "the tile must fit sm_120's 99 KB");
    static const int rows_warp = ROWS / WARPS, lanes_row = 32 / rows_warp;
    static const int pairs = KEYS / 2 / lanes_row;
};

/* Where a lane's keys come from when they are not to be seen. */
static __device__ uint4 sparse_zeros[(MLA_MQA_LATENT + 64) / 8];

/* What every thread knows of its tile beside struct work. */
struct sparse_tile {
    struct work w;
    const struct mla_union_entry *entries; /* of a group */
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
    w->list = NULL;
    t->entries = g.entries + (int64_t)block * g.capacity;
    w->pages = NULL;
    if (a.cache.page_size > 0)
        w->pages = a.cache.page_table + w->r.index * a.cache.page_table_stride;
    return w->count >= 0;
}

/* --------------------------------------------------------------- addresses */

/* A warp works out addresses every AHEAD steps: turn k is for its step warp + AHEAD · k. Entries are
 * fetched three turns before, pages two. Each lane waits for its own copies alone. */
__device__ __forceinline__ int entry_of(const struct sparse_tile &t, int turn)
{
    int step = (int)threadIdx.x / 32 + AHEAD * turn;
    return step < t.steps ? (t.first + step) * KEYS + (int)threadIdx.x % 32 : INT_MAX;
}

template <class S> __device__ __forceinline__ int entry_place(int turn)
{
    return S::entries_at + (threadIdx.x / 32 * 3 + turn % 3) * 256 + threadIdx.x % 32 * 8;
}

template <class S> __device__ __forceinline__ int page_place(int turn)
{
    return S::pages_at + (threadIdx.x / 32 * 2 + turn % 2) * 128 + threadIdx.x % 32 * 4;
}

template <class S>
__device__ __forceinline__ void fetch_entry(const struct sparse_tile &t, uint32_t smem, int turn)
{
    int j = entry_of(t, turn);
    if (j >= t.w.count)
        return;
    if (S::GROUP)
        cp_async_ca_8(smem + entry_place<S>(turn), t.entries + j, 8);
    else
        cp_async_ca_4(smem + entry_place<S>(turn), t.w.list + j, 4);
}

/* An entry whose key the tile may see, and the tokens that see it; position -1: none. */
template <class S>
__device__ __forceinline__ struct mla_union_entry read_entry(const struct sparse_tile &t,
                                                             const char *shared, int turn)
{
    int j = entry_of(t, turn);
    struct mla_union_entry e = {-1, 0};
    if (j >= t.w.count)
        return e;
    e.pos = *(const int *)(shared + entry_place<S>(turn));
    if (S::GROUP)
        e.mask = *(const uint32_t *)(shared + entry_place<S>(turn) + 4);
    if (e.pos < 0 || e.pos >= t.w.end)
        e.pos = -1;
    return e;
}

/* Column of the page table, -1 if it has none for the key. */
__device__ __forceinline__ int column_of(const struct mla_mqa_args &a, int pos)
{
    int column = page_column(&a.cache, pos);
    return column < a.cache.max_pages ? column : -1;
}

template <class S>
__device__ __forceinline__ void fetch_page_id(const struct mla_mqa_args &a,
                                              const struct sparse_tile &t, const char *shared,
                                              uint32_t smem, int turn)
{
    if (!t.w.pages)
        return;
    int pos = read_entry<S>(t, shared, turn).pos, column = pos < 0 ? -1 : column_of(a, pos);
    if (column >= 0)
        cp_async_ca_4(smem + page_place<S>(turn), t.w.pages + column, 4);
}

/* Addresses of the rows of a turn's step, one key a lane, and which keys are seen by whom. */
template <class S>
__device__ __forceinline__ void put_places(const struct mla_mqa_args &a,
                                           const struct sparse_tile &t, char *shared, int turn)
{
    const struct mla_mqa_cache &c = a.cache;
    int lane = threadIdx.x % 32, at = ((int)threadIdx.x / 32 + AHEAD * turn) % RING;
    struct mla_union_entry e = read_entry<S>(t, shared, turn);
    bool ok = e.pos >= 0;
    int page = 0;
    if (ok && t.w.pages) {
        const char *id = shared + page_place<S>(turn + (MLA_MUTANT == 103));
        page = column_of(a, e.pos) < 0 ? -1 : *(const int *)id;
        ok = page >= 0 && page < c.num_pages;
    }
    const char *rows[2] = {(const char *)sparse_zeros,
                           (const char *)sparse_zeros + 2 * MLA_MQA_LATENT};
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

/* Keys in registers: tile n of a step is in slot (4 · step + n) mod SLOTS. Piece h: 16 bytes of key
 * lane / 4 of the tile, in the half h of this warp's columns. */
template <class S> struct sparse_keys {
    uint4 v[S::SLOTS][2];
};

/* Loads tiles first … end - 1 of a step; slot: of its tile 0. */
template <class S>
__device__ __forceinline__ void load_keys(const char *shared, int step, int slot, int first, int end,
                                          struct sparse_keys<S> *k)
{
    int lane = threadIdx.x % 32, at = threadIdx.x / 32 * 128 + lane % 4 * 16;
    const char *const *places =
        (const char *const *)(shared + S::places_at + (step % RING * KEYS + lane / 4) * 16);
#pragma unroll
    for (int n = first; n < end; n++) {
        const char *row = places[n * 16] + at;
        k->v[(slot + n) % S::SLOTS][0] = ld_global_nc_16(row);
        k->v[(slot + n) % S::SLOTS][1] = ld_global_nc_16(row + 64);
    }
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
    return S::weights_at + row * (KEYS * 2) + ((chunk ^ (row >> 1 & 3)) << 4);
}

/* This warp's share of the scores of a step, to shared memory. */
template <class S, class T>
__device__ __forceinline__ void share_scores(char *shared, int step, int slot,
                                             const struct sparse_keys<S> &k)
{
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const char *q_at = shared + S::q_at + warp * S::q_warp + lane * 16;
    uint4 v = make_uint4(0, 0, 0, 0);
    if (S::ROPE) {
        int key = warp % 4 * 8 + lane / 4, part = warp / 4 * 4 + lane % 4;
        if (MLA_MUTANT == 101)
            step++;
        v = *(const uint4 *)(shared + S::rope_at + (step % ROPE_STAGES * KEYS + key) * 128 +
                             ((part ^ (key & 1) << 2) << 4));
    }
#pragma unroll
    for (int m = 0; m < S::M; m++) {
        uint32_t q[2][4];
        float rope[4] = {};
        if (S::ROPE) {
            read_q_fragments(shared + S::q_rope_at + (warp / 4 * S::M + m) * 1024 + lane * 16, q);
            T::mma(rope, q[0], v.x, v.y);
            T::mma(rope, q[1], v.z, v.w);
        }
        int to = share_at<S>(warp, m * 16 + lane / 4, lane % 4);
#pragma unroll
        for (int n0 = 0; n0 < TILES; n0 += S::N_STEP) {
            float s[S::N_STEP][4];
#pragma unroll
            for (int n = 0; n < S::N_STEP; n++)
#pragma unroll
                for (int e = 0; e < 4; e++)
                    s[n][e] = S::ROPE && n0 + n == warp % 4 ? rope[e] : 0;
#pragma unroll
            for (int h = 0; h < 2; h++) {
                read_q_fragments(q_at + (m * 2 + h) * 1024, q);
#pragma unroll
                for (int n = 0; n < S::N_STEP; n++) {
                    const uint4 &key = k.v[(slot + n0 + n) % S::SLOTS][h];
                    T::mma(s[n], q[0], key.x, key.y);
                }
#pragma unroll
                for (int n = 0; n < S::N_STEP; n++) {
                    const uint4 &key = k.v[(slot + n0 + n) % S::SLOTS][h];
                    T::mma(s[n], q[1], key.z, key.w);
                }
            }
#pragma unroll
            for (int n = 0; n < S::N_STEP; n++) {
                char *at = shared + (to ^ (n0 + n) << 5);
                *(float2 *)at = make_float2(s[n][0], s[n][1]);
                *(float2 *)(at + 8 * KEYS * 4) = make_float2(s[n][2], s[n][3]);
            }
        }
    }
}

/* ------------------------------------------------------------------ softmax */

/* Running state of the row that this lane helps to finish. In shared memory, since registers are
 * short. */
struct row_state {
    float max_log2; /* largest score so far, in log2; -inf = none */
    float sum;      /* this lane's share of the sum of weights */
};

/* Adds up the shares of this warp's rows, masks, and leaves P and the factor that rescales what was
 * summed before. bits: the keys that this lane's row sees. Returns whether the factor is not 1. */
template <class S, class T>
__device__ __forceinline__ bool softmax_step(char *shared, uint32_t bits, float scale_log2)
{
    struct row_state *at = (struct row_state *)(shared + S::state_at) + threadIdx.x, st = *at;
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
    float before = st.max_log2;
    st.max_log2 = fmaxf(before, top);
    /* No key yet: any finite reference gives weights 0. */
    float reference = st.max_log2 == -INFINITY ? 0 : st.max_log2;
    float factor = st.max_log2 == before ? 1 : ex2_approx_ftz(before - reference);
    st.sum *= factor;
#pragma unroll
    for (int j = 0; j < S::pairs; j++) {
        int pair = j * S::lanes_row + in_row;
        float p0 = ex2_approx_ftz(x[j][0] - reference);
        float p1 = ex2_approx_ftz(x[j][1] - reference);
        st.sum += p0 + p1;
        *(uint32_t *)(shared + weight_at<S>(row, pair / 4) + pair % 4 * 4) = T::pack(p0, p1);
    }
    *at = st;
    if (in_row == 0)
        *(float *)(shared + S::factors_at + 4 * row) = factor;
    return factor != 1;
}


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

/* P of 16 keys of a step as A fragments. */
template <class S>
__device__ __forceinline__ void read_weights(uint32_t smem, int kk, uint32_t p[S::M][4])
{
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int m = 0; m < S::M; m++)
        ldmatrix_x4(p[m], smem + weight_at<S>(m * 16 + lane % 16, kk * 2 + lane / 16));
}

/* 16 keys. o[m][4h + i]: rows g and g + 8 of the tile, columns 32h + 8t + 2i and the next of this
 * warp's 64. */
template <class S, class T>
__device__ __forceinline__ void add_weighted(const uint32_t p[S::M][4], int slot,
                                             const struct sparse_keys<S> &k, float o[S::M][8][4])
{
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const uint4 &low = k.v[slot % S::SLOTS][h], &high = k.v[(slot + 1) % S::SLOTS][h];
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
}

/* ------------------------------------------------------------------ results */

/* lse and max_logits of this lane's row, or its partial values; the output's factor to shared. */
template <class S>
__device__ __forceinline__ void store_row(const struct mla_mqa_args &a, const struct work &w,
                                          char *shared)
{
    struct row_state st = ((const struct row_state *)(shared + S::state_at))[threadIdx.x];
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
        if (a.lse)
            a.lse[token * a.lse_stride[0] + head * a.lse_stride[1]] = lse_log2 * a.lse_unit;
        if (a.max_logits)
            a.max_logits[token * a.max_stride[0] + head * a.max_stride[1]] =
                st.max_log2 * 0.693147181f;
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
            if (row >= w.rows)
                continue;
            int64_t token = w.r.q_start + at / a.heads;
            int head = at % a.heads;
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
                }
                store_eight(args, w.r.splits > 1, to + column + h * 32, x);
            }
        }
}

/* ------------------------------------------------------------------- kernel */

/* Everything that a step needs and that lives longer. */
template <class S> struct sparse_state {
    const struct sparse_tile *t; /* in shared memory: registers are short */

    int row_token; /* token within the tile of the row whose softmax is shared */
    float o[S::M][8][4];
};

/* At this warp's steps: addresses of the next turn, whose entries and pages have come. */
template <class S>
__device__ __forceinline__ void run_ahead(const struct mla_mqa_args &a, char *shared, uint32_t smem,
                                          int step, const struct sparse_tile &t)
{
    if (step % AHEAD != (int)threadIdx.x / 32)
        return;
    int turn = step / AHEAD;
    put_places<S>(a, t, shared, turn + 1);
    fetch_page_id<S>(a, t, shared, smem, turn + 2);
    fetch_entry<S>(t, smem, turn + 3);
}

/* Starts the copy of a step's rope. */
template <class S>
__device__ __forceinline__ void copy_rope(char *shared, uint32_t smem, int step, int steps)
{
    if (S::ROPE && step < steps)
        cp_async_cg_16(smem + rope_at<S>(step), rope_piece<S>(shared, step), 16);
}

/* What later steps need beside keys: rope, addresses. Then everybody's shares are there, and the rope
 * of the next step. */
template <class S>
__device__ __forceinline__ void prepare_steps(const struct mla_mqa_args &a, char *shared,
                                              uint32_t smem, int i, const struct sparse_state<S> *s)
{
    copy_rope<S>(shared, smem, i + 2, s->t->steps);
    run_ahead<S>(a, shared, smem, i, *s->t);
    cp_async_commit();
    cp_async_wait_group<1>();
    __syncthreads();
}

/* Softmax of a step whose shares are there. */
template <class S, class T>
__device__ __forceinline__ bool weigh_step(const struct mla_mqa_args &a, char *shared, int i,
                                           struct sparse_state<S> *s)
{
    uint32_t bits =
        ((const uint32_t *)(shared + S::seen_at))[i % RING * MLA_UNION_TOKENS + s->row_token];
    if (MLA_MUTANT == 102)
        bits = seen_keys<S>(shared, i);
    bool moved = softmax_step<S, T>(shared, bits, a.scale_log2);
    return moved;
}

/* Step i, whose keys are in the slots from `slot` on. Loads of the next step start as slots are
 * free. */
template <class S, class T>
__device__ __forceinline__ void attend_step(const struct mla_mqa_args &a, char *shared,
                                            uint32_t smem, int i, int slot,
                                            struct sparse_keys<S> *k,
                                            struct sparse_state<S> *s)
{
    const bool more = i + 1 < s->t->steps;
    /* The whole block agrees. Branches that left some loads awaited and others not would make ptxas
     * wait for all of them where they join. */
    if (seen_keys<S>(shared, i) == 0) {
        if (more)
            load_keys<S>(shared, i + 1, slot + TILES, 0, TILES, k);
        prepare_steps<S>(a, shared, smem, i, s);
        return;
    }
    share_scores<S, T>(shared, i, slot, *k);
    if (more)
        load_keys<S>(shared, i + 1, slot + TILES, 0, S::EARLY, k);
    prepare_steps<S>(a, shared, smem, i, s);
    bool moved = weigh_step<S, T>(a, shared, i, s);
    if (__syncthreads_or(moved) && MLA_MUTANT != 104)
        rescale<S>(shared, s->o);
#pragma unroll
    for (int kk = 0; kk < KEYS / 16; kk++) {
        uint32_t p[S::M][4];
        read_weights<S>(smem, kk, p);
        add_weighted<S, T>(p, slot + 2 * kk, *k, s->o);
        if (more) /* to the two slots that are free now */
            load_keys<S>(shared, i + 1, slot + TILES, min(TILES, S::EARLY + 2 * kk),
                         min(TILES, S::EARLY + 2 * kk + 2), k);
    }
}

/* The tile of this block; false: nothing to do. */
template <class S>
__device__ __forceinline__ bool find_tile(const struct mla_sparse_any_args &args,
                                          struct sparse_tile *t)
{
    const struct mla_mqa_args &a = args.a;
    struct work *w = &t->w;
    t->entries = NULL;
    if (S::GROUP) {
        if (!set_group(args, (int)blockIdx.x, t))
            return false;
    } else {
        int found = find_request(a, (int)blockIdx.x, (int)gridDim.x);
        set_work<S::ROWS>(a, found, (int)blockIdx.x, 0, w);
        const struct mla_mqa_groups &g = args.groups;
        if (g.size && (g.counts[group_of(g.size, w->r, w->token0)] >= 0 || MLA_MUTANT == 105))
            return false;
    }
    int steps = (w->count + KEYS - 1) / KEYS, splits = S::GROUP ? 1 : w->r.splits;
    int share = (steps + splits - 1) / splits;
    t->first = min(steps, w->split * share);
    t->steps = min(steps, t->first + share) - t->first;
    return true;
}

template <class S, class T>
__global__ void __launch_bounds__(MLA_MQA_THREADS, S::BLOCKS)
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


    /* Addresses of the first AHEAD steps; on the way, Q. */
#pragma unroll
    for (int turn = 0; turn < 3; turn++)
        fetch_entry<S>(tile, smem, turn);
    cp_async_commit();
    place_q<S>(a, tile.w, shared);
    cp_async_wait_all();
    fetch_page_id<S>(a, tile, shared, smem, 0);
    fetch_page_id<S>(a, tile, shared, smem, 1);
    cp_async_commit();
    cp_async_wait_all();
    put_places<S>(a, tile, shared, 0);
    __syncthreads();

    struct sparse_keys<S> k;
    if (steps > 0)
        load_keys<S>(shared, 0, 0, 0, TILES, &k);
    copy_rope<S>(shared, smem, 0, steps);
    cp_async_commit();
    copy_rope<S>(shared, smem, 1, steps);
    cp_async_commit();
    cp_async_wait_group<1>();
    __syncthreads();
    int row = min(warp * S::rows_warp + (int)threadIdx.x % 32 / S::lanes_row, tile.w.rows - 1);
    s.row_token = S::GROUP ? row / a.heads : 0;
    ((struct row_state *)(shared + S::state_at))[threadIdx.x] = {-INFINITY, 0};
#pragma unroll
    for (int m = 0; m < S::M; m++)
#pragma unroll
        for (int n = 0; n < 8; n++)
#pragma unroll
            for (int j = 0; j < 4; j++)
                s.o[m][n][j] = 0;

#pragma unroll 1
    for (int i = 0; i < s.t->steps; i += S::PERIOD) {
#pragma unroll
        for (int u = 0; u < S::PERIOD; u++) {
            if (i + u >= s.t->steps)
                break;
            attend_step<S, T>(a, shared, smem, i + u, TILES * u, &k, &s);
        }
    }
    __syncthreads(); /* the last factors are read */
    store_row<S>(a, s.t->w, shared);
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

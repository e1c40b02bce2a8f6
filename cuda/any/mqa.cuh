/* SPDX-License-Identifier: Apache-2.0 */
/* Absorbed-form attention for a tile of query rows: out = softmax(scale · q · K^T) · K[:, :512].
 * Dense (causal, bitmask, flat or paged) and over top-k lists; prefill and decode. sm_80 and later:
 * mma.sync, ldmatrix and cp.async only, at most 99 KB of shared memory a block.
 *
 * Tile. ROWS (16, 32 or 64) query rows, 32 keys a step, 8 warps, one block a tile and key split.
 * Dense requests pack (query token, head) pairs into rows, 16 tokens of 4 heads as well as half a
 * token of 128. Rows over a list are heads of one token, since each token gathers its own keys;
 * GROUP tiles take several tokens over the union of their lists (union.h), a bit a key and token.
 *
 * Why this split of the work. mma.sync takes its operands from registers, and shared memory gives
 * 128 B a clock, so what fragments read a mma decides (an H100 does one mma in 1.5 clocks, 192 B):
 *   - Q stays in registers (36 or 72 a thread) and scores read K alone. A warp computes 16 rows x
 *     some keys over its share of every 64-wide band of d; the shares are added up through shared
 *     memory by the warp that does the softmax of a row.
 *         ROWS   row x d x key groups of warps   K read by   B a mma: scores + partial sums, P·V
 *          16           1 x 4 x 2                 one warp       256 + 228                  512
 *          32           2 x 4 x 1                 two            256 + 228                  192
 *          64           4 x 2 x 1                 four           256 +  28                  128
 *   - A warp owns 64 of the 512 output columns for all rows (ROWS / 16 · 32 registers a
 *     thread), so V is read once a tile.
 * What bounds it on an H100 is neither: one or two warps a scheduler leave the latency of address
 * arithmetic and of the softmax in the open. Sixteen warps a block were slower (more reads of K).
 *
 * Timeline of a step (| = barrier; the second joins only warps that share rows):
 *   wait K(i) | copy of K(i+1) starts; partial scores | add up, mask, softmax, P | rescale, P·V
 * Packed caches (fp8 and fp4 records) are copied raw and widened to T first:
 *   wait raw(i) | widen K(i) | copy of raw(i+1) starts; partial scores | ... as above.
 * Addresses are found by one warp in turn, steps ahead, and read by all from shared memory. A step
 * none of whose keys the tile sees costs a barrier.
 *
 * Shared memory, bytes (rope 64): plain cache; packed cache      ROWS 16     32       64
 *   K rows, 32 x 1152, two stages; one                               73728; 36864
 *   raw records, 32 x 656                                                0; 20992
 *   partial scores, slots x ROWS x 128                          8192    16384     8192
 *   row factors, places of two steps' keys, the block's work    1256     1320     1448
 * Q (ROWS x 1152) passes through the same memory at the start. At most 91432 of 101376 bytes.
 * Registers: 128 a thread for 16 and 32 rows (two blocks an SM; sm_12x has room for one), 255 for 64;
 * docs/kernel-table.md has them, and the spills.
 *
 * NaN. A key that the tile does not see is copied as zeros, and its score is -inf: what an
 * invisible slot holds reaches nothing. A key that one row of the tile sees is multiplied by P = 0
 * in others.
 * Rounding. Scores and output accumulate in fp32; P = 2^(score - running max), at most 1, rounded
 * to T; the row sum adds unrounded P in fp32. (A maximum that is followed late would rescale less,
 * but the heaviest key's P would no longer be exactly 1: errors of peaked rows grow by half.) One
 * order of additions: results repeat bit by bit.
 * Limits. Latent width 512, rope 64 or 0. Rows of a request and cache slots below 2^31. */
#ifndef MLA_CUDA_ANY_MQA_CUH
#define MLA_CUDA_ANY_MQA_CUH

#include "../mutant.cuh"
#include "../ptx/barrier.cuh"
#include "../ptx/launch.cuh"
#include "../ptx/opaque.cuh"
#include "../ptx/shared.cuh"
#include "mqa_mutant.cuh"
#include "mqa_work.cuh"

static const int KEYS = MLA_MQA_KEYS;
static const int THREADS = MLA_MQA_THREADS;
static const int WARPS = THREADS / 32;
static const int OUT_TILES = MLA_MQA_LATENT / WARPS / 8; /* 8-wide output tiles of a warp */
static const int RAW_PITCH = FP8_ROW_BYTES;              /* the longest record */
static const int MAX_SHARED = 101376;
/* Two blocks of these tiles share an SM; sm_12x has room for one, which then has all registers. */
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1200
static const int MOST_ROWS_OF_TWO_BLOCKS = 0;
#else
static const int MOST_ROWS_OF_TWO_BLOCKS = 32;
#endif

template <int ROWS, int ROPE, bool PACKED, bool GROUP> struct tile {
    static const bool group = GROUP;
    static const int seen_words = GROUP ? 1 + MLA_UNION_TOKENS : 1; /* of a step */
    static const int row_groups = ROWS / 16;                        /* 16 rows of scores a warp */
    static const int d_groups = ROWS == 64 ? 2 : 4;
    static const int key_groups = WARPS / row_groups / d_groups;
    static const int n_tiles = KEYS / key_groups / 8;      /* of a warp's scores */
    static const int n_step = ROWS == 64 ? 4 : 2;          /* of them computed together */
    static const int ahead = ROWS == 64 ? 3 : 1;           /* fragment loads in flight */
    static const int bands = (MLA_MQA_LATENT + ROPE) / 64; /* of 64 columns of d */
    static const int q_frags = 4 / d_groups;               /* 16-wide fragments a band */
    static const int row_bytes = (MLA_MQA_LATENT + ROPE) * 2;
    static const int stage_bytes = KEYS * row_bytes;
    static const int stages = PACKED ? 1 : 2;
    /* 64 rows: two warps share 16 rows; each finishes eight and sends the other eight across. */
    static const bool swaps = ROWS == 64;
    static const int slots = swaps ? 1 : d_groups;
    static const int raw_at = stages * stage_bytes;
    static const int widened = ROWS == 32 ? 2 : 4; /* 16-byte chunks a lane widens together */
    static const int scores_at = raw_at + (PACKED ? KEYS * RAW_PITCH : 0);
    static const int scores_end = scores_at + slots * ROWS * KEYS * 4;
    static const int q_bytes = ROWS * row_bytes; /* Q passes through at the start */
    static const int rows_at = scores_end > q_bytes ? scores_end : q_bytes;
    static const int places_at = (rows_at + ROWS * 4 + 15) / 16 * 16; /* of two steps' keys */
    static const int visible_at = places_at + 2 * KEYS * 16;          /* words of four steps */
    static const int found_at = visible_at + 16 * seen_words;
    static const int work_at = found_at + 8; /* struct work, once for all */
    static const int shared_bytes = work_at + sizeof(struct work);
    /* Softmax: each warp finishes rows_warp rows, lanes_row lanes a row, 2·pairs scores a lane. */
    static const int rows_warp = ROWS / WARPS;
    static const int lanes_row = 32 / rows_warp;
    static const int pairs = KEYS / 2 / lanes_row;
    static_assert(shared_bytes <= MAX_SHARED, "the tile must fit sm_120's 99 KB");
    static_assert(row_bytes % 128 == 0, "rows start at bank 0: the swizzle relies on it");
};

/* Which scores a warp computes. */
template <class S> struct place_of_warp {
    int d_group, row_group, key_group;
    __device__ __forceinline__ place_of_warp(int warp)
    {
        d_group = warp % S::d_groups;
        row_group = S::row_groups == 1 ? 0 : warp / S::d_groups % S::row_groups;
        key_group = S::key_groups == 1 ? 0 : warp / S::d_groups;
    }
};

template <int ROWS>
__device__ __forceinline__ void find_work(const struct mla_mqa_args &a, int *found, struct work *w)
{
    /* Blocks of a tile of another engine's, which share its rows. */
    int parts = max(1, a.tile_parts), block = blockIdx.x / parts, blocks = gridDim.x / parts;
    /* The request whose blocks hold this one. */
    for (int i = threadIdx.x; i < a.num_requests; i += THREADS) {
        int next = i + 1 < a.num_requests ? a.requests[i + 1].first_block : blocks;
        if (block >= a.requests[i].first_block && block < next)
            *found = i;
    }
    __syncthreads();
    set_work<ROWS>(a, *found, block, blockIdx.x % parts, w);
}

/* --------------------------------------------------------------- key stream */

/* What fetch_position left: of a union's entry, the position alone. */
template <class S> __device__ __forceinline__ int position_of(int fetched)
{
    const int mask = (1 << MLA_UNION_MASK) - 1;
    if (!S::group)
        return fetched;
    return fetched == -1 ? -1 : fetched & mask;
}

/* Position of this lane's key in step i, unchecked, or the entry of a union; -1 for none. Bitmask:
 * a key that no token of the tile sees is none; a token may list keys of its own future, which
 * count for nothing. */
template <class S>
__device__ __forceinline__ int fetch_position(const struct mla_mqa_args &a, const struct work &w,
                                              int step, int last_step)
{
    int lane = threadIdx.x % 32, j = step * KEYS + lane, pos;
    if (step >= last_step)
        return -1;
    if (w.list) {
        pos = j < w.count ? w.list[j] : -1;
#ifdef MLA_DEVICE_MUTANTS
        if (!S::group)
            pos = mutated_position(a, w, j, pos);
#endif
        return pos;
    }
    if (a.mask) {
        uint32_t word = 0;
        for (int t = lane; t < w.tokens; t += 32)
            word |= a.mask[(int64_t)(w.r.q_start + w.token0 + t) * a.mask_stride + step] &
                    bits_below(causal_end(a, w, w.token0 + t) - step * KEYS);
        word = __reduce_or_sync(0xFFFFFFFFu, word);
        return word >> lane & 1 ? j : -1;
    }
    return j;
}

/* Keys of a step that a query token sees by mask and causality; lists were looked at on the way. */
__device__ __forceinline__ uint32_t row_bits(const struct mla_mqa_args &a, const struct work &w,
                                             int token, int step)
{
    uint32_t bits = 0xFFFFFFFFu;
    if (w.list)
        return bits;
    if (a.mask)
        bits = a.mask[(int64_t)(w.r.q_start + token) * a.mask_stride + step];
    return bits & bits_below(causal_end(a, w, token) - step * KEYS);
}

/* Places of a step's keys and their bits, for all warps to read after a barrier. Bits of a group:
 * those of all its tokens, then of each. */
template <class S>
__device__ __forceinline__ void store_places(const struct mla_mqa_args &a, const struct work &w,
                                             char *shared, int step, int fetched, int page)
{
    int lane = threadIdx.x % 32, pos = position_of<S>(fetched);
    uint32_t *words = (uint32_t *)(shared + S::visible_at) + step % 4 * S::seen_words;
    bool ok = page >= 0 && (!w.pages || page < a.cache.num_pages);
    struct row_place place = {0, 0};
    if (ok)
        place = place_row(&a.cache, w.r.kv_start, pos, page);
    uint32_t visible = __ballot_sync(0xFFFFFFFFu, ok);
    ((struct row_place *)(shared + S::places_at))[step % 2 * KEYS + lane] = place;
    if (lane == 0)
        words[0] = visible;
    if (S::group)
#pragma unroll
        for (int t = 0; t < MLA_UNION_TOKENS; t++) {
            uint32_t of_token =
                __ballot_sync(0xFFFFFFFFu, ok && (uint32_t)fetched >> (MLA_UNION_MASK + t) & 1);
            if (lane == t)
                words[1 + t] = of_token;
        }
}

/* Bit k = key k of the step is visible to the tile, the same in every warp. */
template <class S> __device__ __forceinline__ uint32_t visible_keys(const char *shared, int step)
{
    return ((const uint32_t *)(shared + S::visible_at))[step % 4 * S::seen_words];
}

/* Of them, those that a token of the group sees. */
template <class S>
__device__ __forceinline__ uint32_t token_keys(const char *shared, int step, int token)
{
    if (MLA_MUTANT == 41)
        return visible_keys<S>(shared, step);
    if (MLA_MUTANT == 42)
        step ^= 1;
    return ((const uint32_t *)(shared + S::visible_at))[step % 4 * S::seen_words + 1 + token];
}

/* The same for rows that are not 16-byte aligned: rare, so small rather than fast. */
template <class S, bool PACKED>
__device__ __forceinline__ void
copy_step_unaligned(const struct mla_mqa_cache &c, const struct row_place *places, uint32_t visible,
                    char *shared, uint32_t smem, int stage)
{
    int lane = threadIdx.x % 32, first = threadIdx.x / 32 * 4;
#pragma unroll 1
    for (int key = first; key < first + 4; key++) {
        const char *data = c.data + places[key].data;
        const char *rope = c.rope + places[key].other;
        bool see = visible >> key & 1;
        int chunks = PACKED ? c.record_bytes / 16 : S::row_bytes / 16;
#pragma unroll 1
        for (int chunk = lane; chunk < chunks; chunk += 32) {
            const char *src = data + 16 * chunk;
            int to = S::raw_at + key * RAW_PITCH + 16 * chunk;
            if (!PACKED) {
                to = stage * S::stage_bytes + key * S::row_bytes + ((chunk ^ (key & 7)) << 4);
                if (chunk >= MLA_MQA_LATENT / 8)
                    src = rope + 16 * chunk - 2 * MLA_MQA_LATENT;
            }
            copy_unaligned(smem + to, shared + to, src, 16, see, c.align);
        }
    }
}

/* Starts the copy of one step's rows, four keys a warp; rows that are not visible become zeros. */
template <class S, bool PACKED>
__device__ __forceinline__ void copy_step(const struct mla_mqa_args &a, const struct work &w,
                                          int step, char *shared, uint32_t smem, int stage)
{
    const struct mla_mqa_cache &c = a.cache;
    int lane = threadIdx.x % 32, first = threadIdx.x / 32 * 4;
    const struct row_place *places =
        (const struct row_place *)(shared + S::places_at) + step % 2 * KEYS;
    uint32_t visible = visible_keys<S>(shared, step);
    (void)w;
    if (PACKED) {
        /* Scales from the page footer, behind the record: at most 8-byte aligned for model1. */
        int key = first + lane % 4;
        int64_t other = places[key].other;
        int to = S::raw_at + key * RAW_PITCH + c.record_bytes;
        if (lane < 4 && c.footer_bytes)
            copy_unaligned(smem + to, shared + to, c.data + other, c.footer_bytes,
                           visible >> key & 1, min(c.align, 8));
    }
    if (c.align != 16) {
        copy_step_unaligned<S, PACKED>(c, places, visible, shared, smem, stage);
        return;
    }
    /* Eight lanes a key; a lane's 16-byte chunks lie 128 bytes apart, in both places. */
    int key = first + lane / 8, part = lane % 8;
    uint32_t bytes = visible >> key & 1 ? 16 : 0;
    const struct row_place place = places[key];
    const char *src = c.data + place.data + 16 * part;
#ifdef MLA_DEVICE_MUTANTS
    if (MUTANT_HITS(NAN_SLOT, w.r.q_start + w.token0) && bytes == 0) {
        src = mutated_row() + 16 * part;
        bytes = 16;
    }
#endif
    if (PACKED) {
        uint32_t to = smem + S::raw_at + key * RAW_PITCH + 16 * part;
#pragma unroll
        for (int i = 0; i < (RAW_PITCH + 127) / 128; i++)
            if (i * 128 + 16 * part < c.record_bytes)
                cp_async_cg_16(to + i * 128, src + i * 128, bytes);
    } else {
        uint32_t to =
            smem + stage * S::stage_bytes + key * S::row_bytes + ((part ^ (key & 7)) << 4);
#pragma unroll
        for (int i = 0; i < MLA_MQA_LATENT / 64; i++)
            cp_async_cg_16(to + i * 128, src + i * 128, bytes);
        if (S::row_bytes > 2 * MLA_MQA_LATENT)
            cp_async_cg_16(to + 2 * MLA_MQA_LATENT, c.rope + place.other + 16 * part, bytes);
    }
}

/* Raw records of this warp's four keys to rows of T, S::widened chunks together: their loads do not
 * wait for the stores of others. */
template <class S, class T, int FORMAT> __device__ __forceinline__ void widen_format(char *shared)
{
    /* Groups in 64 rows have no register left to keep addresses from step to step. */
    uint32_t thread = S::group && S::swaps ? opaque(threadIdx.x) : threadIdx.x;
    int lane = thread % 32, first = thread / 32 * 4;
#pragma unroll
    for (int i = 0; i < 8; i += S::widened) {
        uint4 out[S::widened];
#pragma unroll
        for (int j = 0; j < S::widened; j++)
            out[j] =
                dequant_chunk<T>(FORMAT, shared + S::raw_at + (first + (i + j) / 2) * RAW_PITCH,
                                 (i + j) % 2 * 32 + lane);
#pragma unroll
        for (int j = 0; j < S::widened; j++) {
            int key = first + (i + j) / 2, chunk = (i + j) % 2 * 32 + lane;
            *(uint4 *)(shared + key * S::row_bytes + ((chunk ^ (key & 7)) << 4)) = out[j];
        }
    }
    if (S::row_bytes > 2 * MLA_MQA_LATENT) {
        int key = first + lane / 8, from = MUTANT(FP8_ROPE) && key ? key - 1 : key;
        *(uint4 *)(shared + key * S::row_bytes + 2 * MLA_MQA_LATENT +
                   ((lane % 8 ^ (key & 7)) << 4)) =
            dequant_chunk<T>(FORMAT, shared + S::raw_at + from * RAW_PITCH,
                             MLA_MQA_LATENT / 8 + lane % 8);
    }
}

template <class S, class T> __device__ __forceinline__ void widen(int format, char *shared)
{
    switch (format) {
    case MLA_CACHE_FP8_DS_MLA:
        widen_format<S, T, MLA_CACHE_FP8_DS_MLA>(shared);
        break;
    case MLA_CACHE_MODEL1:
        widen_format<S, T, MLA_CACHE_MODEL1>(shared);
        break;
    case MLA_CACHE_V41:
        widen_format<S, T, MLA_CACHE_V41>(shared);
        break;
    default:
        widen_format<S, T, MLA_CACHE_NVFP4_DS_MLA>(shared);
    }
}

/* ------------------------------------------------------------------- scores */

/* Bytes of the pair of scores p (keys 2p, 2p+1) of a row. The swizzle keeps both the fragments'
 * writes (8 rows x 4 pairs) and the softmax's reads (whole rows) off each other's banks. */
template <class S, int ROWS> __device__ __forceinline__ int score_at(int slot, int row, int pair)
{
    int swizzle = (row & 1) << 3 | (row & 2) << 1;
    return S::scores_at + (slot * ROWS + row) * (KEYS * 4) + ((pair ^ swizzle) << 3);
}

/* P of 8 keys (chunk 0 to 3) of a row, 16 bytes, inside the row's first slot. */
template <class S> __device__ __forceinline__ int weight_at(int row, int chunk)
{
    return S::scores_at + row * (KEYS * 4) + ((chunk ^ (row & 7)) << 4);
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

/* Q of the tile through shared memory into this warp's fragments. */
template <class S, int ROWS>
__device__ __forceinline__ void load_q(const struct mla_mqa_args &a, const struct work &w,
                                       char *shared, uint32_t smem,
                                       uint32_t q[S::bands][S::q_frags][4])
{
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (int row = warp; row < ROWS; row += WARPS) {
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
    struct place_of_warp<S> at(warp);
    int row = at.row_group * 16 + lane % 16;
    int chunk = at.d_group * 2 * S::q_frags + lane / 16;
#pragma unroll
    for (int b = 0; b < S::bands; b++)
#pragma unroll
        for (int f = 0; f < S::q_frags; f++)
            ldmatrix_x4(q[b][f],
                        smem + row * S::row_bytes + b * 128 + (((chunk + 2 * f) ^ (row & 7)) << 4));
    __syncthreads();
}

/* This warp's share of the scores: its 16 rows, n_step of its key tiles from tile n0, its columns
 * of d. A load brings 16 keys x 16 columns. */
template <class S, class T>
__device__ __forceinline__ void
partial_scores(uint32_t k_smem, int n0, uint32_t q[S::bands][S::q_frags][4], float s[S::n_step][4])
{
    int lane = threadIdx.x % 32;
    struct place_of_warp<S> at(threadIdx.x / 32);
    int key = at.key_group * S::n_tiles * 8 + lane / 16 * 8 + lane % 8;
    int chunk = at.d_group * 2 * S::q_frags + lane / 8 % 2;
    uint32_t from = k_smem + key * S::row_bytes + ((chunk ^ lane % 8) << 4);
#pragma unroll
    for (int n = 0; n < S::n_step; n++)
#pragma unroll
        for (int e = 0; e < 4; e++)
            s[n][e] = 0;
    /* Loads run ahead of the products: nothing else hides latency at two warps a scheduler. */
    const int loads_frag = S::n_step / 2, loads = S::bands * S::q_frags * loads_frag;
    uint32_t k[S::ahead + 1][4];
#pragma unroll
    for (int i = 0; i < loads + S::ahead; i++) {
        if (i < loads) {
            int n = i % loads_frag * 2, f = i / loads_frag % S::q_frags;
            int b = i / loads_frag / S::q_frags;
            ldmatrix_x4(k[i % (S::ahead + 1)],
                        (from ^ f << 5) + (n0 + n) * 8 * S::row_bytes + b * 128);
        }
        if (i >= S::ahead) {
            int j = i - S::ahead, n = j % loads_frag * 2;
            if (MUTANT(ROPE_DROPPED) && j / loads_frag / S::q_frags == MLA_MQA_LATENT / 64)
                continue;
            const uint32_t *fresh = k[j % (S::ahead + 1)];
            const uint32_t *q_frag = q[j / loads_frag / S::q_frags][j / loads_frag % S::q_frags];
            T::mma(s[n], q_frag, fresh[0], fresh[1]);
            T::mma(s[n + 1], q_frag, fresh[2], fresh[3]);
        }
    }
}

/* Partial scores to where the warp that finishes the row will read them. */
template <class S, int ROWS>
__device__ __forceinline__ void store_scores(char *shared, int n0, float s[S::n_step][4],
                                             float own[S::pairs][2])
{
    int lane = threadIdx.x % 32;
    struct place_of_warp<S> at(threadIdx.x / 32);
    int row = at.row_group * 16 + lane / 4;
    /* Eight rows on, the swizzle of score_at is the same; key tile n flips address bits 5 and 6. */
    int to = score_at<S, ROWS>(S::swaps ? 0 : at.d_group, row, lane % 4);
    if (S::swaps) {
        bool upper = at.d_group == 1; /* finishes rows 8 to 15 */
        to += upper ? 0 : 8 * KEYS * 4;
#pragma unroll
        for (int n = 0; n < S::n_step; n++) {
            *(float2 *)(shared + (to ^ n << 5)) =
                upper ? make_float2(s[n][0], s[n][1]) : make_float2(s[n][2], s[n][3]);
            own[n % S::pairs][0] = upper ? s[n][2] : s[n][0];
            own[n % S::pairs][1] = upper ? s[n][3] : s[n][1];
        }
    } else {
#pragma unroll
        for (int n = 0; n < S::n_step; n++) {
            int tile = at.key_group * S::n_tiles + n0 + n;
            *(float2 *)(shared + (to ^ tile << 5)) = make_float2(s[n][0], s[n][1]);
            *(float2 *)(shared + (to ^ tile << 5) + 8 * KEYS * 4) = make_float2(s[n][2], s[n][3]);
        }
    }
}

/* The warps that share rows of scores wait for each other. */
template <class S> __device__ __forceinline__ void scores_barrier()
{
    struct place_of_warp<S> at(threadIdx.x / 32);
    if (S::row_groups == 1)
        __syncthreads();
    else
        bar_sync(1 + at.row_group, S::d_groups * 32);
}

/* Running state of the row that this lane helps to finish. */
struct row_state {
    float max_log2; /* largest score so far, in log2; -inf = none */
    float sum;      /* this lane's share of the sum of weights */
};

/* Adds up the partial scores of this warp's rows, masks, and leaves P and the factor that rescales
 * what was summed before. bits: the keys that this lane's row sees. Returns whether the factor is
 * other than 1. */
template <class S, class T, int ROWS>
__device__ __forceinline__ bool softmax_step(char *shared, const float own[S::pairs][2],
                                             uint32_t bits, float scale_log2, struct row_state *st)
{
    int lane = threadIdx.x % 32, in_row = lane % S::lanes_row;
    int row = threadIdx.x / 32 * S::rows_warp + lane / S::lanes_row;
    float x[S::pairs][2];
    float top = -INFINITY;
#pragma unroll
    for (int j = 0; j < S::pairs; j++) {
        int pair = j * S::lanes_row + in_row;
        float2 sum = S::swaps ? make_float2(own[j][0], own[j][1]) : make_float2(0, 0);
#pragma unroll
        for (int slot = 0; slot < S::slots; slot++) {
            float2 v = *(const float2 *)(shared + score_at<S, ROWS>(slot, row, pair));
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
    __syncwarp(); /* P goes where the row's scores were: all lanes have read them */
#pragma unroll
    for (int j = 0; j < S::pairs; j++) {
        int pair = j * S::lanes_row + in_row;
        float p0 = ex2_approx_ftz(x[j][0] - reference);
        float p1 = ex2_approx_ftz(x[j][1] - reference);
        st->sum += p0 + p1;
        *(uint32_t *)(shared + weight_at<S>(row, pair / 4) + pair % 4 * 4) = T::pack(p0, p1);
    }
    if (in_row == 0)
        *(float *)(shared + S::rows_at + 4 * row) = factor;
    return factor != 1;
}

/* o (all rows, this warp's 64 columns) += P · V. */
template <class S, class T, int ROWS>
__device__ __forceinline__ void add_weighted(uint32_t smem, uint32_t k_smem,
                                             float o[ROWS / 16][OUT_TILES][4])
{
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, loads = KEYS / 16 * OUT_TILES / 2;
    const uint32_t at = k_smem + (lane / 8 % 2 * 8 + lane % 8) * S::row_bytes + warp * 128 +
                        ((lane / 16 ^ lane % 8) << 4);
    uint32_t p[ROWS / 16][4], v[2][4];
    ldmatrix_x4_trans(v[0], at);
#pragma unroll
    for (int i = 0; i < loads; i++) { /* 16 keys x 16 columns each, loaded one ahead */
        const int n = i * 2 % OUT_TILES, kk = i * 2 / OUT_TILES, next = i + 1;
        if (n == 0)
#pragma unroll
            for (int m = 0; m < ROWS / 16; m++)
                ldmatrix_x4(p[m], smem + weight_at<S>(m * 16 + lane % 16, kk * 2 + lane / 16));
        if (next < loads)
            ldmatrix_x4_trans(v[next % 2], (at ^ next * 2 % OUT_TILES << 4) +
                                               next * 2 / OUT_TILES * 16 * S::row_bytes);
#pragma unroll
        for (int m = 0; m < ROWS / 16; m++) {
            T::mma(o[m][n], p[m], v[i % 2][0], v[i % 2][1]);
            T::mma(o[m][n + 1], p[m], v[i % 2][2], v[i % 2][3]);
        }
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
    *(float *)(shared + S::rows_at + 4 * row) = factor;
}

template <class S, int ROWS>
__device__ __forceinline__ void store_out(const struct mla_mqa_args &a, const struct work &w,
                                          const char *shared, float o[ROWS / 16][OUT_TILES][4])
{
    int lane = threadIdx.x % 32, column = threadIdx.x / 32 * 64 + lane % 4 * 2;
#pragma unroll
    for (int m = 0; m < ROWS / 16; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int row = m * 16 + half * 8 + lane / 4, at = w.row0 + row;
            float factor = *(const float *)(shared + S::rows_at + 4 * row);
#ifdef MLA_DEVICE_MUTANTS
            float stale = __shfl_up_sync(0xFFFFFFFFu, o[m][3][2 * half] * factor, 4);
#endif
            if (row >= w.rows)
                continue;
            bool split = w.r.splits > 1;
            int64_t token = w.r.q_start + at / a.heads;
            int head = at % a.heads;
            if (MUTANT_HITS(HEADS_SWAPPED, token))
                head = head < 2 ? 1 - head : head;
            int64_t to = token * a.out_stride[0] + head * a.out_stride[1];
            if (split)
                to = (w.r.part_row + (int64_t)w.split * w.r.query_len * a.heads + at) *
                     MLA_MQA_LATENT;
#pragma unroll
            for (int n = 0; n < OUT_TILES; n++) {
                float x = o[m][n][2 * half] * factor, y = o[m][n][2 * half + 1] * factor;
#ifdef MLA_DEVICE_MUTANTS
                x = MUTANT_HITS(COLUMN_STALE, token) && n == 3 && lane >= 4 ? stale : x;
                if (MUTANT(LATENT_CHOPPED)) {
                    x = chopped(x);
                    y = chopped(y);
                }
#endif
                if (split)
                    *(float2 *)(a.part_out + to + column + n * 8) = make_float2(x, y);
                else
                    store_pair(a.out_dtype, a.out, to + column + n * 8, x, y);
            }
        }
}

/* ------------------------------------------------------------------- kernel */

/* The tile that `work` in shared memory tells of. */
template <int ROWS, int ROPE, bool PACKED, bool GROUP, class T>
__device__ __forceinline__ void attend_tile(const struct mla_mqa_args &a, char *shared,
                                            uint32_t smem)
{
    typedef tile<ROWS, ROPE, PACKED, GROUP> S;
    /* In shared memory, for want of registers. */
    const struct work &w = *(const struct work *)(shared + S::work_at);
    int steps = (w.count + KEYS - 1) / KEYS;
    int share = (steps + w.r.splits - 1) / w.r.splits;
    int step = min(steps, w.split * share), last = min(steps, step + share);

    /* The row whose softmax this lane shares. */
    int row = min((int)threadIdx.x / 32 * S::rows_warp + (int)threadIdx.x % 32 / S::lanes_row,
                  w.rows - 1);
    int row_token = (w.row0 + row) / a.heads;

    uint32_t q[S::bands][S::q_frags][4];
    load_q<S, ROWS>(a, w, shared, smem, q);
    float o[ROWS / 16][OUT_TILES][4];
#pragma unroll
    for (int m = 0; m < ROWS / 16; m++)
#pragma unroll
        for (int n = 0; n < OUT_TILES; n++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                o[m][n][e] = 0;
    struct row_state state = {-INFINITY, 0};

    /* The addresses of a step are one warp's to find: positions four steps before, page ids three,
     * places two, so that no step waits for a chain list -> page table -> row. */
    const int warp = threadIdx.x / 32, first = step;
    int turn = first + warp, pos = fetch_position<S>(a, w, turn, last);
    int page = fetch_page(a, w, position_of<S>(pos));
    if (warp < 2)
        store_places<S>(a, w, shared, turn, pos, page);
    __syncthreads();
    uint32_t mask_word = 0;
    int stage = 0;
#ifdef MLA_DEVICE_MUTANTS
    bool skipped = false;
#endif
    if (step < last) {
        copy_step<S, PACKED>(a, w, step, shared, smem, 0);
        mask_word = row_bits(a, w, row_token, step);
    }

    for (; step < last; step++) {
        uint32_t k_smem = smem + stage * S::stage_bytes;
        cp_async_wait_all();
        __syncthreads(); /* rows of this step are here; the step before is done with K and P */
        uint32_t visible = visible_keys<S>(shared, step);
        uint32_t bits =
            GROUP ? token_keys<S>(shared, step, row_token - (MLA_MUTANT == 43 ? 0 : w.token0))
                  : visible & mask_word;
        bool any_key = visible != 0;
        if (PACKED) {
            if (any_key)
                widen<S, T>(a.cache.format, shared);
            __syncthreads(); /* raw records are read, K is whole */
        }
        int next = S::stages == 2 ? stage ^ 1 : 0;
        float own[S::pairs][2] = {};
        int ahead = (warp - (step - first)) & (WARPS - 1);
        if (ahead == 2)
            store_places<S>(a, w, shared, step + 2, pos, page);
        else if (ahead == 3)
            page = fetch_page(a, w, position_of<S>(pos));
        else if (ahead == 4)
            pos = fetch_position<S>(a, w, step + 4, last);
        if (step + 1 < last) {
            copy_step<S, PACKED>(a, w, step + 1, shared, smem, next);
            mask_word = row_bits(a, w, row_token, step + 1);
        }
        if (any_key) {
#pragma unroll
            for (int n = 0; n < S::n_tiles; n += S::n_step) {
                float s[S::n_step][4];
                partial_scores<S, T>(k_smem, n, q, s);
                store_scores<S, ROWS>(shared, n, s, own);
            }
        }
        stage = next;
        if (!any_key)
            continue; /* the whole block agrees */
        scores_barrier<S>();
        if (step == 1 && MUTANT_HITS(MAX_OF_TILE, w.r.q_start + row_token))
            state.max_log2 = -INFINITY;
        bool moved = softmax_step<S, T, ROWS>(shared, own, bits, a.scale_log2, &state);
#ifdef MLA_DEVICE_MUTANTS
        if (step == 0 && MUTANT_HITS(V_SWAPPED, w.r.q_start + row_token))
            swap_weights<S>(shared);
        if (step >= 1 && moved && !skipped &&
            MUTANT_HITS(RESCALE_SKIPPED, w.r.q_start + row_token)) {
            skipped = true;
            __syncwarp(__activemask());
            *(float *)(shared + S::rows_at +
                       4 * (threadIdx.x / 32 * S::rows_warp + threadIdx.x % 32 / S::lanes_row)) = 1;
        }
#endif
        if (__syncthreads_or(moved)) {
#pragma unroll
            for (int m = 0; m < ROWS / 16; m++) {
                const char *at = shared + S::rows_at + (m * 16 + threadIdx.x % 32 / 4) * 4;
                float low = *(const float *)at, high = *(const float *)(at + 32);
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
        add_weighted<S, T, ROWS>(smem, k_smem, o);
#ifdef MLA_DEVICE_MUTANTS
        for (int i = 0; MUTANT(ACCUMULATOR_16) && i < ROWS / 16 * OUT_TILES * 4; i++) {
            float *x = &o[0][0][0] + i;
            *x = T::is_bf16 ? __uint_as_float(T::pack(*x, 0) << 16) : *x;
        }
#endif
    }
    __syncthreads(); /* the last factors are read */
    store_row<S>(a, w, shared, state);
    __syncthreads();
    store_out<S, ROWS>(a, w, shared, o);
}

template <int ROWS, int ROPE, bool PACKED, class T>
__global__ void __launch_bounds__(MLA_MQA_THREADS, ROWS <= MOST_ROWS_OF_TWO_BLOCKS ? 2 : 1)
    mqa_kernel(const __grid_constant__ struct mla_mqa_args a)
{
    typedef tile<ROWS, ROPE, PACKED, false> S;
    MLA_DYNAMIC_SHARED(shared, 1024);
    struct work found;
    find_work<ROWS>(a, (int *)(shared + S::found_at), &found);
    if (in_group(a, found))
        return;
    if (threadIdx.x == 0)
        *(struct work *)(shared + S::work_at) = found;
    __syncthreads();
    attend_tile<ROWS, ROPE, PACKED, false, T>(a, shared,
                                              (uint32_t)__cvta_generic_to_shared(shared));
}

/* A block a group of those whose lists are here. */
template <int ROWS, int ROPE, bool PACKED, class T>
__global__ void __launch_bounds__(MLA_MQA_THREADS, ROWS <= MOST_ROWS_OF_TWO_BLOCKS ? 2 : 1)
    mqa_group_kernel(const __grid_constant__ struct mla_mqa_group_args args)
{
    typedef tile<ROWS, ROPE, PACKED, true> S;
    MLA_DYNAMIC_SHARED(shared, 1024);
    struct work found;
    if (!set_group_work(args, &found))
        return;
    if (threadIdx.x == 0)
        *(struct work *)(shared + S::work_at) = found;
    __syncthreads();
    attend_tile<ROWS, ROPE, PACKED, true, T>(args.a, shared,
                                             (uint32_t)__cvta_generic_to_shared(shared));
}

template <int ROWS, int ROPE, bool PACKED, bool GROUP, class T>
static struct mla_mqa_tile tile_entry()
{
    struct mla_mqa_tile t = {NULL, tile<ROWS, ROPE, PACKED, GROUP>::shared_bytes, MLA_MQA_THREADS,
                             1};
    if constexpr (GROUP)
        t.function = mla_kernel_address(mqa_group_kernel<ROWS, ROPE, PACKED, T>);
    else
        t.function = mla_kernel_address(mqa_kernel<ROWS, ROPE, PACKED, T>);
    return t;
}

template <int ROWS, bool GROUP, class T>
static struct mla_mqa_tile tile_of_rows(int rope, bool packed)
{
    if (rope)
        return packed ? tile_entry<ROWS, 64, true, GROUP, T>()
                      : tile_entry<ROWS, 64, false, GROUP, T>();
    return packed ? tile_entry<ROWS, 0, true, GROUP, T>() : tile_entry<ROWS, 0, false, GROUP, T>();
}

/* Every tile of one element type. */
template <class T, bool GROUP> static struct mla_mqa_tile tile_of(int rows, int rope, bool packed)
{
    return rows == 16   ? tile_of_rows<16, GROUP, T>(rope, packed)
           : rows == 32 ? tile_of_rows<32, GROUP, T>(rope, packed)
                        : tile_of_rows<64, GROUP, T>(rope, packed);
}

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* Bits of visible keys in the order in which mha_prefill.cuh reads them, from top-k lists or from
 * the caller's bits, and the union of each query tile's rows (struct mla_mask_args).
 *
 * 64 rows and 16 keys are 128 bytes, one for each thread of the warpgroup that scores them: with
 * i, half and e as in wgmma's fragments, bit 4 · i + 2 · half + e of thread (warp, lane) is row
 * 16 · warp + lane / 4 + 8 · half, key 8 · i + 2 · (lane % 4) + e. Chunks of a row block follow each
 * other, row blocks too: mask[(tile · 2 + block) · words · 2 + chunk].
 *
 * A block takes 64 rows and MASK_KEYS keys: 32 KB of bits in shared memory. Where a row has more
 * keys than that, its list is read once for every MASK_KEYS. Entries that are -1, out of range or in
 * the causal future are ignored. Keys that no row of the block can reach are left unwritten but for
 * the union. */
#include "mha_prefill.h"
#include "ptx/launch.cuh"
#include "ptx/types.cuh"

static const int THREADS = MLA_MHA_SM90_MASK_THREADS, ROWS = MLA_MHA_SM90_WG_ROWS,
                 WORDS = MLA_MHA_SM90_MASK_KEYS / 32;

/* Bits 2 t, 2 t + 1 of both bytes of 16 keys, as 4 bits: e and i of row lane / 4. */
__device__ __forceinline__ u32 nibble(u32 keys, int t)
{
    return (keys >> 2 * t & 3) | (keys >> (2 * t + 8) & 3) << 4;
}

__global__ void __launch_bounds__(THREADS) mha_mask_kernel(const struct mla_mask_args a)
{
    __shared__ u32 bits[ROWS][WORDS + 1]; /* rows on different banks */
    const int tile = blockIdx.x / 2, block = blockIdx.x % 2;
    int low = 0, high = a.num_segments - 1;
    while (low < high) {
        int middle = (low + high + 1) / 2;
        if (a.segments[middle].first_tile <= tile)
            low = middle;
        else
            high = middle - 1;
    }
    const struct mla_mha_segment *s = &a.segments[low];
    const int first = s->row0 + (tile - s->first_tile) * a.tile_rows + block * ROWS;
    const int rows = min(ROWS, s->row0 + s->rows - first); /* may be below 1 */
    const int word0 = blockIdx.y * WORDS, words = min(WORDS, a.words - word0);
    const int keys =
        a.seq_lens_kv ? min(max(a.seq_lens_kv[s->index], 0), s->seq_len_kv) : s->seq_len_kv;
    const int shift = keys - s->query_len + 1; /* row i of the request sees keys below shift + i */
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int past = shift + first + (2 - block) * ROWS - 1; /* of the tile's last row */
    if (word0 * 32 >= (a.causal ? min(keys, past) : keys))
        return;

    if (a.indices) {
        for (int i = threadIdx.x; i < ROWS * (WORDS + 1); i += THREADS)
            (&bits[0][0])[i] = 0;
        __syncthreads();
        for (int r = warp; r < rows; r += THREADS / 32) {
            const int64_t t = (int64_t)s->q_start + first + r;
            const int32_t *list = a.indices + t * a.indices_stride;
            int end = a.causal ? min(keys, shift + first + r) : keys;
            int counted = a.topk_lens ? min(max(a.topk_lens[t], 0), a.topk) : a.topk;
            int from = word0 * 32, until = min(end, from + words * 32);
#pragma unroll 8
            for (int e = lane; e < counted; e += 32) {
                int j = list[e];
                if (j >= from && j < until)
                    atomicOr(&bits[r][(j - from) / 32], 1u << (j & 31));
            }
        }
    } else {
        for (int r = warp; r < ROWS; r += THREADS / 32) {
            const int64_t t = (int64_t)s->q_start + first + r;
            int end = a.causal ? min(keys, shift + first + r) : keys;
            for (int w = lane; w < WORDS; w += 32) {
                int left = end - (word0 + w) * 32;
                u32 word = 0;
                if (r < rows && left > 0)
                    word = a.given[t * a.given_stride + word0 + w] &
                           (left >= 32 ? ~0u : (1u << left) - 1);
                bits[r][w] = word;
            }
        }
    }
    __syncthreads();

    /* A warp takes a word: lanes are row groups of 16 x warp + lane / 4 (8 of each warp's). */
    u32 *out =
        a.mask + ((int64_t)blockIdx.x * a.words + word0) * 2 * (MLA_MHA_SM90_CHUNK_BYTES / 4);
    for (int w = warp; w < words; w += THREADS / 32) {
        const int r = lane / 8 * 16 + lane % 8;
        u32 upper = bits[r][w], lower = bits[r + 8][w];
#pragma unroll
        for (int c = 0; c < 2; c++) {
            u32 four = 0;
#pragma unroll
            for (int t = 0; t < 4; t++)
                four |= (nibble(upper >> 16 * c, t) | nibble(lower >> 16 * c, t) << 2) << 8 * t;
            out[(w * 2 + c) * (MLA_MHA_SM90_CHUNK_BYTES / 4) + lane] = four;
        }
        u32 seen = upper | lower;
#pragma unroll
        for (int step = 16; step > 0; step /= 2)
            seen |= __shfl_xor_sync(~0u, seen, step);
        if (lane == 0 && seen)
            atomicOr(&a.columns[(int64_t)tile * a.words + word0 + w], seen);
    }
}

const void *mla_mha_sm90_mask_function(void)
{
    return mla_kernel_address(mha_mask_kernel);
}

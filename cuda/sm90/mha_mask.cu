/* SPDX-License-Identifier: Apache-2.0 */
/* Bits of visible keys in the order in which mha_prefill.cuh reads them, from top-k lists or from
 * the caller's bits, and the union of each query tile's rows (struct mla_mask_args).
 *
 * 64 rows and 16 keys are 128 bytes, one for each thread of the warpgroup that scores them: with
 * i, half and e as in wgmma's fragments, bit 4 · i + 2 · half + e of thread (warp, lane) is row
 * 16 · warp + lane / 4 + 8 · half, key 8 · i + 2 · (lane % 4) + e. Chunks of a row block follow
 * each other, row blocks too: mask[(tile · 2 + block) · words · 2 + chunk].
 *
 * A block takes 32 rows and MASK_KEYS keys: 16 KB of bits in shared memory. A warp makes those of a
 * row in bytes, one a key, since plain stores are faster than atomics. Where a row has more keys
 * than MASK_KEYS, its list is read once for every so many, by blocks next to each other, so that it
 * comes from L2. Entries that are -1, out of range or in the causal future are ignored. Keys that
 * no row of the block can reach are left unwritten but for the union. */
#include "mha_prefill.h"
#include "ptx/launch.cuh"
#include "ptx/shared.cuh"
#include "ptx/types.cuh"

static const int THREADS = MLA_MHA_SM90_MASK_THREADS, ROWS = MLA_MHA_SM90_MASK_ROWS,
                 WORDS = MLA_MHA_SM90_MASK_KEYS / 32, BLOCKS = MLA_MHA_SM90_ROWS / ROWS,
                 CHUNK = MLA_MHA_SM90_CHUNK_BYTES / 4;
static_assert(ROWS == 32, "half of a chunk");

/* Bits 2 t, 2 t + 1 of both bytes of 16 keys, as 4 bits: e and i of row lane / 4. */
__device__ __forceinline__ u32 nibble(u32 keys, int t)
{
    return (keys >> 2 * t & 3) | (keys >> (2 * t + 8) & 3) << 4;
}

/* The lowest bits of four bytes, which are all that is set. */
__device__ __forceinline__ u32 four(u32 bytes)
{
    return bytes * 0x10204080u >> 28;
}

__global__ void __launch_bounds__(THREADS) mha_mask_kernel(const struct mla_mask_args a)
{
    __shared__ u32 bits[ROWS][WORDS + 1]; /* rows on different banks */
    const int slices = (a.words + WORDS - 1) / WORDS, rows32 = blockIdx.x / slices;
    const int tile = rows32 / BLOCKS, block = rows32 % BLOCKS;
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
    const int word0 = (int)(blockIdx.x % slices) * WORDS, words = min(WORDS, a.words - word0);
    const int keys =
        a.seq_lens_kv ? min(max(a.seq_lens_kv[s->index], 0), s->seq_len_kv) : s->seq_len_kv;
    const int shift = keys - s->query_len + 1; /* row i of the request sees keys below shift + i */
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const u32 flags = dynamic_smem() + (u32)warp * MLA_MHA_SM90_MASK_KEYS; /* a byte a key */
    const int past = shift + first + (BLOCKS - block) * ROWS - 1; /* of the tile's last row */
    if (word0 * 32 >= (a.causal ? min(keys, past) : keys))
        return;

    for (int r = warp; r < ROWS; r += THREADS / 32) {
        const int64_t t = (int64_t)s->q_start + first + r;
        const int end = a.causal ? min(keys, shift + first + r) : keys;
        if (r >= rows || !a.indices) {
            for (int w = lane; w < WORDS; w += 32) {
                int left = end - (word0 + w) * 32;
                u32 word = 0;
                if (r < rows && left > 0)
                    word = a.given[t * a.given_stride + word0 + w] &
                           (left >= 32 ? ~0u : (1u << left) - 1);
                bits[r][w] = word;
            }
            continue;
        }
        for (int i = lane * 16; i < WORDS * 32; i += 512)
            st_shared(flags + i, make_uint4(0, 0, 0, 0));
        __syncwarp();
        const int32_t *list = a.indices + t * a.indices_stride;
        const int counted = a.topk_lens ? min(max(a.topk_lens[t], 0), a.topk) : a.topk;
        const int from = word0 * 32, until = min(end, from + words * 32);
        auto flag = [&](int e, int j) {
            if (e < counted && j >= from && j < until)
                st_shared(flags + (u32)(j - from), (unsigned char)1);
        };
        if (((uintptr_t)list | (uintptr_t)a.topk * 4) % 16 == 0) {
#pragma unroll 8
            for (int e = lane * 4; e < counted; e += 128) {
                const int4 j = *(const int4 *)(list + e);
                flag(e, j.x), flag(e + 1, j.y), flag(e + 2, j.z), flag(e + 3, j.w);
            }
        } else {
            for (int e = lane; e < counted; e += 32)
                flag(e, list[e]);
        }
        __syncwarp();
        for (int w = lane; w < WORDS; w += 32) {
            const uint4 low = ld_shared<uint4>(flags + w * 32),
                        high = ld_shared<uint4>(flags + w * 32 + 16);
            bits[r][w] = four(low.x) | four(low.y) << 4 | four(low.z) << 8 | four(low.w) << 12 |
                         four(high.x) << 16 | four(high.y) << 20 | four(high.z) << 24 |
                         four(high.w) << 28;
        }
        __syncwarp();
    }
    __syncthreads();

    /* A warp takes a word, half of it each half of the lanes: of the rows that two of the warps
     * that will read them have, 16 x warp + lane / 4 and + 8. */
    u32 *out = a.mask + ((int64_t)(rows32 / 2) * a.words + word0) * 2 * CHUNK + block % 2 * 16;
    const int chunk = lane / 16, row = lane % 16 / 8 * 16 + lane % 8;
    for (int w = warp; w < words; w += THREADS / 32) {
        u32 upper = bits[row][w], lower = bits[row + 8][w], four = 0;
#pragma unroll
        for (int t = 0; t < 4; t++)
            four |= (nibble(upper >> 16 * chunk, t) | nibble(lower >> 16 * chunk, t) << 2) << 8 * t;
        out[(w * 2 + chunk) * CHUNK + lane % 16] = four;
        u32 seen = upper | lower;
#pragma unroll
        for (int step = 8; step > 0; step /= 2)
            seen |= __shfl_xor_sync(~0u, seen, step);
        if (lane == 0 && seen)
            atomicOr(&a.columns[(int64_t)tile * a.words + word0 + w], seen);
    }
}

const void *mla_mha_sm90_mask_function(void)
{
    return mla_kernel_address(mha_mask_kernel);
}

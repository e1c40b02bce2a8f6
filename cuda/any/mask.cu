/* SPDX-License-Identifier: Apache-2.0 */
/* Bits of visible keys for masked attention, for the query rows of one pass: from top-k lists, and
 * the union over the rows of every query tile, which tells the attention kernel what to skip and
 * what not to read.
 *
 * One block a row. The row's bits are gathered in shared memory (8 KB: 65536 keys at a time; longer
 * rows take several rounds) and written once; the union is joined by atomicOr, whose order does not
 * matter to the bits. Entries that are -1, out of range or in the causal future are ignored.
 * Memory: rows · words · 4 bytes and 1/64 or 1/128 of it; the caller bounds it by the rows of a
 * pass. */
#include "mha.h"
#include "../ptx/launch.cuh"

enum { WORDS = 2048 };

__global__ void __launch_bounds__(MLA_MASK_THREADS) mask_kernel(const struct mla_mask_args a)
{
    __shared__ uint32_t bits[WORDS];
    int low = 0, high = a.num_segments - 1, row = blockIdx.x;
    while (low < high) {
        int middle = (low + high + 1) / 2;
        if (a.segments[middle].first_row <= row)
            low = middle;
        else
            high = middle - 1;
    }
    const struct mla_mha_segment *s = &a.segments[low];
    int within = row - s->first_row; /* row of the segment */
    int i = s->row0 + within;        /* row of the request */
    int64_t t = (int64_t)s->q_start + i;
    int keys = a.seq_lens_kv ? min(max(a.seq_lens_kv[s->index], 0), s->seq_len_kv) : s->seq_len_kv;
    int end = a.causal ? min(keys, keys - s->query_len + i + 1) : keys;
    uint32_t *columns = a.columns + (int64_t)(s->first_tile + within / a.tile_rows) * a.words;
    int counted = a.topk;
    if (a.topk_lens)
        counted = min(max(a.topk_lens[t], 0), a.topk);

    for (int word0 = 0; word0 < a.words; word0 += WORDS) {
        int words = min(WORDS, a.words - word0), first = word0 * 32;
        if (a.indices) {
            const int32_t *list = a.indices + t * a.indices_stride;
            for (int w = threadIdx.x; w < words; w += MLA_MASK_THREADS)
                bits[w] = 0;
            __syncthreads();
            for (int e = threadIdx.x; e < counted; e += MLA_MASK_THREADS) {
                int j = list[e];
                if (j >= first && j < end && j - first < words * 32)
                    atomicOr(&bits[(j - first) / 32], 1u << (j & 31));
            }
            __syncthreads();
        }
        for (int w = threadIdx.x; w < words; w += MLA_MASK_THREADS) {
            int left = end - first - w * 32; /* keys of this word that causality allows */
            uint32_t allowed = left >= 32 ? ~0u : left > 0 ? (1u << left) - 1 : 0;
            uint32_t word = a.indices ? bits[w] : a.given[t * a.given_stride + word0 + w] & allowed;
            if (a.indices)
                a.mask[(int64_t)row * a.words + word0 + w] = word;
            if (word & ~columns[word0 + w])
                atomicOr(&columns[word0 + w], word);
        }
        __syncthreads();
    }
}

const void *mla_mask_function(void)
{
    return mla_kernel_address(mask_kernel);
}

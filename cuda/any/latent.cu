/* SPDX-License-Identifier: Apache-2.0 */
/* Small kernels around the attention of latent problems. All of them move bytes; next to the
 * projections (2 · rank · (dn + dv) · heads FLOP a key) their time is about a hundredth. */
#include "cuda/cache.cuh"
#include "cuda/ptx/launch.cuh"
#include "latent.h"

/* One block takes 32 keys of a request: a warp takes 4. */
template <class T> static __device__ void gather(const struct mla_gather_args &a)
{
    __shared__ __align__(16) char records[MLA_LATENT_THREADS / 32][PACKED_LATENT * 2];
    int low = 0, high = a.num_requests - 1, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int64_t word = blockIdx.x;
    while (low < high) { /* the last request that begins at or before this word */
        int middle = (low + high + 1) / 2;
        if (a.requests[middle].first_word <= word)
            low = middle;
        else
            high = middle - 1;
    }
    const struct mla_latent_request r = a.requests[low];
    int key0 = (int)(word - r.first_word) * 32;
    int keys = a.seq_lens_kv ? min(max(a.seq_lens_kv[r.index], 0), r.seq_len_kv) : r.seq_len_kv;
    /* Where the warp's lane-th key of the block lies. */
    int key = key0 + lane, page = 0, slot = 0;
    bool lives = key < keys;
    if (lives && a.page_size > 0) {
        int column = key / a.page_size;
        slot = key - column * a.page_size;
        page = column < a.max_pages ? a.page_table[r.index * a.page_table_stride + column] : -1;
        lives = page >= 0 && page < a.num_pages;
    }
    uint32_t bits = __ballot_sync(~0u, lives);
    if (threadIdx.x == 0)
        a.alive[word] = bits;
    bool packed = a.record_bytes > 0;
    for (int i = warp * 4; i < warp * 4 + 4; i++) {
        if (key0 + i >= r.seq_len_kv)
            break;
        int64_t at = r.first_key + key0 + i, data, rope;
        bool there = bits >> i & 1;
        int its_page = __shfl_sync(~0u, page, i), its_slot = __shfl_sync(~0u, slot, i);
        if (a.page_size > 0) {
            data = its_page * a.page_bytes + its_slot * a.row_bytes;
            rope = data;
        } else {
            data = (r.kv_start + key0 + i) * a.row_bytes;
            rope = (r.kv_start + key0 + i) * a.rope_row_bytes;
        }
        uint16_t *c_out = a.c_out + at * a.rank, *rope_out = a.rope_out + at * a.rope_dim;
        if (packed) {
            for (int b = lane; b < a.record_bytes; b += 32)
                records[warp][b] = there ? a.data[data + b] : 0;
            __syncwarp();
            for (int chunk = lane; chunk < (a.rank + a.rope_dim) / 8; chunk += 32) {
                uint4 v = dequant_chunk<T>(a.format, records[warp], chunk);
                if (!there)
                    v = make_uint4(0, 0, 0, 0);
                if (chunk < a.rank / 8)
                    *(uint4 *)(c_out + chunk * 8) = v;
                else
                    *(uint4 *)(rope_out + chunk * 8 - a.rank) = v;
            }
            __syncwarp();
        } else {
            const uint16_t *from = (const uint16_t *)(a.data + data);
            for (int c = lane; c < a.rank; c += 32)
                c_out[c] = there ? from[c] : 0;
            from = (const uint16_t *)(a.rope + rope);
            for (int c = lane; c < a.rope_dim; c += 32)
                rope_out[c] = there ? from[c] : 0;
        }
    }
}

__global__ void __launch_bounds__(MLA_LATENT_THREADS) gather_kernel(const struct mla_gather_args a)
{
    if (a.is_bf16)
        gather<bf16>(a);
    else
        gather<f16>(a);
}

/* A thread takes 8 columns of a row and head where addresses allow it, else the 8 one by one. */
__global__ void __launch_bounds__(MLA_LATENT_THREADS) spread_kernel(const struct mla_spread_args a)
{
    int chunks = (a.width + 7) / 8;
    int64_t i = (int64_t)blockIdx.x * MLA_LATENT_THREADS + threadIdx.x;
    int column = (int)(i % chunks) * 8;
    i /= chunks;
    int head = (int)(i % a.heads);
    int64_t row = i / a.heads;
    if (row >= a.rows)
        return;
    const uint16_t *in = a.in + row * a.in_stride[0] + head * a.in_stride[1] + column;
    uint16_t *out = a.out + row * a.out_stride[0] + head * a.out_stride[1] + column;
    if (column + 8 <= a.width && ((uintptr_t)in | (uintptr_t)out) % 16 == 0) {
        *(uint4 *)out = *(const uint4 *)in;
        return;
    }
    for (int c = 0; c < 8 && column + c < a.width; c++)
        out[c] = in[c];
}

__global__ void __launch_bounds__(MLA_LATENT_THREADS)
    shorten_kernel(const struct mla_shorten_args a)
{
    int i = blockIdx.x * MLA_LATENT_THREADS + threadIdx.x;
    if (i < a.count)
        a.out[i] = i == a.index ? max(a.in[i], 0) - a.by : a.in[i];
}

const void *mla_gather_function(void)
{
    return mla_kernel_address(gather_kernel);
}

const void *mla_spread_function(void)
{
    return mla_kernel_address(spread_kernel);
}

const void *mla_shorten_function(void)
{
    return mla_kernel_address(shorten_kernel);
}

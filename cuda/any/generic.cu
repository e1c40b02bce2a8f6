/* SPDX-License-Identifier: Apache-2.0 */
/* Attention of any shape: every form, route, width, head count, type and cache format that the API
 * admits, in fp32 without tensor cores. The last rows of the table; slow, but nothing is refused.
 *
 * A block computes one query row and head at a time and walks its keys (listed or all) in steps of
 * 256 with a running softmax:
 *
 *   places    thread k finds where key k lies and whether the row sees it
 *   scores    warp w takes keys w, w + 8, ...; its lanes share the columns of d_qk
 *   weights   exp(score - max); every warp adds the same sum in the same order
 *   values    thread c adds up columns c, c + 256, ... of the output, key after key
 *
 * Latent problems. MQA: the block first absorbs its query (q_nope · w_uk), and expands its latent
 * output at the end (· w_uv). MHA: project_kernel writes keys and values of a group of heads as
 * fp32 before.
 *
 * Shared memory: 6 KB. Query, output and absorbed query lie in the block's slab of the workspace,
 * so that widths have no limit. Nothing but the result is rounded to 16 bits. A key that a row does
 * not see is never read. One order of additions: results repeat bit by bit. */
#include "generic.h"

#include "../cache.cuh"
#include "../ptx/launch.cuh"

#include <math_constants.h>

static const int THREADS = MLA_GENERIC_THREADS;
static const int WARPS = THREADS / 32;
static const int KEYS = THREADS; /* of a step */

/* One step's keys. data: offset of the row (k and v per head: its number), -1 = not seen. */
struct step {
    int64_t data[KEYS], other[KEYS];
    float weight[KEYS];
};

__device__ __forceinline__ float bf16_bits(uint32_t bits)
{
    return __uint_as_float(bits << 16);
}

__device__ __forceinline__ float load_value(int dtype, const void *from, int64_t i)
{
    if (dtype == MLA_F32)
        return ((const float *)from)[i];
    if (dtype == MLA_BF16)
        return bf16_bits(((const uint16_t *)from)[i]);
    return __half2float(((const __half *)from)[i]);
}

__device__ __forceinline__ float load_row(const struct mla_generic_rows &t, int64_t row,
                                          int64_t head, int64_t i)
{
    return load_value(t.dtype, t.data, row * t.stride[0] + head * t.stride[1] + i);
}

__device__ __forceinline__ void store_value(int dtype, void *to, int64_t i, float x)
{
    if (dtype == MLA_F32)
        ((float *)to)[i] = x;
    else if (dtype == MLA_BF16)
        ((uint16_t *)to)[i] = (uint16_t)cvt_rn_bf16x2_f32(x, 0);
    else
        ((uint16_t *)to)[i] = (uint16_t)cvt_rn_f16x2_f32(x, 0);
}

/* Packed records may start at any byte. */
__device__ __forceinline__ uint32_t load_bytes(const uint8_t *from, int n)
{
    uint32_t x = 0;
    for (int i = 0; i < n; i++)
        x |= (uint32_t)from[i] << 8 * i;
    return x;
}

/* Column of the cache row at data; other: its rope part (plain formats) or its scales. */
__device__ __forceinline__ float cache_value(const struct mla_generic_cache &c, int64_t data,
                                             int64_t other, int64_t column)
{
    const uint8_t *row = (const uint8_t *)c.data + data;
    const uint8_t *scales = (const uint8_t *)c.data + other;
    int i = (int)column;
    switch (c.format) {
    case MLA_CACHE_FP8_DS_MLA:
        if (i >= PACKED_LATENT)
            return bf16_bits(load_bytes(row + FP8_ROPE_AT + 2 * (i - PACKED_LATENT), 2));
        return e4m3x2(row[i]).x *
               __uint_as_float(load_bytes(row + FP8_SCALES_AT + i / FP8_TILE * 4, 4));
    case MLA_CACHE_MODEL1:
        if (i >= MODEL1_ROPE_AT)
            return bf16_bits(load_bytes(row + MODEL1_ROPE_AT + 2 * (i - MODEL1_ROPE_AT), 2));
        return e4m3x2(row[i]).x * ue8m0(scales[i / MODEL1_TILE]);
    case MLA_CACHE_V41:
        return e4m3x2(row[i]).x * ue8m0(scales[i / V41_TILE]);
    case MLA_CACHE_NVFP4_DS_MLA: {
        if (i >= PACKED_LATENT)
            return e4m3x2(row[NVFP4_ROPE_AT + i - PACKED_LATENT]).x;
        int block = i / NVFP4_TILE;
        float scale = e4m3x2(row[NVFP4_SCALES_AT + 8 * (block & 3) + (block >> 2)]).x;
        return e2m1(row[i / 2] >> i % 2 * 4 & 15) * scale;
    }
    default:
        if (column < c.rank)
            return load_value(c.dtype, row, column);
        return load_value(c.dtype, c.rope + other, column - c.rank);
    }
}

/* Does key pos exist, and where does it lie? */
__device__ __forceinline__ bool find_key(const struct mla_generic_args &a,
                                         const struct mla_generic_request &r, int64_t pos,
                                         int64_t end, int64_t *data, int64_t *other)
{
    const struct mla_generic_cache &c = a.cache;
    if (pos < 0 || pos >= end)
        return false;
    if (c.page_size == 0) {
        *data = (r.kv_start + pos) * c.row_bytes;
        *other = (r.kv_start + pos) * c.rope_row_bytes;
    } else {
        /* 32 bits: a page may be larger than any position, but no position is. */
        uint32_t size = c.page_size < INT32_MAX ? (uint32_t)c.page_size : INT32_MAX;
        int64_t column = (uint32_t)pos / size, slot = pos - column * c.page_size;
        if (column >= c.max_pages)
            return false;
        int64_t page = c.page_table[r.index * c.page_table_stride + column];
        if (page < 0 || page >= c.num_pages)
            return false;
        *data = page * c.page_bytes + slot * c.row_bytes;
        *other = c.scale_bytes ? page * c.page_bytes + c.scales_at + slot * c.scale_bytes : *data;
    }
    if (a.k.data)
        *data = a.own_keys ? pos : r.kv_start + pos;
    return true;
}

__device__ __forceinline__ int64_t keys_of(const struct mla_generic_args &a,
                                           const struct mla_generic_request &r)
{
    if (!a.seq_lens_kv)
        return r.seq_len_kv;
    int64_t n = a.seq_lens_kv[r.index];
    return n < 0 ? 0 : n > r.seq_len_kv ? r.seq_len_kv : n;
}

__device__ __forceinline__ float warp_sum(float x)
{
    for (int offset = 16; offset; offset /= 2)
        x += __shfl_xor_sync(0xFFFFFFFFu, x, offset);
    return x;
}

/* The larger one; a NaN stays. */
__device__ __forceinline__ float max_or_nan(float x, float y)
{
    return x != x ? x : y > x || y != y ? y : x;
}

/* The query of token and head, as it meets the keys. */
__device__ __forceinline__ void load_query(const struct mla_generic_args &a, int64_t token,
                                           int64_t head, float *q, float *nope)
{
    int64_t width = a.uk.data ? a.d_qk - a.rope_width : a.q_width;
    float *plain = a.uk.data ? nope : q;
    for (int64_t c = threadIdx.x; c < a.q_width; c += THREADS)
        plain[c] = load_row(a.q, token, head, c);
    for (int64_t c = threadIdx.x; c < a.rope_width; c += THREADS)
        q[width + c] = load_row(a.rope, token, head, c);
    if (!a.uk.data)
        return;
    __syncthreads();
    for (int64_t c = threadIdx.x; c < width; c += THREADS) {
        float sum = 0;
        for (int64_t d = 0; d < a.q_width; d++)
            sum = fmaf(nope[d], load_row(a.uk, head, d, c), sum);
        q[c] = sum;
    }
}

__device__ __forceinline__ void attend(const struct mla_generic_args &a, int64_t row, int local,
                                       float *slab, struct step *s)
{
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int64_t head = a.first_head + local;
    int64_t low = 0, high = a.num_requests - 1;
    while (low < high) { /* the last request that begins at or before this row */
        int64_t middle = (low + high + 1) / 2;
        if (a.requests[middle].first_row <= row)
            low = middle;
        else
            high = middle - 1;
    }
    const struct mla_generic_request r = a.requests[low];
    int64_t i = row - r.first_row, token = r.q_start + i, keys = keys_of(a, r);
    int64_t end = a.causal ? keys - r.query_len + i + 1 : keys;
    int64_t count = end > 0 ? end : 0, key_head = a.own_keys ? local : (int)head / a.group;
    const int32_t *list = a.indices ? a.indices + token * a.indices_stride : NULL;
    const uint32_t *bits = a.mask ? a.mask + token * a.mask_stride : NULL;
    if (list) {
        count = a.topk;
        if (a.topk_lens && a.topk_lens[token] < count)
            count = a.topk_lens[token] > 0 ? a.topk_lens[token] : 0;
    }
    if (end > keys)
        end = keys;

    float *q = slab, *o = q + a.d_qk, *nope = o + a.d_v;
    load_query(a, token, head, q, nope);
    for (int64_t c = threadIdx.x; c < a.d_v; c += THREADS)
        o[c] = 0;
    float top = -CUDART_INF_F, sum = 0;
    for (int64_t base = 0; base < count; base += KEYS) {
        int n = count - base < KEYS ? (int)(count - base) : KEYS;
        __syncthreads(); /* q is whole; the step before has been read */
        if ((int)threadIdx.x < n) {
            int64_t pos = base + threadIdx.x, data = 0, other = 0;
            if (list)
                pos = list[pos];
            bool seen = find_key(a, r, pos, end, &data, &other);
            if (seen && bits)
                seen = bits[pos / 32] >> (pos & 31) & 1;
            s->data[threadIdx.x] = seen ? data : -1;
            s->other[threadIdx.x] = other;
        }
        __syncthreads();
        for (int k = warp; k < n; k += WARPS) {
            int64_t data = s->data[k], other = s->other[k];
            float dot = 0;
            for (int64_t c = lane; c < a.d_qk && data >= 0; c += 32)
                dot = fmaf(q[c],
                           a.k.data ? load_row(a.k, data, key_head, c)
                                    : cache_value(a.cache, data, other, c),
                           dot);
            dot = warp_sum(dot);
            if (lane == 0)
                s->weight[k] = data >= 0 ? dot * a.scale : -CUDART_INF_F;
        }
        __syncthreads();
        float best = top;
        for (int k = lane; k < n; k += 32)
            best = max_or_nan(best, s->weight[k]);
        for (int offset = 16; offset; offset /= 2)
            best = max_or_nan(best, __shfl_xor_sync(0xFFFFFFFFu, best, offset));
        float reference = best == -CUDART_INF_F ? 0 : best;
        float factor = top == best ? 1 : expf(top - reference);
        __syncthreads(); /* all have read the scores */
        if ((int)threadIdx.x < n)
            s->weight[threadIdx.x] =
                s->data[threadIdx.x] < 0 ? 0 : expf(s->weight[threadIdx.x] - reference);
        __syncthreads();
        float added = 0;
        for (int k = lane; k < n; k += 32)
            added += s->weight[k];
        sum = sum * factor + warp_sum(added);
        top = best;
        for (int64_t c = threadIdx.x; c < a.d_v; c += THREADS) {
            float acc = o[c] * factor;
            for (int k = 0; k < n; k++) {
                int64_t data = s->data[k];
                if (data < 0)
                    continue;
                float v = a.v.data ? load_row(a.v, data, key_head, c)
                                   : cache_value(a.cache, data, s->other[k], c);
                acc = fmaf(s->weight[k], v, acc);
            }
            o[c] = acc;
        }
    }

    /* The sink is one more score, whose value is zero. */
    float sink = a.sink ? a.sink[head] : -CUDART_INF_F, lse = sink, weight = 0;
    if (top != -CUDART_INF_F && sink != CUDART_INF_F) {
        float shift = sink > top ? sink : top, share = expf(top - shift);
        float all = sum * share + (sink == -CUDART_INF_F ? 0 : expf(sink - shift));
        lse = shift + logf(all);
        weight = share / all;
    }
    if (threadIdx.x == 0) {
        if (a.lse)
            a.lse[token * a.lse_stride[0] + head * a.lse_stride[1]] = lse * a.lse_unit;
        if (a.max_logits)
            a.max_logits[token * a.max_stride[0] + head * a.max_stride[1]] = top;
    }
    int64_t to = token * a.out_stride[0] + head * a.out_stride[1];
    for (int64_t c = threadIdx.x; c < a.d_v; c += THREADS) {
        float x = weight == 0 ? 0 : o[c] * weight;
        if (a.uv.data)
            o[c] = x;
        else
            store_value(a.out_dtype, a.out, to + c, x);
    }
    __syncthreads(); /* the latent output is whole; the next item may overwrite q */
    if (!a.uv.data)
        return;
    for (int64_t c = threadIdx.x; c < a.d_out; c += THREADS) {
        float x = 0;
        for (int64_t l = 0; l < a.d_v; l++)
            x = fmaf(o[l], load_row(a.uv, head, l, c), x);
        store_value(a.out_dtype, a.out, to + c, x);
    }
    __syncthreads();
}

__global__ void __launch_bounds__(MLA_GENERIC_THREADS, 4)
    attend_kernel(const __grid_constant__ struct mla_generic_args a)
{
    __shared__ struct step s;
    int64_t row = blockIdx.x / a.heads, step = gridDim.x / a.heads;
    int head = blockIdx.x % a.heads, step_heads = gridDim.x % a.heads;
    while (row < a.rows) {
        attend(a, a.first_row + row, head, a.slabs + (int64_t)blockIdx.x * a.slab_floats, &s);
        row += step;
        head += step_heads;
        if (head >= a.heads) {
            head -= a.heads;
            row++;
        }
    }
}

/* Keys and values of one request and a group of heads: k[h] = (w_uk[h] · c, rope),
 * v[h] = c · w_uv[h]. A block takes a key at a time; keys that do not exist stay unwritten. Here
 * q_width is the width of k before its rope, and d_v that of v. */
__global__ void __launch_bounds__(MLA_GENERIC_THREADS, 4)
    project_kernel(const __grid_constant__ struct mla_generic_args a)
{
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const struct mla_generic_request r = a.requests[0];
    const int64_t keys = keys_of(a, r), rank = a.cache.rank, nope = a.q_width;
    float *row = a.slabs + (int64_t)blockIdx.x * a.slab_floats; /* latent, then rope */
    for (int64_t key = blockIdx.x; key < keys; key += gridDim.x) {
        int64_t data = 0, other = 0;
        if (!find_key(a, r, key, keys, &data, &other))
            continue; /* the whole block agrees */
        for (int64_t c = threadIdx.x; c < rank + a.rope_width; c += THREADS)
            row[c] = cache_value(a.cache, data, other, c);
        __syncthreads();
        float *k = a.k_out + key * a.heads * a.d_qk, *v = a.v_out + key * a.heads * a.d_v;
        for (int h = 0; h < a.heads; h++, k += a.d_qk, v += a.d_v) {
            for (int64_t d = warp; d < nope; d += WARPS) {
                float sum = 0;
                for (int64_t c = lane; c < rank; c += 32)
                    sum = fmaf(load_row(a.uk, a.first_head + h, d, c), row[c], sum);
                sum = warp_sum(sum);
                if (lane == 0)
                    k[d] = sum;
            }
            for (int64_t c = threadIdx.x; c < a.rope_width; c += THREADS)
                k[nope + c] = row[rank + c];
            for (int64_t c = threadIdx.x; c < a.d_v; c += THREADS) {
                float sum = 0;
                for (int64_t l = 0; l < rank; l++)
                    sum = fmaf(row[l], load_row(a.uv, a.first_head + h, l, c), sum);
                v[c] = sum;
            }
        }
        __syncthreads(); /* the row has been read */
    }
}

extern "C" const void *mla_generic_attend_function(void)
{
    return mla_kernel_address(attend_kernel);
}

extern "C" const void *mla_generic_project_function(void)
{
    return mla_kernel_address(project_kernel);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* mqa_decode: what the kernels for few rows (mqa_decode.cu) and for a pair of CTAs
 * (mqa_decode_pair.cu) share: the stream of keys, and how rows end.
 *
 * Keys come in tiles of 64. What TMA can't bring (packed records, lists, masks, odd pages, tails)
 * 256 loader threads carry from global memory through registers, dequantised on the way, into
 * swizzled tiles of shared memory. Registers hold one whole tile in flight: no raw copy of a record
 * passes through shared memory. A thread serves key tid / 4 of every tile, and of each band of 64
 * columns the 16 from 16 · (tid % 4) on: four lanes read neighbouring bytes of a record, and eight
 * lanes write all banks once. A key that no row of the tile sees is not read; zeros are
 * written in its place, so that P = 0 meets no NaN. */
#ifndef MLA_CUDA_SM100_MQA_DECODE_CUH
#define MLA_CUDA_SM100_MQA_DECODE_CUH

#include "any/mqa_work.cuh"
#include "mqa_decode.h"
#include "ptx/mbarrier.cuh"
#include "ptx/shared.cuh"

static const int KEYS = MLA_DECODE_KEYS;
static const int BAND_BYTES = KEYS * 128; /* 64 columns of a tile of keys */
static const int LOADERS = 256;           /* threads: four a key */
static const int LATENT_BANDS = MLA_MQA_LATENT / 64, MOST_BANDS = LATENT_BANDS + 1;
static const int MOST_SHARED = 232448;

/* Steps of TILE keys that a tile of rows walks. */
struct span {
    int first, last;
};

template <int TILE> __device__ __forceinline__ struct span span_of(const struct work &w)
{
    int steps = (w.count + TILE - 1) / TILE, share = (steps + w.r.splits - 1) / w.r.splits;
    struct span s;
    s.first = min(steps, w.split * share);
    s.last = min(steps, s.first + share);
    return s;
}

/* End of the steps whose keys TMA brings, loader warps bring the rest: all keys of a step lie
 * before the end of what the rows see. */
template <int TILE>
__device__ __forceinline__ int end_of_boxes(const struct mla_decode_args &g, const struct work &w,
                                            const struct span &s)
{
    if (!g.box_rows || w.list || g.a.mask)
        return s.first;
    return max(s.first, min(s.last, w.end / TILE));
}

/* Position of key `key` of a tile, unchecked; -1 for none. Bitmask: a key that no token of the rows
 * sees is none. The keys of a warp lie in one half of the tile. */
__device__ __forceinline__ int fetch_position(const struct mla_mqa_args &a, const struct work &w,
                                              int tile, int key, int end)
{
    int j = tile * KEYS + key;
    if (tile >= end)
        return -1;
    if (w.list)
        return j < w.count ? w.list[j] : -1;
    if (!a.mask)
        return j;
    uint32_t word = 0;
    int first = j / 32 * 32;
    if (first < w.end)
        for (int t = threadIdx.x % 32; t < w.tokens; t += 32)
            word |= a.mask[(int64_t)(w.r.q_start + w.token0 + t) * a.mask_stride + first / 32] &
                    bits_below(causal_end(a, w, w.token0 + t) - first);
    word = __reduce_or_sync(0xFFFFFFFFu, word);
    return (word >> j % 32 & 1) || MLA_MUTANT == 20 ? j : -1;
}

/* One key of every tile, or of every other (stride 2) before tile `end`: page of the next one,
 * position of the one after it. Addresses run ahead so that no tile waits for the chain from list
 * to page table to row. */
struct stream {
    int key, stride, end, pos, page, ahead;
};

__device__ __forceinline__ void start_stream(const struct mla_mqa_args &a, const struct work &w,
                                             int tile, int stride, int end, int key,
                                             struct stream *k)
{
    k->key = key;
    k->stride = stride;
    k->end = end;
    k->pos = fetch_position(a, w, tile, key, end);
    k->page = fetch_page(a, w, k->pos);
    k->ahead = fetch_position(a, w, tile + stride, key, end);
}

/* Whether the tile's rows may see the key of the stream. */
__device__ __forceinline__ bool stream_sees(const struct mla_mqa_args &a, const struct work &w,
                                            const struct stream &k)
{
    return k.page >= 0 && (!w.pages || k.page < a.cache.num_pages);
}

/* From tile `tile` to the next. */
__device__ __forceinline__ void advance_stream(const struct mla_mqa_args &a, const struct work &w,
                                               int tile, struct stream *k)
{
    k->pos = k->ahead;
    k->page = fetch_page(a, w, k->pos);
    k->ahead = fetch_position(a, w, tile + 2 * k->stride, k->key, k->end);
}

/* Keys a row sees of the 32 from `first` on (first % 32 at most), where rows differ. */
__device__ __forceinline__ uint32_t row_sees(const struct mla_mqa_args &a, const struct work &w,
                                             int row, int limit, int first)
{
    uint32_t bits = bits_below(limit - first);
    if (a.mask) {
        int token = (w.row0 + min(row, w.rows - 1)) / a.heads;
        if (first / 32 * 32 >= w.end)
            return 0;
        bits &= a.mask[(int64_t)(w.r.q_start + token) * a.mask_stride + first / 32] >> first % 32;
    }
    return bits;
}

/* ------------------------------------------------------------------ formats */

/* Words of a key that one thread carries: of each band of latent columns, of the rope part, and
 * scales. `wide`: 16 columns of the 16-bit type, 32 bytes. */
struct plain_record {
    static const int latent = 8, rope = 8, scale = 0;
};
struct fp8_record {
    static const int latent = 4, rope = 8, scale = 4;
};
struct model1_record {
    static const int latent = 4, rope = 8, scale = 2; /* band 7 is the rope part */
};
struct v41_record {
    static const int latent = 4, rope = 0, scale = 4;
};
struct nvfp4_record {
    static const int latent = 2, rope = 4, scale = 2;
};

template <class A, class B> static const bool is = false;
template <class A> static const bool is<A, A> = true;

template <class F> struct raw_key {
    uint32_t latent[8][F::latent];
    uint32_t rope[F::rope ? F::rope : 1];
    uint32_t scale[F::scale ? F::scale : 1];
};

/* WORDS words from global memory, aligned to 16 bytes, or 8 where there are two. */
template <int WORDS>
__device__ __forceinline__ void fetch_words(uint32_t *to, const char *from, bool see)
{
#pragma unroll
    for (int i = 0; i < WORDS; i++)
        to[i] = 0;
    if (!see)
        return;
    if (WORDS == 2) {
        uint2 v = *(const uint2 *)from;
        to[0] = v.x, to[1] = v.y;
    } else {
#pragma unroll
        for (int i = 0; i < WORDS; i += 4) {
            uint4 v = *(const uint4 *)(from + 4 * i);
            to[i] = v.x, to[i + 1] = v.y, to[i + 2] = v.z, to[i + 3] = v.w;
        }
    }
}

/* Where a thread's share of a key starts. */
struct key_source {
    const char *data, *other; /* other: rope of a plain row, scales of a footer */
    bool see;
};

__device__ __forceinline__ struct key_source source_of(const struct mla_mqa_args &a,
                                                       const struct work &w, const struct stream &k)
{
    struct key_source s;
    s.see = stream_sees(a, w, k);
    struct row_place p = {0, 0};
    if (s.see)
        p = place_row(&a.cache, w.r.kv_start, k.pos, k.page);
    s.data = a.cache.data + p.data;
    s.other = (a.cache.footer_bytes ? a.cache.data : a.cache.rope) + p.other;
    return s;
}

/* Starts the loads of band `band` of the latent part: this thread's 16 columns. */
template <class F>
__device__ __forceinline__ void fetch_latent(struct raw_key<F> *raw, int band, int part,
                                             const struct key_source &s)
{
    if (is<F, model1_record> && band == 7)
        fetch_words<F::rope>(raw->rope, s.data + MODEL1_ROPE_AT + 32 * part, s.see);
    else
        fetch_words<F::latent>(raw->latent[band], s.data + 4 * F::latent * (4 * band + part),
                               s.see);
}

template <class F>
__device__ __forceinline__ void fetch_rope(struct raw_key<F> *raw, int part,
                                           const struct key_source &s)
{
    if constexpr (is<F, plain_record>)
        fetch_words<F::rope>(raw->rope, s.other + 32 * part, s.see);
    else if constexpr (is<F, fp8_record>)
        fetch_words<F::rope>(raw->rope, s.data + FP8_ROPE_AT + 32 * part, s.see);
    else if constexpr (is<F, nvfp4_record>)
        fetch_words<F::rope>(raw->rope, s.data + NVFP4_ROPE_AT + 16 * part, s.see);
}

template <class F>
__device__ __forceinline__ void fetch_scales(uint32_t *scale, int part, const struct key_source &s)
{
    if constexpr (is<F, fp8_record>)
        fetch_words<F::scale>(scale, s.data + FP8_SCALES_AT, s.see);
    else if constexpr (is<F, nvfp4_record>) /* of this thread's 16 columns of bands 0 to 7 */
        fetch_words<F::scale>(scale, s.data + NVFP4_SCALES_AT + 8 * part, s.see);
    else if constexpr (F::scale > 0) /* page footers */
        fetch_words<F::scale>(scale, s.other, s.see);
}

/* Eight words as two units of eight 16-bit values. */
template <class T> __device__ __forceinline__ void widen_bf16(const uint32_t *x, uint4 out[2])
{
    out[0] = from_bf16x8<T>(make_uint4(x[0], x[1], x[2], x[3]));
    out[1] = from_bf16x8<T>(make_uint4(x[4], x[5], x[6], x[7]));
}

template <class T>
__device__ __forceinline__ void widen_e4m3(const uint32_t *x, float scale, uint4 out[2])
{
    out[0] = dequant_e4m3x8<T>(make_uint2(x[0], x[1]), scale);
    out[1] = dequant_e4m3x8<T>(make_uint2(x[2], x[3]), scale);
}

/* 16 columns of a latent band as pairs of T. */
template <class F, class T>
__device__ __forceinline__ void widen_latent(const struct raw_key<F> &raw, int band, int part,
                                             uint4 out[2])
{
    const uint32_t *x = raw.latent[band];
    if constexpr (is<F, plain_record>) {
        out[0] = make_uint4(x[0], x[1], x[2], x[3]);
        out[1] = make_uint4(x[4], x[5], x[6], x[7]);
    } else if constexpr (is<F, fp8_record>) {
        widen_e4m3<T>(x, __uint_as_float(raw.scale[band / 2]), out);
    } else if constexpr (is<F, model1_record>) {
        if (band == 7)
            widen_bf16<T>(raw.rope, out);
        else
            widen_e4m3<T>(x, ue8m0(raw.scale[band / 4] >> 8 * (band % 4) & 255), out);
    } else if constexpr (is<F, v41_record>) {
        widen_e4m3<T>(x, ue8m0(raw.scale[band / 2] >> (16 * (band % 2) + part / 2 * 8) & 255), out);
    } else {
        float scale = e4m3x2(raw.scale[band / 4] >> 8 * (band % 4) & 255).x;
        out[0] = dequant_e2m1x8<T>(x[0], scale);
        out[1] = dequant_e2m1x8<T>(x[1], scale);
    }
}

template <class F, class T>
__device__ __forceinline__ void widen_rope(const struct raw_key<F> &raw, uint4 out[2])
{
    const uint32_t *x = raw.rope;
    if constexpr (is<F, plain_record>) {
        out[0] = make_uint4(x[0], x[1], x[2], x[3]);
        out[1] = make_uint4(x[4], x[5], x[6], x[7]);
    } else if constexpr (is<F, fp8_record>) {
        widen_bf16<T>(x, out);
    } else if constexpr (is<F, nvfp4_record>) {
        widen_e4m3<T>(x, 1, out);
    }
}

/* One band's 16 columns of this thread to its place. */
__device__ __forceinline__ void store_columns(u32 band, int key, int part, const uint4 x[2])
{
    u32 row = band + key * 128;
    st_shared(row + ((2 * part ^ key % 8) << 4), x[0]);
    st_shared(row + (((2 * part + 1) ^ key % 8) << 4), x[1]);
}

/* ------------------------------------------------------------------ rows */

/* Row `row` of the tile's queries. */
__device__ __forceinline__ const char *query_row(const struct mla_mqa_args &a, const struct work &w,
                                                 int row)
{
    int at = w.row0 + min(row, w.rows - 1);
    return a.q + (int64_t)(w.r.q_start + at / a.heads) * a.q_stride[0] +
           at % a.heads * a.q_stride[1];
}

/* 16 bytes of it. */
__device__ __forceinline__ uint4 fetch_unit(const char *from, bool see)
{
    return see ? *(const uint4 *)from : make_uint4(0, 0, 0, 0);
}

/* Weights are 2^(score - base), and base follows a row's largest score only when that has grown by
 * 2^GROWTH, so that the output is rescaled rarely: weights stay far below what f16 can hold. */
static const float GROWTH = 8;

/* lse and max_logits of a row, or its partial values, by the thread that is to store them. Returns
 * the factor that makes the sum of weighted keys the output; to: where the row's output begins, -1
 * for nowhere. */
__device__ __forceinline__ float finish(const struct mla_mqa_args &a, const struct work &w, int row,
                                        float base, float top, float sum, bool store, int64_t *to)
{
    int at = w.row0 + row, head = at % a.heads;
    int64_t token = w.r.q_start + at / a.heads;
    float lse_log2, factor;
    *to = -1;
    if (row >= w.rows)
        return 0;
    if (w.r.splits > 1) {
        factor = finish_row(base, sum, false, 0, &lse_log2);
        int64_t part = w.r.part_row + (int64_t)w.split * w.r.query_len * a.heads + at;
        if (store) {
            a.part_lse[part] = lse_log2;
            a.part_max[part] = top;
        }
        if (lse_log2 != -INFINITY)
            *to = part * MLA_MQA_LATENT;
        return factor;
    }
    factor = finish_row(base, sum, a.sink != NULL, a.sink ? a.sink[head] : 0, &lse_log2);
    if (store && a.lse)
        a.lse[token * a.lse_stride[0] + head * a.lse_stride[1]] = lse_log2 * a.lse_unit;
    if (store && a.max_logits)
        a.max_logits[token * a.max_stride[0] + head * a.max_stride[1]] = top * 0.693147181f;
    *to = token * a.out_stride[0] + head * a.out_stride[1];
    return factor;
}

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* mqa_decode: the stream of keys. Where the 64 keys of a tile lie, and the warps that carry rows of
 * any cache format from global memory through registers, dequantised on the way, into swizzled tiles
 * of shared memory. Registers hold one whole tile in flight, 36 to 80 bytes a thread and 64 columns:
 * no raw copy of a record passes through shared memory.
 *
 * A thread serves key tid / 4 of every tile, and of each band of 64 columns the 16 columns from
 * 16 · (tid % 4) on: four lanes read neighbouring bytes of a record, and eight lanes write all
 * banks once. A key that no row of the tile sees is not read; zeros are written in its place, so
 * that P = 0 meets no NaN. */
#ifndef MLA_CUDA_SM100_MQA_DECODE_KEYS_CUH
#define MLA_CUDA_SM100_MQA_DECODE_KEYS_CUH

#include "any/mqa_work.cuh"
#include "mqa_decode.h"
#include "ptx/mbarrier.cuh"
#include "ptx/shared.cuh"

static const int KEYS = MLA_DECODE_KEYS;
static const int BAND_BYTES = KEYS * 128; /* 64 columns of a tile of keys */
static const int PAIR_BYTES = 2 * BAND_BYTES;
static const int LOADERS = 256; /* threads: four a key */

/* Tiles of keys that this block walks. */
struct span {
    int first, last;
};

__device__ __forceinline__ struct span span_of(const struct work &w)
{
    int tiles = (w.count + KEYS - 1) / KEYS, share = (tiles + w.r.splits - 1) / w.r.splits;
    struct span s;
    s.first = min(tiles, w.split * share);
    s.last = min(tiles, s.first + share);
    return s;
}

/* Position of key `key` of a tile, unchecked; -1 for none. Bitmask: a key that no token of the rows
 * sees is none. The keys of a warp lie in one half of the tile. */
__device__ __forceinline__ int fetch_position(const struct mla_mqa_args &a, const struct work &w,
                                              int tile, int key, int last)
{
    int j = tile * KEYS + key;
    if (tile >= last)
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
    return word >> j % 32 & 1 ? j : -1;
}

/* One key's place in the next tiles: page of the next tile, position of the one after it. Addresses
 * run ahead so that no tile waits for the chain list -> page table -> row. */
struct stream {
    int key, pos, page, ahead;
};

__device__ __forceinline__ void start_stream(const struct mla_mqa_args &a, const struct work &w,
                                             const struct span &s, int key, struct stream *k)
{
    k->key = key;
    k->pos = fetch_position(a, w, s.first, key, s.last);
    k->page = fetch_page(a, w, k->pos);
    k->ahead = fetch_position(a, w, s.first + 1, key, s.last);
}

/* Whether the tile's rows may see the key of the stream. */
__device__ __forceinline__ bool stream_sees(const struct mla_mqa_args &a, const struct work &w,
                                            const struct stream &k)
{
    return k.page >= 0 && (!w.pages || k.page < a.cache.num_pages);
}

/* From tile `tile` to the next. */
__device__ __forceinline__ void advance_stream(const struct mla_mqa_args &a, const struct work &w,
                                               const struct span &s, int tile, struct stream *k)
{
    k->pos = k->ahead;
    k->page = fetch_page(a, w, k->pos);
    k->ahead = fetch_position(a, w, tile + 2, k->key, s.last);
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

/* WORDS words from global memory, whose address is a multiple of 16 if wide, else of 8. */
template <int WORDS>
__device__ __forceinline__ void fetch_words(uint32_t *to, const char *from, bool see, bool wide)
{
#pragma unroll
    for (int i = 0; i < WORDS; i++)
        to[i] = 0;
    if (!see)
        return;
    if (wide && WORDS % 4 == 0) {
#pragma unroll
        for (int i = 0; i < WORDS; i += 4) {
            uint4 v = *(const uint4 *)(from + 4 * i);
            to[i] = v.x, to[i + 1] = v.y, to[i + 2] = v.z, to[i + 3] = v.w;
        }
    } else {
#pragma unroll
        for (int i = 0; i < WORDS; i += 2) {
            uint2 v = *(const uint2 *)(from + 4 * i);
            to[i] = v.x, to[i + 1] = v.y;
        }
    }
}

/* Where a thread's share of a key starts. */
struct key_source {
    const char *data, *other; /* other: rope of a plain row, scales of a footer */
    bool see, wide;
};

__device__ __forceinline__ struct key_source source_of(const struct mla_mqa_args &a,
                                                       const struct work &w, const struct stream &k)
{
    struct key_source s;
    s.see = stream_sees(a, w, k);
    s.wide = a.cache.align == 16;
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
        fetch_words<F::rope>(raw->rope, s.data + MODEL1_ROPE_AT + 32 * part, s.see, s.wide);
    else
        fetch_words<F::latent>(raw->latent[band], s.data + 4 * F::latent * (4 * band + part), s.see,
                               s.wide);
}

template <class F>
__device__ __forceinline__ void fetch_rope(struct raw_key<F> *raw, int part,
                                           const struct key_source &s)
{
    if constexpr (is<F, plain_record>)
        fetch_words<F::rope>(raw->rope, s.other + 32 * part, s.see, s.wide);
    else if constexpr (is<F, fp8_record>)
        fetch_words<F::rope>(raw->rope, s.data + FP8_ROPE_AT + 32 * part, s.see, s.wide);
    else if constexpr (is<F, nvfp4_record>)
        fetch_words<F::rope>(raw->rope, s.data + NVFP4_ROPE_AT + 16 * part, s.see, s.wide);
}

template <class F>
__device__ __forceinline__ void fetch_scales(uint32_t *scale, int part, const struct key_source &s)
{
    if constexpr (is<F, fp8_record>)
        fetch_words<F::scale>(scale, s.data + FP8_SCALES_AT, s.see, s.wide);
    else if constexpr (is<F, nvfp4_record>) /* of this thread's 16 columns of bands 0 to 7 */
        fetch_words<F::scale>(scale, s.data + NVFP4_SCALES_AT + 8 * part, s.see, s.wide);
    else if constexpr (F::scale > 0) /* page footers: no more than 8-byte alignment is sure */
        fetch_words<F::scale>(scale, s.other, s.see, false);
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

#endif

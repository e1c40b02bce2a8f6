/* SPDX-License-Identifier: Apache-2.0 */
/* Cache rows on the device: where key j of a request lies, its copy into shared memory, and the
 * dequantisation of the packed records. Byte offsets are those of common/record.h; docs/formats.md
 * has the tables. Latent width 512 everywhere; rope 64 or 0. */
#ifndef MLA_CUDA_CACHE_CUH
#define MLA_CUDA_CACHE_CUH

#include "any/mqa.h"
#include "element.cuh"
#include "mutant.cuh"
#include "ptx/cp_async.cuh"
#include "record.h"

#include <cuda_fp8.h>

/* Some bytes of shared memory from global memory, zeros if !valid, where addresses are multiples of
 * align = 8, 4, or 1 only; bytes is a multiple of 8. Completion: as cp.async, or a barrier. */
__device__ __forceinline__ void copy_unaligned(uint32_t smem, char *shared, const char *src,
                                               int bytes, bool valid, int align)
{
#pragma unroll 1
    for (int i = 0; i < bytes; i += align) {
        if (align == 8)
            cp_async_ca_8(smem + i, src + i, valid ? 8 : 0);
        else if (align == 4)
            cp_async_ca_4(smem + i, src + i, valid ? 4 : 0);
        else
            shared[i] = valid ? src[i] : 0;
    }
}

/* Where a key's bytes start: data, and rope (plain formats) or scales in the page footer. */
struct row_place {
    int64_t data, other;
};

/* Column of the page table that holds key pos of a paged cache. */
__device__ __forceinline__ int page_column(const struct mla_mqa_cache *c, int pos)
{
    return (int)(__umulhi(2 * (uint32_t)pos, c->page_magic) >> c->page_shift);
}

/* Places of key pos, whose page id is `page`. The caller has checked both. */
__device__ __forceinline__ struct row_place place_row(const struct mla_mqa_cache *c, int kv_start,
                                                      int pos, int page)
{
    struct row_place p;
    if (c->page_size == 0) {
        p.data = ((int64_t)kv_start + pos) * c->row_bytes;
        p.other = ((int64_t)kv_start + pos) * c->rope_row_bytes;
        return p;
    }
    int slot = pos - page_column(c, pos) * c->page_size;
    int64_t page_at = page * c->page_bytes;
    p.data = page_at + slot * c->row_bytes;
    p.other = p.data;
    if (c->footer_bytes)
        p.other = page_at + c->page_size * c->row_bytes + slot * (int64_t)c->footer_bytes;
    return p;
}

__device__ __forceinline__ float ue8m0(uint32_t byte)
{
    /* 2^-127 is subnormal; 255 is NaN. */
    return __uint_as_float(byte == 0 ? 0x00400000u : byte == 255 ? 0x7FC00000u : byte << 23);
}

/* Two e4m3 values; NaN codes stay NaN. */
__device__ __forceinline__ float2 e4m3x2(uint32_t two)
{
    __half2_raw h = __nv_cvt_fp8x2_to_halfraw2((__nv_fp8x2_storage_t)two, __NV_E4M3);
    return __half22float2(*(__half2 *)&h);
}

/* The e2m1 value in the low four bits: its exponent and mantissa as those of a float 2^126 times
 * smaller. */
__device__ __forceinline__ float e2m1(uint32_t nibble)
{
    return __uint_as_float((nibble & 8) << 28 | (nibble & 7) << 22) * 0x1p126f;
}

/* Eight e4m3 values times scale, as four pairs of T. */
template <class T> __device__ __forceinline__ uint4 dequant_e4m3x8(uint2 raw, float scale)
{
    uint32_t out[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        uint32_t word = i < 2 ? raw.x : raw.y;
        float2 v = e4m3x2(word >> (i & 1) * 16 & 0xFFFF);
        out[i] = T::pack(v.x * scale, v.y * scale);
    }
    return make_uint4(out[0], out[1], out[2], out[3]);
}

/* Eight e2m1 values times scale. */
template <class T> __device__ __forceinline__ uint4 dequant_e2m1x8(uint32_t raw, float scale)
{
    uint32_t out[4];
#pragma unroll
    for (int i = 0; i < 4; i++)
        out[i] = T::pack(e2m1(raw >> 8 * i & 15) * scale, e2m1(raw >> (8 * i + 4) & 15) * scale);
    return make_uint4(out[0], out[1], out[2], out[3]);
}

/* Eight bf16 values as T. */
template <class T> __device__ __forceinline__ uint4 from_bf16x8(uint4 raw)
{
    if (T::is_bf16)
        return raw;
    uint32_t in[4] = {raw.x, raw.y, raw.z, raw.w}, out[4];
#pragma unroll
    for (int i = 0; i < 4; i++)
        out[i] = T::pack(__uint_as_float(in[i] << 16), __uint_as_float(in[i] & 0xFFFF0000u));
    return make_uint4(out[0], out[1], out[2], out[3]);
}

__device__ __forceinline__ float fp8_scale(const float *scales, int tile)
{
    if (MUTANT(FP8_E8M0))
        return __uint_as_float(__float_as_uint(scales[tile]) & 0x7F800000u);
    return scales[MUTANT(FP8_NEIGHBOUR) && tile == 1 ? 2 : tile];
}

/* Values 8·chunk … 8·chunk + 7 of a packed row (latent, then rope) as T. row: the record in
 * shared memory, 16-byte aligned, its footer scales right behind the data. */
template <class T>
__device__ __forceinline__ uint4 dequant_chunk(int format, const char *row, int chunk)
{
    switch (format) {
    case MLA_CACHE_FP8_DS_MLA:
        if (chunk >= PACKED_LATENT / 8)
            return from_bf16x8<T>(
                *(const uint4 *)(row + FP8_ROPE_AT + 16 * (chunk - PACKED_LATENT / 8)));
        return dequant_e4m3x8<T>(*(const uint2 *)(row + 8 * chunk),
                                 fp8_scale((const float *)(row + FP8_SCALES_AT),
                                           8 * chunk / FP8_TILE));
    case MLA_CACHE_MODEL1:
        if (chunk >= MODEL1_ROPE_AT / 8)
            return from_bf16x8<T>(
                *(const uint4 *)(row + MODEL1_ROPE_AT + 16 * (chunk - MODEL1_ROPE_AT / 8)));
        return dequant_e4m3x8<T>(
            *(const uint2 *)(row + 8 * chunk),
            ue8m0(((const uint8_t *)row)[MODEL1_DATA_BYTES + 8 * chunk / MODEL1_TILE]));
    case MLA_CACHE_V41:
        return dequant_e4m3x8<T>(*(const uint2 *)(row + 8 * chunk),
                                 ue8m0((
                                     (const uint8_t *)row)[V41_DATA_BYTES + 8 * chunk / V41_TILE]));
    default: /* MLA_CACHE_NVFP4_DS_MLA */
        if (chunk >= PACKED_LATENT / 8)
            return dequant_e4m3x8<T>(*(const uint2 *)(row + NVFP4_ROPE_AT +
                                                      8 * (chunk - PACKED_LATENT / 8)),
                                     1.0f);
        int block = 8 * chunk / NVFP4_TILE;
        float scale =
            e4m3x2(((const uint8_t *)row)[NVFP4_SCALES_AT + 8 * (block & 3) + (block >> 2)]).x;
        return dequant_e2m1x8<T>(*(const uint32_t *)(row + 4 * chunk), scale);
    }
}

#endif

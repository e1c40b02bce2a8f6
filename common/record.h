/* SPDX-License-Identifier: Apache-2.0 */
/* Cache records: byte offsets of the packed formats (docs/formats.md has the tables; all
 * little-endian), where a record lies in its page, and the tile quantisers. */
#ifndef MLA_COMMON_RECORD_H
#define MLA_COMMON_RECORD_H

#include "mla/cache.h"

enum {
    /* fp8_ds_mla: 512 e4m3, 4 f32 scales of 128 values each, 64 bf16 */
    FP8_TILE = 128,
    FP8_TILES = 4,
    FP8_SCALES_AT = 512,
    FP8_ROPE_AT = 528,
    FP8_ROW_BYTES = 656,

    /* model1: per token 448 e4m3 and 64 bf16; after all tokens of the page, per token 7 ue8m0 of 64
     * values each and a byte of padding */
    MODEL1_TILE = 64,
    MODEL1_TILES = 7,
    MODEL1_ROPE_AT = 448,
    MODEL1_DATA_BYTES = 576,
    MODEL1_SCALE_BYTES = 8,
    MODEL1_ROW_BYTES = 584,

    /* v41: per token 512 e4m3; after all tokens of the page, per token 16 ue8m0 of 32 each */
    V41_TILE = 32,
    V41_TILES = 16,
    V41_DATA_BYTES = 512,
    V41_SCALE_BYTES = 16,
    V41_ROW_BYTES = 528,

    /* nvfp4_ds_mla: 512 e2m1 (low nibble first), 64 e4m3, 32 e4m3 scales of 16 values each */
    NVFP4_TILE = 16,
    NVFP4_TILES = 32,
    NVFP4_ROPE_AT = 256,
    NVFP4_SCALES_AT = 320,
    NVFP4_ROW_BYTES = 352,

    PACKED_LATENT = 512, /* kv_lora_rank of every packed format */
    PACKED_ROPE = 64,    /* width of the part that is kept apart from the latent one */

    /* indexer keys of 128 values: data of all tokens of the page, then a 4-byte footer per token:
     * one f32 scale (fp8) or four ue8m0 of 32 values each (fp4) */
    INDEX_DIM = 128,
    INDEX_SCALE_BYTES = 4,
    INDEX_FP4_TILE = 32
};

/* Where the scale of nvfp4 block s lies among the 32 scale bytes. */
static inline int nvfp4_scale_place(int s)
{
    return 8 * (s & 3) + (s >> 2);
}

/* Where the parts of one record lie. rope and scales are NULL where the format has none. */
struct mla_record {
    const char *data, *rope, *scales;
};

/* Record number slot of a page. row_bytes: distance of rows where rows are whole; latent_bytes:
 * where the rope part of a plain row begins. Writers cast the const away. */
static inline struct mla_record mla_record_at(mla_cache_format format, const char *page,
                                              int64_t slot, int64_t page_size, int64_t row_bytes,
                                              int64_t latent_bytes)
{
    const char *row = page + slot * row_bytes;
    switch (format) {
    case MLA_CACHE_FP8_DS_MLA:
        return (struct mla_record){row, row + FP8_ROPE_AT, row + FP8_SCALES_AT};
    case MLA_CACHE_MODEL1:
        row = page + slot * MODEL1_DATA_BYTES;
        return (struct mla_record){row, row + MODEL1_ROPE_AT,
                                   page + page_size * MODEL1_DATA_BYTES +
                                       slot * MODEL1_SCALE_BYTES};
    case MLA_CACHE_V41:
        return (struct mla_record){page + slot * V41_DATA_BYTES, NULL,
                                   page + page_size * V41_DATA_BYTES + slot * V41_SCALE_BYTES};
    case MLA_CACHE_NVFP4_DS_MLA:
        return (struct mla_record){row, row + NVFP4_ROPE_AT, row + NVFP4_SCALES_AT};
    default:
        return (struct mla_record){row, row + latent_bytes, NULL};
    }
}

/* An mla_cache that has been checked, strides resolved. */
struct mla_cache_layout {
    bool paged, packed;
    int64_t width, item;           /* elements of a row; bytes of one */
    int64_t row_bytes, page_bytes; /* paged: strides. flat: of kv_c and of k_pe */
    int64_t slots;
};

/* Bytes of the data of one indexer key; its footer has INDEX_SCALE_BYTES more. 0 if not cached. */
static inline int64_t mla_index_key_bytes(mla_index_format format)
{
    return format == MLA_INDEX_FP8 ? INDEX_DIM : format == MLA_INDEX_FP4 ? INDEX_DIM / 2 : 0;
}

/* Dequantises one record: latent values, then rope values (packed formats know their widths). */
void mla_record_read_f32(mla_cache_format format, const struct mla_record *record, int64_t latent,
                         int64_t rope, float *dst);
void mla_record_read_f64(mla_cache_format format, const struct mla_record *record, int64_t latent,
                         int64_t rope, double *dst);

/* Least e with 2^e >= x, for finite x > 0. Exact: no logarithm. */
int mla_ceil_log2(float x);
/* Scale of n values stored as e4m3, from the finite ones among them. Latent tiles: at least 1e-4,
 * then the next power of two; with MLA_SCALE_F32 at least FLT_MIN, no power. Index keys: amax at
 * least 1e-4, then amax/448, to the next power of two unless MLA_SCALE_F32. */
float mla_latent_scale(const float *x, int64_t n, mla_scale_rule rule);
float mla_index_scale(const float *x, int64_t n, mla_scale_rule rule);
/* x / scale (rounded to float, as deployed) to e4m3; non-finite x to NaN (0x7F). */
void mla_quantise_e4m3(const float *x, int64_t n, float scale, uint8_t *dst);
/* 32 values to 16 bytes of e2m1 by the indexer's rule; returns the ue8m0 scale, 255 if one is not
 * finite. */
uint8_t mla_index_fp4_block(const float *x, uint8_t *dst);

#endif

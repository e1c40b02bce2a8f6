/* SPDX-License-Identifier: Apache-2.0 */
/* Byte offsets of the packed cache records; docs/formats.md has the tables. All little-endian. */
#ifndef MLA_COMMON_RECORD_H
#define MLA_COMMON_RECORD_H

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

    /* v41: per token 512 e4m3; after all tokens of the page, per token 16 ue8m0 of 32 values each */
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

#endif

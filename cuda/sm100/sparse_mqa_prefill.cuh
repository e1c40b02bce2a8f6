/* SPDX-License-Identifier: Apache-2.0 */
/* Geometry of the tiles of sparse_mqa_prefill.cu: shared memory, tensor memory, barriers. */
#ifndef MLA_CUDA_SM100_SPARSE_MQA_PREFILL_CUH
#define MLA_CUDA_SM100_SPARSE_MQA_PREFILL_CUH

#include "../any/mqa_work.cuh"
#include "../any/union.cuh"
#include "ptx/barrier.cuh"
#include "ptx/cluster.cuh"
#include "ptx/convert.cuh"
#include "ptx/launch.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/shared.cuh"
#include "ptx/tcgen05.cuh"
#include "ptx/tma.cuh"
#include "ptx/types.cuh"
#include "ptx/warp.cuh"
#include "ring.cuh"
#include "sparse_mqa_prefill.h"

static const int LATENT = MLA_MQA_LATENT;
static const int BAND = 64;                   /* columns of d, 128 bytes, a tile's row */
static const int CTA_KEYS = 64;               /* key rows of a tile */
static const int TILE_BYTES = CTA_KEYS * 128; /* 64 keys x 64 columns */
static const int STAGE_TILES = 4;             /* 64 keys x 256 columns */
static const int STAGE_BYTES = STAGE_TILES * TILE_BYTES;
static const int GROUPS = CTA_KEYS / 4; /* gather4s a tile */
static const int ENTRIES = 4;           /* blocks of coordinates under way */
static const int OUT_BYTES = 16384;     /* P; a chunk of the output */
static const int MOST_SHARED = 232448;

/* Warps. */
static const int SOFTMAX_WARPS = 4, GATHER_WARP = 4, GATHER_WARPS = 16, MMA_WARP = 20,
                 INDEX_WARP = 21;
static_assert((INDEX_WARP + 3) * 32 == MLA_SPARSE_THREADS, "whole warpgroups");

/* G CTAs compute G * M rows (heads of one token, or of a group of tokens) together. */
template <int G_, int M_, int ROPE_, bool GROUP_ = false> struct geometry {
    static const int G = G_, M = M_, ROPE = ROPE_;
    static const bool GROUP = GROUP_;
    static const int rows = G * M;
    static const int keys = CTA_KEYS * G; /* of a block */
    static const int banks = 128 / M;     /* parts of a row of S and O, in lanes M apart */
    static const int bands = (LATENT + ROPE) / BAND;
    static const int stages = M == 32 ? 6 : 5;
    static const int ropes = ROPE ? 2 : 0;

    /* tensor memory, columns */
    static const int o_columns = LATENT / banks;
    static const int s_columns = keys / banks;
    static const int o_at = 0, s_at = o_columns, q_at = s_at + s_columns;
    static const int q_room = G == 2 ? 6 : M == 64 ? 7 : 9; /* bands of Q in tensor memory */
    static const int q_tmem = q_room < bands ? q_room : bands;
    static const int q_smem = bands - q_tmem; /* the other bands stay in shared memory */
    static_assert(q_at + q_tmem * (BAND / 2) <= 512, "tensor memory has 512 columns");

    /* shared memory, bytes */
    static const int q_band = M * 128;
    static const int q_stage_bands = STAGE_BYTES / q_band; /* bands of Q that pass by a stage */
    static const int q_stages = (q_tmem + q_stage_bands - 1) / q_stage_bands;
    static const int rope_at = stages * STAGE_BYTES;
    static const int q_smem_at = rope_at + ropes * TILE_BYTES;
    static const int p_at = q_smem_at + q_smem * q_band;
    static const int entries_at = p_at + OUT_BYTES;
    /* Words of 32 keys, of each token that may see them. */
    static const int entry_mask = keys * 4, mask_words = keys / 32;
    static const int entry_kind = entry_mask + (GROUP ? MLA_UNION_TOKENS * mask_words * 4 : 16);
    static const int entry_bytes = entry_kind + 16;
    static const int rows_at = entries_at + ENTRIES * entry_bytes; /* [2][128] floats */
    static const int bars_at = rows_at + 2 * 128 * 4;
    static const int full = 0, free = full + stages, rope_full = free + stages,
                     rope_free = rope_full + ropes, entry_full = rope_free + ropes,
                     entry_free = entry_full + ENTRIES, q_full = entry_free + ENTRIES,
                     q_free = q_full + 1, s_full = q_free + 1, s_free = s_full + 1,
                     p_full = s_free + 1, o_full = p_full + 1, bars = o_full + 1;
    static const int tmem_at = bars_at + bars * 8;
    static const int shared_bytes = tmem_at + 8;
    static_assert(keys * M * 2 <= OUT_BYTES && banks * M * 128 <= OUT_BYTES, "P and output chunks");
    static_assert(p_at % 1024 == 0 && q_band % 1024 == 0, "swizzled tiles start at 1024 bytes");
    static_assert(bars_at % 8 == 0 && entry_bytes % 16 == 0, "alignment");
    static_assert(shared_bytes <= MOST_SHARED, "227 KiB a block");

    /* First column of out in chunk c (64 columns of tensor memory) of a bank. */
    static __device__ __forceinline__ int out_column(int chunk, int bank)
    {
        if (G == 2)
            return 256 * bank + 64 * chunk;
        if (M == 64)
            return 256 * (chunk / 2) + 128 * bank + 64 * (chunk % 2);
        return 256 * chunk + 64 * bank;
    }
};

/* A tile of rows and a split of its keys. */
struct unit {
    struct mla_mqa_request r;
    int split, token, head0; /* token (the first) within the request; head0 of this CTA */
    int tokens;              /* 0: nothing to do here, the other kind of tile does it */
    int group;               /* place of its list among those that are in memory, and entries */
    int count;
};

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* Absorbed attention by tiles of 64 rows and blocks of 64 keys: sizes, notes of works, how a tile's
 * output is rescaled and stored. */
#ifndef MLA_CUDA_SM90_MQA_TILE_CUH
#define MLA_CUDA_SM90_MQA_TILE_CUH

#include "any/mqa_work.cuh"
#include "element.cuh"
#include "mqa_decode.h"
#include "ptx/shared.cuh"
#include "warpgroup.cuh"

static const int KEYS = MLA_DECODE90_KEYS, ROWS = MLA_DECODE90_ROWS;
static const u32 TILE_BYTES = KEYS * 128; /* 64 columns of a block of keys, or of the queries */

/* What the math warpgroups learn of a work. */
struct decode_note {
    int steps; /* blocks of keys; -1: no more works */
    int boxes; /* the first of them, which came by TMA: all their keys are there */
    int row0, rows;
    int first;    /* key of the request at which the work begins */
    int limit;    /* end of the keys that the request's first token sees */
    int q_start;  /* the request's first token */
    int split;    /* is the result partial? */
    int64_t part; /* of row0 in the partial results */
    int seen;     /* of the work's keys, the end of those that any row sees */
    int kv_start; /* flat cache: the request's first key */
    const int32_t *pages;
    int number; /* of the block's works */
};

static const u32 NOTE_STEPS = 0, NOTE_BOXES = 4, NOTE_ROW0 = 8, NOTE_ROWS = 12, NOTE_FIRST = 16,
                 NOTE_LIMIT = 20, NOTE_Q_START = 24, NOTE_SPLIT = 28, NOTE_SEEN = 40,
                 NOTE_KV_START = 44, NOTE_PAGES = 48, NOTE_NUMBER = 56, NOTE_BYTES = 64;

__device__ __forceinline__ void write_note(u32 note, const struct decode_note &n)
{
    st_shared(note, n.steps);
    st_shared(note + 4, n.boxes);
    st_shared(note + 8, n.row0);
    st_shared(note + 12, n.rows);
    st_shared(note + 16, n.first);
    st_shared(note + 20, n.limit);
    st_shared(note + 24, n.q_start);
    st_shared(note + 28, n.split);
    st_shared(note + 32, n.part);
    st_shared(note + 40, n.seen);
    st_shared(note + 44, n.kv_start);
    st_shared(note + 48, n.pages);
    st_shared(note + 56, n.number);
}

__device__ __forceinline__ struct decode_note read_note(u32 note)
{
    return {ld_shared<int>(note),          ld_shared<int>(note + 4),
            ld_shared<int>(note + 8),      ld_shared<int>(note + 12),
            ld_shared<int>(note + 16),     ld_shared<int>(note + 20),
            ld_shared<int>(note + 24),     ld_shared<int>(note + 28),
            ld_shared<int64_t>(note + 32), ld_shared<int>(note + 40),
            ld_shared<int>(note + 44),     ld_shared<const int32_t *>(note + 48),
            ld_shared<int>(note + 56)};
}

__device__ __forceinline__ void rescale(float (&o)[128], const float (&factor)[2])
{
    if (__any_sync(~0u, factor[0] != 1 || factor[1] != 1)) {
#pragma unroll
        for (int i = 0; i < 128; i++)
            o[i] *= factor[i >> 1 & 1];
    }
}

/* This warpgroup's 256 columns of the rows that exist, times their factors. */
__device__ __forceinline__ void store_columns(const struct mla_mqa_args &a, bool wide, bool split,
                                              int wg, const int64_t (&to)[2],
                                              const float (&factors)[2], const float (&o)[128])
{
    const int t = threadIdx.x & 3;
    const bool floats = split || (a.out_dtype == MLA_F32 && wide);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const float factor = factors[half];
        const bool there = to[half] >= 0;
        const int64_t column = to[half] + wg * 256;
        /* Of o, the pair of column 8 i + 2 t; without weight zero, whatever o holds. */
        const auto pair = [&](int i) {
            const float *x = &o[i * 4 + half * 2];
            return make_float2(factor == 0 ? 0 : x[0] * factor, factor == 0 ? 0 : x[1] * factor);
        };
        if (!__any_sync(~0u, there))
            continue;
        if (floats) {
            /* Two lanes swap: one then has four columns of 8 i, the other of 8 i + 8. */
            const bool odd = t & 1;
            float *out = (split ? a.part_out : (float *)a.out) + column + (odd ? 8 : 0) + t / 2 * 4;
#pragma unroll
            for (int i = 0; i < 32; i += 2) {
                const float2 x = pair(i), y = pair(i + 1), give = odd ? x : y;
                const float2 got =
                    make_float2(__shfl_xor_sync(~0u, give.x, 1), __shfl_xor_sync(~0u, give.y, 1));
                const float4 four =
                    odd ? make_float4(got.x, got.y, y.x, y.y) : make_float4(x.x, x.y, got.x, got.y);
                if (there)
                    *(float4 *)(out + i * 8) = four;
            }
        } else if (wide) {
            const bool is_bf16 = a.out_dtype == MLA_BF16;
#pragma unroll
            for (int j = 0; j < 8; j++) {
                u32 two[4];
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const float2 x = pair(j * 4 + i);
                    two[i] = is_bf16 ? cvt_rn_bf16x2_f32(x.x, x.y) : cvt_rn_f16x2_f32(x.x, x.y);
                }
                const uint4 piece = transpose_quad(two[0], two[1], two[2], two[3]);
                if (there)
                    *(uint4 *)(a.out + (column + j * 32 + t * 8) * 2) = piece;
            }
        } else {
#pragma unroll
            for (int i = 0; i < 32; i++) {
                const float2 x = pair(i);
                if (there)
                    store_pair(a.out_dtype, a.out, column + i * 8 + t * 2, x.x, x.y);
            }
        }
    }
}

#endif

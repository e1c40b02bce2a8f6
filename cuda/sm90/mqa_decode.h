/* SPDX-License-Identifier: Apache-2.0 */
/* Absorbed decode on sm_90: what the host passes to the kernels of mqa_decode.cuh. Plain C,
 * shared by host and device code. */
#ifndef MLA_CUDA_SM90_MQA_DECODE_H
#define MLA_CUDA_SM90_MQA_DECODE_H

#include "any/mqa.h"
#include "tensor_map.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { MLA_DECODE90_KEYS = 64, MLA_DECODE90_ROWS = 64 };

struct mla_decode90_args {
    struct mla_mqa_args a;
    int32_t works;               /* tiles (of a pair: two) times splits of all requests */
    int32_t box_rows;            /* keys of a TMA box; 0: no keys come by TMA */
    int32_t q_boxes;             /* queries come by TMA: rows of all tokens and heads lie evenly */
    int32_t wide_stores;         /* rows of out are multiples of 16 bytes apart */
    struct mla_mqa_request only; /* the request, where it is one alone: known without a read */
    struct mla_tensor_map q;     /* columns, rows (tokens times heads); boxes of 64 x 64 */
    /* [page, slot, column] of a plain cache; flat: one page that holds every key. */
    struct mla_tensor_map latent, rope;
};

/* The kernel for a cache format; f16: plain caches only. pair: clusters of two blocks, each with 64
 * of 128 rows, which bring half of the keys and give them to each other. masks: there is a bitmask
 * (never of pairs). */
struct mla_mqa_tile mla_decode90_tile_bf16(int cache_format, int rope_dim, bool pair, bool masks);
struct mla_mqa_tile mla_decode90_tile_f16(int rope_dim);
/* For plain caches, dense, all of whose keys come by TMA (mqa_dense.cuh). */
struct mla_mqa_tile mla_dense90_tile_bf16(int rope_dim);
struct mla_mqa_tile mla_dense90_tile_f16(int rope_dim);

#ifdef __cplusplus
}
#endif
#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* mqa_decode: what the host passes to the kernels. Plain C, shared by host and device code. */
#ifndef MLA_CUDA_SM100_MQA_DECODE_H
#define MLA_CUDA_SM100_MQA_DECODE_H

#include "any/mqa.h"
#include "tensor_map.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { MLA_DECODE_THREADS = 512, MLA_DECODE_KEYS = 64 };

struct mla_decode_args {
    struct mla_mqa_args a;
    int32_t bands;    /* of 64 columns of d: 9 with a rope part, 8 without */
    int32_t is_bf16;  /* q, else f16 */
    int32_t box_rows; /* keys of a TMA box; 0: no tile of keys comes by TMA */
    /* [page, slot, column] of a plain cache; flat: one page that holds every key. */
    struct mla_tensor_map latent, rope;
};

/* The kernel for tiles of 16, 32 or 64 rows, and its dynamic shared memory. */
struct mla_mqa_tile mla_mqa_decode_tile(int rows);
/* Tiles of 128 rows, a pair of CTAs each. */
struct mla_mqa_tile mla_mqa_decode_pair_tile(void);

#ifdef __cplusplus
}
#endif
#endif

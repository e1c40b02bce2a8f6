/* SPDX-License-Identifier: Apache-2.0 */
/* Expanded-form attention of sm_100: what the host passes to the kernels of mha_prefill.cu. Plain
 * C, shared by host and device code. */
#ifndef MLA_CUDA_SM100_MHA_PREFILL_H
#define MLA_CUDA_SM100_MHA_PREFILL_H

#include "any/mha.h"
#include "mha_maps.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    MLA_MHA100_KEYS = 128, /* of a tile */
    MLA_MHA100_ROWS = 128, /* of a query tile; a block holds one or two */
};

/* Boxes of the maps: 128 rows of q, q_rope and k, and as many of v as fill 16 KB with all its
 * columns (64 at two query tiles, 32 at one). */
struct mla_mha100_args {
    struct mla_mha_maps maps;
    struct mla_mha_args a;
    int32_t works;       /* query tiles of the pass times heads */
    int32_t out_aligned; /* out and its strides are multiples of 16 bytes */
};

/* The smallest that holds these widths; function NULL if none does. rows: 256, or 128 where only
 * one query tile fits. */
struct mla_mha_tile mla_mha100_tile(mla_dtype dtype, int64_t d_qk, int64_t d_v);

#ifdef __cplusplus
}
#endif
#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* Expanded-form attention on sm_90: what the host passes to the kernels of mha_prefill.cuh. */
#ifndef MLA_CUDA_SM90_MHA_PREFILL_H
#define MLA_CUDA_SM90_MHA_PREFILL_H

#include "any/mha.h"
#include "mha_maps.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Query tiles of a head that follow each other share its keys in L2; so many heads at a time. */
enum { MLA_MHA_SM90_HEADS = 16, MLA_MHA_SM90_WG_ROWS = 64 };

struct mla_mha_sm90_args {
    struct mla_mha_args a;
    struct mla_mha_maps maps; /* boxes of 64 rows (q) or of a key tile (k, v) */
    int32_t works;            /* query tiles times heads */
    int32_t group;            /* heads at a time */
    int32_t wide_stores;      /* rows of out are multiples of 16 bytes apart */
};

/* The block that holds these widths; function NULL if none does. keys: of its key tiles. */
struct mla_mha_tile mla_mha_sm90_tile_bf16(int64_t d_qk, int64_t d_v, int *keys);
struct mla_mha_tile mla_mha_sm90_tile_f16(int64_t d_qk, int64_t d_v, int *keys);

#ifdef __cplusplus
}
#endif
#endif

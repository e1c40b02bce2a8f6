/* SPDX-License-Identifier: Apache-2.0 */
/* Expanded-form attention on sm_90: what the host passes to the kernels of mha_prefill.cuh. */
#ifndef MLA_CUDA_SM90_MHA_PREFILL_H
#define MLA_CUDA_SM90_MHA_PREFILL_H

#include "any/mha.h"
#include "mha_maps.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { MLA_MHA_SM90_ROWS = 128, MLA_MHA_SM90_WG_ROWS = 64 };
/* Keys that are skipped or not together, and bytes of their bits for 64 rows (mha_mask.cu). */
enum { MLA_MHA_SM90_CHUNK = 16, MLA_MHA_SM90_CHUNK_BYTES = 128 };
/* Blocks of the mask kernel: so many rows and keys of bits; a warp has a byte a key. */
enum {
    MLA_MHA_SM90_MASK_ROWS = 32,
    MLA_MHA_SM90_MASK_THREADS = 512,
    MLA_MHA_SM90_MASK_KEYS = 4096,
    MLA_MHA_SM90_MASK_SHARED = MLA_MHA_SM90_MASK_THREADS / 32 * MLA_MHA_SM90_MASK_KEYS
};

struct mla_mha_sm90_args {
    struct mla_mha_args a;
    struct mla_mha_maps maps;   /* boxes of 64 rows (q) or of a key tile (k, v) */
    struct mla_mha_maps chunks; /* of k and v, boxes of MLA_MHA_SM90_CHUNK rows */
    int32_t k_split;            /* columns of k from here on are k_rope's */
    int32_t works;              /* query tiles times heads */
    int32_t group, last_group;  /* heads at a time; the first of those that come all at once */
    int32_t wide_stores;        /* rows of out are multiples of 16 bytes apart */
    float minus_inf;            /* -inf, which the compiler is not to know */
    uint32_t *counter;          /* works dealt beyond one a block, 0 before; or NULL */
};

/* The block that holds these widths; function NULL if none does. keys: of its key tiles. */
struct mla_mha_tile mla_mha_sm90_tile_bf16(int64_t d_qk, int64_t d_v, int *keys);
struct mla_mha_tile mla_mha_sm90_tile_f16(int64_t d_qk, int64_t d_v, int *keys);
/* mha_mask.cu; of struct mla_mask_args, whose mask is the engine's bits. */
const void *mla_mha_sm90_mask_function(void);

#ifdef __cplusplus
}
#endif
#endif

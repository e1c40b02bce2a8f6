/* SPDX-License-Identifier: Apache-2.0 */
/* Tensor maps of expanded attention: what the engines of sm_90 and sm_100 load by TMA. */
#ifndef MLA_CUDA_MHA_MAPS_H
#define MLA_CUDA_MHA_MAPS_H

#include "any/mha.h"
#include "any/mha_plan.h"
#include "tensor_map.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { MLA_MHA_BOX = 64 }; /* columns of a box: 128 bytes, the swizzle's span */

/* Of [rows, heads, width] elements; boxes are MLA_MHA_BOX columns of one head, 128-byte swizzle. */
struct mla_mha_maps {
    struct mla_tensor_map q, q_rope, k, k_rope, v;
};

/* box_rows: rows of a box of q (and q_rope), k (and k_rope) and v. Without rope every column is
 * q's, those behind the last too (TMA's zeros), so args->q_split grows past all of them. Maps that
 * are never looked at (q_rope without rope, k and v without keys) are q's. MLA_ERR_ARGUMENT where
 * TMA can't read. */
mla_status mla_mha_set_maps(struct mla_mha_maps *maps, struct mla_mha_args *args,
                            const struct mla_mha_operands *operands, const int box_rows[3]);

/* Are out and its strides multiples of 16 bytes? */
bool mla_mha_out_aligned(const struct mla_mha_args *args);

#ifdef __cplusplus
}
#endif
#endif

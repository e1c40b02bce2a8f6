/* SPDX-License-Identifier: Apache-2.0 */
/* Tensor maps of absorbed attention: keys that decode engines of sm_90 and sm_100 load by TMA. */
#ifndef MLA_CUDA_MQA_MAPS_H
#define MLA_CUDA_MQA_MAPS_H

#include "any/mqa.h"
#include "tensor_map.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Maps of a plain cache whose blocks of `keys` keys lie in boxes of 64 columns x *box_rows keys,
 * 128-byte swizzle: dimensions columns, keys of a page (flat: all), pages. *box_rows stays 0 where
 * TMA can't bring them: packed records, lists, bitmasks, rows off 16 bytes, or pages that would
 * make boxes of fewer than least_rows keys. */
mla_status mla_mqa_cache_maps(const mla_problem *problem, const struct mla_mqa_args *args, int keys,
                              int least_rows, struct mla_tensor_map *latent,
                              struct mla_tensor_map *rope, int32_t *box_rows);

#ifdef __cplusplus
}
#endif
#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* Expanded-form attention of bf16 tensors. */
#include "mha.cuh"

struct mla_mha_tile mla_mha_tile_bf16(int64_t d_qk, int64_t d_v)
{
    return tile_for_widths<bf16>(d_qk, d_v);
}

MLA_MUTANT_SETTER(mha_bf16)

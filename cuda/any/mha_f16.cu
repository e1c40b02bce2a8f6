/* SPDX-License-Identifier: Apache-2.0 */
/* Expanded-form attention of f16 tensors. */
#include "mha.cuh"

struct mla_mha_tile mla_mha_tile_f16(int64_t d_qk, int64_t d_v)
{
    return tile_for_widths<f16>(d_qk, d_v);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* The kernels of mha_prefill.cuh for f16. */
#include "mha_prefill.cuh"

struct mla_mha_tile mla_mha_sm90_tile_f16(int64_t d_qk, int64_t d_v, int *keys)
{
    return tile_for_widths<f16>(d_qk, d_v, keys);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* The kernels of mqa_dense.cuh for f16. */
#include "mqa_dense.cuh"

struct mla_mqa_tile mla_dense90_tile_f16(int rope_dim)
{
    return rope_dim ? dense_tile<f16, 64>() : dense_tile<f16, 0>();
}

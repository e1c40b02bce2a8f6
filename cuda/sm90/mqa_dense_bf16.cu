/* SPDX-License-Identifier: Apache-2.0 */
/* The kernels of mqa_dense.cuh for bf16. */
#include "mqa_dense.cuh"

struct mla_mqa_tile mla_dense90_tile_bf16(int rope_dim)
{
    return rope_dim ? dense_tile<bf16, 64>() : dense_tile<bf16, 0>();
}

/* SPDX-License-Identifier: Apache-2.0 */
/* The kernels of sparse_mqa_few.cuh for bf16. */
#include "sparse_mqa_few.cuh"

struct mla_mqa_tile mla_few_sm90_tile_bf16(int rope_dim)
{
    return few_tile<bf16>(rope_dim);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* The kernels of sparse_mqa_prefill.cuh for f16. */
#include "sparse_mqa_prefill.cuh"

struct mla_mqa_tile mla_sparse_sm90_tile_f16(int rope_dim)
{
    return sparse_tile<f16>(rope_dim);
}

struct mla_mqa_tile mla_sparse_sm90_group_f16(int rope_dim)
{
    return sparse_group_tile<f16>(rope_dim);
}

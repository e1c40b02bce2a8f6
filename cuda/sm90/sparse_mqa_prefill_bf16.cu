/* SPDX-License-Identifier: Apache-2.0 */
/* The kernels of sparse_mqa_prefill.cuh for bf16. */
#include "sparse_mqa_prefill.cuh"

struct mla_mqa_tile mla_sparse_sm90_tile_bf16(int rope_dim)
{
    return sparse_tile<bf16>(rope_dim);
}

struct mla_mqa_tile mla_sparse_sm90_group_bf16(int rope_dim)
{
    return sparse_group_tile<bf16>(rope_dim);
}
